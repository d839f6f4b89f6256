"""Every error that syncd raises on purpose, grouped by what happens next.

A message says what is wrong and where; ``hint`` says what to do. Neither ever carries the text of a key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

EXIT_CONFIG = 78  # sysexits.h EX_CONFIG: systemd must not restart into the same fault


class SyncdError(Exception):
    """Base of all: ``code`` is stable and part of the API, ``status`` is the HTTP status it is answered with."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    members: Mapping[str, object] = MappingProxyType({})
    """What its problem document says besides, ready for JSON."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in the configuration: which file, which path in it, what, and what to do."""

    file: str
    path: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        where = f"{self.file}: {self.path}" if self.path else self.file
        return f"{where}: {self.message}" + (f" -> {self.fix}" if self.fix else "")


def nearest(word: str, known: Iterable[str]) -> str:
    """What to do about a word that there is not: ``did you mean …?``, or what there is."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, 1)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known) or 'nothing'}"


class ConfigError(SyncdError):
    """The configuration is refused as a whole; ``problems`` names all of it at once."""

    code = "config_error"
    exit_code = EXIT_CONFIG

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class StartError(SyncdError):
    """The daemon must not start as things stand (key, schema, lock): exit 78, one line that says why."""

    code = "start_error"
    exit_code = EXIT_CONFIG


class KekError(StartError):
    """The key-encryption key is missing, wrong or altered."""

    code = "vault_locked"
    status = 503


class SchemaError(StartError):
    """The database's schema is older or newer than this program."""

    code = "schema_mismatch"


class LockedError(StartError):
    """Another daemon holds this database."""

    code = "database_locked"


class InvalidRequestError(SyncdError):
    """The request is malformed; trying it again unchanged cannot work."""

    code = "invalid_request"
    status = 400


class NotFoundError(SyncdError):
    """What was asked for does not exist."""

    code = "not_found"
    status = 404


class ConflictError(SyncdError):
    """The state of things forbids it now."""

    code = "conflict"
    status = 409


class UnavailableError(SyncdError):
    """Not now: the caller may try again, nothing was recorded."""

    code = "unavailable"
    status = 503


class LeaseLostError(SyncdError):
    """Another daemon has taken this run over; whatever it still wanted to write is refused."""

    code = "lease_lost"
    status = 409


class UnreadableKeyError(SyncdError):
    """A sealed record does not open: altered, moved, or sealed under a key that is not in the ring."""

    code = "key_unreadable"
    status = 503


class AuditError(SyncdError):
    """The audit chain is broken; ``seq`` is the first bad entry."""

    code = "audit_broken"

    def __init__(self, message: str, *, seq: int) -> None:
        super().__init__(message)
        self.seq = seq
