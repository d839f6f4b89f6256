"""JSON as suppliers answer with it: where each card lies in the document, and its members. Used by survey and reader.

Nothing is turned into a number: a number keeps its spelling. A card is an object that names a part of a key, or a
text in a list; objects and lists around cards are an envelope, and which of them holds cards must be plain.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from syncd.inventory.formats.expiry import may_be_date
from syncd.inventory.formats.image import looks_like_image
from syncd.inventory.formats.rules import Refusal
from syncd.inventory.formats.text import says_reusable
from syncd.inventory.formats.words import (
    EXPIRES,
    EXPIRY_WORDS,
    KEY_ROLES,
    NOTE,
    ROLES,
    UNSURE_DATES,
    dates_the_past,
    expiry_said,
    hides_a_key,
    is_flag,
    normal,
    says_spent,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DOCUMENT: Final = 8 << 20
"""Bytes of the largest JSON document that is read; a larger one is quarantined in pieces."""
_DEEPEST: Final = 8
_SHORT: Final = 3  # digits that only an answer's number has
_SPACE: Final = re.compile(r"[ \t\r\n\ufeff]*")
_JSON_START: Final = re.compile(r'[\s\ufeff]*(?:\{\s*["}]|\[\s*["{\[\]])')
_STATUS: Final = re.compile(r"-?\d{1,6}|[A-Za-z_ ]{1,20}")
_PREORDER: Final = re.compile(r"pre[\s_-]?order", re.IGNORECASE)
_ERRORS: Final = frozenset({"error", "errors", "errormsg", "errmsg", "errormessage", "errorcode", "errcode", "errno"})
_NO_ERROR: Final = frozenset({"", "0", "00", "none", "null", "ok", "success", "false", "no"})
_KINDS: Final = frozenset({"codetype", "type", "mimetype", "mediatype", "contenttype", "cardtype", "format"})
_ADDRESS: Final = frozenset({"url", "link"})
_ENVELOPE: Final = frozenset(
    {
        "data",
        "list",
        "items",
        "item",
        "result",
        "results",
        "rows",
        "records",
        "content",
        "contents",
        "payload",
        "response",
        "body",
        "detail",
        "details",
        "orders",
        "order",
        "products",
        "product",
        "goods",
    }
)
# Names under which one text may be all cards of an order.
_TEXTS: Final = frozenset({
    "payload", "content", "contents", "data", "cards", "cardlist", "kamis", "kamilist", "secrets", "deliverycontent",
    "deliverytext", "deliveryinfo", "cardinfo", "cardsinfo", "cardcontent", "carddata", "cardsdata", "keylist",
    "codelist", "卡密列表", "发货内容",
    "发货信息", "卡密信息", "goodscontent", "deliverydata", "delivery", "voucherlist", "keydata", "cardtext",
})  # fmt: skip


class Number(str):
    """A number, as the document spells it."""

    __slots__ = ()


class Object(tuple[tuple[str, object], ...]):
    """The members of an object in order; a name may come twice."""

    __slots__ = ()


class Element(NamedTuple):
    """One card of a document: its place in the text, and its value, or why it cannot be read."""

    start: int
    end: int
    value: object
    expires: str = ""


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=Object,
    parse_int=Number,
    parse_float=Number,
    parse_constant=Number,
    strict=False,  # a raw tab or line end inside a text is a text all the same
)


def starts_like_json(text: str) -> bool:
    """Whether a text begins as only JSON does. If it then is none, it is broken, and no line of it is a key."""
    return _JSON_START.match(text) is not None


def parse(text: str) -> object | None:
    """The value of a whole text, or None if it is not one JSON value."""
    try:
        value, end = _DECODER.raw_decode(text, _skip(text, 0))
    except (ValueError, RecursionError):
        return None
    return value if _skip(text, end) == len(text) else None


def elements(text: str) -> Iterator[Element]:
    """The cards of a document that ``parse`` takes, in order."""
    return _walk(text, _skip(text, 0), 0, "")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _walk(text: str, at: int, depth: int, expires: str, *, inside: bool = False) -> Iterator[Element]:
    value, end = _DECODER.raw_decode(text, at)
    if depth > _DEEPEST:
        yield Element(at, end, Refusal("ambiguous", "cards nested too deeply"))
    elif isinstance(value, Object):
        yield from _object(text, Element(at, end, value, expires), value, depth)
    elif (
        isinstance(value, list)
        and inside
        and len(value) > 1
        and not any(isinstance(item, Object | list) for item in value)
    ):
        yield Element(at, end, value, expires)  # a row of a table
    elif isinstance(value, list):
        for start, _, stop in _inside(text, at, named=False):
            if text[start] in "[{":
                yield from _walk(text, start, depth + 1, expires, inside=True)
            else:
                yield Element(start, stop, _DECODER.raw_decode(text, start)[0], expires)
    else:
        yield Element(at, end, value, expires)


def _object(text: str, element: Element, members: Object, depth: int) -> Iterator[Element]:
    holding = [name for name, value in members if _holds_cards(value, name)]
    own = [name for name, value in members if _is_part(name, value)]
    if holding:
        own = [name for name, value in members if _is_part(name, value) and not _is_status(name, value)]
    if any(_is_reusable(name, value) for name, value in members):
        yield Element(
            element.start, element.end, Refusal("ambiguous", "a card that is sold again and again cannot be counted")
        )
    elif not holding:
        yield element
    elif len(holding) > 1 or own:
        what = "lists" if len(holding) > 1 else "a list of cards beside a part of one"
        yield Element(element.start, element.end, Refusal("ambiguous", f"{what}, and which of them is the cards"))
    else:
        dates = [date for name, value in members if name != holding[0] for date in _expiries(name, value)]
        expires = "" if not dates else dates[0] if len(set(dates)) == 1 else "?"
        for start, name, _ in _inside(text, element.start, named=True):
            if name == holding[0]:
                yield from _walk(text, start, depth + 1, expires or element.expires)


def _expiries(name: str, value: object) -> list[str]:
    """The texts of expiries in a member: under a name for one, or said in a note, however deep in it."""
    if isinstance(value, Object):
        return [date for inner, part in value for date in _expiries(inner, part)]
    if isinstance(value, list):
        return [date for part in value for date in _expiries(name, part)]
    if not isinstance(value, str) or not value:
        return []
    role = ROLES.get(normal(name), "")
    said = value if role == EXPIRES else "" if role in KEY_ROLES else expiry_said(value)
    return [said] if said else []


def _is_part(name: str, value: object) -> bool:
    return isinstance(value, str) and value != "" and (_role(normal(name)) in KEY_ROLES or hides_a_key(name))


def _role(plain: str) -> str:
    return ROLES.get(plain, "") or ("code" if plain in _TEXTS else "")


def _is_status(name: str, value: object) -> bool:
    """The ``code`` of an answer, beside the list that holds its cards."""
    return (
        (normal(name) == "key" or normal(name).endswith("code"))
        and isinstance(value, str)
        and _STATUS.fullmatch(value) is not None
    )


def _is_reusable(name: str, value: object) -> bool:
    """Whether a member says that the cards beside it are sold again and again."""
    return isinstance(value, str) and (says_reusable(value) or (normal(name) in _KINDS and value.lower() == "loop"))


def _holds_cards(value: object, name: str) -> bool:
    if isinstance(value, Object):
        return any(_is_part(inner, part) or _holds_cards(part, inner) for inner, part in value)
    if not isinstance(value, list) or not value:
        return False
    if any(isinstance(item, Object | list) and _holds_cards(item, name) for item in value):
        return True
    plain = normal(name)
    role = ROLES.get(plain) or ROLES.get(plain.removesuffix("list")) or ROLES.get(plain.removesuffix("s"))
    listed = role in KEY_ROLES or plain in _ENVELOPE or plain == "" or hides_a_key(name)
    return listed and any(isinstance(item, str) and item for item in value)


def _inside(text: str, at: int, *, named: bool) -> Iterator[tuple[int, str, int]]:
    """(start, name, end) of each value inside the object or list that begins here."""
    at = _skip(text, at + 1)
    while text[at] not in "]}":
        name = ""
        if named:
            found, at = _DECODER.raw_decode(text, at)
            name, at = str(found), _skip(text, _skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, at)
        yield at, name, end
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def roles_of(members: Object) -> dict[str, str] | Refusal:
    """The named texts of one card's object by role: numbers as they are spelled; of notes, an expiry that they say."""
    names = {normal(name) for name, value in members if isinstance(value, str) and value != ""}
    roles: dict[str, str] = {}
    said: list[str] = []
    for name, value in members:
        plain = normal(name)
        role = _role_beside(plain, value, names)
        if (plain in _ADDRESS and "secret" in names) or _is_answer(role, value, members):
            continue  # the page of the order in a shop that gives the key itself; the code of the answer
        if isinstance(value, str) and _PREORDER.search(value) and role not in KEY_ROLES:
            return Refusal("no_key_yet", "a pre-order: the supplier has no key yet")
        if not role and hides_a_key(name) and value not in (None, "", [], Object()):
            return Refusal("ambiguous", "a name that is not known, and may be a part of the key")
        if role not in KEY_ROLES and role != EXPIRES:
            if problem := _note_problem(name, value):
                return problem
            said += _expiries(name, value)
            continue
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            return Refusal("unreadable_shape", f"{role} is neither a text nor a number")
        if roles.get(role, value) != value:
            return Refusal("ambiguous", f"{role} is given twice")
        roles[role] = value
    if said and EXPIRES not in roles:
        roles[EXPIRES] = said[0] if len(set(said)) == 1 else "?"
    if "code" in roles and _is_picture(members) and not looks_like_image(roles["code"]):
        return Refusal("unreadable_shape", "said to be an image, and is none")
    return roles


def _role_beside(plain: str, value: object, names: set[str]) -> str:
    """What a name means beside the others of its object."""
    if plain == "no" and names & {"pwd", "password", "pass", "pin", "cardpwd"}:
        return "number"
    if plain == "value" and names & {"serial", "sn", "serialnumber"}:
        return "code"
    return _role(plain) if isinstance(value, str) else ROLES.get(plain, "")


def _is_answer(role: str, value: object, members: Object) -> bool:
    """Whether this is the number of an answer (``code: 0``) beside the text that is its content."""
    if role != "code" or not isinstance(value, Number) or not _STATUS.fullmatch(value):
        return False
    roles = {"code"} if len(value) > _SHORT else {"code", "pin", "password", "link", "serial"}
    return any(
        isinstance(other, str) and not isinstance(other, Number) and _role(normal(name)) in roles and other
        for name, other in members
    )


def _is_picture(members: Object) -> bool:
    return any(
        normal(name) in _KINDS and isinstance(value, str) and "image" in value.lower() for name, value in members
    )


def _note_problem(name: str, value: object) -> Refusal | None:
    """What a member that is no part of the card says against it: it is spent, an error, an expiry that is not plain."""
    plain, role = normal(name), ROLES.get(normal(name), "")
    if says_spent(plain, value):
        return Refusal("spent", "the supplier marks it as used, void or expired")
    if plain in _ERRORS and isinstance(value, str) and value.lower() not in _NO_ERROR:
        return Refusal("prose", "an answer that reports an error, not a key")
    if not isinstance(value, str) or (role == NOTE and plain not in UNSURE_DATES) or not value or is_flag(plain):
        return None
    if (may_be_date(value) or EXPIRY_WORDS.search(name)) and not dates_the_past(name) and not expiry_said(value):
        return Refusal("bad_expiry", "a name that is not known, and may be the expiry")
    return None


def unnamed(members: Object) -> list[str]:
    """The texts of an object, and of the objects in it, under names that mean nothing in particular."""
    found: list[str] = []
    for name, value in members:
        if isinstance(value, Object):
            found += unnamed(value)
        elif isinstance(value, str) and not isinstance(value, Number) and ROLES.get(normal(name)) != NOTE:
            found.append(value)
    return found


def texts_of(value: object) -> list[str]:
    """The lines of text that a card without names of its own is: an element of a list, or an object's only part."""
    if isinstance(value, Object):
        roles = roles_of(value)
        if isinstance(roles, Refusal):
            return []
        texts = [text for role, text in roles.items() if role in KEY_ROLES]
        value = texts[0] if len(texts) == 1 else None
    if not isinstance(value, str) or looks_like_image(value):
        return []
    return value.splitlines()
