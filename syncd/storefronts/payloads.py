"""Payloads on their way through the API: an upload becomes a sealed file without a name, read as often as needed.

Called by the operator's routes. Nothing of it lies on the disk in clear, and a kill leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, cast

from syncd.storefronts.problems import TooLargeError

MOST: Final = 1 << 30
"""Bytes of one upload."""
_BLOCK: Final = 256 * 1024


class Blocks(io.RawIOBase):
    """A stream over blocks of bytes. Seeks forward only, from the start, which is all that resuming takes."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._left = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Whatever the next block holds."""
        while not self._left:
            found = next(self._blocks, None)
            if found is None:
                return 0
            self._left = found
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


class _Reader(io.BufferedReader):
    def seek(self, offset: int, _whence: int = 0) -> int:
        left = offset
        while left and (block := self.read(min(left, _BLOCK))):
            left -= len(block)
        return offset


async def spooled(
    chunks: AsyncIterator[bytes], folder: Path, store: Callable[[BinaryIO, BinaryIO], None]
) -> tuple[BinaryIO, int]:
    """(a file without a name in ``folder`` that ``store`` has written from what came in, bytes that came in).

    Raises TooLargeError, whatever ``chunks`` raises, OSError when the disk is full.
    """
    loop = asyncio.get_running_loop()
    target = cast("BinaryIO", tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 - the caller closes it
    size = 0

    async def following() -> bytes | None:
        return await anext(chunks, None)

    def blocks() -> Iterator[bytes]:
        nonlocal size
        while (block := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not None:
            size += len(block)
            if size > MOST:
                raise TooLargeError(f"the upload is larger than {MOST >> 20} MiB", hint="split the file")
            yield block

    def write() -> None:
        store(cast("BinaryIO", io.BufferedReader(Blocks(blocks()), _BLOCK)), target)
        target.flush()

    try:
        await asyncio.to_thread(write)
    except BaseException:
        target.close()
        raise
    return target, size


def opened(file: BinaryIO, unseal: Callable[[BinaryIO], Iterator[bytes]]) -> BinaryIO:
    """A sealed spool from its first byte, in clear. One reader at a time."""
    file.seek(0)
    return cast("BinaryIO", _Reader(Blocks(unseal(file)), _BLOCK))
