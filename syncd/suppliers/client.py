"""One supplier's HTTP: the only importer of httpx. `link` makes one `Client` a supplier; adapters see it as `Http`.

Whatever an adapter connects to shares the supplier's one set of limits. A try ends as an Answer or as one of the errors
of `syncd.adapter`; nothing that is shown anywhere (message, repr, metric, traceback) holds a body, a query, a header or
a credential. ``play`` replaces the network: `Sent` in, `Reply` out, or `Cut`.
"""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import math
import random
import re
import socket
import ssl
import urllib.parse
import zlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import msgspec
from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from syncd import __version__
from syncd.adapter import (
    READING,
    AdapterError,
    Auth,
    Authentication,
    BadResponse,
    Config,
    NotSent,
    OAuth2,
    OutcomeUnknown,
    RateLimited,
    Request,
    Transient,
)
from syncd.model import Clock
from syncd.suppliers.auth import Authenticator, Proof, authenticator, secrets
from syncd.suppliers.health import LONGEST_ASKED_S, BreakerOpen, Health

_TRIES: Final = 4
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_SHARE: Final = 0.1
"""Retries that each request earns; `_FLOOR` are there from the start, and one comes back every `_EARN_S` seconds."""
_FLOOR: Final = 10.0
_EARN_S: Final = 30.0
_SHORTEST_SECRET: Final = 4
_LOOPBACK_NAMES: Final = frozenset({"localhost", "ip6-localhost"})
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_NO_BODY: Final = frozenset({"GET", "HEAD"})
_NEVER_LEFT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)

_MOST_DIGITS: Final = 64
_PAGE: Final = re.compile(rb"\s*<(!doctype\s+html|html)\b", re.IGNORECASE)
"""A page for people: a network in front of the supplier, not the supplier, has answered."""


def _number(text: str) -> Decimal:
    """A number with a point or an exponent, exactly. As an int, 1e9999999 would hold up the whole process for hours."""
    number = Decimal(text)
    if abs(number.adjusted()) > _MOST_DIGITS:
        raise ValueError  # its text is not ours to show
    return number


_encode: Final = msgspec.json.Encoder(decimal_format="number").encode
_decode: Final = msgspec.json.Decoder(float_hook=_number).decode
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_elements: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class Limits:
    """What a supplier may be asked, and how long and how much it may answer. One set for all of its clients."""

    rate: tuple[int, float] | None = None
    """So many requests in so many seconds, evenly spread; None: as fast as `concurrency` lets."""
    concurrency: int = 4
    connect_timeout: float = 5.0
    """Seconds for name, connection and TLS together, and for each of them."""
    read_timeout: float = 30.0
    """Seconds without a byte."""
    total_timeout: float = 60.0
    """Seconds of one try from its connection to its last byte."""
    max_answer: int = 32 << 20
    """Bytes of an answer, unpacked."""
    ca_file: Path | None = None
    """Certificates that are trusted instead of the public ones."""
    proxy: str | None = None
    allow_http: bool = False


# --- one verb under way -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Call:
    """What runs at this moment for a supplier: `link` sets it, the client goes by it."""

    verb: str
    deadline: float = math.inf
    """The loop's time at which nobody waits for the result any more."""
    left: bool = False
    """Whether a request has left that may have bought something (only ever in place_order)."""
    again: bool = False
    """Whether this order was sent before, and nobody knows what became of it."""
    over: bool = False
    """Whether it has ended, and its end was told: nothing that buys leaves after it."""
    raised: AdapterError | None = None
    """The last error that the client raised itself, and not the adapter."""
    unsure: bool = False
    """Whether one of those ended without a certain answer: no other one leaves after it."""

    @property
    def buying(self) -> bool:
        """Whether money is at stake."""
        return self.verb == "place_order"


_CALL: Final[ContextVar[Call | None]] = ContextVar("syncd_supplier_call", default=None)


@contextmanager
def calling(call: Call) -> Iterator[Call]:
    """Within it the client works for this verb."""
    token = _CALL.set(call)
    try:
        yield call
    finally:
        _CALL.reset(token)


# --- the scripted transport -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as it left."""

    method: str
    url: str = field(repr=False)
    path: str
    """As it left, with the base URL's own path and without the query."""
    query: Mapping[str, str] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    """Names in lower case."""
    body: bytes = field(repr=False)
    verb: str
    """Which verb of the adapter sent it; "" when none did."""
    reads: bool
    """Whether it cannot have bought anything: GET, HEAD, and what the adapter marked."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a scripted supplier answers."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)


_CUTS: Final[Mapping[str, Callable[[], Exception]]] = {
    "dns": lambda: _because(httpx.ConnectError("cut"), socket.gaierror()),
    "refused": lambda: _because(httpx.ConnectError("cut"), ConnectionRefusedError()),
    "connect_timeout": lambda: httpx.ConnectTimeout("cut"),
    "tls": lambda: _because(httpx.ConnectError("cut"), ssl.SSLError()),
    "pool": lambda: httpx.PoolTimeout("cut"),
    "timeout": lambda: httpx.ReadTimeout("cut"),
    "reset": lambda: httpx.ReadError("cut"),
    "truncated": lambda: httpx.RemoteProtocolError("cut"),
}


class Cut(Exception):  # noqa: N818 - what happens to a connection, not what is wrong in the program
    """A scripted supplier's connection ends: before the first byte (dns, refused, connect_timeout, tls, pool), or after
    it (timeout, reset, truncated).
    """

    def __init__(
        self, how: Literal["dns", "refused", "connect_timeout", "tls", "pool", "timeout", "reset", "truncated"]
    ) -> None:
        super().__init__(how)
        self.how = how


Play = Callable[[Sent], Reply | Awaitable[Reply]]
"""A scripted supplier. It may raise `Cut`, and may be async."""


class _Stage(httpx.AsyncBaseTransport):
    """Plays instead of sending."""

    def __init__(self, play: Play) -> None:
        self._play = play

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        verb, reads = request.extensions["syncd"]
        sent = Sent(
            request.method,
            str(request.url),
            request.url.raw_path.partition(b"?")[0].decode(),
            dict(request.url.params),
            {name.lower(): value for name, value in request.headers.items()},
            request.content,
            verb,
            reads,
        )
        try:
            found = self._play(sent)
            reply = await found if inspect.isawaitable(found) else found
        except Cut as cut:
            failure = _CUTS[cut.how]()
        else:
            # A body of bytes is packed or not as it says; the client reads it as it would from a socket.
            return httpx.Response(reply.status, headers=dict(reply.headers), stream=_Bytes(reply.body))
        raise failure


class _Bytes(httpx.AsyncByteStream):
    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self) -> Any:
        yield self._data


def _because(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


# --- answers ----------------------------------------------------------------------------------------------------------


class Answer:
    """What a supplier answered (`syncd.adapter.Answer`)."""

    __slots__ = ("_what", "content", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str], content: bytes, what: str) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self._what = what

    def __repr__(self) -> str:
        return f"<Answer {self.status}, {len(self.content)} bytes>"

    def json(self) -> Any:
        """The body as JSON, numbers with a point as Decimal. Raises BadResponse when it is anything else."""
        return self._decoded(_decode, self._body())

    def object(self) -> dict[str, Any]:
        """As `json`, and it is an object. Raises BadResponse."""
        found = self.json()
        if not isinstance(found, dict):
            raise BadResponse(f"{self._what}: a JSON {_kind(found)} instead of an object")
        return found

    def items(self, *path: str) -> Iterator[Any]:
        """The elements of the list at this path of names, each decoded as it is asked for. Raises BadResponse."""
        at: Any = self._body()
        where = ".".join(path) or "the answer"
        for name in path:
            found = self._decoded(_members, at, f"there is no list at {where}").get(name)
            if found is None:
                raise BadResponse(f"{self._what}: there is no list at {where}")
            at = found
        return self._each(self._decoded(_elements, at, f"there is no list at {where}"))

    def _each(self, elements: list[msgspec.Raw]) -> Iterator[Any]:
        for element in elements:
            yield self._decoded(_decode, element)

    def _body(self) -> memoryview:
        """Without the mark that some put before UTF-8. A view: a traceback with locals does not show what it holds."""
        return memoryview(self.content)[3 if self.content.startswith(b"\xef\xbb\xbf") else 0 :]

    def _decoded(self, decode: Callable[[Any], Any], data: Any, otherwise: str = "") -> Any:
        """Decode, or say what is wrong without a byte of what is there."""
        try:
            return decode(data)
        except msgspec.ValidationError:
            wrong = otherwise or "a number that is larger or smaller than anything that is counted"
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            wrong = _not_json(self.content)
        raise BadResponse(f"{self._what}: {wrong}")


def _busy(answer: Answer, again: Callable[[Answer], object]) -> Transient | None:
    """What an adapter has against an answer, if that is worth another try."""
    try:
        again(answer)
    except Transient as error:
        return error.with_traceback(None)  # its frames hold the body
    except AdapterError:
        pass  # the adapter meets it again, and raises it itself
    return None


def _kind(value: object) -> str:
    kinds = {list: "list", str: "text", bool: "truth value", type(None): "null"}
    return kinds.get(type(value), "number")


def _not_json(content: bytes) -> str:
    start = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not content.strip():
        return "nothing instead of JSON"
    if start.startswith(b"<"):
        return "HTML instead of JSON"
    return "JSON that is cut off or broken" if start[:1] in {b"{", b"["} else "text instead of JSON"


# --- requests ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class _Plan:
    """One request as the adapter asked for it, before it is signed."""

    method: str
    url: httpx.URL
    headers: Mapping[str, str]
    body: bytes
    expect: Collection[int]
    reads: bool
    auth: Authenticator
    again: Callable[[Answer], object] | None = None

    @property
    def path(self) -> str:
        return self.url.raw_path.partition(b"?")[0].decode("ascii", "replace")

    def __repr__(self) -> str:
        return f"<{self.method}>"


class _Http:
    """A client for one base URL (`syncd.adapter.Http`)."""

    def __init__(self, client: Client, base: httpx.URL, auth: Authenticator, headers: Mapping[str, str]) -> None:
        self._client = client
        self._base = base
        self._auth = auth
        self._headers = {name.lower(): value for name, value in headers.items()}

    def __repr__(self) -> str:
        return f"<Http {self._base.scheme}://{self._base.host}>"

    async def request(  # noqa: PLR0913 - a request has as many parts as it has
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        expect: Collection[int] = (),
        reads: bool = False,
        again: Callable[[Answer], object] | None = None,
    ) -> Answer:
        """Send one request (`syncd.adapter.Http.request`)."""
        method = method.upper()
        kind, body = _body(json, form, content)
        own = {name.lower(): value for name, value in (headers or {}).items()}
        plan = _Plan(
            method,
            self._url(path, query or {}),
            {"accept": "application/json", **self._headers, **kind, **own},
            body,
            expect,
            reads or method in _NO_BODY,
            self._auth,
            again,
        )
        del path, query, json, form, content, headers, own, body  # a traceback with locals shows none of it
        return await self._client.perform(plan)

    async def get(
        self, path: str, *, query: Mapping[str, str | int] | None = None, expect: Collection[int] = ()
    ) -> Answer:
        """`request` with GET."""
        return await self.request("GET", path, query=query, expect=expect)

    async def post(
        self,
        path: str,
        *,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        expect: Collection[int] = (),
        reads: bool = False,
    ) -> Answer:
        """`request` with POST."""
        return await self.request(
            "POST", path, json=json, form=form, content=content, headers=headers, expect=expect, reads=reads
        )

    def _url(self, path: str, query: Mapping[str, str | int]) -> httpx.URL:
        """The whole address. A link of the supplier's own is followed only to where we were already."""
        if any(part in {".", ".."} for part in urllib.parse.unquote(path.partition("?")[0]).split("/")):
            raise BadResponse("a path that climbs out of where it belongs")
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//", path):
            url = self._base.join(path)
            if (url.scheme, url.host, _port(url)) != (self._base.scheme, self._base.host, _port(self._base)):
                raise BadResponse("a link that leads to another host: it is not followed")
        else:
            url = httpx.URL(f"{str(self._base).rstrip('/')}/{path.lstrip('/')}")
        return url.copy_merge_params({name: str(value) for name, value in query.items()}) if query else url


def _port(url: httpx.URL) -> int | None:
    return url.port or {"http": 80, "https": 443}.get(url.scheme)


def _body(json: Any, form: Mapping[str, str] | None, content: bytes | None) -> tuple[dict[str, str], bytes]:
    """(its content type, the bytes)."""
    if json is not None:
        return {"content-type": "application/json"}, _encode(json)
    if form is not None:
        return {"content-type": "application/x-www-form-urlencoded"}, urllib.parse.urlencode(form).encode()
    return {}, content or b""


class Client:
    """Makes a supplier's `Http` clients (`syncd.adapter.Connect`), all within one set of limits.

    It lives on one event loop: that of its `Link`, or a test's. `aclose` closes what it holds open.
    """

    def __init__(
        self,
        name: str,
        limits: Limits | None = None,
        *,
        hidden: Iterable[str] = (),
        play: Play | None = None,
        clock: Clock | None = None,
        health: Health | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """``hidden``: texts that no message may hold, the supplier's credentials. ``jitter`` gives 0 to 1."""
        self.name = name
        self.limits = limits or Limits()
        self._hidden: set[str] = set()
        self.connected = False
        """Whether the adapter sends through here at all."""
        self._play = play
        self._clock = clock or Clock()
        self._jitter = jitter
        self._slots = asyncio.Semaphore(self.limits.concurrency)
        # One at a time, evenly spread: a burst could put twice the allowance into one of the supplier's windows.
        self._pace = AsyncLimiter(1, self.limits.rate[1] / self.limits.rate[0]) if self.limits.rate else None
        self._paused_until: float | None = None
        """The loop's time before which the supplier wants to be left alone; None: not looked up yet."""
        self.health = health
        """None: nothing is remembered from one try to the next, and there is no breaker."""
        self._budget = _Budget()
        self._kept: httpx.AsyncBaseTransport | None = None
        self._fresh: httpx.AsyncBaseTransport | None = None
        self.retried: Callable[[], None] = lambda: None
        """Called at every repetition."""
        self.hide(hidden)

    def __call__(
        self, base_url: str, *, auth: Authentication | None = None, headers: Mapping[str, str] | None = None
    ) -> _Http:
        """A client for this base URL. Raises Config for one that must not be used."""
        self.connected = True
        self.hide(secrets(auth))
        base = self._address(base_url)
        proof = authenticator(auth, self._token, lambda: asyncio.get_running_loop().time())
        return _Http(self, base, proof, headers or {})

    def hide(self, texts: Iterable[str]) -> None:
        """Strike these out of whatever is said from now on, in clear and as they look in a URL."""
        for text in texts:
            if len(text) >= _SHORTEST_SECRET:
                self._hidden |= {text, urllib.parse.quote(text, safe=""), urllib.parse.quote_plus(text)}

    def redact(self, text: str) -> str:
        """The text without any credential of this supplier."""
        for secret in sorted(self._hidden, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    async def aclose(self) -> None:
        """Close every connection. The client may not be used any more."""
        for transport in (self._kept, self._fresh):
            if transport is not None:
                await transport.aclose()
        self._kept = self._fresh = None

    def _address(self, base_url: str) -> httpx.URL:
        try:
            url = httpx.URL(base_url)
        except (httpx.InvalidURL, ValueError, TypeError):
            url = httpx.URL("")
        if url.scheme not in {"http", "https"} or not url.host or url.query or url.fragment:
            raise Config("the base URL is not one", hint='write "https://HOST/PATH", without a query')
        if url.userinfo:
            raise Config(
                "a credential stands in the base URL", hint="take it out: credentials have settings of their own"
            )
        if url.scheme == "http" and not self.limits.allow_http and not _loopback(url.host):
            raise Config(
                f"http://{url.host} would send credentials in clear", hint="write https://, or set allow_http = true"
            )
        return url

    # --- one request, with its repetitions ----------------------------------------------------------------------------

    async def perform(self, plan: _Plan) -> Answer:
        """Send what an adapter asked for. Raises AdapterError."""
        call = _CALL.get() or Call("")
        self._budget.earn()
        if call.buying and call.unsure and not plan.reads:
            raise OutcomeUnknown("a second purchase after one whose outcome is unknown: it was not sent")
        if call.verb in READING:
            outcome = await self._repeated(plan, call)
        else:
            outcome = await self._once(plan, call)
        if isinstance(outcome, Answer):
            return outcome
        call.raised = outcome
        raise outcome

    async def again(self, call: Call, tries: int, error: Transient) -> bool:
        """Whether a reading verb may be asked again after so many tries; waits until then. For what the adapter itself
        found in an answer: what the client could not send it has repeated already.
        """
        wait = self._pause(tries, error)
        if call.verb not in READING or error is call.raised or not self._worth(call, tries, wait):
            return False
        self.retried()
        await asyncio.sleep(wait)
        return True

    async def _repeated(self, plan: _Plan, call: Call) -> Answer | AdapterError:
        retrying = AsyncRetrying(
            retry=retry_if_result(lambda outcome: isinstance(outcome, NotSent | Transient)),
            stop=lambda state: self._stop(state, call),
            wait=self._wait,
            before_sleep=lambda _state: self.retried(),
            retry_error_callback=_last,
            sleep=asyncio.sleep,
        )
        outcome: Answer | AdapterError = await retrying(self._once, plan, call)
        return outcome

    def _wait(self, state: RetryCallState) -> float:
        return self._pause(state.attempt_number, _last(state))

    def _stop(self, state: RetryCallState, call: Call) -> bool:
        if isinstance(_last(state), BreakerOpen):
            return True
        return not self._worth(call, state.attempt_number, state.upcoming_sleep)

    def _pause(self, tries: int, error: object) -> float:
        """Full jitter; where the supplier says how long, that long and a little more, so that not all come at once."""
        longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (tries - 1))
        asked = (error.retry_after or 0.0) if isinstance(error, RateLimited) else 0.0
        return float(asked + self._jitter() * longest)

    def _worth(self, call: Call, tries: int, wait: float) -> bool:
        """Whether one more try is worth it: tries, time and budget are left. Takes it from the budget."""
        late = asyncio.get_running_loop().time() + wait >= call.deadline
        return tries < _TRIES and not late and wait <= 2 * _LONGEST_WAIT_S and self._budget.spend()

    async def _once(self, plan: _Plan, call: Call) -> Answer | AdapterError:
        """One try, and a second one with a new token after a 401."""
        outcome = await self._try(plan, call)
        if isinstance(outcome, _Unauthorized) and plan.auth.renewed():
            if plan.reads or call.verb in READING:
                outcome = await self._try(plan, call)
            else:
                outcome = NotSent(
                    f"{outcome.message}: the access token has ended", hint="the next request has a new one"
                )
        if not call.left or isinstance(outcome, Answer):
            return outcome  # nothing that may have bought has left, or the supplier refused it at its door
        call.unsure = True
        return OutcomeUnknown(f"{outcome.message}: nobody can say whether it was bought")

    # --- one try ------------------------------------------------------------------------------------------------------

    async def _try(self, plan: _Plan, call: Call) -> Answer | AdapterError:
        """Wait for a turn, sign, send, read."""
        what = self.redact(f"{plan.method} {plan.path}")[:160]
        try:
            await plan.auth.ready()
        except AdapterError as error:
            return error.with_traceback(None)
        async with self._slots:
            # Asked before the wait for a turn, so that nobody waits for nothing, and after it, since things change.
            refused = await self._held_up(plan, call, what)
            if refused is None and self._pace:
                await self._pace.acquire()
                refused = await self._held_up(plan, call, what)
            if refused is not None:
                return refused
            request, trail = self._signed(plan, call)
            transport = self._transport(fresh=call.verb not in READING)  # fails before anything counts as sent
            probe = self.health is not None and self.health.enter(buys=call.buying and not plan.reads)
            outcome: Answer | AdapterError | None = None
            try:
                outcome = await self._sent(transport, request, trail, plan, call, what)
            finally:
                # A cancelled try, or one that met a bug of ours, tells nothing of the supplier.
                if self.health is not None:
                    failure = outcome if isinstance(outcome, AdapterError) else None
                    self.health.leave(failure, probe=probe, known=outcome is not None)
        if isinstance(outcome, RateLimited):
            until = asyncio.get_running_loop().time() + (outcome.retry_after or 0.0)
            self._paused_until = max(self._paused_until or 0.0, until)
        return outcome

    async def _held_up(self, plan: _Plan, call: Call, what: str) -> AdapterError | None:
        """Why nothing may be sent now; None once it may. Who reads sits out a short pause, who buys never waits."""
        loop = asyncio.get_running_loop()
        if self._paused_until is None:  # what was asked for before a restart still holds
            asked = self.health.state.until_asked(self._clock.now()) if self.health is not None else 0.0
            self._paused_until = loop.time() + asked
        pause = self._paused_until - loop.time()
        if pause > 0:
            if call.verb not in READING or pause > _LONGEST_WAIT_S or loop.time() + pause >= call.deadline:
                return RateLimited(f"{what}: not sent, the supplier asked for a pause", retry_after=pause)
            await asyncio.sleep(pause)
        if self.health is None:
            return None
        try:
            self.health.refuse(buys=call.buying and not plan.reads)
        except BreakerOpen as error:
            return BreakerOpen(f"{what}: {error.message}")
        return None

    def _signed(self, plan: _Plan, call: Call) -> tuple[httpx.Request, _Trail]:
        """The request as it leaves, with the proof of this very moment."""
        bare = Request(
            plan.method,
            plan.path,
            dict(plan.url.params),
            plan.body,
            dict(plan.headers),
            datetime.fromtimestamp(self._clock.now(), UTC),
        )
        proof: Proof = plan.auth.proof(bare)
        headers = {
            "user-agent": f"syncd/{__version__}",
            "accept-encoding": "gzip",
            **plan.headers,
            **{name.lower(): value for name, value in proof.headers.items()},
        }
        if not plan.reads:
            headers["connection"] = "close"
        for name, value in headers.items():
            if not _HEADER_VALUE.fullmatch(value):
                raise Config(f"the header {name} cannot be sent: it has characters that no header holds")
        limits = self.limits
        trail = _Trail(call if call.buying and not plan.reads else None)
        url = plan.url.copy_merge_params(dict(proof.query)) if proof.query else plan.url
        request = httpx.Request(
            plan.method,
            url,
            headers=headers,
            content=plan.body if plan.body or plan.method not in _NO_BODY else None,
            extensions={
                "timeout": {
                    "connect": limits.connect_timeout,
                    "read": limits.read_timeout,
                    "write": limits.read_timeout,
                    "pool": limits.connect_timeout,
                },
                "trace": trail,
                "syncd": (call.verb, plan.reads),
            },
        )
        return request, trail

    async def _sent(
        self,
        transport: httpx.AsyncBaseTransport,
        request: httpx.Request,
        trail: _Trail,
        plan: _Plan,
        call: Call,
        what: str,
    ) -> Answer | AdapterError:
        failed: AdapterError
        try:
            trail.check()
            async with asyncio.timeout(self.limits.total_timeout):
                response = await transport.handle_async_request(request)
                trail.left = True
                try:
                    content = await self._read(response, what)
                finally:
                    await response.aclose()
        except _NEVER_LEFT as error:
            trail.left = False
            failed = NotSent(f"{what}: {_why(error)}")
        except (httpx.HTTPError, TimeoutError, OSError) as error:
            kind = NotSent if trail.left is False else Transient
            failed = kind(f"{what}: {_why(error)}")
        except AdapterError as error:
            failed = error.with_traceback(None)  # its frames hold the body
        else:
            headers = {name.lower(): value for name, value in response.headers.items()}
            outcome = self._outcome(Answer(response.status_code, headers, content, what), plan, what)
            if isinstance(outcome, Answer) and plan.again and call.verb in READING:
                outcome = _busy(outcome, plan.again) or outcome
            if isinstance(outcome, Auth | RateLimited):
                trail.left = False  # refused at the door: that bought nothing
            return outcome
        finally:
            if call.buying and not plan.reads and trail.left is not False:
                call.left = True
        return failed

    async def _read(self, response: httpx.Response, what: str) -> bytes:
        """The whole body, unpacked, up to the limit."""
        most = self.limits.max_answer
        packed = response.headers.get("content-encoding", "").strip().lower()
        if packed not in {"", "identity", "gzip"}:
            raise BadResponse(f"{what}: an answer packed in a way that was not asked for")
        unpack = zlib.decompressobj(31) if packed == "gzip" else None
        parts = bytearray()
        broken = came = False
        async for raw in response.aiter_raw():
            came = came or bool(raw)
            try:
                parts += unpack.decompress(raw, most + 1 - len(parts)) if unpack else raw
            except zlib.error:
                broken = True
                break
            if len(parts) > most:
                raise BadResponse(f"{what}: an answer of more than {most} bytes", hint="see max_answer")
        if broken or (unpack and came and (not unpack.eof or unpack.unused_data)):
            raise BadResponse(f"{what}: a packed answer that is cut off or broken")
        return bytes(parts)

    def _outcome(self, answer: Answer, plan: _Plan, what: str) -> Answer | AdapterError:
        status = answer.status
        if 200 <= status < 300 or status in plan.expect:  # noqa: PLR2004 - HTTP's own numbers, here and below
            return answer
        what = f"{what}: {status}"
        if status == 403 and _PAGE.match(answer.content):  # noqa: PLR2004
            return Transient(f"{what}, a page for people: something in front of the supplier turns us away")
        if status in {401, 403}:
            return (_Unauthorized if status == 401 else Auth)(what, hint="check this supplier's credentials")  # noqa: PLR2004
        if status == 429:  # noqa: PLR2004
            return RateLimited(what, retry_after=self._retry_after(answer))
        if status == 408 or status >= 500:  # noqa: PLR2004
            return Transient(what)
        if 300 <= status < 400:  # noqa: PLR2004
            return BadResponse(f"{what}, a redirect: it is not followed", hint="correct the base URL")
        return BadResponse(what)

    def _retry_after(self, answer: Answer) -> float | None:
        """Seconds, from either form of the header."""
        text = answer.headers.get("retry-after", "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
            seconds = float(text)
        else:
            try:
                at = parsedate_to_datetime(text)
            except (TypeError, ValueError):
                return None
            seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - self._clock.now()
        return min(max(seconds, 0.0), LONGEST_ASKED_S)

    async def _token(self, auth: OAuth2) -> Any:
        """Send a token request, within the same limits, with no proof but what is in it."""
        fields = {"grant_type": "client_credentials", "client_id": auth.client_id}
        fields |= {"client_secret": auth.client_secret.reveal(), **auth.extra}
        url = self._address(auth.token_url)
        body = b""
        kind: dict[str, str] = {}
        if auth.send_as == "query":
            url = url.copy_merge_params(fields)
        elif auth.send_as == "json":
            kind, body = _body(fields, None, None)
        else:
            kind, body = _body(None, fields, None)
        plan = _Plan("POST", url, {"accept": "application/json", **kind}, body, {400}, reads=True, auth=Authenticator())
        del fields, body
        outcome = await self._try(plan, Call((_CALL.get() or Call("")).verb))
        refused = isinstance(outcome, Answer) and outcome.status == 400  # noqa: PLR2004 - RFC 6749: invalid_client
        if refused or isinstance(outcome, Auth):
            raise Auth("the token request is refused", hint="check this supplier's credentials")
        if not isinstance(outcome, Answer):
            raise outcome
        answer = outcome.json()
        if isinstance(answer, dict):
            self.hide(str(answer[name]) for name in ("access_token", "value") if name in answer)
        return answer

    def _transport(self, *, fresh: bool) -> httpx.AsyncBaseTransport:
        """Kept connections for reading; for buying a new one each, which no idle time-out can have closed."""
        held = self._fresh if fresh else self._kept
        if held is None:
            held = (
                _Stage(self._play)
                if self._play
                else _network(self.limits, keep=0 if fresh else self.limits.concurrency)
            )
            if fresh:
                self._fresh = held
            else:
                self._kept = held
        return held


class _Unauthorized(Auth):
    """401: with a token, a new one may do."""


class _Trail:
    """How far a try came, as httpcore tells it; None: it has told nothing."""

    def __init__(self, purchase: Call | None) -> None:
        self._purchase = purchase
        self.left: bool | None = None

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("send_request_headers.started") and info["request"].method != b"CONNECT":
            self.check()
            self.left = True
        elif self.left is None:
            self.left = False

    def check(self) -> None:
        """The last moment before the first byte: raises when the purchase that this belongs to is over."""
        if self._purchase is not None and self._purchase.over:
            self.left = False
            raise _LateError


class _LateError(RuntimeError):
    """A purchase that an adapter left running in the background, after its end was told."""


class _Budget:
    """Retries that may still be made: a share of the requests, and a small floor."""

    def __init__(self) -> None:
        self._held = _FLOOR
        self._at: float | None = None

    def earn(self) -> None:
        now = asyncio.get_running_loop().time()
        idle = 0.0 if self._at is None else now - self._at
        self._at = now
        self._held = min(_FLOOR, self._held + _SHARE + idle / _EARN_S)

    def spend(self) -> bool:
        if self._held < 1:
            return False
        self._held -= 1
        return True


def _last(state: RetryCallState) -> Any:
    return state.outcome.result() if state.outcome else None


def _network(limits: Limits, *, keep: int) -> httpx.AsyncBaseTransport:
    return httpx.AsyncHTTPTransport(
        verify=trusted(limits.ca_file),
        trust_env=False,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=keep, keepalive_expiry=15.0),
        proxy=limits.proxy,
    )


@cache
def _public() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def trusted(ca_file: Path | None) -> ssl.SSLContext:
    """Whose certificates are believed: the public authorities, or those of one file. Raises Config."""
    if ca_file is None:
        return _public()
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError):
        pass
    raise Config(f"{ca_file} holds no certificates that can be read", hint="ca_file is a file in PEM form")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in _LOOPBACK_NAMES


def _why(error: Exception) -> str:
    """What happened to a connection, in words of ours: another's text may hold an address with a query."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    for kind, words in (
        (socket.gaierror, "its name is not known (DNS)"),
        (ssl.SSLCertVerificationError, "its TLS certificate is not trusted"),
        (ssl.SSLError, "TLS failed"),
        (ConnectionRefusedError, "the connection is refused"),
        (httpx.ConnectTimeout, "no connection in time"),
        (httpx.PoolTimeout, "no connection is free"),
        (httpx.ProxyError, "the proxy refuses"),
        (httpx.ConnectError, "no connection"),
        (httpx.RemoteProtocolError, "the answer is cut off, or is not HTTP"),
        (httpx.TimeoutException, "no answer in time"),
        (TimeoutError, "no answer in time"),
    ):
        if any(isinstance(cause, kind) for cause in causes):
            return words
    return "the connection broke"
