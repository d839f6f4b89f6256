"""No secret passes the log (S4): a canary goes in by every door, and the same doors are open in a plain set-up."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import subprocess
import sys
import warnings
from decimal import Decimal
from pathlib import Path

import httpx
import pydantic
import pytest
import sqlalchemy
import structlog

from syncd import logs
from syncd.errors import NotFoundError
from syncd.model import CardKey, KeyState, SecretText

CANARY = "CANARY-7F3K-9QXZ-44TT"


@pytest.fixture
def stderr(logging_put_back):
    """Standard error, for logging that the test sets up."""
    return io.StringIO()


def ours(stream, *, as_json=True):
    configure(stream, "debug", json=as_json)


def configure(stream, *args, **kwargs):
    logging.getLogger().handlers[:] = []  # pytest's own
    with contextlib.redirect_stderr(stream):
        logs.configure(*args, **kwargs)


def plain(stream):
    """What one gets from the documentation of structlog and logging."""
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):  # a test before may have left it quiet
            logger.setLevel(logging.NOTSET)
            logger.disabled = False
    logging.getLogger().handlers[:] = [logging.StreamHandler(stream)]
    logging.getLogger().setLevel(logging.DEBUG)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(default=repr)],
        logger_factory=structlog.PrintLoggerFactory(stream),
    )


class Card:
    def __repr__(self):
        return f"Card({CANARY})"


class Model(pydantic.BaseModel):
    amount: int


def log():
    return structlog.get_logger("syncd.test")


def caught(error, **fields):
    secret_local = CANARY  # noqa: F841 - a local that a traceback may print
    try:
        raise error
    except Exception:
        log().exception("it failed", **fields)


def named_field():
    log().info("read", pin=CANARY, api_key=CANARY, **{"X-Api-Key": CANARY, "accessToken": CANARY, "code": CANARY})


def nested_field():
    log().info("read", card={"line": 3, "parts": [{"pin": CANARY}], "fields": {"anything": CANARY}})


def headers():
    log().info("sent", headers={"Authorization": CANARY}, pairs=[("X-Api-Key", CANARY), (b"cookie", CANARY.encode())])


def httpx_headers():
    log().info("sent", headers=httpx.Headers({"x-api-key": CANARY}))


def object_repr():
    log().info("read", item=Card(), items=[Card()])


def raw_bytes():
    log().info("read", chunk=CANARY.encode(), chunks=[bytearray(CANARY.encode())])


def positional():
    log().info("read %s and %s", Card(), CANARY.encode())


def url_in_text():
    log().info(f"GET https://u:{CANARY}@supplier.example/?token={CANARY}&sign={CANARY} Authorization: Bearer {CANARY}")


def exception_argument():
    caught(ValueError(CANARY))


def exception_as_value():
    log().warning("skipped", error=ValueError(CANARY), errors=[ValueError(CANARY)])


def exception_in_the_text():
    try:
        raise ValueError(f"bad key {CANARY}")
    except ValueError as error:
        log().error(f"skipped: {error}", why=str(error), how=repr(error), exc_info=True)


def chained():
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as inner:
            raise RuntimeError(f"while looking up {CANARY}") from inner
    except RuntimeError:
        log().exception("it failed")


def hidden_context():
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as inner:
            quoted = str(inner)
            raise NotFoundError("no such product") from None
    except NotFoundError:
        log().exception("it failed", quoted=quoted)


def group():
    caught(ExceptionGroup(CANARY, [ValueError(CANARY), TypeError(CANARY)]))


def notes():
    error = ValueError("x")
    error.add_note(CANARY)
    caught(error)


def sql_error():
    engine = sqlalchemy.create_engine("sqlite://")
    try:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("INSERT INTO nowhere VALUES (:text)"), {"text": CANARY})
    except sqlalchemy.exc.OperationalError as error:
        log().exception("it failed", error=error)
    engine.dispose()


def validation_error():
    try:
        Model.model_validate({"amount": CANARY})
    except pydantic.ValidationError as error:
        log().exception("it failed", error=error)


def json_error():
    try:
        json.loads(f'{{"pin": "{CANARY}"')
    except json.JSONDecodeError as error:
        log().exception("it failed", error=error, doc=error.doc, exc_info=True)


def stdlib_argument():
    logging.getLogger("library").error("failed: %s %r", ValueError(CANARY), Card())


def stdlib_mapping():
    logging.getLogger("library").error("failed: %(pin)s", {"pin": CANARY})


def stdlib_exception():
    secret_local = CANARY  # noqa: F841
    try:
        raise ValueError(CANARY)
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")


def stdlib_object():
    logging.getLogger("library").error(ValueError(CANARY))


def stdlib_bad_format():
    logging.getLogger("library").error("failed %d", Card())


def library_debug():
    logging.getLogger("httpx").info("HTTP Request: GET https://supplier.example/%s", CANARY)
    logging.getLogger("httpcore.http11").debug("send_request_headers %s", CANARY)
    logging.getLogger("sqlalchemy.engine.Engine").info("[generated in 0.1s] (%r,)", CANARY)


def lost_task():
    async def lose():
        async def fail(_key):
            raise ValueError(CANARY)

        task = asyncio.create_task(fail(CANARY), name=CANARY)
        await asyncio.sleep(0)
        del task
        asyncio.get_running_loop().call_soon(lambda key: 1 / 0, CANARY)
        await asyncio.sleep(0)

    asyncio.run(lose())


def warning():
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"cannot serialize {CANARY}", UserWarning, stacklevel=1)


DOORS = [
    named_field, nested_field, headers, httpx_headers, object_repr, raw_bytes, positional, url_in_text,
    exception_argument, exception_as_value, exception_in_the_text, chained, hidden_context, group, notes,
    sql_error, validation_error, json_error,
    stdlib_argument, stdlib_mapping, stdlib_exception, stdlib_object, stdlib_bad_format,
    library_debug, lost_task, warning,
]  # fmt: skip
TIGHT_ANYWAY = {notes}  # structlog's tracebacks leave notes out


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "console"])
@pytest.mark.parametrize("door", DOORS)
def test_s4_no_secret_passes(stderr, door, as_json):
    ours(stderr, as_json=as_json)
    with contextlib.redirect_stderr(stderr):
        door()
    written = stderr.getvalue()
    assert CANARY not in written
    assert CANARY[:11] not in written
    if door is not library_debug:
        assert written, "the event itself must still be told"


@pytest.mark.parametrize("door", [door for door in DOORS if door not in TIGHT_ANYWAY])
def test_s4_negative_control_a_plain_set_up_leaks_by_every_door(stderr, door):
    plain(stderr)
    with contextlib.redirect_stderr(stderr):
        door()
    assert CANARY[:11] in stderr.getvalue()


HOOKS = f"""
import sys, threading
from syncd import logs
if sys.argv[1] == "ours":
    logs.configure()
class Dies:
    def __del__(self): raise ValueError("{CANARY}")
Dies()
def fail(key): raise ValueError(key)
thread = threading.Thread(target=fail, args=("{CANARY}",)); thread.start(); thread.join()
raise RuntimeError("{CANARY}")
"""


@pytest.mark.parametrize("setup", ["ours", "plain"])
def test_s4_what_nobody_caught_is_logged_by_type(setup):
    code = ";".join(["CANARY = None", f"exec({HOOKS!r})"])
    done = subprocess.run([sys.executable, "-c", code, setup], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    if setup == "plain":
        assert done.stderr.count(CANARY) >= 3
        return
    assert CANARY not in done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["exception"][0]["type"] for line in lines] == ["ValueError", "ValueError", "RuntimeError"]
    assert all(line["exception"][0]["frames"] for line in lines)


def written(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_harmless_values_are_shown_as_they_are(stderr):
    ours(stderr)
    log().info(
        "synced",
        supplier="samples",
        keys=3,
        key_id=7,
        status_code=200,
        took=0.5,
        price=Decimal("9.90"),
        state=KeyState.AVAILABLE,
        file=Path("a/卡密.txt"),
        reasons={"duplicate": 2},
        nothing=None,
        token=SecretText(CANARY),
        card=CardKey({"pin": CANARY}, {"pin": CANARY}, CANARY),
        ratio=float("nan"),
    )
    (line,) = written(stderr)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "event": "synced",
        "logger": "syncd.test",
        "supplier": "samples",
        "keys": 3,
        "key_id": 7,
        "status_code": 200,
        "took": 0.5,
        "price": "9.90",
        "state": "available",
        "file": "a/卡密.txt",
        "reasons": {"duplicate": 2},
        "nothing": None,
        "token": "***",
        "card": "<CardKey>",
        "ratio": "nan",
    }


def test_an_error_of_ours_is_told_with_its_message_and_its_cause_by_type(stderr):
    ours(stderr)
    try:
        try:
            raise sqlalchemy.exc.IntegrityError("INSERT", {"text": CANARY}, _unique_violation())
        except sqlalchemy.exc.IntegrityError as cause:
            raise NotFoundError("no product steam-50", hint="add it to the configuration") from cause
    except NotFoundError as error:
        log().exception("refused", error=error)
    (line,) = written(stderr)
    assert line["error"] == "not_found: no product steam-50 (add it to the configuration)"
    outer, inner = line["exception"]
    assert outer["message"] == "no product steam-50 (add it to the configuration)"
    assert outer["frames"][-1].startswith("tests/test_logs.py:")
    assert inner["type"] == "sqlalchemy.exc.IntegrityError[SQLITE_CONSTRAINT_UNIQUE]"
    assert "message" not in inner


def _unique_violation():
    engine = sqlalchemy.create_engine("sqlite://")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("CREATE TABLE t (a UNIQUE)")
            connection.exec_driver_sql("INSERT INTO t VALUES (1), (1)")
    except sqlalchemy.exc.IntegrityError as error:
        return error.orig
    finally:
        engine.dispose()


def test_the_errno_of_a_full_disk_is_told(stderr):
    ours(stderr)
    caught(OSError(28, "No space left on device", CANARY))
    (line,) = written(stderr)
    assert line["exception"][0]["type"] == "OSError[ENOSPC]"


def test_deep_and_large_values_are_cut(stderr):
    ours(stderr)
    loop = []
    loop.append(loop)
    log().info("x", loop=loop, many=list(range(1000)), table=dict.fromkeys(map(str, range(1000)), 0))
    (line,) = written(stderr)
    assert len(line["many"]) == len(line["table"]) == 51


def test_a_line_that_cannot_be_written_is_reported_without_it(stderr, monkeypatch):
    ours(stderr)
    monkeypatch.setattr(logs, "shown", lambda *_, **__: 1 / 0)
    log().info("x", text=CANARY)
    assert stderr.getvalue() == "a log line of syncd.test could not be written: ZeroDivisionError\n"


def test_a_reload_changes_the_level_and_doubles_no_line(stderr):
    logger = structlog.get_logger("syncd.test")
    configure(stderr, "info", json=True)
    logger.debug("too quiet")
    logger.info("one")
    configure(stderr, "debug", json=True)
    logger.debug("two")
    configure(stderr, "warning", json=True)
    logger.info("too quiet again")
    assert [line["event"] for line in written(stderr)] == ["one", "two"]


def test_without_a_terminal_lines_are_json_and_on_one_they_are_for_people(stderr, monkeypatch):
    configure(stderr, "info")
    log().info("one")
    json.loads(stderr.getvalue())
    stderr.truncate(0)
    monkeypatch.setattr(stderr, "isatty", lambda: True, raising=False)
    configure(stderr, "info")
    log().info("two")
    with pytest.raises(json.JSONDecodeError):
        json.loads(stderr.getvalue().strip("\0"))
