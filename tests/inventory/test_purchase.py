"""Nothing is ever paid twice, nothing that was paid is lost: purchases against a supplier that keeps its own books."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import structlog

from syncd import logs
from syncd.adapter import (
    Adapter,
    Context,
    Forged,
    Hint,
    InsufficientBalance,
    Money,
    NotSent,
    Order,
    OrderRequest,
    OutcomeUnknown,
    OutOfStock,
    Promises,
    RawKey,
    Settings,
    Transient,
    Webhook,
)
from syncd.errors import ConflictError, InvalidRequestError, LeaseLostError, NotFoundError, UnavailableError
from syncd.inventory import ledger, purchase
from syncd.inventory.purchase import Purchases
from syncd.model import Clock
from syncd.store.database import Lane, Work
from syncd.suppliers.client import _CALL, Client
from syncd.suppliers.link import Link

SHANGHAI = ZoneInfo("Asia/Shanghai")
ONCE = Promises()

CONFIGURATION = """
[currency]
base = "CNY"
rates = { EUR = "8" }
rates_date = 2026-01-01
[purchases]
min_free = "0B"
max_rate_age = "100000d"
[suppliers.alpha]
adapter = "feed"
folder = "feeds/alpha"
[suppliers.beta]
adapter = "feed"
folder = "feeds/beta"
[products.game]
format = "steam"
on_shortage = "buy"
max_cost = "10 CNY"
offers = [{ supplier = "alpha", sku = "a" }, { supplier = "beta", sku = "b" }]
"""

Plan = Callable[[OrderRequest], Order]


class Clockwork(Clock):
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.wall, self.mono = super().now(), 1000.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.mono

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.mono += seconds


class Seller(Adapter):
    """A supplier with its own books: what it charged under which reference, what it handed over."""

    numbers = itertools.count(1)

    def __init__(self, name: str = "alpha", promises: Promises = ONCE, price: str = "2") -> None:
        super().__init__(Context(name, Settings(), SHANGHAI))
        self.promises = promises  # type: ignore[misc]
        self.price = Decimal(price)
        self.plans: deque[Plan] = deque()
        self.seen: list[OrderRequest] = []
        self.charges: Counter[str] = Counter()
        self.orders: dict[str, Order] = {}
        self.before: Callable[[OrderRequest], None] = lambda _: None
        self.asked = 0

    def keys(self, number: int) -> list[str]:
        return [f"AAAAA-BBBBB-{next(self.numbers):05d}" for _ in range(number)]

    def sell(self, order: OrderRequest, status: Any = "completed", keys: Sequence[Any] | None = None) -> Order:
        """Charge, once a reference; what is handed over is `keys`, or as many as were ordered."""
        self.charges[order.reference] += 1
        given = self.keys(order.quantity) if keys is None else keys
        return self.becomes(order.reference, status, given, order.quantity)

    def becomes(self, reference: str, status: Any, keys: Sequence[Any], quantity: int = 1) -> Order:
        raw = [key if isinstance(key, RawKey) else RawKey.of(key, id=f"id-{key[-5:]}") for key in keys]
        charged = Money(self.price * quantity, "CNY")
        self.orders[reference] = Order(f"o-{reference}", status, reference, charged, quantity, raw)
        return self.orders[reference]

    async def place_order(self, order: OrderRequest) -> Order:
        self.seen.append(order)
        self.before(order)
        return self.plans.popleft()(order) if self.plans else self.sell(order)

    async def get_order(self, order_id: str) -> Order:
        self.asked += 1
        return self.orders[order_id.removeprefix("o-")]


class Finder(Seller):
    """Finds orders by our reference."""

    async def find_order(self, reference: str) -> Order | None:
        self.asked += 1
        return self.orders.get(reference)


def refuses(kind: type[Exception] = OutOfStock, text: str = "no") -> Plan:
    def plan(_order: OrderRequest) -> Order:
        call = _CALL.get()
        assert call is not None
        call.left = kind is not NotSent
        raise kind(text)

    return plan


def loses_answer(seller: Seller) -> Plan:
    """Charged, and the answer is lost."""

    def plan(order: OrderRequest) -> Order:
        seller.sell(order)
        raise Transient("reset by peer")

    return plan


def never_arrives(_order: OrderRequest) -> Order:
    """Not charged, and nobody can tell."""
    raise Transient("reset by peer")


class Desk:
    """Purchases of one daemon over sellers."""

    def __init__(self, house: Any, clock: Clockwork, *sellers: Seller) -> None:
        self.house, self.clock = house, clock
        house.database.clock = clock
        self.links = {seller.name: Link(seller, Client(seller.name)) for seller in map(_named, sellers)}
        self.arrived: list[str] = []
        self.purchases = Purchases(
            house.vault, self.links, lambda: house.settings, house.intake._formats, house.metrics, self.arrived.append
        )

    def list(self, supplier: str, sku: str, price: str | None = "2", currency: str = "CNY", **more: Any) -> None:
        at = int(self.clock.now())
        columns = {"stock_kind": "unlimited", "min_quantity": 1, "max_quantity": None, "held": None, **more}
        values = ", ".join("NULL" if value is None else repr(value) for value in columns.values())
        self.house.tamper(
            f"DELETE FROM offer WHERE supplier = '{supplier}' AND sku = '{sku}'",
            f"DELETE FROM listing WHERE supplier = '{supplier}'",
            "INSERT INTO offer (supplier, sku, hash, title, price, currency, for_sale, step, data, seen_at, changed_at,"
            f" recorded, {', '.join(columns)}) VALUES ('{supplier}', '{sku}', {_blob(self.house)}, '{sku}',"
            f" {'NULL' if price is None else repr(price)}, '{currency}', true, 1, '{{}}', {at}, {at}, 0, {values})",
            f"INSERT INTO listing (supplier, watermark, offers, held_offers) VALUES ('{supplier}', {at}, 1, 0)",
        )

    def row(self, reference: str | None = None) -> ledger.Purchase:
        return self.purchases.find(reference) if reference else self.rows()[0]

    def rows(self) -> list[ledger.Purchase]:
        return self.purchases.page()[0]

    def hurry(self) -> None:
        """Whatever waits for its time is due now."""
        self.house.tamper("UPDATE purchase SET next_at = 1 WHERE next_at IS NOT NULL")

    async def later(self, seconds: float = 0) -> None:
        self.clock.wait(seconds)
        self.hurry()
        await self.purchases.reconcile()

    def close(self) -> None:
        for link in self.links.values():
            link.close()


def _named(seller: Seller) -> Any:
    seller.name = seller.context.name  # type: ignore[attr-defined]
    return seller


def _blob(house: Any) -> str:
    return "'\\x00'" if house.database.postgresql else "x'00'"


@pytest.fixture
def open_desk(make_house: Any) -> Any:
    """A desk over these sellers, on a fresh database of each engine; what they offer is listed at 2 CNY."""
    desks: list[Desk] = []

    def make(*sellers: Seller, configuration: str = CONFIGURATION, clock: Clockwork | None = None) -> Desk:
        desk = Desk(make_house(configuration), clock or Clockwork(), *sellers)
        desks.append(desk)
        for seller in sellers:
            desk.list(seller.context.name, seller.context.name[0], str(seller.price))
        return desk

    yield make
    for desk in desks:
        desk.close()


# --- buying -----------------------------------------------------------------------------------------------------------


async def test_M1_an_intent_is_committed_before_a_byte_is_sent_and_the_keys_with_the_end(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    states: list[str] = []
    seller.before = lambda order: states.append(desk.row(order.reference).state)
    got = await desk.purchases.top_up("game", 3, asked_by="replenish")
    assert states == ["sent"]
    assert (got.bought, got.on_order, got.refused) == (3, 0, ())
    one = desk.row(got.references[0])
    assert (one.state, one.received, one.quantity, one.spend) == ("fulfilled", 3, 3, 6_000_000)
    assert (one.asked_by, one.supplier_order) == ("replenish", f"o-{one.reference}")
    assert len(one.reference) <= 19
    assert set(one.reference) <= set(ONCE.reference_alphabet)
    assert len(desk.house.keys("game")) == 3
    assert desk.arrived == ["game"]
    names = desk.house.rows("SELECT name FROM supplier_key")
    assert len(names) == 3
    ((source, order_id, state),) = desk.house.rows("SELECT name, order_id, state FROM source")
    assert (source, order_id, state) == (f"purchase:{one.reference}", one.supplier_order, "taken")
    assert (await desk.purchases.top_up("game", 3, asked_by="replenish")).references == ()
    kinds = [kind for (kind,) in desk.house.rows("SELECT kind FROM audit ORDER BY seq")]
    wanted = ["purchase.intended", "purchase.sent", "keys.taken", "purchase.fulfilled"]
    assert [kind for kind in kinds if kind in wanted] == wanted
    assert desk.house.verified()


async def test_M1_two_calls_at_once_never_buy_one_need_twice(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    await asyncio.gather(*(desk.purchases.top_up("game", 4, asked_by="replenish") for _ in range(4)))
    assert sum(one.quantity for one in desk.rows()) == 4


async def test_M1_two_daemons_never_buy_one_need_twice(open_desk: Any) -> None:
    seller, twin, clock = Seller(), Seller(), Clockwork()
    desk = open_desk(seller, clock=clock)
    other = open_desk(twin, clock=clock) if desk.house.database.postgresql else desk
    await asyncio.gather(*(each.purchases.top_up("game", 4, asked_by="replenish") for each in (desk, other) * 3))
    assert sum(one.quantity for one in desk.rows()) == 4


async def test_what_orders_wait_for_is_bought_and_nothing_else(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    owed(desk, 2)
    await desk.purchases.cover()
    assert [one.quantity for one in desk.rows()] == [2]
    await desk.purchases.cover()
    assert len(desk.rows()) == 1  # the keys are there: handing them out is not ours


def owed(desk: Desk, quantity: int, order: str = "o-1") -> None:
    number = len(desk.house.rows("SELECT 1 FROM delivery")) + 1
    desk.house.tamper(
        "INSERT INTO delivery (id, shop, order_ref, product, quantity, state, reason, created_at)"
        f" VALUES ({number}, 's', '{order}-{number}', 'game', {quantity}, 'pending', 'buying', 1)"
    )


async def test_an_operator_buys_so_many_whatever_is_there(open_desk: Any) -> None:
    desk = open_desk(Seller())
    await desk.purchases.top_up("game", 2, asked_by="replenish")
    assert (await desk.purchases.buy("game", 2, asked_by="operator")).bought == 2
    with pytest.raises(InvalidRequestError):
        await desk.purchases.buy("game", 0, asked_by="operator")
    with pytest.raises(NotFoundError):
        await desk.purchases.top_up("nothing", 1, asked_by="operator")


# --- failing over -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OutOfStock, InsufficientBalance, NotSent])
async def test_M1_another_is_asked_after_a_refusal(open_desk: Any, kind: type[Exception]) -> None:
    alpha, beta = Seller("alpha", price="2"), Seller("beta", price="3")
    desk = open_desk(alpha, beta)
    alpha.plans.append(refuses(kind))
    got = await desk.purchases.top_up("game", 1, asked_by="delivery")
    assert (got.bought, [why[:2] for why in got.refused]) == (1, [("alpha", "a")])
    refused = next(one for one in desk.rows() if one.supplier == "alpha")
    assert (refused.state, refused.spend, refused.closed_at is None) == ("refused", 0, False)
    assert not alpha.charges


async def test_M1_nobody_else_is_asked_after_an_unknown_outcome(open_desk: Any) -> None:
    alpha, beta = Seller("alpha", price="2"), Seller("beta", price="3")
    desk = open_desk(alpha, beta)
    alpha.plans.append(loses_answer(alpha))
    got = await desk.purchases.top_up("game", 1, asked_by="delivery")
    assert (got.bought, got.on_order) == (0, 1)
    again = await desk.purchases.top_up("game", 1, asked_by="delivery")
    assert again.references == ()
    assert not beta.seen
    one = desk.row()
    assert (one.state, one.spend > 0, one.open_spend) == ("unknown", True, 0)
    with desk.house.database.read() as connection:
        assert desk.purchases.on_order(connection) == {"game": 1}


async def test_M1_CONTROL_buying_again_after_an_unknown_outcome_is_seen(
    open_desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_OUTSTANDING", "('intended', 'sent', 'accepted')")
    with pytest.raises(AssertionError):
        await test_M1_nobody_else_is_asked_after_an_unknown_outcome(open_desk)


async def test_M1_CONTROL_an_intent_after_the_order_is_seen(open_desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Purchases._order

    async def late(self: Any, one: Any, offer: Any, link: Any, product: Any, *, again: bool) -> Any:
        await link.acall("place_order", OrderRequest("EARLY", offer, one.quantity))
        return await real(self, one, offer, link, product, again=again)

    monkeypatch.setattr(Purchases, "_order", late)
    with pytest.raises((AssertionError, OutcomeUnknown)):
        await test_M1_an_intent_is_committed_before_a_byte_is_sent_and_the_keys_with_the_end(open_desk)


# --- unknown outcomes -------------------------------------------------------------------------------------------------


async def test_M1_an_order_that_is_found_by_its_reference_is_taken_in(open_desk: Any) -> None:
    seller = Finder()
    desk = open_desk(seller)
    seller.plans.append(loses_answer(seller))
    await desk.purchases.top_up("game", 2, asked_by="delivery")
    await desk.later()
    one = desk.row()
    assert (one.state, one.received, len(desk.house.keys("game"))) == ("fulfilled", 2, 2)
    assert seller.charges[one.reference] == 1


async def test_M1_that_there_is_no_such_order_is_believed_late_and_twice(open_desk: Any) -> None:
    seller = Finder()
    desk = open_desk(seller)
    seller.plans.append(never_arrives)
    await desk.purchases.top_up("game", 1, asked_by="delivery")
    desk.clock.wall += 7200  # a clock that jumps ages nothing
    for _ in range(3):
        await desk.later()
    assert (desk.row().state, desk.row().polls, seller.asked) == ("unknown", 0, 3)
    await desk.later(61)
    assert (desk.row().state, desk.row().polls) == ("unknown", 1)
    await desk.later(30)
    assert (desk.row().state, desk.row().spend) == ("refused", 0)
    desk.list("alpha", "a")
    assert (await desk.purchases.top_up("game", 1, asked_by="delivery")).bought == 1


async def test_M1_an_order_that_turns_up_late_is_not_given_up(open_desk: Any) -> None:
    seller = Finder()
    desk = open_desk(seller)
    seller.plans.append(never_arrives)
    await desk.purchases.top_up("game", 1, asked_by="delivery")
    await desk.later(61)
    seller.sell(seller.seen[0])  # its queue was long
    await desk.later(30)
    assert (desk.row().state, seller.charges[desk.row().reference]) == ("fulfilled", 1)


async def test_M1_no_such_order_is_not_believed_of_one_that_is_too_old(open_desk: Any) -> None:
    seller = Finder()
    desk = open_desk(seller)
    seller.plans.append(never_arrives)
    await desk.purchases.top_up("game", 1, asked_by="delivery")
    await desk.later(13 * 3600)
    one = desk.row()
    assert (one.state, one.next_at) == ("unknown", None)
    assert "far enough" in one.reason
    assert seller.asked == 1


@pytest.mark.parametrize("arrived", [True, False])
async def test_M1_the_same_reference_is_sent_again_where_that_buys_nothing_twice(open_desk: Any, arrived: bool) -> None:
    seller = Seller(promises=Promises(same_reference_same_order=True))
    desk = open_desk(seller)
    seller.plans.append(loses_answer(seller) if arrived else never_arrives)
    await desk.purchases.top_up("game", 1, asked_by="delivery")
    await desk.later(30)
    assert len(seller.seen) == 1  # not yet: it may still be on its way
    seller.plans.append(lambda order: seller.orders.get(order.reference) or seller.sell(order))
    await desk.later(31)
    one = desk.row()
    assert [order.again for order in seller.seen] == [False, True]
    assert {order.reference for order in seller.seen} == {one.reference}
    assert (one.state, one.tries, seller.charges[one.reference]) == ("fulfilled", 2, 1)


async def test_M1_the_guards_are_asked_again_before_it_is_sent_again(open_desk: Any) -> None:
    seller = Seller(promises=Promises(same_reference_same_order=True))
    desk = open_desk(seller)
    seller.plans.append(never_arrives)
    await desk.purchases.top_up("game", 1, asked_by="delivery")
    desk.list("alpha", "a", "11")
    await desk.later(100)
    assert (len(seller.seen), desk.row().state) == (1, "unknown")
    assert "not sent again" in desk.row().reason
    desk.list("alpha", "a", "0.20", "EUR")  # a limit in another currency would stop the supplier
    await desk.later(100)
    assert (len(seller.seen), desk.row().state) == (1, "unknown")
    desk.list("alpha", "a", "2")
    await desk.later(100)
    assert desk.row().state == "fulfilled"
    assert seller.seen[1].offer == seller.seen[0].offer
    assert seller.seen[1].max_unit_cost == seller.seen[0].max_unit_cost


async def test_M1_not_sent_of_a_repetition_tells_nothing_of_the_first_time(open_desk: Any) -> None:
    seller = Seller(promises=Promises(same_reference_same_order=True))
    desk = open_desk(seller)
    seller.plans += [loses_answer(seller), refuses(NotSent)]
    await desk.purchases.top_up("game", 1, asked_by="delivery")
    await desk.later(100)
    assert desk.row().state == "unknown"
    seller.plans.append(refuses(OutOfStock))  # it looks references up: nothing was bought for sure
    await desk.later(100)
    assert desk.row().state == "refused"


async def test_M1_a_reference_that_may_be_sent_once_more_is_sent_once_more(open_desk: Any) -> None:
    seller = Seller(promises=Promises(repeat_after=35))
    desk = open_desk(seller)
    seller.plans.append(never_arrives)
    await desk.purchases.top_up("game", 1, asked_by="delivery")
    await desk.later(61)  # the first bought nothing, this one does
    assert (desk.row().state, sum(seller.charges.values())) == ("fulfilled", 1)


async def test_M1_paid_and_nothing_to_fetch_is_for_a_person(open_desk: Any) -> None:
    seller = Seller(promises=Promises(repeat_after=35))
    desk = open_desk(seller)
    seller.plans += [loses_answer(seller), refuses(OutcomeUnknown, "paid: the shop has had this reference before")]
    await desk.purchases.top_up("game", 2, asked_by="delivery")
    await desk.later(61)
    one = desk.row()
    assert (one.state, one.open_spend, one.closed_at) == ("disputed", one.spend, None)
    keys = "\n".join(key.text.reveal() for key in seller.orders[one.reference].keys if key.text)
    with pytest.raises(InvalidRequestError, match="2 keys are missing; 2 different ones were read, 1 texts"):
        await desk.purchases.resolve(one.reference, charged=True, keys=f"{keys}\nsorry".encode(), by="operator")
    done = await desk.purchases.resolve(one.reference, charged=True, keys=keys.encode(), by="operator")
    assert (done.state, done.received, done.open_spend) == ("fulfilled", 2, 0)
    assert len(desk.house.keys("game")) == 2


async def test_M1_what_a_repetition_does_not_tell_is_for_a_person(open_desk: Any) -> None:
    seller = Seller(promises=Promises(repeat_after=35))
    desk = open_desk(seller)
    seller.plans += [loses_answer(seller), refuses(OutOfStock)]  # no word on the first time
    await desk.purchases.top_up("game", 1, asked_by="delivery")
    await desk.later(61)
    await desk.later(61)
    one = desk.row()
    assert (one.state, one.next_at, one.tries) == ("unknown", None, 2)
    await desk.later(61)
    assert len(seller.seen) == 2


@pytest.mark.parametrize(("charged", "state", "open_money"), [(False, "refused", 0), (True, "disputed", 2_100_000)])
async def test_M1_a_person_decides_what_no_machine_can(
    open_desk: Any,
    charged: bool,
    state: str,
    open_money: int,
) -> None:
    seller = Seller()
    desk = open_desk(seller)
    seller.plans.append(never_arrives)
    await desk.purchases.top_up("game", 1, asked_by="delivery")
    await desk.later()
    one = desk.row()
    assert (one.state, one.next_at) == ("unknown", None)
    done = await desk.purchases.resolve(one.reference, charged=charged, by="mei")
    assert (done.state, done.open_spend) == (state, open_money)
    ((body,),) = desk.house.rows("SELECT body FROM audit WHERE kind = 'purchase.resolved'")
    assert '"mei"' in body
    if charged:
        settled = await desk.purchases.resolve(one.reference, charged=False, by="mei")  # the money came back
        assert (settled.state, settled.spend) == ("refunded", 0)
    with pytest.raises(ConflictError, match="closed"):
        await desk.purchases.resolve(one.reference, charged=True, by="mei")


# --- kills ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["intended", "sent"])
async def test_M1_a_stop_half_way_is_refused_or_unknown_at_the_next_start(
    open_desk: Any, monkeypatch: pytest.MonkeyPatch, state: str, kill: Any
) -> None:
    seller, clock = Finder(), Clockwork()
    desk = open_desk(seller, clock=clock)

    async def die(*_args: Any, **_more: Any) -> Any:
        raise kill

    monkeypatch.setattr(Purchases, "_place" if state == "intended" else "_order", die)
    with pytest.raises(kill):
        await desk.purchases.top_up("game", 1, asked_by="delivery")
    monkeypatch.undo()
    assert desk.row().state == state
    desk.house.tamper("UPDATE purchase SET leased_until = 0")
    fresh = open_desk(seller, clock=clock)
    await fresh.purchases.recover()
    one = fresh.row()
    assert one.state == ("refused" if state == "intended" else "unknown")
    assert (one.spend == 0) == (state == "intended")
    if state == "sent":
        for wait in (0, 61, 30):
            await fresh.later(wait)
        assert fresh.row().state == "refused"
    assert fresh.house.verified()


@pytest.mark.parametrize("acknowledged", [True, False])
async def test_M1_a_kill_at_any_commit_pays_once_and_loses_nothing(open_desk: Any, acknowledged: bool) -> None:
    seller, clock = Finder(), Clockwork()
    for commits in range(9):
        desk = open_desk(seller, clock=clock)
        wanted = 2 * (commits + 1)
        desk.house.kill_after(commits, acknowledged=acknowledged)
        whole = False
        with contextlib.suppress(UnavailableError):
            whole = (await desk.purchases.top_up("game", wanted, asked_by="replenish")).bought == 2
        desk.house.stop()
        desk.close()
        desk = open_desk(seller, clock=clock)
        desk.house.tamper("UPDATE purchase SET leased_until = 0")
        await desk.purchases.recover()
        for wait in (0, 61, 30):  # what never arrived is believed in time
            await desk.later(wait)
        desk.list("alpha", "a")
        await desk.purchases.top_up("game", wanted, asked_by="replenish")
        keys = desk.house.keys("game")
        assert len(keys) == len(set(keys)) == wanted
        assert set(seller.charges.values()) == {1}
        paid = sum(one.quantity for one in desk.rows() if seller.charges[one.reference])
        assert paid == wanted
        assert {one.state for one in desk.rows()} <= {"fulfilled", "refused"}
        assert not desk.house.held()
        if whole:
            assert commits >= 3
            return
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("count", [1, 2])
async def test_D3_a_write_whose_acknowledgement_was_lost_is_not_set_aside_as_late(
    open_desk: Any, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    seller = Seller()
    desk = open_desk(seller)
    twin = seller.keys(1)  # with one that came before, what was written is a dispute
    seller.plans += [lambda order: seller.sell(order, "completed", twin)] * (count - 1)
    await desk.purchases.buy("game", 1, asked_by="operator") if count > 1 else None
    seller.plans.append(lambda order: seller.sell(order, "completed", [*seller.keys(3 - count), *twin[: count - 1]]))
    monkeypatch.setattr(purchase, "_AWAY_S", (0.001, 0.0))
    monkeypatch.setattr(purchase, "_REGAIN_S", 1)
    real = desk.purchases._ledger.receive

    class Lossy:
        """Commits, and the acknowledgement is lost."""

        lost = False

    submit = desk.house.writer.submit

    async def losing(work: Any, payload: Any) -> Any:
        answer = await submit(work, payload)
        if work is real and not Lossy.lost:
            Lossy.lost = True
            raise UnavailableError("the database was lost while committing")
        return answer

    desk.house.writer.submit = losing
    await desk.purchases.buy("game", 2, asked_by="operator")
    assert (desk.row().state, len(desk.house.keys("game"))) == ("fulfilled" if count == 1 else "disputed", 2)
    assert [row[1] for row in desk.house.held()] == ["duplicate"] * (count - 1)


async def test_M1_what_could_not_be_written_is_asked_for_again(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)

    def dies(_tx: Any, _payloads: Any) -> Any:
        raise ArithmeticError

    real, desk.purchases._ledger.receive = desk.purchases._ledger.receive, Work("keys", Lane.CONTROL, dies)
    await desk.purchases.top_up("game", 2, asked_by="delivery")
    assert (desk.row().state, desk.row().supplier_order) == ("accepted", f"o-{desk.row().reference}")
    desk.purchases._ledger.receive = real
    await desk.later()
    assert (desk.row().state, len(desk.house.keys("game"))) == ("fulfilled", 2)


async def test_D3_who_was_replaced_writes_nothing_and_keeps_no_answer_to_itself(open_desk: Any) -> None:
    seller, clock = Finder(), Clockwork()
    desk = open_desk(seller, clock=clock)
    replaced: list[ledger.Held] = []

    def stall(order: OrderRequest) -> None:
        """The holder stalls past its lease, and another daemon takes over."""
        one = desk.row(order.reference)
        replaced.append(ledger.held_by(one))
        desk.house.tamper(
            f"UPDATE purchase SET state = 'unknown', epoch = epoch + 1, holder = NULL, leased_until = NULL,"
            f" unknown_at = 1, next_at = NULL WHERE id = {one.id}"
        )

    seller.before = stall
    got = await desk.purchases.top_up("game", 1, asked_by="delivery")
    assert (got.bought, desk.row().state) == (1, "fulfilled")
    told = ledger.Told(replaced[0], purchase.PurchaseState.REFUSED, "stale")
    with pytest.raises(LeaseLostError):
        await desk.house.writer.submit(desk.purchases._ledger.tell, told)


async def test_D3_what_comes_when_its_purchase_is_closed_is_set_aside(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)

    def settle(order: OrderRequest) -> None:
        """Another daemon takes over, and a person settles it, while the answer is on its way."""
        desk.house.tamper(
            "UPDATE purchase SET state = 'refused', epoch = epoch + 1, holder = NULL, leased_until = NULL,"
            f" closed_at = 1, next_at = NULL WHERE reference = '{order.reference}'"
        )

    seller.before = settle
    with pytest.raises(LeaseLostError):
        await desk.purchases.buy("game", 2, asked_by="operator")
    assert [row[1] for row in desk.house.held()] == ["late", "late"]
    assert not desk.house.keys("game")
    (first, _) = [int(row[0]) for row in desk.house.rows("SELECT id FROM quarantine ORDER BY id")]
    await desk.house.quarantine.release(first, None, None, "operator")
    assert len(desk.house.keys("game")) == 1
    assert desk.house.verified()


# --- what came --------------------------------------------------------------------------------------------------------


async def test_P3_part_of_an_order_is_taken_at_once_and_the_rest_when_it_comes(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    keys = seller.keys(3)
    seller.plans.append(lambda order: seller.sell(order, "partial", keys[:1]))
    got = await desk.purchases.top_up("game", 3, asked_by="delivery")
    assert (got.bought, got.on_order, len(desk.house.keys("game"))) == (1, 2, 1)
    await desk.later(5)
    assert (desk.row().state, desk.row().received) == ("accepted", 1)
    seller.becomes(desk.row().reference, "completed", keys[::-1], 3)
    await desk.later(5)
    one = desk.row()
    assert (one.state, one.received, one.open_spend) == ("fulfilled", 3, 0)
    assert sorted(desk.house.keys("game")) == sorted(keys)
    assert not desk.house.held()


async def test_P3_an_order_is_asked_after_ever_more_rarely_until_its_deadline(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    seller.plans.append(lambda order: seller.sell(order, "pending", []))
    await desk.purchases.top_up("game", 1, asked_by="delivery")
    waits = []
    for _ in range(3):
        one = desk.row()
        assert one.next_at is not None
        await desk.later(120)
        waits.append(desk.row().polls)
    assert waits == [1, 2, 3]
    await desk.later(86400)
    one = desk.row()
    assert (one.state, one.open_spend) == ("disputed", one.spend)
    assert "not delivered in time" in one.reason


async def test_P3_what_comes_after_a_dispute_was_opened_is_taken_in_and_the_dispute_shrinks(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    keys = seller.keys(2)
    seller.plans.append(lambda order: seller.sell(order, "pending", []))
    await desk.purchases.buy("game", 2, asked_by="operator")
    await desk.later(120)
    await desk.later(86400)
    before = desk.row()
    await desk.later(3600)
    assert (desk.row().state, desk.row().reason) == ("disputed", before.reason), "nothing came, and nothing changes"
    seller.becomes(before.reference, "partial", keys[:1], 2)
    await desk.later(3600)
    assert (desk.row().state, desk.row().received) == ("disputed", 1)
    assert desk.row().open_spend * 2 == before.open_spend
    seller.becomes(before.reference, "completed", keys, 2)
    await desk.later(3600)
    one = desk.row()
    assert (one.state, one.received, one.open_spend, one.next_at) == ("fulfilled", 2, 0, None)
    assert sorted(desk.house.keys("game")) == sorted(keys)


@pytest.mark.parametrize(
    ("ordered", "make", "state", "in_vault", "aside", "reason"),
    [
        (3, lambda keys: keys[:2], "disputed", 0, 2, "count"),
        (1, lambda keys: keys[:2], "disputed", 0, 2, "count"),
        (2, lambda keys: [keys[0], keys[0]], "disputed", 0, 2, "count"),
        (1, lambda _: ["很抱歉，有人在你付款之前抢走了商品，请联系客服。"], "disputed", 0, 1, "prose"),
        (2, lambda keys: [keys[0], "QQQ-1"], "disputed", 1, 1, None),
        (1, lambda _: ["QQQ-1"], "disputed", 0, 1, None),
        (1, lambda keys: [keys[0], keys[0]], "fulfilled", 1, 0, None),
        (1, lambda _: ["正在发货中，请耐心等待，如有疑问，请联系客服。"], "disputed", 0, 1, "prose"),
        (1, lambda _: [RawKey.card({"codeType": "PRE_ORDER", "code": "1"})], "accepted", 0, 0, None),
        (2, lambda keys: ["\n".join(keys[:2])], "fulfilled", 2, 0, None),
    ],
)
async def test_P3_what_came_is_counted_and_read_and_nothing_of_it_is_lost(
    open_desk: Any, ordered: int, make: Any, state: str, in_vault: int, aside: int, reason: str | None
) -> None:
    seller = Seller()
    desk = open_desk(seller)
    seller.plans.append(lambda order: seller.sell(order, "completed", make(seller.keys(3))))
    await desk.purchases.top_up("game", ordered, asked_by="delivery")
    one = desk.row()
    assert (one.state, one.received, len(desk.house.keys("game"))) == (state, in_vault, in_vault)
    held = desk.house.held()
    assert len(held) == aside
    assert reason is None or {row[1] for row in held} == {reason}
    missing = ordered - in_vault
    assert one.open_spend == (one.spend * missing // ordered if state == "disputed" else 0)
    assert (one.closed_at is None) == (state != "fulfilled")
    if state == "disputed":  # nothing is on order any more
        with desk.house.database.read() as connection:
            assert desk.purchases.on_order(connection) == {}


async def test_P3_CONTROL_an_order_that_is_not_counted_is_seen(open_desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from syncd.inventory import receipt
    from syncd.inventory.formats import Count

    monkeypatch.setattr(receipt, "check_count", lambda cards, _: Count("accept", "", tuple(c.position for c in cards)))
    with pytest.raises(AssertionError):
        await test_P3_what_came_is_counted_and_read_and_nothing_of_it_is_lost(
            open_desk, 1, lambda keys: keys[:2], "disputed", 0, 2, "count"
        )


async def test_P3_a_key_of_another_source_is_set_aside_and_disputed(open_desk: Any, payload: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    keys = seller.keys(2)
    desk.house.settings.products["game"]
    desk.house.take(payload("game", f"{keys[0]}\n"))
    seller.plans.append(lambda order: seller.sell(order, "completed", keys))
    await desk.purchases.buy("game", 2, asked_by="operator")
    one = desk.row()
    assert (one.state, one.received, one.open_spend * 2) == ("disputed", 1, one.spend)
    ((_, reason, first),) = desk.house.held()
    assert (reason, first is None) == ("duplicate", False)
    assert desk.house.rows("SELECT supplier_key FROM quarantine") == [(f"id-{keys[0][-5:]}",)]


async def test_P3_what_was_set_aside_with_one_answer_is_not_set_aside_again_with_the_next(
    open_desk: Any, payload: Any
) -> None:
    seller = Seller()
    desk = open_desk(seller)
    keys = [*seller.keys(2), "QQQ-1"]
    desk.house.take(payload("game", f"{keys[0]}\n"))
    seller.plans.append(lambda order: seller.sell(order, "partial", keys))
    await desk.purchases.buy("game", 4, asked_by="operator")
    for _ in range(2):
        await desk.later(5)
    assert sorted(row[1] for row in desk.house.held()) == ["duplicate", "not_this_format"]
    seller.becomes(desk.row().reference, "completed", [*seller.keys(1), *keys], 4)
    await desk.later(5)
    assert (desk.row().state, desk.row().received, len(desk.house.held())) == ("disputed", 2, 2)
    assert desk.row().open_spend * 2 == desk.row().spend


async def test_P3_a_dispute_is_settled_by_what_is_released(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    seller.plans.append(lambda order: seller.sell(order, "completed", seller.keys(2)))
    await desk.purchases.top_up("game", 1, asked_by="delivery")
    one = desk.row()
    (first, _) = [int(row[0]) for row in desk.house.rows("SELECT id FROM quarantine ORDER BY id")]
    await desk.house.quarantine.release(first, None, None, "operator")
    done = await desk.purchases.resolve(one.reference, charged=True, by="operator")
    assert (done.state, done.received, done.open_spend, done.closed_at is None) == ("fulfilled", 1, 0, False)


async def test_P3_no_offer_is_bought_from_while_too_many_of_its_purchases_are_disputed(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    for _ in range(5):
        seller.plans.append(lambda order: seller.sell(order, "completed", ["sorry, sold out, ask our service"]))
        await desk.purchases.top_up("game", 1, asked_by="delivery")
    assert len(seller.seen) == 3
    got = await desk.purchases.top_up("game", 1, asked_by="delivery")
    assert "disputed" in got.refused[0][2]


@pytest.mark.parametrize("told", [4, 1], ids=["charge in full", "charge less the refund"])
async def test_M4_an_order_that_is_refunded_gives_its_money_and_its_units_back(open_desk: Any, told: int) -> None:
    seller = Seller()
    desk = open_desk(seller)
    keys = seller.keys(4)
    seller.plans.append(lambda order: seller.sell(order, "partial", keys[:1]))
    await desk.purchases.top_up("game", 4, asked_by="replenish")
    order = seller.becomes(desk.row().reference, "refunded", keys[:2], 4)  # one more that is not ours any more
    seller.orders[order.reference] = replace(order, charged=Money(seller.price * told, "CNY"))
    await desk.later(5)
    one = desk.row()
    assert (one.state, one.received, one.spend) == ("refunded", 1, 2_000_000)
    assert [row[1] for row in desk.house.held()] == ["order_over"]
    assert len(desk.house.keys("game")) == 1
    with desk.house.database.read() as connection:
        assert desk.purchases.on_order(connection) == {}


async def test_an_answer_about_another_order_is_none(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    seller.plans.append(lambda _: Order("o-1", "completed", "ANOTHER", keys=[RawKey.of("AAAAA-BBBBB-99999")]))
    await desk.purchases.top_up("game", 1, asked_by="delivery")
    assert desk.row().state == "unknown"
    assert not desk.house.keys("game")


async def test_a_hint_is_a_reason_to_ask_and_nothing_more(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    seller.plans.append(lambda order: seller.sell(order, "pending", []))
    await desk.purchases.top_up("game", 1, asked_by="delivery")
    one = desk.row()
    seller.becomes(one.reference, "completed", seller.keys(1))
    await desk.purchases.reconcile()
    assert not seller.asked
    desk.purchases.hint("beta", Hint("order", reference=one.reference))
    desk.purchases.hint("alpha", Hint("order", order_id=one.supplier_order or ""))
    await asyncio.sleep(0.05)
    await desk.purchases.reconcile()
    assert (seller.asked, desk.row().state) == (1, "fulfilled")


# --- guards in the intent's transaction (M4) --------------------------------------------------------------------------


def with_limits(**tables: str) -> str:
    """The configuration with more in some of its tables."""
    text = CONFIGURATION
    for table, more in tables.items():
        head = f"[{table.replace('_', '.')}]\n"
        text = text.replace(head, f"{head}{more}\n")
    return text


async def test_M4_a_guard_leaves_no_row_and_says_why_once(open_desk: Any) -> None:
    seller = Seller(price="11")
    desk = open_desk(seller)
    for _ in range(2):
        got = await desk.purchases.top_up("game", 1, asked_by="replenish")
        assert (got.references, len(got.refused)) == ((), 1)
        assert "max_cost is 10" in got.refused[0][2]
    assert not seller.seen
    assert not desk.rows()
    assert not desk.purchases.can_buy("game", 1)


@pytest.mark.parametrize("limit", ["suppliers_alpha", "purchases"])
async def test_M4_intents_at_once_never_spend_more_than_a_budget(open_desk: Any, limit: str) -> None:
    seller, clock = Seller(), Clockwork()
    configuration = with_limits(**{limit: 'budget_hour = "6.50 CNY"'})
    desks = [open_desk(seller, configuration=configuration, clock=clock)]
    if desks[0].house.database.postgresql:
        desks.append(open_desk(seller, configuration=configuration, clock=clock))
    await asyncio.gather(*(desk.purchases.buy("game", 1, asked_by=f"{n}") for n in range(3) for desk in desks * 2))
    assert sum(seller.charges.values()) == 3
    assert sum(one.spend for one in desks[0].rows()) <= 6_500_000
    clock.wait(3601)
    desks[0].list("alpha", "a")
    assert (await desks[0].purchases.buy("game", 1, asked_by="later")).bought == 1


async def test_M4_CONTROL_a_guard_outside_of_the_transaction_is_seen(
    open_desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Purchases._intend

    async def early(self: Any, errand: Any, picks: Any, wanted: int) -> Any:
        if any([await asyncio.to_thread(self.objection, "game", pick) for pick in picks]):
            return []
        await asyncio.sleep(0.05)
        return await real(self, errand, picks, wanted)

    monkeypatch.setattr(ledger, "forbids", lambda *_args, **_more: None)
    monkeypatch.setattr(Purchases, "_intend", early)
    monkeypatch.setattr(Purchases, "_room", lambda *_: None)
    monkeypatch.setattr(asyncio, "Lock", Open)
    with pytest.raises(AssertionError):
        await test_M4_intents_at_once_never_spend_more_than_a_budget(open_desk, "purchases")


class Open:
    """A lock that keeps nobody out."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        return None


async def test_M4_what_is_unknown_counts_as_spent_at_its_limit(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller, configuration=with_limits(purchases='budget_hour = "4 CNY"'))
    seller.plans.append(never_arrives)
    await desk.purchases.buy("game", 1, asked_by="operator")
    got = await desk.purchases.buy("game", 1, asked_by="operator")
    assert (got.references, desk.row().spend) == ((), 2_100_000)
    await desk.purchases.resolve(desk.row().reference, charged=False, by="operator")
    assert (await desk.purchases.buy("game", 1, asked_by="operator")).bought == 1


async def test_M4_the_limit_is_sent_in_the_offers_currency(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    desk.list("alpha", "a", "1.22", "EUR")
    await desk.purchases.buy("game", 1, asked_by="operator")
    assert seller.seen[0].max_unit_cost == Money(Decimal("1.25"), "EUR")  # 10 CNY at 8
    assert desk.row().unit_limit == "1.25 EUR"


async def test_M4_a_price_that_only_a_question_tells_is_asked_for_before(open_desk: Any) -> None:
    class Asked(Seller):
        async def get_offer(self, sku: str) -> Any:
            self.asked += 1
            listed = desk.purchases.candidates("game")[0].offer
            return replace(listed, price=Money(self.price, "CNY"))

    seller = Asked(price="3")
    desk = open_desk(seller)
    desk.list("alpha", "a", None)
    await desk.purchases.buy("game", 1, asked_by="operator")
    assert (seller.asked, desk.row().unit_cost, desk.row().state) == (1, "3 CNY", "fulfilled")
    seller.price = Decimal(11)
    got = await desk.purchases.buy("game", 1, asked_by="operator")
    assert "max_cost" in got.refused[0][2]


async def test_M4_more_than_the_limit_is_said_aloud(open_desk: Any) -> None:
    seller = Seller(price="2")
    desk = open_desk(seller)
    seller.price = Decimal(9)
    await desk.purchases.buy("game", 1, asked_by="operator")
    assert (desk.row().state, desk.row().spend) == ("fulfilled", 9_000_000)
    assert desk.house.rows("SELECT count(*) FROM audit WHERE kind = 'purchase.overcharged'") == [(1,)]


async def test_T3_nothing_is_bought_or_taken_in_while_the_fence_stands(open_desk: Any) -> None:
    seller, clock = Seller(), Clockwork()
    desk = open_desk(seller, clock=clock)
    seller.plans.append(lambda order: seller.sell(order, "pending", []))
    await desk.purchases.buy("game", 1, asked_by="operator")
    seller.becomes(desk.row().reference, "completed", seller.keys(1))
    desk.house.tamper("INSERT INTO meta (name, value) VALUES ('restored_at', 'x')")
    await desk.later(10)
    assert (desk.row().state, seller.asked) == ("accepted", 0)
    assert "recover" in (await desk.purchases.buy("game", 1, asked_by="operator")).refused[0][2]
    fresh = open_desk(seller, clock=clock)
    await fresh.purchases.recover()
    fresh.house.tamper("DELETE FROM meta")
    await fresh.later(10)  # its keys may have been delivered since the backup
    assert (fresh.row().state, fresh.row().next_at, seller.asked) == ("accepted", None, 0)
    assert "restored" in fresh.row().reason


# --- orders that wait -------------------------------------------------------------------------------------------------


async def test_K10_units_of_unknown_outcome_are_bought_again_only_when_told_to(open_desk: Any) -> None:
    seller = Seller()
    told = 'cover_unknown_after = "10m"\ncover_budget_day = "4 CNY"'
    desk = open_desk(seller, configuration=with_limits(purchases=told))
    owed(desk, 1)
    seller.plans.append(never_arrives)
    await desk.purchases.cover("game")
    desk.clock.wait(300)
    await desk.purchases.cover("game")
    assert len(desk.rows()) == 1
    desk.clock.wait(301)
    seller.plans.append(never_arrives)
    await desk.purchases.cover("game")
    assert [one.asked_by for one in desk.rows()] == ["cover", "delivery"]
    desk.clock.wait(601)
    desk.list("alpha", "a")
    await desk.purchases.cover("game")  # its budget is used up
    assert len(desk.rows()) == 2


async def test_what_nobody_sells_is_tried_ever_more_rarely(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    owed(desk, 1)
    seller.plans += [refuses()] * 9
    tries = []
    for _ in range(4):
        await desk.purchases.cover()
        tries.append(len(seller.seen))
        desk.clock.mono += 6
    assert tries == [1, 2, 2, 3]
    await desk.purchases.cover("game")  # somebody waits for it now
    assert len(seller.seen) == 4
    seller.plans.clear()
    desk.clock.mono += 60
    await desk.purchases.cover()
    assert desk.row().state == "fulfilled"


async def test_can_buy_says_whether_what_others_wait_for_leaves_enough(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    desk.list("alpha", "a", stock_kind="exact", stock_quantity=3)
    assert desk.purchases.can_buy("game", 3)
    assert not desk.purchases.can_buy("game", 4)
    owed(desk, 2)
    assert desk.purchases.can_buy("game", 3)  # believed for a second
    desk.clock.wait(1)
    assert not desk.purchases.can_buy("game", 3)
    assert desk.purchases.can_buy("game", 1)
    assert not desk.purchases.can_buy("nothing", 1)


# --- keeping secrets, stopping ----------------------------------------------------------------------------------------


async def test_S4_no_key_is_seen_on_any_way_of_a_purchase(open_desk: Any, assert_unseen: Any, capsys: Any) -> None:
    canary = "CANAR-YYYYY-12345"
    logs.configure("debug")  # as the daemon has it
    seller = Finder(promises=ONCE)
    desk = open_desk(seller, configuration=with_limits(purchases="max_disputes = 9"))
    told: list[str] = []
    plans: list[Plan] = [
        lambda order: seller.sell(order, "completed", [canary]),
        lambda order: seller.sell(order, "completed", [canary, canary]),
        lambda order: seller.sell(order, "completed", [f"sorry {canary} is gone, ask us"]),
        lambda order: seller.sell(order, "partial", [RawKey.card({"card_no": canary, "pin": canary})]),
        lambda order: seller.sell(order, "refunded", [canary]),
        lambda _: (_ for _ in ()).throw(ValueError(canary)),
    ]
    for plan in plans:
        seller.plans.append(plan)
        told.append(str(await desk.purchases.buy("game", 1, asked_by="operator")))
    await desk.later(100)
    for one in desk.rows():
        told.append(f"{one} {one.shown()}")
        with contextlib.suppress(Exception):
            await desk.purchases.resolve(one.reference, charged=True, keys=f"{canary}\n{canary}".encode(), by="mei")
    try:
        await desk.purchases.resolve(desk.row().reference, charged=True, keys=canary.encode() * 2, by="mei")
    except Exception as error:
        told.append(repr(error))
    captured = capsys.readouterr()
    told += [captured.out, captured.err, desk.house.metrics.render().decode()]
    told += [str(row) for row in desk.house.rows("SELECT * FROM purchase")]
    assert len(desk.rows()) == 6
    assert_unseen(canary, "\n".join([*told, desk.house.everything()]))
    with pytest.raises(AssertionError):  # the harness has eyes
        assert_unseen(canary, "\n".join([*told, canary]))
    structlog.reset_defaults()


async def test_a_stop_waits_for_what_is_under_way(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    got = asyncio.create_task(desk.purchases.buy("game", 1, asked_by="operator"))
    while not seller.seen:  # noqa: ASYNC110 - the seller is in another thread
        await asyncio.sleep(0.01)
    await desk.purchases.stop()
    assert (await got).bought == 1
    assert (await desk.purchases.buy("game", 1, asked_by="operator")).references == ()


async def test_what_its_supplier_or_product_left_open_is_shown_as_such(open_desk: Any) -> None:
    seller = Seller()
    desk = open_desk(seller)
    seller.plans.append(lambda order: seller.sell(order, "pending", []))
    await desk.purchases.buy("game", 1, asked_by="operator")
    link = desk.links.pop("alpha")
    await desk.later(10)
    assert (desk.row().state, desk.row().reason) == ("accepted", "its supplier is not configured")
    seller.becomes(desk.row().reference, "completed", seller.keys(1))
    desk.links["alpha"] = link
    await desk.later(10)
    assert desk.row().state == "fulfilled"


async def test_W1_a_webhook_is_verified_and_no_more_than_a_hint(open_desk: Any) -> None:
    class Tells(Seller):
        def parse_webhook(self, webhook: Webhook) -> Hint:
            if webhook.headers.get("sign") != "right":
                raise Forged("not signed")
            if not webhook.body:
                raise ValueError
            return Hint("order", reference=webhook.body.decode(), answer=b"ok")

    seller = Tells()
    desk = open_desk(
        seller, configuration=CONFIGURATION.replace("min_free", 'hooks_url = "https://shop.example/in"\nmin_free')
    )
    seller.plans.append(lambda order: seller.sell(order, "pending", []))
    await desk.purchases.buy("game", 1, asked_by="operator")
    assert [order.callback_url for order in seller.seen] == ["https://shop.example/in/v1/hooks/alpha"]
    one = desk.row()
    seller.becomes(one.reference, "completed", seller.keys(1))

    async def tell(body: bytes, sign: str = "right", supplier: str = "alpha") -> bytes:
        at = datetime.fromtimestamp(desk.clock.now(), UTC)
        answer: bytes = await desk.purchases.heard(supplier, Webhook("POST", "/", {"sign": sign}, {}, body, at))
        return answer

    with pytest.raises(Forged):
        await tell(one.reference.encode(), sign="wrong")
    with pytest.raises(NotFoundError):
        await tell(b"", supplier="nobody")
    assert await tell(b"") == b""  # what cannot be read is no reason to send it again
    await desk.purchases.reconcile()
    assert not seller.asked
    assert await tell(one.reference.lower().encode()) == b"ok"
    await asyncio.sleep(0.05)
    await desk.purchases.reconcile()
    assert desk.row().state == "fulfilled"
    many = await asyncio.gather(*(tell(b"X") for _ in range(30)), return_exceptions=True)
    assert any(isinstance(one, UnavailableError) for one in many)
