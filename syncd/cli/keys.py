"""`syncd keys`: bring keys in, open what was put away sealed, decide about those in quarantine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer

from syncd.cli import operator, output, products
from syncd.cli.operator import Operator, RefusedError
from syncd.cli.options import AsJson, ConfigFile, group
from syncd.errors import ConflictError, InvalidRequestError

commands = group("Card keys: bring them in, and decide about those set aside.")
quarantine = group("What could not be read, or was seen before: nothing is thrown away without you.")
held = group("Keys set aside after a restore.")
commands.add_typer(quarantine, name="quarantine")
commands.add_typer(held, name="held")

_LISTED: Final = (
    "id", "product", "supplier", "label", "position", "reason", "detail", "first_supplier", "first_label", "state",
    "created_at",
)  # fmt: skip
_WHERE: Final = "/v1/quarantine"

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID…", help="As the list shows them.", show_default=False)]
Id = Annotated[str, typer.Argument(metavar="ID", help="As the list shows it.")]
OfProduct = Annotated[str | None, typer.Option("--product", metavar="SKU", help="Only of this product.")]
OfSupplier = Annotated[str | None, typer.Option("--supplier", metavar="NAME", help="Only from this supplier.")]
OfReason = Annotated[str | None, typer.Option("--reason", help="Only those set aside for this reason.")]
OlderThan = Annotated[str | None, typer.Option("--older-than", metavar="TIME", help='Only older ones: "7d", "12h".')]
Format = Annotated[str | None, typer.Option("--format", help="Read it with this format instead.")]
Split = Annotated[str | None, typer.Option("--split", help="Cut it with this splitter instead.")]


@commands.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Text, CSV or Excel, as the supplier sent it.")],
    product: Annotated[str, typer.Option("--product", metavar="SKU", help="The product that the keys are for.")],
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Take a file of keys in. The same file again changes nothing; it is never kept in clear."""
    daemon = Operator.of(config)
    with file.open("rb") as reader, output.progress(file.name) as tell:
        answer = daemon.upload("/v1/keys/import", reader, tell, product=product, name=file.name)
    if json_:
        output.as_json(answer)
        return
    output.line(str(answer.get("report") or "").rstrip() or output.cell(answer))
    output.note(f"{file} itself is still there, in clear: delete it once you are content with the report.")


@commands.command()
def unseal(
    file: Annotated[Path, typer.Argument(help="A sealed file, as it lies in a feed's taken/ folder.")],
    out: Annotated[Path | None, typer.Option(help="Write to this new file (0600).", show_default=False)] = None,
    config: ConfigFile = None,
) -> None:
    """Open a file that was taken and put away sealed. This is recorded in the audit."""
    if out is not None and out.exists():
        raise ConflictError(f"{out} exists already", hint="choose a new name")
    daemon = Operator.of(config)
    with file.open("rb") as reader, output.progress(file.name) as tell:
        blocks = daemon.through("/v1/keys/unseal", reader, tell)
        first = next(blocks, b"")  # a refusal leaves no empty file behind
        with _whole(out) as writer:
            writer.write(first)
            for block in blocks:
                writer.write(block)


@contextlib.contextmanager
def _whole(out: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or a new file that is there whole or not at all."""
    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as writer:
            yield writer
    except BaseException:
        out.unlink(missing_ok=True)
        raise


@quarantine.command("list")
def list_(
    product: OfProduct = None,
    supplier: OfSupplier = None,
    reason: OfReason = None,
    older_than: OlderThan = None,
    state: Annotated[str, typer.Option(help="held, released, dropped, returning or returned.")] = "held",
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Go on after this one.")] = None,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """What waits for a decision, and why; never the key itself."""
    chosen = _filter(product, supplier, reason, older_than)
    answer = Operator.of(config).get(_WHERE, **chosen, state=state, limit=limit, after=after)
    if json_:
        output.as_json(answer)
        return
    items = operator.rows(answer)
    output.table(items, _LISTED, empty=f"nothing is {state} in quarantine")
    if answer.get("counts"):
        output.note("in all: " + output.cell(answer["counts"]))
    if answer.get("next"):
        output.note(f"there are more: --after {answer['next']}")


@quarantine.command()
def show(entry: Id, config: ConfigFile = None, json_: AsJson = False) -> None:
    """One entry in full, its text masked."""
    answer = Operator.of(config).get(f"/v1/quarantine/{operator.part(entry)}")
    if json_:
        output.as_json(answer)
    else:
        output.facts(answer)


@quarantine.command()
def reveal(entry: Id, config: ConfigFile = None, json_: AsJson = False) -> None:
    """Print the text of one entry in clear. This is recorded in the audit."""
    answer = Operator.of(config).post(f"/v1/quarantine/{operator.part(entry)}/reveal")
    if json_:
        output.as_json(answer)
    else:
        output.line(answer["text"])


@quarantine.command()
def release(
    entries: Ids = None, format_: Format = None, split: Split = None, config: ConfigFile = None, json_: AsJson = False
) -> None:
    """Read entries again and put them into the vault. Exit code 1 if one was refused."""
    if not entries:
        raise InvalidRequestError("nothing to release", hint="name entries; for many: syncd keys quarantine reread")
    daemon = Operator.of(config)
    body = {name: value for name, value in (("format", format_), ("split", split)) if value}
    _conclude([_decide(daemon, entry, "release", body) for entry in entries], json_, "released")


@quarantine.command()
def reread(
    product: Annotated[str, typer.Option("--product", metavar="SKU", help="The product.")],
    supplier: OfSupplier = None,
    reason: OfReason = None,
    older_than: OlderThan = None,
    format_: Format = None,
    split: Split = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would become of them.")] = False,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Read many entries again; those that are keys now go into the vault. Once stopped, run it again: it goes on."""
    daemon = Operator.of(config)
    body = {**_filter(product, supplier, reason, older_than), "format": format_, "split": split, "dry_run": dry_run}
    done: dict[str, Any] = {"seen": 0, "keys": 0, "duplicates": 0, "decided": 0, "unreadable": {}, "examples": []}
    after: str | None = "0"
    with output.progress("reading", unit="entries") as tell:
        while after:
            page = daemon.post(f"{_WHERE}/reread", {**body, "after": after}, wait=True)
            after = page["next"]
            for name in ("seen", "keys", "duplicates", "decided"):
                done[name] += page[name]
            for why, number in page["unreadable"].items():
                done["unreadable"][why] = done["unreadable"].get(why, 0) + number
            done["examples"] = [*done["examples"], *page["examples"]][:5]
            tell(done["seen"], 0)
    if json_:
        output.as_json({"dry_run": dry_run, **done})
        return
    output.line(f"{done['keys']} of {done['seen']} {'would become keys' if dry_run else 'are keys now'}")
    if done["duplicates"]:
        output.line(f"{done['duplicates']} were seen before: they stay, and name who sold them first")
    if done["unreadable"]:
        output.line("no keys: " + output.cell(done["unreadable"]))
    for example in done["examples"] if dry_run else ():
        output.line(f"such as  {example}")


@quarantine.command()
def drop(
    entries: Ids = None,
    why: Annotated[str, typer.Option(help="Why, for the audit.", prompt="Why")] = "",
    all_: Annotated[bool, typer.Option("--all", help="Every held entry that the other options mean.")] = False,
    product: OfProduct = None,
    supplier: OfSupplier = None,
    reason: OfReason = None,
    older_than: OlderThan = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --all: do not ask.")] = False,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Decide that entries are no keys to be sold. They stay sealed, and are never read again."""
    chosen = _filter(product, supplier, reason, older_than)
    if all_ == bool(entries) or (entries and chosen):
        raise InvalidRequestError("nothing to drop", hint="name entries, or: --all --product SKU --reason R")
    if not why.strip():
        raise InvalidRequestError("it takes a why", hint="--why 'the supplier has replaced them'")
    daemon = Operator.of(config)
    if entries:
        _conclude([_decide(daemon, entry, "drop", {"why": why}) for entry in entries], json_, "dropped")
        return
    if not chosen.keys() & {"product", "supplier", "reason"}:
        raise InvalidRequestError("drop all of what?", hint="name a --product, a --supplier or a --reason")
    counted = daemon.post(f"{_WHERE}/drop", {**chosen, "dry_run": True})
    if counted["dropped"] and not yes:
        output.note(f"Drop {counted['dropped']} entries for ever? (yes or no)")
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise typer.Exit(1)
    dropped, more = 0, bool(counted["dropped"])
    with output.progress("dropping", unit="entries") as tell:
        while more:  # no more than was counted: what comes in meanwhile waits for a decision of its own
            page = daemon.post(f"{_WHERE}/drop", {**chosen, "why": why, "upto": counted["upto"]}, wait=True)
            dropped, more = dropped + page["dropped"], page["more"]
            tell(dropped, counted["dropped"])
    if json_:
        output.as_json({"dropped": dropped})
    else:
        output.line(f"{dropped} dropped")


@quarantine.command("return")
def give_back(entries: Ids = None, config: ConfigFile = None, json_: AsJson = False) -> None:
    """Return keys to the supplier that sold them, where its adapter can. Exit code 1 if one was not taken back."""
    if not entries:
        raise InvalidRequestError("nothing to return", hint="name entries, as `syncd keys quarantine list` shows them")
    answer = Operator.of(config).post(f"{_WHERE}/return", {"entries": entries}, wait=True)
    found = operator.rows(answer, "entries")
    _told(found, json_, ("id", "state", "why"))
    if any(row["state"] == "returning" for row in found):
        output.note("ask the supplier what became of those, then: syncd keys quarantine settle ID --taken (or --kept)")
    if any(row["state"] != "returned" for row in found):
        raise typer.Exit(1)


@quarantine.command()
def settle(
    entry: Id,
    taken: Annotated[bool, typer.Option("--taken/--kept", help="Whether the supplier has taken it back.")],
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Say what became of a return that the supplier never answered."""
    answer = Operator.of(config).post(f"{_WHERE}/{operator.part(entry)}/settle", {"taken": taken})
    _told([{"id": entry, **answer}], json_, ("id", "state"))


@quarantine.command()
def complain(
    entries: Ids = None,
    text: Annotated[str, typer.Option(help="What to tell the supplier. No key: it knows its order.", prompt=True)] = "",
    again: Annotated[bool, typer.Option("--again", help="Even if it was told before.")] = False,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Complain to the supplier that sold entries, where its adapter can. Exit code 1 if one was not told."""
    if not entries or not text.strip():
        raise InvalidRequestError("nothing to complain of", hint="name entries, and --text 'what is wrong'")
    body = {"entries": entries, "text": text, "again": again}
    found = operator.rows(Operator.of(config).post(f"{_WHERE}/complain", body, wait=True), "entries")
    _told(found, json_, ("id", "complaint", "why"))
    if any(row["why"] for row in found):
        raise typer.Exit(1)


@held.command("release")
def release_held(
    product: Annotated[str, typer.Option("--product", metavar="SKU", help="The product.")],
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """The same as `syncd products unhold SKU`."""
    products.unhold(product, config, json_)


def _filter(product: str | None, supplier: str | None, reason: str | None, older: str | None) -> dict[str, Any]:
    """The options that choose entries, as the daemon takes them; those that were not given are left out."""
    given: dict[str, Any] = {"product": product, "supplier": supplier, "reason": reason}
    if older is not None:
        from pydantic import TypeAdapter, ValidationError

        from syncd.config import Duration

        try:
            given["older_than_s"] = int(TypeAdapter(Duration).validate_python(older))
        except ValidationError:
            raise InvalidRequestError("--older-than takes a time", hint='such as "7d" or "12h"') from None
    return {name: value for name, value in given.items() if value is not None}


def _told(rows: list[dict[str, Any]], as_json: bool, columns: tuple[str, ...]) -> None:
    if as_json:
        output.as_json(rows)
    else:
        output.table(rows, columns)


def _decide(daemon: Operator, entry: str, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = daemon.post(f"{_WHERE}/{operator.part(entry)}/{verb}", body)
    except RefusedError as refused:
        return {"id": entry, "done": False, "why": refused.message, "hint": refused.hint}
    return {"id": entry, "done": True, **(answer or {})}


def _conclude(outcomes: list[dict[str, Any]], as_json: bool, word: str) -> None:
    done = sum(outcome["done"] for outcome in outcomes)
    if as_json:
        output.as_json(outcomes)
    else:
        for outcome in outcomes:
            if not outcome["done"]:
                output.note(f"{outcome['id']}: {outcome['why']}" + (f" ({outcome['hint']})" if outcome["hint"] else ""))
        output.line(f"{done} of {len(outcomes)} {word}")
    if done < len(outcomes):
        raise typer.Exit(1)
