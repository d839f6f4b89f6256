"""`syncd deliveries`: paid orders, what they wait for, and keys that turned out to be bad. Never shows a key."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Final

import typer

from syncd.cli import operator, output
from syncd.cli.operator import Operator
from syncd.cli.options import AsJson, ConfigFile, group

commands = group("Deliveries: paid orders and their keys.")

_COLUMNS: Final = ("shop", "order_ref", "product", "quantity", "status", "reason", "created_at", "completed_at")
_CLAIMS: Final = ("key", "shop", "order_ref", "product", "reason", "supplier", "claim", "note", "created_at")
_REASONS: Final = ("already_used", "expired", "invalid", "other", "wrong_product", "wrong_region")
_PAGE: Final = 1000

Shop = Annotated[str, typer.Argument(help="The shop.")]
OrderRef = Annotated[str, typer.Argument(metavar="ORDER_REF", help="The shop's order line.")]


@commands.command("list")
def list_(
    pending: Annotated[bool, typer.Option("--pending", help="Only those that wait for keys.")] = False,
    product: Annotated[str | None, typer.Option("--product", metavar="SKU", help="Only of this product.")] = None,
    shop: Annotated[str | None, typer.Option("--shop", metavar="NAME", help="Only of this shop.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many; --json gives all.")] = 200,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Deliveries, the oldest first."""
    found = _every(Operator.of(config), pending=str(pending).lower(), product=product, shop=shop)
    if json_:
        output.as_json({"deliveries": list(found)})
        return
    shown = list(islice(found, limit))
    output.table(shown, _COLUMNS, empty="none waits" if pending else "no deliveries")
    if len(shown) == limit and next(found, None) is not None:
        output.note(f"the first {limit}; --limit or --json shows more")


@commands.command()
def show(shop: Shop, order_ref: OrderRef, config: ConfigFile = None, json_: AsJson = False) -> None:
    """One delivery: the ids of its keys, where they came from, and what was replaced."""
    _tell(Operator.of(config).get(_path(shop, order_ref)), as_json=json_)


@commands.command()
def retry(shop: Shop, order_ref: OrderRef, config: ConfigFile = None, json_: AsJson = False) -> None:
    """Look for the keys of a pending delivery now, in the vault and at suppliers."""
    _tell(Operator.of(config).post(f"{_path(shop, order_ref)}/retry", wait=True), as_json=json_)


@commands.command()
def replace(
    shop: Shop,
    order_ref: OrderRef,
    key: Annotated[str, typer.Argument(metavar="KEY_ID", help="The id of the key that does not work.")],
    reason: Annotated[str, typer.Option("--reason", help=f"One of {', '.join(_REASONS)}.")],
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Put another key in the place of a bad one, whatever the shop's limit. The shop asks again for its keys."""
    asked = {"key_id": key, "reason": reason}
    _tell(Operator.of(config).post(f"{_path(shop, order_ref)}/replacements", asked), as_json=json_)


@commands.command()
def claims(
    asking: Annotated[bool, typer.Option("--asking", help="Only those whose answer is not known.")] = False,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Bad keys, the newest first, and what their suppliers say."""
    answer = Operator.of(config).get("/v1/claims", claim="asking" if asking else None, limit=_PAGE)
    if json_:
        output.as_json(answer)
    else:
        output.table(operator.rows(answer, "claims"), _CLAIMS, empty="no claims")


@commands.command()
def settle(
    key: Annotated[str, typer.Argument(metavar="KEY_ID", help="The key whose claim was never answered.")],
    said: Annotated[str, typer.Argument(metavar="returned|complained|refused|open", help="What the supplier says.")],
    config: ConfigFile = None,
) -> None:
    """Say what became of a claim whose answer was lost; `open` makes it again."""
    Operator.of(config).post(f"/v1/claims/{operator.part(key)}/settle", {"claim": said})
    output.line(f"the claim of key {key} is {said}")


def _every(daemon: Operator, **asked: Any) -> Iterator[dict[str, Any]]:
    after: str | None = None
    while True:
        answer = daemon.get("/v1/deliveries", **asked, after=after, limit=_PAGE)
        yield from operator.rows(answer)
        after = answer["next"]
        if after is None:
            return


def _path(shop: str, order_ref: str) -> str:
    return f"/v1/shops/{operator.part(shop)}/deliveries/{operator.part(order_ref)}"


def _tell(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.as_json(found)
    else:
        output.facts(found)
