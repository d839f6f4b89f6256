"""`syncd explain` and `syncd replenish`: what to hold of a product, from whom to buy it, and why."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from syncd.cli import operator, output
from syncd.cli.operator import Operator
from syncd.cli.options import AsJson, ConfigFile

_PLAN: Final = (*("product", "mode", "per_day", "target", "held", "on_order", "owed", "would_buy", "why"),)
_OFFER: Final = (*("supplier", "sku", "cost", "reckoned", "stock", "health", "quantity", "reason"),)


def explain(
    product: Annotated[str, typer.Argument(metavar="PRODUCT", help="The product's sku.")],
    quantity: Annotated[
        int | None,
        typer.Option(min=1, max=1000, metavar="N", help="As if so many were wanted; otherwise what lacks, or 1."),
    ] = None,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Why a product is bought, or is not, and from whom: its target, and each offer's cost, state and reason."""
    answer = Operator.of(config).get(f"/v1/products/{operator.part(product)}/explain", quantity=quantity)
    if json_:
        output.as_json(answer)
        return
    offers = answer.pop("offers")
    output.facts({**answer, "why": "; ".join(answer["why"])})
    output.table([{**offer, "reason": _reason(offer)} for offer in offers], _OFFER, empty="it has no offers")
    if answer["short"]:
        output.note(f"{answer['short']} of {answer['quantity']} can be had from nobody now")


def replenish(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be bought; buy nothing.")] = False,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Buy now what lacks of the products that are cached; with --dry-run, show the plan and its reasons.

    Without this command it is done every minute, and when a sale takes a product below its target.
    """
    daemon = Operator.of(config)
    answer = daemon.get("/v1/replenish") if dry_run else daemon.post("/v1/replenish", wait=True)
    if json_:
        output.as_json(answer)
    elif dry_run:
        rows = [{**row, "why": "; ".join(row["why"])} for row in answer["products"]]
        output.table(rows, _PLAN, empty="no product is cached: see cache in docs/configuration.md")
    else:
        rows = [{"product": sku, **_outcome(got)} for sku, got in answer["products"].items()]
        output.table(rows, empty="nothing lacks")


def _reason(offer: dict[str, Any]) -> str:
    """Everything that speaks for or against an offer, in one text."""
    said = [offer["reason"]]
    if offer["why"]:
        said.append(f"{offer['health']} since {offer['since'] or 'some time'}: {offer['why']}")
    if offer["objection"]:
        said.append(f"but {offer['objection']}")
    return "; ".join(said)


def _outcome(got: dict[str, Any]) -> dict[str, Any]:
    refused = "; ".join(f"{one['supplier']} {one['sku']}: {one['why']}" for one in got["refused"])
    return {"bought": got["bought"], "on_order": got["on_order"], "refused": refused}
