"""Answering with a whole body at once. Called by the hot route and by problems.

ASGI says an answer in two messages, and uvicorn writes each of them by itself: two system calls, and two wake-ups of
whoever reads. Where the server is uvicorn's own cycle, both go out as one; anywhere else, as ASGI has it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]


async def send_whole(send: Send, status: int, body: bytes, found: Sequence[Header]) -> None:
    """Answer with a whole body. ``found`` are headers of our own making: nothing of them is checked again."""
    length = b"%d" % len(body)
    cycle = getattr(send, "__self__", None)
    if type(cycle) is RequestResponseCycle and not (
        cycle.disconnected or cycle.response_started or cycle.flow.write_paused or cycle.scope["method"] == "HEAD"
    ):
        _write(cycle, status, body, [*cycle.default_headers, *found, (b"content-length", length)])
        return
    headers = [*found, (b"content-length", length)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _write(cycle: RequestResponseCycle, status: int, body: bytes, headers: Sequence[Header]) -> None:
    """What `RequestResponseCycle.send` does with both messages, in one write."""
    cycle.response_started = True
    cycle.waiting_for_100_continue = False
    said = b"\r\n".join([b"%s: %s" % header for header in headers])
    if (b"connection", b"close") in headers:
        cycle.keep_alive = False
    elif not cycle.keep_alive:
        said += b"\r\nconnection: close"
    cycle.transport.write(b"%s%s\r\n\r\n%s" % (STATUS_LINE[status], said, body))
    cycle.expected_content_length = 0
    cycle.response_complete = True
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
