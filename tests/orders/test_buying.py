"""What a paid order lacks is bought, if it can be; whoever waits is told, and nobody is cut off in the middle."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from syncd.orders.deliveries import InsufficientStockError

SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what no engine has a part in."""


class Seller:
    """Buys as it is told: ``most`` units can be had."""

    def __init__(self, stack: Any, most: int) -> None:
        self.stack, self.most = stack, most
        self.asked: list[tuple[str, int]] = []
        self.wanted: list[str] = []
        self.told = asyncio.Event()
        stack.deliveries.buying = self

    def can_buy(self, product: str, quantity: int) -> bool:
        self.asked.append((product, quantity))
        return quantity <= self.most

    def short(self, product: str) -> None:
        self.wanted.append(product)
        self.told.set()


@pytest.fixture
def seller(stack: Any) -> Seller:
    stack.products["steam"] = SimpleNamespace(min_life=0, takes=range(1, 101), on_shortage="buy")
    stack.deliveries.wait = lambda: 0.3
    return Seller(stack, 5)


def texts(delivery: Any) -> list[str]:
    return sorted(key.text for key in delivery.keys)


async def test_M2_what_is_bought_for_an_order_is_delivered_in_the_same_request(stack: Any, seller: Seller) -> None:
    stack.add("steam", "A-1")
    stack.deliveries.wait = lambda: 20
    asked = asyncio.create_task(stack.deliveries.deliver("demo", "o1", "steam", 3, wait_s=None))
    await seller.told.wait()
    stack.add("steam", "B-1", "B-2")
    assert await stack.deliveries.fill("steam") == 1
    got = await asked
    assert (got.state, got.repeat, texts(got)) == ("delivered", False, ["A-1", "B-1", "B-2"])
    assert seller.asked == [("steam", 3)]
    stack.verified()


@SQLITE
async def test_M2_what_nobody_sells_is_refused_and_not_recorded(stack: Any, seller: Seller) -> None:
    seller.most = 0
    with pytest.raises(InsufficientStockError):
        await stack.deliveries.deliver("demo", "o1", "steam", 1)
    stack.deliveries.buying = None
    with pytest.raises(InsufficientStockError):
        await stack.deliveries.deliver("demo", "o1", "steam", 1)
    assert stack.rows("SELECT count(*) FROM delivery") == [(0,)]
    assert seller.wanted == []


async def test_what_was_promised_to_others_has_to_be_had_too(stack: Any, seller: Seller) -> None:
    stack.add("steam", "A-1")
    assert (await stack.deliveries.deliver("demo", "o1", "steam", 3)).reason == "buying"
    stack.upstream["steam"] = 9
    assert (await stack.reservations.reserve("demo", "o2", "steam", 2)).promised == 2
    seller.most = 4
    with pytest.raises(InsufficientStockError):
        await stack.deliveries.deliver("demo", "o3", "steam", 3)
    with pytest.raises(InsufficientStockError):
        await stack.reservations.reserve("demo", "o4", "steam", 3)
    assert (await stack.deliveries.deliver("demo", "o3", "steam", 2)).state == "pending"
    assert [units for _, units in seller.asked] == [3, 2, 5, 5, 4]
    assert seller.wanted == ["steam", "steam"]


@SQLITE
async def test_a_request_waits_as_long_as_is_configured_and_then_says_so(stack: Any, seller: Seller) -> None:
    first = await stack.deliveries.deliver("demo", "o1", "steam", 1, wait_s=None)
    again = await stack.deliveries.deliver("demo", "o1", "steam", 1, wait_s=None)
    assert (first.state, first.reason, first.repeat) == ("pending", "buying", False)
    assert (again.state, again.repeat) == ("pending", True)
    assert seller.wanted == ["steam"]
    looking = [asyncio.create_task(stack.deliveries.look("demo", "o1", wait_s=20, reveal=both)) for both in (1, 0)]
    await asyncio.sleep(0.1)
    stack.add("steam", "B-1")
    await stack.deliveries.fill("steam")
    seen, unseen = await asyncio.gather(*looking)
    assert (seen.state, texts(seen), unseen.state, unseen.keys) == ("delivered", ["B-1"], "delivered", [])
    assert await stack.deliveries.look("demo", "o9", wait_s=20) is None


@SQLITE
async def test_requests_that_wait_are_answered_when_the_daemon_stops(stack: Any, seller: Seller) -> None:
    waiting = [
        asyncio.create_task(stack.deliveries.deliver("demo", f"o{number}", "steam", 1, wait_s=30))
        for number in range(3)
    ]
    waiting.append(asyncio.create_task(stack.deliveries.look("demo", "o0", wait_s=30)))
    await seller.told.wait()
    await asyncio.sleep(0.3)
    stack.deliveries.stop_waiting()
    answers = await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert {answer.state for answer in answers if answer} == {"pending"}
    late = await asyncio.wait_for(stack.deliveries.deliver("demo", "o0", "steam", 1, wait_s=30), 5)
    assert (late.state, late.repeat) == ("pending", True)


@SQLITE
async def test_a_bad_key_with_none_left_is_bought_anew(stack: Any, seller: Seller) -> None:
    from syncd.orders.replacements import Replacements

    stack.add("steam", "A-1")
    got = await stack.deliveries.deliver("demo", "o1", "steam", 1)
    replacing = Replacements(stack.deliveries, stack.writer, lambda: 3)
    for _ in range(2):
        assert (await replacing.replace("demo", "o1", got.keys[0].id, "invalid")).reason == "replacing"
    assert seller.wanted == ["steam"]
