"""A kasushou platform: SHA-1 over the very bytes of a request, orders filled a moment later, a number taken once."""

from __future__ import annotations

import hashlib
import json
import time
from decimal import Decimal
from typing import Any

from tests.suppliers.loopback.server import Asked, Loopback

WAITING, WORKING, SUCCESS, CANCELED, REFUNDED = 1, 2, 3, 4, 5


def php(value: Any, *, slashes: bool = False, scripts: bool = False) -> str:
    """JSON as PHP writes it, compact; what is escaped as asked for."""
    text = json.dumps(value, ensure_ascii=scripts, separators=(",", ":"))
    return text.replace("/", "\\/") if slashes else text


def signature(timestamp: str, body: str, key: str) -> str:
    """Written from the protocol's text, not with the adapter's means."""
    return hashlib.sha1((timestamp + body + key).encode()).hexdigest()


class Platform(Loopback):
    """``goods``: id → fields of goods/list, with ``cards``, ``start_count`` and ``end_count``."""

    def __init__(
        self, *, user_id: str = "7", key: str = "made-up-api-key", balance: str = "100.00", clock: Any = time.time
    ) -> None:
        super().__init__(clock=clock)
        self.user_id, self.key, self.balance = user_id, key, Decimal(balance)
        self.goods: dict[int, dict[str, Any]] = {}
        self.orders: dict[str, dict[str, Any]] = {}
        self.complaints: list[dict[str, Any]] = []
        self.stamps: set[str] = set()
        self.polls = 1
        """How often an order is asked for before it is filled."""

    def sell(self, number: int, price: str, cards: list[str], **more: Any) -> dict[str, Any]:
        self.goods[number] = {
            "id": number,
            "goods_name": f"商品/{number}",
            "goods_img": "https://img.test/a.png",
            "goods_type": 1,
            "face_value": price,
            "goods_price": price,
            "status": 1,
            "can_buy": "",
            "can_no_buy": "",
            "can_price": "0.00",
            "need_balance": "0.00",
            "start_count": 1,
            "end_count": 0,
            "cards": cards,
        } | more
        return self.goods[number]

    def answer(self, asked: Asked) -> tuple[int, Any]:
        refusal = self._refusal(asked)
        if refusal:
            return 200, {"code": 400, "msg": refusal, "data": None}
        fields = json.loads(asked.body)
        call = getattr(self, f"_{asked.path.removeprefix('/api/v1/').replace('/', '_')}", None)
        if call is None:
            return 404, {"code": 404, "msg": "not found"}
        with self.lock:
            found = call(fields)
        return 200, {"code": 400, "msg": found} if isinstance(found, str) else {"code": 200, "msg": "ok", "data": found}

    def _refusal(self, asked: Asked) -> str:
        """Strict: the body has to be sorted and unescaped, the stamp near and in milliseconds, the sign right."""
        headers, body = asked.headers, asked.body.decode()
        stamp = headers.get("timestamp", "")
        if asked.method != "POST" or headers.get("userid") != self.user_id:
            return "用户不存在"
        if len(stamp) != 13 or not stamp.isdigit() or abs(int(stamp) / 1000 - self.clock()) > 60:
            return "时间戳错误"
        try:
            fields = json.loads(body)
        except ValueError:
            return "签名错误"
        exact = php(dict(sorted(fields.items()))) if fields else "{}"
        if body != exact or headers.get("sign") != signature(stamp, exact, self.key):
            return "签名错误"
        return ""

    def _user_info(self, _: dict[str, Any]) -> Any:
        return {"balance": f"{self.balance:.2f}"}

    def _listed(self, goods: dict[str, Any]) -> dict[str, Any]:
        hidden = {"cards", "start_count", "end_count"}
        return {k: v for k, v in goods.items() if k not in hidden} | {"stock_num": len(goods["cards"])}

    def _goods_list(self, fields: dict[str, Any]) -> Any:
        size, page = int(fields.get("limit", 100)), int(fields.get("page", 1))
        every = [self._listed(goods) for _, goods in sorted(self.goods.items())]
        return {"total": len(every), "list": every[(page - 1) * size : page * size]}

    def _goods_info(self, fields: dict[str, Any]) -> Any:
        goods = self.goods.get(fields["id"])
        if goods is None:
            return "商品不存在"
        return self._listed(goods) | {key: goods[key] for key in ("start_count", "end_count")} | {"attach": []}

    def _order_buy(self, fields: dict[str, Any]) -> Any:
        number, goods, quantity = fields["external_orderno"], self.goods.get(fields["id"]), fields["quantity"]
        if any(order["external_orderno"] == number for order in self.orders.values()):
            return "外部订单号重复"
        if goods is None or goods["status"] != 1:
            return "商品已下架"
        price = Decimal(goods["goods_price"])
        if "safe_price" in fields and Decimal(fields["safe_price"]) < price:
            return "商品价格高于安全价"
        if len(goods["cards"]) < quantity:
            return "库存不足"
        if price * quantity > self.balance:
            return "余额不足"
        self.balance -= price * quantity
        ordersn = f"D{1000 + len(self.orders)}"
        cards = [goods["cards"].pop(0) for _ in range(quantity)]
        self.orders[ordersn] = {
            "ordersn": ordersn,
            "external_orderno": number,
            "status": WAITING,
            "total_price": f"{price * quantity:.2f}",
            "has_back_money": "0.00",
            "recharge_hints": "",
            "cards": cards,
            "polls": self.polls,
            "url": fields.get("url", ""),
        }
        self.ledger.add(number, ordersn, price * quantity, quantity)
        return {k: self.orders[ordersn][k] for k in ("ordersn", "external_orderno", "total_price")}

    def _order_info(self, fields: dict[str, Any]) -> Any:
        wanted = [name for name in fields.get("ordersn", "").split(",") if name]
        found = [
            order
            for order in self.orders.values()
            if order["ordersn"] in wanted
            or (not wanted and order["external_orderno"] == fields.get("external_orderno"))
        ]
        for order in found:
            order["polls"] -= 1
            if order["polls"] < 0 and order["status"] in {WAITING, WORKING}:
                order["status"] = SUCCESS
        return [self._shown(order) for order in found]

    @staticmethod
    def _shown(order: dict[str, Any]) -> dict[str, Any]:
        cards = [{"card_no": "", "card_password": card} for card in order["cards"]]
        if order["status"] == REFUNDED:
            cards = [{"card_no": "", "card_password": "1"}]  # as in the document's own example
        hidden = {"cards", "polls", "url"}
        shown = cards if order["status"] in {SUCCESS, REFUNDED} else []
        return {k: v for k, v in order.items() if k not in hidden} | {"card_list": shown}

    def _order_complain(self, fields: dict[str, Any]) -> Any:
        self.complaints.append(fields)
        return [] if fields["ordersn"] in self.orders else "订单不存在"


def callback(fields: dict[str, Any], key: str, *, scripts: bool = False) -> dict[str, Any]:
    """The fields with their sign: slashes escaped, the lists left out."""
    signed = {k: fields[k] for k in sorted(fields) if k not in {"sign", "card_list", "express_list"}}
    return fields | {"sign": signature(str(fields["time"]), php(signed, slashes=True, scripts=scripts), key)}
