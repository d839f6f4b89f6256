"""A bad key is replaced once, goes first in line, counts against its supplier, and is claimed there once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from syncd.adapter import NotSent, OutcomeUnknown, Refused
from syncd.errors import ConflictError, NotFoundError
from syncd.orders.deliveries import InsufficientStockError, pending_deliveries
from syncd.orders.replacements import ReplacementLimitError, Replacements, claims_asking, defects

SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what no engine has a part in."""
POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


class Upstream:
    """A supplier that answers as it is told, and remembers what it was asked."""

    def __init__(self, *verbs: str, answers: Callable[[str, Any], Any] | None = None) -> None:
        self.capabilities = frozenset(verbs)
        self.asked: list[tuple[str, ...]] = []
        self.answers = answers or (lambda verb, args: dict.fromkeys(args, True) if verb == "return_keys" else "C-1")

    async def acall(self, verb: str, order: str, more: Any) -> Any:
        self.asked.append((verb, order, *more) if verb == "return_keys" else (verb, order, more))
        await asyncio.sleep(0.05)
        answer = self.answers(verb, more)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def replacing(stack: Any, upstream: Mapping[str, Any] | None = None, most: int = 3) -> Replacements:
    return Replacements(stack.deliveries, stack.writer, lambda: most, (upstream or {}).get)


def sell(stack: Any, sku: str, on_shortage: str = "refuse") -> None:
    stack.products[sku] = SimpleNamespace(min_life=0, takes=range(1, 101), on_shortage=on_shortage)


def bought(stack: Any, supplier: str = "wang", order: str = "W1", names: bool = True) -> None:
    """All keys came from an order at a supplier, which has names of its own for them."""
    stack.tamper(f"UPDATE source SET supplier = '{supplier}', order_id = '{order}' WHERE supplier = 'feed'")
    if names:
        stack.tamper(
            "INSERT INTO supplier_key (key_id, name) SELECT k.id, 'N' || k.position FROM vault_key k"
            " LEFT JOIN supplier_key n ON n.key_id = k.id WHERE n.key_id IS NULL"
        )


def claims(stack: Any) -> list[tuple[str, str]]:
    return stack.rows("SELECT claim, claim_note FROM replacement ORDER BY created_at, key_id")  # type: ignore[no-any-return]


def texts(delivery: Any) -> list[str]:
    return [key.text for key in delivery.keys]


async def test_M2_a_bad_key_is_replaced_in_its_unit_once_and_the_others_stay(stack: Any) -> None:
    stack.add("steam", "A-1", "A-2", "A-3", "A-4")
    got = await stack.deliveries.deliver("demo", "o1", "steam", 3)
    bad = got.keys[1].id
    replaced = replacing(stack)
    after = await replaced.replace("demo", "o1", bad, "invalid")
    assert (after.state, after.repeat, texts(after)) == ("delivered", False, ["A-1", "A-4", "A-3"])
    again = await replaced.replace("demo", "o1", bad, "invalid")
    assert (again.repeat, texts(again)) == (True, ["A-1", "A-4", "A-3"])
    assert texts(await stack.deliveries.deliver("demo", "o1", "steam", 3)) == ["A-1", "A-4", "A-3"]
    assert stack.rows(f"SELECT state FROM vault_key WHERE id = {bad}") == [("defective",)]
    assert stack.rows("SELECT unit, reason, supplier, claim FROM replacement") == [(1, "invalid", "feed", "open")]
    assert [kind for (kind,) in stack.rows("SELECT kind FROM audit")].count("key.defective") == 1
    stack.verified()


@SQLITE
async def test_a_key_of_another_order_or_shop_is_not_there(stack: Any) -> None:
    stack.add("steam", "A-1", "A-2", "A-3")
    one = await stack.deliveries.deliver("demo", "o1", "steam", 1)
    two = await stack.deliveries.deliver("other", "o1", "steam", 1)
    replaced = replacing(stack)
    for shop, ref, key in (("demo", "o1", two.keys[0].id), ("other", "o1", one.keys[0].id), ("demo", "o9", 1)):
        with pytest.raises(NotFoundError):
            await replaced.replace(shop, ref, key, "invalid")
    assert stack.rows("SELECT count(*) FROM replacement") == [(0,)]


async def test_M2_with_none_left_it_waits_is_owed_and_goes_before_all_that_wait(stack: Any) -> None:
    sell(stack, "steam", "wait")
    stack.add("steam", "A-1")
    waiting = await stack.deliveries.deliver("demo", "o0", "steam", 2)
    await stack.deliveries.cancel("demo", "o0")
    got = await stack.deliveries.deliver("demo", "o1", "steam", 1)
    assert (waiting.state, got.state) == ("pending", "delivered")
    assert (await stack.deliveries.deliver("demo", "o2", "steam", 1)).state == "pending"
    after = await replacing(stack).replace("demo", "o1", got.keys[0].id, "already_used")
    assert (after.state, after.reason, after.keys) == ("pending", "replacing", [])
    with pytest.raises(ConflictError, match="being replaced"):
        await stack.deliveries.cancel("demo", "o1")
    sell(stack, "steam", "refuse")
    stack.add("steam", "B-1")
    with pytest.raises(InsufficientStockError):
        await stack.deliveries.deliver("demo", "o3", "steam", 1)
    stack.tamper("UPDATE delivery SET id = id - 1000000000 WHERE order_ref = 'o2'")  # it waited longer
    assert await stack.deliveries.fill("steam") == 1
    assert texts(await stack.deliveries.deliver("demo", "o1", "steam", 1)) == ["B-1"]
    assert (await stack.deliveries.deliver("demo", "o2", "steam", 1)).state == "pending"


@SQLITE
async def test_a_second_key_may_turn_out_bad_while_the_first_one_is_waited_for(stack: Any) -> None:
    stack.add("steam", "A-1", "A-2")
    got = await stack.deliveries.deliver("demo", "o1", "steam", 2)
    replaced = replacing(stack)
    for key in got.keys:
        assert (await replaced.replace("demo", "o1", key.id, "invalid")).state == "pending"
    repeat = await replaced.replace("demo", "o1", got.keys[0].id, "invalid")
    assert (repeat.state, repeat.repeat, repeat.keys) == ("pending", True, [])
    stack.add("steam", "B-1", "B-2")
    assert await stack.deliveries.fill("steam") == 1
    assert sorted(texts(await stack.deliveries.deliver("demo", "o1", "steam", 2))) == ["B-1", "B-2"]


@SQLITE
async def test_a_shop_has_a_limit_and_the_operator_has_none(stack: Any) -> None:
    stack.add("steam", *[f"A-{n}" for n in range(6)])
    key = (await stack.deliveries.deliver("demo", "o1", "steam", 1)).keys[0].id
    replaced = replacing(stack, most=2)
    for _ in range(2):
        key = (await replaced.replace("demo", "o1", key, "invalid")).keys[0].id
    with pytest.raises(ReplacementLimitError):
        await replaced.replace("demo", "o1", key, "invalid")
    assert (await replaced.replace("demo", "o1", key, "invalid", by="user root")).state == "delivered"
    assert (
        '"by":"user root"' in stack.rows("SELECT body FROM audit WHERE kind = 'key.defective' ORDER BY seq DESC")[0][0]
    )


@POSTGRESQL
async def test_M2_daemons_and_repeats_race_and_a_key_is_replaced_once(make_stack: Callable[[], Any]) -> None:
    stacks = [make_stack(), make_stack()]
    stacks[0].add("steam", *[f"A-{n}" for n in range(10)])
    stacks[1].products.update(stacks[0].products)
    bad = (await stacks[0].deliveries.deliver("demo", "o1", "steam", 2)).keys[0].id
    made = [replacing(stack) for stack in stacks]
    answers = await asyncio.gather(*[one.replace("demo", "o1", bad, "invalid") for one in made * 8])
    assert sum(not answer.repeat for answer in answers) == 1
    assert len({tuple(texts(answer)) for answer in answers}) == 1
    assert stacks[0].rows("SELECT count(*) FROM replacement") == [(1,)]
    assert stacks[0].rows("SELECT count(*) FROM allotment WHERE withdrawn_at IS NULL") == [(2,)]


# --- claims -----------------------------------------------------------------------------------------------------------


async def broken(stack: Any, keys: int = 1, order: str = "o1") -> None:
    """An order of which so many keys are replaced."""
    got = await stack.deliveries.deliver("demo", order, "steam", keys)
    for key in got.keys:
        await replacing(stack).replace("demo", order, key.id, "invalid")


async def test_a_claim_gives_keys_back_once_an_order_and_is_never_made_twice(stack: Any) -> None:
    stack.add("steam", "A-1", "A-2", "A-3", "A-4")
    bought(stack)
    await broken(stack, 2)
    wang = Upstream("return_keys", "complain")
    made = [replacing(stack, {"wang": wang}) for _ in range(3)]
    await asyncio.gather(*[one.claim_due() for one in made])
    assert wang.asked == [("return_keys", "W1", "N1", "N2")]
    assert claims(stack) == [("returned", ""), ("returned", "")]
    assert sorted(stack.rows("SELECT state FROM vault_key")) == [("delivered",)] * 2 + [("returned",)] * 2
    await made[0].claim_due()
    assert len(wang.asked) == 1
    stack.verified()


@SQLITE
async def test_what_is_not_taken_back_is_complained_of_without_a_word_of_the_key(stack: Any) -> None:
    stack.add("steam", "SECRET-1", "SECRET-2")
    bought(stack)
    await broken(stack)
    wang = Upstream(
        "return_keys", "complain", answers=lambda verb, _: {"N1": False} if verb == "return_keys" else "C-7"
    )
    made = replacing(stack, {"wang": wang})
    for _ in range(3):
        await made.claim_due()
    assert [asked[0] for asked in wang.asked] == ["return_keys", "complain"]
    assert wang.asked[1][2] == "1 of the keys of this order do not work. N1: invalid."
    assert claims(stack) == [("complained", "complaint C-7")]


@SQLITE
@pytest.mark.parametrize(
    ("verbs", "answer", "state", "asked"),
    [
        (("return_keys",), {"N1": False}, "refused", 1),
        (("return_keys",), Refused("no"), "refused", 1),
        (("return_keys",), {}, "asking", 1),
        (("return_keys",), OutcomeUnknown("lost"), "asking", 1),
        (("return_keys",), RuntimeError("A-1"), "asking", 1),
        (("complain",), Refused("no"), "refused", 1),
        (("complain",), OutcomeUnknown("lost"), "asking", 1),
        (("list_offers",), None, "impossible", 0),
    ],
)
async def test_a_lost_answer_waits_for_a_person_and_a_plain_one_ends_it(
    stack: Any, verbs: Any, answer: Any, state: str, asked: int
) -> None:
    stack.add("steam", "A-1", "A-2")
    bought(stack)
    await broken(stack)
    wang = Upstream(*verbs, answers=lambda *_: answer)
    made = replacing(stack, {"wang": wang})
    for _ in range(3):
        await made.claim_due()
        stack.clock.seconds += 100_000
    assert (claims(stack)[0][0], len(wang.asked)) == (state, asked)
    assert not [body for (body,) in stack.rows("SELECT body FROM audit") if "A-1" in body]
    assert "A-1" not in claims(stack)[0][1]
    if state == "asking":
        (row,) = made.claims(claim="asking")
        await made.settle(int(row["key"]), "open", "user root")
        await made.claim_due()
        assert len(wang.asked) == 2
        await made.settle(int(row["key"]), "returned", "user root")
        assert claims(stack)[0][0] == "returned"
    with pytest.raises(ConflictError):
        await made.settle(1, "open", "user root")


@SQLITE
async def test_what_was_surely_not_sent_is_sent_again_ever_later(stack: Any) -> None:
    stack.add("steam", "A-1", "A-2")
    bought(stack)
    await broken(stack)
    answers = itertools.chain([NotSent("down")] * 3, itertools.repeat({"N1": True}))
    wang = Upstream("return_keys", answers=lambda *_: next(answers))
    made = replacing(stack, {"wang": wang})
    for waits in (0, 30, 31, 60, 61, 125, 126, 300):
        stack.clock.seconds = 1_800_000_000 + waits
        await made.claim_due()
    assert len(wang.asked) == 4
    assert claims(stack) == [("returned", "")]


@SQLITE
async def test_what_has_no_supplier_to_ask_is_said_to_have_none(stack: Any) -> None:
    stack.add("steam", "A-1", "A-2")
    bought(stack, supplier="import")
    await broken(stack)
    made = replacing(stack)
    await made.claim_due()
    assert claims(stack)[0][0] == "impossible"


@SQLITE
async def test_T3_a_claim_is_not_made_again_after_a_restore(stack: Any) -> None:
    from syncd.inventory.quarantine import Quarantine

    stack.add("steam", "A-1", "A-2")
    bought(stack)
    await broken(stack)
    wang = Upstream("return_keys")
    made = replacing(stack, {"wang": wang})
    stack.tamper("INSERT INTO meta (name, value) VALUES ('restored_at', 'x')")
    stack.deliveries.fenced = True
    await made.claim_due()
    quarantine = Quarantine(stack.writer, stack.vault, lambda: None, dict, lambda _: None)  # type: ignore[arg-type,return-value]
    await quarantine.recover("me")
    stack.deliveries.fenced = False
    await made.claim_due()
    assert (claims(stack), wang.asked) == ([("asking", "restored from a backup")], [])
    with stack.database.read() as connection:
        assert claims_asking(connection) == {"wang": 1}


async def test_the_age_of_what_waits_is_since_it_has_waited(stack: Any) -> None:
    stack.add("steam", "A-1")
    got = await stack.deliveries.deliver("demo", "o1", "steam", 1)
    stack.clock.seconds += 5000
    await replacing(stack).replace("demo", "o1", got.keys[0].id, "invalid")
    sell(stack, "xbox", "wait")
    with stack.database.read() as connection:
        assert pending_deliveries(connection) == ({"steam": 1}, 1_800_005_000)
    stack.clock.seconds -= 1000
    await stack.deliveries.deliver("demo", "o2", "xbox", 1)
    with stack.database.read() as connection:
        assert pending_deliveries(connection) == ({"steam": 1, "xbox": 1}, 1_800_004_000)


@SQLITE
async def test_control_a_claim_that_is_sent_before_it_is_recorded_is_sent_twice(
    stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.add("steam", "A-1", "A-2")
    bought(stack)
    await broken(stack)
    wang = Upstream("return_keys")
    made = [replacing(stack, {"wang": wang}) for _ in range(2)]
    for one in made:
        note = one._note

        async def all_mine(group: Any, was: str, claim: str, *args: Any, note: Any = note) -> Any:
            return [key.key for key in group] if claim == "asking" else await note(group, was, claim, *args)

        monkeypatch.setattr(one, "_note", all_mine)
    await asyncio.gather(*[one.claim_due() for one in made])
    assert len(wang.asked) == 2


async def test_a_supplier_is_known_by_the_share_of_its_keys_that_were_bad(stack: Any) -> None:
    stack.add("steam", *[f"A-{n}" for n in range(5)])
    bought(stack, "wang", names=False)
    await broken(stack, 2)
    stack.add("steam", *[f"B-{n}" for n in range(5)])
    bought(stack, "li", names=False)
    await stack.deliveries.deliver("demo", "o2", "steam", 4)
    with stack.database.read() as connection:
        assert defects(connection) == {"wang": (2, 5), "li": (0, 3)}
