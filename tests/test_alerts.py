"""config/alerts.yml: what Prometheus itself says of it, and of every alert that it fires, does not fire, and resolves.

`CASES` is what happens, minute by minute; promtool carries the rules over it. It reads YAML, of which JSON is a part.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from syncd.metrics import Levels, Metrics

ROOT = Path(__file__).parents[1]
RULES = ROOT / "config" / "alerts.yml"
TEXT = RULES.read_text(encoding="utf-8")
BEGIN = "      - alert: "
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


class Alert(NamedTuple):
    expr: str
    held: int
    """Minutes."""
    severity: str
    annotations: dict[str, str]


def read(text):
    """Alert's name → what the file says of it. The file keeps every value on one line."""
    found = {}
    for block in text.split(BEGIN)[1:]:
        values = dict(re.findall(r"^ +(\w+): (.*)$", block, re.MULTILINE))
        amount, unit = re.fullmatch(r"(\d+)([mhd])", values.get("for", "0m")).groups()
        annotations = {name: json.loads(values[name]) for name in ("summary", "description", "runbook")}
        severity = re.fullmatch(r"\{ severity: (page|ticket) \}", values["labels"])[1]
        held = int(amount) * {"m": 1, "h": 60, "d": 1440}[unit]
        found[block.partition("\n")[0]] = Alert(values["expr"], held, severity, annotations)
    return found


ALERTS = read(TEXT)


# --- what happens -----------------------------------------------------------------------------------------------------


def series(*steps):
    """(value, minutes) after each other, as promtool writes them; None is no sample."""
    return " ".join(f"_x{minutes}" if value is None else f"{value}+0x{minutes - 1}" for value, minutes in steps)


class Case(NamedTuple):
    name: str
    labels: dict[str, str]
    """Of the alert, beside its severity."""
    value: str
    """As its annotations show it, "" where they do not."""
    bad: dict[str, str]
    fires: int
    """The first minute at which it fires."""
    resolves: int
    """The first minute at which it does so no more."""
    good: dict[str, str]
    """Just not bad enough: of this, nothing fires."""


def level(name, metric, bad, good, value="", *, held=0, also=None, **labels):
    """A gauge that is bad from minute 5 until a minute after it fires."""
    labels = {"job": "syncd", **labels}
    also = also or {}
    fires = 5 + held
    return Case(
        name,
        labels,
        value,
        {metric: series((good, 5), (bad, held + 1), (good, 5)), **also},
        fires,
        fires + 1,
        {metric: series((good, held + 15)), **also},
    )


def count(name, metric, window, *, most=0, instance="a:1", **labels):
    """A counter that stands at 7, and grows by more than ``most`` in minute 12."""
    labels = {"job": "syncd", **({"instance": instance} if instance else {}), **labels}
    return Case(
        name,
        labels,
        "",
        {metric: series((7, 12), (8 + most, window + 5))},
        12,
        12 + window,
        {metric: series((7, 12), (7 + most, window + 5))},
    )


JOB = 'job="syncd"'
AT = f'{JOB}, instance="a:1"'
FAILED = f'syncd_delivery_failures_total{{{AT}, shop="demo", code="unavailable"}}'
SOLD_OUT = f'syncd_delivery_failures_total{{{AT}, shop="demo", code="insufficient_stock"}}'
DELIVERED = f'syncd_deliveries_total{{{AT}, shop="demo", product="steam-50"}}'
AUDITED = f"syncd_audit_entries_total{{{AT}}}"
KEYS = f'syncd_delivery_keys_total{{{AT}, product="steam-50"}}'
AVAILABLE = f'syncd_vault_keys{{{AT}, product="steam-50", state="available"}}'
TARGET = f'syncd_replenish_target{{{AT}, product="steam-50"}}'
BUCKET = f'syncd_delivery_seconds_bucket{{{AT}, le="%s"}}'
FORBIDDEN = f'syncd_purchases_forbidden_total{{{AT}, supplier="acme", guard="%s"}}'
HELD = f'syncd_quarantine_held{{{AT}, product="steam-50", reason="%s"}}'

CASES = [
    Case(  # no such job at first: its name misspelt in Prometheus' configuration
        "SyncdDown",
        {"job": "syncd"},
        "",
        {f"up{{{AT}}}": series((None, 3), (1, 5), (0, 3), (1, 5))},
        1,
        3,
        {},
    ),
    Case(
        "SyncdDown",
        {"job": "syncd", "instance": "a:1"},
        "",
        {},  # as above
        9,
        11,
        {f'up{{{JOB}, instance="b:1"}}': series((None, 3), (1, 5), (0, 1), (1, 7))},
    ),
    Case(
        "SyncdLevelsUnread",
        {"job": "syncd", "instance": "a:1"},
        "",
        {f"syncd_scrape_failures_total{{{AT}}}": series((3, 5), (4, 1), (5, 20))},
        7,
        11,
        {f"syncd_scrape_failures_total{{{AT}}}": series((3, 30))},
    ),
    count("SyncdWriterFails", f"syncd_writer_failures_total{{{AT}}}", 10),
    Case(
        "SyncdAuditSilent",
        {"job": "syncd", "instance": "a:1"},
        "",
        {DELIVERED: series((7, 5), (8, 30)), AUDITED: series((90, 12), (91, 23))},
        10,
        12,
        {DELIVERED: series((7, 5), (8, 30)), AUDITED: series((90, 5), (91, 30))},
    ),
    count("SyncdKeyUnreadable", f"syncd_key_unreadable_total{{{AT}}}", 10),
    level("SyncdWalLarge", f"syncd_wal_bytes{{{AT}}}", 2**30, 10**9, "1Gi", held=5, instance="a:1"),
    count("SyncdReloadRefused", f"syncd_config_reload_failures_total{{{AT}}}", 60),
    count("SyncdDeliveriesFail", FAILED, 10, instance="", shop="demo", code="unavailable"),
    Case(  # the first failure of its kind: the series begins with it
        "SyncdDeliveriesFail",
        {"job": "syncd", "shop": "demo", "code": "unavailable"},
        "",
        {FAILED: series((None, 12), (1, 20))},
        12,
        22,
        {SOLD_OUT: series((None, 12), (1, 20))},
    ),
    Case(
        "SyncdDeliveriesSlow",
        {"job": "syncd", "instance": "a:1"},
        "497.5ms",
        {BUCKET % "0.25": series((0, 30)), BUCKET % "0.5": "0+100x9 900+0x20", BUCKET % "+Inf": "0+100x9 900+0x20"},
        6,
        14,
        {BUCKET % "0.25": "0+99x30", BUCKET % "0.5": "0+99x30", BUCKET % "+Inf": "0+99x30"},
    ),
    level("SyncdDeliveryPending", f"syncd_oldest_pending_delivery_age_seconds{{{AT}}}", 360, 300, "6m 0s"),
    Case(
        "SyncdStockLow",
        {"job": "syncd", "product": "steam-50"},
        "2",
        {KEYS: series((0, 2), (3, 40)), AVAILABLE: series((2, 20), (9, 22))},
        17,
        20,
        {KEYS: series((0, 2), (3, 40)), AVAILABLE: series((4, 42))},
    ),
    Case(  # none at all: there is no such series
        "SyncdStockLow",
        {"job": "syncd", "product": "steam-50"},
        "0",
        {KEYS: series((0, 2), (3, 40)), AVAILABLE: series((None, 20), (9, 22))},
        17,
        20,
        {KEYS: series((0, 2), (3, 40)), TARGET: series((5, 42))},  # bought ahead: SyncdVaultBelowTarget
    ),
    level("SyncdClaimUnanswered", f'syncd_claims_asking{{{AT}, supplier="acme"}}', 2, 0, "2", held=60, supplier="acme"),
    level(  # time begins at 0: a success at -1560 is 31 minutes old in minute 5
        "SyncdSupplierNotSynced",
        f'syncd_sync_last_success_timestamp_seconds{{{AT}, supplier="acme"}}',
        -1560,
        0,
        "31m 0s",
        supplier="acme",
    ),
    count(
        "SyncdSyncFails",
        f'syncd_sync_failures_total{{{AT}, supplier="acme"}}',
        60,
        most=3,
        instance="",
        supplier="acme",
    ),
    level("SyncdSupplierDown", f'syncd_supplier_up{{{AT}, supplier="acme"}}', 0, 1, held=15, supplier="acme"),
    Case(  # down, as it is stopped: not twice
        "SyncdSupplierStopped",
        {"job": "syncd", "supplier": "acme", "reason": "auth"},
        "",
        {
            f'syncd_supplier_up{{{AT}, supplier="acme"}}': series((0, 60)),
            f'syncd_supplier_stopped{{{AT}, supplier="acme", reason="auth"}}': series((0, 5), (1, 20), (0, 35)),
        },
        5,
        25,
        {f'syncd_supplier_stopped{{{AT}, supplier="acme", reason="auth"}}': series((0, 60))},
    ),
    level(
        "SyncdSupplierBalanceLow",
        f'syncd_supplier_balance{{{AT}, supplier="acme", currency="CNY"}}',
        99.5,
        100,
        "99.5",
        supplier="acme",
        currency="CNY",
    ),
    count(
        "SyncdListingAlarm",
        f'syncd_listing_alarms_total{{{AT}, supplier="acme", kind="drop"}}',
        60,
        instance="",
        supplier="acme",
        kind="drop",
    ),
    level("SyncdListingHeld", f'syncd_listing_held{{{AT}, supplier="acme"}}', 1, 0, held=60, supplier="acme"),
    level("SyncdOffersHeld", f'syncd_offers_held{{{AT}, supplier="acme"}}', 4, 0, "4", held=1440, supplier="acme"),
    level("SyncdOffersStale", f'syncd_offers_stale{{{AT}, supplier="acme"}}', 4, 0, "4", held=60, supplier="acme"),
    level(
        "SyncdListingOld",
        f'syncd_listing_last_complete_timestamp_seconds{{{AT}, supplier="acme"}}',
        -172560,
        -171900,
        "2d 0h 1m 0s",
        supplier="acme",
    ),
    Case(  # empty for a while, so that nothing has been held for an hour by then
        "SyncdQuarantineGrows",
        {"job": "syncd", "product": "steam-50", "reason": "count"},
        "21",
        {HELD % "count": series((9, 20), (0, 10), (9, 40), (30, 90))},
        70,
        130,
        {HELD % "count": series((9, 20), (0, 10), (9, 40), (29, 90))},
    ),
    Case(  # a reason that was not there an hour ago
        "SyncdQuarantineGrows",
        {"job": "syncd", "product": "steam-50", "reason": "prose"},
        "21",
        {HELD % "prose": series((None, 70), (21, 30))},
        70,
        105,
        {HELD % "prose": series((None, 70), (20, 90))},
    ),
    level("SyncdQuarantineHeld", HELD % "count", 3, 0, "3", held=60),
    level("SyncdQuarantineOld", f"syncd_oldest_quarantine_age_seconds{{{AT}}}", 90000, 86400, "1d 1h 0m 0s"),
    level(
        "SyncdPurchaseUnknown",
        f'syncd_purchases_open{{{AT}, supplier="acme", state="unknown"}}',
        2,
        0,
        "2",
        held=15,
        also={f'syncd_purchases_open{{{AT}, supplier="acme", state="accepted"}}': series((5, 60))},
        supplier="acme",
    ),
    level("SyncdPurchaseUnknownLong", f"syncd_oldest_unknown_purchase_age_seconds{{{AT}}}", 3660, 3600, "1h 1m 0s"),
    level(
        "SyncdPurchaseDisputed",
        f'syncd_purchases_open{{{AT}, supplier="acme", state="disputed"}}',
        1,
        0,
        "1",
        also={f'syncd_purchases_open{{{AT}, supplier="acme", state="sent"}}': series((5, 60))},
        supplier="acme",
    ),
    Case(
        "SyncdPurchasesForbidden",
        {"job": "syncd", "supplier": "acme", "guard": "budget"},
        "",
        {FORBIDDEN % "budget": "0+0x4 1+1x39 40+0x40"},
        35,
        59,
        {FORBIDDEN % "margin": "0+1x90", FORBIDDEN % "budget": series((0, 5), (1, 86))},
    ),
    level(
        "SyncdVaultBelowTarget",
        f'syncd_replenish_level{{{AT}, product="steam-50"}}',
        9,
        10,
        "9",
        held=30,
        also={f'syncd_replenish_target{{{AT}, product="steam-50"}}': series((10, 60))},
        product="steam-50",
    ),
]


# A day has 1440 moments: what waits for so long happens in a world of its own.
LONG = [case for case in CASES if case.resolves > 600]
SHORT = [case for case in CASES if case.resolves <= 600]


# --- promtool ---------------------------------------------------------------------------------------------------------


def expected(case):
    """The alert, with its annotations filled in: a label that it does not have is an error here."""
    alert = ALERTS[case.name]
    values = {f"$labels.{name}": text for name, text in case.labels.items()} | {"$value": case.value}

    def filled(text):
        return re.sub(r"\{\{ (\$[\w.]+)[^}]* \}\}", lambda found: values[found[1]], text)

    return {
        "exp_labels": {"severity": alert.severity, **case.labels},
        "exp_annotations": {name: filled(text) for name, text in alert.annotations.items()},
    }


def apart(case, number):
    """The same in a job of its own, and what is good in another, so that all may happen at once."""

    def put(happened, job):
        return {name.replace(JOB, f'job="{job}"'): values for name, values in happened.items()}

    if case.name == "SyncdDown":  # goes by the job's name
        return case
    labels = {**case.labels, "job": f"bad-{number}"}
    return case._replace(labels=labels, bad=put(case.bad, f"bad-{number}"), good=put(case.good, f"good-{number}"))


def world(cases):
    """One test of promtool: everything happens, and at each moment of an alert those that fire are all that do."""
    cases = [apart(case, number) for number, case in enumerate(cases)]
    happened = {name: values for case in cases for name, values in (case.bad | case.good).items()}
    moments = {
        (case.name, minute)
        for case in cases
        for minute in (case.fires - 1, case.fires, case.resolves - 1, case.resolves)
    }
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in happened.items()],
        "alert_rule_test": [
            {
                "eval_time": f"{minute}m",
                "alertname": name,
                "exp_alerts": [
                    expected(case) for case in cases if case.name == name and case.fires <= minute < case.resolves
                ],
            }
            for name, minute in sorted(moments)
        ],
    }


@pytest.fixture(scope="module")
def promtool():
    program = shutil.which("promtool") or pytest.skip("promtool is not installed (Debian: prometheus)")

    def run(*arguments):
        return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def failed(promtool, tmp_path):
    """The alerts whose tests are red under a text of the rules, and what promtool said."""

    def judge(text, cases):
        names = {case.name for case in cases}
        head, *blocks = text.split(BEGIN)
        kept = [BEGIN + block for block in blocks if block.partition("\n")[0] in names]
        (tmp_path / "alerts.yml").write_text("".join([head, *kept]), encoding="utf-8")
        tests = {"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": [world(cases)]}
        (tmp_path / "tests.yml").write_text(json.dumps(tests), encoding="utf-8")
        done = promtool("test", "rules", str(tmp_path / "tests.yml"))
        said = done.stdout + done.stderr
        red = set(re.findall(r"alertname: ?(\w+)", said))
        assert bool(red) == bool(done.returncode), said
        return red, said

    return judge


def test_o2_prometheus_takes_the_rules(promtool):
    done = promtool("check", "rules", str(RULES))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(ALERTS)} rules found" in done.stdout  # so `read` has seen all of them


def test_o2_every_alert_has_a_case():
    assert {case.name for case in CASES} == set(ALERTS)
    assert TEXT.count("alert: ") == len(ALERTS) > 25  # no name twice


def test_o2_every_alert_fires_and_resolves_when_it_should(failed):
    for cases in (SHORT, LONG):
        red, said = failed(TEXT, cases)
        assert red == set(), said


def test_negative_control_alerts_that_never_fire_are_all_found(failed):
    never = re.sub(r"expr: .*", "expr: vector(0) > 1", TEXT)
    assert failed(never, SHORT)[0] == {case.name for case in SHORT}


def test_negative_control_alerts_that_do_not_wait_are_all_found(failed):
    hasty = re.sub(r" +for: .*\n", "", TEXT)
    waiting = [case for case in SHORT if ALERTS[case.name].held]
    assert failed(hasty, waiting)[0] == {case.name for case in waiting}


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("SyncdPurchaseUnknownLong", "purchase_age_seconds) > 3600", "purchase_age_seconds) > 36000"),
        ("SyncdDeliveryPending", "delivery_age_seconds) > 300", "delivery_age_seconds) > 30"),
        ("SyncdSyncFails", "[1h])) > 3.5", "[1h])) > 3"),
        ("SyncdPurchaseUnknown", '{state="unknown"}', '{state="unknwon"}'),
        ("SyncdPurchasesForbidden", "max_cost|margin|offer", "max_cost|offer"),
        ("SyncdSupplierStopped", "any more: {{ $labels.reason", "any more: {{ $labels.reasons"),
    ],
)
def test_negative_control_a_wrong_rule_is_found(failed, name, right, wrong):
    cases = [case for case in CASES if case.name == name]
    assert TEXT.count(right) == 1
    assert failed(TEXT.replace(right, wrong), cases)[0] == {name}


# --- what the rules name ----------------------------------------------------------------------------------------------


def exported():
    """Every series that the daemon has, a histogram's three among them."""
    metrics = Metrics("1")
    metrics.levels = Levels
    found = set()
    for name, kind in re.findall(r"^# TYPE (syncd_\w+) (\w+)$", metrics.render().decode(), re.MULTILINE):
        found |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return found


def test_o2_every_metric_in_a_rule_and_in_a_case_exists():
    known = exported()
    for name, alert in ALERTS.items():
        assert set(re.findall(r"\bsyncd_\w+", alert.expr)) <= known, name
    # The cases hold a misspelt prefix: they would find no alert. Their labels are those of the runbook's table.
    labels = dict(re.findall(r"^\| `(syncd_\w+)` \|([^|]*)\|", OPERATIONS, re.MULTILINE))
    for case in CASES:
        for one in (*case.bad, *case.good):
            metric, given = re.fullmatch(r"(\w+)\{(.*)\}", one).groups()
            if metric != "up":
                assert metric in known
                of = set(filter(None, labels[metric.removesuffix("_bucket")].strip().split(", ")))
                assert set(re.findall(r"(\w+)=", given)) - {"job", "instance", "le"} == of, one


def test_o2_every_word_that_a_rule_compares_a_label_with_is_one_of_the_code():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "syncd").rglob("*.py"))
    for name, alert in ALERTS.items():
        for label, words in re.findall(r'(\w+)(?:=|!=|=~|!~)"([^"]*)"', alert.expr):
            assert label == "job" or all(f'"{word}"' in code for word in words.split("|")), (name, words)


def anchors(name):
    headings = re.findall(r"^#+ (.*)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_o2_every_alert_has_its_line_and_its_page_in_the_runbook():
    assert re.findall(r"^\| `(Syncd\w+)` \|", OPERATIONS, re.MULTILINE) == list(ALERTS)
    for name, alert in ALERTS.items():
        page, _, anchor = alert.annotations["runbook"].partition("#")
        assert anchor in anchors(page), name


def test_negative_control_a_page_that_is_not_there():
    assert "the-disk-is-empty" not in anchors("docs/operations.md")
    assert "syncd_purchases_total" in exported()
    assert "syncd_purchase_total" not in exported()
