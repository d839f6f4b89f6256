"""What can be sold: the stock that shops ask for, again and again. Called by the storefronts.

One set-based statement over the partial index of available keys. Its result serves again while nothing was committed
since, or for ten times as long as it took: however often shops poll a million keys, that costs a tenth of a core.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from syncd.config import Product
from syncd.orders.deliveries import UnknownProductError
from syncd.store.database import Writer

_COST_FACTOR: Final = 10.0
_LONGEST_S: Final = 15.0
"""A snapshot serves no longer than this even when nothing is written: keys expire by themselves."""

_AVAILABLE: Final = (
    "SELECT rows.sku, (SELECT count(*) FROM vault_key WHERE state = 'available' AND product = rows.sku"
    " AND expires_at > rows.floor) FROM rows"
)
# What a pending delivery still lacks is sold already.
_OWED: Final = (
    "SELECT product, sum(quantity - (SELECT count(*) FROM allotment WHERE delivery_id = delivery.id"
    " AND withdrawn_at IS NULL)) FROM delivery WHERE state = 'pending' GROUP BY product"
)
_encode = msgspec.json.Encoder(order="deterministic").encode


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Stock at one moment. ``products`` are those it was made for, ``head`` is the last audit entry it saw."""

    rows: dict[str, dict[str, Any]]
    products: Mapping[str, Product]
    head: int
    synced_at: int | None
    stale_after: float
    counted_at: float
    at: float
    cost: float


class Stock:
    """Counts what is there.

    ``synced`` tells, blocking, when keys were last pulled (Unix seconds), and after how long that is stale;
    ``upstream`` what suppliers hold of these products, with ``at``, the Unix seconds at which that was read.
    """

    def __init__(
        self,
        writer: Writer,
        products: Callable[[], Mapping[str, Product]],
        synced: Callable[[], tuple[int | None, float]],
        upstream: Callable[[Connection, Mapping[str, Product]], Mapping[str, dict[str, Any]]],
    ) -> None:
        self._database = writer.database
        self._clock = writer.database.clock
        self._products = products
        self._synced = synced
        self._upstream = upstream
        self._lock = asyncio.Lock()
        self._last: _Snapshot | None = None

    async def snapshot(self, product: str | None = None) -> tuple[list[dict[str, Any]], str]:
        """(a row a product, JSON-ready, and an ETag that changes when anything but the age does).

        A row: product, title, cached (keys that can be delivered now), reserved, upstream, sellable (cached less what
        paid orders still wait for; nothing buys what is upstream, so it cannot be sold), price, age_s, stale. Never
        what the shop pays. Raises UnknownProductError.
        """
        if product is not None and product not in self._products():
            raise UnknownProductError("there is no such product", hint="add [products.SKU] to the configuration")
        found = self._last
        if found is None or not self._serves(found):
            async with self._lock:  # who waited here finds what the first one brought
                found = self._last
                if found is None or not self._serves(found):
                    found = self._last = await asyncio.to_thread(self._renewed, found)
        age = None if found.synced_at is None else max(0, int(self._clock.now() - found.synced_at))
        stale = age is None or age > found.stale_after
        chosen = found.rows.values() if product is None else [found.rows[product]]
        rows = [{**row, "stale": stale} for row in chosen]
        ageless = [{**row, "upstream": {**row["upstream"], "at": None}} for row in rows]
        tag = hashlib.sha256(_encode(ageless)).hexdigest()[:32]
        return [{**row, "age_s": age, "upstream": self._aged(row["upstream"])} for row in rows], tag

    def _aged(self, upstream: dict[str, Any]) -> dict[str, Any]:
        """With its age in place of its time."""
        shown = dict(upstream)
        at = shown.pop("at", None)
        if at is not None:
            shown["age_s"] = max(0, int(self._clock.now() - at))
        return shown

    def _serves(self, found: _Snapshot) -> bool:
        young = self._clock.monotonic() - found.at < _COST_FACTOR * found.cost
        return young and found.products is self._products()

    def _renewed(self, last: _Snapshot | None) -> _Snapshot:
        """The stock now. If nothing was committed, here or by another daemon, the last one's counts still hold.

        What is upstream is always read anew: it grows stale by itself, and its changes are in no audit.
        """
        products = self._products()
        begun = self._clock.monotonic()
        synced_at, stale_after = self._synced()
        with self._database.read() as connection:
            head = int(connection.exec_driver_sql("SELECT seq FROM audit_head WHERE id = 1").scalar() or 0)
            upstream = self._upstream(connection, products)
            if last and last.products is products and last.head == head and begun - last.counted_at < _LONGEST_S:
                rows, counted_at = last.rows, last.counted_at
            else:
                rows, counted_at = self._count(connection, products), begun
        rows = {sku: {**row, "upstream": upstream[sku]} for sku, row in rows.items()}
        cost = self._clock.monotonic() - begun
        return _Snapshot(rows, products, head, synced_at, stale_after, counted_at, begun, cost)

    def _count(self, connection: Connection, products: Mapping[str, Product]) -> dict[str, dict[str, Any]]:
        now = self._clock.now()
        wanted = [(sku, int(now + product.min_life)) for sku, product in products.items()]
        cached: dict[str, int] = {}
        for start in range(0, len(wanted), self._database.bulk_rows):
            part = wanted[start : start + self._database.bulk_rows]
            statement, bound = self._database.bulk_statement(_AVAILABLE, "sku text, floor int", part)
            cached.update((row[0], int(row[1])) for row in connection.exec_driver_sql(statement, tuple(bound)))
        owed = {row[0]: int(row[1]) for row in connection.exec_driver_sql(_OWED)}
        return {
            sku: {
                "product": sku,
                "title": product.title,
                "cached": cached[sku],
                "reserved": 0,
                "upstream": {},
                "sellable": max(0, cached[sku] - owed.get(sku, 0)),
                "price": None if product.price is None else str(product.price),
            }
            for sku, product in products.items()
        }
