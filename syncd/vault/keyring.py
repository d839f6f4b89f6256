"""The key ring: what seals, opens, fingerprints and authenticates, each key wrapped by the key-encryption key (KEK).

Called by the vault, which keeps the rows in the database, and by the start of the daemon and the operator's commands.
Knows no database: it is loaded from plain rows and gives them back. A ring never changes; rotation makes a new one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Final

from syncd.errors import KekError, UnreadableKeyError
from syncd.vault.crypto import (
    Fingerprinter,
    Kek,
    Mac,
    SealingKey,
    Unseen,
    key_id,
    new_kek,
    new_key,
    open_stream,
    parse_kek,
    seal_stream,
)

PURPOSES: Final = ("data", "index", "audit", "token")


@dataclass(frozen=True, slots=True)
class RingRow:
    """One key as the database holds it. ``active``: of the data keys, the one that seals; of the others, always."""

    id: int
    purpose: str
    kek_id: str
    wrapped: bytes = field(repr=False)
    created_at: int
    active: bool


class Keyring(Unseen):
    """The vault's keys, unwrapped. Made by ``create`` and ``unwrap``; safe to use from any thread."""

    __slots__ = ("_active", "_audit", "_data", "_index", "_rows", "_token")

    def __init__(self, kek: Kek, rows: Sequence[RingRow]) -> None:
        _check(kek, rows)
        self._rows = tuple(sorted(rows, key=lambda row: row.id))
        one = {row.purpose: row for row in rows if row.active}
        # No raw key is ever bound to a name here: a traceback that shows locals must find none.
        self._data = {
            key.header: key
            for key in (SealingKey(row.id, _unwrapped(kek, row)) for row in self._rows if row.purpose == "data")
        }
        self._active = next(key for key in self._data.values() if key.id == one["data"].id)
        self._index = Fingerprinter(_unwrapped(kek, one["index"]))
        self._audit = Mac(_unwrapped(kek, one["audit"]))
        self._token = Mac(_unwrapped(kek, one["token"]))

    @classmethod
    def create(cls, kek: Kek, now: int) -> Keyring:
        """A ring of fresh keys, one for each purpose. Nothing may be sealed before its rows are committed."""
        return cls(kek, [_fresh(kek, number, purpose, now) for number, purpose in enumerate(PURPOSES, 1)])

    @classmethod
    def unwrap(cls, kek: Kek, rows: Sequence[RingRow]) -> Keyring:
        """The ring in these rows. Raises KekError: no rows, another KEK, an altered or moved row, a missing purpose."""
        return cls(kek, rows)

    def rows(self) -> list[RingRow]:
        """The whole ring as the database holds it, by id."""
        return list(self._rows)

    # --- sealing ------------------------------------------------------------------------------------------------------

    def seal(self, plaintext: bytes, bound_to: bytes) -> bytes:
        """Seal a record under the active data key, bound to its row (`crypto.associated`)."""
        return self._active.seal(plaintext, bound_to)

    def open(self, blob: bytes, bound_to: bytes) -> bytes:
        """Open a record under the data key that it names. Raises UnreadableKeyError."""
        key = self._data.get(blob[:5])
        if key is None:
            raise _unlisted(key_id(blob))
        return key.open(blob, bound_to)

    def seal_file(self, reader: BinaryIO, writer: BinaryIO, bound_to: bytes) -> None:
        """Seal a whole file under the active data key, in bounded memory. ``writer`` is a buffered one."""
        seal_stream(reader, writer, self._active, bound_to)

    def open_file(self, reader: BinaryIO, bound_to: bytes) -> Iterator[bytes]:
        """A sealed file, chunk by chunk. Raises UnreadableKeyError, at the latest when the last chunk was taken."""
        return open_stream(reader, self._data_key, bound_to)

    def _data_key(self, number: int) -> SealingKey:
        for key in self._data.values():
            if key.id == number:
                return key
        raise _unlisted(number)

    # --- keyed hashes -------------------------------------------------------------------------------------------------

    def fingerprint(self, scope: str, text: str) -> bytes:
        """The 16-byte fingerprint of a key's text within an issuer's scope (K5)."""
        return self._index.fingerprint(scope, text)

    def audit_mac(self, data: bytes) -> bytes:
        """The 32-byte code of an audit entry (K8)."""
        return self._audit(data)

    def token_hash(self, token: str) -> bytes:
        """An access token as it is kept: 32 bytes that are of no use to whoever steals the database."""
        return self._token(token.encode("utf-8", "surrogatepass"))

    # --- rotation -----------------------------------------------------------------------------------------------------

    @property
    def active_id(self) -> int:
        """The id of the data key that seals."""
        return self._active.id

    def lists(self, number: int) -> bool:
        """Whether this ring opens what data key ``number`` sealed; if not, another daemon may have rotated: reload."""
        return any(key.id == number for key in self._data.values())

    def rotate_data_key(self, kek: Kek, now: int) -> Keyring:
        """A ring that seals under a new data key and opens what the old ones sealed.

        Use it only once its rows are committed: a record under a key that was never stored is lost.
        """
        retired = [replace(row, active=False) if row.purpose == "data" else row for row in self._rows]
        return Keyring(kek, [*retired, _fresh(kek, self._rows[-1].id + 1, "data", now)])

    def rewrap(self, old: Kek, new: Kek) -> Keyring:
        """The same ring under another KEK; its rows go into one transaction. Raises KekError for a wrong ``old``."""
        _check(old, self._rows)
        return Keyring(
            new,
            [
                replace(row, kek_id=new.id, wrapped=new.wrap(_unwrapped(old, row), row.id, row.purpose))
                for row in self._rows
            ],
        )


def _fresh(kek: Kek, number: int, purpose: str, now: int) -> RingRow:
    return RingRow(number, purpose, kek.id, kek.wrap(new_key(), number, purpose), now, active=True)


def _unwrapped(kek: Kek, row: RingRow) -> bytes:
    try:
        return kek.unwrap(row.wrapped, row.id, row.purpose)
    except UnreadableKeyError:
        msg = f"entry {row.id} of the key ring ({row.purpose}) was altered, or moved from another entry"
        raise KekError(msg, hint="restore the database from a backup") from None


def _check(kek: Kek, rows: Sequence[RingRow]) -> None:
    """Raise KekError unless the rows are a whole ring under this KEK."""
    if not rows:
        raise KekError("the key ring is empty")
    strangers = sorted({row.kek_id for row in rows} - {kek.id})
    if strangers:
        msg = f"wrong KEK: the ring was wrapped by {', '.join(strangers)}, this is {kek.id}"
        raise KekError(msg, hint="put back the KEK that [vault] kek names, or its recovery copy")
    if len({row.id for row in rows}) != len(rows):
        raise KekError("two entries of the key ring have one id")
    for purpose in PURPOSES:
        active = sum(row.active for row in rows if row.purpose == purpose)
        if active != 1:
            number = f"{active} active {purpose} keys" if active else f"no active {purpose} key"
            raise KekError(f"the key ring has {number}", hint="restore the database from a backup")


def _unlisted(number: int) -> UnreadableKeyError:
    return UnreadableKeyError(f"sealed under data key {number}, which is not in the ring")


# --- the KEK's file ---------------------------------------------------------------------------------------------------


def load_kek(data: bytes | None, where: str) -> Kek:
    """The KEK in what was read from ``where``, None if there was nothing. Raises KekError, naming where and what."""
    if data is None:
        raise KekError(f"there is no KEK in {where}", hint="put back its file or recovery copy")
    return parse_kek(data, where)


def create_kek_file(path: Path) -> Kek:
    """A new KEK in a new file, mode 0600, on the disk when this returns; a kill leaves the whole file or none.

    Never overwrites: raises KekError when the file exists or cannot be written.
    """
    kek = new_kek()
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(kek.text().reveal() + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(name, path)  # as a rename, but refuses a name that is taken
        finally:
            os.unlink(name)  # noqa: PTH108 - a plain name from mkstemp
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise KekError(f"{path} exists already, and a KEK is never overwritten") from None
    except OSError as error:
        raise KekError(f"no KEK can be written to {path}: {error.strerror}") from None
    return kek
