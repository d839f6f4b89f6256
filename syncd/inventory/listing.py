"""Judging a listing before a row of it is written (P1). Pure: called by `offers`, which carries it out.

Unknown is not zero. What a listing would change is counted in `Findings`; `judge` says what is suspicious about it;
`Pending` is a change that was held, until a second run shows the same or the operator accepts it.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from syncd.adapter import BadResponse, Offer, Stock
from syncd.model import Money

FEW: Final = 5
"""A change of fewer offers than this is never a mass one."""
_MOST: Final = 10**15
"""As much as no supplier has: larger numbers mean the same, and would not fit."""
_SKETCH: Final = 256
AHEAD_S: Final = 300
"""A stored time that is further ahead of the clock than this was written by a clock that was wrong: it fences nothing,
and nothing is fresh by it."""
_SAME: Final = 0.9
"""What part of two suspicious changes must be the same for the second to confirm the first."""
_SLACK: Final = 1.1
"""How much larger than what the operator saw an accepted change may have become."""

_json = msgspec.json.Encoder(order="deterministic").encode


class _Tiered(msgspec.Struct):
    """The part of an offer's JSON that has prices: (from this quantity on, ``0.09 CNY``)."""

    tiers: list[tuple[int, str]] = []


_of_tiers = msgspec.json.Decoder(_Tiered).decode

Row = tuple[Any, ...]
"""An offer as it is stored: sku, title, price, currency, stock kind, quantity, level, for_sale (0 or 1), smallest
and largest quantity, step, and the rest as JSON."""


# --- one offer --------------------------------------------------------------------------------------------------------


class Before(NamedTuple):
    """What is stored of an offer."""

    price: str | None
    currency: str | None
    kind: str
    quantity: int | None
    level: str | None
    for_sale: bool
    live: bool
    """Whether it is listed: not removed."""
    held: str | None
    """A price that waits to be confirmed, as `priced` writes it."""
    data: str
    """The rest as JSON: its tiers are in it."""
    known_price: str | None
    """The last price that was known, and its currency: the present one, unless that is unknown."""
    known_currency: str | None


def row_of(offer: Offer) -> Row:
    """An offer in its canonical form. When the supplier touched it last is left out: that alone is no change.

    Raises BadResponse for a sku that no database can hold.
    """
    price, stock, title = offer.price, offer.stock, offer.title
    if "\0" in offer.sku:
        raise BadResponse("an offer's sku holds a character that is none")
    if not title.isprintable():
        title = "".join(c if c.isprintable() else " " for c in title)
    data = "{}"
    if offer.tiers or offer.region or offer.group or offer.data:
        rest = {
            "tiers": [[quantity, str(each)] for quantity, each in offer.tiers],
            "region": offer.region,
            "group": offer.group,
            "data": dict(offer.data),
        }
        data = _json({name: value for name, value in rest.items() if value}).decode()
    return (
        offer.sku,
        title,
        None if price is None else str(price.amount),
        None if price is None else price.currency,
        stock.kind,
        None if stock.quantity is None else min(stock.quantity, _MOST),
        stock.level,
        int(offer.for_sale),
        min(offer.min_quantity, _MOST),
        None if offer.max_quantity is None else min(offer.max_quantity, _MOST),
        min(offer.step, _MOST),
        data,
    )


def offer_of(row: Row) -> Offer:
    """The offer that `row_of` made a row of."""
    sku, title, price, currency, kind, quantity, level, for_sale, least, most, step, data = row
    rest = msgspec.json.decode(data)
    return Offer(
        sku=sku,
        title=title,
        price=None if price is None else Money(Decimal(price), currency),
        stock=Stock(kind, quantity, level),
        for_sale=bool(for_sale),
        min_quantity=least,
        max_quantity=most,
        step=step,
        tiers=tuple((least, _amount(each)) for least, each in rest.get("tiers", ())),
        region=rest.get("region", ""),
        group=rest.get("group", ""),
        data=rest.get("data", {}),
    )


def _amount(text: str) -> Money:
    amount, _, currency = text.partition(" ")
    return Money(Decimal(amount), currency)


def digest(packed: bytes) -> bytes:
    """The 16 bytes by which a stored offer is known to be unchanged."""
    return hashlib.blake2b(packed, digest_size=16).digest()


def available(*, for_sale: object, quantity: int | None, level: str | None) -> bool:
    """Whether something can be had of an offer, as far as the supplier says: unknown is not zero."""
    return bool(for_sale) and quantity != 0 and level != "out"


def jump(before: Before, row: Row, limit: float) -> tuple[str, float]:
    """("price" | "currency" | "", new price / old): whether a price moved by more than ``limit`` either way, at the
    quantity at which it moved most.

    It is compared with the last one that was known: a price that is unknown for a run has not jumped, and hides
    nothing. One that falls to zero, or rises from it, has jumped.
    """
    if before.known_price is None or row[2] is None:
        return "", 1.0
    if before.known_currency != row[3]:
        return "currency", 1.0
    old, new = _by_quantity(before.known_price, before.data), _by_quantity(row[2], row[11])
    factors = [_factor(_at(old, least), _at(new, least)) for least in old.keys() | new.keys()]
    factor = max(factors, key=lambda one: max(one, 1 / one if one else float("inf")))
    return ("price" if factor > limit or factor * limit < 1 else ""), factor


def _by_quantity(price: str, data: str) -> dict[int, Decimal]:
    """From which quantity on one unit costs how much. A tier in another currency than the price says nothing."""
    return {1: Decimal(price), **{least: Decimal(each.partition(" ")[0]) for least, each in _tiers(data)}}


def _tiers(data: str) -> Sequence[tuple[int, str]]:
    return _of_tiers(data).tiers if '"tiers"' in data else ()


def _at(prices: Mapping[int, Decimal], quantity: int) -> Decimal:
    return prices[max(least for least in prices if least <= max(1, quantity))]


def _factor(old: Decimal, new: Decimal) -> float:
    if old == new:
        return 1.0
    return float(new / old) if old else float("inf")


def worth_recording(before: Before, row: Row) -> bool:
    """The history is of prices, and of whether there was any: not of each unit sold."""
    was = (before.price, before.currency, before.kind, before.quantity == 0, before.level)
    return was != (row[2], row[3], row[4], row[5] == 0, row[6])


# --- a listing --------------------------------------------------------------------------------------------------------


class Sketch:
    """Knows a set of texts again by its smallest hashes, however large it is."""

    def __init__(self, hashes: Sequence[int] = ()) -> None:
        self._heap = [-number for number in hashes]
        heapq.heapify(self._heap)

    def add(self, text: str) -> None:
        """Put one more in; each at most once."""
        number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")
        if len(self._heap) < _SKETCH:
            heapq.heappush(self._heap, -number)
        elif number < -self._heap[0]:
            heapq.heapreplace(self._heap, -number)

    @property
    def hashes(self) -> list[int]:
        """What to store of it."""
        return sorted(-number for number in self._heap)

    def likeness(self, other: Sketch) -> float:
        """What part of both sets together is in both: exact for small sets, an estimate for large ones."""
        mine, others = set(self.hashes), set(other.hashes)
        both = sorted(mine | others)[:_SKETCH]
        return sum(number in mine and number in others for number in both) / len(both) if both else 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a listing may change before it is held: see docs/configuration.md."""

    drop: float
    """Percent of the offers."""
    jump: float
    """Factor of a price."""
    jumps: float
    """Percent of the offers."""


@dataclass(slots=True)
class Findings:
    """What a listing would change."""

    known: int = 0
    """Offers that were listed before."""
    had: int = 0
    """Of them, those of which something could be had."""
    seen: int = 0
    fresh: int = 0
    """Offers that were not listed before."""
    gone: int = 0
    lost: int = 0
    """Of those that could be had: gone, out of stock, or no longer for sale."""
    jumps: int = 0
    currencies: int = 0
    lowest: float = 1.0
    highest: float = 1.0
    sketch: Sketch = field(default_factory=Sketch)

    def compare(self, before: Before, row: Row, limit: float, *, accepted: bool = False) -> str:
        """Take one changed offer into account; "price" or "currency" when that jumped and waits to be confirmed.

        A second run that shows the same price confirms it; ``accepted`` by the operator, one near it will do.
        """
        had = before.live and available(for_sale=before.for_sale, quantity=before.quantity, level=before.level)
        if had and not available(for_sale=row[7], quantity=row[5], level=row[6]):
            self.lost += 1
            self.sketch.add(f"out {row[0]}")
        kind, factor = jump(before, row, limit)
        if not kind or (before.held is not None and _confirms(before.held, row, accepted=accepted)):
            return ""
        self.jumps += kind == "price"
        self.currencies += kind == "currency"
        self.lowest, self.highest = min(self.lowest, factor), max(self.highest, factor)
        self.sketch.add(f"price {row[0]} {priced(row)}")
        return kind

    def missing(self, sku: str, *, had: bool) -> None:
        """Take into account that a complete listing lacks an offer."""
        self.gone += 1
        self.lost += had
        self.sketch.add(f"gone {sku}")

    @property
    def numbers(self) -> dict[str, Any]:
        """For the audit, and to compare with what an operator accepted."""
        return {
            "known": self.known,
            "lost": self.lost,
            "gone": self.gone,
            "jumps": self.jumps,
            "currencies": self.currencies,
            "lowest": self.lowest,
            "highest": min(self.highest, 1e9),  # a price that rises from zero
        }


def priced(row: Row) -> str | None:
    """A row's price as it is held: amount and currency, and what tiers there are: ``9.90 CNY (10+: 9.50 CNY)``."""
    if row[2] is None:
        return None
    tiers = ", ".join(f"{least}+: {each}" for least, each in _tiers(row[11]))
    return f"{row[2]} {row[3]}" + (f" ({tiers})" if tiers else "")


def _confirms(held: str, row: Row, *, accepted: bool) -> bool:
    if held == priced(row):
        return True
    amount, currency = held.split(" ")[:2]
    was, now = Decimal(amount), Decimal(row[2])
    return accepted and currency == row[3] and was <= now * Decimal(_SLACK) and now <= was * Decimal(_SLACK)


def judge(found: Findings, limits: Limits) -> dict[str, str]:
    """Kind of alarm → what is suspicious, in words; empty for a listing that may be taken."""
    alarms: dict[str, str] = {}
    emptied = found.known > 0 and found.gone == found.known and not found.seen
    lost = found.lost >= FEW and found.lost * 100 > limits.drop * found.had
    gone = found.gone >= FEW and found.gone * 100 > limits.drop * found.known
    if emptied:
        alarms["drop"] = f"the listing is empty, and {found.known} offers were known"
    elif lost:
        alarms["drop"] = f"{found.lost} of {found.had} offers are gone or out of stock"
    elif gone:
        alarms["drop"] = f"{found.gone} of {found.known} offers are gone"
    moved = found.jumps + found.currencies
    if moved >= FEW and moved * 100 > limits.jumps * found.known:
        if found.currencies:
            alarms["currency"] = f"{found.currencies} of {found.known} offers have another currency than before"
        if found.jumps:
            factors = [f"x{factor:.3g}" for factor in (found.lowest, found.highest) if factor != 1]
            alarms["price"] = f"{found.jumps} of {found.known} prices jumped ({' to '.join(factors)})"
    return alarms


@dataclass(frozen=True, slots=True)
class Pending:
    """A suspicious change that was held, as it is stored."""

    alarms: dict[str, str]
    numbers: dict[str, Any]
    sketch: list[int]
    accepted: bool = False
    """Whether it is being taken over: a run that was killed while it did so goes on with it."""

    def confirmed_by(self, found: Findings, alarms: Mapping[str, str]) -> bool:
        """Whether a second run shows the same."""
        return set(alarms) <= set(self.alarms) and Sketch(self.sketch).likeness(found.sketch) >= _SAME

    def covers(self, found: Findings, alarms: Mapping[str, str]) -> bool:
        """Whether a listing is no worse than this one, which the operator has seen and accepted."""
        mine, theirs = self.numbers, found.numbers
        counts = all(theirs[name] <= mine[name] * _SLACK for name in ("lost", "gone", "jumps", "currencies"))
        far = theirs["lowest"] * _SLACK >= mine["lowest"] and theirs["highest"] <= mine["highest"] * _SLACK
        return set(alarms) <= set(self.alarms) and counts and far
