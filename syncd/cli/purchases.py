"""`syncd purchases`: what was bought, what is open, and what only a person can decide."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from syncd.cli import operator, output
from syncd.cli.operator import Operator
from syncd.cli.options import AsJson, ConfigFile, group
from syncd.errors import InvalidRequestError

commands = group("Purchases: what was ordered at suppliers, and what became of it.")

_COLUMNS: Final = (
    *("reference", "supplier", "product", "quantity", "received", "state", "spend", "open", "created_at", "reason"),
)
_PAGE: Final = 500
Reference = Annotated[str, typer.Argument(metavar="REF", help="The purchase's reference.")]


@commands.command("list")
def list_(
    unknown: Annotated[bool, typer.Option("--unknown", help="Only those whose outcome nobody knows.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Only those that are not closed.")] = False,
    disputed: Annotated[bool, typer.Option("--disputed", help="Only those whose money is open.")] = False,
    supplier: Annotated[str | None, typer.Option("--supplier", metavar="NAME", help="Only at this one.")] = None,
    product: Annotated[str | None, typer.Option("--product", metavar="SKU", help="Only of this one.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many; --json gives all.")] = 100,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Purchases, the newest first. `spend` is what each has cost, or may cost, in the base currency."""
    if unknown + open_ + disputed > 1:
        raise InvalidRequestError("one of --unknown, --open and --disputed at a time")
    which = "unknown" if unknown else "disputed" if disputed else "open" if open_ else "all"
    found = _every(Operator.of(config), which=which, supplier=supplier, product=product)
    if json_:
        output.as_json({"purchases": list(found)})
        return
    shown = list(islice(found, limit))
    output.table(shown, _COLUMNS, empty="no purchases")
    if len(shown) == limit and next(found, None) is not None:
        output.note(f"the first {limit}; --limit or --json shows more")


@commands.command()
def show(reference: Reference, config: ConfigFile = None, json_: AsJson = False) -> None:
    """One purchase."""
    _told(Operator.of(config).get(f"/v1/purchases/{operator.part(reference)}"), as_json=json_)


@commands.command()
def resolve(
    reference: Reference,
    charged: Annotated[bool, typer.Option("--charged/--not-charged", help="Whether the supplier took our money.")],
    keys: Annotated[
        Path | None, typer.Option("--keys", metavar="FILE", help="The keys, as the supplier shows them, one a line.")
    ] = None,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Say what became of a purchase that is unknown, disputed or never delivered.

    Not charged: it is closed as refused or refunded. Charged: it is disputed until its keys or its money come; with
    --keys they go into the vault; said of a dispute, its loss is accepted.
    """
    if keys is not None and not keys.is_file():
        raise InvalidRequestError(f"{keys} is not a file")
    with keys.open("rb") if keys is not None else tempfile.TemporaryFile() as file:
        found = Operator.of(config).upload(
            f"/v1/purchases/{operator.part(reference)}/resolve",
            file,
            lambda _done, _all: None,
            charged="true" if charged else "false",
        )
    _told(found, as_json=json_)


@commands.command()
def buy(
    product: Annotated[str, typer.Argument(metavar="PRODUCT", help="The product's sku.")],
    quantity: Annotated[int, typer.Argument(min=1, max=1000, metavar="N", help="How many units.")],
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Buy so many units now, from whoever is best. Exit code 1 if not all of them were bought or ordered."""
    answer = Operator.of(config).post(f"/v1/products/{operator.part(product)}/buy", {"quantity": quantity}, wait=True)
    if json_:
        output.as_json(answer)
    else:
        output.facts(answer)
    if answer["bought"] + answer["on_order"] < quantity:
        raise typer.Exit(1)


def _every(daemon: Operator, **asked: Any) -> Iterator[dict[str, Any]]:
    before: str | None = None
    while True:
        answer = daemon.get("/v1/purchases", **asked, before=before, limit=_PAGE)
        yield from operator.rows(answer, "purchases")
        before = answer["next"]
        if before is None:
            return


def _told(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.as_json(found)
    else:
        output.facts(found)
