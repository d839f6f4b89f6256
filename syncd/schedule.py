"""What runs when. The only importer of APScheduler; called by the daemon.

Due-ness lives in the database, so the scheduler only asks, once a second, what is due: a restart neither waits for a
whole interval nor starts everything at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from syncd.errors import SyncdError

log = structlog.get_logger(__name__)


class Schedule:
    """Repeating jobs on the event loop; one that is still running when its time comes is not started again."""

    def __init__(self) -> None:
        self._scheduler = AsyncIOScheduler(
            timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        )

    def every(self, seconds: float, job: Callable[[], Awaitable[object]]) -> None:
        """Run ``job`` every so many seconds, the first time one interval from the start. One that fails runs again."""
        self._scheduler.add_job(partial(_once, job), "interval", seconds=seconds)

    def start(self) -> None:
        """Begin, on the running loop."""
        self._scheduler.start()

    def stop(self) -> None:
        """Start nothing more, and cut off what runs."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)


async def _once(job: Callable[[], Awaitable[object]]) -> None:
    name = getattr(job, "__qualname__", type(job).__name__)
    try:
        await job()
    except asyncio.CancelledError:
        log.debug("job_cut_off", job=name)  # the daemon stops
    except SyncdError as error:
        log.warning("job_failed", job=name, why=error.message)
    except Exception:
        log.exception("job_failed", job=name)
