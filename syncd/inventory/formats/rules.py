"""What a key of one product looks like: fields, alphabets, groups, canonical and display form. Used by the reader.

A ``Format`` is data (config/formats.toml, see loading.py). There is no free regular expression in it on purpose:
alphabet, lengths, groups and prefix say what known shapes need, and whatever is compiled from them runs in linear
time.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

from syncd.inventory.formats.expiry import DATED, looks_like_date, may_be_date
from syncd.inventory.formats.image import data_uri, image_of, looks_like_image
from syncd.inventory.formats.text import denies, fold, has_control, is_link, is_masked, is_placeholder, is_prose, strip
from syncd.inventory.formats.words import EXPIRES, KEY_ROLES, NOTE, says_spent
from syncd.model import NEVER, CardKey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_KEY: Final = 4096
"""Characters of the longest line, and so of the longest key, that is read."""

ALPHABETS: Final[dict[str, str]] = {
    "digits": "0-9",
    "letters": "A-Za-z",
    "alnum": "A-Za-z0-9",
    "hex": "0-9A-Fa-f",
    "visible": "!-~",
    "email": "!-~",
    "link": "",
    "image": "",
    "text": "",
}
"""Names for alphabets. ``visible`` is printable ASCII, ``image`` a picture in base64, ``text`` any one line, verbatim.
Any other word is taken as the characters themselves.
"""

_SOLID: Final = frozenset({"visible", "email", "link", "image", "text"})  # hyphens and spaces belong to the value
_EMAIL: Final = re.compile(r"[^\s@]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}")
SPOILT: Final = re.compile(
    r"[+-]?\d(?:[.,]\d+)?[Ee]\+\d{1,3}|\d[.,]\d+[Ee]\d{1,3}|#+"
    r"|\d{1,2}-(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)(?:-\d\d)?"
    r"|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)-\d\d"
)
"""What a spreadsheet makes of a code that it takes for a number or a date: ``6.22841E+15``, ``####``, ``1-Dec``."""
_TAG: Final = re.compile("</?[A-Za-z][^<>]{0,40}>")
_GAP: Final = "[- ]{0,3}"
_PART_END: Final = "(?![A-Za-z0-9]|-[A-Za-z0-9])"
_NOUGHTS: Final = f"(?!0(?:-?0)*+{_PART_END})"
_DIGIT: Final = (  # keeps placeholders, which are words or zeros, off the short way
    f"(?=[^0-9]{{0,64}}[0-9])(?![^\\n]{{0,300}}(?:X{{4}}|x{{4}})){_NOUGHTS}"
)
_DROP_GAP: Final = {ord(" "): None, ord("-"): None}


def _luhn(digits: str) -> bool:
    """Whether the last digit checks the others as on a payment card."""
    if not digits.isdigit():
        return False
    odd, even = digits[-1::-2], digits[-2::-2]
    return (sum(map(int, odd)) + sum(sum(divmod(2 * int(digit), 10)) for digit in even)) % 10 == 0


CHECKS: Final[dict[str, Callable[[str], bool]]] = {
    "luhn": _luhn,
    "varied": lambda text: len(set(text)) > 1,
    "mixed": lambda text: not text.isalpha() and not text.isdigit(),
}
"""Names for checks of a value without its separators: the last digit by Luhn; not one character over and over; letters
and digits both."""

# Which other roles a field takes when the supplier's name for it is not the field's own.
_TAKES: Final[dict[str, tuple[str, ...]]] = {
    "code": ("code", "serial", "pin", "password"),
    "pin": ("pin", "password", "code"),
    "password": ("password", "pin"),
    "number": ("number", "serial", "account"),
    "account": ("account", "number", "email"),
    "link": ("link", "code"),
    "access": ("access", "password", "pin"),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something is not a key: a stable reason, and a sentence without any text of it."""

    reason: str
    detail: str


@dataclass(frozen=True)
class FieldRule:
    """How one field reads. ``lengths`` are inclusive spans of the length without separators; ``groups`` are the
    groupings that the canonical form may have (one for each total length); ``upper`` means that case does not count;
    ``check`` names one of CHECKS.
    """

    name: str
    alphabet: str = "text"
    lengths: tuple[tuple[int, int], ...] = ((1, MAX_KEY),)
    groups: tuple[tuple[int, ...], ...] = ()
    prefix: tuple[str, ...] = ()
    upper: bool = False
    check: str = ""

    @property
    def ascii(self) -> bool:
        """Whether the value is folded to ASCII before it is read."""
        return self.alphabet not in {"text", "link", "image"}

    @cached_property
    def _class(self) -> str:
        chars = ALPHABETS.get(self.alphabet) or re.escape(self.alphabet)
        return f"[{chars.replace('a-z', '') if self.upper else chars}]"

    @cached_property
    def canonical_pattern(self) -> str:
        """A pattern without captures for canonical values with a digit; "" if there is no such short way."""
        if self.alphabet in _SOLID:
            return ""
        start = _DIGIT + (f"(?={'|'.join(map(re.escape, self.prefix))})" if self.prefix else "")
        if self.groups:
            shapes = ["-".join(f"{self._class}{{{size}}}" for size in group) for group in self.groups]
        else:
            shapes = [f"{self._class}{{{low},{high}}}" for low, high in self.lengths]
        return f"{start}(?:{'|'.join(shapes)})"

    def passes(self, canonical: str) -> bool:
        """Whether a value in canonical form passes the field's check."""
        return not self.check or CHECKS[self.check](canonical.replace("-", ""))

    @cached_property
    def canonical(self) -> re.Pattern[str] | None:
        """``canonical_pattern``, compiled. It does not know the check."""
        return re.compile(self.canonical_pattern) if self.canonical_pattern else None

    @cached_property
    def _loose(self) -> tuple[tuple[tuple[int, ...], re.Pattern[str]], ...]:
        return tuple(
            (group, re.compile(_GAP.join(f"{self._class}{{{size}}}" for size in group))) for group in self.groups
        )

    @cached_property
    def _spread(self) -> re.Pattern[str]:
        return re.compile(f"{self._class}++(?:[- ]{self._class}++)*+")

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Patterns of this value in the midst of a text, in groups with hyphens or in one piece."""
        cls = self._class
        if self.groups:
            shapes = ["-".join(f"{cls}{{{size}}}" for size in group) for group in self.groups]
            return (*shapes, *(f"{cls}{{{sum(group)}}}" for group in self.groups if len(group) > 1))
        return tuple(f"{cls}{{{low},{high}}}" for low, high in self.lengths)

    def read(self, text: str) -> tuple[str, str] | str:
        """(value as read, canonical value), or what is wrong with it in words that hold none of it."""
        if self.alphabet == "image":
            data = image_of(strip(text))
            return f"{self.name} is no image, or not a whole one" if data is None else (data_uri(data), data_uri(data))
        value = fold(text) if self.ascii else strip(text)
        if not value:
            return f"{self.name} is empty"
        if has_control(value):
            return f"{self.name} has control characters"
        if self.alphabet in _SOLID:
            problem = self._solid_problem(value)
            return problem or (value, value)
        plain = value.upper() if self.upper else value
        compact = plain.translate(_DROP_GAP)
        problem = self._length_problem(len(compact))
        if problem:
            return problem
        if not compact.isascii() or not re.fullmatch(f"{self._class}++", compact):
            return f"{self.name} has a character outside its alphabet"
        if self.prefix and not compact.startswith(self.prefix):
            return f"{self.name} does not begin as it should"
        return self._grouped(value, plain, compact)

    def _grouped(self, value: str, plain: str, compact: str) -> tuple[str, str] | str:
        if not self.passes(compact):
            return f"{self.name} fails its check ({self.check})"
        if not self.groups:
            return (value, compact) if self._spread.fullmatch(plain) else f"{self.name} has stray separators"
        for group, pattern in self._loose:
            if pattern.fullmatch(plain):
                parts, at = [], 0
                for size in group:
                    parts.append(compact[at : at + size])
                    at += size
                return value, "-".join(parts)
        return f"{self.name} is not grouped as {' or '.join('-'.join(map(str, group)) for group in self.groups)}"

    def _solid_problem(self, value: str) -> str:
        problem = self._length_problem(len(value))
        if problem:
            return problem
        if self.alphabet == "link":
            return "" if is_link(value) else f"{self.name} is not a link"
        if self.alphabet == "text":
            return ""
        if " " in value or "\t" in value or not value.isascii():
            return f"{self.name} has a character outside its alphabet"
        if SPOILT.fullmatch(value):
            return f"{self.name} is a number or a date that a spreadsheet has made of it"
        if _TAG.search(value):
            return f"{self.name} has an HTML tag in it"
        if self.alphabet == "email" and not _EMAIL.fullmatch(value):
            return f"{self.name} is not an e-mail address"
        if self.prefix and not value.startswith(self.prefix):
            return f"{self.name} does not begin as it should"
        return ""

    def _length_problem(self, size: int) -> str:
        if any(low <= size <= high for low, high in self.lengths):
            return ""
        wanted = " or ".join(str(low) if low == high else f"{low} to {high}" for low, high in self.lengths)
        return f"{self.name} has {size} character{'s' if size != 1 else ''}, {wanted} expected"


@dataclass(frozen=True)
class Format:
    """How the keys of a product read. Built by ``load_formats``; ``AUTO`` and ``OPAQUE`` are always there.

    ``display`` is a template over the canonical fields; ``mask`` is how many characters a masked key shows at its
    start and end; ``accept`` and ``reject`` are examples, checked whenever the format is loaded. ``split`` is the
    template of a line, if suppliers write this format in one layout of its own.
    """

    name: str
    title: str
    rules: tuple[FieldRule, ...]
    display: str = ""
    mask: tuple[int, int] = (0, 4)
    accept: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()
    placeholders: frozenset[str] = field(default=frozenset(), repr=False)
    kind: Literal["fields", "auto", "opaque"] = "fields"
    split: str = ""
    prose: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, in order. Empty for ``auto``, which decides by what it finds."""
        return tuple(rule.name for rule in self.rules)

    @cached_property
    def template(self) -> str:
        """The display template, or the default one for these fields."""
        return self.display or default_display(self.fields)

    @cached_property
    def _plain_placeholders(self) -> bool:
        """Whether no configured placeholder has a digit, and so none comes through on the short way."""
        return all(text.isalpha() for text in self.placeholders)

    def splitter(self, configured: str | None) -> str:
        """The splitter to decide a payload with: the one configured for the product, else the format's own."""
        return configured or self.split or "auto"

    @cached_property
    def checked(self) -> tuple[FieldRule, ...]:
        """The rules with a check, which a value has to pass beside its pattern."""
        return tuple(rule for rule in self.rules if rule.check)

    def quick(self, separator: str = "") -> tuple[re.Pattern[str], tuple[str, ...]] | None:
        """The short way of the reader: a pattern of whole ASCII lines that are keys in canonical form and need no
        further look, with the field of each group. None if there is none. With a separator, lines of several parts.
        """
        between = f" ?{re.escape(separator)} ?" if separator else ""
        if not self._plain_placeholders or not separator.isascii():
            return None
        if self.kind == "auto":
            names: tuple[str, ...] = ("number", "pin") if separator else ("code",)
            return re.compile(between.join([f"({_AUTO_PART})"] * len(names))), names
        if self.kind == "opaque":
            return None if separator else (re.compile(_QUICK_OPAQUE), ("code",))
        patterns = [rule.canonical_pattern for rule in self.rules]
        if not all(patterns) or (len(patterns) > 1) != bool(separator):
            return None
        return re.compile(between.join(f"({pattern})" for pattern in patterns)), self.fields

    def all_canonical(self, block: bytes, text: str) -> bool:
        """Whether every line of a block of ASCII lines, each with LF, is a single key that ``quick`` takes, found out
        by a few passes over the whole block. False is no more than "look at each line".
        """
        if self._light is None or self.checked or b"XXXX" in block or b"xxxx" in block:
            return False
        digits = block.translate(None, _NO_DIGITS)  # a line without a digit may be a placeholder,
        others = block.translate(None, _FIGURES) if self.kind == "auto" else digits  # and one of these alone a date
        if any(rest[:1] == b"\n" or b"\n\n" in rest for rest in (digits, others)):
            return False
        if block.startswith(_ORDERS) or any(b"\n" + start in block for start in _ORDERS):
            return False
        if b"0000" in block and _ZEROS.search(block):
            return False
        return not any(start in block for start in _PICTURES) and self._light.fullmatch(text) is not None

    @cached_property
    def _light(self) -> re.Pattern[str] | None:
        """``quick`` for a whole block, but for what it looks ahead for; eight characters hold four that count."""
        if (found := self.quick()) is None:
            return None
        light = found[0].pattern.replace(_AUTO_AHEAD, "").replace(_OPAQUE_AHEAD, "").replace(_DIGIT, "")
        return re.compile(f"(?:(?=[^\\n]{{8,{MAX_KEY}}}\\n)(?>{light})\\n)++")

    @property
    def lone_field(self) -> str:
        """The field that a text without a name is read as."""
        return self.rules[0].name if self.rules else "code"

    def read_parts(self, parts: list[str], *, constant: bool = False) -> dict[str, str] | Refusal:
        """Parts without names (a separated line) as roles by position. ``constant``: one part is the same on all
        lines.
        """
        if self.kind == "opaque":
            return {"code": parts[0]}
        if self.kind == "auto":
            if len(parts) == 1:
                return {"code": parts[0]}
            if len(parts) != 2:  # noqa: PLR2004 -- number and pin
                return Refusal("not_this_format", f"{len(parts)} parts; a number and a pin expected")
            if _SUM.fullmatch(parts[1]) and _GROUPS.fullmatch(parts[0]):
                return Refusal("ambiguous", "a key, and what may be its pin or its price")
            if constant:
                return Refusal("ambiguous", "one part is the same on every line, and so is not a part of a key")
            return {"number": parts[0], "pin": parts[1]}
        if len(parts) > 1 == len(self.rules):
            return self._only_fitting(parts)
        if len(parts) != len(self.rules):
            wanted = f"{len(self.rules)} expected ({', '.join(self.fields)})"
            return Refusal("not_this_format", f"{len(parts)} part{'s' if len(parts) != 1 else ''}, {wanted}")
        return dict(zip(self.fields, parts, strict=True))

    def _only_fitting(self, parts: list[str]) -> dict[str, str] | Refusal:
        """Of several parts the one that is the key, if the others plainly are none: a title, a price, a date."""
        rule = self.rules[0]
        fitting = [part for part in parts if rule.alphabet not in _SOLID and isinstance(rule.read(part), tuple)]
        if len(fitting) != 1:
            return Refusal("not_this_format", f"{len(parts)} parts, 1 expected ({rule.name})")
        if not all(_is_aside(part) and not may_be_date(part) for part in parts if part != fitting[0]):
            return Refusal("ambiguous", f"beside {rule.name} a part that may belong to the key")
        return {rule.name: fitting[0]}

    def key(
        self, roles: Mapping[str, str], expires_at: int = NEVER, *, named: bool = False, whole: bool = False
    ) -> CardKey | Refusal:
        """The key that these named texts make, or why they make none. Notes are passed over; any other must fit.

        ``named``: the parts were told from each other by their names, so that marks in them are their own; ``whole``:
        so was the only one.
        """
        given = {
            role: text for role, text in roles.items() if strip(text) and role != EXPIRES and not role.startswith(NOTE)
        }
        if not given:
            return Refusal("missing_field", "no part of a key is here")
        if self.kind == "auto":
            return self._auto_key(given, expires_at, named=whole or (named and len(given) > 1))
        if self.kind == "opaque":
            return self._opaque_key(given, expires_at)
        assigned = self._assign(given)
        if isinstance(assigned, Refusal):
            return assigned
        values, canonical = {}, {}
        for rule in self.rules:
            text = assigned[rule.name]
            canonical_already = self._plain_placeholders and rule.canonical and rule.canonical.fullmatch(text)
            if canonical_already and rule.passes(text) and not is_masked(text):
                values[rule.name] = canonical[rule.name] = text
                continue
            read = rule.read(text)
            if isinstance(read, str):
                prose = is_prose(strip(assigned[rule.name]), self.placeholders)
                return Refusal("prose" if prose else "not_this_format", "this is a text, not a key" if prose else read)
            hidden = is_masked(read[1]) if rule.alphabet not in _SOLID else rule.name == "number" and "***" in read[1]
            if hidden or is_placeholder(read[0], self.placeholders):
                return Refusal("prose", f"{rule.name} is a text that stands for a missing key")
            values[rule.name], canonical[rule.name] = read
        return CardKey(values, canonical, self.template.format_map(canonical), expires_at)

    def _assign(self, given: dict[str, str]) -> dict[str, str] | Refusal:
        left = dict(given)
        assigned = {name: left.pop(name) for name in self.fields if name in left}
        for name in self.fields:
            if name in assigned:
                continue
            role = next((role for role in _TAKES.get(name, ()) if role in left), None)
            if role is None:
                return Refusal("missing_field", f"{name} is missing")
            assigned[name] = left.pop(role)
        if left:
            return Refusal("not_this_format", f"{', '.join(sorted(left))} given, which is no field of the format")
        return assigned

    def whole(self, text: str) -> CardKey | Refusal:
        """A whole line as the one key that the product's split says it is, separators included."""
        value = fold(text)
        if is_prose(text, self.placeholders):
            return Refusal("prose", "this is a text, not a key")
        fields = {self.lone_field: value}
        return CardKey(fields, fields, value)

    def _opaque_key(self, given: dict[str, str], expires_at: int) -> CardKey | Refusal:
        if len(given) != 1:
            return Refusal("not_this_format", f"{len(given)} parts of a key; an opaque key is one text")
        if "image" in given:
            return self._image_key(given["image"], expires_at)
        value = strip(*given.values())
        if has_control(value):
            return Refusal("unreadable_shape", "control characters")
        if is_placeholder(value, self.placeholders, whole=self.prose):
            return Refusal("prose", "a text that stands for a missing key")
        fields = {"code": value}
        return CardKey(fields, fields, value, expires_at)

    @staticmethod
    def _image_key(text: str, expires_at: int) -> CardKey | Refusal:
        data = image_of(strip(text))
        if data is None:
            return Refusal("unreadable_shape", "an image that is cut off, too large or of an unknown kind")
        fields = {"image": data_uri(data)}
        return CardKey(fields, fields, fields["image"], expires_at)

    def _auto_key(self, given: dict[str, str], expires_at: int, *, named: bool) -> CardKey | Refusal:
        if frozenset(given) == {"image"}:
            return self._image_key(given["image"], expires_at)
        if given.keys() == {"link", "code"} and _PAGE.fullmatch(strip(given["link"])):
            given = {"code": given["code"]}  # a page to use it on
        names = _shape_of(given)
        if frozenset(given) == {"code", "pin"} and len(strip(given["code"])) < _COMPLETE:
            names = None  # may be the code of an answer, or of a product
        if names is None:
            if frozenset(given) == {"number"}:
                return Refusal("missing_field", "a card number without its pin")
            return Refusal("not_this_format", f"no known shape has these parts: {', '.join(sorted(given))}")
        if [*names.values()] == ["number", "pin"] and is_link(strip(given[next(iter(names))])):
            names = dict(zip(names, ("link", "access"), strict=True))
        if [*names.values()] == ["code"] and is_link(strip(*given.values())):
            names = dict.fromkeys(names, "link")
        values: dict[str, str] = {}
        for role in KEY_ROLES:
            if role in names:
                name = names[role]
                text = strip(given[role])
                problem = _link_problem(text) if name == "link" else self._implausible(name, text, named=named)
                if problem:
                    return problem
                values[name] = text if name == "link" else fold(text)
        return CardKey(values, values, default_display(tuple(values)).format_map(values), expires_at)

    def _implausible(self, name: str, text: str, *, named: bool) -> Refusal | None:
        """Why a text is not plausible as a part of a key of unknown shape."""
        if is_prose(text, self.placeholders):
            return Refusal("prose", "this is a text, not a key")
        value = fold(text)
        shape = len(value)
        if shape > MAX_KEY:
            return Refusal("too_long", f"{name} has {shape} characters")
        if name == "email":
            return None if _EMAIL.fullmatch(value) else Refusal("unreadable_shape", "email is not an e-mail address")
        if name == "secret":  # base32, as authenticator apps take it (RFC 4648), in groups or not
            return None if _BASE32.fullmatch(value) else Refusal("unreadable_shape", "secret is not base32")
        if name in _FREE_TEXT:  # named by a label, and chosen by a person: any visible characters do
            seen = all("!" <= char <= "~" for char in value)
            return None if seen else Refusal("unreadable_shape", f"{name} has a character that it should not have")
        if is_masked(value):
            return Refusal("prose", f"{name} is masked")
        if name == "code" and _FULL_WIDTH.search(text):
            return Refusal("unreadable_shape", "full-width letters, where the alphabet is not known")
        if SPOILT.fullmatch(value):
            return Refusal("unreadable_shape", f"{name} is a number or a date that a spreadsheet has made of it")
        if _GUARDED.fullmatch(value):
            return Refusal("unreadable_shape", f"{name} has an apostrophe before it, perhaps a spreadsheet's")
        if _QUICK_AUTO.fullmatch(value):
            return None
        if (
            named
            and _NAMED.fullmatch(value)
            and not (name == "number" and _is_cipher(value))
            and not is_placeholder(value, self.placeholders)
        ):
            return None
        problem = _odd_shape(name, value)
        return Refusal("unreadable_shape", problem) if problem else None

    def masked(self, canonical: Mapping[str, str]) -> str:
        """The key as lists may show it: a few characters at the ends of each field, never more than a third of it."""
        return " ".join(self._masked(text) for text in canonical.values())

    def _masked(self, text: str) -> str:
        if text.startswith("data:image/"):
            return f"[{text.partition(';')[0].removeprefix('data:')}]"
        first, last = self.mask
        while first + last > len(text) // 3:
            first, last = first // 2, last // 2
        end = len(text) - last
        return "".join(char if index < first or index >= end or char == "-" else "•" for index, char in enumerate(text))


_SHORTEST: Final = 4
_WORD: Final = 10
_FREE_TEXT: Final = frozenset({"account", "password", "access", "email_password", "unzip"})
_ENTITY: Final = re.compile(r"&(?:amp|lt|gt|quot|apos|#\d{1,5});")
# Letters and digits both, or a word with capitals inside, and any marks between them: with a name of its own, a part.
_NAMED: Final = re.compile(
    r"(?=.*[A-Za-z0-9].*[A-Za-z0-9].*[A-Za-z0-9].*[A-Za-z0-9])(?=[^\d]*\d|[^A-Z]*[A-Z]+[a-z]+[A-Z]|[A-Z]{3,}[a-z]{3,})(?!.*://)(?![\d.,:/-]*$)[!-~]{4,256}"
)
_IMAGE: Final = 100
_PLAUSIBLE: Final = re.compile(r"[A-Za-z0-9!#$%&*+./=?@^_~()-]+")
_FIGURE: Final = re.compile(r"[$+-]?\d+[.]\d{1,2}|\d+(?:\.\d+)?[Ee]\+?\d+|\d{1,4}/\d{1,2}/\d{1,4}|\d+%")
_TWO_PARTS: Final = re.compile(r"(?=[^/=+#*&~_]*\d)[A-Za-z0-9-]{4,}[/=+#*&~_](?=.*\d)[A-Za-z0-9-]{4,}")
# Four letters or digits and more, in groups, with a digit. Dates, numbers spoilt by a spreadsheet (1E17) and pictures
# are left to the long way. The looks ahead stay inside the part, whatever hyphens follow it.
_AUTO_AHEAD: Final = (
    rf"(?![^\n]{{0,300}}(?:X{{4}}|x{{4}})){_NOUGHTS}"
    rf"(?!(?:INV|INVOICE|ORD|ORDER|TXN|REF|PO|SO)-\d|\d{{4}}-\d\d?-\d\d?{_PART_END}|\d+[Ee]\d+{_PART_END}|iVBORw0KGgo|R0lGOD|UklGR)"
    r"(?=(?:[A-Za-z]|-(?=[A-Za-z0-9])){0,64}\d)(?=[A-Za-z0-9](?:-?[A-Za-z0-9]){3})"
)
_AUTO_PART: Final = rf"{_AUTO_AHEAD}[A-Za-z0-9]++(?:-[A-Za-z0-9]++)*+"
_NO_DIGITS: Final = bytes(set(range(256)) - set(b"0123456789\n"))
_ZEROS: Final = re.compile(rb"^[0-]+$", re.MULTILINE)
_FIGURES: Final = b"0123456789Ee-"
_ORDERS: Final = (b"INV-", b"INVOICE-", b"ORD-", b"ORDER-", b"TXN-", b"REF-", b"PO-", b"SO-")
_PICTURES: Final = (b"iVBOR", b"/9j/", b"_9j_", b"R0lGOD", b"UklGR", b"data:", b"DATA:")
# A text without spaces, with a digit, that is no picture: no placeholder is one.
_OPAQUE_AHEAD: Final = "(?!data:|DATA:|iVBORw0KGgo|/9j/|_9j_|R0lGOD|UklGR)"
_QUICK_OPAQUE: Final = f"{_OPAQUE_AHEAD}{_DIGIT}[!-~]++"
_QUICK_AUTO: Final = re.compile(_AUTO_PART)
_ACCOUNTS: Final = (
    ("account", "password", "email"),
    ("account", "password", "email_password"),
    ("account", "password", "email", "email_password"),
)
_AUTO_SHAPES: Final[dict[frozenset[str], dict[str, str]]] = {
    frozenset({"code"}): {"code": "code"},
    frozenset({"serial"}): {"serial": "code"},
    frozenset({"pin"}): {"pin": "code"},
    frozenset({"password"}): {"password": "code"},
    frozenset({"link"}): {"link": "link"},
    frozenset({"link", "access"}): {"link": "link", "access": "access"},
    **{frozenset({"link", pin}): {"link": "link", pin: "access"} for pin in ("password", "pin")},
    frozenset({"link", "code"}): {"link": "link", "code": "code"},
    **{
        frozenset({"email", "number", pin}): {"email": "email", "number": "number", pin: "pin"}
        for pin in ("pin", "password")
    },
    frozenset({"email", "password"}): {"email": "email", "password": "password"},
    **{frozenset({"number", pin}): {"number": "number", pin: "pin"} for pin in ("pin", "password", "code")},
    **{frozenset({"serial", pin}): {"serial": "serial", pin: "pin"} for pin in ("pin", "password")},
    frozenset({"serial", "code"}): {"serial": "serial", "code": "code"},
    frozenset({"code", "pin"}): {"code": "code", "pin": "pin"},
    **{frozenset(roles): {role: role for role in roles} for roles in _ACCOUNTS},
    **{frozenset({"account", pin}): {"account": "account", pin: "password"} for pin in ("password", "pin")},
}
_LABELS: Final = {
    "number": "Number", "pin": "PIN", "account": "Account", "password": "Password", "serial": "Serial", "code": "Code",
    "link": "Link", "access": "Access code", "email": "Email", "email_password": "Email password",
    "secret": "2FA secret", "unzip": "Archive password",
}  # fmt: skip


def default_display(fields: tuple[str, ...]) -> str:
    """The template for fields that a format gives none for: a single field alone, several with a label each."""
    if len(fields) == 1:
        return f"{{{fields[0]}}}"
    return " ".join(f"{_LABELS.get(name, name.capitalize())}: {{{name}}}" for name in fields)


def template_fields(template: str) -> list[str]:
    """The names in a display template. Raises ValueError if it has anything but plain ``{name}``."""
    names = []
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if spec or conversion or not name.isidentifier():
            msg = "only plain {field} is allowed in a template"
            raise ValueError(msg)
        names.append(name)
    return names


def _shape_of(given: Mapping[str, str]) -> dict[str, str] | None:
    """The names of the parts in the shape that has just these; what an account or an archive may have beside it too."""
    extra = {role: role for role in ("secret", "unzip") if role in given}
    rest = frozenset(given.keys() - extra)
    names = {"link": "link"} if extra and rest == {"link"} else _AUTO_SHAPES.get(rest)
    if names and extra and ("link" if "unzip" in extra else "password") not in names.values():
        return None
    return names and names | extra


def _is_cipher(value: str) -> bool:
    """Whether a text is base64 of whole blocks of AES: a card as some suppliers send it, and not yet decrypted."""
    whole = len(value) % 4 == 0 and len(value) * 3 // 4 - value[-2:].count("=") if not value.isalnum() else 0
    return bool(whole) and whole % _BLOCK == 0 and _BASE64.fullmatch(value) is not None


def _odd_shape(name: str, value: str) -> str:
    """What speaks against a folded text of unknown shape, "" if nothing does."""
    size = len(value)
    if size < _SHORTEST:
        return f"{name} has {size} character{'s' if size != 1 else ''}, at least {_SHORTEST} expected"
    problems = {
        "has a space in it": " " in value,
        "has a character that keys of unknown shape do not have": not _PLAUSIBLE.fullmatch(_ENTITY.sub("E", value)),
        "has a separator at its edge or twice in a row": "--" in value or value[0] == "-" or value[-1] == "-",
        "is mostly punctuation": sum(map(str.isalnum, value)) < _SHORTEST,
        "reads as the number of an order or an error": _ORDER.match(value) is not None,
        "reads as an address": name != "number" and _ADDRESS.fullmatch(value) is not None,
        "reads as somebody's name in a chat": name == "code" and _HANDLE.fullmatch(value) is not None,
        "reads as an encrypted text": name == "number" and _is_cipher(value),
        "reads as named parts": _PARTS.match(value) is not None,
        "reads as a word": value.replace("-", "").isalpha()
        and (not value.isupper() or ("-" not in value and size < _WORD)),
        "has a date or a remark behind it": DATED.search(value) is not None or (value[-1] == ")" and "(" in value),
        "reads as a date, a time or an amount": looks_like_date(value) or _FIGURE.fullmatch(value) is not None,
        "may be two parts": _TWO_PARTS.fullmatch(value) is not None,
        "reads as a picture": size > _IMAGE and looks_like_image(value),
    }
    return next((f"{name} {problem}" for problem, found in problems.items() if found), "")


_ORDER: Final = re.compile(r"(?:INV|INVOICE|ORD|ORDER|TXN|REF|PO|SO)-\d|ERR(?:OR)?[_-]")
_ADDRESS: Final = re.compile(
    r"[^\s@/]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}|www\.\S+"
    r"|(?:[a-z0-9-]+\.)+(?:com|cn|net|org|io|me|cc|top|shop|store|vip|xyz|site|app|link|gg|co|de|uk|ru)(?:/\S*)?"
)
_PAGE: Final = re.compile(
    r"https?://[A-Za-z0-9.-]{1,253}(?:/(?:redeem|activate|code|codes|account|gift|claim|login|store|cn|en|us)){0,3}/?",
    re.IGNORECASE,
)
_BASE32: Final = re.compile("(?:[A-Za-z2-7]{4} ?){3,15}[A-Za-z2-7]{1,4}={0,6}")
_HANDLE: Final = re.compile("@[A-Za-z][A-Za-z0-9_]{3,31}")
_GUARDED: Final = re.compile("'[A-Za-z0-9-]+")
_PARTS: Final = re.compile(r"[A-Za-z_]+=[^&=]+&[A-Za-z_]+=")
_FULL_WIDTH: Final = re.compile("[\uff21-\uff3a\uff41-\uff5a]")
_BLOCK: Final = 16
_BASE64: Final = re.compile("(?=[^a-z]*[a-z])(?=[^A-Z]*[A-Z])[A-Za-z0-9+/]{22,}={0,2}")
_COMPLETE: Final = 8
_SUM: Final = re.compile(r"[1-9]\d{0,3}00|[1-9]\d{0,2}000|[1-9]\d{1,4}\.\d\d?")
_GROUPS: Final = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9]{3,6}(?:-[A-Za-z0-9]{3,6}){2,6}")
_EDITION: Final = re.compile(
    r"\b(?:win(?:dows)?|office|server|visio|project) ?(?:\d{1,2}|20\d\d)(?![A-Za-z0-9])", re.IGNORECASE
)
_ASIDE: Final = re.compile(r"[^\W\d_]{2,}(?: [^\W\d_]{2,}){0,7}|(?=.*[\u4e00-\u9fff])(?!.*[A-Za-z0-9]{5}).{1,64}")


def _is_aside(part: str) -> bool:
    """Whether a part beside a key is a title, a price or a date, and says nothing against the key."""
    text = fold(part)
    if is_placeholder(text) or says_spent("status", text) or denies(text):
        return False
    if looks_like_date(text) or _FIGURE.fullmatch(text):
        return True
    return _ASIDE.fullmatch(_EDITION.sub("", text)) is not None


def _link_problem(text: str) -> Refusal | None:
    return None if is_link(text) else Refusal("unreadable_shape", "the link is not a link")


AUTO: Final = Format(
    name="auto", title="Any plausible key: a code, a link, or a number with its pin", rules=(), kind="auto"
)
OPAQUE: Final = Format(
    name="opaque", title="The whole line, verbatim", rules=(FieldRule("code"),), kind="opaque", mask=(0, 4)
)
PROSE: Final = replace(
    OPAQUE, name="prose", title="A text, verbatim: for products with allow_prose", prose=True, split="line"
)
