"""The adapter that a definition describes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, Final
from urllib.parse import quote

from syncd import adapter as sdk
from syncd.adapter import BadResponse, Offer, Order
from syncd.placeholders import fill, line, plain
from syncd.suppliers.declarative.words import Definition, Failure

HANDED_OVER: Final = ("partial", "completed")
"""The statuses in which keys are looked at: the status comes before the keys."""
_CLIENTS_OWN: Final = {401: "Auth", 403: "Auth", 408: "Transient", 429: "RateLimited"}
"""Statuses that mean this, and that the client deals with unless the errors table names them."""
_ABSENT: Final = object()
"""Instead of an answer's document: the supplier says for sure that there is no such order."""
_HINTS: Final = {
    "OutOfStock": "another offer may have it", "PriceChanged": "raise max_cost, or wait",
    "InsufficientBalance": "top up our account at the supplier", "NotForSale": "name another offer of the product",
    "Refused": "try it by hand at the supplier", "Auth": "correct this supplier's credentials",
    "Config": "correct this supplier's settings",
}  # fmt: skip
"""What to do, where a line of the errors table does not say it."""


class Declared(sdk.Adapter):
    """All that an adapter without code can do; `load` takes away the verbs that its file does not define."""

    definition: ClassVar[Definition]

    def __init__(self, context: sdk.Context) -> None:
        super().__init__(context)
        self.known = {f"settings.{name}": getattr(context.settings, name) for name in self.definition.settings}
        auth, headers = self.definition.auth, self.own(self.definition.headers)
        proof: sdk.Authentication | None = None
        if auth and auth.type == "signed":
            proof = sdk.Signed(**auth.given() | {"secret": self.own(auth.secret)}, more=self.known)
        elif auth:
            proof = auth.makes[auth.type](**{name: self.own(word) for name, word in auth.given().items()})
        self.http = context.connect(self.own(self.definition.base_url), auth=proof, headers=headers)

    def own(self, word: Any) -> Any:
        """What a word of the file stands for. A setting alone keeps its type: a secret stays one."""
        setting = word[1:-1] if isinstance(word, str) else ""
        return self.known[setting] if setting in self.known else fill(word, self.known)

    # --- one request --------------------------------------------------------------------------------------------------

    async def ask(self, verb: str, names: Mapping[str, Any], *, link: str = "") -> tuple[Any, Any]:
        """(the verb's words, what a successful answer to it holds). ``link``: the address of a further page."""
        call, zone = getattr(self.definition.verbs, verb), self.context.timezone
        names = {**self.known, "now": self.context.now(), **names}
        try:
            path = link or line(call.path, names, zone, partial(quote, safe=""))
            query, body, form = (fill(part, names, zone) for part in (call.query, call.json_, call.form))
        except ValueError as error:
            raise (sdk.NotSent if verb == "place_order" else BadResponse)(f"{verb}: {error}") from None
        read = partial(self._read, verb, call.success_when or self.definition.answer.success_when)
        found: list[Any] = []
        answer = await self.http.request(
            call.method,
            path,
            query={} if link else {name: plain(value) for name, value in query.items()},
            json=None if body is None else dict(sorted(body.items())),
            form=None if form is None else {name: plain(value) for name, value in form.items()},
            expect=self._expected(verb),
            reads=verb != "place_order",
            again=lambda answer: found.append(read(answer)),
        )
        return call, found[-1] if found else read(answer)

    def _expected(self, verb: str) -> set[int]:
        """The statuses whose answers the errors table is asked about."""
        named = [failure.status for failure in self.definition.errors if not failure.verbs or verb in failure.verbs]
        return {*range(400, 500)} - _CLIENTS_OWN.keys() | {status for some in named for status in some}

    def _read(self, verb: str, success: Any, answer: sdk.Answer) -> Any:
        """What a success holds. Raises what the first line of the table that fits says, else what the status means."""
        words, fine, document = self.definition.answer, 200 <= answer.status < 300, None  # noqa: PLR2004 - HTTP's own
        try:
            document = answer.json()
        except BadResponse:
            if fine:
                raise
        if fine and (success is None or success(document) is True):
            return document
        code, text = (place(document) if place else None for place in (words.code, words.message))
        shown = f", code {code}" if isinstance(code, int) and abs(code) < 1_000_000 else ""  # noqa: PLR2004 - no key
        what = f"{verb}: a failure that the definition does not know (status {answer.status}{shown})"
        shut_out = answer.status >= 500 or (answer.status == 403 and answer.content.lstrip()[:1] == b"<")  # noqa: PLR2004
        name = "Transient" if shut_out else _CLIENTS_OWN.get(answer.status, "BadResponse")
        hint = ""
        for failure in self.definition.errors:
            if self._fits(failure, verb, answer.status, code, text):
                name, what, hint = failure.raise_, f"{verb}: the answer means {failure.raise_}", failure.hint
                break
        wait = answer.headers.get("retry-after", "")
        if name == "RateLimited" and re.fullmatch(r"\d{1,6}", wait):
            raise sdk.RateLimited(what, hint=hint, retry_after=float(wait))
        if name == "Absent":
            return _ABSENT
        raise getattr(sdk, name)(what, hint=hint or _HINTS.get(name, ""))

    def _fits(self, failure: Failure, verb: str, status: int, code: Any, text: Any) -> bool:
        if (failure.verbs and verb not in failure.verbs) or (failure.status and status not in failure.status):
            return False
        if failure.code and (code is None or plain(code) not in map(plain, failure.code)):
            return False
        pattern = self.own(failure.message)  # of a setting that is empty, nothing fits
        return failure.message is None or bool(pattern and isinstance(text, str) and re.search(pattern, text))

    async def pages(self, verb: str, names: Mapping[str, Any]) -> AsyncIterator[tuple[Any, sdk.Part]]:
        """(the verb's words, the items of one page), page by page. Raises BadResponse as the interface's helpers do."""
        call = getattr(self.definition.verbs, verb)
        how = call.pages

        async def ask(at: Any) -> Any:
            link = str(at) if how.type == "next_link" else ""
            _, document = await self.ask(verb, {**names, how.type: at}, link=link)
            return SimpleNamespace(json=lambda: document)

        last = (lambda _: True) if how.type == "none" else how.last or ""
        ends = {"total": how.total or "", "last": last, "unique": how.unique or ""}
        if how.next:
            parts = sdk.by_cursor(ask, call.items, following=how.next)
        elif how.type == "offset":
            parts = sdk.by_offset(ask, call.items, **ends)
        else:
            parts = sdk.by_number(ask, call.items, first=self.own(how.first), **ends)
        async for part in parts:
            yield call, part

    # --- reading ------------------------------------------------------------------------------------------------------

    def offers(self, call: Any, item: Any) -> Iterator[Offer]:
        """The offers that a listed thing stands for."""
        words = self.definition.read_by(call, "offer")
        if not isinstance(item, dict) or not item:
            raise BadResponse("a listed thing that is no object")
        if not all(flag.read(item) for flag in words.only):
            return
        parts: Any = [item]
        if words.expand:
            found = words.expand(item)
            found = [{"key": key, "value": value} for key, value in found.items()] if isinstance(found, dict) else found
            if not isinstance(found, list):  # missing is not empty: what has none is left out by `only`
                raise BadResponse("expand: neither a list nor an object")
            parts = [{"item": item, "each": each} for each in found]
        for part in parts:
            data = {name: text for name, value in words.data.items() if (text := value.read(part)) is not None}
            for_sale = all(flag.read(part) for flag in words.for_sale)
            yield Offer(**{"price": None} | words.values(part), for_sale=for_sale, data=data)

    def order(self, call: Any, document: Any, **ours: str) -> Order:
        """The order that was asked for, by its id or reference, in an object or in a list of them. Raises BadResponse
        when it is not there, or another's.
        """
        words, found = self.definition.read_by(call, "order"), call.item(document)
        listed = found if isinstance(found, list) else [] if found in (None, {}) else [found]
        if not all(isinstance(one, dict) for one in listed):
            raise BadResponse("an order that is no object")
        told = {name: getattr(words, name) for name in ours if getattr(words, name)}
        read = [{name: told[name].read(one) for name in told} for one in listed]
        mine = [one for one, said in zip(listed, read, strict=True) if all(said[name] == ours[name] for name in told)]
        if lacking := [name for said in read[:1] for name in told if said[name] is None and not mine]:
            hint = f"if the supplier does not send it here, give this verb an `order` without {lacking[0]}"
            raise BadResponse(f"the answer has no {lacking[0]} where `order` has it", hint=hint)
        if len(mine) > 1 or (not mine and listed and not isinstance(found, list)):
            raise BadResponse("the answer is about another order, or about several")
        if not mine:
            hint = "look at the supplier's own page"
            raise BadResponse("the answer does not show the order, which is no proof that there is none", hint=hint)
        values = words.values(mine[0])
        handed_over = words.keys if values["status"] in HANDED_OVER else []  # a refunded one may have something there
        return Order(**values, keys=tuple(key for keys in handed_over for key in keys.keys(mine[0])))

    # --- the verbs of `Adapter` ---------------------------------------------------------------------------------------

    async def check(self) -> sdk.Check:  # noqa: D102
        call, document = await self.ask("check", {})
        return sdk.Check(**call.values(document))

    async def list_offers(self, since: datetime | None) -> AsyncIterator[sdk.Page]:  # noqa: D102
        since = since if self.promises.incremental else None
        async for call, part in self.pages("list_offers", {"since": since}):
            words = self.definition.read_by(call, "offer")
            total = None if words.only or words.expand else part.total  # of offers, not of what they are made of
            offers = [offer for item in part.items for offer in self.offers(call, item)]
            yield sdk.Page(offers, total, incremental=since is not None)

    async def get_offer(self, sku: str) -> Offer:  # noqa: D102
        name = self.definition.read_by(self.definition.verbs.get_offer, "offer").sku
        parts = sku.split(name.between) if name.join and name.between else [sku]
        if len(parts) != len(name.join or [sku]) or not all(parts):
            raise sdk.NotForSale(f"{sku} is no sku of this supplier's", hint="name one of its offers")
        names = {f"sku.{number}": part for number, part in enumerate(parts, 1)}
        call, document = await self.ask("get_offer", {"sku": sku, **names})
        found = call.item(document)
        items = found if isinstance(found, list) else [found]
        offers = [offer for item in items for offer in self.offers(call, item) if offer.sku == sku]
        if len(offers) > 1 or not items:
            raise BadResponse("get_offer: nothing in the answer, or the same twice")
        if not offers:
            raise sdk.NotForSale(f"{sku} is not among what the supplier offers", hint=_HINTS["NotForSale"])
        return offers[0]

    async def get_balance(self) -> sdk.Money:  # noqa: D102
        call, document = await self.ask("get_balance", {})
        balance: sdk.Money = call.values(document)["balance"]
        return balance

    async def place_order(self, order: sdk.OrderRequest) -> Order:
        """`Adapter.place_order`. A limit that is not sent along is compared with the price as it is now, where the
        supplier can be asked for it, else with the listed one.
        """
        used, offer, limit = self.definition.verbs.place_order.placeholders, order.offer, order.max_unit_cost
        data = {f"offer.data.{name}": value for name, value in offer.data.items()}
        lacking = sorted(name for name in used if name.startswith("offer.data.") and name not in data)
        if lacking:
            raise sdk.NotForSale(f"{offer.sku} lacks {lacking[0]}", hint="sync this supplier again")
        if limit and "max_unit_cost" not in used:
            order.price_of(await self.get_offer(offer.sku) if self.definition.verbs.get_offer else offer)
        elif limit and offer.price and offer.price.currency != limit.currency:
            raise sdk.Config(f"the price of {offer.sku} cannot be compared with a limit in {limit.currency}")
        names = {"reference": order.reference, "quantity": order.quantity, "max_unit_cost": limit, **data}
        names |= {"offer.sku": offer.sku, "callback_url": order.callback_url}
        return self.order(*await self.ask("place_order", names), reference=order.reference)

    async def get_order(self, order_id: str) -> Order:  # noqa: D102
        return self.order(*await self.ask("get_order", {"order.id": order_id}), id=order_id)

    async def find_order(self, reference: str) -> Order | None:  # noqa: D102
        call, document = await self.ask("find_order", {"reference": reference})
        # A list that is missing, or is of others, says nothing.
        if document is _ABSENT or (self.own(call.empty_is_absent) and call.item(document) == []):
            return None
        return self.order(call, document, reference=reference)

    async def fetch_keys(self, order: Order) -> Sequence[sdk.RawKey]:  # noqa: D102
        if order.status not in HANDED_OVER:
            return []
        pages = self.pages("fetch_keys", {"order.id": order.id, "order.reference": order.reference})
        return [key async for call, part in pages for keys in call.keys for key in keys.keys(part.items)]

    async def complain(self, order_id: str, text: str) -> str:  # noqa: D102
        call, document = await self.ask("complain", {"order.id": order_id, "text": text})
        return str(call.values(document).get("id", ""))

    def parse_webhook(self, webhook: sdk.Webhook) -> sdk.Hint:  # noqa: D102
        fields = webhook.fields()
        hook = next((one for one in self.definition.webhooks if one.when is None or one.when(fields) is True), None)
        if hook is None:
            raise BadResponse("a webhook of no kind that the definition knows")
        scalars = {name: value for name, value in fields.items() if not isinstance(value, list | dict)}
        came = {"query": webhook.query, "header": webhook.headers, "field": scalars}
        named = {f"{part}.{name}": value for part, values in came.items() for name, value in values.items()}
        try:
            given, time = line(hook.signature, named), line(hook.time, named)
        except ValueError:
            raise sdk.Forged("a webhook that lacks a part of its signature") from None
        given = given.lower() if hook.encoding == "hex" else given
        sent_at = sdk.instant(time, self.context.timezone) if hook.time else webhook.received_at
        signers = hook.signers(self.own(hook.secret), self.known | named)
        sdk.verify(webhook, given, signers, sent_at=sent_at, within=hook.within)
        about = hook.values(fields)
        if hook.event != "test" and not any(about.values()):
            raise BadResponse("a webhook that does not say what it is about")
        return sdk.Hint(hook.event, **about, answer=hook.reply.encode())
