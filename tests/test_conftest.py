"""The ground that the other tests stand on, and its negative controls."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
import sqlalchemy

CONFTEST = Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
OUTSIDE = "192.0.2.1"  # TEST-NET-1: nobody is there


def test_a_test_cannot_leave_this_machine():
    with socket.socket() as sock:
        sock.settimeout(1)
        with pytest.raises(RuntimeError, match=OUTSIDE):
            sock.connect((OUTSIDE, 80))
        with pytest.raises(RuntimeError, match=OUTSIDE):
            sock.connect_ex((OUTSIDE, 80))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(RuntimeError, match=OUTSIDE):
        sock.sendto(b"", (OUTSIDE, 53))
    with pytest.raises(RuntimeError, match="getaddrinfo of shop"):
        socket.getaddrinfo("shop.example", 443)


async def test_nor_can_asyncio():
    with pytest.raises(RuntimeError, match=OUTSIDE):
        await asyncio.wait_for(asyncio.open_connection(OUTSIDE, 80), 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.8.8"])
def test_loopback_is_open(host):
    with socket.create_server((host, 0)) as server, socket.create_connection(server.getsockname()[:2], 1):
        pass


def test_unix_sockets_are_open(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)


def test_a_database_is_empty_and_of_its_own(database_url):
    engine = sqlalchemy.create_engine(database_url)
    assert sqlalchemy.inspect(engine).get_table_names() == []
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE mark (n INTEGER)"))
    engine.dispose()


test_the_next_one_is_empty_again = test_a_database_is_empty_and_of_its_own


def test_postgresql_syncs_what_it_commits(postgres_database):
    engine = sqlalchemy.create_engine(postgres_database)
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SHOW fsync")).scalar() == "on"
        assert connection.execute(sqlalchemy.text("SHOW synchronous_commit")).scalar() == "on"
    engine.dispose()


PLANTED = """
import pytest

@pytest.mark.skip(reason="planted")
def test_skipped(): ...

def test_skips_itself():
    pytest.skip("planted")

@pytest.mark.may_skip
def test_may():
    pytest.skip("planted")

@pytest.mark.xfail
def test_known():
    assert False
"""


@pytest.mark.parametrize(("ci", "red", "skipped"), [("1", 1, 1), ("0", 0, 3)])
def test_in_ci_a_skip_is_a_failure_unless_it_may(pytester, monkeypatch, ci, red, skipped):
    monkeypatch.setenv("SYNCD_CI", ci)
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\nmarkers =\n  may_skip: x\n")
    pytester.makepyfile(PLANTED)
    result = pytester.runpytest_subprocess("-p", "no:randomly")
    result.assert_outcomes(failed=red, errors=red, skipped=skipped, xfailed=1)  # one in the test, one at set-up
    assert result.ret == red


@pytest.mark.parametrize(("ci", "ret"), [("1", 2), ("0", 5)])
def test_in_ci_a_module_cannot_skip_itself(pytester, monkeypatch, ci, ret):
    monkeypatch.setenv("SYNCD_CI", ci)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("import pytest\npytest.importorskip('no_such_module')\n")
    assert pytester.runpytest_subprocess().ret == ret
