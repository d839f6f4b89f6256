"""`syncd vault kek`: recovery copies of the key that opens everything else."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from syncd.cli import configuration, output
from syncd.cli.operator import Operator
from syncd.cli.options import ConfigFile, group
from syncd.errors import ConflictError, InvalidRequestError, KekError
from syncd.model import SecretText

if TYPE_CHECKING:
    from syncd.vault.crypto import Kek

commands = group("The vault's keys.")
kek = group("The key-encryption key (KEK): without it, no backup opens.")
commands.add_typer(kek, name="kek")

_SHORTEST: Final = 12
PassphraseFile = Annotated[
    Path | None, typer.Option(help="Read the passphrase from this file instead of asking.", show_default=False)
]


@kek.command()
def export(
    out: Annotated[Path | None, typer.Option(help="Write it to this new file.", show_default=False)] = None,
    passphrase_file: PassphraseFile = None,
    config: ConfigFile = None,
) -> None:
    """A recovery copy of the KEK under a passphrase, from the running daemon. Keep it apart from backups."""
    daemon = Operator.of(config)
    passphrase = _passphrase(passphrase_file, twice=True)
    text = daemon.post("/v1/vault/kek/export", {"passphrase": passphrase.reveal()}, wait=True)["text"]
    if out is None:
        sys.stdout.write(text)
    else:
        _write_new(out, text)
        output.note(f"wrote {out}")
    output.note("Keep it where no backup of the database lies: together they open every key.")


@kek.command("import")
def import_(
    copy: Annotated[Path, typer.Argument(help="The recovery copy.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Write it to this new file instead of where [vault] kek says; - is standard output."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    config: ConfigFile = None,
) -> None:
    """Put the KEK back from a recovery copy. Never overwrites one."""
    if out is None:
        ref = configuration.settings(config).vault.kek
        out = ref.file
        if out is None:
            raise InvalidRequestError(
                f"the KEK lies in {ref.where}, which this command cannot write",
                hint="syncd vault kek import COPY --out - | systemd-creds encrypt --name=kek - FILE",
            )
    if out.exists() and out != Path("-"):
        raise ConflictError(f"{out} exists already", hint="a KEK is never overwritten: move it away first, and keep it")
    from syncd.vault import crypto

    text = copy.read_text(encoding="utf-8", errors="replace")
    found: Kek = crypto.import_kek(text, _passphrase(passphrase_file, twice=False))
    if out == Path("-"):
        sys.stdout.write(found.text().reveal() + "\n")
    else:
        _write_new(out, found.text().reveal() + "\n")
        configuration.give_to_owner(out)
        output.line(f"wrote {out}: the KEK {found.id}")


def _passphrase(file: Path | None, *, twice: bool) -> SecretText:
    if file is not None:
        text = file.read_text(encoding="utf-8").strip("\r\n")
    else:
        text = str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=twice, err=True))
    if twice and len(text) < _SHORTEST:
        raise InvalidRequestError(
            f"a passphrase of fewer than {_SHORTEST} characters does not protect the KEK", hint="take several words"
        )
    if not text:
        raise KekError("the passphrase is empty")
    return SecretText(text)


def _write_new(path: Path, text: str) -> None:
    """A file that nobody else may read, whole on disk before its name is believed."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConflictError(f"{path} exists already", hint="choose a new name") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
