"""A vault with deliveries on a fresh database of each engine, and a way to fill it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from syncd import audit
from syncd.metrics import Metrics
from syncd.model import NEVER, CardKey, Clock, IdSource
from syncd.orders.deliveries import Deliveries
from syncd.orders.reservations import Reservations
from syncd.store.database import Database, Lane, Tx, Work, Writer
from syncd.vault.crypto import new_kek
from syncd.vault.keyring import Keyring
from syncd.vault.vault import Chunk, Counts, Origin, Slice, Vault, load_ring


class SetClock(Clock):
    """A clock that stands where the test puts it."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def now(self) -> float:
        return self.seconds


def _source(tx: Tx, payloads: Any) -> list[None]:
    for row in payloads:
        tx.execute(
            "INSERT INTO source (id, product, name, supplier, label, state, size, reading, position, consumed, cards,"
            " sealed, repeats, duplicates, quarantined, started_at)"
            " VALUES (?, ?, ?, 'feed', 'keys.txt', 'taking', 1, '', 0, 0, 0, 0, 0, 0, 0, 1)",
            row,
        )
    return [None] * len(payloads)


SOURCE: Work[tuple[int, str, str], None] = Work("source", Lane.CONTROL, _source)


@dataclasses.dataclass
class Stack:
    """One daemon's worth of vault and deliveries."""

    database: Database
    writer: Writer
    ring: Keyring
    ids: IdSource
    vault: Vault
    deliveries: Deliveries
    clock: SetClock
    products: dict[str, Any]
    metrics: Metrics
    reservations: Reservations
    limits: SimpleNamespace
    upstream: dict[str, int]

    def stop(self) -> None:
        self.writer.stop()
        self.database.close()

    def add(self, product: str, *codes: str, expires_at: int = NEVER, source: str = "") -> Counts:
        """Seal codes into the vault as one payload of its own."""
        self.products.setdefault(product, SimpleNamespace(min_life=0, takes=range(1, 1001), on_shortage="refuse"))
        source_id = self.ids.next()
        origin = Origin(source_id, source or f"feed:{source_id}", product)
        self.writer.call(SOURCE, (source_id, product, origin.name))
        slices = [
            Slice(
                number + 1,
                code.encode(),
                CardKey({"code": code}, {"code": code}, code, expires_at),
                code.upper().replace("-", ""),
                "",
                "",
            )
            for number, code in enumerate(codes)
        ]
        keys, held = self.vault.seal(origin, slices)
        return self.writer.call(self.vault.intake, Chunk(origin, keys, held, 0, len(codes), len(codes)))

    def rows(self, sql: str) -> list[Any]:
        with self.database.read() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(sql)]

    def tamper(self, *statements: str) -> None:
        """What somebody with the database's password, but without its KEK, could do."""
        with self.database.engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def verified(self) -> int:
        with self.database.read() as connection:
            return audit.verify(connection, self.ring.audit_mac).entries


KEK = new_kek()


def build(url: str) -> Stack:
    clock = SetClock()
    database = Database(url, clock=clock)
    database.check_schema()
    ring = load_ring(database, KEK, create=KEK)
    metrics = Metrics("0")
    writer = Writer(database, audit.chain(ring.audit_mac), metrics=metrics)
    writer.start()
    ids = IdSource(node=writer.node)
    vault = Vault(database, writer, ring, ids)
    products: dict[str, Any] = {}
    deliveries = Deliveries(vault, writer, ids, lambda: products, metrics)
    deliveries.buying = SimpleNamespace(can_buy=lambda _product, _quantity: True, short=lambda _product: None)
    limits = SimpleNamespace(ttl=900.0, per_customer=10, per_product=100.0)
    upstream: dict[str, int] = {}
    reservations = Reservations(
        deliveries, writer, ring, ids, lambda: products, lambda: limits, lambda product: upstream.get(product, 0)
    )
    return Stack(
        database, writer, ring, ids, vault, deliveries, clock, products, metrics, reservations, limits, upstream
    )


@pytest.fixture
def make_stack(database_url: str) -> Iterator[Callable[[], Stack]]:
    """Build one more daemon on the same database (only PostgreSQL takes several)."""
    built: list[Stack] = []

    def make() -> Stack:
        built.append(build(database_url))
        return built[-1]

    yield make
    for stack in built:
        stack.stop()


@pytest.fixture
def stack(make_stack: Callable[[], Stack]) -> Stack:
    return make_stack()
