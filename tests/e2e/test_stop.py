"""A daemon that is told to stop answers those who wait for their keys; they ask the next one."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

PRODUCTS = '[products.late]\ntitle = "late"\nformat = "opaque"\non_shortage = "wait"\n'


@pytest.mark.parametrize("engine_url", ["sqlite"], indirect=True)
def test_M2_a_stop_answers_requests_that_wait_and_forgets_none(install: Any, engine_url: str) -> None:
    daemon = install("d", engine_url, PRODUCTS)
    daemon.start()
    answers: list[tuple[int, Any]] = []
    body = {"order_ref": "o-1", "product": "late", "quantity": 1, "wait_s": 30}

    def post() -> None:
        answers.append(daemon.call("POST", "/v1/deliveries", body, seconds=60))

    def get() -> None:
        answers.append(daemon.call("GET", "/v1/deliveries/o-1?wait_s=30", seconds=60))

    shops = [threading.Thread(target=post)]
    shops[0].start()
    while daemon.call("GET", "/v1/deliveries/o-1")[0] != 202:
        time.sleep(0.05)
    shops.append(threading.Thread(target=get))
    shops[1].start()
    time.sleep(0.5)
    assert daemon.stop() == 0
    for shop in shops:
        shop.join(60)
    assert [(status, answer["status"]) for status, answer in answers] == [(202, "pending")] * 2
    assert "requests_cut_off" not in daemon.log.read_text()
    daemon.start()
    daemon.drop("late", "late.txt", "KEY-1\n")
    daemon.syncd("sync")
    status, answer = daemon.call("POST", "/v1/deliveries", body, seconds=60)
    assert (status, answer["repeat"], answer["keys"][0]["text"]) == (200, True, "KEY-1")
    assert daemon.errors() == []
