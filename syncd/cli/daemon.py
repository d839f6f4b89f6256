"""`syncd init | check | run | status`: from an empty machine to a running daemon, and how it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncd.cli import configuration, output
from syncd.cli.operator import Operator
from syncd.cli.options import AsJson, ConfigFile
from syncd.errors import EXIT_CONFIG, ConfigError, ConflictError

if TYPE_CHECKING:
    from syncd.config import Settings

_STARTING = """\
# syncd: where everything begins. docs/configuration.md has every setting; `syncd check` names every problem at once.
# Durations are "30s", "10m", "2h", "7d"; amounts are "9.90 CNY". Files in conf.d/ beside this one are read too.
# A secret is never written here, but where it lies: {{ credential = "NAME" }}, {{ file = "PATH" }}, {{ env = "NAME" }}.

[daemon]
state_dir = {state}
listen = "127.0.0.1:8750"                 # the HTTP API; shops on this machine may use api_socket instead
api_socket = {api}
operator_socket = {operator}
# socket_group = "syncd-shop"             # who may connect to api_socket; syncd.service sets it by itself
adapters = [{adapters}]

[store]
# url = "postgresql://syncd@localhost/syncd"   # otherwise SQLite, in state_dir
# password = {{ file = "/etc/syncd/postgresql.password" }}

[vault]
# The key that opens everything else. Keep a copy of it apart from all backups: syncd vault kek export
kek = {kek}

[sync]
interval = "10m"

# A supplier is an upstream account. "feed" takes key files from FOLDER/<product sku>/*.txt, *.csv, *.xlsx.
[suppliers.files]
adapter = "feed"
folder = {feeds}

# What the shop sells, by its own sku. format: a name in formats.toml, "auto", or "opaque" (the whole line is the key).
# [products.steam-wallet-50]
# title = "Steam Wallet 50"
# format = "auto"
# price = "50.00 CNY"
# min_life = "7d"

# A shop has tokens (syncd token create NAME), and may be users of this machine on api_socket.
# [shops.my-shop]
# unix_users = ["www-data"]
"""


def init(
    config: ConfigFile = None,
    state: Annotated[Path, typer.Option(help="Folder of everything that syncd writes.")] = Path("/var/lib/syncd"),
    feeds: Annotated[Path, typer.Option(help="Folder where key files are dropped.")] = Path("/var/lib/syncd-feeds"),
    systemd: Annotated[
        bool | None,
        typer.Option(
            help="For syncd.service: sockets in /run/syncd, the KEK as a credential; systemd makes the folders. "
            "By default, if the configuration lies in /etc.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a starting configuration for a real installation. Never overwrites one."""
    path = Path(os.path.abspath(config or configuration.INSTALLED))  # noqa: PTH100 - as config.load
    if systemd is None:
        systemd = path.is_relative_to("/etc")
    if path.exists():
        raise ConflictError(f"{path} exists already", hint="edit it, or name another one: syncd init --config FILE")
    state, feeds = (Path(os.path.abspath(folder)) for folder in (state, feeds))  # noqa: PTH100
    sockets = Path("/run/syncd") if systemd else state
    kek = '{ credential = "kek" }' if systemd else f"{{ file = {_quoted(state / 'kek')} }}"
    text = _STARTING.format(
        state=_quoted(state),
        api=_quoted(sockets / "api.sock"),
        operator=_quoted(sockets / "operator.sock"),
        adapters=_quoted(path.parent / "adapters"),
        kek=kek,
        feeds=_quoted(feeds),
    )
    made = [path.parent, path.parent / "conf.d", path.parent / "adapters"]
    for folder in made:
        folder.mkdir(parents=True, exist_ok=True)
    if not systemd:
        for folder in (state, feeds):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            made.append(folder)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    output.line(f"wrote   {path}")
    for folder in made:
        output.line(f"folder  {folder}")
    output.line()
    output.line("Next: name your products in it, then")
    output.line(f"  syncd check --config {path}")
    output.line("  systemctl enable --now syncd" if systemd else f"  syncd run --config {path}")


def _quoted(path: Path) -> str:
    """A path as TOML's basic string, whose escapes are JSON's."""
    return json.dumps(str(path), ensure_ascii=False)


def check(config: ConfigFile = None, json_: AsJson = False) -> None:
    """Check the configuration and what it names; every problem at once. Exit code 78 if there is any."""
    path = configuration.find(config)
    from syncd import daemon

    problems = daemon.check(path)
    if json_:
        found = {} if problems else _checked(configuration.settings(path))
        listed = [{"file": p.file, "path": p.path, "message": p.message, "fix": p.fix} for p in problems]
        output.as_json({"problems": listed, "checked": found})
        raise typer.Exit(EXIT_CONFIG if problems else 0)
    if problems:
        raise ConfigError(problems)
    output.facts(_checked(configuration.settings(path)))
    output.line("no problems")


def _checked(found: Settings) -> dict[str, Any]:
    return {
        "files": [str(found.file), *(str(more) for more in sorted((found.file.parent / "conf.d").glob("*.toml")))],
        "suppliers": sorted(found.suppliers),
        "products": len(found.products),
        "shops": sorted(found.shops),
        "store": found.store.url,
        "kek": found.vault.kek.where,
        "listen": "{}:{}".format(*found.daemon.listen),
        "operator_socket": str(found.daemon.operator_socket),
    }


def run(config: ConfigFile = None) -> None:
    """Run the daemon in the foreground, until SIGTERM or Ctrl-C; SIGHUP reads the configuration again."""
    found = configuration.settings(config)
    from syncd import daemon

    raise typer.Exit(daemon.run(found))


def status(config: ConfigFile = None, json_: AsJson = False) -> None:
    """How the running daemon is: stock by product, suppliers, quarantine, what needs attention."""
    answer = Operator.of(config).get("/v1/status")
    if json_:
        output.as_json(answer)
        return
    suppliers = answer.get("suppliers", [])
    answer["suppliers"] = [_supplier(row) for row in suppliers]
    output.facts(answer)
    for row in suppliers:
        if why := _why(row):
            output.line(f"{row['name']}: {why}")


def _supplier(row: dict[str, Any]) -> dict[str, Any]:
    """A supplier in a line; the rest of it is in the JSON."""
    last = row.get("last_run")
    return {
        "name": row["name"],
        "state": _brief(row),
        "last_run": f"{last['new']} new of {last['seen']}" if last else None,
        "offers": row.get("offers"),
        "balance": row.get("balance"),
        "last_success_at": row.get("last_success_at"),
    }


def _brief(row: dict[str, Any]) -> str | None:
    """A supplier's state without the reason, which stands below the table."""
    state: str | None = row.get("state")
    return state.partition(": ")[0] if state else state


def _why(row: dict[str, Any]) -> str:
    """The reason of a supplier's state; where it has none, what the last run failed for."""
    return str(row.get("state") or "").partition(": ")[2] or str(row.get("last_error") or "")
