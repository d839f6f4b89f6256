"""What must be true before money leaves (M4). Pure: `purchase` asks in the intent's transaction, with what it reads
there, and again before it sends an order once more.

Amounts are counted in millionths of the base currency, rounded up: a limit is never passed by rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time
from decimal import ROUND_CEILING, ROUND_DOWN, Decimal
from typing import Final

from syncd.config import Product, Settings
from syncd.model import Money

HOUR_S: Final = 3600
DAY_S: Final = 86400
_MILLION: Final = 1_000_000
_CENT: Final = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Forbidden:
    """Why nothing is bought: a word for counting, and a sentence for people. No secret."""

    code: str
    why: str


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent, or may have been, in the hour and the 24 hours before: in millionths of the base currency."""

    hour: int = 0
    day: int = 0
    all_hour: int = 0
    all_day: int = 0
    cover_day: int = 0
    """On units that were bought again, since the outcome of a purchase is not known."""


@dataclass(frozen=True, slots=True)
class Wish:
    """One order that somebody wants to make."""

    supplier: str
    product: Product
    unit: Money
    """What one unit costs, as far as is known."""
    quantity: int
    covers: bool = False
    """Whether it is in place of units of unknown outcome."""


@dataclass(frozen=True, slots=True)
class Account:
    """Our account at a supplier."""

    balance: Money | None = None
    """What it held when it was last asked."""
    since: int = 0
    """What was spent there since, in millionths of the base currency."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the guards go by, as it is in this transaction."""

    spent: Spent
    last: Money | None
    """What a unit of this offer cost when it was last bought."""
    account: Account
    disputes: int
    """Open ones about this offer."""
    free: int
    """Bytes free where the database lies."""
    fenced: bool
    """Whether this database was restored, and nobody has recovered it."""


def micro(amount: Decimal) -> int:
    """An amount of the base currency in millionths, rounded up."""
    return int((amount * _MILLION).to_integral_value(ROUND_CEILING))


def amount_of(millionths: int) -> Decimal:
    """Millionths as an amount of the base currency, with at least two decimals."""
    exact = Decimal(millionths) / _MILLION
    return exact.quantize(_CENT) if exact == exact.quantize(_CENT) else exact.normalize()


def rate_of(settings: Settings, currency: str, now: float) -> Decimal | None:
    """What one unit of a currency is in the base currency; None without a rate, or when it is too old to buy by."""
    if currency == settings.currency.base:
        return Decimal(1)
    rate, day = settings.currency.rates.get(currency), settings.currency.rates_date
    if rate is None or day is None:
        return None
    age = now - datetime.combine(day, time(), UTC).timestamp()
    return rate if age <= settings.purchases.max_rate_age else None


def ceiling(settings: Settings, wish: Wish, last: Money | None, now: float) -> Money | None:
    """The most that one unit may cost, in the currency of the offer; None without a rate to say so.

    The least of: `max_cost`, what leaves the margin, the largest jump, and the listed price with its slippage. A guard
    that the listed price itself does not keep to is not bent: the result is then below that price.
    """
    product, rate = wish.product, rate_of(settings, wish.unit.currency, now)
    if not rate:
        return None
    most = [wish.unit.amount * (1 + Decimal(str(settings.purchases.slippage)) / 100)]
    for limit in (product.max_cost, _with_margin(product)):
        if limit is not None:
            base = rate_of(settings, limit.currency, now)
            if base is None:
                return None
            most.append(limit.amount * base / rate)
    if last is not None:
        was = rate_of(settings, last.currency, now)
        if was is not None:
            most.append(last.amount * Decimal(str(product.max_jump)) * was / rate)
    exact = min(most)
    # Suppliers count in cents; only a price that itself says more has a limit that does.
    step = min(_CENT, Decimal(1).scaleb(int(wish.unit.amount.normalize().as_tuple().exponent)))
    return Money(exact.quantize(step, ROUND_DOWN), wish.unit.currency)


def _with_margin(product: Product) -> Money | None:
    if product.price is None:
        return None
    left = 1 - Decimal(str(product.min_margin)) / 100
    return Money(product.price.amount * left, product.price.currency)


def forbids(settings: Settings, wish: Wish, facts: Facts, now: float, *, counted: bool = False) -> Forbidden | None:
    """Why this order must not be made, or None. ``counted``: what it costs is in ``facts.spent`` already."""
    found = _place(settings, facts) or _price(settings, wish, facts, now)
    if found is not None:
        return found
    limit = ceiling(settings, wish, facts.last, now)
    rate = rate_of(settings, wish.unit.currency, now)
    assert limit is not None and rate is not None  # noqa: S101, PT018 - `_price` has looked
    cost = 0 if counted else micro(limit.amount * rate * wish.quantity)
    return _budgets(settings, wish, facts.spent, cost) or _account(settings, wish, facts, cost)


def _place(settings: Settings, facts: Facts) -> Forbidden | None:
    if facts.fenced:
        return Forbidden("restored", "this database was restored from a backup: run syncd recover first")
    if facts.free < settings.purchases.min_free:
        free, least = facts.free >> 20, settings.purchases.min_free >> 20
        return Forbidden("disk", f"{free} MiB are free under state_dir, purchases.min_free is {least} MiB")
    if facts.disputes >= settings.purchases.max_disputes:
        return Forbidden("disputes", f"{facts.disputes} purchases of it are disputed: settle them (syncd purchases)")
    return None


def _price(settings: Settings, wish: Wish, facts: Facts, now: float) -> Forbidden | None:
    product, unit = wish.product, wish.unit
    rate = rate_of(settings, unit.currency, now)
    if rate is None:
        return _no_rate(settings, unit.currency)
    cost = unit.amount * rate
    if product.max_cost is not None:
        most = rate_of(settings, product.max_cost.currency, now)
        if most is None:
            return _no_rate(settings, product.max_cost.currency)
        if cost > product.max_cost.amount * most:
            return Forbidden("max_cost", f"a unit costs {unit}, max_cost is {product.max_cost}")
    margin = _with_margin(product)
    if margin is not None:
        sold = rate_of(settings, margin.currency, now)
        if sold is None:
            return _no_rate(settings, margin.currency)
        if cost > margin.amount * sold:
            why = f"a unit costs {unit}, and is sold at {product.price} with min_margin {product.min_margin:g} %"
            return Forbidden("margin", why)
    last = facts.last
    if last is not None:
        was = rate_of(settings, last.currency, now)
        if was is None:
            return _no_rate(settings, last.currency)
        if cost > last.amount * was * Decimal(str(product.max_jump)):
            why = f"a unit costs {unit}, it was last bought at {last}, and max_jump is {product.max_jump:g}"
            return Forbidden("jump", why)
    return None


def _no_rate(settings: Settings, currency: str) -> Forbidden:
    if currency in settings.currency.rates:
        return Forbidden("rate", f"the rate of {currency} is of {settings.currency.rates_date}: too old to buy by")
    return Forbidden("rate", f"there is no rate for {currency}")


def _budgets(settings: Settings, wish: Wish, spent: Spent, cost: int) -> Forbidden | None:
    for name, budget, used in _all_budgets(settings, wish.supplier, spent, covers=wish.covers):
        if used + cost > budget:
            base, left = settings.currency.base, max(0, budget - used)
            why = f"{name} allows {amount_of(left)} {base} more now, this may cost {amount_of(cost)} {base}"
            return Forbidden("budget", why)
    return None


def _all_budgets(settings: Settings, supplier: str, spent: Spent, *, covers: bool) -> list[tuple[str, int, int]]:
    """(the budget's name, what it allows, what is used of it), in millionths of the base currency."""
    own, everybody = settings.suppliers.get(supplier), settings.purchases
    found = [
        (f"suppliers.{supplier}.budget_hour", own.budget_hour if own else None, spent.hour),
        (f"suppliers.{supplier}.budget_day", own.budget_day if own else None, spent.day),
        ("purchases.budget_hour", everybody.budget_hour, spent.all_hour),
        ("purchases.budget_day", everybody.budget_day, spent.all_day),
        ("purchases.cover_budget_day", everybody.cover_budget_day if covers else None, spent.cover_day),
    ]
    budgets = []
    for name, amount, used in found:
        landed = settings.currency.landed(amount)
        if landed is not None:
            budgets.append((name, int(landed * _MILLION), used))
    return budgets


def room(settings: Settings, supplier: str, spent: Spent, account: Account) -> Decimal | None:
    """What budgets and our account still allow a supplier to be paid, in the base currency; None without a limit."""
    found = [budget - used for _, budget, used in _all_budgets(settings, supplier, spent, covers=False)]
    own = settings.suppliers.get(supplier)
    if own is not None and own.min_balance is not None:
        floor, held = settings.currency.landed(own.min_balance), settings.currency.landed(account.balance)
        if floor is not None and held is not None:
            found.append(micro(held) - account.since - micro(floor))
    return None if not found else Decimal(max(0, min(found))) / _MILLION


def _account(settings: Settings, wish: Wish, facts: Facts, cost: int) -> Forbidden | None:
    """Our account at the supplier keeps its floor, where one is set."""
    own = settings.suppliers.get(wish.supplier)
    if own is None or own.min_balance is None:
        return None
    floor, held = settings.currency.landed(own.min_balance), settings.currency.landed(facts.account.balance)
    if floor is None or held is None:
        return Forbidden("balance", f"what our account at {wish.supplier} holds is not known")
    if micro(held) - facts.account.since - cost < micro(floor):
        now = amount_of(micro(held) - facts.account.since)
        why = f"our account at {wish.supplier} holds {now} {settings.currency.base}, min_balance is {own.min_balance}"
        return Forbidden("balance", why)
    return None
