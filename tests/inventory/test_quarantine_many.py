"""Many entries at a time: read again, dropped, counted; other operators, a sync or a kill in between change nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from syncd.errors import ConflictError, InvalidRequestError, NotFoundError, SyncdError, UnavailableError
from syncd.inventory import quarantine as quarantine_module
from syncd.inventory.quarantine import UNANSWERED, Filter, StillUnreadableError, waiting
from syncd.metrics import Levels
from syncd.store.database import Lane, RetryBatch, Work
from syncd.vault import vault as vault_module
from syncd.vault.vault import SeenBeforeError

SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
STEAM = Filter(product="steam-1", reason="not_this_format")
CANARY = "CANARY-7F3A"


def odd(count: int, prefix: str = "odd") -> list[str]:
    return [f"{prefix}-{number:04d}" for number in range(count)]


def text(keys: list[str]) -> str:
    return "".join(f"{key}\n" for key in keys)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """Five entries a transaction."""
    monkeypatch.setattr(quarantine_module, "_CHUNK", 5)
    monkeypatch.setattr(quarantine_module, "MAX_PAGE", 5)
    return 5


def reread(house: Any, chosen: Filter = STEAM, **how: Any) -> Any:
    """Every page of it, as the command asks for them."""
    done = house.quarantine.reread(chosen, by="operator", **how)
    while done.next is not None:
        page = house.quarantine.reread(chosen, by="operator", **{**how, "after": done.next})
        for name in ("seen", "keys", "duplicates", "decided"):
            setattr(done, name, getattr(done, name) + getattr(page, name))
        for reason, number in page.unreadable.items():
            done.unreadable[reason] = done.unreadable.get(reason, 0) + number
        done.next = page.next
    return done


def states(house: Any) -> dict[str, int]:
    return dict(house.rows("SELECT state, count(*) FROM quarantine GROUP BY state"))


def assert_released_once(house: Any, keys: list[str], product: str = "steam-1") -> None:
    """The harness: each key is in the vault once, its entry is closed, and the audit names each with its key, once."""
    found = house.keys(product)
    assert sorted(set(keys) - set(found)) == [], "lost"
    assert len(found) == len(set(found)), "twice"
    assert states(house) == {"released": len(keys)}, "an entry was left open"
    entries: list[int] = []
    made: list[int] = []
    for (body,) in house.rows("SELECT body FROM audit WHERE kind = 'quarantine.released' ORDER BY seq"):
        told = json.loads(body)
        entries += told["entries"]
        made += told["keys"]
    assert sorted(entries) == [row[0] for row in house.rows("SELECT id FROM quarantine ORDER BY id")], "the audit"
    assert sorted(made) == [row[0] for row in house.rows("SELECT id FROM vault_key ORDER BY id")], "the audit"
    assert house.verified() > 0


# --- reading many again -----------------------------------------------------------------------------------------------


def test_K6_many_are_read_again_and_those_that_are_keys_go_into_the_vault(house: Any, payload: Any, small: int) -> None:
    keys = odd(23)
    house.take(payload("steam-1", text(keys)))
    done = reread(house, fmt="opaque")
    assert (done.seen, done.keys, done.duplicates, done.unreadable, done.decided) == (23, 23, 0, {}, 0)
    assert_released_once(house, keys)
    assert house.arrived[-1] == "steam-1"
    again = reread(house, fmt="opaque")
    assert (again.seen, again.keys) == (0, 0)


def test_a_dry_run_tells_the_same_and_changes_nothing(house: Any, payload: Any, small: int) -> None:
    house.take(payload("opaque-1", text(["odd-0003", "odd-0004"])))
    house.take(payload("steam-1", text([*odd(12), "odd 0011", "not a key here at all"]), label="b.txt"))
    before, arrived = house.everything(), list(house.arrived)
    planned = reread(house, Filter(product="steam-1"), fmt="auto", dry_run=True)
    assert house.everything() == before
    assert house.arrived == arrived
    assert planned.examples
    assert all("•" in example for example in planned.examples)
    done = reread(house, Filter(product="steam-1"), fmt="auto")
    assert (planned.seen, planned.keys, planned.duplicates, planned.unreadable) == (
        done.seen,
        done.keys,
        done.duplicates,
        done.unreadable,
    )
    assert (done.keys, done.duplicates) == (10, 2)
    assert sum(done.unreadable.values()) == 2


def test_what_is_no_key_stays_as_it_was(house: Any, payload: Any, small: int) -> None:
    house.take(payload("steam-1", text([*odd(4), "ABCDE 12345"])))
    before = house.rows("SELECT id, reason, detail, state FROM quarantine ORDER BY id")
    done = reread(house, Filter(product="steam-1"))
    assert (done.seen, done.keys) == (5, 0)
    assert sum(done.unreadable.values()) == 5
    assert house.rows("SELECT id, reason, detail, state FROM quarantine ORDER BY id") == before


def test_K5_what_was_seen_before_names_who_sold_it_first(house: Any, payload: Any, small: int) -> None:
    house.take(payload("opaque-1", text(["odd-0001"]), label="first.txt"), supplier="beta")
    house.take(payload("steam-1", text(odd(3))))
    done = reread(house, fmt="opaque")
    assert (done.keys, done.duplicates) == (2, 1)
    (item,) = house.quarantine.page()["items"]
    shown = house.quarantine.show(int(item["id"]))
    for told in (item, shown):
        assert (told["reason"], told["first_supplier"], told["first_label"]) == ("duplicate", "beta", "first.txt")
    assert house.rows("SELECT count(*) FROM audit WHERE kind = 'quarantine.seen_before'") == [(1,)]
    assert reread(house, Filter(product="steam-1"), fmt="opaque").duplicates == 1
    assert house.rows("SELECT count(*) FROM audit WHERE kind = 'quarantine.seen_before'") == [(1,)]


def test_K5_the_same_line_twice_in_one_payload_becomes_one_key(house: Any, payload: Any) -> None:
    house.take(payload("steam-1", text(["odd-1", "odd-2", "odd-1"])))
    done = reread(house, fmt="opaque")
    assert (done.keys, done.duplicates) == (2, 1)
    assert house.keys("steam-1") == ["odd-1", "odd-2"]


async def test_P3_what_a_whole_payload_left_open_is_not_guessed_line_by_line(house: Any, payload: Any) -> None:
    """Half the lines have one separator, half another: which of it is a key, a person says."""
    lines = ["A10001----775533", "A10002|77,5544", "A10003----775555", "A10004|77,5566"]
    house.take(payload("cards-1", text(lines)))
    chosen = Filter(product="cards-1", reason="ambiguous")
    for again in (reread(house, chosen, dry_run=True), reread(house, chosen)):
        assert (again.keys, again.unreadable) == (0, {"ambiguous": 4})
    done = reread(house, chosen, split="pair:----")
    assert (done.keys, sum(done.unreadable.values())) == (2, 2)
    (entry, _) = [int(item["id"]) for item in house.quarantine.page(chosen)["items"]]
    await house.quarantine.release(entry, "opaque", None, "me")
    assert len(house.keys("cards-1")) == 3


def test_a_splitter_that_was_configured_since_then_counts(make_house: Callable[..., Any], payload: Any) -> None:
    house = make_house("[products.cards-1]\n")
    house.take(payload("cards-1", text(["A10001----775533", "A10002|77,5544", "A10003----775555", "A10004|77,5566"])))
    assert house.keys("cards-1") == []
    house.stop()
    house = make_house('[products.cards-1]\nsplit = "pair:----"\n')
    assert reread(house, Filter(product="cards-1")).keys == 2


def test_a_page_ends_in_time_and_says_where_to_go_on(
    house: Any, payload: Any, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine_module, "_PAGE_S", -1.0)
    house.take(payload("steam-1", text(odd(12))))
    first = house.quarantine.reread(STEAM, by="operator", fmt="opaque")
    assert (first.seen, first.next is not None) == (5, True)
    assert reread(house, fmt="opaque", after=first.next).seen == 7
    assert_released_once(house, odd(12))


def test_only_what_is_meant_is_touched(house: Any, payload: Any) -> None:
    house.take(payload("steam-1", text(odd(2, "alpha"))))
    house.take(payload("steam-1", text(odd(2, "beta")), label="b.txt"), supplier="beta")
    house.take(payload("cards-1", text(["odd"]), label="c.txt"))
    for wrong, why in (
        (lambda: house.quarantine.reread(Filter(reason="prose"), by="me"), "which product"),
        (lambda: house.quarantine.reread(STEAM, by="me", fmt="none-such"), "no such format"),
        (lambda: house.quarantine.reread(STEAM, by="me", split="none-such"), "no such splitter"),
    ):
        with pytest.raises(InvalidRequestError, match=why):
            wrong()
    with pytest.raises(ConflictError, match="not in the configuration"):
        house.quarantine.reread(Filter(product="gone"), by="me")
    assert reread(house, Filter(product="steam-1", reason="prose"), fmt="opaque").seen == 0
    assert reread(house, Filter(product="steam-1", older_than=3600), fmt="opaque").seen == 0
    assert reread(house, Filter(product="steam-1", supplier="beta", older_than=0), fmt="opaque").keys == 2
    assert house.keys("steam-1") == odd(2, "beta")
    assert len(house.quarantine.page(Filter(supplier="alpha"))["items"]) == 3


def test_many_are_read_again_in_small_chunks_in_the_lane_of_ingest(
    house: Any, payload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a delivery never waits for more than one of them; while deliveries come, it rests in between."""
    house.take(payload("steam-1", text(odd(120))))
    sizes: list[int] = []
    real = house.vault.release_many

    def counted(tx: Any, payloads: Any) -> Any:
        sizes.extend(len(one.entries) for one in payloads)
        return real.run(tx, payloads)

    house.vault.release_many = Work("release_many", real.lane, counted)
    assert real.lane is Lane.INGEST
    assert house.vault.decide_many.lane is Lane.INGEST
    rests: list[float] = []
    monkeypatch.setattr(quarantine_module.time, "sleep", rests.append)
    reread(house, fmt="opaque")
    assert sizes == [50, 50, 20]
    assert rests == []
    house.take(payload("steam-1", text(odd(60, "more")), label="b.txt"))
    rests.clear()
    house.writer.delivered_at = quarantine_module.time.monotonic()
    reread(house, fmt="opaque")
    assert len(rests) == 2
    assert all(0 < rest <= 0.05 for rest in rests)


# --- kills and races --------------------------------------------------------------------------------------------------


def killed_everywhere(make_house: Callable[..., Any], payload: Any, *, acknowledged: bool) -> None:
    """A bulk re-read that dies after each of its commits in turn, and is asked for again by the next daemon."""
    for commits in range(1, 20):
        house = make_house()
        prefix = f"k{commits}{'a' if acknowledged else 'b'}"
        house.take(payload("steam-1", text(odd(17, prefix)), label=f"{prefix}.txt"))
        house.kill_after(commits, acknowledged=acknowledged)
        try:
            done = reread(house, fmt="opaque")
        except UnavailableError:
            done = None
        house.stop()
        house = make_house()
        rest = reread(house, fmt="opaque")
        keys = [key for number in range(1, commits + 1) for key in odd(17, f"k{number}{prefix[-1]}")]
        assert rest.duplicates == 0
        assert_released_once(house, keys)
        house.stop()
        if done is not None:
            assert commits > 3, "the kills never hit it"
            return
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("acknowledged", [True, False])
def test_K6_a_kill_between_any_two_commits_of_a_bulk_reread_loses_and_doubles_nothing(
    make_house: Callable[..., Any], payload: Any, small: int, acknowledged: bool
) -> None:
    killed_everywhere(make_house, payload, acknowledged=acknowledged)


@SQLITE
@pytest.mark.parametrize("bug", ["an entry stays open", "a key is not written", "the audit is left out"])
def test_planted_bug_of_a_release_is_caught(
    make_house: Callable[..., Any], payload: Any, small: int, monkeypatch: pytest.MonkeyPatch, bug: str
) -> None:
    if bug == "an entry stays open":
        monkeypatch.setattr(vault_module, "_move", lambda *_: None)
    elif bug == "a key is not written":
        real = vault_module.Vault._insert_keys
        monkeypatch.setattr(
            vault_module.Vault,
            "_insert_keys",
            lambda self, tx, origin, keys: real(self, tx, origin, [key for key in keys if key.position != 7]),
        )
    else:
        audit = quarantine_module.Tx.audit

        def quiet(self: Any, kind: str, **body: Any) -> None:
            if kind != "quarantine.released":
                audit(self, kind, **body)

        monkeypatch.setattr(quarantine_module.Tx, "audit", quiet)
    house = make_house()
    house.take(payload("steam-1", text(odd(12))))
    reread(house, fmt="opaque")
    with pytest.raises(AssertionError, match=r"an entry was left open|lost|the audit"):
        assert_released_once(house, odd(12))


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What several threads got that began together."""
    outcomes: list[Any] = [None] * len(calls)
    gate = threading.Barrier(len(calls))

    def one(index: int) -> None:
        gate.wait()
        try:
            outcomes[index] = calls[index]()
        except SyncdError as error:
            outcomes[index] = error

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


def test_K6_operators_who_reread_and_drop_the_same_entries_at_once_decide_each_once(
    make_house: Callable[..., Any], payload: Any, small: int
) -> None:
    house = make_house()
    other = make_house() if house.database.postgresql else house
    house.take(payload("steam-1", text(odd(60))))
    outcomes = at_once(
        lambda: reread(house, fmt="opaque").keys,
        lambda: reread(other, fmt="opaque").keys,
        lambda: other.quarantine.drop_many(Filter(product="steam-1", reason="not_this_format"), "gone", "me")[0],
    )
    assert sum(outcomes) == 60, outcomes
    found = states(house)
    assert found.get("released", 0) == len(house.keys("steam-1")) == outcomes[0] + outcomes[1]
    assert found.get("dropped", 0) == outcomes[2]
    assert house.verified() > 0


@pytest.mark.parametrize("attempt", range(3))
def test_K6_a_release_while_the_same_key_arrives_by_sync_makes_one_key(
    make_house: Callable[..., Any], payload: Any, attempt: int
) -> None:
    house = make_house()
    other = make_house() if house.database.postgresql else house
    keys = odd(40)
    house.take(payload("steam-1", text(keys)))
    released, taken = at_once(
        lambda: reread(house, fmt="opaque"),
        lambda: other.take(payload("opaque-1", text(keys), label="sync.txt"), supplier="beta"),
    )
    both = house.keys("steam-1") + house.keys("opaque-1")
    assert sorted(both) == keys
    assert released.keys == len(house.keys("steam-1"))
    assert released.keys + released.duplicates == 40
    assert taken.counts.sealed == 40 - released.keys
    assert taken.counts.duplicates == released.keys
    # Whoever came second names the first, on either side.
    assert house.rows("SELECT count(*) FROM quarantine WHERE state = 'held' AND first_source_id IS NULL") == [(0,)]


@SQLITE
def test_K1_a_race_with_another_daemon_is_sorted_again(
    house: Any, payload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the fingerprints and the insert, another daemon writes one of these keys."""
    house.take(payload("steam-1", text(odd(3))))
    real, raced = house.vault._insert_keys, [False]

    def insert(tx: Any, origin: Any, keys: Any) -> bool:
        if not raced[0]:
            raced[0] = True
            raise RetryBatch
        return bool(real(tx, origin, keys))

    monkeypatch.setattr(house.vault, "_insert_keys", insert)
    assert reread(house, fmt="opaque").keys == 3
    assert_released_once(house, odd(3))


# --- dropping many ----------------------------------------------------------------------------------------------------


def test_many_are_dropped_up_to_the_last_that_was_counted(house: Any, payload: Any, small: int) -> None:
    house.take(payload("steam-1", text(odd(12))))
    number, upto = house.quarantine.matching(STEAM)
    assert number == 12
    house.take(payload("steam-1", text(["late-1"]), label="late.txt"))
    chosen = Filter(product="steam-1", upto=upto)
    assert house.quarantine.drop_many(chosen, "the supplier has replaced them", "operator") == (12, False)
    assert states(house) == {"dropped": 12, "held": 1}
    assert house.quarantine.drop_many(chosen, "again", "operator") == (0, False)
    bodies = [body for (body,) in house.rows("SELECT body FROM audit WHERE kind = 'quarantine.dropped'")]
    assert len(bodies) == 3
    assert all("replaced them" in body and '"operator"' in body for body in bodies)


def test_a_kill_in_the_middle_of_a_bulk_drop_is_gone_on_with(
    make_house: Callable[..., Any], payload: Any, small: int
) -> None:
    house = make_house()
    house.take(payload("steam-1", text(odd(23))))
    house.kill_after(2, acknowledged=False)
    with pytest.raises(UnavailableError):
        house.quarantine.drop_many(STEAM, "gone", "operator")
    house.stop()
    house = make_house()
    assert states(house) == {"dropped": 10, "held": 13}
    assert house.quarantine.drop_many(STEAM, "gone", "operator") == (13, False)
    assert states(house) == {"dropped": 23}
    assert house.verified() > 0


# --- counting ---------------------------------------------------------------------------------------------------------


def test_what_waits_is_counted_by_product_and_reason_with_the_age_of_the_oldest(house: Any, payload: Any) -> None:
    with house.database.read() as connection:
        assert waiting(connection) == ({}, None)
    house.take(payload("steam-1", text([*odd(2), "请联系客服"])))
    house.take(payload("opaque-1", text(["odd-0000"]), label="b.txt"))
    house.take(payload("opaque-1", text(["odd-0000", "x-1"]), label="c.txt"))
    house.tamper("UPDATE quarantine SET created_at = 1000 WHERE reason = 'prose'")
    house.tamper("UPDATE quarantine SET created_at = 500 WHERE id = (SELECT min(id) FROM quarantine)")
    house.tamper("UPDATE quarantine SET state = 'returning' WHERE reason = 'duplicate'")
    with house.database.read() as connection:
        counts, oldest = waiting(connection)
    assert counts == {
        ("steam-1", "not_this_format"): 2,
        ("steam-1", "prose"): 1,
        ("opaque-1", UNANSWERED): 1,
    }
    assert oldest == 500
    assert house.quarantine.counts() == {"not_this_format": 2, "prose": 1, UNANSWERED: 1}
    house.metrics.levels = lambda: Levels(quarantine_held=counts, oldest_quarantine_seconds=7.5)
    rendered = house.metrics.render().decode()
    assert 'syncd_quarantine_held{product="steam-1",reason="not_this_format"} 2.0' in rendered
    assert "syncd_oldest_quarantine_age_seconds 7.5" in rendered


# --- nothing is seen --------------------------------------------------------------------------------------------------


async def test_S4_no_key_is_seen_on_any_way_through_quarantine(
    house: Any, payload: Any, assert_unseen: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    house.take(payload("opaque-1", text([f"{CANARY}-0-END"]), label="a.txt"))
    house.take(payload("steam-1", text([f"{CANARY}-{number}-END" for number in range(5)]), label="b.txt"))
    entries = [int(item["id"]) for item in house.quarantine.page()["items"]]
    said: list[Any] = [house.quarantine.page(), *(house.quarantine.show(entry) for entry in entries)]
    said += [
        house.quarantine.reread(Filter(product="steam-1"), by="me", fmt=fmt, dry_run=True)
        for fmt in (None, "auto", "opaque", "pair", "link", "prose")
    ]
    for call in (
        lambda: house.quarantine.release(entries[0], None, None, "me"),
        lambda: house.quarantine.release(entries[0], "opaque", None, "me"),  # seen before
        lambda: house.quarantine.give_back(entries[:1], "me"),
        lambda: house.quarantine.complain(entries[:1], "it does not work", "me"),
    ):
        with pytest.raises(SyncdError) as refused:
            await call()
        said += [str(refused.value), repr(refused.value)]

    def refuse(tx: Any, payloads: Any) -> Any:
        tx.query("SELECT no_such_column FROM quarantine WHERE id = ?", (1,))

    real = house.vault.release_many
    house.vault.release_many = Work("release_many", real.lane, refuse)
    with pytest.raises(Exception) as failed:
        await asyncio.to_thread(reread, house, fmt="opaque")
    said += [str(failed.value), repr(failed.value)]
    house.vault.release_many = real
    said.append(await asyncio.to_thread(reread, house, Filter(product="steam-1"), fmt="opaque"))
    said.append(await asyncio.to_thread(house.quarantine.drop_many, Filter(product="steam-1"), "seen before", "me"))
    streams = capsys.readouterr()
    for seen in (*said, caplog.text, streams.out, streams.err, house.everything()):
        assert_unseen(CANARY, str(seen))
    assert len(house.keys("steam-1")) == 4
    if not house.database.postgresql:
        for file in house.database.path.parent.glob("syncd.db*"):
            assert CANARY.encode() not in file.read_bytes()


async def test_a_release_says_what_is_wrong_with_one(house: Any, payload: Any) -> None:
    house.take(payload("opaque-1", text(["odd-1"])))
    house.take(payload("steam-1", text(["odd-1"]), label="b.txt"))
    (entry,) = [int(item["id"]) for item in house.quarantine.page()["items"]]
    with pytest.raises(StillUnreadableError):
        await house.quarantine.release(entry, None, None, "me")
    with pytest.raises(SeenBeforeError, match="in the vault already, from feed:"):
        await house.quarantine.release(entry, "opaque", None, "me")
    with pytest.raises(NotFoundError):
        await house.quarantine.release(1, None, None, "me")
    with contextlib.suppress(NotFoundError):
        await house.quarantine.drop(1, "why", "me")
        pytest.fail("what does not exist was dropped")


# --- goods that are text ----------------------------------------------------------------------------------------------

GOODS = [
    "你好，这是您的教程：先登录，再联系客服领取资料。",
    "链接: https://pan.example.com/s/1 提取码: x7k2, valid for a week",
    "a, b; c",
]
STANDINS = ["很抱歉，有人在你付款之前抢走了商品，请联系客服。", "null", "Sold out!"]


def test_P3_goods_that_are_text_are_keys_verbatim_but_for_known_stand_ins(
    make_house: Callable[..., Any], payload: Any
) -> None:
    house = make_house("[products.goods]\nallow_prose = true\n[products.keys]\n")
    house.take(payload("goods", text([*GOODS, *STANDINS])))
    assert house.keys("goods") == GOODS
    assert [reason for _, reason, _ in house.held()] == ["prose"] * len(STANDINS)
    house.take(payload("keys", text(GOODS), label="control.txt"))
    assert house.keys("keys") == []  # without allow_prose none of it is a key


def test_P3_prose_of_a_product_that_turns_out_to_sell_text_is_read_again(
    make_house: Callable[..., Any], payload: Any
) -> None:
    house = make_house("[products.goods]\n")
    house.take(payload("goods", text([*GOODS, *STANDINS])))
    assert house.keys("goods") == []
    house.stop()
    house = make_house("[products.goods]\nallow_prose = true\n")
    done = reread(house, Filter(product="goods"))
    assert (done.keys, sum(done.unreadable.values())) == (len(GOODS), len(STANDINS))
    assert house.keys("goods") == GOODS
