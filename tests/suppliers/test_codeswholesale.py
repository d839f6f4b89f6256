"""adapters/codeswholesale.py: tokens, bands of prices, codes that are none yet, orders that are found day by day."""

from __future__ import annotations

import base64
import json
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx
import pytest
import respx
from pydantic import ValidationError

from syncd.adapter import (
    Auth,
    BadResponse,
    Config,
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
    SecretText,
    Stock,
    Transient,
)
from tests.suppliers.loopback.linked import linked

BASE = "https://api.codeswholesale.com"
OWN = "6313677f-5219-47e4-a067-7401f55c5a3a"
SECRET = SecretText("made-up-client-secret")
GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
PRODUCT = {
    "productId": OWN,
    "identifier": "BF1",
    "name": "Battlefield 1",
    "quantity": 120,
    "platform": "Origin",
    "regions": ["WORLDWIDE"],
    "languages": ["English", "Polish"],
    "releaseDate": "2016-10-21T00:00:00.000Z",
    "prices": [{"from": 1, "to": 9, "value": 9.99}, {"from": 10, "value": 9.5}, {"from": 100, "value": 9}],
}
MADE = {
    "orderId": "O-1",
    "clientOrderId": "KT0000000001",
    "status": "Processing",
    "totalPrice": 9.99,
    "products": [{"productId": OWN, "codes": []}],
}


def eur(amount):
    return Money(Decimal(amount), "EUR")


OFFER = Offer(OWN, "Battlefield 1", eur("9.99"), Stock.exact(120))


@pytest.fixture
def link():
    made = linked("codeswholesale", client_id="a-client", client_secret=SECRET)
    yield made
    made.close()


@pytest.fixture
def site():
    with respx.mock(assert_all_called=False) as routes:
        token = {"access_token": "made-up-token-1", "token_type": "bearer", "expires_in": 1158}
        routes.post(f"{BASE}/oauth/token").respond(json=token)
        routes.get(f"{BASE}/v3/accounts/current").respond(json={"fullName": "A shop", "currentBalance": 5000.5})
        routes.get(f"{BASE}/v3/products/{OWN}").respond(json=PRODUCT)
        yield routes


def order(quantity=1, limit="9.99", **more):
    return OrderRequest("KT0000000001", OFFER, quantity, eur(limit) if limit else None, **more)


def product(**more):
    return {**PRODUCT, **more}


def offers(site, link, *products, since=None):
    site.get(f"{BASE}/v3/products").respond(json={"items": list(products)})
    return [offer for page in link.pages(since, bool) for offer in page.offers]


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        {"access_token": "made-up-token-7", "token_type": "bearer", "expires_in": 3599},
        {"value": "made-up-token-7", "tokenType": "bearer", "expiresIn": 3599},
    ],
)
def test_a_token_of_either_shape_is_fetched_once_by_query(site, link, shape):
    asking = site.post(f"{BASE}/oauth/token").respond(json=shape)
    for _ in range(2):
        link.call("get_balance")
    assert asking.call_count == 1
    assert dict(asking.calls[0].request.url.params) == {
        "grant_type": "client_credentials",
        "client_id": "a-client",
        "client_secret": "made-up-client-secret",
    }
    said = {call.request.headers.get("authorization") for call in site.calls}
    assert said == {None, "Bearer made-up-token-7"}


def test_a_token_that_has_ended_is_fetched_anew_once(site, link):
    tokens = iter(range(9))
    site.post(f"{BASE}/oauth/token").mock(
        side_effect=lambda _: httpx.Response(200, json={"value": f"made-up-token-{next(tokens)}", "expiresIn": 3600})
    )
    account = site.get(f"{BASE}/v3/accounts/current")
    account.side_effect = [httpx.Response(401), httpx.Response(200, json={"currentBalance": 1})]
    assert link.call("get_balance") == eur(1)
    assert [call.request.headers["authorization"][-1] for call in account.calls] == ["0", "1"]
    account.side_effect = [httpx.Response(401)] * 9
    with pytest.raises(Auth):
        link.call("get_balance")
    assert account.call_count == 4


def test_refused_credentials_are_never_shown(site, link):
    site.post(f"{BASE}/oauth/token").respond(401, json={"error": "invalid_client", "secret": "made-up-client-secret"})
    with pytest.raises(Auth) as caught:
        link.call("check")
    assert "made-up-client-secret" not in f"{caught.value!r}{caught.value}{caught.value.__dict__}"


def test_M1_a_token_that_ended_just_before_an_order_bought_nothing(site, link):
    buying = site.post(f"{BASE}/v3/orders").respond(401)
    with pytest.raises(NotSent):
        link.call("place_order", order())
    assert buying.call_count == 1


@pytest.mark.parametrize(("sandbox", "host"), [(False, "api"), (True, "sandbox")])
def test_the_sandbox_is_another_host_with_another_token(site, sandbox, host):
    token = site.post(f"https://{host}.codeswholesale.com/oauth/token").respond(json={"value": "made-up-token-3"})
    site.get(f"https://{host}.codeswholesale.com/v3/accounts/current").respond(
        json={"fullName": "Us", "currentBalance": 7.1}
    )
    made = linked("codeswholesale", client_id="c", client_secret=SECRET, sandbox=sandbox)
    found = made.call("check")
    made.close()
    assert (found.account, found.balance, bool(found.notes)) == ("Us", eur("7.1"), sandbox)
    assert token.called


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{}, {"currentBalance": None}, {"currentBalance": "much"}])
def test_P1_a_balance_that_is_no_number_is_none(site, link, wrong):
    site.get(f"{BASE}/v3/accounts/current").respond(json=wrong)
    with pytest.raises(BadResponse):
        link.call("get_balance")


def test_P1_an_account_in_another_currency_is_a_mistake_in_the_configuration(site, link):
    site.get(f"{BASE}/v3/accounts/current").respond(json={"currentBalance": 1, "currency": "USD"})
    with pytest.raises(Config, match="does not count in EUR"):
        link.call("check")


def test_the_currency_is_what_the_setting_says(site):
    made = linked("codeswholesale", client_id="c", client_secret=SECRET, currency="USD")
    assert made.call("get_balance") == Money(Decimal("5000.5"), "USD")
    assert offers(site, made, PRODUCT)[0].price == Money(Decimal("9.99"), "USD")
    made.close()


def test_a_product_is_an_offer_with_its_bands_of_prices(site, link):
    (one,) = offers(site, link, PRODUCT)
    assert (one.sku, one.title, one.price, one.stock) == (OWN, "Battlefield 1", eur("9.99"), Stock.exact(120))
    assert one.tiers == ((10, eur("9.5")), (100, eur(9)))
    assert (one.min_quantity, one.max_quantity, one.for_sale) == (1, None, True)
    assert (one.region, one.group) == ("WORLDWIDE; languages: English, Polish", "Origin")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ([{"from": 10, "value": 9}, {"from": 5, "value": 9.5}], (5, "9.5", (10,))),
        ([{"from": 1, "value": 9}], (1, "9", ())),
        ([], (1, None, ())),
    ],
)
def test_bands_come_in_any_order_and_the_first_is_the_least(site, link, said, found):
    (one,) = offers(site, link, product(prices=said))
    assert (one.min_quantity, one.price and str(one.price.amount), tuple(least for least, _ in one.tiers)) == found


@pytest.mark.parametrize(
    "wrong",
    [
        {"quantity": -1},
        {"quantity": None},
        {"quantity": "many"},
        {"prices": None},
        {"prices": [{"from": 1, "value": None}]},
        {"prices": [{"from": 1, "value": -3}]},
        {"prices": [{"from": "one", "value": 3}]},
        {"prices": [{"value": 3}]},
        {"prices": [{"from": 1, "value": 3}, {"from": 1, "value": 4}]},
        {"productId": ""},
        {"regions": [1]},
        {"languages": 7},
    ],
)
def test_P1_a_product_that_cannot_be_read_ends_the_listing(site, link, wrong):
    with pytest.raises(BadResponse):
        offers(site, link, product(**wrong))


@pytest.mark.parametrize(
    ("date", "for_sale"),
    [
        ("2016-10-21T00:00:00.000Z", True),
        ("2016-10-21", True),
        (None, True),
        ("soon", False),
        ("2999-01-01T00:00:00+02:00", False),
        ("2999-01-01T00:00:00", False),
        ("2999-01-01", False),
    ],
)
def test_what_is_not_released_yet_is_not_for_sale(site, link, date, for_sale):
    assert offers(site, link, product(releaseDate=date))[0].for_sale is for_sale


def test_parts_go_on_until_no_token_comes(site, link):
    pages = [
        {"items": [product(productId="p1")], "continuationToken": "a/b+c="},
        {"items": [product(productId="p2")], "continuationToken": "second"},
        {"items": [product(productId="p3")], "continuationToken": None},
    ]
    asked = site.get(f"{BASE}/v3/products")
    asked.side_effect = [httpx.Response(200, json=page) for page in pages]
    since = datetime.fromisoformat("2026-03-01T20:00:00+08:00")
    found = list(link.pages(since, bool))
    assert [[offer.sku for offer in page.offers] for page in found] == [["p1"], ["p2"], ["p3"]]
    assert all(page.incremental for page in found)
    changed = {"updatedSince": "2026-03-01T12:00:00Z"}
    assert [dict(call.request.url.params) for call in asked.calls] == [
        changed,
        {**changed, "continuationToken": "a/b+c="},
        {**changed, "continuationToken": "second"},
    ]


@pytest.mark.parametrize(
    "second",
    [
        {"items": [product(productId="p1")]},
        {"items": [product(productId="p2")], "continuationToken": "next"},
        {"continuationToken": "more"},
        {"items": None},
        {"items": [None]},
        {},
        [],
    ],
)
def test_P1_a_listing_that_repeats_or_breaks_off_is_none(site, link, second):
    answers = [{"items": [product(productId="p1")], "continuationToken": "next"}, second]
    site.get(f"{BASE}/v3/products").side_effect = [httpx.Response(200, json=answer) for answer in answers]
    with pytest.raises(BadResponse):
        list(link.pages(None, bool))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.Response(404, json={"status": 404}), NotForSale),
        (httpx.Response(404, content=b"<html>"), BadResponse),
        (httpx.Response(200, json=product(productId="another")), BadResponse),
        (httpx.Response(200, json={}), BadResponse),
    ],
)
def test_an_offer_that_is_gone_is_not_for_sale_and_garbage_says_nothing(site, link, answer, kind):
    site.get(f"{BASE}/v3/products/{OWN}").mock(return_value=answer)
    with pytest.raises(kind):
        link.call("get_offer", OWN)


# --- buying -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quantity", "limit", "price"), [(1, "9.99", 9.99), (10, "9.50", 9.5), (100, "9.00", 9)])
def test_M4_the_price_of_this_moment_for_this_quantity_is_sent(site, link, quantity, limit, price):
    buying = site.post(f"{BASE}/v3/orders").respond(json=MADE)
    made = link.call("place_order", order(quantity, limit))
    assert (made.id, made.reference, made.status, made.charged) == ("O-1", "KT0000000001", "pending", eur("9.99"))
    assert buying.call_count == 1
    assert json.loads(buying.calls[0].request.content) == {
        "allowPreOrder": False,
        "orderId": "KT0000000001",
        "products": [{"productId": OWN, "quantity": quantity, "price": price}],
    }


@pytest.mark.parametrize(
    ("quantity", "limit", "now", "account", "kind"),
    [
        (1, "9.98", {}, {}, PriceChanged),
        (9, "9.50", {}, {}, PriceChanged),
        (121, "9.99", {}, {}, OutOfStock),
        (1, "9.99", {"quantity": 0}, {}, OutOfStock),
        (0, "9.99", {}, {}, Refused),
        (1, "9.99", {"releaseDate": "2999-01-01"}, {}, NotForSale),
        (1, "9.99", {"prices": []}, {}, NotForSale),
        (10, "9.99", {}, {"currentBalance": 94.99}, InsufficientBalance),
        (10, "9.99", {}, {"currentBalance": 95, "totalToUse": 90}, InsufficientBalance),
    ],
)
def test_M4_what_is_known_before_is_refused_before_anything_is_sent(site, link, quantity, limit, now, account, kind):
    site.get(f"{BASE}/v3/products/{OWN}").respond(json=product(**now))
    site.get(f"{BASE}/v3/accounts/current").respond(json={"currentBalance": 5000, **account})
    buying = site.post(f"{BASE}/v3/orders").respond(json=MADE)
    with pytest.raises(Refused) as caught:
        link.call("place_order", order(quantity, limit))
    assert type(caught.value) is kind
    assert caught.value.hint
    assert not buying.called


def test_a_credit_may_be_spent_too(site, link):
    site.get(f"{BASE}/v3/accounts/current").respond(json={"currentBalance": -5, "currentCredit": 50, "totalToUse": 45})
    site.post(f"{BASE}/v3/orders").respond(json=MADE)
    assert link.call("place_order", order()).id == "O-1"


@pytest.mark.parametrize("path", [f"/v3/products/{OWN}", "/v3/accounts/current"])
def test_M4_nothing_is_bought_while_something_cannot_be_asked_for(site, link, path):
    site.get(f"{BASE}{path}").respond(200, content=b"<html>")
    buying = site.post(f"{BASE}/v3/orders").respond(json=MADE)
    with pytest.raises(NotSent):
        link.call("place_order", order())
    assert not buying.called


UNKNOWN = [
    {"side_effect": httpx.ReadTimeout("x")},
    {"side_effect": httpx.ReadError("x")},
    {"side_effect": httpx.RemoteProtocolError("x")},
    {"return_value": httpx.Response(400, json={"status": 400, "code": 40001, "message": "Not enough"})},
    {"return_value": httpx.Response(404, json={"status": 404})},
    {"return_value": httpx.Response(409, json={"status": 409})},
    {"return_value": httpx.Response(500)},
    {"return_value": httpx.Response(302, headers={"location": "https://elsewhere.test/"})},
    {"return_value": httpx.Response(200, content=b"<html>")},
    {"return_value": httpx.Response(200, json={})},
    {"return_value": httpx.Response(200, json=[])},
    {"return_value": httpx.Response(200, json={**MADE, "status": "Unheard"})},
    {"return_value": httpx.Response(200, json={**MADE, "orderId": None})},
    {"return_value": httpx.Response(200, json={**MADE, "totalPrice": "much"})},
    {"return_value": httpx.Response(200, json={**MADE, "products": [{"codes": [7]}]})},
]


@pytest.mark.parametrize("answer", UNKNOWN)
def test_M1_whatever_is_no_order_is_unknown_after_exactly_one_request(site, link, answer):
    """No refusal of an order is known by its code: none is taken for a no."""
    buying = site.post(f"{BASE}/v3/orders").mock(**answer)
    with pytest.raises(OutcomeUnknown):
        link.call("place_order", order())
    assert buying.call_count == 1


@pytest.mark.parametrize("failure", [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout])
def test_M1_what_never_left_bought_nothing(site, link, failure):
    site.post(f"{BASE}/v3/orders").side_effect = failure("x")
    with pytest.raises(NotSent):
        link.call("place_order", order())


def test_too_many_requests_bought_nothing(site, link):
    site.post(f"{BASE}/v3/orders").respond(429, headers={"retry-after": "7"})
    with pytest.raises(RateLimited) as caught:
        link.call("place_order", order())
    assert caught.value.retry_after == 7


@pytest.mark.parametrize(("rows", "ends"), [([{**MADE}], "O-1"), ([], OutcomeUnknown)])
def test_M1_what_was_sent_before_is_looked_up_and_never_sent_again(site, link, rows, ends):
    site.get(f"{BASE}/v3/orders").respond(json={"items": rows})
    site.get(f"{BASE}/v3/orders/O-1").respond(json=MADE)
    buying = site.post(f"{BASE}/v3/orders").respond(json=MADE)
    with nullcontext() if isinstance(ends, str) else pytest.raises(ends):
        assert link.call("place_order", order(again=True)).id == ends
    assert not buying.called


def test_M1_control_an_adapter_that_sends_again_is_caught(site):
    def hasty(kind):
        class Hasty(kind):
            async def place_order(self, order):
                return await super().place_order(replace(order, again=False))

        return Hasty

    broken = linked("codeswholesale", client_id="c", client_secret=SECRET, variant=hasty)
    with pytest.raises(AssertionError):
        test_M1_what_was_sent_before_is_looked_up_and_never_sent_again(site, broken, [], OutcomeUnknown)
    broken.close()


# --- orders and codes -------------------------------------------------------------------------------------------------

TEXT = "  0042-ABCD\r\n密码 e\u0301 \t"


def code(number, text=TEXT, kind="CODE_TEXT"):
    return {"codeId": f"c{number}", "codeType": kind, "code": text, "filename": None}


def told(*codes, status="Completed", **more):
    return {**MADE, "status": status, "products": [{"productId": OWN, "codes": list(codes)}], **more}


def found(site, link, said):
    site.get(f"{BASE}/v3/orders/O-1").respond(json=said)
    return link.call("get_order", "O-1")


def test_K14_codes_are_texts_and_pictures_as_they_came_with_their_ids(site, link):
    picture = base64.b64encode(GIF).decode()
    made = found(
        site, link, told(code(1), code(2, picture, "CODE_IMAGE"), code(3, "?", "CODE_IMAGE"), code(4, "x", "NEW"))
    )
    assert (made.status, made.quantity, [key.id for key in made.keys]) == ("completed", 4, ["c1", "c2", "c3", "c4"])
    assert (made.keys[0].text.reveal(), made.keys[1].image) == (TEXT, GIF)
    parts = [{name: part.reveal() for name, part in key.fields.items()} for key in made.keys[2:]]
    assert parts == [{"type": "CODE_IMAGE", "image": "?"}, {"type": "NEW", "image": "x"}]
    assert "0042" not in repr(made)


def test_a_code_that_the_order_only_names_is_asked_for(site, link):
    picture = base64.b64encode(GIF).decode()
    site.get(f"{BASE}/v3/codes/c2").respond(json=code(2, picture, "CODE_IMAGE"))
    made = found(site, link, told(code(1), code(2, None, "CODE_IMAGE")))
    assert [made.status, made.keys[1].image] == ["completed", GIF]


@pytest.mark.parametrize("wrong", [{}, [], code(3), None])
def test_another_code_is_not_taken_for_it(site, link, wrong):
    site.get(f"{BASE}/v3/codes/c2").respond(json=wrong)
    with pytest.raises(BadResponse):
        found(site, link, told(code(1), code(2, None)))


@pytest.mark.parametrize("kind", ["PRE_ORDER", "CODE_PREORDER"])
@pytest.mark.parametrize("text", [None, "", "https://api.codeswholesale.com/v3/codes/c2"])
def test_a_pre_order_is_no_key_yet_whatever_stands_in_it(site, link, kind, text):
    site.get(f"{BASE}/v3/codes/c2").respond(json=code(2, text, kind))
    made = found(site, link, told(code(1), code(2, text, kind)))
    assert (made.status, [key.id for key in made.keys]) == ("partial", ["c1"])
    made = found(site, link, told(code(2, text, kind)))
    assert (made.status, made.keys) == ("pending", [])


def test_a_pre_order_whose_code_has_come_is_a_key(site, link):
    site.get(f"{BASE}/v3/codes/c2").respond(json=code(2))
    made = found(site, link, told(code(2, None, "PRE_ORDER")))
    assert (made.status, made.keys[0].text.reveal()) == ("completed", TEXT)


@pytest.mark.parametrize(
    ("said", "status", "keys", "charged"),
    [
        (told(status="Pending"), "pending", 0, "9.99"),
        (told(status="READY"), "pending", 0, "9.99"),
        (told(code(1), status="PROCESSING"), "partial", 1, "9.99"),
        (told(code(1), status="prepared"), "partial", 1, "9.99"),
        (told(code(1), status="FULFILLED"), "completed", 1, "9.99"),
        (told(status="Completed"), "pending", 0, "9.99"),
        (told(code(1), status="Cancelled"), "canceled", 0, None),
        (told(code(1), status="FAILED"), "canceled", 0, None),
        (told(code(1), totalPrice=None), "completed", 1, None),
    ],
)
def test_each_status_is_one_of_ours(site, link, said, status, keys, charged):
    """Completed without a code is not complete; a cancelled order hands over nothing."""
    made = found(site, link, said)
    assert (made.status, len(made.keys), made.charged) == (status, keys, charged and eur(charged))


@pytest.mark.parametrize(
    "said",
    [
        {},
        {**MADE, "status": "?"},
        {**MADE, "orderId": "O-2"},
        {**MADE, "products": 7},
        {**MADE, "products": [7]},
        {**MADE, "products": [{"codes": 7}]},
    ],
)
def test_an_order_that_cannot_be_read_is_no_order(site, link, said):
    with pytest.raises(BadResponse):
        found(site, link, said)


# --- found again ------------------------------------------------------------------------------------------------------


def row(reference, own="O-1"):
    return {"orderId": own, "clientOrderId": reference, "status": "Completed", "createdOn": "2026-03-01T00:00:00Z"}


def test_M1_an_order_is_found_day_by_day_and_back(site, link):
    asked = site.get(f"{BASE}/v3/orders")
    days = [[row("OTHER", "O-9"), row(None, "O-8")], [], [row("KT0000000001")]]
    asked.side_effect = [httpx.Response(200, json={"items": items}) for items in days]
    site.get(f"{BASE}/v3/orders/O-1").respond(json=told(code(1)))
    made = link.call("find_order", "KT0000000001")
    assert (made.id, made.status, made.keys[0].text.reveal()) == ("O-1", "completed", TEXT)
    spans = [(call.request.url.params["startFrom"], call.request.url.params["endOn"]) for call in asked.calls]
    assert len(spans) == 3
    assert [start for start, _ in spans[:-1]] == [end for _, end in spans[1:]]  # no gap between the days
    assert datetime.fromisoformat(spans[0][1]) > datetime.now(UTC) + timedelta(minutes=50)


def test_M1_none_is_said_only_after_all_the_days(site):
    asked = site.get(f"{BASE}/v3/orders").respond(json={"items": [row("kt0000000001")]})
    made = linked("codeswholesale", client_id="c", client_secret=SECRET, days=5)
    assert made.call("find_order", "KT0000000001") is None
    made.close()
    assert asked.call_count == 5
    first = datetime.fromisoformat(asked.calls[-1].request.url.params["startFrom"])
    assert first < datetime.now(UTC) - timedelta(days=3, hours=22)


@pytest.mark.parametrize("days", [0, -1, 61])
def test_M1_a_search_that_looks_nowhere_cannot_be_configured(days):
    with pytest.raises(ValidationError):
        linked("codeswholesale", client_id="c", client_secret=SECRET, days=days)


def test_M1_a_day_in_parts_is_read_to_its_end(site, link):
    def answer(request):
        more = "continuationToken" not in request.url.params
        said = (
            {"items": [row("OTHER", "O-9")], "continuationToken": "more"} if more else {"items": [row("KT0000000001")]}
        )
        return httpx.Response(200, json=said)

    site.get(f"{BASE}/v3/orders").mock(side_effect=answer)
    site.get(f"{BASE}/v3/orders/O-1").respond(json=told(code(1)))
    assert link.call("find_order", "KT0000000001").id == "O-1"


@pytest.mark.parametrize(
    "answer",
    [
        {"items": [{"orderId": "O-1", "status": "Completed"}]},
        {"items": [row("KT0000000001"), row("KT0000000001", "O-2")]},
        {"items": [row("OTHER")], "continuationToken": "again"},
        {"items": None},
        {"items": [7]},
        {},
        [],
    ],
)
def test_M1_days_that_are_not_whole_leave_it_open(site, link, answer):
    site.get(f"{BASE}/v3/orders").respond(json=answer)
    with pytest.raises(BadResponse):
        link.call("find_order", "KT0000000001")


@pytest.mark.parametrize(
    "answer", [httpx.Response(404, json={}), httpx.Response(503), httpx.Response(200, content=b"<html>")]
)
def test_M1_a_day_that_cannot_be_read_leaves_it_open(site, link, answer):
    asked = site.get(f"{BASE}/v3/orders")
    asked.side_effect = [httpx.Response(200, json={"items": []})] * 3 + [answer]
    with pytest.raises((BadResponse, Transient)):
        link.call("find_order", "KT0000000001")
    assert asked.call_count == 4
