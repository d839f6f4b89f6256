from __future__ import annotations

import shutil
import subprocess
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from syncd.metrics import Levels, Metrics

NAMES = {
    "syncd_build_info": {"version", "engine"},
    "syncd_deliveries_total": {"shop", "product"},
    "syncd_delivery_repeats_total": {"shop"},
    "syncd_delivery_failures_total": {"shop", "code"},
    "syncd_delivery_keys_total": {"product"},
    "syncd_delivery_seconds_count": set(),
    "syncd_key_unreadable_total": set(),
    "syncd_sync_runs_total": {"supplier"},
    "syncd_sync_failures_total": {"supplier"},
    "syncd_sync_last_success_timestamp_seconds": {"supplier"},
    "syncd_sync_duration_seconds_count": {"supplier"},
    "syncd_sync_running": {"supplier"},
    "syncd_supplier_calls_total": {"supplier", "verb"},
    "syncd_supplier_failures_total": {"supplier", "verb", "kind"},
    "syncd_supplier_call_seconds_count": {"supplier", "verb"},
    "syncd_supplier_retries_total": {"supplier"},
    "syncd_supplier_breaker_state": {"supplier"},
    "syncd_supplier_up": {"supplier"},
    "syncd_supplier_stopped": {"supplier", "reason"},
    "syncd_keys_sealed_total": {"supplier", "product"},
    "syncd_keys_repeated_total": {"supplier"},
    "syncd_keys_quarantined_total": {"supplier", "reason"},
    "syncd_purchases_total": {"supplier", "state"},
    "syncd_purchases_forbidden_total": {"supplier", "guard"},
    "syncd_purchase_spend_total": {"supplier"},
    "syncd_purchases_open": {"supplier", "state"},
    "syncd_oldest_unknown_purchase_age_seconds": set(),
    "syncd_purchases_disputed_amount": set(),
    "syncd_offer_changes_total": {"supplier"},
    "syncd_listing_alarms_total": {"supplier", "kind"},
    "syncd_offers": {"supplier"},
    "syncd_offers_stale": {"supplier"},
    "syncd_offers_held": {"supplier"},
    "syncd_listing_held": {"supplier"},
    "syncd_listing_last_complete_timestamp_seconds": {"supplier"},
    "syncd_supplier_balance": {"supplier", "currency"},
    "syncd_vault_keys": {"product", "state"},
    "syncd_quarantine_held": {"product", "reason"},
    "syncd_deliveries_pending": {"product"},
    "syncd_oldest_pending_delivery_age_seconds": set(),
    "syncd_oldest_quarantine_age_seconds": set(),
    "syncd_writer_batches_total": set(),
    "syncd_writer_failures_total": set(),
    "syncd_writer_units_total": {"kind"},
    "syncd_writer_batch_units_count": set(),
    "syncd_writer_commit_seconds_count": set(),
    "syncd_writer_queue_units": {"kind"},
    "syncd_wal_bytes": set(),
    "syncd_audit_entries_total": set(),
    "syncd_http_requests_total": {"route", "method", "status"},
    "syncd_http_errors_total": {"route", "code"},
    "syncd_config_reloads_total": set(),
    "syncd_config_reload_failures_total": set(),
    "syncd_config_last_success_timestamp_seconds": set(),
    "syncd_scrape_failures_total": set(),
}

LEVELS = Levels(
    vault_keys={("steam-50", "available"): 5, ("steam-50", "delivered"): 2},
    quarantine_held={("steam-50", "duplicate"): 1},
    oldest_quarantine_seconds=60.0,
    deliveries_pending={"steam-50": 1},
    oldest_pending_seconds=12.5,
    purchases_open={("samples", "unknown"): 1},
    oldest_unknown_seconds=30.0,
    disputed=2.5,
    queue_units={"ingest": 3},
    wal_bytes=4096,
    offers={"samples": 100},
    offers_stale={"samples": 3},
    offers_held={"samples": 2},
    listing_held={"samples": 1},
    listed_at={"samples": 1_700_000_000},
    balances={("samples", "CNY"): 88.5},
)


@pytest.fixture
def metrics():
    metrics = Metrics("1.2.3")
    metrics.know(products={"steam-50"}, shops={"demo"}, suppliers={"samples"})
    return metrics


def samples(metrics):
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def use_all(metrics):
    metrics.levels = lambda: LEVELS
    metrics.delivered("demo", "steam-50", 3)
    metrics.delivery_repeated("demo")
    metrics.delivery_failed("demo", "insufficient_stock")
    metrics.delivery_seconds.observe(0.003)
    metrics.sync_started("samples")
    metrics.sync_ended("samples", seconds=2.0, succeeded_at=1_700_000_000.0)
    metrics.supplier_verbs("samples", {"get_balance", "place_order"})
    metrics.supplier_called("samples", "get_balance", seconds=0.2, kind=None)
    metrics.supplier_called("samples", "place_order", seconds=0.2, kind="supplier_out_of_stock")
    metrics.supplier_retried("samples")
    metrics.supplier_state("samples", breaker=2, stopped="auth")
    metrics.sealed("samples", "steam-50", 5)
    metrics.repeated("samples", 2)
    metrics.quarantined("samples", "duplicate")
    metrics.purchased("samples", "fulfilled")
    metrics.purchase_forbidden("samples", "budget")
    metrics.spent("samples", 2.5)
    metrics.writer_units.labels("deliver").inc(4)
    metrics.answered("/v1/deliveries", "POST", 200)
    metrics.refused("/v1/deliveries", "insufficient_stock")


def test_o1_every_metric_has_its_name_and_labels(metrics):
    use_all(metrics)
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set(sample.labels))
    ours = {name for name in found if name.startswith("syncd_") and not name.endswith(("_bucket", "_sum", "_created"))}
    assert ours == set(NAMES)
    assert {name: found[name] for name in NAMES} == NAMES


def test_what_is_counted_is_read(metrics):
    use_all(metrics)
    found = samples(metrics)
    assert found["syncd_deliveries_total", "steam-50", "demo"] == 1
    assert found["syncd_delivery_keys_total", "steam-50"] == 3
    assert found["syncd_delivery_failures_total", "insufficient_stock", "demo"] == 1
    assert found["syncd_sync_runs_total", "samples"] == 1
    assert found["syncd_sync_failures_total", "samples"] == 0
    assert found["syncd_sync_last_success_timestamp_seconds", "samples"] == 1_700_000_000
    assert found["syncd_sync_running", "samples"] == 0
    assert found["syncd_supplier_calls_total", "samples", "place_order"] == 1
    assert found["syncd_supplier_failures_total", "out_of_stock", "samples", "place_order"] == 1
    assert found["syncd_supplier_breaker_state", "samples"] == 2
    assert found["syncd_supplier_up", "samples"] == 0
    assert found["syncd_supplier_stopped", "auth", "samples"] == 1
    assert found["syncd_supplier_stopped", "config", "samples"] == 0
    assert found["syncd_keys_sealed_total", "steam-50", "samples"] == 5
    assert found["syncd_vault_keys", "steam-50", "available"] == 5
    assert found["syncd_oldest_pending_delivery_age_seconds",] == 12.5
    assert found["syncd_http_requests_total", "POST", "/v1/deliveries", "200"] == 1


def test_a_failed_run_is_no_success(metrics):
    metrics.sync_ended("samples", seconds=1.0, succeeded_at=None)
    found = samples(metrics)
    assert found["syncd_sync_runs_total", "samples"] == found["syncd_sync_failures_total", "samples"] == 1
    assert ("syncd_sync_last_success_timestamp_seconds", "samples") not in found


def test_o1_no_label_comes_from_a_request(metrics):
    before = len(samples(metrics))
    for i in range(200):
        metrics.delivered(f"shop-{i}", f"sku-{i}", 1)
        metrics.delivery_repeated(f"shop-{i}")
        metrics.delivery_failed(f"shop-{i}", f"Text of an error {i}")
        metrics.sync_ended(f"supplier-{i}", seconds=1.0, succeeded_at=1.0)
        metrics.supplier_called(f"supplier-{i}", f"Verb {i}", seconds=1.0, kind=f"Text {i}")
        metrics.supplier_retried(f"supplier-{i}")
        metrics.supplier_state(f"supplier-{i}", breaker=1, stopped="")
        metrics.sealed(f"supplier-{i}", f"sku-{i}")
        metrics.quarantined(f"supplier-{i}", f"line {i} is bad")
        metrics.answered("/v1/deliveries", f"METHOD{i}", 405)
        metrics.refused("/v1/deliveries", f"{i}!")
    found = samples(metrics)
    assert found["syncd_deliveries_total", "unknown", "unknown"] == 200
    assert found["syncd_http_requests_total", "other", "/v1/deliveries", "405"] == 200
    assert len(found) - before < 50


def test_o1_a_supplier_that_is_gone_is_not_late(metrics):
    metrics.sync_ended("samples", seconds=1.0, succeeded_at=1.0)
    assert ("syncd_sync_last_success_timestamp_seconds", "samples") in samples(metrics)
    metrics.supplier_gone("samples")
    assert ("syncd_sync_last_success_timestamp_seconds", "samples") not in samples(metrics)


def test_pairs_begin_at_zero(metrics):
    found = samples(metrics)
    assert found["syncd_sync_failures_total", "samples"] == 0
    assert found["syncd_deliveries_total", "steam-50", "demo"] == 0


def test_a_database_that_does_not_answer_costs_only_its_gauges(metrics):
    metrics.levels = lambda: 1 / 0
    metrics.writer_batches.inc()
    samples(metrics)
    found = samples(metrics)
    assert found["syncd_writer_batches_total",] == 1
    assert found["syncd_scrape_failures_total",] >= 1
    assert ("syncd_wal_bytes",) not in found


def test_two_daemons_in_one_process_count_apart():
    one, two = Metrics("1"), Metrics("1")
    one.writer_batches.inc()
    assert samples(two)["syncd_writer_batches_total",] == 0


def test_counting_is_thread_safe(metrics):
    def count():
        for _ in range(1000):
            metrics.delivered("demo", "steam-50", 1)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert samples(metrics)["syncd_deliveries_total", "steam-50", "demo"] == 8000


def lint(exposition):
    promtool = shutil.which("promtool") or pytest.skip("promtool is not installed (Debian: prometheus)")
    return subprocess.run([promtool, "check", "metrics"], input=exposition, capture_output=True, check=False)


@pytest.mark.may_skip
def test_promtool_has_nothing_to_say(metrics):
    use_all(metrics)
    done = lint(metrics.render())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.may_skip
def test_promtool_negative_control():
    done = lint(b"# HELP syncd_keys Keys.\n# TYPE syncd_keys counter\nsyncd_keys 1\n")
    assert done.returncode == 3
