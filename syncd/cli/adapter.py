"""`syncd adapter`: what adapters there are, what they can do, and whether they are safe. Works without the daemon."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from syncd.cli import configuration, output
from syncd.cli.options import AsJson, ConfigFile, group
from syncd.errors import ConfigError, InvalidRequestError, SyncdError
from syncd.model import NAME_PATTERN

if TYPE_CHECKING:
    from syncd.suppliers.conformance import Result, Tier
    from syncd.suppliers.conformance.rig import Kit

commands = group("Adapters: what there is, what it can do, and whether it is safe with money and secrets.")

Name = Annotated[str, typer.Argument(help="The adapter's name, or its file.", show_default=False)]

_FEED: Final = frozenset({"pull_keys"})
_MARKS: Final = {"passed": "ok", "failed": "FAILED", "blocked": "BLOCKED", "exempt": "exempt", "inapplicable": "-"}


@commands.command()
def new(
    name: Annotated[str, typer.Argument(help="Its name: small letters, digits, _ and -.", show_default=False)],
    rest: Annotated[bool, typer.Option("--rest", help="Without code: a TOML definition of a REST API.")] = False,
    folder: Annotated[Path, typer.Option("--in", help="Where to put it.", metavar="FOLDER")] = Path(),
) -> None:
    """Start an adapter: it works, on an invented protocol, with its examples and its test. Change it to yours."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequestError(
            f"{name!r} is no name of an adapter", hint="small letters, digits, _ and -, at most 32"
        )
    suffix = ".toml" if rest else ".py"
    title = name.replace("_", " ").replace("-", " ").title()
    words = {
        "FILE": f"{name}{suffix}",
        "TITLE": title,
        "CLASS": "".join(part for part in title if part.isalnum())
        if title[0].isalpha()
        else f"A{title.replace(' ', '')}",
        "DOMAIN": name.replace("_", "-"),
        "NAME": name.replace("-", "_"),
    }
    files = {
        folder / f"{name}{suffix}": f"order{suffix}.txt",
        folder / f"{name}.examples.toml": "order.examples.toml.txt",
        folder / f"test_{name.replace('-', '_')}.py": "test.py.txt",
    }
    for path in files:
        if path.exists():
            raise InvalidRequestError(f"{path} is there already", hint="take another name, or put it away")
    folder.mkdir(parents=True, exist_ok=True)
    for path, skeleton in files.items():
        text = (resources.files("syncd.suppliers.conformance") / "skeleton" / skeleton).read_text(encoding="utf-8")
        for word, value in words.items():
            text = re.sub(rf"\b{word}(?=\b|Settings)", value, text)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        output.line(str(path))
    output.note(f"    -> syncd adapter test {folder / name}{suffix}")


@commands.command("list")
def list_(config: ConfigFile = None, json_: AsJson = False) -> None:
    """Every adapter that there is: bundled, dropped in, installed. A broken one is a warning."""
    from syncd.suppliers import registry

    rows: list[dict[str, Any]] = []
    for one in registry.catalogue(_folders(config)):
        row: dict[str, Any] = {
            "name": one.name,
            "title": one.title,
            "kind": "feed" if one.capabilities >= _FEED else "orders",
            "source": one.source,
            "tier": "-",
            "can": len(one.capabilities),
            "unverified": len(one.unverified),
        }
        if one.problem:
            output.note(f"warning: {one.where}: {one.problem}")
            row |= {"kind": "broken", "can": None, "unverified": None}
        else:
            row["tier"] = _tier(_place(one.name, config))
        rows.append(row | ({"capabilities": sorted(one.capabilities), "problem": one.problem} if json_ else {}))
    if json_:
        output.as_json(rows)
    else:
        output.table(rows, empty="there are none")


@commands.command()
def show(name: Name, config: ConfigFile = None, json_: AsJson = False) -> None:
    """What one adapter asks for, can do and promises, and what nobody has confirmed yet."""
    from syncd.adapter import capabilities
    from syncd.suppliers import registry
    from syncd.suppliers.conformance import page

    place = _place(name, config)
    kind = registry.load(place)
    facts: dict[str, Any] = {
        "name": name,
        "title": kind.title,
        "where": str(place) if isinstance(place, Path) else place.value,
        "tier": _tier(place),
        "can": [verb for verb in page.VERBS if verb in capabilities(kind)],
        "promises": list(page.promises_of(kind.promises)),
        "unverified": list(kind.unverified),
        "settings": list(page.settings_of(kind.Settings)),
    }
    if json_:
        output.as_json(facts)
        return
    sentences = {label: facts.pop(label) for label in ("promises", "unverified")}
    output.facts(facts)
    for label, texts in sentences.items():
        output.line(f"{label}:" if texts else f"{label}: nothing")
        for text in texts:
            output.line(f"  {text}")


@commands.command()
def docs(
    name: Annotated[
        str | None, typer.Argument(help="One adapter; otherwise all bundled ones.", show_default=False)
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="The folder to write to.", metavar="FOLDER", show_default=False)
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Write an adapter's page: settings, verbs, promises, refusals, what is unverified, and what the kit found."""
    from syncd.suppliers import registry
    from syncd.suppliers.conformance import page
    from syncd.suppliers.conformance.examples import path_of
    from syncd.suppliers.conformance.rig import Kit

    pages = registry.bundled().parent / "docs"
    if name is None and to is None and not pages.is_dir():
        raise InvalidRequestError(
            "there is no checkout to write the pages into", hint="name one, or a folder with --to"
        )
    names = [name] if name else [one.name for one in registry.catalogue([]) if one.source == "bundled"]
    for one in names:
        place = _place(one, config)
        if name is None and isinstance(place, Path) and not path_of(place).is_file():
            output.note(f"warning: {one} has no examples, so it gets no page")
            continue
        kit = Kit(place)
        if to is None and name:
            output.line(page.page(kit, _results(kit)).rstrip("\n"))
            continue
        path = (to or pages / "adapters") / f"{kit.name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # a check asks whether it is there
        path.write_text(page.page(kit, _results(kit)), encoding="utf-8")
        output.line(str(path))


@commands.command("test")
def try_(
    name: Name,
    tier: Annotated[str, typer.Option(help="Up to which tier: bronze, silver or gold.")] = "silver",
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what each check is for.")] = False,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Try an adapter on its examples, without any network. Exit code 1 if a check of the tier fails."""
    from syncd import logs
    from syncd.suppliers.conformance import TIERS, examined, tier_of

    logs.configure("error")  # an adapter's fault is shown as its frames, never with what they held
    wanted: list[Tier] = [one for one in TIERS if one == tier]
    if not wanted:
        raise InvalidRequestError(f"there is no tier {tier}", hint="bronze, silver or gold")
    results = list(examined(_place(name, config), up_to=wanted[0]))
    reached = tier_of(results)
    if json_:
        output.as_json({"adapter": name, "tier": reached, "checks": [_told(one) for one in results]})
    else:
        _shown(results, verbose=verbose)
        counts = {state: sum(one.state == state for one in results) for state in _MARKS}
        told = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
        output.line(f"{name}: {reached or 'below bronze'} ({told})")
    if any(one.state in {"failed", "blocked"} for one in results):
        raise typer.Exit(1)


def _told(one: Result) -> dict[str, Any]:
    return {
        "check": one.check.name,
        "tier": one.check.tier,
        "state": one.state,
        "why": one.check.why,
        "findings": [{"seen": seen, "do": todo} for seen, todo in one.findings],
        "reason": one.reason,
    }


def _shown(results: Iterable[Result], *, verbose: bool) -> None:
    rows = []
    for one in results:
        row = {"tier": one.check.tier, "check": one.check.name, "": _MARKS[one.state]}
        note = one.reason if one.state != "passed" else ""
        rows.append(row | {"note": one.check.why if verbose and not note else note})
    output.table(rows)
    for one in results:
        if one.state == "failed":
            output.line()
            output.line(f"{one.check.name} ({one.check.tier}): {one.check.why}")
        for seen, todo in one.findings:
            output.line(f"  {seen}")
            output.line(f"    -> {todo}")
    output.line()
    for name, number in Counter(one.by for one in results if one.state == "blocked").items():
        output.line(f"{number} blocked by: {name}")


def _place(name: str, config: Path | None) -> Path | EntryPoint:
    """An adapter's file or entry point, by its file or its name."""
    from syncd.suppliers import registry

    path = Path(name)
    if path.suffix in {".py", ".toml"}:
        if not path.is_file():
            raise SyncdError(f"there is no file {path}", hint="syncd adapter list names the adapters that there are")
        return path
    folders = _folders(config)
    try:
        return registry.find(name, folders, override=True)  # of two of that name the one that a supplier may choose
    except SyncdError as error:
        beside = [file for suffix in (".py", ".toml") if (file := Path(f"{name}{suffix}")).is_file()]
        error.hint = f"did you mean ./{beside[0]}?" if beside else error.hint
        raise


def _folders(config: Path | None) -> list[Path]:
    """Where the configuration has drop-in adapters; where there is none, the bundled ones are all that there is."""
    try:
        return list(configuration.settings(config).daemon.adapters)
    except ConfigError:
        if config is not None:
            raise
        return []


def _results(kit: Kit) -> list[Result]:
    from syncd.suppliers.conformance import CHECKS, tried

    return [tried(check, kit) for check in CHECKS.values()]


def _tier(place: Path | EntryPoint) -> str:
    """What the kit finds, where there are examples."""
    from syncd.suppliers.conformance import examined, tier_of
    from syncd.suppliers.conformance.examples import path_of

    if isinstance(place, Path) and not path_of(place).is_file():
        return "no examples"
    return tier_of(list(examined(place))) or "below bronze"
