"""Short stories that a sound syncd survives, each written for bugs that must not (`test_planted`).

Each gets a maker of worlds, and fails with an AssertionError that says what went wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any, Final

from syncd.errors import SyncdError
from tests.world.house import SHOP, Shape, World
from tests.world.invariants import Promise, still_open

Make = Callable[[Shape], World]


def one(kind: str, *, price: str = "10", stock: int = 50, **more: Any) -> Shape:
    """One supplier, one product."""
    return Shape({"alfa": (kind, {"game": (price, stock)})}, {"steam": ("alfa/game",)}, {"steam": "20"}, **more)


def two(kind: str, **more: Any) -> Shape:
    """The cheaper one is of this kind; the other one sells the same for a little more."""
    return Shape(
        {"alfa": (kind, {"game": ("10", 50)}), "beta": ("desk", {"game": ("11", 50)})},
        {"steam": ("alfa/game", "beta/game")},
        {"steam": "20"},
        **more,
    )


# --- what all of them do ----------------------------------------------------------------------------------------------


def begun(make: Make, shape: Shape) -> World:
    """A world whose suppliers have been listed."""
    world = make(shape)
    for name in shape.markets:
        assert world.attempt(world.house.listed(name)) is None
    return world


def listed(world: World) -> None:
    """Every supplier once more: what was listed long ago is not believed."""
    for name in world.shape.markets:
        world.attempt(world.house.listed(name))


def top_up(world: World, level: int, product: str = "steam") -> Any:
    return world.attempt(world.house.purchases.top_up(product, level, asked_by="replenish"))


def later(world: World, *seconds: float) -> None:
    """Time passes, and what is due is followed up each time."""
    for some in seconds:
        world.clock.tick(some)
        world.attempt(world.house.purchases.reconcile())


def paid_for(world: World) -> int:
    """Units that were charged, and not paid back."""
    back = world.ledger.back
    return sum(charge.quantity for charge in world.ledger.charges if charge.cost - back[charge.order] > Decimal("0.01"))


def here(world: World, product: str = "steam") -> int:
    return sum(key.product == product and key.state == "available" for key in world.books().vault)


def order(world: World, ref: str, quantity: int, product: str = "steam") -> list[int] | None:
    """An order line, as a shop that repeats it would see it: its keys, None while it waits."""
    answer = world.attempt(world.house.deliveries.deliver(SHOP, ref, product, quantity))
    assert not isinstance(answer, SyncdError), f"{ref} is refused: {answer}"
    keys = [key.id for key in answer.keys]
    promise = world.promises.setdefault(ref, Promise(product, quantity))
    if answer.state == "delivered":
        assert not promise.keys or promise.keys == keys, f"{ref} was answered in two ways"
        assert len(keys) == quantity, f"{ref} got {len(keys)} keys of {quantity}"
        promise.keys = keys
        return keys
    return None


def sound(world: World) -> None:
    """Everything holds, and the audit is whole."""
    world.check()
    world.verify()


def ended(world: World, *allowed: str) -> None:
    left = [state for state in still_open(world.books()).values() if state not in allowed]
    assert not left, f"{left} never end"


# --- the stories ------------------------------------------------------------------------------------------------------


def an_answer_is_lost(make: Make) -> None:
    """M1: it was charged, and nobody heard. Nobody buys it again; it is found, and its keys come."""
    for kind in ("hub", "desk"):
        world = begun(make, two(kind))
        world.markets["alfa"].fail("place_order", "lost")
        top_up(world, 3)
        sound(world)
        for seconds in (1, 30, 40, 70, 70, 120):
            top_up(world, 3)
            later(world, seconds)
        assert paid_for(world) == 3, f"{paid_for(world)} were paid for, 3 were wanted ({kind})"
        assert here(world) == 3, f"{here(world)} of 3 have come ({kind})"
        ended(world)
        sound(world)


def an_answer_is_lost_for_good(make: Make) -> None:
    """M1, K10: nobody can say whether it was bought. It counts as on order and as spent, and waits for a person."""
    world = begun(make, two("wall", hour={"": "65"}))
    world.markets["alfa"].fail("place_order", "lost")
    top_up(world, 3)
    for seconds in (1, 40, 70, 120):
        top_up(world, 3)
        later(world, seconds)
    assert paid_for(world) == 3, f"{paid_for(world)} were paid for, 3 were wanted"
    sound(world)
    world.markets["alfa"].fail("place_order", "lost", "lost", "lost")
    listed(world)
    for level in (6, 9, 12):  # 30 of 65 are spent, as far as anybody knows
        top_up(world, level)
    sound(world)
    states = still_open(world.books()).values()
    assert set(states) == {"unknown"}, states


def a_repetition_tells_that_it_was_paid(make: Make) -> None:
    """M1: sent again, the supplier says that it has had this reference. It is paid, and its money is open."""
    world = begun(make, one("kiosk"))
    world.markets["alfa"].fail("place_order", "lost")
    top_up(world, 3)
    later(world, 1, 30, 40, 40)
    (row,) = world.books().purchases.values()
    assert (row["state"], row["open_spend"] > 0) == ("disputed", True), row["state"]
    assert paid_for(world) == 3, f"{paid_for(world)} were paid for, 3 were wanted"
    sound(world)


def an_order_that_nothing_came_of(make: Make) -> None:
    """M1: it broke before it was charged. The same reference again, or nothing; never two orders."""
    for kind in ("hub", "desk", "kiosk"):
        world = begun(make, one(kind))
        world.markets["alfa"].fail("place_order", "gone")
        top_up(world, 2)
        for seconds in (1, 40, 70, 120, 300):
            later(world, seconds)
            listed(world)
            top_up(world, 2)
        assert paid_for(world) == here(world) == 2, f"{paid_for(world)} were paid for, {here(world)} came ({kind})"
        sound(world)


def it_is_found_late(make: Make) -> None:
    """M1: for half a minute the supplier itself does not know the order. A first "no" is not believed."""
    world = begun(make, two("desk"))
    world.markets["alfa"].fail("place_order", "late")
    top_up(world, 3)
    later(world, 1, 1, 5, 20)
    for _ in range(6):
        later(world, 40)
        top_up(world, 3)
    assert paid_for(world) == here(world) == 3, f"{paid_for(world)} were paid for, {here(world)} came, 3 were wanted"
    ended(world)
    sound(world)


def it_dies_at_any_commit(make: Make) -> None:
    """M1, M3: whatever was written last, and whether anybody heard of it: nothing is lost, nothing is bought twice."""
    for kind in ("hub", "desk"):
        for commits in range(4):
            for acknowledged in (False, True):
                world = begun(make, one(kind))
                world.house.die_after(commits, acknowledged=acknowledged)
                top_up(world, 2)
                sound(world)
                for seconds in (1, 40, 70, 120, 70, 120):  # on PostgreSQL, the dead one's lease has to run out
                    later(world, seconds)
                    top_up(world, 2)
                where = f"dead after {commits} commits{', written' if acknowledged else ''} ({kind})"
                assert paid_for(world) == here(world) == 2, f"{paid_for(world)} paid for, {here(world)} came: {where}"
                ended(world)
                sound(world)


def many_buy_at_once(make: Make) -> None:
    """M4: eight products, one budget, side by side: together they spend no more than it says."""
    goods = {f"g{number}": ("10", 50) for number in range(8)}
    sold = {f"p{number}": (f"alfa/g{number}",) for number in range(8)}
    world = begun(make, Shape({"alfa": ("hub", goods)}, sold, hour={"": "50"}))
    buying = world.house.purchases.top_up

    async def all_of_them() -> None:
        await together(*(buying(product, 2, asked_by="replenish") for product in sold))

    world.attempt(all_of_them())
    sound(world)
    assert paid_for(world) == 4, f"{paid_for(world)} were bought; the budget was for 5, they come in twos"


def a_need_is_met_once(make: Make) -> None:
    """Two calls for one need, side by side and one after the other, buy it once."""
    world = begun(make, one("hub"))
    buying = world.house.purchases.top_up
    world.markets["alfa"].fail("place_order", "slowly")

    async def both() -> None:
        await together(*(buying("steam", 4, asked_by=who) for who in ("replenish", "delivery")))

    world.attempt(both())
    top_up(world, 4)
    assert paid_for(world) == 4, f"{paid_for(world)} were bought, 4 were wanted"
    later(world, 30, 30)
    assert here(world) == 4, f"{here(world)} of 4 have come"
    sound(world)


def what_comes_is_checked(make: Make) -> None:
    """P3: too few keys, too many, one twice, somebody else's, a sentence: nothing is lost, nothing sold twice."""
    for sin in ("short", "over", "twice", "stale", "prose", "half"):
        for kind in ("hub", "desk"):
            world = begun(make, one(kind))
            top_up(world, 3)
            world.markets["alfa"].fail("place_order", sin)
            top_up(world, 6)
            later(world, 1, 10, 40, 100)
            sound(world)
            states = [row["state"] for row in world.books().purchases.values()]
            if sin in {"short", "twice", "stale", "prose"}:
                assert "disputed" in states, f"{sin} at a {kind}: nobody disputes it ({states})"
            assert order(world, "all", here(world)), "what is here can be sold"
            sound(world)


def it_comes_in_its_own_time(make: Make) -> None:
    """K9: an order that is completed later, or in two parts: each key once, and no more is bought meanwhile."""
    for sin in ("slowly", "partly"):
        for kind in ("hub", "desk"):
            world = begun(make, one(kind))
            world.markets["alfa"].fail("place_order", sin)
            for seconds in (1, 10, 15, 30, 60, 60):
                top_up(world, 3)
                later(world, seconds)
                sound(world)
            assert paid_for(world) == here(world) == 3, f"{sin} at a {kind}: {here(world)} of {paid_for(world)} came"
            ended(world)


def it_is_paid_back(make: Make) -> None:
    """K9: what a supplier cancels or pays back is on order no longer, counts as spent no longer, and is bought anew."""
    for sin in ("cancelled", "refunded"):
        for kind in ("hub", "desk"):
            world = begun(make, one(kind, hour={"": "35"}))
            world.markets["alfa"].fail("place_order", sin)
            top_up(world, 3)
            later(world, 1, 40, 60, 60)
            sound(world)
            top_up(world, 3)
            assert paid_for(world) == here(world) == 3, f"{sin} at a {kind}: {here(world)} of {paid_for(world)} came"
            sound(world)


def orders_wait_their_turn(make: Make) -> None:
    """M2: keys that arrive go to whoever waited first, and each order gets the same ones for ever."""
    world = begun(make, one("hub"))
    world.markets["alfa"].fail("place_order", "slowly", "slowly", "slowly")
    for number in range(3):
        assert order(world, f"o{number}", 2) is None, "it waits for keys that are being bought"
        sound(world)
    world.house.die_after(0, acknowledged=True)
    later(world, 30, 60, 60)
    sound(world)
    first = [order(world, f"o{number}", 2) for number in range(3)]
    assert all(first), "everybody has been served"
    rows = sorted(world.books().deliveries.values(), key=lambda row: row["id"])
    keys = [min(key for _, key in world.books().allotted[row["id"]]) for row in rows]
    assert keys == sorted(keys), "who came first was not served first"
    assert [order(world, f"o{number}", 2) for number in range(3)] == first
    assert paid_for(world) == 6, f"{paid_for(world)} were bought for 6 that were ordered"
    sound(world)


def a_reservation_is_paid(make: Make) -> None:
    """What was reserved goes to who reserved it, late and while others wait; what is upstream is bought once."""
    world = begun(make, one("hub"))
    top_up(world, 2)
    reserve = world.house.reservations.reserve
    world.attempt(reserve(SHOP, "mine", "steam", 2))
    order(world, "other", 1)
    assert order(world, "other", 1), "another one is bought for whoever did not reserve"
    world.clock.tick(1000)  # past its deadline, and not swept yet
    sound(world)
    bought = paid_for(world)
    assert order(world, "mine", 2), "it was reserved"
    assert paid_for(world) == bought == 3, f"{paid_for(world)} were bought"
    sound(world)
    top_up(world, 1)
    listed(world)
    held = world.attempt(world.house.reservations.reserve(SHOP, "half", "steam", 3))
    assert held.promised == 2, held
    sound(world)
    world.markets["alfa"].fail("place_order", "slowly")
    assert order(world, "half", 3) is None, "two of them are being bought"
    sound(world)
    later(world, 30, 60)
    assert order(world, "half", 3), "all of them are here"
    assert paid_for(world) == 6, f"{paid_for(world)} were bought for 6 that were sold"
    assert here(world) == 0
    sound(world)


def prices_lie(make: Make) -> None:
    """M4, P1: a listing that is out of its mind, a price that leaps: nothing dearer than allowed is bought."""
    for sin in ("x0.01", "x100", "dollars", "empty", "cut", "repeated", "negative", "doubled", "page"):
        world = begun(make, one("hub"))
        world.markets["alfa"].fail("list_offers", sin)
        listed(world)
        top_up(world, 1)
        sound(world)
        world.markets["alfa"].goods["game"].price = Decimal(60)
        top_up(world, 3)
        sound(world)
        assert paid_for(world) <= 1, f"{sin}: bought at six times its price"


def the_clock_is_wrong(make: Make) -> None:
    """M1, M4: the clock leaps ahead and back while an answer is outstanding, and while a budget is full."""
    world = begun(make, two("desk", hour={"": "40"}))
    world.markets["alfa"].fail("place_order", "late")
    top_up(world, 3)
    for leap in (3600, -7200, 86_400, -90_000):
        world.clock.jump(leap)
        later(world, 1)
        listed(world)
        top_up(world, 3)
        sound(world)
    later(world, 60, 60, 120, 120)
    assert paid_for(world) == 3, f"{paid_for(world)} were paid for, 3 were wanted"
    sound(world)


async def together(*works: Coroutine[Any, Any, Any]) -> list[Any]:
    """All of them at once; a refusal of one is its answer."""
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, SyncdError):
            raise outcome
    return outcomes


STORIES: Final[tuple[Callable[[Make], None], ...]] = (
    an_answer_is_lost,
    an_answer_is_lost_for_good,
    a_repetition_tells_that_it_was_paid,
    an_order_that_nothing_came_of,
    it_is_found_late,
    it_dies_at_any_commit,
    many_buy_at_once,
    a_need_is_met_once,
    what_comes_is_checked,
    it_comes_in_its_own_time,
    it_is_paid_back,
    orders_wait_their_turn,
    a_reservation_is_paid,
    prices_lie,
    the_clock_is_wrong,
)
