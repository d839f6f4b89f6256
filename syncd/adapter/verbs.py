"""The adapter itself: what it is given, and the verbs that it implements."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Final
from zoneinfo import ZoneInfo

from syncd.adapter.errors import Config
from syncd.adapter.feeds import Consignment, Pull
from syncd.adapter.http import Connect, Hint, Http, Webhook
from syncd.adapter.settings import Settings
from syncd.adapter.values import Check, Offer, Order, OrderRequest, Page, Promises, RawKey
from syncd.model import Money


def _nobody(base_url: str, **_: Any) -> Http:
    raise Config(f"nothing can be sent to {base_url} here: there is no client")


@dataclass(frozen=True, slots=True)
class Context:
    """What an adapter is given: its supplier's name, its settings (an instance of its own model), the time zone, and a
    way to connect.
    """

    name: str
    settings: Any
    timezone: ZoneInfo
    connect: Connect = field(default=_nobody, repr=False)
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC), repr=False)
    """The clock, in UTC: for a time that is a part of a request's body. A `Signer` is given its own."""


READING: Final = frozenset({"check", "list_offers", "get_offer", "get_balance"})
"""The verbs that only read, and that the core therefore repeats after a failure. All others are never repeated."""


class Adapter:
    """One supplier's protocol. Subclass it, set ``Settings``, implement what the supplier can do.

    ``__init__`` must not touch the network. All ``async`` methods run on one event loop of this supplier's own, so they
    need no locks, and one that blocks holds up nobody else.
    """

    Settings: ClassVar[type[Settings]] = Settings
    title: ClassVar[str] = ""
    """What the supplier's system is called."""
    promises: ClassVar[Promises] = Promises()
    split: ClassVar[str] = "auto"
    """Which splitter cuts its texts into keys, where the product does not say it (K14)."""
    unverified: ClassVar[tuple[str, ...]] = ()
    """What of the protocol nobody has confirmed yet, a sentence each: shown on the adapter's page and in lists."""

    def __init__(self, context: Context) -> None:
        self.context = context

    # Reading verbs: repeated by the core, so they must have no effect.

    async def check(self) -> Check:
        """Whether our credentials work. Raises Auth, Config, Transient. Without it the core asks otherwise."""
        raise NotImplementedError

    def list_offers(self, since: datetime | None) -> AsyncIterator[Page]:
        """Every offer, page by page; with ``since`` (only where `Promises.incremental`) those changed since then.

        Ending without an error says that the listing is complete. A page that repeats ends the run: no endless loops.
        Raises BadResponse for a page that is not what the protocol says: half a listing is none.
        """
        raise NotImplementedError

    async def get_offer(self, sku: str) -> Offer:
        """One offer as it is now. Raises NotForSale when it is gone."""
        raise NotImplementedError

    async def get_balance(self) -> Money:
        """What our account holds."""
        raise NotImplementedError

    # Buying verbs: never repeated by the core.

    async def place_order(self, order: OrderRequest) -> Order:
        """Buy. At most one request that may buy; a refusal raises Refused or one of its kinds; whatever leaves doubt
        raises OutcomeUnknown.
        """
        raise NotImplementedError

    async def get_order(self, order_id: str) -> Order:
        """An order as it is now, by the supplier's id, with the keys that its answer holds."""
        raise NotImplementedError

    async def find_order(self, reference: str) -> Order | None:
        """The order that bears our reference; None only if the supplier says for sure that there is none."""
        raise NotImplementedError

    async def fetch_keys(self, order: Order) -> Sequence[RawKey]:
        """The keys of an order, all that are there by now, where they come by a call of their own."""
        raise NotImplementedError

    # Others.

    def pull_keys(self, pull: Pull) -> Iterator[Consignment]:
        """Everything that the supplier handed over and that was not finished yet.

        Runs in a thread of its own, so it may block. What is raised for one payload (`AdapterError` says why) ends
        this run only; what was yielded before it stays taken.
        """
        raise NotImplementedError

    async def return_keys(self, order_id: str, key_ids: Sequence[str]) -> Mapping[str, bool]:
        """Give keys back; key id → whether the supplier took it."""
        raise NotImplementedError

    async def complain(self, order_id: str, text: str) -> str:
        """Open a warranty claim; the supplier's id of it, or ""."""
        raise NotImplementedError

    def parse_webhook(self, webhook: Webhook) -> Hint:
        """What a request of the supplier's is about. Pure. Verifies the signature; raises Forged, BadResponse."""
        raise NotImplementedError


VERBS: Final = (
    "check",
    "list_offers",
    "get_offer",
    "get_balance",
    "place_order",
    "get_order",
    "find_order",
    "fetch_keys",
    "pull_keys",
    "return_keys",
    "complain",
    "parse_webhook",
)


def capabilities(kind: type[Adapter]) -> frozenset[str]:
    """The verbs that an adapter implements: what it overrides of `Adapter`."""
    return frozenset(verb for verb in VERBS if getattr(kind, verb) is not getattr(Adapter, verb))
