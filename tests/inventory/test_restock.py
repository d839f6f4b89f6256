"""`syncd.inventory.restock`: demand is recorded once, targets follow, what lacks is bought once; on both engines."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from syncd.adapter import Transient
from syncd.errors import LeaseLostError, NotFoundError
from syncd.inventory import restock as module
from syncd.inventory.restock import Restock
from syncd.model import id_at
from tests.inventory.test_purchase import CONFIGURATION, Clockwork, Desk, Seller, refuses

CACHED = CONFIGURATION.replace('on_shortage = "buy"', 'on_shortage = "buy"\ncache = { mode = "fixed", min = 5 }')
POPULAR = CONFIGURATION.replace('on_shortage = "buy"', 'on_shortage = "buy"\ncache = { mode = "popular", max = 30 }')


class Shelf(Desk):
    """A desk whose products are kept in stock."""

    numbers = itertools.count()

    def __init__(self, house: Any, clock: Clockwork, *sellers: Seller) -> None:
        super().__init__(house, clock, *sellers)
        for seller in sellers:
            self.list(seller.context.name, seller.context.name[0], str(seller.price))
        self.restock = self.another()

    def another(self) -> Restock:
        return Restock(self.house.writer, lambda: self.house.settings, self.purchases, self.links)

    def order(self, *times: float, quantity: int = 1, state: str = "delivered") -> None:
        rows = [
            f"({id_at(at) + number % 4000}, 's', 'o{number}', 'game', {quantity}, '{state}', {int(at)})"
            for at, number in zip(times, self.numbers, strict=False)
        ]
        self.house.tamper(
            "INSERT INTO delivery (id, shop, order_ref, product, quantity, state, created_at) VALUES " + ", ".join(rows)
        )

    def evenly(self, per_hour: int) -> None:
        """So many orders an hour for three days."""
        self.order(*(self.clock.now() - 30 - number * 3600 / per_hour for number in range(72 * per_hour)))

    def sell(self, units: int) -> None:
        self.house.tamper(
            "UPDATE vault_key SET state = 'delivered' WHERE id IN"
            f" (SELECT id FROM vault_key WHERE state = 'available' ORDER BY id LIMIT {units})"
        )

    async def bought(self) -> None:
        while self.restock._tasks:
            await asyncio.gather(*self.restock._tasks)

    @property
    def available(self) -> int:
        return len(self.house.rows("SELECT id FROM vault_key WHERE state = 'available'"))


@pytest.fixture
def shelf(make_house: Any) -> Iterator[Any]:
    """Opens a shelf over sellers, on a fresh database of each engine."""
    opened: list[Shelf] = []

    def make(*sellers: Seller, configuration: str = CACHED) -> Shelf:
        opened.append(Shelf(make_house(configuration), Clockwork(), *sellers))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


# --- demand -----------------------------------------------------------------------------------------------------------


async def test_each_delivery_is_recorded_once_in_its_hour(shelf: Any) -> None:
    one = shelf(Seller())
    now = one.clock.now()
    hour = int(now) // 3600
    one.order(now - 3 * 3600, quantity=2)
    one.order(now - 3 * 3600, 1)
    one.order(now - 60, state="pending")
    one.order(now - 3)  # may not be the last one of its moment
    for _ in range(2):
        await one.restock.tick()
        await one.bought()
    assert one.house.rows("SELECT hour, ordered, missed FROM demand ORDER BY hour") == [
        (hour - 3, 3, 0),
        ((int(now) - 60) // 3600, 1, 0),
    ]
    one.clock.wait(60)
    await one.restock.tick()
    assert one.house.rows("SELECT sum(ordered) FROM demand") == [(5,)]
    sizes = one.house.rows("SELECT quantity, sum(orders) FROM demand_size GROUP BY quantity ORDER BY quantity")
    assert sizes == [(1, 3), (2, 1)]


async def test_many_deliveries_are_recorded_a_chunk_at_a_time(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 3)
    one = shelf(Seller())
    one.order(*[one.clock.now() - 100] * 10)
    await one.restock.tick()
    await one.bought()
    assert one.house.rows("SELECT sum(ordered) FROM demand") == [(10,)]


async def test_a_refused_order_is_a_lost_sale_once_an_hour(shelf: Any) -> None:
    one = shelf(Seller())
    for _ in range(3):
        one.restock.refused("game", 2, ("shop", "A"))
    one.restock.refused("game", 1, ("shop", "B"))
    one.restock.refused("nothing", 1, ("shop", "C"))
    await one.restock.tick()
    one.clock.wait(3600)
    one.restock.refused("game", 2, ("shop", "A"))
    await one.restock.stop()
    await one.bought()
    rows = one.house.rows("SELECT product, missed, ordered FROM demand ORDER BY hour")
    assert rows == [("game", 3, 0), ("game", 2, 0)]


async def test_what_is_old_is_forgotten(shelf: Any) -> None:
    one = shelf(Seller())
    one.order(one.clock.now() - 7200)
    await one.restock.tick()
    one.clock.wait(9 * 7 * 86400)
    one.order(one.clock.now() - 7200)
    await one.restock.tick()
    await one.bought()
    assert one.house.rows("SELECT ordered FROM demand") == one.house.rows("SELECT orders FROM demand_size") == [(1,)]


async def test_D3_what_was_taken_over_records_nothing_more(shelf: Any) -> None:
    one = shelf(Seller())
    one.order(one.clock.now() - 100)
    first = await one.house.writer.submit(module.TAKE, ("replenish", "first", 60.0))
    assert await one.house.writer.submit(module.TAKE, ("replenish", "second", 60.0)) is None
    one.house.tamper("UPDATE job SET leased_until = 1")
    second = await one.house.writer.submit(module.TAKE, ("replenish", "second", 60.0))
    assert second.epoch == first.epoch + 1
    upto = id_at(one.clock.now())
    with pytest.raises(LeaseLostError):
        await one.house.writer.submit(one.restock._record, (first, upto))
    assert one.house.rows("SELECT * FROM demand") == []
    assert await one.house.writer.submit(one.restock._record, (second, upto)) == 1
    assert await one.house.writer.submit(one.restock._record, (second, upto)) == 0


async def test_one_of_two_daemons_records_and_buys(shelf: Any) -> None:
    seller = Seller()
    one = shelf(seller)
    other = one.another()
    one.order(one.clock.now() - 100)
    await asyncio.gather(one.restock.tick(), other.tick())
    await one.bought()
    await asyncio.gather(*other._tasks)
    assert one.house.rows("SELECT sum(ordered) FROM demand") == [(1,)]
    assert (one.available, sum(seller.charges.values())) == (5, 1)
    await other.stop()


# --- buying -----------------------------------------------------------------------------------------------------------


async def test_what_lacks_is_bought_once_and_up_to_the_target(shelf: Any) -> None:
    seller = Seller()
    one = shelf(seller)
    for _ in range(3):
        await one.restock.tick()
        await one.bought()
    assert (one.available, sum(seller.charges.values())) == (5, 1)
    shown = one.restock.plans["game"].shown()
    assert (shown["target"], shown["held"], shown["would_buy"], shown["mode"]) == (5, 5, 0, "fixed")
    assert one.row().asked_by == "replenish"


async def test_a_popular_product_is_held_by_what_is_asked_for(shelf: Any) -> None:
    one = shelf(Seller(), configuration=POPULAR)
    one.evenly(6)
    await one.restock.tick()
    await one.bought()
    plan = one.restock.plans["game"].plan
    assert 3 <= plan.target <= 12
    assert one.available == plan.target
    assert plan.per_day == pytest.approx(6 * 24, rel=0.35)


async def test_a_sale_below_the_target_is_topped_up_at_once(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seller = Seller()
    one = shelf(seller)
    await one.restock.tick()
    await one.bought()
    one.sell(3)
    looked = asyncio.Event()
    look = one.restock._look
    monkeypatch.setattr(one.restock, "_look", lambda: (look(), looked.set()))
    for _ in range(3):
        one.restock.sold("game")
    one.restock.sold("nothing")
    await looked.wait()
    await one.bought()
    assert one.available == 5
    assert [order.quantity for order in seller.seen] == [5, 3]


async def test_what_nobody_sells_is_left_alone_until_the_next_minute(shelf: Any) -> None:
    seller = Seller()
    one = shelf(seller)
    one.list("alpha", "a", None)
    await one.restock.tick()
    await one.bought()
    assert "game" in one.restock._resting
    one.list("alpha", "a", "2")
    one.restock.sold("game")
    one.restock._timer.cancel()
    one.restock._look()
    await one.bought()
    assert seller.seen == []
    await one.restock.tick()
    await one.bought()
    assert one.available == 5


async def test_a_listing_is_when_it_is_looked_at_again_whoever_holds_the_lease(shelf: Any) -> None:
    one = shelf(Seller())
    other = one.another()
    one.list("alpha", "a", None)
    await other.tick()
    await one.restock.tick()
    await one.bought()
    assert one.available == 0
    one.list("alpha", "a", "2")
    one.restock.listed()
    await one.bought()
    assert one.available == 5
    await other.stop()


async def test_what_orders_wait_for_is_bought_beside_the_target(shelf: Any) -> None:
    one = shelf(Seller())
    one.order(one.clock.now() - 100, quantity=2, state="pending")
    await one.restock.tick()
    await one.bought()
    assert one.available == 7
    assert one.restock.plans["game"].at.owed == 2


async def test_several_products_are_bought_beside_each_other(shelf: Any) -> None:
    more = "".join(
        f'\n[products.p{n}]\nformat = "steam"\ncache = {{ mode = "fixed", min = 2 }}\n'
        f'offers = [{{ supplier = "beta", sku = "p{n}" }}]\n'
        for n in range(3)
    )
    beta = Seller("beta")
    one = shelf(beta, configuration=CACHED + more)
    for n in range(3):
        one.list("beta", f"p{n}", "1")
    got = await one.restock.run()
    assert {sku: outcome.bought for sku, outcome in got.items()} == {"game": 5, "p0": 2, "p1": 2, "p2": 2}
    assert await one.restock.run() == {}


async def test_a_budget_of_the_cache_bounds_what_is_held(shelf: Any) -> None:
    budget = POPULAR.replace("max = 30", 'max = 30, budget = "7 CNY"')
    one = shelf(Seller(), configuration=budget)
    one.evenly(9)
    await one.restock.tick()
    await one.bought()
    assert one.available == 3
    assert any("cache.budget" in why for why in one.restock.plans["game"].plan.why)


async def test_lead_times_and_the_life_of_keys_are_learned(shelf: Any) -> None:
    one = shelf(Seller(), configuration=POPULAR)
    await one.purchases.buy("game", 4, asked_by="operator")
    one.house.tamper("UPDATE purchase SET sent_at = closed_at - 500")
    ends = int(one.clock.now()) + 7200
    one.house.tamper(f"UPDATE vault_key SET expires_at = {ends}")
    at = one.restock.planned("game").at
    assert (at.lead_s, at.life_s, at.held) == (500, pytest.approx(7200, abs=1), 4)


# --- explaining -------------------------------------------------------------------------------------------------------


async def test_explain_tells_why_the_cheaper_one_is_not_asked(shelf: Any) -> None:
    cheap, dear = Seller("alpha", price="1"), Seller("beta", price="2")
    one = shelf(cheap, dear)
    found = one.restock.explain("game")
    assert [(row["supplier"], row["quantity"]) for row in found["offers"]] == [("alpha", 5), ("beta", 0)]
    assert found["offers"][1]["reason"].startswith("not needed")
    one.list("alpha", "a", "1", held="0.01")
    found = one.restock.explain("game", 3)
    assert [(row["supplier"], row["quantity"], row["usable"]) for row in found["offers"]] == [
        ("alpha", 0, False),
        ("beta", 3, True),
    ]
    assert "confirmed" in found["offers"][0]["reason"]
    assert (found["target"], found["would_buy"], found["quantity"], found["short"]) == (5, 5, 3, 0)
    assert found["offers"][1]["cost"] == "2.00"


async def test_explain_tells_what_is_too_dear_and_knows_its_products(shelf: Any) -> None:
    one = shelf(Seller(price="11"))
    (row,) = one.restock.explain("game")["offers"]
    assert "max_cost is 10.00" in row["reason"]
    with pytest.raises(NotFoundError):
        one.restock.explain("nothing")


async def test_a_supplier_that_refuses_leaves_the_rest_to_the_next(shelf: Any) -> None:
    alpha, beta = Seller("alpha", price="1"), Seller("beta", price="2")
    one = shelf(alpha, beta)
    alpha.plans.append(refuses())
    await one.restock.tick()
    await one.bought()
    assert (len(alpha.charges), one.available) == (0, 5)


async def test_M1_what_is_unknown_counts_as_on_order(shelf: Any) -> None:
    seller = Seller()
    one = shelf(seller)

    def lost(_order: Any) -> Any:
        raise Transient("reset by peer")

    seller.plans.append(lost)
    for _ in range(3):
        await one.restock.tick()
        await one.bought()
    assert len(seller.seen) == 1
    assert one.restock.plans["game"].at.on_order == 5


async def test_a_planted_bug_is_found(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a watermark that is not kept counts every delivery again."""
    one = shelf(Seller())
    one.order(one.clock.now() - 100)
    monkeypatch.setattr(module, "_WATERMARK", "lost", raising=True)
    await one.restock.tick()
    monkeypatch.setattr(module, "_WATERMARK", "again", raising=True)
    await one.restock.tick()
    await one.bought()
    assert one.house.rows("SELECT sum(ordered) FROM demand") == [(2,)]
