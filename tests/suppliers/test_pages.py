"""Listings in pages end where they end, and never go round in circles."""

from __future__ import annotations

import json

import pytest

from syncd.adapter import BadResponse, by_cursor, by_number, by_offset, pages
from syncd.suppliers.client import Answer


def answer(tree):
    return Answer(200, {}, json.dumps(tree).encode(), "GET /x")


async def read(parts):
    return [list(part.items) async for part in parts]


@pytest.mark.parametrize("total", ["", "d.t"])
async def test_by_number_reads_to_the_end(total):
    asked = []

    async def ask(page):
        asked.append(page)
        return answer({"d": {"l": list(range((page - 1) * 2, min(page * 2, 5))), "t": "5"}})

    assert await read(by_number(ask, "d.l", total=total)) == [[0, 1], [2, 3], [4]]
    assert asked == ([1, 2, 3] if total else [1, 2, 3, 4])


async def test_by_offset_asks_with_what_it_has_seen():
    asked = []

    async def ask(offset):
        asked.append(offset)
        return answer(list(range(offset, min(offset + 2, 5))))

    assert await read(by_offset(ask, "")) == [[0, 1], [2, 3], [4]]
    assert asked == [0, 2, 4, 5]


@pytest.mark.parametrize("end", [None, "", False])
async def test_by_cursor_follows_what_it_is_told(end):
    following = {"": "a", "a": 7, "7": end}

    async def ask(cursor):
        return answer({"l": [cursor], "next": following[cursor]})

    assert await read(by_cursor(ask, "l", following="next")) == [[""], ["a"], ["7"]]


async def test_by_cursor_starts_where_it_is_told():
    async def ask(link):
        return answer({"l": [link], "links": {}})

    assert await read(by_cursor(ask, "l", following="links.next", start="/products")) == [["/products"]]


async def test_an_empty_listing_is_one_empty_page():
    async def ask(_place):
        return answer({"l": [], "t": 0})

    for parts in (
        by_number(ask, "l"),
        by_number(ask, "l", total="t"),
        by_offset(ask, "l"),
        by_cursor(ask, "l", following="n"),
    ):
        assert await read(parts) == [[]]


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (lambda _place: {"l": [1], "t": 99}, "a page that came before"),
        (lambda place: {"l": [place] if place < 3 else [], "t": 99}, "ends before its own total"),
        (lambda place: {"l": [place], "t": "many"}, "t is not a number"),
        (lambda place: {"l": [place], "t": -1}, "t is not a number"),
        (lambda place: {"l": [place]}, "t is not a number"),
        (lambda _place: {"l": {}, "t": 1}, "there is no list at l"),
        (lambda _place: [], "t is not a number"),
    ],
)
async def test_P1_half_a_listing_is_none(tree, said):
    async def ask(place):
        return answer(tree(place))

    with pytest.raises(BadResponse, match=said):
        await read(by_number(ask, "l", total="t"))


def asked(*trees):
    turn = iter(trees)

    async def ask(_place):
        return answer(next(turn))

    return ask


async def test_places_may_be_functions_and_a_listing_may_say_which_page_is_its_last():
    one, two = {"l": [1, 2], "end": False, "t": 3}, {"l": [3], "end": True, "t": 3}
    assert await read(by_number(asked(one, two), lambda tree: tree["l"], last="end", total="t")) == [[1, 2], [3]]
    assert await read(by_offset(asked(one, two), "l", last=lambda tree: tree["end"])) == [[1, 2], [3]]
    for trees in ([one | {"end": True}], [one, {"l": [], "end": False, "t": 3}], [one | {"end": None}]):
        with pytest.raises(BadResponse):
            await read(by_number(asked(*trees), "l", last="end", total="t"))


async def test_an_element_that_came_before_is_passed_over_unless_it_was_another():
    a, b, c = ({"id": number, "n": 1} for number in "abc")
    first, end = {"l": [a, b]}, {"l": []}
    assert await read(by_number(asked(first, first, {"l": [b, c]}, end), "l", unique="id")) == [[a, b], [], [c]]
    for trees in (
        [{"l": [a]}, {"l": [b]}, {"l": [a]}],  # only the second page may be the first one again
        [{"l": [a]}, {"l": [a | {"n": 2}]}],
        [{"l": [{"n": 1}]}],
        [{"l": [{"id": [1]}]}],
        [first, first, first],
    ):
        with pytest.raises(BadResponse):
            await read(by_number(asked(*trees), "l", unique="id"))


async def test_P1_a_page_that_repeats_ends_it_whatever_the_way():
    async def ask(_place):
        return answer({"l": ["x"], "next": "a"})

    for parts in (by_number(ask, "l"), by_offset(ask, "l"), by_cursor(ask, "l", following="next")):
        with pytest.raises(BadResponse, match="came before"):
            await read(parts)


async def test_P1_cursors_in_a_circle_end():
    numbers = iter(range(99))

    async def ask(cursor):
        return answer({"l": [next(numbers)], "next": {"": "a", "a": "b", "b": "a"}[cursor]})

    with pytest.raises(BadResponse, match="would never end"):
        await read(by_cursor(ask, "l", following="next"))


async def test_P1_a_listing_without_end_ends(monkeypatch):
    monkeypatch.setattr(pages, "_MOST_PAGES", 20)
    numbers = iter(range(9999))

    async def ask(_place):
        return answer({"l": [next(numbers)], "next": f"c{next(numbers)}"})

    for parts in (by_number(ask, "l"), by_cursor(ask, "l", following="next")):
        with pytest.raises(BadResponse, match="more than 20 pages"):
            await read(parts)


async def test_negative_control_without_its_memory_a_circle_is_not_seen(monkeypatch):
    monkeypatch.setattr(pages, "_MOST_PAGES", 20)
    monkeypatch.setattr(pages.hashlib, "blake2b", lambda *args, **more: _Digest())

    async def ask(_place):
        return answer({"l": ["x"]})

    with pytest.raises(BadResponse, match="more than 20 pages"):
        await read(by_number(ask, "l"))


class _Digest:
    number = 0

    def digest(self):
        _Digest.number += 1
        return str(_Digest.number).encode()


async def test_what_is_shown_of_a_page_is_not_its_elements():
    async def ask(_place):
        return answer({"l": ["CANARY"]})

    async for part in by_cursor(ask, "l", following="n"):
        assert "CANARY" not in repr(part)
