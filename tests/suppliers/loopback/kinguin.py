"""Kinguin: merchants' offers behind products, a price that must match, keys one by one, returns of whole orders.

Written from the vendor's documents. What those leave open is the worst that it could be: a reference that comes again
is bought again (``duplicates`` makes it refuse instead), and a search may lag (``hidden``).
"""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tests.suppliers.loopback.server import Asked, Loopback

ROOT = "/esa/api"
GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
LEVELS = ((500, 4), (100, 3), (50, 2), (10, 1))


class Kinguin(Loopback):
    """``products``: productId → the product; an offer's keys are texts, or bytes of pictures."""

    def __init__(self, *, key: str = "made-up-store-key", balance: str = "500.00", clock: Any = time.time) -> None:
        super().__init__(clock=clock)
        self.key, self.balance = key, Decimal(balance)
        self.products: dict[str, dict[str, Any]] = {}
        self.orders: dict[str, dict[str, Any]] = {}
        self.duplicates = "buys"
        self.hidden = False
        """Whether the search does not show new orders yet."""
        self.page_cap = 100
        self.returned: set[str] = set()

    def sell(self, number: int, *offers: dict[str, Any], **more: Any) -> str:
        """``offers``: {price, keys, tiers?}. Returns the productId."""
        own = f"{number:024x}"
        self.products[own] = {
            "kinguinId": number,
            "productId": own,
            "name": f"Game {number} Steam CD Key",
            "platform": "Steam",
            "isPreorder": False,
            "regionalLimitations": "Region free",
            "countryLimitation": [],
            "updatedAt": "2026-03-01T12:00:00+00:00",
            "held": [{"offerId": f"{number:020x}{n:04x}", **offer} for n, offer in enumerate(offers)],
        } | more
        return own

    # --- what is asked ------------------------------------------------------------------------------------------------

    def answer(self, asked: Asked) -> tuple[int, Any]:
        if asked.headers.get("x-api-key") != self.key:
            return 401, {"kind": "Authorization", "status": 401, "detail": "Invalid authentication data."}
        path, query = asked.path.removeprefix(ROOT), asked.query
        with self.lock:
            match asked.method, path.split("/")[1:]:
                case "GET", ["v1", "balance"]:
                    return 200, {"balance": float(self.balance)}
                case "GET", ["v1", "products"]:
                    return self._listing(query)
                case "GET", ["v2", "products", own]:
                    found = self.products.get(own)
                    return (200, _shown(found)) if found else _no(404, "Http")
                case "POST", ["v2", "order"]:
                    return self._buy(json.loads(asked.body, parse_float=Decimal))
                case "GET", ["v1", "order"]:
                    return self._search(query)
                case "GET", ["v1", "order", own]:
                    return (200, _told(self.orders[own])) if own in self.orders else _no(404, "OrderNotFound")
                case "GET", ["v2", "order", own, "keys"]:
                    return self._keys(own, query)
                case "POST", ["v2", "order", own, "keys", "return"]:
                    return self._return(own)
        return _no(404, "Http")

    def _listing(self, query: dict[str, str]) -> tuple[int, Any]:
        if query.get("sortBy") not in {"kinguinId", "updatedAt"} or not 1 <= int(query.get("limit", 25)) <= 100:
            return _no(400, "ConstraintViolation", propertyPath="sortBy")
        found = sorted(self.products.values(), key=lambda one: one["kinguinId"])
        if "updatedSince" in query:
            since = datetime.fromisoformat(query["updatedSince"])
            found = [one for one in found if datetime.fromisoformat(one["updatedAt"]) >= since]
        size = min(int(query.get("limit", 25)), self.page_cap)
        first = (int(query.get("page", 1)) - 1) * size
        return 200, {"results": [_shown(one) for one in found[first : first + size]], "item_count": len(found)}

    def _search(self, query: dict[str, str]) -> tuple[int, Any]:
        wanted = query.get("orderExternalId")
        found = [] if self.hidden else [one for one in self.orders.values() if wanted in {None, one["orderExternalId"]}]
        return 200, {"results": [_told(one) for one in found[: int(query.get("limit", 25))]], "item_count": len(found)}

    def _buy(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        items, reference = wanted["products"], wanted.get("orderExternalId", "")
        if len(items) != 1 or not isinstance(items[0].get("price"), Decimal | int):
            return _no(400, "ConstraintViolation", propertyPath="products")
        if self.duplicates == "refuses" and any(one["orderExternalId"] == reference for one in self.orders.values()):
            return _no(400, "ConstraintViolation", propertyPath="orderExternalId", invalidValue=reference)
        item, quantity, price = items[0], items[0]["qty"], Decimal(items[0]["price"])
        product = self.products.get(item["productId"])
        if product is None:
            return _no(400, "ProductUnavailable")
        if product["isPreorder"] and (quantity > 1 or "keyType" in item):
            return _no(400, "Preorder")
        if quantity > 9 and "offerId" not in item:
            return _no(400, "ConstraintViolation", propertyPath="products[0].qty", invalidValue=quantity)
        keys = self._taken(product, item, quantity, price)
        if keys is None:
            return _no(400, "ProductUnavailable")
        if self.balance < price * quantity:
            return _no(402, "InsufficientBalance")
        own = f"PHS{len(self.orders):08}"
        self.balance -= price * quantity
        self.ledger.add(reference, own, price * quantity, quantity)
        self.orders[own] = {
            "orderId": own,
            "orderExternalId": reference,
            "status": "processing",
            "paymentPrice": price * quantity,
            "totalQty": quantity,
            "wholesale": quantity > 9,
            "keys": [{"id": f"{own}-{n}", "status": "PROCESSING", "key": key} for n, key in enumerate(keys)],
        }
        return 201, _told(self.orders[own])

    def _taken(self, product: dict[str, Any], item: dict[str, Any], quantity: int, price: Decimal) -> list[Any] | None:
        """The keys of merchants' offers that have this price, taken out of them; None if there are not enough."""
        fitting = []
        for offer in product["held"]:
            if item.get("offerId") in {None, offer["offerId"]} and _price(offer, quantity) == price:
                fitting += [(offer, key) for key in offer["keys"] if "keyType" not in item or isinstance(key, str)]
        if len(fitting) < quantity:
            return None
        for offer, key in fitting[:quantity]:
            offer["keys"].remove(key)
        return [key for _, key in fitting[:quantity]]

    # --- what happens there -------------------------------------------------------------------------------------------

    def deliver(self, own: str, count: int = 1000) -> None:
        """So many more keys of an order are there."""
        with self.lock:
            waiting = [key for key in self.orders[own]["keys"] if key["status"] == "PROCESSING"]
            for key in waiting[:count]:
                key["status"] = "DELIVERED"
            if len(waiting) <= count:
                self.orders[own]["status"] = "completed"

    def _keys(self, own: str, query: dict[str, str]) -> tuple[int, Any]:
        if own not in self.orders:
            return _no(404, "OrderNotFound")
        there = [key for key in self.orders[own]["keys"] if key["status"] not in {"PENDING", "PROCESSING"}]
        size = min(int(query.get("limit", 25)), self.page_cap)
        first = (int(query.get("page", 1)) - 1) * size
        return 200, [_sent(key) for key in there[first : first + size]]

    def _return(self, own: str) -> tuple[int, Any]:
        order = self.orders[own]
        if own in self.returned or order["wholesale"]:
            return _no(409, "NoKeysToReturn")
        self.returned.add(own)
        for key in order["keys"]:
            key["status"] = "RETURNED" if key["status"] == "DELIVERED" else key["status"]
        return 200, [{"id": key["id"], "status": key["status"]} for key in order["keys"]]


def _price(offer: dict[str, Any], quantity: int) -> Decimal | None:
    """What one costs of this offer in such an order; None if it is not sold so."""
    if quantity <= 9:
        return Decimal(offer["price"])
    level = next(level for least, level in LEVELS if quantity >= least)
    found = offer.get("tiers", {}).get(level)
    return Decimal(found) if found and quantity <= 1000 else None


def _shown(product: dict[str, Any]) -> dict[str, Any]:
    offers = []
    for offer in product["held"]:
        tiers = [{"level": level, "price": float(price)} for level, price in offer.get("tiers", {}).items()]
        texts = sum(isinstance(key, str) for key in offer["keys"])
        shown = {"offerId": offer["offerId"], "price": float(offer["price"]), "qty": len(offer["keys"])}
        offers.append({**shown, "textQty": texts, "wholesale": {"enabled": bool(tiers), "tiers": tiers}})
    full = [offer for offer in offers if offer["qty"]]
    price = min((offer["price"] for offer in full), default=None)
    cheapest = [offer for offer in full if offer["price"] == price]
    said = {name: value for name, value in product.items() if name != "held"}
    counts = {name: sum(offer[name] for offer in cheapest) for name in ("qty", "textQty")}
    return said | {"price": price, **counts, "cheapestOfferId": [one["offerId"] for one in cheapest], "offers": offers}


def _told(order: dict[str, Any]) -> dict[str, Any]:
    keys = [{"id": key["id"], "status": key["status"]} for key in order["keys"]]
    said = {name: value for name, value in order.items() if name not in {"keys", "wholesale"}}
    return {
        **said,
        "paymentPrice": float(order["paymentPrice"]),
        "products": [{"qty": order["totalQty"], "keys": keys}],
    }


def _sent(key: dict[str, Any]) -> dict[str, Any]:
    text = isinstance(key["key"], str)
    serial = key["key"] if text else base64.b64encode(key["key"]).decode()
    return {"id": key["id"], "serial": serial, "type": "text/plain" if text else "image/gif", "name": "Game"}


def _no(status: int, kind: str, **more: Any) -> tuple[int, Any]:
    at = datetime.now(UTC).isoformat()
    return status, {"kind": kind, "status": status, "detail": f"made-up words for {kind}", "timestamp": at, **more}
