"""adapters/kinguin.py: products and wholesale, partial keys and pictures, one charge a reference from end to end."""

from __future__ import annotations

import base64
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import httpx
import pytest
import respx

from syncd.adapter import (
    Auth,
    BadResponse,
    Config,
    Forged,
    InsufficientBalance,
    Money,
    NotForSale,
    NotSent,
    Offer,
    Order,
    OrderRequest,
    OutcomeUnknown,
    OutOfStock,
    PriceChanged,
    RateLimited,
    Refused,
    SecretText,
    Stock,
    Transient,
    Webhook,
)
from tests.suppliers.loopback.kinguin import GIF, ROOT, Kinguin
from tests.suppliers.loopback.linked import FAULTS, ends_unknown_after_one_request, linked

BASE = "https://gateway.kinguin.net/esa/api"
KEY, SECRET = SecretText("made-up-store-key"), SecretText("made-up-event-secret")
OWN = "5c9b5f6b2539a4e8f172916a"
PRODUCT = {
    "name": "Counter-Strike: Source Steam CD Key",
    "platform": "Steam",
    "qty": 149,
    "textQty": 140,
    "price": 5.79,
    "isPreorder": False,
    "regionalLimitations": "Region free",
    "countryLimitation": ["PR", "PS"],
    "kinguinId": 1949,
    "productId": OWN,
    "offers": [{"offerId": "5f7efe3b369b4a0001c5b46f", "price": 5.79, "qty": 149, "textQty": 140}],
    "updatedAt": "2020-10-24T09:34:13+00:00",
}
TIERS = [{"level": level, "price": price} for level, price in ((1, 5.5), (2, 5.4), (3, 5.3), (4, 5.2))]
MADE = {
    "totalPrice": 5.79,
    "status": "processing",
    "orderId": "PHS84FJAG5U",
    "orderExternalId": "KT0000000001",
    "paymentPrice": 5.29,
    "products": [{"productId": OWN, "qty": 1}],
    "totalQty": 1,
}


def eur(amount):
    return Money(Decimal(amount), "EUR")


OFFER = Offer(OWN, "Counter-Strike", eur("5.79"), Stock.exact(140))


@pytest.fixture
def link():
    made = linked("kinguin", key=KEY, webhook_secret=SECRET)
    yield made
    made.close()


@pytest.fixture
def any_key():
    made = linked("kinguin", key=KEY, key_type="any", preorders=True)
    yield made
    made.close()


@pytest.fixture
def site():
    with respx.mock(assert_all_called=False) as routes:
        yield routes


def order(sku=OWN, quantity=1, limit="5.79", **more):
    return OrderRequest("KT0000000001", replace(OFFER, sku=sku), quantity, eur(limit) if limit else None, **more)


def product(**more):
    return {**PRODUCT, **more}


def wholesale(number, price=6.1, qty=800, tiers=TIERS, enabled=True, **more):
    deal = {"enabled": enabled, "tiers": tiers}
    return {"offerId": f"off{number}", "price": price, "qty": qty, "textQty": qty, "wholesale": deal, **more}


def offers(site, link, *products, since=None, total=None):
    said = {"results": list(products), "item_count": len(products) if total is None else total}
    site.get(f"{BASE}/v1/products").respond(json=said)
    return [offer for page in link.pages(since, bool) for offer in page.offers]


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sandbox", "host"), [(False, "gateway.kinguin.net"), (True, "gateway.sandbox.kinguin.net")])
def test_the_key_goes_in_a_header_to_the_shop_or_its_sandbox(site, sandbox, host):
    asked = site.get(f"https://{host}/esa/api/v1/balance").respond(json={"balance": 12.45})
    made = linked("kinguin", key=KEY, sandbox=sandbox)
    found = made.call("check")
    made.close()
    assert (found.balance, bool(found.notes)) == (eur("12.45"), sandbox)
    assert asked.calls[0].request.headers["x-api-key"] == "made-up-store-key"


@pytest.mark.parametrize("wrong", [{}, {"balance": None}, {"balance": "much"}, {"balance": [1]}])
def test_P1_a_balance_that_is_no_number_is_none(site, link, wrong):
    site.get(f"{BASE}/v1/balance").respond(json=wrong)
    with pytest.raises(BadResponse):
        link.call("get_balance")


def test_a_product_is_an_offer_at_its_cheapest_price(site, link):
    (one,) = offers(site, link, PRODUCT)
    assert (one.sku, one.title, one.price) == (OWN, PRODUCT["name"], eur("5.79"))
    assert (one.region, one.group) == ("Region free; not in PR, PS", "Steam")
    assert (one.min_quantity, one.max_quantity, one.tiers, one.for_sale) == (1, 9, (), True)
    assert one.updated_at == datetime(2020, 10, 24, 9, 34, 13, tzinfo=UTC)


def test_P1_only_keys_that_may_be_delivered_are_stock(site, link, any_key):
    """Images are no stock of a shop that asks for texts."""
    assert offers(site, link, PRODUCT)[0].stock == Stock.exact(140)
    assert offers(site, any_key, PRODUCT)[0].stock == Stock.exact(149)


@pytest.mark.parametrize(("said", "region"), [({}, "Region free"), ({"regionalLimitations": None}, "")])
def test_a_product_for_everybody_says_so(site, link, said, region):
    assert offers(site, link, product(countryLimitation=[], **said))[0].region == region


@pytest.mark.parametrize(
    "wrong",
    [
        {"textQty": -1},
        {"textQty": None},
        {"textQty": "many"},
        {"price": "free"},
        {"price": -1},
        {"productId": ""},
        {"offers": 7},
        {"offers": [7]},
        {"offers": [wholesale(1, qty=-5)]},
        {"offers": [wholesale(1, tiers=[{"level": 1, "price": -1}])]},
        {"offers": [wholesale(1, tiers=[{"price": 1}])]},
        {"countryLimitation": [1]},
    ],
)
def test_P1_a_product_that_is_not_what_the_document_says_ends_the_listing(site, link, wrong):
    with pytest.raises(BadResponse):
        offers(site, link, product(**wrong))


def test_a_product_without_a_price_is_listed_and_cannot_be_bought(site, link):
    (one,) = offers(site, link, product(price=None, textQty=0, qty=0))
    assert (one.price, one.stock) == (None, Stock.exact(0))
    site.get(f"{BASE}/v2/products/{OWN}").respond(json=product(price=None))
    with pytest.raises(NotForSale):
        link.call("place_order", order())


def test_wholesale_is_an_offer_of_its_own(site, link):
    """One merchant's: the one with the lowest price for 10, and with 10."""
    sold = [
        wholesale(1, tiers=[{"level": 1, "price": 5.6}]),
        wholesale(2, qty=300, tiers=[*TIERS, {"level": 5, "price": 5}]),  # which from 1000 on, nobody has said
        wholesale(3, qty=9, tiers=[{"level": 1, "price": 1}]),
        wholesale(4, enabled=False, tiers=[{"level": 1, "price": 1}]),
        wholesale(5, tiers=[]),
    ]
    retail, many = offers(site, link, product(offers=sold))
    assert (retail.max_quantity, retail.price, retail.stock) == (9, eur("5.79"), Stock.exact(140))
    assert (many.sku, many.price, many.stock) == (f"{OWN}/wholesale", eur("5.5"), Stock.exact(300))
    assert (many.min_quantity, many.max_quantity) == (10, 1000)
    assert many.tiers == ((50, eur("5.4")), (100, eur("5.3")), (500, eur("5.2")))
    assert many.data["offerId"] == "off2"


def test_a_pre_order_is_for_sale_only_where_a_setting_says_so(site, link, any_key):
    soon = product(isPreorder=True, offers=[wholesale(1)])
    (one,) = offers(site, link, soon)
    assert (one.for_sale, one.stock) == (False, Stock.exact(149))
    (one,) = offers(site, any_key, soon)
    assert (one.for_sale, one.max_quantity) == (True, 1)


def test_pages_go_by_number_to_the_total(site, link):
    asked = site.get(f"{BASE}/v1/products")
    asked.side_effect = [
        httpx.Response(200, json={"results": [product(productId=f"p{n}")], "item_count": 3}) for n in (1, 2, 3)
    ]
    found = list(link.pages(None, bool))
    assert [[offer.sku for offer in page.offers] for page in found] == [["p1"], ["p2"], ["p3"]]
    assert not any(page.incremental for page in found)
    assert [dict(call.request.url.params) for call in asked.calls] == [
        {"limit": "100", "sortBy": "kinguinId", "sortType": "asc", "page": page} for page in "123"
    ]


def test_a_product_that_was_pushed_to_the_next_page_is_read_once(site, link):
    pages = [["p1", "p2"], ["p2", "p3"]]
    site.get(f"{BASE}/v1/products").side_effect = [
        httpx.Response(200, json={"results": [product(productId=own) for own in page], "item_count": 4})
        for page in pages
    ]
    assert [offer.sku for page in link.pages(None, bool) for offer in page.offers] == ["p1", "p2", "p3"]


@pytest.mark.parametrize(
    "second",
    [
        {"results": [], "item_count": 3},
        {"results": [product(productId="p1")], "item_count": 3},
        {"results": [product(productId="p2")]},
        {"item_count": 3},
        {},
        [],
    ],
)
def test_P1_half_a_listing_is_none(site, link, second):
    answers = [{"results": [product(productId="p1")], "item_count": 3}, second]
    site.get(f"{BASE}/v1/products").side_effect = [httpx.Response(200, json=answer) for answer in answers]
    with pytest.raises(BadResponse):
        list(link.pages(None, bool))


def test_P1_changes_are_asked_for_in_utc_and_imply_nothing_more(site, link):
    asked = site.get(f"{BASE}/v1/products").respond(json={"results": [PRODUCT], "item_count": 1})
    since = datetime.fromisoformat("2026-03-01T20:00:00+08:00")
    (page,) = link.pages(since, bool)
    assert page.incremental
    assert asked.calls[0].request.url.params["updatedSince"] == "2026-03-01T12:00:00+00:00"


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (404, {"kind": "Http", "status": 404}, NotForSale),
        (404, {}, BadResponse),
        (200, product(productId="another"), NotForSale),
        (200, {}, BadResponse),
        (400, {"kind": "Authorization"}, Auth),
        (400, {"kind": "made-up"}, BadResponse),
    ],
)
def test_an_offer_that_is_gone_is_not_for_sale_and_garbage_says_nothing(site, link, status, said, kind):
    site.get(f"{BASE}/v2/products/{OWN}").respond(status, json=said)
    with pytest.raises(kind):
        link.call("get_offer", OWN)


def test_wholesale_that_no_merchant_has_any_more_is_not_for_sale(site, link):
    site.get(f"{BASE}/v2/products/{OWN}").respond(json=PRODUCT)
    with pytest.raises(NotForSale):
        link.call("get_offer", f"{OWN}/wholesale")


@pytest.mark.parametrize("sku", ["../v1/balance", "..", "a b?c=d"])
def test_a_sku_goes_nowhere_else(site, link, sku):
    site.get(url__startswith=f"{BASE}/v2/products/").respond(404, json={"kind": "Http"})
    with pytest.raises((BadResponse, NotForSale)):
        link.call("get_offer", sku)
    assert not [call for call in site.calls if "balance" in str(call.request.url)]


# --- buying -----------------------------------------------------------------------------------------------------------


def test_M4_the_price_that_is_sent_is_the_offers_of_this_moment(site, link):
    site.get(f"{BASE}/v2/products/{OWN}").respond(json=product(price=5.55))
    buying = site.post(f"{BASE}/v2/order").respond(201, json=MADE)
    made = link.call("place_order", order())
    assert (made.id, made.status, made.reference, made.charged) == (
        "PHS84FJAG5U",
        "pending",
        "KT0000000001",
        eur("5.29"),
    )
    assert buying.call_count == 1
    sent = buying.calls[0].request.content
    assert json.loads(sent) == {
        "products": [{"productId": OWN, "keyType": "text", "qty": 1, "price": 5.55}],
        "orderExternalId": "KT0000000001",
    }
    assert b'"price":5.55' in sent


def test_any_key_is_asked_for_where_the_setting_says_so(site, any_key):
    site.get(f"{BASE}/v2/products/{OWN}").respond(json=PRODUCT)
    buying = site.post(f"{BASE}/v2/order").respond(201, json=MADE)
    any_key.call("place_order", order())
    assert json.loads(buying.calls[0].request.content)["products"] == [{"productId": OWN, "qty": 1, "price": 5.79}]


def test_a_pre_order_is_bought_one_at_a_time_without_a_type(site, any_key):
    site.get(f"{BASE}/v2/products/{OWN}").respond(json=product(isPreorder=True))
    buying = site.post(f"{BASE}/v2/order").respond(201, json=MADE)
    any_key.call("place_order", order())
    assert "keyType" not in json.loads(buying.calls[0].request.content)["products"][0]
    with pytest.raises(Refused):
        any_key.call("place_order", order(quantity=2))


def test_M4_wholesale_names_its_offer_and_the_price_of_its_tier(site, link):
    site.get(f"{BASE}/v2/products/{OWN}").respond(json=product(offers=[wholesale(7)]))
    buying = site.post(f"{BASE}/v2/order").respond(201, json=MADE)
    link.call("place_order", order(f"{OWN}/wholesale", 50, "5.4"))
    (item,) = json.loads(buying.calls[0].request.content)["products"]
    assert item == {"productId": OWN, "keyType": "text", "offerId": "off7", "qty": 50, "price": 5.4}


@pytest.mark.parametrize(
    ("sku", "quantity", "limit", "now", "kind"),
    [
        (OWN, 1, "5.78", {}, PriceChanged),
        (OWN, 10, "9", {}, Refused),
        (OWN, 0, "9", {}, Refused),
        (OWN, 9, "9", {"textQty": 8}, OutOfStock),
        (OWN, 1, "9", {"isPreorder": True}, NotForSale),
        (f"{OWN}/wholesale", 9, "9", {"offers": [wholesale(1)]}, Refused),
        (f"{OWN}/wholesale", 1001, "9", {"offers": [wholesale(1, qty=5000)]}, Refused),
        (f"{OWN}/wholesale", 60, "9", {"offers": [wholesale(1, qty=59)]}, OutOfStock),
        (f"{OWN}/wholesale", 49, "5.4", {"offers": [wholesale(1)]}, PriceChanged),
        (f"{OWN}/wholesale", 10, "9", {"offers": []}, NotForSale),
    ],
)
def test_M4_what_breaks_a_rule_is_refused_before_anything_is_sent(site, link, sku, quantity, limit, now, kind):
    site.get(f"{BASE}/v2/products/{OWN}").respond(json=product(**now))
    buying = site.post(f"{BASE}/v2/order").respond(201, json=MADE)
    with pytest.raises(Refused) as caught:
        link.call("place_order", order(sku, quantity, limit))
    assert type(caught.value) is kind
    assert not buying.called


def test_M4_a_limit_in_another_currency_is_no_limit(site, link):
    site.get(f"{BASE}/v2/products/{OWN}").respond(json=PRODUCT)
    wanted = OrderRequest("KT0000000001", OFFER, 1, Money(Decimal(10), "USD"))
    with pytest.raises(Config):
        link.call("place_order", wanted)


def test_M4_nothing_is_bought_while_the_price_cannot_be_asked_for(site, link):
    site.get(f"{BASE}/v2/products/{OWN}").respond(200, content=b"<html>")
    buying = site.post(f"{BASE}/v2/order").respond(201, json=MADE)
    with pytest.raises(NotSent):
        link.call("place_order", order())
    assert not buying.called


KINDS = [
    (400, {"kind": "ProductUnavailable"}, OutOfStock),
    (402, {"kind": "InsufficientBalance"}, InsufficientBalance),
    (422, {"kind": "Preorder"}, NotForSale),
    (400, {"kind": "ConstraintViolation", "propertyPath": "products"}, Refused),
    (401, {"kind": "Authorization"}, Auth),
    (403, {"kind": "Authorization"}, Auth),
    (429, {}, RateLimited),
    (400, {"kind": "ConstraintViolation", "propertyPath": "orderExternalId"}, OutcomeUnknown),
    (422, {"kind": "OrderFailed"}, OutcomeUnknown),
    (409, {"kind": "ResourceLock"}, OutcomeUnknown),
    (422, {"kind": "HttpClient"}, OutcomeUnknown),
    (500, {"kind": "Error"}, OutcomeUnknown),
    (400, {"kind": "Http"}, OutcomeUnknown),
    (400, {"kind": "NotHeardOf"}, OutcomeUnknown),
    (400, {"kind": ["ProductUnavailable"]}, OutcomeUnknown),
    (400, {}, OutcomeUnknown),
    (418, {"kind": "ProductUnavailable"}, OutcomeUnknown),
]


@pytest.mark.parametrize(("status", "said", "kind"), KINDS)
def test_M1_only_a_kind_that_leaves_no_doubt_is_a_no(site, link, status, said, kind):
    site.get(f"{BASE}/v2/products/{OWN}").respond(json=PRODUCT)
    buying = site.post(f"{BASE}/v2/order").respond(
        status, json={"detail": "KEYS-0000-SECRET", "status": status, **said}
    )
    with pytest.raises(kind) as caught:
        link.call("place_order", order())
    assert kind is Auth or type(caught.value) is kind
    assert "KEYS" not in f"{caught.value!r} {caught.value}"
    assert buying.call_count == 1


UNKNOWN = [
    {"return_value": httpx.Response(201, content=b"<html>")},
    {"return_value": httpx.Response(201, json={})},
    {"return_value": httpx.Response(201, json=[])},
    {"return_value": httpx.Response(201, json={**MADE, "status": "new_word"})},
    {"return_value": httpx.Response(201, json={**MADE, "orderId": None})},
    {"return_value": httpx.Response(201, json={**MADE, "paymentPrice": "much"})},
    {"return_value": httpx.Response(400, content=b"bad request")},
]


@pytest.mark.parametrize("answer", UNKNOWN)
def test_M1_whatever_leaves_doubt_is_unknown_after_exactly_one_request(site, link, answer):
    site.get(f"{BASE}/v2/products/{OWN}").respond(json=PRODUCT)
    buying = site.post(f"{BASE}/v2/order").mock(**answer)
    with pytest.raises(OutcomeUnknown):
        link.call("place_order", order())
    assert buying.call_count == 1


@pytest.mark.parametrize(
    ("said", "ends"),
    [
        ({"results": [MADE], "item_count": 1}, "PHS84FJAG5U"),
        ({"results": [], "item_count": 0}, OutcomeUnknown),
        ({"results": [], "item_count": 1}, OutcomeUnknown),
        ({}, OutcomeUnknown),
    ],
)
def test_M1_what_was_sent_before_is_looked_up_and_never_sent_again(site, link, said, ends):
    site.get(f"{BASE}/v1/order").respond(json=said)
    buying = site.post(f"{BASE}/v2/order").respond(201, json=MADE)
    with nullcontext() if isinstance(ends, str) else pytest.raises(ends):
        assert link.call("place_order", order(again=True)).id == ends
    assert not buying.called


# --- orders -----------------------------------------------------------------------------------------------------------


def keyed(*states, **more):
    keys = [{"id": f"k{n}", "status": state} for n, state in enumerate(states)]
    return {**MADE, "totalQty": len(keys), "products": [{"qty": len(keys), "keys": keys}], **more}


@pytest.mark.parametrize(
    ("said", "status", "charged"),
    [
        (keyed("PENDING", "PROCESSING"), "pending", "5.29"),
        (keyed("DELIVERED", "PROCESSING"), "partial", "5.29"),
        (keyed("DELIVERED", "DELIVERED", status="completed"), "completed", "5.29"),
        (keyed("CANCELED", status="canceled"), "canceled", None),
        (keyed("REFUNDED", status="refunded"), "refunded", None),
        ({**MADE, "products": None, "paymentPrice": "5.29"}, "pending", "5.29"),
        ({**MADE, "paymentPrice": None}, "pending", None),
    ],
)
def test_each_status_is_one_of_ours(site, link, said, status, charged):
    site.get(f"{BASE}/v1/order/PHS84FJAG5U").respond(json=said)
    found = link.call("get_order", "PHS84FJAG5U")
    assert (found.status, found.charged, found.keys) == (status, charged and eur(charged), ())


def test_what_went_back_is_told(site, link):
    site.get(f"{BASE}/v1/order/PHS84FJAG5U").respond(json=keyed("DELIVERED", "RETURNED", status="completed"))
    assert link.call("get_order", "PHS84FJAG5U").note == "1 of 2 keys went back"


SEARCHES = [
    ({"results": [MADE], "item_count": 1}, "PHS84FJAG5U"),
    ({"results": [{**MADE, "orderExternalId": "kt0000000001"}], "item_count": 1}, None),
    ({"results": [], "item_count": 0}, None),
    ({"results": [{**MADE, "orderExternalId": None}], "item_count": 1}, None),
    ({"results": [{**MADE, "orderExternalId": "OTHER"}], "item_count": 900}, BadResponse),
    ({"results": [], "item_count": 1}, BadResponse),
    ({"results": []}, BadResponse),
    ({"results": [MADE, {**MADE, "orderId": "SECOND"}], "item_count": 2}, BadResponse),
    ({"results": [1], "item_count": 1}, BadResponse),
    ({"results": None, "item_count": 0}, BadResponse),
    ({"item_count": 0}, BadResponse),
    ({}, BadResponse),
    ([], BadResponse),
]


@pytest.mark.parametrize(("said", "ends"), SEARCHES)
def test_M1_there_is_no_order_only_if_a_whole_search_has_none(site, link, said, ends):
    """A search that ignores its filter answers with anybody's orders."""
    asked = site.get(f"{BASE}/v1/order").respond(json=said)
    with pytest.raises(ends) if isinstance(ends, type) else nullcontext():
        found = link.call("find_order", "KT0000000001")
        assert (found and found.id) == ends
    assert asked.calls[0].request.url.params["orderExternalId"] == "KT0000000001"


@pytest.mark.parametrize(
    "answer", [httpx.Response(404, json={"kind": "OrderNotFound"}), httpx.Response(404), httpx.Response(503)]
)
def test_M1_an_answer_that_is_no_search_is_not_no_order(site, link, answer):
    site.get(f"{BASE}/v1/order").mock(return_value=answer)
    with pytest.raises((BadResponse, Transient)):
        link.call("find_order", "KT0000000001")


# --- keys -------------------------------------------------------------------------------------------------------------

TEXT = "  0042-ABCD\r\n密码 e\u0301 \t"


def key(number, serial="AAAA", kind="text/plain"):
    return {"id": f"k{number}", "serial": serial, "type": kind, "name": "Game", "productId": OWN}


def fetched(site, link, said, *pages):
    site.get(f"{BASE}/v1/order/PHS84FJAG5U").respond(json=said)
    asked = site.get(f"{BASE}/v2/order/PHS84FJAG5U/keys")
    asked.side_effect = [httpx.Response(200, json=page) for page in pages]
    return link.call("fetch_keys", Order("PHS84FJAG5U", "partial")), asked


def test_K14_keys_are_texts_and_pictures_as_they_came_with_their_ids(site, link):
    picture = base64.b64encode(GIF).decode()
    said = keyed(*["DELIVERED"] * 3, status="completed")
    found, _ = fetched(
        site, link, said, [key(0, TEXT), key(1, picture, "image/gif"), key(2, "no picture", "image/png")]
    )
    assert [one.id for one in found] == ["k0", "k1", "k2"]
    assert (found[0].text.reveal(), found[1].image) == (TEXT, GIF)
    assert {name: part.reveal() for name, part in found[2].fields.items()} == {
        "type": "image/png",
        "image": "no picture",
    }
    assert "0042" not in repr(found)


def test_keys_are_asked_for_page_by_page_until_all_are_there(site, link):
    said = keyed(*["DELIVERED"] * 150, status="completed")
    pages = [[key(n) for n in range(100)], [key(n) for n in range(100, 150)]]
    found, asked = fetched(site, link, said, *pages)
    assert len(found) == 150
    assert [dict(call.request.url.params) for call in asked.calls] == [{"page": n, "limit": "100"} for n in "12"]


def test_what_is_there_already_is_handed_over_while_the_rest_is_under_way(site, link):
    found, asked = fetched(site, link, keyed("DELIVERED", "PROCESSING"), [key(0)], [])
    assert ([one.id for one in found], asked.call_count) == (["k0"], 2)


def test_a_key_that_went_back_is_never_handed_over(site, link):
    """It is somebody else's by now."""
    states = ["DELIVERED", "RETURNED", "REFUNDED", "CANCELED"]
    found, _ = fetched(site, link, keyed(*states, status="completed"), [key(n) for n in range(4)])
    assert [one.id for one in found] == ["k0"]


@pytest.mark.parametrize("word", ["canceled", "refunded"])
def test_an_order_that_is_over_has_no_keys_whatever_it_was_before(site, link, word):
    found, asked = fetched(site, link, keyed("DELIVERED", status=word), [key(0)])
    assert (list(found), asked.called) == ([], False)


@pytest.mark.parametrize("page", [{}, None, [None], [{}], [key(0, None)], [key(0, 42)], [[]]])
def test_keys_that_are_not_what_the_document_says_are_no_keys(site, link, page):
    with pytest.raises(BadResponse):
        fetched(site, link, keyed("DELIVERED", "PROCESSING"), page, [])


def test_keys_without_ids_are_not_taken_for_one(site, link):
    bare = [{"serial": text, "type": "text/plain; charset=utf-8"} for text in ("A", "A", "B")]
    found, _ = fetched(site, link, keyed(*["DELIVERED"] * 3, status="completed"), bare)
    assert [one.text.reveal() for one in found] == ["A", "A", "B"]


def test_only_whole_orders_are_given_back(site, link):
    """The supplier takes back every key of it that it can: those that were sold as well."""
    site.get(f"{BASE}/v1/order/PHS84FJAG5U").respond(json=keyed("DELIVERED", "DELIVERED", "RETURNED", "PROCESSING"))
    returning = site.post(f"{BASE}/v2/order/PHS84FJAG5U/keys/return").respond(
        json=[
            {"id": "k0", "status": "RETURNED"},
            {"id": "k1", "status": "DELIVERED"},
            {"id": "k3", "status": "REFUNDED"},
        ]
    )
    for some in (["k0"], ["k0", "k1"], []):
        with pytest.raises(Refused, match="whole orders"):
            link.call("return_keys", "PHS84FJAG5U", some)
    assert not returning.called
    assert link.call("return_keys", "PHS84FJAG5U", ["k0", "k1", "k3", "k9"]) == {
        "k0": True,
        "k1": False,
        "k3": True,
        "k9": False,
    }
    assert returning.call_count == 1


# --- webhooks ---------------------------------------------------------------------------------------------------------

STATUS = b'{"orderId":"PHS84FJAG5U","orderExternalId":"KT0000000001","status":"canceled","updatedAt":"2020-10-16"}'


def webhook(name="order.status", body=STATUS, secret="made-up-event-secret", **more):
    headers = {"x-event-name": name, "x-event-secret": secret, **more}
    return Webhook("POST", "/hooks/k", headers, {}, body, datetime(2026, 3, 1, tzinfo=UTC))


def test_W1_a_webhook_is_a_hint_to_ask(link):
    hint = link.call("parse_webhook", webhook())
    assert (hint.event, hint.order_id, hint.reference, hint.answer) == ("order", "PHS84FJAG5U", "KT0000000001", b"")
    hint = link.call("parse_webhook", webhook("product.update", b'{"productId":"%s","qty":845}' % OWN.encode()))
    assert (hint.event, hint.sku) == ("offer", OWN)
    assert link.call("parse_webhook", webhook("something.else", b"{}")).event == "test"


@pytest.mark.parametrize("secret", ["", "made-up-event-secre", "made-up-event-secret ", "MADE-UP-EVENT-SECRET", "\xe9"])
def test_W1_without_our_secret_it_is_forged(link, secret):
    with pytest.raises(Forged):
        link.call("parse_webhook", webhook(secret=secret))


def test_W1_nothing_is_believed_where_no_secret_is_set(any_key):
    for secret in ("", "None", "made-up-event-secret"):
        with pytest.raises(Forged):
            any_key.adapter.parse_webhook(webhook(secret=secret))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"7", b"<html>", b"\xff", b'{"orderId"', b"[" * 100_000])
@pytest.mark.parametrize("name", ["order.status", "product.update"])
def test_W1_a_webhook_about_nothing_is_a_bad_response(link, name, body):
    with pytest.raises(BadResponse):
        link.call("parse_webhook", webhook(name, body))


# --- from end to end, against a store with a ledger -------------------------------------------------------------------

BUY = f"{ROOT}/v2/order"


@pytest.fixture
def real():
    with Kinguin() as store:
        texts = [f"KEY-{number:04}" for number in range(8)]
        store.sell(
            1, {"price": "5.79", "keys": [*texts, GIF]}, {"price": "6.20", "keys": [f"DEAR-{n}" for n in range(9)]}
        )
        many = [f"MANY-{number:04}" for number in range(250)]
        store.sell(2, {"price": "3.00", "keys": many, "tiers": {1: "2.80", 2: "2.60", 3: "2.40"}})
        yield store


def at(store, variant=lambda kind: kind, **settings):
    """A link to the loopback, which no setting leads to."""

    def there(kind):
        sys.modules[kind.__module__].PRODUCTION = store.url + ROOT
        return variant(kind)

    return linked("kinguin", key=SecretText(store.key), variant=there, **settings)


@pytest.fixture
def ours(real):
    made = at(real)
    yield made
    made.close()


def want(link, number=1, quantity=2, reference="KT0000000001", wholesale=""):
    sku = f"{number:024x}{wholesale}"
    (offer,) = [one for page in link.pages(None, bool) for one in page.offers if one.sku == sku]
    price = [offer.price, *(each for least, each in offer.tiers if quantity >= least)][-1]
    return OrderRequest(reference, offer, quantity, price)


def texts(keys):
    return [one.text.reveal() for one in keys]


def test_buying_from_listing_to_keys(real, ours):
    made = ours.call("place_order", want(ours))
    assert (made.status, list(ours.call("fetch_keys", made))) == ("pending", [])
    seen = []
    for _ in range(2):
        real.deliver(made.id, 1)
        found = ours.call("get_order", made.id)
        keys = ours.call("fetch_keys", found)
        seen.append((found.status, texts(keys)))
    assert seen == [("partial", ["KEY-0000"]), ("completed", ["KEY-0000", "KEY-0001"])]
    assert ours.call("find_order", "KT0000000001").status == "completed"
    assert ours.call("get_balance") == eur("488.42")
    assert ours.call("get_offer", want(ours).offer.sku).stock == Stock.exact(6)


def test_wholesale_from_listing_to_keys(real, ours):
    real.balance = Decimal(600)
    made = ours.call("place_order", want(ours, 2, 230, wholesale="/wholesale"))
    real.deliver(made.id)
    keys = ours.call("fetch_keys", ours.call("get_order", made.id))
    assert (len(set(texts(keys))), made.charged) == (230, eur("552.0"))
    with pytest.raises(Refused):
        ours.call("return_keys", made.id, [one.id for one in keys])


def test_pictures_come_where_they_are_wanted(real):
    link = at(real, key_type="any")
    made = link.call("place_order", want(link, quantity=9))
    real.deliver(made.id)
    keys = link.call("fetch_keys", made)
    link.close()
    assert [one.image for one in keys if one.image] == [GIF]
    assert len(keys) == 9


def test_an_order_that_is_given_back_hands_over_nothing_more(real, ours):
    made = ours.call("place_order", want(ours))
    real.deliver(made.id)
    ids = [one.id for one in ours.call("fetch_keys", made)]
    assert ours.call("return_keys", made.id, ids) == dict.fromkeys(ids, True)
    assert list(ours.call("fetch_keys", made)) == []
    with pytest.raises(Refused, match="NoKeysToReturn"):
        ours.call("return_keys", made.id, ids)


def pays_no_more_than_its_limit(store, link):
    """The property: a price that rose since the listing is seen before anything is sent."""
    wanted = want(link)
    store.products[wanted.offer.sku]["held"][0]["price"] = "6.19"
    with pytest.raises(PriceChanged):
        link.call("place_order", wanted)
    assert (store.times(BUY), store.ledger.charges) == (0, [])


def test_M4_a_price_that_changed_since_the_listing_is_seen_before_it_is_paid(real, ours):
    pays_no_more_than_its_limit(real, ours)


def test_M4_control_an_adapter_without_a_guard_is_caught(real):
    def trusting(kind):
        class Trusting(kind):
            async def place_order(self, order):
                return await super().place_order(replace(order, max_unit_cost=None))

        return Trusting

    broken = at(real, trusting)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        pays_no_more_than_its_limit(real, broken)
    broken.close()
    assert [charge.amount for charge in real.ledger.charges] == [Decimal("12.38")]


def test_M4_a_price_that_changes_between_the_look_and_the_order_buys_nothing(real):
    """The supplier holds the price that was sent against its offers: whatever it is by then, we pay no more."""

    def slow(kind):
        class Slow(kind):
            async def get_offer(self, sku):
                now = await super().get_offer(sku)
                for one in real.products[sku.partition("/")[0]]["held"]:
                    one["price"] = "99.00"
                return now

        return Slow

    link = at(real, slow)
    with pytest.raises(OutOfStock):
        link.call("place_order", want(link))
    link.close()
    assert (real.times(BUY), real.ledger.charges) == (1, [])


def unknown(server, link, fault):
    wanted = want(link)
    ends_unknown_after_one_request(server, link, wanted, BUY, fault)
    return wanted


@pytest.mark.parametrize("duplicates", ["buys", "refuses"])
@pytest.mark.parametrize(("fault", "charges"), FAULTS)
def test_M1_an_answer_that_is_lost_is_one_request_and_the_search_tells(real, ours, fault, charges, duplicates):
    """Whatever the supplier does with a reference that comes again: it never comes again."""
    real.duplicates = duplicates
    wanted = unknown(real, ours, fault)
    assert len(real.ledger.charges) == charges
    found = ours.call("find_order", wanted.reference)
    assert (found and found.id) == (real.ledger.charges[0].order_id if charges else None)
    with nullcontext() if charges else pytest.raises(OutcomeUnknown):
        assert ours.call("place_order", replace(wanted, again=True)).id == found.id
    if charges:
        real.deliver(found.id)
        assert texts(ours.call("fetch_keys", found)) == ["KEY-0000", "KEY-0001"]
    assert (real.ledger.most(), real.times(BUY)) == (charges, 1)


def test_M1_a_search_that_lags_leads_to_no_second_order(real, ours):
    real.hidden = True
    wanted = unknown(real, ours, "lost")
    with pytest.raises(OutcomeUnknown):
        ours.call("place_order", replace(wanted, again=True))
    assert real.ledger.most() == 1


def test_too_many_requests_bought_nothing_and_are_not_repeated(real, ours):
    wanted = want(ours)
    real.fail(BUY, "busy")
    with pytest.raises(RateLimited) as caught:
        ours.call("place_order", wanted)
    assert (caught.value.retry_after, real.times(BUY), real.ledger.charges) == (3.0, 1, [])


def hasty(kind):
    """A planted bug: what was sent before is sent again without a look."""

    class Hasty(kind):
        async def place_order(self, order):
            return await super().place_order(replace(order, again=False))

    return Hasty


def retrying(kind):
    """A planted bug: doubt is taken for a no, and it is sent again."""

    class Retrying(kind):
        async def place_order(self, order):
            item = {**order.offer.data, "qty": order.quantity, "price": order.offer.price.amount}
            body = {"products": [item], "orderExternalId": order.reference}
            for _ in range(2):
                try:
                    answer = await self.http.request("POST", "/v2/order", json=body, reads=True)  # which is a lie
                    break
                except (BadResponse, Transient):
                    continue
            return Order(answer.object()["orderId"], "pending")

    return Retrying


def test_M1_control_an_adapter_that_tries_again_is_caught(real):
    broken = at(real, retrying)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        unknown(real, broken, "lost")
    broken.close()
    assert real.ledger.most() == real.times(BUY) == 2


def test_M1_control_an_adapter_that_sends_again_without_a_look_is_charged_twice(real):
    broken = at(real, hasty)
    wanted = unknown(real, broken, "lost")
    broken.call("place_order", replace(wanted, again=True))
    broken.close()
    assert real.ledger.most() == 2


def test_a_wrong_key_is_refused(real):
    made = at(real)
    real.key = "another-store-key"
    with pytest.raises(Auth):
        made.call("check")
    made.close()


@pytest.mark.parametrize("fault", ["page", "cut", "short", "error"])
def test_P1_a_listing_that_breaks_off_is_read_again_or_not_at_all(real, ours, fault):
    real.page_cap = 1
    real.fail(f"{ROOT}/v1/products", "", *[fault] * 4)
    with pytest.raises((BadResponse, Transient)):
        list(ours.pages(None, bool))
    real.faults.clear()
    assert len([offer for page in ours.pages(None, bool) for offer in page.offers]) == 3


def test_P1_only_what_changed_is_read_and_nothing_is_implied(real, ours):
    real.sell(3, {"price": "1.00", "keys": ["X"]}, updatedAt="2026-04-01T00:00:00+00:00")
    pages = list(ours.pages(datetime(2026, 3, 20, tzinfo=UTC), bool))
    assert [(offer.sku, page.incremental) for page in pages for offer in page.offers] == [(f"{3:024x}", True)]
