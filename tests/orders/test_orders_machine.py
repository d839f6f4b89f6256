"""Whatever shops, customers and the clock do in whatever order: no key has two owners, and what was said holds.

A state machine against one database, with products of its own in each run. What it believes is kept in plain dicts.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import sqlite3
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from syncd.errors import SyncdError
from syncd.orders import holds
from syncd.orders.deliveries import Deliveries
from syncd.orders.replacements import Replacements

REFS = st.integers(0, 4)
UNITS = st.integers(1, 3)
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
_skus = itertools.count()


class Orders(RuleBasedStateMachine):
    stack: ClassVar[Any]

    def __init__(self) -> None:
        super().__init__()
        self.sku = f"p{next(_skus)}"
        self.shop = self.sku
        self.stack.products[self.sku] = SimpleNamespace(min_life=0, takes=range(1, 9), on_shortage="wait")
        self.replacing = Replacements(self.stack.deliveries, self.stack.writer, lambda: 2)
        self.held: dict[str, int] = {}
        """What a shop was told that it holds, by order."""
        self.got: dict[str, dict[str, str]] = {}
        """Order → key id → text, as last answered."""
        self.bad: set[str] = set()
        self.numbers = itertools.count()

    def ask(self, asked: Any) -> Any:
        async def run() -> Any:
            try:
                return await asked
            except SyncdError as error:
                return error

        return asyncio.run(run())

    @initialize()
    def stocked(self) -> None:
        self.arrive(4)

    @rule(units=UNITS)
    def arrive(self, units: int) -> None:
        self.stack.add(self.sku, *[f"{self.sku}-{next(self.numbers)}" for _ in range(units)])
        self.ask(self.stack.deliveries.fill(self.sku))

    @rule(ref=REFS, units=UNITS, ttl=st.sampled_from([1, 100]))
    def reserve(self, ref: int, units: int, ttl: int) -> None:
        order = f"o{ref}"
        answer = self.ask(self.stack.reservations.reserve(self.shop, order, self.sku, units, ttl_s=ttl))
        if not isinstance(answer, SyncdError) and answer.state == "held":
            assert self.held.get(order, units) == units
            self.held[order] = units

    @rule(ref=REFS)
    def release(self, ref: int) -> None:
        answer = self.ask(self.stack.reservations.release(self.shop, f"o{ref}"))
        if not isinstance(answer, SyncdError):
            self.held.pop(f"o{ref}", None)

    @rule(ref=REFS, units=UNITS)
    def pay(self, ref: int, units: int) -> None:
        self.paid(f"o{ref}", units)

    def paid(self, order: str, units: int) -> None:
        answer = self.ask(self.stack.deliveries.deliver(self.shop, order, self.sku, units))
        promised = self.held.pop(order, None)
        if isinstance(answer, SyncdError):
            assert promised is None
            return
        if promised == units:
            assert answer.state == "delivered", "what was held was not there"
        if answer.state == "delivered":
            assert len(answer.keys) == units
            keys = {str(key.id): key.text for key in answer.keys}
            known = self.got.get(order)
            assert known is None or not answer.repeat or known == keys or not known.keys() <= keys.keys()
            self.got[order] = keys

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 9))
    def pay_what_is_held(self, which: int) -> None:
        order = sorted(self.held)[which % len(self.held)]
        self.paid(order, self.held[order])

    @rule(ref=REFS)
    def cancel(self, ref: int) -> None:
        self.ask(self.stack.deliveries.cancel(self.shop, f"o{ref}"))

    @precondition(lambda self: self.got)
    @rule(data=st.data())
    def complain(self, data: st.DataObject) -> None:
        order = data.draw(st.sampled_from(sorted(self.got)))
        key = data.draw(st.sampled_from(sorted(self.got[order])))
        answer = self.ask(self.replacing.replace(self.shop, order, int(key), "invalid"))
        if not isinstance(answer, SyncdError):
            self.bad.add(key)
            if answer.state == "delivered":
                self.got[order] = {str(key.id): key.text for key in answer.keys}

    @rule(seconds=st.sampled_from([2, 200]))
    def time_passes(self, seconds: int) -> None:
        self.stack.clock.seconds += seconds

    @rule()
    def sweep(self) -> None:
        self.ask(self.stack.reservations.sweep())
        for order in list(self.held):
            if self.stack.reservations.find(self.shop, order).state != "held":
                del self.held[order]

    @invariant()
    def books_balance(self) -> None:
        def none(sql: str) -> None:
            scoped = re.sub(
                r"FROM (vault_key|delivery|reservation) ",
                rf"FROM (SELECT * FROM \1 WHERE product = '{self.sku}') ",
                sql,
            )
            assert self.stack.rows(scoped) == [], sql

        none(
            "SELECT k.id FROM vault_key k LEFT JOIN reserved_key h ON h.key_id = k.id"
            " LEFT JOIN allotment a ON a.key_id = k.id AND a.withdrawn_at IS NULL"
            " WHERE (k.state = 'reserved') <> (h.key_id IS NOT NULL)"
            " OR (k.state = 'delivered') <> (a.key_id IS NOT NULL)"
        )
        none(
            "SELECT r.id FROM reservation r WHERE r.state = 'held' AND r.quantity"
            " <> (SELECT count(*) FROM reserved_key h WHERE h.reservation_id = r.id)"
        )
        none(
            "SELECT d.id FROM delivery d WHERE d.state = 'delivered' AND d.quantity"
            " <> (SELECT count(*) FROM allotment a WHERE a.delivery_id = d.id AND a.withdrawn_at IS NULL)"
        )
        none(
            "SELECT d.id FROM delivery d WHERE d.state = 'cancelled' AND EXISTS"
            " (SELECT 1 FROM allotment a WHERE a.delivery_id = d.id AND a.withdrawn_at IS NULL)"
        )
        ids = [key for keys in self.got.values() for key in keys if key not in self.bad]
        assert len(ids) == len(set(ids)), "a key has two orders"

    def teardown(self) -> None:
        for order in list(self.held):  # what is held still is there to the last
            answer = self.ask(self.stack.deliveries.deliver(self.shop, order, self.sku, self.held[order]))
            assert getattr(answer, "state", answer) == "delivered"


def run(stack: Any, examples: int) -> None:
    limits = settings(
        phases=[Phase.generate],  # a step is a commit: what is found is not made smaller here
        report_multiple_bugs=False,
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    run_state_machine_as_test(type("Machine", (Orders,), {"stack": stack}), settings=limits)  # type: ignore[no-untyped-call]


@SQLITE
def test_M2_M3_no_order_of_events_breaks_a_promise(stack: Any) -> None:
    run(stack, 15)
    stack.verified()


def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """An order that is paid leaves its reservation as it was, for the sweep to free its keys once more."""

    def converted(tx: Any, _requests: Any, _outcomes: Any, own: Any, _mine: Any) -> None:
        holds.let_go(tx, [key[0] for held in own.values() for key in held.keys])

    monkeypatch.setattr(Deliveries, "_converted", staticmethod(converted))


def _blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """An order that is paid does not look at what it has reserved."""
    monkeypatch.setattr(Deliveries, "_reserved", lambda *_: ({}, False))


def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of an order that is cancelled stay as they are."""
    monkeypatch.setattr(holds, "let_go", lambda _tx, _keys: None)


def story(stack: Any) -> None:
    """One course of events in which each of these bugs shows."""
    events = type("Story", (Orders,), {"stack": stack})()
    for what, given in (
        (events.stocked, {}),
        (events.reserve, {"ref": 0, "units": 2, "ttl": 100}),
        (events.reserve, {"ref": 1, "units": 2, "ttl": 1}),
        (events.pay, {"ref": 2, "units": 1}),
        (events.pay_what_is_held, {"which": 0}),
        (events.time_passes, {"seconds": 2}),
        (events.sweep, {}),
    ):
        what(**given)
        events.books_balance()
    events.teardown()


@SQLITE
def test_control_without_a_bug_the_story_ends_well(stack: Any) -> None:
    story(stack)


@SQLITE
@pytest.mark.parametrize("planted", [_forgetful, _blind, _hasty], ids=lambda bug: bug.__name__)
def test_control_a_planted_bug_is_found(
    stack: Any, monkeypatch: pytest.MonkeyPatch, planted: Callable[[pytest.MonkeyPatch], None]
) -> None:
    planted(monkeypatch)
    with pytest.raises((AssertionError, sqlite3.IntegrityError)):
        story(stack)
