"""A real daemon in a process of its own: its folder, its configuration, its commands, its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "config" / "samples"

CONFIG = """
[daemon]
state_dir = "var"
listen = "127.0.0.1:{port}"
formats = ["{root}/config/formats.toml"]

[store]
url = "{url}"

[sync]
interval = "1h"
jitter = "0s"
settle = "{settle}"
lease = "{lease}"

[suppliers.files]
adapter = "feed"
folder = "feeds"

{products}

[shops.demo]
"""


def product(sku: str, form: str = "auto", more: str = "") -> str:
    return f'[products.{sku}]\ntitle = "{sku}"\nformat = "{form}"\n{more}\n'


class Daemon:
    """One installation, started as often as needed: ``wrap`` goes before the interpreter, ``script`` runs instead."""

    def __init__(self, folder: Path, url: str, products: str, *, settle: str = "50ms", lease: str = "3s") -> None:
        self.folder = folder
        self.state = folder / "var"
        self.feeds = folder / "feeds"
        self.config = folder / "syncd.toml"
        self.log = folder / "daemon.log"
        self.url = url
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.feeds.mkdir(exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.settings = {"settle": settle, "lease": lease}
        self.configure(products)

    def configure(self, products: str) -> None:
        self.config.write_text(
            CONFIG.format(port=self.port, url=self.url, products=products, root=ROOT, **self.settings)
        )

    def command(self, *words: str, script: Path | None = None) -> list[str]:
        program = ["-m", "syncd"] if script is None else [str(script)]
        return [sys.executable, *program, *words, "--config", str(self.config)]

    def launch(self, *, wrap: tuple[str, ...] = (), script: Path | None = None) -> None:
        """Start without waiting."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*wrap, *self.command("run", script=script)],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    def start(self, *, wrap: tuple[str, ...] = (), script: Path | None = None) -> float:
        """Start and wait until it is ready; the seconds that took."""
        begun = time.monotonic()
        self.launch(wrap=wrap, script=script)
        assert self.ready(), self.log.read_text()
        return time.monotonic() - begun

    def ready(self, seconds: float = 60) -> bool:
        """Wait for /readyz; False when the process ends first."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                return False
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.call("GET", "/readyz", token="")[0] == 200:
                    return True
            time.sleep(0.02)
        return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def kill(self) -> None:
        """All of it, at once, and whatever was started around it."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)

    def token(self, name: str = "shop") -> str:
        return (self.state / f"{name}.token").read_text().strip()

    def call(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, seconds: float = 20
    ) -> tuple[int, Any]:
        """(status, JSON or text). Raises OSError and HTTPException as they come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            headers = {}
            if token != "":
                headers["Authorization"] = f"Bearer {token or self.token()}"
            data = None
            if body is not None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                headers["Content-Type"] = "application/json"
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            text = response.read()
            kind = response.getheader("content-type", "")
            return response.status, json.loads(text) if "json" in kind else text.decode()
        finally:
            connection.close()

    def deliver(self, ref: str, sku: str, quantity: int = 1) -> tuple[int, Any]:
        return self.call("POST", "/v1/deliveries", {"order_ref": ref, "product": sku, "quantity": quantity})

    def stock(self) -> dict[str, int]:
        status, answer = self.call("GET", "/v1/stock")
        assert status == 200, answer
        return {row["product"]: row["cached"] for row in answer["products"]}

    def syncd(self, *words: str, code: int = 0) -> str:
        """Run one command to its end; what it printed."""
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=120, check=False, cwd=self.folder
        )
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def drop(self, sku: str, name: str, text: str) -> Path:
        """A file that a supplier sent: it appears whole."""
        folder = self.feeds / sku
        folder.mkdir(exist_ok=True)
        hidden = folder / f".{name}.part"
        hidden.write_text(text)
        hidden.rename(folder / name)
        return folder / name

    def errors(self) -> list[str]:
        """Lines of the log that no healthy daemon writes."""
        bad = ('"level": "error"', '"level": "critical"', "Traceback")
        return [line for line in self.log.read_text().splitlines() if any(word in line for word in bad)]

    def peak_mb(self) -> float:
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Make an installation; whatever still runs at the end is killed."""
    made: list[Daemon] = []

    def make(name: str, url: str, products: str, **settings: Any) -> Daemon:
        # Unix sockets have short paths: pytest's folders are too long for some systems.
        made.append(Daemon(tmp_path / name, url, products, **settings))
        return made[-1]

    yield make
    for daemon in made:
        daemon.kill()


@pytest.fixture
def samples() -> Callable[[Daemon], None]:
    """Put the sample feeds where a daemon takes files from."""

    def put(daemon: Daemon) -> None:
        shutil.copytree(SAMPLES, daemon.feeds, dirs_exist_ok=True)

    return put


@pytest.fixture
def engine_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database; SQLite's lies in the daemon's own folder."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'd' / 'var' / 'syncd.db'}"
    url: str = request.getfixturevalue("postgres_database")
    return url


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine_url" in metafunc.fixturenames and not any(
        "engine_url" in str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize")
    ):
        metafunc.parametrize("engine_url", ["sqlite", "postgresql"], indirect=True)
