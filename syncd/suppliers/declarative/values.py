"""What can be read out of an answer: each kind of value is a table of words, and reads itself.

``read`` gives None for what is not there, and raises BadResponse, without the value in it, for what is not as the
definition says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from syncd.adapter import BadResponse, Money, OrderStatus, RawKey, Stock, money, select
from syncd.placeholders import plain

T = TypeVar("T")
Select = Annotated[Callable[[Any], Any], PlainValidator(select)]
WHOLE: Final = select("@")
"""The answer itself."""


def wrong(message: str, fix: str) -> PydanticCustomError:
    """A problem of a definition, with what to do about it."""
    return PydanticCustomError("definition", "{message}", {"message": message, "fix": fix})


class Words(BaseModel):
    """A table of a definition: a closed set of words."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)
    needs: ClassVar[frozenset[str]] = frozenset()
    """Values that have to be there once the file names them."""

    def values(self, data: Any) -> dict[str, Any]:
        """What is there of the values among the words, by their names."""
        found: dict[str, Any] = {}
        for name, value in self:
            try:
                found[name] = value.read(data) if isinstance(value, Value) else None
            except BadResponse as error:
                raise BadResponse(f"{name}: {error.message}") from None
            if name in self.needs and value and found[name] in (None, ""):
                raise BadResponse(f"{name} is missing")
        return {name: value for name, value in found.items() if value is not None}


class Value(Words):
    """A scalar at a place. A text instead of a table is its ``at``."""

    at: Select | None = None
    none_when: list[str | int | bool | Decimal] = []

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"at": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> Value:
        sources = [name for name in ("at", "value", "join") if getattr(self, name, None) not in (None, [])]
        if len(sources) != (getattr(self, "kind", "exact") in {"exact", "coarse"}):
            raise wrong("it has no source, or one too many", "name exactly one of at, value, join; unknown has none")
        return self

    def pick(self, data: Any) -> Any:
        """The scalar; None when it is missing. Raises BadResponse for a list or an object."""
        found = self.at(data) if self.at else getattr(self, "value", None)
        if isinstance(found, list | dict):
            raise BadResponse("a list or an object instead of one value")
        return None if found is None or plain(found) in map(plain, self.none_when) else found

    def read(self, data: Any) -> Any:
        """The value."""
        raise NotImplementedError


class TextValue(Value):
    """A text, exactly as it came."""

    value: str | None = None
    join: list[Value] = []
    between: str = ""

    def read(self, data: Any) -> str | None:  # noqa: D102
        parts = [one.pick(data) for one in self.join or [self]]
        return None if None in parts else self.between.join(map(plain, parts))


class WholeValue(Value):
    """A whole number, 0 or more."""

    value: int | None = None

    def read(self, data: Any) -> int | None:  # noqa: D102
        found = self.pick(data)
        return None if found is None else Stock.exact(found).quantity


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

    def read(self, data: Any) -> Money | None:  # noqa: D102
        found = self.pick(data)
        if found is None:
            return None
        currency = str(self.currency_at(data)) if self.currency_at else self.currency or ""
        amount = money(found, currency).amount
        # One that is missing is refused: nobody knows then what it costs.
        percent, plus = (money(at(data), currency).amount if at else Decimal(0) for at in (self.percent, self.plus))
        if percent < 0 or plus < 0:
            raise BadResponse("what is charged on top is below 0")
        return Money((amount + amount * percent / 100 + plus).scaleb(-self.scale), currency)


class Mapped(Value, Generic[T]):
    """One of a closed set: the supplier's values, as text, to ours."""

    value: T | None = None
    map: dict[str, T] = {}
    unmapped: T | None = None

    def read(self, data: Any) -> T:
        """Ours. Raises BadResponse where there is none: a value that is absent or not mapped is never guessed."""
        found = self.pick(data)
        ours = None if found is None else self.map.get(plain(found), self.unmapped)
        ours = ours if self.value is None else self.value
        if ours is None:
            raise BadResponse("a value that the definition does not map")
        return ours


class FlagValue(Mapped[bool]):
    """Yes or no."""

    map: dict[str, bool] = {"true": True, "false": False}


class StatusValue(Mapped[OrderStatus]):
    """Where an order stands; never completed unless the definition says so."""

    unmapped: Literal["pending"] | None = None


class StockValue(Mapped[Literal["out", "low", "plenty", "unlimited", "unknown"]]):
    """How much there is. One that is missing is refused: unknown is not zero, and has to be said (P1)."""

    kind: Literal["exact", "coarse", "unlimited", "unknown"] = "exact"
    unlimited: int | None = None

    def read(self, data: Any) -> Any:  # noqa: D102
        found = self.pick(data)
        if found is None and self.none_when:
            return Stock.unknown()
        if self.kind == "exact":
            return Stock.exact(found, unlimited=self.unlimited)
        level: Any = super().read(data) if self.kind == "coarse" else self.kind
        return {"unlimited": Stock.unlimited(), "unknown": Stock.unknown()}.get(level) or Stock.coarse(level)


def one_or_more(value: object) -> object:
    """A thing alone where a list of them may stand."""
    return value if isinstance(value, list) else [value]


Flags = Annotated[list[FlagValue], BeforeValidator(one_or_more)]


class KeyValues(Words):
    """Keys, exactly as they came (K14)."""

    needs = frozenset({"text"})
    each: Select = WHOLE
    text: TextValue | None = None
    fields: dict[str, TextValue] = {}
    id: TextValue | None = None
    expires: TextValue | None = None

    @model_validator(mode="after")
    def _one_shape(self) -> KeyValues:
        if bool(self.text) == bool(self.fields):
            raise wrong("a key is a text, or fields", "name exactly one of text, fields")
        return self

    def keys(self, data: Any) -> Iterator[RawKey]:
        """The keys. Where no list is, there are none; something else in its place is refused."""
        listed = self.each(data)
        if not isinstance(listed, list | None):
            raise BadResponse("the keys are no list")
        for one in listed or ():
            fields = {name: value.read(one) or "" for name, value in self.fields.items()}
            if self.fields and not any(fields.values()):
                raise BadResponse("a key without any of its fields")
            yield RawKey.card(fields, **self.values(one)) if fields else RawKey.of(**self.values(one))


Keys = Annotated[list[KeyValues], BeforeValidator(one_or_more)]
