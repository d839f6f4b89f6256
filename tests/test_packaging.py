"""What is shipped: the sdist, the wheel built from it, and the lock files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import syncd

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SHIPPED = ("syncd", "adapters", "config", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")


def build(source, target, *, kind):
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", target, source],
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that is built from the sdist, as a packager would."""
    folder = tmp_path_factory.mktemp("dist")
    clean = folder / "checkout"
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, clean / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, clean / name)
    build(clean, folder, kind="sdist")
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    build(unpacked, folder, kind="wheel")
    (path,) = folder.glob("*.whl")
    return path


def files(folder):
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_made_from_the_sdist_has_the_adapters_and_the_configuration(wheel):
    shipped = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"syncd/{name}" for folder in ("adapters", "config") for name in files(folder)}
    assert expected, "nothing to look for"
    assert expected <= shipped
    assert files("syncd") <= shipped


def test_the_wheel_has_nothing_else(wheel):
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"syncd", f"syncd-{syncd.__version__}.dist-info"}


def test_the_wheel_brings_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "syncd = syncd.__main__:main" in archive.read(entry).decode()


# --- lock files -------------------------------------------------------------------------------------------------------


def read_lock(name):
    """Name → (version, number of hashes)."""
    text = (ROOT / name).read_text(encoding="utf-8")
    pins = {}
    for block in re.split(r"\n(?=\S)", text.strip()):
        found = re.fullmatch(r"([a-z0-9.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)", block)
        assert found, block
        pins[found[1]] = (Version(found[2]), found[3].count("--hash"))
    return pins


def wanted(*groups):
    """The direct requirements: the project's own and those of the groups, with what they include."""
    yield from map(Requirement, PROJECT["project"]["dependencies"])
    for group in groups:
        for item in PROJECT["dependency-groups"][group]:
            if isinstance(item, dict):
                yield from list(wanted(item["include-group"]))
            else:
                yield Requirement(item)


@pytest.mark.parametrize(("name", "group"), [("requirements.lock", "build"), ("requirements-dev.lock", "dev")])
def test_a_lock_file_satisfies_the_project_with_hashes_and_nothing_of_this_machine(name, group):
    pins = read_lock(name)  # the shape alone rules out a URL, a path or an index
    for requirement in wanted(group):
        version, _ = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_the_locks_agree():
    run, dev = read_lock("requirements.lock"), read_lock("requirements-dev.lock")
    assert {name: dev.get(name) for name in run} == run
    assert not {"pytest", "ruff", "mypy", "uv"} & set(run)


@pytest.mark.parametrize("name", ["cryptography", "psycopg-binary", "uvloop", "httptools", "msgspec", "pydantic-core"])
def test_compiled_packages_are_locked_for_more_than_one_platform(name):
    _, hashes = read_lock("requirements.lock")[name]
    assert hashes >= 12


def test_negative_control_a_lock_with_a_url_is_refused(monkeypatch, tmp_path):
    (tmp_path / "bad.lock").write_text(f"httpx @ https://example.org/httpx.whl \\\n    --hash=sha256:{'0' * 64}\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    with pytest.raises(AssertionError):
        read_lock("bad.lock")


# --- the task runner --------------------------------------------------------------------------------------------------


def test_make_help_lists_the_tasks():
    done = subprocess.run(["make", "--silent", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = [line.split()[1] for line in done.stdout.splitlines()]
    tasks = ["help", "run", "test", "check", "lint", "bench", "bench-replenish", "fuzz", "soak", "docs", "lock"]
    assert listed == tasks
