"""What suppliers list: compared with what is stored, judged, and only changes written. Called by sync and the API.

A listing is read to its end before a row of it is written (P1): page by page each offer is hashed, and what is stored
under another hash, or not at all, goes to a file without a name. Then the whole is judged. A listing that looks wrong
is held: the last good data stays until a second run shows the same, or the operator accepts it. A single price that
jumps holds its offer only. Every write checks the run's lease (K13), and none undoes a later reading.

`judge`, `jump`, `Findings` and `Sketch` decide, and do no I/O; `Offers` carries it out.
"""

from __future__ import annotations

import hashlib
import heapq
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection

from syncd.adapter import BadResponse, Offer, Page
from syncd.config import Settings
from syncd.errors import ConflictError, NotFoundError
from syncd.metrics import Metrics
from syncd.model import Money, utc
from syncd.store.database import Database, Lane, Tx, Work, Writer
from syncd.store.leases import Lease

HISTORY: Final = 32
"""How many earlier prices and stocks are kept of an offer."""
FEW: Final = 5
"""A change of fewer offers than this is never a mass one."""
KEPT_S: Final = 30 * 86400
"""For so long an offer that was removed is remembered, with its history."""
_MOST_OFFERS: Final = 1_000_000
_MOST_EMPTY: Final = 10_000
_SKETCH: Final = 256
_SAME: Final = 0.9
"""What part of two suspicious changes must be the same for the second to confirm the first."""
_SLACK: Final = 1.1
"""How much larger than what the operator saw an accepted change may have become."""
_LOAD: Final = 4000
_MIN_CHUNK: Final = 50
_MAX_CHUNK: Final = 2000
_BUSY_S: Final = 0.004
_IDLE_S: Final = 0.02
_NAMED: Final = 3
_SEEN: Final = b"seen"
_LENGTH: Final = struct.Struct("=I")

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode
_json = msgspec.json.Encoder(order="deterministic").encode
_rows_of = msgspec.json.Decoder(list[list[Any]]).decode

Row = tuple[Any, ...]
"""An offer as it is stored: sku, title, price, currency, stock kind, quantity, level, for_sale (0 or 1), smallest
and largest quantity, step, and the rest as JSON."""


# --- pure: one offer --------------------------------------------------------------------------------------------------


class Before(NamedTuple):
    """What is stored of an offer."""

    price: str | None
    currency: str | None
    kind: str
    quantity: int | None
    level: str | None
    for_sale: bool
    live: bool
    """Whether it is listed: not removed."""
    held: str | None
    """A price that waits to be confirmed, as ``0.09 CNY``."""
    hash: bytes


def row_of(offer: Offer) -> Row:
    """An offer in its canonical form. When the supplier touched it last is left out: that alone is no change."""
    price, stock = offer.price, offer.stock
    data = "{}"
    if offer.tiers or offer.region or offer.group or offer.data:
        rest = {
            "tiers": [[quantity, str(each)] for quantity, each in offer.tiers],
            "region": offer.region,
            "group": offer.group,
            "data": dict(offer.data),
        }
        data = _json({name: value for name, value in rest.items() if value}).decode()
    return (
        offer.sku,
        offer.title,
        None if price is None else str(price.amount),
        None if price is None else price.currency,
        stock.kind,
        stock.quantity,
        stock.level,
        int(offer.for_sale),
        offer.min_quantity,
        offer.max_quantity,
        offer.step,
        data,
    )


def digest(packed: bytes) -> bytes:
    """The 16 bytes by which a stored offer is known to be unchanged."""
    return hashlib.blake2b(packed, digest_size=16).digest()


def available(*, for_sale: object, quantity: int | None, level: str | None) -> bool:
    """Whether something can be had of an offer, as far as the supplier says: unknown is not zero."""
    return bool(for_sale) and quantity != 0 and level != "out"


def jump(before: Before, price: str | None, currency: str | None, limit: float) -> tuple[str, float]:
    """("price" | "currency" | "", new price / old): whether a price moved by more than ``limit`` either way.

    A price that was or becomes unknown has not jumped. One that falls to zero, or rises from it, has.
    """
    if before.price is None or price is None:
        return "", 1.0
    if before.currency != currency:
        return "currency", 1.0
    old, new = Decimal(before.price), Decimal(price)
    if old == new:
        return "", 1.0
    factor = float(new / old) if old else float("inf")
    return ("price" if factor > limit or factor * limit < 1 else ""), factor


def _worth_recording(before: Before, row: Row) -> bool:
    """The history is of prices, and of whether there was any: not of each unit sold."""
    was = (before.price, before.currency, before.kind, before.quantity == 0, before.level)
    return was != (row[2], row[3], row[4], row[5] == 0, row[6])


# --- pure: a listing --------------------------------------------------------------------------------------------------


class Sketch:
    """Knows a set of texts again by its smallest hashes, however large it is."""

    def __init__(self, hashes: Sequence[int] = ()) -> None:
        self._heap = [-number for number in hashes]
        heapq.heapify(self._heap)

    def add(self, text: str) -> None:
        """Put one more in; each at most once."""
        number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")
        if len(self._heap) < _SKETCH:
            heapq.heappush(self._heap, -number)
        elif number < -self._heap[0]:
            heapq.heapreplace(self._heap, -number)

    @property
    def hashes(self) -> list[int]:
        """What to store of it."""
        return sorted(-number for number in self._heap)

    def likeness(self, other: Sketch) -> float:
        """What part of both sets together is in both: exact for small sets, an estimate for large ones."""
        mine, others = set(self.hashes), set(other.hashes)
        both = sorted(mine | others)[:_SKETCH]
        return sum(number in mine and number in others for number in both) / len(both) if both else 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a listing may change before it is held: see docs/configuration.md."""

    drop: float
    """Percent of the offers."""
    jump: float
    """Factor of a price."""
    jumps: float
    """Percent of the offers."""


@dataclass(slots=True)
class Findings:
    """What a listing would change."""

    known: int = 0
    """Offers that were listed before."""
    had: int = 0
    """Of them, those of which something could be had."""
    seen: int = 0
    gone: int = 0
    lost: int = 0
    """Of those that could be had: gone, out of stock, or no longer for sale."""
    jumps: int = 0
    currencies: int = 0
    lowest: float = 1.0
    highest: float = 1.0
    sketch: Sketch = field(default_factory=Sketch)

    def compare(self, before: Before, row: Row, limit: float, *, accepted: bool = False) -> str:
        """Take one changed offer into account; "price" or "currency" when that jumped and waits to be confirmed.

        A second run that shows the same price confirms it; ``accepted`` by the operator, one near it will do.
        """
        had = before.live and available(for_sale=before.for_sale, quantity=before.quantity, level=before.level)
        if had and not available(for_sale=row[7], quantity=row[5], level=row[6]):
            self.lost += 1
            self.sketch.add(f"lost {row[0]}")
        kind, factor = jump(before, row[2], row[3], limit)
        if not kind or (before.held is not None and _confirms(before.held, row, accepted=accepted)):
            return ""
        self.jumps += kind == "price"
        self.currencies += kind == "currency"
        self.lowest, self.highest = min(self.lowest, factor), max(self.highest, factor)
        self.sketch.add(f"price {row[0]} {priced(row)}")
        return kind

    def missing(self, sku: str, *, had: bool) -> None:
        """Take into account that a complete listing lacks an offer."""
        self.gone += 1
        self.lost += had
        self.sketch.add(f"lost {sku}")

    @property
    def numbers(self) -> dict[str, Any]:
        """For the audit, and to compare with what an operator accepted."""
        return {
            "known": self.known,
            "lost": self.lost,
            "gone": self.gone,
            "jumps": self.jumps,
            "currencies": self.currencies,
            "lowest": self.lowest,
            "highest": min(self.highest, 1e9),  # a price that rises from zero
        }


def priced(row: Row) -> str | None:
    """A row's price as it is held: amount and currency."""
    return None if row[2] is None else f"{row[2]} {row[3]}"


def _confirms(held: str, row: Row, *, accepted: bool) -> bool:
    if held == priced(row):
        return True
    amount, _, currency = held.partition(" ")
    was, now = Decimal(amount), Decimal(row[2])
    return accepted and currency == row[3] and was <= now * Decimal(_SLACK) and now <= was * Decimal(_SLACK)


def judge(found: Findings, limits: Limits) -> dict[str, str]:
    """Kind of alarm → what is suspicious, in words; empty for a listing that may be taken."""
    alarms: dict[str, str] = {}
    emptied = found.known > 0 and found.gone == found.known and not found.seen
    lost = found.lost >= FEW and found.lost * 100 > limits.drop * found.had
    gone = found.gone >= FEW and found.gone * 100 > limits.drop * found.known
    if emptied:
        alarms["drop"] = f"the listing is empty, and {found.known} offers were known"
    elif lost:
        alarms["drop"] = f"{found.lost} of {found.had} offers are gone or out of stock"
    elif gone:
        alarms["drop"] = f"{found.gone} of {found.known} offers are gone"
    moved = found.jumps + found.currencies
    if moved >= FEW and moved * 100 > limits.jumps * found.known:
        if found.currencies:
            alarms["currency"] = f"{found.currencies} of {found.known} offers have another currency than before"
        if found.jumps:
            alarms["price"] = (
                f"{found.jumps} of {found.known} prices jumped (x{found.lowest:.3g} to x{found.highest:.3g})"
            )
    return alarms


@dataclass(frozen=True, slots=True)
class Pending:
    """A suspicious change that was held, as it is stored."""

    alarms: dict[str, str]
    numbers: dict[str, Any]
    sketch: list[int]
    accepted: bool = False
    """Whether it is being taken over: a run that was killed while it did so goes on with it."""

    def confirmed_by(self, found: Findings, alarms: Mapping[str, str]) -> bool:
        """Whether a second run shows the same."""
        return set(alarms) <= set(self.alarms) and Sketch(self.sketch).likeness(found.sketch) >= _SAME

    def covers(self, found: Findings, alarms: Mapping[str, str]) -> bool:
        """Whether a listing is no worse than this one, which the operator has seen and accepted."""
        mine, theirs = self.numbers, found.numbers
        counts = all(theirs[name] <= mine[name] * _SLACK for name in ("lost", "gone", "jumps", "currencies"))
        far = theirs["lowest"] * _SLACK >= mine["lowest"] and theirs["highest"] <= mine["highest"] * _SLACK
        return set(alarms) <= set(self.alarms) and counts and far


# --- carrying it out --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Taken:
    """What became of one listing. ``problem`` says why it was held, ``left_out`` which offers were."""

    state: str
    """taken, held or interrupted."""
    full: bool = False
    seen: int = 0
    changed: int = 0
    removed: int = 0
    problem: str | None = None
    left_out: str | None = None


@dataclass(slots=True)
class State:
    """How far a supplier's listing is known: its row of `listing`."""

    watermark: int | None = None
    good_at: int | None = None
    full_at: int | None = None
    pending: Pending | None = None
    accepted_at: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One run's part that lists offers. ``pages`` is `Link.pages` of the supplier."""

    supplier: str
    lease: Lease
    run: int
    pages: Callable[[datetime | None, Callable[[], bool]], Iterator[Page]]
    incremental: bool
    """Whether the adapter understands ``since``."""
    by_hand: bool = False
    stopping: Callable[[], bool] = lambda: False


@dataclass(slots=True)
class _Change:
    """Rows on their way into the database, one unit of work. ``rows``: offers; ``held``: prices that wait."""

    lease: Lease
    at: int
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    recorded: list[tuple[str]] = field(default_factory=list)
    held: list[tuple[str, str]] = field(default_factory=list)
    gone: list[tuple[str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows) + len(self.held) + len(self.gone)


@dataclass(frozen=True, slots=True)
class _End:
    """The last write of a listing: what is known now, and what the audit says of it."""

    lease: Lease
    columns: dict[str, Any]
    kind: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)


_COLUMNS: Final = (
    "sku text, hash bytes, title text, price text, currency text, stock_kind text, stock_quantity int,"
    " stock_level text, for_sale int, min_quantity int, max_quantity int, step int, data text, seen_at int, kept int"
)
_NAMES: Final = [column.split()[0] for column in _COLUMNS.split(", ")[:-1]]
_UPSERT: Final = (
    f"INSERT INTO offer (supplier, changed_at, recorded, {', '.join(_NAMES)})"  # noqa: S608 - names of our own
    f" SELECT ?, ?, kept, {', '.join('for_sale = 1' if name == 'for_sale' else name for name in _NAMES)}"
    " FROM rows WHERE true ON CONFLICT (supplier, sku) DO UPDATE SET changed_at = excluded.changed_at,"
    f" {', '.join(f'{name} = excluded.{name}' for name in _NAMES if name != 'sku')},"
    " recorded = offer.recorded + excluded.recorded, removed_at = NULL, held = NULL, held_at = NULL"
    " WHERE offer.seen_at <= excluded.seen_at"
)
# What it was before, into the slot of the oldest entry.
_RECORD: Final = (
    "INSERT INTO offer_history (supplier, sku, slot, until_at, price, currency, stock_kind, stock_quantity,"
    " stock_level) SELECT o.supplier, o.sku, o.recorded % ?, ?, o.price, o.currency, o.stock_kind, o.stock_quantity,"
    " o.stock_level FROM rows JOIN offer o ON o.supplier = ? AND o.sku = rows.sku WHERE o.seen_at <= ?"
    " ON CONFLICT (supplier, sku, slot) DO UPDATE SET until_at = excluded.until_at, price = excluded.price,"
    " currency = excluded.currency, stock_kind = excluded.stock_kind, stock_quantity = excluded.stock_quantity,"
    " stock_level = excluded.stock_level"
)
_HOLD: Final = (
    "UPDATE offer SET held = rows.held, held_at = ? FROM rows WHERE offer.supplier = ? AND offer.sku = rows.sku"
)
_REMOVE: Final = (
    "UPDATE offer SET removed_at = ?, changed_at = ?, held = NULL, held_at = NULL FROM rows"
    " WHERE offer.supplier = ? AND offer.sku = rows.sku AND offer.removed_at IS NULL AND offer.seen_at <= ?"
)
_BEFORE: Final = (
    "SELECT o.sku, o.price, o.currency, o.stock_kind, o.stock_quantity, o.stock_level, o.for_sale,"
    " o.removed_at IS NULL, o.held, o.hash FROM rows JOIN offer o ON o.supplier = ? AND o.sku = rows.sku"
)
_KNOWN: Final = (
    "SELECT sku, hash, CASE WHEN for_sale AND coalesce(stock_quantity, 1) <> 0 AND coalesce(stock_level, '') <> 'out'"
    " THEN 1 ELSE 0 END AS had, CASE WHEN held IS NULL THEN 0 ELSE 1 END AS waits FROM offer"
    " WHERE supplier = ? AND sku > ? AND removed_at IS NULL ORDER BY sku LIMIT ?"
)
_END_COLUMNS: Final = ("watermark", "good_at", "full_at", "offers", "held_offers", "pending", "pending_at", "accepted_at")


class Offers:
    """Keeps what suppliers list. ``folder`` is where a listing's changes wait while it is read."""

    def __init__(self, writer: Writer, metrics: Metrics, settings: Callable[[], Settings], folder: Path) -> None:
        self._writer = writer
        self._database: Database = writer.database
        self._clock = writer.database.clock
        self._metrics = metrics
        self._settings = settings
        self._folder = folder
        self._change: Work[_Change, None] = Work("offers", Lane.INGEST, self._run_change)
        self._end: Work[_End, None] = Work("listing", Lane.CONTROL, self._run_end)
        self._accept: Work[tuple[str, str], bool] = Work("listing_accepted", Lane.CONTROL, self._run_accept)

    # --- one listing (blocks: call it in the run's own thread) ------------------------------------------------------

    def take(self, task: Task) -> Taken:
        """Read one listing, and write what it changes: all of it, or nothing.

        Raises BadResponse for a listing that cannot be one (a sku twice, a page twice, fewer offers than it said),
        whatever the link raises, and LeaseLostError. Then, and when it is held, the last good data stays.
        """
        began = int(self._clock.now())
        state = self.state(task.supplier)
        since = self._since(task, state, began)
        known, had = self._load(task.supplier)
        found = Findings(known=len(known), had=had)
        with tempfile.TemporaryFile(dir=self._folder) as spool:
            full = self._read(task, state, since, known, found, spool) and since is None
            if task.stopping():
                return Taken("interrupted")
            gone = [sku for sku, before in known.items() if before is not _SEEN] if full else []
            del known
            for start in range(0, len(gone), _LOAD):
                for sku, before in self._before(task.supplier, gone[start : start + _LOAD]).items():
                    had_it = available(for_sale=before.for_sale, quantity=before.quantity, level=before.level)
                    found.missing(sku, had=had_it)
            alarms = judge(found, self.limits(task.supplier))
            if alarms and not self._stands(state, found, alarms):
                return self._hold(task, found, alarms, full=full)
            return self._write(task, state, began, found, alarms, gone, spool, full=full)

    def limits(self, supplier: str) -> Limits:
        """What a supplier's listing may change before it is held."""
        settings = self._settings()
        return Limits(*(settings.of(supplier, name) for name in ("max_drop", "max_jump", "max_jumps")))

    def state(self, supplier: str) -> State:
        """How far a supplier's listing is known."""
        with self._database.read() as connection:
            row = connection.exec_driver_sql(
                self._database.marked(
                    "SELECT watermark, good_at, full_at, pending, accepted_at FROM listing WHERE supplier = ?"
                ),
                (supplier,),
            ).one_or_none()
        if row is None:
            return State()
        pending = None if row[3] is None else msgspec.json.decode(row[3], type=Pending)
        return State(row[0], row[1], row[2], pending, row[4])

    def _since(self, task: Task, state: State, now: int) -> datetime | None:
        """From when on to ask for changes; None for all offers.

        All are asked for by hand, once in a while, and to confirm a change that was held.
        """
        settings = self._settings()
        full_due = state.full_at is None or now - state.full_at >= settings.of(task.supplier, "full_every")
        if not task.incremental or task.by_hand or full_due or state.pending or state.watermark is None:
            return None
        return datetime.fromtimestamp(state.watermark - settings.of(task.supplier, "overlap"), UTC)

    def _load(self, supplier: str) -> tuple[dict[str, bytes], int]:
        """(sku → hash of every offer that is listed, how many of them could be had). b"" where a price waits."""
        known: dict[str, bytes] = {}
        had, last = 0, ""
        while True:
            rows = self._gather(_KNOWN, "sku text, hash bytes, had int, waits int", (supplier, last, _LOAD))
            for sku, stored, could, waits in rows:
                known[sku] = b"" if waits else stored
                had += could
            if len(rows) < _LOAD:
                return known, had
            # PostgreSQL sorts as the database's collation says, SQLite as Python does, though not inside a document.
            last = rows[-1][0] if self._database.postgresql else max(row[0] for row in rows)

    def _read(
        self,
        task: Task,
        state: State,
        since: datetime | None,
        known: dict[str, bytes],
        found: Findings,
        spool: IO[bytes],
    ) -> bool:
        """Read every page, put what changed into the spool; whether this is all that the supplier lists."""
        full, empty, total = True, 0, None
        pages: set[bytes] = set()
        limit, accepted = self.limits(task.supplier).jump, state.accepted_at is not None
        for page in task.pages(since, task.stopping):
            at = int(self._clock.now())
            full = full and not page.incremental
            total = page.total if page.total is not None else total
            changed: list[tuple[Row, bytes]] = []
            whole = hashlib.blake2b(digest_size=16)
            news: list[str] = []
            for offer in page.offers:
                row = row_of(offer)
                own = digest(_pack(row))
                whole.update(own)
                sku = row[0]
                before = known.get(sku)
                if before is _SEEN:
                    news.append(sku)
                elif before != own:
                    changed.append((row, own))
                known[sku] = _SEEN
            name = whole.digest()
            if page.offers and name in pages:
                raise BadResponse("a page of the listing came twice", hint="the adapter's paging is wrong")
            pages.add(name)
            if news:
                raise BadResponse(
                    f"the listing names {news[0]} twice", hint="an offer's sku must be unique: see the adapter"
                )
            found.seen += len(page.offers)
            empty += not page.offers
            if found.seen > _MOST_OFFERS or empty > _MOST_EMPTY:
                raise BadResponse("the listing does not end", hint="the adapter's paging is wrong")
            self._compare(task.supplier, changed, at, found, spool, limit, accepted=accepted)
            if self._writer.queued(Lane.DELIVERY):
                time.sleep(0.0005)  # deliveries are worth more than a faster listing
        if full and since is None and total is not None and found.seen < total and not task.stopping():
            raise BadResponse(
                f"the listing ended after {found.seen} of {total} offers", hint="it is read again at the next run"
            )
        return full

    def _compare(
        self,
        supplier: str,
        changed: Sequence[tuple[Row, bytes]],
        at: int,
        found: Findings,
        spool: IO[bytes],
        limit: float,
        *,
        accepted: bool,
    ) -> None:
        """Compare what changed with what is stored, and spool it: row, hash, time, for the history?, jumped?"""
        for start in range(0, len(changed), _LOAD):
            part = changed[start : start + _LOAD]
            stored = self._before(supplier, [row[0] for row, _ in part])
            block = []
            for row, own in part:
                before = stored.get(row[0])
                kind, kept = "", False
                if before is not None:
                    kind = found.compare(before, row, limit, accepted=accepted)
                    kept = _worth_recording(before, row)
                block.append((*row[:1], own, *row[1:], at, int(kept), kind))
            packed = _pack(block)
            spool.write(_LENGTH.pack(len(packed)))
            spool.write(packed)

    def _before(self, supplier: str, skus: Sequence[str]) -> dict[str, Before]:
        """What is stored of these offers, removed ones too."""
        stored: dict[str, Before] = {}
        size = self._database.bulk_rows
        with self._database.read() as connection:
            for start in range(0, len(skus), size):
                rows = [(sku,) for sku in skus[start : start + size]]
                statement, bound = self._database.bulk_statement(_BEFORE, "sku text", rows)
                for row in connection.exec_driver_sql(statement, (*bound, supplier)):
                    stored[row[0]] = Before(*row[1:6], bool(row[6]), bool(row[7]), row[8], bytes(row[9]))
        return stored

    @staticmethod
    def _stands(state: State, found: Findings, alarms: Mapping[str, str]) -> bool:
        """Whether a suspicious listing is taken all the same."""
        pending = state.pending
        if pending is None:
            return False
        sanctioned = pending.accepted or state.accepted_at is not None
        return pending.confirmed_by(found, alarms) or (sanctioned and pending.covers(found, alarms))

    def _hold(self, task: Task, found: Findings, alarms: dict[str, str], *, full: bool) -> Taken:
        """Keep the last good data, and remember what was wrong."""
        pending = Pending(alarms, found.numbers, found.sketch.hashes)
        body = {"supplier": task.supplier, "run": task.run, "alarms": sorted(alarms), **_whole(found.numbers)}
        columns = {"pending": _json(pending).decode(), "pending_at": int(self._clock.now()), "accepted_at": None}
        self._writer.call(self._end, _End(task.lease, columns, "listing.held", body))
        for kind in alarms:
            self._metrics.listing_alarm(task.supplier, kind)
        why = "; ".join(alarms.values())
        problem = (
            f"the last good listing is kept: {why} (a second run that shows the same confirms it;"
            f" or: syncd offers accept {task.supplier})"
        )
        return Taken("held", full, found.seen, problem=problem)

    def _write(  # noqa: PLR0913, PLR0917 - everything that was found out
        self,
        task: Task,
        state: State,
        began: int,
        found: Findings,
        alarms: Mapping[str, str],
        gone: Sequence[str],
        spool: IO[bytes],
        *,
        full: bool,
    ) -> Taken:
        """Write what changed, in chunks that a delivery does not notice; the watermark moves last."""
        taken = Taken("taken", full, found.seen, removed=len(gone))
        if alarms and state.pending:
            body = {"supplier": task.supplier, "run": task.run, "alarms": sorted(alarms), **_whole(found.numbers)}
            body["by"] = "the operator" if state.accepted_at is not None else "a second run"
            accepted = {"pending": _json(msgspec.structs_replace(state.pending, accepted=True)).decode()}
            self._writer.call(self._end, _End(task.lease, accepted, "listing.accepted", body))
        held: list[str] = []
        stream = _Chunks(self._writer, self._change, lambda: _Change(task.lease, began))
        for row in _spooled(spool):
            kind = row[-1]
            if kind and not alarms:  # alone, a price that jumps holds its own offer
                held.append(row[0])
                stream.add("held", (row[0], priced(row[0:1] + row[2:])), None)
                self._metrics.listing_alarm(task.supplier, "offer")
                continue
            taken.changed += 1
            stream.add("rows", row[:-1], (row[0],) if row[-2] else None)
        for sku in gone:
            stream.add("gone", (sku,), None)
        stream.flush()
        columns: dict[str, Any] = {"watermark": began, "good_at": int(self._clock.now()), "pending": None}
        columns |= {"pending_at": None, "accepted_at": None}
        if full:
            columns["full_at"] = columns["good_at"]
        body = {"supplier": task.supplier, "run": task.run, "offers": len(held), "first": held[:_NAMED]}
        self._writer.call(self._end, _End(task.lease, columns, "offers.held" if held else "", body))
        if taken.changed or taken.removed:
            self._metrics.offers_changed(task.supplier, taken.changed + taken.removed)
        if held:
            more = f" and {len(held) - _NAMED} more" if len(held) > _NAMED else ""
            taken.left_out = (
                f"the last good price is kept of {', '.join(held[:_NAMED])}{more}: it jumped"
                f" (the next run confirms it; or: syncd offers accept {task.supplier})"
            )
        return taken

    # --- units of work ----------------------------------------------------------------------------------------------

    def _run_change(self, tx: Tx, payloads: Sequence[_Change]) -> list[None]:
        for change in payloads:
            change.lease.check(tx)
            supplier = change.lease.supplier
            if change.recorded:
                tx.bulk(_RECORD, "sku text", change.recorded, (HISTORY, tx.at, supplier, tx.at))
            if change.rows:
                tx.bulk(_UPSERT, _COLUMNS, change.rows, (supplier, tx.at))
            if change.held:
                tx.bulk(_HOLD, "sku text, held text", change.held, (tx.at, supplier))
            if change.gone:
                tx.bulk(_REMOVE, "sku text", change.gone, (tx.at, tx.at, supplier, change.at))
        return [None] * len(payloads)

    def _run_end(self, tx: Tx, payloads: Sequence[_End]) -> list[None]:
        for end in payloads:
            end.lease.check(tx)
            supplier = end.lease.supplier
            tx.execute(
                "INSERT INTO listing (supplier, offers, held_offers) VALUES (?, 0, 0) ON CONFLICT (supplier) DO NOTHING",
                (supplier,),
            )
            names = ", ".join(f"{name} = ?" for name in end.columns)
            tx.execute(f"UPDATE listing SET {names} WHERE supplier = ?", (*end.columns.values(), supplier))  # noqa: S608
            if end.kind:
                tx.audit(end.kind, **end.body)
        return [None] * len(payloads)
