"""The documents say what the code does: every setting, metric and command that they name exists, and none is left out.

A document that lies is worse than none, and nobody finds out by reading it. Each check has a negative control: a
planted lie that it must see.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import certifi
import pytest
import typer
from pydantic import BaseModel

from syncd import config, daemon
from syncd.adapter import VERBS, Pull
from syncd.cli.app import app
from syncd.cli.operator import EXIT_UNREACHABLE
from syncd.config import Cache, Product, ProductOffer, SecretRef, Settings, Shop, Supplier
from syncd.errors import EXIT_CONFIG, ConfigError, KekError, SyncdError
from syncd.inventory.quarantine import HELD, UNANSWERED
from syncd.inventory.receipt import COUNT, LATE, OVER
from syncd.metrics import Levels, Metrics
from syncd.suppliers import registry
from syncd.suppliers.conformance import examined, examples, page, tier_of
from syncd.suppliers.conformance.rig import Kit
from syncd.vault.crypto import parse_kek

ROOT = Path(__file__).parents[1]
SAMPLE = (ROOT / "config" / "syncd.toml").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "adapters" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults must not come from whatever runs the tests."""
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY", "SYNCD_CONFIG"):
        monkeypatch.delenv(name, raising=False)


# --- settings ---------------------------------------------------------------------------------------------------------


def inner_models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation, however deep: dict[str, Model], Model | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from inner_models(part)


NAMED: Mapping[type[BaseModel], str] = {
    Supplier: "suppliers.NAME",
    Product: "products.SKU",
    ProductOffer: "products.SKU.offers",
    Cache: "products.SKU.cache",
    Shop: "shops.NAME",
    SecretRef: "secret",
}


def modelled(model: type[BaseModel] = Settings, section: str = "") -> dict[str, set[str]]:
    """Section → names of its settings, as the models have them."""
    found: dict[str, set[str]] = {}
    for name, field in model.model_fields.items():
        if field.exclude:
            continue
        if section:
            found.setdefault(section, set()).add(name)
        for inner in inner_models(field.annotation):
            found |= modelled(inner, NAMED.get(inner, name))
    return found


def with_adapters(sections: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same, with the settings of each bundled adapter."""
    found = dict(sections)
    for path in sorted(registry.bundled().glob("*.py")):
        found[f"suppliers.NAME {path.stem}"] = set(registry.load(path).Settings.model_fields)
    return found


Row = tuple[str, str]
"""(name, default) of a documented setting."""


def documented(text: str) -> dict[str, list[Row]]:
    """Section → its documented settings, in order."""
    found: dict[str, list[Row]] = {}
    section = ""
    for line in text.splitlines():
        if heading := re.match(r"#{2,3} (.*)", line):
            name = re.match(r'\[([\w.]+)\](?: with adapter = "(\w+)")?$', heading[1])
            section = " ".join(part for part in name.groups() if part) if name else ""
            if "A secret" in heading[1]:
                section = "secret"
        elif section and (row := re.match(r"\| `(\w+)` \| [^|]+ \| ([^|]+) \| \S", line)):
            found.setdefault(section, []).append((row[1], row[2].strip()))
    return found


def documented_names(text: str) -> dict[str, set[str]]:
    return {section: {name for name, _ in rows} for section, rows in documented(text).items()}


def test_every_setting_is_documented_and_every_documented_setting_exists() -> None:
    assert documented_names(CONFIGURATION) == with_adapters(modelled())


def test_no_setting_is_documented_twice() -> None:
    for section, rows in documented(CONFIGURATION).items():
        names = [name for name, _ in rows]
        assert len(names) == len(set(names)), section


def test_the_walk_over_the_models_sees_all_of_it() -> None:
    # A walk that finds nothing would find every document whole.
    sections = modelled()
    assert set(sections) == {
        "daemon",
        "store",
        "vault",
        "sync",
        "currency",
        "purchases",
        "reservations",
        "deliveries",
        *NAMED.values(),
    }
    assert {"listen", "max_body"} <= sections["daemon"]
    assert sections["secret"] == {"credential", "file", "env"}
    assert "sku" not in sections["products.SKU"]  # the table's name, no setting


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("| `lease` | duration |", "| `leese` | duration |"),  # misspelt: one is missing, one does not exist
        ("| `after` | text |", "| after | text |"),  # an adapter's own
        ("| `env` | text |", "| `env` | text | none | Old. |\n| `vault_path` | text |"),
        ("## [shops.NAME]", "## Shops"),  # a whole section
    ],
)
def test_negative_control_a_lie_about_a_setting_is_found(right: str, wrong: str) -> None:
    assert right in CONFIGURATION
    assert documented_names(CONFIGURATION.replace(right, wrong)) != with_adapters(modelled())


def test_documented_defaults_are_the_defaults(tmp_path: Path) -> None:
    """Written down, a documented default changes nothing."""
    (tmp_path / "formats.toml").write_text("")
    base = '[suppliers.NAME]\nadapter = "feed"\n[products.SKU]\n[shops.NAME]\n'.replace("NAME", "name")
    file = tmp_path / "syncd.toml"

    def loaded(text: str) -> dict[str, Any]:
        file.write_text(text, encoding="utf-8")
        return config.load(file).model_dump()

    plain = loaded(base)
    tried = 0
    for section, rows in documented(CONFIGURATION).items():
        if section == "secret" or " " in section:
            continue  # a secret has no default; an adapter's own settings are not read by the core
        table = f"[{section.replace('NAME', 'name')}]\n"
        for name, default in rows:
            if not default.startswith("`"):
                assert default in {"none", "required", "of `[sync]`"}, (section, name)
                continue
            line = f"{name} = {default.strip('`')}\n"
            assert loaded(base.replace(table, table + line) if table in base else base + table + line) == plain, line
            tried += 1
    assert tried >= 15


@pytest.mark.parametrize("name", ["acg_faka", "codeswholesale", "dujiao_next", "feed", "fulu", "kinguin"])
def test_an_adapters_documented_defaults_are_its_defaults(name: str) -> None:
    model = registry.load(registry.bundled() / f"{name}.py").Settings
    for setting, default in documented(CONFIGURATION)[f"suppliers.NAME {name}"]:
        field = model.model_fields[setting]
        written = None if default in {"none", "required"} else tomllib.loads(f"x = {default.strip('`')}")["x"]
        assert (field.is_required(), None if field.is_required() else field.default) == (default == "required", written)


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for of, block in fenced if of == language]


def uncommented(text: str) -> str:
    """A sample with its commented-out settings put in."""
    return re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)


def shown(text: str) -> dict[str, set[str]]:
    """Section → names of the settings that a configuration writes, tables of one kind put together."""
    tree = tomllib.loads(text)
    kinds = {"suppliers": "NAME", "products": "SKU", "shops": "NAME"}
    found: dict[str, set[str]] = {}
    for section, table in tree.items():
        if section in kinds:
            found[f"{section}.{kinds[section]}"] = {name for one in table.values() for name in one}
        else:
            found[section] = set(table)
    offers = [offer for one in tree.get("products", {}).values() for offer in one.get("offers", [])]
    caches = [one["cache"] for one in tree.get("products", {}).values() if "cache" in one]
    return found | {
        "products.SKU.offers": {name for offer in offers for name in offer},
        "products.SKU.cache": {name for cache in caches for name in cache},
    }


def expected_in_a_sample() -> dict[str, set[str]]:
    sections = with_adapters(modelled())
    sections["suppliers.NAME"] = sections["suppliers.NAME"] | sections.pop("suppliers.NAME feed")
    return {section: names for section, names in sections.items() if " " not in section and section != "secret"}


def test_every_setting_stands_in_the_sample_and_nothing_else() -> None:
    assert shown(uncommented(SAMPLE)) == expected_in_a_sample()
    for place in modelled()["secret"]:
        assert f"{{ {place} = " in SAMPLE


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("# lease = ", "# leese = "), ("# issuer = ", "#issuer = "), ("# max_body = ", "# x = 1\n# max_body = ")],
)
def test_negative_control_a_lie_in_the_sample_is_found(right: str, wrong: str) -> None:
    assert right in SAMPLE
    assert shown(uncommented(SAMPLE.replace(right, wrong))) != expected_in_a_sample()


def test_the_examples_show_every_setting_and_load(tmp_path: Path) -> None:
    text = "".join(blocks(CONFIGURATION, "toml"))
    assert shown(text) == expected_in_a_sample()
    (tmp_path / "syncd.toml").write_text(text, encoding="utf-8")
    (tmp_path / "formats.toml").write_bytes((ROOT / "config" / "formats.toml").read_bytes())
    (tmp_path / "my-formats.toml").write_text("")
    (tmp_path / "postgresql.password").write_text("x")
    (tmp_path / "postgresql.password").chmod(0o600)
    shutil.copy(certifi.where(), tmp_path / "lao-wang.pem")
    (tmp_path / "products.csv").write_text(blocks(CONFIGURATION, "csv")[0], encoding="utf-8")
    assert daemon.check(tmp_path / "syncd.toml") == []


def test_what_needs_a_restart_is_as_documented(tmp_path: Path) -> None:
    """Change everything there is: `diff` names what the last section of the document names."""
    (tmp_path / "syncd.toml").write_text('[daemon]\nlisten = "127.0.0.1:1"\n', encoding="utf-8")
    old = config.load(tmp_path / "syncd.toml")
    (tmp_path / "syncd.toml").write_text("".join(blocks(CONFIGURATION, "toml")), encoding="utf-8")
    (tmp_path / "products.csv").write_text(blocks(CONFIGURATION, "csv")[0], encoding="utf-8")
    (tmp_path / "postgresql.password").write_text("x")
    (tmp_path / "postgresql.password").chmod(0o600)
    new = config.load(tmp_path / "syncd.toml")
    needs = {path for path in config.diff(old, new) if path.startswith("daemon.")}
    last = CONFIGURATION.rpartition("in `[daemon]` the settings")[2]
    named = {f"daemon.{name}" for name in re.findall(r"`(\w+)`", last)}
    assert needs == named


# --- the guide for authors of adapters --------------------------------------------------------------------------------

GUIDE = (ROOT / "adapters" / "README.md").read_text(encoding="utf-8")


def block_with(language: str, text: str) -> str:
    """The guide's one block of a language that holds this text."""
    (found,) = [block for block in blocks(GUIDE, language) if text in block]
    return found


@pytest.fixture
def drop_in(tmp_path: Path) -> Path:
    """A folder with what the guide tells its reader to write: both adapters, their examples, the test file."""
    folder = tmp_path / "adapters"
    folder.mkdir(mode=0o755)
    for name, text in {
        "yunka.py": block_with("python", "class Yunka(Adapter)"),
        "yunka.examples.toml": block_with("toml", "[order]"),
        "test_yunka.py": block_with("python", "def test_it_holds"),
        "spool.py": block_with("python", "class Spool(Adapter)"),
        "spool.examples.toml": block_with("toml", "[feed.files]"),
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o644)
    return folder


@pytest.mark.parametrize("name", ["yunka", "spool"])
def test_the_guides_examples_are_safe(drop_in: Path, name: str) -> None:
    results = list(examined(drop_in / f"{name}.py", up_to="silver"))
    assert [(one.check.name, one.findings, one.reason) for one in results if one.state in {"failed", "blocked"}] == []
    assert tier_of(results) == "silver"
    assert sum(one.state == "passed" for one in results) >= 14


def test_the_guides_order_supplier_is_short(drop_in: Path) -> None:
    """Under 60 lines, without blank ones, the imports and the docstring of the file."""
    tree = ast.parse((drop_in / "yunka.py").read_text(encoding="utf-8"))
    body = [node for node in tree.body[1:] if not isinstance(node, ast.Import | ast.ImportFrom)]
    lines = {line for node in body for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    text = (drop_in / "yunka.py").read_text(encoding="utf-8").splitlines()
    assert 40 <= sum(bool(text[line - 1].strip()) for line in lines) <= 60


@pytest.mark.parametrize(
    ("name", "right", "wrong", "seen_by"),
    [
        ("spool", "seal(source, target)  #", "target.write(source.read())  #", "no-copy-is-left-in-the-clear"),
        (
            "spool",
            "return self.path.exists() and _stamp(self.path) == self.stamp",
            "return True",
            "a-change-is-noticed",
        ),
        ("spool", "mkdir(mode=0o700, exist_ok=True)", "mkdir(mode=0o700)", "finish-can-be-repeated"),
        ("yunka", 'if status in {"partial", "completed"} else []', "", "a-refunded-order-has-no-keys"),
        ("yunka", ", unlimited=-1)", ")", "the-listing-is-as-documented"),
        ("yunka", 'card["pin"]}', 'card["pin"].strip()}', "keys-arrive-as-they-were-sent"),
    ],
)
def test_negative_control_the_kit_sees_the_guides_common_mistakes(
    drop_in: Path, name: str, right: str, wrong: str, seen_by: str
) -> None:
    path = drop_in / f"{name}.py"
    text = path.read_text(encoding="utf-8")
    assert right in text
    path.write_text(text.replace(right, wrong), encoding="utf-8")
    assert seen_by in {one.check.name for one in examined(path, up_to="silver") if one.state == "failed"}


def test_the_guides_test_file_runs(drop_in: Path) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_yunka.py"]
        return subprocess.run(command, cwd=drop_in, capture_output=True, text=True, check=False, timeout=120)

    done = run()
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 30
    path = drop_in / "yunka.py"
    path.write_text(path.read_text(encoding="utf-8").replace(", unlimited=-1)", ")"), encoding="utf-8")
    assert run().returncode == 1


def test_the_guides_configuration_uses_it(drop_in: Path, tmp_path: Path) -> None:
    (tmp_path / "yunka.key").write_text("a-key")
    (tmp_path / "yunka.key").chmod(0o600)
    text = block_with("toml", "[suppliers.yunka]").replace("/etc/syncd/yunka.key", str(tmp_path / "yunka.key"))
    file = tmp_path / "syncd.toml"
    file.write_text(f'[daemon]\nadapters = ["{drop_in}"]\n{text}', encoding="utf-8")
    assert daemon.check(file) == []
    # As the guide says, a file that others can write is refused: they could read every key.
    (drop_in / "yunka.py").chmod(0o666)
    assert "could be written by others" in str(daemon.check(file))


def test_every_toml_block_of_the_guide_is_of_a_known_form() -> None:
    for block in blocks(GUIDE, "toml"):
        if "[suppliers." not in block:
            examples.parse(tomllib.loads(block))
    with pytest.raises(ConfigError, match="did you mean request"):  # negative control
        examples.parse(tomllib.loads(block_with("toml", "[order]").replace("request = ", "reqest = ")))


def test_the_guide_names_every_part_of_the_examples() -> None:
    section = GUIDE.partition("\n## Examples")[2].partition("\n## ")[0]
    models = [getattr(examples, name) for name in ("Exchange", "Situation", "Expect", "Order", "Signature", "Gives")]
    for model in [*models, examples.WebhookExample, examples.Feed, examples.ExpectedKey]:
        for name in model.model_fields:
            assert re.search(rf"\b{name}\b", section), (model.__name__, name)


def test_the_guide_names_all_that_an_adapter_is_given() -> None:
    for name in (field.name for field in dataclasses.fields(Pull)):
        assert re.search(rf"^\| `{name}(\(\w*\))?` \|", GUIDE, re.MULTILINE), name
    for name in ("product", "label", "media", "size", "open()", "unchanged()", "finish(report, seal)"):
        assert f"\n| `{name}` |" in GUIDE, name
    for verb in VERBS:
        assert re.search(rf"`{verb}\b", GUIDE), verb
    for name in examples.ERRORS:
        assert f"`{name}" in GUIDE, name


def test_every_bundled_adapter_has_its_page_and_it_is_in_step() -> None:
    names = {one.name for one in registry.catalogue([])}
    assert {path.stem for path in (ROOT / "docs" / "adapters").glob("*.md")} == names
    for name in names:
        place = registry.find(name, [])
        wanted = page.page(Kit(place), list(examined(place)))
        assert (ROOT / "docs" / "adapters" / f"{name}.md").read_text(encoding="utf-8") == wanted, (
            f"syncd adapter docs {name}"
        )


# --- operations: metrics, messages, reasons ---------------------------------------------------------------------------

OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SOURCES = [*(ROOT / "syncd").rglob("*.py"), *(ROOT / "adapters").glob("*.py")]


def exported() -> dict[str, str]:
    """Name → kind of each metric of ours, as Prometheus reads it."""
    metrics = Metrics("1")
    metrics.levels = Levels
    found = re.findall(r"^# TYPE (syncd_\w+) (\w+)$", metrics.render().decode(), re.MULTILINE)
    return dict(found)


def metrics_named(text: str) -> set[str]:
    """Every metric that a text names; a histogram's series count as the histogram."""
    kinds = exported()
    found = set()
    for name in re.findall(r"\bsyncd_[a-z_]+\b", text):
        whole = re.sub(r"_(bucket|sum|count)$", "", name)
        found.add(whole if kinds.get(whole) == "histogram" else name)
    return found


def metrics_listed(text: str) -> set[str]:
    return set(re.findall(r"^\| `(syncd_\w+)` \|", text, re.MULTILINE))


def test_every_metric_is_listed_and_every_metric_that_is_named_exists() -> None:
    assert metrics_listed(OPERATIONS) == set(exported())
    for path in DOCUMENTS:
        assert metrics_named(path.read_text(encoding="utf-8")) <= set(exported()), path


def test_negative_control_a_lie_about_a_metric_is_found() -> None:
    assert len(exported()) > 25
    assert metrics_listed(OPERATIONS.replace("| `syncd_wal_bytes` |", "| wal_bytes |")) != set(exported())
    assert not metrics_named("rate(syncd_delivery_total[5m])") <= set(exported())
    assert not metrics_named("syncd_wal_bytes_bucket") <= set(exported())  # no histogram
    assert metrics_named("syncd_delivery_seconds_bucket") == {"syncd_delivery_seconds"}


def test_the_labels_of_every_metric_are_as_documented() -> None:
    """As the objects have them: a metric without a sample does not show its labels in an exposition."""
    labels = {}
    for collector in Metrics("1")._registry._collector_to_names:
        if hasattr(collector, "_labelnames"):  # not those that are read at the scrape
            (family,) = collector.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels[name] = collector._labelnames
    rows = dict(re.findall(r"^\| `(syncd_\w+)` \|([^|]*)\|", OPERATIONS, re.MULTILINE))
    checked = 0
    for name, documented_labels in rows.items():
        if name in labels:
            assert tuple(filter(None, documented_labels.strip().split(", "))) == tuple(labels[name]), name
            checked += 1
    assert checked >= 25


def said_by_the_code() -> str:
    """Every text in the sources, with … where a value is put in; one a line."""
    texts = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                texts.append("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def messages_of(text: str) -> list[str]:
    """What the runbook's tables quote."""
    return re.findall(r'^\| "([^"]+)" \|', text, re.MULTILINE)


PYTHONS_OWN = {"PermissionError: Permission denied"}


def test_every_message_in_the_runbook_is_one_that_the_code_says() -> None:
    messages = messages_of(OPERATIONS)
    assert len(messages) >= 15
    said = said_by_the_code()
    assert [message for message in messages if message not in said and message not in PYTHONS_OWN] == []


def test_negative_control_a_message_that_nobody_says_is_found() -> None:
    assert messages_of('| "the vault is on fire" | Run. |') == ["the vault is on fire"]
    assert "the vault is on fire" not in said_by_the_code()


def test_every_error_code_and_log_event_in_the_runbook_exists() -> None:
    codes = {kind.code for kind in every_error(SyncdError)}
    section = OPERATIONS.partition("### The shop is refused")[2].partition("###")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert len(named) >= 6
    assert named <= codes
    said = said_by_the_code().splitlines()
    for event in ("reload_refused", "restart_needed", "unit_failed", "checkpoint_failed", "sync_failed"):
        assert f"`{event}`" in OPERATIONS
        assert event in said


def every_error(kind: type[SyncdError]) -> Iterator[type[SyncdError]]:
    yield kind
    for inner in kind.__subclasses__():
        yield from every_error(inner)


def test_every_reason_of_quarantine_has_its_line() -> None:
    reasons = {HELD, UNANSWERED, COUNT, LATE, OVER, "duplicate", "respelled"}
    for path in (ROOT / "syncd" / "inventory" / "formats").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refusal" and node.args:
                reasons |= {part.value for part in words_of(node.args[0])}
    assert len(reasons) >= 10
    section = OPERATIONS.partition("## Quarantine")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == reasons


def words_of(node: ast.expr) -> list[Any]:
    """The constants that an argument may be: itself, or either branch of a condition."""
    if isinstance(node, ast.IfExp):
        return words_of(node.body) + words_of(node.orelse)
    return [node] if isinstance(node, ast.Constant) else []


def test_exit_codes_are_as_documented() -> None:
    rows = set(re.findall(r"^\| (\d+) \|", OPERATIONS, re.MULTILINE))
    assert rows == {"0", "1", "2", str(EXIT_UNREACHABLE), str(EXIT_CONFIG)}


def test_the_kek_of_the_installation_guide_is_one_that_the_daemon_reads() -> None:
    (command,) = re.findall(r"^(head .*?) \| systemd-creds encrypt", OPERATIONS, re.MULTILINE)
    made = subprocess.run(["sh", "-c", command], capture_output=True, check=True, timeout=10).stdout
    assert parse_kek(made, "the guide").id
    with pytest.raises(KekError):  # negative control: the bytes as they are would be refused at the first start
        parse_kek(subprocess.run(command.partition(" |")[0].split(), capture_output=True, check=True).stdout, "here")


def test_links_within_a_document_lead_somewhere() -> None:
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        anchors = {
            re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        } | set(re.findall(r'<a id="(\w+)">', text))
        assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors, path


def test_files_that_the_documents_name_are_there() -> None:
    for path in DOCUMENTS:
        for name in re.findall(r"`((?:docs|adapters|config)/[\w./-]+)`", path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), (path, name)


# --- commands ---------------------------------------------------------------------------------------------------------

AT_COMMAND = re.compile(
    r"(?:^|[|;&(])\s*(?:\w+=\S+ )*(?:sudo (?:-u \w+ )?)?"  # where a command begins, and what may stand before it
    r"(?:(?:[\w./]*/)?syncd|with_kek)(?=\s)(.*?)(?=$|[|;&#)>])"
)


def commands_in(text: str) -> Iterator[list[str]]:
    """The words after `syncd`, of every command in code blocks and in backticks."""
    fenced = [
        line
        for language in ("", "sh")
        for block in blocks(text, language)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    for line in fenced + inline:
        for found in AT_COMMAND.findall(line):
            words = shlex.split(found)
            if words and not words[0].startswith("{"):
                yield words


def wrong_with(words: list[str]) -> str:
    """What is wrong with a command, by the program's own tree; empty if it exists."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        inner = command.commands.get(rest[0])
        if inner is None:
            return f"there is no command {rest[0]!r}"
        command = inner
        rest.pop(0)
    options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in options]
    if unknown:
        return f"there is no option {unknown[0]}"
    flags = {name for option in command.params if getattr(option, "is_flag", False) for name in option.opts}
    positional: list[str] = []
    takes_value = False
    for word in rest:
        if takes_value:
            takes_value = False
        elif word.startswith("--"):
            takes_value = "=" not in word and word not in flags | {"--help"}
        else:
            positional.append(word)
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    if positional and len(positional) > len(arguments) and not any(one.nargs < 0 for one in arguments):
        return f"it takes no {positional[-1]!r}"
    return ""


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_in_a_document_exists(path: Path) -> None:
    found = list(commands_in(path.read_text(encoding="utf-8")))
    assert [f"syncd {' '.join(words)}: {wrong}" for words in found if (wrong := wrong_with(words))] == []


def test_the_commands_are_found_at_all() -> None:
    found = {" ".join(words[:3]) for words in commands_in(OPERATIONS)}
    assert len(found) >= 25
    assert {"vault kek export", "audit verify", "db upgrade", "backup /var/backups/syncd", "recover"} <= found
    readme = {" ".join(words) for words in commands_in((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert {"status", "sync", "keys import keys.csv --product office-licence"} <= readme


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Run `syncd recovr`.", "no command 'recovr'"),
        ("```sh\nsyncd keys qarantine list\n```", "no command 'qarantine'"),
        ("```sh\nsudo -u syncd syncd backup --fast FILE   # now\n```", "no option --fast"),
        ("```sh\nx && .venv/bin/syncd status now\n```", "takes no 'now'"),
        ("```sh\nwith_kek audit verfy\n```", "no command 'verfy'"),
        ("`syncd vault kek\nimprot COPY`", "no command 'improt'"),
    ],
)
def test_negative_control_a_command_that_does_not_exist_is_found(text: str, wrong: str) -> None:
    (words,) = commands_in(text)
    assert wrong in wrong_with(words)


def test_the_documents_speak_of_the_project_alone() -> None:
    """No path of whoever wrote them, no number of a ticket."""
    for path in [*DOCUMENTS, ROOT / "config" / "syncd.toml"]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/work\b|/tmp\b|(?<![\w&])#\d+\b|pypi\.org|\bTODO\b", text), path
