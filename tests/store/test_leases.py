"""Who may run a supplier, and when it is due: by the database's time, one holder at a time, fenced by an epoch (D3)."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from syncd import audit
from syncd.errors import LeaseLostError
from syncd.model import Clock
from syncd.store import leases
from syncd.store.database import Database, Lane, Tx, Work, Writer
from syncd.store.leases import Acquire, Lease, Outcome
from syncd.vault.crypto import Mac, new_key

POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
COUNTS = {"seen": 5, "new": 3, "repeats": 1, "duplicates": 1, "quarantined": 1}
KEY = new_key()


class Node:
    """One daemon's writer."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.database.check_schema()
        self.writer = Writer(self.database, audit.chain(Mac(KEY)))
        self.writer.start()
        self.run_id = 100 * (self.writer.node + 1)

    def stop(self) -> None:
        self.writer.stop()
        self.database.close()

    def call(self, work: Any, payload: Any) -> Any:
        return self.writer.call(work, payload)

    def acquire(self, holder: str, *, only_due: bool = False, ttl: float = 60.0) -> Lease | None:
        self.run_id += 1
        lease: Lease | None = self.call(
            leases.ACQUIRE, Acquire("alpha", holder, ttl, self.run_id, "schedule", only_due)
        )
        return lease

    def end(self, lease: Lease, *, error: str | None = None, next_in: float = 600.0) -> bool:
        kept: bool = self.call(leases.END, Outcome(lease, self.run_id, COUNTS, error, next_in))
        return kept

    def rows(self, sql: str) -> list[Any]:
        with self.database.read() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(sql)]

    def tamper(self, statement: str) -> None:
        with self.database.engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def now(self) -> float:
        clock: Work[None, float] = Work("now", Lane.CONTROL, lambda tx, payloads: [tx.now()] * len(payloads))
        now: float = self.call(clock, None)
        return now


@pytest.fixture
def make_node(database_url: str) -> Iterator[Callable[[], Node]]:
    built: list[Node] = []

    def make() -> Node:
        built.append(Node(database_url))
        return built[-1]

    yield make
    for node in built:
        node.stop()


@pytest.fixture
def node(make_node: Callable[[], Node]) -> Node:
    made = make_node()
    made.call(leases.ENSURE, ["alpha"])
    return made


def checked(lease: Lease) -> Work[None, None]:
    """A write of a run: it checks its lease first."""

    def run(tx: Tx, payloads: Any) -> list[None]:
        lease.check(tx)
        tx.audit("test.written", holder=lease.holder)
        return [None] * len(payloads)

    return Work("checked", Lane.INGEST, run)


def test_ensuring_is_done_again_without_harm(node: Node) -> None:
    lease = node.acquire("a")
    assert lease is not None
    assert node.end(lease)
    before = node.rows("SELECT * FROM supplier")
    node.call(leases.ENSURE, ["beta", "alpha", "alpha"])
    node.call(leases.ENSURE, [])
    assert node.rows("SELECT * FROM supplier WHERE name = 'alpha'") == before
    assert node.rows("SELECT name FROM supplier ORDER BY name") == [("alpha",), ("beta",)]


def test_D3_one_holder_at_a_time_and_every_new_one_has_a_higher_epoch(node: Node) -> None:
    assert node.call(leases.DUE, None) == ["alpha"]
    first = node.acquire("a")
    assert first is not None
    assert node.call(leases.DUE, None) == []
    assert node.acquire("b") is None
    assert node.acquire("a") is None  # not even its holder begins a second run
    assert node.end(first)
    second = node.acquire("b")
    assert second is not None
    assert second.epoch > first.epoch
    assert node.rows("SELECT count(*) FROM run") == [(2,)]  # a refusal leaves no row


def test_a_supplier_that_does_not_exist_is_never_leased(node: Node) -> None:
    assert node.call(leases.ACQUIRE, Acquire("gamma", "a", 60.0, 1, "schedule", only_due=False)) is None


def test_what_is_due_later_than_any_interval_is_due(node: Node) -> None:
    """A clock that was a day ahead for a while would keep every supplier unread for a day."""
    lease = node.acquire("a")
    assert lease is not None
    node.end(lease, next_in=86400.0)
    assert (node.call(leases.DUE, 86460.0), node.call(leases.DUE, 660.0)) == ([], ["alpha"])
    wanted = Acquire("alpha", "a", 60.0, 1, "schedule", only_due=True, longest=86460.0)
    assert node.call(leases.ACQUIRE, wanted) is None
    assert node.call(leases.ACQUIRE, dataclasses.replace(wanted, longest=660.0)) is not None


def test_only_what_is_due_begins_by_schedule_and_anything_by_hand(node: Node) -> None:
    lease = node.acquire("a", only_due=True)
    assert lease is not None
    node.end(lease, next_in=600.0)
    assert node.call(leases.DUE, None) == []
    assert node.acquire("a", only_due=True) is None
    by_hand = node.acquire("a")
    assert by_hand is not None
    node.end(by_hand, next_in=-50.0)  # a run that took longer than its interval is due at once, not in the past
    ((due_at,),) = node.rows("SELECT due_at FROM supplier")
    assert by_hand.epoch == lease.epoch + 1
    assert abs(node.now() - due_at) < 60
    assert node.acquire("a", only_due=True) is not None


def test_D3_an_expired_lease_is_taken_over_and_the_old_holder_is_shut_out(node: Node) -> None:
    old = node.acquire("a")
    assert old is not None
    old_run = node.run_id
    assert node.call(leases.RENEW, (old, 60.0))
    node.call(checked(old), None)
    node.tamper("UPDATE supplier SET leased_until = 1")
    node.call(checked(old), None)  # nobody has taken over: what it writes is still its own
    new = node.acquire("b")
    assert new is not None
    assert node.rows(f"SELECT error FROM run WHERE id = {old_run}") == [("interrupted: its daemon stopped or stalled",)]
    before = node.rows("SELECT * FROM supplier"), node.rows("SELECT * FROM run ORDER BY id")
    assert node.call(leases.RENEW, (old, 60.0)) is False
    assert node.end(old) is False
    with pytest.raises(LeaseLostError):
        node.call(checked(old), None)
    assert (node.rows("SELECT * FROM supplier"), node.rows("SELECT * FROM run ORDER BY id")) == before
    node.call(checked(new), None)
    assert node.end(new)


def test_D3_neither_the_epoch_nor_the_holder_alone_is_enough(node: Node) -> None:
    lease = node.acquire("a")
    assert lease is not None
    for forged in (Lease("alpha", "b", lease.epoch), Lease("alpha", "a", lease.epoch - 1), Lease("beta", "a", 1)):
        with pytest.raises(LeaseLostError):
            node.call(checked(forged), None)
        assert node.end(forged) is False
        assert node.call(leases.RENEW, (forged, 60.0)) is False


def test_the_outcome_of_a_run_is_kept(node: Node) -> None:
    failed = node.acquire("a")
    assert failed is not None
    node.end(failed, error="x" * 10_000)
    assert node.rows("SELECT failures, last_success_at, length(last_error) FROM supplier") == [
        (1, None, leases.ERROR_CHARS)
    ]
    again = node.acquire("a")
    assert again is not None
    node.end(again, error="closed")
    assert node.rows("SELECT failures, last_error FROM supplier") == [(2, "closed")]
    better = node.acquire("a")
    assert better is not None
    node.end(better)
    ((failures, last_error, succeeded, holder, until),) = node.rows(
        "SELECT failures, last_error, last_success_at, holder, leased_until FROM supplier"
    )
    assert (failures, last_error, holder, until) == (0, None, None, None)
    assert succeeded is not None
    names = "seen, new, repeats, duplicates, quarantined, error"
    assert node.rows(f"SELECT {names} FROM run WHERE id = {node.run_id}") == [(5, 3, 1, 1, 1, None)]


@POSTGRESQL
def test_D3_leases_are_measured_by_the_databases_clock_not_the_daemons(
    make_node: Callable[[], Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon whose clock is an hour ahead must not take another's lease for expired."""
    one, two = make_node(), make_node()
    one.call(leases.ENSURE, ["alpha"])
    assert one.acquire("a") is not None

    class Ahead(Clock):
        def now(self) -> float:
            return super().now() + 3600

    two.database.clock = Ahead()
    assert two.call(leases.DUE, None) == []
    assert two.acquire("b") is None
    assert abs(one.now() - two.now()) < 60


@POSTGRESQL
async def test_D3_of_many_daemons_that_ask_at_once_one_gets_it(make_node: Callable[[], Node]) -> None:
    nodes = [make_node() for _ in range(3)]
    nodes[0].call(leases.ENSURE, ["alpha"])
    for _ in range(10):
        got = await asyncio.gather(*[asyncio.to_thread(node.acquire, f"node-{n}") for n, node in enumerate(nodes)])
        held = [(node, lease) for node, lease in zip(nodes, got, strict=True) if lease]
        assert len(held) == 1
        node, lease = held[0]
        assert node.end(lease)
    ((runs, epochs),) = nodes[0].rows("SELECT count(*), count(DISTINCT epoch) FROM run")
    assert runs == epochs == 10


@POSTGRESQL
def test_D3_a_check_holds_off_a_takeover_until_its_commit(make_node: Callable[[], Node]) -> None:
    """Between the check of a write and its commit nobody can take over: the row is locked."""
    one, two = make_node(), make_node()
    one.call(leases.ENSURE, ["alpha"])
    lease = one.acquire("a")
    assert lease is not None
    one.tamper("UPDATE supplier SET leased_until = 1")
    takeover: list[Any] = []

    def write(tx: Tx, payloads: Any) -> list[bool]:
        lease.check(tx)
        two.run_id += 1
        takeover.append(
            two.writer.post(leases.ACQUIRE, Acquire("alpha", "b", 60.0, two.run_id, "schedule", only_due=False))
        )
        with pytest.raises(TimeoutError):
            takeover[0].result(timeout=0.3)
        return [True]

    assert one.call(Work("write", Lane.INGEST, write), None)
    assert takeover[0].result(timeout=60) is not None
    with pytest.raises(LeaseLostError):
        one.call(checked(lease), None)


def test_planted_bug_a_takeover_that_keeps_the_epoch_is_caught(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness of the test above it, over a lease whose epoch stands still and whose holder is not compared."""
    real_query, real_execute = Tx.query, Tx.execute

    def weakened(sql: str) -> str:
        return sql.replace("epoch = epoch + 1", "epoch = epoch").replace("AND holder = ?", "AND ? <> ''")

    monkeypatch.setattr(Tx, "query", lambda tx, sql, params=(): real_query(tx, weakened(sql), params))
    monkeypatch.setattr(Tx, "execute", lambda tx, sql, params=(): real_execute(tx, weakened(sql), params))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_D3_an_expired_lease_is_taken_over_and_the_old_holder_is_shut_out(node)
