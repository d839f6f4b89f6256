"""The walk of the README with the real daemon, on both engines; its starts, its stops, and what it refuses."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

PRODUCTS = {
    "steam-wallet-50": ("steam", 24),
    "mobile-recharge-100": ("china-mobile", 20),
    "game-account": ("account", 12),
    "office-licence": ("microsoft", 15),
    "sold-out-demo": ("auto", 0),
}
ALL = "".join(f'[products.{sku}]\ntitle = "{sku}"\nformat = "{form}"\n' for sku, (form, _) in PRODUCTS.items())


def wait_for(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def test_the_walk_of_the_readme(install: Any, engine_url: str, samples: Any) -> None:
    daemon = install("d", engine_url, ALL)
    samples(daemon)
    daemon.start()
    expected = {sku: count for sku, (_, count) in PRODUCTS.items()}
    wait_for(lambda: daemon.stock() == expected)

    status, first = daemon.deliver("order-1", "steam-wallet-50", 2)
    assert (status, first["status"], first["repeat"], len(first["keys"])) == (200, "delivered", False, 2)
    status, again = daemon.deliver("order-1", "steam-wallet-50", 2)
    assert (status, again) == (200, {**first, "repeat": True})
    _, second = daemon.deliver("order-2", "steam-wallet-50", 2)
    assert not {key["text"] for key in first["keys"]} & {key["text"] for key in second["keys"]}
    assert daemon.call("GET", "/v1/deliveries/order-1")[1]["keys"] == first["keys"]
    status, problem = daemon.deliver("order-3", "sold-out-demo")
    assert (status, problem["code"]) == (409, "insufficient_stock")
    status, problem = daemon.deliver("order-1", "steam-wallet-50", 1)
    assert (status, problem["code"]) == (422, "order_ref_reused")

    metrics = daemon.call("GET", "/metrics", token="")[1].splitlines()
    for line in (
        'syncd_deliveries_total{product="steam-wallet-50",shop="demo"} 2.0',
        'syncd_delivery_repeats_total{shop="demo"} 1.0',
        'syncd_delivery_failures_total{code="insufficient_stock",shop="demo"} 1.0',
        'syncd_vault_keys{product="steam-wallet-50",state="available"} 20.0',
        'syncd_vault_keys{product="steam-wallet-50",state="delivered"} 4.0',
        'syncd_keys_sealed_total{product="game-account",supplier="files"} 12.0',
    ):
        assert line in metrics

    daemon.drop("steam-wallet-50", "more.txt", "ZZZZA-BBBBB-CCCCC\nZZZZD-BBBBB-CCCCC\n")
    assert "done" in daemon.syncd("sync")
    assert daemon.stock()["steam-wallet-50"] == 22
    assert not list(daemon.feeds.glob("*/*.txt")) + list(daemon.feeds.glob("*/*.csv")), "a taken file lies about"
    assert "whole" in daemon.syncd("audit", "verify")

    begun = time.monotonic()
    assert daemon.stop(signal.SIGINT) == 0
    assert time.monotonic() - begun < 5
    assert daemon.errors() == []

    assert daemon.start() < 10
    assert daemon.deliver("order-1", "steam-wallet-50", 2)[1]["keys"] == first["keys"]
    for name, mode in (("var", 0o700), ("var/kek", 0o600), ("var/shop.token", 0o600), ("var/operator.token", 0o600)):
        assert (daemon.folder / name).stat().st_mode & 0o777 == mode
    assert daemon.stop() == 0


def test_a_reload_drops_no_request_and_a_broken_one_changes_nothing(install: Any, engine_url: str) -> None:
    daemon = install("d", engine_url, '[products.a]\ntitle = "a"\nformat = "opaque"\n')
    daemon.drop("a", "a.txt", "".join(f"KEY-{number:06d}\n" for number in range(3000)))
    daemon.start()
    wait_for(lambda: daemon.stock()["a"] == 3000)
    statuses: list[int] = []
    over = threading.Event()

    def shop(name: int) -> None:
        turn = 0
        while not over.is_set():
            statuses.append(daemon.deliver(f"{name}-{turn}", "a")[0])
            turn += 1

    shops = [threading.Thread(target=shop, args=(number,)) for number in range(4)]
    for thread in shops:
        thread.start()
    try:
        for sku in ("b", "c"):
            daemon.configure(f'[products.a]\ntitle = "a"\nformat = "opaque"\n[products.{sku}]\ntitle = "{sku}"\n')
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGHUP)
            wait_for(lambda sku=sku: sku in daemon.stock())
        daemon.config.write_text("[daemon\n")
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reload_refused" in daemon.log.read_text())
        assert set(daemon.stock()) == {"a", "c"}
    finally:
        over.set()
        for thread in shops:
            thread.join()
    assert set(statuses) == {200}


def refused(daemon: Any) -> str:
    """Start a daemon that must not start; its one line of why."""
    daemon.log.unlink(missing_ok=True)
    daemon.launch()
    assert daemon.process.wait(30) == 78, daemon.log.read_text()
    text = daemon.log.read_text()
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("engine_url", ["sqlite"], indirect=True)
def test_S5_a_wrong_a_missing_or_an_altered_kek_is_exit_code_78(install: Any, engine_url: str) -> None:
    daemon = install("d", engine_url, '[products.a]\ntitle = "a"\n')
    daemon.start()
    daemon.stop()
    kek = daemon.state / "kek"
    kept = kek.read_text()
    kek.unlink()
    assert "no KEK" in refused(daemon)
    assert not kek.exists(), "a new KEK would open nothing"
    kek.touch(0o600)
    kek.write_text(kept[:-5] + "AAAA\n")
    assert "kek" in refused(daemon).lower()
    kek.write_text("nonsense\n")
    assert "kek" in refused(daemon).lower()
    kek.write_text(kept)
    daemon.start()


@pytest.mark.parametrize("engine_url", ["sqlite"], indirect=True)
def test_a_schema_of_another_version_is_refused(install: Any, engine_url: str) -> None:
    daemon = install("d", engine_url, '[products.a]\ntitle = "a"\n')
    daemon.start()
    daemon.stop()
    statement = "UPDATE alembic_version SET version_num = '9999'"
    if engine_url.startswith("sqlite"):
        import sqlite3

        with sqlite3.connect(daemon.state / "syncd.db") as connection:
            connection.execute(statement)
        connection.close()
    else:
        with psycopg.connect(engine_url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(statement)
    assert "newer" in refused(daemon)


def test_D1_a_second_daemon_on_one_file_is_refused(install: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'd' / 'var' / 'syncd.db'}"
    first = install("d", url, '[products.a]\ntitle = "a"\n')
    first.start()
    second = install("e", url, '[products.a]\ntitle = "a"\n')
    (tmp_path / "e" / "var").mkdir(mode=0o700)
    shutil.copy(first.state / "kek", second.state / "kek")
    assert "in use by another syncd" in refused(second)


def test_a_broken_configuration_is_named_whole(install: Any, tmp_path: Path) -> None:
    daemon = install("d", f"sqlite:///{tmp_path}/x.db", '[products.a]\ntitle = "a"\nformat = "nonsense"\n')
    daemon.config.write_text(daemon.config.read_text() + '[suppliers.x]\nadapter = "none"\n[sinc]\n')
    done = subprocess.run(daemon.command("check"), capture_output=True, text=True, check=False)
    assert done.returncode == 78
    for problem in ("sinc", "suppliers.x.adapter", "products.a.format"):
        assert problem in done.stderr


@pytest.mark.parametrize("engine_url", ["postgresql"], indirect=True)
def test_K13_two_daemons_on_one_postgresql_share_the_work(install: Any, engine_url: str) -> None:
    """Both deliver, one syncs: the books balance between them."""
    first = install("d", engine_url, '[products.a]\ntitle = "a"\nformat = "opaque"\n')
    second = install("e", engine_url, '[products.a]\ntitle = "a"\nformat = "opaque"\n')
    shutil.rmtree(second.feeds)
    second.feeds.symlink_to(first.feeds)
    first.drop("a", "a.txt", "".join(f"KEY-{number:06d}\n" for number in range(200)))
    first.start()
    second.state.mkdir(mode=0o700)
    shutil.copy(first.state / "kek", second.state / "kek")
    second.start()
    shutil.copy(first.state / "shop.token", second.state / "shop.token")
    wait_for(lambda: first.stock()["a"] == 200)
    found: list[str] = []
    for number in range(200):
        status, answer = (first, second)[number % 2].deliver(f"o-{number}", "a")
        assert status == 200, answer
        found += [key["text"] for key in answer["keys"]]
    assert sorted(found) == [f"KEY-{number:06d}" for number in range(200)]
    assert first.deliver("o-0", "a")[1]["keys"] == second.deliver("o-0", "a")[1]["keys"]
