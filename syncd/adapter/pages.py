"""Listings in pages: each function asks for one page after the other and ends where the listing ends.

A page that came before, a listing that ends before its own total, and one that does not end, raise BadResponse: half a
listing is none.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from syncd.adapter.errors import BadResponse
from syncd.adapter.values import integer

_MOST_PAGES: Final = 20_000

Place = str | Callable[[Any], Any]
"""Where something is in an answer: names with dots between them ("data.list"), "" for the answer itself; or a function
that finds it, and gives None where nothing is.
"""


class Json(Protocol):
    """What was answered, such as an `Answer`."""

    def json(self) -> Any:
        """It as JSON. Raises BadResponse."""


@dataclass(frozen=True, slots=True)
class Part:
    """The elements of one page, and how many the whole listing has where the answer says it."""

    items: Sequence[Any] = field(repr=False)
    total: int | None = None


async def by_number(
    ask: Callable[[int], Awaitable[Json]],
    items: Place,
    *,
    total: Place = "",
    last: Place = "",
    unique: Place = "",
    first: int = 1,
) -> AsyncIterator[Part]:
    """Pages by their number, from ``first`` on: to the ``total`` of elements or the page that is true at ``last``,
    where the answer says them (to both, if it says both), else to the first empty page.

    ``unique`` tells one element from another: one that came before just as it is now is passed over, and the second
    page may be the first one again, which is what a supplier answers to page 0 that counts from 1.
    """
    async for part in _by_count(lambda page, _seen: ask(first + page), items, total, last, unique):
        yield part


async def by_offset(
    ask: Callable[[int], Awaitable[Json]], items: Place, *, total: Place = "", last: Place = "", unique: Place = ""
) -> AsyncIterator[Part]:
    """As `by_number`, where a page is asked for by the number of elements before it."""
    async for part in _by_count(lambda _page, seen: ask(seen), items, total, last, unique):
        yield part


async def by_cursor(
    ask: Callable[[str], Awaitable[Json]], items: Place, *, following: Place, start: str = ""
) -> AsyncIterator[Part]:
    """Pages of which each tells how to ask for the next one, at ``following``: a token, or a link (which the client
    follows only within the supplier's own host). The first one is asked for with ``start``; none told ends it.
    """
    seen, cursors = _Seen(), {start}
    cursor: Any = start
    while True:
        answer = (await ask(cursor)).json()
        yield Part(seen.new(_list(answer, items)))
        cursor = _at(answer, following)
        if cursor in (None, "", False):
            return
        if not isinstance(cursor, str | int) or str(cursor) in cursors:
            raise BadResponse("a listing whose next page is one that came before: it would never end")
        cursor = str(cursor)
        cursors.add(cursor)


async def _by_count(
    ask: Callable[[int, int], Awaitable[Json]], items: Place, total: Place, last: Place, unique: Place
) -> AsyncIterator[Part]:
    seen = _Seen(unique)
    for page in range(_MOST_PAGES):
        answer = (await ask(page, seen.listed)).json()
        whole = integer(_at(answer, total)) if total else None
        if total and (whole is None or whole < 0):
            raise BadResponse(f"a listing whose {total if isinstance(total, str) else 'total'} is not a number")
        ended = _at(answer, last) if last else None
        if last and not isinstance(ended, bool):
            raise BadResponse("a listing that does not say whether this is its last page")
        listed = _list(answer, items)
        part = Part(seen.new(listed), whole)
        if listed or not page:
            yield part
        short = ended is False or (whole is not None and seen.count < whole)
        if short and (ended or not listed):
            raise BadResponse("a listing that ends before its own total, or its last page")
        if not short and (total or last or not listed):
            return
    raise BadResponse(f"a listing of more than {_MOST_PAGES} pages")


class _Seen:
    """The pages so far: how many elements, and digests, so that a repeated page or element is noticed."""

    def __init__(self, unique: Place = "") -> None:
        self.listed = 0
        self.count = 0
        """Without those that came before."""
        self._unique = unique
        self._pages = 0
        self._digests: set[bytes] = set()
        self._elements: dict[str, bytes] = {}

    def new(self, items: Sequence[Any]) -> Sequence[Any]:
        """The elements of a page that come for the first time."""
        digest = _digest(items)
        if items and digest in self._digests and not (self._unique and self._pages == 1):
            raise BadResponse("a page that came before: the supplier ignores which page is asked for")
        if self._pages >= _MOST_PAGES:
            raise BadResponse(f"a listing of more than {_MOST_PAGES} pages")
        self._digests.add(digest)
        self._pages += 1
        self.listed += len(items)
        items = [item for item in items if self._first(item)] if self._unique else items
        self.count += len(items)
        return items

    def _first(self, item: Any) -> bool:
        name = _at(item, self._unique)
        if name is None or isinstance(name, list | dict):
            raise BadResponse("a listing in which nothing tells one element from another")
        digest, count = _digest(item), len(self._elements)
        if self._elements.setdefault(str(name), digest) != digest:
            raise BadResponse("an element that came before, and was another")
        return len(self._elements) > count


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(repr(value).encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _at(answer: Any, place: Place) -> Any:
    if callable(place):
        return place(answer)
    for name in place.split(".") if place else ():
        answer = answer.get(name) if isinstance(answer, dict) else None
    return answer


def _list(answer: Any, place: Place) -> Sequence[Any]:
    found = _at(answer, place)
    if not isinstance(found, list):
        raise BadResponse(f"there is no list at {place}" if isinstance(place, str) and place else "there is no list")
    return found
