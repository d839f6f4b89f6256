"""A daemon with a planted bug, for the negative controls: PLANTED names the bug, the rest is the command line's."""

from __future__ import annotations

import os
from typing import Any

from syncd.cli.app import main
from syncd.inventory.offers import Offers
from syncd.inventory.sync import Sync
from syncd.orders.deliveries import Deliveries
from syncd.store import database
from syncd.store.database import Change, Database, Tx, Writer


def acknowledge_before_commit() -> None:
    """Callers are answered, and only then is it written."""
    acknowledge, transact, commit = database._acknowledge, Writer._transact, Tx.commit
    under_way: list[Any] = []

    def transacted(writer: Writer, batch: Any) -> None:
        under_way[:] = batch
        transact(writer, batch)

    def committed(tx: Tx) -> None:
        acknowledge(under_way)
        commit(tx)

    Writer._transact = transacted
    Tx.commit = committed
    database._acknowledge = lambda units: None


def allot_without_the_unique_constraint() -> None:
    """Keys are handed over without being marked, and no constraint objects."""
    check = Database.check_schema

    def checked(db: Database) -> None:
        check(db)
        with db.engine.connect() as connection:
            if db.postgresql:
                connection.exec_driver_sql("ALTER TABLE allotment DROP CONSTRAINT IF EXISTS pk_allotment")
            else:
                connection.exec_driver_sql("CREATE TABLE other AS SELECT * FROM allotment")
                connection.exec_driver_sql("DROP TABLE allotment")
                connection.exec_driver_sql("ALTER TABLE other RENAME TO allotment")

    def hand_over(_self: Deliveries, tx: Tx, allotments: Any, *before: Change) -> None:
        tx.change(before)
        for row in allotments:
            tx.execute("INSERT INTO allotment (key_id, delivery_id, unit) VALUES (?, ?, ?)", row)

    Database.check_schema = checked
    Deliveries._hand_over = hand_over


def one_run_at_a_time() -> None:
    """Suppliers are synced one after the other: whoever is slow holds up all."""
    begin = Sync._begin

    async def waiting(sync: Sync, name: str, asked_by: str, **how: Any) -> int | None:
        return None if sync._runs else await begin(sync, name, asked_by, **how)

    Sync._begin = waiting


def whatever_is_listed_is_believed() -> None:
    """No listing is suspicious."""
    Offers._stands = staticmethod(lambda *_: True)


BUGS = (
    acknowledge_before_commit,
    allot_without_the_unique_constraint,
    one_run_at_a_time,
    whatever_is_listed_is_believed,
)

if __name__ == "__main__":
    {bug.__name__: bug for bug in BUGS}[os.environ["PLANTED"]]()
    main()
