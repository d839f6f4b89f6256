"""`syncd.inventory.replenish`: from demand to a target, within every bound; and that it is worth its complication."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncd.config import Cache
from syncd.inventory import replenish
from syncd.inventory.replenish import HOUR_S, Demand, History, Plan, Situation, enough, forecast, plan, quantile, season
from tests.bench import replenish as bench

NOW = 480_000 * HOUR_S + 1800.0
HOUR = 480_000
USUAL = Situation(held=0, on_order=0, owed=0, lead_s=60, sync_s=600)


def cache(**settings: Any) -> Cache:
    return Cache.model_validate({"mode": "popular", **settings})


def even(per_hour: int, weeks: int = 4) -> History:
    return History(dict.fromkeys(range(HOUR - weeks * 168, HOUR), per_hour) | {HOUR: per_hour // 2})


def planned(history: History, at: Situation = USUAL, now: float = NOW, **settings: Any) -> Plan:
    return plan(cache(**settings), history, season(history, now), now, at)


# --- the arithmetic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "shape"), [(0.02, 3.0), (1.5, 0.7), (4.0, 1e6), (40.0, 9.0)])
def test_the_distribution_is_the_one_that_it_says_to_be(mean: float, shape: float) -> None:
    ratio = mean / (shape + mean)
    log = math.lgamma
    probabilities = [
        math.exp(log(n + shape) - log(n + 1) - log(shape) + shape * math.log1p(-ratio) + n * math.log(ratio))
        for n in range(400)
    ]
    within = list(itertools.accumulate(probabilities))
    assert quantile(mean, shape, 0.99) == next(n for n, share in enumerate(within) if share >= 0.99)
    found = list(itertools.islice(replenish.served(Demand(mean, shape, {1: 1.0})), 100))
    assert found == pytest.approx(within[:100], abs=1e-9)


def test_orders_of_several_units_are_counted_as_such() -> None:
    demand = Demand(3.0, 5.0, {1: 0.7, 2: 0.2, 5: 0.1})
    dice = random.Random(1)
    trials = 8_000

    def size() -> int:
        return dice.choices((1, 2, 5), (7, 2, 1))[0]

    def orders() -> int:
        rate, at, number = dice.gammavariate(5.0, 3.0 / 5.0), dice.expovariate(1), 0
        while at < rate:
            at, number = at + dice.expovariate(1), number + 1
        return number

    tried = [(sum(size() for _ in range(orders())), size()) for _ in range(trials)]
    for stock, share in zip(range(1, 25), replenish.served(demand), strict=False):
        seen = sum(before + own <= stock for before, own in tried) / trials
        assert share == pytest.approx(seen, abs=0.03)


@settings(max_examples=25)
@given(
    st.floats(0, 400),
    st.floats(0.5, 500),
    st.dictionaries(st.integers(1, 20), st.floats(0.1, 1), min_size=1, max_size=4),
)
def test_more_service_never_takes_less_stock(mean: float, shape: float, sizes: dict[int, float]) -> None:
    whole = sum(sizes.values())
    demand = Demand(mean, shape, {size: share / whole for size, share in sizes.items()})
    stocks = [enough(demand, service) for service in (0.5, 0.9, 0.99, 0.9999)]
    assert stocks == sorted(stocks)
    assert stocks[0] >= min(sizes) * (mean > 0)
    assert enough(replace(demand, mean=mean + 1), 0.99) >= stocks[2] - 1  # where the exact sum ends, by one


# --- what is learned --------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    st.dictionaries(st.integers(HOUR - 1500, HOUR + 2), st.integers(0, 300), max_size=40),
    st.dictionaries(st.integers(1, 30), st.integers(1, 50), min_size=1, max_size=3),
    st.floats(NOW - HOUR_S, NOW + HOUR_S),
    st.integers(0, 500),
)
def test_a_plan_is_total_and_keeps_to_its_bounds(
    units: dict[int, int], sizes: dict[int, int], now: float, lately: int
) -> None:
    history = History(units, sizes, lately)
    at = replace(USUAL, life_s=86400.0, unit_cost=Decimal("2.50"), most_money=Decimal(100))
    found = plan(cache(max=30, min=2), history, season(history, now), now, at)
    assert found == plan(cache(max=30, min=2), history, season(history, now), now, at)
    assert 2 <= found.target <= 30
    assert found.why
    assert found.target <= 40  # cache.budget
    assert found.buy == max(0, found.level)
    assert math.isfinite(found.expected)


def test_what_is_usual_follows_the_hours_of_the_day() -> None:
    day = [20 if 12 <= hour % 24 < 20 else 1 for hour in range(168)]
    history = History({hour: day[hour % 168] for hour in range(HOUR - 4 * 168, HOUR)})
    usual = season(history, NOW)
    evening, night = (next(h for h in range(HOUR, HOUR + 24) if day[h % 168] == rate) for rate in (20, 1))
    assert usual.at(evening) == pytest.approx(20, rel=0.15)
    assert usual.at(night) == pytest.approx(1, rel=0.3)
    assert usual.over(evening * HOUR_S - 1800, 3600) == pytest.approx((usual.at(evening - 1) + usual.at(evening)) / 2)


def test_an_even_demand_is_not_taken_for_a_rhythm() -> None:
    dice = random.Random(3)
    history = History({hour: sum(dice.random() < 0.05 for _ in range(100)) for hour in range(HOUR - 672, HOUR)})
    usual = season(history, NOW)
    assert max(usual.factors) / min(usual.factors) < 1.25
    assert usual.rate == pytest.approx(5, rel=0.15)


def test_a_peak_is_seen_within_minutes_and_forgotten_when_it_is_over() -> None:
    quiet = even(2)
    usual = season(quiet, NOW)
    before = forecast(quiet, usual, NOW, 600)
    peak = forecast(replace(quiet, lately=80), usual, NOW, 600)
    assert not before.peak
    assert peak.peak == "80 units in 10 minutes, 0.3 expected"
    assert peak.units > 60
    assert enough(peak, 0.995) > 3 * enough(before, 0.995)
    assert not forecast(replace(quiet, lately=4), usual, NOW, 600).peak


def test_demand_that_dies_is_followed_down() -> None:
    dying = History(dict.fromkeys(range(HOUR - 672, HOUR - 24), 10))
    assert forecast(dying, season(dying, NOW), NOW, 3600).units < 2


# --- the target -------------------------------------------------------------------------------------------------------


def test_a_target_lasts_for_the_lead_time_and_the_time_to_the_next_sync() -> None:
    short, slow = planned(even(60)), planned(even(60), replace(USUAL, lead_s=3600))
    assert short.horizon_s == 60 + 0.75 * 600
    assert short.expected == pytest.approx(60 * 510 / 3600, rel=0.1)
    assert short.target > short.expected
    assert slow.target > slow.expected > 60
    assert planned(even(60), service=90).target < short.target < planned(even(60), service=99.99).target
    assert short.per_day == pytest.approx(60 * 24, rel=0.1)


def test_what_is_held_on_order_and_owed_counts() -> None:
    found = planned(even(60))
    assert found.buy == found.target
    held = replace(USUAL, held=2, on_order=3, owed=1)
    assert planned(even(60), held).buy == found.target - 4
    assert planned(even(60), replace(USUAL, held=1000)).buy == 0


@pytest.mark.parametrize(
    ("settings", "at", "target", "why"),
    [
        ({"max": 5}, USUAL, 5, "cache.max"),
        ({"min": 60}, USUAL, 60, "cache.min"),
        ({}, replace(USUAL, unit_cost=Decimal(10), most_money=Decimal(35)), 3, "cache.budget"),
        ({}, replace(USUAL, lead_s=7200, life_s=3600.0), 120, "while a key is good"),
        ({"min": 4, "max": 9}, replace(USUAL, lead_s=7200), 9, "cache.max"),
    ],
)
def test_each_bound_holds_and_is_named(settings: dict[str, Any], at: Situation, target: int, why: str) -> None:
    found = planned(even(60), at, **settings)
    assert found.target == pytest.approx(target, rel=0.1)
    assert any(why in word for word in found.why)


def test_a_rare_product_gets_its_floor() -> None:
    rare = History({HOUR - 800: 1, HOUR - 300: 1})
    assert (planned(rare).target, planned(rare, min=2).target) == (0, 2)
    assert planned(rare).why[0].startswith("rare")
    assert planned(History({})).target == 0


def test_modes() -> None:
    assert planned(even(60), mode="none").buy == 0
    fixed = [planned(even(60), replace(USUAL, held=held), mode="fixed", min=20, max=50) for held in (25, 19)]
    assert [(one.target, one.level, one.buy) for one in fixed] == [(20, 20, 0), (20, 50, 31)]
    assert planned(even(60), mode="fixed", min=20).buy == 20


def test_a_lot_is_bought_whole_if_it_is_sold_in_a_week() -> None:
    held = replace(USUAL, held=planned(even(1)).target - 1, lot=50)
    found = planned(even(1), held)
    assert (found.buy, found.level) == (50, held.held + 50)
    assert planned(even(1), replace(held, lot=500)).buy == 0
    assert planned(even(1), held, max=40).buy == 0


# --- what it is worth -------------------------------------------------------------------------------------------------


@pytest.fixture
def three_weeks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench on shorter traces."""
    monkeypatch.setattr(bench, "WEEKS", 3)


def tried(trace: str, seed: int) -> tuple[float, float]:
    """(money of the default, money of the frozen baseline) at the default's hit rate."""
    orders = bench.TRACES[trace](random.Random(seed))
    wanted = bench.targets(bench.default(), orders)
    rate, money = bench.together([(orders, wanted)])
    return money, bench.at_rate(rate, [(orders, [1.0] * len(wanted))])[0]


@pytest.mark.usefixtures("three_weeks")
def test_the_default_ties_up_less_money_than_the_baseline_at_an_equal_hit_rate() -> None:
    money, baseline = tried("launch peak", 7)
    assert money < 0.6 * baseline


@pytest.mark.usefixtures("three_weeks")
def test_a_planted_bug_costs_money(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with a rhythm that is never learned, the default is no better than a threshold."""
    monkeypatch.setattr(
        replenish, "season", lambda history, now: replace(season(History({}), now), rate=20.0, hour=int(now) // HOUR_S)
    )
    monkeypatch.setattr(
        replenish,
        "forecast",
        lambda history, usual, now, length: Demand(usual.rate * length / HOUR_S / history.batch, 500.0, {1: 1.0}),
    )
    money, baseline = tried("launch peak", 7)
    assert money > 0.9 * baseline


@pytest.mark.usefixtures("three_weeks")
def test_more_than_99_of_100_deliveries_come_from_the_vault_with_a_quick_supplier() -> None:
    assert bench.from_vault([11]) >= 0.99
