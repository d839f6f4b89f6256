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

from syncd.config import MAX_QUANTITY, Product
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
    " AND withdrawn_at IS NULL) - (SELECT count(*) FROM reserved_key WHERE reservation_id = delivery.id))"
    " FROM delivery WHERE state = 'pending' GROUP BY product"
)
_RESERVED: Final = (
    "SELECT k.product, count(*) FROM reserved_key h JOIN vault_key k ON k.id = h.key_id GROUP BY k.product"
)
_PROMISED: Final = "SELECT product, sum(promised) FROM reservation WHERE state = 'held' GROUP BY product"
_COARSE: Final = {"low": 1, "plenty": 10}
"""Units that a supplier which names no number is counted on for."""
_encode = msgspec.json.Encoder(order="deterministic").encode


def units(upstream: Mapping[str, Any]) -> int:
    """How many units of a product can be counted on at suppliers, as `Catalogue.upstream` tells of it: none of what is
    stale or not known, as many as one delivery may have of what is unlimited.
    """
    if upstream.get("stale"):
        return 0
    if upstream["kind"] == "unlimited":
        return MAX_QUANTITY
    return int(upstream.get("quantity") or _COARSE.get(upstream.get("level", ""), 0))


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Stock at one moment. ``products`` are those it was made for, ``head`` is the last audit entry it saw."""

    rows: dict[str, dict[str, Any]]
    free: dict[str, int]
    """Keys that nobody is owed or promised; less than none where more was promised than the vault has."""
    products: Mapping[str, Product]
    head: int
    synced_at: int | None
    stale_after: float
    counted_at: float
    at: float
    cost: float


def _known(product: str, products: Mapping[str, Any]) -> None:
    if product not in products:
        raise UnknownProductError("there is no such product", hint="add [products.SKU] to the configuration")


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

        A row: product, title, cached (keys that can be delivered now), reserved (keys that are held for orders),
        promised (units of reservations that are not in the vault), upstream, sellable (cached less what paid orders
        still wait for; where it is bought on demand, with what is upstream less what is promised), price, age_s,
        stale. Never what the shop pays. Raises UnknownProductError.
        """
        if product is not None:
            _known(product, self._products())
        found = self._last
        if found is None or not self._serves(found):
            async with self._lock:  # who waited here finds what the first one brought
                found = self._last
                if found is None or not self._serves(found):
                    found = self._last = await asyncio.to_thread(self._renewed, found)
        if product is not None:
            _known(product, found.rows)  # it may have left just now
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
                rows, free, counted_at = last.rows, last.free, last.counted_at
            else:
                rows, free = self._count(connection, products)
                counted_at = begun
        rows = {
            sku: {
                **row,
                "upstream": upstream[sku],
                "sellable": max(0, free[sku] + (units(upstream[sku]) if products[sku].on_shortage == "buy" else 0)),
            }
            for sku, row in rows.items()
        }
        cost = self._clock.monotonic() - begun
        return _Snapshot(rows, free, products, head, synced_at, stale_after, counted_at, begun, cost)

    def _count(
        self, connection: Connection, products: Mapping[str, Product]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
        now = self._clock.now()
        wanted = [(sku, int(now + product.min_life)) for sku, product in products.items()]
        cached: dict[str, int] = {}
        for start in range(0, len(wanted), self._database.bulk_rows):
            part = wanted[start : start + self._database.bulk_rows]
            statement, bound = self._database.bulk_statement(_AVAILABLE, "sku text, floor int", part)
            cached.update((row[0], int(row[1])) for row in connection.exec_driver_sql(statement, tuple(bound)))
        owed, reserved, promised = (
            {row[0]: int(row[1]) for row in connection.exec_driver_sql(sql)} for sql in (_OWED, _RESERVED, _PROMISED)
        )
        rows: dict[str, dict[str, Any]] = {
            sku: {
                "product": sku,
                "title": product.title,
                "cached": cached[sku],
                "reserved": reserved.get(sku, 0),
                "promised": promised.get(sku, 0),
                "upstream": {},
                "sellable": 0,
                "price": None if product.price is None else str(product.price),
            }
            for sku, product in products.items()
        }
        return rows, {sku: cached[sku] - owed.get(sku, 0) - promised.get(sku, 0) for sku in products}
