"""The words of the field as values: keys, states, ids, time. No I/O; every other module may import this one."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from typing import Final

NEVER: Final = 253402300799
"""Unix seconds of 9999-12-31T23:59:59Z: the ``expires_at`` of a key without an expiry date (K7)."""

ORDER_REF_PATTERN: Final = r"^[A-Za-z0-9._:~-]{1,128}$"
SKU_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._~-]{0,63}$"
NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9_-]{0,31}$"


class SecretText:
    """Text that must never be seen by accident: ``repr``, ``str``, ``format`` print ``***``; ``reveal()`` gives it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself. Call it as late as possible, and never into a log, an exception or an SQL parameter."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretText) and self._text == other._text

    def __hash__(self) -> int:
        return hash((SecretText, self._text))

    def __reduce__(self) -> str:
        msg = "a SecretText is not pickled"
        raise TypeError(msg)


@dataclass(slots=True, repr=False)  # not frozen: that takes four times as long, a million times an import
class CardKey:
    """One key as read: its fields in order, the form for de-duplication, the form for the customer, its expiry.

    ``fields`` maps field name (code, number, pin, account, password, link, …) to text. ``canonical`` is the format's
    canonical spelling of the fields; ``display`` is what the customer sees. ``expires_at`` is Unix seconds or NEVER.
    """

    fields: Mapping[str, str]
    canonical: Mapping[str, str]
    display: str
    expires_at: int = NEVER

    def __repr__(self) -> str:
        return f"CardKey({', '.join(self.fields)}: ***)"


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in an ISO 4217 currency. Written ``9.90 CNY``."""

    amount: Decimal
    currency: str

    @classmethod
    def parse(cls, text: str) -> Money:
        """``9.90 CNY`` as Money. Raises ValueError, without the text in it."""
        found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,8})?) ([A-Z]{3})", text)
        if not found:
            raise ValueError('this is not an amount: write a number, a space and a currency, such as "9.90 CNY"')
        return cls(Decimal(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.amount} {self.currency}"


class KeyState(StrEnum):
    """States of a key in the vault; the database enforces the transitions (store/tables.py)."""

    AVAILABLE = "available"
    RESERVED = "reserved"
    DELIVERED = "delivered"
    HELD = "held"
    """Set aside after a restore: nobody can prove that it was not delivered since the backup."""
    EXPIRED = "expired"
    DEFECTIVE = "defective"
    CORRUPT = "corrupt"
    RETURNED = "returned"


class DeliveryState(StrEnum):
    """States of a delivery. A refused one leaves no row: trying again must work."""

    DELIVERED = "delivered"
    PENDING = "pending"
    CANCELLED = "cancelled"


class QuarantineState(StrEnum):
    """States of a quarantined slice."""

    HELD = "held"
    RELEASED = "released"
    DROPPED = "dropped"
    RETURNING = "returning"
    """Offered back to its supplier, whose answer is not known yet, or never came: it is not sold meanwhile."""
    RETURNED = "returned"


class PurchaseState(StrEnum):
    """States of a purchase (K9); the database enforces the transitions."""

    INTENDED = "intended"
    """Committed; nothing has been sent."""
    SENT = "sent"
    """Being sent: a kill from here on leaves it unknown."""
    ACCEPTED = "accepted"
    """Ordered for sure, its keys are outstanding."""
    UNKNOWN = "unknown"
    """Sent, and nobody can say yet whether it was bought. Never bought again, never failed over (M1)."""
    FULFILLED = "fulfilled"
    DISPUTED = "disputed"
    """Charged, and not received in full: money is open until a person or the supplier settles it."""
    REFUNDED = "refunded"
    REFUSED = "refused"
    """Nothing was bought, for sure."""


class ReservationState(StrEnum):
    """States of a reservation."""

    HELD = "held"
    RELEASED = "released"
    EXPIRED = "expired"
    DELIVERED = "delivered"


class Right(StrEnum):
    """What a token may do (A1: different rights, default deny)."""

    STOCK = "stock"
    DELIVER = "deliver"
    REVEAL = "reveal"
    OPERATE = "operate"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling: a shop (or an operator) with its rights. ``name`` is the shop's name, or ``operator``."""

    name: str
    rights: frozenset[Right]
    token_id: int = 0


class Clock:
    """The time, injected: tests replace it. Wall time is UTC; ``monotonic`` measures spans."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some fixed point, never going back."""
        return time.monotonic()


@lru_cache(4096)
def utc(seconds: float) -> str:
    """Unix seconds as RFC 3339 in UTC, whole seconds; the form in which every API answer and report gives a time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_EPOCH_MS: Final = 1_704_067_200_000  # 2024-01-01: 41 bits of milliseconds last until 2093
_NODE_BITS: Final = 9
_SEQ_BITS: Final = 13
MAX_NODES: Final = 1 << _NODE_BITS


def id_at(seconds: float) -> int:
    """The least id that `IdSource` could make at a Unix time; 0 for one before there were any."""
    return max(0, int(seconds * 1000) - _EPOCH_MS) << (_NODE_BITS + _SEQ_BITS)


class IdSource:
    """63-bit ids that grow with time (K3): 41 bits of milliseconds, 9 of node, 13 of sequence.

    Neighbouring rows land on neighbouring pages, and ids can be allotted before anything is sealed or written. A clock
    that steps back never repeats an id: the source then counts on from the last millisecond it used; ``floor`` is the
    highest id already stored, so that this holds over a restart too. Thread-safe.
    """

    def __init__(self, clock: Callable[[], float] = time.time, *, node: int = 0, floor: int = 0) -> None:
        self._clock = clock
        self.move(node)
        self._last_ms = (floor >> (_NODE_BITS + _SEQ_BITS)) + 1 if floor else 0
        self._seq = 0
        self._lock = threading.Lock()

    def move(self, node: int) -> None:
        """Make the ids of this node from now on."""
        if not 0 <= node < MAX_NODES:
            msg = f"node {node} is outside 0..{MAX_NODES - 1}"
            raise ValueError(msg)
        self._node = node << _SEQ_BITS

    def next(self) -> int:
        """One new id."""
        return self.take(1)[0]

    def take(self, count: int) -> list[int]:
        """``count`` new ids, growing."""
        ids: list[int] = []
        with self._lock:
            ms = int(self._clock() * 1000) - _EPOCH_MS
            if ms > self._last_ms:
                self._last_ms, self._seq = ms, 0
            while len(ids) < count:
                room = (1 << _SEQ_BITS) - self._seq
                if not room:
                    self._last_ms, self._seq = self._last_ms + 1, 0
                    continue
                n = min(room, count - len(ids))
                base = (self._last_ms << (_NODE_BITS + _SEQ_BITS)) | self._node | self._seq
                ids.extend(range(base, base + n))
                self._seq += n
        return ids
