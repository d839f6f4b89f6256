"""The vocabulary of a definition: every word that a file may use. docs/declarative.md describes each, with examples.

Placeholders are checked here against what has a value at their place; ``loading`` turns what is wrong into problems.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from syncd.adapter import Promises, SecretText
from syncd.config import Supplier
from syncd.suppliers.declarative import values
from syncd.suppliers.declarative.texts import (
    NOTHING,
    Body,
    Credential,
    Fixed,
    Select,
    Template,
    Text,
    checked,
    nearest,
    one_setting,
    slots_in,
    wrong,
)
from syncd.suppliers.declarative.values import Words, one_or_more

Verb = Literal[
    "check", "list_offers", "get_offer", "get_balance", "place_order", "get_order", "find_order", "fetch_keys",
    "return_keys", "complain",
]  # fmt: skip
Outcome = Literal[
    "Refused", "OutOfStock", "PriceChanged", "InsufficientBalance", "NotForSale", "OutcomeUnknown", "Auth",
    "RateLimited", "Transient", "BadResponse", "Config", "Absent",
]  # fmt: skip


class Variant(Words):
    """A table whose ``type`` says which other words it needs and which it may have."""

    takes: ClassVar[Mapping[str, tuple[str, str]]] = {}
    type: str

    @model_validator(mode="after")
    def _fits(self) -> Variant:
        needs, may = (set(words.split()) for words in self.takes[self.type])
        given = self.model_fields_set - {"type"}
        for name in sorted(given - needs - may):
            raise wrong(f"{name} does not belong to type {self.type}", nearest(name, needs | may))
        for name in sorted(needs - given):
            raise wrong(f"type {self.type} needs {name}", "add it")
        return self


class Setting(Variant):
    """One setting that a supplier's table has to have, or may have where it has a default."""

    takes = dict.fromkeys(("text", "url", "bool", "number"), ("", "default help")) | {
        "secret": ("", "help"),
        "choice": ("choices", "default help"),
    }
    type: Literal["text", "secret", "url", "choice", "bool", "number"]
    default: Any = None
    choices: list[str] = []
    help: str = ""

    @model_validator(mode="after")
    def _default_fits(self) -> Setting:
        kind: Any = {"bool": bool, "number": int}.get(self.type, str)
        if self.default is not None and type(self.default) is not kind:
            raise wrong("its default is of another type", f"give a {self.type}")
        if self.choices and self.default not in {None, *self.choices}:
            raise wrong("its default is none of its choices", f"one of {', '.join(self.choices)}")
        return self


class _PromiseWords(Words):
    same_reference_same_order: bool = False
    exact_stock: bool = False
    serial_trades: bool = False
    repeat_after: Annotated[float | None, Field(strict=False, gt=0)] = None
    reference_length: int = Field(default=Promises().reference_length, ge=8, le=19)
    reference_alphabet: str = Field(default=Promises().reference_alphabet, min_length=10)


class Signature(Words):
    """How a signature comes about."""

    hash: Literal["hmac_sha256", "md5", "sha1"] = "hmac_sha256"
    secret: Credential = NOTHING
    encoding: Literal["hex", "base64"] = "hex"
    without: list[str] = []
    only: list[str] = []

    def of(self, text: Template, names: Mapping[str, Any], secret: SecretText) -> str:
        """The signature of a text."""
        data = text.line({**names, "secret": secret}).encode()
        if self.hash == "hmac_sha256":
            digest = hmac.new(secret.reveal().encode(), data, hashlib.sha256).digest()
        else:
            digest = hashlib.new(self.hash, data, usedforsecurity=False).digest()
        return digest.hex() if self.encoding == "hex" else base64.b64encode(digest).decode()

    def signed(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that are a part of what is signed."""
        names = set(self.only or fields) - set(self.without)
        return {name: value for name, value in fields.items() if name in names}


class Auth(Signature, Variant):
    """What proves who we are: one of five."""

    takes = {
        "api_key": ("key", "header query"),
        "bearer": ("token", ""),
        "basic": ("user password", ""),
        "oauth2": ("token_url client_id client_secret", "extra send_as"),
        "signed": ("hash text secret", "encoding timestamp headers add without only"),
    }
    type: Literal["api_key", "bearer", "basic", "oauth2", "signed"]
    key: Credential = NOTHING
    header: str = "X-Api-Key"
    query: str = ""
    token: Credential = NOTHING
    user: Fixed = NOTHING
    password: Credential = NOTHING
    token_url: Fixed = NOTHING
    client_id: Fixed = NOTHING
    client_secret: Credential = NOTHING
    extra: dict[str, Fixed] = {}
    send_as: Literal["form", "json", "query"] = "form"
    text: Text = NOTHING
    timestamp: Literal["s", "ms"] = "s"
    headers: dict[str, Text] = {}
    add: dict[str, Text] = {}

    @field_validator("text", "headers", "add")
    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> Any:
        own = (
            ("method", "path", "body", "body_md5", "fields", "secret") if info.field_name == "text" else ("signature",)
        )
        return checked(value, info, (*own, "timestamp"))

    @model_validator(mode="after")
    def _placed(self) -> Auth:
        if self.type != "signed":
            return self
        if bool(self.headers) == bool(self.add):
            raise wrong("signature and timestamp go to one place", "use headers or add; [headers] takes the rest")
        if [slot.name for slot in slots_in([self.headers, self.add])].count("signature") != 1:
            raise wrong("the signature goes nowhere, or twice", "name {signature} once")
        if self.add and {slot.name for slot in self.text.slots} & {"body", "body_md5"}:
            raise wrong("a body that holds its own signature cannot be signed as a whole", "sign {fields}")
        return self


class _AnswerWords(Words):
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

    @model_validator(mode="after")
    def _sound(self) -> Failure:
        if not (self.status or self.code or self.message):
            raise wrong("it fits every failure", "name a status, a code or a message")
        if self.raise_ == "Absent" and self.verbs != ["find_order"]:
            raise wrong("Absent is an answer to find_order alone", 'add verbs = ["find_order"]')
        try:
            re.compile(self.message.text if self.message and not self.message.slots else "")
        except re.error as error:
            raise wrong(f"message is no regular expression: {error}", "correct it") from None
        return self


class OfferWords(Words):
    """How one listed thing reads."""

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
    updated_at: values.TimeValue | None = None
    data: dict[str, values.TextValue] = {}
    only: values.Flags = []
    expand: Select | None = None


class OrderWords(Words):
    """How an order reads."""

    id: values.TextValue
    status: values.StatusValue
    reference: values.TextValue | None = None
    charged: values.MoneyValue | None = None
    quantity: values.WholeValue | None = None
    note: values.TextValue | None = None
    keys: values.Keys = []


class Pages(Variant):
    """How pages follow each other: one of five."""

    takes = {
        "none": ("", ""),
        "page": ("", "first last total count unique"),
        "offset": ("", "last total unique"),
        "cursor": ("next", ""),
        "next_link": ("next", ""),
    }
    type: Literal["none", "page", "offset", "cursor", "next_link"] = "none"
    first: Annotated[Any, one_setting("number", int)] = 1
    last: Select | None = None
    total: Select | None = None
    count: Select | None = None
    unique: Select | None = None
    next: Select = Field(default="@", validate_default=True)


PAGED: Final = {"page", "offset", "cursor"}


class Call(Words):
    """One request."""

    knows: ClassVar[tuple[str, ...]] = ()
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    path: Text
    query: dict[str, Body] = {}
    json_: dict[str, Body] | None = Field(None, alias="json")
    form: dict[str, Body] | None = None
    success_when: Select | None = None

    @field_validator("path", "query", "json_", "form")
    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> Any:
        known = {*cls.knows, "now", *(PAGED if "pages" in cls.model_fields else ())}
        known |= {f"offer.data.{name}" for name in (info.context or {}).get("data", ()) if "offer.sku" in known}
        return checked(value, info, known, secret=info.field_name in {"json_", "form"})

    @model_validator(mode="after")
    def _sound(self) -> Call:
        bodies = sum(body is not None for body in (self.json_, self.form))
        if bodies > (self.method != "GET"):
            raise wrong("it has a body too many", 'keep one of json, form; a GET has none: method = "POST"')
        pages: Pages = getattr(self, "pages", Pages())
        if self.placeholders & PAGED != {pages.type} & PAGED:
            uses = f"the request has to use {{{pages.type}}}" if pages.type in PAGED else "the request names a page"
            raise wrong(f"pages are of type {pages.type}, and {uses}", "make pages and the request fit")
        return self

    @property
    def placeholders(self) -> set[str]:
        """The names that the request uses."""
        return {slot.name for slot in slots_in([self.path, self.query, self.json_, self.form])}


class _CheckCall(Call):
    account: values.TextValue | None = None
    balance: values.MoneyValue | None = None


class _BalanceCall(Call):
    balance: values.MoneyValue


class _Paged(Call):
    items: Select = Field(default="@", validate_default=True)
    pages: Pages = Pages()


class _ListCall(_Paged):
    knows = ("since",)
    offer: OfferWords | None = None


class _KeysCall(_Paged):
    knows = ("order.id", "order.reference")
    keys: values.Keys


class _Single(Call):
    item: Select = Field(default="@", validate_default=True)


class _OfferCall(_Single):
    knows = ("sku", "sku.*")
    offer: OfferWords | None = None


class _PlaceCall(_Single):
    knows = ("reference", "quantity", "offer.sku", "max_unit_cost", "callback_url")
    order: OrderWords | None = None


class _GetCall(_Single):
    knows = ("order.id",)
    order: OrderWords | None = None


class _FindCall(_Single):
    knows = ("reference",)
    order: OrderWords | None = None
    empty_is_absent: Annotated[Any, one_setting("bool", bool)] = False


class _ReturnCall(Call):
    knows = ("order.id", "key_ids")
    each: Select
    id: values.TextValue
    taken: values.FlagValue


class _ComplainCall(Call):
    knows = ("order.id", "text")
    id: values.TextValue | None = None


class _VerbWords(Words):
    check: _CheckCall | None = None
    list_offers: _ListCall | None = None
    get_offer: _OfferCall | None = None
    get_balance: _BalanceCall | None = None
    place_order: _PlaceCall | None = None
    get_order: _GetCall | None = None
    find_order: _FindCall | None = None
    fetch_keys: _KeysCall | None = None
    return_keys: _ReturnCall | None = None
    complain: _ComplainCall | None = None


class Hook(Signature):
    """One kind of request that the supplier sends to us. It is a hint: nothing in it is taken for a fact."""

    event: Literal["order", "offer", "test"]
    when: Select | None = None
    text: Annotated[list[Text], BeforeValidator(one_or_more)]
    signature: Text
    time: Text | None = None
    within: int = Field(300, ge=1)
    order_id: values.TextValue | None = None
    reference: values.TextValue | None = None
    sku: values.TextValue | None = None
    reply: str = ""

    @field_validator("text", "signature", "time")
    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> Any:
        own = ("method", "path", "body", "body_md5", "fields", "json", "secret") if info.field_name == "text" else ()
        return checked(value, info, ("field.*", "header.*", "query.*", *own))

    @model_validator(mode="after")
    def _sound(self) -> Hook:
        secrets = ["secret" in {slot.name for slot in one.slots} or self.hash == "hmac_sha256" for one in self.text]
        if not self.secret.parts or not secrets or not all(secrets):
            raise wrong("anybody could make this signature", "name secret, and put {secret} into the text")
        if not {"order": self.order_id or self.reference, "offer": self.sku, "test": True}[self.event]:
            raise wrong("nothing says what it is about", "name order_id, reference or sku")
        return self


def _setting_names(value: dict[str, Setting]) -> dict[str, Setting]:
    for name in value:
        if name in Supplier.model_fields:
            raise wrong(f"{name} is a setting of every supplier", "choose another name")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or hasattr(BaseModel, name) or name.startswith("model_"):
            raise wrong(f"{name} cannot name a setting", "lower-case letters, digits and _, such as api_key")
    return value


class Definition(Words):
    """A whole file."""

    title: str = Field(min_length=1)
    base_url: Fixed
    split: str = Field("auto", pattern="^(auto|line|labelled|csv|pair(:.+)?)$")
    unverified: list[str] = []
    settings: Annotated[dict[str, Setting], AfterValidator(_setting_names)] = {}
    promises: _PromiseWords = _PromiseWords()
    headers: dict[str, Fixed] = {}
    auth: Auth | None = None
    answer: _AnswerWords = _AnswerWords()
    errors: list[Failure] = []
    offer: OfferWords | None = None
    order: OrderWords | None = None
    verbs: _VerbWords
    webhooks: list[Hook] = []

    @model_validator(mode="after")
    def _whole(self) -> Definition:
        for name in type(self.verbs).model_fields:
            call: Any = getattr(self.verbs, name)
            for part in ("offer", "order"):
                if call and part in type(call).model_fields and not (getattr(call, part) or getattr(self, part)):
                    raise wrong(f"nothing says how an {part} of {name} reads", f"add [{part}]")
        asked = self.verbs.get_offer
        sku = asked and (asked.offer or self.offer).sku  # type: ignore[union-attr] - checked above
        parts = {f"sku.{number}" for number in range(1, len(sku.join) + 1)} if sku and sku.between else set()
        for name in sorted({name for name in asked.placeholders if name.startswith("sku.")} - parts) if asked else ():
            raise wrong(f"{{{name}}} is no part of the sku", "sku = { join = […], between = … }: its parts count from 1")
        found = self.verbs.find_order
        read = found and (found.order or self.order)
        if read and not read.reference:
            raise wrong("find_order cannot tell whether an order is ours", "add reference to [order]")
        if self.verbs.place_order and not self.verbs.get_order:
            raise wrong("nobody could learn what became of an order", "add [verbs.get_order]")
        return self
