"""`syncd stock`: what can be sold."""

from __future__ import annotations

from typing import Annotated, Any

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
        rows = [
            {**row, "upstream": _told(row["upstream"])} if "upstream" in row else row
            for row in operator.rows(answer, "products")
        ]
        output.table(rows, empty="the configuration has no products")


def _told(upstream: dict[str, Any]) -> str:
    """What suppliers have, in a word or a number."""
    kind = upstream.get("kind", "none")
    if kind == "none":
        return "-"
    known = upstream.get("quantity", upstream.get("level"))
    return f"{kind if known is None else known}{' (stale)' if upstream.get('stale') else ''}"
