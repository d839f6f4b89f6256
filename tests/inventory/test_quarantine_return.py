"""Keys go back to their supplier, and complaints to it: recorded before they are sent, and never sold meanwhile.

The supplier here is scripted; its own books (``taken``) are what the outcomes are compared with.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from syncd.adapter import (
    Adapter,
    Auth,
    BadResponse,
    Context,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    Refused,
    Settings,
    Transient,
)
from syncd.errors import ConflictError, NotFoundError, UnavailableError
from syncd.inventory import quarantine as quarantine_module
from syncd.inventory.formats import dedupe_form
from syncd.inventory.quarantine import UNANSWERED, NotReturnableError
from syncd.model import CardKey
from syncd.suppliers.client import Client, Cut, Reply, Sent
from syncd.suppliers.link import Link
from syncd.vault.vault import Chunk, Origin, Slice

CANARY = "CANARY-7F3A"


class Supplier:
    """A supplier that takes keys back, and does before and after it whatever the test tells it."""

    def __init__(self, *capabilities: str) -> None:
        self.capabilities = frozenset(capabilities or ("return_keys", "complain"))
        self.asked: list[tuple[Any, ...]] = []
        self.taken: set[str] = set()
        self.before: Callable[[], Any] = lambda: None
        self.after: Callable[[], Any] = lambda: None
        self.answer: Any = None

    async def acall(self, verb: str, *args: Any) -> Any:
        self.asked.append((verb, *args))
        self.before()
        if verb == "return_keys":
            self.taken |= set(args[1])
        self.after()
        if self.answer is not None:
            return self.answer
        return dict.fromkeys(args[1], True) if verb == "return_keys" else "claim-1"


@pytest.fixture
def supplier(house: Any) -> Supplier:
    found = Supplier()
    house.quarantine._upstream = {"alpha": found}.get
    return found


def bought(house: Any, *texts: str, order: str = "ORD-1", product: str = "steam-1") -> list[int]:
    """Quarantined texts of one order, as a purchase brings them: with the supplier's ids. Returns the entries."""
    begun = house.ids.next()
    name = f"purchase:{begun}"
    house.tamper(
        "INSERT INTO source (id, product, name, supplier, label, state, size, reading, position, consumed, cards,"
        " sealed, repeats, duplicates, quarantined, started_at, order_id)"
        f" VALUES ({begun}, '{product}', '{name}', 'alpha', '{order}', 'taking', 1, '', 0, 0, 0, 0, 0, 0, 0, 1,"
        f" '{order}')"
    )
    origin = Origin(begun, name, product)
    slices = [
        Slice(number + 1, text.encode(), None, "", "prose", "", f"{order}-K{number + 1}")
        for number, text in enumerate(texts)
    ]
    keys, held = house.vault.seal(origin, slices)
    house.writer.call(house.vault.intake, Chunk(origin, keys, held, 0, 1, len(texts)))
    return [row[0] for row in house.rows(f"SELECT id FROM quarantine WHERE source_id = {begun} ORDER BY id")]


def state(house: Any, *entries: int) -> list[str]:
    return [house.rows(f"SELECT state FROM quarantine WHERE id = {entry}")[0][0] for entry in entries]


def audited(house: Any) -> list[str]:
    return [
        kind for (kind,) in house.rows("SELECT kind FROM audit WHERE substr(kind, 1, 11) = 'quarantine.' ORDER BY seq")
    ]


async def test_M1_keys_are_returned_once_an_order_and_are_nobodys_from_then_on(house: Any, supplier: Supplier) -> None:
    first = bought(house, "sold out", "sold out too")
    second = bought(house, "sold out as well", order="ORD-2")
    assert house.quarantine.show(first[0])["supplier_takes"] == ["return", "complain"]
    outcomes = await house.quarantine.give_back([*first, *second], "operator")
    assert supplier.asked == [
        ("return_keys", "ORD-1", ["ORD-1-K1", "ORD-1-K2"]),
        ("return_keys", "ORD-2", ["ORD-2-K1"]),
    ]
    assert [outcome["state"] for outcome in outcomes] == ["returned"] * 3
    assert state(house, *first, *second) == ["returned"] * 3
    assert audited(house) == ["quarantine.return_sent", "quarantine.returned"] * 2
    for decide in (
        house.quarantine.release(first[0], "opaque", None, "me"),
        house.quarantine.give_back(first, "me"),
        house.quarantine.drop(first[0], "why", "me"),
        house.quarantine.settle(first[0], taken=False, by="me"),
    ):
        with pytest.raises(ConflictError, match="returned already"):
            await decide
    assert len(supplier.asked) == 2
    assert house.verified() > 0


async def test_what_was_sent_is_told_though_a_later_order_was_decided_meanwhile(house: Any, supplier: Supplier) -> None:
    first, second = bought(house, "sold out"), bought(house, "sold out too", order="ORD-2")
    supplier.before = lambda: house.tamper(f"UPDATE quarantine SET state = 'dropped' WHERE id = {second[0]}")
    outcomes = await house.quarantine.give_back([*first, *second], "me")
    assert [outcome["state"] for outcome in outcomes] == ["returned", "dropped"]
    assert "dropped already" in outcomes[1]["why"]
    assert supplier.asked == [("return_keys", "ORD-1", ["ORD-1-K1"])]


async def test_what_was_complained_of_is_told_though_a_later_order_was_meanwhile(
    house: Any, supplier: Supplier
) -> None:
    first, second = bought(house, "sold out"), bought(house, "sold out too", order="ORD-2")
    supplier.before = lambda: house.tamper(f"UPDATE quarantine SET complained_at = 1 WHERE id = {second[0]}")
    outcomes = await house.quarantine.complain([*first, *second], "no key", "me")
    assert [outcome["complaint"] for outcome in outcomes] == ["claim-1", None]
    assert len(supplier.asked) == 1


async def test_M1_the_intent_is_committed_before_anything_is_sent(house: Any, supplier: Supplier) -> None:
    (entry,) = bought(house, "sold out")
    seen: list[str] = []
    supplier.before = lambda: seen.extend(state(house, entry))
    await house.quarantine.give_back([entry], "me")
    assert seen == ["returning"]


@pytest.mark.parametrize("error", [NotSent("x"), Refused("x"), Auth("x"), RateLimited("x")], ids=lambda e: e.code)
async def test_a_return_that_certainly_did_not_happen_leaves_the_key_ours(
    house: Any, supplier: Supplier, error: Exception
) -> None:
    entries = bought(house, "sold out", "odd-key-1")

    def refuse() -> None:
        raise error

    supplier.before = refuse
    outcomes = await house.quarantine.give_back(entries, "me")
    assert [outcome["state"] for outcome in outcomes] == ["held", "held"]
    assert state(house, *entries) == ["held", "held"]
    assert audited(house) == ["quarantine.return_sent", "quarantine.return_refused"]
    assert await house.quarantine.release(entries[1], "opaque", None, "me")


UNSURE = [Transient("x"), BadResponse("x"), OutcomeUnknown("x"), ValueError("x"), asyncio.CancelledError()]


async def unanswered(house: Any, supplier: Supplier, error: BaseException) -> int:
    """The harness: the supplier takes a key back, and its answer is lost."""
    (entry,) = bought(house, "odd-key-1")

    def lose() -> None:
        raise error

    supplier.after = lose
    try:
        outcomes = await house.quarantine.give_back([entry], "me")
    except asyncio.CancelledError:
        outcomes = [{"state": "returning"}]
    assert supplier.taken == {"ORD-1-K1"}
    assert [outcome["state"] for outcome in outcomes] == ["returning"]
    for sell in (
        house.quarantine.release(entry, "opaque", None, "me"),
        asyncio.to_thread(_reread_all, house),
    ):
        with contextlib.suppress(ConflictError):
            assert await sell == 0, "a key was sold that is the supplier's again"
    assert house.keys("steam-1") == [], "a key was sold that is the supplier's again"
    return entry


def _reread_all(house: Any) -> int:
    return int(house.quarantine.reread(quarantine_module.Filter(product="steam-1"), by="me", fmt="opaque").keys)


@pytest.mark.parametrize("error", UNSURE, ids=lambda error: type(error).__name__)
async def test_M1_a_return_without_an_answer_is_unknown_until_a_person_settles_it(
    house: Any, supplier: Supplier, error: BaseException
) -> None:
    entry = await unanswered(house, supplier, error)
    assert house.quarantine.counts() == {UNANSWERED: 1}
    assert [item["id"] for item in house.quarantine.page(state="returning")["items"]] == [str(entry)]
    with pytest.raises(ConflictError, match="returning already"):
        await house.quarantine.give_back([entry], "me")  # never offered a second time by mistake
    assert await house.quarantine.settle(entry, taken=True, by="me") == "returned"
    assert audited(house) == ["quarantine.return_sent", "quarantine.returned"]
    with pytest.raises(ConflictError):
        await house.quarantine.settle(entry, taken=False, by="me")


async def test_planted_bug_an_unanswered_return_that_counts_as_refused_is_caught(
    house: Any, supplier: Supplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine_module, "_CERTAINLY_NOT", (*quarantine_module._CERTAINLY_NOT, Transient))
    with pytest.raises(AssertionError):
        await unanswered(house, supplier, Transient("x"))


async def test_what_is_settled_as_kept_is_ours_again(house: Any, supplier: Supplier) -> None:
    entry = await unanswered(house, supplier, Transient("x"))
    assert await house.quarantine.settle(entry, taken=False, by="me") == "held"
    await house.quarantine.release(entry, "opaque", None, "me")
    assert house.keys("steam-1") == ["odd-key-1"]


@pytest.mark.parametrize("commits", [1, 2])
@pytest.mark.parametrize("acknowledged", [True, False])
async def test_M1_a_kill_around_a_return_never_sells_what_went_back(
    make_house: Callable[..., Any], commits: int, acknowledged: bool
) -> None:
    house, supplier = make_house(), Supplier()
    house.quarantine._upstream = {"alpha": supplier}.get
    (entry,) = bought(house, "odd-key-1")
    house.kill_after(commits, acknowledged=acknowledged)
    with contextlib.suppress(UnavailableError):
        await house.quarantine.give_back([entry], "me")
    house.stop()
    house = make_house()
    (now,) = state(house, entry)
    if supplier.taken:
        assert now in {"returning", "returned"}
        with pytest.raises(ConflictError):
            await house.quarantine.release(entry, "opaque", None, "me")
    else:
        assert now in {"held", "returning"}
    assert house.verified() > 0


async def test_each_key_gets_the_outcome_that_the_supplier_names(house: Any, supplier: Supplier) -> None:
    entries = bought(house, "one", "two", "three")
    supplier.answer = {"ORD-1-K1": True, "ORD-1-K2": False, "unheard-of": True}
    outcomes = await house.quarantine.give_back(entries, "me")
    assert {outcome["id"]: outcome["state"] for outcome in outcomes} == dict(
        zip(map(str, entries), ["returned", "held", "returning"], strict=True)
    )
    assert state(house, *entries) == ["returned", "held", "returning"]


async def test_what_cannot_go_back_is_refused_with_a_clear_word_before_anything_is_sent(
    house: Any, payload: Any, supplier: Supplier
) -> None:
    good = bought(house, "sold out")
    house.take(payload("steam-1", "fed by a folder\n"), supplier="alpha")
    house.take(payload("steam-1", "imported by hand\n", label="b.txt"), supplier="import")
    house.take(payload("steam-1", "from one who left\n", label="c.txt"), supplier="gone")
    by_text = {item["label"]: int(item["id"]) for item in house.quarantine.page()["items"]}
    for label, why in (
        ("keys.txt", "under which order"),
        ("b.txt", "imported by hand"),
        ("c.txt", "gone is not in the configuration"),
    ):
        entry = by_text[label]
        for call in (
            house.quarantine.give_back([*good, entry], "me"),
            house.quarantine.complain([*good, entry], "it is no key", "me"),
        ):
            with pytest.raises(NotReturnableError, match=why):
                await call
        assert house.quarantine.show(entry)["supplier_takes"] == []
    supplier.capabilities = frozenset({"pull_keys"})
    with pytest.raises(NotReturnableError, match="alpha takes nothing back"):
        await house.quarantine.give_back([by_text["keys.txt"]], "me")
    with pytest.raises(NotReturnableError, match="alpha takes no complaints"):
        await house.quarantine.complain([by_text["keys.txt"]], "it is no key", "me")
    with pytest.raises(NotFoundError):
        await house.quarantine.give_back([1], "me")
    assert supplier.asked == []
    assert set(state(house, *good, *by_text.values())) == {"held"}


async def test_two_operators_return_and_release_one_entry_and_one_of_them_is_refused(
    house: Any, supplier: Supplier
) -> None:
    for _ in range(5):
        (entry,) = bought(house, f"odd-key-{house.ids.next()}", order=f"ORD-{house.ids.next()}")
        returned, released = await asyncio.gather(
            house.quarantine.give_back([entry], "me"),
            house.quarantine.release(entry, "opaque", None, "you"),
            return_exceptions=True,
        )
        assert isinstance(returned, ConflictError) != isinstance(released, ConflictError), (returned, released)
    assert len(house.keys("steam-1")) + len(supplier.taken) == 5


async def test_a_supplier_that_sells_a_key_twice_can_be_told_so(house: Any, payload: Any, supplier: Supplier) -> None:
    """A duplicate carries the supplier's ids as what could not be read does (P3)."""
    house.take(payload("opaque-1", "key-0001\n"), supplier="beta")
    begun = bought(house, "prose", product="opaque-1")
    ((source_id, name),) = house.rows(
        f"SELECT s.id, s.name FROM source s JOIN quarantine q ON q.source_id = s.id WHERE q.id = {begun[0]}"
    )
    fields = {"code": "key-0001"}
    origin = Origin(source_id, name, "opaque-1")
    keys, held = house.vault.seal(
        origin, [Slice(2, b"key-0001", CardKey(fields, fields, "key-0001"), dedupe_form(fields), "", "", "ORD-1-K9")]
    )
    house.writer.call(house.vault.intake, Chunk(origin, keys, held, 1, 2, 2))
    (item,) = [item for item in house.quarantine.page()["items"] if item["reason"] == "duplicate"]
    assert (item["first_supplier"], item["order_id"], item["supplier_key"]) == ("beta", "ORD-1", "ORD-1-K9")
    (told,) = await house.quarantine.complain([int(item["id"])], "somebody else sold this before", "me")
    assert told == {"id": item["id"], "complaint": "claim-1", "why": ""}
    assert supplier.asked == [("complain", "ORD-1", "somebody else sold this before")]


async def test_a_complaint_is_recorded_before_it_is_sent_and_sent_once(
    house: Any, supplier: Supplier, assert_unseen: Any
) -> None:
    entries = bought(house, "one", "two")
    seen: list[Any] = []
    supplier.before = lambda: seen.extend(house.rows("SELECT complained_at IS NULL, complaint FROM quarantine"))
    outcomes = await house.quarantine.complain(entries, f"these are no keys {CANARY}", "me")
    assert [bool(row[0]) for row in seen] == [False, False]
    assert [outcome["complaint"] for outcome in outcomes] == ["claim-1", "claim-1"]
    assert len(supplier.asked) == 1  # one order, one complaint
    shown = house.quarantine.show(entries[0])
    assert (shown["complaint"], shown["state"]) == ("claim-1", "held")
    assert shown["complained_at"]
    with pytest.raises(ConflictError, match="complained of already"):
        await house.quarantine.complain(entries[:1], "again", "me")
    await house.quarantine.complain(entries[:1], "again", "me", again=True)
    assert len(supplier.asked) == 2
    assert_unseen(CANARY, house.everything())  # what was written to the supplier is not kept


async def test_a_complaint_that_was_refused_can_be_made_again_and_one_without_an_answer_cannot(
    house: Any, supplier: Supplier
) -> None:
    (entry,) = bought(house, "one")

    def fail(error: Exception) -> Callable[[], None]:
        def raising() -> None:
            raise error

        return raising

    supplier.before = fail(Refused("no"))
    (told,) = await house.quarantine.complain([entry], "text", "me")
    assert (told["complaint"], "no" in told["why"]) == (None, True)
    supplier.before = fail(Transient("late"))
    (told,) = await house.quarantine.complain([entry], "text", "me")
    assert "no answer" in told["why"]
    with pytest.raises(ConflictError, match="complained of already"):
        await house.quarantine.complain([entry], "text", "me")
    assert audited(house) == [
        "quarantine.complaint_sent",
        "quarantine.complaint_refused",
        "quarantine.complaint_sent",
    ]


async def test_a_complaint_that_was_made_stays_made_when_another_one_is_refused(house: Any, supplier: Supplier) -> None:
    (entry,) = bought(house, "one")
    await house.quarantine.complain([entry], "text", "me")

    def refuse() -> None:
        raise Refused("no")

    supplier.before = refuse
    await house.quarantine.complain([entry], "text", "me", again=True)
    assert house.quarantine.show(entry)["complaint"] == "claim-1"
    with pytest.raises(ConflictError, match="complained of already"):
        await house.quarantine.complain([entry], "text", "me")


async def test_M1_another_spelling_of_a_key_of_the_same_order_is_not_given_back(house: Any, supplier: Supplier) -> None:
    """The supplier would take the key back, which lies in the vault under its first spelling, or is sold."""
    (entry,) = bought(house, "ABCD-EFGH")
    house.tamper(f"UPDATE quarantine SET reason = 'respelled', first_source_id = source_id WHERE id = {entry}")
    assert house.quarantine.show(entry)["supplier_takes"] == ["complain"]
    with pytest.raises(NotReturnableError, match="may be sold"):
        await house.quarantine.give_back([entry], "me")
    assert supplier.asked == []


# --- over the supplier's own link -------------------------------------------------------------------------------------


class Returns(Adapter):
    """A supplier whose protocol has returns: POST /orders/ID/return."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.http = context.connect("https://shop.example/api")

    async def return_keys(self, order_id: str, key_ids: Sequence[str]) -> Mapping[str, bool]:
        answer = await self.http.post(f"/orders/{order_id}/return", json={"keys": list(key_ids)})
        return {str(item["id"]): item["status"] == "RETURNED" for item in answer.items("keys")}


@pytest.mark.parametrize(
    ("play", "state"),
    [
        (lambda _: Reply(body=b'{"keys": [{"id": "ORD-1-K1", "status": "RETURNED"}]}'), "returned"),
        (lambda _: Reply(body=b'{"keys": [{"id": "ORD-1-K1", "status": "REFUSED"}]}'), "held"),
        (Cut("refused"), "held"),
        (Cut("timeout"), "returning"),
        (Cut("reset"), "returning"),
        (lambda _: Reply(status=503), "returning"),
        (lambda _: Reply(status=401), "held"),
        (lambda _: Reply(status=429), "held"),
        (lambda _: Reply(body=b"<html>"), "returning"),
        (lambda _: Reply(body=b"{}"), "returning"),
    ],
)
async def test_M1_what_a_supplier_answers_over_http_decides_and_is_asked_for_once(
    house: Any, play: Any, state: str
) -> None:
    sent: list[Sent] = []

    def played(request: Sent) -> Reply:
        sent.append(request)
        if isinstance(play, Cut):
            raise play
        reply: Reply = play(request)
        return reply

    client = Client("alpha", play=played)
    link = Link(Returns(Context("alpha", Settings(), ZoneInfo("UTC"), client)), client)
    house.quarantine._upstream = {"alpha": link}.get
    try:
        (entry,) = bought(house, "sold out")
        (outcome,) = await house.quarantine.give_back([entry], "me")
    finally:
        await asyncio.to_thread(link.close)
    assert (outcome["state"], len(sent)) == (state, 1)
    assert house.rows(f"SELECT state FROM quarantine WHERE id = {entry}") == [(state,)]
