"""Client of the running daemon: HTTP over its operator socket. Used by every command that talks to the daemon (K12).

On the standard library's http.client: httpx belongs to suppliers. Whoever may open the socket is the operator.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final
from urllib.parse import quote, urlencode

from syncd.cli import configuration
from syncd.cli.output import Tell
from syncd.errors import SyncdError

EXIT_UNREACHABLE: Final = 75  # sysexits.h EX_TEMPFAIL: the same command may work later
_BLOCK: Final = 256 * 1024
_ANSWER_S: Final = 60.0


class UnreachableError(SyncdError):
    """No daemon answers on the operator socket."""

    code: ClassVar[str] = "daemon_not_reachable"
    exit_code: ClassVar[int] = EXIT_UNREACHABLE


class RefusedError(SyncdError):
    """The daemon said no. ``answered`` is the status, ``problem`` the problem document with its stable ``code``."""

    code: ClassVar[str] = "refused"

    def __init__(self, answered: int, problem: Mapping[str, Any]) -> None:
        message = problem.get("detail") or problem.get("title") or f"the daemon answered {answered}"
        super().__init__(str(message), hint=str(problem.get("hint") or ""))
        self.answered = answered
        self.problem = problem

    @property
    def reason(self) -> str:
        """The problem's stable code."""
        return str(self.problem.get("code", ""))


class _Connection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Operator:
    """The daemon behind one operator socket. Every call raises UnreachableError and RefusedError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, given: Path | None) -> Operator:
        """The daemon that runs on a configuration."""
        return cls(configuration.settings(given).daemon.operator_socket)

    def get(self, path: str, **query: Any) -> Any:
        """What lies at a path; query values of None are left out."""
        return self._json("GET", _url(path, query))

    def post(self, path: str, body: Mapping[str, Any] | None = None, *, wait: bool = False, **query: Any) -> Any:
        """The answer to a request with a JSON body. ``wait`` for work that may take as long as it takes."""
        return self._json("POST", _url(path, query), {} if body is None else body, wait=wait)

    def delete(self, path: str) -> Any:
        """The answer to a DELETE."""
        return self._json("DELETE", path)

    def upload(self, path: str, file: BinaryIO, tell: Tell, **query: Any) -> Any:
        """Stream a file to the daemon; the JSON answer."""
        with self._sent(_url(path, query), file, tell) as response:
            return _decoded(response.read())

    def through(self, path: str, file: BinaryIO, tell: Tell) -> Iterator[bytes]:
        """Stream a file to the daemon; the blocks of its answer. Raises UnreachableError when that ends early."""
        with self._sent(path, file, tell) as response:
            while block := response.read(_BLOCK):
                yield block
            if response.length:  # asked for a block, http.client takes an early end for the end
                raise http.client.IncompleteRead(b"", response.length)

    def _json(self, method: str, url: str, body: Mapping[str, Any] | None = None, *, wait: bool = False) -> Any:
        connection = _Connection(self.path, None if wait else _ANSWER_S)
        with self._answering(connection):
            data = None if body is None else json.dumps(body).encode()
            headers = {"Accept": "application/json"} | (
                {"Content-Type": "application/json"} if data is not None else {}
            )
            connection.request(method, url, data, headers)
            return _decoded(_accepted(connection.getresponse()).read())

    @contextlib.contextmanager
    def _sent(self, url: str, file: BinaryIO, tell: Tell) -> Iterator[http.client.HTTPResponse]:
        """A request whose body is a file. A thread of its own sends it: the answer may come before the body's end."""
        total = os.fstat(file.fileno()).st_size
        connection = _Connection(self.path, None)
        with self._answering(connection):
            connection.putrequest("POST", url)
            connection.putheader("Content-Type", "application/octet-stream")
            connection.putheader("Content-Length", str(total))
            connection.endheaders()
            sender = threading.Thread(target=_send, args=(connection.sock, file, total, tell), daemon=True)
            sender.start()
            yield _accepted(connection.getresponse())

    @contextlib.contextmanager
    def _answering(self, connection: http.client.HTTPConnection) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, ConnectionRefusedError):
            raise UnreachableError(
                f"no daemon answers on {self.path}", hint="start it with: syncd run (or: systemctl start syncd)"
            ) from None
        except PermissionError:
            raise UnreachableError(
                f"you may not use {self.path}", hint="only root and the daemon's user may: try sudo, or sudo -u syncd"
            ) from None
        except TimeoutError:
            raise UnreachableError(
                f"the daemon on {self.path} does not answer", hint="look at its log: journalctl -u syncd"
            ) from None
        except (http.client.HTTPException, ConnectionError):
            raise UnreachableError(
                f"the daemon on {self.path} ended in the middle of an answer",
                hint="look at its log, then run this again: no command does its work twice",
            ) from None
        finally:
            connection.close()


def _send(sock: socket.socket, file: BinaryIO, total: int, tell: Tell) -> None:
    """The body, exactly as long as announced. A daemon that refuses stops listening: its answer says why."""
    left = total
    with contextlib.suppress(OSError):
        while left and (block := file.read(min(_BLOCK, left))):
            sock.sendall(block)
            left -= len(block)
            tell(total - left, total)
        if left:  # the file has shrunk meanwhile
            sock.shutdown(socket.SHUT_WR)


def _accepted(response: http.client.HTTPResponse) -> http.client.HTTPResponse:
    if response.status < 400:  # noqa: PLR2004 - where refusals begin
        return response
    body = response.read()
    try:
        problem = json.loads(body)
    except ValueError:
        problem = {}
    raise RefusedError(response.status, problem if isinstance(problem, dict) else {})


def _decoded(body: bytes) -> Any:
    return json.loads(body) if body else None


def _url(path: str, query: Mapping[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def part(text: str) -> str:
    """Text as one part of a path."""
    return quote(text, safe="")


def rows(answer: Any, name: str = "items") -> list[dict[str, Any]]:
    """The list in an answer: the answer itself, or under ``name``."""
    found = answer.get(name, []) if isinstance(answer, dict) else answer
    return [row for row in found if isinstance(row, dict)]
