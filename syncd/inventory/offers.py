"""What suppliers list: compared with what is stored, judged, and only changes written. Called by sync and the API.

A listing is read to its end before a row of it is written (P1): page by page each offer is hashed, and what is stored
under another hash, or not at all, goes to a file without a name. Then the whole is judged. A listing that looks wrong
is held: the last good data stays until a second run shows the same, or the operator accepts it. A single price that
jumps holds its offer only. Every write checks the run's lease (K13), and none undoes a later reading.

`syncd.inventory.listing` decides; what is here carries it out.
"""

from __future__ import annotations

import hashlib
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from syncd.adapter import BadResponse, Page
from syncd.config import Settings
from syncd.errors import ConflictError
from syncd.inventory.listing import (
    AHEAD_S,
    Before,
    Findings,
    Limits,
    Pending,
    Row,
    available,
    digest,
    judge,
    jump,
    priced,
    row_of,
    worth_recording,
)
from syncd.metrics import Metrics
from syncd.model import Money
from syncd.store.database import Database, Lane, Tx, Work, Writer
from syncd.store.leases import Lease

HISTORY: Final = 32
"""How many earlier prices and stocks are kept of an offer."""
KEPT_S: Final = 30 * 86400
"""For so long an offer that was removed is remembered, with its history."""
_MOST_OFFERS: Final = 1_000_000
_MOST_EMPTY: Final = 10_000
_LOAD: Final = 4000
_FORGET: Final = 100
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


@dataclass(slots=True)
class Taken:
    """What became of one listing. ``problem`` says why it was held, ``left_out`` which offers were."""

    state: str
    """taken, held or interrupted."""
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
    held_offers: int = 0
    config: str | None = None


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
    config: str = ""
    """A fingerprint of the supplier's configuration: under another one, all offers are listed anew."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An offer that is due to be asked for by itself, and when it is due next (Unix seconds): its fence."""

    supplier: str
    sku: str
    refresh: float
    due: float = 0.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What an offer is now, as of ``at``; ``row`` is None when the supplier says that it is not for sale."""

    claim: Claim
    at: int
    row: Row | None


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
    f"INSERT INTO offer (supplier, changed_at, recorded, {', '.join(_NAMES)}, known_price, known_currency)"  # noqa: S608 - names of our own
    f" SELECT ?, ?, kept, {', '.join('for_sale = 1' if name == 'for_sale' else name for name in _NAMES)}"
    ", price, currency FROM rows WHERE true ON CONFLICT (supplier, sku) DO UPDATE SET changed_at = excluded.changed_at,"
    f" {', '.join(f'{name} = excluded.{name}' for name in _NAMES if name != 'sku')},"
    " known_price = coalesce(excluded.price, offer.known_price),"
    " known_currency = coalesce(excluded.currency, offer.known_currency),"
    " recorded = offer.recorded + excluded.recorded, removed_at = NULL, held = NULL, held_at = NULL"
    f" WHERE offer.seen_at <= excluded.seen_at OR offer.seen_at > excluded.changed_at + {AHEAD_S}"
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
    " WHERE offer.supplier = ? AND offer.sku = rows.sku AND offer.removed_at IS NULL"
    " AND (offer.seen_at <= ? OR offer.seen_at > ?)"
)
_BEFORE: Final = (
    "SELECT o.sku, o.price, o.currency, o.stock_kind, o.stock_quantity, o.stock_level, o.for_sale,"
    " o.removed_at IS NULL, o.held, o.data, o.known_price, o.known_currency"
    " FROM rows JOIN offer o ON o.supplier = ? AND o.sku = rows.sku"
)
_ONE: Final = (
    "SELECT price, currency, stock_kind, stock_quantity, stock_level, for_sale, removed_at IS NULL, held, data,"
    " known_price, known_currency, hash"
    " FROM offer WHERE supplier = ? AND sku = ? AND refresh_at = ? AND (seen_at <= ? OR seen_at > ?)"
)
_KNOWN: Final = (
    "SELECT sku, hash, CASE WHEN for_sale AND coalesce(stock_quantity, 1) <> 0 AND coalesce(stock_level, '') <> 'out'"
    " THEN 1 ELSE 0 END AS had, CASE WHEN held IS NULL THEN 0 ELSE 1 END AS waits FROM offer"
    " WHERE supplier = ? AND sku > ? AND removed_at IS NULL ORDER BY sku LIMIT ?"
)


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
        self._purge: Work[Lease, bool] = Work("offers_forgotten", Lane.INGEST, self._run_purge)
        self._end: Work[_End, None] = Work("listing", Lane.CONTROL, self._run_end)
        self.CLAIM: Work[Sequence[Claim], list[Claim]] = Work("offers_due", Lane.CONTROL, self._run_claim)
        self.READ: Work[Reading, bool] = Work("offer", Lane.CONTROL, self._run_read)
        self.ACCEPT: Work[tuple[str, str], None] = Work("listing_accepted", Lane.CONTROL, self._run_accept)

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
                return self._hold(task, found, alarms)
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
                    "SELECT watermark, good_at, full_at, pending, accepted_at, held_offers, config FROM listing"
                    " WHERE supplier = ?"
                ),
                (supplier,),
            ).one_or_none()
        if row is None:
            return State()
        pending = None if row[3] is None else msgspec.json.decode(row[3], type=Pending)
        return State(row[0], row[1], row[2], pending, *row[4:])

    def _since(self, task: Task, state: State, now: int) -> datetime | None:
        """From when on to ask for changes; None for all offers.

        All are asked for by hand, once in a while, of a supplier that is configured otherwise since, and to confirm
        what was held.
        """
        settings = self._settings()
        every = settings.of(task.supplier, "full_every")
        full_due = state.full_at is None or not -AHEAD_S <= now - state.full_at < every
        waits = state.pending is not None or state.held_offers > 0
        if not task.incremental or task.by_hand or full_due or waits or state.watermark is None:
            return None
        if state.watermark > now + AHEAD_S or state.config != task.config:
            return None
        return datetime.fromtimestamp(state.watermark - settings.of(task.supplier, "overlap"), UTC)

    def _load(self, supplier: str) -> tuple[dict[str, bytes], int]:
        """(sku → hash of every offer that is listed, how many of them could be had). b"" where a price waits."""
        known: dict[str, bytes] = {}
        had, last = 0, ""
        while True:
            with self._database.read() as connection:
                rows = self._database.gather(
                    connection, _KNOWN, "sku text, hash bytes, had int, waits int", (supplier, last, _LOAD)
                )
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
            twice: list[str] = []
            for offer in page.offers:
                row = row_of(offer)
                own = digest(_pack(row))
                whole.update(own)
                sku = row[0]
                before = known.get(sku)
                if before is _SEEN:
                    twice.append(sku)
                elif before != own:
                    changed.append((row, own))
                    found.fresh += before is None
                known[sku] = _SEEN
            name = whole.digest()
            if page.offers and name in pages:
                raise BadResponse("a page of the listing came twice", hint="the adapter's paging is wrong")
            pages.add(name)
            if twice:
                raise BadResponse(
                    f"the listing names {twice[0]} twice", hint="an offer's sku must be unique: see the adapter"
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
                    found.fresh -= bool(kind) and not before.live  # removed once, it stays so until it is confirmed
                    kept = worth_recording(before, row)
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
                    stored[row[0]] = _before(row[1:])
        return stored

    @staticmethod
    def _stands(state: State, found: Findings, alarms: Mapping[str, str]) -> bool:
        """Whether a suspicious listing is taken all the same."""
        pending = state.pending
        if pending is None:
            return False
        sanctioned = pending.accepted or state.accepted_at is not None
        return pending.confirmed_by(found, alarms) or (sanctioned and pending.covers(found, alarms))

    def _hold(self, task: Task, found: Findings, alarms: dict[str, str]) -> Taken:
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
        return Taken("held", found.seen, problem=problem)

    def _write(  # noqa: PLR0913 - everything that was found out
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
        taken = Taken("taken", found.seen, removed=len(gone))
        if alarms and state.pending:
            body = {"supplier": task.supplier, "run": task.run, "alarms": sorted(alarms), **_whole(found.numbers)}
            body["by"] = "the operator" if state.accepted_at is not None else "a second run"
            accepted = {"pending": _json(replace(state.pending, accepted=True)).decode()}
            self._writer.call(self._end, _End(task.lease, accepted, "listing.accepted", body))
        whole = bool({"price", "currency"} & set(alarms))
        held: list[str] = []
        stream = _Chunks(self._writer, self._change, lambda: _Change(task.lease, began))
        for row in _spooled(spool):
            kind = row[-1]
            if kind and not whole:  # alone, a price that jumps holds its own offer
                held.append(row[0])
                stream.add("held", (row[0], priced(row[:1] + row[2:])), None)
                self._metrics.listing_alarm(task.supplier, "offer")
                continue
            taken.changed += 1
            stream.add("rows", row[:-1], (row[0],) if row[-2] else None)
        for sku in gone:
            stream.add("gone", (sku,), None)
        stream.flush()
        columns: dict[str, Any] = {"watermark": began, "good_at": int(self._clock.now())}
        columns |= {"offers": found.known + found.fresh - len(gone)}
        columns |= {"pending": None, "pending_at": None, "accepted_at": None, "config": task.config}
        if full:
            columns["full_at"] = columns["good_at"]
        body = {"supplier": task.supplier, "run": task.run, "offers": len(held), "first": held[:_NAMED]}
        self._writer.call(self._end, _End(task.lease, columns, "offers.held" if held else "", body))
        while full and self._writer.call(self._purge, task.lease):
            pass
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
                tx.bulk(_REMOVE, "sku text", change.gone, (tx.at, tx.at, supplier, change.at, tx.at + AHEAD_S))
        return [None] * len(payloads)

    def _run_purge(self, tx: Tx, payloads: Sequence[Lease]) -> list[bool]:
        """Forget some offers that were removed long ago; whether there may be more."""
        left = []
        for lease in payloads:
            lease.check(tx)
            old = tx.query(
                "SELECT sku FROM offer WHERE supplier = ? AND removed_at < ? ORDER BY removed_at LIMIT ?",
                (lease.supplier, tx.at - KEPT_S, _FORGET),
            )
            if old:
                for table in ("offer_history", "offer"):
                    tx.bulk(
                        f"DELETE FROM {table} WHERE supplier = ? AND sku IN (SELECT sku FROM rows)",  # noqa: S608
                        "sku text",
                        old,
                        (lease.supplier,),
                    )
            left.append(len(old) == _FORGET)
        return left

    def _run_end(self, tx: Tx, payloads: Sequence[_End]) -> list[None]:
        for end in payloads:
            end.lease.check(tx)
            supplier = end.lease.supplier
            tx.execute(
                "INSERT INTO listing (supplier, offers, held_offers) VALUES (?, 0, 0)"
                " ON CONFLICT (supplier) DO NOTHING",
                (supplier,),
            )
            names = ", ".join(f"{name} = ?" for name in end.columns)
            tx.execute(
                f"UPDATE listing SET {names},"  # noqa: S608 - names of our own
                " held_offers = (SELECT count(*) FROM offer WHERE supplier = ? AND held IS NOT NULL)"
                " WHERE supplier = ?",
                (*end.columns.values(), supplier, supplier),
            )
            if end.kind:
                tx.audit(end.kind, **end.body)
        return [None] * len(payloads)

    def _run_claim(self, tx: Tx, payloads: Sequence[Sequence[Claim]]) -> list[list[Claim]]:
        """Those that nobody else asks for: whoever moves the time does the work, and its write checks that time."""
        now = tx.now()
        return [
            [
                replace(claim, due=now + claim.refresh)
                for claim in claims
                if tx.execute(
                    "UPDATE offer SET refresh_at = ? WHERE supplier = ? AND sku = ? AND removed_at IS NULL"
                    " AND (refresh_at IS NULL OR refresh_at <= ? OR refresh_at > ?)",
                    (now + claim.refresh, claim.supplier, claim.sku, now, now + claim.refresh + AHEAD_S),
                )
            ]
            for claims in payloads
        ]

    def _run_read(self, tx: Tx, payloads: Sequence[Reading]) -> list[bool]:
        return [self._read_one(tx, reading) for reading in payloads]

    def _read_one(self, tx: Tx, reading: Reading) -> bool:
        """Write one offer that was asked for by itself; whether its price jumped. Only a listing confirms that."""
        claim, row = reading.claim, reading.row
        lock = " FOR UPDATE" if tx.postgresql else ""
        found = tx.query(_ONE + lock, (claim.supplier, claim.sku, claim.due, reading.at, tx.at + AHEAD_S))
        if not found:
            return False  # somebody else has read it later, or asks for it now
        before, stored = _before(found[0][:-1]), found[0][-1]
        where = (claim.supplier, claim.sku)
        if row is None:
            tx.execute(
                "UPDATE offer SET for_sale = ?, hash = ?, seen_at = ?, changed_at = ? WHERE supplier = ? AND sku = ?",
                (False, b"", reading.at, tx.at, *where),
            )
            return False
        own = digest(_pack(row))
        if own == bytes(stored) and before.held is None:
            tx.execute("UPDATE offer SET seen_at = ? WHERE supplier = ? AND sku = ?", (reading.at, *where))
            return False
        if jump(before, row, self.limits(claim.supplier).jump)[0]:
            tx.bulk(_HOLD, "sku text, held text", [(claim.sku, priced(row))], (tx.at, claim.supplier))
            if before.held is None:
                tx.audit("offers.held", supplier=claim.supplier, offers=1, first=[claim.sku])
            return before.held is None
        kept = worth_recording(before, row)
        if kept:
            tx.bulk(_RECORD, "sku text", [(claim.sku,)], (HISTORY, tx.at, claim.supplier, reading.at))
        written = (*row[:1], own, *row[1:], reading.at, int(kept))
        tx.bulk(_UPSERT, _COLUMNS, [written], (claim.supplier, tx.at))
        return False

    def balance(self, lease: Lease, balance: Money) -> None:
        """Keep what our account at a supplier holds. Blocks."""
        columns = {"balance": str(balance), "balance_at": int(self._clock.now())}
        self._writer.call(self._end, _End(lease, columns))

    def _run_accept(self, tx: Tx, payloads: Sequence[tuple[str, str]]) -> list[BaseException | None]:
        """Note that the operator has seen what is held."""
        outcomes: list[BaseException | None] = []
        for supplier, by in payloads:
            waits = tx.execute(
                "UPDATE listing SET accepted_at = ? WHERE supplier = ? AND (pending IS NOT NULL OR held_offers > 0)",
                (tx.at, supplier),
            )
            if waits:
                tx.audit("listing.sanctioned", supplier=supplier, by=by)
                outcomes.append(None)
            else:
                outcomes.append(ConflictError(f"nothing of supplier {supplier} is held", hint="see: syncd status"))
        return outcomes


class _Chunks:
    """Hands changes to the writer in units of a few milliseconds, each acknowledged before the next."""

    def __init__(self, writer: Writer, work: Work[_Change, None], new: Callable[[], _Change]) -> None:
        self._writer, self._work, self._new = writer, work, new
        self._size, self._change = _MIN_CHUNK, new()

    def add(self, part: str, row: tuple[Any, ...], recorded: tuple[str] | None) -> None:
        """One more row of a part of `_Change`; ``recorded`` if what it was goes into the history."""
        getattr(self._change, part).append(row)
        if recorded:
            self._change.recorded.append(recorded)
        if len(self._change) >= self._size:
            self.flush()

    def flush(self) -> None:
        """Write what is left."""
        number = len(self._change)
        if not number:
            return
        posted = time.monotonic()
        self._writer.call(self._work, self._change)
        pace = (time.monotonic() - posted) / number
        busy = posted - self._writer.delivered_at < 1.0
        wanted = int((_BUSY_S if busy else _IDLE_S) / pace)
        self._size = min(_MAX_CHUNK, max(_MIN_CHUNK, min(wanted, 2 * self._size)))
        self._change = self._new()


def _spooled(spool: IO[bytes]) -> Iterator[Row]:
    """What `Offers._compare` has put away, from its first row."""
    spool.seek(0)
    while head := spool.read(_LENGTH.size):
        yield from map(tuple, _unpack(spool.read(*_LENGTH.unpack(head))))


def _before(row: Sequence[Any]) -> Before:
    return Before._make((*row[:5], bool(row[5]), bool(row[6]), *row[7:]))


def _whole(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 6) for name, value in numbers.items()}
