"""The audit: a hash-chained record of every change of state, written in the transaction that makes the change (T1).

Each entry's mac covers the entry and the mac of the entry before it, under a key of the vault's ring, so that an edit,
a deletion, a swap or an insertion breaks the chain at the first touched entry. ``chain`` is called by the store's
writer; ``verify`` by `syncd audit verify` and by every backup.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import Connection, select

from syncd.errors import AuditError
from syncd.store.database import Change, Question
from syncd.store.tables import audit, audit_head

if TYPE_CHECKING:
    from syncd.store.database import Tx

Mac = Callable[[bytes], bytes]
HEAD: Final = Question("SELECT seq, mac FROM audit_head WHERE id = 1 FOR UPDATE", "seq int, mac bytes")
"""PostgreSQL: the end of the chain, locked until the commit."""
FIRST: Final = b""
"""What the first entry is chained to."""

_INSERT: Final = "INSERT INTO audit (seq, at, kind, body, mac) SELECT seq, at, kind, body, mac FROM rows"
_COLUMNS: Final = "seq int, at int, kind text, body text, mac bytes"
_MOVE: Final = (
    "UPDATE audit_head SET seq = rows.seq, mac = rows.mac FROM rows WHERE id = 1 AND audit_head.seq = rows.before"
)
_HEAD_COLUMNS: Final = "before int, seq int, mac bytes"

_encode = msgspec.json.Encoder(order="deterministic").encode


def _entry(seq: int, at: int, kind: str, body: str, before: bytes) -> bytes:
    # Only the body is free text, and it stands last: no two entries share an encoding.
    return f"{seq}|{at}|{kind}|{before.hex()}|{body}".encode()


def chain(mac: Mac) -> Callable[[Tx], None]:
    """The writer's last step: chain the entries noted in a batch onto the head, and move the head (K8).

    On PostgreSQL the head's row is locked here and until the commit: it is the one point where daemons take turns. A
    writer that was the last to move it does not look first: should it have been moved since, the commit fails, and the
    batch runs again.
    """

    def append(tx: Tx) -> None:
        if tx.head is None:
            if tx.postgresql:
                ((seq, mac_before),) = tx.foreseen or tx.ask(HEAD)[0]
            else:
                ((seq, mac_before),) = tx.query("SELECT seq, mac FROM audit_head WHERE id = 1")
            tx.head = tx.found = seq, bytes(mac_before)
        before, last = tx.head
        seq = before
        rows: list[tuple[int, int, str, str, bytes]] = []
        for kind, body in tx.notes:
            seq += 1
            text = _encode(body).decode()
            last = mac(_entry(seq, tx.at, kind, text, last))
            rows.append((seq, tx.at, kind, text, last))
        tx.head = seq, last
        if tx.postgresql:
            tx.last(Change(_MOVE, _HEAD_COLUMNS, [(before, seq, last)]), Change(_INSERT, _COLUMNS, rows))
            return
        tx.bulk(_INSERT, _COLUMNS, rows)
        if not tx.execute("UPDATE audit_head SET seq = ?, mac = ? WHERE id = 1 AND seq = ?", (seq, last, before)):
            raise AuditError("the audit's head was moved by somebody else", seq=before)

    return append


@dataclass(frozen=True, slots=True)
class Verified:
    """A chain that is whole: how many entries, and the last one's mac in hexadecimal."""

    entries: int
    head: str


def verify(connection: Connection, mac: Mac, *, progress: Callable[[int], Any] = lambda _seq: None) -> Verified:
    """Walk the whole chain. Raises AuditError naming the first bad entry; ``progress`` is told the entry now and then.

    What it cannot see alone is a chain cut at its end together with its head: checkpoints kept elsewhere are for that.
    """
    before, expected = FIRST, 1
    entries = connection.execute(
        select(audit.c.seq, audit.c.at, audit.c.kind, audit.c.body, audit.c.mac).order_by(audit.c.seq),
        execution_options={"stream_results": True, "yield_per": 1000},
    )
    with entries:
        for seq, at, kind, body, entry_mac in entries:
            if seq != expected:
                msg = f"audit entry {expected} is missing (the next one is {seq})"
                raise AuditError(msg, seq=expected)
            if not hmac.compare_digest(mac(_entry(seq, at, kind, body, before)), bytes(entry_mac)):
                msg = f"audit entry {seq} is not what was written"
                raise AuditError(msg, seq=seq)
            before, expected = bytes(entry_mac), seq + 1
            if seq % 1000 == 0:
                progress(seq)
    head = connection.execute(select(audit_head.c.seq, audit_head.c.mac)).one_or_none()
    if head is None or head.seq != expected - 1 or not hmac.compare_digest(bytes(head.mac), before):
        said = "gone" if head is None else f"at {head.seq}"
        msg = f"audit entry {expected} is missing: the head is {said}, the chain ends at {expected - 1}"
        raise AuditError(msg, seq=expected)
    return Verified(entries=expected - 1, head=before.hex())
