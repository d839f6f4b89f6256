"""`syncd offers`: what suppliers list, and what of it waits for an operator."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Final

import typer

from syncd.cli import configuration, operator, output, suppliers
from syncd.cli.operator import Operator
from syncd.cli.options import AsJson, ConfigFile, group

commands = group("Offers: what suppliers list.")

_COLUMNS: Final = ("supplier", "sku", "title", "price", "cost", "stock", "products", "seen_at", "note")
_PAGE: Final = 1000

Supplier = Annotated[str | None, typer.Option("--supplier", metavar="NAME", help="Only of this one.")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many; --json gives all.")]


@commands.command("list")
def list_(
    supplier: Supplier = None,
    product: Annotated[str | None, typer.Option("--product", metavar="SKU", help="Only those that serve it.")] = None,
    limit: Limit = 200,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """What suppliers list. `cost` is the price in the base currency of [currency]."""
    found = every(Operator.of(config), supplier=supplier, product=product)
    if product is None:
        _show(found, limit, as_json=json_)
        return
    rows = list(found)
    _show(iter(rows), limit, as_json=json_)
    listed = {(row["supplier"], row["sku"]) for row in rows}
    known = configuration.settings(config).products.get(product)
    for one in known.offers if known else ():
        if supplier in {None, one.supplier} and (one.supplier, one.sku) not in listed:
            output.note(f"{one.supplier} does not list {one.sku}")


@commands.command()
def search(
    words: Annotated[list[str], typer.Argument(metavar="TEXT", help="Each word stands in the title or the sku.")],
    supplier: Supplier = None,
    limit: Limit = 200,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Look for offers by words of their titles."""
    _show(every(Operator.of(config), supplier=supplier, q=" ".join(words)), limit, as_json=json_)


@commands.command()
def history(
    supplier: Annotated[str, typer.Argument(help="The supplier.")],
    sku: Annotated[str, typer.Argument(help="The supplier's sku.")],
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """What an offer cost and held before, newest first."""
    answer = Operator.of(config).get(f"/v1/suppliers/{operator.part(supplier)}/history", sku=sku)
    if json_:
        output.as_json(answer)
        return
    rows = [{**row, "stock": _stock(row["stock"])} for row in operator.rows(answer, "history")]
    output.table(rows, ("until", "price", "stock"), empty="it has not changed")


@commands.command()
def accept(
    supplier: Annotated[str, typer.Argument(help="The supplier.")],
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Accept what is held of a supplier's listing, and read it anew. Exit code 1 if it is worse by now."""
    daemon = Operator.of(config)
    answer = daemon.post(f"/v1/suppliers/{operator.part(supplier)}/accept")
    suppliers.show([suppliers.end(daemon, supplier, {"supplier": supplier, "id": str(answer["run"])})], as_json=json_)


def every(daemon: Operator, **asked: Any) -> Iterator[dict[str, Any]]:
    """All offers that match, page by page."""
    after: str | None = None
    while True:
        answer = daemon.get("/v1/offers", **asked, after=after, limit=_PAGE)
        yield from operator.rows(answer, "offers")
        after = answer["next"]
        if after is None:
            return


def _show(found: Iterator[dict[str, Any]], limit: int, *, as_json: bool) -> None:
    if as_json:
        output.as_json({"offers": list(found)})
        return
    shown = list(islice(found, limit))
    output.table([_told(row) for row in shown], _COLUMNS, empty="no offers")
    if len(shown) == limit and next(found, None) is not None:
        output.note(f"the first {limit}; --limit or --json shows more")


def _told(row: dict[str, Any]) -> dict[str, Any]:
    notes = [] if row["for_sale"] else ["not for sale"]
    if row["held_price"]:
        notes.append(f"{row['held_price']} waits to be confirmed")
    notes += ["stale"] if row["stale"] else []
    return {**row, "stock": _stock(row["stock"]), "note": ", ".join(notes)}


def _stock(stock: dict[str, Any]) -> str:
    return str(stock.get("quantity", stock.get("level", stock["kind"])))
