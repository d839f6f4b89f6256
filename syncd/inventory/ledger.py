"""The purchase table and the units of work that write it (M1, M4, D3). Called by `purchase` alone; reads are for all.

Every unit but an intent works under the purchase's lease: what a holder writes that was replaced is refused. A unit
that is refused returns why, and writes nothing.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from sqlalchemy import Connection

from syncd.config import Product, Settings
from syncd.errors import ConflictError, LeaseLostError, NotFoundError, SyncdError
from syncd.inventory.guards import (
    DAY_S,
    HOUR_S,
    Account,
    Facts,
    Forbidden,
    Spent,
    Wish,
    amount_of,
    ceiling,
    forbids,
    micro,
    rate_of,
)
from syncd.model import Money, PurchaseState, utc
from syncd.store.database import Database, Lane, Tx, Work
from syncd.vault.vault import RESTORE_FENCE, Chunk, Counts, Origin, SealedKey, SealedSlice, Vault

COVER: Final = "cover"
"""Who asked for units that are bought again, since the outcome of others is not known."""
LEASE_S: Final = 60.0
"""How long a purchase is one daemon's; it is renewed while that daemon works on it."""
DISPUTED_AGAIN_S: Final = 3600.0
"""How soon, at the earliest, a supplier is asked for what is missing of a dispute."""
_AHEAD_S: Final = 86400.0
"""What is due, or leased, later than that was written by a clock that was wrong."""
_INTENTS: Final = 0x73796E64
"""The advisory lock on PostgreSQL that makes intents serial: budgets are sums over other rows."""
_OUTSTANDING: Final = "('intended', 'sent', 'accepted', 'unknown')"
_COLUMNS: Final = (
    "id, reference, supplier, sku, product, quantity, received, state, reason, asked_by, listed, unit_cost, unit_limit,"
    " spend, open_spend, charged, supplier_order, tries, polls, next_at, epoch, holder, leased_until, created_at,"
    " sent_at, unknown_at, closed_at"
)
_WORDS: Final = 300
"""Characters of a reason."""

Sealed = TypeVar("Sealed", SealedKey, SealedSlice)
Ask = Callable[[str, Sequence[Any]], Sequence[Any]]
"""Runs a query with ``?`` markers: in a transaction, or on a connection that only reads."""


class Purchase(NamedTuple):
    """A purchase as it is stored: `_COLUMNS`. Money is a text such as ``9.90 CNY``; spend is in millionths."""

    id: int
    reference: str
    supplier: str
    sku: str
    product: str
    quantity: int
    received: int
    state: str
    reason: str
    asked_by: str
    listed: str
    unit_cost: str | None
    unit_limit: str | None
    spend: int
    open_spend: int
    charged: str | None
    supplier_order: str | None
    tries: int
    polls: int
    next_at: float | None
    epoch: int
    holder: str | None
    leased_until: float | None
    created_at: int
    sent_at: int | None
    unknown_at: int | None
    closed_at: int | None

    @property
    def source(self) -> str:
        """What its keys are bound to (K3)."""
        return f"purchase:{self.reference}"

    def money(self, name: str) -> Money | None:
        """One of its amounts."""
        text = getattr(self, name)
        return None if text is None else _money(text)

    def shown(self) -> dict[str, Any]:
        """For people and programs. No key, no secret."""
        told = {name: getattr(self, name) for name in _SHOWN}
        moments = {name: utc(at) if (at := getattr(self, name)) else None for name in _TIMES}
        return {**told, "spend": str(amount_of(self.spend)), "open": str(amount_of(self.open_spend)), **moments}


_TIMES: Final = ("created_at", "sent_at", "unknown_at", "closed_at", "next_at")
_SHOWN: Final = (
    *("reference", "supplier", "sku", "product", "quantity", "received", "state", "reason", "asked_by"),
    *("unit_cost", "unit_limit", "charged", "supplier_order", "tries"),
)


@dataclass(frozen=True, slots=True)
class Intent:
    """One order that is about to be made. Written before a byte of it is sent, if the guards let it pass."""

    id: int
    reference: str
    wish: Wish
    sku: str
    listed: str
    """The offer, as `listing.row_of` makes it, as JSON."""
    asked_by: str
    holder: str
    level: int | None
    """What has to be available and on order beyond what is owed; None: the quantity was asked for outright."""
    least: int
    """The need for which this was planned: with less, it has to be planned anew."""


@dataclass(frozen=True, slots=True)
class Needed:
    """The need is another one than was planned for: so many units now."""

    units: int


@dataclass(frozen=True, slots=True)
class Held:
    """The right to write a purchase."""

    id: int
    epoch: int
    holder: str


@dataclass(frozen=True, slots=True)
class Send:
    """A purchase is about to be sent; ``again``: for another time, for which the guards are asked anew."""

    held: Held
    again: Wish | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a purchase, without any keys.

    ``state`` is the new one, or the old one where only the schedule changes. ``due_in`` is when to look again, in
    seconds; None: never by itself, but for what is disputed now. ``denied``: its supplier said once more that
    there is no such order.
    """

    held: Held
    state: PurchaseState
    reason: str
    due_in: float | None = None
    denied: bool = False
    order_id: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Came:
    """What came for a purchase, sealed, to be written together with what becomes of it."""

    held: Held
    issuer: str
    keys: Sequence[SealedKey]
    slices: Sequence[SealedSlice]
    reading: str
    state: PurchaseState
    """What it becomes: fulfilled only if as many as ordered are in the vault then, else disputed."""
    reason: str
    order_id: str | None
    charged: Money | None
    due_in: float | None
    by: str = ""


@dataclass(slots=True)
class Written:
    """A purchase as it is now, and what became of the cards that came."""

    purchase: Purchase
    counts: Counts = field(default_factory=Counts)


# --- reading ----------------------------------------------------------------------------------------------------------


def asking(database: Database, connection: Connection) -> Ask:
    """Queries on a connection."""
    return lambda sql, params: connection.exec_driver_sql(database.marked(sql), tuple(params)).all()


def spent(ask: Ask, supplier: str, now: int) -> Spent:
    """What was spent in the windows that budgets are about."""
    since_hour, since_day = now - HOUR_S, now - DAY_S
    ((own_hour, own_day, all_hour, all_day, cover),) = ask(
        "SELECT sum(CASE WHEN supplier = ? AND created_at > ? THEN spend END),"
        " sum(CASE WHEN supplier = ? THEN spend END), sum(CASE WHEN created_at > ? THEN spend END), sum(spend),"
        " sum(CASE WHEN asked_by = ? THEN spend END) FROM purchase WHERE created_at > ?",
        (supplier, since_hour, supplier, since_hour, COVER, since_day),
    )
    return Spent(*(int(number or 0) for number in (own_hour, own_day, all_hour, all_day, cover)))


def account(ask: Ask, supplier: str) -> Account:
    """What our account at a supplier held, and what was spent there since."""
    rows = ask("SELECT balance, balance_at FROM listing WHERE supplier = ?", (supplier,))
    if not rows or rows[0][0] is None:
        return Account()
    ((used,),) = ask(
        "SELECT sum(spend) FROM purchase WHERE supplier = ? AND created_at >= ?", (supplier, rows[0][1] or 0)
    )
    return Account(_money(rows[0][0]), int(used or 0))


def last_price(ask: Ask, product: str, supplier: str, sku: str) -> Money | None:
    """What a unit of an offer cost when it was last bought."""
    found = ask(
        "SELECT unit_cost FROM purchase WHERE product = ? AND supplier = ? AND sku = ? AND unit_cost IS NOT NULL"
        " AND state IN ('accepted', 'fulfilled', 'disputed') ORDER BY created_at DESC, id DESC LIMIT 1",
        (product, supplier, sku),
    )
    if not found:
        return None
    return _money(found[0][0])


def missing(ask: Ask, settings: Settings, product: Product, level: int, now: int, *, covers: bool = False) -> int:
    """Units of a product that are lacking: up to ``level`` beyond what is owed, with what is available and on order.

    ``covers``: units whose outcome has been unknown for long enough do not count as on order, for orders that wait.
    """
    ((owed,),) = ask(
        "SELECT sum(quantity"
        " - (SELECT count(*) FROM allotment WHERE delivery_id = delivery.id AND withdrawn_at IS NULL)"
        " - (SELECT count(*) FROM reserved_key h JOIN vault_key k ON k.id = h.key_id"  # they stay held for it
        " WHERE h.reservation_id = delivery.id AND k.expires_at > ?)) FROM delivery"
        " WHERE state = 'pending' AND product = ?",
        (int(now + product.min_life), product.sku),
    )
    wanted = level + int(owed or 0)
    ((there,),) = ask(
        "SELECT count(*) FROM (SELECT 1 FROM vault_key WHERE state = 'available' AND product = ? AND expires_at > ?"
        " LIMIT ?) k",
        (product.sku, int(now + product.min_life), max(0, wanted)),
    )
    ((coming, doubted),) = ask(
        "SELECT sum(quantity - received), sum(CASE WHEN state = 'unknown' AND unknown_at <= ?"  # noqa: S608 - constant
        " THEN quantity - received END) FROM purchase"
        f" WHERE closed_at IS NULL AND product = ? AND state IN {_OUTSTANDING}",
        (int(now - (settings.purchases.cover_unknown_after or 0)), product.sku),
    )
    units = wanted - int(there) - int(coming or 0)
    if not covers or settings.purchases.cover_unknown_after is None:
        return units
    return min(int(owed or 0) - int(there), units + int(doubted or 0))


def on_order(ask: Ask) -> dict[str, int]:
    """Product → units that are outstanding."""
    rows = ask(
        "SELECT product, sum(quantity - received) FROM purchase WHERE closed_at IS NULL"  # noqa: S608 - constant
        f" AND state IN {_OUTSTANDING} GROUP BY product",
        (),
    )
    return {row[0]: int(row[1]) for row in rows}


def due(ask: Ask, now: float, limit: int) -> list[Purchase]:
    """What is to be looked after now, and is nobody's: the oldest first."""
    free = "closed_at IS NULL AND (leased_until IS NULL OR leased_until < ? OR leased_until > ?)"
    ahead = now + _AHEAD_S
    found: list[Purchase] = []
    for when, moment in (("next_at <= ?", now), ("next_at > ?", ahead)):
        rows = ask(
            f"SELECT {_COLUMNS} FROM purchase WHERE {free} AND {when} ORDER BY next_at LIMIT ?",  # noqa: S608 - ours
            (now, ahead, moment, limit),
        )
        found += [Purchase(*row) for row in rows]
    return found


def find(ask: Ask, reference: str) -> Purchase:
    """One purchase. Raises NotFoundError."""
    rows = ask(f"SELECT {_COLUMNS} FROM purchase WHERE reference = ?", (reference,))  # noqa: S608 - constant
    if not rows:
        raise NotFoundError("there is no such purchase", hint="list them: syncd purchases list")
    return Purchase(*rows[0])


def page(ask: Ask, which: str, *, product: str | None, supplier: str | None, before: int, limit: int) -> list[Purchase]:
    """A page of purchases, the newest first: ``which`` is all, open, unknown or disputed (not settled yet)."""
    where, params = ["id < ?"], list[Any]([before])
    where += {
        "all": [],
        "open": ["closed_at IS NULL"],
        "unknown": ["closed_at IS NULL", "state = 'unknown'"],
        "disputed": ["closed_at IS NULL", "state = 'disputed'"],
    }[which]
    for name, value in (("product", product), ("supplier", supplier)):
        if value is not None:
            where.append(f"{name} = ?")
            params.append(value)
    rows = ask(
        f"SELECT {_COLUMNS} FROM purchase WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?",  # noqa: S608 - ours
        [*params, limit],
    )
    return [Purchase(*row) for row in rows]


def levels(ask: Ask) -> tuple[dict[tuple[str, str], int], int | None, int]:
    """((supplier, state) → open purchases, since when the oldest unknown one is so, open money in millionths)."""
    # Few rows: grouped by the database, they would be looked for among all that ever were.
    rows = ask("SELECT supplier, state, unknown_at, open_spend FROM purchase WHERE closed_at IS NULL", ())
    counts = Counter((row[0], row[1]) for row in rows)
    oldest = min((int(row[2]) for row in rows if row[1] == "unknown"), default=None)
    return dict(counts), oldest, sum(int(row[3]) for row in rows)


# --- writing ----------------------------------------------------------------------------------------------------------


class Ledger:
    """The units of work on purchases."""

    def __init__(self, vault: Vault, settings: Callable[[], Settings]) -> None:
        self._vault = vault
        self._settings = settings
        self.intend: Work[Intent, Purchase | Forbidden | Needed] = Work("purchase_intent", Lane.CONTROL, self._intend)
        self.send: Work[Send, Purchase | Forbidden] = Work("purchase_send", Lane.CONTROL, self._send)
        self.tell: Work[Told, Purchase] = Work("purchase_outcome", Lane.CONTROL, self._tell)
        self.receive: Work[Came, Written] = Work("purchase_keys", Lane.CONTROL, self._receive)
        self.late: Work[Came, None] = Work("purchase_late", Lane.CONTROL, self._late)
        self.lease: Work[tuple[int, str], Purchase | None] = Work("purchase_lease", Lane.CONTROL, self._lease)
        self.renew: Work[tuple[str, Sequence[int]], None] = Work("purchase_renewal", Lane.CONTROL, self._renew)
        self.recover: Work[tuple[bool, Collection[int]], list[Purchase]] = Work(
            "purchase_recovery", Lane.CONTROL, self._recover
        )
        self.nudge: Work[tuple[str, str, str], None] = Work("purchase_hint", Lane.CONTROL, self._nudge)
        self.settle: Work[tuple[str, bool, str], Purchase] = Work("purchase_settled", Lane.CONTROL, self._settle)

    # --- intents ----------------------------------------------------------------------------------------------------

    def _intend(self, tx: Tx, intents: Sequence[Intent]) -> list[Purchase | Forbidden | Needed | BaseException]:
        if tx.postgresql:
            tx.query("SELECT pg_advisory_xact_lock(?)", (_INTENTS,))
        return [self._intend_one(tx, intent) for intent in intents]

    def _intend_one(self, tx: Tx, intent: Intent) -> Purchase | Forbidden | Needed:
        settings, wish = self._settings(), intent.wish
        if intent.level is not None:
            units = missing(tx.query, settings, wish.product, intent.level, tx.at, covers=wish.covers)
            if units < intent.least:
                return Needed(max(0, units))
        offers = tx.query(
            "SELECT removed_at, held FROM offer WHERE supplier = ? AND sku = ?", (wish.supplier, intent.sku)
        )
        if not offers or offers[0][0] is not None or offers[0][1] is not None:
            return Forbidden("offer", "its offer has just gone, or its price waits to be confirmed")
        facts = self.facts(tx.query, wish, intent.sku, tx.at)
        found = forbids(settings, wish, facts, tx.at)
        if found is not None:
            return found
        limit = ceiling(settings, wish, facts.last, tx.at)
        rate = rate_of(settings, wish.unit.currency, tx.at)
        assert limit is not None and rate is not None  # noqa: S101, PT018 - the guards let it pass
        spend = micro(limit.amount * rate * wish.quantity)
        tx.execute(
            "INSERT INTO purchase (id, reference, supplier, sku, product, quantity, received, state, reason, asked_by,"
            " listed, unit_cost, unit_limit, spend, open_spend, tries, polls, next_at, epoch, holder, leased_until,"
            " created_at) VALUES (?, ?, ?, ?, ?, ?, 0, 'intended', '', ?, ?, ?, ?, ?, 0, 0, 0, 0, 1, ?, ?, ?)",
            (
                intent.id,
                intent.reference,
                wish.supplier,
                intent.sku,
                wish.product.sku,
                wish.quantity,
                intent.asked_by,
                intent.listed,
                str(wish.unit),
                str(limit),
                spend,
                intent.holder,
                tx.now() + LEASE_S,
                tx.at,
            ),
        )
        made = self._row(tx, intent.id)
        tx.audit("purchase.intended", **_named(made), quantity=made.quantity, spend=spend, by=made.asked_by)
        return made

    def facts(self, ask: Ask, wish: Wish, sku: str, now: int) -> Facts:
        """What the guards go by."""
        ((disputes,),) = ask(
            "SELECT count(*) FROM purchase WHERE closed_at IS NULL AND state = 'disputed' AND product = ?"
            " AND supplier = ? AND sku = ?",
            (wish.product.sku, wish.supplier, sku),
        )
        return Facts(
            spent=spent(ask, wish.supplier, now),
            last=last_price(ask, wish.product.sku, wish.supplier, sku),
            account=account(ask, wish.supplier),
            disputes=int(disputes),
            free=_free(self._settings().daemon.state_dir),
            fenced=bool(ask("SELECT 1 FROM meta WHERE name = ?", (RESTORE_FENCE,))),
        )

    # --- sending ----------------------------------------------------------------------------------------------------

    def _send(self, tx: Tx, payloads: Sequence[Send]) -> list[Purchase | Forbidden | BaseException]:
        return [self._send_one(tx, payload) for payload in payloads]

    def _send_one(self, tx: Tx, wanted: Send) -> Purchase | Forbidden | BaseException:
        before = self._held(tx, wanted.held)
        if isinstance(before, BaseException):
            return before
        expected = PurchaseState.UNKNOWN if wanted.again else PurchaseState.INTENDED
        if before.state != expected:
            return ConflictError(f"purchase {before.reference} is {before.state} already")
        if wanted.again is not None:
            found = forbids(
                self._settings(),
                wanted.again,
                self.facts(tx.query, wanted.again, before.sku, tx.at),
                tx.at,
                counted=True,
            )
            if found is not None:
                return found
        tx.execute(
            "UPDATE purchase SET state = 'sent', tries = tries + 1, sent_at = ?, next_at = 0 WHERE id = ?",
            (tx.at, before.id),
        )
        tx.audit("purchase.sent", **_named(before), tries=before.tries + 1)
        return self._row(tx, before.id)

    # --- outcomes ---------------------------------------------------------------------------------------------------

    def _tell(self, tx: Tx, payloads: Sequence[Told]) -> list[Purchase | BaseException]:
        return [self._tell_one(tx, payload) for payload in payloads]

    def _tell_one(self, tx: Tx, told: Told) -> Purchase | BaseException:
        before = self._held(tx, told.held)
        if isinstance(before, BaseException):
            return before
        state, same = told.state, told.state == before.state
        disputed = state == PurchaseState.DISPUTED
        due_in = DISPUTED_AGAIN_S if disputed and not same else told.due_in
        next_at = None if due_in is None else tx.now() + due_in
        closed = state in {PurchaseState.REFUSED, PurchaseState.REFUNDED}
        unknown = state == PurchaseState.UNKNOWN
        missing = before.quantity - before.received
        spend = before.spend if not closed else _share(before.spend, before.received, before.quantity)
        tx.execute(
            "UPDATE purchase SET state = ?, reason = ?, next_at = ?, polls = ?, spend = ?, open_spend = ?,"
            " unknown_at = CASE WHEN ? = 1 THEN coalesce(unknown_at, ?) ELSE unknown_at END, closed_at = ?,"
            " supplier_order = coalesce(?, supplier_order), holder = NULL, leased_until = NULL WHERE id = ?",
            (
                str(state),
                told.reason[:_WORDS],
                next_at,
                before.polls + int(told.denied or not unknown) if same else 0,
                spend,
                _share(before.spend, missing, before.quantity) if disputed else 0,
                int(unknown),
                tx.at,
                tx.at if closed else None,
                told.order_id,
                before.id,
            ),
        )
        kind = str(state) if not same else "not_found" if told.denied else "waits" if due_in is None else ""
        kind = "" if same and disputed else kind
        if kind:
            tx.audit(f"purchase.{kind}", **_named(before), why=told.reason[:_WORDS])
        if closed:
            self._end_source(tx, before)
        return self._row(tx, before.id)

    def _receive(self, tx: Tx, payloads: Sequence[Came]) -> list[Written | BaseException]:
        return [self._receive_one(tx, payload) for payload in payloads]

    def _receive_one(self, tx: Tx, came: Came) -> Written | BaseException:
        """Keys, quarantine, what the supplier calls them, and what becomes of the purchase: all or nothing."""
        before = self._held(tx, came.held)
        if isinstance(before, BaseException):
            return before
        origin, mark = self._source(tx, before, came)
        counts = Counts()
        keys, slices = self._fresh(tx, origin, came.keys), self._fresh(tx, origin, came.slices)
        if keys or slices:
            counts = self._take_in(tx, origin, mark, keys, slices)
        received = self._received(tx, before)
        self._name_keys(tx, origin, came.keys)
        state, reason = came.state, came.reason
        if state == PurchaseState.FULFILLED and received < before.quantity:
            state = PurchaseState.DISPUTED
            again, unread = counts.duplicates, counts.quarantined - counts.duplicates
            said = [f"{again} were seen before"] if again else []
            said += [f"{unread} cannot be read"] if unread else []
            reason = f"{received} of {before.quantity} keys are good: {', '.join(said) or came.reason}"
        if state == before.state == PurchaseState.DISPUTED and received == before.received:
            reason = before.reason  # nothing has come since
        due_in = max(came.due_in or 0.0, DISPUTED_AGAIN_S) if state == PurchaseState.DISPUTED else came.due_in
        spend, charged = before.spend, None if came.charged is None else str(came.charged)
        landed = self._settings().currency.landed(came.charged)
        if landed is not None and landed >= 0:
            spend = micro(landed)
        if state == PurchaseState.REFUNDED:
            # What was charged may be told less the refund: its share of that would count the refund twice.
            spend = _share(max(spend, before.spend), received, before.quantity)
        lost = _share(spend, before.quantity - received, before.quantity) if state == PurchaseState.DISPUTED else 0
        open_still = state in {PurchaseState.ACCEPTED, PurchaseState.DISPUTED}
        tx.execute(
            "UPDATE purchase SET state = ?, reason = ?, received = ?, spend = ?, open_spend = ?,"
            " charged = coalesce(?, charged), supplier_order = coalesce(?, supplier_order), polls = ?, next_at = ?,"
            " closed_at = ?, holder = NULL, leased_until = NULL WHERE id = ?",
            (
                str(state),
                reason[:_WORDS],
                received,
                spend,
                lost,
                charged,
                came.order_id,
                before.polls + 1 if before.state == state else 0,
                tx.now() + due_in if open_still and due_in is not None else None,
                None if open_still else tx.at,
                before.id,
            ),
        )
        if spend > before.spend:
            tx.audit("purchase.overcharged", **_named(before), spend=spend, allowed=before.spend)
        if state != before.state or received != before.received:
            tx.audit(
                f"purchase.{state}",
                **_named(before),
                received=received,
                spend=spend,
                open=lost,
                order=came.order_id,
                why=reason[:_WORDS],
                by=came.by,
            )
        if not open_still:
            self._end_source(tx, before)
        return Written(self._row(tx, before.id), counts)

    def _late(self, tx: Tx, payloads: Sequence[Came]) -> list[None]:
        """What came for a purchase that is closed, as slices: into quarantine, and it stays closed."""
        for came in payloads:
            before = self._row(tx, came.held.id)
            origin, mark = self._source(tx, before, came)
            # What was written before all the same, and only its acknowledgement was lost, is in the vault.
            mine = {
                bytes(fp)
                for (fp,) in tx.bulk(
                    "SELECT f.fp FROM rows JOIN fingerprint f ON f.fp = rows.fp JOIN vault_key k ON k.id = f.key_id"
                    " WHERE k.source_id = ?",
                    "fp bytes",
                    [(item.raw_fp,) for item in came.slices],
                    (origin.source_id,),
                )
            }
            slices = self._fresh(tx, origin, [item for item in came.slices if item.raw_fp not in mine])
            if slices:
                self._take_in(tx, origin, mark, (), slices)
            tx.audit("purchase.late", **_named(before), order=came.order_id, slices=len(slices))
            self._end_source(tx, before)
        return [None] * len(payloads)

    def _take_in(
        self, tx: Tx, origin: Origin, mark: int, keys: Sequence[SealedKey], slices: Sequence[SealedSlice]
    ) -> Counts:
        """One answer after the other: a card's place is its own. Of copies, since a unit may run again."""
        placed = [replace(key, position=mark + key.position) for key in keys]
        aside = [replace(item, position=mark + item.position) for item in slices]
        end = max([key.position for key in placed] + [item.position for item in aside])
        ((consumed,),) = tx.query("SELECT consumed FROM source WHERE id = ?", (origin.source_id,))
        size = sum(len(key.sealed) for key in placed)
        return self._vault.take_in(tx, Chunk(origin, placed, aside, consumed, consumed + size, end))

    def _source(self, tx: Tx, before: Purchase, came: Came) -> tuple[Origin, int]:
        """(the source of a purchase's keys: found again, or made; how far its cards are numbered)."""
        tx.execute(
            "INSERT INTO source (id, product, name, supplier, label, state, size, reading, position, consumed, cards,"
            " sealed, repeats, duplicates, quarantined, started_at, order_id)"
            " VALUES (?, ?, ?, ?, ?, 'taking', 0, ?, 0, 0, 0, 0, 0, 0, 0, ?, ?) ON CONFLICT (product, name) DO NOTHING",
            (
                self._vault.ids.next(),
                before.product,
                before.source,
                before.supplier,
                before.reference,
                came.reading,
                tx.at,
                came.order_id,
            ),
        )
        ((row_id, position),) = tx.query(
            "SELECT id, position FROM source WHERE product = ? AND name = ?", (before.product, before.source)
        )
        if came.order_id is not None:
            tx.execute("UPDATE source SET order_id = ?, state = 'taking' WHERE id = ?", (came.order_id, row_id))
        else:
            tx.execute("UPDATE source SET state = 'taking' WHERE id = ?", (row_id,))
        return Origin(row_id, before.source, before.product, came.issuer), position

    @staticmethod
    def _fresh(tx: Tx, origin: Origin, cards: Sequence[Sealed]) -> list[Sealed]:
        """Those that were not set aside with an earlier answer: each answer holds all that came so far."""
        if not cards:
            return []
        aside = Counter(
            bytes(raw_fp)
            for (raw_fp,) in tx.query("SELECT raw_fp FROM quarantine WHERE source_id = ?", (origin.source_id,))
        )
        fresh: list[Sealed] = []
        for card in cards:
            if aside[card.raw_fp]:
                aside[card.raw_fp] -= 1
            else:
                fresh.append(card)
        return fresh

    @staticmethod
    def _name_keys(tx: Tx, origin: Origin, keys: Iterable[SealedKey]) -> None:
        """What the supplier calls the keys that went into the vault."""
        named = [(key.id, key.supplier_key) for key in keys if key.supplier_key]
        if named:
            tx.bulk(
                "INSERT INTO supplier_key (key_id, name) SELECT rows.key_id, rows.name FROM rows"
                " JOIN vault_key k ON k.id = rows.key_id WHERE k.source_id = ? ON CONFLICT (key_id) DO NOTHING",
                "key_id int, name text",
                named,
                (origin.source_id,),
            )

    @staticmethod
    def _end_source(tx: Tx, before: Purchase) -> None:
        tx.execute(
            "UPDATE source SET state = 'taken', ended_at = ? WHERE product = ? AND name = ?",
            (tx.at, before.product, before.source),
        )

    # --- leases -----------------------------------------------------------------------------------------------------

    def _lease(self, tx: Tx, payloads: Sequence[tuple[int, str]]) -> list[Purchase | None]:
        """Take a purchase over, if nobody works on it, and it is neither being sent nor closed."""
        found: list[Purchase | None] = []
        for row_id, holder in payloads:
            now = tx.now()
            taken = tx.query(
                "UPDATE purchase SET holder = ?, epoch = epoch + 1, leased_until = ? WHERE id = ? AND closed_at IS NULL"
                " AND state NOT IN ('intended', 'sent')"
                " AND (leased_until IS NULL OR leased_until < ? OR leased_until > ?) RETURNING id",
                (holder, now + LEASE_S, row_id, now, now + _AHEAD_S),
            )
            found.append(self._row(tx, row_id) if taken else None)
        return found

    @staticmethod
    def _renew(tx: Tx, payloads: Sequence[tuple[str, Sequence[int]]]) -> list[None]:
        for holder, ids in payloads:
            tx.bulk(
                "UPDATE purchase SET leased_until = ? FROM rows WHERE purchase.id = rows.id AND holder = ?",
                "id int",
                [(row_id,) for row_id in sorted(ids)],
                (tx.now() + LEASE_S, holder),
            )
        return [None] * len(payloads)

    def _recover(self, tx: Tx, payloads: Sequence[tuple[bool, Collection[int]]]) -> list[list[Purchase]]:
        return [self._recover_all(tx, spare, everything=everything) for everything, spare in payloads]

    def _recover_all(self, tx: Tx, spare: Collection[int], *, everything: bool) -> list[Purchase]:
        """What was begun and has nobody to end it: never sent, or nobody knows what became of it.

        Those whose lease is over, but for what to ``spare``; ``everything``, where nobody else can be at work on this
        database. After a restore, what is open waits for a person: keys that came for it since the backup may be
        delivered already (T3).
        """
        lock = " ORDER BY id FOR UPDATE" if tx.postgresql else ""
        now = tx.now()
        rows = tx.query(
            f"SELECT {_COLUMNS} FROM purchase WHERE closed_at IS NULL AND state IN ('intended', 'sent')"  # noqa: S608
            f" AND (? = 1 OR leased_until IS NULL OR leased_until < ? OR leased_until > ?){lock}",
            (int(everything), now, now + _AHEAD_S),
        )
        found: list[Purchase] = []
        for before in (Purchase(*row) for row in rows if row[0] not in spare):
            sent = before.state == PurchaseState.SENT
            tx.execute(
                "UPDATE purchase SET state = ?, reason = ?, epoch = epoch + 1, holder = NULL, leased_until = NULL,"
                " next_at = ?, spend = ?, unknown_at = ?, closed_at = ?, polls = 0 WHERE id = ?",
                (
                    "unknown" if sent else "refused",
                    "its daemon stopped while it was sent" if sent else "never sent: its daemon stopped",
                    now if sent else None,
                    before.spend if sent else 0,
                    (before.unknown_at or tx.at) if sent else None,
                    None if sent else tx.at,
                    before.id,
                ),
            )
            tx.audit(f"purchase.{'unknown' if sent else 'refused'}", **_named(before), why="its daemon stopped")
            found.append(self._row(tx, before.id))
        if everything:
            tx.execute(
                "UPDATE purchase SET holder = NULL, leased_until = NULL, epoch = epoch + 1"
                " WHERE closed_at IS NULL AND holder IS NOT NULL"
            )
        if tx.query("SELECT 1 FROM meta WHERE name = ?", (RESTORE_FENCE,)):
            tx.execute(
                "UPDATE purchase SET next_at = NULL, reason = 'restored from a backup: look at the supplier'"
                " WHERE closed_at IS NULL AND state IN ('accepted', 'unknown', 'disputed')"
            )
        return found

    @staticmethod
    def _nudge(tx: Tx, payloads: Sequence[tuple[str, str, str]]) -> list[None]:
        """A supplier says that something happened: its order is due now."""
        for supplier, order_id, reference in payloads:
            tx.execute(
                "UPDATE purchase SET next_at = ? WHERE closed_at IS NULL AND supplier = ? AND next_at > ?"
                " AND state IN ('accepted', 'unknown', 'disputed') AND (reference = ? OR supplier_order = ?)",
                (tx.now(), supplier, tx.now(), reference, order_id),
            )
        return [None] * len(payloads)

    # --- a person decides -------------------------------------------------------------------------------------------

    def _settle(self, tx: Tx, payloads: Sequence[tuple[str, bool, str]]) -> list[Purchase | BaseException]:
        return [self._settle_one(tx, *payload) for payload in payloads]

    def _settle_one(self, tx: Tx, reference: str, charged: bool, by: str) -> Purchase | BaseException:  # noqa: FBT001
        """Without keys: charged, or not. Of a dispute: the loss is accepted, or the money came back."""
        lock = " FOR UPDATE" if tx.postgresql else ""
        rows = tx.query(f"SELECT {_COLUMNS} FROM purchase WHERE reference = ?{lock}", (reference,))  # noqa: S608
        before = Purchase(*rows[0]) if rows else None
        refused = undecidable(before, tx.now())
        if before is None or refused is not None:
            return refused or NotFoundError("there is no such purchase")
        received = self._received(tx, before)
        missing = before.quantity - received
        disputed = before.state == PurchaseState.DISPUTED
        if charged:
            state = PurchaseState.FULFILLED if disputed and not missing else PurchaseState.DISPUTED
            lost = 0 if disputed else _share(before.spend, missing, before.quantity)
            spend, closed = before.spend, tx.at if disputed else None
        else:
            state = PurchaseState.REFUSED if before.state == PurchaseState.UNKNOWN else PurchaseState.REFUNDED
            lost, closed = 0, tx.at
            spend = _share(before.spend, received, before.quantity)
        tx.execute(
            "UPDATE purchase SET state = ?, reason = ?, received = ?, spend = ?, open_spend = ?, closed_at = ?,"
            " next_at = ?, holder = NULL, leased_until = NULL, epoch = epoch + 1 WHERE id = ?",
            (
                str(state),
                f"{by} says {'' if charged else 'not '}charged",
                received,
                spend,
                lost,
                closed,
                None if closed is not None else tx.now() + DISPUTED_AGAIN_S,
                before.id,
            ),
        )
        tx.audit("purchase.resolved", **_named(before), state=str(state), charged=charged, open=lost, by=by)
        if closed is not None:
            self._end_source(tx, before)
        return self._row(tx, before.id)

    @staticmethod
    def _received(tx: Tx, before: Purchase) -> int:
        """Units in the vault: those that went there at once, and those that were released from quarantine since."""
        ((units,),) = tx.query(
            "SELECT coalesce(sum(s.sealed + (SELECT count(*) FROM quarantine q WHERE q.source_id = s.id"
            " AND q.state = 'released')), 0) FROM source s WHERE s.product = ? AND s.name = ?",
            (before.product, before.source),
        )
        return min(before.quantity, int(units))

    # --- rows -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _row(tx: Tx, row_id: int) -> Purchase:
        (row,) = tx.query(f"SELECT {_COLUMNS} FROM purchase WHERE id = ?", (row_id,))  # noqa: S608 - constant
        return Purchase(*row)

    @staticmethod
    def _held(tx: Tx, held: Held) -> Purchase | BaseException:
        """The purchase, locked; or why it may not be written."""
        lock = " FOR UPDATE" if tx.postgresql else ""
        rows = tx.query(f"SELECT {_COLUMNS} FROM purchase WHERE id = ?{lock}", (held.id,))  # noqa: S608 - constant
        before = Purchase(*rows[0])
        if (before.epoch, before.holder) != (held.epoch, held.holder):
            return LeaseLostError(f"purchase {before.reference} was taken over")
        return before


def undecidable(one: Purchase | None, now: float) -> SyncdError | None:
    """Why a person cannot decide about a purchase now, or None."""
    if one is None:
        return NotFoundError("there is no such purchase", hint="list them: syncd purchases list")
    if one.closed_at is not None:
        return ConflictError(f"purchase {one.reference} is {one.state}, and closed", hint="nothing is left to decide")
    if one.state in {PurchaseState.INTENDED, PurchaseState.SENT}:
        return ConflictError(f"purchase {one.reference} is being sent", hint="try again in a minute")
    if one.leased_until is not None and now <= one.leased_until <= now + _AHEAD_S:
        return ConflictError(f"purchase {one.reference} is being looked into", hint="try again in a minute")
    return None


def _free(folder: Path) -> int:
    """Bytes free on a folder's disk; none where nobody can say."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _named(one: Purchase) -> Mapping[str, Any]:
    return {"reference": one.reference, "supplier": one.supplier, "product": one.product}


def _money(text: str) -> Money:
    amount, _, currency = text.partition(" ")
    return Money(Decimal(amount), currency)


def _share(spend: int, units: int, quantity: int) -> int:
    """A part of the money, rounded up."""
    return -(-spend * max(0, units) // quantity)


def offer_as_json(row: Sequence[Any]) -> str:
    """An offer's row as a purchase keeps it."""
    return msgspec.json.encode(list(row)).decode()


def held_by(one: Purchase) -> Held:
    """The right that came with a row."""
    return Held(one.id, one.epoch, one.holder or "")
