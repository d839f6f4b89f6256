"""What is stored of suppliers' offers, for people, for shops and for metrics. Called by sync, the daemon and the API.

Only reads, and blocks: call it from a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection

from syncd.adapter import Offer
from syncd.config import Product, Settings
from syncd.errors import NotFoundError
from syncd.inventory.listing import AHEAD_S, Pending, available, offer_of
from syncd.model import Money, utc
from syncd.store.database import Database

STALE_AFTER: Final = 2.0
"""Intervals after which what was read is no longer believed."""
_NO_OFFERS: Final[dict[str, Any]] = {"kind": "none"}

_COLUMNS: Final = (
    "o.supplier, o.sku, o.title, o.price, o.currency, o.stock_kind, o.stock_quantity, o.stock_level, o.for_sale,"
    " o.min_quantity, o.max_quantity, o.step, o.data, o.seen_at, o.changed_at, o.removed_at, o.held, l.watermark"
)


# An order may take effect while a listing is read: what was sent in the second in which that began is taken off.
_BOUGHT: Final = (
    "SELECT rows.supplier, rows.sku, sum(p.quantity) FROM rows JOIN purchase p ON p.supplier = rows.supplier"
    " AND p.sku = rows.sku AND p.created_at >= rows.seen - 3600 WHERE p.state IN ('intended', 'sent')"
    " OR (p.state NOT IN ('refused', 'refunded') AND coalesce(p.sent_at, p.created_at) >= rows.seen)"
    " GROUP BY rows.supplier, rows.sku"
)


class _Row(NamedTuple):
    """An offer with its supplier's watermark: `_COLUMNS`."""

    supplier: str
    sku: str
    title: str
    price: str | None
    currency: str | None
    stock_kind: str
    stock_quantity: int | None
    stock_level: str | None
    for_sale: bool
    min_quantity: int
    max_quantity: int | None
    step: int
    data: str
    seen_at: int
    changed_at: int
    removed_at: int | None
    held: str | None
    watermark: int | None

    def seen(self, now: float) -> int:
        """When it was last known to be so: a listing confirms what it does not change, but for a price that waits."""
        times = (self.seen_at, 0 if self.held else self.watermark or 0)
        return int(max((at for at in times if at <= now + AHEAD_S), default=0))

    @property
    def money(self) -> Money | None:
        return None if self.price is None or self.currency is None else Money(Decimal(self.price), self.currency)


@dataclass(frozen=True, slots=True)
class Known:
    """How a supplier's listing stands."""

    offers: int
    held: int
    """Offers whose price waits to be confirmed."""
    pending: Pending | None
    pending_at: int | None
    watermark: int | None
    full_at: int | None
    balance: str | None
    balance_at: int | None


@dataclass(frozen=True, slots=True)
class Listed:
    """An offer as it was last listed."""

    supplier: str
    offer: Offer
    stale: bool
    """Whether that is too long ago to be believed."""
    gone: bool
    held: bool
    """Whether another price waits to be confirmed."""


class Catalogue:
    """Reads offers. ``settings`` are the configuration as it is now."""

    def __init__(self, database: Database, settings: Callable[[], Settings]) -> None:
        self._database = database
        self._settings = settings

    def find(
        self,
        *,
        supplier: str | None = None,
        product: str | None = None,
        text: str = "",
        after: str = "",
        limit: int = 100,
    ) -> dict[str, Any]:
        """Offers that are listed, by supplier and sku: {"offers": […], "next": where to go on, or None}.

        Those of suppliers that the configuration no longer has are kept, in case it has them again, and not shown.
        ``text``: words of which each must stand in the title or the sku. Raises NotFoundError for a supplier or a
        product that the configuration does not have.
        """
        settings = self._settings()
        marks = ", ".join("?" * len(settings.suppliers)) or "NULL"
        where, params = ["o.removed_at IS NULL", f"o.supplier IN ({marks})"], list[Any](settings.suppliers)
        if supplier is not None:
            if supplier not in settings.suppliers:
                raise NotFoundError("there is no such supplier", hint="list them: syncd status")
            where.append("o.supplier = ?")
            params.append(supplier)
        if product is not None:
            if product not in settings.products:
                raise NotFoundError("there is no such product", hint="add [products.SKU] to the configuration")
            mapped = settings.products[product].offers
            where.append(f"({' OR '.join(['(o.supplier = ? AND o.sku = ?)'] * len(mapped)) or '1 = 0'})")
            params += [part for one in mapped for part in (one.supplier, one.sku)]
        for word in text.split():
            where.append("(lower(o.title) LIKE ? ESCAPE '!' OR lower(o.sku) LIKE ? ESCAPE '!')")
            params += [f"%{_escaped(word.lower())}%"] * 2
        if after:
            where.append("(o.supplier, o.sku) > (?, ?)")
            params += after.partition(":")[::2]
        sql = (
            f"SELECT {_COLUMNS} FROM offer o LEFT JOIN listing l ON l.supplier = o.supplier"  # noqa: S608 - our own texts
            f" WHERE {' AND '.join(where)}"
            " ORDER BY o.supplier, o.sku LIMIT ?"
        )
        with self._database.read() as connection:
            rows = connection.exec_driver_sql(self._database.marked(sql), (*params, limit + 1)).all()
        products: dict[tuple[str, str], list[str]] = {}
        for sku, one in settings.products.items():
            for offer in one.offers:
                products.setdefault((offer.supplier, offer.sku), []).append(sku)
        refreshed = hot(settings)
        found = [self._shown(_Row._make(row), settings, products, refreshed) for row in rows[:limit]]
        return {
            "offers": found,
            "next": f"{found[-1]['supplier']}:{found[-1]['sku']}" if len(rows) > limit else None,
        }

    def unlisted(self, supplier: str) -> dict[str, str]:
        """Skus that products name and the supplier does not list → the product."""
        products = self._settings().products.items()
        named = {one.sku: sku for sku, product in products for one in product.offers if one.supplier == supplier}
        marks = ", ".join("?" * len(named)) or "NULL"
        sql = f"SELECT sku FROM offer WHERE supplier = ? AND removed_at IS NULL AND sku IN ({marks})"  # noqa: S608
        with self._database.read() as connection:
            listed = {row[0] for row in connection.exec_driver_sql(self._database.marked(sql), (supplier, *named))}
        return {sku: product for sku, product in named.items() if sku not in listed}

    def _shown(
        self,
        row: _Row,
        settings: Settings,
        products: Mapping[tuple[str, str], list[str]],
        refreshed: Mapping[tuple[str, str], float],
    ) -> dict[str, Any]:
        cost = settings.currency.landed(row.money)
        stock = {"kind": row.stock_kind, "quantity": row.stock_quantity, "level": row.stock_level}
        return {
            "supplier": row.supplier,
            "sku": row.sku,
            "title": row.title,
            "price": None if row.price is None else {"amount": row.price, "currency": row.currency},
            "cost": None if cost is None else {"amount": _short(cost), "currency": settings.currency.base},
            "stock": {name: value for name, value in stock.items() if value is not None},
            "for_sale": bool(row.for_sale),
            "min_quantity": row.min_quantity,
            "max_quantity": row.max_quantity,
            "step": row.step,
            "more": msgspec.json.decode(row.data),
            "seen_at": utc(row.seen(self._database.clock.now())),
            "changed_at": utc(row.changed_at),
            "held_price": row.held,
            "stale": self._stale(row, settings, refreshed),
            "products": products.get((row.supplier, row.sku), []),
        }

    def _stale(self, row: _Row, settings: Settings, refreshed: Mapping[tuple[str, str], float]) -> bool:
        if row.supplier not in settings.suppliers:
            return True
        interval = settings.interval(row.supplier)[0]
        interval = min(interval, refreshed.get((row.supplier, row.sku), interval))
        now = self._database.clock.now()
        return now - row.seen(now) > STALE_AFTER * interval

    def history(self, supplier: str, sku: str) -> list[dict[str, Any]]:
        """What an offer cost and held before, newest first: each until when. Raises NotFoundError."""
        with self._database.read() as connection:

            def query(sql: str) -> Sequence[Any]:
                return connection.exec_driver_sql(self._database.marked(sql), (supplier, sku)).all()

            if not query("SELECT 1 FROM offer WHERE supplier = ? AND sku = ?"):
                raise NotFoundError("there is no such offer", hint="list them: syncd offers list")
            rows = query(
                "SELECT until_at, price, currency, stock_kind, stock_quantity, stock_level FROM offer_history"
                " WHERE supplier = ? AND sku = ?"
            )
        return [
            {
                "until": utc(row[0]),
                "price": None if row[1] is None else {"amount": row[1], "currency": row[2]},
                "stock": {
                    name: value
                    for name, value in (("kind", row[3]), ("quantity", row[4]), ("level", row[5]))
                    if value is not None
                },
            }
            for row in sorted(rows, key=lambda row: row[0], reverse=True)
        ]

    # --- for shops --------------------------------------------------------------------------------------------------

    def upstream(self, connection: Connection, products: Mapping[str, Product]) -> dict[str, dict[str, Any]]:
        """Product → what suppliers hold of it: ``kind``, and for it ``quantity`` or ``level``; ``stale``; ``at``, when
        it was read. Never what it costs: what costs more than `max_cost` is not there, nor is what we have bought of it
        since it was read.
        """
        settings = self._settings()
        wanted = sorted({(one.supplier, one.sku) for product in products.values() for one in product.offers})
        rows: dict[tuple[str, str], _Row] = {}
        size = self._database.bulk_rows
        sql = (
            f"SELECT {_COLUMNS} FROM rows JOIN offer o ON o.supplier = rows.supplier AND o.sku = rows.sku"  # noqa: S608
            " LEFT JOIN listing l ON l.supplier = o.supplier"
        )
        for start in range(0, len(wanted), size):
            statement, bound = self._database.bulk_statement(
                sql, "supplier text, sku text", wanted[start : start + size]
            )
            for values in connection.exec_driver_sql(statement, tuple(bound)):
                row = _Row._make(values)
                rows[row.supplier, row.sku] = row
        self._less_what_was_bought(connection, rows)
        refreshed = hot(settings)
        return {
            sku: self._together(product, settings, rows, refreshed) if product.offers else _NO_OFFERS
            for sku, product in products.items()
        }

    def _less_what_was_bought(self, connection: Connection, rows: dict[tuple[str, str], _Row]) -> None:
        """Take from what was listed the units that we have ordered since, or are ordering."""
        now = self._database.clock.now()
        seen = {at: row.seen(now) for at, row in rows.items() if row.stock_quantity}
        wanted, size = sorted(at for at, seconds in seen.items() if seconds), self._database.bulk_rows
        for start in range(0, len(wanted), size):
            part = [(*at, seen[at]) for at in wanted[start : start + size]]
            statement, bound = self._database.bulk_statement(_BOUGHT, "supplier text, sku text, seen int", part)
            for supplier, sku, units in connection.exec_driver_sql(statement, tuple(bound)):
                row = rows[supplier, sku]
                rows[supplier, sku] = row._replace(stock_quantity=max(0, (row.stock_quantity or 0) - int(units)))

    def _together(
        self,
        product: Product,
        settings: Settings,
        rows: Mapping[tuple[str, str], _Row],
        refreshed: Mapping[tuple[str, str], float],
    ) -> dict[str, Any]:
        """One product's offers as one stock."""
        most = settings.currency.landed(product.max_cost)
        kinds: set[str] = set()
        quantity, at, fresh = 0, None, 0
        for one in product.offers:
            row = rows.get((one.supplier, one.sku))
            supplier = settings.suppliers.get(one.supplier)
            if supplier is None or not supplier.enabled:
                continue
            if row is None or self._stale(row, settings, refreshed):
                kinds.add("unknown")  # never listed, or too long ago
                continue
            fresh += 1
            at = max(at or 0, row.seen(self._database.clock.now()))
            cost = settings.currency.landed(row.money)
            dear = product.max_cost is not None and (most is None or cost is None or cost > most)
            if row.removed_at is not None or dear or not _had(row):
                continue
            quantity += row.stock_quantity or 0
            kinds.add(row.stock_level or row.stock_kind)
        stale = not fresh
        if "unlimited" in kinds:
            return {"kind": "unlimited", "stale": stale, "at": at}
        for level in ("plenty", "low"):
            if level in kinds:
                return {"kind": "coarse", "level": level, "stale": stale, "at": at}
        if "unknown" in kinds and not quantity:
            return {"kind": "unknown", "stale": stale, "at": at}
        return {"kind": "exact", "quantity": quantity, "stale": stale, "at": at}

    # --- for buying -------------------------------------------------------------------------------------------------

    def listed(self, connection: Connection, product: Product) -> list[Listed]:
        """The offers that are named for a product, as they were listed; those that never were are left out."""
        settings = self._settings()
        refreshed = hot(settings)
        found = []
        for one in product.offers:
            values = connection.exec_driver_sql(
                self._database.marked(
                    f"SELECT {_COLUMNS} FROM offer o LEFT JOIN listing l ON l.supplier = o.supplier"  # noqa: S608
                    " WHERE o.supplier = ? AND o.sku = ?"
                ),
                (one.supplier, one.sku),
            ).one_or_none()
            if values is not None:
                row = _Row._make(values)
                stale = self._stale(row, settings, refreshed)
                gone, held = row.removed_at is not None, row.held is not None
                found.append(Listed(row.supplier, offer_of(row[1:13]), stale=stale, gone=gone, held=held))
        return found

    # --- for operators and metrics ----------------------------------------------------------------------------------

    def known(self) -> dict[str, Known]:
        """Supplier → how its listing stands, of those that the configuration has."""
        with self._database.read() as connection:
            rows = connection.exec_driver_sql(
                "SELECT supplier, offers, held_offers, pending, pending_at, watermark, full_at, balance, balance_at"
                " FROM listing ORDER BY supplier"
            ).all()
        suppliers = self._settings().suppliers
        return {
            row[0]: Known(
                row[1],
                row[2],
                None if row[3] is None else msgspec.json.decode(row[3], type=Pending),
                *row[4:],
            )
            for row in rows
            if row[0] in suppliers
        }

    def stale(self, supplier: str, known: Known) -> bool:
        """Whether a supplier's listing as a whole is too old to be believed."""
        age = self._database.clock.now() - (known.watermark or 0)
        return not -AHEAD_S <= age <= STALE_AFTER * self._settings().interval(supplier)[0]


def _had(row: _Row) -> bool:
    return available(for_sale=row.for_sale, quantity=row.stock_quantity, level=row.stock_level)


def hot(settings: Settings) -> dict[tuple[str, str], float]:
    """(supplier, sku) → seconds, of the offers that are asked for by themselves."""
    found: dict[tuple[str, str], float] = {}
    for product in settings.products.values():
        for one in product.offers:
            if one.refresh is not None:
                at = (one.supplier, one.sku)
                found[at] = min(one.refresh, found.get(at, one.refresh))
    return found


def _escaped(word: str) -> str:
    return word.replace("!", "!!").replace("%", "!%").replace("_", "!_")


def _short(amount: Decimal) -> str:
    """With two decimals, or up to four where they say more."""
    return f"{amount:.4f}".removesuffix("0").removesuffix("0")
