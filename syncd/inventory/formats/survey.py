"""What a payload is: encoding, splitter, separator, columns, found by evidence over all of its lines. Called by sync
before anything is read, so that the first lines alone never decide.

A ``Survey`` is fed the payload as it streams and keeps counts only. It decides a ``Reading``, which the daemon
stores, so that an import which is taken up again reads the rest in the same way.
"""

from __future__ import annotations

import codecs
import contextlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from syncd.inventory.formats.document import MAX_DOCUMENT, Object, elements, parse, starts_like_json, texts_of
from syncd.inventory.formats.evidence import DOMINANT, Evidence, Table
from syncd.inventory.formats.reading import Reading, is_split, pair_name
from syncd.inventory.formats.split import (
    Cutter,
    Line,
    Recorder,
    cell_text,
    cells,
    is_plain,
)
from syncd.inventory.formats.text import strip
from syncd.inventory.formats.wide import WIDE, Wide, wide_by_mark
from syncd.inventory.formats.words import (
    ROLES,
    header_columns,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from syncd.inventory.formats.split import Cut

CHARSETS: Final = {
    **dict.fromkeys(("utf-8", "utf8"), "utf-8"),
    **dict.fromkeys(("gb18030", "gbk", "gb2312", "cp936"), "gb18030"),
    **dict.fromkeys(("big5", "cp950"), "cp950"),
    **dict.fromkeys(("shift_jis", "sjis", "cp932"), "cp932"),
    **dict.fromkeys(("euc-kr", "cp949"), "cp949"),
    **dict.fromkeys(("windows-1252", "cp1252", "latin-1", "iso-8859-1"), "cp1252"),
    **dict.fromkeys(("utf-16", "utf-16le"), "utf-16-le"),
    "utf-16be": "utf-16-be",
}
"""Charsets that may be declared, and the codec for each. A byte order mark of UTF-16 has the last word; without one,
``utf-16`` is little-endian, as browsers have it (WHATWG Encoding Standard).
"""

_NUL_SHARE: Final = 0.1
_DECODABLE: Final = 0.9
_PEEK: Final = 4096
_IDEOGRAPH: Final = re.compile("[\u3000-\u9fff\uac00-\ud7af\uff00-\uffef]")

Media = Literal["text", "csv"]


def _delimiter(text: str) -> str:
    """The delimiter under which the first line names most columns; a comma if none does."""

    def known(delimiter: str) -> int:
        row = header_columns(cells(text, delimiter) or [])
        return sum(name in ROLES for name in row) if row else 0

    return max((",", "\t", ";"), key=lambda delimiter: (known(delimiter), text.count(delimiter)))


class Survey:
    """Fed the whole payload in chunks (cut anywhere), it decides how to read it; memory does not grow with it."""

    def __init__(self, media: Media = "text", charset: str | None = None) -> None:
        """``charset``, one of CHARSETS, if the supplier declares it. Raises ValueError for any other."""
        if charset is not None and charset.lower() not in CHARSETS:
            raise ValueError("unknown charset")
        self._charset = CHARSETS[charset.lower()] if charset else ""
        self._wide: Wide | None = None
        self._media = media
        self._document: bytearray | None = bytearray()  # the payload, as long as it may be one JSON document
        self._too_large = False
        self._opening = b""  # the first bytes of a payload that begins with a bracket
        self._json_lines = self._said = 0
        self._evidence = Evidence()
        self._table = Table()
        self._recorder: Recorder | None = None
        self._delimiter = ","
        self._cutter = Cutter()
        self._start = b""  # the first bytes, until they tell whether it is UTF-16
        self._begun = False
        self._total = self._nul = self._other = self._utf8 = self._gb = self._cjk = 0
        self._closed = False

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the payload."""
        if not self._begun:
            self._start += chunk
            if len(self._start) < len(codecs.BOM_UTF32_LE):
                return
            chunk = self._begin()
        self._feed(self._wide.feed(chunk) if self._wide else chunk)

    def _begin(self) -> bytes:
        """What came until it is told that it is UTF-16, or is not."""
        self._begun = True
        encoding = wide_by_mark(self._start) or (self._charset if self._charset in WIDE else "")
        if encoding:
            self._wide, self._charset = Wide(encoding), encoding
        start, self._start = self._start, self._start[: len(codecs.BOM_UTF8)]
        return start

    def _feed(self, chunk: bytes) -> None:
        if self._document is not None:
            self._document += chunk
            start = self._document[:_PEEK].lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            if (start and start not in b"{[") or len(self._document) > MAX_DOCUMENT:
                self._too_large = len(self._document) > MAX_DOCUMENT
                self._document = None
            else:
                self._opening = bytes(self._document[:_PEEK])
        for cut in self._cutter.feed(chunk):
            self._cut(cut)

    def decide(self, split: str = "auto") -> Reading:
        """How to read the payload. ``split`` names a splitter, and then only the rest is decided by evidence.

        Raises ValueError if ``is_split`` would not take the name.
        """
        if not is_split(split):
            msg = f"unknown splitter {split!r}"
            raise ValueError(msg)
        if not self._closed:
            self._closed = True
            start = b"" if self._begun else self._begin()
            self._feed(self._wide.feed(start, last=True) if self._wide else start)
            for cut in self._cutter.close():
                self._cut(cut)
            if self._recorder:
                self._records(self._recorder.close())
        encoding = self._encoding()
        if encoding == "unreadable":
            return Reading(encoding, media=self._media)
        if split not in {"line", "csv"} and self._media == "text":
            reading = self._json(encoding, split)
            if reading is not None:
                return reading
        if split == "csv" or (split == "auto" and self._media == "csv"):
            reading = self._table.reading(encoding, self._delimiter, self._media)
            if reading is not None:
                rows = self._evidence.counts_rows(reading.separator) or self._evidence.is_constant(reading.separator)
                return replace(reading, expires=self._evidence.expires(), constant=rows and not reading.columns)
            if split == "csv":
                return Reading(encoding, "csv", self._delimiter, ("code",), required=("code",), media=self._media)
        return self._evidence.reading(encoding, split, self._media)

    def evidence(self) -> dict[str, int]:
        """What was counted, by the name of a splitter: how many lines speak for it. Ask after ``decide``."""
        found = {"lines": self._evidence.total, "prose": self._evidence.prose, "labelled": self._evidence.labels.lines}
        found |= {pair_name(name): counts.total() for name, counts in self._evidence.parts.items()}
        found |= {"numbered": self._evidence.numbers, "record": self._evidence.records, "json": self._json_lines}
        return {name: count for name, count in found.items() if count}

    def _json(self, encoding: str, split: str) -> Reading | None:
        """The Reading of a JSON document, of a document on each line, or of what set out to be one; else None."""
        forced = split == "json"
        inner = "auto" if forced else split
        codec = "utf-8" if self._wide else encoding
        if self._document is not None:
            try:
                text = bytes(self._document).decode(codec)
            except UnicodeDecodeError:
                text = ""
            if text and parse(text) is not None and (forced or strip(text)[:1] in {"[", "{"}):
                return self._in_document(text, encoding, inner)
        if self._json_lines and self._json_lines >= DOMINANT * self._said:
            return Reading(encoding, media="jsonl")
        if not forced and not starts_like_json(self._opening.decode(codec, "replace")):
            return None
        too_large = f"a JSON document of more than {MAX_DOCUMENT >> 20} MiB"
        return Reading(encoding, media=self._media, problem=too_large if self._too_large else "broken JSON, or none")

    @staticmethod
    def _in_document(text: str, encoding: str, split: str) -> Reading:
        """How the texts of a document are to be read, by the evidence of all of them."""
        evidence = Evidence()
        for element in elements(text):
            for line in texts_of(element.value):
                evidence.line(line)
        if not evidence.total:
            return Reading(encoding, media="json")
        reading = evidence.reading(encoding, split, "json")
        if reading.splitter == "labelled":
            return replace(reading, layout="line", anchor="", required=())
        return replace(reading, header=False, columns=())

    def _encoding(self) -> str:
        if self._nul > _NUL_SHARE * self._total or (self._wide and 2 * (self._other - self._utf8) > self._total):
            return "unreadable"
        if self._charset:
            bom = self._charset == "utf-8" and self._start.startswith(codecs.BOM_UTF8)
            return "utf-8-sig" if bom else self._charset
        if self._start.startswith(codecs.BOM_UTF8):
            return "utf-8-sig"
        if self._utf8 < self._other == self._gb and not self._cjk:
            return "gb18030"  # short Chinese words in it may pass for UTF-8, one or the other
        if self._utf8 >= _DECODABLE * self._other or self._gb < _DECODABLE * self._other:
            return "utf-8"
        return "gb18030"

    def _cut(self, cut: Cut) -> None:
        data = cut.data
        if cut.piece:
            self._total += 1
            self._nul += b"\0" in data
            self._evidence.plain(1)
            return
        if self._evidence.header is None:
            first = data.find(b"\n") + 1
            for line in data[:first].splitlines(keepends=True):
                self._line(line)
            data = data[first:]
        quick = self._media == "text" and self._document is None and self._evidence.settled()
        if quick and data.isascii() and b"\0" not in data and is_plain(data):
            count = data.count(b"\n")
            self._total += count
            self._evidence.plain(count, data)
            return
        for line in data.splitlines(keepends=True):
            self._line(line)

    def _line(self, data: bytes) -> None:
        self._total += 1
        self._nul += b"\0" in data
        text = self._text(data)
        self._evidence.line(text)
        if (self._document or self._json_lines) and strip(text):
            self._said += 1
            self._json_lines += isinstance(parse(text), Object)
        if self._media == "csv":
            if self._recorder is None:
                if not strip(text):
                    return
                self._delimiter = _delimiter(strip(text))
                self._recorder = Recorder("utf-8", self._delimiter)
            self._records(self._recorder.feed(Line(1, 0, len(data), data, long=False, resume=1)))

    def _text(self, data: bytes) -> str:
        if data.isascii():
            return data.decode("ascii")
        self._other += 1
        if self._charset and not self._wide:
            return data.decode(self._charset, "replace")
        utf8 = gb = None
        with contextlib.suppress(UnicodeDecodeError):
            utf8 = data.decode("utf-8")
            self._utf8 += 1
            self._cjk += _IDEOGRAPH.search(utf8) is not None
        with contextlib.suppress(UnicodeDecodeError):
            gb = data.decode("gb18030")
            self._gb += 1
        return utf8 or gb or data.decode("utf-8", "replace")

    def _records(self, source: Iterator[Line]) -> None:
        for record in source:
            if not record.long:
                row = cells(_guess(record.data), self._delimiter)
                self._table.add(row if row is not None else ["?"])


def _guess(data: bytes) -> str:
    try:
        return strip(data.decode("utf-8"))
    except UnicodeDecodeError:
        return strip(data.decode("gb18030", "replace"))


def survey_rows(rows: Iterable[Sequence[str]], split: str = "auto") -> Reading:
    """How to read the rows of a spreadsheet: by its header, or, with a single column, as lines of text."""
    table, evidence = Table(), Evidence()
    for row in rows:
        stripped = [cell_text(cell) for cell in row]
        table.add(stripped)
        if any(stripped):
            evidence.line(" ".join(filter(None, stripped)))
    reading = table.reading("utf-8", "\t", "rows")
    if reading is not None and split in {"auto", "csv"}:
        return replace(reading, expires=evidence.expires())
    reading = evidence.reading("utf-8", "auto" if split == "csv" else split, "rows")
    if reading.splitter == "labelled" and reading.layout != "line":
        return Reading(media="rows", candidates=("line", "labelled"))
    return reading
