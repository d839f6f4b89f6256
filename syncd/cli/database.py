"""`syncd db upgrade`, `backup`, `restore` work on the database itself; `recover` asks the daemon (K12)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncd.cli import configuration, output
from syncd.cli.operator import Operator
from syncd.cli.options import AsJson, ConfigFile, group
from syncd.model import utc

if TYPE_CHECKING:
    from syncd.store.backup import Backup
    from syncd.vault.crypto import Kek

commands = group("The database.")
NoAudit = Annotated[
    bool, typer.Option("--no-audit", help="Do not check the audit chain: you know that it is broken, and keep it so.")
]


@commands.command()
def upgrade(config: ConfigFile = None, json_: AsJson = False) -> None:
    """Bring the database's schema up to date. The daemon must not run; make a backup first."""
    found = configuration.settings(config)
    with configuration.database(found, must_exist=False) as database:
        if not database.postgresql:
            database.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        database.lock()
        before, now = database.upgrade()
        if not database.postgresql:
            for path in (database.path, Path(f"{database.path}.lock")):
                configuration.give_to_owner(path)
    if json_:
        output.as_json({"before": before, "now": now})
    else:
        output.line(f"the schema is {now}" + (", as it was" if before == now else f"; it was {before or 'empty'}"))


def backup(
    file: Annotated[Path, typer.Argument(help="The new file; a folder gets one with the date.")],
    no_audit: NoAudit = False,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Back the database up while the daemon runs, and verify the copy: one file, whatever the engine."""
    from syncd.store import backup as backups
    from syncd.vault.vault import RESTORE_FENCE

    found = configuration.settings(config)
    key = None if no_audit else configuration.kek(found)
    os.umask(0o077)
    with configuration.database(found) as database, output.steps() as tell:
        verify = configuration.verifier(key, lambda entry: tell("checking the audit", entry, 0)) if key else None
        made = backups.backup(database, file, fence=(RESTORE_FENCE, utc(time.time())), verify=verify, progress=tell)
    _show(made, json_)
    _say_unchecked(made, key, no_audit=no_audit)
    output.note("The KEK is not in it, and it opens nothing without the KEK: keep a copy of that elsewhere")
    output.note("(syncd vault kek export).")


def restore(
    file: Annotated[Path, typer.Argument(help="The backup.")],
    no_audit: NoAudit = False,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Put a backup in the place of an empty database. Nothing is delivered then until `syncd recover`."""
    from syncd.store import backup as backups
    from syncd.vault.vault import RESTORE_FENCE

    found = configuration.settings(config)
    key = None if no_audit else configuration.kek(found)
    os.umask(0o077)
    with configuration.database(found, must_exist=False) as database, output.steps() as tell:
        verify = configuration.verifier(key, lambda entry: tell("checking the audit", entry, 0)) if key else None
        put = backups.restore(file, database, fence=(RESTORE_FENCE, utc(time.time())), verify=verify, progress=tell)
    _show(put, json_)
    _say_unchecked(put, key, no_audit=no_audit)
    output.note("Restored, and fenced: some of its keys may have been delivered since the backup was made. Now")
    output.note("  1. start the daemon, which delivers nothing yet")
    output.note("  2. syncd recover, which sets aside every key that cannot be proven undelivered")


def recover(config: ConfigFile = None, json_: AsJson = False) -> None:
    """After a restore: set aside every key that cannot be proven undelivered, then deliver again."""
    answer: dict[str, Any] = Operator.of(config).post("/v1/recover", wait=True)
    if json_:
        output.as_json(answer)
        return
    output.line(f"{answer['held']} keys are held; new keys are delivered from now on")
    if answer["held"]:
        output.note(
            "Compare them with what the shop has sold since the backup. To sell a product's held keys after all:"
        )
        output.note("  syncd products unhold SKU")


def _show(kept: Backup, as_json: bool) -> None:
    shown = {
        "file": str(kept.path),
        "bytes": kept.size,
        "schema": kept.revision,
        "keys": kept.rows.get("vault_key", 0),
        "deliveries": kept.rows.get("delivery", 0),
        "quarantined": kept.rows.get("quarantine", 0),
        "audit_entries": kept.audit_entries,
        "kek": list(kept.kek_ids),
    }
    if as_json:
        output.as_json(shown)
    else:
        output.facts(shown)


def _say_unchecked(kept: Backup, key: Kek | None, *, no_audit: bool) -> None:
    if kept.audit_entries is None and kept.kek_ids:
        why = (
            "as you asked" if no_audit else "the KEK is not where [vault] kek says" if key is None else "it has no ring"
        )
        output.note(f"Warning: the audit chain was not checked ({why}).")
