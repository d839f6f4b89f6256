"""Turning one slice of a payload (a line, a record, a row, labelled values, an element of a document) into a card, as
a ``Reading`` and a ``Format`` say. Used by the reader, which cuts the payload.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from syncd.inventory.formats import shape
from syncd.inventory.formats.document import (
    Number,
    Object,
    elements,
    parse,
    roles_of,
    starts_like_json,
    unnamed,
)
from syncd.inventory.formats.image import looks_like_image
from syncd.inventory.formats.lines import Lines
from syncd.inventory.formats.parts import Result, keys_of
from syncd.inventory.formats.rules import Refusal
from syncd.inventory.formats.text import is_link, is_prose, strip
from syncd.inventory.formats.words import (
    EXPIRES,
    Item,
    find_labels,
)
from syncd.model import NEVER, CardKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Slices(Lines):
    """Turns slices of text into cards under one Reading and one Format."""

    def _line(self, text: str) -> CardKey | Refusal:
        return self._document(strip(text)) if self.reading.media == "jsonl" else super()._line(text)

    def _document(self, bare: str) -> CardKey | Refusal:
        """A line that is a document of its own."""
        if parse(bare) is None:
            return self._odd(bare, "not JSON, as the other lines")
        found = list(islice(elements(bare), 2))
        if len(found) != 1:
            return Refusal("ambiguous", "not exactly one card in the document on this line")
        result = self.element(found[0].value)
        return Refusal("ambiguous", "several keys in one text") if isinstance(result, tuple) else result

    def element(self, value: object, expires: str = "") -> Result:
        """One card of a document; ``expires`` is the expiry that stands beside a list of them."""
        result = self._element(value)
        if expires and not isinstance(result, Refusal):
            at = self._expiry(expires)
            if at is None:
                return Refusal("bad_expiry", "the expiry date cannot be read with certainty")
            keys = tuple(key if key.expires_at != NEVER else replace(key, expires_at=at) for key in keys_of(result))
            return keys[0] if isinstance(result, CardKey) else keys
        return result

    def _element(self, value: object) -> Result:
        if isinstance(value, Refusal):
            return value
        if isinstance(value, list):
            row = [strip(text) for text in value if isinstance(text, str) and not isinstance(text, Number)]
            return self._parts(row) if len(row) == len(value) else Refusal("unreadable_shape", "a list that is no card")
        roles = roles_of(value) if isinstance(value, Object) else {"": value} if isinstance(value, str) else {}
        if isinstance(roles, Refusal):
            return roles
        parts = {role: text for role, text in roles.items() if role != EXPIRES}
        if (
            not parts
            and isinstance(value, Object)
            and (self.fmt.kind == "auto" or (self.strict and len(self.fmt.rules) == 1))
        ):
            code = shape.lone_code(unnamed(value), self.fmt)
            parts = {"code": code} if code else {}
        if not parts:
            texts = [text for _, text in value if isinstance(text, str)] if isinstance(value, Object) else []
            return self._prose(texts) or Refusal("missing_field", "no part of a key is here")
        if any(isinstance(text, Number) for text in parts.values()) and not self._keeps_zeros():
            texts = [text for _, text in value if isinstance(text, str)] if isinstance(value, Object) else []
            return self._prose(texts) or Refusal("unreadable_shape", "a bare number: zeros at its start may be lost")
        if len(parts) > 1:
            return self.named(roles)
        if self.fmt.kind == "auto" and "number" in parts and not is_link(strip(parts["number"])):
            return Refusal("missing_field", "a card number without its pin")
        result = self._text_card(*parts.values())
        if EXPIRES in roles and not isinstance(result, tuple):
            return self.noted(result, [Item(EXPIRES, roles[EXPIRES])])
        return Refusal("ambiguous", "several keys and one expiry") if EXPIRES in roles else result

    def _prose(self, texts: Iterable[str]) -> Refusal | None:
        said = any(is_prose(text, self.fmt.placeholders) for text in texts)
        return Refusal("prose", "an answer in words, not a key") if said else None

    def _text_card(self, text: str) -> Result:
        """A card that is one text of a document, which may have parts of its own."""
        bare = strip(text)
        if looks_like_image(bare):
            return self.image(bare)
        if starts_like_json(bare):
            return Refusal("unreadable_shape", "a document inside a text")
        if self.reading.candidates and self.fmt.kind != "opaque":
            return self.refusal() or Refusal("ambiguous", "the text could be read in several ways")
        if "\n" not in bare and "\r" not in bare:
            return self.line(bare) if self.reading.media == "json" else self._single(bare)
        said = [line for line in bare.splitlines() if strip(line)]
        labelled = [find_labels(line) for line in said]
        if all(labelled):
            together = self.items([item for items in labelled for item in items or []])
            if isinstance(together, CardKey) or self.reading.media != "json":
                return together
        return self._list(said) if self.reading.media == "json" else Refusal("ambiguous", "several lines in one text")

    def _list(self, said: Sequence[str]) -> Result:
        """A text with a card on each line: all of them are keys, or none is taken."""
        found: list[CardKey] = []
        for line in said:
            result = self.line(line)
            if isinstance(result, Refusal):
                return Refusal("ambiguous", "several lines in one text, and not each of them a key")
            found += keys_of(result)
        distinct = {tuple(sorted(key.canonical.items())) for key in found}
        return tuple(found) if len(distinct) == len(found) else Refusal("ambiguous", "a key twice in one text")

    def _keeps_zeros(self) -> bool:
        """Whether a key of the format that had lost a zero would be too short to pass."""
        spans = [rule.lengths for rule in self.fmt.rules]
        exact = all(len(lengths) == 1 and lengths[0][0] == lengths[0][1] for lengths in spans)
        return self.fmt.kind == "fields" and exact
