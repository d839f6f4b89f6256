"""The HTTP server inside the daemon's own loop: one TCP port and two unix sockets, on uvicorn's protocol.

Called by the daemon. Of uvicorn it takes the HTTP/1.1 protocol only; binding, the sockets' owners, limits and stopping
are here, because the daemon decides about signals and start order. A connection over a unix socket is marked with its
peer as the kernel knows it, which is all that access.py needs to know of sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
import struct
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import structlog
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from syncd.config import Daemon
from syncd.errors import InvalidRequestError, StartError, SyncdError
from syncd.storefronts import problems
from syncd.storefronts.access import Peer

log = structlog.get_logger(__name__)

KEEP_ALIVE_S: Final = 60
STOP_S: Final = 3.0
MAX_CONNECTIONS: Final = 1000
_BACKLOG: Final = 2048
_HEAD_BYTES: Final = 32 * 1024
_SILENT_S: Final = 20.0
"""How long a request may stand half-sent without a byte arriving."""
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid

Listener = Literal["tcp", "api", "operator"]


class HeadersTooLargeError(SyncdError):
    """The request's head is larger than any of ours is."""

    code = "headers_too_large"
    status = 431


class _Protocol(HttpToolsProtocol):
    """One connection. Knows its peer, and refuses in the API's own form what is no HTTP."""

    def __init__(self, listener: Listener, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.listener = listener
        self.peer: Peer | None = None
        self.heard = time.monotonic()
        self._head = 0
        self._in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS and self.listener != "operator":
            transport.abort()
        elif self.listener != "tcp":
            self.peer = _peer(self.listener, transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        if self._in_head:
            self._head += len(data)
        super().data_received(data)
        if self._in_head and self._head > _HEAD_BYTES and not self.transport.is_closing():
            self._refuse(HeadersTooLargeError("the request's head is too large"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self.peer is not None:
            self.scope["syncd.peer"] = self.peer  # type: ignore[typeddict-unknown-key]

    def on_headers_complete(self) -> None:
        self._in_head, self._head = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words
        """What is no HTTP at all."""
        self._refuse(InvalidRequestError("this is not an HTTP/1.1 request"))

    def _refuse(self, error: SyncdError) -> None:
        body = problems.document(error)
        phrase = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}[error.status]
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
            % (error.status, phrase, problems.MEDIA.encode(), len(body), body)
        )
        self.transport.close()

    def stalled(self, now: float) -> bool:
        """Whether this connection waits for the rest of a request that does not come."""
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn leaves its None untyped
        flow: FlowControl | None = self.flow
        if (flow and flow.read_paused) or now - self.heard < _SILENT_S:
            return False
        if cycle is None or cycle.response_complete:
            return cycle is None or bool(self._head)
        return cycle.more_body


def _peer(listener: Literal["api", "operator"], connection: socket.socket) -> Peer:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:  # a user of another container
        user = ""
    return Peer(listener, uid, user)


class Server:
    """Serves ``app`` where the configuration says. ``start`` binds everything or nothing, ``stop`` is graceful."""

    def __init__(self, app: Callable[..., Any], settings: Daemon) -> None:
        self._settings = settings
        self._config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # X-Forwarded-For must not make anybody local
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []
        self._paths: list[tuple[Path, int]] = []
        self._tick: asyncio.Task[None] | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The TCP port, once started: the configured one, or the one that the system chose for 0."""
        return self._port

    async def start(self) -> None:
        """Bind the port and both sockets, then serve on all of them. Raises StartError, and has bound nothing then."""
        settings = self._settings
        bound: list[tuple[Listener, socket.socket]] = []
        try:
            bound.append(("tcp", _tcp(*settings.listen)))
            self._port = bound[0][1].getsockname()[1]
            bound.append(("api", self._unix(settings.api_socket, 0o660, settings.socket_group)))
            bound.append(("operator", self._unix(settings.operator_socket, 0o600, None)))
            self._config.load()
            self._date()
            loop = asyncio.get_running_loop()
            for listener, sock in bound:
                make = partial(_Protocol, listener, config=self._config, server_state=self._state, app_state={})
                serve = loop.create_server if listener == "tcp" else loop.create_unix_server
                self._servers.append(await serve(make, sock=sock, backlog=_BACKLOG))
        except BaseException:
            for server in self._servers:
                server.close()
            for _, sock in bound:
                sock.close()
            self._unlink()
            raise
        self._tick = asyncio.create_task(self._watch())

    async def stop(self, timeout: float = STOP_S) -> None:  # noqa: ASYNC109 - a promise to the daemon, not a wish
        """Take no new connection, finish the requests under way, then close; what takes longer is cut off."""
        if self._tick:
            self._tick.cancel()
        for server in self._servers:
            server.close()
        self._unlink()
        for connection in list(self._state.connections):
            connection.shutdown()
        tasks = set(self._state.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()
            if late:
                log.warning("requests_cut_off", requests=len(late))
        for connection in list(self._state.connections):
            # A request's last bytes may still lie in the transport: close writes them out.
            connection.transport.close()
        await asyncio.sleep(0)

    def _unix(self, path: Path, mode: int, group: str | None) -> socket.socket:
        sock = _unix(path, mode, group)
        self._paths.append((path, path.stat().st_ino))
        return sock

    def _unlink(self) -> None:
        """Remove the socket files, if they are still ours."""
        for path, inode in self._paths:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()
        self._paths.clear()

    def _date(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]

    async def _watch(self) -> None:
        """Each second: the date of the answers, and connections that wait for nothing."""
        while True:
            await asyncio.sleep(1)
            self._date()
            now = time.monotonic()
            for connection in list(self._state.connections):
                if isinstance(connection, _Protocol) and connection.stalled(now):
                    connection.transport.abort()


def _tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises StartError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sock = socket.socket(found[0][0], socket.SOCK_STREAM)
    except OSError as error:
        raise StartError(f"{host} is not an address of this machine: {error.strerror}", hint=_LISTEN) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)  # noqa: FBT003 - the system's own signature
        sock.bind(found[0][4])
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"port {port} of {host} is taken by another program", hint=_LISTEN) from None
        raise StartError(f"{host}:{port} cannot be listened on: {error.strerror}", hint=_LISTEN) from None
    return sock


_LISTEN: Final = "set another one in [daemon] listen"


def _unix(path: Path, mode: int, group: str | None) -> socket.socket:
    """A listening unix socket, which only those may connect to who should, from the start. Raises StartError."""
    _make_room(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - the system's own signature
        sock.bind(str(path))
        # Nobody can connect before listen(): until then, owner and mode are nobody's concern.
        path.chmod(mode)
        if group is not None:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        sock.listen(_BACKLOG)
    except KeyError:
        sock.close()
        path.unlink(missing_ok=True)
        raise StartError(f"there is no group {group}", hint="create it, or correct [daemon] socket_group") from None
    except OSError as error:
        sock.close()
        why = error.strerror or str(error)
        raise StartError(f"the socket {path} cannot be made: {why}", hint="correct its path in [daemon]") from None
    return sock


def _make_room(path: Path) -> None:
    """Remove a socket that a dead daemon left behind; whoever listens on one keeps it."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(f"{path} cannot be looked at: {error.strerror}", hint="correct its path in [daemon]") from None
    if not stat.S_ISSOCK(kind):
        raise StartError(f"{path} is there already, and is not a socket", hint="move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise StartError(f"{path} cannot be used: {error.strerror}", hint="is another syncd running?") from None
    raise StartError(f"somebody listens on {path} already", hint="is another syncd running? stop it first")
