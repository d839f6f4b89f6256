"""What syncd counts, as Prometheus reads it. The daemon makes one `Metrics`; whoever does the work counts in it.

Counters come in pairs, a total and its failures; ages and times of last success stand beside them. A label takes its
values from the configuration or from words in the code, never from a request: what the configuration does not know is
counted as ``unknown``. Amounts that the database knows better (keys, backlog) are read at the scrape, through `levels`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from syncd.model import PurchaseState

# A second time series beside every counter, which nobody reads. (prometheus_client leaves this function untyped.)
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
UNKNOWN: Final = "unknown"

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_RUN_SECONDS: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
_CALL_SECONDS: Final = (0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0)
_STOPS: Final = ("auth", "config")
_UNITS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_WORD: Final = re.compile(r"[a-z][a-z0-9_]{0,47}")


@dataclass(frozen=True, slots=True)
class Levels:
    """How much there is, at the moment of a scrape."""

    vault_keys: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(product, state) → keys."""
    quarantine_held: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(product, reason) → slices that wait for an operator."""
    oldest_quarantine_seconds: float = 0.0
    """Age of the oldest of them; 0 when none waits."""
    deliveries_pending: Mapping[str, int] = field(default_factory=dict)
    """Product → paid order lines that wait for keys."""
    oldest_pending_seconds: float = 0.0
    """Age of the oldest of them; 0 when none waits."""
    claims_asking: Mapping[str, int] = field(default_factory=dict)
    """Supplier → claims on bad keys whose answer is due, or was lost."""
    purchases_open: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(supplier, state) → purchases that are not closed; of them, ``unknown`` and ``disputed`` may need a person."""
    oldest_unknown_seconds: float = 0.0
    """For how long the oldest purchase of unknown outcome has been so; 0 when none is."""
    disputed: float = 0.0
    """Money of open disputes, in the base currency."""
    replenish_target: Mapping[str, int] = field(default_factory=dict)
    """Product that is cached → units to hold, as planned last."""
    replenish_level: Mapping[str, int] = field(default_factory=dict)
    """Product that is cached → units held and on order, less what orders wait for, at that time."""
    replenish_demand: Mapping[str, float] = field(default_factory=dict)
    """Product that is cached → units a day at the rate of that time."""
    queue_units: Mapping[str, int] = field(default_factory=dict)
    """Lane of the writer → units that wait in it."""
    wal_bytes: int = 0
    """Size of SQLite's write-ahead log; 0 on PostgreSQL."""
    offers: Mapping[str, int] = field(default_factory=dict)
    """Supplier → offers that it lists."""
    offers_stale: Mapping[str, int] = field(default_factory=dict)
    """Of them, those that were read too long ago."""
    offers_held: Mapping[str, int] = field(default_factory=dict)
    """Of them, those whose price waits to be confirmed."""
    listing_held: Mapping[str, int] = field(default_factory=dict)
    """Supplier → 1 while a whole listing waits to be confirmed."""
    listed_at: Mapping[str, float] = field(default_factory=dict)
    """Supplier → Unix time of its last complete listing."""
    balances: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(supplier, currency) → what our account holds."""


class Metrics:
    """Every metric of one daemon, in a registry of its own. Counting is thread-safe and never fails for a label.

    Those without labels of the outside are attributes, to be counted in directly; the others are behind methods, which
    keep their labels bounded. Call `know` with the configuration's names first.
    """

    def __init__(self, version: str, *, engine: str = "sqlite") -> None:  # noqa: PLR0915 - a line a metric
        """``version`` and ``engine`` (of the database) become the labels of ``syncd_build_info``."""
        self.levels: Callable[[], Levels] | None = None
        """Set by the daemon: read at every scrape. One that fails costs its gauges, never the scrape."""
        self._registry = registry = CollectorRegistry()
        self._products: Collection[str] = frozenset()
        self._shops: Collection[str] = frozenset()
        self._suppliers: Collection[str] = frozenset()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"syncd_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"syncd_{name}", text, labels, registry=registry)

        # Finding a child by its labels costs more than counting in it; names that `know` replaces clear these.
        self._delivered = lru_cache(4096)(self._find_delivered)
        self._requested = lru_cache(1024)(self._find_requested)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"syncd_{name}", text, labels, buckets=buckets, registry=registry)

        gauge("build_info", "Always 1; what is running.", "version", "engine").labels(version, engine).set(1)

        self._deliveries = counter("deliveries_total", "Order lines newly delivered.", "shop", "product")
        self._repeats = counter("delivery_repeats_total", "Requests answered with an earlier delivery.", "shop")
        self._failures = counter("delivery_failures_total", "Delivery requests refused or failed.", "shop", "code")
        self._delivered_keys = counter("delivery_keys_total", "Keys newly delivered.", "product")
        self.delivery_seconds = histogram("delivery_seconds", "From a delivery request's arrival to its answer.")
        self.key_unreadable = counter("key_unreadable_total", "Sealed keys that did not open and were set aside.")

        self._runs = counter("sync_runs_total", "Sync runs ended, failed ones included.", "supplier")
        self._run_failures = counter("sync_failures_total", "Sync runs that failed.", "supplier")
        self._last_success = gauge(
            "sync_last_success_timestamp_seconds", "Unix time at which a sync run last succeeded.", "supplier"
        )
        self._run_seconds = histogram(
            "sync_duration_seconds", "Length of a sync run.", "supplier", buckets=_RUN_SECONDS
        )
        self._running = gauge("sync_running", "Whether a sync run is under way here: 1 or 0.", "supplier")

        self._calls = counter(
            "supplier_calls_total", "Verbs asked of suppliers, failed ones included.", "supplier", "verb"
        )
        self._call_failures = counter(
            "supplier_failures_total", "Verbs that failed, by what happens next.", "supplier", "verb", "kind"
        )
        self._call_seconds = histogram(
            "supplier_call_seconds", "From asking a verb to its end.", "supplier", "verb", buckets=_CALL_SECONDS
        )
        self._retries = counter("supplier_retries_total", "Requests that were sent again.", "supplier")
        self._breaker = gauge(
            "supplier_breaker_state", "Circuit breaker: 0 closed, 1 a probe is under way, 2 open.", "supplier"
        )
        self._up = gauge("supplier_up", "Whether it is asked, and answers: 1 or 0.", "supplier")
        self._stopped = gauge(
            "supplier_stopped", "Whether it is not asked until its configuration changes: 1 or 0.", "supplier", "reason"
        )

        self._sealed = counter("keys_sealed_total", "New keys sealed into the vault.", "supplier", "product")
        self._repeated = counter("keys_repeated_total", "Keys that the same source had brought before.", "supplier")
        self._quarantined = counter("keys_quarantined_total", "Slices set aside for an operator.", "supplier", "reason")

        self._purchases = counter("purchases_total", "States that purchases came to.", "supplier", "state")
        self._forbidden = counter("purchases_forbidden_total", "Orders that a guard kept back.", "supplier", "guard")
        self._spent = counter("purchase_spend_total", "What was paid, in the base currency.", "supplier")
        self._offer_changes = counter("offer_changes_total", "Offers written anew, or removed.", "supplier")
        self._alarms = counter("listing_alarms_total", "Changes of listings that were held.", "supplier", "kind")

        self.writer_batches = counter("writer_batches_total", "Transactions committed by the writer.")
        self.writer_failures = counter("writer_failures_total", "Batches that were rolled back.")
        self.writer_units = counter("writer_units_total", "Units of work committed.", "kind")
        self.writer_batch_units = histogram("writer_batch_units", "Units of work in a transaction.", buckets=_UNITS)
        self.writer_commit_seconds = histogram("writer_commit_seconds", "From a batch's first statement to its commit.")
        self.audit_entries = counter("audit_entries_total", "Entries appended to the audit chain.")

        self._requests = counter("http_requests_total", "Requests answered.", "route", "method", "status")
        self._errors = counter("http_errors_total", "Requests answered with a problem.", "route", "code")

        self.config_reloads = counter("config_reloads_total", "Reloads of the configuration, refused ones included.")
        self.config_reload_failures = counter("config_reload_failures_total", "Reloads that were refused.")
        self.config_last_success = gauge(
            "config_last_success_timestamp_seconds", "Unix time at which the configuration was last taken over."
        )
        self.scrape_failures = counter("scrape_failures_total", "Scrapes that could not read the database's levels.")
        registry.register(_AtScrape(self))
        ProcessCollector(registry=registry)

    def know(self, *, products: Collection[str], shops: Collection[str], suppliers: Collection[str]) -> None:
        """The names that may become labels: all others are counted as ``unknown``. Called at start and on a reload.

        Pairs begin at 0, so that a rate sees the first failure.
        """
        self._products, self._shops, self._suppliers = frozenset(products), frozenset(shops), frozenset(suppliers)
        self._delivered.cache_clear()
        for shop in self._shops:
            self._repeats.labels(shop)
            for product in self._products:
                self._deliveries.labels(shop, product)
        for supplier in self._suppliers:
            for metric in (
                self._runs,
                self._run_failures,
                self._run_seconds,
                self._running,
                self._repeated,
                self._offer_changes,
                self._spent,
            ):
                metric.labels(supplier)
            for kind in ("drop", "price", "currency", "offer"):
                self._alarms.labels(supplier, kind)
            self._retries.labels(supplier)
            for state in PurchaseState:
                self._purchases.labels(supplier, state)

    # --- deliveries -------------------------------------------------------------------------------------------------

    def delivered(self, shop: str, product: str, keys: int) -> None:
        """An order line got its ``keys`` for the first time."""
        lines, delivered = self._delivered(shop, product)
        lines.inc()
        delivered.inc(keys)

    def _find_delivered(self, shop: str, product: str) -> tuple[Counter, Counter]:
        product = self._product(product)
        return self._deliveries.labels(self._shop(shop), product), self._delivered_keys.labels(product)

    def _find_requested(self, route: str, method: str, status: int) -> Counter:
        return self._requests.labels(route, method, str(status))

    def delivery_repeated(self, shop: str) -> None:
        """A request was answered with the delivery that its order line has already."""
        self._repeats.labels(self._shop(shop)).inc()

    def delivery_failed(self, shop: str, code: str) -> None:
        """A request was answered with the problem ``code``."""
        self._failures.labels(self._shop(shop), _word(code)).inc()

    # --- supply -----------------------------------------------------------------------------------------------------

    def sync_started(self, supplier: str) -> None:
        """A run begins here."""
        self._running.labels(self._supplier(supplier)).set(1)

    def sync_ended(self, supplier: str, *, seconds: float, succeeded_at: float | None) -> None:
        """A run that took ``seconds`` is over; ``succeeded_at`` (Unix seconds) is None when it failed."""
        supplier = self._supplier(supplier)
        self._running.labels(supplier).set(0)
        self._runs.labels(supplier).inc()
        self._run_seconds.labels(supplier).observe(seconds)
        if succeeded_at is None:
            self._run_failures.labels(supplier).inc()
        else:
            self._last_success.labels(supplier).set(succeeded_at)

    def sealed(self, supplier: str, product: str, keys: int = 1) -> None:
        """New keys went into the vault."""
        self._sealed.labels(self._supplier(supplier), self._product(product)).inc(keys)

    def repeated(self, supplier: str, keys: int = 1) -> None:
        """Keys came again from the source that had brought them."""
        self._repeated.labels(self._supplier(supplier)).inc(keys)

    def quarantined(self, supplier: str, reason: str, slices: int = 1) -> None:
        """Slices were set aside; ``reason`` is a word of the code."""
        self._quarantined.labels(self._supplier(supplier), _word(reason)).inc(slices)

    def purchased(self, supplier: str, state: str) -> None:
        """A purchase came to a state."""
        self._purchases.labels(self._supplier(supplier), _word(state)).inc()

    def purchase_forbidden(self, supplier: str, guard: str) -> None:
        """A guard kept an order back."""
        self._forbidden.labels(self._supplier(supplier), _word(guard)).inc()

    def spent(self, supplier: str, amount: float) -> None:
        """A purchase is charged: what it cost, in the base currency; once a purchase."""
        self._spent.labels(self._supplier(supplier)).inc(amount)

    def offers_changed(self, supplier: str, offers: int) -> None:
        """Offers were written anew, or removed."""
        self._offer_changes.labels(self._supplier(supplier)).inc(offers)

    def listing_alarm(self, supplier: str, kind: str) -> None:
        """A change was held; ``kind``: drop, price, currency (of a whole listing), or offer."""
        self._alarms.labels(self._supplier(supplier), _word(kind)).inc()

    def supplier_verbs(self, supplier: str, verbs: Collection[str]) -> None:
        """What a supplier may be asked: its counts begin at 0."""
        for verb in verbs:
            self._calls.labels(self._supplier(supplier), _word(verb))

    def supplier_called(self, supplier: str, verb: str, *, seconds: float, kind: str | None) -> None:
        """A verb is over; ``kind`` is the error's code, None when it succeeded."""
        supplier, verb = self._supplier(supplier), _word(verb)
        self._calls.labels(supplier, verb).inc()
        self._call_seconds.labels(supplier, verb).observe(seconds)
        if kind is not None:
            self._call_failures.labels(supplier, verb, _word(kind.removeprefix("supplier_"))).inc()

    def supplier_retried(self, supplier: str) -> None:
        """A request is sent again."""
        self._retries.labels(self._supplier(supplier)).inc()

    def supplier_state(self, supplier: str, *, breaker: int, stopped: str) -> None:
        """``breaker`` as the gauge says it; ``stopped``: auth or config, "" when it is asked."""
        supplier = self._supplier(supplier)
        self._breaker.labels(supplier).set(breaker)
        self._up.labels(supplier).set(0 if breaker or stopped else 1)
        for reason in _STOPS:
            self._stopped.labels(supplier, reason).set(reason == stopped)

    def supplier_gone(self, supplier: str) -> None:
        """It is not configured any more: what it was like ends with it."""
        for labels in ((supplier,), *((supplier, reason) for reason in _STOPS)):
            for gauge in (self._breaker, self._up, self._last_success) if len(labels) == 1 else (self._stopped,):
                with contextlib.suppress(KeyError):
                    gauge.remove(*labels)

    # --- requests ---------------------------------------------------------------------------------------------------

    def answered(self, route: str, method: str, status: int) -> None:
        """A request was answered; ``route`` is the route's pattern, never the path that was asked for."""
        self._requested(route, method if method in _METHODS else "other", status).inc()

    def refused(self, route: str, code: str) -> None:
        """A request was answered with the problem ``code``."""
        self._errors.labels(route, _word(code)).inc()

    def render(self) -> bytes:
        """The exposition, as `CONTENT_TYPE`. Reads `levels`, so call it where a query may block."""
        return generate_latest(self._registry)

    def _product(self, name: str) -> str:
        return name if name in self._products else UNKNOWN

    def _shop(self, name: str) -> str:
        return name if name in self._shops else UNKNOWN

    def _supplier(self, name: str) -> str:
        return name if name in self._suppliers else UNKNOWN


def _word(text: str) -> str:
    """Codes and reasons are words of the code; anything else is somebody's text and becomes ``other``."""
    return text if _WORD.fullmatch(text) else "other"


class _AtScrape(Collector):
    """The gauges that are read when Prometheus asks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        return list(_gauges(Levels()))

    def collect(self) -> Iterator[Metric]:
        read = self._metrics.levels
        if read is None:
            return
        try:
            levels = read()
        except Exception:  # noqa: BLE001 - a database that does not answer is when the other numbers matter most
            self._metrics.scrape_failures.inc()
            structlog.get_logger(__name__).exception("the levels could not be read for a scrape")
            return
        yield from _gauges(levels)


def _gauges(levels: Levels) -> Iterator[Metric]:
    for name, text, labels, amounts in (
        ("vault_keys", "Keys in the vault.", ["product", "state"], levels.vault_keys),
        ("quarantine_held", "Slices that wait for an operator.", ["product", "reason"], levels.quarantine_held),
        ("purchases_open", "Purchases that are not closed.", ["supplier", "state"], levels.purchases_open),
    ):
        family = GaugeMetricFamily(f"syncd_{name}", text, labels=labels)
        for values, count in amounts.items():
            family.add_metric(values, count)
        yield family
    for name, text, label, counts in (
        ("deliveries_pending", "Paid order lines that wait for keys.", "product", levels.deliveries_pending),
        ("claims_asking", "Claims on bad keys whose answer is due, or was lost.", "supplier", levels.claims_asking),
        ("replenish_target", "Units of a cached product to hold.", "product", levels.replenish_target),
        (
            "replenish_level",
            "Units held and on order, less what orders wait for, when it was planned last.",
            "product",
            levels.replenish_level,
        ),
        (
            "replenish_demand_per_day",
            "Units that are asked for in a day, at the present rate.",
            "product",
            levels.replenish_demand,
        ),
        ("writer_queue_units", "Units of work that wait for the writer.", "kind", levels.queue_units),
        ("offers", "Offers that a supplier lists.", "supplier", levels.offers),
        ("offers_stale", "Offers that were read too long ago to be believed.", "supplier", levels.offers_stale),
        ("offers_held", "Offers whose price waits to be confirmed.", "supplier", levels.offers_held),
        ("listing_held", "Whether a listing waits to be confirmed: 1 or 0.", "supplier", levels.listing_held),
        (
            "listing_last_complete_timestamp_seconds",
            "Unix time of the last complete listing that was taken.",
            "supplier",
            levels.listed_at,
        ),
    ):
        family = GaugeMetricFamily(f"syncd_{name}", text, labels=[label])
        for value, number in counts.items():
            family.add_metric([value], number)
        yield family
    balances = GaugeMetricFamily(
        "syncd_supplier_balance", "What our account at a supplier holds.", labels=["supplier", "currency"]
    )
    for (supplier, currency), balance in levels.balances.items():
        balances.add_metric([supplier, currency], balance)
    yield balances
    yield GaugeMetricFamily(
        "syncd_oldest_pending_delivery_age_seconds",
        "Age of the oldest order line that waits for keys; 0 when none does.",
        value=levels.oldest_pending_seconds,
    )
    yield GaugeMetricFamily(
        "syncd_oldest_quarantine_age_seconds",
        "Age of the oldest slice that waits for an operator; 0 when none does.",
        value=levels.oldest_quarantine_seconds,
    )
    yield GaugeMetricFamily(
        "syncd_oldest_unknown_purchase_age_seconds",
        "For how long the oldest purchase of unknown outcome has been so; 0 when none is.",
        value=levels.oldest_unknown_seconds,
    )
    yield GaugeMetricFamily(
        "syncd_purchases_disputed_amount", "Money of open disputes, in the base currency.", value=levels.disputed
    )
    yield GaugeMetricFamily("syncd_wal_bytes", "Size of SQLite's write-ahead log.", value=levels.wal_bytes)
