"""What came for an order: read, counted, and judged (P3). Pure; called by `purchase`.

An answer holds all that was handed over so far, so it is always judged as a whole: what came before is in it again.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import tzinfo
from typing import Final, Literal

from syncd.adapter import OrderStatus, RawKey
from syncd.inventory.formats import (
    Card,
    Format,
    Reading,
    Survey,
    check_count,
    dedupe_form,
    parse_expiry,
    read,
    read_fields,
    read_image,
)
from syncd.model import NEVER
from syncd.vault.vault import Slice

COUNT: Final = "count"
"""The reason under which keys are quarantined that are not as many as were ordered."""
OVER: Final = "order_over"
"""The reason under which keys are quarantined whose order was cancelled or refunded."""
LATE: Final = "late"
"""The reason under which keys are quarantined that came when their purchase was closed already."""
_WAITING: Final = "no_key_yet"

Verdict = Literal["outstanding", "empty", "complete", "mismatch", "over"]


@dataclass(slots=True, repr=False)
class Receipt:
    """What an answer holds, and what is to be done with it.

    ``verdict``: *outstanding*, more is to come; *empty*, it is said to be complete, and nothing came; *complete*,
    nothing more is to come; *mismatch*, a dispute; *over*, cancelled or refunded. ``note`` says why, without a key.
    """

    verdict: Verdict
    note: str
    cards: list[Slice]
    """Those with a key are for the vault, the others for quarantine."""
    reading: str
    aside: str = ""
    """The reason under which all of it is quarantined, keys too; "" when it is not."""


def judge(
    keys: Sequence[RawKey], status: OrderStatus, ordered: int, received: int, fmt: Format, split: str, zone: tzinfo
) -> Receipt:
    """Read what came for ``ordered`` units, ``received`` of them before. ``split``: the splitter for texts.

    As many cards as were ordered are taken, whatever the status. Too many, or one key twice, are a mismatch: all are
    set aside, none is lost. So are too few of an order that is complete, unless some of them are in the vault already.
    """
    cards, reading = _read(keys, fmt, split, zone)
    count = check_count(cards, ordered)
    there = len(count.keys) + len(count.held)
    slices, dumped = [_slice(card) for card in cards], reading.dump()
    if status in {"canceled", "refunded"}:
        return Receipt("over", f"the supplier says {status}", slices, dumped, OVER)
    if count.action == "accept":
        return Receipt("complete", count.note, slices, dumped)
    if count.repeats or there > ordered:
        return Receipt("mismatch", count.note, slices, dumped, COUNT)
    if not there and count.beside and status != "pending":
        return Receipt("mismatch", "a text came instead of a key", slices, dumped, COUNT)
    if any(card.reason == _WAITING for card in cards):
        return Receipt("outstanding", count.note, [one for one in slices if one.reason != _WAITING], dumped)
    if there == ordered:  # not one of them can be read
        return Receipt("complete", count.note, slices, dumped)
    if status != "completed":
        return Receipt("outstanding", count.note, slices, dumped)
    if not slices:
        return Receipt("empty", count.note, slices, dumped)
    if received:
        return Receipt("complete", count.note, slices, dumped)
    return Receipt("mismatch", count.note, slices, dumped, COUNT)


def set_aside(cards: Sequence[Slice], reason: str, note: str) -> list[Slice]:
    """The same for quarantine: what can be read too."""
    return [card if card.key is None else replace(card, key=None, reason=reason, detail=note) for card in cards]


def by_hand(text: bytes, fmt: Format, split: str, zone: tzinfo) -> tuple[list[Slice], str]:
    """(the cards of a payload that a person hands over for an order, its reading)."""
    survey = Survey()
    survey.feed(text)
    reading = survey.decide(split)
    return [_slice(card) for card in read((text,), reading, fmt, timezone=zone)], reading.dump()


def _slice(card: Card) -> Slice:
    key = card.key
    form = dedupe_form(key.fields) if key is not None else ""
    return Slice(card.position, card.raw, key, form, card.reason, card.detail, card.supplier_key or None)


def _read(keys: Sequence[RawKey], fmt: Format, split: str, zone: tzinfo) -> tuple[list[Card], Reading]:
    """The cards, numbered in the order in which they came; and how the texts were read, if there are any."""
    texts = [key for key in keys if key.text is not None]
    reading = Reading(media="json")
    found: list[Card] = []
    if texts:
        read_texts, reading = _texts(texts, fmt, split, zone)
        found += read_texts
    for key in keys:
        if key.fields is not None:
            parts = {name: value.reveal() for name, value in key.fields.items()}
            found.append(read_fields(parts, fmt, expiry=key.expires, supplier_key=key.id, timezone=zone))
        elif key.image is not None:
            found.append(read_image(key.image, "", fmt, expiry=key.expires, supplier_key=key.id, timezone=zone))
    for position, card in enumerate(found, start=1):
        card.position = position
    return found, reading


def _texts(keys: Sequence[RawKey], fmt: Format, split: str, zone: tzinfo) -> tuple[list[Card], Reading]:
    """Texts are read together, a line or more each: one alone may not show how it is written."""
    parts = [key.text.reveal().encode("utf-8", "surrogatepass") for key in keys if key.text is not None]
    payload, ends, end = b"\n".join(parts), list[int](), -1
    for part in parts:
        end += len(part) + 1
        ends.append(end)
    survey = Survey()
    survey.feed(payload)
    reading = survey.decide(split)
    if reading.media == "json" and len(keys) > 1:  # a document's cards do not tell where they stand in it
        cards, reading = list[Card](), replace(reading, media="json")
        for key in keys:
            cards += _texts([key], fmt, split, zone)[0]
        return cards, reading
    cards = list(read((payload,), reading, fmt, timezone=zone))
    for card in cards:
        own = keys[0] if len(keys) == 1 else keys[min(bisect.bisect_left(ends, card.end - 1), len(keys) - 1)]
        card.supplier_key = card.supplier_key or own.id
        if own.expires:
            _expire(card, own.expires, zone)
    return cards, reading


def _expire(card: Card, said: str, zone: tzinfo) -> None:
    """The supplier says beside the key until when it is good."""
    at = parse_expiry(said, zone)
    if card.key is None or at == NEVER:
        return
    if at is None:
        card.key, card.reason, card.detail = None, "bad_expiry", "its expiry date cannot be read with certainty"
    else:
        card.key.expires_at = min(card.key.expires_at, at)
