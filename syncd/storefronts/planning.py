"""The operator's routes about what to hold and from whom to buy it. Called by `native`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query
from pydantic import BaseModel

from syncd.storefronts.guard import OPERATE
from syncd.storefronts.operating import Sku, stated
from syncd.storefronts.purchasing import Bought, bought

if TYPE_CHECKING:
    from syncd.storefronts.native import Parts


class Replenished(BaseModel):
    """What came of buying what lacks: product → outcome, of those that lacked something."""

    products: dict[str, Bought]


def install(app: FastAPI, parts: Parts) -> None:
    """Add the routes."""

    @app.get("/v1/products/{sku}/explain", **stated(OPERATE, "replenishing"))
    def explain(sku: Sku, quantity: Annotated[int | None, Query(ge=1, le=1000)] = None) -> dict[str, Any]:
        """What lacks of a product, and from whom it would be bought: each offer with its cost and its reason.

        With `quantity`, as if so many units were wanted.
        """
        return parts.restock.explain(sku, quantity)

    @app.get("/v1/replenish", **stated(OPERATE, "replenishing"))
    async def plan() -> dict[str, Any]:
        """What would be bought now of the products that are cached, and why. Nothing is bought."""
        plans = await parts.restock.plan()
        return {"products": [one.shown() for one in plans.values()]}

    @app.post("/v1/replenish", **stated(OPERATE, "replenishing"))
    async def replenish() -> Replenished:
        """Buy now what lacks, within the guards, and wait for what comes of it."""
        # A request that is cut off ends no purchase: `Purchases` goes on by itself.
        outcomes = await asyncio.shield(parts.restock.run())
        return Replenished(products={sku: bought(one) for sku, one in outcomes.items()})
