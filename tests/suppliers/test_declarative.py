"""Adapters without code: every word of the vocabulary, every problem of a file, and answers that are not as agreed."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import tomllib
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from syncd import adapter as sdk
from syncd.adapter import (
    Auth,
    BadResponse,
    Context,
    Forged,
    Hint,
    Money,
    NotForSale,
    Offer,
    Order,
    OrderRequest,
    OutcomeUnknown,
    PriceChanged,
    RateLimited,
    Request,
    SecretText,
    Signed,
    Stock,
    Transient,
    Webhook,
    capabilities,
    hmac_sha256_hex,
    md5_hex,
    sha1_hex,
)
from syncd.errors import ConfigError
from syncd.inventory.formats import is_split
from syncd.placeholders import _FORMS, _OTHERS
from syncd.suppliers.client import Call as Verb
from syncd.suppliers.client import Client, Limits, Reply, calling
from syncd.suppliers.declarative import load, values, words
from syncd.suppliers.link import Verbs

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "declarative.md").read_text(encoding="utf-8")
NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
CNY = ZoneInfo("Asia/Shanghai")

BASE = """
title = "Example"
base_url = "{settings.url}/v1"

[settings]
url = { type = "url" }
key = { type = "secret" }
user = { type = "text", default = "us" }
sure = { type = "bool", default = false }
first = { type = "number", default = 1 }

[offer]
sku = "id"
title = "name"
stock = "stock"

[order]
id = "id"
reference = "ref"
status = { at = "status", map = { NEW = "pending", PART = "partial", DONE = "completed", GONE = "canceled" } }
"""
VERBS = """
[verbs.place_order]
method = "POST"
path = "orders"
json = { ref = "{reference}" }

[verbs.get_order]
path = "orders/{order.id}"

[verbs.find_order]
path = "orders"
query = { ref = "{reference}" }
"""
MD5 = "[auth]\ntype = 'signed'\nhash = 'md5'\nsecret = '{settings.key}'\n"
HOOK_MD5 = "[[webhooks]]\nevent = 'test'\nhash = 'md5'\nsecret = '{settings.key}'\n"
LIST = """
[verbs.list_offers]
path = "goods"
items = "list"
"""


class Script:
    def __init__(self, *answers):
        self.answers, self.sent = list(answers), []

    def __call__(self, sent):
        self.sent.append(sent)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer if isinstance(answer, Reply) else Reply(body=answer if isinstance(answer, bytes) else js(answer))


def js(value):
    return json.dumps(value, ensure_ascii=False).encode()


@pytest.fixture
def kind(tmp_path):
    def make(*parts):
        path = tmp_path / "example.toml"
        path.write_text("\n".join(parts), encoding="utf-8")
        return load(path)

    return make


@pytest.fixture
def made(kind):
    """An adapter of these parts, and what it sends to."""

    def make(*parts, play=None, **settings):
        cls = kind(*parts)
        own = cls.Settings.model_validate(
            {"url": "https://shop.test", "key": SecretText("sesame-1")} | settings, context={"base": Path()}
        )
        client = Client("example", Limits(), play=play, jitter=lambda: 0.0)
        return cls(Context("example", own, CNY, client, lambda: NOW))

    return make


def problems(kind, *parts):
    with pytest.raises(ConfigError) as refused:
        kind(*parts)
    return {problem.path: f"{problem.message} -> {problem.fix}" for problem in refused.value.problems}


async def pages(adapter, since=None):
    return [page async for page in adapter.list_offers(since)]


async def skus(adapter):
    return [offer.sku for page in await pages(adapter) for offer in page.offers]


def goods(number, **more):
    return {"id": number, "name": f"n{number}", "stock": 1} | more


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_verb_that_the_file_does_not_have_is_no_capability(kind):
    assert capabilities(kind(BASE, LIST)) == {"list_offers"}
    assert capabilities(kind(BASE, VERBS)) == {"place_order", "get_order", "find_order"}
    every = set(words.CALLS)
    assert every | {"pull_keys", "return_keys", "parse_webhook"} == set(sdk.VERBS)


def test_what_the_core_reads_of_an_adapter_stands_in_the_class(kind):
    made = kind(
        'split = "pair:----"',
        'unverified = ["Rate limits."]',
        BASE,
        "[promises]\nexact_stock = true\nreference_length = 12\nrepeat_after = 30",
        LIST.replace('"goods"', '"goods"\nquery = { since = "{since}" }'),
    )
    assert (made.__name__, made.title, made.split, made.unverified) == (
        "Example",
        "Example",
        "pair:----",
        ("Rate limits.",),
    )
    assert made.promises == sdk.Promises(exact_stock=True, reference_length=12, repeat_after=30, incremental=True)
    assert not kind(BASE, LIST).promises.incremental


@pytest.mark.parametrize(
    "name", ["auto", "line", "pair", "labelled", "csv", "pair:----", "pair:tab", "", "words", "pairs"]
)
def test_K14_split_takes_what_the_formats_take(kind, name):
    if is_split(name):
        assert kind(f'split = "{name}"', BASE, LIST).split == name
    else:
        assert "split" in problems(kind, f'split = "{name}"', BASE, LIST)


def test_settings_are_typed_and_every_mistake_is_named(kind):
    model = kind(BASE, '[settings.place]\ntype = "choice"\nchoices = ["eu", "us"]', LIST).Settings
    fine = {"url": "https://shop.test/", "key": SecretText("k"), "place": "eu"}
    made = model.model_validate(fine)
    assert (made.url, made.user, made.sure, made.first) == ("https://shop.test", "us", False, 1)
    for wrong in (
        {"url": "shop.test"},
        {"url": "https://me@shop.test"},
        {"url": "https://shop.test?x=1"},
        {"key": "in the clear"},
        {"place": "asia"},
        {"sure": 1},
        {"first": "1"},
        {"user": 3},
        {"more": 1},
    ):
        with pytest.raises(ValidationError):
            model.model_validate(fine | wrong)
    with pytest.raises(ValidationError):
        model.model_validate({name: value for name, value in fine.items() if name != "url"})


@pytest.mark.parametrize(
    ("part", "path", "said"),
    [
        ('titel = "x"', "titel", "there is no such word -> did you mean title?"),
        ("[offer.prize]\nat = 'x'", "offer.prize", "there is no such word -> did you mean price?"),
        ("[offer.price]\nat = 'x'\ncurency = 'CNY'", "offer.price.curency", "did you mean currency?"),
        ("[offer.price]\nat = 'x'", "offer.price", "an amount needs its currency"),
        ("[offer.price]\nat = 'x'\ncurrency = 'yuan'", "offer.price.currency", "should match pattern"),
        ("[offer]\nexpand = 'a['", "offer.expand", "this is not JMESPath: 'a['"),
        ("[offer]\nexpand = 'lenght(a)'", "offer.expand", "Unknown function: lenght()"),
        ("[offer]\nregion = 'a b'", "offer.region", "this is not JMESPath: 'a b' (Unexpected token: b"),
        ("[offer]\ngroup = 3", "offer.group", "valid dictionary or instance of TextValue"),
        ("[offer.group]\nvalue = 'x'\nat = 'y'", "offer.group", "no source, or one too many"),
        ("[offer.stock]\nkind = 'coarse'", "offer.stock", "no source, or one too many"),
        ("[offer.stock]\nkind = 'rough'", "offer.stock.kind", "it is none of 'exact', 'coarse'"),
        ("[order.status]\nat = 's'\nmap = { a = 'done' }", "order.status.map.a", "it is none of 'pending'"),
        ("[order.keys]\neach = 'k'", "order.keys", "a key is a text, or fields"),
        ("[order.keys]\ntext = 'k'\nfields = { a = 'b' }", "order.keys", "a key is a text, or fields"),
        ("[order.keys]\ntxt = 'k'", "order.keys.txt", "did you mean text?"),
        ("[settings.more]\ntype = 'txt'", "settings.more.type", "it is none of"),
        ("[settings.interval]\ntype = 'text'", "settings.interval", "interval is a setting of every supplier"),
        ("[settings.json]\ntype = 'text'", "settings.json", "json cannot name a setting"),
        ("[settings.More]\ntype = 'text'", "settings.More", "More cannot name a setting"),
        ("[settings.more]\ntype = 'choice'", "settings.more", "a choice has choices"),
        ("[settings.more]\ntype = 'secret'\ndefault = 'x'", "settings.more", "that is no default of a secret"),
        ("[settings.more]\ntype = 'bool'\ndefault = 1", "settings.more", "that is no default of a bool"),
        (
            "[settings.more]\ntype = 'choice'\nchoices = ['a']\ndefault = 'b'",
            "settings.more",
            "that is no default of a choice",
        ),
        ("[promises]\nfast = true", "promises.fast", "there is no such word"),
        ("[promises]\nreference_length = 40", "promises.reference_length", "less than or equal to 19"),
        ("[auth]\ntype = 'magic'", "auth.type", "it is none of 'api_key'"),
        ("[auth]\ntype = 'bearer'", "auth", "type bearer: missing a required argument: 'token'"),
        (
            "[auth]\ntype = 'bearer'\ntoken = '{settings.key}'\nheader = 'X'",
            "auth",
            "type bearer: got an unexpected keyword argument 'header'",
        ),
        ("[auth]\ntype = 'bearer'\ntoken = 'abc'", "auth.token", "not one setting of type secret"),
        ("[auth]\ntype = 'bearer'\ntoken = '{settings.user}'", "auth.token", "not one setting of type secret"),
        ("[auth]\ntype = 'bearer'\ntoken = 'x{settings.key}'", "auth.token", "not one setting of type secret"),
        (
            "[auth]\ntype = 'signed'\nhash = 'md5'\nsecret = '{settings.key}'\ntext = '{body}'",
            "auth",
            "the signature goes nowhere",
        ),
        (
            f"{MD5}text = '{{boddy}}'\nheaders = {{ S = '{{signature}}' }}",
            "auth.text",
            "there is no {boddy} here -> did you mean body?",
        ),
        (
            "[auth]\ntype = 'signed'\nhash = 'md5'\nsecret = '{settings.key}'\ntext = '{body}'\nheaders = { S = 'x' }",
            "auth",
            "the signature goes nowhere",
        ),
        ("[[errors]]\nraise = 'Refused'", "errors.0", "it fits every failure"),
        ("[[errors]]\ncode = 1\nraise = 'NotSent'", "errors.0.raise", "it is none of"),
        ("[[errors]]\ncode = 1\nraise = 'Absent'", "errors.0", "an answer to find_order alone"),
        ("[[errors]]\nmessage = '('\nraise = 'Refused'", "errors.0", "no regular expression"),
        ("[[errors]]\ncode = 1\nverb = 'check'\nraise = 'Refused'", "errors.0.verb", "did you mean verbs?"),
        ("[[errors]]\ncode = 1\nverbs = 'buy'\nraise = 'Refused'", "errors.0.verbs", "it is none of"),
        ("[verbs.pull_keys]\npath = 'x'", "verbs.pull_keys", "a feed is written in Python"),
        ("[verbs.get_offers]\npath = 'x'", "verbs.get_offers", "did you mean"),
        ("[verbs.check]\npath = 3", "verbs.check.path", "valid string"),
        ("[verbs.check]\npath = 'a{b'", "verbs.check.path", "a brace that belongs to no placeholder"),
        ("[verbs.check]\npath = '{reference}'", "verbs.check.path", "there is no {reference} here"),
        ("[verbs.check]\npath = '{settings.usr}'", "verbs.check.path", "did you mean settings.user?"),
        ("[verbs.check]\npath = '{settings.key}'", "verbs.check.path", "a secret, and an address ends up in logs"),
        ("[verbs.check]\npath = 'x'\nquery = { a = '{settings.key}' }", "verbs.check.query", "is a secret"),
        ("[verbs.check]\npath = 'x'\nquery = { a = '{now:noon}' }", "verbs.check.query", "{now} has no form 'noon'"),
        ("[verbs.check]\npath = 'x'\nquery = { a = 2026-01-01 }", "verbs.check.query", "this is no text"),
        ("[verbs.check]\npath = 'x'\njson = {}", "verbs.check", "a body too many"),
        ("[verbs.check]\nmethod = 'POST'\npath = 'x'\njson = {}\nform = {}", "verbs.check", "a body too many"),
        (
            "[verbs.check]\nmethod = 'POST'\npath = 'x'\njson = { a = { b = '{usr}' } }",
            "verbs.check.json",
            "no {usr} here",
        ),
        (
            "[verbs.place_order]\npath = 'x'\nquery = { a = '{offer.data.x}' }",
            "verbs.place_order.query",
            "no {offer.data.x}",
        ),
        ("[verbs.place_order]\npath = 'x'", "", "nobody could learn what became of an order"),
        (
            "[verbs.fetch_keys]\npath = '{page}'\nkeys = { text = 'a' }",
            "verbs.fetch_keys",
            "pages are of type none, and the request does not fit",
        ),
        (
            "[verbs.fetch_keys]\npath = 'x'\nkeys = { text = 'a' }\npages = { type = 'page' }",
            "verbs.fetch_keys",
            "it has to use {page}",
        ),
        (
            "[verbs.fetch_keys]\npath = '{page}'\nkeys = { text = 'a' }\npages = { type = 'page', next = 'x' }",
            "verbs.fetch_keys.pages",
            "type page takes first last total unique",
        ),
        (
            "[verbs.fetch_keys]\npath = '{page}'\nkeys.text = 'a'\npages = { type = 'page', first = '{settings.key}' }",
            "verbs.fetch_keys.pages.first",
            "not one setting of type number",
        ),
        (
            "[verbs.find_order]\npath = '{reference}'\nempty_is_absent = '{settings.first}'",
            "verbs.find_order.empty_is_absent",
            "not one setting of type bool",
        ),
        ("[[webhooks]]\nevent = 'order'", "webhooks.0.text", "it is missing"),
        (
            "[[webhooks]]\nevent = 'order'\ntext = '{body}'\nsignature = '{field.s}'\norder_id = 'o'",
            "webhooks.0.secret",
            "it is missing",
        ),
        (
            f"{HOOK_MD5}text = '{{body}}'\nsignature = '{{field.s}}'",
            "webhooks.0",
            "anybody could make this signature",
        ),
        (
            "[[webhooks]]\nevent = 'offer'\nsecret = '{settings.key}'\ntext = '{body}'\nsignature = '{header.s}'",
            "webhooks.0",
            "nothing says what it is about",
        ),
        (
            "[[webhooks]]\nevent = 'test'\nsecret = '{settings.key}'\ntext = '{body}'\nsignature = '{body}'",
            "webhooks.0.signature",
            "there is no {body} here",
        ),
    ],
)
def test_each_problem_says_where_it_is_and_what_to_do(kind, part, path, said):
    document = tomllib.loads(BASE + LIST)
    _into(document, tomllib.loads(part, parse_float=Decimal))
    found = problems(kind, _toml(document))
    assert path in found, found
    assert said in found[path]
    assert found[path].partition(" -> ")[2]


def _into(document, more):
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(document.get(name), dict) and name != "pages":
            _into(document[name], value)
        elif isinstance(value, dict) and name == "stock":
            document[name] = value
        else:
            document[name] = value


def _toml(value):
    """A document as TOML: inline tables all the way down."""
    return "\n".join(f"{_key(name)} = {_inline(inner)}" for name, inner in value.items())


def _key(name):
    return json.dumps(name)


def _inline(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)} = {_inline(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(inner) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | int) else str(value)


def test_every_problem_of_a_file_is_named_at_once(kind):
    found = problems(
        kind,
        'titel = "x"',
        BASE.replace('sku = "id"', 'sku = "id["').replace('type = "secret"', 'type = "hidden"'),
        LIST.replace('"list"', '"list"\nitem = "x"'),
        "[verbs.check]\npath = '{usr}'",
    )
    assert set(found) == {"titel", "offer.sku", "settings.key.type", "verbs.list_offers.item", "verbs.check.path"}


@pytest.mark.parametrize("missing", ["title", "base_url"])
def test_what_is_missing_is_named(kind, missing):
    assert "it is missing" in problems(kind, re.sub(rf"^{missing} = .*$", "", BASE, flags=re.MULTILINE), LIST)[missing]
    assert "it is missing" in problems(kind, BASE)["verbs"]


@pytest.mark.parametrize("part", ["offer", "order"])
def test_a_verb_without_its_words_is_refused(kind, part):
    text = re.sub(rf"\[{part}\]\n(.+\n)+", "", BASE)
    assert f"nothing says how an {part} of" in problems(kind, text, LIST, VERBS)[""]


def test_an_order_that_is_looked_for_has_to_be_known_again(kind):
    assert "ours" in problems(kind, BASE.replace('reference = "ref"', ""), VERBS)[""]


@pytest.mark.parametrize(
    ("data", "said"), [(b"a = ", "it is not TOML"), (b"\xff\xfe", "it is not UTF-8"), (None, "there is no such file")]
)
def test_a_file_that_cannot_be_read_is_one_problem(tmp_path, data, said):
    path = tmp_path / "x.toml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=said):
        load(path)


# --- requests ---------------------------------------------------------------------------------------------------------


async def test_a_placeholder_alone_keeps_its_type_and_one_without_a_value_is_left_out(made):
    script = Script({"id": "1", "ref": "R1", "status": "NEW"})
    adapter = made(
        BASE.replace('stock = "stock"', 'stock = "stock"\ndata = { p = "p" }'),
        VERBS.replace(
            '{ ref = "{reference}" }',
            """{
            z = "{quantity}", n = "{quantity:text}", sku = "{offer.sku}", p = "{offer.data.p:int}",
            d = "{offer.data.p:number}",
            cost = "{max_unit_cost}", cents = "{max_unit_cost:cents}", cur = "{max_unit_cost:currency}",
            t = "{max_unit_cost:text}",
            url = "{callback_url}", user = "{settings.user}", key = "{settings.key}", sure = "{settings.sure}",
            text = "<{reference}/{quantity}>", fixed = 3, list = ["{callback_url}", "{quantity}"],
            yes = true, half = 0.50,
            deep = { none = "{callback_url}", at = "{now:unix}", ms = "{now:unix_ms}", rfc = "{now}",
            here = "{now:%Y-%m-%d %H:%M:%S}" } }
            """.replace("\n", " "),
            1,
        ),
        play=script,
    )
    offer = Offer("s/1", "t", Money(Decimal(1), "CNY"), Stock.exact(1), data={"p": "815"})
    await adapter.place_order(OrderRequest("R1", offer, 2, Money(Decimal("12.509"), "CNY")))
    body = script.sent[0].body.decode()
    sent = json.loads(body, parse_float=Decimal)
    assert sent == {
        "z": 2,
        "n": "2",
        "sku": "s/1",
        "p": 815,
        "d": 815,
        "cost": Decimal("12.509"),
        "cents": 1250,
        "cur": "CNY",
        "t": "12.509",
        "user": "us",
        "key": "sesame-1",
        "sure": False,
        "text": "<R1/2>",
        "fixed": 3,
        "list": [2],
        "yes": True,
        "half": Decimal("0.50"),
        "deep": {"at": 1772368200, "ms": 1772368200000, "rfc": "2026-03-01T12:30:00Z", "here": "2026-03-01 20:30:00"},
    }
    assert list(sent) == sorted(sent)


async def test_paths_are_percent_encoded_and_cannot_climb(made):
    script = Script({"id": "a/b?c=1 ü", "ref": "R", "status": "NEW"})
    adapter = made(BASE, VERBS, play=script)
    await adapter.get_order("a/b?c=1 ü")
    assert script.sent[0].path == "/v1/orders/a%2Fb%3Fc%3D1%20%C3%BC"
    with pytest.raises(BadResponse):
        await adapter.get_order("..")
    assert len(script.sent) == 1


async def test_a_form_and_a_query_are_texts(made):
    script = Script({})
    text = '[verbs.check]\nmethod = "POST"\npath = "me"\nform = { a = 1, b = true, c = "{settings.user}" }\n'
    text += "query = { q = 1.50 }"
    await made(BASE, text, play=script).check()
    assert (script.sent[0].body, dict(script.sent[0].query)) == (b"a=1&b=true&c=us", {"q": "1.50"})


async def test_an_offer_that_lacks_what_the_order_needs_is_never_ordered(made):
    script = Script({})
    adapter = made(
        BASE.replace('stock = "stock"', 'stock = "stock"\ndata = { p = "p" }'),
        VERBS.replace('{ ref = "{reference}" }', '{ p = "{offer.data.p}" }', 1),
        play=script,
    )
    with pytest.raises(NotForSale):
        await adapter.place_order(OrderRequest("R1", Offer("s", "t", None, Stock.exact(1)), 1))
    assert script.sent == []


# --- authentication ---------------------------------------------------------------------------------------------------

CHECK = '[verbs.check]\npath = "me"\nquery = { b = 2, a = 1, e = "" }'


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        ('type = "api_key"\nkey = "{settings.key}"', "x-api-key", "sesame-1"),
        ('type = "api_key"\nkey = "{settings.key}"\nheader = "Key"', "key", "sesame-1"),
        ('type = "bearer"\ntoken = "{settings.key}"', "authorization", "Bearer sesame-1"),
        (
            'type = "basic"\nuser = "{settings.user}"\npassword = "{settings.key}"',
            "authorization",
            f"Basic {base64.b64encode(b'us:sesame-1').decode()}",
        ),
    ],
)
async def test_fixed_proofs(made, auth, header, value):
    script = Script({})
    await made(f'headers = {{ X-Place = "{{settings.user}}" }}\n{BASE}', f"[auth]\n{auth}", CHECK, play=script).check()
    assert script.sent[0].headers[header] == value
    assert script.sent[0].headers["x-place"] == "us"


async def test_a_key_in_the_query(made):
    script = Script({})
    auth = '[auth]\ntype = "api_key"\nkey = "{settings.key}"\nquery = "apikey"'
    await made(BASE, auth, CHECK, play=script).check()
    assert script.sent[0].query["apikey"] == "sesame-1"


STAMP = "1772368200"


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ('hash = "hmac_sha256"\ntext = "{method}|{path}|{timestamp}|{body_md5}"', hmac_sha256_hex),
        ('hash = "md5"\ntext = "{method}|{path}|{timestamp}|{body_md5}{secret}"', None),
        ('hash = "sha1"\ntext = "{fields}#{body}#{settings.user}{secret}"', sha1_hex),
        ('hash = "sha1"\ntext = "{fields}#{body}#{settings.user}{secret}"\nencoding = "base64"', "base64"),
        ('hash = "sha1"\ntext = "{fields}{secret}"\nwithout = ["a"]\ntimestamp = "ms"', "without"),
        ('hash = "sha1"\ntext = "{fields}{secret}"\nonly = ["a"]', "only"),
    ],
)
async def test_signatures_by_template(made, auth, expected):
    script = Script({})
    text = f'[auth]\ntype = "signed"\nsecret = "{{settings.key}}"\n{auth}\n'
    text += 'headers = { S = "{signature}", T = "{timestamp}" }'
    clock = type("At", (), {"now": lambda self: NOW.timestamp()})()
    adapter = made(BASE, text, CHECK)
    client = Client("example", Limits(), play=script, clock=clock)
    await type(adapter)(Context("example", adapter.context.settings, CNY, client)).check()
    sent = script.sent[0].headers["s"]
    long = f"GET|/v1/me|{STAMP}|d41d8cd98f00b204e9800998ecf8427e"
    fields = "a=1&b=2##ussesame-1"
    assert script.sent[0].headers["t"] == (f"{STAMP}000" if "ms" in auth else STAMP)
    assert (
        sent
        == {
            hmac_sha256_hex: hmac_sha256_hex(SecretText("sesame-1"), long),
            None: md5_hex(f"{long}sesame-1"),
            sha1_hex: sha1_hex(fields),
            "base64": base64.b64encode(bytes.fromhex(sha1_hex(fields))).decode(),
            "without": sha1_hex("b=2sesame-1"),
            "only": sha1_hex("a=1sesame-1"),
        }[expected]
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        (
            "POST",
            "/api/v1/upstream/orders",
            b'{"sku_id":1,"quantity":1}',
            "48afbcf8034f6e6ac879b7af76f4efc5a96bacb8ffb4bc9578403997450e6a1c",
        ),
        ("GET", "/api/v1/upstream/products", b"", "4c46320a66a0d9d2fca1b11bbb098338b4b1adbb8f2b8d8917dd1a41302e6b0b"),
    ],
)
def test_a_template_says_dujiao_nexts_signature(method, path, body, expected):
    text = "{method}\n{path}\n{timestamp}\n{body_md5}"
    signer = Signed("hmac_sha256", text, SecretText("secret"), {"S": "{signature}", "T": "{timestamp}"})
    sent = Request(method, path, {}, body, {}, datetime.fromtimestamp(1700000000, UTC))
    assert signer(sent) == {"S": expected, "T": "1700000000"}
    assert "secret" not in repr(signer).replace("secret=", "")


def test_a_template_says_acg_fakas_signature():
    signer = Signed("md5", "{fields}&key={secret}", SecretText("0123456789ABCDEF"), without=["sign"])
    sent = Request("POST", "/", {}, b"code=A1B2C3D4&race=&app_id=1001&sign=x", {}, NOW)
    assert signer.of(sent) == "f7201f9e3bf349a4e822d3b61f12eab7"
    with pytest.raises(BadResponse):
        signer.of(Request("POST", "/", {}, b'{"a":[1]}', {}, NOW))


def test_a_template_without_a_value_says_so():
    with pytest.raises(ValueError, match="has no value"):
        Signed("md5", "{nothing}", SecretText("k")).of(Request("GET", "/", {}, b"", {}, NOW))


# --- answers ----------------------------------------------------------------------------------------------------------

ERRORS = """
[answer]
success_when = "ok"
code = "code"
message = "msg"

[[errors]]
code = [7, "X7"]
raise = "OutOfStock"
[[errors]]
status = 409
message = "^gone"
raise = "NotForSale"
[[errors]]
status = [503, 401]
verbs = ["check", "place_order"]
raise = "RateLimited"
[[errors]]
message = "{settings.user}"
raise = "Auth"
[[errors]]
message = "later"
raise = "Transient"
[[errors]]
code = "none"
verbs = "find_order"
raise = "Absent"
"""


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(body=b'{"ok":false,"code":7}'), sdk.OutOfStock),
        (Reply(400, body=b'{"code":"X7"}'), sdk.OutOfStock),
        (Reply(409, body=b'{"msg":"gone away"}'), NotForSale),
        (Reply(409, body=b'{"msg":"not gone"}'), BadResponse),
        (Reply(503, {"Retry-After": "7"}, b"<html>"), RateLimited),
        (Reply(401, body=b""), RateLimited),
        (Reply(403, body=b"{}"), Auth),
        (Reply(500, body=b'{"code":7}'), Transient),
        (Reply(body=b'{"ok":false,"msg":"no us here"}'), Auth),
        (Reply(body=b'{"ok":false,"msg":"later"}'), Transient),
        (Reply(body=b'{"ok":false,"code":8}'), BadResponse),
        (Reply(body=b'{"ok":"yes"}'), BadResponse),
        (Reply(body=b"{}"), BadResponse),
        (Reply(body=b""), BadResponse),
        (Reply(body=b"<html>"), BadResponse),
        (Reply(body=b'{"ok":true'), BadResponse),
        (Reply(404, body=b'{"ok":true}'), BadResponse),
    ],
    ids=str,
)
async def test_the_errors_table(made, reply, error):
    adapter = made(BASE, ERRORS, CHECK, play=Script(reply))
    with pytest.raises(error) as raised:
        await adapter.check()
    assert type(raised.value) is error
    if reply.status == 503:
        assert raised.value.retry_after == 7


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, Auth), (403, Auth), (408, Transient), (429, RateLimited), (503, Transient), (409, BadResponse)],
)
async def test_a_status_that_no_line_fits_means_what_it_means_anywhere(made, status, error):
    text = f"[answer]\nmessage = 'msg'\n[[errors]]\nstatus = {status}\nmessage = 'x'\nraise = 'Refused'"
    script = Script(Reply(status, body=b'{"msg":"y"}'))
    with pytest.raises(error) as raised:
        await made(BASE, text, CHECK, play=script).check()
    assert type(raised.value) is error
    adapter = made(BASE, text, VERBS, play=script)
    order = OrderRequest("R1", Offer("s", "t", None, Stock.exact(1)), 1)
    with pytest.raises(error if error in {Auth, RateLimited} else OutcomeUnknown):
        await Verbs(adapter, adapter.context.connect).ask(Verb("place_order"), order)


async def test_a_line_for_one_verb_leaves_the_others_to_the_client(made):
    script = Script(Reply(503), Reply(503), Reply(body=js(part(1))))
    with calling(Verb("list_offers")):
        assert await skus(made(BASE, ERRORS.replace('success_when = "ok"', ""), LIST, play=script)) == ["1"]
    assert len(script.sent) == 3  # it was repeated: the line for 503 is of other verbs


async def test_an_empty_expression_never_fits(made):
    adapter = made(BASE, ERRORS, CHECK, play=Script(b'{"ok":false,"msg":"no us here"}'), user="")
    with pytest.raises(BadResponse):
        await adapter.check()


async def test_a_verb_may_have_a_success_of_its_own(made):
    text = '[answer]\nsuccess_when = "ok"\n' + CHECK + '\nsuccess_when = "fine == `1`"\naccount = "who"'
    assert (await made(BASE, text, play=Script({"fine": 1, "who": "us"})).check()).account == "us"


async def test_M1_in_place_order_only_what_the_table_calls_certain_is(made):
    order = OrderRequest("R1", Offer("s", "t", None, Stock.exact(1)), 1)
    for reply, error in (
        (b'{"ok":false,"code":7}', sdk.OutOfStock),
        (b'{"ok":false,"msg":"later"}', OutcomeUnknown),
        (b'{"ok":false}', OutcomeUnknown),
        (Reply(404, body=b"{}"), OutcomeUnknown),
        (b"<html>", OutcomeUnknown),
        (b'{"ok":true}', OutcomeUnknown),
        (b'{"ok":true,"id":"1","ref":"R2","status":"NEW"}', OutcomeUnknown),
        (b'{"ok":true,"id":"1","ref":"R1","status":"odd"}', OutcomeUnknown),
    ):
        script = Script(reply)
        adapter = made(BASE, ERRORS, VERBS, play=script)
        with pytest.raises(error) as raised:
            await Verbs(adapter, adapter.context.connect).ask(Verb("place_order"), order)
        assert type(raised.value) is error, reply
        assert len(script.sent) == 1


async def test_absent_is_none(made):
    assert await made(BASE, ERRORS, VERBS, play=Script(b'{"ok":false,"code":"none"}')).find_order("R1") is None


# --- pages ------------------------------------------------------------------------------------------------------------


def paged(words_, request):
    return f"{BASE}\n[verbs.list_offers]\npath = 'goods'\nitems = 'list'\nquery = {request}\npages = {words_}"


def part(*numbers, **more):
    return {"list": [goods(number) for number in numbers]} | more


@pytest.mark.parametrize(
    ("how", "answers", "asked"),
    [
        ('{ type = "page" }', [part(1, 2), part(3), part()], ["1", "2", "3"]),
        ('{ type = "page", first = 0 }', [part(1, 2), part(3), part()], ["0", "1", "2"]),
        ('{ type = "page", first = "{settings.first}" }', [part(1, 2, 3), part()], ["1", "2"]),
        ('{ type = "page", last = "end" }', [part(1, 2, end=False), part(3, end=True)], ["1", "2"]),
        ('{ type = "page", total = "n" }', [part(1, 2, n=3), part(3, n="3")], ["1", "2"]),
        (
            '{ type = "page", last = "end", total = "n" }',
            [part(1, 2, n=3, end=False), part(3, n=3, end=True)],
            ["1", "2"],
        ),
        ('{ type = "page", unique = "id" }', [part(1, 2), part(1, 2), part(2, 3), part()], ["1", "2", "3", "4"]),
        (
            '{ type = "page", first = 0, unique = "id", total = "n" }',
            [part(1, 2, n=3), part(1, 2, n=3), part(3, n=3)],
            ["0", "1", "2"],
        ),
        ('{ type = "offset" }', [part(1, 2), part(3), part()], ["0", "2", "3"]),
        ('{ type = "offset", unique = "id" }', [part(1, 2), part(2, 3), part()], ["0", "2", "4"]),
        ('{ type = "offset", total = "n" }', [part(1, 2, n=3), part(3, n=3)], ["0", "2"]),
        (
            '{ type = "cursor", next = "next" }',
            [part(1, 2, next="x"), part(next=5), part(3, next=None)],
            [None, "x", "5"],
        ),
    ],
)
async def test_pages_end_where_the_listing_ends(made, how, answers, asked):
    name = re.search(r'type = "(\w+)"', how)[1]
    script = Script(*answers)
    adapter = made(paged(how, f'{{ at = "{{{name}}}" }}'), play=script)
    assert await skus(adapter) == ["1", "2", "3"]
    assert [sent.query.get("at") for sent in script.sent] == asked


async def test_links_are_followed_on_the_same_host_alone(made):
    how = paged('{ type = "next_link", next = "next" }', "{ size = 2 }")
    script = Script(part(1, next="https://shop.test/v1/goods?after=x%2Fy"), part(2, next="/goods?after=z"), part(3))
    assert await skus(made(how, play=script)) == ["1", "2", "3"]
    assert [dict(sent.query) for sent in script.sent] == [{"size": "2"}, {"after": "x/y"}, {"after": "z"}]
    script = Script(part(1, next="https://elsewhere.test/v1/goods"))
    with pytest.raises(BadResponse):
        await skus(made(how, play=script))
    assert len(script.sent) == 1


@pytest.mark.parametrize(
    ("how", "answers"),
    [
        ('{ type = "page" }', [part(1), part(2), part(1)]),
        ('{ type = "page", total = "n" }', [part(1, n=5), part(n=5)]),
        ('{ type = "page", total = "n" }', [part(1)]),
        ('{ type = "page", total = "n" }', [part(1, n=-1)]),
        ('{ type = "page", total = "n" }', [part(1, n=True)]),
        ('{ type = "page", last = "end" }', [part(1)]),
        ('{ type = "page", last = "end" }', [part(1, end=False), part(end=False)]),
        ('{ type = "page", last = "end", total = "n" }', [part(1, n=3, end=True)]),
        ('{ type = "page", unique = "id" }', [part(1)]),
        ('{ type = "page", unique = "id" }', [part(1, 2), part(3), part(1, 2)]),
        ('{ type = "page", unique = "other" }', [part(1), part()]),
        ('{ type = "page", unique = "id" }', [part(1), {"list": [goods(1, stock=9)]}, part()]),
        ('{ type = "page", unique = "id", total = "n" }', [part(1, n=2), part(1, n=2), part(n=2)]),
        ('{ type = "offset" }', [part(1, 2)]),
        ('{ type = "cursor", next = "next" }', [part(1, next="a"), part(2, next="b"), part(3, next="a")]),
        ('{ type = "cursor", next = "next" }', [part(1, next=["a"])]),
        ('{ type = "page" }', [{"list": {"a": 1}}]),
        ('{ type = "page" }', [{}]),
    ],
)
async def test_P1_a_listing_that_repeats_breaks_off_or_never_ends_is_refused(made, how, answers):
    name = re.search(r'type = "(\w+)"', how)[1]
    script = Script(*answers)
    with pytest.raises(BadResponse):
        await skus(made(paged(how, f'{{ at = "{{{name}}}" }}'), play=script))
    assert len(script.sent) <= 3


async def test_P1_pages_without_an_end_are_given_up(made, monkeypatch):
    monkeypatch.setattr("syncd.adapter.pages._MOST_PAGES", 50)
    numbers = iter(range(1000))
    script = Script(b"")
    script.__class__ = type("Endless", (Script,), {"__call__": lambda self, sent: Reply(body=js(part(next(numbers))))})
    with pytest.raises(BadResponse, match="more than 50 pages"):
        await skus(made(paged('{ type = "page" }', '{ at = "{page}" }'), play=script))


async def test_negative_control_without_the_memory_a_repeated_page_goes_round(made, monkeypatch):
    monkeypatch.setattr("syncd.adapter.pages._MOST_PAGES", 50)
    numbers = iter(range(999))
    monkeypatch.setattr("syncd.adapter.pages._digest", lambda _: next(numbers))
    script = Script(part(1))
    with pytest.raises(BadResponse, match="more than 50 pages"):
        await skus(made(paged('{ type = "page" }', '{ at = "{page}" }'), play=script))
    assert len(script.sent) == 50


async def test_P1_a_page_says_how_many_offers_there_are_where_that_is_what_is_counted(made):
    how = '{ type = "page", total = "n" }'
    answers = [part(1, 2, n=3), part(3, n=3)]
    assert [page.total for page in await pages(made(paged(how, '{ p = "{page}" }'), play=Script(*answers)))] == [3, 3]
    fewer = paged(how, '{ p = "{page}" }').replace('stock = "stock"', 'stock = "stock"\nonly = { value = true }')
    assert [page.total for page in await pages(made(fewer, play=Script(*answers)))] == [None, None]


async def test_since_is_sent_when_there_is_one(made):
    script = Script(part(1))
    adapter = made(BASE, LIST + 'query = { since = "{since:unix}" }', play=script)
    assert [page.incremental for page in [*await pages(adapter), *await pages(adapter, NOW)]] == [False, True]
    assert [sent.query.get("since") for sent in script.sent] == [None, STAMP]
    assert [page.incremental for page in await pages(made(BASE, LIST, play=Script(part(1))), NOW)] == [False]


# --- values -----------------------------------------------------------------------------------------------------------

PLUS = {"at": "a", "currency": "EUR", "percent": "p", "plus": "f"}


@pytest.mark.parametrize(
    ("model", "how", "data", "expected"),
    [
        ("TextValue", "a.b", {"a": {"b": " x "}}, " x "),
        ("TextValue", "a", {"a": 5}, "5"),
        ("TextValue", "a", {"a": Decimal("1.50")}, "1.50"),
        ("TextValue", "a", {"a": True}, "true"),
        ("TextValue", "a", {}, None),
        ("TextValue", {"at": "a", "none_when": ["", 0]}, {"a": "0"}, None),
        ("TextValue", {"value": "x"}, {}, "x"),
        ("TextValue", {"join": ["a", "b"], "between": ":"}, {"a": 1, "b": "y"}, "1:y"),
        ("TextValue", {"join": ["a", "b"]}, {"a": 1}, None),
        ("TextValue", {"join": ["a", "b"]}, {"a": 1, "b": []}, BadResponse),
        ("TextValue", "a", {"a": ["x"]}, BadResponse),
        ("TextValue", "length(a)", {"a": 3}, BadResponse),
        ("WholeValue", "a", {"a": "12"}, 12),
        ("WholeValue", "a", {"a": Decimal("12.0")}, 12),
        ("WholeValue", "a", {}, None),
        ("WholeValue", {"at": "a", "none_when": [0]}, {"a": "0"}, None),
        ("WholeValue", "a", {"a": "x"}, BadResponse),
        ("WholeValue", "a", {"a": -1}, BadResponse),
        ("WholeValue", "a", {"a": True}, BadResponse),
        ("MoneyValue", {"at": "a", "currency": "CNY"}, {"a": "9.90"}, Money(Decimal("9.90"), "CNY")),
        ("MoneyValue", {"at": "a", "currency": "CNY"}, {"a": Decimal("2.7")}, Money(Decimal("2.7"), "CNY")),
        ("MoneyValue", {"at": "a", "currency_at": "b"}, {"a": 3, "b": "USD"}, Money(Decimal(3), "USD")),
        ("MoneyValue", {"at": "a", "currency": "EUR", "scale": 2}, {"a": 1245}, Money(Decimal("12.45"), "EUR")),
        ("MoneyValue", PLUS, {"a": "5.65", "f": Decimal("0.5"), "p": 2}, Money(Decimal("6.263"), "EUR")),
        ("MoneyValue", PLUS, {"a": "5.65", "f": "0.00", "p": 0}, Money(Decimal("5.65"), "EUR")),
        ("MoneyValue", PLUS | {"scale": 2}, {"a": 500, "f": 50, "p": "10"}, Money(Decimal(6), "EUR")),
        ("MoneyValue", PLUS, {"a": "5.65", "p": 0}, BadResponse),
        ("MoneyValue", PLUS, {"a": "5.65", "f": 0}, BadResponse),
        ("MoneyValue", PLUS, {"a": "5.65", "f": -1, "p": 0}, BadResponse),
        ("MoneyValue", PLUS, {"a": "5.65", "f": 0, "p": "x"}, BadResponse),
        ("MoneyValue", PLUS, {"f": "5.65"}, None),
        ("MoneyValue", {"at": "a", "currency_at": "b"}, {"a": 3}, BadResponse),
        ("MoneyValue", {"at": "a", "currency": "CNY"}, {"a": "1,000"}, BadResponse),
        ("MoneyValue", {"at": "a", "currency": "CNY"}, {"a": True}, BadResponse),
        ("MoneyValue", {"at": "a", "currency": "CNY"}, {}, None),
        ("FlagValue", "a", {"a": True}, True),
        ("FlagValue", {"at": "a", "map": {"1": True, "0": False}}, {"a": 0}, False),
        ("FlagValue", {"at": "a", "map": {"true": False}}, {"a": True}, False),
        ("FlagValue", {"at": "a", "map": {"1": True}, "unmapped": False}, {"a": 9}, False),
        ("FlagValue", {"value": True}, {}, True),
        ("FlagValue", "a", {"a": 1}, BadResponse),
        ("FlagValue", {"at": "a", "map": {"1": True}}, {"a": 9}, BadResponse),
        ("FlagValue", {"at": "a", "map": {"1": True}, "unmapped": False}, {}, BadResponse),
        ("StockValue", "a", {"a": "7"}, Stock.exact(7)),
        ("StockValue", {"at": "a", "unlimited": -1}, {"a": -1}, Stock.unlimited()),
        ("StockValue", {"at": "a", "none_when": ["?"]}, {"a": "?"}, Stock.unknown()),
        ("StockValue", {"kind": "unknown"}, {}, Stock.unknown()),
        ("StockValue", {"kind": "unlimited"}, {}, Stock.unlimited()),
        ("StockValue", {"kind": "coarse", "at": "a", "map": {"警报": "low"}}, {"a": "警报"}, Stock.coarse("low")),
        ("StockValue", {"kind": "coarse", "at": "a", "map": {"x": "unlimited"}}, {"a": "x"}, Stock.unlimited()),
        ("StockValue", {"kind": "coarse", "at": "a", "map": {"x": "unknown"}}, {"a": "x"}, Stock.unknown()),
        ("StockValue", {"kind": "coarse", "at": "a", "none_when": ["-"]}, {"a": "-"}, Stock.unknown()),
        ("StockValue", {"kind": "coarse", "at": "a", "map": {"x": "out"}}, {"a": "y"}, BadResponse),
        ("StockValue", {"kind": "coarse", "at": "a", "map": {"x": "out"}}, {}, BadResponse),
        ("StockValue", "a", {}, BadResponse),
        ("StockValue", "a", {"a": -1}, BadResponse),
        ("StatusValue", {"at": "a", "map": {"3": "completed"}}, {"a": 3}, "completed"),
        ("StatusValue", {"at": "a", "map": {"3": "completed"}}, {"a": 4}, BadResponse),
        ("StatusValue", {"at": "a", "map": {"3": "completed"}, "unmapped": "pending"}, {"a": 4}, "pending"),
        ("StatusValue", {"at": "a", "map": {"3": "completed"}, "unmapped": "pending"}, {}, BadResponse),
        ("StatusValue", {"value": "pending"}, {}, "pending"),
    ],
)
def test_each_kind_of_value(model, how, data, expected):
    value = getattr(values, model).model_validate(how)
    if expected is BadResponse:
        with pytest.raises(BadResponse):
            value.read(data)
    else:
        assert value.read(data) == expected


@pytest.mark.parametrize(
    ("how", "data", "expected"),
    [
        ({"each": "k", "text": "@"}, {"k": ["a\r\n", "007"]}, ["a\r\n", "007"]),
        ({"each": "k", "text": "t", "id": "i", "expires": "e"}, {"k": [{"t": "x", "i": 7, "e": "soon"}]}, ["x"]),
        ({"each": "k", "fields": {"n": "n", "p": "p"}}, {"k": [{"n": "", "p": " 1"}]}, [{"n": "", "p": " 1"}]),
        ({"each": "k", "fields": {"n": "n", "p": "p"}}, {"k": [{"p": "1"}]}, [{"n": "", "p": "1"}]),
        ({"each": "k", "text": "@"}, {}, []),
        ({"each": "k", "text": "@"}, {"k": "a"}, BadResponse),
        ({"each": "k", "text": "@"}, {"k": [""]}, BadResponse),
        ({"each": "k", "text": "t"}, {"k": [{"t": None}]}, BadResponse),
        ({"each": "k", "fields": {"n": "n"}}, {"k": [{"n": None}]}, BadResponse),
    ],
)
def test_K14_keys_come_exactly_as_they_are(how, data, expected):
    keys = values.KeyValues.model_validate(how)
    if expected is BadResponse:
        with pytest.raises(BadResponse):
            list(keys.keys(data))
        return
    found = list(keys.keys(data))
    shown = [key.text.reveal() if key.text else {n: v.reveal() for n, v in key.fields.items()} for key in found]
    assert shown == expected
    if "id" in how:
        assert (found[0].id, found[0].expires) == ("7", "soon")


OFFERS = """
[offer.price]
at = "price"
currency = "CNY"
"""


async def test_an_offer_with_everything(made):
    text = BASE.replace(
        'stock = "stock"',
        'stock = "stock"\nfor_sale = ["on", { at = "state", map = { up = true, down = false } }]\n'
        'min_quantity = "min"\n'
        'max_quantity = "max"\nstep = "step"\nregion = "where"\ngroup = "group"\ndata = { a = "a", b = "b" }\n'
        'only = { at = "kind", map = { card = true }, unmapped = false }',
    )
    one = goods(1, on=True, state="down", min=2, max=9, step=2, where="EU", group="g", a=5, kind="card", price="1.20")
    page = {"list": [one, goods(2, kind="box")]}
    ((only,),) = [page.offers for page in await pages(made(text, OFFERS, LIST, play=Script(page)))]
    assert only == Offer(
        "1",
        "n1",
        Money(Decimal("1.20"), "CNY"),
        Stock.exact(1),
        for_sale=False,
        min_quantity=2,
        max_quantity=9,
        step=2,
        region="EU",
        group="g",
        data={"a": "5"},
    )


@pytest.mark.parametrize("broken", [{"price": None}, {"price": "-1"}, {"name": ""}, {"id": None}, {"stock": None}])
async def test_P1_one_offer_that_does_not_read_refuses_the_listing(made, broken):
    page = {"list": [goods(1, price=1), goods(2, price=1) | broken]}
    with pytest.raises(BadResponse):
        await skus(made(BASE, OFFERS, LIST, play=Script(page)))


@pytest.mark.parametrize("items", [{"a": {"p": 1}, "b": {"p": 2}}, [{"p": 1}, {"p": 2}]])
async def test_one_thing_may_be_several_offers(made, items):
    key = "each.key" if isinstance(items, dict) else "each.p"
    place = "each.value.p" if isinstance(items, dict) else "each.p"
    text = BASE.replace('sku = "id"', f'expand = "kinds"\nsku = {{ join = ["item.id", "{key}"], between = "/" }}')
    text = text.replace('title = "name"', 'title = "item.name"').replace('stock = "stock"', f'stock = "{place}"')
    adapter = made(text, LIST, play=Script({"list": [goods(1, kinds=items), goods(2, kinds={})]}))
    assert len(await skus(adapter)) == 2
    for kinds in ("x", None):
        with pytest.raises(BadResponse):
            await skus(made(text, LIST, play=Script({"list": [goods(1, kinds=items), goods(2, kinds=kinds)]})))


# --- verbs ------------------------------------------------------------------------------------------------------------

OFFER = "\n[verbs.get_offer]\npath = 'goods/{sku}'\nitem = 'it'\n"
JOINED = """
[verbs.get_offer]
path = "goods/{sku.1}"
offer = { sku = { join = ["id", "kind"], between = ":" }, title = "name", stock = "stock" }
"""


async def test_an_offer_is_asked_for_by_a_part_of_its_sku(made):
    script = Script(goods(7, kind="a/b"))
    adapter = made(BASE, JOINED, play=script)
    assert (await adapter.get_offer("7:a/b")).sku == "7:a/b"
    assert script.sent[0].path == "/v1/goods/7"
    for sku in ("7", "7:", ":a", "7:a:b"):
        with pytest.raises(NotForSale):
            await adapter.get_offer(sku)
    assert len(script.sent) == 1


@pytest.mark.parametrize(
    ("it", "error"),
    [(goods(1), None), ([goods(2), goods(1)], None), (goods(2), NotForSale), ([goods(1), goods(1)], BadResponse)]
    + [(broken, BadResponse) for broken in ([], {}, None, "x", [{}])],
)
async def test_one_offer(made, it, error):
    adapter = made(BASE, OFFER, play=Script({"it": it}))
    with contextlib.nullcontext() if error is None else pytest.raises(error):
        assert (await adapter.get_offer("1")).sku == "1"


@pytest.mark.parametrize(
    ("listed", "asked", "limit", "error"),
    [
        ("9", "9", "10", None),
        ("9", "11", "10", PriceChanged),
        ("11", "9", "10", None),
        ("9", None, "10", NotForSale),
        ("11", "-", "10", PriceChanged),
        ("9", "-", "10", None),
        (None, "-", "10", NotForSale),
        ("11", "-", None, None),
    ],
)
async def test_M4_a_limit_that_is_not_sent_is_kept_by_asking_for_the_price(made, listed, asked, limit, error):
    """``asked`` "-": the supplier cannot be asked."""
    first = [] if asked in {"-", None} else [{"it": goods("s", price=asked)}]
    first = first or ([] if asked == "-" else [{"it": goods("s", price=None)}])
    script = Script(*first, {"id": "1", "ref": "R1", "status": "NEW"})
    text = OFFERS if asked is not None else ""
    adapter = made(BASE, text, VERBS, OFFER if asked != "-" else "", play=script)
    offer = Offer("s", "t", Money(Decimal(listed), "CNY") if listed else None, Stock.exact(1))
    order = OrderRequest("R1", offer, 1, Money(Decimal(limit), "CNY") if limit else None)
    with calling(Verb("place_order")), contextlib.nullcontext() if error is None else pytest.raises(error):
        assert (await adapter.place_order(order)).id == "1"
    assert [sent.method for sent in script.sent].count("POST") == (error is None)


async def test_an_order_in_a_list_is_the_one_that_was_asked_for(made):
    both = [{"id": "1", "ref": "R1", "status": "NEW"}, {"id": 2, "ref": "R2", "status": "DONE"}]
    adapter = made(BASE, VERBS, play=Script(both))
    assert (await adapter.get_order("2")).status == "completed"
    assert (await adapter.find_order("R1")).id == "1"
    for broken in (both[:1], [both[1]] * 2, both[0], {}, [], None, [1], {"id": "2"}):
        with pytest.raises(BadResponse):
            await made(BASE, VERBS, play=Script(broken)).get_order("2")
    with pytest.raises(BadResponse):
        await made(BASE, VERBS, play=Script(both[1])).find_order("R1")


@pytest.mark.parametrize(("word", "sure"), [("true", True), ("false", False), ('"{settings.sure}"', False)])
async def test_M1_an_empty_answer_is_a_proof_only_where_the_file_says_so(made, word, sure):
    text = f"{VERBS}\nempty_is_absent = {word}"
    adapter = made(BASE, text, play=Script([]))
    if sure:
        assert await adapter.find_order("R1") is None
    else:
        with pytest.raises(BadResponse, match="no proof"):
            await adapter.find_order("R1")
    if "settings" in word:
        assert await made(BASE, text, play=Script([]), sure=True).find_order("R1") is None


async def test_M1_a_null_can_be_made_the_empty_list_that_is_a_proof(made):
    item = "contains(keys(@), 'data') && (data || `[]`)"
    assert f'``item = "{item}"``' in DOCS
    text = f'{VERBS}\nempty_is_absent = true\nitem = "{item}"'
    assert await made(BASE, text, play=Script({"data": None})).find_order("R1") is None
    found = {"data": [{"id": "1", "ref": "R1", "status": "NEW"}]}
    assert (await made(BASE, text, play=Script(found)).find_order("R1")).id == "1"
    for nothing in ({}, {"data": 7}, {"date": None}):
        with pytest.raises(BadResponse):
            await made(BASE, text, play=Script(nothing)).find_order("R1")


async def test_an_order_whose_answer_lacks_our_reference_says_what_to_do(made):
    answer = {"id": "1", "status": "NEW"}
    order = OrderRequest("R1", Offer("s", "t", None, Stock.exact(1)), 1)
    with calling(Verb("place_order")), pytest.raises(BadResponse, match="no reference where") as raised:
        await made(BASE, VERBS, play=Script(answer)).place_order(order)
    assert raised.value.hint == "if the supplier does not send it here, give this verb an `order` without reference"


async def test_a_failure_says_what_to_do_in_the_files_words_or_in_ours(made):
    for more, hint in (("", "another offer may have it"), ('hint = "ask at the counter"', "ask at the counter")):
        text = f"[[errors]]\nstatus = 409\nraise = 'OutOfStock'\n{more}"
        with pytest.raises(sdk.OutOfStock) as raised:
            await made(BASE, text, CHECK, play=Script(Reply(409))).check()
        assert raised.value.hint == hint


@pytest.mark.parametrize("wrong", ["code == 0", "a.b >= -5", "ok == true", "list[?on==false]"])
def test_a_bare_literal_in_a_path_says_how_it_is_written(wrong):
    with pytest.raises(ValueError, match="stand in backticks: code == `0`"):
        sdk.select(wrong)
    assert sdk.select("code == '0' || ok == `true` || id != null")({"code": "0"}) is True


@pytest.mark.parametrize("answer", [{}, [], None, {"list": None}, {"list": {}}, {"list": [{"id": "1", "ref": "R2"}]}])
async def test_M1_only_an_empty_list_in_its_place_is_a_proof(made, answer):
    text = f"{VERBS}\nempty_is_absent = true\nitem = 'list'"
    with pytest.raises(BadResponse):
        await made(BASE, text, play=Script(answer)).find_order("R1")
    assert await made(BASE, text, play=Script({"list": []})).find_order("R1") is None


@pytest.mark.parametrize(("status", "keys"), [("NEW", 0), ("PART", 1), ("DONE", 1), ("GONE", 0)])
async def test_the_status_comes_before_the_keys(made, status, keys):
    text = (
        BASE
        + 'charged = { at = "sum", currency = "USD" }\nquantity = "n"\nnote = "hint"\nkeys = { each = "k", text = "@" }'
    )
    answer = {"id": "1", "ref": "R1", "status": status, "k": ["007"], "sum": "2.50", "n": 1, "hint": "soon"}
    found = await made(text, VERBS, play=Script(answer)).get_order("1")
    assert (len(found.keys), found.charged, found.quantity, found.note) == (
        keys,
        Money(Decimal("2.50"), "USD"),
        1,
        "soon",
    )


async def test_keys_by_a_call_of_their_own(made):
    text = (
        "[verbs.fetch_keys]\npath = 'orders/{order.id}/keys'\nquery = { page = '{page}', ref = '{order.reference}' }\n"
        "items = 'k'\npages = { type = 'page', total = 'n' }\n"
        "keys = [{ each = \"[?kind=='text']\", text = 't' }, { each = \"[?kind=='card']\", fields = { n = 't' } }]"
    )
    script = Script(
        {"n": 3, "k": [{"kind": "text", "t": "A"}, {"kind": "card", "t": "007"}]},
        {"n": 3, "k": [{"kind": "text", "t": "B"}]},
    )
    adapter = made(BASE, VERBS, text, play=script)
    found = await adapter.fetch_keys(Order("1", "partial", reference="R1"))
    assert [key.text.reveal() if key.text else key.fields["n"].reveal() for key in found] == ["A", "007", "B"]
    assert [dict(sent.query) for sent in script.sent] == [{"page": "1", "ref": "R1"}, {"page": "2", "ref": "R1"}]
    assert list(await adapter.fetch_keys(Order("1", "refunded"))) == []
    assert len(script.sent) == 2


async def test_a_balance_and_a_claim(made):
    text = (
        "[verbs.get_balance]\npath = 'me'\nbalance = { at = 'b', currency = 'EUR' }\n"
        "[verbs.check]\npath = 'me'\naccount = 'who'\nbalance = { at = 'b', currency = 'EUR' }\n"
        "[verbs.complain]\nmethod = 'POST'\npath = 'claims'\nform = { o = '{order.id}', t = '{text}' }\nid = 'claim'"
    )
    adapter = made(BASE, text, play=Script({"b": "12.45", "who": "us", "claim": 7}))
    assert await adapter.get_balance() == (await adapter.check()).balance == Money(Decimal("12.45"), "EUR")
    assert await adapter.complain("1", "bad") == "7"
    with pytest.raises(BadResponse):
        await made(BASE, text, play=Script({})).get_balance()


# --- webhooks ---------------------------------------------------------------------------------------------------------

HOOK = """
[[webhooks]]
event = "test"
when = "ping == `1`"
secret = "{settings.key}"
text = "{body}"
signature = "{header.x-sign}"
reply = "pong"

[[webhooks]]
event = "order"
secret = "{settings.key}"
text = "{method}{path}{header.x-time}{body}{settings.user}"
signature = "{header.x-sign}"
time = "{header.x-time}"
within = 60
order_id = "order.id"
"""


def hook(body, text=None, at="2026-03-01T12:30:00Z", sign=None):
    signed = f"POST/h{at}{body}us" if text is None else text
    sign = hmac_sha256_hex(SecretText("sesame-1"), signed) if sign is None else sign
    return Webhook("POST", "/h", {"x-sign": sign, "x-time": at}, {}, body.encode(), NOW)


def test_W1_a_signature_in_a_header_over_the_body(made):
    adapter = made(BASE, HOOK, LIST)
    body = '{"order":{"id":5}}'
    for at in ("2026-03-01T12:30:00Z", "2026-03-01 20:30:30", STAMP, f"{STAMP}000"):
        assert adapter.parse_webhook(hook(body, at=at)) == Hint("order", order_id="5")
    assert adapter.parse_webhook(hook('{"ping":1}', '{"ping":1}')) == Hint("test", answer=b"pong")
    upper = hook(body)
    upper = Webhook("POST", "/h", {**upper.headers, "x-sign": upper.headers["x-sign"].upper()}, {}, upper.body, NOW)
    assert adapter.parse_webhook(upper).order_id == "5"
    for forged in (
        hook(body, sign="0" * 64),
        hook(body, sign=""),
        hook(body, at="2026-03-01T12:28:59Z"),
        hook(body, at="noon"),
        hook(body, at="9" * 40),
        Webhook("POST", "/h", {}, {}, body.encode(), NOW),
        Webhook("POST", "/other", hook(body).headers, {}, body.encode(), NOW),
        hook('{"order":{"id":6}}', f"POST/h2026-03-01T12:30:00Z{body}us"),
    ):
        with pytest.raises(Forged):
            adapter.parse_webhook(forged)
    with pytest.raises(BadResponse):
        adapter.parse_webhook(hook('{"order":{}}'))


def test_W1_of_several_secrets_one_has_to_fit(made):
    text = BASE.replace("[settings]", '[settings]\nkeys = { type = "secrets" }')
    hooks = HOOK.replace("{settings.key}", "{settings.keys}")
    old, new, body = SecretText("sesame-0"), SecretText("sesame-1"), '{"order":{"id":5}}'
    assert made(text, hooks, LIST, keys=[old, new]).parse_webhook(hook(body)).order_id == "5"
    with pytest.raises(Forged):
        made(text, hooks, LIST, keys=[old]).parse_webhook(hook(body))
    with pytest.raises(ValidationError):
        made(text, hooks, LIST, keys=[])


def test_W1_negative_control_with_the_check_gone_a_forgery_passes(made, monkeypatch):
    monkeypatch.setattr("syncd.adapter.verify", lambda *_, **__: None)
    assert made(BASE, HOOK, LIST).parse_webhook(hook('{"order":{"id":5}}', sign="0" * 64)).order_id == "5"


def test_W1_sorted_fields_of_a_query_or_a_form(made):
    text = (
        '[[webhooks]]\nevent = "offer"\nhash = "md5"\nsecret = "{settings.key}"\ntext = "{fields}&key={secret}"\n'
        'without = ["sign"]\nsignature = "{field.sign}"\nsku = "sku"'
    )
    adapter = made(BASE, text, LIST)
    sign = md5_hex("n=1&sku=ü&key=sesame-1")
    query = {"sku": "ü", "n": "1", "e": "", "sign": sign}
    assert adapter.parse_webhook(Webhook("GET", "/h", {}, query, b"", NOW)).sku == "ü"
    body = f"n=1&e=&sku=%C3%BC&sign={sign}".encode()
    assert adapter.parse_webhook(Webhook("POST", "/h", {}, {}, body, NOW)).sku == "ü"
    body = js({"n": 1, "e": None, "sku": "ü", "sign": sign})
    assert adapter.parse_webhook(Webhook("POST", "/h", {}, {}, body, NOW)).sku == "ü"
    body = js({"n": [1], "sku": "ü", "sign": sign})
    with pytest.raises(Forged):
        adapter.parse_webhook(Webhook("POST", "/h", {}, {}, body, NOW))


def test_W1_json_is_signed_with_its_numbers_as_they_came(made):
    text = (
        '[[webhooks]]\nevent = "offer"\nhash = "sha1"\nsecret = "{settings.key}"\n'
        'text = ["{json:slashes}{secret}", "{json:escaped}{secret}"]\n'
        'without = ["sign"]\nsignature = "{field.sign}"\nsku = "sku"'
    )
    adapter = made(BASE, text, LIST)
    for signed in ('{"n":1.50,"o":{"b":1},"sku":"a\\/ü"}', '{"n":1.50,"o":{"b":1},"sku":"a\\/\\u00fc"}'):
        sign = sha1_hex(f"{signed}sesame-1")
        body = f'{{"sku":"a/ü","sign":"{sign}","o":{{"b": 1}},"n":1.50}}'.encode()
        assert adapter.parse_webhook(Webhook("POST", "/h", {}, {}, body, NOW)).sku == "a/ü"


# --- a whole supplier -------------------------------------------------------------------------------------------------


def example():
    (text,) = [block for block in re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL) if block.startswith("title =")]
    return text


async def test_the_documents_example_is_short_and_works(kind):
    text = example()
    assert len(text.splitlines()) < 60
    answers = {
        ("GET", "/v1/catalogs"): {
            "count": 1,
            "results": [
                {
                    "sku": "G-50",
                    "title": "Game 50",
                    "price": "41.30",
                    "currency": {"code": "USD"},
                    "level": "low",
                    "active": True,
                }
            ],
        },
        ("POST", "/v1/orders"): {
            "order_id": 5,
            "reference_code": "R1",
            "status": 1,
            "total": "41.30",
            "currency": {"code": "USD"},
        },
        ("GET", "/v1/orders"): {"results": []},
        ("GET", "/v1/orders/5"): {
            "order_id": 5,
            "reference_code": "R1",
            "status": 2,
            "total": 41.3,
            "currency": {"code": "USD"},
        },
        ("GET", "/v1/orders/5/cards"): {
            "results": [{"card_number": "0001", "pin_code": "42", "expire_date": "2027-01"}]
        },
        ("GET", "/v1/balance"): {"available": "99.00", "currency": {"code": "USD"}},
    }
    cls = kind(text)
    settings = cls.Settings(url="https://gift.test", token=SecretText("tok-1"))
    client = Client("gift", Limits(), play=lambda sent: Reply(body=js(answers[sent.method, sent.path])))
    adapter = cls(Context("gift", settings, CNY, client))
    (offer,) = [offer for page in await pages(adapter) for offer in page.offers]
    assert (offer.sku, offer.stock, offer.price) == ("G-50", Stock.coarse("low"), Money(Decimal("41.30"), "USD"))
    placed = await adapter.place_order(OrderRequest("R1", offer, 1, Money(Decimal(42), "USD")))
    assert placed.status == "pending"
    found = await adapter.get_order(placed.id)
    (key,) = await adapter.fetch_keys(found)
    assert (key.fields["card_number"].reveal(), key.expires) == ("0001", "2027-01")
    assert await adapter.find_order("R1") is None
    assert await adapter.get_balance() == Money(Decimal("99.00"), "USD")


# --- docs/declarative.md ----------------------------------------------------------------------------------------------

SECTIONS = {
    "The file": [words.Definition],
    "settings": [words.Setting],
    "promises": [words.PromiseWords],
    "auth": [words.Authenticating],
    "answer": [words.AnswerWords],
    "errors": [words.Failure],
    "offer": [words.OfferWords],
    "order": [words.OrderWords],
    "Texts": [values.TextValue],
    "Whole numbers": [values.WholeValue],
    "Amounts": [values.MoneyValue],
    "Yes or no": [values.FlagValue],
    "Stock": [values.StockValue],
    "Status": [values.StatusValue],
    "Keys": [values.KeyValues],
    "verbs": [words.Call],
    "pages": [words.Pages],
    "webhooks": [words.Hook],
}


def section(title):
    (found,) = re.findall(rf"^#+ (?:`\[*)?{re.escape(title)}\b.*?\n(.*?)(?=^#|\Z)", DOCS, re.MULTILINE | re.DOTALL)
    return found


def rows(text):
    """word → example, of the tables of a section."""
    return dict(re.findall(r"^\| `([\w.]+)` \|(?: `(.*?)`)? *\|", text, re.MULTILINE))


def names(model):
    return {field.alias or name for name, field in model.model_fields.items()}


@pytest.mark.parametrize("title", SECTIONS)
def test_every_word_is_documented_with_an_example_and_no_other(title):
    (model,) = SECTIONS[title]
    inherited = {"at", "none_when"} if issubclass(model, values.Value) else set()
    found = rows(section(title))
    assert set(found) == names(model) - inherited
    for word, example in found.items():
        assert example, word
        assert list(tomllib.loads(example)) == [word], example
    if inherited:
        assert inherited == set(rows(section("Values")))


def test_the_words_that_single_verbs_have_are_documented():
    described = re.findall(r"^\| `(\w+)` \| (.*?) \| ?(.*?) ?\|$", section("What each verb reads"), re.MULTILINE)
    assert {verb for verb, *_ in described} == set(words.CALLS)
    for verb, own, known in described:
        model = words.CALLS[verb]
        assert set(re.findall(r"`(\w+)`", own)) == names(model) - names(words.Call), verb
        placeholders = {re.sub(r"\.\d$", ".*", name) for name in re.findall(r"`\{([\w.]+)\}`", known)}
        assert placeholders == set(model.knows), verb


def test_every_form_and_every_outcome_is_documented():
    forms = section("Filling in")
    assert {form for some in (*_FORMS.values(), _OTHERS) for form in some} <= set(re.findall(r":(\w+)\}`", forms))
    assert {*rows(section("What an answer may mean"))} == set(words.Failure.model_fields["raise_"].annotation.__args__)


def blocks():
    return [block for block in re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL) if not block.startswith("title =")]


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.split("\n")[0])
def test_every_fragment_of_the_document_loads(kind, block):
    document = tomllib.loads(BASE + VERBS + LIST)
    _into(document, tomllib.loads(block, parse_float=Decimal))
    assert kind(_toml(document))


def test_negative_control_a_word_that_is_not_documented_is_missed(monkeypatch):
    class More(words.OfferWords):
        more: str = ""

    monkeypatch.setitem(SECTIONS, "offer", [More])
    with pytest.raises(AssertionError):
        test_every_word_is_documented_with_an_example_and_no_other("offer")
