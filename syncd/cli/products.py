"""`syncd products`: what is done to one product's keys."""

from __future__ import annotations

from typing import Annotated

import typer

from syncd.cli import operator, output
from syncd.cli.operator import Operator
from syncd.cli.options import AsJson, ConfigFile, group

commands = group("Products: keys that are held after a restore.")


@commands.command()
def unhold(
    product: Annotated[str, typer.Argument(metavar="SKU", help="The product.")],
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Make the keys that `syncd recover` has set aside available again: you vouch that they were not delivered."""
    answer = Operator.of(config).post(f"/v1/products/{operator.part(product)}/unhold", wait=True)
    if json_:
        output.as_json(answer)
    else:
        output.line(f"{answer['released']} keys of {product} are available again")
