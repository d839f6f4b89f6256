"""`syncd adapter`: starting one, listing, showing, documenting and testing them, all without a daemon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from syncd.suppliers import registry

KIT = Path(__file__).parents[1] / "suppliers" / "kit"


@pytest.fixture
def acme(folder: Path, config: Path) -> Path:
    """A good adapter in the configuration's folder of drop-ins."""
    place = folder / "adapters"
    place.mkdir(mode=0o755)
    for name in ("acme.py", "acme.examples.toml"):
        (place / name).write_bytes((KIT / name).read_bytes())
        (place / name).chmod(0o644)
    config.write_text(f'[daemon]\nlisten = "127.0.0.1:0"\nadapters = ["{place}"]\n[shops.demo]\n')
    return place / "acme.py"


# --- new --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [False, True], ids=["python", "toml"])
def test_a_new_adapter_is_silver_at_once_and_its_own_test_passes(syncd: Any, folder: Path, rest: bool) -> None:
    suffix = ".toml" if rest else ".py"
    made = syncd("adapter", "new", "lao-wang_2", "--in", "mine", *(["--rest"] if rest else []))
    assert made.code == 0
    assert made.out.splitlines() == [
        f"mine/{name}" for name in (f"lao-wang_2{suffix}", "lao-wang_2.examples.toml", "test_lao_wang_2.py")
    ]
    tried = syncd("adapter", "test", f"mine/lao-wang_2{suffix}", "--json")
    assert (tried.code, tried.json["tier"]) == (0, "silver")
    for path in (folder / "mine").iterdir():
        assert not {"TITLE", "CLASS", "DOMAIN", "FILE"} & set(path.read_text().replace("{", " ").split()), path
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_lao_wang_2.py"]
    done = subprocess.run(command, cwd=folder / "mine", capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


def test_the_guides_example_is_what_new_writes(syncd: Any, folder: Path) -> None:
    assert syncd("adapter", "new", "yunka").code == 0
    guide = (registry.bundled() / "README.md").read_text(encoding="utf-8")
    for name, language in (("yunka.py", "python"), ("test_yunka.py", "python"), ("yunka.examples.toml", "toml")):
        text = (folder / name).read_text(encoding="utf-8")
        if language == "toml":
            text = text.partition("\n\n")[2]  # the guide needs no pointer to itself
        assert f"```{language}\n{text}```" in guide, name


def test_a_new_adapter_overwrites_nothing_and_has_a_sound_name(syncd: Any, folder: Path) -> None:
    (folder / "mine.examples.toml").write_text("mine")
    refused = syncd("adapter", "new", "mine")
    assert refused.code == 1
    assert "mine.examples.toml is there already" in refused.err
    assert not (folder / "mine.py").exists()
    assert "small letters" in syncd("adapter", "new", "Mine!").err


# --- list, show, docs -------------------------------------------------------------------------------------------------


def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the list says of tiers takes seconds to find out, and is seen in one test."""
    monkeypatch.setattr("syncd.cli.adapter._tier", lambda _place: "untried")


def test_K12_all_adapters_are_listed_and_a_broken_one_is_a_warning(
    syncd: Any, acme: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = acme.with_name("broken.py")
    broken.write_text("ADAPTER = 1 / 0\n")
    broken.chmod(0o644)
    listed = syncd("adapter", "list")
    assert listed.code == 0
    rows = {line.split()[0]: line for line in listed.out.splitlines()}
    assert {"acme", "feed", "broken", "dujiao_next"} <= rows.keys()
    assert "gold" in rows["acme"]
    assert "drop-in" in rows["acme"]
    assert "broken.py" in listed.err
    assert "ZeroDivisionError" in listed.err
    untried(monkeypatch)
    told = {row["name"]: row for row in syncd("adapter", "list", "--json").json}
    assert "place_order" in told["acme"]["capabilities"]
    assert told["feed"]["kind"] == "feed"
    assert told["broken"]["problem"]


def test_without_any_configuration_the_bundled_ones_are_there(
    syncd: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untried(monkeypatch)
    assert {row["name"] for row in syncd("adapter", "list", "--json").json} == {
        one.name for one in registry.catalogue([])
    }


def test_one_is_shown_with_its_settings(syncd: Any, acme: Path) -> None:
    shown = syncd("adapter", "show", "acme")
    assert shown.code == 0
    assert "API key, from the account's page." in shown.out
    assert "https://api.acme.example" in shown.out
    assert "Whether a callback is sent again after an error." in shown.out
    facts = syncd("adapter", "show", "acme", "--json").json
    assert [row["setting"] for row in facts["settings"]] == ["key", "hook", "url"]
    assert [row["type"] for row in facts["settings"]] == ["secret", "secret", "text"]
    assert facts["tier"] == "gold"
    assert syncd("adapter", "show", "nosuch").code == 1


def test_a_page_is_written_or_printed(syncd: Any, acme: Path, folder: Path) -> None:
    printed = syncd("adapter", "docs", "acme")
    assert printed.out.startswith("<!-- written by: syncd adapter docs acme -->\n# Acme Cards\n")
    assert "| `OutOfStock` | sold out |" in printed.out
    written = syncd("adapter", "docs", "acme", "--to", "pages")
    assert (folder / "pages" / "acme.md").read_text() == printed.out
    assert written.out == "pages/acme.md\n"


def test_pages_are_not_written_into_an_installed_program(syncd: Any, folder: Path, monkeypatch: Any) -> None:
    (folder / "site-packages" / "adapters").mkdir(parents=True)
    monkeypatch.setattr(registry, "bundled", lambda: folder / "site-packages" / "adapters")
    refused = syncd("adapter", "docs")
    assert refused.code == 1
    assert "--to" in refused.err
    assert not (folder / "site-packages" / "docs").exists()


# --- test -------------------------------------------------------------------------------------------------------------


def test_the_kit_ends_with_0_for_a_good_one(syncd: Any, acme: Path) -> None:
    tried = syncd("adapter", "test", "acme", "--tier", "gold")
    assert tried.code == 0
    assert tried.out.splitlines()[-1].startswith("acme: gold (")
    assert "the-listing-is-as-documented" in tried.out
    silver = syncd("adapter", "test", "acme", "--verbose")
    assert silver.out.splitlines()[-1].startswith("acme: silver (")
    assert "A price or a stock that is read from the wrong place" in silver.out
    assert "offers-have-titles" not in silver.out


def test_the_kit_ends_with_1_for_a_bad_one_and_says_what_to_do(syncd: Any, acme: Path) -> None:
    acme.write_text(acme.read_text().replace('"sold_out": OutOfStock', '"sold_out": PriceChanged'))
    tried = syncd("adapter", "test", "acme")
    assert tried.code == 1
    assert "sold out (place_order): PriceChanged, expected is OutOfStock" in tried.out
    assert "-> map it in the adapter's table of refusals" in tried.out
    assert tried.out.splitlines()[-1].startswith("acme: bronze (")
    assert syncd("adapter", "test", "acme", "--tier", "bronze").code == 0
    told = syncd("adapter", "test", "acme", "--json").json
    (failed,) = [one for one in told["checks"] if one["state"] == "failed"]
    assert failed["check"] == "refusals-are-typed"
    assert failed["findings"][0]["do"]


def test_wrong_examples_are_told_by_their_place(syncd: Any, acme: Path) -> None:
    examples = acme.with_name("acme.examples.toml")
    examples.write_text(examples.read_text().replace("sends = {", "sennds = {"))
    tried = syncd("adapter", "test", "acme")
    assert tried.code == 1
    assert "exchange[5].sennds: there is no such name" in tried.out
    assert "-> did you mean sends?" in tried.out


def test_what_one_mistake_blocks_is_told_in_a_line(syncd: Any, acme: Path) -> None:
    acme.write_text(acme.read_text().replace("context.connect(", "context.konnect("))
    tried = syncd("adapter", "test", "acme")
    assert (tried.code, tried.err) == (1, "")
    assert "has no attribute 'konnect'" in tried.out
    assert tried.out.count("(silver): ") == 0  # no headings without anything below them
    told = tried.out.splitlines()[-2].split(" blocked by: ")
    assert int(told[0]) > 20
    assert told[1] == "building-it-touches-nothing"
    assert tried.out.splitlines()[-1].startswith("acme: below bronze (")


def test_an_adapter_that_is_not_found_says_where_it_was_looked_for(syncd: Any, acme: Path, folder: Path) -> None:
    missing = syncd("adapter", "test", "cardbay").err
    assert f"there is no adapter 'cardbay' in {acme.parent}, {registry.bundled()}" in missing
    assert "there are: acg_faka, acme, " in missing
    (folder / "cardbay.py").write_text("")
    assert "did you mean ./cardbay.py?" in syncd("adapter", "test", "cardbay").err


def test_a_file_that_is_not_there_and_a_tier_that_is_none(syncd: Any, folder: Path) -> None:
    assert "there is no file nosuch.py" in syncd("adapter", "test", "nosuch.py").err
    assert "bronze, silver or gold" in syncd("adapter", "test", "feed", "--tier", "platinum").err
