"""How a supplier does: the circuit breaker, refused credentials, pauses.

`client` asks it before each try, `link` before each verb, and the daemon shows it.

`admit`, `failed` and `succeeded` decide, as functions of data. `Health` carries their state for one supplier, says each
change once (log, metric) and keeps it in the database, so that a restart does not hammer whoever is down.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import structlog
from sqlalchemy import select

from syncd.adapter import AdapterError, Auth, Config, NotSent, RateLimited, Transient
from syncd.metrics import Metrics
from syncd.model import Clock, utc
from syncd.store.database import Database, Lane, Tx, Work
from syncd.store.tables import supplier_health

log = structlog.get_logger(__name__)

IN_A_ROW: Final = 5
"""Failures that open the breaker; or `SHARE` of the last `WINDOW` tries."""
WINDOW: Final = 20
SHARE: Final = 0.5
FIRST_PAUSE_S: Final = 15.0
LONGEST_PAUSE_S: Final = 600.0
LONGEST_ASKED_S: Final = 3600.0
"""A supplier that asks for a longer pause is asked again after this one."""
_WORTH_KEEPING_S: Final = 5.0
"""A pause shorter than this one is over before a restart is."""


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a supplier. Times are Unix seconds."""

    stopped: Literal["", "auth", "config"] = ""
    """Not asked at all until the configuration changes."""
    open: bool = False
    """Whether the breaker keeps requests from leaving."""
    failures: int = 0
    """Failed tries in a row."""
    recent: tuple[bool, ...] = ()
    """How the last `WINDOW` tries went, oldest first."""
    pause: float = 0.0
    """How long the breaker stays open, in seconds: it doubles with every probe that fails."""
    until: float = 0.0
    """When the next probe may leave."""
    since: float = 0.0
    """Since when it is stopped, or down."""
    why: str = ""
    asked_until: float = 0.0
    """The supplier wants to be left alone until then."""

    def until_probe(self, now: float) -> float:
        """Seconds until a probe may leave. A clock that was set back keeps nobody waiting for longer than a pause."""
        left = self.until - now
        return left if 0 < left <= 2 * LONGEST_PAUSE_S else 0.0

    def until_asked(self, now: float) -> float:
        """Seconds for which the supplier wants to be left alone."""
        left = self.asked_until - now
        return left if 0 < left <= LONGEST_ASKED_S else 0.0


def admit(state: State, now: float, *, probing: bool, buys: bool) -> Literal["go", "probe", "wait"]:
    """Whether a try may leave. A probe is one at a time, and never a purchase."""
    if not state.open:
        return "go"
    return "wait" if probing or buys or state.until_probe(now) > 0 else "probe"


def failed(state: State, now: float, why: str, jitter: float) -> State:
    """After a try that did not get through. ``jitter`` is 0 to 1."""
    recent = (*state.recent, False)[-WINDOW:]
    failures = state.failures + 1
    bad = failures >= IN_A_ROW or (len(recent) == WINDOW and recent.count(False) >= SHARE * WINDOW)
    if not state.open and not bad:
        return replace(state, failures=failures, recent=recent, why=why)
    if state.open and state.until_probe(now) > 0:
        return state  # a try that had left before it opened
    pause = min(LONGEST_PAUSE_S, state.pause * 2) if state.open else FIRST_PAUSE_S
    return replace(
        state,
        open=True,
        failures=failures,
        recent=recent,
        pause=pause,
        until=now + pause * (0.75 + jitter / 2),
        since=state.since if state.open else now,
        why=why,
    )


def succeeded(state: State) -> State:
    """After a try that was answered."""
    if state.open:
        return replace(state, open=False, failures=0, recent=(), pause=0.0, until=0.0, since=0.0, why="")
    return replace(state, failures=0, recent=(*state.recent, True)[-WINDOW:])


class BreakerOpen(NotSent):
    """Nothing was sent: the supplier is down, and is left alone for a while."""


class Health:
    """One supplier's state, for the threads that ask. Without ``keep`` it is remembered by this process alone."""

    def __init__(
        self,
        name: str,
        *,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
        keep: Callable[[Kept], object] | None = None,
        config: str = "",
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """``config``: a fingerprint of the configuration; what was learnt under another one about it is forgotten."""
        self.name = name
        self._clock = clock or Clock()
        self._metrics = metrics
        self._keep = keep
        self.config = config
        self._jitter = jitter
        self._lock = threading.Lock()
        self._state = State()
        self._probing = False
        self._changed_at = 0.0
        self._gauge(self._state)

    @property
    def state(self) -> State:
        """What is known now."""
        return self._state

    @property
    def stopped(self) -> bool:
        """Whether it is of no use to ask: the credentials or the configuration have to change first."""
        return bool(self._state.stopped)

    def resume(self, kept: Kept) -> None:
        """Take over what was kept: at the start, or what another daemon on the same database has learnt since."""
        with self._lock:
            if kept.changed_at <= self._changed_at:
                return
            self._changed_at = kept.changed_at
            state = kept.state
            if state.stopped and kept.config != self.config:
                state = State()
            self._state = state
            self._gauge(state)

    def retire(self) -> None:
        """Another one speaks for this supplier from now on: what this one still finds out concerns nobody else."""
        with self._lock:
            self._metrics = self._keep = None

    # --- before ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises Auth or Config while it is of no use to ask this supplier anything."""
        state = self._state
        if state.stopped:
            kind, what = (Auth, "credentials") if state.stopped == "auth" else (Config, "configuration")
            raise kind(f"not asked since {utc(state.since)}: {state.why}", hint=f"correct the {what} and reload")

    def refuse(self, *, buys: bool) -> None:
        """Raises BreakerOpen when a try may not leave now."""
        with self._lock:
            self._admit(buys=buys)

    def enter(self, *, buys: bool) -> bool:
        """Take leave to send one try: whether it is the probe. Raises BreakerOpen.

        Whoever got leave calls `leave` when it is over, however it ended.
        """
        with self._lock:
            probe = self._admit(buys=buys)
            if probe:
                self._probing = True
                self._gauge(self._state)
            return probe

    def _admit(self, *, buys: bool) -> bool:
        state = self._state
        leave = admit(state, self._clock.now(), probing=self._probing, buys=buys)
        if leave == "wait":
            raise BreakerOpen(f"not sent: down since {utc(state.since)}: {state.why}")
        return leave == "probe"

    # --- after ----------------------------------------------------------------------------------------------------

    def leave(self, error: AdapterError | None, *, probe: bool, known: bool = True) -> None:
        """A try is over: ``error`` is None when it was answered. ``known=False``: it was cut off, and tells nothing."""
        with self._lock:
            if probe:
                self._probing = False
            if not known:
                return
            before, now = self._state, self._clock.now()
            if isinstance(error, RateLimited):
                asked = min(error.retry_after or 0.0, LONGEST_ASKED_S)
                after = replace(succeeded(before), asked_until=max(before.asked_until, now + asked))
            elif isinstance(error, NotSent | Transient):
                after = failed(before, now, error.message, self._jitter())
            else:
                after = succeeded(before)
            self._become(before, after)

    def stop(self, error: Auth | Config) -> None:
        """Credentials are refused, or the configuration cannot work: not asked again until it changes."""
        with self._lock:
            word: Literal["auth", "config"] = "auth" if isinstance(error, Auth) else "config"
            before = self._state
            if before.stopped != word:
                now = self._clock.now()
                self._become(before, replace(before, stopped=word, since=now, why=error.message))

    def wake(self) -> None:
        """It works again, whatever was known: a check has just worked."""
        with self._lock:
            before = self._state
            if before.stopped or before.open:
                self._become(before, State(asked_until=before.asked_until))

    def try_now(self) -> None:
        """An operator wants it to be tried: a stop is lifted; one that is down may get its probe now, and stays down
        until that is answered.
        """
        with self._lock:
            before = self._state
            if before.stopped:
                self._become(before, State(asked_until=before.asked_until))
            elif before.open:
                self._become(before, replace(before, until=self._clock.now()))

    def _become(self, before: State, after: State) -> None:
        """Take a new state over, and tell of it if it is another one to whoever looks from outside."""
        self._state = after
        longer = after.until_asked(self._clock.now()) > _WORTH_KEEPING_S and after.asked_until != before.asked_until
        if (before.open, before.until, before.stopped) == (after.open, after.until, after.stopped) and not longer:
            return
        self._gauge(after)
        self._say(before, after)
        if self._keep is not None:
            self._changed_at = max(self._clock.now(), math.nextafter(self._changed_at, math.inf))
            self._keep(Kept(self.name, self.config, self._changed_at, after))

    def _say(self, before: State, after: State) -> None:
        """One line when it changes, none while it stays so."""
        if after.stopped and not before.stopped:
            event = "supplier_credentials_refused" if after.stopped == "auth" else "supplier_misconfigured"
            log.error(event, supplier=self.name, why=after.why, fix="correct its configuration and reload")
        elif before.stopped and not after.stopped:
            log.info("supplier_asked_again", supplier=self.name)
        elif after.open and not before.open:
            log.warning("supplier_down", supplier=self.name, why=after.why, next_try=utc(after.until))
        elif before.open and not after.open:
            log.info("supplier_up", supplier=self.name, down_since=utc(before.since))

    def _gauge(self, state: State) -> None:
        if self._metrics is not None:
            breaker = 0 if not state.open else 1 if self._probing else 2
            self._metrics.supplier_state(self.name, breaker=breaker, stopped=state.stopped)

    def line(self) -> str:
        """Its state in one line, for `status`."""
        state, now = self._state, self._clock.now()
        if state.stopped == "auth":
            return f"credentials refused since {utc(state.since)}: {state.why}"
        if state.stopped:
            return f"misconfigured since {utc(state.since)}: {state.why}"
        if state.open:
            return f"down since {utc(state.since)}: {state.why}; next try {utc(max(state.until, now))}"
        if state.until_asked(now):
            return f"rate limited until {utc(state.asked_until)}"
        return "up"


# --- kept in the database ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kept:
    """A state as it is kept: whose, under which configuration, since when."""

    name: str
    config: str
    changed_at: float
    state: State


_WHY_CHARS: Final = 300


def _write(tx: Tx, payloads: Sequence[Kept]) -> list[None]:
    """The newest state of each supplier; whoever writes last is right, and a lost one is learnt again."""
    newest = {kept.name: kept for kept in payloads}
    for _, kept in sorted(newest.items()):
        state = kept.state
        tx.execute(
            "INSERT INTO supplier_health"
            " (name, config, stopped, open, failures, pause, until, since, why, asked_until, changed_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET config = excluded.config, stopped = excluded.stopped,"
            " open = excluded.open, failures = excluded.failures, pause = excluded.pause, until = excluded.until,"
            " since = excluded.since, why = excluded.why, asked_until = excluded.asked_until,"
            " changed_at = excluded.changed_at",
            (
                kept.name,
                kept.config,
                state.stopped,
                state.open,
                state.failures,
                state.pause,
                state.until,
                state.since,
                state.why[:_WHY_CHARS],
                state.asked_until,
                kept.changed_at,
            ),
        )
    return [None] * len(payloads)


KEEP: Final[Work[Kept, None]] = Work("supplier_health", Lane.CONTROL, _write)


def kept(database: Database, names: Iterable[str]) -> Mapping[str, Kept]:
    """What is kept of these suppliers. Blocks."""
    wanted = select(supplier_health).where(supplier_health.c.name.in_(list(names)))
    with database.read() as connection:
        return {row["name"]: _kept(row) for row in connection.execute(wanted).mappings()}


def _kept(row: Mapping[Any, Any]) -> Kept:
    state = State(
        stopped=row["stopped"],
        open=row["open"],
        failures=row["failures"],
        pause=row["pause"],
        until=row["until"],
        since=row["since"],
        why=row["why"],
        asked_until=row["asked_until"],
    )
    return Kept(row["name"], row["config"], row["changed_at"], state)
