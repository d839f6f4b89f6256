"""The store keeps its promises: schema, locks, group commit, what happens to a batch when something goes wrong."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from syncd import audit
from syncd.errors import AuditError, LockedError, SchemaError, StartError, UnavailableError
from syncd.model import IdSource, PurchaseState, ReservationState
from syncd.store import database as store
from syncd.store.database import Database, Lane, Tx, Work, Writer
from syncd.store.tables import TRANSITIONS, metadata


def mac(data: bytes) -> bytes:
    return hmac.digest(b"k" * 32, data, hashlib.sha256)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    opened.check_schema()
    yield opened
    opened.close()


@pytest.fixture
def writer(database: Database) -> Iterator[Writer]:
    started = Writer(database, audit.chain(mac))
    started.start()
    yield started
    started.stop()


def put(tx: Tx, payloads: Sequence[Any]) -> list[Any]:
    """Insert (name, value) rows into meta; ``boom`` raises, ``no`` is refused, a duplicate raises from the database."""
    outcomes: list[Any] = []
    for name, value in payloads:
        if value == "boom":
            raise ZeroDivisionError
        if value == "no":
            outcomes.append(ValueError("refused"))
            continue
        tx.execute("INSERT INTO meta (name, value) VALUES (?, ?)", (name, value))
        tx.audit("test.put", name=name)
        outcomes.append(value)
    return outcomes


PUT: Work[tuple[str, str], str] = Work("put", Lane.CONTROL, put)


def rows(database: Database) -> dict[str, str]:
    with database.read() as connection:
        return {row[0]: row[1] for row in connection.execute(text("SELECT name, value FROM meta"))}


def together(writer: Writer, payloads: list[tuple[str, str]]) -> list[Any]:
    """Submit units so that they share one batch: they are queued while another unit holds the writer."""
    gate = threading.Event()

    def wait(_tx: Tx, gates: Sequence[threading.Event]) -> list[None]:
        for held in gates:
            held.wait(10)
        return [None] * len(gates)

    outcomes: list[Any] = [None] * len(payloads)

    def one(index: int) -> None:
        try:
            outcomes[index] = writer.call(PUT, payloads[index])
        except Exception as error:
            outcomes[index] = error

    holder = threading.Thread(target=writer.call, args=(Work("wait", Lane.DELIVERY, wait), gate))
    holder.start()
    time.sleep(0.05)
    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(payloads))]
    for thread in threads:
        thread.start()
    while writer.queued(Lane.CONTROL) < len(payloads):
        time.sleep(0.001)
    gate.set()
    for thread in [holder, *threads]:
        thread.join(20)
    return outcomes


def test_migrations_build_the_schema_of_tables_py(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_an_older_databases_quarantine_is_kept_and_takes_returns(database_url: str) -> None:
    database = Database(database_url)
    config = AlembicConfig()
    config.set_main_option("script_location", str(store._MIGRATIONS))
    with database.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO source (id, product, name, supplier, label, state, size, reading, position, consumed,"
                " cards, sealed, repeats, duplicates, quarantined, started_at)"
                " VALUES (1, 'p', 'feed:x', 's', 'l', 'taken', 1, '', 0, 0, 0, 0, 0, 0, 1, 1)"
            )
        )
        connection.execute(
            text(
                "INSERT INTO quarantine (id, product, source_id, position, raw_fp, reason, detail, sealed, state,"
                " created_at) VALUES (7, 'p', 1, 3, :blob, 'prose', 'd', :blob, 'held', 5)"
            ),
            {"blob": b"x"},
        )
        connection.exec_driver_sql("COMMIT")
    with pytest.raises(SchemaError, match="older"):
        database.check_schema()
    database.upgrade()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        row = connection.execute(text("SELECT id, position, reason, state, supplier_key FROM quarantine")).one()
        assert tuple(row) == (7, 3, "prose", "held", None)
        with pytest.raises(Exception, match="not allowed"):
            connection.execute(text("UPDATE quarantine SET state = 'returned'"))
        connection.execute(text("UPDATE quarantine SET state = 'returning'"))
        connection.execute(text("UPDATE quarantine SET state = 'returned'"))
        insert = (
            "INSERT INTO quarantine (id, product, source_id, position, raw_fp, reason, detail, sealed, state,"
            " created_at) VALUES (8, 'p', 1, 4, :blob, 'prose', '', :blob, 'eaten', 5)"
        )
        with pytest.raises(IntegrityError):
            connection.execute(text(insert), {"blob": b"x"})
    database.close()


def test_schema_older_or_newer_is_refused_with_a_clear_word(database: Database) -> None:
    with database.engine.connect() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match="does not know"):
        database.check_schema()


def test_D1_pragmas_are_read_back(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(f"sqlite:///{tmp_path}/a.db")
    with database.engine.connect() as connection:
        for name, value in store.PRAGMAS.items():
            assert str(connection.exec_driver_sql(f"PRAGMA {name}").scalar()) == value
    # The control: a setting that SQLite does not accept is found out.
    monkeypatch.setitem(store.PRAGMAS, "synchronous", "7")
    with pytest.raises(StartError, match="synchronous"), database.engine.connect():
        pass
    database.close()


def test_D1_one_daemon_a_file(tmp_path: Any) -> None:
    database = Database(f"sqlite:///{tmp_path}/a.db")
    database.lock()
    other = "import sys; from syncd.store.database import Database; Database(sys.argv[1]).lock()"
    done = subprocess.run(
        [sys.executable, "-c", other, f"sqlite:///{tmp_path}/a.db"], capture_output=True, text=True, check=False
    )
    assert "LockedError" in done.stderr
    second = Database(f"sqlite:///{tmp_path}/a.db")
    with pytest.raises(LockedError, match="in use"):
        second.lock()
    database.close()
    second.lock()
    second.close()


def test_D2_fsync_off_is_refused(monkeypatch: pytest.MonkeyPatch, database: Database) -> None:
    if not database.postgresql:
        with database.read() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        return

    class Cursor:
        def execute(self, _sql: str) -> Cursor:
            return self

        def fetchone(self) -> tuple[str]:
            return ("off",)

    class Driver:
        autocommit = False

        def cursor(self) -> Cursor:
            return Cursor()

    with pytest.raises(StartError, match="fsync=off"):
        database._prepare_postgresql(Driver(), read_only=True)


def test_K1_one_bad_unit_does_not_take_the_batch_down(database: Database, writer: Writer) -> None:
    outcomes = together(writer, [("a", "1"), ("b", "boom"), ("c", "3"), ("d", "no"), ("e", "5")])
    assert outcomes[0] == "1"
    assert outcomes[2] == "3"
    assert outcomes[4] == "5"
    assert isinstance(outcomes[1], ZeroDivisionError)
    assert isinstance(outcomes[3], ValueError)
    assert rows(database) == {"a": "1", "c": "3", "e": "5"}
    with database.read() as connection:
        assert audit.verify(connection, mac).entries == 3


def test_K1_a_constraint_that_fails_rolls_back_only_its_own_unit(database: Database, writer: Writer) -> None:
    outcomes = together(writer, [("a", "1"), ("a", "2"), ("b", "3")])
    assert sorted(str(type(o).__name__) for o in outcomes if isinstance(o, Exception)) in (
        ["IntegrityError"],
        ["UniqueViolation"],
    )
    assert set(rows(database)) == {"a", "b"}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("committed", [True, False])
def test_K1_a_commit_whose_answer_is_lost_is_read_back(
    database: Database, writer: Writer, monkeypatch: pytest.MonkeyPatch, *, committed: bool
) -> None:
    lost: list[str] = []
    commit = Tx.commit

    def losing(tx: Tx) -> None:
        """The connection dies around COMMIT, once."""
        if lost:
            commit(tx)
            return
        lost.append("COMMIT")
        if committed:
            commit(tx)
        tx._cursor.connection.close()
        raise store.psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(Tx, "commit", losing)
    assert writer.call(PUT, ("a", "1")) == "1"
    assert lost == ["COMMIT"]
    assert rows(database) == {"a": "1"}
    with database.read() as connection:
        assert audit.verify(connection, mac).entries == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_writer_survives_a_lost_connection(database: Database, writer: Writer) -> None:
    assert writer.call(PUT, ("a", "1")) == "1"
    with database.engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND datname = current_database()"
            )
        )
    assert writer.call(PUT, ("b", "2")) == "2"
    assert rows(database) == {"a": "1", "b": "2"}


def test_D1_an_io_error_acknowledges_nothing_more(database: Database) -> None:
    died: list[BaseException] = []
    writer = Writer(database, audit.chain(mac), on_fatal=died.append)
    writer.start()

    def broken(_tx: Tx, _payloads: Sequence[Any]) -> list[Any]:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC  # type: ignore[attr-defined]
        raise error

    with pytest.raises(UnavailableError):
        writer.call(Work("broken", Lane.CONTROL, broken), None)
    deadline = time.monotonic() + 5
    while not died and time.monotonic() < deadline:
        time.sleep(0.01)
    assert died
    with pytest.raises(UnavailableError):
        writer.call(PUT, ("a", "1"))
    assert rows(database) == {}
    writer.stop()


def test_deliveries_go_ahead_of_ingest_and_ingest_does_not_starve(database: Database, writer: Writer) -> None:
    order: list[str] = []
    gate = threading.Event()

    def note(name: str, lane: Lane, held: threading.Event | None = None) -> Work[None, None]:
        def run(_tx: Tx, payloads: Sequence[None]) -> list[None]:
            if held:
                held.wait(10)
            order.extend([name] * len(payloads))
            return [None] * len(payloads)

        return Work(name, lane, run)

    works = [note("first", Lane.DELIVERY, gate)] + [note("ingest", Lane.INGEST)] * 3 + [note("delivery", Lane.DELIVERY)]
    threads = []
    for work in works:
        thread = threading.Thread(target=writer.call, args=(work, None))
        thread.start()
        threads.append(thread)
        time.sleep(0.05)
    gate.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "delivery", "ingest", "ingest", "ingest"]
    writer._passed = writer.STARVE
    writer._lanes[Lane.INGEST].append("chunk")  # type: ignore[arg-type]
    writer._lanes[Lane.DELIVERY].append("delivery")  # type: ignore[arg-type]
    assert writer._take() == ["chunk"]
    writer._lanes[Lane.DELIVERY].clear()


@pytest.mark.parametrize("table", sorted(TRANSITIONS))
def test_the_database_enforces_transitions(database: Database, table: str) -> None:
    states = {
        "vault_key": "available reserved delivered held expired defective corrupt returned".split(),
        "delivery": "delivered pending cancelled".split(),
        "quarantine": "held released dropped returning returned".split(),
        "purchase": list(PurchaseState),
        "reservation": list(ReservationState),
    }[table]
    insert = {
        "vault_key": "INSERT INTO vault_key (id, product, sealed_sku, source_id, position, state, expires_at, sealed)"
        " VALUES (:id, 'p', 'p', 1, 1, :state, 1, :blob)",
        "delivery": "INSERT INTO delivery (id, shop, order_ref, product, quantity, state, created_at)"
        " VALUES (:id, 's', :ref, 'p', 1, :state, 1)",
        "quarantine": "INSERT INTO quarantine (id, product, source_id, position, raw_fp, reason, detail, sealed, state,"
        " created_at) VALUES (:id, 'p', 1, :id, :blob, 'r', '', :blob, :state, 1)",
        "purchase": "INSERT INTO purchase (id, reference, supplier, sku, product, quantity, received, state, reason,"
        " asked_by, listed, spend, open_spend, tries, polls, epoch, created_at)"
        " VALUES (:id, :ref, 's', 'a', 'p', 1, 0, :state, '', '', '[]', 1, 0, 0, 0, 1, 1)",
        "reservation": "INSERT INTO reservation (id, shop, order_ref, product, quantity, promised, state, created_at,"
        " expires_at) VALUES (:id, 's', :ref, 'p', 1, 0, :state, 1, 1)",
    }[table]
    with database.engine.connect() as connection:
        connection.execute(
            text(
                "INSERT INTO source (id, product, name, supplier, label, state, size, reading, position, consumed,"
                " cards, sealed, repeats, duplicates, quarantined, started_at)"
                " VALUES (1, 'p', 'feed:x', 's', 'l', 'taking', 1, '', 0, 0, 0, 0, 0, 0, 0, 1)"
            )
        )
        number = 0
        for old in states:
            for new in states:
                number += 1
                bound = {"id": number, "ref": f"r{number}", "state": old, "blob": b"x"}
                connection.execute(text(insert), {k: v for k, v in bound.items() if f":{k}" in insert})
                change = text(f"UPDATE {table} SET state = :new WHERE id = :id")
                allowed = old == new or (old, new) in TRANSITIONS[table]
                with contextlib.nullcontext() if allowed else pytest.raises(Exception, match="not allowed"):
                    connection.execute(change, {"new": new, "id": number})


def test_T1_the_audit_cannot_be_changed_through_sql(database: Database, writer: Writer) -> None:
    writer.call(PUT, ("a", "1"))
    with database.engine.connect() as connection:
        for statement in ("UPDATE audit SET kind = 'x'", "DELETE FROM audit"):
            with pytest.raises(Exception, match="not allowed"):
                connection.execute(text(statement))


TAMPERINGS = {
    "edit": (["UPDATE audit SET body = '{}' WHERE seq = 3"], 3),
    "redate": (["UPDATE audit SET at = at + 1 WHERE seq = 2"], 2),
    "delete": (["DELETE FROM audit WHERE seq = 4"], 4),
    "swap": (
        [
            "UPDATE audit SET seq = -3 WHERE seq = 3",
            "UPDATE audit SET seq = 3 WHERE seq = 4",
            "UPDATE audit SET seq = 4 WHERE seq = -3",
        ],
        3,
    ),
    "insert": (["INSERT INTO audit SELECT 7, at, kind, body, mac FROM audit WHERE seq = 6"], 7),
    "truncate": (["DELETE FROM audit WHERE seq > 4"], 5),
    "head": (["UPDATE audit_head SET seq = 5"], 7),
}


@pytest.mark.parametrize("name", sorted(TAMPERINGS))
def test_T1_verify_names_the_first_bad_entry(database: Database, writer: Writer, name: str) -> None:
    for number in range(6):
        writer.call(PUT, (str(number), "x"))
    with database.read() as connection:
        assert audit.verify(connection, mac).entries == 6
    statements, bad = TAMPERINGS[name]
    with database.engine.connect() as connection:
        for trigger in ("audit_no_update", "audit_no_delete"):
            connection.execute(text(f"DROP TRIGGER {trigger}" + (" ON audit" if database.postgresql else "")))
        for statement in statements:
            connection.execute(text(statement))
    with database.read() as connection, pytest.raises(AuditError) as caught:
        audit.verify(connection, mac)
    assert caught.value.seq == bad


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_K3_a_daemon_that_lost_its_connection_keeps_its_node_or_makes_ids_of_its_new_one(
    database: Database, writer: Writer
) -> None:
    """Else a daemon that starts later makes the same ids in the same millisecond."""
    ids = IdSource(node=writer.node)
    writer.on_node = ids.move
    second = Writer(database, audit.chain(mac))
    second.start()
    holder = database.engine.connect()
    try:
        assert (writer.node, second.node) == (0, 1)

        def cut() -> None:
            ours = (
                "pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            holder.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM {ours}")
            while holder.exec_driver_sql(f"SELECT 1 FROM {ours}").first():
                time.sleep(0.01)

        cut()
        second.call(PUT, ("a", "1"))  # the second one is back first, and both nodes are free
        writer.call(PUT, ("b", "1"))
        assert (writer.node, second.node) == (0, 1)
        cut()
        holder.exec_driver_sql("SELECT pg_advisory_lock(%s, 0)", (store._ADVISORY_CLASS,))  # somebody has ours
        writer.call(PUT, ("c", "1"))
        assert writer.node == 1
        assert ids.next() >> 13 & 0x1FF == 1
    finally:
        holder.close()
        second.stop()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_two_daemons_on_one_postgresql_share_the_chain_and_never_a_node(database: Database, writer: Writer) -> None:
    second_database = Database(database.url.render_as_string(hide_password=False))
    second = Writer(second_database, audit.chain(mac))
    second.start()
    assert second.node != writer.node

    def load(one: Writer, name: str) -> None:
        for number in range(50):
            one.call(PUT, (f"{name}{number}", "x"))

    threads = [threading.Thread(target=load, args=(one, name)) for one, name in ((writer, "a"), (second, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    second.stop()
    second_database.close()
    with database.read() as connection:
        assert audit.verify(connection, mac).entries == 100


def test_ids_grow_and_never_repeat_when_the_clock_steps_back() -> None:
    now = [1_800_000_000.0]
    source = IdSource(lambda: now[0])
    ids = source.take(20_000)
    now[0] -= 3600
    ids += source.take(20_000)
    assert ids == sorted(set(ids))
    assert max(ids) < 1 << 63
    later = IdSource(lambda: now[0], floor=ids[-1])
    assert later.next() > ids[-1]
