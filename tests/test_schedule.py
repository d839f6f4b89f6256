"""Jobs run again and again: one that fails runs again, one that is slow is not run twice, and a stop stops them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from syncd.errors import UnavailableError
from syncd.schedule import Schedule

PATIENCE_S = 60.0  # only a test that fails waits so long


@pytest.fixture
async def schedule() -> AsyncIterator[Schedule]:
    made = Schedule()
    yield made
    made.stop()


class Job:
    """Counts its runs, and tells when there were enough."""

    def __init__(self, enough: int, raised: BaseException | None = None) -> None:
        self.runs, self.enough, self.raised, self.done = 0, enough, raised, asyncio.Event()

    async def __call__(self) -> None:
        self.runs += 1
        if self.runs >= self.enough:
            self.done.set()
        if self.raised:
            raise self.raised

    async def wait(self) -> None:
        await asyncio.wait_for(self.done.wait(), PATIENCE_S)


async def test_a_job_runs_again_and_again_but_not_before_its_first_interval(schedule: Schedule) -> None:
    job, later = Job(3), Job(1)
    schedule.every(0.02, job)
    schedule.every(3600, later)
    await asyncio.sleep(0.1)
    assert job.runs == 0  # nothing runs before the start
    schedule.start()
    await job.wait()
    assert later.runs == 0


@pytest.mark.parametrize(
    "raised", [UnavailableError("the database is away"), ZeroDivisionError(), asyncio.CancelledError()]
)
async def test_a_job_that_fails_runs_again_and_costs_the_others_nothing(
    schedule: Schedule, raised: BaseException
) -> None:
    fails, other = Job(3, raised), Job(3)
    schedule.every(0.02, fails)
    schedule.every(0.02, other)
    schedule.start()
    await fails.wait()
    await other.wait()


async def test_a_slow_job_is_never_run_beside_itself(schedule: Schedule) -> None:
    inside, most, other = 0, 0, Job(10)

    async def slow() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await other.done.wait()
        inside -= 1

    schedule.every(0.02, slow)
    schedule.every(0.02, other)
    schedule.start()
    await other.wait()
    assert most == 1


async def test_a_stop_starts_nothing_more_and_may_be_repeated(schedule: Schedule) -> None:
    job = Job(1)
    schedule.every(0.02, job)
    schedule.start()
    await job.wait()
    schedule.stop()
    await asyncio.sleep(0)
    runs = job.runs
    await asyncio.sleep(0.1)
    assert job.runs == runs
    schedule.stop()


async def test_a_schedule_that_was_never_started_can_be_stopped() -> None:
    Schedule().stop()
