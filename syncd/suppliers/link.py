"""`Link`: one supplier's adapter on a thread and an event loop of its own, so that it holds up nobody else.

Called by sync and by whoever buys, from any thread. What leaves here is a value of `syncd.adapter` or one of its
errors, whatever the adapter did; `Verbs` does that on the loop at hand, and says how in `Verbs.verdict`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, TypeVar

import structlog

from syncd.adapter import (
    Adapter,
    AdapterError,
    Auth,
    BadResponse,
    Check,
    Config,
    Hint,
    Money,
    NotSent,
    Offer,
    Order,
    OutcomeUnknown,
    Page,
    RateLimited,
    Refused,
    Transient,
    capabilities,
)
from syncd.errors import SyncdError
from syncd.metrics import Metrics
from syncd.store.database import Database, Writer
from syncd.suppliers.client import Call, Client, calling
from syncd.suppliers.health import KEEP, Health, Kept, kept
from syncd.suppliers.registry import Built

log = structlog.get_logger(__name__)

T = TypeVar("T")
E = TypeVar("E", bound=AdapterError)

_DEADLINES: Final = {
    "check": 60.0,
    "list_offers": 300.0,  # for a page
    "get_offer": 60.0,
    "get_balance": 60.0,
    "place_order": 120.0,
    "get_order": 60.0,
    "find_order": 60.0,
    "fetch_keys": 120.0,
    "return_keys": 60.0,
    "complain": 60.0,
    "parse_webhook": 5.0,
}
_KINDS: Final[Mapping[str, Any]] = {
    "check": Check,
    "list_offers": Page,
    "get_offer": Offer,
    "get_balance": Money,
    "place_order": Order,
    "get_order": Order,
    "find_order": Order | None,
    "fetch_keys": Sequence,
    "return_keys": Mapping,
    "complain": str,
    "parse_webhook": Hint,
}
"""What a verb gives. An adapter that forgot its ``return`` after buying has bought all the same."""
_END: Final = object()
_UNSTOPPED: Final = frozenset({"check", "parse_webhook"})
"""Asked even of a supplier that is not asked any more: the one finds out whether it works again."""
_GRACE_S: Final = 2.0
"""An adapter that blocks its own loop cannot be timed out there: whoever waits gives up this much later."""
_CLOSE_S: Final = 3.0
_IDLE_S: Final = 0.1


class Verbs:
    """An adapter's verbs as the rest of syncd asks them, on the running loop: with deadlines, counted, and with every
    failure mapped to an error of `syncd.adapter`.
    """

    def __init__(self, adapter: Adapter, client: Client, *, metrics: Metrics | None = None) -> None:
        """``client`` is what the adapter's context connects with."""
        self.name = adapter.context.name
        self.adapter = adapter
        self.capabilities = capabilities(type(adapter))
        self.client = client
        self._health = client.health
        self._metrics = metrics
        self.deadlines = {verb: max(least, 2 * client.limits.total_timeout) for verb, least in _DEADLINES.items()}
        self._trade = asyncio.Lock() if adapter.promises.serial_trades else None
        self._told: set[tuple[str, str]] = set()
        if metrics is not None:
            metrics.supplier_verbs(self.name, self.capabilities & _DEADLINES.keys())

    async def ask(self, call: Call, *args: Any) -> Any:
        """One verb with its deadline. Raises AdapterError."""
        seconds = self.deadlines[call.verb]
        call.deadline = asyncio.get_running_loop().time() + seconds
        call.again = call.buying and bool(args) and args[0].again
        started = time.monotonic()
        try:
            try:
                with calling(call):
                    async with asyncio.timeout(seconds):
                        value = await self._repeated(call, args)
            finally:
                call.over = True  # what the adapter left running in the background buys nothing any more
            self._promised(call.verb, value)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and _cancelled():
                raise
            failed = self.verdict(error, call)
        else:
            if call.verb == "check" and self._health is not None:
                self._health.wake()
            self._count(call, started, None)
            return self._quiet(value)
        self._count(call, started, failed)
        raise failed

    async def list(self, call: Call, since: datetime | None) -> AsyncGenerator[Page, None]:
        """The pages of a listing, each with a deadline of its own. Raises AdapterError. Close it if you stop early."""
        loop, seconds = asyncio.get_running_loop(), self.deadlines["list_offers"]
        failed: AdapterError | None = None
        started = time.monotonic()
        pages = None
        try:
            with calling(call):
                self._allowed(call.verb)
                pages = _generator(self.adapter.list_offers(since))
            while True:
                call.deadline = loop.time() + seconds
                with calling(call):
                    async with asyncio.timeout(seconds):
                        page: Any = await anext(pages, _END)
                if page is _END:
                    break
                self._promised("list_offers", page)
                yield page
        except GeneratorExit:
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and _cancelled():
                raise
            failed = self.verdict(error, call)
        finally:
            if pages is not None:
                await pages.aclose()
        self._count(call, started, failed)
        if failed is not None:
            raise failed

    def _promised(self, verb: str, value: Any) -> None:
        if not isinstance(value, _KINDS[verb]):
            raise BadResponse(f"{verb} of the adapter gives something else than it promises: {type(value).__name__}")

    def _allowed(self, verb: str) -> None:
        if verb not in self.capabilities and verb != "check":
            raise _MissingVerb(f"the adapter of supplier {self.name} has no {verb}")
        if self._health is not None and verb not in _UNSTOPPED:
            self._health.check()

    async def _repeated(self, call: Call, args: tuple[Any, ...]) -> Any:
        """One verb; a reading one again when its adapter says that it may work in a moment."""
        tries = 0
        while True:
            tries += 1
            try:
                return await self._asked(call.verb, args)
            except Transient as error:
                failed = error
            if not await self.client.again(call, tries, failed):
                raise failed

    async def _asked(self, verb: str, args: tuple[Any, ...]) -> Any:
        self._allowed(verb)
        if verb == "check" and verb not in self.capabilities:
            return await self._checked()
        if verb == "parse_webhook":
            return self.adapter.parse_webhook(*args)
        method: Callable[..., Awaitable[Any]] = getattr(self.adapter, verb)
        if verb == "place_order" and self._trade is not None:
            async with self._trade:
                return await method(*args)
        return await method(*args)

    async def _checked(self) -> Check:
        """What stands in for `Adapter.check`: the balance, else the first page of the listing."""
        if "get_balance" in self.capabilities:
            return Check(balance=await self.adapter.get_balance())
        if "list_offers" in self.capabilities:
            async with contextlib.aclosing(_generator(self.adapter.list_offers(None))) as pages:
                async for _ in pages:
                    break
        return Check()

    def verdict(self, error: BaseException, call: Call) -> AdapterError:
        """The error that leaves here, without anything that must not be seen.

        The adapter's own errors pass; time-outs become Transient, whatever else it raises BadResponse. From
        place_order come only Refused, Auth, RateLimited and Config, NotSent (nothing was bought, for sure) and
        OutcomeUnknown: that is everything else once a request has left that may have bought something. An order that
        is sent again is in doubt from the start: only a supplier that looks its reference up can refuse it for sure.
        """
        known = isinstance(error, AdapterError)
        if not known and not isinstance(error, TimeoutError):
            self._tell(error, call)
        if self._health is not None and isinstance(error, Auth | Config) and not isinstance(error, _MissingVerb):
            self._health.stop(self._redacted(error))
        looked_up = call.left and self.adapter.promises.same_reference_same_order
        refused = isinstance(error, Refused) and (looked_up or not call.again)
        if call.buying and not refused and not isinstance(error, OutcomeUnknown):
            # An adapter that sends on its own may have sent anything before it failed.
            doubt = call.left or call.again or not (self.client.connected or isinstance(error, NotSent | Config))
            answered = isinstance(error, Auth | RateLimited) and not call.again
            if doubt and not answered:
                return OutcomeUnknown(f"{self._said(error)}: nobody can say whether it was bought")
            if not isinstance(error, NotSent | Auth | RateLimited | Config):
                return NotSent(f"{self._said(error)}: nothing was sent that could have bought anything")
        if isinstance(error, AdapterError):
            return self._redacted(error)
        return (Transient if isinstance(error, TimeoutError) else BadResponse)(self._said(error))

    def _quiet(self, value: Any) -> Any:
        """The value, its words for people without a credential that the supplier may have echoed."""
        if isinstance(value, Order) and value.note:
            return replace(value, note=self.client.redact(value.note))
        if isinstance(value, Check):
            notes = tuple(self.client.redact(note) for note in value.notes)
            return replace(value, account=self.client.redact(value.account), notes=notes)
        return value

    def _said(self, error: BaseException) -> str:
        if isinstance(error, AdapterError):
            return self.client.redact(error.message)
        if isinstance(error, TimeoutError):
            return "the supplier did not answer in time"
        return f"the adapter failed: {type(error).__name__}"

    def _redacted(self, error: E) -> E:
        error.message, error.hint = self.client.redact(error.message), self.client.redact(error.hint)
        error.args = (error.message,)
        error.__cause__ = error.__context__ = None  # another's exception may hold the request, credentials and all
        return error

    def _tell(self, error: BaseException, call: Call) -> None:
        """For whoever wrote the adapter: where it failed, once for each way of failing."""
        what = (call.verb, type(error).__name__)
        if what not in self._told:
            self._told.add(what)
            log.warning("adapter_failed", supplier=self.name, verb=call.verb, exc_info=error)

    def _count(self, call: Call, started: float, failed: AdapterError | None) -> None:
        if self._metrics is not None:
            kind = None if failed is None else failed.code
            self._metrics.supplier_called(self.name, call.verb, seconds=time.monotonic() - started, kind=kind)


class _MissingVerb(Config):
    """Somebody asked for what this adapter does not have: no reason to stop asking it for what it has."""


class Link:
    """One supplier, ready to be asked. Starts its thread at the first call; `close` ends it, within 3 s."""

    def __init__(self, adapter: Adapter, client: Client, *, metrics: Metrics | None = None) -> None:
        """``client`` is what the adapter's context connects with."""
        self.name = adapter.context.name
        self.adapter = adapter
        self.health = client.health
        self._verbs = Verbs(adapter, client, metrics=metrics)
        self.capabilities = self._verbs.capabilities
        if metrics is not None:
            client.retried = lambda: metrics.supplier_retried(self.name)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._under_way: set[Future[Any]] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Link {self.name}>"

    @property
    def stopped(self) -> bool:
        """Whether it is of no use to ask: credentials or configuration have to change first."""
        return self.health is not None and self.health.stopped

    # --- asking -------------------------------------------------------------------------------------------------------

    def call(self, verb: str, *args: Any) -> Any:
        """Ask one verb and wait for its value, in any thread but the supplier's own. Raises AdapterError."""
        call = Call(verb)
        future = self._submit(self._verbs.ask(call, *args))
        try:
            return future.result(self._patience(verb))
        except (TimeoutError, CancelledError) as error:
            failed = self._given_up(call, error)
        future.cancel()
        raise failed

    async def acall(self, verb: str, *args: Any) -> Any:
        """As `call`, from a running loop, which goes on meanwhile. Cancelling it cancels the verb."""
        call = Call(verb)
        future = self._submit(self._verbs.ask(call, *args))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._patience(verb))
        except (TimeoutError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _cancelled():
                raise
            failed = self._given_up(call, error)
        future.cancel()
        raise failed

    def pages(self, since: datetime | None, stopping: Callable[[], bool]) -> Iterator[Page]:
        """The pages of `Adapter.list_offers`, one at a time; blocks. Raises AdapterError. Ends early, and without an
        error, once stopping.
        """
        call = Call("list_offers")
        waiting: asyncio.Queue[Page | AdapterError | None] = asyncio.Queue(1)
        task = self._submit(self._feed(call, since, waiting))
        try:
            while not stopping():
                taking = self._submit(waiting.get())
                try:
                    found = taking.result(self._patience("list_offers"))
                except (TimeoutError, CancelledError) as error:
                    taking.cancel()
                    found = self._given_up(call, error)
                if found is None:
                    return
                if isinstance(found, AdapterError):
                    raise found
                yield found
        finally:
            task.cancel()

    async def _feed(self, call: Call, since: datetime | None, waiting: asyncio.Queue[Any]) -> None:
        """One listing in one task from first to last: its pages, then None or the error."""
        end: AdapterError | None = None
        try:
            async with contextlib.aclosing(self._verbs.list(call, since)) as pages:
                async for page in pages:
                    await waiting.put(page)
        except AdapterError as error:
            end = error
        await waiting.put(end)

    def _patience(self, verb: str) -> float:
        return self._verbs.deadlines[verb] + _GRACE_S

    def _given_up(self, call: Call, error: BaseException) -> AdapterError:
        """The link was closed meanwhile; or the adapter blocks its loop, and does not hear that its time is over."""
        if not isinstance(error, TimeoutError):
            return (OutcomeUnknown if call.left or call.again else NotSent)(
                f"supplier {self.name} is closed: {call.verb} was cut off"
            )
        kind = OutcomeUnknown if call.buying else Transient
        return kind(f"the adapter of supplier {self.name} blocks: {call.verb} had to be given up")

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self._closed:
                work.close()
                raise NotSent(f"supplier {self.name} is closed: nothing is sent any more")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._live, args=(self._loop,), name=f"supplier-{self.name}", daemon=True
                )
                self._thread.start()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    def _live(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            loop.run_until_complete(self._end())
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    async def _end(self) -> None:
        """Cancel what runs, and leave no socket open."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S - 1)
        await self._verbs.client.aclose()
        await asyncio.get_running_loop().shutdown_asyncgens()

    def close(self) -> None:
        """End the thread. Waits up to 3 s; an adapter that blocks longer is left behind."""
        self.halt()
        self.join(_CLOSE_S)

    def halt(self) -> None:
        """Cut off what runs, and ask nothing more."""
        with self._lock:
            first, self._closed = not self._closed, True
        if first and self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def join(self, seconds: float) -> None:
        """Wait for the thread's end."""
        thread = self._thread
        if thread is None:
            return
        thread.join(seconds)
        if thread.is_alive():
            log.warning("supplier_left_behind", supplier=self.name, why="its adapter blocks")

    def retire(self) -> None:
        """Close it once nothing is under way any more; blocks until then, for as long as a verb may take."""
        until = time.monotonic() + max(self._verbs.deadlines.values()) + _GRACE_S
        while self._under_way and time.monotonic() < until:
            time.sleep(_IDLE_S)
        self.close()


class Links(Mapping[str, Link]):
    """Every enabled supplier's link, by name. Called by the daemon; those that only read it may do so in any thread."""

    def __init__(self, database: Database, writer: Writer, metrics: Metrics, secretly: Callable[[str], str]) -> None:
        """``secretly`` turns a digest of a configuration, credentials and all, into what may lie in the database."""
        self._database = database
        self._writer = writer
        self._metrics = metrics
        self._secretly = secretly
        self._links: dict[str, Link] = {}
        self._digests: dict[str, str] = {}
        self._retiring: list[Link] = []

    def __getitem__(self, name: str) -> Link:
        return self._links[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)

    def take_over(self, built: Mapping[str, Built]) -> None:
        """Link what the configuration names now; whoever's configuration has not changed stays as it is. Blocks."""
        before = self._links
        after = {name: before[name] for name in built if self._digests.get(name) == built[name].digest}
        fresh = [name for name in built if name not in after]
        known = kept(self._database, fresh)
        for name in fresh:
            adapter, client = built[name].adapter, built[name].client
            client.health = Health(
                name,
                clock=self._database.clock,
                metrics=self._metrics,
                keep=self._keep,
                config=self._secretly(built[name].digest),
            )
            if name in known:
                client.health.resume(known[name])
            after[name] = Link(adapter, client, metrics=self._metrics)
        self._links = after
        self._digests = {name: built[name].digest for name in built}
        for name, link in before.items():
            if after.get(name) is not link:
                self._retiring.append(link)
                threading.Thread(target=self._retire, args=(link,), name=f"retire-{name}", daemon=True).start()
            if name not in after:
                self._metrics.supplier_gone(name)

    def _keep(self, state: Kept) -> None:
        with contextlib.suppress(SyncdError):  # the writer has stopped: what was learnt last is learnt again
            self._writer.post(KEEP, state)

    def _retire(self, link: Link) -> None:
        link.retire()
        self._retiring.remove(link)

    def refresh(self) -> None:
        """Learn what another daemon on the same database has found out. Blocks."""
        for name, state in kept(self._database, self._links).items():
            health = self._links[name].health if name in self._links else None
            if health is not None:
                health.resume(state)

    def close(self) -> None:
        """Close all of them at once: 3 s, however many there are. Blocks."""
        links = [*self._links.values(), *self._retiring]
        for link in links:
            link.halt()
        until = time.monotonic() + _CLOSE_S
        for link in links:
            link.join(max(0.0, until - time.monotonic()))


def _cancelled() -> bool:
    """Whether it is we who cancelled this task, and not the adapter that raised so."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _generator(pages: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """The same as a generator, which can be closed whatever the adapter returned."""
    try:
        async for page in pages:
            yield page
    finally:
        close = getattr(pages, "aclose", None)
        if close is not None:
            await close()
