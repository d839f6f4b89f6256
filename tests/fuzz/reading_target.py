"""What must hold for every payload whatever, and a target that looks for one for which it does not: ``make fuzz``.

``check`` is what the properties in tests/inventory run too. The first bytes of the input choose how the rest is read.
SYNCD_FUZZ_PLANT plants a bug, to show that the target finds it.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from datetime import UTC
from itertools import groupby
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # only what is to be fuzzed is watched: all of it would take a minute to begin
    import atheris

    with atheris.instrument_imports(include=["syncd.inventory"]):
        import syncd.inventory.formats  # noqa: F401

from syncd.inventory.formats import Reading, Survey, check_count, dedupe_form, load_formats, read, read_one
from syncd.inventory.formats.evidence import is_gap
from syncd.inventory.formats.slices import Slices
from syncd.inventory.formats.text import strip
from syncd.inventory.formats.wide import WIDE, Wide

ROOT = Path(__file__).parents[2]
FORMATS = load_formats([ROOT / "config" / "formats.toml"])
NAMES = ("auto", "opaque", "steam", "china-mobile", "account", "link", "netdisk", "pair", "image", "payment-card")
SPLITS = ("auto", "auto", "line", "pair", "pair:----", "labelled", "csv", "json", "{number}----{pin} 有效期{expires}")
STRICT = {name for name, fmt in FORMATS.items() if fmt.rules and all(rule.canonical for rule in fmt.rules)}
SEEDS = (
    "ABCDE-12345-FGHIJ\nKLMNO-12345-FGHIJ\n",
    "卡号：01234567890123456 密码：012345678901234567\n",
    '[{"card_no":"00123","card_pwd":"P1","end_time":"2031-01-01"}]',
    "1. A0001----B0001 有效期2031-01-01\n2. A0002----B0002 有效期2031-01-01\n",
    "secret,expires\nABC-123,2031-01-01\n",
    "A0001║draft║1║2\n",
    "链接: https://pan.example/s/1a 提取码: x7k2\n",
    "ABCDE-12345-FGHIJ, KLMNO-12345-FGHIJ\n",
    "ABCDE-12345-FGHIJ, KLMNO-12345-FGHIJ, PQRST-12345-FGHIJ\nABCDE-12345-FGHIK\n",
)


LONG = 60_000
_SEPARATORS = dict.fromkeys(map(ord, ',;\t" '))  # all that an empty record may hold


def decided(payload: bytes, media: Any, split: str, size: int) -> Reading:
    survey = Survey(media)
    for at in range(0, len(payload), size):
        survey.feed(payload[at : at + size])
    return survey.decide(split)


def seen(card: Any) -> tuple[Any, ...]:
    key = card.key and (dict(card.key.fields), dict(card.key.canonical), card.key.display, card.key.expires_at)
    return card.position, card.end, card.line_end, card.raw, card.reason, card.detail, key


def check(data: bytes) -> None:
    """Raises AssertionError, or whatever the reader raises, if a promise is broken for this input."""
    head, payload = data[:4].ljust(4, b"\0"), data[4:]
    name, split = NAMES[head[0] % len(NAMES)], SPLITS[head[1] % len(SPLITS)]
    media, size = ("csv" if head[2] % 4 == 3 else "text"), head[3] + 1
    fmt = FORMATS[name]
    reading = decided(payload, media, split, max(1, len(payload)))
    assert decided(payload, media, split, size) == reading, "the survey depends on where its input is cut"
    assert Reading.load(reading.dump()) == reading
    cards = list(read([payload], reading, fmt, timezone=UTC))
    again = read([payload[at : at + size] for at in range(0, len(payload), size)], reading, fmt, timezone=UTC)
    assert [seen(card) for card in again] == [seen(card) for card in cards], "reading depends on where it is cut"
    if reading.encoding in WIDE:
        narrow(payload, cards, reading, fmt)
    else:
        nothing_is_lost(payload, cards, reading)
    check_count(cards, len(cards))
    for card in cards:
        assert (card.key is None) == bool(card.reason) == bool(card.detail)
        if card.key is None:
            continue
        fields, canonical = card.key.fields, card.key.canonical
        once = fmt.key(canonical)
        assert not hasattr(once, "reason"), "a canonical form that is not read"
        assert once.canonical == canonical, "canonical is not idempotent"
        assert dedupe_form(fields) == dedupe_form(canonical), "two spellings that do not collide"
        if name in STRICT:
            shown = read_one(card.key.display.encode(), None, fmt, UTC).key
            assert shown is not None, "a display form that is not read"
            assert shown.canonical == canonical, "a display form that reads as another key"


def narrow(payload: bytes, cards: list[Any], reading: Reading, fmt: Any) -> None:
    """UTF-16 says what the same text says in UTF-8, in the payload's own places."""
    text = b"".join(Wide(reading.encoding).chunks([payload]))
    same = replace(reading, encoding="utf-8")
    others = list(read([text], same, fmt, timezone=UTC))
    assert [seen(card)[2:] for card in others] == [seen(card)[2:] for card in cards], "UTF-16 that reads otherwise"
    for card, other in zip(cards, others, strict=True):
        assert b"".join(Wide(reading.encoding).chunks([payload[: card.end]])) == text[: other.end], "another place"
    nothing_is_lost(text, others, same)


def nothing_is_lost(payload: bytes, cards: list[Any], reading: Reading) -> None:
    """Every byte that is not blank is in a card, or a header, a rule between cards, or the envelope of a document."""
    codec = "utf-8" if reading.encoding in {"utf-8-sig", "unreadable"} else reading.encoding
    if reading.media == "json" or len(payload) > LONG:
        return  # what is around the elements of a document is its envelope; a long line comes in pieces
    at, gaps = 0, []
    for _, group in groupby(cards, key=lambda card: card.position):
        together = list(group)
        if len(together) > 1 and all(card.key is not None for card in together):
            every_key(payload[at : together[-1].end], [card.raw for card in together])
            at = together[-1].end
            continue
        for card in together:
            start = len(payload[: card.end].rstrip(b"\r\n")) - len(card.raw)
            assert start >= at or not card.raw, "slices that overlap"
            assert payload[start : start + len(card.raw)] == card.raw, "a slice that is not in the payload"
            gaps.append(payload[at:start])
            at = card.end
    gaps.append(payload[at:])
    header = reading.header
    for gap in gaps:
        for line in gap.decode(codec, "replace").replace("\r", "\n").split("\n"):
            bare = strip(line).translate(_SEPARATORS)
            if header and bare:
                header = False
            else:
                assert not bare or (reading.splitter == "labelled" and is_gap(strip(line))), "bytes between cards"


TOKEN = re.compile(rb"[A-Za-z0-9-]*\d[A-Za-z0-9-]*")
PLAIN = re.compile(rb"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?:[ T]\d{1,2}:\d\d(?::\d\d)?)?")


def every_key(line: bytes, raws: list[bytes]) -> None:
    """Of a line with several keys nothing is left that may be one more, or a part of one."""
    for raw in raws:
        assert raw in line, "one of several keys of a line that is not in it"
        line = line.replace(raw, b" ", 1)
    assert all(len(token) < 5 for token in TOKEN.findall(PLAIN.sub(b" ", line))), "a token of several is lost"


def plant(name: str) -> None:
    """One of the ways in which a reader could go wrong."""
    line, card = Slices.line, Slices.card

    def lost(self: Any, position: int, end: int, line_end: int, raw: bytes, result: Any) -> Any:
        return card(self, position, end, line_end, raw[:-1] if raw.endswith(b"1") else raw, result)

    def raised(self: Any, text: str) -> Any:
        return line(self, text) if len(text) != 3 else line(self, text[9])

    def wrong(self: Any, text: str) -> Any:
        key = line(self, text)
        return self.fmt.key({**key.fields, "code": "AAAAA-11111-AAAAA"}) if hasattr(key, "fields") else 1 / 0

    def dropped(self: Any, text: str) -> Any:
        result = line(self, text)
        return (result[0], *result[2:]) if isinstance(result, tuple) and len(result) > 2 else result

    patched = {
        "dropped": ("line", dropped),
        "lost": ("card", lost),
        "raised": ("line", raised),
        "wrong": ("line", wrong),
    }[name]
    setattr(Slices, *patched)


def main() -> None:
    if planted := os.environ.get("SYNCD_FUZZ_PLANT"):
        plant(planted)
    corpus = next((Path(word) for word in sys.argv[1:] if Path(word).is_dir()), None)
    for number, seed in enumerate(SEEDS):  # the shapes that there are, before chance looks for others
        for name in range(len(NAMES)):
            check(bytes([name, 0, 0, 7]) + seed.encode())
        if corpus is not None:
            (corpus / f"seed-{number}").write_bytes(bytes([number % len(NAMES), 0, 0, 7]) + seed.encode())
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
