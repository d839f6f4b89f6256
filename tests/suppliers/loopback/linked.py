"""A bundled adapter behind a real client and link, as the daemon has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

from syncd.adapter import Adapter, Context, SecretText
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
