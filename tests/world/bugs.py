"""Bugs of the kind that costs money, each planted under its name into production code; `test_planted` finds them."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from syncd.adapter import OutcomeUnknown, Refused
from syncd.inventory import ledger, purchase, receipt, reconcile
from syncd.inventory.ledger import Ledger, Purchase, Send, Written, held_by
from syncd.inventory.purchase import Purchases
from syncd.orders.deliveries import Deliveries
from syncd.store.database import Lane, Tx, Work
from syncd.suppliers.link import Verbs
from syncd.vault.keyring import Keyring
from tests.world import scenarios as stories

Patch = pytest.MonkeyPatch


def buys_again_after_unknown(patch: Patch) -> None:
    """Units of unknown outcome are not on order."""
    patch.setattr(ledger, "_OUTSTANDING", "('intended', 'sent', 'accepted')")


def fails_over_after_unknown(patch: Patch) -> None:
    """No answer is taken for a refusal."""
    real = Verbs.verdict

    def verdict(self: Verbs, error: BaseException, call: Any) -> Any:
        found = real(self, error, call)
        return Refused(found.message) if isinstance(found, OutcomeUnknown) else found

    patch.setattr(Verbs, "verdict", verdict)


def writes_down_what_it_has_sent(patch: Patch) -> None:
    """That it is sent is committed after it was."""

    async def place(self: Purchases, one: Purchase, pick: Any, product: Any) -> Purchase:
        link = self._links[one.supplier]
        request = purchase.OrderRequest(one.reference, pick.candidate.offer, one.quantity, one.money("unit_limit"))
        order = await link.acall("place_order", request)
        sent: Any = await self._writer.submit(self._ledger.send, Send(held_by(one)))
        return await self._came(sent, order, link, product)

    patch.setattr(Purchases, "_place", place)


def closes_before_the_keys_are_written(patch: Patch) -> None:
    """The purchase is closed in one transaction, its keys come in another."""
    real = Purchases._came

    def closed(tx: Tx, ids: Any) -> list[None]:
        for row_id in ids:
            tx.execute("UPDATE purchase SET state = 'fulfilled', closed_at = ? WHERE id = ?", (tx.at, row_id))
        return [None] * len(ids)

    close: Work[int, None] = Work("close", Lane.CONTROL, closed)

    async def came(self: Purchases, one: Purchase, order: Any, *args: Any, **more: Any) -> Purchase:
        if order.status == "completed":
            await self._writer.submit(close, one.id)
        return await real(self, one, order, *args, **more)

    patch.setattr(Purchases, "_came", came)


def reckons_the_budget_beforehand(patch: Patch) -> None:
    """What was spent is looked up before the transaction of the intent."""
    real, seen = ledger.spent, dict[str, Any]()

    def spent(ask: Any, supplier: str, now: int) -> Any:
        if inspect.ismethod(ask) and supplier in seen:  # in the transaction
            return seen[supplier]
        seen[supplier] = real(ask, supplier, now)
        return seen[supplier]

    patch.setattr(ledger, "spent", spent)


def unknown_costs_nothing(patch: Patch) -> None:
    """Money that may have left is not counted."""
    real = ledger.spent

    def spent(ask: Any, supplier: str, now: int) -> Any:
        where = "FROM purchase WHERE state <> 'unknown' AND"
        return real(lambda sql, params: ask(sql.replace("FROM purchase WHERE", where), params), supplier, now)

    patch.setattr(ledger, "spent", spent)


def counts_nothing(patch: Patch) -> None:
    """However many keys came, the order is fulfilled."""
    real, check = Ledger._receive_one, receipt.check_count

    def received(self: Ledger, tx: Tx, came: Any) -> Any:
        found = real(self, tx, came)
        if isinstance(found, Written) and came.state == "fulfilled":
            tx.execute(
                "UPDATE purchase SET state = 'fulfilled', received = quantity, open_spend = 0, closed_at = ?"
                " WHERE id = ?",
                (tx.at, found.purchase.id),
            )
            return Written(self._row(tx, found.purchase.id), found.counts)
        return found

    patch.setattr(Ledger, "_receive_one", received)
    patch.setattr(receipt, "check_count", lambda *args: replace(check(*args), action="accept"))


def knows_no_key_again(patch: Patch) -> None:
    """A key that was bought before is a new one."""
    patch.setattr(Keyring, "fingerprint", lambda *_: secrets.token_bytes(16))


def believes_the_first_no(patch: Patch) -> None:
    """ "There is no such order", and it was not bought."""
    patch.setattr(reconcile, "believed", lambda *_: True)
    patch.setattr(reconcile, "TWICE", 1)


def forgets_what_was_sent(patch: Patch) -> None:
    """What was being sent at a kill was not bought."""
    real = Ledger._recover_all

    def recovered(self: Ledger, tx: Tx, spare: Any, *, everything: bool) -> list[Purchase]:
        found = real(self, tx, spare, everything=everything)
        for one in found:
            tx.execute(
                "UPDATE purchase SET state = 'refused', spend = 0, closed_at = ? WHERE id = ? AND state = 'unknown'",
                (tx.at, one.id),
            )
        return found

    patch.setattr(Ledger, "_recover_all", recovered)


def sends_no_limit(patch: Patch) -> None:
    """The supplier is not told what a unit may cost."""
    real = Purchase.money
    patch.setattr(Purchase, "money", lambda self, name: None if name == "unit_limit" else real(self, name))


def overlooks_a_refund(patch: Patch) -> None:
    """What a supplier cancels is still awaited."""
    real = purchase.judge
    patch.setattr(
        purchase,
        "judge",
        lambda keys, status, *more: real(keys, "pending" if status in {"canceled", "refunded"} else status, *more),
    )


def serves_the_last_one_first(patch: Patch) -> None:
    """Keys that arrive go to whoever came last."""

    def fill_one(self: Deliveries, tx: Tx, product: str, min_life: int) -> int:
        rows = tx.query("SELECT id FROM delivery WHERE state = 'pending' AND product = ? ORDER BY id DESC", (product,))
        done = [row[0] for row in rows if self._complete(tx, self._by_id(tx, row[0]), min_life)]
        for row_id in done:
            self._completed(tx, row_id)
        return len(done)

    patch.setattr(Deliveries, "_fill_one", fill_one)


def repeats_with_other_keys(patch: Patch) -> None:
    """An order that is repeated gets what is there now."""
    real = Deliveries._fetch_keys

    def fetch(self: Deliveries, tx: Tx, deliveries: Any) -> None:
        real(self, tx, deliveries)
        for one in deliveries:
            one.keys.reverse()

    patch.setattr(Deliveries, "_fetch_keys", fetch)


def forgets_what_is_reserved(patch: Patch) -> None:
    """Who pays for what was reserved stands in line with everybody."""
    patch.setattr(Deliveries, "_reserved", lambda *_: ({}, False))


BUGS: Final[tuple[tuple[Callable[[Patch], None], Callable[[stories.Make], None]], ...]] = (
    (buys_again_after_unknown, stories.an_answer_is_lost),
    (fails_over_after_unknown, stories.an_answer_is_lost),
    (writes_down_what_it_has_sent, stories.it_dies_at_any_commit),
    (closes_before_the_keys_are_written, stories.it_dies_at_any_commit),
    (reckons_the_budget_beforehand, stories.many_buy_at_once),
    (unknown_costs_nothing, stories.an_answer_is_lost_for_good),
    (counts_nothing, stories.what_comes_is_checked),
    (knows_no_key_again, stories.what_comes_is_checked),
    (believes_the_first_no, stories.it_is_found_late),
    (forgets_what_was_sent, stories.it_dies_at_any_commit),
    (sends_no_limit, stories.prices_lie),
    (overlooks_a_refund, stories.it_is_paid_back),
    (serves_the_last_one_first, stories.orders_wait_their_turn),
    (repeats_with_other_keys, stories.orders_wait_their_turn),
    (forgets_what_is_reserved, stories.a_reservation_is_paid),
)
