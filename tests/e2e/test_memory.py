"""A large feed streams: the daemon that takes it stays small. `make bench` takes a million keys."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

KEYS = 400_000
MOST_MB = 200


@pytest.mark.timeout(600)
def test_a_large_feed_streams_through_a_small_daemon(install: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'd' / 'var' / 'syncd.db'}"
    daemon = install("d", url, '[products.a]\ntitle = "a"\nformat = "opaque"\n')
    (daemon.feeds / "a").mkdir()
    with (daemon.feeds / "a" / "million.txt").open("w") as file:
        for number in range(KEYS):
            file.write(f"{number * 2654435761 % 2**32:08X}-{number:09d}-KEY\n")
    begun = time.monotonic()
    daemon.start()
    while True:
        (row,) = json.loads(daemon.syncd("status", "--json"))["suppliers"]
        if row["last_success_at"]:
            break
        assert time.monotonic() - begun < 540, row
        time.sleep(3)
    assert row["last_run"]["new"] == KEYS
    peak = daemon.peak_mb()
    print(f"{KEYS} keys in {time.monotonic() - begun:.0f} s, peak {peak:.0f} MB resident")
    assert peak < MOST_MB
    assert daemon.errors() == []
