"""Buying keys from suppliers that sell by order, so that nothing is ever paid twice (M1, M4, P3). Called by orders (what
is owed), by replenish (what will be), by the operator, and by the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from syncd.config import Settings
from syncd.inventory.catalogue import Catalogue
from syncd.inventory.formats import Format
from syncd.metrics import Metrics
from syncd.model import IdSource
from syncd.store.database import Writer
from syncd.suppliers.link import Link
from syncd.vault.vault import Vault


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of wanting to buy."""

    bought: int = 0
    """Units that are in the vault now."""
    on_order: int = 0
    """Units that were ordered by this call and are outstanding, unknown ones among them."""
    refused: tuple[tuple[str, str, str], ...] = ()
    """(supplier, its sku, why): who said no, or what forbade to ask. No secret."""
    references: tuple[str, ...] = field(default=())
    """Those of every purchase that this call began."""


class Purchases:
    """Buys, follows up what was bought, and knows what is outstanding."""

    def __init__(
        self,
        writer: Writer,
        vault: Vault,
        ids: IdSource,
        catalogue: Catalogue,
        links: Mapping[str, Link],
        settings: Callable[[], Settings],
        formats: Callable[[], Mapping[str, Format]],
        metrics: Metrics,
        arrived: Callable[[str], None],
    ) -> None:
        """``links`` are those to the enabled suppliers, by name; ``arrived`` is told each product that got keys."""

    async def top_up(self, product: str, level: int, *, asked_by: str) -> Outcome:
        """Buy until what is available and on order reaches ``level`` units beyond what orders that wait are owed.

        The need is computed again in each intent's transaction: two calls, or two daemons, never buy one need twice.
        Raises NotFoundError for a product that is not configured.
        """
        raise NotImplementedError

    async def buy(self, product: str, quantity: int, *, asked_by: str) -> Outcome:
        """Buy so many, whatever is there. Raises NotFoundError, InvalidRequestError (fewer than one)."""
        raise NotImplementedError

    async def recover(self) -> None:
        """At the start, before anybody is served: what a stop left half-way becomes refused (never sent) or unknown."""

    async def tick(self) -> None:
        """Start whatever is due and return at once: called every second by the schedule."""

    async def reconcile(self) -> None:
        """Follow up everything that is due, and wait until that is done."""

    async def cover(self, product: str | None = None) -> None:
        """Buy what orders that wait are owed, of this product or of all that are configured to be bought."""

    async def stop(self) -> None:
        """Begin nothing more; wait a moment for what is under way. What is cut off is unknown at the next start."""

    def on_order(self, connection: Connection) -> dict[str, int]:
        """Product → units that are outstanding: intended, sent, accepted or unknown."""
        raise NotImplementedError

    def can_buy(self, product: str, quantity: int) -> bool:
        """Whether a fresh route to so many units exists, by what was known at most a second ago. Blocks if it was not."""
        raise NotImplementedError
