"""Gold: pleasant for whoever runs it: it says what it knows, and what to do."""

from __future__ import annotations

from typing import Final

from syncd.adapter import Adapter, Check, Config, Offer, Order, Refused
from syncd.model import SecretText
from syncd.suppliers import registry
from syncd.suppliers.conformance.bronze import is_feed_only
from syncd.suppliers.conformance.buying import within
from syncd.suppliers.conformance.checks import Found, check
from syncd.suppliers.conformance.examples import ERRORS
from syncd.suppliers.conformance.rig import Kit
from syncd.suppliers.conformance.script import documented

_TO_CHOOSE: Final = 3
"""Settings besides credentials that nobody can have a default for: where it is, who we are there, how to reach us."""


@check("gold", unless=is_feed_only)
def check_says_whether_it_works(kit: Kit) -> Found:
    """`syncd check` and a new supplier's first minute: one cheap request says that the credentials are right."""
    if "check" not in kit.verbs:
        yield "check is not implemented", "answer Check(account=..., balance=...) from the cheapest request there is"
        return
    outcome, _ = kit.call("check")
    found = outcome.value
    if not isinstance(found, Check) or not (found.account or found.balance):
        yield f"check answers {outcome}, with neither account nor balance", "Check(account=..., balance=...)"
        return
    expect = kit.examples.expect
    if (expect.account is not None and expect.account != found.account) or (
        found.balance and expect.balance not in {None, found.balance}
    ):
        yield f"check answers {found.account!r} and {found.balance}", "read it as it is documented"


@check("gold", unless=is_feed_only)
def get_offer_agrees_with_the_listing(kit: Kit) -> Found:
    """Hot products are asked one by one: another price or stock than in the listing would flap with every run."""
    if "get_offer" not in kit.verbs:
        yield "get_offer is not implemented", "it keeps hot products fresh between two listings"
        return
    outcome, _ = kit.call("get_offer", kit.offer.sku)
    found = outcome.value
    if not isinstance(found, Offer):
        yield f"get_offer ends in {outcome}: {outcome.error}", "read the answer as it is documented"
        return
    for name in ("sku", "price", "stock", "for_sale"):
        if getattr(found, name) != getattr(kit.offer, name):
            yield (
                f"its {name} is {getattr(found, name)}, in the listing {getattr(kit.offer, name)}",
                "one function reads both",
            )


@check("gold", unless=is_feed_only)
def its_balance_can_be_asked(kit: Kit) -> Found:
    """An account that runs empty at night stops the shop: a balance that is known can be warned of."""
    if "get_balance" not in kit.verbs:
        yield "get_balance is not implemented", "money(..., currency) from the account's request"
        return
    outcome, _ = kit.call("get_balance")
    if outcome.error is not None or kit.examples.expect.balance not in {None, outcome.value}:
        yield f"get_balance answers {outcome.value or outcome}", "read it as it is documented; [expect] balance"


@check("gold", unless=is_feed_only)
def an_order_can_be_found_again(kit: Kit) -> Found:
    """After a lost answer somebody has to know what became of it: without this, a person has to ask."""
    promises = kit.kind.promises
    if "find_order" not in kit.verbs and not promises.same_reference_same_order and promises.repeat_after is None:
        yield (
            "neither find_order nor a promise tells what became of an order",
            "implement it, if the protocol can at all",
        )
    elif "find_order" in kit.verbs and not isinstance(kit.call("find_order")[0].value, Order):
        yield "find_order does not find the order of the examples", "it answers that Order"


@check("gold", "list_offers")
def offers_have_titles(kit: Kit) -> Found:
    """People map products to offers by name."""
    for offer in kit.offers:
        if not offer.title.strip() or offer.title == offer.sku:
            yield f"offer {offer.sku} has no title", "take the name that the supplier shows"


@check("gold")
def what_is_unverified_is_said(kit: Kit) -> Found:
    """Who trusts an adapter with money wants to know what nobody has confirmed yet."""
    own = next(kind for kind in kit.kind.__mro__ if "unverified" in vars(kind))
    if own is Adapter:
        yield "unverified is not set", "a sentence for each doubtful fact; unverified = () says that there is none"
    for text in kit.kind.unverified:
        if len(text.split()) < 3:  # noqa: PLR2004
            yield f"{text!r} is no sentence", "say what may be otherwise"


def _no_error(kit: Kit) -> str:
    raised = [ERRORS[one.raises] for one in kit.examples.situation if one.raises]
    return "" if any(issubclass(one, Refused | Config) for one in raised) else "the examples have no refusal"


@check("gold", unless=_no_error)
def errors_say_what_to_do(kit: Kit) -> Found:
    """At 3 a.m. the hint is all that there is."""
    for one in [one for one in kit.examples.situation if one.verb in kit.verbs]:
        outcome, _ = kit.call(one.verb, change=within(kit, one, documented(one)))
        if isinstance(outcome.error, Refused | Config) and not outcome.error.hint:
            yield f"{one.about}: {outcome} has no hint", 'OutOfStock("what is wrong", hint="what to do")'


@check("gold")
def settings_have_defaults(kit: Kit) -> Found:
    """What has one right answer should not be asked."""
    fields = kit.kind.Settings.model_fields.items()
    asked = [name for name, field in fields if field.is_required() and field.annotation is not SecretText]
    if len(asked) > _TO_CHOOSE:
        yield f"{', '.join(asked)} have no defaults", "give what has one right answer a default"


def _elsewhere(kit: Kit) -> str:
    if kit.file.parent.resolve() != registry.bundled().resolve():
        return "it is not one of syncd's own"
    return "" if (registry.bundled().parent / "docs").is_dir() else "there is no checkout"


@check("gold", unless=_elsewhere)
def it_has_its_page(kit: Kit) -> Found:
    """A page says what it can do before anybody has configured it."""
    if not (registry.bundled().parent / "docs" / "adapters" / f"{kit.name}.md").is_file():
        yield f"docs/adapters/{kit.name}.md is not there", f"syncd adapter docs {kit.name}"


def _whole_listings(kit: Kit) -> str:
    return "" if kit.kind.promises.incremental else "it does not promise incremental listings"


@check("gold", "list_offers", unless=_whole_listings)
def changes_can_be_asked_for(kit: Kit) -> Found:
    """A page of changes that passes for a whole listing removes everything that did not change."""
    outcome, script = kit.call("list_offers", kit.since)
    if outcome.error is None and not all(page.incremental for page in outcome.value):
        yield "pages of changes do not say so", "Page(offers, incremental=since is not None)"
    _, whole = kit.call("list_offers", None)
    if [(one.url, one.body) for one, _ in script.sent] == [(one.url, one.body) for one, _ in whole.sent]:
        yield "the request is the same with since and without", "send since along"


@check("gold", unless=is_feed_only)
def a_bad_key_can_be_complained_of(kit: Kit) -> Found:
    """Every batch has a dead key now and then: a claim that takes a person an hour is not made."""
    if not kit.verbs & {"complain", "return_keys"}:
        yield "neither complain nor return_keys is implemented", "implement it, if the protocol can at all"
    for verb in sorted(kit.verbs & {"complain", "return_keys"}):
        outcome, script = kit.call(verb)
        if outcome.error is not None or script.unfit:
            yield f"{verb} ends in {outcome}: {'; '.join(script.unfit[:1]) or outcome.error}", "send what is documented"


@check("gold", unless=is_feed_only)
def credentials_stay_out_of_addresses(kit: Kit) -> Found:
    """Addresses are written into the logs of every machine on the way."""
    for verb in [one for one in ("list_offers", "place_order") if one in kit.verbs]:
        _, script = kit.call(verb)
        for sent, _ in script.sent:
            if any(text in sent.url for text in kit.credentials):
                yield f"{verb}: a credential stands in the address", "a header will do: ApiKey(key, header=...)"
                break
