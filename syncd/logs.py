"""Logging: one pipeline for structlog and the standard library, and the gate that no secret passes.

Set up by the daemon and by every command of the command line that does work of its own.

Libraries leak by default: SQLAlchemy, pydantic and json put what they were given into the text of their exceptions,
tracebacks print locals, reprs print headers. A filter that knows what secrets look like cannot hold that back, so the
gate is shut and opens for what is known to be harmless:

- **Values**: text, numbers, times, paths and containers of them are shown; bytes by their length, any other object by
  its type. What goes by the name of a secret (``pin``, ``token``, ``x-api-key``, ``code``, ``fields``, …) is ``***``.
- **Exceptions**: an error of ours (`SyncdError`) is logged with its message, which promises to carry no key. Any other
  is logged as its type, its frames (file, line, function; no locals) and, where it has one, its errno, SQLSTATE or
  SQLite code; never its message. The same for its causes, and what its message said is struck out of the line it is
  logged with.
- **Text** is shown as it is, but for what follows ``Bearer``, ``token=`` or ``user:``…``@``: whoever writes a log line
  must not put a key into its text.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import json as json_module
import logging
import math
import os
import re
import sys
import threading
import types
import uuid
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Final

import structlog
from structlog.typing import EventDict, Processor

from syncd.errors import SyncdError
from syncd.model import SecretText

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

HIDDEN: Final = "***"

# A name holds a secret if one of its words is of the first set, or its last word is of the second.
_ALWAYS: Final = frozenset({
    "authorization", "cookie", "credential", "credentials", "kek", "passphrase", "passwd", "password", "plaintext",
    "pwd", "secret", "secrets",
})  # fmt: skip
_LAST: Final = frozenset({
    "account", "body", "canonical", "code", "display", "fields", "key", "payload", "pin", "raw", "token",
})  # fmt: skip
_PLURAL: Final = frozenset({"accounts", "codes", "keys", "pins", "tokens"})  # a number of them may be shown
_HARMLESS: Final = frozenset({"error_code", "exit_code", "status_code"})

_IN_TEXT: Final = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {HIDDEN}"),
    (
        re.compile(
            r"(?i)\b((?:[\w-]*(?:api[_-]?key|token|secret|passw(?:or)?d|pwd|signature))|pin|sign|authorization)"
            r"([\"']?\s*[=:]\s*[\"']?)(?!\s|\*\*\*|bearer|basic)[^\s&,;\"']+"
        ),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"(://[^/\s:@]*:)[^@\s/]+@"), rf"\1{HIDDEN}@"),
)

# Loggers whose text repeats what they were handed, and how much of it is theirs.
_TERSE: Final = {
    "asyncio": re.compile(r"[^<(\n]*"),  # "Task exception was never retrieved", without the task's repr
    "py.warnings": re.compile(r"[^\n]*?:\d+: \w+"),  # file, line and category
}
# Their INFO and DEBUG print URLs, headers, statements with parameters, or a line per tick.
_QUIET: Final = ("alembic", "apscheduler", "asyncio", "httpcore", "httpx", "psycopg", "sqlalchemy", "uvicorn.access")

_DEPTH: Final = 6
_ITEMS: Final = 50
_FRAMES: Final = 40
_SHORTEST: Final = 4  # a shorter piece of an exception's message is not struck out: it would riddle the line


def configure(level: str | int = "info", *, json: bool | None = None) -> None:
    """Route every log line of this process to standard error, and uncaught exceptions too.

    ``json``: one JSON object a line; None means unless standard error is a terminal. May be called again (a reload
    changes the level).
    """
    if isinstance(level, str):
        level = logging.getLevelNamesMapping()[level.upper()]
    if json is None:
        json = not sys.stderr.isatty()
    handler = _Handler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                _message,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _gate,
                *(_for_machines() if json else _for_people()),
            ],
            use_get_message=False,  # the arguments of a foreign line go through the gate before they join its text
            pass_foreign_args=True,
            keep_exc_info=False,
        )
    )
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=_CHAIN,
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


# One list for ever: loggers that are cached keep it over a second configure().
_CHAIN: Final[list[Processor]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.filter_by_level,
    structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
]


class _Handler(logging.StreamHandler[Any]):
    """Standard error; a line that cannot be written is reported by the type of the failure alone."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        kind = sys.exc_info()[0]
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(f"a log line of {record.name} could not be written: {kind.__name__ if kind else ''}\n")


# --- the gate -------------------------------------------------------------------------------------------------------


def _message(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Join a line's text with its arguments, each shown as the gate shows values."""
    record = event["_record"]
    arguments = event.pop("positional_args", ())
    event.pop("stack_info", None)
    said = event["event"] if event["_from_structlog"] else record.msg  # a foreign line may be any object
    text = said if isinstance(said, str) else str(shown(said))
    if arguments:
        if isinstance(arguments, Mapping):
            values: Any = {name: shown(value, str(name)) for name, value in arguments.items()}
        else:
            values = tuple(shown(value) for value in arguments)
        with contextlib.suppress(TypeError, ValueError, KeyError):
            text %= values
    if terse := _TERSE.get(record.name):
        found = terse.match(text)
        text = found[0].strip() if found else ""
    event["event"] = text
    return event


def _gate(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Let through what the module's docstring lets through."""
    for internal in ("_record", "_from_structlog"):
        event.pop(internal, None)
    error = _error(event.pop("exc_info", None))
    struck = {
        piece
        for exception in [error, *event.values()]
        if isinstance(exception, BaseException)
        for piece in _said(exception)
    }
    pieces = sorted(struck, key=len, reverse=True)
    ordered = {name: event[name] for name in ("timestamp", "level", "event", "logger") if name in event} | dict(event)
    passed = {str(name): _strike(shown(value, str(name)), pieces) for name, value in ordered.items()}
    if error is not None:
        passed["exception"] = described(error)
    return passed


def shown(value: Any, name: str = "", depth: int = 0) -> Any:  # noqa: C901, PLR0912 - a line a kind
    """``value`` as a log line may show it under ``name``: plain data, safe to serialize."""
    if value is None or isinstance(value, bool):
        return value
    if name and _is_secret(name, value):
        return HIDDEN
    match value:
        case SecretText():
            return HIDDEN
        case str():
            return _clean(str.__str__(value))
        case Enum():
            return shown(value.value, name, depth + 1)
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else str(float(value))
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
        case Decimal() | uuid.UUID() | dt.timedelta() | PurePath():
            return _clean(str(value))
        case SyncdError():
            return f"{value.code}: {_clean(str(value))}"
        case BaseException():
            return _kind(value)
        case type() | types.FunctionType() | types.MethodType() | types.BuiltinFunctionType():
            return f"{value.__module__}.{value.__qualname__}"
        case Mapping() | Sequence() | AbstractSet() if depth >= _DEPTH:
            return "…"
        case Mapping():
            return _mapping(value, depth)
        case Sequence() | AbstractSet():
            return _items(value, depth)
        case _:
            return f"<{type(value).__qualname__}>"


def _mapping(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    names = [(key, _clean(key) if isinstance(key, str) else str(shown(key, depth=depth + 1))) for key in value]
    shortened = {name: shown(value[key], name, depth + 1) for key, name in names[:_ITEMS]}
    if len(names) > _ITEMS:
        shortened["…"] = len(names) - _ITEMS
    return shortened


def _items(value: Sequence[Any] | AbstractSet[Any], depth: int) -> list[Any]:
    items = list(value)
    rest = [f"… {len(items) - _ITEMS} more"] if len(items) > _ITEMS else []
    if len(items) == 2 and isinstance(items[0], str | bytes):  # noqa: PLR2004 - a header as a pair: its name decides
        name = items[0] if isinstance(items[0], str) else items[0].decode("latin-1")
        return [shown(items[0]), shown(items[1], name, depth + 1)]
    return [shown(item, depth=depth + 1) for item in items[:_ITEMS]] + rest


def _is_secret(name: str, value: object) -> bool:
    """Whether ``name`` is what secrets are called: decided by its words, camelCase and dashes included."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
    if not words or "_".join(words) in _HARMLESS:
        return False
    if words[-1] in _PLURAL:
        return not isinstance(value, int)
    return words[-1] in _LAST or not _ALWAYS.isdisjoint(words)


def _clean(text: str) -> str:
    for pattern, replacement in _IN_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _strike(value: Any, pieces: list[str]) -> Any:
    match value:
        case str():
            for piece in pieces:
                value = value.replace(piece, HIDDEN)
            return value
        case dict():
            return {_strike(name, pieces): _strike(item, pieces) for name, item in value.items()}
        case list():
            return [_strike(item, pieces) for item in value]
        case _:
            return value


# --- exceptions -----------------------------------------------------------------------------------------------------


def described(error: BaseException) -> list[dict[str, Any]]:
    """An exception and its causes, outermost first: type, frames, and a message only where it is one of ours."""
    return [
        {
            "type": _kind(exception),
            **({"message": _clean(str(exception))} if isinstance(exception, SyncdError) else {}),
            "frames": [
                f"{'/'.join(frame.f_code.co_filename.split('/')[-2:])}:{line} {frame.f_code.co_qualname}"
                for frame, line in list(walk_tb(exception.__traceback__))[-_FRAMES:]
            ],
        }
        for exception in _chain(error)
    ]


def _chain(error: BaseException, *, hidden: bool = False) -> Iterator[BaseException]:
    """The exception, its causes as Python would print them, and the members of groups; each once.

    With ``hidden``, also what ``raise … from None`` leaves out and what a database error wraps.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        exception = waiting.pop()
        if exception is None or id(exception) in seen:
            continue
        seen.add(id(exception))
        yield exception
        waiting.append(exception.__cause__)
        if hidden or not exception.__suppress_context__:
            waiting.append(exception.__context__)
        if hidden:
            waiting.append(getattr(exception, "orig", None))
        if isinstance(exception, BaseExceptionGroup):
            waiting.extend(exception.exceptions)


def _kind(error: BaseException) -> str:
    """The exception's type with the code that it carries, if it carries one: enough to look the failure up."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return f"{name}[{errno.errorcode.get(error.errno, error.errno)}]"
    for holder in (error, getattr(error, "orig", None)):
        for attribute in ("sqlstate", "sqlite_errorname"):
            code = getattr(holder, attribute, None)
            if isinstance(code, str) and re.fullmatch(r"[A-Z0-9_]{1,48}", code):
                return f"{name}[{code}]"
    return name


def _said(error: BaseException) -> Iterator[str]:
    """Every piece of text that the exception or its causes may have put into the line they are logged with."""
    for exception in _chain(error, hidden=True):
        if isinstance(exception, SyncdError):
            continue
        texts = [argument for argument in exception.args if isinstance(argument, str)]
        with contextlib.suppress(Exception):  # a foreign __str__ may do anything
            texts.append(str(exception))
        for text in texts:
            if len(text) >= _SHORTEST:
                yield text
                yield repr(text)[1:-1]


def _error(exc_info: Any) -> BaseException | None:
    """The exception that ``exc_info`` means: one itself, a triple, or anything true for the current one."""
    match exc_info:
        case BaseException():
            return exc_info
        case (_, BaseException() as error, _):
            return error
        case (None, None, None) | None | False:
            return None
        case _:
            return sys.exc_info()[1]


# --- how a line looks -----------------------------------------------------------------------------------------------


def _for_machines() -> list[Processor]:
    return [structlog.processors.JSONRenderer(serializer=json_module.dumps, ensure_ascii=False)]


def _for_people() -> list[Processor]:
    def lines(_logger: Any, _method: str, event: EventDict) -> EventDict:
        if isinstance(causes := event.get("exception"), list):
            event["exception"] = "\n".join(
                "\n".join([f"{cause['type']} {cause.get('message', '')}", *(f"  {at}" for at in cause["frames"])])
                for cause in causes
            )
        return event

    colors = "NO_COLOR" not in os.environ and sys.stderr.isatty()
    plain = structlog.dev.plain_traceback  # never reached: the gate has taken the exception; the default prints locals
    return [lines, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]


# --- what nobody caught ---------------------------------------------------------------------------------------------


def _uncaught(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger("syncd").critical("uncaught exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(caught: threading.ExceptHookArgs) -> None:
    if caught.exc_type is SystemExit or caught.exc_value is None:
        return
    logging.getLogger("syncd").critical("uncaught exception in a thread", exc_info=caught.exc_value)


def _unraisable(caught: UnraisableHookArgs) -> None:
    logging.getLogger("syncd").error("exception that could not be raised", exc_info=caught.exc_value)
