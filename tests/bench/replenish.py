"""`make bench-replenish`: policies of what to hold, tried on simulated demand: hits against money tied up.

Seeded, and with nothing but the pure parts: the same table comes out everywhere. Every policy is asked at each sync,
and what is then ordered arrives after the lead time; a hit is an order that finds all its keys in the vault; one that
does not goes elsewhere. Money is what lies in keys, held and on order, on average over time, in units. At an equal hit
rate: every policy's targets are scaled until it hits as often as the default does unscaled. Five weeks; in the first
all of them learn, it is not counted. The seeds here were not looked at while the default was made.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import math
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from syncd.inventory import replenish

SYNC_S: Final = 600
LEAD_S: Final = 120
QUICK_S: Final = 2.0
HOUR_S: Final = 3600
WEEK_S: Final = 7 * 86400
WEEKS: Final = 5
START: Final = 472_000 * HOUR_S
SERVICE: Final = 0.995

Order = tuple[float, int]
"""(Unix seconds, units)."""


# --- demand -----------------------------------------------------------------------------------------------------------


def _orders(dice: random.Random, rate: Callable[[float], float], most: float, sizes: Sequence[float]) -> list[Order]:
    """Orders at a rate an hour that changes with the hours since the start, ``most`` at most (by thinning)."""
    found, at = list[Order](), 0.0
    while (at := at + dice.expovariate(most)) < WEEKS * WEEK_S / HOUR_S:
        if dice.random() * most < rate(at):
            found.append((START + at * HOUR_S, dice.choices(range(1, len(sizes) + 1), sizes)[0]))
    return found


def _day(hour: float) -> float:
    """Few at night, most in the evening; 1 on average."""
    turn = hour % 24 / 24 * 2 * math.pi
    return max(0.05, 1 - 0.55 * math.cos(turn - 0.2) - 0.3 * math.cos(2 * turn + 1.0))


FEW: Final = (80, 12, 5, 1, 2)
"""Most orders are of one unit."""


def steady(dice: random.Random) -> list[Order]:
    """The same rate day and night."""
    return _orders(dice, lambda _: 8, 8, FEW)


def weekly(dice: random.Random) -> list[Order]:
    """Nights are quiet, evenings busy, weekends nearly three times as busy."""
    return _orders(dice, lambda hour: 10 * _day(hour) * (2.2 if hour % 168 >= 120 else 0.8), 50, FEW)


def launch(dice: random.Random) -> list[Order]:
    """Little, until on the eleventh day it is a hundred times as much, which goes by in days and leaves some."""

    def rate(hour: float) -> float:
        since = hour - 10.4 * 24
        return 0.8 * _day(hour) + (0 if since < 0 else 90 * 0.5 ** (since / 10) + 3)

    return _orders(dice, rate, 96, FEW)


def intermittent(dice: random.Random) -> list[Order]:
    """Next to nothing for days, then a spell of hours with three orders in each; no sale in nine of ten syncs."""
    ends, at = list[float](), 0.0
    for mean in itertools.cycle((60, 12)):
        if at > WEEKS * WEEK_S / HOUR_S:
            break
        at += dice.expovariate(1 / mean)
        ends.append(at)
    return _orders(dice, lambda hour: (3.0 if bisect.bisect(ends, hour) % 2 else 0.1) * _day(hour), 6, (88, 12))


def dying(dice: random.Random) -> list[Order]:
    """Half as much every four days."""
    return _orders(dice, lambda hour: 12 * 0.5 ** (hour / 100) * _day(hour), 24, FEW)


TRACES: Final = {
    "steady": steady,
    "weekly": weekly,
    "launch peak": launch,
    "intermittent": intermittent,
    "dying": dying,
}


# --- policies ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Past:
    """What a policy may know: every order until now."""

    hours: dict[int, int] = field(default_factory=dict)
    syncs: list[int] = field(default_factory=list)
    """Units between two syncs."""
    sizes: dict[int, int] = field(default_factory=dict)

    def see(self, at: float, quantity: int) -> None:
        """An order."""
        hour = int(at) // HOUR_S
        self.hours[hour] = self.hours.get(hour, 0) + quantity
        self.syncs[int(at - START) // SYNC_S] += quantity
        self.sizes[quantity] = self.sizes.get(quantity, 0) + 1

    @property
    def history(self) -> replenish.History:
        """The same as the default is given it."""
        return replenish.History(self.hours, self.sizes or {1: 1}, sum(self.syncs[-2:-1]))


Policy = Callable[[Past, float], float]
"""(what was, Unix seconds) → units to hold until the next purchase has arrived. Made anew for every run."""


def fixed() -> Policy:
    """THE BASELINE, FROZEN: not to be improved. What peers do: a threshold for ever, the 95th percentile of the first
    week's demand per sync.
    """
    threshold: list[float] = []

    def target(past: Past, now: float) -> float:
        if not threshold and now - START >= WEEK_S:
            first = sorted(past.syncs[: WEEK_S // SYNC_S])
            threshold.append(first[math.ceil(0.95 * len(first)) - 1])
        return threshold[0] if threshold else 0.0

    return target


def smoothing() -> Policy:
    """Exponential smoothing of the demand per sync, and a safety stock of so many smoothed deviations."""
    level, deviation = 0.0, 1.0
    span = (SYNC_S + LEAD_S) / SYNC_S

    def target(past: Past, _now: float) -> float:
        nonlocal level, deviation
        if len(past.syncs) > 1:
            deviation += 0.05 * (abs(past.syncs[-2] - level) - deviation)
            level += 0.05 * (past.syncs[-2] - level)
        return level * span + 1.25 * deviation * math.sqrt(span) * statistics.NormalDist().inv_cdf(SERVICE)

    return target


def croston() -> Policy:
    """Croston's method with Syntetos and Boylan's correction: sizes and intervals are smoothed apart; a Poisson
    quantile of their quotient, and a safety stock for the sizes.
    """
    size, interval, spread, since = 1.0, 144.0, 1.0, 0
    span = (SYNC_S + LEAD_S) / SYNC_S

    def target(past: Past, _now: float) -> float:
        nonlocal size, interval, spread, since
        since += 1
        if len(past.syncs) > 1 and (units := past.syncs[-2]):
            spread += 0.1 * (abs(units - size) - spread)
            size += 0.1 * (units - size)
            interval += 0.1 * (since - interval)
            since = 0
        times = replenish.quantile(0.95 / interval * span, 1e6, SERVICE)
        return size * times + 1.25 * spread * statistics.NormalDist().inv_cdf(SERVICE)

    return target


def default(sync_s: float = SYNC_S, lead_s: float = LEAD_S) -> Policy:
    """What syncd does."""
    usual: list[replenish.Season] = []

    def target(past: Past, now: float) -> float:
        history = past.history
        if not usual or usual[0].hour != int(now) // HOUR_S:
            usual[:] = [replenish.season(history, now)]
        length = replenish.horizon(lead_s, sync_s)
        return replenish.enough(replenish.forecast(history, usual[0], now, length), SERVICE)

    return target


POLICIES: Final[dict[str, Callable[[], Policy]]] = {
    "fixed": fixed,
    "smoothing": smoothing,
    "croston": croston,
    "default": default,
}


def targets(policy: Policy, orders: Iterable[Order]) -> list[float]:
    """What a policy says at each sync. It does not depend on what is held, so it is asked once for all scales."""
    past, found = Past(), list[float]()
    orders = iter(orders)
    coming = next(orders, None)
    for slot in range(WEEKS * WEEK_S // SYNC_S):
        now = START + slot * SYNC_S
        while coming is not None and coming[0] < now:
            past.see(*coming)
            coming = next(orders, None)
        past.syncs.append(0)
        found.append(policy(past, now))
    return found


# --- a shop -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Result:
    """What became of it after the first week."""

    asked: int = 0
    hits: int = 0
    money: float = 0.0


def shop(orders: Sequence[Order], wanted: Sequence[float], scale: float = 1.0) -> Result:
    """A shop that orders at each sync what it lacks."""
    found, held, index = Result(), 0, 0
    for slot, target in enumerate(wanted):
        now = START + slot * SYNC_S
        counted = slot * SYNC_S >= WEEK_S
        coming = max(0, math.floor(target * scale + 1e-9) - held)
        if counted:
            found.money += (held + coming) * SYNC_S
        while index < len(orders) and orders[index][0] < now + SYNC_S:
            at, quantity = orders[index]
            index += 1
            if at >= now + LEAD_S:
                held, coming = held + coming, 0
            hit = quantity <= held
            held -= quantity * hit
            if counted:
                found.asked += 1
                found.hits += hit
                found.money -= quantity * hit * (now + SYNC_S - at)
        held += coming
    found.money /= (WEEKS - 1) * WEEK_S
    return found


def quick(orders: Sequence[Order], wanted: Sequence[float]) -> Result:
    """A shop that orders at once what an order takes, at a supplier that answers in `QUICK_S`."""
    found, held = Result(), 0
    coming: list[tuple[float, int]] = []
    ticks = ((START + slot * SYNC_S, None) for slot in range(len(wanted)))
    for at, quantity in sorted(itertools.chain(ticks, orders), key=lambda each: each[0]):
        while coming and coming[0][0] <= at:
            held += coming.pop(0)[1]
        if quantity is not None:
            hit = quantity <= held
            held -= quantity * hit
            if at - START >= WEEK_S:
                found.asked += 1
                found.hits += hit
        lack = math.floor(wanted[int(at - START) // SYNC_S]) - held - sum(units for _, units in coming)
        if lack > 0:
            coming.append((at + QUICK_S, lack))
    return found


Several = Sequence[tuple[Sequence[Order], Sequence[float]]]


def together(several: Several, scale: float = 1.0) -> tuple[float, float]:
    """(hit rate, money) over several runs."""
    results = [shop(orders, wanted, scale) for orders, wanted in several]
    asked = sum(one.asked for one in results)
    return sum(one.hits for one in results) / max(1, asked), statistics.fmean(one.money for one in results)


def at_rate(rate: float, several: Several) -> tuple[float, float]:
    """(money, scale) with which a policy reaches a hit rate: in between the two nearest scales that were tried."""
    low, high = 0.0, 1.0
    below, above = (0.0, 0.0), together(several, high)
    while above[0] < rate and high < 512:
        low, below, high = high, above, 2 * high
        above = together(several, high)
    for _ in range(7):
        middle = (low + high) / 2
        found = together(several, middle)
        if found[0] < rate:
            low, below = middle, found
        else:
            high, above = middle, found
    part = (rate - below[0]) / (above[0] - below[0]) if above[0] > below[0] else 1.0
    return below[1] + part * (above[1] - below[1]), low + part * (high - low)


def compare(trace: str, seeds: Iterable[int]) -> dict[str, dict[str, float]]:
    """Policy → its hit rate and money as it is; money and scale at the default's hit rate."""
    demand = [TRACES[trace](random.Random(seed)) for seed in seeds]
    runs = {name: [(orders, targets(make(), orders)) for orders in demand] for name, make in POLICIES.items()}
    rate, money = together(runs["default"])
    found = {}
    for name, several in runs.items():
        plain = together(several)
        # The baseline's threshold may be 0, which no factor changes: its threshold itself is what is scaled.
        scaled = [(orders, [1.0] * len(wanted)) for orders, wanted in several] if name == "fixed" else several
        equal = (money, 1.0) if name == "default" else at_rate(rate, scaled)
        found[name] = {"hits": plain[0], "money": plain[1], "equal_money": equal[0], "scale": equal[1]}
    return found


def from_vault(seeds: Iterable[int]) -> float:
    """On the weekly trace, with a quick supplier and the default: the share of orders that come from the vault."""
    results = []
    for seed in seeds:
        orders = weekly(random.Random(seed))
        results.append(quick(orders, targets(default(lead_s=QUICK_S), orders)))
    return sum(one.hits for one in results) / sum(one.asked for one in results)


def main() -> None:
    """Print the table of docs/replenish.md."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=201, help="the first of the seeds")
    options.add_argument("--runs", type=int, default=3, help="how many seeds")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    seeds = range(given.seed, given.seed + given.runs)
    found = {trace: compare(trace, seeds) for trace in TRACES}
    share = from_vault(seeds)
    if given.json:
        print(json.dumps({"traces": found, "from_vault": share}, indent=2))
        return
    print("| trace | policy | hits | money | money at the default's hits | against the baseline |")
    print("|---|---|---:|---:|---:|---:|")
    for trace, policies in found.items():
        base = policies["fixed"]["equal_money"]
        for name, row in policies.items():
            equal = row["equal_money"]
            print(
                f"| {trace} | {name} | {row['hits']:.2%} | {row['money']:.2f} | {equal:.2f} | {equal / base - 1:+.0%} |"
            )
    print(f"\nweekly, a supplier that answers in {QUICK_S:g} s: {share:.3%} of orders came from the vault")


if __name__ == "__main__":
    main()
