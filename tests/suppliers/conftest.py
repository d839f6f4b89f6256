"""A supplier on loopback that says exactly the bytes it is told, and clients that speak to it."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Seen:
    """One request as it came in. ``connection`` numbers the connections."""

    connection: int
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    at: float


def ok(body: bytes = b"{}", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class RawSupplier:
    """``answer`` gives the bytes, or pieces of them to be sent one after the other; an empty end closes."""

    answer: Callable[[Seen], bytes | Iterable[bytes]] = lambda _seen: ok()
    context: ssl.SSLContext | None = None
    keep: bool = True
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    most_open: int = 0

    def __post_init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.socket.getsockname()[1]
        self.lock = threading.Lock()
        self.came = threading.Event()
        self.conns: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http{'s' if self.context else ''}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, _ = self.socket.accept()
                with self.lock:
                    self.connections += 1
                    self.conns.append(conn)
                threading.Thread(target=self._serve, args=(conn, self.connections), daemon=True).start()

    def _serve(self, conn: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError, ValueError), conn:
            talk = self.context.wrap_socket(conn, server_side=True) if self.context else conn
            with talk, talk.makefile("rb") as stream:
                while request := self._request(stream, number):
                    with self.lock:
                        self.seen.append(request)
                        self.came.set()
                        self.open += 1
                        self.most_open = max(self.most_open, self.open)
                    try:
                        said = self.answer(request)
                        for piece in [said] if isinstance(said, bytes) else said:
                            if not piece:
                                return
                            talk.sendall(piece)
                    finally:
                        with self.lock:
                            self.open -= 1
                    if not self.keep or request.headers.get("connection") == "close":
                        return

    def _request(self, stream, number: int) -> Seen | None:
        line = stream.readline().decode()
        if not line:
            return None
        method, target, _ = line.split()
        headers = {}
        while (line := stream.readline().decode("latin-1").strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = stream.read(int(headers.get("content-length", 0)))
        return Seen(number, method, target, headers, body, time.monotonic())

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for conn in self.conns:
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def raw() -> Iterator[Callable[..., RawSupplier]]:
    """Start a supplier that says what it is told."""
    made: list[RawSupplier] = []

    def start(answer: Callable[[Seen], bytes | Iterable[bytes]] = lambda _seen: ok(), **more) -> RawSupplier:
        made.append(RawSupplier(answer, **more))
        return made[-1]

    yield start
    for supplier in made:
        supplier.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """(a private authority's certificate, the context of a server for 127.0.0.1 that it vouches for)."""
    folder = tmp_path_factory.mktemp("authority")
    now = dt.datetime.now(dt.UTC)

    def certificate(name, key, issuer, issuer_key, *, ca):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
            made = made.add_extension(names, critical=False)
        return made.sign(issuer_key, hashes.SHA256())

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = certificate("ca", ca_key, None, ca_key, ca=True)
    leaf = certificate("supplier", key, ca.subject, ca_key, ca=False)
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "leaf.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "leaf.pem", folder / "key.pem")
    return folder / "ca.pem", context
