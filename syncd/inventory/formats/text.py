"""What text is: folding, the de-duplication form, prose that is not a key. Used by every module of this package.

Pure functions. ``dedupe_form`` is the one function here whose result is stored (as a fingerprint) and so must never
change.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_ZERO_WIDTH: Final = (
    "\u00ad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
    "\u2060\u2061\u2062\u2063\u2064\u2066\u2067\u2068\u2069\u206a\u206b\u206c\u206d\u206e\u206f\ufeff"
)
ZERO_WIDTH_CLASS: Final = "\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
"""Inside a regular expression's brackets: characters that take no room, direction marks included."""

_HYPHENS: Final = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
_SPACES: Final = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    chr(code) for code in range(0x2000, 0x200B)
)
_OVERRIDES: Final = "\u202d\u202e"
_STRIP: Final = _SPACES + "".join(char for char in _ZERO_WIDTH if char not in _OVERRIDES)
_NO_ZERO_WIDTH: Final = dict.fromkeys(map(ord, _ZERO_WIDTH))
_PLAIN_HYPHEN: Final = dict.fromkeys(map(ord, _HYPHENS), "-")
_DEDUPE_DROP: Final = dict.fromkeys(map(ord, _SPACES + _ZERO_WIDTH + _HYPHENS))

LINK: Final = re.compile(r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9+.]{1,15}+://[A-Za-z0-9\[][!-~]*+")
"""A link as text has it: printable ASCII, so that it ends where Chinese text goes on without a space."""
_STORED_STRIP: Final = _SPACES + _ZERO_WIDTH
_STORED_LINK: Final = re.compile(r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9+.]{1,15}+://\S++")  # dedupe_form's own, for ever
_KINDS: Final = frozenset({"Lu", "Ll", "Nd"})
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def strip(text: str) -> str:
    """The text without the spaces and zero-width characters around it."""
    return text.strip(_STRIP)


def fold(text: str) -> str:
    """The ASCII spelling of a value whose alphabet is ASCII: full-width and other styles of a letter, digit or mark,
    no zero-width characters, one kind of hyphen, spaces plain.

    NFKC, but only where it maps one character to one of its own kind: a circled 1 is a number in a list, not the digit
    that begins a key. A direction override stays, and so spoils the value: what people saw is not what is written.
    """
    if text.isascii():
        return text.strip(_STRIP)
    return "".join(map(_plain, text.strip(_STRIP))).strip(" ")


@lru_cache(4096)
def _plain(char: str) -> str:
    if char.isascii() or char in _OVERRIDES:
        return " " if char in _SPACES else char
    if char in _SPACES:
        return " "
    if char in _ZERO_WIDTH:
        return ""
    if char in _HYPHENS:
        return "-"
    plain = unicodedata.normalize("NFKC", char)
    same_kind = "\uff01" <= char <= "\uff5e" or unicodedata.category(char) in _KINDS
    return plain if len(plain) == 1 and plain.isascii() and same_kind else char


def has_control(text: str) -> bool:
    """Whether the text has control characters (tabs and line ends aside), which no key has."""
    return not text.isprintable() and _CONTROL.search(text) is not None


def is_link(text: str) -> bool:
    """Whether the whole text is one link."""
    return "://" in text and LINK.fullmatch(text) is not None


_ENTITY: Final = re.compile(r"&(?:#\d{1,7}|#x[0-9A-Fa-f]{1,6}|[A-Za-z]{2,8});")


def mask_links(text: str) -> str:
    """The text with every link, and every HTML entity, overwritten by as many letters, so that a search for separators
    and labels passes it over: nothing is decoded, and nothing in it separates.
    """
    if "://" in text:
        text = LINK.sub(lambda match: "L" * len(match[0]), text)
    return _ENTITY.sub(lambda match: "E" * len(match[0]), text) if "&" in text else text


def dedupe_form(key_fields: Mapping[str, str]) -> str:
    """One text for all spellings of one key (version 1). This function NEVER changes: its fingerprints are stored.

    Each field: NFKC, then without spaces, hyphens and zero-width characters, upper case, and both once more (upper case
    may bring back what was folded). A link stays as it is but for the space around it; a field of which nothing would
    be left stays as it is. The fields are then sorted by their folded text and joined by U+001F: neither the names
    nor the order of the fields count, because formats, which an operator may edit, choose both. Passwords that differ
    in case only fold together, which holds a key back at worst. Give it ``CardKey.fields``, never ``canonical``.
    """
    if len(key_fields) == 1:
        (value,) = key_fields.values()
        return _dedupe_value(value)
    return "\x1f".join(sorted(map(_dedupe_value, key_fields.values())))


def _dedupe_value(value: str) -> str:
    if value.isascii():
        if "://" in value and _STORED_LINK.fullmatch(value.strip(_STORED_STRIP)):
            return value.strip(_STORED_STRIP)
        return value.translate(_DEDUPE_DROP).upper() or value
    if _STORED_LINK.fullmatch(value.strip(_STORED_STRIP)):
        return value.strip(_STORED_STRIP)
    folded = value
    for _ in range(2):
        folded = unicodedata.normalize("NFKC", folded).translate(_DEDUPE_DROP).upper()
    return unicodedata.normalize("NFKC", folded).translate(_DEDUPE_DROP) or value


_CJK: Final = "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_CJK_RUN: Final = re.compile(f"[{_CJK}]{{2}}")
_ONE_CJK: Final = re.compile(f"[{_CJK}]")
_SENTENCE_MARKS: Final = re.compile("[。！？…]")
_FEW_WORDS: Final = 3
_HEADING: Final = 32
_NOT_WORD: Final = re.compile(r"[\W_]+")

_PLACEHOLDERS: Final = (
    "很抱歉，有人在你付款之前抢走了商品，请联系客服。",
    "正在发货中，请耐心等待，如有疑问，请联系客服。",
    "此商品没有发货信息或正在发货中",
    "暂无库存", "库存不足", "已售罄", "售罄", "缺货", "无货", "补货中", "发货中", "已使用", "已失效", "暂无", "无",
    "空",     "sold out", "out of stock", "no stock", "not available", "unavailable", "unknown", "pre-order", "pending",
    "processing", "coming soon", "null", "none", "nil", "nan", "n/a", "undefined", "empty", "error", "failed",
    "success", "expired", "refunded", "used", "unused", "invalid", "redeemed", "cancelled", "test",
    "please contact support",
    "contact us", "delivered", "available", "[object Object]", "true", "false", "tbd", "to be announced",
    "internal server error", "not found", "service unavailable",
    "bad request", "unauthorized", "forbidden", "redacted",
    "placeholder", "replacement", "maintenance",
)  # fmt: skip
_TELLTALE: Final = re.compile(
    "抱歉|联系客服|请联系|发货中|没有发货|暂无库存|库存不足|售罄|缺货|耐心等待|抢走|请稍后"
    "|sold out|out of stock|contact (?:support|us)|customer service",
    re.IGNORECASE,
)


def _bare(text: str) -> str:
    return _NOT_WORD.sub("", unicodedata.normalize("NFKC", text)).casefold()


_KNOWN: Final = frozenset(map(_bare, _PLACEHOLDERS))


_MASK: Final = re.compile(r"X{4}|x{4}|\*{2}|[•●…※□■]|^\*|\*$|-\*|\*-|#{3}|\?{2}|_{4}")
_DRAWN: Final = re.compile(r"([A-Za-z])\1*(?:-([A-Za-z])\2*)+|([A-Za-z]{3,})(?:-\3)+|0(?:[ -]?0){5,}")


def is_masked(text: str) -> bool:
    """Whether a code is not shown, but masked or drawn: ``ABCD-XXXX-1234``, ``ABCD****``, ``AAAAA-BBBBB-CCCCC``,
    ``TEST-TEST-TEST``, nothing but zeros (of a pin's usual four or five, a pin may well be).
    """
    return _MASK.search(text) is not None or _DRAWN.fullmatch(text) is not None


_DENY: Final = re.compile(
    "[❌✗✘✖🚫⛔]|已|曾|旧|作废|失效|无效|循环|重复|通用|示例|样例|例如|格式|错误|退款|补发|更换|换|仅|只能|冻结|锁|假|不可|不能|未付|模板"
    r"|\b(?:used|redeemed|invalid|void|revoked|blocked|cancel\w*|refund\w*|sold|wrong|error|example|sample|format|demo"
    r"|test|e\.?g|not|old|bad|dead|off|replac\w*|reusable|expired|banned|fake|template|instead|previous|was)\b",
    re.IGNORECASE,
)


def denies(text: str) -> bool:
    """Whether words beside a key say that it is none, or none any more."""
    return _DENY.search(text) is not None


_GOODS: Final = "(?:卡密|卡|券|码|激活码|兑换码|账号|密钥|的|都|均|全部|是|为){0,4}"
_GONE: Final = "(?:已(?:经)?(?:使用|用|售出?|失效|作废|兑换|充值|激活|过期)|失效|作废|过期|无效|废卡|坏卡)了?"
_DEAD: Final = "(?:already )?(?:used|sold|redeemed|expired|invalid|void|dead|old)"
_SPENT_HEADING: Final = re.compile(
    rf"\W{{0,8}}(?:以[上下]|下[列面]|上面|这些|前面){_GOODS}{_GONE}{_GOODS}(?:[,，;；。].{{0,30}}|\W{{0,8}})"
    rf"|(?:=+|-+|#+|【|\[|「)\s?{_GONE}{_GOODS}\W{{1,8}}|{_GONE}{_GOODS}[:：]"
    rf"|\W{{0,8}}{_DEAD} (?:keys?|codes?|cards?|ones|vouchers?)\W{{0,8}}"
    rf"|(?:=+|-+|#+|\[|\()\s?{_DEAD}\W{{1,8}}|{_DEAD}:",
    re.IGNORECASE,
)


def heads_spent(text: str) -> bool:
    """Whether a line heads or ends a list of cards that are no good: ``已使用：``, ``以上已售``, ``Used keys``."""
    return len(text) <= _HEADING and _SPENT_HEADING.fullmatch(text) is not None


_NOT_AGAIN: Final = re.compile("(?:不可|不能|不得|不要|请勿|勿|禁止|无法|避免|非|不)[^，。,.]{0,3}(?:重复|循环|多次)")
_AGAIN: Final = re.compile(
    "循环(?:卡|发货|使用|出售|码)|重复(?:发货|出售|发卡)|可(?:重复|多次|循环)使用|\\breusable\\b", re.IGNORECASE
)


def says_reusable(text: str) -> bool:
    """Whether a text says that a card is one that is sold again and again, and so cannot be counted."""
    return _AGAIN.search(text) is not None and _NOT_AGAIN.search(text) is None


def placeholders(texts: tuple[str, ...]) -> frozenset[str]:
    """Texts that stand where a key should be, in the form in which ``is_placeholder`` compares them."""
    return frozenset(filter(None, map(_bare, texts)))


def is_placeholder(text: str, more: frozenset[str] = frozenset(), *, whole: bool = False) -> bool:
    """Whether the text is known to stand where a key should be: "sold out", an apology, a word like "null".

    ``whole``: only if all of it is such a text, and not if it has a telltale phrase in it.
    """
    bare = _bare(text)
    known = bare.strip("x*") == "" or bare in _KNOWN or bare in more
    return known or (not whole and _TELLTALE.search(text) is not None)


def _are_words(tokens: list[str]) -> bool:
    """Whether these are mostly words of a sentence, and not groups of a code: letters, no inner capitals."""
    words = sum(
        1 for token in tokens if (bare := token.strip(",.!?;:'\"()")).isalpha() and bare[1:] == bare[1:].lower()
    )
    if len(tokens) == _FEW_WORDS - 1:
        return all(map(_TITLE_WORD.fullmatch, tokens))
    return len(tokens) >= _FEW_WORDS and words * 4 >= len(tokens) * 3


_TITLE_WORD: Final = re.compile("[A-Z]?[a-z]{2,}")
_GREETING: Final = re.compile(r"(?:[A-Za-z']{1,20}[ ,]{1,2}){0,5}[A-Za-z']{1,20}[,!.:?]{1,3}")
_RULED: Final = re.compile(r"[-=*_~—─]{2,16} ?(?:[^\x00-\x7f]{1,12}|[^-=*_~—─\x00-\x1f]{0,40}) ?[-=*_~—─]{2,16}")


def is_prose_line(text: str, more: frozenset[str] = frozenset()) -> bool:
    """Whether a whole line is prose: also a greeting (``Hello,``), a word between rules (``---完---``), or Chinese with
    hardly a letter or digit (``共2张``).
    """
    if is_prose(text, more) or _GREETING.fullmatch(text) or is_ruled(text):
        return True
    return _ONE_CJK.search(text) is not None and sum(map(_is_plain_alnum, text)) < _FEW_WORDS


def is_ruled(text: str) -> bool:
    """Whether a line is a heading between rules (``—— 卡片 1 ——``), of which no word may be a code."""
    return _RULED.fullmatch(text) is not None and _RUN.search(text) is None


_RUN: Final = re.compile("[A-Za-z0-9]{6}|[0-9]{5}")


def _is_plain_alnum(char: str) -> bool:
    return char.isascii() and char.isalnum()


def is_prose(text: str, more: frozenset[str] = frozenset()) -> bool:
    """Whether the text reads as a sentence, a title or a placeholder, and not as a key."""
    if text.isascii():
        return (" " in text and _are_words(text.split())) or is_placeholder(text, more)
    return _CJK_RUN.search(text) is not None or _SENTENCE_MARKS.search(text) is not None or is_placeholder(text, more)
