"""CodesWholesale's API, version 3: a price list in parts, orders that are mostly filled at once, texts and images.

Source: third-party clients of version 3; its own document was not read. No refusal of an order is known by its code. So
what can be known before is asked for before (price, stock, balance), and refused by us; whatever an order is answered
with that is no order leaves its outcome unknown, and the orders of the last days tell.

The price that is sent along is the one that the product has at this moment for this quantity, within our limit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from pydantic import Field

import syncd.adapter as core
from syncd.adapter import BadResponse, Money, NotForSale, Offer, Order, Page, RawKey, Secret, Stock

LIVE, SANDBOX = "https://api.codeswholesale.com", "https://sandbox.codeswholesale.com"
NOT_FOUND = 404
STATUSES: dict[Any, core.OrderStatus] = {
    **dict.fromkeys(("PENDING", "PROCESSING", "READY", "PREPARED"), "pending"),
    **dict.fromkeys(("COMPLETED", "FULFILLED"), "completed"),
    **dict.fromkeys(("FAILED", "CANCELLED"), "canceled"),
}
LATER = {"PRE_ORDER", "CODE_PREORDER"}
"""Types of codes that are none yet."""
AHEAD = timedelta(hours=1)
"""How far their clock may be before ours."""


class CodesWholesaleSettings(core.Settings):
    """Our account at CodesWholesale."""

    client_id: str
    """The client's id, from the account's API tab."""
    client_secret: Secret
    """The client's secret. The sandbox has a client of its own."""
    sandbox: bool = False
    """Whether to speak to the sandbox, where nothing is real."""
    currency: str = "EUR"
    """What our account counts in. No answer names it."""
    days: int = Field(30, ge=1, le=60)
    """How far back an order is looked for by our reference, a request a day. An older one would pass for never made."""


class CodesWholesale(core.Adapter):
    """An account at CodesWholesale."""

    Settings = CodesWholesaleSettings
    title = "CodesWholesale"
    promises = core.Promises(incremental=True)
    unverified = (
        "All of it is from third parties' clients: try the sandbox first.",
        "How an order is refused, so that each failure of one counts as an unknown outcome.",
        "Whether a repeated orderId is refused: it is looked up, and never sent again.",
        "Whether a price that rose is refused where the old one is sent along: it is read just before.",
        "Whether the orders of a day come whole, and how soon a new one is among them: a missed one is taken for none.",
        "Whether FAILED leaves us uncharged: it is over; what READY and PREPARED mean: they are pending.",
        "Whether a change of stock alone is a change that updatedSince finds.",
        "The currency: no answer has one, so that only this setting knows it.",
        "How callbacks prove where they come from: none is taken, orders are asked for.",
        "Rate limits: 400 price lists and 1200 products in 10 minutes, and 50 tokens in 5, as support once said.",
    )

    def __init__(self, context: core.Context) -> None:
        super().__init__(context)
        self.settings: CodesWholesaleSettings = context.settings
        base, secret = SANDBOX if self.settings.sandbox else LIVE, self.settings.client_secret
        auth = core.OAuth2(f"{base}/oauth/token", self.settings.client_id, secret, send_as="query")
        self.http = context.connect(base, auth=auth)

    async def check(self) -> core.Check:
        """Our name there, and our balance."""
        account = await self._account()
        notes = ("the sandbox: nothing that is bought there is real",) if self.settings.sandbox else ()
        return core.Check(str(account.get("fullName") or ""), self._money(account.get("currentBalance")), notes)

    async def get_balance(self) -> Money:
        """What we have paid in and not spent yet; a credit is not in it."""
        return self._money((await self._account()).get("currentBalance"))

    async def list_offers(self, since: datetime | None) -> AsyncIterator[Page]:
        """The price list, part by part, until no token for the next one comes."""
        changed = {"updatedSince": _written(since)} if since else {}

        def ask(token: str) -> Any:
            return self.http.get("/v3/products", query={**changed, **({"continuationToken": token} if token else {})})

        async for part in core.by_cursor(ask, "items", following="continuationToken"):
            yield Page([self._offer(product) for product in part.items], incremental=since is not None)

    async def get_offer(self, sku: str) -> Offer:
        """One product as it is now."""
        answer = await self.http.get(f"/v3/products/{quote(sku, safe='')}", expect=(NOT_FOUND,))
        product = answer.object()
        if answer.status == NOT_FOUND:
            raise NotForSale(f"there is no product {sku} any more", hint="name another offer of the product")
        offer = self._offer(product)
        if offer.sku != sku:
            raise BadResponse("another product was answered")
        return offer

    async def place_order(self, order: core.OrderRequest) -> Order:
        """Read the product and the account, then POST /v3/orders, once; what was sent before is only looked up."""
        if order.again:
            if found := await self.find_order(order.reference):
                return found
            raise core.OutcomeUnknown("sent before and not found: it is not sent again")
        price = order.price_of(await self.get_offer(order.offer.sku))
        account = await self._account()
        left = account.get("currentBalance") if account.get("totalToUse") is None else account["totalToUse"]
        if self._money(left).amount < price.amount * order.quantity:
            raise core.InsufficientBalance("our account does not cover it", hint="top up our balance at CodesWholesale")
        item = {"productId": order.offer.sku, "quantity": order.quantity, "price": price.amount}
        body = {"allowPreOrder": False, "orderId": order.reference, "products": [item]}
        # A code that is left out here is asked for by get_order: nothing more may fail once this is bought.
        return self._order((await self.http.post("/v3/orders", json=body)).object())

    async def get_order(self, order_id: str) -> Order:
        """The order with its codes; those that it only names are asked for one by one."""
        said = (await self.http.get(f"/v3/orders/{quote(order_id, safe='')}")).object()
        if self._order(said).id != order_id:
            raise BadResponse("another order was answered")
        for code in _codes(said):
            if not code.get("code") and code.get("codeId"):
                path = f"/v3/codes/{quote(str(code['codeId']), safe='')}"
                found = (await self.http.get(path)).object()
                if found.get("codeId") != code["codeId"]:
                    raise BadResponse("another code was answered")
                code.update(found)
        return self._order(said)

    async def find_order(self, reference: str) -> Order | None:
        """Our orders, day by day and back, until one bears the reference; None if all days are whole and none does."""
        until = self.context.now() + AHEAD
        for _ in range(self.settings.days):
            query = {"startFrom": _written(until - timedelta(days=1)), "endOn": _written(until)}

            def ask(token: str, query: dict[str, str] = query) -> Any:
                return self.http.get("/v3/orders", query={**query, **({"continuationToken": token} if token else {})})

            rows = [
                row async for part in core.by_cursor(ask, "items", following="continuationToken") for row in part.items
            ]
            if not all(isinstance(row, dict) and "clientOrderId" in row for row in rows):
                raise BadResponse("orders that do not say whose references they bear")
            found = {str(row.get("orderId")) for row in rows if row["clientOrderId"] == reference}
            if len(found) > 1:
                raise BadResponse("two orders bear this reference", hint="look at both in the account")
            if found:
                return await self.get_order(found.pop())
            until -= timedelta(days=1)
        return None

    async def _account(self) -> dict[str, Any]:
        account = (await self.http.get("/v3/accounts/current")).object()
        if account.get("currency", self.settings.currency) != self.settings.currency:
            raise core.Config(f"our account does not count in {self.settings.currency}", hint="correct `currency`")
        return account

    def _money(self, value: Any) -> Money:
        return core.money(value, self.settings.currency)

    @core.reading("a product")
    def _offer(self, product: Any) -> Offer:
        bands = sorted((int(band["from"]), self._money(band["value"])) for band in product["prices"])
        languages, released = ", ".join(product.get("languages") or ()), product.get("releaseDate") or ""
        # Some write the date alone, or a time without its zone.
        at = core.instant(released) or core.instant(f"{released}Z") or core.instant(f"{released}T00:00:00Z")
        return Offer(
            sku=str(product["productId"]),
            title=str(product["name"]).strip(),
            price=bands[0][1] if bands else None,
            stock=Stock.exact(product["quantity"]),
            for_sale=not released or bool(at and at <= self.context.now()),  # a pre-order is charged, and no key comes
            min_quantity=max(1, bands[0][0]) if bands else 1,
            tiers=tuple(bands[1:]),
            region=", ".join(product.get("regions") or ()) + (languages and f"; languages: {languages}"),
            group=str(product.get("platform") or ""),
        )

    def _order(self, said: dict[str, Any]) -> Order:
        """An order, with the codes that are there: complete only if none is still to come."""
        status = STATUSES.get(str(said.get("status")).upper())
        if status is None:
            raise BadResponse("an order with a status that is not known")
        codes = _codes(said)
        found = [_key(code) for code in codes if status != "canceled"]
        keys = [key for key in found if key is not None]
        if status != "canceled" and (status == "pending" or not keys or len(keys) < len(codes)):
            status = "partial" if keys else "pending"
        charged = None if status == "canceled" or said.get("totalPrice") is None else self._money(said["totalPrice"])
        reference = str(said.get("clientOrderId") or "")
        return Order(said["orderId"], status, reference, charged, len(codes) or None, keys, note=str(said["status"]))


@core.reading("an order")
def _codes(said: dict[str, Any]) -> list[dict[str, Any]]:
    """Every code of an order."""
    codes = [code for product in said.get("products") or () for code in product.get("codes") or ()]
    if not all(isinstance(code, dict) for code in codes):
        raise BadResponse("an order whose codes are not what is known of the protocol")
    return codes


def _key(code: dict[str, Any]) -> RawKey | None:
    """A text or a picture, as it came; None while there is none."""
    kind, text, own = str(code.get("codeType")), code.get("code"), str(code.get("codeId") or "")
    if kind in LATER or not isinstance(text, str) or not text:
        return None
    return RawKey.of(text, id=own) if kind == "CODE_TEXT" else RawKey.picture(text, kind=kind, id=own)


def _written(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


ADAPTER = CodesWholesale
