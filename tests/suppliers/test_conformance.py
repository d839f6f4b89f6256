"""The kit: all of it holds for a good adapter, and each check is turned red by the one mistake that it is there for.

The negative control is a table: one change of a good adapter (or of its examples) for each check. It must turn that
check red, and no other but those that look at the same thing from another side.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from syncd.errors import ConfigError
from syncd.suppliers import conformance as kit
from syncd.suppliers import registry
from syncd.suppliers.client import Sent
from syncd.suppliers.conformance import CHECKS, conformance, examined, tier_of
from syncd.suppliers.conformance import examples as form
from syncd.suppliers.conformance.checks import IN_TOML
from syncd.suppliers.conformance.script import Script

HERE = Path(__file__).parent / "kit"
BUNDLED = registry.bundled()


@dataclass(frozen=True)
class Mutation:
    """Texts exchanged in an adapter (or in its examples), and what turns red besides the check that it is made for."""

    check: str
    changes: tuple[tuple[str, str], ...]
    also: frozenset[str] = frozenset()
    adapter: Path = HERE / "acme.py"

    def __str__(self) -> str:
        return self.check


def acme(check: str, *changes: tuple[str, str], also: str = "") -> Mutation:
    return Mutation(check, changes, frozenset(also.split()))


def feed(check: str, *changes: tuple[str, str], also: str = "") -> Mutation:
    return Mutation(check, changes, frozenset(also.split()), BUNDLED / "feed.py")


PLACED = "        found = answer.object()\n        if answer.status == 409:\n"
POSTED = '        answer = await self.http.post("/v1/orders", json=body, expect={409})\n'
ASKED = 'self.http.get("/v1/goods", query={"page": page, **changed})'
OFFERS = '[self.offer(item) for item in body["goods"]]'
YIELDED = f'            yield Page({OFFERS}, body["total"], incremental=since is not None)\n'
LAST = '            if page >= body["pages"]:\n                return\n'
FOUND = 'return self.order((await self.http.get(f"/v1/orders/{order_id}")).object())'
IMPORT = "from syncd.adapter import (\n"

MUTATIONS = [
    acme("it-loads", ("ADAPTER = Acme", "")),
    acme("it-imports-one-module", (IMPORT, f"from syncd.model import utc\n{IMPORT}")),
    acme("it-has-a-title", ('title = "Acme Cards"', 'title = " "')),
    acme("its-settings-are-documented", ('    """Where the API is."""\n', "")),
    acme(
        "building-it-touches-nothing",
        (
            "        super().__init__(context)\n",
            "        super().__init__(context)\n        open('/etc/hostname').close()\n",
        ),
    ),
    acme("its-capabilities-make-sense", ("Promises(same", "Promises(reference_length=40, same")),
    acme("its-examples-fit", ("[expect]\n", '[exempt]\nno-such-check = "why"\n[expect]\n')),
    # the listing
    acme("the-listing-is-as-documented", ('title=item["name"]', 'title=item["name"].upper()')),
    acme("the-last-page-ends", (LAST, LAST.replace("return", f"await {ASKED}\n                return"))),
    acme(
        "a-repeated-page-is-no-endless-loop",
        ("        page = 1\n", "        page, found = 1, []\n"),
        (YIELDED, '            found += [self.offer(item) for item in body["goods"]]\n'),
        (
            LAST,
            (
                '            if body["goods"][0]["id"] == 1003:\n'
                "                yield Page(found, incremental=since is not None)\n                return\n"
            ),
        ),
    ),
    acme(
        "half-a-listing-is-none",
        (
            f"            body = (await {ASKED}).object()\n",
            (
                f"            try:\n                body = (await {ASKED}).object()\n"
                "            except Exception:\n                if page == 1:\n                    raise\n"
                "                return\n"
            ),
        ),
    ),
    acme(
        "garbage-empties-no-stock",
        (
            f"            body = (await {ASKED}).object()\n",
            (
                f"            answer = await {ASKED}\n"
                "            if page == 1 and not answer.content:\n                return\n"
                "            body = answer.object()\n"
            ),
        ),
    ),
    acme("wrong-types-empty-no-stock", ('for item in body["goods"]]', 'for item in body["goods"] or []]')),
    acme(
        "duplicate-skus-are-caught",
        (YIELDED, YIELDED.replace(OFFERS, f"list({{one.sku: one for one in {OFFERS}}}.values())")),
    ),
    acme(
        "minus-one-is-unlimited-or-refused",
        ('item["stock"], unlimited=-1', 'max(0, item["stock"]) if item["stock"] == -1 else item["stock"]'),
        also="the-listing-is-as-documented",
    ),
    acme("a-stock-is-a-number-or-refused", ('item["stock"], unlimited', 'item.get("stock", 0), unlimited')),
    acme("a-price-is-a-number-or-refused", ('money(item["price"],', 'money(item.get("price", "0"),')),
    acme("an-unknown-state-is-not-for-sale", ('for_sale=item["status"] == "on"', 'for_sale=item["status"] != "off"')),
    acme("another-currency-is-seen", ('money(item["price"], item["currency"])', 'money(item["price"], "CNY")')),
    # what is asked
    acme("garbage-is-never-an-answer", ('found = body["orders"]', 'found = body.get("orders", [])')),
    acme(
        "refused-credentials-are-auth",
        (
            'body = (await self.http.get("/v1/account")).object()\n        return money',
            'body = (await self.http.get("/v1/account", expect={401})).object()\n        return money',
        ),
    ),
    acme("a-pause-that-is-asked-for-is-kept", ('f"/v1/orders/{order_id}")', 'f"/v1/orders/{order_id}", expect={429})')),
    acme(
        "redirects-are-refused",
        (
            FOUND,
            (
                'answer = await self.http.get(f"/v1/orders/{order_id}", expect={302})\n'
                "        if answer.status == 302:\n"
                '            answer = await self.context.connect(answer.headers["location"]).get("")\n'
                "        return self.order(answer.object())"
            ),
        ),
    ),
    acme(
        "reading-buys-nothing",
        (
            '        body = (await self.http.get("/v1/account")).object()\n        return money',
            (
                '        await self.http.post("/v1/orders", json={}, expect={404})\n'
                '        body = (await self.http.get("/v1/account")).object()\n        return money'
            ),
        ),
        also="its-examples-fit",
    ),
    acme("situations-end-as-documented", ('raise NotForSale(f"{sku} is gone"', 'raise BadResponse(f"{sku} is gone"')),
    # what is bought
    acme("an-order-is-as-documented", ('            charged=money(body["total"], body["currency"]),\n', "")),
    acme(
        "one-request-buys",
        (
            "        return self.order(found)\n",
            (
                "        placed = self.order(found)\n"
                '        await self.http.post("/v1/orders", json=body)\n        return placed\n'
            ),
        ),
    ),
    acme(
        "a-lost-answer-is-unknown",
        (
            POSTED,
            (
                f"        try:\n    {POSTED}        except OutcomeUnknown:\n"
                '            raise OutOfStock("it did not work", hint="take another") from None\n'
            ),
        ),
    ),
    acme(
        "an-order-in-pieces-is-unknown",
        (
            PLACED,
            (
                '        found = answer.object()\n        if "no" in found and "total" not in found:\n'
                f'            raise NotForSale("no total", hint="take another")\n{PLACED}'
            ),
        ),
    ),
    acme(
        "what-was-not-sent-is-not-sent",
        (
            POSTED,
            (
                f"        try:\n    {POSTED}        except AdapterError as error:\n"
                '            raise OutcomeUnknown("it did not work", hint="ask") from error\n'
            ),
        ),
        (IMPORT, f"{IMPORT}    AdapterError,\n"),
        also="a-pause-that-is-asked-for-is-kept",
    ),
    acme("refusals-are-typed", ('"sold_out": OutOfStock', '"sold_out": PriceChanged')),
    acme(
        "an-unlisted-refusal-is-refused",
        ('REFUSALS.get(str(found["error"]), Refused)', 'REFUSALS.get(str(found["error"]), Auth)'),
        (IMPORT, f"{IMPORT}    Auth,\n"),
    ),
    acme(
        "the-reference-is-sent-once-as-it-is",
        ('"out_no": order.reference}', '"out_no": order.reference, "memo": order.reference}'),
    ),
    acme(
        "the-price-limit-is-sent",
        ('            body["max_price"] = str(order.max_unit_cost.amount)', "            pass"),
    ),
    acme("keys-are-as-documented", (', id=card["id"])', ")")),
    acme("keys-arrive-as-they-were-sent", ('"pin": card["pin"]', '"pin": card["pin"].strip()')),
    acme(
        "a-refunded-order-has-no-keys",
        ('        if order.status in {"canceled", "refunded"}:\n            return []\n', ""),
    ),
    acme("an-unknown-status-is-no-success", ('STATUSES[body["status"]]', 'STATUSES.get(body["status"], "completed")')),
    acme(
        "a-refusal-is-not-no-such-order",
        ('if body.get("error") is not None', 'if body.get("orders") is None'),
    ),
    acme(
        "the-same-reference-is-the-same-order",
        (POSTED, f'        body["at"] = __import__("time").perf_counter_ns()\n{POSTED}'),
    ),
    acme(
        "an-unknown-reference-is-none",
        (
            "return self.order(found[0]) if found else None",
            'if not found:\n            raise BadResponse("no such order")\n        return self.order(found[0])',
        ),
    ),
    acme(
        "a-cancelled-verb-leaves-nothing-open",
        (
            FOUND,
            (
                'work = asyncio.ensure_future(self.http.get(f"/v1/orders/{order_id}"))\n'
                "        return self.order((await asyncio.shield(work)).object())"
            ),
        ),
        ("from collections.abc", "import asyncio\nfrom collections.abc"),
    ),
    # secrets, signatures, webhooks
    acme(
        "nothing-secret-is-seen",
        ("        return [\n            RawKey", "        print(answer.content)\n        return [\n            RawKey"),
    ),
    acme("signatures-are-as-documented", ("{request.method}\\n{request.path}", "{request.path}\\n{request.method}")),
    acme("a-webhook-is-as-documented", ('reference=body.get("out_no", "")', 'reference=""')),
    acme("a-changed-webhook-is-refused", ("if not same(sign", "if len(sign) != 64 and not same(sign")),
    acme("an-old-webhook-is-refused", ("int(stamp)) > 300", "int(stamp)) > 300_000")),
    acme(
        "garbage-is-no-webhook",
        ("        stamp, sign = webhook", "        webhook.body.decode()\n        stamp, sign = webhook"),
    ),
    # feeds
    feed(
        "a-feed-hands-over-what-lies-there",
        ("self.product, self.label, self.size = path.parent.name", "self.product, self.label, self.size = path.stem"),
    ),
    feed(
        "a-payload-reads-the-same-again",
        (
            '        return os.fdopen(descriptor, "rb", buffering=1 << 20)',
            (
                '        stream = os.fdopen(descriptor, "rb")\n'
                '        stream.seek(getattr(self, "at", 0))\n        self.at = 3\n        return stream'
            ),
        ),
    ),
    feed("a-change-is-noticed", ("return _stamp(self.path.lstat()) == self.stamp", "return self.path.exists()")),
    feed(
        "finish-can-be-repeated",
        ("        if not taken.is_dir():\n            taken.mkdir()", "        if True:\n            taken.mkdir()"),
        also="no-copy-is-left-in-the-clear an-unknown-product-is-left",
    ),
    feed(
        "no-copy-is-left-in-the-clear",
        ("                seal(source, target)", "                target.write(source.read())"),
    ),
    feed("an-unknown-product-is-left", ("if files and folder.name not in pull.products:", "if False:")),
    feed(
        "a-feed-stops-when-it-is-asked-to",
        ("while found and not pull.stopping():", "while found:"),
        ("                if pull.stopping():\n                    return\n", ""),
    ),
    # gold
    acme(
        "check-says-whether-it-works",
        ('str(body["name"]), balance=money(body["balance"], body["currency"])', 'str(body["name"])[:0]'),
    ),
    acme("get-offer-agrees-with-the-listing", ("return self.offer(body)", 'return self.offer({**body, "stock": 1})')),
    acme(
        "its-balance-can-be-asked",
        ('        return money(body["balance"], body["currency"])', '        return money(body["balance"], "USD")'),
    ),
    acme(
        "an-order-can-be-found-again",
        ("same_reference_same_order=True", "same_reference_same_order=False"),
        ("async def find_order", "async def _find_order"),
        also="its-examples-fit",
    ),
    acme("offers-have-titles", ('title=item["name"]', 'title=item["name"] if item["stock"] else ""')),
    acme(
        "what-is-unverified-is-said", ('    unverified = ("Whether a callback is sent again after an error.",)\n', "")
    ),
    acme(
        "errors-say-what-to-do",
        ('("the order is refused", hint="see the account\'s page")', '("the order is refused")'),
    ),
    acme(
        "settings-have-defaults",
        (' = "https://api.acme.example"\n', "\n"),
        (
            '    url: str\n    """Where',
            '    a: int\n    """A."""\n    b: int\n    """B."""\n    c: int\n    """C."""\n    url: str\n    """Where',
        ),
        ("[settings]\n", '[settings]\na = 1\nb = 2\nc = 3\nurl = "https://api.acme.example"\n'),
    ),
    acme("changes-can-be-asked-for", ("incremental=since is not None)", "incremental=False)")),
    acme("a-bad-key-can-be-complained-of", ("async def complain", "async def _complain"), also="its-examples-fit"),
    acme(
        "credentials-stay-out-of-addresses",
        ('query={"page": page, **changed}', 'query={"page": page, "k": self.context.settings.key.reveal(), **changed}'),
    ),
]


def mutated(mutation: Mutation, folder: Path) -> Path:
    """The adapter and its examples with the changes; each must be found, in one of the two."""
    texts = {path: path.read_text(encoding="utf-8") for path in (mutation.adapter, form.path_of(mutation.adapter))}
    for old, new in mutation.changes:
        (where,) = [path for path, text in texts.items() if old in text]  # a change that changes nothing proves nothing
        texts[where] = texts[where].replace(old, new)
    for path, text in texts.items():
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder / mutation.adapter.name


def red(file: Path) -> set[str]:
    return {result.check.name for result in examined(file) if result.state in {"failed", "blocked"}}


@pytest.mark.parametrize("adapter", [HERE / "acme.py", BUNDLED / "feed.py"], ids=lambda path: path.stem)
def test_everything_holds_for_a_good_adapter(adapter: Path) -> None:
    results = list(examined(adapter))
    assert [(one.check.name, one.findings, one.reason) for one in results if one.state in {"failed", "blocked"}] == []
    assert tier_of(results) == "gold"
    assert len(results) == len(CHECKS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_negative_control_each_mistake_turns_its_check_red_and_no_other(
    mutation: Mutation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the others each mistake meets a quarter, another one each time: all of them take minutes."""
    own, turn, whole = {mutation.check, *mutation.also}, MUTATIONS.index(mutation), kit._up_to
    monkeypatch.setattr(
        kit,
        "_up_to",
        lambda tier: [one for at, one in enumerate(whole(tier)) if one.name in own or (at + turn) % 4 == 0],
    )
    found = red(mutated(mutation, tmp_path))
    assert mutation.check in found
    assert found - {mutation.check} == mutation.also


def test_every_check_has_its_mistake() -> None:
    assert {one.check for one in MUTATIONS} | {"it-has-its-page"} == set(CHECKS)
    assert len(MUTATIONS) == len({one.check for one in MUTATIONS})


def test_negative_control_a_bundled_adapter_without_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs" / "adapters").mkdir(parents=True)
    (tmp_path / "adapters").mkdir()
    for path in (HERE / "acme.py", HERE / "acme.examples.toml"):
        shutil.copy(path, tmp_path / "adapters")
    monkeypatch.setattr(registry, "bundled", lambda: tmp_path / "adapters")
    assert red(tmp_path / "adapters" / "acme.py") == {"it-has-its-page"}
    (tmp_path / "docs" / "adapters" / "acme.md").touch()
    assert red(tmp_path / "adapters" / "acme.py") == set()


WORSE = {
    "an example that nothing asks for": (
        "its-examples-fit",
        (
            '[[exchange]]\nverb = "fetch_keys"',
            '[[exchange]]\nverb = "get_balance"\nrequest = "GET /v1/wallet"\n\n[[exchange]]\nverb = "fetch_keys"',
        ),
    ),
    "an example of another address": (
        "its-examples-fit its-balance-can-be-asked check-says-whether-it-works",
        ('request = "GET /v1/account"', 'request = "GET /account"'),
    ),
    "an error that nobody has documented, read as no such order": (
        "a-refusal-is-not-no-such-order",
        ('if body.get("error") is not None', 'if body.get("error") == "busy"'),
    ),
    "an expectation that nothing is compared with": (
        "its-examples-fit check-says-whether-it-works",
        ("async def check", "async def _check"),
    ),
    "a time that stands still": (
        "signatures-are-as-documented",
        ('{"x-time": stamp,', '{"x-time": "1700000000",'),
        ("headers = { X-Sign", 'headers = { X-Time = "1700000000", X-Sign'),
    ),
    "an order that claims to read": (
        "one-request-buys a-lost-answer-is-unknown an-order-in-pieces-is-unknown",
        ("json=body, expect={409})", "json=body, expect={409}, reads=True)"),
    ),
    "an order sent again after an error page": (
        "a-lost-answer-is-unknown",
        (POSTED, POSTED.replace("{409}", "{409, 500}") + f"        if answer.status == 500:\n    {POSTED}"),
    ),
    "a listing that is empty when it is refused": (
        "garbage-empties-no-stock refused-credentials-are-auth wrong-types-empty-no-stock half-a-listing-is-none",
        (ASKED, ASKED.replace("**changed}", "**changed}, expect={302, 401, 403, 404, 500, 503}")),
        ('for item in body["goods"]]', 'for item in body.get("goods", [])]'),
        ('body["total"]', 'body.get("total")'),
        ('body["pages"]', 'body.get("pages", 1)'),
    ),
    "a webhook that nobody signs": (
        "a-changed-webhook-is-refused an-old-webhook-is-refused",
        ("if not same(sign", "if False and not same(sign"),
        ("int(stamp)) > 300", "int(stamp)) > 300_000"),
    ),
    "a task that goes on to buy after it is cancelled": (
        "a-cancelled-verb-leaves-nothing-open",
        (
            POSTED,
            POSTED.replace("await self", "await asyncio.shield(asyncio.ensure_future(self").replace(
                "{409})", "{409})))"
            ),
        ),
        ("from collections.abc", "import asyncio\nfrom collections.abc"),
    ),
}


@pytest.mark.parametrize("mistake", WORSE)
def test_M1_negative_control_more_ways_to_lose_money(mistake: str, tmp_path: Path) -> None:
    seen_by, *changes = WORSE[mistake]
    assert red(mutated(acme(mistake, *changes), tmp_path)) == set(seen_by.split())


LEAKS = {
    "a log line": (PLACED, f'        __import__("logging").getLogger("acme").info("%s", answer.content)\n{PLACED}'),
    "a print": (PLACED, f"        print(answer.content)\n{PLACED}"),
    "an error's text": ('("the order is refused", hint', '(f"refused: {found}", hint'),
    "an error's text, where nobody has documented the error": (
        'raise Transient("the orders cannot be looked at now")',
        'raise Transient("not now" if body["error"] == "busy" else str(body))',
    ),
    "an error's text, of an answer without keys": ('f"{sku} is gone"', 'f"{sku} is gone: {answer.content!r}"'),
    "an error's hint": ('hint="see the account\'s page")', "hint=str(found))"),
    "a repr": (
        "    def sign(self",
        '    def __repr__(self):\n        return f"Acme({self.context.settings.key.reveal()})"\n\n    def sign(self',
    ),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_S4_negative_control_a_key_or_a_credential_is_seen_wherever_it_shows(leak: str, tmp_path: Path) -> None:
    assert red(mutated(acme("nothing-secret-is-seen", LEAKS[leak]), tmp_path)) == {"nothing-secret-is-seen"}


# --- exempt, inapplicable, blocked ------------------------------------------------------------------------------------


def with_examples(folder: Path, *changes: tuple[str, str]) -> Path:
    return mutated(Mutation("", changes), folder)


def test_what_is_exempt_or_does_not_apply_is_not_passed(tmp_path: Path) -> None:
    why = "the time of a callback is not signed"
    file = with_examples(tmp_path, ("[expect]\n", f'[exempt]\nan-old-webhook-is-refused = "{why}"\n[expect]\n'))
    results = {one.check.name: one for one in examined(file)}
    assert (results["an-old-webhook-is-refused"].state, results["an-old-webhook-is-refused"].reason) == ("exempt", why)
    assert results["a-change-is-noticed"].state == "inapplicable"
    assert results["a-change-is-noticed"].reason == "there is no pull_keys"
    assert tier_of(list(results.values())) == "gold"


@pytest.mark.parametrize("reason", ["", "  "])
def test_an_exemption_needs_a_reason_and_bronze_has_none(reason: str, tmp_path: Path) -> None:
    file = with_examples(tmp_path, ("[expect]\n", f'[exempt]\nan-old-webhook-is-refused = "{reason}"\n[expect]\n'))
    assert red(file) == {"its-examples-fit"}
    file = with_examples(tmp_path, ("[expect]\n", '[exempt]\nit-has-a-title = "it has none"\n[expect]\n'))
    assert red(file) == {"its-examples-fit"}


def test_what_stands_on_a_broken_listing_is_blocked_and_no_tier_is_reached(tmp_path: Path) -> None:
    file = mutated(acme("", ('price=money(item["price"]', 'price=money(item["cost"]')), tmp_path)
    results = {one.check.name: one for one in examined(file)}
    assert results["the-listing-is-as-documented"].state == "failed"
    assert results["keys-arrive-as-they-were-sent"].state == "blocked"
    assert "list_offers with the examples ends in BadResponse" in results["keys-arrive-as-they-were-sent"].reason
    assert results["keys-arrive-as-they-were-sent"].by == "the-listing-is-as-documented"
    assert tier_of(list(results.values())) == "bronze"
    assert tier_of([one for one in results.values() if one.check.tier == "bronze"]) == "bronze"


def test_a_mistake_in_init_is_told_with_its_line_and_blocks_the_rest(tmp_path: Path) -> None:
    file = mutated(acme("", ("context.connect(", "context.konnect(")), tmp_path)
    results = {one.check.name: one for one in examined(file)}
    seen = results["building-it-touches-nothing"]
    assert seen.state == "failed"
    line = 1 + file.read_text(encoding="utf-8").splitlines().index(
        "        self.http = context.konnect(context.settings.url, auth=self.sign)"
    )
    assert f"acme.py, line {line}: AttributeError: " in seen.findings[0][0]
    assert "konnect" in seen.findings[0][0]
    others = {one.state for name, one in results.items() if name != "building-it-touches-nothing"}
    assert "failed" not in others
    assert {one.by for one in results.values() if one.state == "blocked"} == {"building-it-touches-nothing"}
    assert "made-up" not in str(results)


def test_a_verb_that_fails_before_it_sends_is_told_by_its_own_check_alone(tmp_path: Path) -> None:
    file = mutated(acme("", (FOUND, "return self.nosuch(order_id)")), tmp_path)
    states = {one.check.name: (one.state, one.by) for one in examined(file, up_to="silver")}
    assert states["an-order-is-as-documented"] == ("failed", "")
    assert states["a-cancelled-verb-leaves-nothing-open"] == ("blocked", "an-order-is-as-documented")


def test_an_error_of_a_kind_of_its_own_is_what_its_nearest_public_kind_is(tmp_path: Path) -> None:
    own = "class Gone(NotForSale):\n    pass\n\n\nREFUSALS: Mapping"
    changes = ('raise NotForSale(f"{sku} is gone"', 'raise Gone(f"{sku} is gone"'), ("REFUSALS: Mapping", own)
    assert red(mutated(acme("", *changes), tmp_path)) == set()


def test_an_adapter_without_code_is_told_what_to_do_in_its_own_words(tmp_path: Path) -> None:
    for name in ("kasushou.toml", "kasushou.examples.toml"):
        text = (BUNDLED / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace('raise = "OutOfStock"', 'raise = "Refused"'))
    wrong = [one for one in examined(tmp_path / "kasushou.toml", up_to="silver") if one.state == "failed"]
    assert {todo for one in wrong for _, todo in one.findings} & {IN_TOML["refusals-are-typed"]}
    assert IN_TOML.keys() <= CHECKS.keys()


# --- for pytest -------------------------------------------------------------------------------------------------------


def test_in_pytest_each_check_that_applies_is_a_test(tmp_path: Path) -> None:
    kit = conformance(HERE / "acme.py")
    names = [str(one) for one in kit.checks("silver")]
    assert len(names) > 40
    assert "a-change-is-noticed" not in names
    assert "offers-have-titles" not in names
    assert "offers-have-titles" in map(str, kit.checks("gold"))
    kit.holds(CHECKS["refusals-are-typed"])
    bad = conformance(mutated(acme("", ('"sold_out": OutOfStock', '"sold_out": PriceChanged')), tmp_path))
    with pytest.raises(
        AssertionError, match=r"sold out .place_order.: PriceChanged, expected is OutOfStock\n    -> map"
    ):
        bad.holds(CHECKS["refusals-are-typed"])


def test_examples_may_come_from_python() -> None:
    tree = form.tree(form.path_of(HERE / "acme.py"))
    tree["expect"]["offers"] = 4
    kit = conformance(HERE / "acme.py", examples=tree)
    with pytest.raises(AssertionError, match="3 offers were found, 4 are expected"):
        kit.holds(CHECKS["the-listing-is-as-documented"])


# --- the form of the examples -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"setings": {}}, "setings: there is no such name -> did you mean settings?"),
        ({"exchange": [{"request": "GET v1/goods"}]}, "exchange[1].request: write a method and a path from the root"),
        ({"exchange": [{"verb": "list_offer", "request": "GET /"}]}, "did you mean list_offers?"),
        (
            {"exchange": [{"request": "GET /", "stauts": 200}]},
            "exchange[1].stauts: there is no such name -> did you mean status?",
        ),
        (
            {"exchange": [{"request": "GET /"}], "situation": [{"about": "x", "raises": "OutofStock"}]},
            "did you mean OutOfStock?",
        ),
        ({"exchange": [{"request": "GET /"}], "situation": [{"about": "x"}]}, 'raises = "…" or gives = { … }'),
        ({"situation": [{"about": "x", "raises": "Refused"}]}, "situations without exchanges"),
        ({"exchange": [{"verb": "place_order", "request": f"POST /{n}"} for n in (1, 2)]}, "say buys = true"),
        ({"expect": {"offer": [{"sku": "1", "price": "9.90"}]}}, "expect.offer[1].price: this is not an amount"),
        ({"expect": {"offer": [{"sku": "1", "stock": "many"}]}}, "expect.offer[1].stock"),
        ({"expect": {"keys": [{"text": "a", "fields": {"b": "c"}}]}}, "a key is one of text, fields and image"),
        ({"feed": {"files": {}}}, "feed.gives: it is missing -> add it"),
    ],
)
def test_wrong_examples_are_refused_with_their_place(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        form.parse(tree)
    assert said in str(caught.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        form.parse({"exchange": [{"reqest": "GET /"}], "expect": {"ofers": 1}})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('key = "made-up-key-5c1f"', 'key = "short"', "settings.key: a credential that is too short"),
        ('key = "made-up-key-5c1f"\n', "", "settings.key: Field required"),
        ('key = "made-up-key-5c1f"', 'key = "made-up-key-5c1f"\nkye = 1', "settings.kye: Extra inputs"),
    ],
)
def test_settings_that_do_not_fit_the_adapter_are_told(old: str, new: str, said: str, tmp_path: Path) -> None:
    (result,) = examined(with_examples(tmp_path, (f"[settings]\n{old}", f"[settings]\n{new}")))
    assert result.check.name == "its-examples-fit"
    assert said in result.findings[0][0]


def test_of_exchanges_that_fit_the_one_that_asks_for_most_answers_and_equals_take_turns() -> None:
    tree = {
        "exchange": [
            {"request": "GET /goods", "reply": "any"},
            {"request": "GET /goods?page=2", "reply": "second"},
            {"verb": "get_order", "request": "GET /order", "reply": "pending"},
            {"verb": "get_order", "request": "GET /order", "reply": "done"},
            {"request": "POST /goods", "sends": {"a": {"b": 1}}, "reply": "nested"},
        ]
    }
    script = Script(form.parse(tree))

    def played(method: str, path: str, verb: str, query: dict[str, str] | None = None, body: bytes = b"") -> str:
        sent = Sent(method, f"https://x.example{path}", path, query or {}, {}, body, verb, method == "GET")
        return script.play(sent).body.decode()

    assert played("GET", "/goods", "list_offers") == "any"
    assert played("GET", "/goods", "list_offers", {"page": "2", "more": "1"}) == "second"
    assert [played("GET", "/order", "get_order") for _ in range(3)] == ["pending", "done", "done"]
    assert played("POST", "/goods", "", body=b'{"a": {"b": 1, "c": 2}}') == "nested"
    assert script.unfit == []
    assert played("POST", "/goods", "", body=b'{"a": {"b": true}}') == "nested"  # the near one, but it is told
    assert script.unfit == ["POST /goods: the body's a's b is true, documented is 1"]
    assert played("GET", "/other", "") == "nothing of the kind"
