"""A card put together from parts that are told from each other: by position, by the names of columns, by labels; with
its expiry. Used by lines and slices.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final
from zlib import crc32

import msgspec

from syncd.inventory.formats import shape
from syncd.inventory.formats.edges import CLAUSE, alike, unwrap
from syncd.inventory.formats.evidence import STRONG, cut_trailing
from syncd.inventory.formats.expiry import looks_like_date, may_be_date, parse_expiry
from syncd.inventory.formats.image import image_of, looks_like_image
from syncd.inventory.formats.reading import MARK, Reading
from syncd.inventory.formats.rules import MAX_KEY, Format, Refusal
from syncd.inventory.formats.split import (
    count_parts,
    split_parts,
)
from syncd.inventory.formats.text import denies, fold, is_link, is_prose_line, strip
from syncd.inventory.formats.words import (
    EXPIRES,
    KEY_ROLES,
    NOTE,
    UNSURE_DATES,
    Item,
    cut_expiry,
    dates_the_past,
    expiry_said,
    find_labels,
    hides_a_key,
    is_absent,
    role_of,
    says_spent,
)
from syncd.model import NEVER, CardKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import tzinfo


Result = CardKey | Refusal | tuple[CardKey, ...]
"""What a slice is: a key, none, or several keys of which each is certain."""

_MARKS: Final = frozenset(",;|/:&")
QUOTES: Final = ('"', "“", "”")
"""Marks at an edge that a value does not have."""
_WHO: Final = frozenset({"number", "serial", "account", "email", "link", "code"})
_CODES: Final = frozenset({"code", "pin", "password", "serial"})
_QUOTED_CODE: Final = re.compile(r"(?!'|[A-Za-z0-9-]{4,}[,;][A-Za-z0-9-]{4,}$)[!-~]{6,64}")


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


class Parts:
    """Turns the parts of a card into a key under one Reading and one Format, or says why not."""

    def __init__(self, reading: Reading, fmt: Format, timezone: tzinfo) -> None:
        self.reading = reading
        self.fmt = fmt
        self._expiry = lru_cache(maxsize=1024)(partial(parse_expiry, zone=timezone))  # few dates, many cards
        self.encoding = "utf-8" if reading.encoding in {"utf-8-sig", "unreadable"} else reading.encoding
        self.roles = [role_of(name, fmt.fields) for name in reading.columns]
        self.strict = shape.is_strict(fmt)
        self._common = NEVER if not reading.expires else self._expiry(reading.expires)
        self._dated = [
            (not role or name in UNSURE_DATES) and not dates_the_past(name)
            for name, role in zip(reading.columns, self.roles, strict=True)
        ]
        self._hidden = any(
            not role and hides_a_key(name) for name, role in zip(reading.columns, self.roles, strict=True)
        )

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

    def dated(self, result: Result) -> Result:
        """With the expiry that the payload gives once for all its keys."""
        if not self.reading.expires or isinstance(result, Refusal):
            return result
        if self._common is None:
            return Refusal("bad_expiry", "the expiry date cannot be read with certainty")
        keys = [key if key.expires_at != NEVER else replace(key, expires_at=self._common) for key in keys_of(result)]
        return keys[0] if isinstance(result, CardKey) else tuple(keys)

    def _parts(self, parts: list[str]) -> CardKey | Refusal:
        """The parts of a line or record by position; a date behind them is the expiry."""
        fmt, wanted = self.fmt, len(parts)
        while len(parts) > 1 and not parts[-1]:
            parts = parts[:-1]
        if len(parts) == 1 < wanted and len(fmt.fields) != 1 and self.reading.splitter in {"pair", "csv"}:
            return self._odd(parts[0], "nothing behind the separator")
        if len(parts) > 1 and all(part and unwrap(part) != part and part[0] in QUOTES for part in parts):
            parts = [unwrap(part) for part in parts]
        if len(parts) > 1 and self._is_code("pin"):
            parts = [*parts[:-1], cut_trailing(parts[-1])]
        if any(part[:1] in QUOTES or part[-1:] in QUOTES for part in parts):
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

    def _is_odd_size(self, parts: Sequence[str]) -> bool:
        """Whether a part is not of the digits that nearly all other lines have there, or shorter than on those."""
        sizes = self.reading.sizes
        if self.strict or len(parts) > len(sizes):
            return False
        return any(
            (len(part) != size or not part.isdigit()) if size > 0 else len(part) < -size
            for part, size in zip(map(fold, parts), sizes, strict=False)
        )

    def _odd(self, text: str, detail: str, reason: str = "unreadable_shape") -> Refusal:
        if is_prose_line(text, self.fmt.placeholders):
            return Refusal("prose", "this is a text, not a key")
        return Refusal(reason, detail)

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
        if len(lone) == 1 and lone[0] in _CODES and (items := self._labelled_cell(roles[lone[0]])):
            result = self.items(items, cell=True)
            return self.noted(result, [Item(EXPIRES, roles[EXPIRES])]) if EXPIRES in roles else result
        if len(lone) == 1 and lone[0] in _CODES and (parts := self._inside(roles[lone[0]])):
            result = self._parts(parts)
            return self.noted(result, [Item(EXPIRES, roles[EXPIRES])]) if EXPIRES in roles else result
        alone = self.reading.media == "csv" and lone == ["code"] and _QUOTED_CODE.fullmatch(roles["code"])
        return self.named(roles, whole=bool(alone))

    @staticmethod
    def _labelled_cell(cell: str) -> list[Item]:
        """The labelled values of a cell that is a whole card, on one line or several; none if it is anything else."""
        lines = [find_labels(line) for line in cell.splitlines() if strip(line)]
        items = [item for line in lines for item in line or []]
        return items if all(lines) and any(item.role in KEY_ROLES for item in items) else []

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

    def named(
        self, roles: Mapping[str, str], *, free: bool = True, whole: bool = False, cell: bool = False
    ) -> CardKey | Refusal:
        """Texts under their roles, the expiry among them."""
        for role in () if cell else self.reading.required:
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

    def cards(self, items: Sequence[Item]) -> Result:
        """The labelled values of a card, or of several that have the same labels in the same order."""
        starts = [at for at, item in enumerate(items) if item.role == items[0].role]
        size = starts[1] if len(starts) > 1 else 0
        if size <= 1 or starts != list(range(0, len(items), size)) or len(items) % size:
            return self.items(items)
        each = [items[at : at + size] for at in starts]
        if any([item.role for item in one] != [item.role for item in each[0]] for one in each):
            return self.items(items)
        keys = [self.items(one) for one in each]
        sure = tuple(key for key in keys if isinstance(key, CardKey))
        return sure if len(sure) == len({tuple(key.fields.items()) for key in sure}) == len(keys) else self.items(items)

    def items(self, items: Sequence[Item], *, cell: bool = False) -> CardKey | Refusal:
        """The labelled values of one card; in a ``cell``, they are what its column must have."""
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
        absent = _absent(roles)
        roles = {role: text for role, text in roles.items() if role not in absent}
        free = not any(mark in text for mark in between | {",", ";"} for text in roles.values())
        return self.named(roles, free=free, cell=cell)

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

    def image(self, text: str) -> CardKey | Refusal:
        """A key that is an image, in base64 or as a data URI."""
        if image_of(text) is None:
            return Refusal("unreadable_shape", "an image that is cut off, too large or of an unknown kind")
        return self.fmt.key({"image": text})


_COMPLETE: Final = 8  # characters of a code that needs no number
_MAY_BE_ABSENT: Final = frozenset({"access", "email", "email_password", "secret", "unzip"})


def _absent(roles: Mapping[str, str]) -> frozenset[str]:
    """The parts that a card says it does not have, if it is whole without them."""
    gone = frozenset(role for role, text in roles.items() if is_absent(text)) - {EXPIRES}
    left = roles.keys() - gone - {EXPIRES}
    code_alone = len(left) == 1 and left <= {"pin", "password", "code"} and gone <= {"number", "serial"}
    code_alone = code_alone and all(len(roles[role]) >= _COMPLETE for role in left)
    code_or_link = gone == {"pin"} and left and left <= {"code", "link"}
    return gone if left and (gone <= _MAY_BE_ABSENT or code_alone or code_or_link) else frozenset()


def _numbered(items: Sequence[Item]) -> Sequence[Item]:
    """The values with ``NO`` as the number of the card, where a pin stands beside it and nothing else is the number."""
    roles = {item.role for item in items}
    if f"{NOTE}:no" not in roles or roles & _WHO or not roles & {"pin", "password"}:
        return items
    return [Item("number" if item.role == f"{NOTE}:no" else item.role, item.text) for item in items]


def keys_of(result: CardKey | tuple[CardKey, ...]) -> tuple[CardKey, ...]:
    """The keys of a result."""
    return (result,) if isinstance(result, CardKey) else result
