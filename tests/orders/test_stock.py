"""Shops see what they can sell now, never what it costs, and however often they ask, it is counted rarely."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from syncd.orders.deliveries import UnknownProductError
from syncd.orders.stock import Stock

TODAY = 1_800_000_000
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what no engine has a part in."""
POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


class Shelf:
    """Stock over a stack, with a clock that the test moves, and a count of how often it was counted."""

    def __init__(self, stack: Any) -> None:
        self.stack = stack
        self.products: dict[str, Any] = {}
        self.synced: tuple[int | None, float] = (TODAY - 100, 1200.0)
        self.elapsed = 1000.0
        self.counted = 0
        stack.clock.monotonic = lambda: self.elapsed
        self.upstream: dict[str, Any] = {}
        self.stock = Stock(
            stack.writer,
            lambda: self.products,
            lambda: self.synced,
            lambda _connection, products: {sku: self.upstream.get(sku, {"kind": "none"}) for sku in products},
        )
        count = self.stock._count

        def counting(*args: Any) -> Any:
            self.counted += 1
            return count(*args)

        self.stock._count = counting

    def sell(
        self,
        sku: str,
        *,
        min_life: float = 0.0,
        price: str | None = None,
        title: str = "",
        on_shortage: str = "refuse",
    ) -> None:
        product = SimpleNamespace(
            min_life=min_life, price=price, title=title, takes=range(1, 1001), on_shortage=on_shortage
        )
        self.products = {**self.products, sku: product}
        self.stack.products[sku] = product

    async def cached(self, sku: str) -> int:
        (row,), _ = await self.stock.snapshot(sku)
        return int(row["cached"])


@pytest.fixture
def shelf(stack: Any) -> Shelf:
    made = Shelf(stack)
    made.sell("steam", price="50.00 CNY", title="Steam 50")
    return made


async def test_a_row_tells_everything_but_the_cost(shelf: Shelf) -> None:
    shelf.stack.add("steam", "A-1", "A-2")
    shelf.sell("xbox")
    rows, tag = await shelf.stock.snapshot()
    assert rows == [
        {
            "product": "steam",
            "title": "Steam 50",
            "cached": 2,
            "reserved": 0,
            "promised": 0,
            "upstream": {"kind": "none"},
            "sellable": 2,
            "price": "50.00 CNY",
            "age_s": 100,
            "stale": False,
        },
        {
            "product": "xbox",
            "title": "",
            "cached": 0,
            "reserved": 0,
            "promised": 0,
            "upstream": {"kind": "none"},
            "sellable": 0,
            "price": None,
            "age_s": 100,
            "stale": False,
        },
    ]
    one, other_tag = await shelf.stock.snapshot("xbox")
    assert one == rows[1:]
    assert other_tag != tag


async def test_an_unknown_product_is_refused(shelf: Shelf) -> None:
    with pytest.raises(UnknownProductError):
        await shelf.stock.snapshot("no-such-sku")
    await shelf.stock.snapshot()
    shelf.products = {}
    with pytest.raises(UnknownProductError):  # nor one that has left the configuration
        await shelf.stock.snapshot("steam")
    assert (await shelf.stock.snapshot())[0] == []


async def test_a_product_that_leaves_the_configuration_while_it_is_counted_is_refused(shelf: Shelf) -> None:
    renewed = shelf.stock._renewed

    def reloaded(last: Any) -> Any:
        shelf.products = {}
        return renewed(last)

    shelf.stock._renewed = reloaded  # type: ignore[method-assign]
    with pytest.raises(UnknownProductError):
        await shelf.stock.snapshot("steam")


async def test_what_was_delivered_or_expired_or_lives_too_short_is_not_counted(shelf: Shelf) -> None:
    shelf.stack.add("steam", "A-1", "A-2", "A-3")
    shelf.stack.add("steam", "GONE-1", expires_at=TODAY)
    shelf.stack.add("steam", "SOON-1", expires_at=TODAY + 50)
    assert await shelf.cached("steam") == 4
    shelf.sell("steam", min_life=100.0)
    assert await shelf.cached("steam") == 3
    await shelf.stack.deliveries.deliver("demo", "order-1", "steam", 2)
    assert await shelf.cached("steam") == 1


async def test_what_paid_orders_wait_for_is_sold_already(shelf: Shelf) -> None:
    shelf.stack.add("steam", "A-1", "A-2", "A-3")
    shelf.stack.tamper(
        "INSERT INTO delivery (id, shop, order_ref, product, quantity, state, created_at)"
        " VALUES (1, 'demo', 'o1', 'steam', 2, 'pending', 1)"
    )
    ((row,), _) = await shelf.stock.snapshot("steam")
    assert (row["cached"], row["sellable"]) == (3, 1)
    shelf.stack.tamper(
        "INSERT INTO delivery (id, shop, order_ref, product, quantity, state, created_at)"
        " VALUES (2, 'demo', 'o2', 'steam', 9, 'pending', 1)"
    )
    shelf.elapsed += 3600
    ((row,), _) = await shelf.stock.snapshot("steam")
    assert (row["cached"], row["sellable"]) == (3, 0)  # never below zero


async def test_what_is_upstream_is_told_but_not_sold_and_its_age_is_not_in_the_etag(shelf: Shelf) -> None:
    shelf.stack.add("steam", "A-1")
    shelf.upstream["steam"] = {"kind": "exact", "quantity": 40, "stale": False, "at": TODAY - 60}
    ((row,), tag) = await shelf.stock.snapshot("steam")
    assert row["upstream"] == {"kind": "exact", "quantity": 40, "stale": False, "age_s": 60}
    assert (row["cached"], row["sellable"]) == (1, 1)
    shelf.stack.clock.seconds += 10
    ((row,), same) = await shelf.stock.snapshot("steam")
    assert (row["upstream"]["age_s"], same) == (70, tag)
    shelf.upstream["steam"] = {"kind": "exact", "quantity": 39, "stale": False, "at": TODAY - 60}
    shelf.elapsed += 3600
    _, changed = await shelf.stock.snapshot("steam")
    assert changed != tag


@SQLITE
@pytest.mark.parametrize(
    ("upstream", "sellable"),
    [
        ({"kind": "exact", "quantity": 40, "stale": False}, 38),
        ({"kind": "exact", "quantity": 2, "stale": False}, 0),  # less than is owed and promised
        ({"kind": "exact", "quantity": 40, "stale": True}, 0),
        ({"kind": "unlimited", "stale": False}, 998),
        ({"kind": "coarse", "level": "plenty", "stale": False}, 8),
        ({"kind": "coarse", "level": "low", "stale": False}, 0),
        ({"kind": "unknown", "stale": False}, 0),
        ({"kind": "none"}, 0),
    ],
)
async def test_what_is_bought_on_demand_is_sold_from_upstream_less_what_is_owed_and_promised(
    shelf: Shelf, upstream: dict[str, Any], sellable: int
) -> None:
    shelf.sell("steam", on_shortage="buy")
    shelf.stack.add("steam", "A-1", "A-2", "A-3")
    shelf.upstream["steam"], shelf.stack.upstream["steam"] = upstream, 5
    reserve = shelf.stack.reservations.reserve
    await reserve("demo", "o1", "steam", 3)
    await reserve("demo", "o2", "steam", 1)
    await reserve("demo", "o3", "steam", 1)
    await shelf.stack.deliveries.deliver("demo", "o3", "steam", 1)  # what was promised is owed now
    ((row,), _) = await shelf.stock.snapshot("steam")
    assert (row["cached"], row["reserved"], row["promised"], row["sellable"]) == (0, 3, 1, sellable)


async def test_it_is_counted_again_only_when_something_was_committed(shelf: Shelf) -> None:
    shelf.stack.add("steam", "A-1")
    for _ in range(5):
        shelf.elapsed += 1
        assert await shelf.cached("steam") == 1
    assert shelf.counted == 1
    shelf.stack.add("steam", "A-2")
    assert await shelf.cached("steam") == 2
    assert shelf.counted == 2


async def test_keys_that_expire_by_themselves_are_noticed(shelf: Shelf) -> None:
    shelf.stack.add("steam", "SOON-1", expires_at=TODAY + 5)
    assert await shelf.cached("steam") == 1
    shelf.stack.clock.seconds += 20
    shelf.elapsed += 20
    assert await shelf.cached("steam") == 0


async def test_a_costly_count_serves_ten_times_as_long_as_it_took(shelf: Shelf) -> None:
    shelf.stack.add("steam", "A-1")
    count = shelf.stock._count

    def slow(*args: Any) -> Any:
        rows = count(*args)
        shelf.elapsed += 0.5
        return rows

    shelf.stock._count = slow
    begun = shelf.elapsed
    assert await shelf.cached("steam") == 1
    shelf.stack.add("steam", "A-2")
    shelf.elapsed = begun + 4.9
    assert await shelf.cached("steam") == 1
    shelf.elapsed = begun + 5.1
    assert await shelf.cached("steam") == 2


async def test_many_that_ask_at_once_are_served_by_one_count(shelf: Shelf) -> None:
    shelf.stack.add("steam", "A-1")
    answers = await asyncio.gather(*[shelf.stock.snapshot() for _ in range(50)])
    assert shelf.counted == 1
    assert len({tag for _, tag in answers}) == 1


async def test_a_changed_configuration_is_counted_anew_at_once(shelf: Shelf) -> None:
    shelf.stack.add("steam", "A-1")
    await shelf.stock.snapshot()
    shelf.sell("steam", price="60.00 CNY")
    ((row,), _) = await shelf.stock.snapshot("steam")
    assert row["price"] == "60.00 CNY"


async def test_the_etag_changes_with_anything_but_the_age(shelf: Shelf) -> None:
    shelf.stack.add("steam", "A-1")
    _, tag = await shelf.stock.snapshot()
    shelf.stack.clock.seconds += 10
    ((older,), same) = await shelf.stock.snapshot()
    assert (older["age_s"], same) == (110, tag)
    shelf.stack.clock.seconds += 1200
    ((stale,), changed) = await shelf.stock.snapshot()
    assert stale["stale"]
    assert changed != tag
    shelf.stack.clock.seconds -= 1210
    shelf.stack.add("steam", "A-2")
    _, more = await shelf.stock.snapshot()
    assert more not in {tag, changed}


async def test_what_was_never_synced_is_stale_and_has_no_age(shelf: Shelf) -> None:
    shelf.synced = (None, 1200.0)
    ((row,), _) = await shelf.stock.snapshot()
    assert (row["age_s"], row["stale"]) == (None, True)
    shelf.synced = (TODAY + 50, 1200.0)  # a clock that steps back shows no negative age
    shelf.sell("steam")
    ((row,), _) = await shelf.stock.snapshot()
    assert (row["age_s"], row["stale"]) == (0, False)


async def test_more_products_than_one_statement_takes(shelf: Shelf) -> None:
    for number in range(150):
        shelf.sell(f"sku-{number:03d}")
    shelf.stack.add("sku-149", "A-1")
    rows, _ = await shelf.stock.snapshot()
    assert len(rows) == 151
    assert {row["product"] for row in rows if row["cached"]} == {"sku-149"}


@POSTGRESQL
async def test_what_another_daemon_commits_is_seen(make_stack: Callable[[], Any]) -> None:
    one, two = make_stack(), make_stack()
    shelf = Shelf(one)
    shelf.sell("steam")
    assert await shelf.cached("steam") == 0
    two.add("steam", "A-1")
    assert await shelf.cached("steam") == 1
