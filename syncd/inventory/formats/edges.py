"""What stands at the edges of a value and is none of it: quotes, brackets, marks, a remark. Used by slices."""

from __future__ import annotations

import re
from typing import Final

from syncd.inventory.formats.evidence import cut_trailing
from syncd.inventory.formats.text import fold, strip

_PAIRS: Final = dict(zip("\"'“\u2018「『[【(（《`", "\"'”\u2019」』]】)）》`", strict=True))
CLAUSE: Final = re.compile(
    r"\s{0,3}[，。；！,;!（(~\uff5e]\s{0,3}[^\x00-\x7f]{2,40}[)!.]?$|(?<=[A-Za-z0-9])\s{1,3}[\u3400-\u9fff][^\d:：@/]{1,60}$"
)
"""A remark in words behind a labelled value."""
MARKS: Final = re.compile(r"[\s✓✔√☑✅★☆♥❤●■◆▲▶►→👉🎁🔑💳🎮📌]+$|^[\s✓✔√☑✅★☆♥❤●■◆▲▶►→👉🎁🔑💳🎮📌]+")
"""Ticks and stars around a line."""


def unwrap(text: str) -> str:
    """The text without the quotes or brackets that stand around all of it, and nowhere inside."""
    bare = cut_trailing(text) if text[-1:] in ",;" else text
    close = _PAIRS.get(bare[:1], "")
    inner = bare[1:-1]
    whole = close and len(bare) > 2 and bare[-1] == close and bare[0] not in inner and close not in inner  # noqa: PLR2004
    return strip(inner) if whole and strip(inner) else text


def alike(first: str, second: str) -> bool:
    """Whether two parts are grouped in the same way, as two keys of one product are."""
    groups = [[len(group) for group in fold(part).split("-")] for part in (first, second)]
    return groups[0] == groups[1] and len(groups[0]) > 2  # noqa: PLR2004
