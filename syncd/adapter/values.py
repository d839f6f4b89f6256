"""What suppliers tell, as frozen values, and how it is read from what they write."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import jmespath
from jmespath.exceptions import JMESPathError, JMESPathTypeError

from syncd.adapter.errors import BadResponse, Config, NotForSale, OutOfStock, PriceChanged, Refused
from syncd.model import Money, SecretText


@dataclass(frozen=True, slots=True)
class Stock:
    """How much of an offer there is: a number, a word, no limit, or nobody knows. Unknown is not zero (P1)."""

    kind: Literal["exact", "coarse", "unlimited", "unknown"]
    quantity: int | None = None
    """For ``exact``: units, 0 or more."""
    level: Literal["out", "low", "plenty"] | None = None
    """For ``coarse``."""

    def __post_init__(self) -> None:
        if (self.kind == "exact") != (self.quantity is not None) or (self.kind == "coarse") != (self.level is not None):
            raise BadResponse("a stock is a quantity, a level, unlimited or unknown")
        if self.quantity is not None and (isinstance(self.quantity, bool) or self.quantity < 0):
            raise BadResponse("a stock cannot be negative", hint="if -1 means unlimited: Stock.exact(n, unlimited=-1)")

    @classmethod
    def exact(cls, quantity: object, *, unlimited: int | None = None) -> Stock:
        """A number of units (an int, or a text of digits). ``unlimited``: the number with which the supplier says that.

        Raises BadResponse for anything else, negative numbers among it.
        """
        number = integer(quantity)
        if number is None:
            raise BadResponse("a stock that is not a whole number")
        return _UNLIMITED if unlimited is not None and number == unlimited else cls("exact", quantity=number)

    @classmethod
    def coarse(cls, level: Literal["out", "low", "plenty"]) -> Stock:
        """A word for how much there is."""
        return cls("coarse", level=level)

    @classmethod
    def unlimited(cls) -> Stock:
        """As much as one likes."""
        return _UNLIMITED

    @classmethod
    def unknown(cls) -> Stock:
        """The supplier does not say."""
        return _UNKNOWN


_UNLIMITED: Final = Stock("unlimited")
_UNKNOWN: Final = Stock("unknown")
_NO_COUNT: Final = 10**30


def integer(value: object) -> int | None:
    """A whole number as suppliers write it: an int, a text of digits, a number whose fraction is none; else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.strip().removeprefix("-").isdecimal():
        return int(value)
    if isinstance(value, Decimal | float):  # as an int, 1e9999999 would hold up the whole process for hours
        return int(value) if -_NO_COUNT < value < _NO_COUNT and value == int(value) else None
    return value if isinstance(value, int) else None


def money(value: object, currency: str) -> Money:
    """An amount as a supplier writes it: text, int, or Decimal (which `Answer.json` gives for 2.7). Raises BadResponse.

    Exact: 2.7 stays 2.7. Thousands separators, signs of currency and exponents are refused.
    """
    text = str(value) if isinstance(value, str | int | Decimal) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"-?\d{1,12}(\.\d{1,12})?", text.strip()) or not re.fullmatch(r"[A-Z]{3}", currency):
        raise BadResponse("an amount that is not a number, or without a currency")
    return Money(Decimal(text.strip()), currency)


def instant(value: object, zone: ZoneInfo | None = None) -> datetime | None:
    """A time as a supplier writes it: ISO 8601, ten digits (seconds since 1970) or thirteen (milliseconds); None for
    whatever is not one. ``zone`` is that of a time that says none; without it such a time is none.
    """
    text = str(value)
    if re.fullmatch(r"[0-9]{10}|[0-9]{13}", text):
        return datetime.fromtimestamp(int(text) / (1000 if len(text) > 10 else 1), UTC)  # noqa: PLR2004
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=zone) if zone else None


_LITERAL: Final = re.compile(r"[=<>]\s*(-?\d|true\b|false\b)")
_BARE: Final = "numbers, true and false stand in backticks: code == `0`"


def select(expression: str) -> Callable[[Any], Any]:
    """What a JMESPath expression finds in an answer; None when nothing is there. Raises ValueError for an expression
    that is none; where it is used, BadResponse for an answer that it cannot work on.
    """
    try:
        compiled = jmespath.compile(expression)
        with suppress(JMESPathTypeError):
            compiled.search({})  # the names of functions are looked up only now
    except (JMESPathError, TypeError) as error:
        why = _BARE if _LITERAL.search(str(expression)) else str(error).splitlines()[0]
        raise ValueError(f"this is not JMESPath: {expression!r} ({why})") from None
    if _LITERAL.search(expression):  # `true` is taken for the name of a member, which is never there
        raise ValueError(f"this compares with the name of a member: {expression!r} ({_BARE})")
    if compiled.parsed["type"] == "field":  # most are a name alone, and a listing has many
        name = compiled.parsed["value"]
        return lambda data: data.get(name) if isinstance(data, dict) else None

    def found(data: Any) -> Any:
        try:
            return compiled.search(data)
        except (JMESPathError, TypeError, ValueError, ArithmeticError):
            pass  # raised outside of the handler, so that no traceback leads to the data
        raise BadResponse(f"what {expression!r} works on is not what it expects")

    return found


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Around what reads an answer, with ``with`` or as a decorator: whatever is missing there, or of another type, is a
    BadResponse, with nothing of the answer in it. ``what`` is being read: "a product".
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise BadResponse(f"{what} that is not what the protocol says") from None


@dataclass(frozen=True, slots=True)
class Offer:
    """One thing that a supplier lists. ``sku`` is its name there, unique in the listing and stable over time."""

    sku: str
    title: str
    price: Money | None
    """What one unit costs us, before tiers; None where only a question at buying time tells."""
    stock: Stock
    for_sale: bool = True
    min_quantity: int = 1
    max_quantity: int | None = None
    """Largest quantity of one order."""
    step: int = 1
    """Orders are multiples of it."""
    tiers: tuple[tuple[int, Money], ...] = ()
    """(from this quantity on, price of one unit), ascending."""
    region: str = ""
    """Where it can be used, or not, in words for people."""
    group: str = ""
    """The supplier's own category, for people who look for an offer."""
    updated_at: datetime | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    """What `place_order` needs back to order exactly this. No secret."""

    def __post_init__(self) -> None:
        if not self.sku or len(self.sku) > 200 or self.sku != self.sku.strip() or "\n" in self.sku:  # noqa: PLR2004
            raise BadResponse("an offer without a sound sku: 1 to 200 characters, no blanks around it")
        if self.price is not None and self.price.amount < 0:
            raise BadResponse(f"offer {self.sku}: a negative price")


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing."""

    offers: Sequence[Offer]
    total: int | None = None
    """How many offers the whole listing has, where the supplier says it: fewer seen means a listing cut off."""
    incremental: bool = False
    """Whether this listing holds only what changed since ``since``: it never implies that anything is gone."""


@dataclass(frozen=True, slots=True)
class Check:
    """What `Adapter.check` found: our account as the supplier calls it, its balance, and what a person should know."""

    account: str = ""
    balance: Money | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OrderRequest:
    """One purchase of ours. ``reference`` is unique for ever, and is committed before this is handed over."""

    reference: str
    """At most 19 characters of A-Z and 0-9 (`Promises` may ask for fewer)."""
    offer: Offer
    """As it was last listed."""
    quantity: int
    max_unit_cost: Money | None = None
    """Send it along where the supplier has a price guard; where it has none, ask for the price just before."""
    callback_url: str = ""
    """Where the supplier may say that something happened; "" when nobody listens."""
    again: bool = False
    """This reference was sent before, and nobody knows what became of it. For the core alone: what then is neither an
    Order, nor a refusal of a supplier that keeps `Promises.same_reference_same_order`, tells nothing of the first time.
    """

    def price_of(self, now: Offer) -> Money:
        """What a unit of this purchase costs by the offer as it is now: a price guard, for a supplier that has none.

        Raises NotForSale, Refused (its rules of quantity), OutOfStock (by its stock, if that says so), PriceChanged,
        Config.
        """
        price = [now.price, *(each for least, each in now.tiers if self.quantity >= least)][-1]
        most, limit = now.max_quantity or self.quantity, self.max_unit_cost
        if not now.for_sale or price is None:
            raise NotForSale(f"{now.sku} is not for sale now", hint="name another offer of the product")
        if not now.min_quantity <= self.quantity <= most or self.quantity % now.step:
            rule = f"{now.min_quantity} to {now.max_quantity or 'any number'}, in steps of {now.step}"
            raise Refused(f"{self.quantity} of {now.sku} cannot be ordered at once", hint=f"it is sold in {rule}")
        left = 0 if now.stock.level == "out" else now.stock.quantity
        if left is not None and left < self.quantity:
            raise OutOfStock(f"there are {left} of {now.sku} now", hint="another offer may have it")
        if limit is not None and limit.currency != price.currency:
            raise Config(f"a limit in {limit.currency} for {now.sku}, which costs {price}", hint="correct the currency")
        if limit is not None and price.amount > limit.amount:
            raise PriceChanged(f"{now.sku} costs {price} now, the limit is {limit}", hint="raise max_cost, or wait")
        return price


OrderStatus = Literal["pending", "partial", "completed", "canceled", "refunded"]


_PICTURES: Final = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM")
"""How a picture begins: JPEG, PNG, GIF, WebP, BMP."""


@dataclass(frozen=True, slots=True)
class RawKey:
    """A key as the supplier sent it, or a text with several: never split, never stripped (K14). Exactly one of
    ``text``, ``fields`` and ``image`` is set.
    """

    text: SecretText | None = None
    fields: Mapping[str, SecretText] | None = None
    """The supplier's own names (``card_no``, ``card_password``), and what stands there, empty ones too."""
    image: bytes | None = field(default=None, repr=False)
    """The picture's bytes; its kind is seen from them."""
    id: str = ""
    """The supplier's own id of this key: to return it, and to know it again in a later, partial answer."""
    expires: str = ""
    """Until when it is good, in the supplier's own words."""

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.text, self.fields, self.image)) != 1:
            raise BadResponse("a key is a text, fields or an image")

    @classmethod
    def of(cls, text: str, *, id: str = "", expires: str = "") -> RawKey:  # noqa: A002 - the field's own name
        """A text, as it came."""
        return cls(text=SecretText(text), id=id, expires=expires)

    @classmethod
    def picture(cls, text: str, *, kind: str, id: str = "", expires: str = "") -> RawKey:  # noqa: A002
        """An image in base64. What is none is not lost: its parts are handed over, and a person looks at them."""
        try:
            image = base64.b64decode("".join(text.split()), validate=True)
        except ValueError:
            image = b""
        if image.startswith(_PICTURES):
            return cls(image=image, id=id, expires=expires)
        return cls.card({"type": kind, "image": text}, id=id, expires=expires)

    @classmethod
    def card(cls, fields: Mapping[str, str], *, id: str = "", expires: str = "") -> RawKey:  # noqa: A002
        """Named parts, as they came."""
        return cls(fields={name: SecretText(value) for name, value in fields.items()}, id=id, expires=expires)


@dataclass(frozen=True, slots=True)
class Order:
    """An order of ours as the supplier sees it now."""

    id: str
    """The supplier's own id: `get_order` takes it."""
    status: OrderStatus
    reference: str = ""
    charged: Money | None = None
    """What it cost in all, where the answer says it."""
    quantity: int | None = None
    """Units that the supplier says were ordered."""
    keys: Sequence[RawKey] = field(default=(), repr=False)
    """What has been handed over so far; `Adapter.fetch_keys` may bring more."""
    note: str = ""
    """A word of the supplier's for people. No key."""

    def __post_init__(self) -> None:
        own: object = self.id  # adapters are not all checked by a type checker: null is what a supplier leaves out
        if not isinstance(own, str) or not own.strip():
            raise BadResponse("an order without the supplier's id: nothing could be asked of it")


@dataclass(frozen=True, slots=True)
class Promises:
    """What a supplier keeps to, which no method shows. Promise only what its documentation says or a test has shown."""

    same_reference_same_order: bool = False
    """Sending a reference again gives the existing order and buys nothing. Never two at once."""
    exact_stock: bool = False
    """A stock number is what can be bought at this moment."""
    serial_trades: bool = False
    """One order at a time per account."""
    repeat_after: float | None = None
    """Where a reference is neither answered again nor found: seconds after which sending it again may tell what became
    of it. An Order then says that the first time bought nothing, and this time did; all else leaves it unknown.
    """
    incremental: bool = False
    """`list_offers` understands ``since``."""
    reference_length: int = 19
    reference_alphabet: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
