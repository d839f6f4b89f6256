"""Files of keys, as suppliers send them: FOLDER/<product sku>/*.txt, *.csv or *.xlsx, each taken once.

A file that is still being written waits until it has not changed for a while. A taken file is sealed to
``taken/NAME.sealed`` (or deleted) with a readable report beside it, so that no keys lie about in the clear.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from syncd.adapter import Adapter, AdapterError, Consignment, Context, FolderPath, Media, Pull, Seal, Settings

MEDIA: dict[str, Media] = {".txt": "text", ".csv": "csv", ".xlsx": "xlsx"}
UNFINISHED = (".part", ".tmp", ".crdownload", ".filepart", ".swp")
PATIENCE_S = 60.0

Stamp = tuple[int, int, int, int]  # device, inode, size, mtime in ns: a file that keeps all four has not changed


class FeedSettings(Settings):
    """Settings of a feed."""

    folder: FolderPath
    """Folder with one folder a product in it, named by its sku."""
    after: Literal["seal", "delete"] = "seal"
    """What becomes of a taken file."""


class File(Consignment):
    """One settled file."""

    def __init__(self, path: Path, media: Media, stamp: Stamp, after: str) -> None:
        self.path, self.media, self.stamp, self.after = path, media, stamp, after
        self.product, self.label, self.size = path.parent.name, path.name, stamp[2]

    def open(self) -> BinaryIO:
        """The file's bytes. Raises AdapterError when another file lies in its place by now."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if _stamp(os.fstat(descriptor)) != self.stamp:
            os.close(descriptor)
            raise AdapterError(f"{self.path} changed while it was being read", hint="it is taken at the next run")
        return os.fdopen(descriptor, "rb", buffering=1 << 20)

    def unchanged(self) -> bool:
        """Same inode, size and time as when it was found settled."""
        try:
            return _stamp(self.path.lstat()) == self.stamp
        except FileNotFoundError:
            return False

    def finish(self, report: str, seal: Seal) -> None:
        """Seal or delete the file, leave the report. A kill between any two steps only repeats them."""
        taken = self.path.parent / "taken"
        if not taken.is_dir():
            taken.mkdir()
            taken.chmod(0o750)  # whatever the umask: who drops files may read what became of them
        name = taken / self.label
        if any(name.with_name(f"{name.name}{kind}").exists() for kind in (".sealed", ".report.txt")):
            # Of an earlier file of that name, or of this one before a kill. Inodes are given out again: time as well.
            name = taken / f"{self.label}.{self.stamp[1]:x}-{self.stamp[3]:x}"
        if self.after == "seal":
            with self.open() as source, _replacing(name.with_name(f"{name.name}.sealed")) as target:
                seal(source, target)
        with _replacing(name.with_name(f"{name.name}.report.txt")) as target:
            target.write(report.encode())
        _sync(taken)
        if self.unchanged():  # what came in its place meanwhile is another file
            self.path.unlink()
            _sync(self.path.parent)


class Feed(Adapter):
    """A folder of files of keys."""

    Settings = FeedSettings
    title = "A folder of key files"
    unverified = ()

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.folder: Path = context.settings.folder
        self.after: str = context.settings.after

    def pull_keys(self, pull: Pull) -> Iterator[Consignment]:
        """Every settled file, oldest first within a product; waits for those that are still being written."""
        if not self.folder.is_dir():
            raise AdapterError(
                f"{self.folder} is not a folder that syncd may read", hint="make it, or correct `folder`"
            )
        found = self._look(pull)
        deadline = time.monotonic() + PATIENCE_S
        while found and not pull.stopping():
            settled, found = self._settled(found, pull)
            for path, stamp in sorted(settled.items(), key=lambda item: (item[0].parent, item[1][3], item[0])):
                if pull.stopping():
                    return
                yield File(path, MEDIA[path.suffix.lower()], stamp, self.after)
            if found and not pull.by_hand:
                pull.later(pull.settle)
                return
            if found and time.monotonic() > deadline:
                for path in sorted(found):
                    pull.complain(f"{path} is still being written: it is taken at a later run")
                return

    def _look(self, pull: Pull) -> dict[Path, Stamp]:
        """The files that there are, with their stamps; what is left out is complained of."""
        found: dict[Path, Stamp] = {}
        for folder in sorted(self.folder.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            if folder.is_symlink():
                pull.complain(f"{folder} is a link: use a folder")
                continue
            try:
                files = {path: info for path in sorted(folder.iterdir()) if (info := self._candidate(path, pull))}
            except OSError as error:
                pull.complain(f"{folder} cannot be read ({error.strerror}): give syncd's user the right to")
                continue
            if files and folder.name not in pull.products:
                pull.complain(
                    f"{folder} holds {len(files)} files, but no product has the sku {folder.name!r}:"
                    f" add [products.{folder.name}] or rename the folder"
                )
                continue
            found |= files
        return found

    @staticmethod
    def _candidate(path: Path, pull: Pull) -> Stamp | None:
        """The stamp of a file that may be taken."""
        name = path.name.lower()
        if name.startswith((".", "~$", "readme")) or name.endswith(UNFINISHED):
            return None
        try:
            info = path.lstat()
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(info.st_mode):
            return None
        if not stat.S_ISREG(info.st_mode):
            pull.complain(f"{path} is not a plain file: put the file itself there")
            return None
        if path.suffix.lower() not in MEDIA:
            pull.complain(f"{path} is not a .txt, .csv or .xlsx file: rename it if it is one")
            return None
        return _stamp(info) if info.st_size else None  # an empty file is one whose writing has not begun

    @staticmethod
    def _settled(found: dict[Path, Stamp], pull: Pull) -> tuple[dict[Path, Stamp], dict[Path, Stamp]]:
        """Wait, look again: (files that did not change, files that did with their new stamps)."""
        deadline = time.monotonic() + pull.settle
        while (left := deadline - time.monotonic()) > 0 and not pull.stopping():
            time.sleep(min(0.1, left))
        settled: dict[Path, Stamp] = {}
        moving: dict[Path, Stamp] = {}
        for path, before in found.items():
            with contextlib.suppress(FileNotFoundError):
                now = _stamp(path.lstat())
                (settled if now == before else moving)[path] = now
        return settled, moving


def _stamp(info: os.stat_result) -> Stamp:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
        yield target
        target.flush()
        os.fchmod(target.fileno(), 0o640)
        os.fsync(target.fileno())
    temporary.replace(path)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


ADAPTER = Feed
