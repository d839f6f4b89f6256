"""A line's layout as an operator writes it: ``{number}----{pin} 有效期{expires}``. Used by survey, reader and loading.

A template is data, not a pattern: fixed texts and fields in turn, found in linear time. A line that its fixed texts
fit in two ways is not certain, and so not read.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from syncd.inventory.formats.text import strip
from syncd.inventory.formats.words import NOTE, ROLES, normal, plain_width

if TYPE_CHECKING:
    from collections.abc import Sequence

SKIP: Final = "_"
"""The field of a template whose text is passed over."""
_PART: Final = re.compile(r"\{([a-z_][a-z0-9_]{0,31})\}")
_LONGEST: Final = 256
_MOST: Final = 12


class Template(NamedTuple):
    """What stands before each field and behind the last, as patterns, and the fields' names."""

    literals: tuple[re.Pattern[str], ...]
    fields: tuple[str, ...]


def is_template(text: str) -> bool:
    """Whether this is meant as a template; ``problem_of`` says whether it is a sound one."""
    return "{" in text


def problem_of(text: str) -> str:
    """What is wrong with a template, "" if nothing is."""
    literals, names = _cut(text)
    wanted = [name for name in names if name != SKIP]
    if len(text) > _LONGEST or len(names) > _MOST or "\n" in text:
        return f"is longer than {_LONGEST} characters, {_MOST} fields or one line"
    if any("{" in literal or "}" in literal for literal in literals):
        return "has a brace that is no {field} in lower case"
    if not any(ROLES.get(normal(name), name) not in {NOTE, "expires"} for name in wanted):
        return "names no part of a key"
    if len(set(wanted)) < len(wanted):
        return "names a field twice"
    if not all(literals[1:-1]):
        return "has two fields with nothing between them"
    return ""


def _cut(text: str) -> tuple[list[str], list[str]]:
    parts = _PART.split(text)
    return parts[::2], parts[1::2]


@lru_cache(256)
def compiled(text: str) -> Template:
    """The template of a text for which ``problem_of`` finds nothing."""
    literals, names = _cut(text)
    return Template(tuple(map(_literal, literals)), tuple(names))


def _literal(text: str) -> re.Pattern[str]:
    words = [re.escape(plain_width(word)) for word in text.split()]
    pattern = r"\s{0,8}".join(words) if words else r"(?<!\s)\s{1,8}(?!\s)" if text else ""
    return re.compile(f"(?=({pattern}))", re.IGNORECASE)  # a look ahead, so that places that overlap are all found


def match(template: Template, text: str) -> dict[str, str] | str:
    """The fields of one line by name, or what does not fit, in words without its text."""
    folded = plain_width(text)
    spans = _place(template.literals, folded)
    if isinstance(spans, str):
        return spans
    found: dict[str, str] = {}
    for name, (_, start), (end, _) in zip(template.fields, spans, spans[1:], strict=False):
        value = strip(text[start:end])
        if not value:
            return f"{name} is empty"
        if name != SKIP:
            found[name] = value
    return found


def _place(literals: Sequence[re.Pattern[str]], text: str) -> list[tuple[int, int]] | str:
    """Where each fixed text lies, if there is exactly one way to lay them out."""
    first, *between, last = literals
    head = first.match(text)
    if head is None:
        return "the line does not begin as its template"
    start, end = head.end(1), len(text)
    stop = next((found.start() for found in last.finditer(text, start) if found.end(1) == end), -1)
    if stop < 0:
        return "the line does not end as its template"
    found = [[item.span(1) for item in literal.finditer(text, start, stop)] for literal in between]
    early = _early(found, start)
    late = _early([[(-b, -a) for a, b in reversed(spans)] for spans in reversed(found)], -stop)
    if early is None or late is None:
        return "a fixed text of its template is missing"
    if early != [(-b, -a) for a, b in reversed(late)]:
        return "a fixed text of its template stands there more than once"
    return [head.span(1), *early, (stop, end)]


def _early(found: list[list[tuple[int, int]]], at: int) -> list[tuple[int, int]] | None:
    """The first place of each text behind the one before it, with room for a field between them."""
    chosen = []
    for spans in found:
        span = next((span for span in spans if span[0] > at), None)
        if span is None:
            return None
        chosen.append(span)
        at = span[1]
    return chosen
