"""M3: fifteen planted bugs, each found in the story that was written for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.world.bugs import BUGS


@pytest.mark.parametrize("fresh", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("bug", "story"), BUGS, ids=lambda it: it.__name__)
def test_M3_control_a_planted_bug_is_found(
    bug: Callable[[pytest.MonkeyPatch], None],
    story: Callable[[Any], None],
    make_world: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def often() -> None:
        for _ in range(6):  # some are races, which are not lost every time
            story(make_world)

    bug(monkeypatch)
    with pytest.raises(AssertionError):
        often()
