"""`syncd token`: who may use the HTTP API."""

from __future__ import annotations

from typing import Annotated

import typer

from syncd.cli import operator, output
from syncd.cli.operator import Operator
from syncd.cli.options import AsJson, ConfigFile, group

commands = group("Tokens for the HTTP API.")


@commands.command()
def create(
    principal: Annotated[str, typer.Argument(metavar="SHOP", help="The shop that it speaks for, or: operator.")],
    rights: Annotated[
        str, typer.Option(help="Some of stock, deliver, reveal, operate, metrics; with commas between them.")
    ] = "stock,deliver",
    label: Annotated[str, typer.Option(help="What it is for, so that it can be told from others.")] = "",
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Make a token and print it: the only time that it is shown."""
    wanted = [right.strip() for right in rights.split(",") if right.strip()]
    answer = Operator.of(config).post("/v1/tokens", {"principal": principal, "rights": wanted, "label": label})
    if json_:
        output.as_json(answer)
        return
    output.line(answer["token"])
    output.note(f"token {answer['id']} for {principal}: it is not shown again, and stored only as a hash")


@commands.command("list")
def list_(config: ConfigFile = None, json_: AsJson = False) -> None:
    """The tokens, without their text."""
    answer = Operator.of(config).get("/v1/tokens")
    if json_:
        output.as_json(answer)
    else:
        output.table(operator.rows(answer, "tokens"), empty="there are no tokens: syncd token create SHOP")


@commands.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `syncd token list` shows it.")],
    config: ConfigFile = None,
) -> None:
    """Make a token worthless, at once and for ever."""
    Operator.of(config).delete(f"/v1/tokens/{operator.part(token_id)}")
    output.line(f"token {token_id} is revoked")
