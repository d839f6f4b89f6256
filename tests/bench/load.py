"""The load: one process, N keep-alive connections, each with one request under way; or a fixed offered rate.

Run as a script by the benchmark, so that its processor time is not the server's. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import deque
from typing import Any

import uvloop


class Connection(asyncio.Protocol):
    """One keep-alive connection. ``answered(status)`` is called for each whole response."""

    def __init__(self, answered: Any) -> None:
        self.answered = answered
        self.transport: Any = None
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self.buffer.lower().find(b"content-length:", 0, end)
        size = int(self.buffer[at + 15 : self.buffer.find(b"\r", at)])
        if len(self.buffer) < end + 4 + size:
            return
        status = self.buffer[9:12]
        self.buffer = self.buffer[end + 4 + size :]
        self.answered(self, status)

    def connection_lost(self, _error: Exception | None) -> None:
        self.answered(self, b"000")


class Load:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.times: list[float] = []
        self.statuses: dict[str, int] = {}
        self.count = 0
        self.sent: dict[Connection, float] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.head = (
            f"POST {args.path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {args.token}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self.idle: deque[Connection] = deque()
        self.waiting: deque[float] = deque()
        self.until = 0.0

    def request(self) -> bytes:
        self.count += 1
        body = b'{"order_ref":"%s-%08d","product":"%s","quantity":1}' % (
            self.args.prefix.encode(),
            self.count,
            self.args.product.encode(),
        )
        return b"%s%d\r\n\r\n%s" % (self.head, len(body), body)

    def send(self, connection: Connection, since: float) -> None:
        self.sent[connection] = since
        connection.transport.write(self.request())

    def answered(self, connection: Connection, status: bytes) -> None:
        now = time.perf_counter()
        since = self.sent.pop(connection, None)
        if since is None:
            return
        self.times.append(now - since)
        key = status.decode()
        self.statuses[key] = self.statuses.get(key, 0) + 1
        if self.args.rate:
            if self.waiting:
                self.send(connection, self.waiting.popleft())
            else:
                self.idle.append(connection)
        elif now < self.until and not connection.transport.is_closing():
            self.send(connection, now)
        elif not self.sent and not self.done.done():
            self.done.set_result(None)

    async def run(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        connections: list[Connection] = []
        for _ in range(self.args.connections):
            _, protocol = await loop.create_connection(lambda: Connection(self.answered), "127.0.0.1", self.args.port)
            connections.append(protocol)
        start = time.perf_counter()
        self.until = start + self.args.seconds
        if self.args.rate:
            # An open load: a request that finds every connection busy waits, and its wait counts.
            self.idle.extend(connections)
            due = start
            while due < self.until:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if self.idle:
                    self.send(self.idle.popleft(), due)
                else:
                    self.waiting.append(due)
                due += 1 / self.args.rate
            while self.sent or self.waiting:  # noqa: ASYNC110 - the load is over in a moment
                await asyncio.sleep(0.01)
        else:
            for connection in connections:
                self.send(connection, time.perf_counter())
            await self.done
        elapsed = time.perf_counter() - start
        for connection in connections:
            connection.transport.close()
        ordered = sorted(self.times)
        return {
            "rate": len(ordered) / elapsed,
            "p50_ms": ordered[len(ordered) // 2] * 1e3,
            "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3,
            "max_ms": ordered[-1] * 1e3,
            "statuses": self.statuses,
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/deliveries")
    parser.add_argument("--token", default="none")
    parser.add_argument("--product", default="bench")
    parser.add_argument("--prefix", default="order")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rate", type=float, default=0)
    args = parser.parse_args()

    async def run() -> dict[str, Any]:
        return await Load(args).run()

    json.dump(uvloop.run(run()), sys.stdout)


if __name__ == "__main__":
    main()
