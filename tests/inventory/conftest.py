"""A daemon's worth of intake on a fresh database of each engine, the real feed beside it, and ways to kill it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import os
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo

import pytest
import structlog

from syncd import audit, config
from syncd.adapter import Adapter, Consignment, Context, Pull, Seal, Settings
from syncd.inventory import intake as intake_module
from syncd.inventory.formats import load_formats
from syncd.inventory.intake import TAKEN_FILE, Ask, Intake, TakeReport
from syncd.inventory.offers import Offers
from syncd.inventory.quarantine import Quarantine
from syncd.inventory.sync import Sync
from syncd.metrics import Metrics
from syncd.model import IdSource
from syncd.store.database import Database, Writer, highest_id
from syncd.suppliers import registry
from syncd.suppliers.client import Client
from syncd.suppliers.link import Link
from syncd.vault.crypto import new_kek
from syncd.vault.keyring import Keyring
from syncd.vault.vault import KeyRow, Vault, load_ring

ROOT = Path(__file__).resolve().parents[2]
FORMATS = load_formats([ROOT / "config" / "formats.toml"])
SHANGHAI = ZoneInfo("Asia/Shanghai")
KEK = new_kek()

CONFIGURATION = """
[sync]
interval = "600s"
jitter = "0s"
lease = "60s"
settle = "0s"
[suppliers.alpha]
adapter = "feed"
folder = "feeds/alpha"
[suppliers.beta]
adapter = "feed"
folder = "feeds/beta"
[products.opaque-1]
format = "opaque"
[products.steam-1]
format = "steam"
[products.cards-1]
format = "auto"
"""


class Killed(BaseException):
    """What a kill looks like from inside: nothing that the code under test catches."""


class Payload(Consignment):
    """A payload in memory that counts how often it was put away."""

    def __init__(self, product: str, content: bytes | str, label: str = "keys.txt", media: Any = None) -> None:
        self.content = content.encode() if isinstance(content, str) else content
        self.product, self.label, self.size = product, label, len(self.content)
        self.media = media or ("csv" if label.endswith(".csv") else "xlsx" if label.endswith(".xlsx") else "text")
        self.finished: list[str] = []

    def open(self) -> BinaryIO:
        return io.BytesIO(self.content)

    def finish(self, report: str, seal: Seal) -> None:
        self.finished.append(report)


class Scripted(Adapter):
    """An adapter that does what the test tells it."""

    def __init__(self, pull: Callable[[Pull], Iterator[Consignment]]) -> None:
        super().__init__(Context("scripted", Settings(), SHANGHAI))
        self.pull = pull

    def pull_keys(self, pull: Pull) -> Iterator[Consignment]:
        return self.pull(pull)


@dataclasses.dataclass
class House:
    """One daemon's worth of intake, quarantine and sync."""

    database: Database
    writer: Writer
    ring: Keyring
    ids: IdSource
    vault: Vault
    intake: Intake
    quarantine: Quarantine
    offers: Offers
    settings: config.Settings
    metrics: Metrics
    arrived: list[str]
    chunks: list[int] = dataclasses.field(default_factory=list)

    def stop(self) -> None:
        self.writer.stop()
        self.database.close()

    def take(self, consignment: Consignment, supplier: str = "alpha", **ask: Any) -> TakeReport:
        return self.intake.take(consignment, Ask(supplier, SHANGHAI, **ask))

    def sync(self, **adapters: Callable[[Pull], Iterator[Consignment]]) -> Sync:
        """A Sync over scripted adapters."""
        return self.sync_of({name: Scripted(pull) for name, pull in adapters.items()})

    def sync_of(self, adapters: Mapping[str, Adapter]) -> Sync:
        links = {name: Link(adapter, Client(name)) for name, adapter in adapters.items()}
        return Sync(self.writer, self.ids, self.intake, self.offers, self.metrics, self.settings, links)

    def kill_after(self, commits: int, *, acknowledged: bool) -> None:
        """Let the writer die once it has committed so often: before the last commit is acknowledged, or after."""
        real, left = self.writer._try, [commits]

        def once(*args: Any) -> bool:
            if not left[0]:
                raise Killed
            committed = real(*args)
            left[0] -= committed
            if committed and not left[0] and not acknowledged:
                raise Killed
            return committed

        self.writer._try = once

    def rows(self, sql: str) -> list[Any]:
        with self.database.read() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(sql)]

    def tamper(self, *statements: str) -> None:
        """What the test does behind the program's back."""
        with self.database.engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def keys(self, product: str = "opaque-1") -> list[str]:
        """Every key of a product in the clear, in the order of its payloads."""
        found = self.rows(
            "SELECT k.id, k.sealed_sku, s.name, k.expires_at, k.sealed FROM vault_key k JOIN source s"
            f" ON s.id = k.source_id WHERE k.product = '{product}' ORDER BY k.source_id, k.position, k.id"
        )
        return [self.vault.open(KeyRow(*row[:4], bytes(row[4])), product).text for row in found]

    def held(self) -> list[tuple[int, str, int | None]]:
        """(line, reason, the first source's id) of everything in quarantine."""
        return self.rows("SELECT position, reason, first_source_id FROM quarantine ORDER BY source_id, position, id")

    def source(self, label: str) -> dict[str, Any]:
        """The newest source row of a label."""
        names = "state, size, position, consumed, cards, sealed, repeats, duplicates, quarantined, supersedes"
        (row,) = self.rows(f"SELECT {names} FROM source WHERE label = '{label}' ORDER BY id DESC LIMIT 1")
        return dict(zip(names.split(", "), row, strict=True))

    def unsealed(self, path: Path) -> bytes:
        with path.open("rb") as reader:
            return b"".join(self.ring.open_file(reader, TAKEN_FILE))

    def verified(self) -> int:
        with self.database.read() as connection:
            return audit.verify(connection, self.ring.audit_mac).entries

    def everything(self) -> str:
        """All that every table holds, bytes spelled in hex and as text."""
        tables = (
            "meta keyring token supplier run source vault_key fingerprint quarantine delivery allotment audit"
            " audit_head offer offer_history listing"
        )
        found: list[str] = []
        for table in tables.split():
            for row in self.rows(f"SELECT * FROM {table}"):
                for value in row:
                    plain = bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
                    found += [plain.hex(), plain.decode("utf-8", "replace")]
        return "\n".join(found)


def build(url: str, folder: Path, configuration: str = CONFIGURATION) -> House:
    file = folder / "syncd.toml"
    file.write_text(configuration)
    settings = config.load(file)
    database = Database(url)
    database.check_schema()
    ring = load_ring(database, KEK, create=KEK)
    metrics = Metrics("0")
    metrics.know(products=settings.products, shops={}, suppliers=[*settings.suppliers, "import"])
    writer = Writer(database, audit.chain(ring.audit_mac), metrics=metrics)
    writer.start()
    ids = IdSource(node=writer.node, floor=highest_id(database))
    vault = Vault(database, writer, ring, ids)
    arrived: list[str] = []
    intake = Intake(database, writer, vault, lambda: FORMATS, lambda: settings.products, metrics, arrived.append)
    quarantine = Quarantine(writer, vault, lambda: settings, lambda: FORMATS, arrived.append)
    offers = Offers(writer, metrics, lambda: settings, folder)
    house = House(database, writer, ring, ids, vault, intake, quarantine, offers, settings, metrics, arrived)
    seal = vault.seal

    def counted(origin: Any, slices: Any) -> Any:
        cards = list(slices)
        house.chunks.append(len(cards))
        return seal(origin, cards)

    vault.seal = counted
    return house


@pytest.fixture(autouse=True)
def unrendered_log(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tracebacks of planted kills are not drawn (a quarter of a second each), but where a test reads what is shown."""
    if "capsys" in request.fixturenames:
        yield
        return
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def make_house(database_url: str, tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Build one more daemon on the same database."""
    built: list[House] = []

    def make(configuration: str = CONFIGURATION) -> House:
        built.append(build(database_url, tmp_path, configuration))
        return built[-1]

    yield make
    for house in built:
        with contextlib.suppress(Exception):
            house.stop()


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Five cards a chunk, so that a short payload has many commits."""
    monkeypatch.setattr(intake_module, "_MIN_CHUNK", 5)
    monkeypatch.setattr(intake_module, "_MAX_CHUNK", 5)
    return 5


@pytest.fixture
def feed(house: House, tmp_path: Path) -> Any:
    """Supplier alpha's feed, as the registry builds it."""
    adapters, problems = registry.build(house.settings)
    assert problems == []
    adapters["alpha"].adapter.folder.mkdir(parents=True)
    return adapters["alpha"].adapter


@dataclasses.dataclass
class Told:
    """What an adapter told its run."""

    complaints: list[str] = dataclasses.field(default_factory=list)
    later: list[float] = dataclasses.field(default_factory=list)

    def pull(self, **changed: Any) -> Pull:
        asked = Pull(
            frozenset({"opaque-1", "steam-1", "cards-1"}),
            by_hand=True,
            settle=0.0,
            stopping=lambda: False,
            complain=self.complaints.append,
            later=self.later.append,
        )
        return dataclasses.replace(asked, **changed)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def drop(feed: Any) -> Callable[..., Path]:
    """Put a file into the feed's folder."""

    def put(name: str, content: bytes | str, product: str = "opaque-1") -> Path:
        path: Path = feed.folder / product / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return put


@pytest.fixture
def payload() -> type[Payload]:
    return Payload


def spellings(canary: str) -> list[str]:
    """A canary as it could hide: in clear, in hex, in base64, escaped."""
    data = canary.encode()
    return [
        canary,
        data.hex(),
        base64.b64encode(data).decode().rstrip("=")[:-1],
        urllib.parse.quote(canary, safe=""),
        json.dumps(canary)[1:-1],
    ]


@pytest.fixture
def assert_unseen() -> Callable[[str, str], None]:
    """Fail when a key's text stands in a text, however it is spelled."""

    def check(canary: str, text: str) -> None:
        found = [spelling for spelling in spellings(canary) if spelling in text]
        assert not found, f"{len(found)} spellings of the canary were found"

    return check


@pytest.fixture
def kill() -> type[Killed]:
    return Killed


@pytest.fixture
def killed_at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, int], Callable[[], int]]:
    """Kill the feed's ``finish`` at its N-th call to the file system; the answer tells how many calls there were."""

    def arm(consignment_type: Any, at: int) -> Callable[[], int]:
        calls, active = [0], [False]

        def stepping(real: Any) -> Any:
            def step(*args: Any, **kwargs: Any) -> Any:
                if active[0]:
                    calls[0] += 1
                    if calls[0] == at:
                        active[0] = False
                        raise Killed
                return real(*args, **kwargs)

            return step

        for owner, name in ((Path, "mkdir"), (Path, "replace"), (Path, "unlink"), (os, "fsync"), (os, "open")):
            monkeypatch.setattr(owner, name, stepping(getattr(owner, name)))
        finish = consignment_type.finish

        def finishing(self: Any, report: str, seal: Seal) -> None:
            active[0] = True
            try:
                finish(self, report, seal)
            finally:
                active[0] = False

        monkeypatch.setattr(consignment_type, "finish", finishing)
        return lambda: calls[0]

    return arm
