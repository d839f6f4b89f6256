"""Adapters are found by name, run only from files that nobody else could have written, and refused with a reason."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import certifi
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


# --- installed packages, adapters without code ------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a package with an entry point, as pip would."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(name: str, content: str = MINE, target: str = "planted_package:ADAPTER") -> None:
        (site / "planted_package.py").write_text(content)
        info = site / f"planted_{name}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: planted-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[syncd.adapters]\n{name} = {target}\n")
        sys.modules.pop("planted_package", None)

    yield install
    sys.modules.pop("planted_package", None)


def test_an_installed_adapter_is_found_by_its_entry_point(installed: Callable[..., None], tmp_path: Path) -> None:
    installed("theirs")
    made, problems = registry.build(settings(tmp_path, '[suppliers.a]\nadapter = "theirs"\naccount = "x"\n'))
    assert problems == []
    assert made["a"].adapter.context.settings.account == "x"


def test_an_installed_adapter_shadows_nothing_without_override(
    installed: Callable[..., None], drop_in: Callable[..., Path]
) -> None:
    installed("feed")
    with pytest.raises(SyncdError, match="planted_package:ADAPTER of planted-feed has the name of a bundled adapter"):
        registry.find("feed", [])
    assert registry.load(registry.find("feed", [], override=True)).__name__ == "Mine"
    path = drop_in("feed")
    assert registry.find("feed", [path.parent], override=True) == path
    installed("mine")
    path = drop_in("mine")
    with pytest.raises(SyncdError, match="has the name of an installed one"):
        registry.find("mine", [path.parent])


@pytest.mark.parametrize(
    ("content", "target", "said"),
    [
        ("raise KeyError('secret-in-a-message')", "planted_package:ADAPTER", "does not load: KeyError"),
        (MINE, "planted_package:NOTHING", "does not load: AttributeError"),
        (MINE, "no_such_package:ADAPTER", "does not load: ModuleNotFoundError"),
        ("ADAPTER = 3", "planted_package:ADAPTER", "has no ADAPTER"),
    ],
)
def test_an_installed_adapter_that_is_broken_is_a_problem(
    installed: Callable[..., None], tmp_path: Path, content: str, target: str, said: str
) -> None:
    installed("theirs", content, target)
    _, problems = registry.build(settings(tmp_path, '[suppliers.a]\nadapter = "theirs"\n'))
    assert [problem.path for problem in problems] == ["suppliers.a.adapter"]
    assert said in problems[0].message
    assert "secret-in-a-message" not in str(problems)


def test_an_adapter_without_code_is_handed_to_its_reader(
    drop_in: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = drop_in().with_name("told.toml")
    path.write_text("")
    path.chmod(0o644)

    class Told(Adapter):
        title = "told"

    reader: Any = ModuleType("syncd.suppliers.declarative")
    reader.load = lambda place: Told if place == path else None
    monkeypatch.setitem(sys.modules, "syncd.suppliers.declarative", reader)
    assert registry.load(registry.find("told", [path.parent])) is Told
    path.chmod(0o666)
    with pytest.raises(UnsafeAdapterError):
        registry.find("told", [path.parent])


def test_two_files_of_one_name_are_refused(drop_in: Callable[..., Path]) -> None:
    path = drop_in()
    path.with_suffix(".toml").write_text("")
    with pytest.raises(SyncdError, match="have one name"):
        registry.find("mine", [path.parent])


def test_the_catalogue_lists_everything_and_a_broken_unused_one_is_a_line_in_it(
    drop_in: Callable[..., Path], installed: Callable[..., None]
) -> None:
    installed("theirs")
    drop_in("broken", "raise KeyError('secret-in-a-message')\n")
    drop_in("open").chmod(0o666)
    path = drop_in()
    (path.parent / "mine.examples.toml").write_text("")
    listed = {one.name: one for one in registry.catalogue([path.parent, path.parent / "nowhere"])}
    assert {"feed", "mine", "theirs", "broken", "open"} <= set(listed)
    assert "mine.examples" not in listed
    assert (listed["feed"].source, listed["mine"].source, listed["theirs"].source) == (
        "bundled",
        "drop-in",
        "installed",
    )
    assert listed["feed"].capabilities == {"pull_keys"}
    assert listed["feed"].problem == listed["mine"].problem == ""
    assert "does not load: KeyError" in listed["broken"].problem
    assert "could be written by others" in listed["open"].problem
    assert "secret-in-a-message" not in str(listed)


# --- what a supplier's client is given --------------------------------------------------------------------------------

SECRETIVE = """
from syncd.adapter import Adapter, ApiKey, Secret, Settings

class MineSettings(Settings):
    base_url: str = "https://shop.example"
    key: Secret

class Mine(Adapter):
    Settings = MineSettings

    def __init__(self, context):
        super().__init__(context)
        self.http = context.connect(context.settings.base_url, auth=ApiKey(context.settings.key))

ADAPTER = Mine
"""


@pytest.fixture
def secretive(drop_in: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """Build supplier a with a credential and more settings."""
    drop_in("mine", SECRETIVE)

    def make(more: str = "", key: str = "canary-credential") -> Any:
        (tmp_path / "key").write_text(key)
        (tmp_path / "key").chmod(0o600)
        return registry.build(
            settings(tmp_path, f'[suppliers.a]\nadapter = "mine"\nkey = {{ file = "key" }}\n{more}\n')
        )

    return make


def test_the_core_settings_become_the_clients_limits_and_its_credentials_are_hidden(
    secretive: Callable[..., Any],
) -> None:
    made, problems = secretive('rate = "60/m"\nconcurrency = 2\ntimeout = "90s"\nmax_answer = "1MiB"')
    assert problems == []
    limits = made["a"].client.limits
    assert (limits.rate, limits.concurrency, limits.total_timeout, limits.max_answer) == ((60, 60), 2, 90, 1 << 20)
    assert made["a"].client.redact("<canary-credential>") == "<***>"
    assert "canary" not in repr(made)


def test_S4_a_secret_that_is_missing_or_that_everybody_can_read_is_a_problem_with_what_to_do(
    secretive: Callable[..., Any], tmp_path: Path
) -> None:
    assert secretive()[1] == []
    shown = settings(tmp_path, '[suppliers.a]\nadapter = "mine"\nkey = { file = "key" }\n')
    (tmp_path / "key").chmod(0o644)
    (problem,) = registry.build(shown)[1]
    assert (problem.path, problem.fix) == ("suppliers.a.key", f"chmod 600 {tmp_path / 'key'}")
    (tmp_path / "key").unlink()
    (problem,) = registry.build(shown)[1]
    assert (problem.message, problem.fix) == (f"{tmp_path / 'key'} is not there", "write it there, mode 0600")


@pytest.mark.parametrize(
    ("more", "path", "said"),
    [
        ('base_url = "http://shop.example"', "suppliers.a.adapter", "would send credentials in clear"),
        ('ca_file = "none.pem"', "suppliers.a.ca_file", "holds no certificates"),
    ],
)
def test_what_the_client_refuses_is_a_configuration_problem(
    secretive: Callable[..., Any], more: str, path: str, said: str
) -> None:
    _, problems = secretive(more)
    assert [problem.path for problem in problems] == [path]
    assert said in problems[0].message
    assert secretive('base_url = "http://shop.example"\nallow_http = true')[1] == []


def test_S4_the_digest_changes_with_anything_and_is_shown_nowhere(
    secretive: Callable[..., Any], drop_in: Callable[..., Path]
) -> None:
    def digest(*args: str, **more: str) -> str:
        made, problems = secretive(*args, **more)
        assert problems == []
        assert made["a"].digest not in repr(made)
        return str(made["a"].digest)

    first = digest()
    assert digest() == first
    found = {first, digest('rate = "1/s"'), digest('base_url = "https://other.example"'), digest(key="another-one")}
    drop_in("mine", SECRETIVE + "# changed\n")
    assert len(found | {digest()}) == 5


PAIRED = """
from syncd.adapter import Adapter, Secret, Settings

class PairedSettings(Settings):
    key: Secret
    secret: Secret

class Paired(Adapter):
    Settings = PairedSettings

ADAPTER = Paired
"""


def test_a_supplier_is_built_anew_when_two_credentials_change_places_or_other_certificates_are_trusted(
    drop_in: Callable[..., Path], tmp_path: Path
) -> None:
    """Else a reload, and even a restart, would keep the stop that the mistake has caused."""
    drop_in("paired", PAIRED)
    authorities = Path(certifi.where()).read_bytes()
    (tmp_path / "ca.pem").write_bytes(authorities)

    def digest(key: str, secret: str) -> str:
        (tmp_path / "key").write_text(key)
        (tmp_path / "secret").write_text(secret)
        for name in ("key", "secret"):
            (tmp_path / name).chmod(0o600)
        files = 'key = { file = "key" }\nsecret = { file = "secret" }\nca_file = "ca.pem"\n'
        made, problems = registry.build(settings(tmp_path, f'[suppliers.a]\nadapter = "paired"\n{files}'))
        assert problems == []
        return made["a"].digest

    wrong = digest("one-1", "two-2")
    assert digest("one-1", "two-2") == wrong
    right = digest("two-2", "one-1")
    assert right != wrong
    (tmp_path / "ca.pem").write_bytes(authorities + b"\n# renewed\n")
    assert digest("two-2", "one-1") != right
