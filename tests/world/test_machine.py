"""M1-M4, P1-P3: many steps of a seeded world on each engine, a crash at any commit, and books that balance.

SYNCD_WORLD_EXAMPLES and SYNCD_WORLD_STEPS say how many worlds, and how many steps each; SYNCD_WORLD_SEED makes others
than the usual ones. `make soak` sets them all.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import initialize, run_state_machine_as_test

from tests.world.bugs import fails_over_after_unknown
from tests.world.machine import WorldMachine

EXAMPLES = int(os.environ.get("SYNCD_WORLD_EXAMPLES", "16"))
STEPS = int(os.environ.get("SYNCD_WORLD_STEPS", "50"))
SEED = os.environ.get("SYNCD_WORLD_SEED")


def run(machine: type[WorldMachine], fresh: Any, examples: int = EXAMPLES, **more: Any) -> None:
    """Run a machine, each example in an empty database."""

    class Here(machine):  # type: ignore[misc, valid-type]
        pass

    Here.fresh = staticmethod(fresh)
    run_state_machine_as_test(
        Here if SEED is None else seed(int(SEED))(Here),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            derandomize=SEED is None,
            suppress_health_check=list(HealthCheck),
            **more,
        ),
    )


@pytest.mark.timeout(400)
def test_M1_M2_M3_M4_P3_a_world_of_sins_and_crashes_keeps_its_books(fresh: Any, request: pytest.FixtureRequest) -> None:
    slower = request.node.callspec.params["fresh"] == "postgresql"
    run(WorldMachine, fresh, EXAMPLES // 3 if slower else EXAMPLES, phases=(Phase.generate, Phase.shrink))


class Deaf(WorldMachine):
    """Every answer to an order is lost."""

    @initialize()
    def deaf(self) -> None:
        self.world.ledger.sins.extend(["lost"] * 50)


@pytest.mark.parametrize("fresh", ["sqlite"], indirect=True)
def test_M3_control_the_machine_finds_a_planted_bug(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_over_after_unknown(monkeypatch)
    with pytest.raises(AssertionError, match="counts as refused"):
        run(Deaf, fresh, 100, phases=(Phase.generate,))
