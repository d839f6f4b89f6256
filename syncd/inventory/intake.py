"""Taking a payload of keys into the vault, exactly once, whatever stops it half-way.

A first pass hashes the payload and surveys how it is to be read; its hash names the source. The second reads cards,
seals them and writes them chunk by chunk; each chunk's transaction also moves the source's mark (bytes, last line), so
that a kill at any moment resumes behind the last whole chunk. Called by sync (feeds) and by the operator (imports), in
a worker thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy import select

from syncd.adapter import AdapterError, Consignment, Seal
from syncd.config import DEFAULT_TIMEZONE, Product
from syncd.errors import InvalidRequestError, NotFoundError
from syncd.inventory.formats import (
    Card,
    Format,
    Reading,
    Survey,
    dedupe_form,
    is_split,
    read,
    read_rows,
    survey_rows,
)
from syncd.metrics import Metrics
from syncd.model import utc
from syncd.store.database import Database, Lane, Tx, Work, Writer
from syncd.store.leases import Lease
from syncd.store.tables import quarantine, source
from syncd.vault.vault import Chunk, Counts, Origin, Slice, Vault

if TYPE_CHECKING:
    import openpyxl

log = structlog.get_logger(__name__)

TAKEN_FILE: Final = b"taken"
"""What sealed copies of payloads are bound to."""
IMPORT: Final = "import"
"""The supplier of what an operator imported by hand."""
_BLOCK: Final = 256 * 1024
_IN_FLIGHT: Final = 2
_MAX_CHUNK: Final = 2000
_MIN_CHUNK: Final = 50
_MAX_CHUNK_BYTES: Final = 4 << 20
_BUSY_S: Final = 0.004
"""How long a chunk may hold the writer while deliveries come in."""
_BUSY_SHARE: Final = 0.4
"""What part of the writer's time an import takes then: the log that it fills has to be moved, which stops all."""
_LONGEST_REST_S: Final = 0.05
_IDLE_S: Final = 0.05
_REPORT_ROWS: Final = 1000
_MAX_UNPACKED: Final = 1 << 30
_EXACT_DIGITS: Final = 10**15


@dataclass(slots=True)
class TakeReport:
    """What became of one payload. ``state``: taken, already_taken, changed (left in place) or interrupted."""

    product: str
    label: str
    source: str
    state: str
    counts: Counts
    text: str


@dataclass(slots=True)
class Progress:
    """How far a run is; read by whoever shows it, while the worker thread writes it."""

    bytes: int = 0
    total: int = 0
    counts: Counts = field(default_factory=Counts)


@dataclass(frozen=True, slots=True)
class Ask:
    """Who takes a payload, and how it may be interrupted."""

    supplier: str
    timezone: ZoneInfo
    lease: Lease | None = None
    progress: Progress = field(default_factory=Progress)
    stopping: Callable[[], bool] = lambda: False


@dataclass(slots=True)
class _Mark:
    """A source's row: how far its payload has been taken."""

    origin: Origin
    state: str
    reading: Reading
    consumed: int
    position: int


class Intake:
    """Takes payloads in. ``arrived`` is told each product that got keys, so that waiting deliveries are filled."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        vault: Vault,
        formats: Callable[[], Mapping[str, Format]],
        products: Callable[[], Mapping[str, Product]],
        metrics: Metrics,
        arrived: Callable[[str], None],
    ) -> None:
        self._database = database
        self._writer = writer
        self._vault = vault
        self._formats = formats
        self._products = products
        self._metrics = metrics
        self._arrived = arrived
        self._begin: Work[tuple[Origin, str, str, int, str, Lease | None], _Mark] = Work(
            "source", Lane.CONTROL, self._run_begin
        )
        self._close: Work[tuple[Origin, str, Lease | None], None] = Work("source_end", Lane.CONTROL, self._run_close)

    def seal(self) -> Seal:
        """What a consignment seals itself with."""
        return lambda reader, writer: self._vault.ring.seal_file(reader, writer, TAKEN_FILE)

    def take(self, consignment: Consignment, ask: Ask) -> TakeReport:
        """Take one payload. Blocks: call it from a worker thread.

        Raises NotFoundError for an unknown product, AdapterError for a payload that cannot be read at all,
        LeaseLostError once another daemon has taken the run over.
        """
        product = self._products().get(consignment.product)
        if product is None:
            raise NotFoundError(f"no product has the sku {consignment.product!r}", hint="add it to the configuration")
        digest, reading = self._survey(consignment, product)
        origin = Origin(self._vault.ids.next(), f"feed:{digest}", product.sku, product.issuer)
        mark = self._writer.call(
            self._begin, (origin, ask.supplier, consignment.label, consignment.size, reading.dump(), ask.lease)
        )
        counts = Counts()
        state = mark.state
        if state == "taken":
            state = "already_taken"
        else:
            with contextlib.closing(self._cards(consignment, mark, product, ask.timezone)) as cards:
                ended = self._write(cards, consignment, mark, ask, counts)
            if not ended and consignment.unchanged():
                return TakeReport(product.sku, consignment.label, mark.origin.name, "interrupted", counts, "")
            same = consignment.unchanged() and self._digest(consignment) == digest
            state = "taken" if same else "changed"
            self._writer.call(self._close, (mark.origin, state, ask.lease))
        text = self._report(mark.origin, consignment.label, state)
        if state == "changed":
            log.warning("payload_changed", product=product.sku, label=consignment.label)
        else:
            consignment.finish(text, self.seal())
        return TakeReport(product.sku, consignment.label, mark.origin.name, state, counts, text)

    def import_file(self, product: str, label: str, size: int, source: Callable[[], BinaryIO]) -> TakeReport:
        """Take a payload that an operator hands over; ``source`` opens it, any number of times. Blocks likewise."""
        return self.take(Upload(product, label, size, source), Ask(IMPORT, ZoneInfo(DEFAULT_TIMEZONE)))

    # --- first pass -------------------------------------------------------------------------------------------------

    def _survey(self, consignment: Consignment, product: Product) -> tuple[str, Reading]:
        split = self._formats()[product.reads_as].splitter(product.split)
        if not is_split(split):
            raise InvalidRequestError(f"product {product.sku} names an unknown splitter", hint="see products.*.split")
        if consignment.media == "xlsx":
            with consignment.open() as stream, sheet_rows(stream, consignment.label) as rows:
                reading = survey_rows((row for _, row in rows), split)
            return self._digest(consignment), reading
        survey = Survey(consignment.media)
        digest = hashlib.sha256()
        with consignment.open() as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                survey.feed(block)
        return digest.hexdigest(), survey.decide(split)

    @staticmethod
    def _digest(consignment: Consignment) -> str:
        digest = hashlib.sha256()
        with consignment.open() as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    # --- second pass ------------------------------------------------------------------------------------------------

    def _cards(
        self, consignment: Consignment, mark: _Mark, product: Product, zone: ZoneInfo
    ) -> Generator[Card, None, None]:
        fmt = self._formats()[product.reads_as]
        with consignment.open() as stream:
            if consignment.media == "xlsx":
                with sheet_rows(stream, consignment.label) as rows:
                    rest = (row for number, row in rows if number > mark.position)
                    yield from read_rows(rest, mark.reading, fmt, position=mark.position, timezone=zone)
                return
            stream.seek(mark.consumed)
            blocks = iter(lambda: stream.read(_BLOCK), b"")
            yield from read(blocks, mark.reading, fmt, offset=mark.consumed, position=mark.position, timezone=zone)

    def _write(self, cards: Iterator[Card], consignment: Consignment, mark: _Mark, ask: Ask, counts: Counts) -> bool:
        """Seal and write cards in chunks, two under way at a time; false when it had to stop before the end."""
        flying: deque[tuple[Future[Counts], float, int]] = deque()
        size, pace = _MIN_CHUNK, 0.0
        was, held_bytes, ended = mark.consumed, 0, True
        batch: list[Slice] = []
        last: Card | None = None

        def land() -> None:
            nonlocal pace, size
            future, posted, number = flying.popleft()
            landed = future.result()
            took = (time.monotonic() - posted) / (len(flying) + 1) / max(1, number)
            pace = took if not pace else 0.8 * pace + 0.2 * took
            busy = time.monotonic() - self._writer.delivered_at < 1.0
            size = int(min(_MAX_CHUNK, max(_MIN_CHUNK, (_BUSY_S if busy else _IDLE_S) / pace)))
            if busy:
                time.sleep(min(_LONGEST_REST_S, pace * number / _BUSY_SHARE))
            counts.add(landed)
            ask.progress.counts.add(landed)
            self._count(ask.supplier, mark.origin.product, landed)

        def post(upto: Card) -> None:
            nonlocal was, batch, held_bytes
            keys, held = self._vault.seal(mark.origin, batch)
            chunk = Chunk(mark.origin, keys, held, was, upto.end, upto.line_end, ask.lease)
            flying.append((self._writer.post(self._vault.intake, chunk), time.monotonic(), len(batch)))
            ask.progress.bytes += upto.end - was
            was, batch, held_bytes = upto.end, [], 0
            if len(flying) >= _IN_FLIGHT:
                land()

        for last in cards:
            key = last.key
            batch.append(
                Slice(last.position, last.raw, key, dedupe_form(key.fields) if key else "", last.reason, last.detail)
            )
            held_bytes += len(last.raw)
            # A chunk ends where reading can be taken up again; but a line of a gigabyte must not lie in memory.
            if (len(batch) >= size and last.end > was) or held_bytes > _MAX_CHUNK_BYTES:
                if ask.stopping() or not consignment.unchanged():
                    ended, batch = False, []  # what was written stays; the rest is taken up again, or read anew
                    break
                post(last)
            elif not len(batch) % _MIN_CHUNK:
                self._give_way()
        if batch and last is not None and consignment.unchanged():
            post(last)
        while flying:
            land()
        return ended

    def _give_way(self) -> None:
        """Leave the processor to deliveries that wait: they are worth more than a faster import."""
        if self._writer.queued(Lane.DELIVERY):
            time.sleep(0.0005)

    def _count(self, supplier: str, product: str, counts: Counts) -> None:
        if counts.sealed:
            self._metrics.sealed(supplier, product, counts.sealed)
            self._arrived(product)
        if counts.repeats:
            self._metrics.repeated(supplier, counts.repeats)
        for reason, number in counts.reasons.items():
            self._metrics.quarantined(supplier, reason, number)

    # --- units of work ----------------------------------------------------------------------------------------------

    def _run_begin(
        self, tx: Tx, payloads: Sequence[tuple[Origin, str, str, int, str, Lease | None]]
    ) -> list[_Mark | BaseException]:
        return [self._begin_one(tx, *payload) for payload in payloads]

    def _begin_one(
        self, tx: Tx, origin: Origin, supplier: str, label: str, size: int, reading: str, lease: Lease | None
    ) -> _Mark:
        """The source's row: found again, or made. One that had changed meanwhile and came back is taken up again."""
        if lease:
            lease.check(tx)
        ((before,),) = tx.query(
            "SELECT max(id) FROM source WHERE product = ? AND supplier = ? AND label = ? AND state = 'changed'"
            " AND name <> ?",
            (origin.product, supplier, label, origin.name),
        )
        made = tx.query(
            "INSERT INTO source (id, product, name, supplier, label, supersedes, state, size, reading, position,"
            " consumed, cards, sealed, repeats, duplicates, quarantined, started_at)"
            " VALUES (?, ?, ?, ?, ?, ?, 'taking', ?, ?, 0, 0, 0, 0, 0, 0, 0, ?)"
            " ON CONFLICT (product, name) DO NOTHING RETURNING id",
            (origin.source_id, origin.product, origin.name, supplier, label, before, size, reading, tx.at),
        )
        if made:
            tx.audit("source.begun", source=origin.name, product=origin.product, supplier=supplier)
        else:
            tx.execute(
                "UPDATE source SET state = 'taking' WHERE product = ? AND name = ? AND state = 'changed'",
                (origin.product, origin.name),
            )
        ((row_id, state, stored, consumed, position),) = tx.query(
            "SELECT id, state, reading, consumed, position FROM source WHERE product = ? AND name = ?",
            (origin.product, origin.name),
        )
        # A payload that keeps changing supersedes a whole row of sources, and repeats what each of them brought.
        chain = tx.query(
            "WITH RECURSIVE chain(id) AS (SELECT supersedes FROM source WHERE id = ? UNION"
            " SELECT s.supersedes FROM source s JOIN chain ON s.id = chain.id) SELECT id FROM chain",
            (row_id,),
        )
        superseded = frozenset(source_id for (source_id,) in chain if source_id is not None)
        found = Origin(row_id, origin.name, origin.product, origin.issuer, superseded)
        return _Mark(found, state, Reading.load(stored), consumed, position)

    def _run_close(self, tx: Tx, payloads: Sequence[tuple[Origin, str, Lease | None]]) -> list[BaseException | None]:
        for origin, state, lease in payloads:
            if lease:
                lease.check(tx)
            tx.execute(
                "UPDATE source SET state = ?, ended_at = ? WHERE id = ? AND state = 'taking'",
                (state, tx.at, origin.source_id),
            )
            tx.audit(f"source.{state}", source=origin.name, product=origin.product)
        return [None] * len(payloads)

    # --- the report -------------------------------------------------------------------------------------------------

    def _report(self, origin: Origin, label: str, state: str) -> str:
        """What became of each line, from the database alone, so that it is the same after a kill; never a key."""
        first = source.alias("first")
        with self._database.read() as connection:
            row = connection.execute(select(source).where(source.c.id == origin.source_id)).one()
            held = connection.execute(
                select(
                    quarantine.c.position,
                    quarantine.c.reason,
                    quarantine.c.detail,
                    first.c.supplier,
                    first.c.label,
                    first.c.name,
                )
                .join(first, first.c.id == quarantine.c.first_source_id, isouter=True)
                .where(quarantine.c.source_id == origin.source_id)
                .order_by(quarantine.c.position, quarantine.c.id)
                .limit(_REPORT_ROWS)
            ).all()
        said = {
            "taken": "taken",
            "already_taken": "taken before, under this or another name: nothing new",
            "changed": "LEFT IN PLACE: it changed while it was being read, and is taken again",
        }[state]
        lines = [
            f"syncd: what became of {label}",
            "",
            f"product      {row.product}",
            f"supplier     {row.supplier}",
            f"content      {row.name}" + ("" if row.label == label else f" (first as {row.label})"),
            f"state        {said}",
            f"taken        {utc(row.started_at)}" + (f" to {utc(row.ended_at)}" if row.ended_at else ""),
            "",
            f"lines read   {row.position}",
            f"cards        {row.cards}",
            f"sealed       {row.sealed}   new keys, in the vault",
            f"repeats      {row.repeats}   the same key again in this content",
            f"quarantined  {row.quarantined}   of these duplicates of keys seen before: {row.duplicates}",
        ]
        if held:
            lines += ["", "In quarantine (syncd keys quarantine list):", "  line  reason"]
            for item in held:
                why = item.detail or ""
                if item.name:
                    why = f"first came from {item.supplier}, {item.label} ({item.name[:17]}…)"
                lines.append(f"{item.position:>6}  {item.reason}" + (f": {why}" if why else ""))
        if row.quarantined > len(held):
            lines.append(f"        … and {row.quarantined - len(held)} more")
        return "\n".join(lines) + "\n"


# --- imports by hand --------------------------------------------------------------------------------------------------


class Upload(Consignment):
    """A payload that an operator hands over; ``source`` opens it from its first byte, any number of times."""

    def __init__(self, product: str, label: str, size: int, source: Callable[[], BinaryIO]) -> None:
        self.product, self.label, self.size, self._source = product, label, size, source
        ending = label.lower().rpartition(".")[2]
        self.media = "xlsx" if ending == "xlsx" else "csv" if ending == "csv" else "text"

    def open(self) -> BinaryIO:
        """The payload."""
        return self._source()

    def finish(self, report: str, seal: Seal) -> None:
        """Nothing to put away: the operator has the file and gets the report."""


# --- xlsx -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sheet_rows(stream: IO[bytes], label: str) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """(row number, cells as text) of a workbook's first sheet. Raises AdapterError for what is no sound workbook."""
    import openpyxl

    if not stream.seekable():
        stream = io.BytesIO(stream.read())
    try:
        with zipfile.ZipFile(stream) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
        book = openpyxl.load_workbook(stream, read_only=True, data_only=True) if unpacked < _MAX_UNPACKED else None
    except Exception as error:  # openpyxl raises whatever a damaged file makes it stumble over
        raise _damaged(label) from error
    if book is None:
        raise AdapterError(f"{label} unpacks to {unpacked >> 20} MiB", hint="save it as CSV")
    try:
        yield _sound(book, label)
    finally:
        book.close()


def _sound(book: openpyxl.Workbook, label: str) -> Iterator[tuple[int, list[str]]]:
    try:
        for number, row in enumerate(book.worksheets[0].iter_rows(values_only=True), start=1):
            yield number, [_cell(cell, number, label) for cell in row]
    except AdapterError:
        raise
    except Exception as error:  # the sheet is unpacked as it is read, so this is where most damage shows
        raise _damaged(label) from error


def _damaged(label: str) -> AdapterError:
    return AdapterError(f"{label} is not a sound .xlsx file", hint="open and save it again, or use CSV")


def _cell(value: Any, row: int, label: str) -> str:
    """A cell as text. A number that Excel has rounded already is no key: the whole file is refused, nothing is lost."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) >= _EXACT_DIGITS:
        raise AdapterError(
            f"{label}, row {row}: a number of more than 15 digits, which Excel has rounded",
            hint="ask the supplier for text cells, or for CSV",
        )
    return str(value)
