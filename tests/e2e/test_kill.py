"""M2, D1: the daemon is killed at the n-th write of an import and of a delivery load; nothing is lost, nothing doubled.

strace kills it (SIGKILL at the entry of a system call: the write does not happen): at ``pwrite64`` with SQLite, at
``sendto`` with PostgreSQL, where every write of the daemon is a message to the server. strace counts each thread for
itself, so one n hits the writer in the middle of a batch, and a small n the start-up too.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

KEYS = 240
ORDERS = 40
IMPORT_POINTS = {
    "sqlite": [1, 2, 4, 8, 15, 30, 60],
    "postgresql": [1, 3, 6, 10, 15, 22],
}
LOAD_POINTS = {"sqlite": [4, 21, 77, 130, 250], "postgresql": [3, 10, 25, 50, 90]}
CALL = {"sqlite": "pwrite64", "postgresql": "sendto"}
PRODUCT = '[products.a]\ntitle = "a"\nformat = "opaque"\n'
PLANTED = Path(__file__).with_name("planted.py")


@pytest.fixture(scope="module", autouse=True)
def strace() -> None:
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    tried = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("strace may not trace here")


def killer(engine: str, when: int) -> tuple[str, ...]:
    call = CALL[engine]
    inject = f"inject={call}:signal=SIGKILL:when={when}"
    return ("strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", inject)


def names(point: int) -> list[str]:
    return [f"KEY-{point:04d}-{number:06d}" for number in range(KEYS)]


def wait_gone(daemon: Any, path: Path, seconds: float) -> bool:
    """Whether the daemon took the file before it died."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and daemon.process.poll() is None:
        if not path.exists() and daemon.stock()["a"]:
            return True
        time.sleep(0.02)
    return False


def import_under_kills(daemon: Any, engine: str) -> int:
    """A new file and a kill for each point; then what is left in peace. How often the daemon was killed."""
    killed = 0
    for point in IMPORT_POINTS[engine]:
        path = daemon.drop("a", f"{point}.txt", "\n".join(names(point)) + "\n")
        daemon.launch(wrap=killer(engine, point))
        with contextlib.suppress(OSError, http.client.HTTPException):
            if daemon.ready(30):
                daemon.syncd_quiet("sync")
                wait_gone(daemon, path, 20)
        killed += daemon.process.poll() is not None
        daemon.kill()
    daemon.start()
    deadline = time.monotonic() + 30
    while list(daemon.feeds.glob("a/*.txt")):
        assert time.monotonic() < deadline, "a file was not taken"
        time.sleep(4 if engine == "postgresql" else 0.1)  # a killed run's lease has to run out there
        daemon.syncd_quiet("sync")
    return killed


def all_keys(daemon: Any) -> list[str]:
    """Every key that is left, delivered."""
    found: list[str] = []
    empty = 0
    while (left := daemon.stock()["a"]) or empty < 3:  # the stock that is shown may be some moments old
        status, answer = daemon.deliver(f"rest-{len(found)}", "a", min(left or 1, 500))
        if status == 409:
            empty += 1
            time.sleep(0.1)
            continue
        assert status == 200, answer
        found += [key["text"] for key in answer["keys"]]
    return found


@pytest.fixture
def daemon(install: Any, engine_url: str) -> Iterator[Any]:
    made = install("d", engine_url, PRODUCT, lease="2s")

    def quiet(*words: str) -> None:
        subprocess.run(made.command(*words), capture_output=True, timeout=60, check=False, cwd=made.folder)

    made.syncd_quiet = quiet
    return made


def test_M2_D1_an_import_killed_at_any_write_loses_and_doubles_nothing(daemon: Any, engine_url: str) -> None:
    engine = engine_url.partition(":")[0].partition("+")[0]
    killed = import_under_kills(daemon, engine)
    assert killed >= len(IMPORT_POINTS[engine]) - 2, "the sweep did not hit"
    expected = sorted(name for point in IMPORT_POINTS[engine] for name in names(point))
    assert daemon.stock()["a"] == len(expected)
    assert sorted(all_keys(daemon)) == expected
    assert len(list(daemon.feeds.glob("a/taken/*.sealed"))) >= len(IMPORT_POINTS[engine])
    assert not list(daemon.feeds.glob("a/taken/.*")) + list(daemon.feeds.glob("a/*.txt"))
    assert "whole" in daemon.syncd("audit", "verify")


Books = dict[str, tuple[int, list[str]]]


def load(daemon: Any, prefix: str, books: Books) -> None:
    """Shops that ask for orders, each one twice and shuffled, until the daemon is gone; what was answered is noted."""
    orders = [f"{prefix}-{number}" for number in range(ORDERS)] * 2
    random.Random(prefix).shuffle(orders)
    lock = threading.Lock()

    def shop(mine: list[str]) -> None:
        for ref in mine:
            quantity = 1 + len(ref) % 2
            try:
                status, answer = daemon.deliver(ref, "a", quantity)
            except (OSError, http.client.HTTPException, ValueError):
                continue  # not acknowledged
            if status == 503:
                continue
            assert status == 200, answer
            with lock:
                note(books, ref, quantity, [key["text"] for key in answer["keys"]])

    shops = [threading.Thread(target=shop, args=(orders[number::6],)) for number in range(6)]
    for thread in shops:
        thread.start()
    for thread in shops:
        thread.join()


def note(books: Books, ref: str, quantity: int, keys: list[str]) -> None:
    """What an order was answered; the same order may never be answered otherwise. Kept, to be judged at the end."""
    books.setdefault(ref, (quantity, keys))
    if books[ref] != (quantity, keys):
        books[f"{ref}, otherwise"] = (quantity, keys)


def check(daemon: Any, books: Books, prefixes: list[str], expected: list[str]) -> None:
    """Every order exactly its keys for ever, no key in two orders, none lost; the audit whole."""
    for prefix in prefixes:
        for number in reversed(range(ORDERS)):  # not in the order in which they were first asked for
            ref = f"{prefix}-{number}"
            status, answer = daemon.deliver(ref, "a", 1 + len(ref) % 2)
            assert status == 200, answer
            note(books, ref, 1 + len(ref) % 2, [key["text"] for key in answer["keys"]])
    changed = [ref for ref in books if ref.endswith("otherwise")]
    assert not changed, "an order was answered in two ways"
    assert all(len(keys) == quantity for quantity, keys in books.values())
    sold = [key for _, keys in books.values() for key in keys]
    assert len(sold) == len(set(sold)), "a key went to two orders"
    assert sorted(sold + all_keys(daemon)) == expected
    assert "whole" in daemon.syncd("audit", "verify")


def stocked(daemon: Any, points: int) -> list[str]:
    expected = sorted(name for point in range(points) for name in names(point))
    daemon.drop("a", "all.txt", "\n".join(expected) + "\n")
    daemon.start()
    daemon.syncd("sync")
    assert daemon.stock()["a"] == len(expected)
    daemon.stop()
    return expected


def test_M2_D1_deliveries_killed_at_any_write_are_the_same_for_ever(daemon: Any, engine_url: str) -> None:
    engine = engine_url.partition(":")[0].partition("+")[0]
    points = LOAD_POINTS[engine]
    expected = stocked(daemon, len(points))
    books: Books = {}
    killed = 0
    for point in points:
        daemon.launch(wrap=killer(engine, point))
        if daemon.ready(30):
            load(daemon, f"at-{point}", books)
        killed += daemon.process.poll() is not None
        daemon.kill()
    assert killed >= len(points) - 2, "the sweep did not hit"
    daemon.start()
    check(daemon, books, [f"at-{point}" for point in points], expected)


@pytest.mark.parametrize("engine_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("bug", ["acknowledge_before_commit", "allot_without_the_unique_constraint"])
def test_control_a_planted_bug_turns_the_sweep_red(
    daemon: Any, engine_url: str, bug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stocked(daemon, 10)
    monkeypatch.setenv("PLANTED", bug)
    books: Books = {}
    points = [40, 60, 77, 100, 130, 165]
    for point in points:
        daemon.launch(wrap=killer("sqlite", point), script=PLANTED)
        if daemon.ready(30):
            load(daemon, f"at-{point}", books)
        daemon.kill()
    daemon.start()
    with pytest.raises(AssertionError, match=r"in two ways|to two orders|assert "):
        check(daemon, books, [f"at-{point}" for point in points], expected)
