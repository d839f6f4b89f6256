"""What commands print: tables, facts, JSON, progress, problems. Used by every command.

Results go to standard output, everything else (progress, advice, errors) to standard error, so that a result can be
piped. On a terminal there are colours and bars; elsewhere plain lines that are never wrapped or cut.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from syncd.errors import ConfigError, SyncdError

Tell = Callable[[int, int], None]
"""Told how much is done, and how much there is (0: unknown)."""
_WIDE = 100_000


def as_json(value: Any) -> None:
    """One JSON document."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def line(text: str = "") -> None:
    """One line of a result."""
    sys.stdout.write(visible(text) + "\n")


def note(text: str) -> None:
    """One line to the person at the terminal, beside the result."""
    sys.stderr.write(visible(text) + "\n")


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None, *, empty: str = "none") -> None:
    """Rows as a table; without ``columns``, those that the rows have."""
    if not rows:
        line(empty)
        return
    from rich.table import Table

    names = list(columns) if columns else list(dict.fromkeys(name for row in rows for name in row))
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        numbers = all(isinstance(row.get(name), int | float | None) for row in rows)
        drawn.add_column(name.replace("_", " "), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*[_text(cell(row.get(name))) for name in names])
    _print(drawn)


def facts(value: Mapping[str, Any], indent: str = "") -> None:
    """A mapping as lines of name and value; what is nested follows, indented; lists of mappings are tables."""
    plain = {name: item for name, item in value.items() if not _nested(item)}
    width = max((len(name) for name in plain), default=0)
    for name, item in plain.items():
        line(f"{indent}{name.replace('_', ' '):<{width}}  {cell(item)}")
    for name, item in value.items():
        if not _nested(item):
            continue
        line(f"{indent}{name.replace('_', ' ')}:")
        if isinstance(item, Mapping):
            facts(item, indent + "  ")
        else:
            table(item)


def _nested(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and set(value) != {"amount", "currency"}
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def cell(value: Any) -> str:
    """A value as people read it."""
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        if set(value) == {"amount", "currency"}:
            return f"{value['amount']} {value['currency']}"
        return ", ".join(f"{name} {cell(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(cell(item) for item in value)
    return str(value)


def visible(text: str) -> str:
    """The text without what would steer a terminal: labels are names of files that somebody sent."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _text(text: str) -> Any:
    from rich.text import Text

    return Text(visible(text))


def _print(drawn: Any) -> None:
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(drawn)
        return
    console = Console(file=sys.stdout, width=_WIDE, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(drawn)
    for text in captured.get().splitlines():
        sys.stdout.write(text.rstrip() + "\n")


@contextlib.contextmanager
def progress(label: str, *, unit: str = "bytes") -> Iterator[Tell]:
    """A bar on standard error while a block runs; nothing where that is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    shown = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        amount,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with shown:
        task = shown.add_task(visible(label), total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total or None)


@contextlib.contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for work that goes through several named steps."""
    with contextlib.ExitStack() as stack:
        bars: dict[str, Tell] = {}

        def tell(step: str, done: int, total: int) -> None:
            if step not in bars:
                stack.close()
                bars.clear()
                bars[step] = stack.enter_context(progress(step, unit="steps"))
            bars[step](done, total)

        yield tell


def complain(error: SyncdError, to: TextIO | None = None) -> None:
    """An error as a few lines: what is wrong, and what to do."""
    to = to or sys.stderr
    if isinstance(error, ConfigError):
        for problem in error.problems:
            where = f"{problem.file}: {problem.path}" if problem.path else problem.file
            to.write(visible(f"{where}: {problem.message}") + "\n")
            if problem.fix:
                to.write(visible(f"    -> {problem.fix}") + "\n")
        number = len(error.problems)
        to.write(f"syncd: {number} problem{'s' * (number != 1)} in the configuration\n")
        return
    to.write(visible(f"syncd: {error.message}") + "\n")
    if error.hint:
        to.write(visible(f"    -> {error.hint}") + "\n")
