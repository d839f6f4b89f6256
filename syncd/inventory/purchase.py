"""Buying keys from suppliers that sell by order, so that nothing is ever paid twice (M1, M4, P3). Called by orders (for
what is owed), by replenish (for what will be), by the operator, and by the clock.

An order of ours is an intent, committed after the guards let it pass and before a byte is sent; then it is *sent*; then
its keys, its end and the audit are one transaction. Whatever cuts this short leaves a row that says how far it was, and
`reconcile` decides what to do with it. What is needed is never remembered: it is reckoned anew from the tables.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import socket
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

import msgspec
import structlog
from sqlalchemy import Connection

from syncd.adapter import (
    Adapter,
    AdapterError,
    Auth,
    Config,
    Forged,
    Hint,
    NotSent,
    Offer,
    Order,
    OrderRequest,
    RateLimited,
    Refused,
    Webhook,
)
from syncd.config import DEFAULT_TIMEZONE, Product, Settings
from syncd.errors import InvalidRequestError, LeaseLostError, NotFoundError, SyncdError, UnavailableError
from syncd.inventory import guards, ledger, reconcile
from syncd.inventory.catalogue import Catalogue
from syncd.inventory.formats import Format
from syncd.inventory.guards import Forbidden, Wish
from syncd.inventory.ledger import COVER, Came, Intent, Ledger, Needed, Purchase, Send, Told, Written, held_by
from syncd.inventory.listing import offer_of, row_of
from syncd.inventory.receipt import LATE, by_hand, judge, set_aside
from syncd.inventory.reconcile import Able, Standing, Step
from syncd.inventory.routing import Candidate, Health, Pick, defect_rate, route
from syncd.metrics import Metrics
from syncd.model import Money, PurchaseState
from syncd.suppliers.link import Link
from syncd.vault.vault import Origin, Vault, restored_at

log = structlog.get_logger(__name__)

T = TypeVar("T")

_ROUNDS: Final = 20
"""How often one call routes anew: each time, somebody has refused, or the need has changed."""
_REFERENCE: Final = 16
"""Letters of a reference, where the supplier takes so many: they are drawn, and never collide."""
_AT_ONCE: Final = 50
_RENEW_S: Final = 15.0
_COVER_S: Final = 5.0
_LONGEST_COVER_S: Final = 60.0
_KNOWN_S: Final = 1.0
"""For how long `can_buy` believes what it has found."""
_DEFECTS_S: Final = 60.0
"""For how long the suppliers' defects are believed as counted: each count looks at the last 10,000 deliveries."""
_EMPTY_POLLS: Final = 3
"""How often an order that is said to be complete is asked for the keys that it does not have."""
_NOBODY_S: Final = 300.0
"""How soon to look again at a purchase whose supplier or product is not configured."""
_REGAIN_S: Final = 180
_WEBHOOKS: Final = 20
"""Webhooks of one supplier that are looked at in a second."""
_AWAY_S: Final = (1.0, 5.0, 20.0, 60.0, 0.0)
"""Pauses between tries to write what came while the database is away, on top of the writer's own."""
_STOP_S: Final = 10.0
"""Twice this is less than a service manager waits: a purchase that is cut off is one whose outcome is unknown."""
_SURE: Final = (Refused, NotSent, Auth, RateLimited, Config)
"""What says, of an order that is sent for the first time, that nothing was bought."""
_CHARGED: Final = frozenset({PurchaseState.FULFILLED, PurchaseState.REFUNDED, PurchaseState.DISPUTED})
_PAID: Final = "paid"
"""How an adapter's message begins when an order was charged, and its keys cannot be asked for."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of wanting to buy."""

    bought: int = 0
    """Units that are in the vault now."""
    on_order: int = 0
    """Units that were ordered by this call and are outstanding, unknown ones among them."""
    refused: tuple[tuple[str, str, str], ...] = ()
    """(supplier, its sku, why): who said no, or what forbade to ask. No secret."""
    references: tuple[str, ...] = ()
    """Those of every purchase that this call began."""


@dataclass(slots=True)
class _Errand:
    """One call's purchase of one product, while it goes on."""

    product: Product
    level: int | None
    left: int
    """Units still wanted, where they were asked for outright."""
    asked_by: str
    without: set[tuple[str, str]]
    refused: list[tuple[str, str, str]]

    def bar(self, supplier: str, sku: str, why: str) -> None:
        """This offer is not tried again by this call."""
        self.without.add((supplier, sku))
        self.refused.append((supplier, sku, why))


def drawn(length: int, alphabet: str) -> str:
    """A new reference of ours: random letters, so that no restored or copied database ever draws one again."""
    return "".join(secrets.choice(alphabet) for _ in range(length))


class Purchases:
    """Buys, follows up what was bought, and knows what is outstanding."""

    def __init__(
        self,
        vault: Vault,
        links: Mapping[str, Link],
        settings: Callable[[], Settings],
        formats: Callable[[], Mapping[str, Format]],
        metrics: Metrics,
        arrived: Callable[[str], None],
        *,
        defects: Callable[[Connection], Mapping[str, tuple[int, int]]] = lambda _: {},
    ) -> None:
        """``links`` are those to the enabled suppliers, by name; ``arrived`` is told each product that got keys.

        ``defects``: supplier → (keys that were defective, keys that were delivered).
        """
        self.draw: Callable[[int, str], str] = drawn
        """Makes references: so many letters of an alphabet."""
        self._vault = vault
        self._writer = vault.writer
        self._database = vault.database
        self._clock = vault.database.clock
        self._catalogue = Catalogue(vault.database, settings)
        self._links = links
        self._settings = settings
        self._formats = formats
        self._metrics = metrics
        self._arrived = arrived
        self._defects = defects
        self._counted: tuple[float, Mapping[str, tuple[int, int]]] | None = None
        """(monotonic time, what ``defects`` gave then)."""
        self._ledger = Ledger(vault, settings)
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._locks: dict[str, asyncio.Lock] = {}
        self._active: set[int] = set()
        """Purchases that this daemon works on: their leases are renewed."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watched: dict[int, float] = {}
        """Unknown purchase → the monotonic time since when this daemon knows of it: a clock that jumps ages nothing."""
        self._covering: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._rest: dict[str, tuple[float, float]] = {}
        """Product that nobody would sell → (the monotonic time until which it is not tried, seconds between tries)."""
        self._known: dict[tuple[str, int], tuple[float, bool]] = {}
        self._told: dict[tuple[str, str, str], str] = {}
        self._heard: dict[str, deque[float]] = {}
        self._renewed_at = self._covered_at = self._clock.monotonic()
        self._stopping = False

    # --- buying -----------------------------------------------------------------------------------------------------

    async def top_up(self, product: str, level: int, *, asked_by: str) -> Outcome:
        """Buy until what is available and on order reaches ``level`` units beyond what orders that wait are owed.

        The need is computed again in each intent's transaction: two calls, or two daemons, never buy one need twice.
        Goes on with others after a refusal, never after an unknown outcome. Raises NotFoundError for a product that is
        not configured.
        """
        return await self._run(_Errand(self._product(product), level, 0, asked_by, set(), []))

    async def buy(self, product: str, quantity: int, *, asked_by: str) -> Outcome:
        """Buy so many, whatever is there. Raises NotFoundError, InvalidRequestError (fewer than one)."""
        if quantity < 1:
            raise InvalidRequestError("a quantity is 1 or more")
        return await self._run(_Errand(self._product(product), None, quantity, asked_by, set(), []))

    def _product(self, sku: str) -> Product:
        found = self._settings().products.get(sku)
        if found is None:
            raise NotFoundError("there is no such product", hint="add [products.SKU] to the configuration")
        return found

    async def _run(self, errand: _Errand) -> Outcome:
        ended: list[Purchase] = []
        for _ in range(_ROUNDS):
            if self._stopping:
                break
            async with self._locks.setdefault(errand.product.sku, asyncio.Lock()):
                begun = await self._begin(errand)
            if not begun:
                break
            # A purchase goes on when whoever wanted it is gone: a request that is cut off loses no key.
            tasks = [self._spawn(self._place(one, pick, errand.product)) for one, pick in begun]
            await asyncio.shield(asyncio.gather(*tasks, return_exceptions=True))
            for one in [task.result() for task in tasks]:
                ended.append(one)
                if one.state in {PurchaseState.REFUSED, PurchaseState.REFUNDED, PurchaseState.DISPUTED}:
                    errand.bar(one.supplier, one.sku, one.reason)
                if one.state not in {PurchaseState.REFUSED, PurchaseState.REFUNDED}:
                    errand.left -= one.quantity
        open_ones = [one for one in ended if one.closed_at is None and one.state != PurchaseState.DISPUTED]
        return Outcome(
            sum(one.received for one in ended),
            sum(one.quantity - one.received for one in open_ones),
            tuple(errand.refused),
            tuple(one.reference for one in ended),
        )

    async def _begin(self, errand: _Errand) -> list[tuple[Purchase, Pick]]:
        """Commit the intents of one route; none when nothing is needed, or nobody may be asked."""
        for _ in range(_ROUNDS):
            wanted = await asyncio.to_thread(self._missing, errand)
            if wanted < 1:
                return []
            candidates = await self._valued(await asyncio.to_thread(self.candidates, errand.product.sku))
            max_cost = self._settings().currency.landed(errand.product.max_cost)
            found = route(wanted, candidates, max_cost=max_cost, without=errand.without)
            if not found.picks:
                known = {(supplier, sku) for supplier, sku, _ in errand.refused}
                errand.refused += [
                    (one.candidate.supplier, one.candidate.offer.sku, one.reason)
                    for one in found.verdicts
                    if not one.usable and (one.candidate.supplier, one.candidate.offer.sku) not in known
                ]
                return []
            begun = await self._intend(errand, found.picks, wanted)
            if begun:
                return begun
        return []

    async def _intend(self, errand: _Errand, picks: Sequence[Pick], wanted: int) -> list[tuple[Purchase, Pick]]:
        begun: list[tuple[Purchase, Pick]] = []
        for pick in picks:
            supplier, offer = pick.candidate.supplier, pick.candidate.offer
            link = self._links.get(supplier)
            if link is None:
                errand.bar(supplier, offer.sku, "its supplier is not configured, or not enabled")
                continue
            covers = errand.asked_by == COVER
            intent = Intent(
                id=self._vault.ids.next(),
                reference=self._reference(link.adapter),
                wish=Wish(supplier, errand.product, pick.unit_cost, pick.quantity, covers=covers),
                sku=offer.sku,
                listed=ledger.offer_as_json(row_of(offer)),
                asked_by=errand.asked_by,
                holder=self._holder,
                level=errand.level,
                least=min(wanted, pick.quantity),
            )
            try:
                made = await self._writer.submit(self._ledger.intend, intent)
            except SyncdError:
                if not begun:
                    raise
                break  # what was begun goes on
            if isinstance(made, Purchase):
                begun.append((made, pick))
                wanted -= pick.quantity
                self._told.pop((errand.product.sku, supplier, offer.sku), None)
                continue
            if isinstance(made, Needed):
                break
            errand.bar(supplier, offer.sku, made.why)
            self._forbidden(errand.product.sku, supplier, offer.sku, made)
        return begun

    def _reference(self, adapter: Adapter) -> str:
        promises = adapter.promises
        return self.draw(min(_REFERENCE, promises.reference_length), promises.reference_alphabet)

    def _forbidden(self, product: str, supplier: str, sku: str, found: Forbidden) -> None:
        """Say once why an offer is not bought, until that changes."""
        self._metrics.purchase_forbidden(supplier, found.code)
        if self._told.get((product, supplier, sku)) != found.code:
            self._told[product, supplier, sku] = found.code
            log.warning("purchase_forbidden", product=product, supplier=supplier, sku=sku, why=found.why)

    def _missing(self, errand: _Errand) -> int:
        if errand.level is None:
            return errand.left
        now = int(self._clock.now())
        with self._database.read() as connection:
            return ledger.missing(
                ledger.asking(self._database, connection),
                self._settings(),
                errand.product,
                errand.level,
                now,
                covers=errand.asked_by == COVER,
            )

    # --- one order --------------------------------------------------------------------------------------------------

    async def _place(self, one: Purchase, pick: Pick, product: Product) -> Purchase:
        """Send an intended order, once, and record what came of it."""
        self._active.add(one.id)
        try:
            link = self._links.get(one.supplier)
            if link is None:
                return await self._tell(one, PurchaseState.REFUSED, "never sent: its supplier is not configured")
            sent = await self._writer.submit(self._ledger.send, Send(held_by(one)))
            assert isinstance(sent, Purchase)  # noqa: S101 - the guards are asked in the intent
            return await self._order(sent, pick.candidate.offer, link, product, again=False)
        finally:
            self._active.discard(one.id)

    async def _order(self, one: Purchase, offer: Offer, link: Link, product: Product, *, again: bool) -> Purchase:
        hooks = self._settings().purchases.hooks_url if "parse_webhook" in link.capabilities else ""
        request = OrderRequest(
            one.reference,
            offer,
            one.quantity,
            max_unit_cost=one.money("unit_limit"),
            callback_url=f"{hooks}/v1/hooks/{one.supplier}" if hooks else "",
            again=again,
        )
        able = Able(link.capabilities, link.adapter.promises)
        try:
            order: Order = await link.acall("place_order", request)
            _bears(order, one.reference)
        except AdapterError as error:
            # Sent again, only a supplier that looks a reference up can tell that nothing was bought the first time.
            sure = (Refused,) if able.promises.same_reference_same_order else ()
            if isinstance(error, sure if again else _SURE):
                return await self._tell(one, PurchaseState.REFUSED, str(error))
            if error.message.startswith(_PAID):
                return await self._tell(one, PurchaseState.DISPUTED, str(error))
            return await self._doubt(one, able, str(error))
        except Exception as error:
            log.exception("purchase_failed", reference=one.reference, supplier=one.supplier)
            return await self._doubt(one, able, f"it failed here: {type(error).__name__}")
        try:
            return await self._came(one, order, link, product)
        except SyncdError:
            raise
        except Exception as error:
            log.exception("purchase_not_taken_in", reference=one.reference, supplier=one.supplier)
            why = f"its answer could not be taken in: {type(error).__name__}"
            return await self._tell(one, PurchaseState.ACCEPTED, why, due_in=_NOBODY_S, order_id=order.id)

    async def _doubt(self, one: Purchase, able: Able, why: str) -> Purchase:
        self._watched[one.id] = self._clock.monotonic()
        first = reconcile.first_look(able, self._settings().purchases)
        return await self._tell(one, PurchaseState.UNKNOWN, why, due_in=first)

    async def _tell(self, one: Purchase, state: PurchaseState, reason: str, **more: Any) -> Purchase:
        """Record an outcome without keys. Whoever was replaced meanwhile records nothing: the row says more by now."""
        try:
            after = await self._writer.submit(self._ledger.tell, Told(held_by(one), state, reason, **more))
        except LeaseLostError:
            log.warning("purchase_taken_over", reference=one.reference, supplier=one.supplier)
            return await asyncio.to_thread(self.find, one.reference)
        self._changed(one, after)
        return after

    # --- what came --------------------------------------------------------------------------------------------------

    async def _came(
        self, one: Purchase, order: Order, link: Link, product: Product, *, overdue: bool = False
    ) -> Purchase:
        """Read what an order holds by now, seal it, and write it with what becomes of the purchase."""
        keys, status, note = order.keys, order.status, order.note
        if not keys and "fetch_keys" in link.capabilities and status in {"partial", "completed"}:
            try:
                keys = await link.acall("fetch_keys", order)
            except AdapterError as error:
                status, note = "pending", str(error)
        seen = replace(order, keys=keys, status=status, note=note)
        came = await asyncio.to_thread(self._prepared, one, seen, link.adapter, product, overdue=overdue)
        for pause in _AWAY_S:
            try:
                written = await self._writer.submit(self._ledger.receive, came)
                break
            except LeaseLostError:
                written = await self._regained(one, came)
                break
            except UnavailableError:  # the database is away: what was paid lies in this process alone
                if not pause or self._stopping or self._writer.stopped:
                    raise
                await asyncio.sleep(pause)
        self._count(one, written)
        return written.purchase

    async def _regained(self, one: Purchase, came: Came) -> Written:
        """Another daemon took the purchase over while this one waited for the answer: but the answer is here.

        Once it is closed, all of it goes into quarantine; LeaseLostError is raised then.
        """
        for _ in range(_REGAIN_S):
            mine = await self._writer.submit(self._ledger.lease, (one.id, self._holder))
            if mine is not None:
                return await self._writer.submit(self._ledger.receive, replace(came, held=held_by(mine)))
            now = await asyncio.to_thread(self.find, one.reference)
            if (now.state, now.supplier_order) == (came.state, came.order_id):
                return Written(now)  # it was written, and only its acknowledgement was lost
            if now.closed_at is not None:
                break
            await asyncio.sleep(1)
        origin = Origin(0, one.source, one.product, came.issuer)
        aside = await asyncio.to_thread(self._vault.set_aside, origin, came.keys, LATE)
        await self._writer.submit(self._ledger.late, replace(came, keys=(), slices=[*aside, *came.slices]))
        log.error("purchase_came_late", reference=one.reference, supplier=one.supplier, fix="look at the supplier")
        raise LeaseLostError(f"purchase {one.reference} was closed before its answer came: it is in quarantine")

    def _prepared(self, one: Purchase, order: Order, adapter: Adapter, product: Product, *, overdue: bool) -> Came:
        """Keys read, judged and sealed. Blocks; nothing of it is written yet."""
        settings = self._settings()
        supplier = settings.suppliers.get(one.supplier)
        fmt = self._formats()[product.reads_as]
        split = product.split or (adapter.split if adapter.split != "auto" else fmt.splitter(None))
        zone = adapter.context.timezone
        found = judge(order.keys, order.status, one.quantity, one.received, fmt, split, zone)
        first, longest = (supplier.poll, supplier.poll_max) if supplier else (5.0, 600.0)
        if one.state == PurchaseState.DISPUTED:
            first, longest = ledger.DISPUTED_AGAIN_S, reconcile.DISPUTED_LONGEST_S
        due_in = reconcile.wait(self._clock.now() - (one.sent_at or 0), first, longest)
        state, note = PurchaseState.ACCEPTED, order.note or found.note
        if found.verdict == "complete":
            state, note = PurchaseState.FULFILLED, found.note
        elif found.verdict == "mismatch":
            state, note = PurchaseState.DISPUTED, found.note
        elif found.verdict == "over":
            state, note = PurchaseState.REFUNDED, found.note
        elif overdue or (found.verdict == "empty" and one.polls + 1 >= _EMPTY_POLLS):
            state = PurchaseState.DISPUTED
            note = f"it was not delivered in time: {note}" if overdue else "it is said to be complete, and no key came"
        if state == PurchaseState.ACCEPTED and one.state == PurchaseState.DISPUTED:
            state, note = PurchaseState.DISPUTED, one.reason
        origin = Origin(0, one.source, product.sku, product.issuer)
        cards = found.cards
        if found.aside:
            if one.received:  # what is in the vault already is not set aside a second time
                known = self._vault.known(origin, cards)
                cards = [card for card, seen in zip(cards, known, strict=True) if card.key is None or not seen]
            cards = set_aside(cards, found.aside, found.note)
        keys, slices = self._vault.seal(origin, cards)
        return Came(
            held=held_by(one),
            issuer=product.issuer,
            keys=keys,
            slices=slices,
            reading=found.reading,
            state=state,
            reason=note,
            order_id=order.id,
            charged=order.charged,
            due_in=due_in,
        )

    def _count(self, before: Purchase, written: Written) -> None:
        after, counts = written.purchase, written.counts
        if counts.sealed:
            self._metrics.sealed(after.supplier, after.product, counts.sealed)
        for reason, number in counts.reasons.items():
            self._metrics.quarantined(after.supplier, reason, number)
        if after.spend > before.spend:
            base = self._settings().currency.base
            charged, most = guards.amount_of(after.spend), guards.amount_of(before.spend)
            log.error("purchase_overcharged", reference=after.reference, charged=f"{charged} {base}", allowed=str(most))
        self._changed(before, after)
        if counts.sealed:
            self._arrived(after.product)

    def _changed(self, before: Purchase, after: Purchase) -> None:
        if after.state == before.state:
            return
        self._metrics.purchased(after.supplier, after.state)
        if after.closed_at is not None:
            self._watched.pop(after.id, None)
        if after.state in _CHARGED and before.state not in _CHARGED:
            self._metrics.spent(after.supplier, float(guards.amount_of(after.spend)))
        told = {"reference": after.reference, "supplier": after.supplier, "product": after.product, "why": after.reason}
        if after.state in {PurchaseState.UNKNOWN, PurchaseState.DISPUTED}:
            fix = f"syncd purchases show {after.reference}"
            log.error("purchase_needs_attention", state=after.state, **told, fix=fix)
        else:
            log.info("purchase_changed", state=after.state, **told)

    # --- following up -----------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """At the start, before anybody is served: what a stop left half-way becomes refused (never sent) or unknown.

        On PostgreSQL, another daemon may be at work: what is leased is left to `tick`, until its lease is over.
        """
        await self._recovered(everything=not self._database.postgresql)

    async def _recovered(self, *, everything: bool) -> None:
        spare = frozenset(self._active)
        for one in await self._writer.submit(self._ledger.recover, (everything, spare)):
            self._watched[one.id] = self._clock.monotonic()
            self._metrics.purchased(one.supplier, one.state)
            log.warning("purchase_recovered", reference=one.reference, supplier=one.supplier, state=one.state)

    async def tick(self) -> None:
        """Start whatever is due and return at once: called every second by the schedule."""
        await self._follow_up()
        now = self._clock.monotonic()
        if not self._stopping and now - self._covered_at >= _COVER_S:
            self._covered_at = now
            self._spawn(self._quietly(self.cover()))

    async def reconcile(self) -> None:
        """Follow up everything that is due, and wait until that is done."""
        await asyncio.gather(*await self._follow_up())

    async def _follow_up(self) -> list[asyncio.Task[None]]:
        if self._stopping:
            return []
        now = self._clock.monotonic()
        if self._active and now - self._renewed_at >= _RENEW_S:
            self._renewed_at = now
            await self._writer.submit(self._ledger.renew, (self._holder, sorted(self._active)))
        found = [one for one in await asyncio.to_thread(self._due) if one.id not in self._active]
        if any(one.state in {PurchaseState.INTENDED, PurchaseState.SENT} for one in found):
            await self._recovered(everything=False)
        open_ones = [one for one in found if one.state not in {PurchaseState.INTENDED, PurchaseState.SENT}]
        return [self._spawn(self._quietly(self._follow(one.id))) for one in open_ones]

    @staticmethod
    async def _quietly(work: Coroutine[Any, Any, None]) -> None:
        """What the clock began tells the log when it fails: it is begun again."""
        try:
            await work
        except SyncdError as error:
            log.warning("purchases_not_followed_up", why=error.message)
        except Exception:
            log.exception("purchases_failed")

    def _due(self) -> list[Purchase]:
        """Nothing while the restore fence stands: keys that come again may be delivered already (T3)."""
        with self._database.read() as connection:
            ask = ledger.asking(self._database, connection)
            found = ledger.due(ask, self._database_now(ask), _AT_ONCE)
        return found if found and restored_at(self._database) is None else []

    def _database_now(self, ask: ledger.Ask) -> float:
        if not self._database.postgresql:
            return self._clock.now()
        return float(ask("SELECT extract(epoch FROM clock_timestamp())::float8", ())[0][0])

    async def _follow(self, row_id: int) -> None:
        self._active.add(row_id)
        try:
            one = await self._writer.submit(self._ledger.lease, (row_id, self._holder))
            if one is not None:
                await self._step(one)
        finally:
            self._active.discard(row_id)

    async def _step(self, one: Purchase) -> Purchase:
        settings = self._settings()
        link, product = self._links.get(one.supplier), settings.products.get(one.product)
        state = PurchaseState(one.state)
        if link is None or product is None:
            what = "supplier" if link is None else "product"
            why = one.reason if state == PurchaseState.DISPUTED else f"its {what} is not configured"
            return await self._tell(one, state, why, due_in=_NOBODY_S)
        standing = self._standing(one)
        step = reconcile.next_step(standing, Able(link.capabilities, link.adapter.promises), settings.purchases)
        if state == PurchaseState.DISPUTED:
            return await self._disputed(one, link, product, step)
        if step.do == "person":
            return await self._person(one, step.why)
        if step.do == "wait":
            return await self._tell(one, state, one.reason, due_in=step.seconds)
        if step.do == "repeat":
            return await self._repeat(one, link, product)
        try:
            order = await self._looked_up(one, link, poll=step.do == "poll")
        except AdapterError as error:
            if step.overdue:
                return await self._tell(one, PurchaseState.DISPUTED, f"it was not delivered in time: {error}")
            return await self._later(one, link, str(error))
        if order is not None:
            return await self._came(one, order, link, product, overdue=step.overdue)
        if step.overdue:
            return await self._tell(one, PurchaseState.DISPUTED, "it was not delivered in time")
        return await self._denied(one, link, standing)

    async def _disputed(self, one: Purchase, link: Link, product: Product, step: Step) -> Purchase:
        """Ask, rarely, for what is missing: it may still be delivered, or paid back. No answer changes nothing."""
        if step.do == "rest":
            return await self._tell(one, PurchaseState.DISPUTED, one.reason)
        try:
            order = await self._looked_up(one, link, poll=step.do == "poll")
        except AdapterError as error:
            log.info("dispute_not_asked_after", reference=one.reference, supplier=one.supplier, why=error.message)
            order = None
        if order is not None:
            return await self._came(one, order, link, product)
        age = self._clock.now() - (one.sent_at or one.created_at)
        due_in = reconcile.wait(age, ledger.DISPUTED_AGAIN_S, reconcile.DISPUTED_LONGEST_S)
        return await self._tell(one, PurchaseState.DISPUTED, one.reason, due_in=due_in)

    @staticmethod
    async def _looked_up(one: Purchase, link: Link, *, poll: bool) -> Order | None:
        verb, name = ("get_order", one.supplier_order) if poll else ("find_order", one.reference)
        order: Order | None = await link.acall(verb, name)
        if order is not None:
            _bears(order, one.reference)
            if poll and not order.reference and order.id != one.supplier_order:
                raise AdapterError("the supplier answers with another order")
        return order

    async def _denied(self, one: Purchase, link: Link, standing: Standing) -> Purchase:
        """The supplier says that it has no such order."""
        settle = self._settings().purchases.settle
        if standing.state == PurchaseState.ACCEPTED:
            return await self._later(one, link, "its supplier has no such order yet")
        if not reconcile.believed(standing, self._settings().purchases):
            why = "its supplier has no such order yet"
            return await self._later(one, link, why, within=max(1.0, settle - standing.watched))
        if standing.doubted > reconcile.TRUST_S:
            return await self._person(one, "its supplier does not know it, and may look back not far enough")
        if standing.denied + 1 >= reconcile.TWICE:
            return await self._tell(one, PurchaseState.REFUSED, "its supplier has no such order")
        return await self._later(one, link, "its supplier has no such order", denied=True, within=max(1.0, settle))

    async def _person(self, one: Purchase, why: str) -> Purchase:
        fix = f"syncd purchases resolve {one.reference}"
        log.error("purchase_waits_for_a_person", reference=one.reference, supplier=one.supplier, why=why, fix=fix)
        return await self._tell(one, PurchaseState(one.state), why)

    def _standing(self, one: Purchase) -> Standing:
        now, monotonic = self._clock.now(), self._clock.monotonic()
        return Standing(
            state=PurchaseState(one.state),
            age=now - (one.sent_at or one.created_at),
            doubted=now - (one.unknown_at or one.created_at),
            watched=monotonic - self._watched.setdefault(one.id, monotonic),
            tries=one.tries,
            denied=one.polls,
            order_id=one.supplier_order,
        )

    async def _later(
        self, one: Purchase, link: Link, why: str, *, denied: bool = False, within: float = math.inf
    ) -> Purchase:
        supplier = self._settings().suppliers.get(link.name)
        first, longest = (supplier.poll, supplier.poll_max) if supplier else (5.0, 600.0)
        age = self._clock.now() - (one.sent_at or one.created_at)
        due_in = min(within, reconcile.wait(age, first, longest))
        return await self._tell(one, PurchaseState(one.state), why, due_in=due_in, denied=denied)

    async def _repeat(self, one: Purchase, link: Link, product: Product) -> Purchase:
        """Send the same order once more, as it was sent: after the guards, by what its offer costs now."""
        found = [each for each in await asyncio.to_thread(self.candidates, one.product) if _is(each, one)]
        for candidate in await self._valued(found):
            unit = _price(candidate.offer, one.quantity)
            if unit is not None and not (candidate.gone or candidate.held or candidate.stale):
                break
        else:
            return await self._later(one, link, "not sent again: what its offer costs now is not known")
        wish = Wish(one.supplier, product, unit, one.quantity)
        limit = one.money("unit_limit")
        if limit is None or limit.currency != unit.currency or unit.amount > limit.amount:
            return await self._later(one, link, f"not sent again: a unit costs {unit} now, its limit was {limit}")
        sent = await self._writer.submit(self._ledger.send, Send(held_by(one), again=wish))
        if isinstance(sent, Forbidden):
            return await self._later(one, link, f"not sent again: {sent.why}")
        return await self._order(sent, offer_of(msgspec.json.decode(one.listed)), link, product, again=True)

    async def heard(self, supplier: str, webhook: Webhook) -> bytes:
        """A request that claims to come from a supplier: what to answer with 200, once its adapter has verified it.

        Raises NotFoundError for a supplier that sends none, Forged for what is not signed, UnavailableError for too
        many.
        """
        link = self._links.get(supplier)
        if link is None or "parse_webhook" not in link.capabilities:
            raise NotFoundError("no supplier of this name sends webhooks")
        now = self._clock.monotonic()
        heard = self._heard.setdefault(supplier, deque(maxlen=_WEBHOOKS))
        if len(heard) == _WEBHOOKS and 0 <= now - heard[0] < 1:
            raise UnavailableError("too many webhooks at once", hint="later: what they tell is asked for anyway")
        heard.append(now)
        try:
            found: Hint = await link.acall("parse_webhook", webhook)
        except Forged:
            raise
        except AdapterError as error:
            log.warning("webhook_not_read", supplier=supplier, why=error.message)
            return b""
        self.hint(supplier, found)
        return found.answer

    def hint(self, supplier: str, hint: Hint) -> None:
        """A supplier says that something happened to an order: it is asked soon. Nothing that it says is believed."""
        if hint.event == "order" and (hint.order_id or hint.reference):
            self._writer.post(self._ledger.nudge, (supplier, hint.order_id, hint.reference.upper()))

    # --- what orders wait for ---------------------------------------------------------------------------------------

    async def cover(self, product: str | None = None) -> None:
        """Buy what orders that wait are owed, of this product or of all that are configured to be bought.

        A product that nobody would sell is left alone for a while, longer each time, unless it is asked for by name.
        """
        if product is not None:
            await self._cover_soon(product)
            return
        owing = await asyncio.to_thread(self._owing)
        now = self._clock.monotonic()
        await asyncio.gather(*(self._cover_soon(sku) for sku in owing if self._rest.get(sku, (0.0, 0.0))[0] <= now))

    def _owing(self) -> list[str]:
        with self._database.read() as connection:
            rows = connection.exec_driver_sql("SELECT DISTINCT product FROM delivery WHERE state = 'pending'")
            return sorted(row[0] for row in rows)

    async def _cover_soon(self, product: str) -> None:
        """One at a time for a product: whoever comes meanwhile is served by one more round."""
        found = self._settings().products.get(product)
        if found is None or found.on_shortage != "buy" or self._stopping:
            return
        running = self._covering.get(product)
        if running is None or running.done():
            running = self._covering[product] = self._spawn(self._cover(product))
        else:
            self._again.add(product)
        await asyncio.shield(running)

    async def _cover(self, product: str) -> None:
        while True:
            self._again.discard(product)
            try:
                got = await self.top_up(product, 0, asked_by="delivery")
                if self._settings().purchases.cover_unknown_after is not None:
                    await self.top_up(product, 0, asked_by=COVER)
            except NotFoundError:
                return  # taken out of the configuration just now
            if got.refused and not got.bought and not got.on_order:
                pause = min(_LONGEST_COVER_S, 2 * self._rest.get(product, (0.0, _COVER_S / 2))[1])
                self._rest[product] = (self._clock.monotonic() + pause, pause)
            else:
                self._rest.pop(product, None)
            if product not in self._again:
                return

    # --- a person decides -------------------------------------------------------------------------------------------

    async def resolve(self, reference: str, *, charged: bool, keys: bytes | None = None, by: str) -> Purchase:
        """What a person found out about a purchase that is unknown, disputed or outstanding.

        Not charged: it is refused, or refunded. Charged, without keys: an open dispute; said of a dispute, its loss is
        accepted (or it is fulfilled, if its keys were released from quarantine). Charged, with the ``keys`` as the
        supplier shows them: they go into the vault. Raises NotFoundError, ConflictError (closed, or being looked into),
        InvalidRequestError (not the number that is missing, or not all of them can be read: nothing is recorded then).
        """
        if keys is None:
            before = await asyncio.to_thread(self.find, reference)
            after = await self._writer.submit(self._ledger.settle, (reference, charged, by))
            self._changed(before, after)
            return after
        if not charged:
            raise InvalidRequestError("keys came, and it was not charged?", hint="say that it was charged")
        one = await asyncio.to_thread(self.find, reference)
        refused = ledger.undecidable(one, self._clock.now())
        if refused is not None:
            raise refused
        product = self._product(one.product)
        came = await asyncio.to_thread(self._handed_over, one, product, keys, by)
        mine = await self._writer.submit(self._ledger.lease, (one.id, self._holder))
        if mine is None:
            raise LeaseLostError(f"purchase {reference} is being looked into", hint="try again in a minute")
        written = await self._writer.submit(self._ledger.receive, replace(came, held=held_by(mine)))
        self._count(one, written)
        return written.purchase

    def _handed_over(self, one: Purchase, product: Product, keys: bytes, by: str) -> Came:
        settings, fmt = self._settings(), self._formats()[product.reads_as]
        supplier = settings.suppliers.get(one.supplier)
        zone = supplier.tz if supplier else ZoneInfo(DEFAULT_TIMEZONE)
        cards, reading = by_hand(keys, fmt, fmt.splitter(product.split), zone)
        unread = sum(card.key is None for card in cards)
        distinct = len({card.dedupe for card in cards if card.key is not None})
        missing = one.quantity - one.received
        if unread or distinct < len(cards) or not cards or len(cards) not in {*range(1, missing + 1), one.quantity}:
            raise InvalidRequestError(
                f"{missing} keys are missing; {distinct} different ones were read, {unread} texts are none",
                hint="one key a line, as the supplier shows them; nothing was recorded",
            )
        origin = Origin(0, one.source, product.sku, product.issuer)
        sealed, slices = self._vault.seal(origin, cards)
        return Came(
            held=held_by(one),
            issuer=product.issuer,
            keys=sealed,
            slices=slices,
            reading=reading,
            state=PurchaseState.FULFILLED,
            reason=f"{by} handed its keys over",
            order_id=None,
            charged=None,
            due_in=None,
            by=by,
        )

    # --- looking (these block: call them from a thread) -------------------------------------------------------------

    def candidates(self, product: str) -> list[Candidate]:
        """The offers that could serve a product, with what is known of their suppliers. Raises NotFoundError."""
        settings, now = self._settings(), int(self._clock.now())
        with self._database.read() as connection:
            ask = ledger.asking(self._database, connection)
            listed = self._catalogue.listed(connection, self._product(product))
            rooms = {name: self._room(ask, name, now) for name in {one.supplier for one in listed}}
            defects = self._counted_defects(connection)
        found = []
        for one in listed:
            own = settings.suppliers.get(one.supplier)
            currency = one.offer.price.currency if one.offer.price is not None else settings.currency.base
            found.append(
                Candidate(
                    supplier=one.supplier,
                    offer=one.offer,
                    rate=guards.rate_of(settings, currency, now),
                    stale=one.stale,
                    gone=one.gone,
                    held=one.held,
                    health=self._health(one.supplier),
                    priority=own.priority if own else 0,
                    defects=defect_rate(*defects.get(one.supplier, (0, 0))),
                    budget=rooms[one.supplier],
                )
            )
        return found

    def _counted_defects(self, connection: Connection) -> Mapping[str, tuple[int, int]]:
        now = self._clock.monotonic()
        if self._counted is None or now - self._counted[0] >= _DEFECTS_S:
            self._counted = (now, self._defects(connection))
        return self._counted[1]

    def _room(self, ask: ledger.Ask, supplier: str, now: int) -> Decimal | None:
        """What may still be ordered from a supplier by listed prices: an order counts with its slippage."""
        settings = self._settings()
        room = guards.room(settings, supplier, ledger.spent(ask, supplier, now), ledger.account(ask, supplier))
        return None if room is None else room / (1 + Decimal(str(settings.purchases.slippage)) / 100)

    def _health(self, name: str) -> Health:
        link = self._links.get(name)
        if link is None:
            return "not_configured"
        if not {"place_order", "get_order"} <= link.capabilities:
            return "cannot_buy"
        if link.stopped:
            return "stopped"
        state = None if link.health is None else link.health.state
        if state is None:
            return "up"
        if state.open:
            return "down"
        return "failing" if state.failures or state.until_asked(self._clock.now()) else "up"

    async def _valued(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """With the price of those of which only a question tells it."""
        found = []
        for one in candidates:
            link = self._links.get(one.supplier)
            usable = one.health in {"up", "failing"} and not (one.gone or one.stale or one.held)
            if one.offer.price is None and usable and link is not None and "get_offer" in link.capabilities:
                try:
                    offer: Offer = await link.acall("get_offer", one.offer.sku)
                except AdapterError as error:
                    log.info("offer_not_valued", supplier=one.supplier, sku=one.offer.sku, why=error.message)
                else:
                    if offer.price is not None:
                        rate = guards.rate_of(self._settings(), offer.price.currency, self._clock.now())
                        found.append(replace(one, offer=offer, rate=rate))
                        continue
            found.append(one)
        return found

    def objection(self, product: str, pick: Pick) -> str:
        """Why the guards would not let this order pass now; "" if they would. Raises NotFoundError."""
        one = pick.candidate
        wish = Wish(one.supplier, self._product(product), pick.unit_cost, pick.quantity)
        with self._database.read() as connection:
            facts = self._ledger.facts(
                ledger.asking(self._database, connection), wish, one.offer.sku, int(self._clock.now())
            )
        found = guards.forbids(self._settings(), wish, facts, self._clock.now())
        return "" if found is None else found.why

    def on_order(self, connection: Connection) -> dict[str, int]:
        """Product → units that are outstanding: intended, sent, accepted or unknown."""
        return ledger.on_order(ledger.asking(self._database, connection))

    def can_buy(self, product: str, quantity: int) -> bool:
        """Whether so many more can be had, beside what others wait for: from fresh offers, within the guards.

        By what was known at most a second ago.
        """
        now = self._clock.monotonic()
        known = self._known.get((product, quantity))
        if known is not None and 0 <= now - known[0] < _KNOWN_S:
            return known[1]
        if len(self._known) > 1000:  # noqa: PLR2004 - as many as matter in a second
            self._known.clear()
        able = self._can_buy(product, quantity)
        self._known[product, quantity] = (now, able)
        return able

    def _can_buy(self, product: str, quantity: int) -> bool:
        found = self._settings().products.get(product)
        if found is None or self._stopping:
            return False
        wanted = self._missing(_Errand(found, quantity, 0, "", set(), []))
        if wanted < 1:
            return True
        max_cost = self._settings().currency.landed(found.max_cost)
        way = route(wanted, self.candidates(product), max_cost=max_cost)
        return not way.short and not any(self.objection(product, pick) for pick in way.picks)

    def find(self, reference: str) -> Purchase:
        """One purchase. Raises NotFoundError."""
        with self._database.read() as connection:
            return ledger.find(ledger.asking(self._database, connection), reference)

    def page(
        self,
        which: str = "all",
        *,
        product: str | None = None,
        supplier: str | None = None,
        before: int = 2**63 - 1,
        limit: int = 100,
    ) -> tuple[list[Purchase], int | None]:
        """(a page of purchases, the newest first; the id ``before`` which to go on, None at the end).

        ``which`` is all, open, unknown or disputed.
        """
        with self._database.read() as connection:
            ask = ledger.asking(self._database, connection)
            rows = ledger.page(ask, which, product=product, supplier=supplier, before=before, limit=limit + 1)
        return rows[:limit], rows[limit - 1].id if len(rows) > limit else None

    # --- tasks ------------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Begin nothing more; wait a moment for what is under way. What is cut off is unknown at the next start."""
        self._stopping = True
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=_STOP_S)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=_STOP_S)


def _bears(order: Order, reference: str) -> None:
    """Raises AdapterError for an order that is not ours, by what it says."""
    if order.reference and order.reference.upper() != reference.upper():
        raise AdapterError("the supplier answers with an order that bears another reference")


def _is(candidate: Candidate, one: Purchase) -> bool:
    return (candidate.supplier, candidate.offer.sku) == (one.supplier, one.sku)


def _price(offer: Offer, quantity: int) -> Money | None:
    return [offer.price, *(each for least, each in offer.tiers if quantity >= least)][-1]
