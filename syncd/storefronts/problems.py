"""RFC 9457 problem documents: the one form in which every storefront answers that something is wrong.

Called by the native API, its hot route and the server. A problem's ``code`` is stable, its sentences are this program's
own: nothing that a caller sent is ever said back, because it may be a key or a token.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, ClassVar, Final

import msgspec
import structlog
from pydantic import BaseModel, Field

from syncd.errors import InvalidRequestError, NotFoundError, SyncdError, UnavailableError
from syncd.storefronts.wire import Header, Send, send_whole

log = structlog.get_logger(__name__)

MEDIA: Final = "application/problem+json"
NO_STORE: Final[Header] = (b"cache-control", b"no-store")
_encode = msgspec.json.Encoder().encode
_RETRY_S: Final = b"2"


class Problem(BaseModel):
    """What every error is answered with. ``hint`` says what to do, where there is something."""

    type: str = Field(description="The code again, as a URN.")
    title: str = Field(description="The code in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What is wrong, in a sentence.")
    code: str = Field(description="Stable: decide by this one.")
    hint: str | None = Field(None, description="What to do about it.")


class MalformedJsonError(InvalidRequestError):
    """The body is not JSON."""

    code = "malformed_json"


class UnauthenticatedError(SyncdError):
    """Nobody that syncd knows."""

    code = "unauthenticated"
    status = 401


class ForbiddenError(SyncdError):
    """Somebody who lacks the right for this."""

    code = "forbidden"
    status = 403


class NoRouteError(NotFoundError):
    """There is nothing at this path."""


class MethodError(SyncdError):
    """There is something at this path, but not for this method."""

    code: ClassVar[str] = "method_not_allowed"
    status = 405

    def __init__(self, allowed: Iterable[str]) -> None:
        self.allowed = ", ".join(sorted(allowed))
        super().__init__("this path does not take this method", hint=f"it takes {self.allowed}")


class TooLargeError(SyncdError):
    """The body is larger than this route reads."""

    code = "body_too_large"
    status = 413


class MediaTypeError(SyncdError):
    """The body is declared as something that this route does not read."""

    code = "unsupported_media_type"
    status = 415


class NotReadyError(UnavailableError):
    """The daemon runs, but cannot do its work."""

    code = "not_ready"


class InternalError(SyncdError):
    """A fault of ours. Its incident number stands in the log beside what happened."""

    def __init__(self) -> None:
        self.incident = secrets.token_hex(6)
        super().__init__(
            f"something went wrong here, incident {self.incident}",
            hint="the daemon's log has it; a delivery may be asked for again: its order_ref answers the same",
        )


def document(error: SyncdError) -> bytes:
    """The problem document of an error, with the members of its own."""
    found: dict[str, Any] = {
        "type": f"urn:syncd:problem:{error.code}",
        "title": error.code.replace("_", " ").capitalize(),
        "status": error.status,
        "detail": error.message,
        "code": error.code,
    }
    if error.hint:
        found["hint"] = error.hint
    return _encode({**found, **error.members})


def headers(error: SyncdError) -> list[Header]:
    """The headers that go with an error's document."""
    found = [(b"content-type", MEDIA.encode()), NO_STORE]
    match error:
        case MethodError():
            found.append((b"allow", error.allowed.encode()))
        case UnauthenticatedError():
            found.append((b"www-authenticate", b'Bearer realm="syncd"'))
        case TooLargeError():
            found.append((b"connection", b"close"))  # the rest of the body is not worth reading
        case _ if error.status == UnavailableError.status:
            found.append((b"retry-after", _RETRY_S))
    return found


def internal(error: BaseException, route: str) -> InternalError:
    """Log a fault under a new incident number, without what its message may repeat; the error to answer with."""
    found = InternalError()
    log.error("request_failed", incident=found.incident, route=route, exc_info=error)
    return found


async def send_problem(send: Send, error: SyncdError) -> None:
    """Answer with a problem."""
    await send_whole(send, error.status, document(error), headers(error))
