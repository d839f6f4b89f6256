"""Card-key formats: bytes as suppliers send them -> cards -> keys, or a reason why not. Pure, but for ``load_formats``.

Survey the whole payload, decide a Reading, read it with the product's Format::

    survey = Survey("text")
    for chunk in payload:
        survey.feed(chunk)
    reading = survey.decide(product.split or "auto")
    for card in read(payload, reading, formats[product.format], timezone=zone):
        ...

Called by inventory/sync, purchase and the quarantine; ``dedupe_form`` by whatever fingerprints a key.
"""

from __future__ import annotations

from syncd.inventory.formats.expiry import parse_expiry
from syncd.inventory.formats.loading import load_formats
from syncd.inventory.formats.reader import Card, read, read_one, read_rows
from syncd.inventory.formats.rules import AUTO, OPAQUE, FieldRule, Format
from syncd.inventory.formats.survey import SPLITS, Reading, Survey, is_split, survey_rows
from syncd.inventory.formats.text import dedupe_form

__all__ = [
    "AUTO",
    "OPAQUE",
    "SPLITS",
    "Card",
    "FieldRule",
    "Format",
    "Reading",
    "Survey",
    "dedupe_form",
    "is_split",
    "load_formats",
    "parse_expiry",
    "read",
    "read_one",
    "read_rows",
    "survey_rows",
]
