"""One line, record or row of a payload as a card. Used by slices, which knows documents too."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from syncd.inventory.formats import shape
from syncd.inventory.formats.edges import MARKS, unwrap
from syncd.inventory.formats.evidence import RECORD_PARTS, cut_trailing
from syncd.inventory.formats.image import looks_like_image
from syncd.inventory.formats.parts import QUOTES, Parts, Result
from syncd.inventory.formats.rules import MAX_KEY, Refusal
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
from syncd.inventory.formats.text import fold, is_link, strip
from syncd.inventory.formats.words import (
    EXPIRES,
    NOTE,
    Item,
    cut_expiry,
    cut_notes,
    find_labels,
    header_columns,
    labels_in,
    normal,
    number_mark,
    numbering,
    role_of,
    without_bullet,
    without_legend,
)
from syncd.model import NEVER, CardKey

if TYPE_CHECKING:
    from collections.abc import Sequence


Quick = tuple[re.Pattern[str], tuple[str, ...]]
_WHOLE: Final = re.compile(r"(?=.*\d)[A-Za-z0-9]{4,}(?:[:|/=-][A-Za-z0-9]{4,}){1,5}")
_SURE: Final = frozenset({"spent", "no_key_yet", "too_long", "undecodable", "bad_expiry"})
_BEHIND: Final = re.compile(r"[,;|](?:[A-Za-z0-9-]{4,}|[\d./:-]{4,})$")
_WITH_PIN: Final = re.compile(r"(?:[A-Z][a-z]+ ){0,4}(\d{8,20}) ?[,/]? (?:PIN|Pin|pin)[.:#]? ?(\d{3,12})")
_PATH: Final = re.compile(r"/[!-~]*\?|\?[A-Za-z0-9_]{1,32}=")  # goes on as an address, and as no code
_PWD: Final = re.compile(r"[?&](?:pwd|passwd|password|passcode|code)=([A-Za-z0-9]{4,8})(?![A-Za-z0-9])")


class Lines(Parts):
    """Turns lines into cards under one Reading and one Format."""

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

    def is_header(self, text: str) -> bool:
        """Whether this, the first line, is the header that the survey found."""
        text = without_legend(text)
        if self.reading.splitter == "csv":
            row = cells(text, self.reading.separator)
        elif self.reading.splitter == "pair":
            row = split_parts(self.without_tail(text), self.reading.separator)
        else:
            row = [text]
        return row is not None and header_columns(row) is not None

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
        head, items = labels_in(without_bullet(bare))
        if items and not head:
            if self.strict and isinstance(key := self.items(items), CardKey):
                return key
            if all(item.role.startswith(NOTE) for item in items):
                return result
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
        bare = unwrap(bare) if bare[:1] in QUOTES or bare[:1] == "'" else bare
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


def _name(separator: str) -> str:
    return "separator" if separator == ANY else NAMES.get(separator, separator)
