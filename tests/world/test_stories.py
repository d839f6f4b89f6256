"""Each story on each engine, as it should end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.world.scenarios import STORIES


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_M1_M2_M4_P3(story: Callable[[Any], None], make_world: Any) -> None:
    story(make_world)
