"""The key ring: the vault's own keys, each wrapped by the key-encryption key (S1). Called by the vault and the daemon.

It holds data keys (one active, older ones to open what they sealed), the index key of the fingerprints, the audit's key
and the tokens' key. It knows nothing of the database: it is made from rows, and gives rows back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from syncd.errors import KekError, UnreadableKeyError
from syncd.vault import crypto
from syncd.vault.crypto import KEY_BYTES, DataKey, Fingerprinter, Kek, Mac, Secret

PURPOSES: Final = ("data", "index", "audit", "token")


@dataclass(frozen=True, slots=True)
class RingRow:
    """One key of the ring as it is stored: wrapped."""

    id: int
    purpose: str
    kek_id: str
    wrapped: bytes
    created_at: int
    active: bool


def _place(row_id: int, purpose: str) -> bytes:
    return f"keyring:{row_id}:{purpose}".encode()


class Keyring(Secret):
    """The keys in the clear, in memory. ``seal`` uses the active data key, ``open`` whichever one a record names."""

    def __init__(self, kek: Kek, rows: Sequence[RingRow], keys: dict[int, bytes]) -> None:
        self._kek = kek
        self._rows = list(rows)
        self._keys = keys
        self._data = {row.id: DataKey(row.id, keys[row.id]) for row in rows if row.purpose == "data"}
        active = {row.purpose: row.id for row in rows if row.active}
        self._active = self._data[active["data"]]
        self.seal = self._active.seal
        self.fingerprint = Fingerprinter(keys[active["index"]])
        self.audit_mac = Mac(keys[active["audit"]])
        self._token_mac = Mac(keys[active["token"]])

    @classmethod
    def create(cls, kek: Kek, now: int) -> Keyring:
        """A fresh ring: one key of each purpose."""
        keys = {number: os.urandom(KEY_BYTES) for number in range(1, len(PURPOSES) + 1)}
        rows = [
            RingRow(number, purpose, kek.id, kek.wrap(keys[number], _place(number, purpose)), now, active=True)
            for number, purpose in enumerate(PURPOSES, start=1)
        ]
        return cls(kek, rows, keys)

    @classmethod
    def unwrap(cls, kek: Kek, rows: Sequence[RingRow]) -> Keyring:
        """The ring from its rows. Raises KekError: the wrong KEK, an altered row, or a ring that is not whole."""
        others = sorted({row.kek_id for row in rows} - {kek.id})
        if others:
            raise KekError(
                f"this is the wrong key-encryption key: the ring was wrapped by {', '.join(others)}, this is {kek.id}",
                hint="put back the KEK that belongs to this database, or its recovery copy",
            )
        for purpose in PURPOSES:
            if sum(row.active for row in rows if row.purpose == purpose) != 1:
                raise KekError(f"the key ring has no single active {purpose} key", hint="restore a backup")
        return cls(kek, rows, {row.id: kek.unwrap(row.wrapped, _place(row.id, row.purpose)) for row in rows})

    def rows(self) -> list[RingRow]:
        """What is stored of it."""
        return list(self._rows)

    def open(self, blob: bytes, associated_data: bytes) -> bytes:
        """Open a record. Raises UnreadableKeyError: altered, moved, or sealed under a key that is not in the ring."""
        return self._key(crypto.data_key_id(blob)).open(blob, associated_data)

    def token_hash(self, token: str) -> bytes:
        """What is stored of an access token."""
        return self._token_mac(token.encode("utf-8", "surrogateescape"))

    def with_new_data_key(self, now: int) -> Keyring:
        """The ring with a fresh active data key; what older keys sealed still opens."""
        number = max(row.id for row in self._rows) + 1
        key = os.urandom(KEY_BYTES)
        rows = [
            RingRow(row.id, row.purpose, row.kek_id, row.wrapped, row.created_at, row.active and row.purpose != "data")
            for row in self._rows
        ]
        rows.append(
            RingRow(number, "data", self._kek.id, self._kek.wrap(key, _place(number, "data")), now, active=True)
        )
        return Keyring(self._kek, rows, {**self._keys, number: key})

    def export_kek(self, passphrase: crypto.SecretText) -> str:
        """The recovery copy of the KEK (see crypto.export_kek)."""
        return crypto.export_kek(self._kek, passphrase)

    def seal_file(self, reader: BinaryIO, writer: BinaryIO, associated_data: bytes = b"file") -> None:
        """Seal a whole file under the active data key."""
        crypto.seal_stream(self._active, reader, writer, associated_data)

    def open_file(self, reader: BinaryIO, associated_data: bytes = b"file") -> Iterator[bytes]:
        """The chunks of a sealed file. Raises UnreadableKeyError as soon as one was touched."""
        key_id, file_id = crypto.stream_key_id(reader)
        return crypto.open_stream(self._key(key_id), reader, file_id, associated_data)

    def _key(self, key_id: int) -> DataKey:
        key = self._data.get(key_id)
        if key is None:
            raise UnreadableKeyError(f"sealed under data key {key_id}, which is not in the ring")
        return key


def create_kek_file(path: Path) -> Kek:
    """Make a fresh KEK in a new file (0600), whole or not at all; it never overwrites one. Raises KekError, OSError."""
    kek = crypto.new_kek()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(kek.text().reveal() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike rename, it refuses to replace a file
        except FileExistsError:
            raise KekError(f"{path} exists already", hint="a KEK is never overwritten") from None
    finally:
        temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return kek
