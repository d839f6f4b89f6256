"""What can be sold: the stock that shops ask for, again and again. Called by the storefronts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from syncd.config import Product
from syncd.orders.deliveries import UnknownProductError
from syncd.store.database import Writer

_COST_FACTOR = 10.0
"""A snapshot serves for ten times as long as it took: however often shops poll, stock costs a tenth of a core."""


class Stock:
    """Counts what is there. A snapshot is used again while nothing was written, or while counting anew costs more."""

    def __init__(
        self,
        writer: Writer,
        products: Callable[[], Mapping[str, Product]],
        synced: Callable[[], tuple[int | None, float]],
    ) -> None:
        """``synced`` tells, blocking, when keys were last pulled successfully (Unix seconds), and how old is stale."""
        self._writer = writer
        self._database = writer.database
        self._clock = writer.database.clock
        self._products = products
        self._synced = synced
        self._lock = asyncio.Lock()
        self._rows: dict[str, dict[str, Any]] = {}
        self._of: tuple[int, int] = (-1, 0)  # the writer's commits and the products that the snapshot is of
        self._until = 0.0

    async def snapshot(self, product: str | None = None) -> tuple[list[dict[str, Any]], str]:
        """(a row a product, JSON-ready, and an ETag that changes when anything but the age does).

        Raises UnknownProductError.
        """
        async with self._lock:
            products = self._products()
            state = (self._writer.commits, id(products))
            now = self._clock.monotonic()
            if state != self._of and (now >= self._until or state[1] != self._of[1]):
                self._rows = await asyncio.to_thread(self._count, products)
                self._of = state
                self._until = self._clock.monotonic() + _COST_FACTOR * (self._clock.monotonic() - now)
        if product is not None and product not in self._rows:
            raise UnknownProductError("there is no such product")
        rows = [self._rows[product]] if product is not None else list(self._rows.values())
        tagged = [{name: value for name, value in row.items() if name != "age_s"} for row in rows]
        return rows, hashlib.sha256(msgspec.json.encode(tagged)).hexdigest()[:32]

    def _count(self, products: Mapping[str, Product]) -> dict[str, dict[str, Any]]:
        now = self._clock.now()
        synced_at, stale_after = self._synced()
        age = None if synced_at is None else max(0, int(now - synced_at))
        counted: dict[tuple[str, str], int] = {}
        with self._database.read() as connection:

            def query(sql: str, *params: Any) -> list[Any]:
                return list(connection.exec_driver_sql(self._database.marked(sql), params))

            for sku, product in products.items():  # each count is one range of the index of available keys
                ((number,),) = query(
                    "SELECT count(*) FROM vault_key WHERE state = 'available' AND product = ? AND expires_at > ?",
                    sku,
                    int(now + product.min_life),
                )
                counted[sku, "available"] = number
            # What a pending delivery still lacks is sold already.
            for sku, number in query(
                "SELECT d.product, sum(d.quantity - (SELECT count(*) FROM allotment a WHERE a.delivery_id = d.id"
                " AND a.withdrawn_at IS NULL)) FROM delivery d WHERE d.state = 'pending' GROUP BY d.product"
            ):
                counted[sku, "owed"] = int(number)
        return {
            sku: {
                "product": sku,
                "title": product.title,
                "cached": counted[sku, "available"],
                "reserved": 0,
                "upstream": {"kind": "none"},
                "sellable": max(0, counted[sku, "available"] - counted.get((sku, "owed"), 0)),
                "price": None if product.price is None else str(product.price),
                "age_s": age,
                "stale": age is None or age > stale_after,
            }
            for sku, product in products.items()
        }
