"""The key ring as a barrier (S1), its KEK (S5, K11), rotation, and that nothing of it is ever seen (S4).

The barrier's checks run on the ring and, as their negative control, on barriers with a planted hole.
"""

from __future__ import annotations

import base64
import copy
import io
import os
import pickle
import stat
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from syncd.errors import KekError, UnreadableKeyError
from syncd.vault import crypto, keyring
from syncd.vault.crypto import Kek, associated, new_kek, parse_kek
from syncd.vault.keyring import Keyring, RingRow, create_kek_file, load_kek

NOW = 1_790_000_000
PLAIN = b"AAAA-BBBB-CCCC-DDDD"
HERE = associated("vault_key", 1, "steam-50", "feed:ab")
ELSEWHERE = {
    "row": associated("vault_key", 2, "steam-50", "feed:ab"),
    "product": associated("vault_key", 1, "steam-20", "feed:ab"),
    "source": associated("vault_key", 1, "steam-50", "feed:cd"),
    "table": associated("quarantine", 1, "steam-50", "feed:ab"),
    "nothing": b"",
}


@pytest.fixture
def kek() -> Kek:
    return new_kek()


@pytest.fixture
def ring(kek) -> Keyring:
    return Keyring.create(kek, NOW)


# --- S1: what a barrier promises --------------------------------------------------------------------------------------


def opens(barrier, blob, bound_to) -> bool:
    try:
        barrier.open(blob, bound_to)
    except UnreadableKeyError:
        return False
    return True


def shows(barrier) -> bool:
    """Whether any eight bytes of the plaintext stand in the record."""
    blob = barrier.seal(PLAIN, HERE)
    return any(PLAIN[at : at + 8] in blob for at in range(len(PLAIN) - 7))


def unseen_flips(barrier) -> list[str]:
    """The alterations of a record that it opens all the same."""
    blob = barrier.seal(PLAIN, HERE)
    assert barrier.open(blob, HERE) == PLAIN
    altered = {f"byte {at} xor {bit}": _flipped(blob, at, bit) for at in range(len(blob)) for bit in (1, 0x10, 0xFF)}
    altered |= {f"cut to {size}": blob[:size] for size in range(len(blob))}
    altered |= {"appended": blob + b"\0", "prepended": b"\x01" + blob, "doubled": blob + blob}
    return [what for what, other in altered.items() if opens(barrier, other, HERE)]


def moves(barrier) -> list[str]:
    """The places other than its own where a record opens."""
    blob = barrier.seal(PLAIN, HERE)
    return [place for place, bound_to in ELSEWHERE.items() if opens(barrier, blob, bound_to)]


def repeats(barrier) -> int:
    """How many of 1,000 seals of one plaintext are like another."""
    return 1000 - len({barrier.seal(PLAIN, HERE) for _ in range(1000)})


def _flipped(blob: bytes, at: int, bit: int) -> bytes:
    return blob[:at] + bytes([blob[at] ^ bit]) + blob[at + 1 :]


class Holed:
    """A barrier with its holes chosen: what the checks above must find."""

    def __init__(self, *, clear=False, loose=False, unbound=False, fixed=False):
        self.clear, self.loose, self.unbound, self.fixed = clear, loose, unbound, fixed
        self.aead = AESGCMSIV(bytes(32))

    def seal(self, plaintext, bound_to):
        nonce = bytes(12) if self.fixed else os.urandom(12)
        if self.clear or self.loose:
            return nonce + (plaintext if self.clear else bytes(byte ^ 0x55 for byte in plaintext))
        return nonce + self.aead.encrypt(nonce, plaintext, b"" if self.unbound else bound_to)

    def open(self, blob, bound_to):
        if self.clear or self.loose:
            return blob[12:] if self.clear else bytes(byte ^ 0x55 for byte in blob[12:])
        try:
            return self.aead.decrypt(blob[:12], blob[12:], b"" if self.unbound else bound_to)
        except Exception as error:
            raise UnreadableKeyError("no") from error


def test_S1_confidential(ring):
    assert not shows(ring)
    assert shows(Holed(clear=True)), "control"


def test_S1_integrity_each_byte_flipped(ring):
    assert unseen_flips(ring) == []
    assert unseen_flips(Holed(loose=True)), "control"


def test_S1_integrity_holds_when_the_flip_names_another_listed_key(kek, ring):
    blob = ring.seal(PLAIN, HERE)
    for _ in range(8):
        ring = ring.rotate_data_key(kek, NOW)
    listed = [row.id for row in ring.rows() if row.purpose == "data" and row.id != 1]
    assert len(listed) == 8
    assert not any(opens(ring, b"\x01" + number.to_bytes(4) + blob[5:], HERE) for number in listed)
    assert ring.open(blob, HERE) == PLAIN


def test_S1_move(ring):
    assert moves(ring) == []
    assert moves(Holed(unbound=True)) == list(ELSEWHERE), "control"


def test_S1_unique(ring):
    assert repeats(ring) == 0
    assert repeats(Holed(fixed=True)) == 999, "control"


def test_S1_rotate(kek, ring):
    old = ring.seal(PLAIN, HERE)
    rotated = ring.rotate_data_key(kek, NOW + 5)
    new = rotated.seal(PLAIN, HERE)
    assert rotated.open(old, HERE) == rotated.open(new, HERE) == PLAIN
    assert (crypto.key_id(old), crypto.key_id(new)) == (ring.active_id, rotated.active_id) == (1, 5)
    assert [(row.id, row.active, row.created_at) for row in rotated.rows() if row.purpose == "data"] == [
        (1, False, NOW),
        (5, True, NOW + 5),
    ]
    assert unseen_flips(rotated) == []
    assert moves(rotated) == []
    with pytest.raises(UnreadableKeyError, match="data key 5, which is not in the ring"):
        ring.open(new, HERE)
    assert rotated.lists(5)
    assert not ring.lists(5)


def test_S1_rotation_keeps_fingerprints_audit_and_tokens(kek, ring):
    rotated = ring.rotate_data_key(kek, NOW)
    assert rotated.fingerprint("steam", "AAAA") == ring.fingerprint("steam", "AAAA")
    assert rotated.audit_mac(b"entry") == ring.audit_mac(b"entry")
    assert rotated.token_hash("token") == ring.token_hash("token")


def test_S2_each_record_opens_under_exactly_one_listed_key(kek, ring):
    blobs = []
    for _ in range(4):
        blobs.append(ring.seal(PLAIN, HERE))
        ring = ring.rotate_data_key(kek, NOW)
    for blob in blobs:
        openers = [key for key in ring._data.values() if opens(key, blob, HERE)]
        assert [key.id for key in openers] == [crypto.key_id(blob)]


def test_S1_no_two_rings_open_each_others_records(kek, ring):
    assert not opens(Keyring.create(kek, NOW), ring.seal(PLAIN, HERE), HERE)


def test_S1_each_purpose_has_a_key_of_its_own(ring):
    assert len({ring.audit_mac(b"1|0:|x"), ring.token_hash("1|0:|x")}) == 2
    assert ring.fingerprint("", "x") not in {ring.audit_mac(b"1|0:|x")[:16], ring.token_hash("1|0:|x")[:16]}
    assert len(ring.fingerprint("", "x")) == 16
    assert len(ring.audit_mac(b"")) == len(ring.token_hash("\udc80")) == 32


@pytest.mark.parametrize("blob", [b"", b"\x01", b"no record at all, however long it may be"])
def test_K4_what_is_no_record_is_unreadable(ring, blob):
    with pytest.raises(UnreadableKeyError):
        ring.open(blob, HERE)


def test_S1_files_are_sealed_under_the_ring_through_rotations(kek, ring):
    out = io.BytesIO()
    ring.seal_file(io.BytesIO(PLAIN * 10_000), out, HERE)
    rotated = ring.rotate_data_key(kek, NOW)
    for newer in (rotated, Keyring.unwrap(kek, rotated.rows())):
        assert b"".join(newer.open_file(io.BytesIO(out.getvalue()), HERE)) == PLAIN * 10_000
        with pytest.raises(UnreadableKeyError):
            list(newer.open_file(io.BytesIO(out.getvalue()), ELSEWHERE["source"]))
    changed = bytearray(out.getvalue())
    changed[14] = 5  # the newer key's id in the header
    with pytest.raises(UnreadableKeyError, match="does not open"):
        list(rotated.open_file(io.BytesIO(changed), HERE))
    changed[14] = 9
    with pytest.raises(UnreadableKeyError, match="data key 9, which is not in the ring"):
        list(rotated.open_file(io.BytesIO(changed), HERE))


# --- S5: the KEK ------------------------------------------------------------------------------------------------------


def test_K11_a_ring_comes_back_from_its_rows(kek, ring):
    again = Keyring.unwrap(kek, list(reversed(ring.rows())))
    assert again.rows() == ring.rows()
    assert again.open(ring.seal(PLAIN, HERE), HERE) == PLAIN
    assert again.fingerprint("steam", "AAAA") == ring.fingerprint("steam", "AAAA")
    assert again.audit_mac(b"entry") == ring.audit_mac(b"entry")
    assert again.token_hash("token") == ring.token_hash("token")
    assert [(row.id, row.purpose, row.kek_id, row.created_at, row.active) for row in ring.rows()] == [
        (1, "data", kek.id, NOW, True),
        (2, "index", kek.id, NOW, True),
        (3, "audit", kek.id, NOW, True),
        (4, "token", kek.id, NOW, True),
    ]


def test_K11_a_ring_of_the_first_version_unwraps_for_ever():
    kek = Kek(bytes(range(32)))
    wrapped = [
        (
            "0100000000511be84e346e4633cfd1e67d4053f1b07a733eefcf7f96358a5ded07916f747275"
            "6b22b98b930c0253c9a29f48861d1d973cf3325350b41746a9c7c6"
        ),
        (
            "0100000000c97abef07c740b296b3cb6b8a243c8246906dcf3f39a27f4fd35e8bc126262d973"
            "dcc23e770bc82355018bc98c1cef0d3904be795294b5bef4f35172"
        ),
        (
            "0100000000ab74792df7617a9e734609bb864a0570095996161821730682959d3777f5660a23"
            "f3ab48222c131738fa55c4bd1448311f2612299d4288f7990baaa4"
        ),
        (
            "0100000000d7d43620d0965022b8694a7488fd9fa27b291edd375dc638c302452f9f11709bf6"
            "a919f422a3dcb258523bd992fb05698631176d7aa32c9c06f99e54"
        ),
    ]
    rows = [
        RingRow(number, purpose, "399c1b3aee88f862", bytes.fromhex(text), NOW, active=True)
        for number, (purpose, text) in enumerate(zip(("data", "index", "audit", "token"), wrapped, strict=True), 1)
    ]
    ring = Keyring.unwrap(kek, rows)
    blob = "0100000001a219459f804fcaaf3fa81e120798572988c6311866a8dc8e5c747621f70845d806e9ac0a83cc576550f0213be7cde0"
    assert ring.open(bytes.fromhex(blob), HERE) == PLAIN
    assert ring.fingerprint("steam", "AAAABBBBCCCC").hex() == "b4ce285f470563fe191cd93b9e7676be"
    assert ring.token_hash("demo").hex() == "0aa604963eeb9a1b0e95504a9c487718826e8070a534e04cd3a7463a7107659c"


def test_S5_wrong_kek(ring, kek):
    other = new_kek()
    with pytest.raises(KekError) as refused:
        Keyring.unwrap(other, ring.rows())
    assert refused.value.message == f"wrong KEK: the ring was wrapped by {kek.id}, this is {other.id}"
    assert refused.value.exit_code == 78
    assert "\n" not in str(refused.value)


def test_S5_wrong_kek_is_refused_even_when_the_rows_claim_it(ring):
    other = new_kek()
    with pytest.raises(KekError, match=r"entry 1 of the key ring \(data\) was altered"):
        Keyring.unwrap(other, [replace(row, kek_id=other.id) for row in ring.rows()])


def test_S5_each_altered_byte_of_each_wrapped_key_is_refused(kek, ring):
    rows = ring.rows()
    for place, row in enumerate(rows):
        for at in range(len(row.wrapped)):
            rows[place] = replace(row, wrapped=_flipped(row.wrapped, at, 1))
            with pytest.raises(KekError, match=f"entry {row.id} of the key ring .{row.purpose}. was altered"):
                Keyring.unwrap(kek, rows)
        rows[place] = replace(row, wrapped=row.wrapped[:20])
        with pytest.raises(KekError):
            Keyring.unwrap(kek, rows)
        rows[place] = row
    Keyring.unwrap(kek, rows)


def test_S5_a_wrapped_key_moved_to_another_entry_or_purpose_is_refused(kek, ring):
    data, index, audit, token = ring.rows()
    moved = [
        [data, replace(index, wrapped=audit.wrapped), audit, token],
        [data, index, replace(audit, wrapped=token.wrapped), replace(token, wrapped=audit.wrapped)],
        [replace(data, id=9), index, audit, token],
        [data, replace(index, purpose="audit"), replace(audit, purpose="index"), token],
    ]
    for rows in moved:
        with pytest.raises(KekError, match="was altered, or moved"):
            Keyring.unwrap(kek, rows)


def test_S5_control_a_wrapping_that_binds_nothing_lets_keys_move(monkeypatch, kek):
    monkeypatch.setattr(crypto, "_ring_entry", lambda number, purpose: b"")
    data, index, audit, token = Keyring.create(kek, NOW).rows()
    Keyring.unwrap(kek, [data, replace(index, wrapped=audit.wrapped), audit, token])


def test_S5_a_ring_that_is_not_whole_is_refused(kek, ring):
    data, index, audit, token = ring.rows()
    second = [row for row in ring.rotate_data_key(kek, NOW).rows() if row.id == 5]
    broken = {
        "the key ring is empty": [],
        "no active data key": [index, audit, token],
        "no active index key": [data, audit, token],
        "no active audit key": [data, index, token],
        "no active token key": [data, index, audit, replace(token, active=False)],
        "2 active data keys": [data, index, audit, token, *second],
        "two entries of the key ring have one id": [data, index, audit, token, data],
    }
    for wrong, rows in broken.items():
        with pytest.raises(KekError, match=wrong):
            Keyring.unwrap(kek, rows)


def test_S2_rewrap_moves_the_whole_ring_to_another_kek(kek, ring):
    blob = ring.seal(PLAIN, HERE)
    other = new_kek()
    moved = ring.rotate_data_key(kek, NOW).rewrap(kek, other)
    assert {row.kek_id for row in moved.rows()} == {other.id}
    again = Keyring.unwrap(other, moved.rows())
    assert again.open(blob, HERE) == PLAIN
    assert again.fingerprint("", "x") == ring.fingerprint("", "x")
    with pytest.raises(KekError, match="wrong KEK"):
        Keyring.unwrap(kek, moved.rows())
    with pytest.raises(KekError, match="wrong KEK"):
        moved.rewrap(kek, new_kek())
    assert not {row.wrapped for row in ring.rows()} & {row.wrapped for row in moved.rows()}


def test_S2_a_ring_half_under_another_kek_is_refused(kek, ring):
    other = new_kek()
    moved = ring.rewrap(kek, other)
    with pytest.raises(KekError, match=f"wrapped by {other.id}, this is {kek.id}"):
        Keyring.unwrap(kek, ring.rows()[:2] + moved.rows()[2:])


# --- the KEK's file ---------------------------------------------------------------------------------------------------


def test_S5_no_kek_at_all():
    with pytest.raises(KekError, match="no KEK in credential kek"):
        load_kek(None, "credential kek")
    with pytest.raises(KekError, match="in /var/lib/syncd/kek is empty"):
        load_kek(b"", "/var/lib/syncd/kek")


def test_K11_a_kek_file_is_private_whole_and_readable(tmp_path):
    before = os.umask(0)
    try:
        kek = create_kek_file(tmp_path / "kek")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "kek").stat().st_mode) == 0o600
    assert load_kek((tmp_path / "kek").read_bytes(), "x").id == kek.id
    assert [path.name for path in tmp_path.iterdir()] == ["kek"]


def test_K11_a_kek_file_is_never_overwritten(tmp_path):
    path = tmp_path / "kek"
    first = create_kek_file(path)
    with pytest.raises(KekError, match="never overwritten"):
        create_kek_file(path)
    assert parse_kek(path.read_bytes(), "x").id == first.id
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(KekError, match="never overwritten"):
        create_kek_file(tmp_path / "dangling")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dangling", "kek"]


def test_K11_of_many_at_once_one_makes_the_kek(tmp_path):
    def attempt(_):
        try:
            return create_kek_file(tmp_path / "kek").id
        except KekError:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [made for made in pool.map(attempt, range(32)) if made]
    assert made == [parse_kek((tmp_path / "kek").read_bytes(), "x").id]


def test_K11_a_kek_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    steps = []
    fsync, link = os.fsync, os.link

    def synced(descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append(("sync folder" if folder else "sync file", os.fstat(descriptor).st_size if not folder else 45))
        fsync(descriptor)

    def linked(*names):
        steps.append(("name", 45))
        link(*names)

    monkeypatch.setattr(keyring.os, "fsync", synced)
    monkeypatch.setattr(keyring.os, "link", linked)
    create_kek_file(tmp_path / "kek")
    assert steps == [("sync file", 45), ("name", 45), ("sync folder", 45)]


@pytest.mark.parametrize("failing", ["fsync", "link"])
def test_K11_a_kek_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, failing):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keyring.os, failing, fail)
    with pytest.raises(KekError, match="No space left on device") as refused:
        create_kek_file(tmp_path / "kek")
    assert str(tmp_path / "kek") in refused.value.message
    assert list(tmp_path.iterdir()) == []


def test_K11_a_kek_file_needs_its_folder(tmp_path):
    with pytest.raises(KekError, match="No such file or directory"):
        create_kek_file(tmp_path / "missing" / "kek")


# --- S4: nothing of it is seen ----------------------------------------------------------------------------------------

CANARY = b"CANARY-of-32-bytes-never-shown-!"


def seen(text: str) -> bool:
    """Whether the canary stands in a text in any of its usual spellings."""
    spellings = [CANARY.decode(), CANARY.hex(), *(base64.b64encode(CANARY[at:]).decode()[:24] for at in range(3))]
    return any(spelling in text for spelling in spellings)


def told(error: BaseException) -> str:
    """All that a log could make of an error: its chain, with the locals of the frames outside this test."""
    text = ""
    while error is not None:
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
        frames = [frame for frame in trace.stack if frame.filename != __file__]
        text += f"{error!r} {error} {error.args} {vars(error)} {[(frame.name, frame.locals) for frame in frames]}"
        error = error.__context__
    return text


@pytest.fixture
def canaries(monkeypatch):
    """Every key made from now on is the canary; nonces are random as ever."""
    monkeypatch.setattr(crypto, "urandom", lambda size: CANARY if size == 32 else os.urandom(size))


def test_S4_a_ring_shows_no_key(canaries):
    kek = new_kek()
    ring = Keyring.create(kek, NOW)
    assert seen(repr(crypto.new_key())), "control"
    assert not seen(
        f"{kek!r} {ring!r} {ring} {ring.rows()!r} {list(ring._data.values())!r} {ring._audit!r} {ring._index}"
    )
    assert not any(CANARY in row.wrapped for row in ring.rows())
    assert not seen(repr(RingRow(1, "data", kek.id, CANARY, NOW, active=True)))
    for spread in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled or copied"):
            spread(ring)


def test_S4_no_refusal_shows_a_key(canaries):
    kek = new_kek()
    ring = Keyring.create(kek, NOW)
    *rows, last = ring.rows()
    altered = [*rows, replace(last, wrapped=_flipped(last.wrapped, 30, 1))]
    blob = ring.seal(CANARY, HERE)
    refusals = [
        lambda: Keyring.unwrap(kek, altered),
        lambda: Keyring.unwrap(kek, rows),
        lambda: Keyring.unwrap(Kek(bytes(32)), ring.rows()),
        lambda: ring.rewrap(Kek(bytes(32)), kek),
        lambda: ring.open(blob, b""),
        lambda: ring.open(_flipped(blob, 4, 1), HERE),
        lambda: list(ring.open_file(io.BytesIO(crypto.FILE_MAGIC + b"\0\0\0\1" + bytes(21)), HERE)),
    ]
    for refusal in refusals:
        with pytest.raises((KekError, UnreadableKeyError)) as refused:
            refusal()
        assert not seen(told(refused.value))


def test_S4_control_a_key_in_a_local_variable_is_found(canaries):
    source = (
        "def careless(kek, row):\n  key = kek.unwrap(row.wrapped, row.id, row.purpose)\n  raise ValueError(row.id)\n"
    )
    names = {}
    exec(compile(source, "careless.py", "exec"), names)
    kek = new_kek()
    with pytest.raises(ValueError) as raised:
        names["careless"](kek, Keyring.create(kek, NOW).rows()[0])
    assert seen(told(raised.value))
