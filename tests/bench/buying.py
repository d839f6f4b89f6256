"""Deliveries beside purchases: p99 while 20 purchases are in flight against idle, in one run, on one engine.

The supplier is a real site on a port of this machine that answers an order after 2 s. Run by the benchmark, in a
process of its own: the site's processor time is not the load's.
"""

from __future__ import annotations

import http.client
import json
import statistics
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from tests.world.site import ORDERS, Hawker, supplied

BUYERS = 28
"""So many at a time, each 2 s at the supplier and some before and after: more than 20 of their orders are there."""
ANSWER_S = 2.0


class Buyers:
    """So many purchases under way at a time, as long as it runs, each of a product of its own."""

    def __init__(self, port: int, token: str) -> None:
        self.port, self.token = port, token
        self.stopping = threading.Event()
        self.refused: list[Any] = []

    def buy(self, product: str, after: float) -> None:
        self.stopping.wait(after)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        while not self.stopping.is_set():
            connection.request("POST", f"/v1/products/{product}/buy", json.dumps({"quantity": 1}), headers)
            response = connection.getresponse()
            said = response.read()
            if response.status >= 300:
                self.refused.append((response.status, said))
                return
        connection.close()

    def __enter__(self) -> Self:
        # Spread over the time of an answer: shops' orders do not come in step.
        begins = [(f"p{number}", number * ANSWER_S / BUYERS) for number in range(BUYERS)]
        self.threads = [threading.Thread(target=self.buy, args=begin) for begin in begins]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()


def products(site: Hawker) -> str:
    """A good for each buyer, beside the one that is delivered from the vault."""
    lines = []
    for number in range(BUYERS):
        sku = site.stocked(100 + number, "1.00", 100_000, product=100 + number)
        lines.append(
            f'[products.p{number}]\nformat = "opaque"\nmax_cost = "2 CNY"\n'
            f'offers = [{{ supplier = "site", sku = "{sku}" }}]\n'
        )
    return "".join(lines)


def buying(make: Any, load: Any, folder: Path, engine: str, rounds: int, show: Any) -> None:
    """``make`` starts a daemon in a folder, ``load`` is the benchmark's."""
    with Hawker() as site:
        folder.mkdir(parents=True)
        supplied(SimpleNamespace(folder=folder), site, "concurrency = 32\n", patience="10s")
        (folder / "conf.d" / "products.toml").write_text(products(site))
        daemon = make(folder)
        try:
            daemon.import_keys(40_000, "B")
            operator = (folder / "var" / "operator.token").read_text().strip()
            time.sleep(3)  # it has been listed
            site.slow[ORDERS] = site.delay = ANSWER_S
            idle, busy, bought = [], [], []
            for _ in range(rounds):
                idle.append(load(daemon.port, daemon.token, connections=16, seconds=4, rate=300)["p99_ms"])
                before = len(site.ledger.charges)
                with Buyers(daemon.port, operator) as buyers:
                    time.sleep(ANSWER_S)
                    busy.append(load(daemon.port, daemon.token, connections=16, seconds=6, rate=300)["p99_ms"])
                if buyers.refused:
                    raise SystemExit(f"a purchase was refused: {buyers.refused[0]}")
                bought.append((len(site.ledger.charges) - before) / (6 + 2 * ANSWER_S) * ANSWER_S)
            alone, beside = statistics.median(idle), statistics.median(busy)
            show(
                f"buying  {engine:10} 300/s: p99 {beside:.2f} ms while {statistics.median(bought):.0f} purchases are in"
                f" flight, {alone:.2f} ms idle = {beside / alone:.1f} (wanted ≤ 2)"
            )
        finally:
            daemon.stop()
