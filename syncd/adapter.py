"""PUBLIC: the one module that an adapter imports.

An adapter is a file with one subclass of `Adapter`. It is told where its supplier is and hands over what the supplier
has; it never splits, cleans or reads a key (K14): that is the core's part, and so are scheduling, leases, retries,
sealing, de-duplication and reports. ``adapters/README.md`` is the guide.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo

__all__ = ["Adapter", "AdapterError", "Consignment", "Context", "FolderPath", "Media", "Pull", "Seal", "Settings"]

from syncd.errors import SyncdError

Media = Literal["text", "csv", "xlsx"]
Seal = Callable[[BinaryIO, BinaryIO], None]
"""Seals everything read from the first stream into the second."""


class AdapterError(SyncdError):
    """The supplier could not be read this time: recorded in the run, tried again at the next one."""

    code = "supplier_failed"
    status = 502


def _inside(value: Path, info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("base", Path())) / value.expanduser()


FolderPath = Annotated[Path, AfterValidator(_inside)]
"""A path in an adapter's settings; a relative one is relative to the configuration file's folder."""


class Settings(BaseModel):
    """The adapter's own part of ``[suppliers.NAME]``. Subclass it, name each setting and its default.

    Unknown settings and wrong types are configuration problems, reported with all others before the daemon starts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class Context:
    """What an adapter is given: its supplier's name, its settings (an instance of its own model), the time zone."""

    name: str
    settings: Any
    timezone: ZoneInfo


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


class Adapter:
    """One supplier's protocol. Subclass it, set ``Settings``, implement what the supplier can do."""

    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, context: Context) -> None:
        self.context = context

    def pull_keys(self, pull: Pull) -> Iterator[Consignment]:
        """Everything that the supplier handed over and that was not finished yet.

        Runs in a thread of its own, so it may block. What is raised for one payload (`AdapterError` says why) ends
        this run only; what was yielded before it stays taken.
        """
        raise NotImplementedError
