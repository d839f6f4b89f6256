"""The bundled feed takes settled files only, tells what it leaves out, and puts away what was taken without a trace."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from syncd.adapter import AdapterError

SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
# The folder is the same on either engine; what is put away is sealed with the ring of one.
pytestmark = SQLITE

CANARY = "CANARY-7Q4Z9-KEY"


def found(feed: Any, pull: Any) -> list[str]:
    return [f"{item.product}/{item.label}" for item in feed.pull_keys(pull)]


def taken(feed: Any) -> dict[str, Path]:
    return {path.name: path for path in sorted((feed.folder / "opaque-1" / "taken").iterdir())}


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_settled_files_come_oldest_first_with_their_media(feed: Any, told: Any, drop: Any) -> None:
    for age, name in enumerate(["c.txt", "b.CSV", "a.xlsx"]):
        path = drop(name, "x\n")
        os.utime(path, (1_000_000 + age, 1_000_000 + age))
    items = list(feed.pull_keys(told.pull()))
    assert [(item.label, item.media, item.size) for item in items] == [
        ("c.txt", "text", 2),
        ("b.CSV", "csv", 2),
        ("a.xlsx", "xlsx", 2),
    ]
    assert told.complaints == []


def test_names_of_no_interest_are_passed_over_in_silence(feed: Any, told: Any, drop: Any) -> None:
    for name in ("a.part", "b.txt.tmp", "c.crdownload", "d.filepart", "e.swp", ".f.txt", "README.txt", "~$g.xlsx"):
        drop(name, "x\n")
    drop("empty.txt", "")
    drop("keys.txt", "x\n", product="opaque-1/taken")
    drop("keys.txt", "x\n", product=".hidden")
    (feed.folder / "loose.txt").write_text("x\n")
    assert found(feed, told.pull()) == []
    assert told.complaints == []


def test_what_cannot_be_taken_is_complained_of_and_the_rest_is_taken(feed: Any, told: Any, drop: Any) -> None:
    drop("good.txt", "x\n")
    drop("keys.pdf", "x\n")
    drop("keys.txt", "x\n", product="no-such-sku")
    (feed.folder / "opaque-1" / "link.txt").symlink_to(feed.folder / "opaque-1" / "good.txt")
    os.mkfifo(feed.folder / "opaque-1" / "pipe.txt")
    (feed.folder / "steam-1").symlink_to(feed.folder / "opaque-1")
    assert found(feed, told.pull()) == ["opaque-1/good.txt"]
    said = "\n".join(told.complaints)
    assert len(told.complaints) == 5
    for part in ("keys.pdf", "'no-such-sku'", "add [products.no-such-sku]", "link.txt", "pipe.txt", "use a folder"):
        assert part in said


def test_one_folder_that_cannot_be_read_does_not_keep_the_others_waiting(
    feed: Any, told: Any, drop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop("good.txt", "x\n")
    shut = drop("keys.txt", "x\n", product="cards-1").parent
    real = Path.iterdir

    def iterdir(self: Path) -> Any:
        if self == shut:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert found(feed, told.pull()) == ["opaque-1/good.txt"]
    (said,) = told.complaints
    assert str(shut) in said
    assert "Permission denied" in said


def test_a_folder_that_is_not_there_ends_the_run_with_what_to_do(feed: Any, told: Any) -> None:
    feed.folder.rmdir()
    with pytest.raises(AdapterError, match="correct `folder`"):
        found(feed, told.pull())


# --- settling ---------------------------------------------------------------------------------------------------------


class Uploading(threading.Thread):
    """Somebody who still writes a file: a line at each look until it is told to end."""

    def __init__(self, path: Path, looks: int) -> None:
        super().__init__(daemon=True)
        self.path, self.looks, self.seen = path, looks, 0

    def look(self) -> bool:
        """Called by the feed at each step of its waiting, instead of a clock: nothing here depends on speed."""
        self.seen += 1
        if self.seen <= self.looks:
            with self.path.open("a") as file:
                file.write("more\n")
        return False


def test_a_scheduled_run_leaves_a_file_that_grows_and_asks_for_an_early_next_run(
    feed: Any, told: Any, drop: Any
) -> None:
    drop("whole.txt", "x\n")
    writer = Uploading(drop("growing.txt", "x\n"), looks=10**9)
    pull = told.pull(by_hand=False, settle=0.05, stopping=writer.look)
    assert found(feed, pull) == ["opaque-1/whole.txt"]
    assert told.later == [0.05]
    assert told.complaints == []


def test_a_run_by_hand_waits_until_the_file_is_whole(feed: Any, told: Any, drop: Any) -> None:
    path = drop("growing.txt", "x\n")
    writer = Uploading(path, looks=6)
    (item,) = list(feed.pull_keys(told.pull(settle=0.05, stopping=writer.look)))
    assert item.size == path.stat().st_size == len("x\n") + 6 * len("more\n")
    assert told.later == []


def test_a_run_by_hand_loses_patience_in_the_end_and_says_so(
    feed: Any, told: Any, drop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(type(feed).pull_keys.__globals__, "PATIENCE_S", 0.0)
    writer = Uploading(drop("growing.txt", "x\n"), looks=10**9)
    assert found(feed, told.pull(settle=0.02, stopping=writer.look)) == []
    (said,) = told.complaints
    assert "growing.txt is still being written" in said


def test_a_file_of_the_same_size_whose_time_moves_is_not_settled(feed: Any, told: Any, drop: Any) -> None:
    path = drop("touched.txt", "x\n")

    def touch() -> bool:
        os.utime(path, ns=(time.time_ns(), time.time_ns()))
        return False

    assert found(feed, told.pull(by_hand=False, settle=0.02, stopping=touch)) == []
    assert told.later == [0.02]


def test_a_file_that_goes_away_while_it_settles_is_no_error(feed: Any, told: Any, drop: Any) -> None:
    path = drop("gone.txt", "x\n")

    def remove() -> bool:
        path.unlink(missing_ok=True)
        return False

    assert found(feed, told.pull(settle=0.02, stopping=remove)) == []
    assert told.complaints == []


# --- swapped files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swap", ["rewritten", "replaced", "link"])
def test_a_file_swapped_between_stamp_and_open_is_refused(feed: Any, told: Any, drop: Any, swap: str) -> None:
    path = drop("keys.txt", "x\n")
    other = drop("other.part", "y\n")
    (item,) = list(feed.pull_keys(told.pull()))
    if swap == "rewritten":
        path.write_text("y\ny\n")
    elif swap == "replaced":
        other.replace(path)
    else:
        path.unlink()
        path.symlink_to(other)
    assert not item.unchanged()
    with pytest.raises(OSError if swap == "link" else AdapterError):
        item.open()


def test_what_came_in_its_place_is_not_deleted(house: Any, feed: Any, told: Any, drop: Any) -> None:
    feed.after = "delete"
    path = drop("keys.txt", "x\n")
    (item,) = list(feed.pull_keys(told.pull()))
    path.write_text("another file altogether\n")
    item.finish("report", house.intake.seal())
    assert path.read_text() == "another file altogether\n"


# --- putting away -----------------------------------------------------------------------------------------------------


def test_S4_a_taken_file_is_sealed_with_a_report_that_holds_no_key(
    house: Any, feed: Any, told: Any, drop: Any, assert_unseen: Any
) -> None:
    content = f"{CANARY}\nsecond-key-0001\n".encode()
    path = drop("keys.txt", content)
    (item,) = list(feed.pull_keys(told.pull()))
    report = house.take(item)
    assert report.state == "taken"
    assert not path.exists()
    kept = taken(feed)
    assert set(kept) == {"keys.txt.sealed", "keys.txt.report.txt"}
    assert house.unsealed(kept["keys.txt.sealed"]) == content
    assert kept["keys.txt.report.txt"].read_text() == report.text
    for file in kept.values():
        assert_unseen(CANARY, file.read_bytes().decode("utf-8", "replace"))
        assert file.stat().st_mode & 0o007 == 0
    assert found(feed, told.pull()) == []


def test_S4_a_file_may_be_deleted_instead(house: Any, feed: Any, told: Any, drop: Any) -> None:
    feed.after = "delete"
    path = drop("keys.txt", f"{CANARY}\n")
    (item,) = list(feed.pull_keys(told.pull()))
    house.take(item)
    assert not path.exists()
    assert set(taken(feed)) == {"keys.txt.report.txt"}
    assert house.keys() == [CANARY]


@pytest.mark.parametrize("after", ["seal", "delete"])
def test_a_later_file_of_the_same_name_overwrites_nothing(
    house: Any, feed: Any, told: Any, drop: Any, after: str
) -> None:
    feed.after = after
    contents = [f"key-{number}-of-a-day\n".encode() for number in range(4)]
    for day, content in enumerate(contents):  # the file system gives the freed inode to the next file
        os.utime(drop("keys.txt", content), (day, day))
        (item,) = list(feed.pull_keys(told.pull()))
        house.take(item)
    kept = taken(feed)
    sealed = [house.unsealed(path) for name, path in kept.items() if name.endswith(".sealed")]
    assert sorted(sealed) == (contents if after == "seal" else [])
    assert sum(name.endswith(".report.txt") for name in kept) == len(contents)
