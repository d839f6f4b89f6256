"""One daemon's vault and deliveries in this process, and a quick way to fill it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from syncd import audit
from syncd.metrics import Metrics
from syncd.model import CardKey, IdSource
from syncd.orders.deliveries import Deliveries
from syncd.store.database import Database, Lane, Tx, Work, Writer
from syncd.vault.crypto import new_kek
from syncd.vault.vault import Chunk, Origin, Slice, Vault, load_ring

CHUNK = 2000


def _source(tx: Tx, payloads: Any) -> list[None]:
    for row in payloads:
        tx.execute(
            "INSERT INTO source (id, product, name, supplier, label, state, size, reading, position, consumed, cards,"
            " sealed, repeats, duplicates, quarantined, started_at)"
            " VALUES (?, ?, ?, 'bench', 'bench', 'taking', 1, '', 0, 0, 0, 0, 0, 0, 0, 1)",
            row,
        )
    return [None] * len(payloads)


SOURCE: Work[tuple[int, str, str], None] = Work("source", Lane.CONTROL, _source)


class Parts:
    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.database.check_schema()
        kek = new_kek()
        self.ring = load_ring(self.database, kek, create=kek)
        metrics = Metrics("bench")
        self.writer = Writer(self.database, audit.chain(self.ring.audit_mac), metrics=metrics)
        self.writer.start()
        self.ids = IdSource(node=self.writer.node)
        self.vault = Vault(self.database, self.writer, self.ring, self.ids)
        products: Any = {
            f"bench-{n}": SimpleNamespace(min_life=0, takes=range(1, 1001), on_shortage="refuse") for n in range(5)
        }
        self.deliveries = Deliveries(self.vault, self.writer, self.ids, lambda: products, metrics)

    def fill(self, keys: int, salt: str, product: str = "bench-0") -> None:
        source_id = self.ids.next()
        origin = Origin(source_id, f"feed:{salt}", product)
        self.writer.call(SOURCE, (source_id, product, origin.name))
        for start in range(0, keys, CHUNK):
            slices = []
            for number in range(start, min(start + CHUNK, keys)):
                text = f"{salt}-{number * 2654435761 % 2**32:08X}-{number:08d}"
                key = CardKey({"code": text}, {"code": text}, text)
                slices.append(Slice(number + 1, text.encode(), key, text.replace("-", ""), "", ""))
            sealed, held = self.vault.seal(origin, slices)
            end = start + len(slices)
            self.writer.call(self.vault.intake, Chunk(origin, sealed, held, start, end, end))

    def stop(self) -> None:
        self.writer.stop()
        self.database.close()
