"""The gate of the native API: no route without a stated right, and one form for every refusal. Called by `native`.

A route says in its OpenAPI entry who may use it; one that does not say cannot be added. The right is checked before a
byte of the body is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from syncd.errors import InvalidRequestError, SyncdError
from syncd.model import Principal, Right
from syncd.storefronts import problems
from syncd.storefronts.access import OPERATOR, Access, Peer
from syncd.storefronts.wire import Header, Receive, Scope, Send

_FORWARDED: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})
_JSON: Final = b"application/json"


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may use a route: nobody in particular when there are no ``rights``, else whoever has all of them.

    ``operator``: only the operator, and only a shop otherwise; None for both. ``socket``: only over the operator's
    socket. ``open_on_loopback``: without any right from this very machine.
    """

    rights: frozenset[Right] = frozenset()
    operator: bool | None = None
    socket: bool = False
    open_on_loopback: bool = False

    def described(self) -> dict[str, Any]:
        """As it stands in the OpenAPI document."""
        found: dict[str, Any] = {"rights": sorted(self.rights)}
        if self.operator is not None:
            found["principal"] = "operator" if self.operator else "shop"
        if self.socket:
            found["only_over"] = "operator_socket"
        if self.open_on_loopback:
            found["open_on"] = "loopback"
        return {"x-syncd-access": found}


PUBLIC: Final = Rule()
SHOP_STOCK: Final = Rule(frozenset({Right.STOCK}))
SHOP_DELIVER: Final = Rule(frozenset({Right.DELIVER}), operator=False)
METRICS: Final = Rule(frozenset({Right.METRICS}), open_on_loopback=True)
OPERATE: Final = Rule(frozenset({Right.OPERATE}), operator=True)
REVEAL: Final = Rule(frozenset({Right.OPERATE, Right.REVEAL}), operator=True)
SOCKET: Final = Rule(frozenset({Right.OPERATE, Right.REVEAL}), operator=True, socket=True)


def admit(access: Access, rule: Rule, scope: Scope) -> Principal | None:
    """Who is calling, if the rule lets them. Raises UnauthenticatedError, ForbiddenError."""
    caller = access.caller(scope)
    if not rule.rights or (rule.open_on_loopback and _local(scope)):
        return caller
    if caller is None:
        raise problems.UnauthenticatedError(
            "who are you?", hint="send Authorization: Bearer TOKEN; syncd token create makes one"
        )
    missing = rule.rights - caller.rights
    if missing:
        raise problems.ForbiddenError(
            f"this takes the right {' and '.join(sorted(missing))}", hint="use a token that has it: syncd token create"
        )
    if rule.operator is not None and rule.operator is not (caller.name == OPERATOR):
        whose = "the operator's" if rule.operator else "a shop's, and you are the operator"
        raise problems.ForbiddenError(f"this is {whose}", hint="use a token of the other kind: syncd token create")
    peer: Peer | None = scope.get("syncd.peer")
    if rule.socket and (peer is None or peer.listener != OPERATOR):
        raise problems.ForbiddenError("this goes over the operator's socket only", hint="use the command syncd")
    return caller


def _local(scope: Scope) -> bool:
    """Whether a request comes over TCP from this machine itself, and not through a proxy that runs on it."""
    client = scope.get("client")
    if not client or "syncd.peer" in scope:
        return False
    try:
        loopback = ip_address(client[0]).is_loopback
    except ValueError:
        return False
    return loopback and not any(name in _FORWARDED for name, _ in scope["headers"])


# --- what a body may be -----------------------------------------------------------------------------------------------


def check_media(found: Iterable[Header]) -> None:
    """Refuse a body that is declared as something else than JSON. Raises MediaTypeError."""
    for name, value in found:
        if name == b"content-type" and value.partition(b";")[0].strip().lower() != _JSON:
            raise problems.MediaTypeError("the body must be JSON", hint="send Content-Type: application/json")


def limited(found: Iterable[Header], receive: Receive, most: int) -> Receive:
    """``receive`` that raises TooLargeError once the body is larger than ``most`` bytes; at once if it says so."""
    for name, value in found:
        if name == b"content-length" and (not value.isdigit() or int(value) > most):
            raise _too_large(most)
    read = 0

    async def counting() -> Any:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise _too_large(most)
        return message

    return counting


def _too_large(most: int) -> problems.TooLargeError:
    return problems.TooLargeError(f"the body is larger than {most} bytes", hint="send less at a time")


# --- routes -----------------------------------------------------------------------------------------------------------


class Guarded(APIRoute):
    """A route that admits before it reads. Its `Rule` comes as ``openapi_extra={"rule": …}`` and is documented so."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        extra = dict(options.pop("openapi_extra", None) or {})
        rule = extra.pop("rule", None)
        if not isinstance(rule, Rule):
            msg = f"the route {path} does not say who may use it"
            raise TypeError(msg)
        self.rule = rule
        self.max_body: int | None = extra.pop("max_body", None)
        super().__init__(path, endpoint, openapi_extra={**extra, **rule.described()}, **options)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request: admit, then check what is declared, then read."""
        scope["syncd.route"] = self.path
        if self.methods and scope["method"] not in self.methods:
            raise problems.MethodError(_methods(scope["app"], self.path))
        scope["syncd.caller"] = admit(scope["app"].state.access, self.rule, scope)
        if self.body_field is not None:
            check_media(scope["headers"])
        most = self.max_body or scope["app"].state.max_body()
        await self.app(scope, limited(scope["headers"], receive, most), send)


def _methods(app: FastAPI, path: str) -> set[str]:
    same = [route for route in app.routes if isinstance(route, Guarded) and route.path == path]
    return {method for route in same for method in route.methods or ()}


def caller(request: Request) -> Principal:
    """Who was admitted."""
    found: Principal = request.scope["syncd.caller"]
    return found


def by(request: Request) -> str:
    """Who was admitted, for the audit: a token's id, or the user at the other end of the socket."""
    peer: Peer | None = request.scope.get("syncd.peer")
    token = caller(request).token_id
    return f"token {token}" if token or peer is None else f"user {peer.user or peer.uid}"


# --- refusals ---------------------------------------------------------------------------------------------------------


def install(app: FastAPI, access: Access, max_body: Callable[[], int]) -> None:
    """Guard every route that is added from now on, and answer every error of the framework in our form.

    ``max_body`` is the bytes of a body that a route reads unless it says so itself.
    """
    app.state.access, app.state.max_body = access, max_body
    app.router.route_class = Guarded
    app.add_exception_handler(SyncdError, _answer)
    app.add_exception_handler(RequestValidationError, _answer)
    app.add_exception_handler(HTTPException, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    found = translated(error)
    request.scope["syncd.problem"] = found.code
    raw = problems.headers(found)
    body = problems.document(found)
    response = Response(body, found.status)
    response.raw_headers = [*raw, (b"content-length", b"%d" % len(body))]
    return response


def translated(error: Exception) -> SyncdError:
    """An error of the framework as one of ours, without a word of what was sent."""
    if isinstance(error, SyncdError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors())
    if isinstance(error.__cause__, SyncdError):  # raised while the body was read
        return error.__cause__
    if isinstance(error, HTTPException) and error.status_code == problems.NoRouteError.status:
        return problems.NoRouteError("there is nothing here", hint="GET /openapi.json lists what there is")
    return problems.MalformedJsonError("the body is not JSON in UTF-8")


def _invalid(errors: Iterable[Mapping[str, Any]]) -> SyncdError:
    told: list[str] = []
    for error in errors:
        where, *path = error["loc"]
        if error["type"] == "json_invalid":
            return problems.MalformedJsonError("the body is not JSON")
        if error["type"] == "extra_forbidden":
            told.append(f"{where}: there is a field that this route does not know")
        elif error["type"] == "missing" and not path:
            told.append(f"{where}: it is missing")
        else:
            name = ".".join(str(part) for part in path)
            told.append(f"{where} {name}: {error['msg']}" if name else f"{where}: {error['msg']}")
    return InvalidRequestError("; ".join(dict.fromkeys(told)), hint="GET /openapi.json says what this route takes")
