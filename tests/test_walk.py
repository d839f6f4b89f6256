"""docs/walk.md leads through code that exists: every dotted name in it can be imported."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from syncd.suppliers import registry

ROOT = Path(__file__).parents[1]
WALK = (ROOT / "docs" / "walk.md").read_text(encoding="utf-8")
NAME = re.compile(r"`((?:syncd|adapters)\.[\w.]+)`")


def resolve(name: str) -> object:
    """What a dotted name stands for. Raises ImportError or AttributeError."""
    parts = name.split(".")
    if parts[0] == "adapters":  # no package: adapters are loaded by path
        found: object = importlib.import_module(registry.load(registry.bundled() / f"{parts[1]}.py").__module__)
        rest = parts[2:]
    else:
        # The longest part of it that is a module; what comes after are attributes.
        for size in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:size]))
            except ModuleNotFoundError as error:
                if error.name and not name.startswith(error.name):
                    raise  # something that the module itself needs
                continue
            rest = parts[size:]
            break
    for part in rest:
        # An attribute that `__init__` sets is no less an attribute: a class says so in what its code names.
        if isinstance(found, type) and not hasattr(found, part):
            if rest[-1] == part and part in found.__init__.__code__.co_names:  # type: ignore[misc]
                return found
            raise AttributeError(name)
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", sorted(set(NAME.findall(WALK))))
def test_every_name_in_the_walk_exists(name: str) -> None:
    resolve(name)


def test_the_walk_is_a_walk() -> None:
    # A document that names nothing would pass for free.
    assert len(set(NAME.findall(WALK))) >= 25
    assert all(f"syncd.{part}" in WALK for part in ("schedule", "inventory", "vault", "orders", "storefronts", "audit"))
    assert len(WALK.splitlines()) < 80, "a walk is about a page long"


def test_every_name_in_backticks_that_looks_like_code_is_checked() -> None:
    # `Sync.tick` without its module would be passed over by the check above.
    loose = [name for name in re.findall(r"`([A-Za-z_]+\.[\w.]+)`", WALK) if not NAME.fullmatch(f"`{name}`")]
    assert loose == []


@pytest.mark.parametrize(
    "name",
    [
        "syncd.no_such_module",
        "syncd.schedule.Scheduler",
        "syncd.inventory.sync.Sync.tock",
        "syncd.vault.vault.Vault.imports",
        "adapters.feed.Feed.push_keys",
    ],
)
def test_negative_control_a_name_that_does_not_exist_is_found(name: str) -> None:
    with pytest.raises((ImportError, AttributeError)):
        resolve(name)
