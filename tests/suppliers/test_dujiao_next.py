"""adapters/dujiao_next.py: signatures, what it makes of every answer, and one charge a reference from end to end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from datetime import UTC, datetime, timedelta
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
    OrderRequest,
    OutcomeUnknown,
    OutOfStock,
    PriceChanged,
    RateLimited,
    Refused,
    Request,
    SecretText,
    Stock,
    Transient,
    Webhook,
)
from syncd.model import Clock
from tests.suppliers.loopback.dujiao_next import ROOT, Site
from tests.suppliers.loopback.linked import FAULTS, ends_unknown_after_one_request, linked

SITE = "https://site.test"
BASE = f"{SITE}{ROOT}"
SKU = Offer("7/31", "商品", Money(Decimal("9.90"), "CNY"), Stock.exact(5), data={"sku_id": "31"})
KEY, SECRET = SecretText("made-up-site-key"), SecretText("made-up-site-secret")
PING = {"ok": True, "site_name": "x", "user_id": 42, "balance": "1000.00", "currency": "CNY", "member_level": None}
PRODUCT = {
    "id": 7,
    "title": {"en": "Card", "zh-CN": "点卡"},
    "price_amount": "9.90",
    "fulfillment_type": "auto",
    "is_active": True,
    "updated_at": "2026-03-01T12:00:00.123456789+08:00",
    "skus": [
        {"id": 31, "sku_code": "D", "spec_values": {}, "price_amount": "9.90", "stock_quantity": 5, "is_active": True}
    ],
}
MADE = {"ok": True, "order_id": 101, "order_no": "DJ1", "status": "paid", "amount": "9.90", "currency": "CNY"}


@pytest.fixture
def link():
    made = linked("dujiao_next", site=SITE, key=KEY, secret=SECRET)
    yield made
    made.close()


@pytest.fixture
def site():
    with respx.mock(assert_all_called=False) as routes:
        yield routes


def order(**more):
    return OrderRequest(reference="KT0000000001", offer=SKU, quantity=1, **more)


def product(**more):
    return {**PRODUCT, **more}


def sku(**more):
    return {**PRODUCT["skus"][0], **more}


def listing(*products, total=None, **more):
    return {"ok": True, "items": list(products), "total": len(products) if total is None else total, **more}


# --- the signature ----------------------------------------------------------------------------------------------------

VECTORS = [
    (
        "POST",
        f"{ROOT}/orders",
        b'{"sku_id":1,"quantity":1}',
        "48afbcf8034f6e6ac879b7af76f4efc5a96bacb8ffb4bc9578403997450e6a1c",
    ),
    ("GET", f"{ROOT}/products", b"", "4c46320a66a0d9d2fca1b11bbb098338b4b1adbb8f2b8d8917dd1a41302e6b0b"),
]


@pytest.mark.parametrize(("method", "path", "body", "signature"), VECTORS)
def test_every_documented_signature_is_made(method, path, body, signature):
    made = linked("dujiao_next", site=SITE, key=KEY, secret=SecretText("secret"))
    at = datetime.fromtimestamp(1700000000, UTC)
    assert made.adapter.sign(Request(method, path, {"page": "2"}, body, {}, at)) == {
        "Dujiao-Next-Api-Key": "made-up-site-key",
        "Dujiao-Next-Timestamp": "1700000000",
        "Dujiao-Next-Signature": signature,
    }


@pytest.mark.parametrize("address", [SITE, f"{SITE}/", f"{SITE}{ROOT}", f"{SITE}{ROOT}/"])
def test_the_site_may_be_written_with_its_root_or_without(site, address):
    site.post(f"{BASE}/ping").respond(json=PING)
    made = linked("dujiao_next", site=address, key=KEY, secret=SECRET)
    assert made.call("get_balance") == Money(Decimal("1000.00"), "CNY")
    made.close()


# --- reading ----------------------------------------------------------------------------------------------------------


def test_check_says_who_we_are_and_what_we_have(site, link):
    site.post(f"{BASE}/ping").respond(json=PING)
    found = link.call("check")
    assert (found.account, found.balance) == ("user 42", Money(Decimal(1000), "CNY"))


@pytest.mark.parametrize("verb", ["check", "get_balance", "list_offers"])
def test_P1_a_site_that_counts_in_another_currency_is_a_mistake_in_the_configuration(site, link, verb):
    site.post(f"{BASE}/ping").respond(json={**PING, "currency": "USD"})
    with pytest.raises(Config, match="does not count in CNY"):
        list(link.pages(None, bool)) if verb == "list_offers" else link.call(verb)


def offers(site, link, *products, since=None, **more):
    site.post(f"{BASE}/ping").respond(json=PING)
    site.get(f"{BASE}/products").respond(json=listing(*products, **more))
    return [offer for page in link.pages(since, bool) for offer in page.offers]


def test_each_sku_is_an_offer_with_the_price_that_we_pay(site, link):
    tiers = [
        {"min_quantity": 10, "unit_price": "9.00"},
        {"min_quantity": 50, "unit_price": "8.00"},
        {"sku_id": 32, "min_quantity": 50, "unit_price": "15.00"},
        {"sku_code": "D", "min_quantity": 100, "unit_price": 7},
    ]
    first, second = offers(
        site,
        link,
        product(
            wholesale_prices=tiers,
            skus=[
                sku(),
                sku(id=32, sku_code="E", spec_values={"面值": "20"}, price_amount="18.00", member_price="18.00"),
            ],
        ),
    )
    assert (first.sku, first.title, first.price) == ("7/31", "点卡", Money(Decimal("9.90"), "CNY"))
    assert (first.stock, first.for_sale, dict(first.data)) == (Stock.exact(5), True, {"sku_id": "31"})
    assert first.updated_at == datetime.fromisoformat("2026-03-01T12:00:00.123456+08:00")
    assert [(least, str(price.amount)) for least, price in first.tiers] == [(10, "9.00"), (50, "8.00"), (100, "7")]
    assert (second.sku, second.title, second.price) == ("7/32", "点卡 20", Money(Decimal("18.00"), "CNY"))
    assert [(least, str(price.amount)) for least, price in second.tiers] == [(10, "9.00"), (50, "15.00")]


@pytest.mark.parametrize(
    ("said", "stock"),
    [
        ({"stock_quantity": -1, "stock_status": "unlimited"}, Stock.unlimited()),
        ({"stock_quantity": 0, "stock_status": "out_of_stock"}, Stock.exact(0)),
        ({"stock_quantity": 21, "stock_status": "in_stock"}, Stock.exact(21)),
    ],
)
def test_P1_minus_one_is_no_limit(site, link, said, stock):
    (one,) = offers(site, link, product(skus=[sku(**said)]))
    assert one.stock == stock


@pytest.mark.parametrize(
    "wrong",
    [
        {"skus": [sku(stock_quantity=-2)]},
        {"skus": [sku(stock_quantity="many")]},
        {"skus": [sku(stock_quantity=None, stock_status="in_stock")]},
        {"skus": [sku(price_amount="free")]},
        {"skus": [sku(id=None)]},
        {"skus": [{"id": 31}]},
        {"skus": None},
        {"currency": "USD"},
    ],
)
def test_P1_a_product_that_is_not_what_the_document_says_ends_the_listing(site, link, wrong):
    with pytest.raises(BadResponse):
        offers(site, link, product(**wrong))


@pytest.mark.parametrize(
    "more", [{"fulfillment_type": "manual"}, {"is_active": False}, {"skus": [sku(is_active=False)]}]
)
def test_what_is_manual_or_off_the_shelf_is_not_for_buying(site, link, more):
    (one,) = offers(site, link, product(**more))
    assert not one.for_sale


def test_pages_end_at_the_total_though_the_site_gives_fewer_than_asked_for(site, link):
    """One version gives 50 a page, whatever page_size asks for."""
    site.post(f"{BASE}/ping").respond(json=PING)
    pages = site.get(f"{BASE}/products")
    pages.side_effect = [
        httpx.Response(200, json=listing(product(id=number), total=3, page_size=1)) for number in (1, 2, 3)
    ]
    found = [[offer.sku for offer in page.offers] for page in link.pages(None, bool)]
    assert found == [["1/31"], ["2/31"], ["3/31"]]
    assert [call.request.url.params["page"] for call in pages.calls] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "second",
    [
        listing(total=3),
        listing(product(id=1), total=3),
        {"ok": True, "items": []},
        {"ok": True, "total": 3},
        {},
        [],
    ],
)
def test_P1_half_a_listing_is_none(site, link, second):
    site.post(f"{BASE}/ping").respond(json=PING)
    answers = [listing(product(id=1), total=3), second]
    site.get(f"{BASE}/products").side_effect = [httpx.Response(200, json=answer) for answer in answers]
    with pytest.raises(BadResponse):
        list(link.pages(None, bool))


@pytest.mark.parametrize("body", [b"", b"<html></html>", b'{"ok":true,"items":[{"id":1', b"null"])
def test_P1_an_answer_that_is_no_listing_is_a_bad_response(site, link, body):
    site.post(f"{BASE}/ping").respond(json=PING)
    site.get(f"{BASE}/products").respond(content=body)
    with pytest.raises(BadResponse):
        list(link.pages(None, bool))


def test_what_changed_is_asked_for_only_where_it_is_switched_on(site, link):
    """A sale changes no product, so that stock would stand still."""
    offers(site, link, product(), since=datetime(2026, 3, 1, tzinfo=UTC))
    assert all("updated_after" not in call.request.url.params for call in site.calls)


@pytest.mark.parametrize("code", ["product_not_found", "product_unavailable"])
def test_an_offer_that_is_gone_is_not_for_sale(site, link, code):
    site.get(f"{BASE}/products/7").respond(404, json={"ok": False, "error_code": code, "error_message": "x"})
    with pytest.raises(NotForSale, match=code):
        link.call("get_offer", "7/31")


@pytest.mark.parametrize("name", ["31", "7/", "../orders/1", "7/31/2", ""])
def test_a_sku_of_another_form_is_not_asked_for(site, link, name):
    with pytest.raises(NotForSale):
        link.call("get_offer", name)
    assert not site.calls


def test_a_product_without_the_sku_any_more_is_not_for_sale(site, link):
    site.get(f"{BASE}/products/7").respond(json={"ok": True, "product": product(skus=[sku(id=99)])})
    with pytest.raises(NotForSale):
        link.call("get_offer", "7/31")


AUTH = [
    ("missing_auth_headers", "key and secret"),
    ("invalid_api_key", "key and secret"),
    ("invalid_signature", "key and secret"),
    ("invalid_timestamp", "clock"),
    ("timestamp_expired", "clock"),
    ("user_disabled", "disabled"),
]


@pytest.mark.parametrize(("code", "hint"), AUTH)
@pytest.mark.parametrize("verb", ["get_balance", "place_order"])
def test_refused_credentials_say_what_to_correct(site, link, verb, code, hint):
    refusal = {"ok": False, "error_code": code, "error_message": "made-up-site-secret"}
    site.post(f"{BASE}/ping").respond(401, json=refusal)
    site.post(f"{BASE}/orders").respond(401, json=refusal)
    with pytest.raises(Auth, match=code) as caught:
        link.call(verb, *([order()] if verb == "place_order" else []))
    assert hint in caught.value.hint
    assert len(site.calls) == 1


def test_a_403_of_somebody_else_is_refused_credentials_too(site, link):
    site.post(f"{BASE}/ping").respond(403, json={"ok": False, "error_code": "waf"})
    with pytest.raises(Auth, match="in front of the site"):
        link.call("get_balance")


def test_M1_a_page_with_403_tells_nothing_of_our_credentials_and_leaves_an_order_unknown(site, link):
    site.post(path__regex="/(ping|orders)$").respond(403, content=b"<html>blocked</html>")
    with pytest.raises(BadResponse):
        link.call("get_balance")
    with pytest.raises(OutcomeUnknown):
        link.call("place_order", order())


# --- buying -----------------------------------------------------------------------------------------------------------


def test_an_order_is_one_request_with_our_reference(site, link):
    buying = site.post(f"{BASE}/orders").respond(json=MADE)
    made = link.call("place_order", order(callback_url="https://shop.example/hooks/site"))
    assert (made.id, made.status, made.reference) == ("101", "pending", "KT0000000001")
    assert made.charged == Money(Decimal("9.90"), "CNY")
    assert buying.call_count == len(site.calls) == 1
    assert json.loads(buying.calls[0].request.content) == {
        "sku_id": 31,
        "quantity": 1,
        "downstream_order_no": "KT0000000001",
        "callback_url": "https://shop.example/hooks/site",
    }


@pytest.mark.parametrize(
    ("status", "becomes", "charged"),
    [
        ("pending_payment", "pending", None),
        ("completed", "pending", Money(Decimal("9.90"), "CNY")),
        ("canceled", "canceled", None),
    ],
)
def test_the_existing_order_may_be_the_answer_without_its_keys(site, link, status, becomes, charged):
    """A repeated reference is answered with the order of the first time; only GET /orders/:id has keys in it."""
    site.post(f"{BASE}/orders").respond(json={**MADE, "status": status})
    made = link.call("place_order", order())
    assert (made.status, made.charged, made.keys) == (becomes, charged, ())


REFUSALS = [
    (400, "bad_request", Refused),
    (400, "invalid_callback_url", Refused),
    (400, "sku_unavailable", NotForSale),
    (400, "product_unavailable", NotForSale),
    (402, "insufficient_balance", InsufficientBalance),
    (404, "product_not_found", NotForSale),
    (409, "insufficient_stock", OutOfStock),
    (200, "payment_failed", Refused),
]


@pytest.mark.parametrize(("status", "code", "kind"), REFUSALS)
def test_each_refusal_is_a_certain_no(site, link, status, code, kind):
    buying = site.post(f"{BASE}/orders").respond(
        status, json={"ok": False, "order_id": 101, "status": "canceled", "error_code": code, "error_message": "x"}
    )
    with pytest.raises(Refused) as caught:
        link.call("place_order", order())
    assert type(caught.value) is kind
    assert buying.call_count == 1


UNKNOWN = [
    {"return_value": httpx.Response(500, json={"ok": False, "error_code": "internal_error"})},
    {"return_value": httpx.Response(200, json={"ok": True})},
    {"return_value": httpx.Response(200, json={**MADE, "status": "new_word"})},
    {"return_value": httpx.Response(200, json={**MADE, "amount": None})},
    {"return_value": httpx.Response(200, json={"ok": False, "error_code": "new_code"})},
    {"return_value": httpx.Response(400, json={"ok": False, "error_code": "new_code"})},
    {"return_value": httpx.Response(409, content=b"conflict")},
]


@pytest.mark.parametrize("answer", UNKNOWN)
def test_M1_whatever_leaves_doubt_is_unknown_after_exactly_one_request(site, link, answer):
    buying = site.post(f"{BASE}/orders").mock(**answer)
    with pytest.raises(OutcomeUnknown):
        link.call("place_order", order())
    assert buying.call_count == 1


def test_too_many_requests_bought_nothing(site, link):
    site.post(f"{BASE}/orders").respond(429, headers={"retry-after": "7"})
    with pytest.raises(RateLimited) as caught:
        link.call("place_order", order())
    assert caught.value.retry_after == 7


WHOLESALE = {"wholesale_prices": [{"min_quantity": 10, "unit_price": "9.00"}], "skus": [sku(stock_quantity=50)]}


@pytest.mark.parametrize(
    ("limit", "now", "quantity", "bought"),
    [
        ("9.90", {}, 1, True),
        ("9.89", {}, 1, False),
        ("9.00", WHOLESALE, 10, True),
        ("9.00", WHOLESALE, 9, False),
        ("9.00", {"skus": [sku(price_amount="9.00", member_price="9.00", original_price="9.90")]}, 1, True),
    ],
)
def test_M4_the_price_is_asked_for_just_before(site, link, limit, now, quantity, bought):
    site.get(f"{BASE}/products/7").respond(json={"ok": True, "product": product(**now)})
    buying = site.post(f"{BASE}/orders").respond(json=MADE)
    wanted = OrderRequest("KT0000000001", SKU, quantity, max_unit_cost=Money(Decimal(limit), "CNY"))
    with contextlib.nullcontext() if bought else pytest.raises(PriceChanged):
        link.call("place_order", wanted)
    assert buying.call_count == bought


def test_M4_nothing_is_bought_while_the_price_cannot_be_asked_for(site, link):
    site.get(f"{BASE}/products/7").respond(200, content=b"<html>")
    buying = site.post(f"{BASE}/orders").respond(json=MADE)
    with pytest.raises(NotSent):
        link.call("place_order", order(max_unit_cost=Money(Decimal(10), "CNY")))
    assert not buying.called


def test_M4_a_limit_in_another_currency_is_no_limit(site, link):
    site.get(f"{BASE}/products/7").respond(json={"ok": True, "product": PRODUCT})
    with pytest.raises(Config):
        link.call("place_order", order(max_unit_cost=Money(Decimal(10), "USD")))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.Response(200, json=MADE), None),
        (httpx.Response(409, json={"ok": False, "error_code": "insufficient_stock"}), OutOfStock),
        (httpx.Response(400, json={"ok": False, "error_code": "sku_unavailable"}), NotForSale),
        (httpx.Response(200, json={"ok": False, "error_code": "payment_failed"}), Refused),
        (httpx.Response(400, json={"ok": False, "error_code": "bad_request"}), OutcomeUnknown),
        (httpx.Response(400, json={"ok": False, "error_code": "invalid_callback_url"}), OutcomeUnknown),
        (httpx.Response(401, json={"ok": False, "error_code": "invalid_api_key"}), OutcomeUnknown),
        (httpx.Response(429), OutcomeUnknown),
    ],
)
def test_M1_sent_again_only_the_site_that_looked_it_up_may_say_no(site, link, answer, kind):
    site.post(f"{BASE}/orders").mock(return_value=answer)
    with pytest.raises(kind) if kind else contextlib.nullcontext():
        assert link.call("place_order", order(again=True)).id == "101"


def test_M1_sent_again_a_guard_of_ours_tells_nothing_of_the_first_time(site, link):
    site.get(f"{BASE}/products/7").respond(json={"ok": True, "product": PRODUCT})
    with pytest.raises(OutcomeUnknown):
        link.call("place_order", order(again=True, max_unit_cost=Money(Decimal(1), "CNY")))


# --- orders -----------------------------------------------------------------------------------------------------------

PAYLOAD = "0042-ABCD\r\n  卡号：007 密码：é́ \n\nhttps://x.test/%0A?a=1&amp;b=2\t\n"


def detail(status="completed", payload=PAYLOAD, **more):
    done = {"type": "auto", "status": "delivered", "payload": payload, "delivery_data": None}
    return {**MADE, "status": status, "items": [{"quantity": 2}], "fulfillment": done, **more}


def test_K14_what_was_delivered_is_one_text_exactly_as_it_came(site, link):
    site.get(f"{BASE}/orders/101").respond(json=detail(refunded_amount="0.00"))
    found = link.call("get_order", "101")
    assert (found.status, found.quantity, found.charged) == ("completed", 2, Money(Decimal("9.90"), "CNY"))
    assert [key.text.reveal() for key in found.keys] == [PAYLOAD]
    assert "0042" not in repr(found)


STATUSES = [
    ("pending_payment", "pending", 0),
    ("paid", "pending", 0),
    ("fulfilling", "pending", 0),
    ("partially_delivered", "partial", 1),
    ("delivered", "completed", 1),
    ("completed", "completed", 1),
    ("canceled", "canceled", 0),
    ("refunded", "refunded", 0),
    ("partially_refunded", "completed", 1),
]


@pytest.mark.parametrize(("word", "status", "keys"), STATUSES)
def test_each_status_is_one_of_ours(site, link, word, status, keys):
    """A canceled or refunded order may still have its keys in the answer: they are not handed over."""
    site.get(f"{BASE}/orders/101").respond(json=detail(word))
    found = link.call("get_order", "101")
    assert (found.status, len(found.keys), found.note) == (status, keys, word)


def test_what_came_back_is_not_charged(site, link):
    site.get(f"{BASE}/orders/101").respond(json=detail("partially_refunded", refunded_amount="4.95"))
    assert link.call("get_order", "101").charged == Money(Decimal("4.95"), "CNY")


@pytest.mark.parametrize("payload", ["", None, " \n"])
def test_an_order_that_is_done_without_a_payload_has_no_keys(site, link, payload):
    site.get(f"{BASE}/orders/101").respond(json=detail(payload=payload))
    assert link.call("get_order", "101").keys == ()


def test_structured_delivery_is_handed_over_as_its_fields(site, link):
    done = {"payload": "", "delivery_data": {"card": "0042", "pins": ["007", 1.50], "when": None}}
    site.get(f"{BASE}/orders/101").respond(json=detail(fulfillment=done))
    (key,) = link.call("get_order", "101").keys
    assert {name: text.reveal() for name, text in key.fields.items()} == {
        "card": "0042",
        "pins": '["007", "1.5"]',
        "when": "null",
    }


@pytest.mark.parametrize(
    "answer",
    [(404, {"ok": False, "error_code": "order_not_found"}), (200, {"ok": True}), (200, {**MADE, "status": "?"})],
)
def test_an_order_that_cannot_be_read_is_no_order(site, link, answer):
    site.get(f"{BASE}/orders/101").respond(answer[0], json=answer[1])
    with pytest.raises(BadResponse):
        link.call("get_order", "101")


# --- callbacks --------------------------------------------------------------------------------------------------------


class Callbacks:
    """A site that has one order, at a fixed time."""

    def __init__(self, at=1700000000):
        self.at = at
        self.site = Site(clock=lambda: self.at)
        self.site.orders[101] = {"order_no": "DJ101", "reference": "KT0000000001", "status": "completed"}

    def webhook(self, *, path="/hooks/site", after=0, body=None, **headers):
        signed, said = self.site.callback(101, fulfillment={"payload": "CANARY-0001"})
        received = datetime.fromtimestamp(self.at + after, UTC)
        return Webhook("POST", path, {**signed, **headers}, {}, said if body is None else body, received)


def test_W1_a_callback_is_a_hint_about_an_order(link):
    hint = link.call("parse_webhook", Callbacks().webhook())
    assert (hint.event, hint.order_id, hint.reference) == ("order", "101", "KT0000000001")
    assert json.loads(hint.answer) == {"ok": True, "message": "received"}
    assert "CANARY" not in repr(hint)


def test_W1_a_callback_may_be_signed_over_the_path_that_it_came_to(link):
    callbacks = Callbacks()
    _, body = callbacks.site.callback(101)
    headers = callbacks.site.signed("POST", "/hooks/site", callbacks.at, body)
    assert link.call("parse_webhook", callbacks.webhook(body=body, **headers)).order_id == "101"


FORGED = [
    {"body": b"{}"},
    {"after": 61},
    {"after": -61},
    {"dujiao-next-signature": ""},
    {"dujiao-next-signature": "0" * 64},
    {"dujiao-next-signature": "\xe9"},
    {"dujiao-next-api-key": "another-key"},
    {"dujiao-next-timestamp": "1700000001"},
    {"dujiao-next-timestamp": "x"},
    {"dujiao-next-timestamp": ""},
]


@pytest.mark.parametrize("wrong", FORGED)
def test_W1_a_callback_with_one_thing_wrong_is_forged(link, wrong):
    with pytest.raises(Forged):
        link.call("parse_webhook", Callbacks().webhook(**wrong))


def test_W1_each_byte_of_a_callback_counts(link):
    right = Callbacks().webhook()
    for place in range(len(right.body)):
        body = right.body[:place] + bytes([right.body[place] ^ 1]) + right.body[place + 1 :]
        with pytest.raises(Forged):
            link.adapter.parse_webhook(Callbacks().webhook(body=body))


@pytest.mark.parametrize("body", [b"[]", b"{}", b"<html>", b'{"order_id":"x","downstream_order_no":"1"}'])
def test_W1_a_signed_callback_about_nothing_is_a_bad_response(link, body):
    callbacks = Callbacks()
    headers = callbacks.site.signed("POST", f"{ROOT}/callback", callbacks.at, body)
    with pytest.raises(BadResponse):
        link.call("parse_webhook", callbacks.webhook(body=body, **headers))


# --- from end to end, against a site with a ledger --------------------------------------------------------------------


@pytest.fixture
def real():
    with Site() as site:
        site.sell(7, {"id": 31, "price": "9.90", "keys": [f"KEY-{number:04}" for number in range(30)]})
        yield site


@pytest.fixture
def ours(real):
    made = linked("dujiao_next", site=real.url, key=KEY, secret=SECRET)
    yield made
    made.close()


def want(link, quantity=2, reference="KT0000000001", **more):
    (offer,) = [one for page in link.pages(None, bool) for one in page.offers if one.sku == "7/31"]
    return OrderRequest(reference, offer, quantity, max_unit_cost=offer.price, **more)


def test_buying_from_listing_to_keys(real, ours):
    assert ours.call("check").balance == Money(Decimal("100.00"), "CNY")
    made = ours.call("place_order", want(ours))
    assert (made.status, ours.call("get_order", made.id).status) == ("pending", "pending")
    real.deliver(int(made.id))
    found = ours.call("get_order", made.id)
    assert (found.status, found.charged) == ("completed", Money(Decimal("19.80"), "CNY"))
    assert [key.text.reveal() for key in found.keys] == ["KEY-0000\nKEY-0001"]
    assert ours.call("get_balance") == Money(Decimal("80.20"), "CNY")
    assert ours.call("get_offer", "7/31").stock == Stock.exact(28)


def test_a_partial_delivery_is_partial_until_the_rest_comes(real, ours):
    real.partial = 1
    made = ours.call("place_order", want(ours))
    seen = []
    for _ in range(2):
        real.deliver(int(made.id))
        found = ours.call("get_order", made.id)
        seen.append((found.status, found.keys[0].text.reveal()))
    assert seen == [("partial", "KEY-0000"), ("completed", "KEY-0000\nKEY-0001")]


BUY = f"{ROOT}/orders"


def unknown(server, link, fault):
    wanted = want(link)
    ends_unknown_after_one_request(server, link, wanted, BUY, fault)
    return wanted


@pytest.mark.parametrize(("fault", "charges"), FAULTS)
def test_M1_an_answer_that_is_lost_is_one_request_and_the_same_reference_tells(real, ours, fault, charges):
    wanted = unknown(real, ours, fault)
    assert len(real.ledger.charges) == charges
    again = OrderRequest(wanted.reference, wanted.offer, wanted.quantity, wanted.max_unit_cost, again=True)
    made = ours.call("place_order", again)
    assert [charge.order_id for charge in real.ledger.of(wanted.reference)] == [made.id]
    real.deliver(int(made.id))
    assert ours.call("get_order", made.id).keys[0].text.reveal() == "KEY-0000\nKEY-0001"
    assert (real.ledger.most(), real.balance) == (1, Decimal("80.20"))


def test_M1_sent_again_a_no_before_the_reference_is_looked_up_leaves_the_charge_in_doubt(real, ours):
    wanted = unknown(real, ours, "html")
    assert len(real.ledger.charges) == 1
    inside = OrderRequest(wanted.reference, wanted.offer, wanted.quantity, callback_url="http://10.0.0.1/", again=True)
    with pytest.raises(OutcomeUnknown):
        ours.call("place_order", inside)
    assert ours.call("place_order", dataclasses.replace(inside, callback_url="")).id == real.ledger.charges[0].order_id


def test_M1_control_an_adapter_that_tries_again_is_caught(real):
    def retrying(kind):
        class Retrying(kind):
            async def place_order(self, order):
                try:
                    return await self._bought(order.reference)
                except (BadResponse, Transient):
                    return await self._bought(order.reference + "X")

            async def _bought(self, reference):
                body = {"sku_id": 31, "quantity": 2, "downstream_order_no": reference}
                answer = await self.http.request("POST", "/orders", json=body, reads=True)  # which is a lie
                return self._order(answer.object(), reference)

        return Retrying

    broken = linked("dujiao_next", site=real.url, key=KEY, secret=SECRET, variant=retrying)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        unknown(real, broken, "lost")
    broken.close()
    assert real.times(BUY) == len(real.ledger.charges) == 2


def test_M1_control_one_reference_twice_at_once_is_charged_twice(real, ours):
    """Why the promise says: never two at once. The ledger sees it."""
    wanted, real.gap = want(ours), 0.2
    both = [threading.Thread(target=ours.call, args=("place_order", wanted)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert real.ledger.most() == 2


def test_a_payment_that_fails_canceled_the_order_for_good(real, ours):
    real.payments_fail = True
    wanted = want(ours)
    with pytest.raises(Refused):
        ours.call("place_order", wanted)
    real.payments_fail = False
    assert ours.call("place_order", wanted).status == "canceled"
    assert real.ledger.charges == []


class Shifted(Clock):
    """A clock that is off."""

    def __init__(self, seconds):
        self.seconds = seconds

    def now(self):
        return time.time() + self.seconds


@pytest.mark.parametrize(("seconds", "right"), [(50, True), (-50, True), (70, False), (-70, False)])
def test_a_clock_that_is_off_by_more_than_a_minute_is_named(real, seconds, right):
    made = linked("dujiao_next", site=real.url, key=KEY, secret=SECRET, clock=Shifted(seconds))
    with contextlib.nullcontext() if right else pytest.raises(Auth, match="timestamp_expired") as caught:
        made.call("check")
    assert right or "clock" in caught.value.hint
    made.close()


def test_a_wrong_secret_is_refused(real):
    made = linked("dujiao_next", site=real.url, key=KEY, secret=SecretText("another-secret"))
    with pytest.raises(Auth, match="invalid_signature"):
        made.call("check")
    made.close()


@pytest.mark.parametrize("old", [False, True])
def test_P1_only_a_site_that_says_so_is_read_by_changes(old):
    with Site(old=old, page_cap=2) as site:
        for number in range(5):
            month = 3 + number % 2
            site.sell(number, {"id": 100 + number, "price": "1.00"}, updated_at=f"2026-{month:02}-01T12:00:00Z")
        site.products[1]["is_active"] = False
        made = linked("dujiao_next", site=site.url, key=KEY, secret=SECRET, incremental=True)
        since = datetime(2026, 3, 20, tzinfo=UTC) + timedelta(hours=8)
        pages = list(made.pages(since, bool))
        made.close()
    found = {offer.sku: offer.for_sale for page in pages for offer in page.offers}
    assert {page.incremental for page in pages} == {not old}
    if old:  # it may have left out what did not change: everything is read
        assert found == {"0/100": True, "2/102": True, "3/103": True, "4/104": True}
    else:
        assert found == {"1/101": False, "3/103": True}


@pytest.mark.parametrize("incremental", [False, True])
def test_P1_a_site_that_is_read_whole_is_not_asked_for_changes(incremental):
    """The core takes nothing out of stock after a listing that was asked for changes."""
    made = linked("dujiao_next", site="https://shop.example", key=KEY, secret=SECRET, incremental=incremental)
    assert made.adapter.promises.incremental is incremental
    assert made.adapter.promises.same_reference_same_order
    made.close()


def test_a_product_listed_twice_is_shown_twice(real, ours):
    """The core refuses a listing that names an offer twice: it must see it."""
    real.products.append({**real.products[0], "updated_at": "2026-03-02T00:00:00Z"})
    assert [offer.sku for page in ours.pages(None, bool) for offer in page.offers] == ["7/31", "7/31"]


@pytest.mark.parametrize("fault", ["page", "cut", "short", "error"])
def test_P1_a_listing_that_breaks_off_is_read_again_or_not_at_all(real, ours, fault):
    real.fail(f"{ROOT}/products", *[fault] * 4)
    with pytest.raises((BadResponse, Transient)):
        list(ours.pages(None, bool))
    real.faults.clear()
    assert [offer.sku for page in ours.pages(None, bool) for offer in page.offers] == ["7/31"]
