"""`syncd audit`: whether the record of all that happened is whole."""

from __future__ import annotations

import typer

from syncd.cli import configuration, output
from syncd.cli.options import AsJson, ConfigFile, group
from syncd.errors import AuditError, KekError

commands = group("The audit: a hash-chained record of every change of state.")


@commands.command()
def verify(config: ConfigFile = None, json_: AsJson = False) -> None:
    """Walk the whole chain; exit code 1 at the first bad entry, and its number. The daemon may run meanwhile."""
    found = configuration.settings(config)
    key = configuration.kek(found)
    if key is None:
        raise KekError(
            f"there is no KEK in {found.vault.kek.where}", hint="the chain is checked with a key of its ring"
        )
    with configuration.database(found) as database, output.progress("audit", unit="entries") as tell:
        try:
            with database.read() as connection:
                entries = configuration.verifier(key, lambda entry: tell(entry, 0))(connection)
        except AuditError as error:
            if not json_:
                raise
            output.as_json({"whole": False, "first_bad": error.seq, "why": error.message})
            raise typer.Exit(error.exit_code) from None
    if json_:
        output.as_json({"whole": True, "entries": entries})
    else:
        output.line(f"the chain is whole: {entries} entries")
