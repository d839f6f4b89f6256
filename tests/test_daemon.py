"""The composition root: what a reload must not do. The walk and the kills are in e2e."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from syncd import config, daemon, logs

CONFIGURATION = """
[store]
url = "sqlite:///{folder}/syncd.db"
[products.p-1]
title = "{title}"
"""


class Parts:
    """Links, sync and restock in one: what they were given last."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.error: Exception | None = None
        self.planned = 0

    def take_over(self, _built: Any) -> None:
        if self.error:
            raise self.error

    async def plan(self) -> None:
        self.planned += 1

    async def reload(self, settings: config.Settings, _links: Any) -> None:
        self.titles.append(settings.products["p-1"].title)


@pytest.fixture
def living(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A daemon that reloads, what systemd is told, and a way to write its configuration."""
    told: list[str] = []
    monkeypatch.setattr(daemon.systemd, "reloading", lambda: told.append("reloading"))
    monkeypatch.setattr(daemon.systemd, "ready", lambda *_: told.append("ready"))
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    path = tmp_path / "syncd.toml"

    def write(title: str) -> None:
        path.write_text(CONFIGURATION.format(folder=tmp_path, title=title))

    write("first")
    return SimpleNamespace(daemon=daemon.Daemon(daemon.complete(config.load(path))), write=write, told=told)


async def test_of_two_reloads_that_overlap_the_newer_configuration_stays(
    living: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, complete, slow = Parts(), daemon.complete, threading.Event()

    def once_slow(settings: config.Settings) -> daemon.Loaded:
        if not slow.is_set():
            slow.set()
            time.sleep(0.5)
        return complete(settings)

    monkeypatch.setattr(daemon, "complete", once_slow)
    living.write("second")
    one = asyncio.create_task(living.daemon._reload(parts, parts, parts))
    await asyncio.to_thread(slow.wait, 5)
    living.write("third")
    await asyncio.gather(one, living.daemon._reload(parts, parts, parts))
    assert (parts.titles, parts.planned) == (["second", "third"], 2)
    assert living.daemon.loaded.settings.products["p-1"].title == "third"


async def test_a_reload_that_the_database_does_not_answer_changes_nothing_and_is_over(living: Any) -> None:
    parts = Parts()
    parts.error = OSError("the database is away")
    living.write("second")
    await living.daemon._reload(parts, parts, parts)
    assert living.told == ["reloading", "ready"]
    assert living.daemon.loaded.settings.products["p-1"].title == "first"
    parts.error = None
    await living.daemon._reload(parts, parts, parts)
    assert parts.titles == ["second"]
