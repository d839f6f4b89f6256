"""Every cryptographic operation of syncd, and the only importer of `cryptography`. Called by the key ring.

Records are sealed with AES-256-GCM-SIV: a nonce that repeats by accident costs nothing but the knowledge that two
records are equal, so that a random nonce needs no counter. Fingerprints and the audit's chain are HMAC-SHA256.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from syncd.errors import KekError, UnreadableKeyError
from syncd.model import SecretText

KEY_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 16
_VERSION: Final = b"\x01"
_NONCE: Final = 12
_HEAD: Final = struct.Struct(">cI12s")  # version, data key id, nonce
_BLOCK: Final = 64


class Secret:
    """Mixin of what holds key material: it shows nothing and cannot be pickled or copied by accident."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is not pickled")


class Mac(Secret):
    """HMAC-SHA256 under one key. Copying two prepared contexts costs half of a fresh HMAC."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        padded = key.ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def __call__(self, data: bytes) -> bytes:
        inner = self._inner.copy()
        inner.update(data)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()


class Fingerprinter(Secret):
    """The blind index (K5): 16 bytes of HMAC over version, issuer scope and text.

    Sixteen bytes: among 10⁹ keys two meet by chance with probability 10⁻²¹, and the index, which is what an import
    costs most, is half as large. The function never changes: a changed one would let known keys in again.
    """

    __slots__ = ("_mac", "_scopes")

    def __init__(self, key: bytes) -> None:
        self._mac = Mac(key)
        self._scopes: dict[str, bytes] = {}

    def __call__(self, scope: str, text: str) -> bytes:
        head = self._scopes.get(scope)
        if head is None:
            name = scope.encode()
            head = self._scopes[scope] = _VERSION + struct.pack(">I", len(name)) + name
        return self._mac(head + text.encode("utf-8", "surrogateescape"))[:FINGERPRINT_BYTES]


class DataKey(Secret):
    """One data key: seals records and files, opens what it sealed."""

    __slots__ = ("_aead", "id")

    def __init__(self, key_id: int, key: bytes) -> None:
        self.id = key_id
        self._aead = AESGCMSIV(key)

    def seal(self, plaintext: bytes, associated_data: bytes) -> bytes:
        """Version ‖ data key id ‖ nonce ‖ ciphertext and tag."""
        nonce = os.urandom(_NONCE)
        return _HEAD.pack(_VERSION, self.id, nonce) + self._aead.encrypt(nonce, plaintext, associated_data)

    def open(self, blob: bytes, associated_data: bytes) -> bytes:
        """The plaintext. Raises UnreadableKeyError for anything that was not sealed so, here, for this place."""
        try:
            return self._aead.decrypt(blob[5 : _HEAD.size], blob[_HEAD.size :], associated_data)
        except (InvalidTag, ValueError):
            raise UnreadableKeyError("a sealed record was altered or moved") from None


def data_key_id(blob: bytes) -> int:
    """Which data key a blob names. Raises UnreadableKeyError for what is no blob of ours."""
    if len(blob) < _HEAD.size + 16 or blob[:1] != _VERSION:
        raise UnreadableKeyError("this is not a sealed record")
    return int(_HEAD.unpack_from(blob)[1])


def associated(table: str, row_id: int, sku: str, source: str) -> bytes:
    """The place that a record is bound to (K3): table, row, product at sealing, source. No two places encode alike."""
    a, b, c = table.encode(), sku.encode(), source.encode()
    return b"%c%d:%s%d:%d:%s%s" % (1, len(a), a, row_id, len(b), b, c)


# --- the key-encryption key -------------------------------------------------------------------------------------------


class Kek(Secret):
    """The key that wraps the key ring. It lies in a credential, a file or the environment, never in the database."""

    __slots__ = ("_aead", "_key", "id")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._aead = AESGCMSIV(key)
        self.id = hmac.digest(key, b"syncd kek id", "sha256")[:8].hex()
        """Names this key without telling anything about it."""

    def wrap(self, key: bytes, place: bytes) -> bytes:
        """A key of the ring, sealed for its place."""
        nonce = os.urandom(_NONCE)
        return nonce + self._aead.encrypt(nonce, key, place)

    def unwrap(self, wrapped: bytes, place: bytes) -> bytes:
        """The key again. Raises KekError when it was altered or stands in another place."""
        try:
            return self._aead.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], place)
        except (InvalidTag, ValueError):
            raise KekError("the key ring was altered", hint="restore the database from a backup") from None

    def text(self) -> SecretText:
        """The form in which it is kept: base64 on one line."""
        return SecretText(base64.b64encode(self._key).decode())


def new_kek() -> Kek:
    """A fresh random key-encryption key."""
    return Kek(os.urandom(KEY_BYTES))


def parse_kek(data: bytes, where: str) -> Kek:
    """The KEK from what ``where`` held. Raises KekError that names the place and what is wrong with its content."""
    text = data.strip()
    if not text:
        raise KekError(f"the key-encryption key in {where} is empty", hint="put back the KEK, or its recovery copy")
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise KekError(
            f"{where} does not hold a key-encryption key", hint=f"it is {KEY_BYTES} bytes as base64, on one line"
        )
    return Kek(key)


_RECOVERY_HEAD: Final = "-----BEGIN SYNCD KEK RECOVERY COPY-----"
_RECOVERY_TAIL: Final = "-----END SYNCD KEK RECOVERY COPY-----"
_SALT: Final = 16


def _stretch(passphrase: SecretText, salt: bytes) -> AESGCMSIV:
    return AESGCMSIV(Scrypt(salt=salt, length=KEY_BYTES, n=2**17, r=8, p=1).derive(passphrase.reveal().encode()))


def export_kek(kek: Kek, passphrase: SecretText) -> str:
    """A recovery copy of the KEK under a passphrase, as a block of text to be kept apart from database backups."""
    salt, nonce = os.urandom(_SALT), os.urandom(_NONCE)
    sealed = _stretch(passphrase, salt).encrypt(nonce, base64.b64decode(kek.text().reveal()), kek.id.encode())
    body = base64.b64encode(salt + nonce + sealed).decode()
    lines = [body[start : start + 64] for start in range(0, len(body), 64)]
    return "\n".join([_RECOVERY_HEAD, f"Kek: {kek.id}", "Scrypt: n=131072 r=8 p=1", "", *lines, _RECOVERY_TAIL, ""])


def import_kek(text: str, passphrase: SecretText) -> Kek:
    """The KEK from a recovery copy. Raises KekError for another text, a damaged one, or another passphrase."""
    lines = [line.strip() for line in text.strip().splitlines()]
    try:
        start, end = lines.index(_RECOVERY_HEAD), lines.index(_RECOVERY_TAIL)
        kek_id = lines[start + 1].removeprefix("Kek: ")
        data = base64.b64decode("".join(lines[lines.index("", start) + 1 : end]), validate=True)
    except (ValueError, IndexError):
        raise KekError("this is not a recovery copy of a KEK", hint="it begins with " + _RECOVERY_HEAD) from None
    try:
        key = _stretch(passphrase, data[:_SALT]).decrypt(
            data[_SALT : _SALT + _NONCE], data[_SALT + _NONCE :], kek_id.encode()
        )
    except (InvalidTag, ValueError):
        raise KekError("the passphrase is wrong, or the recovery copy is damaged") from None
    return Kek(key)


# --- files --------------------------------------------------------------------------------------------------------------

_MAGIC: Final = b"SYNCDSEAL1\n"
_CHUNK: Final = 64 * 1024
_FILE_HEAD: Final = struct.Struct(">I16s")  # data key id, file id
_LENGTH: Final = struct.Struct(">I")
_TAG_AND_NONCE: Final = 16 + _NONCE


def _chunk_place(associated_data: bytes, file_id: bytes, index: int, *, last: bool) -> bytes:
    return b"%s%d:%c%s" % (file_id, index, last, associated_data)


def seal_stream(key: DataKey, reader: BinaryIO, writer: BinaryIO, associated_data: bytes) -> None:
    """Seal a whole stream in chunks. Each chunk is bound to its file, its place and whether it is the last one, so
    that cutting, reordering, appending or mixing files is noticed.
    """
    file_id = os.urandom(16)
    writer.write(_MAGIC + _FILE_HEAD.pack(key.id, file_id))
    index, chunk = 0, reader.read(_CHUNK)
    while True:
        following = reader.read(_CHUNK)
        place = _chunk_place(associated_data, file_id, index, last=not following)
        nonce = os.urandom(_NONCE)
        sealed = nonce + key._aead.encrypt(nonce, chunk, place)  # noqa: SLF001 - the same module's class
        writer.write(_LENGTH.pack(len(sealed)) + sealed)
        if not following:
            return
        index, chunk = index + 1, following


def stream_key_id(reader: BinaryIO) -> tuple[int, bytes]:
    """Read a sealed stream's head: (data key id, file id). Raises UnreadableKeyError for another kind of file."""
    head = reader.read(len(_MAGIC) + _FILE_HEAD.size)
    if len(head) < len(_MAGIC) + _FILE_HEAD.size or not head.startswith(_MAGIC):
        raise UnreadableKeyError("this is not a file that syncd sealed")
    key_id, file_id = _FILE_HEAD.unpack_from(head, len(_MAGIC))
    return key_id, file_id


def open_stream(key: DataKey, reader: BinaryIO, file_id: bytes, associated_data: bytes) -> Iterator[bytes]:
    """The chunks of a sealed stream whose head was read. Raises UnreadableKeyError at the first that was touched."""
    index, length = 0, reader.read(_LENGTH.size)
    while True:
        size = _LENGTH.unpack(length)[0] if len(length) == _LENGTH.size else 0
        if not _TAG_AND_NONCE <= size <= _CHUNK + _TAG_AND_NONCE:
            raise UnreadableKeyError("a sealed file was cut or altered")
        sealed = reader.read(size)
        length = reader.read(_LENGTH.size)
        place = _chunk_place(associated_data, file_id, index, last=not length)
        try:
            yield key._aead.decrypt(sealed[:_NONCE], sealed[_NONCE:], place)  # noqa: SLF001 - the same module's class
        except (InvalidTag, ValueError):
            raise UnreadableKeyError("a sealed file was cut or altered") from None
        if not length:
            return
        index += 1
