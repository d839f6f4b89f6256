"""Empty databases of each engine, by the hundred: what migrations cost is paid once."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from syncd.store import tables
from syncd.store.database import Database
from tests.world.house import Shape, World

FAKE_TIME = """CREATE SCHEMA world; CREATE TABLE world.clock (now float8); INSERT INTO world.clock VALUES (0);
CREATE FUNCTION world.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
AS 'SELECT to_timestamp(now) FROM world.clock'; ALTER DATABASE {name} SET search_path = world, pg_catalog, public"""
"""PostgreSQL: its clock is a table, for every connection made from now on."""

Fresh = Callable[[], tuple[str, Path]]


@pytest.fixture(autouse=True)
def unrendered_log() -> Any:
    """Tracebacks of planted kills are not drawn: a quarter of a second each."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def fresh(database_url: str, tmp_path: Path) -> Fresh:
    """Each call gives the URL of an empty database, and a folder."""
    database = Database(database_url)
    database.upgrade()
    if database.postgresql:
        with database.engine.connect() as connection:
            for statement in FAKE_TIME.split(";"):
                connection.exec_driver_sql(statement.format(name=database.url.database))
    database.close()
    numbers = itertools.count()

    def folder() -> Path:
        made = tmp_path / f"world-{next(numbers)}"
        made.mkdir()
        return made

    def copied() -> tuple[str, Path]:
        made = folder()
        shutil.copyfile(tmp_path / "syncd.db", made / "syncd.db")
        return f"sqlite:///{made / 'syncd.db'}", made

    def emptied() -> tuple[str, Path]:
        database = Database(database_url)
        names = ", ".join(f'"{table.name}"' for table in tables.metadata.sorted_tables)
        with database.engine.connect() as connection:
            connection.exec_driver_sql(f"TRUNCATE {names} CASCADE")
            connection.exec_driver_sql("INSERT INTO audit_head (id, seq, mac) VALUES (1, 0, ''::bytea)")
        database.close()
        return database_url, folder()

    return copied if database_url.startswith("sqlite") else emptied


@pytest.fixture
def make_world(fresh: Fresh) -> Any:
    """Worlds of a shape, one at a time."""
    made: list[World] = []

    def end() -> None:
        while made:
            made.pop().close()

    def make(shape: Shape) -> World:
        end()
        made.append(World(shape, *fresh()))
        return made[-1]

    yield make
    end()
