"""Commands that work without a daemon: init, check, db upgrade, audit verify, backup, restore; and how fast help is."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from syncd import audit
from syncd import config as configuration
from syncd.errors import Problem
from syncd.store.database import Database, Lane, Work, Writer
from syncd.vault.crypto import Kek, new_kek
from syncd.vault.vault import load_ring, restored_at

ROOT = Path(__file__).parents[2]


# --- help -------------------------------------------------------------------------------------------------------------

# Not pydantic: typer itself reads a command's options with it.
HEAVY = {"sqlalchemy", "fastapi", "rich", "cryptography", "psycopg", "alembic", "structlog", "httpx", "msgspec"}
HELP = """
import sys
sys.argv = ["syncd", *sys.argv[1:], "--help"]
from syncd.__main__ import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def _tree() -> Iterator[tuple[str, ...]]:
    from typer.main import get_command

    from syncd.cli.app import app

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*words, name))

    yield from walk(get_command(app), ())


def test_help_of_every_command_loads_nothing_heavy() -> None:
    """0.15 s instead of a second, however many libraries the daemon is made of."""
    for words in ((), ("keys", "quarantine", "release"), ("backup",)):
        done = subprocess.run(
            [sys.executable, "-c", HELP, *words], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
        )
        loaded = set(done.stdout.rpartition("loaded:")[2].split())
        assert not loaded & HEAVY


@pytest.mark.parametrize("words", sorted(_tree()), ids=lambda words: " ".join(words) or "syncd")
def test_every_command_has_help_and_takes_a_configuration(syncd: Any, words: tuple[str, ...]) -> None:
    ended = syncd(*words, "--help")
    assert ended.code == 0
    assert len(ended.out.split("\n\n")[1].strip()) > 10, "it says what it does"
    if "COMMAND" not in ended.out.splitlines()[0] and words != ("adapter", "new"):  # it asks for nothing but a name
        assert "--config" in ended.out


# --- init, check, run -------------------------------------------------------------------------------------------------


def test_init_writes_a_configuration_that_loads_and_never_overwrites(syncd: Any, folder: Path) -> None:
    path = folder / "etc" / "syncd.toml"
    words = ("init", "--config", path, "--state", folder / "state dir", "--feeds", folder / "feeds")
    ended = syncd(*words)
    assert ended.code == 0
    assert f"syncd check --config {path}" in ended.out
    settings = configuration.load(path)
    assert settings.daemon.state_dir == folder / "state dir"
    assert settings.vault.kek.file == folder / "state dir" / "kek"
    assert settings.suppliers["files"].settings == {"folder": str(folder / "feeds")}
    assert stat.S_IMODE((folder / "state dir").stat().st_mode) == 0o700
    path.write_text("# mine\n")
    again = syncd(*words)
    assert (again.code, path.read_text()) == (1, "# mine\n")


def test_init_for_systemd_puts_sockets_and_kek_where_the_unit_has_them(syncd: Any, folder: Path) -> None:
    path = folder / "syncd.toml"
    assert syncd("init", "--config", path, "--systemd").code == 0
    settings = configuration.load(path)
    assert settings.vault.kek.credential == "kek"
    assert settings.daemon.operator_socket == Path("/run/syncd/operator.sock")
    assert settings.daemon.state_dir == Path("/var/lib/syncd")
    assert settings.daemon.socket_group is None  # the unit sets the group by itself


def test_what_the_starting_configuration_has_commented_out_is_valid_too(syncd: Any, folder: Path) -> None:
    path = folder / "syncd.toml"
    syncd("init", "--config", path, "--state", folder / "s", "--feeds", folder / "f")
    lines = path.read_text().splitlines()
    at = lines.index("# [products.steam-wallet-50]")
    path.write_text("\n".join(line.removeprefix("# ") if "=" in line or "[" in line else line for line in lines[at:]))
    settings = configuration.load(path)
    assert settings.products["steam-wallet-50"].min_life == 7 * 86400
    assert settings.shops["my-shop"].unix_users == ["www-data"]


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What the commands call of the daemon."""
    import syncd as package

    fake = ModuleType("syncd.daemon")
    fake.problems = []
    fake.check = lambda path: fake.problems
    fake.run = lambda settings: 0 if settings.products else 3
    monkeypatch.setitem(sys.modules, "syncd.daemon", fake)
    monkeypatch.setattr(package, "daemon", fake, raising=False)
    return fake


def test_check_names_every_problem_at_once(syncd: Any, config: Path, daemon: Any) -> None:
    daemon.problems = [
        Problem("a.toml", "suppliers.x.folder", "there is no such folder", "make it"),
        Problem("conf.d/b.toml", "products.y.format", "there is no such format"),
    ]
    ended = syncd("check")
    assert ended.code == 78
    assert ended.err == (
        "a.toml: suppliers.x.folder: there is no such folder\n    -> make it\n"
        "conf.d/b.toml: products.y.format: there is no such format\n"
        "syncd: 2 problems in the configuration\n"
    )
    listed = syncd("check", "--json")
    assert (listed.code, len(listed.json["problems"]), listed.err) == (78, 2, "")


def test_check_says_what_was_checked(syncd: Any, config: Path, daemon: Any) -> None:
    ended = syncd("check")
    assert ended.code == 0
    assert str(config) in ended.out
    assert "no problems" in ended.out
    assert syncd("check", "--json").json["checked"]["products"] == 1


def test_run_ends_as_the_daemon_ends(syncd: Any, config: Path, daemon: Any) -> None:
    assert syncd("run").code == 0
    config.write_text("")
    assert syncd("run").code == 3


# --- the database -----------------------------------------------------------------------------------------------------


def put_kek(config: Path, kek: Kek) -> None:
    path = config.parents[1] / "var" / "kek"
    path.touch(mode=0o600)
    path.write_text(kek.text().reveal())


@pytest.fixture(params=["sqlite", "postgresql"])
def stored(request: pytest.FixtureRequest, config: Path) -> Iterator[tuple[Database, Kek]]:
    """A database with a key ring and five audit entries, as the configuration names it, and its KEK in place."""
    url = f"sqlite:///{config.parents[1] / 'var' / 'syncd.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_database")
        config.write_text(f'[store]\nurl = "{url}"\n')
    kek = new_kek()
    put_kek(config, kek)
    database = Database(url)
    database.check_schema()
    ring = load_ring(database, kek, create=kek)
    writer = Writer(database, audit.chain(ring.audit_mac))
    writer.start()

    def note(tx: Any, payloads: Any) -> list[None]:
        for n in payloads:
            tx.audit("test", n=n)
        return [None] * len(payloads)

    work: Work[int, None] = Work("note", Lane.CONTROL, note)
    for n in range(5):
        writer.call(work, n)
    writer.stop()
    yield database, kek
    database.close()


def _forge(database: Database) -> None:
    with database.engine.connect() as connection:
        drop = "DROP TRIGGER audit_no_update" + (" ON audit" if database.postgresql else "")
        connection.exec_driver_sql(drop)
        connection.exec_driver_sql("UPDATE audit SET at = at + 1 WHERE seq = 3")


def test_T1_audit_verify_names_the_first_bad_entry(syncd: Any, stored: Any) -> None:
    whole = syncd("audit", "verify")
    assert (whole.code, whole.out) == (0, "the chain is whole: 5 entries\n")
    _forge(stored[0])
    ended = syncd("audit", "verify")
    assert (ended.code, ended.out) == (1, "")
    assert "audit entry 3" in ended.err
    assert syncd("audit", "verify", "--json").json["first_bad"] == 3


def test_S5_audit_verify_with_a_missing_or_another_kek_is_exit_code_78(syncd: Any, stored: Any, config: Path) -> None:
    put_kek(config, new_kek())
    assert syncd("audit", "verify").code == 78
    (config.parents[1] / "var" / "kek").unlink()
    ended = syncd("audit", "verify")
    assert ended.code == 78
    assert "there is no KEK in" in ended.err


@pytest.mark.parametrize("words", [("audit", "verify"), ("backup", "t0.db")])
def test_K12_what_only_reads_makes_no_database(syncd: Any, config: Path, words: tuple[str, ...]) -> None:
    put_kek(config, new_kek())
    ended = syncd(*words)
    assert ended.code == 1
    assert "there is no database at" in ended.err
    assert [path.name for path in (config.parents[1] / "var").iterdir()] == ["kek"]


def test_a_database_that_does_not_answer_is_said_in_a_line(syncd: Any, config: Path) -> None:
    config.write_text('[store]\nurl = "postgresql://syncd@127.0.0.1:1/syncd"\n')
    ended = syncd("db", "upgrade")
    assert (ended.code, ended.out) == (1, "")
    assert "the database cannot be used" in ended.err
    assert "Traceback" not in ended.err


def test_backup_and_restore_say_what_is_in_it_and_what_comes_next(syncd: Any, stored: Any, folder: Path) -> None:
    database, kek = stored
    ended = syncd("backup", "t0.db", "--json")
    assert ended.code == 0
    assert ended.json["audit_entries"] == 5
    assert ended.json["kek"] == [kek.id]
    assert "KEK is not in it" in ended.err
    assert stat.S_IMODE((folder / "t0.db").stat().st_mode) == 0o600
    refused = syncd("restore", "t0.db")
    assert refused.code == 1
    assert "replaces nothing" in refused.err
    database.close()
    (folder / "config" / "syncd.toml").write_text(
        '[store]\nurl = "sqlite:///../new/syncd.db"\n[daemon]\nstate_dir="../var"\n'
    )
    put = syncd("restore", "t0.db")
    assert put.code == 0
    assert "syncd recover" in put.err
    restored = Database(f"sqlite:///{folder / 'new' / 'syncd.db'}")
    assert restored_at(restored)
    restored.close()
    assert syncd("audit", "verify").out == "the chain is whole: 5 entries\n"


def test_a_backup_without_the_kek_is_made_and_says_what_was_not_checked(syncd: Any, stored: Any, folder: Path) -> None:
    (folder / "var" / "kek").unlink()
    ended = syncd("backup", "t0.db", "--json")
    assert (ended.code, ended.json["audit_entries"]) == (0, None)
    assert "audit chain was not checked (the KEK is not where" in ended.err


def test_a_backup_of_a_broken_chain_is_refused_unless_asked_for(syncd: Any, stored: Any, folder: Path) -> None:
    _forge(stored[0])
    ended = syncd("backup", "t0.db")
    assert (ended.code, "audit entry 3" in ended.err) == (1, True)
    assert not (folder / "t0.db").exists()
    assert syncd("backup", "t0.db", "--no-audit").code == 0


def test_db_upgrade_makes_or_keeps_the_schema_and_stays_off_a_running_daemon(syncd: Any, config: Path) -> None:
    path = config.parents[1] / "var" / "syncd.db"
    assert "it was empty" in syncd("db", "upgrade").out
    kept = syncd("db", "upgrade", "--json").json
    assert kept["before"] == kept["now"] == Database(f"sqlite:///{path}").revision()[1]
    running = Database(f"sqlite:///{path}")
    newest = running.revision()[1]
    assert syncd("db", "upgrade", "--json").json == {"before": newest, "now": newest}
    running.lock()
    ended = syncd("db", "upgrade")
    assert ended.code == 78
    assert "in use by another syncd" in ended.err
    running.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.may_skip
def test_what_root_restores_is_the_daemon_s(syncd: Any, config: Path, folder: Path) -> None:
    syncd("db", "upgrade")
    syncd("backup", "t0.db")
    new = folder / "new"
    new.mkdir()
    os.chown(new, 12345, 12345)
    config.write_text('[store]\nurl = "sqlite:///../new/syncd.db"\n')
    assert syncd("restore", "t0.db").code == 0
    assert {path.stat().st_uid for path in new.iterdir()} == {12345}


def test_backups_are_complete_sqlite_files_that_any_tool_opens(syncd: Any, stored: Any, folder: Path) -> None:
    syncd("backup", folder)
    (made,) = folder.glob("syncd-*.db")
    with sqlite3.connect(made) as kept:
        assert kept.execute("SELECT count(*) FROM audit").fetchone() == (5,)
    kept.close()
