"""Turning one slice of a payload (a line, a record, a row, labelled values, an element of a document) into a card, as
a ``Reading`` and a ``Format`` say. Used by the reader, which cuts the payload.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Final
from zlib import crc32

import msgspec

from syncd.inventory.formats import shape
from syncd.inventory.formats.document import (
    Number,
    Object,
    elements,
    parse,
    roles_of,
    starts_like_json,
    unnamed,
)
from syncd.inventory.formats.edges import CLAUSE, MARKS, alike, unwrap
from syncd.inventory.formats.evidence import RECORD_PARTS, STRONG, cut_trailing
from syncd.inventory.formats.expiry import looks_like_date, may_be_date, parse_expiry
from syncd.inventory.formats.image import image_of, looks_like_image
from syncd.inventory.formats.reading import MARK, Reading
from syncd.inventory.formats.rules import MAX_KEY, Format, Refusal
from syncd.inventory.formats.split import (
    ANY,
    NAMES,
    PIECE,
    cells,
    count_parts,
    lone_separator,
    split_parts,
)
from syncd.inventory.formats.template import compiled
from syncd.inventory.formats.template import match as match_template
from syncd.inventory.formats.text import denies, fold, is_link, is_prose, is_prose_line, strip
from syncd.inventory.formats.words import (
    EXPIRES,
    NOTE,
    Item,
    cut_expiry,
    cut_notes,
    dates_the_past,
    expiry_said,
    find_labels,
    header_columns,
    hides_a_key,
    labels_in,
    normal,
    number_mark,
    numbering,
    role_of,
    says_spent,
    without_bullet,
)
from syncd.model import NEVER, CardKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import tzinfo


Result = CardKey | Refusal | tuple[CardKey, ...]
"""What a slice is: a key, none, or several keys of which each is certain."""
Quick = tuple[re.Pattern[str], tuple[str, ...]]
_MARKS: Final = frozenset(",;|/:&")
_QUOTES: Final = ('"', "“", "”")
_WHO: Final = frozenset({"number", "serial", "account", "email", "link", "code"})
_CODES: Final = frozenset({"code", "pin", "password", "serial"})
_WHOLE: Final = re.compile(r"(?=.*\d)[A-Za-z0-9]{4,}(?:[:|/=-][A-Za-z0-9]{4,}){1,5}")
_SURE: Final = frozenset({"spent", "no_key_yet", "too_long", "undecodable", "bad_expiry"})
_BEHIND: Final = re.compile(r"[,;|](?:[A-Za-z0-9-]{4,}|[\d./:-]{4,})$")
_WITH_PIN: Final = re.compile(r"(?:[A-Z][a-z]+ ){0,4}(\d{8,20}) ?[,/]? (?:PIN|Pin|pin)[.:#]? ?(\d{3,12})")
_QUOTED_CODE: Final = re.compile(r"(?!'|[A-Za-z0-9-]{4,}[,;][A-Za-z0-9-]{4,}$)[!-~]{6,64}")
_PATH: Final = re.compile(r"/[!-~]*\?|\?[A-Za-z0-9_]{1,32}=")  # goes on as an address, and as no code
_PWD: Final = re.compile(r"[?&](?:pwd|passwd|password|passcode|code)=([A-Za-z0-9]{4,8})(?![A-Za-z0-9])")


class Card(msgspec.Struct, gc=False):  # a struct: made a million times an import
    """One card of a payload, read or refused.

    ``position`` is the number of its first line (or row). ``end`` and ``line_end`` are the byte offset and line
    number to take reading up again behind it. ``raw`` is the exact bytes of its slice without the last line end
    (rows: tab-joined UTF-8). ``key`` is None exactly if ``reason`` is not empty; ``detail`` says what is wrong and
    never holds text of the card. ``supplier_key`` is the supplier's own id of the key, where an adapter gave one.
    """

    position: int
    end: int
    line_end: int
    raw: bytes
    key: CardKey | None = None
    reason: str = ""
    detail: str = ""
    supplier_key: str = ""

    def __repr__(self) -> str:
        return f"Card(line {self.position}, {self.reason or 'read'})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("line", self.position), ("outcome", self.reason or "read")]


class Slices:
    """Turns slices of text into cards under one Reading and one Format."""

    def __init__(self, reading: Reading, fmt: Format, timezone: tzinfo) -> None:
        self.reading = reading
        self.fmt = fmt
        self._expiry = lru_cache(maxsize=1024)(partial(parse_expiry, zone=timezone))  # few dates, many cards
        self.encoding = "utf-8" if reading.encoding in {"utf-8-sig", "unreadable"} else reading.encoding
        self.roles = [role_of(name, fmt.fields) for name in reading.columns]
        self.strict = shape.is_strict(fmt)
        self._common = NEVER if not reading.expires else self._expiry(reading.expires)
        self._dated = [
            not role and not dates_the_past(name) for name, role in zip(reading.columns, self.roles, strict=True)
        ]
        self._hidden = any(
            not role and hides_a_key(name) for name, role in zip(reading.columns, self.roles, strict=True)
        )

    def quick(self) -> Quick | None:
        """The short way, if payload and format have one."""
        reading = self.reading
        if (
            reading.tail
            or reading.numbered
            or reading.media == "jsonl"
            or reading.expires
            or reading.candidates
            or reading.twice
            or reading.stray
        ):
            return None
        if reading.splitter == "line":
            return self.fmt.quick()
        wide = self.fmt.kind == "auto" and reading.width > 2  # noqa: PLR2004 -- two parts are odd there
        if reading.splitter == "pair" and not reading.columns and not reading.constant and not wide:
            return self.fmt.quick(reading.separator)
        return None

    def card(self, position: int, end: int, line_end: int, raw: bytes, result: CardKey | Refusal) -> Card:
        """The card for a result."""
        if isinstance(result, Refusal):
            return Card(position, end, line_end, raw, None, result.reason, result.detail)
        return Card(position, end, line_end, raw, result)

    def text(self, raw: bytes) -> str | Refusal:
        """The slice decoded."""
        try:
            text = raw.decode(self.encoding)
        except UnicodeDecodeError as error:
            return Refusal("undecodable", f"byte {error.start + 1} of the slice is not {self.encoding}")
        if "\0" in text:
            return Refusal("undecodable", "a zero byte in the slice")
        return text

    def hopeless(self) -> bool:
        """Whether no card of this payload can be read, whatever its lines are."""
        reading = self.reading
        if reading.problem and reading.splitter == "csv":
            return self.fmt.kind != "fields"  # columns without names are tried by position: the format checks each
        return reading.encoding == "unreadable" or bool(reading.problem)

    def by_shape(self) -> bool:
        """Whether a line can be told for a key where the payload as a whole is not certain."""
        return not self.hopeless() and (self.strict or self.fmt.kind == "auto" or self.fmt.lone_field == "link")

    def refusal(self) -> Refusal | None:
        """Why no card of this payload is read, if so."""
        reading = self.reading
        if reading.encoding == "unreadable":
            return Refusal("undecodable", "the payload is no text in UTF-8, UTF-16 with a byte order mark, or GB18030")
        if reading.problem and self.hopeless():
            if reading.splitter == "csv":
                return Refusal("no_key_column", reading.problem)
            return Refusal("unreadable_shape", reading.problem)
        if reading.candidates:
            return Refusal("ambiguous", f"could be read as: {'; '.join(reading.candidates)}")
        return None

    def is_header(self, text: str) -> bool:
        """Whether this, the first line, is the header that the survey found."""
        if self.reading.splitter == "csv":
            row = cells(text, self.reading.separator)
        elif self.reading.splitter == "pair":
            row = split_parts(self.without_tail(text), self.reading.separator)
        else:
            row = [text]
        return row is not None and header_columns(row) is not None

    # --- one line -----------------------------------------------------------------------------------------------------

    def without_tail(self, bare: str) -> str:
        """The line without what a shop's record has behind the key."""
        tail = self.reading.tail
        if not tail or tail not in bare or bare[0] == tail or bare.count(tail) >= RECORD_PARTS:
            return bare
        return strip(bare.partition(tail)[0])

    def line(self, text: str) -> Result:
        """One line (line, pair, template, a document, or a whole card of labels)."""
        if self.reading.candidates and self.fmt.kind != "opaque":
            whole = (
                self.fmt.key({self.fmt.lone_field: strip(text)}) if self.strict and len(self.fmt.rules) == 1 else None
            )
            result = whole if isinstance(whole, CardKey) else self.refusal() or Refusal("ambiguous", "")
        else:
            result = self._line(text)
        return self.dated(self.rescued(strip(text), result))

    def dated(self, result: Result) -> Result:
        """With the expiry that the payload gives once for all its keys."""
        if not self.reading.expires or isinstance(result, Refusal):
            return result
        if self._common is None:
            return Refusal("bad_expiry", "the expiry date cannot be read with certainty")
        keys = [key if key.expires_at != NEVER else replace(key, expires_at=self._common) for key in _keys(result)]
        return keys[0] if isinstance(result, CardKey) else tuple(keys)

    def rescued(self, bare: str, result: CardKey | Refusal) -> Result:
        """A line that is not as the others are: the key in it, if its shape alone leaves no doubt."""
        reading, fmt = self.reading, self.fmt
        if (
            isinstance(result, CardKey)
            or result.reason in _SURE
            or reading.twice
            or (reading.stray and fmt.kind == "auto")
            or not self.by_shape()
            or len(bare) > MAX_KEY
        ):
            return result
        if (
            reading.columns
            or reading.splitter == "template"
            or reading.media == "jsonl"
            or (reading.whole and not self.strict)
        ):
            return result
        bare = self.without_tail(bare)
        if self.strict:
            head, items = labels_in(without_bullet(bare))
            if items and not head and isinstance(key := self.items(items), CardKey):
                return key
        found = shape.find(bare, fmt)
        if found is None:
            return result
        expires_at = self._expiry(found.expires) if found.expires else NEVER
        if expires_at is None:
            return Refusal("bad_expiry", "the expiry date cannot be read with certainty")
        if len(found.cards) > 1 and not all(text in bare for parts in found.cards for text in parts.values()):
            return result  # not as it is written: each of several keys has its own slice
        keys = [fmt.key(parts, expires_at) for parts in found.cards]
        sure = tuple(key for key in keys if isinstance(key, CardKey))
        if len(sure) != len(keys):
            return result
        return sure[0] if len(sure) == 1 else sure

    def _line(self, text: str) -> CardKey | Refusal:
        bare, fmt, reading = strip(text), self.fmt, self.reading
        if reading.media == "jsonl":
            return self._document(bare)
        if looks_like_image(bare) and (fmt.kind != "fields" or len(bare) > MAX_KEY):
            return self.image(bare)
        if len(bare) > MAX_KEY:
            return Refusal("too_long", f"{len(bare)} characters on one line, {MAX_KEY} at most")
        if fmt.kind == "opaque":
            return fmt.key({"code": bare})
        bare = self.without_tail(bare)
        if reading.splitter == "template":
            return self._template(bare)
        if reading.splitter == "labelled":
            items = find_labels(bare)
            return self.items(items) if items else self._odd(bare, "no label, as on the other lines")
        head, items = labels_in(bare)
        if items and not head and all(item.role.startswith(NOTE) or item.role == EXPIRES for item in items):
            return Refusal("prose", "a note, not a key")
        if items and not head and len(items) == 1 and not items[0].text:
            return Refusal("prose", "a heading, not a key")
        bare, until = cut_expiry(without_bullet(bare))
        bare, notes = (bare, [Item(EXPIRES, until)]) if until else cut_notes(bare)
        if reading.numbered:
            number, size = numbering(bare)
            if number < 0 or number_mark(bare, size) != reading.numbered:
                return self._odd(bare, "no number, as on the other lines")
            bare = strip(bare[size:])
        result = self._pair(bare) if reading.splitter == "pair" else self._single(bare)
        return self.noted(result, notes) if notes else result

    def noted(self, result: CardKey | Refusal, notes: Sequence[Item]) -> CardKey | Refusal:
        """The key with the expiry that a label behind it gives."""
        if isinstance(result, Refusal):
            return result
        for item in notes:
            if item.role != EXPIRES:
                if says_spent(item.role.removeprefix(f"{NOTE}:"), item.text):
                    return Refusal("spent", "the supplier marks it as used, void or expired")
                if not (said := expiry_said(item.text)):
                    continue
            expires_at = self._expiry(item.text if item.role == EXPIRES else said)
            if expires_at is None or result.expires_at not in {NEVER, expires_at}:
                return Refusal("bad_expiry", "the expiry date cannot be read with certainty")
            result = replace(result, expires_at=expires_at)
        return result

    def _template(self, bare: str) -> CardKey | Refusal:
        found = match_template(compiled(self.reading.separator), bare)
        if isinstance(found, str):
            # The template's own fixed texts may read as prose.
            return Refusal("unreadable_shape", found) if any(map(str.isdigit, bare)) else self._odd(bare, found)
        roles = {role_of(normal(name), self.fmt.fields) or name: text for name, text in found.items()}
        if EXPIRES in roles:
            roles[EXPIRES] = roles[EXPIRES].lstrip(":： ")
        return self.named(roles)

    def _single(self, bare: str) -> CardKey | Refusal:
        fmt = self.fmt
        if fmt.kind == "auto" and ("link" if is_link(bare) else "code") in self.reading.stray:
            return self._odd(bare, "links and codes on lines of their own: perhaps one key together", "ambiguous")
        if is_link(bare):
            return self._link(bare)
        as_sent = bare
        if self._is_code(fmt.lone_field):
            bare = cut_trailing(MARKS.sub("", bare))
            bare = unwrap(bare) if self.strict or bare[:1] not in {"'", "`"} else bare
            if self.strict and bare.endswith(".") and not bare.endswith(".."):
                bare = bare[:-1]
        if len(fmt.fields) > 1:
            parts = fold(bare).split(" ")
            return self._parts(parts if len(parts) == len(fmt.fields) else [bare])
        if fmt.kind == "auto" and (both := _WITH_PIN.fullmatch(bare)):
            return fmt.key({"number": both[1], "pin": both[2]})
        if fmt.kind == "auto" and (found := count_parts(bare)):
            if self.reading.whole and not {"  ", ",", ";", "\t", " - "} & found.keys() and _WHOLE.fullmatch(bare):
                return fmt.whole(bare)
            return self._odd(bare, "a separator where the other lines have none")
        if fmt.kind == "auto" and self._is_cut(as_sent):
            return Refusal("unreadable_shape", "shorter than the other lines: perhaps cut off")
        return fmt.key({fmt.lone_field: bare})

    def _is_cut(self, bare: str) -> bool:
        """Whether a code is shorter than nearly all others are, and not in groups of one size."""
        size = self.reading.sizes[0] if len(self.reading.sizes) == 1 else 0
        return (
            len(bare) < size
            and bare.isascii()
            and len({len(group) for group in bare.split("-")}) * 2 != bare.count("-")
        )

    def _is_odd_size(self, parts: Sequence[str]) -> bool:
        """Whether a part is not of the digits that nearly all other lines have there."""
        sizes = self.reading.sizes
        if self.strict or len(parts) > len(sizes):
            return False
        return any(
            size > 0 and (len(part) != size or not part.isdigit())
            for part, size in zip(map(fold, parts), sizes, strict=False)
        )

    def _link(self, bare: str) -> CardKey | Refusal:
        """A line that is one link as it stands; whether one with ``----`` ends there is for the format to say."""
        fmt = self.fmt
        address, dashes, behind = bare.rpartition("----")
        if dashes and len(fmt.fields) > 1 and any(rule.alphabet == "link" for rule in fmt.rules):
            return self._parts([address, behind])
        if dashes and fmt.kind == "auto" and "?" not in address and not _PATH.search(behind):
            return Refusal("ambiguous", "a link with ---- in its path: perhaps a link and a code")
        if (tail := _BEHIND.search(bare)) and "?" not in bare[: tail.start()]:
            return Refusal("ambiguous", "a link that may have a code or a date behind it")
        address, bar, behind = bare.rpartition("|")
        if bar and fmt.fields == ("link", "access") and is_link(address):
            return self._parts([address, behind])
        if fmt.fields == ("link", "access") and (inside := _PWD.search(bare)):
            return fmt.key({"link": bare, "access": inside[1]})
        return fmt.key({fmt.lone_field: bare}) if len(fmt.fields) <= 1 else self._parts([bare])

    def _pair(self, bare: str) -> CardKey | Refusal:
        reading, fmt = self.reading, self.fmt
        bare = unwrap(bare) if bare[:1] in _QUOTES or bare[:1] == "'" else bare
        parts = [bare] if is_link(bare) else split_parts(bare, reading.separator)
        if len(reading.sizes) == 2 and (len(parts) == 1 or reading.separator == ANY):  # noqa: PLR2004
            other = split_parts(bare, lone_separator(bare) or " ")
            if [len(part) for part in other] == [abs(size) for size in reading.sizes] and all(map(str.isalnum, other)):
                parts = other
            elif reading.separator == ANY:
                return self._odd(bare, "parts that are not as long as on the other lines")
        if reading.columns:
            return self.columns(parts)
        if self._has_colons(parts):
            parts = [parts[0], strip(bare.partition(":")[2])]
        if len(fmt.fields) == 1:  # its own spaces may look like a separator
            whole = fmt.key({fmt.lone_field: bare})
            return whole if isinstance(whole, CardKey) else self._parts(parts)
        if fmt.kind == "auto" and len(parts) == 1 and not is_link(bare):
            return self._odd(bare, f"no {_name(reading.separator)} as on the other lines")
        return self._parts(parts)

    def _has_colons(self, parts: Sequence[str]) -> bool:
        """Whether the colons behind an e-mail address belong to its password: most lines have one, and what is between
        them is nothing of its own (another address, a date, a word, a telephone number).
        """
        fmt, reading = self.fmt, self.reading
        free = fmt.kind == "fields" and len(fmt.rules) == reading.width == 2 < len(parts) and not fmt.rules[1].groups  # noqa: PLR2004
        if not free or reading.separator != ":" or fmt.rules[1].alphabet != "visible" or "@" not in parts[0]:
            return False
        return all(part and "@" not in part and not part.isalpha() and not part.isdigit() for part in parts[1:])

    def _parts(self, parts: list[str]) -> CardKey | Refusal:
        """The parts of a line or record by position; a date behind them is the expiry."""
        fmt, wanted = self.fmt, len(parts)
        while len(parts) > 1 and not parts[-1]:
            parts = parts[:-1]
        if len(parts) == 1 < wanted and len(fmt.fields) != 1 and self.reading.splitter in {"pair", "csv"}:
            return self._odd(parts[0], "nothing behind the separator")
        if len(parts) > 1 and all(part and unwrap(part) != part and part[0] in _QUOTES for part in parts):
            parts = [unwrap(part) for part in parts]
        if len(parts) > 1 and self._is_code("pin"):
            parts = [*parts[:-1], cut_trailing(parts[-1])]
        if any(part[:1] in _QUOTES or part[-1:] in _QUOTES for part in parts):
            return self._odd(" ".join(parts), "a quotation mark at the edge of a part")
        dated = looks_like_date(fold(parts[-1])) if len(parts) == (len(fmt.fields) or 2) + 1 else False
        expires_at = self._expiry(parts[-1]) if dated else NEVER
        if expires_at is None:
            return Refusal("bad_expiry", "the expiry date cannot be read with certainty")
        parts = parts[:-1] if dated else parts
        problem = self._odd_parts(parts, wanted)
        if problem:
            return problem
        roles = fmt.read_parts(parts, constant=self.reading.constant)
        if isinstance(roles, Refusal):
            return self._odd(" ".join(parts), roles.detail, roles.reason)
        return fmt.key(roles, expires_at)

    def _odd_parts(self, parts: list[str], wanted: int) -> Refusal | None:
        """What speaks against parts beside those of the other lines; ``wanted`` counts the date behind them too."""
        fmt = self.fmt
        if fmt.kind == "auto" and len(parts) == 2 and self.reading.separator not in STRONG and alike(*parts):  # noqa: PLR2004
            return Refusal("ambiguous", "two codes of one shape: perhaps two cards")
        if fmt.kind == "auto" and len(parts) == wanted < self.reading.width:
            return self._odd(" ".join(parts), f"{wanted} parts, where most lines have {self.reading.width}")
        if self._is_odd_size(parts):
            return self._odd(" ".join(parts), "a part that is not as long as on the other lines")
        twice = self.reading.twice
        if twice and len(parts) > 1 and crc32(parts[0].encode("utf-8", "replace")) & MARK in twice:
            return Refusal("ambiguous", "this number comes with another pin too")
        return None

    def _odd(self, text: str, detail: str, reason: str = "unreadable_shape") -> Refusal:
        if is_prose_line(text, self.fmt.placeholders):
            return Refusal("prose", "this is a text, not a key")
        return Refusal(reason, detail)

    # --- named parts --------------------------------------------------------------------------------------------------

    def columns(self, row: Sequence[str]) -> CardKey | Refusal:
        """Cells under the names of the Reading's columns."""
        wanted = len(self.roles)
        if len(row) < wanted or any(row[wanted:]):
            return Refusal("not_this_format", f"{len(row)} column{'s' if len(row) != 1 else ''}, {wanted} expected")
        if self._hidden:
            return Refusal("no_key_column", "a column whose name is not known, and may be a part of the key")
        if any(says_spent(name, cell) for name, cell in zip(self.reading.columns, row, strict=False)):
            return Refusal("spent", "the supplier marks it as used, void or expired")
        roles = {role: cell for role, cell in zip(self.roles, row, strict=False) if role and role != NOTE}
        notes = [cell for role, cell in zip(self.roles, row, strict=False) if role in {"", NOTE}]
        if EXPIRES not in roles and (said := next(filter(None, map(expiry_said, notes)), "")):
            roles[EXPIRES] = said
        strange = [cell for role, cell in zip(self._dated, row, strict=False) if role]
        if any(map(may_be_date, strange)):
            return Refusal("bad_expiry", "a date under a name that is not known: perhaps the expiry")
        lone = [role for role in roles if role != EXPIRES]
        if len(lone) == 1 and lone[0] in _CODES and (parts := self._inside(roles[lone[0]])):
            result = self._parts(parts)
            return self.noted(result, [Item(EXPIRES, roles[EXPIRES])]) if EXPIRES in roles else result
        alone = self.reading.media == "csv" and lone == ["code"] and _QUOTED_CODE.fullmatch(roles["code"])
        return self.named(roles, whole=bool(alone))

    def _inside(self, cell: str) -> list[str]:
        """The parts of a cell that is a whole card, if it is one: ``number----pin`` in a column of its own."""
        if len(self.fmt.fields) == 1 or is_link(cell):
            return []
        found = count_parts(cell)
        strong = [name for name in found if name in {"-----", "----", "---", "——", "\t", "|"}]
        if self.fmt.kind == "fields" and not strong:
            strong = list(found)
        parts = split_parts(cell, strong[0]) if len(strong) == 1 else []
        return parts if len(parts) == (len(self.fmt.fields) or 2) else []

    def named(self, roles: Mapping[str, str], *, free: bool = True, whole: bool = False) -> CardKey | Refusal:
        """Texts under their roles, the expiry among them."""
        for role in self.reading.required:
            if not roles.get(role):
                return Refusal("missing_field", f"{role} is missing")
        if any(len(text) > MAX_KEY and not looks_like_image(text) for text in roles.values()):
            return Refusal("too_long", f"a field of more than {MAX_KEY} characters")
        if any("\n" in text or "\r" in text for text in roles.values()):
            return Refusal("unreadable_shape", "a line end inside a field")
        expires_at = self._expiry(roles[EXPIRES]) if EXPIRES in roles else NEVER
        if expires_at is None:
            return Refusal("bad_expiry", "the expiry date cannot be read with certainty")
        return self.fmt.key(roles, expires_at, named=free, whole=whole)

    def record(self, text: str) -> Result:
        """One CSV record."""
        row = cells(text, self.reading.separator)
        if row is None:
            return Refusal("unreadable_shape", "the quotes of the CSV record are broken")
        for inner in (line for cell in row if "\n" in cell for line in cell.splitlines()):
            inside = cells(inner, self.reading.separator)
            if inside and len(inside) > 1 and isinstance(self.columns(inside), CardKey):
                return Refusal("unreadable_shape", "a quoted text holds what may be records of its own")
        if self.reading.columns:
            return self.dated(self.columns(row))
        if len(self.fmt.fields) == 1:
            row = [unwrap(cell) for cell in row]
        result = self._parts(row)
        return self.dated(self.rescued("\t".join(cell for cell in row if cell), result))

    def row(self, row: Sequence[str], size: int) -> Result:
        """One row of a spreadsheet."""
        refusal = self.refusal()
        if refusal:
            return refusal
        if size > PIECE:
            return Refusal("too_long", f"a row of more than {PIECE // 1024} KiB")
        if self.reading.splitter == "csv":
            return self.dated(self.columns(row) if self.reading.columns else self._parts(list(row)))
        used = [cell for cell in row if cell]
        if len(used) != 1:
            return Refusal("no_key_column", f"{len(used)} cells are filled, and no header names the one with the key")
        return self.line(used[0])

    def items(self, items: Sequence[Item]) -> CardKey | Refusal:
        """The labelled values of one card."""
        roles: dict[str, str] = {}
        items = _numbered(items)
        for item in items:
            if item.role in roles:
                return Refusal("ambiguous", "a label twice: perhaps two cards on one line")
            if item.role.startswith(NOTE) and says_spent(item.role.removeprefix(f"{NOTE}:"), item.text):
                return Refusal("spent", "the supplier marks it as used, void or expired")
            roles[item.role] = item.text
        anchor = self.reading.anchor
        if anchor and anchor != f"{NOTE}:no" and items and items[0].role != anchor:
            return Refusal("missing_field", f"the card does not begin with its {anchor.removeprefix(NOTE + ':')}")
        if problem := self._unmarked(items, roles):
            return problem
        marks = {item.text[-1:] for item in items if not item.role.startswith(NOTE)}
        between = {item.text[-1:] for item in items[:-1]} & _MARKS
        if items and (clause := CLAUSE.search(items[-1].text)) and not denies(clause[0]):
            roles[items[-1].role] = items[-1].text[: clause.start()]
        if items and (self._is_code(items[-1].role) or (len(items) > 1 and len(marks) == 1 and marks <= _MARKS)):
            roles[items[-1].role] = unwrap(cut_trailing(roles[items[-1].role]))
        said = [expiry_said(item.text) for item in items if item.role.startswith(NOTE)]
        if EXPIRES not in roles and any(said):
            roles[EXPIRES] = next(filter(None, said))
        last = items[-1].role if items else ""
        if EXPIRES not in roles and (until := cut_expiry(roles.get(last, ""))[1]):
            roles |= {last: cut_expiry(roles[last])[0], EXPIRES: until}
        roles = {role: text for role, text in roles.items() if not role.startswith(NOTE)}
        free = not any(mark in text for mark in between | {",", ";"} for text in roles.values())
        return self.named(roles, free=free)

    def _unmarked(self, items: Sequence[Item], roles: dict[str, str]) -> Refusal | None:
        """Take the separators from the ends of values; a mark that may be a value's own is not certain."""
        sure = {item.text[-1:] for item in items[:-1] if self._is_code(item.role)} & _MARKS
        for item in items[:-1]:
            if item.text[-1:] in _MARKS and not item.role.startswith(NOTE):
                apart = item.text[-2:-1].isspace()
                if (
                    not apart
                    and item.text[-1:] not in sure
                    and item.role not in {EXPIRES, "account", "email"}
                    and not self._is_code(item.role)
                ):
                    return Refusal("ambiguous", f"{item.role} ends in a mark that may be a separator")
                roles[item.role] = strip(item.text[:-1])
        return None

    def _is_code(self, role: str) -> bool:
        """Whether this role's value cannot end in punctuation, which then is a separator."""
        if self.fmt.kind == "auto":
            return role in {"number", "serial", "pin", "code"}
        return all(rule.ascii and rule.alphabet not in {"visible", "email"} for rule in self.fmt.rules)

    # --- documents and images -----------------------------------------------------------------------------------------

    def _document(self, bare: str) -> CardKey | Refusal:
        """A line that is a document of its own."""
        if parse(bare) is None:
            return self._odd(bare, "not JSON, as the other lines")
        found = list(islice(elements(bare), 2))
        if len(found) != 1:
            return Refusal("ambiguous", "not exactly one card in the document on this line")
        result = self.element(found[0].value)
        return Refusal("ambiguous", "several keys in one text") if isinstance(result, tuple) else result

    def element(self, value: object, expires: str = "") -> Result:
        """One card of a document; ``expires`` is the expiry that stands beside a list of them."""
        result = self._element(value)
        if expires and not isinstance(result, Refusal):
            at = self._expiry(expires)
            if at is None:
                return Refusal("bad_expiry", "the expiry date cannot be read with certainty")
            keys = tuple(key if key.expires_at != NEVER else replace(key, expires_at=at) for key in _keys(result))
            return keys[0] if isinstance(result, CardKey) else keys
        return result

    def _element(self, value: object) -> Result:
        if isinstance(value, Refusal):
            return value
        if isinstance(value, list):
            row = [strip(text) for text in value if isinstance(text, str) and not isinstance(text, Number)]
            return self._parts(row) if len(row) == len(value) else Refusal("unreadable_shape", "a list that is no card")
        roles = roles_of(value) if isinstance(value, Object) else {"": value} if isinstance(value, str) else {}
        if isinstance(roles, Refusal):
            return roles
        parts = {role: text for role, text in roles.items() if role != EXPIRES}
        if (
            not parts
            and isinstance(value, Object)
            and (self.fmt.kind == "auto" or (self.strict and len(self.fmt.rules) == 1))
        ):
            code = shape.lone_code(unnamed(value), self.fmt)
            parts = {"code": code} if code else {}
        if not parts:
            texts = [text for _, text in value if isinstance(text, str)] if isinstance(value, Object) else []
            return self._prose(texts) or Refusal("missing_field", "no part of a key is here")
        if any(isinstance(text, Number) for text in parts.values()) and not self._keeps_zeros():
            texts = [text for _, text in value if isinstance(text, str)] if isinstance(value, Object) else []
            return self._prose(texts) or Refusal("unreadable_shape", "a bare number: zeros at its start may be lost")
        if len(parts) > 1:
            return self.named(roles)
        if self.fmt.kind == "auto" and "number" in parts and not is_link(strip(parts["number"])):
            return Refusal("missing_field", "a card number without its pin")
        result = self._text_card(*parts.values())
        if EXPIRES in roles and not isinstance(result, tuple):
            return self.noted(result, [Item(EXPIRES, roles[EXPIRES])])
        return Refusal("ambiguous", "several keys and one expiry") if EXPIRES in roles else result

    def _prose(self, texts: Iterable[str]) -> Refusal | None:
        said = any(is_prose(text, self.fmt.placeholders) for text in texts)
        return Refusal("prose", "an answer in words, not a key") if said else None

    def _text_card(self, text: str) -> Result:
        """A card that is one text of a document, which may have parts of its own."""
        bare = strip(text)
        if looks_like_image(bare):
            return self.image(bare)
        if starts_like_json(bare):
            return Refusal("unreadable_shape", "a document inside a text")
        if self.reading.candidates and self.fmt.kind != "opaque":
            return self.refusal() or Refusal("ambiguous", "the text could be read in several ways")
        if "\n" not in bare and "\r" not in bare:
            return self.line(bare) if self.reading.media == "json" else self._single(bare)
        said = [line for line in bare.splitlines() if strip(line)]
        labelled = [find_labels(line) for line in said]
        if all(labelled):
            together = self.items([item for items in labelled for item in items or []])
            if isinstance(together, CardKey) or self.reading.media != "json":
                return together
        return self._list(said) if self.reading.media == "json" else Refusal("ambiguous", "several lines in one text")

    def _list(self, said: Sequence[str]) -> Result:
        """A text with a card on each line: all of them are keys, or none is taken."""
        found: list[CardKey] = []
        for line in said:
            result = self.line(line)
            if isinstance(result, Refusal):
                return Refusal("ambiguous", "several lines in one text, and not each of them a key")
            found += _keys(result)
        distinct = {tuple(sorted(key.canonical.items())) for key in found}
        return tuple(found) if len(distinct) == len(found) else Refusal("ambiguous", "a key twice in one text")

    def _keeps_zeros(self) -> bool:
        """Whether a key of the format that had lost a zero would be too short to pass."""
        spans = [rule.lengths for rule in self.fmt.rules]
        exact = all(len(lengths) == 1 and lengths[0][0] == lengths[0][1] for lengths in spans)
        return self.fmt.kind == "fields" and exact

    def image(self, text: str) -> CardKey | Refusal:
        """A key that is an image, in base64 or as a data URI."""
        if image_of(text) is None:
            return Refusal("unreadable_shape", "an image that is cut off, too large or of an unknown kind")
        return self.fmt.key({"image": text})


def _numbered(items: Sequence[Item]) -> Sequence[Item]:
    """The values with ``NO`` as the number of the card, where a pin stands beside it and nothing else is the number."""
    roles = {item.role for item in items}
    if f"{NOTE}:no" not in roles or roles & _WHO or not roles & {"pin", "password"}:
        return items
    return [Item("number" if item.role == f"{NOTE}:no" else item.role, item.text) for item in items]


def _keys(result: CardKey | tuple[CardKey, ...]) -> tuple[CardKey, ...]:
    return (result,) if isinstance(result, CardKey) else result


def _name(separator: str) -> str:
    return "separator" if separator == ANY else NAMES.get(separator, separator)
