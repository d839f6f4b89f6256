"""acg-faka (异次元发卡): the shared store with which one of its shops sells another's goods, ``/shared/…``.

Source: the published source of acg-faka 3.6.0, and a running shop. Forms are posted and signed. Every answer has status
200: ``{"code":200,"data":…}``, or ``{"code":0,"msg":"中文原因"}``; what breaks inside the shop is a page of HTML. One
offer is one good of one race (kind) with one choice of each option: ``CODE/race/name=option``. What is listed and never
for sale: what a person delivers, what one picks by its looks, and what has a form (widget) to be filled in.

A trade is answered at once, with the keys as one text, or with a sentence where keys should be though it was charged.
It is complete only if it has as many lines as were ordered and none reads like a sentence. Trades of one account that
overlap end in deadlocks. A reference that comes again is refused; so sending it again after 30 s tells one of three
things: an Order (the first time bought nothing), "paid" (a person fetches the keys), nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote, unquote

import syncd.adapter as core
from syncd.adapter import BadResponse, Money, NotForSale, Offer, Order, OutcomeUnknown, Page, RawKey, Secret, Stock

OK, CHOICES = 200, 500  # the code of a success; a good with more choices than this is not for sale
SENTENCES = re.compile("请联系客服|请耐心等待|抢走了商品")
REFUSALS: tuple[tuple[str, type[core.AdapterError], str], ...] = (  # (how msg begins, what it is, what to do)
    ("商户ID不存在|密钥错误|You have been banned", core.Auth, "correct app_id and app_key: see our account there"),
    ("(商品|此商品类型)不存在|当前商品已停售|该商品暂未上架|请选择商品类型", NotForSale, "name another offer of it"),
    ("库存不足", core.OutOfStock, "another offer may have it"),
    ("余额不足", core.InsufficientBalance, "top up our balance at the shop"),
    ("至少购买|本商品最少购买|本商品单次最多购买", core.Refused, "look at the good's limits at the shop"),
    ("订单不存在", BadResponse, "look for the order in our account at the shop"),
)


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
    """The shop's currency. Most answers name none."""


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
        shop = await self._ask("authentication/connect", {})
        return core.Check(str(shop.get("shopName") or ""), self._money(shop.get("balance")))

    async def get_balance(self) -> Money:
        """What our account at the shop holds."""
        return self._money((await self._ask("authentication/connect", {})).get("balance"))

    async def list_offers(self, since: datetime | None) -> AsyncIterator[Page]:  # noqa: ARG002 - there is no such filter
        """The whole catalogue, which is one answer, a page for each category."""
        answer = await self._send("commodity/items", {})
        if not re.search(rb'"code"\s*:\s*200\b', answer.content):
            _data(answer)
        for group in answer.items("data"):
            if not isinstance(group, dict) or not isinstance(group.get("children"), list):
                raise BadResponse("a category that is not what the protocol says")
            offers = [one for good in group["children"] for one in self._offers(good, str(group.get("name") or ""))]
            if offers:  # two empty pages would look like a listing that goes round in circles
                yield Page(offers)

    async def get_offer(self, sku: str) -> Offer:
        """One offer as it is now, with the stock of this very choice, and what one of it would cost us."""
        good = await self._ask("commodity/item", {"code": unquote(sku.partition("/")[0])})
        for offer in self._offers(good):
            if offer.sku == sku:
                stock = Stock.exact((await self._ask("commodity/stock", offer.data)).get("stock"))
                return replace(offer, stock=stock, price=await self._total(offer, 1))
        raise NotForSale("the good no longer has this kind or choice")

    async def place_order(self, order: core.OrderRequest) -> Order:
        """Ask for the price, then trade, once. The shop has no price guard, and charges at once."""
        unit = Money((await self._total(order.offer, order.quantity)).amount / order.quantity, self.settings.currency)
        order.price_of(replace(order.offer, price=unit, tiers=(), stock=Stock.unknown()))
        choice = dict(order.offer.data)
        form = {"shared_code": choice.pop("code"), "race": choice.pop("race", ""), **choice}
        form |= {"num": str(order.quantity), "request_no": order.reference, "contact": self.settings.contact}
        form |= {"card_id": "0", "device": "0", "password": ""}  # one that is missing makes the shop break
        made = await self._ask("commodity/trade", form, reads=False)
        bought = _order(made.get("tradeNo"), made.get("secret"), order.quantity)
        with contextlib.suppress(BadResponse):  # what it cost is in our account there; the keys are paid, and are here
            bought = replace(bought, charged=self._money(made.get("amount")))
        return replace(bought, reference=order.reference)

    async def get_order(self, order_id: str) -> Order:
        """An order by the shop's number for it. How many keys were ordered is not in the answer."""
        found = await self._ask("commodity/query", {"tradeNo": order_id})
        paid = str(found.get("status")) == "1"
        return _order(order_id, found.get("secret")) if paid else Order(order_id, "pending", note="not paid")

    @core.reading("a good")
    def _offers(self, good: Any, group: str = "") -> list[Offer]:
        """One good as offers. Its stock may be a word. Raises BadResponse."""
        whole = Offer(
            sku=_safe(str(good["code"])),
            title=str(good["name"]).strip(),
            price=None,
            stock=Stock.unknown() if re.search(r"[^\d -]", str(good.get("stock"))) else Stock.exact(good["stock"]),
            for_sale=not (int(good["delivery_way"]) or int(good.get("draft_status") or 0))
            and good.get("widget") in (None, "", "[]", []),
            min_quantity=max(1, int(good.get("minimum") or 0)),
            max_quantity=int(good.get("maximum") or 0) or None,
            group=group,
            data={"code": str(good["code"])},
        )
        try:
            return list(self._choices(whole, _config(good.get("config")), good.get("user_price")))
        except (BadResponse, TypeError, ValueError, AttributeError):  # one good's mistake is not the catalogue's
            return [replace(whole, for_sale=False)]

    def _choices(self, whole: Offer, config: dict[str, Any], user_price: Any) -> Iterator[Offer]:
        """A good's offers: each race with each choice of its options. Without races we pay the ``user_price``."""
        races, options = config.get("category") or {"": user_price}, sorted((config.get("sku") or {}).items())
        choices = [[(name, *choice) for choice in prices.items()] for name, prices in options]
        every = list(itertools.islice(itertools.product(races, *choices), CHOICES + 1))
        # PHP reads sku[a[b]] as sku[a[b]: the signature would not fit, and that stops the supplier.
        if not 0 < len(every) <= CHOICES or any(set("[]") & set(name) for name, _ in options):
            raise BadResponse("choices that cannot be listed, or not be ordered")
        # The number is for the good as a whole: none of it is none of each, any other tells nothing of each.
        stock = whole.stock if len(every) == 1 or whole.stock.quantity == 0 else Stock.unknown()
        for race, *chosen in every:
            extra = sum((max(self._money(added or 0).amount, Decimal(0)) for _, _, added in chosen), Decimal(0))
            tiers = (config.get("category_wholesale") or {}).get(race) if race else config.get("wholesale")
            kind = {"race": race} if race else {}
            names = [_safe(one) for one in kind.values()] + [f"{_safe(name)}={_safe(one)}" for name, one, _ in chosen]
            yield replace(
                whole,
                sku="/".join([whole.sku, *names]),
                title=" ".join([whole.title, *kind.values(), *(one for _, one, _ in chosen)]),
                price=self._money(races[race], extra),
                stock=stock,
                tiers=tuple(sorted((int(least), self._money(each, extra)) for least, each in (tiers or {}).items())),
                data={**whole.data, **kind, **{f"sku[{name}]": one for name, one, _ in chosen}},
            )

    async def _total(self, offer: Offer, quantity: int) -> Money:
        """What so many cost us at this moment."""
        asked = await self._ask("commodity/valuation", {**offer.data, "num": str(quantity), "card_id": "0"})
        if asked.get("currency_code") not in {None, "", self.settings.currency}:  # newer shops say it
            raise core.Config(f"the shop does not count in {self.settings.currency}", hint="correct `currency`")
        return self._money(asked.get("price"))

    def _money(self, value: Any, extra: Decimal = Decimal(0)) -> Money:
        """An amount, as text or as a float, whose 2.7000000000000001778 is 2.7."""
        exact = round(value, 6) if isinstance(value, Decimal) and value != round(value, 6) else value
        return Money(core.money(exact, self.settings.currency).amount + extra, self.settings.currency)

    async def _send(self, path: str, fields: Mapping[str, str], *, reads: bool = True) -> core.Answer:
        form = {**fields, "app_id": self.settings.app_id}
        return await self.http.post(f"/shared/{path}", form={**form, "sign": self.sign(form)}, reads=reads)

    async def _ask(self, path: str, fields: Mapping[str, str], *, reads: bool = True) -> dict[str, Any]:
        """The answer's data. Raises as `_data`."""
        return _data(await self._send(path, fields, reads=reads))


def _data(answer: core.Answer) -> dict[str, Any]:
    """What the shop says; raises what its refusal means, in our own words. Of a trade, all else leaves it unknown."""
    said = answer.object()
    code, reason, data = said.get("code"), said.get("msg"), said.get("data")
    if code == OK and isinstance(data, dict):
        return data
    if code != 0 or not isinstance(reason, str):
        raise BadResponse("an answer that neither agrees nor refuses")
    if reason.startswith("The request ID already exists"):
        raise OutcomeUnknown("paid: the shop has had this reference before", hint="fetch its keys in our account there")
    for begins, kind, hint in REFUSALS:
        if known := re.match(begins, reason):
            raise kind(f"the shop says {known[0]}", hint=hint)
    raise BadResponse("the shop refuses, for a reason that is not in the list", hint="try it by hand at the shop")


def _order(number: Any, secret: Any, quantity: int | None = None) -> Order:
    """A paid order. Its text is handed over as it came; only a plausible one is called complete."""
    text, note = secret if isinstance(secret, str) else "", ""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        note = "paid, and nothing is delivered"
    elif any(SENTENCES.search(line) or not re.search("[0-9A-Za-z]", line) for line in lines):
        note = "paid, and a sentence is where a key should be"
    elif quantity not in {None, len(lines)}:
        note = f"paid for {quantity}, and {len(lines)} lines are delivered"
    keys = [RawKey.of(text)] if lines else []
    return Order(number, "partial" if note else "completed", quantity=quantity, keys=keys, note=note)


def _config(config: Any) -> dict[str, Any]:
    """A good's settings: INI in the listing, ``name.option=price`` in sections; an object, or [], in a single good."""
    if not isinstance(config, str):
        return dict(config or {})
    sections, section = dict[str, Any](), dict[str, Any]()
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
    return sections


def _safe(name: str) -> str:
    """A part of a sku: signs that would be mistaken, and blanks at an end, as %XX."""
    return re.sub(r"[%/=]|^\s|\s$|[\r\n\t]", lambda sign: quote(sign[0], safe=""), name)


ADAPTER = AcgFaka
