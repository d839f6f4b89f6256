"""What the lines of a payload are evidence for: labels, separators, numbers, records, a table. Used by the survey.

Counts only: memory does not grow with the payload.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from zlib import crc32

from syncd.inventory.formats.expiry import expiry_in, looks_like_date
from syncd.inventory.formats.image import looks_like_image
from syncd.inventory.formats.reading import MARK, RECORD, Layout, Reading, pair_name, separator_of
from syncd.inventory.formats.rules import MAX_KEY
from syncd.inventory.formats.split import (
    ANY,
    SEPARATORS,
    count_parts,
    split_parts,
)
from syncd.inventory.formats.template import is_template
from syncd.inventory.formats.text import (
    fold,
    heads_spent,
    is_link,
    is_prose,
    is_prose_line,
    is_ruled,
    says_reusable,
    strip,
)
from syncd.inventory.formats.words import (
    EXPIRES,
    EXPIRY_WORDS,
    KEY_ROLES,
    ROLES,
    Item,
    cut_expiry,
    cut_notes,
    expiry_said,
    gives_all_a_part,
    has_code,
    header_columns,
    is_absent,
    is_index,
    is_of_all,
    labels_in,
    normal,
    number_mark,
    numbering,
    without_bullet,
    without_legend,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


DOMINANT: Final = 0.8
"""The share of lines that must agree. What does not agree is held in quarantine line by line; between this and its
complement the payload is ambiguous as a whole."""
_USUAL: Final = 0.2
_MOSTLY: Final = 0.7
_HALF: Final = 0.5
_SERIAL: Final = 6  # digits of a number that may count the rows
_RARE: Final = 0.2
_STRUCTURAL: Final = ("-----", "----", "---", "——", "\t", "|")
STRONG: Final = (
    "-----",
    "----",
    "---",
    "——",
    "\t",
)  # nothing else looks like these: what other separators agree are inside the parts
_DASHES: Final = (" - ", "—", "——")
RECORD_PARTS: Final = 4
_OF_ONE: Final = re.compile(r"(?<![A-Za-z0-9])(?=[A-Za-z-]*\d)(?=[\d-]*[A-Za-z])[A-Za-z0-9-]{6,}|\d{9,}")
_TRAILING: Final = ",;，；、。"
_FEW: Final = 3
_NAME: Final = 32
_IDLE: Final = re.compile(r"[A-Z][A-Za-z']+(?: [A-Z]?[A-Za-z']+){0,5}[.!]?")
_PAIR: Final = 2
_ENOUGH: Final = 4
_REMEMBERED: Final = 4096  # numbers, to see one that comes again
_KINDS: Final = 256  # as many lengths are counted
_SECRETS: Final = frozenset({"pin", "password", "code"})
_NUMBERS: Final = frozenset({"number", "serial", "account"})
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
        self.absent: Counter[str] = Counter()  # those that say there is no such part
        self.line_first: Counter[str] = Counter()
        self.gap_first: Counter[str] = Counter()
        self.follows: Counter[tuple[str, str]] = Counter()
        self.first = ""
        self.last = ""
        self.sets: Counter[frozenset[str]] = Counter()  # which roles stand together on a line

    def add(self, items: list[Item], *, gap: bool) -> None:
        self.lines += 1
        self.several += len(items) > 1
        lead = items[0].role
        self.line_first[lead] += 1
        if not self.first:
            self.first = lead
        elif gap:
            self.gap_first[lead] += 1
        if len(self.sets) < _KINDS:
            self.sets[frozenset(item.role for item in items if item.role in KEY_ROLES)] += 1
        for item in items:
            self.roles[item.role] += 1
            self.absent[item.role] += is_absent(item.text)
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
        if self._whole():
            return "line", ""
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

    def _whole(self) -> bool:
        """Whether each line is a card of its own: the same parts in any order, or one code under several names."""
        together, count = self.sets.most_common(1)[0]
        if self.several >= DOMINANT * self.lines and len(together) > 1:
            return count >= DOMINANT * self.lines
        lone = all(len(roles) == 1 and roles <= _SECRETS for roles in self.sets)
        return lone and not self.several and self.lines > _FEW and count >= _MOSTLY * self.lines

    def required(self, anchor: str, layout: Layout) -> tuple[str, ...]:
        """The roles that most cards have; on a line of its own, one of several names for a part will do."""
        cards = max(self.roles[anchor], 1) if anchor else self.lines
        usual = [
            role
            for role, count in self.roles.items()
            if role in KEY_ROLES and count - self.absent[role] > _USUAL * cards
        ]
        for group in (_SECRETS, _NUMBERS) if layout == "line" else ():
            if len(group.intersection(usual)) > 1 and all(len(group & roles) <= 1 for roles in self.sets):
                usual = [role for role in usual if role not in group]
        return tuple(usual)


class Evidence:
    """Counts over the lines of a payload, whatever their encoding."""

    def __init__(self) -> None:
        self.total = 0  # lines that say something: not blank, not prose, not decoration
        self.prose = 0
        self.idle = 0  # lines that no key has: a word or two, without a digit
        self.parts: dict[str, Counter[int]] = {name: Counter() for name in SEPARATORS}
        self.labels = _Labels()
        self.keyed = _Labels()  # of the lines that name a part of a key
        self.again = False  # a line says that the cards are sold again and again
        self.spent = False  # a heading says that some of the cards are no good any more
        self.shared = False  # a line gives all cards one part
        self.notes = 0  # lines with labels of which none names a part of a key
        self.records = 0
        self.numbers = 0  # lines that are numbered 1, 2, 3 …
        self._next = -1
        self._mark = ""
        self._gap = False
        self._waits = False  # a label without a value: the next line may be it
        self._held = ""  # the line that may be that value, or the first of a list below a heading
        self._headings = self._lists = self._links = 0
        self._valued = 0  # labelled lines that give a part of a key
        self._sizes: dict[str, Counter[tuple[int, ...]]] = {name: Counter() for name in (*SEPARATORS, ANY)}
        self._pins: dict[str, dict[int, int]] = {}
        self._last: dict[str, int] = {}
        self._steps: Counter[str] = Counter()
        self._twice: dict[str, Counter[int]] = {}
        self._lengths: Counter[int] = Counter()
        self._said: set[str] = set()  # expiry dates in prose
        self._labelled_dates: set[str] = set()
        self._keyed_lines = 0
        self._keyed_roles: set[tuple[str, ...]] = set()
        self._dates_at: list[int] = []  # below how many of those lines an expiry stands on a line of its own
        self.header: str | None = None
        self._named: set[str] = set()  # names of parts on lines of their own
        self._sample: dict[str, list[str | None]] = {}

    def settled(self) -> bool:
        """Whether plain lines are no more than plain: no list has been begun, and no label waits for its value."""
        return self.total > 0 and not self.numbers and not self._waits

    def plain(self, count: int, data: bytes = b"") -> None:
        """``count`` lines without any separator or label in them."""
        self.total += count
        self._gap = self._waits = False
        self._held = ""
        size = data.find(b"\n")
        if size > 0 and data[size :: size + 1].count(b"\n") == count and len(data) == count * (size + 1):
            self._lengths[size - data.endswith(b"\r\n")] += count
        elif data and len(self._lengths) < _KINDS:
            self._lengths.update(Counter(map(len, data.splitlines())))

    def line(self, text: str) -> None:
        """One line, decoded."""
        bare = strip(text)
        if not bare or is_gap(bare):
            self._gap = True
            return
        if self.header is None:
            self.header = bare = without_legend(bare)
        if len(bare) < _NAME and (role := ROLES.get(normal(bare))) in KEY_ROLES:
            self._named.add(role)
        self.spent = self.spent or heads_spent(bare)
        self.again = self.again or says_reusable(bare)
        self.shared = self.shared or gives_all_a_part(bare)
        if len(bare) > MAX_KEY or looks_like_image(bare):
            self.plain(1)
            return
        if RECORD in bare and 0 < bare.count(RECORD) < RECORD_PARTS and bare[0] != RECORD:
            self.records += 1
            bare = strip(bare.partition(RECORD)[0])
        head, items = labels_in(bare)
        if items and not head:
            self._labelled_line(items)
            return
        if self._waits:
            self._waits, self._held = False, bare
            return
        if self._held:  # not the value of the label before it, but the first of a list
            held, self._held = self._held, ""
            self._lists += 1
            self._unlabelled(held, [])
        self._unlabelled(bare, items)

    def _unlabelled(self, bare: str, items: list[Item]) -> None:
        whole = bare
        bare, until = cut_expiry(bare)
        if items and not until:
            bare, _ = cut_notes(bare)
        gap, self._gap = self._gap, False
        bare = self._unnumbered(without_bullet(bare))
        if is_link(bare):
            self.total += 1
            self._links += 1
            return
        prose = is_prose_line(bare) or self._says_expiry(bare)
        bare = cut_trailing(bare)
        counts = count_parts(bare)
        # A text in a separated part does not make the line prose; nor are the words of a header.
        apart = not is_ruled(bare) and any(name in counts for name in _STRUCTURAL)
        structured = apart or (self.total == 0 and _is_header(bare, counts))
        if prose and (not structured or not is_prose(bare)):
            self.prose += 1
            self._gap = gap
            if len(self._said) < _FEW and (said := expiry_said(whole)):
                one = _OF_ONE.search(bare) and not (bare.isascii() and is_prose(bare))  # a date of one key alone?
                self._said.add("?" if one else said)
            return
        self.total += 1
        self.idle += not items and _IDLE.fullmatch(bare) is not None
        if not counts and len(self._lengths) < _KINDS:
            self._lengths[len(bare)] += 1
        for name, count in counts.items():
            self.parts[name][count] += 1
            self._constant(name, bare)
            if count in {2, 3} and len(self._sizes[name]) < _KINDS:
                parts = split_parts(bare, name)
                sizes = tuple(map(_size, parts))
                self._numbers(name, parts)
                self._sizes[name][sizes] += 1
                if count == 2 and len(counts) == 1 and all(sizes) and name != "-----":  # noqa: PLR2004
                    self._sizes[ANY][tuple(map(abs, sizes))] += 1

    @staticmethod
    def _says_expiry(text: str) -> bool:
        """Whether a line of words says until when the keys are valid, in a way that ``is_prose`` takes for a code."""
        return EXPIRY_WORDS.search(text) is not None and expiry_in(text) != "" and not has_code(text)

    def _numbers(self, name: str, parts: list[str]) -> None:
        """Remember which pin a number has; a number that comes with another is not certain, whichever is right."""
        if len(parts) < 2:  # noqa: PLR2004 -- quoted as one
            return
        first = int(parts[0]) if parts[0].isascii() and parts[0].isdigit() and len(parts[0]) <= _SERIAL else -2
        before, self._last[name] = self._last.get(name, -2), first
        self._steps[name] += first >= 0 and first == before + 1
        pins = self._pins.setdefault(name, {})
        if len(pins) < _REMEMBERED and all(parts[:2]):
            number, pin = (crc32(part.encode("utf-8", "replace")) for part in parts[:2])
            if pins.setdefault(number, pin) != pin:
                self._twice.setdefault(name, Counter())[number] += 1

    def _labelled_line(self, items: list[Item]) -> None:
        self.labels.add(items, gap=self._gap)
        self.total += 1
        if any(item.role in KEY_ROLES for item in items):
            self._keyed_lines += 1
            if len(self._keyed_roles) < _FEW:
                self._keyed_roles.add(tuple(item.role for item in items))
            self.keyed.add(items, gap=self._gap)
            self._valued += bool(items[-1].text)
        else:
            self.notes += 1
            said = [item.text if item.role == EXPIRES else expiry_said(item.text) for item in items]
            said = list(filter(None, said))
            self._said.update(filter(None, (expiry_in(text) for text in said if is_of_all(text))))
            if said and len(self._labelled_dates) < _FEW:
                self._labelled_dates.update(said)
                self._dates_at.append(self._keyed_lines)
        self._gap, self._waits, self._held = False, not items[-1].text, ""
        self._headings += len(items) == 1 and self._waits

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
        sure = self._mark in {"①", ".", "、", ")", "]", "】"} or len(self._mark) > 1
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

    def counts_rows(self, name: str) -> bool:
        """Whether the first of two parts is but the number of an order or a row, one more each time."""
        count = self.parts[name].total()
        return count >= _FEW and self._steps[name] >= count - 1

    def expires(self, *, labelled: bool = False) -> str:
        """The expiry that stands once for all cards: in prose, or under a label beside cards without labels."""
        shared = not labelled or self._is_below_all()
        said = self._said | {expiry_in(text) or text for text in self._labelled_dates} if shared else self._said
        return "" if not said else next(iter(said)) if len(said) == 1 else "?"

    def _is_below_all(self) -> bool:
        """Whether an expiry stands once, above or below cards that are a line each and have none of their own."""
        return (
            self._keyed_lines > 1
            and len(self._keyed_roles) == 1
            and EXPIRES not in next(iter(self._keyed_roles))
            and len(self._dates_at) == 1
            and self._dates_at[0] in {0, self._keyed_lines}
        )

    def sizes(self, separator: str) -> tuple[int, ...]:
        """The lengths of the parts on all lines but a few, if there are enough to tell."""
        if separator == ANY:  # of any kind: what is a digit here may be a letter there
            return tuple(-size for size in self._sizes[ANY].most_common(1)[0][0])
        if not separator:
            usual = [self._usual(self._lengths)]
            return (usual[0],) if usual[0] else ()
        counts = self._sizes[separator]
        if not counts:
            return ()
        width = len(counts.most_common(1)[0][0])
        columns: list[Counter[int]] = [Counter() for _ in range(width)]
        for sizes, count in counts.items():
            for column, size in zip(columns, sizes, strict=False):
                column[size] += count
        found = tuple(map(self._usual, columns))
        return found if any(found) else ()

    @staticmethod
    def _usual(counts: Counter[int]) -> int:
        if not counts:
            return 0
        (size, count), *_ = counts.most_common(1)
        total = counts.total()
        return size if count >= _ENOUGH and total - count <= max(1, total // 10) else 0

    def reading(self, encoding: str, split: str, media: str) -> Reading:
        """The Reading of text that these lines are evidence for."""
        reading = self._reading(encoding, split, media)
        if len(self._named) > 1 and reading.splitter == "line" and not reading.candidates:
            named = tuple(sorted(self._named))
            reading = replace(reading, problem=f"names on lines of their own ({', '.join(named)})")
        if self.again and split != "line":
            reading = replace(reading, problem="a card that is sold again and again cannot be counted")
        if self.shared and split != "line":
            reading = replace(reading, problem="a part of the cards stands once, for all of them")
        if self.spent and split != "line":  # there, each line is a key, whatever it says
            reading = replace(reading, problem="a heading that says that some of the cards are used or void")
        expires = self.expires(labelled=reading.splitter == "labelled")
        if reading.splitter == "template" or reading.candidates:
            return replace(reading, expires=expires if reading.candidates else "")
        separator = reading.separator if reading.splitter == "pair" else ""
        sizes = self.sizes(separator) if reading.splitter in {"pair", "line"} and separator != " " else ()
        again = self._twice.get(separator, Counter()) if reading.splitter == "pair" else Counter()
        few = again.total() <= max(1, self.total // 10) < self.total - 1  # else it is no number, but a title
        twice = tuple(sorted({number & MARK for number in again})) if few else ()
        return replace(reading, sizes=sizes, twice=twice, expires=expires, stray=self._stray(reading))

    def _reading(self, encoding: str, split: str, media: str) -> Reading:
        if split == "labelled":
            return self._labelled(encoding, media)
        if is_template(split):
            return Reading(encoding, "template", split, media=media, tail=self._tail())
        if split.startswith("pair"):
            separator = separator_of(split) if ":" in split else ""
            if separator == _DASHES[0]:  # whichever of them it is
                separator = max(_DASHES, key=lambda name: self.parts[name].total())
            return self._pair(encoding, media, separator)
        if split == "line":
            return replace(self._line_reading(encoding, media), whole=True)
        total, lines = self._counted()
        labelled = lines / total if total else 0.0
        shares = {
            name: max((count for parts, count in counts.items() if parts > 1), default=0) / total if total else 0.0
            for name, counts in self.parts.items()
        }
        if labelled >= DOMINANT or not total:
            return self._labelled(encoding, media) if self.total else self._line_reading(encoding, media)
        agreed = [name for name, share in shares.items() if share >= DOMINANT] or [
            name
            for name, counts in self.parts.items()
            if name in {*STRONG, ":"}
            and counts.total() >= DOMINANT * total
            and shares[name] > _HALF
            and counts[2] == max(counts.values())
        ]
        strong = [name for name in agreed if name in STRONG]
        if len(strong) == 1:
            agreed = strong
        agreed = agreed or self._lone_strong(total)
        if len(agreed) == 1 and labelled <= _RARE:
            return self._pair(encoding, media, agreed[0])
        mixed = self._sizes[ANY].most_common(1)
        if mixed and mixed[0][1] >= DOMINANT * total and mixed[0][1] >= _ENOUGH and labelled <= 1 - DOMINANT:
            return self._pair(encoding, media, ANY)
        seen = {name: counts.total() / total if total else 0.0 for name, counts in self.parts.items()}
        others = [pair_name(name) for name, share in seen.items() if share > _RARE]
        if not agreed and not others and labelled <= _RARE:
            return self._line_reading(encoding, media)
        named = [*(["labelled"] if labelled > _RARE else []), *others]
        return Reading(encoding, media=media, candidates=("line", *named))

    def _counted(self) -> tuple[int, int]:
        """(lines that say how the payload is laid out, those of them with labels)."""
        total, lines = self.total, self.labels.lines
        if self.notes == lines or self._is_heading():  # labels, but none that names a key on its line
            return total - lines, 0
        if total - self.notes == self.keyed.lines:  # notes over the cards
            return total - self.notes, lines - self.notes
        return total - (self.idle if self.keyed.lines else 0), lines  # words beside labelled cards are none of them

    def _lone_strong(self, total: int) -> list[str]:
        """The one strong separator that there is, if most lines have it: what has none, or fewer, is held line by
        line.
        """
        seen = [name for name in STRONG if self.parts[name]]
        return seen if len(seen) == 1 and self.parts[seen[0]].total() > _HALF * total else []

    def _stray(self, reading: Reading) -> tuple[str, ...]:
        """What may be no key of its own: a link among codes (a page to use them on), a code among links, either beside
        the other.
        """
        total, links = self.total - self.labels.lines + self._valued, self._links
        few = _RARE * total
        if reading.splitter != "line" or not 0 < links < total:
            return ()
        return (*(("link",) if total - links > few else ()), *(("code",) if links > few else ()))

    def _is_heading(self) -> bool:
        """Whether the labels are headings over lists of keys, or notes."""
        named = self.keyed.lines
        return 0 < self._headings <= self._lists + self.notes and self._lists > 0 and named <= self._headings

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
        columns = () if separator == ANY else header_columns(split_parts(self.header or "", separator)) or ()
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
            constant=separator != ANY and (self.is_constant(separator) or self.counts_rows(separator)),
            media=media,
            tail=self._tail(),
            numbered=self.numbered(),
            width=max(self.parts[separator], key=self.parts[separator].__getitem__, default=0)
            if separator != ANY
            else 0,
        )

    def _labelled(self, encoding: str, media: str) -> Reading:
        if not self.labels.lines:
            return Reading(encoding, "labelled", media=media, layout="run")
        labels = self.labels
        layout, anchor = labels.layout()
        if self.keyed.lines and (not layout or (layout == "line" and anchor not in {"", *KEY_ROLES})):
            labels = self.keyed
            layout, anchor = labels.layout()
        if not layout:
            return Reading(encoding, media=media, candidates=("labelled by blank lines", "labelled by repeated labels"))
        required = labels.required(anchor, layout)
        return Reading(
            encoding, "labelled", required=required, anchor=anchor, layout=layout, media=media, tail=self._tail()
        )


def _size(part: str) -> int:
    """The length of a part: negative if it is not all digits, 0 if it is no plain text at all."""
    if not part.isascii() or not part.replace("-", "").isalnum():
        return 0
    return len(part) if part.isdigit() else -len(part)


def _is_header(text: str, separators: Iterable[str]) -> bool:
    return any(header_like(split_parts(text, name)) for name in separators)


def header_like(parts: Sequence[str | None]) -> bool:
    """Whether these parts are a header row."""
    return header_columns([part or "" for part in parts]) is not None


_IS_TITLE: Final = re.compile(r"[\u3400-\u9fff]{2}|^[A-Za-z]+(?: [A-Za-z]+)+|^[A-Za-z]{3,10} ?\d{1,2}$")


class Table:
    """Evidence on CSV records or spreadsheet rows: a header, how many cells, which columns are filled."""

    def __init__(self) -> None:
        self.columns: tuple[str, ...] | None = None
        self.rows = self.titles = self.dated = 0
        self.widths: Counter[int] = Counter()
        self.filled: Counter[int] = Counter()

    def add(self, row: Sequence[str]) -> None:
        """The next row."""
        used = [at for at, cell in enumerate(row) if cell]
        if not used:
            return
        if not self.columns and self.rows == self.titles < _FEW:
            self.columns = header_columns(tuple(row)) or ()
            if self.columns:
                self.rows = 0
                self.widths.clear()
                self.filled.clear()
                return
            self.titles += used == [0] and _IS_TITLE.search(row[0]) is not None
        self.rows += 1
        self.widths[used[-1] + 1] += 1
        self.dated += len(used) == _FEW and looks_like_date(fold(row[used[-1]]))
        for at in used:
            self.filled[at] += 1

    def reading(self, encoding: str, delimiter: str, media: str) -> Reading | None:
        """The Reading, or None if there is but one column without a name: lines of text then."""
        if not self.columns:
            if max(self.widths, default=1) <= 1:
                return Reading(encoding, "csv", delimiter, media=media) if media == "csv" and self.rows else None
            width, count = self.widths.most_common(1)[0]
            if (
                media != "rows"
                and count >= DOMINANT * self.rows
                and (width == _PAIR or (width == _FEW and self.dated >= DOMINANT * self.rows))
            ):
                return Reading(encoding, "csv", delimiter, media=media)
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
