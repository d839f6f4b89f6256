"""A command in this process, a configuration of its own, and an operator socket that answers what it is told."""

from __future__ import annotations

import json
import shutil
import socketserver
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from syncd.cli.app import main


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a short name (a socket's path may have 107 bytes), as the working directory."""
    path = Path(tempfile.mkdtemp(prefix="syncd-"))
    monkeypatch.chdir(path)
    for name in ("SYNCD_CONFIG", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def config(folder: Path) -> Path:
    """A small configuration where commands look for one."""
    path = folder / "config" / "syncd.toml"
    path.parent.mkdir()
    path.write_text('[daemon]\nlisten = "127.0.0.1:0"\n[products.steam]\ntitle = "Steam"\n[shops.demo]\n')
    (folder / "var").mkdir(mode=0o700)
    return path


@pytest.fixture
def syncd(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run one command in this process."""

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["syncd", *map(str, words)])
        capfd.readouterr()
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        else:
            code = None
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return Ended(code if isinstance(code, int) else int(code is not None), out, err)

    return run


@dataclass
class Asked:
    """One request that the fake daemon got."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class FakeDaemon:
    """Answers by (method, path): a JSON value, (status, value), bytes, or a function of the request giving one."""

    answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    short: int = 0  # bytes that are announced and never sent

    def on(self, method: str, path: str, answer: Any) -> None:
        self.answers[method, path] = answer


def problem(status: int, code: str, detail: str, hint: str = "", **more: Any) -> tuple[int, dict[str, Any]]:
    return status, {"type": "about:blank", "status": status, "code": code, "detail": detail, "hint": hint, **more}


class Unix(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A command that went away is part of the tests."""


@pytest.fixture
def operator(config: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *_args: Any) -> None:
            return

        def serve(self) -> None:
            url = urlsplit(self.path)
            answer = fake.answers.get((self.command, url.path))
            if getattr(answer, "at_once", False):  # refuses before it has read the body
                request = Asked(self.command, url.path, dict(parse_qsl(url.query)), b"")
                self.close_connection = True
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Asked(self.command, url.path, dict(parse_qsl(url.query)), body)
            fake.asked.append(request)
            if callable(answer):
                answer = answer(request)
            if answer is None:
                answer = problem(404, "not_found", f"there is no {url.path}")
            status, value = answer if isinstance(answer, tuple) else (200, answer)
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data) + fake.short))
            self.end_headers()
            self.wfile.write(data)
            if fake.short:
                self.close_connection = True

        do_GET = do_POST = do_DELETE = serve  # noqa: N815 - http.server's names

    with Unix(str(config.parents[1] / "var" / "operator.sock"), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield fake
        server.shutdown()
        thread.join()
