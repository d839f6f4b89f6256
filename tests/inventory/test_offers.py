"""P1: whatever a supplier lists, the last good data stays until what is new is known to be good."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from syncd.adapter import BadResponse, Money, Offer, Page, Stock, Transient
from syncd.daemon import SWITCH_S
from syncd.errors import ConflictError, LeaseLostError
from syncd.inventory import listing, offers
from syncd.inventory.offers import Offers, Taken, Task
from syncd.store import leases
from syncd.store.leases import Lease

SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def offer(sku: str, price: str | None = "10.00", stock: Any = 7, currency: str = "CNY", **more: Any) -> Offer:
    held = stock if isinstance(stock, Stock) else Stock.exact(stock)
    return Offer(sku, f"Title of {sku}", None if price is None else Money(Decimal(price), currency), held, **more)


def many(count: int, **more: Any) -> list[Offer]:
    return [offer(f"sku-{number:04d}", **more) for number in range(count)]


def paged(listed: Sequence[Offer], size: int = 7, **more: Any) -> list[Page]:
    return [Page(listed[start : start + size], **more) for start in range(0, len(listed), size)] or [Page([], **more)]


Shown = dict[str, tuple[str | None, str | None, str, int | None, bool]]


def shown(listed: Sequence[Offer]) -> Shown:
    return {
        one.sku: (
            one.price and str(one.price.amount),
            one.price and one.price.currency,
            one.stock.kind,
            one.stock.quantity,
            one.for_sale,
        )
        for one in listed
    }


class Shelf:
    """One supplier's listing over a house: `run` takes what it is given as a run of its own."""

    def __init__(self, house: Any, name: str = "alpha") -> None:
        self.house, self.name = house, name
        self.offers: Offers = house.offers
        self.asked: list[datetime | None] = []
        house.writer.call(leases.ENSURE, [name])

    def begin(self) -> Lease:
        self.house.tamper("UPDATE supplier SET leased_until = NULL")
        wanted = leases.Acquire(self.name, "test", 60.0, self.house.ids.next(), "test", only_due=False)
        lease = self.house.writer.call(leases.ACQUIRE, wanted)
        assert lease is not None
        return lease

    def run(self, *pages: Page, incremental: bool = False, fails: Exception | None = None, **more: Any) -> Taken:
        def give(since: datetime | None, _stopping: Callable[[], bool]) -> Iterator[Page]:
            self.asked.append(since)
            yield from pages
            if fails:
                raise fails

        task = Task(self.name, self.begin(), 1, give, incremental=incremental, **more)
        return self.offers.take(task)

    def listed(self, listed: Sequence[Offer], **more: Any) -> Taken:
        return self.run(*paged(listed), **more)

    def stored(self) -> Shown:
        rows = self.house.rows(
            "SELECT sku, price, currency, stock_kind, stock_quantity, for_sale FROM offer"
            f" WHERE supplier = '{self.name}' AND removed_at IS NULL"
        )
        return {row[0]: (*row[1:5], bool(row[5])) for row in rows}

    def audited(self) -> list[str]:
        kinds = [kind for (kind,) in self.house.rows("SELECT kind FROM audit ORDER BY seq")]
        return [kind for kind in kinds if kind.startswith(("listing", "offers"))]

    def counted(self, line: str) -> bool:
        return line in self.house.metrics.render().decode().splitlines()


@pytest.fixture
def shelf(house: Any) -> Shelf:
    return Shelf(house)


# --- what is written --------------------------------------------------------------------------------------------------


def test_only_changes_are_written(shelf: Shelf) -> None:
    first = shelf.listed(many(20))
    assert (first.state, first.seen, first.changed, first.removed) == ("taken", 20, 20, 0)
    assert shelf.stored() == shown(many(20))
    commits = shelf.house.writer.commits
    again = shelf.listed(many(20))
    assert (again.seen, again.changed, again.removed) == (20, 0, 0)
    assert shelf.house.writer.commits - commits == 3  # the lease, the listing's row, a look at what may be forgotten
    changed = [*many(19), offer("sku-0019", price="11.00")]
    assert shelf.listed(changed).changed == 1
    assert shelf.stored() == shown(changed)


def test_every_field_that_matters_is_a_change_and_the_supplier_touching_it_is_none(shelf: Shelf) -> None:
    plain = offer("a")
    assert shelf.listed([plain]).changed == 1
    assert shelf.listed([dataclasses.replace(plain, updated_at=datetime.now(UTC))]).changed == 0
    for change in (
        {"title": "x"},
        {"stock": Stock.unknown()},
        {"for_sale": False},
        {"min_quantity": 2},
        {"max_quantity": 5},
        {"step": 2},
        {"tiers": ((10, Money(Decimal("9.00"), "CNY")),)},
        {"region": "CN"},
        {"group": "games"},
        {"data": {"goods": "1"}},
    ):
        plain = dataclasses.replace(plain, **change)
        assert shelf.listed([plain]).changed == 1, change
        assert shelf.listed([plain]).changed == 0


def test_an_offer_that_comes_back_is_listed_again(shelf: Shelf) -> None:
    shelf.listed(many(4))
    assert shelf.listed(many(3)).removed == 1
    assert set(shelf.stored()) == {"sku-0000", "sku-0001", "sku-0002"}
    assert shelf.listed(many(4)).changed == 1
    assert shelf.stored() == shown(many(4))
    assert shelf.house.rows("SELECT offers FROM listing") == [(4,)]


def test_an_offer_that_was_removed_long_ago_is_forgotten_with_its_history(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "_FORGET", 2)
    shelf.listed(many(10))
    shelf.listed([dataclasses.replace(one, stock=Stock.exact(0)) for one in many(10)[:5]] + many(10)[5:])
    assert shelf.listed(many(10)[5:]).removed == 5
    assert shelf.house.rows("SELECT count(*) FROM offer_history") == [(5,)]
    shelf.house.tamper(f"UPDATE offer SET removed_at = removed_at - {offers.KEPT_S + 1} WHERE sku < 'sku-0004'")
    shelf.listed(many(10)[5:])
    assert shelf.house.rows("SELECT sku FROM offer ORDER BY sku") == [(f"sku-{n:04d}",) for n in range(4, 10)]
    assert shelf.house.rows("SELECT sku FROM offer_history") == [("sku-0004",)]


def test_the_history_is_of_prices_and_of_whether_there_was_any_and_never_grows(shelf: Shelf) -> None:
    shelf.listed([offer("a", stock=7)])
    shelf.listed([offer("a", stock=6)])  # one unit sold is no history
    assert shelf.house.rows("SELECT count(*) FROM offer_history") == [(0,)]
    shelf.listed([offer("a", price="11.00", stock=6)])
    shelf.listed([offer("a", price="11.00", stock=0)])
    history = "SELECT price, stock_quantity FROM offer_history ORDER BY slot"
    assert shelf.house.rows(history) == [("10.00", 6), ("11.00", 6)]
    for number in range(40):
        shelf.listed([offer("a", price=f"{10 + number % 2}.50")])
    assert shelf.house.rows("SELECT count(*) FROM offer_history") == [(offers.HISTORY,)]


def test_more_pages_and_rows_than_one_statement_or_chunk_takes(shelf: Shelf) -> None:
    first = many(3000)
    assert shelf.run(*paged(first, 1000)).changed == 3000
    assert shelf.stored() == shown(first)
    other = [dataclasses.replace(one, title="new") for one in first[:2500]]
    taken = shelf.run(*paged(other, 700))
    assert (taken.changed, taken.removed) == (2500, 500)
    assert shelf.house.rows("SELECT count(*) FROM offer WHERE removed_at IS NULL AND title = 'new'") == [(2500,)]


# --- listings that cannot be one --------------------------------------------------------------------------------------

GOOD = many(20)


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        (paged([*GOOD, offer("sku-0003", price="9.00")]), "names sku-0003 twice"),
        ([*paged(GOOD), paged(GOOD)[0]], "a page of the listing came twice"),
        ([Page(GOOD[:10], total=20)], "ended after 10 of 20 offers"),
        ([Page([]) for _ in range(20_000)], "does not end"),
    ],
)
def test_P1_a_listing_that_cannot_be_one_is_refused_whole(shelf: Shelf, pages: list[Page], said: str) -> None:
    shelf.listed(GOOD)
    with pytest.raises(BadResponse, match=said):
        shelf.run(*pages)
    assert shelf.stored() == shown(GOOD)
    assert shelf.house.rows("SELECT pending FROM listing") == [(None,)]


def test_P1_a_huge_listing_is_refused(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "_MOST_OFFERS", 50)
    shelf.listed(GOOD)
    with pytest.raises(BadResponse, match="does not end"):
        shelf.listed(many(60))
    assert shelf.stored() == shown(GOOD)


@pytest.mark.parametrize("error", [BadResponse("it is HTML"), Transient("cut off"), BadResponse("a negative stock")])
def test_P1_a_listing_that_fails_half_way_changes_nothing(shelf: Shelf, error: Exception) -> None:
    """HTML, a truncated page, a negative stock: the link or the values themselves raise, in the middle of a listing."""
    shelf.listed(GOOD)
    before = shelf.house.rows("SELECT watermark, good_at FROM listing")
    with pytest.raises(type(error)):
        shelf.run(*paged(many(10, stock=0)), fails=error)
    assert shelf.stored() == shown(GOOD)
    assert shelf.house.rows("SELECT watermark, good_at FROM listing") == before


def test_P1_a_negative_stock_is_no_value() -> None:
    with pytest.raises(BadResponse):
        offer("a", stock=-1)


def test_a_run_that_is_stopped_writes_nothing(shelf: Shelf) -> None:
    shelf.listed(GOOD)
    assert shelf.run(*paged(many(3)), stopping=lambda: True).state == "interrupted"
    assert shelf.stored() == shown(GOOD)


def test_what_no_database_can_hold_is_cleaned_or_refused(shelf: Shelf) -> None:
    strange = dataclasses.replace(offer("a", stock=10**30, max_quantity=10**30), title="A\0B\nC\x1b[2J 充值卡")
    assert shelf.listed([strange]).changed == 1
    assert shelf.house.rows("SELECT title, stock_quantity FROM offer") == [("A B C [2J 充值卡", 10**15)]
    assert shelf.listed([strange]).changed == 0
    with pytest.raises(BadResponse):
        shelf.listed([offer("a\0b")])


# --- a listing that looks wrong ---------------------------------------------------------------------------------------

SUSPICIOUS: dict[str, tuple[list[Offer], str, str]] = {
    "empty": ([], "drop", "the listing is empty, and 20 offers were known"),
    "most are gone": (many(9), "drop", "11 of 20 offers are gone or out of stock"),
    "all are out of stock": (many(20, stock=0), "drop", "20 of 20 offers are gone or out of stock"),
    "none is for sale": (many(20, for_sale=False), "drop", "20 of 20 offers are gone or out of stock"),
    "coarsely out": (many(20, stock=Stock.coarse("out")), "drop", "20 of 20 offers are gone or out of stock"),
    "x 0.01": (many(20, price="0.10"), "price", "20 of 20 prices jumped (x0.01)"),
    "x 100": (many(20, price="1000.00"), "price", "20 of 20 prices jumped (x100)"),
    "for nothing": (many(20, price="0"), "price", "20 of 20 prices jumped (x0)"),
    "in dollars": (many(20, currency="USD"), "currency", "20 of 20 offers have another currency than before"),
}


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_P1_a_suspicious_listing_is_held_and_taken_when_a_second_run_confirms_it(shelf: Shelf, name: str) -> None:
    wrong, kind, said = SUSPICIOUS[name]
    shelf.listed(GOOD)
    held = shelf.listed(wrong)
    assert (held.state, held.changed, held.removed) == ("held", 0, 0)
    assert held.problem is not None
    assert said in held.problem
    assert "syncd offers accept alpha" in held.problem
    assert shelf.stored() == shown(GOOD)
    assert shelf.audited() == ["listing.held"]
    assert shelf.counted(f'syncd_listing_alarms_total{{kind="{kind}",supplier="alpha"}} 1.0')
    again = shelf.listed(wrong)
    assert (again.state, again.problem) == ("taken", None)
    assert shelf.stored() == shown(wrong)
    assert shelf.audited() == ["listing.held", "listing.accepted"]
    assert shelf.house.rows("SELECT pending, accepted_at FROM listing") == [(None, None)]
    assert shelf.listed(wrong).changed == 0


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_P1_a_good_listing_after_a_suspicious_one_ends_the_alarm(shelf: Shelf, name: str) -> None:
    shelf.listed(GOOD)
    shelf.listed(SUSPICIOUS[name][0])
    assert shelf.listed(GOOD).state == "taken"
    assert shelf.house.rows("SELECT pending FROM listing") == [(None,)]
    assert shelf.listed(SUSPICIOUS[name][0]).state == "held"  # and what was seen before confirms nothing now


def test_P1_another_suspicious_listing_does_not_confirm_the_first(shelf: Shelf) -> None:
    shelf.listed(GOOD)
    for wrong in ([], many(20, price="0.10"), many(20, price="0.20"), many(20, stock=0), [], many(8), []):
        assert shelf.listed(wrong).state == "held", wrong
    assert shelf.stored() == shown(GOOD)


def test_P1_a_few_that_go_and_a_few_that_jump_are_no_mass(shelf: Shelf) -> None:
    shelf.listed(GOOD)
    assert shelf.listed(many(10)).removed == 10  # half of them, no more
    assert shelf.listed(many(6)).state == "taken"  # four of ten


def test_unknown_is_not_zero(shelf: Shelf) -> None:
    shelf.listed(GOOD)
    unknown = many(20, stock=Stock.unknown())
    assert shelf.listed(unknown).state == "taken"
    assert shelf.stored() == shown(unknown)


def test_P1_one_price_that_jumps_holds_its_own_offer_only(shelf: Shelf) -> None:
    shelf.listed(GOOD)
    new = [offer("sku-0000", price="0.10", stock=99), *many(20, stock=5)[1:]]
    taken = shelf.listed(new)
    assert (taken.state, taken.changed, taken.problem) == ("taken", 19, None)
    assert taken.left_out is not None
    assert "is kept of sku-0000: it jumped" in taken.left_out
    assert shelf.stored() == shown([GOOD[0], *new[1:]])
    assert shelf.house.rows("SELECT sku, held FROM offer WHERE held IS NOT NULL") == [("sku-0000", "0.10 CNY")]
    assert shelf.house.rows("SELECT held_offers FROM listing") == [(1,)]
    assert shelf.audited() == ["offers.held"]
    assert shelf.counted('syncd_listing_alarms_total{kind="offer",supplier="alpha"} 1.0')
    again = [offer("sku-0000", price="0.09", stock=99), *new[1:]]
    assert shelf.listed(again).left_out  # another price confirms nothing
    assert shelf.listed(again).left_out is None
    assert shelf.stored() == shown(again)
    assert shelf.house.rows("SELECT held_offers FROM listing") == [(0,)]


def test_P1_a_drop_that_is_confirmed_confirms_no_price(shelf: Shelf) -> None:
    shelf.listed(GOOD)
    few = many(8)
    assert shelf.listed(few).state == "held"
    taken = shelf.listed([offer("sku-0000", price="0.10"), *few[1:]])
    assert (taken.state, taken.removed) == ("taken", 12)
    assert shelf.stored() == shown(few)
    assert shelf.house.rows("SELECT held FROM offer WHERE held IS NOT NULL") == [("0.10 CNY",)]


def test_P1_an_offer_whose_price_comes_back_is_no_longer_held(shelf: Shelf) -> None:
    shelf.listed(GOOD)
    shelf.listed([offer("sku-0000", price="99.00"), *GOOD[1:]])
    assert shelf.listed(GOOD).left_out is None
    assert shelf.house.rows("SELECT count(*) FROM offer WHERE held IS NOT NULL") == [(0,)]
    assert shelf.listed([offer("sku-0000", price="99.00"), *GOOD[1:]]).left_out


def test_P1_a_lively_supplier_confirms_what_is_nearly_the_same(shelf: Shelf) -> None:
    shelf.listed(many(1000))
    assert shelf.listed(many(100)).state == "held"
    assert shelf.listed(many(105)).state == "taken"


# --- the operator -----------------------------------------------------------------------------------------------------


def test_P1_the_operator_accepts_what_he_saw_and_nothing_worse(shelf: Shelf) -> None:
    shelf.listed(GOOD)
    shelf.listed(many(20, price="0.10"))
    shelf.house.writer.call(shelf.offers.ACCEPT, ("alpha", "user root"))
    assert shelf.listed(many(20, price="0.01")).state == "held"  # worse
    shelf.house.writer.call(shelf.offers.ACCEPT, ("alpha", "user root"))
    assert shelf.listed(many(20, price="0.0102")).state == "taken"  # another price, about the same
    assert shelf.audited() == [
        "listing.held",
        "listing.sanctioned",
        "listing.held",
        "listing.sanctioned",
        "listing.accepted",
    ]


def test_P1_an_operator_who_accepts_releases_offers_that_are_held_alone(shelf: Shelf) -> None:
    shelf.listed(GOOD)
    shelf.listed([offer("sku-0000", price="0.10"), *GOOD[1:]])
    shelf.house.writer.call(shelf.offers.ACCEPT, ("alpha", "user root"))
    new = [offer("sku-0000", price="0.105"), *GOOD[1:]]
    assert shelf.listed(new).left_out is None
    assert shelf.stored() == shown(new)


def test_there_is_nothing_to_accept(shelf: Shelf) -> None:
    with pytest.raises(ConflictError, match="nothing of supplier alpha is held"):
        shelf.house.writer.call(shelf.offers.ACCEPT, ("alpha", "user root"))
    shelf.listed(GOOD)
    with pytest.raises(ConflictError):
        shelf.house.writer.call(shelf.offers.ACCEPT, ("alpha", "user root"))


# --- changes since a watermark ----------------------------------------------------------------------------------------


def test_the_watermark_is_the_start_of_the_run_read_with_an_overlap(shelf: Shelf) -> None:
    begun = time.time()
    shelf.listed(GOOD, incremental=True)
    assert shelf.asked == [None]
    shelf.run(Page([offer("sku-0001", price="9.00")], incremental=True), incremental=True)
    since = shelf.asked[-1]
    assert since is not None
    assert since.tzinfo is UTC
    assert begun - 301 <= since.timestamp() <= begun - 299
    assert shelf.stored() == shown([GOOD[0], offer("sku-0001", price="9.00"), *GOOD[2:]])


def test_P1_an_incremental_page_removes_nothing(shelf: Shelf) -> None:
    shelf.listed(GOOD, incremental=True)
    for page in (Page([], incremental=True), Page([GOOD[0]], incremental=True), Page([GOOD[1]])):
        assert shelf.run(page, incremental=True).removed == 0  # the last was asked for changes, and forgot to say so
        assert shelf.asked[-1] is not None
    assert shelf.stored() == shown(GOOD)
    assert shelf.run(Page([GOOD[0]], incremental=True)).removed == 0  # asked for all, and got changes
    assert shelf.stored() == shown(GOOD)


def test_a_full_listing_comes_once_a_day_by_hand_and_to_confirm(shelf: Shelf) -> None:
    shelf.listed(GOOD, incremental=True)
    shelf.listed(GOOD, incremental=True, by_hand=True)
    assert shelf.asked[-1] is None
    shelf.listed(GOOD, incremental=True)
    assert shelf.asked[-1] is not None
    shelf.house.tamper("UPDATE listing SET full_at = full_at - 86400")
    assert shelf.listed([], incremental=True).state == "held"
    assert shelf.asked[-1] is None
    assert shelf.listed([], incremental=True).state == "taken"
    assert shelf.asked[-1] is None


def test_P1_a_price_that_is_unknown_for_a_run_hides_no_jump(shelf: Shelf) -> None:
    shelf.listed(many(20))
    unknown = [*many(19), offer("sku-0019", price=None)]
    assert shelf.listed(unknown).changed == 1
    assert shelf.stored() == shown(unknown)
    jumped = [*many(19), offer("sku-0019", price="1000.00")]
    assert "sku-0019" in (shelf.listed(jumped).left_out or "")
    assert shelf.stored() == shown(unknown)
    assert shelf.listed(jumped).left_out is None  # a second run confirms it
    assert shelf.stored() == shown(jumped)


@pytest.mark.parametrize(
    ("tiers", "held"), [({10: "0.50"}, True), ({10: "9.00"}, False), ({}, False), ({2: "0.50"}, True)]
)
def test_P1_a_tier_that_jumps_is_a_price_that_jumps(shelf: Shelf, tiers: dict[int, str], held: bool) -> None:
    def tiered(tiers: dict[int, str]) -> Offer:
        steps = tuple((least, Money(Decimal(each), "CNY")) for least, each in tiers.items())
        return dataclasses.replace(offer("a", price="10.00"), tiers=steps)

    shelf.listed([*many(20), tiered({10: "9.50"})])
    found = shelf.listed([*many(20), tiered(tiers)])
    assert (found.left_out is not None) == held
    assert shelf.listed([*many(20), tiered(tiers)]).left_out is None
    ((data, waits),) = shelf.house.rows("SELECT data, held FROM offer WHERE sku = 'a'")
    assert waits is None
    assert all(each in data for each in tiers.values())


def test_P1_a_price_that_is_held_is_confirmed_by_the_next_run_of_an_incremental_supplier(shelf: Shelf) -> None:
    shelf.listed(many(20), incremental=True)
    jumped = [*many(19), offer("sku-0019", price="1000.00")]
    shelf.run(Page(jumped[19:], incremental=True), incremental=True)
    assert shelf.stored() == shown(many(20))
    shelf.listed(jumped, incremental=True)
    assert shelf.asked[1] is not None
    assert shelf.asked[2] is None  # what changed is listed once only: all is asked for, to see it again
    assert shelf.stored() == shown(jumped)


def test_all_is_listed_anew_under_another_configuration(shelf: Shelf) -> None:
    for config in ("one", "one", "two", "two"):
        shelf.listed(many(20), incremental=True, config=config)
    assert [since is None for since in shelf.asked] == [True, False, True, False]


def test_P1_a_clock_that_was_ahead_for_a_while_keeps_nothing_out(shelf: Shelf) -> None:
    """What it wrote would be later than every reading for a day: prices and stocks would stay, and look fresh."""
    shelf.listed(GOOD, incremental=True)
    shelf.house.tamper("UPDATE offer SET seen_at = seen_at + 86400, refresh_at = seen_at + 86400")
    shelf.house.tamper("UPDATE listing SET watermark = watermark + 86400, full_at = full_at + 86400")
    now = [*many(18, stock=5), *GOOD[18:19]]
    shelf.listed(now, incremental=True)
    assert shelf.asked[-1] is None
    assert shelf.stored() == shown(now)
    claim = offers.Claim("alpha", "sku-0018", 1.0)
    (claimed,) = shelf.house.writer.call(shelf.offers.CLAIM, [claim])
    reading = offers.Reading(claimed, int(time.time()), listing.row_of(offer("sku-0018", stock=0)))
    shelf.house.writer.call(shelf.offers.READ, reading)
    assert shelf.stored()["sku-0018"][3] == 0


def test_P1_changes_that_empty_a_stock_are_held_like_any(shelf: Shelf) -> None:
    shelf.listed(GOOD, incremental=True)
    changes = [Page(many(15, stock=0), incremental=True)]
    assert shelf.run(*changes, incremental=True).state == "held"
    assert shelf.stored() == shown(GOOD)
    assert shelf.listed([*many(15, stock=0), *GOOD[15:]], incremental=True).state == "taken"


# --- leases, kills ----------------------------------------------------------------------------------------------------


def test_K13_a_run_that_was_taken_over_writes_nothing_more(shelf: Shelf) -> None:
    shelf.listed(GOOD)

    def overtaken(_since: datetime | None, _stopping: Callable[[], bool]) -> Iterator[Page]:
        yield from paged(many(20, price="11.00"))
        shelf.begin()

    with pytest.raises(LeaseLostError):
        shelf.offers.take(Task("alpha", shelf.begin(), 1, overtaken, incremental=False))
    assert shelf.stored() == shown(GOOD)


def test_a_later_reading_is_not_undone(shelf: Shelf) -> None:
    """One offer was asked for while the listing was on its way: the listing's older word of it does not count."""
    shelf.listed(GOOD)
    shelf.house.tamper("UPDATE offer SET seen_at = seen_at + 100, stock_quantity = 0 WHERE sku = 'sku-0000'")
    shelf.listed(many(20, stock=5)[:19])
    stored = shelf.stored()
    assert stored["sku-0000"][3] == 0
    assert stored["sku-0001"][3] == 5


@pytest.mark.parametrize("commits", [1, 3, 5])
def test_a_kill_while_it_is_written_is_made_good_by_the_next_run(
    make_house: Any, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    monkeypatch.setattr(offers, "_MIN_CHUNK", 5)
    monkeypatch.setattr(offers, "_MAX_CHUNK", 5)
    house = make_house()
    shelf = Shelf(house)
    shelf.listed(GOOD)
    wrong = many(20, price="0.10")
    shelf.listed(wrong)
    house.kill_after(commits + 1, acknowledged=False)  # the lease is one
    with pytest.raises(Exception, match="store"):
        shelf.listed(wrong)
    house.writer.stop()
    house.database.close()
    fresh = Shelf(make_house())
    fresh.listed(wrong)
    assert fresh.listed(wrong).state == "taken"
    assert fresh.stored() == shown(wrong)


# --- the daemon's loop ------------------------------------------------------------------------------------------------


async def wakings(work: Callable[[], object]) -> int:
    """How often this loop came to its turn while ``work`` ran in a thread."""
    loop = asyncio.get_running_loop()
    busy, woken = loop.run_in_executor(None, work), 0
    while not busy.done():
        await asyncio.sleep(0)
        woken += 1
    await busy
    return woken


@SQLITE
async def test_a_large_listing_does_not_hold_up_the_loop(shelf: Shelf) -> None:
    """How late the loop may be is measured by `make bench`; here, that it gets its turns however busy the machine."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        for price in ("10.00", "10.00", "11.00"):
            pages = paged(many(10_000, price=price), 500)
            assert await wakings(lambda pages=pages: shelf.run(*pages)) > 100
    finally:
        sys.setswitchinterval(before)


async def test_control_a_loop_that_is_held_up_is_seen() -> None:
    def holding() -> None:
        loop.call_soon_threadsafe(time.sleep, 0.3)
        time.sleep(0.2)

    loop = asyncio.get_running_loop()
    loop.call_soon(time.sleep, 0.1)
    assert await wakings(holding) < 100


# --- whatever comes ---------------------------------------------------------------------------------------------------

ANY_OFFERS = st.lists(
    st.builds(
        offer,
        st.sampled_from([f"s{number}" for number in range(30)]),
        st.sampled_from(["10.00", "11.00", "0.10", "1000.00", None]),
        st.sampled_from([0, 1, 50]),
        st.sampled_from(["CNY", "CNY", "CNY", "USD"]),
    ),
    max_size=30,
    unique_by=lambda one: one.sku,
)
LISTINGS = st.lists(
    st.tuples(ANY_OFFERS, st.sampled_from(["good", "again", "cut", "twice", "short", "accept"])), max_size=8
)


@SQLITE
@hypothesis_settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LISTINGS)
def test_P1_what_is_stored_is_always_the_last_good_listing(make_house: Any, plan: Any) -> None:
    if not hasattr(make_house, "kept"):
        make_house.kept = Shelf(make_house())
    play(make_house.kept, plan)


def play(shelf: Shelf, plan: Sequence[tuple[list[Offer], str]]) -> None:
    """Listings good and bad, against a model that knows nothing of hashes, pages and rows."""
    shelf.house.tamper("DELETE FROM offer", "DELETE FROM listing", "DELETE FROM offer_history")
    model: dict[str, Offer] = {}
    once: dict[str, Offer] = {}  # what was removed is remembered
    waits: dict[str, str] = {}
    last: list[Offer] = []
    for drawn, how in plan:
        listed = last if how == "again" else drawn
        last = listed
        pages = paged(listed)
        bad = {
            "cut": {"fails": BadResponse("cut off")},
            "twice": {"fails": None},
        }
        if how == "twice" and listed:
            pages = [*pages, Page([listed[0]])]
        if how == "short":
            pages = [Page(listed, total=len(listed) + 1)]
        if how in {"cut", "short"} or (how == "twice" and listed):
            with pytest.raises(BadResponse):
                shelf.run(*pages, **bad.get(how, {}))
        else:
            if how == "accept":
                with contextlib.suppress(ConflictError):
                    shelf.house.writer.call(shelf.offers.ACCEPT, ("alpha", "test"))
            taken = shelf.run(*pages)
            if taken.state == "taken":
                held = {sku for (sku,) in shelf.house.rows("SELECT sku FROM offer WHERE held IS NOT NULL")}
                for sku in held:
                    assert sku in once, "an offer that nobody knew is held"
                    new = next(one for one in listed if one.sku == sku)
                    assert far(once[sku], new), "a price is held that did not jump"
                    assert waits.get(sku) != str(new.price), "a price that was confirmed is held"
                for one in listed:
                    if one.sku in once and far(once[one.sku], one) and one.sku not in held:
                        single = waits.get(one.sku) is not None or how == "accept" or taken_whole(shelf)
                        assert single, "a price that jumped was taken at once"
                waits = {one.sku: str(one.price) for one in listed if one.sku in held}
                kept = {sku: model[sku] for sku in held if sku in model}
                model = {one.sku: one for one in listed if one.sku not in held} | kept
                once |= model
        assert shelf.stored() == shown(list(model.values()))


def taken_whole(shelf: Shelf) -> bool:
    return shelf.audited()[-1:] == ["listing.accepted"]


def far(old: Offer, new: Offer) -> bool:
    if old.price is None or new.price is None:
        return False
    if old.price.currency != new.price.currency:
        return True
    return not Decimal(1) / 3 <= new.price.amount / old.price.amount <= 3


# --- negative controls: planted bugs that the tests above must see ----------------------------------------------------


@SQLITE
def test_control_an_incremental_page_that_removes_is_seen(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Offers._read

    def full(self: Any, *args: Any) -> bool:
        real(self, *args)
        return True

    monkeypatch.setattr(Offers, "_read", full)
    monkeypatch.setattr(Offers, "_since", lambda *_: None)
    with pytest.raises(AssertionError):
        test_P1_an_incremental_page_removes_nothing(shelf)


@SQLITE
def test_control_an_acceptance_without_confirmation_is_seen(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Offers, "_stands", staticmethod(lambda *_: True))
    with pytest.raises(AssertionError):
        test_P1_another_suspicious_listing_does_not_confirm_the_first(shelf)


@SQLITE
def test_control_a_confirmation_by_anything_is_seen(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing.Pending, "confirmed_by", lambda *_: True)
    with pytest.raises(AssertionError):
        test_P1_another_suspicious_listing_does_not_confirm_the_first(shelf)


@SQLITE
@pytest.mark.parametrize("bug", ["no jump", "writes as it reads", "never removes", "hash of nothing"])
def test_control_the_model_sees_planted_bugs(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    if bug == "no jump":
        monkeypatch.setattr(listing, "jump", lambda *_: ("", 1.0))
    elif bug == "hash of nothing":
        monkeypatch.setattr(offers, "digest", lambda packed: msgspec.msgpack.decode(packed)[0].encode())
    elif bug == "never removes":
        monkeypatch.setattr(listing.Findings, "missing", lambda *_, **__: None)
        monkeypatch.setattr(offers, "_REMOVE", offers._REMOVE + " AND 1 = 0")
    else:

        def reads(self: Any, task: Any, *args: Any) -> bool:
            lease = task.lease
            for page in task.pages(None, task.stopping):
                rows = [listing.row_of(one) for one in page.offers]
                change = offers._Change(lease, 0)
                change.rows = [(*row[:1], b"x", *row[1:], int(time.time()), 0) for row in rows]
                self._writer.call(self._change, change)
            return True

        monkeypatch.setattr(Offers, "_read", reads)

    rng = random.Random(7)
    plans = [
        [
            (
                [
                    offer(f"s{n}", rng.choice(["10.00", "0.10", "11.00"]), rng.choice([0, 5]))
                    for n in sorted(rng.sample(range(30), rng.choice([5, 29, 30])))
                ],
                rng.choice(["good", "again", "cut"]),
            )
            for _ in range(8)
        ]
        for _ in range(20)
    ]

    def all_of_them() -> None:
        for plan in plans:
            play(shelf, plan)

    with pytest.raises(AssertionError):
        all_of_them()
