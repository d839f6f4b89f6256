"""acg-faka (异次元发卡): the shared store with which one of its shops sells another's goods, ``/shared/…``.

Source: the published source of acg-faka 3.6.0, and a running shop. Forms are posted and signed. Every answer has status
200: ``{"code":200,"data":…}``, or ``{"code":0,"msg":"中文原因"}``; what breaks inside the shop is a page of HTML. One
offer is one good of one race (kind) with one choice of each option: ``CODE/race/name=option``. What we pay is
``user_price``, or the price of the race.

A trade is answered at once, with the keys as one text, or with a sentence where keys should be though it was charged.
A text is called complete only if it has as many lines as were ordered and none reads like a sentence; it is handed over
in any case. Trades of one account that overlap end in deadlocks: one at a time.

A reference is refused when it comes again, not answered again, in capitals or not. So sending it again, more than 30 s
later, tells one of three things: an Order (the first time bought nothing), "paid" (a person fetches the keys), nothing.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote, unquote

import syncd.adapter as core
from syncd.adapter import BadResponse, Money, NotForSale, Offer, Order, OutcomeUnknown, Page, RawKey, Secret, Stock

CHOICES = 500
"""A good with more than this is one offer, which is not for sale."""
LONG = 160
"""A longer sku ends in its MD5."""
OK = 200
UNREADABLE = "?"
NOTHING: Mapping[str, str] = {}
FIELDS = frozenset("app_id app_key sign shared_code contact num card_id device password race request_no sku".split())
"""The fields of a trade: a form of a good that names one of them cannot be filled in."""

USED = "The request ID already exists"
REFUSALS: tuple[tuple[str, type[core.AdapterError], str], ...] = (  # (how msg begins, what it is, what it says)
    ("商户ID不存在", core.Auth, "the shop does not know this app_id"),
    ("密钥错误", core.Auth, "the shop does not accept our signature"),
    ("You have been banned", core.Auth, "our account at the shop is banned"),
    ("商品不存在", NotForSale, "the shop no longer has it"),
    ("当前商品已停售", NotForSale, "it is no longer sold"),
    ("该商品暂未上架", NotForSale, "it is off the shelf"),
    ("此商品类型不存在", NotForSale, "there is no such kind of it any more"),
    ("请选择商品类型", NotForSale, "it is sold in kinds by now"),
    ("库存不足", core.OutOfStock, "there is not enough of it"),
    ("余额不足", core.InsufficientBalance, "our balance at the shop does not cover it"),
    ("订单不存在", BadResponse, "the shop knows no order of ours with this number"),
    ("至少购买", core.Refused, "fewer than can be bought"),
    ("本商品最少购买", core.Refused, "fewer than can be bought at once"),
    ("本商品单次最多购买", core.Refused, "more than can be bought at once"),
)
HINTS: dict[type[core.AdapterError], str] = {
    core.Auth: "correct app_id and app_key: the shop shows them in our account there",
    NotForSale: "name another offer of the product, or ask the shop",
    core.OutOfStock: "another offer may have it",
    core.InsufficientBalance: "top up our balance at the shop",
    core.Refused: "look at the good's limits at the shop",
}
SENTENCES = ("请联系客服", "请耐心等待", "抢走了商品")


class AcgSettings(core.Settings):
    """A shop, and our account there."""

    shop: str
    """The shop's address, such as ``https://shop.example``."""
    app_id: str
    """The number of our account there (商户ID), in quotes."""
    app_key: Secret
    """Its key (商户密钥), which signs."""
    contact: str
    """What the shop keeps with our orders: an address of ours. Shops may write to it."""
    currency: str = "CNY"
    """The shop's currency. Its answers name none."""
    widgets: Mapping[str, str] = {}
    """Answers to forms: name of a field → what goes in. Goods that ask for anything else are not bought."""
    ask_stock: bool = False
    """Ask for the stock of each kind and choice while listing: one more request for each. Otherwise only `get_offer`
    does, since the listing has one number for all kinds of a good.
    """


class AcgFaka(core.Adapter):
    """A shop that runs acg-faka."""

    Settings = AcgSettings
    title = "acg-faka (异次元发卡)"
    promises = core.Promises(serial_trades=True, reference_length=19, repeat_after=35)
    unverified = (
        "Whether the listing's prices have the discounts of our account's group; get_offer's and an order's have them.",
        "Whether the shop trims names with blanks at their ends: they are sent as they are listed.",
        "Shops before 3.6 name some fields otherwise; get_offer may fail there.",
        "What a shop sells on from a third one may be charged by that one though it is refused here.",
    )

    def __init__(self, context: core.Context) -> None:
        super().__init__(context)
        self.settings: AcgSettings = context.settings
        # The texts of refusals are read, and shops translate them.
        self.http = context.connect(self.settings.shop.rstrip("/"), headers={"Accept-Language": "zh-CN"})

    def sign(self, form: Mapping[str, str]) -> str:
        """MD5 over the fields that are not empty, by name, then the key. What is in brackets stays in its order."""
        fields = sorted(form.items(), key=lambda field: field[0].partition("[")[0])
        text = "&".join(f"{name}={value}" for name, value in fields if value or "[" in name)
        return core.md5_hex(f"{text}&key={self.settings.app_key.reveal()}")

    async def check(self) -> core.Check:
        """The shop's name, and our balance there."""
        shop = await self._ask("authentication/connect")
        return core.Check(str(shop.get("shopName") or ""), self._money(shop.get("balance")))

    async def get_balance(self) -> Money:
        """What our account at the shop holds."""
        return self._money((await self._ask("authentication/connect")).get("balance"))

    async def list_offers(self, since: datetime | None) -> AsyncIterator[Page]:  # noqa: ARG002 - there is no such filter
        """The whole catalogue, which is one answer, a page for each category."""
        answer = await self._send("commodity/items", {})
        if not re.search(rb'"code"\s*:\s*200\b', answer.content):
            _data(answer)
        for category in answer.items("data"):
            if not isinstance(category, dict) or not isinstance(category.get("children"), list):
                raise BadResponse("a category that is not what the protocol says")
            group = str(category.get("name") or "")
            offers = [offer for good in category["children"] for offer in self._offers(good, group)]
            if self.settings.ask_stock:
                unknown = Stock.unknown()
                offers = [await self._asked(one) if one.for_sale and one.stock == unknown else one for one in offers]
            if offers:  # two empty pages would look like a listing that goes round in circles
                yield Page(offers)

    async def get_offer(self, sku: str) -> Offer:
        """One offer as it is now, with the stock of this very choice, and what one of it would cost us."""
        good = await self._ask("commodity/item", {"code": unquote(sku.partition("/")[0])})
        for offer in self._offers(good):
            if offer.sku == sku:
                return replace(await self._asked(offer), price=await self._total(_choice(offer), 1))
        raise NotForSale("the good no longer has this kind or choice")

    async def place_order(self, order: core.OrderRequest) -> Order:
        """Ask for the price, then trade, once. The shop has no price guard, and charges at once."""
        widgets = json.loads(order.offer.data.get("widgets", "[]"))
        if not set(widgets) <= set(self.settings.widgets):
            raise NotForSale("its form asks for what `widgets` does not have")
        choice, limit = _choice(order.offer), order.max_unit_cost
        price = await self._total(choice, order.quantity)
        if limit is not None and limit.currency != price.currency:
            raise core.Config(f"a limit in {limit.currency} for a shop that counts in {price.currency}")
        if limit is not None and price.amount > limit.amount * order.quantity:
            raise core.PriceChanged(f"{order.quantity} cost {price} now, the limit is {limit} for one")
        form = {"shared_code": choice.pop("code"), "race": choice.pop("race", ""), **choice}
        form |= {"num": str(order.quantity), "request_no": order.reference, "contact": self.settings.contact}
        form |= {"card_id": "0", "device": "0", "password": ""}  # one that is missing makes the shop break
        form |= {name: self.settings.widgets[name] for name in widgets}
        made = await self._ask("commodity/trade", form, reads=False)
        number, charged = made.get("tradeNo"), self._money(made.get("amount"))
        if not isinstance(number, str) or not number:
            raise BadResponse("a trade without a number")
        return self._order(number, made.get("secret"), order.reference, order.quantity, charged)

    async def get_order(self, order_id: str) -> Order:
        """An order by the shop's number for it. How many keys were ordered is not in the answer."""
        found = await self._ask("commodity/query", {"tradeNo": order_id})
        if str(found.get("status")) != "1":
            return Order(order_id, "pending", note="not paid")
        return self._order(order_id, found.get("secret"))

    def _order(
        self, number: str, secret: Any, reference: str = "", quantity: int | None = None, charged: Money | None = None
    ) -> Order:
        """A paid order. Its text is handed over as it came; only a plausible one is called complete."""
        text = secret if isinstance(secret, str) else ""
        lines = [line for line in text.split("\n") if line.strip()]
        note = ""
        if not lines:
            note = "paid, and nothing is delivered"
        elif any(_is_prose(line) for line in lines):
            note = "paid, and a sentence is where a key should be"
        elif quantity not in {None, len(lines)}:
            note = f"paid for {quantity}, and {len(lines)} lines are delivered"
        keys = (RawKey.of(text),) if lines else ()
        return Order(number, "partial" if note else "completed", reference, charged, quantity, keys, note)

    def _offers(self, good: Any, group: str = "") -> list[Offer]:
        """One good as offers: every race with every choice of its options. Raises BadResponse."""
        try:
            config, widgets = _config(good.get("config")), _widgets(good.get("widget"))
            races: dict[str, Any] = config.get("category") or {"": good["user_price"]}
            options = {name: list(prices.items()) for name, prices in sorted((config.get("sku") or {}).items())}
            count = len(races) * math.prod(map(len, options.values()))
            left, code = _stock(good.get("stock")), str(good["code"])
            whole = Offer(
                sku=_sku(code, "", {}),
                title=str(good["name"]).strip(),
                price=None,
                # The number is for the good as a whole: none of it is none of each, any other tells nothing of each.
                stock=left if count == 1 or left == Stock.exact(0) else Stock.unknown(),
                # By hand: a person at the shop delivers. Draft: the buyer picks a card by its looks.
                for_sale=not (int(good["delivery_way"]) or int(good.get("draft_status") or 0))
                and set(widgets) <= set(self.settings.widgets) - FIELDS,
                min_quantity=max(1, int(good.get("minimum") or 0)),
                max_quantity=int(good.get("maximum") or 0) or None,
                group=group,
                data={"code": code, **({"widgets": json.dumps(widgets)} if widgets else {})},
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise BadResponse("a good that is not what the protocol says") from None
        if UNREADABLE in config or count > CHOICES:
            return [replace(whole, for_sale=False)]
        choices = [dict(zip(options, choice, strict=True)) for choice in itertools.product(*options.values())]
        return [self._chosen(whole, config, race, races[race], choice) for race in races for choice in choices]

    def _chosen(
        self, whole: Offer, config: dict[str, Any], race: str, price: Any, choice: dict[str, tuple[str, Any]]
    ) -> Offer:
        """The offer of one race, and of {option: (what is chosen, what that adds to the price)}."""
        chosen = {name: what for name, (what, _) in choice.items()}
        tiers = (config.get("category_wholesale") or {}).get(race) if race else config.get("wholesale")
        # PHP reads sku[a[b]] as sku[a[b]: the signature would not fit, and that stops the supplier.
        sound = not any(set(name) & set("[]") for name in chosen)
        try:
            extra = sum((_surcharge(each) for _, each in choice.values()), Decimal(0))
            unit: Money | None = self._money(price, extra)
            ladder = sorted((int(least), self._money(each, extra)) for least, each in (tiers or {}).items())
        except (BadResponse, ValueError, AttributeError):  # one good's mistake is not the catalogue's
            unit, ladder, sound = None, [], False
        return replace(
            whole,
            sku=_sku(whole.data["code"], race, chosen),
            title=" ".join([whole.title, race, *chosen.values()]).strip(),
            price=unit,
            for_sale=whole.for_sale and sound,
            tiers=tuple(ladder),
            data={**whole.data, **({"race": race} if race else {}), **{f"sku[{k}]": v for k, v in chosen.items()}},
        )

    async def _total(self, choice: Mapping[str, str], quantity: int) -> Money:
        """What so many cost us at this moment."""
        asked = await self._ask("commodity/valuation", {**choice, "num": str(quantity), "card_id": "0"})
        if asked.get("currency_code") not in {None, "", self.settings.currency}:  # newer shops say it
            raise core.Config(f"the shop does not count in {self.settings.currency}", hint="correct `currency`")
        return self._money(asked.get("price"))

    async def _asked(self, offer: Offer) -> Offer:
        """The offer with its own stock, which the listing has for the whole good only."""
        found = await self._ask("commodity/stock", _choice(offer))
        return replace(offer, stock=Stock.exact(found.get("stock")))

    def _money(self, value: Any, extra: Decimal = Decimal(0)) -> Money:
        """An amount, as text or as a float, whose 2.7000000000000001778 is 2.7."""
        if isinstance(value, Decimal) and value != round(value, 6):
            value = round(value, 6)
        return Money(core.money(value, self.settings.currency).amount + extra, self.settings.currency)

    async def _send(self, path: str, fields: Mapping[str, str], *, reads: bool = True) -> core.Answer:
        form = {**fields, "app_id": self.settings.app_id}
        return await self.http.post(f"/shared/{path}", form={**form, "sign": self.sign(form)}, reads=reads)

    async def _ask(self, path: str, fields: Mapping[str, str] = NOTHING, *, reads: bool = True) -> dict[str, Any]:
        """The answer's data. Raises as `_data`."""
        data = _data(await self._send(path, fields, reads=reads))
        if not isinstance(data, dict):
            raise BadResponse(f"{path} was answered with something else than an object")
        return data


def _data(answer: core.Answer) -> Any:
    """What the shop says; raises what its refusal means, and BadResponse for whatever is neither."""
    said = answer.object()
    code, reason = said.get("code"), said.get("msg")
    if code == OK:
        return said.get("data")
    if code != 0 or not isinstance(reason, str):
        raise BadResponse("an answer that neither agrees nor refuses")
    if reason.startswith(USED):
        raise OutcomeUnknown(
            "paid: the shop has had this reference before",
            hint="its keys are in our account at the shop: fetch them there",
        )
    for begin, kind, meaning in REFUSALS:
        if reason.startswith(begin):
            raise kind(meaning, hint=HINTS.get(kind, ""))
    # Its text is not ours to show: anything may be in it.
    raise core.Refused("the shop refuses, for a reason that is not in the list", hint="try it by hand at the shop")


def _config(config: Any) -> dict[str, Any]:
    """A good's settings: INI in the listing, ``name.option=price`` in sections; an object, or [], in a single good.

    {UNREADABLE: …} for what the shop itself could not read: one good's mistake is not the catalogue's.
    """
    if not isinstance(config, str):
        return dict(config or {})
    sections: dict[str, Any] = {}
    section: dict[str, Any] = {}
    try:
        for line in filter(None, re.split(r"[\r\n]+", config.strip())):
            if line.startswith("[") and line.endswith("]"):
                section = sections.setdefault(line[1:-1], {})
                continue
            name, _, value = line.partition("=")
            *path, last = name.split(".")
            inner = section
            for step in path:
                inner = inner.setdefault(step, {})
            inner[last] = value
        return (
            sections
            if all(isinstance(prices, dict) for prices in sections.get("sku", {}).values())
            else {UNREADABLE: 1}
        )
    except (AttributeError, TypeError):
        return {UNREADABLE: 1}


def _widgets(form: Any) -> list[str]:
    """The names of the fields that a good's form asks for, in JSON or in a text of it."""
    try:
        fields = json.loads(form) if isinstance(form, str) and form.strip() else form
    except ValueError:
        return [UNREADABLE]
    return [str(field["name"]) for field in fields or ()]


def _surcharge(price: Any) -> Decimal:
    """What an option adds: only a number above 0 does."""
    text = str(price).strip()
    return max(Decimal(text), Decimal(0)) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text) else Decimal(0)


def _stock(left: Any) -> Stock:
    """A number, or a text of digits. Shops can show words instead."""
    worded = left is None or (isinstance(left, str) and not re.fullmatch(r" *-?[0-9]+ *", left))
    return Stock.unknown() if worded else Stock.exact(left)


def _sku(code: str, race: str, chosen: Mapping[str, str]) -> str:
    """``CODE/race/name=option``, with signs that would be mistaken, and blanks at an end, as %XX."""
    parts = [code, *([race] if race else []), *(f"{name}\0{option}" for name, option in sorted(chosen.items()))]
    sku = "/".join(re.sub(r"[%/=]|^\s|\s$|[\r\n\t]", lambda sign: quote(sign[0], safe=""), part) for part in parts)
    sku = sku.replace("\0", "=")
    return sku if len(sku) <= LONG else f"{sku[:LONG]}~{core.md5_hex(sku)}"


def _choice(offer: Offer) -> dict[str, str]:
    """The fields that name this very offer."""
    return {name: value for name, value in offer.data.items() if name != "widgets"}


def _is_prose(line: str) -> bool:
    """Whether it is a sentence: one of the shop's own, or a line without a letter or digit that a key is made of."""
    return not re.search(r"[0-9A-Za-z]", line) or any(words in line for words in SENTENCES)


ADAPTER = AcgFaka
