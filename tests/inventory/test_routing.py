"""`syncd.inventory.routing`: whatever is offered, the decision keeps to every limit and prefers what is better."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.adapter import Offer, Stock
from syncd.inventory import routing
from syncd.inventory.routing import MOST_ORDERS, Candidate, Pick, Route, defect_rate, route
from syncd.model import Money


def cny(amount: str) -> Money:
    return Money(Decimal(amount), "CNY")


def one(supplier: str = "wang", price: str | None = "10", stock: Stock | int = 100, **changes: object) -> Candidate:
    names = set(Offer.__dataclass_fields__)
    offer = Offer(
        sku="S",
        title="T",
        price=None if price is None else cny(price),
        stock=stock if isinstance(stock, Stock) else Stock.exact(stock),
        **{name: value for name, value in changes.items() if name in names},  # type: ignore[arg-type]
    )
    plain = Candidate(
        supplier,
        offer,
        Decimal(1),
        stale=False,
        gone=False,
        held=False,
        health="up",
        priority=0,
        defects=0,
        budget=None,
    )
    return replace(plain, **{name: value for name, value in changes.items() if name not in names})  # type: ignore[arg-type]


def taken(found: Route) -> list[tuple[str, int]]:
    return [(pick.candidate.supplier, pick.quantity) for pick in found.picks]


amounts = st.integers(0, 5000).map(lambda cents: Decimal(cents) / 100)
stocks = st.one_of(
    st.integers(0, 60).map(Stock.exact),
    st.sampled_from([Stock.unlimited(), Stock.unknown(), *(Stock.coarse(level) for level in ("out", "low", "plenty"))]),  # type: ignore[arg-type]
)


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    price = draw(st.none() | amounts)
    starts = sorted(draw(st.sets(st.integers(1, 40), max_size=3)))
    return Offer(
        sku=draw(st.sampled_from(["a", "b"])),
        title="T",
        price=None if price is None else Money(price, "CNY"),
        stock=draw(stocks),
        for_sale=draw(st.booleans() | st.just(True)),
        min_quantity=draw(st.just(1) | st.integers(1, 12)),
        max_quantity=draw(st.none() | st.integers(1, 40)),
        step=draw(st.just(1) | st.integers(1, 7)),
        tiers=tuple((start, Money(draw(amounts), "CNY")) for start in starts),
    )


rarely = st.sampled_from([False, False, False, False, True])
candidates = st.builds(
    Candidate,
    supplier=st.sampled_from(["wang", "li", "zhao"]),
    offer=offers(),
    rate=st.none() | st.sampled_from([Decimal(1), Decimal("7.12"), Decimal("0.0493")]),
    stale=rarely,
    gone=rarely,
    held=rarely,
    health=st.sampled_from(["up", "up", "up", "failing", "down", "stopped", "cannot_buy", "not_configured"]),
    priority=st.integers(-5, 5),
    defects=st.just(0.0) | st.floats(0, 1),
    budget=st.none() | st.decimals(-10, 400, places=2),
)
listings = st.lists(candidates, max_size=6, unique_by=lambda each: (each.supplier, each.offer.sku))


@given(st.integers(-1, 300), listings, st.none() | amounts, st.sets(st.sampled_from([("wang", "a"), ("li", "b")])))
def test_M4_a_route_is_total_and_never_goes_over_stock_limits_or_budget(
    quantity: int, listing: list[Candidate], max_cost: Decimal | None, without: set[tuple[str, str]]
) -> None:
    found = route(quantity, listing, max_cost=max_cost, without=without)
    assert found == route(quantity, listing, max_cost=max_cost, without=without)
    assert taken(found) == taken(route(quantity, listing[::-1], max_cost=max_cost, without=without))
    assert sum(pick.quantity for pick in found.picks) + found.short == max(0, quantity)
    assert len(found.picks) <= MOST_ORDERS
    assert [verdict.candidate for verdict in found.verdicts] == listing
    assert all(verdict.reason for verdict in found.verdicts)
    spent: dict[str, Decimal] = {}
    units: dict[int, int] = {}
    for pick in found.picks:
        each, offer = pick.candidate, pick.candidate.offer
        spent[each.supplier] = spent.get(each.supplier, Decimal(0)) + pick.quantity * pick.landed
        units[id(each)] = units.get(id(each), 0) + pick.quantity
        assert each.health in ("up", "failing")
        assert not any((each.stale, each.gone, each.held))
        assert offer.for_sale
        assert (each.supplier, offer.sku) not in without
        assert offer.min_quantity <= pick.quantity <= (offer.max_quantity or pick.quantity)
        assert pick.quantity % offer.step == 0
        prices = [offer.price, *(price for least, price in offer.tiers if pick.quantity >= least)]
        assert pick.unit_cost == prices[-1]
        assert pick.landed == pick.unit_cost.amount * (each.rate or 0)
        assert max_cost is None or pick.landed <= max_cost
        assert offer.stock.level != "out"
        assert offer.stock.quantity is None or units[id(each)] <= offer.stock.quantity
        assert next(v for v in found.verdicts if v.candidate is each).usable
    for each in listing:
        if each.budget is not None:
            assert spent.get(each.supplier, 0) <= max(each.budget, Decimal(0))


@given(
    st.integers(1, 200),
    candidates,
    st.lists(candidates, max_size=3),
    st.sampled_from(["price", "stock", "defects", "priority", "health"]),
)
def test_a_strictly_better_candidate_never_loses(
    quantity: int, worse: Candidate, others: list[Candidate], how: str
) -> None:
    price = worse.offer.price or cny("5")
    plain = replace(
        worse,
        supplier="worse",
        budget=None,
        priority=0,
        health="up",
        defects=0.1,
        offer=replace(worse.offer, price=price, tiers=(), sku="x", stock=Stock.unknown()),
    )
    better = replace(plain, supplier="better")
    if how == "price":
        better = replace(better, offer=replace(better.offer, price=Money(price.amount / 2, "CNY")))
        plain = replace(plain, offer=replace(plain.offer, price=Money(price.amount + 1, "CNY")))
    elif how == "stock":
        better = replace(better, offer=replace(better.offer, stock=Stock.unlimited()))
    elif how == "defects":
        better = replace(better, defects=0.0)
    elif how == "priority":
        better = replace(better, priority=1)
    else:
        plain = replace(plain, health="failing")
    rest = [replace(other, supplier=f"o{number}") for number, other in enumerate(others)]
    found = route(quantity, [plain, *rest, better], max_cost=None)
    assert plain not in [pick.candidate for pick in found.picks], how


def test_the_cheapest_in_the_base_currency_is_ordered_with_its_tier() -> None:
    dollars = one("li", None, tiers=((10, Money(Decimal("1.30"), "USD")),), rate=Decimal(7))
    dollars = replace(dollars, offer=replace(dollars.offer, price=Money(Decimal("1.50"), "USD")))
    assert taken(route(9, [one("wang", "10"), dollars], max_cost=None)) == [("wang", 9)]
    found = route(10, [one("wang", "10"), dollars], max_cost=None)
    assert [(p.candidate.supplier, p.quantity, p.unit_cost, p.landed) for p in found.picks] == [
        ("li", 10, Money(Decimal("1.30"), "USD"), Decimal("9.10"))
    ]


def test_an_order_is_split_when_one_is_short_and_the_rest_is_named() -> None:
    found = route(12, [one("wang", "10", 5), one("li", "9", 4)], max_cost=None)
    assert taken(found) == [("li", 4), ("wang", 5)]
    assert found.short == 3


def test_an_offer_with_a_limit_of_one_order_is_ordered_from_again() -> None:
    assert taken(route(25, [one(max_quantity=10)], max_cost=None)) == [("wang", 10), ("wang", 10), ("wang", 5)]
    many = route(25, [one(max_quantity=1)], max_cost=None)
    assert (len(many.picks), many.short) == (MOST_ORDERS, 25 - MOST_ORDERS)


def test_units_go_over_to_an_offer_that_sells_no_fewer() -> None:
    found = route(12, [one("wang", "9", 10), one("li", "10", min_quantity=5)], max_cost=None)
    assert taken(found) == [("wang", 7), ("li", 5)]
    assert found.short == 0


def test_P1_unknown_stock_is_not_zero_and_comes_after_known_stock_of_like_cost() -> None:
    unknown = one("li", "10", Stock.unknown())
    assert taken(route(3, [unknown], max_cost=None)) == [("li", 3)]
    assert taken(route(3, [unknown, one("wang", "10.30")], max_cost=None)) == [("wang", 3)]
    assert taken(route(3, [unknown, one("wang", "11")], max_cost=None)) == [("li", 3)]
    low = one("zhao", "10", Stock.coarse("low"))
    assert taken(route(3, [unknown, low], max_cost=None)) == [("zhao", 3)]


def test_defects_are_paid_for() -> None:
    bad = one("wang", "9.50", defects=defect_rate(30, 300))
    assert taken(route(1, [bad, one("li", "10", defects=defect_rate(1, 300))], max_cost=None)) == [("li", 1)]
    assert defect_rate(0, 0) == pytest.approx(0.01)
    assert 0 < defect_rate(0, 10**6) < defect_rate(1, 10) < defect_rate(10, 10) < 1


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (one(health="down"), "down"),
        (one(health="stopped"), "until its configuration changes"),
        (one(health="cannot_buy"), "cannot order"),
        (one(health="not_configured"), "not configured"),
        (one(gone=True), "gone"),
        (one(stale=True), "too old"),
        (one(held=True), "confirmed"),
        (one(for_sale=False), "not for sale"),
        (one(stock=0), "out of stock"),
        (one(stock=Stock.coarse("out")), "out of stock"),
        (one(price=None), "not known"),
        (one(rate=None), "rate for CNY"),
        (one(tiers=((5, Money(Decimal(1), "USD")),)), "several currencies"),
        (one(defects=1.0), "defective"),
        (one(min_quantity=10), "10 or more"),
        (one(min_quantity=3, step=2), "4 or more"),
        (one(stock=3, min_quantity=4), "4 or more at once, and has 3"),
        (one(price="10.01"), "max_cost is 10.00"),
        (one(budget=Decimal("9.99")), "allows 9.99 more"),
        (one(max_quantity=1, step=2), "no order of it fits"),
    ],
)
def test_each_reason_why_an_offer_is_not_used_is_said(candidate: Candidate, reason: str) -> None:
    quantity = 5 if candidate.offer.stock.quantity == 3 else 3
    found = route(quantity, [candidate], max_cost=Decimal(10))
    assert found.picks == ()
    assert found.short == quantity
    assert not found.verdicts[0].usable
    assert reason in found.verdicts[0].reason


def test_what_refused_is_left_out_and_every_verdict_is_in_words() -> None:
    cheap, dear = one("wang", "9", priority=2), one("li", "10", Stock.unknown(), health="failing", defects=0.25)
    found = route(2, [cheap, dear], max_cost=None)
    chosen, other = (verdict.reason for verdict in found.verdicts)
    assert chosen == "chosen: 2 at 9 CNY (priority 2)"
    assert other.startswith("not needed: others are cheaper")
    assert "(25.0% of its supplier's keys were defective, its stock is not known, its supplier falters)" in other
    again = route(2, [cheap, dear], max_cost=None, without={("wang", "S")})
    assert taken(again) == [("li", 2)]
    assert again.verdicts[0].reason == "it refused just now"


def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a route that takes the dearest first, or forgets what it took, breaks the promises above."""
    monkeypatch.setattr(routing, "_reckoned", lambda pick: -pick.landed)
    assert taken(route(1, [one("wang", "9"), one("li", "10")], max_cost=None)) == [("li", 1)]
    monkeypatch.undo()
    monkeypatch.setattr(routing._Stage, "use", lambda _self, _pick, _sign=1: None)
    over = route(12, [one("wang", "10", 5)], max_cost=None)
    assert sum(pick.quantity for pick in over.picks) > 5
    assert isinstance(over.picks[0], Pick)
