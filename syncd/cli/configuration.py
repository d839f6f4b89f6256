"""What commands take from the configuration: its file, the settings, the KEK, the database. Used by every command."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from syncd.errors import ConfigError, Problem, UnavailableError
from syncd.model import SecretText

if TYPE_CHECKING:
    from syncd.config import Settings
    from syncd.store.backup import Verify
    from syncd.store.database import Database
    from syncd.vault.crypto import Kek

HERE: Final = Path("config/syncd.toml")
INSTALLED: Final = Path("/etc/syncd/syncd.toml")


def find(given: Path | None) -> Path:
    """The configuration's file: the one given, else a checkout's, else the machine's. Raises ConfigError."""
    if given is not None:
        return given
    for path in (HERE, INSTALLED):
        if path.is_file():
            return path
    fix = "make one with: syncd init; or name it with --config FILE"
    raise ConfigError([Problem(str(INSTALLED), "", f"there is no such file, nor {HERE}", fix)])


def settings(given: Path | None) -> Settings:
    """The settings. Raises ConfigError with every problem there is."""
    from syncd import config

    return config.load(find(given))


def kek(found: Settings) -> Kek | None:
    """The key-encryption key, or None when nothing lies where it should. Raises KekError, StartError."""
    from syncd.vault.crypto import parse_kek

    data = found.vault.kek.read()
    return None if data is None else parse_kek(data, found.vault.kek.where)


@contextlib.contextmanager
def database(found: Settings, *, must_exist: bool = True) -> Iterator[Database]:
    """The database, for the few commands that open it themselves. Raises UnavailableError when it does not answer."""
    from sqlalchemy.exc import DBAPIError

    from syncd.store.database import Database

    ref = found.store.password
    held = ref.read() if ref else None
    opened = Database(found.store.url, password=SecretText(held.decode().strip()) if held is not None else None)
    try:
        if must_exist and not opened.postgresql and not opened.path.is_file():
            raise UnavailableError(f"there is no database at {opened.path}", hint="the daemon makes it: syncd run")
        yield opened
    except DBAPIError as error:
        # The first line says what; those after it may quote rows.
        why = str(error.orig).strip().partition("\n")[0]
        raise UnavailableError(f"the database cannot be used: {why}", hint="check [store] and the server") from None
    finally:
        opened.close()


def verifier(key: Kek, tell: Callable[[int], None] = lambda _entry: None) -> Verify:
    """A walk of a database's audit chain under the ring that lies in that database. Raises KekError, AuditError."""
    from sqlalchemy import Connection, select

    from syncd import audit
    from syncd.store import tables
    from syncd.vault.keyring import Keyring, RingRow

    def verify(connection: Connection) -> int:
        rows = connection.execute(select(tables.keyring).order_by(tables.keyring.c.id))
        ring = Keyring.unwrap(
            key,
            [RingRow(row.id, row.purpose, row.kek_id, bytes(row.wrapped), row.created_at, row.active) for row in rows],
        )
        return audit.verify(connection, ring.audit_mac, progress=tell).entries

    return verify


def give_to_owner(path: Path) -> None:
    """What root makes in the daemon's folder is the daemon's: otherwise it could not open it."""
    if os.geteuid() == 0 and path.exists():
        folder = path.parent.stat()
        os.chown(path, folder.st_uid, folder.st_gid)
