"""What the lines of a payload are evidence for: labels, separators, numbers, records, a table. Used by the survey.

Counts only: memory does not grow with the payload.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from syncd.inventory.formats.expiry import looks_like_date
from syncd.inventory.formats.image import looks_like_image
from syncd.inventory.formats.reading import RECORD, Layout, Reading, pair_name, separator_of
from syncd.inventory.formats.rules import MAX_KEY
from syncd.inventory.formats.split import (
    SEPARATORS,
    count_parts,
    split_parts,
)
from syncd.inventory.formats.template import is_template
from syncd.inventory.formats.text import fold, is_link, is_prose, is_prose_line, strip
from syncd.inventory.formats.words import (
    EXPIRES,
    KEY_ROLES,
    NOTE,
    ROLES,
    Item,
    cut_notes,
    header_columns,
    is_index,
    labels_in,
    normal,
    number_mark,
    numbering,
    without_bullet,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


DOMINANT: Final = 0.8
"""The share of lines that must agree. What does not agree is held in quarantine line by line; between this and its
complement the payload is ambiguous as a whole."""
_USUAL: Final = 0.2
_RARE: Final = 0.2
_STRUCTURAL: Final = ("----", "---", "——", "\t", "|")
_STRONG: Final = (
    "----",
    "---",
    "——",
)  # nothing else looks like these: what other separators agree are inside the parts
RECORD_PARTS: Final = 4
_TRAILING: Final = ",;，；、。"
_FEW: Final = 3
_DECORATION: Final = frozenset("-=*_#~.·—+ \t＝－─━═…☆★◆●■")


def is_decoration(text: str) -> bool:
    """Whether a line is punctuation alone, as people draw it between cards."""
    return _DECORATION.issuperset(text)


def is_gap(text: str) -> bool:
    """Whether a line between labelled cards says nothing: punctuation, or the number of the card to come."""
    return is_decoration(text) or is_index(text)


def cut_trailing(text: str) -> str:
    """The line without a comma or full stop at its end."""
    return text.rstrip(_TRAILING) or text


class _Labels:
    """Evidence on labelled lines: which labels, in which order, with which gaps."""

    def __init__(self) -> None:
        self.lines = 0
        self.several = 0  # lines with more than one label
        self.roles: Counter[str] = Counter()
        self.line_first: Counter[str] = Counter()
        self.gap_first: Counter[str] = Counter()
        self.follows: Counter[tuple[str, str]] = Counter()
        self.first = ""
        self.last = ""

    def add(self, items: list[Item], *, gap: bool) -> None:
        self.lines += 1
        self.several += len(items) > 1
        lead = items[0].role
        self.line_first[lead] += 1
        if not self.first:
            self.first = lead
        elif gap:
            self.gap_first[lead] += 1
        for item in items:
            self.roles[item.role] += 1
            if self.last:
                self.follows[self.last, item.role] += 1
            self.last = item.role

    def layout(self) -> tuple[Layout, str]:
        """(layout, role that begins a card), or ("", "") if the order of the labels is not certain."""
        (lead, count), *_ = self.line_first.most_common(1)
        gaps = self.gap_first.total()
        whole_lines = len(self.roles) == 1 or self.several >= DOMINANT * self.lines
        if whole_lines and count >= DOMINANT * self.lines:
            return "line", lead
        if gaps and gaps < self.lines - 1:
            (after_gap, count), *_ = self.gap_first.most_common(1)
            if count >= DOMINANT * gaps and (after_gap == self.first or gaps > 2):  # noqa: PLR2004 -- one odd gap is no rule
                return "block", after_gap
            return "", ""
        once = max(self.roles.values()) == 1
        leaving = sum(count for (role, _), count in self.follows.items() if role == self.last)
        if once or (self.first != self.last and self.follows[self.last, self.first] > leaving / 10):
            return "run", self.first
        return "", ""


class Evidence:
    """Counts over the lines of a payload, whatever their encoding."""

    def __init__(self) -> None:
        self.total = 0  # lines that say something: not blank, not prose, not decoration
        self.prose = 0
        self.parts: dict[str, Counter[int]] = {name: Counter() for name in SEPARATORS}
        self.labels = _Labels()
        self.notes = 0  # lines with labels of which none names a part of a key
        self.records = 0
        self.numbers = 0  # lines that are numbered 1, 2, 3 …
        self._next = -1
        self._mark = ""
        self._gap = False
        self._waits = False  # a label without a value: the next line may be it
        self._heading = False  # the first line is such a label
        self.header: str | None = None
        self._sample: dict[str, list[str | None]] = {}

    def settled(self) -> bool:
        """Whether plain lines are no more than plain: no list has been begun, and no label waits for its value."""
        return self.total > 0 and not self.numbers and not self._waits

    def plain(self, count: int) -> None:
        """``count`` lines without any separator or label in them."""
        self.total += count
        self._gap = self._waits = False

    def line(self, text: str) -> None:
        """One line, decoded."""
        bare = strip(text)
        if not bare or is_gap(bare):
            self._gap = True
            return
        first = self.header is None
        if first:
            self.header = bare
        if len(bare) > MAX_KEY or looks_like_image(bare):
            self.plain(1)
            return
        if RECORD in bare and 0 < bare.count(RECORD) < RECORD_PARTS and bare[0] != RECORD:
            self.records += 1
            bare = strip(bare.partition(RECORD)[0])
        head, items = labels_in(bare)
        if items and not head:
            self._labelled_line(items, first=first)
            return
        if self._waits:
            self._waits = False
            return
        if items:
            bare, _ = cut_notes(bare)
        gap, self._gap = self._gap, False
        bare = self._unnumbered(without_bullet(bare))
        if is_link(bare):
            self.total += 1
            return
        prose = is_prose_line(bare)
        bare = cut_trailing(bare)
        counts = count_parts(bare)
        # A text in a separated part does not make the line prose; nor are the words of a header.
        structured = any(name in counts for name in _STRUCTURAL) or (self.total == 0 and _is_header(bare, counts))
        if prose and (not structured or not is_prose(bare)):
            self.prose += 1
            self._gap = gap
            return
        self.total += 1
        for name, count in counts.items():
            self.parts[name][count] += 1
            self._constant(name, bare)

    def _labelled_line(self, items: list[Item], *, first: bool) -> None:
        self.labels.add(items, gap=self._gap)
        self.total += 1
        self.notes += all(item.role.startswith(NOTE) for item in items)
        self._gap, self._waits = False, not items[-1].text
        self._heading = self._heading or (first and len(items) == 1 and self._waits)

    def _unnumbered(self, text: str) -> str:
        """The line without its number, as long as the numbers count the lines from the first on."""
        number, size = numbering(text)
        if number < 0:
            return text
        mark = number_mark(text, size)
        if self._next < 0 and self.total == 0 and number in {0, 1}:
            self._next, self._mark = number, mark
        if number != self._next or mark != self._mark:
            return text
        self._next += 1
        self.numbers += 1
        return text[size:]

    def numbered(self) -> str:
        """The mark behind the numbers that count the lines, "" if no numbers do."""
        sure = self._mark in {"①", ".", "、", ")", "]", "】"}
        enough = self.numbers >= (_FEW if not sure else 2) or (self.numbers == 1 and self._mark in {"①", "、", "】"})
        return self._mark if enough and self.numbers >= DOMINANT * (self.total - self.notes) else ""

    def _constant(self, name: str, text: str) -> None:
        """Remember the first line's parts as long as each line repeats them."""
        sample = self._sample.get(name)
        if sample is None:
            self._sample[name] = list(split_parts(text, name))
        elif any(part is not None for part in sample):
            found = split_parts(text, name)
            if header_like(sample):
                self._sample[name] = list(found)
                return
            self._sample[name] = [
                part if part is not None and at < len(found) and found[at] == part else None
                for at, part in enumerate(sample)
            ]

    def is_constant(self, name: str) -> bool:
        """Whether some part under this separator is the same on all lines (of which there are several)."""
        parts = self._sample.get(name, ())
        return self.parts[name].total() > 1 and any(part and not looks_like_date(fold(part)) for part in parts)

    def reading(self, encoding: str, split: str, media: str) -> Reading:
        """The Reading of text that these lines are evidence for."""
        if split == "labelled":
            return self._labelled(encoding, media)
        if is_template(split):
            return Reading(encoding, "template", split, media=media, tail=self._tail())
        if split.startswith("pair"):
            return self._pair(encoding, media, separator_of(split) if ":" in split else "")
        if split == "line":
            return self._line_reading(encoding, media)
        total, lines = self.total, self.labels.lines
        if self.notes == lines or self._is_heading():  # labels, but none that names a key on its line
            total, lines = total - lines, 0
        labelled = lines / total if total else 0.0
        shares = {
            name: max((count for parts, count in counts.items() if parts > 1), default=0) / total if total else 0.0
            for name, counts in self.parts.items()
        }
        if labelled >= DOMINANT or not total:
            return self._labelled(encoding, media) if self.total else self._line_reading(encoding, media)
        agreed = [name for name, share in shares.items() if share >= DOMINANT]
        strong = [name for name in agreed if name in _STRONG]
        if len(strong) == 1:
            agreed = strong
        if len(agreed) == 1 and labelled <= 1 - DOMINANT:
            return self._pair(encoding, media, agreed[0])
        seen = {name: counts.total() / total if total else 0.0 for name, counts in self.parts.items()}
        others = [pair_name(name) for name, share in seen.items() if share > _RARE]
        if not agreed and not others and labelled <= _RARE:
            return self._line_reading(encoding, media)
        named = [*(["labelled"] if labelled > _RARE else []), *others]
        return Reading(encoding, media=media, candidates=("line", *named))

    def _is_heading(self) -> bool:
        """Whether the one label of the payload is a heading over several lines of keys."""
        return self._heading and self.labels.lines == 1 and self.total > 1

    def _tail(self) -> str:
        return RECORD if self.records > _RARE * self.total else ""

    def _line_reading(self, encoding: str, media: str) -> Reading:
        words = split_parts(self.header or "", " ")
        names = header_columns(words) if len(words) > 1 else None
        if names and len(set(names)) == len(names) and all(name in ROLES for name in names):
            return Reading(encoding, "pair", " ", names, header=True, media=media)
        header = bool(self.header) and header_columns((self.header or "",)) is not None
        if header and ROLES.get(normal(self.header or "")) in {"number", "account"} and self.total > 1:
            return Reading(encoding, media=media, candidates=("line", "card numbers without their pins"))
        return Reading(encoding, "line", header=header, media=media, tail=self._tail(), numbered=self.numbered())

    def _pair(self, encoding: str, media: str, separator: str) -> Reading:
        if not separator:
            ranked = [(max(counts.values()), name) for name, counts in self.parts.items() if counts]
            best = [name for count, name in ranked if count == max(ranked)[0]]
            if len(best) != 1:
                return Reading(encoding, media=media, candidates=tuple(map(pair_name, best)) or ("line", "pair"))
            separator = best[0]
        columns = header_columns(split_parts(self.header or "", separator)) or ()
        if len(columns) == 1:
            columns = ()
        roles = [ROLES.get(name, "") for name in columns]
        if any(role in KEY_ROLES and roles.count(role) > 1 for role in roles):
            return Reading(encoding, media=media, candidates=tuple(f"column {name}" for name in columns))
        return Reading(
            encoding,
            "pair",
            separator,
            columns,
            header=bool(columns),
            constant=self.is_constant(separator),
            media=media,
            tail=self._tail(),
            numbered=self.numbered(),
        )

    def _labelled(self, encoding: str, media: str) -> Reading:
        if not self.labels.lines:
            return Reading(encoding, "labelled", media=media, layout="run")
        layout, anchor = self.labels.layout()
        if not layout:
            return Reading(encoding, media=media, candidates=("labelled by blank lines", "labelled by repeated labels"))
        cards = max(self.labels.roles[anchor], 1)
        usual = tuple(role for role, count in self.labels.roles.items() if role in KEY_ROLES and count > _USUAL * cards)
        return Reading(
            encoding, "labelled", required=usual, anchor=anchor, layout=layout, media=media, tail=self._tail()
        )


def _is_header(text: str, separators: Iterable[str]) -> bool:
    return any(header_like(split_parts(text, name)) for name in separators)


def header_like(parts: Sequence[str | None]) -> bool:
    """Whether these parts are a header row."""
    return header_columns([part or "" for part in parts]) is not None


class Table:
    """Evidence on CSV records or spreadsheet rows: a header, how many cells, which columns are filled."""

    def __init__(self) -> None:
        self.columns: tuple[str, ...] | None = None
        self.rows = 0
        self.widths: Counter[int] = Counter()
        self.filled: Counter[int] = Counter()

    def add(self, row: Sequence[str]) -> None:
        """The next row."""
        used = [at for at, cell in enumerate(row) if cell]
        if not used:
            return
        if self.rows == 0 and self.columns is None:
            self.columns = header_columns(tuple(row)) or ()
            if self.columns:
                return
        self.rows += 1
        self.widths[used[-1] + 1] += 1
        for at in used:
            self.filled[at] += 1

    def reading(self, encoding: str, delimiter: str, media: str) -> Reading | None:
        """The Reading, or None if there is but one column without a name: lines of text then."""
        if not self.columns:
            if max(self.widths, default=1) <= 1:
                return None
            problem = f"{max(self.widths)} columns, and no header that names the one with the key"
            return Reading(encoding, "csv", delimiter, media=media, problem=problem)
        roles = [ROLES.get(name, "") for name in self.columns]
        twice = sorted({role for role in roles if role in KEY_ROLES and roles.count(role) > 1})
        if twice or roles.count(EXPIRES) > 1:
            names = tuple(name for name, role in zip(self.columns, roles, strict=True) if role in {*twice, EXPIRES})
            return Reading(
                encoding,
                "csv",
                delimiter,
                self.columns,
                header=True,
                media=media,
                candidates=tuple(f"column {name}" for name in names),
            )
        required = tuple(
            role for at, role in enumerate(roles) if role in KEY_ROLES and self.filled[at] > _USUAL * self.rows
        )
        return Reading(encoding, "csv", delimiter, self.columns, header=True, required=required, media=media)
