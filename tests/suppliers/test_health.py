"""The breaker opens, waits, lets one probe through and closes; what stops a supplier is said once and outlives us."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from syncd import audit
from syncd.adapter import Auth, BadResponse, Config, NotSent, RateLimited, Transient
from syncd.metrics import Metrics
from syncd.model import Clock
from syncd.store.database import Database, Writer
from syncd.suppliers import health as health_module
from syncd.suppliers.health import (
    FIRST_PAUSE_S,
    IN_A_ROW,
    KEEP,
    LONGEST_PAUSE_S,
    WINDOW,
    BreakerOpen,
    Health,
    Kept,
    State,
    admit,
    failed,
    kept,
    succeeded,
)

DOWN = Transient("GET /x: no answer in time")


class Now(Clock):
    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def now(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Now:
    return Now()


def made(clock, **more) -> Health:
    return Health("s", clock=clock, jitter=lambda: 0.5, **more)


def tried(health, error=None, *, buys=False) -> bool:
    """One try: whether it was let through."""
    try:
        probe = health.enter(buys=buys)
    except BreakerOpen:
        return False
    health.leave(error, probe=probe)
    return True


def broken(clock, **more) -> Health:
    health = made(clock, **more)
    for _ in range(IN_A_ROW):
        assert tried(health, DOWN)
    return health


# --- deciding ---------------------------------------------------------------------------------------------------------


def test_P2_it_opens_after_failures_in_a_row():
    state = State()
    for n in range(IN_A_ROW):
        assert not state.open, n
        state = failed(state, 100.0, "why", 0.5)
    assert (state.open, state.since, state.until, state.why) == (True, 100.0, 100.0 + FIRST_PAUSE_S, "why")


def test_P2_it_opens_when_half_of_the_last_tries_failed():
    state, tries = State(), 0
    while not state.open:
        state = succeeded(state) if tries % 2 else failed(state, 100.0, "why", 0.5)
        tries += 1
        assert tries < 100
    assert WINDOW <= tries <= WINDOW + 1
    state = State()
    for tries in range(200):  # one in three: alive
        state = failed(state, 100.0, "why", 0.5) if tries % 3 == 0 else succeeded(state)
        assert not state.open


def test_P2_the_pause_doubles_with_jitter_up_to_ten_minutes():
    for jitter, part in ((0.0, 0.75), (0.5, 1.0), (1.0, 1.25)):
        state, now, pauses = State(), 0.0, []
        for _ in range(IN_A_ROW - 1):
            state = failed(state, now, "", jitter)
        for _ in range(8):
            state = failed(state, now, "", jitter)
            pauses.append((state.until - now) / part)
            now = state.until
        assert pauses == [15, 30, 60, 120, 240, 480, 600, 600]


def test_P2_a_clock_that_was_set_back_keeps_nobody_waiting():
    state = State(open=True, until=2_000_000_000.0, asked_until=2_000_000_000.0)
    assert state.until_probe(1_000_000_000.0) == 0
    assert state.until_asked(1_000_000_000.0) == 0
    assert admit(state, 1_000_000_000.0, probing=False, buys=False) == "probe"


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 1000), st.floats(0, 1)), max_size=60),
)
def test_P2_whatever_happens_a_supplier_that_is_back_is_found_within_a_pause(steps):
    state, now = State(), 1_800_000_000.0
    for good, seconds, jitter in steps:
        now += seconds
        if admit(state, now, probing=False, buys=False) != "wait":
            state = succeeded(state) if good else failed(state, now, "", jitter)
            assert not (good and state.open)
        assert state.until_probe(now) <= LONGEST_PAUSE_S * 1.25
    assert admit(state, now + LONGEST_PAUSE_S * 1.25, probing=False, buys=False) != "wait"


# --- one supplier -----------------------------------------------------------------------------------------------------


def test_P2_an_open_breaker_lets_nothing_through_then_one_probe(clock):
    health = broken(clock)
    assert not tried(health)
    clock.at += FIRST_PAUSE_S + 1
    with pytest.raises(BreakerOpen):
        health.enter(buys=True)  # a purchase is no probe
    assert health.enter(buys=False) is True
    for _ in range(3):
        assert not tried(health)  # the probe is still out
    health.leave(None, probe=True)
    assert tried(health)
    assert tried(health, buys=True)
    assert health.state.open is False


def test_P2_a_probe_that_fails_opens_it_for_longer(clock):
    health = broken(clock)
    clock.at += FIRST_PAUSE_S + 1
    assert tried(health, DOWN)
    clock.at += FIRST_PAUSE_S + 1
    assert not tried(health)
    clock.at += FIRST_PAUSE_S
    assert tried(health)


def test_P2_a_probe_that_is_cut_off_tells_nothing_and_the_next_one_may_go(clock):
    health = broken(clock)
    clock.at += FIRST_PAUSE_S + 1
    assert health.enter(buys=False)
    health.leave(None, probe=True, known=False)
    assert health.state.open
    assert health.enter(buys=False) is True


def test_P2_a_try_from_before_does_not_let_a_second_probe_out(clock):
    health = made(clock)
    assert health.enter(buys=False) is False  # leaves before it opens, and stays out long
    for _ in range(IN_A_ROW):
        tried(health, DOWN)
    clock.at += FIRST_PAUSE_S + 1
    assert health.enter(buys=False) is True
    health.leave(DOWN, probe=False)
    assert not tried(health)


@pytest.mark.parametrize("error", [BadResponse("x"), RateLimited("x"), Auth("x")])
def test_P2_whoever_answers_is_not_down(clock, error):
    health = made(clock)
    for _ in range(IN_A_ROW * 3):
        assert tried(health, error)


def test_P2_rate_limits_open_nothing_and_are_remembered(clock):
    states: list[Kept] = []
    health = made(clock, keep=states.append)
    tried(health, RateLimited("x", retry_after=120.0))
    assert health.state.until_asked(clock.at) == 120
    assert health.line() == "rate limited until 2027-01-15T08:02:00Z"
    assert [one.state.asked_until for one in states] == [clock.at + 120]
    clock.at += 121
    assert health.line() == "up"


# --- said once --------------------------------------------------------------------------------------------------------


def test_P2_down_and_up_are_said_once(clock):
    with structlog.testing.capture_logs() as lines:
        health = broken(clock)
        for _ in range(20):
            tried(health, DOWN)
            clock.at += FIRST_PAUSE_S / 2
        clock.at += LONGEST_PAUSE_S
        for _ in range(20):
            assert tried(health)
    assert [line["event"] for line in lines] == ["supplier_down", "supplier_up"]
    assert lines[0]["log_level"] == "warning"
    assert lines[0]["why"] == "GET /x: no answer in time"


@pytest.mark.parametrize(
    ("error", "event", "line"),
    [
        (Auth("GET /x: 401"), "supplier_credentials_refused", "credentials refused since"),
        (Config("the currency is another one"), "supplier_misconfigured", "misconfigured since"),
    ],
)
def test_a_stop_is_said_once_and_holds_until_it_is_woken(clock, error, event, line):
    with structlog.testing.capture_logs() as lines:
        health = made(clock, metrics=None)
        for _ in range(3):
            health.stop(error)
            with pytest.raises(type(error), match=r"not asked since .*correct the"):
                health.check()
    assert health.stopped
    assert health.line().startswith(line)
    assert [(one["event"], one["log_level"]) for one in lines] == [(event, "error")]
    health.wake()
    health.check()
    assert health.line() == "up"


def test_P2_an_operator_may_try_one_that_is_down_and_it_stays_down_until_it_answers(clock):
    with structlog.testing.capture_logs() as lines:
        health = made(clock, metrics=None)
        for _ in range(IN_A_ROW):
            assert tried(health, DOWN)
        down = health.line().partition(":")[0]
        assert not tried(health)
        health.try_now()
        assert tried(health, DOWN)  # the probe
        assert health.line().startswith(down)
        assert not tried(health)
        health.try_now()
        assert tried(health)
    assert health.line() == "up"
    assert [one["event"] for one in lines] == ["supplier_down", "supplier_up"]


def gauges(metrics):
    return {
        (sample.name.removeprefix("syncd_supplier_"), *sorted(sample.labels.values(), reverse=True)): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if sample.labels.get("supplier") == "s" and family.type == "gauge"
    }


def test_O1_the_state_is_in_the_metrics(clock):
    metrics = Metrics("1")
    metrics.know(products=(), shops=(), suppliers=["s"])
    health = made(clock, metrics=metrics)
    assert gauges(metrics)["up", "s"] == 1
    for _ in range(IN_A_ROW):
        tried(health, DOWN)
    assert (gauges(metrics)["up", "s"], gauges(metrics)["breaker_state", "s"]) == (0, 2)
    clock.at += FIRST_PAUSE_S + 1
    health.enter(buys=False)
    assert gauges(metrics)["breaker_state", "s"] == 1
    health.leave(None, probe=True)
    assert (gauges(metrics)["up", "s"], gauges(metrics)["breaker_state", "s"]) == (1, 0)
    health.stop(Auth("x"))
    assert (gauges(metrics)["stopped", "s", "auth"], gauges(metrics)["stopped", "s", "config"]) == (1, 0)
    assert gauges(metrics)["up", "s"] == 0
    metrics.supplier_gone("s")
    assert not [key for key in gauges(metrics) if key[0] in {"up", "stopped", "breaker_state"}]


# --- over a restart ---------------------------------------------------------------------------------------------------


@pytest.fixture
def store(database_url: str) -> Iterator[tuple[Database, Writer]]:
    database = Database(database_url)
    database.check_schema()
    writer = Writer(database, audit.chain(lambda data: hmac.digest(b"k" * 32, data, hashlib.sha256)))
    writer.start()
    yield database, writer
    writer.stop()
    database.close()


def stored(clock, store, config="one") -> tuple[Health, list]:
    """One daemon's Health on this database, as after a start."""
    database, writer = store
    posted: list = []
    health = made(clock, config=config, keep=lambda state: posted.append(writer.post(KEEP, state)))
    if (found := kept(database, ["s"]).get("s")) is not None:
        health.resume(found)
    return health, posted


def done(posted) -> None:
    for future in posted:
        future.result(10)


def test_P2_a_breaker_stays_open_over_a_restart(clock, store):
    health, posted = stored(clock, store)
    for _ in range(IN_A_ROW):
        tried(health, DOWN)
    done(posted)
    assert len(posted) == 1  # changes are written, not every failure
    with structlog.testing.capture_logs() as lines:
        again, posted = stored(clock, store)
        assert not tried(again)
        assert again.line() == health.line()
        clock.at += FIRST_PAUSE_S + 1
        assert tried(again, DOWN)
        done(posted)
        third, posted = stored(clock, store)
        clock.at += FIRST_PAUSE_S + 1
        assert not tried(third)  # it goes on where the other one was: the pause has doubled
        clock.at += FIRST_PAUSE_S
        assert tried(third)
        done(posted)
        assert tried(stored(clock, store)[0])
    assert [line["event"] for line in lines] == ["supplier_up"]


def test_refused_credentials_hold_over_a_restart_until_the_configuration_changes(clock, store):
    health, posted = stored(clock, store)
    health.stop(Auth("GET /x: 401"))
    done(posted)
    with structlog.testing.capture_logs() as lines:
        assert stored(clock, store)[0].stopped
        assert not stored(clock, store, config="two")[0].stopped
    assert lines == []


def test_a_long_pause_holds_over_a_restart(clock, store):
    health, posted = stored(clock, store)
    tried(health, RateLimited("x", retry_after=600.0))
    done(posted)
    assert stored(clock, store)[0].state.until_asked(clock.at) == 600


def test_two_daemons_learn_from_each_other_and_the_newest_is_right(clock, store):
    one, posted = stored(clock, store)
    two, _ = stored(clock, store)
    for _ in range(IN_A_ROW):
        tried(one, DOWN)
    done(posted)
    assert tried(two)
    two.resume(kept(store[0], ["s"])["s"])
    assert not tried(two)
    one.resume(kept(store[0], ["s"])["s"])  # its own
    clock.at += FIRST_PAUSE_S + 1
    tried(one)
    two.resume(Kept("s", "one", clock.at - 1000, State()))  # an old one changes nothing
    assert two.state.open


def test_negative_control_a_breaker_that_nobody_keeps_hammers_after_a_restart(clock, store, monkeypatch):
    monkeypatch.setattr(health_module, "_write", lambda tx, payloads: [None] * len(payloads))
    health, _ = stored(clock, store)
    health._keep = None
    for _ in range(IN_A_ROW):
        tried(health, DOWN)
    assert tried(stored(clock, store)[0])


def test_S4_what_is_kept_is_short_and_has_no_configuration_in_it(clock, store):
    health, posted = stored(clock, store, config="f00d")
    health.stop(Config("x" * 5000))
    done(posted)
    assert kept(store[0], ["s"])["s"].config == "f00d"
    assert len(kept(store[0], ["s"])["s"].state.why) <= 300


def test_it_is_a_kind_of_not_sent():
    assert issubclass(BreakerOpen, NotSent)
    assert BreakerOpen("x").code == NotSent("x").code
