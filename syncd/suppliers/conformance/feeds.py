"""Silver, of feeds: every payload is handed over whole, once it is safe put away, and never left about in the clear."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from syncd.adapter import Consignment, Pull
from syncd.suppliers.conformance.checks import Found, check
from syncd.suppliers.conformance.examples import Feed
from syncd.suppliers.conformance.rig import Kit


@dataclass
class _Feed:
    """The examples' folder, and an adapter that pulls from it."""

    kit: Kit
    folder: Path
    adapter: Any
    complaints: list[str] = field(default_factory=list)

    @property
    def feed(self) -> Feed:
        assert self.kit.examples.feed is not None  # noqa: S101 - for the type checker: `_no_feed` asked
        return self.kit.examples.feed

    def pulled(self, *, stopping: bool = False, by_hand: bool = True) -> Iterator[Consignment]:
        """A run."""
        found: Iterator[Consignment] = self.adapter.pull_keys(
            Pull(
                products=frozenset(one.product for one in self.feed.gives),
                by_hand=by_hand,
                settle=0.0,
                stopping=lambda: stopping,
                complain=self.complaints.append,
                later=lambda _seconds: None,
            )
        )
        return found


@contextmanager
def _feed(kit: Kit, *, unknown: bool = False) -> Iterator[_Feed]:
    with kit.filled(unknown=unknown) as folder, kit.session() as session:
        yield _Feed(kit, folder, session.adapter)


def _no_feed(kit: Kit) -> str:
    return "" if kit.examples.feed else "the examples have no [feed]"


def _seal(source: BinaryIO, target: BinaryIO) -> None:
    """Sealed enough for a check: nothing of it can be read."""
    target.write(b"sealed:" + bytes(255 - byte for byte in source.read()))


def _read(one: Consignment) -> bytes:
    with one.open() as stream:
        return stream.read()


@check("silver", "pull_keys", unless=_no_feed)
def a_feed_hands_over_what_lies_there(kit: Kit) -> Found:
    """Every payload, byte by byte, under the right product: what is not handed over is not sold."""
    with _feed(kit) as feed:
        found = [(one.product, _read(one), one.media, one.size, one.label) for one in feed.pulled()]
        wanted = feed.feed.gives
        if sorted((product, content) for product, content, *_ in found) != sorted(
            (w.product, w.content.encode()) for w in wanted
        ):
            seen = ", ".join(f"{len(content)} bytes for {product}" for product, content, *_ in found) or "nothing"
            yield f"handed over: {seen}; expected are {len(wanted)}", "yield each payload with its product, unaltered"
        for _, content, media, size, label in found:
            for one in wanted:
                if one.content.encode() == content and (one.media != media or one.label not in {None, label}):
                    yield f"{label} is handed over as {media}", "the label is the file's name, the media its kind"
            if size != len(content):
                yield f"{label} says {size} bytes and has {len(content)}", "size is the number of its bytes"


@check("silver", "pull_keys", unless=_no_feed)
def a_payload_reads_the_same_again(kit: Kit) -> Found:
    """It is read once to know it by its hash, and once more to seal it: other bytes are another payload."""
    with _feed(kit) as feed:
        for one in feed.pulled():
            with one.open() as first, one.open() as second:
                if first.read() != second.read():
                    yield f"{one.label}: two streams give two contents", "open() gives a new stream from the first byte"
            if not one.unchanged():
                yield f"{one.label}: unchanged() is false though nobody touched it", "compare what open() gave"
        again = [_read(one) for one in feed.pulled()]
        if len(again) != len(feed.feed.gives):
            yield f"a second run hands over {len(again)}", "what is not finished is handed over again"


@check("silver", "pull_keys", unless=_no_feed)
def a_change_is_noticed(kit: Kit) -> Found:
    """A file that is exchanged in mid-reading would be put away unread, with keys in it that nobody took."""
    with _feed(kit) as feed:
        for one in list(feed.pulled()):
            before = _read(one)
            for path in [path for path in feed.folder.rglob("*") if path.is_file() and path.read_bytes() == before]:
                path.write_bytes(before + b"ANOTHER-KEY\n")
            if one.unchanged():
                yield f"{one.label}: unchanged() is true after a key was added", "compare size, time and inode"


@check("silver", "pull_keys", unless=_no_feed)
def finish_can_be_repeated(kit: Kit) -> Found:
    """A kill may come between any two steps: the next run finds the payload and finishes it."""
    with _feed(kit) as feed:
        for one in list(feed.pulled()):

            def broken(source: BinaryIO, target: BinaryIO) -> None:
                target.write(source.read(3))
                raise InterruptedError

            try:
                one.finish("report", broken)
            except InterruptedError:
                pass
            except Exception as error:  # noqa: BLE001
                yield f"{one.label}: an interrupted seal ends in {type(error).__name__}", "let what seal raises pass"
        for one in list(feed.pulled()):
            try:
                one.finish("report", _seal)
            except Exception as error:  # noqa: BLE001
                yield f"{one.label}: a second finish ends in {type(error).__name__}", "every step may find itself done"
        left = [one.label for one in feed.pulled()]
        if left:
            yield f"after finish they are handed over again: {', '.join(left)}", "put the payload away as the last step"


@check("silver", "pull_keys", unless=_no_feed)
def no_copy_is_left_in_the_clear(kit: Kit) -> Found:
    """Sold keys that lie about as files are read by whoever comes by."""
    with _feed(kit) as feed:
        contents = [one.content.encode() for one in feed.feed.gives if one.content.strip()]
        for one in list(feed.pulled()):
            one.finish("report", _seal)
        for path in feed.folder.rglob("*"):
            if path.is_file() and any(content.strip() in path.read_bytes() for content in contents):
                yield f"{path.name} holds the keys in the clear after finish", "seal(source, target), then unlink"


@check(
    "silver",
    "pull_keys",
    unless=lambda kit: (
        _no_feed(kit) or ("" if kit.examples.feed and kit.examples.feed.unknown else "[feed] has no unknown files")
    ),
)
def an_unknown_product_is_left(kit: Kit) -> Found:
    """Keys of a product that the configuration does not know are taken once it does; until then somebody is told."""
    with _feed(kit, unknown=True) as feed:
        found = list(feed.pulled())
        if len(found) != len(feed.feed.gives):
            yield (
                f"{len(found)} were handed over, of known products are {len(feed.feed.gives)}",
                "look at pull.products",
            )
        for one in found:
            one.finish("report", _seal)
        for name in feed.feed.unknown:
            if not (feed.folder / name).exists():
                yield f"{name} is gone", "leave it where it is"
        if not feed.complaints:
            yield "nobody was told", "pull.complain(what was left out, and what to do)"


@check("silver", "pull_keys", unless=_no_feed)
def a_feed_stops_when_it_is_asked_to(kit: Kit) -> Found:
    """The daemon cannot end while a run goes on: an upgrade would wait for it, then kill it."""
    with _feed(kit) as feed:
        found = list(feed.pulled(stopping=True))
        if found:
            yield f"{len(found)} were handed over after stopping() said so", "ask pull.stopping() before each payload"
