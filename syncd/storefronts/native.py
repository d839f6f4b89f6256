"""syncd's own HTTP API under /v1, and what Prometheus and load balancers ask. Called by the daemon.

FastAPI answers everything but the one hot route, which stands in front of it as bare ASGI. docs/api.md tells of all of
it; /openapi.json is what the code says of itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Path, Query, Request, Response
from pydantic import BaseModel, Field

from syncd import __version__
from syncd.config import MAX_WAIT_S, Settings
from syncd.errors import NotFoundError
from syncd.inventory.catalogue import Catalogue
from syncd.inventory.intake import Intake
from syncd.inventory.purchase import Purchases
from syncd.inventory.quarantine import Quarantine
from syncd.inventory.restock import Restock
from syncd.inventory.sync import Sync
from syncd.metrics import CONTENT_TYPE, Metrics
from syncd.model import ORDER_REF_PATTERN, SKU_PATTERN, Right
from syncd.orders.deliveries import Deliveries
from syncd.orders.replacements import Replacements
from syncd.orders.reservations import Reservations
from syncd.orders.stock import Stock
from syncd.store.database import Writer
from syncd.storefronts import aftersales, hot, operating, planning, problems, purchasing
from syncd.storefronts.access import Access
from syncd.storefronts.aftersales import answered
from syncd.storefronts.guard import METRICS, PUBLIC, SHOP_DELIVER, SHOP_STOCK, caller, install
from syncd.storefronts.hot import DeliveryAnswer, DeliveryRequest, Hot
from syncd.storefronts.problems import Problem
from syncd.storefronts.wire import Receive, Scope, Send
from syncd.vault.crypto import Kek
from syncd.vault.keyring import Keyring

_ANSWERS_S: Final = 2.0
"""For how long a daemon may be busy before it does not count as ready."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the API speaks for. ``status`` blocks; ``ping`` raises SyncdError unless the writer commits."""

    settings: Callable[[], Settings]
    deliveries: Deliveries
    reservations: Reservations
    replacements: Replacements
    stock: Stock
    catalogue: Catalogue
    quarantine: Quarantine
    purchases: Purchases
    restock: Restock
    sync: Sync
    intake: Intake
    access: Access
    writer: Writer
    metrics: Metrics
    kek: Kek
    ring: Keyring
    status: Callable[[], dict[str, Any]]
    ping: Callable[[], Awaitable[object]]


class Upstream(BaseModel):
    """What suppliers hold of a product, at a price that it may cost: in ``sellable`` where the product is bought."""

    kind: Literal["none", "exact", "coarse", "unlimited", "unknown"] = Field(
        description="`none`: no supplier's offer is named for it."
    )
    quantity: int | None = Field(None, description="Units, for `exact`.")
    level: Literal["low", "plenty"] | None = Field(None, description="For `coarse`.")
    age_s: int | None = Field(None, description="Seconds since it was read.")
    stale: bool | None = Field(None, description="Whether that is longer ago than it should be.")


class StockRow(BaseModel):
    """What can be sold of a product."""

    product: str
    title: str
    cached: int = Field(description="Keys in the vault that can be delivered now.")
    reserved: int = Field(description="Keys in the vault that are held for orders.")
    promised: int = Field(description="Units of reservations that are to be bought once they are paid.")
    upstream: Upstream
    sellable: int = Field(
        description="How many can be sold now: cached, less what paid orders still wait for; where the product is"
        " bought on demand, with what suppliers have, less what was promised of it."
    )
    price: str | None
    age_s: int | None = Field(description="Seconds since keys were last pulled; null before the first time.")
    stale: bool = Field(description="Whether that is longer ago than it should be.")


class StockAnswer(BaseModel):
    """Stock by product."""

    products: list[StockRow]


class Front:
    """The whole application: counts each request, and leaves no error unanswered."""

    def __init__(self, api: FastAPI, hot_route: Hot, metrics: Metrics) -> None:
        self.api = api
        self._hot = hot_route
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        if scope["path"] == hot.PATH and scope["method"] == "POST":
            await self._hot(scope, receive, send)
            return
        status = 0

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.api(scope, receive, watched)
        except Exception as error:  # noqa: BLE001 - a fault of ours is logged, and answered as one
            found = problems.internal(error, scope.get("syncd.route", "none"))
            scope["syncd.problem"] = found.code
            if status:
                raise found from None  # half an answer is out: the server cuts the connection
            await problems.send_problem(watched, found)
        route = scope.get("syncd.route", "none")
        self._metrics.answered(route, scope["method"], status)
        if "syncd.problem" in scope:
            self._metrics.refused(route, scope["syncd.problem"])


def build(parts: Parts) -> Front:
    """The application over these parts."""

    def max_body() -> int:
        return parts.settings().daemon.max_body

    api = FastAPI(
        title="syncd",
        version=__version__,
        description="Card keys for shops: pulled from suppliers, kept encrypted, delivered once.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    install(api, parts.access, max_body)
    hot_route = Hot(parts.deliveries, parts.access, parts.metrics, max_body)
    _shop(api, parts)
    aftersales.install(api, parts)
    operating.install(api, parts)
    purchasing.install(api, parts)
    planning.install(api, parts)
    _health(api, parts)
    return Front(api, hot_route, parts.metrics)


_PROBLEM: Final[dict[int | str, dict[str, Any]]] = {"default": {"model": Problem, "description": "What is wrong."}}
_ORDER: Final = Path(pattern=ORDER_REF_PATTERN)


def _shop(api: FastAPI, parts: Parts) -> None:
    @api.get("/v1/stock", response_model=StockAnswer, openapi_extra={"rule": SHOP_STOCK}, responses=_PROBLEM)
    async def stock(request: Request, product: Annotated[str | None, Query(pattern=SKU_PATTERN)] = None) -> Response:
        """What can be sold, by product. The ETag changes when anything but the age does."""
        rows, tag = await parts.stock.snapshot(product)
        headers = {"ETag": f'"{tag}"', "Cache-Control": "private, no-cache"}
        known = [part.strip().removeprefix("W/").strip('"') for part in _joined(request, "if-none-match").split(",")]
        if tag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(hot.encode({"products": rows}), headers=headers, media_type="application/json")

    @api.post(
        hot.PATH,
        response_model=DeliveryAnswer,
        response_model_exclude_none=True,
        openapi_extra={"rule": SHOP_DELIVER},
        responses={202: {"model": DeliveryAnswer, "description": "Pending: see Location and Retry-After."}, **_PROBLEM},
    )
    async def deliver(asked: DeliveryRequest) -> None:
        """Deliver one paid order line, or say again what was delivered for it (`repeat`)."""
        # Documented here, answered by `Hot`: the front takes every POST of this path.
        raise NotImplementedError

    @api.get(
        "/v1/deliveries/{order_ref}",
        response_model=DeliveryAnswer,
        openapi_extra={"rule": SHOP_DELIVER},
        responses=_PROBLEM,
    )
    async def delivery(
        request: Request,
        order_ref: Annotated[str, _ORDER],
        wait_s: Annotated[int, Query(ge=0, le=MAX_WAIT_S, description="How long to wait while it is pending.")] = 0,
    ) -> Response:
        """A recorded delivery; with its keys for whoever has the right to reveal, which is audited."""
        who = caller(request)
        reveals = Right.REVEAL in who.rights
        found = await parts.deliveries.look(who.name, order_ref, wait_s=wait_s, reveal=reveals)
        if found is None:
            raise NotFoundError("this shop has no such delivery")
        return answered(found, with_keys=reveals)

    @api.post(
        "/v1/deliveries/{order_ref}/cancel",
        response_model=DeliveryAnswer,
        openapi_extra={"rule": SHOP_DELIVER},
        responses=_PROBLEM,
    )
    async def cancel(request: Request, order_ref: Annotated[str, _ORDER]) -> Response:
        """Cancel a pending delivery for ever."""
        return answered(await parts.deliveries.cancel(caller(request).name, order_ref), with_keys=False)


def _joined(request: Request, name: str) -> str:
    return ",".join(request.headers.getlist(name))


def _health(api: FastAPI, parts: Parts) -> None:
    @api.get("/healthz", openapi_extra={"rule": PUBLIC})
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "alive"}

    @api.get("/readyz", openapi_extra={"rule": PUBLIC}, responses=_PROBLEM)
    async def readyz() -> dict[str, str]:
        """Whether keys can be delivered: the store commits, and no restored database waits for recovery."""
        try:
            async with asyncio.timeout(_ANSWERS_S):
                await parts.ping()
        except TimeoutError:
            raise problems.NotReadyError("the store does not answer", hint="see the daemon's log") from None
        if parts.deliveries.fenced:
            raise problems.NotReadyError("this database was restored from a backup", hint="run: syncd recover")
        return {"status": "ready"}

    @api.get("/metrics", response_class=Response, openapi_extra={"rule": METRICS}, responses=_PROBLEM)
    def metrics() -> Response:
        """Everything that is counted, as Prometheus reads it. Open on loopback, with a token elsewhere."""
        return Response(parts.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    @api.get("/openapi.json", openapi_extra={"rule": PUBLIC}, include_in_schema=False)
    def openapi() -> dict[str, Any]:
        """This API, described."""
        return api.openapi()
