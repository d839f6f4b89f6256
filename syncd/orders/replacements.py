"""Replacements (补发): another key for one that does not work, and what its supplier makes of the bad one.

Called by the storefronts and by the schedule. A key is replaced once, in one transaction: withdrawn from its delivery,
marked defective, another one put in its place, or the delivery waits for one, before all that came later. Its claim at
the supplier is made afterwards, in the background, and never twice: it is recorded as asked before it is sent, and an
answer that is lost leaves it so, for a person to find out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog

from syncd.adapter import Auth, Config, NotSent, RateLimited, Refused
from syncd.errors import ConflictError, NotFoundError, SyncdError
from syncd.inventory.intake import IMPORT
from syncd.model import utc
from syncd.orders.deliveries import REPLACING, Allotted, Deliveries, Delivery
from syncd.store.database import Lane, Tx, Work, Writer

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from syncd.inventory.quarantine import Upstream

log = structlog.get_logger(__name__)

Reason = Literal["already_used", "expired", "invalid", "other", "wrong_product", "wrong_region"]
"""What may be wrong with a key. Words and no text: a text would sooner or later hold the key."""
_NOT_NOW: Final = (NotSent, RateLimited, Auth, Config)
_NOT_TAKEN: Final = "not taken back"
_SOONEST_S: Final = 60.0
_LATEST_S: Final = 86400.0
_AT_ONCE: Final = 50
_RECENT: Final = 10_000
"""Of so many of the last keys delivered the share of defective ones is told."""


class ReplacementLimitError(ConflictError):
    """So many keys of this order line were replaced already that the operator decides about more."""

    code = "replacement_limit"


@dataclass(frozen=True, slots=True)
class Asked:
    """A key to be replaced. ``most`` is how many of the order line may be; None: the operator asks."""

    shop: str
    order_ref: str
    key_id: int
    reason: str
    by: str
    most: int | None


class Replacements:
    """Replaces keys, and claims the bad ones. ``upstream`` finds a supplier by its name, None where nobody answers."""

    def __init__(
        self,
        deliveries: Deliveries,
        writer: Writer,
        most: Callable[[], int],
        upstream: Callable[[str], Upstream | None] = lambda _: None,
    ) -> None:
        self._deliveries = deliveries
        self._writer = writer
        self._most = most
        self._upstream = upstream
        self._replace: Work[Asked, Allotted] = Work("replace_defective", Lane.DELIVERY, self._run_replace)
        self._claim: Work[_Step, list[int]] = Work("claim", Lane.CONTROL, _run_claims)

    # --- another key ------------------------------------------------------------------------------------------------

    async def replace(self, shop: str, order_ref: str, key_id: int, reason: Reason, *, by: str = "") -> Delivery:
        """The delivery with another key in the place of this one, or pending until there is one.

        The same key again: the delivery as it is. ``by`` is the operator's name, who is not limited. Raises
        NotFoundError (no such delivery, or no such key in it), ReplacementLimitError, FencedError.
        """
        self._deliveries.check_fence()
        asked = Asked(shop, order_ref, key_id, reason, by or f"shop {shop}", None if by else self._most())
        allotted = await self._writer.submit(self._replace, asked)
        answer = await self._deliveries.opened(order_ref, allotted, self._deliveries.min_life(allotted.product))
        if answer.state == "pending" and not answer.repeat:
            self._deliveries.short(answer.product)
        return answer

    def _run_replace(self, tx: Tx, payloads: Sequence[Asked]) -> list[Allotted | BaseException]:
        return [self._replace_one(tx, asked) for asked in payloads]

    def _replace_one(self, tx: Tx, asked: Asked) -> Allotted | BaseException:
        lock = " FOR UPDATE" if tx.postgresql else ""
        found = tx.query(
            f"SELECT id, product FROM delivery WHERE shop = ? AND order_ref = ?{lock}",  # noqa: S608 - constant
            (asked.shop, asked.order_ref),
        )
        if not found:
            return NotFoundError("there is no such delivery")
        delivery, product = found[0]
        own = tx.query(
            "SELECT a.unit, a.withdrawn_at, s.supplier FROM allotment a JOIN vault_key k ON k.id = a.key_id"
            " JOIN source s ON s.id = k.source_id WHERE a.key_id = ? AND a.delivery_id = ?",
            (asked.key_id, delivery),
        )
        if not own:
            return NotFoundError("this delivery has no such key", hint="its keys' ids are in its answer")
        unit, withdrawn_at, supplier = own[0]
        if withdrawn_at is not None:  # replaced before
            return self._deliveries.current(tx, delivery)
        if asked.most is not None:
            ((before,),) = tx.query("SELECT count(*) FROM replacement WHERE delivery_id = ?", (delivery,))
            if before >= asked.most:
                return ReplacementLimitError(
                    "so many keys of this order were replaced already", hint="ask the operator"
                )
        tx.execute("UPDATE allotment SET withdrawn_at = ? WHERE key_id = ?", (tx.at, asked.key_id))
        tx.execute("UPDATE vault_key SET state = 'defective' WHERE id = ?", (asked.key_id,))
        tx.execute(
            "INSERT INTO replacement (key_id, delivery_id, unit, reason, supplier, claim, claim_note, created_at)"
            " VALUES (?, ?, ?, ?, ?, 'open', '', ?)",
            (asked.key_id, delivery, unit, asked.reason, supplier, tx.at),
        )
        tx.audit(
            "key.defective",
            key=asked.key_id,
            delivery=delivery,
            product=product,
            supplier=supplier,
            reason=asked.reason,
            by=asked.by,
        )
        allotted = self._deliveries.refill(tx, delivery, self._deliveries.min_life(product), REPLACING)
        allotted.repeat = False
        return allotted

    # --- the supplier's part ----------------------------------------------------------------------------------------

    async def claim_due(self) -> None:
        """Claim defective keys at their suppliers, once an order; to be called now and then.

        None while the restore fence stands: what was to be claimed at the backup may have been claimed since (T3).
        """
        if self._deliveries.fenced:
            return
        by_supplier: dict[str, list[list[_Claim]]] = {}
        for (supplier, _), group in (await asyncio.to_thread(self._due)).items():
            by_supplier.setdefault(supplier, []).append(group)
        await asyncio.gather(*[self._claim_all(supplier, groups) for supplier, groups in by_supplier.items()])

    def _due(self) -> dict[tuple[str, str], list[_Claim]]:
        """(supplier, its order) → what is to be claimed of it now."""
        database = self._writer.database
        sql = (
            f"SELECT {_CLAIM} WHERE r.claim = 'open' AND (r.claim_at IS NULL OR r.claim_at <= ?)"
            f" ORDER BY r.created_at LIMIT {_AT_ONCE}"
        )
        found: dict[tuple[str, str], list[_Claim]] = {}
        with database.read() as connection:
            for row in connection.exec_driver_sql(database.marked(sql), (database.clock.now(),)):
                one = _Claim(*row)
                found.setdefault((one.supplier, one.order or f"key {one.key}"), []).append(one)
        return found

    async def _claim_all(self, supplier: str, groups: Sequence[Sequence[_Claim]]) -> None:
        for group in groups:
            await self._claim_one(supplier, group)

    async def _claim_one(self, supplier: str, group: Sequence[_Claim]) -> None:
        """One order's keys: give them back where the supplier takes that, else complain."""
        upstream = self._upstream(supplier)
        if upstream is None and supplier != IMPORT:
            await self._note(group, "open", "open", "the supplier is not in the configuration, or not enabled")
            return
        order, able = group[0].order, upstream.capabilities if upstream else frozenset()
        back = [one for one in group if one.name and not one.refused] if "return_keys" in able else []
        if order and back:
            await self._ask(upstream, back, "return_keys", order, [one.name for one in back])
        rest = [one for one in group if one not in back]
        if order and rest and "complain" in able:
            await self._ask(upstream, rest, "complain", order, _complaint(rest))
        elif rest:
            refused = [one for one in rest if one.refused]
            await self._note(refused, "open", "refused", _NOT_TAKEN)
            nobody = [one for one in rest if one not in refused]
            await self._note(nobody, "open", "impossible", "its supplier takes no claims, or nobody knows its order")

    async def _ask(self, upstream: Any, group: Sequence[_Claim], verb: str, *args: Any) -> None:
        """Send one claim. Recorded as asked before it is sent: only one daemon gets there, and only once."""
        mine = set(await self._note(group, "open", "asking", ""))
        group = [one for one in group if one.key in mine]
        if not group:
            return
        try:
            answer = await upstream.acall(verb, *args)
        except _NOT_NOW as error:
            before = f"{_NOT_TAKEN}; " if group[0].refused else ""
            await self._note(group, "asking", "open", f"{before}{verb}: {error.code}")
        except Refused as error:
            again = verb == "return_keys"
            await self._note(group, "asking", "open" if again else "refused", _NOT_TAKEN if again else error.code)
        except Exception as error:  # noqa: BLE001 - whatever it was, the claim may have arrived
            why = error.code if isinstance(error, SyncdError) else type(error).__name__
            log.warning("claim_unanswered", supplier=group[0].supplier, verb=verb, keys=len(group), why=why)
            await self._note(group, "asking", "asking", f"{verb}: no answer that could be understood ({why})")
        else:
            if verb == "complain":
                await self._note(group, "asking", "complained", f"complaint {str(answer)[:100]}".strip())
                return
            said = answer if isinstance(answer, Mapping) else {}
            taken = [one for one in group if said.get(one.name) is True]
            kept = [one for one in group if said.get(one.name) is False]
            silent = [one for one in group if one not in taken and one not in kept]
            await self._note(taken, "asking", "returned", "")
            await self._note(kept, "asking", "open", _NOT_TAKEN)
            await self._note(silent, "asking", "asking", f"{verb}: the supplier did not say what became of it")

    async def _note(self, group: Sequence[_Claim], was: str, claim: str, note: str, by: str = "") -> list[int]:
        if not group:
            return []
        return await self._writer.submit(self._claim, _Step([one.key for one in group], was, claim, note, by))

    async def settle(self, key: int, claim: Literal["returned", "complained", "refused", "open"], by: str) -> None:
        """Say what became of a claim whose answer was lost: somebody has asked the supplier. ``open``: nothing did, so
        that it is made again. Raises ConflictError for one that is not being asked.
        """
        step = _Step([key], "asking", claim, _NOT_TAKEN if claim == "refused" else "", by)
        if not await self._writer.submit(self._claim, step):
            raise ConflictError("no claim of this key waits for an answer", hint="list them: syncd deliveries claims")

    # --- looking (these block: call them from a thread) -------------------------------------------------------------

    def claims(
        self, *, claim: str | None = None, delivery: int | None = None, limit: int = 200
    ) -> list[dict[str, Any]]:
        """Replaced keys, newest first, and what became of their claims."""
        where, params = ["1 = 1"], list[Any]()
        for column, value in (("r.claim", claim), ("r.delivery_id", delivery)):
            if value is not None:
                where.append(f"{column} = ?")
                params.append(value)
        sql = (
            "SELECT r.key_id, d.shop, d.order_ref, d.product, r.unit, r.reason, r.supplier, r.claim, r.claim_note,"  # noqa: S608
            " r.created_at FROM replacement r JOIN delivery d ON d.id = r.delivery_id"
            f" WHERE {' AND '.join(where)} ORDER BY r.created_at DESC, r.key_id DESC LIMIT ?"
        )
        names = ("key", "shop", "order_ref", "product", "unit", "reason", "supplier", "claim", "note", "created_at")
        database = self._writer.database
        with database.read() as connection:
            rows = connection.exec_driver_sql(database.marked(sql), (*params, limit)).all()
        return [{**dict(zip(names, row, strict=True)), "key": str(row[0]), "created_at": utc(row[9])} for row in rows]


_DELIVERED: Final = (
    "SELECT s.supplier, count(*), min(a.delivery_id) FROM"  # noqa: S608 - a number of our own
    " (SELECT key_id, delivery_id FROM allotment WHERE withdrawn_at IS NULL"
    f" ORDER BY delivery_id DESC LIMIT {_RECENT}) a"
    " JOIN vault_key k ON k.id = a.key_id JOIN source s ON s.id = k.source_id GROUP BY s.supplier"
)


def claims_asking(connection: Connection) -> dict[str, int]:
    """Supplier → claims whose answer is due, or was lost."""
    asking = "SELECT supplier, count(*) FROM replacement WHERE claim = 'asking' GROUP BY supplier"
    return {row[0]: row[1] for row in connection.exec_driver_sql(asking)}


def defects(connection: Connection) -> dict[str, tuple[int, int]]:
    """Supplier → (keys that turned out to be defective, keys delivered) among the last 10,000 delivered.

    What the supplier has shown to be a good key does not count against it.
    """
    good = connection.exec_driver_sql(_DELIVERED).all()
    since = min((row[2] for row in good), default=0) if sum(row[1] for row in good) >= _RECENT else 0
    bad = connection.exec_driver_sql(
        "SELECT supplier, count(*) FROM replacement"  # noqa: S608 - a number of our own
        f" WHERE delivery_id >= {since:d} AND claim <> 'refused' GROUP BY supplier"
    ).all()
    defective = {row[0]: row[1] for row in bad}
    delivered = {row[0]: row[1] for row in good}
    return {
        name: (defective.get(name, 0), delivered.get(name, 0) + defective.get(name, 0))
        for name in delivered.keys() | defective.keys()
    }


@dataclass(frozen=True, slots=True)
class _Claim:
    """A defective key, by the supplier's own names of it and of its order."""

    key: int
    supplier: str
    order: str | None
    name: str | None
    reason: str
    note: str

    @property
    def refused(self) -> bool:
        """Whether the supplier has said that it does not take it back."""
        return self.note.startswith(_NOT_TAKEN)


_CLAIM: Final = (
    "r.key_id, r.supplier, s.order_id, n.name, r.reason, r.claim_note FROM replacement r"
    " JOIN vault_key k ON k.id = r.key_id JOIN source s ON s.id = k.source_id"
    " LEFT JOIN supplier_key n ON n.key_id = r.key_id"
)


def _complaint(group: Sequence[_Claim]) -> str:
    """What the supplier is told: which keys by its own names, and what is wrong with them."""
    told = [f"{one.name or 'one key'}: {one.reason.replace('_', ' ')}" for one in group]
    return f"{len(group)} of the keys of this order do not work. {'; '.join(told)}."


@dataclass(frozen=True, slots=True)
class _Step:
    """Move the claims of keys from one state to another."""

    keys: Sequence[int]
    was: str
    claim: str
    note: str
    by: str


def _run_claims(tx: Tx, payloads: Sequence[_Step]) -> list[list[int] | BaseException]:
    return [_step(tx, payload) for payload in payloads]


def _step(tx: Tx, step: _Step) -> list[int]:
    """Which of them were in the state that was expected, and are moved on."""
    lock = " ORDER BY r.key_id FOR UPDATE OF r" if tx.postgresql else ""
    rows = tx.bulk(
        f"SELECT r.key_id, r.created_at FROM rows JOIN replacement r ON r.key_id = rows.id WHERE r.claim = ?{lock}",  # noqa: S608
        "id int",
        [(key,) for key in sorted(step.keys)],
        (step.was,),
    )
    if not rows:
        return []
    # Ever later, as long again as it has taken so far; a return that was refused is complained of at once.
    age = tx.at - min(row[1] for row in rows)
    later = tx.at + min(max(age, _SOONEST_S), _LATEST_S) if step.claim == "open" and step.note != _NOT_TAKEN else None
    tx.bulk(
        "UPDATE replacement SET claim = ?, claim_note = ?, claim_at = ? FROM rows WHERE replacement.key_id = rows.id",
        "id int",
        [row[:1] for row in rows],
        (step.claim, step.note, None if step.by else later),
    )
    keys = sorted(row[0] for row in rows)
    if step.claim == "returned":
        tx.bulk(
            "UPDATE vault_key SET state = 'returned' FROM rows WHERE vault_key.id = rows.id"
            " AND vault_key.state || '' = 'defective'",
            "id int",
            [(key,) for key in keys],
        )
    if (step.was, step.claim) != ("open", "open"):  # one that is only put off is no change worth a record
        tx.audit("claim." + step.claim, keys=keys, note=step.note, **({"by": step.by} if step.by else {}))
    return keys
