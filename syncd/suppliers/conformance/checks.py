"""What a check is, how it ends, and the list of all there are. The checks themselves stand in the modules beside.

A check is a generator over a `Kit`: each thing that it finds wrong is yielded as what was seen and what to do. Its
docstring is the sentence that says why; its name is the function's, with hyphens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from syncd.suppliers import registry
from syncd.suppliers.conformance.rig import Kit, Unusable

Tier = Literal["bronze", "silver", "gold"]
TIERS: Final[tuple[Tier, ...]] = ("bronze", "silver", "gold")
State = Literal["passed", "failed", "exempt", "inapplicable", "blocked"]

Found = Iterator[tuple[str, str]]
"""(what was seen, what to do)."""
MOST: Final = 3
"""Findings of one check that are shown: the others are of the same kind."""


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, and how it is tried."""

    name: str
    tier: Tier
    why: str
    find: Callable[[Kit], Found]
    needs: tuple[str, ...] = ()
    """Verbs without which it says nothing."""
    unless: Callable[[Kit], str] = lambda _kit: ""
    """Why else it says nothing of this adapter; "" when it does."""

    def __str__(self) -> str:
        return self.name

    def inapplicable(self, kit: Kit) -> str:
        """Why it does not apply; "" when it does."""
        lacking = [verb for verb in self.needs if verb not in kit.verbs]
        return f"there is no {' and no '.join(lacking)}" if lacking else self.unless(kit)


@dataclass(frozen=True, slots=True)
class Result:
    """How a check ended."""

    check: Check
    state: State
    findings: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    """Of what is exempt, inapplicable or blocked."""
    by: str = ""
    """Of what is blocked: the check that says why."""


CHECKS: Final[dict[str, Check]] = {}
"""Every check, by name, in the order in which they are tried."""


def check(
    tier: Tier, *needs: str, unless: Callable[[Kit], str] = lambda _kit: ""
) -> Callable[[Callable[[Any], Found]], Callable[[Any], Found]]:
    """Put a function into the list."""

    def taken(find: Callable[[Any], Found]) -> Callable[[Any], Found]:
        name = find.__name__.replace("_", "-")
        CHECKS[name] = Check(name, tier, " ".join((find.__doc__ or "").split()), find, needs, unless)
        return find

    return taken


IN_TOML: Final = {
    "its-settings-are-documented": 'write help = "What it is for." beside its type',
    "half-a-listing-is-none": "say in success_when what a success is, and name `items` where the list stands",
    "garbage-empties-no-stock": "say in success_when what a success is, and name `items` where the list stands",
    "wrong-types-empty-no-stock": "no not_null() or || in `items`: what is missing has to be missing",
    "duplicate-skus-are-caught": "`unique` is for what repeats unchanged: take it out, or name the sku with it",
    "minus-one-is-unlimited-or-refused": "stock = { at = ..., unlimited = -1 }",
    "a-stock-is-a-number-or-refused": "no not_null() or || in stock; none_when names what is unknown",
    "a-price-is-a-number-or-refused": "no not_null() or || in price",
    "an-unknown-state-is-not-for-sale": "for_sale = { at = ..., map = { on = true } }, unmapped = false at most",
    "another-currency-is-seen": "currency_at = where the answer says it, instead of currency",
    "garbage-is-never-an-answer": "say in success_when what a success is",
    "refused-credentials-are-auth": 'no [[errors]] line for 401 and 403 but raise = "Auth"',
    "a-pause-that-is-asked-for-is-kept": 'no [[errors]] line for 429 but raise = "RateLimited"',
    "a-lost-answer-is-unknown": "an [[errors]] line names a code or a message of the documentation, not a status alone",
    "an-order-in-pieces-is-unknown": "no not_null() or || in [order]",
    "refusals-are-typed": "add an [[errors]] line with its status, code or message",
    "situations-end-as-documented": "add an [[errors]] line with its status, code or message",
    "an-unlisted-refusal-is-refused": 'an [[errors]] line for the rest has raise = "Refused" or "OutcomeUnknown"',
    "the-price-limit-is-sent": 'send "{max_unit_cost:text}" along',
    "keys-are-as-documented": "add keys to [order], or [verbs.fetch_keys]: each = the list, text or fields = a key",
    "a-refunded-order-has-no-keys": "map its status to refunded or canceled",
    "an-unknown-status-is-no-success": 'map what is documented; unmapped = "pending" at most',
    "a-refusal-is-not-no-such-order": "say in success_when what a success is",
    "an-unknown-reference-is-none": 'empty_is_absent = true, or an [[errors]] line with raise = "Absent"',
    "check-says-whether-it-works": "add [verbs.check] with account or balance, from the cheapest request there is",
    "get-offer-agrees-with-the-listing": "add [verbs.get_offer]",
    "its-balance-can-be-asked": "add [verbs.get_balance]",
    "an-order-can-be-found-again": "add [verbs.find_order], if the protocol can at all",
    "errors-say-what-to-do": 'hint = "what to do" in its [[errors]] line',
    "a-bad-key-can-be-complained-of": "add [verbs.complain], if the protocol can at all",
}
"""What to do about a check in the words of an adapter without code, where those of Python do not fit it."""


def tried(one: Check, kit: Kit) -> Result:
    """Try one check. An exempt one is not tried."""
    if one.name in kit.examples.exempt:
        return Result(one, "exempt", reason=kit.examples.exempt[one.name])
    try:
        if reason := one.inapplicable(kit):
            return Result(one, "inapplicable", reason=reason)
        findings = tuple(dict.fromkeys(found for found, _ in zip(one.find(kit), range(MOST), strict=False)))
    except Unusable as error:
        if error.by == one.name:
            return Result(one, "failed", ((str(error), "mend it: nothing else can be tried"),))
        return Result(one, "blocked", reason=str(error), by=error.by)
    except Exception as error:  # noqa: BLE001 - what the adapter raised where nothing maps it: a feed
        what = f"{registry.place_of(error, kit.file)}: {type(error).__name__} came out of the adapter"
        return Result(one, "failed", ((what, "raise AdapterError"),))
    if kit.file.suffix == ".toml":
        findings = tuple((seen, IN_TOML.get(one.name, todo)) for seen, todo in findings)
    return Result(one, "failed" if findings else "passed", findings)


def failed(name: str, findings: list[tuple[str, str]]) -> Result:
    """The one result where there is nothing to try the others on."""
    return Result(CHECKS[name], "failed", tuple(findings))


def tier_of(results: list[Result]) -> Tier | None:
    """The highest tier that was tried and of which everything holds, and all below it."""
    reached: Tier | None = None
    for tier in TIERS:
        states = {result.state for result in results if result.check.tier == tier}
        if not states or states & {"failed", "blocked"}:
            break
        reached = tier
    return reached
