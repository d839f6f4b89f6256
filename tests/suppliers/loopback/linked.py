"""A bundled adapter behind a real client and link, as the daemon has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from syncd.adapter import Adapter, Context, OrderRequest, OutcomeUnknown, SecretText
from syncd.model import Clock
from syncd.suppliers import registry
from syncd.suppliers.client import Client, Limits
from syncd.suppliers.link import Link

QUICK = Limits(connect_timeout=1.0, read_timeout=0.4, total_timeout=1.5)


def linked(
    adapter: str,
    *,
    limits: Limits = QUICK,
    clock: Clock | None = None,
    variant: Callable[[type[Adapter]], type[Adapter]] = lambda kind: kind,
    **settings: Any,
) -> Link:
    """A link to a supplier that the adapter of this name speaks to. ``variant`` plants a bug in it."""
    kind = variant(registry.load(registry.find(adapter, [])))
    made = kind.Settings.model_validate(settings)
    secrets = [value.reveal() for value in settings.values() if isinstance(value, SecretText)]
    client = Client(adapter, limits, hidden=secrets, clock=clock, jitter=lambda: 0.0)
    return Link(kind(Context(adapter, made, ZoneInfo("Asia/Shanghai"), client)), client)


FAULTS = [
    ("reset", 0),
    ("gone", 0),
    ("error", 0),
    ("page", 0),
    ("lost", 1),
    ("broken", 1),
    ("html", 1),
    ("cut", 1),
    ("short", 1),
]
"""How a loopback supplier fails an order, and how often it has charged for it by then."""


def ends_unknown_after_one_request(server: Any, link: Link, wanted: OrderRequest, path: str, fault: str) -> None:
    """The property: an order that goes wrong is asked for once, and is unknown (M1)."""
    server.fail(path, fault)
    with pytest.raises(OutcomeUnknown):
        link.call("place_order", wanted)
    assert server.times(path) == 1
