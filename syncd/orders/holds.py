"""What is held for an order: the keys of reservations, inside a transaction. Called by deliveries and reservations.

A key that is held is in state ``reserved`` and has a row in ``reserved_key``. Whoever locks the reservation's row may
move its keys, and nobody else. A reservation that is paid before all of its keys are there becomes a pending delivery
with the reservation's id, so that its keys stay held for it, and it keeps its place in line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from syncd.model import ReservationState
from syncd.store.database import Change, Row, Tx


@dataclass(slots=True, repr=False)
class Hold:
    """A reservation that is locked. ``keys``: (id, sealed_sku, source_id, expires_at, sealed) of each."""

    id: int
    product: str
    quantity: int
    promised: int
    keys: list[Row] = field(default_factory=list)


def locked(tx: Tx, ids: Collection[int]) -> dict[int, Hold]:
    """Those of these reservations that hold keys still, with their keys, locked until the transaction ends."""
    lock = " ORDER BY r.id FOR UPDATE OF r" if tx.postgresql else ""
    rows = tx.bulk(
        "SELECT r.id, r.product, r.quantity, r.promised FROM rows JOIN reservation r ON r.id = rows.id"  # noqa: S608
        f" WHERE r.state = 'held'{lock}",
        "id int",
        [(one,) for one in sorted(ids)],
    )
    found = {row[0]: Hold(*row) for row in rows}
    for reservation, *key in held_keys(tx, found):
        found[reservation].keys.append(tuple(key))
    return found


def held_keys(tx: Tx, ids: Collection[int]) -> list[Row]:
    """(reservation, key, sealed_sku, source_id, expires_at, sealed) of each key that is held for one of these."""
    return tx.bulk(
        "SELECT h.reservation_id, k.id, k.sealed_sku, k.source_id, k.expires_at, k.sealed FROM rows"
        " JOIN reserved_key h ON h.reservation_id = rows.id JOIN vault_key k ON k.id = h.key_id",
        "id int",
        [(one,) for one in sorted(ids)],
    )


def hold(tx: Tx, reservation: int, keys: Collection[int]) -> bool:
    """Hold keys that are available and locked; whether all of them still were."""
    rows = [(key,) for key in sorted(keys)]
    return (
        not rows
        or tx.change(
            [
                Change(
                    "INSERT INTO reserved_key (key_id, reservation_id) SELECT id, ? FROM rows WHERE true"
                    " ON CONFLICT (key_id) DO NOTHING",
                    "id int",
                    rows,
                    (reservation,),
                ),
                Change(
                    "UPDATE vault_key SET state = 'reserved' FROM rows WHERE vault_key.id = rows.id"
                    " AND vault_key.state || '' = 'available'",
                    "id int",
                    rows,
                ),
            ]
        )
        == [len(rows)] * 2
    )


def let_go(tx: Tx, keys: Iterable[int]) -> None:
    """Make keys available again, or set those aside that have expired meanwhile. Their reservation is locked."""
    rows = [(key,) for key in sorted(keys)]
    tx.change(
        [
            Change("DELETE FROM reserved_key WHERE key_id IN (SELECT id FROM rows)", "id int", rows),
            Change(
                "UPDATE vault_key SET state = CASE WHEN vault_key.expires_at <= ? THEN 'expired' ELSE 'available' END"
                " FROM rows WHERE vault_key.id = rows.id AND vault_key.state || '' = 'reserved'",
                "id int",
                rows,
                (tx.at,),
            ),
        ]
    )


def end(tx: Tx, reservations: Iterable[int], state: ReservationState) -> None:
    """Move reservations that are held, and locked, to another state. What becomes of their keys is the caller's."""
    tx.change(
        [
            Change(
                "UPDATE reservation SET state = ?, ended_at = ? FROM rows WHERE reservation.id = rows.id"
                " AND reservation.state = 'held'",
                "id int",
                [(one,) for one in sorted(reservations)],
                (str(state), tx.at),
            )
        ]
    )


def set_free(tx: Tx, held: Collection[Hold], state: ReservationState) -> None:
    """End reservations and make their keys available."""
    end(tx, [one.id for one in held], state)
    let_go(tx, [key[0] for one in held for key in one.keys])
