"""What is stored of offers, as operators and shops see it; and runs that do what a supplier can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from structlog.testing import capture_logs

from syncd import daemon
from syncd.adapter import (
    Adapter,
    BadResponse,
    Context,
    Money,
    NotForSale,
    Offer,
    Page,
    Promises,
    Pull,
    Settings,
    Stock,
    Transient,
)
from syncd.errors import ConflictError, NotFoundError
from syncd.inventory.catalogue import Catalogue
from syncd.inventory.sync import AlreadyRunningError

CONFIGURATION = """
[sync]
interval = "600s"
jitter = "0s"
[currency]
base = "CNY"
rates = { USD = "7" }
rates_date = 2026-11-01
[suppliers.alpha]
adapter = "feed"
folder = "feeds/alpha"
[suppliers.beta]
adapter = "feed"
folder = "feeds/beta"
[suppliers.off]
adapter = "feed"
folder = "feeds/off"
enabled = false
[products.steam]
title = "Steam"
max_cost = "70.00 CNY"
offers = [{ supplier = "alpha", sku = "s-1", refresh = "1s" }, { supplier = "beta", sku = "s-2" }]
[products.xbox]
offers = [{ supplier = "alpha", sku = "x-1" }]
[products.off]
offers = [{ supplier = "off", sku = "o-1" }]
[products.plain]
"""
PATIENCE_S = 60.0


def offer(sku: str, stock: Any = 5, price: str = "10.00", currency: str = "CNY", **more: Any) -> Offer:
    held = stock if isinstance(stock, Stock) else Stock.exact(stock)
    return Offer(sku, f"Title of {sku}", Money(Decimal(price), currency), held, **more)


class Shelf(Adapter):
    """A supplier that lists what it is told, and counts what it is asked."""

    listed: Sequence[Offer] | Exception = ()
    one: Offer | Exception | None = None
    balance: Money | Exception = Money(Decimal("88.50"), "CNY")

    def __init__(self, name: str) -> None:
        super().__init__(Context(name, Settings(), None))  # type: ignore[arg-type]
        self.asked: list[str] = []

    async def list_offers(self, since: datetime | None) -> AsyncIterator[Page]:
        self.asked.append("list" if since is None else "changes")
        if isinstance(self.listed, Exception):
            raise self.listed
        yield Page(list(self.listed), incremental=since is not None)

    async def get_offer(self, sku: str) -> Offer:
        self.asked.append(sku)
        if isinstance(self.one, Offer):
            return self.one
        raise self.one or NotForSale("gone")

    async def get_balance(self) -> Money:
        self.asked.append("balance")
        if isinstance(self.balance, Exception):
            raise self.balance
        return self.balance


class Both(Shelf):
    """Keys and offers from one supplier."""

    promises = Promises(incremental=True)
    keys: Callable[[Pull], Any]

    def pull_keys(self, pull: Pull) -> Any:
        return self.keys(pull)


class Market:
    """Two suppliers over a house with this configuration."""

    def __init__(self, house: Any) -> None:
        self.house = house
        self.alpha, self.beta = Both("alpha"), Shelf("beta")
        self.alpha.keys = lambda _pull: iter(())
        self.sync = house.sync_of({"alpha": self.alpha, "beta": self.beta})
        self.catalogue = Catalogue(house.database, lambda: house.settings)

    async def run(self, name: str = "alpha", by: str = "schedule") -> dict[str, Any]:
        return await self.over(await self.sync.start(name, by))

    async def over(self, run_id: int) -> dict[str, Any]:
        await asyncio.wait_for(asyncio.gather(*[run.task for run in self.sync._runs.values()]), PATIENCE_S)
        found: dict[str, Any] = self.sync.run(run_id)
        return found

    def upstream(self, sku: str) -> dict[str, Any]:
        with self.house.database.read() as connection:
            found = self.catalogue.upstream(connection, self.house.settings.products)[sku]
        return {name: value for name, value in found.items() if name != "at"}

    def listed(self, **asked: Any) -> list[str]:
        return [row["sku"] for row in self.catalogue.find(**asked)["offers"]]

    def state(self, name: str = "alpha") -> str:
        return str(next(row["state"] for row in self.sync.suppliers() if row["name"] == name))

    async def refresh(self) -> None:
        self.sync._asked_at.clear()
        self.house.tamper("UPDATE offer SET refresh_at = 1, seen_at = seen_at - 10")
        await self.sync.refresh()
        await asyncio.gather(*self.sync._asking.values())


@pytest.fixture
async def market(make_house: Callable[..., Any]) -> Any:
    made = Market(make_house(CONFIGURATION))
    await made.sync.open()
    yield made
    await made.sync.stop()
    for link in made.sync._links.values():
        link.close()


# --- runs -------------------------------------------------------------------------------------------------------------


async def test_one_run_takes_keys_offers_and_the_balance(market: Any, payload: Any) -> None:
    market.alpha.keys = lambda _pull: iter([payload("plain", "KEY-1\nKEY-2\n")])
    market.alpha.listed = [offer("s-1"), offer("x-1", 3)]
    run = await market.run()
    counts = {name: run[name] for name in ("error", "new", "offers", "offers_changed", "offers_removed")}
    assert counts == {"error": None, "new": 2, "offers": 2, "offers_changed": 2, "offers_removed": 0}
    row = market.sync.suppliers()[0]
    assert (row["state"], row["offers"], row["balance"]) == ("up", 2, "88.50 CNY")
    market.alpha.keys = lambda _pull: iter(())
    market.alpha.listed = [offer("s-1")]
    assert (await market.run())["offers_removed"] == 0  # a list of changes
    assert (await market.run(by="user root"))["offers_removed"] == 1
    assert market.alpha.asked == ["list", "balance", "changes", "balance", "list", "balance"]


async def test_P2_what_one_part_of_a_run_cannot_another_may(market: Any, payload: Any) -> None:
    market.alpha.keys = lambda _pull: iter([payload("plain", "KEY-1\n")])
    market.alpha.listed = BadResponse("it is HTML")
    run = await market.run()
    assert (run["new"], run["error"]) == (1, "it is HTML")
    assert "balance" not in market.alpha.asked  # of a supplier that does not answer it is not asked
    assert market.state() == "failing, 1 in a row"

    def closed(_pull: Pull) -> Any:
        raise Transient("closed today")

    market.alpha.keys, market.alpha.listed = closed, [offer("s-1")]
    run = await market.run()
    assert (run["offers"], run["error"]) == (1, "closed today")


async def test_a_balance_that_is_not_known_is_no_failure(market: Any) -> None:
    market.alpha.listed, market.alpha.balance = [offer("s-1")], BadResponse("no number")
    run = await market.run()
    assert run["error"] == "its balance is not known: no number"
    assert market.state() == "up"
    assert market.house.rows("SELECT failures FROM supplier WHERE name = 'alpha'") == [(0,)]


async def test_P1_a_held_listing_fails_its_run_and_is_accepted_by_the_operator(market: Any) -> None:
    market.alpha.listed = [offer(f"o-{number}") for number in range(10)]
    await market.run()
    with pytest.raises(ConflictError):
        await market.sync.accept("alpha", "user root")
    market.alpha.listed = []
    run = await market.run(by="user root")
    assert "the listing is empty, and 10 offers were known" in run["error"]
    assert market.state().startswith("up; listing held since 20")
    assert "the listing is empty" in market.state()
    with pytest.raises(NotFoundError):
        await market.sync.accept("nobody", "user root")
    accepted = await market.over(await market.sync.accept("alpha", "user root"))
    assert (accepted["error"], accepted["offers_removed"]) == (None, 10)
    assert market.state() == "up"
    market.house.verified()


async def test_an_acceptance_while_a_run_is_under_way_is_not_lost_in_it(market: Any) -> None:
    market.alpha.listed = [offer(f"o-{number}") for number in range(10)]
    await market.run()
    market.alpha.listed = []
    run = await market.sync.start("alpha", "schedule")
    with pytest.raises(AlreadyRunningError):
        await market.sync.accept("alpha", "user root")
    await market.over(run)


# --- offers that are asked for by themselves --------------------------------------------------------------------------


async def test_a_hot_offer_is_read_between_two_listings_and_no_other(market: Any) -> None:
    market.alpha.listed = [offer("s-1"), offer("x-1")]
    await market.run()
    market.alpha.one = offer("s-1", 2)
    await market.refresh()
    assert [sku for sku in market.alpha.asked if sku not in {"list", "balance"}] == ["s-1"]
    assert market.house.rows("SELECT sku, stock_quantity FROM offer ORDER BY sku") == [("s-1", 2), ("x-1", 5)]
    await market.sync.refresh()  # not due
    assert not market.sync._asking


async def test_P1_a_hot_offer_whose_price_jumps_is_held_and_only_a_listing_confirms_it(market: Any) -> None:
    market.alpha.listed = [offer("s-1")]
    await market.run()
    market.alpha.one = offer("s-1", price="0.10")
    for _ in range(3):
        await market.refresh()
        assert market.house.rows("SELECT price, held FROM offer") == [("10.00", "0.10 CNY")]
    assert "offers.held" in {kind for (kind,) in market.house.rows("SELECT kind FROM audit")}
    market.alpha.listed = [offer("s-1", price="0.10")]
    await market.run()
    assert market.house.rows("SELECT price, held FROM offer") == [("0.10", None)]


@pytest.mark.parametrize("answer", [Transient("closed"), BadResponse("HTML"), offer("another"), ZeroDivisionError()])
async def test_P1_a_hot_offer_that_cannot_be_read_stays_as_it_was(market: Any, answer: Any) -> None:
    market.alpha.listed = [offer("s-1")]
    await market.run()
    market.alpha.one = answer
    await market.refresh()
    assert market.house.rows("SELECT price, stock_quantity, for_sale FROM offer") == [("10.00", 5, True)]


async def test_a_hot_offer_that_is_no_longer_for_sale_is_not_removed(market: Any) -> None:
    market.alpha.listed = [offer("s-1")]
    await market.run()
    market.alpha.one = NotForSale("paused")
    await market.refresh()
    assert market.house.rows("SELECT for_sale, removed_at FROM offer") == [(False, None)]
    market.alpha.one = offer("s-1")
    await market.refresh()
    assert market.house.rows("SELECT for_sale FROM offer") == [(True,)]


async def test_K13_a_reading_that_somebody_else_has_taken_over_is_not_written(market: Any) -> None:
    market.alpha.listed = [offer("s-1")]
    await market.run()
    market.alpha.one = offer("s-1", 2)
    market.house.tamper("UPDATE offer SET refresh_at = 1, seen_at = seen_at - 10")
    await market.sync.refresh()
    market.house.tamper("UPDATE offer SET refresh_at = 2")  # another daemon claimed it meanwhile
    await asyncio.gather(*market.sync._asking.values())
    assert market.house.rows("SELECT stock_quantity FROM offer") == [(5,)]


# --- what shops see ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "beta", "seen"),
    [
        (offer("s-1", 5), offer("s-2", 3), {"kind": "exact", "quantity": 8}),
        (offer("s-1", 0), offer("s-2", 0), {"kind": "exact", "quantity": 0}),
        (offer("s-1", 5), offer("s-2", Stock.unlimited()), {"kind": "unlimited"}),
        (offer("s-1", 5), offer("s-2", Stock.coarse("low")), {"kind": "coarse", "level": "low"}),
        (offer("s-1", 5), offer("s-2", Stock.coarse("plenty")), {"kind": "coarse", "level": "plenty"}),
        (offer("s-1", 5), offer("s-2", Stock.coarse("out")), {"kind": "exact", "quantity": 5}),
        (offer("s-1", 5), offer("s-2", Stock.unknown()), {"kind": "exact", "quantity": 5}),
        (offer("s-1", 0), offer("s-2", Stock.unknown()), {"kind": "unknown"}),
        (offer("s-1", 5, for_sale=False), offer("s-2", 3), {"kind": "exact", "quantity": 3}),
        (offer("s-1", 5, "70.01"), offer("s-2", 3, "10.00", "USD"), {"kind": "exact", "quantity": 3}),
        (offer("s-1", 5, "1.00", "EUR"), offer("s-2", 3, "10.01", "USD"), {"kind": "exact", "quantity": 0}),
        (offer("s-1", 5), None, {"kind": "exact", "quantity": 5}),
        (offer("s-1", 0), None, {"kind": "unknown"}),
    ],
)
async def test_what_several_suppliers_hold_is_one_stock_and_unknown_is_not_zero(
    market: Any, alpha: Offer, beta: Offer | None, seen: dict[str, Any]
) -> None:
    market.alpha.listed = [alpha]
    await market.run()
    if beta:
        market.beta.listed = [beta]
        await market.run("beta")
    assert market.upstream("steam") == {**seen, "stale": False}


async def test_what_was_bought_since_it_was_listed_is_there_no_more(market: Any) -> None:
    market.alpha.listed = [offer("s-1", 9), offer("x-1", 5)]
    await market.run()
    ((seen,),) = market.house.rows("SELECT watermark FROM listing WHERE supplier = 'alpha'")
    bought = [
        (1, "fulfilled", 2, seen - 9),  # before: the listing knows of it
        (2, "fulfilled", 3, seen),
        (3, "unknown", 1, seen + 9),
        (4, "refused", 4, seen + 9),
        (5, "sent", 1, seen - 9),  # it may have taken effect at any time
    ]
    for number, state, units, at in bought:
        market.house.tamper(
            "INSERT INTO purchase (id, reference, supplier, sku, product, quantity, received, state, reason, asked_by,"
            " listed, spend, open_spend, tries, polls, epoch, created_at, sent_at) VALUES"
            f" ({number}, 'R{number}', 'alpha', 's-1', 'steam', {units}, 0, '{state}', '', 'delivery', '', 0, 0, 1, 0,"
            f" 0, {at}, {at})"
        )
    assert market.upstream("steam") == {"kind": "exact", "quantity": 4, "stale": False}
    assert market.upstream("xbox")["quantity"] == 5


async def test_products_without_offers_or_whose_supplier_is_off_or_never_listed(market: Any) -> None:
    assert market.upstream("plain") == {"kind": "none"}
    assert market.upstream("xbox") == {"kind": "unknown", "stale": True}
    assert market.upstream("off") == {"kind": "exact", "quantity": 0, "stale": True}
    market.alpha.listed = [offer("x-1"), offer("s-1")]
    await market.run()
    market.alpha.listed = [offer("s-1")]
    await market.run(by="user root")
    assert market.upstream("xbox") == {"kind": "exact", "quantity": 0, "stale": False}  # it is gone, for sure


async def test_P1_an_offer_older_than_two_intervals_is_not_believed(market: Any) -> None:
    market.alpha.listed = [offer("x-1", 5), offer("s-1", 5)]
    await market.run()
    age = int(time.time()) - 1201
    market.house.tamper(f"UPDATE offer SET seen_at = {age}", f"UPDATE listing SET watermark = {age}")
    assert market.upstream("xbox") == {"kind": "unknown", "stale": True}
    assert market.state().startswith("up; its offers are stale: last read 20")
    assert {row["stale"] for row in market.catalogue.find()["offers"]} == {True}
    known = market.catalogue.known()["alpha"]
    assert market.catalogue.stale("alpha", known)
    await market.run()  # a listing in which nothing changed says that all of it still holds
    assert market.upstream("xbox") == {"kind": "exact", "quantity": 5, "stale": False}
    age = int(time.time()) - 5
    market.house.tamper(f"UPDATE offer SET seen_at = {age}", f"UPDATE listing SET watermark = {age}")
    assert market.upstream("xbox")["stale"] is False
    assert market.upstream("steam") == {"kind": "unknown", "stale": True}  # a hot one: its interval is 1 s


async def test_P1_a_time_ahead_of_the_clock_makes_nothing_fresh(market: Any) -> None:
    market.alpha.listed = [offer("x-1", 5), offer("s-1", 5)]
    await market.run()
    market.house.tamper(
        "UPDATE offer SET seen_at = seen_at + 86400", "UPDATE listing SET watermark = watermark + 86400"
    )
    assert market.upstream("xbox") == {"kind": "unknown", "stale": True}
    assert market.catalogue.stale("alpha", market.catalogue.known()["alpha"])
    await market.run()  # nothing changed, so nothing of it is written: the listing alone is of now
    assert market.upstream("xbox") == {"kind": "exact", "quantity": 5, "stale": False}


async def test_P1_an_offer_that_is_held_grows_stale_though_its_listing_does_not(market: Any) -> None:
    market.alpha.listed = [offer("x-1", 5)]
    await market.run()
    market.house.tamper("UPDATE offer SET seen_at = seen_at - 1201")
    market.alpha.listed = [offer("x-1", 5, "0.10")]
    await market.run(by="user root")
    assert market.upstream("xbox") == {"kind": "unknown", "stale": True}
    assert market.state() == "up; 1 offers held"


# --- what operators see -----------------------------------------------------------------------------------------------


async def test_offers_are_found_by_supplier_product_and_words_page_by_page(market: Any) -> None:
    market.alpha.listed = [offer("s-1"), offer("x-1"), *(offer(f"n-{n:02d}_%") for n in range(20))]
    await market.run()
    market.beta.listed = [offer("s-2", 3, "10.00", "USD", tiers=((10, Money(Decimal("9.00"), "USD")),))]
    await market.run("beta")
    assert market.listed(supplier="beta") == ["s-2"]
    assert market.listed(product="steam") == ["s-1", "s-2"]
    assert market.listed(product="plain") == []
    assert market.listed(text="TITLE s-") == ["s-1", "s-2"]
    assert len(market.listed(text="_%")) == 20
    assert market.listed(text="' OR 1=1 --") == []
    found, after = [], ""
    while after is not None:
        page = market.catalogue.find(after=after, limit=7)
        found += [row["sku"] for row in page["offers"]]
        after = page["next"]
    assert sorted(found) == sorted(market.listed(limit=1000))
    assert len(found) == len(set(found)) == 23
    (row,) = market.catalogue.find(product="steam", supplier="beta")["offers"]
    assert row["cost"] == {"amount": "70.00", "currency": "CNY"}
    assert row["more"] == {"tiers": [[10, "9.00 USD"]]}
    assert row["products"] == ["steam"]
    for wrong in ({"supplier": "nobody"}, {"product": "nothing"}):
        with pytest.raises(NotFoundError):
            market.catalogue.find(**wrong)


async def test_offers_of_a_supplier_that_is_not_configured_any_more_are_kept_and_not_shown(market: Any) -> None:
    market.alpha.listed, market.beta.listed = [offer("s-1")], [offer("s-2")]
    for name in ("alpha", "beta"):
        await market.run(name)
    assert market.listed() == ["s-1", "s-2"]
    before = market.house.settings
    left = {name: one for name, one in before.suppliers.items() if name != "beta"}
    market.house.settings = before.model_copy(update={"suppliers": left})
    assert market.listed() == ["s-1"]
    market.house.settings = before
    assert market.listed() == ["s-1", "s-2"]


async def test_a_sku_that_a_product_names_and_the_supplier_does_not_list_is_said_once_in_the_log(market: Any) -> None:
    market.beta.listed = [offer("s-9")]
    with capture_logs() as logged:
        for _ in range(2):
            assert (await market.run("beta"))["error"] is None
    told = [(one["sku"], one["product"]) for one in logged if one["event"] == "offer_not_listed"]
    assert told == [("s-2", "steam")]
    market.beta.listed = [offer("s-2"), offer("s-9")]
    await market.run("beta")
    assert market.catalogue.unlisted("beta") == {}


async def test_the_history_of_an_offer_is_newest_first(market: Any) -> None:
    for price in ("10.00", "11.00", "12.00"):
        market.beta.listed = [offer("s-2", price=price)]
        await market.run("beta")
        market.house.tamper("UPDATE offer_history SET until_at = until_at - 10")
    assert [row["price"]["amount"] for row in market.catalogue.history("beta", "s-2")] == ["11.00", "10.00"]
    with pytest.raises(NotFoundError):
        market.catalogue.history("beta", "none")


def test_a_product_whose_supplier_cannot_list_is_a_problem_of_the_configuration(tmp_path: Any) -> None:
    file = tmp_path / "syncd.toml"
    file.write_text(CONFIGURATION)
    said = [str(problem) for problem in daemon.check(file)]
    none = "supplier alpha has no such offer: its adapter"
    assert any(f"products.xbox.offers: {none} " in line and "lists none -> name a supplier" in line for line in said)
    assert any(f"products.steam.offers: {none} " in line and "-> take refresh out" in line for line in said)
    assert not any("products.off" in line for line in said)  # it is switched off: nobody knows what it could do


# --- negative control -------------------------------------------------------------------------------------------------


async def test_control_a_stock_that_never_grows_stale_is_seen(market: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Catalogue, "_stale", lambda *_: False)
    with pytest.raises(AssertionError):
        await test_P1_an_offer_older_than_two_intervals_is_not_believed(market)


async def test_control_a_refresh_that_confirms_is_seen(market: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncd.inventory.offers.jump", lambda *_: ("", 1.0))
    with pytest.raises(AssertionError):
        await test_P1_a_hot_offer_whose_price_jumps_is_held_and_only_a_listing_confirms_it(market)
