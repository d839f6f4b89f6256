"""Hashes, signatures and the one cipher that suppliers' protocols ask for."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import msgspec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from syncd.adapter.errors import BadResponse, Config, Forged
from syncd.adapter.http import Request, Webhook
from syncd.model import SecretText
from syncd.placeholders import line, plain


def hmac_sha256_hex(secret: SecretText, text: bytes | str) -> str:
    """Lower-hex HMAC-SHA256 of the text (UTF-8) under the secret."""
    return hmac.new(secret.reveal().encode(), _bytes(text), hashlib.sha256).hexdigest()


def md5_hex(text: bytes | str) -> str:
    """Lower-hex MD5 of the text (UTF-8): where a protocol asks for it, not because it is any good."""
    return hashlib.md5(_bytes(text), usedforsecurity=False).hexdigest()


def sha1_hex(text: bytes | str) -> str:
    """Lower-hex SHA-1 of the text (UTF-8): as `md5_hex`."""
    return hashlib.sha1(_bytes(text), usedforsecurity=False).hexdigest()


def aes_256_ecb(secret: SecretText, data: bytes) -> bytes:
    """What a supplier encrypted with AES-256 in ECB mode under the 32 bytes (UTF-8) of the secret, its padding and all:
    where a protocol asks for it, not because it is any good. Raises Config for a secret of another length, BadResponse
    for what are not whole blocks.
    """
    key = secret.reveal().encode()
    if len(key) != 32:  # noqa: PLR2004 - 256 bits
        raise Config("a secret that is no AES-256 key: it has to have 32 characters", hint="copy it again, whole")
    if len(data) % 16:
        raise BadResponse("something encrypted that is not in whole blocks")
    opened = Cipher(algorithms.AES256(key), modes.ECB()).decryptor()  # noqa: S305 - the supplier's choice
    return opened.update(data) + opened.finalize()


def same(one: str, other: str) -> bool:
    """Whether two signatures are equal, in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


def _bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text


@dataclass(frozen=True, slots=True)
class Signed:
    """A `Signer` by template: ``text`` is hashed, ``headers`` say where ``{signature}`` and ``{timestamp}`` go.

    In ``text`` may stand {method}, {path} (from the root, without the query), {timestamp}, {secret}, {body} (the very
    bytes), {body_md5}, {fields} (name=value&… by name, not encoded, without empty ones) and {json} (the fields by name
    as compact JSON; {json:slashes} with slashes escaped, {json:escaped} with slashes and other scripts escaped).
    """

    hash: Literal["hmac_sha256", "md5", "sha1"]
    text: str
    secret: SecretText
    headers: Mapping[str, str] = field(default_factory=dict)
    timestamp: Literal["s", "ms"] = "s"
    encoding: Literal["hex", "base64"] = "hex"
    without: Collection[str] = ()
    """Fields that {fields} and {json} leave out."""
    only: Collection[str] = ()
    """The only fields of {fields} and {json}."""
    more: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Placeholders besides, and what stands for them."""

    def __call__(self, request: Request) -> dict[str, str]:
        """The headers of one try."""
        stamp = str(int(request.at.timestamp() * (1000 if self.timestamp == "ms" else 1)))
        names = {**self.more, "timestamp": stamp, "signature": self.of(request, timestamp=stamp)}
        return {name: line(text, names) for name, text in self.headers.items()}

    def of(self, sent: Request | Webhook, **more: str) -> str:
        """The signature of a request, ours or one that came in. ``more``: placeholders besides, and their values.

        Raises ValueError for a placeholder without a value, BadResponse for fields that cannot be signed.
        """
        names = {
            **self.more,
            **more,
            "secret": self.secret,
            "method": sent.method,
            "path": sent.path,
            "body": lambda _: sent.body.decode(errors="replace"),
            "body_md5": md5_hex(sent.body),
            "fields": lambda _: _joined(self._fields(sent)),
            "json": lambda form: _json(self._fields(sent), form),
        }
        data = line(self.text, names).encode()
        if self.hash == "hmac_sha256":
            digest = hmac.new(self.secret.reveal().encode(), data, hashlib.sha256).digest()
        else:
            digest = hashlib.new(self.hash, data, usedforsecurity=False).digest()
        return digest.hex() if self.encoding == "hex" else base64.b64encode(digest).decode()

    def _fields(self, sent: Request | Webhook) -> dict[str, Any]:
        fields = sent.fields()
        return {name: fields[name] for name in sorted(set(self.only or fields) - set(self.without)) if name in fields}


def verify(
    webhook: Webhook, given: str, signers: Iterable[Signed], *, sent_at: datetime | None, within: float = 300
) -> None:
    """Raises Forged unless ``given`` is the signature of one of the signers, and was made within so many seconds.

    ``sent_at``: the time that is a part of what is signed (None: it is missing or none, and that is forged), or
    ``webhook.received_at`` where none is.
    """
    try:
        genuine = any([same(given, signer.of(webhook)) for signer in signers])  # noqa: C419 - all, whichever fits
    except (BadResponse, ValueError):
        genuine = False
    if not genuine or sent_at is None:
        raise Forged("a webhook whose signature is wrong, or lacks a part")
    if abs((webhook.received_at - sent_at).total_seconds()) > within:
        raise Forged("a webhook that is too old, or from the future")


def _joined(fields: Mapping[str, Any]) -> str:
    if any(isinstance(value, list | dict) for value in fields.values()):
        raise BadResponse("a field that is a list or an object cannot be signed as name=value")
    return "&".join(f"{name}={plain(value)}" for name, value in fields.items() if value not in (None, ""))


def _json(fields: Mapping[str, Any], form: str) -> str:
    text = msgspec.json.Encoder(decimal_format="number").encode(fields).decode()
    text = text.replace("/", "\\/") if form else text
    return re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text) if form == "escaped" else text
