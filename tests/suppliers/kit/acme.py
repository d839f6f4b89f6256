"""A good adapter with everything that there is: the kit's checks hold for it, and each is turned red by one change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from syncd.adapter import (
    Adapter,
    BadResponse,
    Check,
    Context,
    Forged,
    Hint,
    InsufficientBalance,
    Money,
    NotForSale,
    Offer,
    Order,
    OrderRequest,
    OrderStatus,
    OutcomeUnknown,
    OutOfStock,
    Page,
    PriceChanged,
    Promises,
    RawKey,
    Refused,
    Request,
    Secret,
    Settings,
    Stock,
    Transient,
    Webhook,
    hmac_sha256_hex,
    money,
    same,
)

REFUSALS: Mapping[str, type[Refused]] = {
    "sold_out": OutOfStock,
    "price_changed": PriceChanged,
    "no_balance": InsufficientBalance,
    "off_shelf": NotForSale,
}
STATUSES: Mapping[str, OrderStatus] = {
    "new": "pending",
    "part": "partial",
    "done": "completed",
    "void": "canceled",
    "back": "refunded",
}


class AcmeSettings(Settings):
    """Settings of an Acme account."""

    key: Secret
    """API key, from the account's page."""
    hook: Secret
    """Secret of the callbacks, from the same page."""
    url: str = "https://api.acme.example"
    """Where the API is."""


class Acme(Adapter):
    """Acme's API, version 1."""

    Settings = AcmeSettings
    title = "Acme Cards"
    promises = Promises(same_reference_same_order=True, incremental=True)
    unverified = ("Whether a callback is sent again after an error.",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.http = context.connect(context.settings.url, auth=self.sign)

    def sign(self, request: Request) -> Mapping[str, str]:
        """Method, path, time and body under the key."""
        stamp = str(int(request.at.timestamp()))
        text = f"{request.method}\n{request.path}\n{stamp}\n".encode() + request.body
        return {"x-time": stamp, "x-sign": hmac_sha256_hex(self.context.settings.key, text)}

    async def check(self) -> Check:
        """One request."""
        body = (await self.http.get("/v1/account")).object()
        return Check(account=str(body["name"]), balance=money(body["balance"], body["currency"]))

    async def get_balance(self) -> Money:
        """The same one."""
        body = (await self.http.get("/v1/account")).object()
        return money(body["balance"], body["currency"])

    async def list_offers(self, since: datetime | None) -> AsyncIterator[Page]:
        """By page."""
        page = 1
        changed = {"since": int(since.timestamp())} if since else {}
        while True:
            body = (await self.http.get("/v1/goods", query={"page": page, **changed})).object()
            yield Page([self.offer(item) for item in body["goods"]], body["total"], incremental=since is not None)
            if page >= body["pages"]:
                return
            page += 1

    async def get_offer(self, sku: str) -> Offer:
        """One of them."""
        answer = await self.http.get(f"/v1/goods/{sku}", expect={404})
        body = answer.object()
        if answer.status == 404 and body["error"] == "gone":
            raise NotForSale(f"{sku} is gone", hint="map the product to another offer")
        return self.offer(body)

    def offer(self, item: Any) -> Offer:
        """An element of the listing."""
        return Offer(
            sku=str(item["id"]),
            title=item["name"],
            price=money(item["price"], item["currency"]),
            stock=Stock.exact(item["stock"], unlimited=-1),
            for_sale=item["status"] == "on",
        )

    async def place_order(self, order: OrderRequest) -> Order:
        """Buy."""
        body = {"goods_id": int(order.offer.sku), "count": order.quantity, "out_no": order.reference}
        if order.max_unit_cost:
            body["max_price"] = str(order.max_unit_cost.amount)
        answer = await self.http.post("/v1/orders", json=body, expect={409})
        found = answer.object()
        if answer.status == 409:
            if "error" not in found:
                raise OutcomeUnknown("a refusal that says nothing", hint="ask the supplier")
            raise REFUSALS.get(str(found["error"]), Refused)("the order is refused", hint="see the account's page")
        return self.order(found)

    async def get_order(self, order_id: str) -> Order:
        """As it is now."""
        return self.order((await self.http.get(f"/v1/orders/{order_id}")).object())

    async def find_order(self, reference: str) -> Order | None:
        """By our reference."""
        body = (await self.http.get("/v1/orders", query={"out_no": reference})).object()
        if body.get("error") is not None:
            raise Transient("the orders cannot be looked at now")
        found = body["orders"]
        if not isinstance(found, list):
            raise BadResponse("the orders are no list")
        return self.order(found[0]) if found else None

    def order(self, body: Any) -> Order:
        """An order, wherever it stands in an answer."""
        return Order(
            id=body["no"],
            status=STATUSES[body["status"]],
            reference=body["out_no"],
            charged=money(body["total"], body["currency"]),
        )

    async def fetch_keys(self, order: Order) -> Sequence[RawKey]:
        """A call of their own."""
        if order.status in {"canceled", "refunded"}:
            return []
        answer = await self.http.get(f"/v1/orders/{order.id}/cards")
        return [
            RawKey.card({"number": card["number"], "pin": card["pin"]}, id=card["id"])
            for card in answer.object()["cards"]
        ]

    async def complain(self, order_id: str, text: str) -> str:
        """A claim."""
        return str((await self.http.post(f"/v1/orders/{order_id}/claims", json={"text": text})).object()["claim"])

    def parse_webhook(self, webhook: Webhook) -> Hint:
        """Signed over its time and its bytes."""
        stamp, sign = webhook.headers.get("x-time", ""), webhook.headers.get("x-sign", "")
        if not stamp.isascii() or not stamp.isdecimal() or not sign.isascii():
            raise Forged("no signature", hint="not from Acme")
        if not same(sign, hmac_sha256_hex(self.context.settings.hook, stamp.encode() + b"\n" + webhook.body)):
            raise Forged("a wrong signature", hint="is `hook` right?")
        if abs(webhook.received_at.timestamp() - int(stamp)) > 300:
            raise Forged("an old webhook", hint="is the clock right?")
        body = read(webhook.body)
        if not isinstance(body, dict) or not isinstance(body.get("no"), str):
            raise BadResponse("a webhook about nothing")
        return Hint("order", order_id=body["no"], reference=body.get("out_no", ""), answer=b"ok")


def read(body: bytes) -> Any:
    """JSON, or BadResponse."""
    import json

    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BadResponse("a webhook that is not JSON") from None


ADAPTER = Acme
