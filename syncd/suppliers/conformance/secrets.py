"""Silver, of secrets and of what comes in: nothing shows a key or a credential, nothing forged has an effect."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from syncd.adapter import Adapter, BadResponse, Forged, Hint, Request, Webhook
from syncd.metrics import Metrics
from syncd.suppliers.conformance.buying import with_keys, within
from syncd.suppliers.conformance.checks import Found, check
from syncd.suppliers.conformance.examples import Signature, WebhookExample
from syncd.suppliers.conformance.reading import at, invented, of_verb
from syncd.suppliers.conformance.rig import Kit, Session, instead
from syncd.suppliers.conformance.script import Change, bytes_of, places, put, reply, texts_replaced, tree_of

CANARY: Final = "CANARYKEY-7Q2Z-"
_FLIPS: Final = 400
_WORD: Final = re.compile(r"[\w.-]*", re.ASCII)
_LISTING: Final = ("list_offers", "get_offer")
_ACCOUNT: Final = ("get_balance", "check")
_TRADING: Final = ("place_order", "get_order", "find_order", "fetch_keys", "complain", *_LISTING, *_ACCOUNT)


@check("silver", "list_offers")
def nothing_secret_is_seen(kit: Kit) -> Found:
    """Logs, error texts and reprs are kept, mailed and pasted into tickets: a key in one of them is given away."""
    canaries = {text: f"{CANARY}{n}" for n, text in enumerate(t for key in kit.examples.expect.keys for t in key.texts)}
    hidden = [*kit.credentials, CANARY]
    for what, seen in _shown(kit, canaries):
        for text in hidden:
            if text in seen:
                kind = "a key or the supplier's words" if text == CANARY else "a credential"
                yield (
                    f"{what} shows {kind}",
                    "say what is wrong in words of your own; keys are RawKey, credentials Secret",
                )
                break


def _shown(kit: Kit, canaries: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(what, its text) of everything that can be seen, while all goes well and while much goes wrong."""
    kit.metrics = Metrics("kit")
    kit.metrics.know(products=(), shops=(), suppliers=("kit",))
    for verb in [one for one in _TRADING if one in kit.verbs]:
        arguments = kit.arguments(verb)
        for change in (with_keys(canaries), *_mishaps(kit, verb, canaries)):
            with kit.session(change) as session, _overheard() as heard:
                outcome = session.call(verb, *arguments)
                error = outcome.error
                if error is not None:
                    yield f"{verb}: the text of {outcome}", f"{error}\n{error!r}\n{error.args}\n{vars(error)}"
                    yield f"{verb}: the traceback of {outcome}", "".join(traceback.format_exception(error))
                elif verb not in _LISTING:  # a title may be anything
                    yield f"{verb}: the repr of {outcome}", f"{outcome.value!r} {outcome.value}"
                yield from _reprs(session)
                yield f"{verb}: what it logs or prints", _logged(session) + heard.getvalue()
    yield "a metric", kit.metrics.render().decode()
    kit.metrics = None


def _mishaps(kit: Kit, verb: str, canaries: dict[str, str]) -> Iterator[Change]:
    """Answers that are refused, with keys or the supplier's prose in them."""
    for exchange in of_verb(kit, verb):
        tree = texts_replaced(tree_of(exchange.body), canaries)
        body = bytes_of(tree)
        told = bytes_of({"error": "kit", "message": f"no {CANARY}a", "code": 0, "msg": f"no {CANARY}b"})
        bad = [
            reply(body[:-9]),
            reply(body, 409),
            reply(body, 500),
            reply(told),
            reply(told, 409),
            reply(f"{CANARY}c".encode()),
        ]
        for place, value in places(tree):
            if isinstance(value, str) and CANARY in value:
                bad += [reply(bytes_of(put(tree, place, other))) for other in ([value], {value: value})]
                bad.append(reply(bytes_of(put(tree, place[:-1], value))))
        yield from (instead(one, at(exchange)) for one in bad)
    for one in kit.examples.situation:
        tree = tree_of(one.body)
        if one.verb == verb and isinstance(tree, dict):
            strange = {
                name: one if isinstance(one, dict | list | None) else invented(one) for name, one in tree.items()
            }
            for fields in (tree, strange):
                yield within(kit, one, reply(bytes_of({"kit": f"{CANARY}e", **fields}), one.status))
        for place, value in places(tree) if one.verb == verb else ():
            if isinstance(value, str) and not _WORD.fullmatch(value):  # prose, or a key: a code may be shown
                yield within(kit, one, reply(bytes_of(put(tree, place, f"{value} {CANARY}d")), one.status))


def _reprs(session: Session) -> Iterator[tuple[str, str]]:
    yield "the repr of the adapter", repr(session.adapter)
    yield "the repr of its context", repr(session.context)
    yield "the repr of what it proves itself with", repr(session.auths)


def _logged(session: Session) -> str:
    """As the gate of the logs lets it through: of an exception that is not ours, its kind and frames alone."""
    return "\n".join(str({k: v for k, v in entry.items() if k != "exc_info"}) for entry in session.logged)


@contextlib.contextmanager
def _overheard() -> Iterator[io.StringIO]:
    """What is logged through the standard library, and printed."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            yield heard
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


# --- signatures -------------------------------------------------------------------------------------------------------


def _no_vector(kit: Kit) -> str:
    return "" if kit.examples.signature else "the examples have no [[signature]]"


@check("silver", unless=_no_vector)
def signatures_are_as_documented(kit: Kit) -> Found:
    """A signature that is nearly right is refused, and nobody can see why: the vector says it at once."""
    for vector in kit.examples.signature:
        with kit.session(**vector.settings) as session:
            signers = [auth for auth in session.auths if callable(auth)]
            if not signers:
                yield "there is no Signer to try the vector on", "self.context.connect(url, auth=self.sign)"
                continue
            request = _vector(vector)
            found = {name.lower(): value for name, value in signers[0](request).items()}
            later = signers[0](replace(request, at=request.at + timedelta(hours=1)))
        for name, value in vector.headers.items():
            if found.get(name.lower()) != value:
                yield f"{vector.request}: the header {name} is not as in the vector", "sign exactly the documented text"
        for name, value in later.items():
            if str(int(vector.at.timestamp())) in value and found.get(name.lower()) == value:
                yield f"the header {name} bears the vector's time an hour later too", "take the time from request.at"


def _vector(vector: Signature) -> Request:
    method, _, rest = vector.request.partition(" ")
    url = urlsplit(rest)
    return Request(method, url.path, dict(parse_qsl(url.query)), vector.body.encode(), {}, vector.at)


# --- webhooks ---------------------------------------------------------------------------------------------------------


def _webhook(example: WebhookExample, **other: Any) -> Webhook:
    method, _, rest = example.request.partition(" ")
    url = urlsplit(rest)
    values = {
        "method": method,
        "path": url.path,
        "headers": {name.lower(): value for name, value in example.headers.items()},
        "query": dict(parse_qsl(url.query)),
        "body": example.body.encode(),
        "received_at": example.at,
    }
    return Webhook(**{**values, **other})


def _parsed(adapter: Adapter, webhook: Webhook) -> Any:
    """The hint, or the error."""
    try:
        return adapter.parse_webhook(webhook)
    except Exception as error:  # noqa: BLE001 - which one it is is what is looked at
        return error


@check("silver", "parse_webhook")
def a_webhook_is_as_documented(kit: Kit) -> Found:
    """A hint that names the wrong order asks for the wrong order."""
    for example in kit.examples.webhook:
        with kit.session(**example.settings) as session:
            found = _parsed(session.adapter, _webhook(example))
        if not isinstance(found, Hint):
            yield f"the valid webhook ends in {type(found).__name__}: {found}", "read and verify it as it is documented"
            continue
        for name in ("event", "order_id", "reference", "sku"):
            if getattr(found, name) != getattr(example, name):
                yield (
                    f"{name} is {getattr(found, name)!r}, expected is {getattr(example, name)!r}",
                    "read it as documented",
                )
        if example.answer is not None and found.answer != example.answer.encode():
            yield "the answer is not the one that the supplier wants", "Hint(answer=b...)"


@check("silver", "parse_webhook")
def a_changed_webhook_is_refused(kit: Kit) -> Found:
    """Anybody can send to that address: one changed byte must be refused, or change nothing of the hint."""
    for example in kit.examples.webhook:
        with kit.session(**example.settings) as session:
            good = _parsed(session.adapter, _webhook(example))
            if not isinstance(good, Hint):
                continue
            for what, webhook in _changed(example):
                found = _parsed(session.adapter, webhook)
                if found != good and not isinstance(found, Forged | BadResponse):
                    yield f"{what}: {_named(found)}", "verify the signature over the bytes first, with same(...)"


def _changed(example: WebhookExample) -> Iterator[tuple[str, Webhook]]:
    whole = _webhook(example)
    step = max(1, len(whole.body) // _FLIPS)
    for index in range(0, len(whole.body), step):
        body = bytearray(whole.body)
        body[index] ^= 1
        yield f"byte {index} of the body changed", _webhook(example, body=bytes(body))
    for name, value in whole.headers.items():
        for index in range(len(value)):
            other = value[:index] + chr(ord(value[index]) ^ 1) + value[index + 1 :]
            yield f"character {index} of {name} changed", _webhook(example, headers={**whole.headers, name: other})
        rest = {other: text for other, text in whole.headers.items() if other != name}
        yield f"without {name}", _webhook(example, headers=rest)
    yield "with nothing added to the body's end but a blank", _webhook(example, body=whole.body + b" ")


def _named(found: Any) -> str:
    return "it is believed" if isinstance(found, Hint) else f"{type(found).__name__} comes out"


@check("silver", "parse_webhook")
def an_old_webhook_is_refused(kit: Kit) -> Found:
    """A recorded webhook that is sent again after a week is still signed: only its time shows that it is old."""
    for example in kit.examples.webhook:
        with kit.session(**example.settings) as session:
            for what, shift in (("a day later", timedelta(days=1)), ("a day before", -timedelta(days=1))):
                found = _parsed(session.adapter, _webhook(example, received_at=example.at + shift))
                if not isinstance(found, Forged):
                    yield (
                        f"arriving {what}: {_named(found)}",
                        "compare its time with received_at; raise Forged past 5 minutes",
                    )


@check("silver", "parse_webhook")
def garbage_is_no_webhook(kit: Kit) -> Found:
    """What anybody can send must never end in an error of the server's."""
    for example in kit.examples.webhook:
        with kit.session(**example.settings) as session:
            for what, body in (
                ("nothing", b""), ("{}", b"{}"), ("[]", b"[]"), ("null", b"null"), ("HTML", b"<html>"),
                ("a number", b"7"), ("bytes that are no UTF-8", b"\xff\xfe\x00"), ("deep lists", b"[" * 100_000),
                ("a form", b"a=%ff&b"),
            ):  # fmt: skip
                for headers in (_webhook(example).headers, {}, dict.fromkeys(_webhook(example).headers, "é")):
                    found = _parsed(session.adapter, _webhook(example, body=body, headers=headers))
                    if not isinstance(found, Forged | BadResponse):
                        yield f"{what}: {_named(found)}", "raise Forged or BadResponse for whatever is not a webhook"
