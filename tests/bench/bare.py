"""The ceiling of the HTTP benchmark: a POST that reads the same body, writes a like answer, and does nothing else.

On the daemon's own server settings, so that the ratio tells what deliveries cost beyond HTTP itself.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from syncd.config import Daemon
from syncd.storefronts.server import Server


class Asked(msgspec.Struct):
    order_ref: str
    product: str
    quantity: int


decode = msgspec.json.Decoder(Asked).decode
encode = msgspec.json.Encoder().encode


async def app(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    if scope["method"] == "POST":
        asked = decode((await receive())["body"])
        text = "AAAAA-BBBBB-CCCCC"
        key = {"id": "383182205045702656", "fields": {"code": text}, "text": text, "expires_at": None}
        body = encode({"status": "delivered", "order_ref": asked.order_ref, "quantity": asked.quantity, "keys": [key]})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="syncd-bench-bare-") as name:
        folder = Path(name)
        settings = Daemon.model_construct(
            listen=("127.0.0.1", int(sys.argv[1])),
            api_socket=folder / "api.sock",
            operator_socket=folder / "operator.sock",
            socket_group=None,
        )
        server = Server(app, settings)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await server.start()
        await stop.wait()
        await server.stop()


uvloop.run(main())
