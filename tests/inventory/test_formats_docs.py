"""docs/formats.md says what the code does: every splitter, alphabet, check and key is in it; its examples load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from syncd.inventory.formats import SPLITS, is_split, load_formats, loading
from syncd.inventory.formats.rules import ALPHABETS, CHECKS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")


def first_column(text: str, heading: str) -> set[str]:
    table = text.partition(f"| {heading} |")[2].partition("\n\n")[0]
    return set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


CODE = {
    "Splitter": set(SPLITS),
    "Alphabet": set(ALPHABETS),
    "Check": set(CHECKS),
    "Key of a format": set(loading.FORMAT_KEYS),
    "Key of a field": set(loading.RULE_KEYS),
}


@pytest.mark.parametrize("heading", CODE)
def test_every_word_is_documented_and_every_documented_word_exists(heading: str) -> None:
    assert first_column(TEXT, heading) == CODE[heading]


@pytest.mark.parametrize(
    ("right", "heading"), [("`luhn`", "Check"), ("`hex`", "Alphabet"), ("`upper`", "Key of a field")]
)
def test_negative_control_a_word_that_does_not_exist_is_found(right: str, heading: str) -> None:
    assert first_column(TEXT.replace(f"| {right} |", "| `lune` |"), heading) != CODE[heading]


def test_the_examples_load(tmp_path: Path) -> None:
    (example,) = [block for block in re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL) if "[my-card]" in block]
    path = tmp_path / "mine.toml"
    path.write_text(example)
    assert load_formats([path])["my-card"].masked({"number": "AB12345678"}) != "AB12345678"
    (split,) = re.findall(r'^split = "(.*)"$', TEXT, re.MULTILINE)
    assert is_split(split)
