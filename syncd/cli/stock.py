"""`syncd stock`: what can be sold."""

from __future__ import annotations

from typing import Annotated

import typer

from syncd.cli import operator, output
from syncd.cli.operator import Operator
from syncd.cli.options import AsJson, ConfigFile


def stock(
    product: Annotated[str | None, typer.Argument(help="Only this product.", show_default=False)] = None,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """What can be sold, by product."""
    answer = Operator.of(config).get("/v1/stock", product=product)
    if json_:
        output.as_json(answer)
    else:
        output.table(operator.rows(answer, "products"), empty="the configuration has no products")
