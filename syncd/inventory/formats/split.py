"""Cutting bytes into lines and lines into parts. Used by the survey and the reader: both see the same pieces."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from syncd.inventory.formats.text import mask_links, strip

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PIECE: Final = 64 * 1024
"""A line, a card or a CSV record of more bytes is handed on in pieces, so that memory stays bounded."""
_STEP: Final = 256 * 1024
_CR: Final = 13

_SPACE: Final = " \xa0\u2000-\u200a\u202f\u205f\u3000"
SEPARATORS: Final[dict[str, re.Pattern[str]]] = {
    "-----": re.compile(r"(?<!-)-{5,16}(?!-)"),
    "----": re.compile(r"(?<!-)----(?!-)|(?<!－)－{2,8}(?!－)"),
    "---": re.compile(r"(?<!-)---(?!-)"),
    "--": re.compile(r"(?<!-)--(?!-)"),
    "——": re.compile("(?<!—)—{2,8}(?!—)|(?<!─)─{2,8}(?!─)|(?<!\u2013)\u2013{2,8}(?!\u2013)"),
    "—": re.compile("(?<!—)—(?!—)"),
    "\t": re.compile("[ \xa0\u3000]*\\t[ \\t\xa0\u3000]*"),
    ",": re.compile("[,，]"),
    "|": re.compile("[|｜]"),
    ":": re.compile("[:：]"),
    ";": re.compile("[;；]"),
    " - ": re.compile("(?<=\\S) {1,4}[-/\u2010-\u2013\u2212] {1,4}(?=\\S)"),
    "  ": re.compile(f"[{_SPACE}]{{2,}}|\u3000|(?<=\\d{{8}})[{_SPACE}](?=\\d{{4,64}}$)"),
}
"""What may stand between the parts of a line. Several spaces count only where none of the others is found."""

_TRIGGERS: Final = {"-----": "-----", "---": "--", "--": "--", "—": "—", "\t": "\t"}
_HINTS: Final = re.compile(
    f"--|[—\u2013─－\t,，|｜:：;；\u3000]|[{_SPACE}]{{2}}| [-/\u2010-\u2013\u2212] |\\d{{8}}[{_SPACE}]\\d{{4}}"
)
_HINT_BYTES: Final = b"\t,|:;= .)]#\x0b\x0c\x1c\x1d\x1e\x1f"
_NO_DIGITS: Final = bytes(set(range(256)) - set(b"0123456789\n"))


def is_plain(data: bytes) -> bool:
    """Whether a block of whole ASCII lines can have no separator, label, index, prose or blank line, found out in a few
    passes over all of it: each line has a digit, which no placeholder has.
    """
    if len(data.translate(None, _HINT_BYTES)) < len(data) or b"--" in data or data[:1] in {b"\n", b"\r"}:
        return False
    if b"\r" in data and not data.count(b"\r") == data.count(b"\r\n") == data.count(b"\n"):
        return False
    digits = data.translate(None, _NO_DIGITS)
    return digits[:1] != b"\n" and b"\n\n" not in digits and data.endswith(b"\n")


ANY: Final = "any"
"""Instead of a separator: each line has one of its own, and only one."""
_CLOCK: Final = re.compile(
    r"(?<=\d{4}[-/.]\d\d[-/.]\d\d)[ T]{1,3}\d{1,2}:\d\d(?::\d\d)?|(?<=日)\s?\d{1,2}:\d\d(?::\d\d)?"
)
_SPACES: Final = re.compile(f"[{_SPACE}]+")  # the separator " ": only below a header that uses it
_QUOTED: Final = frozenset("\t,|;")  # separators of which a quoted part may hold some
NAMES: Final[dict[str, str]] = {"\t": "tab", "  ": "spaces", " - ": "dash"}


class Cut(NamedTuple):
    """Complete lines (``pieces`` False), or a piece of one line that is too long; ``last`` says that it ends the
    line.
    """

    data: bytes
    piece: bool = False
    last: bool = True


class Cutter:
    """Cuts a stream at line ends (LF, CRLF or CR). No two pieces of one line have the same length, so that pieces of
    a line that repeats itself still differ from each other.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._inside = False  # in the middle of a long line
        self._size = PIECE  # the length of its next piece

    def feed(self, chunk: bytes) -> Iterator[Cut]:
        """What the bytes complete."""
        held = self._held
        for start in range(0, len(chunk), _STEP):
            held += chunk[start : start + _STEP]
            if self._inside and (end := _first_end(held)):
                yield self._take(end, piece=True)
                self._inside = False
            if not self._inside and (end := _last_end(held)):
                yield self._take(end)
                self._size = PIECE
            while len(held) > self._size + 1:  # one byte more: a CR at the edge may be half of a line end
                self._inside = True
                yield self._take(self._size, piece=True, last=False)
                self._size += 1

    def close(self) -> Iterator[Cut]:
        """What is left at the end of the stream."""
        if self._held:
            yield self._take(len(self._held), piece=self._inside)

    def _take(self, size: int, *, piece: bool = False, last: bool = True) -> Cut:
        data = bytes(self._held[:size])
        del self._held[:size]
        return Cut(data, piece, last)


def cuts(chunks: Iterable[bytes]) -> Iterator[Cut]:
    """The same bytes, cut at line ends."""
    cutter = Cutter()
    for chunk in chunks:
        yield from cutter.feed(chunk)
    yield from cutter.close()


def _last_end(data: bytearray) -> int:
    """The offset after the last line end that is certain: a CR as the last byte may go on as CRLF."""
    end = len(data) - 1 if data and data[-1] == _CR else len(data)
    return max(data.rfind(b"\n", 0, end), data.rfind(b"\r", 0, end)) + 1


def _first_end(data: bytearray) -> int:
    found = [at for at in (data.find(b"\n"), data.find(b"\r")) if at >= 0]
    if not found:
        return 0
    at = min(found)
    if data[at] == _CR:
        if at + 1 == len(data):
            return 0
        return at + (2 if data[at + 1] == ord("\n") else 1)
    return at + 1


class Line(NamedTuple):
    """One line of the payload: its number, where it starts and ends, its bytes with the line end.

    ``long`` marks a piece of an over-long line. ``end`` and ``resume`` (the last line number consumed) are where
    reading can be taken up again: behind the line, but before it as long as pieces of it are to come.
    """

    number: int
    start: int
    end: int
    data: bytes
    long: bool
    resume: int


class Liner:
    """Turns cuts into lines and keeps count of where they lie: ``offset`` and ``position`` are what was consumed."""

    def __init__(self, offset: int = 0, position: int = 0) -> None:
        self.offset = offset
        self.position = position
        self._start = offset  # of the long line whose pieces come, if any

    def of(self, cut: Cut) -> Iterator[Line]:
        """The lines of one cut."""
        if not cut.piece:
            for data in cut.data.splitlines(keepends=True):
                start = self.offset
                self.offset += len(data)
                self.position += 1
                yield Line(self.position, start, self.offset, data, long=False, resume=self.position)
            self._start = self.offset
            return
        start = self._start
        self.offset += len(cut.data)
        if not cut.last:
            yield Line(self.position + 1, start, start, cut.data, long=True, resume=self.position)
            return
        self.position += 1
        self._start = self.offset
        yield Line(self.position, start, self.offset, cut.data, long=True, resume=self.position)

    def skip(self, size: int, count: int) -> None:
        """Count whole lines that were read without ``of``."""
        self.offset += size
        self.position += count
        self._start = self.offset


def lines(chunks: Iterable[bytes], offset: int = 0, position: int = 0) -> Iterator[Line]:
    """Every line with its place; ``offset`` and ``position`` are where the chunks begin."""
    liner = Liner(offset, position)
    for cut in cuts(chunks):
        yield from liner.of(cut)


def without_end(data: bytes) -> bytes:
    """The bytes without their line end."""
    return data.rstrip(b"\r\n")


def count_parts(text: str) -> dict[str, int]:
    """How many parts each separator would make of a line (only those that occur). Links are passed over."""
    if not _HINTS.search(text):
        return {}
    masked = _masked(text[1:-1] if text[:1] == text[-1:] == "|" else text)
    found = {
        name: count + 1
        for name, pattern in SEPARATORS.items()
        if name not in {"  ", " - "} and _TRIGGERS.get(name, "") in masked and (count := len(pattern.findall(masked)))
    }
    for name in ("  ", " - "):
        if not found and (count := len(SEPARATORS[name].findall(masked))):
            found[name] = count + 1
    return found


def _masked(text: str) -> str:
    """The text with letters for what no separator is looked for in: links, and the clock behind a date."""
    masked = mask_links(text)
    return _CLOCK.sub(lambda match: "T" * len(match[0]), masked) if ":" in masked else masked


def lone_separator(text: str) -> str:
    """The only separator of a line that has two parts, "" if there is none or it is not certain."""
    found = count_parts(text)
    lone = next(iter(found)) if list(found.values()) == [2] else ""
    return "" if lone == "-----" else lone  # a fifth hyphen on one line may be the first character of the pin


def split_parts(text: str, separator: str) -> list[str]:
    """The parts of a line, stripped. Links are not split, nor what is quoted as in a CSV record."""
    if separator == "|" and len(text) > 2 and text[0] == text[-1] == "|":  # noqa: PLR2004 -- the edges of a table
        text = text[1:-1]
    if '"' in text and separator in _QUOTED and (row := cells(text, separator)) is not None:
        return row
    masked = _masked(text)
    if separator == ANY:
        separator = lone_separator(text)
        if not separator:
            return [strip(text)]
    parts, at = [], 0
    for match in (_SPACES if separator == " " else SEPARATORS[separator]).finditer(masked):
        parts.append(strip(text[at : match.start()]))
        at = match.end()
    parts.append(strip(text[at:]))
    return parts


_FORMULA: Final = re.compile(r'="([^"]*)"')
_GUARDED: Final = re.compile(r"'(\d+)")


def cell_text(cell: str) -> str:
    """The text of a spreadsheet's cell, stripped: without the apostrophe that keeps it from turning digits into a
    number.
    """
    bare = strip(cell)
    return match[1] if (match := _GUARDED.fullmatch(bare)) else bare


def cells(record: str, delimiter: str) -> list[str] | None:
    """The cells of one CSV record (RFC 4180), stripped; None if its quotes are broken.

    A spreadsheet's ways to keep leading zeros, ``="0123"`` and ``'0123``, are read as the text in them.
    """
    if '"' not in record:
        return [cell_text(cell) for cell in record.split(delimiter)]
    try:
        rows = list(csv.reader([record], delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    if len(rows) != 1:
        return None
    return [strip(match[1]) if (match := _FORMULA.fullmatch(cell)) else cell_text(cell) for cell in rows[0]]


def is_open(record: str, delimiter: str) -> bool:
    """Whether a CSV record that ends here ends inside quotes."""
    return (
        record.count('"') % 2 == 1 and cells(record, delimiter) is None and cells(f'{record}"', delimiter) is not None
    )


class Recorder:
    """Joins lines where the quotes of a CSV record span them. A record over PIECE bytes comes in pieces marked long."""

    def __init__(self, encoding: str, delimiter: str) -> None:
        self._encoding = encoding
        self._delimiter = delimiter
        self._held: list[bytes] = []
        self._first = self._last = Line(0, 0, 0, b"", long=False, resume=0)
        self._size = 0
        self._odd = self._over = False

    def feed(self, line: Line) -> Iterator[Line]:
        """The records that this line completes, as Lines."""
        if not self._held:
            if line.long or b'"' not in line.data or not self._opens(line.data):
                yield line
                return
            self._first = self._last = line
            self._held, self._size, self._odd, self._over = [line.data], len(line.data), True, False
            return
        first, self._last = self._first, line
        self._odd ^= line.data.count(b'"') % 2 == 1
        self._held.append(line.data)
        self._size += len(line.data)
        if not self._odd and line.end > line.start:
            yield Line(first.number, first.start, line.end, b"".join(self._held), self._over, line.resume)
            self._held = []
        elif self._size > PIECE:
            self._over = True
            yield Line(first.number, first.start, first.start, b"".join(self._held), long=True, resume=first.number - 1)
            self._held, self._size = [b""], 0

    def close(self) -> Iterator[Line]:
        """What is left: a record whose quotes never close."""
        if self._held:
            first, last = self._first, self._last
            yield Line(first.number, first.start, last.end, b"".join(self._held), self._over, last.resume)

    def _opens(self, data: bytes) -> bool:
        return is_open(without_end(data).decode(self._encoding, "replace"), self._delimiter)


def records(source: Iterable[Line], encoding: str, delimiter: str) -> Iterator[Line]:
    """Lines joined to CSV records."""
    recorder = Recorder(encoding, delimiter)
    for line in source:
        yield from recorder.feed(line)
    yield from recorder.close()
