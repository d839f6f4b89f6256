"""The operator's work on what lies in quarantine, and on keys that are held after a restore (K6).

Called by the operator's API. Nothing here shows a key but `reveal`, which leaves an audit entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from zoneinfo import ZoneInfo

from sqlalchemy import func, select

from syncd.config import DEFAULT_TIMEZONE, Product, Settings
from syncd.errors import InvalidRequestError, NotFoundError
from syncd.inventory.formats import Card, Format, Survey, dedupe_form, is_split, read_one
from syncd.model import utc
from syncd.store.database import Lane, Tx, Work, Writer
from syncd.store.tables import quarantine, source
from syncd.vault.vault import RESTORE_FENCE, Origin, Slice, Vault

MAX_PAGE: Final = 500
_AT_ONCE: Final = 2000
HELD: Final = "unproven_after_restore"
"""The reason under which keys held after a restore are counted; they lie in the vault, not here."""


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
            rows = connection.execute(query.order_by(quarantine.c.id).limit(limit)).mappings().all()
        return {
            "items": [_shown(row) for row in rows],
            "next": str(rows[-1]["id"]) if len(rows) == limit else None,
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
        with self._vault.database.read() as connection:
            row = connection.execute(_entries().where(quarantine.c.id == quarantine_id)).mappings().one_or_none()
        if row is None:
            raise NotFoundError(f"there is no quarantine entry {quarantine_id}", hint="syncd keys quarantine list")
        _, _, raw, _ = self._vault.open_slice(quarantine_id)
        return {**_shown(row), "masked": _masked(_decoded(raw))}

    # --- deciding ---------------------------------------------------------------------------------------------------

    async def reveal(self, quarantine_id: int, by: str) -> str:
        """The slice's text. The audit entry is written first. Raises NotFoundError, UnreadableKeyError."""
        _, _, raw, _ = await asyncio.to_thread(self._vault.open_slice, quarantine_id)
        await self._writer.submit(self._revealed, (quarantine_id, by))
        return _decoded(raw)

    async def release(self, quarantine_id: int, fmt: str | None, split: str | None, by: str) -> int:
        """Read the slice again, with another format or splitter if named, and put its key into the vault.

        Returns the key's id. Raises InvalidRequestError when it still does not read, ConflictError when the vault has
        that key already.
        """
        origin, position, raw, _ = await asyncio.to_thread(self._vault.open_slice, quarantine_id)
        product = self._settings().products.get(origin.product)
        origin = Origin(
            origin.source_id, origin.name, origin.product, product.issuer if product else "", origin.supersedes
        )
        card = self._read(raw, product, fmt, split)
        if card.key is None:
            raise InvalidRequestError(
                f"it does not read as a key: {card.reason}" + (f", {card.detail}" if card.detail else ""),
                hint="try another format (--format NAME; opaque takes it as it is) or drop it",
            )
        slice_ = Slice(position, card.raw, card.key, dedupe_form(card.key.fields), "", "")
        prepared = self._vault.prepare_release(quarantine_id, origin, slice_)
        await self._writer.submit(self._vault.release, (*prepared, by))
        self._arrived(origin.product)
        return prepared[2].id

    def _read(self, raw: bytes, product: Product | None, fmt: str | None, split: str | None) -> Card:
        name = fmt or (product.format if product else "auto")
        known = self._formats().get(name)
        if known is None:
            raise InvalidRequestError(f"there is no format {name!r}", hint="formats are in config/formats.toml")
        split = split or (product.split if product else None)
        if split is not None and not is_split(split):
            raise InvalidRequestError(f"there is no splitter {split!r}", hint="line, pair, labelled, csv or pair:SEP")
        reading = None
        if split:
            survey = Survey("text")
            survey.feed(raw)
            reading = survey.decide(split)
        return read_one(raw, reading, known, ZoneInfo(DEFAULT_TIMEZONE))

    async def drop(self, quarantine_id: int, reason: str, by: str) -> None:
        """Close an entry for ever; its sealed text stays in the database. Raises NotFoundError, ConflictError."""
        await self._writer.submit(self._vault.drop, (quarantine_id, f"{by}: {reason}"))

    # --- after a restore --------------------------------------------------------------------------------------------

    async def recover(self, by: str) -> int:
        """Hold every key that cannot be proven undelivered, then let deliveries go on (T3). Returns how many."""
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
            _first.c.name.label("first_source"),
            _first.c.supplier.label("first_supplier"),
            _first.c.label.label("first_label"),
        )
        .join(source, source.c.id == quarantine.c.source_id)
        .join(_first, _first.c.id == quarantine.c.first_source_id, isouter=True)
    )


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    times = {name: None if row[name] is None else utc(row[name]) for name in ("created_at", "resolved_at")}
    return {**row, "id": str(row["id"]), **times}


def _decoded(raw: bytes) -> str:
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return raw.decode("utf-8", "backslashreplace")


def _masked(text: str) -> str:
    """The shape of a text: letters become x, digits 9, the rest stays; nothing of a key is left but its outline."""
    return "".join("9" if char.isdigit() else "x" if char.isalnum() else char for char in text)
