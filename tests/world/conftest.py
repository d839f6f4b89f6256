"""Empty databases of each engine, by the hundred: what migrations cost is paid once."""

from __future__ import annotations

import itertools
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
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


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database to be copied."""
    path = tmp_path_factory.mktemp("world") / "syncd.db"
    database = Database(f"sqlite:///{path}")
    database.upgrade()
    database.close()
    return path


@pytest.fixture(scope="session")
def postgresql_world(postgres_url: str) -> Iterator[str]:
    """One database for all worlds, one after the other, whose time is theirs."""
    name = f"syncd_world_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
    url = postgres_url.replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", f"/{name}?")
    database = Database(url)
    database.upgrade()
    with database.engine.connect() as connection:
        connection.exec_driver_sql(FAKE_TIME.format(name=name))
    database.close()
    yield url
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Fresh:
    """Each call gives the URL of an empty database, and a folder."""
    numbers = itertools.count()
    template: Path | None = request.getfixturevalue("sqlite_template") if request.param == "sqlite" else None
    url: str = "" if template else request.getfixturevalue("postgresql_world")

    def made() -> tuple[str, Path]:
        folder = tmp_path / f"world-{next(numbers)}"
        folder.mkdir()
        if template is None:
            _empty(url)
            return url, folder
        shutil.copyfile(template, folder / "syncd.db")
        return f"sqlite:///{folder / 'syncd.db'}", folder

    return made


def _empty(url: str) -> None:
    """Without the triggers; a TRUNCATE takes thirty times as long."""
    deletes = [f'DELETE FROM "{table.name}"' for table in tables.metadata.sorted_tables]
    first = "INSERT INTO audit_head (id, seq, mac) VALUES (1, 0, ''::bytea)"
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("; ".join(["SET session_replication_role = replica", *deletes, first]))


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
