"""A site on a port of this machine that sells to a real daemon: it fulfils what was paid, and fails at random."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.suppliers.loopback.dujiao_next import ROOT, Site
from tests.suppliers.loopback.server import Asked

ORDERS = f"{ROOT}/orders"
FAULTS = ("reset", "error", "page", "broken", "html", "cut", "short")
"""Those that a client notices at once: a test that waits for time-outs all day finds little."""


class Hawker(Site):
    """A site that fulfils its orders by itself, at once or some moments later. ``pace``: the longest of those moments.

    ``wild`` is how often a request goes wrong, ``delay`` how long an order's answer takes.
    """

    def __init__(self, name: str = "SITE", *, seed: int = 0, pace: float = 0.0) -> None:
        super().__init__(balance="1000000.00")
        self.name = name
        self.random, self.wild, self.pace, self.delay = random.Random(seed), 0.0, pace, 0.0
        self.sold: dict[str, list[str]] = {}
        """Reference → the keys that were paid for."""

    def stocked(self, sku: int, price: str, count: int, product: int = 1) -> str:
        """Put so many keys on the shelf; the sku as its adapter calls it."""
        keys = [f"{self.name}{sku:02d}-{number:06d}-QXZW" for number in range(count)]
        self.sell(product, {"id": sku, "price": price, "keys": keys})
        return f"{product}/{sku}"

    def answer(self, asked: Asked) -> tuple[int, Any]:
        buying = (asked.method, asked.path) == ("POST", ORDERS)
        if buying:
            self.slow[asked.path] = self.delay
        status, said = super().answer(asked)
        if buying and status == 200 and isinstance(said, dict) and said.get("ok"):
            self._fulfil(int(said["order_id"]))
        return status, said

    def _fulfil(self, order_id: int) -> None:
        order = self.orders[order_id]
        self.sold.setdefault(order["reference"], list(order.get("held", ())))
        wait = self.random.random() * self.pace
        if wait < 0.05:
            self.deliver(order_id)
        else:
            threading.Timer(wait, self.deliver, (order_id,)).start()

    def serve(self, handler: Any, asked: Asked) -> None:
        if self.random.random() < self.wild:
            self.fail(asked.path, self.random.choice(FAULTS))
        super().serve(handler, asked)


def supplied(daemon: Any, site: Hawker, more: str = "", *, name: str = "site", patience: str = "2s") -> None:
    """Let an installation buy from a site. ``patience`` is how long it waits for an answer."""
    folder = daemon.folder / "conf.d"
    folder.mkdir(exist_ok=True)
    for file, text in ((f"{name}.key", site.key), (f"{name}.secret", site.secret)):
        (folder / file).write_text(text)
        (folder / file).chmod(0o600)
    (folder / f"{name}.toml").write_text(
        f'[suppliers.{name}]\nadapter = "dujiao_next"\nsite = "{site.url}"\n'
        f'key = {{ file = "conf.d/{name}.key" }}\nsecret = {{ file = "conf.d/{name}.secret" }}\n'
        f'interval = "2s"\njitter = "0s"\nrate = "500/s"\nread_timeout = "{patience}"\n'
        f'poll = "200ms"\npoll_max = "1s"\n{more}'
    )


def sold_by(site: str, sku: str, more: str = "") -> str:
    return (
        f'[products.{sku}]\ntitle = "{sku}"\nformat = "opaque"\nmax_cost = "20 CNY"\n'
        f'offers = [{{ supplier = "site", sku = "{site}" }}]\n{more}'
    )


def wait_for(true: Callable[[], bool], seconds: float = 30) -> float:
    """The seconds that it took."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < seconds, "it did not come"
        time.sleep(0.05)
    return time.monotonic() - begun
