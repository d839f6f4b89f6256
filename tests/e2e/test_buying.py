"""What an owner sees: popular keys are there before they are asked for, rare ones are bought in the request that wants
them, and a supplier that died costs no order.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.world.site import Hawker, sold_by, supplied, wait_for


@pytest.fixture
def site() -> Iterator[Hawker]:
    with Hawker() as one:
        yield one


def balanced(daemon: Any, site: Hawker, sold: int) -> None:
    """What was charged is what was sold and what is left."""
    assert site.ledger.most() <= 1
    charged = sum(charge.quantity for charge in site.ledger.charges)
    wait_for(lambda: json.loads(daemon.syncd("purchases", "list", "--open", "--json"))["purchases"] == [])
    assert sum(daemon.stock().values()) + sold == charged
    assert "whole" in daemon.syncd("audit", "verify")


@pytest.mark.parametrize("engine_url", ["sqlite"], indirect=True)  # test_buying_kill buys on both
def test_a_popular_product_fills_up_drains_and_refills_and_a_rare_one_is_bought_in_the_request(
    install: Any, engine_url: str, site: Hawker
) -> None:
    hot, rare = site.stocked(11, "8.00", 500), site.stocked(21, "5.00", 20, product=2)
    popular = 'cache = { mode = "popular", min = 8, max = 40 }\non_shortage = "buy"\n'
    on_demand = 'cache = { mode = "none" }\non_shortage = "buy"\n'
    daemon = install("d", engine_url, sold_by(hot, "hot", popular) + sold_by(rare, "rare", on_demand))
    supplied(daemon, site)
    daemon.start()
    # Popular keys fill up within a sync, and the rare ones stay where they are.
    wait_for(lambda: daemon.stock()["hot"] >= 8)
    assert daemon.stock()["rare"] == 0

    # A burst drains it: every order is served, and it refills at once, not at the next listing.
    sold = 0
    for number in range(30):
        status, answer = daemon.call(
            "POST", "/v1/deliveries", {"order_ref": f"burst-{number}", "product": "hot", "quantity": 1, "wait_s": 20}
        )
        assert status == 200, answer
        sold += len(answer["keys"])
    wait_for(lambda: daemon.stock()["hot"] >= 8)

    # A rare one comes in the very request that asks for it.
    status, answer = daemon.call("POST", "/v1/deliveries", {"order_ref": "rare-1", "product": "rare", "quantity": 2})
    assert status == 200, answer
    assert len(answer["keys"]) == 2
    assert daemon.stock()["rare"] == 0

    daemon.kill()
    daemon.start()
    again = daemon.call("POST", "/v1/deliveries", {"order_ref": "rare-1", "product": "rare", "quantity": 2})[1]
    assert again["keys"] == answer["keys"]
    balanced(daemon, site, sold + 2)
    assert daemon.stop() == 0


@pytest.mark.parametrize("engine_url", ["sqlite"], indirect=True)
def test_the_cheaper_supplier_is_dead_and_orders_keep_being_served(install: Any, engine_url: str, site: Hawker) -> None:
    goods = site.stocked(11, "8.00", 100)
    with Hawker("CHEAP") as cheap:
        cheaper = cheap.stocked(11, "3.00", 100)
        daemon = install(
            "d",
            engine_url,
            '[products.hot]\nformat = "opaque"\nmax_cost = "20 CNY"\non_shortage = "buy"\ncache = { mode = "none" }\n'
            f'offers = [{{ supplier = "cheap", sku = "{cheaper}" }}, {{ supplier = "site", sku = "{goods}" }}]\n',
        )
        supplied(daemon, site)
        supplied(daemon, cheap, name="cheap")
        daemon.start()

        def order(ref: str) -> int:
            body = {"order_ref": ref, "product": "hot", "quantity": 1, "wait_s": 20}
            return int(daemon.call("POST", "/v1/deliveries", body, seconds=30)[0])

        wait_for(lambda: "3.00" in daemon.syncd("explain", "hot") and "8.00" in daemon.syncd("explain", "hot"))
        assert order("while-it-lives") == 200
        assert (len(cheap.ledger.charges), len(site.ledger.charges)) == (1, 0)
        where = cheap.url
    with socket.socket() as unused:  # nobody listens there any more
        unused.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        unused.bind(("127.0.0.1", int(where.rpartition(":")[2])))
        assert [order(f"dead-{number}") for number in range(6)] == [200] * 6
        assert len(site.ledger.charges) == 6
        wait_for(lambda: "down since" in daemon.syncd("explain", "hot"))
        told = json.loads(daemon.syncd("explain", "hot", "--json"))
    assert "cheap" in json.dumps(told)
    assert daemon.stop() == 0
