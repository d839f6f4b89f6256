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
    "id", "product", "supplier", "label", "position", "reason", "detail", "first_source", "state", "created_at",
)  # fmt: skip
_PAGE: Final = 500

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID…", help="As the list shows them.", show_default=False)]
Id = Annotated[str, typer.Argument(metavar="ID", help="As the list shows it.")]


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
    product: Annotated[str | None, typer.Option(metavar="SKU", help="Only of this product.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only for this reason.")] = None,
    state: Annotated[str, typer.Option(help="held, released or dropped.")] = "held",
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Go on after this one.")] = None,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """What waits for a decision, and why; never the key itself."""
    answer = Operator.of(config).get(
        "/v1/quarantine", product=product, reason=reason, state=state, limit=limit, after=after
    )
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
    entries: Ids = None,
    format_: Annotated[str | None, typer.Option("--format", help="Read it with this format instead.")] = None,
    split: Annotated[str | None, typer.Option(help="Cut it with this splitter instead.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every held entry of --reason and --product.")] = False,
    reason: Annotated[str | None, typer.Option(help="With --all: of this reason.")] = None,
    product: Annotated[str | None, typer.Option(metavar="SKU", help="With --all: of this product.")] = None,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Read entries again and put them into the vault. Exit code 1 if one was refused."""
    if all_ == bool(entries):
        raise InvalidRequestError("nothing to release", hint="name entries, or: --all --reason R --product SKU")
    if all_ and not (reason and product):
        raise InvalidRequestError("--all needs --reason and --product", hint="see: syncd keys quarantine list")
    daemon = Operator.of(config)
    chosen = _every(daemon, product, reason) if all_ else list(entries or [])
    body = {name: value for name, value in (("format", format_), ("split", split)) if value}
    outcomes: list[dict[str, Any]] = []
    with output.progress("releasing", unit="entries") as tell:
        for done, entry in enumerate(chosen, start=1):
            outcomes.append(_decide(daemon, entry, "release", body))
            tell(done, len(chosen))
    _conclude(outcomes, json_, "released")


@quarantine.command()
def drop(
    entries: Ids = None,
    reason: Annotated[str, typer.Option(help="Why, for the audit.", prompt="Why")] = "",
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """Decide that entries are no keys to be sold. They stay sealed, and are never read again."""
    if not entries:
        raise InvalidRequestError("nothing to drop", hint="name entries, as `syncd keys quarantine list` shows them")
    if not reason.strip():
        raise InvalidRequestError("a reason is needed", hint="--reason 'the supplier has replaced them'")
    daemon = Operator.of(config)
    _conclude([_decide(daemon, entry, "drop", {"reason": reason}) for entry in entries], json_, "dropped")


@held.command("release")
def release_held(
    product: Annotated[str, typer.Option("--product", metavar="SKU", help="The product.")],
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """The same as `syncd products unhold SKU`."""
    products.unhold(product, config, json_)


def _every(daemon: Operator, product: str | None, reason: str | None) -> list[str]:
    found: list[str] = []
    after: str | None = None
    while True:
        page = daemon.get("/v1/quarantine", product=product, reason=reason, state="held", limit=_PAGE, after=after)
        found += [str(row["id"]) for row in operator.rows(page)]
        after = page.get("next")
        if not after:
            return found


def _decide(daemon: Operator, entry: str, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = daemon.post(f"/v1/quarantine/{operator.part(entry)}/{verb}", body)
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
