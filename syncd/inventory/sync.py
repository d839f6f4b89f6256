"""Runs of sync: one a supplier at a time, each as a task and a thread of its own, leased with an epoch (K13).

`tick` starts what the database says is due; `start` runs one now. A supplier that fails, hangs or lies costs the others
nothing: it has its own thread, its error is recorded in its run, and its next run comes at its usual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from sqlalchemy import RowMapping, select

from syncd.adapter import AdapterError, BadResponse, Consignment, NotForSale, Pull
from syncd.config import Settings
from syncd.errors import ConflictError, LeaseLostError, NotFoundError, SyncdError
from syncd.inventory.catalogue import Catalogue, Known, hot
from syncd.inventory.intake import Ask, Intake, Progress
from syncd.inventory.listing import row_of
from syncd.inventory.offers import Claim, Offers, Reading, Taken, Task
from syncd.metrics import Metrics
from syncd.model import IdSource, utc
from syncd.store import leases
from syncd.store.database import Writer
from syncd.store.leases import Lease
from syncd.store.tables import run as run_table
from syncd.store.tables import supplier as supplier_table
from syncd.suppliers.link import Link

log = structlog.get_logger(__name__)

_STOP_S: Final = 3.0
_SLACK_S: Final = 60.0


class AlreadyRunningError(ConflictError):
    """This supplier is being synced right now; ``run`` is that run's id when it is one of this daemon's."""

    code = "already_running"

    def __init__(self, message: str, *, run: int | None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.run = run
        if run is not None:
            self.members = {"run": str(run)}


class _Run:
    """One run under way in this daemon."""

    def __init__(self, run_id: int, lease: Lease) -> None:
        self.id = run_id
        self.lease = lease
        self.progress = Progress()
        self.taken: Taken | None = None
        self.stop = threading.Event()
        self.problems: list[str] = []
        """What failed: payloads that could not be taken."""
        self.complaints: list[str] = []
        """What was left out on purpose: the supplier was read all the same."""
        self.next_in: float | None = None
        self.task: asyncio.Task[None] | None = None
        self.started = time.monotonic()


class Sync:
    """Keeps every supplier synced. ``links`` are those to the enabled suppliers, by name."""

    def __init__(
        self,
        writer: Writer,
        ids: IdSource,
        intake: Intake,
        offers: Offers,
        metrics: Metrics,
        settings: Settings,
        links: Mapping[str, Link],
    ) -> None:
        self._writer = writer
        self._database = writer.database
        self._clock = writer.database.clock
        self._ids = ids
        self._intake = intake
        self._offers = offers
        self._metrics = metrics
        self._settings = settings
        self._links = links
        self._catalogue = Catalogue(self._database, lambda: self._settings)
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._runs: dict[str, _Run] = {}
        self._starting: set[str] = set()
        self._asked_at: dict[tuple[str, str], float] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._failing: set[str] = set()
        self._unlisted: set[tuple[str, str]] = set()
        self._stopping = False
        self.listed: Callable[[], None] = lambda: None
        """Told whenever a supplier's offers were taken."""

    async def open(self) -> None:
        """Make sure that every supplier has its row; a new one is due at once."""
        await self._writer.submit(leases.ENSURE, list(self._links))

    async def reload(self, settings: Settings, links: Mapping[str, Link]) -> None:
        """Take over a changed configuration; runs under way end as they began."""
        self._settings, self._links = settings, links
        await self.open()

    async def tick(self) -> None:
        """Start whatever is due and not under way anywhere."""
        if self._stopping:
            return
        for name in await self._writer.submit(leases.DUE, self._longest()):
            link = self._links.get(name)
            if link is not None and name not in self._runs and not link.stopped:
                await self._begin(name, "schedule", only_due=True)

    def _longest(self) -> float:
        """The latest that any supplier can be due, in seconds from now."""
        return max((sum(self._settings.interval(name)) for name in self._settings.suppliers), default=0.0) + _SLACK_S

    async def start(self, name: str, asked_by: str) -> int:
        """Start one supplier's run now; returns the run's id. Raises NotFoundError, AlreadyRunningError."""
        link = self._links.get(name)
        if link is None:
            why = "is not enabled" if name in self._settings.suppliers else "does not exist"
            known = ", ".join(sorted(self._links)) or "none"
            raise NotFoundError(f"supplier {name} {why}", hint=f"there are: {known}")
        if link.health is not None:
            link.health.try_now()  # whoever asks by hand wants it to be tried
        here = self._runs.get(name)
        started = None if here else await self._begin(name, asked_by, only_due=False)
        if started is None:
            here = self._runs.get(name)
            raise AlreadyRunningError(
                f"supplier {name} is being synced already", run=here.id if here else None, hint="wait for that run"
            )
        return started

    async def accept(self, name: str, by: str) -> int:
        """Accept what is held of a supplier's listing: the run that this starts takes it over, if it is no worse.

        Returns the run's id. Raises NotFoundError, AlreadyRunningError, ConflictError when nothing is held.
        """
        if name in self._links and name not in self._runs:
            await self._writer.submit(self._offers.ACCEPT, (name, by))
        return await self.start(name, by)

    async def _begin(self, name: str, asked_by: str, *, only_due: bool) -> int | None:
        if name in self._starting or self._stopping:
            return None
        self._starting.add(name)
        try:
            run_id = self._ids.next()
            ttl = self._settings.sync.lease
            wanted = leases.Acquire(name, self._holder, ttl, run_id, asked_by, only_due, self._longest())
            lease = await self._writer.submit(leases.ACQUIRE, wanted)
            if lease is None:
                return None
            started = _Run(run_id, lease)
            self._runs[name] = started
            started.task = asyncio.create_task(self._carry(name, started, by_hand=asked_by != "schedule"))
            return run_id
        finally:
            self._starting.discard(name)

    async def _carry(self, name: str, run: _Run, *, by_hand: bool) -> None:
        """One run from its lease to its row, whatever happens in between."""
        self._metrics.sync_started(name)
        renewal = asyncio.create_task(self._renew(run))
        error: str | None = None
        try:
            await _in_thread(f"sync-{name}", lambda: self._pull(name, run, by_hand=by_hand))
        except LeaseLostError:
            error = "taken over by another daemon"
        except SyncdError as caught:
            error = str(caught)
        except Exception as caught:  # an adapter may fail in any way; the others go on
            error = f"the adapter failed: {type(caught).__name__}"
            log.exception("sync_failed", supplier=name)
        finally:
            renewal.cancel()
        problems = [*([error] if error else []), *run.problems]
        await self._end(name, run, "; ".join(problems) or None, "; ".join(run.complaints) or None)

    async def _end(self, name: str, run: _Run, error: str | None, left_out: str | None) -> None:
        interval, jitter = self._settings.interval(name) if name in self._settings.suppliers else (600.0, 0.0)
        elapsed = time.monotonic() - run.started
        next_in = interval + random.uniform(0, jitter) - elapsed  # noqa: S311 - spreading load, not a secret
        if run.next_in is not None:
            next_in = min(next_in, run.next_in)
        if run.stop.is_set():
            next_in = 0.0  # stopped half-way: goes on at the next start
        counts, taken = run.progress.counts, run.taken or Taken("interrupted")
        outcome = leases.Outcome(
            run.lease,
            run.id,
            {
                "seen": counts.cards,
                "new": counts.sealed,
                "repeats": counts.repeats,
                "duplicates": counts.duplicates,
                "quarantined": counts.quarantined,
                "offers": taken.seen,
                "offers_changed": taken.changed,
                "offers_removed": taken.removed,
            },
            error,
            next_in,
            left_out,
        )
        try:
            kept = await self._writer.submit(leases.END, outcome)
        except Exception as caught:  # noqa: BLE001 - a run that cannot be recorded must not keep out the next one
            log.warning("run_not_recorded", supplier=name, why=_why(caught))
            kept = False
        self._runs.pop(name, None)
        if taken.state == "taken":
            self.listed()
        self._metrics.sync_ended(name, seconds=elapsed, succeeded_at=None if error else self._clock.now())
        # Said loudly once: the runs after it that fail as well are told, but warn of nothing new.
        say = log.warning if error and name not in self._failing else log.info
        (self._failing.add if error else self._failing.discard)(name)
        say(
            "sync_ended" if kept else "sync_lost",
            supplier=name,
            run=run.id,
            sealed=counts.sealed,
            repeats=counts.repeats,
            quarantined=counts.quarantined,
            offers=taken.seen,
            changed=taken.changed,
            removed=taken.removed,
            problem=error,
            left_out=left_out,
        )

    async def _renew(self, run: _Run) -> None:
        """Prolong the lease while the run goes on; one that was lost stops the run."""
        ttl = self._settings.sync.lease
        while True:
            await asyncio.sleep(ttl / 3)
            try:
                kept = await self._writer.submit(leases.RENEW, (run.lease, ttl))
            except Exception as error:  # noqa: BLE001 - the database is away, or full: the epoch decides
                log.warning("lease_not_prolonged", supplier=run.lease.supplier, why=_why(error))
                continue
            if not kept:
                run.stop.set()
                return

    def _pull(self, name: str, run: _Run, *, by_hand: bool) -> None:
        """Do what the supplier can: keys, offers, balance. Runs in the run's own thread."""
        link = self._links[name]
        parts: dict[str, Callable[[], None]] = {
            "pull_keys": lambda: self._pull_keys(name, link, run, by_hand=by_hand),
            "list_offers": lambda: self._list_offers(name, link, run, by_hand=by_hand),
            "get_balance": lambda: self._get_balance(link, run),
        }
        for verb, part in parts.items():
            if verb not in link.capabilities or run.stop.is_set():
                continue
            try:
                part()
            except LeaseLostError:
                raise
            except SyncdError as error:  # what one part cannot, another may
                run.problems.append(str(error))

    def _pull_keys(self, name: str, link: Link, run: _Run, *, by_hand: bool) -> None:
        """Take every payload that the supplier hands over."""
        ask = Ask(name, self._settings.suppliers[name].tz, run.lease, run.progress, run.stop.is_set)

        def later(seconds: float) -> None:
            run.next_in = seconds

        pull = Pull(
            frozenset(self._settings.products),
            by_hand,
            self._settings.sync.settle,
            run.stop.is_set,
            run.complaints.append,
            later,
        )
        for consignment in link.adapter.pull_keys(pull):
            if run.stop.is_set():
                return
            run.progress.total += consignment.size
            self._take(consignment, ask, run)

    def _list_offers(self, name: str, link: Link, run: _Run, *, by_hand: bool) -> None:
        """Take the supplier's listing, if it can be believed."""
        incremental = link.adapter.promises.incremental
        run.taken = self._offers.take(
            Task(
                name,
                run.lease,
                run.id,
                link.pages,
                incremental,
                by_hand=by_hand,
                stopping=run.stop.is_set,
                config=link.health.config if link.health else "",
            )
        )
        if run.taken.problem:
            run.problems.append(run.taken.problem)
        if run.taken.left_out:
            run.complaints.append(run.taken.left_out)
        unlisted = {} if run.taken.problem or run.stop.is_set() else self._catalogue.unlisted(name)
        for sku, product in unlisted.items():
            if (name, sku) not in self._unlisted:
                log.warning("offer_not_listed", supplier=name, sku=sku, product=product)
        self._unlisted = {each for each in self._unlisted if each[0] != name} | {(name, sku) for sku in unlisted}

    def _get_balance(self, link: Link, run: _Run) -> None:
        """Ask what our account holds, of a supplier that has answered; not to know it is no failure."""
        if run.problems:
            return
        try:
            self._offers.balance(run.lease, link.call("get_balance"))
        except AdapterError as error:
            run.complaints.append(f"its balance is not known: {error}")

    # --- offers that are asked for by themselves --------------------------------------------------------------------

    async def refresh(self) -> None:
        """Ask for the offers that have an interval of their own, and are due."""
        now, due = time.monotonic(), []
        for (name, sku), refresh in hot(self._settings).items():
            link = self._links.get(name)
            if link is None or link.stopped or "get_offer" not in link.capabilities or (name, sku) in self._asking:
                continue
            if self._asked_at.get((name, sku), 0.0) <= now and not self._stopping:
                self._asked_at[name, sku] = now + refresh
                due.append(Claim(name, sku, refresh))
        if not due:
            return
        for claim in await self._writer.submit(self._offers.CLAIM, due):
            self._asking[claim.supplier, claim.sku] = asyncio.create_task(self._ask(claim))

    async def _ask(self, claim: Claim) -> None:
        """One offer. A supplier that does not answer is no news: its offer grows stale."""
        try:
            await self._ask_now(claim)
        except SyncdError as error:
            log.info("offer_not_refreshed", supplier=claim.supplier, sku=claim.sku, why=_why(error))
        finally:
            self._asking.pop((claim.supplier, claim.sku), None)

    async def _ask_now(self, claim: Claim) -> None:
        link = self._links.get(claim.supplier)
        if link is None:
            return
        at = int(self._clock.now())
        try:
            row = row_of(await link.acall("get_offer", claim.sku))
        except NotForSale:
            row = None
        if row is not None and row[0] != claim.sku:
            raise BadResponse("another offer was answered")
        if await self._writer.submit(self._offers.READ, Reading(claim, at, row)):
            self._metrics.listing_alarm(claim.supplier, "offer")

    def _take(self, consignment: Consignment, ask: Ask, run: _Run) -> None:
        """One payload; what is wrong with it never stops the next one."""
        try:
            report = self._intake.take(consignment, ask)
        except LeaseLostError:
            raise
        except Exception as error:
            if not isinstance(error, SyncdError | OSError):
                log.exception("payload_failed", supplier=ask.supplier, product=consignment.product)
            run.problems.append(f"{consignment.product}/{consignment.label}: {_why(error)}")
            return
        if report.state == "changed":
            run.complaints.append(f"{report.product}/{report.label} changed while it was read: it is taken again")
            run.next_in = self._settings.sync.settle
        log.info("payload_taken", supplier=ask.supplier, product=report.product, label=report.label, state=report.state)

    async def stop(self) -> None:
        """End every run at its next chunk; one that hangs in its adapter is left behind, and its lease runs out."""
        self._stopping = True
        runs = list(self._runs.values())
        for run in runs:
            run.stop.set()
        tasks = [*(run.task for run in runs if run.task), *self._asking.values()]
        for asking in self._asking.values():
            asking.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_S)

    # --- what operators see (the three that read block: call them from a thread) ------------------------------------

    def progress(self, run_id: int) -> dict[str, int] | None:
        """How far a run of this daemon is: bytes of bytes so far, cards; None when it is not under way here."""
        for run in self._runs.values():
            if run.id == run_id:
                return {
                    "bytes": run.progress.bytes,
                    "total": run.progress.total,
                    "cards": run.progress.counts.cards,
                }
        return None

    def suppliers(self) -> list[dict[str, Any]]:
        """Every configured supplier with its state, and its last run."""
        with self._database.read() as connection:
            rows = {row["name"]: row for row in connection.execute(select(supplier_table)).mappings()}
        listings = self._catalogue.known()
        found = []
        for name, supplier in self._settings.suppliers.items():
            row = rows.get(name)
            last = self.runs(name, 1)
            known = listings.get(name)
            found.append(
                {
                    "name": name,
                    "adapter": supplier.adapter,
                    "enabled": supplier.enabled,
                    "state": self._state(name, row, known),
                    "offers": known.offers if known else None,
                    "balance": known.balance if known else None,
                    "interval_s": self._settings.interval(name)[0],
                    "due_at": utc(row["due_at"]) if row else None,
                    "running": bool(last and last[0]["ended_at"] is None),
                    "last_success_at": _time(row["last_success_at"]) if row else None,
                    "failures": row["failures"] if row else 0,
                    "last_error": row["last_error"] if row else None,
                    "last_run": last[0] if last else None,
                }
            )
        return found

    def _state(self, name: str, row: RowMapping | None, known: Known | None) -> str:
        """How it does, in one line: the worst first."""
        link = self._links.get(name)
        if link is None:
            return "disabled"
        health = link.health.line() if link.health is not None else "up"
        if health != "up":
            return health
        if known and known.pending:
            return f"up; listing held since {utc(known.pending_at or 0)}: {'; '.join(known.pending.alarms.values())}"
        if row is not None and row["failures"]:
            return f"failing, {row['failures']} in a row"
        if known and known.watermark is not None and self._catalogue.stale(name, known):
            return f"up; its offers are stale: last read {utc(known.watermark)}"
        return f"up; {known.held} offers held" if known and known.held else health

    def runs(self, name: str, limit: int) -> list[dict[str, Any]]:
        """The last runs of a supplier, newest first."""
        statement = select(run_table).where(run_table.c.supplier == name).order_by(run_table.c.id.desc()).limit(limit)
        with self._database.read() as connection:
            return [_shown(row) for row in connection.execute(statement).mappings()]

    def run(self, run_id: int) -> dict[str, Any]:
        """One run, with its progress while it is under way. Raises NotFoundError."""
        with self._database.read() as connection:
            row = connection.execute(select(run_table).where(run_table.c.id == run_id)).mappings().one_or_none()
        if row is None:
            raise NotFoundError("there is no such run")
        return {**_shown(row), "progress": self.progress(run_id)}


def _shown(row: RowMapping) -> dict[str, Any]:
    shown = {name: row[name] for name in ("supplier", "asked_by", *leases.COUNTS)}
    times = {name: _time(row[name]) for name in ("started_at", "ended_at")}
    return {"id": str(row["id"]), **shown, **times, "error": row["error"]}


def _why(error: Exception) -> str:
    """What went wrong, in words that hold no key: another's message is not ours to print."""
    if isinstance(error, SyncdError):
        return str(error)
    known = f": {error.strerror}" if isinstance(error, OSError) else ""
    return f"{type(error).__name__}{known}"


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else utc(seconds)


async def _in_thread(name: str, call: Callable[[], None]) -> None:
    """Run in a thread of its own: a shared pool could be filled by suppliers that hang."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error:
            done.set_exception(error)
        else:
            done.set_result(None)

    def run() -> None:
        error: BaseException | None = None
        try:
            call()
        except BaseException as caught:  # noqa: BLE001 - handed to the task that waits
            error = caught
            if not isinstance(caught, Exception) or isinstance(caught, StopIteration):
                # These do not travel through a future: they would end the daemon, or never arrive.
                error = SyncdError(f"the adapter failed: {type(caught).__name__}")
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is waiting any more
            loop.call_soon_threadsafe(settle, error)

    # A daemon thread: one that hangs must not keep the process from stopping.
    threading.Thread(target=run, name=name, daemon=True).start()
    await done
