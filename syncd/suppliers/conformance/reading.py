"""Silver, of the verbs that read: unknown is never zero, and what is not the documented answer is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from syncd.adapter import Auth, Offer, RateLimited
from syncd.suppliers.client import Cut, Reply, Sent
from syncd.suppliers.conformance.checks import Found, check
from syncd.suppliers.conformance.examples import Exchange, ExpectedOffer
from syncd.suppliers.conformance.rig import Kit, Outcome, Unusable, instead
from syncd.suppliers.conformance.script import Place, bytes_of, documented, places, put, reply, tree_of, without

HTML: Final = b"<!DOCTYPE html>\n<html><head><title>Just a moment</title></head><body>502 Bad Gateway</body></html>"
_ASKED: Final = ("check", "get_offer", "get_balance", "get_order", "find_order", "fetch_keys")
"""Verbs that ask, besides the listing."""
UNHEARD_OF: Final = "kit_unheard_of"
_GUESSES: Final = ("stock", "price", "quantity", "qty", "num", "count", "amount", "cost")


def bad_answers(exchange: Exchange) -> Iterator[tuple[str, Any]]:
    """What comes instead of the documented answer, in words and as a Reply or a Cut. All but the documented one."""
    documented_tree, body = tree_of(exchange.body), exchange.body
    for what, data in (
        ("an empty body", b""),
        ("{}", b"{}"),
        ("[]", b"[]"),
        ("null", b"null"),
        ("a text", b'"ok"'),
        ("HTML", HTML),
        ("JSON that is cut off", body[: max(1, len(body) * 2 // 3)]),
        ("bytes that are no UTF-8", b"\xff\xfe\x00{"),
    ):
        if data == b"[]" and isinstance(documented_tree, list):
            continue  # a list without elements is what such a protocol answers when there are none
        if data != body and (documented_tree is None or tree_of(data) != documented_tree):
            yield f"{what} with 200", Reply(200, {"content-type": "application/json"}, data)
    for status in (404, 500, 503):
        yield f"the documented body with {status}", reply(body, status)
    yield "an answer that is cut off", Cut("truncated")


def of_verb(kit: Kit, verb: str) -> list[Exchange]:
    """The exchanges of a verb."""
    return [one for one in kit.examples.exchange if verb in one.verb or not one.verb]


def at(exchange: Exchange) -> Callable[[Sent, Any], bool]:
    """The requests that this exchange answers."""
    return lambda _sent, found: found is exchange


def skus(outcome: Outcome) -> list[str]:
    """Of a listing that came."""
    return [offer.sku for page in outcome.value for offer in page.offers]


# --- the listing ------------------------------------------------------------------------------------------------------


@check("silver", "list_offers")
def the_listing_is_as_documented(kit: Kit) -> Found:
    """A price or a stock that is read from the wrong place costs money on every order."""
    outcome, script = kit.call("list_offers", None)
    yield from ((text, "correct the request, or the exchange") for text in script.unfit)
    if outcome.error is not None:
        yield f"the documented listing ends in {outcome}: {outcome.error}", "read it as it is documented"
        return
    expect, offers = kit.examples.expect, [offer for page in outcome.value for offer in page.offers]
    if expect.offers is None and not expect.offer:
        yield "nothing is expected of the listing", "add [expect] with offers = N and a few of them"
    if expect.offers not in {None, len(offers)}:
        yield f"{len(offers)} offers were found, {expect.offers} are expected", "find all of them, or correct [expect]"
    by_sku = {offer.sku: offer for offer in offers}
    for wanted in expect.offer:
        if wanted.sku not in by_sku:
            yield (
                f"there is no offer {wanted.sku}; found: {', '.join(list(by_sku)[:5])}",
                "make the sku what orders need",
            )
            continue
        yield from ((text, "read it as it is documented") for text in unlike(wanted, by_sku[wanted.sku]))


def unlike(wanted: ExpectedOffer, found: Offer) -> Iterator[str]:
    """In what an offer is not as expected."""
    for name in ("title", "price", "for_sale", "min_quantity", "max_quantity", "region", "group"):
        value, seen = getattr(wanted, name), getattr(found, name)
        if value is not None and value != seen:
            yield f"offer {found.sku}: {name} is {seen}, expected is {value}"
    if wanted.data is not None and wanted.data != dict(found.data):
        yield f"offer {found.sku}: data is {dict(found.data)}, expected is {wanted.data}"
    stock = found.stock
    seen = stock.quantity if stock.kind == "exact" else stock.level if stock.kind == "coarse" else stock.kind
    if wanted.stock is not None and wanted.stock != seen:
        yield f"offer {found.sku}: stock is {seen}, expected is {wanted.stock}"


@check("silver", "list_offers")
def the_last_page_ends(kit: Kit) -> Found:
    """A listing that goes on after its end asks the supplier for nothing, again and again."""
    outcome, script = kit.call("list_offers", None)
    if outcome.error is not None:
        raise Unusable("the listing of the examples does not come to an end", by="the-listing-is-as-documented")
    asked = [(sent.method, sent.url, sent.body) for sent, _ in script.sent]
    if len(set(asked)) < len(asked):
        yield "the same page was asked for twice", "end the listing at its last page"
    if kit.examples.expect.offers and len(asked) > kit.examples.expect.offers + len(of_verb(kit, "list_offers")):
        yield f"{len(asked)} requests for {kit.examples.expect.offers} offers", "ask by page, and end at the last one"


def _pages(kit: Kit) -> list[Exchange]:
    return [one for one in of_verb(kit, "list_offers") if one.verb]


def _one_page(kit: Kit) -> str:
    return "" if len(_pages(kit)) > 1 else "the examples have a listing of one answer"


@check("silver", "list_offers")
def a_repeated_page_is_no_endless_loop(kit: Kit) -> Found:
    """Some suppliers answer every page with the first one: a run that never ends keeps the last stock for ever."""
    for exchange in _pages(kit):
        outcome, script = kit.call("list_offers", None, change=instead(documented(exchange), lambda *_: True))
        if script.endless or outcome.raised(TimeoutError):
            yield (
                f"it went on asking for {len(script.sent)} requests",
                "yield each page as it comes: the core sees repeats",
            )


@check("silver", "list_offers", unless=_one_page)
def half_a_listing_is_none(kit: Kit) -> Found:
    """A listing that ends without an error is taken for complete, and what it lacks for gone."""
    whole = {offer.sku for offer in kit.offers}
    for exchange in _pages(kit)[1:]:
        for what, answer in bad_answers(exchange):
            outcome, _ = kit.call("list_offers", None, change=instead(answer, at(exchange)))
            if outcome.error is None and set(skus(outcome)) < whole:
                yield f"{what} as a later page: {outcome} is taken for all there is", "raise BadResponse; catch nothing"


@check("silver", "list_offers")
def garbage_empties_no_stock(kit: Kit) -> Found:
    """Unknown is not zero: what is not a listing must raise, so that the last good stock is kept."""
    for exchange in _pages(kit)[:1] or of_verb(kit, "list_offers"):
        for what, answer in bad_answers(exchange):
            outcome, script = kit.call("list_offers", None, change=instead(answer, at(exchange)))
            used = any(found is exchange for _, found in script.sent)
            if used and outcome.error is None and len(skus(outcome)) < len(kit.offers):
                yield f"{what}: {outcome} is taken for all there is", "let answer.object() and items() raise"


@check("silver", "list_offers")
def wrong_types_empty_no_stock(kit: Kit) -> Found:
    """A list that is null or missing is a fault of the answer, not an empty shop."""
    whole = sorted(offer.sku for offer in kit.offers)
    for exchange in of_verb(kit, "list_offers"):
        tree = tree_of(exchange.body)
        for place, value in places(tree):
            first = not any(isinstance(part, int) and part for part in place)  # the other elements are like it
            if not place or not first or not value or not isinstance(value, dict | list):
                continue
            for what, changed in (
                ("null", put(tree, place, None)),
                ("a text", put(tree, place, "x")),
                ("a number", put(tree, place, 7)),
                ("missing", tree if isinstance(place[-1], int) else without(tree, place)),
            ):
                outcome, _ = kit.call("list_offers", None, change=instead(reply(bytes_of(changed)), at(exchange)))
                if outcome.error is None and len(skus(outcome)) < len(whole):
                    name = ".".join(map(str, place))
                    yield f"{name} is {what}: {outcome} is taken for all there is", "read it with [...], which raises"


# --- what a number means ----------------------------------------------------------------------------------------------


def _more(value: Any) -> Any:
    """The same kind of value, a little more of it."""
    if isinstance(value, str):
        return str(Decimal(value) + 3)
    return value + 3


def _numeric(value: Any) -> bool:
    if isinstance(value, str):
        return value.removeprefix("-").replace(".", "", 1).isdecimal()
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


_Spot = tuple[Exchange, Place, str]
"""A number in an answer: where it stands, and the sku of the offer that it moves."""


@lru_cache(1)
def _probed(kit: Kit) -> dict[str, _Spot]:
    """Which number of the listing's answers moves the price of an offer, and which its stock: found by trying."""
    found: dict[str, _Spot] = {}
    before = {offer.sku: offer for offer in kit.offers}
    for exchange in of_verb(kit, "list_offers"):
        tree = tree_of(exchange.body)
        numbers = [(place, value) for place, value in places(tree) if _numeric(value)]
        numbers.sort(key=lambda one: not any(guess in str(one[0][-1:]).lower() for guess in _GUESSES))
        for place, value in numbers[:60]:
            if {"price", "stock"} <= found.keys():
                return found
            changed = reply(bytes_of(put(tree, place, _more(value))))
            outcome, _ = kit.call("list_offers", None, change=instead(changed, at(exchange)))
            for offer in [] if outcome.error else [one for page in outcome.value for one in page.offers]:
                old = before.get(offer.sku)
                for name in ("price", "stock"):
                    if old and getattr(old, name) != getattr(offer, name):
                        found.setdefault(name, (exchange, place, offer.sku))
    return found


def _no_number(*names: str) -> Callable[[Kit], str]:
    """Why a check of these numbers says nothing: none of them stands in an answer as a number."""

    def unless(kit: Kit) -> str:
        try:
            known = "list_offers" not in kit.verbs or not _probed(kit).keys().isdisjoint(names)
        except Unusable:  # the check itself will say so
            return ""
        return "" if known else f"no number of the listing moves a {' or a '.join(names)}"

    return unless


@check("silver", "list_offers", unless=_no_number("price", "stock"))
def duplicate_skus_are_caught(kit: Kit) -> Found:
    """Two offers under one sku: nobody knows which price is true, so the core has to see both and refuse them."""
    probed = _probed(kit)
    exchange, place, _ = probed.get("price") or probed["stock"]
    tree = tree_of(exchange.body)
    found = dict(places(tree))
    depth = next((depth for depth, part in enumerate(place) if isinstance(part, int)), len(place) - 1)
    above, element = place[:depth], place[: depth + 1]
    twin = put(found[element], place[depth + 1 :], _more(found[place]))
    twins = [*found[above], twin] if isinstance(found[above], list) else {**found[above], f"{element[-1]} ": twin}
    changed = reply(bytes_of(put(tree, above, twins)))
    outcome, _ = kit.call("list_offers", None, change=instead(changed, at(exchange)))
    if outcome.error is None and len(skus(outcome)) == len(set(skus(outcome))):
        yield "one of two offers with the same sku was dropped in silence", "yield both: the core refuses them"


def _with(kit: Kit, name: str, value: Any) -> Offer | Outcome | None:
    """The offer whose price or stock has this value in the answer; how it ended if it did with an error."""
    exchange, place, sku = _probed(kit)[name]
    tree = tree_of(exchange.body)
    changed = without(tree, place) if value is ... else put(tree, place, value)
    outcome, _ = kit.call("list_offers", None, change=instead(reply(bytes_of(changed)), at(exchange)))
    if outcome.error is not None:
        return outcome
    return next((offer for page in outcome.value for offer in page.offers if offer.sku == sku), None)


def _like(kit: Kit, name: str, value: int) -> Any:
    """The number in the way in which the supplier writes it."""
    exchange, place, _ = _probed(kit)[name]
    return str(value) if isinstance(dict(places(tree_of(exchange.body)))[place], str) else value


@check("silver", "list_offers", unless=_no_number("stock"))
def minus_one_is_unlimited_or_refused(kit: Kit) -> Found:
    """-1 is how most suppliers say "as many as you like": read as 0 or 1, it takes their best offers off the shelf."""
    found = _with(kit, "stock", _like(kit, "stock", -1))
    todo = "Stock.exact(n, unlimited=-1) where -1 means that, else Stock.exact(n)"
    if found is None:
        yield "an offer with a stock of -1 vanishes", todo
    elif isinstance(found, Offer) and found.stock.kind not in {"unlimited", "unknown"}:
        yield f"a stock of -1 becomes {found.stock}", todo


@check("silver", "list_offers", unless=_no_number("stock"))
def a_stock_is_a_number_or_refused(kit: Kit) -> Found:
    """A stock that is negative, missing or a word is a fault: taken for 0, it takes an offer off the shelf."""
    for what, value in (("-7", -7), ("null", None), ("missing", ...), ("a word", "many"), ("a list", [])):
        found = _with(kit, "stock", _like(kit, "stock", value) if isinstance(value, int) else value)
        if found is None:
            yield f"with a stock that is {what} the offer vanishes", "Stock.exact(item[...]) refuses it"
        elif isinstance(found, Offer) and found.stock.kind != "unknown":
            yield f"a stock that is {what} becomes {found.stock}", "Stock.exact(item[...]) refuses it"


@check("silver", "list_offers", unless=_no_number("price"))
def a_price_is_a_number_or_refused(kit: Kit) -> Found:
    """An offer whose price is missing, negative or a word must not be sold at 0, or at yesterday's price."""
    for what, value in (("null", None), ("missing", ...), ("a word", "free"), ("-5", "-5"), ("with a sign", "¥5.00")):
        found = _with(kit, "price", value)
        if found is None:
            yield f"with a price that is {what} the offer vanishes", "money(item[...], currency) refuses it"
        elif isinstance(found, Offer) and found.price is not None:
            yield f"a price that is {what} becomes {found.price}", "money(item[...], currency) refuses it"


def invented(value: Any) -> Any:
    """A value in the way of this one that no documentation has."""
    return 987654 if isinstance(value, int | Decimal) and not isinstance(value, bool) else UNHEARD_OF


def told_apart(kit: Kit, verbs: Sequence[str]) -> dict[str, list[Any]]:
    """The plain values under each name in all that is documented for these verbs; of a yes or no, both."""
    known: dict[str, list[Any]] = {}
    answers = [one.body for verb in verbs for one in of_verb(kit, verb)]
    answers += [one.body for one in kit.examples.situation if one.verb in verbs]
    for place, value in (found for body in answers for found in places(tree_of(body))):
        if place and not isinstance(value, dict | list | None):
            values = known.setdefault(str(place[-1]), [])
            both = [True, False] if isinstance(value, bool) else [value]
            values += [one for one in both if (type(one), one) not in [(type(had), had) for had in values]]
    return known


@lru_cache(1)
def _for_sale(kit: Kit) -> list[_Spot]:
    """What in a listing tells whether an offer is for sale, and nothing else: another documented value turns it."""
    found: list[_Spot] = []
    known = told_apart(kit, ("list_offers",))
    for exchange in of_verb(kit, "list_offers"):
        tree = tree_of(exchange.body)
        names = {place[-1] for _, place, _ in found}
        for place, value in places(tree):
            first = not any(isinstance(part, int) and part > 1 for part in place)  # the other elements are like them
            if not place or not first or isinstance(value, dict | list) or place[-1] in names:
                continue
            for other in known.get(str(place[-1]), []):
                changed = reply(bytes_of(put(tree, place, other)))
                outcome, _ = kit.call("list_offers", None, change=instead(changed, at(exchange)))
                if turned := _turned(kit.offers, outcome):
                    found.append((exchange, place, turned))
                    names.add(place[-1])
                    break
    return found


def _turned(before: list[Offer], outcome: Outcome) -> str:
    """The sku that is for sale and was not, or the other way round, with the same price and stock; "" if none is."""
    now = {} if outcome.error else {offer.sku: offer for page in outcome.value for offer in page.offers}
    pairs = [(offer, now[offer.sku]) for offer in before if offer.sku in now]
    same = [(one, other) for one, other in pairs if (one.price, one.stock) == (other.price, other.stock)]
    return next((one.sku for one, other in same if one.for_sale != other.for_sale), "")


def _always_for_sale(kit: Kit) -> str:
    try:
        found = "list_offers" not in kit.verbs or _for_sale(kit)
    except Unusable:  # the check itself will say so
        return ""
    return "" if found else "no value of the listing tells whether an offer is for sale"


@check("silver", "list_offers", unless=_always_for_sale)
def an_unknown_state_is_not_for_sale(kit: Kit) -> Found:
    """Words such as "off" and every new one are true to Python's bool(): sold, it is refused, or never comes."""
    for exchange, place, sku in _for_sale(kit):
        tree = tree_of(exchange.body)
        for strange in dict.fromkeys((invented(dict(places(tree))[place]), UNHEARD_OF)):
            changed = reply(bytes_of(put(tree, place, strange)))
            outcome, _ = kit.call("list_offers", None, change=instead(changed, at(exchange)))
            offers = [] if outcome.error else [offer for page in outcome.value for offer in page.offers]
            if any(offer.for_sale for offer in offers if offer.sku == sku):
                yield (
                    f"with {strange!r} as its {place[-1]} an offer is for sale",
                    'compare with the documented words: item["status"] == "on", item["on"] is True',
                )


def _currency(kit: Kit) -> str:
    return next((offer.price.currency for offer in kit.offers if offer.price), "")


def _no_currency(kit: Kit) -> str:
    try:
        if "list_offers" not in kit.verbs or not (code := _currency(kit)):
            return "the listing has no prices"
        found = any(v == code for one in of_verb(kit, "list_offers") for _, v in places(tree_of(one.body)))
    except Unusable:
        return ""
    return "" if found else "the answers name no currency"


@check("silver", "list_offers", unless=_no_currency)
def another_currency_is_seen(kit: Kit) -> Found:
    """9.90 USD that is read as 9.90 CNY is sold at a seventh of what it costs."""
    code = _currency(kit)
    other = "USD" if code != "USD" else "EUR"

    def change(_sent: Sent, exchange: Exchange | None) -> Reply | None:
        tree = tree_of(exchange.body) if exchange else None
        if tree is None:
            return None
        for place, value in places(tree):
            if value == code:
                tree = put(tree, place, other)
        return reply(bytes_of(tree))

    outcome, _ = kit.call("list_offers", None, change=change)
    if outcome.error is None and any(
        o.price and o.price.currency == code for page in outcome.value for o in page.offers
    ):
        yield f"prices in {other} are read as {code}", "money(amount, the answer's own currency)"


# --- all verbs that ask -----------------------------------------------------------------------------------------------


def _asked(kit: Kit) -> list[str]:
    return [verb for verb in _ASKED if verb in kit.verbs]


def _asks_nothing(kit: Kit) -> str:
    return "" if _asked(kit) else "it has no such verb"


@check("silver", unless=_asks_nothing)
def garbage_is_never_an_answer(kit: Kit) -> Found:
    """An order without keys, no such order, a balance of 0: each is a statement that only a sound answer can make."""
    for verb in _asked(kit):
        kit.arguments(verb)  # what they stand on is tried first
        for exchange in of_verb(kit, verb):
            for what, answer in bad_answers(exchange):
                if verb in {"find_order", "get_offer"} and "404" in what:
                    continue  # with 404 some say that there is no such thing, and that is an answer
                outcome, script = kit.call(verb, change=instead(answer, at(exchange)))
                if outcome.error is None and any(found is exchange for _, found in script.sent):
                    yield f"{verb}, {what}: answers {outcome}", "read it with answer.object() and [...], which raise"


@check("silver", "list_offers")
def refused_credentials_are_auth(kit: Kit) -> Found:
    """Auth stops the polling and raises one alert: anything else knocks at a locked door every ten minutes."""
    for verb in [one for one in ("list_offers", "get_balance", "check", "get_order") if one in kit.verbs]:
        for status in (401, 403):
            outcome, script = kit.call(verb, change=instead(reply(b"{}", status), lambda *_: True))
            if script.sent and not outcome.raised(Auth):
                yield f"{verb}, {status}: {outcome}", "do not put it into expect=, and do not catch Auth"


@check("silver", "list_offers")
def a_pause_that_is_asked_for_is_kept(kit: Kit) -> Found:
    """429 with Retry-After is the supplier's last warning before it locks an account."""
    verbs = [one for one in ("get_order", "place_order", "list_offers") if one in kit.verbs]
    for verb in verbs[:2]:  # what buys is not repeated, so that the answer is seen as it came
        asked = instead(reply(b"{}", 429, {"retry-after": "1234"}), lambda *_: True)
        outcome, script = kit.call(verb, change=asked)
        if script.sent and not (isinstance(outcome.error, RateLimited) and outcome.error.retry_after == 1234):  # noqa: PLR2004
            yield f"{verb}, 429 with Retry-After: {outcome}", "do not put it into expect=, and do not catch RateLimited"
        if len(script.sent) > 1:
            yield f"{verb}, 429: it asked {len(script.sent)} times", "retries are the core's"


@check("silver", "list_offers")
def redirects_are_refused(kit: Kit) -> Found:
    """Whoever answers with a redirect would be sent our credentials and our orders."""
    elsewhere = reply(b"", 302, {"location": "https://elsewhere.example/goods"})
    for verb in [one for one in ("list_offers", "get_order", "place_order") if one in kit.verbs]:
        outcome, script = kit.call(verb, change=instead(elsewhere, lambda *_: True))
        if outcome.error is None:
            yield f"{verb}, 302: answers {outcome}", "do not put 3xx into expect="
        if any("elsewhere.example" in sent.url for sent, _ in script.sent):
            yield f"{verb}, 302: it went to where it was sent", "never follow a redirect"


@check("silver", "place_order")
def reading_buys_nothing(kit: Kit) -> Found:
    """Reading verbs are repeated by the core whenever they fail: one that buys, buys again."""
    for verb in [one for one in ("check", "list_offers", "get_offer", "get_balance") if one in kit.verbs]:
        _, script = kit.call(verb)
        for sent in script.buying():
            yield f"{verb} sends {sent.method} {sent.path}, which buys", "send it in place_order alone"
        for sent, _found in script.sent:
            if sent.method in {"PUT", "DELETE", "PATCH"}:
                yield f"{verb} sends {sent.method} {sent.path}", "a reading verb has no effect"
