from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid

import pytest

from syncd import systemd


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
    """What systemd listens on: a datagram socket, by path or in the abstract namespace."""
    name = f"@syncd-{uuid.uuid4().hex}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        sock.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (systemd.ready, b"READY=1"),
        (lambda: systemd.ready("12 products"), b"READY=1\nSTATUS=12 products"),
        (systemd.stopping, b"STOPPING=1"),
        (lambda: systemd.status("importing 卡密"), "STATUS=importing 卡密".encode()),
        (systemd.watchdog, b"WATCHDOG=1"),
    ],
)
def test_each_word_arrives_as_one_datagram(manager, call, message):
    assert call() is True
    assert manager.recv(4096) == message


def test_a_reload_carries_its_time(manager):
    before = time.monotonic_ns() // 1000
    systemd.reloading("reading the configuration")
    first, stamp, status = manager.recv(4096).decode().split("\n")
    assert (first, status) == ("RELOADING=1", "STATUS=reading the configuration")
    name, _, value = stamp.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000


def test_a_status_cannot_smuggle_an_assignment(manager):
    systemd.status("fine\nMAINPID=1")
    assert manager.recv(4096) == b"STATUS=fine MAINPID=1"


def test_without_systemd_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert systemd.ready() is False


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all", "@nobody-listens-here"])
def test_a_manager_that_is_gone_is_no_error(monkeypatch, address):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert systemd.ready() is False


def test_a_manager_that_does_not_read_blocks_nothing(manager):
    started = time.monotonic()
    answers = {systemd.watchdog() for _ in range(5000)}
    assert answers == {True, False}  # the queue filled up, and that was told
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("30000000", None, 30.0),
        ("30000000", "own", 30.0),
        ("30000000", "1", None),
        (None, None, None),
        ("0", None, None),
        ("soon", None, None),
    ],
)
def test_the_watchdog_interval_is_ours_alone(monkeypatch, usec, pid, expected):
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert systemd.watchdog_interval() == expected


PROBE = """
import ctypes, os, sys
from syncd import systemd
if sys.argv[1] == "close":
    systemd.not_dumpable()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), os.stat("/proc/self/mem").st_uid)
"""


@pytest.mark.parametrize(("mode", "dumpable"), [("close", "0"), ("leave", "1")])
def test_s6_the_process_is_not_dumpable(mode, dumpable):
    done = subprocess.run([sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == dumpable
