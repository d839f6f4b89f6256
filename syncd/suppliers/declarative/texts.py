"""The two small languages of a definition: JMESPath selects from an answer, placeholders fill in a request. Both are
read when the file is loaded. A placeholder is replaced and nothing else: no logic, no expressions.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from typing import Annotated, Any, Final

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions
from pydantic import AfterValidator, BeforeValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from syncd.adapter import BadResponse, Config
from syncd.model import Money, SecretText

_SLOT: Final = re.compile(r"\{([a-z][a-z0-9_]*(?:\.[A-Za-z0-9_-]+)*)(?::([^{}]+))?\}")
_TIMES: Final = ("unix", "unix_ms", "rfc3339")
FORMS: Final[dict[str, tuple[str, ...]]] = {
    "now": _TIMES,
    "since": _TIMES,
    "max_unit_cost": ("cents", "currency", "text"),
    "json": ("slashes", "escaped"),
    "": ("int", "number", "text"),
}
"""What may stand behind the colon, by placeholder; "" for all others."""


def wrong(message: str, fix: str) -> PydanticCustomError:
    """A problem of a definition, with what to do about it."""
    return PydanticCustomError("definition", "{message}", {"message": message, "fix": fix})


def nearest(word: str, known: Iterable[str]) -> str:
    """``did you mean …?``, or what there is."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, 1)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known) or 'nothing'}"


@dataclass(frozen=True, slots=True)
class Selection:
    """A JMESPath expression, compiled."""

    text: str
    _compiled: Any = field(repr=False)
    _name: str | None = None

    def __call__(self, data: Any) -> Any:
        """What it selects; None when nothing is there. Raises BadResponse for data that the expression cannot take."""
        try:
            if self._name is not None:  # most are a name alone, and a listing has many
                return data.get(self._name) if isinstance(data, dict) else None
            return self._compiled.search(data)
        except (JMESPathError, TypeError, ValueError, ArithmeticError):
            pass  # raised outside of the handler, so that no traceback leads to the data
        raise BadResponse(f"what {self.text!r} works on is not what it expects")


def _selection(value: object) -> Selection:
    if isinstance(value, Selection):
        return value
    try:
        compiled = jmespath.compile(value if isinstance(value, str) else "")
    except JMESPathError as error:
        at = getattr(error, "lex_position", None)
        where = "" if at is None else f" (column {at + 1})"
        raise wrong(f"this is not JMESPath: {value!r}{where}", 'write a path in quotes, such as "data.list"') from None
    for name in _functions(compiled.parsed):
        if name not in Functions.FUNCTION_TABLE:
            raise wrong(f"JMESPath has no function {name!r}", nearest(name, Functions.FUNCTION_TABLE))
    return Selection(str(value), compiled, compiled.parsed["value"] if compiled.parsed["type"] == "field" else None)


def _functions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from [node["value"]] if node["type"] == "function_expression" else []
        for child in node["children"]:
            yield from _functions(child)


@dataclass(frozen=True, slots=True)
class Slot:
    """One placeholder: ``{name}`` or ``{name:form}``."""

    name: str
    form: str

    def value(self, names: Mapping[str, Any], zone: tzinfo) -> Any:
        """What stands for it: text, int, bool, Decimal, a list; None when it has no value. Raises BadResponse."""
        value = names.get(self.name)
        if isinstance(value, SecretText):
            value = value.reveal()
        if value is None or value == "":
            return None
        if callable(value):
            return value(self.form)
        if isinstance(value, datetime):
            return _written(value, self.form, zone)
        if isinstance(value, Money):
            if self.form == "currency":
                return value.currency
            if self.form == "cents":  # rounded down: it is a limit
                return int((value.amount * 100).to_integral_value(ROUND_DOWN))
            value = value.amount
        try:
            if self.form in {"int", "number"}:
                return int(plain(value)) if self.form == "int" else Decimal(plain(value))
            return plain(value) if self.form else value
        except (ValueError, InvalidOperation):
            pass
        raise BadResponse(f"what stands for {{{self.name}:{self.form}}} is no number")


@dataclass(frozen=True, slots=True)
class Template:
    """A text with placeholders. One that is a placeholder and nothing else keeps the type of what is put there."""

    text: str
    parts: tuple[str | Slot, ...]

    @property
    def slots(self) -> list[Slot]:
        """The placeholders in it."""
        return [part for part in self.parts if isinstance(part, Slot)]

    def fill(self, names: Mapping[str, Any], zone: tzinfo = UTC) -> Any:
        """The text; for a placeholder alone its value, None when it has none."""
        whole = self.parts[0] if len(self.parts) == 1 else ""
        return whole.value(names, zone) if isinstance(whole, Slot) else self.line(names, zone)

    def line(self, names: Mapping[str, Any], zone: tzinfo = UTC, each: Callable[[str], str] = str) -> str:
        """Always a text. ``each`` is applied to what is put in. Raises Config for a placeholder without a value."""
        done = []
        for part in self.parts:
            value = part.value(names, zone) if isinstance(part, Slot) else part
            if value is None:
                raise Config(f"{self.text!r}: a placeholder has no value")
            done.append(each(plain(value)) if isinstance(part, Slot) else part)
        return "".join(done)


def _template(value: object) -> Template:
    if isinstance(value, Template):
        return value
    if not isinstance(value, str):
        raise wrong("this is no text", "write it in quotes")
    parts: list[str | Slot] = []
    at = 0
    for found in _SLOT.finditer(value):
        parts += [value[at : found.start()], Slot(found[1], found[2] or "")]
        at = found.end()
    parts.append(value[at:])
    if any(isinstance(part, str) and ("{" in part or "}" in part) for part in parts):
        raise wrong(f"{value!r} has a brace that belongs to no placeholder", "placeholders are {name} or {name:form}")
    return Template(value, tuple(part for part in parts if part != ""))


def _body(value: object) -> Any:
    if isinstance(value, dict):
        return {name: _body(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_body(inner) for inner in value]
    return value if isinstance(value, bool | int | Decimal) else _template(value)


def slots_in(value: Any) -> Iterator[Slot]:
    """Every placeholder of a Template, or of a tree of them."""
    if isinstance(value, Template):
        yield from value.slots
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from slots_in(inner)


def filled(value: Any, names: Mapping[str, Any], zone: tzinfo) -> Any:
    """A body with its placeholders filled in; what has no value is left out, with its name."""
    if isinstance(value, dict):
        done = {name: filled(inner, names, zone) for name, inner in value.items()}
        return {name: inner for name, inner in done.items() if inner is not None}
    if isinstance(value, list):
        return [inner for one in value if (inner := filled(one, names, zone)) is not None]
    return value.fill(names, zone) if isinstance(value, Template) else value


def checked(value: Any, info: ValidationInfo, known: Iterable[str] = (), *, secret: bool = True) -> Any:
    """The same, or a problem: a placeholder that has no meaning here. ``secret``: whether a secret setting has one."""
    settings: Mapping[str, str] = (info.context or {}).get("settings", {})
    names = {*known, *(f"settings.{name}" for name in settings)}
    for slot in slots_in(value):
        forms = FORMS.get(slot.name, FORMS[""])
        if slot.name not in names and f"{slot.name.partition('.')[0]}.*" not in names:
            raise wrong(f"there is no {{{slot.name}}} here", nearest(slot.name, names))
        if not secret and slot.name.startswith("settings.") and settings[slot.name.partition(".")[2]] == "secret":
            raise wrong(f"{{{slot.name}}} is a secret, and an address ends up in logs", "use [auth], or a body")
        if slot.form and slot.form not in forms and not (forms is _TIMES and "%" in slot.form):
            raise wrong(f"{{{slot.name}}} has no form {slot.form!r}", f"its forms: {', '.join(forms)}")
    return value


def one_setting(of_type: str, constant: type = Template) -> BeforeValidator:
    """Takes ``{settings.NAME}`` of one type and nothing else, or a ``constant``."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if type(value) is constant:
            return value
        settings = (info.context or {}).get("settings", {})
        names = [slot.name.partition(".")[2] for slot in _template(value).slots] if isinstance(value, str) else []
        if len(names) != 1 or settings.get(names[0]) != of_type or value != f"{{settings.{names[0]}}}":
            raise wrong(f"this is not one setting of type {of_type}", f"write {{settings.NAME}} of a {of_type} setting")
        return _template(value)

    return BeforeValidator(check)


Select = Annotated[Selection, BeforeValidator(_selection)]
Text = Annotated[Template, BeforeValidator(_template)]
Body = Annotated[Any, BeforeValidator(_body)]
Fixed = Annotated[Text, AfterValidator(checked)]
"""A text in which only settings may stand."""
Credential = Annotated[Template, one_setting("secret")]
NOTHING: Final = Template("", ())


def plain(value: Any) -> str:
    """A scalar as text, in the way of JSON: true, 9.90, never 1E+2. A list is joined by commas."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(plain(one) for one in value)
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _written(at: datetime, form: str, zone: tzinfo) -> str | int:
    if form in {"unix", "unix_ms"}:
        return int(at.timestamp() * (1000 if form == "unix_ms" else 1))
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if "%" not in form else at.astimezone(zone).strftime(form)
