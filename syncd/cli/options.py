"""Options that every command has, in one spelling. Read by all modules of commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="SYNCD_CONFIG",
        metavar="FILE",
        show_default=False,
        help="The configuration; otherwise ./config/syncd.toml, then /etc/syncd/syncd.toml.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def group(about: str) -> typer.Typer:
    """The commands of one noun."""
    return typer.Typer(
        help=about,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,  # rich takes longer to load than all the rest
        pretty_exceptions_enable=False,
    )
