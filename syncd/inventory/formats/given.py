"""Keys that an adapter has already: in named parts, or as an image. Called by purchases and feeds of such adapters."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from syncd.inventory.formats.document import (
    Object,
    texts_of,
)
from syncd.inventory.formats.image import data_uri
from syncd.inventory.formats.image import media_type as type_of_image
from syncd.inventory.formats.parts import Card
from syncd.inventory.formats.reading import Reading
from syncd.inventory.formats.rules import Format, Refusal
from syncd.inventory.formats.slices import Slices
from syncd.inventory.formats.survey import Survey
from syncd.inventory.formats.words import (
    EXPIRES,
    Item,
)
from syncd.model import CardKey

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import tzinfo


def read_fields(
    fields: Mapping[str, str], fmt: Format, *, expiry: str = "", supplier_key: str = "", timezone: tzinfo
) -> Card:
    """One key that an adapter got in named parts, by the supplier's own names for them (``card_no``, ``pinCode`` …).

    The names mean what they mean in a JSON document, and a part alone may have parts of its own; ``expiry`` is the
    supplier's text for it. The Card's slice is the mapping as JSON, so that a refused one can be read again.
    """
    members = Object((*fields.items(), *([("expires_at", expiry)] if expiry else [])))
    raw = json.dumps(dict(members), ensure_ascii=False).encode("utf-8", "surrogatepass")
    reading = Reading(media="json")
    if len(texts := texts_of(members)) == 1:
        survey = Survey()
        survey.feed(texts[0].encode("utf-8", "surrogatepass"))
        reading = replace(survey.decide(), media="json", header=False, columns=())
    result = Slices(reading, fmt, timezone).element(members)
    if isinstance(result, tuple):
        result = Refusal("ambiguous", "several keys where one was given")
    return _given(raw, result, supplier_key)


def read_image(
    data: bytes, media_type: str, fmt: Format, *, expiry: str = "", supplier_key: str = "", timezone: tzinfo
) -> Card:
    """One key that an adapter got as an image. What counts is what the bytes are; a ``media_type`` that says otherwise
    holds the key back.

    The key's only field is ``image``: a data URI (media type and base64), the same for the same bytes.
    """
    slices = Slices(Reading(media="json"), fmt, timezone)
    raw = f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}".encode("utf-8", "replace")
    said = media_type.partition(";")[0].strip().lower().replace("image/jpg", "image/jpeg")
    if said and said != type_of_image(data):
        result: CardKey | Refusal = Refusal(
            "unreadable_shape", "the image is not whole, or not of the type that is said"
        )
    else:
        result = slices.image(data_uri(data))
    if expiry:
        result = slices.noted(result, [Item(EXPIRES, expiry)])
    return _given(raw, result, supplier_key)


def _given(raw: bytes, result: CardKey | Refusal, supplier_key: str) -> Card:
    if isinstance(result, Refusal):
        return Card(1, len(raw), 1, raw, None, result.reason, result.detail, supplier_key)
    return Card(1, len(raw), 1, raw, result, supplier_key=supplier_key)
