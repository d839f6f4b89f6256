"""Keys, tokens and signatures: each try has its own, a token is fetched once for all, and a 401 renews it once."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime

import pytest

from syncd.adapter import (
    AdapterError,
    ApiKey,
    Auth,
    BadResponse,
    Basic,
    Bearer,
    NotSent,
    OAuth2,
    SecretText,
    Transient,
    hmac_sha256_hex,
    md5_hex,
    sha1_hex,
)
from syncd.model import Clock
from syncd.suppliers.client import Answer, Call, Client, Cut, Reply, calling

BASE = "https://shop.example/api/v1/upstream"


class Stepping(Clock):
    """Every look at it is a second later."""

    def __init__(self, at: float) -> None:
        self.at = at - 1

    def now(self) -> float:
        self.at += 1
        return self.at


async def asked(http, method="GET", path="/x", *, verb="get_balance", **more):
    with calling(Call(verb)):
        try:
            return await http.request(method, path, **more)
        except AdapterError as error:
            return error


def connected(play, auth, **more):
    return Client("s", play=play, jitter=lambda: 0.0, **more)(BASE, auth=auth)


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        (ApiKey(SecretText("k-123")), "x-api-key", "k-123"),
        (ApiKey(SecretText("k-123"), header="X-Token"), "x-token", "k-123"),
        (Bearer(SecretText("t-123")), "authorization", "Bearer t-123"),
        (Basic("me", SecretText("pä:ss")), "authorization", "Basic " + base64.b64encode("me:pä:ss".encode()).decode()),
    ],
)
async def test_a_fixed_proof_is_in_its_header(auth, header, value):
    sent = []
    await asked(connected(lambda request: sent.append(request) or Reply(), auth))
    assert sent[0].headers[header] == value
    assert sent[0].query == {}


async def test_a_key_in_the_query_joins_what_is_asked():
    sent = []
    http = connected(lambda request: sent.append(request) or Reply(), ApiKey(SecretText("k 1"), query="key"))
    await asked(http, query={"page": 1})
    assert sent[0].query == {"page": "1", "key": "k 1"}


# --- signatures -------------------------------------------------------------------------------------------------------


def dujiao(request):
    stamp = str(int(request.at.timestamp()))
    text = f"{request.method}\n{request.path}\n{stamp}\n{md5_hex(request.body)}"
    return {
        "Dujiao-Next-Timestamp": stamp,
        "Dujiao-Next-Signature": hmac_sha256_hex(SecretText("secret"), text),
    }


async def test_a_signer_signs_exactly_what_leaves():
    """Vectors: HMAC over method, path with the base's own, time and MD5 of the body; the query is not in it."""
    sent = []
    http = connected(lambda request: sent.append(request) or Reply(), dujiao, clock=Stepping(1_700_000_000))
    await asked(http, "POST", "/orders", json={"sku_id": 1, "quantity": 1}, verb="place_order")
    assert sent[0].body == b'{"sku_id":1,"quantity":1}'
    assert sent[0].headers["dujiao-next-timestamp"] == "1700000000"
    assert (
        sent[0].headers["dujiao-next-signature"] == "48afbcf8034f6e6ac879b7af76f4efc5a96bacb8ffb4bc9578403997450e6a1c"
    )
    http = connected(lambda request: sent.append(request) or Reply(), dujiao, clock=Stepping(1_700_000_000))
    await asked(http, path="/products", query={"page": 2})
    assert (
        sent[1].headers["dujiao-next-signature"] == "4c46320a66a0d9d2fca1b11bbb098338b4b1adbb8f2b8d8917dd1a41302e6b0b"
    )


async def test_a_signature_over_the_body_sees_the_bytes_that_leave():
    key = SecretText("H0YnuPpcVtx7rQdMTbjN6932s5oDOqFa")

    def sign(request):
        return {"Sign": sha1_hex(b"1696645385740" + request.body + key.reveal().encode())}

    sent = []
    http = connected(lambda request: sent.append(request) or Reply(), sign)
    await asked(http, "POST", json={"day": 10, "external_orderno": "", "ordersn": "D100759082558859640832"})
    assert sent[0].headers["sign"] == "15b8f541eb10e3fbb33efd92c8d52d50ddca0784"


async def test_each_try_is_signed_anew():
    sent = []
    http = connected(lambda request: sent.append(request) or Reply(500), dujiao, clock=Stepping(1_700_000_000))
    await asked(http)
    assert len(sent) == len({request.headers["dujiao-next-timestamp"] for request in sent}) == 4


async def test_a_signer_is_told_the_query_and_the_time():
    told = []

    def sign(request):
        told.append(request)
        return {}

    await asked(connected(lambda _sent: Reply(), sign, clock=Stepping(1_700_000_000)), query={"a": 1})
    assert (told[0].query, told[0].at) == ({"a": "1"}, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC))


# --- tokens -----------------------------------------------------------------------------------------------------------


class Tokens:
    """A supplier with a token server, which may refuse tokens."""

    def __init__(self, life: object = 3600, shape: str = "access_token", *, slow: float = 0.0) -> None:
        self.life, self.shape, self.slow = life, shape, slow
        self.given: list[str] = []
        self.refused: set[str] = set()
        self.asked: list[object] = []
        self.sent: list[object] = []
        self.token_reply: Reply | None = None

    async def __call__(self, request):
        if request.path == "/oauth/token":
            self.asked.append(request)
            await asyncio.sleep(self.slow)
            if self.token_reply is not None:
                return self.token_reply
            self.given.append(f"token-{len(self.given) + 1}")
            answer = {self.shape: self.given[-1]}
            if self.life is not None:
                answer["expires_in" if self.shape == "access_token" else "expiresIn"] = self.life
            return Reply(body=json.dumps(answer).encode())
        self.sent.append(request)
        token = request.headers["authorization"].removeprefix("Bearer ")
        return Reply(401 if token in self.refused or token not in self.given else 200)


def oauth(**more):
    return OAuth2("https://auth.example/oauth/token", "me", SecretText("s-123"), **more)


@pytest.mark.parametrize("shape", ["access_token", "value"])
@pytest.mark.parametrize("send_as", ["form", "json", "query"])
async def test_a_token_of_either_shape_is_fetched_once_and_used(shape, send_as):
    tokens = Tokens(shape=shape)
    http = connected(tokens, oauth(send_as=send_as, extra={"audience": BASE}))
    for _ in range(3):
        assert isinstance(await asked(http), Answer)
    assert [request.headers["authorization"] for request in tokens.sent] == ["Bearer token-1"] * 3
    (request,) = tokens.asked
    assert "authorization" not in request.headers
    assert request.reads
    fields = {
        "grant_type": "client_credentials",
        "client_id": "me",
        "client_secret": "s-123",
        "audience": BASE,
    }
    match send_as:
        case "json":
            assert json.loads(request.body) == fields
        case "query":
            assert (request.query, request.body) == (fields, b"")
        case _:
            assert request.headers["content-type"] == "application/x-www-form-urlencoded"
            assert b"client_secret=s-123" in request.body


async def test_one_fetch_for_all_who_wait():
    tokens = Tokens(slow=0.05)
    http = connected(tokens, oauth())
    found = await asyncio.gather(*(asked(http) for _ in range(10)))
    assert all(isinstance(one, Answer) for one in found)
    assert len(tokens.asked) == 1


async def test_negative_control_without_the_lock_everybody_fetches(monkeypatch):
    class Open:
        async def __aenter__(self):
            return self

        async def __aexit__(self, *args):
            return None

    tokens = Tokens(slow=0.05)
    http = connected(tokens, oauth())
    monkeypatch.setattr(http._auth, "_lock", Open())
    await asyncio.gather(*(asked(http) for _ in range(4)))
    assert len(tokens.asked) == 4


@pytest.mark.parametrize(("life", "after"), [(100, 91), (3600, 3541), (None, 541), ("3600", 3541)])
async def test_a_token_is_renewed_shortly_before_it_ends(life, after, monkeypatch):
    tokens = Tokens(life)
    http = connected(tokens, oauth())
    now = [1000.0]
    monkeypatch.setattr(http._auth, "_monotonic", lambda: now[0])
    await asked(http)
    now[0] += after - 5
    await asked(http)
    assert len(tokens.asked) == 1
    now[0] += 5
    await asked(http)
    assert len(tokens.asked) == 2


async def test_a_401_fetches_a_new_token_once():
    tokens = Tokens()
    http = connected(tokens, oauth())
    await asked(http)
    tokens.refused = {"token-1"}
    assert isinstance(await asked(http, verb="get_order"), Answer)  # GET reads, whatever the verb
    assert (len(tokens.asked), len(tokens.sent)) == (2, 3)
    tokens.refused = {"token-2", "token-3"}
    found = await asked(http)
    assert isinstance(found, Auth)
    assert (len(tokens.asked), len(tokens.sent)) == (3, 5)  # once more, then it is a matter of credentials


async def test_M1_a_purchase_with_a_token_that_has_ended_is_not_sent_again_and_was_not_bought():
    tokens = Tokens()
    http = connected(tokens, oauth())
    await asked(http)
    tokens.refused = {"token-1"}
    found = await asked(http, "POST", verb="place_order")
    assert type(found) is NotSent
    assert len(tokens.sent) == 2
    assert isinstance(await asked(http, "POST", verb="place_order"), Answer)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(400, body=b'{"error":"invalid_client"}'), Auth),
        (Reply(401), Auth),
        (Reply(403), Auth),
        (Reply(500), Transient),
        (Reply(body=b"<html>"), BadResponse),
        (Reply(body=b"{}"), BadResponse),
        (Reply(body=b'{"access_token": ""}'), BadResponse),
        (Reply(body=b'{"access_token": "x", "expires_in": 0}'), BadResponse),
        (Reply(body=b"[]"), BadResponse),
    ],
)
async def test_a_token_that_is_not_given_is_an_error_by_what_happens_next(reply, kind):
    tokens = Tokens()
    tokens.token_reply = reply
    for verb, method in (("get_balance", "GET"), ("place_order", "POST")):
        found = await asked(connected(tokens, oauth()), method, verb=verb)
        assert type(found) is kind
        assert "s-123" not in str(found)
    assert tokens.sent == []


async def test_M1_a_token_server_that_is_away_means_that_nothing_was_bought():
    def play(_sent):
        raise Cut("timeout")

    client = Client("s", play=play)
    http = client(BASE, auth=oauth())
    with calling(Call("place_order")) as call:
        with pytest.raises(Transient):
            await http.post("/orders")
        assert not call.left


async def test_S4_a_token_is_hidden_as_soon_as_it_is_there():
    client = Client("s", play=Tokens())
    await asked(client(BASE, auth=oauth()))
    assert client.redact("token-1 and s-123") == "*** and ***"
