"""The vault's cryptography: sealed records and files, keyed hashes, the key-encryption key and its recovery copy.

The only importer of `cryptography` for what we keep (`syncd.adapter` opens what suppliers encrypt). Called by the key
ring, and by the vault for what a seal is bound to. Every layout here lies on shops' disks: a change needs a new version
byte, and the old one must still open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
import unicodedata
from collections.abc import Callable, Iterator
from os import urandom
from typing import BinaryIO, Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from syncd.errors import InvalidRequestError, KekError, UnreadableKeyError
from syncd.model import SecretText

KEY_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 16
MIN_PASSPHRASE: Final = 12

_VERSION: Final = b"\x01"
_HEADER_BYTES: Final = 5  # version, key id
_NONCE_BYTES: Final = 12
_OVERHEAD: Final = _HEADER_BYTES + _NONCE_BYTES + 16  # and the tag


class Unseen:
    """What holds key material: it shows nothing of it, and is not pickled or copied."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(***)"

    def __reduce__(self) -> NoReturn:
        msg = f"a {type(self).__name__} is not pickled or copied"
        raise TypeError(msg)


def new_key() -> bytes:
    """A fresh random key. Hand it on at once: a local variable may end up in a traceback."""
    return urandom(KEY_BYTES)


# --- records ----------------------------------------------------------------------------------------------------------


def associated(table: str, row_id: int, sku: str, source: str) -> bytes:
    """What a record's seal is bound to (K3): row, product at sealing, source. Different arguments never read alike."""
    return f"1|{len(table)}:{table}|{row_id}|{len(sku)}:{sku}|{len(source)}:{source}".encode()


def key_id(blob: bytes) -> int:
    """The id of the data key that a record names, without opening it."""
    if len(blob) < _OVERHEAD or blob[:1] != _VERSION:
        msg = "this is not a sealed record"
        raise UnreadableKeyError(msg)
    return int.from_bytes(blob[1:_HEADER_BYTES])


class SealingKey(Unseen):
    """One AES-256-GCM-SIV key under its id. A record is version ‖ key id (4) ‖ nonce (12) ‖ ciphertext and tag.

    GCM-SIV, because random nonces then need no counting: a nonce used twice shows that two records are equal, no more.
    """

    __slots__ = ("_decrypt", "_encrypt", "header", "id")

    def __init__(self, number: int, key: bytes) -> None:
        aead = AESGCMSIV(key)
        self._encrypt = aead.encrypt
        self._decrypt = aead.decrypt
        self.id = number
        self.header = _VERSION + number.to_bytes(4)

    def seal(self, plaintext: bytes, bound_to: bytes) -> bytes:
        """A record that opens only with the same ``bound_to``; sealing the same again gives another record."""
        nonce = urandom(_NONCE_BYTES)
        return self.header + nonce + self._encrypt(nonce, plaintext, bound_to)

    def open(self, blob: bytes, bound_to: bytes) -> bytes:
        """The plaintext. Raises UnreadableKeyError when anything about the record or ``bound_to`` is different."""
        # The header is outside the encryption, and has one right value.
        if blob[:_HEADER_BYTES] == self.header:
            try:
                return self._decrypt(blob[5:17], blob[17:], bound_to)
            except (InvalidTag, ValueError):  # ValueError: cut off within the nonce
                pass
        msg = "a sealed record does not open: it was altered, or moved from where it was sealed"
        raise UnreadableKeyError(msg)


# --- keyed hashes -----------------------------------------------------------------------------------------------------


class Mac(Unseen):
    """HMAC-SHA256 under one key, 32 bytes. The two keyed states are made once and copied: half the time of `hmac`."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            msg = f"a key has {KEY_BYTES} bytes, not {len(key)}"
            raise ValueError(msg)
        block = key.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def __call__(self, data: bytes) -> bytes:
        """The 32-byte code of ``data``."""
        inner = self._inner.copy()
        inner.update(data)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()


class Fingerprinter(Mac):
    """Fingerprints of keys within a scope (K5): HMAC-SHA256 of version, scope with its length, text; cut to 16 bytes.

    16 bytes suffice: among a billion keys the odds of two strangers meeting are 1 in 10²⁰, an attacker without the key
    cannot search for a meeting, and one that did happen would put a key into quarantine, not lose it. They are cut
    because the random unique index is what ingest pays for, and it pays by the byte.
    """

    __slots__ = ()

    def fingerprint(self, scope: str, text: str) -> bytes:
        """16 bytes, for ever the same for this key, scope and text. Any text has one, lone surrogates included."""
        # As Mac.__call__, spelled out: this runs twice for each key that comes in.
        inner = self._inner.copy()
        inner.update(f"1|{len(scope)}:{scope}|{text}".encode("utf-8", "surrogatepass"))
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()[:FINGERPRINT_BYTES]


# --- files ------------------------------------------------------------------------------------------------------------

FILE_MAGIC: Final = b"SYNCDSEAL1\n"
CHUNK: Final = 64 * 1024
_FILE_ID_BYTES: Final = 16
_FRAME: Final = struct.Struct(">BI")  # 1 for the last chunk, else 0; length of the record that follows


def seal_stream(reader: BinaryIO, writer: BinaryIO, key: SealingKey, bound_to: bytes) -> None:
    """Seal all that ``reader`` gives into ``writer`` (a buffered one), in chunks: memory stays at a few chunks.

    Layout: magic ‖ key id (4) ‖ random file id (16), then for each chunk last (1) ‖ length (4) ‖ record. Each record is
    bound to the file id, its index and whether it is the last, so that no cut, swap, splice or addition goes unseen.
    """
    head = key.id.to_bytes(4) + urandom(_FILE_ID_BYTES)
    writer.write(FILE_MAGIC + head)
    index, chunk, last = 0, _read(reader, CHUNK), 0
    while not last:
        following = _read(reader, CHUNK)
        last = 0 if following else 1
        record = key.seal(chunk, _chunk_bound_to(head, index, last, bound_to))
        writer.write(_FRAME.pack(last, len(record)) + record)
        index, chunk = index + 1, following


def open_stream(reader: BinaryIO, key_for: Callable[[int], SealingKey], bound_to: bytes) -> Iterator[bytes]:
    """The chunks of a sealed file. ``key_for`` gives the key of an id, or raises.

    Raises UnreadableKeyError at the first chunk that is not as written, at the end if the file was cut or added to:
    what was yielded is genuine, but is the whole file only once the iterator has ended by itself.
    """
    if _read(reader, len(FILE_MAGIC)) != FILE_MAGIC:
        msg = "this is not a sealed file"
        raise UnreadableKeyError(msg)
    head = _whole(reader, 4 + _FILE_ID_BYTES)
    key = key_for(int.from_bytes(head[:4]))
    index = last = 0
    while not last:
        last, length = _FRAME.unpack(_whole(reader, _FRAME.size))
        if length > CHUNK + _OVERHEAD:
            msg = f"a sealed file is damaged at chunk {index + 1}"
            raise UnreadableKeyError(msg)
        yield key.open(_whole(reader, length), _chunk_bound_to(head, index, last, bound_to))
        index += 1
    if reader.read(1):
        msg = "something was appended to a sealed file"
        raise UnreadableKeyError(msg)


def _whole(reader: BinaryIO, size: int) -> bytes:
    data = _read(reader, size)
    if len(data) < size:
        msg = "a sealed file was cut off"
        raise UnreadableKeyError(msg)
    return data


def _chunk_bound_to(head: bytes, index: int, last: int, bound_to: bytes) -> bytes:
    return b"file|" + head + struct.pack(">QB", index, last) + bound_to


def _read(reader: BinaryIO, size: int) -> bytes:
    """``size`` bytes, less only at the end: a pipe or a raw file may hand over less at a time."""
    data = reader.read(size)
    while len(data) < size and (more := reader.read(size - len(data))):
        data += more
    return data


# --- the key-encryption key -------------------------------------------------------------------------------------------


class Kek(Unseen):
    """The key-encryption key: wraps the keys of the ring, never lies in the database. ``id`` may be shown."""

    __slots__ = ("_key", "_wrapping", "id")

    def __init__(self, key: bytes) -> None:
        derive = Mac(key)
        self._key = key
        self.id: str = derive(b"syncd kek id 1")[:8].hex()
        # Its own use has its own key: the one above hashes, this one encrypts.
        self._wrapping = SealingKey(0, derive(b"syncd kek wrap 1"))

    def __repr__(self) -> str:
        return f"Kek({self.id})"

    def text(self) -> SecretText:
        """The key as its file holds it: base64, one line without its end."""
        return SecretText(base64.b64encode(self._key).decode())

    def wrap(self, key: bytes, number: int, purpose: str) -> bytes:
        """A key of the ring, sealed as entry ``number`` for ``purpose`` and no other."""
        return self._wrapping.seal(key, _ring_entry(number, purpose))

    def unwrap(self, wrapped: bytes, number: int, purpose: str) -> bytes:
        """The key inside. Raises UnreadableKeyError when it was altered, moved, or wrapped by another KEK."""
        return self._wrapping.open(wrapped, _ring_entry(number, purpose))


def _ring_entry(number: int, purpose: str) -> bytes:
    return f"ring|{number}|{purpose}".encode()


def new_kek() -> Kek:
    """A random KEK, not stored anywhere yet."""
    return Kek(new_key())


def parse_kek(data: bytes, where: str) -> Kek:
    """The KEK in the content of a file, credential or variable. Raises KekError: what is wrong, and ``where`` it is."""
    text = data.strip()
    if not text:
        raise KekError(f"the KEK in {where} is empty", hint="put back its file or recovery copy")
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        hint = f"it is one line of base64, {KEY_BYTES} bytes once decoded"
        raise KekError(f"the KEK in {where} is not base64", hint=hint) from None
    if len(key) != KEY_BYTES:
        raise KekError(f"the KEK in {where} has {len(key)} bytes, not {KEY_BYTES}", hint="put back the whole line")
    return Kek(key)


# --- its recovery copy ------------------------------------------------------------------------------------------------

_BEGIN: Final = "-----BEGIN SYNCD KEK RECOVERY COPY 1-----"
_END: Final = "-----END SYNCD KEK RECOVERY COPY 1-----"
_SALT_BYTES: Final = 20
_COPY_BYTES: Final = _SALT_BYTES + _NONCE_BYTES + KEY_BYTES + 16
_GROUP, _LINE = 4, 32
_LOOK_ALIKE: Final = str.maketrans("018", "OIB")  # base32 has only the letters of these


def export_kek(kek: Kek, passphrase: SecretText) -> str:
    """A recovery copy to print or put away: text that opens only under ``passphrase``, and can be typed in from paper.

    scrypt (N = 2¹⁷, r = 8, p = 1: 128 MiB and a good part of a second a guess), then AES-256-GCM-SIV; in base32, where
    look-alikes do no harm, with a check that tells a typing error from a wrong passphrase. Raises InvalidRequestError
    when the passphrase is too short to stand up to guessing.
    """
    if len(passphrase.reveal()) < MIN_PASSPHRASE:
        raise InvalidRequestError(f"the passphrase is shorter than {MIN_PASSPHRASE} characters")
    salt, nonce = urandom(_SALT_BYTES), urandom(_NONCE_BYTES)
    sealed = _passphrase_aead(passphrase, salt).encrypt(nonce, kek._key, _copy_bound_to(kek.id))  # noqa: SLF001 - its own module
    data = salt + nonce + sealed
    letters = base64.b32encode(data).decode()
    lines = [letters[at : at + _LINE] for at in range(0, len(letters), _LINE)]
    return "\n".join(
        [
            _BEGIN,
            "The key that opens a syncd vault, sealed under a passphrase.",
            "Keep it apart from backups of the database, and the passphrase apart from both.",
            f"KEK:   {kek.id}",
            f"Check: {_copy_check(kek.id, data)}",
            "",
            *(" ".join(line[at : at + _GROUP] for at in range(0, _LINE, _GROUP)) for line in lines),
            _END,
            "",
        ]
    )


def import_kek(text: str, passphrase: SecretText) -> Kek:
    """The KEK of a recovery copy; what stands around it, and case, spaces and line ends in it, do not matter.

    Raises KekError: no copy in the text, a typing error, or a wrong passphrase.
    """
    _, begin, rest = text.partition(_BEGIN)
    body, end, _ = rest.partition(_END)
    if not begin or not end:
        raise KekError("there is no recovery copy in this text", hint=f"it begins with {_BEGIN} and ends with {_END}")
    kek_id, check, letters = _copy_fields(body)
    try:
        data = base64.b32decode(letters.upper().translate(_LOOK_ALIKE))
    except ValueError:
        data = b""
    if len(data) != _COPY_BYTES or _copy_check(kek_id, data) != check:
        raise KekError("the recovery copy has a typing error", hint="compare it with the original, letter by letter")
    salt, nonce, sealed = data[:_SALT_BYTES], data[_SALT_BYTES:][:_NONCE_BYTES], data[_SALT_BYTES + _NONCE_BYTES :]
    try:
        return Kek(_passphrase_aead(passphrase, salt).decrypt(nonce, sealed, _copy_bound_to(kek_id)))
    except InvalidTag:
        raise KekError(f"wrong passphrase for the recovery copy of KEK {kek_id}") from None


def _copy_fields(body: str) -> tuple[str, str, str]:
    """(KEK id, check, base32 letters) of what stands between the first and the last line."""
    named = {"kek": "", "check": ""}
    letters = ""
    for line in body.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            named[name.strip().lower()] = value.strip().lower()
        elif named["check"]:
            letters += "".join(line.split())
    return named["kek"], named["check"], letters


def _copy_check(kek_id: str, data: bytes) -> str:
    return hashlib.sha256(_copy_bound_to(kek_id) + data).hexdigest()[:8]


def _copy_bound_to(kek_id: str) -> bytes:
    return f"syncd kek recovery copy 1|{kek_id}".encode()


def _passphrase_aead(passphrase: SecretText, salt: bytes) -> AESGCMSIV:
    # Composed: two keyboards may spell one letter differently. surrogatepass: an encoding error would show the text.
    return AESGCMSIV(
        Scrypt(salt=salt, length=KEY_BYTES, n=2**17, r=8, p=1).derive(
            unicodedata.normalize("NFC", passphrase.reveal()).encode("utf-8", "surrogatepass")
        )
    )
