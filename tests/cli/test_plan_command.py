"""`syncd explain` and `syncd replenish`: what they ask, what they show."""

from __future__ import annotations

from typing import Any

PLAN: dict[str, Any] = {
    "product": "steam",
    "mode": "popular",
    "per_day": 144.0,
    "target": 5,
    "held": 2,
    "on_order": 1,
    "owed": 0,
    "would_buy": 2,
    "why": ["99.5 % of orders while 1.2 are expected", "no more than 5: cache.max"],
}
OFFER: dict[str, Any] = {
    "supplier": "alpha",
    "sku": "a",
    "quantity": 0,
    "usable": False,
    "reason": "its supplier is down",
    "objection": "",
    "cost": "1.00",
    "reckoned": None,
    "stock": 7,
    "health": "down",
    "since": "2026-11-01T10:00:00Z",
    "why": "connection refused",
}


def test_explain_shows_the_target_and_each_offer_with_its_reason(syncd: Any, operator: Any) -> None:
    beta = OFFER | {"supplier": "beta", "quantity": 1, "usable": True, "reason": "chosen: 1 at 2 CNY", "why": ""}
    answer = PLAN | {"quantity": 2, "short": 1, "offers": [OFFER, beta | {"objection": "the budget is spent"}]}
    operator.on("GET", "/v1/products/steam/explain", answer)
    ended = syncd("explain", "steam", "--quantity", "2")
    assert "its supplier is down; down since 2026-11-01T10:00:00Z: connection refused" in ended.out
    assert "chosen: 1 at 2 CNY; but the budget is spent" in ended.out
    assert "no more than 5: cache.max" in ended.out
    assert "1 of 2 can be had from nobody now" in ended.err
    assert syncd("explain", "steam", "--json").json == answer


def test_replenish_shows_the_plan_or_what_was_bought(syncd: Any, operator: Any) -> None:
    operator.on("GET", "/v1/replenish", {"products": [PLAN]})
    ended = syncd("replenish", "--dry-run")
    assert "99.5 % of orders while 1.2 are expected; no more than 5: cache.max" in ended.out
    assert syncd("replenish", "--dry-run", "--json").json == {"products": [PLAN]}
    refused = [{"supplier": "alpha", "sku": "a", "why": "no"}]
    got = {"bought": 0, "on_order": 0, "refused": refused, "references": []}
    operator.on("POST", "/v1/replenish", {"products": {"steam": got}})
    assert "alpha a: no" in syncd("replenish").out
    assert syncd("replenish", "--json").json["products"]["steam"] == got
    operator.on("POST", "/v1/replenish", {"products": {}})
    assert "nothing lacks" in syncd("replenish").err + syncd("replenish").out
