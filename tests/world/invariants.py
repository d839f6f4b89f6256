"""What must hold in every world, at every moment: pure functions over the suppliers' ledger and the database's rows.

`Books` is everything that the database says, read at one moment and opened; `faults` gives what is wrong, in words.
A purchase that is open counts as such: its keys may be on their way. `still_open` tells what is, for the end of a test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from tests.world.suppliers import Charge, Ledger, Market

OPEN: Final = frozenset({"sent", "unknown", "accepted"})
MILLION: Final = 1_000_000
SLACK: Final = Decimal("0.001")


@dataclass(frozen=True)
class Key:
    """A key in the vault or a slice in quarantine, opened."""

    id: int
    product: str
    state: str
    source: str
    text: str


@dataclass
class Books:
    """What the database says at one moment."""

    now: float
    purchases: dict[str, dict[str, Any]]
    """Reference → row."""
    vault: list[Key]
    quarantine: list[Key]
    deliveries: dict[tuple[str, str], dict[str, Any]]
    """(shop, order_ref) → row."""
    allotted: dict[int, list[tuple[int, int]]]
    """Delivery → (unit, key) of those that were not withdrawn."""
    reserved: list[tuple[int, int, str]]
    """(key, reservation, the reservation's state)."""
    reservations: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    sellable: dict[str, int] = field(default_factory=dict)
    """What shops are told."""
    upstream: dict[str, int] = field(default_factory=dict)
    """Product → units that suppliers listed, at a price that may be paid."""


@dataclass(frozen=True)
class Bounds:
    """What was configured: the base currency's budgets by supplier ("" for all), per hour and per day."""

    hour: Mapping[str, Decimal] = field(default_factory=dict)
    day: Mapping[str, Decimal] = field(default_factory=dict)
    max_cost: Mapping[str, Decimal] = field(default_factory=dict)
    """Product → the most that one unit may cost."""


@dataclass
class Promise:
    """What a shop was told about an order line, once: it holds for ever."""

    product: str
    quantity: int
    keys: list[int] = field(default_factory=list)
    """Empty while it is pending."""
    cancelled: bool = False
    bad: set[int] = field(default_factory=set)
    """Those that the shop wanted replaced."""

    def kept(self, keys: Sequence[int]) -> bool:
        """Whether these are the same keys, but for those that were to be replaced."""
        return len(keys) == len(self.keys) and all(
            now == before or (before in self.bad and now not in self.bad)
            for before, now in zip(self.keys, keys, strict=True)
        )


def faults(
    ledger: Ledger, markets: Mapping[str, Market], books: Books, promises: Mapping[str, Promise], bounds: Bounds
) -> list[str]:
    """Everything that is wrong; empty in a sound world."""
    checks: Sequence[Callable[[], Iterator[str]]] = (
        lambda: iter(ledger.offences),
        lambda: charged_once(ledger),
        lambda: accounted_for(ledger, markets, books),
        lambda: nothing_twice(books),
        lambda: promised(books, promises),
        lambda: within(ledger, books, bounds),
        lambda: sellable(books),
    )
    return [fault for check in checks for fault in check()]


def charged_once(ledger: Ledger) -> Iterator[str]:
    """M1: at most one charge for a reference."""
    for reference, times in Counter((charge.supplier, charge.reference) for charge in ledger.charges).items():
        if times > 1:
            yield f"{reference[1]} was charged {times} times by {reference[0]}"


def accounted_for(ledger: Ledger, markets: Mapping[str, Market], books: Books) -> Iterator[str]:
    """Each charged key lies in exactly one place, or its purchase is open, in dispute, or was paid back."""
    places: dict[str, Counter[str]] = {}
    for key in (*books.vault, *books.quarantine):
        places.setdefault(key.source, Counter())[key.text] += 1
    for charge in ledger.charges:
        row = books.purchases.get(charge.reference)
        if row is None:
            yield f"{charge.reference} was charged, and there is no intent"
            continue
        yield from _one_purchase(charge, row, ledger, markets[charge.supplier], places)
    charged = {charge.reference for charge in ledger.charges}
    for reference, row in books.purchases.items():
        if reference not in charged and row["state"] in {"fulfilled", "disputed", "refunded"} and row["received"]:
            yield f"{reference} is {row['state']}, and was never charged"
        if row["state"] == "refused" and row["spend"]:
            yield f"{reference} was refused, and counts as {row['spend']} spent"
        if row["state"] in OPEN and not row["spend"]:
            yield f"{reference} is {row['state']}, and nothing of it counts as spent"


def _one_purchase(
    charge: Charge, row: Mapping[str, Any], ledger: Ledger, market: Market, places: Mapping[str, Counter[str]]
) -> Iterator[str]:
    what, state = f"{charge.reference} ({row['state']}, {charge.supplier})", row["state"]
    if state == "intended":
        yield f"{what} was charged before it was marked as sent"
    if row["supplier"] != charge.supplier:
        yield f"{what} was charged by another supplier than its row says"
    found = places.get(f"purchase:{charge.reference}", Counter())
    handed = Counter(market.handed(market.sales[charge.order]))
    more = [text for text, times in found.items() if times > max(1, handed[text])]
    if more:
        yield f"{what}: {len(more)} of its keys lie in two places"
    kept = charge.cost - ledger.back[charge.order]
    if state in OPEN or state == "intended":
        return
    if state == "refused":
        if kept > SLACK:
            yield f"{what} was charged {kept}, and counts as refused"
        return
    missing = handed.keys() - found.keys()
    if state in {"fulfilled", "refunded"} and missing:
        yield f"{what}: {len(missing)} keys that were handed over are nowhere"
    there = min(sum(found.values()), charge.quantity)
    unit = charge.cost / charge.quantity
    lost = kept - unit * there
    if lost > SLACK and state != "disputed":
        yield f"{what}: {lost} were paid for {charge.quantity - there} keys that are nowhere"
    if lost > SLACK and state == "disputed" and not row["open_spend"]:
        yield f"{what}: {lost} were paid for keys that are nowhere, and no money is open"


def nothing_twice(books: Books) -> Iterator[str]:
    """M2: no key is in the vault twice, in two orders, or in an order and on sale."""
    for text, times in Counter(key.text for key in books.vault).items():
        if times > 1:
            yield f"a key lies in the vault {times} times ({len(text)} characters)"
    owners: dict[int, int] = {}
    states = {key.id: key.state for key in books.vault}
    for delivery_id, units in books.allotted.items():
        for _, key_id in units:
            if key_id in owners:
                yield f"key {key_id} went to two orders"
            owners[key_id] = delivery_id
            if states.get(key_id) != "delivered":
                yield f"key {key_id} went to an order, and is {states.get(key_id)}"
    for key in books.vault:
        if key.state == "delivered" and key.id not in owners:
            yield f"key {key.id} is delivered, to nobody"
    yield from held_once(books, states)


def held_once(books: Books, states: Mapping[int, str]) -> Iterator[str]:
    """A reserved key is held by exactly one reservation. ``states``: key → its state."""
    waiting = {row["id"] for row in books.deliveries.values() if row["state"] == "pending"}
    # A reservation that is paid before all of its keys are there keeps those that are, under its own id.
    held = Counter(key_id for key_id, owner, state in books.reserved if state == "held" or owner in waiting)
    for key_id, times in held.items():
        if times > 1:
            yield f"key {key_id} is held by {times} reservations"
        if states.get(key_id) not in {"reserved", "expired", "corrupt", "held"}:
            yield f"key {key_id} is held by a reservation, and is {states.get(key_id)}"
    for key in books.vault:
        if key.state == "reserved" and key.id not in held:
            yield f"key {key.id} is reserved, by nobody"


def promised(books: Books, promises: Mapping[str, Promise]) -> Iterator[str]:
    """M2: what was acknowledged stands: its quantity, its product, for ever the same keys."""
    for order_ref, promise in promises.items():
        row = books.deliveries.get(("demo", order_ref))
        if row is None:
            yield f"order {order_ref} was acknowledged, and is not there"
            continue
        if (row["product"], row["quantity"]) != (promise.product, promise.quantity):
            yield f"order {order_ref} became another one"
        if promise.cancelled and row["state"] != "cancelled":
            yield f"order {order_ref} was cancelled, and is {row['state']}"
        if promise.keys:
            now = [key_id for _, key_id in sorted(books.allotted.get(row["id"], []))]
            if row["state"] == "delivered" and not promise.kept(now):
                yield f"order {order_ref} has other keys than it was answered"
            if row["state"] not in {"delivered", "pending"}:  # pending: one of its keys is being replaced
                yield f"order {order_ref} was delivered, and is {row['state']}"
    for (_, order_ref), row in books.deliveries.items():
        units = len(books.allotted.get(row["id"], []))
        if row["state"] == "delivered" and units != row["quantity"]:
            yield f"order {order_ref} was delivered {units} keys of {row['quantity']}"


def within(ledger: Ledger, books: Books, bounds: Bounds) -> Iterator[str]:
    """M4: in no hour and no day was more spent than the budgets say, whatever the clock did meanwhile."""
    paid: dict[str, Decimal] = {}
    for charge in ledger.charges:
        paid[charge.reference] = paid.get(charge.reference, Decimal()) + charge.cost - ledger.back[charge.order]
    rows = sorted(books.purchases.values(), key=lambda row: row["id"])
    for budgets, seconds in ((bounds.hour, 3600), (bounds.day, 86400)):
        for name, budget in budgets.items():
            mine = [row for row in rows if name in {"", row["supplier"]}]
            for index, row in enumerate(mine):
                since = row["created_at"] - seconds
                spent = sum(
                    (paid.get(one["reference"], Decimal()) for one in mine[: index + 1] if one["created_at"] > since),
                    Decimal(),
                )
                if spent > budget + SLACK:
                    who = name or "all"
                    yield f"{spent} were spent at {who} within {seconds} s of {row['reference']}: {budget} is allowed"
                    break
    for charge in ledger.charges:
        row = books.purchases.get(charge.reference)
        limit = bounds.max_cost.get(row["product"]) if row else None
        if row and limit is not None and charge.cost / charge.quantity > limit + SLACK:
            yield f"{charge.reference} cost {charge.cost / charge.quantity} a unit: {limit} is allowed"


def sellable(books: Books) -> Iterator[str]:
    """What shops are told can be sold is here, or was listed by a supplier, and nobody waits for it."""
    owed: Counter[str] = Counter()
    mine = Counter(owner for _, owner, _ in books.reserved)
    for row in books.deliveries.values():
        if row["state"] == "pending":
            owed[row["product"]] += row["quantity"] - len(books.allotted.get(row["id"], [])) - mine[row["id"]]
    for row in books.reservations.values():
        if row["state"] == "held":
            owed[row["product"]] += row["promised"]
    here = Counter(key.product for key in books.vault if key.state == "available")
    for product, units in books.sellable.items():
        upstream = books.upstream.get(product, 0)
        if units > max(0, here[product] + upstream - owed[product]):
            yield f"{units} of {product} are for sale: {here[product]} here, {upstream} upstream, {owed[product]} owed"


def still_open(books: Books) -> dict[str, str]:
    """Reference → state of the purchases that are not over: none should be left but those that wait for a person."""
    return {name: row["state"] for name, row in books.purchases.items() if row["closed_at"] is None}
