"""`syncd formats`: what keys look like, and what a file of them would be read as. Works without the daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from zoneinfo import ZoneInfo

import typer

from syncd.cli import configuration, output
from syncd.cli.options import AsJson, ConfigFile, group
from syncd.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from syncd.config import Product, Settings
    from syncd.inventory.formats import Card, Format, Reading

commands = group("Formats of keys: what there is, what a file would be read as, whether the examples hold.")

_BLOCK: Final = 256 * 1024


@commands.command("list")
def list_(config: ConfigFile = None, json_: AsJson = False) -> None:
    """The formats that the configuration knows."""
    from syncd.inventory.formats.explain import shape

    found = [
        {
            "name": fmt.name,
            "title": fmt.title,
            "shape": shape(fmt) if fmt.kind == "fields" else "",
            "template": fmt.split,
        }
        for fmt in _formats(configuration.settings(config)).values()
    ]
    if json_:
        output.as_json(found)
    else:
        output.table(found)


@commands.command("test")
def try_examples(config: ConfigFile = None, json_: AsJson = False) -> None:
    """Read every example of every format. Exit code 78 with each that does not come out as it should."""
    tried = [fmt for fmt in _formats(configuration.settings(config)).values() if fmt.kind == "fields"]
    if json_:
        output.as_json([{"name": fmt.name, "accepted": len(fmt.accept), "rejected": len(fmt.reject)} for fmt in tried])
        return
    total = sum(len(fmt.accept) + len(fmt.reject) for fmt in tried)
    output.line(f"{len(tried)} formats, {total} examples: all as they should be")


@commands.command()
def explain(
    file: Annotated[Path, typer.Argument(help="Text, JSON, CSV or Excel, as the supplier sent it.")],
    product: Annotated[str | None, typer.Option(metavar="SKU", help="Read it for this product.")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="Read it with this format.")] = None,
    split: Annotated[str | None, typer.Option(help="Cut it with this splitter, or this template.")] = None,
    charset: Annotated[str | None, typer.Option(help="Its charset, if the supplier declares one.")] = None,
    timezone: Annotated[
        str | None,
        typer.Option(metavar="ZONE", help="Zone of its dates without one; default: that of the product's suppliers."),
    ] = None,
    config: ConfigFile = None,
    json_: AsJson = False,
) -> None:
    """What a file would be read as, line by line, and why; keys masked. Nothing is taken in."""
    from syncd.inventory.formats import CHARSETS, is_split
    from syncd.inventory.formats.explain import recognised, rows

    settings = configuration.settings(config)
    known = settings.products.get(product) if product else None
    if product and known is None:
        raise NotFoundError(f"no product has the sku {product!r}", hint="see [products] in the configuration")
    formats = _formats(settings)
    fmt = formats.get(format_ or (known.format if known else "auto"))
    if fmt is None:
        raise InvalidRequestError("there is no such format", hint=f"known: {', '.join(sorted(formats))}")
    cut = split or fmt.splitter(known.split if known else None)
    if not is_split(cut):
        raise InvalidRequestError(
            "there is no such splitter", hint="auto, line, pair, labelled, csv, json, pair:SEP, or a template"
        )
    if charset is not None and charset.lower() not in CHARSETS:
        raise InvalidRequestError("this charset is not known", hint=f"known: {', '.join(CHARSETS)}")
    reading, evidence, cards = _read(file, fmt, cut, charset, _zone(settings, known, timezone))
    said = {
        "file": file.name,
        "format": fmt.name,
        "encoding": reading.encoding,
        "read_as": recognised(reading, evidence),
    }
    found = rows(cards, fmt)
    if json_:
        output.as_json({**said, "cards": [row.dump() for row in found]})
        return
    output.facts(said)
    output.line()
    counts: dict[str, int] = {}
    for row in found:
        counts[row.outcome] = counts.get(row.outcome, 0) + 1
        expires = f"  expires {row.expires}" if row.expires else ""
        output.line(f"line {row.line:<6} {row.outcome:<17} {row.why}{expires}")
    output.line()
    output.line("in all: " + (", ".join(f"{count} {name}" for name, count in counts.items()) or "no card"))


def _zone(settings: Settings, product: Product | None, name: str | None) -> ZoneInfo:
    """The zone that is asked for, or that of the suppliers whose offers serve the product, if they have one."""
    from syncd.config import DEFAULT_TIMEZONE

    zones = {settings.suppliers[offer.supplier].timezone for offer in product.offers} if product else set()
    try:
        return ZoneInfo(name or (zones.pop() if len(zones) == 1 else DEFAULT_TIMEZONE))
    except (KeyError, ValueError, OSError) as error:
        raise InvalidRequestError("there is no such time zone", hint="name it as Asia/Shanghai is named") from error


def _formats(settings: Settings) -> dict[str, Format]:
    from syncd.inventory.formats import load_formats

    return load_formats([Path(path) for path in settings.daemon.formats])


def _read(
    file: Path, fmt: Format, split: str, charset: str | None, zone: ZoneInfo
) -> tuple[Reading, dict[str, int], Iterator[Card]]:
    """The file surveyed, what was counted, and its cards; it is streamed, never held."""
    from syncd.inventory.formats import Survey, read, read_rows, survey_rows

    ending = file.suffix.lower()
    if ending == ".xlsx":
        reading = survey_rows(_sheet(file), split)
        return reading, {}, read_rows(_sheet(file), reading, fmt, timezone=zone)
    survey = Survey("csv" if ending == ".csv" else "text", charset)
    for block in _blocks(file):
        survey.feed(block)
    reading = survey.decide(split)
    return reading, survey.evidence(), read(_blocks(file), reading, fmt, timezone=zone)


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            yield block


def _sheet(file: Path) -> Iterator[list[str]]:
    from syncd.inventory.intake import sheet_rows

    with file.open("rb") as stream, sheet_rows(stream, file.name) as numbered:
        for _, row in numbered:
            yield row
