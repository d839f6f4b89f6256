"""The operator's work on what lies in quarantine, and on keys that are held after a restore (K6).

Called by the operator's API. Nothing here shows a key but `reveal`, which leaves an audit entry.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from zoneinfo import ZoneInfo

from sqlalchemy import func, select

from syncd.config import DEFAULT_TIMEZONE, Settings
from syncd.errors import ConflictError, InvalidRequestError, NotFoundError
from syncd.inventory.formats import Format, Reading, Survey, dedupe_form, is_split, read_one
from syncd.model import utc
from syncd.store.database import Lane, Tx, Work, Writer
from syncd.store.tables import quarantine, source
from syncd.vault.vault import RESTORE_FENCE, Origin, SealedKey, Slice, Vault, restored_at

MAX_PAGE: Final = 500
_AT_ONCE: Final = 2000
HELD: Final = "unproven_after_restore"
"""The reason under which keys held after a restore are counted; they lie in the vault, not here."""


class StillUnreadableError(ConflictError):
    """Read again, the slice still is no key."""

    code = "still_unreadable"


class Quarantine:
    """Lists, shows, releases and drops quarantined slices; holds and frees keys after a restore."""

    def __init__(
        self,
        writer: Writer,
        vault: Vault,
        settings: Callable[[], Settings],
        formats: Callable[[], Mapping[str, Format]],
        arrived: Callable[[str], None],
    ) -> None:
        self._writer = writer
        self._vault = vault
        self._settings = settings
        self._formats = formats
        self._arrived = arrived
        self._revealed: Work[tuple[int, str], None] = Work("reveal", Lane.CONTROL, _run_revealed)
        self._recovered: Work[str, None] = Work("recovered", Lane.CONTROL, _run_recovered)

    # --- looking (these block: call them from a thread) -------------------------------------------------------------

    def list(
        self,
        product: str | None = None,
        reason: str | None = None,
        state: str = "held",
        after: int = 0,
        limit: int = 50,
    ) -> dict[str, Any]:
        """A page of entries, oldest first, with the counts of what is held by reason; ``next`` is None at the end."""
        limit = min(limit, MAX_PAGE)
        query = _entries().where(quarantine.c.id > after, quarantine.c.state == state)
        if product is not None:
            query = query.where(quarantine.c.product == product)
        if reason is not None:
            query = query.where(quarantine.c.reason == reason)
        with self._vault.database.read() as connection:
            rows = connection.execute(query.order_by(quarantine.c.id).limit(limit + 1)).mappings().all()
        items = [_shown(dict(row)) for row in rows[:limit]]
        return {
            "items": items,
            "next": items[-1]["id"] if len(rows) > limit else None,
            "counts": self.counts(),
        }

    def counts(self) -> dict[str, int]:
        """Reason → how many wait for an operator."""
        with self._vault.database.read() as connection:
            found = {
                row[0]: row[1]
                for row in connection.execute(
                    select(quarantine.c.reason, func.count())
                    .where(quarantine.c.state == "held")
                    .group_by(quarantine.c.reason)
                )
            }
            held = connection.exec_driver_sql("SELECT count(*) FROM vault_key WHERE state = 'held'").scalar()
        return {**found, HELD: held} if held else found

    def show(self, quarantine_id: int) -> dict[str, Any]:
        """One entry, with its text masked: letters and digits hidden, the shape left. Raises NotFoundError."""
        row = self._row(quarantine_id)
        _, _, raw, _ = self._vault.open_slice(quarantine_id)
        return {**_shown(row), "masked": _masked(_decoded(raw))}

    def _row(self, quarantine_id: int) -> Mapping[str, Any]:
        with self._vault.database.read() as connection:
            row = connection.execute(_entries().where(quarantine.c.id == quarantine_id)).mappings().one_or_none()
        if row is None:
            raise NotFoundError("there is no such quarantine entry", hint="list them: syncd keys quarantine list")
        return dict(row)

    # --- deciding ---------------------------------------------------------------------------------------------------

    async def reveal(self, quarantine_id: int, by: str) -> str:
        """The slice's text. The audit entry is written first. Raises NotFoundError, UnreadableKeyError."""
        _, _, raw, _ = await asyncio.to_thread(self._vault.open_slice, quarantine_id)
        await self._writer.submit(self._revealed, (quarantine_id, by))
        return _decoded(raw)

    async def release(self, quarantine_id: int, fmt: str | None, split: str | None, by: str) -> int:
        """Read the slice again and put its key into the vault; returns the key's id.

        By the product's format, and as its payload was read, unless ``fmt`` or ``split`` say otherwise. Raises
        StillUnreadableError, ConflictError (decided already, or in the vault already), InvalidRequestError.
        """
        prepared = await asyncio.to_thread(self._read_again, quarantine_id, fmt, split)
        await self._writer.submit(self._vault.release, (*prepared, by))
        self._arrived(prepared[1].product)
        return prepared[2].id

    def _read_again(self, quarantine_id: int, fmt: str | None, split: str | None) -> tuple[int, Origin, SealedKey]:
        row = self._row(quarantine_id)
        if row["state"] != "held":
            raise ConflictError(f"this entry is {row['state']} already", hint="nothing is left to decide")
        settings, formats = self._settings(), self._formats()
        product = settings.products.get(row["product"])
        if product is None:  # without it, nobody knows in whose scope the key would be a duplicate
            raise ConflictError("its product is not in the configuration", hint="add [products.SKU], then release it")
        known = formats.get(fmt or product.format)
        if known is None:
            raise InvalidRequestError("there is no such format", hint=f"known: {', '.join(sorted(formats))}")
        origin, position, raw, _ = self._vault.open_slice(quarantine_id)
        supplier = settings.suppliers.get(row["supplier"])
        zone = supplier.tz if supplier else ZoneInfo(DEFAULT_TIMEZONE)
        card = read_one(raw, _reading(raw, row["reading"], split, product.split or known.split or None), known, zone)
        if card.key is None:
            raise StillUnreadableError(
                f"it does not read as a key: {card.reason}" + (f", {card.detail}" if card.detail else ""),
                hint="try another format (--format NAME; opaque takes it as it is) or drop it",
            )
        again = Slice(position, raw, card.key, dedupe_form(card.key.fields), "", "")
        return self._vault.prepare_release(quarantine_id, replace(origin, issuer=product.issuer), again)

    async def drop(self, quarantine_id: int, reason: str, by: str) -> None:
        """Close an entry for ever; its sealed text stays in the database. Raises NotFoundError, ConflictError."""
        await self._writer.submit(self._vault.drop, (quarantine_id, f"{by}: {reason}"))

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
        await self._writer.submit(self._recovered, by)
        return held

    async def unhold(self, product: str, by: str) -> int:
        """Make the held keys of a product available again: somebody has checked them. Returns how many."""
        freed = 0
        while moved := await self._writer.submit(self._vault.unhold, (product, by, _AT_ONCE)):
            freed += moved
        if freed:
            self._arrived(product)
        return freed


def _run_revealed(tx: Tx, payloads: Sequence[tuple[int, str]]) -> list[BaseException | None]:
    for quarantine_id, by in payloads:
        tx.audit("quarantine.revealed", quarantine=quarantine_id, by=by)
    return [None] * len(payloads)


def _run_recovered(tx: Tx, payloads: Sequence[str]) -> list[BaseException | None]:
    for by in payloads:
        tx.execute("DELETE FROM meta WHERE name = ?", (RESTORE_FENCE,))
        tx.audit("restore.recovered", by=by)
    return [None] * len(payloads)


_first = source.alias("first")


def _entries() -> Any:
    return (
        select(
            quarantine.c.id,
            quarantine.c.product,
            quarantine.c.position,
            quarantine.c.reason,
            quarantine.c.detail,
            quarantine.c.state,
            quarantine.c.created_at,
            quarantine.c.resolved_at,
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


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    times = {name: None if row[name] is None else utc(row[name]) for name in ("created_at", "resolved_at")}
    return {**{name: row[name] for name in row if name != "reading"}, "id": str(row["id"]), **times}


def _reading(raw: bytes, stored: str, split: str | None, configured: str | None) -> Reading | None:
    """How to read a slice again: by ``split``; else as its payload was; else by what the slice itself shows.

    A product's splitter that was ``configured`` since then wins over how the payload was read.
    """
    if split is None:
        try:
            reading = Reading.load(stored)
        except (ValueError, TypeError):
            reading = None
        as_before = reading is not None and configured in {None, "auto", reading.splitter, reading.separator}
        if reading is not None and (as_before or (configured or "").startswith(f"{reading.splitter}:")):
            # What was undecided as a payload may be plain as a slice; and a slice is a card, never the header.
            return None if reading.candidates or reading.problem else replace(reading, header=False)
        split = configured
    if split is None:
        return None
    if not is_split(split):
        raise InvalidRequestError(
            "there is no such splitter", hint="line, pair, labelled, csv, json, pair:SEP or a template"
        )
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
