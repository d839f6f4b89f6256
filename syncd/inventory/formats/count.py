"""Whether what came is what was ordered. Called by purchases and by the explanation of a payload; pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from syncd.inventory.formats.text import dedupe_form

if TYPE_CHECKING:
    from collections.abc import Iterable

    from syncd.inventory.formats.parts import Card

_BESIDE: Final = "prose"
"""The reason of lines that are no card at all: greetings, notes, apologies."""

Action = Literal["accept", "wait", "hold"]


@dataclass(frozen=True, slots=True)
class Count:
    """What a payload holds, by the positions of its cards, and what to do about it.

    ``keys`` were read, each for the first time; ``repeats`` are read again under another position (one key, however
    often it is written); ``held`` were refused; ``beside`` are texts that are no card. ``action``: *accept* the keys
    (what was refused goes to quarantine, as ever); *wait*, for the supplier has no key yet; or *hold* them all and
    open a dispute, because the number is not the one ordered. ``note`` says why, in words without any key.
    """

    action: Action
    note: str
    keys: tuple[int, ...] = ()
    repeats: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    beside: tuple[int, ...] = field(default=())


def check_count(cards: Iterable[Card], ordered: int) -> Count:
    """Compare the cards of one payload with the number ordered. Keeps the cards' de-duplication forms while it runs."""
    seen: set[str] = set()
    keys: list[int] = []
    repeats: list[int] = []
    held: list[int] = []
    beside: list[int] = []
    waiting = 0
    for card in cards:
        if card.key is None:
            waiting += card.reason == "no_key_yet"
            (beside if card.reason == _BESIDE else held).append(card.position)
            continue
        form = dedupe_form(card.key.fields)
        (repeats if form in seen else keys).append(card.position)
        seen.add(form)
    action, note = _decide(ordered, len(keys), len(repeats), len(held), waiting)
    return Count(action, note, tuple(keys), tuple(repeats), tuple(held), tuple(beside))


def _decide(ordered: int, keys: int, repeats: int, held: int, waiting: int) -> tuple[Action, str]:
    found = f"{keys} of {ordered} keys" if not repeats else f"{keys} of {ordered} keys, {repeats} of them repeated"
    if waiting and keys + held == ordered and waiting == held:
        return "wait", f"{found}; the supplier has the others later"
    if keys == ordered and not held:
        return "accept", found
    if keys and keys + held == ordered:
        return "accept", f"{found}; the others cannot be read"
    if keys + held == 0:
        return "hold", "no key came"
    return "hold", f"{found}, {held} cards that cannot be read: not the number ordered"
