"""What to do next with a purchase that is not closed. Pure: `purchase` carries it out, under the purchase's lease."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from syncd.adapter import Promises
from syncd.config import Purchasing
from syncd.model import PurchaseState

TRUST_S: Final = 12 * 3600
"""A supplier's word that there is no such order counts only for one that is younger: some look back a day or two."""
TWICE: Final = 2
"""How often a supplier has to say that there is no such order."""
_GROWTH: Final = 1.5
_LONGEST_S: Final = 600.0
LOOK_S: Final = 7 * 86400.0
"""For so long, an order of unknown outcome is looked for: that it is there is believed whenever it is said."""
PATIENCE_S: Final = 86400.0
"""For so long, an order of unknown outcome is sent again as soon as the guards let it."""
FIRST_S: Final = 5.0
DISPUTED_S: Final = 30 * 86400.0
"""For so long, a supplier is asked for what is missing of a dispute: it may still deliver, or pay back."""
DISPUTED_LONGEST_S: Final = 6 * 3600.0

Do = Literal["poll", "find", "repeat", "wait", "person", "rest"]


@dataclass(frozen=True, slots=True)
class Standing:
    """A purchase that is accepted, unknown or disputed, as far as the decision goes. Times are seconds."""

    state: PurchaseState
    age: float
    """Since it was last sent, by the clock."""
    doubted: float
    """Since its outcome is unknown, by the clock."""
    watched: float
    """For how long this daemon has known of it: a clock that jumps, or a restart, makes nothing older than it is."""
    tries: int
    """How often it was sent."""
    denied: int
    """How often the supplier said, late enough to be believed, that there is no such order."""
    order_id: str | None
    """The supplier's own id of it."""


@dataclass(frozen=True, slots=True)
class Able:
    """What its supplier can do."""

    verbs: frozenset[str]
    promises: Promises


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now; *rest*: never again by itself. ``why`` is for the person who has to decide; ``seconds``, how long
    to wait.
    """

    do: Do
    why: str = ""
    seconds: float = 0.0
    overdue: bool = False
    """If this look brings nothing, it is disputed."""


def next_step(one: Standing, able: Able, limits: Purchasing) -> Step:
    """What to do with a purchase that is due.

    An accepted one is asked after until its deadline. Of an unknown one: looked for by its reference; sent again where
    the supplier promises that this buys nothing twice, or tells what became of it; else a person decides. Of a disputed
    one, a person decides too; meanwhile its supplier is asked whether more has come.
    """
    if one.state == PurchaseState.DISPUTED:
        if one.age <= DISPUTED_S and one.order_id and "get_order" in able.verbs:
            return Step("poll")
        return Step("find" if one.age <= DISPUTED_S and "find_order" in able.verbs else "rest")
    if one.state == PurchaseState.ACCEPTED:
        overdue = one.age > limits.deadline and one.watched >= limits.settle  # a clock that jumped is no delay
        if one.order_id and "get_order" in able.verbs:
            return Step("poll", overdue=overdue)
        if "find_order" in able.verbs:
            return Step("find", overdue=overdue)
        return Step("person", "its supplier cannot be asked after an order")
    if "find_order" in able.verbs:
        if one.doubted > LOOK_S:
            return Step("person", "its supplier could not be asked for a week")
        return Step("find")
    promises = able.promises
    if not promises.same_reference_same_order and promises.repeat_after is None:
        return Step("person", "its supplier can neither look for it nor be sent it again")
    if not promises.same_reference_same_order and one.tries >= TWICE:
        return Step("person", "sending it once more did not tell what became of it")
    if one.doubted > PATIENCE_S:
        return Step("person", "it could not be sent again for too long")
    early = max(limits.settle, promises.repeat_after or 0.0) - one.watched
    return Step("wait", seconds=early) if early > 0 else Step("repeat")


def believed(one: Standing, limits: Purchasing) -> bool:
    """Whether it is late enough to believe a supplier that says that there is no such order."""
    return one.watched >= limits.settle


def first_look(able: Able, limits: Purchasing) -> float:
    """Seconds after which an order of unknown outcome is first looked into."""
    if "find_order" in able.verbs:
        return min(FIRST_S, limits.settle)  # that it is there is believed at once
    return max(limits.settle, able.promises.repeat_after or 0.0)


def wait(age: float, first: float, longest: float = _LONGEST_S) -> float:
    """Seconds until the next look at what has been open for ``age`` seconds: a part of that, so that it grows."""
    return min(max(first, age * (_GROWTH - 1)), max(first, longest))
