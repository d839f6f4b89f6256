"""adapters/reloadly.toml: tokens, landed cost, pages from 0 or from 1, cards as they are, doubt that stays doubt."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from decimal import Decimal
from urllib.parse import urlsplit

import httpx
import pytest
import respx

from syncd.adapter import (
    Auth,
    BadResponse,
    InsufficientBalance,
    Money,
    NotForSale,
    NotSent,
    Offer,
    OrderRequest,
    OutcomeUnknown,
    PriceChanged,
    RateLimited,
    Refused,
    SecretText,
    Stock,
    Transient,
)
from tests.suppliers.loopback.linked import linked

REAL, SANDBOX = "https://giftcards.reloadly.com", "https://giftcards-sandbox.reloadly.com"
AUTH = "https://auth.reloadly.com/oauth/token"
SECRET = "made-up-client-secret"
CARD = Offer(
    "10:15.00", "卡", Money(Decimal("17.52"), "USD"), Stock.unknown(), data={"product": "10", "price": "15.00"}
)
HEADER = "application/com.reloadly.giftcards-v1+json"


def product(number=10, **more):
    return {
        "productId": number,
        "productName": "App Store",
        "senderFee": 0.50,
        "discountPercentage": 2.9,
        "denominationType": "FIXED",
        "recipientCurrencyCode": "EUR",
        "senderCurrencyCode": "USD",
        "fixedRecipientDenominations": [15.00, 50.00],
        "fixedRecipientToSenderDenominationsMap": {"15.00": 17.02, "50.00": 56.74},
        "brand": {"brandId": 3, "brandName": "Apple"},
        "country": {"isoName": "AT", "name": "Austria"},
    } | more


def ordered(**more):
    return {
        "transactionId": 815,
        "amount": 17.52,
        "discount": 0.49,
        "currencyCode": "USD",
        "fee": 0.50,
        "customIdentifier": "AB12",
        "status": "SUCCESSFUL",
        "product": {"productId": 10, "quantity": 1, "unitPrice": 15.00},
    } | more


class Platform:
    """Answers by method and path; strict about token, audience and header. ``products``: its pages; ``first``: the
    number of the first one, anything lower gives that one too. ``answers``: (method, path) → a status and JSON.
    """

    def __init__(self):
        self.pages, self.first, self.token, self.asked = [[product()]], 0, 0, []
        self.audience = REAL
        self.answers = {
            ("GET", "/products/10"): product(),
            ("POST", "/orders"): ordered(status="PENDING"),
            ("GET", "/reports/transactions/815"): ordered(),
            ("GET", "/reports/transactions"): {"content": [ordered()], "last": True},
            ("GET", "/orders/transactions/815/cards"): [{"cardNumber": "0EWWVW", "pinCode": "0016163"}],
            ("GET", "/accounts/balance"): {"balance": 98.5, "currencyCode": "USD"},
        }

    def __call__(self, request):
        url = urlsplit(str(request.url))
        self.asked.append((request.method, url.path, request.content))
        if str(request.url) == AUTH:
            sent = json.loads(request.content)
            assert sent == {
                "client_id": "me",
                "client_secret": SECRET,
                "grant_type": "client_credentials",
                "audience": self.audience,
            }
            self.token += 1
            return httpx.Response(200, json={"access_token": f"token-{self.token}", "expires_in": 5184000})
        assert f"{url.scheme}://{url.netloc}" == self.audience
        assert request.headers["accept"] == HEADER
        if request.headers["authorization"] != f"Bearer token-{self.token}":
            return httpx.Response(401, json={"errorCode": "INVALID_TOKEN"})
        if url.path == "/products":
            return httpx.Response(200, json=self.page(int(request.url.params["page"])))
        answer = self.answers[request.method, url.path]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    def page(self, number):
        index = max(0, number - self.first)
        total, last = sum(len(page) for page in self.pages), index >= len(self.pages) - 1
        content = self.pages[index] if index < len(self.pages) else []
        return {"content": content, "totalElements": total, "totalPages": len(self.pages), "last": last}

    def times(self, method, path):
        return sum((asked, at) == (method, path) for asked, at, _ in self.asked)


@pytest.fixture
def platform():
    made = Platform()
    with respx.mock(assert_all_called=False) as routes:
        routes.route().mock(side_effect=made)
        yield made


@contextlib.contextmanager
def linking(**more):
    made = linked("reloadly", **{"client_id": "me", "client_secret": SecretText(SECRET), "sender": "Shop"} | more)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def link():
    with linking() as made:
        yield made


def usd(text):
    return Money(Decimal(text), "USD")


def order(**more):
    return OrderRequest(**{"reference": "AB12", "offer": CARD, "quantity": 1, "max_unit_cost": usd("17.52")} | more)


def listed(link):
    return [offer for page in link.pages(None, bool) for offer in page.offers]


# --- who we are -------------------------------------------------------------------------------------------------------


def test_a_token_is_fetched_once_and_again_when_it_is_refused(platform, link):
    assert link.call("check").balance == usd("98.5")
    assert link.call("get_balance") == usd("98.5")
    assert platform.token == 1
    platform.token = 7  # somebody revoked it
    assert link.call("get_balance") == usd("98.5")
    assert platform.token == 8


def test_the_sandbox_has_its_own_address_and_audience(platform):
    platform.audience = SANDBOX
    with linking(url=SANDBOX) as link:
        assert link.call("get_balance") == usd("98.5")
    with pytest.raises(ValueError, match="url"), linking(url="https://elsewhere.test"):
        pass


@pytest.mark.parametrize("balance", [{}, [], None, {"balance": None}, {"balance": "x", "currencyCode": "USD"}])
@pytest.mark.parametrize("verb", ["check", "get_balance"])
def test_what_is_no_balance_is_no_answer(platform, link, verb, balance):
    platform.answers["GET", "/accounts/balance"] = httpx.Response(200, content=json.dumps(balance).encode())
    with pytest.raises(BadResponse):
        link.call(verb)


# --- offers -----------------------------------------------------------------------------------------------------------


def test_there_is_an_offer_for_each_denomination_at_what_it_costs_with_the_fee(platform, link):
    platform.pages = [[product(), product(11, denominationType="RANGE", fixedRecipientToSenderDenominationsMap=None)]]
    one, other = listed(link)
    assert (one.sku, one.title, one.price) == ("10:15.00", "App Store 15.00 EUR", usd("17.52"))
    assert (one.stock, one.region, one.group, one.for_sale) == (Stock.unknown(), "AT", "Apple", True)
    assert dict(one.data) == {"product": "10", "price": "15.00"}
    assert (other.sku, other.price) == ("10:50.00", usd("57.24"))


def test_M4_a_fee_in_per_cent_is_part_of_the_price(platform, link):
    platform.pages = [[product(senderFeePercentage=2.0)]]
    assert [offer.price for offer in listed(link)] == [usd("17.8604"), usd("58.3748")]
    platform.pages = [[product(senderFeePercentage=None, senderFee=0)]]
    assert [offer.price for offer in listed(link)] == [usd("17.02"), usd("56.74")]


@pytest.mark.parametrize(
    ("more", "for_sale"),
    [
        ({}, True),
        ({"status": "ACTIVE"}, True),
        ({"status": "INACTIVE"}, False),
        ({"additionalRequirements": {"userIdRequired": False}}, True),
        ({"additionalRequirements": {"userIdRequired": True}}, False),
    ],
)
def test_what_cannot_be_ordered_as_it_is_is_not_for_sale(platform, link, more, for_sale):
    platform.pages = [[product(**more)]]
    assert {offer.for_sale for offer in listed(link)} == {for_sale}


@pytest.mark.parametrize(
    "wrong",
    [
        {"productId": None},
        {"senderFee": None},
        {"senderFee": ...},
        {"senderFee": -0.5},
        {"senderFeePercentage": "x"},
        {"senderCurrencyCode": None},
        {"denominationType": "NEW"},
        {"denominationType": ...},
        {"fixedRecipientToSenderDenominationsMap": None},
        {"fixedRecipientToSenderDenominationsMap": ...},
        {"fixedRecipientToSenderDenominationsMap": "x"},
        {"fixedRecipientToSenderDenominationsMap": {"15.00": None}},
        {"fixedRecipientToSenderDenominationsMap": {"15.00": -1}},
    ],
)
def test_P1_one_product_that_does_not_read_refuses_the_listing(platform, link, wrong):
    platform.pages = [[product(9), {k: v for k, v in product(**wrong).items() if v is not ...}]]
    with pytest.raises(BadResponse):
        listed(link)


def whole(link):
    """The property: every product once, whatever number the pages start at."""
    assert [offer.sku for offer in listed(link)] == [f"{n}:{d}" for n in (1, 2, 3, 4) for d in ("15.00", "50.00")]


PAGES = [[product(1), product(2)], [product(3)], [product(4)]]


@pytest.mark.parametrize("first", [0, 1])
def test_P1_pages_may_start_at_0_or_at_1(platform, link, first):
    platform.pages, platform.first = PAGES, first
    whole(link)
    assert platform.times("GET", "/products") == 3 + first
    platform.pages = [PAGES[0] + PAGES[1] + PAGES[2]]
    whole(link)


def test_P1_a_first_page_that_was_left_out_is_noticed(platform):
    platform.pages, platform.first = PAGES, 0
    with linking(first_page=1) as link, pytest.raises(BadResponse):
        listed(link)
    platform.first = 1
    with linking(first_page=1) as link:
        whole(link)


def test_negative_control_without_telling_products_apart_a_repeated_page_fails_the_listing(platform):
    def forgetful(kind):
        words = kind.definition
        pages = words.verbs.list_offers.pages.model_copy(update={"unique": None})
        verbs = words.verbs.model_copy(
            update={"list_offers": words.verbs.list_offers.model_copy(update={"pages": pages})}
        )
        return type("Forgetful", (kind,), {"definition": words.model_copy(update={"verbs": verbs})})

    platform.pages, platform.first = PAGES, 1
    with linking(variant=forgetful) as link, pytest.raises(BadResponse):
        whole(link)


def test_P1_a_product_that_changed_while_it_was_listed_is_not_listed_as_either(platform, link):
    platform.pages = [[product(1)], [product(1, senderFee=9)]]
    with pytest.raises(BadResponse):
        listed(link)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        None,
        {"content": None, "last": True, "totalElements": 0},
        {"content": [], "totalElements": 0},
        {"content": [], "last": True, "totalElements": 5},
        {"content": [product()], "last": True},
    ],
)
def test_P1_what_is_no_listing_is_never_an_empty_one(platform, link, answer):
    platform.page = lambda _number: answer
    with pytest.raises(BadResponse):
        listed(link)


def test_an_offer_is_asked_for_by_its_product(platform, link):
    assert link.call("get_offer", "10:50.00").price == usd("57.24")
    platform.answers["GET", "/products/10"] = product(senderFee=1)
    assert link.call("get_offer", "10:50.00").price == usd("57.74")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(404, json={"errorCode": "X"}), NotForSale),
        (product(fixedRecipientToSenderDenominationsMap={"50.00": 1}), NotForSale),
        (product(denominationType="RANGE"), NotForSale),
        (product(11), NotForSale),
        ({}, BadResponse),
        ([], BadResponse),
        (httpx.Response(400, json={}), BadResponse),
    ],
)
def test_P1_an_offer_is_gone_only_when_it_is_said(platform, link, answer, error):
    platform.answers["GET", "/products/10"] = answer
    with pytest.raises(error) as caught:
        link.call("get_offer", "10:15.00")
    assert type(caught.value) is error
    with pytest.raises(NotForSale):
        link.call("get_offer", "10")


# --- buying -----------------------------------------------------------------------------------------------------------


def test_an_order_says_exactly_this(platform, link):
    placed = link.call("place_order", order())
    (body,) = [content for method, path, content in platform.asked if (method, path) == ("POST", "/orders")]
    assert body == b'{"customIdentifier":"AB12","productId":10,"quantity":1,"senderName":"Shop","unitPrice":15.00}'
    assert (placed.id, placed.reference, placed.status, placed.quantity) == ("815", "AB12", "pending", 1)
    assert placed.charged == usd("17.52")
    assert placed.keys == ()


@pytest.mark.parametrize("more", [{"status": "INACTIVE"}, {"fixedRecipientToSenderDenominationsMap": {"50.00": 56.74}}])
def test_M4_what_is_not_for_sale_any_more_is_not_ordered(platform, link, more):
    platform.answers["GET", "/products/10"] = product(**more)
    with pytest.raises(NotForSale):
        link.call("place_order", order())
    assert platform.times("POST", "/orders") == 0


@pytest.mark.parametrize(("limit", "bought"), [("17.52", 1), ("17.51", 0), (None, 1)])
def test_M4_the_price_with_its_fee_is_asked_for_just_before(platform, link, limit, bought):
    with contextlib.nullcontext() if bought else pytest.raises(PriceChanged):
        link.call("place_order", order(max_unit_cost=limit and usd(limit)))
    assert platform.times("POST", "/orders") == bought


def failed(code, status=400):
    return httpx.Response(status, json={"message": "CANARY-0001", "errorCode": code, "path": "/orders", "details": []})


REFUSALS = [
    (failed("INSUFFICIENT_BALANCE"), InsufficientBalance),
    (failed("SENDER_NAME_INVALID"), Refused),
    (failed("X", 401), NotSent),  # the token has ended: the next order has a new one
    (failed("X", 403), Auth),
    (httpx.Response(429, headers={"retry-after": "9"}), RateLimited),
]


@pytest.mark.parametrize(("answer", "error"), REFUSALS, ids=str)
def test_each_refusal_is_certain(platform, answer, error):
    platform.answers["POST", "/orders"] = answer
    with linking(refusal_code="^SENDER_NAME_INVALID$") as link, pytest.raises(error) as caught:
        link.call("place_order", order())
    assert type(caught.value) is error
    assert "CANARY" not in str(caught.value) + caught.value.hint
    assert platform.times("POST", "/orders") == 1


UNKNOWN = [
    httpx.ReadTimeout("x"),
    httpx.ReadError("x"),
    httpx.Response(500),
    httpx.Response(302, headers={"location": "https://elsewhere.test"}),
    failed("SENDER_NAME_INVALID"),
    failed("ANYTHING"),
    failed("X", 404),
    failed("X", 409),
    failed(None),
    httpx.Response(400, content=b"<html>"),
    httpx.Response(200, content=b"<html>"),
    httpx.Response(200, content=b""),
    httpx.Response(200, content=b'{"transactionId":815,"customId'),
    {},
    [],
    [ordered()] * 2,
    ordered(customIdentifier="OTHER"),
    ordered(customIdentifier=None),
    ordered(transactionId=None),
    ordered(status="NEW"),
    ordered(amount="x"),
]


def is_in_doubt(platform, link):
    """The property: an order that goes wrong is sent once, and is unknown."""
    with pytest.raises(OutcomeUnknown):
        link.call("place_order", order())
    assert platform.times("POST", "/orders") == 1


@pytest.mark.parametrize("answer", UNKNOWN, ids=lambda answer: str(answer)[:50])
def test_M1_whatever_leaves_doubt_is_unknown_after_exactly_one_request(platform, link, answer):
    platform.answers["POST", "/orders"] = answer
    is_in_doubt(platform, link)


def test_M1_what_never_left_bought_nothing(platform, link):
    platform.answers["POST", "/orders"] = httpx.ConnectError("x")
    with pytest.raises(NotSent):
        link.call("place_order", order())


def test_M1_control_an_adapter_that_tries_again_under_another_reference_is_caught(platform):
    def retrying(kind):
        class Retrying(kind):
            async def place_order(self, order):
                try:
                    return await super().place_order(order)
                except (OutcomeUnknown, BadResponse):
                    return await super().place_order(replace(order, reference="AB13"))

        return Retrying

    platform.answers["POST", "/orders"] = failed("ANYTHING")
    with linking(variant=retrying) as link, pytest.raises(AssertionError):
        is_in_doubt(platform, link)


# --- orders and cards -------------------------------------------------------------------------------------------------

STATES = {
    "PROCESSING": "pending",
    "PENDING": "pending",
    "SUCCESSFUL": "completed",
    "FAILED": "canceled",
    "REFUNDED": "refunded",
}


@pytest.mark.parametrize("state", STATES)
def test_the_state_comes_before_the_cards(platform, link, state):
    platform.answers["GET", "/reports/transactions/815"] = ordered(status=state)
    found = link.call("get_order", "815")
    assert (found.status, found.keys) == (STATES[state], ())
    assert len(link.call("fetch_keys", found)) == (state == "SUCCESSFUL")
    assert platform.times("GET", "/orders/transactions/815/cards") == (state == "SUCCESSFUL")


def cards(platform, link, *listed):
    platform.answers["GET", "/orders/transactions/815/cards"] = list(listed)
    found = link.call("fetch_keys", link.call("get_order", "815"))
    return found, [{name: part.reveal() for name, part in key.fields.items()} for key in found]


@pytest.mark.parametrize("text", ["0000", " 01 \t", "1E5", "a\r\nb", "卡", "%0A&amp;"])
def test_K14_number_and_pin_are_texts_exactly_as_they_came(platform, link, text):
    found, read = cards(platform, link, {"cardNumber": text, "pinCode": text}, {"cardNumber": text, "pinCode": None})
    assert read == [{"cardNumber": text, "pinCode": text}, {"cardNumber": text, "pinCode": ""}]
    assert text not in repr(found) or text == "0000"


@pytest.mark.parametrize("answer", [{}, None, "x", [{}], ["x"], [{"redemptionUrl": "https://x.test"}]])
def test_P3_what_are_no_cards_is_refused(platform, link, answer):
    platform.answers["GET", "/orders/transactions/815/cards"] = httpx.Response(200, content=json.dumps(answer).encode())
    order = link.call("get_order", "815")
    with pytest.raises(BadResponse):
        link.call("fetch_keys", order)


def test_M1_nothing_found_proves_nothing_unless_the_operator_says_so(platform, link):
    assert link.call("find_order", "AB12").id == "815"
    at = ("GET", "/reports/transactions")
    platform.answers[at] = {"content": [], "last": True}
    with pytest.raises(BadResponse, match="no proof"):
        link.call("find_order", "AB12")
    with linking(empty_is_absent=True) as told:
        assert told.call("find_order", "AB12") is None
        for answer in (
            {},
            [],
            {"content": None},
            {"content": [ordered(customIdentifier=None)]},  # others' orders alone: nobody looked for ours
            {"content": [ordered(), ordered(transactionId=816)]},
            failed("X", 404),
            httpx.Response(500),
        ):
            platform.answers[at] = answer
            with pytest.raises((BadResponse, Transient)):
                told.call("find_order", "AB12")
