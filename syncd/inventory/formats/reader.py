"""Reading a payload into cards, as a ``Reading`` and a ``Format`` say. Called by sync (whole payloads), by purchases
and by the release of what lies in quarantine (single slices).

Reading is total: whatever the bytes, it raises nothing, loses nothing and takes linear time. A card either is a key
or has a reason, with the exact bytes of its slice.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from syncd.inventory.formats.document import (
    MAX_DOCUMENT,
    Number,
    Object,
    elements,
    parse,
    roles_of,
    starts_like_json,
    texts_of,
)
from syncd.inventory.formats.expiry import looks_like_date, parse_expiry
from syncd.inventory.formats.image import data_uri, image_of, looks_like_image
from syncd.inventory.formats.image import media_type as type_of_image
from syncd.inventory.formats.rules import MAX_KEY, Format, Refusal, default_display
from syncd.inventory.formats.split import (
    NAMES,
    PIECE,
    Line,
    Liner,
    cells,
    count_parts,
    cuts,
    lines,
    records,
    split_parts,
    without_end,
)
from syncd.inventory.formats.survey import RECORD_PARTS, Reading, Survey, cut_trailing, header_like, is_gap
from syncd.inventory.formats.template import compiled
from syncd.inventory.formats.template import match as match_template
from syncd.inventory.formats.text import fold, is_link, is_prose, is_prose_line, strip
from syncd.inventory.formats.words import (
    EXPIRES,
    NOTE,
    Item,
    cut_notes,
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
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import tzinfo

    from syncd.inventory.formats.split import Cut

_Quick = tuple[re.Pattern[str], tuple[str, ...]]
_MARKS: Final = frozenset(",;|/:")
_QUOTES: Final = ('"', "“", "”")
_BOM: Final = b"\xef\xbb\xbf"
_EXPIRY_WORDS: Final = re.compile("有效|过期|到期|截止|expir|valid", re.IGNORECASE)


@dataclass(slots=True, repr=False)
class Card:
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


def read(
    chunks: Iterable[bytes], reading: Reading, fmt: Format, *, offset: int = 0, position: int = 0, timezone: tzinfo
) -> Iterator[Card]:
    """The cards of a payload, in order. Never raises (but for what the chunks raise).

    The chunks begin at byte ``offset`` of the payload, behind line ``position``: 0 and 0, or ``end`` and ``line_end``
    of a card that was read before, and then exactly the cards behind it follow. A line or CSV record of more than 64
    KiB comes as several cards, each too_long; until its last piece, their ``end`` stays before it. So does that of a
    JSON document's cards until the last: taken up again, it is read from its start. Blank lines, and between labelled
    cards lines of punctuation or numbers, give no card; nor does the header, nor what is around a document's cards.
    """
    slices = _Slices(reading, fmt, timezone)
    by_line = fmt.kind == "opaque" and reading.splitter != "csv"  # verbatim lines need no evidence
    if reading.media == "json":
        return _by_document(chunks, slices, offset, position)
    if slices.hopeless() or (reading.candidates and not by_line):
        return _refuse_all(chunks, slices, offset, position)
    if reading.splitter == "csv":
        return _by_record(chunks, slices, offset, position)
    if reading.splitter == "labelled" and fmt.kind != "opaque":
        return _labelled(lines(chunks, offset, position), slices)
    return _by_line(chunks, slices, offset, position)


def read_rows(
    rows: Iterable[Sequence[str]], reading: Reading, fmt: Format, *, position: int = 0, timezone: tzinfo
) -> Iterator[Card]:
    """The cards of a spreadsheet's rows (cells as text) behind row ``position``, of which ``end`` and ``line_end``
    are the row.
    """
    slices = _Slices(reading, fmt, timezone)
    for row in rows:
        position += 1
        stripped = [strip(cell) for cell in row]
        if not any(stripped) or (reading.header and position == 1 and header_like(stripped)):
            continue
        raw = "\t".join(row).encode("utf-8", "surrogatepass")
        yield slices.card(position, position, position, raw, slices.row(stripped, len(raw)))


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
    slices = _Slices(reading, fmt, timezone)
    if raw.startswith(b"data:image/"):  # larger than a line may be
        return slices.card(1, len(raw), 1, raw, slices.image(raw.decode("ascii", "replace")))
    if reading.media == "rows":
        text = raw.decode("utf-8", "replace")
        return slices.card(1, len(raw), 1, raw, slices.row([strip(cell) for cell in text.split("\t")], len(raw)))
    found = list(_first_two(read((raw,), reading, fmt, timezone=timezone)))
    if len(found) == 1 and (reading.media == "json" or found[0].raw.strip() == raw.strip()):
        found[0].raw = raw
        return found[0]
    refusal = (
        Refusal("ambiguous", "more than one card in the slice") if found else Refusal("missing_field", "nothing here")
    )
    return slices.card(1, len(raw), 1, raw, refusal)


def read_fields(
    fields: Mapping[str, str], fmt: Format, *, expiry: str = "", supplier_key: str = "", timezone: tzinfo
) -> Card:
    """One key that an adapter got in named parts, by the supplier's own names for them (``card_no``, ``pinCode`` …).

    The names mean what they mean in a JSON document, and a part alone may have parts of its own; ``expiry`` is the
    supplier's text for it. The Card's slice is the mapping as JSON, so that a refused one can be read again.
    """
    members = Object((*fields.items(), *([("expires_at", expiry)] if expiry else [])))
    raw = json.dumps(dict(members), ensure_ascii=False).encode("utf-8", "surrogatepass")
    reading = Reading(media="json")
    if len(texts := texts_of(members)) == 1:
        survey = Survey()
        survey.feed(texts[0].encode("utf-8", "surrogatepass"))
        reading = replace(survey.decide(), media="json", header=False, columns=())
    result = _Slices(reading, fmt, timezone).element(members)
    return _given(raw, result, supplier_key)


def read_image(
    data: bytes, media_type: str, fmt: Format, *, expiry: str = "", supplier_key: str = "", timezone: tzinfo
) -> Card:
    """One key that an adapter got as an image. What counts is what the bytes are; a ``media_type`` that says otherwise
    holds the key back.

    The key's only field is ``image``: a data URI (media type and base64), the same for the same bytes.
    """
    slices = _Slices(Reading(media="json"), fmt, timezone)
    raw = f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}".encode("utf-8", "replace")
    said = media_type.partition(";")[0].strip().lower().replace("image/jpg", "image/jpeg")
    if said and said != type_of_image(data):
        result: CardKey | Refusal = Refusal(
            "unreadable_shape", "the image is not whole, or not of the type that is said"
        )
    else:
        result = slices.image(data_uri(data))
    if expiry:
        result = slices.noted(result, [Item(EXPIRES, expiry)])
    return _given(raw, result, supplier_key)


def _given(raw: bytes, result: CardKey | Refusal, supplier_key: str) -> Card:
    if isinstance(result, Refusal):
        return Card(1, len(raw), 1, raw, None, result.reason, result.detail, supplier_key)
    return Card(1, len(raw), 1, raw, result, supplier_key=supplier_key)


def _first_two(cards: Iterator[Card]) -> Iterator[Card]:
    for count, card in enumerate(cards, 1):
        yield card
        if count == 2:  # noqa: PLR2004 -- enough to know that it is not one
            return


class _Slices:
    """Turns slices of text into cards under one Reading and one Format."""

    def __init__(self, reading: Reading, fmt: Format, timezone: tzinfo) -> None:
        self.reading = reading
        self.fmt = fmt
        self._expiry = lru_cache(maxsize=1024)(partial(parse_expiry, zone=timezone))  # few dates, many cards
        self.encoding = "utf-8" if reading.encoding in {"utf-8-sig", "unreadable"} else reading.encoding
        self.roles = [role_of(name, fmt.fields) for name in reading.columns]
        self._hidden = any(
            not role and hides_a_key(name) for name, role in zip(reading.columns, self.roles, strict=True)
        )

    def quick(self) -> _Quick | None:
        """The short way, if payload and format have one."""
        reading = self.reading
        if reading.tail or reading.numbered or reading.media == "jsonl":
            return None
        if reading.splitter == "line":
            return self.fmt.quick()
        if reading.splitter == "pair" and not reading.columns and not reading.constant:
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

    def refusal(self) -> Refusal | None:
        """Why no card of this payload is read, if so."""
        reading = self.reading
        if reading.encoding == "unreadable":
            return Refusal("undecodable", "the payload is neither UTF-8 nor GB18030 text")
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

    def line(self, text: str) -> CardKey | Refusal:
        """One line (line, pair, template, a document, or a whole card of labels)."""
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
        if items and not head and all(item.role.startswith(NOTE) for item in items):
            return Refusal("prose", "a note, not a key")
        bare, notes = cut_notes(without_bullet(bare))
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
                continue
            expires_at = self._expiry(item.text)
            if expires_at is None or result.expires_at not in {NEVER, expires_at}:
                return Refusal("bad_expiry", "the expiry date cannot be read with certainty")
            result = replace(result, expires_at=expires_at)
        return result

    def _template(self, bare: str) -> CardKey | Refusal:
        found = match_template(compiled(self.reading.separator), bare)
        if isinstance(found, str):
            return self._odd(bare, found)
        return self.named({role_of(normal(name), self.fmt.fields) or name: text for name, text in found.items()})

    def _single(self, bare: str) -> CardKey | Refusal:
        fmt = self.fmt
        if is_link(bare):
            return self._link(bare)
        if self._is_code(fmt.lone_field):
            bare = cut_trailing(bare)
        if len(fmt.fields) > 1:
            parts = fold(bare).split(" ")
            return self._parts(parts if len(parts) == len(fmt.fields) else [bare])
        if fmt.kind == "auto" and count_parts(bare):
            return self._odd(bare, "a separator where the other lines have none")
        return fmt.key({fmt.lone_field: bare})

    def _link(self, bare: str) -> CardKey | Refusal:
        """A line that is one link as it stands; whether one with ``----`` ends there is for the format to say."""
        fmt = self.fmt
        address, dashes, behind = bare.rpartition("----")
        if dashes and len(fmt.fields) > 1 and any(rule.alphabet == "link" for rule in fmt.rules):
            return self._parts([address, behind])
        if dashes and fmt.kind == "auto" and "?" not in address:
            return Refusal("ambiguous", "a link with ---- in its path: perhaps a link and a code")
        return fmt.key({fmt.lone_field: bare}) if len(fmt.fields) <= 1 else self._parts([bare])

    def _pair(self, bare: str) -> CardKey | Refusal:
        reading, fmt = self.reading, self.fmt
        parts = [bare] if is_link(bare) else split_parts(bare, reading.separator)
        if reading.columns:
            return self.columns(parts)
        if len(fmt.fields) == 1:  # its own spaces may look like a separator
            whole = fmt.key({fmt.lone_field: bare})
            return whole if isinstance(whole, CardKey) else self._parts(parts)
        if fmt.kind == "auto" and len(parts) == 1 and not is_link(bare):
            return self._odd(bare, f"no {_name(reading.separator)} as on the other lines")
        return self._parts(parts)

    def _parts(self, parts: list[str]) -> CardKey | Refusal:
        """The parts of a line or record by position; a date behind them is the expiry."""
        fmt, expires_at = self.fmt, NEVER
        while len(parts) > 1 and not parts[-1]:
            parts = parts[:-1]
        if any(part[:1] in _QUOTES or part[-1:] in _QUOTES for part in parts):
            return self._odd(" ".join(parts), "a quotation mark at the edge of a part")
        if len(parts) == (len(fmt.fields) or 2) + 1 and looks_like_date(fold(parts[-1])):
            dated = self._expiry(parts[-1])
            if dated is None:
                return Refusal("bad_expiry", "the expiry date cannot be read with certainty")
            expires_at, parts = dated, parts[:-1]
        roles = fmt.read_parts(parts, constant=self.reading.constant)
        if isinstance(roles, Refusal):
            return self._odd(" ".join(parts), roles.detail, roles.reason)
        return fmt.key(roles, expires_at)

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
        return self.named(roles)

    def named(self, roles: Mapping[str, str]) -> CardKey | Refusal:
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
        return self.fmt.key(roles, expires_at)

    def record(self, text: str) -> CardKey | Refusal:
        """One CSV record."""
        row = cells(text, self.reading.separator)
        if row is None:
            return Refusal("unreadable_shape", "the quotes of the CSV record are broken")
        for inner in (line for cell in row if "\n" in cell for line in cell.splitlines()):
            inside = cells(inner, self.reading.separator)
            if inside and len(inside) > 1 and isinstance(self.columns(inside), CardKey):
                return Refusal("unreadable_shape", "a quoted text holds what may be records of its own")
        return self.columns(row) if self.reading.columns else self._parts(row)

    def row(self, row: Sequence[str], size: int) -> CardKey | Refusal:
        """One row of a spreadsheet."""
        refusal = self.refusal()
        if refusal:
            return refusal
        if size > PIECE:
            return Refusal("too_long", f"a row of more than {PIECE // 1024} KiB")
        if self.reading.splitter == "csv":
            return self.columns(row) if self.reading.columns else self._parts(list(row))
        used = [cell for cell in row if cell]
        if len(used) != 1:
            return Refusal("no_key_column", f"{len(used)} cells are filled, and no header names the one with the key")
        return self.line(used[0])

    def items(self, items: Sequence[Item]) -> CardKey | Refusal:
        """The labelled values of one card."""
        roles: dict[str, str] = {}
        for item in items:
            if item.role in roles:
                return Refusal("ambiguous", "a label twice: perhaps two cards on one line")
            if item.role.startswith(NOTE) and says_spent(item.role.removeprefix(f"{NOTE}:"), item.text):
                return Refusal("spent", "the supplier marks it as used, void or expired")
            roles[item.role] = item.text
        anchor = self.reading.anchor
        if anchor and items and items[0].role != anchor:
            return Refusal("missing_field", f"the card does not begin with its {anchor.removeprefix(NOTE + ':')}")
        for item in items[:-1]:
            if item.text[-1:] in _MARKS and not item.role.startswith(NOTE):
                if item.role not in {EXPIRES, "account", "email"} and not self._is_code(item.role):
                    return Refusal("ambiguous", f"{item.role} ends in a mark that may be a separator")
                roles[item.role] = strip(item.text[:-1])
        marks = {item.text[-1:] for item in items if not item.role.startswith(NOTE)}
        if items and (self._is_code(items[-1].role) or (len(items) > 1 and len(marks) == 1 and marks <= _MARKS)):
            roles[items[-1].role] = cut_trailing(items[-1].text)
        return self.named({role: text for role, text in roles.items() if not role.startswith(NOTE)})

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
        return self.element(found[0].value)

    def element(self, value: object) -> CardKey | Refusal:
        """One card of a document."""
        if isinstance(value, Refusal):
            return value
        roles = roles_of(value) if isinstance(value, Object) else {"": value} if isinstance(value, str) else {}
        if isinstance(roles, Refusal):
            return roles
        parts = {role: text for role, text in roles.items() if role != EXPIRES}
        if not parts:
            texts = [text for _, text in value if isinstance(text, str)] if isinstance(value, Object) else []
            return self._prose(texts) or Refusal("missing_field", "no part of a key is here")
        if any(isinstance(text, Number) for text in parts.values()) and not self._keeps_zeros():
            texts = [text for _, text in value if isinstance(text, str)] if isinstance(value, Object) else []
            return self._prose(texts) or Refusal("unreadable_shape", "a bare number: zeros at its start may be lost")
        if len(parts) > 1:
            return self.named(roles)
        result = self._text_card(*parts.values())
        return self.noted(result, [Item(EXPIRES, roles[EXPIRES])]) if EXPIRES in roles else result

    def _prose(self, texts: Iterable[str]) -> Refusal | None:
        said = any(is_prose(text, self.fmt.placeholders) for text in texts)
        return Refusal("prose", "an answer in words, not a key") if said else None

    def _text_card(self, text: str) -> CardKey | Refusal:
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
        labelled = [find_labels(line) for line in bare.splitlines() if strip(line)]
        if all(labelled):
            return self.items([item for items in labelled for item in items or []])
        return Refusal("ambiguous", "several lines in one text")

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


def _name(separator: str) -> str:
    return NAMES.get(separator, separator)


def _long(line: Line, slices: _Slices) -> Card:
    detail = f"more than {PIECE // 1024} KiB in one line or record"
    return slices.card(line.number, line.end, line.resume, without_end(line.data), Refusal("too_long", detail))


def _refuse_all(
    chunks: Iterable[bytes], slices: _Slices, offset: int, position: int, refusal: Refusal | None = None
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


def _by_document(chunks: Iterable[bytes], slices: _Slices, offset: int, position: int) -> Iterator[Card]:
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
        last = slices.card(number, offset, position, raw, slices.element(element.value))
    if last is not None:
        last.end, last.line_end = offset + len(data), position + max(1, len(data.splitlines()))
        yield last


def _bare(line: Line) -> bytes:
    """The line's bytes without its end and without the byte order mark of the payload."""
    raw = without_end(line.data)
    return raw[len(_BOM) :] if line.start == 0 and raw.startswith(_BOM) else raw


def _by_record(chunks: Iterable[bytes], slices: _Slices, offset: int, position: int) -> Iterator[Card]:
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
            header = False
            if slices.is_header(strip(text)):
                continue
        yield slices.card(line.number, line.end, line.resume, raw, slices.record(text))


def _by_line(chunks: Iterable[bytes], slices: _Slices, offset: int, position: int) -> Iterator[Card]:
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
                yield slices.card(line.number, line.end, line.resume, raw, slices.line(text))


def _line_end(cut: Cut) -> bytes:
    """The one line end of a block of ASCII lines without zero bytes; empty if it is not such a block."""
    data = cut.data
    if cut.piece or not data.isascii() or b"\0" in data:
        return b""
    if b"\r" not in data:
        return b"\n" if data.endswith(b"\n") else b""
    count = data.count(b"\r\n")
    return b"\r\n" if count == data.count(b"\r") == data.count(b"\n") and data.endswith(b"\r\n") else b""


def _short_way(quick: _Quick, data: bytes, end: bytes, slices: _Slices, offset: int, position: int) -> Iterator[Card]:
    """The cards of a block of ASCII lines: one match for a line that is a key in canonical form, nothing else."""
    pattern, names = quick
    template, fullmatch, size = slices.fmt.template, pattern.fullmatch, len(end)
    checked = [(names.index(rule.name) + 1, rule) for rule in slices.fmt.checked]
    if slices.fmt.kind == "auto":
        template = default_display(names)
    lone = names[0] if template == f"{{{names[0]}}}" else ""
    raws = data.split(end)
    texts = data.decode("ascii").split(end.decode("ascii"))
    raws.pop()  # what is behind the last line end: nothing
    texts.pop()
    for raw, text in zip(raws, texts, strict=True):
        position += 1
        offset += len(raw) + size
        match = fullmatch(text)
        if match and len(text) <= MAX_KEY and all(rule.passes(match[group]) for group, rule in checked):
            if lone:
                fields = {lone: text}
                display = text
            else:
                fields = dict(zip(names, match.groups(), strict=True))
                display = template.format_map(fields)
            yield Card(position, offset, position, raw, CardKey(fields, fields, display))
        elif strip(text):
            yield slices.card(position, offset, position, raw, slices.line(text))


class _Labelled:
    """The labelled card that is being put together, line by line."""

    def __init__(self, slices: _Slices) -> None:
        self.slices = slices
        self.lines: list[Line] = []
        self.items: list[Item] = []
        self.gap: list[Line] = []
        self.size = 0

    def waits(self) -> bool:
        """Whether the last label has no value yet: a line without a label may be it."""
        return bool(self.items) and not self.items[-1].text and not self.gap

    def join(self, line: Line) -> None:
        """The line belongs to the card, and so does the gap before it."""
        self.lines += [*self.gap, line]
        self.size += len(line.data)
        self.gap = []

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
            result = refusal or self.slices.items(self.items)
            yield self.slices.card(first.number, last.end, last.resume, raw, result)
        self.lines, self.items, self.gap, self.size = [], [], [], 0

    def spoil(self, line: Line, refusal: Refusal) -> Iterator[Card]:
        """A line that cannot be placed: what stands right before it is not certain either."""
        if self.gap:
            yield from self.close()
        self.join(line)
        yield from self.close(refusal)


def _labelled(source: Iterable[Line], slices: _Slices) -> Iterator[Card]:
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
        if items:
            known = {item.role for item in card.items}
            if layout == "line" and card.lines and not card.gap and items[0].role != anchor:
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
        elif is_prose_line(bare, slices.fmt.placeholders) and not _EXPIRY_WORDS.search(bare):
            yield from card.close()
            yield slices.card(
                line.number, line.end, line.resume, _bare(line), Refusal("prose", "this is a text, not a key")
            )
        else:
            yield from card.spoil(line, Refusal("unreadable_shape", "a line without a known label beside the card"))
    yield from card.close()
