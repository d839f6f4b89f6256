"""PUBLIC: the one module that an adapter imports.

An adapter is a file with one subclass of `Adapter`. It says what the supplier's protocol says, and nothing more: it
never splits, cleans or reads a key (K14), and retries, limits, leases, sealing and reports are the core's.
``adapters/README.md`` is the guide.

What a supplier can do is seen from the methods that its adapter implements. A feed implements `pull_keys`. A supplier
that sells by order implements `list_offers`, `place_order` and `get_order`, and whatever else its protocol has. What
cannot be seen from a method, the adapter promises in `Adapter.promises`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar, Final, Literal, Protocol
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

import jmespath
import msgspec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from jmespath.exceptions import JMESPathError, JMESPathTypeError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StrictStr, ValidationInfo

from syncd.config import SecretRef
from syncd.errors import StartError, SyncdError
from syncd.model import Money, SecretText
from syncd.placeholders import line, plain

__all__ = [
    "Adapter",
    "AdapterError",
    "Answer",
    "ApiKey",
    "Auth",
    "Authentication",
    "BadResponse",
    "Basic",
    "Bearer",
    "Check",
    "Config",
    "Connect",
    "Consignment",
    "Context",
    "FolderPath",
    "Forged",
    "Hint",
    "Http",
    "InsufficientBalance",
    "Media",
    "Money",
    "NotForSale",
    "NotSent",
    "OAuth2",
    "Offer",
    "Order",
    "OrderRequest",
    "OrderStatus",
    "OutOfStock",
    "OutcomeUnknown",
    "Page",
    "Part",
    "PriceChanged",
    "Promises",
    "Pull",
    "RateLimited",
    "RawKey",
    "Refused",
    "Request",
    "Seal",
    "Secret",
    "SecretText",
    "Settings",
    "Signed",
    "Signer",
    "Stock",
    "Transient",
    "Url",
    "Webhook",
    "aes_256_ecb",
    "by_cursor",
    "by_number",
    "by_offset",
    "hmac_sha256_hex",
    "instant",
    "md5_hex",
    "money",
    "reading",
    "same",
    "select",
    "sha1_hex",
    "verify",
]

Media = Literal["text", "csv", "xlsx"]
Seal = Callable[[BinaryIO, BinaryIO], None]
"""Seals everything read from the first stream into the second."""


# --- errors: named by what happens next -------------------------------------------------------------------------------
#
# A message says what is wrong, ``hint`` what to do. Neither may hold a key, a credential or a line of a payload. What
# an adapter raises besides these is mapped by the core: in `place_order` to OutcomeUnknown once anything was sent that
# may have bought something, elsewhere to BadResponse.


class AdapterError(SyncdError):
    """The supplier could not be read this time: recorded in the run, tried again at the next one."""

    code = "supplier_failed"
    status = 502


class NotSent(AdapterError):
    """Nothing left this machine (DNS, refused or timed-out connect, TLS, pool, open breaker): nothing was bought.

    A purchase closes as refused, and another supplier may be asked (K9).
    """

    code = "supplier_not_reached"


class Transient(AdapterError):
    """It failed now and may work in a moment: reading is tried again."""

    code = "supplier_transient"


class RateLimited(Transient):
    """Too many requests. ``retry_after`` in seconds, where the supplier says it."""

    code = "supplier_rate_limited"

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class Auth(AdapterError):
    """Our credentials are refused: this supplier is not asked again until its configuration changes; one alert."""

    code = "supplier_auth"


class Refused(AdapterError):
    """The supplier says no, with certainty: nothing was bought. Another supplier may be asked."""

    code = "supplier_refused"


class OutOfStock(Refused):
    """There is not enough of it."""

    code = "supplier_out_of_stock"


class PriceChanged(Refused):
    """It costs more than the limit that was sent."""

    code = "supplier_price_changed"


class InsufficientBalance(Refused):
    """Our account at the supplier does not cover it."""

    code = "supplier_insufficient_balance"


class NotForSale(Refused):
    """The offer is gone, paused, or not for us."""

    code = "supplier_not_for_sale"


class OutcomeUnknown(AdapterError):
    """It was sent, and nobody can say whether it was bought. Never repeated blindly, never failed over (M1)."""

    code = "supplier_outcome_unknown"


class BadResponse(AdapterError):
    """The answer is not what the protocol says (HTML, ``{}``, cut off): the last good data is kept (P1)."""

    code = "supplier_bad_response"


class Config(AdapterError):
    """The configuration cannot work: said once, and not tried again until it changes."""

    code = "supplier_misconfigured"


class Forged(AdapterError):
    """A webhook's signature is wrong, or is too old. It is answered with 401 and has no effect."""

    code = "webhook_forged"
    status = 401


# --- values -----------------------------------------------------------------------------------------------------------


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
        number = _integer(quantity)
        if number is None:
            raise BadResponse("a stock that is not a whole number")
        return UNLIMITED if unlimited is not None and number == unlimited else cls("exact", quantity=number)

    @classmethod
    def coarse(cls, level: Literal["out", "low", "plenty"]) -> Stock:
        """A word for how much there is."""
        return cls("coarse", level=level)

    @classmethod
    def unlimited(cls) -> Stock:
        """As much as one likes."""
        return UNLIMITED

    @classmethod
    def unknown(cls) -> Stock:
        """The supplier does not say."""
        return UNKNOWN


UNLIMITED: Final = Stock("unlimited")
UNKNOWN: Final = Stock("unknown")
_NO_COUNT: Final = 10**30


def _integer(value: object) -> int | None:
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


def select(expression: str) -> Callable[[Any], Any]:
    """What a JMESPath expression finds in an answer; None when nothing is there. Raises ValueError for an expression
    that is none; where it is used, BadResponse for an answer that it cannot work on.
    """
    try:
        compiled = jmespath.compile(expression)
        with suppress(JMESPathTypeError):
            compiled.search({})  # the names of functions are looked up only now
    except (JMESPathError, TypeError) as error:
        raise ValueError(f"this is not JMESPath: {expression!r} ({str(error).splitlines()[0]})") from None
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
class Webhook:
    """A request that a supplier sent to us, as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    query: Mapping[str, str]
    body: bytes = field(repr=False)
    received_at: datetime

    def fields(self) -> dict[str, Any]:
        """The members of a JSON object or the fields of a form; without a body, the query. Raises BadResponse."""
        return _fields(self.body) if self.body else dict(self.query)


@dataclass(frozen=True, slots=True)
class Hint:
    """What a webhook is about. It is a hint to ask again, never a source of keys."""

    event: Literal["order", "offer", "test"]
    order_id: str = ""
    reference: str = ""
    sku: str = ""
    answer: bytes = b""
    """The body that the supplier wants to read, sent with 200 (204 when empty)."""


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


# --- settings ---------------------------------------------------------------------------------------------------------


def _inside(value: Path, info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("base", Path())) / value.expanduser()


FolderPath = Annotated[Path, AfterValidator(_inside)]
"""A path in an adapter's settings; a relative one is relative to the configuration file's folder."""


def _address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or "@" in value:
        raise ValueError("this is not an address: write https://HOST, without user, query or fragment")
    return value.rstrip("/")


Url = Annotated[StrictStr, AfterValidator(_address)]
"""An http address in an adapter's settings, without a slash at its end."""


def _secret(value: object, info: ValidationInfo) -> SecretText:
    if isinstance(value, SecretText):
        return value
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004 - pydantic takes ValueError for a wrong value
            'a secret is never written into the configuration: { credential = "NAME" }, { file = "PATH" } or'
            ' { env = "NAME" } says where it lies'
        )
    ref = SecretRef.model_validate(value, context=info.context)
    if sum(place is not None for place in (ref.credential, ref.file, ref.env)) != 1:
        raise ValueError("a secret lies in exactly one place: name one of credential, file, env")
    try:
        found = ref.secret()
    except StartError as error:
        raise ValueError(str(error)) from None
    if not found.reveal():
        raise ValueError(f"{ref.where} is empty: put the secret there")
    return found


Secret = Annotated[SecretText, BeforeValidator(_secret)]
"""A credential in an adapter's settings: written as a reference, read as a SecretText, which prints as ``***``."""


class Settings(BaseModel):
    """The adapter's own part of ``[suppliers.NAME]``. Subclass it, name each setting and its default.

    Unknown settings and wrong types are configuration problems, reported with all others before the daemon starts.
    The docstring below a setting is its description.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
    )


# --- talking to the supplier ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A fixed key in a header, or in the query when ``query`` names a parameter."""

    key: SecretText
    header: str = "X-Api-Key"
    query: str = ""


@dataclass(frozen=True, slots=True)
class Bearer:
    """``Authorization: Bearer TOKEN``."""

    token: SecretText


@dataclass(frozen=True, slots=True)
class Basic:
    """``Authorization: Basic …``."""

    user: str
    password: SecretText


@dataclass(frozen=True, slots=True)
class OAuth2:
    """Client credentials: a token is fetched, used until shortly before it ends, and fetched anew once after a 401.

    Answers of both shapes are read: {access_token, expires_in} and {value, expiresIn}.
    """

    token_url: str
    client_id: str
    client_secret: SecretText
    extra: Mapping[str, str] = field(default_factory=dict)
    """More fields of the token request, such as ``audience``."""
    send_as: Literal["form", "json", "query"] = "form"


@dataclass(frozen=True, slots=True)
class Request:
    """A request just before it is sent, for a `Signer`: exactly these bytes leave."""

    method: str
    path: str
    """From the root, with the base URL's own path, without the query."""
    query: Mapping[str, str]
    body: bytes = field(repr=False)
    headers: Mapping[str, str]
    at: datetime
    """The clock's time: sign with this one, so that a test can know it."""

    def fields(self) -> dict[str, Any]:
        """Those of the query and of a body that is a JSON object or a form. Raises BadResponse for another body."""
        return {**self.query, **_fields(self.body)}


Signer = Callable[[Request], Mapping[str, str]]  # not a class: a method of the adapter will do
"""Returns the headers to add. Called anew for every try, so that each has its own time."""

Authentication = ApiKey | Bearer | Basic | OAuth2 | Signer


def hmac_sha256_hex(secret: SecretText, text: bytes | str) -> str:
    """Lower-hex HMAC-SHA256 of the text (UTF-8) under the secret."""
    return hmac.new(secret.reveal().encode(), _bytes(text), hashlib.sha256).hexdigest()


def md5_hex(text: bytes | str) -> str:
    """Lower-hex MD5 of the text (UTF-8): where a protocol asks for it, not because it is any good."""
    return hashlib.md5(_bytes(text), usedforsecurity=False).hexdigest()


def sha1_hex(text: bytes | str) -> str:
    """Lower-hex SHA-1 of the text (UTF-8): as `md5_hex`."""
    return hashlib.sha1(_bytes(text), usedforsecurity=False).hexdigest()


def aes_256_ecb(secret: SecretText, data: bytes) -> bytes:
    """What a supplier encrypted with AES-256 in ECB mode under the 32 bytes (UTF-8) of the secret, its padding and all:
    where a protocol asks for it, not because it is any good. Raises Config for a secret of another length, BadResponse
    for what are not whole blocks.
    """
    key = secret.reveal().encode()
    if len(key) != 32:  # noqa: PLR2004 - 256 bits
        raise Config("a secret that is no AES-256 key: it has to have 32 characters", hint="copy it again, whole")
    if len(data) % 16:
        raise BadResponse("something encrypted that is not in whole blocks")
    opened = Cipher(algorithms.AES256(key), modes.ECB()).decryptor()  # noqa: S305 - the supplier's choice
    return opened.update(data) + opened.finalize()


def same(one: str, other: str) -> bool:
    """Whether two signatures are equal, in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


def _bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text


@dataclass(frozen=True, slots=True)
class Signed:
    """A `Signer` by template: ``text`` is hashed, ``headers`` say where ``{signature}`` and ``{timestamp}`` go.

    In ``text`` may stand {method}, {path} (from the root, without the query), {timestamp}, {secret}, {body} (the very
    bytes), {body_md5}, {fields} (name=value&… by name, not encoded, without empty ones) and {json} (the fields by name
    as compact JSON; {json:slashes} with slashes escaped, {json:escaped} with slashes and other scripts escaped).
    """

    hash: Literal["hmac_sha256", "md5", "sha1"]
    text: str
    secret: SecretText
    headers: Mapping[str, str] = field(default_factory=dict)
    timestamp: Literal["s", "ms"] = "s"
    encoding: Literal["hex", "base64"] = "hex"
    without: Collection[str] = ()
    """Fields that {fields} and {json} leave out."""
    only: Collection[str] = ()
    """The only fields of {fields} and {json}."""
    more: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Placeholders besides, and what stands for them."""

    def __call__(self, request: Request) -> dict[str, str]:
        """The headers of one try."""
        stamp = str(int(request.at.timestamp() * (1000 if self.timestamp == "ms" else 1)))
        names = {**self.more, "timestamp": stamp, "signature": self.of(request, timestamp=stamp)}
        return {name: line(text, names) for name, text in self.headers.items()}

    def of(self, sent: Request | Webhook, **more: str) -> str:
        """The signature of a request, ours or one that came in. ``more``: placeholders besides, and their values.

        Raises ValueError for a placeholder without a value, BadResponse for fields that cannot be signed.
        """
        names = {
            **self.more,
            **more,
            "secret": self.secret,
            "method": sent.method,
            "path": sent.path,
            "body": lambda _: sent.body.decode(errors="replace"),
            "body_md5": md5_hex(sent.body),
            "fields": lambda _: _joined(self._fields(sent)),
            "json": lambda form: _json(self._fields(sent), form),
        }
        data = line(self.text, names).encode()
        if self.hash == "hmac_sha256":
            digest = hmac.new(self.secret.reveal().encode(), data, hashlib.sha256).digest()
        else:
            digest = hashlib.new(self.hash, data, usedforsecurity=False).digest()
        return digest.hex() if self.encoding == "hex" else base64.b64encode(digest).decode()

    def _fields(self, sent: Request | Webhook) -> dict[str, Any]:
        fields = sent.fields()
        return {name: fields[name] for name in sorted(set(self.only or fields) - set(self.without)) if name in fields}


def verify(
    webhook: Webhook, given: str, signers: Iterable[Signed], *, sent_at: datetime | None, within: float = 300
) -> None:
    """Raises Forged unless ``given`` is the signature of one of the signers, and was made within so many seconds.

    ``sent_at``: the time that is a part of what is signed (None: it is missing or none, and that is forged), or
    ``webhook.received_at`` where none is.
    """
    try:
        genuine = any([same(given, signer.of(webhook)) for signer in signers])  # noqa: C419 - all, whichever fits
    except (BadResponse, ValueError):
        genuine = False
    if not genuine or sent_at is None:
        raise Forged("a webhook whose signature is wrong, or lacks a part")
    if abs((webhook.received_at - sent_at).total_seconds()) > within:
        raise Forged("a webhook that is too old, or from the future")


def _fields(body: bytes) -> dict[str, Any]:
    """Of a JSON object or a form. Raises BadResponse for anything else, and for a name that stands twice in a form."""
    body = body.removeprefix(b"\xef\xbb\xbf").strip()
    try:
        if body.startswith(b"{"):
            return msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode(body)
        pairs = parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True) if body else []
        if len(dict(pairs)) == len(pairs):
            return dict(pairs)
    except (msgspec.DecodeError, ValueError, RecursionError):
        pass
    raise BadResponse("a body that is neither a JSON object nor a form")


def _joined(fields: Mapping[str, Any]) -> str:
    if any(isinstance(value, list | dict) for value in fields.values()):
        raise BadResponse("a field that is a list or an object cannot be signed as name=value")
    return "&".join(f"{name}={plain(value)}" for name, value in fields.items() if value not in (None, ""))


def _json(fields: Mapping[str, Any], form: str) -> str:
    text = msgspec.json.Encoder(decimal_format="number").encode(fields).decode()
    text = text.replace("/", "\\/") if form else text
    return re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text) if form == "escaped" else text


class Answer(Protocol):
    """What a supplier answered, read whole and within the supplier's size limit. Its repr shows no body."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    content: bytes

    def json(self) -> Any:
        """The body as JSON, numbers with a point as Decimal. Raises BadResponse when it is anything else."""

    def object(self) -> dict[str, Any]:
        """As `json`, and it is an object. Raises BadResponse."""

    def items(self, *path: str) -> Iterator[Any]:
        """The elements of the list at this path of names, each decoded as it is asked for: a large listing never lies
        in memory as objects. Raises BadResponse when there is no such list.
        """


class Http(Protocol):
    """One supplier's HTTP client. It keeps the supplier's limits on rate, concurrency, time and size, checks TLS, never
    follows a redirect, signs each try, counts, and shows no credential in any message.

    In reading verbs a try that failed is repeated with growing, jittered waits, within a budget and a breaker. In
    buying verbs nothing is ever repeated, and each request goes over a fresh connection.

    Statuses: 2xx, and those in ``expect``, come back as an Answer. 401 and 403 raise Auth, 429 RateLimited, 408 and
    5xx Transient, 3xx and other 4xx BadResponse. Within `Adapter.place_order` whatever is not an Answer, Auth or
    RateLimited is OutcomeUnknown once a request has left that may have bought something. That is every request there
    but GET, HEAD, and those marked with ``reads=True``.
    """

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        expect: Collection[int] = (),
        reads: bool = False,
        again: Callable[[Answer], object] | None = None,
    ) -> Answer:
        """Send one request; ``path`` is joined to the base URL. At most one of ``json``, ``form`` and ``content``.

        ``again`` looks at an Answer in a reading verb: if it raises Transient, this try failed, and is repeated as any
        other. For a supplier that says "busy" with 200.

        ``json`` is sent as compact UTF-8 (slashes and other scripts unescaped) in the order of its keys; ``content`` is
        sent as it is, with ``headers`` saying what it is.
        """

    async def get(
        self, path: str, *, query: Mapping[str, str | int] | None = None, expect: Collection[int] = ()
    ) -> Answer:
        """`request` with GET."""

    async def post(
        self,
        path: str,
        *,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        expect: Collection[int] = (),
        reads: bool = False,
    ) -> Answer:
        """`request` with POST."""


class Connect(Protocol):
    """Makes a supplier's client; the core hands one in. ``base_url`` may have a path."""

    def __call__(
        self, base_url: str, *, auth: Authentication | None = None, headers: Mapping[str, str] | None = None
    ) -> Http:
        """A client for this base URL, within the supplier's one set of limits."""


def _nobody(base_url: str, **_: Any) -> Http:
    raise Config(f"nothing can be sent to {base_url} here: there is no client")


@dataclass(frozen=True, slots=True)
class Context:
    """What an adapter is given: its supplier's name, its settings (an instance of its own model), the time zone, and a
    way to connect.
    """

    name: str
    settings: Any
    timezone: ZoneInfo
    connect: Connect = field(default=_nobody, repr=False)
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC), repr=False)
    """The clock, in UTC: for a time that is a part of a request's body. A `Signer` is given its own."""


# --- listings in pages ------------------------------------------------------------------------------------------------
#
# Each asks for one page after the other and ends where the listing ends. A page that came before, a listing that ends
# before its own total, and one that does not end, raise BadResponse: half a listing is none.

_MOST_PAGES: Final = 20_000

Place = str | Callable[[Any], Any]
"""Where something is in an answer: names with dots between them ("data.list"), "" for the answer itself; or a function
that finds it, and gives None where nothing is.
"""


class Json(Protocol):
    """What was answered, such as an `Answer`."""

    def json(self) -> Any:
        """It as JSON. Raises BadResponse."""


@dataclass(frozen=True, slots=True)
class Part:
    """The elements of one page, and how many the whole listing has where the answer says it."""

    items: Sequence[Any] = field(repr=False)
    total: int | None = None


async def by_number(
    ask: Callable[[int], Awaitable[Json]],
    items: Place,
    *,
    total: Place = "",
    last: Place = "",
    unique: Place = "",
    first: int = 1,
) -> AsyncIterator[Part]:
    """Pages by their number, from ``first`` on: to the ``total`` of elements or the page that is true at ``last``,
    where the answer says them (to both, if it says both), else to the first empty page.

    ``unique`` tells one element from another: one that came before just as it is now is passed over, and the second
    page may be the first one again, which is what a supplier answers to page 0 that counts from 1.
    """
    async for part in _by_count(lambda page, _seen: ask(first + page), items, total, last, unique):
        yield part


async def by_offset(
    ask: Callable[[int], Awaitable[Json]], items: Place, *, total: Place = "", last: Place = "", unique: Place = ""
) -> AsyncIterator[Part]:
    """As `by_number`, where a page is asked for by the number of elements before it."""
    async for part in _by_count(lambda _page, seen: ask(seen), items, total, last, unique):
        yield part


async def by_cursor(
    ask: Callable[[str], Awaitable[Json]], items: Place, *, following: Place, start: str = ""
) -> AsyncIterator[Part]:
    """Pages of which each tells how to ask for the next one, at ``following``: a token, or a link (which the client
    follows only within the supplier's own host). The first one is asked for with ``start``; none told ends it.
    """
    seen, cursors = _Seen(), {start}
    cursor: Any = start
    while True:
        answer = (await ask(cursor)).json()
        yield Part(seen.new(_list(answer, items)))
        cursor = _at(answer, following)
        if cursor in (None, "", False):
            return
        if not isinstance(cursor, str | int) or str(cursor) in cursors:
            raise BadResponse("a listing whose next page is one that came before: it would never end")
        cursor = str(cursor)
        cursors.add(cursor)


async def _by_count(
    ask: Callable[[int, int], Awaitable[Json]], items: Place, total: Place, last: Place, unique: Place
) -> AsyncIterator[Part]:
    seen = _Seen(unique)
    for page in range(_MOST_PAGES):
        answer = (await ask(page, seen.listed)).json()
        whole = _integer(_at(answer, total)) if total else None
        if total and (whole is None or whole < 0):
            raise BadResponse(f"a listing whose {total if isinstance(total, str) else 'total'} is not a number")
        ended = _at(answer, last) if last else None
        if last and not isinstance(ended, bool):
            raise BadResponse("a listing that does not say whether this is its last page")
        listed = _list(answer, items)
        part = Part(seen.new(listed), whole)
        if listed or not page:
            yield part
        short = ended is False or (whole is not None and seen.count < whole)
        if short and (ended or not listed):
            raise BadResponse("a listing that ends before its own total, or its last page")
        if not short and (total or last or not listed):
            return
    raise BadResponse(f"a listing of more than {_MOST_PAGES} pages")


class _Seen:
    """The pages so far: how many elements, and digests, so that a repeated page or element is noticed."""

    def __init__(self, unique: Place = "") -> None:
        self.listed = 0
        self.count = 0
        """Without those that came before."""
        self._unique = unique
        self._pages = 0
        self._digests: set[bytes] = set()
        self._elements: dict[str, bytes] = {}

    def new(self, items: Sequence[Any]) -> Sequence[Any]:
        """The elements of a page that come for the first time."""
        digest = _digest(items)
        if items and digest in self._digests and not (self._unique and self._pages == 1):
            raise BadResponse("a page that came before: the supplier ignores which page is asked for")
        if self._pages >= _MOST_PAGES:
            raise BadResponse(f"a listing of more than {_MOST_PAGES} pages")
        self._digests.add(digest)
        self._pages += 1
        self.listed += len(items)
        items = [item for item in items if self._first(item)] if self._unique else items
        self.count += len(items)
        return items

    def _first(self, item: Any) -> bool:
        name = _at(item, self._unique)
        if name is None or isinstance(name, list | dict):
            raise BadResponse("a listing in which nothing tells one element from another")
        digest, count = _digest(item), len(self._elements)
        if self._elements.setdefault(str(name), digest) != digest:
            raise BadResponse("an element that came before, and was another")
        return len(self._elements) > count


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(repr(value).encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _at(answer: Any, place: Place) -> Any:
    if callable(place):
        return place(answer)
    for name in place.split(".") if place else ():
        answer = answer.get(name) if isinstance(answer, dict) else None
    return answer


def _list(answer: Any, place: Place) -> Sequence[Any]:
    found = _at(answer, place)
    if not isinstance(found, list):
        raise BadResponse(f"there is no list at {place}" if isinstance(place, str) and place else "there is no list")
    return found


# --- feeds ------------------------------------------------------------------------------------------------------------


class Consignment(ABC):
    """One payload of keys as the supplier handed it over, such as a file. It is read as a whole or not at all."""

    product: str
    """The shop's sku whose keys these are."""
    label: str
    """What to call it in reports: the file's name."""
    media: Media
    size: int
    """Bytes."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """The payload from its first byte. Called more than once, and always answered with the same bytes."""

    def unchanged(self) -> bool:
        """Whether the payload is still what ``open`` gave: asked after the last byte was read."""
        return True

    @abstractmethod
    def finish(self, report: str, seal: Seal) -> None:
        """Every key of it is safe: put it away, and the report beside it. May be called again after a kill."""


@dataclass(frozen=True, slots=True)
class Pull:
    """What a feed is asked for."""

    products: frozenset[str]
    """The skus that the configuration knows."""
    by_hand: bool
    """Whether an operator waits for this run: then it waits for payloads that are still being written."""
    settle: float
    """Seconds for which a payload must not have changed."""
    stopping: Callable[[], bool]
    """True once the run has to end: stop at the next payload."""
    complain: Callable[[str], None]
    """Tell the operator of something that was left out, and what to do; the run goes on."""
    later: Callable[[float], None]
    """Ask for the next run in so many seconds already: something was not ready."""


# --- the adapter ------------------------------------------------------------------------------------------------------

READING: Final = frozenset({"check", "list_offers", "get_offer", "get_balance"})
"""The verbs that only read, and that the core therefore repeats after a failure. All others are never repeated."""


class Adapter:
    """One supplier's protocol. Subclass it, set ``Settings``, implement what the supplier can do.

    ``__init__`` must not touch the network. All ``async`` methods run on one event loop of this supplier's own, so they
    need no locks, and one that blocks holds up nobody else.
    """

    Settings: ClassVar[type[Settings]] = Settings
    title: ClassVar[str] = ""
    """What the supplier's system is called."""
    promises: ClassVar[Promises] = Promises()
    split: ClassVar[str] = "auto"
    """Which splitter cuts its texts into keys, where the product does not say it (K14)."""
    unverified: ClassVar[tuple[str, ...]] = ()
    """What of the protocol nobody has confirmed yet, a sentence each: shown on the adapter's page and in lists."""

    def __init__(self, context: Context) -> None:
        self.context = context

    # Reading verbs: repeated by the core, so they must have no effect.

    async def check(self) -> Check:
        """Whether our credentials work. Raises Auth, Config, Transient. Without it the core asks otherwise."""
        raise NotImplementedError

    def list_offers(self, since: datetime | None) -> AsyncIterator[Page]:
        """Every offer, page by page; with ``since`` (only where `Promises.incremental`) those changed since then.

        Ending without an error says that the listing is complete. A page that repeats ends the run: no endless loops.
        Raises BadResponse for a page that is not what the protocol says: half a listing is none.
        """
        raise NotImplementedError

    async def get_offer(self, sku: str) -> Offer:
        """One offer as it is now. Raises NotForSale when it is gone."""
        raise NotImplementedError

    async def get_balance(self) -> Money:
        """What our account holds."""
        raise NotImplementedError

    # Buying verbs: never repeated by the core.

    async def place_order(self, order: OrderRequest) -> Order:
        """Buy. At most one request that may buy; a refusal raises Refused or one of its kinds; whatever leaves doubt
        raises OutcomeUnknown.
        """
        raise NotImplementedError

    async def get_order(self, order_id: str) -> Order:
        """An order as it is now, by the supplier's id, with the keys that its answer holds."""
        raise NotImplementedError

    async def find_order(self, reference: str) -> Order | None:
        """The order that bears our reference; None only if the supplier says for sure that there is none."""
        raise NotImplementedError

    async def fetch_keys(self, order: Order) -> Sequence[RawKey]:
        """The keys of an order, all that are there by now, where they come by a call of their own."""
        raise NotImplementedError

    # Others.

    def pull_keys(self, pull: Pull) -> Iterator[Consignment]:
        """Everything that the supplier handed over and that was not finished yet.

        Runs in a thread of its own, so it may block. What is raised for one payload (`AdapterError` says why) ends
        this run only; what was yielded before it stays taken.
        """
        raise NotImplementedError

    async def return_keys(self, order_id: str, key_ids: Sequence[str]) -> Mapping[str, bool]:
        """Give keys back; key id → whether the supplier took it."""
        raise NotImplementedError

    async def complain(self, order_id: str, text: str) -> str:
        """Open a warranty claim; the supplier's id of it, or ""."""
        raise NotImplementedError

    def parse_webhook(self, webhook: Webhook) -> Hint:
        """What a request of the supplier's is about. Pure. Verifies the signature; raises Forged, BadResponse."""
        raise NotImplementedError


VERBS: Final = (
    "check",
    "list_offers",
    "get_offer",
    "get_balance",
    "place_order",
    "get_order",
    "find_order",
    "fetch_keys",
    "pull_keys",
    "return_keys",
    "complain",
    "parse_webhook",
)


def capabilities(kind: type[Adapter]) -> frozenset[str]:
    """The verbs that an adapter implements: what it overrides of `Adapter`."""
    return frozenset(verb for verb in VERBS if getattr(kind, verb) is not getattr(Adapter, verb))
