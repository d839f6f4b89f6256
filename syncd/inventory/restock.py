"""Keeps products in stock: records what was asked for, plans what to hold (`replenish`), has it bought (`purchase`).

Called by the clock each minute, by deliveries when a key is sold or an order refused, and by the operator. Any daemon
plans, and tops up what it sells; one at a time records demand and buys for all, under a lease (K13). Nothing here is in
a delivery's way: a sale sets a timer, no more.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from typing import Any, Final

import structlog
from sqlalchemy import Connection

from syncd.config import Product, Settings
from syncd.errors import LeaseLostError, NotFoundError
from syncd.inventory import ledger, replenish, routing
from syncd.inventory.purchase import Outcome, Purchases
from syncd.inventory.replenish import HOUR_S, LATELY_S, REMEMBERED_H, History, Plan, Season, Situation
from syncd.inventory.routing import Pick, Verdict
from syncd.model import NEVER, id_at, utc
from syncd.store.database import Lane, Tx, Work, Writer
from syncd.store.leases import TAKE, Job
from syncd.suppliers.link import Link

log = structlog.get_logger(__name__)

EVERY_S: Final = 60
"""How often `tick` is to be called."""
_JOB: Final = "replenish"
_LEASE_S: Final = 3.0 * EVERY_S
_WATERMARK: Final = "demand_recorded_to"
_SETTLED_S: Final = 15.0
"""Ids are drawn before their commit: what is younger than this may still lack some of its neighbours."""
_ROWS: Final = 2000
_WEEK_S: Final = 7 * 86400
_DEBOUNCE_S: Final = 0.2
_AT_ONCE: Final = 4
_MOST_REFUSED: Final = 100_000
_LEADS: Final = 50
_LEAST_LEAD_S: Final = 30.0
_USUAL_LEAD_S: Final = 120.0
"""Until there was a purchase."""
_LIVES: Final = 20

Asked = tuple[str, int, int, int]
"""(product, hour, units of an order, whether it was refused: 0 or 1)."""


@dataclass(slots=True)
class _Known:
    """What is remembered of a product between two plans."""

    units: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    usual: Season | None = None
    lead_s: float = _USUAL_LEAD_S
    life_s: float | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """A product's plan, and what it was made from."""

    product: str
    mode: str
    plan: Plan
    at: Situation
    now: float

    def shown(self) -> dict[str, Any]:
        """For people and programs."""
        plan, at = self.plan, self.at
        return {
            "product": self.product,
            "mode": self.mode,
            "per_day": round(plan.per_day, 1),
            "target": plan.target,
            "held": at.held,
            "on_order": at.on_order,
            "owed": at.owed,
            "would_buy": plan.buy,
            "horizon_s": round(plan.horizon_s),
            "lead_s": round(at.lead_s),
            "expected": round(plan.expected, 2),
            "why": list(plan.why),
        }


class Restock:
    """Plans and buys. ``settings`` are the configuration as it is now."""

    def __init__(
        self, writer: Writer, settings: Callable[[], Settings], purchases: Purchases, links: Mapping[str, Link]
    ) -> None:
        self._writer = writer
        self._database = writer.database
        self._clock = writer.database.clock
        self._settings = settings
        self._purchases = purchases
        self._links = links
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._known: dict[str, _Known] = {}
        self.plans: Mapping[str, Planned] = {}
        """Product → its last plan, of those that are cached."""
        self._refused: set[tuple[str, tuple[str, str]]] = set()
        self._missed: list[Asked] = []
        self._refused_hour = 0
        self._sold: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._resting: set[str] = set()
        """Products that nobody would sell: tried again at the next tick, or listing."""
        self._buying: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        """Products that were found lacking while they were being bought."""
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._record: Work[tuple[Job, int], int] = Work("demand", Lane.INGEST, self._run_record)
        self._miss: Work[Sequence[Asked], None] = Work("demand_missed", Lane.INGEST, self._run_miss)

    # --- told by deliveries (on the event loop; returns at once) ----------------------------------------------------

    def sold(self, product: str) -> None:
        """Keys of a product went out: what is then below its target is topped up a moment later."""
        if product not in self.plans or self._stopping:
            return
        self._sold.add(product)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_DEBOUNCE_S, self._look)

    def listed(self) -> None:
        """A supplier's listing was taken: what nobody would sell before it is looked at again."""
        self._resting.clear()
        if not self._stopping:
            self._spawn(self._restore(self.plans))

    def refused(self, product: str, quantity: int, key: tuple[str, str]) -> None:
        """An order (its shop and its reference: ``key``) found too few keys and was sent away: a sale that was lost.

        Counted once an hour: shops try again.
        """
        hour = int(self._clock.now()) // HOUR_S
        if hour != self._refused_hour:
            self._refused.clear()
            self._refused_hour = hour
        if (product, key) in self._refused or len(self._refused) >= _MOST_REFUSED:
            return
        if product in self._settings().products:
            self._refused.add((product, key))
            self._missed.append((product, hour, quantity, 1))

    # --- the clock --------------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Record demand, plan, and have bought what lacks. Purchases go on by themselves when this is over."""
        missed, self._missed = self._missed, []
        if missed:
            await self._writer.submit(self._miss, missed)
        job = await self._writer.submit(TAKE, (_JOB, self._holder, _LEASE_S))
        if job is not None:
            await self._record_all(job)
        await self.plan()
        self._resting.clear()
        if job is not None:
            self._top_up(sku for sku, one in self.plans.items() if one.plan.buy)

    async def plan(self) -> Mapping[str, Planned]:
        """Plan every product that is cached, by what is known now."""
        self.plans = await asyncio.to_thread(self._plan_all)
        return self.plans

    async def run(self) -> dict[str, Outcome]:
        """Plan and buy now, and wait for what comes of it. Product → outcome, of those that lack something."""
        plans = await self.plan()
        lacking = [one for one in plans.values() if one.plan.buy]
        outcomes = await asyncio.gather(*(self._bought(one.product, one.plan.level) for one in lacking))
        return {one.product: outcome for one, outcome in zip(lacking, outcomes, strict=True)}

    async def stop(self) -> None:
        """Begin nothing more. Purchases under way are `Purchases`' own to end."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        missed, self._missed = self._missed, []
        if missed:
            await self._writer.submit(self._miss, missed)

    def _look(self) -> None:
        self._timer = None
        sold, self._sold = self._sold, set()
        self._spawn(self._restore(sold - self._resting))

    async def _restore(self, products: Iterable[str]) -> None:
        """Top up those of these products that are below their targets now."""
        plans = [self.plans[sku] for sku in products if sku in self.plans]
        lacking = await asyncio.to_thread(self._lacking, plans)
        self._top_up(lacking)

    def _lacking(self, plans: Sequence[Planned]) -> list[str]:
        settings, now = self._settings(), int(self._clock.now())
        with self._database.read() as connection:
            ask = ledger.asking(self._database, connection)
            return [
                one.product
                for one in plans
                if (product := settings.products.get(one.product)) is not None
                and ledger.missing(ask, settings, product, one.plan.target, now) > 0
            ]

    def _top_up(self, products: Iterable[str]) -> None:
        """Begin to buy, each product by itself; for one that is being bought, once more at its end."""
        for sku in products:
            if sku in self._buying:
                self._again.add(sku)
            elif not self._stopping:
                task = self._buying[sku] = self._spawn(self._buy(sku))
                task.add_done_callback(partial(self._bought_up, sku))

    def _bought_up(self, sku: str, _task: asyncio.Task[None]) -> None:
        del self._buying[sku]

    async def _buy(self, sku: str) -> None:
        while (planned := self.plans.get(sku)) is not None:
            self._again.discard(sku)
            got = await self._bought(sku, planned.plan.level)
            if got.refused and not got.references:
                self._resting.add(sku)
            if sku not in self._again or sku in self._resting:
                return

    async def _bought(self, sku: str, level: int) -> Outcome:
        async with self._slots:
            try:
                got = await self._purchases.top_up(sku, level, asked_by="replenish")
            except NotFoundError:
                return Outcome()  # taken out of the configuration just now
        if got.references:
            log.info("replenished", product=sku, level=level, bought=got.bought, on_order=got.on_order)
        return got

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("replenishing_failed", why=getattr(error, "message", type(error).__name__))

    # --- demand -----------------------------------------------------------------------------------------------------

    async def _record_all(self, job: Job) -> None:
        """Record the deliveries that are new since last time, a chunk at a time."""
        upto = id_at(self._clock.now() - _SETTLED_S)
        try:
            while await self._writer.submit(self._record, (job, upto)) == _ROWS and not self._stopping:
                pass
        except LeaseLostError:
            log.info("replenishing_taken_over")

    def _run_record(self, tx: Tx, payloads: Sequence[tuple[Job, int]]) -> list[int | BaseException]:
        return [self._record_one(tx, *payload) for payload in payloads]

    def _record_one(self, tx: Tx, job: Job, upto: int) -> int | BaseException:
        """A chunk of deliveries, by their ids; of their products, what is too old is forgotten."""
        try:
            job.check(tx)
        except LeaseLostError as error:
            return error
        oldest = tx.at // HOUR_S - REMEMBERED_H
        known = tx.query("SELECT value FROM meta WHERE name = ?", (_WATERMARK,))
        after = max(int(known[0][0]) if known else 0, id_at(oldest * HOUR_S))
        if after >= upto:
            return 0
        rows = tx.query(
            "SELECT id, product, quantity, created_at FROM delivery WHERE id > ? AND id <= ? ORDER BY id LIMIT ?",
            (after, upto, _ROWS),
        )
        _add(tx, [(product, int(at) // HOUR_S, int(quantity), 0) for _, product, quantity, at in rows])
        tx.execute(
            "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (_WATERMARK, str(rows[-1][0] if rows else after)),
        )
        products = sorted({(row[1],) for row in rows})
        tx.bulk(_FORGET_HOURS, "product text", products, (oldest,))
        tx.bulk(_FORGET_SIZES, "product text", products, (oldest * HOUR_S // _WEEK_S,))
        return len(rows)

    def _run_miss(self, tx: Tx, payloads: Sequence[Sequence[Asked]]) -> list[None]:
        _add(tx, [asked for payload in payloads for asked in payload])
        return [None] * len(payloads)

    # --- planning (blocks) ------------------------------------------------------------------------------------------

    def _plan_all(self) -> dict[str, Planned]:
        settings = self._settings()
        cached = {sku: product for sku, product in settings.products.items() if product.cache.mode != "none"}
        return self._planned(cached)

    def planned(self, product: str) -> Planned:
        """The plan of one product, as it would be now. Raises NotFoundError."""
        found = self._settings().products.get(product)
        if found is None:
            raise NotFoundError("there is no such product", hint="add [products.SKU] to the configuration")
        return self._planned({product: found})[product]

    def _planned(self, products: Mapping[str, Product]) -> dict[str, Planned]:
        now = self._clock.now()
        for sku in self._known.keys() - self._settings().products.keys():
            self._known.pop(sku, None)
        with self._database.read() as connection:
            lately = self._read_demand(connection, products, now)
            on_order = self._purchases.on_order(connection)
            situations = {
                sku: self._situation(connection, product, now, on_order.get(sku, 0))
                for sku, product in products.items()
            }
        found = {}
        for sku, product in products.items():
            known, at = self._known[sku], situations[sku]
            history = History(known.units, known.sizes or {1: 1}, lately.get(sku, 0))
            if known.usual is None or known.usual.hour != int(now) // HOUR_S:
                known.usual = replenish.season(history, now)
            plan = replenish.plan(product.cache, history, known.usual, now, at)
            if plan.buy or product.cache.budget is not None:
                at = self._priced(product, at)
                plan = replenish.plan(product.cache, history, known.usual, now, at)
            found[sku] = Planned(sku, product.cache.mode, plan, at, now)
        return found

    def _read_demand(self, connection: Connection, products: Mapping[str, Product], now: float) -> dict[str, int]:
        """Bring what is remembered of these products up to date; (product → units asked for lately)."""
        hour = int(now) // HOUR_S
        learning, going_on = list[tuple[str, int]](), list[tuple[str, int]]()
        for sku in products:
            before = self._known.get(sku, _Known())
            if before.usual is not None and before.usual.hour == hour:
                going_on.append((sku, hour - 1))
            else:
                self._known[sku] = _Known(lead_s=before.lead_s, life_s=before.life_s)
                learning.append((sku, hour - REMEMBERED_H))
        for sku, at, units in self._gathered(connection, _HOURS, learning + going_on):
            self._known[sku].units[at] = units
        weeks = [(sku, first * HOUR_S // _WEEK_S) for sku, first in learning]
        for sku, size, orders in self._gathered(connection, _SIZES, weeks):
            self._known[sku].sizes[size] = orders
        rows = connection.exec_driver_sql(
            self._database.marked("SELECT product, sum(quantity) FROM delivery WHERE id >= ? GROUP BY product"),
            (id_at(now - LATELY_S),),
        )
        return {row[0]: int(row[1]) for row in rows}

    def _gathered(
        self, connection: Connection, sql: str, since: Sequence[tuple[str, int]]
    ) -> Iterator[tuple[str, int, int]]:
        size = self._database.bulk_rows
        for start in range(0, len(since), size):
            part = since[start : start + size]
            statement, bound = self._database.bulk_statement(sql, "product text, first int", part)
            for product, key, number in connection.exec_driver_sql(statement, tuple(bound)):
                yield product, int(key), int(number)

    def _situation(self, connection: Connection, product: Product, now: float, on_order: int) -> Situation:
        ask, settings, known = ledger.asking(self._database, connection), self._settings(), self._known[product.sku]
        floor = int(now + product.min_life)
        ((owed,),) = ask(_OWED, (product.sku,))
        ((held,),) = ask(_HELD, (product.sku, floor, product.cache.most + int(owed or 0) + 1))
        if known.usual is None:
            leads = [max(0, row[0]) for row in ask(_LEAD, (product.sku, _LEADS))]
            if leads:
                known.lead_s = max(_LEAST_LEAD_S, float(sorted(leads)[int(0.9 * (len(leads) - 1))]))
        ends = [int(row[0]) for row in ask(_LIFE, (product.sku, floor, _LIVES))]
        if ends:
            end = statistics.median_low(ends)
            known.life_s = None if end >= NEVER else end - now - product.min_life
        intervals = [settings.interval(one.supplier)[0] for one in product.offers if one.supplier in settings.suppliers]
        return Situation(
            held=int(held),
            on_order=on_order,
            owed=int(owed or 0),
            lead_s=known.lead_s,
            sync_s=min(intervals, default=settings.sync.interval),
            life_s=known.life_s,
        )

    def _priced(self, product: Product, at: Situation) -> Situation:
        """With what the market says of it."""
        found = routing.least(self._purchases.candidates(product.sku))
        if found is None:
            return at
        budget = self._settings().currency.landed(product.cache.budget)
        return replace(at, lot=found[0], unit_cost=found[1], most_money=budget)

    # --- explaining (blocks) ----------------------------------------------------------------------------------------

    def explain(self, product: str, quantity: int | None = None) -> dict[str, Any]:
        """The whole decision for a product, for people: what lacks, and what each offer's part would be in it.

        ``quantity``: as if so many were wanted; by default what lacks now, or 1. Raises NotFoundError.
        """
        planned = self.planned(product)
        settings = self._settings()
        configured = settings.products[product]
        wanted = quantity or planned.plan.buy or 1
        max_cost = settings.currency.landed(configured.max_cost)
        found = routing.route(wanted, self._purchases.candidates(product), max_cost=max_cost)
        return {
            **planned.shown(),
            "quantity": wanted,
            "short": found.short,
            "currency": settings.currency.base,
            "max_cost": _told(max_cost),
            "on_shortage": configured.on_shortage,
            "offers": [
                self._explained(product, verdict, [pick for pick in found.picks if pick.candidate is verdict.candidate])
                for verdict in found.verdicts
            ],
        }

    def _explained(self, product: str, verdict: Verdict, picks: Sequence[Pick]) -> dict[str, Any]:
        """One offer's part in a decision. ``objection``: why the guards would not let it be ordered."""
        one = verdict.candidate
        price, stock = one.offer.price, one.offer.stock
        link = self._links.get(one.supplier)
        state = None if link is None or link.health is None else link.health.state
        ill = state if one.health in {"down", "failing", "stopped"} else None
        return {
            "supplier": one.supplier,
            "sku": one.offer.sku,
            "quantity": sum(pick.quantity for pick in picks),
            "usable": verdict.usable,
            "reason": verdict.reason,
            "objection": self._purchases.objection(product, picks[0]) if picks else "",
            "price": None if price is None else str(price),
            "cost": None if price is None or one.rate is None else _told(price.amount * one.rate),
            "reckoned": _told(verdict.reckoned),
            "stock": stock.quantity if stock.quantity is not None else stock.level or stock.kind,
            "stale": one.stale,
            "health": one.health,
            "since": utc(ill.since) if ill is not None and ill.since else None,
            "why": "" if ill is None else ill.why,
            "defects": round(one.defects, 4),
            "priority": one.priority,
            "budget": _told(one.budget),
        }


_HOURS: Final = (
    "SELECT d.product, d.hour, d.ordered + d.missed FROM rows JOIN demand d"
    " ON d.product = rows.product AND d.hour >= rows.first"
)
_SIZES: Final = (
    "SELECT d.product, d.quantity, sum(d.orders) FROM rows JOIN demand_size d"
    " ON d.product = rows.product AND d.week >= rows.first GROUP BY d.product, d.quantity"
)
# By the primary key: of the whole table it would take too long.
_FORGET_HOURS: Final = "DELETE FROM demand WHERE product IN (SELECT product FROM rows) AND hour < ?"
_FORGET_SIZES: Final = "DELETE FROM demand_size WHERE product IN (SELECT product FROM rows) AND week < ?"
_OWED: Final = (
    "SELECT sum(quantity - (SELECT count(*) FROM allotment WHERE delivery_id = delivery.id"
    " AND withdrawn_at IS NULL)) FROM delivery WHERE state = 'pending' AND product = ?"
)
_HELD: Final = (
    "SELECT count(*) FROM (SELECT 1 FROM vault_key WHERE state = 'available' AND product = ? AND expires_at > ?"
    " LIMIT ?) k"
)
_LEAD: Final = (
    "SELECT closed_at - sent_at FROM purchase WHERE product = ? AND state = 'fulfilled' AND sent_at IS NOT NULL"
    " ORDER BY created_at DESC LIMIT ?"
)
_LIFE: Final = (
    "SELECT expires_at FROM vault_key WHERE state = 'available' AND product = ? AND expires_at > ?"
    " ORDER BY expires_at DESC LIMIT ?"
)


def _add(tx: Tx, asked: Iterable[Asked]) -> None:
    """Add orders to what is recorded of their hours and weeks."""
    ordered: Counter[tuple[str, int]] = Counter()
    missed: Counter[tuple[str, int]] = Counter()
    sizes: Counter[tuple[str, int, int]] = Counter()
    for product, hour, quantity, was_refused in asked:
        (missed if was_refused else ordered)[product, hour] += quantity
        sizes[product, hour * HOUR_S // _WEEK_S, quantity] += 1
    if not sizes:
        return
    tx.bulk(
        "INSERT INTO demand (product, hour, ordered, missed) SELECT product, hour, ordered, missed FROM rows WHERE true"
        " ON CONFLICT (product, hour) DO UPDATE SET ordered = demand.ordered + excluded.ordered,"
        " missed = demand.missed + excluded.missed",
        "product text, hour int, ordered int, missed int",
        [(*key, ordered[key], missed[key]) for key in sorted(ordered.keys() | missed.keys())],
    )
    tx.bulk(
        "INSERT INTO demand_size (product, week, quantity, orders) SELECT product, week, quantity, orders FROM rows"
        " WHERE true ON CONFLICT (product, week, quantity) DO UPDATE SET orders = demand_size.orders + excluded.orders",
        "product text, week int, quantity int, orders int",
        [(*key, orders) for key, orders in sorted(sizes.items())],
    )


def _told(amount: Decimal | None) -> str | None:
    return None if amount is None else routing.plain(amount)
