"""The operator's work on what lies in quarantine, and on keys that are held after a restore (K6).

Called by the operator's API. Nothing here shows a key but `reveal`, which leaves an audit entry. Every change is
written together with its audit entry, and can be asked for again: what is decided already is left as it is. Work on
many goes page by page, a few entries a transaction in the lane of ingest, so that deliveries never wait for it.
"""

from __future__ import annotations

import asyncio
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy import Connection, RowMapping, func, select

from syncd.adapter import Auth, Config, NotSent, RateLimited, Refused
from syncd.config import DEFAULT_TIMEZONE, Product, Settings
from syncd.errors import ConflictError, InvalidRequestError, NotFoundError, SyncdError, UnreadableKeyError
from syncd.inventory.formats import Card, Format, Reading, Survey, dedupe_form, is_split, read_one
from syncd.inventory.formats.reading import pair_name
from syncd.inventory.intake import IMPORT
from syncd.model import QuarantineState, utc
from syncd.store.database import Lane, Tx, Work, Writer
from syncd.store.tables import quarantine, source
from syncd.vault.vault import RESTORE_FENCE, Decision, Held, Release, SeenBeforeError, Slice, Vault, restored_at

log = structlog.get_logger(__name__)

MAX_PAGE: Final = 500
_AT_ONCE: Final = 2000
_CHUNK: Final = 50
"""Entries of one transaction of work on many: a few milliseconds of the writer."""
_PAGE_S: Final = 1.0
"""For how long one request works on many; the caller then asks for the next page."""
_REST: Final = 1.5
"""How long work on many rests after each chunk while deliveries come, as a multiple of what the chunk took."""
_LONGEST_REST_S: Final = 0.05
_EXAMPLES: Final = 5
_SPLITTERS: Final = "line, pair, labelled, csv, json, pair:SEP or a template"
HELD: Final = "unproven_after_restore"
"""The reason under which keys held after a restore are counted; they lie in the vault, not here."""
UNANSWERED: Final = "return_unanswered"
"""The reason under which entries are counted that were offered back to their supplier, which has not answered."""
_CERTAINLY_NOT: Final = (NotSent, Refused, Auth, Config, RateLimited)
"""What a supplier or the way to it says when nothing was done, for sure."""


class StillUnreadableError(ConflictError):
    """Read again, the slice still is no key."""

    code = "still_unreadable"


class NotReturnableError(ConflictError):
    """Its supplier takes nothing back, or takes no complaint; or nobody knows its order there."""

    code = "not_returnable"


class Upstream(Protocol):
    """A supplier to be asked, by the verbs of `syncd.adapter.Adapter`."""

    @property
    def capabilities(self) -> frozenset[str]:
        """The verbs that it has."""

    async def acall(self, verb: str, *args: Any) -> Any:
        """Ask it. Raises the errors of `syncd.adapter`."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries are meant: those to which all of this applies. ``older_than`` is seconds, ``upto`` the last id."""

    product: str | None = None
    supplier: str | None = None
    reason: str | None = None
    older_than: float | None = None
    upto: int | None = None

    def on(self, query: Any, now: float) -> Any:
        """A query of entries joined to their source, narrowed down."""
        if self.product is not None:
            query = query.where(quarantine.c.product == self.product)
        if self.supplier is not None:
            query = query.where(source.c.supplier == self.supplier)
        if self.reason is not None:
            query = query.where(quarantine.c.reason == self.reason)
        if self.older_than is not None:
            query = query.where(quarantine.c.created_at <= int(now - self.older_than))
        if self.upto is not None:
            query = query.where(quarantine.c.id <= self.upto)
        return query


@dataclass(slots=True)
class Reread:
    """What came of reading many again. ``next`` is where to go on, None at the end."""

    seen: int = 0
    keys: int = 0
    """How many became keys; in a dry run, would become."""
    duplicates: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)
    """Reason → how many still are no key."""
    decided: int = 0
    """How many somebody else decided meanwhile."""
    examples: list[str] = field(default_factory=list)
    """Some of the keys, masked as their format says."""
    next: int | None = None

    def refused(self, reason: str) -> None:
        """One more that is no key."""
        self.unreadable[reason] = self.unreadable.get(reason, 0) + 1


@dataclass(frozen=True, slots=True)
class _How:
    """How slices of a product are read again."""

    product: Product
    fmt: Format
    split: str | None
    zones: Mapping[str, ZoneInfo]

    @property
    def configured(self) -> str | None:
        return self.product.split or self.fmt.split or None

    def guesses(self, held: Held) -> bool:
        """Whether one slice alone would have to say what its whole payload left open: a person decides that, and not
        for many at once.
        """
        told = self.split or self.configured
        return self.fmt.kind != "opaque" and told in {None, "auto"} and _undecided(_stored(held.reading))

    def read(self, held: Held) -> Card:
        reading = _reading(held.raw, held.reading, self.split, self.configured)
        return read_one(held.raw, reading, self.fmt, self.zones.get(held.supplier) or ZoneInfo(DEFAULT_TIMEZONE))


class Quarantine:
    """Lists, shows, re-reads, releases, drops and returns quarantined slices; holds and frees keys after a restore."""

    def __init__(
        self,
        writer: Writer,
        vault: Vault,
        settings: Callable[[], Settings],
        formats: Callable[[], Mapping[str, Format]],
        arrived: Callable[[str], None],
        upstream: Callable[[str], Upstream | None] = lambda _: None,
    ) -> None:
        """``upstream`` finds a supplier by its name; None where there is nobody to ask."""
        self._writer = writer
        self._vault = vault
        self._settings = settings
        self._formats = formats
        self._arrived = arrived
        self._upstream = upstream
        self._revealed: Work[tuple[int, str], None] = Work("reveal", Lane.CONTROL, _run_revealed)
        self._recovered: Work[str, int] = Work("recovered", Lane.CONTROL, _run_recovered)
        self._complained: Work[_Complaint, None] = Work("complaint", Lane.CONTROL, _run_complaints)

    # --- looking (these block: call them from a thread) -------------------------------------------------------------

    def page(self, chosen: Filter = Filter(), state: str = "held", after: int = 0, limit: int = 50) -> dict[str, Any]:
        """A page of entries, oldest first, with the counts of what is held by reason; ``next`` is None at the end."""
        limit = min(limit, MAX_PAGE)
        query = chosen.on(_entries().where(quarantine.c.id > after, quarantine.c.state == state), self._now())
        with self._vault.database.read() as connection:
            rows = connection.execute(query.order_by(quarantine.c.id).limit(limit + 1)).mappings().all()
        items = [_shown(row) for row in rows[:limit]]
        return {
            "items": items,
            "next": items[-1]["id"] if len(rows) > limit else None,
            "counts": self.counts(),
        }

    def counts(self) -> dict[str, int]:
        """Reason → how many wait for an operator."""
        found: dict[str, int] = {}
        with self._vault.database.read() as connection:
            for (_, reason), number in waiting(connection)[0].items():
                found[reason] = found.get(reason, 0) + number
            held = connection.exec_driver_sql("SELECT count(*) FROM vault_key WHERE state = 'held'").scalar()
        return {**found, HELD: held} if held else found

    def show(self, entry: int) -> dict[str, Any]:
        """One entry, with its text masked: letters and digits hidden, the shape left. Raises NotFoundError."""
        (row,) = self._rows([entry])
        able = [word for word, verb in _VERBS.items() if not self._unable(row, verb)]
        return {**_shown(row), "masked": _masked(_decoded(self._opened(row).raw)), "supplier_takes": able}

    def _rows(self, entries: Sequence[int]) -> list[RowMapping]:
        """Their rows, in the order in which they were asked for. Raises NotFoundError."""
        query = _entries(quarantine.c.sealed).where(quarantine.c.id.in_(entries))
        with self._vault.database.read() as connection:
            found = {row["id"]: row for row in connection.execute(query).mappings()}
        for entry in entries:
            if entry not in found:
                raise NotFoundError(
                    f"there is no quarantine entry {entry}", hint="list them: syncd keys quarantine list"
                )
        return [found[entry] for entry in dict.fromkeys(entries)]

    def _opened(self, row: RowMapping) -> Held:
        (held,) = self._vault.open_slices([row])
        if isinstance(held, UnreadableKeyError):
            raise held
        return held

    def _now(self) -> float:
        return self._vault.database.clock.now()

    # --- deciding about one -----------------------------------------------------------------------------------------

    async def reveal(self, entry: int, by: str) -> str:
        """The slice's text. The audit entry is written first. Raises NotFoundError, UnreadableKeyError."""
        held = await asyncio.to_thread(lambda: self._opened(*self._rows([entry])))
        await self._writer.submit(self._revealed, (entry, by))
        return _decoded(held.raw)

    async def release(self, entry: int, fmt: str | None, split: str | None, by: str) -> int:
        """Read the slice again and put its key into the vault; returns the key's id.

        By the product's format, and as its payload was read, unless ``fmt`` or ``split`` say otherwise. Raises
        StillUnreadableError, ConflictError (decided already, or in the vault already), InvalidRequestError.
        """
        payload = await asyncio.to_thread(self._read_again, entry, fmt, split, by)
        (refused,) = await self._writer.submit(self._vault.release, payload)
        if refused is not None:
            raise refused
        _, origin, key = payload.entries[0]
        self._arrived(origin.product)
        return key.id

    def _read_again(self, entry: int, fmt: str | None, split: str | None, by: str) -> Release:
        (row,) = self._rows([entry])
        if row["state"] != QuarantineState.HELD:
            raise ConflictError(f"this entry is {row['state']} already", hint="nothing is left to decide")
        how = self._how(row["product"], fmt, split)
        held = self._opened(row)
        card = how.read(held)
        if card.key is None:
            raise StillUnreadableError(
                f"it does not read as a key: {card.reason}" + (f", {card.detail}" if card.detail else ""),
                hint="try another format (--format NAME; opaque takes it as it is) or drop it",
            )
        return Release(self._sealed([(held, _slice(held, card))], how), by)

    def _how(self, sku: str, fmt: str | None, split: str | None) -> _How:
        settings, formats = self._settings(), self._formats()
        product = settings.products.get(sku)
        if product is None:  # without it, nobody knows in whose scope the key would be a duplicate
            raise ConflictError("its product is not in the configuration", hint="add [products.SKU], then release it")
        known = formats.get(fmt or product.reads_as)
        if known is None:
            raise InvalidRequestError("there is no such format", hint=f"known: {', '.join(sorted(formats))}")
        if split is not None and not is_split(split):
            raise InvalidRequestError("there is no such splitter", hint=_SPLITTERS)
        return _How(product, known, split, {name: supplier.tz for name, supplier in settings.suppliers.items()})

    def _sealed(self, cards: Iterable[tuple[Held, Slice]], how: _How) -> list[Any]:
        entries = []
        for held, card in cards:
            origin = replace(held.origin, issuer=how.product.issuer)
            (key,), _ = self._vault.seal(origin, [card])
            entries.append((held.id, origin, key))
        return entries

    async def drop(self, entry: int, why: str, by: str) -> None:
        """Close an entry for ever; its sealed text stays in the database. Raises NotFoundError, ConflictError."""
        await self._writer.submit(self._vault.decide, _dropping([entry], why, by))

    # --- deciding about many (these block: call them from a thread) -------------------------------------------------

    def reread(
        self,
        chosen: Filter,
        *,
        by: str,
        fmt: str | None = None,
        split: str | None = None,
        after: int = 0,
        dry_run: bool = False,
    ) -> Reread:
        """Read many held entries of a product again, and put those that are keys now into the vault: one page.

        Goes on behind entry ``after``, and says in ``next`` behind which one to ask for the rest. What is no key stays
        held; what was seen before stays held and names who sold it first. A dry run changes nothing. Raises
        InvalidRequestError without a product, for an unknown format or splitter; ConflictError.
        """
        if chosen.product is None:
            raise InvalidRequestError("which product's?", hint="entries are read again product by product")
        how = self._how(chosen.product, fmt, split)
        done, deadline = Reread(), time.monotonic() + _PAGE_S
        while rows := self._next(_entries(quarantine.c.sealed), chosen, after, _CHUNK):
            began = time.monotonic()
            cards = [(held, card) for held in self._vault.open_slices(rows) if (card := self._card(held, how, done))]
            if cards:
                self._take(cards, how, done, by="" if dry_run else by)
            done.seen += len(rows)
            after = rows[-1]["id"]
            if time.monotonic() > deadline:
                done.next = after
                break
            self._rest(time.monotonic() - began)
        if done.keys and not dry_run:
            self._arrived(chosen.product)
        return done

    def _next(self, entries: Any, chosen: Filter, after: int, limit: int) -> Sequence[RowMapping]:
        query = chosen.on(entries.where(quarantine.c.id > after, quarantine.c.state == "held"), self._now())
        with self._vault.database.read() as connection:
            rows: Sequence[RowMapping] = (
                connection.execute(query.order_by(quarantine.c.id).limit(limit)).mappings().all()
            )
        return rows

    @staticmethod
    def _card(held: Held | UnreadableKeyError, how: _How, done: Reread) -> Slice | None:
        """An entry as a key, or None after it has been counted for what it is."""
        if isinstance(held, UnreadableKeyError):
            done.refused("does_not_open")
            return None
        if how.guesses(held):
            done.refused("ambiguous")
            return None
        card = how.read(held)
        if card.key is None:
            done.refused(card.reason)
            return None
        if len(done.examples) < _EXAMPLES:
            done.examples.append(how.fmt.masked(card.key.canonical))
        return _slice(held, card)

    def _take(self, cards: Sequence[tuple[Any, Slice]], how: _How, done: Reread, *, by: str) -> None:
        """Write a chunk of keys, or only count it when nobody is named who would answer for it."""
        if not by:
            origin = replace(cards[0][0].origin, issuer=how.product.issuer)
            repeats = sum(self._vault.known(origin, [card for _, card in cards]))
            done.duplicates += repeats
            done.keys += len(cards) - repeats
            return
        outcomes = self._writer.call(self._vault.release_many, Release(self._sealed(cards, how), by))
        for refused in outcomes:
            if refused is None:
                done.keys += 1
            elif isinstance(refused, SeenBeforeError):
                done.duplicates += 1
            else:
                done.decided += 1

    def _rest(self, took: float) -> None:
        """Leave the writer to deliveries while they come."""
        if time.monotonic() - self._writer.delivered_at < 1.0:
            time.sleep(min(_LONGEST_REST_S, took * _REST))

    def matching(self, chosen: Filter) -> tuple[int, int]:
        """(how many are held that are meant, the id of the last one of them): to be told before a decision."""
        counted = select(func.count(), func.max(quarantine.c.id)).join(source, source.c.id == quarantine.c.source_id)
        with self._vault.database.read() as connection:
            row = connection.execute(chosen.on(counted.where(quarantine.c.state == "held"), self._now())).one()
        return row[0], row[1] or 0

    def drop_many(self, chosen: Filter, why: str, by: str) -> tuple[int, bool]:
        """Close many: (how many were, whether more are left for the next call)."""
        dropped, deadline = 0, time.monotonic() + _PAGE_S
        while rows := self._next(_entries(), chosen, 0, MAX_PAGE):
            began = time.monotonic()
            wanted = replace(_dropping([row["id"] for row in rows], why, by), each=True)
            dropped += len(self._writer.call(self._vault.decide_many, wanted))
            if time.monotonic() > deadline:
                return dropped, True
            self._rest(time.monotonic() - began)
        return dropped, False

    # --- back to the supplier ---------------------------------------------------------------------------------------

    async def give_back(self, entries: Sequence[int], by: str) -> list[dict[str, Any]]:
        """Return keys to their suppliers, one call an order: entry → its state now, and why.

        None of them is sold from the moment before they are offered back. An offer without an answer leaves them
        `returning`, until somebody has asked the supplier and says so (`settle`). Raises NotReturnableError,
        ConflictError, NotFoundError before anything is sent.
        """
        outcomes: list[dict[str, Any]] = []
        orders = await asyncio.to_thread(self._by_order, entries, "return_keys", QuarantineState.HELD)
        for (supplier, order_id), keys in orders.items():
            try:
                outcomes += await self._return(supplier, order_id, keys, by)
            except ConflictError as error:  # somebody else has decided meanwhile
                if not outcomes:
                    raise
                rows = await asyncio.to_thread(self._rows, list(keys))  # what was sent before is told all the same
                outcomes += [one for row in rows for one in _outcomes([row["id"]], row["state"], str(error))]
        return outcomes

    def _by_order(
        self, entries: Sequence[int], verb: str, state: QuarantineState | None
    ) -> dict[tuple[str, str], dict[int, str]]:
        """(supplier, its order) → entry → the supplier's id of the key. Raises for what cannot be given back."""
        orders: dict[tuple[str, str], dict[int, str]] = {}
        for row in self._rows(entries):
            entry = row["id"]
            if state is not None and row["state"] != state:
                raise ConflictError(f"entry {entry} is {row['state']} already", hint="nothing is left to decide")
            unable = self._unable(row, verb)
            if unable:
                raise NotReturnableError(f"entry {entry}: {unable}", hint="settle it with them yourself, then drop it")
            orders.setdefault((row["supplier"], row["order_id"]), {})[entry] = row["supplier_key"] or ""
        return orders

    def _unable(self, row: RowMapping, verb: str) -> str:
        """Why an entry cannot be given back to its supplier, or complained of; "" if it can."""
        supplier = row["supplier"]
        if supplier == IMPORT:
            return "it was imported by hand: syncd does not know the supplier"
        upstream = self._upstream(supplier)
        if upstream is None:
            return f"the supplier {supplier} is not in the configuration, or is not enabled"
        if verb not in upstream.capabilities:
            word = "takes nothing back" if verb == "return_keys" else "takes no complaints"
            return f"the supplier {supplier} {word} through its adapter"
        if verb == "return_keys" and row["reason"] == "respelled":
            return "the same order brought its key before, and that one may be sold: it would be taken back with it"
        if not row["order_id"] or (verb == "return_keys" and not row["supplier_key"]):
            return "nobody knows under which order the supplier sold it"
        return ""

    async def _ask(self, supplier: str, verb: str, *args: Any) -> Any:
        upstream = self._upstream(supplier)
        if upstream is None:
            raise NotSent(f"the supplier {supplier} has just left the configuration")
        return await upstream.acall(verb, *args)

    async def _return(self, supplier: str, order_id: str, keys: Mapping[int, str], by: str) -> list[dict[str, Any]]:
        note = {"supplier": supplier, "order": order_id, "by": by}
        await self._move(list(keys), QuarantineState.HELD, QuarantineState.RETURNING, "quarantine.return_sent", note)
        try:
            answer = await self._ask(supplier, "return_keys", order_id, list(keys.values()))
        except _CERTAINLY_NOT as error:
            await self._unreturned(list(keys), note, error.code)
            return _outcomes(keys, QuarantineState.HELD, str(error))
        except Exception as error:  # noqa: BLE001 - whatever it was, the keys may be theirs again
            why = str(error) if isinstance(error, SyncdError) else type(error).__name__
            log.warning("return_unanswered", supplier=supplier, entries=len(keys), why=why)
            return _outcomes(keys, QuarantineState.RETURNING, f"no answer that could be understood: {why}")
        said = answer if isinstance(answer, Mapping) else {}
        taken = [entry for entry, key in keys.items() if said.get(key) is True]
        kept = [entry for entry, key in keys.items() if said.get(key) is False]
        if taken:
            await self._move(taken, QuarantineState.RETURNING, QuarantineState.RETURNED, "quarantine.returned", note)
        if kept:
            await self._unreturned(kept, note, Refused.code)
        silent = [entry for entry in keys if entry not in taken and entry not in kept]
        return [
            *_outcomes(taken, QuarantineState.RETURNED, ""),
            *_outcomes(kept, QuarantineState.HELD, "the supplier did not take it back"),
            *_outcomes(silent, QuarantineState.RETURNING, "the supplier did not say what became of it"),
        ]

    async def settle(self, entry: int, *, taken: bool, by: str) -> str:
        """Say what became of an entry that was offered back without an answer; returns its state now.

        Somebody has asked the supplier: it has ``taken`` the key back, or it is ours still.
        """
        note = {"by": by, "settled": True}
        if taken:
            await self._move([entry], QuarantineState.RETURNING, QuarantineState.RETURNED, "quarantine.returned", note)
            return QuarantineState.RETURNED
        await self._unreturned([entry], note, "settled")
        return QuarantineState.HELD

    async def _unreturned(self, entries: Sequence[int], note: Mapping[str, Any], why: str) -> None:
        kind = "quarantine.return_refused"
        await self._move(entries, QuarantineState.RETURNING, QuarantineState.HELD, kind, {**note, "why": why})

    async def _move(
        self,
        entries: Sequence[int],
        expected: QuarantineState,
        state: QuarantineState,
        kind: str,
        note: Mapping[str, Any],
    ) -> None:
        await self._writer.submit(self._vault.decide, Decision(entries, expected, state, kind, note))

    async def complain(
        self, entries: Sequence[int], text: str, by: str, *, again: bool = False
    ) -> list[dict[str, Any]]:
        """Complain to the suppliers, once an order: entry → the supplier's id of the complaint, or why there is none.

        Recorded before it is sent, so that it is not sent twice by mistake; ``again`` sends it all the same. The text
        is not kept. Raises NotReturnableError, ConflictError (complained of already), NotFoundError.
        """
        outcomes: list[dict[str, Any]] = []
        orders = await asyncio.to_thread(self._by_order, entries, "complain", None)
        for (supplier, order_id), keys in orders.items():
            note = {"supplier": supplier, "order": order_id, "by": by}
            sent = _Complaint(list(keys), "sent", note, again=again)
            try:
                await self._writer.submit(self._complained, sent)
            except ConflictError as error:
                if not outcomes:
                    raise
                outcomes += [{"id": str(entry), "complaint": None, "why": str(error)} for entry in keys]
                continue
            try:
                answer = str(await self._ask(supplier, "complain", order_id, text))
            except _CERTAINLY_NOT as error:
                await self._writer.submit(self._complained, replace(sent, stage="refused"))
                outcomes += [{"id": str(entry), "complaint": None, "why": str(error)} for entry in keys]
            except Exception as error:  # noqa: BLE001 - it may have arrived
                why = str(error) if isinstance(error, SyncdError) else type(error).__name__
                log.warning("complaint_unanswered", supplier=supplier, entries=len(keys), why=why)
                outcomes += [{"id": str(entry), "complaint": None, "why": f"no answer: {why}"} for entry in keys]
            else:
                await self._writer.submit(self._complained, replace(sent, stage="answered", complaint=answer))
                outcomes += [{"id": str(entry), "complaint": answer, "why": ""} for entry in keys]
        return outcomes

    # --- after a restore --------------------------------------------------------------------------------------------

    async def recover(self, by: str) -> int:
        """Hold every key that cannot be proven undelivered, then let deliveries go on (T3). Returns how many.

        One that was cut off is taken up by the next call. Raises ConflictError when there was no restore: to hold every
        key of a sound database would stop the shop.
        """
        if await asyncio.to_thread(restored_at, self._vault.database) is None:
            raise ConflictError("this database was not restored, or is recovered already", hint="nothing is left to do")
        held = 0
        while moved := await self._writer.submit(self._vault.hold, _AT_ONCE):
            held += moved
        return held + await self._writer.submit(self._recovered, by)

    async def unhold(self, product: str, by: str) -> int:
        """Make the held keys of a product available again: somebody has checked them. Returns how many."""
        freed = 0
        while moved := await self._writer.submit(self._vault.unhold, (product, by, _AT_ONCE)):
            freed += moved
        if freed:
            self._arrived(product)
        return freed


def _run_revealed(tx: Tx, payloads: Sequence[tuple[int, str]]) -> list[BaseException | None]:
    for entry, by in payloads:
        tx.audit("quarantine.revealed", entry=entry, by=by)
    return [None] * len(payloads)


def _run_recovered(tx: Tx, payloads: Sequence[str]) -> list[int | BaseException]:
    return [_recovered(tx, by) for by in payloads]


def _recovered(tx: Tx, by: str) -> int:
    """Lift the fence. What was reserved may have been delivered since the backup like anything else: it is held."""
    held = tx.execute(
        "UPDATE vault_key SET state = 'held' WHERE id IN (SELECT key_id FROM reserved_key) AND state = 'reserved'"
    )
    tx.execute("DELETE FROM reserved_key")
    tx.execute("UPDATE reservation SET state = 'expired', ended_at = ? WHERE state = 'held'", (tx.at,))
    # A claim that was not made yet at the backup may have been made since: a person finds out.
    tx.execute("UPDATE replacement SET claim = 'asking', claim_note = 'restored from a backup' WHERE claim = 'open'")
    tx.execute("DELETE FROM meta WHERE name = ?", (RESTORE_FENCE,))
    tx.audit("restore.recovered", by=by, reserved=held)
    return held


@dataclass(frozen=True, slots=True)
class _Complaint:
    """One complaint about entries, and how far it is: sent, answered, or refused and so not made."""

    entries: Sequence[int]
    stage: str
    note: Mapping[str, Any]
    complaint: str = ""
    again: bool = False


def _run_complaints(tx: Tx, payloads: Sequence[_Complaint]) -> list[BaseException | None]:
    return [_run_complaint(tx, payload) for payload in payloads]


def _run_complaint(tx: Tx, told: _Complaint) -> BaseException | None:
    lock = " ORDER BY q.id FOR UPDATE OF q" if tx.postgresql else ""
    ids = [(entry,) for entry in sorted(told.entries)]
    rows = tx.bulk(
        f"SELECT q.id, q.complained_at FROM rows JOIN quarantine q ON q.id = rows.id{lock}",  # noqa: S608 - constant
        "id int",
        ids,
    )
    before = [row[0] for row in rows if row[1] is not None]
    if told.stage == "sent" and before and not told.again:
        return ConflictError(f"entry {before[0]} was complained of already", hint="--again sends it once more")
    if told.stage != "refused" or not told.again:  # one that was made before stays made
        tx.bulk(
            "UPDATE quarantine SET complained_at = ?, complaint = coalesce(?, complaint) FROM rows"
            " WHERE quarantine.id = rows.id",
            "id int",
            ids,
            (
                None if told.stage == "refused" else tx.at,
                told.complaint if told.stage == "answered" else None,
            ),
        )
    more = {"complaint": told.complaint} if told.stage == "answered" else {}
    tx.audit(f"quarantine.complaint_{told.stage}", entries=list(told.entries), **told.note, **more)
    return None


def _dropping(entries: Sequence[int], why: str, by: str) -> Decision:
    note = {"why": why, "by": by}
    return Decision(entries, QuarantineState.HELD, QuarantineState.DROPPED, "quarantine.dropped", note)


def _outcomes(entries: Iterable[int], state: QuarantineState, why: str) -> list[dict[str, Any]]:
    return [{"id": str(entry), "state": str(state), "why": why} for entry in entries]


def _slice(held: Held, card: Card) -> Slice:
    key = card.key
    assert key is not None  # noqa: S101 - whoever asks has looked
    return Slice(held.position, held.raw, key, dedupe_form(key.fields), "", "")


# --- reading ----------------------------------------------------------------------------------------------------------


def waiting(connection: Connection) -> tuple[dict[tuple[str, str], int], int | None]:
    """((product, reason) → how many wait for an operator, when the oldest of them came: Unix seconds, None if none)."""
    columns = quarantine.c.product, quarantine.c.reason, func.count(), func.min(quarantine.c.id)
    held = select(*columns).where(quarantine.c.state == "held").group_by(*columns[:2])
    counts: dict[tuple[str, str], int] = {}
    oldest: list[int] = []
    for product, reason, number, first in connection.execute(held):
        counts[product, reason] = number
        oldest.append(first)
    returning = select(quarantine.c.product, func.count(), func.min(quarantine.c.id))
    for product, number, first in connection.execute(
        returning.where(quarantine.c.state == "returning").group_by(quarantine.c.product)
    ):
        counts[product, UNANSWERED] = number
        oldest.append(first)
    if not oldest:
        return counts, None
    # Ids grow with time: the first one is the oldest, to be found in the index alone.
    came = connection.execute(select(quarantine.c.created_at).where(quarantine.c.id == min(oldest))).scalar_one()
    return counts, int(came)


_VERBS: Final = {"return": "return_keys", "complain": "complain"}
_first = source.alias("first")


def _entries(*more: Any) -> Any:
    return (
        select(
            *more,
            quarantine.c.id,
            quarantine.c.product,
            quarantine.c.position,
            quarantine.c.reason,
            quarantine.c.detail,
            quarantine.c.state,
            quarantine.c.created_at,
            quarantine.c.resolved_at,
            quarantine.c.supplier_key,
            quarantine.c.complained_at,
            quarantine.c.complaint,
            quarantine.c.source_id,
            source.c.order_id,
            source.c.supplier,
            source.c.name.label("source"),
            source.c.label,
            source.c.reading,
            _first.c.name.label("first_source"),
            _first.c.supplier.label("first_supplier"),
            _first.c.label.label("first_label"),
        )
        .join(source, source.c.id == quarantine.c.source_id)
        .join(_first, _first.c.id == quarantine.c.first_source_id, isouter=True)
    )


_TIMES: Final = ("created_at", "resolved_at", "complained_at")
_INSIDE: Final = frozenset({"reading", "sealed", "source_id"})


def _shown(row: Mapping[Any, Any]) -> dict[str, Any]:
    times = {name: None if row[name] is None else utc(row[name]) for name in _TIMES}
    return {**{name: row[name] for name in row if name not in _INSIDE}, "id": str(row["id"]), **times}


def _stored(reading: str) -> Reading | None:
    try:
        return Reading.load(reading)
    except (ValueError, TypeError):
        return None


def _undecided(reading: Reading | None) -> bool:
    """Whether a payload could not be read as a whole."""
    return reading is not None and bool(reading.candidates or reading.problem)


def _reading(raw: bytes, stored: str, split: str | None, configured: str | None) -> Reading | None:
    """How to read a slice again: by ``split``; else as its payload was; else by what the slice itself shows.

    A product's splitter that was ``configured`` since then wins over how the payload was read.
    """
    if split is None:
        reading = _stored(stored)
        # What was undecided as a payload may be plain as a slice; and a slice is a card, never the header.
        as_before = reading and configured in {None, "auto", reading.splitter, pair_name(reading.separator)}
        if reading is not None and as_before and not _undecided(reading):
            return replace(reading, header=False)
        split = configured
    if split is None:
        return None
    survey = Survey()
    survey.feed(raw)
    return survey.decide(split)


def _decoded(raw: bytes) -> str:
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return raw.decode("utf-8", "backslashreplace")


def _masked(text: str) -> str:
    """The shape of a text: letters become x, digits 9, the rest stays; nothing of a key is left but its outline."""
    return "".join("9" if c.isdigit() else "x" if unicodedata.category(c)[0] in "LMN" else c for c in text)
