"""Suppliers as they truly are: a shelf, our account there, a ledger of what was charged and handed over, and every sin.

A `Market` outlives the daemon that buys from it. Its adapters are real ones, of four kinds: a reference that comes
again gives the same order (`Hub`); an order is found by its reference, its keys are fetched (`Desk`); a reference that
comes again tells what became of the first one (`Kiosk`); nothing helps (`Wall`). Faults are used up one a call:

    market.fail("place_order", "lost")         # it is charged, and the answer never comes
    market.fail("list_offers", "empty", "x100")
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final

from syncd.adapter import (
    Adapter,
    BadResponse,
    Config,
    InsufficientBalance,
    Money,
    NotForSale,
    NotSent,
    Offer,
    Order,
    OrderRequest,
    OutcomeUnknown,
    OutOfStock,
    Page,
    Promises,
    RateLimited,
    RawKey,
    Refused,
    Stock,
    Transient,
    by_number,
)
from syncd.model import Clock

NOTHING: Final = ("unreached", "out", "broke", "busy", "gone", "blank")
"""Faults of an order that buy nothing: three are refusals, one never left, and two tell nobody that nothing came."""
BLIND: Final = ("lost", "page", "bug")
"""Charged, and the answer is no answer."""
TARDY: Final = ("late",)
"""Charged, no answer, and for half a minute the supplier itself does not find it."""
CROOKED: Final = ("short", "over", "twice", "stale", "prose")
"""Charged and answered, with other keys than were ordered."""
LATER: Final = ("slowly", "partly", "cancelled", "refunded", "half", "never")
"""Charged, and not complete at once, or ever."""
ORDER_SINS: Final = (*NOTHING, *BLIND, *TARDY, *CROOKED, *LATER)
LISTING_SINS: Final = ("cut", "repeated", "empty", "page", "dollars", "x0.01", "x100", "negative", "doubled", "away")
ASKING_SINS: Final = ("page", "away", "unreached", "bug")
SENTENCE: Final = "订单异常，请联系客服处理，谢谢您的耐心等待"
LATE_S: Final = 30.0


class WorldClock(Clock):
    """Time that passes when the test says so. ``jump`` moves the wall clock alone, as NTP or a person does."""

    def __init__(self) -> None:
        self.true = 0.0
        """Seconds that have really passed: what suppliers live by."""
        self.wrong = 0.0
        self.told: Callable[[float], object] = lambda _now: None
        """Told each new time: a database server has a clock of its own."""

    def now(self) -> float:
        return 1_800_000_000.0 + self.true + self.wrong

    def monotonic(self) -> float:
        return self.true

    def tick(self, seconds: float) -> None:
        self.true += seconds
        self.told(self.now())

    def jump(self, seconds: float) -> None:
        self.wrong += seconds
        self.told(self.now())


@dataclass(frozen=True)
class Charge:
    """Money that a supplier took. ``cost`` is in the base currency."""

    supplier: str
    reference: str
    order: str
    quantity: int
    cost: Decimal


@dataclass
class Ledger:
    """What was charged, given back and handed over: the truth about every test."""

    charges: list[Charge] = field(default_factory=list)
    back: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    """Order → what was given back of it, in the base currency."""
    offences: list[str] = field(default_factory=list)
    """What no honest customer does."""
    keys: list[str] = field(default_factory=list)
    """Every key that was ever sold, by anybody."""
    sins: deque[str] = field(default_factory=deque)
    """What happens to the next orders, whoever gets them."""


@dataclass
class Sale:
    """One order, with all keys that it will ever have: (after so many seconds, how many of them are there)."""

    id: str
    wanted: OrderRequest
    cost: Decimal
    at: float
    keys: list[str]
    ready: list[tuple[float, int]]
    refund_after: float | None = None
    refund_share: Decimal = Decimal(1)
    kept: Decimal = Decimal(0)
    hidden_until: float = 0.0


@dataclass
class Good:
    """One thing on a shelf."""

    price: Decimal
    stock: int


class Market:
    """One supplier: what is on its shelf, what we have there, and what it makes of our orders."""

    def __init__(
        self,
        name: str,
        clock: WorldClock,
        ledger: Ledger,
        goods: dict[str, Good],
        *,
        currency: str = "CNY",
        rate: str = "1",
        balance: str = "100000",
    ) -> None:
        self.name, self.clock, self.ledger, self.goods = name, clock, ledger, goods
        self.currency, self.rate, self.balance = currency, Decimal(rate), Decimal(balance)
        self.sales: dict[str, Sale] = {}
        self.faults: dict[str, deque[str]] = defaultdict(deque)
        self.under_way: set[str] = set()
        self.returned: dict[str, bool] = {}
        self.asked: list[str] = []
        self.down = False

    # --- what a test does ---------------------------------------------------------------------------------------------

    def fail(self, verb: str, *faults: str) -> None:
        """What happens to the next calls of a verb; "" is none."""
        self.faults[verb].extend(faults)

    def repent(self) -> None:
        """No more faults."""
        self.faults.clear()
        self.ledger.sins.clear()
        self.down = False

    def by_reference(self, reference: str) -> Sale | None:
        """The order that bears a reference: the first of them, if there were two."""
        return next((sale for sale in self.sales.values() if sale.wanted.reference == reference), None)

    # --- what its adapter calls ---------------------------------------------------------------------------------------

    def fault(self, verb: str) -> str:
        """What goes wrong with this call. Raises what does not depend on the verb."""
        self.asked.append(verb)
        waiting = self.faults[verb] or (self.ledger.sins if verb == "place_order" else ())
        fault = "unreached" if self.down else waiting.popleft() if waiting else ""
        if fault == "unreached":
            raise NotSent("no route to this supplier")
        if verb != "place_order":
            if fault == "bug":
                raise KeyError("data")
            if fault == "away":
                raise Transient("a moment please")
            if fault == "page":
                raise BadResponse("a page of HTML")
        return fault

    def offers(self, fault: str = "") -> list[Offer]:
        """The shelf, as it is or as it is told."""
        factor = {"x0.01": Decimal("0.01"), "x100": Decimal(100)}.get(fault, Decimal(1))
        currency = "USD" if fault == "dollars" else self.currency
        found = []
        for sku, good in sorted(self.goods.items()):
            stock = Stock.exact(-3 if fault == "negative" else good.stock)
            found.append(Offer(sku, f"{sku} of {self.name}", Money(good.price * factor, currency), stock))
        return found + [replace(offer, price=Money(Decimal(1), currency)) for offer in found if fault == "doubled"]

    def buy(self, wanted: OrderRequest, fault: str) -> Sale:
        """Take an order in: from here on it is charged. Raises a refusal."""
        refusals = {"out": OutOfStock, "broke": InsufficientBalance, "busy": RateLimited}
        if fault in refusals:
            raise refusals[fault](f"{fault}, says the supplier")
        if fault == "gone":
            raise OutcomeUnknown("the connection broke")
        if fault == "blank":
            raise BadResponse("{} instead of an answer")
        sku = wanted.offer.sku
        now = next((offer for offer in self.offers() if offer.sku == sku), None)
        if now is None:
            raise NotForSale(f"{sku} is gone")
        try:
            price = wanted.price_of(now)
        except Config:
            self.ledger.offences.append(f"{wanted.reference}: a limit in a currency that the supplier does not have")
            raise
        if self.balance < price.amount * wanted.quantity:
            raise InsufficientBalance("top it up")
        return self._sold(wanted, price.amount * wanted.quantity, fault)

    def _sold(self, wanted: OrderRequest, amount: Decimal, fault: str) -> Sale:
        ledger, quantity = self.ledger, wanted.quantity
        self.balance -= amount
        self.goods[wanted.offer.sku].stock -= quantity
        order = f"{self.name}-{len(self.sales) + 1}"
        ledger.charges.append(Charge(self.name, wanted.reference, order, quantity, amount * self.rate))
        before = list(ledger.keys)
        keys = [
            f"{self.name.upper()}-{len(before) + number:06d}-{wanted.offer.sku.upper()}" for number in range(quantity)
        ]
        ledger.keys += keys
        if fault == "short":
            del keys[-1]
        elif fault == "over":
            keys.append(f"{self.name.upper()}-{len(ledger.keys):06d}-GIFT")
            ledger.keys.append(keys[-1])
        elif fault == "twice":
            keys[-1] = keys[0] if quantity > 1 else SENTENCE
        elif fault == "stale" and before:
            keys[-1] = before[len(before) // 2]
        elif fault == "prose":
            keys[-1] = SENTENCE
        half = (quantity + 1) // 2
        ready = {
            "slowly": [(20.0, quantity)],
            "partly": [(0.0, quantity - half), (40.0, quantity)],
            "cancelled": [],
            "refunded": [],
            "half": [(0.0, half)],
            "never": [],
        }.get(fault, [(0.0, len(keys))])
        sale = Sale(order, wanted, amount, self.clock.true, keys, ready, kept=amount)
        if fault in {"cancelled", "refunded", "half"}:
            sale.refund_after = 0.0 if fault == "cancelled" else 30.0
            sale.refund_share = Decimal(quantity - half) / quantity if fault == "half" else Decimal(1)
        if fault == "late":
            sale.hidden_until = self.clock.true + LATE_S
        self.sales[order] = sale
        return sale

    def handed(self, sale: Sale) -> list[str]:
        """The keys of an order that are there by now."""
        age = self.clock.true - sale.at
        return sale.keys[: max((count for after, count in sale.ready if after <= age), default=0)]

    def settle(self) -> None:
        """Give back what is due to be given back."""
        for sale in self.sales.values():
            if sale.refund_after is not None and self.clock.true - sale.at >= sale.refund_after:
                back = (sale.cost * sale.refund_share).quantize(Decimal("0.0001"))
                self.ledger.back[sale.id] += back * self.rate
                self.balance += back
                sale.kept, sale.refund_after = sale.cost - back, None

    def order(self, sale: Sale, *, keys: bool) -> Order:
        """An order as its adapter tells it."""
        self.settle()
        handed = self.handed(sale)
        given_back = sale.kept < sale.cost
        status: Any = "pending"
        if given_back:
            status = "refunded" if sale.kept or sale.wanted.quantity % 2 else "canceled"
        elif len(handed) == len(sale.keys):
            status = "completed"
        elif handed:
            status = "partial"
        raw = [RawKey.of(text, id=f"{sale.id}.{number}") for number, text in enumerate(handed)]
        charged = Money(sale.kept, self.currency)
        return Order(sale.id, status, sale.wanted.reference, charged, sale.wanted.quantity, raw if keys else ())


class Stall(Adapter):
    """What all kinds have in common. Its settings are its `Market`."""

    keys_with_order = True

    @property
    def market(self) -> Market:
        market: Market = self.context.settings
        return market

    async def list_offers(self, since: Any) -> AsyncIterator[Page]:
        fault = self.market.fault("list_offers")
        offers = [] if fault == "empty" else self.market.offers(fault)
        size = max(1, (len(offers) + 1) // 2)

        class Said:
            def __init__(self, page: int) -> None:
                self.page = 1 if fault == "repeated" else page

            def json(self) -> Any:
                shown = offers[:size] if fault == "cut" else offers
                return {"items": shown[(self.page - 1) * size : self.page * size], "total": len(offers)}

        async def ask(page: int) -> Said:
            return Said(page)

        async for part in by_number(ask, "items", total="total"):
            yield Page(part.items, total=part.total)

    async def get_offer(self, sku: str) -> Offer:
        self.market.fault("get_offer")
        found = next((offer for offer in self.market.offers() if offer.sku == sku), None)
        if found is None:
            raise NotForSale(f"{sku} is gone")
        return found

    async def get_balance(self) -> Money:
        self.market.fault("get_balance")
        return Money(self.market.balance, self.market.currency)

    async def place_order(self, order: OrderRequest) -> Order:
        market = self.market
        fault = market.fault("place_order")
        if order.reference in market.under_way:
            market.ledger.offences.append(f"{order.reference} was sent twice at once")
        market.under_way.add(order.reference)
        try:
            known = market.by_reference(order.reference)
            await asyncio.sleep(0)  # as a site does that looks for the reference, and then creates the order
            return self.answered(market, known, order, fault)
        finally:
            market.under_way.discard(order.reference)

    def answered(self, market: Market, known: Sale | None, order: OrderRequest, fault: str) -> Order:
        sale = self.repeated(known, order) if known else None
        if sale is None:
            if order.again and not (self.promises.same_reference_same_order or self.promises.repeat_after):
                market.ledger.offences.append(f"{order.reference} was sent again to a supplier that buys again")
            sale = market.buy(order, fault)
        if fault in {"lost", "late"}:
            raise OutcomeUnknown("the answer did not come")
        if fault == "page":
            raise BadResponse("a page of HTML")
        if fault == "bug":
            raise KeyError("order_id")
        return market.order(sale, keys=self.keys_with_order)

    def repeated(self, known: Sale, order: OrderRequest) -> Sale | None:
        """What a reference gives that was used; None: it buys again."""
        return None

    async def get_order(self, order_id: str) -> Order:
        self.market.fault("get_order")
        if order_id not in self.market.sales:
            raise BadResponse("there is no such order")
        return self.market.order(self.market.sales[order_id], keys=self.keys_with_order)

    async def return_keys(self, order_id: str, key_ids: Sequence[str]) -> dict[str, bool]:
        self.market.fault("return_keys")
        for name in key_ids:
            if name in self.market.returned:
                self.market.ledger.offences.append(f"key {name} was returned twice")
            self.market.returned[name] = True
        return dict.fromkeys(key_ids, True)


class Hub(Stall):
    """Sending a reference again gives the order that bears it, and buys nothing."""

    promises = Promises(same_reference_same_order=True)

    def repeated(self, known: Sale, order: OrderRequest) -> Sale | None:
        return known


class Desk(Stall):
    """Orders are found by their reference; keys are fetched by a call of their own."""

    keys_with_order = False

    async def find_order(self, reference: str) -> Order | None:
        self.market.fault("find_order")
        sale = self.market.by_reference(reference)
        if sale is None or self.market.clock.true < sale.hidden_until:
            return None
        return self.market.order(sale, keys=False)

    async def fetch_keys(self, order: Order) -> list[RawKey]:
        self.market.fault("fetch_keys")
        return list(self.market.order(self.market.sales[order.id], keys=True).keys)


class Kiosk(Stall):
    """A reference that comes again is refused if it was charged, and buys if it was not: one at a time."""

    promises = Promises(repeat_after=35, serial_trades=True)

    def repeated(self, known: Sale, order: OrderRequest) -> Sale | None:
        if not order.again:
            self.market.ledger.offences.append(f"{order.reference} was sent again as if it were new")
        raise OutcomeUnknown("paid: the shop has had this reference before")


class Wall(Stall):
    """Sells, and has no memory for references."""


KINDS: Final[dict[str, type[Stall]]] = {"hub": Hub, "desk": Desk, "kiosk": Kiosk, "wall": Wall}


def refusal(error: BaseException) -> bool:
    """Whether a supplier said no for sure."""
    return isinstance(error, Refused | RateLimited | NotSent)
