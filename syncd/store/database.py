"""One database, one writer: engines for SQLite and PostgreSQL, the writer thread with group commit, the daemon's lock.

Every change in syncd is a small *unit of work*, handed to `Writer`, which runs whatever is queued in one transaction
and acknowledges after the commit. Units of one kind are handed to that kind's ``run`` together, so that a batch of
claims is a few set-based statements, not a few statements each. Deliveries go ahead of control work, and control work
ahead of ingest; ingest commits alone, in chunks of a few milliseconds, so that a delivery never waits long.

Hot statements run on the driver's own cursor (SQLAlchemy's execution layer costs more than the statement itself);
everything else is SQLAlchemy Core on the same connection. docs/adr/0002 and 0003 say why.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec
import structlog
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.pool import NullPool, QueuePool

from syncd.errors import LockedError, SchemaError, StartError, SyncdError, UnavailableError
from syncd.model import MAX_NODES, Clock, SecretText
from syncd.store import tables

if TYPE_CHECKING:
    from syncd.metrics import Metrics
    from syncd.store.trips import Statement, Trips

log = structlog.get_logger(__name__)

P = TypeVar("P")
R = TypeVar("R")
Row = tuple[Any, ...]

MIN_SQLITE: Final = (3, 35)  # RETURNING
_NOTICE_A_DEAD_PEER: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""A server whose machine went without a word is lost within 25 s: the kernel's own patience is a quarter of an hour."""
PRAGMAS: Final = {
    "journal_mode": "wal",
    "synchronous": "2",  # FULL: WAL with NORMAL loses acknowledged commits at a power cut
    "foreign_keys": "1",
    "busy_timeout": "5000",
    "wal_autocheckpoint": "0",  # the writer checkpoints, off the commit path, on its own connection
    "temp_store": "2",
    "cache_size": "-24576",  # KiB
}
_ADVISORY_CLASS: Final = 0x73796E63  # "sync": the namespace of our advisory locks on PostgreSQL
_ROWS_A_STATEMENT: Final = 64  # SQLite: more rows in one VALUES list gain nothing, and each length is prepared once

_REMEMBERED: Final = 256  # statements of `Tx.ask`
_MIGRATIONS: Final = Path(__file__).parent / "migrations"


_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder(list[list[Any]]).decode
_BEGIN: Final[Statement] = ("BEGIN", ())
_PAGE: Final = 4096
_U32: Final = struct.Struct("=I")

# PostgreSQL types of the columns that bulk statements bind.
COLUMN_TYPES: Final = {"int": "bigint", "text": "text", "bytes": "text"}


class RetryBatch(Exception):  # noqa: N818 - a signal to the writer, not an error
    """Raised by a unit that lost a race to another daemon: roll the batch back and run it again."""


class Lane(IntEnum):
    """Order of service in the writer's queue."""

    DELIVERY = 0
    CONTROL = 1
    INGEST = 2


@dataclass(frozen=True, slots=True, eq=False)
class Work(Generic[P, R]):
    """A kind of unit. ``run`` gets all queued payloads of its kind and returns one outcome each, in order.

    An expected refusal is an outcome, an exception *returned* fails that unit alone, an exception *raised* rolls the
    batch back (K1). ``run`` may be called again with the same payloads, so it keeps no state outside the transaction.
    """

    name: str
    lane: Lane
    run: Callable[[Tx, Sequence[P]], Sequence[R | BaseException]]


@dataclass(slots=True)
class _Attempt:
    """How the writing of one batch goes."""

    deadline: float
    races: int = 0
    tx: Tx | None = None
    committing: bool = False
    started: float = 0.0


@dataclass(slots=True, eq=False)
class _Unit:
    work: Work[Any, Any]
    payload: Any
    future: Future[Any] | asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop | None
    outcome: Any = None


@dataclass(frozen=True, slots=True)
class Change:
    """One set-based statement that returns nothing, as `Tx.bulk` takes it."""

    sql: str
    columns: str
    rows: Sequence[Sequence[Any]]
    params: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """One query for `Tx.ask`, over ``rows`` where it has some, as `Tx.bulk` takes them.

    ``gives`` declares what it selects as ``columns`` declares the rows; bytes come as bytes.
    """

    sql: str
    gives: str
    columns: str = ""
    rows: Sequence[Sequence[Any]] = ()
    params: Sequence[Any] = ()


class Tx:
    """One transaction of the writer, as a unit of work sees it."""

    __slots__ = (
        "_begun",
        "_cursor",
        "_database",
        "_last",
        "_trips",
        "at",
        "foreseen",
        "found",
        "head",
        "lone",
        "notes",
        "xid",
    )

    def __init__(self, database: Database, cursor: Any, trips: Trips | None) -> None:
        self._database = database
        self._cursor = cursor
        self._trips = trips
        self.at = int(database.clock.now())
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.xid: str | None = None
        self.head: tuple[int, bytes] | None = None
        """The audit's last entry (number, mac), where this writer wrote it. On PostgreSQL another daemon may have moved
        it since: whoever goes by it has the commit fail then.
        """
        self.lone = False
        """Whether the batch is of one kind: then nobody locks anything after its changes but the audit's head."""
        self.found: tuple[int, bytes] | None = None
        """Where the audit's head was, if it was asked for."""
        self.foreseen: list[Row] | None = None
        """What the audit's question for its head gave, where that travelled with a change."""
        self._last: list[Change] = []
        # PostgreSQL: BEGIN travels with the first statement, a round trip less.
        self._begun = not database.postgresql
        if self._begun:
            cursor.execute("BEGIN IMMEDIATE")

    @property
    def postgresql(self) -> bool:
        """Whether this runs on PostgreSQL (row locks are needed) or on SQLite (the writer is alone)."""
        return self._database.postgresql

    def audit(self, kind: str, **body: Any) -> None:
        """Note an audit entry; it is chained and written by the batch's last statements (K8)."""
        self.notes.append((kind, body))

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run one statement with ``?`` markers, return its rows."""
        self._run(self._database.marked(sql), params)
        return self._cursor.fetchall() if self._cursor.description else []

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run one statement with ``?`` markers, return the number of rows it changed."""
        self._run(self._database.marked(sql), params)
        return int(self._cursor.rowcount)

    def command(self, sql: str) -> None:
        """Run a statement about the transaction itself. psycopg would answer a ROLLBACK with a DEALLOCATE ALL."""
        if self._trips is None:
            self._cursor.execute(sql)
        else:
            self._together([(sql, ())])

    def bulk(self, sql: str, columns: str, rows: Sequence[Sequence[Any]], params: Sequence[Any] = ()) -> list[Row]:
        """Run one set-based statement over ``rows``, return what it returns (its RETURNING, in no given order).

        ``columns`` declares the rows as ``"id int, order_ref text, mac bytes"``; in ``sql`` they are the table
        ``rows``. ``params`` fill the ``?`` markers of ``sql``. Long row lists are cut where the engine gains by it.
        """
        found: list[Row] = []
        for start in range(0, len(rows), self._database.bulk_rows):
            part = rows[start : start + self._database.bulk_rows]
            statement, bound = self._database.bulk_statement(sql, columns, part)
            self._run(statement, [*bound, *params])
            if self._cursor.description:
                found.extend(self._cursor.fetchall())
        return found

    def ask(self, *questions: Question) -> list[list[Row]]:
        """What each query gives, in no given order: all of them as one statement, and as one document.

        sqlite3 gives the interpreter to another thread at every statement and at every row that it fetches: beside a
        busy event loop, each costs more than all of the query. On PostgreSQL all see the same moment.
        """
        statement, params = self._database.asked(questions)
        documents: Sequence[str]
        if self._trips is None:
            (documents,) = self.query(statement, params)
        else:
            *documents, self.xid = _first(self._together([(statement, params)])[0])
        return [_rows(document, q.gives) for document, q in zip(documents, questions, strict=True)]

    def change(self, changes: Sequence[Change]) -> list[int]:
        """Run statements that return nothing one after the other: the rows that each changed. One round trip."""
        if self._trips is not None:
            results = self._together([self._database.over(change) for change in changes])
            return [int(result.command_tuples or 0) for result in results]
        size = self._database.bulk_rows
        connection = self._cursor.connection
        changed = []
        for change in changes:
            before = connection.total_changes  # sqlite3 keeps no rowcount of a statement that begins with WITH
            for start in range(0, len(change.rows), size):
                part = change.rows[start : start + size]
                statement, bound = self._database.bulk_statement(change.sql, change.columns, part)
                self._run(statement, [*bound, *change.params])
            changed.append(connection.total_changes - before)
        return changed

    def settle(self, changes: Sequence[Change], head: Question) -> None:
        """The last changes of a kind, each of as many rows as it has; on PostgreSQL none sees what another writes.

        Raises RetryBatch where one changed less. On PostgreSQL the server finds that out, and where the audit's head
        is known and nothing else is in the batch, they travel with the commit.
        """
        if self._trips is None:
            if self.change(changes) != [len(change.rows) for change in changes]:
                raise RetryBatch
        elif not self.lone:
            self._together([self._database.held(changes)])
        elif self.head is None:
            _, found = self._together([self._database.held(changes), self._database.asked([head])])
            document, self.xid = _first(found)
            self.foreseen = _rows(document, head.gives)
        else:
            self.last(*changes)

    def _run(self, statement: str, params: Sequence[Any]) -> None:
        if self._begun:
            self._cursor.execute(statement, params)
            return
        self._begun = True
        connection = self._cursor.connection
        with connection.pipeline():
            connection.cursor().execute("BEGIN")
            self._cursor.execute(statement, params)

    def _together(self, statements: Sequence[Statement]) -> list[Any]:
        """PostgreSQL: what statements gave that travelled in one round trip, BEGIN before them if it is due."""
        import psycopg

        assert self._trips is not None  # noqa: S101 - asked by the callers
        due = [] if self._begun else [_BEGIN]
        self._begun = True
        try:
            return self._trips.go([*due, *statements])[len(due) :]
        except psycopg.errors.DivisionByZero:  # what `Database.held` fails with
            raise RetryBatch from None

    def last(self, *changes: Change) -> None:
        """Changes that travel with the commit, as `settle` has them. PostgreSQL only."""
        self._last += changes

    def commit(self) -> None:
        """End the transaction. Called by the writer. Raises RetryBatch where what travels along came too late."""
        if self._trips is None:
            self._run("COMMIT", ())
        else:
            self._together([*([self._database.held(self._last)] if self._last else ()), ("COMMIT", ())])

    def now(self) -> float:
        """The database's time in Unix seconds: what leases are measured with (D3)."""
        if not self.postgresql:
            return self._database.clock.now()
        return float(self.query("SELECT extract(epoch FROM clock_timestamp())::float8")[0][0])


class Database:
    """The engines of one database, its schema, and the lock that keeps a second daemon off a SQLite file.

    ``url`` is ``sqlite:///PATH`` or ``postgresql+psycopg://…``. Raises StartError for a database that cannot be
    trusted with money (a PRAGMA that does not stick, fsync switched off, a library that is too old).
    """

    def __init__(self, url: str, *, password: SecretText | None = None, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.url: URL = make_url(url)
        if password is not None:
            self.url = self.url.set(password=password.reveal())
        self.postgresql = self.url.get_backend_name() == "postgresql"
        self.bulk_rows = 10_000 if self.postgresql else _ROWS_A_STATEMENT
        self._marked: dict[str, str] = {}
        self._bulk: dict[tuple[str, int], str] = {}
        self._over: dict[tuple[str, ...], str] = {}
        self._asked: dict[tuple[tuple[str, int], ...], str] = {}
        self._lock_file: IO[str] | None = None
        self._wal_index: int | None = None
        if not self.postgresql and sqlite3.sqlite_version_info < MIN_SQLITE:
            msg = f"SQLite {sqlite3.sqlite_version} is too old"
            raise StartError(msg, hint="Python must be linked with SQLite 3.35 or newer")
        self.engine: Engine = self._engine(read_only=False)
        self._readers: Engine = self._engine(read_only=True)

    @property
    def path(self) -> Path:
        """The SQLite file."""
        return Path(self.url.database or "")

    def _engine(self, *, read_only: bool) -> Engine:
        if self.postgresql:
            engine = create_engine(
                self.url,
                isolation_level="AUTOCOMMIT",
                hide_parameters=True,
                poolclass=QueuePool if read_only else NullPool,
                pool_pre_ping=read_only,
                connect_args={"connect_timeout": 5, "application_name": "syncd", **_NOTICE_A_DEAD_PEER},
            )
        else:
            engine = create_engine(
                self.url,
                isolation_level="AUTOCOMMIT",
                hide_parameters=True,
                poolclass=QueuePool if read_only else NullPool,
                connect_args={"check_same_thread": False, "cached_statements": 1024},
            )

        @event.listens_for(engine, "connect")
        def prepare(connection: Any, _record: object) -> None:
            if self.postgresql:
                self._prepare_postgresql(connection, read_only=read_only)
            else:
                self._prepare_sqlite(connection, read_only=read_only)

        return engine

    def _prepare_sqlite(self, connection: sqlite3.Connection, *, read_only: bool) -> None:
        for name, value in PRAGMAS.items():
            connection.execute(f"PRAGMA {name}={value}")
            (got,) = connection.execute(f"PRAGMA {name}").fetchone()
            if str(got) != value:
                msg = f"SQLite does not accept PRAGMA {name}={value} on {self.path}: it answers {got}"
                raise StartError(msg, hint="the file must lie on a local disk that supports shared memory")
        if read_only:
            connection.execute("PRAGMA query_only=1")
            connection.execute("PRAGMA cache_size=-2048")  # each reader has a cache of its own

    def _prepare_postgresql(self, connection: Any, *, read_only: bool) -> None:
        connection.autocommit = True
        cursor = connection.cursor()
        (fsync,) = cursor.execute("SHOW fsync").fetchone()
        if fsync != "on":
            msg = "PostgreSQL runs with fsync=off: it forgets acknowledged deliveries at a power cut"
            raise StartError(msg, hint="set fsync = on in postgresql.conf and reload the server")
        cursor.execute("SET synchronous_commit = on")
        cursor.execute("SET default_transaction_isolation = 'read committed'")
        if not read_only:
            # Every statement of the writer looks up a few rows by an index; statistics that are missing or old must
            # never talk the planner into reading a table of a million keys.
            for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"):
                cursor.execute(f"SET {setting} = off")
            cursor.execute("SET plan_cache_mode = force_generic_plan")  # and it never plans the same twice

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only connection for one consistent read; call it from a thread, never from the event loop."""
        with self._readers.connect() as connection:
            connection.exec_driver_sql(
                "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY" if self.postgresql else "BEGIN"
            )
            try:
                yield connection
            finally:
                connection.exec_driver_sql("ROLLBACK")

    def lock(self) -> None:
        """Keep every other daemon, and every command that writes, off this SQLite file (D1). Raises LockedError.

        On PostgreSQL several daemons share a database; there this does nothing.
        """
        if self.postgresql or self._lock_file:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = Path(f"{self.path}.lock").open("a+", encoding="ascii")  # noqa: SIM115 - held for the daemon's life
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            msg = f"{self.path} is in use by another syncd (process {holder})"
            raise LockedError(msg, hint="stop it first, or give this one a database of its own") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._lock_file = file

    def close(self) -> None:
        """Close every connection and give the lock back."""
        self._readers.dispose()
        self.engine.dispose()
        if self._wal_index is not None:
            os.close(self._wal_index)
            self._wal_index = None
        if self._lock_file:
            self._lock_file.close()
            self._lock_file = None

    def wal_backlog(self) -> int:
        """Bytes in SQLite's log that a checkpoint has yet to move; the file's size says nothing, it is never cut.

        Read off the WAL index as SQLite's file format documents it: mxFrame at byte 16, nBackfill at byte 96. The
        file is kept open until no connection is left: closing it would drop SQLite's own locks on it.
        """
        if self.postgresql:
            return 0
        if self._wal_index is None:
            try:
                self._wal_index = os.open(f"{self.path}-shm", os.O_RDONLY)
            except FileNotFoundError:
                return 0
        head = os.pread(self._wal_index, 100, 0)
        if len(head) < 100:  # noqa: PLR2004 - not mapped yet
            return 0
        return int(max(0, _U32.unpack_from(head, 16)[0] - _U32.unpack_from(head, 96)[0])) * _PAGE

    # --- schema -----------------------------------------------------------------------------------------------------

    def revision(self) -> tuple[str | None, str]:
        """(revision of this database or None when it is empty, revision that this program wants)."""
        with self.engine.connect() as connection:
            current = None
            if inspect(connection).has_table("alembic_version"):
                current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return current, _revisions()[-1]

    def check_schema(self) -> None:
        """Refuse a database of another schema with a clear word. An empty one migrates itself. Raises SchemaError."""
        current, head = self.revision()
        if current is None:
            self.upgrade()
        elif current != head:
            if current in _revisions():
                msg = f"the database's schema is {current}, older than this syncd's {head}"
                raise SchemaError(msg, hint="make a backup, then run: syncd db upgrade")
            msg = f"the database's schema is {current}, which this syncd ({head}) does not know"
            raise SchemaError(msg, hint="it was written by a newer syncd: run that one")

    def upgrade(self) -> tuple[str | None, str]:
        """Bring the schema up to date in one transaction; returns (revision before, revision now)."""
        from alembic import command
        from alembic.config import Config

        before, head = self.revision()
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN" if self.postgresql else "BEGIN IMMEDIATE")
            try:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")
        return before, head

    # --- hot statements ---------------------------------------------------------------------------------------------

    def marked(self, sql: str) -> str:
        """``sql`` with the driver's own parameter markers in place of ``?``."""
        if not self.postgresql:
            return sql
        found = self._marked.get(sql)
        if found is None:
            found = self._marked[sql] = sql.replace("%", "%%").replace("?", "%s")
        return found

    def bulk_statement(self, sql: str, columns: str, rows: Sequence[Sequence[Any]]) -> tuple[str, list[Any]]:
        """The statement and its bound values for `Tx.bulk`: VALUES on SQLite, one JSON document on PostgreSQL.

        psycopg writes arrays in Python, a value at a time; one document costs a tenth of that, and the server's other
        core reads it.
        """
        key = (sql, 0 if self.postgresql else len(rows))
        statement = self._bulk.get(key)
        if statement is None:
            statement = self._bulk[key] = self.marked(f"WITH {self._table(columns, len(rows))} {sql}")
        return statement, self._bound(columns, rows)

    def asked(self, questions: Sequence[Question]) -> tuple[str, list[Any]]:
        """The statement of `Tx.ask` and its values: a column of JSON for each question, on PostgreSQL the xid too."""
        key = tuple((q.sql, 0 if self.postgresql else len(q.rows)) for q in questions)
        statement = self._asked.get(key)
        if statement is None:
            if len(self._asked) == _REMEMBERED:  # batches have many shapes: products by orders
                self._asked.clear()
            answers = ", ".join(f"({self._document(q)})" for q in questions)
            statement = f"SELECT {answers}, pg_current_xact_id()::text" if self.postgresql else f"SELECT {answers}"
            statement = self._asked[key] = self._numbered(statement) if self.postgresql else statement
        return statement, [
            value for q in questions for value in (*(self._bound(q.columns, q.rows) if q.columns else ()), *q.params)
        ]

    def over(self, change: Change) -> Statement:
        """PostgreSQL: the statement of a change and its values."""
        statement = self._over.get((change.sql,))
        if statement is None:
            text = f"WITH {self._table(change.columns, 0)} {change.sql}"
            statement = self._over[change.sql,] = self._numbered(text)
        return statement, [*self._bound(change.columns, change.rows), *change.params]

    def held(self, changes: Sequence[Change]) -> Statement:
        """PostgreSQL: several changes as one statement, which fails unless each changes as many rows as it has.

        They are made in this order, but none sees what another of them wrote. What a server does for a statement costs
        it more than what it does for a row.
        """
        key = tuple(change.sql for change in changes)
        statement = self._over.get((*key, ""))
        if statement is None:
            made = ", ".join(
                f"c{number} AS (WITH {self._table(change.columns, 0)} {change.sql} RETURNING 1)"
                for number, change in enumerate(changes)
            )
            counted = " AND ".join(f"(SELECT count(*) FROM c{number}) = ?" for number in range(len(changes)))  # noqa: S608
            statement = self._over[(*key, "")] = self._numbered(f"WITH {made} SELECT 1 / ({counted})::int")
        bound = [value for c in changes for value in (*self._bound(c.columns, c.rows), *c.params)]
        return statement, [*bound, *(len(change.rows) for change in changes)]

    def _table(self, columns: str, count: int) -> str:
        """The table ``rows`` for a WITH."""
        named = [column.split() for column in columns.split(",")]
        if self.postgresql:
            # msgspec writes bytes as base64
            picked = [f"decode({name}, 'base64') AS {name}" if kind == "bytes" else name for name, kind in named]
            types = ", ".join(f"{name} {COLUMN_TYPES[kind]}" for name, kind in named)
            return f"rows AS (SELECT {', '.join(picked)} FROM json_to_recordset(?::json) AS r({types}))"  # noqa: S608
        row = f"({', '.join('?' * len(named))})"
        return f"rows({', '.join(name for name, _ in named)}) AS (VALUES {', '.join([row] * count)})"

    def _bound(self, columns: str, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """The values of the table ``rows``."""
        if not self.postgresql:
            return [value for row in rows for value in row]
        names = [column.split()[0] for column in columns.split(",")]
        return [_json([dict(zip(names, row, strict=True)) for row in rows]).decode()]

    def _document(self, question: Question) -> str:
        """The query that gives a question's rows as one document."""
        table = f"WITH {self._table(question.columns, len(question.rows))} " if question.columns else ""
        bare = "encode({}, 'hex')" if self.postgresql else "hex({})"
        named = [column.split() for column in question.gives.split(",")]
        values = ", ".join(bare.format(name) if kind == "bytes" else name for name, kind in named)
        array = (
            "coalesce(json_agg(json_build_array({})), '[]')" if self.postgresql else "json_group_array(json_array({}))"
        )
        return f"SELECT {array.format(values)} FROM ({table}{question.sql}) q"  # noqa: S608 - column names of our own

    @staticmethod
    def _numbered(sql: str) -> str:
        """``sql`` with ``$1``… in place of ``?``, as the server itself counts them."""
        first, *others = sql.split("?")
        return first + "".join(f"${number}{part}" for number, part in enumerate(others, 1))

    def gather(self, connection: Connection, sql: str, gives: str, params: Sequence[Any]) -> list[Row]:
        """What a query gives, in no given order, on a connection that only reads; ``gives`` as in `Question`.

        Many rows: on SQLite they come as one document, as in `Tx.ask`.
        """
        if self.postgresql:
            return [tuple(row) for row in connection.exec_driver_sql(self.marked(sql), tuple(params))]
        statement, bound = self.asked([Question(sql, gives, params=params)])
        ((document,),) = connection.exec_driver_sql(statement, tuple(bound)).all()
        return _rows(document, gives)


def _first(result: Any) -> list[str]:
    """The first row of a result, in text."""
    return [result.get_value(0, column).decode() for column in range(result.nfields)]


def _rows(document: str, columns: str) -> list[Row]:
    """The rows that a document holds; bytes stand in it as hexadecimal digits."""
    wide = [index for index, column in enumerate(columns.split(",")) if column.split()[1] == "bytes"]
    found = _from_json(document)
    for row in found:
        for index in wide:
            row[index] = bytes.fromhex(row[index])
    return [tuple(row) for row in found]


def _revisions() -> list[str]:
    """All there are, by their files' names: Alembic takes as long to import as a tenth of a start."""
    return sorted(file.name.partition("_")[0] for file in (_MIGRATIONS / "versions").glob("[0-9]*.py"))


@dataclass(slots=True)
class _Backoff:
    """How often a batch is repeated after a race or a lost connection, and how long in all."""

    races: int = 20
    reconnect_s: float = 10.0
    pause_s: float = field(default=0.05)


class Writer:
    """The only thread that writes. Start it once the schema is current; every change goes through `submit` or `call`.

    ``chain`` is called as the last step of every batch that noted audit entries; ``on_fatal`` is called, on the
    writer's thread, when the store can no longer be trusted (an I/O error at fsync): nothing more is acknowledged,
    and the daemon must exit and recover at its next start (D1).
    """

    BATCH: Final = 128
    TURN: Final = 8  # units of control in a batch; one, while there are deliveries: each is a dozen statements
    STARVE: Final = 8  # batches of deliveries that may pass before a waiting chunk of ingest gets its turn
    WAL_SOFT: Final = 16 << 20
    WAL_HARD: Final = 224 << 20
    SETTLED_S: Final = 1.0
    """Nothing must have been taken in for so long before the log is moved in a quiet moment: an import has none. For so
    long after a delivery, others are expected.
    """

    def __init__(
        self,
        database: Database,
        chain: Callable[[Tx], None],
        *,
        metrics: Metrics | None = None,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.database = database
        self.node = 0
        self.on_node: Callable[[int], None] | None = None
        """Told the node number of each new connection: ids must be of the one that is held now."""
        self.commits = 0
        """Transactions committed so far: what was read before the last one may be old."""
        self.delivered_at = 0.0
        """Monotonic time at which a delivery was last taken up: an import keeps its chunks short for a while."""
        self._chain = chain
        self._head: tuple[int, bytes] | None = None
        self._alone = not database.postgresql
        """Whether nobody but this writer has moved the audit's head of late: then it is not asked for."""
        self._trips: Trips | None = None
        self._ingested_at = -self.SETTLED_S
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._backoff = _Backoff()
        self._lanes: tuple[deque[_Unit], ...] = tuple(deque() for _ in Lane)
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._asleep = False
        self._stopping = False
        self._dead: BaseException | None = None
        self._passed = 0
        self._turn = False
        """Whether control comes before deliveries now: deliveries were last."""
        self._connection: Connection | None = None
        self._cursor: Any = None
        self._thread = threading.Thread(target=self._serve, name="writer", daemon=True)

    # --- callers' side ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect (raises what connecting raises) and start the thread."""
        self._connect()
        self._thread.start()

    def stop(self) -> None:
        """Finish what is queued, then end the thread."""
        self._stopping = True
        self._wake.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self._disconnect()

    def submit(self, work: Work[P, R], payload: P) -> asyncio.Future[R]:
        """Queue one unit from the event loop. The future resolves after the commit that carries it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._enqueue(_Unit(work, payload, future, loop))
        return future

    def post(self, work: Work[P, R], payload: P) -> Future[R]:
        """Queue one unit from any other thread; the future resolves after its commit."""
        future: Future[R] = Future()
        self._enqueue(_Unit(work, payload, future, None))
        return future

    def call(self, work: Work[P, R], payload: P) -> R:
        """Queue one unit from any other thread and wait for its commit."""
        return self.post(work, payload).result()

    def queued(self, lane: Lane) -> int:
        """How many units wait in a lane: ingest looks here before it takes the processor from deliveries."""
        return len(self._lanes[lane])

    @property
    def stopped(self) -> bool:
        """Whether it takes no more work, for good."""
        return self._dead is not None or self._stopping

    def _enqueue(self, unit: _Unit) -> None:
        if self._dead or self._stopping:
            msg = "the store has stopped"
            raise UnavailableError(msg, hint="try again; an order_ref that was recorded answers the same again")
        self._lanes[unit.work.lane].append(unit)
        if self._asleep:
            self._wake.put(None)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            batch = self._take()
            if batch:
                try:
                    self._carry(batch)
                except BaseException as error:  # noqa: BLE001 - whatever it is, nobody may be acknowledged
                    self._die(error, batch)
                    return
                continue
            quiet = time.monotonic() - self._ingested_at > self.SETTLED_S
            if quiet and self.database.wal_backlog() > self.WAL_SOFT:
                self._checkpoint("PASSIVE")
                if any(self._lanes):
                    continue
            if self._stopping:
                return
            self._asleep = True
            if not any(self._lanes) and not self._stopping:
                self._wake.get()
            self._asleep = False

    def _take(self) -> list[_Unit]:
        """What is queued: deliveries, a little of control in turn with them, else a chunk of ingest.

        Never waits to fill a batch.
        """
        deliveries, control, ingest = self._lanes
        if ingest and self._passed >= self.STARVE:
            lane, most = Lane.INGEST, 1
        elif deliveries and not (control and self._turn):
            lane, most = Lane.DELIVERY, self.BATCH
        elif control:
            busy = time.monotonic() - self.delivered_at < self.SETTLED_S
            lane, most = Lane.CONTROL, 1 if busy else self.TURN
        else:
            lane, most = Lane.INGEST, 1
        queue = self._lanes[lane]
        batch: list[_Unit] = []
        while queue and len(batch) < most:
            batch.append(queue.popleft())
        self._turn = lane is Lane.DELIVERY
        if lane is Lane.INGEST:
            self._passed = 0
            if batch:
                self._ingested_at = time.monotonic()
        else:
            self._passed += bool(ingest)
            if lane is Lane.DELIVERY:
                self.delivered_at = time.monotonic()
        return batch

    def _carry(self, batch: list[_Unit]) -> None:
        """Run a batch to its commit and acknowledge it; on an unexpected error, each unit by itself (K1)."""
        try:
            self._transact(batch)
        except _FatalStoreError:
            raise
        except UnavailableError as error:  # the database is away: alone, each unit would only wait for it again
            for unit in batch:
                unit.outcome = error
        except Exception as error:
            if len(batch) == 1:
                batch[0].outcome = error
                if not isinstance(error, SyncdError):
                    log.exception("unit_failed", unit=batch[0].work.name)
                if self._metrics:
                    self._metrics.writer_failures.inc()
            else:
                for unit in batch:
                    self._carry([unit])
                return
        _acknowledge(batch)
        if self.database.wal_backlog() > self.WAL_HARD:
            self._checkpoint("RESTART")

    def _transact(self, batch: list[_Unit]) -> None:
        groups: dict[int, list[_Unit]] = {}
        for unit in batch:
            groups.setdefault(id(unit.work), []).append(unit)
        attempt = _Attempt(time.monotonic() + self._backoff.reconnect_s)
        while not self._try(groups.values(), attempt):
            pass
        self.commits += 1
        if attempt.tx and attempt.tx.head:
            found = attempt.tx.found
            self._alone = self._alone or found == self._head
            self._head = attempt.tx.head
        if self._metrics:
            self._metrics.writer_batches.inc()
            self._metrics.audit_entries.inc(len(attempt.tx.notes) if attempt.tx else 0)
            for units in groups.values():
                self._metrics.writer_units.labels(units[0].work.name).inc(len(units))
            self._metrics.writer_batch_units.observe(len(batch))
            self._metrics.writer_commit_seconds.observe(time.perf_counter() - attempt.started)

    def _try(self, groups: Collection[list[_Unit]], attempt: _Attempt) -> bool:
        """Run a batch once. Whether it is committed; if not, it is to be run again."""
        attempt.tx, attempt.committing, attempt.started = None, False, time.perf_counter()
        try:
            if self._connection is None:
                self._connect()
            tx = attempt.tx = self._begin()
            tx.lone = len(groups) == 1
            for units in groups:
                outcomes = units[0].work.run(tx, [unit.payload for unit in units])
                for unit, outcome in zip(units, outcomes, strict=True):
                    unit.outcome = outcome
            if tx.notes:
                self._chain(tx)
            if self.database.postgresql and tx.xid is None:
                tx.xid = str(tx.query("SELECT pg_current_xact_id()::text")[0][0])
            attempt.committing = True
            tx.commit()
        except RetryBatch:
            self._rollback()
            self._alone = not self.database.postgresql
            attempt.races += 1
            if attempt.races > self._backoff.races:
                msg = "other daemons keep taking the same rows"
                raise UnavailableError(msg, hint="try again") from None
            time.sleep(self._backoff.pause_s * attempt.races / self._backoff.races)
            return False
        except Exception as error:  # noqa: BLE001 - sorted there; what is not expected is raised again
            return self._survived(error, attempt)
        except BaseException:
            self._rollback()
            raise
        return True

    def _survived(self, error: Exception, attempt: _Attempt) -> bool:
        """Whether a batch is committed in spite of an error; if not, it is run again. Raises what forbids that."""
        if _fatal(error):
            raise _FatalStoreError(error) from error
        if self.database.postgresql and _race(error):
            self._rollback()
            attempt.races += 1
            if attempt.races > self._backoff.races:
                raise error
            return False
        if not self._lost(error):
            self._rollback()
            raise error
        self._disconnect()
        tx = attempt.tx
        if attempt.committing and tx and tx.xid and self._committed(tx.xid, attempt.deadline):
            return True
        if time.monotonic() > attempt.deadline:
            msg = "the database cannot be reached"
            raise UnavailableError(msg, hint="try again; what was recorded answers the same again") from error
        time.sleep(self._backoff.pause_s)
        return False

    def _begin(self) -> Tx:
        tx = Tx(self.database, self._cursor, self._trips)
        tx.head = self._head if self._alone else None
        return tx

    def _rollback(self) -> None:
        with contextlib.suppress(Exception):  # a lost connection has rolled back by itself
            if self._trips is None:
                self._cursor.execute("ROLLBACK")
            else:  # psycopg would throw away every prepared statement of the session
                self._trips.go([("ROLLBACK", ())])

    def _lost(self, error: Exception) -> bool:
        if not self.database.postgresql:
            return False
        if self._connection is None:
            import psycopg

            return isinstance(getattr(error, "orig", error), psycopg.OperationalError)
        driver = self._connection.connection.driver_connection
        return driver is None or bool(driver.closed) or bool(getattr(driver, "broken", False))

    def _committed(self, xid: str, deadline: float) -> bool:
        """Whether a COMMIT whose answer was lost took effect: the server itself knows (K1).

        Raises UnavailableError when it cannot be found out in time: nobody is then told anything but "try again".
        """
        while time.monotonic() < deadline:
            try:
                self._connect()
                self._cursor.execute("SELECT pg_xact_status(%s::xid8)", [xid])
                (status,) = self._cursor.fetchone()
            except Exception:  # noqa: BLE001 - still unreachable
                self._disconnect()
                time.sleep(self._backoff.pause_s)
                continue
            if status == "committed":
                return True
            if status == "aborted":
                return False
            time.sleep(self._backoff.pause_s)  # the old backend has not noticed yet
        msg = "the database was lost while committing"
        raise UnavailableError(msg, hint="try again; what was recorded answers the same again")

    def _connect(self) -> None:
        connection = self.database.engine.connect()
        driver: Any = connection.connection.driver_connection
        self._cursor = driver.cursor()
        self._connection = connection
        if self.database.postgresql:
            from syncd.store.trips import Trips

            driver.prepare_threshold = 2
            self._trips = Trips(driver)
            self.node = self._claim_node()
            if self.on_node:
                self.on_node(self.node)

    def _claim_node(self) -> int:
        """A node number for ids, held as long as this session lives, so that two daemons never share one.

        After a lost connection the one from before, unless the server still holds it for the session that is gone.
        """
        for node in sorted(range(MAX_NODES), key=lambda node: node != self.node):
            self._cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", [_ADVISORY_CLASS, node])
            if self._cursor.fetchone()[0]:
                return node
        msg = f"{MAX_NODES} daemons share this database already"
        raise StartError(msg)

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.invalidate()
            with contextlib.suppress(Exception):
                self._connection.close()
        self._connection = self._cursor = self._trips = None

    def _checkpoint(self, mode: str) -> None:
        """Move the log into the database, on this connection only (a second one meets SQLite's WAL-reset bug).

        A log that was moved whole is begun anew by the next commit, so its file stays as large as it once was.
        """
        try:
            self._cursor.execute(f"PRAGMA wal_checkpoint({mode})")
            self._cursor.fetchall()
        except sqlite3.Error as error:
            if _fatal(error):
                raise _FatalStoreError(error) from error
            log.warning("checkpoint_failed", mode=mode, error=type(error).__name__)

    def _die(self, error: BaseException, batch: list[_Unit]) -> None:
        self._dead = error
        log.critical("store_failed", exc_info=error)
        left = [*batch]
        for lane in self._lanes:
            while lane:
                left.append(lane.popleft())
        for unit in left:
            unit.outcome = UnavailableError("the store has failed", hint="the daemon restarts; try again")
        _acknowledge(left)
        if self._on_fatal:
            self._on_fatal(error)


class _FatalStoreError(Exception):
    """The store itself is broken; see Writer.on_fatal."""


def _fatal(error: BaseException) -> bool:
    """SQLite reported an I/O error or a damaged file: what was committed is only known after a restart."""
    code = getattr(error, "sqlite_errorcode", None) or getattr(getattr(error, "orig", None), "sqlite_errorcode", None)
    return code is not None and code & 0xFF in {
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CANTOPEN,
    }


def _race(error: BaseException) -> bool:
    """A deadlock or a serialization failure: the server rolled us back so that we try again."""
    import psycopg

    return isinstance(
        getattr(error, "orig", None) or error, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure
    )


def _acknowledge(units: list[_Unit]) -> None:
    """Give each caller its outcome: one wake-up for each event loop, however many units."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Unit]] = {}
    for unit in units:
        if unit.loop is not None:
            by_loop.setdefault(unit.loop, []).append(unit)
        elif isinstance(unit.outcome, BaseException):
            unit.future.set_exception(unit.outcome)
        else:
            unit.future.set_result(unit.outcome)
    for loop, waiting in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is waiting any more
            loop.call_soon_threadsafe(_resolve, waiting)


def _resolve(units: list[_Unit]) -> None:
    for unit in units:
        if unit.future.done():  # the caller went away
            continue
        if isinstance(unit.outcome, BaseException):
            unit.future.set_exception(unit.outcome)
        else:
            unit.future.set_result(unit.outcome)


def highest_id(database: Database) -> int:
    """The highest id stored in any table of growing ids: where model.IdSource goes on from after a restart."""
    with database.read() as connection:
        found = [
            connection.execute(text(f"SELECT max({column}) FROM {table}")).scalar()  # noqa: S608 - names of our own
            for table, column in (
                (tables.vault_key.name, "id"),
                (tables.delivery.name, "id"),
                (tables.quarantine.name, "id"),
                (tables.source.name, "id"),
                (tables.run.name, "id"),
                (tables.token.name, "id"),
                (tables.purchase.name, "id"),
                (tables.reservation.name, "id"),
            )
        ]
    return max((value for value in found if value), default=0)
