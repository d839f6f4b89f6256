"""From whom to buy: a pure decision over what is known of each offer. Called by purchase, and by explain for people.

A unit is reckoned at what it will have cost once it works: its price in the base currency, divided by the share of the
supplier's keys that are good, a little dearer where the stock is not known or the supplier falters, and 1 % cheaper for
each point of the supplier's priority. The cheapest is ordered first, as much of it as may be; the rest goes on to the
next.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from syncd.adapter import Offer
from syncd.model import Money

MOST_ORDERS: Final = 10
"""Orders that one decision makes at most; what is then short is decided anew when they are through."""
Health = Literal["up", "failing", "down", "stopped", "cannot_buy", "not_configured"]
_PRIOR_KEYS: Final = 50
_PRIOR_DEFECTS: Final = 0.5
_MOST_PRIORITY: Final = 1000
_POINT: Final = Decimal("1.01")
# Worth how much more a sure thing is: small, so that they decide between offers of like cost only.
_UNSURE: Final = {"unknown": Decimal("1.05"), "low": Decimal("1.02")}
_FAILING: Final = Decimal("1.05")
_UNHEALTHY: Final = {
    "down": "its supplier is down",
    "stopped": "its supplier is not asked until its configuration changes",
    "cannot_buy": "its adapter cannot order",
    "not_configured": "its supplier is not configured, or not enabled",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """An offer that could serve a product, and what is known of its supplier."""

    supplier: str
    offer: Offer
    """As last listed."""
    rate: Decimal | None
    """What one unit of the offer's currency is in the base currency; None without a rate, or with one too old."""
    stale: bool
    """Its listing is too old to be believed."""
    gone: bool
    """It was removed from the listing."""
    held: bool
    """Its price waits to be confirmed (P1)."""
    health: Health
    priority: int
    """Of its supplier, higher first: a point is worth 1 % of the cost."""
    defects: float
    """0 to 1: the share of the supplier's past keys that were defective, as `defect_rate` gives it."""
    budget: Decimal | None
    """What its supplier's budgets still allow, in the base currency; None without one. Offers of one supplier share it;
    what all suppliers share is checked in the intent's transaction."""


@dataclass(frozen=True, slots=True)
class Pick:
    """One order to make."""

    candidate: Candidate
    quantity: int
    unit_cost: Money
    """What one unit costs at this quantity, in the offer's currency."""
    landed: Decimal
    """The same in the base currency."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was thought of a candidate, for people. No secret."""

    candidate: Candidate
    usable: bool
    reason: str
    reckoned: Decimal | None = None
    """What a unit was reckoned at for the whole quantity, in the base currency; None for what is not usable."""


@dataclass(frozen=True, slots=True)
class Route:
    """Which orders to make, the best first; a verdict for each candidate, in their order."""

    picks: tuple[Pick, ...]
    verdicts: tuple[Verdict, ...]
    short: int
    """Units that nobody can serve."""


def defect_rate(defective: int, received: int) -> float:
    """The share of a supplier's keys that were defective, 0 to 1: near 1 % until there are enough to tell."""
    return min(1.0, (max(0, defective) + _PRIOR_DEFECTS) / (max(0, received) + _PRIOR_KEYS))


def route(
    quantity: int,
    candidates: Sequence[Candidate],
    *,
    max_cost: Decimal | None,
    without: Collection[tuple[str, str]] = (),
) -> Route:
    """From whom to order ``quantity`` units, each for at most ``max_cost`` in the base currency (None: any price).

    ``without``: (supplier, sku) that refused just now. Never raises; the picks' quantities and ``short`` are the
    quantity. An order keeps to its offer's least and most quantity, step and stock, and all orders of a supplier to its
    budget. An offer may be ordered from several times, where it sells only so many at once. Each offer is to be named
    once.
    """
    barred = {id(one): _barred(one, without) for one in candidates}
    stage = _Stage([one for one in candidates if not barred[id(one)]], candidates, max_cost)
    first = {id(one): stage.most(one, quantity) for one in stage.candidates}
    picks = stage.fill(quantity)
    short = max(0, quantity) - sum(pick.quantity for pick in picks)
    if short and len(picks) < MOST_ORDERS:
        picks = stage.rearranged(picks, short)
        short = max(0, quantity) - sum(pick.quantity for pick in picks)
    verdicts = []
    for one in candidates:
        whole = first.get(id(one))
        if barred[id(one)]:
            verdicts.append(Verdict(one, usable=False, reason=barred[id(one)]))
        elif whole is None:
            verdicts.append(Verdict(one, usable=False, reason=_unfit(one, quantity, max_cost)))
        else:
            reason = _chosen([pick for pick in picks if pick.candidate is one]) or (
                "not needed: others are cheaper, all in all" if not short else "not needed in addition"
            )
            verdicts.append(Verdict(one, usable=True, reason=reason + _notes(one), reckoned=_reckoned(whole)))
    return Route(tuple(picks), tuple(verdicts), short)


def least(candidates: Sequence[Candidate]) -> tuple[int, Decimal] | None:
    """(fewest units that anybody sells at once, least that a unit costs in them, in the base currency).

    None when nobody sells any.
    """
    open_ = [one for one in candidates if not _barred(one, ())]
    found = [(_least(one.offer), one) for one in open_]
    prices = [
        price.amount * one.rate
        for units, one in found
        if one.rate is not None and (price := _price(one.offer, units)) is not None
    ]
    return (min(units for units, _ in found), min(prices)) if prices else None


class _Stage:
    """What is left of stocks and budgets while a route is made."""

    def __init__(
        self, candidates: Sequence[Candidate], everyone: Sequence[Candidate], max_cost: Decimal | None
    ) -> None:
        self.candidates = candidates
        self._max_cost = max_cost
        self._stock = {id(one): one.offer.stock.quantity for one in candidates}
        self._budget: dict[str, Decimal] = {}
        for one in everyone:  # an offer that is barred still knows of its supplier's budget
            if one.budget is not None:
                self._budget[one.supplier] = min(one.budget, self._budget.get(one.supplier, one.budget))

    def most(self, one: Candidate, wanted: int) -> Pick | None:
        """The largest order of at most ``wanted`` units that may be made now."""
        offer, stock = one.offer, self._stock[id(one)]
        most = min([wanted, *(limit for limit in (offer.max_quantity, stock) if limit is not None)])
        starts = sorted({1, *(least for least, _ in offer.tiers)})
        for start, end in reversed(list(zip(starts, [*starts[1:], most + 1], strict=True))):
            found = self._within(one, max(start, offer.min_quantity, 1), min(most, end - 1))
            if found is not None:
                return found
        return None

    def _within(self, one: Candidate, least: int, most: int) -> Pick | None:
        """The largest order among quantities that have one price."""
        if most < least:
            return None
        price = _price(one.offer, least)
        if price is None or one.rate is None:
            return None
        landed = price.amount * one.rate
        budget = self._budget.get(one.supplier)
        if self._max_cost is not None and landed > self._max_cost:
            return None
        if budget is not None and landed and landed * most > budget:
            most = int(max(budget, Decimal(0)) // landed)
        step = max(1, one.offer.step)
        most -= most % step
        return Pick(one, most, price, landed) if most >= least else None

    def use(self, pick: Pick, sign: int = 1) -> None:
        """Take an order from what is left; give it back with ``sign`` -1."""
        one = pick.candidate
        stock = self._stock[id(one)]
        if stock is not None:
            self._stock[id(one)] = stock - sign * pick.quantity
        if one.supplier in self._budget:
            self._budget[one.supplier] -= sign * pick.quantity * pick.landed

    def fill(self, quantity: int) -> list[Pick]:
        """The cheapest first, as much of it as may be."""
        picks: list[Pick] = []
        while quantity > 0 and len(picks) < MOST_ORDERS:
            able = [pick for one in self.candidates if (pick := self.most(one, quantity))]
            if not able:
                break
            best = min(able, key=_preference)
            self.use(best)
            picks.append(best)
            quantity -= best.quantity
        return picks

    def rearranged(self, picks: list[Pick], short: int) -> list[Pick]:
        """Another order's units go in part to an order of no fewer than may be, if that serves all; else as it was.

        10 of one and 2 that nobody sells become 7 of the one, and 5 of an offer that sells 5 or more.
        """
        for index in reversed(range(len(picks))):
            given = picks[index]
            self.use(given, -1)
            found = []
            for one in self.candidates:
                least = _least(one.offer, short)
                rest = self.most(given.candidate, given.quantity + short - least)
                if rest is None or rest.quantity != given.quantity + short - least:
                    continue
                self.use(rest)
                more = self.most(one, least)
                self.use(rest, -1)
                if more is not None and more.quantity == least:
                    found.append((rest, more))
            if found:
                rest, more = min(found, key=lambda pair: _preference(pair[1]))
                return [*picks[:index], rest, *picks[index + 1 :], more]
            self.use(given)
        return picks


def _least(offer: Offer, wanted: int = 1) -> int:
    """The smallest quantity that it is sold in, of at least ``wanted``."""
    least = max(offer.min_quantity, wanted, 1)
    return least + -least % max(1, offer.step)


def _price(offer: Offer, quantity: int) -> Money | None:
    tiers = sorted(offer.tiers, key=lambda tier: tier[0])
    return [offer.price, *(price for least, price in tiers if quantity >= least)][-1]


def _reckoned(pick: Pick) -> Decimal:
    """What one unit will have cost once it works, as offers are compared."""
    one = pick.candidate
    stock = one.offer.stock
    cost = pick.landed / (1 - Decimal(str(one.defects)))
    cost *= _UNSURE.get(stock.level or stock.kind, Decimal(1))
    if one.health == "failing":
        cost *= _FAILING
    return cost / _POINT ** max(-_MOST_PRIORITY, min(one.priority, _MOST_PRIORITY))


def _preference(pick: Pick) -> tuple[Decimal, int, int, str, str]:
    one = pick.candidate
    return (_reckoned(pick), -one.priority, -pick.quantity, one.supplier, one.offer.sku)


def _barred(one: Candidate, without: Collection[tuple[str, str]]) -> str:
    """Why it cannot serve any quantity; "" when it may."""
    offer = one.offer
    currencies = {price.currency for price in (offer.price, *(price for _, price in offer.tiers)) if price is not None}
    checks = (
        (one.health in _UNHEALTHY, _UNHEALTHY.get(one.health, "")),
        (one.gone, "it is gone from the supplier's listing"),
        (one.stale, "its listing is too old to be believed"),
        (one.held, "its price jumped, and waits to be confirmed"),
        (not offer.for_sale, "it is not for sale"),
        (offer.stock.quantity == 0 or offer.stock.level == "out", "it is out of stock"),
        (not currencies, "its price is not known"),
        (len(currencies) > 1, "its prices are in several currencies"),
        (one.rate is None, f"there is no rate for {', '.join(sorted(currencies))} that is new enough"),
        (not one.defects < 1, "all of its supplier's keys were defective"),
        ((one.supplier, offer.sku) in without, "it refused just now"),
    )
    return next((reason for bars, reason in checks if bars), "")


def _unfit(one: Candidate, quantity: int, max_cost: Decimal | None) -> str:
    """Why it cannot serve this quantity, nor a part of it."""
    offer, least = one.offer, _least(one.offer)
    if quantity < 1:
        return "nothing is wanted"
    if quantity < least:
        return f"it sells {least} or more at once"
    if offer.stock.quantity is not None and offer.stock.quantity < least:
        return f"it sells {least} or more at once, and has {offer.stock.quantity}"
    price = _price(offer, quantity)
    if price is None or one.rate is None:
        return "its price is not known"
    landed = price.amount * one.rate
    if max_cost is not None and landed > max_cost:
        return f"a unit costs {plain(landed)}, max_cost is {plain(max_cost)}"
    if one.budget is not None and landed * least > one.budget:
        left = plain(max(one.budget, Decimal(0)))
        return f"its supplier's budget allows {left} more now, and {least} cost {plain(landed * least)}"
    return (
        f"no order of it fits: {offer.min_quantity} to {offer.max_quantity or 'any number'}, in steps of {offer.step}"
    )


def _chosen(picks: Sequence[Pick]) -> str:
    if not picks:
        return ""
    return "chosen: " + " and ".join(f"{pick.quantity} at {pick.unit_cost}" for pick in picks)


def _notes(one: Candidate) -> str:
    """What made it dearer or cheaper than its price."""
    stock = one.offer.stock
    notes = [f"{one.defects:.1%} of its supplier's keys were defective"] if one.defects >= 0.02 else []  # noqa: PLR2004
    if stock.kind == "unknown":
        notes.append("its stock is not known")
    if stock.level == "low":
        notes.append("its stock is low")
    if one.health == "failing":
        notes.append("its supplier falters")
    if one.priority:
        notes.append(f"priority {one.priority}")
    return f" ({', '.join(notes)})" if notes else ""


def plain(amount: Decimal) -> str:
    """An amount for people: without an exponent, with at most six decimals."""
    text = f"{amount:.6f}"
    whole, _, rest = text.partition(".")
    rest = rest.rstrip("0")
    return f"{whole}.{rest.ljust(2, '0')}"
