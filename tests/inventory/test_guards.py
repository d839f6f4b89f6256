"""What must be true before money leaves (M4), as a function of data. In the intent's transaction: test_purchase.py."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd import config
from syncd.inventory.guards import (
    Account,
    Facts,
    Spent,
    Wish,
    amount_of,
    ceiling,
    forbids,
    micro,
    rate_of,
    room,
)
from syncd.model import Money

NOW = datetime(2026, 11, 20, tzinfo=UTC).timestamp()
NOTHING = Facts(Spent(), last=None, account=Account(), disputes=0, free=1 << 40, fenced=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guards")


def settings(folder: Path, *, product: str = "", supplier: str = "", purchases: str = "", rates: str = "") -> Any:
    file = folder / "syncd.toml"
    file.write_text(
        f'[currency]\nrates = {{ EUR = "8", USD = "7" }}\nrates_date = {rates or "2026-11-18"}\n'
        f'[purchases]\n{purchases}\n[suppliers.alpha]\nadapter = "feed"\nfolder = "x"\n{supplier}\n'
        f"[products.game]\n{product}\n"
    )
    return config.load(file)


def wish(found: Any, price: str = "2 CNY", quantity: int = 1, **more: Any) -> Wish:
    return Wish("alpha", found.products["game"], Money.parse(price), quantity, **more)


def money(text: str) -> Money:
    return Money.parse(text)


@pytest.mark.parametrize(
    ("table", "price", "facts", "code", "says"),
    [
        ({"product": 'max_cost = "2 CNY"'}, "2.01 CNY", {}, "max_cost", "max_cost is 2 CNY"),
        ({"product": 'max_cost = "1 EUR"'}, "8.01 CNY", {}, "max_cost", "max_cost is 1 EUR"),
        ({"product": 'max_cost = "8 CNY"'}, "1.01 EUR", {}, "max_cost", "costs 1.01 EUR"),
        ({"product": 'price = "10 CNY"\nmin_margin = 10'}, "9.01 CNY", {}, "margin", "min_margin 10 %"),
        ({"product": 'price = "10 CNY"'}, "10.01 CNY", {}, "margin", "sold at 10 CNY"),
        ({}, "4.01 CNY", {"last": money("2 CNY")}, "jump", "last bought at 2 CNY"),
        ({}, "0.51 EUR", {"last": money("2 CNY")}, "jump", "max_jump is 2"),
        ({}, "2 GBP", {}, "rate", "no rate for GBP"),
        ({"rates": "2026-11-01"}, "2 EUR", {}, "rate", "2026-11-01"),
        ({"rates": "2026-11-01", "product": 'max_cost = "1 EUR"'}, "2 CNY", {}, "rate", "too old"),
        ({}, "2 CNY", {"free": (64 << 20) - 1}, "disk", "63 MiB are free"),
        ({}, "2 CNY", {"fenced": True}, "restored", "syncd recover"),
        ({}, "2 CNY", {"disputes": 3}, "disputes", "3 purchases"),
        ({"supplier": 'budget_hour = "5 CNY"'}, "2 CNY", {"spent": Spent(hour=3_000_000)}, "budget", "2.00 CNY more"),
        ({"supplier": 'budget_day = "5 CNY"'}, "2 CNY", {"spent": Spent(day=3_000_000)}, "budget", "alpha.budget_day"),
        ({"purchases": 'budget_hour = "5 CNY"'}, "2 CNY", {"spent": Spent(all_hour=3_000_000)}, "budget", "purchases"),
        ({"purchases": 'budget_day = "1 EUR"'}, "2 CNY", {"spent": Spent(all_day=6_000_000)}, "budget", "2.00 CNY"),
        ({"supplier": 'min_balance = "5 CNY"'}, "2 CNY", {}, "balance", "not known"),
        (
            {"supplier": 'min_balance = "5 CNY"'},
            "2 CNY",
            {"account": Account(money("9 CNY"), 2_000_000)},
            "balance",
            "holds 7.00 CNY",
        ),
    ],
)
def test_M4_a_guard_says_no_and_which_it_is(
    folder: Path, table: dict[str, str], price: str, facts: dict[str, Any], code: str, says: str
) -> None:
    found = settings(folder, **table)
    known = Facts(**{**{name: getattr(NOTHING, name) for name in NOTHING.__slots__}, **facts})
    said = forbids(found, wish(found, price), known, NOW)
    assert said is not None
    assert said.code == code
    assert says in said.why


def test_M4_what_every_guard_allows_passes(folder: Path) -> None:
    found = settings(
        folder,
        product='max_cost = "2 CNY"\nprice = "3 CNY"\nmin_margin = 10',
        supplier='budget_hour = "5 CNY"\nmin_balance = "5 CNY"',
        purchases='budget_day = "5 CNY"\nslippage = 0',
    )
    known = Facts(
        Spent(1_000_000, 1_000_000, 1_000_000, 1_000_000),
        money("1 CNY"),
        Account(money("9 CNY")),
        2,
        1 << 40,
        fenced=False,
    )
    assert forbids(found, wish(found, "2 CNY", 2), known, NOW) is None
    assert forbids(found, wish(found, "2 CNY", 3), known, NOW) is not None


def test_M4_a_second_purchase_of_unknown_units_has_a_budget_of_its_own(folder: Path) -> None:
    found = settings(folder, purchases='cover_unknown_after = "10m"\ncover_budget_day = "3 CNY"')
    used = Facts(Spent(cover_day=2_000_000), None, Account(), 0, 1 << 40, fenced=False)
    assert forbids(found, wish(found), used, NOW) is None
    said = forbids(found, wish(found, covers=True), used, NOW)
    assert said is not None
    assert "cover_budget_day" in said.why


def test_M4_what_is_counted_already_is_not_counted_twice_when_it_is_sent_again(folder: Path) -> None:
    found = settings(folder, supplier='budget_hour = "2.10 CNY"')
    used = Facts(Spent(hour=2_100_000), None, Account(), 0, 1 << 40, fenced=False)
    assert forbids(found, wish(found), used, NOW) is not None
    assert forbids(found, wish(found), used, NOW, counted=True) is None


@pytest.mark.parametrize(
    ("table", "price", "last", "limit"),
    [
        ({}, "2 CNY", None, "2.10 CNY"),
        ({"purchases": "slippage = 0"}, "2 CNY", None, "2.00 CNY"),
        ({"product": 'max_cost = "2.05 CNY"'}, "2 CNY", None, "2.05 CNY"),
        ({"product": 'max_cost = "16.20 CNY"'}, "2 EUR", None, "2.02 EUR"),  # converted, and rounded down
        ({"product": "max_jump = 1.01"}, "2 CNY", "2 CNY", "2.02 CNY"),
        ({"product": 'price = "2.04 CNY"'}, "2 CNY", None, "2.04 CNY"),
        ({}, "0.0012 CNY", None, "0.0012 CNY"),
    ],
)
def test_M4_the_limit_is_the_least_of_all_in_the_offers_currency(
    folder: Path, table: dict[str, str], price: str, last: str | None, limit: str
) -> None:
    found = settings(folder, **table)
    assert str(ceiling(found, wish(found, price), money(last) if last else None, NOW)) == limit


amounts = st.decimals("0.01", "1000", places=2)


@given(price=amounts, cost=amounts, quantity=st.integers(1, 50), budget=amounts, used=st.integers(0, 10**9))
def test_M4_no_order_that_passes_can_cost_more_than_its_limits(
    folder: Path, price: Decimal, cost: Decimal, quantity: int, budget: Decimal, used: int
) -> None:
    found = settings(folder, product=f'max_cost = "{cost} CNY"', supplier=f'budget_hour = "{budget} CNY"')
    asked = wish(found, f"{price} CNY", quantity)
    known = Facts(Spent(hour=used), None, Account(), 0, 1 << 40, fenced=False)
    if forbids(found, asked, known, NOW) is None:
        most = ceiling(found, asked, None, NOW)
        assert most is not None
        assert asked.unit.amount <= most.amount <= cost
        assert used + micro(most.amount * quantity) <= micro(budget)


def test_M4_rates_have_an_age(folder: Path) -> None:
    found = settings(folder)
    assert rate_of(found, "CNY", NOW) == 1
    assert rate_of(found, "EUR", NOW) == 8
    assert rate_of(found, "EUR", NOW + 6 * 86400) is None


def test_what_may_still_be_ordered(folder: Path) -> None:
    found = settings(folder, supplier='budget_hour = "5 CNY"\nmin_balance = "1 CNY"')
    assert room(found, "alpha", Spent(hour=2_000_000), Account(money("9 CNY"))) == 3
    assert room(found, "alpha", Spent(), Account(money("9 CNY"), 6_000_000)) == 2
    assert room(found, "beta", Spent(), Account()) is None


def test_millionths_are_rounded_up_and_shown_plainly() -> None:
    assert micro(Decimal("0.0000001")) == 1
    assert [str(amount_of(number)) for number in (0, 2_500_000, 1_234_567)] == ["0.00", "2.50", "1.234567"]
