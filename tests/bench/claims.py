"""Claims a second in a vault of N keys against one of 10,000: one at a time, and 64 at once. In process, durable."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

import uvloop
from parts import Parts

SMALL = 10_000


async def rate(parts: Parts, prefix: str, callers: int, claims: int) -> float:
    async def caller(number: int) -> None:
        for turn in range(claims // callers):
            await parts.deliveries.deliver("demo", f"{prefix}-{number}-{turn}", "bench-0", 1)

    started = time.perf_counter()
    await asyncio.gather(*[caller(number) for number in range(callers)])
    return claims / (time.perf_counter() - started)


def main() -> None:
    small_url, large_url, keys = sys.argv[1], sys.argv[2], int(sys.argv[3])
    small, large = Parts(small_url), Parts(large_url)
    small.fill(SMALL, "S")
    large.fill(keys, "L")
    engine = large.database.url.get_backend_name()
    for callers, claims, wanted in ((1, 300, 0.85), (64, 1280, 0.5)):
        rates: dict[Parts, list[float]] = {small: [], large: []}
        for turn in range(6):
            for parts in (small, large):
                rates[parts].append(uvloop.run(rate(parts, f"{callers}-{turn}", callers, claims)))
        here, there = (statistics.median(rates[parts][1:]) for parts in (large, small))  # the first warms caches
        print(
            f"claims  {engine:10} {callers:3} at once: {here:6.0f}/s at {keys:,} keys,"
            f" {there:6.0f}/s at {SMALL:,} = {here / there:.2f} (wanted {wanted:.2f})",
            flush=True,
        )
    small.stop()
    large.stop()


if __name__ == "__main__":
    main()
