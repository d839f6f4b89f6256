"""Every run leaves its row, one supplier's failure costs the others nothing, and none is synced twice at once."""

from __future__ import annotations

import asyncio
import io
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import openpyxl
import pytest

from syncd.adapter import AdapterError, Auth
from syncd.errors import NotFoundError
from syncd.inventory import sync as sync_module
from syncd.inventory.sync import AlreadyRunningError
from syncd.store.database import Lane, Tx, Work
from syncd.store.leases import Lease
from syncd.suppliers.health import Health

POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
# One engine is enough where the database has no say.
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
PATIENCE_S = 60.0  # only a test that fails waits so long


def text(*keys: str) -> str:
    return "".join(f"{key}\n" for key in keys)


class Gate:
    """A payload whose second half waits until the test opens the gate, so that a run stands still half-way."""

    def __init__(self, item: Any, *, after: int) -> None:
        self.item, self.after = item, after
        self.reached, self.opened = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.item, name)

    def unchanged(self) -> bool:
        self.after -= 1
        if self.after == 0:
            self.reached.set()
            assert self.opened.wait(PATIENCE_S)
        return True

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, PATIENCE_S)


def of(*items: Any) -> Callable[[Any], Iterator[Any]]:
    return lambda pull: iter(items)


async def ended(*syncs: Any) -> None:
    """Wait until nothing is under way."""
    for sync in syncs:
        tasks = [run.task for run in sync._runs.values()]
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)


async def ran(sync: Any, name: str = "alpha", asked_by: str = "operator") -> dict[str, Any]:
    run_id = await sync.start(name, asked_by)
    await ended(sync)
    run: dict[str, Any] = sync.run(run_id)
    return run


def due_in(house: Any, name: str = "alpha") -> float:
    """Seconds until a supplier is due, by the clock that decides it."""
    now = "extract(epoch FROM clock_timestamp())" if house.database.postgresql else str(time.time())
    ((left,),) = house.rows(f"SELECT due_at - {now} FROM supplier WHERE name = '{name}'")
    return float(left)


def lease_ran_out(house: Any, name: str = "alpha") -> None:
    house.tamper(f"UPDATE supplier SET leased_until = 1 WHERE name = '{name}'")


def assert_nothing_doubled(house: Any, keys: list[str]) -> None:
    """The harness: every key once, and the sources' rows add up to what the vault holds."""
    found = house.keys()
    assert sorted(found) == sorted(keys)
    assert house.rows("SELECT sum(sealed) FROM source") == [(len(keys),)]
    assert house.rows("SELECT count(*) FROM quarantine") == [(0,)]


# --- rows -------------------------------------------------------------------------------------------------------------


async def test_every_run_leaves_a_row_with_what_it_did(house: Any, payload: Any) -> None:
    items = [
        payload("steam-1", text("ABCDE-12345-FGHIJ", "ABCDE-12345-FGHIJ", "no key"), label="one.txt"),
        payload("steam-1", text("ABCDE-12345-FGHIJ", "ABCDE-12345-FGHIK"), label="two.txt"),
    ]
    sync = house.sync(alpha=of(*items), beta=of())
    await sync.open()
    run = await ran(sync)
    wanted = {"seen": 5, "new": 2, "repeats": 1, "duplicates": 1, "quarantined": 2, "error": None}
    assert {name: run[name] for name in wanted} == wanted
    assert (run["supplier"], run["asked_by"], run["progress"]) == ("alpha", "operator", None)
    assert run["started_at"] <= run["ended_at"]
    assert [len(item.finished) for item in items] == [1, 1]
    assert [row["id"] for row in sync.runs("alpha", 10)] == [run["id"]]
    again = await ran(sync)
    assert (again["seen"], again["new"], again["error"]) == (0, 0, None)
    assert [row["id"] for row in sync.runs("alpha", 10)] == [again["id"], run["id"]]
    shown = {row["name"]: row for row in sync.suppliers()}
    assert shown["alpha"]["last_run"]["id"] == again["id"]
    assert (shown["alpha"]["failures"], shown["alpha"]["running"], shown["beta"]["last_run"]) == (0, False, None)
    kinds = [kind for (kind,) in house.rows("SELECT kind FROM audit ORDER BY seq")]
    assert (kinds[0], kinds[-1]) == ("run.started", "run.ended")
    assert house.verified() == len(kinds)


@SQLITE
async def test_the_feed_is_synced_from_its_folder_to_the_vault(house: Any, feed: Any, drop: Any) -> None:
    drop("keys.txt", text("key-1", "key-2"))
    drop("keys.pdf", "x")
    sync = house.sync_of({"alpha": feed})
    await sync.open()
    run = await ran(sync)
    assert run["new"] == 2
    assert "keys.pdf" in run["error"]  # what was left out is told, and what could be taken is taken
    assert house.keys() == ["key-1", "key-2"]


@SQLITE
async def test_an_unknown_supplier_and_one_that_is_switched_off(house: Any) -> None:
    sync = house.sync(alpha=of())
    with pytest.raises(NotFoundError, match="does not exist"):
        await sync.start("gamma", "operator")
    with pytest.raises(NotFoundError, match="is not enabled"):
        await sync.start("beta", "operator")
    with pytest.raises(NotFoundError):
        sync.run(1)


# --- adapters that misbehave ------------------------------------------------------------------------------------------


class Odd(BaseException):
    pass


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (AdapterError("it is closed today", hint="call them"), "it is closed today (call them)"),
        (ZeroDivisionError("CANARY-7Q4Z9-KEY"), "the adapter failed: ZeroDivisionError"),
        (KeyError("CANARY-7Q4Z9-KEY"), "the adapter failed: KeyError"),
    ],
)
async def test_P2_an_adapter_that_fails_is_recorded_and_costs_the_others_nothing(
    house: Any, payload: Any, raised: Exception, said: str, assert_unseen: Any
) -> None:
    taken = payload("opaque-1", text("key-1"))

    def fails(pull: Any) -> Iterator[Any]:
        yield taken
        raise raised

    sync = house.sync(alpha=fails, beta=of(payload("opaque-1", text("key-2"), label="beta.txt")))
    await sync.open()
    await sync.tick()
    await ended(sync)
    ((alpha, new),) = house.rows("SELECT error, new FROM run WHERE supplier = 'alpha'")
    assert (alpha, new) == (said, 1)  # what was yielded before it stays taken
    assert house.rows("SELECT error, new FROM run WHERE supplier = 'beta'") == [(None, 1)]
    assert sorted(house.keys()) == ["key-1", "key-2"]
    assert house.rows("SELECT failures, last_error FROM supplier WHERE name = 'alpha'") == [(1, said)]
    assert_unseen("CANARY-7Q4Z9-KEY", house.everything())
    assert 0 < due_in(house) <= 600  # its next run comes at its usual time


@SQLITE
@pytest.mark.parametrize("raised", [Odd(), SystemExit(3), KeyboardInterrupt(), StopIteration()])
async def test_P2_what_does_not_travel_through_a_future_ends_its_run_only(
    house: Any, payload: Any, raised: BaseException
) -> None:
    """An adapter that calls sys.exit must not take the daemon along; one StopIteration would have hung for ever."""

    def leaves(pull: Any) -> Iterator[Any]:
        raise raised

    sync = house.sync(alpha=leaves)
    await sync.open()
    for _ in range(2):  # and its supplier is not stuck
        assert (await ran(sync))["error"] == f"the adapter failed: {type(raised).__name__}"


@SQLITE
async def test_P2_one_payload_that_cannot_be_read_does_not_stop_the_next(house: Any, payload: Any) -> None:
    stream = io.BytesIO()
    openpyxl.Workbook().save(stream)
    damaged = io.BytesIO()
    with zipfile.ZipFile(stream) as whole, zipfile.ZipFile(damaged, "w") as copy:
        for item in whole.infolist():
            content = whole.read(item)
            copy.writestr(item, content[: len(content) // 2] if "sheet1" in item.filename else content)
    odd = payload("opaque-1", "x\n", label="odd.txt")

    def stumble() -> Any:
        raise ZeroDivisionError("CANARY")

    odd.open = stumble
    table = payload("cards-1", damaged.getvalue(), label="damaged.xlsx")
    sync = house.sync(alpha=of(odd, table, payload("opaque-1", text("key-1"))))
    await sync.open()
    run = await ran(sync)
    assert run["new"] == 1
    assert "odd.txt: ZeroDivisionError" in run["error"]
    assert "damaged.xlsx is not a sound .xlsx file" in run["error"]
    assert "CANARY" not in run["error"]
    assert table.finished == odd.finished == []


async def test_a_run_that_cannot_be_recorded_does_not_keep_out_the_next(
    house: Any, payload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, say: the lease runs out, and the next run closes the row of this one."""

    def full(tx: Any, payloads: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    sync = house.sync(alpha=of(payload("opaque-1", text("key-1"))))
    await sync.open()
    with monkeypatch.context() as patching:
        patching.setattr(sync_module.leases, "END", Work("run_end", Lane.CONTROL, full))
        await sync.start("alpha", "schedule")
        await ended(sync)
    lease_ran_out(house)
    assert (await ran(sync))["error"] is None
    assert [row["error"] for row in sync.runs("alpha", 10)] == [None, "interrupted: its daemon stopped or stalled"]


async def test_P2_a_hanging_adapter_holds_up_neither_the_others_nor_the_stop(
    house: Any, payload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_module, "_STOP_S", 0.2)
    hangs, inside = threading.Event(), threading.Event()

    def hanging(pull: Any) -> Iterator[Any]:
        inside.set()
        hangs.wait(PATIENCE_S)
        return
        yield

    sync = house.sync(alpha=hanging, beta=of(payload("opaque-1", text("key-1"))))
    await sync.open()
    await sync.tick()
    assert await asyncio.to_thread(inside.wait, PATIENCE_S)
    beta = sync._runs.get("beta")
    if beta:
        await asyncio.wait_for(beta.task, PATIENCE_S)
    assert house.keys() == ["key-1"]
    with pytest.raises(AlreadyRunningError):
        await sync.start("alpha", "operator")
    await asyncio.wait_for(sync.stop(), PATIENCE_S / 2)  # though alpha still hangs
    assert not sync._runs["alpha"].task.done()
    await sync.tick()
    assert list(sync._runs) == ["alpha"]  # nothing is begun any more
    hangs.set()
    await ended(sync)


def test_P2_a_thread_that_hangs_does_not_keep_the_process_from_ending() -> None:
    script = """
import asyncio, threading
from syncd.inventory.sync import _in_thread

async def main():
    inside = threading.Event()
    hanging = asyncio.create_task(_in_thread("sync-alpha", lambda: (inside.set(), threading.Event().wait())))
    await asyncio.to_thread(inside.wait)

asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", script], timeout=PATIENCE_S, check=True, capture_output=True)
    assert ended.stderr == b""


async def test_an_adapter_that_lies_loses_nothing_and_hides_nothing(house: Any, payload: Any) -> None:
    """Products that are none, a wrong size, a payload that cannot be opened, one that never stays the same."""
    lost, moving = payload("opaque-1", "x\n", label="lost.txt"), payload("opaque-1", "y\n", label="moving.txt")

    def broken() -> Any:
        raise FileNotFoundError(2, "No such file or directory", "CANARY")

    lost.open = broken
    moving.unchanged = lambda: False
    small = payload("opaque-1", text("key-1", "key-2"))
    small.size = 1
    sync = house.sync(alpha=of(payload("no-such-sku", "z\n"), lost, moving, small))
    await sync.open()
    run = await ran(sync)
    for part in ("no-such-sku", "lost.txt: FileNotFoundError", "moving.txt changed while it was read"):
        assert part in run["error"]
    assert "CANARY" not in run["error"]
    assert house.keys() == ["key-1", "key-2"]
    assert moving.finished == lost.finished == []
    assert due_in(house) <= 0  # what changed is settled soon: settle is 0 s here


@SQLITE
async def test_a_very_long_error_is_cut_not_refused(house: Any) -> None:
    def talks(pull: Any) -> Iterator[Any]:
        for number in range(1000):
            pull.complain(f"complaint {number} " + "x" * 100)
        return
        yield

    sync = house.sync(alpha=talks)
    await sync.open()
    run = await ran(sync)
    assert len(run["error"]) == 2000


# --- one run at a time ------------------------------------------------------------------------------------------------


async def test_one_run_at_a_time_and_the_second_is_told_which(house: Any, payload: Any, small_chunks: int) -> None:
    gate = Gate(payload("opaque-1", text(*(f"key-{n:03d}" for n in range(20)))), after=2)
    sync = house.sync(alpha=of(gate))
    await sync.open()
    run_id = await sync.start("alpha", "operator")
    await gate.wait()
    with pytest.raises(AlreadyRunningError) as refused:
        await sync.start("alpha", "operator")
    assert refused.value.run == run_id
    await sync.tick()
    assert sync.run(run_id)["progress"]["total"] == gate.item.size
    assert sync.run(run_id)["ended_at"] is None
    assert sync.suppliers()[0]["running"]
    gate.opened.set()
    await ended(sync)
    assert house.rows("SELECT count(*) FROM run") == [(1,)]
    assert sync.run(run_id)["new"] == 20


@SQLITE
async def test_many_starts_at_once_make_one_run(house: Any, payload: Any) -> None:
    sync = house.sync(alpha=of(payload("opaque-1", text("key-1"))))
    await sync.open()
    begun = await asyncio.gather(*[sync.start("alpha", "operator") for _ in range(10)], return_exceptions=True)
    assert sum(isinstance(one, int) for one in begun) == 1
    assert sum(isinstance(one, AlreadyRunningError) for one in begun) == 9
    await ended(sync)


async def test_a_stop_ends_a_run_at_its_next_chunk_and_it_goes_on_at_the_next_start(
    house: Any, payload: Any, small_chunks: int
) -> None:
    keys = [f"key-{n:03d}" for n in range(40)]
    gate = Gate(payload("opaque-1", text(*keys)), after=3)
    sync = house.sync(alpha=of(gate))
    await sync.open()
    run_id = await sync.start("alpha", "schedule")
    await gate.wait()
    stopping = asyncio.create_task(sync.stop())
    await asyncio.sleep(0)
    gate.opened.set()
    await stopping
    await ended(sync)
    taken = len(house.keys())
    assert 0 < taken < 40
    assert sync.run(run_id)["new"] == taken
    assert due_in(house) <= 0
    fresh = house.sync(alpha=of(gate.item))
    await fresh.open()
    await fresh.tick()
    await ended(fresh)
    assert_nothing_doubled(house, keys)


# --- due-ness ---------------------------------------------------------------------------------------------------------


async def test_a_new_supplier_is_due_at_once_and_after_its_run_not_before_its_interval(
    make_house: Callable[..., Any], payload: Any
) -> None:
    house = make_house()
    sync = house.sync(alpha=of(), beta=of())
    await sync.open()
    await sync.tick()
    await ended(sync)
    assert house.rows("SELECT supplier FROM run ORDER BY supplier") == [("alpha",), ("beta",)]
    assert all(0 < due_in(house, name) <= 600 for name in ("alpha", "beta"))
    for _ in range(3):
        await sync.tick()
    house.stop()
    house = make_house()
    sync = house.sync(alpha=of(), beta=of())
    await sync.open()  # a restart neither forgets nor hurries
    for _ in range(3):
        await sync.tick()
        await ended(sync)
    assert house.rows("SELECT count(*) FROM run") == [(2,)]


async def test_what_is_overdue_runs_once_at_a_start_however_many_runs_were_missed(
    make_house: Callable[..., Any], payload: Any
) -> None:
    house = make_house()
    sync = house.sync(alpha=of(), beta=of())
    await sync.open()
    await sync.tick()
    await ended(sync)
    house.stop()
    house = make_house()
    house.tamper("UPDATE supplier SET due_at = due_at - 86400 WHERE name = 'alpha'")
    sync = house.sync(alpha=of(), beta=of())
    await sync.open()
    for _ in range(4):
        await sync.tick()
        await ended(sync)
    assert house.rows("SELECT supplier, count(*) FROM run GROUP BY supplier ORDER BY supplier") == [
        ("alpha", 2),
        ("beta", 1),
    ]


@SQLITE
async def test_runs_are_spread_by_their_jitter(make_house: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    file = """
[sync]
interval = "600s"
jitter = "300s"
[suppliers.alpha]
adapter = "feed"
folder = "a"
[suppliers.beta]
adapter = "feed"
folder = "b"
interval = "60s"
jitter = "0s"
"""
    house = make_house(file)
    drawn = iter([250.0, 0.0])
    monkeypatch.setattr(sync_module.random, "uniform", lambda low, high: min(high, next(drawn)))
    sync = house.sync(alpha=of(), beta=of())
    await sync.open()
    await ran(sync, "alpha")
    await ran(sync, "beta")
    assert 700 < due_in(house, "alpha") <= 850
    assert due_in(house, "beta") <= 60


@SQLITE
async def test_an_adapter_may_ask_for_an_early_next_run_but_not_for_a_later_one(house: Any) -> None:
    def asks(seconds: float) -> Callable[[Any], Iterator[Any]]:
        def pull(pull: Any) -> Iterator[Any]:
            pull.later(seconds)
            return iter(())

        return pull

    sync = house.sync(alpha=asks(5), beta=asks(10_000))
    await sync.open()
    await ran(sync, "alpha")
    await ran(sync, "beta")
    assert due_in(house, "alpha") <= 5
    assert due_in(house, "beta") <= 600


@SQLITE
async def test_a_reload_brings_a_new_supplier_in_and_takes_a_removed_one_out(house: Any) -> None:
    sync = house.sync(alpha=of())
    await sync.open()
    await ran(sync)
    await sync.reload(house.settings, house.sync(beta=of())._links)
    await sync.tick()
    await ended(sync)
    assert house.rows("SELECT supplier FROM run ORDER BY id") == [("alpha",), ("beta",)]
    with pytest.raises(NotFoundError):
        await sync.start("alpha", "operator")


@SQLITE
async def test_P2_a_supplier_that_refuses_us_is_not_polled_until_somebody_asks_by_hand(house: Any) -> None:
    sync = house.sync(alpha=of(), beta=of())
    health = sync._links["alpha"].health = Health("alpha")
    health.stop(Auth("GET /x: 401"))
    await sync.open()
    await sync.tick()
    await ended(sync)
    assert house.rows("SELECT supplier FROM run") == [("beta",)]
    states = {row["name"]: row["state"] for row in sync.suppliers()}
    assert states["alpha"].startswith("credentials refused since")
    assert states["beta"] == "up"
    await ran(sync)
    assert not health.stopped


# --- leases -----------------------------------------------------------------------------------------------------------


@POSTGRESQL
async def test_D3_two_daemons_never_sync_one_supplier_at_once(make_house: Callable[..., Any], payload: Any) -> None:
    one, two = make_house(), make_house()
    inside, most = [0], [0]
    lock = threading.Lock()

    def counted(pull: Any) -> Iterator[Any]:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        with lock:
            inside[0] -= 1
        return
        yield

    syncs = [one.sync(alpha=counted), two.sync(alpha=counted)]
    for sync in syncs:
        await sync.open()
    for _ in range(15):
        one.tamper("UPDATE supplier SET due_at = 0")
        await asyncio.gather(*[sync.tick() for sync in syncs])
        begun = sum(len(sync._runs) for sync in syncs)
        assert begun <= 1
        await ended(*syncs)
    assert most == [1]
    ((runs, epochs),) = one.rows("SELECT count(*), count(DISTINCT epoch) FROM run")
    assert runs == epochs == 15
    await two.writer.submit(sync_module.leases.ACQUIRE, _wanted("somebody else"))
    with pytest.raises(AlreadyRunningError) as refused:
        await syncs[0].start("alpha", "operator")
    assert refused.value.run is None  # it is another daemon's


def _wanted(holder: str) -> Any:
    return sync_module.leases.Acquire("alpha", holder, 60.0, 1, "schedule", only_due=False)


async def overtaken(
    make_house: Callable[..., Any], payload: Any, *, grown: tuple[str, ...] | None
) -> tuple[Any, list[str]]:
    """The harness: a holder stands still half-way past its lease, another takes over, then the first one goes on.

    The other finds the payload as it was, with ``grown`` behind it, or gone (None).
    """
    house = make_house()
    other = make_house() if house.database.postgresql else house
    keys = [f"key-{number:03d}" for number in range(30)]
    gate = Gate(payload("opaque-1", text(*keys)), after=3)
    theirs = [] if grown is None else [payload("opaque-1", text(*keys, *grown))]
    old, new = house.sync(alpha=of(gate)), other.sync(alpha=of(*theirs))
    await old.open()
    old_run = await old.start("alpha", "schedule")
    await gate.wait()
    lease_ran_out(house)
    await new.tick()
    assert list(new._runs) == ["alpha"], "nobody took over"
    await ended(new)
    look = "SELECT (SELECT count(*) FROM vault_key), epoch, holder, due_at, last_error, failures FROM supplier"
    before = house.rows(look)
    gate.opened.set()
    await ended(old)
    assert house.rows(look) == before, "the old holder wrote"
    assert gate.item.finished == [], "the old holder put the payload away"
    written = house.rows(f"SELECT error, new FROM run WHERE id = {old_run}")
    assert written == [("interrupted: its daemon stopped or stalled", 0)], "the old holder wrote its run"
    return house, [*keys, *(grown or ())]


@pytest.mark.parametrize("grown", [(), None, ("one-more",)])
async def test_D3_a_holder_that_stalls_past_its_lease_writes_nothing_more(
    make_house: Callable[..., Any], payload: Any, small_chunks: int, grown: tuple[str, ...] | None
) -> None:
    house, keys = await overtaken(make_house, payload, grown=grown)
    if grown is None:
        assert 0 < len(house.keys()) < len(keys)
        assert house.source("keys.txt")["state"] == "taking"
    elif grown:  # another content: what the old holder had taken of the first one is seen again, and told
        assert sorted(house.keys()) == sorted(keys)
    else:
        assert_nothing_doubled(house, keys)
        assert house.source("keys.txt")["state"] == "taken"


async def test_D3_a_holder_that_stalls_before_its_end_closes_nothing(
    make_house: Callable[..., Any], payload: Any
) -> None:
    """Taken over between its last payload and its end: neither the run's row nor the next due time is the old one's."""
    house = make_house()
    other = make_house() if house.database.postgresql else house
    inside, opened = threading.Event(), threading.Event()

    def stalls(pull: Any) -> Iterator[Any]:
        yield payload("opaque-1", text("key-1"))
        inside.set()
        assert opened.wait(PATIENCE_S)

    old, new = house.sync(alpha=stalls), other.sync(alpha=of())
    await old.open()
    old_run = await old.start("alpha", "schedule")
    assert await asyncio.to_thread(inside.wait, PATIENCE_S)
    lease_ran_out(house)
    assert (await ran(new))["error"] is None
    (before,) = house.rows("SELECT epoch, due_at, last_error FROM supplier")
    opened.set()
    await ended(old)
    (after,) = house.rows("SELECT epoch, due_at, last_error FROM supplier")
    assert after == before
    assert house.rows(f"SELECT error, new FROM run WHERE id = {old_run}") == [
        ("interrupted: its daemon stopped or stalled", 0)
    ]
    assert house.keys() == ["key-1"]


async def test_D3_a_lease_that_is_lost_stops_its_run_and_one_that_is_kept_does_not(
    make_house: Callable[..., Any], payload: Any
) -> None:
    house = make_house()
    short = house.settings.sync.model_copy(update={"lease": 0.3})
    house.settings = house.settings.model_copy(update={"sync": short})
    stops = threading.Event()

    def waits(pull: Any) -> Iterator[Any]:
        while not pull.stopping():
            if stops.wait(0.01):
                return
        yield payload("opaque-1", text("key-1"))

    sync = house.sync(alpha=waits)
    await sync.open()
    run_id = await sync.start("alpha", "schedule")
    await asyncio.sleep(1.0)  # three leases long: it is prolonged
    assert not sync._runs["alpha"].stop.is_set()
    house.tamper("UPDATE supplier SET epoch = epoch + 1, holder = 'somebody else'")
    await ended(sync)
    assert house.rows("SELECT count(*) FROM source") == [(0,)]
    assert sync.run(run_id)["ended_at"] is None  # the new holder closes it


# --- the harness catches what it is for -------------------------------------------------------------------------------


@pytest.mark.parametrize("grown", [None, ("one-more",)])
async def test_planted_bug_a_lease_that_is_never_checked_is_caught(
    make_house: Callable[..., Any],
    payload: Any,
    small_chunks: int,
    grown: tuple[str, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the payload's own mark does not stand in the way, only the epoch stops the old holder."""
    monkeypatch.setattr(Lease, "check", lambda *_: None)
    with pytest.raises(AssertionError, match="the old holder"):
        await overtaken(make_house, payload, grown=grown)


async def test_planted_bug_an_end_without_its_epoch_is_caught(
    make_house: Callable[..., Any], payload: Any, small_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old holder gives back a lease that is not its own any more."""
    real = Tx.execute

    def execute(self: Tx, sql: str, params: Any = ()) -> int:
        if sql.startswith("UPDATE supplier SET holder = NULL"):
            sql, params = sql.removesuffix(" AND epoch = ? AND holder = ?"), params[:-2]
        return real(self, sql, params)

    monkeypatch.setattr(Tx, "execute", execute)
    with pytest.raises(AssertionError, match="the old holder wrote"):
        await overtaken(make_house, payload, grown=())
