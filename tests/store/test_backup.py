"""A backup is whole or not there; a restore delivers nothing twice, and appears in one step or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from syncd import audit
from syncd.errors import AuditError, LockedError
from syncd.inventory.quarantine import Quarantine
from syncd.metrics import Metrics
from syncd.model import NEVER, CardKey, IdSource, utc
from syncd.orders.deliveries import Deliveries, FencedError, InsufficientStockError
from syncd.store import backup as module
from syncd.store.backup import BackupError, backup, restore
from syncd.store.database import Database, Lane, Tx, Work, Writer, highest_id
from syncd.vault.crypto import new_kek
from syncd.vault.vault import RESTORE_FENCE, Chunk, Origin, Slice, Vault, load_ring, restored_at

KEK = new_kek()
FENCE = (RESTORE_FENCE, utc(1_800_000_000))


def _source(tx: Tx, payloads: Any) -> list[None]:
    for row in payloads:
        tx.execute(
            "INSERT INTO source (id, product, name, supplier, label, state, size, reading, position, consumed, cards,"
            " sealed, repeats, duplicates, quarantined, started_at)"
            " VALUES (?, 'steam', ?, 'feed', 'keys.txt', 'taking', 1, '', 0, 0, 0, 0, 0, 0, 0, 1)",
            row,
        )
    return [None] * len(payloads)


SOURCE: Work[tuple[int, str], None] = Work("source", Lane.CONTROL, _source)


@dataclasses.dataclass
class Shop:
    """What of the daemon a delivery needs, on one database."""

    database: Database
    writer: Writer
    vault: Vault
    deliveries: Deliveries

    @classmethod
    def open(cls, url: str) -> Shop:
        database = Database(url)
        database.lock()
        database.check_schema()
        ring = load_ring(database, KEK, create=KEK)
        writer = Writer(database, audit.chain(ring.audit_mac))
        writer.start()
        ids = IdSource(node=writer.node, floor=highest_id(database))
        vault = Vault(database, writer, ring, ids)
        products: Any = {"steam": SimpleNamespace(min_life=0, takes=range(1, 1001), on_shortage="refuse")}
        fenced = restored_at(database) is not None
        return cls(
            database, writer, vault, Deliveries(vault, writer, ids, lambda: products, Metrics("0"), fenced=fenced)
        )

    def close(self) -> None:
        self.writer.stop()
        self.database.close()

    def add(self, count: int, stem: str = "AAAA") -> None:
        source_id = self.vault.ids.next()
        origin = Origin(source_id, f"feed:{source_id}", "steam")
        self.writer.call(SOURCE, (source_id, origin.name))
        codes = [f"{stem}-{number:05}" for number in range(count)]
        cards = [
            Slice(place, code.encode(), CardKey({"code": code}, {"code": code}, code, NEVER), code, "", "")
            for place, code in enumerate(codes, start=1)
        ]
        cards.append(Slice(count + 1, b"sold out, sorry", None, "", "prose", "line 1"))
        keys, held = self.vault.seal(origin, cards)
        self.writer.call(self.vault.intake, Chunk(origin, keys, held, 0, 1, count))

    async def deliver(self, refs: list[str]) -> set[str]:
        return {(await self.deliveries.deliver("demo", ref, "steam", 1)).keys[0].text for ref in refs}

    async def recover(self) -> int:
        """What `syncd recover` does."""
        unused: Any = None
        held = await Quarantine(self.writer, self.vault, unused, unused, unused).recover("operator")
        self.deliveries.fenced = restored_at(self.database) is not None
        return held

    def verify(self, connection: Any) -> int:
        return audit.verify(connection, self.vault.ring.audit_mac).entries

    def facts(self) -> dict[str, list[Any]]:
        """Every row of every table of ours."""
        with self.database.read() as connection:
            return {
                table.name: sorted(tuple(row) for row in connection.execute(table.select()))
                for table in module.tables.metadata.sorted_tables
                if table.name != "meta"
            }


@pytest.fixture
def open_shop() -> Iterator[Callable[[str], Shop]]:
    opened: list[Shop] = []

    def make(url: str) -> Shop:
        opened.append(Shop.open(url))
        return opened[-1]

    yield make
    for shop in opened:
        shop.close()


@pytest.fixture
def empty_url(database_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A second empty database of the same engine: where a restore goes."""
    if database_url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path / 'new' / 'syncd.db'}"
        return
    admin = request.getfixturevalue("postgres_url")
    name = f"syncd_{uuid.uuid4().hex}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
    yield admin.replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", f"/{name}?")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def put_back(file: Path, url: str, **options: Any) -> Any:
    database = Database(url)
    try:
        return restore(file, database, **{"fence": FENCE, "verify": None, **options})
    finally:
        database.close()


# --- T3 ---------------------------------------------------------------------------------------------------------------


async def _after_a_restore(open_shop: Any, url: str, empty_url: str, tmp_path: Path) -> tuple[Shop, set[str], set[str]]:
    """Backup at t0, deliver 50, the database is lost, restore t0: (shop, delivered before t0, delivered after)."""
    shop = open_shop(url)
    shop.add(100)
    before = await shop.deliver(["old-1", "old-2"])
    backup(shop.database, tmp_path / "t0.db", fence=FENCE, verify=shop.verify)
    after = await shop.deliver([f"order-{number}" for number in range(50)])
    put_back(tmp_path / "t0.db", empty_url, verify=shop.verify)
    return open_shop(empty_url), before, after


async def test_T3_after_a_restore_nothing_is_delivered_twice(
    open_shop: Any, database_url: str, empty_url: str, tmp_path: Path
) -> None:
    shop, before, after = await _after_a_restore(open_shop, database_url, empty_url, tmp_path)
    assert (len(before), len(after)) == (2, 50)
    for ref in ("order-1", "new-1", "old-1"):
        with pytest.raises(FencedError):
            await shop.deliver([ref])
    assert await shop.recover() == 98, "all but the two that the backup knows as delivered"
    for ref in [f"order-{number}" for number in range(50)] + [f"new-{number}" for number in range(50)]:
        with pytest.raises(InsufficientStockError):
            await shop.deliver([ref])
    assert await shop.deliver(["old-1", "old-2"]) == before, "what the backup knows as delivered is answered as ever"
    shop.add(1, "FRESH")
    assert await shop.deliver(["new-1"]) == {"FRESH-00000"}
    shop.add(100)
    with pytest.raises(InsufficientStockError):  # the very keys, sent again, are recognised
        await shop.deliver(["new-2"])
    with shop.database.read() as connection:
        assert shop.verify(connection) > 0


async def test_T3_negative_control_without_the_fence_the_same_keys_go_out_again(
    open_shop: Any, database_url: str, empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_fence", lambda _path, _fence: None)
    shop, _, after = await _after_a_restore(open_shop, database_url, empty_url, tmp_path)
    again = await shop.deliver([f"new-{number}" for number in range(50)])
    assert again & after == after


async def test_T3_a_backup_that_somebody_just_copies_into_place_is_fenced_too(open_shop: Any, tmp_path: Path) -> None:
    shop = open_shop(f"sqlite:///{tmp_path / 'syncd.db'}")
    shop.add(3)
    backup(shop.database, tmp_path / "t0.db", fence=FENCE, verify=None)
    shutil.copy(tmp_path / "t0.db", tmp_path / "copied.db")
    copied = open_shop(f"sqlite:///{tmp_path / 'copied.db'}")
    with pytest.raises(FencedError):
        await copied.deliver(["order-1"])
    assert await shop.deliver(["order-1"]), "the database itself is not fenced by its backup"


# --- what a backup is -------------------------------------------------------------------------------------------------


async def test_a_restored_database_is_the_one_that_was_backed_up(
    open_shop: Any, database_url: str, empty_url: str, tmp_path: Path
) -> None:
    shop = open_shop(database_url)
    shop.add(30)
    await shop.deliver(["order-1", "order-2"])
    was = shop.facts()
    made = backup(shop.database, tmp_path / "t0.db", fence=FENCE, verify=shop.verify)
    assert (made.rows["vault_key"], made.rows["quarantine"], made.rows["delivery"]) == (30, 1, 2)
    assert made.audit_entries == len(was["audit"]) == 3
    assert made.kek_ids == (KEK.id,)
    found = put_back(tmp_path / "t0.db", empty_url, verify=shop.verify)
    assert found.rows == made.rows
    restored = open_shop(empty_url)
    assert restored.facts() == was
    assert restored_at(restored.database) == FENCE[1]


@pytest.mark.parametrize("way", ["sqlite to postgresql", "postgresql to sqlite"])
async def test_a_backup_is_the_way_from_one_engine_to_the_other(
    open_shop: Any, postgres_database: str, tmp_path: Path, way: str
) -> None:
    urls = [f"sqlite:///{tmp_path / 'syncd.db'}", postgres_database]
    here, there = urls if way.startswith("sqlite") else reversed(urls)
    shop = open_shop(here)
    shop.add(5)
    delivered = await shop.deliver(["order-1"])
    backup(shop.database, tmp_path / "t0.db", fence=FENCE, verify=shop.verify)
    put_back(tmp_path / "t0.db", there, verify=shop.verify)
    moved = open_shop(there)
    assert moved.facts() == shop.facts()
    await moved.recover()
    assert await moved.deliver(["order-1"]) == delivered


def test_S1_a_backup_has_no_key_in_clear_and_is_the_owner_s_alone(
    open_shop: Any, database_url: str, tmp_path: Path
) -> None:
    shop = open_shop(database_url)
    shop.add(10, "CANARY")
    folder = tmp_path / "backups"
    folder.mkdir()
    made = backup(shop.database, folder, fence=FENCE, verify=shop.verify)
    assert [path.name for path in folder.iterdir()] == [made.path.name], "one file, nothing beside it"
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    data = made.path.read_bytes()
    assert b"CANARY" not in data
    assert KEK.text().reveal().encode() not in data


async def test_a_backup_is_one_moment_while_deliveries_go_on(open_shop: Any, database_url: str, tmp_path: Path) -> None:
    """Keys, allotments, deliveries and audit agree with each other, and the daemon never waits for the copy."""
    shop = open_shop(database_url)
    shop.add(3000)
    going, orders = threading.Event(), 0

    def copy() -> Any:
        try:
            return backup(shop.database, tmp_path / "t0.db", fence=FENCE, verify=shop.verify, progress=slowly)
        finally:
            going.set()

    def slowly(_step: str, _done: int, _total: int) -> None:
        going.wait(0.02)

    copying = asyncio.create_task(asyncio.to_thread(copy))
    while not going.is_set():
        await shop.deliver([f"order-{orders}"])
        orders += 1
    made = await copying
    assert orders > made.rows["delivery"], "the copy did not run beside deliveries"
    with sqlite3.connect(made.path) as kept:
        adrift = kept.execute(
            "SELECT count(*) FROM vault_key k LEFT JOIN allotment a ON a.key_id = k.id"
            " WHERE (k.state = 'delivered') <> (a.key_id IS NOT NULL)"
        ).fetchone()
        assert adrift == (0,)
        assert kept.execute("SELECT count(*) FROM allotment").fetchone() == (made.rows["delivery"],)
    kept.close()


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_backup_replaces_nothing(open_shop: Any, database_url: str, tmp_path: Path) -> None:
    shop = open_shop(database_url)
    (tmp_path / "t0.db").write_text("mine")
    with pytest.raises(BackupError, match="exists already"):
        backup(shop.database, tmp_path / "t0.db", fence=FENCE, verify=None)
    assert (tmp_path / "t0.db").read_text() == "mine"


def test_a_restore_replaces_nothing(open_shop: Any, database_url: str, tmp_path: Path) -> None:
    shop = open_shop(database_url)
    shop.add(3)
    was = shop.facts()
    backup(shop.database, tmp_path / "t0.db", fence=FENCE, verify=None)
    shop.close()
    with pytest.raises(BackupError, match=r"there is a database already|is not empty") as refused:
        put_back(tmp_path / "t0.db", database_url)
    assert "replaces nothing" in refused.value.hint
    assert open_shop(database_url).facts() == was


def test_D1_a_restore_under_a_running_daemon_is_refused(open_shop: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'syncd.db'}"
    shop = open_shop(url)
    backup(shop.database, tmp_path / "t0.db", fence=FENCE, verify=None)
    with pytest.raises(LockedError):
        put_back(tmp_path / "t0.db", url)


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_log_left_beside_the_place_of_a_restore_is_not_replayed_into_it(
    open_shop: Any, tmp_path: Path, suffix: str
) -> None:
    shop = open_shop(f"sqlite:///{tmp_path / 'syncd.db'}")
    backup(shop.database, tmp_path / "t0.db", fence=FENCE, verify=None)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / f"syncd.db{suffix}").write_bytes(b"x")
    with pytest.raises(BackupError, match=f"syncd.db{suffix}"):
        put_back(tmp_path / "t0.db", f"sqlite:///{tmp_path / 'new' / 'syncd.db'}")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4096] = os.urandom(4096)
    path.write_bytes(data)


def _unspell(path: Path) -> None:
    """A damage that SQLite quotes in its message, as bytes that are not text."""
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE", b"\x9cREATE TABLE"))


def _forge(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as kept:
        kept.execute("DROP TRIGGER audit_no_update")
        kept.execute("UPDATE audit SET body = '{}' WHERE seq = 1")
        kept.commit()


def _newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as kept:
        kept.execute("UPDATE alembic_version SET version_num = '9999'")
        kept.commit()


@pytest.mark.parametrize(
    ("damage", "error", "why"),
    [
        (_flip, BackupError, "damaged|cannot be read"),
        (lambda path: os.truncate(path, path.stat().st_size // 2), BackupError, "damaged|cannot be read"),
        (lambda path: path.write_text("not a database"), BackupError, "not a backup"),
        (lambda path: path.write_bytes(b""), BackupError, "not a backup"),
        (_unspell, BackupError, "damaged|cannot be read"),
        (_forge, AuditError, "entry 1"),
        (_newer, BackupError, "does not know"),
    ],
    ids=["flipped", "cut", "text", "empty", "unspelled", "forged", "newer"],
)
async def test_a_backup_that_cannot_be_trusted_is_refused_and_leaves_nothing(
    open_shop: Any, database_url: str, empty_url: str, tmp_path: Path, damage: Any, error: Any, why: str
) -> None:
    shop = open_shop(database_url)
    shop.add(200)
    await shop.deliver(["order-1"])
    backup(shop.database, tmp_path / "t0.db", fence=FENCE, verify=shop.verify)
    damage(tmp_path / "t0.db")
    with pytest.raises(error, match=why):
        put_back(tmp_path / "t0.db", empty_url, verify=shop.verify)
    assert _is_empty(empty_url)
    assert not {".part", ".restore"} & {path.suffix for path in tree(tmp_path)}


def tree(folder: Path) -> list[Path]:
    return list(folder.rglob("*"))


def _is_empty(url: str) -> bool:
    """Whether there is nothing that a daemon would start on, but for an empty place."""
    if url.startswith("sqlite"):
        return not Path(url.removeprefix("sqlite:///")).exists()
    database = Database(url)
    try:
        return database.revision()[0] is None
    finally:
        database.close()


def test_a_database_that_is_damaged_itself_gets_no_backup(open_shop: Any, tmp_path: Path) -> None:
    shop = open_shop(f"sqlite:///{tmp_path / 'syncd.db'}")
    shop.add(300)
    shop.close()
    _flip(tmp_path / "syncd.db")
    database = Database(f"sqlite:///{tmp_path / 'syncd.db'}")
    with pytest.raises(BackupError):
        backup(database, tmp_path / "t0.db", fence=FENCE, verify=None)
    database.close()
    assert not (tmp_path / "t0.db").exists()


def test_a_copy_that_lacks_rows_is_not_called_a_backup(
    open_shop: Any, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = open_shop(database_url)
    shop.add(3)
    engine = "_from_sqlite" if database_url.startswith("sqlite") else "_from_postgresql"
    real = getattr(module, engine)

    def lossy(database: Any, part: Path, progress: Any) -> Any:
        counted = real(database, part, progress)
        with contextlib.closing(sqlite3.connect(part)) as copy:
            copy.execute("DELETE FROM fingerprint")
            copy.commit()
        return counted

    monkeypatch.setattr(module, engine, lossy)
    with pytest.raises(BackupError, match="fingerprint"):
        backup(shop.database, tmp_path / "t0.db", fence=FENCE, verify=None)
    assert not (tmp_path / "t0.db").exists()


# --- kills ------------------------------------------------------------------------------------------------------------

# Imports once, then forks for each restore: reads "URL KILL_AT" lines, answers each with an exit status.
RESTORE = """
import contextlib, os, signal, sys
from pathlib import Path
from syncd.store import backup as module
from syncd.store.database import Database

left = 0

def mortal(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
"""
RUN = """
for name in ("_copy_file", "_fence", "_inspect", "_upgrade", "_into_place", "_into_postgresql", "_refuse_rows"):
    setattr(module, name, mortal(getattr(module, name)))
os.fsync, os.open, Path.rename = mortal(os.fsync), mortal(os.open), mortal(Path.rename)
for line in sys.stdin:
    url, at = line.split()
    pid = os.fork()
    if not pid:
        left = int(at)
        module.restore(
            Path(sys.argv[1]), Database(url), fence=("restored_at", "then"), verify=None,
            progress=mortal(lambda *_: None)
        )
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def _sweep(open_shop: Any, database_url: str, empty_url: str, tmp_path: Path, planted: str = "") -> tuple[int, str]:
    """Kill a restore at each of its steps in turn, until one comes through: (kills, the first fault that was seen)."""
    shop = open_shop(database_url)
    shop.add(20)
    backup(shop.database, tmp_path / "t0.db", fence=FENCE, verify=None)
    was = shop.facts()
    with subprocess.Popen(
        [sys.executable, "-c", RESTORE + planted + RUN, tmp_path / "t0.db"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as forks:
        return _until_one_comes_through(forks, open_shop, was, empty_url, tmp_path)


def _until_one_comes_through(
    forks: Any, open_shop: Any, was: dict[str, list[Any]], empty_url: str, tmp_path: Path
) -> tuple[int, str]:
    for kills in range(60):
        url = f"sqlite:///{tmp_path / str(kills) / 'syncd.db'}"
        if not empty_url.startswith("sqlite"):
            url = empty_url  # every kill must leave it empty, or whole
        forks.stdin.write(f"{url} {kills}\n")
        forks.stdin.flush()
        status = int(forks.stdout.readline())
        assert status in {0, -signal.SIGKILL}
        if not _is_empty(url):
            try:
                restored = open_shop(url)
            except Exception as error:
                return kills, f"does not open: {type(error).__name__}"
            if restored.facts() != was or not restored.deliveries.fenced:
                return kills, "half of it is there" if restored.deliveries.fenced else "not fenced"
            restored.close()
            if not url.startswith("sqlite"):
                return kills, ""
        elif status == 0:
            return kills, "nothing was restored"
        elif url.startswith("sqlite"):
            put_back(tmp_path / "t0.db", url)  # what a kill left behind is not in the way
        if status == 0:
            return kills, ""
    raise AssertionError("the sweep never came to its end")


def test_T3_a_restore_killed_anywhere_leaves_nothing_or_all_of_it_fenced(
    open_shop: Any, database_url: str, empty_url: str, tmp_path: Path
) -> None:
    kills, fault = _sweep(open_shop, database_url, empty_url, tmp_path)
    assert fault == ""
    assert kills > 8, "the sweep hardly began"


IN_PLACE = """
@contextlib.contextmanager
def in_place(path):
    target = Path(str(path).removesuffix(".restore"))
    target.touch()
    yield target

module._part = in_place
"""
ONE_BY_ONE = """
from sqlalchemy import Connection
real = Connection.exec_driver_sql
Connection.exec_driver_sql = lambda self, sql, *args: real(
    self, "SELECT 1" if self.dialect.name == "postgresql" and sql in ("BEGIN", "LOCK TABLE keyring IN EXCLUSIVE MODE")
    else sql, *args)
"""


@pytest.mark.parametrize(
    ("database_url", "planted"), [("sqlite", IN_PLACE), ("postgresql", ONE_BY_ONE)], indirect=["database_url"]
)
def test_negative_control_a_restore_that_is_not_one_step_fails_the_sweep(
    open_shop: Any, database_url: str, empty_url: str, tmp_path: Path, planted: str
) -> None:
    _, fault = _sweep(open_shop, database_url, empty_url, tmp_path, planted)
    assert fault != ""
