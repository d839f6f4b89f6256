"""M1, M2: a real daemon buys over real HTTP and is killed at random moments; the books balance afterwards.

A shop orders, a site fails at random, SIGKILL comes at random. Then all is quiet: every reference was charged at most
once, and every key that was paid for lies in the vault or went to exactly one order. SYNCD_WORLD_KILLS says how often
it is killed; `make soak` kills for hours.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import threading
import time
from pathlib import Path
from typing import Any, Self

import pytest

from tests.world.site import Hawker, sold_by, supplied, wait_for

KILLS = int(os.environ.get("SYNCD_WORLD_KILLS", "2"))
SEED = int(os.environ.get("SYNCD_WORLD_SEED", "1"))
SCRIPT = Path(__file__).parents[1] / "world" / "real.py"
SHOPS = 3
WILD = 0.15
"""How often a request to the supplier goes wrong."""


class Orders:
    """What shops ask for, and what they were told."""

    def __init__(self, daemon: Any, seed: int) -> None:
        self.daemon, self.random = daemon, random.Random(seed)
        self.asked: list[tuple[str, str, int]] = []
        self.answers: dict[str, list[str]] = {}
        self.acknowledged: set[str] = set()
        self.otherwise: list[str] = []
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    def recorded(self, ref: str) -> bool:
        """Whether the daemon has an order; it may have died before it could say so."""
        return ref in self.acknowledged or self.daemon.call("GET", f"/v1/deliveries/{ref}")[0] != 404

    def next(self) -> tuple[str, str, int]:
        with self.lock:
            if self.asked and self.random.random() < 0.3:
                return self.random.choice(self.asked)
            order = (f"o-{len(self.asked)}", self.random.choice(("hot", "rare")), self.random.randint(1, 3))
            self.asked.append(order)
            return order

    def ask(self, order: tuple[str, str, int], seconds: float = 5) -> int:
        ref, sku, quantity = order
        body = {"order_ref": ref, "product": sku, "quantity": quantity, "wait_s": 0}
        status, answer = self.daemon.call("POST", "/v1/deliveries", body, seconds=seconds)
        if status in {200, 202}:
            with self.lock:
                self.acknowledged.add(ref)
                keys = [key["text"] for key in answer.get("keys", [])]
                if status == 200 and (self.answers.setdefault(ref, keys) != keys or len(keys) != quantity):
                    self.otherwise.append(ref)
        return status

    def shop(self) -> None:
        while not self.stopping.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                self.ask(self.next())
            time.sleep(0.01)

    def __enter__(self) -> Self:
        self.stopping.clear()
        self.shops = [threading.Thread(target=self.shop) for _ in range(SHOPS)]
        for shop in self.shops:
            shop.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for shop in self.shops:
            shop.join()


def killed(daemon: Any, site: Hawker, orders: Orders, times: int) -> None:
    """Start, sell, kill; again and again."""
    for _ in range(times):
        daemon.launch(script=SCRIPT)
        assert daemon.ready(60), daemon.log.read_text()
        if not orders.asked:
            wait_for(
                lambda: all(
                    row["upstream"]["kind"] == "exact" for row in daemon.call("GET", "/v1/stock")[1]["products"]
                )
            )
            site.wild = WILD
        with orders:
            time.sleep(orders.random.uniform(0.1, 1.5))
            daemon.kill()


def quiet(daemon: Any, site: Hawker, orders: Orders, seconds: float = 60) -> list[dict[str, Any]]:
    """All faults are over: every order gets its answer, every purchase its end. The purchases."""
    site.wild = 0.0
    site.faults.clear()
    daemon.start(script=SCRIPT)
    deadline = time.monotonic() + seconds
    left = [order for order in orders.asked if orders.recorded(order[0])]
    while True:
        left = [order for order in left if orders.ask(order) != 200]
        rows: list[dict[str, Any]] = json.loads(daemon.syncd("purchases", "list", "--open", "--json"))["purchases"]
        if not left and not rows:
            break
        assert time.monotonic() < deadline, f"{len(left)} orders wait, purchases are {[row['state'] for row in rows]}"
        time.sleep(0.2)
    found: list[dict[str, Any]] = json.loads(daemon.syncd("purchases", "list", "--limit", "10000", "--json"))[
        "purchases"
    ]
    return found


def balanced(daemon: Any, site: Hawker, orders: Orders, purchases: list[dict[str, Any]]) -> None:
    """The site's ledger, the daemon's books and the shops' answers say the same."""
    assert site.ledger.most() <= 1, "a reference was charged twice"
    rows = {row["reference"]: row for row in purchases}
    charged = {charge.reference: charge for charge in site.ledger.charges}
    unknown = charged.keys() - rows.keys()
    assert not unknown, f"{len(unknown)} charges have no purchase"
    for reference, row in rows.items():
        expected = charged[reference].quantity if reference in charged else 0
        assert row["received"] == expected, f"{reference} is {row['state']}, and got {row['received']} of {expected}"
    paid = [key for reference in charged for key in site.sold[reference]]
    assert not orders.otherwise, "an order was answered in two ways"
    delivered = [key for keys in orders.answers.values() for key in keys]
    assert not orders.acknowledged - orders.answers.keys(), "an order that was acknowledged is gone"
    assert len(delivered) == len(set(delivered)), "a key went to two orders"
    assert set(delivered) <= set(paid), "a key was delivered that nobody sold"
    assert sum(daemon.stock().values()) == len(paid) - len(delivered), "keys that were paid for are not there"
    assert "whole" in daemon.syncd("audit", "verify")


def run(install: Any, url: str, times: int) -> int:
    """One world: how many orders were served in it."""
    with Hawker(seed=SEED, pace=0.8) as site:
        hot, rare = site.stocked(11, "8.00", 5000), site.stocked(21, "5.00", 5000, product=2)
        buys = 'on_shortage = "buy"\n'
        daemon = install("d", url, sold_by(hot, "hot", buys) + sold_by(rare, "rare", buys))
        supplied(daemon, site, '[purchases]\nsettle = "1s"\n')
        site.delay = 0.2  # so that a kill finds an order under way
        orders = Orders(daemon, SEED)
        killed(daemon, site, orders, times)
        balanced(daemon, site, orders, quiet(daemon, site, orders))
        assert daemon.stop() == 0
        return len(orders.answers)


def test_M1_M2_a_daemon_that_is_killed_while_it_buys_keeps_its_books(install: Any, engine_url: str) -> None:
    assert run(install, engine_url, KILLS) > KILLS, "it has sold next to nothing: this shows little"


@pytest.mark.parametrize("engine_url", ["sqlite"], indirect=True)
def test_control_a_daemon_that_forgets_what_it_sent_does_not(
    install: Any, engine_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED", "forgets_what_was_sent")
    with pytest.raises(AssertionError, match="is refused, and got 0 of"):
        run(install, engine_url, 4)
