"""The operator's routes for purchases: what is open, what is unknown, what a person decides. Called by `native`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import FastAPI, Path, Query, Request, Response
from pydantic import BaseModel, Field

from syncd.adapter import Webhook
from syncd.errors import InvalidRequestError
from syncd.inventory.purchase import Outcome
from syncd.storefronts.guard import OPERATE, PUBLIC, by
from syncd.storefronts.operating import Body, Name, QueryName, QuerySku, Sku, stated

if TYPE_CHECKING:
    from syncd.storefronts.native import Parts

_MOST_HOOK: Final = 64 << 10
_MOST_KEYS: Final = 4 << 20
"""Bytes of keys that are handed over for one purchase."""
Reference = Annotated[str, Path(pattern=r"^[A-Za-z0-9]{1,32}$")]


class Wanted(Body):
    """How many units to buy."""

    quantity: Annotated[int, Field(ge=1, le=1000)]


class Refusal(BaseModel):
    """Who did not sell, or what forbade to ask."""

    supplier: str
    sku: str
    why: str


class Bought(BaseModel):
    """What came of a wish to buy."""

    bought: int = Field(description="Units that are in the vault now.")
    on_order: int = Field(description="Units that were ordered and are outstanding, unknown ones among them.")
    refused: list[Refusal]
    references: list[str] = Field(description="The purchases that were begun.")


def install(app: FastAPI, parts: Parts) -> None:
    """Add the routes."""

    @app.get("/v1/purchases", **stated(OPERATE, "purchases"))
    def purchases(
        which: Literal["all", "open", "unknown", "disputed"] = "all",
        product: QuerySku | None = None,
        supplier: QueryName | None = None,
        before: Annotated[int, Query(ge=1, le=2**63 - 1)] = 2**63 - 1,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
    ) -> dict[str, Any]:
        """Purchases, the newest first: a page, and `next` to ask for the one `before` it."""
        rows, following = parts.purchases.page(which, product=product, supplier=supplier, before=before, limit=limit)
        return {
            "purchases": [row.shown() for row in rows],
            "next": None if following is None else str(following),
        }

    @app.get("/v1/purchases/{reference}", **stated(OPERATE, "purchases"))
    def purchase(reference: Reference) -> dict[str, Any]:
        """One purchase."""
        return parts.purchases.find(reference).shown()

    @app.post("/v1/purchases/{reference}/resolve", **stated(OPERATE, "purchases", max_body=_MOST_KEYS))
    async def resolve(reference: Reference, charged: bool, request: Request) -> dict[str, Any]:  # noqa: FBT001
        """Say what became of a purchase. The body, if there is one, holds its keys as the supplier shows them."""
        keys = await request.body()
        if len(keys) > _MOST_KEYS:
            raise InvalidRequestError("more keys than one purchase has")
        found = await parts.purchases.resolve(reference, charged=charged, keys=keys or None, by=by(request))
        return found.shown()

    @app.post("/v1/products/{sku}/buy", **stated(OPERATE, "purchases"))
    async def buy(sku: Sku, wanted: Wanted, request: Request) -> Bought:
        """Buy so many units now, whatever is there: within the guards, from whoever is best."""
        return bought(await parts.purchases.buy(sku, wanted.quantity, asked_by=by(request)))

    @app.post("/v1/hooks/{name}", **stated(PUBLIC, "suppliers", max_body=_MOST_HOOK))
    async def hook(name: Name, request: Request) -> Response:
        """What a supplier wants to tell: verified by its adapter, and no more than a reason to ask it now."""
        webhook = Webhook(
            method=request.method,
            path=request.url.path,
            headers={key.lower(): value for key, value in request.headers.items()},
            query=dict(request.query_params),
            body=await request.body(),
            received_at=datetime.now(UTC),
        )
        return Response(await parts.purchases.heard(name, webhook), media_type="application/octet-stream")


def bought(got: Outcome) -> Bought:
    """An outcome as it is answered."""
    refused = [Refusal(supplier=supplier, sku=sku, why=why) for supplier, sku, why in got.refused]
    return Bought(bought=got.bought, on_order=got.on_order, refused=refused, references=list(got.references))
