"""What signatures are made of: the fields of a request, of ours or of theirs, as texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from syncd.adapter import BadResponse
from syncd.suppliers.declarative.texts import plain

_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_value: Final = msgspec.json.Decoder().decode


def body_names(body: bytes) -> dict[str, Any]:
    """``{body}``, which may be empty, and ``{body_md5}``."""
    text = body.decode(errors="replace")
    return {"body": lambda _: text, "body_md5": hashlib.md5(body, usedforsecurity=False).hexdigest()}


def body_fields(body: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """(the fields of a JSON object or a form; those that are no text, as they were written in JSON).

    Raises BadResponse for anything else, and for a name that stands twice in a form.
    """
    body = body.removeprefix(b"\xef\xbb\xbf").strip()
    try:
        if body.startswith(b"{"):
            raw = _members(body)
            fields = {name: _value(value) for name, value in raw.items()}
            return fields, {name: bytes(raw[name]).decode() for name in fields if not isinstance(fields[name], str)}
        pairs = parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True) if body else []
        if len(dict(pairs)) == len(pairs):
            return dict(pairs), {}
    except (msgspec.DecodeError, ValueError, RecursionError):
        pass
    raise BadResponse("a body that is neither a JSON object nor a form")


def sorted_fields(fields: Mapping[str, Any]) -> str:
    """``{fields}``: name=value&… by name, as they are, without those that are empty. Raises BadResponse for a list."""
    if any(isinstance(value, list | dict) for value in fields.values()):
        raise BadResponse("a field that is a list or an object cannot be signed as name=value")
    pairs = {name: plain(value) for name, value in fields.items() if value not in (None, "")}
    return "&".join(f"{name}={pairs[name]}" for name in sorted(pairs))


def sorted_json(fields: Mapping[str, Any], written: Mapping[str, str], form: str) -> str:
    """``{json}``: the fields by name as compact JSON. ``form``: "" leaves slashes and other scripts as they are,
    ``slashes`` escapes slashes, ``escaped`` both. What is no text stands as it came.
    """

    def quoted(text: str) -> str:
        done = json.dumps(text, ensure_ascii=form == "escaped")
        return done.replace("/", "\\/") if form else done

    return f"{{{','.join(f'{quoted(name)}:{written.get(name) or quoted(fields[name])}' for name in sorted(fields))}}}"
