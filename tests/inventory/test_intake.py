"""A payload is taken exactly once whatever it is called, however it is spelled, and whatever stops it half-way."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import openpyxl
import pytest

from syncd.adapter import AdapterError
from syncd.errors import LeaseLostError, NotFoundError, SyncdError, UnavailableError
from syncd.inventory import intake as intake_module
from syncd.store.database import Tx, Work
from syncd.vault.vault import Vault

SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
CANARY = "CANARY-7Q4Z9-KEY"


def lines(count: int, prefix: str = "key") -> list[str]:
    return [f"{prefix}-{number:05d}" for number in range(count)]


def text(keys: list[str]) -> str:
    return "".join(f"{key}\n" for key in keys)


def workbook(rows: list[list[Any]]) -> bytes:
    book = openpyxl.Workbook()
    for row in rows:
        book.worksheets[0].append(row)
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def assert_taken_once(house: Any, label: str, keys: list[str], product: str = "opaque-1") -> None:
    """The harness: every key of a payload is in the vault once, and its source's row says so."""
    found = house.keys(product)
    assert sorted(set(keys) - set(found)) == [], "lost"
    assert len(found) == len(set(found)), "twice"
    row = house.source(label)
    assert row["state"] == "taken"
    assert (row["cards"], row["sealed"]) == (len(keys), len(keys)), "the source's row miscounts"
    assert (row["repeats"], row["duplicates"], row["quarantined"]) == (0, 0, 0), "the source's row miscounts"
    assert row["position"] == len(keys), "the mark"
    assert row["consumed"] == row["size"], "the mark"
    ((keys_stored, prints),) = house.rows(
        "SELECT (SELECT count(*) FROM vault_key), (SELECT count(DISTINCT key_id) FROM fingerprint)"
    )
    assert keys_stored == prints, "a key without a fingerprint"


# --- once -------------------------------------------------------------------------------------------------------------


def test_S3_a_payload_is_taken_once_by_its_content(house: Any, payload: Any) -> None:
    first, copy = payload("opaque-1", text(lines(5))), payload("opaque-1", text(lines(5)), label="copy-of-keys.txt")
    assert house.take(first).state == "taken"
    for again in (first, copy):
        report = house.take(again, supplier="beta")
        assert (report.state, report.counts.cards) == ("already_taken", 0)
    assert house.keys() == lines(5)
    assert house.rows("SELECT count(*), max(label) FROM source") == [(1, "keys.txt")]
    assert house.held() == []
    assert len(copy.finished) == 1  # it is put away all the same
    assert "first as keys.txt" in copy.finished[0]
    assert house.arrived == ["opaque-1"]
    assert house.verified() > 0


def test_the_same_content_for_another_product_is_another_payload(house: Any, payload: Any) -> None:
    house.take(payload("opaque-1", text(lines(3))))
    report = house.take(payload("cards-1", text(lines(3))))
    assert report.state == "taken"
    assert (report.counts.sealed, report.counts.duplicates) == (0, 3)  # its keys were sold as another product's
    assert house.keys("cards-1") == []


@SQLITE
def test_an_unknown_product_is_refused_before_anything_is_written(house: Any, payload: Any) -> None:
    with pytest.raises(NotFoundError, match="no-such-sku"):
        house.take(payload("no-such-sku", "x\n"))
    assert house.rows("SELECT count(*) FROM source") == [(0,)]


def test_what_an_operator_imports_is_a_source_of_its_own(house: Any) -> None:
    content = text(lines(3)).encode()
    report = house.intake.import_file("opaque-1", "mine.txt", len(content), lambda: io.BytesIO(content))
    assert (report.state, report.counts.sealed) == ("taken", 3)
    assert house.rows("SELECT supplier FROM source") == [("import",)]


# --- how it is spelled ------------------------------------------------------------------------------------------------

WORDS = ["卡密甲-0001", "卡密乙-0002", "卡密丙-0003"]


@SQLITE
@pytest.mark.parametrize(
    "content",
    [
        pytest.param("\n".join(WORDS).encode(), id="utf-8 without a last line end"),
        pytest.param(b"\xef\xbb\xbf" + text(WORDS).encode(), id="byte order mark"),
        pytest.param(text(WORDS).encode("gb18030"), id="gb18030"),
        pytest.param("\r\n".join([*WORDS, "", ""]).encode(), id="crlf and blank lines"),
    ],
)
def test_every_encoding_and_line_end_gives_the_same_keys(house: Any, payload: Any, content: bytes) -> None:
    house.take(payload("opaque-1", content))
    assert house.keys() == WORDS
    assert house.held() == []


def test_the_same_keys_in_another_encoding_are_duplicates_not_new_keys(house: Any, payload: Any) -> None:
    house.take(payload("opaque-1", text(WORDS).encode()))
    report = house.take(payload("opaque-1", text(WORDS).encode("gb18030"), label="gb.txt"))
    assert (report.counts.sealed, report.counts.duplicates) == (0, 3)
    assert house.keys() == WORDS


PAIRS = [("6001000000000001", "481516"), ("6001000000000002", "234200"), ("6001000000000003", "990017")]


@SQLITE
@pytest.mark.parametrize("media", ["csv", "xlsx"])
def test_tables_are_taken_with_their_header_left_out(house: Any, payload: Any, media: str) -> None:
    rows = [["number", "pin"], *[list(pair) for pair in PAIRS]]
    content = workbook(rows) if media == "xlsx" else text([",".join(row) for row in rows]).encode()
    report = house.take(payload("cards-1", content, label=f"cards.{media}"))
    assert report.counts.sealed == 3, report.text
    for key, (number, pin) in zip(house.keys("cards-1"), PAIRS, strict=True):
        assert number in key
        assert pin in key


@SQLITE
def test_a_number_that_excel_has_rounded_refuses_the_whole_file_and_names_its_row(house: Any, payload: Any) -> None:
    content = workbook([["6001000000000001"], [6001000000000002]])
    with pytest.raises(AdapterError, match=r"row 2: .*rounded") as refused:
        house.take(payload("cards-1", content, label="cards.xlsx"))
    assert "6001" not in str(refused.value)
    assert house.keys("cards-1") == []


@SQLITE
def test_a_damaged_workbook_is_refused_with_what_to_do(house: Any, payload: Any) -> None:
    with pytest.raises(AdapterError, match=r"not a sound \.xlsx"):
        house.take(payload("cards-1", b"PK\x03\x04 no workbook", label="cards.xlsx"))


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_report_tells_every_line_and_no_key(house: Any, payload: Any, assert_unseen: Any) -> None:
    steam = ["ABCDE-12345-FGHIJ", "ABCDE-12345-FGHIK", "ABCDE-12345-FGHIL"]
    house.take(payload("steam-1", text(steam[:1]), label="monday.txt"), supplier="beta")
    content = text([steam[1], "not a steam key", steam[1], steam[0], steam[2]])
    report = house.take(payload("steam-1", content, label="tuesday.txt"))
    counts = report.counts
    assert (counts.cards, counts.sealed, counts.repeats, counts.duplicates, counts.quarantined) == (5, 2, 1, 1, 2)
    said = report.text
    for label, number in (("lines read", 5), ("cards", 5), ("sealed", 2), ("repeats", 1), ("quarantined", 2)):
        assert re.search(rf"^{label}\s+{number}\b", said, re.MULTILINE), said
    assert "keys seen before: 1" in said
    assert re.search(r"^ +2  (?!duplicate)\w+: ", said, re.MULTILINE), said
    assert re.search(r"^ +4  duplicate: first came from beta, monday\.txt \(feed:", said, re.MULTILINE), said
    for line in content.splitlines():
        assert_unseen(line, said)


@SQLITE
def test_the_report_of_a_long_disaster_is_cut_and_says_so(
    house: Any, payload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "_REPORT_ROWS", 3)
    report = house.take(payload("steam-1", text([f"nothing {number}!" for number in range(10)])))
    assert report.counts.quarantined == 10
    assert "… and 7 more" in report.text


# --- seen before ------------------------------------------------------------------------------------------------------


def test_S3_the_same_key_from_another_source_is_quarantined_naming_the_first(house: Any, payload: Any) -> None:
    house.take(payload("opaque-1", "ABCD-EFGH-0001\n", label="monday.txt"))
    report = house.take(payload("opaque-1", "abcdefgh0001\nABCD-EFGH-0002\n", label="tuesday.txt"), supplier="beta")
    assert (report.counts.sealed, report.counts.duplicates) == (1, 1)
    ((first,),) = house.rows("SELECT id FROM source WHERE label = 'monday.txt'")
    assert house.held() == [(1, "duplicate", first)]
    assert house.keys() == ["ABCD-EFGH-0001", "ABCD-EFGH-0002"]


def test_S3_the_same_key_again_in_one_source_is_counted_without_a_row(house: Any, payload: Any) -> None:
    report = house.take(payload("opaque-1", text(["AAAA-1111", "BBBB-2222", "AAAA-1111", "AAAA-1111"])))
    assert (report.counts.sealed, report.counts.repeats) == (2, 2)
    assert house.held() == []
    assert house.source("keys.txt")["repeats"] == 2


def test_repeats_and_duplicates_are_found_over_chunks_too(house: Any, payload: Any, small_chunks: int) -> None:
    keys = lines(12)
    report = house.take(payload("opaque-1", text([*keys, *keys])))
    assert (report.counts.sealed, report.counts.repeats) == (12, 12)
    other = house.take(payload("opaque-1", text([*keys, "one-more"]), label="other.txt"))
    assert (other.counts.sealed, other.counts.duplicates) == (1, 12)


# --- changing under our hands -----------------------------------------------------------------------------------------


class Changing:
    """Wraps a payload: after so many looks at it, somebody has put another content in its place."""

    def __init__(self, inner: Any, looks: int) -> None:
        self.inner, self.looks = inner, looks

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def unchanged(self) -> bool:
        self.looks -= 1
        return self.looks >= 0


@SQLITE
@pytest.mark.parametrize("looks", range(6))
def test_a_payload_that_changes_is_left_in_place_and_taken_whole_at_the_next_run(
    house: Any, payload: Any, small_chunks: int, looks: int
) -> None:
    keys = lines(20)
    item = payload("opaque-1", text(keys[:17]))
    report = house.take(Changing(item, looks))
    grown = payload("opaque-1", text(keys))
    if report.state == "changed":
        assert item.finished == []
        assert "LEFT IN PLACE" in report.text
    else:
        assert looks == 5  # it changed after the last byte was read
    again = house.take(grown)
    assert again.state == "taken"
    assert house.keys() == keys
    assert (again.counts.duplicates, again.counts.quarantined) == ((0, 0) if report.state == "changed" else (17, 17))


def test_a_content_that_comes_back_is_taken_up_where_it_stopped(house: Any, payload: Any, small_chunks: int) -> None:
    keys = lines(20)
    item = payload("opaque-1", text(keys))
    assert house.take(Changing(item, 2)).state == "changed"
    begun = house.source("keys.txt")["consumed"]
    assert 0 < begun < item.size
    assert house.take(item).state == "taken"
    assert_taken_once(house, "keys.txt", keys)


def test_a_run_that_is_told_to_stop_leaves_its_payload_to_the_next(house: Any, payload: Any, small_chunks: int) -> None:
    keys = lines(40)
    item = payload("opaque-1", text(keys))
    looks = iter([False, False, True])
    report = house.take(item, stopping=lambda: next(looks, True))
    assert (report.state, item.finished) == ("interrupted", [])
    assert house.source("keys.txt")["state"] == "taking"
    assert house.take(item).state == "taken"
    assert_taken_once(house, "keys.txt", keys)


# --- killed -----------------------------------------------------------------------------------------------------------


def killed_everywhere(make_house: Callable[..., Any], payload: Any, *, acknowledged: bool) -> int:
    """Take payloads, each killed one commit later than the one before, and again by a fresh daemon; how many kills."""
    for commits in range(20):
        house = make_house()
        keys = lines(17, f"kill-{commits}")
        label = f"{commits}.txt"
        house.kill_after(commits, acknowledged=acknowledged)
        killed = False
        try:
            house.take(payload("opaque-1", text(keys), label=label))
        except UnavailableError:
            killed = True
        house.stop()
        house = make_house()
        if killed:
            house.take(payload("opaque-1", text(keys), label=label))
        assert_taken_once(house, label, keys)
        if not killed:
            house.verified()
        house.stop()
        if not killed:
            return commits
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_kill_after_any_commit_loses_no_key_and_doubles_none(
    make_house: Callable[..., Any], payload: Any, small_chunks: int, acknowledged: bool
) -> None:
    kills = killed_everywhere(make_house, payload, acknowledged=acknowledged)
    assert kills >= 6  # the begin, four chunks, the end


def steam(number: int) -> str:
    return f"ABCDE-{number:05d}-FGHIJ"


def several_on_a_line() -> tuple[str, list[str]]:
    """Twelve lines of Steam keys, each with one to four of them, and every key in order."""
    keys = [steam(number) for number in range(30)]
    cut, at = [], 0
    for size in (1, 3, 2, 4, 1, 4, 3, 2, 4, 1, 3, 2):
        cut.append(", ".join(keys[at : at + size]))
        at += size
    return text(cut), keys


def killed_with_several(make_house: Callable[..., Any], payload: Any, commits: int, *, acknowledged: bool) -> None:
    """Lines with several keys, taken until a kill after so many commits, and then to the end: every key once."""
    content, keys = several_on_a_line()
    house = make_house()
    house.kill_after(commits, acknowledged=acknowledged)
    with pytest.raises(UnavailableError):
        house.take(payload("steam-1", content))
    house.stop()
    house = make_house()
    house.take(payload("steam-1", content))
    found = house.keys("steam-1")
    assert sorted(set(keys) - set(found)) == [], "lost"
    assert len(found) == len(set(found)) == len(keys), "twice"
    row = house.source("keys.txt")
    assert (row["state"], row["sealed"], row["quarantined"]) == ("taken", len(keys), 0)
    assert (row["consumed"], row["position"]) == (row["size"], 12), "the mark"
    house.stop()


@SQLITE
@pytest.mark.parametrize(("commits", "acknowledged"), [(2, True), (3, False), (5, True)])
def test_a_kill_among_lines_of_several_keys_loses_none_and_doubles_none(
    make_house: Callable[..., Any], payload: Any, small_chunks: int, commits: int, acknowledged: bool
) -> None:
    killed_with_several(make_house, payload, commits, acknowledged=acknowledged)


@SQLITE
def test_planted_bug_a_mark_in_the_midst_of_a_line_of_several_keys_is_caught(
    make_house: Callable[..., Any], payload: Any, small_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = intake_module.read

    def behind_the_line(*words: Any, **more: Any) -> Iterator[Any]:
        cards = list(real(*words, **more))
        ends = {card.position: (card.end, card.line_end) for card in cards}
        for card in cards:
            card.end, card.line_end = ends[card.position]
            yield card

    monkeypatch.setattr(intake_module, "read", behind_the_line)
    with pytest.raises(AssertionError, match="lost"):
        killed_with_several(make_house, payload, 2, acknowledged=True)


@pytest.mark.parametrize("media", ["csv", "xlsx"])
def test_a_table_goes_on_behind_its_last_row_after_a_kill(
    make_house: Callable[..., Any], payload: Any, small_chunks: int, media: str
) -> None:
    rows = [["number", "pin"], *[[f"60010000000{number:05d}", f"{4815 + number}16"] for number in range(17)]]
    content = workbook(rows) if media == "xlsx" else text([",".join(row) for row in rows]).encode()
    house = make_house()
    house.kill_after(3, acknowledged=True)
    with pytest.raises(UnavailableError):
        house.take(payload("cards-1", content, label=f"cards.{media}"))
    house.stop()
    house = make_house()
    begun = house.source(f"cards.{media}")["cards"]
    assert begun == 10
    report = house.take(payload("cards-1", content, label=f"cards.{media}"))
    assert (report.state, report.counts.sealed, report.counts.repeats) == ("taken", 7, 0)
    found = house.keys("cards-1")
    assert len(found) == len(set(found)) == 17
    row = house.source(f"cards.{media}")
    assert (row["cards"], row["sealed"], row["position"]) == (17, 17, 18)


def test_quarantine_is_counted_once_over_a_kill(
    make_house: Callable[..., Any], payload: Any, small_chunks: int
) -> None:
    content = text([f"no steam key {number}" for number in range(12)])
    house = make_house()
    house.kill_after(2, acknowledged=False)
    with pytest.raises(UnavailableError):
        house.take(payload("steam-1", content))
    house.stop()
    house = make_house()
    report = house.take(payload("steam-1", content))
    assert [position for position, _, _ in house.held()] == list(range(1, 13))
    assert house.source("keys.txt")["quarantined"] == 12
    assert re.search(r"^quarantined\s+12\b", report.text, re.MULTILINE)  # the report counts over the kill


@SQLITE
@pytest.mark.parametrize("after", ["seal", "delete"])
def test_a_kill_at_any_step_of_putting_away_only_repeats_it(
    house: Any,
    feed: Any,
    told: Any,
    drop: Any,
    kill: Any,
    killed_at_step: Any,
    monkeypatch: pytest.MonkeyPatch,
    after: str,
) -> None:
    feed.after = after
    for at in range(1, 100):
        keys = lines(3, f"step-{at}")
        content = text(keys).encode()
        path = drop(f"{at}.txt", content)
        (item,) = list(feed.pull_keys(told.pull()))
        steps = killed_at_step(type(item), at)
        killed = True
        with contextlib.suppress(kill):
            house.take(item)
            killed = False
        monkeypatch.undo()
        for again in feed.pull_keys(told.pull()):
            assert house.take(again).state == "already_taken"
        assert not path.exists()
        kept = [found for found in path.parent.joinpath("taken").iterdir() if found.name.startswith(f"{at}.txt")]
        sealed = [house.unsealed(found) for found in kept if found.name.endswith(".sealed")]
        assert set(sealed) == ({content} if after == "seal" else set())
        reports = [found.read_text() for found in kept if found.name.endswith(".report.txt")]
        assert reports
        assert all("sealed       3" in report for report in reports)
        assert_taken_once(house, f"{at}.txt", keys)
        if not killed:
            assert steps() >= 8
            return
    raise AssertionError("it never came to its end")


# --- bounds -----------------------------------------------------------------------------------------------------------


@SQLITE
def test_no_batch_is_larger_than_its_bound(house: Any, payload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "_MAX_CHUNK", 200)
    monkeypatch.setattr(intake_module, "_IDLE_S", 3600.0)  # as fast as can be: only the bound holds it
    house.take(payload("opaque-1", text(lines(2000))))
    assert sum(house.chunks) == 2000
    assert max(house.chunks) == 200


@SQLITE
def test_long_lines_make_small_batches(house: Any, payload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "_MAX_CHUNK_BYTES", 64 * 1024)
    keys = [f"{number:04d}-" + "x" * 3000 for number in range(100)]
    house.take(payload("opaque-1", text(keys)))
    assert house.keys() == keys
    assert max(house.chunks) <= 64 * 1024 // 3000 + 1


@SQLITE
def test_memory_stays_where_it_is_while_a_payload_grows(house: Any, payload: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(intake_module, "_MAX_CHUNK", 100)

    def peak(count: int, prefix: str) -> int:
        item = payload("opaque-1", text(lines(count, prefix)), label=f"{prefix}.txt")
        tracemalloc.start()
        try:
            house.take(item)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(300, "warm")
    small, large = peak(1000, "small"), peak(6000, "large")
    assert large < 2 * small + (1 << 20)


# --- nothing is seen --------------------------------------------------------------------------------------------------


def test_S4_no_key_stands_in_any_table_report_log_or_exception(
    house: Any, payload: Any, assert_unseen: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    good, odd = f"{CANARY}-1", f"{CANARY} is no steam key"
    said: list[str] = []
    said.append(house.take(payload("opaque-1", text([good, good]), label="one.txt")).text)
    said.append(house.take(payload("opaque-1", text([good, f"{CANARY}-2"]), label="two.txt")).text)
    said.append(house.take(payload("steam-1", text([odd]), label="three.txt")).text)

    def refuse(tx: Any, chunks: Any) -> Any:
        tx.query("SELECT no_such_column FROM source WHERE label = ?", ("x",))

    real = house.vault.intake
    house.vault.intake = Work("intake", real.lane, refuse)
    with pytest.raises(Exception) as failed:
        house.take(payload("opaque-1", text([f"{CANARY}-3"]), label="four.txt"))
    said += [repr(failed.value), str(failed.value)]
    house.vault.intake = real
    house.kill_after(1, acknowledged=False)
    with pytest.raises(SyncdError) as killed:
        house.take(payload("opaque-1", text([f"{CANARY}-4"]), label="five.txt"))
    said += [repr(killed.value)]
    streams = capsys.readouterr()
    for seen in (*said, caplog.text, streams.out, streams.err, house.everything(), repr(house.vault)):
        assert_unseen(CANARY, seen)
    assert house.keys() == [good, f"{CANARY}-2"]
    if not house.database.postgresql:
        for file in house.database.path.parent.glob("syncd.db*"):
            assert CANARY.encode() not in file.read_bytes()


# --- the harness catches what it is for -------------------------------------------------------------------------------


def test_planted_bug_a_mark_that_is_not_moved_is_caught(
    make_house: Callable[..., Any], payload: Any, small_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the mark, a payload is read from its beginning after a kill: its row then counts cards twice."""
    real = Tx.execute

    def execute(self: Tx, sql: str, params: Any = ()) -> int:
        if sql.startswith("UPDATE source SET consumed"):
            sql = sql.replace("consumed = ?, position = ?", "consumed = consumed + 0 * ?, position = ?")
            sql = sql.replace("consumed = ? AND", "? >= 0 AND")
        return real(self, sql, params)

    monkeypatch.setattr(Tx, "execute", execute)
    with pytest.raises(AssertionError, match=r"the source's row miscounts|the mark"):
        killed_everywhere(make_house, payload, acknowledged=True)


def test_planted_bug_a_duplicate_that_is_not_looked_for_is_caught(
    make_house: Callable[..., Any], payload: Any, small_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blind to what it has seen and with fingerprints that give way, the same key comes in twice."""
    monkeypatch.setattr(Vault, "_seen", lambda *_: {})
    real = Vault._insert_keys

    def insert(self: Vault, tx: Any, origin: Any, keys: Any) -> bool:
        real(self, tx, origin, keys)
        return True  # whatever the constraint said

    monkeypatch.setattr(Vault, "_insert_keys", insert)
    house = make_house()
    house.take(payload("opaque-1", text(lines(3)), label="one.txt"))
    house.take(payload("opaque-1", text([*lines(3), "new-key"]), label="two.txt"))
    with pytest.raises(AssertionError, match="twice"):
        assert_taken_once(house, "two.txt", [*lines(3), "new-key"])


@SQLITE
def test_planted_bug_a_chunk_that_is_dropped_is_caught(
    make_house: Callable[..., Any], payload: Any, small_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk whose keys are not written, though its mark is."""
    real = Vault._insert_keys

    def insert(self: Vault, tx: Any, origin: Any, keys: Any) -> bool:
        return real(self, tx, origin, [key for key in keys if key.position != 7])

    monkeypatch.setattr(Vault, "_insert_keys", insert)
    house = make_house()
    house.take(payload("opaque-1", text(lines(12))))
    with pytest.raises(AssertionError, match="lost"):
        assert_taken_once(house, "keys.txt", lines(12))


def test_planted_bug_the_constraint_alone_still_refuses_a_double_key(
    make_house: Callable[..., Any], payload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blind to what it has seen, but with the UNIQUE fingerprint in place: nothing comes in twice (S3)."""
    house = make_house()
    house.take(payload("opaque-1", text(lines(3)), label="one.txt"))
    house.writer._backoff.races = 2
    monkeypatch.setattr(Vault, "_seen", lambda *_: {})
    with pytest.raises((UnavailableError, sqlite3.IntegrityError)):
        house.take(payload("opaque-1", text([*lines(3), "new-key"]), label="two.txt"))
    assert house.keys() == lines(3)
    monkeypatch.undo()
    report = house.take(payload("opaque-1", text([*lines(3), "new-key"]), label="two.txt"))
    assert (report.counts.sealed, report.counts.duplicates) == (1, 3)


def test_two_daemons_that_take_one_payload_never_double_it(
    make_house: Callable[..., Any], payload: Any, small_chunks: int, database_url: str
) -> None:
    """Without a lease (an import by hand here, a run there), the source's mark alone keeps them apart."""
    house = make_house()
    other = make_house() if database_url.startswith("postgresql") else house
    keys = lines(20)
    slow = payload("opaque-1", text(keys))
    begun = []

    def interfere() -> bool:
        if not begun:
            begun.append(True)
            assert other.take(payload("opaque-1", text(keys), label="keys.txt")).state == "taken"
        return False

    with pytest.raises(LeaseLostError):
        house.take(slow, stopping=interfere)
    assert slow.finished == []
    assert_taken_once(house, "keys.txt", keys)


def test_K5_a_file_that_grows_during_import_after_import_is_taken_whole_in_the_end(
    house: Any, feed: Any, told: Any, drop: Any, small_chunks: int
) -> None:
    """A slow upload that pauses now and then: what each look took already is a repeat, never a duplicate (K5)."""
    keys = lines(30)
    path = drop("keys.txt", text(keys[:12]))
    for upto in (20, 26, 30):
        (item,) = list(feed.pull_keys(told.pull()))
        asked = []

        def grow(upto: int = upto, asked: list[bool] = asked) -> bool:
            asked.append(True)
            if len(asked) == 2:
                path.write_text(text(keys[:upto]))
            return False

        assert house.take(item, stopping=grow).state == "changed"
        assert path.exists()
    (item,) = list(feed.pull_keys(told.pull()))
    assert house.take(item).state == "taken"
    assert not path.exists()
    assert sorted(house.keys()) == keys
    assert house.held() == []


@pytest.mark.parametrize("commits", range(2, 6))
def test_the_pieces_of_an_endless_line_are_counted_once_over_a_kill(
    make_house: Callable[..., Any], payload: Any, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    """Such a line is cut into chunks though reading cannot be taken up inside it: its pieces come once more."""
    monkeypatch.setattr(intake_module, "_MAX_CHUNK_BYTES", 100_000)
    endless = "".join(f"{number:06d}" for number in range(70_000))
    content = text(["good-1", endless, "good-2"])
    house = make_house()
    house.kill_after(commits, acknowledged=True)
    with contextlib.suppress(UnavailableError):
        house.take(payload("opaque-1", content))
    house.stop()
    house = make_house()
    house.take(payload("opaque-1", content))
    row = house.source("keys.txt")
    pieces = len(house.held())
    assert pieces > 2
    assert (row["cards"], row["sealed"], row["quarantined"]) == (2 + pieces, 2, pieces)
    assert house.keys() == ["good-1", "good-2"]
