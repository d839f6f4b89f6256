"""`Link`: one supplier's adapter on a thread and an event loop of its own, so that it holds up nobody else.

Called by sync and by whoever buys, from any thread. What leaves here is a value of `syncd.adapter` or one of its
errors, whatever the adapter did: the mapping stands in `_verdict`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import aclosing
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
    NotSent,
    OutcomeUnknown,
    Page,
    RateLimited,
    Refused,
    Transient,
    capabilities,
)
from syncd.suppliers.client import Call, Client, calling

log = structlog.get_logger(__name__)

T = TypeVar("T")

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
_GRACE_S: Final = 2.0
"""An adapter that blocks its own loop cannot be timed out there: whoever waits gives up this much later."""
_CLOSE_S: Final = 3.0


class Link:
    """One supplier, ready to be asked. Starts its thread at the first call; `close` ends it, within 3 s."""

    def __init__(self, adapter: Adapter, client: Client) -> None:
        self.name = adapter.context.name
        self.adapter = adapter
        self.capabilities = capabilities(type(adapter))
        self._client = client
        self._deadlines = dict(_DEADLINES)
        for verb, least in self._deadlines.items():
            self._deadlines[verb] = max(least, 2 * client.limits.total_timeout)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._trade: asyncio.Lock | None = asyncio.Lock() if adapter.promises.serial_trades else None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Link {self.name}>"

    # --- asking -------------------------------------------------------------------------------------------------------

    def call(self, verb: str, *args: Any) -> Any:
        """Ask one verb and wait for its value, in any thread but the supplier's own. Raises AdapterError."""
        call, future = self._begin(verb, args)
        try:
            return future.result(self._deadlines[verb] + _GRACE_S)
        except TimeoutError:
            future.cancel()
        raise self._blocked(call)

    async def acall(self, verb: str, *args: Any) -> Any:
        """As `call`, from a running loop, which goes on meanwhile. Cancelling it cancels the verb."""
        call, future = self._begin(verb, args)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._deadlines[verb] + _GRACE_S)
        except TimeoutError:
            future.cancel()
        raise self._blocked(call)

    def pages(self, since: datetime | None, stopping: Callable[[], bool]) -> Iterator[Page]:
        """The pages of `Adapter.list_offers`, one at a time; blocks. Ends early, without an error, once stopping."""
        call = Call("list_offers")
        waiting: asyncio.Queue[Page | AdapterError | None] = asyncio.Queue(1)
        task = self._submit(self._list(call, since, waiting))
        try:
            while not stopping():
                try:
                    found = self._submit(waiting.get()).result(self._deadlines["list_offers"] + _GRACE_S)
                except TimeoutError:
                    raise self._blocked(call) from None
                if found is None:
                    return
                if isinstance(found, AdapterError):
                    raise found
                yield found
        finally:
            task.cancel()

    def _begin(self, verb: str, args: tuple[Any, ...]) -> tuple[Call, Future[Any]]:
        if verb not in self._deadlines:
            raise ValueError(verb)
        call = Call(verb)
        return call, self._submit(self._run(call, lambda: self._ask(verb, args)))

    def _ask(self, verb: str, args: tuple[Any, ...]) -> Awaitable[Any]:
        if verb == "check" and verb not in self.capabilities:
            return self._checked()
        if verb == "parse_webhook":
            return _later(self.adapter.parse_webhook, *args)
        if verb not in self.capabilities:
            raise Config(f"the adapter of supplier {self.name} has no {verb}")
        method: Callable[..., Awaitable[Any]] = getattr(self.adapter, verb)
        return self._serially(method, *args) if verb == "place_order" and self._trade else method(*args)

    async def _serially(self, method: Callable[..., Awaitable[T]], *args: Any) -> T:
        assert self._trade is not None  # noqa: S101 - for the type checker: asked just before
        async with self._trade:
            return await method(*args)

    async def _checked(self) -> Check:
        """What stands in for `Adapter.check`: the balance, else the first page of the listing."""
        if "get_balance" in self.capabilities:
            return Check(balance=await self.adapter.get_balance())
        if "list_offers" in self.capabilities:
            async with aclosing(_generator(self.adapter.list_offers(None))) as pages:
                async for _ in pages:
                    break
        return Check()

    # --- on the supplier's own loop -----------------------------------------------------------------------------------

    async def _run(self, call: Call, ask: Callable[[], Awaitable[T]]) -> T:
        """One verb with its deadline; whatever escapes it becomes an AdapterError without a past."""
        seconds = self._deadlines[call.verb]
        call.deadline = asyncio.get_running_loop().time() + seconds
        try:
            with calling(call):
                async with asyncio.timeout(seconds):
                    return await ask()
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and _cancelled():
                raise
            verdict = self._verdict(error, call)
        raise verdict

    async def _list(self, call: Call, since: datetime | None, waiting: asyncio.Queue[Any]) -> None:
        """Feed the pages of one listing into ``waiting``, in one task from first to last; then None, or the error."""
        loop, seconds = asyncio.get_running_loop(), self._deadlines["list_offers"]
        end: AdapterError | None = None
        try:
            with calling(call):
                async with asyncio.timeout(None) as limit, aclosing(self._listing(since)) as pages:
                    while True:
                        call.deadline = loop.time() + seconds
                        limit.reschedule(call.deadline)
                        page = await anext(pages, None)
                        limit.reschedule(None)  # whoever takes the pages may be slow
                        if page is None:
                            break
                        await waiting.put(page)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and _cancelled():
                raise
            end = self._verdict(error, call)
        await waiting.put(end)

    async def _listing(self, since: datetime | None) -> AsyncGenerator[Page, None]:
        if "list_offers" not in self.capabilities:
            raise Config(f"the adapter of supplier {self.name} has no list_offers")
        async with aclosing(_generator(self.adapter.list_offers(since))) as pages:
            async for page in pages:
                yield page

    # --- what became of it --------------------------------------------------------------------------------------------

    def _verdict(self, error: BaseException, call: Call) -> AdapterError:
        """The error that leaves here, without anything that must not be seen.

        From place_order nothing but Refused, Auth, RateLimited, Config, NotSent (nothing was bought, for sure) and
        OutcomeUnknown.
        """
        known = isinstance(error, AdapterError)
        if not known:
            log.warning("adapter_failed", supplier=self.name, verb=call.verb, exc_info=error)
        if call.buying:
            passes = isinstance(error, Refused | Auth | RateLimited | OutcomeUnknown)
            if not passes and (call.left or (not known and not self._client.connected)):
                return OutcomeUnknown(f"{self._said(error)}: nobody can say whether it was bought")
            if not passes and not isinstance(error, NotSent | Config):
                return NotSent(f"{self._said(error)}: nothing was sent that could have bought anything")
        if isinstance(error, AdapterError):
            return self._redacted(error)
        kind = Transient if isinstance(error, TimeoutError) else BadResponse
        return kind(self._said(error))

    def _said(self, error: BaseException) -> str:
        if isinstance(error, AdapterError):
            return self._client.redact(error.message)
        if isinstance(error, TimeoutError):
            return "the supplier did not answer in time"
        return f"the adapter failed: {type(error).__name__}"

    def _redacted(self, error: AdapterError) -> AdapterError:
        error.message, error.hint = self._client.redact(error.message), self._client.redact(error.hint)
        error.args = (error.message,)
        error.__cause__ = error.__context__ = None  # httpx keeps the request in it, credentials and all
        return error

    def _blocked(self, call: Call) -> AdapterError:
        """The adapter does not even hear that its time is over: it blocks its loop."""
        kind = OutcomeUnknown if call.buying else Transient
        return kind(f"the adapter of supplier {self.name} blocks: {call.verb} had to be given up")

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _submit(self, work: Any) -> Future[Any]:
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
            return asyncio.run_coroutine_threadsafe(work, self._loop)

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
        await self._client.aclose()
        await asyncio.get_running_loop().shutdown_asyncgens()

    def close(self) -> None:
        """End the thread. Waits up to 3 s; an adapter that blocks longer is left behind."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None or not thread.is_alive():
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_CLOSE_S)
        if thread.is_alive():
            log.warning("supplier_left_behind", supplier=self.name, why="its adapter blocks")


def _cancelled() -> bool:
    """Whether it is we who cancelled this task, and not the adapter that raised so."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _later(call: Callable[..., T], *args: Any) -> T:
    return call(*args)


async def _generator(pages: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """The same as a generator, which can be closed whatever the adapter returned."""
    try:
        async for page in pages:
            yield page
    finally:
        close = getattr(pages, "aclose", None)
        if close is not None:
            await close()
