"""Feeds: suppliers that hand keys over without an order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal

Media = Literal["text", "csv", "xlsx"]
Seal = Callable[[BinaryIO, BinaryIO], None]
"""Seals everything read from the first stream into the second."""


class Consignment(ABC):
    """One payload of keys as the supplier handed it over, such as a file. It is read as a whole or not at all."""

    product: str
    """The shop's sku whose keys these are."""
    label: str
    """What to call it in reports: the file's name."""
    media: Media
    size: int
    """Bytes."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """The payload from its first byte. Called more than once, and always answered with the same bytes."""

    def unchanged(self) -> bool:
        """Whether the payload is still what ``open`` gave: asked after the last byte was read."""
        return True

    @abstractmethod
    def finish(self, report: str, seal: Seal) -> None:
        """Every key of it is safe: put it away, and the report beside it. May be called again after a kill."""


@dataclass(frozen=True, slots=True)
class Pull:
    """What a feed is asked for."""

    products: frozenset[str]
    """The skus that the configuration knows."""
    by_hand: bool
    """Whether an operator waits for this run: then it waits for payloads that are still being written."""
    settle: float
    """Seconds for which a payload must not have changed."""
    stopping: Callable[[], bool]
    """True once the run has to end: stop at the next payload."""
    complain: Callable[[str], None]
    """Tell the operator of something that was left out, and what to do; the run goes on."""
    later: Callable[[float], None]
    """Ask for the next run in so many seconds already: something was not ready."""
