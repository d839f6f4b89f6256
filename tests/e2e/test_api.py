"""The real daemon's HTTP API: who may do what (A1), one answer for one order (M2), a problem for everything else."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from syncd.storefronts.hot import DeliveryAnswer, DeliveryRequest

PRODUCTS = (
    '[products.a]\ntitle = "a"\nformat = "opaque"\nprice = "9.90 CNY"\n[products.none]\ntitle = "none"\n'
    '[products.upload]\ntitle = "upload"\n[shops.other]\n'
)
CANARY = "CANARY-7F3A"

# Every route with what it takes: rights, and who. A route that is not here fails the test of the table.
OPEN, SHOP, OPERATOR = None, "shop", "operator"
ROUTES: dict[tuple[str, str], tuple[set[str], str | None, bool]] = {
    ("GET", "/v1/stock"): ({"stock"}, None, False),
    ("POST", "/v1/deliveries"): ({"deliver"}, SHOP, False),
    ("GET", "/v1/deliveries/{order_ref}"): ({"deliver"}, SHOP, False),
    ("POST", "/v1/deliveries/{order_ref}/cancel"): ({"deliver"}, SHOP, False),
    ("POST", "/v1/deliveries/{order_ref}/replacements"): ({"deliver"}, SHOP, False),
    ("PUT", "/v1/reservations/{order_ref}"): ({"deliver"}, SHOP, False),
    ("GET", "/v1/reservations/{order_ref}"): ({"deliver"}, SHOP, False),
    ("DELETE", "/v1/reservations/{order_ref}"): ({"deliver"}, SHOP, False),
    ("GET", "/v1/deliveries"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/shops/{shop}/deliveries/{order_ref}"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/shops/{shop}/deliveries/{order_ref}/retry"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/shops/{shop}/deliveries/{order_ref}/replacements"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/claims"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/products/{sku}/explain"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/replenish"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/replenish"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/claims/{key}/settle"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/status"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/suppliers"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/suppliers/{name}/sync"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/suppliers/{name}/runs"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/runs/{run}"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/suppliers/{name}/accept"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/suppliers/{name}/history"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/offers"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/purchases"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/purchases/{reference}"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/purchases/{reference}/resolve"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/products/{sku}/buy"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/hooks/{name}"): (set(), OPEN, False),
    ("POST", "/v1/keys/import"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/keys/unseal"): ({"operate", "reveal"}, OPERATOR, True),
    ("POST", "/v1/products/{sku}/unhold"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/quarantine"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/quarantine/{entry}"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/quarantine/{entry}/reveal"): ({"operate", "reveal"}, OPERATOR, False),
    ("POST", "/v1/quarantine/{entry}/release"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/quarantine/{entry}/drop"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/quarantine/{entry}/settle"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/quarantine/reread"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/quarantine/drop"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/quarantine/return"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/quarantine/complain"): ({"operate"}, OPERATOR, False),
    ("GET", "/v1/tokens"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/tokens"): ({"operate"}, OPERATOR, False),
    ("DELETE", "/v1/tokens/{token}"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/recover"): ({"operate"}, OPERATOR, False),
    ("POST", "/v1/vault/kek/export"): ({"operate", "reveal"}, OPERATOR, True),
    ("GET", "/healthz"): (set(), OPEN, False),
    ("GET", "/readyz"): (set(), OPEN, False),
    ("GET", "/metrics"): (set(), OPEN, False),  # over loopback
}


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One daemon for all of these: each test uses orders of its own."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("e2e_daemon", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("api")
    daemon = module.Daemon(folder, f"sqlite:///{folder}/var/syncd.db", PRODUCTS)
    daemon.config.write_text(daemon.config.read_text() + 'unix_users = ["root"]\n')
    daemon.drop("a", "a.txt", "".join(f"KEY-{number:06d}\n" for number in range(3000)))
    # The shop of root is demo alone: its token's file is made for the only shop there is, or by hand.
    daemon.start()
    made = json.loads(daemon.syncd("token", "create", "demo", "--rights", "stock,deliver,reveal", "--json"))
    (daemon.state / "shop.token").write_text(made["token"])
    daemon.syncd("sync")
    try:
        yield daemon
        assert daemon.errors() == []
    finally:
        daemon.kill()


def token(served: Any, principal: str, *rights: str) -> str:
    made = json.loads(served.syncd("token", "create", principal, "--rights", ",".join(rights), "--json"))
    return str(made["token"])


def filled(path: str) -> str:
    return path.replace("{name}", "nobody").replace("{sku}", "a").replace("{", "9").replace("}", "9")


def ask(served: Any, method: str, path: str, bearer: str) -> int:
    body = {} if method == "POST" else None
    status, answer = served.call(method, filled(path).replace("9run9", "9").replace("9entry9", "9"), body, token=bearer)
    if status >= 400:
        assert set(answer) >= {"type", "title", "status", "detail", "code"}, answer
    return int(status)


def allowed(rule: tuple[set[str], str | None, bool], principal: str | None, rights: set[str]) -> int | None:
    """The status of a refusal, None when the rule lets this caller in. Over TCP."""
    wanted, whose, over_socket = rule
    if not wanted:
        return None
    if principal is None:
        return 401
    if not wanted <= rights or (whose and whose != ("operator" if principal == "operator" else "shop")) or over_socket:
        return 403
    return None


def assert_default_deny(served: Any, routes: dict[tuple[str, str], Any], callers: dict[str, Any]) -> None:
    for (method, path), rule in routes.items():
        for name, (bearer, principal, rights) in callers.items():
            status = ask(served, method, path, bearer)
            refused = allowed(rule, principal, rights)
            if refused:
                assert status == refused, (method, path, name)
            else:
                assert status not in {401, 403, 500}, (method, path, name)


@pytest.fixture(scope="module")
def callers(served: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"nobody": ("", None, set()), "wrong": ("syncd_" + "x" * 40, None, set())}
    for right in ("stock", "deliver", "reveal", "metrics"):
        found[f"demo {right}"] = (token(served, "demo", right), "demo", {right})
    for rights in (("stock", "deliver", "reveal", "operate", "metrics"), ("operate",), ("reveal", "metrics")):
        found[f"operator {rights}"] = (token(served, "operator", *rights), "operator", set(rights))
    revoked = json.loads(served.syncd("token", "create", "demo", "--json"))
    served.syncd("token", "revoke", revoked["id"])
    found["revoked"] = (revoked["token"], None, set())
    return found


def test_A1_every_route_for_every_caller(served: Any, callers: dict[str, Any]) -> None:
    described = served.call("GET", "/openapi.json", token="")[1]["paths"]
    assert {(m.upper(), path) for path, methods in described.items() for m in methods} == set(ROUTES)
    assert_default_deny(served, ROUTES, callers)


def test_A1_control_a_rule_that_is_not_kept_is_seen(served: Any, callers: dict[str, Any]) -> None:
    """As if stock took the right to operate: the daemon lets a shop in, and the table says that it must not."""
    with pytest.raises(AssertionError):
        assert_default_deny(served, {("GET", "/v1/stock"): ({"operate"}, OPERATOR, False)}, callers)


def test_A1_a_shop_never_sees_another_shops_delivery(served: Any) -> None:
    assert served.deliver("mine-1", "a")[0] == 200
    other = token(served, "other", "stock", "deliver", "reveal")
    assert served.call("GET", "/v1/deliveries/mine-1", token=other)[0] == 404
    body = {"order_ref": "mine-1", "product": "a", "quantity": 1}
    mine, theirs = served.call("POST", "/v1/deliveries", body), served.call("POST", "/v1/deliveries", body, token=other)
    assert mine[1]["repeat"] is True
    assert theirs[1]["repeat"] is False
    assert mine[1]["keys"] != theirs[1]["keys"]


def test_A1_the_right_to_deliver_does_not_reveal_again(served: Any) -> None:
    served.deliver("seen-1", "a")
    status, answer = served.call("GET", "/v1/deliveries/seen-1", token=token(served, "demo", "deliver"))
    assert (status, answer["status"], "keys" in answer) == (200, "delivered", False)


def over(path: Path, method: str, where: str, body: bytes | None = None) -> tuple[int, Any]:
    connection = _Unix(path)
    try:
        connection.request(method, where, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_A1_the_sockets_know_their_peers(served: Any) -> None:
    api, operator = served.state / "api.sock", served.state / "operator.sock"
    assert (api.stat().st_mode & 0o777, operator.stat().st_mode & 0o777) == (0o660, 0o600)
    assert over(api, "GET", "/v1/stock")[0] == 200  # root is a user of the shop demo here
    assert over(api, "GET", "/v1/status")[0] == 403
    assert over(api, "POST", "/v1/deliveries", b'{"order_ref":"by-socket","product":"a","quantity":1}')[0] == 200
    assert "keys" not in over(api, "GET", "/v1/deliveries/by-socket")[1]
    assert over(operator, "GET", "/v1/status")[0] == 200
    assert over(operator, "POST", "/v1/deliveries", b'{"order_ref":"x","product":"a","quantity":1}')[0] == 403
    export = json.dumps({"passphrase": "twelve letters and more"}).encode()
    assert over(operator, "POST", "/v1/vault/kek/export", export)[0] == 200
    assert served.call("POST", "/v1/vault/kek/export", json.loads(export), token=served.token("operator"))[0] == 403


def test_metrics_are_not_open_through_a_proxy(served: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.request("GET", "/metrics", headers={"X-Forwarded-For": "203.0.113.9"})
    assert connection.getresponse().status == 401
    connection.close()


def test_M2_64_at_once_are_one_delivery(served: Any) -> None:
    before = served.stock()["a"]
    answers: list[Any] = []
    barrier = threading.Barrier(64)

    def shop() -> None:
        barrier.wait()
        answers.append(served.deliver("at-once", "a", 3))

    shops = [threading.Thread(target=shop) for _ in range(64)]
    for thread in shops:
        thread.start()
    for thread in shops:
        thread.join()
    assert {status for status, _ in answers} == {200}
    assert [answer["repeat"] for _, answer in answers].count(False) == 1
    assert len({json.dumps(answer["keys"]) for _, answer in answers}) == 1
    served.syncd("sync")  # the stock that is shown may be some moments old
    assert served.stock()["a"] == before - 3


def test_what_is_reserved_over_http_is_there_when_it_is_paid(served: Any) -> None:
    hold = {"product": "a", "quantity": 2, "customer": "ann", "ttl_s": 60}
    status, made = served.call("PUT", "/v1/reservations/held-1", hold)
    assert (status, made["status"], made["promised"], made["repeat"]) == (201, "held", 0, False)
    status, again = served.call("PUT", "/v1/reservations/held-1", hold)
    assert (status, again) == (200, {**made, "repeat": True})
    assert served.call("GET", "/v1/reservations/held-1") == (200, again)
    assert served.call("PUT", "/v1/reservations/held-1", {**hold, "quantity": 1})[1]["code"] == "order_ref_reused"
    for ref, body, wanted in (("held-2", {"product": "none"}, 409), ("held-2", {"ttl_s": 3601}, 400)):
        assert served.call("PUT", f"/v1/reservations/{ref}", {**hold, **body})[0] == wanted
    assert served.call("GET", "/v1/reservations/held-1", token=token(served, "other", "deliver"))[0] == 404
    status, got = served.deliver("held-1", "a", 2)
    assert (status, len(got["keys"])) == (200, 2)
    assert served.call("DELETE", "/v1/reservations/held-1")[1]["code"] == "conflict"
    served.call("PUT", "/v1/reservations/held-3", hold)
    for _ in range(2):
        assert served.call("DELETE", "/v1/reservations/held-3")[1]["status"] == "released"


def test_a_bad_key_is_replaced_over_http_and_by_the_operator(served: Any) -> None:
    served.deliver("bad-1", "a", 2)
    first, other = served.call("GET", "/v1/deliveries/bad-1")[1]["keys"]
    asked = {"key_id": first["id"], "reason": "already_used"}
    where = "/v1/deliveries/bad-1/replacements"
    status, after = served.call("POST", where, asked)
    assert (status, after["status"], after["keys"][1]) == (200, "delivered", other)
    assert after["keys"][0]["id"] != first["id"]
    assert served.call("POST", where, asked)[1] == {**after, "repeat": True}
    assert served.call("POST", where, {**asked, "key_id": "1"})[0] == 404
    told = json.loads(
        served.syncd("deliveries", "replace", "demo", "bad-1", other["id"], "--reason", "invalid", "--json")
    )
    assert [(key["unit"], key["state"]) for key in told["keys"]] == [
        (0, "defective"),
        (0, "delivered"),
        (1, "defective"),
        (1, "delivered"),
    ]
    assert {row["key"] for row in told["replacements"]} == {first["id"], other["id"]}
    assert first["id"] in served.syncd("deliveries", "claims")
    assert "bad-1" in served.syncd("deliveries", "list", "--shop", "demo", "--product", "a")
    operator = served.token("operator")
    page = served.call("GET", "/v1/deliveries?limit=1&shop=demo", token=operator)[1]
    assert (len(page["items"]), page["next"]) == (1, page["items"][0]["id"])
    asked_again = served.call("POST", "/v1/shops/demo/deliveries/bad-1/retry", token=operator)
    assert (asked_again[0], asked_again[1]["code"]) == (409, "conflict")
    told = served.call("POST", f"/v1/claims/{first['id']}/settle", {"claim": "returned"}, token=operator)
    assert (told[0], told[1]["code"]) == (409, "conflict")


def test_stock_has_an_etag(served: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    bearer = {"Authorization": f"Bearer {served.token()}"}
    connection.request("GET", "/v1/stock", headers=bearer)
    response = connection.getresponse()
    response.read()
    tag = response.getheader("etag")
    connection.request("GET", "/v1/stock", headers={**bearer, "If-None-Match": tag})
    again = connection.getresponse()
    assert (again.status, again.read()) == (304, b"")
    assert served.deliver("tag-1", "a")[0] == 200
    for _ in range(50):  # the stock that is shown may be some moments old
        time.sleep(0.05)
        connection.request("GET", "/v1/stock", headers={**bearer, "If-None-Match": tag})
        changed = connection.getresponse()
        changed.read()
        if changed.status == 200:
            break
    assert changed.status == 200
    connection.close()


GOOD = {"order_ref": "p-1", "product": "a", "quantity": 1}
BAD: list[tuple[Any, int, str]] = [
    (b"", 400, "malformed_json"),
    (b"{", 400, "malformed_json"),
    (b'"' + CANARY.encode(), 400, "malformed_json"),
    (b"\xff\xfe" + CANARY.encode(), 400, "malformed_json"),
    (b"[" * 100_000, 413, "body_too_large"),
    (b"[" * 10_000, 400, "invalid_request"),
    (b'{"order_ref": "' + b"x" * 70_000 + b'"}', 413, "body_too_large"),
    (b"null", 400, "invalid_request"),
    (b"[]", 400, "invalid_request"),
    (b"{}", 400, "invalid_request"),
    ({**GOOD, "quantity": 0}, 400, "invalid_request"),
    ({**GOOD, "quantity": -1}, 400, "invalid_request"),
    ({**GOOD, "quantity": 1001}, 400, "invalid_request"),
    ({**GOOD, "quantity": 10**400}, 400, "invalid_request"),
    (b'{"order_ref": "p-1", "product": "a", "quantity": 1e999}', 400, "*"),
    ({**GOOD, "quantity": 1.5}, 400, "invalid_request"),
    ({**GOOD, "quantity": True}, 400, "invalid_request"),
    ({**GOOD, "quantity": CANARY}, 400, "invalid_request"),
    ({**GOOD, "quantity": None}, 400, "invalid_request"),
    ({**GOOD, "order_ref": f"{CANARY} with spaces"}, 400, "invalid_request"),
    ({**GOOD, "order_ref": "p-1\n"}, 400, "invalid_request"),
    ({**GOOD, "order_ref": "x" * 129}, 400, "invalid_request"),
    ({**GOOD, "order_ref": f"{CANARY}\x00"}, 400, "invalid_request"),
    ({**GOOD, "product": CANARY}, 404, "unknown_product"),
    ({**GOOD, "product": f"{CANARY}/.."}, 400, "invalid_request"),
    ({**GOOD, CANARY: 1}, 400, "invalid_request"),
    ({**GOOD, "product": "none"}, 409, "insufficient_stock"),
    (b'{"order_ref": "\\ud800", "product": "a", "quantity": 1}', 400, "*"),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_a_bad_request_is_a_problem_that_repeats_nothing(served: Any, body: Any, status: int, code: str) -> None:
    got, problem = served.call("POST", "/v1/deliveries", body)
    assert got == status, problem
    assert problem["code"] == code or code == "*"
    assert problem["status"] == status
    assert CANARY not in json.dumps(problem)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", f"/{CANARY}", 404, "not_found"),
        ("GET", f"/v1/deliveries/{CANARY}", 404, "not_found"),
        ("GET", f"/v1/deliveries/{CANARY}%20x", 400, "invalid_request"),
        ("GET", f"/v1/stock?product={CANARY}", 404, "unknown_product"),
        ("DELETE", "/v1/stock", 405, "method_not_allowed"),
        ("PUT", "/v1/deliveries", 405, "method_not_allowed"),
        ("POST", f"/v1/deliveries/{CANARY}/cancel", 404, "not_found"),
    ],
)
def test_other_problems(served: Any, method: str, path: str, status: int, code: str) -> None:
    got, problem = served.call(method, path)
    assert (got, problem["code"]) == (status, code)
    assert CANARY not in json.dumps(problem)


def test_a_body_that_is_no_json_by_its_own_word_is_refused(served: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    headers = {"Authorization": f"Bearer {served.token()}", "Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/v1/deliveries", b"order_ref=1", headers)
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["code"]) == (415, "unsupported_media_type")
    connection.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
near = st.fixed_dictionaries(
    {},
    optional={
        "order_ref": st.from_regex(r"[A-Za-z0-9._:~-]{1,12}", fullmatch=True) | json_values,
        "product": st.sampled_from(["a", "none", "b"]) | json_values,
        "quantity": st.integers(-2, 3) | st.integers() | json_values,
        "customer": st.text(max_size=3) | json_values,
        "wait_s": st.integers(-1, 31) | json_values,
        "more": json_values,
    },
)


def as_documented(body: Any) -> bool:
    try:
        DeliveryRequest.model_validate_json(json.dumps(body))
    except ValidationError:
        return False
    return True


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(body=near | json_values)
def test_the_hot_route_takes_what_its_openapi_entry_says_and_never_fails(served: Any, body: Any) -> None:
    if isinstance(body, dict) and any(isinstance(body.get(name), float) for name in ("quantity", "wait_s")):
        return  # 1.0 is an integer in JSON Schema, and to msgspec; pydantic's strict mode says no
    status, answer = served.call("POST", "/v1/deliveries", json.dumps(body).encode())
    assert status in {200, 400, 404, 409, 422}, answer
    assert (status == 400) is not as_documented(body), (status, body)
    if status == 200:
        DeliveryAnswer.model_validate(answer)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(route=st.sampled_from(sorted(ROUTES)), part=st.text(max_size=20), query=st.text(max_size=20), body=json_values)
def test_no_route_fails_whatever_is_sent(served: Any, route: tuple[str, str], part: str, query: str, body: Any) -> None:
    method, path = route
    if path in {"/v1/recover", "/v1/keys/unseal"}:
        return
    for name in ("order_ref", "name", "run", "entry", "token", "sku"):
        path = path.replace(f"{{{name}}}", quote(part, safe="") or "x")
    words = quote(query, safe="")
    path += f"?product={words}&reason={words}&limit={words}&after={words}&name={words}"
    data = json.dumps(body).encode() if method == "POST" else None
    for bearer in (served.token(), served.token("operator")):
        status, answer = served.call(method, path, data, token=bearer)
        assert status != 500, (method, path, answer)
        assert status < 500, (method, path, answer)


def test_an_upload_streams_and_leaves_nothing_behind(served: Any, tmp_path: Path) -> None:
    clear = tmp_path / "up.txt"
    clear.write_text(
        "".join(f"UPLOAD-{number:08d}-{number * 2654435761 % 2**32:08X}{'A1B2C3D4' * 4}\n" for number in range(20_000))
    )
    before: Callable[[], set[str]] = lambda: {path.name for path in served.state.iterdir()}  # noqa: E731
    names = before()
    report = served.syncd("keys", "import", str(clear), "--product", "upload")
    assert "sealed       20000" in report
    assert "already_taken" in served.syncd("keys", "import", str(clear), "--product", "upload", "--json")
    assert before() - names <= {"syncd.db-wal", "syncd.db-shm"}
    assert b"UPLOAD-" not in b"".join(path.read_bytes() for path in served.state.glob("syncd.db*"))
