"""`syncd sync`: run suppliers now, and see what came of it."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

import typer

from syncd.cli import operator, output
from syncd.cli.operator import Operator, RefusedError
from syncd.cli.options import AsJson, ConfigFile

_COLUMNS: Final = (
    "supplier",
    "run",
    "seen",
    "new",
    "repeats",
    "duplicates",
    "quarantined",
    "offers",
    "changed",
    "removed",
    "outcome",
)
_POLL_S: Final = 0.25
_UNSEEN: Final = 3


def sync(
    name: Annotated[str | None, typer.Argument(help="The supplier; otherwise all of them.", show_default=False)] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the end and show the outcome.")] = True,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Sync one supplier, or all, now. Exit code 1 if a run failed."""
    daemon = Operator.of(config)
    runs = {name: _start(daemon, name)} if name else {each: _start_or_tell(daemon, each) for each in _enabled(daemon)}
    show([end(daemon, each, run) if wait and "id" in run else run for each, run in runs.items()], as_json=json_)


def show(ended: list[dict[str, Any]], *, as_json: bool) -> None:
    """What came of runs: those that have ended, or have only been started. Exit code 1 if one failed."""
    if as_json:
        output.as_json(ended)
    elif any("seen" in row for row in ended):
        output.table([_told(row) for row in ended], _COLUMNS)
    else:
        output.table(
            [{"supplier": row["supplier"], "run": row.get("id"), "outcome": row.get("error")} for row in ended],
            empty="nothing to sync",
        )
    if any(row.get("error") for row in ended):
        raise typer.Exit(1)


def _enabled(daemon: Operator) -> list[str]:
    listed = operator.rows(daemon.get("/v1/suppliers"), "suppliers")
    return [row["name"] for row in listed if row.get("enabled", True)]


def _start(daemon: Operator, name: str) -> dict[str, Any]:
    """The run that was started, or the one that is under way already."""
    try:
        return {"supplier": name, "id": str(daemon.post(f"/v1/suppliers/{operator.part(name)}/sync")["run"])}
    except RefusedError as refused:
        if refused.reason != "already_running":
            raise
        output.note(f"{name} is being synced already")
        run = refused.problem.get("run")  # none when another daemon on this database runs it
        return {"supplier": name, "id": str(run)} if run else {"supplier": name}


def _start_or_tell(daemon: Operator, name: str) -> dict[str, Any]:
    """As `_start`; one supplier that is refused never keeps the others from being synced."""
    try:
        return _start(daemon, name)
    except RefusedError as refused:
        return {"supplier": name, "error": refused.message}


def end(daemon: Operator, name: str, run: dict[str, Any]) -> dict[str, Any]:
    """A run's row once it has ended; waits for that."""
    unseen = 0
    with output.progress(name) as tell:
        while True:
            row: dict[str, Any] = daemon.get(f"/v1/runs/{operator.part(run['id'])}")
            if row.get("ended_at"):
                return row
            now = row.get("progress")
            # A run that is neither ended nor under way was lost with its lease; once may be the moment of its end.
            unseen = 0 if now else unseen + 1
            if unseen > _UNSEEN:
                return {**row, "error": "the run was lost: another daemon has taken over"}
            tell((now or {}).get("bytes") or 0, (now or {}).get("total") or 0)
            time.sleep(_POLL_S)


def _told(row: dict[str, Any]) -> dict[str, Any]:
    counts = {"changed": row.get("offers_changed"), "removed": row.get("offers_removed")}
    return {
        **row,
        **counts,
        "run": row.get("id"),
        "outcome": row.get("error") or ("done" if row.get("ended_at") else "running"),
    }
