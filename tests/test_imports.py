"""The house's order (pyproject.toml, import-linter) holds, and its contracts turn red when it does not."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(folder):
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "syncd", tmp_path / "syncd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_arrows_point_down_and_each_dangerous_library_has_one_importer():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("model.py", "import syncd.audit", "Arrows point down"),
        ("vault/planted.py", "import syncd.suppliers", "Arrows point down"),
        ("metrics.py", "import syncd.logs", "Arrows point down"),
        ("helpers.py", "", "Arrows point down"),  # exhaustive: a module that has no place in the order
        ("orders/planted.py", "import httpx", "httpx"),
        ("storefronts/planted.py", "import httpx", "httpx"),
        ("orders/planted.py", "from cryptography.hazmat.primitives import hashes", "cryptography"),
        ("vault/planted.py", "import cryptography", "cryptography"),
        ("suppliers/planted.py", "import cryptography", "cryptography"),
        ("daemon.py", "import apscheduler.schedulers.asyncio", "APScheduler"),
        ("orders/planted.py", "from starlette.requests import Request", "web framework"),
        ("store/planted.py", "import fastapi", "web framework"),
        ("vault/planted.py", "import socket", "never meets the network"),
        ("vault/planted.py", "from urllib.request import urlopen", "never meets the network"),
    ],
)
def test_negative_control_a_wrong_import_turns_a_contract_red(copy, module, line, contract):
    path = copy / "syncd" / module
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout
    broken = [line for line in done.stdout.splitlines() if " BROKEN" in line]
    assert [contract in line for line in broken] == [True], done.stdout


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."


def test_an_adapter_imports_one_module_of_ours():
    """adapters/ is loaded by path and is no package, so import-linter does not see it."""
    wrong = [
        f"{path.name}: {name}"
        for path in (ROOT / "adapters").glob("*.py")
        for name in imports(path)
        if name.partition(".")[0] == "syncd" and name != "syncd.adapter"
    ]
    assert wrong == []
