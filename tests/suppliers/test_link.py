"""A supplier's link: its own thread, every failure mapped, deadlines, nothing left open; and all of them together."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import hashlib
import hmac
import logging
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from syncd import audit, logs
from syncd.adapter import (
    Adapter,
    AdapterError,
    ApiKey,
    Auth,
    BadResponse,
    Check,
    Config,
    Context,
    Forged,
    Hint,
    InsufficientBalance,
    Money,
    NotSent,
    Offer,
    Order,
    OrderRequest,
    OutcomeUnknown,
    OutOfStock,
    Page,
    PriceChanged,
    Promises,
    RateLimited,
    RawKey,
    Refused,
    Secret,
    SecretText,
    Settings,
    Stock,
    Transient,
    Webhook,
    money,
)
from syncd.metrics import Metrics
from syncd.store.database import Database, Lane, Work, Writer
from syncd.suppliers import link as link_module
from syncd.suppliers.client import Client, Cut, Limits, Reply
from syncd.suppliers.health import Health, kept
from syncd.suppliers.link import Link, Links
from syncd.suppliers.registry import Built

CANARY = "canary-credential-0042"
KEY = "CANARY-KEY-9001"
BASE = "https://shop.example/api"


class Mine(Settings):
    key: Secret


class Shop(Adapter):
    """A well-behaved adapter, over whatever is played."""

    Settings = Mine

    def __init__(self, context):
        super().__init__(context)
        base = getattr(context.settings, "base", BASE)
        self.http = context.connect(base, auth=ApiKey(context.settings.key))

    async def list_offers(self, since):
        for page in range(3):
            answer = await self.http.get("/offers", query={"page": page})
            yield Page([offer(str(item["id"])) for item in answer.items("items")])

    async def get_balance(self):
        return money((await self.http.get("/balance")).object()["balance"], "CNY")

    async def place_order(self, order):
        answer = await self.http.post("/orders", json={"reference": order.reference})
        return Order(str(answer.object()["id"]), "completed", keys=[RawKey.of(KEY)])

    async def get_order(self, order_id):
        answer = await self.http.get(f"/orders/{order_id}")
        return Order(str(answer.object()["id"]), "completed", keys=[RawKey.of(KEY)])

    def parse_webhook(self, webhook):
        if webhook.body != b"signed":
            raise Forged("the signature is wrong")
        return Hint("order")


def offer(sku: str) -> Offer:
    return Offer(sku, "title", money("1.00", "CNY"), Stock.exact(1))


ORDER = OrderRequest("R1", offer("a"), 1)
AGAIN = dataclasses.replace(ORDER, again=True)


def good(sent):
    match sent.path.removeprefix("/api"):
        case "/offers":
            return Reply(body=b'{"items": [{"id": "%s"}]}' % sent.query["page"].encode())
        case "/balance":
            return Reply(body=b'{"balance": 1.50}')
        case _:
            return Reply(body=b'{"id": 7}')


@pytest.fixture
def linked() -> Iterator[Callable[..., Link]]:
    """Make links; all of them are closed at the end."""
    made: list[Link] = []

    def make(kind=Shop, play=good, *, name="s", limits=None, metrics=None, health=None, base=None) -> Link:
        client = Client(name, limits, hidden=[CANARY], play=play, health=health, jitter=lambda: 0.0)
        settings = Mine(key=SecretText(CANARY))
        if base is not None:
            settings = settings.model_copy(update={"base": base})
        link = Link(kind(Context(name, settings, ZoneInfo("UTC"), client)), client, metrics=metrics)
        made.append(link)
        return link

    yield make
    for link in made:
        link.close()


def failed(link: Link, verb: str, *args: Any) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        link.call(verb, *args)
    return caught.value


def doing(verb: str, work: Callable[..., Any]) -> type[Adapter]:
    """A Shop whose verb does as the test says; ``work`` gets the adapter and the arguments."""

    async def method(self, *args):
        found = work(self, *args)
        return await found if asyncio.iscoroutine(found) else found

    return type("Odd", (Shop,), {verb: method})


def raising(error: BaseException) -> Callable[..., Any]:
    def work(*args):
        raise error

    return work


# --- asking -----------------------------------------------------------------------------------------------------------


def test_every_verb_runs_on_the_suppliers_own_thread(linked):
    link = linked(doing("complain", lambda self, *args: threading.current_thread().name))
    assert link.call("complain", "1", "x") == "supplier-s"
    assert link.call("place_order", ORDER).id == "7"
    assert link.call("parse_webhook", Webhook("POST", "/", {}, {}, b"signed", datetime.now(UTC))) == Hint("order")
    assert isinstance(failed(link, "parse_webhook", Webhook("POST", "/", {}, {}, b"", datetime.now(UTC))), Forged)
    verbs = {"list_offers", "get_balance", "place_order", "get_order", "parse_webhook", "complain"}
    assert link.capabilities == verbs


async def test_the_daemons_loop_asks_without_waiting_on_a_thread(linked):
    link = linked()
    balance, order = await asyncio.gather(link.acall("get_balance"), link.acall("place_order", ORDER))
    assert balance == money("1.50", "CNY")
    assert order.keys[0].text.reveal() == KEY


def test_pages_come_one_at_a_time(linked):
    sent = []

    def play(request):
        sent.append(request)
        return good(request)

    link = linked(play=play)
    pages = link.pages(None, lambda: False)
    assert [one.sku for one in next(pages).offers] == ["0"]
    time.sleep(0.2)
    assert len(sent) <= 3  # one is handed over, one waits, one is on its way: not the whole listing
    assert [page.offers[0].sku for page in pages] == ["1", "2"]


def test_pages_end_when_the_run_stops(linked):
    closed = threading.Event()

    async def endless(self, since):
        try:
            number = 0
            while True:
                number += 1
                yield Page([offer(str(number))])
        finally:
            await asyncio.sleep(0)
            closed.set()

    link = linked(type("Endless", (Shop,), {"list_offers": endless}))
    stop = iter([False, False, True])
    assert len(list(link.pages(None, lambda: next(stop)))) == 2
    assert closed.wait(2)


def test_a_run_that_stops_does_not_wait_for_a_slow_page(linked):
    """Else a stop leaves the run behind, and its lease keeps the supplier from the next daemon."""
    closed, stop = threading.Event(), threading.Event()

    async def slow(self, since):
        try:
            await asyncio.sleep(60)
        finally:
            closed.set()
        yield Page([offer("1")])

    link = linked(type("Slow", (Shop,), {"list_offers": slow}))
    threading.Timer(0.1, stop.set).start()
    started = time.monotonic()
    assert list(link.pages(None, stop.is_set)) == []
    assert time.monotonic() - started < 2
    assert closed.wait(2)


def test_pages_hand_over_what_came_before_an_error(linked):
    async def half(self, since):
        yield Page([offer("1")])
        raise KeyError(KEY)

    link = linked(type("Half", (Shop,), {"list_offers": half}))
    pages = link.pages(None, lambda: False)
    assert next(pages).offers[0].sku == "1"
    with pytest.raises(BadResponse, match="the adapter failed: KeyError") as caught:
        next(pages)
    assert KEY not in str(caught.value)


def test_check_asks_what_there_is(linked):
    assert linked().call("check") == Check(balance=money("1.50", "CNY"))
    sent = []

    class Listing(Adapter):
        def __init__(self, context):
            super().__init__(context)
            self.http = context.connect(BASE)

        list_offers = Shop.list_offers

    link = linked(Listing, lambda request: sent.append(request) or good(request))
    assert link.call("check") == Check()
    assert len(sent) == 1  # the first page says enough
    assert linked(type("Nothing", (Adapter,), {})).call("check") == Check()
    assert linked(doing("check", lambda self: Check("me"))).call("check") == Check("me")


def test_a_verb_that_is_not_there_is_said_so_and_stops_nothing(linked):
    health = Health("s")
    link = linked(health=health)
    assert isinstance(failed(link, "complain", "1", "x"), Config)
    assert not link.stopped
    with pytest.raises(KeyError):
        link.call("__init__")


# --- mapping ----------------------------------------------------------------------------------------------------------

ESCAPING = [
    (KeyError(KEY), BadResponse, NotSent, OutcomeUnknown),
    (SystemExit(3), BadResponse, NotSent, OutcomeUnknown),
    (KeyboardInterrupt(), BadResponse, NotSent, OutcomeUnknown),
    (asyncio.CancelledError(), BadResponse, NotSent, OutcomeUnknown),
    (StopAsyncIteration(), BadResponse, NotSent, OutcomeUnknown),
    (RecursionError(KEY), BadResponse, NotSent, OutcomeUnknown),
    (TimeoutError(KEY), Transient, NotSent, OutcomeUnknown),
    (Transient("x"), Transient, NotSent, OutcomeUnknown),
    (BadResponse("x"), BadResponse, NotSent, OutcomeUnknown),
    (NotSent("x"), NotSent, NotSent, OutcomeUnknown),
    (Config("x"), Config, Config, OutcomeUnknown),
    (Auth("x"), Auth, Auth, Auth),
    (RateLimited("x", retry_after=1.0), RateLimited, RateLimited, RateLimited),
    (Refused("x"), Refused, Refused, Refused),
    (OutOfStock("x"), OutOfStock, OutOfStock, OutOfStock),
    (PriceChanged("x"), PriceChanged, PriceChanged, PriceChanged),
    (InsufficientBalance("x"), InsufficientBalance, InsufficientBalance, InsufficientBalance),
    (OutcomeUnknown("x"), OutcomeUnknown, OutcomeUnknown, OutcomeUnknown),
]
"""(what escapes the adapter, what it is when reading, in an order before anything left, and after it)."""


@pytest.mark.parametrize(
    ("error", "reading", "before", "after"), ESCAPING, ids=lambda value: getattr(value, "__name__", None)
)
def test_M1_what_escapes_an_adapter_is_an_error_by_what_happens_next(linked, error, reading, before, after):
    async def bought_then(self, order):
        await self.http.post("/orders")
        raise error

    assert type(failed(linked(doing("get_balance", raising(error))), "get_balance")) is reading
    assert type(failed(linked(doing("get_order", raising(error))), "get_order", "1")) is reading
    assert type(failed(linked(doing("place_order", raising(error))), "place_order", ORDER)) is before
    found = failed(linked(type("Odd", (Shop,), {"place_order": bought_then})), "place_order", ORDER)
    assert type(found) is after
    assert KEY not in "".join(traceback.format_exception(found))


def test_M1_an_adapter_that_sends_on_its_own_is_never_believed_to_have_sent_nothing(linked):
    class Own(Adapter):
        async def place_order(self, order):
            raise KeyError("x")

    class Said(Adapter):
        async def place_order(self, order):
            raise Transient("x")

    assert type(failed(linked(Own), "place_order", ORDER)) is OutcomeUnknown
    assert type(failed(linked(Said), "place_order", ORDER)) is OutcomeUnknown


@pytest.mark.parametrize("cut", ["dns", "refused", "timeout", 401, 429, 404, 500])
def test_M1_an_order_that_is_sent_again_stays_unknown_whatever_befalls_it(linked, cut):
    def play(_sent):
        if isinstance(cut, str):
            raise Cut(cut)
        return Reply(cut)

    assert type(failed(linked(play=play), "place_order", AGAIN)) is OutcomeUnknown
    assert type(failed(linked(doing("place_order", raising(Auth("x")))), "place_order", AGAIN)) is OutcomeUnknown
    # A no of a supplier that does not promise to look a reference up tells nothing of the first time.
    assert type(failed(linked(doing("place_order", raising(OutOfStock("x")))), "place_order", AGAIN)) is OutcomeUnknown
    assert linked().call("place_order", AGAIN).id == "7"


@pytest.mark.parametrize("connecting", [False, True])
def test_M1_nothing_is_bought_after_it_was_said_that_nothing_was(linked, raw, monkeypatch, connecting):
    """A purchase in a background task, which has not left yet, or is connecting, when the verb ends otherwise."""
    supplier = raw()
    background = []

    async def slowly(http):
        if not connecting:
            await asyncio.sleep(0.2)
        return await http.post("/orders")

    async def careless(self, order):
        background.append(asyncio.ensure_future(slowly(self.http)))
        await asyncio.sleep(0.05)
        raise KeyError("x")

    if connecting:
        real = anyio.connect_tcp

        async def late(*args, **more):
            await asyncio.sleep(0.2)
            return await real(*args, **more)

        monkeypatch.setattr(anyio, "connect_tcp", late)
    link = linked(type("Careless", (Shop,), {"place_order": careless}), play=None, base=supplier.url)
    assert type(failed(link, "place_order", ORDER)) is NotSent
    time.sleep(0.5)
    assert supplier.seen == []
    assert type(background[0].exception()).__name__ == "_LateError"


def test_M1_an_adapter_that_forgets_what_to_give_has_bought_all_the_same(linked):
    async def forgets(self, order):
        await self.http.post("/orders")

    assert type(failed(linked(type("Odd", (Shop,), {"place_order": forgets})), "place_order", ORDER)) is OutcomeUnknown
    assert type(failed(linked(doing("get_order", lambda *args: None)), "get_order", "1")) is BadResponse
    assert type(failed(linked(doing("get_balance", lambda self: 3)), "get_balance")) is BadResponse
    assert linked(doing("find_order", lambda *args: None)).call("find_order", "R1") is None


def test_P1_a_listing_that_yields_something_else_is_not_a_complete_one(linked):
    async def odd(self, since):
        yield Page([offer("1")])
        yield None
        yield Page([offer("2")])

    pages = linked(type("Odd", (Shop,), {"list_offers": odd})).pages(None, lambda: False)
    next(pages)
    with pytest.raises(BadResponse):
        next(pages)


def test_M1_what_an_adapter_asks_beside_its_order_does_not_make_it_forgotten(linked):
    """A question that was asked before the order left and ends after it."""

    async def play(sent):
        if sent.method == "GET":
            await asyncio.sleep(0.1)
        return good(sent)

    async def both(self, order):
        await asyncio.gather(self.http.get("/balance"), self.http.post("/orders"))
        raise BadResponse("x")

    link = linked(type("Odd", (Shop,), {"place_order": both}), play)
    assert type(failed(link, "place_order", ORDER)) is OutcomeUnknown


def test_negative_control_a_mapping_that_believes_everything_is_seen(linked, monkeypatch):
    monkeypatch.setattr(link_module.Verbs, "verdict", lambda self, error, call: NotSent("x"))
    found = failed(linked(play=lambda _sent: Reply(500)), "place_order", ORDER)
    assert type(found) is not OutcomeUnknown


def test_P2_a_reading_verb_is_asked_again_when_its_adapter_says_so_and_no_other_one(linked):
    asked = []

    def busy(self, *args):
        asked.append(1)
        raise Transient("busy, says the body")

    for verb, args, times in (
        ("get_balance", (), 4),
        ("check", (), 4),
        ("get_order", ("1",), 1),
        ("find_order", ("R1",), 1),
        ("place_order", (ORDER,), 1),
    ):
        asked.clear()
        failed(linked(doing(verb, busy)), verb, *args)
        assert len(asked) == times, verb
    # What the client has repeated is not repeated again: 4 requests, not 16.
    sent = []
    failed(linked(play=lambda request: sent.append(request) or Reply(500)), "get_balance")
    assert len(sent) == 4


def test_a_bug_of_an_adapter_is_told_once_with_its_place(linked, caplog):
    link = linked(doing("get_balance", raising(KeyError(KEY))))
    for _ in range(3):
        failed(link, "get_balance")
    assert [record.msg["event"] for record in caplog.records if isinstance(record.msg, dict)] in (
        [],
        ["adapter_failed"],
    )


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    """Deadlines of 0.3 s."""
    monkeypatch.setattr(link_module, "_DEADLINES", dict.fromkeys(link_module._DEADLINES, 0.3))
    monkeypatch.setattr(link_module, "_GRACE_S", 0.2)
    return Limits(total_timeout=0.1)


def test_a_deadline_ends_a_verb_and_its_tasks(linked, short):
    ended = []

    async def slow(self, *args):
        try:
            await asyncio.gather(asyncio.sleep(60), asyncio.sleep(60))
        finally:
            ended.append(len(asyncio.all_tasks()))

    for verb, args, kind in (("get_balance", (), Transient), ("place_order", (ORDER,), NotSent)):
        link = linked(type("Slow", (Shop,), {verb: slow}), limits=short)
        started = time.monotonic()
        assert type(failed(link, verb, *args)) is kind
        assert time.monotonic() - started < 1
    assert len(ended) == 2


def test_M1_a_deadline_after_the_order_left_is_unknown(linked, short):
    async def play(_sent):
        await asyncio.sleep(60)

    assert type(failed(linked(play=play, limits=Limits(total_timeout=0.1)), "place_order", ORDER)) is OutcomeUnknown


def test_the_pages_of_a_listing_have_a_deadline_each(linked, short):
    async def slow(self, since):
        for number in range(4):
            await asyncio.sleep(0.2)
            yield Page([offer(str(number))])
        await asyncio.sleep(60)

    link = linked(type("Slow", (Shop,), {"list_offers": slow}), limits=short)
    pages, seen = link.pages(None, lambda: False), []
    for _ in range(4):
        seen.append(next(pages))
        time.sleep(0.4)  # whoever takes them may be slow
    with pytest.raises(Transient):
        next(pages)
    assert len(seen) == 4


def test_P2_an_adapter_that_blocks_is_given_up_and_holds_up_nobody_else(linked, short):
    blocked = linked(doing("place_order", lambda self, order: time.sleep(3)), limits=short, name="blocked")
    other = linked(name="other")
    worst, stop = [], threading.Event()

    async def daemon():
        async def lag():
            loop = asyncio.get_running_loop()
            while not stop.is_set():
                before = loop.time()
                await asyncio.sleep(0.005)
                worst.append(loop.time() - before - 0.005)

        watching = asyncio.create_task(lag())
        started = time.monotonic()
        with pytest.raises(OutcomeUnknown, match="blocks"):
            await blocked.acall("place_order", ORDER)
        assert time.monotonic() - started < 1.5
        for _ in range(20):
            assert await other.acall("get_balance") == money("1.50", "CNY")
        stop.set()
        await watching

    asyncio.run(daemon())
    assert max(worst) < 0.25  # 50 ms on a quiet machine; tests share theirs


def test_P2_a_busy_adapter_leaves_the_daemons_loop_its_time(linked, capsys):
    """One supplier computes without a pause, one blocks, one fails at once, again and again: the loop's lag."""

    def busy():
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            sum(range(1000))

    misbehaving = [
        linked(doing("complain", lambda self, *args: busy() or ""), name="busy"),
        linked(doing("complain", lambda self, *args: time.sleep(1) or ""), name="blocking"),
    ]
    crashing = linked(doing("get_balance", raising(KeyError("x"))), name="crashing")
    worst = []

    async def daemon():
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(link.acall("complain", "1", "x")) for link in misbehaving]
        while not all(task.done() for task in tasks):
            before = loop.time()
            await asyncio.sleep(0.005)
            worst.append(loop.time() - before - 0.005)
            with pytest.raises(BadResponse):
                await crashing.acall("get_balance")
        await asyncio.gather(*tasks)

    asyncio.run(daemon())
    worst.sort()
    with capsys.disabled():
        print(f"\nlag of the loop beside three that misbehave: at most {worst[-1] * 1000:.1f} ms")
    assert worst[-1] < 0.25


def test_trades_are_serial_where_that_is_promised(linked):
    running, most = [], []

    async def trade(self, order):
        running.append(1)
        most.append(len(running))
        await asyncio.sleep(0.02)
        running.pop()
        return Order("1", "pending")

    async def all_at_once(link):
        await asyncio.gather(*(link.acall("place_order", ORDER) for _ in range(5)))

    for promises, expected in ((Promises(), 5), (Promises(serial_trades=True), 1)):
        most.clear()
        asyncio.run(all_at_once(linked(type("Trader", (Shop,), {"place_order": trade, "promises": promises}))))
        assert max(most) == expected


# --- nothing is left open ---------------------------------------------------------------------------------------------


def test_closing_ends_everything_within_three_seconds(linked, raw):
    ended = threading.Event()

    async def hang(self):
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    supplier = raw(lambda _seen: time.sleep(30) or b"")
    hanging = linked(doing("get_balance", hang), name="hanging")
    sending = linked(play=None, base=supplier.url, name="sending", limits=Limits(allow_http=True))
    blocking = linked(doing("get_balance", lambda self: time.sleep(4)), name="blocking")
    found: dict[str, BaseException] = {}

    def ask(link, verb, *args):
        try:
            link.call(verb, *args)
        except BaseException as error:
            found[link.name] = error

    threads = [
        threading.Thread(target=ask, args=(hanging, "get_balance")),
        threading.Thread(target=ask, args=(sending, "place_order", ORDER)),
    ]
    for thread in threads:
        thread.start()
    threading.Thread(target=ask, args=(blocking, "get_balance"), daemon=True).start()
    assert supplier.came.wait(5)
    time.sleep(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for link in (hanging, sending, blocking):
            started = time.monotonic()
            link.close()
            assert time.monotonic() - started < 3.5
        gc.collect()
    for thread in threads:
        thread.join(5)
    assert ended.is_set()
    assert type(found["hanging"]) is NotSent
    assert type(found["sending"]) is OutcomeUnknown
    with pytest.raises(NotSent, match="is closed"):
        hanging.call("get_balance")
    hanging.close()  # twice does no harm


async def test_cancelling_leaves_nothing_open(linked, raw):
    release = threading.Event()
    supplier = raw(lambda _seen: release.wait(10) and b"")
    link = linked(play=None, base=supplier.url)
    for verb, args in (("get_balance", ()), ("place_order", (ORDER,))):
        supplier.came.clear()
        task = asyncio.create_task(link.acall(verb, *args))
        await asyncio.to_thread(supplier.came.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.sleep(0.1)
    tasks = asyncio.run_coroutine_threadsafe(_tasks(), link._loop)
    assert await asyncio.wrap_future(tasks) == 0
    pools = [transport._pool for transport in (link._verbs.client._kept, link._verbs.client._fresh)]
    assert [connection for pool in pools for connection in pool.connections] == []
    release.set()


async def _tasks():
    return len(asyncio.all_tasks()) - 1


# --- health -----------------------------------------------------------------------------------------------------------


def test_refused_credentials_stop_the_asking_until_a_check_works(linked):
    sent = []
    answers = {"status": 401}

    def play(request):
        sent.append(request)
        return Reply(answers["status"]) if answers["status"] != 200 else good(request)

    health = Health("s")
    link = linked(play=play, health=health)
    assert type(failed(link, "get_order", "1")).code == "supplier_auth"
    assert link.stopped
    for verb, args in (("get_balance", ()), ("place_order", (ORDER,)), ("get_order", ("1",))):
        assert isinstance(failed(link, verb, *args), Auth)
    with pytest.raises(Auth):
        list(link.pages(None, lambda: False))
    assert len(sent) == 1
    assert isinstance(failed(link, "check"), Auth)
    assert len(sent) == 2
    answers["status"] = 200
    link.call("check")
    assert not link.stopped
    assert link.call("get_balance") == money("1.50", "CNY")


def test_P2_a_supplier_that_is_down_is_left_alone_and_a_purchase_there_is_not_sent(linked, raw):
    supplier = raw()
    supplier.close()
    health = Health("s")
    link = linked(play=None, base=supplier.url, health=health)
    for _ in range(5):
        failed(link, "get_balance")
    started = time.monotonic()
    for _ in range(50):
        found = failed(link, "place_order", ORDER)
        assert isinstance(found, NotSent)
        assert "down since" in str(found)
    assert time.monotonic() - started < 1
    assert health.line().startswith("down since")


def test_O1_calls_and_failures_are_counted_by_verb_and_kind(linked):
    metrics = Metrics("1")
    metrics.know(products=(), shops=(), suppliers=["s"])
    answers = [Reply(500), Reply(500), Reply(body=b'{"balance": 1}')]
    link = linked(play=lambda sent: answers.pop(0) if answers else good(sent), metrics=metrics)
    link.call("get_balance")
    list(link.pages(None, lambda: False))
    other = linked(doing("place_order", raising(OutOfStock("x"))), metrics=metrics)
    failed(other, "place_order", ORDER)
    found = {
        (sample.name, *(sample.labels[name] for name in ("verb", "kind") if name in sample.labels)): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if sample.labels.get("supplier") == "s"
    }
    assert found["syncd_supplier_calls_total", "get_balance"] == 1
    assert found["syncd_supplier_calls_total", "list_offers"] == 1
    assert found["syncd_supplier_calls_total", "get_order"] == 0
    assert found["syncd_supplier_retries_total",] == 2
    assert found["syncd_supplier_failures_total", "place_order", "out_of_stock"] == 1
    assert found["syncd_supplier_call_seconds_count", "get_balance"] == 1


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("logging_put_back")
def test_S4_credentials_and_keys_are_in_no_error_log_metric_or_traceback(linked, capfd):
    """An adapter that puts everything it knows into its errors, and a supplier that echoes what it was sent."""
    logs.configure("debug", json=True)
    metrics = Metrics("1")
    metrics.know(products=(), shops=(), suppliers=["s"])

    def leak(kind):
        async def method(self, *args):
            answer = await self.http.post("/orders", reads=True)
            text = f"{CANARY} {answer.content.decode()}"
            raise kind(text) if kind is not BadResponse else BadResponse(f"echo: {CANARY}", hint=CANARY)

        return method

    said = []
    echo = lambda sent: Reply(200, dict(sent.headers), str(dict(sent.headers)).encode() + KEY.encode())  # noqa: E731
    for kind in (KeyError, ValueError, BadResponse, OSError):
        for verb, args in (("get_balance", ()), ("place_order", (ORDER,)), ("get_order", ("1",))):
            link = linked(type("Leaky", (Shop,), {verb: leak(kind)}), echo, metrics=metrics, health=Health("s"))
            error = failed(link, verb, *args)
            said += [str(error), repr(error), str(error.__dict__), *traceback.format_exception(error), repr(link)]
            said += [repr(link.health), link.health.line(), repr(link.adapter.http), repr(link._verbs.client)]
    noted = linked(doing("place_order", lambda self, order: Order("1", "pending", note=f"for {CANARY}")))
    said.append(noted.call("place_order", ORDER).note)
    said.append(repr(linked(doing("check", lambda self: Check(CANARY, notes=(CANARY,)))).call("check")))
    order = linked().call("place_order", ORDER)
    said += [repr(order), str(order), repr(order.keys)]
    logging.getLogger("httpx").info("x")
    text = capfd.readouterr().err
    assert "adapter_failed" in text
    for piece in [*said, text, metrics.render().decode()]:
        assert CANARY not in piece
        assert KEY not in piece


def test_S4_negative_control_an_error_that_is_not_redacted_is_seen(linked, monkeypatch):
    monkeypatch.setattr(Client, "redact", lambda self, text: text)
    found = failed(linked(doing("get_balance", raising(BadResponse(f"echo: {CANARY}")))), "get_balance")
    assert CANARY in str(found)


# --- all of them side by side -----------------------------------------------------------------------------------------


def test_P2_one_dead_one_slow_one_lying_and_the_good_one_is_on_time(linked, raw, capsys):
    """Real connections: the good supplier's listing takes as long beside the others as it takes alone."""
    listing = b'{"items": [{"id": 1}]}'
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(listing), listing)

    def trickle(_seen):
        for byte in whole:
            time.sleep(0.05)
            yield bytes([byte])

    dead = raw()
    dead.close()
    good_one = raw(lambda _seen: whole)
    others = [
        linked(play=None, base=dead.url, name="dead", health=Health("dead")),
        linked(play=None, base=raw(trickle).url, name="slow", health=Health("slow")),
        linked(play=None, base=raw(lambda _seen: b"<html>" * 99, keep=False).url, name="lying", health=Health("lying")),
    ]
    fine = linked(play=None, base=good_one.url, name="good", health=Health("good"))

    def listed() -> float:
        started = time.perf_counter()
        for _ in range(20):
            assert len(list(fine.pages(None, lambda: False))) == 3
        return time.perf_counter() - started

    alone = listed()
    stop = threading.Event()

    def keep_asking(link):
        while not stop.is_set():
            try:
                list(link.pages(None, stop.is_set))
            except AdapterError:
                stop.wait(0.01)

    threads = [threading.Thread(target=keep_asking, args=(link,)) for link in others]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    beside = listed()
    stop.set()
    for thread in threads:
        thread.join(10)
    with capsys.disabled():
        print(f"\n20 listings: {alone:.2f} s alone, {beside:.2f} s beside three that misbehave")
    assert beside < 3 * alone + 0.5
    assert [link.health.line().split(":")[0][:10] for link in (*others, fine)] == [
        "down since",
        "up",
        "down since",
        "up",
    ]


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(database_url: str) -> Iterator[tuple[Database, Writer]]:
    database = Database(database_url)
    database.check_schema()
    writer = Writer(database, audit.chain(lambda data: hmac.digest(b"k" * 32, data, hashlib.sha256)))
    writer.start()
    yield database, writer
    writer.stop()
    database.close()


def built(name: str, play=good, *, digest: str = "1", kind=Shop) -> Built:
    client = Client(name, hidden=[CANARY], play=play, jitter=lambda: 0.0)
    return Built(kind(Context(name, Mine(key=SecretText(CANARY)), ZoneInfo("UTC"), client)), client, digest)


def links_of(store) -> Links:
    database, writer = store
    metrics = Metrics("1")
    metrics.know(products=(), shops=(), suppliers=["a", "b", "c"])
    return Links(database, writer, metrics, lambda digest: hashlib.sha256(digest.encode()).hexdigest())


def test_a_reload_keeps_the_links_whose_configuration_is_the_same(store):
    links = links_of(store)
    links.take_over({"a": built("a"), "b": built("b")})
    assert set(links) == {"a", "b"}
    a, b = links["a"], links["b"]
    a.call("get_balance")
    b.call("get_balance")
    links.take_over({"a": built("a"), "b": built("b", digest="2"), "c": built("c")})
    assert links["a"] is a
    assert links["b"] is not b
    assert links["c"].call("get_balance") == money("1.50", "CNY")
    for _ in range(50):
        if b._closed:
            break
        time.sleep(0.05)
    with pytest.raises(NotSent):
        b.call("get_balance")
    links.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("supplier-")]


def test_what_a_link_finds_out_after_its_configuration_was_replaced_is_told_of_nobody(store):
    links = links_of(store)
    links.take_over({"a": built("a")})
    old = links["a"].health
    links.take_over({"a": built("a", digest="2")})
    old.stop(Auth("the old key is refused"))
    assert b'syncd_supplier_up{supplier="a"} 1.0' in links._metrics.render()
    database, writer = store
    writer.call(Work("answered", Lane.CONTROL, lambda _tx, payloads: [None] * len(payloads)), None)
    assert not kept(database, ["a"])
    links.close()


def test_M1_a_reload_does_not_cut_a_purchase_off(store):
    entered, release = threading.Event(), threading.Event()

    async def play(sent):
        entered.set()
        await asyncio.to_thread(release.wait, 5)
        return good(sent)

    links = links_of(store)
    links.take_over({"a": built("a", play)})
    old = links["a"]
    bought: list[Any] = []
    thread = threading.Thread(target=lambda: bought.append(old.call("place_order", ORDER)))
    thread.start()
    assert entered.wait(5)
    links.take_over({})
    time.sleep(0.3)
    release.set()
    thread.join(5)
    assert bought[0].id == "7"
    links.close()


def test_P2_one_database_remembers_who_is_down_and_who_refused_us(store):
    def dead(_sent):
        raise Cut("refused")

    sent = []
    links = links_of(store)
    links.take_over({"a": built("a", dead), "b": built("b", lambda _sent: Reply(401)), "c": built("c")})
    for _ in range(6):
        failed(links["a"], "get_balance")
    failed(links["b"], "get_balance")
    assert links["c"].call("get_balance") == Money(money("1.50", "CNY").amount, "CNY")
    time.sleep(0.2)
    links.close()
    count = lambda request: sent.append(request) or good(request)  # noqa: E731
    again = links_of(store)
    again.take_over({"a": built("a", count), "b": built("b", count), "c": built("c")})
    assert isinstance(failed(again["a"], "get_balance"), NotSent)
    assert isinstance(failed(again["b"], "get_balance"), Auth)
    assert again["b"].stopped
    assert sent == []
    again.take_over({"b": built("b", count, digest="2")})
    assert again["b"].call("get_balance") == money("1.50", "CNY")
    again.close()
    with store[0].read() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM supplier_health").all()
    assert CANARY not in str(rows)
    assert "1" not in [row[1] for row in rows]  # not the digest itself
