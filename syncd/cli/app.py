"""The command line: its tree, and how it ends. Called by `syncd.__main__`.

Commands talk to the running daemon over its operator socket; only init, check, formats, db, audit, backup, restore and
adapter work without one (design decision K12). Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 75 no daemon
answers, 78 the configuration, a key or the schema forbids it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from syncd import __version__
from syncd.cli import (
    adapter,
    audit,
    daemon,
    database,
    deliveries,
    formats,
    keys,
    offers,
    output,
    plan,
    products,
    purchases,
    stock,
    suppliers,
    token,
    vault,
)
from syncd.cli.options import group
from syncd.errors import SyncdError

app = group("A daemon beside a card-key shop: syncs suppliers, keeps keys encrypted, delivers each exactly once.")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"syncd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


_PLAIN: tuple[Callable[..., None], ...] = (
    daemon.init,
    daemon.check,
    daemon.run,
    daemon.status,
    stock.stock,
    plan.explain,
    plan.replenish,
    suppliers.sync,
    database.backup,
    database.restore,
    database.recover,
)
for command in _PLAIN:
    app.command()(command)
app.add_typer(keys.commands, name="keys")
app.add_typer(deliveries.commands, name="deliveries")
app.add_typer(offers.commands, name="offers")
app.add_typer(purchases.commands, name="purchases")
app.add_typer(formats.commands, name="formats")
app.add_typer(products.commands, name="products")
app.add_typer(products.commands, name="product", hidden=True)  # whoever speaks of one is understood
app.add_typer(token.commands, name="token")
app.add_typer(vault.commands, name="vault")
app.add_typer(audit.commands, name="audit")
app.add_typer(database.commands, name="db")
app.add_typer(adapter.commands, name="adapter")


def main() -> None:
    """Run one command. Never ends in a traceback: it would show values, and help nobody at 3 a.m."""
    try:
        app()
    except SyncdError as error:
        output.complain(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # whoever read our output has enough; the interpreter's last flush must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        output.note(f"syncd: {where}{error.strerror or type(error).__name__}")
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - its message may hold anything, so only its kind and place are shown
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        place = f" in {Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}" if trace else ""
        output.note(f"syncd: {type(error).__name__}{place}\n    -> this is a fault of syncd: please report it")
        sys.exit(1)
