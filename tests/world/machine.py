"""A seeded world as a Hypothesis state machine: shops, suppliers, clocks and crashes in any order (M1-M4, P1-P3).

Every step leaves a quiet house, in which everything in `invariants` holds; at the end all faults end, time passes, a
person decides what only a person can, and the books have to balance to the last key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from syncd.errors import SyncdError
from syncd.orders.deliveries import Delivery, DeliveryCancelledError
from tests.world.house import SHOP, Shape, World
from tests.world.invariants import Promise, still_open
from tests.world.suppliers import ASKING_SINS, LISTING_SINS, ORDER_SINS

SHAPE: Final = Shape(
    markets={
        "alfa": ("hub", {"game": ("10", 30), "card": ("4", 30)}),
        "beta": ("desk", {"game": ("11", 40), "card": ("3", 2)}),
        "gama": ("kiosk", {"game": ("9", 5)}),
        "delta": ("wall", {"card": ("2", 25)}),
    },
    products={"steam": ("alfa/game", "beta/game", "gama/game"), "gift": ("alfa/card", "beta/card", "delta/card")},
    max_cost={"steam": "15", "gift": "6"},
    hour={"": "400", "alfa": "150"},
    day={"": "900", "beta": "300"},
)
PRODUCTS: Final = tuple(SHAPE.products)
NAMES: Final = tuple(SHAPE.markets)
products = st.sampled_from(PRODUCTS)
names = st.sampled_from(("alfa", "beta", "alfa", "beta", *NAMES))  # most is bought from these
troubles = st.one_of(
    st.tuples(st.just("lie"), st.sampled_from(LISTING_SINS)),
    st.tuples(
        st.just("question"),
        st.sampled_from(("get_order", "find_order", "fetch_keys", "get_offer", "get_balance")),
        st.sampled_from(ASKING_SINS),
    ),
    st.just(("outage",)),
    st.tuples(st.just("market"), st.sampled_from((50, 90, 110, 130, 400)), st.integers(0, 40)),
)
few, any_of = st.integers(1, 4), st.integers(0, 1000)


class WorldMachine(RuleBasedStateMachine):
    """Subclasses say where: `fresh` makes an empty database's URL and a folder."""

    fresh: ClassVar[Callable[[], tuple[str, Any]]]
    shape: ClassVar[Shape] = SHAPE

    def __init__(self) -> None:
        super().__init__()
        url, folder = type(self).fresh()
        self.world = World(self.shape, url, folder)
        self.orders: list[tuple[str, str, int]] = []
        """(order_ref, product, quantity) of everything that a shop has asked for."""
        self.steps = 0
        self.read_at: dict[str, float] = {}

    @initialize()
    def listed(self) -> None:
        for name in NAMES:
            self.world.attempt(self.world.house.listed(name))

    # --- shops --------------------------------------------------------------------------------------------------------

    def _note(self, order: tuple[str, str, int], answer: Delivery | SyncdError) -> None:
        """What the shop was told, held against what it was told before."""
        ref, product, quantity = order
        promise = self.world.promises.get(ref)
        if isinstance(answer, DeliveryCancelledError):
            assert promise is None or promise.cancelled or not promise.keys, f"{ref} was delivered, and then cancelled"
        if not isinstance(answer, Delivery):
            return
        keys = [key.id for key in answer.keys]
        promise = self.world.promises.setdefault(ref, Promise(product, quantity))
        assert not promise.cancelled, f"{ref} was cancelled, and is answered"
        if answer.state == "delivered":
            assert len(keys) == quantity, f"{ref} got {len(keys)} keys of {quantity}"
            assert not promise.keys or promise.kept(keys), f"{ref} was answered in two ways"
            promise.keys = keys

    async def _deliver(self, order: tuple[str, str, int]) -> None:
        try:
            answer: Any = await self.world.house.deliveries.deliver(SHOP, *order)
        except SyncdError as error:
            answer = error
        self._note(order, answer)

    def _new(self, product: str, quantity: int) -> tuple[str, str, int]:
        order = (f"order-{len(self.orders)}", product, quantity)
        self.orders.append(order)
        return order

    @rule(product=products, quantity=few)
    def deliver(self, product: str, quantity: int) -> None:
        self.step(self._deliver(self._new(product, quantity)))

    @precondition(lambda self: self.orders)
    @rule(which=any_of)
    def deliver_again(self, which: int) -> None:
        self.step(self._deliver(self.orders[which % len(self.orders)]))

    @precondition(lambda self: self.orders)
    @rule(which=any_of)
    def cancel(self, which: int) -> None:
        ref = self.orders[which % len(self.orders)][0]

        async def cancelled() -> None:
            answer = await self.world.house.deliveries.cancel(SHOP, ref)
            if answer.state == "cancelled":
                self.world.promises.setdefault(ref, Promise(answer.product, answer.quantity)).cancelled = True

        self.step(cancelled())

    @rule(product=products, quantity=few, customer=st.sampled_from(("", "ann", "bob")))
    def reserve(self, product: str, quantity: int, customer: str) -> None:
        order = self._new(product, quantity)
        self.step(self.world.house.reservations.reserve(SHOP, *order, customer=customer or None, ttl_s=900))

    @precondition(lambda self: self.orders)
    @rule(which=any_of)
    def release(self, which: int) -> None:
        self.step(self.world.house.reservations.release(SHOP, self.orders[which % len(self.orders)][0]))

    @rule()
    def sweep(self) -> None:
        self.step(self.world.house.reservations.sweep())

    @precondition(lambda self: self.orders)
    @rule(which=any_of)
    def paid_in_the_second_of_expiry(self, which: int) -> None:
        order, house = self.orders[which % len(self.orders)], self.world.house
        self.step(
            _together(house.reservations.sweep(), self._deliver(order), house.reservations.release(SHOP, order[0]))
        )

    @precondition(lambda self: self.orders)
    @rule(which=any_of, unit=st.integers(0, 3))
    def replace(self, which: int, unit: int) -> None:
        """A customer says that a key does not work; its supplier is told."""
        ref, product, quantity = self.orders[which % len(self.orders)]
        promise = self.world.promises.get(ref)
        key = promise.keys[unit % len(promise.keys)] if promise and promise.keys else 0
        if promise is not None:
            promise.bad.add(key)

        async def replaced() -> None:
            house = self.world.house
            try:
                answer: Any = await house.replacements.replace(SHOP, ref, key, "invalid")
            except SyncdError as error:
                answer = error
            self._note((ref, product, quantity), answer)
            await house.replacements.claim_due()

        self.step(replaced())

    # --- buying -------------------------------------------------------------------------------------------------------

    @rule(product=products, level=st.integers(1, 12))
    def top_up(self, product: str, level: int) -> None:
        self.step(self.world.house.purchases.top_up(product, level, asked_by="replenish"))

    @rule(product=products, quantity=few)
    def buy(self, product: str, quantity: int) -> None:
        self.step(self.world.house.purchases.buy(product, quantity, asked_by="operator"))

    @rule()
    def reconcile(self) -> None:
        self.step(self.world.house.purchases.reconcile())

    @rule()
    def cover(self) -> None:
        self.step(self.world.house.purchases.cover())

    @rule(which=any_of, hands_over=st.booleans())
    def a_person_decides(self, which: int, hands_over: bool) -> None:
        """Somebody asks a supplier what became of an order that is unknown, and believes the answer."""
        world = self.world
        unknown = sorted(ref for ref, row in world.books().purchases.items() if row["state"] == "unknown")
        if not unknown:
            return
        reference = unknown[which % len(unknown)]
        charge = next((one for one in world.ledger.charges if one.reference == reference), None)
        charged = charge is not None and charge.cost > world.ledger.back[charge.order]
        keys = None
        if charged and charge is not None and hands_over:
            market = world.markets[charge.supplier]
            keys = "\n".join(market.handed(market.sales[charge.order])).encode() or None
        self.step(world.house.purchases.resolve(reference, charged=charged, keys=keys, by="ann"))

    @rule(product=products, quantity=few, which=any_of)
    def all_at_once(self, product: str, quantity: int, which: int) -> None:
        """Two top-ups, a sweep, an order and the same order again, side by side."""
        house, order = self.world.house, self._new(product, quantity)
        self.step(
            _together(
                house.purchases.top_up(product, 3, asked_by="replenish"),
                house.purchases.top_up(product, 3, asked_by="replenish"),
                self._deliver(order),
                self._deliver(order),
                house.purchases.reconcile(),
                house.purchases.cover(),
                self._deliver(self.orders[which % len(self.orders)]),
            )
        )

    # --- suppliers ----------------------------------------------------------------------------------------------------

    @rule(name=names)
    def sync(self, name: str) -> None:
        self.step(self.world.house.listed(name))

    @rule(sins=st.lists(st.sampled_from(("", *ORDER_SINS)), min_size=1, max_size=3))
    def orders_will_fail(self, sins: list[str]) -> None:
        self.world.ledger.sins.extend(sins)

    @rule(name=names, which=any_of, trouble=troubles)
    def trouble(self, name: str, which: int, trouble: tuple[Any, ...]) -> None:
        """What makes a supplier's life interesting: lies, prices, stock, outages."""
        market, (kind, *how) = self.world.markets[name], trouble
        if kind == "lie":
            market.fail("list_offers", *how)
        elif kind == "question":
            market.fail(*how)
        elif kind == "outage":
            market.down = not market.down
        else:
            goods = list(market.goods.values())
            good, (percent, stock) = goods[which % len(goods)], how
            good.price = (good.price * percent / 100).quantize(Decimal("0.01")).max(Decimal(1))
            good.stock = stock

    # --- time and death -----------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from((1, 6, 31, 61, 120, 700, 4000, 30_000)))
    def time_passes(self, seconds: int) -> None:
        self.world.clock.tick(seconds)
        self._scheduled()

    @rule(seconds=st.sampled_from((-90_000, -3600, -1, 1, 3600)))
    def the_clock_jumps(self, seconds: int) -> None:
        self.world.clock.jump(seconds)
        self._scheduled()

    def _scheduled(self) -> None:
        """What the schedule does by itself: what is due is followed up, what was listed long ago is listed anew."""
        house = self.world.house
        self.step(_together(house.purchases.reconcile(), house.reservations.sweep(), house.purchases.cover()))
        now, house = self.world.clock.now(), self.world.house
        for name in NAMES:
            if not 0 <= now - self.read_at.get(name, 0) <= 600:
                self.read_at[name] = now
                self.step(house.listed(name))
                house = self.world.house

    @rule(commits=st.integers(0, 5), acknowledged=st.booleans())
    def dies_later(self, commits: int, acknowledged: bool) -> None:
        self.world.house.die_after(commits, acknowledged=acknowledged)

    @rule(product=products, quantity=few, commits=st.integers(0, 4), acknowledged=st.booleans())
    def dies_while_buying(self, product: str, quantity: int, commits: int, acknowledged: bool) -> None:
        self.world.house.die_after(commits, acknowledged=acknowledged)
        self.step(self.world.house.purchases.buy(product, quantity, asked_by="operator"))

    @rule()
    def dies(self) -> None:
        self.world.restart()
        self.judge()

    # --- judging ------------------------------------------------------------------------------------------------------

    def step(self, work: Coroutine[Any, Any, Any]) -> None:
        self.steps += 1
        self.world.attempt(work)
        self.judge()

    def judge(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.world.close()

    def settle(self) -> None:
        """Faults end, time passes: what is still open then is for a person alone."""
        world = self.world
        world.restart()
        for market in world.markets.values():
            market.repent()
        world.clock.jump(-world.clock.wrong)  # deadlines are by the wall clock, which is right in the end
        for seconds in (5, 40, 60, 120, 600, 3600, 90_000, 3600):
            world.clock.tick(seconds)
            world.attempt(world.house.purchases.reconcile())
        world.check()
        world.verify()
        left = [state for state in still_open(world.books()).values() if state not in {"unknown", "disputed"}]
        assert not left, f"{left} never end"


async def _together(*works: Coroutine[Any, Any, Any]) -> None:
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, SyncdError):
            raise outcome
