"""Ingest of N keys: read, seal, write and de-duplicate, against a bare loop of seal, HMAC and insert, same schema.

The bare loop is what nobody can avoid: it seals each line, fingerprints it twice, and hands rows to the driver's own
``executemany`` in transactions as large as ours are when nothing else is going on. It reads no format, looks for no
duplicate, writes no audit and keeps no mark.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psycopg
from parts import Parts

from syncd.inventory.formats import load_formats
from syncd.inventory.intake import Intake
from syncd.model import NEVER
from syncd.vault.crypto import associated

BARE_CHUNK = 2000


def key_file(path: Path, keys: int, salt: str) -> Path:
    with path.open("w") as file:
        for number in range(keys):
            file.write(f"{salt}-{number * 2654435761 % 2**32:08X}-{number:08d}\n")
    return path


def bare(parts: Parts, file: Path, postgresql: bool) -> float:
    """Seconds of the bare loop."""
    parts.fill(1, "BARE")  # a source to point to
    ((source_id,),) = _read(parts, "SELECT max(source_id) FROM vault_key")
    url = parts.database.url
    connection: Any
    if postgresql:
        connection = psycopg.connect(url.render_as_string(hide_password=False).replace("+psycopg", ""), autocommit=True)
    else:
        connection = sqlite3.connect(url.database or "", isolation_level=None)
        for name in ("synchronous=2", "foreign_keys=1", "wal_autocheckpoint=4000", "cache_size=-24576"):
            connection.execute(f"PRAGMA {name}")
    cursor = connection.cursor()
    mark = "%s" if postgresql else "?"
    keys_sql = f"INSERT INTO vault_key VALUES ({', '.join([mark] * 8)})"
    prints_sql = f"INSERT INTO fingerprint VALUES ({mark}, {mark})"
    pack = msgspec.msgpack.Encoder().encode
    ring = parts.ring
    started = time.perf_counter()
    with file.open() as lines:
        rows: list[Any] = []
        prints: list[Any] = []

        def write() -> None:
            cursor.execute("BEGIN")
            cursor.executemany(keys_sql, rows)
            cursor.executemany(prints_sql, sorted(prints))
            cursor.execute("COMMIT")
            rows.clear()
            prints.clear()

        for number, line in enumerate(lines):
            text = line.strip()
            row_id = parts.ids.next()
            sealed = ring.seal(
                pack(({"code": text}, text, NEVER)), associated("vault_key", row_id, "bench-0", "feed:bare")
            )
            rows.append((row_id, "bench-0", "bench-0", source_id, number, "available", NEVER, sealed))
            prints += [(ring.fingerprint("", text), row_id), (ring.fingerprint("", text.replace("-", "")), row_id)]
            if len(rows) == BARE_CHUNK:
                write()
        if rows:
            write()
    took = time.perf_counter() - started
    connection.close()
    return took


def _read(parts: Parts, sql: str) -> Any:
    with parts.database.read() as connection:
        return connection.exec_driver_sql(sql).all()


def main() -> None:
    bare_url, url, keys = sys.argv[1], sys.argv[2], int(sys.argv[3])
    formats = load_formats([])
    with tempfile.TemporaryDirectory() as folder:
        ceiling = Parts(bare_url)
        postgresql = ceiling.database.postgresql
        bare_s = bare(ceiling, key_file(Path(folder) / "bare.txt", keys, "A"), postgresql)
        ceiling.stop()
        parts = Parts(url)
        product: Any = SimpleNamespace(sku="bench-0", split=None, issuer="", reads_as="opaque", min_life=0)
        metrics: Any = SimpleNamespace(sealed=lambda *_: None, repeated=lambda *_: None, quarantined=lambda *_: None)
        intake = Intake(
            parts.database,
            parts.writer,
            parts.vault,
            lambda: formats,
            lambda: {"bench-0": product},
            metrics,
            lambda _product: None,
        )
        file = key_file(Path(folder) / "ours.txt", keys, "B")
        started = time.perf_counter()
        report = intake.import_file("bench-0", file.name, file.stat().st_size, lambda: file.open("rb"))
        ours_s = time.perf_counter() - started
        assert report.counts.sealed == keys, report.text
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        engine = parts.database.url.get_backend_name()
        print(
            f"ingest  {engine:10} {keys:,} keys: {keys / ours_s:6.0f}/s of {keys / bare_s:6.0f}/s bare"
            f" = {bare_s / ours_s:.2f} (wanted 0.70), peak {int(peak.split()[1]) // 1024} MiB",
            flush=True,
        )
        parts.stop()


if __name__ == "__main__":
    main()
