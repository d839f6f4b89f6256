"""What an author tells the kit of a supplier: settings, exchanges as it documents them, and what must come out.

Written as ``NAME.examples.toml`` beside the adapter, or given from Python as a dict of the same form. A part that is
misspelt or does not fit is refused with its place and a suggestion. ``adapters/README.md`` tells the form by example;
every name of it stands here with its meaning.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from syncd import adapter
from syncd.adapter import VERBS, AdapterError
from syncd.errors import ConfigError, Problem
from syncd.model import Money

SUFFIX: Final = ".examples.toml"
SHORTEST_SECRET: Final = 8
"""Characters of a made-up credential: the kit searches for it in everything that can be seen."""
REFERENCE: Final = "KT0000000001"
AT: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

ERRORS: Final[dict[str, type[AdapterError]]] = {
    name: found
    for name in adapter.__all__
    if isinstance(found := getattr(adapter, name), type)
    and issubclass(found, AdapterError)
    and found is not AdapterError
}
"""The names that ``raises`` takes."""


def _request(text: str) -> str:
    if not re.fullmatch(r"[A-Z]+ (https?://[^\s/]+)?/\S*", text):
        raise ValueError('write a method and a path from the root, such as "GET /api/v1/goods?page=1"')
    return text


def _verbs(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _verb(name: str) -> str:
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, 1)
        raise ValueError(f"there is no verb {name}: " + (f"did you mean {near[0]}?" if near else ", ".join(VERBS)))
    return name


def _error(name: str) -> str:
    if name not in ERRORS:
        near = difflib.get_close_matches(name, ERRORS, 1)
        known = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(ERRORS))}"
        raise ValueError(f"syncd.adapter has no error {name}: {known}")
    return name


def _utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


Pattern = Annotated[str, AfterValidator(_request)]
Verb = Annotated[str, AfterValidator(_verb)]
Verbs = Annotated[tuple[Verb, ...], BeforeValidator(_verbs)]
Time = Annotated[datetime, AfterValidator(_utc)]
Amount = Annotated[Money, BeforeValidator(lambda value: Money.parse(value) if isinstance(value, str) else value)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, arbitrary_types_allowed=True)


class _Exchanged(_Table):
    """A request pattern and its answer, in exchanges and in situations."""

    sends: str | dict[str, Any] | list[Any] | None = None
    """What the body must hold: a text that stands in it, or a part of its JSON object or form."""
    headers: dict[str, str] = {}
    """Headers that the request must bear, with these values."""
    status: int = Field(default=200, ge=100, le=599)
    reply: str | dict[str, Any] | list[Any] = ""
    """The body of the answer: a text, byte by byte; a table or list is sent as JSON."""
    reply_headers: dict[str, str] = {}
    """More headers of the answer. Its content type is JSON where the body is JSON, otherwise text/plain."""

    @property
    def body(self) -> bytes:
        """The answer's bytes."""
        return (
            self.reply if isinstance(self.reply, str) else json.dumps(self.reply, ensure_ascii=False, default=float)
        ).encode()


class Exchange(_Exchanged):
    """``[[exchange]]``: a request as documented, and what the supplier answers."""

    request: Pattern
    """Method, path from the root, and the query parameters that must be there (others may be). With http://HOST before
    the path: at that host only.
    """
    verb: Verbs = ()
    """In which verbs; in all when left out. Of several that fit, the one that asks for most is taken."""
    buys: bool = False
    """Whether this is the request of `place_order` that buys. Needed only where there are several."""

    @property
    def method(self) -> str:
        """GET, POST, …."""
        return self.request.partition(" ")[0]

    @property
    def host(self) -> str:
        """The scheme and the host, or ""."""
        parts = urlsplit(self.request.partition(" ")[2])
        return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""

    @property
    def path(self) -> str:
        """From the root, without the query."""
        return urlsplit(self.request.partition(" ")[2]).path

    @property
    def query(self) -> dict[str, str]:
        """Parameters that must be there."""
        return dict(parse_qsl(urlsplit(self.request.partition(" ")[2]).query, keep_blank_values=True))


class Gives(_Table):
    """What a verb answers in a situation: the fields of its value that are named here."""

    status: str | None = None
    keys: int | None = None
    """How many keys."""
    id: str | None = None
    stock: int | str | None = None
    for_sale: bool | None = None
    nothing: bool = False
    """None: `find_order` knows for sure that there is no such order."""


class Situation(_Exchanged):
    """``[[situation]]``: the same as in the exchanges, but for one answer, and what the adapter makes of it."""

    about: str = Field(min_length=1)
    """A few words for people, such as "out of stock"."""
    verb: Verb = "place_order"
    request: Annotated[str, AfterValidator(lambda text: _request(text) if text else text)] = ""
    """Which request is answered like this; when left out: the one that buys, or every one of the verb's."""
    raises: Annotated[str, AfterValidator(_error)] | None = None
    """The error of syncd.adapter."""
    gives: Gives | None = None

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if (self.raises is None) == (self.gives is None):
            raise ValueError('a situation ends in one of two ways: raises = "…" or gives = { … }')
        return self


class Order(_Table):
    """``[order]``: what the kit buys."""

    sku: str
    """Of an offer of the listing."""
    quantity: int = Field(default=1, ge=1)
    reference: str = REFERENCE
    """Ours, as it stands in the exchanges."""
    max_unit_cost: Amount | None = None
    """Our price limit; the offer's price when left out."""
    guard: bool = False
    """Whether the supplier has a price guard: then the request that buys must bear the limit."""


class ExpectedKey(_Table):
    """One key as the adapter has to hand it on: one of ``text``, ``fields`` and ``image`` (base64)."""

    text: str | None = None
    fields: dict[str, str] | None = None
    image: str | None = None
    id: str = ""
    expires: str = ""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(part is not None for part in (self.text, self.fields, self.image)) != 1:
            raise ValueError("a key is one of text, fields and image")
        return self

    @property
    def texts(self) -> list[str]:
        """The texts in it that are not empty."""
        return [text for text in (self.text, self.image, *(self.fields or {}).values()) if text]


class ExpectedOffer(_Table):
    """What must be found of one offer: the parts that are named."""

    sku: str
    title: str | None = None
    price: Amount | None = None
    stock: int | Literal["unlimited", "unknown", "out", "low", "plenty"] | None = None
    for_sale: bool | None = None
    min_quantity: int | None = None
    max_quantity: int | None = None
    region: str | None = None
    group: str | None = None
    data: dict[str, str] | None = None


class ExpectedOrder(_Table):
    """What must be found of the order, as `get_order` answers it: the parts that are named."""

    id: str | None = None
    status: Literal["pending", "partial", "completed", "canceled", "refunded"] = "completed"
    reference: str | None = None
    charged: Amount | None = None
    quantity: int | None = None


class Expect(_Table):
    """``[expect]``: what comes out of the exchanges."""

    offers: int | None = None
    """How many offers the listing has."""
    offer: tuple[ExpectedOffer, ...] = ()
    order: ExpectedOrder | None = None
    keys: tuple[Annotated[ExpectedKey, BeforeValidator(lambda v: {"text": v} if isinstance(v, str) else v)], ...] = ()
    """The order's keys: plain texts, or tables of text, fields, image, id, expires."""
    balance: Amount | None = None
    account: str | None = None


class Signature(_Table):
    """``[[signature]]``: a documented vector: these bytes at this time give these headers."""

    request: Pattern
    body: str = ""
    at: Time = AT
    settings: dict[str, Any] = {}
    """Settings of this vector, where it has other credentials than the rest."""
    headers: dict[str, str] = Field(min_length=1)


class WebhookExample(_Table):
    """``[[webhook]]``: a request of the supplier's to us that is valid; the kit makes the forged ones of it."""

    request: Pattern = "POST /"
    headers: dict[str, str] = {}
    body: str = ""
    at: Time = AT
    """When it arrived."""
    settings: dict[str, Any] = {}
    event: Literal["order", "offer", "test"] = "order"
    order_id: str = ""
    reference: str = ""
    sku: str = ""
    answer: str | None = None


class ExpectedPayload(_Table):
    """What a feed hands over for one file, or several."""

    product: str
    content: str
    """Byte by byte."""
    label: str | None = None
    media: Literal["text", "csv", "xlsx"] = "text"


class Feed(_Table):
    """``[feed]``: what lies in the folder of a supplier that hands keys over without an order.

    ``{folder}`` in a setting becomes a folder that the kit makes and fills.
    """

    files: dict[str, str]
    """Path in the folder → content."""
    unknown: dict[str, str] = {}
    """More files, of a product that the configuration does not know: they must stay where they are."""
    gives: tuple[ExpectedPayload, ...] = Field(min_length=1)


class Examples(_Table):
    """The whole file."""

    settings: dict[str, Any] = {}
    """As in ``[suppliers.NAME]``, but credentials are written out, made up, and of 8 characters or more."""
    at: Time = AT
    """The clock's time in all exchanges."""
    timezone: str = "Asia/Shanghai"
    order: Order | None = None
    exchange: tuple[Exchange, ...] = ()
    situation: tuple[Situation, ...] = ()
    expect: Expect = Expect()
    signature: tuple[Signature, ...] = ()
    webhook: tuple[WebhookExample, ...] = ()
    feed: Feed | None = None
    exempt: dict[str, str] = {}
    """Name of a check → why it cannot hold for this supplier. Shown wherever the adapter's tier is."""

    @model_validator(mode="after")
    def _one_buys(self) -> Self:
        placing = [one for one in self.exchange if "place_order" in one.verb]
        marked = [one for one in self.exchange if one.buys]
        if len(placing) > 1 and not marked:
            raise ValueError("several exchanges of place_order: say buys = true at the one that buys")
        if self.situation and not self.exchange:
            raise ValueError("situations without exchanges: a situation is one answer exchanged for another")
        return self

    @property
    def buying(self) -> Exchange | None:
        """The exchange that buys."""
        marked = [one for one in self.exchange if one.buys]
        return next(iter(marked or [one for one in self.exchange if "place_order" in one.verb]), None)


def path_of(adapter_file: Path, name: str = "") -> Path:
    """Where the examples of an adapter's file lie."""
    return adapter_file.with_name((name or adapter_file.stem) + SUFFIX)


def tree(path: Path) -> dict[str, Any]:
    """What a file of examples holds, for `parse`. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except FileNotFoundError:
        raise ConfigError([Problem(str(path), "", "there is no such file", "write it: adapters/README.md")]) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([Problem(str(path), "", f"it cannot be read: {error}", "correct it")]) from None


def parse(tree: Mapping[str, Any], where: str = "examples") -> Examples:
    """Examples from a dict of the file's form. Raises ConfigError, naming all that is wrong with it."""
    try:
        return Examples.model_validate(dict(tree))
    except ValidationError as error:
        raise ConfigError([_explained(item, where) for item in error.errors(include_url=False)]) from None


def _explained(item: Any, where: str) -> Problem:
    parts = [
        part for part in item["loc"] if not str(part).startswith(("function-", "dict[", "list[")) and part != "str"
    ]
    path = ""
    for part in parts:
        path += f"[{part + 1}]" if isinstance(part, int) else f"{'.' if path else ''}{part}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        names = _names(parts[:-1])
        near = difflib.get_close_matches(str(parts[-1]), names, 1)
        fix = f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
        return Problem(where, path, "there is no such name", fix)
    if item["type"] == "missing":
        return Problem(where, path, "it is missing", "add it")
    message, _, fix = message.partition(": ") if item["type"] == "value_error" else (message, "", "")
    return Problem(where, path, message, fix or "adapters/README.md, section Examples")


def _names(loc: list[Any]) -> list[str]:
    """The names that a table may have."""
    model: type[BaseModel] = Examples
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = _model(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := _model(part))), None)
