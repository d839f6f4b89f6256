"""Finding and loading adapters: bundled ones and drop-in files, by path, only those that the configuration names; and
those of installed packages, by their entry point.

Called by the daemon and by `syncd check`; a broken adapter that is used is a configuration problem. `catalogue` is for
`syncd adapter list`, in which a broken one that is not used is a line among others.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import stat
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

from pydantic import BaseModel, ValidationError

from syncd.adapter import Adapter, Context, Promises, capabilities
from syncd.config import Settings, Supplier
from syncd.errors import Problem, SyncdError
from syncd.model import NAME_PATTERN, SecretText
from syncd.suppliers.client import Client, Limits, trusted

GROUP: Final = "syncd.adapters"
_SUFFIXES: Final = (".py", ".toml")
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class UnsafeAdapterError(SyncdError):
    """An adapter's file could have been written by somebody who is neither root nor the daemon's user."""

    code = "unsafe_adapter"


def bundled() -> Path:
    """The folder of the adapters that come with syncd: inside the wheel, else in the checkout."""
    package = Path(__file__).parent.parent
    inside = package / "adapters"
    return inside if inside.is_dir() else package.parent / "adapters"


# --- finding ----------------------------------------------------------------------------------------------------------


def find(name: str, drop_in: Iterable[Path], *, override: bool = False) -> Path | EntryPoint:
    """The file of an adapter, or an installed package's entry point.

    A name that stands in two places is refused, unless ``override`` takes the drop-in, or the installed one, instead of
    the bundled one. Raises SyncdError: unknown, in two places, or a file that is not safe to run.
    """
    folders = list(drop_in)
    ours = [path for suffix in _SUFFIXES if (path := bundled() / f"{name}{suffix}").is_file()]
    theirs = [path for folder in folders for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    installed = list(entry_points(group=GROUP, name=name))
    twins = [path for path in theirs[1:] if path.parent == theirs[0].parent]
    if twins:
        raise SyncdError(f"{theirs[0]} and {twins[0]} have one name", hint="keep one of the two")
    if theirs and (override or not (ours or installed)):
        return _safe(theirs[0])
    if installed and not theirs and (override or not ours):
        return installed[0]
    if ours and not theirs and not installed:
        return ours[0]
    if theirs or installed:
        other = str(theirs[0]) if theirs else _where(installed[0])
        whose = "a bundled adapter" if ours else "an installed one"
        raise SyncdError(f"{other} has the name of {whose}", hint="rename it, or set override = true to use it")
    known = sorted({found.name for found in _all(folders)})
    looked = ", ".join(map(str, [*folders, bundled()]))
    raise SyncdError(f"there is no adapter {name!r} in {looked}", hint=f"there are: {', '.join(known)}")


def _safe(path: Path) -> Path:
    """The path, if nobody but root and ourselves could have written it."""
    for place in (path.parent, path):
        info = place.stat()
        if info.st_uid not in {0, os.geteuid()} or info.st_mode & _WRITABLE_BY_OTHERS:
            raise UnsafeAdapterError(
                f"{place} could be written by others than root and the daemon's user",
                hint=f"chown root {place} && chmod go-w {place}",
            )
    return path


def _where(entry: EntryPoint) -> str:
    return f"{entry.value} of {entry.dist.name}" if entry.dist else entry.value


# --- loading ----------------------------------------------------------------------------------------------------------


def load(place: Path | EntryPoint) -> type[Adapter]:
    """The adapter class of a file or an entry point. Raises SyncdError for one that does not load or holds none."""
    if isinstance(place, EntryPoint):
        where, hint = _where(place), "its class is what the entry point names"
        adapter = _tried(place.load, where)
    elif place.suffix == ".toml":
        where, hint = str(place), ""
        adapter = _declared(place)
    else:
        where, hint = str(place), "its last line is: ADAPTER = YourAdapterClass"
        adapter = getattr(_module(place), "ADAPTER", None)
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise SyncdError(f"{where} has no ADAPTER", hint=hint)
    return adapter


def _module(path: Path) -> ModuleType:
    loader = SourceFileLoader(f"syncd_adapter_{path.stem}", str(path))
    module = ModuleType(loader.name)
    module.__file__ = str(path)
    sys.modules[loader.name] = module  # annotations of its settings are looked up there
    _tried(lambda: loader.exec_module(module), str(path))
    return module


def _declared(path: Path) -> object:
    try:
        declarative = importlib.import_module("syncd.suppliers.declarative")
    except ModuleNotFoundError as error:
        if error.name != "syncd.suppliers.declarative":
            raise
        raise SyncdError(f"{path}: this syncd has no adapters without code", hint="write it in Python") from None
    return _tried(lambda: declarative.load(path), str(path))


def _tried(call: Any, where: str) -> Any:
    """An adapter may fail in any way, and must not take the daemon along."""
    try:
        return call()
    except SyncdError:
        raise
    except (Exception, SystemExit) as error:
        hint = "run it with python to see why"
        raise SyncdError(f"{place_of(error, where)} does not load: {_named(error)}", hint=hint) from error


def place_of(error: BaseException, file: Path | str) -> str:
    """An adapter's file, and the last line of it on the way to what was raised."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    line = (isinstance(error, SyntaxError) and error.lineno) or (lines and lines[-1])
    return f"{file}, line {line}" if line else str(file)


def _named(error: BaseException) -> str:
    """An exception's kind, and what Python did not find: a name of the code. Its words may hold anything."""
    name = getattr(error, "name", None) if isinstance(error, AttributeError | NameError | ImportError) else None
    return f"{type(error).__name__}: {name}" if name else type(error).__name__


# --- what there is ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listed:
    """An adapter as `syncd adapter list` shows it. ``problem``: why it cannot be used; then the rest is empty."""

    name: str
    source: Literal["bundled", "drop-in", "installed"]
    where: str
    title: str = ""
    capabilities: frozenset[str] = frozenset()
    promises: Promises = field(default_factory=Promises)
    unverified: tuple[str, ...] = ()
    problem: str = ""


def catalogue(drop_in: Iterable[Path]) -> list[Listed]:
    """Every adapter that there is, by name, broken ones too. Runs the code of each that is safe to run."""
    listed = []
    for found in sorted(_all(list(drop_in)), key=lambda found: (found.name, found.source)):
        try:
            kind = load(_safe(found.place) if isinstance(found.place, Path) else found.place)
        except SyncdError as error:
            listed.append(Listed(found.name, found.source, found.where, problem=str(error)))
            continue
        listed.append(
            Listed(
                found.name,
                found.source,
                found.where,
                kind.title,
                capabilities(kind),
                kind.promises,
                kind.unverified,
            )
        )
    return listed


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    source: Literal["bundled", "drop-in", "installed"]
    place: Path | EntryPoint

    @property
    def where(self) -> str:
        return str(self.place) if isinstance(self.place, Path) else _where(self.place)


def _all(drop_in: Iterable[Path]) -> Iterator[_Found]:
    for folder in (bundled(), *drop_in):
        source: Literal["bundled", "drop-in"] = "bundled" if folder == bundled() else "drop-in"
        for suffix in _SUFFIXES if folder.is_dir() else ():
            for path in folder.glob(f"*{suffix}"):
                if re.fullmatch(NAME_PATTERN, path.stem):  # an adapter's examples lie beside it
                    yield _Found(path.stem, source, path)
    yield from (_Found(entry.name, "installed", entry) for entry in entry_points(group=GROUP))


# --- for a configuration ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Built:
    """A supplier's adapter, its client, and a digest of everything that both are made from."""

    adapter: Adapter
    client: Client
    digest: str = field(repr=False)
    """Hex. It is of credentials too, so it is kept only under a key (`Links`)."""


def build(settings: Settings) -> tuple[dict[str, Built], list[Problem]]:
    """What every enabled supplier needs, and every problem that stands in the way of one. Touches no network."""
    built: dict[str, Built] = {}
    problems: list[Problem] = []
    for name, supplier in settings.suppliers.items():
        if not supplier.enabled:
            continue
        try:
            if supplier.ca_file is not None:
                trusted(supplier.ca_file)
        except SyncdError as error:
            problems.append(settings.problem(f"suppliers.{name}.ca_file", error.message, error.hint))
        try:
            place = find(supplier.adapter, settings.daemon.adapters, override=supplier.override)
            kind = load(place)
            own = kind.Settings.model_validate(supplier.settings, context={"base": settings.file.parent})
            client = Client(name, _limits(supplier), hidden=_secrets(own))
            adapter = kind(Context(name, own, supplier.tz, client))
            built[name] = Built(adapter, client, _digest(supplier, own, place))
        except ValidationError as error:
            for item in error.errors(include_url=False, include_input=False):
                path = ".".join(["suppliers", name, *(str(part) for part in item["loc"])])
                known = f"settings of {supplier.adapter}: {', '.join(sorted(kind.Settings.model_fields))}"
                message, fix = str(item["msg"]).removeprefix("Value error, "), item.get("ctx", {}).get("fix")
                problems.append(settings.problem(path, message, fix or known))
        except SyncdError as error:
            problems.append(settings.problem(f"suppliers.{name}.adapter", error.message, error.hint))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - its constructor or its validators, likewise
            where = place_of(error, place if isinstance(place, Path) else supplier.adapter)
            why = f"{where} does not start: {_named(error)}"
            problems.append(settings.problem(f"suppliers.{name}.adapter", why, "mend the adapter's __init__"))
    return built, problems


def _limits(supplier: Supplier) -> Limits:
    return Limits(
        rate=supplier.rate,
        concurrency=supplier.concurrency,
        connect_timeout=supplier.connect_timeout,
        read_timeout=supplier.read_timeout,
        total_timeout=supplier.timeout,
        max_answer=supplier.max_answer,
        ca_file=supplier.ca_file,
        proxy=supplier.proxy,
        allow_http=supplier.allow_http,
    )


def _secrets(value: object) -> Iterator[str]:
    """Every credential in an adapter's settings, however deep."""
    if isinstance(value, SecretText):
        yield value.reveal()
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _secrets(getattr(value, name))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _secrets(inner)
    elif isinstance(value, Collection) and not isinstance(value, str | bytes):
        ordered = value if isinstance(value, Sequence) else sorted(value, key=_revealed)  # a set has no order
        for inner in ordered:
            yield from _secrets(inner)


def _revealed(value: object) -> str:
    return value.reveal() if isinstance(value, SecretText) else str(value)


def _digest(supplier: Supplier, own: BaseModel, place: Path | EntryPoint) -> str:
    """Another one as soon as anything differs: a setting, a credential, the adapter's file, who is trusted."""
    content = place.read_bytes() if isinstance(place, Path) else _where(place).encode()
    ca = supplier.ca_file
    trust = ca.read_bytes() if ca is not None and ca.is_file() else b""  # without the file it is a problem already
    # In their order: two credentials that change places are others.
    told = json.dumps([supplier.model_dump(), list(_secrets(own))], default=str, sort_keys=True)
    whole = (content, trust, told.encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in whole)).hexdigest()
