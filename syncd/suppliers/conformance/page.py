"""An adapter's page: what it can do, what it asks for, what it promises, and what the kit found. Pure.

Written by `syncd adapter docs`, kept in step by a test.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from syncd.adapter import READING, Promises
from syncd.model import Money, SecretText
from syncd.suppliers.conformance.checks import TIERS, Result, tier_of
from syncd.suppliers.conformance.rig import Kit

_KINDS: Final[dict[Any, str]] = {
    str: "text",
    int: "number",
    float: "number",
    Decimal: "amount",
    bool: "true or false",
    Path: "path",
    SecretText: "secret",
    Money: "amount and currency",
}
VERBS: Final = {
    "check": "says whether the credentials work",
    "list_offers": "every offer",
    "get_offer": "one offer",
    "get_balance": "what the account holds",
    "place_order": "buys",
    "get_order": "an order by the supplier's id",
    "find_order": "an order by our reference",
    "fetch_keys": "the keys of an order, by a call of their own",
    "pull_keys": "what was handed over without an order",
    "return_keys": "gives keys back",
    "complain": "opens a warranty claim",
    "parse_webhook": "reads what the supplier sends to us",
}
"""Every verb, and what it does."""


def settings_of(model: type[BaseModel]) -> Iterator[dict[str, str]]:
    """Name, type, default and what it is for, of each setting."""
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _written(field.get_default(call_default_factory=True))
        yield {
            "setting": name,
            "type": _type(field.annotation),
            "default": default,
            "what for": " ".join((field.description or "").split()),
        }


def _type(annotation: Any) -> str:
    if annotation in _KINDS:
        return _KINDS[annotation]
    if typing.get_origin(annotation) is typing.Annotated:
        return _type(typing.get_args(annotation)[0])
    inner = [part for part in typing.get_args(annotation) if part is not type(None)]
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(_written(part) for part in inner)
    if typing.get_origin(annotation) in {list, tuple, set, frozenset}:
        return "list"
    if typing.get_origin(annotation) is dict:
        return "table"
    return " or ".join(dict.fromkeys(_type(part) for part in inner)) if inner else "text"


def _written(value: Any) -> str:
    """A value as the configuration writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str | Path | Decimal) else str(value)


def promises_of(promises: Promises) -> Iterator[str]:
    """What is promised, a sentence each."""
    if promises.same_reference_same_order:
        yield "The same reference again gives the same order, and buys nothing."
    if promises.exact_stock:
        yield "A stock number is what can be bought at this moment."
    if promises.serial_trades:
        yield "One order at a time: syncd never sends two at once for one account."
    if promises.repeat_after is not None:
        yield f"An order in doubt may be sent again after {promises.repeat_after:g} s: that tells what became of it."
    if promises.incremental:
        yield "It can be asked for what changed since a time."
    if promises.reference_length != Promises().reference_length:
        yield f"References have at most {promises.reference_length} characters."


def page(kit: Kit, results: Iterable[Result]) -> str:
    """The page in Markdown."""
    return "\n".join(_lines(kit, list(results))) + "\n"


def _lines(kit: Kit, results: list[Result]) -> Iterator[str]:
    kind = kit.kind
    tier = tier_of(results)
    yield f"<!-- written by: syncd adapter docs {kit.name} -->"
    yield f"# {kind.title or kit.name}"
    yield ""
    written = "without code" if kit.file.suffix == ".toml" else "in Python"
    yield f'`adapter = "{kit.name}"`, written {written}. The conformance kit finds it **{tier or "below bronze"}**.'
    yield ""
    yield "## Settings"
    yield ""
    yield "| Setting | Type | Default | What for |"
    yield "|---|---|---|---|"
    for row in settings_of(kind.Settings):
        default = row["default"] if row["default"] in {"required", "none"} else f"`{row['default']}`"
        yield f"| `{row['setting']}` | {row['type'].replace('|', chr(92) + '|')} | {default} | {row['what for']} |"
    yield ""
    yield "## What it can do"
    yield ""
    yield "| Verb | What it does | After a failure |"
    yield "|---|---|---|"
    for verb in (verb for verb in VERBS if verb in kit.verbs):
        yield f"| `{verb}` | {VERBS[verb]} | {'asked again' if verb in READING else 'never repeated'} |"
    told = list(promises_of(kind.promises))
    if told:
        yield ""
        yield "It promises:"
        yield ""
        yield from (f"- {text}" for text in told)
    raised = sorted({(one.raises, one.about) for one in kit.examples.situation if one.raises})
    if raised:
        yield ""
        yield "## Errors"
        yield ""
        yield "| Error | When |"
        yield "|---|---|"
        yield from (f"| `{name}` | {about} |" for name, about in raised)
    yield ""
    yield "## Unverified"
    yield ""
    yield from (f"- {text}" for text in kind.unverified) if kind.unverified else ("Nothing.",)
    yield ""
    yield "## Checks"
    for name in TIERS:
        of_tier = [one for one in results if one.check.tier == name]
        yield ""
        yield (
            f"**{name.capitalize()}**: "
            + (", ".join(one.check.name for one in of_tier if one.state == "passed") or "none")
            + "."
        )
        for state, what in (("failed", "fails"), ("blocked", "cannot be tried")):
            yield from (f"- {one.check.name} {what}." for one in of_tier if one.state == state)
        yield from (f"- {one.check.name} is exempt: {one.reason}." for one in of_tier if one.state == "exempt")
    aside = sorted({one.reason for one in results if one.state == "inapplicable"})
    if aside:
        number = sum(one.state == "inapplicable" for one in results)
        yield ""
        yield f"{number} checks do not apply: {'; '.join(aside)}."
