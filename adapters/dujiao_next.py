"""Dujiao-Next (独角数卡 Next): the Open API with which one of its sites buys from another, ``/api/v1/upstream``.

Source: the project's "Site Integration Open API" of 2026, and its published server. One offer is one of ``skus[].id``;
its sku here is ``PRODUCT/SKU``, since products are read by the one number and ordered by the other.

The price is ``price_amount``, a member's where we are one; an order has no price guard, so it is asked for just before.

No question finds an order by our reference, but sending it again gives the existing order and buys nothing, if there
is one. The server checks the request, looks the reference up, then the goods, then creates: never two at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import syncd.adapter as core
from syncd.adapter import BadResponse, Hint, Money, NotForSale, Offer, Order, Page, Secret, Stock

ROOT = "/api/v1/upstream"
CALLBACK = f"{ROOT}/callback"  # what the server signs, wherever it sends its callbacks to
SKEW_S, PAGE = 60, 50  # one version gives no more products a page, though the document allows 100
ANSWERED, UNAUTHORIZED = (400, 401, 402, 403, 404, 409), {401, 403}  # the body says why

STATUSES: dict[str, core.OrderStatus] = {
    **dict.fromkeys(("pending_payment", "paid", "fulfilling"), "pending"),
    "partially_delivered": "partial",
    **dict.fromkeys(("delivered", "completed", "partially_refunded"), "completed"),  # nothing more comes
    "canceled": "canceled",
    "refunded": "refunded",
}
UNPAID, EARLY = {"pending_payment", "canceled"}, {"bad_request", "invalid_callback_url"}  # early: no reference is read
KEY = "correct key and secret: the site has them under API permissions of our user"
GONE = "name another offer of the product, or ask the site"
CLOCK = "check this machine's clock: the site allows a minute"
ERRORS: dict[str, tuple[type[core.AdapterError], str]] = {
    **dict.fromkeys(("missing_auth_headers", "invalid_api_key", "invalid_signature"), (core.Auth, KEY)),
    **dict.fromkeys(("invalid_timestamp", "timestamp_expired"), (core.Auth, CLOCK)),
    "user_disabled": (core.Auth, "ask the site: our user is disabled there"),
    "bad_request": (core.Refused, "the site does not take such an order: look at the product there"),
    "invalid_callback_url": (core.Refused, "the site calls back public http and https addresses only"),
    **dict.fromkeys(("sku_unavailable", "product_unavailable", "product_not_found"), (NotForSale, GONE)),
    "insufficient_stock": (core.OutOfStock, "another offer may have it"),
    "insufficient_balance": (core.InsufficientBalance, "top up our wallet at the site"),
    "payment_failed": (core.Refused, "our wallet did not pay, and the site canceled the order: look at its balance"),
}


class DujiaoSettings(core.Settings):
    """A site, and our user there."""

    site: str
    """The site's address, such as ``https://shop.example``."""
    key: Secret
    """The API key of our user there."""
    secret: Secret
    """Its secret, which signs."""
    currency: str = "CNY"
    """The site's currency. Another one stops everything: no price would mean what it says."""
    incremental: bool = False
    """Whether to read only what changed. Sales change no product: stock is then as old as the last complete listing."""


class DujiaoNext(core.Adapter):
    """A site that runs Dujiao-Next."""

    Settings = DujiaoSettings
    title = "Dujiao-Next"
    promises = core.Promises(same_reference_same_order=True, incremental=True)
    unverified = (
        "Which of a member's price and a wholesale price is charged where a site has both: both are listed as sent.",
        "Whether a change of stock changes a product's updated_at: in the server that was read it does not.",
        "A sku that is switched off is left out of its product, so an incremental listing does not show it.",
        "The first versions of the server look no reference up; their listings have another form, and are not read.",
        "A site that fails to store our reference only logs that: sending it again would then buy again.",
        "Callbacks are signed over /api/v1/upstream/callback by the server that was read; the real path is taken too.",
        "What delivery_data holds for goods without a payload: it is handed over as fields.",
    )

    def __init__(self, context: core.Context) -> None:
        super().__init__(context)
        self.settings: DujiaoSettings = context.settings
        if not self.settings.incremental:
            # Asked for changes and giving all, what is gone would only go at the next complete listing, a day later.
            self.promises = replace(self.promises, incremental=False)  # type: ignore[misc] # of this site alone
        self.http = context.connect(self.settings.site.rstrip("/").removesuffix(ROOT) + ROOT, auth=self.sign)

    def sign(self, request: core.Request) -> Mapping[str, str]:
        """HMAC-SHA256 over the method, the path without its query, Unix seconds and the body's MD5, a line each."""
        at = int(request.at.timestamp())
        signature = self._signature(request.method, request.path, at, request.body)
        key = self.settings.key.reveal()
        return {"Dujiao-Next-Api-Key": key, "Dujiao-Next-Timestamp": str(at), "Dujiao-Next-Signature": signature}

    async def check(self) -> core.Check:
        """Our user's number at the site, and what its wallet holds."""
        account = await self._read("POST", "/ping")
        return core.Check(f"user {account.get('user_id')}", self._balance(account))

    async def get_balance(self) -> Money:
        """What our wallet at the site holds."""
        return self._balance(await self._read("POST", "/ping"))

    async def list_offers(self, since: datetime | None) -> AsyncIterator[Page]:
        """Products page by page, each with its skus. Raises BadResponse for a listing that ends before its total."""
        await self.get_balance()  # a product names no currency, this answer does
        query: dict[str, str | int] = {"page_size": PAGE}
        incremental = False
        if since is not None and self.settings.incremental:
            after = since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            changed = {"updated_after": after, "include_inactive": "true"}
            probe = await self._read("GET", "/products", query={"page": 1, "page_size": 1, **changed})
            # Without the echo it is an old site: what that leaves out may be gone, or may just not have changed.
            incremental = probe.get("includes_inactive") is True
            query |= changed if incremental else {}
        async for part in core.by_number(
            lambda page: self._answer("GET", "/products", query={**query, "page": page}), "items", total="total"
        ):
            yield Page([offer for product in part.items for offer in self._offers(product)], incremental=incremental)

    async def get_offer(self, sku: str) -> Offer:
        """One sku as it is now. Off the shelf is is_active false, on old sites 404; deleted is 404 on all."""
        if not re.fullmatch(r"\d{1,18}/\d{1,18}", sku):
            raise NotForSale("this supplier's skus are PRODUCT/SKU, two numbers")
        product = await self._read("GET", f"/products/{sku.partition('/')[0]}")
        found = [offer for offer in self._offers(product.get("product")) if offer.sku == sku]
        if not found:
            raise NotForSale(f"the product of {sku} no longer has it")
        return found[0]

    async def place_order(self, order: core.OrderRequest) -> Order:
        """POST /orders, once: paid from our wallet. The keys come with `get_order`."""
        if order.max_unit_cost is not None:
            order.price_of(await self.get_offer(order.offer.sku))
        body: dict[str, str | int] = {"sku_id": int(order.offer.data["sku_id"]), "quantity": order.quantity}
        body |= {"downstream_order_no": order.reference}
        body |= {"callback_url": order.callback_url} if order.callback_url else {}
        made = self._order(await self._read("POST", "/orders", json=body, again=order.again), order.reference)
        # No keys are in this answer, even where it is about an order of long ago.
        done = made.status in {"partial", "completed"}
        return Order(made.id, "pending", made.reference, made.charged) if done else made

    async def get_order(self, order_id: str) -> Order:
        """GET /orders/:id, with what was delivered."""
        return self._order(await self._read("GET", f"/orders/{order_id}"))

    def parse_webhook(self, webhook: core.Webhook) -> Hint:
        """An order's status changed. Signed as requests are; what it says about keys is not read."""
        names = ("api-key", "timestamp", "signature")
        key, at, signature = (webhook.headers.get(f"dujiao-next-{name}", "") for name in names)
        signed_at = int(at) if re.fullmatch(r"[0-9]{1,12}", at) else 0
        ours = [self._signature(webhook.method, path, signed_at, webhook.body) for path in (CALLBACK, webhook.path)]
        if not (core.same(key, self.settings.key.reveal()) and any(core.same(signature, one) for one in ours)):
            raise core.Forged("a callback that the site did not sign")
        if abs(webhook.received_at.timestamp() - signed_at) > SKEW_S:
            raise core.Forged("a callback that was signed more than a minute ago, or ahead", hint=CLOCK)
        with core.reading("a callback"):
            said = json.loads(webhook.body)
            reference, number = str(said["downstream_order_no"]), str(int(said["order_id"]))
        return Hint("order", order_id=number, reference=reference, answer=b'{"ok":true,"message":"received"}')

    def _signature(self, method: str, path: str, at: int, body: bytes) -> str:
        return core.hmac_sha256_hex(self.settings.secret, f"{method}\n{path}\n{at}\n{core.md5_hex(body)}")

    def _balance(self, account: dict[str, Any]) -> Money:
        if account.get("currency") != self.settings.currency:
            raise core.Config(f"the site does not count in {self.settings.currency}", hint="correct `currency`")
        return core.money(account.get("balance"), self.settings.currency)

    @core.reading("a product")
    def _offers(self, product: Any) -> list[Offer]:
        return [self._offer(product, sku) for sku in product["skus"]]

    def _offer(self, product: dict[str, Any], sku: dict[str, Any]) -> Offer:
        currency = self.settings.currency
        if product.get("currency", currency) != currency:
            raise BadResponse(f"a product that is not priced in {currency}")
        tiers: dict[int, Money] = {}
        every = [(one.get("sku_id") or one.get("sku_code") or "", one) for one in product.get("wholesale_prices") or ()]
        for whose in ({""}, {sku["id"], sku.get("sku_code")}):  # one for this sku goes before one for all of them
            mine = [tier for named, tier in every if named in whose]
            tiers |= {int(tier["min_quantity"]): core.money(tier["unit_price"], currency) for tier in mine}
        return Offer(
            sku=f"{int(product['id'])}/{int(sku['id'])}",
            title=" ".join([_words(product["title"]), *map(str, (sku.get("spec_values") or {}).values())]),
            price=core.money(sku["price_amount"], currency),
            stock=Stock.exact(sku["stock_quantity"], unlimited=-1),
            # Manual goods wait for a person, and mostly for a form that one fills in.
            for_sale=product["is_active"] is sku["is_active"] is True and product["fulfillment_type"] == "auto",
            tiers=tuple(sorted(tiers.items())),
            updated_at=core.instant(product.get("updated_at")),
            data={"sku_id": str(int(sku["id"]))},
        )

    def _order(self, said: dict[str, Any], reference: str = "") -> Order:
        word, number, done = said.get("status"), said.get("order_id"), said.get("fulfillment")
        if word not in STATUSES or not isinstance(number, int):
            raise BadResponse("an order without a number, or with a status that the document does not have")
        status, charged = STATUSES[word], None
        if word not in UNPAID:
            paid = core.money(said.get("amount"), said.get("currency") or self.settings.currency)
            back = core.money(said.get("refunded_amount") or 0, paid.currency)
            charged = Money(paid.amount - back.amount, paid.currency)
        done = done if isinstance(done, dict) and status in {"partial", "completed"} else {}
        keys = _keys(done.get("payload"), done.get("delivery_data"))
        items = [item.get("quantity") or 0 for item in said.get("items") or () if isinstance(item, dict)]
        return Order(str(number), status, reference, charged, sum(items) or None, keys, note=word)

    async def _read(self, method: str, path: str, **parts: Any) -> dict[str, Any]:
        return (await self._answer(method, path, **parts)).object()

    async def _answer(self, method: str, path: str, *, again: bool = False, **parts: Any) -> core.Answer:
        """The answer, if it says ok. Raises what its error code means, BadResponse for one that is not known."""
        answer = await self.http.request(method, path, expect=ANSWERED, **parts)
        try:
            said = answer.object()
        except BadResponse:
            if answer.status != 401:  # noqa: PLR2004 - a page with 403 is that of a network in front of the site
                raise
            said = {}
        if said.get("ok") is True and answer.status not in ANSWERED:
            return answer
        code = said.get("error_code")
        if isinstance(code, str) and code in ERRORS:
            kind, hint = ERRORS[code]
            raise (core.OutcomeUnknown if again and code in EARLY else kind)(f"the site says {code}", hint=hint)
        if answer.status in UNAUTHORIZED:
            raise core.Auth("something in front of the site turns us away", hint="ask the site to let us in")
        raise BadResponse(f"status {answer.status} without ok, and without an error code of the document")


def _keys(payload: Any, data: Any) -> tuple[core.RawKey, ...]:
    """The delivery as one text, however many keys are in it."""
    if isinstance(payload, str) and payload.strip():
        return (core.RawKey.of(payload),)
    if not isinstance(data, dict) or not data:
        return ()
    return (core.RawKey.card({k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in data.items()}),)


def _words(text: Any) -> str:
    """A text in several languages, in Chinese or else in the first."""
    return str(text.get("zh-CN") or next(iter(text.values()), "")) if isinstance(text, dict) else str(text)


ADAPTER = DujiaoNext
