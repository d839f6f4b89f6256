"""adapters/fulu.py: sorted characters, coarse stock, cards that have to open, an order that fails is in doubt."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from datetime import UTC, datetime
from decimal import Decimal

import httpx
import pytest
import respx
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

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
    RawKey,
    Refused,
    SecretText,
    Stock,
    Transient,
)
from tests.suppliers.loopback.linked import linked

URL = "https://fulu.test/api/getway"
APP_KEY, SECRET = "i4es+76l/7NQ==", "a-made-up-secret-of-32-bytes-é2"
CARD = Offer("585", "卡", Money(Decimal("9.80"), "CNY"), Stock.coarse("plenty"))
BUY, ORDER = "fulu.order.card.add", "fulu.order.info.get"


def signature(text, secret=SECRET):
    """Written from the protocol's text, not with the adapter's means."""
    return hashlib.md5(("".join(sorted(text)) + secret).encode()).hexdigest()


def unescaped(value):
    """JSON as PHP writes it with slashes and scripts unescaped."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def closed(text, pad="pkcs7", secret=SECRET):
    data = text if isinstance(text, bytes) else text.encode()
    if pad == "pkcs7":
        data += bytes([16 - len(data) % 16]) * (16 - len(data) % 16)
    elif pad == "zeros":
        data += b"\0" * (-len(data) % 16)
    cipher = Cipher(algorithms.AES256(secret.encode()), modes.ECB()).encryptor()
    return base64.b64encode(cipher.update(data) + cipher.finalize()).decode()


def good(number=585, **more):
    return {
        "product_id": number,
        "product_name": "卡/1",
        "product_type": "卡密",
        "face_value": 10.0,
        "purchase_price": 9.8,
        "sales_status": "上架",
        "stock_status": "充足",
    } | more


def card(number="", password="K-1", kind="0", deadline="", pad="pkcs7"):
    return {
        "card_number": closed(number, pad) if number else "",
        "card_pwd": closed(password, pad) if password else "",
        "card_type": kind,
        "card_deadline": deadline,
    }


def ordered(**more):
    return {
        "order_id": "22113019210922951925",
        "customer_order_no": "AB12",
        "product_id": 585,
        "buy_num": 1,
        "order_type": 3,
        "order_price": 9.8,
        "order_state": "untreated",
        "cards": None,
    } | more


def said(result, **more):
    """An answer of success."""
    text = unescaped(result)
    return {"code": 0, "message": "接口调用成功", "result": text, "sign": signature(text)} | more


def no(code):
    return {"code": code, "message": "CANARY-0001 不行", "result": "", "sign": ""}


class Platform:
    """Answers by method, strict about everything that a request has to be. ``answers``: method → what it answers, an
    httpx.Response, an exception, or what becomes the JSON of one.
    """

    def __init__(self):
        self.answers = {
            "fulu.goods.info.get": said(good()),
            "fulu.goods.stock.check": said({"product_id": 585, "stock_status": "充足"}),
            "fulu.user.info.get": said({"name": "商户", "balance": 344283.1608, "is_open": 1}),
            BUY: said(ordered()),
            ORDER: said(ordered()),
        }
        self.asked = []

    def __call__(self, request):
        assert (request.method, request.headers["content-type"]) == ("POST", "application/json")
        fields = json.loads(request.content)
        given = fields.pop("sign")
        assert given == signature(unescaped(fields))
        assert isinstance(fields["biz_content"], str)
        assert fields["biz_content"].isascii()
        assert SECRET.encode() not in request.content
        self.asked.append((fields["method"], json.loads(fields["biz_content"])))
        answer = self.answers[fields["method"]]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    def times(self, method):
        return [asked for asked, _ in self.asked].count(method)


@pytest.fixture
def platform():
    made = Platform()
    with respx.mock(assert_all_called=False) as routes:
        routes.post(URL).mock(side_effect=made)
        yield made


@contextlib.contextmanager
def linking(**more):
    made = linked("fulu", **{"url": URL, "app_key": APP_KEY, "app_secret": SecretText(SECRET)} | more)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def link():
    with linking() as made:
        yield made


def cny(text):
    return Money(Decimal(text), "CNY")


def order(**more):
    return OrderRequest(**{"reference": "AB12", "offer": CARD, "quantity": 1, "max_unit_cost": cny("9.9")} | more)


def offers(platform, link, *goods):
    platform.answers["fulu.goods.list.get"] = said(list(goods))
    return [offer for page in link.pages(None, bool) for offer in page.offers]


# --- signatures -------------------------------------------------------------------------------------------------------


def test_a_published_answer_has_this_signature():
    """Of the README of an SDK, with the secret of the public sandbox there."""
    result = '{"name":"OpenApi2.0对接专用商户","balance":344283.1608,"is_open":1}'
    with linking(app_secret=SecretText("0a091b3aa4324435aab703142518a8f7")) as link:
        assert link.adapter.sign(result) == "af223d55aaab949a4061d651cc4b2765"


def test_a_request_has_these_fields_and_is_signed_character_by_character(link):
    clock = datetime(2026, 1, 2, 20, 30, tzinfo=UTC)
    object.__setattr__(link.adapter.context, "now", lambda: clock)
    with respx.mock:
        asked = respx.post(URL).respond(json=said({"name": "商户", "balance": "1.00"}))
        assert link.call("check").balance == cny("1.00")
    fields = json.loads(asked.calls[0].request.content)
    given = fields.pop("sign")
    assert fields == {
        "app_key": APP_KEY,
        "method": "fulu.user.info.get",
        "timestamp": "2026-01-03 04:30:00",
        "version": "2.0",
        "format": "json",
        "charset": "utf-8",
        "sign_type": "md5",
        "app_auth_token": "",
        "biz_content": "{}",
    }
    text = unescaped(fields)
    assert given == signature(text)
    assert given != signature(text.replace("/", "\\/"))  # the control: with slashes escaped it is another one


def test_an_answers_signature_has_to_fit_where_there_is_one(platform, link):
    for sign in ("", None, signature(unescaped({"name": "a", "balance": 1})).upper()):
        platform.answers["fulu.user.info.get"] = said({"name": "a", "balance": 1}, sign=sign)
        assert link.call("get_balance") == cny(1)
    platform.answers["fulu.user.info.get"] = said({"name": "a", "balance": 1}, sign="0" * 32)
    with pytest.raises(BadResponse, match="signature"):
        link.call("get_balance")
    with linking(verify_answers=False) as trusting:
        assert trusting.call("get_balance") == cny(1)


def test_M1_an_order_whose_answer_is_signed_by_somebody_else_is_in_doubt(platform, link):
    platform.answers[BUY] = said(ordered(), sign="0" * 32)
    with pytest.raises(OutcomeUnknown):
        link.call("place_order", order())
    assert platform.times(BUY) == 1


@pytest.mark.parametrize("secret", ["too-short", SECRET + "x"])
def test_a_secret_that_can_open_no_card_is_said_before_one_is_bought(secret):
    with pytest.raises(Config) as caught, linking(app_secret=SecretText(secret)):
        pass
    assert secret not in str(caught.value)


# --- offers -----------------------------------------------------------------------------------------------------------


def test_cards_are_offers_with_coarse_stock_and_the_rest_is_left_out(platform, link):
    found = offers(
        platform,
        link,
        good(1),
        good(2, stock_status="警报", purchase_price="21.50"),
        good(3, stock_status="断货", sales_status="下架"),
        good(4, sales_status="维护中"),
        good(5, sales_status="库存维护"),
        good(6, product_type="直充"),
        good(7, stock_status="预售"),
    )
    assert [(offer.sku, offer.stock, offer.for_sale) for offer in found] == [
        ("1", Stock.coarse("plenty"), True),
        ("2", Stock.coarse("low"), True),
        ("3", Stock.coarse("out"), False),
        ("4", Stock.coarse("plenty"), False),
        ("5", Stock.coarse("plenty"), False),
        ("7", Stock.unknown(), True),  # P1: a word that nobody knows is not zero
    ]
    assert [offer.price for offer in found[:2]] == [cny("9.8"), cny("21.50")]
    assert platform.asked == [("fulu.goods.list.get", {})]


def test_P1_a_good_that_is_listed_twice_is_shown_twice(platform, link):
    """The core refuses a listing that names an offer twice: it must see it."""
    assert [offer.sku for offer in offers(platform, link, good(), good(purchase_price=1))] == ["585", "585"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"stock_status": None},
        {"stock_status": ""},
        {"stock_status": 3},
        {"sales_status": None},
        {"product_type": None},
        {"product_id": None},
        {"product_id": "x"},
        {"purchase_price": None},
        {"purchase_price": "free"},
        {"purchase_price": -1},
        {"product_name": ...},
    ],
)
def test_P1_one_good_that_does_not_read_refuses_the_listing(platform, link, wrong):
    broken = {name: value for name, value in good(2, **wrong).items() if value is not ...}
    with pytest.raises(BadResponse):
        offers(platform, link, good(), broken)


NO_RESULT = [
    {},
    [],
    None,
    {"code": "0", "result": "[]"},
    {"code": False, "result": "[]"},
    {"code": 0},
    {"code": 0, "result": None},
    {"code": 0, "result": [good()]},
    {"code": 0, "result": ""},
    {"code": 0, "result": "null"},
    {"code": 0, "result": "{}"},
    {"code": 0, "result": '[{"product_id":1,'},
    {"code": 0, "result": "[" * 100_000},
    {"code": 0, "result": '["x"]'},
    no(9999),
    httpx.Response(200, content=b"<html>busy</html>"),
    httpx.Response(200, content=b""),
]


@pytest.mark.parametrize("answer", NO_RESULT, ids=lambda answer: str(answer)[:40])
def test_P1_what_is_no_listing_is_never_an_empty_one(platform, link, answer):
    platform.answers["fulu.goods.list.get"] = answer
    with pytest.raises(BadResponse):
        list(link.pages(None, bool))


def test_an_offer_now_has_the_stock_that_was_checked(platform, link):
    platform.answers["fulu.goods.stock.check"] = said({"product_id": 585, "stock_status": "警报"})
    found = link.call("get_offer", "585")
    assert (found.sku, found.stock, found.price) == ("585", Stock.coarse("low"), cny("9.8"))
    assert platform.asked[1] == ("fulu.goods.stock.check", {"product_id": 585, "buy_num": 1})


@pytest.mark.parametrize(
    ("info", "stock", "error"),
    [
        (good(product_type="直充"), {}, NotForSale),
        (good(586), {}, BadResponse),
        (good(), {"stock_status": None}, BadResponse),
        ([good()], {}, BadResponse),
        (good(), [], BadResponse),
    ],
)
def test_P1_an_offer_is_gone_only_when_it_is_said(platform, link, info, stock, error):
    platform.answers["fulu.goods.info.get"] = said(info)
    if stock != {}:
        platform.answers["fulu.goods.stock.check"] = said(stock)
    with pytest.raises(error) as caught:
        link.call("get_offer", "585")
    assert type(caught.value) is error
    for sku in ("x", "5/6", "٣", ""):
        with pytest.raises(NotForSale):
            link.call("get_offer", sku)


# --- buying -----------------------------------------------------------------------------------------------------------


def test_an_order_says_exactly_this_and_its_id_is_our_reference(platform, link):
    placed = link.call("place_order", order(quantity=1))
    assert platform.asked[-1] == (
        BUY,
        {"product_id": 585, "buy_num": 1, "customer_order_no": "AB12", "customer_price": 9.9},
    )
    assert (placed.id, placed.reference, placed.status, placed.charged) == ("AB12", "AB12", "pending", cny("9.8"))
    assert "22113019210922951925" in placed.note
    link.call("place_order", order(max_unit_cost=None))
    assert platform.asked[-1] == (BUY, {"product_id": 585, "buy_num": 1, "customer_order_no": "AB12"})


def test_P3_cards_in_the_answer_to_an_order_are_not_taken(platform, link):
    platform.answers[BUY] = said(ordered(order_state="success", cards=[card()]))
    assert (link.call("place_order", order()).status, link.call("place_order", order()).keys) == ("pending", ())
    platform.answers[BUY] = said(ordered(order_state="failed"))
    failed = link.call("place_order", order())
    assert (failed.status, failed.charged) == ("canceled", None)


@pytest.mark.parametrize(
    ("now", "error"),
    [
        ({"purchase_price": "9.91"}, PriceChanged),
        ({"sales_status": "维护中"}, NotForSale),
        ({"product_type": "直充"}, NotForSale),
        ({}, OutOfStock),
    ],
)
def test_M4_what_can_be_known_before_is_asked_before(platform, link, now, error):
    platform.answers["fulu.goods.info.get"] = said(good(**now))
    if error is OutOfStock:
        platform.answers["fulu.goods.stock.check"] = said({"product_id": 585, "stock_status": "断货"})
    with pytest.raises(error):
        link.call("place_order", order(quantity=3))
    assert platform.times(BUY) == 0
    assert platform.asked[1] == ("fulu.goods.stock.check", {"product_id": 585, "buy_num": 3})


def test_M4_nothing_is_bought_while_the_price_cannot_be_asked_for(platform, link):
    platform.answers["fulu.goods.info.get"] = no(9999)
    with pytest.raises(NotSent):
        link.call("place_order", order())
    platform.answers["fulu.goods.info.get"] = said(good())
    with pytest.raises(Config):
        link.call("place_order", order(max_unit_cost=Money(Decimal(9), "USD")))
    assert platform.times(BUY) == 0


CODES = {
    "9001": ("OutOfStock", OutOfStock),
    "9002": ("InsufficientBalance", InsufficientBalance),
    "9003": ("NotForSale", NotForSale),
    "9004": ("PriceChanged", PriceChanged),
    "9005": ("Refused", Refused),
    "9006": ("Auth", Auth),
    "9007": ("RateLimited", RateLimited),
    "9008": ("Absent", OutcomeUnknown),
    "9009": ("Transient", OutcomeUnknown),
    "9010": (None, OutcomeUnknown),
    "-1": ("Refused", Refused),
}


@pytest.mark.parametrize("code", CODES)
def test_M1_a_code_is_a_refusal_only_if_the_configuration_says_so(platform, code):
    platform.answers[BUY] = no(int(code))
    codes = {number: meaning for number, (meaning, _) in CODES.items() if meaning}
    with linking(codes=codes) as link, pytest.raises(CODES[code][1]) as caught:
        link.call("place_order", order())
    assert type(caught.value) is CODES[code][1]
    assert "CANARY" not in str(caught.value) + caught.value.hint
    assert platform.times(BUY) == 1
    with linking() as link, pytest.raises(OutcomeUnknown):  # without it, every one of them is in doubt
        link.call("place_order", order())


def test_a_code_that_is_no_code_is_not_shown(platform, link):
    platform.answers[BUY] = no(1234567890123456)
    with pytest.raises(OutcomeUnknown) as caught:
        link.call("place_order", order())
    assert "123456" not in str(caught.value)


def test_a_meaning_that_does_not_exist_is_a_problem_of_the_configuration():
    with pytest.raises(ValueError, match="codes"), linking(codes={"1": "Sold"}):
        pass


@pytest.mark.parametrize("failure", [httpx.ConnectError, httpx.ConnectTimeout])
def test_M1_what_never_left_bought_nothing(platform, link, failure):
    platform.answers[BUY] = failure("x")
    with pytest.raises(NotSent):
        link.call("place_order", order())


UNKNOWN = [
    httpx.ReadTimeout("x"),
    httpx.ReadError("x"),
    httpx.Response(500),
    httpx.Response(302, headers={"location": "https://elsewhere.test"}),
    httpx.Response(404, json=no(1)),
    said([]),
    said({}),
    said(ordered(customer_order_no="OTHER")),
    said(ordered(customer_order_no=None)),
    said(ordered(order_state="new")),
    said(ordered(order_state=None)),
    said(ordered(buy_num=None)),
    said(ordered(order_price="x")),
    *NO_RESULT,
]


def is_in_doubt(platform, link):
    """The property: an order that goes wrong is sent once, and is unknown."""
    with pytest.raises(OutcomeUnknown):
        link.call("place_order", order())
    assert platform.times(BUY) == 1


@pytest.mark.parametrize("answer", UNKNOWN, ids=lambda answer: str(answer)[:40])
def test_M1_whatever_leaves_doubt_is_unknown_after_exactly_one_request(platform, link, answer):
    platform.answers[BUY] = answer
    is_in_doubt(platform, link)


def test_M1_a_refusal_of_an_order_that_was_sent_before_says_nothing(platform):
    platform.answers[BUY] = no(9001)
    with linking(codes={"9001": "OutOfStock"}) as link, pytest.raises(OutcomeUnknown):
        link.call("place_order", order(again=True))


def test_M1_control_an_adapter_that_tries_again_is_caught(platform):
    def retrying(kind):
        class Retrying(kind):
            async def _send(self, method, content, *, reads=True):
                try:
                    return await super()._send(method, content, reads=True)  # as if an order only read
                except (BadResponse, Transient):
                    return await super()._send(method, {**content, "customer_order_no": "AB13"}, reads=reads)

        return Retrying

    platform.answers[BUY] = no(9999)
    with linking(variant=retrying) as link, pytest.raises(AssertionError):
        is_in_doubt(platform, link)
    assert platform.times(BUY) > 1


# --- orders and cards -------------------------------------------------------------------------------------------------


def fetched(platform, link, *cards, **more):
    platform.answers[ORDER] = said(ordered(order_state="success", cards=list(cards), buy_num=len(cards) or 1) | more)
    found = link.call("get_order", "AB12")
    return found, [{name: part.reveal() for name, part in key.fields.items()} for key in found.keys]


def test_an_order_is_asked_for_by_our_reference(platform, link):
    found, keys = fetched(platform, link, card("0012345678", "0420117x", deadline="2027-12-31 23:59:59"), card())
    assert platform.asked == [(ORDER, {"customer_order_no": "AB12"})]
    assert (found.id, found.status, found.quantity, found.charged) == ("AB12", "completed", 2, cny("19.6"))
    assert keys == [
        {"card_number": "0012345678", "card_pwd": "0420117x"},
        {"card_number": "", "card_pwd": "K-1"},
    ]
    assert [key.expires for key in found.keys] == ["2027-12-31 23:59:59", ""]
    assert "0420117x" not in repr(found)


STATES = [("untreated", "pending"), ("processing", "pending"), ("failed", "canceled"), ("success", "completed")]


def keys_by_state(platform, link):
    """The property: cards come with success and with nothing else."""
    found = {}
    for state, status in STATES:
        platform.answers[ORDER] = said(ordered(order_state=state, cards=[card()]))
        seen = link.call("get_order", "AB12")
        assert seen.status == status
        found[state] = len(seen.keys)
    assert found == {"untreated": 0, "processing": 0, "failed": 0, "success": 1}


def test_the_state_comes_before_the_cards(platform, link):
    keys_by_state(platform, link)


def test_negative_control_cards_that_are_read_in_any_state_are_caught(platform):
    def greedy(kind):
        class Greedy(kind):
            def _order(self, said, reference, *, placed=False):
                made = super()._order({**said, "order_state": "success"}, reference, placed=placed)
                status = super()._order(said, reference, placed=placed).status
                return type(made)(made.id, status, keys=made.keys)

        return Greedy

    with linking(variant=greedy) as link, pytest.raises(AssertionError):
        keys_by_state(platform, link)


@pytest.mark.parametrize("cards", [None, [], [card()]])
def test_P3_fewer_cards_than_ordered_are_not_the_whole_order(platform, link, cards):
    platform.answers[ORDER] = said(ordered(order_state="success", cards=cards, buy_num=2))
    found = link.call("get_order", "AB12")
    assert (found.status, len(found.keys)) == ("partial", len(cards or []))


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "007",
        "K-1",
        "0123456789ABCDEF",
        "0123456789ABCDEF" * 2,
        " K \t",
        "a\r\nb\n",
        "卡号：１",
        "e\u0301%0A&amp;",
        "\ufeffx",
    ],
)
@pytest.mark.parametrize("pad", ["pkcs7", "zeros"])
def test_K14_a_card_is_what_was_closed_however_it_was_padded(platform, link, text, pad):
    """Zeros for a text of whole blocks are no padding at all."""
    _, keys = fetched(platform, link, card(text, text, pad=pad))
    assert keys == [{"card_number": text, "card_pwd": text}]


def test_blanks_in_base64_are_none_of_the_card(platform, link):
    text = closed("K" * 40)
    _, keys = fetched(platform, link, {"card_number": None, "card_pwd": f"{text[:20]}\r\n{text[20:]}\n"})
    assert keys == [{"card_number": "", "card_pwd": "K" * 40}]


@pytest.mark.parametrize(("kind", "more"), [("1", {"card_type": "1"}), (2, {"card_type": "2"}), (0, {}), (None, {})])
def test_a_link_keeps_its_type(platform, link, kind, more):
    _, keys = fetched(platform, link, card(password="https://h5.test/q/1?a=%0A", kind=kind))
    assert keys == [{"card_number": "", "card_pwd": "https://h5.test/q/1?a=%0A", **more}]


UNREADABLE = {
    "in the clear": "ABCD-EFGH-1234",
    "base64 of no block": base64.b64encode(b"ABCD-EFGH").decode(),
    "cut off": closed("K" * 40)[:-6],
    "of another secret": closed("CANARY-0001", secret="another-secret-of-32-bytes-00000"),
    "no UTF-8": closed(b"\xff\xfe\xfd" * 5),
    "control characters": closed("CANARY\x07-0001"),
    "padding in the middle": closed("CANARY\x00-0001"),
    "PKCS#7 that is wrong": closed(b"CANARY-0001\x05\x05\x05\x05\x04", pad=""),
    "no text": 12345678,
    "a list": ["x"],
}


def is_refused(platform, link, value):
    """The property: what does not open is no key, and nothing of it is shown."""
    with pytest.raises(BadResponse) as caught:
        fetched(platform, link, {"card_number": "", "card_pwd": value, "card_type": "0"})
    assert "CANARY" not in f"{caught.value!r} {caught.value.hint} {caught.value.__cause__} {caught.value.__context__}"


@pytest.mark.parametrize("name", UNREADABLE)
def test_P3_a_card_that_does_not_open_is_refused(platform, link, name):
    is_refused(platform, link, UNREADABLE[name])


@pytest.mark.parametrize("cards", ["x", {"a": 1}, ["x"], [{"card_number": "", "card_pwd": ""}], [{}]])
def test_P3_what_are_no_cards_is_refused(platform, link, cards):
    platform.answers[ORDER] = said(ordered(order_state="success", cards=cards))
    with pytest.raises(BadResponse):
        link.call("get_order", "AB12")


@pytest.mark.parametrize("name", ["control characters", "of another secret", "PKCS#7 that is wrong"])
def test_negative_control_an_adapter_that_takes_whatever_opens_is_caught(platform, name):
    def trusting(kind):
        def opened(self, text):
            key = Cipher(algorithms.AES256(SECRET.encode()), modes.ECB()).decryptor()
            return key.update(base64.b64decode(text)).decode("utf-8", "replace") if text else ""

        return type("Trusting", (kind,), {"_opened": opened})

    with linking(variant=trusting) as link, pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        is_refused(platform, link, UNREADABLE[name])


def test_M1_no_order_is_absent_unless_the_operator_knows_the_code(platform, link):
    platform.answers[ORDER] = no(9004)
    with pytest.raises(BadResponse):
        link.call("find_order", "AB12")
    with linking(codes={"9004": "Absent", "9001": "OutOfStock"}) as told:
        assert told.call("find_order", "AB12") is None
        for answer in (no(9001), no(9999), said(None), said({}), said(ordered(customer_order_no="AB13"))):
            platform.answers[ORDER] = answer
            with pytest.raises(BadResponse):  # a refusal says nothing of an order
                told.call("find_order", "AB12")
        platform.answers[ORDER] = said(ordered(order_state="success", cards=[card()]))
        assert [type(key) for key in told.call("find_order", "AB12").keys] == [RawKey]
