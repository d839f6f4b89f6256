"""adapters/kasushou.toml: signatures, refusals, the status before the cards, one charge a reference from end to end."""

from __future__ import annotations

import contextlib
import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.adapter import (
    Auth,
    BadResponse,
    Config,
    Context,
    Forged,
    Hint,
    InsufficientBalance,
    Money,
    NotForSale,
    NotSent,
    Offer,
    OrderRequest,
    OutcomeUnknown,
    OutOfStock,
    Page,
    PriceChanged,
    RateLimited,
    Refused,
    Request,
    SecretText,
    Signed,
    Stock,
    Transient,
    Webhook,
)
from syncd.model import Clock
from syncd.suppliers import registry
from syncd.suppliers.client import Client, Cut, Limits, Reply
from syncd.suppliers.link import Link
from tests.suppliers.loopback.kasushou import REFUNDED, SUCCESS, Platform, callback, php, signature

KEY = SecretText("made-up-api-key")
CARD = Offer("12", "卡", Money(Decimal("9.90"), "CNY"), Stock.exact(5))
KIND = registry.load(registry.find("kasushou", []))
QUICK = Limits(connect_timeout=1.0, read_timeout=0.4, total_timeout=1.5, allow_http=True)


class At(Clock):
    def __init__(self, seconds):
        self.seconds = seconds

    def now(self):
        return self.seconds


@contextlib.contextmanager
def linked(play=None, *, url="https://platform.test", kind=KIND, clock=None, **settings):
    made = kind.Settings.model_validate({"url": url, "user_id": "7", "api_key": KEY, **settings})
    client = Client("kasushou", QUICK, hidden=[KEY.reveal()], play=play, clock=clock, jitter=lambda: 0.0)
    link = Link(kind(Context("kasushou", made, ZoneInfo("Asia/Shanghai"), client)), client)
    try:
        yield link
    finally:
        link.close()


class Script:
    """Answers in turn, and what was asked."""

    def __init__(self, *answers):
        self.answers, self.sent = list(answers), []

    def __call__(self, sent):
        self.sent.append(sent)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Cut):
            raise answer
        return answer if isinstance(answer, Reply) else Reply(body=answer)


def ok(data):
    return json.dumps({"code": 200, "msg": "ok", "data": data}, ensure_ascii=False).encode()


def failed(msg, code=400):
    return json.dumps({"code": code, "msg": msg, "data": None}, ensure_ascii=False).encode()


def buy(**more):
    asked = {"reference": "AB12", "offer": CARD, "quantity": 2, "max_unit_cost": Money(Decimal("9.95"), "CNY")}
    return OrderRequest(**asked | more)


def goods(number=12, **more):
    return {
        "id": number,
        "goods_name": "卡/1",
        "goods_type": 1,
        "goods_price": "9.90",
        "status": 1,
        "stock_num": 3,
    } | more


def ordered(status, **more):
    return {
        "ordersn": "D1",
        "external_orderno": "AB12",
        "status": status,
        "total_price": "19.80",
        "card_list": [],
    } | more


# --- signatures -------------------------------------------------------------------------------------------------------


def test_the_documents_vector_comes_out():
    body = '{"day":10,"external_orderno":"","ordersn":"D100759082558859640832"}'
    auth, key = KIND.definition.auth, SecretText("H0YnuPpcVtx7rQdMTbjN6932s5oDOqFa")
    sent = Request("POST", "/", {}, body.encode(), {}, NOW)
    sign = Signed(auth.hash, auth.text, key).of(sent, timestamp="1696645385740")
    assert sign == "15b8f541eb10e3fbb33efd92c8d52d50ddca0784"
    assert sign == signature("1696645385740", body, "H0YnuPpcVtx7rQdMTbjN6932s5oDOqFa")  # the loopback platform agrees


def test_what_leaves_is_what_is_signed_sorted_and_unescaped():
    script = Script(ok({"balance": "1.00"}))
    with linked(script, clock=At(1696645385.740)) as link:
        assert link.call("check").balance == Money(Decimal("1.00"), "CNY")
    (sent,) = script.sent
    assert (sent.method, sent.path, sent.body) == ("POST", "/api/v1/user/info", b"{}")
    assert sent.headers["timestamp"] == "1696645385740"
    assert sent.headers["userid"] == "7"
    assert sent.headers["sign"] == signature("1696645385740", "{}", KEY.reveal())


def test_an_order_says_exactly_this():
    script = Script(ok({"ordersn": "D1", "external_orderno": "AB12", "total_price": 19.8}))
    with linked(script) as link:
        placed = link.call("place_order", buy(callback_url="https://me.test/回/调"))
    (sent,) = script.sent
    assert sent.body.decode() == (
        '{"external_orderno":"AB12","id":12,"quantity":2,"safe_price":"9.95","url":"https://me.test/回/调"}'
    )
    assert sent.headers["sign"] == signature(sent.headers["timestamp"], sent.body.decode(), KEY.reveal())
    assert (placed.id, placed.status, placed.charged) == ("D1", "pending", Money(Decimal("19.8"), "CNY"))


def test_without_a_limit_and_a_callback_they_are_left_out():
    script = Script(ok({"ordersn": "D1", "external_orderno": "AB12", "total_price": "19.80"}))
    with linked(script) as link:
        link.call("place_order", buy(max_unit_cost=None))
    assert script.sent[0].body == b'{"external_orderno":"AB12","id":12,"quantity":2}'


# --- offers -----------------------------------------------------------------------------------------------------------


def listing(*pages, total=None):
    every = sum(len(page) for page in pages)
    return Script(*[ok({"total": every if total is None else total, "list": page}) for page in pages])


def test_cards_alone_are_offers_page_by_page():
    script = listing(
        [goods(1), goods(2, goods_type=2), goods(3, goods_type=9)],
        [goods(4, status=2), goods(5, status=3, stock_num=0), goods(6, can_buy=0), goods(7, can_buy="淘宝,拼多多")],
    )
    with linked(script) as link:
        offers = [offer for page in link.pages(None, lambda: False) for offer in page.offers]
    assert [(offer.sku, offer.for_sale) for offer in offers] == [
        ("1", True),
        ("4", False),
        ("5", False),
        ("6", False),
        ("7", True),
    ]
    assert offers[0].price == Money(Decimal("9.90"), "CNY")
    assert offers[2].stock == Stock.exact(0)
    assert [json.loads(sent.body) for sent in script.sent] == [{"limit": 100, "page": 1}, {"limit": 100, "page": 2}]


@pytest.mark.parametrize(
    "answers",
    [
        [b""],
        [b"{}"],
        [b"<html>busy</html>"],
        [ok({})],
        [ok({"total": 2, "list": None})],
        [ok({"total": 2, "list": [goods(1)]})[:-9]],
        [ok({"total": 3, "list": [goods(1)]}), ok({"total": 3, "list": []})],
        [ok({"total": 3, "list": [goods(1)]})],  # the same page for ever
        [ok({"list": [goods(1)]})],
        [ok({"total": 1, "list": [goods(1, stock_num=-1)]})],
        [ok({"total": 1, "list": [goods(1, stock_num=None)]})],
        [ok({"total": 1, "list": [goods(1, goods_price="free")]})],
        [ok({"total": 1, "list": [goods(1, status=7)]})],
        [ok({"total": 1, "list": [{"id": 1}]})],
        [ok({"total": 1, "list": ["x"]})],
    ],
)
def test_P1_what_is_no_listing_is_never_an_empty_one(answers):
    with linked(Script(*answers)) as link, pytest.raises(BadResponse):
        list(link.pages(None, lambda: False))


def test_an_offer_has_its_limits_from_goods_info():
    script = Script(ok(goods(start_count=2, end_count=10)), ok(goods(start_count=1, end_count=0)))
    with linked(script) as link:
        first, second = link.call("get_offer", "12"), link.call("get_offer", "12")
    assert (first.min_quantity, first.max_quantity) == (2, 10)
    assert (second.min_quantity, second.max_quantity) == (1, None)
    assert script.sent[0].body == b'{"id":12}'


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (failed("商品不存在"), NotForSale),
        (ok(goods(goods_type=2)), NotForSale),
        (ok({}), BadResponse),
        (ok(None), BadResponse),
        (ok(goods(13)), NotForSale),
        (failed("什么"), BadResponse),
    ],
)
def test_P1_an_offer_is_gone_only_when_the_supplier_says_so(answer, error):
    with linked(Script(answer)) as link, pytest.raises(error) as raised:
        link.call("get_offer", "12")
    assert type(raised.value) is error


def test_a_busy_platform_is_asked_again_by_the_client_and_an_order_is_not():
    script = Script(failed("系统错误", 500), failed("请求过于频繁"), ok({"balance": "1.00"}))
    with linked(script) as link:
        assert link.call("get_balance") == Money(Decimal("1.00"), "CNY")
    assert len(script.sent) == 3
    script = Script(failed("系统错误", 500))
    with linked(script) as link, pytest.raises(Transient):
        link.call("get_balance")
    assert len(script.sent) == 4
    for verb, asked in (("get_order", "D1"), ("find_order", "AB12"), ("place_order", buy())):
        script = Script(failed("系统错误", 500))
        with linked(script) as link, pytest.raises((Transient, OutcomeUnknown)):
            link.call(verb, asked)
        assert len(script.sent) == 1


# --- buying -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (failed("余额不足"), InsufficientBalance),
        (failed("商品库存不足"), OutOfStock),
        (failed("商品价格高于安全价"), PriceChanged),
        (failed("商品已下架"), NotForSale),
        (failed("签名错误"), Auth),
        (failed("请求过于频繁"), RateLimited),
        (Reply(401, body=b"{}"), Auth),
        (Reply(429, {"Retry-After": "9"}, b"{}"), RateLimited),
        (failed("Günther sagt nein"), Refused),
    ],
)
def test_each_refusal_is_certain(answer, error):
    with linked(Script(answer), refusal_text="sagt nein") as link, pytest.raises(error) as raised:
        link.call("place_order", buy())
    assert not isinstance(raised.value, OutcomeUnknown)
    assert (error is Refused) == (type(raised.value) is Refused)
    assert "sagt" not in str(raised.value)


@pytest.mark.parametrize("cut", ["dns", "refused", "connect_timeout", "tls", "pool"])
def test_M1_what_never_left_bought_nothing(cut):
    script = Script(Cut(cut))
    with linked(script) as link, pytest.raises(NotSent):
        link.call("place_order", buy())
    assert len(script.sent) == 1


@pytest.mark.parametrize(
    "answer",
    [
        Cut("timeout"),
        Cut("reset"),
        Cut("truncated"),
        Reply(500, body=b"oops"),
        Reply(502, body=b"<html>"),
        Reply(302, {"Location": "https://elsewhere.test"}),
        Reply(404, body=failed("没有")),
        failed("系统错误", 500),
        failed("外部订单号重复"),
        failed("订单已存在，余额不足"),
        failed("从未见过的说法"),
        b"",
        b"{}",
        b"[]",
        b"<html>busy</html>",
        ok({}),
        ok([]),
        ok({"external_orderno": "AB12"}),
        ok({"ordersn": "D1", "external_orderno": "OTHER", "total_price": "1"}),
        ok({"ordersn": "D1", "external_orderno": "AB12", "total_price": "x"}),
        ok({"ordersn": "D1", "external_orderno": "AB12"})[:-4],
    ],
    ids=str,
)
def test_M1_whatever_leaves_doubt_is_unknown_after_exactly_one_request(answer):
    script = Script(answer)
    with linked(script) as link, pytest.raises(OutcomeUnknown):
        link.call("place_order", buy())
    assert len(script.sent) == 1


def test_a_limit_in_another_currency_is_never_sent():
    script = Script(ok({}))
    with linked(script) as link, pytest.raises(Config):
        link.call("place_order", buy(max_unit_cost=Money(Decimal(2), "USD")))
    assert script.sent == []


# --- orders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "ours"), [(-1, "pending"), (1, "pending"), (2, "pending"), (4, "canceled"), (5, "refunded")]
)
def test_the_status_comes_before_the_cards(status, ours):
    card = {"card_no": "", "card_password": "1"}  # the document's own example of a refunded order
    with linked(Script(ok([ordered(status, card_list=[card])]))) as link:
        found = link.call("get_order", "D1")
    assert (found.status, list(found.keys)) == (ours, [])


def test_negative_control_with_the_status_ignored_a_refunded_order_yields_a_key(monkeypatch):
    monkeypatch.setattr("syncd.suppliers.declarative.engine.HANDED_OVER", ("refunded",))
    with linked(Script(ok([ordered(5, card_list=[{"card_no": "", "card_password": "1"}])]))) as link:
        assert len(link.call("get_order", "D1").keys) == 1


def test_K14_cards_come_exactly_as_they_are_and_fewer_than_ordered_are_what_there_is():
    cards = [{"card_no": "000123 ", "card_password": " Ünï\r\n-卡"}, {"card_no": "", "card_password": "007"}]
    with linked(Script(ok([ordered(3, card_list=cards)]))) as link:
        found = link.call("get_order", "D1")
    assert [{n: v.reveal() for n, v in key.fields.items()} for key in found.keys] == cards
    assert found.status == "completed"
    assert "007" not in repr(found)


@pytest.mark.parametrize(
    "data",
    [
        [ordered(3, card_list="no list")],
        [ordered(3, card_list=[{"card_no": "", "card_password": ""}])],
        [ordered(3, card_list=["text"])],
        [ordered(9)],
        [ordered(None)],
        [ordered(3, ordersn="D2")],
        [ordered(3), ordered(3)],
        [],
        {},
        None,
        ["x"],
    ],
)
def test_an_order_that_does_not_read_is_refused(data):
    with linked(Script(ok(data))) as link, pytest.raises(BadResponse):
        link.call("get_order", "D1")


def test_an_order_is_found_by_our_reference():
    script = Script(ok([ordered(1, external_orderno="OTHER"), ordered(2)]))
    with linked(script) as link:
        assert link.call("find_order", "AB12").id == "D1"
    assert script.sent[0].body == b'{"day":0,"external_orderno":"AB12"}'


def test_M1_nothing_found_proves_nothing_unless_the_operator_says_so():
    with linked(Script(ok([]))) as link, pytest.raises(BadResponse, match="no proof"):
        link.call("find_order", "AB12")
    with linked(Script(ok([])), empty_is_absent=True) as link:
        assert link.call("find_order", "AB12") is None
    for answer in (b"{}", ok({"x": 1}), failed("订单不存在"), failed("系统错误", 500)):
        with linked(Script(answer), empty_is_absent=True) as link, pytest.raises((BadResponse, Transient)):
            link.call("find_order", "AB12")


def test_a_complaint_names_the_order():
    script = Script(ok([]))
    with linked(script) as link:
        assert link.call("complain", "D1", "卡密/无效") == ""
    assert script.sent[0].path == "/api/v1/order/complain"
    assert script.sent[0].body.decode() == '{"content":"卡密/无效","ordersn":"D1"}'


SCALARS = st.none() | st.booleans() | st.integers(-3, 500) | st.sampled_from(["", "1", "AB12", "D1", "x", "9.90"])
NAMES = st.sampled_from(
    "id goods_name goods_type goods_price status stock_num can_buy start_count end_count ordersn external_orderno"
    " total_price card_list card_no card_password list total balance data".split()
)
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6))


@given(data=ANYTHING, verb=st.sampled_from(["check", "get_offer", "get_order", "find_order", "place_order", "list"]))
async def test_P1_whatever_a_supplier_answers_is_a_value_or_an_error_of_ours(data, verb):
    client = Client("kasushou", QUICK, play=Script(ok(data)), jitter=lambda: 0.0)
    settings = KIND.Settings(url="https://platform.test", user_id="7", api_key=KEY)
    adapter = KIND(Context("kasushou", settings, ZoneInfo("Asia/Shanghai"), client))
    asked = {"get_offer": ["12"], "get_order": ["D1"], "find_order": ["AB12"], "place_order": [buy()]}.get(verb, [])
    try:
        if verb == "list":
            found = [page async for page in adapter.list_offers(None)]
            assert isinstance(data, dict)
            assert isinstance(data["list"], list)
            assert all(isinstance(page, Page) for page in found)
        else:
            found = await getattr(adapter, verb)(*asked)
            assert isinstance(data, dict | list) or (verb == "check" and found.balance is None)
    except (BadResponse, NotForSale, OutcomeUnknown):
        pass


# --- callbacks --------------------------------------------------------------------------------------------------------

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def pushed(fields, *, form=False):
    body = urlencode(fields).encode() if form else php(fields, slashes=True, scripts=True).encode()
    return Webhook("POST", "/hooks/kasushou", {}, {}, body, NOW)


def said(**more):
    fields = {
        "external_orderno": "AB12",
        "ordersn": "D1",
        "status": 3,
        "has_back_money": "0.00",
        "total_price": "19.80",
        "recharge_hints": "请访问 https://a.test/b",
        "time": int(NOW.timestamp()),
        "card_list": '[{"card_no":"","card_password":"yT7B1t50HRURMGN","end_time":""}]',
    }
    return fields | more


@pytest.mark.parametrize("form", [False, True], ids=["json", "form"])
@pytest.mark.parametrize("scripts", [False, True], ids=["scripts as they are", "scripts escaped"])
@pytest.mark.parametrize("unit", [1, 1000], ids=["s", "ms"])
def test_W1_a_callback_is_a_hint_and_its_cards_are_never_used(form, scripts, unit):
    fields = said(time=int(NOW.timestamp()) * unit)
    fields = {name: str(value) for name, value in fields.items()} if form else fields
    with linked() as link:
        hint = link.call("parse_webhook", pushed(callback(fields, KEY.reveal(), scripts=scripts), form=form))
    assert hint == Hint("order", order_id="D1", reference="AB12", answer=b"ok")


def test_W1_the_cards_are_not_signed_so_changing_them_changes_nothing():
    with linked() as link:
        fields = callback(said(), KEY.reveal()) | {"card_list": "[]"}
        assert "yT7B" not in repr(link.call("parse_webhook", pushed(fields)))


@pytest.mark.parametrize("name", ["external_orderno", "ordersn", "status", "total_price", "time", "sign", "more"])
def test_W1_a_changed_field_is_a_forgery(name):
    fields = callback(said(), KEY.reveal())
    fields[name] = f"{fields.get(name, '')}0"
    with linked() as link, pytest.raises(Forged):
        link.call("parse_webhook", pushed(fields))


@pytest.mark.parametrize("gone", ["sign", "time"])
def test_W1_a_callback_without_a_part_of_its_signature_is_a_forgery(gone):
    fields = callback(said(), KEY.reveal())
    del fields[gone]
    with linked() as link, pytest.raises(Forged):
        link.call("parse_webhook", pushed(fields))


@pytest.mark.parametrize(("off", "fine"), [(-1790, True), (-1810, False), (1810, False)])
def test_W1_an_old_callback_is_refused_its_repeats_are_not(off, fine):
    fields = callback(said(time=int(NOW.timestamp()) + off), KEY.reveal())
    with linked() as link, contextlib.nullcontext() if fine else pytest.raises(Forged):
        link.call("parse_webhook", pushed(fields))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"a=1&a=2", b"<html>", b'{"time":1}'])
def test_W1_a_callback_of_another_kind_is_refused(body):
    with linked() as link, pytest.raises(BadResponse):
        link.call("parse_webhook", Webhook("POST", "/", {}, {}, body, NOW))


def test_W1_a_change_of_goods_is_a_hint_on_the_offer():
    stamp = int(NOW.timestamp())
    sign = signature(str(stamp), php({"id": 12, "time": stamp}), KEY.reveal())
    fields = {"id": 12, "goods_price": "0.01", "stock_num": 9, "time": stamp, "sign": sign}
    with linked() as link:
        assert link.call("parse_webhook", pushed(fields)) == Hint("offer", sku="12", answer=b"ok")
        with pytest.raises(Forged):
            link.call("parse_webhook", pushed(fields | {"id": 13}))


# --- end to end, over real HTTP ---------------------------------------------------------------------------------------


@pytest.fixture
def real():
    with Platform() as platform:
        platform.sell(12, "9.90", [f"KEY-{n}" for n in range(5)], end_count=3)
        platform.sell(13, "1.00", [], goods_type=2)
        yield platform


@pytest.fixture
def ours(real):
    with linked(url=real.url) as link:
        yield link


def filled(link, order_id):
    for _ in range(20):
        found = link.call("get_order", order_id)
        if found.status != "pending":
            return found
        time.sleep(0.01)
    raise AssertionError(found)


def test_from_the_listing_to_the_keys(real, ours):
    assert ours.call("check").balance == Money(Decimal("100.00"), "CNY")
    (offer,) = [offer for page in ours.pages(None, lambda: False) for offer in page.offers]
    assert ours.call("get_offer", "12").max_quantity == 3
    placed = ours.call("place_order", buy(offer=offer))
    found = filled(ours, placed.id)
    assert [key.fields["card_password"].reveal() for key in found.keys] == ["KEY-0", "KEY-1"]
    assert found.charged == Money(Decimal("19.80"), "CNY")
    assert [charge.amount for charge in real.ledger.of("AB12")] == [Decimal("19.80")]
    ours.call("complain", placed.id, "坏卡")
    assert real.complaints == [{"content": "坏卡", "ordersn": placed.id}]
    fields = callback(said(ordersn=placed.id), KEY.reveal())
    assert ours.call("parse_webhook", pushed(fields)).order_id == placed.id


@pytest.mark.parametrize(
    ("fault", "charges"),
    [("lost", 1), ("broken", 1), ("html", 1), ("cut", 1), ("short", 1), ("reset", 0), ("error", 0), ("gone", 0)],
)
def test_M1_an_order_without_an_answer_is_one_request_unknown_and_found_again(real, ours, fault, charges):
    real.fail("/api/v1/order/buy", fault)
    with pytest.raises(OutcomeUnknown):
        ours.call("place_order", buy())
    assert real.times("/api/v1/order/buy") == 1
    assert len(real.ledger.of("AB12")) == charges
    if charges:
        found = ours.call("find_order", "AB12")
        assert len(filled(ours, found.id).keys) == 2
    else:
        with pytest.raises(BadResponse, match="no proof"):
            ours.call("find_order", "AB12")
    assert real.ledger.most() <= 1


def test_M1_a_reference_sent_twice_is_charged_once_and_stays_unknown(real, ours):
    ours.call("place_order", buy())
    with pytest.raises(OutcomeUnknown):
        ours.call("place_order", buy(again=True))
    assert real.ledger.most() == 1


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"goods_price": "9.96"}, PriceChanged),
        ({"cards": []}, OutOfStock),
        ({"status": 2}, NotForSale),
        ({"goods_price": "9.00", "cards": ["K"] * 20}, InsufficientBalance),
    ],
)
def test_refusals_of_the_platform_cost_nothing(real, ours, change, error):
    real.goods[12] |= change
    with pytest.raises(error):
        ours.call("place_order", buy(quantity=20 if error is InsufficientBalance else 2))
    assert real.ledger.charges == []


def test_a_refunded_order_has_no_keys(real, ours):
    placed = ours.call("place_order", buy())
    real.orders[placed.id]["status"] = REFUNDED
    found = ours.call("get_order", placed.id)
    assert (found.status, list(found.keys)) == ("refunded", [])
    real.orders[placed.id]["status"] = SUCCESS
    assert len(ours.call("get_order", placed.id).keys) == 2


def test_the_platform_is_strict(real):
    with linked(url=real.url, api_key=SecretText("another")) as link, pytest.raises(Auth):
        link.call("check")
    with linked(url=real.url, clock=At(time.time() - 120)) as link, pytest.raises(Auth):
        link.call("check")


def test_M1_control_an_adapter_that_tries_again_under_a_new_number_is_caught(real):
    class Retrying(KIND):
        async def place_order(self, order):
            try:
                return await super().place_order(order)
            except (OutcomeUnknown, BadResponse):
                return await super().place_order(buy(reference="AB13"))

    real.fail("/api/v1/order/buy", "html")
    with linked(url=real.url, kind=Retrying) as link:
        link.call("place_order", buy())
    assert real.times("/api/v1/order/buy") == 2  # what the tests above count
    assert len(real.ledger.charges) == 2


def test_control_a_body_that_is_not_sorted_is_refused(real, monkeypatch):
    monkeypatch.setattr("syncd.suppliers.declarative.engine.sorted", lambda items: reversed(list(items)), raising=False)
    with linked(url=real.url) as link, pytest.raises(Auth):
        list(link.pages(None, lambda: False))
