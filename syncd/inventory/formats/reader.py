"""Reading a payload into cards, as a ``Reading`` and a ``Format`` say. Called by sync (whole payloads), by purchases
and by the release of what lies in quarantine (single slices).

Reading is total: whatever the bytes, it raises nothing, loses nothing and takes linear time. A card either is a key
or has a reason, with the exact bytes of its slice.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Final

from syncd.inventory.formats.document import (
    MAX_DOCUMENT,
    elements,
    parse,
)
from syncd.inventory.formats.evidence import header_like, is_gap
from syncd.inventory.formats.expiry import expiry_in
from syncd.inventory.formats.lines import Quick
from syncd.inventory.formats.parts import Card, Result
from syncd.inventory.formats.reading import Reading
from syncd.inventory.formats.rules import MAX_KEY, FieldRule, Format, Refusal, default_display
from syncd.inventory.formats.slices import Slices
from syncd.inventory.formats.split import (
    PIECE,
    Line,
    Liner,
    cell_text,
    cuts,
    lines,
    records,
    without_end,
)
from syncd.inventory.formats.survey import Survey
from syncd.inventory.formats.text import is_link, is_prose_line, strip
from syncd.inventory.formats.wide import WIDE, Wide
from syncd.inventory.formats.words import (
    EXPIRY_WORDS,
    NOTE,
    Item,
    find_labels,
    names_a_part,
    says_spent,
)
from syncd.model import CardKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import tzinfo

    from syncd.inventory.formats.split import Cut

_BOM: Final = b"\xef\xbb\xbf"


def read(
    chunks: Iterable[bytes], reading: Reading, fmt: Format, *, offset: int = 0, position: int = 0, timezone: tzinfo
) -> Iterator[Card]:
    """The cards of a payload, in order. Never raises (but for what the chunks raise).

    The chunks begin at byte ``offset`` of the payload, behind line ``position``: 0 and 0, or ``end`` and ``line_end``
    of a card that was read before, and then exactly the cards behind it follow. A line or CSV record of more than 64
    KiB comes as several cards, each too_long; until its last piece, their ``end`` stays before it. So does that of a
    JSON document's cards until the last: taken up again, it is read from its start. The slices of
    UTF-16 are UTF-8. Blank lines, and between labelled cards lines of punctuation or numbers, give no card; nor does
    the header, nor what is around a document's cards.
    """
    if reading.encoding in WIDE:
        return _wide(chunks, reading, fmt, offset, position, timezone)
    slices = Slices(reading, fmt, timezone)
    by_line = fmt.kind == "opaque" and reading.splitter != "csv"  # verbatim lines need no evidence
    if reading.media == "json":
        return _by_document(chunks, slices, offset, position)
    if slices.hopeless() or (
        reading.candidates and not by_line and not (slices.by_shape() and reading.splitter != "csv")
    ):
        return _refuse_all(chunks, slices, offset, position)
    if reading.splitter == "csv":
        return _by_record(chunks, slices, offset, position)
    if reading.splitter == "labelled" and fmt.kind != "opaque":
        return _labelled(lines(chunks, offset, position), slices)
    return _by_line(chunks, slices, offset, position)


def _wide(
    chunks: Iterable[bytes], reading: Reading, fmt: Format, offset: int, position: int, timezone: tzinfo
) -> Iterator[Card]:
    """The cards of UTF-16, which is read as UTF-8."""
    wide = Wide(reading.encoding, offset)
    narrow = replace(reading, encoding="utf-8")
    for card in read(wide.chunks(chunks), narrow, fmt, offset=offset, position=position, timezone=timezone):
        card.end = wide.place(card.end)
        yield card


def read_rows(
    rows: Iterable[Sequence[str]], reading: Reading, fmt: Format, *, position: int = 0, timezone: tzinfo
) -> Iterator[Card]:
    """The cards of a spreadsheet's rows (cells as text) behind row ``position``, of which ``end`` and ``line_end``
    are the row.
    """
    slices = Slices(reading, fmt, timezone)
    for row in rows:
        position += 1
        stripped = [cell_text(cell) for cell in row]
        if not any(stripped) or (reading.header and position == 1 and header_like(stripped)):
            continue
        raw = "\t".join(row).encode("utf-8", "surrogatepass")
        yield from _cards(
            slices,
            Line(position, position - 1, position, raw, long=False, resume=position),
            raw,
            slices.row(stripped, len(raw)),
        )


def read_one(raw: bytes, reading: Reading | None, fmt: Format, timezone: tzinfo) -> Card:
    """One slice read again, with another format or another Reading; without a Reading, by what the slice itself shows.

    Several cards in the slice are refused as ambiguous: a slice is one card or none.
    """
    if reading is None:
        survey = Survey()
        survey.feed(raw)
        if fmt.split:
            card = read_one(raw, survey.decide(fmt.split), fmt, timezone)
            if card.key is not None:
                return card
        reading = survey.decide()
    elif reading.encoding in WIDE:
        reading = replace(reading, encoding="utf-8")
    slices = Slices(reading, fmt, timezone)
    if raw.startswith(b"data:image/"):  # larger than a line may be
        return slices.card(1, len(raw), 1, raw, slices.image(raw.decode("ascii", "replace")))
    if reading.media == "rows":
        text = raw.decode("utf-8", "replace")
        result = slices.row([cell_text(cell) for cell in text.split("\t")], len(raw))
        result = Refusal("ambiguous", "more than one card in the slice") if isinstance(result, tuple) else result
        return slices.card(1, len(raw), 1, raw, result)
    found = list(_first_two(read((raw,), reading, fmt, timezone=timezone)))
    if len(found) == 1 and (reading.media == "json" or found[0].raw.strip() == raw.strip()):
        found[0].raw = raw
        return found[0]
    refusal = (
        Refusal("ambiguous", "more than one card in the slice") if found else Refusal("missing_field", "nothing here")
    )
    return slices.card(1, len(raw), 1, raw, refusal)


def _first_two(cards: Iterator[Card]) -> Iterator[Card]:
    for count, card in enumerate(cards, 1):
        yield card
        if count == 2:  # noqa: PLR2004 -- enough to know that it is not one
            return


def _long(line: Line, slices: Slices) -> Card:
    detail = f"more than {PIECE // 1024} KiB in one line or record"
    return slices.card(line.number, line.end, line.resume, without_end(line.data), Refusal("too_long", detail))


def _refuse_all(
    chunks: Iterable[bytes], slices: Slices, offset: int, position: int, refusal: Refusal | None = None
) -> Iterator[Card]:
    """Every line (CSV: record) refused for the one reason that the payload has."""
    source: Iterable[Line] = lines(chunks, offset, position)
    if slices.reading.splitter == "csv":
        source = records(source, slices.encoding, slices.reading.separator)
    refusal = refusal or slices.refusal() or Refusal("ambiguous", "the payload could be read in several ways")
    header = slices.reading.header and offset == 0
    for line in source:
        raw = _bare(line)
        if not raw.strip():
            continue
        if header and not line.long:
            header = False
            text = slices.text(raw)
            if isinstance(text, str) and slices.is_header(strip(text)):
                continue
        yield _long(line, slices) if line.long else slices.card(line.number, line.end, line.resume, raw, refusal)


def _by_document(chunks: Iterable[bytes], slices: Slices, offset: int, position: int) -> Iterator[Card]:
    """The cards of one JSON document. What is no document any more is refused line by line."""
    held, source = bytearray(), iter(chunks)
    for chunk in source:
        held += chunk
        if len(held) > MAX_DOCUMENT:
            break
    data = bytes(held)
    text = slices.text(data.removeprefix(_BOM))
    whole = isinstance(text, str) and len(data) <= MAX_DOCUMENT and parse(text) is not None
    if not isinstance(text, str) or not whole or not data.endswith(text.encode(slices.encoding)):
        refusal = Refusal("unreadable_shape", "JSON that is broken or cut off")
        yield from _refuse_all(chain([data], source), slices, offset, position, refusal)
        return
    at, place = 0, len(data) - len(text.encode(slices.encoding))
    last: Card | None = None
    for element in elements(text):
        if last is not None:
            yield last
        start = place + len(text[at : element.start].encode(slices.encoding))
        place = start + len(text[element.start : element.end].encode(slices.encoding))
        at = element.end
        raw = data[start:place]
        number = position + 1 + data.count(b"\n", 0, start)
        result = slices.element(element.value, element.expires)
        if isinstance(result, tuple):
            *before, final = ((key, _quoted(key)) for key in result)
            for key, own in before:
                yield slices.card(number, offset, position, own, key)
            last = slices.card(number, offset, position, final[1], final[0])
        else:
            last = slices.card(number, offset, position, raw, result)
    if last is not None:
        last.end, last.line_end = offset + len(data), position + max(1, len(data.splitlines()))
        yield last


def _bare(line: Line) -> bytes:
    """The line's bytes without its end and without the byte order mark of the payload."""
    raw = without_end(line.data)
    return raw[len(_BOM) :] if line.start == 0 and raw.startswith(_BOM) else raw


def _by_record(chunks: Iterable[bytes], slices: Slices, offset: int, position: int) -> Iterator[Card]:
    header = slices.reading.header and offset == 0
    for line in records(lines(chunks, offset, position), slices.encoding, slices.reading.separator):
        raw = _bare(line)
        if line.long:
            if raw:
                yield _long(line, slices)
            continue
        text = slices.text(raw)
        if isinstance(text, Refusal):
            yield slices.card(line.number, line.end, line.resume, raw, text)
            continue
        if not text.strip(f'{slices.reading.separator}" \t') or not strip(text):
            continue  # separators alone: an empty row, as spreadsheets export it
        if header:
            if slices.is_header(strip(text)):
                header = False
                continue
            yield slices.card(line.number, line.end, line.resume, raw, Refusal("prose", "a title over the table"))
            continue
        yield from _cards(slices, line, raw, slices.record(text))


def _cards(slices: Slices, line: Line, raw: bytes, result: Result) -> Iterator[Card]:
    """The card of a line, or the cards: but for the last, reading is taken up again before the line."""
    if not isinstance(result, tuple):
        yield slices.card(line.number, line.end, line.resume, raw, result)
        return
    *before, last = result
    for key in before:
        yield slices.card(line.number, line.start, line.number - 1, _quoted(key), key)
    yield slices.card(line.number, line.end, line.resume, _quoted(last), last)


def _quoted(key: CardKey) -> bytes:
    """One of several keys of a line as a slice of its own."""
    return "----".join(key.fields.values()).encode()


def _by_line(chunks: Iterable[bytes], slices: Slices, offset: int, position: int) -> Iterator[Card]:
    """Lines one by one; blocks of plain ASCII go the short way."""
    liner = Liner(offset, position)
    quick = slices.quick()
    header = slices.reading.header and offset == 0
    for cut in cuts(chunks):
        if quick and not header and (end := _line_end(cut)):
            yield from _short_way(quick, cut.data, end, slices, liner.offset, liner.position)
            liner.skip(len(cut.data), cut.data.count(end))
            continue
        for line in liner.of(cut):
            raw = _bare(line)
            text = slices.text(raw)
            if line.long:
                yield _long(line, slices)
            elif isinstance(text, Refusal):
                yield slices.card(line.number, line.end, line.resume, raw, text)
            elif not strip(text):
                continue
            elif header and slices.is_header(strip(text)):
                header = False
            else:
                header = False
                yield from _cards(slices, line, raw, slices.line(text))


def _line_end(cut: Cut) -> bytes:
    """The one line end of a block of ASCII lines without zero bytes; empty if it is not such a block."""
    data = cut.data
    if cut.piece or not data.isascii() or b"\0" in data:
        return b""
    if b"\r" not in data:
        return b"\n" if data.endswith(b"\n") else b""
    count = data.count(b"\r\n")
    return b"\r\n" if count == data.count(b"\r") == data.count(b"\n") and data.endswith(b"\r\n") else b""


def _short_way(quick: Quick, data: bytes, end: bytes, slices: Slices, offset: int, position: int) -> Iterator[Card]:
    """The cards of a block of ASCII lines: one match for a line that is a key in canonical form, nothing else."""
    pattern, names = quick
    fmt, size = slices.fmt, len(end)
    template = default_display(names) if fmt.kind == "auto" else fmt.template
    checked = [(names.index(rule.name) + 1, rule) for rule in fmt.checked]
    lone = names[0] if template == f"{{{names[0]}}}" else ""
    whole = data.decode("ascii")
    raws, texts = data.split(end), whole.split(end.decode("ascii"))
    raws.pop()  # what is behind the last line end: nothing
    texts.pop()
    sizes = slices.reading.sizes if fmt.kind == "auto" else ()
    least = sizes[0] if len(sizes) == 1 else 0
    even = len(sizes) <= 1 and (not least or min(map(len, texts)) >= least)
    if lone and size == 1 and even and fmt.all_canonical(data, whole):
        for raw, text in zip(raws, texts, strict=True):
            position += 1
            offset += len(raw) + 1
            fields = {lone: text}
            yield Card(position, offset, position, raw, CardKey(fields, fields, text))
        return
    fullmatch = pattern.fullmatch
    for raw, text in zip(raws, texts, strict=True):
        position += 1
        offset += len(raw) + size
        match = fullmatch(text)
        usual = len(text) >= least if lone else not sizes or _usual(match, sizes)
        if match and usual and len(text) <= MAX_KEY and not (checked and _fails(match, checked)):
            fields = {lone: text} if lone else dict(zip(names, match.groups(), strict=True))
            yield Card(position, offset, position, raw, CardKey(fields, fields, template.format_map(fields)))
        elif strip(text):
            line = Line(position, offset - len(raw) - size, offset, raw, long=False, resume=position)
            yield from _cards(slices, line, raw, slices.line(text))


def _fails(match: re.Match[str], checked: list[tuple[int, FieldRule]]) -> bool:
    return not all(rule.passes(match[group]) for group, rule in checked)


def _usual(match: re.Match[str] | None, sizes: tuple[int, ...]) -> bool:
    """Whether the parts have the lengths of nearly all other lines."""
    return match is not None and all(
        (len(part) == size if size > 0 else len(part) >= -size)
        for part, size in zip(match.groups(), sizes, strict=False)
    )


_WORDS: Final = Refusal("prose", "this is a text, not a key")


class _Labelled:
    """The labelled card that is being put together, line by line."""

    def __init__(self, slices: Slices) -> None:
        self.slices = slices
        self.lines: list[Line] = []
        self.items: list[Item] = []
        self.gap: list[Line] = []
        self.said: list[Line] = []  # words in the gap: the card's, if it goes on behind them
        self.size = 0

    def waits(self) -> bool:
        """Whether the last label has no value yet: a line without a label may be it."""
        return bool(self.items) and not self.items[-1].text and not self.gap

    def join(self, line: Line) -> None:
        """The line belongs to the card, and so does the gap before it."""
        self.lines += [*self.gap, line]
        self.size += len(line.data)
        self.gap, self.said = [], []

    def blank(self, line: Line) -> bool:
        """A blank line behind the card; False if there are too many of them to go on."""
        self.gap.append(line)
        self.size += len(line.data)
        return self.size <= PIECE

    def close(self, refusal: Refusal | None = None) -> Iterator[Card]:
        """The card, if there is one; then there is none."""
        if self.lines:
            first, last = self.lines[0], self.lines[-1]
            raw = _bare(
                Line(
                    first.number,
                    first.start,
                    last.end,
                    b"".join(line.data for line in self.lines),
                    long=False,
                    resume=0,
                )
            )
            result = refusal or self.slices.cards(self.items)
            line = Line(first.number, first.start, last.end, raw, long=False, resume=last.resume)
            if isinstance(result, Refusal) and first is last and isinstance(text := self.slices.text(raw), str):
                yield from _cards(self.slices, line, raw, self.slices.dated(self.slices.rescued(strip(text), result)))
            else:
                yield from _cards(self.slices, line, raw, self.slices.dated(result))
        for line in self.said:
            yield self.slices.card(line.number, line.end, line.resume, _bare(line), _WORDS)
        self.lines, self.items, self.gap, self.said, self.size = [], [], [], [], 0

    def spoil(self, line: Line, refusal: Refusal) -> Iterator[Card]:
        """A line that cannot be placed: what stands right before it is not certain either."""
        if self.gap:
            yield from self.close()
        self.join(line)
        yield from self.close(refusal)


def _labelled(source: Iterable[Line], slices: Slices) -> Iterator[Card]:  # noqa: C901, PLR0912, PLR0915 -- each kind of line once
    """Cards of labelled lines. A card begins with the anchor, and ends where a label comes again, or as the layout
    says.
    """
    card, anchor, layout = _Labelled(slices), slices.reading.anchor, slices.reading.layout
    for line in source:
        if line.long:
            yield from card.close(Refusal("unreadable_shape", "an over-long line inside the card"))
            yield _long(line, slices)
            continue
        text = slices.text(_bare(line))
        if isinstance(text, Refusal):
            yield from card.spoil(line, text)
            continue
        bare = slices.without_tail(strip(text))
        if not bare or is_gap(bare):
            if layout == "block" or (card.lines and not card.blank(line)):
                yield from card.close()
            continue
        if len(bare) > MAX_KEY:
            yield from card.spoil(line, Refusal("too_long", f"{len(bare)} characters on one line, {MAX_KEY} at most"))
            continue
        items = find_labels(bare)
        if items and all(item.role.startswith(NOTE) for item in items) and not anchor.startswith(NOTE):
            if card.lines and not card.gap and layout != "line":
                card.join(line)
                card.items += [item for item in items if item.role not in {known.role for known in card.items}]
                continue
            if not (card.lines and not card.gap and _tells(items)):
                yield from card.close()
                refusal = Refusal("prose", "a note, not a key")
                yield slices.card(line.number, line.end, line.resume, _bare(line), refusal)
                continue
        if items:
            known = {item.role for item in card.items}
            if layout == "line" and card.lines and not card.gap and anchor and items[0].role != anchor:
                yield from card.spoil(
                    line, Refusal("unreadable_shape", "a line with labels that is not a card of its own")
                )
                continue
            if layout == "line" or items[0].role == anchor or any(item.role in known for item in items):
                yield from card.close()
            card.join(line)
            card.items += items
        elif items is not None and card.waits():
            card.items[-1] = Item(card.items[-1].role, bare)
            card.join(line)
        elif items is None and not isinstance(
            found := slices.rescued(bare, Refusal("prose", "this is a text, not a key")), Refusal
        ):
            yield from card.close()
            yield from _cards(slices, line, _bare(line), slices.dated(found))
        elif card.lines and not card.gap and layout != "line" and names_a_part(bare):
            yield from card.spoil(line, Refusal("unreadable_shape", "a name that is not known, and may be a part"))
        elif is_prose_line(bare, slices.fmt.placeholders) and not (EXPIRY_WORDS.search(bare) and expiry_in(bare)):
            if card.lines and layout == "run" and card.blank(line):
                card.said.append(line)
                continue
            yield from card.close()
            yield slices.card(line.number, line.end, line.resume, _bare(line), _WORDS)
        else:
            if layout == "line" and anchor == "link" and is_link(bare):  # a card of its own, and not a whole one
                yield from card.close()
            yield from card.spoil(line, Refusal("unreadable_shape", "a line without a known label beside the card"))
    yield from card.close()


def _tells(items: Sequence[Item]) -> bool:
    """Whether a note says that a card is no good."""
    return any(says_spent(item.role.removeprefix(f"{NOTE}:"), item.text) for item in items)
