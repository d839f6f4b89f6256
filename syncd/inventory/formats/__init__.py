"""Card-key formats: bytes as suppliers send them -> cards -> keys, or a reason why not. Pure, but for ``load_formats``.

Survey the whole payload, decide a Reading, read it with the product's Format::

    survey = Survey("text")
    for chunk in payload:
        survey.feed(chunk)
    reading = survey.decide(product.split or "auto")
    for card in read(payload, reading, formats[product.format], timezone=zone):
        ...

A key that comes in named parts or as an image: ``read_fields``, ``read_image``. Whether as many came as were ordered:
``check_count``.

Called by inventory/sync, purchase and the quarantine; ``dedupe_form`` by whatever fingerprints a key.
"""

from __future__ import annotations

from syncd.inventory.formats.count import Count, check_count
from syncd.inventory.formats.expiry import parse_expiry
from syncd.inventory.formats.given import read_fields, read_image
from syncd.inventory.formats.loading import load_formats
from syncd.inventory.formats.parts import Card
from syncd.inventory.formats.reader import read, read_one, read_rows
from syncd.inventory.formats.reading import SPLITS, Reading, is_split
from syncd.inventory.formats.rules import AUTO, OPAQUE, FieldRule, Format
from syncd.inventory.formats.survey import CHARSETS, Survey, survey_rows
from syncd.inventory.formats.text import dedupe_form

__all__ = [
    "AUTO",
    "CHARSETS",
    "OPAQUE",
    "SPLITS",
    "Card",
    "Count",
    "FieldRule",
    "Format",
    "Reading",
    "Survey",
    "check_count",
    "dedupe_form",
    "is_split",
    "load_formats",
    "parse_expiry",
    "read",
    "read_fields",
    "read_image",
    "read_one",
    "read_rows",
    "survey_rows",
]
