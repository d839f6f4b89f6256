"""How a payload is to be read, as a value: decided by the survey, stored by the daemon, followed by the reader."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal

from syncd.inventory.formats.split import (
    NAMES,
    SEPARATORS,
)
from syncd.inventory.formats.template import is_template, problem_of

SPLITS: Final = ("auto", "line", "pair", "labelled", "csv", "json")
"""Names that ``decide`` takes; ``pair:SEP`` names the separator too (``pair:----``, ``pair:tab``, ``pair:spaces``), and
a text with ``{fields}`` is a template for each line."""

MARK: Final = 0xFFFF
"""How much of a check sum is stored: enough to know a number again, too little to tell it."""

RECORD: Final = "║"
"""What stands behind a key in a shop's record ``secret║draft║premium║cost`` is for the shop."""

Layout = Literal["", "line", "block", "run"]


@dataclass(frozen=True)
class Reading:
    """How a payload is to be read. ``columns`` are the normalised header names of a pair or CSV, or the usual roles
    of a labelled card; ``required`` the roles that most cards have; ``anchor`` the role that begins a labelled card.

    ``media`` is ``json`` for a document and ``jsonl`` for a document on each line: the rest then tells how to read a
    text in it. ``tail`` is the sign behind which a line's text is not the key's; ``numbered`` the mark behind the
    numbers (``1.``, ``2.``) that count the lines.

    ``whole`` says that a line is one key whatever is in it, as the product's ``split`` has it; ``sizes`` are the
    lengths of a line's parts that all but a few lines have (negative if they are not all digits; 0 for no such length);
    ``width`` is how many parts of a pair most lines have, 0 if that was not counted. ``twice`` are sums (`MARK`) of
    numbers that come with several pins; ``expires`` is the expiry that a line of prose gives for all cards, "?" if it
    is not certain. ``stray`` are what is not certain to be a key
    where links and codes stand on lines of their own: link, code or both.

    Not empty ``candidates`` mean that the evidence does not decide: every card is quarantined as ambiguous.
    """

    encoding: str = "utf-8"
    splitter: str = "line"
    separator: str = ""
    columns: tuple[str, ...] = ()
    header: bool = False
    required: tuple[str, ...] = ()
    anchor: str = ""
    layout: Layout = ""
    constant: bool = False
    media: str = "text"
    problem: str = ""
    candidates: tuple[str, ...] = ()
    tail: str = ""
    numbered: str = ""
    whole: bool = False
    sizes: tuple[int, ...] = ()
    twice: tuple[int, ...] = ()
    expires: str = ""
    width: int = 0
    stray: tuple[str, ...] = ()

    def dump(self) -> str:
        """As JSON, for the database. ``load`` reads it back."""
        return json.dumps({"version": 1, **asdict(self)}, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def load(cls, text: str) -> Reading:
        """The Reading that ``dump`` wrote. Raises ValueError on anything else."""
        data: Any = json.loads(text)
        if not isinstance(data, dict) or data.pop("version", None) != 1:
            msg = "not a reading of version 1"
            raise ValueError(msg)
        known = {field.name for field in fields(cls)}
        if set(data) - known:
            msg = "a reading with unknown parts"
            raise ValueError(msg)
        parts: dict[str, Any] = {name: tuple(part) if isinstance(part, list) else part for name, part in data.items()}
        return cls(**parts)


def is_split(name: str) -> bool:
    """Whether ``decide`` takes this name; for checking a configuration."""
    if is_template(name):
        return not problem_of(name)
    return name in SPLITS or (name.startswith("pair:") and separator_of(name) in SEPARATORS)


def separator_of(name: str) -> str:
    """The separator in the name of a separated pair."""
    wanted = name.removeprefix("pair:")
    return next((separator for separator, called in NAMES.items() if called == wanted), wanted)


def pair_name(separator: str) -> str:
    """The name of a separated pair, as ``decide`` takes it."""
    return f"pair:{NAMES.get(separator, separator)}"
