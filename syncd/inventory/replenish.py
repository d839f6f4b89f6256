"""What to hold: from past demand to a target per product, a pure calculation. Called by restock; `bench-replenish` tries
it against other policies.

How much is asked for is learned in two steps. Slowly: a rate, and how it differs by hour of the day, day and hour of the
week, each leaning on the coarser one until there is enough to tell. Quickly: how far the last day is above or below that,
and whether the last hour is beyond anything expected, a peak. What may be asked for until a purchase made at the next
sync has arrived is then a distribution (negative binomial: of orders, whose number is not sure either), and the target is
the stock at which the wanted share of units finds a key.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

HOUR_S: Final = 3600
WEEK: Final = 168
REMEMBERED_H: Final = 8 * WEEK
"""Hours of demand that are looked at; older ones say nothing."""
_SLOW_HALF_H: Final = 2 * WEEK
_FAST_HALF_H: Final = 24
_FAST_H: Final = 5 * 24
# So many orders weigh as much as what was believed before them.
_LEAN_RATE_H: Final = 24
_LEAST_SEASON: Final = 2.0
_LEAST_FAST: Final = 4.0
_MOST_LEAN: Final = 500.0
_DAYS = 28
_PEAK: Final = 0.999
_PEAK_LEAST: Final = 6
_PEAK_LEAN_H = 0.2
_MOST_MISS: Final = 0.2
_EXACT: Final = 300.0
"""Above so many expected orders the normal distribution serves as well."""


@dataclass(frozen=True, slots=True)
class History:
    """What was asked of a product, hour by hour."""

    units: Mapping[int, int]
    """Hour (Unix time / 3600) → units ordered, and refused for want of keys. Hours without any may be left out."""
    batch: float = 1.0
    """Units of an order, on average."""
    largest: int = 1
    """Units of the largest order."""


@dataclass(frozen=True, slots=True)
class Season:
    """What is asked for in an hour, as a rule: ``rate`` units an hour, times the factor of the hour of the week."""

    rate: float
    factors: tuple[float, ...]
    hour: int
    """As of which hour it was learned."""
    lean: float
    """How many orders of a day it is worth: the more, the less days differ from it."""

    def at(self, hour: int) -> float:
        """Units expected in an hour."""
        return self.rate * self.factors[hour % WEEK]


@dataclass(frozen=True, slots=True)
class Demand:
    """What may be asked for in a time: orders of ``batch`` units, of which ``mean`` are expected; the smaller ``shape``
    is, the less sure.
    """

    mean: float
    shape: float
    batch: float
    largest: int
    peak: str = ""
    """In words, when the last hour was beyond what was expected."""

    @property
    def units(self) -> float:
        """Units expected."""
        return self.mean * self.batch


def season(history: History, now: float) -> Season:
    """Learn what is usual; worth keeping for an hour."""
    this = int(now) // HOUR_S
    first = max(min((hour for hour in history.units), default=this), this - REMEMBERED_H)
    hours = range(first, this)
    weights = [2.0 ** ((hour - this) / _SLOW_HALF_H) for hour in hours]
    seen = [history.units.get(hour, 0) / history.batch for hour in hours]
    rate = sum(w * units for w, units in zip(weights, seen, strict=True)) / (sum(weights) + _LEAN_RATE_H)
    factors = [1.0] * WEEK
    for size, part in ((24, _of_day), (7, _of_week), (WEEK, _of_both)):
        got, due, noise = [0.0] * size, [0.0] * size, 0.0
        for hour, weight, units in zip(hours, weights, seen, strict=True):
            usual = rate * factors[hour % WEEK]
            got[part(hour)] += weight * units
            due[part(hour)] += weight * usual
            noise += weight * weight * usual
        lean = _lean(got, due, noise, _LEAST_SEASON)
        factors = [factor * (lean + got[part(h)]) / (lean + due[part(h)]) for h, factor in enumerate(factors)]
    days = range(max(first, this - _DAYS * 24), this - 23, 24)
    got = [sum(seen[day - first : day - first + 24]) for day in days]
    due = [sum(rate * factors[hour % WEEK] for hour in range(day, day + 24)) for day in days]
    return Season(rate * history.batch, tuple(factors), this, _lean(got, due, sum(due), _LEAST_FAST))


def _lean(got: Sequence[float], due: Sequence[float], noise: float, least: float) -> float:
    """How many orders what was believed before is worth, against ``got``: the less they differ beyond chance, the more.

    A gamma distribution of factors around 1, whose variance is what the differences show of it.
    """
    beyond = sum((g - d) ** 2 for g, d in zip(got, due, strict=True)) - noise
    total = sum(d * d for d in due)
    return min(max(total / beyond, least), _MOST_LEAN) if beyond > 0 else _MOST_LEAN


def _of_day(hour: int) -> int:
    return hour % 24


def _of_week(hour: int) -> int:
    return hour % WEEK // 24


def _of_both(hour: int) -> int:
    return hour % WEEK


def forecast(history: History, usual: Season, now: float, horizon_s: float) -> Demand:
    """What may be asked for in the next ``horizon_s`` seconds."""
    this, into = divmod(now, HOUR_S)
    hour, elapsed = int(this), into / HOUR_S
    got = history.units.get(hour, 0) / history.batch
    expected = usual.at(hour) * elapsed / history.batch
    recent, due = got, expected
    for age in range(1, min(_FAST_H, hour - min(history.units, default=hour)) + 1):
        weight = 2.0 ** (-age / _FAST_HALF_H)
        recent += weight * history.units.get(hour - age, 0) / history.batch
        due += weight * usual.at(hour - age) / history.batch
    shape = usual.lean + recent
    factor = shape / (usual.lean + due)
    mean = factor * _sum(usual, now, horizon_s) / history.batch
    # A peak: more within the hour, or since the last one began, than can be by chance.
    before = history.units.get(hour - 1, 0) / history.batch
    for orders, usually, lasted in (
        (got, expected, elapsed),
        (got + before, expected + usual.at(hour - 1) / history.batch, 1 + elapsed),
    ):
        if orders < _PEAK_LEAST or orders <= quantile(factor * usually, shape, _PEAK):
            continue
        fresh = orders / (lasted + _PEAK_LEAN_H) * horizon_s / HOUR_S
        if fresh > mean:
            told = f"a peak: {orders * history.batch:.0f} in {lasted * 60:.0f} minutes, {factor * usually * history.batch:.1f} were expected"
            mean, shape = fresh, max(1.0, orders)
            return Demand(mean, shape, history.batch, history.largest, told)
    return Demand(mean, shape, history.batch, history.largest)


def _sum(usual: Season, start: float, length: float) -> float:
    """Units that are usual in a time, by the parts of hours that it has."""
    end, units = start + length, 0.0
    while start < end:
        hour = int(start) // HOUR_S
        until = min(end, (hour + 1) * HOUR_S)
        units += usual.at(hour) * (until - start) / HOUR_S
        start = until
    return units


def served(demand: Demand) -> Iterator[float]:
    """For a stock of 1, 2, 3 … keys: the share of units that find one while ``demand`` lasts.

    Orders are of geometric size, so that the place of a unit in its order is so too; what was asked for before them
    follows from Panjer's recursion, which needs two sums then.
    """
    one = 1 / max(1.0, demand.batch)
    known = []
    ratio = demand.mean / (demand.shape + demand.mean)
    before = total = math.exp(-demand.shape * math.log1p(demand.mean / demand.shape))
    plain = weighted = share = 0.0
    stock = 0
    while True:
        known.append(total)
        top = min(stock + 1, demand.largest)
        yield sum((1 - one) ** i * known[stock - i] for i in range(top)) / sum(
            (1 - one) ** i for i in range(demand.largest)
        )
        stock += 1
        plain = one * before + (1 - one) * plain
        weighted = plain + (1 - one) * weighted
        before = ratio * (plain + (demand.shape - 1) * weighted / stock)
        total += before


def enough(demand: Demand, service: float, usual: float = 0) -> int:
    """The stock at which this share of units finds a key, all in all, while ``demand`` lasts.

    ``usual``: units that are asked for in such a time on average over the week. Quiet times may miss more, since a key
    that is held for them serves fewer; the share of all units that find none stays what ``service`` leaves.
    """
    miss = 1 - service
    if usual and demand.units:
        miss = min(max(miss * usual / demand.units, miss / 20), _MOST_MISS)
    if demand.mean > _EXACT:
        spread = demand.mean + demand.mean**2 / demand.shape
        return math.ceil(NormalDist(demand.units, demand.batch * math.sqrt(spread + demand.mean)).inv_cdf(1 - miss))
    for stock, share in enumerate(served(demand), 1):  # noqa: B007
        if share >= 1 - miss - 1e-9:
            break
    return stock


def quantile(mean: float, shape: float, share: float) -> int:
    """The smallest number that a negative binomial variable does not exceed with a probability of ``share``."""
    if mean > _EXACT:
        return math.ceil(NormalDist(mean, math.sqrt(mean + mean * mean / shape)).inv_cdf(share))
    total = probability = math.exp(-shape * math.log1p(mean / shape))
    number = 0
    while total < share - 1e-9:
        probability *= (number + shape) / (number + 1) * mean / (shape + mean)
        number += 1
        total += probability
    return number
