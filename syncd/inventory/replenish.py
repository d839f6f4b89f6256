"""What to hold: from past demand to a target for each product; a pure calculation. Called by restock, and tried against
other policies by `make bench-replenish`.

How much is asked for is learned in two steps. Slowly: a rate, and how it differs by hour of the day, day and hour of
the week, each leaning on the coarser one the more, the less they differ beyond chance. Quickly: how far the last hours
are above or below that, and whether the last one is beyond what chance explains, a peak. What may be asked for until a
purchase has arrived is then a distribution, of orders whose number is not sure either; the target is the stock with
which the wanted share of orders finds its keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from statistics import NormalDist
from typing import Final

from syncd.config import Cache

HOUR_S: Final = 3600
LATELY_S: Final = 600
REMEMBERED_H: Final = 8 * 168
"""Hours of demand that are looked at; older ones say nothing."""
_WEEK: Final = 168
_DAY: Final = 24
_SLOW_HALF_H: Final = 2 * _WEEK
_FAST_HALF_H: Final = 6
_FAST_H: Final = 36
"""After six half-lives there is nothing left of an hour."""
_DAYS: Final = 28
# How much what was believed before is worth against what is seen: hours, or orders.
_LEAN_RATE_H: Final = 24
_LEAST_LEAN_SEASON: Final = 2.0
_LEAST_LEAN_DAY: Final = 1.0
_MOST_LEAN: Final = 500.0
_PEAK: Final = 0.99999
_PEAK_LEAST: Final = 6
"""Fewer orders are no peak, however few were expected."""
_PEAK_LEAN: Final = 60
"""A peak may have begun up to 1 / so many hours before its window."""
_PEAK_SURE: Final = 20
"""With so many orders the shortest window says enough."""
_BETWEEN: Final = 0.75
"""Of the time between two syncs, so much counts: the share of hits in the bench is then about what was asked for."""
_EXACT: Final = 300.0
"""Above so many orders the normal distribution serves as well."""
_RARE_H: Final = _WEEK


@dataclass(frozen=True, slots=True)
class History:
    """What was asked for of a product."""

    units: Mapping[int, int]
    """Hour (Unix time / 3600) → units ordered, and refused for want of keys. Hours without any may be left out."""
    sizes: Mapping[int, int] = field(default_factory=lambda: {1: 1})
    """Units of an order → how many orders had so many."""
    lately: int = 0
    """Units in the last `LATELY_S` seconds."""

    @property
    def batch(self) -> float:
        """Units of an order, on average."""
        return sum(size * orders for size, orders in self.sizes.items()) / sum(self.sizes.values())


@dataclass(frozen=True, slots=True)
class Season:
    """What is asked for as a rule."""

    rate: float
    """Units an hour, on average."""
    factors: tuple[float, ...]
    """What each hour of the week makes of it."""
    lean: float
    """So many orders of the last hours it is worth: the more, the less days differed from it."""
    hour: int
    """As of when it was learned (Unix time / 3600)."""

    def at(self, hour: int) -> float:
        """Units that are usual in an hour."""
        return self.rate * self.factors[hour % _WEEK]

    def over(self, start: float, length: float) -> float:
        """Units that are usual in a time (Unix seconds, seconds), by the parts of hours that it has."""
        end, units = start + length, 0.0
        while start < end:
            hour = int(start) // HOUR_S
            until = min(end, (hour + 1.0) * HOUR_S)
            units += self.at(hour) * (until - start) / HOUR_S
            start = until
        return units


@dataclass(frozen=True, slots=True)
class Demand:
    """What may be asked for in a time: ``mean`` orders, a number that is the less sure the smaller ``shape`` is."""

    mean: float
    shape: float
    sizes: Mapping[int, float]
    """Units of an order → the share of orders that have so many."""
    factor: float = 1.0
    """How far the last hours are above or below what is usual."""
    peak: str = ""
    """In words, when the last hour was beyond what chance explains."""

    @property
    def units(self) -> float:
        """Units expected."""
        return self.mean * sum(size * share for size, share in self.sizes.items())


def season(history: History, now: float) -> Season:
    """Learn what is usual from the hours before this one. Worth keeping for an hour: it looks at every hour."""
    this, batch = int(now) // HOUR_S, history.batch
    first = max(min(history.units, default=this), this - REMEMBERED_H)
    hours = range(first, this)
    weights = [2.0 ** ((hour - this) / _SLOW_HALF_H) for hour in hours]
    seen = [history.units.get(hour, 0) / batch for hour in hours]
    rate = sum(weight * orders for weight, orders in zip(weights, seen, strict=True)) / (sum(weights) + _LEAN_RATE_H)
    factors = [1.0] * _WEEK
    # A week begins at hour 0 of Unix time, a Thursday in UTC: any fixed one serves.
    for parts in (
        [hour % _DAY for hour in range(_WEEK)],
        [hour // _DAY for hour in range(_WEEK)],
        list(range(_WEEK)),
    ):
        got, due, noise = [0.0] * _WEEK, [0.0] * _WEEK, 0.0
        for hour, weight, orders in zip(hours, weights, seen, strict=True):
            usual = weight * rate * factors[hour % _WEEK]
            part = parts[hour % _WEEK]
            got[part] += weight * orders
            due[part] += usual
            noise += weight * usual
        lean = _lean(got, due, noise, _LEAST_LEAN_SEASON)
        factors = [
            factor * (lean + got[part]) / (lean + due[part]) for factor, part in zip(factors, parts, strict=True)
        ]
    days = range(max(first, this - _DAYS * _DAY), this - _DAY + 1, _DAY)
    got = [sum(seen[day - first : day - first + _DAY]) for day in days]
    due = [rate * sum(factors[hour % _WEEK] for hour in range(day, day + _DAY)) for day in days]
    return Season(rate * batch, tuple(factors), _lean(got, due, sum(due), _LEAST_LEAN_DAY), this)


def _lean(got: Sequence[float], due: Sequence[float], noise: float, least: float) -> float:
    """How many orders "as due" is worth against what was got: 1 / the variance of their ratio beyond ``noise``.

    That is the strength of a gamma distribution around 1 from which such ratios come (empirical Bayes, by moments).
    """
    beyond = sum((g - d) ** 2 for g, d in zip(got, due, strict=True)) - noise
    if beyond <= 0:
        return _MOST_LEAN
    return min(max(sum(d * d for d in due) / beyond, least), _MOST_LEAN)


def horizon(lead_s: float, sync_s: float) -> float:
    """For how long a stock has to last, in seconds: a purchase at the next sync has arrived then."""
    return lead_s + _BETWEEN * sync_s


def forecast(history: History, usual: Season, now: float, length_s: float) -> Demand:
    """What may be asked for in the next ``length_s`` seconds."""
    hour, elapsed = int(now) // HOUR_S, now % HOUR_S / HOUR_S
    batch, number = history.batch, sum(history.sizes.values())
    sizes = {size: orders / number for size, orders in history.sizes.items()}
    got, due = history.units.get(hour, 0) / batch, usual.at(hour) * elapsed / batch
    recent, expected = got, due
    for age in range(1, min(_FAST_H, hour - min(history.units, default=hour)) + 1):
        weight = 2.0 ** (-age / _FAST_HALF_H)
        recent += weight * history.units.get(hour - age, 0) / batch
        expected += weight * usual.at(hour - age) / batch
    lean = usual.lean
    if not quantile(expected, lean, 1 - _PEAK) <= recent <= quantile(expected, lean, _PEAK):
        lean = _LEAST_LEAN_DAY  # so far from what is usual that it is usual no more
    shape = lean + recent
    factor = shape / (lean + expected)
    mean = factor * usual.over(now, length_s) / batch
    now_rate, before = usual.at(hour) / batch, history.units.get(hour - 1, 0) / batch
    windows = (  # (orders, hours): the shortest that shows a peak well says best how high it is now
        (history.lately / batch, LATELY_S / HOUR_S),
        (got, elapsed),
        (got + before, 1 + elapsed),
    )
    peak = None
    for orders, lasted in windows:
        foreseen = factor * (now_rate * min(lasted, elapsed) + usual.at(hour - 1) / batch * max(0.0, lasted - elapsed))
        fresh = orders / (lasted + 1 / _PEAK_LEAN) * length_s / HOUR_S
        if orders < _PEAK_LEAST or fresh <= mean or orders <= quantile(foreseen, shape, _PEAK):
            continue
        if peak is None or fresh > peak.mean:
            told = f"{orders * batch:.0f} units in {lasted * 60:.0f} minutes, {foreseen * batch:.1f} expected"
            peak = Demand(fresh, orders, sizes, factor, told)
        if orders >= _PEAK_SURE:
            break
    return peak or Demand(mean, shape, sizes, factor)


def served(demand: Demand) -> Iterator[float]:
    """For a stock of 1, 2, 3 … keys: the share of orders that find theirs, while ``demand`` lasts.

    An order does if what was asked for before it, and its own size, are within the stock. What was asked for is a
    compound negative binomial variable; its probabilities follow from each other (Panjer's recursion).
    """
    sizes = sorted(demand.sizes.items())
    ratio = demand.mean / (demand.shape + demand.mean)
    exactly = [math.exp(-demand.shape * math.log1p(demand.mean / demand.shape))]
    within = [exactly[0]]
    for stock in range(1, 10**9):
        yield sum(share * within[stock - size] for size, share in sizes if size <= stock)
        parts = [(size, share * exactly[stock - size]) for size, share in sizes if size <= stock]
        plain = sum(part for _, part in parts)
        weighted = sum(size * part for size, part in parts) / stock
        exactly.append(ratio * (plain + (demand.shape - 1) * weighted))
        within.append(within[-1] + exactly[-1])


def enough(demand: Demand, service: float) -> int:
    """The smallest stock with which the share ``service`` of orders find their keys, while ``demand`` lasts."""
    if demand.mean > _EXACT:
        squares = sum(size * size * share for size, share in demand.sizes.items())
        spread = math.sqrt(demand.mean * squares + demand.units**2 / demand.shape)
        return math.ceil(NormalDist(demand.units, spread).inv_cdf(service))
    return next(stock for stock, share in enumerate(served(demand), 1) if share >= service - _TINY)


def quantile(mean: float, shape: float, share: float) -> int:
    """The smallest number that a negative binomial variable does not exceed with a probability of ``share``."""
    if mean > _EXACT:
        return math.ceil(NormalDist(mean, math.sqrt(mean + mean * mean / shape)).inv_cdf(share))
    total = probability = math.exp(-shape * math.log1p(mean / shape))
    number = 0
    while total < share - _TINY:
        probability *= (number + shape) / (number + 1) * mean / (shape + mean)
        number += 1
        total += probability
    return number


_TINY: Final = 1e-9
"""Sums of probabilities do not reach 1 to the last digit."""


# --- the target -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of a product beside its demand."""

    held: int
    """Keys that can be delivered now."""
    on_order: int
    owed: int
    """Units that orders wait for."""
    lead_s: float
    """From sending a purchase to its keys, as a rule."""
    sync_s: float
    """Between two syncs of its suppliers."""
    life_s: float | None = None
    """How long a new key can be sold; None when its keys do not expire."""
    unit_cost: Decimal | None = None
    """What a unit costs now, in the base currency; None when nobody sells any."""
    most_money: Decimal | None = None
    """The product's ``cache.budget`` in the base currency; None without one."""
    lot: int = 1
    """The fewest units that anybody sells at once."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to hold of a product, and why."""

    target: int
    """Units to hold beyond what orders wait for."""
    level: int
    """Up to which to buy now: the target, or what a whole lot makes of it."""
    buy: int
    """Units that this means to buy now."""
    expected: float
    """Units that are expected until a purchase has arrived."""
    per_day: float
    """Units a day at the present rate."""
    horizon_s: float
    why: tuple[str, ...]
    """What led to it, in words."""


def plan(cache: Cache, history: History, usual: Season, now: float, at: Situation) -> Plan:
    """What to hold, within the product's bounds: its floor and its ceiling have the last word."""
    length = horizon(at.lead_s, at.sync_s)
    demand = forecast(history, usual, now, length)
    position = at.held + at.on_order - at.owed
    why: list[str] = []
    if cache.mode == "none":
        target, level = 0, 0
        why.append("it is not cached")
    elif cache.mode == "fixed":
        target = cache.min
        level = max(target, cache.max or 0) if position < target else target
        why.append(f"fixed at {target}" + (f", filled up to {level}" if level > target else ""))
    else:
        target = level = _popular(cache, usual, now, at, demand, why)
    need = level - position
    if cache.mode == "popular" and 0 < need < at.lot:
        sold = demand.factor * usual.over(now, _RARE_H * HOUR_S)
        if at.lot <= sold and position + at.lot <= cache.most:
            level = position + at.lot
            why.append(f"nobody sells fewer than {at.lot} at once")
        else:
            level = position
            why.append(f"nobody sells fewer than {at.lot} at once, which are too many")
    per_day = 0.0 if not length else demand.units / length * 86400
    return Plan(target, level, max(0, level - position), demand.units, per_day, length, tuple(why))


def _popular(cache: Cache, usual: Season, now: float, at: Situation, demand: Demand, why: list[str]) -> int:
    """Enough for what is asked for, within every bound; each bound that holds is named."""
    week = demand.factor * usual.over(now, _RARE_H * HOUR_S)
    if week < 1 and not demand.peak:
        why.append(f"rare: {week:.1f} units a week")
        target = 0
    else:
        target = enough(demand, cache.service / 100)
        why.append(f"{cache.service:g} % of orders while {demand.units:.1f} are expected")
        if demand.peak:
            why.append(f"a peak: {demand.peak}")
        elif not 0.8 < demand.factor < 1.25:  # noqa: PLR2004 - worth a word
            why.append(f"the last hours were {demand.factor:.1f} times what is usual")
    bounds: list[tuple[float, str]] = []
    if at.life_s is not None:
        life = max(0.0, min(at.life_s, _DAYS * 86400.0))
        bounds.append((max(demand.factor * usual.over(now, life), demand.units), "what is sold while a key is good"))
    if at.most_money is not None and at.unit_cost:
        bounds.append((float(at.most_money / at.unit_cost), "cache.budget"))
    bounds.append((cache.most, "cache.max"))
    for most, name in bounds:
        if target > most:
            target = math.floor(most)
            why.append(f"no more than {target}: {name}")
    if target < cache.min:
        target = cache.min
        why.append(f"no fewer than {target}: cache.min")
    return target
