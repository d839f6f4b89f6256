"""The adapter that a definition describes. `Verbs` has every verb; `loading` takes those that a file defines."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any, ClassVar, Final
from urllib.parse import quote, urlsplit

from syncd import adapter as sdk
from syncd.adapter import AdapterError, BadResponse, Config, Forged, Offer, Order, OutcomeUnknown, SecretText
from syncd.suppliers.declarative.signing import body_fields, body_names, sorted_fields, sorted_json
from syncd.suppliers.declarative.texts import Template, filled, plain
from syncd.suppliers.declarative.values import HANDED_OVER, FlagValue
from syncd.suppliers.declarative.words import Auth, Call, Definition, Failure, Hook, OfferWords, OrderWords, Pages

_MOST_PAGES: Final = 20_000
_CLIENTS_OWN: Final = {401: "Auth", 403: "Auth", 408: "Transient", 429: "RateLimited"}
"""Statuses that mean this, and that the client deals with unless the errors table names them."""
_CERTAIN: Final = (sdk.Auth, Config, sdk.NotSent, OutcomeUnknown, sdk.RateLimited, sdk.Refused)
"""What may come of place_order when something was sent; whatever else happens then is an unknown outcome (M1)."""


class _AbsentError(AdapterError):
    """The supplier says for sure that there is no such order."""


class Declared(sdk.Adapter):
    """What all adapters without code share."""

    definition: ClassVar[Definition]

    def __init__(self, context: sdk.Context) -> None:
        super().__init__(context)
        self.known = {f"settings.{name}": getattr(context.settings, name) for name in self.definition.settings}
        headers = {name: text.line(self.known) for name, text in self.definition.headers.items()}
        self.http = context.connect(self.definition.base_url.line(self.known), auth=self._auth(), headers=headers)

    # --- who we are ---------------------------------------------------------------------------------------------------

    def _auth(self) -> sdk.Authentication | None:
        auth = self.definition.auth
        if auth is None:
            return None
        match auth.type:
            case "api_key":
                return sdk.ApiKey(self._secret(auth.key), auth.header, auth.query)
            case "bearer":
                return sdk.Bearer(self._secret(auth.token))
            case "basic":
                return sdk.Basic(auth.user.line(self.known), self._secret(auth.password))
            case "oauth2":
                extra = {name: text.line(self.known) for name, text in auth.extra.items()}
                url, client = auth.token_url.line(self.known), auth.client_id.line(self.known)
                return sdk.OAuth2(url, client, self._secret(auth.client_secret), extra, auth.send_as)
            case "signed" if auth.headers:
                return lambda request: self._in_headers(auth, request)
        return None

    def _secret(self, text: Template) -> SecretText:
        found: SecretText = self.known[text.slots[0].name]
        return found

    def _in_headers(self, auth: Auth, request: sdk.Request) -> dict[str, str]:
        """The headers of one try."""
        names = {
            "method": request.method,
            "path": request.path,
            **body_names(request.body),
            "fields": lambda _: sorted_fields(auth.signed({**request.query, **body_fields(request.body)[0]})),
        }
        return {name: plain(value) for name, value in self._placed(auth, auth.headers, names, request.at).items()}

    def _in_fields(self, auth: Auth, method: str, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of one request with its signature among them."""
        base = urlsplit(self.definition.base_url.line(self.known)).path.rstrip("/")
        names: dict[str, Any] = {"method": method, "path": f"{base}/{path.lstrip('/')}"}
        at = self.context.now()
        unsigned = {name: text for name, text in auth.add.items() if "signature" not in {s.name for s in text.slots}}
        fields = {**fields, **self._placed(auth, unsigned, names, at)}
        names["fields"] = lambda _: sorted_fields(auth.signed(fields))
        return {**fields, **self._placed(auth, auth.add, names, at)}

    def _placed(
        self, auth: Auth, places: Mapping[str, Template], names: Mapping[str, Any], at: datetime
    ) -> dict[str, Any]:
        """Where signature and time go, filled in."""
        stamp = int(at.timestamp() * (1000 if auth.timestamp == "ms" else 1))
        signed = {**self.known, **names, "timestamp": str(stamp)}
        sign = {"signature": lambda _: auth.of(auth.text, signed, self._secret(auth.secret))}
        return {name: text.fill(signed | sign) for name, text in places.items()}

    # --- one request --------------------------------------------------------------------------------------------------

    async def ask(self, verb: str, names: Mapping[str, Any], *, link: str = "") -> tuple[Any, Any]:
        """(the verb's words, what the answer to its request holds). ``link``: the address of a further page.

        Raises what the errors table says, and what an `Http` raises.
        """
        call: Call = getattr(self.definition.verbs, verb)
        names, zone = {**self.known, "now": self.context.now(), **names}, self.context.timezone
        path = link or call.path.line(names, zone, _in_path)
        query = {} if link else filled(call.query, names, zone)
        json, form = filled(call.json_, names, zone), filled(call.form, names, zone)
        auth = self.definition.auth
        if auth and auth.add:
            target = next(fields for fields in (json, form, query) if fields is not None)
            target.update(self._in_fields(auth, call.method, path, target))
        answer = await self.http.request(
            call.method,
            path,
            query={name: plain(value) for name, value in query.items()},
            json=None if json is None else dict(sorted(json.items())),
            form=None if form is None else {name: plain(value) for name, value in form.items()},
            expect=self._expected(verb),
            reads=verb != "place_order",
        )
        return call, self._read(verb, call, answer)

    def _expected(self, verb: str) -> frozenset[int]:
        """The statuses whose answers the errors table is asked about."""
        errors = [failure for failure in self.definition.errors if not failure.verbs or verb in failure.verbs]
        named = {status for failure in errors for status in failure.status}
        return frozenset(named | ({*range(400, 500)} - _CLIENTS_OWN.keys() if errors else set()))

    def _read(self, verb: str, call: Call, answer: sdk.Answer) -> Any:
        """What a successful answer holds."""
        success = call.success_when or self.definition.answer.success_when
        fine = 200 <= answer.status < 300  # noqa: PLR2004 - HTTP's own
        document: Any = None
        try:
            document = answer.json()
        except BadResponse:
            if fine:
                raise
        if fine and (success is None or success(document) is True):
            return document
        raise self._failure(verb, answer, document)

    def _failure(self, verb: str, answer: sdk.Answer, document: Any) -> AdapterError:
        """The error that an answer stands for: what the first line of the table that fits says, else by its status."""
        words = self.definition.answer
        code, text = (place(document) if place else None for place in (words.code, words.message))
        for failure in self.definition.errors:
            if self._fits(failure, verb, answer.status, code, text):
                return _error(failure.raise_, f"{verb}: the answer means {failure.raise_}", answer)
        shown = f", code {code}" if isinstance(code, int) and abs(code) < 1_000_000 else ""  # noqa: PLR2004 - no key
        what = f"{verb}: a failure that the definition does not know (status {answer.status}{shown})"
        otherwise = "Transient" if answer.status >= 500 else "BadResponse"  # noqa: PLR2004 - HTTP's own
        return _error(_CLIENTS_OWN.get(answer.status, otherwise), what, answer)

    def _fits(self, failure: Failure, verb: str, status: int, code: Any, text: Any) -> bool:
        if (failure.verbs and verb not in failure.verbs) or (failure.status and status not in failure.status):
            return False
        if failure.code and (code is None or plain(code) not in map(plain, failure.code)):
            return False
        pattern = failure.message.fill(self.known) if failure.message else None
        return failure.message is None or bool(pattern and isinstance(text, str) and re.search(pattern, text))

    async def pages(self, verb: str, names: Mapping[str, Any]) -> AsyncIterator[tuple[Any, list[Any]]]:
        """(the verb's words, the items of one page), page by page. Raises BadResponse for a page that came before, for
        a listing that is shorter than it says, and for one that does not end.
        """
        count, cursor, link = 0, "", ""
        seen: set[bytes] = set()
        known: dict[str, str] = {}
        before: list[Any] | None = None
        for number in range(_MOST_PAGES):
            pages: Pages = getattr(self.definition.verbs, verb).pages
            first = int(pages.first.line(self.known)) if isinstance(pages.first, Template) else pages.first
            turn = {"page": first + number, "offset": count, "cursor": cursor}
            call, document = await self.ask(verb, {**names, **turn}, link=link)
            items = call.items(document)
            if not isinstance(items, list):
                raise BadResponse(f"{verb}: there is no list at {call.items.text!r}")
            # Asked for 0 and then 1, a supplier that counts from 1 may give its first page twice.
            if not (pages.unique and number == 1 and items == before):
                _new(seen, repr(items) if items else "", verb)
            before = items
            if pages.unique:
                items = [item for item in items if _first(known, pages.unique(item), item, verb)]
            count += len(items)
            yield call, items
            if pages.type == "none" or (
                pages.type in {"page", "offset"} and _ended(pages, document, before, count, number)
            ):
                return
            if pages.type in {"cursor", "next_link"}:
                following = pages.next(document)
                if following in (None, "", False):
                    return
                if not isinstance(following, str | int):
                    raise BadResponse(f"{verb}: what follows is neither a text nor a number")
                _new(seen, f"next {following}", verb)
                cursor, link = str(following), str(following) if pages.type == "next_link" else ""
        raise BadResponse(f"{verb}: a listing of more than {_MOST_PAGES} pages")

    # --- reading ------------------------------------------------------------------------------------------------------

    def offers(self, own: OfferWords | None, item: Any) -> Iterator[Offer]:
        """The offers that a listed thing stands for."""
        words: Any = own or self.definition.offer
        if not isinstance(item, dict) or not item:
            raise BadResponse("a listed thing that is no object")
        if not _all(words.only, item, "only"):
            return
        if words.expand is None:
            yield self._offer(words, item)
            return
        found = words.expand(item)
        if not isinstance(found, dict | list):  # missing is not empty: what has none is left out by `only`
            raise BadResponse("expand: neither a list nor an object")
        parts = [{"key": k, "value": v} for k, v in found.items()] if isinstance(found, dict) else found
        for each in parts:
            yield self._offer(words, {"item": item, "each": each})

    def _offer(self, words: OfferWords, item: Any) -> Offer:
        def read(name: str, *more: Any) -> Any:
            value = getattr(words, name)
            return value.read(item, name, *more) if value else None

        price = read("price")
        if words.price and price is None:
            raise BadResponse("price is missing")
        data = {name: value.read(item, f"data.{name}") for name, value in words.data.items()}
        return Offer(
            words.sku.need(item, "sku"),
            words.title.need(item, "title"),
            price,
            words.stock.read(item, "stock"),
            for_sale=_all(words.for_sale, item, "for_sale"),
            min_quantity=read("min_quantity") or 1,
            max_quantity=read("max_quantity"),
            step=read("step") or 1,
            region=read("region") or "",
            group=read("group") or "",
            updated_at=read("updated_at", self.context.timezone),
            data={name: value for name, value in data.items() if value is not None},
        )

    def order(self, own: OrderWords | None, found: Any, *, id: str = "", reference: str = "") -> Order | None:  # noqa: A002 - the field's own name
        """The order that was asked for, in an object or in a list of them; None when none is there.

        Raises BadResponse for another's order: its id or reference has to be ours.
        """
        words: Any = own or self.definition.order
        listed = found if isinstance(found, list) else [] if found in (None, {}) else [found]
        if not all(isinstance(one, dict) for one in listed):
            raise BadResponse("an order that is no object")
        mine = [one for one in listed if not id or words.id.need(one, "id") == id]
        if reference and words.reference:
            mine = [one for one in mine if words.reference.read(one, "reference") == reference]
        if len(mine) > 1 or (not mine and listed and not isinstance(found, list)):
            raise BadResponse("the answer is about another order, or about several")
        if not mine:
            return None

        def read(name: str) -> Any:
            value = getattr(words, name)
            return value.read(mine[0], name) if value else None

        status = read("status")
        handed_over = words.keys if status in HANDED_OVER else []  # a refunded order may have something in their place
        return Order(
            words.id.need(mine[0], "id"),
            status,
            reference=read("reference") or "",
            charged=read("charged"),
            quantity=read("quantity"),
            keys=tuple(key for keys in handed_over for key in keys.read(mine[0], "keys")),
            note=read("note") or "",
        )

    def _parts(self, sku: str) -> dict[str, str]:
        """``sku.1`` and so on: what a sku was joined of, where get_offer asks by it."""
        call: Any = self.definition.verbs.get_offer
        read = (call.offer or self.definition.offer).sku
        if not any(name.startswith("sku.") for name in call.placeholders):
            return {}
        parts = sku.split(read.between)
        if len(parts) != len(read.join) or not all(parts):
            raise sdk.NotForSale(f"{sku} is no sku of this supplier's", hint="name one of its offers")
        return {f"sku.{number}": part for number, part in enumerate(parts, 1)}

    async def before_buying(self, order: sdk.OrderRequest, names: Mapping[str, Any]) -> None:
        """Raises what keeps an order from being sent. A limit that is not sent along is compared with the price as it
        is now, where the supplier can be asked for it, else with the listed one.
        """
        call = self.definition.verbs.place_order
        used = call.placeholders if call else set()
        offer, limit, guarded = order.offer, order.max_unit_cost, "max_unit_cost" in used
        lacking = [name for name in sorted(used) if name.startswith("offer.data.") and name not in names]
        if lacking:
            raise sdk.NotForSale(f"{offer.sku} lacks {lacking[0]}", hint="sync this supplier again")
        if limit and not guarded and self.definition.verbs.get_offer:
            offer = await self.get_offer(offer.sku)
        if not limit or (guarded and offer.price is None):
            return
        if offer.price is None or offer.price.currency != limit.currency:
            raise Config(f"the price of {offer.sku} cannot be compared with a limit in {limit.currency}")
        if offer.price.amount > limit.amount and not guarded:
            raise sdk.PriceChanged(f"{offer.sku} costs more than the limit")

    def verify(self, hook: Hook, names: Mapping[str, Any], received_at: datetime) -> None:
        """Raises Forged unless one of the texts gives the signature, and the time is near."""
        secret = self._secret(hook.secret)
        try:
            given = hook.signature.line(names)
            signatures = [hook.of(text, names, secret) for text in hook.text]
            sent_at = _moment(hook.time.line(names), self.context.timezone) if hook.time else received_at
        except (Config, BadResponse, ValueError, OverflowError):
            raise Forged("a webhook that lacks a part of its signature") from None
        given = given.lower() if hook.encoding == "hex" else given
        if not any(sdk.same(given, signature) for signature in signatures):
            raise Forged("a webhook whose signature is wrong")
        if abs((received_at - sent_at).total_seconds()) > hook.within:
            raise Forged("a webhook that is too old, or from the future")


class Verbs(Declared):
    """Every verb that a definition may have."""

    async def check(self) -> sdk.Check:
        """`Adapter.check`, as are all verbs here."""
        call, document = await self.ask("check", {})
        account = call.account.read(document, "account") if call.account else None
        return sdk.Check(account or "", call.balance.read(document, "balance") if call.balance else None)

    async def list_offers(self, since: datetime | None) -> AsyncIterator[sdk.Page]:  # noqa: D102
        since = since if self.promises.incremental else None
        async for call, items in self.pages("list_offers", {"since": since}):
            found = [offer for item in items for offer in self.offers(call.offer, item)]
            yield sdk.Page(found, incremental=since is not None)

    async def get_offer(self, sku: str) -> Offer:  # noqa: D102
        call, document = await self.ask("get_offer", {"sku": sku, **self._parts(sku)})
        found = call.item(document)
        items = found if isinstance(found, list) else [found]
        offers = [offer for item in items for offer in self.offers(call.offer, item) if offer.sku == sku]
        if len(offers) > 1 or not items:
            raise BadResponse("get_offer: nothing in the answer, or the same twice")
        if not offers:
            raise sdk.NotForSale(f"{sku} is not among what the supplier offers")
        return offers[0]

    async def get_balance(self) -> sdk.Money:  # noqa: D102
        call, document = await self.ask("get_balance", {})
        balance: sdk.Money | None = call.balance.read(document, "balance")
        if balance is None:
            raise BadResponse("balance is missing")
        return balance

    async def place_order(self, order: sdk.OrderRequest) -> Order:  # noqa: D102
        names = {
            "reference": order.reference,
            "quantity": order.quantity,
            "max_unit_cost": order.max_unit_cost,
            "callback_url": order.callback_url,
            "offer.sku": order.offer.sku,
            **{f"offer.data.{name}": value for name, value in order.offer.data.items()},
        }
        await self.before_buying(order, names)
        try:
            call, document = await self.ask("place_order", names)
            placed = self.order(call.order, call.item(document), reference=order.reference)
            if placed:
                return placed
            unknown = "place_order: the answer holds no order"
        except _CERTAIN:
            raise
        except AdapterError as error:
            unknown = error.message
        raise OutcomeUnknown(f"{unknown}: nobody can say whether it was bought")

    async def get_order(self, order_id: str) -> Order:  # noqa: D102
        call, document = await self.ask("get_order", {"order.id": order_id})
        found = self.order(call.order, call.item(document), id=order_id)
        if found is None:
            raise BadResponse("get_order: the answer does not hold the order")
        return found

    async def find_order(self, reference: str) -> Order | None:  # noqa: D102
        try:
            call, document = await self.ask("find_order", {"reference": reference})
        except _AbsentError:
            return None
        listed = call.item(document)
        found = self.order(call.order, listed, reference=reference)
        certain = call.empty_is_absent
        if found is None and isinstance(certain, Template):
            certain = certain.fill(self.known)
        if found is None and not (certain and listed == []):  # a list that is missing, or is of others, says nothing
            what = "find_order: the supplier does not show the order, which is no proof that there is none"
            raise BadResponse(what, hint="look at the supplier's own page")
        return found

    async def fetch_keys(self, order: Order) -> Sequence[sdk.RawKey]:  # noqa: D102
        names = {"order.id": order.id, "order.reference": order.reference}
        found: list[sdk.RawKey] = []
        if order.status in HANDED_OVER:
            async for call, items in self.pages("fetch_keys", names):
                found += [key for keys in call.keys for key in keys.read(items, "fetch_keys")]
        return found

    async def return_keys(self, order_id: str, key_ids: Sequence[str]) -> Mapping[str, bool]:  # noqa: D102
        call, document = await self.ask("return_keys", {"order.id": order_id, "key_ids": list(key_ids)})
        listed = call.each(document)
        if not isinstance(listed, list):
            raise BadResponse("return_keys: there is no list of keys in the answer")
        taken = {call.id.need(one, "id"): call.taken.read(one, "taken") for one in listed}
        return {key_id: taken.get(key_id, False) for key_id in key_ids}

    async def complain(self, order_id: str, text: str) -> str:  # noqa: D102
        call, document = await self.ask("complain", {"order.id": order_id, "text": text})
        return (call.id.read(document, "id") if call.id else None) or ""

    def parse_webhook(self, webhook: sdk.Webhook) -> sdk.Hint:  # noqa: D102
        fields, written = body_fields(webhook.body) if webhook.body else (dict(webhook.query), {})
        hook = next((one for one in self.definition.webhooks if one.when is None or one.when(fields) is True), None)
        if hook is None:
            raise BadResponse("a webhook of no kind that the definition knows")
        names = {
            **self.known,
            **{f"query.{name}": value for name, value in webhook.query.items()},
            **{f"header.{name}": value for name, value in webhook.headers.items()},
            **{f"field.{name}": value for name, value in fields.items() if not isinstance(value, list | dict)},
            "method": webhook.method,
            "path": webhook.path,
            **body_names(webhook.body),
            "fields": lambda _: sorted_fields(hook.signed(fields)),
            "json": lambda form: sorted_json(hook.signed(fields), written, form),
        }
        self.verify(hook, names, webhook.received_at)
        places = {"order_id": hook.order_id, "reference": hook.reference, "sku": hook.sku}
        read = {name: (value.read(fields, name) if value else None) or "" for name, value in places.items()}
        if hook.event != "test" and not any(read.values()):
            raise BadResponse("a webhook that does not say what it is about")
        return sdk.Hint(hook.event, **read, answer=hook.reply.encode())


def _in_path(value: str) -> str:
    if value in {".", ".."}:  # percent-encoding leaves them as they are, and they would change the path
        raise BadResponse("an id that climbs out of its path")
    return quote(value, safe="")


def _error(name: str, what: str, answer: sdk.Answer) -> AdapterError:
    """The error of that name. An answer's own wait is kept."""
    if name == "RateLimited":
        wait = answer.headers.get("retry-after", "")
        return sdk.RateLimited(what, retry_after=float(wait) if re.fullmatch(r"\d{1,6}", wait) else None)
    kind: type[AdapterError] = _AbsentError if name == "Absent" else getattr(sdk, name)
    return kind(what)


def _all(flags: Sequence[FlagValue], item: Any, what: str) -> bool:
    read = [flag.read(item, what) for flag in flags]  # each of them, so that none is a surprise later
    return all(read)


def _new(seen: set[bytes], what: str, verb: str) -> None:
    """Remember a page, or the way to one. Raises BadResponse when it came before."""
    digest = hashlib.blake2b(what.encode("utf-8", "backslashreplace"), digest_size=16).digest()
    if what and digest in seen:
        raise BadResponse(f"{verb}: a page that came before: this listing would never end")
    seen.add(digest)


def _first(known: dict[str, str], name: Any, item: Any, verb: str) -> bool:
    """Whether an item is there for the first time. Raises BadResponse where it came before and was another."""
    if name is None or isinstance(name, list | dict):
        raise BadResponse(f"{verb}: nothing tells one item from another")
    digest = hashlib.blake2b(repr(item).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
    first = plain(name) not in known
    if known.setdefault(plain(name), digest) != digest:
        raise BadResponse(f"{verb}: an item that came before, and was another")
    return first


def _ended(pages: Pages, document: Any, items: Sequence[Any], count: int, number: int) -> bool:
    """Whether a counted listing ends here. Raises BadResponse where it breaks off, or does not say what it should."""
    ends: list[bool] = []
    if pages.last:
        last = pages.last(document)
        if not isinstance(last, bool):
            raise BadResponse("nothing says whether this is the last page")
        ends.append(last)
    for place, seen in ((pages.total, count), (pages.count, number + 1)):
        whole = sdk.Stock.exact(place(document)).quantity if place else None
        ends += [seen >= whole] if whole is not None else []
    if not all(ends) and (not items or (pages.last and ends[0])):
        raise BadResponse("a listing that ends before its own end")
    return all(ends) if ends else not items


def _moment(text: str, zone: tzinfo) -> datetime:
    """The time of a webhook: digits are seconds, 13 of them milliseconds; else a date and a time."""
    if text.isdecimal():
        return datetime.fromtimestamp(int(text) / (1000 if len(text) >= 13 else 1), UTC)  # noqa: PLR2004
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=zone)
