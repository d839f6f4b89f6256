"""Deliveries: one paid order line gets its keys, once, for ever (M2).

Called by the storefronts. A delivery is allotted, audited and answered for in one transaction; its keys are opened
after the commit, and a key that does not open is replaced before anybody is answered (K4).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
from sqlalchemy.exc import SQLAlchemyError

from syncd.audit import HEAD
from syncd.config import MAX_QUANTITY
from syncd.errors import ConflictError, NotFoundError, SyncdError, UnavailableError, UnreadableKeyError
from syncd.model import DeliveryState, IdSource, ReservationState, utc
from syncd.orders import holds
from syncd.store.database import Change, Lane, Question, RetryBatch, Row, Tx, Work, Writer
from syncd.vault.vault import KeyRow, OpenedKey, Vault, restored_at

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from syncd.config import Product
    from syncd.metrics import Metrics
    from syncd.orders.presentation import Presentation

log = structlog.get_logger(__name__)

BACKORDERED: Final = "backordered"
"""Why a delivery is pending: there were too few keys, and its product's orders wait for them."""
BUYING: Final = "buying"
"""Why a delivery is pending: there were too few keys, and what is lacking is bought."""
REPLACING: Final = "replacing"
"""Why a delivery is pending: a key of it was defective, and there was none to put in its place."""
_LOOK_S: Final = 0.25
"""How often a request that waits looks for its keys: another daemon on the same database may have brought them."""
_FILL_AT_ONCE: Final = 100
_MANY: Final = 200
"""So many that wait for one product are not counted: everybody waits behind them until some have their keys."""
_ALL: Final = 2**40
_ANY: Final = range(1, MAX_QUANTITY + 1)


class InsufficientStockError(ConflictError):
    """Not enough keys: nothing was recorded, so trying again works."""

    code = "insufficient_stock"


class OrderRefReusedError(SyncdError):
    """The order_ref was used before for other content; it names one order line for ever."""

    code = "order_ref_reused"
    status = 422


class DeliveryCancelledError(ConflictError):
    """The delivery under this order_ref was cancelled; it never delivers again."""

    code = "delivery_cancelled"


class UnknownProductError(NotFoundError):
    """The configuration has no such product."""

    code = "unknown_product"


class QuantityNotAllowedError(SyncdError):
    """The product is not sold in this quantity: nothing was recorded. ``allowed`` in its problem says what is."""

    code = "quantity_not_allowed"
    status = 422

    def __init__(self, takes: range) -> None:
        least, most = takes[0], takes[-1]
        super().__init__(f"this product is sold {least} to {most} at a time", hint="ask for a quantity in between")
        self.members = {"allowed": {"min": least, "max": most}}


class FencedError(UnavailableError):
    """The database was restored from a backup: no key leaves until `syncd recover` has run (T3)."""

    code = "restored_not_recovered"


@dataclass(slots=True)  # frozen, it would take three times as long to make
class Request:
    """What a shop asks for. ``min_life`` is the product's: seconds that a key must still be good for; ``takes`` are the
    quantities in which it is sold, now: what was delivered in another one before is answered for ever.

    A product that is no longer ``known`` to the configuration is not delivered anew, but what was delivered of it is
    answered for ever. ``waits``: too few keys are no refusal; the order is recorded and gets its keys when they come.
    ``reason`` says why it is pending then.
    """

    shop: str
    order_ref: str
    product: str
    quantity: int
    min_life: int = 0
    known: bool = True
    takes: range = _ANY
    waits: bool = False
    reason: str = BACKORDERED


class Buying(Protocol):
    """What buys what orders lack."""

    def can_buy(self, product: str, quantity: int) -> bool:
        """Whether so many more can be had: beside what orders wait for, with what is here and on its way. Blocks."""

    def short(self, product: str) -> None:
        """An order waits for what is to be bought: see to it at once. Returns at once, on the event loop."""


class Restocking(Protocol):
    """What keeps products in stock, and wants to know what is asked for. Both return at once, on the event loop."""

    def sold(self, product: str) -> None:
        """An order was taken: there is less of the product now."""

    def refused(self, product: str, quantity: int, key: tuple[str, str]) -> None:
        """An order (of a shop, by its reference) was sent away for want of keys."""


@dataclass(slots=True, repr=False)
class Allotted:
    """A delivery as recorded, with its keys still sealed."""

    id: int
    product: str
    quantity: int
    state: str
    reason: str | None
    created_at: int
    repeat: bool
    keys: list[KeyRow]


@dataclass(slots=True, repr=False)
class Delivery:
    """A delivery as answered. ``keys`` is empty unless its state is ``delivered`` and the caller may see them."""

    id: int
    order_ref: str
    product: str
    quantity: int
    state: str
    reason: str | None
    created_at: int
    repeat: bool
    keys: list[OpenedKey]


class Deliveries:
    """Allots keys to orders. ``products`` gives the configured product of a sku, or None; ``shown`` how its keys are
    shown, where that is not as they were sealed; ``fenced`` is T3's.
    """

    def __init__(
        self,
        vault: Vault,
        writer: Writer,
        ids: IdSource,
        products: Callable[[], Mapping[str, Product]],
        metrics: Metrics,
        *,
        shown: Callable[[], Mapping[str, Presentation]] = dict,
        fenced: bool = False,
    ) -> None:
        self._vault = vault
        self._writer = writer
        self._ids = ids
        self._products = products
        self._metrics = metrics
        self._shown = shown
        self.fenced = fenced
        self.wait: Callable[[], float] = lambda: 8.0
        """For how many seconds a request waits for keys that are being bought, unless it says how long."""
        self.buying: Buying | None = None
        """What buys what orders lack; None: nothing can be bought."""
        self.restocking: Restocking | None = None
        self._stopping = False
        self._waiters: dict[asyncio.Event, int] = {}
        """What each request that waits is told by → the id of its delivery."""
        self._looking: asyncio.Task[None] | None = None
        self._allot: Work[Request, Allotted] = Work("deliver", Lane.DELIVERY, self._run_allot)
        self._replace: Work[tuple[int, list[int], int], Allotted] = Work("replace", Lane.DELIVERY, self._run_replace)
        self._fill: Work[tuple[str, int], int] = Work("fill_pending", Lane.CONTROL, self._run_fill)
        self._cancel: Work[tuple[str, str], Allotted] = Work("cancel", Lane.DELIVERY, self._run_cancel)

    # --- what storefronts call --------------------------------------------------------------------------------------

    async def deliver(
        self, shop: str, order_ref: str, product: str, quantity: int, *, wait_s: float | None = 0
    ) -> Delivery:
        """Deliver one order line, or say again what was delivered for it.

        Raises UnknownProductError, QuantityNotAllowedError and InsufficientStockError (nothing recorded),
        OrderRefReusedError, DeliveryCancelledError, FencedError. A delivery of state ``pending`` has no keys yet: for
        ``wait_s`` seconds this waits for them; None: as long as is configured, where they are being bought.
        """
        self.check_fence()
        known = self._products().get(product)
        min_life, takes = (int(known.min_life), known.takes) if known else (0, _ANY)
        shortage = known.on_shortage if known else "refuse"
        reason = BUYING if shortage == "buy" else BACKORDERED
        request = Request(
            shop, order_ref, product, quantity, min_life, known is not None, takes, shortage == "wait", reason
        )
        try:
            allotted = await self._writer.submit(self._allot, request)
        except InsufficientStockError:
            if shortage != "buy" or not await asyncio.to_thread(self.buyable, product, quantity):
                if self.restocking is not None:
                    self.restocking.refused(product, quantity, (shop, order_ref))
                raise
            request = replace(request, waits=True)
            allotted = await self._writer.submit(self._allot, request)
        if self.restocking is not None and not allotted.repeat:
            self.restocking.sold(product)
        answer = await self.opened(order_ref, allotted, request.min_life)
        if answer.state != DeliveryState.PENDING:
            return answer
        if not answer.repeat:
            self.short(product)
        if wait_s is None:
            wait_s = self.wait() if answer.reason == BUYING else 0
        if not wait_s or not await self.settled(answer, wait_s):
            return answer
        allotted = await self._writer.submit(self._allot, request)
        allotted.repeat = answer.repeat
        return await self.opened(order_ref, allotted, request.min_life)

    def min_life(self, product: str) -> int:
        """For how many seconds a key of this product must still be good."""
        known = self._products().get(product)
        return int(known.min_life) if known else 0

    def check_fence(self) -> None:
        """Raise FencedError while no key may leave."""
        if self.fenced:
            msg = "this database was restored from a backup"
            raise FencedError(msg, hint="the operator must run: syncd recover")

    def short(self, product: str) -> None:
        """Orders wait for keys of this product: have them bought, where that is how it is served."""
        known = self._products().get(product)
        if self.buying is not None and known is not None and known.on_shortage == "buy":
            self.buying.short(product)

    def buyable(self, product: str, quantity: int) -> bool:
        """Whether so many more keys can be had, beside those that were promised to others. Blocks."""
        if self.buying is None:
            return False
        database = self._vault.database
        with database.read() as connection:
            promised = connection.exec_driver_sql(database.marked(_PROMISED), (product,)).scalar()
        return self.buying.can_buy(product, quantity + int(promised or 0))

    async def settled(self, delivery: Delivery, seconds: float) -> bool:
        """Wait until a delivery is pending no longer; False when the time is over first, or the daemon stops."""
        if self._stopping:
            return False
        told = asyncio.Event()
        self._waiters[told] = delivery.id
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_out())
        try:
            async with asyncio.timeout(seconds):
                await told.wait()
        except TimeoutError:
            return False
        finally:
            del self._waiters[told]
        return not self._stopping

    def stop_waiting(self) -> None:
        """Answer all requests that wait as things stand, and let none wait from now on: the daemon stops."""
        self._stopping = True
        for told in self._waiters:
            told.set()

    async def _look_out(self) -> None:
        """Tell those who wait that their delivery is pending no longer: one look for all of them, however many."""
        while self._waiters:
            await asyncio.sleep(_LOOK_S)
            await self._tell()

    async def _tell(self) -> None:
        """Look which of those that somebody waits for are pending no longer."""
        if not self._waiters:
            return
        with contextlib.suppress(SQLAlchemyError):  # the database is away: they go on waiting
            settled = await asyncio.to_thread(self._settled, set(self._waiters.values()))
            for told, delivery_id in self._waiters.items():
                if delivery_id in settled:
                    told.set()

    def _settled(self, ids: Collection[int]) -> set[int]:
        """Which of these deliveries are pending no longer."""
        database, wanted = self._vault.database, [(delivery_id,) for delivery_id in ids]
        found: set[int] = set()
        with database.read() as connection:
            for start in range(0, len(wanted), database.bulk_rows):
                statement, bound = database.bulk_statement(
                    "SELECT d.id FROM rows JOIN delivery d ON d.id = rows.id WHERE d.state <> 'pending'",
                    "id int",
                    wanted[start : start + database.bulk_rows],
                )
                found.update(row[0] for row in connection.exec_driver_sql(statement, tuple(bound)))
        return found

    async def look(self, shop: str, order_ref: str, *, wait_s: float = 0, reveal: bool = False) -> Delivery | None:
        """The delivery of an order line, after at most ``wait_s`` seconds while it is pending; None if there is none.

        With ``reveal`` it has its keys, which is recorded like a repeated request. Raises FencedError then.
        """
        found = await asyncio.to_thread(self.find, shop, order_ref)
        if found is None:
            return None
        if found.state == DeliveryState.PENDING and wait_s and await self.settled(found, wait_s):
            found = await asyncio.to_thread(self.find, shop, order_ref) or found
        if reveal and found.state == DeliveryState.DELIVERED:
            return await self.deliver(shop, order_ref, found.product, found.quantity)
        return found

    async def cancel(self, shop: str, order_ref: str) -> Delivery:
        """Cancel a pending delivery for ever. Raises NotFoundError, or ConflictError when it cannot be any more."""
        allotted = await self._writer.submit(self._cancel, (shop, order_ref))
        await self.fill(allotted.product)  # others may have waited behind it
        return _answer(order_ref, allotted, [])

    async def fill(self, product: str) -> int:
        """Give keys that arrived to deliveries that wait for them, oldest first; returns how many were completed.

        None while the restore fence stands: what was available at the backup may have left since (T3).
        """
        filled, some = 0, _FILL_AT_ONCE
        while some == _FILL_AT_ONCE and not self.fenced:
            some = await self._writer.submit(self._fill, (product, self.min_life(product)))
            filled += some
        if filled:
            log.info("pending_deliveries_filled", product=product, deliveries=filled)
            await self._tell()
        return filled

    async def look_at_fence(self) -> None:
        """Go on once another daemon on this database has run `syncd recover`."""
        if self.fenced:
            self.fenced = await asyncio.to_thread(restored_at, self._vault.database) is not None

    async def fill_waiting(self) -> int:
        """`fill` every product that orders wait for, configured or not any more; to be called now and then.

        Whoever took keys in may have died before it filled, or the order came in just then at another daemon.
        """
        waiting = await asyncio.to_thread(self._waited_for)
        return sum([await self.fill(product) for product in waiting])

    def _waited_for(self) -> list[str]:
        with self._vault.database.read() as connection:
            found = connection.exec_driver_sql("SELECT DISTINCT product FROM delivery WHERE state = 'pending'")
            return sorted(row[0] for row in found)

    def find(self, shop: str, order_ref: str) -> Delivery | None:
        """The recorded delivery without its keys. Blocks on the database: call it from a thread."""
        with self._vault.database.read() as connection:
            row = connection.exec_driver_sql(
                self._vault.database.marked(
                    "SELECT id, product, quantity, state, reason, created_at FROM delivery"
                    " WHERE shop = ? AND order_ref = ?"
                ),
                (shop, order_ref),
            ).one_or_none()
        if row is None:
            return None
        return Delivery(row[0], order_ref, row[1], row[2], row[3], row[4], row[5], repeat=True, keys=[])

    # --- what operators look at (these block: call them from a thread; they show no key) -----------------------------

    def page(
        self, *, product: str | None, shop: str | None, pending: bool, after: int, limit: int
    ) -> list[dict[str, Any]]:
        """Deliveries, the oldest first, behind the one with the id ``after``: one more than ``limit`` if there are."""
        where, params = ["id > ?"], list[Any]([after])
        for column, value in (("product", product), ("shop", shop)):
            if value is not None:
                where.append(f"{column} = ?")
                params.append(value)
        if pending:
            where.append("state = 'pending'")
        sql = f"SELECT {_SHOWN} FROM delivery WHERE {' AND '.join(where)} ORDER BY id LIMIT ?"  # noqa: S608
        with self._vault.database.read() as connection:
            rows = connection.exec_driver_sql(self._vault.database.marked(sql), (*params, limit + 1)).all()
        return [_shown(row) for row in rows]

    def show(self, shop: str, order_ref: str) -> dict[str, Any]:
        """One delivery, and of each of its keys the id, the state and where it came from. Raises NotFoundError."""
        marked = self._vault.database.marked
        with self._vault.database.read() as connection:
            row = connection.exec_driver_sql(
                marked(f"SELECT {_SHOWN} FROM delivery WHERE shop = ? AND order_ref = ?"),  # noqa: S608
                (shop, order_ref),
            ).one_or_none()
            if row is None:
                raise NotFoundError("there is no such delivery", hint="list them: syncd deliveries list")
            keys = connection.exec_driver_sql(
                marked(
                    "SELECT a.unit, k.id, k.state, s.supplier, s.name, a.withdrawn_at FROM allotment a"
                    " JOIN vault_key k ON k.id = a.key_id JOIN source s ON s.id = k.source_id"
                    " WHERE a.delivery_id = ? ORDER BY a.unit, a.key_id"
                ),
                (row[0],),
            ).all()
        return {
            **_shown(row),
            "keys": [
                {
                    "unit": key[0],
                    "id": str(key[1]),
                    "state": key[2],
                    "supplier": key[3],
                    "source": key[4],
                    "withdrawn_at": None if key[5] is None else utc(key[5]),
                }
                for key in keys
            ],
        }

    async def opened(self, order_ref: str, allotted: Allotted, min_life: int) -> Delivery:
        """Open a delivery's keys; what does not open is marked corrupt and replaced until all do (K4)."""
        while allotted.state == DeliveryState.DELIVERED:
            keys: list[OpenedKey] = []
            unreadable: list[int] = []
            for row in allotted.keys:
                try:
                    keys.append(self._vault.open(row, allotted.product))
                except UnreadableKeyError as error:
                    self._metrics.key_unreadable.inc()
                    log.error("key_unreadable", key_id=row.id, product=allotted.product, why=error.message)  # noqa: TRY400
                    unreadable.append(row.id)
            if not unreadable:
                shown = self._shown().get(allotted.product)
                if shown is not None:
                    for key in keys:
                        shown.show(key)
                return _answer(order_ref, allotted, keys)
            repeat = allotted.repeat
            allotted = await self._writer.submit(self._replace, (allotted.id, unreadable, min_life))
            allotted.repeat = repeat
        return _answer(order_ref, allotted, [])

    # --- units of work ----------------------------------------------------------------------------------------------

    def _run_allot(self, tx: Tx, requests: Sequence[Request]) -> list[Allotted | BaseException]:
        """Allot a batch: one look for repeats, keys and what is owed, one insert a table.

        Keys are looked up before it is known which orders are repeats, since the questions then travel together.
        """
        first: dict[tuple[str, str], int] = {}
        for index, request in enumerate(requests):
            first.setdefault((request.shop, request.order_ref), index)
        need = _need([requests[index] for index in first.values()])
        about_stock = (_what_is_there(tx, need), _who_waits(need)) if need else ()
        rows, *there = tx.ask(_who_has(first), *about_stock)
        keys, waited_for = there or ([], [])
        (owed,) = tx.ask(_what_is_owed(need)) if waited_for else ([],)
        recorded = self._as_recorded(tx, rows)
        first = {order: index for order, index in first.items() if order not in recorded}
        wanted = [requests[index] for index in first.values()]
        own, more = self._reserved(tx, wanted, rows)
        if more:
            (keys,) = tx.ask(_what_is_there(tx, need))
        stock = self._stacked(tx, need, keys)
        lacks = {product: int(units) for product, units in owed if units}
        granted = dict(zip(first.values(), self._grant(tx, wanted, stock, lacks, own), strict=True))
        outcomes: list[Allotted | BaseException] = []
        for index, request in enumerate(requests):
            made = granted.get(index)
            if made is not None:
                outcomes.append(made)
                continue
            order = (request.shop, request.order_ref)
            known = recorded.get(order)
            if known is None:  # the same order twice in one batch
                twin = granted[first[order]]
                if isinstance(twin, BaseException):
                    outcomes.append(twin)
                    continue
                known = replace(twin, repeat=True)
            outcomes.append(self._again(tx, request, known))
        return outcomes

    def _again(self, tx: Tx, request: Request, known: Allotted) -> Allotted | BaseException:
        """What a request gets whose order_ref is recorded."""
        if (known.product, known.quantity) != (request.product, request.quantity):
            return OrderRefReusedError(
                "this order_ref was used for another product or quantity", hint="an order_ref names one order line"
            )
        if known.state == DeliveryState.CANCELLED:
            return DeliveryCancelledError("this delivery was cancelled", hint="use a new order_ref")
        if known.state == DeliveryState.DELIVERED:  # who asks after one that waits sees nothing, and asks often
            tx.audit("delivery.repeated", delivery=known.id, shop=request.shop, state=known.state)
        return known

    def _reserved(
        self, tx: Tx, requests: Sequence[Request], rows: Sequence[Row]
    ) -> tuple[dict[tuple[str, str], holds.Hold], bool]:
        """(What new orders have reserved, whether there are more keys now).

        A reservation for other content than was paid is no use: its keys are free, and the order is as any other.
        """
        ids = {(row[1], row[2]): row[0] for row in rows if row[5] == ReservationState.HELD}
        if not ids:
            return {}, False
        held = holds.locked(tx, ids.values())
        own: dict[tuple[str, str], holds.Hold] = {}
        other: list[holds.Hold] = []
        for request in requests:
            one = held.get(ids.get((request.shop, request.order_ref), 0))
            if one is None:
                continue
            if (one.product, one.quantity) == (request.product, request.quantity):
                own[request.shop, request.order_ref] = one
                one.keys.sort(key=lambda key: (key[3], key[0]))
            else:
                other.append(one)
                tx.audit("reservation.released", reservation=one.id, shop=request.shop, why="paid for other content")
        holds.set_free(tx, other, ReservationState.RELEASED)
        return own, bool(other)

    def _grant(
        self,
        tx: Tx,
        requests: Sequence[Request],
        stock: _Stock,
        owed: Mapping[str, int],
        own: Mapping[tuple[str, str], holds.Hold],
    ) -> list[Allotted | BaseException]:
        """Claim keys for new orders, in the order they came; an order gets all its keys or none.

        What is ``owed`` to orders that wait is theirs, and an order that waits from now on is one of them. An order
        that has reserved gets its ``own`` keys, and waits for those that it was promised if they are not there yet.
        """
        if not requests:
            return []
        mine = self._alive(tx, requests, own) if own else {}
        need = _need(requests, mine)
        if own:  # what was reserved before a limit changed was not looked for
            stock = {which: stock.get(which, []) for which in need}
        stock = self._enough(tx, need, stock)
        free = {which: len(keys) for which, keys in stock.items()}
        free.update((which, min(free[which], units)) for which, units in _what_is_spare(tx, need, owed).items())
        ids = self._ids.take(len(requests))
        outcomes: list[Allotted | BaseException] = []
        deliveries: list[tuple[int, str, str, str, int]] = []
        allotments: list[tuple[int, int, int]] = []
        waiting: list[tuple[int, str, str, str, int, str]] = []
        for row_id, request in zip(ids, requests, strict=True):
            order = request.shop, request.order_ref
            held, keys = own.get(order), mine.get(order, [])
            lacks = request.quantity - len(keys)
            if held is not None:
                row_id = held.id  # noqa: PLW2901 - what stays held for a delivery is found by its id
            if not request.known and lacks:
                outcomes.append(
                    UnknownProductError("there is no such product", hint="add [products.SKU] to the configuration")
                )
                continue
            if held is None and request.quantity not in request.takes:
                outcomes.append(QuantityNotAllowedError(request.takes))
                continue
            which = request.product, request.min_life
            enough = not lacks or free[which] >= lacks
            waits = request.waits or (held is not None and held.promised > 0)
            if lacks and (enough or waits):
                free[which] -= lacks
            if not enough and waits:
                waiting.append(
                    (row_id, request.shop, request.order_ref, request.product, request.quantity, request.reason)
                )
                tx.audit(
                    "delivery.pending",
                    delivery=row_id,
                    shop=request.shop,
                    order_ref=request.order_ref,
                    product=request.product,
                    reason=request.reason,
                )
                outcomes.append(
                    Allotted(row_id, request.product, request.quantity, "pending", request.reason, tx.at, False, [])  # noqa: FBT003
                )
                continue
            if not enough:
                outcomes.append(
                    InsufficientStockError(
                        "there are not enough keys of this product", hint="nothing was recorded: try again later"
                    )
                )
                continue
            keys = [*keys, *(stock[which].pop() for _ in range(lacks))]
            deliveries.append((row_id, request.shop, request.order_ref, request.product, request.quantity))
            allotments.extend((key.id, row_id, unit) for unit, key in enumerate(keys))
            tx.audit(
                "delivery.delivered",
                delivery=row_id,
                shop=request.shop,
                order_ref=request.order_ref,
                product=request.product,
                keys=[key.id for key in keys],
            )
            outcomes.append(
                Allotted(row_id, request.product, request.quantity, "delivered", None, tx.at, False, keys)  # noqa: FBT003
            )
        if own:
            self._converted(tx, requests, outcomes, own, mine)
        self._write(tx, requests, outcomes, waiting, deliveries, allotments)
        return outcomes

    def _write(
        self,
        tx: Tx,
        requests: Sequence[Request],
        outcomes: Sequence[Allotted | BaseException],
        waiting: Sequence[tuple[int, str, str, str, int, str]],
        deliveries: Sequence[tuple[int, str, str, str, int]],
        allotments: Sequence[tuple[int, int, int]],
    ) -> None:
        """Record new orders. Raises RetryBatch when another daemon recorded one of them just now."""
        short = {
            (request.shop, request.order_ref)
            for request, outcome in zip(requests, outcomes, strict=True)
            if isinstance(outcome, InsufficientStockError)
        }
        if tx.postgresql and short and self._recorded(tx, short):
            raise RetryBatch  # another daemon delivered these very orders while we waited for its keys
        if waiting and tx.change(
            [
                Change(
                    "INSERT INTO delivery (id, shop, order_ref, product, quantity, state, reason, created_at)"
                    " SELECT id, shop, order_ref, product, quantity, 'pending', reason, ? FROM rows WHERE true"
                    " ON CONFLICT (shop, order_ref) DO NOTHING",
                    "id int, shop text, order_ref text, product text, quantity int, reason text",
                    waiting,
                    (tx.at,),
                )
            ]
        ) != [len(waiting)]:
            raise RetryBatch  # another daemon recorded one of these orders just now
        if deliveries:
            recorded = Change(
                "INSERT INTO delivery (id, shop, order_ref, product, quantity, state, created_at, completed_at)"
                " SELECT id, shop, order_ref, product, quantity, 'delivered', ?, ? FROM rows WHERE true"
                " ON CONFLICT (shop, order_ref) DO NOTHING",
                "id int, shop text, order_ref text, product text, quantity int",
                deliveries,
                (tx.at, tx.at),
            )
            self._hand_over(tx, allotments, recorded)

    def _alive(
        self, tx: Tx, requests: Sequence[Request], own: Mapping[tuple[str, str], holds.Hold]
    ) -> dict[tuple[str, str], list[KeyRow]]:
        """Order → the keys that it has reserved, without those that have too little life left by now."""
        names = self._vault.source_names(tx, {key[2] for held in own.values() for key in held.keys})
        return {
            (request.shop, request.order_ref): [
                _key(key, names)
                for key in own[request.shop, request.order_ref].keys
                if key[3] > tx.at + request.min_life
            ]
            for request in requests
            if (request.shop, request.order_ref) in own
        }

    @staticmethod
    def _converted(
        tx: Tx,
        requests: Sequence[Request],
        outcomes: Sequence[Allotted | BaseException],
        own: Mapping[tuple[str, str], holds.Hold],
        mine: Mapping[tuple[str, str], list[KeyRow]],
    ) -> None:
        """End the reservations of orders that are recorded now. A refused one keeps its own, for another try.

        Keys that are handed over go by way of being available, which nobody else sees; those of an order that waits
        stay held for it.
        """
        ended: list[int] = []
        free: list[int] = []
        for request, outcome in zip(requests, outcomes, strict=True):
            order = request.shop, request.order_ref
            if order not in own or isinstance(outcome, BaseException):
                continue
            ended.append(own[order].id)
            stay = {key.id for key in mine[order]} if outcome.state == DeliveryState.PENDING else set()
            free += [key[0] for key in own[order].keys if key[0] not in stay]
        holds.end(tx, ended, ReservationState.DELIVERED)
        holds.let_go(tx, free)

    def _hand_over(self, tx: Tx, allotments: Sequence[tuple[int, int, int]], *before: Change) -> None:
        """Write allotments (key, delivery, unit) and mark their keys delivered; ``before`` is what they refer to.

        With it, this is the last that its kind locks, and the audit's head may be locked with it. Without, there may be
        more to come: another daemon that held a key for it would wait for the head, and both for ever.
        Raises RetryBatch when another daemon recorded one of the orders, or took one of the keys, just now.
        """
        changes = [
            *before,
            Change(
                "INSERT INTO allotment (key_id, delivery_id, unit) SELECT key_id, delivery_id, unit FROM rows",
                "key_id int, delivery_id int, unit int",
                allotments,
            ),
            # || '' keeps the partial index out of it: these rows are found by their id.
            Change(
                "UPDATE vault_key SET state = 'delivered' WHERE id IN (SELECT id FROM rows)"
                " AND state || '' = 'available'",
                "id int",
                [(key_id,) for key_id, _, _ in allotments],
            ),
        ]
        if before:
            tx.settle(changes, HEAD)
        elif tx.change(changes) != [len(change.rows) for change in changes]:
            raise RetryBatch

    def _claim(self, tx: Tx, need: _Need) -> _Stock:
        """The next keys of each (product, min_life), as stacks whose top goes first: soonest to expire, then oldest."""
        return self._enough(tx, need, self._look(tx, need))

    def _enough(self, tx: Tx, need: _Need, stock: _Stock) -> _Stock:
        """The same stock, or another look where another daemon may hold rows that it will not take after all (K2)."""
        if tx.postgresql and any(len(stock[product]) < number for product, number in need.items()):
            tx.ask(_what_is_there(tx, need, " FOR UPDATE"))  # wait for it
            stock = self._look(tx, need)
        return stock

    def _look(self, tx: Tx, need: _Need) -> _Stock:
        (rows,) = tx.ask(_what_is_there(tx, need))
        return self._stacked(tx, need, rows)

    def _stacked(self, tx: Tx, need: _Need, rows: Sequence[Row]) -> _Stock:
        names = self._vault.source_names(tx, {row[3] for row in rows})
        order = list(need)
        stock: _Stock = {product: [] for product in order}
        for which, row_id, sku, source_id, expires_at, sealed in rows:
            stock[order[which]].append(KeyRow(row_id, sku, names[source_id], expires_at, sealed))
        for keys in stock.values():
            keys.sort(key=lambda key: (key.expires_at, key.id), reverse=True)
        return stock

    def spare(self, tx: Tx, product: str, min_life: int, most: int) -> tuple[list[KeyRow], int]:
        """(Keys of a product that nobody has, locked, up to ``most``; the next one is the last. How many of them may be
        taken: what is owed to orders that wait is theirs, and less than 0 is what they lack).
        """
        which = product, min_life
        need = {which: most}
        keys, owed = tx.ask(_what_is_there(tx, need), _what_is_owed(need))
        stock = self._enough(tx, need, self._stacked(tx, need, keys))
        lacks = {product: int(units) for product, units in owed if units}
        free = len(stock[which])
        return stock[which], min([free, *_what_is_spare(tx, need, lacks).values()])

    def _recorded(self, tx: Tx, orders: Collection[tuple[str, str]]) -> dict[tuple[str, str], Allotted]:
        (rows,) = tx.ask(_who_has(orders))
        return self._as_recorded(tx, rows)

    def _as_recorded(self, tx: Tx, rows: Sequence[Row]) -> dict[tuple[str, str], Allotted]:
        """The deliveries that exist already, with their keys in the order of their units."""
        found = {
            row[0]: Allotted(row[0], row[3], row[4], row[5], row[6], row[7], True, [])  # noqa: FBT003
            for row in rows
            if row[5] != ReservationState.HELD
        }
        self._fetch_keys(tx, [d for d in found.values() if d.state == DeliveryState.DELIVERED])
        return {(row[1], row[2]): found[row[0]] for row in rows if row[0] in found}

    def _fetch_keys(self, tx: Tx, deliveries: Sequence[Allotted]) -> None:
        if not deliveries:
            return
        rows = tx.bulk(
            "SELECT a.delivery_id, a.unit, k.id, k.sealed_sku, k.source_id, k.expires_at, k.sealed FROM rows"
            " JOIN allotment a ON a.delivery_id = rows.id AND a.withdrawn_at IS NULL"
            " JOIN vault_key k ON k.id = a.key_id",
            "id int",
            [(d.id,) for d in deliveries],
        )
        names = self._vault.source_names(tx, {row[4] for row in rows})
        by_delivery: dict[int, list[tuple[int, KeyRow]]] = {}
        for delivery_id, unit, key_id, sku, source_id, expires_at, sealed in rows:
            key = KeyRow(key_id, sku, names[source_id], expires_at, sealed)
            by_delivery.setdefault(delivery_id, []).append((unit, key))
        for d in deliveries:
            d.keys = [key for _, key in sorted(by_delivery.get(d.id, []), key=lambda item: item[0])]

    def _by_id(self, tx: Tx, delivery_id: int) -> Allotted:
        lock = " FOR UPDATE" if tx.postgresql else ""
        ((product, quantity, state, reason, created_at),) = tx.query(
            f"SELECT product, quantity, state, reason, created_at FROM delivery WHERE id = ?{lock}",  # noqa: S608
            (delivery_id,),
        )
        found = Allotted(delivery_id, product, quantity, state, reason, created_at, True, [])  # noqa: FBT003
        self._fetch_keys(tx, [found])
        return found

    def _run_replace(self, tx: Tx, payloads: Sequence[tuple[int, list[int], int]]) -> list[Allotted | BaseException]:
        return [self._replace_one(tx, *payload) for payload in payloads]

    def _replace_one(self, tx: Tx, delivery_id: int, unreadable: list[int], min_life: int) -> Allotted:
        """Withdraw keys that do not open and allot others; with none left the delivery waits (K4)."""
        current = self._by_id(tx, delivery_id)
        bad = [key.id for key in current.keys if key.id in unreadable]  # whoever came first may have replaced them
        if current.state != DeliveryState.DELIVERED or not bad:
            return current
        for key_id in bad:
            tx.execute("UPDATE allotment SET withdrawn_at = ? WHERE key_id = ?", (tx.at, key_id))
            tx.execute("UPDATE vault_key SET state = 'corrupt' WHERE id = ?", (key_id,))
            tx.audit("key.corrupt", key=key_id, delivery=delivery_id, product=current.product)
        return self.refill(tx, delivery_id, min_life, "key_unreadable")

    def current(self, tx: Tx, delivery_id: int) -> Allotted:
        """A delivery as it stands, locked; its keys are left out while it is pending."""
        found = self._by_id(tx, delivery_id)
        if found.state != DeliveryState.DELIVERED:
            found.keys = []
        return found

    def refill(self, tx: Tx, delivery_id: int, min_life: int, reason: str) -> Allotted:
        """Put keys in the place of those that were withdrawn from a delivery; with too few it waits, for ``reason``."""
        current = self._by_id(tx, delivery_id)
        if self._complete(tx, current, min_life):
            if current.state == DeliveryState.PENDING:
                self._completed(tx, delivery_id)
        else:
            tx.execute(
                "UPDATE delivery SET state = 'pending', reason = ?, completed_at = NULL WHERE id = ?",
                (reason, delivery_id),
            )
            tx.audit("delivery.pending", delivery=delivery_id, reason=reason)
        return self._by_id(tx, delivery_id)

    @staticmethod
    def _completed(tx: Tx, delivery_id: int) -> None:
        tx.execute(
            "UPDATE delivery SET state = 'delivered', reason = NULL, completed_at = ? WHERE id = ?",
            (tx.at, delivery_id),
        )

    def _complete(self, tx: Tx, delivery: Allotted, min_life: int) -> bool:
        """Allot the units that a delivery lacks, all or none."""
        taken = {
            unit
            for (unit,) in tx.query(
                "SELECT unit FROM allotment WHERE delivery_id = ? AND withdrawn_at IS NULL", (delivery.id,)
            )
        }
        missing = [unit for unit in range(delivery.quantity) if unit not in taken]
        held = [tuple(row[1:]) for row in holds.held_keys(tx, [delivery.id])]
        own = [key for key in held if key[3] > tx.at + min_life]
        if len(own) < len(held):  # the delivery lacks as many more from now on
            holds.let_go(tx, [key[0] for key in held if key not in own])
            tx.audit("reservation.keys_expired", delivery=delivery.id, keys=len(held) - len(own))
        lacks = len(missing) - len(own)
        keys = self._claim(tx, {(delivery.product, min_life): lacks})[delivery.product, min_life] if lacks else []
        if len(keys) < lacks:
            return False
        if own:
            holds.let_go(tx, [key[0] for key in own])
            names = self._vault.source_names(tx, {key[2] for key in own})
            keys += [_key(key, names) for key in own]
        pairs = [(keys.pop(), unit) for unit in missing]
        self._hand_over(tx, [(key.id, delivery.id, unit) for key, unit in pairs])
        tx.audit("delivery.completed", delivery=delivery.id, keys=[key.id for key, _ in pairs])
        return True

    def _run_fill(self, tx: Tx, payloads: Sequence[tuple[str, int]]) -> list[int | BaseException]:
        return [self._fill_one(tx, product, min_life) for product, min_life in payloads]

    def _fill_one(self, tx: Tx, product: str, min_life: int) -> int:
        lock = " FOR UPDATE" if tx.postgresql else ""  # not past those that another daemon has in hand: that overtakes
        waiting = tx.query(
            "SELECT id FROM delivery WHERE state = 'pending' AND product = ?"  # noqa: S608 - constants
            f" ORDER BY CASE reason WHEN '{REPLACING}' THEN 0 ELSE 1 END, id LIMIT {_FILL_AT_ONCE}{lock}",
            (product,),
        )
        filled = 0
        for (delivery_id,) in waiting:
            if not self._complete(tx, self._by_id(tx, delivery_id), min_life):
                break  # first come, first served: nobody overtakes
            self._completed(tx, delivery_id)
            filled += 1
        return filled

    def _run_cancel(self, tx: Tx, payloads: Sequence[tuple[str, str]]) -> list[Allotted | BaseException]:
        return [self._cancel_one(tx, *payload) for payload in payloads]

    def _cancel_one(self, tx: Tx, shop: str, order_ref: str) -> Allotted | BaseException:
        found = self._recorded(tx, {(shop, order_ref)}).get((shop, order_ref))
        if found is None:
            return NotFoundError("there is no such delivery")
        if found.state == DeliveryState.CANCELLED:
            return found
        current = self._by_id(tx, found.id)
        if current.state != DeliveryState.PENDING:
            return ConflictError("this delivery has its keys already", hint="only a pending one can be cancelled")
        if current.keys:
            return ConflictError(
                "this delivery holds keys that may be known to the customer", hint="it completes when stock arrives"
            )
        if current.reason == REPLACING:
            return ConflictError(
                "a defective key of this delivery is being replaced", hint="it completes when stock arrives"
            )
        tx.execute("UPDATE delivery SET state = 'cancelled', completed_at = ? WHERE id = ?", (tx.at, found.id))
        holds.let_go(tx, [row[1] for row in holds.held_keys(tx, [found.id])])
        tx.audit("delivery.cancelled", delivery=found.id, shop=shop)
        current.state = DeliveryState.CANCELLED
        return current


_PROMISED: Final = "SELECT sum(promised) FROM reservation WHERE state = 'held' AND product = ?"
"""Units of a product that reservations count on, and that are to be bought."""
_SHOWN: Final = "id, shop, order_ref, product, quantity, state, reason, created_at, completed_at"


def _shown(row: Sequence[Any]) -> dict[str, Any]:
    """A row of `_SHOWN` for people and programs."""
    return {
        "id": str(row[0]),
        "shop": row[1],
        "order_ref": row[2],
        "product": row[3],
        "quantity": row[4],
        "status": row[5],
        "reason": row[6],
        "created_at": utc(row[7]),
        "completed_at": None if row[8] is None else utc(row[8]),
    }


def pending_deliveries(connection: Connection) -> tuple[dict[str, int], int | None]:
    """(product → deliveries that wait for keys, since when the longest of them has: Unix seconds, None if none does).

    One whose key is being replaced has waited since that was asked for.
    """
    waiting = connection.exec_driver_sql(
        "SELECT product, count(*), min(coalesce(CASE WHEN reason = 'replacing' THEN"
        " (SELECT max(r.created_at) FROM replacement r WHERE r.delivery_id = d.id) END, d.created_at))"
        " FROM delivery d WHERE state = 'pending' GROUP BY product"
    ).all()
    return {row[0]: row[1] for row in waiting}, min((int(row[2]) for row in waiting), default=None)


_Need = Mapping[tuple[str, int], int]
"""(product, min_life) → units."""
_Stock = dict[tuple[str, int], list[KeyRow]]


def _need(
    requests: Sequence[Request], mine: Mapping[tuple[str, str], Sequence[KeyRow]] = MappingProxyType({})
) -> dict[tuple[str, int], int]:
    """What is needed beyond the keys that orders have reserved."""
    need: dict[tuple[str, int], int] = {}
    for request in requests:
        own = mine.get((request.shop, request.order_ref))
        if request.known and (own is not None or request.quantity in request.takes):
            product = (request.product, request.min_life)
            need[product] = need.get(product, 0) + request.quantity - len(own or ())
    return need


def _key(row: Row, names: Mapping[int, str]) -> KeyRow:
    """(id, sealed_sku, source_id, expires_at, sealed) as a key."""
    return KeyRow(row[0], row[1], names[row[2]], row[3], row[4])


def _who_has(orders: Collection[tuple[str, str]]) -> Question:
    """The rows of these orders' deliveries, and those of their reservations that are held: state ``held``."""
    return Question(
        "SELECT d.id, d.shop, d.order_ref, d.product, d.quantity, d.state, d.reason, d.created_at FROM rows"
        " JOIN delivery d ON d.shop = rows.shop AND d.order_ref = rows.order_ref"
        " UNION ALL SELECT r.id, r.shop, r.order_ref, r.product, r.quantity, r.state, NULL, r.created_at FROM rows"
        " JOIN reservation r ON r.shop = rows.shop AND r.order_ref = rows.order_ref WHERE r.state = 'held'",
        "id int, shop text, order_ref text, product text, quantity int, state text, reason text, created_at int",
        "shop text, order_ref text",
        sorted(orders),
    )


def _what_is_there(tx: Tx, need: _Need, lock: str = " FOR UPDATE SKIP LOCKED") -> Question:
    """The next keys of each product: each branch reads its few rows off the partial index. SQLite needs no lock."""
    branch = (
        "SELECT * FROM (SELECT {which} AS which, id, sealed_sku, source_id, expires_at, sealed"
        " FROM vault_key WHERE state = 'available' AND product = ? AND expires_at > ?"
        " ORDER BY expires_at, id LIMIT ?{lock}) k{which}"
    )
    lock = lock if tx.postgresql else ""
    params: list[Any] = []
    for (product, min_life), number in need.items():
        params += [product, tx.at + min_life, number]
    return Question(
        " UNION ALL ".join(branch.format(which=which, lock=lock) for which in range(len(need))),
        "which int, id int, sealed_sku text, source_id int, expires_at int, sealed bytes",
        params=params,
    )


def _who_waits(need: _Need) -> Question:
    """The products that an order waits for: one probe of the index of pending deliveries each."""
    return Question(
        "SELECT rows.product FROM rows WHERE EXISTS"
        " (SELECT 1 FROM delivery d WHERE d.state = 'pending' AND d.product = rows.product)",
        "product text",
        "product text",
        _products_of(need),
    )


def _products_of(need: _Need) -> list[tuple[str]]:
    return [(product,) for product in sorted({product for product, _ in need})]


def _what_is_owed(need: _Need) -> Question:
    """Product → units that its orders still wait for, null for none, or more than there can be where many wait."""
    return Question(
        "SELECT rows.product, (SELECT CASE WHEN count(*) < ? THEN sum(lacks) ELSE ? END FROM (SELECT d.quantity"
        " - (SELECT count(*) FROM allotment a WHERE a.delivery_id = d.id AND a.withdrawn_at IS NULL)"
        " - (SELECT count(*) FROM reserved_key h WHERE h.reservation_id = d.id) AS lacks"
        " FROM delivery d WHERE d.state = 'pending' AND d.product = rows.product ORDER BY d.id LIMIT ?) w) AS units"
        " FROM rows",
        "product text, units int",
        "product text",
        _products_of(need),
        (_MANY, _ALL, _MANY),
    )


def _what_is_spare(tx: Tx, need: _Need, owed: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """How many keys may be sold of each product that orders wait for already: what is there, less what they lack."""
    spare = {(product, life): -owed[product] for product, life in need if product in owed}
    asked = [(product, tx.at + life) for product, life in spare if owed[product] < _ALL]
    if asked:
        most = max(need[which] - units for which, units in spare.items() if units > -_ALL)
        found = tx.bulk(
            "SELECT rows.product, rows.floor, (SELECT count(*) FROM (SELECT 1 FROM vault_key WHERE state = 'available'"
            " AND product = rows.product AND expires_at > rows.floor LIMIT ?) k) FROM rows",
            "product text, floor int",
            asked,
            (most,),
        )
        for product, floor, units in found:
            spare[product, floor - tx.at] += units
    return spare


def _answer(order_ref: str, allotted: Allotted, keys: list[OpenedKey]) -> Delivery:
    return Delivery(
        allotted.id,
        order_ref,
        allotted.product,
        allotted.quantity,
        allotted.state,
        allotted.reason,
        allotted.created_at,
        allotted.repeat,
        keys,
    )
