"""The corpus: payloads as suppliers send them, and what a careful person would put on sale of each.

Its files were written by somebody who had not seen the code that reads them. A card is right when its parts, its expiry
and, where a payload has lines, its place are as expected; anything else that is taken for a key is wrong, and there
must be none of those, whatever else is held for a person.
"""

from __future__ import annotations

import tomllib
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from syncd.inventory import formats
from syncd.inventory.formats import Survey, load_formats, read
from syncd.model import NEVER

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus"
LEAST = 0.97


@dataclass
class Score:
    """What came of a payload, or of many."""

    expected: int = 0
    exact: int = 0
    held: int = 0
    wrong: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def add(self, other: Score) -> None:
        self.expected += other.expected
        self.exact += other.exact
        self.held += other.held
        self.wrong += other.wrong
        self.missed += other.missed


def plain(text: str) -> str:
    """A value as it is compared where the spelling is the format's own: case and hyphens of a known shape."""
    return unicodedata.normalize("NFC", text)


def loose(text: str) -> str:
    return "".join(ch for ch in text.upper() if ch not in "- ")


def same(wanted: dict[str, str], got: dict[str, str], *, shaped: bool) -> bool:
    """Whether a key has these parts. A format with a shape has a spelling of its own."""
    if wanted.keys() != got.keys():
        return False
    return all(got[name] == value or (name == "image" and picture(got[name]) == picture(value)) or (shaped and loose(got[name]) == loose(value)) for name, value in wanted.items())


def picture(text: str) -> str:
    """An image's base64: the engine keeps it with its media type before it."""
    return text.partition(";base64,")[2] or text


def instant(text: str | None) -> int:
    return NEVER if text is None else int(datetime.fromisoformat(text).timestamp())


def score(payload: dict[str, Any], known: dict[str, Any]) -> Score:
    data = bytes.fromhex(payload["hex"]) if "hex" in payload else payload["text"].encode()
    fmt = known[payload.get("format", "auto")]
    survey = Survey("csv" if payload.get("media") == "csv" else "text")
    survey.feed(data)
    splitter = getattr(fmt, "splitter", lambda own: own or "auto")
    reading = survey.decide(splitter(payload.get("split")))
    zone = ZoneInfo(payload.get("timezone", "Asia/Shanghai"))
    cards = list(read([data], reading, fmt, timezone=zone))
    shaped = fmt.name not in {"auto", "opaque", "pair", "account", "account-mail", "link", "netdisk"}
    wanted = [(card["fields"], instant(card.get("expires")), card["line"]) for card in payload.get("cards", [])]
    found = Score(expected=0 if payload.get("doubtful") else len(wanted))
    left = list(wanted)
    seen: set[tuple[tuple[str, str], ...]] = set()
    for card in cards:
        if card.key is None:
            found.held += 1
            continue
        got = {name: str(value) for name, value in card.key.fields.items()}
        canonical = tuple(sorted((name, str(value)) for name, value in card.key.canonical.items()))
        if canonical in seen:
            continue  # a repeat is one key
        seen.add(canonical)
        match = next((item for item in left if same(item[0], got, shaped=shaped) and item[1] == card.key.expires_at), None)
        if match is None:
            found.wrong.append(f"{payload['name']}: line {card.position}: {got} {card.key.expires_at}")
            continue
        left.remove(match)
        found.exact += 0 if payload.get("doubtful") else 1
    if not payload.get("doubtful"):
        found.missed += [f"{payload['name']}: line {line}: {fields}" for fields, _, line in left]
    return found


def payloads(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    return [
        (path.stem, payload)
        for path in sorted(folder.glob("*.toml"))
        for payload in tomllib.loads(path.read_text(encoding="utf-8"))["payload"]
    ]


if __name__ == "__main__":
    import sys

    folder = Path(sys.argv[1])
    known = dict(load_formats([ROOT / "config" / "formats.toml"]))
    total = Score()
    by_file: Counter[str] = Counter()
    for stem, payload in payloads(folder):
        try:
            one = score(payload, known)
        except Exception as error:
            print("CRASH", payload["name"], repr(error)[:200])
            continue
        if one.missed:
            by_file[stem] += len(one.missed)
        total.add(one)
    print(f"{total.exact} of {total.expected} exact = {total.exact / total.expected:.4f}; wrong {len(total.wrong)}; held {total.held}")
    if "-v" in sys.argv:
        print("WRONG"); print("\n".join(total.wrong))
        print("MISSED BY FILE", by_file.most_common())
        print("\n".join(total.missed))
