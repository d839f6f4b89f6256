"""What runs when. The only importer of APScheduler; called by the daemon.

Due-ness lives in the database, so the scheduler only asks, once a second, what is due: a restart neither waits for a
whole interval nor starts everything at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from syncd.errors import SyncdError

log = structlog.get_logger(__name__)


class Schedule:
    """Repeating jobs on the event loop; one that is still running when its time comes is not started again."""

    def __init__(self) -> None:
        self._scheduler = AsyncIOScheduler(
            timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        )
        self._scheduler.add_listener(_failed, EVENT_JOB_ERROR)

    def every(self, seconds: float, job: Callable[[], Awaitable[object]]) -> None:
        """Run ``job`` every so many seconds, the first time one interval from the start."""
        self._scheduler.add_job(job, "interval", seconds=seconds)

    def start(self) -> None:
        """Begin, on the running loop."""
        self._scheduler.start()

    def stop(self) -> None:
        """Start nothing more."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)


def _failed(event: JobExecutionEvent) -> None:
    error = event.exception
    if isinstance(error, SyncdError):
        log.warning("job_failed", job=event.job_id, why=error.message)
    else:
        log.error("job_failed", job=event.job_id, exc_info=error)
