"""Adapters without code: a TOML file that says what a supplier's protocol says becomes an `Adapter`.

The vocabulary is closed (`words`), what is selected is JMESPath, what is filled in is a placeholder; there is no logic.
Called by `registry`. docs/declarative.md is the reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from types import new_class
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr, ValidationError, create_model

from syncd.adapter import Adapter, Promises, Secret, Settings, Url, select
from syncd.config import explained, read_toml
from syncd.errors import ConfigError, Problem
from syncd.suppliers.declarative.engine import Declared
from syncd.suppliers.declarative.words import Definition, Setting

_TYPES: Final[dict[str, Any]] = {
    "text": StrictStr,
    "secret": Secret,
    "secrets": Annotated[list[Secret], Field(min_length=1)],
    "url": Url,
    "bool": StrictBool,
    "number": StrictInt,
}


def load(path: Path) -> type[Adapter]:
    """The adapter that a file defines: only the verbs that it has. Raises ConfigError with every problem there is."""
    problems: list[Problem] = []
    document = read_toml(path, problems, Decimal)
    if document is None:
        raise ConfigError(problems)
    try:
        definition = Definition.model_validate(document, context=_names(document))
    except ValidationError as error:
        items = error.errors(include_url=False, include_input=False)
        raise ConfigError(list(dict.fromkeys(_problem(item, document, path) for item in items))) from None
    asked = dict(definition.verbs) | {"parse_webhook": definition.webhooks}
    incremental = bool(asked["list_offers"] and "since" in asked["list_offers"].placeholders)
    parts = {
        "__doc__": definition.title,
        "__module__": f"syncd_adapter_{path.stem}",
        "Settings": _settings(definition.settings),
        "definition": definition,
        "promises": Promises(incremental=incremental, **definition.promises.model_dump()),
        "split": definition.split,
        "title": definition.title,
        "unverified": tuple(definition.unverified),
        **{verb: getattr(Adapter, verb) for verb, words in asked.items() if not words},
    }
    name = "".join(part.capitalize() for part in re.split(r"\W|_", path.stem))
    return new_class(name, (Declared,), exec_body=lambda namespace: namespace.update(parts))


def _settings(settings: Mapping[str, Setting]) -> type[Settings]:
    fields: dict[str, Any] = {}
    for name, setting in settings.items():
        kind = Literal[tuple(setting.choices)] if setting.choices else _TYPES[setting.type]
        if setting.default is None and setting.type == "text":
            kind = Annotated[StrictStr, Field(min_length=1)]
        fields[name] = (kind, Field(... if setting.default is None else setting.default, description=setting.help))
    return create_model("Settings", __base__=Settings, **fields)


def _names(document: Mapping[str, Any]) -> dict[str, Any]:
    """What placeholders may speak of, as the file has it, right or wrong elsewhere: settings, and an offer's data."""
    types: dict[str, Any] = document["settings"] if isinstance(document.get("settings"), dict) else {}
    offers = [select("offer.data")(document), *(select("verbs.*.offer.data")(document) or [])]
    return {
        "settings": {f"settings.{name}": str(select("type")(one)) for name, one in types.items()},
        "data": {f"offer.data.{name}" for one in offers if isinstance(one, dict) for name in one},
    }


def _problem(item: Any, document: Mapping[str, Any], path: Path) -> Problem:
    message, fix = explained(item, Definition, "word", "docs/declarative.md")
    if item["loc"] == ("verbs", "pull_keys"):
        fix = "a feed is written in Python: adapters/README.md"
    return Problem(str(path), ".".join(_place(item["loc"], document)), message, fix)


def _place(loc: tuple[Any, ...], document: Any) -> Iterator[str]:
    """The path of a problem as the file has it: a short form has no inside, a table alone is no list."""
    at = document
    for part in loc:
        if part != "[key]" and isinstance(at, dict if isinstance(part, str) else list):
            yield str(part)
            at = at.get(part) if isinstance(at, dict) else at[part]
