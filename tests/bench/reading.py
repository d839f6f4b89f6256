"""Reading N one-key lines against a bare ``str.splitlines`` and one compiled pattern over the same file; the peak of
reading N labelled lines, in a process of its own. Pure: no vault, no database.
"""

from __future__ import annotations

import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC
from pathlib import Path

from syncd.inventory.formats import Survey, load_formats, read

ROOT = Path(__file__).parents[2]
FORMATS = load_formats([ROOT / "config" / "formats.toml"])
BARE = re.compile(r"[A-Z0-9]{5}-[A-Z0-9]{5}-[A-Z0-9]{5}")
BLOCK = 256 * 1024
ROUNDS = 5


def key_lines(number: int) -> bytes:
    """So many lines of Steam's shape."""
    alphabet = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
    lines = []
    for at in range(number):
        mixed = at * 2654435761 % 2**40
        code = "".join(alphabet[(mixed * 31 + at * (place + 7)) >> place & 31] for place in range(13))
        lines.append(f"{code[:5]}-{code[5:10]}-{code[10:]}{at % 90 + 10}")
    return "\n".join(lines).encode() + b"\n"


def blocks(payload: bytes) -> Iterator[bytes]:
    for at in range(0, len(payload), BLOCK):
        yield payload[at : at + BLOCK]


def ours(payload: bytes, name: str) -> int:
    survey = Survey()
    for block in blocks(payload):
        survey.feed(block)
    reading = survey.decide()
    return sum(card.key is not None for card in read(blocks(payload), reading, FORMATS[name], timezone=UTC))


def bare(payload: bytes) -> int:
    match = BARE.fullmatch
    return sum(match(line) is not None for line in payload.decode().splitlines())


def clocked(work: Callable[[], int], number: int) -> float:
    started = time.perf_counter()
    assert work() == number
    return time.perf_counter() - started


def labelled(number: int) -> Iterator[bytes]:
    """The same card over and over, but for its number, in blocks."""
    for start in range(0, number // 2, 5000):
        yield "".join(
            f"卡号：{at:017d}\n密码：{at * 7 % 10**18:018d}\n" for at in range(start, min(start + 5000, number // 2))
        ).encode()


def resident() -> float:
    """MiB of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak(number: int) -> float:
    """MiB of memory that reading so many labelled lines adds to this process, which has done nothing yet."""
    before = resident()
    survey = Survey()
    for block in labelled(number):
        survey.feed(block)
    reading = survey.decide()
    cards = read(labelled(number), reading, FORMATS["pair"], timezone=UTC)
    assert sum(card.key is not None for card in cards) == number // 2
    return resident() - before


def main() -> None:
    number = int(sys.argv[1])
    if "--peak" in sys.argv:
        started = time.perf_counter()
        held = peak(number)
        rate = number / (time.perf_counter() - started)
        print(
            f"reading labelled   {number:,} lines: {rate:9,.0f}/s; {held:.1f} MiB more resident memory"
            f" (wanted below 16), {resident():.0f} MiB in all",
            flush=True,
        )
        return
    payload = key_lines(number)
    for name in ("steam", "auto", "opaque"):
        runs = [
            (clocked(lambda: bare(payload), number), clocked(lambda name=name: ours(payload, name), number))
            for _ in range(ROUNDS)
        ]
        floor, real = (statistics.median(run[side] for run in runs) for side in (0, 1))
        print(
            f"reading {name:10} {number:,} lines: {number / real:9,.0f}/s of {number / floor:9,.0f}/s bare"
            f" = {floor / real:.2f} (wanted 0.30)",
            flush=True,
        )
    subprocess.run([sys.executable, __file__, str(number), "--peak"], check=True)


if __name__ == "__main__":
    main()
