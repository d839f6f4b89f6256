"""Reading a definition: the file whole, or every problem in it at once, each with its path and what to do."""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, StrictBool, StrictInt, StrictStr, ValidationError, create_model

from syncd.adapter import Adapter, Promises, Secret, Settings
from syncd.errors import ConfigError, Problem
from syncd.suppliers.declarative.engine import Declared, Verbs
from syncd.suppliers.declarative.texts import nearest
from syncd.suppliers.declarative.words import Definition, Setting


def load(path: Path) -> type[Adapter]:
    """The adapter that a file defines: only the verbs that it has. Raises ConfigError with every problem there is."""
    definition = _read(path)
    verbs = [name for name in type(definition.verbs).model_fields if getattr(definition.verbs, name)]
    listing = definition.verbs.list_offers
    incremental = listing is not None and "since" in listing.placeholders
    parts = {
        "__doc__": definition.title,
        "__module__": f"syncd_adapter_{path.stem}",
        "Settings": _settings(definition.settings),
        "definition": definition,
        "promises": Promises(incremental=incremental, **definition.promises.model_dump()),
        "split": definition.split,
        "title": definition.title,
        "unverified": tuple(definition.unverified),
        **{name: vars(Verbs)[name] for name in (*verbs, *(["parse_webhook"] if definition.webhooks else []))},
    }
    name = "".join(part.capitalize() for part in re.split(r"\W|_", path.stem))
    kind: type[Adapter] = types.new_class(name, (Declared,), exec_body=lambda namespace: namespace.update(parts))
    return kind


# --- settings ---------------------------------------------------------------------------------------------------------


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or "@" in value:
        raise ValueError("this is not an address: write https://HOST, without user, query or fragment")
    return value.rstrip("/")


_TYPES: Final[dict[str, Any]] = {
    "text": StrictStr,
    "secret": Secret,
    "url": Annotated[StrictStr, AfterValidator(_url)],
    "bool": StrictBool,
    "number": StrictInt,
}


def _settings(settings: Mapping[str, Setting]) -> type[Settings]:
    fields: dict[str, Any] = {}
    for name, setting in settings.items():
        kind = Literal[tuple(setting.choices)] if setting.choices else _TYPES[setting.type]
        if setting.default is None and setting.type == "text":
            kind = Annotated[StrictStr, Field(min_length=1)]
        fields[name] = (kind, Field(... if setting.default is None else setting.default, description=setting.help))
    return create_model("Settings", __base__=Settings, **fields)


# --- problems ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Definition:
    try:
        document = tomllib.loads(path.read_bytes().decode("utf-8-sig"), parse_float=Decimal)
    except OSError as error:
        problem = Problem(str(path), "", f"it cannot be read: {error.strerror}", "check the file")
    except UnicodeDecodeError:
        problem = Problem(str(path), "", "it is not UTF-8 text", "save it as UTF-8")
    except tomllib.TOMLDecodeError as error:
        problem = Problem(str(path), "", f"it is not TOML: {error}", "mend that line")
    else:
        try:
            return Definition.model_validate(document, context=_names(document))
        except ValidationError as error:
            items = error.errors(include_url=False, include_input=False)
        raise ConfigError(list(dict.fromkeys(_explained(item, document, path) for item in items)))
    raise ConfigError([problem])


def _names(document: Mapping[str, Any]) -> dict[str, Any]:
    """What placeholders may speak of, as the file has it, right or wrong elsewhere: settings, and an offer's data."""

    def table(of: Any, name: str) -> dict[str, Any]:
        found = of.get(name) if isinstance(of, dict) else None
        return found if isinstance(found, dict) else {}

    settings = table(document, "settings")
    offers = [table(one, "offer") for one in (document, *table(document, "verbs").values())]
    return {
        "settings": {name: str(table(settings, name).get("type", "")) for name in settings},
        "data": {name for offer in offers for name in table(offer, "data")},
    }


def _explained(item: Any, document: Mapping[str, Any], path: Path) -> Problem:
    loc, kind, context = item["loc"], item["type"], item.get("ctx", {})
    message, fix = str(item["msg"]), context.get("fix", "docs/declarative.md has every word and what it takes")
    if kind == "extra_forbidden":
        message, fix = "there is no such word", nearest(str(loc[-1]), _words(Definition, loc[:-1]))
        if loc == ("verbs", "pull_keys"):
            fix = "a feed is written in Python: adapters/README.md"
    elif kind == "missing":
        message, fix = "it is missing", "add it"
    elif kind == "literal_error":
        message, fix = "there is no such choice", f"one of {context['expected']}"
    return Problem(str(path), ".".join(_place(loc, document)), message, fix)


def _place(loc: tuple[Any, ...], document: Any) -> Iterator[str]:
    """The path of a problem as the file has it: a short form has no inside, a table alone is no list."""
    at = document
    for part in loc:
        if isinstance(at, dict) and isinstance(part, str):
            yield part
            at = at.get(part)
        elif isinstance(at, list) and isinstance(part, int):
            yield str(part)
            at = at[part]


def _words(annotation: Any, loc: tuple[Any, ...]) -> set[str]:
    """The words of the table at a place."""
    fields = {field.alias or name: field for model in _models(annotation) for name, field in model.model_fields.items()}
    if not loc:
        return set(fields)
    return _words(fields[loc[0]].annotation if loc[0] in fields else annotation, loc[1:])


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
