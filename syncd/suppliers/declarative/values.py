"""What can be read out of an answer: each kind of value is a table of words, and reads itself.

``read`` gives None for what is not there, and raises BadResponse, without the value in it, for what is not as the
definition says. ``what`` names the value for that message.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from syncd.adapter import UNKNOWN, UNLIMITED, BadResponse, Money, OrderStatus, RawKey, Stock, money
from syncd.config import Zone
from syncd.model import SecretText
from syncd.suppliers.declarative.texts import Select, Selection, plain, wrong

HANDED_OVER: Final = ("partial", "completed")
"""The statuses in which keys are looked at: the status comes before the keys."""


class Words(BaseModel):
    """A table of a definition: a closed set of words."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, arbitrary_types_allowed=True
    )


class Value(Words):
    """A scalar at a place. A text instead of a table is its ``at``."""

    at: Select | None = None
    none_when: list[str | int | bool | Decimal] = []

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"at": value} if isinstance(value, str | Selection) else value

    @model_validator(mode="after")
    def _one_source(self) -> Value:
        sources = [name for name in ("at", "value", "join") if getattr(self, name, None) not in (None, [])]
        if len(sources) != (getattr(self, "kind", "exact") in {"exact", "coarse"}):
            raise wrong("it has no source, or one too many", "name exactly one of at, value, join; unknown has none")
        return self

    def pick(self, data: Any, what: str) -> Any:
        """The scalar; None when it is missing. Raises BadResponse for a list or an object."""
        found = self.at(data) if self.at else getattr(self, "value", None)
        if isinstance(found, list | dict):
            raise BadResponse(f"{what} is a list or an object")
        return None if found is None or plain(found) in map(plain, self.none_when) else found


class TextValue(Value):
    """A text, exactly as it came."""

    value: str | None = None
    join: list[Select] = []
    between: str = ""
    decode: Literal["base64"] | None = None

    def read(self, data: Any, what: str) -> str | None:
        """The text."""
        if self.join:
            parts = [path(data) for path in self.join]
            if any(isinstance(part, list | dict) for part in parts):
                raise BadResponse(f"{what} is a list or an object")
            return None if None in parts else self.between.join(plain(part) for part in parts)
        found = self.pick(data, what)
        try:
            return found if found is None else self.data(found, what).decode() if self.decode else plain(found)
        except UnicodeDecodeError:
            pass
        raise BadResponse(f"{what} is base64 of something else than text")

    def need(self, data: Any, what: str) -> str:
        """The text. Raises BadResponse when there is none, or an empty one."""
        found = self.read(data, what)
        if not found:
            raise BadResponse(f"{what} is missing")
        return found

    @staticmethod
    def data(found: Any, what: str) -> bytes:
        """The bytes of a text in base64."""
        try:
            return base64.b64decode("".join(plain(found).split()), validate=True)
        except ValueError:
            pass
        raise BadResponse(f"{what} is not base64")


class WholeValue(Value):
    """A whole number, 0 or more."""

    value: int | None = None

    def read(self, data: Any, what: str) -> int | None:
        """The number."""
        found = self.pick(data, what)
        try:
            return found if found is None else Stock.exact(found).quantity
        except BadResponse:
            pass
        raise BadResponse(f"{what} is no whole number")


class MoneyValue(Value):
    """An amount as text or number, exact; ``scale`` 2 for an amount in cents. What is charged on top is added to it."""

    currency: str | None = Field(None, pattern="^[A-Z]{3}$")
    currency_at: Select | None = None
    scale: int = Field(0, ge=0, le=6)
    percent: Select | None = None
    plus: Select | None = None

    @model_validator(mode="after")
    def _one_currency(self) -> MoneyValue:
        if (self.currency is None) == (self.currency_at is None):
            raise wrong("an amount needs its currency", "name exactly one of currency, currency_at")
        return self

    def read(self, data: Any, what: str) -> Money | None:
        """The amount."""
        found = self.pick(data, what)
        if found is None:
            return None
        currency = str(self.currency_at(data)) if self.currency_at else self.currency or ""
        amount = money(found, currency).amount
        if self.percent:
            amount += amount * self._more(self.percent(data), what) / 100
        if self.plus:
            amount += self._more(self.plus(data), what)
        return Money(amount.scaleb(-self.scale), currency)

    @staticmethod
    def _more(found: Any, what: str) -> Decimal:
        """What is charged on top. A missing one is refused: nobody knows then what it costs."""
        more = money(found, "XXX").amount
        if more < 0:
            raise BadResponse(f"{what}: what is charged on top is below 0")
        return more


class FlagValue(Value):
    """Yes or no: JSON's own, or by ``map``."""

    value: bool | None = None
    map: dict[str, bool] = {}
    unmapped: bool | None = None

    def read(self, data: Any, what: str) -> bool:
        """Whether it is so. Raises BadResponse when nobody says it."""
        found = self.pick(data, what)
        known = self.map.get(plain(found), self.unmapped) if self.map and found is not None else found
        if not isinstance(known, bool):
            raise BadResponse(f"{what} is neither yes nor no")
        return known


class TimeValue(Value):
    """A moment: rfc3339, unix, unix_ms, or a pattern; in the supplier's zone where it says none."""

    format: str = "rfc3339"
    zone: Zone | None = None

    def read(self, data: Any, what: str, zone: ZoneInfo) -> datetime | None:
        """The moment, in UTC."""
        found = self.pick(data, what)
        if found is None:
            return None
        try:
            if self.format in {"unix", "unix_ms"}:
                return datetime.fromtimestamp(float(found) / (1000 if self.format == "unix_ms" else 1), UTC)
            rfc = self.format == "rfc3339"
            read = datetime.fromisoformat(found) if rfc else datetime.strptime(found, self.format)  # noqa: DTZ007 - below
            return read.replace(tzinfo=read.tzinfo or (ZoneInfo(self.zone) if self.zone else zone)).astimezone(UTC)
        except (ValueError, TypeError, OverflowError, OSError):
            pass
        raise BadResponse(f"{what} is no time of the form {self.format}")


class StockValue(Value):
    """How much there is: a number, a word, as much as one likes, or nobody knows."""

    kind: Literal["exact", "coarse", "unlimited", "unknown"] = "exact"
    unlimited: int | None = None
    map: dict[str, Literal["out", "low", "plenty", "unlimited", "unknown"]] = {}

    def read(self, data: Any, what: str) -> Stock:
        """The stock. A missing one is refused: unknown is not zero, and has to be said (P1)."""
        found = self.pick(data, what) if self.at else None
        if self.kind == "exact" and not (found is None and self.none_when):
            return Stock.exact(found, unlimited=self.unlimited)
        level = self.map.get(plain(found)) if self.kind == "coarse" and found is not None else self.kind
        if level is None or (level == "coarse" and not self.none_when):
            raise BadResponse(f"{what} is a word that the definition does not map")
        if level == "out" or level == "low" or level == "plenty":  # noqa: PLR1714 - mypy narrows this form alone
            return Stock.coarse(level)
        return UNLIMITED if level == "unlimited" else UNKNOWN


class StatusValue(Value):
    """Where an order stands."""

    value: OrderStatus | None = None
    map: dict[str, OrderStatus] = {}
    unmapped: Literal["refuse", "pending"] = "refuse"

    def read(self, data: Any, what: str) -> OrderStatus:
        """The status; never completed unless the definition says so."""
        found = self.pick(data, what)
        status = self.value or (None if found is None else self.map.get(plain(found)))
        if status is None and (found is None or self.unmapped == "refuse"):
            raise BadResponse(f"{what} is one that the definition does not map")
        return status or "pending"


def one_or_more(value: object) -> object:
    """A table alone where a list of them may stand."""
    return value if isinstance(value, list) else [value]


Flags = Annotated[list[FlagValue], BeforeValidator(one_or_more)]


class KeyValues(Words):
    """Keys, exactly as they came (K14)."""

    each: Select = Field(default="@", validate_default=True)
    text: TextValue | None = None
    fields: dict[str, TextValue] = {}
    image: TextValue | None = None
    id: TextValue | None = None
    expires: TextValue | None = None

    @model_validator(mode="after")
    def _one_shape(self) -> KeyValues:
        if sum(bool(part) for part in (self.text, self.fields, self.image)) != 1:
            raise wrong("a key is a text, fields or an image", "name exactly one of text, fields, image")
        return self

    def read(self, data: Any, what: str) -> Iterator[RawKey]:
        """The keys. Where no list is, there are none; something else in its place is refused."""
        found = self.each(data)
        if not isinstance(found, list | None):
            raise BadResponse(f"{what}: the keys are no list")
        for one in found or ():
            read = {name: SecretText(value.read(one, what) or "") for name, value in self.fields.items()}
            if self.fields and not any(value.reveal() for value in read.values()):
                raise BadResponse(f"{what}: a key without any of its fields")
            yield RawKey(
                text=SecretText(self.text.need(one, f"{what}: the text of a key")) if self.text else None,
                fields=read or None,
                image=self.image.data(self.image.need(one, what), f"{what}: a picture") if self.image else None,
                id=(self.id and self.id.read(one, what)) or "",
                expires=(self.expires and self.expires.read(one, what)) or "",
            )


Keys = Annotated[list[KeyValues], BeforeValidator(one_or_more)]
