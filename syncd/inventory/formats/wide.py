"""UTF-16 as spreadsheets and editors of Windows save it: read as UTF-8, places kept in the payload's own bytes. Used by
the survey and the reader.
"""

from __future__ import annotations

import codecs
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WIDE: Final = frozenset({"utf-16-le", "utf-16-be"})
"""Encodings of a ``Reading`` whose payload is read as UTF-8; so are its cards' slices."""
_KEEP: Final = "surrogatepass"  # half a character is no UTF-8 later, and so spoils its own line alone
_ODD: Final = 0xDC00  # stands with a byte behind the last whole unit


def wide_by_mark(start: bytes) -> str:
    """The UTF-16 that the byte order mark at the start of a payload says, "" if there is none (or UTF-32's)."""
    if start.startswith(codecs.BOM_UTF16_LE) and not start.startswith(codecs.BOM_UTF32_LE):
        return "utf-16-le"
    return "utf-16-be" if start.startswith(codecs.BOM_UTF16_BE) else ""


class Wide:
    """One stream of UTF-16 as UTF-8, and the place of each line end in it as a byte offset of the payload.

    ASCII takes one byte instead of two; where anything else ends, a mark is kept until the reader has passed it.
    """

    def __init__(self, encoding: str, offset: int = 0) -> None:
        """``offset``: where the bytes begin, in the payload and for the reader alike."""
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)(_KEEP)
        self._marks = deque([(offset, offset)])
        self._narrow = self._place = offset  # what was handed on, and what of the payload it is

    def feed(self, chunk: bytes, *, last: bool = False) -> bytes:
        """The next bytes, as UTF-8."""
        text = self._decoder.decode(chunk)
        odd = 0
        if last:
            left = self._decoder.getstate()[0]
            odd = len(left) % 2
            text += left[: len(left) - odd].decode(self._encoding, _KEEP)
            text += "".join(chr(_ODD + byte) for byte in left[len(left) - odd :])
        data = text.encode("utf-8", _KEEP)
        for line in (data,) if text.isascii() else data.splitlines(keepends=True):
            self._narrow += len(line)
            if line.isascii():
                self._place += 2 * len(line)
            else:
                self._place += len(line.decode("utf-8", _KEEP).encode(self._encoding, _KEEP))
                self._marks.append((self._narrow, self._place))
        if odd:
            self._place -= 1
            self._marks[-1] = (self._narrow, self._place)
        return data

    def chunks(self, source: Iterable[bytes]) -> Iterator[bytes]:
        """The whole stream."""
        for chunk in source:
            yield self.feed(chunk)
        yield self.feed(b"", last=True)

    def place(self, narrow: int) -> int:
        """The payload's byte offset of a line end; asked in order."""
        while len(self._marks) > 1 and self._marks[1][0] <= narrow:
            self._marks.popleft()
        at, place = self._marks[0]
        return place + 2 * (narrow - at)
