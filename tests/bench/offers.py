"""A supplier with N offers: a listing in which nothing changed against one in which everything did, in one process.

The pages are made beforehand: what an adapter does is not measured. Each round has an unchanged and a changed listing;
beside them, a loop measures how late it is woken, as the daemon's own would be.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvloop
from parts import Parts

from syncd.adapter import Money, Offer, Page, Stock
from syncd.daemon import SWITCH_S
from syncd.inventory.offers import Offers, Taken, Task
from syncd.store import leases

PAGE = 500
ROUNDS = 3


def listing(count: int, turn: int) -> Iterator[Page]:
    for start in range(0, count, PAGE):
        price = Money(Decimal(f"{10 + turn}.50"), "CNY")
        yield Page(
            [
                Offer(f"goods-{number:06d}", f"Steam Wallet {number} CNY, global", price, Stock.exact(number % 50 + 1))
                for number in range(start, start + PAGE)
            ]
        )


class Lag:
    """The longest that a loop of its own thread was kept waiting."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._watch()), daemon=True)
        self._thread.start()

    async def _watch(self) -> None:
        while not self._over.is_set():
            begun = time.perf_counter()
            await asyncio.sleep(0.001)
            self.worst = max(self.worst, time.perf_counter() - begun - 0.001)

    def stop(self) -> float:
        self._over.set()
        self._thread.join()
        return self.worst


def main() -> None:
    _, url, _ = sys.argv[1:]
    count = 100_000
    sys.setswitchinterval(SWITCH_S)
    parts = Parts(url)
    engine = parts.database.url.get_backend_name()
    defaults = {"full_every": 0.0, "overlap": 300.0, "max_drop": 50.0, "max_jump": 3.0, "max_jumps": 20.0}
    settings: Any = SimpleNamespace(of=lambda _supplier, name: defaults[name])
    metrics: Any = SimpleNamespace(offers_changed=lambda *_: None, listing_alarm=lambda *_: None)
    parts.writer.call(leases.ENSURE, ["bench"])
    wanted = leases.Acquire("bench", "bench", 3600.0, parts.ids.next(), "bench", only_due=False)
    lease = parts.writer.call(leases.ACQUIRE, wanted)
    assert lease is not None
    with tempfile.TemporaryDirectory() as folder:
        offers = Offers(parts.writer, metrics, lambda: settings, Path(folder))

        def run(pages: Iterable[Page]) -> tuple[float, float, Taken]:
            def give(_since: Any, _stopping: Callable[[], bool]) -> Iterator[Page]:
                yield from pages

            lag = Lag()
            begun = time.perf_counter()
            taken = offers.take(Task("bench", lease, 1, give, incremental=False))
            took = time.perf_counter() - begun
            return took, lag.stop(), taken

        first, _, _ = run(listing(count, 0))
        same, changed, lags = [], [], []
        for turn in range(ROUNDS):
            for pages, times, number in (
                (list(listing(count, turn)), same, 0),
                (list(listing(count, turn + 1)), changed, count),
            ):
                gc.freeze()  # no adapter keeps a whole listing: the collector need not walk over this one
                took, lag, taken = run(pages)
                assert (taken.state, taken.changed) == ("taken", number), taken
                times.append(took)
                lags.append(lag)
        del pages
        gc.unfreeze()
        gc.collect()
        tracemalloc.start()
        run(listing(count, ROUNDS + 1))
        peak = tracemalloc.get_traced_memory()[1]
    print(
        f"offers  {engine:10} {count:,} offers: unchanged {statistics.median(same):.2f} s,"
        f" all changed {statistics.median(changed):.2f} s"
        f" = {statistics.median(same) / statistics.median(changed):.2f} (wanted ≤ 0.20), first {first:.2f} s,"
        f" loop late by at most {max(lags) * 1e3:.0f} ms (wanted ≤ 50), peak {peak / 2**20:.0f} MiB",
        flush=True,
    )
    parts.stop()


if __name__ == "__main__":
    main()
