"""The corpus: payloads as suppliers send them, and what a careful person would put on sale of each.

Its files were written by somebody who had not seen the code that reads them. A card is right when its parts and its
expiry are as expected; anything else that is taken for a key is wrong, and there must be none of those, whatever else
is held for a person. Of a payload that is ``doubtful`` only the latter counts.

As a script, it prints the score of a folder: ``python tests/inventory/test_corpus.py tests/corpus -v``.
"""

from __future__ import annotations

import io
import sys
import tomllib
import unicodedata
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from syncd.adapter import AdapterError
from syncd.inventory.formats import Survey, load_formats, read, read_image, read_rows, survey_rows
from syncd.inventory.formats import slices as slices_module
from syncd.inventory.formats.slices import Slices
from syncd.inventory.intake import sheet_rows
from syncd.model import NEVER, CardKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from syncd.inventory.formats import Card, Format

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus"
LEAST = 0.97
DOUBTFUL = 0.09
VERBATIM = {"auto", "opaque", "pair", "account", "account-mail", "link", "netdisk"}


@dataclass
class Score:
    """What came of a payload, or of many."""

    expected: int = 0
    exact: int = 0
    held: int = 0
    wrong: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)

    def add(self, other: Score) -> None:
        self.expected += other.expected
        self.exact += other.exact
        self.held += other.held
        self.wrong += other.wrong
        self.missed += other.missed
        self.crashed += other.crashed

    @property
    def share(self) -> float:
        return self.exact / self.expected if self.expected else 1.0


def loose(text: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFC", text).upper() if char not in "- ")


def picture(text: str) -> str:
    """An image's base64: the reader keeps it with its media type before it."""
    return text.partition(";base64,")[2] or text


def alike(name: str, wanted: str, got: str, *, shaped: bool) -> bool:
    if name == "image":
        return picture(wanted) == picture(got)
    return got == wanted or (shaped and loose(got) == loose(wanted))


def same(wanted: dict[str, str], got: dict[str, str], *, shaped: bool) -> bool:
    """Whether a key has these parts. A format with a shape has a spelling of its own."""
    return wanted.keys() == got.keys() and all(alike(name, wanted[name], got[name], shaped=shaped) for name in wanted)


WHO = {"number", "account", "serial"}
PROOF = {"password", "pin", "access", "extract"}


def by_part(fields: dict[str, str]) -> dict[str, str]:
    """Fields by what they are in a card: an author's names for the parts need not be the reader's."""
    beside = "link" if fields.keys() & {"url", "link"} else "who" if fields.keys() & (WHO | {"email"}) else ""
    found = {}
    for name, text in fields.items():
        part = "who" if name in WHO or (name == "email" and not fields.keys() & WHO) else name
        part = "email" if name == "recovery" else part
        part = "proof" if name in PROOF or (name == "code" and beside) else part
        part = "link" if name == "url" or (name == "code" and "://" in text) else part
        found["code" if part == "proof" and not beside else part] = text
    return found


def instant(text: str | None) -> int | str:
    if text is None:
        return NEVER
    return text if len(text) == len("2031-12-31") else int(datetime.fromisoformat(text).timestamp())


def in_time(wanted: int | str, got: int, zone: ZoneInfo) -> bool:
    """Whether an expiry is as expected; of some the day alone is known, as it is written."""
    if isinstance(wanted, int) or got == NEVER:
        return wanted == got
    return wanted in {f"{datetime.fromtimestamp(got, tz):%Y-%m-%d}" for tz in (zone, UTC)}


def cards_of(payload: dict[str, Any], fmt: Format, zone: ZoneInfo) -> Iterable[Card]:
    data = bytes.fromhex(payload["hex"]) if "hex" in payload else payload["text"].encode()
    split = fmt.splitter(payload.get("split"))
    if payload.get("media") == "image":
        return [read_image(data, "image/png", fmt, timezone=zone)]
    if payload.get("media") == "xlsx":
        try:
            with sheet_rows(io.BytesIO(data), payload["name"]) as rows:
                table = [row for _, row in rows]
        except AdapterError:
            return []  # the whole file is refused
        return read_rows(table, survey_rows(table, split), fmt, timezone=zone)
    survey = Survey("csv" if payload.get("media") == "csv" else "text")
    survey.feed(data)
    return read([data], survey.decide(split), fmt, timezone=zone)


def score(payload: dict[str, Any], known: dict[str, Format], part: Callable[..., dict[str, str]] = dict) -> Score:
    fmt = known[payload.get("format", "auto")]
    zone = ZoneInfo(payload.get("timezone", "Asia/Shanghai"))
    left = [(part(card["fields"]), instant(card.get("expires")), card["line"]) for card in payload.get("cards", [])]
    found = Score(expected=0 if payload.get("doubtful") else len(left))
    seen: set[tuple[tuple[str, str], ...]] = set()
    for card in cards_of(payload, fmt, zone):
        if card.key is None:
            found.held += 1
            continue
        canonical = tuple(sorted(card.key.canonical.items()))
        if canonical in seen:
            continue  # a repeat is one key
        seen.add(canonical)
        got, expires = part(dict(card.key.fields)), card.key.expires_at
        shaped = fmt.name not in VERBATIM
        match = next((i for i in left if same(i[0], got, shaped=shaped) and in_time(i[1], expires, zone)), None)
        if match is None:
            found.wrong.append(f"{payload['name']}: line {card.position}: {got} {expires}")
            continue
        left.remove(match)
        found.exact += 0 if payload.get("doubtful") else 1
    if not payload.get("doubtful"):
        found.missed += [f"{payload['name']}: line {line}: {fields}" for fields, _, line in left]
    return found


def payloads(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["payload"]
    return found


def formats() -> dict[str, Format]:
    return dict(load_formats([ROOT / "config" / "formats.toml"]))


def scores(folder: Path, known: dict[str, Format], names: str = "*") -> dict[str, Score]:
    """The score of each file."""
    found = {}
    for path in sorted(folder.glob(f"{names}.toml")):
        found[path.stem] = total = Score()
        file = tomllib.loads(path.read_text(encoding="utf-8"))
        part = by_part if file.get("names") == "own" else dict
        for payload in file["payload"]:
            try:
                total.add(score(payload, known, part))
            except Exception as error:
                total.add(Score(crashed=[f"{payload['name']}: {error!r:.200}"]))
    return found


def together(found: dict[str, Score]) -> Score:
    total = Score()
    for one in found.values():
        total.add(one)
    return total


def check(found: dict[str, Score]) -> None:
    total = together(found)
    assert not total.crashed, "reading raised:\n" + "\n".join(total.crashed)
    assert not total.wrong, "taken for keys, and are none:\n" + "\n".join(total.wrong)
    short = sorted((one.share, stem, one.missed[:3]) for stem, one in found.items() if one.missed)
    assert total.share >= LEAST, f"{total.exact} of {total.expected} read as they should be; least of all: {short[:8]}"


def test_every_key_of_the_corpus_is_read_and_nothing_else_is_taken_for_one():
    found = scores(CORPUS, formats())
    assert together(found).expected > 3000
    check(found)


def test_few_expectations_are_left_open():
    every = [payload for path in CORPUS.glob("*.toml") for payload in payloads(path)]
    doubtful = [payload for payload in every if payload.get("doubtful")]
    assert len(doubtful) <= DOUBTFUL * len(every)


def test_control_a_reader_that_takes_the_first_part_alone_is_caught(monkeypatch):
    known = formats()

    whole = Slices._parts

    def first_alone(self, parts):
        result = whole(self, parts)
        if isinstance(result, CardKey) and "pin" in result.fields:
            fields = {"code": result.fields["number"]} if "number" in result.fields else dict(result.fields)
            return replace(result, fields=fields, canonical=fields)
        return result

    monkeypatch.setattr(Slices, "_parts", first_alone)
    with pytest.raises(AssertionError, match="taken for keys"):
        check(scores(CORPUS, known, "[0-9]*"))


def test_control_a_reader_without_the_shapes_falls_short(monkeypatch):
    known = formats()

    monkeypatch.setattr(slices_module.shape, "find", lambda *_, **__: None)
    monkeypatch.setattr(Slices, "items", lambda *_, **__: slices_module.Refusal("prose", "planted"))
    with pytest.raises(AssertionError, match="read as they should be"):
        check(scores(CORPUS, known, "[0-9]*"))


if __name__ == "__main__":
    found = scores(Path(sys.argv[1]), formats())
    total = together(found)
    print(
        f"{total.exact} of {total.expected} exact = {total.share:.4f}; wrong {len(total.wrong)}; held {total.held}; "
        f"crashed {len(total.crashed)}"
    )
    if "-v" in sys.argv:
        fell = sorted(((len(one.missed), stem) for stem, one in found.items() if one.missed), reverse=True)
        print("\n".join(["WRONG", *total.wrong, "CRASHED", *total.crashed, f"MISSED {fell}", *total.missed]))
