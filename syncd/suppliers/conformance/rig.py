"""One adapter over the supplier of its examples: built anew for every trial, on a loop whose waits cost nothing.

The adapter is driven as the daemon drives it: the same client, the same mapping of what escapes it. Used by the checks.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import selectors
import shutil
import tempfile
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from pydantic import ValidationError
from structlog.testing import capture_logs

from syncd.adapter import (
    Adapter,
    BadResponse,
    Context,
    Http,
    Money,
    Offer,
    Order,
    OrderRequest,
    Page,
    RawKey,
    capabilities,
)
from syncd.errors import ConfigError, Problem
from syncd.metrics import Metrics
from syncd.model import Clock, SecretText
from syncd.suppliers import registry
from syncd.suppliers.client import Call, Client, Sent
from syncd.suppliers.conformance import examples as form
from syncd.suppliers.conformance.examples import SHORTEST_SECRET, Examples
from syncd.suppliers.conformance.script import AS_DOCUMENTED, Change, Script, replaced
from syncd.suppliers.link import Verbs


class Unusable(Exception):  # noqa: N818 - no fault of the check's
    """A trial that others stand on did not work, and the check named ``by`` says so: this one cannot tell anything."""

    def __init__(self, message: str, *, by: str) -> None:
        super().__init__(message)
        self.by = by


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a verb ended: with a value, or with an error."""

    value: Any = None
    error: BaseException | None = None

    def raised(self, *kinds: type[BaseException]) -> bool:
        """Whether it ended with one of these."""
        return isinstance(self.error, kinds)

    def __str__(self) -> str:
        if self.error is not None:
            return type(self.error).__name__
        value = self.value
        if isinstance(value, Order):
            return f"an order that is {value.status}, with {len(value.keys)} keys"
        if isinstance(value, list) and all(isinstance(one, Page) for one in value):
            return f"a listing of {sum(len(page.offers) for page in value)} offers"
        if isinstance(value, list | tuple):
            return f"{len(value)} keys"
        return "None" if value is None else f"a {type(value).__name__}"


class _Still(Clock):
    """A clock that stands."""

    def __init__(self, at: datetime) -> None:
        self.at = at

    def now(self) -> float:
        return self.at.timestamp()


class _Jumping(selectors.DefaultSelector):
    """Never waits: what would be waited for is added to the loop's time."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found and timeout:
            self.skipped += timeout
        return found


class _Loop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer when there is nothing else to do."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return super().time() + self._jumping.skipped


class Session:
    """One adapter and its supplier, for a few calls one after the other."""

    def __init__(self, kit: Kit, script: Script, settings: Mapping[str, Any]) -> None:
        self.script = script
        self.loop = _Loop()
        self.client = Client(
            "kit",
            hidden=kit.credentials,
            play=script.play,
            clock=_Still(script.examples.at),
            jitter=lambda: 0.0,
        )
        self.auths: list[Any] = []
        """What the adapter proves itself with, of each client that it asked for."""
        zone = ZoneInfo(script.examples.timezone)
        self.context = Context("kit", kit.settings(settings), zone, self._connect, lambda: script.examples.at)
        try:
            self.adapter = kit.kind(self.context)
        except Exception as error:  # noqa: BLE001 - an author's mistake, which is told as such
            self.close()
            where, words = registry.place_of(error, kit.file), self.client.redact(str(error))
            raise Unusable(f"{where}: {type(error).__name__}: {words}", by="building-it-touches-nothing") from None
        self.verbs = Verbs(self.adapter, self.client, metrics=kit.metrics)
        self.logged: list[Any] = []
        """What was logged, an event dict each."""

    def _connect(self, base_url: str, **more: Any) -> Http:
        self.auths.append(more.get("auth"))
        return self.client(base_url, **more)

    def call(self, verb: str, *args: Any) -> Outcome:
        """One verb, as the daemon calls it; of a listing, its pages."""
        try:
            with capture_logs() as logged:
                return Outcome(self.loop.run_until_complete(self.asked(verb, *args)))
        except (Exception, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001 - it is what is looked at
            return Outcome(error=error)
        finally:
            self.logged += logged

    async def asked(self, verb: str, *args: Any) -> Any:
        """As `call`, on this loop."""
        if verb != "list_offers":
            return await self.verbs.ask(Call(verb), *args)
        pages: list[Page] = []
        async with contextlib.aclosing(self.verbs.list(Call(verb), *args)) as listing:
            async for page in listing:
                if page.offers and any(page.offers == one.offers for one in pages):
                    raise BadResponse("a page that was there already")
                pages.append(page)
        return pages

    def close(self) -> None:
        """End what is left, and the loop."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(self.client.aclose())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


class Kit:
    """An adapter's file with its examples, and every way in which the checks drive it."""

    def __init__(self, place: Path | EntryPoint, tree: Mapping[str, Any] | None = None) -> None:
        """Raises SyncdError for an adapter that does not load, ConfigError for examples that are wrong."""
        self.place = place.resolve() if isinstance(place, Path) else place
        self.kind: type[Adapter] = registry.load(self.place)
        self.name = self.place.stem if isinstance(self.place, Path) else self.place.name
        self.file = self.place if isinstance(self.place, Path) else Path(inspect.getfile(self.kind))
        self.verbs = capabilities(self.kind)
        self._tree = dict(form.tree(form.path_of(self.file, self.name)) if tree is None else tree)
        self.examples: Examples = form.parse(self._tree, self.where)
        self.folder: Path | None = None
        self.metrics: Metrics | None = None
        """Where verbs are counted, for a check that looks at it."""
        wrong, fix = (
            "a credential that is too short to be searched for",
            f"make up {SHORTEST_SECRET} characters or more",
        )
        short = [name for name, text in _secrets(self.settings({})) if len(text) < SHORTEST_SECRET]
        if short:
            raise ConfigError([Problem(self.where, f"settings.{name}", wrong, fix) for name in short])

    def with_text(self, old: str, new: str) -> Examples:
        """The examples with one text exchanged for another, wherever it stands."""
        return form.parse(replaced(self._tree, {old: new}), self.where)

    @property
    def where(self) -> str:
        """What to call the examples in messages."""
        return str(form.path_of(self.file, self.name))

    # --- settings -----------------------------------------------------------------------------------------------------

    def settings(self, more: Mapping[str, Any]) -> Any:
        """The adapter's settings from the examples. Raises ConfigError where they do not fit."""
        tree = {**self.examples.settings, **more}
        if self.folder is not None:
            tree = replaced(tree, {"{folder}": str(self.folder)})
        try:
            written = _wrapped(tree, self.kind.Settings)
            return self.kind.Settings.model_validate(written, context={"base": Path("/nowhere")})
        except ValidationError as error:
            problems = []
            for item in error.errors(include_url=False, include_input=False):
                place = ".".join(["settings", *map(str, item["loc"])])
                problems.append(Problem(self.where, place, item["msg"].removeprefix("Value error, ")))
            raise ConfigError(problems) from None

    @cached_property
    def credentials(self) -> list[str]:
        """The made-up ones of the examples."""
        return [text for _, text in _secrets(self.settings({}))]

    # --- sessions -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def session(
        self, change: Change = AS_DOCUMENTED, *, examples: Examples | None = None, **settings: Any
    ) -> Iterator[Session]:
        """A new adapter over a new supplier."""
        session = Session(self, Script(examples or self.examples, change), settings)
        try:
            yield session
        finally:
            session.close()

    def call(self, verb: str, *args: Any, change: Change = AS_DOCUMENTED) -> tuple[Outcome, Script]:
        """One verb with a new adapter; arguments as the examples have them when none are given."""
        with self.session(change) as session:
            return session.call(verb, *(args or self.arguments(verb))), session.script

    def arguments(self, verb: str) -> tuple[Any, ...]:
        """What the examples call a verb with."""
        order = self.examples.order
        match verb:
            case "list_offers":
                return (None,)
            case "get_offer":
                return (order.sku if order else self.offers[0].sku,)
            case "place_order":
                return (self.request(),)
            case "get_order":
                return (self.placed.id,)
            case "find_order":
                return (self.reference,)
            case "fetch_keys":
                return (self.order,)
            case "return_keys":
                return (self.placed.id, [key.id for key in self.keys])
            case "complain":
                return (self.placed.id, "It says that it was used before.")
            case _:
                return ()

    # --- what the examples give, worked out once ----------------------------------------------------------------------

    @cached_property
    def offers(self) -> list[Offer]:
        """The documented listing. Raises Unusable."""
        outcome, _ = self.call("list_offers", None)
        return [offer for page in _value(outcome, "list_offers") for offer in page.offers]

    @property
    def offer(self) -> Offer:
        """The one that is bought. Raises Unusable."""
        sku = self.examples.order.sku if self.examples.order else None
        for offer in self.offers:
            if sku in {None, offer.sku}:
                return offer
        raise Unusable("the offer of [order] is not in the listing of the examples", by="the-listing-is-as-documented")

    @property
    def reference(self) -> str:
        """Ours, as in the examples."""
        return self.examples.order.reference if self.examples.order else form.REFERENCE

    @property
    def since(self) -> datetime:
        """From when on changes are asked for."""
        return self.examples.at - timedelta(hours=1)

    def request(self, *, limit: Money | None = None, reference: str = "") -> OrderRequest:
        """What is bought."""
        order = self.examples.order or form.Order(sku=self.offer.sku)
        limit = limit or order.max_unit_cost or self.offer.price
        return OrderRequest(reference or order.reference, self.offer, order.quantity, limit)

    @cached_property
    def placed(self) -> Order:
        """What `place_order` answers. Raises Unusable."""
        found: Order = _value(self.call("place_order")[0], "place_order")
        return found

    @cached_property
    def order(self) -> Order:
        """The order once the supplier has done what the examples say. Raises Unusable."""
        with self.session() as session:
            return self.orders(session)[-1]

    def orders(self, session: Session) -> list[Order]:
        """Buy, then ask as often as the examples have answers, or until it is done. Raises Unusable."""
        found: list[Order] = [_value(session.call("place_order", self.request()), "place_order")]
        for _ in range(max(1, sum("get_order" in one.verb for one in self.examples.exchange))):
            found.append(_value(session.call("get_order", found[0].id), "get_order"))
            if found[-1].status not in {"pending", "partial"}:
                break
        return found

    def handed_over(self, session: Session) -> list[RawKey]:
        """The order's keys: the last that the adapter hands on, with the order or by a call. Raises Unusable."""
        orders = self.orders(session)
        found = [list(order.keys) for order in orders]
        if "fetch_keys" in self.verbs:
            found.append(list(_value(session.call("fetch_keys", orders[-1]), "fetch_keys")))
        return next((keys for keys in reversed(found) if keys), [])

    @cached_property
    def keys(self) -> list[RawKey]:
        """What the examples hand over. Raises Unusable."""
        with self.session() as session:
            return self.handed_over(session)

    # --- feeds --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def filled(self, *, unknown: bool = False) -> Iterator[Path]:
        """A folder with the examples' files, which ``{folder}`` stands for meanwhile."""
        feed = self.examples.feed
        self.folder = Path(tempfile.mkdtemp(prefix="syncd-kit-"))
        try:
            for files in (feed.files, feed.unknown if unknown else {}) if feed else ():
                for name, content in files.items():
                    path = self.folder / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.encode())
            yield self.folder
        finally:
            shutil.rmtree(self.folder)
            self.folder = None


def instead(answer: Callable[[], Any] | Any, when: Callable[[Sent, Any], bool]) -> Change:
    """A change that answers with this (a Reply, or raises it) where the condition holds."""

    def change(sent: Sent, exchange: Any) -> Any:
        if not when(sent, exchange):
            return None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return change


TOLD_BY: Final = {"list_offers": "the-listing-is-as-documented", "fetch_keys": "keys-are-as-documented"}
"""Which check says that a verb does not even work on the examples; of the others an-order-is-as-documented."""


def _value(outcome: Outcome, verb: str) -> Any:
    if outcome.error is not None:
        by = TOLD_BY.get(verb, "an-order-is-as-documented")
        raise Unusable(f"{verb} with the examples ends in {outcome}: {outcome.error}", by=by)
    return outcome.value


def _wrapped(tree: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Settings with the texts of credentials as SecretText."""
    return {
        name: SecretText(value)
        if isinstance(value, str) and name in model.model_fields and _secret(model.model_fields[name].annotation)
        else value
        for name, value in tree.items()
    }


def _secret(annotation: Any) -> bool:
    return annotation is SecretText or any(_secret(part) for part in typing.get_args(annotation))


def _secrets(settings: Any) -> Iterator[tuple[str, str]]:
    """(name, text) of the credentials."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretText):
            yield name, value.reveal()
