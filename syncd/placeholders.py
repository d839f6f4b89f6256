"""Texts with placeholders, ``{name}`` or ``{name:form}``: a placeholder is replaced, and nothing else happens.

What signatures are made of (`adapter.Signed`), and what definitions without code send.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, tzinfo
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from typing import Any, Final

from syncd.model import Money, SecretText

_SLOT: Final = re.compile(r"\{([a-z][a-z0-9_]*(?:\.[A-Za-z0-9_-]+)*)(?::([^{}]+))?\}")
_TIMES: Final = ("unix", "unix_ms", "rfc3339")
_FORMS: Final[dict[str, tuple[str, ...]]] = {
    "now": _TIMES,
    "since": _TIMES,
    "max_unit_cost": ("cents", "currency", "text"),
    "json": ("slashes", "escaped"),
}
_OTHERS: Final = ("int", "number", "text")


def forms(name: str) -> tuple[str, ...]:
    """What may stand behind the colon; a time may also have a pattern of strftime there."""
    return _FORMS.get(name, _OTHERS)


def plain(value: Any) -> str:
    """A scalar as text, in the way of JSON: true, 9.90, never 1E+2. A list is joined by commas."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(plain(one) for one in value)
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def slots(value: Any) -> Iterator[tuple[str, str]]:
    """(name, form) of every placeholder in a text, or in a tree of them. Raises ValueError for what cannot be sent."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from slots(inner)
    elif isinstance(value, str):
        if set("{}") & set(_SLOT.sub("", value)):
            raise ValueError(f"{value!r} has a brace that belongs to no placeholder")
        yield from _SLOT.findall(value)
    elif not isinstance(value, bool | int | Decimal | None):
        raise ValueError("this is no text")  # noqa: TRY004 - pydantic takes ValueError for a wrong value


def fill(value: Any, names: Mapping[str, Any], zone: tzinfo = UTC) -> Any:
    """A text, or a tree of them, with its placeholders filled in. One that is a placeholder and nothing else keeps the
    type of what is put there; what has no value is None, and is left out of a tree. Raises ValueError.
    """
    if isinstance(value, dict):
        return {name: done for name, inner in value.items() if (done := fill(inner, names, zone)) is not None}
    if isinstance(value, list):
        return [done for inner in value if (done := fill(inner, names, zone)) is not None]
    if not isinstance(value, str):
        return value
    alone = _SLOT.fullmatch(value)
    return _put(alone, names, zone) if alone else line(value, names, zone)


def line(text: str, names: Mapping[str, Any], zone: tzinfo = UTC, each: Callable[[str], str] = str) -> str:
    """Always a text. ``each`` is applied to what is put in. Raises ValueError for a placeholder without a value."""

    def put(slot: re.Match[str]) -> str:
        value = _put(slot, names, zone)
        if value is None:
            raise ValueError(f"{text!r}: a placeholder has no value")
        return each(plain(value))

    return _SLOT.sub(put, text)


def _put(slot: re.Match[str], names: Mapping[str, Any], zone: tzinfo) -> Any:
    """What stands for a placeholder: text, int, bool, Decimal, a list; None when it has no value."""
    name, form = slot.groups(default="")
    value = names.get(name)
    if isinstance(value, SecretText):
        value = value.reveal()
    if value is None or value == "":
        return None
    if callable(value):
        return value(form)
    if isinstance(value, datetime):
        if "unix" in form:
            return int(value.timestamp() * (1000 if form == "unix_ms" else 1))
        return value.astimezone(zone).strftime(form) if "%" in form else f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    if isinstance(value, Money):
        if form == "currency":
            return value.currency
        if form == "cents":  # rounded down: it is a limit
            return int((value.amount * 100).to_integral_value(ROUND_DOWN))
        value = value.amount
    try:
        if form in {"int", "number"}:
            return int(plain(value)) if form == "int" else Decimal(plain(value))
        return plain(value) if form else value
    except (ValueError, InvalidOperation):
        pass
    raise ValueError(f"what stands for {slot[0]} is no number")
