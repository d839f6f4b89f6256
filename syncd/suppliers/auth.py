"""What proves to a supplier who we are: keys, tokens and signatures, put onto each try anew. Used by `client` alone.

`authenticator` turns an adapter's choice into an `Authenticator`. Nothing here sends: a token is fetched through what
the client hands in.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from syncd.adapter import ApiKey, Auth, Authentication, BadResponse, Basic, Bearer, OAuth2, Request
from syncd.model import SecretText

_EARLY_S: Final = 60.0
"""A token is fetched anew when it ends within this time, or within the last tenth of its life if that is shorter."""
_LIFE_S: Final = 600.0
"""How long a token is used where the answer does not say it."""
_LONGEST_S: Final = 86400.0

Fetch = Callable[[OAuth2], Awaitable[Any]]
"""Sends a token request and returns its JSON. Raises AdapterError."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What is added to one try."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)


class Authenticator:
    """No proof at all; the others override what differs."""

    async def ready(self) -> None:
        """Have everything at hand that `proof` needs. Raises AdapterError."""

    def proof(self, request: Request) -> Proof:  # noqa: ARG002 - the others look at it
        """What to add to this try."""
        return Proof()

    def renewed(self) -> bool:
        """The supplier has answered 401: whether there may be a better proof now, so that one more try makes sense."""
        return False


class _Fixed(Authenticator):
    def __init__(self, proof: Proof) -> None:
        self._proof = proof

    def proof(self, request: Request) -> Proof:  # noqa: ARG002 - it is the same for each
        return self._proof


class _Signed(Authenticator):
    def __init__(self, signer: Callable[[Request], Mapping[str, str]]) -> None:
        self._signer = signer

    def proof(self, request: Request) -> Proof:
        return Proof(self._signer(request))


class _Token(Authenticator):
    """Client credentials. One fetch at a time: whoever comes meanwhile waits for it."""

    def __init__(self, asked: OAuth2, fetch: Fetch, monotonic: Callable[[], float]) -> None:
        self._asked = asked
        self._fetch = fetch
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._token: SecretText | None = None
        self._renew_at = 0.0

    async def ready(self) -> None:
        async with self._lock:
            if self._token is None or self._monotonic() >= self._renew_at:
                self._token, life = _token(await self._fetch(self._asked))
                self._renew_at = self._monotonic() + life - min(_EARLY_S, life / 10)

    def proof(self, request: Request) -> Proof:  # noqa: ARG002 - a token signs nothing
        token = self._token
        if token is None:
            raise Auth("there is no access token")
        return Proof({"authorization": f"Bearer {token.reveal()}"})

    def renewed(self) -> bool:
        self._token = None
        return True


def _token(answer: Any) -> tuple[SecretText, float]:
    """(token, seconds for which it is good) of either shape: {access_token, expires_in}, {value, expiresIn}."""
    if isinstance(answer, dict):
        token = answer.get("access_token") or answer.get("value")
        life: Any = answer.get("expires_in", answer.get("expiresIn", _LIFE_S))
        try:
            seconds = float(life)
        except (TypeError, ValueError):
            seconds = _LIFE_S
        if isinstance(token, str) and token and seconds > 0:
            return SecretText(token), min(seconds, _LONGEST_S)
    raise BadResponse("an answer to a token request that holds no token")


def authenticator(
    auth: Authentication | None, fetch: Fetch, monotonic: Callable[[], float] = time.monotonic
) -> Authenticator:
    """What does as ``auth`` says."""
    match auth:
        case None:
            return Authenticator()
        case ApiKey(key, header, query):
            return _Fixed(Proof(query={query: key.reveal()}) if query else Proof({header.lower(): key.reveal()}))
        case Bearer(token):
            return _Fixed(Proof({"authorization": f"Bearer {token.reveal()}"}))
        case Basic():
            return _Fixed(Proof({"authorization": f"Basic {basic(auth)}"}))
        case OAuth2():
            return _Token(auth, fetch, monotonic)
        case _:
            return _Signed(auth)


def basic(auth: Basic) -> str:
    """User and password as they travel."""
    return base64.b64encode(f"{auth.user}:{auth.password.reveal()}".encode()).decode()


def secrets(auth: Authentication | None) -> list[str]:
    """The texts in it that nobody may see."""
    match auth:
        case ApiKey(key):
            return [key.reveal()]
        case Bearer(token):
            return [token.reveal()]
        case Basic():
            return [auth.password.reveal(), basic(auth)]
        case OAuth2():
            return [auth.client_secret.reveal()]
        case _:
            return []
