"""Fulu (福禄) open platform, version 2.0: one address for all, signed requests, orders that are filled a little later.

Source: several published SDKs; Fulu's own document asks for an account. Every request is a POST of the same fields:
``method`` says what it is about, ``biz_content`` is JSON in a text. Every answer is ``{code, message, result, sign}``:
code 0 is a success, and ``result`` again JSON in a text. A signature is the MD5 of **all characters, sorted**, and the
secret: of the request's JSON without its sign, of an answer's result.

An order is asked for by our reference and by nothing else, so our reference is its id here; Fulu's number is in the
note. What the codes of failures mean is not published: a failed order is an unknown outcome, unless ``codes`` says
otherwise. So what can be known before is asked before: price, sale and stock, as coarse as Fulu tells it.

Cards are encrypted with AES-256-ECB under the secret, in base64. Card type 0 is number and password, 1 a link that is
to be shown as a QR code, 2 a short link: other types than 0 are handed on beside them, as ``card_type``.
"""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo

import syncd.adapter as core
from syncd.adapter import BadResponse, Money, NotForSale, Offer, Order, Page, RawKey, Secret, Stock

CHINA = ZoneInfo("Asia/Shanghai")
LIST, GOODS, STOCK = "fulu.goods.list.get", "fulu.goods.info.get", "fulu.goods.stock.check"
BUY, ORDER, USER = "fulu.order.card.add", "fulu.order.info.get", "fulu.user.info.get"
CARD, ON_SALE = "卡密", "上架"
LEVELS = {"断货": Stock.coarse("out"), "警报": Stock.coarse("low"), "充足": Stock.coarse("plenty")}
STATES: dict[str, core.OrderStatus] = {
    "success": "completed", "processing": "pending", "untreated": "pending", "failed": "canceled",
}  # fmt: skip
BLOCK = 16
SHOWN = 1_000_000


class _AbsentError(BadResponse):
    """Fulu knows no order with this reference, by what ``codes`` says."""


Meaning = Literal[
    "Absent", "Auth", "InsufficientBalance", "NotForSale", "OutOfStock", "PriceChanged", "RateLimited", "Refused",
    "Transient",
]  # fmt: skip
MEANINGS: dict[str, type[core.AdapterError]] = {name: getattr(core, name, _AbsentError) for name in get_args(Meaning)}


class FuluSettings(core.Settings):
    """Our account at Fulu."""

    app_key: str
    """The app key of our account."""
    app_secret: Secret
    """Its secret, 32 characters: it signs, and opens the cards."""
    url: str = "https://openapi.fulu.com/api/getway"
    """The platform's address; the sandbox has another."""
    codes: Mapping[str, Meaning] = {}
    """What codes of failures mean, as Fulu has told you: ``{ 9001 = "OutOfStock" }``. Absent: there is no order with
    this reference, for sure. An order that fails with a code that is not here is an unknown outcome.
    """
    verify_answers: bool = True
    """Whether an answer's signature has to fit, where it has one."""


class Fulu(core.Adapter):
    """Fulu's open platform."""

    Settings = FuluSettings
    title = "Fulu (福禄)"
    unverified = (
        "Written from published SDKs; no run against the sandbox or the real platform yet.",
        "What the codes of failures mean, and which one says that there is no such order: `codes` can say it.",
        "How cards are padded before they are encrypted: PKCS#7, zeros and none are taken.",
        "The rule of an answer's signature is an SDK's, and fits another's example: `verify_answers` switches it off.",
        "Whether a repeated customer_order_no is refused: it is an unknown outcome, and fulu.order.info.get tells.",
        "Whether customer_price is a limit, and for one: our limit is sent there, and the price asked for before.",
        "order_price is read as the price of one, as an SDK calls it.",
        "Whether a failed order is paid back at once: it counts as cancelled.",
        "What is_open of an account means, rate limits, and callbacks: none of them is read.",
    )

    def __init__(self, context: core.Context) -> None:
        super().__init__(context)
        self.settings: FuluSettings = context.settings
        core.aes_256_ecb(self.settings.app_secret, b"")  # a secret that opens no card is said before one is bought
        base, _, self.path = self.settings.url.rpartition("/")
        self.http = context.connect(base)

    def sign(self, text: str) -> str:
        """MD5 of all characters, sorted, and the secret."""
        return core.md5_hex("".join(sorted(text)) + self.settings.app_secret.reveal())

    async def check(self) -> core.Check:
        """Our account's name at Fulu, and what it holds."""
        user = await self._ask(USER, {})
        return core.Check(str(user.get("name") or ""), core.money(user.get("balance"), "CNY"))

    async def get_balance(self) -> Money:
        """What our account at Fulu holds."""
        return core.money((await self._ask(USER, {})).get("balance"), "CNY")

    async def list_offers(self, since: datetime | None) -> AsyncIterator[Page]:  # noqa: ARG002 - there is no such filter
        """All cards, which is one answer. What is topped up instead (直充) is left out."""
        goods = await self._send(LIST, {})
        if not isinstance(goods, list):
            raise BadResponse("a listing that is no list")
        yield Page([offer for good in goods if (offer := _offer(good))])

    async def get_offer(self, sku: str, quantity: int = 1) -> Offer:
        """One card as it is now, and whether there are so many."""
        if not (sku.isascii() and sku.isdecimal()):
            raise NotForSale("Fulu's skus are numbers", hint="name one of its offers")
        good = await self._ask(GOODS, {"product_id": int(sku)})
        stock = await self._ask(STOCK, {"product_id": int(sku), "buy_num": quantity})
        offer = _offer({**good, "stock_status": stock.get("stock_status")})
        if offer is None:
            raise NotForSale("it is no card", hint="name another offer of the product")
        if offer.sku != sku:
            raise BadResponse("an answer about another offer")
        return offer

    async def place_order(self, order: core.OrderRequest) -> Order:
        """Ask for price and stock, then buy, once. Cards come with `get_order` alone."""
        order.price_of(await self.get_offer(order.offer.sku, order.quantity))
        wanted = {"product_id": int(order.offer.sku), "buy_num": order.quantity, "customer_order_no": order.reference}
        if order.max_unit_cost is not None:
            wanted["customer_price"] = float(order.max_unit_cost.amount)  # JSON's number; shortest form, so 9.9 is 9.9
        made = await self._ask(BUY, wanted, reads=False)
        return self._order({**made, "cards": None}, order.reference, placed=True)

    async def get_order(self, order_id: str) -> Order:
        """An order by our reference, with its cards once it is a success."""
        return self._order(await self._ask(ORDER, {"customer_order_no": order_id}), order_id)

    async def find_order(self, reference: str) -> Order | None:
        """As `get_order`. None only for a code that `codes` calls Absent."""
        try:
            return await self.get_order(reference)
        except _AbsentError:
            return None

    def _order(self, said: dict[str, Any], reference: str, *, placed: bool = False) -> Order:
        status, quantity, cards = STATES.get(str(said.get("order_state"))), said.get("buy_num"), said.get("cards")
        if said.get("customer_order_no") != reference:
            raise BadResponse("an answer about another order")
        if status is None or not isinstance(quantity, int) or quantity < 1 or not isinstance(cards, list | None):
            raise BadResponse("an order that is not what the protocol says")
        keys = tuple(self._key(card) for card in cards or ()) if status == "completed" else ()
        if status == "completed" and len(keys) < quantity:
            status = "pending" if placed else "partial"
        charged = None
        if status != "canceled":
            charged = Money(core.money(said.get("order_price"), "CNY").amount * quantity, "CNY")
        note = f"{said.get('order_state')}; Fulu's number {said.get('order_id')}"
        return Order(reference, status, reference, charged, quantity, keys, note)

    def _key(self, card: Any) -> RawKey:
        """One card. Raises BadResponse for what does not open, or is not readable then."""
        if not isinstance(card, dict):
            raise BadResponse("a card that is no object")
        fields = {name: self._opened(card.get(name)) for name in ("card_number", "card_pwd")}
        if not any(fields.values()):
            raise BadResponse("a card without number and password")
        kind = str(card.get("card_type") or 0)
        fields |= {} if kind == "0" else {"card_type": kind}
        return RawKey.card(fields, expires=str(card.get("card_deadline") or ""))

    def _opened(self, closed: Any) -> str:
        if closed is None or closed == "":
            return ""
        try:
            data = core.aes_256_ecb(self.settings.app_secret, base64.b64decode("".join(closed.split()), validate=True))
            last = data[-1:]
            padded = last and last[0] <= BLOCK and data.endswith(last * last[0])
            text = (data[: -last[0]] if padded and last != b"\0" else data.rstrip(b"\0")).decode()
            if all(sign in "\t\r\n" or unicodedata.category(sign) not in {"Cc", "Cn", "Co"} for sign in text):
                return text
        except (ValueError, AttributeError):
            pass  # raised outside of the handler, so that no traceback leads to the card
        raise BadResponse("a card that does not open", hint="check app_secret; look at the order in Fulu's console")

    async def _ask(self, method: str, content: Mapping[str, Any], *, reads: bool = True) -> dict[str, Any]:
        said = await self._send(method, content, reads=reads)
        if not isinstance(said, dict):
            raise BadResponse(f"{method} was answered with something else than an object")
        return said

    async def _send(self, method: str, content: Mapping[str, Any], *, reads: bool = True) -> Any:
        """What a result holds. Raises what a failure's code means."""
        fields = {
            "app_key": self.settings.app_key,
            "method": method,
            "timestamp": f"{self.context.now().astimezone(CHINA):%Y-%m-%d %H:%M:%S}",
            "version": "2.0",
            "format": "json",
            "charset": "utf-8",
            "sign_type": "md5",
            "app_auth_token": "",
            "biz_content": json.dumps(content, separators=(",", ":")),  # ASCII: then all sort its characters alike
        }
        sign = self.sign(json.dumps(fields, ensure_ascii=False, separators=(",", ":")))
        said = (await self.http.post(self.path, json={**fields, "sign": sign}, reads=reads)).object()
        code, result, theirs = said.get("code"), said.get("result"), said.get("sign")
        if not isinstance(code, int) or isinstance(code, bool):
            raise BadResponse("an answer without a code")
        if code != 0:
            kind = MEANINGS.get(self.settings.codes.get(str(code), ""), BadResponse)
            if method == ORDER and issubclass(kind, core.Refused):
                kind = BadResponse  # a question that is refused says nothing of the order
            shown = str(code) if abs(code) < SHOWN else "out of range"
            raise kind(f"{method} failed, code {shown}", hint="ask Fulu what it means; `codes` can say it")
        if not isinstance(result, str):
            raise BadResponse("a success without a result")
        if theirs and self.settings.verify_answers and not core.same(str(theirs).lower(), self.sign(result)):
            raise BadResponse("an answer whose signature does not fit", hint="check app_secret, or verify_answers")
        try:
            return json.loads(result, parse_float=Decimal)
        except (ValueError, RecursionError):
            pass
        raise BadResponse("a result that is no JSON")


def _offer(good: Any) -> Offer | None:
    """A good as an offer; None for what is no card."""
    try:
        kind, level, sale = str(good["product_type"] or ""), good["stock_status"], good["sales_status"]
        if not kind or not (isinstance(level, str) and level and isinstance(sale, str) and sale):
            raise BadResponse("a good without type, sale or stock")
        if kind != CARD:
            return None
        return Offer(
            sku=str(int(good["product_id"])),
            title=str(good["product_name"]).strip(),
            price=core.money(good["purchase_price"], "CNY"),
            stock=LEVELS.get(level, Stock.unknown()),  # a new word is unknown, which is not zero
            for_sale=sale == ON_SALE,
        )
    except (KeyError, TypeError, ValueError):
        raise BadResponse("a good that is not what the protocol says") from None


ADAPTER = Fulu
