"""S4: keys that went every way through the real daemon are nowhere to be read: files, logs, metrics, problems, backups.

Each canary is looked for as it is, in base64 (at each of its three offsets), hexadecimal, UTF-16, JSON- and URL-escaped
through the folders of the daemon and of PostgreSQL, its server log included. What is planted in the open
is found by the same search.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

PRODUCTS = (
    '[products.a]\ntitle = "a"\nformat = "opaque"\n'
    '[products.b]\ntitle = "b"\nformat = "opaque"\n'
    '[products.none]\ntitle = "none"\n'
    '[products.pairs]\ntitle = "pairs"\nformat = "account"\n'
    '[products.shown]\nformat = "opaque"\nmax_quantity = 2\ndisplay = "<{code}>"\ninstructions = "Use {code} soon."\n'
    'redeem_url = "https://redeem.example.com/?code={code}"\n'
    "[products.goods]\nallow_prose = true\n"
    '[products.steam]\nformat = "steam"\n'
    '[products.late]\nformat = "opaque"\non_shortage = "wait"\n'
)
FED, IMPORTED, TWICE, LEFT, PROSE, SENT, SHOWN, GOODS, ODD, LATE = (
    f"CANARY/{word}+{word * 2}=ÄÖ{number}"
    for number, word in enumerate(
        ("FED", "IMPORTED", "TWICE", "LEFT", "PROSE", "SENT", "SHOWN", "GOODS", "ODD", "LATE")
    )
)
CANARIES = (FED, IMPORTED, TWICE, LEFT, PROSE, SENT, SHOWN, GOODS, ODD, LATE)


def spellings(text: str) -> set[bytes]:
    """The ways in which a text may lie about."""
    found = {
        text.encode(),
        text.encode("utf-16-le"),
        text.encode("utf-16-be"),
        text.encode("gb18030", "replace"),
        json.dumps(text)[1:-1].encode(),
        quote(text).encode(),
        quote(text, safe="").encode(),
        text.encode().hex().encode(),
        text.encode().hex().upper().encode(),
    }
    for shift in range(3):  # whatever stands before it moves its base64
        encoded = base64.b64encode(b"\0" * shift + text.encode())
        found.add(encoded[4:-4])
        found.add(encoded[4:-4].replace(b"+", b"-").replace(b"/", b"_"))
    # The accented end is what encodings disagree about: the plain word must not be seen either.
    word = text[: text.index("=")]
    return found | {word.encode(), word.encode().hex().encode(), word.encode("utf-16-le")}


def found_in(data: bytes, canaries: Iterable[str] = CANARIES) -> set[str]:
    return {canary for canary in canaries if any(spelling in data for spelling in spellings(canary))}


def files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def assert_unseen(folders: Iterable[Path], texts: Iterable[str]) -> None:
    """No canary in any file or text. The files that a test itself wrote in clear are gone by then."""
    for path in files(*folders):
        with contextlib.suppress(FileNotFoundError):
            assert not found_in(path.read_bytes()), f"a key can be read in {path}"
    for text in texts:
        assert not found_in(text.encode("utf-8", "surrogatepass")), f"a key can be read in: {text[:40]}…"


def postgres_dump(url: str) -> str:
    """All rows, as text: what a backup by others would hold. The data folder may compress what it stores."""
    lines = []
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            lines += [str(row) for row in connection.execute(f'SELECT t::text FROM "{table}" t').fetchall()]
    return "\n".join(lines)


def decide(daemon: Any, odd: list[str], said: Any) -> None:
    """Everything that can be done about what is in quarantine, and every way in which it is refused."""
    bearer = daemon.token("operator")

    def ask(verb: str, body: dict[str, Any], status: int) -> Any:
        answer = daemon.call("POST", f"/v1/quarantine/{verb}", body, token=bearer)
        said(answer, status)
        return answer[1]

    for form in ("auto", "opaque", "pair", "link"):
        ask("reread", {"product": "steam", "format": form, "dry_run": True}, 200)
    ask(f"{odd[0]}/release", {}, 409)
    assert "takes nothing back" in ask("return", {"entries": odd}, 409)["detail"]
    ask("complain", {"entries": odd, "text": f"{SENT} is no key"}, 409)
    ask("reread", {"product": "steam", SENT: SENT}, 400)
    ask(f"{odd[0]}/settle", {"taken": True}, 409)
    assert ask("reread", {"product": "steam", "format": "opaque"}, 200)["keys"] == 2
    assert daemon.deliver("o-7", "steam", 2)[1]["keys"][0]["text"].startswith(ODD)
    assert ask("drop", {"product": "steam", "why": "sold twice"}, 200)["dropped"] == 1


def shop_for_texts(daemon: Any, said: Any) -> None:
    """What the customer sees holds the key wherever the product says so, and what is refused does not."""
    said(daemon.deliver("o-5", "shown", 3), 422)
    (shown,) = daemon.deliver("o-5", "shown", 1)[1]["keys"]
    assert (shown["fields"], shown["text"]) == ({"code": SHOWN}, f"<{SHOWN}>")
    assert shown["instructions"] == f"Use {SHOWN} soon."
    assert shown["redeem_url"] == f"https://redeem.example.com/?code={quote(SHOWN, safe='')}"
    assert GOODS in daemon.deliver("o-6", "goods", 1)[1]["keys"][0]["text"]


def pay_late(daemon: Any, said: Any) -> None:
    """Reserved, replaced, waited for, cancelled: a key goes to whoever paid for it, and not into any word about it."""
    hold = {"product": "late", "quantity": 1, "customer": SENT}
    said(daemon.call("PUT", "/v1/reservations/r-1", hold), 201)
    said(daemon.call("PUT", "/v1/reservations/r-2", {**hold, "quantity": 9}), 409)
    said(daemon.call("PUT", "/v1/reservations/r-2", {**hold, "ttl_s": SENT}), 400)
    said(daemon.call("GET", "/v1/reservations/r-1"), 200)
    (first,) = daemon.deliver("r-1", "late")[1]["keys"]
    where = "/v1/deliveries/r-1/replacements"
    for body in ({"key_id": SENT, "reason": "invalid"}, {"key_id": first["id"], "reason": first["text"]}):
        said(daemon.call("POST", where, body), 400)
    (second,) = daemon.call("POST", where, {"key_id": first["id"], "reason": "invalid"})[1]["keys"]
    assert {first["text"], second["text"]} == {f"{LATE} 1", f"{LATE} 2"}
    said(daemon.call("POST", where, {"key_id": second["id"], "reason": "other"}), 202)
    said(daemon.call("POST", "/v1/deliveries/r-1/cancel"), 409)
    said(daemon.call("GET", "/v1/deliveries/r-1?wait_s=1"), 202)
    said(daemon.deliver("r-3", "late"), 202)
    said(daemon.call("POST", "/v1/deliveries/r-3/cancel"), 200)
    for path in ("/v1/deliveries", "/v1/shops/demo/deliveries/r-1", "/v1/claims"):
        said(daemon.call("GET", path, token=daemon.token("operator")), 200)


@pytest.fixture
def walked(install: Any, engine_url: str, request: pytest.FixtureRequest) -> tuple[Any, list[Path], list[str]]:
    """(the daemon, the folders it wrote to, the texts it answered that must hold no key)."""
    daemon = install("d", engine_url, PRODUCTS)
    folders = [daemon.folder]
    if engine_url.startswith("postgresql"):
        folders.append(request.getfixturevalue("postgres_folder"))
    texts: list[str] = []

    def said(answer: tuple[int, Any], status: int) -> None:
        assert answer[0] == status, answer
        texts.append(json.dumps(answer[1], ensure_ascii=False))

    daemon.drop("a", "first.txt", f"{FED}\n{TWICE}\n{LEFT}\n{LEFT}\n")
    daemon.drop("pairs", "prose.txt", f"user1----pass1\nuser2----pass2\nuser3----pass3\n{PROSE}\n")
    daemon.drop("shown", "shown.txt", f"{SHOWN}\n")
    daemon.drop("goods", "goods.txt", f"先联系客服，再用 {GOODS}\n")
    daemon.drop("steam", "odd.txt", f"{ODD} 1\n{ODD} 2\n{TWICE}\n")
    daemon.drop("late", "late.txt", f"{LATE} 1\n{LATE} 2\n")
    daemon.start()
    texts.append(daemon.syncd("sync"))
    daemon.drop("a", "second.txt", f"{TWICE}\nplain-key-1\n")
    texts.append(daemon.syncd("sync"))
    clear = daemon.folder.parent / "import.txt"
    clear.write_text(f"{IMPORTED}\n{TWICE}\n")
    texts.append(daemon.syncd("keys", "import", str(clear), "--product", "a"))

    # Keys go to whoever paid for them, and to nobody else.
    assert FED in json.dumps(daemon.deliver("o-1", "a", 1)[1], ensure_ascii=False)
    assert daemon.deliver("o-1", "a", 1)[1]["repeat"] is True
    said(daemon.deliver("o-1", "a", 2), 422)
    said(daemon.deliver("o-2", "none", 1), 409)
    said(daemon.deliver("o-3", "unknown", 1), 404)

    shop_for_texts(daemon, said)
    pay_late(daemon, said)

    # What a confused shop sends back is not repeated to it.
    for body in (
        {"order_ref": SENT, "product": "a", "quantity": 1},
        {"order_ref": "o-4", "product": SENT, "quantity": 1},
        {"order_ref": "o-4", "product": "a", "quantity": SENT},
        {"order_ref": "o-4", "product": "a", "quantity": 1, SENT: 1},
        SENT.encode(),
        b'{"order_ref": "' + SENT.encode(),
    ):
        said(daemon.call("POST", "/v1/deliveries", body), 400)
    said(daemon.call("GET", f"/v1/deliveries/{quote(SENT, safe='')}"), 404)
    said(daemon.call("GET", f"/v1/stock?product={quote(SENT)}"), 400)
    said(daemon.call("GET", f"/{quote(SENT)}"), 404)
    said(daemon.call("GET", "/v1/stock", token=quote(SENT)), 401)

    texts.append(daemon.syncd("keys", "quarantine", "list"))
    held = json.loads(daemon.syncd("keys", "quarantine", "list", "--json"))["items"]
    assert {item["reason"] for item in held} >= {"duplicate"}
    texts += [daemon.syncd("keys", "quarantine", "show", item["id"]) for item in held]
    revealed = [daemon.syncd("keys", "quarantine", "reveal", item["id"]) for item in held]
    assert found_in("".join(revealed).encode()) >= {TWICE, PROSE}
    decide(daemon, [item["id"] for item in held if item["product"] == "steam"], said)
    (sealed, *_) = daemon.feeds.glob("a/taken/first*.sealed")
    assert FED in daemon.syncd("keys", "unseal", str(sealed))
    texts.append(daemon.syncd("backup", str(daemon.folder / "copy.backup")))
    texts += [daemon.syncd("status"), daemon.syncd("token", "list"), daemon.call("GET", "/metrics", token="")[1]]
    clear.unlink()
    return daemon, folders, texts


def test_S4_no_key_is_to_be_read_anywhere(walked: Any, engine_url: str) -> None:
    daemon, folders, texts = walked
    assert_unseen(folders, texts)
    if engine_url.startswith("postgresql"):
        texts.append(postgres_dump(engine_url))
    daemon.kill()  # as it lies after a crash, write-ahead log included
    assert_unseen(folders, texts)
    daemon.start()
    assert FED in json.dumps(daemon.deliver("o-1", "a", 1)[1], ensure_ascii=False)
    daemon.stop()
    assert_unseen(folders, texts)


@pytest.mark.parametrize("engine_url", ["sqlite"], indirect=True)
def test_control_a_key_that_can_be_read_is_found(walked: Any, engine_url: str) -> None:
    """In an answer, in a file, in a log, and in base64 in a table: each planted by itself."""
    daemon, folders, texts = walked
    assert_unseen(folders, texts)

    def seen(where: str, *more: str) -> None:
        with pytest.raises(AssertionError, match=f"can be read in.*{where}"):
            assert_unseen(folders, [*texts, *more])

    seen("the key", f"the key {quote(LEFT)} is taken")
    note = daemon.state / "notes.txt"
    note.write_text(f"x{LEFT}x")
    seen("notes.txt")
    note.unlink()
    daemon.stop()
    before = daemon.log.read_bytes()
    daemon.log.write_bytes(before + json.dumps({"event": LEFT}).encode() + b"\n")
    seen(daemon.log.name)
    daemon.log.write_bytes(before)
    assert_unseen(folders, texts)
    with contextlib.closing(sqlite3.connect(daemon.state / "syncd.db")) as connection:
        connection.execute("CREATE TABLE notes (text TEXT)")
        connection.execute("INSERT INTO notes VALUES (?)", (base64.b64encode(f"..{LEFT}..".encode()).decode(),))
        connection.commit()
    seen("syncd.db")


@pytest.mark.parametrize("engine_url", ["sqlite"], indirect=True)
def test_T3_what_a_restore_forgot_is_not_sold_again(install: Any, engine_url: str, tmp_path: Path) -> None:
    """Copy, deliver 20, restore the copy: not one of the 20 is delivered again."""
    daemon = install("d", engine_url, '[products.a]\ntitle = "a"\nformat = "opaque"\n')
    daemon.drop("a", "a.txt", "".join(f"KEY-{number:06d}\n" for number in range(60)))
    daemon.start()
    daemon.syncd("sync")
    copy = tmp_path / "copy.backup"
    daemon.syncd("backup", str(copy))
    sold = [key["text"] for number in range(20) for key in daemon.deliver(f"o-{number}", "a")[1]["keys"]]
    daemon.stop(signal.SIGTERM)
    if engine_url.startswith("sqlite"):
        for path in daemon.state.glob("syncd.db*"):
            path.unlink()
    else:
        with psycopg.connect(engine_url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
    daemon.syncd("restore", str(copy))
    daemon.launch()
    deadline = time.monotonic() + 30
    status = 0
    while status != 503:
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError, http.client.HTTPException, subprocess.TimeoutExpired):
            status, problem = daemon.deliver("o-new", "a")
        time.sleep(0.05)
    assert problem["code"] == "restored_not_recovered"
    assert daemon.call("GET", "/readyz", token="")[0] == 503
    assert "60 keys are held" in daemon.syncd("recover")
    assert daemon.deliver("o-new", "a")[1]["code"] == "insufficient_stock"
    daemon.drop("a", "b.txt", "NEW-1\n" + "\n".join(sold) + "\n")
    daemon.syncd("sync")
    assert daemon.deliver("o-new", "a")[1]["keys"][0]["text"] == "NEW-1"
    assert daemon.deliver("o-other", "a")[0] == 409
