"""What to do next with an open purchase, and what came for an order, as functions of data."""

from __future__ import annotations

from collections.abc import Mapping
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.adapter import Promises, RawKey
from syncd.config import Purchasing
from syncd.inventory.formats import AUTO, OPAQUE
from syncd.inventory.receipt import by_hand, judge
from syncd.inventory.reconcile import (
    LOOK_S,
    PATIENCE_S,
    TWICE,
    Able,
    Standing,
    believed,
    first_look,
    next_step,
    wait,
)
from syncd.model import NEVER, PurchaseState

ZONE = ZoneInfo("Asia/Shanghai")
LIMITS = Purchasing.model_validate({})
VERBS = ("get_order", "find_order", "fetch_keys", "place_order")
seconds = st.floats(0, 10**7)
standings = st.builds(
    Standing,
    state=st.sampled_from([PurchaseState.ACCEPTED, PurchaseState.UNKNOWN]),
    age=seconds,
    doubted=seconds,
    watched=seconds,
    tries=st.integers(1, 5),
    denied=st.integers(0, 5),
    order_id=st.none() | st.just("o-1"),
)
suppliers = st.builds(
    Able,
    verbs=st.frozensets(st.sampled_from(VERBS)),
    promises=st.builds(Promises, same_reference_same_order=st.booleans(), repeat_after=st.none() | st.floats(1, 300)),
)


@given(standings, suppliers)
def test_M1_nothing_is_sent_again_but_where_that_is_promised_and_late_enough(one: Standing, able: Able) -> None:
    step = next_step(one, able, LIMITS)
    if step.do == "repeat":
        promises = able.promises
        assert one.state == PurchaseState.UNKNOWN
        assert "find_order" not in able.verbs
        assert promises.same_reference_same_order or (promises.repeat_after is not None and one.tries < TWICE)
        assert one.watched >= max(LIMITS.settle, promises.repeat_after or 0)
        assert one.doubted <= PATIENCE_S
    if step.do == "poll":
        assert one.order_id is not None
    if step.do in {"poll", "find"}:
        assert {"poll": "get_order", "find": "find_order"}[step.do] in able.verbs
    if step.do == "person":
        assert step.why


@given(standings, suppliers)
def test_every_open_purchase_is_asked_after_repeated_or_somebodys_in_the_end(one: Standing, able: Able) -> None:
    """Nothing waits for ever: what waits, waits for a time that comes."""
    step = next_step(one, able, LIMITS)
    assert step.do != "wait" or 0 < step.seconds <= max(LIMITS.settle, able.promises.repeat_after or 0)
    if one.state == PurchaseState.ACCEPTED and one.age > LIMITS.deadline and one.watched >= LIMITS.settle:
        assert step.overdue or step.do == "person"
    if one.state == PurchaseState.UNKNOWN and one.doubted > LOOK_S:
        assert step.do == "person"


@pytest.mark.parametrize(("watched", "counts"), [(0, False), (59, False), (60, True)])
def test_that_there_is_no_such_order_counts_only_after_a_while(watched: float, counts: bool) -> None:
    one = Standing(PurchaseState.UNKNOWN, 10**6, 10**6, watched, 1, 0, None)
    assert believed(one, LIMITS) is counts


def test_the_first_look_is_soon_only_where_it_can_do_no_harm() -> None:
    assert first_look(Able(frozenset({"find_order"}), Promises()), LIMITS) == 5
    assert first_look(Able(frozenset(), Promises(same_reference_same_order=True)), LIMITS) == 60
    assert first_look(Able(frozenset(), Promises(repeat_after=90)), LIMITS) == 90


@given(seconds, st.floats(0.5, 60), st.floats(0.5, 3600))
def test_looks_grow_rarer_and_never_too_rare(age: float, first: float, longest: float) -> None:
    found = wait(age, first, longest)
    assert first <= found <= max(first, longest)
    assert wait(age + 1, first, longest) >= found


# --- what came --------------------------------------------------------------------------------------------------------


def keys(*texts: str, **more: str) -> list[RawKey]:
    return [RawKey.of(text, id=f"id-{number}", **more) for number, text in enumerate(texts)]


def test_every_key_keeps_the_suppliers_own_id_of_it() -> None:
    got = judge(keys("A-0001-AAAA", "B-0002-BBBB\nC-0003-CCCC", "D-0004-DDDD"), "completed", 4, 0, OPAQUE, "line", ZONE)
    assert [card.supplier_key for card in got.cards] == ["id-0", "id-1", "id-1", "id-2"]
    assert [card.position for card in got.cards] == [1, 2, 3, 4]
    assert got.verdict == "complete"


def test_an_expiry_beside_the_key_is_the_keys() -> None:
    (one,) = judge(keys("A-0001-AAAA", expires="2027-12-31"), "completed", 1, 0, OPAQUE, "line", ZONE).cards
    assert one.key is not None
    assert one.key.expires_at < NEVER
    odd = judge(keys("A-0001-AAAA", expires="soon"), "completed", 1, 0, OPAQUE, "line", ZONE)
    assert [(card.key, card.reason) for card in odd.cards] == [(None, "bad_expiry")]
    assert odd.verdict == "complete"  # all that was ordered came: it is disputed, since none of it is in the vault


def test_parts_and_texts_are_read_side_by_side() -> None:
    mixed = [RawKey.card({"card_no": "6001234567", "card_password": "123456"}, id="a"), *keys("600765432100----654321")]
    got = judge(mixed, "completed", 2, 0, AUTO, "auto", ZONE)
    assert got.verdict == "complete"
    assert {card.supplier_key for card in got.cards} == {"a", "id-0"}
    assert all(card.key is not None for card in got.cards)


@given(
    st.lists(st.integers(0, 30), max_size=8),
    st.integers(1, 8),
    st.integers(0, 3),
    st.sampled_from(["pending", "partial", "completed", "canceled", "refunded"]),
)
def test_P3_nothing_that_came_is_dropped_and_only_a_full_count_is_complete(
    numbers: list[int], ordered: int, received: int, status: str
) -> None:
    got = judge(keys(*(f"KEY-{n:04d}-ABCD" for n in numbers)), status, ordered, received, OPAQUE, "line", ZONE)  # type: ignore[arg-type]
    assert len(got.cards) == len(numbers)
    distinct = len(set(numbers))
    if got.verdict == "complete":
        assert distinct == ordered or (received and status == "completed" and distinct < ordered)
    if status in {"canceled", "refunded"}:
        assert (got.verdict, bool(got.aside)) == ("over", True)
    elif distinct > ordered or (distinct < len(numbers) and distinct < ordered):
        assert (got.verdict, got.aside) == ("mismatch", "count")
    else:
        assert not got.aside or (status == "completed" and 0 < distinct < ordered)


def test_keys_by_hand_are_read_as_any_payload() -> None:
    cards, _ = by_hand(b"A-0001-AAAA\r\nB-0002-BBBB\n", OPAQUE, "line", ZONE)
    assert [card.key.fields for card in cards if card.key] == [_fields("A-0001-AAAA"), _fields("B-0002-BBBB")]


def _fields(text: str) -> Mapping[str, str]:
    (card,), _ = by_hand(text.encode(), OPAQUE, "line", ZONE)
    assert card.key is not None
    return card.key.fields
