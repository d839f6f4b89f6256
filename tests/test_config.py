"""A configuration is taken whole or refused whole: every problem at once, with its file, its path and what to do.

And no secret is ever said back, wherever somebody wrote it.
"""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from syncd import config, daemon
from syncd.config import SecretRef
from syncd.errors import EXIT_CONFIG, ConfigError, Problem, StartError
from syncd.model import Money, SecretText

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "config" / "syncd.toml"
CANARY = "CANARY-hunter2-7Q4Z9"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd sets must come from the test, not from whoever runs it."""
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a configuration, and files beside it by their relative names; returns the main file."""

    def writing(text: str, **more: str) -> Path:
        file = tmp_path / "syncd.toml"
        file.write_text(text, encoding="utf-8")
        (tmp_path / "conf.d").mkdir(exist_ok=True)
        for name, content in more.items():
            (tmp_path / "conf.d" / f"{name}.toml").write_text(content, encoding="utf-8")
        return file

    return writing


def problems(file: Path) -> list[Problem]:
    with pytest.raises(ConfigError) as refused:
        config.load(file)
    assert refused.value.exit_code == EXIT_CONFIG == 78
    return refused.value.problems


def only(file: Path) -> Problem:
    (found,) = problems(file)
    return found


# --- every problem at once --------------------------------------------------------------------------------------------


def test_broken_things_in_several_files_are_all_named_with_file_path_and_fix(write: Any, tmp_path: Path) -> None:
    file = write(
        """
        [daemon]
        listen = "127.0.0.1"
        log_levle = "debug"
        [sync]
        interval = 600
        [products.steam]
        price = "9.90"
        """,
        a="""
        [suppliers.wang]
        interval = "0s"
        timezone = "Asia/Shanghia"
        """,
        b="""
        [products."not a sku"]
        [shops.operator]
        [store]
        url = "mysql://localhost/x"
        """,
    )
    main, a, b = str(file), str(tmp_path / "conf.d" / "a.toml"), str(tmp_path / "conf.d" / "b.toml")
    found = problems(file)
    assert {(p.file, p.path) for p in found} == {
        (main, "daemon.listen"),
        (main, "daemon.log_levle"),
        (main, "sync.interval"),
        (main, "products.steam.price"),
        (a, "suppliers.wang.adapter"),
        (a, "suppliers.wang.timezone"),
        (b, "products.not a sku.sku"),
        # What only a look at the whole finds is named in the same go:
        (b, "shops.operator"),
        (b, "store.url"),
    }
    for problem in found:
        assert problem.message, problem
        assert problem.fix, problem
    # Each once, and each in the error's own text: it is what the daemon logs when it refuses a reload.
    assert len(found) == len(set(found))
    with pytest.raises(ConfigError) as refused:
        config.load(file)
    assert str(refused.value).splitlines() == [str(problem) for problem in found]


def test_negative_control_the_same_without_the_mistakes_loads(write: Any) -> None:
    file = write(
        """
        [daemon]
        listen = "127.0.0.1:1"
        [sync]
        interval = "600s"
        [products.steam]
        price = "9.90 CNY"
        """,
        a='[suppliers.wang]\nadapter = "feed"\ntimezone = "Asia/Shanghai"\n',
        b='[products.a-sku]\n[shops.mine]\n[store]\nurl = "postgresql://localhost/x"\n',
    )
    loaded = config.load(file)
    assert set(loaded.products) == {"steam", "a-sku"}
    assert set(loaded.shops) == {"mine"}


def test_a_broken_file_does_not_hide_what_is_wrong_in_the_others(write: Any, tmp_path: Path) -> None:
    file = write('[sync]\nlease = "soon"\n', a="[daemon\n", b='[sync]\njitter = "never"\n')
    assert {(Path(p.file).name, p.path) for p in problems(file)} == {
        ("a.toml", ""),
        ("syncd.toml", "sync.lease"),
        ("b.toml", "sync.jitter"),
    }


def test_a_syntax_error_names_its_line(write: Any) -> None:
    found = only(write('[daemon]\nlisten = "127.0.0.1:8750"\nlog_level = info\n'))
    assert "line 3" in found.message
    assert "TOML" in found.message


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe[daemon]", "not UTF-8"), (b"n = " + b"9" * 5000, "out of bounds")],
)
def test_a_file_that_is_no_text_or_out_of_bounds_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "syncd.toml"
    file.write_bytes(content)
    assert said in only(file).message


def test_a_file_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    assert only(tmp_path / "none.toml").fix == "make one with: syncd init"


def test_a_byte_order_mark_of_a_windows_editor_is_no_problem(tmp_path: Path) -> None:
    file = tmp_path / "syncd.toml"
    file.write_bytes(b"\xef\xbb\xbf[daemon]\nlog_level = 'debug'\n")
    assert config.load(file).daemon.log_level == "debug"


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "fix"),
    [
        ("[deamon]\n", "deamon", "did you mean daemon?"),
        ("[daemon]\nlogg_level = 'info'\n", "daemon.logg_level", "did you mean log_level?"),
        ("[products.x]\nformatt = 'auto'\n", "products.x.formatt", "did you mean format?"),
        ("[shops.x]\nunix_user = ['me']\n", "shops.x.unix_user", "did you mean unix_users?"),
        ("[vault]\nkek = { files = 'x' }\n", "vault.kek.files", "did you mean file?"),
        (
            "[sync]\nqqq = 1\n",
            "sync.qqq",
            "known here: full_every, interval, jitter, lease, max_drop, max_jump, max_jumps, overlap, settle",
        ),
    ],
)
def test_an_unknown_setting_comes_with_a_suggestion(write: Any, text: str, path: str, fix: str) -> None:
    found = next(p for p in problems(write(text)) if p.path == path)
    assert (found.message, found.fix) == ("there is no such setting", fix)


@pytest.mark.parametrize(("text", "path"), [("file = 'x'\n", "file"), ("[products.x]\nsku = 'y'\n", "products.x.sku")])
def test_what_the_loader_fills_in_itself_is_no_setting(write: Any, text: str, path: str) -> None:
    # Taken silently, it would be believed to mean something.
    assert only(write(text)).path == path


@pytest.mark.parametrize("table", ["suppliers", "shops"])
@pytest.mark.parametrize("name", ['"Upper"', '"a b"', '"a\\n"', '""', f'"{"x" * 33}"'])
def test_names_that_would_not_do_in_a_path_or_a_label_are_refused(write: Any, table: str, name: str) -> None:
    more = '\nadapter = "feed"' if table == "suppliers" else ""
    assert "characters" in only(write(f"[{table}.{name}]{more}\n")).message


def test_a_value_that_stands_in_two_files_names_both(write: Any, tmp_path: Path) -> None:
    file = write('[sync]\ninterval = "10m"\n', a='[sync]\ninterval = "5m"\njitter = "1s"\n')
    found = only(file)
    assert (found.file, found.path) == (str(tmp_path / "conf.d" / "a.toml"), "sync.interval")
    assert str(file) in found.message


def test_a_table_may_be_spread_over_files(write: Any) -> None:
    loaded = config.load(write('[products.a]\ntitle = "A"\n', x='[products.a]\nformat = "auto"\n[products.b]\n'))
    assert (loaded.products["a"].title, set(loaded.products)) == ("A", {"a", "b"})
    # A problem of the whole is told at the file in which its path was written.
    assert Path(loaded.problem("products.b.format", "").file).name == "x.toml"


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        ("[sync]\ninterval = 600\n", "sync.interval", "needs a unit"),
        ("[sync]\ninterval = '10'\n", "sync.interval", "not a duration"),
        ("[sync]\ninterval = '-1s'\n", "sync.interval", "not a duration"),
        ("[sync]\ninterval = true\n", "sync.interval", "not a duration"),
        ("[sync]\ninterval = '0s'\n", "sync.interval", "shorter than 1s"),
        ("[sync]\nlease = '0s'\n", "sync.lease", "shorter than 1s"),
        ("[products.x]\nprice = 9.9\n", "products.x.price", "currency"),
        ("[products.x]\nprice = '9.90'\n", "products.x.price", "not an amount"),
        ("[products.x]\nprice = '9,90 CNY'\n", "products.x.price", "not an amount"),
        ("[products.x]\ntitle = 5\n", "products.x.title", "string"),
        ("[daemon]\nlisten = ':8750'\n", "daemon.listen", "not HOST:PORT"),
        ("[daemon]\nlisten = '127.0.0.1:65536'\n", "daemon.listen", "not HOST:PORT"),
        ("[daemon]\nlisten = 8750\n", "daemon.listen", "not HOST:PORT"),
        ("[daemon]\nmax_body = 65536\n", "daemon.max_body", "not a size"),
        ("[daemon]\nmax_body = '64kb'\n", "daemon.max_body", "not a size"),
        ("[daemon]\nlog_level = 'loud'\n", "daemon.log_level", "debug"),
        ("[daemon]\nstate_dir = ''\n", "daemon.state_dir", "not a path"),
        ("[daemon]\nformats = 'formats.toml'\n", "daemon.formats", "list"),
        ("[suppliers.x]\nadapter = '../x'\n", "suppliers.x.adapter", "characters"),
        ("[suppliers.x]\nadapter = 'feed'\nenabled = 'yes'\n", "suppliers.x.enabled", "boolean"),
        ("[suppliers.x]\nadapter = 'feed'\ntimezone = 'CST8'\n", "suppliers.x.timezone", "IANA"),
        ("[suppliers.x]\nadapter = 'feed'\ninterval = '500ms'\n", "suppliers.x.interval", "shorter than 1s"),
        ("[suppliers.x]\nadapter = 'feed'\nrate = 5\n", "suppliers.x.rate", "not a rate"),
        ("[suppliers.x]\nadapter = 'feed'\nrate = '0/s'\n", "suppliers.x.rate", "not a rate"),
        ("[suppliers.x]\nadapter = 'feed'\nrate = '5/d'\n", "suppliers.x.rate", "not a rate"),
        ("[suppliers.x]\nadapter = 'feed'\nconcurrency = 0\n", "suppliers.x.concurrency", "greater"),
        ("[suppliers.x]\nadapter = 'feed'\ntimeout = '0s'\n", "suppliers.x.timeout", "no time at all"),
        ("[suppliers.x]\nadapter = 'feed'\nproxy = 'socks5://h:1'\n", "suppliers.x.proxy", "not a proxy"),
        ("[shops]\nmine = 'me'\n", "shops.mine", "dictionary"),
        ("sync = 3\n", "sync", "dictionary"),
        ("[store]\nurl = 'sqlite://x'\n", "store.url", "not a database"),
        ("[products.x]\nmin_quantity = 0\n", "products.x.min_quantity", "greater than or equal to 1"),
        ("[products.x]\nmax_quantity = 1001\n", "products.x.max_quantity", "less than or equal to 1000"),
        ("[products.x]\nmin_quantity = 5\nmax_quantity = 4\n", "products.x.min_quantity", "more than max_quantity"),
        ("[products.x]\nmax_quantity = '4'\n", "products.x.max_quantity", "integer"),
        ("[products.x]\nfields = 'apart'\n", "products.x.fields", "'merge' or 'split'"),
        ("[products.x]\nreusable = true\n", "products.x.reusable", "循环卡密"),
        ("[reservations]\nttl = '0s'\n", "reservations.ttl", "no time at all"),
        ("[reservations]\nttl = '2h'\n", "reservations.ttl", "less than or equal to 3600"),
        ("[reservations]\nper_product = 0\n", "reservations.per_product", "greater than 0"),
        ("[deliveries]\nwait = '1m'\n", "deliveries.wait", "less than or equal to 30"),
        ("[deliveries]\nmax_replacements = -1\n", "deliveries.max_replacements", "greater than or equal to 0"),
        ("[products.x]\nallow_prose = true\nformat = 'steam'\n", "products.x.allow_prose", "fits no format"),
    ],
)
def test_a_wrong_value_is_named(write: Any, text: str, path: str, said: str) -> None:
    found = only(write(text))
    assert found.path == path
    assert said in found.message
    assert found.fix


@pytest.mark.parametrize(
    ("written", "seconds"), [("250ms", 0.25), ("1.5s", 1.5), ("10m", 600), ("2h", 7200), ("7d", 604800), ("1w", 604800)]
)
def test_durations_are_seconds(write: Any, written: str, seconds: float) -> None:
    loaded = config.load(write(f"[sync]\njitter = '{written}'\n"))
    assert loaded.sync.jitter == seconds


@pytest.mark.parametrize(
    ("written", "rate"), [("5/s", (5, 1)), ("60/m", (60, 60)), ("500/h", (500, 3600)), (None, (5, 1))]
)
def test_rates_are_requests_in_seconds(write: Any, written: str | None, rate: tuple[int, float]) -> None:
    line = f"rate = '{written}'\n" if written else ""
    assert config.load(write(f"[suppliers.x]\nadapter = 'feed'\n{line}")).suppliers["x"].rate == rate


def test_goods_that_are_text_are_read_as_text(write: Any) -> None:
    loaded = config.load(write("[products.x]\nallow_prose = true\n[products.y]\nformat = 'steam'\n[products.z]\n"))
    assert [loaded.products[sku].reads_as for sku in "xyz"] == ["prose", "steam", "auto"]
    assert loaded.products["z"].takes == range(1, 1001)


def test_the_other_values_as_they_are_read(write: Any) -> None:
    loaded = config.load(
        write('[daemon]\nlisten = "[::1]:0"\nmax_body = "1 MiB"\n[products.x]\nprice = "0.10 USD"\nmin_life = "1d"\n')
    )
    assert loaded.daemon.listen == ("::1", 0)
    assert loaded.daemon.max_body == 1 << 20
    assert loaded.products["x"].price == Money(Decimal("0.10"), "USD")  # exact, not a float
    assert loaded.products["x"].min_life == 86400


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_a_reference_gives_the_secret_of_a_credential_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kek").write_text(f"{CANARY}\n")
    (tmp_path / "kek").chmod(0o600)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("SYNCD_TEST_SECRET", CANARY)
    for ref, where in (
        (SecretRef(credential="kek"), "credential 'kek'"),
        (SecretRef(file=tmp_path / "kek"), str(tmp_path / "kek")),
        (SecretRef(env="SYNCD_TEST_SECRET"), "SYNCD_TEST_SECRET"),
    ):
        secret = ref.secret()
        assert secret == SecretText(CANARY)  # without the line end
        assert where in ref.where
        for shown in (repr(secret), str(secret), f"{secret}", repr(ref), ref.where):
            assert CANARY not in shown


def test_a_reference_to_nothing_is_none_and_says_where(tmp_path: Path) -> None:
    for ref in (SecretRef(credential="kek"), SecretRef(file=tmp_path / "none"), SecretRef(env="SYNCD_TEST_NONE")):
        assert ref.read() is None
        with pytest.raises(StartError) as refused:
            ref.secret()
        assert ref.where in str(refused.value)


def test_S4_a_file_that_everybody_can_read_is_refused_but_not_what_systemd_hands_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kek"
    path.write_text(CANARY)
    path.chmod(0o604)
    with pytest.raises(StartError, match="every user") as refused:
        SecretRef(file=path).read()
    assert refused.value.hint == f"chmod 600 {path}"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert SecretRef(credential="kek").read() == SecretRef(file=path).read() == CANARY.encode()
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    path.chmod(0o640)
    assert SecretRef(file=path).read() == CANARY.encode()


def test_a_secret_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="directory"):
        SecretRef(file=tmp_path).read()


@pytest.mark.parametrize("text", ["kek = {}", "kek = { file = 'a', env = 'B' }"])
def test_a_secret_lies_in_exactly_one_place(write: Any, text: str) -> None:
    found = only(write(f"[vault]\n{text}\n"))
    assert (found.path, found.fix) == ("vault.kek", "name one of credential, file, env")


def test_a_database_password_that_is_not_there_is_a_problem(write: Any) -> None:
    found = only(write("[store]\nurl = 'postgresql://u@h/d'\npassword = { file = 'none' }\n"))
    assert (found.path, found.fix) == ("store.password", "put the password there")


# Whatever somebody gets wrong, the text beside it may be a secret: none of these may say it back.
SPILLS = {
    "as a plain text": f"[vault]\nkek = '{CANARY}'\n",
    "as a password": f"[store]\npassword = '{CANARY}'\n",
    "in a URL": f"[store]\nurl = 'postgresql://me:{CANARY}@h/d'\n",
    "in a URL, with a slash in it": f"[store]\nurl = 'postgresql://me:{CANARY}/x@h/d'\n",
    "in a URL's query": f"[store]\nurl = 'postgresql://me@h/d?password={CANARY}'\n",
    "in a URL of another kind": f"[store]\nurl = 'mysql://me:{CANARY}@h/d'\n",
    "under an unknown name": f"[vault]\nkek = {{ value = '{CANARY}' }}\n",
    "of the wrong type": f"[vault]\nkek = {{ env = ['{CANARY}'] }}\n",
    "in an address": f"[daemon]\nlisten = '{CANARY}'\n",
    "in a duration": f"[sync]\ninterval = '{CANARY}'\n",
    "in a price": f"[products.x]\nprice = '{CANARY}'\n",
    "in a proxy": f"[suppliers.x]\nadapter = 'feed'\nproxy = 'http://me:{CANARY}@h:1'\n",
    "in a switch": f"[suppliers.x]\nadapter = 'feed'\nenabled = '{CANARY}'\n",
    "in a line that is no TOML": f"[vault]\nkek = {CANARY}\n",
    "in a text that does not end": f"[vault]\nkek = '{CANARY}\n",
    "twice": f"[vault]\nkek = '{CANARY}'\nkek = '{CANARY}'\n",
}


@pytest.mark.parametrize("text", SPILLS.values(), ids=SPILLS.keys())
def test_a_problem_never_says_a_value_back(write: Any, text: str) -> None:
    found = problems(write(text))
    for problem in found:
        assert CANARY not in f"{problem!r} {problem}"


def test_a_secret_written_down_says_what_to_do_instead(write: Any) -> None:
    found = only(write(SPILLS["as a plain text"]))
    assert found.message == "a secret is never written into the configuration"
    assert found.fix.startswith("kek = { credential")


def test_negative_control_the_loaded_text_does_reach_a_repr_where_it_is_no_secret(write: Any) -> None:
    # Otherwise the absence above would prove nothing.
    assert CANARY in repr(config.load(write(f"[products.x]\ntitle = '{CANARY}'\n")))


# --- defaults, paths --------------------------------------------------------------------------------------------------


def test_an_empty_file_is_a_whole_configuration(write: Any, tmp_path: Path) -> None:
    loaded = config.load(write(""))
    var = tmp_path.parent / "var"
    assert loaded.daemon.state_dir == var
    assert loaded.daemon.listen == ("127.0.0.1", 8750)
    assert loaded.daemon.api_socket == var / "api.sock"
    assert loaded.daemon.operator_socket == var / "operator.sock"
    assert loaded.daemon.max_body == 64 * 1024
    assert loaded.daemon.formats == [ROOT / "config" / "formats.toml"]  # the bundled one
    assert loaded.store.url == f"sqlite:///{var}/syncd.db"
    assert loaded.vault.kek.file == var / "kek"
    assert (loaded.sync.interval, loaded.sync.jitter, loaded.sync.lease, loaded.sync.settle) == (600, 30, 60, 2)
    assert loaded.suppliers == loaded.products == loaded.shops == {}


def test_under_systemd_the_folders_are_systemds(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/syncd:/var/lib/more")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/syncd")
    loaded = config.load(write(""))
    assert loaded.daemon.state_dir == Path("/var/lib/syncd")
    assert loaded.daemon.operator_socket == Path("/run/syncd/operator.sock")
    assert loaded.store.url == "sqlite:////var/lib/syncd/syncd.db"


def test_paths_are_relative_to_the_file_not_to_where_one_stands(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(
        '[daemon]\nstate_dir = "data"\nadapters = ["mine", "~/theirs"]\nformats = ["f.toml"]\n'
        '[store]\nurl = "sqlite:///data/other.db"\n[vault]\nkek = { file = "../kek" }\n'
    )
    monkeypatch.chdir("/")
    loaded = config.load(Path(os.path.relpath(file, "/")))
    assert loaded.daemon.state_dir == tmp_path / "data"
    assert loaded.daemon.adapters == [tmp_path / "mine", Path("~/theirs").expanduser()]
    assert loaded.daemon.formats == [tmp_path / "f.toml"]
    assert loaded.store.url == f"sqlite:///{tmp_path}/data/other.db"
    assert loaded.vault.kek.file == tmp_path.parent / "kek"


def test_formats_beside_the_file_win_over_the_bundled_ones(write: Any, tmp_path: Path) -> None:
    (tmp_path / "formats.toml").write_text("")
    assert config.load(write("")).daemon.formats == [tmp_path / "formats.toml"]


def test_a_suppliers_own_times_win_and_its_other_settings_are_the_adapters(write: Any) -> None:
    loaded = config.load(
        write(
            '[sync]\ninterval = "1h"\n[suppliers.a]\nadapter = "feed"\nfolder = "x"\n'
            '[suppliers.b]\nadapter = "feed"\ninterval = "5m"\njitter = "0s"\n'
        )
    )
    assert loaded.interval("a") == (3600, 30)
    assert loaded.interval("b") == (300, 0)
    assert loaded.suppliers["a"].settings == {"folder": "x"}
    assert str(loaded.suppliers["a"].tz) == "Asia/Shanghai"


# --- products as a table ----------------------------------------------------------------------------------------------


def test_products_come_from_a_table_too(write: Any, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("\ufeffsku,title,price,min_life\na,卡密,9.90 CNY,7d\nb,,,\n", encoding="utf-8")
    loaded = config.load(write('[daemon]\nproducts_csv = "p.csv"\n[products.c]\n'))
    assert set(loaded.products) == {"a", "b", "c"}
    assert (loaded.products["a"].title, loaded.products["a"].min_life) == ("卡密", 604800)


def test_a_table_has_numbers_and_switches_as_well(write: Any, tmp_path: Path) -> None:
    rows = 'a,2,5,true,"{code}, with a comma"\nb,x,,,\nc,,,maybe,\n'
    (tmp_path / "p.csv").write_text(f"sku,min_quantity,max_quantity,allow_prose,display\n{rows}")
    settings, found = config.examine(write('[daemon]\nproducts_csv = "p.csv"\n'))
    assert settings
    a = settings.products["a"]
    assert (a.takes, a.allow_prose, a.display) == (range(2, 6), True, "{code}, with a comma")
    assert [p.path for p in found] == ["line 3, min_quantity", "line 4, allow_prose"]


def test_every_bad_row_of_the_table_is_named_with_its_line(write: Any, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("sku,title,price\na,x,9.90\nbad sku,x,\nc,x,\nok,x,1 CNY\nok,x,\n")
    found = problems(write('[daemon]\nproducts_csv = "p.csv"\n[products.c]\n[shops.operator]\n'))
    assert [p.path for p in found if p.file.endswith("p.csv")] == ["line 2, price", "line 3, sku", "line 4", "line 6"]
    assert "shops.operator" in {p.path for p in found}


@pytest.mark.parametrize(
    ("content", "said"), [(b"title\nx\n", "no column sku"), (b"sku,titel\n", "titel"), (b"\xff\xff", "UTF-8")]
)
def test_a_table_that_is_none_is_named(write: Any, tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "p.csv").write_bytes(content)
    assert said in only(write('[daemon]\nproducts_csv = "p.csv"\n')).message


# --- diff -------------------------------------------------------------------------------------------------------------


def test_diff_names_what_needs_a_restart_and_only_that(write: Any) -> None:
    old = config.load(write(""))
    same = config.load(
        write('[sync]\ninterval = "5m"\n[products.x]\n[daemon]\nlog_level = "debug"\nmax_body = "1KiB"\n')
    )
    assert config.diff(old, same) == []
    new = config.load(
        write(
            '[daemon]\nlisten = "127.0.0.1:1"\nsocket_group = "x"\nlog_level = "debug"\n'
            '[store]\nurl = "sqlite:////elsewhere.db"\n[vault]\nkek = { env = "KEK" }\n'
        )
    )
    assert config.diff(old, new) == ["daemon.listen", "daemon.socket_group", "store.url", "vault.kek"]
    assert config.diff(new, new) == []


# --- the sample -------------------------------------------------------------------------------------------------------


def test_the_sample_has_no_problem() -> None:
    assert daemon.check(SAMPLE) == []


@pytest.mark.parametrize(
    ("right", "wrong", "path"),
    [
        ('folder = "../var/feeds"', 'foldr = "../var/feeds"', "suppliers.samples.foldr"),
        ('adapter = "feed"', 'adapter = "fed"', "suppliers.samples.adapter"),
        ('format = "steam"', 'format = "stem"', "products.steam-wallet-50.format"),
        ('# split = "line"', 'split = "lines"', "products.steam-wallet-50.split"),
        ('price = "50.00 CNY"', "price = 50", "products.steam-wallet-50.price"),
        ("[shops.demo]", "[shop.demo]", "shop"),
    ],
)
def test_negative_control_a_mistake_planted_in_the_sample_is_found(
    tmp_path: Path, right: str, wrong: str, path: str
) -> None:
    text = SAMPLE.read_text(encoding="utf-8")
    assert text.count(right) >= 1
    file = tmp_path / "syncd.toml"
    file.write_text(text.replace(right, wrong), encoding="utf-8")
    found = daemon.check(file)
    assert path in {problem.path for problem in found}
    assert all(problem.file == str(file) and problem.fix for problem in found)


# --- offers of products, currencies -----------------------------------------------------------------------------------

OFFERS = '[suppliers.wang]\nadapter = "feed"\n'


@pytest.mark.parametrize(
    ("text", "path", "said", "fix"),
    [
        (
            OFFERS + '[products.a]\noffers = [{ supplier = "wnag", sku = "1" }]\n',
            "products.a.offers",
            "there is no supplier 'wnag'",
            "did you mean wang?",
        ),
        (
            '[products.a]\noffers = [{ supplier = "wang", sku = "1" }]\n',
            "products.a.offers",
            "there is no supplier 'wang'",
            "there are: none",
        ),
        (
            OFFERS + '[products.a]\noffers = [{ supplier = "wang", sku = "1", refrsh = "1m" }]\n',
            "products.a.offers.0.refrsh",
            "there is no such setting",
            "did you mean refresh?",
        ),
        (
            OFFERS + '[products.a]\noffers = "wang:1 wang:1"\n',
            "products.a.offers",
            "an offer stands in it twice",
            "take one of the two out",
        ),
        (
            OFFERS + '[products.a]\noffers = "wang"\n',
            "products.a.offers",
            "these are not offers",
            'write SUPPLIER:SKU, with blanks between, such as "wang:1001 li:S-50"',
        ),
        (
            '[products.a]\non_shortage = "buy"\n',
            "products.a.on_shortage",
            "nobody is named from whom it could be bought",
            'name its offers (syncd products suggest), or write "wait" or "refuse"',
        ),
        (
            '[products.a]\ncache = "popular"\n',
            "products.a.cache",
            "nothing can be bought of it",
            "add offers to the product",
        ),
        (
            OFFERS + '[products.a]\noffers = "wang:1"\ncache = "lots"\n',
            "products.a.cache.mode",
            "it is none of 'popular', 'fixed' or 'none'",
            "name one of them",
        ),
        (
            OFFERS + '[products.a]\noffers = "wang:1"\ncache = "fixed 5"\n',
            "products.a.cache",
            "this is not a cache",
            'write "popular", "popular:0..50", "fixed:20", "fixed:20..50" or "none"',
        ),
        (
            OFFERS + '[products.a]\noffers = "wang:1"\ncache = "fixed"\n',
            "products.a.cache.min",
            "a fixed number is missing",
            "write how many keys to hold: min = 20",
        ),
        (
            OFFERS + '[products.a]\noffers = "wang:1"\ncache = { mode = "popular", min = 201 }\n',
            "products.a.cache.min",
            "it is more than max, which is 200",
            "lower it, or raise max",
        ),
        (
            OFFERS + '[products.a]\noffers = "wang:1"\ncache = { mode = "popular", budget = "5 USD" }\n',
            "products.a.cache.budget",
            "there is no rate for USD",
            "add USD to [currency] rates",
        ),
        (
            '[purchases]\nbudget_day = "100 USD"\n',
            "purchases.budget_day",
            "there is no rate for USD",
            "write it in CNY, or add a rate to [currency]",
        ),
        (
            '[suppliers.wang]\nadapter = "feed"\nmin_balance = "5 EUR"\n',
            "suppliers.wang.min_balance",
            "there is no rate for EUR",
            "write it in CNY, or add a rate to [currency]",
        ),
        (
            '[purchases]\ncover_unknown_after = "10m"\n',
            "purchases.cover_unknown_after",
            "it goes with a budget",
            "set both cover_unknown_after and cover_budget_day, or neither",
        ),
        (
            '[currency]\nrates = { USD = "7.12" }\n',
            "currency.rates_date",
            "it is missing",
            "say of which day the rates are",
        ),
        (
            "[currency]\nrates = { USD = 7.12 }\nrates_date = 2026-11-01\n",
            "currency.rates.USD",
            "this is not a rate",
            'write what one unit costs in the base currency, in quotes, such as "7.12"',
        ),
        (
            '[currency]\nrates = { CNY = "1" }\nrates_date = 2026-11-01\n',
            "currency.rates",
            "this is no currency to convert: CNY",
            "name other currencies than the base by their ISO 4217 codes",
        ),
    ],
)
def test_what_is_wrong_with_offers_and_rates_is_named(write: Any, text: str, path: str, said: str, fix: str) -> None:
    found = only(write(text))
    assert (found.path, found.message, found.fix) == (path, said, fix)


@pytest.mark.parametrize(
    ("cell", "mode", "least", "most"),
    [("popular", "popular", 0, 200), ("popular:1..50", "popular", 1, 50), ("fixed:20", "fixed", 20, 200)],
)
def test_a_cache_may_be_one_cell(write: Any, cell: str, mode: str, least: int, most: int) -> None:
    cache = config.load(write(OFFERS + f'[products.a]\noffers = "wang:1"\ncache = "{cell}"\n')).products["a"].cache
    assert (cache.mode, cache.min, cache.most) == (mode, least, most)


@pytest.mark.parametrize("setting", ["max_drop = 101", "max_drop = -1", "max_jump = 1", "max_jumps = 101"])
def test_limits_of_listings_are_checked(write: Any, setting: str) -> None:
    assert only(write(f"[sync]\n{setting}\n")).path == f"sync.{setting.split(maxsplit=1)[0]}"
    file = write(f'[suppliers.wang]\nadapter = "feed"\n{setting}\n')
    assert only(file).path == f"suppliers.wang.{setting.split(maxsplit=1)[0]}"


def test_a_suppliers_own_limit_goes_before_that_of_all(write: Any) -> None:
    loaded = config.load(write('[sync]\nmax_drop = 30\n[suppliers.wang]\nadapter = "feed"\nmax_jump = 4\n'))
    assert (loaded.of("wang", "max_drop"), loaded.of("wang", "max_jump"), loaded.of("gone", "max_jumps")) == (30, 4, 20)


def test_offers_stand_in_the_table_of_products_too(write: Any, tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("sku,offers,on_shortage\na,wang:1001 wang:S:50,wait\nb,,\nc,li:1,\n")
    file = write(f'[daemon]\nproducts_csv = "products.csv"\n{OFFERS}')
    found = only(file)
    assert (Path(found.file).name, found.message) == ("products.csv", "there is no supplier 'li'")
    (tmp_path / "products.csv").write_text("sku,offers,on_shortage\na,wang:1001 wang:S:50,wait\nb,,\n")
    loaded = config.load(file)
    assert [(one.supplier, one.sku) for one in loaded.products["a"].offers] == [("wang", "1001"), ("wang", "S:50")]
    assert (loaded.products["a"].on_shortage, loaded.products["b"].offers) == ("wait", [])


def test_costs_are_compared_in_the_base_currency(write: Any) -> None:
    text = '[currency]\nbase = "EUR"\nrates = { CNY = "0.125" }\nrates_date = 2026-11-01\n'
    currency = config.load(write(text)).currency
    assert currency.landed(Money(Decimal("10.00"), "CNY")) == Decimal("1.25")
    assert currency.landed(Money(Decimal("10.00"), "EUR")) == Decimal("10.00")
    assert currency.landed(Money(Decimal("10.00"), "USD")) is None
    assert currency.landed(None) is None
