"""Kinguin's eCommerce API (ESA): products of many merchants, orders that are filled key by key, images among the keys.

Source: the vendor's published documents, 2025. A merchant's offer comes and goes within hours, a product stays, and
that is what a shop names: an offer here is a product, at the price of its cheapest offers, up to 9 at once. More than
that is wholesale, with a price and a stock of its own, of one merchant's offer: ``PRODUCT/wholesale``, from 10 on.

An order says a price that an offer has: the product is read just before, and its price is held against our limit.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

import syncd.adapter as core
from syncd.adapter import BadResponse, Hint, Money, NotForSale, Offer, Order, Page, RawKey, Refused, Secret, Stock

PRODUCTION, SANDBOX = "https://gateway.kinguin.net/esa/api", "https://gateway.sandbox.kinguin.net/esa/api"
PAGE, RETAIL, WHOLESALE = 100, 9, 1000  # elements of a page; the most that one order may have
LEVELS = {1: 10, 2: 50, 3: 100, 4: 500}  # of a wholesale tier → from which quantity on
ANSWERED = (400, 402, 404, 409, 422)  # the body says why
NOT_FOUND, OTHER = 404, "name another offer of the product"
STATUSES = {"processing": "pending"} | {word: word for word in ("completed", "canceled", "refunded")}
OVER, BACK = {"canceled", "refunded"}, {"RETURNED", "REFUNDED", "CANCELED"}  # of an order, of a key
# Kinds that leave doubt: none of them is a refusal, so that an order that ends so is an unknown outcome.
DOUBT = "OrderFailed OrderNotFound OrderNotSupported ResourceLock HttpClient Http Error".split()
KINDS: dict[str, tuple[type[core.AdapterError], str]] = {
    **dict.fromkeys(DOUBT, (BadResponse, "look into the dashboard")),
    "Authorization": (core.Auth, "correct key: it is in the store's dashboard, and the sandbox has another"),
    "InsufficientBalance": (core.InsufficientBalance, "top up our balance at Kinguin"),
    "ProductUnavailable": (core.OutOfStock, "sold, or its price has changed just now: another offer may have it"),
    "Preorder": (NotForSale, "buy a pre-order by hand"),
    "ConstraintViolation": (Refused, "look at the product's rules there"),
    "NoKeysToReturn": (Refused, "once an order, within 24 hours, unclaimed, neither wholesale nor pre-order"),
}


class KinguinSettings(core.Settings):
    """Our store at Kinguin."""

    key: Secret
    """The API key of our store. The sandbox has another one."""
    sandbox: bool = False
    """Whether to speak to the sandbox, where nothing is real."""
    key_type: Literal["text", "any"] = "text"
    """``text``: only keys that are texts are bought, and stock is how many there are; ``any``: images too."""
    preorders: bool = False
    """Whether what is not released yet is for sale too: charged at once, its key comes at the release."""
    webhook_secret: Secret | None = None
    """The secret key of the store's webhooks. Without it none is believed."""


class Kinguin(core.Adapter):
    """A store at Kinguin."""

    Settings = KinguinSettings
    title = "Kinguin eCommerce API"
    promises = core.Promises(incremental=True)
    unverified = (
        "How a repeated orderExternalId is refused: it is looked up, and never sent again.",
        "How soon a search finds an order: right after a lost answer an empty one may come too early.",
        "Whether OrderFailed can leave an order behind: it counts as an unknown outcome.",
        "Whether stock alone moves updatedAt, and what is sold out leaves the listing: one behind it is then missed.",
        "Whether textQty counts the cheapest offers only, as qty does, and an order of wholesale may say keyType.",
        "What is answered beyond the last page of keys: it is asked for only while some are missing.",
        "Rate limits: none are documented; set the supplier's own.",
    )

    def __init__(self, context: core.Context) -> None:
        super().__init__(context)
        self.settings: KinguinSettings = context.settings
        base = SANDBOX if self.settings.sandbox else PRODUCTION
        self.http = context.connect(base, auth=core.ApiKey(self.settings.key))

    async def check(self) -> core.Check:
        """Our balance; the API has no name for us."""
        return core.Check("", await self.get_balance(), ("the sandbox",) if self.settings.sandbox else ())

    async def get_balance(self) -> Money:
        """What our store can spend, in EUR."""
        return core.money((await self._ask("GET", "/v1/balance")).object().get("balance"), "EUR")

    async def list_offers(self, since: datetime | None) -> AsyncIterator[Page]:
        """Products by their number, page by page."""
        changed = {"updatedSince": since.astimezone(UTC).isoformat(timespec="seconds")} if since else {}
        query = {"limit": PAGE, "sortBy": "kinguinId", "sortType": "asc", **changed}
        before: set[str] = set()
        async for part in core.by_number(
            lambda page: self._ask("GET", "/v1/products", query={**query, "page": page}), "results", total="item_count"
        ):
            # A product that appears meanwhile pushes the last one of its page to the next, where it is read again.
            offers = [offer for product in part.items for offer in self._offers(product) if offer.sku not in before]
            before = {offer.sku for offer in offers}
            yield Page(offers, incremental=since is not None)

    async def get_offer(self, sku: str) -> Offer:
        """A product, or the wholesale of it, as it is now."""
        answer = await self._ask("GET", f"/v2/products/{quote(sku.partition('/')[0], safe='')}", gone=True)
        for offer in self._offers(answer.object()):
            if offer.sku == sku:
                return offer
        raise NotForSale(f"no merchant has {sku} any more", hint=OTHER)

    async def place_order(self, order: core.OrderRequest) -> Order:
        """Read the product, then POST /v2/order, once; what was sent before is only looked up."""
        if order.again:
            if found := await self.find_order(order.reference):
                return found
            raise core.OutcomeUnknown("sent before and not found: it is not sent again")
        now = await self.get_offer(order.offer.sku)
        item = {**now.data, "qty": order.quantity, "price": order.price_of(now).amount}
        answer = await self._ask("POST", "/v2/order", json={"products": [item], "orderExternalId": order.reference})
        return _order(answer.object())[0]

    async def get_order(self, order_id: str) -> Order:
        """GET /v1/order/ID: partial while it is processing and some keys are delivered."""
        return (await self._known(order_id))[0]

    async def find_order(self, reference: str) -> Order | None:
        """The search by orderExternalId; None only if it is complete and has no such order."""
        answer = await self._ask("GET", "/v1/order", query={"orderExternalId": reference, "limit": PAGE})
        every = [_order(one)[0] for one in answer.items("results")]
        found = [one for one in every if one.reference == reference]
        if len(found) > 1 or (not found and answer.object().get("item_count") != len(every)):
            raise BadResponse("a search that leaves open what became of the order", hint="look into the dashboard")
        return found[0] if found else None

    async def fetch_keys(self, order: Order) -> Sequence[RawKey]:
        """All keys that are delivered by now, without those that went back."""
        now, states = await self._known(order.id)
        path, keys = f"/v2/order/{quote(now.id, safe='')}/keys", dict[str, RawKey]()
        if {order.status, now.status} & OVER:
            return ()
        async for part in core.by_number(lambda page: self._ask("GET", path, query={"page": page, "limit": PAGE}), ""):
            keys |= {key.id or f"#{len(keys) + n}": key for n, key in enumerate(map(_key, part.items))}
            if len(keys) == now.quantity:
                break
        return [key for own, key in keys.items() if states.get(own) not in BACK]

    async def return_keys(self, order_id: str, key_ids: Sequence[str]) -> Mapping[str, bool]:
        """POST …/keys/return takes back all keys of an order, those to come too: so all of them have to be named."""
        _, states = await self._known(order_id)
        if {own for own, status in states.items() if status not in BACK} - set(key_ids):
            raise Refused("Kinguin takes back whole orders only", hint="name all keys of the order, or none")
        answer = await self._ask("POST", f"/v2/order/{quote(order_id, safe='')}/keys/return")
        after = {one["id"]: one["status"] for one in answer.items()}
        return {own: after.get(own) in {"RETURNED", "REFUNDED"} for own in key_ids}

    def parse_webhook(self, webhook: core.Webhook) -> Hint:
        """A product or an order changed. Nothing is signed, a static secret comes along: no more than a hint."""
        secret, name = self.settings.webhook_secret, webhook.headers.get("x-event-name", "")
        if secret is None or not core.same(webhook.headers.get("x-event-secret", ""), secret.reveal()):
            raise core.Forged("a webhook without our secret", hint="webhook_secret is the one in the store's settings")
        with core.reading("a webhook"):
            said = json.loads(webhook.body)
            if name == "product.update":
                return Hint("offer", sku=str(said["productId"]))
            if name in {"order.status", "order.complete"}:
                return Hint("order", order_id=str(said["orderId"]), reference=str(said.get("orderExternalId") or ""))
        return Hint("test")

    @core.reading("a product")
    def _offers(self, product: Any) -> list[Offer]:
        """The product, and its wholesale where a merchant has some: the one with the lowest price for 10."""
        preorder = product["isPreorder"] is not False
        text = self.settings.key_type == "text" and not preorder  # a pre-order may not ask for it
        stock, excluded = "textQty" if text else "qty", ", ".join(product.get("countryLimitation") or ())
        retail = Offer(
            sku=str(product["productId"]),
            title=str(product["name"]).strip(),
            price=None if product.get("price") is None else core.money(product["price"], "EUR"),
            stock=Stock.exact(product[stock]),
            for_sale=self.settings.preorders or not preorder,
            max_quantity=1 if preorder else RETAIL,
            region=f"{product.get('regionalLimitations') or ''}{excluded and f'; not in {excluded}'}",
            group=str(product.get("platform") or ""),
            updated_at=core.instant(product.get("updatedAt")),
            data={"productId": str(product["productId"])} | ({"keyType": "text"} if text else {}),
        )
        many = [] if preorder else [_wholesale(retail, one, one[stock]) for one in product.get("offers") or ()]
        return [retail, *(offer for _, _, offer in sorted(filter(None, many))[:1])]

    async def _known(self, order_id: str) -> tuple[Order, dict[str, str]]:
        """(the order as it is now, the status of each of its keys)."""
        order, states = _order((await self._ask("GET", f"/v1/order/{quote(order_id, safe='')}")).object())
        if order.id != order_id:
            raise BadResponse("another order was answered")
        return order, states

    async def _ask(self, method: str, path: str, *, gone: bool = False, **parts: Any) -> core.Answer:
        """The answer, if it is one. Raises what its kind of error means, BadResponse for one that is not known."""
        answer = await self.http.request(method, path, expect=ANSWERED, **parts)
        if answer.status not in ANSWERED:
            return answer
        said = answer.object()
        if gone and answer.status == NOT_FOUND and said.get("kind"):
            raise NotForSale("the product is gone, or sold out", hint=OTHER)
        if "orderExternalId" in str(said.get("propertyPath")):
            raise core.OutcomeUnknown("this reference was used before", hint="look for the order by it")
        kind = str(said.get("kind"))
        error, hint = KINDS.get(kind, (BadResponse, ""))
        raise error(f"Kinguin says {kind if kind in KINDS else f'{answer.status}, of no known kind'}", hint=hint)


def _wholesale(retail: Offer, one: dict[str, Any], left: Any) -> tuple[Any, str, Offer] | None:
    """(its price for the least, its id, the offer) of one merchant, if it is for wholesale and has enough."""
    deal, stock, own = one.get("wholesale") or {}, Stock.exact(left), str(one["offerId"])
    known = [tier for tier in deal.get("tiers") or () if tier["level"] in LEVELS]
    prices = {LEVELS[tier["level"]]: core.money(tier["price"], "EUR") for tier in known}
    if deal.get("enabled") is not True or not prices or (stock.quantity or 0) < min(prices):
        return None
    (least, price), *tiers = sorted(prices.items())
    many = replace(retail, price=price, stock=stock, min_quantity=least, max_quantity=WHOLESALE, tiers=tuple(tiers))
    return price.amount, own, replace(many, sku=f"{retail.sku}/wholesale", data={**retail.data, "offerId": own})


def _order(said: Any) -> tuple[Order, dict[str, str]]:
    """(the order, the status of each key that it names)."""
    with core.reading("an order"):
        status: Any = STATUSES[said["status"]]
        states = {key["id"]: key["status"] for item in said.get("products") or () for key in item.get("keys") or ()}
        number, reference = said["orderId"], str(said.get("orderExternalId") or "")
        paid, quantity = said.get("paymentPrice"), said.get("totalQty")
        back = sum(state in BACK for state in states.values())
    status = "partial" if status == "pending" and "DELIVERED" in states.values() else status
    charged = None if paid is None or status in OVER else core.money(paid, "EUR")
    note = f"{back} of {len(states)} keys went back" if back else ""
    return Order(number, status, reference, charged, quantity if isinstance(quantity, int) else None, note=note), states


def _key(one: Any) -> RawKey:
    if not isinstance(one, dict) or not isinstance(one.get("serial"), str):
        raise BadResponse("a key that is not what the document says")
    kind, own = str(one.get("type")).partition(";")[0].strip(), str(one.get("id") or "")
    text = one["serial"]
    return RawKey.of(text, id=own) if kind == "text/plain" else RawKey.picture(text, kind=kind, id=own)


ADAPTER = Kinguin
