"""A supplier on 127.0.0.1: real HTTP in threads, a ledger of what it charged, and faults that are switched on.

A supplier's protocol is a subclass with one method, `answer`. Faults are used up one a request, in order:

    shop.fail("/shared/commodity/trade", "lost")       # it was charged, and the answer never comes
    shop.fail("/shared/commodity/trade", "reset", "")  # the connection breaks before anything; the second try works
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

BEFORE = frozenset({"reset", "gone", "error", "page", "busy"})
"""Faults before the supplier looked at the request; the others come after it was carried out."""
HTML = b"<!DOCTYPE html><html><head><title>500</title></head><body>Deadlock found when trying to get lock</body></html>"


@dataclass(frozen=True)
class Charge:
    """Money that the supplier took."""

    reference: str
    order_id: str
    amount: Decimal
    quantity: int


@dataclass
class Ledger:
    """What was charged, in order. The truth about every test."""

    charges: list[Charge] = field(default_factory=list)

    def add(self, reference: str, order_id: str, amount: Decimal, quantity: int) -> None:
        self.charges.append(Charge(reference, order_id, amount, quantity))

    def of(self, reference: str) -> list[Charge]:
        return [charge for charge in self.charges if charge.reference == reference]

    def most(self) -> int:
        """The largest number of charges for one reference: it must never be above 1."""
        return max(Counter(charge.reference for charge in self.charges).values(), default=0)


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Loopback:
    """The supplier. ``with Shop() as shop:`` starts and stops it; `url` is where it listens."""

    def __init__(self, *, clock: Any = time.time) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.ledger = Ledger()
        self.asked: list[Asked] = []
        self.slow: dict[str, float] = {}
        """Path → seconds that an answer takes, after it was carried out."""
        self.faults: dict[str, deque[str]] = defaultdict(deque)
        self.stopped = threading.Event()
        self.url = ""

    def answer(self, asked: Asked) -> tuple[int, Any]:
        """(status, what is sent as JSON, or bytes as they are)."""
        raise NotImplementedError

    def fail(self, path: str, *faults: str) -> None:
        """The next requests for this path go wrong like this:

        ``reset``: the connection breaks before anything was done; ``gone``: likewise, without a sound (until somebody
        gives up); ``error``: status 500; ``page``: HTML; ``busy``: 429, with a Retry-After. After it was carried out:
        ``lost``: no answer comes; ``broken``: the connection breaks; ``html``: a page instead of the answer; ``cut``:
        half of the answer; ``short``: half of it, and the connection closes before the length that was announced;
        ``""``: nothing.
        """
        self.faults[path].extend(faults)

    def times(self, path: str) -> int:
        """How many requests for this path have arrived."""
        return sum(asked.path == path for asked in self.asked)

    def __enter__(self) -> Self:
        supplier = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                where = urlsplit(self.path)
                headers = {name.lower(): value for name, value in self.headers.items()}
                query = dict(parse_qsl(where.query, keep_blank_values=True))
                supplier.serve(self, Asked(self.command, where.path, query, headers, self.rfile.read(length)))

            do_GET = do_POST = _serve  # noqa: N815 - the names that http.server looks for

            def log_message(self, *_: Any) -> None:
                """Nothing on the terminal."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Whoever gave up waiting is no error here."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self, handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        with self.lock:
            self.asked.append(asked)
            fault = self.faults[asked.path].popleft() if self.faults[asked.path] else ""
        status, said = (500, HTML) if fault in BEFORE else self.answer(asked)
        body = said if isinstance(said, bytes) else json.dumps(said, ensure_ascii=False).encode()
        if self.slow.get(asked.path):
            self.stopped.wait(self.slow[asked.path])
        if fault in {"reset", "broken"}:
            linger = struct.pack("ii", 1, 0)  # closing then sends RST
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            handler.close_connection = True
            handler.connection.close()
            return
        if fault in {"gone", "lost"}:
            self.stopped.wait(10)
            handler.close_connection = True
            return
        status, body = (200, HTML) if fault in {"html", "page"} else (status, body)
        status = 429 if fault == "busy" else status
        body = body[: len(body) // 2] if fault == "cut" else body
        handler.send_response(status)
        handler.send_header("Content-Type", "text/html" if body == HTML else "application/json; charset=utf-8")
        handler.send_header("Content-Length", str(len(body)))
        if fault == "busy":
            handler.send_header("Retry-After", "3")
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if fault == "short" else body)
        handler.close_connection = handler.close_connection or fault == "short"
