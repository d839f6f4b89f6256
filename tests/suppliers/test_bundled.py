"""What holds for every bundled adapter: the conformance kit; and, over HTTP, that doubt about an order stays doubt."""

from __future__ import annotations

from decimal import Decimal

import httpx
import pytest
import respx

from syncd.adapter import Money, NotSent, Offer, OrderRequest, OutcomeUnknown, SecretText, Stock
from syncd.suppliers import registry
from syncd.suppliers.conformance import examined, tier_of
from tests.suppliers.loopback.linked import linked

GOLD = {"codeswholesale", "feed", "kasushou", "kinguin"}
KEY = SecretText("made-up-key-5c1f")


@pytest.mark.parametrize("name", [one.name for one in registry.catalogue([])])
def test_the_conformance_kit(name):
    results = list(examined(registry.find(name, []), up_to="gold" if name in GOLD else "silver"))
    assert [(one.check.name, one.findings, one.reason) for one in results if one.state in {"failed", "blocked"}] == []
    assert tier_of(results) == ("gold" if name in GOLD else "silver")


def offer(sku, price, currency, **data):
    return Offer(sku, "A card", Money(Decimal(price), currency), Stock.exact(5), data=data)


GAME = {"productId": "p1", "name": "x", "qty": 9, "textQty": 9, "price": 5.79, "isPreorder": False, "offers": []}
# name → settings, what is bought, the request that buys, and the one before it with its answer
SOLD = {
    "acg_faka": (
        {"shop": "https://shop.test", "app_id": "1001", "app_key": KEY, "contact": "a@shop.example"},
        offer("A1B2", "9.90", "CNY", code="A1B2"),
        "https://shop.test/shared/commodity/trade",
        ("POST", "https://shop.test/shared/commodity/valuation", {"code": 200, "data": {"price": "9.90"}}),
    ),
    "dujiao_next": (
        {"site": "https://site.test", "key": KEY, "secret": KEY},
        offer("7/31", "9.90", "CNY", sku_id="31"),
        "https://site.test/api/v1/upstream/orders",
        None,
    ),
    "kinguin": (
        {"key": KEY, "webhook_secret": KEY},
        offer("p1", "5.79", "EUR"),
        "https://gateway.kinguin.net/esa/api/v2/order",
        ("GET", "https://gateway.kinguin.net/esa/api/v2/products/p1", {**GAME, "kinguinId": 1}),
    ),
}
NEVER_LEFT = (httpx.ConnectError("x"), httpx.ConnectTimeout("x"), httpx.PoolTimeout("x"))
DOUBT = (
    httpx.ReadTimeout("x"),
    httpx.ReadError("x"),
    httpx.RemoteProtocolError("x"),
    httpx.Response(500),
    httpx.Response(502, content=b"<html>"),
    httpx.Response(302, headers={"location": "https://elsewhere.test/"}),
    httpx.Response(403, content=b"<!DOCTYPE html><title>Just a moment</title>"),
    httpx.Response(200, content=b"<html>"),
    httpx.Response(200, content=b""),
    httpx.Response(200, json={}),
    httpx.Response(200, json=[]),
)


@pytest.mark.parametrize("name", SOLD)
@pytest.mark.parametrize("answer", [*NEVER_LEFT, *DOUBT], ids=str)
def test_M1_what_never_left_bought_nothing_and_what_leaves_doubt_is_unknown_after_one_request(name, answer):
    settings, wanted, buys, before = SOLD[name]
    order = OrderRequest("KT0000000001", wanted, 1, None if name == "dujiao_next" else wanted.price)
    link = linked(name, **settings)
    with respx.mock(assert_all_called=False) as routes:
        if before:
            routes.request(before[0], before[1]).respond(json=before[2])
        buying = routes.post(buys)
        buying.mock(**{"side_effect" if isinstance(answer, Exception) else "return_value": answer})
        with pytest.raises(NotSent if answer in NEVER_LEFT else OutcomeUnknown):
            link.call("place_order", order)
    link.close()
    assert buying.call_count == 1
