"""Reservations and replacements for shops, and deliveries for the operator. Called by `native`; the commands use it.

What an operator sees of a delivery are ids, states and times: never a key.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import FastAPI, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from syncd.config import MAX_HOLD_S, MAX_QUANTITY
from syncd.errors import ConflictError, NotFoundError
from syncd.model import NAME_PATTERN, ORDER_REF_PATTERN, SKU_PATTERN, DeliveryState, utc
from syncd.orders.deliveries import Delivery
from syncd.orders.replacements import Reason
from syncd.orders.reservations import Reservation
from syncd.storefronts import hot
from syncd.storefronts.guard import OPERATE, SHOP_DELIVER, Rule, by, caller
from syncd.storefronts.hot import DeliveryAnswer
from syncd.storefronts.problems import Problem

if TYPE_CHECKING:
    from syncd.storefronts.native import Parts


def _fits(number: str) -> str:
    if int(number) >= 2**63:
        raise ValueError("there is no such id")
    return number


OrderRef = Annotated[str, Path(pattern=ORDER_REF_PATTERN)]
ShopName = Annotated[str, Path(pattern=NAME_PATTERN)]
KeyId = Annotated[str, Field(pattern=r"^[0-9]{1,19}$"), AfterValidator(_fits)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ReservationRequest(_Body):
    """What to hold for an order line that is not paid yet."""

    product: str = Field(pattern=SKU_PATTERN, description="The shop's own sku.")
    quantity: int = Field(ge=1, le=MAX_QUANTITY, description="How many keys: all of them or none.")
    customer: str | None = Field(
        None, min_length=1, max_length=200, description="Who buys: counted, and kept as a keyed fingerprint only."
    )
    ttl_s: int | None = Field(None, ge=1, le=MAX_HOLD_S, description="For how long; default: `reservations.ttl`.")


class ReservationAnswer(BaseModel):
    """What is held."""

    status: Literal["held", "released", "expired", "delivered"]
    order_ref: str
    product: str
    quantity: int
    promised: int = Field(description="Units of it that are not in the vault: suppliers have them, to be bought.")
    repeat: bool = Field(description="Whether it was so before this request.")
    created_at: str
    expires_at: str = Field(description="Until then at least.")


class ReplacementRequest(_Body):
    """A key that does not work, and what is wrong with it."""

    key_id: KeyId
    reason: Reason


class ClaimSettled(_Body):
    """What the supplier says, where its answer was lost. ``open``: nothing was done there, claim it again."""

    claim: Literal["returned", "complained", "refused", "open"]


class DeliveryRow(BaseModel):
    """A delivery as the operator sees it."""

    id: str
    shop: str
    order_ref: str
    product: str
    quantity: int
    status: Literal["delivered", "pending", "cancelled"]
    reason: str | None
    created_at: str
    completed_at: str | None


class DeliveryPage(BaseModel):
    """Some deliveries, the oldest first. Ask again with ``next`` as ``after``, until it is null."""

    items: list[DeliveryRow]
    next: str | None


def install(app: FastAPI, parts: Parts) -> None:
    """Add these routes."""
    _reservations(app, parts)
    _replacements(app, parts)
    _deliveries(app, parts)
    _claims(app, parts)


_PROBLEM: Final[dict[int | str, dict[str, Any]]] = {"default": {"model": Problem, "description": "What is wrong."}}


def _stated(rule: Rule, tag: str, **extra: Any) -> dict[str, Any]:
    return {
        "openapi_extra": {"rule": rule},
        "tags": [tag],
        "responses": {**extra.pop("responses", {}), **_PROBLEM},
    } | extra


def _reservations(app: FastAPI, parts: Parts) -> None:
    made = {201: {"model": ReservationAnswer, "description": "Held from now on."}}

    @app.put(
        "/v1/reservations/{order_ref}",
        response_model=ReservationAnswer,
        **_stated(SHOP_DELIVER, "reservations", responses=made),
    )
    async def reserve(order_ref: OrderRef, asked: ReservationRequest, request: Request) -> Response:
        """Hold keys for an order line until it is paid. A repeat says what is held, and prolongs nothing."""
        found = await parts.reservations.reserve(
            caller(request).name,
            order_ref,
            asked.product,
            asked.quantity,
            customer=asked.customer,
            ttl_s=asked.ttl_s or 0,
        )
        return _held(found, 200 if found.repeat else 201)

    @app.get("/v1/reservations/{order_ref}", response_model=ReservationAnswer, **_stated(SHOP_DELIVER, "reservations"))
    async def reservation(order_ref: OrderRef, request: Request) -> Response:
        """What is held, or was."""
        found = await asyncio.to_thread(parts.reservations.find, caller(request).name, order_ref)
        if found is None:
            raise NotFoundError("this shop has no such reservation")
        return _held(found)

    @app.delete(
        "/v1/reservations/{order_ref}", response_model=ReservationAnswer, **_stated(SHOP_DELIVER, "reservations")
    )
    async def release(order_ref: OrderRef, request: Request) -> Response:
        """Hold nothing any more. Again, it stays so."""
        return _held(await parts.reservations.release(caller(request).name, order_ref))


def _held(found: Reservation, status: int = 200) -> Response:
    told = ReservationAnswer(
        status=found.state,  # type: ignore[arg-type]
        order_ref=found.order_ref,
        product=found.product,
        quantity=found.quantity,
        promised=found.promised,
        repeat=found.repeat,
        created_at=utc(found.created_at),
        expires_at=utc(found.expires_at),
    )
    return Response(hot.encode(told.model_dump()), status, {"Cache-Control": "no-store"}, "application/json")


def answered(found: Delivery, *, with_keys: bool) -> Response:
    """A delivery as every route answers it."""
    status = 202 if found.state == DeliveryState.PENDING else 200
    response = Response(hot.encoded(found, with_keys=with_keys), status)
    response.raw_headers += hot.head(found)
    return response


def _replacements(app: FastAPI, parts: Parts) -> None:
    @app.post(
        "/v1/deliveries/{order_ref}/replacements",
        response_model=DeliveryAnswer,
        response_model_exclude_none=True,
        **_stated(
            SHOP_DELIVER,
            "deliveries",
            responses={202: {"model": DeliveryAnswer, "description": "Pending: none is left to put in its place."}},
        ),
    )
    async def replace(order_ref: OrderRef, asked: ReplacementRequest, request: Request) -> Response:
        """Put another key in the place of one that does not work. The same key again: the keys as they are now."""
        found = await parts.replacements.replace(caller(request).name, order_ref, int(asked.key_id), asked.reason)
        return answered(found, with_keys=True)


def _deliveries(app: FastAPI, parts: Parts) -> None:
    @app.get("/v1/deliveries", response_model=DeliveryPage, **_stated(OPERATE, "deliveries"))
    def deliveries(
        product: Annotated[str, Query(pattern=SKU_PATTERN)] | None = None,
        shop: Annotated[str, Query(pattern=NAME_PATTERN)] | None = None,
        pending: bool = False,  # noqa: FBT001, FBT002 - a query parameter
        after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """Deliveries, the oldest first, a page: those of a product, of a shop, those that wait."""
        rows = parts.deliveries.page(product=product, shop=shop, pending=pending, after=after, limit=limit)
        return {"items": rows[:limit], "next": rows[limit - 1]["id"] if len(rows) > limit else None}

    @app.get("/v1/shops/{shop}/deliveries/{order_ref}", **_stated(OPERATE, "deliveries"))
    def delivery(shop: ShopName, order_ref: OrderRef) -> dict[str, Any]:
        """One delivery: the ids of its keys and where they came from, and what was replaced."""
        return _shown(parts, shop, order_ref)

    @app.post("/v1/shops/{shop}/deliveries/{order_ref}/retry", **_stated(OPERATE, "deliveries"))
    async def retry(shop: ShopName, order_ref: OrderRef) -> dict[str, Any]:
        """Look for the keys of a pending delivery now, in the vault and at suppliers, in its turn."""
        found = await asyncio.to_thread(parts.deliveries.find, shop, order_ref)
        if found is None:
            raise NotFoundError("there is no such delivery")
        if found.state != DeliveryState.PENDING:
            raise ConflictError(f"this delivery is {found.state}", hint="only a pending one is tried again")
        await parts.deliveries.fill(found.product)
        parts.deliveries.short(found.product)
        return await asyncio.to_thread(_shown, parts, shop, order_ref)

    @app.post("/v1/shops/{shop}/deliveries/{order_ref}/replacements", **_stated(OPERATE, "deliveries"))
    async def replace(
        shop: ShopName, order_ref: OrderRef, asked: ReplacementRequest, request: Request
    ) -> dict[str, Any]:
        """Replace a key for a shop, whatever its limit. The shop asks again for the keys as they are then."""
        await parts.replacements.replace(shop, order_ref, int(asked.key_id), asked.reason, by=by(request))
        return await asyncio.to_thread(_shown, parts, shop, order_ref)


def _shown(parts: Parts, shop: str, order_ref: str) -> dict[str, Any]:
    found = parts.deliveries.show(shop, order_ref)
    return {**found, "replacements": parts.replacements.claims(delivery=int(found["id"]))}


def _claims(app: FastAPI, parts: Parts) -> None:
    @app.get("/v1/claims", **_stated(OPERATE, "deliveries"))
    def claims(
        claim: Literal["open", "asking", "returned", "complained", "refused", "impossible"] | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    ) -> dict[str, Any]:
        """Defective keys, the newest first, and what their suppliers say. `asking`: an answer was lost, or is due."""
        return {"claims": parts.replacements.claims(claim=claim, limit=limit)}

    @app.post("/v1/claims/{key}/settle", **_stated(OPERATE, "deliveries"))
    async def settle(
        key: Annotated[int, Path(ge=1, le=2**63 - 1)], told: ClaimSettled, request: Request
    ) -> dict[str, str]:
        """Say what became of a claim whose answer was lost."""
        await parts.replacements.settle(key, told.claim, by(request))
        return {"claim": told.claim}
