"""Commands that talk to the daemon: what they ask, what they show, how they end when it says no or is not there."""

from __future__ import annotations

import io
import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest

from syncd.cli.configuration import settings
from syncd.cli.products import alike

CANARY = "CANARY-AAAA-BBBB"


def refusal(status: int, code: str, detail: str, hint: str = "", **more: Any) -> tuple[int, dict[str, Any]]:
    return status, {"title": "Refused", "status": status, "code": code, "detail": detail, "hint": hint, **more}


# --- no daemon, a daemon that refuses, one that dies ------------------------------------------------------------------

TALKING = [
    ("status",),
    ("stock",),
    ("sync",),
    ("recover",),
    ("products", "unhold", "steam"),
    ("offers", "list"),
    ("offers", "search", "steam"),
    ("offers", "history", "wang", "1"),
    ("offers", "accept", "wang"),
    ("products", "suggest"),
    ("product", "suggest"),
    ("keys", "quarantine", "list"),
    ("keys", "quarantine", "show", "1"),
    ("keys", "quarantine", "reveal", "1"),
    ("keys", "quarantine", "reread", "--product", "steam"),
    ("keys", "quarantine", "drop", "--all", "--product", "steam", "--why", "replaced"),
    ("keys", "quarantine", "return", "1"),
    ("keys", "quarantine", "complain", "1", "--text", "it is no key"),
    ("keys", "quarantine", "settle", "1", "--taken"),
    ("keys", "held", "release", "--product", "steam"),
    ("explain", "steam"),
    ("replenish",),
    ("replenish", "--dry-run"),
    ("purchases", "list"),
    ("purchases", "show", "REF"),
    ("purchases", "resolve", "REF", "--not-charged"),
    ("purchases", "buy", "steam", "1"),
    ("token", "create", "demo"),
    ("token", "list"),
    ("token", "revoke", "1"),
]


@pytest.mark.parametrize("words", TALKING, ids=" ".join)
def test_K12_without_a_daemon_a_command_says_how_to_start_one(syncd: Any, config: Path, words: tuple[str, ...]) -> None:
    ended = syncd(*words)
    assert ended.code == 75
    assert ended.out == ""
    assert f"no daemon answers on {config.parents[1] / 'var' / 'operator.sock'}" in ended.err
    assert "syncd run" in ended.err


def test_K12_a_socket_that_nobody_listens_on_any_more_is_no_daemon(syncd: Any, config: Path, operator: Any) -> None:
    operator.on("GET", "/v1/status", {})
    assert syncd("status").code == 0
    import socket

    path = config.parents[1] / "var" / "operator.sock"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert syncd("status").code == 75


@pytest.mark.parametrize("words", TALKING, ids=" ".join)
def test_a_refusal_is_its_message_and_what_to_do(syncd: Any, operator: Any, words: tuple[str, ...]) -> None:
    answers: Any = type(
        "All", (dict,), {"get": lambda *_: refusal(503, "vault_locked", "the vault is locked", "put it back")}
    )
    operator.answers = answers()
    ended = syncd(*words)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "syncd: the vault is locked\n    -> put it back\n"


def test_an_answer_that_ends_early_is_an_error(syncd: Any, operator: Any) -> None:
    operator.on("GET", "/v1/status", {"ready": True})
    operator.short = 10
    ended = syncd("status")
    assert (ended.code, ended.out) == (75, "")
    assert "ended in the middle" in ended.err


@pytest.mark.parametrize("words", [("nonsense",), ("sync", "--nonsense"), ("keys", "import", "x"), ("token", "revoke")])
def test_wrong_usage_is_exit_code_2(syncd: Any, config: Path, words: tuple[str, ...]) -> None:
    assert syncd(*words).code == 2


def test_a_broken_configuration_is_named_whole_and_is_exit_code_78(syncd: Any, config: Path) -> None:
    config.write_text("[daemon]\nlisen = 1\n[sync]\ninterval = 5\n")
    ended = syncd("status")
    assert ended.code == 78
    assert "daemon.lisen" in ended.err
    assert "sync.interval" in ended.err
    assert "2 problems" in ended.err


def test_no_configuration_at_all_says_how_to_make_one(
    syncd: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncd.cli.configuration.INSTALLED", folder / "etc" / "syncd.toml")
    ended = syncd("status")
    assert ended.code == 78
    assert "syncd init" in ended.err


def test_the_configuration_is_the_one_given_then_the_environment_s_then_the_checkout_s(
    syncd: Any, config: Path, operator: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    operator.on("GET", "/v1/status", {"ready": True})
    other = tmp_path / "other.toml"
    other.write_text('[daemon]\noperator_socket = "nobody.sock"\n')
    assert syncd("status").code == 0
    assert f"{tmp_path}/nobody.sock" in syncd("status", "--config", other).err
    monkeypatch.setenv("SYNCD_CONFIG", str(other))
    assert syncd("status").code == 75
    assert syncd("status", "--config", config).code == 0


def test_a_fault_of_our_own_is_one_line_without_values(
    syncd: Any, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any) -> None:
        raise ValueError(CANARY)

    monkeypatch.setattr("syncd.cli.output.facts", fail)
    operator.on("GET", "/v1/status", {})
    ended = syncd("status")
    assert ended.code == 1
    assert "ValueError in test_operator.py" in ended.err
    assert CANARY not in ended.err
    assert "Traceback" not in ended.err


# --- status, stock, sync ----------------------------------------------------------------------------------------------


def test_status_shows_facts_and_tables_or_json(syncd: Any, operator: Any) -> None:
    answer = {"ready": True, "restored_at": None, "suppliers": [{"name": "files", "state": "up"}], "vault": {"keys": 7}}
    operator.on("GET", "/v1/status", answer)
    assert syncd("status", "--json").json == answer
    lines = syncd("status").out.splitlines()
    assert "ready        yes" in lines
    assert "restored at  -" in lines
    assert "files  up            -       -        -                -" in lines
    assert "  keys  7" in lines


def test_why_a_supplier_is_down_is_said_once_and_below_the_table(syncd: Any, operator: Any) -> None:
    why = "GET /v1/goods: no connection"
    down = f"down since 2026-11-01T00:00:00Z: {why}; next try 2026-11-01T00:01:00Z"
    rows = [
        {"name": "dead", "state": down, "last_error": f"{why} (check the address)"},
        {"name": "odd", "state": "failing, 3 in a row", "last_error": "half a listing is none"},
        {"name": "good", "state": "up", "last_error": None},
    ]
    operator.on("GET", "/v1/status", {"suppliers": rows})
    shown = syncd("status").out
    assert shown.count(why) == 1
    assert f"\ndead: {why}; next try 2026-11-01T00:01:00Z\nodd: half a listing is none\n" in shown
    assert max(map(len, shown.splitlines())) < 120


@pytest.mark.parametrize("wrapped", [True, False])
def test_stock_is_a_table_that_is_never_cut_where_no_terminal_is(syncd: Any, operator: Any, wrapped: bool) -> None:
    rows = [{"product": "steam" * 30, "cached": 3, "price": {"amount": "9.90", "currency": "CNY"}, "stale": False}]
    operator.on("GET", "/v1/stock", {"products": rows} if wrapped else rows)
    ended = syncd("stock", "steam")
    assert operator.asked[0].query == {"product": "steam"}
    head, row = ended.out.splitlines()
    assert head.split() == ["product", "cached", "price", "stale"]
    assert row.split() == ["steam" * 30, "3", "9.90", "CNY", "no"]
    assert "\x1b" not in ended.out


def test_what_suppliers_name_their_files_cannot_steer_the_terminal(syncd: Any, operator: Any) -> None:
    item = {"id": "1", "product": "steam", "label": "[red]a\x1b[2Jb.txt", "reason": "prose"}
    operator.on("GET", "/v1/quarantine", {"items": [item], "next": None, "counts": {"prose": 1}})
    ended = syncd("keys", "quarantine", "list")
    assert r"[red]a\x1b[2Jb.txt" in ended.out
    assert "\x1b" not in ended.out + ended.err


def _runs(operator: Any, **ended: Any) -> None:
    """Each supplier's run is seen twice while it runs, then ended."""
    polls: dict[str, int] = {}
    operator.on(
        "GET", "/v1/suppliers", {"suppliers": [{"name": name, "enabled": name != "off"} for name in (*ended, "off")]}
    )
    for number, (name, error) in enumerate(ended.items()):
        row = {
            "id": str(number),
            "supplier": name,
            "seen": 5,
            "new": 4,
            "repeats": 1,
            "duplicates": 0,
            "quarantined": 0,
        }
        done = {**row, "ended_at": "2026-11-23T00:00:01Z", "error": error}

        def poll(_asked: Any, row: Any = row, done: Any = done) -> Any:
            polls[row["id"]] = polls.get(row["id"], 0) + 1
            return done if polls[row["id"]] > 2 else {**row, "ended_at": None, "progress": {"bytes": 1, "total": 9}}

        operator.on("POST", f"/v1/suppliers/{name}/sync", (202, {"run": str(number)}))
        operator.on("GET", f"/v1/runs/{number}", poll)


def test_sync_without_a_name_runs_every_enabled_supplier_and_waits(syncd: Any, operator: Any) -> None:
    _runs(operator, a=None, b=None)
    ended = syncd("sync")
    assert ended.code == 0
    assert [line.split()[0] for line in ended.out.splitlines()] == ["supplier", "a", "b"]
    assert [asked.path for asked in operator.asked if asked.method == "POST"] == [
        "/v1/suppliers/a/sync",
        "/v1/suppliers/b/sync",
    ]


def test_sync_fails_when_a_run_failed_and_says_why(syncd: Any, operator: Any) -> None:
    _runs(operator, a=None, b="the folder is gone")
    ended = syncd("sync")
    assert ended.code == 1
    assert "the folder is gone" in ended.out
    listed = syncd("sync", "--json")
    assert (listed.code, [row["error"] for row in listed.json]) == (1, [None, "the folder is gone"])


def test_sync_follows_a_run_that_is_running_already(syncd: Any, operator: Any) -> None:
    _runs(operator, a=None)
    operator.on("POST", "/v1/suppliers/a/sync", refusal(409, "already_running", "it runs", run="0"))
    ended = syncd("sync", "a")
    assert ended.code == 0
    assert "being synced already" in ended.err
    assert "done" in ended.out


def test_sync_of_all_goes_on_where_one_is_refused_or_runs_elsewhere(syncd: Any, operator: Any) -> None:
    _runs(operator, a=None, b=None, c=None)
    operator.on("POST", "/v1/suppliers/a/sync", refusal(404, "not_found", "supplier a is not enabled"))
    operator.on("POST", "/v1/suppliers/b/sync", refusal(409, "already_running", "it runs"))
    ended = syncd("sync")
    assert ended.code == 1
    outcomes = [line.split()[-1] for line in ended.out.splitlines()[1:]]
    assert outcomes == ["enabled", "running", "done"]


def test_sync_of_a_run_that_was_lost_does_not_wait_for_ever(syncd: Any, operator: Any) -> None:
    operator.on("POST", "/v1/suppliers/a/sync", (202, {"run": "0"}))
    operator.on("GET", "/v1/runs/0", {"id": "0", "supplier": "a", "ended_at": None, "progress": None})
    ended = syncd("sync", "a")
    assert (ended.code, "was lost" in ended.out) == (1, True)


def test_sync_of_an_unknown_supplier_is_refused(syncd: Any, operator: Any) -> None:
    operator.on("POST", "/v1/suppliers/x%2Fy/sync", refusal(404, "not_found", "there is no supplier x/y"))
    ended = syncd("sync", "x/y")
    assert ended.code == 1
    assert "there is no supplier x/y" in ended.err


def test_sync_no_wait_only_starts(syncd: Any, operator: Any) -> None:
    _runs(operator, a=None)
    assert syncd("sync", "a", "--no-wait", "--json").json == [{"supplier": "a", "id": "0"}]
    assert [asked.method for asked in operator.asked] == ["POST"]


# --- keys -------------------------------------------------------------------------------------------------------------


def test_keys_import_streams_the_file_and_shows_the_report_never_a_key(syncd: Any, operator: Any, folder: Path) -> None:
    file = folder / "keys 十.txt"
    file.write_bytes(CANARY.encode() * 100_000)
    operator.on("POST", "/v1/keys/import", {"state": "taken", "counts": {}, "report": "100000 sealed\n"})
    ended = syncd("keys", "import", file, "--product", "steam")
    assert ended.code == 0
    assert ended.out == "100000 sealed\n"
    assert CANARY not in ended.out + ended.err
    (asked,) = operator.asked
    assert asked.query == {"product": "steam", "name": "keys 十.txt"}
    assert asked.body == file.read_bytes()


def test_keys_import_shows_a_refusal_that_comes_before_the_file_is_read(
    syncd: Any, operator: Any, folder: Path
) -> None:
    class AtOnce:
        at_once = True

        def __call__(self, _asked: Any) -> Any:
            return refusal(404, "unknown_product", "there is no product steam")

    operator.on("POST", "/v1/keys/import", AtOnce())
    (folder / "keys.txt").write_bytes(b"x" * 8_000_000)
    ended = syncd("keys", "import", "keys.txt", "--product", "steam")
    assert ended.code == 1
    assert "there is no product steam" in ended.err


def test_keys_import_of_a_missing_file_names_it(syncd: Any, operator: Any) -> None:
    ended = syncd("keys", "import", "gone.txt", "--product", "steam")
    assert (ended.code, ended.err) == (1, "syncd: gone.txt: No such file or directory\n")


def test_keys_unseal_writes_the_bytes_to_a_private_new_file_or_to_standard_output(
    syncd: Any, operator: Any, folder: Path
) -> None:
    clear = bytes(range(256)) * 4096
    (folder / "keys.sealed").write_bytes(b"sealed" * 1000)
    operator.on("POST", "/v1/keys/unseal", clear)
    assert syncd("keys", "unseal", "keys.sealed", "--out", "keys.txt").code == 0
    assert (folder / "keys.txt").read_bytes() == clear
    assert stat.S_IMODE((folder / "keys.txt").stat().st_mode) == 0o600
    ended = syncd("keys", "unseal", "keys.sealed", "--out", "keys.txt")
    assert ended.code == 1
    assert "exists already" in ended.err
    operator.on("POST", "/v1/keys/unseal", b"A-1\nA-2\n")
    assert syncd("keys", "unseal", "keys.sealed").out == "A-1\nA-2\n"


@pytest.mark.parametrize("how", ["refused", "cut"])
def test_keys_unseal_that_fails_leaves_no_file(syncd: Any, operator: Any, folder: Path, how: str) -> None:
    (folder / "keys.sealed").write_bytes(b"sealed")
    operator.on(
        "POST", "/v1/keys/unseal", b"half" if how == "cut" else refusal(503, "key_unreadable", "it was altered")
    )
    operator.short = 100 if how == "cut" else 0
    ended = syncd("keys", "unseal", "keys.sealed", "--out", "keys.txt")
    assert ended.code == (75 if how == "cut" else 1)
    assert not (folder / "keys.txt").exists()


def test_quarantine_list_asks_for_what_is_named_and_says_that_there_is_more(syncd: Any, operator: Any) -> None:
    items = [{"id": "7", "product": "steam", "label": "a.txt", "position": 3, "reason": "prose", "state": "held"}]
    operator.on("GET", "/v1/quarantine", {"items": items, "next": "7", "counts": {"prose": 9}})
    ended = syncd(
        *("keys", "quarantine", "list", "--product", "steam", "--reason", "prose", "--limit", "1"),
        *("--supplier", "wang", "--older-than", "7d"),
    )
    assert operator.asked[0].query == {
        "product": "steam",
        "supplier": "wang",
        "reason": "prose",
        "older_than_s": "604800",
        "state": "held",
        "limit": "1",
    }
    assert "a.txt" in ended.out
    assert "--after 7" in ended.err
    assert "prose 9" in ended.err


def test_quarantine_reveal_prints_the_text_and_show_does_not(syncd: Any, operator: Any) -> None:
    operator.on("GET", "/v1/quarantine/7", {"id": "7", "masked": "CAN…BB", "reason": "prose"})
    operator.on("POST", "/v1/quarantine/7/reveal", {"text": CANARY})
    assert "CAN…BB" in syncd("keys", "quarantine", "show", "7").out
    ended = syncd("keys", "quarantine", "reveal", "7")
    assert (ended.out, CANARY in ended.err) == (CANARY + "\n", False)


def test_quarantine_list_says_who_sold_a_key_first(syncd: Any, operator: Any) -> None:
    item = {"id": "7", "reason": "duplicate", "first_supplier": "wang", "first_label": "june.txt"}
    operator.on("GET", "/v1/quarantine", {"items": [item], "next": None, "counts": {}})
    ended = syncd("keys", "quarantine", "list")
    assert "wang" in ended.out
    assert "june.txt" in ended.out


def test_quarantine_list_takes_an_age_with_its_unit(syncd: Any, operator: Any) -> None:
    ended = syncd("keys", "quarantine", "list", "--older-than", "7")
    assert (ended.code, operator.asked) == (1, [])
    assert '"7d"' in ended.err


def test_quarantine_release_names_what_was_refused(syncd: Any, operator: Any) -> None:
    operator.on("POST", "/v1/quarantine/1/release", {"key": "1"})
    no = refusal(409, "conflict", "this key is in the vault already", "drop it instead")
    operator.on("POST", "/v1/quarantine/2/release", no)
    ended = syncd("keys", "quarantine", "release", "1", "2", "--format", "code")
    assert (ended.code, ended.out) == (1, "1 of 2 released\n")
    assert "2: this key is in the vault already (drop it instead)" in ended.err
    assert operator.asked[0].json == {"format": "code"}


def _pages(operator: Any, *pages: dict[str, Any]) -> None:
    left = list(pages)
    empty = {"seen": 0, "keys": 0, "duplicates": 0, "decided": 0, "unreadable": {}, "examples": [], "next": None}
    operator.on("POST", "/v1/quarantine/reread", lambda _: {**empty, **left.pop(0)})


def test_quarantine_reread_goes_through_every_page_and_sums_up(syncd: Any, operator: Any) -> None:
    one = {"seen": 500, "keys": 490, "unreadable": {"prose": 10}, "next": "77", "examples": ["••••-1234"]}
    two = {"seen": 20, "keys": 17, "duplicates": 2, "unreadable": {"prose": 1}}
    _pages(operator, one, two)
    ended = syncd("keys", "quarantine", "reread", "--product", "steam", "--reason", "prose", "--format", "pair")
    assert [asked.json["after"] for asked in operator.asked] == ["0", "77"]
    assert operator.asked[0].json == {
        "product": "steam",
        "reason": "prose",
        "format": "pair",
        "split": None,
        "dry_run": False,
        "after": "0",
    }
    assert ended.out.splitlines() == [
        "507 of 520 are keys now",
        "2 were seen before: they stay, and name who sold them first",
        "no keys: prose 11",
    ]
    _pages(operator, one, two)
    ended = syncd("keys", "quarantine", "reread", "--product", "steam", "--dry-run")
    assert ended.out.splitlines()[0] == "507 of 520 would become keys"
    assert ended.out.splitlines()[-1] == "such as  ••••-1234"
    _pages(operator, one, two)
    told = syncd("keys", "quarantine", "reread", "--product", "steam", "--json").json
    assert (told["seen"], told["keys"], told["unreadable"], told["dry_run"]) == (520, 507, {"prose": 11}, False)


def test_quarantine_drop_sends_why(syncd: Any, operator: Any) -> None:
    operator.on("POST", "/v1/quarantine/7/drop", {})
    assert syncd("keys", "quarantine", "drop", "7", "--why", "replaced").out == "1 of 1 dropped\n"
    assert operator.asked[0].json == {"why": "replaced"}
    assert syncd("keys", "quarantine", "drop", "7", "--why", " ").code == 1


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--all",),
        ("--all", "--older-than", "7d"),
        ("1", "--all", "--product", "steam"),
        ("1", "--product", "steam"),
        ("--product", "steam"),
    ],
)
def test_quarantine_drop_never_takes_more_than_was_named(syncd: Any, operator: Any, words: tuple[str, ...]) -> None:
    assert syncd("keys", "quarantine", "drop", *words, "--why", "x").code == 1
    assert operator.asked == []


def test_quarantine_drop_of_many_counts_asks_and_drops_what_it_counted(
    syncd: Any, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [{"dropped": 500, "more": True}, {"dropped": 20, "more": False}]

    def answer(asked: Any) -> Any:
        return {"dropped": 520, "more": False, "upto": "99"} if asked.json.get("dry_run") else left.pop(0)

    operator.on("POST", "/v1/quarantine/drop", answer)
    words = ("keys", "quarantine", "drop", "--all", "--product", "steam", "--why", "refunded")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    ended = syncd(*words)
    assert (ended.code, len(operator.asked)) == (1, 1)
    assert "Drop 520 entries for ever?" in ended.err
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    assert syncd(*words).out == "520 dropped\n"
    for asked in operator.asked[2:]:
        assert asked.json == {"product": "steam", "why": "refunded", "upto": "99"}


def test_quarantine_return_says_what_the_supplier_did_not_answer(syncd: Any, operator: Any) -> None:
    taken = {"id": "7", "state": "returned", "why": ""}
    lost = {"id": "8", "state": "returning", "why": "no answer that could be understood"}
    operator.on("POST", "/v1/quarantine/return", {"entries": [taken, lost]})
    ended = syncd("keys", "quarantine", "return", "7", "8")
    assert operator.asked[0].json == {"entries": ["7", "8"]}
    assert (ended.code, "no answer" in ended.out, "settle ID --taken" in ended.err) == (1, True, True)
    operator.on("POST", "/v1/quarantine/return", {"entries": [taken]})
    assert syncd("keys", "quarantine", "return", "7").code == 0
    operator.on("POST", "/v1/quarantine/8/settle", {"state": "held"})
    assert "held" in syncd("keys", "quarantine", "settle", "8", "--kept").out
    assert operator.asked[-1].json == {"taken": False}
    assert syncd("keys", "quarantine", "settle", "8").code == 2  # one of the two has to be said


def test_quarantine_complain_sends_the_text_once(syncd: Any, operator: Any) -> None:
    told = {"id": "7", "complaint": "claim-1", "why": ""}
    operator.on("POST", "/v1/quarantine/complain", {"entries": [told]})
    ended = syncd("keys", "quarantine", "complain", "7", "--text", "it is no key")
    assert (ended.code, "claim-1" in ended.out) == (0, True)
    assert operator.asked[0].json == {"entries": ["7"], "text": "it is no key", "again": False}
    assert syncd("keys", "quarantine", "complain", "7", "--text", " ").code == 1


@pytest.mark.parametrize("words", [("products", "unhold", "steam"), ("keys", "held", "release", "--product", "steam")])
def test_unhold_has_two_names(syncd: Any, operator: Any, words: tuple[str, ...]) -> None:
    operator.on("POST", "/v1/products/steam/unhold", {"released": 5})
    assert syncd(*words).out == "5 keys of steam are available again\n"


def test_recover_says_what_is_held_and_how_to_go_on(syncd: Any, operator: Any) -> None:
    operator.on("POST", "/v1/recover", {"held": 48})
    ended = syncd("recover")
    assert "48 keys are held" in ended.out
    assert "syncd products unhold" in ended.err


# --- tokens, KEK ------------------------------------------------------------------------------------------------------


def test_token_create_prints_the_token_alone_so_that_it_can_be_piped(syncd: Any, operator: Any) -> None:
    operator.on("POST", "/v1/tokens", (201, {"id": "9", "token": "syncd_abc"}))
    ended = syncd("token", "create", "demo", "--rights", "stock, deliver,reveal", "--label", "till")
    assert ended.out == "syncd_abc\n"
    assert "not shown again" in ended.err
    assert operator.asked[0].json == {"principal": "demo", "rights": ["stock", "deliver", "reveal"], "label": "till"}


def test_token_list_and_revoke(syncd: Any, operator: Any) -> None:
    operator.on("GET", "/v1/tokens", {"tokens": [{"id": "9", "principal": "demo", "rights": ["stock"]}]})
    operator.on("DELETE", "/v1/tokens/9", (204, b""))
    assert syncd("token", "list").out.splitlines()[1].split() == ["9", "demo", "stock"]
    assert syncd("token", "revoke", "9").code == 0
    assert operator.asked[-1].method == "DELETE"


@pytest.fixture
def exported(operator: Any) -> Any:
    """The fake daemon exports a KEK of its own."""
    from syncd.model import SecretText
    from syncd.vault import crypto

    kek = crypto.new_kek()
    operator.on(
        "POST",
        "/v1/vault/kek/export",
        lambda asked: {"text": crypto.export_kek(kek, SecretText(asked.json["passphrase"]))},
    )
    return kek


def test_K11_kek_export_and_import_are_inverse(syncd: Any, exported: Any, folder: Path) -> None:
    (folder / "words").write_text("correct horse battery\n")
    assert syncd("vault", "kek", "export", "--out", "copy.txt", "--passphrase-file", "words").code == 0
    assert stat.S_IMODE((folder / "copy.txt").stat().st_mode) == 0o600
    clear = exported.text().reveal()
    assert clear not in (folder / "copy.txt").read_text()
    ended = syncd("vault", "kek", "import", "copy.txt", "--passphrase-file", "words")
    assert (ended.code, clear in ended.out + ended.err) == (0, False)
    assert (folder / "var" / "kek").read_text() == clear + "\n"
    assert stat.S_IMODE((folder / "var" / "kek").stat().st_mode) == 0o600
    again = syncd("vault", "kek", "import", "copy.txt", "--passphrase-file", "words")
    assert (again.code, "never overwritten" in again.err) == (1, True)
    assert syncd("vault", "kek", "import", "copy.txt", "--passphrase-file", "words", "--out", "-").out == clear + "\n"


def test_kek_import_under_another_passphrase_writes_nothing(syncd: Any, exported: Any, folder: Path) -> None:
    (folder / "words").write_text("correct horse battery")
    syncd("vault", "kek", "export", "--out", "copy.txt", "--passphrase-file", "words")
    (folder / "words").write_text("wrong horse battery")
    ended = syncd("vault", "kek", "import", "copy.txt", "--passphrase-file", "words")
    assert ended.code == 78
    assert "wrong passphrase" in ended.err
    assert not (folder / "var" / "kek").exists()


def test_kek_export_asks_twice_and_refuses_a_short_passphrase(
    syncd: Any, exported: Any, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    import typer

    asked: list[dict[str, Any]] = []

    def prompt(_text: str, **options: Any) -> str:
        asked.append(options)
        return "short"

    monkeypatch.setattr(typer, "prompt", prompt)
    ended = syncd("vault", "kek", "export")
    assert (ended.code, ended.out) == (1, "")
    assert asked == [{"hide_input": True, "confirmation_prompt": True, "err": True}]


def test_a_result_whose_reader_has_gone_ends_quietly(config: Path, operator: Any) -> None:
    """`syncd stock | head -1`"""
    import subprocess
    import sys

    operator.on("GET", "/v1/stock", [{"product": f"p{n}"} for n in range(20_000)])
    done = subprocess.run(
        f"{sys.executable} -m syncd stock --config {config} | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (done.stdout, done.stderr) == ("product\n", "")


def test_json_is_one_document_for_all_that_lists(syncd: Any, operator: Any) -> None:
    operator.on("GET", "/v1/tokens", {"tokens": []})
    operator.on("GET", "/v1/quarantine", {"items": [], "next": None, "counts": {}})
    operator.on("GET", "/v1/stock", [])
    for words in (("token", "list"), ("keys", "quarantine", "list"), ("stock",)):
        ended = syncd(*words, "--json")
        assert json.loads(ended.out) is not None
        assert ended.err == ""


# --- offers -----------------------------------------------------------------------------------------------------------


def listed(sku: str, title: str = "Steam Wallet 50 CNY", **more: Any) -> dict[str, Any]:
    return {
        "supplier": "wang",
        "sku": sku,
        "title": title,
        "price": {"amount": "48.00", "currency": "CNY"},
        "cost": {"amount": "48.00", "currency": "CNY"},
        "stock": {"kind": "exact", "quantity": 7},
        "for_sale": True,
        "seen_at": "2026-11-01T00:00:00Z",
        "held_price": None,
        "stale": False,
        "products": [],
        **more,
    }


def test_offers_are_listed_page_by_page(syncd: Any, operator: Any) -> None:
    pages = {None: ([listed("1"), listed("2")], "wang:2"), "wang:2": ([listed("3")], None)}

    def answer(asked: Any) -> Any:
        found, after = pages[asked.query.get("after")]
        return {"offers": found, "next": after}

    operator.on("GET", "/v1/offers", answer)
    ended = syncd("offers", "list", "--supplier", "wang")
    assert (ended.code, len(ended.out.splitlines())) == (0, 4)
    assert "48.00 CNY" in ended.out
    assert {asked.query["supplier"] for asked in operator.asked} == {"wang"}
    assert [row["sku"] for row in syncd("offers", "list", "--json").json["offers"]] == ["1", "2", "3"]
    some = syncd("offers", "list", "--limit", 2)
    assert len(some.out.splitlines()) == 3
    assert "the first 2" in some.err
    assert "the first" not in syncd("offers", "list", "--limit", 3).err


def test_an_offer_that_a_product_names_and_nobody_lists_is_said(syncd: Any, config: Path, operator: Any) -> None:
    config.write_text(
        '[daemon]\nlisten = "127.0.0.1:0"\n[suppliers.wang]\nadapter = "x"\nenabled = false\n'
        '[products.steam]\noffers = [{ supplier = "wang", sku = "1" }, { supplier = "wang", sku = "NOPE" }]\n'
    )
    operator.on("GET", "/v1/offers", {"offers": [listed("1")], "next": None})
    ended = syncd("offers", "list", "--product", "steam")
    assert (ended.code, ended.err) == (0, "wang does not list NOPE\n")


def test_offers_are_searched_and_say_what_is_odd_about_them(syncd: Any, operator: Any) -> None:
    odd = listed("1", for_sale=False, held_price="0.48 CNY", stale=True, stock={"kind": "coarse", "level": "low"})
    operator.on("GET", "/v1/offers", {"offers": [odd], "next": None})
    ended = syncd("offers", "search", "steam", "50")
    assert operator.asked[0].query["q"] == "steam 50"
    assert "not for sale, 0.48 CNY waits to be confirmed, stale" in ended.out
    assert " low " in ended.out


def test_an_acceptance_is_followed_to_its_end(syncd: Any, operator: Any) -> None:
    run = {"id": "7", "supplier": "wang", "seen": 0, "new": 0, "offers": 20, "offers_changed": 3, "offers_removed": 1}
    operator.on("POST", "/v1/suppliers/wang/accept", (202, {"run": "7"}))
    operator.on("GET", "/v1/runs/7", {**run, "ended_at": "2026-11-01T00:00:00Z", "error": None})
    ended = syncd("offers", "accept", "wang")
    assert (ended.code, ended.out.splitlines()[1].split()[-4:]) == (0, ["20", "3", "1", "done"])
    operator.on("GET", "/v1/runs/7", {**run, "ended_at": "2026-11-01T00:00:00Z", "error": "it is worse"})
    assert syncd("offers", "accept", "wang").code == 1


def test_the_history_of_an_offer(syncd: Any, operator: Any) -> None:
    entry = {"until": "2026-11-01T00:00:00Z", "price": {"amount": "9", "currency": "CNY"}, "stock": {"kind": "unknown"}}
    operator.on("GET", "/v1/suppliers/wang/history", {"history": [entry]})
    ended = syncd("offers", "history", "wang", "a/b")
    assert operator.asked[0].query == {"sku": "a/b"}
    assert "9 CNY" in ended.out
    assert "unknown" in ended.out


# --- suggestions ------------------------------------------------------------------------------------------------------


def test_offers_are_suggested_as_configuration_to_paste(syncd: Any, config: Path, operator: Any) -> None:
    config.write_text(
        '[daemon]\nlisten = "127.0.0.1:0"\n[suppliers.wang]\nadapter = "x"\nenabled = false\n'
        '[products."steam.50"]\ntitle = "Steam Wallet 50"\n[products.mobile]\ntitle = "移动充值卡 100元"\n'
        '[products.none]\ntitle = "Nothing like it"\n'
        '[products.mapped]\ntitle = "Steam Wallet 50"\noffers = [{ supplier = "wang", sku = "9" }]\n'
    )
    found = [
        listed("1"),
        listed("2", "Steam Wallet 500 CNY"),
        listed('3"\\', "中国移动 100 元充值卡"),
        listed("4", "Xbox Game Pass"),
    ]
    operator.on("GET", "/v1/offers", {"offers": found, "next": None})
    ended = syncd("products", "suggest")
    tree = tomllib.loads(ended.out)["products"]
    assert tree == {
        "steam.50": {"offers": [{"supplier": "wang", "sku": "1"}]},
        "mobile": {"offers": [{"supplier": "wang", "sku": '3"\\'}]},
    }
    assert "no offer is like enough to 1 product" in ended.err
    (config.parent / "conf.d").mkdir()
    (config.parent / "conf.d" / "offers.toml").write_text(ended.out)
    assert syncd("product", "suggest", "mapped", "--json").json["suggestions"][0]["offers"][0]["sku"] == "1"
    assert syncd("products", "suggest", "nothing").code == 1


def test_of_offers_that_are_alike_what_is_in_stock_comes_first_then_what_costs_least(syncd: Any, config: Path) -> None:
    def at(sku: str, cost: str | None, **stock: Any) -> dict[str, Any]:
        price = cost and {"amount": cost, "currency": "CNY"}
        return {**listed(sku), "price": price, "cost": price, "stock": {"kind": "exact", **stock}}

    offers = [
        at("gone", "1", quantity=0),
        at("dear", "9.5", quantity=3),
        at("cheap", "9.10", quantity=1),
        at("?", None),
    ]
    config.write_text('[daemon]\nlisten = "127.0.0.1:0"\n[products.steam]\ntitle = "Steam Wallet 50"\n')
    found = alike(settings(config).products, offers, 75, 3)
    assert [row["sku"] for row in found[0]["offers"]] == ["cheap", "dear", "?"]


def test_nothing_to_suggest_says_why(syncd: Any, config: Path, operator: Any) -> None:
    operator.on("GET", "/v1/offers", {"offers": [], "next": None})
    config.write_text(
        '[daemon]\nlisten = "127.0.0.1:0"\n[suppliers.wang]\nadapter = "x"\nenabled = false\n'
        '[products.steam]\noffers = [{ supplier = "wang", sku = "9" }]\n'
    )
    ended = syncd("products", "suggest")
    assert (ended.out, ended.err) == ("every product has offers\n", "")
    config.write_text('[daemon]\nlisten = "127.0.0.1:0"\n[products.steam]\n')
    ended = syncd("products", "suggest")
    assert (ended.out, "no offer is like enough" in ended.err, "paste" in ended.err) == ("", True, False)


def test_control_a_card_of_500_is_never_suggested_for_one_of_50() -> None:
    from rapidfuzz import fuzz

    # By likeness alone it would be.
    assert fuzz.token_set_ratio("steam wallet 50", "steam wallet 500 cny") > 75
