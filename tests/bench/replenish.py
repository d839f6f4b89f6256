"""`make bench-replenish`: policies of what to hold, tried on simulated demand: hits against money tied up.

Seeded, and with nothing but the pure parts: the same table comes out everywhere. Every policy is asked at each sync, and
what it orders arrives after the lead time; a hit is a unit that was in the vault when it was asked for. What is compared
is the money that lies in keys, held and on order, when all reach the hit rate of the default: each other policy's target
is scaled until it does.
"""

from __future__ import annotations

import bisect
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from syncd.inventory import replenish

SYNC_S: Final = 600
LEAD_S: Final = 120
WEEK_S: Final = 7 * 86400
WEEKS: Final = 5
START: Final = 472_000 * 3600  # a whole hour, whose day and week do not matter
SEEDS: Final = range(int(sys.argv[1]) if len(sys.argv) > 1 else 101, (int(sys.argv[1]) if len(sys.argv) > 1 else 101) + 4)

Order = tuple[float, int]


# --- demand -----------------------------------------------------------------------------------------------------------


def _orders(dice: random.Random, rate: Callable[[float], float], most: float, size: Callable[[], int]) -> list[Order]:
    """Orders at a rate an hour that changes with the hours since the start."""
    found, at = [], 0.0
    while (at := at + dice.expovariate(most)) < WEEKS * 168:
        if dice.random() * most < rate(at):
            found.append((START + at * 3600, size()))
    return found


def _day(hour: float) -> float:
    """Few at night, most in the evening; 1 on average."""
    return 1 + 0.55 * math.sin((hour % 24 - 13) / 24 * 2 * math.pi) + 0.3 * math.sin((hour % 24 - 17) / 12 * 2 * math.pi)


def _few(dice: random.Random) -> Callable[[], int]:
    return lambda: dice.choices((1, 2, 3, 5), (80, 12, 5, 3))[0]


def steady(dice: random.Random) -> list[Order]:
    return _orders(dice, lambda _: 8, 8, _few(dice))


def weekly(dice: random.Random) -> list[Order]:
    def rate(hour: float) -> float:
        return 10 * max(0.1, _day(hour)) * (2.2 if hour % 168 >= 120 else 0.8)

    return _orders(dice, rate, 60, _few(dice))


def launch(dice: random.Random) -> list[Order]:
    def rate(hour: float) -> float:
        since = hour - 10.4 * 24
        return 0.8 * max(0.1, _day(hour)) + (0 if since < 0 else 90 * 0.5 ** (since / 10) + 3)

    return _orders(dice, rate, 96, _few(dice))


def intermittent(dice: random.Random) -> list[Order]:
    return _orders(dice, lambda hour: 0.25 * max(0.05, _day(hour)), 0.5, lambda: dice.choices((1, 2), (88, 12))[0])


def dying(dice: random.Random) -> list[Order]:
    return _orders(dice, lambda hour: 12 * 0.5 ** (hour / 100) * max(0.1, _day(hour)), 26, _few(dice))


TRACES: Final = {"steady": steady, "weekly": weekly, "launch peak": launch, "intermittent": intermittent, "dying": dying}


# --- policies ---------------------------------------------------------------------------------------------------------


class Policy:
    """Sees what was ordered so far, and says what to hold until the next sync but one."""

    def __init__(self) -> None:
        self.hours: dict[int, int] = {}
        self.syncs: list[int] = []
        self.units = self.orders = self.largest = 0

    def see(self, at: float, quantity: int) -> None:
        hour = int(at) // 3600
        self.hours[hour] = self.hours.get(hour, 0) + quantity
        self.units += quantity
        self.orders += 1
        self.largest = max(self.largest, quantity)
        slot = int(at - START) // SYNC_S
        self.syncs.extend([0] * (slot + 1 - len(self.syncs)))
        self.syncs[slot] += quantity

    def past(self, now: float) -> list[int]:
        """Units in each time between two syncs that is over."""
        slots = int(now - START) // SYNC_S
        self.syncs.extend([0] * (slots - len(self.syncs)))
        return self.syncs[:slots]

    def target(self, now: float) -> float:
        raise NotImplementedError


class Fixed(Policy):
    """FROZEN BASELINE, not to be improved: what peers do, a threshold for ever. It is the 95th percentile of the first
    week's demand per sync; before there is a week, of what there is.
    """

    threshold: float | None = None

    def target(self, now: float) -> float:
        if self.threshold is not None:
            return self.threshold
        past = sorted(self.past(now)[: WEEK_S // SYNC_S])
        found = float(past[math.ceil(0.95 * len(past)) - 1]) if past else 0.0
        if len(past) == WEEK_S // SYNC_S:
            self.threshold = found
        return found


class Smoothing(Policy):
    """Exponential smoothing of the demand per sync, and a safety stock of z times the smoothed deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.level, self.deviation, self.done = 0.0, 1.0, 0

    def target(self, now: float) -> float:
        for units in self.past(now)[self.done :]:
            self.deviation += 0.05 * (abs(units - self.level) - self.deviation)
            self.level += 0.05 * (units - self.level)
            self.done += 1
        span = (SYNC_S + LEAD_S) / SYNC_S
        return self.level * span + 2.58 * 1.25 * self.deviation * math.sqrt(span)


class Croston(Policy):
    """Croston's method with the correction of Syntetos and Boylan: sizes and intervals are smoothed apart."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.interval, self.spread, self.since, self.done = 1.0, 144.0, 1.0, 0, 0

    def target(self, now: float) -> float:
        for units in self.past(now)[self.done :]:
            self.done += 1
            self.since += 1
            if units:
                self.spread += 0.1 * (abs(units - self.size) - self.spread)
                self.size += 0.1 * (units - self.size)
                self.interval += 0.1 * (self.since - self.interval)
                self.since = 0
        span = (SYNC_S + LEAD_S) / SYNC_S
        mean = 0.95 * self.size / self.interval * span
        return self.size * replenish.quantile(mean / self.size, 1e6, 0.995) + 2.58 * self.spread


class Default(Policy):
    """What syncd does."""

    def __init__(self, service: float = 0.995) -> None:
        super().__init__()
        self.usual: replenish.Season | None = None
        self.service = service

    def target(self, now: float) -> float:
        batch = self.units / self.orders if self.units else 1.0
        history = replenish.History(self.hours, batch, max(1,self.largest))
        if self.usual is None or self.usual.hour != int(now) // 3600:
            self.usual = replenish.season(history, now)
        demand = replenish.forecast(history, self.usual, now, SYNC_S*PART + LEAD_S)
        return replenish.enough(demand, self.service, self.usual.rate * (SYNC_S*PART + LEAD_S) / 3600 if LAGR else 0)


# --- a shop -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Result:
    asked: int = 0
    hits: int = 0
    money: float = 0.0
    """Units held and on order, on average over time."""

    @property
    def rate(self) -> float:
        return self.hits / max(1, self.asked)


def targets(policy: Policy, orders: Sequence[Order]) -> list[float]:
    """What a policy says at each sync: it does not depend on what is held, so it is asked once."""
    found, index = [], 0
    for slot in range(WEEKS * WEEK_S // SYNC_S):
        now = START + slot * SYNC_S
        while index < len(orders) and orders[index][0] < now:
            policy.see(*orders[index])
            index += 1
        found.append(policy.target(now))
    return found


def shop(orders: Sequence[Order], wanted: Sequence[float], scale: float = 1.0) -> Result:
    """Weeks of a shop, of which the first is not counted: all of them learn in it."""
    found, held, coming, index = Result(), 0, 0, 0
    for slot, target in enumerate(wanted):
        now = START + slot * SYNC_S
        counted = slot * SYNC_S >= WEEK_S
        order = max(0, math.floor(target * scale + 1e-9) - held)
        coming, arrives = order, now + LEAD_S
        if counted:
            found.money += (held + coming) * SYNC_S
        while index < len(orders) and orders[index][0] < now + SYNC_S:
            at, quantity = orders[index]
            index += 1
            if coming and at >= arrives:
                held, coming = held + coming, 0
            hit = min(held, quantity)
            held -= hit
            if counted:
                found.asked += quantity
                found.hits += hit
                found.money -= hit * (now + SYNC_S - at)
        held, coming = held + coming, 0
    found.money /= (WEEKS - 1) * WEEK_S
    return found


def money_at(rate: float, orders: Sequence[Sequence[Order]], wanted: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(money, scale) with which a policy reaches a hit rate, between the two nearest scales that were tried."""

    def tried(scale: float) -> tuple[float, float]:
        results = [shop(one, targets_, scale) for one, targets_ in zip(orders, wanted, strict=True)]
        return sum(r.hits for r in results) / sum(r.asked for r in results), statistics.fmean(r.money for r in results)

    low, high = 0.0, 1.0
    below, above = (0.0, 0.0), tried(high)
    while above[0] < rate and high < 1000:
        low, below = high, above
        high *= 2
        above = tried(high)
    for _ in range(7):
        middle = (low + high) / 2
        found = tried(middle)
        if found[0] < rate:
            low, below = middle, found
        else:
            high, above = middle, found
    part = (rate - below[0]) / (above[0] - below[0]) if above[0] > below[0] else 1.0
    return below[1] + part * (above[1] - below[1]), low + part * (high - low)


LAGR=True;PART=1
def main() -> None:
    import time
    for name, trace in TRACES.items():
        t=time.time()
        orders = [trace(random.Random(seed)) for seed in SEEDS]
        wanted = {policy.__name__: [targets(policy(), one) for one in orders] for policy in (Fixed, Smoothing, Croston, Default)}
        plain = {}
        for policy, each in wanted.items():
            results = [shop(one, t_) for one, t_ in zip(orders, each, strict=True)]
            plain[policy] = (sum(r.hits for r in results) / sum(r.asked for r in results), statistics.fmean(r.money for r in results))
        rate = plain["Default"][0]
        print(name, sum(map(len,orders))/len(orders))
        for policy, (hit, money) in plain.items():
            at, scale = money_at(rate, orders, wanted[policy])
            print(f"   {policy:10} {hit:8.3%} {money:7.2f}   equal: {at:7.2f} x{scale:.2f}")
        print(f"{time.time()-t:.1f}s")


if __name__ == "__main__":
    main()
