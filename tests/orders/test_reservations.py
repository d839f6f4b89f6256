"""What is reserved is there when it is paid, whoever races for it; what is not paid is free again."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from syncd.errors import ConflictError, NotFoundError
from syncd.orders import holds, reservations
from syncd.orders.deliveries import (
    DeliveryCancelledError,
    FencedError,
    InsufficientStockError,
    OrderRefReusedError,
    QuantityNotAllowedError,
    UnknownProductError,
)
from syncd.orders.reservations import ReservationLimitError, TooManyReservationsError

TODAY = 1_800_000_000
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what no engine has a part in."""
POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def sell(stack: Any, sku: str, on_shortage: str = "refuse", **more: Any) -> None:
    made = {"min_life": 0, "takes": range(1, 101), "on_shortage": on_shortage} | more
    stack.products[sku] = SimpleNamespace(**made)


def texts(delivery: Any) -> list[str]:
    return sorted(key.text for key in delivery.keys)


def states(stack: Any) -> dict[str, int]:
    return dict(Counter(state for (state,) in stack.rows("SELECT state FROM vault_key")))


def assert_holds_balance(stack: Any) -> None:
    """A key is reserved exactly while something that waits or is held has it, and no order has more than its own."""
    assert (
        stack.rows(
            "SELECT k.id FROM vault_key k LEFT JOIN reserved_key h ON h.key_id = k.id"
            " WHERE (k.state = 'reserved') <> (h.key_id IS NOT NULL)"
        )
        == []
    )
    assert (
        stack.rows(
            "SELECT h.key_id FROM reserved_key h"
            " LEFT JOIN reservation r ON r.id = h.reservation_id AND r.state = 'held'"
            " LEFT JOIN delivery d ON d.id = h.reservation_id AND d.state = 'pending'"
            " WHERE r.id IS NULL AND d.id IS NULL"
        )
        == []
    )
    assert (
        stack.rows(
            "SELECT r.id FROM reservation r WHERE r.state = 'held' AND r.quantity - r.promised"
            " <> (SELECT count(*) FROM reserved_key h WHERE h.reservation_id = r.id)"
        )
        == []
    )
    assert (
        stack.rows(
            "SELECT d.id FROM delivery d LEFT JOIN allotment a ON a.delivery_id = d.id AND a.withdrawn_at IS NULL"
            " WHERE d.state = 'delivered' GROUP BY d.id, d.quantity HAVING count(a.key_id) <> d.quantity"
        )
        == []
    )


async def test_M2_what_is_reserved_is_delivered_and_to_nobody_else(stack: Any) -> None:
    sell(stack, "steam")
    stack.add("steam", "A-1", "A-2", "A-3")
    held = await stack.reservations.reserve("demo", "o1", "steam", 2, customer="ann")
    assert (held.state, held.promised, held.expires_at, held.repeat) == ("held", 0, TODAY + 900, False)
    stack.clock.seconds += 60
    again = await stack.reservations.reserve("demo", "o1", "steam", 2)
    assert (again.id, again.expires_at, again.repeat) == (held.id, TODAY + 900, True)  # a repeat prolongs nothing
    with pytest.raises(InsufficientStockError):
        await stack.deliveries.deliver("demo", "o2", "steam", 2)
    assert texts(await stack.deliveries.deliver("demo", "o3", "steam", 1)) == ["A-3"]
    assert_holds_balance(stack)
    got = await stack.deliveries.deliver("demo", "o1", "steam", 2)
    assert (got.state, got.repeat, texts(got)) == ("delivered", False, ["A-1", "A-2"])
    assert texts(await stack.deliveries.deliver("demo", "o1", "steam", 2)) == ["A-1", "A-2"]
    paid = await stack.reservations.reserve("demo", "o1", "steam", 2)
    assert (paid.state, paid.repeat) == ("delivered", True)
    with pytest.raises(ConflictError, match="paid already"):
        await stack.reservations.release("demo", "o1")
    assert states(stack) == {"delivered": 3}
    assert_holds_balance(stack)
    stack.verified()


@SQLITE
async def test_what_cannot_be_reserved_says_why_and_leaves_nothing(stack: Any) -> None:
    sell(stack, "steam", takes=range(1, 3))
    stack.add("steam", "A-1", "A-2", "A-3")
    reserve = stack.reservations.reserve
    with pytest.raises(UnknownProductError):
        await reserve("demo", "o1", "gone", 1)
    with pytest.raises(QuantityNotAllowedError):
        await reserve("demo", "o1", "steam", 3)
    await reserve("demo", "o1", "steam", 2)
    with pytest.raises(OrderRefReusedError):
        await reserve("demo", "o1", "steam", 1)
    with pytest.raises(InsufficientStockError):
        await reserve("demo", "o2", "steam", 2)
    await stack.deliveries.deliver("demo", "o3", "steam", 1)
    with pytest.raises(ConflictError, match="paid already"):
        await reserve("demo", "o3", "steam", 1)
    with pytest.raises(NotFoundError):
        await stack.reservations.release("demo", "o9")
    assert stack.rows("SELECT count(*) FROM reservation") == [(1,)]
    stack.deliveries.fenced = True
    with pytest.raises(FencedError):
        await reserve("demo", "o4", "steam", 1)


async def test_what_is_released_is_free_and_goes_first_to_those_who_wait(stack: Any) -> None:
    sell(stack, "steam", "wait")
    stack.add("steam", "A-1", "A-2")
    await stack.reservations.reserve("demo", "o1", "steam", 2)
    assert (await stack.deliveries.deliver("demo", "o2", "steam", 1)).state == "pending"
    released = await stack.reservations.release("demo", "o1")
    assert (released.state, released.repeat) == ("released", False)
    assert (await stack.reservations.release("demo", "o1")).repeat
    assert texts(await stack.deliveries.deliver("demo", "o2", "steam", 1)) == ["A-1"]
    assert (await stack.reservations.reserve("demo", "o1", "steam", 1)).state == "held"  # as new, if there is enough
    assert states(stack) == {"delivered": 1, "reserved": 1}
    assert_holds_balance(stack)


async def test_M2_it_is_good_until_it_is_swept_and_a_late_payment_tries_again(stack: Any) -> None:
    sell(stack, "steam")
    stack.add("steam", "A-1", "A-2")
    await stack.reservations.reserve("demo", "o1", "steam", 1, ttl_s=30)
    await stack.reservations.reserve("demo", "o2", "steam", 1, ttl_s=30)
    assert await stack.reservations.sweep() == 0
    stack.clock.seconds += 31
    assert texts(await stack.deliveries.deliver("demo", "o1", "steam", 1)) == ["A-1"]  # past its deadline, not swept
    assert await stack.reservations.sweep() == 1
    assert stack.reservations.find("demo", "o2").state == "expired"
    assert states(stack) == {"delivered": 1, "available": 1}
    assert texts(await stack.deliveries.deliver("demo", "o2", "steam", 1)) == ["A-2"]
    assert_holds_balance(stack)


@SQLITE
async def test_M2_an_order_paid_for_other_content_than_reserved_is_served_as_new(stack: Any) -> None:
    sell(stack, "steam")
    sell(stack, "xbox")
    stack.add("steam", "A-1", "A-2")
    stack.add("xbox", "X-1")
    await stack.reservations.reserve("demo", "o1", "steam", 2)
    assert texts(await stack.deliveries.deliver("demo", "o1", "steam", 1)) == ["A-1"]
    await stack.reservations.reserve("demo", "o2", "steam", 1)
    assert texts(await stack.deliveries.deliver("demo", "o2", "xbox", 1)) == ["X-1"]
    assert stack.reservations.find("demo", "o2").state == "released"
    assert states(stack) == {"delivered": 2, "available": 1}
    assert_holds_balance(stack)


async def test_promised_units_join_what_is_owed_and_the_reserved_keys_stay(stack: Any) -> None:
    sell(stack, "steam", "buy")
    stack.add("steam", "A-1", "A-2")
    stack.upstream["steam"] = 3
    held = await stack.reservations.reserve("demo", "o1", "steam", 4)
    assert held.promised == 2
    with pytest.raises(InsufficientStockError):
        await stack.reservations.reserve("demo", "o2", "steam", 2)
    assert (await stack.reservations.reserve("demo", "o2", "steam", 1)).promised == 1
    pending = await stack.deliveries.deliver("demo", "o1", "steam", 4)
    assert (pending.id, pending.state, pending.reason) == (held.id, "pending", "buying")
    assert states(stack) == {"reserved": 2}
    assert_holds_balance(stack)
    stack.add("steam", "B-1")
    assert await stack.deliveries.fill("steam") == 0
    stack.deliveries.buying = None
    with pytest.raises(InsufficientStockError):  # B-1 is owed
        await stack.deliveries.deliver("demo", "o9", "steam", 1)
    stack.add("steam", "B-2")
    assert await stack.deliveries.fill("steam") == 1
    got = await stack.deliveries.deliver("demo", "o1", "steam", 4)
    assert texts(got) == ["A-1", "A-2", "B-1", "B-2"]
    assert_holds_balance(stack)
    stack.verified()


@SQLITE
async def test_a_cancelled_order_frees_what_was_held_for_it_and_keeps_its_reason(stack: Any) -> None:
    sell(stack, "steam", "buy")
    stack.add("steam", "A-1")
    stack.upstream["steam"] = 1
    await stack.reservations.reserve("demo", "o1", "steam", 2)
    await stack.deliveries.deliver("demo", "o1", "steam", 2)
    cancelled = await stack.deliveries.cancel("demo", "o1")
    assert (cancelled.state, cancelled.reason) == ("cancelled", "buying")
    assert states(stack) == {"available": 1}
    with pytest.raises(DeliveryCancelledError):
        await stack.reservations.reserve("demo", "o1", "steam", 1)
    assert_holds_balance(stack)


async def test_K7_a_paid_order_lacks_what_expires_while_it_waits(stack: Any) -> None:
    sell(stack, "steam", "buy")
    stack.add("steam", "SOON", expires_at=TODAY + 100)
    stack.upstream["steam"] = 1
    await stack.reservations.reserve("demo", "o1", "steam", 2)
    assert (await stack.deliveries.deliver("demo", "o1", "steam", 2)).state == "pending"
    stack.clock.seconds += 200
    stack.add("steam", "B-1")
    assert await stack.deliveries.fill("steam") == 0
    assert states(stack) == {"available": 1, "expired": 1}
    stack.add("steam", "B-2")
    assert await stack.deliveries.fill("steam") == 1
    assert texts(await stack.deliveries.deliver("demo", "o1", "steam", 2)) == ["B-1", "B-2"]
    assert_holds_balance(stack)


@SQLITE
@pytest.mark.parametrize("on_shortage", ["refuse", "wait"])
async def test_K7_a_key_that_expires_while_it_is_reserved_is_not_delivered(stack: Any, on_shortage: str) -> None:
    sell(stack, "steam", on_shortage)
    stack.add("steam", "SOON", expires_at=TODAY + 100)
    stack.add("steam", "LATE")
    await stack.reservations.reserve("demo", "o1", "steam", 2)
    stack.clock.seconds += 200
    if on_shortage == "refuse":
        with pytest.raises(InsufficientStockError):
            await stack.deliveries.deliver("demo", "o1", "steam", 2)
        assert states(stack) == {"reserved": 2}  # nothing was recorded
        stack.add("steam", "NEW")
    else:
        assert (await stack.deliveries.deliver("demo", "o1", "steam", 2)).state == "pending"
        assert states(stack) == {"reserved": 1, "expired": 1}
        stack.add("steam", "NEW")
        assert await stack.deliveries.fill("steam") == 1
    assert texts(await stack.deliveries.deliver("demo", "o1", "steam", 2)) == ["LATE", "NEW"]
    assert states(stack) == {"delivered": 2, "expired": 1}
    assert_holds_balance(stack)


async def test_no_customer_and_no_product_is_locked_by_unpaid_orders(stack: Any) -> None:
    sell(stack, "steam")
    stack.add("steam", *[f"A-{n}" for n in range(10)])
    stack.limits.per_customer, stack.limits.per_product = 2, 55.0
    reserve = stack.reservations.reserve
    for ref in ("o1", "o2"):
        await reserve("demo", ref, "steam", 2, customer="ann")
    with pytest.raises(TooManyReservationsError):
        await reserve("demo", "o3", "steam", 1, customer="ann")
    await reserve("other", "o3", "steam", 1, customer="ann")  # another shop's Ann is another Ann
    await reserve("demo", "o4", "steam", 1, customer="bob")
    with pytest.raises(ReservationLimitError):  # 7 of 10 is more than 55 %
        await reserve("demo", "o5", "steam", 1, customer="eve")
    assert (await stack.deliveries.deliver("demo", "o6", "steam", 4)).state == "delivered"  # whoever pays is served
    stored = stack.rows("SELECT customer FROM reservation")
    assert all(len(bytes(value)) == 16 for (value,) in stored)
    await stack.reservations.release("demo", "o1")
    with pytest.raises(ReservationLimitError):  # now 4 of 6 are reserved
        await reserve("demo", "o5", "steam", 1, customer="eve")
    assert_holds_balance(stack)


@SQLITE
@pytest.mark.parametrize(("stocked", "share", "most"), [(1, 50.0, 1), (3, 50.0, 2), (4, 50.0, 2), (5, 100.0, 5)])
async def test_a_share_is_rounded_up_to_whole_keys(stack: Any, stocked: int, share: float, most: int) -> None:
    sell(stack, "steam")
    stack.add("steam", *[f"A-{n}" for n in range(stocked)])
    stack.limits.per_product = share
    for n in range(most):
        await stack.reservations.reserve("demo", f"o{n}", "steam", 1)
    with pytest.raises((ReservationLimitError, InsufficientStockError)):
        await stack.reservations.reserve("demo", "more", "steam", 1)


@SQLITE
async def test_what_is_owed_cannot_be_reserved(stack: Any) -> None:
    sell(stack, "steam", "wait")
    stack.add("steam", "A-1", "A-2")
    assert (await stack.deliveries.deliver("demo", "o1", "steam", 3)).state == "pending"
    with pytest.raises(InsufficientStockError):
        await stack.reservations.reserve("demo", "o2", "steam", 1)
    sell(stack, "steam", "buy")
    stack.upstream["steam"] = 2
    with pytest.raises(InsufficientStockError):  # 1 of the 2 is lacking already
        await stack.reservations.reserve("demo", "o2", "steam", 2)
    assert (await stack.reservations.reserve("demo", "o2", "steam", 1)).promised == 1


async def test_T3_after_a_restore_what_was_reserved_is_held_like_all_else(stack: Any) -> None:
    from syncd.inventory.quarantine import Quarantine

    sell(stack, "steam", "buy")
    stack.add("steam", "A-1", "A-2", "A-3")
    stack.upstream["steam"] = 1
    await stack.reservations.reserve("demo", "o1", "steam", 1)
    await stack.reservations.reserve("demo", "o2", "steam", 3)
    await stack.deliveries.deliver("demo", "o2", "steam", 3)
    stack.tamper("INSERT INTO meta (name, value) VALUES ('restored_at', 'x')")
    stack.deliveries.fenced = True
    stack.clock.seconds += 1000
    assert await stack.reservations.sweep() == 0  # nothing is freed behind the fence
    quarantine = Quarantine(stack.writer, stack.vault, lambda: None, dict, lambda _: None)  # type: ignore[arg-type,return-value]
    assert await quarantine.recover("me") == 3
    stack.deliveries.fenced, stack.deliveries.buying = False, None
    assert states(stack) == {"held": 3}
    assert stack.reservations.find("demo", "o1").state == "expired"
    with pytest.raises(InsufficientStockError):
        await stack.deliveries.deliver("demo", "o1", "steam", 1)
    stack.add("steam", "B-1", "B-2", "B-3")
    assert await stack.deliveries.fill("steam") == 1  # the paid one is owed all of it again
    assert_holds_balance(stack)


# --- races ------------------------------------------------------------------------------------------------------------


def race(stacks: list[Any], work: Callable[[Any, int], Any]) -> list[Any]:
    """Each daemon does its work in a thread and a loop of its own: everything that came of it."""
    came: list[Any] = []
    lock = threading.Lock()

    def run(stack: Any, index: int) -> None:
        found = asyncio.run(work(stack, index))
        with lock:
            came.extend(found)

    threads = [threading.Thread(target=run, args=(stack, index)) for index, stack in enumerate(stacks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return came


ORDERS = 24


async def jostle(stack: Any, index: int) -> list[Any]:
    """Every order is reserved, swept in the second in which it is paid, and paid: by every daemon, in its own order."""
    refs = [f"o{(n * 7 + index * 11) % ORDERS}" for n in range(ORDERS)]

    async def one(ref: str) -> Any:
        await asyncio.gather(stack.reservations.reserve("demo", ref, "steam", 2, ttl_s=1), return_exceptions=True)
        steps = [stack.deliveries.deliver("demo", ref, "steam", 2), stack.reservations.sweep()]
        if len(ref) == 2:
            steps.append(stack.reservations.release("demo", ref))
        answers = await asyncio.gather(*steps, return_exceptions=True)
        return answers[0]

    return await asyncio.gather(*[one(ref) for ref in refs])


def payments_in_the_second_of_expiry(stacks: list[Any]) -> list[Any]:
    for stack in stacks:
        sell(stack, "steam", "wait")
        stack.clock.now = _ticking(stack)
    stacks[0].add("steam", *[f"A-{n}" for n in range(2 * ORDERS)])
    return race(stacks, jostle)


def _ticking(stack: Any) -> Callable[[], float]:
    """A clock that goes on by a second at every look: all is past its deadline at once."""

    def now() -> float:
        stack.clock.seconds += 1
        return float(stack.clock.seconds)

    return now


def test_M2_payment_expiry_and_release_race_and_every_order_gets_its_keys(
    make_stack: Callable[[], Any], database_url: str
) -> None:
    stacks = [make_stack() for _ in range(1 if database_url.startswith("sqlite") else 2)]
    answers = payments_in_the_second_of_expiry(stacks)
    assert [answer for answer in answers if isinstance(answer, BaseException)] == []
    asyncio.run(stacks[0].deliveries.fill("steam"))
    assert_holds_balance(stacks[0])
    assert stacks[0].rows("SELECT state, count(*) FROM delivery GROUP BY state") == [("delivered", ORDERS)]
    assert states(stacks[0]) == {"delivered": 2 * ORDERS}
    stacks[0].verified()


@POSTGRESQL
def test_M2_two_daemons_never_reserve_more_than_a_customer_may(make_stack: Callable[[], Any]) -> None:
    stacks = [make_stack(), make_stack()]
    for stack in stacks:
        sell(stack, "steam")
        stack.limits.per_customer = 3
    stacks[0].add("steam", *[f"A-{n}" for n in range(30)])

    async def grab(stack: Any, index: int) -> list[Any]:
        asked = [stack.reservations.reserve("demo", f"{index}-{n}", "steam", 1, customer="ann") for n in range(8)]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = race(stacks, grab)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 3
    assert stacks[0].rows("SELECT count(*) FROM reservation WHERE state = 'held'") == [(3,)]
    assert_holds_balance(stacks[0])


@SQLITE
async def test_control_a_sweep_that_forgets_the_keys_does_not_balance(
    stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: a reservation that ends and keeps its keys."""
    monkeypatch.setattr(holds, "let_go", lambda _tx, _keys: None)
    sell(stack, "steam")
    stack.add("steam", "A-1")
    await stack.reservations.reserve("demo", "o1", "steam", 1, ttl_s=1)
    stack.clock.seconds += 5
    await stack.reservations.sweep()
    with pytest.raises(AssertionError):
        assert_holds_balance(stack)


@POSTGRESQL
def test_control_without_a_lock_daemons_reserve_too_much_for_one_customer(
    make_stack: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reservations, "_one_daemon_at_a_time", lambda _tx, _payloads: None)
    stacks = [make_stack(), make_stack()]
    both = threading.Barrier(2)
    for stack in stacks:
        sell(stack, "steam")
        stack.limits.per_customer = 1
        spare = stack.deliveries.spare

        def slow(*args: Any, spare: Any = spare) -> Any:
            both.wait(30)  # the customer's reservations are counted by now
            return spare(*args)

        monkeypatch.setattr(stack.deliveries, "spare", slow)
    stacks[0].add("steam", "A-1", "A-2")

    async def grab(stack: Any, index: int) -> list[Any]:
        return [await stack.reservations.reserve("demo", f"{index}", "steam", 1, customer="ann")]

    race(stacks, grab)
    assert stacks[0].rows("SELECT count(*) FROM reservation WHERE state = 'held'") == [(2,)]


async def test_what_is_held_and_what_cannot_be_held_is_told_to_what_restocks(stack: Any) -> None:
    told: list[Any] = []
    stack.deliveries.restocking = SimpleNamespace(sold=told.append, refused=lambda *what: told.append(what))
    stack.add("steam", "AAAA-1", "AAAA-2")
    sell(stack, "steam")
    for _ in range(2):
        await stack.reservations.reserve("demo", "o1", "steam", 1)
    with pytest.raises(InsufficientStockError):
        await stack.reservations.reserve("demo", "o2", "steam", 3)
    assert told == ["steam", ("steam", 3, ("demo", "o2"))]
