"""A Dujiao-Next site: its signatures, its clock, its wallet, its orders, old and new habits."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tests.suppliers.loopback.server import Asked, Loopback

ROOT = "/api/v1/upstream"


def signature(secret: str, method: str, path: str, at: int, body: bytes) -> str:
    """Written from the protocol's text, not with the adapter's means."""
    text = "\n".join([method, path, str(at), hashlib.md5(body).hexdigest()])
    return hmac.new(secret.encode(), text.encode(), "sha256").hexdigest()


class Site(Loopback):
    """``old``: no include_inactive and no echo of it, and 404 for what is off the shelf."""

    def __init__(
        self,
        *,
        key: str = "made-up-site-key",
        secret: str = "made-up-site-secret",
        currency: str = "CNY",
        balance: str = "100.00",
        old: bool = False,
        page_cap: int = 100,
        clock: Any = time.time,
    ) -> None:
        super().__init__(clock=clock)
        self.key, self.secret, self.currency, self.old, self.page_cap = key, secret, currency, old, page_cap
        self.balance = Decimal(balance)
        self.products: list[dict[str, Any]] = []
        self.keys: dict[int, list[str]] = {}
        self.orders: dict[int, dict[str, Any]] = {}
        self.references: dict[str, int] = {}
        self.gap = 0.0
        """Seconds between looking for a reference and creating its order: the server reads, then creates."""
        self.partial = 0
        """Keys that an order gets at first; 0: all."""
        self.payments_fail = False

    def sell(self, product: int, *skus: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Put a product on the shelf. A sku is {id, price, keys, …}: its stock is its keys."""
        one = {
            "id": product,
            "slug": f"product-{product}",
            "title": {"zh-CN": f"商品 {product}", "en": f"Product {product}"},
            "price_amount": skus[0]["price"],
            "fulfillment_type": "auto",
            "manual_form_schema": None,
            "is_active": True,
            "category_id": 1,
            "created_at": "2026-03-01T12:00:00Z",
            "updated_at": "2026-03-01T12:00:00.123456789Z",
            "skus": [],
        } | more
        for sku in skus:
            self.keys[sku["id"]] = list(sku.get("keys", ()))
            one["skus"].append(
                {
                    "id": sku["id"],
                    "sku_code": f"S{sku['id']}",
                    "spec_values": {},
                    "price_amount": sku["price"],
                    "is_active": True,
                }
                | {name: value for name, value in sku.items() if name not in {"id", "price", "keys"}}
            )
        self.products.append(one)
        return one

    def callback(self, order_id: int, **more: Any) -> tuple[dict[str, str], bytes]:
        """(headers, body) of the callback that the site would send about this order now."""
        at = int(self.clock())
        order = self.orders[order_id]
        said = {
            "event": "order.fulfilled",
            "order_id": order_id,
            "order_no": order["order_no"],
            "downstream_order_no": order["reference"],
            "status": order["status"],
            "timestamp": at,
        } | more
        body = json.dumps(said).encode()
        return self.signed("POST", f"{ROOT}/callback", at, body), body

    def signed(self, method: str, path: str, at: int, body: bytes) -> dict[str, str]:
        proof = signature(self.secret, method, path, at, body)
        return {"dujiao-next-api-key": self.key, "dujiao-next-timestamp": str(at), "dujiao-next-signature": proof}

    def answer(self, asked: Asked) -> tuple[int, Any]:
        refused = self._refused(asked)
        if refused:
            return refused
        path = asked.path.removeprefix(ROOT)
        found = re.fullmatch(r"/(products|orders)/(\d+)", path)
        if (asked.method, path) == ("POST", "/ping"):
            said = {"site_name": "A site", "protocol_version": "1.0", "user_id": 42, "balance": f"{self.balance:.2f}"}
            return 200, {"ok": True, **said, "currency": self.currency, "member_level": None}
        if (asked.method, path) == ("GET", "/products"):
            return self._listing(asked.query)
        if asked.method == "GET" and found:
            return (self._product if found[1] == "products" else self._order)(int(found[2]))
        if (asked.method, path) == ("POST", "/orders"):
            return self._buy(json.loads(asked.body))
        return 404, b"404 page not found"

    def _refused(self, asked: Asked) -> tuple[int, Any] | None:
        key, at, proof = (asked.headers.get(f"dujiao-next-{name}") for name in ("api-key", "timestamp", "signature"))
        if not (key and at and proof):
            return _error(401, "missing_auth_headers")
        if not re.fullmatch(r"\d{10}", at):
            return _error(401, "invalid_timestamp")
        if abs(self.clock() - int(at)) > 60:
            return _error(401, "timestamp_expired")
        if key != self.key:
            return _error(401, "invalid_api_key")
        if proof != signature(self.secret, asked.method, asked.path, int(at), asked.body):
            return _error(401, "invalid_signature")
        return None

    def _shown(self, product: dict[str, Any]) -> dict[str, Any]:
        skus = []
        for sku in product["skus"]:
            if sku["is_active"]:
                left = -1 if sku.get("stock_status") == "unlimited" else len(self.keys[sku["id"]])
                word = "unlimited" if left < 0 else "in_stock" if left > 20 else "low_stock" if left else "out_of_stock"
                skus.append({"stock_quantity": left, "stock_status": word, **sku})
        return {**product, "skus": skus}

    def _listing(self, query: dict[str, str]) -> tuple[int, Any]:
        size = min(int(query.get("page_size", 20)), self.page_cap)
        first = (int(query.get("page", 1)) - 1) * size
        everything = query.get("include_inactive") == "true" and not self.old
        found = [one for one in self.products if one["is_active"] or everything]
        if "updated_after" in query:
            after = datetime.fromisoformat(query["updated_after"])
            found = [one for one in found if datetime.fromisoformat(one["updated_at"]) > after]
        said = {"ok": True, "total": len(found), "page": int(query.get("page", 1)), "page_size": size}
        said["items"] = [self._shown(one) for one in found[first : first + size]]
        return 200, said if self.old else {**said, "includes_inactive": everything}

    def _product(self, number: int) -> tuple[int, Any]:
        for product in self.products:
            if product["id"] == number:
                if self.old and not product["is_active"]:
                    return _error(404, "product_unavailable")
                return 200, {"ok": True, "product": self._shown(product)}
        return _error(404, "product_not_found")

    def _buy(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        reference, quantity = wanted["downstream_order_no"], wanted["quantity"]
        if re.match(r"https?://(localhost|127\.|10\.|192\.168\.)", wanted.get("callback_url", "")):
            return _error(400, "invalid_callback_url")
        if reference in self.references:
            return 200, {"ok": True, **self._head(self.orders[self.references[reference]])}
        time.sleep(self.gap)
        with self.lock:
            found = [
                (product, sku) for product in self.products for sku in product["skus"] if sku["id"] == wanted["sku_id"]
            ]
            if not found or not found[0][1]["is_active"]:
                return _error(400, "sku_unavailable")
            product, sku = found[0]
            if not product["is_active"]:
                return _error(400, "product_unavailable")
            if len(self.keys[sku["id"]]) < quantity:
                return _error(409, "insufficient_stock")
            amount = Decimal(sku.get("member_price") or sku["price_amount"]) * quantity
            order = {"id": 101 + len(self.orders), "reference": reference, "amount": amount, "quantity": quantity}
            order |= {"order_no": f"DJ{order['id']}", "status": "paid", "sku": sku["id"], "payload": ""}
            if self.payments_fail:
                order["status"] = "canceled"
                self._keep(order)
                head = {name: value for name, value in self._head(order).items() if name not in {"amount", "currency"}}
                words = "wallet payment failed: gateway closed"
                return 200, {"ok": False, **head, "error_code": "payment_failed", "error_message": words}
            if self.balance < amount:
                return _error(402, "insufficient_balance")
            self.balance -= amount
            self._keep(order)
            self.ledger.add(reference, str(order["id"]), amount, quantity)
            order["held"], self.keys[sku["id"]] = self.keys[sku["id"]][:quantity], self.keys[sku["id"]][quantity:]
            return 200, {"ok": True, **self._head(order)}

    def _keep(self, order: dict[str, Any]) -> None:
        self.orders[order["id"]] = order
        self.references[order["reference"]] = order["id"]

    def _head(self, order: dict[str, Any]) -> dict[str, Any]:
        said = {"order_id": order["id"], "order_no": order["order_no"], "status": order["status"]}
        return said | {"amount": f"{order['amount']:.2f}", "currency": self.currency}

    def deliver(self, order_id: int) -> None:
        """The site's worker fulfils an order, or a part of it."""
        with self.lock:
            order = self.orders[order_id]
            if order["status"] in {"paid", "partially_delivered"}:
                part = self.partial if self.partial and order["status"] == "paid" else len(order["held"])
                order["payload"] = "\n".join(order["held"][:part])
                order["status"] = "completed" if part >= order["quantity"] else "partially_delivered"

    def _order(self, number: int) -> tuple[int, Any]:
        if number not in self.orders:
            return _error(404, "order_not_found")
        order = self.orders[number]
        said = {"ok": True, **self._head(order), "refunded_amount": "0.00", "refund_records": []}
        said["items"] = [{"sku_id": order["sku"], "quantity": order["quantity"], "fulfillment_type": "auto"}]
        if order["payload"]:
            at = datetime.fromtimestamp(self.clock(), UTC).isoformat()
            said["fulfillment"] = {"type": "auto", "status": "delivered", "payload": order["payload"]}
            said["fulfillment"] |= {"delivery_data": None, "delivered_at": at}
        return 200, said


def _error(status: int, code: str) -> tuple[int, Any]:
    return status, {"ok": False, "error_code": code, "error_message": f"made-up words for {code}"}
