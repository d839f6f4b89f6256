"""A delivery gets its keys once, for ever, whatever repeats, races, alters or dies."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from syncd.errors import ConflictError, NotFoundError, UnreadableKeyError
from syncd.orders import deliveries
from syncd.orders.deliveries import (
    DeliveryCancelledError,
    FencedError,
    InsufficientStockError,
    OrderRefReusedError,
    UnknownProductError,
)
from syncd.store.database import Tx

TODAY = 1_800_000_000
POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def texts(delivery: Any) -> list[str]:
    return [key.text for key in delivery.keys]


def assert_books_balance(stack: Any) -> None:
    """What must hold whatever happened: no key with two orders, every delivered order exactly its quantity."""
    twice = stack.rows("SELECT key_id FROM allotment WHERE withdrawn_at IS NULL GROUP BY key_id HAVING count(*) > 1")
    assert twice == []
    wrong = stack.rows(
        "SELECT d.id FROM delivery d LEFT JOIN allotment a ON a.delivery_id = d.id AND a.withdrawn_at IS NULL"
        " WHERE d.state = 'delivered' GROUP BY d.id, d.quantity HAVING count(a.key_id) <> d.quantity"
    )
    assert wrong == []
    adrift = stack.rows(
        "SELECT k.id FROM vault_key k LEFT JOIN allotment a ON a.key_id = k.id AND a.withdrawn_at IS NULL"
        " WHERE (k.state = 'delivered') <> (a.key_id IS NOT NULL)"
    )
    assert adrift == []


async def test_M2_the_same_request_gets_the_same_keys_for_ever(stack: Any) -> None:
    stack.add("steam", "AAAA-1", "AAAA-2", "AAAA-3")
    first = await stack.deliveries.deliver("demo", "order-1", "steam", 2)
    again = await stack.deliveries.deliver("demo", "order-1", "steam", 2)
    assert (first.state, first.repeat, again.repeat) == ("delivered", False, True)
    assert texts(first) == texts(again) == ["AAAA-1", "AAAA-2"]
    other = await stack.deliveries.deliver("demo", "order-2", "steam", 1)
    assert texts(other) == ["AAAA-3"]
    kinds = [kind for (kind,) in stack.rows("SELECT kind FROM audit ORDER BY seq")]
    assert kinds == ["keys.taken", "delivery.delivered", "delivery.repeated", "delivery.delivered"]
    assert stack.verified() == 4
    assert_books_balance(stack)


@pytest.mark.parametrize(("product", "quantity"), [("steam", 2), ("xbox", 1)])
async def test_M2_other_content_under_the_same_order_ref_is_refused(stack: Any, product: str, quantity: int) -> None:
    stack.add("steam", "AAAA-1", "AAAA-2", "AAAA-3")
    stack.add("xbox", "BBBB-1")
    await stack.deliveries.deliver("demo", "order-1", "steam", 1)
    with pytest.raises(OrderRefReusedError):
        await stack.deliveries.deliver("demo", "order-1", product, quantity)
    assert stack.rows("SELECT count(*) FROM allotment") == [(1,)]


async def test_order_refs_of_two_shops_do_not_meet(stack: Any) -> None:
    stack.add("steam", "AAAA-1", "AAAA-2")
    one = await stack.deliveries.deliver("demo", "order-1", "steam", 1)
    two = await stack.deliveries.deliver("other", "order-1", "steam", 1)
    assert texts(one) != texts(two)
    assert not two.repeat


async def test_M2_quantity_is_all_or_nothing_and_nothing_is_recorded(stack: Any) -> None:
    stack.add("steam", "AAAA-1", "AAAA-2")
    with pytest.raises(InsufficientStockError):
        await stack.deliveries.deliver("demo", "order-1", "steam", 3)
    assert stack.rows("SELECT count(*) FROM delivery") == [(0,)]
    stack.add("steam", "AAAA-3")
    assert len((await stack.deliveries.deliver("demo", "order-1", "steam", 3)).keys) == 3


async def test_a_product_that_left_the_configuration_is_answered_but_not_sold(stack: Any) -> None:
    stack.add("steam", "AAAA-1", "AAAA-2")
    first = await stack.deliveries.deliver("demo", "order-1", "steam", 1)
    del stack.products["steam"]
    assert texts(await stack.deliveries.deliver("demo", "order-1", "steam", 1)) == texts(first)
    with pytest.raises(UnknownProductError):
        await stack.deliveries.deliver("demo", "order-2", "steam", 1)


@pytest.mark.parametrize("spread", ["one order", "two orders"])
async def test_M2_64_simultaneous_requests_one_allotment(stack: Any, spread: str) -> None:
    stack.add("steam", *[f"AAAA-{n}" for n in range(100)])
    refs = ["order-1"] * 64 if spread == "one order" else ["order-1", "order-2"] * 32
    answers = await asyncio.gather(*[stack.deliveries.deliver("demo", ref, "steam", 2) for ref in refs])
    assert sum(not answer.repeat for answer in answers) == len(set(refs))
    assert len({tuple(texts(answer)) for answer in answers}) == len(set(refs))
    assert stack.rows("SELECT count(*) FROM allotment") == [(2 * len(set(refs)),)]
    assert_books_balance(stack)


async def test_soonest_expiring_first_then_oldest_and_never_an_expired_one(stack: Any) -> None:
    stack.add("steam", "LATE-1", "LATE-2")
    stack.add("steam", "SOON", expires_at=TODAY + 500)
    stack.add("steam", "GONE", expires_at=TODAY)
    stack.add("steam", "MID", expires_at=TODAY + 900)
    got = [texts(await stack.deliveries.deliver("demo", f"o{n}", "steam", 1))[0] for n in range(4)]
    assert got == ["SOON", "MID", "LATE-1", "LATE-2"]
    with pytest.raises(InsufficientStockError):
        await stack.deliveries.deliver("demo", "o9", "steam", 1)


async def test_K7_a_key_with_too_little_life_left_is_not_claimed(stack: Any) -> None:
    stack.add("steam", "SOON", expires_at=TODAY + 500)
    stack.products["steam"] = SimpleNamespace(min_life=600, takes=range(1, 1001), on_shortage="refuse")
    with pytest.raises(InsufficientStockError):
        await stack.deliveries.deliver("demo", "o1", "steam", 1)
    stack.products["steam"] = SimpleNamespace(min_life=400, takes=range(1, 1001), on_shortage="refuse")
    assert texts(await stack.deliveries.deliver("demo", "o1", "steam", 1)) == ["SOON"]


def swap(stack: Any) -> list[str]:
    (one, first), (two, second) = stack.rows("SELECT id, sealed FROM vault_key ORDER BY id")[:2]
    hexed = "decode('{}', 'hex')" if stack.database.postgresql else "x'{}'"
    return [
        f"UPDATE vault_key SET sealed = {hexed.format(bytes(second).hex())} WHERE id = {one}",
        f"UPDATE vault_key SET sealed = {hexed.format(bytes(first).hex())} WHERE id = {two}",
    ]


def flip(stack: Any) -> list[str]:
    statements = []
    for row_id, blob in stack.rows("SELECT id, sealed FROM vault_key WHERE state = 'available' ORDER BY id")[:2]:
        altered = bytearray(blob)
        altered[-1] ^= 1
        hexed = f"decode('{altered.hex()}', 'hex')" if stack.database.postgresql else f"x'{altered.hex()}'"
        statements.append(f"UPDATE vault_key SET sealed = {hexed} WHERE id = {row_id}")
    return statements


def redate(stack: Any) -> list[str]:
    ids = [row[0] for row in stack.rows("SELECT id FROM vault_key ORDER BY id")[:2]]
    return [f"UPDATE vault_key SET expires_at = {TODAY + 99} WHERE id = {row_id}" for row_id in ids]


def relabel(stack: Any) -> list[str]:
    ids = [row[0] for row in stack.rows("SELECT id FROM vault_key ORDER BY id")[:2]]
    return [f"UPDATE vault_key SET sealed_sku = 'dear' WHERE id = {row_id}" for row_id in ids]


@pytest.mark.parametrize("attack", [swap, flip, redate, relabel], ids=lambda attack: attack.__name__)
async def test_S1_K4_altered_or_moved_keys_are_not_delivered_others_are(stack: Any, attack: Any) -> None:
    stack.add("steam", "BAD-1", "BAD-2", "GOOD-3", "GOOD-4", "GOOD-5")
    stack.tamper(*attack(stack))
    answer = await stack.deliveries.deliver("demo", "o1", "steam", 3)
    assert sorted(texts(answer)) == ["GOOD-3", "GOOD-4", "GOOD-5"]
    assert not answer.repeat
    assert texts(await stack.deliveries.deliver("demo", "o1", "steam", 3)) == texts(answer)
    assert Counter(state for (state,) in stack.rows("SELECT state FROM vault_key")) == {"delivered": 3, "corrupt": 2}
    assert stack.metrics.key_unreadable._value.get() == 2
    assert [k for (k,) in stack.rows("SELECT kind FROM audit ORDER BY seq")].count("key.corrupt") == 2
    stack.verified()
    assert_books_balance(stack)


async def test_S1_a_cheap_key_relabelled_as_a_dear_product_is_not_delivered(stack: Any) -> None:
    stack.add("cheap", "CHEAP-1")
    stack.add("dear", "DEAR-1")
    stack.tamper("UPDATE vault_key SET product = 'dear'")
    assert texts(await stack.deliveries.deliver("demo", "o1", "dear", 1)) == ["DEAR-1"]


async def test_K4_with_none_left_the_delivery_waits_and_completes_when_keys_arrive(stack: Any) -> None:
    stack.add("steam", "BAD-1", "BAD-2")
    stack.tamper(*flip(stack))
    answer = await stack.deliveries.deliver("demo", "o1", "steam", 2)
    assert (answer.state, answer.reason, answer.keys) == ("pending", "key_unreadable", [])
    again = await stack.deliveries.deliver("demo", "o1", "steam", 2)
    assert (again.state, again.repeat) == ("pending", True)
    stack.add("steam", "GOOD-1")
    assert await stack.deliveries.fill("steam") == 0
    stack.add("steam", "GOOD-2")
    assert await stack.deliveries.fill("steam") == 1
    done = await stack.deliveries.deliver("demo", "o1", "steam", 2)
    assert (done.state, texts(done), done.repeat) == ("delivered", ["GOOD-1", "GOOD-2"], True)
    assert_books_balance(stack)


async def test_pending_deliveries_are_filled_first_come_first_served(stack: Any) -> None:
    waiting(stack, "steam")
    for ref in ("o1", "o2"):
        assert (await stack.deliveries.deliver("demo", ref, "steam", 1)).state == "pending"
    stack.add("steam", "GOOD-1")
    assert await stack.deliveries.fill("steam") == 1
    assert (await stack.deliveries.deliver("demo", "o1", "steam", 1)).state == "delivered"
    assert (await stack.deliveries.deliver("demo", "o2", "steam", 1)).state == "pending"


async def test_a_request_may_wait_for_the_keys_of_a_pending_delivery(stack: Any) -> None:
    stack.add("steam", "BAD-1")
    stack.tamper(*flip(stack))
    assert (await stack.deliveries.deliver("demo", "o1", "steam", 1, wait_s=0.3)).state == "pending"
    waiting = [asyncio.create_task(stack.deliveries.deliver("demo", "o1", "steam", 1, wait_s=20)) for _ in range(3)]
    await asyncio.sleep(0.3)
    stack.add("steam", "GOOD-1")
    assert await stack.deliveries.fill("steam") == 1
    for answer in await asyncio.gather(*waiting):
        assert (answer.state, texts(answer), answer.repeat) == ("delivered", ["GOOD-1"], True)
    assert_books_balance(stack)


async def test_a_request_that_waits_is_told_of_a_cancel(stack: Any) -> None:
    stack.add("steam", "BAD-1")
    stack.tamper(*flip(stack))
    await stack.deliveries.deliver("demo", "o1", "steam", 1)
    waiting = asyncio.create_task(stack.deliveries.deliver("demo", "o1", "steam", 1, wait_s=20))
    await asyncio.sleep(0.1)
    await stack.deliveries.cancel("demo", "o1")
    with pytest.raises(DeliveryCancelledError):
        await waiting


async def test_a_pending_delivery_can_be_cancelled_for_ever(stack: Any) -> None:
    stack.add("steam", "BAD-1", "BAD-2")
    stack.tamper(*flip(stack))
    await stack.deliveries.deliver("demo", "o1", "steam", 2)
    assert (await stack.deliveries.cancel("demo", "o1")).state == "cancelled"
    assert (await stack.deliveries.cancel("demo", "o1")).state == "cancelled"
    stack.add("steam", "GOOD-1", "GOOD-2")
    assert await stack.deliveries.fill("steam") == 0
    with pytest.raises(DeliveryCancelledError):
        await stack.deliveries.deliver("demo", "o1", "steam", 2)
    await stack.deliveries.deliver("demo", "o2", "steam", 1)
    with pytest.raises(ConflictError):
        await stack.deliveries.cancel("demo", "o2")
    with pytest.raises(NotFoundError):
        await stack.deliveries.cancel("demo", "o3")


async def test_T3_nothing_leaves_while_the_restore_fence_stands(stack: Any) -> None:
    stack.add("steam", "AAAA-1")
    stack.deliveries.fenced = True
    with pytest.raises(FencedError):
        await stack.deliveries.deliver("demo", "o1", "steam", 1)
    stack.deliveries.fenced = False
    assert texts(await stack.deliveries.deliver("demo", "o1", "steam", 1)) == ["AAAA-1"]


def storm(stacks: list[Any], orders: int, times: int) -> list[Any]:
    """Every daemon gets every order ``times`` times, from a loop and thread of its own."""
    answers: list[Any] = []

    def run(stack: Any) -> None:
        async def all_of_them() -> None:
            jobs = [
                stack.deliveries.deliver("demo", f"order-{n}", "steam", 1 + n % 3)
                for _ in range(times)
                for n in range(orders)
            ]
            answers.extend(await asyncio.gather(*jobs, return_exceptions=True))

        asyncio.run(all_of_them())

    threads = [threading.Thread(target=run, args=(stack,)) for stack in stacks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return answers


@POSTGRESQL
def test_M2_K2_two_daemons_on_one_postgresql_share_the_stock_to_the_last_key(make_stack: Callable[[], Any]) -> None:
    stacks = [make_stack(), make_stack()]
    need = sum(1 + n % 3 for n in range(60))
    stacks[0].add("steam", *[f"AAAA-{n}" for n in range(need)])
    stacks[1].products.update(stacks[0].products)
    answers = storm(stacks, orders=60, times=3)
    assert [answer for answer in answers if isinstance(answer, Exception)] == []
    by_order: dict[str, set[tuple[str, ...]]] = {}
    for answer in answers:
        by_order.setdefault(answer.order_ref, set()).add(tuple(texts(answer)))
    assert all(len(keys) == 1 for keys in by_order.values())
    assert sum(len(next(iter(keys))) for keys in by_order.values()) == need
    assert stacks[0].rows("SELECT count(*) FROM vault_key WHERE state = 'available'") == [(0,)]
    stacks[0].verified()
    assert_books_balance(stacks[0])


@POSTGRESQL
def test_control_without_the_unique_constraint_and_the_state_check_the_books_do_not_balance(
    make_stack: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: two daemons that look at stock without locks, and a database that would let them."""
    stacks = [make_stack(), make_stack()]
    stacks[0].add("steam", *[f"AAAA-{n}" for n in range(200)])
    stacks[1].products.update(stacks[0].products)
    stacks[0].tamper("ALTER TABLE allotment DROP CONSTRAINT pk_allotment")
    look = deliveries._what_is_there
    monkeypatch.setattr(deliveries, "_what_is_there", lambda tx, need, _lock="": look(tx, need, ""))
    for stack in stacks:

        def hand_over(tx: Any, allotments: Any, *before: Any) -> None:
            tx.change(before)
            for row in allotments:
                tx.execute("INSERT INTO allotment (key_id, delivery_id, unit) VALUES (?, ?, ?)", row)
                tx.execute("UPDATE vault_key SET state = 'delivered' WHERE id = ?", row[:1])

        monkeypatch.setattr(stack.deliveries, "_hand_over", hand_over)
    for number in range(20):
        storm(
            [SimpleNamespace(deliveries=_Renamed(stack.deliveries, f"{number}-{i}")) for i, stack in enumerate(stacks)],
            5,
            1,
        )
    with pytest.raises(AssertionError):
        assert_books_balance(stacks[0])


class _Renamed:
    """Gives each daemon orders of its own, so that they race for keys and not for orders."""

    def __init__(self, deliveries: Any, prefix: str) -> None:
        self._deliveries, self._prefix = deliveries, prefix

    def deliver(self, shop: str, ref: str, product: str, quantity: int) -> Any:
        return self._deliveries.deliver(shop, f"{self._prefix}-{ref}", product, quantity)


async def test_S3_K5_the_same_key_is_never_sold_twice(stack: Any) -> None:
    assert stack.add("steam", "ABCD-EFGH", source="feed:first").sealed == 1
    other = stack.add("steam", "abcdefgh", "WXYZ-1234", source="feed:second")
    assert (other.sealed, other.duplicates, other.quarantined, other.reasons) == (1, 1, 1, {"duplicate": 1})
    ((reason, name),) = stack.rows(
        "SELECT q.reason, s.name FROM quarantine q JOIN source s ON s.id = q.first_source_id"
    )
    assert (reason, name) == ("duplicate", "feed:first")
    assert stack.rows("SELECT count(*) FROM vault_key") == [(2,)]


async def test_S3_K5_a_repeat_in_its_own_source_leaves_no_row_and_another_spelling_is_kept(stack: Any) -> None:
    counts = stack.add("steam", "ABCD-EFGH", "ABCD-EFGH", "abcd-efgh")
    assert (counts.sealed, counts.repeats, counts.quarantined, counts.reasons) == (1, 1, 1, {"respelled": 1})


def test_S1_confidential_nothing_in_the_database_shows_a_key(stack: Any) -> None:
    stack.add("steam", "CANARY-7731-TEXT", "CANARY-7731-TEXT", "canary-7731-text")
    dumped = b"".join(
        bytes(cell) if isinstance(cell, bytes | memoryview) else str(cell).encode()
        for table in ("vault_key", "quarantine", "fingerprint", "source", "audit", "keyring")
        for row in stack.rows(f"SELECT * FROM {table}")
        for cell in row
    ).upper()
    assert dumped
    assert b"CANARY" not in dumped
    assert not re.search(rb"7731\W?TEXT", dumped)  # the digits alone may stand in an id


def test_a_key_opens_for_its_own_product_only(stack: Any) -> None:
    stack.add("steam", "AAAA-1")
    ((row_id, sku, source_id, expires_at, sealed),) = stack.rows(
        "SELECT id, sealed_sku, source_id, expires_at, sealed FROM vault_key"
    )
    from syncd.vault.vault import KeyRow

    row = KeyRow(row_id, sku, f"feed:{source_id}", expires_at, bytes(sealed))
    assert stack.vault.open(row, "steam").text == "AAAA-1"
    with pytest.raises(UnreadableKeyError):
        stack.vault.open(row, "xbox")


@pytest.mark.parametrize("rows", [20_000])
def test_plans_stay_index_lookups_however_many_keys_there_are(
    stack: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hot statements never scan: looked up in the engine's own plan, on a table worth scanning."""
    chunk = 2000
    for start in range(0, rows, chunk):
        stack.add("steam", *[f"K-{n}" for n in range(start, start + chunk)])
    seen: list[tuple[str, Any]] = []
    run, together = Tx._run, Tx._together

    def note(sql: str, params: Any) -> None:
        # SQLite plans a foreign-key scan for every INSERT of several rows, and skips it as it runs.
        known = "INSERT INTO delivery" in sql and not stack.database.postgresql
        if sql.lstrip().startswith(("WITH", "SELECT", "UPDATE")) and not known:
            seen.append((sql, params))

    def noted(tx: Tx, sql: str, params: Any) -> None:
        note(sql, params)
        run(tx, sql, params)

    def noted_together(tx: Tx, statements: Any) -> Any:
        for statement in statements:
            note(*statement)
        return together(tx, statements)

    monkeypatch.setattr(Tx, "_run", noted)
    monkeypatch.setattr(Tx, "_together", noted_together)
    asyncio.run(stack.deliveries.deliver("demo", "o1", "steam", 5))
    asyncio.run(stack.deliveries.deliver("demo", "o1", "steam", 5))
    assert len(seen) > 5
    # The writer has its own planner settings on PostgreSQL: ask on its connection.
    cursor = stack.writer._cursor
    for sql, params in seen:
        if "$1" in sql:  # planned once for all values
            cursor.execute(f"EXPLAIN (GENERIC_PLAN) {sql}")
        else:
            cursor.execute(f"{'EXPLAIN' if stack.database.postgresql else 'EXPLAIN QUERY PLAN'} {sql}", params)
        plan = "\n".join(" ".join(str(cell) for cell in row) for row in cursor.fetchall())
        for table in ("vault_key", "delivery", "allotment", "fingerprint"):
            assert f"SCAN {table}" not in plan, plan
            assert f"Seq Scan on {table}" not in plan, plan


# --- orders that wait for keys ----------------------------------------------------------------------------------------


def waiting(stack: Any, sku: str) -> None:
    stack.products[sku] = SimpleNamespace(min_life=0, on_shortage="wait", takes=range(1, 1001))


async def test_M2_an_order_that_finds_too_few_keys_waits_and_gets_them_once(stack: Any) -> None:
    waiting(stack, "steam")
    stack.add("steam", "A-1")
    first = await stack.deliveries.deliver("demo", "order-1", "steam", 2)
    assert (first.state, first.reason, first.repeat, first.keys) == ("pending", "backordered", False, [])
    again = await stack.deliveries.deliver("demo", "order-1", "steam", 2)
    assert (again.id, again.state, again.repeat) == (first.id, "pending", True)
    stack.add("steam", "A-2")
    assert await stack.deliveries.fill("steam") == 1
    got = await stack.deliveries.deliver("demo", "order-1", "steam", 2)
    assert (got.id, got.state, sorted(key.text for key in got.keys)) == (first.id, "delivered", ["A-1", "A-2"])
    assert await stack.deliveries.fill("steam") == 0
    stack.verified()


async def test_an_order_that_waits_can_be_cancelled_for_ever(stack: Any) -> None:
    waiting(stack, "steam")
    await stack.deliveries.deliver("demo", "order-1", "steam", 1)
    assert (await stack.deliveries.cancel("demo", "order-1")).state == "cancelled"
    stack.add("steam", "A-1")
    assert await stack.deliveries.fill("steam") == 0
    with pytest.raises(DeliveryCancelledError):
        await stack.deliveries.deliver("demo", "order-1", "steam", 1)


async def test_one_batch_may_hold_orders_that_get_keys_that_wait_and_that_are_refused(stack: Any) -> None:
    waiting(stack, "steam")
    stack.add("steam", "A-1")
    stack.products["xbox"] = SimpleNamespace(min_life=0, on_shortage="refuse", takes=range(1, 1001))
    asked = [("o1", "steam"), ("o2", "steam"), ("o2", "steam"), ("o3", "xbox")]
    found = await asyncio.gather(
        *[stack.deliveries.deliver("demo", ref, sku, 1) for ref, sku in asked], return_exceptions=True
    )
    assert [getattr(one, "state", type(one).__name__) for one in found] == [
        "delivered",
        "pending",
        "pending",
        "InsufficientStockError",
    ]
    assert stack.rows("SELECT count(*) FROM delivery") == [(2,)]


async def ordered(stack: Any, *asked: tuple[str, int]) -> list[str]:
    """The states of orders of steam, one after the other."""
    return [(await stack.deliveries.deliver("demo", ref, "steam", quantity)).state for ref, quantity in asked]


async def test_M2_no_later_order_overtakes_one_that_waits(stack: Any) -> None:
    waiting(stack, "steam")
    stack.add("steam", "A-1", "A-2")
    assert await ordered(stack, ("o1", 3), ("o2", 2)) == ["pending", "pending"]
    stack.add("steam", "A-3")
    assert await ordered(stack, ("o3", 1)) == ["pending"]  # the keys are there, and o1's
    assert await stack.deliveries.fill("steam") == 1
    assert await ordered(stack, ("o1", 3), ("o2", 2), ("o3", 1)) == ["delivered", "pending", "pending"]
    stack.add("steam", "A-4", "A-5", "A-6", "A-7", "A-8")
    assert await ordered(stack, ("o4", 2)) == ["delivered"]  # what nobody waits for is sold
    assert await ordered(stack, ("o5", 1)) == ["pending"]
    assert await stack.deliveries.fill("steam") == 2
    assert_books_balance(stack)


async def test_M2_orders_of_one_batch_do_not_overtake_each_other(stack: Any) -> None:
    waiting(stack, "steam")
    stack.add("steam", "A-1", "A-2")
    found = await asyncio.gather(
        *[stack.deliveries.deliver("demo", f"o{quantity}", "steam", quantity) for quantity in (3, 2, 1)]
    )
    assert [one.state for one in found] == ["pending", "pending", "pending"]


async def test_M2_what_is_owed_is_not_sold_to_orders_that_do_not_wait_either(stack: Any) -> None:
    stack.add("steam", "BAD-1", "BAD-2")
    stack.tamper(*flip(stack))
    assert await ordered(stack, ("o1", 2)) == ["pending"]
    stack.add("steam", "GOOD-1")
    with pytest.raises(InsufficientStockError):
        await stack.deliveries.deliver("demo", "o2", "steam", 1)
    stack.add("steam", "GOOD-2", "GOOD-3")
    assert await ordered(stack, ("o2", 1)) == ["delivered"]
    assert await stack.deliveries.fill("steam") == 1
    assert_books_balance(stack)


async def test_M2_behind_many_that_wait_everybody_waits(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "_MANY", 3)
    waiting(stack, "steam")
    assert await ordered(stack, *[(f"o{n}", 1) for n in range(4)]) == ["pending"] * 4
    stack.add("steam", *[f"A-{n}" for n in range(10)])
    assert await ordered(stack, ("late", 1)) == ["pending"]
    assert await stack.deliveries.fill("steam") == 5


async def test_M2_all_that_wait_are_filled_not_only_the_first_hundred(
    stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "_FILL_AT_ONCE", 2)
    waiting(stack, "steam")
    await ordered(stack, *[(f"o{n}", 1) for n in range(5)])
    stack.add("steam", *[f"A-{n}" for n in range(5)])
    assert await stack.deliveries.fill("steam") == 5


async def test_M2_a_cancel_lets_the_next_in_line_have_its_keys(stack: Any) -> None:
    waiting(stack, "steam")
    stack.add("steam", "A-1")
    assert await ordered(stack, ("o1", 2), ("o2", 1)) == ["pending", "pending"]
    await stack.deliveries.cancel("demo", "o1")
    found = stack.deliveries.find("demo", "o2")
    assert found is not None
    assert found.state == "delivered"


async def test_M2_keys_that_came_while_nobody_looked_are_found(stack: Any) -> None:
    """A daemon may die, or lose its database, between the keys that it took in and the orders that wait for them."""
    for sku in ("steam", "xbox", "gone"):
        waiting(stack, sku)
        await stack.deliveries.deliver("demo", sku, sku, 1)
        stack.add(sku, f"{sku}-1")
    del stack.products["gone"]  # it was paid for all the same
    assert await stack.deliveries.fill_waiting() == 3
    assert await stack.deliveries.fill_waiting() == 0


async def test_T3_nothing_is_filled_while_the_restore_fence_stands(stack: Any) -> None:
    """What was available at the backup may have left since: it must not go to an order that waited then."""
    waiting(stack, "steam")
    assert await ordered(stack, ("o1", 1)) == ["pending"]
    stack.add("steam", "A-1")
    stack.deliveries.fenced = True
    assert await stack.deliveries.fill("steam") == 0
    assert await stack.deliveries.fill_waiting() == 0
    assert stack.rows("SELECT count(*) FROM allotment") == [(0,)]


async def test_however_many_wait_one_look_serves_them_all(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting(stack, "steam")
    looks: list[int] = []
    look = deliveries.Deliveries._settled

    def counted(self: Any, ids: Any) -> Any:
        looks.append(len(ids))
        return look(self, ids)

    monkeypatch.setattr(deliveries.Deliveries, "_settled", counted)
    number = 100
    asked = [
        asyncio.create_task(stack.deliveries.deliver("demo", f"o{n}", "steam", 1, wait_s=20)) for n in range(number)
    ]
    short = await stack.deliveries.deliver("demo", "short", "steam", 1, wait_s=0.6)
    assert short.state == "pending"
    stack.add("steam", *[f"A-{n}" for n in range(number + 1)])
    assert await stack.deliveries.fill("steam") == number + 1
    assert {answer.state for answer in await asyncio.gather(*asked)} == {"delivered"}
    assert len(looks) < 20
    await asyncio.sleep(0.6)
    seen = len(looks)
    await asyncio.sleep(0.6)
    assert len(looks) == seen  # nobody waits: nobody looks


@POSTGRESQL
async def test_D2_the_head_of_the_audit_is_locked_after_all_that_a_unit_locks(
    stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two daemons could wait for each other: one with the head for a key, one with the key for the head."""
    waiting(stack, "steam")
    await ordered(stack, ("o1", 1), ("o2", 1))
    stack.add("steam", "A-1", "A-2")
    said: list[str] = []
    run, together = Tx._run, Tx._together

    def noted(tx: Tx, sql: str, params: Any) -> None:
        said.append(sql)
        run(tx, sql, params)

    def noted_together(tx: Tx, statements: Any) -> Any:
        said.extend(sql for sql, _ in statements)
        return together(tx, statements)

    monkeypatch.setattr(Tx, "_run", noted)
    monkeypatch.setattr(Tx, "_together", noted_together)
    assert await stack.deliveries.fill("steam") == 2
    head = next(index for index, sql in enumerate(said) if "audit_head" in sql)
    assert not [sql for sql in said[head + 1 :] if "vault_key" in sql or "delivery" in sql]


@POSTGRESQL
async def test_T3_what_one_daemon_has_recovered_the_others_deliver(make_stack: Callable[[], Any]) -> None:
    stack, other = make_stack(), make_stack()
    stack.add("steam", "AAAA-1")
    other.products.update(stack.products)
    stack.tamper("INSERT INTO meta (name, value) VALUES ('restored_at', 'x')")
    other.deliveries.fenced = True
    await other.deliveries.look_at_fence()
    with pytest.raises(FencedError):
        await other.deliveries.deliver("demo", "o1", "steam", 1)
    stack.tamper("DELETE FROM meta WHERE name = 'restored_at'")
    await other.deliveries.look_at_fence()
    assert (await other.deliveries.deliver("demo", "o1", "steam", 1)).state == "delivered"


@POSTGRESQL
async def test_M2_no_order_overtakes_one_that_another_daemon_looks_at(stack: Any) -> None:
    waiting(stack, "steam")
    stack.add("steam", "A-1")
    assert await ordered(stack, ("o1", 2), ("o2", 1)) == ["pending", "pending"]
    with stack.database.engine.connect() as other:
        other.exec_driver_sql("BEGIN")
        other.exec_driver_sql("SELECT 1 FROM delivery WHERE order_ref = 'o1' FOR UPDATE")
        filling = asyncio.create_task(stack.deliveries.fill("steam"))
        await asyncio.sleep(0.5)
        other.exec_driver_sql("COMMIT")
    assert await filling == 0
    assert stack.rows("SELECT count(*) FROM allotment") == [(0,)]


@POSTGRESQL
async def test_T3_keys_freed_and_sold_by_another_daemon_meanwhile_are_left_alone(stack: Any) -> None:
    stack.add("steam", "A-1", "A-2")
    assert stack.writer.call(stack.vault.hold, 10) == 2
    with stack.database.engine.connect() as other:
        other.exec_driver_sql("BEGIN")
        for state in ("available", "delivered"):
            other.exec_driver_sql(f"UPDATE vault_key SET state = '{state}' WHERE id = (SELECT min(id) FROM vault_key)")
        freeing = asyncio.wrap_future(stack.writer.post(stack.vault.unhold, ("steam", "me", 10)))
        await asyncio.sleep(0.5)
        other.exec_driver_sql("COMMIT")
    assert await freeing == 1
    assert stack.rows("SELECT state FROM vault_key ORDER BY id") == [("delivered",), ("available",)]


async def test_asking_after_an_order_that_waits_leaves_no_trace_and_after_its_keys_does(stack: Any) -> None:
    """Shops ask every few seconds, for as long as it takes; the audit is for ever."""
    waiting(stack, "steam")
    await ordered(stack, ("o1", 1), ("o1", 1))
    found = await stack.deliveries.look("demo", "o1", reveal=True)
    assert (found.state, found.keys) == ("pending", [])
    assert stack.rows("SELECT kind FROM audit") == [("delivery.pending",)]
    stack.add("steam", "A-1")
    await stack.deliveries.fill("steam")
    assert texts(await stack.deliveries.look("demo", "o1", reveal=True)) == ["A-1"]
    assert stack.rows("SELECT count(*) FROM audit WHERE kind = 'delivery.repeated'") == [(1,)]


async def test_what_is_sold_and_what_is_refused_is_told_to_what_restocks(stack: Any) -> None:
    told: list[Any] = []
    stack.deliveries.restocking = SimpleNamespace(sold=told.append, refused=lambda *what: told.append(what))
    stack.add("steam", "AAAA-1")
    for _ in range(2):
        await stack.deliveries.deliver("demo", "order-1", "steam", 1)
    with pytest.raises(InsufficientStockError):
        await stack.deliveries.deliver("demo", "order-2", "steam", 3)
    assert told == ["steam", ("steam", 3, ("demo", "order-2"))]
