"""What lies in quarantine is listed and shown without its text, revealed with a trace, and leaves it one way only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from syncd.errors import ConflictError, InvalidRequestError, NotFoundError
from syncd.inventory import quarantine as quarantine_module
from syncd.inventory.quarantine import HELD, Filter, StillUnreadableError
from syncd.store.database import Lane, Tx, Work

ODD = "CANARY-77 no steam key"


def text(*keys: str) -> str:
    return "".join(f"{key}\n" for key in keys)


def only(house: Any, **asked: Any) -> int:
    (item,) = house.quarantine.page(**asked)["items"]
    return int(item["id"])


def audited(house: Any, kind: str) -> int:
    ((number,),) = house.rows(f"SELECT count(*) FROM audit WHERE kind = '{kind}'")
    return int(number)


# --- looking ----------------------------------------------------------------------------------------------------------


def test_the_list_is_paged_filtered_and_counted(house: Any, payload: Any) -> None:
    house.take(payload("steam-1", text(*(f"odd {number}" for number in range(7)))))
    house.take(payload("opaque-1", text("key-1"), label="a.txt"))
    house.take(payload("opaque-1", text("key-1", "key-2"), label="b.txt"), supplier="beta")
    seen: list[str] = []
    after, pages = 0, 0
    while True:
        page = house.quarantine.page(after=after, limit=3)
        seen += [item["id"] for item in page["items"]]
        pages += 1
        if page["next"] is None:
            break
        after = int(page["next"])
    assert (len(seen), len(set(seen)), pages) == (8, 8, 3)
    assert sum(page["counts"].values()) == 8
    assert page["counts"]["duplicate"] == 1
    (item,) = house.quarantine.page(Filter(reason="duplicate"))["items"]
    assert (item["product"], item["position"], item["supplier"], item["label"]) == ("opaque-1", 1, "beta", "b.txt")
    assert (item["first_supplier"], item["first_label"]) == ("alpha", "a.txt")
    assert len(house.quarantine.page(Filter(product="steam-1"))["items"]) == 7
    assert house.quarantine.page(state="dropped")["items"] == []
    assert house.quarantine.page(limit=10**9)["next"] is None


def test_S4_what_is_listed_and_shown_holds_no_letter_of_the_key(house: Any, payload: Any, assert_unseen: Any) -> None:
    house.take(payload("steam-1", text("ÄB-12 卡密;x", ODD)))
    ids = [int(item["id"]) for item in house.quarantine.page()["items"]]
    shown = [house.quarantine.show(row_id) for row_id in ids]
    assert [one["masked"] for one in shown] == ["xx-99 xx;x", "xxxxxx-99 xx xxxxx xxx"]
    assert_unseen("CANARY", f"{house.quarantine.page()} {shown}")
    with pytest.raises(NotFoundError):
        house.quarantine.show(1)


async def test_a_reveal_leaves_its_audit_entry_first(house: Any, payload: Any) -> None:
    house.take(payload("steam-1", text(ODD)))
    row_id = only(house)
    assert await house.quarantine.reveal(row_id, "operator") == ODD
    assert audited(house, "quarantine.revealed") == 1
    with pytest.raises(NotFoundError):
        await house.quarantine.reveal(1, "operator")

    def refuse(tx: Any, payloads: Any) -> Any:
        raise ArithmeticError

    house.quarantine._revealed = Work("reveal", Lane.CONTROL, refuse)
    with pytest.raises(ArithmeticError):  # no entry, no text
        await house.quarantine.reveal(row_id, "operator")


# --- deciding ---------------------------------------------------------------------------------------------------------


async def test_K6_a_release_with_another_format_puts_the_key_into_the_vault(house: Any, payload: Any) -> None:
    house.take(payload("steam-1", text(ODD, "ABCDE-12345-FGHIJ")))
    row_id = only(house)
    with pytest.raises(StillUnreadableError) as refused:
        await house.quarantine.release(row_id, None, None, "operator")
    assert "CANARY" not in str(refused.value)
    with pytest.raises(InvalidRequestError, match="no such format"):
        await house.quarantine.release(row_id, "no-such-format", None, "operator")
    with pytest.raises(InvalidRequestError, match="no such splitter"):
        await house.quarantine.release(row_id, "opaque", "no-such-splitter", "operator")
    assert house.quarantine.page()["counts"] != {}
    key_id = await house.quarantine.release(row_id, "opaque", None, "operator")
    assert sorted(house.keys("steam-1")) == ["ABCDE-12345-FGHIJ", ODD]
    assert house.rows(f"SELECT state FROM vault_key WHERE id = {key_id}") == [("available",)]
    assert house.arrived[-1] == "steam-1"
    assert audited(house, "quarantine.released") == 1
    for decide in (
        house.quarantine.release(row_id, "opaque", None, "operator"),
        house.quarantine.drop(row_id, "why", "operator"),
    ):
        with pytest.raises(ConflictError, match="released already"):
            await decide
    assert len(house.keys("steam-1")) == 2
    assert only(house, state="released") == row_id


async def test_K6_a_duplicate_is_never_released(house: Any, payload: Any) -> None:
    house.take(payload("opaque-1", text("key-0001"), label="a.txt"))
    house.take(payload("opaque-1", text("KEY0001"), label="b.txt"), supplier="beta")
    row_id = only(house)
    with pytest.raises(ConflictError, match="in the vault already, from feed:"):
        await house.quarantine.release(row_id, None, None, "operator")
    assert house.keys() == ["key-0001"]
    assert only(house) == row_id  # it waits for another decision


async def test_K6_the_constraint_refuses_what_the_look_up_overlooked(
    house: Any, payload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.take(payload("opaque-1", text("key-0001"), label="a.txt"))
    house.take(payload("opaque-1", text("key-0001", "key-0002"), label="b.txt"), supplier="beta")
    house.writer._backoff.races = 2
    monkeypatch.setattr(house.vault, "_seen", lambda *_: {})
    with pytest.raises(Exception, match=r"UNIQUE|other daemons"):
        await house.quarantine.release(only(house), None, None, "operator")
    assert house.keys() == ["key-0001", "key-0002"]
    assert only(house, state="held")


async def test_K6_two_releases_of_one_entry_make_one_key(make_house: Callable[..., Any], payload: Any) -> None:
    house = make_house()
    other = make_house() if house.database.postgresql else house
    house.take(payload("steam-1", text(ODD)))
    row_id = only(house)
    outcomes = await asyncio.gather(
        *[one.quarantine.release(row_id, "opaque", None, "operator") for one in (house, other) * 4],
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 1, outcomes
    assert all(isinstance(outcome, int | ConflictError) for outcome in outcomes), outcomes
    assert house.keys("steam-1") == [ODD]


async def test_K6_the_same_odd_slice_from_two_sources_is_released_once(house: Any, payload: Any) -> None:
    house.take(payload("steam-1", text(ODD), label="a.txt"))
    house.take(payload("steam-1", text(ODD, "odd 2"), label="b.txt"))
    first, second, _ = [int(item["id"]) for item in house.quarantine.page()["items"]]
    await house.quarantine.release(first, "opaque", None, "operator")
    with pytest.raises(ConflictError, match="in the vault already"):
        await house.quarantine.release(second, "opaque", None, "operator")
    again = house.take(payload("opaque-1", text(ODD), label="c.txt"))
    assert (again.counts.sealed, again.counts.duplicates) == (0, 1)  # what was released is seen for ever


async def test_K6_what_is_dropped_stays_sealed_and_closed(house: Any, payload: Any) -> None:
    house.take(payload("steam-1", text(ODD)))
    row_id = only(house)
    await house.quarantine.drop(row_id, "prose", "operator")
    assert house.quarantine.page()["items"] == []
    assert house.quarantine.counts() == {}
    assert only(house, state="dropped") == row_id
    assert await house.quarantine.reveal(row_id, "operator") == ODD  # nothing is thrown away
    with pytest.raises(ConflictError, match="dropped already"):
        await house.quarantine.release(row_id, "opaque", None, "operator")
    with pytest.raises(NotFoundError):
        await house.quarantine.drop(1, "prose", "operator")
    assert house.keys("steam-1") == []


async def test_a_product_that_left_the_configuration_keeps_its_entries_shut(
    make_house: Callable[..., Any], payload: Any
) -> None:
    house = make_house()
    house.take(payload("steam-1", text(ODD)))
    house.stop()
    house = make_house('[products.opaque-1]\nformat = "opaque"\n')
    row_id = only(house)
    with pytest.raises(ConflictError, match="not in the configuration"):
        await house.quarantine.release(row_id, "opaque", None, "operator")
    await house.quarantine.drop(row_id, "gone", "operator")


# --- after a restore --------------------------------------------------------------------------------------------------


async def test_T3_recover_holds_every_key_until_somebody_has_checked_them(
    house: Any, payload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine_module, "_AT_ONCE", 2)
    house.take(payload("opaque-1", text(*(f"key-{number}" for number in range(5)))))
    house.take(payload("steam-1", text("ABCDE-12345-FGHIJ"), label="steam.txt"))
    with pytest.raises(ConflictError, match="was not restored"):  # a sound database is never held by mistake
        await house.quarantine.recover("operator")
    assert house.rows("SELECT count(*) FROM vault_key WHERE state = 'available'") == [(6,)]
    house.tamper("INSERT INTO meta (name, value) VALUES ('restored_at', '2026-01-01T00:00:00Z')")
    assert await house.quarantine.recover("operator") == 6
    assert house.rows("SELECT DISTINCT state FROM vault_key") == [("held",)]
    assert house.quarantine.counts() == {HELD: 6}
    assert audited(house, "restore.recovered") == 1
    with pytest.raises(ConflictError, match="recovered already"):
        await house.quarantine.recover("operator")
    assert await house.quarantine.unhold("opaque-1", "operator") == 5
    assert house.arrived[-1] == "opaque-1"
    assert await house.quarantine.unhold("opaque-1", "operator") == 0
    assert house.quarantine.counts() == {HELD: 1}
    assert house.verified() > 0


async def test_T3_a_recovery_that_was_cut_off_is_taken_up_again(
    house: Any, payload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine_module, "_AT_ONCE", 2)
    house.take(payload("opaque-1", text(*(f"key-{number}" for number in range(5)))))
    house.tamper("INSERT INTO meta (name, value) VALUES ('restored_at', '2026-01-01T00:00:00Z')")
    real, left = house.vault.hold, [2]

    def tired(tx: Tx, limits: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise ArithmeticError
        return real.run(tx, limits)

    house.vault.hold = Work("hold", real.lane, tired)
    with pytest.raises(ArithmeticError):
        await house.quarantine.recover("operator")
    assert house.quarantine.counts() == {HELD: 4}
    assert house.rows("SELECT count(*) FROM meta WHERE name = 'restored_at'") == [(1,)]  # still fenced
    house.vault.hold = real
    assert await house.quarantine.recover("operator") == 1
    assert house.quarantine.counts() == {HELD: 5}
