"""The client keeps a supplier's limits, repeats what only reads, never what buys, and maps what goes wrong exactly."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import logging
import socket
import threading
import time
import traceback
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import format_datetime

import httpx
import pytest
import respx

from syncd.adapter import (
    AdapterError,
    ApiKey,
    Auth,
    BadResponse,
    Basic,
    Config,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    SecretText,
    Transient,
)
from syncd.model import Clock
from syncd.suppliers import client as client_module
from syncd.suppliers.client import Answer, Call, Client, Cut, Limits, Reply, calling

CANARY = "canary-credential/0042"
BASE = "https://shop.example/api/v1"


class At(Clock):
    def __init__(self, at: datetime) -> None:
        self.at = at.timestamp()

    def now(self) -> float:
        return self.at


@asynccontextmanager
async def connected(base=BASE, *, limits=None, auth=None, headers=None, **more):
    client = Client("s", limits, jitter=lambda: 0.0, **more)
    try:
        yield client(base, auth=auth, headers=headers)
    finally:
        await client.aclose()


async def asked(http, method="GET", path="/x", *, verb="get_balance", call=None, **more):
    """One request within a verb: the answer, or the error."""
    call = call or Call(verb)
    with calling(call):
        try:
            return await http.request(method, path, **more)
        except AdapterError as error:
            return error


# --- what is sent -----------------------------------------------------------------------------------------------------


async def test_what_leaves_is_what_was_asked_for():
    sent = []

    def play(request):
        sent.append(request)
        return Reply(body=b"[]")

    async with connected(play=play, headers={"X-One": "1"}) as http:
        await asked(http, path="/a/b", query={"q": "x y", "n": 2})
        await asked(http, "POST", "c", json={"z": "/ü", "a": Decimal("9.90"), "n": [1, None]}, verb="place_order")
        await asked(http, "POST", "d", form={"b": "2 &", "a": "卡"}, verb="place_order", reads=True)
        await asked(http, "POST", "e", content=b"<x/>", headers={"Content-Type": "text/xml"}, verb="get_order")
    one, two, three, four = sent
    assert (one.method, one.path, one.query, one.body) == ("GET", "/api/v1/a/b", {"q": "x y", "n": "2"}, b"")
    assert (one.verb, one.reads, one.headers["x-one"]) == ("get_balance", True, "1")
    assert two.body == '{"z":"/ü","a":9.90,"n":[1,null]}'.encode()  # as it is, in its order, compact
    assert (two.headers["content-type"], two.verb, two.reads) == ("application/json", "place_order", False)
    assert three.body == b"b=2+%26&a=%E5%8D%A1"
    assert (three.headers["content-type"], three.reads) == ("application/x-www-form-urlencoded", True)
    assert (four.body, four.headers["content-type"], four.url) == (b"<x/>", "text/xml", f"{BASE}/e")
    assert one.headers["user-agent"].startswith("syncd/")


@pytest.mark.parametrize("path", ["https://evil.example/x", "//evil.example/x", "http://shop.example/x", "ftp://x"])
async def test_a_link_to_another_host_is_not_followed(path):
    async with connected(play=lambda _sent: Reply()) as http:
        assert isinstance(await asked(http, path=path), BadResponse)


@pytest.mark.parametrize("path", ["../admin", "/orders/../../admin", "/orders/%2e%2e/x"])
async def test_an_id_cannot_climb_out_of_its_path(path):
    async with connected(play=lambda _sent: Reply()) as http:
        assert isinstance(await asked(http, path=path), BadResponse)


async def test_a_link_within_the_same_host_is_followed():
    sent = []
    async with connected(play=lambda request: sent.append(request) or Reply()) as http:
        await asked(http, path="https://shop.example/other?page=2")
    assert (sent[0].path, sent[0].query) == ("/other", {"page": "2"})


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("shop.example", "is not one"),
        ("ftp://shop.example", "is not one"),
        ("https://", "is not one"),
        ("https://shop.example/?key=CANARY", "is not one"),
        ("https://user:CANARY@shop.example", "a credential stands in"),
        ("http://shop.example", "would send credentials in clear"),
    ],
)
def test_a_base_url_that_must_not_be_used_is_a_matter_of_configuration(base, said):
    with pytest.raises(Config, match=said) as refused:
        Client("s")(base)
    assert "CANARY" not in str(refused.value)


def test_plain_http_is_for_this_machine_or_for_those_who_ask_for_it():
    assert Client("s")("http://127.0.0.1:1")
    assert Client("s")("http://localhost:1")
    assert Client("s", Limits(allow_http=True))("http://shop.example")


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "in_an_order"),
    [
        (401, Auth, Auth),
        (403, Auth, Auth),
        (429, RateLimited, RateLimited),
        (408, Transient, OutcomeUnknown),
        (500, Transient, OutcomeUnknown),
        (503, Transient, OutcomeUnknown),
        (301, BadResponse, OutcomeUnknown),
        (302, BadResponse, OutcomeUnknown),
        (400, BadResponse, OutcomeUnknown),
        (404, BadResponse, OutcomeUnknown),
        (409, BadResponse, OutcomeUnknown),
    ],
)
async def test_P2_a_status_is_an_error_by_what_happens_next(status, kind, in_an_order):
    sent = []

    def play(request):
        sent.append(request)
        return Reply(status, {"location": "https://evil.example/"}, b"CANARY")

    async with connected(play=play) as http:
        found = await asked(http, query={"token": "CANARY"})
        assert isinstance(found, kind)
        assert str(found).startswith(f"GET /api/v1/x: {status}")
        assert "CANARY" not in repr(found) + str(found)
        assert isinstance(await asked(http, expect={status}), Answer)
        sent.clear()
        call = Call("place_order")
        found = await asked(http, "POST", json={"n": 1}, call=call)
        assert isinstance(found, in_an_order)
        assert call.left == (in_an_order is OutcomeUnknown)
        assert len(sent) == 1


@pytest.mark.parametrize("page", [b"<html><body>blocked", b"\n <!DOCTYPE html>\n<title>Just a moment</title>"])
async def test_M1_a_page_with_403_is_no_refusal_of_our_credentials(page):
    async with connected(play=lambda _: Reply(403, {}, page)) as http:
        assert type(await asked(http)) is Transient
        call = Call("place_order")
        assert type(await asked(http, "POST", json={"n": 1}, call=call)) is OutcomeUnknown
    async with connected(play=lambda _: Reply(403, {}, b'{"message": "<html>"}')) as http:
        assert type(await asked(http)) is Auth


@pytest.mark.parametrize("how", ["dns", "refused", "connect_timeout", "tls", "pool"])
async def test_M1_what_never_left_is_not_sent(how):
    sent = []

    def play(request):
        sent.append(request)
        raise Cut(how)

    async with connected(play=play) as http:
        assert type(await asked(http)) is NotSent
        assert len(sent) == 4  # it reads: tried again
        sent.clear()
        call = Call("place_order")
        assert type(await asked(http, "POST", call=call)) is NotSent
        assert (len(sent), call.left) == (1, False)


@pytest.mark.parametrize("how", ["timeout", "reset", "truncated"])
async def test_M1_what_left_without_an_answer_is_unknown_and_is_sent_once(how):
    sent = []

    def play(request):
        sent.append(request)
        raise Cut(how)

    async with connected(play=play) as http:
        assert type(await asked(http)) is Transient
        assert len(sent) == 4
        sent.clear()
        call = Call("place_order")
        assert type(await asked(http, "POST", call=call)) is OutcomeUnknown
        assert (len(sent), call.left) == (1, True)
        # An adapter that tries again all the same: nothing more leaves.
        assert type(await asked(http, "POST", call=call)) is OutcomeUnknown
        assert len(sent) == 1
        sent.clear()
        for verb in ("get_order", "find_order", "fetch_keys", "return_keys", "complain"):
            assert type(await asked(http, verb=verb)) is Transient
        assert len(sent) == 5  # no buying verb is ever repeated


async def test_M1_after_an_order_whatever_fails_leaves_it_unknown():
    """A purchase that went through, then a look at it that is refused: that refusal is not the purchase's."""
    for status in (401, 404, 429, 500):
        async with connected(play=lambda sent, status=status: Reply(200 if sent.method == "POST" else status)) as http:
            call = Call("place_order")
            assert isinstance(await asked(http, "POST", call=call), Answer)
            assert type(await asked(http, call=call)) is OutcomeUnknown


async def test_M1_a_question_before_the_order_buys_nothing():
    async with connected(play=lambda _sent: Reply(500)) as http:
        for more in ({}, {"reads": True, "method": "POST"}):
            call = Call("place_order")
            assert type(await asked(http, call=call, **more)) is Transient
            assert not call.left


async def test_M1_certificates_that_are_gone_have_bought_nothing(tmp_path):
    client = Client("s", Limits(ca_file=tmp_path / "gone.pem"))
    call = Call("place_order")
    with pytest.raises(Config, match="no certificates"), calling(call):
        await client("https://127.0.0.1:1").request("POST", "/orders")
    assert not call.left


async def test_a_json_answer_is_read_exactly():
    body = b'\xef\xbb\xbf{"a": 2.70, "b": 12345678901234567890123, "c": "\\u5361", "d": {"l": [{"n": 1.10}, 2]}}'
    async with connected(play=lambda _sent: Reply(200, {"X-Seen": "1"}, body)) as http:
        answer = await asked(http)
    assert (answer.status, answer.headers["x-seen"], answer.content) == (200, "1", body)
    found = answer.object()
    assert (str(found["a"]), found["b"], found["c"]) == ("2.70", 12345678901234567890123, "卡")
    assert list(answer.items("d", "l")) == [{"n": Decimal("1.10")}, 2]
    for path in ((), ("a",), ("d",), ("d", "x"), ("x", "l"), ("d", "l", "n")):
        with pytest.raises(BadResponse, match="there is no list at"):
            answer.items(*path)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>CANARY</html>", "HTML instead of JSON"),
        (b"\n <!DOCTYPE html>", "HTML instead of JSON"),
        (b"", "nothing instead of JSON"),
        (b"CANARY", "text instead of JSON"),
        (b'{"key": "CANARY', "cut off or broken"),
        (b'{"a": NaN}', "cut off or broken"),
        (b'{"a": 1}x', "cut off or broken"),
        (b'["\xff"]', "cut off or broken"),
        (b"[" * 100_000, "cut off or broken"),
        (b'{"a": 1e9999999}', "larger or smaller than anything"),
        (b'[0.0e-9999999, "CANARY"]', "larger or smaller than anything"),
    ],
)
async def test_P1_what_is_not_json_is_said_without_a_byte_of_it(body, said):
    async with connected(play=lambda _sent: Reply(body=body)) as http:
        answer = await asked(http)
    for read in (answer.json, answer.object, lambda: list(answer.items()), lambda: list(answer.items("a"))):
        with pytest.raises(BadResponse) as refused:
            read()
        assert said in str(refused.value) or "there is no list at" in str(refused.value)
        assert "CANARY" not in "".join(traceback.format_exception(refused.value))
        assert refused.value.__context__ is None
    with pytest.raises(BadResponse, match=said):
        answer.json()
    assert "CANARY" not in repr(answer)


@pytest.mark.parametrize(("body", "kind"), [(b"[]", "list"), (b"null", "null"), (b"2.5", "number"), (b'"x"', "text")])
async def test_an_answer_that_is_no_object_is_refused(body, kind):
    async with connected(play=lambda _sent: Reply(body=body)) as http:
        with pytest.raises(BadResponse, match=f"a JSON {kind} instead of an object"):
            (await asked(http)).object()


def test_a_huge_listing_is_read_piece_by_piece_and_lets_others_run(capsys):
    """100,000 elements: bounded memory, and no thread waits long for the interpreter."""
    body = json.dumps({"data": {"list": [{"id": n, "name": f"offer {n}", "price": 1.25} for n in range(100_000)]}})
    answer = Answer(200, {}, body.encode(), "GET /x")
    gaps, stop = [], threading.Event()

    def watch():
        last = time.perf_counter()
        while not stop.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    count = sum(1 for item in answer.items("data", "list") if item["price"] == Decimal("1.25"))
    seconds = time.perf_counter() - started
    stop.set()
    watcher.join()
    assert count == 100_000
    with capsys.disabled():
        print(f"\n100,000 elements, {len(body) >> 20} MiB: {seconds:.2f} s, longest gap {max(gaps) * 1000:.0f} ms")
    assert max(gaps) < 0.25  # 50 ms on a quiet machine; tests share theirs


# --- real connections -------------------------------------------------------------------------------------------------


@pytest.fixture
def ok():
    def say(body=b"{}", status="200 OK", *headers):
        return ("\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""])).encode() + body

    return say


async def test_reading_keeps_its_connection_and_buying_never_takes_a_used_one(raw, ok):
    supplier = raw(lambda _seen: ok())
    async with connected(supplier.url) as http:
        for _ in range(3):
            assert isinstance(await asked(http), Answer)
        assert supplier.connections == 1
        for verb in ("place_order", "get_order", "place_order"):
            assert isinstance(await asked(http, "POST", verb=verb), Answer)
        assert supplier.connections == 4
    assert [seen.connection for seen in supplier.seen] == [1, 1, 1, 2, 3, 4]
    assert supplier.seen[-1].headers["connection"] == "close"


async def test_a_connection_that_is_refused_is_not_sent(raw):
    supplier = raw()
    supplier.close()
    async with connected(supplier.url) as http:
        found = await asked(http, "POST", verb="place_order")
    assert type(found) is NotSent
    assert "the connection is refused" in str(found)


async def test_a_name_that_is_not_known_is_not_sent(monkeypatch):
    def gone(*args, **more):
        raise socket.gaierror(-2, "Name or service not known")

    async with connected("https://no-such-host.invalid") as http:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", gone)
        found = await asked(http, "POST", verb="place_order")
    assert type(found) is NotSent
    assert "DNS" in str(found)


@pytest.mark.parametrize("reset", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", b"garbage\r\n\r\n"])
async def test_P2_a_purchase_without_a_whole_answer_is_sent_exactly_once(raw, reset):
    supplier = raw(lambda _seen: [reset, b""], keep=False)
    async with connected(supplier.url) as http:
        call = Call("place_order")
        assert type(await asked(http, "POST", json={"n": 1}, call=call)) is OutcomeUnknown
        assert (len(supplier.seen), call.left) == (1, True)
        assert type(await asked(http)) is Transient
        assert len(supplier.seen) == 5


async def test_negative_control_a_client_that_repeats_purchases_is_seen(raw, monkeypatch):
    monkeypatch.setattr(client_module, "READING", frozenset({"place_order"}))
    supplier = raw(lambda _seen: [b""], keep=False)
    async with connected(supplier.url) as http:
        call = Call("place_order")
        await asked(http, "POST", call=call)
    # Refused even so by what a call remembers: the second line of defence.
    assert len(supplier.seen) == 1
    monkeypatch.setattr(client_module.Client, "_once", client_module.Client._try)
    supplier.seen.clear()
    async with connected(supplier.url) as http:
        await asked(http, "POST", verb="place_order")
    assert len(supplier.seen) == 4


async def test_a_stale_connection_costs_a_read_one_repetition_and_a_purchase_nothing(raw, ok):
    """The supplier closes after each answer, as a keep-alive time-out would in the worst moment."""
    supplier = raw(lambda _seen: [ok(), b""])
    async with connected(supplier.url) as http:
        for _ in range(3):
            assert isinstance(await asked(http), Answer)
            assert isinstance(await asked(http, "POST", verb="place_order"), Answer)


async def test_a_slow_trickle_ends_at_the_total_time(raw):
    def trickle(_seen):
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        for _ in range(1000):
            time.sleep(0.05)
            yield b"x"

    supplier = raw(trickle)
    async with connected(supplier.url, limits=Limits(total_timeout=0.4)) as http:
        started = time.monotonic()
        assert type(await asked(http, "POST", verb="place_order")) is OutcomeUnknown
        assert time.monotonic() - started < 1.5
        call = Call("get_balance", deadline=asyncio.get_running_loop().time() + 0.5)
        assert type(await asked(http, call=call)) is Transient
        assert time.monotonic() - started < 3


async def test_silence_ends_at_the_read_time(raw):
    supplier = raw(lambda _seen: time.sleep(2) or [b""])
    async with connected(supplier.url, limits=Limits(read_timeout=0.2)) as http:
        started = time.monotonic()
        assert type(await asked(http, "POST", verb="place_order")) is OutcomeUnknown
        assert time.monotonic() - started < 1


async def test_M1_a_time_out_while_connecting_is_not_sent(raw, monkeypatch):
    """The trail, not the kind of the exception, says whether anything left."""
    supplier = raw()

    async def slow(*args, **more):
        await asyncio.sleep(10)

    monkeypatch.setattr("anyio.connect_tcp", slow)
    async with connected(supplier.url, limits=Limits(total_timeout=0.2)) as http:
        call = Call("place_order")
        assert type(await asked(http, "POST", call=call)) is NotSent
        assert not call.left


async def test_M1_a_purchase_that_is_cancelled_half_way_has_left(raw):
    supplier = raw(lambda _seen: time.sleep(1) or [b""])
    async with connected(supplier.url) as http:
        call = Call("place_order")
        task = asyncio.create_task(asked(http, "POST", call=call))
        await asyncio.to_thread(supplier.came.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert call.left


@pytest.mark.parametrize("packed", [False, True])
async def test_P1_an_answer_beyond_the_limit_is_cut_off_and_not_held(raw, packed):
    size = 64 << 20

    def much(_seen):
        if packed:  # a bomb: 64 MiB of zeroes in 64 KiB
            body = gzip.compress(bytes(size), 9)
            yield f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            yield body
            return
        yield f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
        for _ in range(size >> 16):
            yield bytes(1 << 16)

    supplier = raw(much)
    async with connected(supplier.url, limits=Limits(max_answer=1 << 20)) as http:
        found = await asked(http)
    assert type(found) is BadResponse
    assert "more than 1048576 bytes" in str(found)


async def test_packed_answers_are_unpacked_and_broken_ones_refused():
    body = b'{"a": "' + b"x" * 5000 + b'"}'
    packed = gzip.compress(body)
    for content, headers, right in (
        (packed, {"content-encoding": "gzip"}, True),
        (packed[:-9], {"content-encoding": "gzip"}, False),
        (packed + packed, {"content-encoding": "gzip"}, False),
        (b"plain", {"content-encoding": "gzip"}, False),
        (body, {"content-encoding": "br"}, False),
        (body, {"content-encoding": "identity"}, True),
    ):
        async with connected(play=lambda _sent, c=content, h=headers: Reply(200, h, c)) as http:
            found = await asked(http)
        assert isinstance(found, Answer if right else BadResponse)
        assert not right or found.content == body
    async with connected(play=lambda _sent: Reply(204, {"content-encoding": "gzip"})) as http:
        assert (await asked(http)).content == b""


async def test_redirects_are_refused_and_nothing_is_sent_on(raw, ok):
    other = raw()
    supplier = raw(lambda _seen: ok(b"", "302 Found", f"Location: {other.url}/"))
    async with connected(supplier.url, auth=ApiKey(SecretText(CANARY))) as http:
        found = await asked(http)
    assert type(found) is BadResponse
    assert "redirect" in str(found)
    assert other.seen == []


async def test_tls_is_always_verified_and_a_supplier_may_have_its_own_authority(raw, authority, ok):
    ca_file, context = authority
    supplier = raw(lambda _seen: ok(), context=context)
    async with connected(supplier.url) as http:
        found = await asked(http, "POST", verb="place_order")
        assert type(found) is NotSent
        assert "certificate is not trusted" in str(found)
    async with connected(supplier.url, limits=Limits(ca_file=ca_file)) as http:
        assert isinstance(await asked(http, "POST", verb="place_order"), Answer)
    async with connected(supplier.url.replace("127.0.0.1", "localhost"), limits=Limits(ca_file=ca_file)) as http:
        assert type(await asked(http)) is NotSent  # the certificate is another host's
    assert len(supplier.seen) == 1


def test_a_file_without_certificates_is_a_matter_of_configuration(tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "none.pem"):
        with pytest.raises(Config, match="holds no certificates"):
            client_module.trusted(tmp_path / name)


# --- limits, repetitions ----------------------------------------------------------------------------------------------


async def test_P2_all_clients_of_a_supplier_share_its_limits(raw, ok):
    def slow(_seen):
        time.sleep(0.05)
        return ok()

    supplier = raw(slow)
    client = Client("s", Limits(concurrency=2))
    one, two = client(supplier.url), client(f"{supplier.url}/other")
    await asyncio.gather(*(asked(http) for http in (one, two) for _ in range(5)))
    await client.aclose()
    assert supplier.most_open == 2


async def test_P2_the_rate_is_kept_evenly():
    times = []
    async with connected(
        limits=Limits(rate=(20, 1.0)), play=lambda _sent: times.append(time.monotonic()) or Reply()
    ) as http:
        await asyncio.gather(*(asked(http) for _ in range(11)))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[-1] - times[0] >= 0.45
    assert min(gaps) > 0.02


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_P2_retry_after_is_honoured_in_both_forms(form):
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    value = "1" if form == "seconds" else format_datetime(now.replace(second=6), usegmt=True)
    times = []

    def play(_sent):
        times.append(time.monotonic())
        return Reply(429, {"Retry-After": value}) if len(times) == 1 else Reply()

    async with connected(play=play, clock=At(now)) as http:
        assert isinstance(await asked(http), Answer)
    assert 1.0 <= times[1] - times[0] < 1.5


async def test_P2_a_long_pause_is_kept_and_not_waited_for():
    sent = []

    def play(request):
        sent.append(request)
        return Reply(429, {"Retry-After": "999999"})

    async with connected(play=play) as http:
        for verb in ("get_balance", "get_offer", "place_order", "get_order"):
            found = await asked(http, verb=verb)
            assert type(found) is RateLimited
            assert found.retry_after == pytest.approx(3600, abs=2)  # capped
    assert len(sent) == 1


@pytest.mark.parametrize("value", ["", "soon", "-5", "1e9", "Wed, 99 Foo"])
async def test_a_retry_after_that_says_nothing_is_none(value):
    async with connected(play=lambda _sent: Reply(429, {"Retry-After": value})) as http:
        assert (await asked(http, verb="get_order")).retry_after is None


async def test_P2_waits_grow_with_full_jitter(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(client_module.asyncio, "sleep", sleep)
    for jitter in (0.0, 0.5, 1.0):
        slept.clear()
        client = Client("s", jitter=lambda jitter=jitter: jitter, play=lambda _sent: Reply(500))
        assert type(await asked(client(BASE))) is Transient
        assert slept == [jitter * 0.5, jitter * 1, jitter * 2]


async def test_P2_repetitions_end_with_the_deadline_of_the_verb():
    sent = []

    def play(request):
        sent.append(request)
        return Reply(500)

    client = Client("s", jitter=lambda: 1.0, play=play)
    call = Call("get_balance", deadline=asyncio.get_running_loop().time() + 0.2)
    assert type(await asked(client(BASE), call=call)) is Transient
    assert len(sent) == 1


async def test_P2_repetitions_are_a_small_share_of_the_requests():
    sent = []

    def play(request):
        sent.append(request)
        return Reply(500)

    retried = []
    async with connected(play=play) as http:
        http._client.retried = lambda: retried.append(1)
        for _ in range(200):
            await asked(http)
    assert len(sent) == 200 + len(retried)
    assert 10 <= len(retried) <= 10 + 20 + 1


async def test_respx_can_stand_in_for_the_network():
    with respx.mock:
        route = respx.get(f"{BASE}/x").mock(return_value=httpx.Response(200, json={"a": 1}))
        order = respx.post(f"{BASE}/x").mock(side_effect=httpx.ReadTimeout)
        async with connected() as http:
            assert (await asked(http)).object() == {"a": 1}
            assert type(await asked(http, "POST", verb="place_order")) is OutcomeUnknown
        assert (route.call_count, order.call_count) == (1, 1)


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "auth", [ApiKey(SecretText(CANARY)), ApiKey(SecretText(CANARY), query="key"), Basic("me", SecretText(CANARY))]
)
async def test_S4_a_credential_is_in_no_message_repr_log_or_traceback(raw, auth, caplog):
    caplog.set_level(logging.DEBUG)
    shown = []
    answers = iter([[b"garbage\r\n\r\n", b""], [b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"], [b""]] * 9)
    supplier = raw(lambda _seen: next(answers), keep=False)
    client = Client("s", Limits(read_timeout=1), jitter=lambda: 0.0, hidden=[CANARY])
    http = client(supplier.url, auth=auth)
    for verb in ("get_balance", "place_order", "get_order"):
        with calling(Call(verb)) as call:
            try:
                await http.request("POST", f"/{CANARY}/x", query={"q": CANARY}, json={"k": CANARY})
            except AdapterError as error:
                stack = traceback.TracebackException.from_exception(error, capture_locals=True)
                inner = [
                    line
                    for frame in stack.stack
                    if frame.filename.endswith("suppliers/client.py") and "tests" not in frame.filename
                    for line in [str(frame.locals)]
                ]
                shown += [repr(error), str(error), str(error.__dict__), *inner, repr(error.__context__)]
            shown += [repr(call), repr(http), repr(client), repr(auth)]
    assert any(CANARY in seen.target + str(seen.headers) for seen in supplier.seen) or supplier.seen
    await client.aclose()
    hidden = [CANARY, CANARY.replace("/", "%2F"), "bWU6Y2FuYXJ5"]  # in clear, in a URL, in Basic
    for text in [*shown, caplog.text]:
        assert not any(secret in text for secret in hidden), text


def test_S4_redaction_knows_a_credential_as_it_travels():
    client = Client("s", hidden=["a b/c+d"])
    client(BASE, auth=Basic("me", SecretText("pass-word")))
    for text in ("a b/c+d", "a%20b%2Fc%2Bd", "a+b%2Fc%2Bd", "pass-word", "bWU6cGFzcy13b3Jk"):
        assert client.redact(f"<{text}>") == "<***>"


async def test_S4_a_body_is_in_no_traceback_even_with_locals():
    def play(_sent):
        return Reply(body=b'{"keys": "CANARY-KEY", "l": [{"n": "CANARY-KEY"}, {"n": ')

    async with connected(play=play) as http:
        answer = await asked(http)
    async with connected(play=play, limits=Limits(max_answer=20)) as http:
        found = [await asked(http)]
    for read in (answer.json, answer.object, lambda: list(answer.items("l"))):
        try:
            read()
        except BadResponse as error:
            found.append(error)
    assert len(found) == 4
    for error in found:
        assert isinstance(error, BadResponse)
        said = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        assert "CANARY-KEY" not in said.replace(repr(play), "")


async def test_a_header_that_no_header_may_hold_is_refused_without_it():
    async with connected(play=lambda _sent: Reply(), auth=ApiKey(SecretText("CANARY\nX: 1"))) as http:
        found = await asked(http)
    assert type(found) is Config
    assert "CANARY" not in str(found)
