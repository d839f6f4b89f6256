"""M1-M4, P1-P3: thousands of steps of a seeded world on each engine, a crash at any commit, and books that balance.

SYNCD_WORLD_EXAMPLES and SYNCD_WORLD_STEPS say how many worlds, and how many steps each; `make soak` raises both.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.world.machine import WorldMachine

EXAMPLES = int(os.environ.get("SYNCD_WORLD_EXAMPLES", "20"))
STEPS = int(os.environ.get("SYNCD_WORLD_STEPS", "60"))


def run(machine: type[WorldMachine], fresh: Any, *, examples: int = EXAMPLES, steps: int = STEPS, **more: Any) -> None:
    """Run a machine, each example in an empty database."""

    class Here(machine):  # type: ignore[misc, valid-type]
        pass

    Here.fresh = staticmethod(fresh)
    how = {"derandomize": True, "database": None, "print_blob": False, **more}
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink) if "phases" not in how else how.pop("phases"),
            **how,
        ),
    )


def test_M1_M2_M3_M4_P3_a_world_of_sins_and_crashes_keeps_its_books(fresh: Any) -> None:
    run(WorldMachine, fresh)
