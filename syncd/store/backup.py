"""Backups: one SQLite file of the same schema, whatever the engine. Called by `syncd backup` and `syncd restore`.

A backup gets its name only when it is whole: copied from one snapshot while the daemon works on, checked, flushed to
disk, then renamed. The fence of a restore lies in the backup already: whatever is interrupted, and even if somebody
just copies the file into place, no database appears that would hand out keys which were delivered after the backup was
made (docs/adr/0006, 0007).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import quote

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, MetaData, Table, create_engine, func, inspect, select, true
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import StaticPool

from syncd.errors import SyncdError
from syncd.store import tables
from syncd.store.database import Database

Progress = Callable[[str, int, int], None]
"""Told now and then: what is being done, how much of it is done, how much there is (0: unknown)."""
Verify = Callable[[Connection], int]
"""Walks the audit chain of a database and returns how many entries it has; raises AuditError."""
Fact = tuple[str, str]
"""A row of ``meta``: name, value."""

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_VERSIONS: Final = "alembic_version"
_PAGES: Final = 2048  # 8 MiB a step: seldom enough to be fast, often enough for a progress bar
_ROWS: Final = 1000
_BLOCK: Final = 1 << 20
_DAMAGED: Final = (DatabaseError, UnicodeDecodeError)  # SQLite may quote the damage, which need not be text
_BESIDE: Final = ("-wal", "-shm", "-journal")


class BackupError(SyncdError):
    """A backup was not made, or cannot be restored; nothing was changed."""

    code: ClassVar[str] = "backup_failed"


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds: its schema, rows by table, the KEK that opens it (never in it), and its audit chain.

    ``audit_entries`` is None when the chain was not checked.
    """

    path: Path
    size: int
    revision: str
    rows: Mapping[str, int]
    kek_ids: tuple[str, ...]
    audit_entries: int | None


def _quiet(_step: str, _done: int, _total: int) -> None:
    return


# --- making one -------------------------------------------------------------------------------------------------------


def backup(
    database: Database, target: Path, *, fence: Fact, verify: Verify | None, progress: Progress = _quiet
) -> Backup:
    """Back a database up, of either engine, while its daemon runs; a folder as ``target`` gets a file with the date.

    The file (0600, with ``fence`` among its facts) is there when it is whole, or not at all. Raises BackupError,
    AuditError, OSError.
    """
    if target.is_dir():
        target /= time.strftime("syncd-%Y%m%dT%H%M%SZ.db", time.gmtime())
    if target.exists():
        raise BackupError(f"{target} exists already", hint="a backup never replaces another one: choose a new name")
    if not target.parent.is_dir():
        raise BackupError(f"there is no folder {target.parent}", hint="make it, or choose another one")
    if not database.postgresql and not database.path.is_file():
        raise BackupError(f"there is no database at {database.path}", hint="nothing was ever stored: syncd run")
    # A name of its own: two backups to one place at once do not write into each other.
    with _part(target.with_name(f"{target.name}.{os.getpid()}.part")) as part:
        counted = (_from_postgresql if database.postgresql else _from_sqlite)(database, part, progress)
        _fence(part, fence)
        made = _inspect(part, verify, progress)
        wrong = [name for name, rows in made.rows.items() if rows != counted.get(name) and name != tables.meta.name]
        if wrong:
            raise BackupError(f"the copy has not as many rows as the database in: {', '.join(wrong)}")
        if target.exists():
            raise BackupError(f"{target} has appeared meanwhile", hint="choose a new name")
        _into_place(part, target)
    return _named(made, target)


def _from_sqlite(database: Database, part: Path, progress: Progress) -> dict[str, int]:
    source = sqlite3.connect(f"file:{quote(str(database.path))}?mode=ro", uri=True, isolation_level=None, timeout=5)
    try:
        # One read transaction around it all: without it, every commit of the daemon would start the copy afresh.
        source.execute("BEGIN")
        schema = source.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        names = [name for (name,) in schema]
        if _VERSIONS not in names:
            raise BackupError(f"{database.path} is not a database of syncd, or an empty one")
        copy = sqlite3.connect(part, isolation_level=None)
        try:
            source.backup(copy, pages=_PAGES, progress=lambda _s, left, total: progress("copying", total - left, total))
            copy.execute("PRAGMA journal_mode=DELETE")  # a single file, which needs no -wal beside it
        finally:
            copy.close()
        return {
            name: source.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # noqa: S608 - from the schema
            for name in names
            if name != _VERSIONS
        }
    except sqlite3.Error as error:
        raise BackupError(
            f"{database.path} cannot be copied: {error}",
            hint="is the disk full? otherwise the database is damaged: keep it, and restore the last good backup",
        ) from None
    finally:
        source.close()


def _from_postgresql(database: Database, part: Path, progress: Progress) -> dict[str, int]:
    revision, _ = database.revision()
    if revision is None:
        raise BackupError("this database is empty", hint="nothing was ever stored: syncd run")
    with database.read() as source, _open(part, fast=True) as copy:
        _upgrade(copy, revision)
        copy.exec_driver_sql("BEGIN")
        counted = _copy_rows(source, copy, progress)
        copy.exec_driver_sql("COMMIT")
    return counted


# --- putting one back -------------------------------------------------------------------------------------------------


def restore(
    file: Path, database: Database, *, fence: Fact, verify: Verify | None, progress: Progress = _quiet
) -> Backup:
    """Put a backup in place of an empty database, migrated to this program's schema, with ``fence`` in its facts.

    The target must be empty: no file (SQLite), no rows (PostgreSQL). It appears in one step, fenced, or not at all.
    Takes the daemon's lock. Raises BackupError, AuditError, LockedError, OSError.
    """
    if not file.is_file():
        raise BackupError(f"there is no file {file}")
    if any(_size(Path(f"{file}{suffix}")) for suffix in _BESIDE):
        raise BackupError(
            f"{file} has a log beside it: it is a live database, not a backup", hint="make one with: syncd backup"
        )
    if database.postgresql:
        part = file.with_name(f"{file.name}.{os.getpid()}.restore")
    else:
        database.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        database.lock()
        _like_folder(Path(f"{database.path}.lock"))
        _refuse_files(database.path)
        part = Path(f"{database.path}.restore")
        part.unlink(missing_ok=True)  # of a restore that was killed: we hold the lock, so nobody is writing it
    with _part(part):
        _copy_file(file, part, progress)
        try:
            _fence(part, fence)
        except _DAMAGED:
            raise BackupError(f"{file} is not a backup of syncd, or a damaged one", hint="try an older one") from None
        found = _inspect(part, verify, progress)
        with _open(part) as copy:
            _upgrade(copy, "head")
        if database.postgresql:
            _into_postgresql(part, database, progress)
        else:
            _like_folder(part)
            _into_place(part, database.path)
    return _named(found, file)


def _refuse_files(path: Path) -> None:
    """A log that stays beside a restored file would be replayed into it: it counts as a database too."""
    there = [str(found) for found in (path, *(Path(f"{path}{suffix}") for suffix in _BESIDE)) if found.exists()]
    if there:
        raise BackupError(
            f"there is a database already: {', '.join(there)}",
            hint=f"a restore replaces nothing: move all of {path}* to a folder of its own first, and keep it",
        )


def _into_postgresql(part: Path, database: Database, progress: Progress) -> None:
    """Schema, rows and fence in one transaction."""
    with database.engine.connect() as target, _open(part) as copy:
        target.exec_driver_sql("BEGIN")
        try:
            _refuse_rows(target)
            _upgrade(target, "head", transaction=False)
            _copy_rows(copy, target, progress)
        except BaseException:
            target.exec_driver_sql("ROLLBACK")
            raise
        target.exec_driver_sql("COMMIT")


def _refuse_rows(target: Connection) -> None:
    """Raise BackupError unless no table of ours has a row; a daemon that is just starting waits, or is seen here."""
    theirs = set(inspect(target).get_table_names())
    ours = [table for table in tables.metadata.sorted_tables if table.name in theirs]
    if tables.keyring in ours:
        target.exec_driver_sql("LOCK TABLE keyring IN EXCLUSIVE MODE")
    # The head of an audit without entries is part of the schema.
    filled = [
        table.name
        for table in ours
        if target.execute(
            select(*table.primary_key.columns).where(table.c.seq > 0 if table is tables.audit_head else true()).limit(1)
        ).first()
    ]
    if filled or (ours and _VERSIONS not in theirs):
        raise BackupError(
            f"this database is not empty: {', '.join(filled or [table.name for table in ours])}",
            hint="a restore replaces nothing: create a new database, and name it in [store] url",
        )


# --- what both do -----------------------------------------------------------------------------------------------------


def _inspect(path: Path, verify: Verify | None, progress: Progress) -> Backup:
    """Check a copy from end to end: structure, references, schema, audit chain."""
    progress("checking", 0, 0)
    try:
        with _open(path, read_only=True) as copy:
            faults = [row[0] for row in copy.exec_driver_sql("PRAGMA integrity_check(3)")]
            if faults != ["ok"]:
                raise BackupError(f"the copy is damaged: {'; '.join(faults)}", hint="try an older backup")
            if copy.exec_driver_sql("PRAGMA foreign_key_check").first():
                raise BackupError("the copy is damaged: rows refer to rows that are not there")
            revision = MigrationContext.configure(copy).get_current_revision()
            if revision is None:
                raise BackupError("this is not a database of syncd")
            if revision not in {script.revision for script in _scripts().walk_revisions()}:
                raise BackupError(
                    f"its schema is {revision}, which this syncd does not know", hint="use the syncd that wrote it"
                )
            rows = {table.name: _count(copy, table) for table in _tables(copy)}
            kek_ids = tuple(copy.execute(select(tables.keyring.c.kek_id).distinct()).scalars())
            entries = None
            if verify and kek_ids:
                progress("checking the audit", 0, rows["audit"])
                entries = verify(copy)
    except _DAMAGED as error:
        why = getattr(error, "orig", "its schema is not text")
        raise BackupError(f"the copy cannot be read: {why}", hint="try an older backup") from None
    return Backup(path, path.stat().st_size, revision, rows, kek_ids, entries)


def _fence(path: Path, fence: Fact) -> None:
    with _open(path) as copy:
        copy.exec_driver_sql("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", fence)


def _copy_rows(source: Connection, target: Connection, progress: Progress) -> dict[str, int]:
    """Copy every table of ``target`` from ``source``; returns how many rows of each."""
    copied: dict[str, int] = {}
    # Parents first, whatever a later schema adds: PostgreSQL checks references row by row.
    order = {table.name: place for place, table in enumerate(tables.metadata.sorted_tables)}
    chosen = sorted(_tables(target), key=lambda table: order.get(table.name, len(order)))
    total = sum(_count(source, table) for table in chosen)
    target.exec_driver_sql("DELETE FROM audit_head")  # the schema comes with an empty one
    marker = "%s" if target.dialect.name == "postgresql" else "?"
    for table in chosen:
        columns = ", ".join(f'"{column.name}"' for column in table.c)
        markers = ", ".join([marker] * len(table.c))
        statement = f'INSERT INTO "{table.name}" ({columns}) VALUES ({markers})'  # noqa: S608 - from the schema
        copied[table.name] = 0
        rows = source.execute(select(table), execution_options={"stream_results": True, "yield_per": _ROWS})
        with rows:
            for batch in rows.partitions():
                target.exec_driver_sql(statement, [tuple(row) for row in batch])
                copied[table.name] += len(batch)
                progress("copying", sum(copied.values()), total)
    return copied


def _tables(connection: Connection) -> list[Table]:
    """The tables that are there, by their columns: the schema may be older than `tables`."""
    seen = inspect(connection)
    return [
        Table(name, MetaData(), *[Column(column["name"], column["type"]) for column in seen.get_columns(name)])
        for name in seen.get_table_names()
        if name != _VERSIONS
    ]


def _count(connection: Connection, table: Table) -> int:
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(_MIGRATIONS))


def _upgrade(connection: Connection, revision: str, *, transaction: bool = True) -> None:
    """Bring a schema to a revision; in a transaction of its own, or in the one that is open."""
    config = AlembicConfig()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    if not transaction:
        command.upgrade(config, revision)
        return
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    command.upgrade(config, revision)
    connection.exec_driver_sql("COMMIT")


@contextlib.contextmanager
def _open(path: Path, *, read_only: bool = False, fast: bool = False) -> Iterator[Connection]:
    """A copy that nobody else uses. ``fast`` writes without a journal: what is interrupted is thrown away."""
    mode = "mode=ro&immutable=1" if read_only else "mode=rw"
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, check_same_thread=False),
        poolclass=StaticPool,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
    )
    try:
        with engine.connect() as connection:
            if not read_only:
                connection.exec_driver_sql(f"PRAGMA journal_mode={'OFF' if fast else 'DELETE'}")
                connection.exec_driver_sql(f"PRAGMA synchronous={'OFF' if fast else 'FULL'}")
            yield connection
    finally:
        engine.dispose()


@contextlib.contextmanager
def _part(path: Path) -> Iterator[Path]:
    """An empty file (0600) that is gone in the end, unless it was renamed."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        yield path
    finally:
        for left in (path, *(Path(f"{path}{suffix}") for suffix in _BESIDE)):
            left.unlink(missing_ok=True)


def _copy_file(file: Path, part: Path, progress: Progress) -> None:
    total, done = _size(file), 0
    with file.open("rb") as reader, part.open("wb") as writer:
        while block := reader.read(_BLOCK):
            writer.write(block)
            done += len(block)
            progress("copying", done, total)


def _into_place(part: Path, target: Path) -> None:
    """On disk first, then under its name: a power cut leaves the whole file or none."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.rename(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _like_folder(path: Path) -> None:
    """Root restores for the service's user, who owns the folder: what is put there must be that user's."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _named(found: Backup, path: Path) -> Backup:
    return Backup(path, found.size, found.revision, found.rows, found.kek_ids, found.audit_entries)
