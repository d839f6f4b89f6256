"""Round trips to PostgreSQL: what fails takes everything after it along, and the connection stays good."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest

from syncd import audit
from syncd.store.database import Change, Database, Lane, Tx, Work, Writer
from syncd.store.trips import Trips

POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def mac(data: bytes) -> bytes:
    return hmac.digest(b"k" * 32, data, hashlib.sha256)


def put(tx: Tx, names: Sequence[str]) -> list[None]:
    for name in names:
        tx.execute("INSERT INTO meta (name, value) VALUES (?, 'x')", (name,))
        tx.audit("test.put", name=name)
    return [None] * len(names)


PUT: Work[str, None] = Work("put", Lane.CONTROL, put)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    opened.check_schema()
    yield opened
    opened.close()


@pytest.fixture
def trips(database: Database) -> Iterator[Trips]:
    with database.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        yield Trips(driver)


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return sorted(row[0] for row in connection.exec_driver_sql("SELECT name FROM meta WHERE name = 'trip'"))


INSERT = "INSERT INTO meta (name, value) VALUES ($1, $2)"


@POSTGRESQL
def test_D2_a_statement_that_fails_keeps_the_commit_from_being_reached(database: Database, trips: Trips) -> None:
    for _ in range(2):  # the second time, some statements are prepared already
        with pytest.raises(psycopg.errors.UniqueViolation):
            trips.go([("BEGIN", ()), (INSERT, ("trip", "1")), (INSERT, ("trip", "2")), ("COMMIT", ())])
        trips.go([("ROLLBACK", ())])
        assert names(database) == []
    assert trips.go([("BEGIN", ()), (INSERT, ("trip", "1")), ("COMMIT", ())])[1].command_tuples == 1
    assert names(database) == ["trip"]


@POSTGRESQL
def test_more_than_a_socket_holds_goes_both_ways(trips: Trips) -> None:
    text = "x" * 4_000_000
    results = trips.go([("SELECT $1::text", (text,)), ("SELECT $1::text || 'y'", (text,)), ("SELECT 1", ())])
    assert [len(result.get_value(0, 0) or b"") for result in results] == [4_000_000, 4_000_001, 1]


@POSTGRESQL
def test_a_connection_that_is_gone_is_an_error_and_not_a_wait(database: Database, trips: Trips) -> None:
    (result,) = trips.go([("SELECT pg_backend_pid()::text", ())])
    with database.engine.connect() as other:
        other.exec_driver_sql(f"SELECT pg_terminate_backend({int(result.get_value(0, 0) or 0)})")
    with pytest.raises(psycopg.OperationalError):
        trips.go([("SELECT 1", ())])


@POSTGRESQL
def test_there_is_an_end_to_what_is_prepared(trips: Trips) -> None:
    for number in range(120):
        ((value,),) = [[r.get_value(0, 0)] for r in trips.go([(f"SELECT {number} + $1", (1,))])]
        assert value == b"%d" % (number + 1)
    (result,) = trips.go([("SELECT count(*) FROM pg_prepared_statements", ())])
    assert result.get_value(0, 0) == b"100"


def held(tx: Tx, payloads: Sequence[int]) -> list[None]:
    """Inserts one row, and claims that it is as many as the payload says."""
    for rows in payloads:
        change = Change(
            "INSERT INTO meta (name, value) SELECT name, 'x' FROM rows WHERE true ON CONFLICT (name) DO NOTHING",
            "name text",
            [("trip",)] * rows,
        )
        tx.settle([change], audit.HEAD)
        tx.audit("test.held")
    return [None] * len(payloads)


HELD: Work[int, None] = Work("held", Lane.CONTROL, held)


def test_M2_what_changes_less_than_it_says_changes_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(database_url)
    database.check_schema()
    writer = Writer(database, audit.chain(mac))
    monkeypatch.setattr(writer._backoff, "races", 1)
    monkeypatch.setattr(writer._backoff, "pause_s", 0)
    writer.start()
    try:
        for turn in range(2):  # with the head asked for, and with the head known
            with pytest.raises(Exception, match="other daemons"):
                writer.call(HELD, 2)
            assert names(database) == []
            writer.call(PUT, f"other-{turn}")
            writer.call(PUT, f"another-{turn}")
        writer.call(HELD, 1)
        assert names(database) == ["trip"]
    finally:
        writer.stop()
        database.close()


@POSTGRESQL
@pytest.mark.parametrize("planted", [False, True])
def test_T1_a_head_that_another_daemon_moved_is_not_gone_by(
    database: Database, monkeypatch: pytest.MonkeyPatch, planted: bool
) -> None:
    """The planted bug: a writer that moves the head without a look at where it was."""
    if planted:
        monkeypatch.setattr(audit, "_MOVE", audit._MOVE.replace("audit_head.seq = rows.before", "rows.before >= 0"))
    one, two = Writer(database, audit.chain(mac)), Writer(database, audit.chain(mac))
    one.start()
    two.start()
    wrong = 0
    try:
        for number, writer in enumerate((one, one, one, two, one)):
            try:
                writer.call(PUT, f"put-{number}")
            except psycopg.errors.UniqueViolation:
                wrong += 1
    finally:
        one.stop()
        two.stop()
    assert bool(wrong) is planted
    with database.read() as connection:
        assert audit.verify(connection, mac).entries == 5 - wrong
