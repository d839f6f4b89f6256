"""POST /v1/deliveries: the one route that must be fast, as bare ASGI with msgspec. Called by `native`.

It says what the FastAPI routes say, in the same words and with the same guard; `DeliveryRequest` and `DeliveryAnswer`
are its entries in the OpenAPI document, and a test holds both together. docs/adr/0008 says what makes it fast.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from syncd.config import MAX_QUANTITY, MAX_WAIT_S
from syncd.errors import InvalidRequestError, SyncdError
from syncd.model import NEVER, ORDER_REF_PATTERN, SKU_PATTERN, DeliveryState, utc
from syncd.orders.deliveries import Deliveries, Delivery
from syncd.storefronts import problems
from syncd.storefronts.guard import SHOP_DELIVER, admit, check_media, limited
from syncd.storefronts.problems import NO_STORE, send_problem
from syncd.storefronts.wire import Header, Receive, Scope, Send, send_whole

if TYPE_CHECKING:
    from syncd.metrics import Metrics
    from syncd.storefronts.access import Access

PATH: Final = "/v1/deliveries"
RETRY_S: Final = 10
"""When to ask again for a delivery that is pending."""


# --- as documented ----------------------------------------------------------------------------------------------------


class DeliveryRequest(BaseModel):
    """One paid order line. The same ``order_ref`` with the same content gives the same delivery, for ever."""

    model_config = ConfigDict(extra="forbid", strict=True)

    order_ref: str = Field(pattern=ORDER_REF_PATTERN, description="One order line, unique within the shop for ever.")
    product: str = Field(pattern=SKU_PATTERN, description="The shop's own sku.")
    quantity: int = Field(ge=1, le=MAX_QUANTITY, description="How many keys: all of them or none.")
    customer: str | None = Field(None, min_length=1, max_length=200, description="Who buys. Not kept, not compared.")
    wait_s: int | None = Field(
        None,
        ge=0,
        le=MAX_WAIT_S,
        description="How long to wait for the keys of a pending delivery; default: `deliveries.wait` where they are"
        " being bought, else 0.",
    )


class DeliveredKey(BaseModel):
    """One key. ``fields`` are its parts, for ever the same; ``text`` is what the customer is shown, as the product's
    display says today.
    """

    id: str
    fields: dict[str, str]
    text: str
    expires_at: str | None = Field(description="RFC 3339 in UTC; null when it never expires.")
    instructions: str | None = Field(None, description="What to tell the customer, where the product says something.")
    redeem_url: str | None = Field(None, description="Where to redeem it, where the product says so.")


class DeliveryAnswer(BaseModel):
    """A delivery. ``keys`` is there when it is delivered and the caller may see them."""

    status: Literal["delivered", "pending", "cancelled"]
    order_ref: str
    product: str
    quantity: int
    repeat: bool = Field(description="Whether this order line had its delivery before.")
    created_at: str
    reason: str | None = Field(None, description="Why it is pending, or was until it was cancelled.")
    keys: list[DeliveredKey] | None = None


# --- as read and written ----------------------------------------------------------------------------------------------


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    order_ref: Annotated[str, msgspec.Meta(pattern=ORDER_REF_PATTERN.replace("$", r"\Z"))]
    product: Annotated[str, msgspec.Meta(pattern=SKU_PATTERN.replace("$", r"\Z"))]
    quantity: Annotated[int, msgspec.Meta(ge=1, le=MAX_QUANTITY)]
    customer: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    wait_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_WAIT_S)] | None = None


class _Key(msgspec.Struct, omit_defaults=True):
    id: str
    fields: dict[str, str]
    text: str
    expires_at: str | None
    instructions: str | None = None
    redeem_url: str | None = None


class _Answer(msgspec.Struct, omit_defaults=True):
    status: str
    order_ref: str
    product: str
    quantity: int
    repeat: bool
    created_at: str
    reason: str | None = None
    keys: list[_Key] | None = None


_decode = msgspec.json.Decoder(_Request).decode
encode = msgspec.json.Encoder().encode


def encoded(delivery: Delivery, *, with_keys: bool) -> bytes:
    """A delivery as it is answered."""
    keys = None
    if with_keys and delivery.state == DeliveryState.DELIVERED:
        keys = [
            _Key(
                str(key.id),
                key.fields,
                key.text,
                None if key.expires_at >= NEVER else utc(key.expires_at),
                key.instructions,
                key.redeem_url,
            )
            for key in delivery.keys
        ]
    return encode(
        _Answer(
            delivery.state,
            delivery.order_ref,
            delivery.product,
            delivery.quantity,
            delivery.repeat,
            utc(delivery.created_at),
            delivery.reason,
            keys,
        )
    )


def head(delivery: Delivery) -> list[Header]:
    """The headers that go with a delivery."""
    found = [(b"content-type", b"application/json"), NO_STORE]
    if delivery.state == DeliveryState.PENDING:
        found += [(b"location", f"{PATH}/{delivery.order_ref}".encode()), (b"retry-after", b"%d" % RETRY_S)]
    return found


class Hot:
    """The route."""

    def __init__(self, deliveries: Deliveries, access: Access, metrics: Metrics, max_body: Callable[[], int]) -> None:
        self._deliveries = deliveries
        self._max_body = max_body
        self._access = access
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST."""
        started = time.perf_counter()
        shop = ""
        try:
            principal = admit(self._access, SHOP_DELIVER, scope)
            shop = principal.name if principal else ""
            check_media(scope["headers"])
            asked = await _read(limited(scope["headers"], receive, self._max_body()))
            delivery = await self._deliveries.deliver(
                shop, asked.order_ref, asked.product, asked.quantity, wait_s=asked.wait_s
            )
            status = 200 if delivery.state == DeliveryState.DELIVERED else 202
            body = encoded(delivery, with_keys=True)
        except _GoneError:
            return
        except SyncdError as error:
            await self._refuse(send, error, shop)
            return
        except Exception as error:  # noqa: BLE001 - a fault of ours is logged, and answered as one
            await self._refuse(send, problems.internal(error, PATH), shop)
            return
        if delivery.repeat:
            self._metrics.delivery_repeated(shop)
        elif status == 200:  # noqa: PLR2004 - delivered
            self._metrics.delivered(shop, delivery.product, delivery.quantity)
        self._metrics.answered(PATH, "POST", status)
        await send_whole(send, status, body, head(delivery))
        self._metrics.delivery_seconds.observe(time.perf_counter() - started)

    async def _refuse(self, send: Send, error: SyncdError, shop: str) -> None:
        self._metrics.answered(PATH, "POST", error.status)
        self._metrics.refused(PATH, error.code)
        self._metrics.delivery_failed(shop, error.code)
        await send_problem(send, error)


class _GoneError(Exception):
    """The caller went away before the request was whole: nothing was asked for."""


async def _read(receive: Receive) -> _Request:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        # msgspec's sentences name types and our own fields, never a value; but an unknown field's name is the caller's.
        said = str(error)
        if "unknown field" in said:
            said = "there is a field that this route does not know"
        raise InvalidRequestError(f"body: {said}", hint="GET /openapi.json says what this route takes") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise problems.MalformedJsonError("the body is not JSON in UTF-8") from None
