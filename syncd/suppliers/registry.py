"""Finding and loading adapters: bundled ones and drop-in files, by path, only those that the configuration names.

Called by the daemon and by `syncd check`; a broken adapter that is used is a configuration problem.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

from syncd.adapter import Adapter, Context
from syncd.config import Settings
from syncd.errors import Problem, SyncdError

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class UnsafeAdapterError(SyncdError):
    """An adapter's file could have been written by somebody who is neither root nor the daemon's user."""

    code = "unsafe_adapter"


def bundled() -> Path:
    """The folder of the adapters that come with syncd: inside the wheel, else in the checkout."""
    package = Path(__file__).parent.parent
    inside = package / "adapters"
    return inside if inside.is_dir() else package.parent / "adapters"


def find(name: str, drop_in: Iterable[Path], *, override: bool = False) -> Path:
    """The file of an adapter. Raises SyncdError: unknown, a name in two places, or a file that is not safe to run."""
    ours = bundled() / f"{name}.py"
    theirs = [path for folder in drop_in if (path := folder / f"{name}.py").is_file()]
    if ours.is_file() and not (theirs and override):
        if theirs:
            raise SyncdError(
                f"{theirs[0]} has the name of a bundled adapter", hint="rename it, or set override = true to use it"
            )
        return ours
    if not theirs:
        known = sorted(
            {path.stem for folder in (bundled(), *drop_in) if folder.is_dir() for path in folder.glob("*.py")}
        )
        raise SyncdError(f"there is no adapter {name!r}", hint=f"there are: {', '.join(known)}")
    for place in (theirs[0].parent, theirs[0]):
        info = place.stat()
        if info.st_uid not in {0, os.geteuid()} or info.st_mode & _WRITABLE_BY_OTHERS:
            raise UnsafeAdapterError(
                f"{place} could be written by others than root and the daemon's user",
                hint=f"chown root {place} && chmod go-w {place}",
            )
    return theirs[0]


def load(path: Path) -> type[Adapter]:
    """The adapter class of a file. Raises SyncdError for a file that does not load or holds none."""
    loader = SourceFileLoader(f"syncd_adapter_{path.stem}", str(path))
    module = ModuleType(loader.name)
    module.__file__ = str(path)
    sys.modules[loader.name] = module  # annotations of its settings are looked up there
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:  # an adapter may fail in any way, and must not take the daemon along
        line = getattr(error, "lineno", None)
        where = f"{path}, line {line}" if line else str(path)
        raise SyncdError(
            f"{where} does not load: {type(error).__name__}", hint="run it with python to see why"
        ) from error
    adapter = getattr(module, "ADAPTER", None)
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise SyncdError(f"{path} has no ADAPTER", hint="its last line is: ADAPTER = YourAdapterClass")
    return adapter


def build(settings: Settings) -> tuple[dict[str, Adapter], list[Problem]]:
    """An adapter for every enabled supplier, and every problem that stands in the way of one."""
    adapters: dict[str, Adapter] = {}
    problems: list[Problem] = []
    for name, supplier in settings.suppliers.items():
        if not supplier.enabled:
            continue
        try:
            kind = load(find(supplier.adapter, settings.daemon.adapters, override=supplier.override))
            own = kind.Settings.model_validate(supplier.settings, context={"base": settings.file.parent})
            adapters[name] = kind(Context(name, own, supplier.tz))
        except ValidationError as error:
            for item in error.errors(include_url=False, include_input=False):
                path = ".".join(["suppliers", name, *(str(part) for part in item["loc"])])
                known = ", ".join(sorted(kind.Settings.model_fields))
                problems.append(settings.problem(path, str(item["msg"]), f"settings of {supplier.adapter}: {known}"))
        except SyncdError as error:
            problems.append(settings.problem(f"suppliers.{name}.adapter", error.message, error.hint))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - its constructor or its validators, likewise
            why = f"{supplier.adapter} does not start: {type(error).__name__}"
            problems.append(settings.problem(f"suppliers.{name}.adapter", why, "mend the adapter's __init__"))
    return adapters, problems
