"""Reservations: keys held for an order line that is not paid yet. Called by the storefronts and by the schedule.

One is good until it is released, paid (`Deliveries.deliver` turns it into a delivery) or swept, and even past its
deadline as long as nobody has swept it. Whatever moves it locks its row first, so that a payment in the second of its
expiry finds either all of its keys or none of them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import structlog

from syncd.config import MAX_HOLD_S
from syncd.errors import ConflictError, NotFoundError, SyncdError
from syncd.model import DeliveryState, IdSource, ReservationState
from syncd.orders import holds
from syncd.orders.deliveries import (
    Deliveries,
    DeliveryCancelledError,
    InsufficientStockError,
    OrderRefReusedError,
    QuantityNotAllowedError,
    UnknownProductError,
)
from syncd.store.database import Lane, RetryBatch, Tx, Work, Writer

if TYPE_CHECKING:
    from syncd.config import Product
    from syncd.config import Reservations as Limits
    from syncd.vault.keyring import Keyring

log = structlog.get_logger(__name__)

_AT_ONCE: Final = 200
_CUSTOMER: Final = "\0customer of "
"""The scope of a customer's fingerprint, beside those of issuers: each shop's customers are its own."""


class TooManyReservationsError(SyncdError):
    """This customer has as many reservations as one may have: they are to be paid, released, or waited for."""

    code = "too_many_reservations"
    status = 429


class ReservationLimitError(ConflictError):
    """As much of this product is reserved as may be: what is left is for orders that are paid."""

    code = "reservation_limit"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a shop wants to have held. ``customer`` is a fingerprint; ``upstream`` is how many suppliers could serve."""

    shop: str
    order_ref: str
    product: str
    quantity: int
    ttl: int
    min_life: int
    known: bool
    takes: range
    customer: bytes | None
    upstream: int
    per_customer: int
    per_product: float


@dataclass(frozen=True, slots=True)
class Reservation:
    """A reservation as recorded. ``promised`` units of it are not in the vault: they are to be bought once it is paid.

    Times are Unix seconds. ``repeat``: it was there before.
    """

    id: int
    shop: str
    order_ref: str
    product: str
    quantity: int
    promised: int
    state: str
    created_at: int
    expires_at: int
    repeat: bool = True


class Reservations:
    """Holds keys. ``upstream`` tells, blocking, how many units of a product suppliers could serve at a fair price."""

    def __init__(
        self,
        deliveries: Deliveries,
        writer: Writer,
        ring: Keyring,
        ids: IdSource,
        products: Callable[[], Mapping[str, Product]],
        limits: Callable[[], Limits],
        upstream: Callable[[str], int] = lambda _: 0,
    ) -> None:
        self._deliveries = deliveries
        self._writer = writer
        self._ring = ring
        self._ids = ids
        self._products = products
        self._limits = limits
        self._upstream = upstream
        self._reserve: Work[Asked, Reservation] = Work("reserve", Lane.DELIVERY, self._run_reserve)
        self._release: Work[tuple[str, str], Reservation] = Work("release_reservation", Lane.DELIVERY, _run_release)
        self._sweep: Work[int, list[str]] = Work("sweep_reservations", Lane.CONTROL, _run_sweep)

    async def reserve(
        self, shop: str, order_ref: str, product: str, quantity: int, *, customer: str | None = None, ttl_s: int = 0
    ) -> Reservation:
        """Hold keys for an order line, all of them or none, for ``ttl_s`` seconds (0: as long as is configured).

        The same again says what is held, and prolongs nothing. Once it is released or expired, it may be reserved anew.
        Raises InsufficientStockError, ReservationLimitError, TooManyReservationsError, UnknownProductError,
        QuantityNotAllowedError, OrderRefReusedError (held for other content), ConflictError (paid already),
        DeliveryCancelledError, FencedError.
        """
        self._deliveries.check_fence()
        known, limits = self._products().get(product), self._limits()
        buys = known is not None and known.on_shortage == "buy"
        asked = Asked(
            shop,
            order_ref,
            product,
            quantity,
            min(ttl_s or int(limits.ttl), MAX_HOLD_S),
            int(known.min_life) if known else 0,
            known is not None,
            known.takes if known else range(1, 1),
            None if customer is None else self._ring.fingerprint(_CUSTOMER + shop, customer),
            await asyncio.to_thread(self._at_suppliers, product, quantity) if buys else 0,
            limits.per_customer,
            limits.per_product,
        )
        restocking = self._deliveries.restocking
        try:
            held = await self._writer.submit(self._reserve, asked)
        except InsufficientStockError:
            if restocking is not None:
                restocking.refused(product, quantity, (shop, order_ref))
            raise
        if restocking is not None and not held.repeat:
            restocking.sold(product)
        return held

    def _at_suppliers(self, product: str, quantity: int) -> int:
        """How many units suppliers could serve; none when what this one takes could not be bought."""
        return self._upstream(product) if self._deliveries.buyable(product, quantity) else 0

    async def release(self, shop: str, order_ref: str) -> Reservation:
        """Hold nothing any more for an order line; again, it is as it is.

        Raises NotFoundError, ConflictError (paid already).
        """
        found = await self._writer.submit(self._release, (shop, order_ref))
        if not found.repeat:
            await self._deliveries.fill(found.product)  # others may have waited for these keys
        return found

    def find(self, shop: str, order_ref: str) -> Reservation | None:
        """The reservation of an order line. Blocks."""
        database = self._writer.database
        with database.read() as connection:
            rows = connection.exec_driver_sql(database.marked(_FIND), (shop, order_ref)).all()
        return Reservation(*rows[0]) if rows else None

    async def sweep(self) -> int:
        """End the reservations whose time is over, and give their keys to whom they are due; returns how many."""
        if self._deliveries.fenced or not await asyncio.to_thread(self._due):
            return 0
        swept = 0
        while found := await self._writer.submit(self._sweep, _AT_ONCE):
            swept += len(found)
            for product in sorted(set(found)):
                await self._deliveries.fill(product)
        log.info("reservations_expired", reservations=swept)
        return swept

    def _due(self) -> bool:
        database = self._writer.database
        with database.read() as connection:
            due = "SELECT 1 FROM reservation WHERE state = 'held' AND expires_at <= ? LIMIT 1"
            return bool(connection.exec_driver_sql(database.marked(due), (int(database.clock.now()),)).all())

    # --- units of work ----------------------------------------------------------------------------------------------

    def _run_reserve(self, tx: Tx, payloads: Sequence[Asked]) -> list[Reservation | BaseException]:
        _one_daemon_at_a_time(tx, payloads)
        return [self._reserve_one(tx, asked) for asked in payloads]

    def _reserve_one(self, tx: Tx, asked: Asked) -> Reservation | BaseException:
        before = _locked(tx, asked.shop, asked.order_ref)
        paid = tx.query("SELECT state FROM delivery WHERE shop = ? AND order_ref = ?", (asked.shop, asked.order_ref))
        if paid and paid[0][0] == DeliveryState.CANCELLED:
            return DeliveryCancelledError("this delivery was cancelled", hint="use a new order_ref")
        if before is not None and before.state in {ReservationState.HELD, ReservationState.DELIVERED}:
            if (before.product, before.quantity) != (asked.product, asked.quantity):
                return OrderRefReusedError(
                    "this order_ref holds another product or quantity", hint="release it, or use an order_ref a line"
                )
            return before
        if paid:
            return ConflictError("this order_ref was paid already", hint="ask for its delivery")
        refused = _refused(tx, asked)
        if refused is not None:
            return refused
        stock, free = self._deliveries.spare(tx, asked.product, asked.min_life, asked.quantity)
        total, promised = (int(units or 0) for units in tx.query(_HELD, (asked.product,))[0])
        keys = [stock.pop() for _ in range(max(0, min(free, asked.quantity)))]
        lacks = asked.quantity - len(keys)
        # What paid orders lack, beyond what is on its way for them, is bought first.
        behind = max(0, -free - (_number(tx, _ON_ORDER, asked.product) if free < 0 else 0))
        if lacks > max(0, asked.upstream - promised - behind):
            return InsufficientStockError(
                "there are not enough keys of this product", hint="nothing was recorded: try again later"
            )
        if not _within(tx, asked, total, promised, behind):
            return ReservationLimitError(
                "as much of this product is reserved as may be", hint="deliver what is paid; reserve again later"
            )
        made = Reservation(
            before.id if before else self._ids.next(),
            asked.shop,
            asked.order_ref,
            asked.product,
            asked.quantity,
            lacks,
            ReservationState.HELD,
            tx.at,
            tx.at + asked.ttl,
            repeat=False,
        )
        if not _record(tx, made, asked.customer, again=before is not None):
            raise RetryBatch  # another daemon recorded it just now
        if not holds.hold(tx, made.id, [key.id for key in keys]):
            raise RetryBatch
        tx.audit(
            "reservation.held",
            reservation=made.id,
            shop=made.shop,
            order_ref=made.order_ref,
            product=made.product,
            keys=sorted(key.id for key in keys),
            promised=lacks,
        )
        return made


_HELD: Final = "SELECT sum(quantity), sum(promised) FROM reservation WHERE state = 'held' AND product = ?"
_ON_ORDER: Final = (
    "SELECT sum(quantity - received) FROM purchase WHERE closed_at IS NULL AND state <> 'unknown' AND product = ?"
)
_AT_HAND: Final = (
    "SELECT count(*) FROM (SELECT 1 FROM vault_key WHERE state = 'available' AND product = ? AND expires_at > ?"
    " LIMIT ?) k"
)
_COLUMNS: Final = "id, shop, order_ref, product, quantity, promised, state, created_at, expires_at"
_FIND: Final = f"SELECT {_COLUMNS} FROM reservation WHERE shop = ? AND order_ref = ?"  # noqa: S608 - constants


def _locked(tx: Tx, shop: str, order_ref: str) -> Reservation | None:
    rows = tx.query(_FIND + (" FOR UPDATE" if tx.postgresql else ""), (shop, order_ref))
    return Reservation(*rows[0]) if rows else None


def _number(tx: Tx, sql: str, *params: Any) -> int:
    return int(tx.query(sql, params)[0][0] or 0)


def _one_daemon_at_a_time(tx: Tx, payloads: Sequence[Asked]) -> None:
    """PostgreSQL: what daemons reserve of one product, or for one customer, they reserve one after the other, for each
    of them counts what there is. Payments wait for none of this.
    """
    if not tx.postgresql:
        return
    names = {b"product " + asked.product.encode() for asked in payloads}
    names |= {b"customer " + asked.customer for asked in payloads if asked.customer is not None}
    for name in sorted(names):
        number = int.from_bytes(hashlib.sha256(b"reservation of " + name).digest()[:8], "big", signed=True)
        tx.query("SELECT pg_advisory_xact_lock(?)", (number,))


def _refused(tx: Tx, asked: Asked) -> BaseException | None:
    """Why nothing can be reserved of this product, or for this customer."""
    if not asked.known:
        return UnknownProductError("there is no such product", hint="add [products.SKU] to the configuration")
    if asked.quantity not in asked.takes:
        return QuantityNotAllowedError(asked.takes)
    if asked.customer is not None:
        mine = "SELECT count(*) FROM reservation WHERE state = 'held' AND shop = ? AND customer = ?"
        if _number(tx, mine, asked.shop, asked.customer) >= asked.per_customer:
            return TooManyReservationsError(
                "this customer has as many reservations as one may have", hint="they end when they are paid or expire"
            )
    return None


def _within(tx: Tx, asked: Asked, total: int, promised: int, behind: int) -> bool:
    """Whether reservations, this one too, hold no more of the product than their share, rounded up to whole keys.

    Counts only as many keys as that takes: a product may have a million.
    """
    wanted = total + asked.quantity
    # ceil(share × all) >= wanted means: all of it is more than (wanted - 1) / share.
    needed = int((wanted - 1) * 100 / asked.per_product) + 1
    missing = needed - (total - promised) - max(0, asked.upstream - behind)
    return missing <= 0 or _number(tx, _AT_HAND, asked.product, tx.at + asked.min_life, missing) >= missing


def _record(tx: Tx, made: Reservation, customer: bytes | None, *, again: bool) -> bool:
    """Write a new reservation, or hold one anew that had ended (it is locked). Whether nobody else did."""
    times = made.created_at, made.expires_at
    if again:
        sql = (
            "UPDATE reservation SET product = ?, quantity = ?, promised = ?, customer = ?, state = 'held',"
            " created_at = ?, expires_at = ?, ended_at = NULL WHERE id = ?"
        )
        return tx.execute(sql, (made.product, made.quantity, made.promised, customer, *times, made.id)) == 1
    sql = (
        "INSERT INTO reservation (id, shop, order_ref, product, quantity, promised, customer, state, created_at,"
        " expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, 'held', ?, ?) ON CONFLICT (shop, order_ref) DO NOTHING"
    )
    order = made.id, made.shop, made.order_ref, made.product, made.quantity, made.promised
    return tx.execute(sql, (*order, customer, *times)) == 1


def _run_release(tx: Tx, payloads: Sequence[tuple[str, str]]) -> list[Reservation | BaseException]:
    return [_release_one(tx, *payload) for payload in payloads]


def _release_one(tx: Tx, shop: str, order_ref: str) -> Reservation | BaseException:
    found = _locked(tx, shop, order_ref)
    if found is None:
        return NotFoundError("there is no such reservation")
    if found.state == ReservationState.DELIVERED:
        return ConflictError("this reservation was paid already", hint="cancel the delivery, if it is pending")
    if found.state != ReservationState.HELD:
        return found
    holds.set_free(tx, list(holds.locked(tx, [found.id]).values()), ReservationState.RELEASED)
    tx.audit("reservation.released", reservation=found.id, shop=shop, why="asked for")
    return replace(found, state=ReservationState.RELEASED, repeat=False)


def _run_sweep(tx: Tx, payloads: Sequence[int]) -> list[list[str] | BaseException]:
    return [_sweep(tx, limit) for limit in payloads]


def _sweep(tx: Tx, limit: int) -> list[str]:
    """End reservations whose time is over; the product of each. One that somebody has in hand is left to them."""
    lock = " FOR UPDATE SKIP LOCKED" if tx.postgresql else ""
    due = tx.query(
        f"SELECT id FROM reservation WHERE state = 'held' AND expires_at <= ? ORDER BY id LIMIT ?{lock}",  # noqa: S608
        (tx.at, limit),
    )
    if not due:
        return []
    held = list(holds.locked(tx, [row[0] for row in due]).values())
    holds.set_free(tx, held, ReservationState.EXPIRED)
    tx.audit("reservations.expired", reservations=[one.id for one in held])
    return [one.product for one in held]
