"""What a payload would be read as, and why, line by line: for people, keys masked. Called by ``syncd formats explain``.

Nothing is stored and nothing decided: the same survey and the same reader as for a payload that counts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from syncd.inventory.formats.parts import Card
from syncd.inventory.formats.reading import Reading, pair_name
from syncd.inventory.formats.text import dedupe_form
from syncd.model import NEVER, utc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from syncd.inventory.formats.parts import Card
    from syncd.inventory.formats.rules import FieldRule, Format


@dataclass(frozen=True, slots=True)
class Row:
    """One card: the number of its line, what became of it (read, repeat, or a reason), and why; keys masked."""

    line: int
    outcome: str
    why: str
    expires: str = ""

    def dump(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def rows(cards: Iterable[Card], fmt: Format) -> Iterator[Row]:
    """The cards as people may see them. Remembers the cards' de-duplication forms while it runs."""
    seen: dict[str, int] = {}
    for card in cards:
        key = card.key
        if key is None:
            yield Row(card.position, card.reason, card.detail)
            continue
        first = seen.setdefault(dedupe_form(key.fields), card.position)
        shown = "  ".join(f"{name} {fmt.masked({name: text})}" for name, text in key.canonical.items())
        expires = "" if key.expires_at == NEVER else utc(key.expires_at)
        if first != card.position:
            yield Row(card.position, "repeat", f"the key of line {first}: one key, however often it is there", expires)
        else:
            yield Row(card.position, "read", shown, expires)


def recognised(reading: Reading, evidence: dict[str, int]) -> str:
    """How the payload is cut, and what speaks for it."""
    lines = evidence.get("lines", 0)
    if reading.encoding == "unreadable":
        return "no text in UTF-8, UTF-16 with a byte order mark, or GB18030: every line is refused"
    if reading.problem:
        return f"{reading.problem}: every line is refused"
    if reading.candidates:
        counted = ", ".join(f"{name} {count}" for name, count in evidence.items() if name not in {"lines", "prose"})
        return f"ambiguous: could be {', '.join(reading.candidates)} ({counted or 'no evidence'} of {lines} lines)"
    name = {"json": "a JSON document", "jsonl": "a JSON document on each line"}.get(reading.media, "")
    inner = pair_name(reading.separator) if reading.splitter == "pair" else reading.splitter
    said = [name or inner] if not name or inner == "line" else [name, f"its texts as {inner}"]
    count = evidence.get(inner, 0)
    if count and not name:
        said[0] += f" ({count} of {lines} lines)"
    if reading.columns:
        said.append(f"columns {', '.join(reading.columns)}")
    if reading.splitter == "template":
        said[-1] = f"the template {reading.separator}"
    if reading.layout:
        said.append(
            {"line": "a card a line", "block": "cards between blank lines", "run": "cards by their first label"}[
                reading.layout
            ]
        )
    if reading.numbered:
        said.append("numbered lines")
    if reading.tail:
        said.append(f"records: the key stands before the first {reading.tail}")
    if evidence.get("prose"):
        said.append(f"lines of prose: {evidence['prose']}")
    return "; ".join(said)


def shape(fmt: Format) -> str:
    """What the keys of a format look like, in a few words."""
    if not fmt.rules or fmt.kind == "opaque":
        return fmt.title
    return "; ".join(f"{rule.name}: {_rule(rule)}" for rule in fmt.rules)


def _rule(rule: FieldRule) -> str:
    size = " or ".join("-".join(map(str, group)) for group in rule.groups) or " or ".join(
        str(low) if low == high else f"{low} to {high}" for low, high in rule.lengths
    )
    words = [rule.alphabet] if rule.alphabet in {"link", "image", "text"} else [size, rule.alphabet]
    if rule.prefix:
        words.append(f"beginning with {' or '.join(rule.prefix)}")
    if rule.check:
        words.append(f"checked: {rule.check}")
    return " ".join(words)
