"""`syncd purchases`: what it asks, what it shows, how it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def row(number: int, **more: Any) -> dict[str, Any]:
    return {
        "reference": f"REF{number}",
        "supplier": "wang",
        "product": "steam",
        "quantity": 2,
        "received": 0,
        "state": "unknown",
        "spend": "4.20",
        "open": "0.00",
        "created_at": "2026-11-20T03:00:00Z",
        "reason": "reset",
        **more,
    }


def test_purchases_are_listed_page_by_page_and_by_what_they_need(syncd: Any, operator: Any) -> None:
    pages = {None: {"purchases": [row(3), row(2)], "next": "2"}, "2": {"purchases": [row(1)], "next": None}}
    operator.on("GET", "/v1/purchases", lambda request: pages[request.query.get("before")])
    ended = syncd("purchases", "list", "--unknown", "--json")
    assert [one["reference"] for one in ended.json["purchases"]] == ["REF3", "REF2", "REF1"]
    assert {request.query["which"] for request in operator.asked} == {"unknown"}
    shown = syncd("purchases", "list", "--limit", "2")
    assert "REF3" in shown.out
    assert "REF1" not in shown.out
    assert "the first 2" in shown.err
    assert syncd("purchases", "list", "--unknown", "--open").code == 1


@pytest.mark.parametrize(("word", "told"), [("--charged", "true"), ("--not-charged", "false")])
def test_a_person_says_whether_it_was_charged(syncd: Any, operator: Any, word: str, told: str) -> None:
    operator.on("POST", "/v1/purchases/REF1/resolve", row(1, state="refused"))
    assert "refused" in syncd("purchases", "resolve", "REF1", word).out
    assert (operator.asked[0].query, operator.asked[0].body) == ({"charged": told}, b"")


def test_keys_are_handed_over_as_a_file_and_never_shown(syncd: Any, operator: Any, folder: Path) -> None:
    operator.on("POST", "/v1/purchases/REF1/resolve", row(1, state="fulfilled"))
    (folder / "keys.txt").write_text("CANARY-1\nCANARY-2\n")
    ended = syncd("purchases", "resolve", "REF1", "--charged", "--keys", "keys.txt")
    assert operator.asked[0].body == b"CANARY-1\nCANARY-2\n"
    assert "CANARY" not in ended.out + ended.err
    assert syncd("purchases", "resolve", "REF1", "--charged", "--keys", "nowhere.txt").code == 1
    assert syncd("purchases", "resolve", "REF1").code == 2  # one has to say which


def test_buying_too_little_is_an_exit_code(syncd: Any, operator: Any) -> None:
    answer = {"bought": 1, "on_order": 1, "refused": [{"supplier": "li", "sku": "1", "why": "no"}], "references": ["A"]}
    operator.on("POST", "/v1/products/steam/buy", answer)
    assert syncd("purchases", "buy", "steam", "2").code == 0
    assert operator.asked[0].json == {"quantity": 2}
    assert syncd("purchases", "buy", "steam", "3").code == 1
    assert syncd("purchases", "show", "REF9").code == 1
