"""Silver, of the verbs that buy: at most one request that may buy, and doubt is never taken for a no."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

from syncd.adapter import (
    NotSent,
    Order,
    OutcomeUnknown,
    RawKey,
    Refused,
)
from syncd.model import Money
from syncd.suppliers.client import Cut, Reply, Sent
from syncd.suppliers.conformance import examples as form
from syncd.suppliers.conformance.checks import Found, check
from syncd.suppliers.conformance.examples import ExpectedKey, Gives, Situation
from syncd.suppliers.conformance.reading import HTML, UNHEARD_OF, bad_answers, invented, of_verb, told_apart
from syncd.suppliers.conformance.rig import TOLD_BY, Kit, Outcome, Session, Unusable, instead
from syncd.suppliers.conformance.script import (
    Change,
    Place,
    buys,
    bytes_of,
    documented,
    places,
    put,
    reply,
    texts_replaced,
    tree_of,
    without,
)

_LOST: Final = ("timeout", "reset", "truncated")
_NEVER_LEFT: Final = ("dns", "refused", "connect_timeout", "tls", "pool")
_PROSE: Final = re.compile("msg|message|desc|text|info", re.IGNORECASE)
"""How a member is called that holds words for people, of which any may stand there."""
_OVER: Final = frozenset({"canceled", "refunded"})
_HANDING: Final = ("place_order", "get_order", "fetch_keys")


def _buying(kit: Kit, answer: Any) -> Change:
    """The request that buys is answered like this."""
    return instead(answer, lambda sent, exchange: buys(kit.examples, sent, exchange))


@check("silver", "place_order", "get_order")
def an_order_is_as_documented(kit: Kit) -> Found:
    """The request that costs money has to be the documented one, and its answer read in full."""
    with kit.session() as session:
        outcome = session.call("place_order", kit.request())
        yield from ((text, "correct the request, or the exchange") for text in session.script.unfit)
        if outcome.error is not None:
            yield f"place_order ends in {outcome}: {outcome.error}", "read the answer as it is documented"
            return
        placed: Order = outcome.value
    with kit.session() as session:
        found = kit.orders(session)[-1]
        yield from ((text, "correct the request, or the exchange") for text in session.script.unfit)
    wanted = kit.examples.expect.order or form.ExpectedOrder()
    for name in ("id", "status", "reference", "charged", "quantity"):
        value, seen = getattr(wanted, name), getattr(found, name)
        if value is not None and value != seen:
            yield f"the order's {name} is {seen}, expected is {value}", "read it as it is documented"
    if found.id != placed.id:
        yield f"get_order answers for {found.id}, asked was {placed.id}", "the id is the same for ever"


@check("silver", "place_order")
def one_request_buys(kit: Kit) -> Found:
    """Two requests are two purchases: what one of them cannot do, an order cannot do."""
    _, script = kit.call("place_order")
    if len(script.buying()) != 1:
        yield f"{len(script.buying())} requests buy", "send one, whatever the quantity"
    for sent in script.buying():
        if sent.reads:
            yield (
                f"{sent.method} {sent.path} is marked reads=True",
                "it buys: without the mark, doubt is OutcomeUnknown",
            )


@check("silver", "place_order")
def a_lost_answer_is_unknown(kit: Kit) -> Found:
    """The supplier may have charged us and the answer was lost: taken for a no, the same key is bought twice."""
    buying = kit.examples.buying
    if buying is None:
        raise Unusable("there is no exchange for place_order", by="its-examples-fit")
    cases: list[tuple[str, Any]] = [(f"a connection that ends ({how})", Cut(how)) for how in _LOST]
    cases += [(what, answer) for what, answer in bad_answers(buying) if "404" not in what]
    cases += [("HTML with 502", Reply(502, {"content-type": "text/html"}, HTML)), ("408", Reply(408, {}, b""))]
    for what, answer in cases:
        outcome, script = kit.call("place_order", change=_buying(kit, answer))
        if not outcome.raised(OutcomeUnknown):
            yield f"{what}: {outcome}", "catch nothing, or raise OutcomeUnknown: only a documented refusal is a no"
        if len(script.buying()) > 1:
            yield f"{what}: it was sent {len(script.buying())} times", "never send an order again"


@check("silver", "place_order")
def an_order_in_pieces_is_unknown(kit: Kit) -> Found:
    """An answer that lacks something is an order that exists, or doubt: it is never a refusal."""
    buying, placed = kit.examples.buying, kit.placed
    tree = tree_of(buying.body) if buying else None
    for place, value in places(tree):
        if not place:
            continue
        for what, changed in (
            ("missing", without(tree, place)),
            ("null", put(tree, place, None)),
            ("of another type", put(tree, place, [value])),
        ):
            outcome, _ = kit.call(
                "place_order", change=_buying(kit, reply(bytes_of(changed), buying.status if buying else 200))
            )
            sound = isinstance(outcome.value, Order) and outcome.value.id == placed.id
            if not sound and not outcome.raised(OutcomeUnknown):
                name = ".".join(map(str, place))
                yield f"{name} is {what}: {outcome}", "raise OutcomeUnknown for what is neither an order nor a refusal"


@check("silver", "place_order")
def what_was_not_sent_is_not_sent(kit: Kit) -> Found:
    """Nothing left this machine, so nothing was bought: then, and only then, another supplier may be asked at once."""
    for how in _NEVER_LEFT:
        outcome, _ = kit.call("place_order", change=instead(Cut(how), lambda *_: True))
        if not outcome.raised(NotSent):
            yield f"no connection ({how}): {outcome}", "let NotSent pass: catch what you mean, never AdapterError"


@check("silver", "place_order")
def refusals_are_typed(kit: Kit) -> Found:
    """Out of stock tries the next supplier, an empty balance alerts a person: the class of the error decides."""
    refusals = [one for one in kit.examples.situation if one.verb == "place_order"]
    if not any(issubclass(form.ERRORS[one.raises], Refused) for one in refusals if one.raises):
        yield "no situation is a refusal of an order", 'add [[situation]] with raises = "OutOfStock" and the others'
    for one in refusals:
        yield from situation(kit, one)


def _others(kit: Kit) -> list[Situation]:
    """Those that no check of their own looks at."""
    return [
        one
        for one in kit.examples.situation
        if one.verb in kit.verbs - {"place_order"}
        and not (one.verb == "find_order" and one.gives and one.gives.nothing)
    ]


def _no_other(kit: Kit) -> str:
    return "" if _others(kit) else "the examples have no situation of another verb"


@check("silver", unless=_no_other)
def situations_end_as_documented(kit: Kit) -> Found:
    """What the documentation says of the other verbs: gone, paused, not found, still under way."""
    for one in _others(kit):
        yield from situation(kit, one)


def situation(kit: Kit, one: Situation) -> Found:
    """In what a situation does not end as it says."""
    outcome, script = kit.call(one.verb, change=within(kit, one, documented(one)))
    what = f"{one.about} ({one.verb})"
    if not script.sent:
        yield f"{what}: nothing was sent", "the situation is of another verb"
    elif one.raises is not None:
        if _kind(outcome.error) is not form.ERRORS[one.raises]:
            yield f"{what}: {outcome}, expected is {one.raises}", "map it in the adapter's table of refusals"
    elif one.gives is not None:
        if outcome.error is not None:
            yield f"{what}: {outcome}: {outcome.error}", "read the answer as it is documented"
        else:
            yield from (
                (f"{what}: {text}", "read the answer as it is documented") for text in other(one.gives, outcome)
            )
    if len(script.buying()) > 1:
        yield f"{what}: {len(script.buying())} requests buy", "send one"


def _kind(error: BaseException | None) -> type[BaseException] | None:
    """The error of `syncd.adapter` that this one is: the nearest, where it is of a kind of its own."""
    return next((kind for kind in type(error).__mro__ if kind in form.ERRORS.values()), None)


def within(kit: Kit, one: Situation, answer: Any) -> Change:
    """The requests of a situation are answered like this."""
    if one.request:
        pattern = form.Exchange(request=one.request, sends=one.sends, headers=one.headers)
        return instead(
            answer,
            lambda sent, _: (
                (sent.method, sent.path) == (pattern.method, pattern.path)
                and all(str(sent.query.get(name)) == value for name, value in pattern.query.items())
            ),
        )
    if one.verb == "place_order":
        return _buying(kit, answer)
    return instead(answer, lambda sent, _: sent.verb == one.verb)


def other(gives: Gives, outcome: Outcome) -> Iterator[str]:
    """In what a value is not what a situation gives."""
    value = outcome.value
    if gives.nothing:
        if value is not None:
            yield f"answers {outcome}, expected is None"
        return
    for name in ("status", "id", "for_sale"):
        wanted = getattr(gives, name)
        if wanted is not None and wanted != getattr(value, name, None):
            yield f"{name} is {getattr(value, name, None)}, expected is {wanted}"
    if gives.keys is not None and gives.keys != len(getattr(value, "keys", value)):
        yield f"answers {outcome}, expected are {gives.keys} keys"
    if gives.stock is not None:
        stock = value.stock
        seen = stock.quantity if stock.kind == "exact" else stock.level if stock.kind == "coarse" else stock.kind
        if gives.stock != seen:
            yield f"stock is {seen}, expected is {gives.stock}"


@check("silver", "place_order")
def an_unlisted_refusal_is_refused(kit: Kit) -> Found:
    """A no that nobody has documented is a plain Refused, or doubt: never an order, a wrong password or a pause."""
    for one in kit.examples.situation:
        if one.verb != "place_order" or not one.raises or not issubclass(form.ERRORS[one.raises], Refused):
            continue
        tree = tree_of(one.body)
        texts = {value: UNHEARD_OF for _, value in places(tree) if isinstance(value, str) and value}
        changed = texts_replaced(tree, texts) if texts else tree
        outcome, _ = kit.call("place_order", change=within(kit, one, reply(bytes_of(changed), one.status)))
        if not outcome.raised(Refused, OutcomeUnknown):
            yield f"a refusal like {one.about}, with an unknown code: {outcome}", "raise Refused, or OutcomeUnknown"


def _references(kit: Kit) -> list[str]:
    promises = kit.kind.promises
    alphabet = promises.reference_alphabet
    longest = (alphabet[::-1] + alphabet)[: promises.reference_length]
    return [kit.reference, (longest * 19)[: promises.reference_length]]


@check("silver", "place_order")
def the_reference_is_sent_once_as_it_is(kit: Kit) -> Found:
    """After a lost answer the reference is the only thread by which the order can be found again."""
    for reference in _references(kit):
        examples = kit.with_text(kit.reference, reference)
        with kit.session(examples=examples) as session:
            session.call("place_order", kit.request(reference=reference))
            for sent in session.script.buying()[:1]:
                seen = (
                    unquote(sent.path)
                    + "\n"
                    + "\n".join(sent.query.values())
                    + "\n"
                    + unquote(sent.body.decode("utf-8", "replace"))
                )
                if seen.count(reference) != 1:
                    yield (
                        f"{reference} stands {seen.count(reference)} times in the request",
                        "send order.reference, unaltered",
                    )


def _no_guard(kit: Kit) -> str:
    order = kit.examples.order
    return "" if order and order.guard else "[order] does not say guard = true: the supplier has no price guard"


@check("silver", "place_order", unless=_no_guard)
def the_price_limit_is_sent(kit: Kit) -> Found:
    """The price may rise between the listing and the order: with a guard the supplier refuses, without it we pay."""
    price = kit.offer.price or Money(Decimal(1), "CNY")
    seen = set()
    for more in ("1.11", "2.22"):
        limit = Money(price.amount + Decimal(more), price.currency)
        with kit.session() as session:
            session.call("place_order", kit.request(limit=limit))
            seen |= {(sent.body, sent.url) for sent in session.script.buying()}
    if len(seen) < 2:  # noqa: PLR2004 - one a limit
        yield "the request is the same whatever max_unit_cost is", "send order.max_unit_cost along"


# --- keys -------------------------------------------------------------------------------------------------------------

AWKWARD: Final = (
    "00{n}123456",
    "  blanks {n}\t ",
    "first {n}\r\nsecond",
    "ключ-密钥-{n}-🎮",
    "%0A{n}%20+&amp;",
    "quote\"{n}\\'",
    "e\u0301{n}\u3000\u00a0\ufeff",
    "{n}E5",
)


def parts(key: RawKey | ExpectedKey) -> Any:
    """The text, the fields or the image of a key, to compare."""
    if isinstance(key, ExpectedKey):
        return key.fields or key.image or key.text
    if key.fields is not None:
        return {name: text.reveal() for name, text in key.fields.items()}
    if key.image is not None:
        import base64

        return base64.b64encode(key.image).decode()
    return key.text.reveal() if key.text else ""


def _texts(kit: Kit) -> list[str]:
    return list(dict.fromkeys(text for key in kit.examples.expect.keys for text in key.texts if not key.image))


def with_keys(new: dict[str, str]) -> Change:
    """Answers that hand keys over have other keys in them."""

    def change(sent: Sent, exchange: form.Exchange | None) -> Reply | None:
        tree = tree_of(exchange.body) if exchange and sent.verb in {*_HANDING, "find_order"} else None
        if exchange is None or tree is None:
            return None
        return reply(bytes_of(texts_replaced(tree, new)), exchange.status, exchange.reply_headers)

    return change


def _no_texts(kit: Kit) -> str:
    if not kit.examples.expect.keys:
        return ""
    trees = [tree_of(one.body) for verb in _HANDING for one in of_verb(kit, verb)]
    held = [value for tree in trees for _, value in places(tree) if isinstance(value, str)]
    texts = _texts(kit)
    return (
        ""
        if texts and all(any(text in value for value in held) for text in texts)
        else "the answers hold no key as text"
    )


@check("silver", "place_order")
def keys_are_as_documented(kit: Kit) -> Found:
    """What is handed on is what was paid for: a card without its pin is worth nothing."""
    wanted = kit.examples.expect.keys
    if not wanted:
        yield "no keys are expected", "add keys = [...] to [expect]"
        return
    with kit.session() as session:
        found = kit.handed_over(session)
    if not found:
        yield "no keys were handed over", "put them into Order.keys, or implement fetch_keys"
    elif [parts(key) for key in found] != [parts(key) for key in wanted]:
        yield f"{len(found)} keys, other than the {len(wanted)} expected", "hand on what the answer holds"
    else:
        for key, one in zip(found, wanted, strict=True):
            if (one.id and one.id != key.id) or (one.expires and one.expires != key.expires):
                yield "a key has another id or expiry than expected", "RawKey.of(text, id=..., expires=...)"


@check("silver", "place_order", unless=_no_texts)
def keys_arrive_as_they_were_sent(kit: Kit) -> Found:
    """A stripped blank or a lost leading zero makes a key worthless: cleaning is done where it can be undone."""
    if not kit.examples.expect.keys:
        raise Unusable("no keys are expected", by="keys-are-as-documented")
    _ = kit.keys  # as they are documented, they have to arrive at all
    for awkward in AWKWARD:
        new = {text: awkward.replace("{n}", str(n)) for n, text in enumerate(_texts(kit))}
        wanted = [
            parts(form.ExpectedKey.model_validate(_renamed(key.model_dump(), new))) for key in kit.examples.expect.keys
        ]
        with kit.session(with_keys(new)) as session:
            try:
                found = kit.handed_over(session)
            except Unusable as error:
                yield f"keys such as {awkward!r}: {error}", "hand on what the answer holds, whatever it is"
                continue
        if [parts(key) for key in found] != wanted:
            yield f"keys such as {awkward!r} are altered", "no strip(), int(), split(), unquote(): RawKey.of(text)"


def _renamed(value: Any, new: dict[str, str]) -> Any:
    return {
        name: new.get(one, one) if isinstance(one, str) else _renamed(one, new) if isinstance(one, dict) else one
        for name, one in value.items()
        if one is not None
    }


@check("silver", "get_order")
def a_refunded_order_has_no_keys(kit: Kit) -> Found:
    """Some suppliers leave the cards in the answer after a refund: handed on, they are sold and do not work."""
    over = [
        one for one in kit.examples.situation if one.verb == "get_order" and one.gives and one.gives.status in _OVER
    ]
    if not over:
        yield "no situation is a refunded or canceled order", 'add one with gives = { status = "refunded", keys = 0 }'
    for one in over:
        for what, answer in (("", documented(one)), (" with the cards still in the answer", _with_cards(kit, one))):
            with kit.session(within(kit, one, answer)) as session:
                outcome = session.call("get_order", kit.placed.id)
                if isinstance(outcome.value, Order) and outcome.value.keys:
                    yield f"{one.about}{what}: {outcome}", "look at the status before the cards"
                if isinstance(outcome.value, Order) and "fetch_keys" in kit.verbs:
                    fetched = session.call("fetch_keys", outcome.value)
                    if fetched.value:
                        yield f"{one.about}{what}: fetch_keys answers {fetched}", "look at the status before the cards"


def _with_cards(kit: Kit, one: Situation) -> Reply:
    """The completed order's answer with the other order's status: what differs of plain values, the keys left out."""
    texts = _texts(kit)
    known = dict(places(tree_of(one.body)))
    for exchange in reversed(of_verb(kit, "get_order")):
        tree = tree_of(exchange.body)
        values = [value for _, value in places(tree) if isinstance(value, str)]
        if not texts or not all(any(text in value for value in values) for text in texts):
            continue
        for place, value in list(places(tree)):
            plain = not isinstance(value, dict | list) and not isinstance(known.get(place), dict | list)
            if plain and place in known and not any(text in str(value) for text in texts):
                tree = put(tree, place, known[place])
        return reply(bytes_of(tree), one.status)
    return documented(one)


# --- statuses -------------------------------------------------------------------------------------------------------

_TELLING: Final = ("place_order", "get_order", "find_order")
"""The verbs that say how an order stands."""


@lru_cache(4)
def _statuses(kit: Kit) -> list[tuple[str, form.Exchange, Place]]:
    """Where answers say how the order stands: another documented value in that place makes it stand otherwise."""
    found: list[tuple[str, form.Exchange, Place]] = []
    known = told_apart(kit, _TELLING)
    for verb in [one for one in _TELLING if one in kit.verbs]:
        arguments = kit.arguments(verb)
        for exchange in of_verb(kit, verb):
            tree = tree_of(exchange.body)
            before = _answered(kit, verb, arguments, exchange, tree).value
            if not isinstance(before, Order):
                continue
            for place, value in places(tree):
                if isinstance(value, dict | list) or _of_a_key(kit, tree, place):
                    continue
                for other in known.get(str(place[-1]), []) if place else []:
                    after = _answered(kit, verb, arguments, exchange, put(tree, place, other)).value
                    if isinstance(after, Order) and after.status != before.status:
                        found.append((verb, exchange, place))
                        break
    return found


def _of_a_key(kit: Kit, tree: Any, place: Place) -> bool:
    """Whether a key stands in the same object, or in one of its list: what is there tells of the key, not of the order,
    unless it is called a status.
    """
    known = dict(places(tree))
    inside = len(place) > 1 and isinstance(place[-2], int)
    objects = known[place[:-2]] if inside else [known[place[:-1]]] if place else []
    here = [str(value) for one in objects if isinstance(one, dict) for value in one.values() if isinstance(value, str)]
    keys = [text for key in kit.examples.expect.keys for text in key.texts]
    return "stat" not in str(place[-1:]).lower() and any(text in value for value in here for text in keys)


def _answered(kit: Kit, verb: str, arguments: Sequence[Any], exchange: form.Exchange, tree: Any) -> Outcome:
    """How a verb ends when the requests that this exchange is for are answered like this, the first one too."""
    answer = reply(bytes_of(tree), exchange.status, exchange.reply_headers)
    wanted = (exchange.request, exchange.sends)
    when = instead(answer, lambda _, found: found is not None and (found.request, found.sends) == wanted)
    return kit.call(verb, *arguments, change=when)[0]


def _no_status(kit: Kit) -> str:
    try:
        return "" if _statuses(kit) else "no value of the answers tells how an order stands"
    except Unusable:  # the check itself will say so
        return ""


@check("silver", "place_order", "get_order", unless=_no_status)
def an_unknown_status_is_no_success(kit: Kit) -> Found:
    """A new word for "failed" that is read as "completed" closes a purchase that was never delivered."""
    for verb, exchange, place in _statuses(kit):
        tree = tree_of(exchange.body)
        strange = put(tree, place, invented(dict(places(tree))[place]))
        outcome = _answered(kit, verb, kit.arguments(verb), exchange, strange)
        order = outcome.value
        if isinstance(order, Order) and (order.status not in {"pending", "partial"} or order.keys):
            yield (
                f"{verb}, an unknown {place[-1]}: {outcome}",
                "STATUS[...] without a default inside reading(...), or pending",
            )


def _scalars(body: bytes) -> dict[str, Any]:
    """The plain members of an object."""
    tree = tree_of(body)
    members = tree.items() if isinstance(tree, dict) else ()
    return {name: one for name, one in members if not isinstance(one, dict | list)}


def _errors_in_bodies(kit: Kit) -> list[tuple[Situation, Situation, str]]:
    """(no such order, a refusal, a member) where that member says in the one that all went well, in the other not."""
    known = [one for answer in of_verb(kit, "find_order") for one in _scalars(answer.body).items()]
    nothing = [one for one in kit.examples.situation if one.verb == "find_order" and one.gives and one.gives.nothing]
    return [
        (empty, one, name)
        for empty in nothing
        for one in kit.examples.situation
        for name, well in _scalars(empty.body).items()
        if one.raises and (name, well) in known and _scalars(one.body).get(name, well) != well
    ]


@check("silver", "find_order", unless=lambda kit: "" if _errors_in_bodies(kit) else "no refusal is told by a body")
def a_refusal_is_not_no_such_order(kit: Kit) -> Found:
    """None closes the purchase as not bought: an error of the supplier's that is read as None buys the key twice."""
    for empty, one, name in _errors_in_bodies(kit):
        said = {member: value for member, value in tree_of(one.body).items() if value is not None}
        cases = [(f"the fields of {one.about!r}", said)]
        cases += [] if _PROSE.search(name) else [(f"an unknown {name}", {name: invented(said.get(name))})]
        for what, fields in cases:
            both = reply(bytes_of({**tree_of(empty.body), **fields}), one.status)
            outcome, _ = kit.call("find_order", change=within(kit, empty, both))
            if outcome.error is None:
                yield (
                    f"{what} in the answer of {empty.about!r}: find_order answers {outcome}",
                    "look at what says that all went well before the order is looked for; else raise",
                )


# --- references, cancellation -----------------------------------------------------------------------------------------


def _not_promised(kit: Kit) -> str:
    return "" if kit.kind.promises.same_reference_same_order else "it does not promise that"


@check("silver", "place_order", unless=_not_promised)
def the_same_reference_is_the_same_order(kit: Kit) -> Found:
    """Where that is promised, an unknown order is sent again: it must be the very same request."""
    with kit.session() as session:
        placed = [session.call("place_order", kit.request()) for _ in range(2)]
        sent = session.script.buying()
    if any(one.error is not None for one in placed):
        raise Unusable(f"place_order with the examples ends in {placed[-1]}", by="an-order-is-as-documented")
    if len({one.body for one in sent}) != 1 or len({one.url for one in sent}) != 1:
        yield "the second request is not the first one", "nothing but the OrderRequest may go into it"
    if placed[0].value.id != placed[1].value.id:
        yield "the answers have two ids", "Order(id=...) is the supplier's own id"


@check("silver", "find_order")
def an_unknown_reference_is_none(kit: Kit) -> Found:
    """None says for sure that nothing was bought: the purchase is closed, and the key is bought elsewhere."""
    known = [one for one in kit.examples.situation if one.verb == "find_order" and one.gives and one.gives.nothing]
    if not known:
        yield "no situation is an unknown reference", 'add one with verb = "find_order" and gives = { nothing = true }'
    for one in known:
        yield from situation(kit, one)
    outcome, _ = kit.call("find_order")
    if outcome.error is not None or not isinstance(outcome.value, Order) or outcome.value.id != kit.placed.id:
        yield f"the order of the examples is not found by its reference: {outcome}", "find_order answers that Order"


@check("silver", "list_offers")
def a_cancelled_verb_leaves_nothing_open(kit: Kit) -> Found:
    """The daemon ends a verb when it stops or when a deadline is over: what goes on by itself may still buy."""
    for verb in [one for one in ("list_offers", "place_order", "get_order") if one in kit.verbs]:
        arguments = kit.arguments(verb)
        with kit.session() as session:
            left = session.loop.run_until_complete(_cancelled(session, verb, arguments))
            if left is None:
                by = TOLD_BY.get(verb, "an-order-is-as-documented")
                raise Unusable(f"{verb} with the examples sends nothing", by=by)
            yield from (
                (f"{verb}, cancelled: {text}", "no tasks of your own; catch no CancelledError") for text in left
            )


async def _cancelled(session: Session, verb: str, arguments: Sequence[Any]) -> list[str] | None:
    """Cancel a verb while its first request is under way: what is left of it. None if there was no request."""
    hanging: list[Sent] = []

    async def hangs(sent: Sent) -> Reply:
        hanging.append(sent)
        await asyncio.sleep(1e6)
        return Reply()

    session.client._play = hangs  # noqa: SLF001
    before = asyncio.all_tasks()
    task = asyncio.ensure_future(session.asked(verb, *arguments))
    for _ in range(100):
        if hanging:
            break
        await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task], timeout=10)
    if not hanging:
        return None
    left = []
    if not task.cancelled():
        left.append("it does not end as cancelled")
    if len(hanging) > 1:
        left.append("it sends more")
    if asyncio.all_tasks() - before - {task}:
        left.append("a task of its own goes on")
    return left
