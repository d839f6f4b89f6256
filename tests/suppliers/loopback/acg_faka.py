"""An acg-faka shop: MD5 over PHP's idea of a form, status 200 for everything, one trade at a time or a deadlock."""

from __future__ import annotations

import hashlib
import time
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

from tests.suppliers.loopback.server import HTML, Asked, Loopback

SNATCHED = "很抱歉，有人在你付款之前抢走了商品，请联系客服。"
BY_HAND = "正在发货中，请耐心等待，如有疑问，请联系客服。"


class Broken(Exception):  # noqa: N818 - what the shop is then
    """Something failed inside the shop: it answers with a page."""


def php(body: bytes) -> dict[str, Any]:
    """A form as PHP reads it: ``a[b]`` becomes an array, up to the first closing bracket."""
    read: dict[str, Any] = {}
    for name, value in parse_qsl(body.decode(), keep_blank_values=True):
        head, bracket, rest = name.partition("[")
        head = head.replace(".", "_").replace(" ", "_")
        if bracket and "]" in rest:
            inner = read.setdefault(head, {})
            inner[rest.partition("]")[0]] = value
        else:
            read[head] = value
    return read


def signature(fields: dict[str, Any], key: str) -> str:
    """Written from the protocol's text, not with the adapter's means."""
    parts = []
    for name in sorted(fields):
        value = fields[name]
        if name == "sign" or value == "":
            continue
        parts += [f"{name}[{k}]={v}" for k, v in value.items()] if isinstance(value, dict) else [f"{name}={value}"]
    return hashlib.md5(("&".join(parts) + f"&key={key}").encode()).hexdigest()


class Shop(Loopback):
    """``goods``: code → {name, price or races, keys, …}. A good's keys are per choice: {(race, option, …): [keys]}."""

    def __init__(
        self, *, app_id: str = "1001", app_key: str = "made-up-app-key", balance: str = "100.00", clock: Any = time.time
    ) -> None:
        super().__init__(clock=clock)
        self.app_id, self.app_key, self.balance = app_id, app_key, Decimal(balance)
        self.goods: dict[str, dict[str, Any]] = {}
        self.orders: dict[str, dict[str, Any]] = {}
        self.used: set[str] = set()
        self.trading = 0
        self.seconds = 0.0
        """How long a trade takes."""
        self.snatch = False
        """Whether somebody takes the keys between the check and the lock: it is charged all the same."""
        self.currency_code = ""

    def sell(self, code: str, price: str, keys: dict[tuple[str, ...], list[str]], **more: Any) -> dict[str, Any]:
        """``more``: races {race: price}, wholesale, race_wholesale, options {name: {option: surcharge}}, and fields."""
        self.goods[code] = {
            "code": code,
            "price": price,
            "keys": keys,
            "name": f"商品 {code}",
            "delivery_way": 0,
        } | more
        return self.goods[code]

    def answer(self, asked: Asked) -> tuple[int, Any]:
        try:
            return 200, self._answer(asked)
        except Broken:
            return 200, HTML

    def _answer(self, asked: Asked) -> Any:
        if asked.method != "POST" or not asked.path.startswith("/shared/"):
            raise Broken
        form = php(asked.body)
        if form.get("app_id") != self.app_id:
            return _no("商户ID不存在")
        if "app_key" in form or form.get("sign") != signature(form, self.app_key):
            return _no("密钥错误")
        calls = {
            "authentication/connect": self._connect,
            "commodity/items": self._items,
            "commodity/item": self._item,
            "commodity/stock": self._stock,
            "commodity/valuation": self._valuation,
            "commodity/trade": self._trade,
            "commodity/query": self._query,
        }
        call = calls.get(asked.path.removeprefix("/shared/"))
        if call is None:
            raise Broken
        try:
            return call(form)
        except KeyError:  # a field that is missing is an error inside the shop
            raise Broken from None

    def _connect(self, _form: dict[str, Any]) -> Any:
        return _yes({"shopName": "A shop", "balance": float(self.balance)})

    def _config(self, good: dict[str, Any]) -> dict[str, Any]:
        config: dict[str, Any] = {}
        for name, section in (("races", "category"), ("race_wholesale", "category_wholesale")):
            config |= {section: good[name]} if good.get(name) else {}
        config |= {"wholesale": good["wholesale"]} if good.get("wholesale") else {}
        return config | ({"sku": good["options"]} if good.get("options") else {})

    def _shown(self, good: dict[str, Any]) -> dict[str, Any]:
        shown = {
            "code": good["code"],
            "name": good["name"],
            "price": 99.9,
            "user_price": float(good["price"]),
            "stock": sum(map(len, good["keys"].values())),
            "minimum": 0,
            "maximum": 0,
            "delivery_way": good["delivery_way"],
            "draft_status": 0,
            "widget": None,
        }
        named = {name: good[name] for name in ("minimum", "maximum", "draft_status", "widget", "stock") if name in good}
        return shown | named

    def _items(self, _form: dict[str, Any]) -> Any:
        goods = [{**self._shown(good), "config": _ini(self._config(good))} for good in self.goods.values()]
        return _yes([{"id": 1, "name": "点卡", "icon": "", "pid": 0, "status": 1, "children": goods}])

    def _item(self, form: dict[str, Any]) -> Any:
        good = self.goods.get(form["code"])
        return _yes({**self._shown(good), "config": self._config(good) or []}) if good else _no("商品不存在")

    def _stock(self, form: dict[str, Any]) -> Any:
        good = self.goods.get(form["code"])
        return _yes({"stock": str(len(self._keys(good, form)))}) if good else _no("商品不存在")

    def _keys(self, good: dict[str, Any], form: dict[str, Any]) -> list[str]:
        race = (form["race"],) if form.get("race") else ()
        return good["keys"].get((*race, *(form.get("sku") or {}).values()), [])

    def _total(self, good: dict[str, Any], form: dict[str, Any]) -> Decimal:
        number, race = int(form["num"]), form.get("race") or ""
        unit = Decimal(good["races"][race] if race else good["price"])
        tiers = (good.get("race_wholesale") or {}).get(race, {}) if race else good.get("wholesale") or {}
        for least, price in sorted(tiers.items(), key=lambda tier: int(tier[0])):
            unit = Decimal(price) if number >= int(least) else unit
        for name, option in (form.get("sku") or {}).items():
            unit += Decimal(good["options"][name][option] or 0)
        return unit * number

    def _checked(self, good: dict[str, Any] | None, form: dict[str, Any]) -> str:
        if not good:
            return "商品不存在"
        if good.get("races") and not form.get("race"):
            return "请选择商品类型"
        if form.get("race") and form["race"] not in good.get("races", {}):
            return f"此商品类型不存在[{form['race']}]"
        return ""

    def _valuation(self, form: dict[str, Any]) -> Any:
        good = self.goods.get(form["code"])
        wrong = self._checked(good, form)
        if wrong:
            return _no(wrong)
        money = {"currency_code": self.currency_code} if self.currency_code else {}
        return _yes({"price": f"{self._total(good, form):.2f}", **money})

    def _trade(self, form: dict[str, Any]) -> Any:
        with self.lock:
            self.trading += 1
            overlapping = self.trading > 1
        try:
            time.sleep(self.seconds)
            if overlapping:
                raise Broken  # the deadlock's victim: rolled back
            with self.lock:
                return self._traded(form)
        finally:
            self.trading -= 1

    def _traded(self, form: dict[str, Any]) -> Any:
        good, number, reference = self.goods.get(form["shared_code"]), int(form["num"]), form["request_no"]
        _ = form["contact"], form["card_id"], form["device"], form["password"], form["race"]
        if len(reference) > 19:
            raise Broken
        wrong = self._checked(good, form)
        if wrong:
            return _no(wrong)
        if number < good.get("minimum", 0):
            return _no(f"本商品最少购买{good['minimum']}个")
        keys, amount = self._keys(good, form), self._total(good, form)
        if good["delivery_way"] == 0 and len(keys) < number:
            return _no("库存不足")
        if reference.lower() in self.used:
            return _no("The request ID already exists")
        if self.balance < amount:
            return _no("余额不足")
        self.balance -= amount
        self.used.add(reference.lower())
        order_id = f"2792611230837{len(self.orders) + 1:05}"
        self.ledger.add(reference, order_id, amount, number)
        secret = good.get("sentence") or (BY_HAND if good["delivery_way"] else SNATCHED if self.snatch else "")
        if not secret:
            secret = good.get("newline", "\n").join(keys[:number])
            del keys[:number]
        self.orders[order_id] = {"secret": secret, "status": 1}
        said = {"url": f"/item?tradeNo={order_id}", "amount": float(amount), "tradeNo": order_id, "secret": secret}
        return _yes({**said, "leave_message": None, "stock": str(len(keys))})

    def _query(self, form: dict[str, Any]) -> Any:
        order = self.orders.get(form["tradeNo"])
        return _yes({**order, "widget": None}) if order else _no("订单不存在")


def _ini(config: dict[str, Any]) -> str:
    lines = []
    for section, values in config.items():
        lines.append(f"[{section}]")
        for name, value in values.items():
            pairs = value.items() if isinstance(value, dict) else [("", value)]
            lines += [f"{name}.{inner}={price}" if inner else f"{name}={price}" for inner, price in pairs]
    return "\r\n".join(lines)


def _yes(data: Any) -> Any:
    return {"code": 200, "msg": "success", "data": data}


def _no(reason: str) -> Any:
    return {"code": 0, "msg": reason}
