"""Round trips to PostgreSQL for the writer's hot statements: libpq's pipeline and prepared statements, nothing else.

Called by the store's transactions. A psycopg cursor costs some 80 µs of Python a statement, ten times what sending one
costs; the writer knows its statements and wants few answers: a number of rows, or one JSON document.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import pq

Statement = tuple[str, Sequence[Any]]
"""SQL with ``$1``… and what they stand for: int, str, bytes (UTF-8 text) or None."""

_INT8: Final = 20
_TEXT: Final = 25
_PREPARED: Final = 100
"""So many statements keep their plans at the server; others, of rare shapes, are planned each time."""


class Trips:
    """The round trips of one connection. Not for two threads; psycopg's cursors may be used in between."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._pg = connection.pgconn
        self._names: dict[str, bytes] = {}
        self._named = 0
        self._poll = select.poll()
        self._poll.register(self._pg.socket, select.POLLIN)

    def go(self, statements: Sequence[Statement]) -> list[pq.abc.PGresult]:
        """Send statements together, return their results. Raises psycopg.Error of the first that fails.

        The server skips what follows a statement that fails: a COMMIT at the end is reached by nobody who failed.
        """
        sent: list[str | None] = []
        self._pg.enter_pipeline_mode()
        for sql, params in statements:
            name = self._names.get(sql)
            types = [_INT8 if isinstance(value, int) else _TEXT for value in params]
            values = [_written(value) for value in params]
            if name is None and len(self._names) == _PREPARED:
                self._pg.send_query_params(sql.encode(), values, types)
            else:
                if name is None:
                    self._named += 1
                    name = self._names[sql] = b"syncd_%d" % self._named
                    self._pg.send_prepare(name, sql.encode(), types)
                    sent.append(sql)
                self._pg.send_query_prepared(name, values)
            sent.append(None)
        self._pg.pipeline_sync()
        self._flush()
        found: list[pq.abc.PGresult] = []
        failed: pq.abc.PGresult | None = None
        for prepared, result in zip(sent, self._answers(len(sent)), strict=True):
            if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
                failed = failed or result
                if prepared is not None:
                    self._names.pop(prepared)
            elif prepared is None:
                found.append(result)
        self._pg.exit_pipeline_mode()
        if failed is not None:
            raise psycopg.errors.error_from_result(failed)
        return found

    def _flush(self) -> None:
        self._poll.modify(self._pg.socket, select.POLLIN | select.POLLOUT)
        while self._pg.flush():
            if any(events & select.POLLIN for _, events in self._poll.poll()):
                self._pg.consume_input()  # a server that waits for us to read does not read either
        self._poll.modify(self._pg.socket, select.POLLIN)

    def _answers(self, count: int) -> list[pq.abc.PGresult]:
        found: list[pq.abc.PGresult] = []
        nothing = 0
        while True:
            while self._pg.is_busy():
                self._poll.poll()
                self._pg.consume_input()
            result = self._pg.get_result()
            if result is None:  # once after each statement's; twice when the connection is gone
                nothing += 1
                if nothing > 1:
                    raise psycopg.OperationalError(self._pg.get_error_message())
                continue
            nothing = 0
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                break
            found.append(result)
        if len(found) != count:
            msg = f"the server gave {len(found)} answers to {count} statements"
            raise psycopg.OperationalError(msg)
        return found


def _written(value: Any) -> bytes | None:
    if isinstance(value, bytes) or value is None:
        return value
    return str(value).encode()
