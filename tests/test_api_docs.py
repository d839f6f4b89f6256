"""docs/api.md says what the API does: every route and every problem's code, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import syncd.daemon  # every module that defines an error
from syncd.errors import SyncdError
from syncd.metrics import Metrics
from syncd.storefronts.native import build

DOC = Path(__file__).parents[1] / "docs" / "api.md"
# Errors that end a command or a start, and never a request.
NOT_OVER_HTTP = {
    "audit_broken",
    "config_error",
    "database_locked",
    "schema_mismatch",
    "start_error",
    "unsafe_adapter",
}


def codes(kind: type[SyncdError] = SyncdError) -> set[str]:
    return {kind.code}.union(*[codes(sub) for sub in kind.__subclasses__() if sub.__module__.startswith("syncd.")])


def routes() -> set[str]:
    parts: Any = SimpleNamespace(
        **dict.fromkeys(("settings", "deliveries", "stock", "access"), None), metrics=Metrics("0")
    )
    api = build(parts).api
    return {f"{method} {route.path}" for route in api.routes for method in getattr(route, "methods", None) or ()}  # type: ignore[attr-defined]


def documented(text: str) -> tuple[set[str], set[str]]:
    found = set(re.findall(r"(?:GET|POST|PUT|DELETE) /[a-z0-9_/.{}]*", text))
    return found, set(re.findall(r"^\| \d{3} \| `([a-z_]+)`", text, re.MULTILINE))


def assert_documented(text: str) -> None:
    assert syncd.daemon
    told_routes, told_codes = documented(text)
    assert told_routes == routes()
    backup_and_cli = {"daemon_not_reachable", "refused"}
    wanted = {code for code in codes() if code not in NOT_OVER_HTTP | backup_and_cli and not code.startswith("backup")}
    assert told_codes == wanted


def test_docs_api_names_every_route_and_code() -> None:
    assert_documented(DOC.read_text())


@pytest.mark.parametrize("line", ["| `GET /v1/status` |", "| 409 | `conflict` |"])
def test_control_a_missing_line_in_the_docs_is_seen(line: str) -> None:
    text = DOC.read_text()
    assert line in text
    with pytest.raises(AssertionError):
        assert_documented(text.replace(line, "| |"))
