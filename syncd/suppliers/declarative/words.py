"""The vocabulary of a definition: every word that a file may use. docs/declarative.md describes each, with examples.
Placeholders are checked here against what has a value at their place.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, get_type_hints

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo, create_model

from syncd import adapter as sdk
from syncd.config import Supplier
from syncd.errors import nearest
from syncd.placeholders import forms, slots
from syncd.suppliers.declarative import values
from syncd.suppliers.declarative.values import WHOLE, Select, Words, one_or_more, wrong

Verb = Literal[
    "check", "list_offers", "get_offer", "get_balance", "place_order", "get_order", "find_order", "fetch_keys",
    "complain",
]  # fmt: skip
Outcome = Literal[
    "Refused", "OutOfStock", "PriceChanged", "InsufficientBalance", "NotForSale", "OutcomeUnknown", "Auth",
    "RateLimited", "Transient", "BadResponse", "Config", "Absent",
]  # fmt: skip


def checked(value: Any, info: ValidationInfo, known: Iterable[str] = (), *, secret: bool = True) -> Any:
    """The same, or a problem: a placeholder that has no meaning here. ``secret``: whether a secret setting has one."""
    context: Any = info.context
    names = {*known, *context["settings"], *(context["data"] if "offer.sku" in known else ())}
    for name, form in slots(value):
        if name not in names and f"{name.partition('.')[0]}.*" not in names:
            raise wrong(f"there is no {{{name}}} here", nearest(name, names))
        if not secret and context["settings"].get(name, "").startswith("secret"):
            raise wrong(f"{{{name}}} is a secret, and an address ends up in logs", "use [auth], or a body")
        if form and form not in forms(name) and not ("unix" in forms(name) and "%" in form):
            raise wrong(f"{{{name}}} has no form {form!r}", f"its forms: {', '.join(forms(name))}")
    return value


def knows(*names: str) -> AfterValidator:
    """Texts in which these placeholders may stand, and settings."""
    return AfterValidator(lambda value, info: checked(value, info, names))


def one_setting(*types: str) -> AfterValidator:
    """A text that is ``{settings.NAME}`` of one of these types and nothing else."""

    def check(value: Any, info: ValidationInfo) -> Any:
        context: Any = info.context
        if isinstance(value, str) and context["settings"].get(value[1:-1]) not in types:
            raise wrong(f"this is not one setting of type {types[0]}", f"{{settings.NAME}} of a {types[0]} setting")
        return value

    return AfterValidator(check)


Fixed = Annotated[str, knows()]
"""A text in which only settings may stand."""
Credential = Annotated[str, one_setting("secret")]


class Setting(Words):
    """One setting that a supplier's table has to have, or may have where it has a default."""

    type: Literal["text", "secret", "secrets", "url", "choice", "bool", "number"]
    default: str | bool | int | None = None
    choices: list[str] = []
    help: str = ""

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Setting:
        if (self.type == "choice") != bool(self.choices):
            raise wrong("a choice has choices, and nothing else has", "name them, or take them out")
        kind = {"bool": bool, "number": int, "secret": None, "secrets": None}.get(self.type, str)
        fits = type(self.default) is kind and (not self.choices or self.default in self.choices)
        if self.default is not None and not fits:
            raise wrong(f"that is no default of a {self.type}", "a secret has none, a choice has one of its choices")
        return self


class PromiseWords(Words):
    """`Promises`, without what the requests tell."""

    same_reference_same_order: bool = False
    exact_stock: bool = False
    serial_trades: bool = False
    repeat_after: Annotated[float | None, Field(strict=False, gt=0)] = None
    reference_length: int = Field(default=sdk.Promises().reference_length, ge=8, le=19)
    reference_alphabet: str = Field(default=sdk.Promises().reference_alphabet, min_length=10)


class Auth(Words):
    """What proves who we are: one of five classes of the interface, whose arguments are the words."""

    makes: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "api_key": sdk.ApiKey, "bearer": sdk.Bearer, "basic": sdk.Basic, "oauth2": sdk.OAuth2, "signed": sdk.Signed,
    }  # fmt: skip
    type: Literal["api_key", "bearer", "basic", "oauth2", "signed"]
    text: Annotated[str, knows("method", "path", "body", "body_md5", "fields", "json", "secret", "timestamp")] = ""
    headers: Annotated[dict[str, str], knows("signature", "timestamp")] = {}

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Auth:
        try:
            inspect.signature(self.makes[self.type]).bind(**self.given())
        except TypeError as error:
            raise wrong(f"type {self.type}: {error}", "docs/declarative.md tells its words") from None
        if self.type == "signed" and ("signature", "") not in slots(self.headers):
            raise wrong("the signature goes nowhere", "name {signature} in headers")
        return self

    def given(self) -> dict[str, Any]:
        """The words that the file has, but for the type."""
        return {name: getattr(self, name) for name in self.model_fields_set - {"type"}}


def _arguments() -> dict[str, Any]:
    """The other words: those classes' arguments, in which a credential is a setting, and a text is fixed."""
    kinds: dict[Any, Any] = {sdk.SecretText: Credential, str: Fixed, Mapping[str, str]: dict[str, Fixed]}
    kinds |= {Collection[str]: list[str]}
    found = {name: kind for made in Auth.makes.values() for name, kind in get_type_hints(made).items()}
    return {name: (kinds.get(found[name], found[name]), None) for name in found.keys() - {*Auth.model_fields, "more"}}


Authenticating: Any = create_model("Auth", __base__=Auth, **_arguments())


class AnswerWords(Words):
    """How every answer tells whether it went well."""

    success_when: Select | None = None
    code: Select | None = None
    message: Select | None = None


class Failure(Words):
    """A line of the errors table: all that it names has to fit, and the first line that fits decides."""

    status: Annotated[list[int], BeforeValidator(one_or_more)] = []
    code: Annotated[list[str | int], BeforeValidator(one_or_more)] = []
    message: Fixed | None = None
    verbs: Annotated[list[Verb], BeforeValidator(one_or_more)] = []
    raise_: Outcome = Field(alias="raise")
    hint: str = ""

    @pydantic.model_validator(mode="after")
    def _sound(self) -> Failure:
        if not (self.status or self.code or self.message):
            raise wrong("it fits every failure", "name a status, a code or a message")
        if self.raise_ == "Absent" and self.verbs != ["find_order"]:
            raise wrong("Absent is an answer to find_order alone", 'add verbs = ["find_order"]')
        try:
            re.compile("" if any(slots(self.message)) else self.message or "")
        except re.error as error:
            raise wrong(f"message is no regular expression: {error}", "correct it") from None
        return self


class OfferWords(Words):
    """How one listed thing reads."""

    needs = frozenset({"sku", "title", "price"})
    sku: values.TextValue
    title: values.TextValue
    price: values.MoneyValue | None = None
    stock: values.StockValue
    for_sale: values.Flags = []
    min_quantity: values.WholeValue | None = None
    max_quantity: values.WholeValue | None = None
    step: values.WholeValue | None = None
    region: values.TextValue | None = None
    group: values.TextValue | None = None
    data: dict[str, values.TextValue] = {}
    only: values.Flags = []
    expand: Select | None = None


class OrderWords(Words):
    """How an order reads."""

    needs = frozenset({"id"})
    id: values.TextValue
    status: values.StatusValue
    reference: values.TextValue | None = None
    charged: values.MoneyValue | None = None
    quantity: values.WholeValue | None = None
    note: values.TextValue | None = None
    keys: values.Keys = []


class Pages(Words):
    """How pages follow each other: one of five."""

    type: Literal["none", "page", "offset", "cursor", "next_link"] = "none"
    first: Annotated[int | str, one_setting("number")] = 1
    last: Select | None = None
    total: Select | None = None
    unique: Select | None = None
    next: Select | None = None

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Pages:
        counted = {"page": {"first", "last", "total", "unique"}, "offset": {"last", "total", "unique"}}
        takes = {"none": set(), **counted}.get(self.type, {"next"})
        if self.model_fields_set - {"type"} - takes or {"next"} & takes - self.model_fields_set:
            raise wrong(
                f"type {self.type} takes {' '.join(sorted(takes)) or 'nothing'}", "next is needed where it is one"
            )
        return self


PAGED: Final = {"page", "offset", "cursor"}


class Call(Words):
    """One request."""

    knows: ClassVar[tuple[str, ...]] = ()
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    path: str
    query: dict[str, Any] = {}
    json_: dict[str, Any] | None = Field(None, alias="json")
    form: dict[str, Any] | None = None
    success_when: Select | None = None

    @pydantic.field_validator("path", "query", "json_", "form")
    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> Any:
        known = {*cls.knows, "now", *(PAGED if "pages" in cls.model_fields else ())}
        return checked(value, info, known, secret=info.field_name in {"json_", "form"})

    @pydantic.model_validator(mode="after")
    def _sound(self) -> Call:
        if sum(body is not None for body in (self.json_, self.form)) > (self.method != "GET"):
            raise wrong("it has a body too many", 'keep one of json, form; a GET has none: method = "POST"')
        how = getattr(self, "pages", Pages()).type
        if self.placeholders & PAGED != {how} & PAGED:
            uses = f"it has to use {{{how}}}" if how in PAGED else "it must not name a page"
            raise wrong(f"pages are of type {how}, and the request does not fit", uses)
        return self

    @property
    def placeholders(self) -> set[str]:
        """The names that the request uses."""
        return {name for name, _ in slots([self.path, self.query, self.json_, self.form])}


def _call(*known: str, **own: Any) -> Any:
    """A verb's request: the placeholders that it has besides those of all, and the words of its own."""
    return create_model("Call", __base__=Call, knows=(ClassVar[tuple[str, ...]], known), **own)


_TEXT: Any = (values.TextValue | None, None)
_OFFER: Any = {"offer": (OfferWords | None, None)}
_ORDER: Any = {"item": (Select, WHOLE), "order": (OrderWords | None, None)}
_PAGES: Any = {"items": (Select, WHOLE), "pages": (Pages, Pages())}
CALLS: Final[dict[str, Any]] = {
    "check": _call(account=_TEXT, balance=(values.MoneyValue | None, None)),
    "list_offers": _call("since", **_PAGES, **_OFFER),
    "get_offer": _call("sku", "sku.*", item=(Select, WHOLE), **_OFFER),
    "get_balance": _call(balance=(values.MoneyValue, ...), needs=(ClassVar[frozenset[str]], frozenset({"balance"}))),
    "place_order": _call("reference", "quantity", "offer.sku", "max_unit_cost", "callback_url", **_ORDER),
    "get_order": _call("order.id", **_ORDER),
    "find_order": _call("reference", **_ORDER, empty_is_absent=(Annotated[bool | str, one_setting("bool")], False)),
    "fetch_keys": _call("order.id", "order.reference", **_PAGES, keys=(values.Keys, ...)),
    "complain": _call("order.id", "text", id=_TEXT),
}
_CALLS: dict[str, Any] = {verb: (call | None, None) for verb, call in CALLS.items()}
_Verbs: Any = create_model("Verbs", __base__=Words, **_CALLS)
_CAME: Final = ("field.*", "header.*", "query.*")
_HASHED: Final = knows(*_CAME, "method", "path", "body", "body_md5", "fields", "json", "secret")


class Hook(Words):
    """One kind of request that the supplier sends to us. It is a hint: nothing in it is taken for a fact."""

    event: Literal["order", "offer", "test"]
    when: Select | None = None
    hash: Literal["hmac_sha256", "md5", "sha1"] = "hmac_sha256"
    secret: Annotated[str, one_setting("secret", "secrets")]
    text: Annotated[list[Annotated[str, _HASHED]], BeforeValidator(one_or_more), Field(min_length=1)]
    encoding: Literal["hex", "base64"] = "hex"
    without: list[str] = []
    only: list[str] = []
    signature: Annotated[str, knows(*_CAME)]
    time: Annotated[str, knows(*_CAME)] = ""
    within: int = Field(300, ge=1)
    order_id: values.TextValue | None = None
    reference: values.TextValue | None = None
    sku: values.TextValue | None = None
    reply: str = ""

    @pydantic.model_validator(mode="after")
    def _sound(self) -> Hook:
        if self.hash != "hmac_sha256" and not all(("secret", "") in slots(text) for text in self.text):
            raise wrong("anybody could make this signature", "put {secret} into the text")
        if not {"order": self.order_id or self.reference, "offer": self.sku, "test": True}[self.event]:
            raise wrong("nothing says what it is about", "name order_id, reference or sku")
        return self

    def signers(self, secrets: Any, more: Mapping[str, Any]) -> list[sdk.Signed]:
        """Whose signature may be the right one: each text under each secret."""
        words: Any = {"encoding": self.encoding, "without": self.without, "only": self.only, "more": more}
        secrets = secrets if isinstance(secrets, list) else [secrets]
        return [sdk.Signed(self.hash, text, secret, **words) for text in self.text for secret in secrets]


def _setting(name: str) -> str:
    if name in Supplier.model_fields:
        raise wrong(f"{name} is a setting of every supplier", "choose another name")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or hasattr(BaseModel, name) or name.startswith("model_"):
        raise wrong(f"{name} cannot name a setting", "lower-case letters, digits and _, such as api_key")
    return name


class Definition(Words):
    """A whole file."""

    title: str = Field(min_length=1)
    base_url: Fixed
    split: str = Field("auto", pattern="^(auto|line|labelled|csv|pair(:.+)?)$")
    unverified: list[str] = []
    settings: dict[Annotated[str, AfterValidator(_setting)], Setting] = {}
    promises: PromiseWords = PromiseWords()
    headers: dict[str, Fixed] = {}
    auth: Authenticating | None = None
    answer: AnswerWords = AnswerWords()
    errors: list[Failure] = []
    offer: OfferWords | None = None
    order: OrderWords | None = None
    verbs: _Verbs
    webhooks: list[Hook] = []

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Definition:
        for name, call in self.verbs:
            for part in {"offer", "order"} & set(type(call).model_fields if call else ()):
                if not self.read_by(call, part):
                    raise wrong(f"nothing says how an {part} of {name} reads", f"add [{part}]")
        if self.verbs.find_order and not self.read_by(self.verbs.find_order, "order").reference:
            raise wrong("find_order cannot tell whether an order is ours", "add reference to [order]")
        if self.verbs.place_order and not self.verbs.get_order:
            raise wrong("nobody could learn what became of an order", "add [verbs.get_order]")
        return self

    def read_by(self, call: Any, part: str) -> Any:
        """How an ``offer`` or an ``order`` in the answer to a verb reads: as the verb says, else as the file does."""
        return getattr(call, part) or getattr(self, part)
