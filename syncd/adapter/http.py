"""Talking to the supplier: who we are, what we send, what comes back, and what the supplier sends by itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, Protocol
from urllib.parse import parse_qsl

import msgspec

from syncd.adapter.errors import BadResponse
from syncd.model import SecretText


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A fixed key in a header, or in the query when ``query`` names a parameter."""

    key: SecretText
    header: str = "X-Api-Key"
    query: str = ""


@dataclass(frozen=True, slots=True)
class Bearer:
    """``Authorization: Bearer TOKEN``."""

    token: SecretText


@dataclass(frozen=True, slots=True)
class Basic:
    """``Authorization: Basic …``."""

    user: str
    password: SecretText


@dataclass(frozen=True, slots=True)
class OAuth2:
    """Client credentials: a token is fetched, used until shortly before it ends, and fetched anew once after a 401.

    Answers of both shapes are read: {access_token, expires_in} and {value, expiresIn}.
    """

    token_url: str
    client_id: str
    client_secret: SecretText
    extra: Mapping[str, str] = field(default_factory=dict)
    """More fields of the token request, such as ``audience``."""
    send_as: Literal["form", "json", "query"] = "form"


@dataclass(frozen=True, slots=True)
class Request:
    """A request just before it is sent, for a `Signer`: exactly these bytes leave."""

    method: str
    path: str
    """From the root, with the base URL's own path, without the query."""
    query: Mapping[str, str]
    body: bytes = field(repr=False)
    headers: Mapping[str, str]
    at: datetime
    """The clock's time: sign with this one, so that a test can know it."""

    def fields(self) -> dict[str, Any]:
        """Those of the query and of a body that is a JSON object or a form. Raises BadResponse for another body."""
        return {**self.query, **_fields(self.body)}


Signer = Callable[[Request], Mapping[str, str]]  # not a class: a method of the adapter will do
"""Returns the headers to add. Called anew for every try, so that each has its own time."""

Authentication = ApiKey | Bearer | Basic | OAuth2 | Signer


class Answer(Protocol):
    """What a supplier answered, read whole and within the supplier's size limit. Its repr shows no body."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    content: bytes

    def json(self) -> Any:
        """The body as JSON, numbers with a point as Decimal. Raises BadResponse when it is anything else."""

    def object(self) -> dict[str, Any]:
        """As `json`, and it is an object. Raises BadResponse."""

    def items(self, *path: str) -> Iterator[Any]:
        """The elements of the list at this path of names, each decoded as it is asked for: a large listing never lies
        in memory as objects. Raises BadResponse when there is no such list.
        """


class Http(Protocol):
    """One supplier's HTTP client. It keeps the supplier's limits on rate, concurrency, time and size, checks TLS, never
    follows a redirect, signs each try, counts, and shows no credential in any message.

    In reading verbs a try that failed is repeated with growing, jittered waits, within a budget and a breaker. In
    buying verbs nothing is ever repeated, and each request goes over a fresh connection.

    Statuses: 2xx, and those in ``expect``, come back as an Answer. 401 and 403 raise Auth, 429 RateLimited, 408 and
    5xx Transient, 3xx and other 4xx BadResponse. Within `Adapter.place_order` whatever is not an Answer, Auth or
    RateLimited is OutcomeUnknown once a request has left that may have bought something. That is every request there
    but GET, HEAD, and those marked with ``reads=True``.
    """

    async def request(
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
        """Send one request; ``path`` is joined to the base URL. At most one of ``json``, ``form`` and ``content``.

        ``again`` looks at an Answer in a reading verb: if it raises Transient, this try failed, and is repeated as any
        other. For a supplier that says "busy" with 200.

        ``json`` is sent as compact UTF-8 (slashes and other scripts unescaped) in the order of its keys; ``content`` is
        sent as it is, with ``headers`` saying what it is.
        """

    async def get(
        self, path: str, *, query: Mapping[str, str | int] | None = None, expect: Collection[int] = ()
    ) -> Answer:
        """`request` with GET."""

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


class Connect(Protocol):
    """Makes a supplier's client; the core hands one in. ``base_url`` may have a path."""

    def __call__(
        self, base_url: str, *, auth: Authentication | None = None, headers: Mapping[str, str] | None = None
    ) -> Http:
        """A client for this base URL, within the supplier's one set of limits."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A request that a supplier sent to us, as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    query: Mapping[str, str]
    body: bytes = field(repr=False)
    received_at: datetime

    def fields(self) -> dict[str, Any]:
        """The members of a JSON object or the fields of a form; without a body, the query. Raises BadResponse."""
        return _fields(self.body) if self.body else dict(self.query)


@dataclass(frozen=True, slots=True)
class Hint:
    """What a webhook is about. It is a hint to ask again, never a source of keys."""

    event: Literal["order", "offer", "test"]
    order_id: str = ""
    reference: str = ""
    sku: str = ""
    answer: bytes = b""
    """The body that the supplier wants to read, sent with 200 (204 when empty)."""


def _fields(body: bytes) -> dict[str, Any]:
    """Of a JSON object or a form. Raises BadResponse for anything else, and for a name that stands twice in a form."""
    body = body.removeprefix(b"\xef\xbb\xbf").strip()
    try:
        if body.startswith(b"{"):
            return msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode(body)
        pairs = parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True) if body else []
        if len(dict(pairs)) == len(pairs):
            return dict(pairs)
    except (msgspec.DecodeError, ValueError, RecursionError):
        pass
    raise BadResponse("a body that is neither a JSON object nor a form")
