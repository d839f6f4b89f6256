"""Formats as data: reading config/formats.toml (and an operator's own) into ``Format``s. Called at start and by the
command line; every problem of every file is named at once.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import replace
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from syncd.errors import ConfigError, Problem
from syncd.inventory.formats.reader import read_one
from syncd.inventory.formats.rules import (
    ALPHABETS,
    AUTO,
    CHECKS,
    MAX_KEY,
    OPAQUE,
    PROSE,
    FieldRule,
    Format,
    template_fields,
)
from syncd.inventory.formats.template import problem_of
from syncd.inventory.formats.text import placeholders

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path


_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")
_FIELD: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
FORMAT_KEYS: Final = ("title", "fields", "display", "mask", "template", "accept", "reject")
RULE_KEYS: Final = ("alphabet", "length", "groups", "prefix", "upper", "check")
_SPAN: Final = re.compile(r"(\d{1,4})-(\d{1,4})")


def load_formats(paths: Sequence[Path]) -> dict[str, Format]:
    """All formats of these files by name, with ``auto`` and ``opaque``. A later file may not repeat a name of an
    earlier one.

    Raises ConfigError with every problem found: file, path in it, message and fix. The examples of a format are read
    as a part of loading it, and one that does not come out as it should is a problem like any other.
    """
    problems: list[Problem] = []
    tables: dict[str, tuple[str, dict[str, Any]]] = {}
    texts: list[str] = []
    for path in paths:
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            problems.append(
                Problem(str(path), "", f"cannot be read: {reason}", "name a readable file in daemon.formats")
            )
            continue
        except tomllib.TOMLDecodeError as error:
            problems.append(Problem(str(path), "", f"is not TOML: {error}", "correct the line that is named"))
            continue
        texts += _placeholders(str(path), document.pop("placeholders", []), problems)
        for name, table in document.items():
            problem = _name_problem(str(path), name, table, tables)
            if problem:
                problems.append(problem)
            else:
                tables[name] = (str(path), table)
    more = placeholders(tuple(texts))
    found = {fmt.name: replace(fmt, placeholders=more) for fmt in (AUTO, OPAQUE, PROSE)}
    for name, (file, table) in tables.items():
        loader = _Loader(file, name, table, more)
        fmt = loader.format()
        problems += loader.problems
        if fmt is not None:
            found[name] = fmt
    if problems:
        raise ConfigError(problems)
    return found


def _placeholders(file: str, value: object, problems: list[Problem]) -> list[str]:
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value
    problems.append(Problem(file, "placeholders", "is not a list of texts", 'write placeholders = ["…", "…"]'))
    return []


def _name_problem(file: str, name: str, table: object, known: Mapping[str, tuple[str, object]]) -> Problem | None:
    if not isinstance(table, dict):
        return Problem(
            file, name, "is not a table", f"formats are tables: [{name}]; placeholders is the only other key"
        )
    if name in {AUTO.name, OPAQUE.name, PROSE.name}:
        return Problem(file, name, "is the name of a built-in format", "choose another name")
    if not _NAME.fullmatch(name):
        return Problem(file, name, "is not a name", "use lower-case letters, digits, hyphens and underscores")
    if name in known:
        return Problem(file, name, f"is defined in {known[name][0]} already", "choose another name")
    return None


class _Loader:
    """Reads one table; collects what is wrong with it."""

    def __init__(self, file: str, name: str, table: dict[str, Any], more: frozenset[str]) -> None:
        self.file = file
        self.name = name
        self.table = table
        self.more = more
        self.problems: list[Problem] = []

    def format(self) -> Format | None:
        """The format, or None after a problem."""
        fields = self._texts("fields", self.table.get("fields", ["code"]))
        if not fields:
            self._wrong("fields", "names no field", 'write fields = ["code"] or fields = ["number", "pin"]')
        for name in fields:
            if not _FIELD.fullmatch(name) or name in FORMAT_KEYS or fields.count(name) > 1:
                self._wrong(
                    "fields",
                    f"{name!r} cannot name a field",
                    "use each name once, in lower case, and none of " + ", ".join(FORMAT_KEYS),
                )
        self._unknown("", self.table, (*FORMAT_KEYS, *fields))
        title = self._text("title", self.table.get("title", self.name))
        rules = tuple(self._rule(name, self.table.get(name, {})) for name in fields)
        display = self._display(self._text("display", self.table.get("display", "")), fields)
        mask = self._mask(self.table.get("mask", {"last": 4}))
        template = self._template(self._text("template", self.table.get("template", "")), fields)
        accept = tuple(self._texts("accept", self.table.get("accept", [])))
        reject = tuple(self._texts("reject", self.table.get("reject", [])))
        if not accept:
            self._wrong("accept", "has no example", 'give at least one key that must be read: accept = ["…"]')
        if self.problems:
            return None
        fmt = Format(self.name, title, rules, display, mask, accept, reject, self.more, split=template)
        self._try_examples(fmt)
        return None if self.problems else fmt

    def _try_examples(self, fmt: Format) -> None:
        for at, text in enumerate(fmt.accept):
            card = read_one(text.encode(), None, fmt, UTC)
            if card.key is None:
                self._wrong(
                    f"accept[{at}]", f"is not read: {card.reason}, {card.detail}", "correct the example or the rule"
                )
        for at, text in enumerate(fmt.reject):
            if read_one(text.encode(), None, fmt, UTC).key is not None:
                self._wrong(f"reject[{at}]", "is read as a key", "correct the example or the rule")

    def _wrong(self, path: str, message: str, fix: str) -> None:
        self.problems.append(Problem(self.file, f"{self.name}.{path}" if path else self.name, message, fix))

    def _unknown(self, path: str, table: dict[str, Any], known: Iterable[str]) -> None:
        known = tuple(known)
        for key in table:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                fix = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
                self._wrong(f"{path}.{key}" if path else key, "is not known", fix)

    def _text(self, path: str, value: object) -> str:
        if isinstance(value, str):
            return value
        self._wrong(path, "is not a text", 'put it in quotes: "…"')
        return ""

    def _texts(self, path: str, value: object) -> list[str]:
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            return value
        self._wrong(path, "is not a list of texts", 'write ["…", "…"]')
        return []

    def _rule(self, name: str, table: object) -> FieldRule:
        if not isinstance(table, dict):
            self._wrong(name, "is not a table", f"write [{self.name}.{name}] with alphabet, length, groups …")
            return FieldRule(name)
        self._unknown(name, table, RULE_KEYS)
        alphabet = self._text(f"{name}.alphabet", table.get("alphabet", "text"))
        if alphabet not in ALPHABETS and (len(alphabet) < 2 or not alphabet.isascii() or set(alphabet) & set(" -")):  # noqa: PLR2004
            self._wrong(
                f"{name}.alphabet",
                "is no alphabet",
                f"name one of {', '.join(ALPHABETS)}, or write its characters, no space or hyphen",
            )
            alphabet = "text"
        if (
            alphabet not in ALPHABETS
            and len(alphabet) > 3  # noqa: PLR2004 -- a word, not two or three characters
            and (close := difflib.get_close_matches(alphabet, ALPHABETS, 1, 0.8))
        ):
            self._wrong(f"{name}.alphabet", "is not known", f"did you mean {close[0]!r}?")
        groups = self._groups(f"{name}.groups", table.get("groups", []))
        upper = table.get("upper", False)
        if not isinstance(upper, bool):
            self._wrong(f"{name}.upper", "is not true or false", "write upper = true if case does not count")
            upper = False
        lengths = tuple(sorted((sum(group), sum(group)) for group in groups))
        if "length" in table:
            if groups:
                self._wrong(f"{name}.length", "is given beside groups", "groups give the length; remove one of them")
            lengths = self._lengths(f"{name}.length", table["length"])
        check = self._text(f"{name}.check", table.get("check", ""))
        if check and check not in CHECKS:
            self._wrong(f"{name}.check", "is no check", f"name one of {', '.join(CHECKS)}")
            check = ""
        prefix = table.get("prefix", [])
        prefixes = tuple(self._texts(f"{name}.prefix", [prefix] if isinstance(prefix, str) else prefix))
        if groups and alphabet in {"visible", "email", "link", "image", "text"}:
            self._wrong(
                f"{name}.groups",
                f"cannot be used with the alphabet {alphabet}",
                "use digits, letters, alnum, hex or the characters",
            )
        return FieldRule(name, alphabet, lengths or ((1, MAX_KEY),), groups, prefixes, upper, check)

    def _groups(self, path: str, value: object) -> tuple[tuple[int, ...], ...]:
        rows = [value] if isinstance(value, list) and value and all(isinstance(size, int) for size in value) else value
        good = isinstance(rows, list) and all(
            isinstance(row, list) and row and all(type(size) is int and 0 < size <= 64 for size in row)  # noqa: PLR2004
            for row in rows
        )
        if not good or not isinstance(rows, list):
            self._wrong(path, "is no grouping", "write groups = [5, 5, 5], or several: [[5, 5, 5], [5, 5, 5, 5, 5]]")
            return ()
        return tuple(tuple(row) for row in rows)

    def _lengths(self, path: str, value: object) -> tuple[tuple[int, int], ...]:
        spans = []
        for one in value if isinstance(value, list) else [value]:
            match = _SPAN.fullmatch(one) if isinstance(one, str) else None
            low, high = (int(match[1]), int(match[2])) if match else (one, one) if type(one) is int else (0, 0)
            if not 0 < low <= high <= MAX_KEY:
                self._wrong(path, "is no length", 'write length = 16, length = [16, 20] or length = "8-32"')
                return ()
            spans.append((low, high))
        return tuple(spans)

    def _display(self, template: str, fields: list[str]) -> str:
        if not template:
            return ""
        try:
            names = template_fields(template)
        except ValueError as error:
            self._wrong("display", f"is no template: {error}", 'write for example display = "{number} {pin}"')
            return ""
        missing, unknown = set(fields) - set(names), set(names) - set(fields)
        if missing or unknown:
            which = ", ".join(sorted(missing | unknown))
            self._wrong(
                "display",
                f"does not use exactly the fields ({which})",
                f"use {', '.join(f'{{{name}}}' for name in fields)}",
            )
        return template

    def _template(self, template: str, fields: list[str]) -> str:
        if not template:
            return ""
        problem = problem_of(template) or next(
            (f"does not hold {{{name}}}" for name in fields if f"{{{name}}}" not in template), ""
        )
        if problem:
            self._wrong("template", problem, 'write for example template = "{number}----{pin} 有效期{expires}"')
            return ""
        return template

    def _mask(self, value: object) -> tuple[int, int]:
        if isinstance(value, dict):
            self._unknown("mask", value, ("first", "last"))
            first, last = value.get("first", 0), value.get("last", 0)
            if type(first) is int and type(last) is int and 0 <= first <= 8 and 0 <= last <= 8:  # noqa: PLR2004
                return first, last
        self._wrong("mask", "is no mask", "write mask = { first = 2, last = 4 }, each 0 to 8")
        return 0, 0
