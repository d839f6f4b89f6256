"""When each supplier is due, and who may run it: leases by database time, fenced by an epoch (K13, D3).

Every unit here is control work of the writer. A holder whose lease ran out may be replaced; the epoch then grows, and
whatever the old holder still wants to write is refused (Lease.check).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from syncd.errors import LeaseLostError
from syncd.model import NEVER
from syncd.store.database import Lane, Tx, Work

ERROR_CHARS = 2000
COUNTS: Final = (
    "seen",
    "new",
    "repeats",
    "duplicates",
    "quarantined",
    "offers",
    "offers_changed",
    "offers_removed",
)
"""What a run's row counts: of keys, then of offers."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one supplier: every write of the run is refused once ``epoch`` is no longer the current one."""

    supplier: str
    holder: str
    epoch: int

    def check(self, tx: Tx) -> None:
        """Raise LeaseLostError when somebody else has taken over; holds the row until the commit (K13, D3)."""
        share = " FOR SHARE" if tx.postgresql else ""
        if not tx.query(
            f"SELECT 1 FROM supplier WHERE name = ? AND epoch = ? AND holder = ?{share}",  # noqa: S608 - constant
            (self.supplier, self.epoch, self.holder),
        ):
            raise LeaseLostError(f"the run of supplier {self.supplier} was taken over")


@dataclass(frozen=True, slots=True)
class Job:
    """The right to do some work that one daemon does at a time: its writes are refused once the epoch has grown."""

    name: str
    holder: str
    epoch: int

    def check(self, tx: Tx) -> None:
        """Raise LeaseLostError when somebody else has taken over; holds the row until the commit (K13, D3)."""
        share = " FOR SHARE" if tx.postgresql else ""
        if not tx.query(
            f"SELECT 1 FROM job WHERE name = ? AND epoch = ? AND holder = ?{share}",  # noqa: S608 - constant
            (self.name, self.epoch, self.holder),
        ):
            raise LeaseLostError(f"{self.name} was taken over")


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask for a lease. ``only_due``: refuse when the supplier is not due yet.

    ``longest``: seconds. What is due later than that was written by a clock that was ahead, or under a longer interval:
    it is due now.
    """

    supplier: str
    holder: str
    ttl: float
    run_id: int
    asked_by: str
    only_due: bool
    longest: float = NEVER


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: its counts, its error (None when it succeeded), seconds from its start to the next one.

    ``left_out`` is what the operator should look at, though the supplier was read: kept with the run, no failure.
    """

    lease: Lease
    run_id: int
    counts: dict[str, int]
    error: str | None
    next_in: float
    left_out: str | None = None


def _ensure(tx: Tx, payloads: Sequence[Sequence[str]]) -> list[None]:
    """A row for every configured supplier; a new one is due at once."""
    for names in payloads:
        if names:
            tx.bulk(
                "INSERT INTO supplier (name, due_at, epoch, failures) SELECT name, ?, 0, 0 FROM rows WHERE true"
                " ON CONFLICT (name) DO NOTHING",
                "name text",
                [(name,) for name in sorted(names)],
                (tx.now(),),
            )
    return [None] * len(payloads)


def _acquire(tx: Tx, payloads: Sequence[Acquire]) -> list[Lease | None]:
    return [_acquire_one(tx, wanted) for wanted in payloads]


def _acquire_one(tx: Tx, wanted: Acquire) -> Lease | None:
    """The lease and a run row, or None: held by somebody, or not due."""
    now = tx.now()
    due = "AND (due_at <= ? OR due_at > ?)" if wanted.only_due else ""
    taken = tx.query(
        "UPDATE supplier SET holder = ?, epoch = epoch + 1, leased_until = ?"  # noqa: S608 - constants
        f" WHERE name = ? AND (leased_until IS NULL OR leased_until < ?) {due} RETURNING epoch",
        (wanted.holder, now + wanted.ttl, wanted.supplier, now, *([now, now + wanted.longest] if due else [])),
    )
    if not taken:
        return None
    lease = Lease(wanted.supplier, wanted.holder, taken[0][0])
    tx.execute(
        "UPDATE run SET ended_at = ?, error = 'interrupted: its daemon stopped or stalled'"
        " WHERE supplier = ? AND ended_at IS NULL",
        (tx.at, wanted.supplier),
    )
    tx.execute(
        "INSERT INTO run (id, supplier, epoch, asked_by, started_at, seen, new, repeats, duplicates, quarantined)"
        " VALUES (?, ?, ?, ?, ?, 0, 0, 0, 0, 0)",
        (wanted.run_id, wanted.supplier, lease.epoch, wanted.asked_by, tx.at),
    )
    tx.audit("run.started", run=wanted.run_id, supplier=wanted.supplier, epoch=lease.epoch, by=wanted.asked_by)
    return lease


def _renew(tx: Tx, payloads: Sequence[tuple[Lease, float]]) -> list[bool]:
    """Prolong a lease; false when it was lost."""
    now = tx.now()
    return [
        tx.execute(
            "UPDATE supplier SET leased_until = ? WHERE name = ? AND epoch = ? AND holder = ?",
            (now + ttl, lease.supplier, lease.epoch, lease.holder),
        )
        == 1
        for lease, ttl in payloads
    ]


def _end(tx: Tx, payloads: Sequence[Outcome]) -> list[bool]:
    return [_end_one(tx, outcome) for outcome in payloads]


def _end_one(tx: Tx, outcome: Outcome) -> bool:
    """Close a run and give its lease back; false when it was lost, and then nothing is written."""
    lease, counts, now = outcome.lease, outcome.counts, tx.now()
    failed = outcome.error is not None
    error = "; ".join(filter(None, (outcome.error, outcome.left_out)))[:ERROR_CHARS] or None
    # Measured from the run's start, never in the past: runs that were missed are not made up for.
    given_back = tx.execute(
        "UPDATE supplier SET holder = NULL, leased_until = NULL, due_at = ?, last_error = ?,"
        " failures = CASE WHEN ? = 1 THEN failures + 1 ELSE 0 END,"
        " last_success_at = CASE WHEN ? = 1 THEN last_success_at ELSE ? END"
        " WHERE name = ? AND epoch = ? AND holder = ?",
        (
            now + max(0.0, outcome.next_in),
            error,
            int(failed),
            int(failed),
            tx.at,
            lease.supplier,
            lease.epoch,
            lease.holder,
        ),
    )
    if given_back != 1:
        return False
    tx.execute(
        f"UPDATE run SET ended_at = ?, {', '.join(f'{name} = ?' for name in COUNTS)}, error = ?"  # noqa: S608 - constants
        " WHERE id = ?",
        (
            tx.at,
            *(counts.get(name, 0) for name in COUNTS),
            error,
            outcome.run_id,
        ),
    )
    told = {name: counts[name] for name in ("offers_changed", "offers_removed") if counts.get(name)}
    tx.audit("run.ended", run=outcome.run_id, supplier=lease.supplier, failed=failed, new=counts.get("new", 0), **told)
    return True


def _due(tx: Tx, payloads: Sequence[float | None]) -> list[list[str]]:
    """The suppliers that are due and that nobody holds. A payload is what `Acquire.longest` is."""
    now = tx.now()
    longest = max(NEVER if payload is None else payload for payload in payloads)
    rows = tx.query(
        "SELECT name FROM supplier WHERE (due_at <= ? OR due_at > ?)"
        " AND (leased_until IS NULL OR leased_until < ?) ORDER BY due_at",
        (now, now + longest, now),
    )
    return [[name for (name,) in rows]] * len(payloads)


def _take(tx: Tx, payloads: Sequence[tuple[str, str, float]]) -> list[Job | None]:
    return [_take_one(tx, *payload) for payload in payloads]


def _take_one(tx: Tx, name: str, holder: str, ttl: float) -> Job | None:
    """The right to a job for ``ttl`` seconds, or more of it for who has it; None while somebody else does.

    What is leased for longer than that was written by a clock that was ahead.
    """
    now = tx.now()
    tx.execute(
        "INSERT INTO job (name, epoch, holder, leased_until) VALUES (?, 0, NULL, NULL) ON CONFLICT (name) DO NOTHING",
        (name,),
    )
    taken = tx.query(
        "UPDATE job SET epoch = CASE WHEN holder = ? THEN epoch ELSE epoch + 1 END, holder = ?, leased_until = ?"
        " WHERE name = ? AND (holder IS NULL OR holder = ? OR leased_until < ? OR leased_until > ?) RETURNING epoch",
        (holder, holder, now + ttl, name, holder, now, now + 2 * ttl),
    )
    return Job(name, holder, taken[0][0]) if taken else None


ENSURE: Work[Sequence[str], None] = Work("suppliers", Lane.CONTROL, _ensure)
ACQUIRE: Work[Acquire, Lease | None] = Work("lease", Lane.CONTROL, _acquire)
RENEW: Work[tuple[Lease, float], bool] = Work("lease_renewal", Lane.CONTROL, _renew)
END: Work[Outcome, bool] = Work("run_end", Lane.CONTROL, _end)
TAKE: Work[tuple[str, str, float], Job | None] = Work("job", Lane.CONTROL, _take)
DUE: Work[float | None, list[str]] = Work("due", Lane.CONTROL, _due)
