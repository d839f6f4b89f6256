"""Adapters are found by name, run only from files that nobody else could have written, and refused with a reason."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from syncd import config
from syncd.adapter import Adapter
from syncd.errors import SyncdError
from syncd.suppliers import registry
from syncd.suppliers.registry import UnsafeAdapterError

MINE = """
from syncd.adapter import Adapter, Settings

class MineSettings(Settings):
    account: str
    retries: int = 3

class Mine(Adapter):
    Settings = MineSettings

ADAPTER = Mine
"""


@pytest.fixture
def drop_in(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Write a drop-in adapter with safe modes."""
    folder = tmp_path / "adapters"
    folder.mkdir(mode=0o755)

    def write(name: str = "mine", content: str = MINE) -> Path:
        path = folder / f"{name}.py"
        path.write_text(content)
        path.chmod(0o644)
        return path

    yield write
    for name in [name for name in sys.modules if name.startswith("syncd_adapter_")]:
        del sys.modules[name]


def settings(tmp_path: Path, suppliers: str) -> Any:
    file = tmp_path / "syncd.toml"
    file.write_text(f'[daemon]\nadapters = ["adapters"]\n{suppliers}')
    return config.load(file)


# --- finding ----------------------------------------------------------------------------------------------------------


def test_every_bundled_adapter_is_found_and_loads() -> None:
    names = sorted(path.stem for path in registry.bundled().glob("*.py"))
    assert "feed" in names
    for name in names:
        path = registry.find(name, [])
        assert path == registry.bundled() / f"{name}.py"
        assert issubclass(registry.load(path), Adapter)


def test_an_unknown_adapter_is_refused_with_those_that_there_are(drop_in: Callable[..., Path]) -> None:
    folder = drop_in().parent
    with pytest.raises(SyncdError, match="there is no adapter 'other'") as refused:
        registry.find("other", [folder, folder / "nowhere"])
    assert refused.value.hint == "there are: feed, mine" or "mine" in refused.value.hint
    with pytest.raises(SyncdError, match="there is no adapter"):
        registry.find("../adapters/mine/..", [folder])


def test_a_drop_in_is_found_and_the_first_folder_wins(drop_in: Callable[..., Path], tmp_path: Path) -> None:
    path = drop_in()
    later = tmp_path / "later"
    later.mkdir(mode=0o755)
    (later / "mine.py").write_text(MINE)
    assert registry.find("mine", [path.parent, later]) == path


@pytest.mark.parametrize("which", ["file", "folder"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_a_drop_in_that_others_can_write_is_refused(drop_in: Callable[..., Path], which: str, mode: int) -> None:
    path = drop_in()
    place = path if which == "file" else path.parent
    place.chmod(place.stat().st_mode | mode)
    with pytest.raises(UnsafeAdapterError) as refused:
        registry.find("mine", [path.parent])
    assert str(place) in refused.value.message
    assert f"chmod go-w {place}" in refused.value.hint
    place.chmod(place.stat().st_mode & ~0o022)
    assert registry.find("mine", [path.parent]) == path


@pytest.mark.parametrize("which", ["file", "folder"])
def test_a_drop_in_of_another_user_is_refused(
    drop_in: Callable[..., Path], which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = drop_in()
    foreign = path if which == "file" else path.parent
    real = Path.stat

    def stat(self: Path, **asked: Any) -> Any:
        info = real(self, **asked)
        if self == foreign:
            return os.stat_result((*info[:4], 4_000_000, *info[5:]))
        return info

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(UnsafeAdapterError):
        registry.find("mine", [path.parent])


def test_an_unsafe_file_is_never_run(drop_in: Callable[..., Path], tmp_path: Path) -> None:
    path = drop_in("mine", f"open({str(tmp_path / 'ran')!r}, 'w')\n{MINE}")
    path.chmod(0o666)
    _, problems = registry.build(settings(tmp_path, '[suppliers.a]\nadapter = "mine"\naccount = "x"\n'))
    assert [problem.path for problem in problems] == ["suppliers.a.adapter"]
    assert not (tmp_path / "ran").exists()


def test_shadowing_a_bundled_adapter_needs_override(drop_in: Callable[..., Path]) -> None:
    path = drop_in("feed")
    with pytest.raises(SyncdError, match="has the name of a bundled adapter") as refused:
        registry.find("feed", [path.parent])
    assert "override = true" in refused.value.hint
    assert registry.find("feed", [path.parent], override=True) == path
    path.chmod(0o666)
    with pytest.raises(UnsafeAdapterError):  # override is no way round
        registry.find("feed", [path.parent], override=True)


def test_override_without_a_drop_in_takes_the_bundled_one() -> None:
    assert registry.find("feed", [], override=True) == registry.bundled() / "feed.py"


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("def broken(:\n", "line 1 does not load: SyntaxError"),
        ("import no_such_module\n", "does not load: ModuleNotFoundError"),
        ("raise KeyError('secret-in-a-message')\n", "does not load: KeyError"),
        ("x = 1\n", "has no ADAPTER"),
        ("ADAPTER = object()\n", "has no ADAPTER"),
        ("class Other: ...\nADAPTER = Other\n", "has no ADAPTER"),
        ("import sys\nsys.exit(3)\n", "does not load: SystemExit"),
    ],
)
def test_a_broken_file_is_a_problem_with_its_path_and_the_others_are_built(
    drop_in: Callable[..., Path], tmp_path: Path, content: str, said: str
) -> None:
    drop_in("broken", content)
    drop_in()
    made, problems = registry.build(
        settings(
            tmp_path,
            '[suppliers.a]\nadapter = "broken"\n[suppliers.b]\nadapter = "mine"\naccount = "x"\n'
            '[suppliers.c]\nadapter = "no-such"\n[suppliers.d]\nadapter = "broken"\nenabled = false\n',
        )
    )
    assert [problem.path for problem in problems] == ["suppliers.a.adapter", "suppliers.c.adapter"]
    assert said in problems[0].message
    assert "secret-in-a-message" not in str(problems[0])
    assert list(made) == ["b"]


def test_settings_are_the_adapters_own_and_every_mistake_is_named_at_once(
    drop_in: Callable[..., Path], tmp_path: Path
) -> None:
    drop_in()
    _, problems = registry.build(
        settings(tmp_path, '[suppliers.a]\nadapter = "mine"\nretries = "many"\nacount = "CANARY"\n')
    )
    assert sorted(problem.path for problem in problems) == [
        "suppliers.a.account",
        "suppliers.a.acount",
        "suppliers.a.retries",
    ]
    assert all("settings of mine: account, retries" in problem.fix for problem in problems)
    assert "CANARY" not in str(problems)  # a mistyped setting may be a credential


def test_an_adapter_is_given_its_name_its_settings_and_its_time_zone(
    drop_in: Callable[..., Path], tmp_path: Path
) -> None:
    drop_in()
    made, problems = registry.build(
        settings(tmp_path, '[suppliers.a]\nadapter = "mine"\naccount = "x"\ntimezone = "Europe/Berlin"\n')
    )
    assert problems == []
    context = made["a"].adapter.context
    assert (context.name, context.settings.account, context.settings.retries) == ("a", "x", 3)
    assert str(context.timezone) == "Europe/Berlin"


def test_a_folder_is_relative_to_the_configuration(tmp_path: Path) -> None:
    made, problems = registry.build(settings(tmp_path, '[suppliers.a]\nadapter = "feed"\nfolder = "in/keys"\n'))
    assert problems == []
    assert made["a"].adapter.folder == tmp_path / "in" / "keys"


def test_an_adapter_whose_constructor_fails_is_a_problem_too(drop_in: Callable[..., Path], tmp_path: Path) -> None:
    drop_in(
        "mine",
        "from syncd.adapter import Adapter\n"
        "class Mine(Adapter):\n"
        "    def __init__(self, context):\n"
        "        raise RuntimeError('secret-in-a-message')\n"
        "ADAPTER = Mine\n",
    )
    made, problems = registry.build(settings(tmp_path, '[suppliers.a]\nadapter = "mine"\n'))
    assert made == {}
    assert [problem.path for problem in problems] == ["suppliers.a.adapter"]
    assert "secret-in-a-message" not in str(problems)
