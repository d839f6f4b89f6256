"""How a customer sees a key: a product's display, instructions and redeem link. Called by the daemon and by deliveries.

Templates are taken apart once, when the configuration is loaded; a delivery only joins texts. Nothing here changes a
key: what is sealed stays as it is, and its fields are answered as they are, whatever a product's display says today.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import UTC, datetime
from string import Formatter
from typing import Final, Self
from urllib.parse import quote

from syncd.config import Product, Settings
from syncd.errors import Problem
from syncd.inventory.formats import Format
from syncd.inventory.formats.rules import FieldRule, default_display, template_fields
from syncd.inventory.formats.words import EXPIRES, KEY_ROLES
from syncd.model import NEVER
from syncd.vault.vault import OpenedKey

_NO_EXPIRY: Final = "-"
_LINK: Final = "{link}"
_BETWEEN: Final = " \t\r\n-—|,;，；、/"
"""What stands between the fields of a template."""


class Template:
    """A text with ``{fields}``, taken apart."""

    def __init__(self, text: str, *, split: bool = False) -> None:
        """``split``: each field, with the words before it, begins a line. Raises ValueError for what is no template."""
        template_fields(text)
        parts = [(literal, name) for literal, name, _, _ in Formatter().parse(text)]
        if split:
            begun = [(number, literal) for number, (literal, name) in enumerate(parts) if name]
            for number, literal in begun[1:]:
                parts[number] = ("\n" + literal.lstrip(_BETWEEN), parts[number][1])
        self._parts = tuple(parts)
        self.fields = frozenset(name for _, name in parts if name)
        self.key_fields = self.fields - {EXPIRES}

    def fill(self, values: Mapping[str, str]) -> str:
        """The text. Raises KeyError for a field that is not among the values."""
        return "".join([literal + values[name] if name else literal for literal, name in self._parts])


class Presentation:
    """How the keys of one product are shown."""

    def __init__(self, product: Product, fmt: Format) -> None:
        self._split = product.fields == "split"
        self._display = Template(product.display, split=self._split) if product.display else None
        self._instructions = Template(product.instructions) if product.instructions else None
        self._url = Template(product.redeem_url) if product.redeem_url else None
        self._whole_link = product.redeem_url == _LINK
        self._as_format = Template(fmt.template, split=True) if self._split and fmt.kind == "fields" else None
        self._rules: dict[str, FieldRule] = {rule.name: rule for rule in fmt.rules}
        self._defaults: dict[tuple[str, ...], Template] = {}

    @classmethod
    def of(cls, product: Product, fmt: Format) -> Self | None:
        """The presentation of a product, or None where its keys are shown as they were sealed."""
        asked = product.display or product.instructions or product.redeem_url or product.fields == "split"
        return cls(product, fmt) if asked else None

    def show(self, key: OpenedKey) -> None:
        """Fill in what the customer sees. A template whose fields the key does not have leaves things as they are.

        A display never hides a part of a key: one that has other parts than the display names is shown as sealed.
        """
        values = {name: self._canonical(name, text) for name, text in key.fields.items()}
        template = self._template(tuple(key.fields))
        values[EXPIRES] = _date(key.expires_at)
        if template is not None:
            key.text = template.fill(values)
        if self._instructions is not None and self._instructions.fields <= values.keys():
            key.instructions = self._instructions.fill(values)
        if self._url is not None and self._url.fields <= values.keys():
            if not self._whole_link:
                values = {name: quote(text, safe="") for name, text in values.items()}
            key.redeem_url = self._url.fill(values)

    def _template(self, fields: tuple[str, ...]) -> Template | None:
        names = frozenset(fields)
        if self._display is not None and self._display.key_fields == names:
            return self._display
        if not self._split or len(fields) == 1:
            return None
        if self._as_format is not None and self._as_format.fields == names:
            return self._as_format
        if fields not in self._defaults:
            self._defaults[fields] = Template(default_display(fields), split=True)
        return self._defaults[fields]

    def _canonical(self, name: str, text: str) -> str:
        """A field as its format writes it; as it came where today's format does not read it."""
        rule = self._rules.get(name)
        if rule is None or (rule.canonical and rule.canonical.fullmatch(text)):
            return text
        read = rule.read(text)
        return text if isinstance(read, str) else read[1]


def presentations(settings: Settings, formats: Mapping[str, Format]) -> tuple[dict[str, Presentation], list[Problem]]:
    """(sku → presentation of the products that have one, every problem of their templates)."""
    found: dict[str, Presentation] = {}
    problems: list[Problem] = []
    for sku, product in settings.products.items():
        fmt = formats.get(product.reads_as)
        if fmt is None:
            continue  # a problem of its own
        wrong = [
            settings.problem(f"products.{sku}.{setting}", message, fix)
            for setting in ("display", "instructions", "redeem_url")
            for message, fix in _wrong(setting, getattr(product, setting), fmt)
        ]
        problems += wrong
        shown = None if wrong else Presentation.of(product, fmt)
        if shown is not None:
            found[sku] = shown
    return found, problems


def _wrong(setting: str, text: str, fmt: Format) -> list[tuple[str, str]]:
    """(message, fix) for all that is wrong with a template."""
    if not text:
        return []
    known = [*(KEY_ROLES if fmt.kind == "auto" else fmt.fields), EXPIRES]
    listed = ", ".join(f"{{{name}}}" for name in known)
    try:
        names = template_fields(text)
    except ValueError:
        return [("this is no template", f"write {listed}; a brace of its own is written twice: {{{{ or }}}}")]
    found = []
    for name in dict.fromkeys(names):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            fix = f"did you mean {{{near[0]}}}?" if near else f"known here: {listed}"
            found.append((f"{fmt.name} keys have no field {{{name}}}", fix))
    if found:
        return found
    if setting == "display" and not set(names) & set(known[:-1]):
        return [("it has no field of the key, and so shows none", f"known here: {listed}")]
    if setting == "display" and fmt.kind != "auto" and (missing := set(fmt.fields) - set(names)):
        left = ", ".join(f"{{{name}}}" for name in fmt.fields if name in missing)
        return [("it hides a part of the key", f"add {left}")]
    if setting == "redeem_url" and not text.startswith(("https://", "http://")) and text != _LINK:
        return [("it is not a link", 'write "https://…", or "{link}" where the key is one')]
    return []


def _date(expires_at: int) -> str:
    return _NO_EXPIRY if expires_at >= NEVER else datetime.fromtimestamp(expires_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
