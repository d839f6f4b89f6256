"""`syncd products`: what is done to one product's keys, and which offers could serve it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from syncd.cli import configuration, operator, output
from syncd.cli.offers import every
from syncd.cli.operator import Operator
from syncd.cli.options import AsJson, ConfigFile, group
from syncd.errors import NotFoundError

if TYPE_CHECKING:
    from syncd.config import Product

_WORD: Final = re.compile(r"\d+|[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+")

commands = group("Products: offers that could serve them, keys that are held after a restore.")


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


@commands.command()
def suggest(
    product: Annotated[
        str | None,
        typer.Argument(metavar="SKU", help="Only this one; otherwise all without offers.", show_default=False),
    ] = None,
    score: Annotated[int, typer.Option(min=0, max=100, help="How alike names must be.")] = 75,
    each: Annotated[int, typer.Option(min=1, max=50, help="At most so many offers a product.")] = 3,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Propose offers for products, by their names. Look at each, then paste what is right into the configuration."""
    products = configuration.settings(config).products
    if product is not None and product not in products:
        raise NotFoundError(f"there is no product {product}", hint="syncd stock lists them")
    wanted = {sku: one for sku, one in products.items() if (product is None and not one.offers) or sku == product}
    found = alike(wanted, list(every(Operator.of(config))), score, each)
    if json_:
        output.as_json({"suggestions": found})
        return
    for row in found:
        output.line(_pasted(row))
    if not wanted:
        output.line("every product has offers")
    unmatched = len(wanted) - len(found)
    if found:
        output.note("paste what is right into a file of conf.d/, then: syncd check")
    if unmatched:
        output.note(f"no offer is like enough to {unmatched} product{'s' * (unmatched != 1)}; see --score")


def alike(
    products: Mapping[str, Product], offers: Sequence[Mapping[str, Any]], score: int, each: int
) -> list[dict[str, Any]]:
    """Products with the offers whose titles are most like theirs, best first, 100 at best.

    Every number in a product's name must stand in the offer's: a card of 50 is none of 500.
    """
    from rapidfuzz import fuzz, process

    titles = [_words(offer["title"]) for offer in offers]
    numbers = [set(re.findall(r"\d+", title)) for title in titles]
    found = []
    for sku, product in products.items():
        name = _words(product.title or sku)
        mine = set(re.findall(r"\d+", name))
        choices = {at: title for at, title in enumerate(titles) if mine <= numbers[at]}
        best = process.extract(name, choices, scorer=fuzz.token_set_ratio, score_cutoff=score, limit=None)
        best = sorted(best, key=lambda one: (-round(one[1]), *_worth(offers[one[2]])))[:each]
        if best:
            rows = [{**_brief(offers[at]), "score": round(points)} for _, points, at in best]
            found.append({"product": sku, "title": product.title, "offers": rows})
    return found


def _worth(offer: Mapping[str, Any]) -> tuple[bool, bool, Decimal]:
    """Of offers that are alike: what can be bought first, then what costs least."""
    stock, cost = offer.get("stock") or {}, offer.get("cost") or offer.get("price")
    empty = stock.get("quantity") == 0 or stock.get("level") == "out" or not offer.get("for_sale", True)
    return empty, cost is None, Decimal(cost["amount"]) if cost else Decimal(0)


def _words(text: str) -> str:
    """Words, numbers, and each character of a script without blanks by itself."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).lower()))


def _brief(offer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: offer[name] for name in ("supplier", "sku", "title", "price")}


def _pasted(row: Mapping[str, Any]) -> str:
    """A suggestion as TOML, whose basic strings have JSON's escapes."""
    lines = [f"[products.{_quoted(row['product'])}]  # {' '.join(row['title'].split())}", "offers = ["]
    for offer in row["offers"]:
        about = " ".join(f"{offer['score']}: {offer['title']}, {output.cell(offer['price'])}".split())
        lines.append(f"    {{ supplier = {_quoted(offer['supplier'])}, sku = {_quoted(offer['sku'])} }},  # {about}")
    return "\n".join([*lines, "]", ""])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
