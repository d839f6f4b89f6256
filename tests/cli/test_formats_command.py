"""`syncd formats`: on the configuration and the file alone, and never a key in clear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openpyxl
import pytest

KEYS = ("A0011", "P0011SECRET", "A0012", "P0012SECRET")


@pytest.fixture
def sample(folder: Path) -> Path:
    path = folder / "keys.txt"
    path.write_text("您的卡密如下：\nA0011----P0011SECRET\nA0012----P0012SECRET\nA0011----P0011SECRET\n")
    return path


def test_explain_says_line_by_line_what_was_recognised(syncd: Any, config: Path, sample: Path) -> None:
    ended = syncd("formats", "explain", sample)
    assert ended.code == 0
    assert "pair:---- (3 of 3 lines)" in ended.out
    lines = [line.split()[:3] for line in ended.out.splitlines() if line.startswith("line ")]
    assert lines == [["line", "1", "prose"], ["line", "2", "read"], ["line", "3", "read"], ["line", "4", "repeat"]]
    assert "the key of line 2" in ended.out
    assert "in all: 1 prose, 2 read, 1 repeat" in ended.out


@pytest.mark.parametrize(
    "more", [[], ["--json"], ["--split", "line"], ["--format", "opaque"], ["--split", "{number}----{pin}"]]
)
def test_S4_explain_shows_no_key(syncd: Any, config: Path, sample: Path, more: list[str]) -> None:
    ended = syncd("formats", "explain", sample, *more)
    assert ended.code == 0
    assert not any(key in ended.out + ended.err for key in KEYS)


def test_explain_reads_for_a_product_in_json(syncd: Any, config: Path, sample: Path) -> None:
    config.write_text(
        config.read_text().replace('title = "Steam"', 'title = "Steam"\nformat = "steam"\nsplit = "line"')
    )
    found = syncd("formats", "explain", sample, "--product", "steam", "--json").json
    assert found["format"] == "steam"
    assert found["read_as"].startswith("line")
    assert {card["outcome"] for card in found["cards"]} == {"prose", "not_this_format"}


def test_explain_reads_a_declared_charset_and_a_workbook(syncd: Any, config: Path, folder: Path) -> None:
    old = folder / "old.txt"
    old.write_bytes("卡號：A0011 密碼：P0011".encode("big5"))
    assert syncd("formats", "explain", old, "--charset", "big5", "--json").json["encoding"] == "cp950"
    book = openpyxl.Workbook()
    for row in (("卡号", "密码"), ("0012345", "P0012345")):
        book.active.append(row)
    book.save(folder / "keys.xlsx")
    found = syncd("formats", "explain", folder / "keys.xlsx", "--json").json
    assert [card["outcome"] for card in found["cards"]] == ["read"]


def test_explain_reads_dates_in_the_zone_that_is_given_or_the_products_suppliers(
    syncd: Any, config: Path, sample: Path
) -> None:
    sample.write_text("卡密：A0011-XYZ 有效期：2031-12-31\n")

    def expires(*words: str) -> str:
        (card,) = syncd("formats", "explain", sample, *words, "--json").json["cards"]
        return str(card["expires"])

    assert expires().startswith("2031-12-31T15:59:59")  # Asia/Shanghai, if nothing says otherwise
    assert expires("--timezone", "UTC").startswith("2031-12-31T23:59:59")
    wang = '[suppliers.wang]\nadapter = "feed"\nfolder = "feeds"\ntimezone = "America/New_York"\n'
    served = 'title = "Steam"\noffers = [{ supplier = "wang", sku = "1" }]'
    config.write_text(config.read_text().replace('title = "Steam"', served) + wang)
    assert expires("--product", "steam", "--format", "auto").startswith("2032-01-01T04:59:59")
    assert expires("--product", "steam", "--format", "auto", "--timezone", "UTC").startswith("2031-12-31T23:59:59")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--format", "steem"), "no such format"),
        (("--split", "{a}{b}"), "no such splitter"),
        (("--charset", "ebcdic"), "charset is not known"),
        (("--product", "nope"), "no product has the sku"),
        (("--timezone", "Mars/Olympus"), "no such time zone"),
        (("--timezone", "../etc"), "no such time zone"),
    ],
)
def test_explain_refuses_what_there_is_not(
    syncd: Any, config: Path, sample: Path, words: tuple[str, ...], said: str
) -> None:
    ended = syncd("formats", "explain", sample, *words)
    assert ended.code == 1
    assert said in ended.err
    assert ended.out == ""


def test_list_and_test_know_an_operators_own_format(syncd: Any, config: Path, folder: Path) -> None:
    own = config.parent / "formats.toml"
    own.write_text('[mine]\naccept = ["AB-12"]\n[mine.code]\nalphabet = "alnum"\ngroups = [2, 2]\n')
    assert {row["name"]: row["shape"] for row in syncd("formats", "list", "--json").json}["mine"] == "code: 2-2 alnum"
    assert "1 formats, 1 examples" in syncd("formats", "test").out
    own.write_text(own.read_text().replace("AB-12", "AB-123"))
    ended = syncd("formats", "test")
    assert ended.code == 78
    assert "mine.accept[0]: is not read" in ended.err
