"""One daemon's worth of syncd in this process, without a server: it crashes at any commit, and is built anew.

What the daemon's composition root builds is built here by the same means and in the same order; time, the suppliers
and the points at which it dies are the test's.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

import psycopg

from syncd import audit, config
from syncd.adapter import Context
from syncd.errors import SyncdError, UnavailableError
from syncd.inventory.catalogue import Catalogue
from syncd.inventory.formats import load_formats
from syncd.inventory.intake import Intake
from syncd.inventory.offers import Offers
from syncd.inventory.purchase import Purchases
from syncd.inventory.sync import Sync
from syncd.metrics import Metrics
from syncd.model import IdSource
from syncd.orders.deliveries import Deliveries
from syncd.orders.replacements import Replacements, defects
from syncd.orders.reservations import Reservations
from syncd.orders.stock import Stock
from syncd.store.database import Database, Writer, highest_id
from syncd.suppliers.client import Client
from syncd.suppliers.link import Link
from syncd.vault.crypto import associated, new_kek
from syncd.vault.vault import KeyRow, Vault, load_ring
from tests.world.invariants import Books, Bounds, Key, Promise, faults
from tests.world.suppliers import KINDS, Good, Ledger, Market, WorldClock

T = TypeVar("T")
ROOT: Final = Path(__file__).resolve().parents[2]
FORMATS: Final = load_formats([ROOT / "config" / "formats.toml"])
KEK: Final = new_kek()
SHANGHAI: Final = ZoneInfo("Asia/Shanghai")
SHOP: Final = "demo"
STEP_S: Final = 20.0
"""For so long one step may take: a step that hangs is a failure, not a test that never ends."""


class Killed(BaseException):
    """What a kill looks like from inside: nothing that the code under test catches."""


@dataclass(frozen=True)
class Shape:
    """A world before it begins: who sells what, what is sold, what may be spent."""

    markets: Mapping[str, tuple[str, Mapping[str, tuple[str, int]]]]
    """Name → (kind, {sku: (price, stock)})."""
    products: Mapping[str, tuple[str, ...]]
    """Product → "supplier/sku" that can serve it."""
    max_cost: Mapping[str, str] = field(default_factory=dict)
    hour: Mapping[str, str] = field(default_factory=dict)
    """Budget per hour of a supplier, "" for all together."""
    day: Mapping[str, str] = field(default_factory=dict)
    on_shortage: Mapping[str, str] = field(default_factory=dict)
    more: str = ""
    """More configuration."""

    def bounds(self) -> Bounds:
        def amounts(these: Mapping[str, str]) -> dict[str, Decimal]:
            return {name: Decimal(text) for name, text in these.items()}

        return Bounds(amounts(self.hour), amounts(self.day), amounts(self.max_cost))

    def toml(self) -> str:
        """The configuration of this world."""
        lines = ['[daemon]\nstate_dir = "."\n[sync]\ninterval = "600s"\njitter = "0s"\nlease = "2s"\n[shops.demo]\n']
        totals = [f'budget_{name} = "{these[""]} CNY"' for name, these in self._budgets() if "" in these]
        lines.append("[purchases]\n" + "\n".join(totals) + "\n")
        for name in self.markets:
            own = [f'budget_{span} = "{these[name]} CNY"' for span, these in self._budgets() if name in these]
            lines.append(f'[suppliers.{name}]\nadapter = "world"\n' + "\n".join(own) + "\n")
        for sku, offers in self.products.items():
            pairs = [offer.split("/") for offer in offers]
            listed = ", ".join(f'{{ supplier = "{supplier}", sku = "{theirs}" }}' for supplier, theirs in pairs)
            shortage = self.on_shortage.get(sku, "buy")
            lines.append(f'[products.{sku}]\nformat = "opaque"\noffers = [{listed}]\non_shortage = "{shortage}"\n')
            if sku in self.max_cost:
                lines.append(f'max_cost = "{self.max_cost[sku]} CNY"\n')
        return "".join(lines) + self.more

    def _budgets(self) -> tuple[tuple[str, Mapping[str, str]], ...]:
        return (("hour", self.hour), ("day", self.day))


class World:
    """The markets, the shop, and the daemon between them, which comes and goes."""

    def __init__(self, shape: Shape, url: str, folder: Path) -> None:
        self.shape, self.url, self.folder = shape, url, folder
        self.clock, self.ledger = WorldClock(), Ledger()
        self.markets = {
            name: Market(
                name,
                self.clock,
                self.ledger,
                {sku: Good(Decimal(price), stock) for sku, (price, stock) in goods.items()},
            )
            for name, (_, goods) in shape.markets.items()
        }
        self.promises: dict[str, Promise] = {}
        self.loop = asyncio.new_event_loop()
        self.opened: dict[int, str] = {}
        self.deaths = 0
        self.server = self._database_time()
        file = folder / "syncd.toml"
        file.write_text(shape.toml())
        self.settings = config.load(file)
        self.house = House(self)
        self.run(self.house.open())

    def _database_time(self) -> psycopg.Connection | None:
        """On PostgreSQL, a connection on which the server's clock is set (`conftest.fresh` has replaced it)."""
        if self.url.startswith("sqlite"):
            return None
        connection = psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True)

        def told(now: float) -> None:
            connection.execute("UPDATE world.clock SET now = %s", (now,))

        told(self.clock.now())
        self.clock.told = told
        return connection

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
        self.house.crash()
        self.loop.close()

    # --- running it ---------------------------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """One step, and everything that it sets going; cut off if the daemon dies."""

        async def step() -> T:
            task = asyncio.ensure_future(work)
            gone = self.loop.create_task(self.house.gone.wait())
            try:
                async with asyncio.timeout(STEP_S):
                    await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
                    if not task.done():
                        task.cancel()
                        raise UnavailableError("the daemon died")
                    await self._settled(gone)
                    return task.result()
            finally:
                gone.cancel()

        return self.loop.run_until_complete(step())

    async def _settled(self, gone: asyncio.Task[Any]) -> None:
        """Wait for the tasks that a step has started: the next step finds a quiet house."""
        while not self.house.dead:
            await asyncio.sleep(0)  # what other threads have asked for becomes a task here
            others = asyncio.all_tasks() - {asyncio.current_task(), gone}
            if others:
                await asyncio.wait([*others, gone], return_when=asyncio.FIRST_COMPLETED)
            elif not self.house.busy():
                return

    def drain(self) -> None:
        """What is left of a daemon that died is gone."""

        async def gone() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.loop.run_until_complete(gone())

    def attempt(self, work: Coroutine[Any, Any, T]) -> T | SyncdError:
        """One step that may be refused, or die with the daemon; then the next daemon takes over."""
        try:
            return self.run(work)
        except SyncdError as error:
            return error
        finally:
            if self.house.dead:
                self.restart()

    def restart(self) -> None:
        """The daemon is gone, whatever it was at; another one starts on what it left. It may die at that, too."""
        while True:
            self.house.crash()
            self.deaths += 1
            self.house = House(self)
            with contextlib.suppress(SyncdError):
                self.run(self.house.open())
            if not self.house.dead:
                return

    # --- judging it ---------------------------------------------------------------------------------------------------

    def faults(self) -> list[str]:
        """What is wrong now."""
        found = self.attempt(self.house.stock.snapshot())
        while isinstance(found, SyncdError):  # it died of something that it did by itself
            found = self.attempt(self.house.stock.snapshot())
        books = self.books()
        books.sellable = {row["product"]: row["sellable"] for row in found[0]}
        return faults(self.ledger, self.markets, books, self.promises, self.shape.bounds())

    def check(self) -> None:
        """Fail when something is wrong now."""
        found = self.faults()
        assert not found, "\n".join(found)

    def verify(self) -> None:
        """The audit is whole."""
        with self.house.database.read() as connection:
            audit.verify(connection, self.house.ring.audit_mac)

    def books(self) -> Books:
        """Everything that the database says now, opened."""
        house = self.house
        with house.database.read() as connection:

            def rows(sql: str) -> list[dict[str, Any]]:
                return [dict(row) for row in connection.exec_driver_sql(sql).mappings()]

            keys = rows(
                "SELECT k.id, k.product, k.sealed_sku, k.state, k.expires_at, k.sealed, s.name FROM vault_key k"
                " JOIN source s ON s.id = k.source_id ORDER BY k.id"
            )
            slices = rows(
                "SELECT q.id, q.product, q.state, q.sealed, s.name, s.product AS sealed_sku FROM quarantine q"
                " JOIN source s ON s.id = q.source_id ORDER BY q.id"
            )
            allotted: dict[int, list[tuple[int, int]]] = {}
            for row in rows("SELECT delivery_id, unit, key_id FROM allotment WHERE withdrawn_at IS NULL ORDER BY unit"):
                allotted.setdefault(row["delivery_id"], []).append((row["unit"], row["key_id"]))
            reserved = rows(
                "SELECT k.key_id, r.id, r.state FROM reserved_key k JOIN reservation r ON r.id = k.reservation_id"
            )
            listed = rows("SELECT supplier, sku, price, stock_quantity, removed_at, for_sale FROM offer")
            return Books(
                now=self.clock.now(),
                purchases={row["reference"]: row for row in rows("SELECT * FROM purchase ORDER BY id")},
                vault=[self._key(row) for row in keys],
                quarantine=[self._slice(row) for row in slices],
                deliveries={(row["shop"], row["order_ref"]): row for row in rows("SELECT * FROM delivery ORDER BY id")},
                allotted=allotted,
                reserved=[(row["key_id"], row["id"], row["state"]) for row in reserved],
                reservations={(row["shop"], row["order_ref"]): row for row in rows("SELECT * FROM reservation")},
                upstream=self._upstream(listed),
            )

    def _key(self, row: dict[str, Any]) -> Key:
        if row["id"] not in self.opened:
            sealed = KeyRow(row["id"], row["sealed_sku"], row["name"], row["expires_at"], bytes(row["sealed"]))
            self.opened[row["id"]] = self.house.vault.open(sealed, row["product"]).text
        return Key(row["id"], row["product"], row["state"], row["name"], self.opened[row["id"]])

    def _slice(self, row: dict[str, Any]) -> Key:
        if row["id"] not in self.opened:
            bound = associated("quarantine", row["id"], row["sealed_sku"], row["name"])
            self.opened[row["id"]] = self.house.ring.open(bytes(row["sealed"]), bound).decode()
        return Key(row["id"], row["product"], row["state"], row["name"], self.opened[row["id"]])

    def _upstream(self, listed: list[dict[str, Any]]) -> dict[str, int]:
        """Units that suppliers listed at a price that may be paid, by product."""
        stock = {
            (row["supplier"], row["sku"]): row["stock_quantity"] or 0
            for row in listed
            if row["removed_at"] is None and row["for_sale"]
        }
        return {
            sku: sum(stock.get(tuple(offer.split("/")), 0) for offer in offers)  # type: ignore[arg-type]
            for sku, offers in self.shape.products.items()
        }


class House:
    """One daemon, from its start to its death."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.settings = world.settings
        self.database = database = Database(world.url, clock=world.clock)
        database.check_schema()
        self.ring = ring = load_ring(database, KEK, create=KEK)
        self.metrics = metrics = Metrics("0")
        metrics.know(products=self.settings.products, shops=self.settings.shops, suppliers=[*self.settings.suppliers])
        self.dead = False
        self.threads = ThreadPoolExecutor(8)
        world.loop.set_default_executor(self.threads)
        self.gone = asyncio.Event()
        self.writer = writer = Writer(database, audit.chain(ring.audit_mac), metrics=metrics, on_fatal=self._died)
        self._let_time_pass()
        writer.start()
        self.ids = ids = IdSource(world.clock.now, node=writer.node, floor=highest_id(database))
        writer.on_node = ids.move
        self.vault = vault = Vault(database, writer, ring, ids)
        products = self.settings.products
        self.links: dict[str, Link] = {}
        for name, market in world.markets.items():
            kind = KINDS[world.shape.markets[name][0]]
            self.links[name] = Link(kind(Context(name, market, SHANGHAI)), Client(name, jitter=lambda: 0.0))
        self.deliveries = Deliveries(vault, writer, ids, lambda: products, metrics)
        self.deliveries.buying = self
        limits = self.settings.reservations
        self.reservations = Reservations(
            self.deliveries, writer, ring, ids, lambda: products, lambda: limits, self._upstream
        )
        self.replacements = Replacements(
            self.deliveries,
            writer,
            lambda: self.settings.deliveries.max_replacements,
            self.links.get,
        )
        self.intake = Intake(database, writer, vault, lambda: FORMATS, lambda: products, metrics, self._arrived)
        self.offers = Offers(writer, metrics, lambda: self.settings, world.folder)
        self.catalogue = Catalogue(database, lambda: self.settings)
        self.sync = Sync(writer, ids, self.intake, self.offers, metrics, self.settings, self.links)
        self.purchases = Purchases(
            vault, self.links, lambda: self.settings, lambda: FORMATS, metrics, self._arrived, defects=defects
        )
        self.stock = Stock(writer, lambda: products, lambda: (None, 0.0), self.catalogue.upstream)

    def _died(self, _error: BaseException) -> None:
        self.dead = True
        self.world.loop.call_soon_threadsafe(self.gone.set)

    def _let_time_pass(self) -> None:
        """A daemon that died holds its leases until they run out: here at once."""
        with self.database.engine.connect() as connection:
            connection.exec_driver_sql("UPDATE supplier SET leased_until = NULL")

    async def open(self) -> None:
        """What happens before the first request."""
        await self.sync.open()
        await self.purchases.recover()
        await self.deliveries.fill_waiting()

    def _arrived(self, product: str) -> None:
        asyncio.run_coroutine_threadsafe(self.deliveries.fill(product), self.world.loop)

    def can_buy(self, product: str, quantity: int) -> bool:
        return self.purchases.can_buy(product, quantity)

    def short(self, product: str) -> None:
        self.world.loop.create_task(self.purchases.cover(product))

    def _upstream(self, product: str) -> int:
        with self.database.read() as connection:
            found = self.catalogue.upstream(connection, {product: self.settings.products[product]})
        return int(found[product].get("quantity", 0))

    def busy(self) -> bool:
        """Whether the writer has work left."""
        return any(self.writer._lanes) and not self.dead

    # --- dying --------------------------------------------------------------------------------------------------------

    def die_after(self, commits: int, *, acknowledged: bool) -> None:
        """Die at the commit after so many: before it is written, or once it is, before anybody hears of it."""
        real, left = self.writer._try, [commits]

        def once(*args: Any) -> bool:
            if not left[0] and not acknowledged:
                self.writer._rollback()
                raise Killed
            committed = real(*args)
            if committed and not left[0]:
                raise Killed
            left[0] -= committed
            return committed

        self.writer._try = once  # type: ignore[method-assign]

    def crash(self) -> None:
        """Drop everything, as a kill does: nothing is finished, nothing is put away."""
        self.dead = True
        if self.writer._dead is None:
            self.writer._die(Killed(), [])  # whoever waits for it hears that
        for link in self.links.values():
            link.halt()
        self.world.drain()
        for link in self.links.values():
            link.join(5)
        self.threads.shutdown()
        for thread in threading.enumerate():
            if thread.name.startswith("sync-"):
                thread.join(5)
        with contextlib.suppress(Exception):
            self.writer.stop()
        self.database.close()

    # --- what a shop and an operator do -------------------------------------------------------------------------------

    async def listed(self, name: str) -> None:
        """One run of a supplier, to its end."""
        await self.sync.start(name, "test")
        run = self.sync._runs.get(name)
        if run is not None and run.task is not None:
            await run.task
