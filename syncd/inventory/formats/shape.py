"""Keys found by their shape in a line that is not laid out as the others are: ``Steam Key - ABCDE-12345-FGHIJ``, two
keys on a line, a pair with another separator, number and pin the wrong way round. Used by slices.

Only for shapes that nothing else has, and only if what is beside the key cannot be a part of it: a title, a price, a
number of a list, an expiry. Anything else leaves the line to quarantine.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from syncd.inventory.formats.expiry import DATED, may_be_date
from syncd.inventory.formats.text import LINK, denies, is_masked, is_placeholder
from syncd.inventory.formats.words import AMOUNT, EXPIRY_WORDS, KEY_ROLES, ROLES, normal, plain_width, without_index

if TYPE_CHECKING:
    from collections.abc import Iterable

    from syncd.inventory.formats.rules import FieldRule, Format


class Found(NamedTuple):
    """The cards of a line: the parts of each, and the text of an expiry, if one stands beside them."""

    cards: tuple[dict[str, str], ...]
    expires: str


_SHORTEST: Final = 8
_SENDER: Final = re.compile(
    r"^\[?\d{1,4}[./-]\d{1,2}[./-]\d{2,4},? \d{1,2}:\d\d(?::\d\d)?(?: ?[AaPp][Mm])?\]?(?: -)? [^:\d]{1,40}: "
)
"""Who said it and when, as chat programs export a message."""
_NEAR: Final = r"[A-Za-z0-9\u00c0-\u2e7f\u3130-\u318e\ua000-\ua95f!?@#$%&*+=_~^\\/.-]"
_LEFT: Final = f"(?<!{_NEAR})"
_RIGHT: Final = "(?![A-Za-z0-9\\u00c0-\\u2e7f!?@#$%&*+=_~^\\\\-]|[./][A-Za-z0-9])"
_RUN: Final = re.compile(r"[A-Za-z0-9]+(?:[-@._][A-Za-z0-9]+)*")
_SOLID: Final = re.compile("[A-Za-z0-9]+")
_GROUPED: Final = re.compile(f"{_LEFT}[A-Z0-9]{{4,6}}(?:-[A-Z0-9]{{4,6}}){{2,5}}{_RIGHT}")
_BETWEEN: Final = re.compile(r"(?:[\s,;|/:.，；、：。｜()\[\]{}<>\"'“”\u2018\u2019\x00-]|\b\d{1,2}(?=[.)、:]))*")
_SENTENCE: Final = re.compile("[\u3000-\u9fff\uff01-\uff5e\\s\x00,.:;!()-]*")
"""What may stand between the keys of a sentence: nothing that is written as keys are."""
_EITHER: Final = re.compile("或|还是|任选|选一|代替|替|原")
_TITLE: Final = re.compile(
    r"\s*(?:(?:[A-Z][a-z']+|[A-Z]{2,4}|of|the|a|an|and|in|for|to|at|de|la|[IVX]{1,4})[:,]?\s+){1,8}"
    r"(?:[A-Z][a-z']+|[A-Z]{2,4}|[IVX]{1,4})\s*(?:[:→]|->|-)\s*\x00\s*"
    r"|\s*(?:[A-Z]{2,4}\s?)?[\u4e00-\u9fff]{1,12}\s*[:→]\s*\x00\s*"
)
"""A title before a key: words that begin as words of a title do, and a colon."""
_OTHER_PART: Final = re.compile(
    r"\bpins?\b|pwd|pass(?:word|wd|code)|secret|serial|cvv|cvc|token|account|user|login|e-?mail|卡号|账号|帐号|密码|序列|流水"
    "|邮箱|验证码|安全码|提取码|链接|串号|卡號|密碼",
    re.IGNORECASE,
)
_PIN: Final = re.compile(r"\x00[\s,;|/(-]{1,4}(?:pin|密码|密碼)[\s:.#]{0,4}\x00[\s)]?", re.IGNORECASE)
_PLAIN_WORDS: Final = re.compile(
    r"(?:your|the|is|for|by|of|and|a|an|x|key|keys|cd|cdkey|cdk|code|codes|product|license|licence|activation|serial|gift|card"
    r"|cards|game|games|redeem|redemption|voucher|item|no|number|global|eu|us|uk|usd|eur|gbp|cny|rmb|row|pc|pro|home|retail"
    r"|oem|edition|standard|deluxe|ultimate|premium|month|months|year|years|day|days|pass|wallet|live|gold|plus|online"
    r"|digital|store|point|points|credit|credits|new|order|one|series|switch|server|enterprise|education|key's)\b",
    re.IGNORECASE,
)
_YEAR: Final = re.compile(r"(?<=[A-Za-z] )(?:19|20)\d\d\b")
_COUNT: Final = re.compile(r"\b\d{1,3} ?[xX×]|\b[xX×] ?\d{1,3}\b")


def lone_code(texts: Iterable[str], fmt: Format) -> str:
    """The one text among these that is a key as it stands, in groups; "" if none or several are."""
    found = set()
    for text in texts:
        fits = _GROUPED.fullmatch(text) if fmt.kind == "auto" else isinstance(fmt.rules[0].read(text), tuple)
        if fits and "-" in text and any(map(str.isdigit, text)):
            found.add(text)
    return found.pop() if len(found) == 1 else ""


def is_strict(fmt: Format) -> bool:
    """Whether a text that fits the format is hardly anything else: exact lengths, or groups, of letters and digits."""
    return fmt.kind == "fields" and len(fmt.rules) in {1, 2} and all(map(_strict, fmt.rules)) and _long(fmt)


def _strict(rule: FieldRule) -> bool:
    if rule.alphabet in {"visible", "email", "link", "image", "text"}:
        return False
    return bool(rule.groups) or all(low == high for low, high in rule.lengths)


def _long(fmt: Format) -> bool:
    return sum(min(low for low, _ in rule.lengths) for rule in fmt.rules) >= _SHORTEST


def find(text: str, fmt: Format) -> Found | None:
    """The cards in a line, or None if that is not certain."""
    plain = plain_width(text)
    if fmt.lone_field == "link" and len(fmt.rules) == 1:
        return _links(text)
    plain = _SENDER.sub("", plain)
    name, _, behind = plain.partition(":")
    if fmt.kind != "auto" and ROLES.get(normal(name)) in KEY_ROLES:
        plain = behind
    if "://" in plain or denies(plain) or is_placeholder(plain, fmt.placeholders):
        return None
    expires, rest = _cut_date(plain)
    if rest is None:
        return None
    if fmt.kind == "auto":
        return _codes(rest, expires, "code", [(m.start(), m.end()) for m in _GROUPED.finditer(rest)], auto=True)
    if not is_strict(fmt):
        return None
    if len(fmt.rules) == 1:
        return _codes(rest, expires, fmt.lone_field, _spans(rest, fmt.rules[0]), auto=False)
    return _pair(rest, expires, fmt)


def _links(text: str) -> Found | None:
    links = LINK.findall(text)
    rest = LINK.sub(" ", text)
    if len(links) == 1 and links[0][-1].isalnum() and not any(char.isascii() and char.isalnum() for char in rest):
        bare = not denies(rest) and _OTHER_PART.search(rest.replace("链接", "")) is None
        return Found(({"link": links[0]},), "") if bare and not EXPIRY_WORDS.search(rest) else None
    if len(set(links)) < 2 or any(link[-1] in ",;|" for link in links) or rest.strip(" \t,;|、，；｜"):  # noqa: PLR2004
        return None
    return Found(tuple({"link": link} for link in links), "")


def _cut_date(text: str) -> tuple[str, str | None]:
    """(the one date of a line, if a word says that it is the expiry; the line without it), or ("", None)."""
    dates = list(DATED.finditer(text))
    if not dates:
        return "", (None if EXPIRY_WORDS.search(text) else text)
    if len(dates) > 1 or not EXPIRY_WORDS.search(text):
        return "", None
    start, end = dates[0].span()
    return text[start:end], EXPIRY_WORDS.sub("", text[:start] + " " + text[end:])


def _spans(text: str, rule: FieldRule) -> list[tuple[int, int]]:
    """Where the texts lie that this rule reads, with nothing at their edges that could belong to them."""
    found = []
    for pattern in rule.tokens:
        for match in re.finditer(f"{_LEFT}{pattern}{_RIGHT}", text):
            token = match[0]
            shouts = "-" in token and token.isupper()
            if (shouts or any(map(str.isdigit, token))) and isinstance(rule.read(token), tuple):
                found.append(match.span())
    return sorted(found)


def _codes(rest: str, expires: str, name: str, spans: list[tuple[int, int]], *, auto: bool) -> Found | None:
    if not spans or any(end > start for (_, end), (start, _) in pairwise(spans)):
        return None
    tokens = [rest[start:end] for start, end in spans]
    if any(map(is_masked, tokens)) or (auto and not all(any(map(str.isdigit, token)) for token in tokens)):
        return None
    beside = _without(rest, spans)
    if len(tokens) == 1:
        if not _is_beside(beside, auto=auto):
            return None
    elif auto or len(set(tokens)) < len(tokens) or not all("-" in token for token in tokens) or not _apart(beside):
        return None
    return Found(tuple({name: token} for token in tokens), expires)


def _apart(between: str) -> bool:
    """Whether what stands between keys of one line leaves each of them whole: separators, or words of a sentence."""
    if _BETWEEN.fullmatch(between):
        return True
    return _SENTENCE.fullmatch(between) is not None and not (_OTHER_PART.search(between) or _EITHER.search(between))


def _pair(rest: str, expires: str, fmt: Format) -> Found | None:
    first, second = fmt.rules
    runs = _long_runs(_RUN, rest, _least(fmt))
    if len(runs) == 1 and rest[slice(*runs[0])].count("-") == 1:
        runs = _long_runs(_SOLID, rest, _least(fmt))
    if len(runs) != 2:  # noqa: PLR2004 -- a number and its pin
        return None
    one, other = (rest[start:end] for start, end in runs)
    fits = [
        isinstance(first.read(a), tuple) and isinstance(second.read(b), tuple) for a, b in ((one, other), (other, one))
    ]
    labelled = _OTHER_PART.search(rest) is not None
    named = second.name == "pin" and fits[0] and _PIN.fullmatch(_without(rest, runs)) is not None
    if (labelled and not named) or not any(fits):
        return None
    a, b = (one, other) if fits[0] else (other, one)
    if not named and not _is_beside(_without(rest, runs), auto=False):
        return None
    return Found(({first.name: a, second.name: b},), expires)


def _long_runs(pattern: re.Pattern[str], text: str, least: int) -> list[tuple[int, int]]:
    """Where letters and digits stand that may be a part of a key."""
    found = [match for match in pattern.finditer(text) if len(match[0]) >= min(_SHORTEST, least)]
    return [match.span() for match in found if any(map(str.isdigit, match[0]))]


def _least(fmt: Format) -> int:
    return min(low for rule in fmt.rules for low, _ in rule.lengths)


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    parts, at = [], 0
    for start, end in spans:
        parts.append(text[at:start])
        at = end
    return "\0".join([*parts, text[at:]])


def _is_beside(text: str, *, auto: bool) -> bool:
    """Whether what stands beside a key says nothing that could be a part of it."""
    if may_be_date(text):
        return False
    left = _COUNT.sub(" ", _YEAR.sub(" ", AMOUNT.sub(" ", without_index(text))))
    if _OTHER_PART.search(left) and (auto or re.search(r"[A-Za-z0-9]{3}", _OTHER_PART.sub("", left))):
        return False
    if "@" in left or "://" in left:
        return False
    words = _RUN.findall(left)
    if auto and _TITLE.fullmatch(text) and not _OTHER_PART.search(text):
        return True
    if auto:
        return all(_PLAIN_WORDS.fullmatch(word) or (word.isdigit() and len(word) < 3) for word in words)  # noqa: PLR2004
    return all(_is_word(word) for word in words)


def _is_word(word: str) -> bool:
    if word.isdigit():
        return len(word) <= 3  # noqa: PLR2004 -- a pin has four and more
    if word.replace("-", "").replace(".", "").isalpha():
        return not (word.isupper() and len(word) > 6) and "@" not in word  # noqa: PLR2004
    return len(word) <= 3 or not re.search(r"\d", word)  # noqa: PLR2004
