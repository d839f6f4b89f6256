"""The vault: seals card keys, refuses those it has seen, opens those that are delivered.

Called by inventory (what comes in), orders (what goes out) and the operator's commands. Everything that is sealed is
sealed before its transaction and opened after it: no statement ever carries a key's text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
from sqlalchemy import func, insert, select

from syncd.errors import ConflictError, KekError, LeaseLostError, NotFoundError, SyncdError, UnreadableKeyError
from syncd.model import CardKey, IdSource, KeyState, QuarantineState
from syncd.store.database import Change, Database, Lane, RetryBatch, Tx, Work, Writer
from syncd.store.leases import Lease
from syncd.store.tables import fingerprint as fingerprint_table
from syncd.store.tables import keyring as keyring_table
from syncd.store.tables import meta, vault_key
from syncd.vault.crypto import associated
from syncd.vault.keyring import Keyring, RingRow

if TYPE_CHECKING:
    from syncd.vault.crypto import Kek

log = structlog.get_logger(__name__)

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[dict[str, str], str, int]).decode
RESTORE_FENCE: Final = "restored_at"


class SeenBeforeError(ConflictError):
    """The key is in the vault already: it is never released a second time."""


@dataclass(slots=True, repr=False)
class Slice:
    """One card of a payload on its way in: its place, its exact bytes, and the key read from it or why there is none.

    ``dedupe`` is the fixed de-duplication form of the key (K5), empty when there is no key. ``supplier_key`` is the
    supplier's own id of it, where it has one: what is quarantined can be given back by it.
    """

    position: int
    raw: bytes
    key: CardKey | None
    dedupe: str
    reason: str
    detail: str
    supplier_key: str | None = None


@dataclass(slots=True, repr=False)
class SealedKey:
    """A key ready to be written. ``raw`` stays in memory only, in case the key turns out to be a duplicate."""

    id: int
    fp: bytes
    raw_fp: bytes
    expires_at: int
    position: int
    sealed: bytes
    raw: bytes
    supplier_key: str | None = None


@dataclass(slots=True, repr=False)
class SealedSlice:
    """A slice ready for quarantine."""

    id: int
    position: int
    raw_fp: bytes
    reason: str
    detail: str
    sealed: bytes
    first_source_id: int | None = None
    supplier_key: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Held:
    """A quarantined slice in the clear. ``reading`` is how its payload was read; ``origin`` has no issuer yet."""

    id: int
    origin: Origin
    supplier: str
    reading: str
    position: int
    raw: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Release:
    """Slices that were read again: (entry, where it came from, its key), all of one product. ``by`` decided it."""

    entries: Sequence[tuple[int, Origin, SealedKey]]
    by: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Entries to be moved on: ``expected`` → ``state``, noted in the audit as ``kind`` with ``note``.

    All or none: one that is not in the expected state refuses them all; with ``each``, it is only left out.
    """

    entries: Sequence[int]
    expected: QuarantineState
    state: QuarantineState
    kind: str
    note: Mapping[str, Any]
    each: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """The payload that a chunk of cards comes from; ``name`` (``feed:SHA256``) is bound into every seal (K3).

    ``supersedes`` are the sources that were this payload before it changed while it was being read.
    """

    source_id: int
    name: str
    product: str
    issuer: str = ""
    supersedes: frozenset[int] = frozenset()


@dataclass(slots=True, repr=False)
class Chunk:
    """Some cards of one payload, written in one transaction together with how far the payload has been consumed."""

    origin: Origin
    keys: list[SealedKey]
    slices: list[SealedSlice]
    was: int
    consumed: int
    position: int
    lease: Lease | None = None


@dataclass(slots=True)
class Counts:
    """What became of cards."""

    cards: int = 0
    sealed: int = 0
    repeats: int = 0
    duplicates: int = 0
    quarantined: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, other: Counts) -> None:
        """Add another count to this one."""
        self.cards += other.cards
        self.sealed += other.sealed
        self.repeats += other.repeats
        self.duplicates += other.duplicates
        self.quarantined += other.quarantined
        for reason, number in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + number


@dataclass(slots=True, repr=False)
class KeyRow:
    """A key's row as a claim reads it; ``source`` is the source's name."""

    id: int
    sealed_sku: str
    source: str
    expires_at: int
    sealed: bytes


@dataclass(slots=True, repr=False)
class OpenedKey:
    """A key in the clear, on its way to the shop that paid for it, which may add words of its own for the customer."""

    id: int
    fields: dict[str, str]
    text: str
    expires_at: int
    instructions: str | None = None
    redeem_url: str | None = None


class Vault:
    """The encrypted store of card keys. Its units of work are the only ones that write ``vault_key``'s secrets."""

    def __init__(self, database: Database, writer: Writer, ring: Keyring, ids: IdSource) -> None:
        self.database = database
        self.writer = writer
        self.ring = ring
        self.ids = ids
        self._names: dict[int, str] = {}
        self._mixed = 0
        """The last payload that held keys seen before."""
        self.intake: Work[Chunk, Counts] = Work("intake", Lane.INGEST, self._intake)
        # One or a few that somebody waits for, and a page of many that gives way to deliveries.
        self.release: Work[Release, list[SyncdError | None]] = Work("release", Lane.CONTROL, self._release)
        self.release_many: Work[Release, list[SyncdError | None]] = Work("release_many", Lane.INGEST, self._release)
        self.decide: Work[Decision, list[int]] = Work("decide", Lane.CONTROL, self._decide)
        self.decide_many: Work[Decision, list[int]] = Work("decide_many", Lane.INGEST, self._decide)
        self.expire: Work[int, int] = Work("expire", Lane.INGEST, self._expire)
        self.hold: Work[int, int] = Work("hold", Lane.INGEST, self._hold)
        self.unhold: Work[tuple[str, str, int], int] = Work("unhold", Lane.INGEST, self._unhold)

    # --- coming in --------------------------------------------------------------------------------------------------

    def seal(self, origin: Origin, slices: Iterable[Slice]) -> tuple[list[SealedKey], list[SealedSlice]]:
        """Seal cards for a `Chunk`: readable ones for the vault, the others for quarantine. Runs off the event loop."""
        cards = list(slices)
        ids = self.ids.take(len(cards))
        keys: list[SealedKey] = []
        held: list[SealedSlice] = []
        fingerprint, encrypt, scope = self.ring.fingerprint, self.ring.seal, origin.issuer
        for row_id, card in zip(ids, cards, strict=True):
            if card.key is None:
                item = self._quarantined(origin, row_id, card.position, card.raw, card.reason, card.detail)
                item.supplier_key = card.supplier_key
                held.append(item)
                continue
            key = card.key
            keys.append(
                SealedKey(
                    row_id,
                    fingerprint(scope, card.dedupe),
                    fingerprint(scope, _raw_text(card.raw)),
                    key.expires_at,
                    card.position,
                    encrypt(
                        _pack((key.fields, key.display, key.expires_at)),
                        associated("vault_key", row_id, origin.product, origin.name),
                    ),
                    card.raw,
                    card.supplier_key,
                )
            )
        return keys, held

    def set_aside(self, origin: Origin, keys: Iterable[SealedKey], reason: str) -> list[SealedSlice]:
        """Keys that were sealed for the vault, sealed for quarantine instead."""
        found = []
        for key in keys:
            item = self._quarantined(origin, key.id, key.position, key.raw, reason, "")
            item.supplier_key = key.supplier_key
            found.append(item)
        return found

    def _quarantined(
        self, origin: Origin, row_id: int, position: int, raw: bytes, reason: str, detail: str
    ) -> SealedSlice:
        sealed = self.ring.seal(raw, associated("quarantine", row_id, origin.product, origin.name))
        return SealedSlice(
            row_id, position, self.ring.fingerprint(origin.issuer, _raw_text(raw)), reason, detail, sealed
        )

    def _intake(self, tx: Tx, chunks: Sequence[Chunk]) -> list[Counts | BaseException]:
        return [self.take_in(tx, chunk) for chunk in chunks]

    def take_in(self, tx: Tx, chunk: Chunk) -> Counts:
        """Write one chunk: keys, fingerprints, quarantine, progress, audit; all or nothing. For units of work."""
        origin = chunk.origin
        if chunk.lease:
            chunk.lease.check(tx)
        counts = Counts(cards=len(chunk.keys) + len(chunk.slices))
        fresh, aside = self._write_keys(tx, chunk, counts)
        held = [*chunk.slices, *aside]
        written = 0
        if held:
            change = Change(
                "INSERT INTO quarantine (id, product, source_id, position, raw_fp, reason, detail, first_source_id,"
                " sealed, supplier_key, state, created_at) SELECT id, ?, ?, position, raw_fp, reason, detail,"
                " first_source_id, sealed, supplier_key, 'held', ? FROM rows WHERE true"
                " ON CONFLICT (source_id, position, raw_fp) DO NOTHING",
                "id int, position int, raw_fp bytes, reason text, detail text, first_source_id int, sealed bytes,"
                " supplier_key text",
                [
                    (s.id, s.position, s.raw_fp, s.reason, s.detail, s.first_source_id, s.sealed, s.supplier_key)
                    for s in held
                ],
                (origin.product, origin.source_id, tx.at),
            )
            (written,) = tx.change([change])
        counts.cards -= len(held) - written  # after a kill, the pieces of a line of megabytes come once more
        for item in held:
            counts.reasons[item.reason] = counts.reasons.get(item.reason, 0) + 1
        counts.sealed, counts.quarantined = len(fresh), written
        moved = tx.execute(
            "UPDATE source SET consumed = ?, position = ?, cards = cards + ?, sealed = sealed + ?,"
            " repeats = repeats + ?, duplicates = duplicates + ?, quarantined = quarantined + ?"
            " WHERE id = ? AND consumed = ? AND state = 'taking'",
            (
                chunk.consumed,
                chunk.position,
                counts.cards,
                counts.sealed,
                counts.repeats,
                counts.duplicates,
                counts.quarantined,
                origin.source_id,
                chunk.was,
            ),
        )
        if moved != 1:
            msg = f"{origin.name} is being taken by somebody else"
            raise LeaseLostError(msg)
        tx.audit(
            "keys.taken",
            source=origin.name,
            product=origin.product,
            upto=chunk.consumed,
            sealed=counts.sealed,
            first=fresh[0].id if fresh else None,
            last=fresh[-1].id if fresh else None,
            repeats=counts.repeats,
            quarantined=counts.quarantined,
        )
        return counts

    def _write_keys(self, tx: Tx, chunk: Chunk, counts: Counts) -> tuple[list[SealedKey], list[SealedSlice]]:
        """Write a chunk's keys: (those that were new, those to set aside).

        Most payloads hold new keys only. So they are written as if all were, which the unique fingerprints decide; a
        payload in which they find a repeat is looked up first from there on.
        """
        if not chunk.keys:
            return [], []
        if self._mixed != chunk.origin.source_id:
            tx.command("SAVEPOINT as_if_new")
            if self._insert_keys(tx, chunk.origin, chunk.keys):
                tx.command("RELEASE SAVEPOINT as_if_new")
                return list(chunk.keys), []
            tx.command("ROLLBACK TO SAVEPOINT as_if_new")
            tx.command("RELEASE SAVEPOINT as_if_new")
            self._mixed = chunk.origin.source_id
        fresh, aside = self._sort(tx, chunk, counts)
        if fresh and not self._insert_keys(tx, chunk.origin, fresh):
            raise RetryBatch  # another daemon wrote one of them just now: sort again
        return fresh, aside

    def _sort(self, tx: Tx, chunk: Chunk, counts: Counts) -> tuple[list[SealedKey], list[SealedSlice]]:
        """Which keys are new, and which were seen before, by their own source (a repeat) or another (quarantine)."""
        mine = {chunk.origin.source_id} | chunk.origin.supersedes
        seen = self._seen(tx, {fp for key in chunk.keys for fp in (key.fp, key.raw_fp)})
        fresh: list[SealedKey] = []
        aside: list[SealedSlice] = []
        for key in chunk.keys:
            first = seen.get(key.raw_fp) or seen.get(key.fp)
            if first is None:
                fresh.append(key)
                seen[key.fp] = seen[key.raw_fp] = chunk.origin.source_id
            elif first in mine and key.raw_fp in seen:
                counts.repeats += 1
            else:
                counts.duplicates += 1
                # The same key spelled otherwise in one source is kept too: were case to matter, it would be money.
                reason = "respelled" if first in mine else "duplicate"
                item = self._quarantined(chunk.origin, key.id, key.position, key.raw, reason, "")
                item.first_source_id, item.supplier_key = first, key.supplier_key
                aside.append(item)
        return fresh, aside

    def _seen(self, tx: Tx, fps: set[bytes]) -> dict[bytes, int]:
        """Fingerprint → id of the source that sold that key first."""
        rows = tx.bulk(
            "SELECT f.fp, k.source_id FROM rows JOIN fingerprint f ON f.fp = rows.fp"
            " JOIN vault_key k ON k.id = f.key_id",
            "fp bytes",
            [(fp,) for fp in sorted(fps)],
        )
        return {bytes(fp): source_id for fp, source_id in rows}

    def _insert_keys(self, tx: Tx, origin: Origin, keys: Sequence[SealedKey]) -> bool:
        """Write keys with their fingerprints; whether nobody had any of these, which otherwise leaves half of them."""
        # In order: neighbouring entries share pages, and daemons that meet lock in the same order.
        prints = sorted({(fp, key.id) for key in keys for fp in (key.fp, key.raw_fp)})
        written = tx.change(
            [
                Change(
                    "INSERT INTO vault_key (id, product, sealed_sku, source_id, position, state, expires_at, sealed)"
                    " SELECT id, ?, ?, ?, position, 'available', expires_at, sealed FROM rows",
                    "id int, position int, expires_at int, sealed bytes",
                    [(key.id, key.position, key.expires_at, key.sealed) for key in keys],
                    (origin.product, origin.product, origin.source_id),
                ),
                Change(
                    "INSERT INTO fingerprint (fp, key_id) SELECT fp, key_id FROM rows WHERE true"
                    " ON CONFLICT (fp) DO NOTHING",
                    "fp bytes, key_id int",
                    prints,
                ),
            ]
        )
        return written == [len(keys), len(prints)]

    # --- going out --------------------------------------------------------------------------------------------------

    def source_names(self, tx: Tx, source_ids: set[int]) -> dict[int, str]:
        """The names of sources, remembered: they never change."""
        unknown = source_ids - self._names.keys()
        if unknown:
            rows = tx.bulk(
                "SELECT s.id, s.name FROM rows JOIN source s ON s.id = rows.id",
                "id int",
                [(source_id,) for source_id in sorted(unknown)],
            )
            self._names.update(rows)
        return self._names

    def open(self, row: KeyRow, product: str) -> OpenedKey:
        """Open one key. Raises UnreadableKeyError for a record that was altered, or moved from row or product."""
        if row.sealed_sku != product:
            msg = f"key {row.id} was sealed for another product"
            raise UnreadableKeyError(msg)
        plain = self.ring.open(row.sealed, associated("vault_key", row.id, row.sealed_sku, row.source))
        fields, text, expires_at = _unpack(plain)
        if expires_at != row.expires_at:
            msg = f"the expiry date of key {row.id} was altered"
            raise UnreadableKeyError(msg)
        return OpenedKey(row.id, fields, text, expires_at)

    # --- quarantine -------------------------------------------------------------------------------------------------

    def open_slices(self, rows: Iterable[Mapping[Any, Any]]) -> Iterator[Held | UnreadableKeyError]:
        """Quarantined slices in the clear, or why one does not open.

        A row has id, product, position, sealed, source_id, source (its name), supplier, reading.
        """
        for row in rows:
            origin = Origin(row["source_id"], row["source"], row["product"])
            bound = associated("quarantine", row["id"], origin.product, origin.name)
            try:
                raw = self.ring.open(bytes(row["sealed"]), bound)
            except UnreadableKeyError as error:
                yield error
            else:
                yield Held(row["id"], origin, row["supplier"], row["reading"], row["position"], raw)

    def known(self, origin: Origin, cards: Sequence[Slice]) -> list[bool]:
        """Whether each card's key was seen before, by what is committed now or by a card before it. Blocks."""
        scope = origin.issuer
        prints = [
            (self.ring.fingerprint(scope, card.dedupe), self.ring.fingerprint(scope, _raw_text(card.raw)))
            for card in cards
        ]
        found: list[bool] = []
        with self.database.read() as connection:
            wanted = {fp for pair in prints for fp in pair}
            seen = {
                bytes(fp)
                for (fp,) in connection.execute(
                    select(fingerprint_table.c.fp).where(fingerprint_table.c.fp.in_(sorted(wanted)))
                )
            }
        for pair in prints:
            found.append(bool(seen.intersection(pair)))
            seen.update(pair)
        return found

    def _release(self, tx: Tx, payloads: Sequence[Release]) -> list[list[SyncdError | None] | BaseException]:
        return [self._release_all(tx, payload) for payload in payloads]

    def _release_all(self, tx: Tx, payload: Release) -> list[SyncdError | None]:
        """Put re-read slices into the vault: for each, None or why not. One that was seen before says so from then on.

        Whatever was read outside of this transaction is looked at again in it: the entry's state under its lock, the
        key's fingerprints against all that have come in meanwhile.
        """
        states = _states(tx, [entry for entry, _, _ in payload.entries])
        seen = self._seen(tx, {fp for _, _, key in payload.entries for fp in (key.fp, key.raw_fp)})
        outcomes: list[SyncdError | None] = []
        fresh: list[tuple[int, Origin, SealedKey]] = []
        repeats: list[tuple[int, int]] = []
        for entry, origin, key in payload.entries:
            refused = _refused(entry, states.get(entry), QuarantineState.HELD)
            first = seen.get(key.raw_fp) or seen.get(key.fp)
            if refused is None and first is not None:
                name = self.source_names(tx, {first})[first]
                refused = SeenBeforeError(f"this key is in the vault already, from {name}", hint="drop it instead")
                repeats.append((entry, first))
            elif refused is None:
                seen[key.fp] = seen[key.raw_fp] = origin.source_id
                fresh.append((entry, origin, key))
            outcomes.append(refused)
        for origin in dict.fromkeys(origin for _, origin, _ in fresh):
            if not self._insert_keys(tx, origin, [key for _, of, key in fresh if of == origin]):
                raise RetryBatch  # another daemon wrote one of them just now
        if fresh:
            _move(tx, [entry for entry, _, _ in fresh], QuarantineState.RELEASED)
            tx.audit(
                "quarantine.released",
                entries=[entry for entry, _, _ in fresh],
                keys=[key.id for _, _, key in fresh],
                product=fresh[0][1].product,
                by=payload.by,
            )
        self._name_first(tx, repeats, payload.by)
        return outcomes

    @staticmethod
    def _name_first(tx: Tx, repeats: Sequence[tuple[int, int]], by: str) -> None:
        """What turned out to be a key that was seen before says so, and who sold it first."""
        changed = [
            entry
            for (entry,) in tx.bulk(
                "UPDATE quarantine SET reason = 'duplicate', detail = '', first_source_id = rows.first_id FROM rows"
                " WHERE quarantine.id = rows.id AND quarantine.first_source_id IS NULL RETURNING quarantine.id",
                "id int, first_id int",
                sorted(repeats),
            )
        ]
        if changed:
            tx.audit("quarantine.seen_before", entries=sorted(changed), by=by)

    def _decide(self, tx: Tx, payloads: Sequence[Decision]) -> list[list[int] | BaseException]:
        return [self._decide_one(tx, payload) for payload in payloads]

    @staticmethod
    def _decide_one(tx: Tx, wanted: Decision) -> list[int] | BaseException:
        """Move entries on; returns which."""
        states = _states(tx, wanted.entries)
        moved: list[int] = []
        for entry in wanted.entries:
            refused = _refused(entry, states.get(entry), wanted.expected)
            if refused is None:
                moved.append(entry)
            elif not wanted.each:
                return refused
        if moved:
            _move(tx, moved, wanted.state)
            tx.audit(wanted.kind, entries=moved, **wanted.note)
        return moved

    # --- expiry, restore --------------------------------------------------------------------------------------------

    def _expire(self, tx: Tx, limits: Sequence[int]) -> list[int | BaseException]:
        return [self._move(tx, KeyState.EXPIRED, limit, "AND expires_at <= ?", (tx.at,)) for limit in limits]

    def _hold(self, tx: Tx, limits: Sequence[int]) -> list[int | BaseException]:
        return [self._move(tx, KeyState.HELD, limit, "", ()) for limit in limits]

    def _move(self, tx: Tx, state: KeyState, limit: int, where: str, params: tuple[Any, ...]) -> int:
        """Move up to ``limit`` available keys to ``state``; returns how many were moved."""
        lock = " FOR UPDATE SKIP LOCKED" if tx.postgresql else ""
        moved = tx.query(
            f"UPDATE vault_key SET state = '{state}' WHERE id IN (SELECT id FROM vault_key"  # noqa: S608 - constants
            f" WHERE state = 'available' {where} ORDER BY id LIMIT {limit:d}{lock}) RETURNING product",
            params,
        )
        for product in sorted({product for (product,) in moved}):
            tx.audit(f"keys.{state}", product=product, keys=sum(row[0] == product for row in moved))
        return len(moved)

    def _unhold(self, tx: Tx, payloads: Sequence[tuple[str, str, int]]) -> list[int | BaseException]:
        outcomes: list[int | BaseException] = []
        for product, by, limit in payloads:
            moved = tx.execute(
                "UPDATE vault_key SET state = 'available' WHERE id IN (SELECT id FROM vault_key"
                " WHERE state = 'held' AND product = ? ORDER BY id LIMIT ?) AND state = 'held'",
                (product, limit),
            )
            if moved:
                tx.audit("keys.unheld", product=product, keys=moved, by=by)
            outcomes.append(moved)
        return outcomes


def _raw_text(raw: bytes) -> str:
    return raw.strip().decode("utf-8", "surrogateescape") if raw.isascii() else _folded(raw)


def _folded(raw: bytes) -> str:
    text = raw.strip().decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def _states(tx: Tx, entries: Sequence[int]) -> dict[int, str]:
    """Entry → its state, locked until the transaction ends."""
    lock = " ORDER BY q.id FOR UPDATE OF q" if tx.postgresql else ""
    rows = tx.bulk(
        f"SELECT q.id, q.state FROM rows JOIN quarantine q ON q.id = rows.id{lock}",  # noqa: S608 - constant
        "id int",
        [(entry,) for entry in sorted(set(entries))],
    )
    return {row[0]: row[1] for row in rows}


def _refused(entry: int, state: str | None, expected: QuarantineState) -> SyncdError | None:
    if state is None:
        return NotFoundError(f"there is no quarantine entry {entry}", hint="list them: syncd keys quarantine list")
    if state != expected:
        return ConflictError(f"quarantine entry {entry} is {state} already", hint="nothing is left to decide")
    return None


def _move(tx: Tx, entries: Sequence[int], state: QuarantineState) -> None:
    ended = None if state in {QuarantineState.HELD, QuarantineState.RETURNING} else tx.at
    tx.bulk(
        "UPDATE quarantine SET state = ?, resolved_at = ? FROM rows WHERE quarantine.id = rows.id",
        "id int",
        [(entry,) for entry in sorted(entries)],
        (str(state), ended),
    )


# --- the key ring's rows ----------------------------------------------------------------------------------------------


def load_ring(database: Database, kek: Kek | None, *, create: Kek | None = None) -> Keyring:
    """The key ring of this database. ``create`` is the key to make one under when there is none yet (K11).

    Raises KekError (exit 78) when there is a ring and no key for it, or the wrong one, or the ring was altered.
    """
    with database.read() as connection:
        rows = [
            RingRow(row.id, row.purpose, row.kek_id, bytes(row.wrapped), row.created_at, row.active)
            for row in connection.execute(select(keyring_table).order_by(keyring_table.c.id))
        ]
    if rows:
        if kek is None:
            msg = "this database has a key ring, but its key-encryption key is not there"
            raise KekError(msg, hint="put back the KEK that [vault] kek names, or its recovery copy")
        return Keyring.unwrap(kek, rows)
    if create is None:
        msg = "this database has no key ring yet"
        raise KekError(msg, hint="start the daemon once: syncd run")
    ring = Keyring.create(create, int(database.clock.now()))
    with database.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN" if database.postgresql else "BEGIN IMMEDIATE")
        if database.postgresql:
            connection.exec_driver_sql("LOCK TABLE keyring IN EXCLUSIVE MODE")
        if connection.execute(select(func.count()).select_from(keyring_table)).scalar():
            connection.exec_driver_sql("ROLLBACK")
            return load_ring(database, create)  # another daemon was first: its ring counts
        connection.execute(
            insert(keyring_table),
            [
                {
                    "id": row.id,
                    "purpose": row.purpose,
                    "kek_id": row.kek_id,
                    "wrapped": row.wrapped,
                    "created_at": row.created_at,
                    "active": row.active,
                }
                for row in ring.rows()
            ],
        )
        connection.exec_driver_sql("COMMIT")
    return ring


def has_ring(database: Database) -> bool:
    """Whether this database has a key ring: if so, its KEK is never made anew."""
    with database.read() as connection:
        return bool(connection.execute(select(func.count()).select_from(keyring_table)).scalar())


def restored_at(database: Database) -> str | None:
    """When this database was restored from a backup, as long as nobody has run `syncd recover` since."""
    with database.read() as connection:
        value = connection.execute(select(meta.c.value).where(meta.c.name == RESTORE_FENCE)).scalar()
    return None if value is None else str(value)


def key_counts(database: Database) -> dict[tuple[str, str], int]:
    """(product, state) → number of keys: for metrics and `syncd status`."""
    with database.read() as connection:
        columns = vault_key.c.product, vault_key.c.state
        rows = connection.execute(select(*columns, func.count()).group_by(*columns))
        return {(row[0], row[1]): row[2] for row in rows}
