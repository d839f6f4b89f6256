"""The composition root: everything the daemon is made of, in the order in which it starts, and in which it stops.

`run` is what `syncd run` calls; `check` is what `syncd check` calls. Nothing else builds these parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop
from sqlalchemy import func, select

from syncd import __version__, audit, config, logs, systemd
from syncd.adapter import capabilities
from syncd.config import Settings
from syncd.errors import ConfigError, KekError, Problem, StartError, SyncdError
from syncd.inventory import ledger
from syncd.inventory.catalogue import Catalogue
from syncd.inventory.formats import Format, is_split, load_formats
from syncd.inventory.intake import Intake
from syncd.inventory.offers import Offers
from syncd.inventory.purchase import Purchases
from syncd.inventory.quarantine import Quarantine, waiting
from syncd.inventory.restock import EVERY_S, Planned, Restock
from syncd.inventory.sync import Sync
from syncd.metrics import Levels, Metrics
from syncd.model import Clock, IdSource, Right, utc
from syncd.orders.deliveries import Deliveries, pending_deliveries
from syncd.orders.presentation import Presentation, presentations
from syncd.orders.replacements import Replacements, claims_asking, defects
from syncd.orders.reservations import Reservations
from syncd.orders.stock import Stock, units
from syncd.schedule import Schedule
from syncd.store.database import Database, Lane, Tx, Work, Writer, highest_id
from syncd.store.tables import supplier
from syncd.storefronts.access import Access
from syncd.storefronts.native import Parts, build
from syncd.storefronts.server import Server
from syncd.suppliers import registry
from syncd.suppliers.link import Links
from syncd.vault.crypto import Kek
from syncd.vault.keyring import create_kek_file, load_kek
from syncd.vault.vault import Vault, has_ring, key_counts, load_ring, restored_at

log = structlog.get_logger(__name__)

SWITCH_S: Final = 0.0001
"""How long a thread may keep the interpreter from the others: an import must not hold up a delivery."""
SHOP_RIGHTS: Final = frozenset({Right.STOCK, Right.DELIVER, Right.REVEAL})
EXPIRE_AT_ONCE: Final = 2000
_CONFIGURED: Final = "\0supplier configuration"
"""The scope of a configuration's fingerprint, beside those of issuers."""


def _answer(_tx: Tx, payloads: Sequence[None]) -> list[None]:
    return [None] * len(payloads)


PING: Final[Work[None, None]] = Work("ping", Lane.CONTROL, _answer)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration with everything that it names."""

    settings: Settings
    formats: Mapping[str, Format]
    suppliers: Mapping[str, registry.Built]
    shown: Mapping[str, Presentation]


def complete(settings: Settings) -> Loaded:
    """The formats and the adapters that a configuration names. Raises ConfigError with every problem."""
    problems: list[Problem] = []
    formats: Mapping[str, Format] = {}
    try:
        formats = load_formats(settings.daemon.formats)
    except ConfigError as error:
        problems += error.problems
    for sku, product in settings.products.items():
        if product.format == config.PROSE:
            problems.append(
                settings.problem(f"products.{sku}.format", "goods that are text say so", "write allow_prose = true")
            )
        elif formats and product.format not in formats:
            known = ", ".join(sorted(formats.keys() - {config.PROSE}))
            problems.append(settings.problem(f"products.{sku}.format", "there is no such format", f"known: {known}"))
        if product.split is not None and not is_split(product.split):
            fix = "auto, line, pair, labelled, csv, json, pair:SEP, or a template such as {number}----{pin}"
            problems.append(settings.problem(f"products.{sku}.split", "there is no such splitter", fix))
    shown, wrong = presentations(settings, formats)
    problems += wrong
    suppliers, wrong = registry.build(settings)
    problems += wrong
    for sku, product in settings.products.items():
        for offer in product.offers:
            built = suppliers.get(offer.supplier)
            verbs = capabilities(type(built.adapter)) if built else {"list_offers", "get_offer"}
            for verb, wanted in (("list_offers", True), ("get_offer", offer.refresh is not None)):
                if wanted and verb not in verbs:
                    adapter = settings.suppliers[offer.supplier].adapter
                    what = "lists none" if verb == "list_offers" else "cannot be asked for one"
                    fix = (
                        "name a supplier whose adapter has list_offers (syncd adapter show NAME)"
                        if verb == "list_offers"
                        else "take refresh out: it is read with its supplier's listing"
                    )
                    told = f"supplier {offer.supplier} has no such offer: its adapter {adapter} {what}"
                    problems.append(settings.problem(f"products.{sku}.offers", told, fix))
    if problems:
        raise ConfigError(problems)
    return Loaded(settings, formats, suppliers, shown)


def check(path: Path) -> list[Problem]:
    """Every problem of a configuration; none when the daemon would take it."""
    settings, problems = config.examine(path)
    if settings is not None:
        try:
            complete(settings)
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    return problems


def run(settings: Settings) -> int:
    """Run the daemon until it is told to stop; returns the exit code. Raises SyncdError when it cannot start."""
    loaded = complete(settings)
    systemd.not_dumpable()
    logs.configure(loaded.settings.daemon.log_level)
    sys.setswitchinterval(SWITCH_S)
    systemd.few_arenas()
    return uvloop.run(Daemon(loaded).live())


class Daemon:
    """One daemon, from its start to its stop."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.clock = Clock()
        self.started_at = self.clock.now()
        self.metrics = Metrics(__version__, engine=loaded.settings.store.url.partition(":")[0].partition("+")[0])
        self.stop = asyncio.Event()
        self.exit_code = 0
        self._reloading = asyncio.Lock()

    async def live(self) -> int:  # noqa: PLR0915 - one page, read from top to bottom
        """Start in this order, serve, stop in the opposite one."""
        async with contextlib.AsyncExitStack() as stack:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.stop.set)
            _state_dir(self.loaded.settings.daemon.state_dir)
            database = self._database()
            stack.callback(database.close)
            kek = self._kek(database)
            ring = load_ring(database, kek, create=kek)
            writer = Writer(
                database,
                audit.chain(ring.audit_mac),
                metrics=self.metrics,
                on_fatal=lambda _error: self._failed(loop),
            )
            writer.start()
            stack.callback(writer.stop)

            ids = IdSource(self.clock.now, node=writer.node, floor=highest_id(database))
            writer.on_node = ids.move
            vault = Vault(database, writer, ring, ids)
            deliveries = Deliveries(
                vault,
                writer,
                ids,
                self._products,
                self.metrics,
                shown=lambda: self.loaded.shown,
                fenced=restored_at(database) is not None,
            )
            deliveries.wait = lambda: self.loaded.settings.deliveries.wait

            def arrived(product: str) -> None:
                """Keys came in, on whatever thread: deliveries that wait for them get theirs."""
                asyncio.run_coroutine_threadsafe(deliveries.fill(product), loop)

            async def ping() -> None:
                """Answered once the writer has committed."""
                await writer.submit(PING, None)

            intake = Intake(database, writer, vault, self._formats, self._products, self.metrics, arrived)
            self._know()
            links = Links(database, writer, self.metrics, lambda digest: ring.fingerprint(_CONFIGURED, digest).hex())
            stack.callback(links.close)
            links.take_over(self.loaded.suppliers)
            offers = Offers(writer, self.metrics, self._settings, self.loaded.settings.daemon.state_dir)
            catalogue = Catalogue(database, self._settings)

            def upstream(sku: str) -> int:
                """How many units of a product suppliers list."""
                with database.read() as connection:
                    return units(catalogue.upstream(connection, {sku: self._products()[sku]})[sku])

            reservations = Reservations(
                deliveries,
                writer,
                ring,
                ids,
                self._products,
                lambda: self.loaded.settings.reservations,
                upstream,
            )
            replacements = Replacements(
                deliveries, writer, lambda: self.loaded.settings.deliveries.max_replacements, links.get
            )
            sync = Sync(writer, ids, intake, offers, self.metrics, self.loaded.settings, links)
            purchases = Purchases(vault, links, self._settings, self._formats, self.metrics, arrived, defects=defects)
            await purchases.recover()
            deliveries.buying = _Buying(purchases)
            restock = deliveries.restocking = Restock(writer, self._settings, purchases, links)
            sync.listed = restock.listed
            access = Access(database, writer, ring, ids, lambda: self.loaded.settings.shops)
            await access.refresh()
            tokens = [] if await asyncio.to_thread(access.list) else await self._first_tokens(access)
            status = functools.partial(self._status, database, writer, sync, deliveries)
            self.metrics.levels = functools.partial(
                _levels, database, writer, self.clock, catalogue, lambda: restock.plans
            )
            parts = Parts(
                settings=self._settings,
                deliveries=deliveries,
                reservations=reservations,
                replacements=replacements,
                stock=Stock(writer, self._products, functools.partial(self._synced, database), catalogue.upstream),
                catalogue=catalogue,
                quarantine=Quarantine(writer, vault, self._settings, self._formats, arrived, links.get),
                purchases=purchases,
                restock=restock,
                sync=sync,
                intake=intake,
                access=access,
                writer=writer,
                metrics=self.metrics,
                kek=kek,
                ring=ring,
                status=status,
                ping=ping,
            )
            await sync.open()
            await restock.plan()
            server = Server(build(parts), self.loaded.settings.daemon)
            await server.start()
            stack.push_async_callback(sync.stop)
            stack.push_async_callback(purchases.stop)
            stack.push_async_callback(restock.stop)
            stack.push_async_callback(server.stop)
            stack.callback(deliveries.stop_waiting)
            schedule = Schedule()
            schedule.every(1, sync.tick)
            schedule.every(1, sync.refresh)
            schedule.every(1, purchases.tick)
            schedule.every(1, reservations.sweep)
            schedule.every(5, deliveries.fill_waiting)
            schedule.every(5, replacements.claim_due)
            schedule.every(60, lambda: _expire(writer, vault))
            schedule.every(EVERY_S, restock.tick)
            if database.postgresql:
                schedule.every(5, access.refresh)
                schedule.every(5, deliveries.look_at_fence)
                schedule.every(5, functools.partial(asyncio.to_thread, links.refresh))
            schedule.start()
            stack.callback(schedule.stop)

            loop.add_signal_handler(signal.SIGHUP, lambda: asyncio.ensure_future(self._reload(sync, links, restock)))
            stack.callback(loop.remove_signal_handler, signal.SIGHUP)
            watchdog = asyncio.create_task(self._watch(ping))
            stack.callback(watchdog.cancel)
            await deliveries.fill_waiting()
            # What a start leaves behind stays: looking through it again holds all threads for a tenth of a second.
            gc.collect()
            gc.freeze()
            self._announce(server.port, tokens, fenced=deliveries.fenced)
            systemd.ready(f"serving on {self.loaded.settings.daemon.listen[0]}:{server.port}")
            await self.stop.wait()
            log.info("stopping")
            systemd.stopping()
        return self.exit_code

    # --- starting ---------------------------------------------------------------------------------------------------

    def _database(self) -> Database:
        store = self.loaded.settings.store
        password = None
        if store.password is not None:
            password = store.password.secret()
        database = Database(store.url, password=password, clock=self.clock)
        try:
            before = os.umask(0o077)  # the database and what SQLite puts beside it are for the owner alone
            try:
                database.lock()
                database.check_schema()
            finally:
                os.umask(before)
        except SyncdError:
            database.close()
            raise
        except Exception as error:
            database.close()
            raise StartError(
                f"the database cannot be opened ({type(error).__name__})", hint="check [store] url, and that it runs"
            ) from error
        return database

    def _kek(self, database: Database) -> Kek:
        """The key-encryption key. It is made only when the database has no key ring yet, and only as a file (K11)."""
        ref = self.loaded.settings.vault.kek
        data = ref.read()
        if data is None and not has_ring(database):
            if ref.file is None:
                raise KekError(f"{ref.where} is not there", hint="put a KEK there: 32 random bytes as base64")
            return create_kek_file(ref.file)
        return load_kek(data, ref.where)

    async def _first_tokens(self, access: Access) -> list[Path]:
        """A token for the operator, and for the shop if there is just one, in files that only the owner reads."""
        settings = self.loaded.settings
        files: list[Path] = []
        wanted = [("operator", frozenset(Right), "operator.token")]
        if len(settings.shops) == 1:
            wanted.append((next(iter(settings.shops)), SHOP_RIGHTS, "shop.token"))
        for principal, rights, name in wanted:
            _, token = await access.create(principal, rights, "first start", by="first start")
            path = settings.daemon.state_dir / name
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                file.write(token.reveal() + "\n")
            files.append(path)
        return files

    def _announce(self, port: int, tokens: list[Path], *, fenced: bool) -> None:
        """What was done, for the person who started it: on a terminal or in a pipe, never in the log."""
        settings = self.loaded.settings
        host = settings.daemon.listen[0]
        state = _shown(settings.daemon.state_dir)
        lines = [f"syncd {__version__} serves on http://{host}:{port}"]
        if tokens:
            lines += [
                f"First start: made the database, a key-encryption key and {len(tokens)} tokens in {state}/, all 0600.",
                "Keep a copy of the key apart from database backups: syncd vault kek export",
            ]
        if fenced:
            lines.append("RESTORED FROM A BACKUP: nothing is delivered until you run: syncd recover")
        product = next(iter(settings.products), "SKU")
        program = "python -m syncd" if sys.argv[0].endswith("__main__.py") else _shown(Path(sys.argv[0]))
        if (settings.daemon.state_dir / "shop.token").exists():
            bearer = f'-H "Authorization: Bearer $(cat {state}/shop.token)"'
            body = f'{{"order_ref": "order-1", "product": "{product}", "quantity": 1}}'
            lines += [
                "Try, in another terminal:",
                f"  curl -s {bearer} http://{host}:{port}/v1/stock",
                f"  curl -s {bearer} -H 'Content-Type: application/json' -d '{body}' http://{host}:{port}/v1/deliveries",
                f"  {program} status --config {_shown(settings.file)}",
            ]
        print("\n".join(lines), flush=True)  # noqa: T201 - this is for people

    # --- living -----------------------------------------------------------------------------------------------------

    def _failed(self, loop: asyncio.AbstractEventLoop) -> None:
        """The writer cannot go on: stop, for the service manager to start anew. Called on the writer's thread."""
        self.exit_code = 1
        loop.call_soon_threadsafe(self.stop.set)

    async def _watch(self, ping: Callable[[], Awaitable[None]]) -> None:
        """Tell systemd that the daemon lives, as long as the writer answers."""
        interval = systemd.watchdog_interval()
        if interval is None:
            return
        while True:
            with contextlib.suppress(SyncdError):
                await ping()
                systemd.watchdog()
            await asyncio.sleep(interval / 2)

    async def _reload(self, sync: Sync, links: Links, restock: Restock) -> None:
        """Take over a changed configuration without dropping a request, or keep the old one.

        One at a time: of two that overlapped, the older configuration could be the last to be taken over.
        """
        async with self._reloading:
            await self._reload_now(sync, links, restock)

    async def _reload_now(self, sync: Sync, links: Links, restock: Restock) -> None:
        systemd.reloading()
        self.metrics.config_reloads.inc()
        try:
            new = await asyncio.to_thread(lambda: complete(config.load(self.loaded.settings.file)))
        except SyncdError as error:
            self.metrics.config_reload_failures.inc()
            log.error("reload_refused", problems=str(error).splitlines())  # noqa: TRY400 - its message says all
        else:
            try:
                await self._take_over(new, sync, links, restock)
            except Exception:
                self.metrics.config_reload_failures.inc()
                log.exception("reload_failed", fix="the database did not answer: reload again")
        systemd.ready()

    async def _take_over(self, new: Loaded, sync: Sync, links: Links, restock: Restock) -> None:
        old, self.loaded = self.loaded, new
        self._know()
        try:
            await asyncio.to_thread(links.take_over, new.suppliers)
        except Exception:
            self.loaded = old  # it needs the database, and changes all or nothing
            self._know()
            raise
        for path in config.diff(old.settings, new.settings):
            log.warning("restart_needed", setting=path)
        logs.configure(new.settings.daemon.log_level)
        await sync.reload(new.settings, links)
        log.info("reloaded", products=len(new.settings.products), suppliers=len(new.settings.suppliers))
        # Last: a plan that fails leaves nothing half taken over. A new product is bought when its suppliers are listed.
        await restock.plan()

    def _know(self) -> None:
        settings = self.loaded.settings
        self.metrics.know(products=settings.products, shops=settings.shops, suppliers=[*settings.suppliers, "import"])
        self.metrics.config_last_success.set(self.clock.now())

    def _settings(self) -> Settings:
        return self.loaded.settings

    def _products(self) -> Mapping[str, config.Product]:
        return self.loaded.settings.products

    def _formats(self) -> Mapping[str, Format]:
        return self.loaded.formats

    # --- what operators and Prometheus see (these block: they run in threads) ---------------------------------------

    def _synced(self, database: Database) -> tuple[int | None, float]:
        """(when keys were last pulled, Unix seconds; after how long that is stale: two intervals)."""
        settings = self.loaded.settings
        intervals = [settings.interval(name)[0] for name in settings.suppliers]
        with database.read() as connection:
            last = connection.execute(
                select(func.min(supplier.c.last_success_at)).where(supplier.c.name.in_(self.loaded.suppliers))
            ).scalar()
        return last, 2 * max(intervals, default=settings.sync.interval)

    def _status(self, database: Database, writer: Writer, sync: Sync, deliveries: Deliveries) -> dict[str, Any]:
        levels = _levels(database, writer, self.clock, Catalogue(database, self._settings))
        vault: dict[str, dict[str, int]] = {}
        for (product, state), number in levels.vault_keys.items():
            vault.setdefault(product, {})[state] = number
        held: dict[str, dict[str, int]] = {}
        for (product, reason), number in levels.quarantine_held.items():
            held.setdefault(product, {})[reason] = number
        return {
            "version": __version__,
            "started_at": utc(self.started_at),
            "engine": database.url.get_backend_name(),
            "fenced": deliveries.fenced,
            "suppliers": sync.suppliers(),
            "vault": vault,
            "quarantine": held,
            "oldest_quarantine_s": int(levels.oldest_quarantine_seconds),
            "pending": dict(levels.deliveries_pending),
            "oldest_pending_s": int(levels.oldest_pending_seconds),
            "purchases": _by_state(levels),
            "oldest_unknown_purchase_s": int(levels.oldest_unknown_seconds),
            "wal_bytes": levels.wal_bytes,
        }


class _Buying:
    """What orders lack is bought (`syncd.orders.deliveries.Buying`)."""

    def __init__(self, purchases: Purchases) -> None:
        self.can_buy = purchases.can_buy
        self._cover = purchases.cover
        self._under_way: set[asyncio.Task[None]] = set()

    def short(self, product: str) -> None:
        """An order waits for what is to be bought."""
        task = asyncio.create_task(self._cover(product))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)


def _by_state(levels: Levels) -> dict[str, int]:
    """Open purchases by their state."""
    found: dict[str, int] = {}
    for (_, state), number in levels.purchases_open.items():
        found[state] = found.get(state, 0) + number
    return found


async def _expire(writer: Writer, vault: Vault) -> None:
    """Set expired keys aside, a few at a time so that deliveries never wait for it."""
    while await writer.submit(vault.expire, EXPIRE_AT_ONCE) == EXPIRE_AT_ONCE:  # noqa: ASYNC110 - makes room
        await asyncio.sleep(0.01)


def _levels(
    database: Database,
    writer: Writer,
    clock: Clock,
    catalogue: Catalogue,
    plans: Callable[[], Mapping[str, Planned]] = dict,
) -> Levels:
    """How much there is, from the database."""
    with database.read() as connection:
        held, oldest = waiting(connection)
        purchases, oldest_unknown, disputed = ledger.levels(ledger.asking(database, connection))
        pending, waiting_since = pending_deliveries(connection)
        asking = claims_asking(connection)
    wal = Path(f"{database.path}-wal")
    listings = catalogue.known()
    balances = {
        (name, currency): float(amount)
        for name, known in listings.items()
        for amount, _, currency in [(known.balance or "").partition(" ")]
        if currency
    }
    return Levels(
        vault_keys=key_counts(database),
        quarantine_held=held,
        oldest_quarantine_seconds=0.0 if oldest is None else max(0.0, clock.now() - oldest),
        deliveries_pending=pending,
        oldest_pending_seconds=0.0 if waiting_since is None else max(0.0, clock.now() - waiting_since),
        claims_asking=asking,
        purchases_open=purchases,
        oldest_unknown_seconds=0.0 if oldest_unknown is None else max(0.0, clock.now() - oldest_unknown),
        disputed=disputed / 1_000_000,
        queue_units={lane.name.lower(): writer.queued(lane) for lane in Lane},
        wal_bytes=wal.stat().st_size if not database.postgresql and wal.exists() else 0,
        offers={name: known.offers for name, known in listings.items()},
        offers_stale={
            name: known.offers if catalogue.stale(name, known) else known.held for name, known in listings.items()
        },
        offers_held={name: known.held for name, known in listings.items()},
        listing_held={name: int(known.pending is not None) for name, known in listings.items()},
        listed_at={name: known.full_at for name, known in listings.items() if known.full_at is not None},
        balances=balances,
        replenish_target={sku: one.plan.target for sku, one in plans().items()},
        replenish_level={sku: one.at.held + one.at.on_order - one.at.owed for sku, one in plans().items()},
        replenish_demand={sku: one.plan.per_day for sku, one in plans().items()},
    )


def _state_dir(path: Path) -> None:
    """The folder of everything that syncd writes, for its owner alone."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"{path} cannot be made: {error.strerror}", hint="correct [daemon] state_dir") from None
    if path.stat().st_mode & 0o077:
        log.warning("state_dir_is_open", path=str(path), fix=f"chmod 700 {path}")


def _shown(path: Path) -> str:
    """A path as short as it can be written from here."""
    with contextlib.suppress(ValueError):
        return str(path.absolute().relative_to(Path.cwd()))
    return str(path)
