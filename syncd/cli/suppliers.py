"""`syncd sync`: run suppliers now, and see what came of it."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

import typer

from syncd.cli import operator, output
from syncd.cli.operator import Operator, RefusedError
from syncd.cli.options import AsJson, ConfigFile

_COLUMNS: Final = ("supplier", "run", "seen", "new", "repeats", "duplicates", "quarantined", "outcome")
_POLL_S: Final = 0.25


def sync(
    name: Annotated[str | None, typer.Argument(help="The supplier; otherwise all of them.", show_default=False)] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the end and show the outcome.")] = True,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Sync one supplier, or all, now. Exit code 1 if a run failed."""
    daemon = Operator.of(config)
    names = [name] if name else _enabled(daemon)
    runs = {each: _start(daemon, each) for each in names}
    ended = [_end(daemon, each, run) if wait else {"supplier": each, "id": run} for each, run in runs.items()]
    if json_:
        output.as_json(ended)
    elif wait:
        output.table([_told(row) for row in ended], _COLUMNS, empty="the configuration has no suppliers")
    else:
        output.table([{"supplier": row["supplier"], "run": row["id"]} for row in ended], empty="nothing to sync")
    if any(row.get("error") for row in ended):
        raise typer.Exit(1)


def _enabled(daemon: Operator) -> list[str]:
    listed = operator.rows(daemon.get("/v1/suppliers"), "suppliers")
    return [row["name"] for row in listed if row.get("enabled", True)]


def _start(daemon: Operator, name: str) -> str:
    """The id of the run that was started, or of the one that is running already."""
    try:
        return str(daemon.post(f"/v1/suppliers/{operator.part(name)}/sync")["run"])
    except RefusedError as refused:
        if refused.reason != "already_running" or not refused.problem.get("run"):
            raise
        output.note(f"{name} is being synced already")
        return str(refused.problem["run"])


def _end(daemon: Operator, name: str, run: str) -> dict[str, Any]:
    with output.progress(name) as tell:
        while True:
            row: dict[str, Any] = daemon.get(f"/v1/runs/{operator.part(run)}")
            if row.get("ended_at"):
                return row
            now = row.get("progress") or {}
            tell(now.get("bytes") or 0, now.get("total") or 0)
            time.sleep(_POLL_S)


def _told(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "run": row.get("id"), "outcome": row.get("error") or "done"}
