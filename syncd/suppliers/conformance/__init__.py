"""The conformance kit: proves, from documented exchanges, that an adapter is safe with money, stock and secrets.

`syncd adapter test NAME` runs it; so does a test file with one import::

    from pathlib import Path

    import pytest

    from syncd.suppliers.conformance import conformance

    KIT = conformance(Path(__file__).with_name("yunka.py"))


    @pytest.mark.parametrize("check", KIT.checks("silver"), ids=str)
    def test_yunka(check):
        KIT.holds(check)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from syncd.errors import ConfigError, SyncdError
from syncd.suppliers.conformance import (  # their checks join the list, in this order
    bronze,  # noqa: F401
    buying,  # noqa: F401
    feeds,  # noqa: F401
    gold,  # noqa: F401
    reading,  # noqa: F401
    secrets,  # noqa: F401
)
from syncd.suppliers.conformance.checks import CHECKS, TIERS, Check, Result, Tier, failed, tier_of, tried
from syncd.suppliers.conformance.rig import Kit

__all__ = ["CHECKS", "TIERS", "Check", "Conformance", "Result", "Tier", "conformance", "examined", "tier_of", "tried"]


def examined(
    place: Path | EntryPoint, examples: Mapping[str, Any] | None = None, *, up_to: Tier = "gold"
) -> Iterator[Result]:
    """Try every check of the tiers up to this one, in order, and tell each result as it comes."""
    try:
        kit = Kit(place, examples)
    except ConfigError as error:
        yield failed(
            "its-examples-fit", [(f"{one.path or one.file}: {one.message}", one.fix) for one in error.problems]
        )
        return
    except SyncdError as error:
        yield failed("it-loads", [(error.message, error.hint)])
        return
    for check in _up_to(up_to):
        yield tried(check, kit)


def _up_to(tier: Tier) -> list[Check]:
    wanted = TIERS[: TIERS.index(tier) + 1]
    return sorted((one for one in CHECKS.values() if one.tier in wanted), key=lambda one: TIERS.index(one.tier))


class Conformance:
    """The checks of one adapter, for a test file."""

    def __init__(self, file: Path, examples: Mapping[str, Any] | None) -> None:
        self.kit = Kit(file, examples)

    def checks(self, up_to: Tier = "silver") -> list[Check]:
        """Those that apply to it: what is not tried is not in the list, and cannot pass."""
        return [
            one for one in _up_to(up_to) if one.name not in self.kit.examples.exempt and not one.inapplicable(self.kit)
        ]

    def holds(self, check: Check) -> None:
        """Try one check. Raises AssertionError with what was seen and what to do."""
        result = tried(check, self.kit)
        if result.state != "passed":
            seen = [f"{found}\n    -> {todo}" for found, todo in result.findings] or [result.reason]
            raise AssertionError("\n".join([f"{check.name}: {check.why}", *seen]))


def conformance(adapter: Path | str, examples: Mapping[str, Any] | None = None) -> Conformance:
    """The checks for an adapter's file. ``examples``: instead of ``NAME.examples.toml`` beside it, in the same form.

    Raises SyncdError when the adapter does not load, ConfigError when the examples are wrong.
    """
    return Conformance(Path(adapter), examples)
