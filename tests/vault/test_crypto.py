"""Sealed files, what a seal is bound to, fingerprints, the KEK and its recovery copy. Records: test_keyring.py."""

from __future__ import annotations

import base64
import copy
import hmac
import io
import pickle
import struct
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from hypothesis import given
from hypothesis import strategies as st

from syncd.errors import InvalidRequestError, KekError, UnreadableKeyError
from syncd.model import SecretText
from syncd.vault import crypto
from syncd.vault.crypto import (
    FILE_MAGIC,
    Fingerprinter,
    Kek,
    Mac,
    SealingKey,
    associated,
    export_kek,
    import_kek,
    key_id,
    new_kek,
    open_stream,
    parse_kek,
    seal_stream,
)

FIXED = bytes(range(32))


# --- what a seal is bound to ------------------------------------------------------------------------------------------

Place = tuple[str, int, str, str]
LOOK_ALIKE: list[tuple[Place, Place]] = [
    (("vault_key", 1, "a", "bc"), ("vault_key", 1, "ab", "c")),
    (("vault_key", 1, "a|b", "c"), ("vault_key", 1, "a", "b|c")),
    (("vault_key", 12, "3", ""), ("vault_key", 1, "23", "")),
    (("vault_key|1", 2, "a", "b"), ("vault_key", 1, "2|a", "b")),
    (("vault", 1, "a", "1:b|0:"), ("vault", 1, "a|1:b", "")),
    (("quarantine", 1, "a", "b"), ("vault_key", 1, "a", "b")),
    (("vault_key", 1, "a", "é"), ("vault_key", 1, "a", "e\u0301")),
]


def collisions(bind: Callable[[str, int, str, str], bytes]) -> list[tuple[Place, Place]]:
    return [(one, other) for one, other in LOOK_ALIKE if bind(*one) == bind(*other)]


def test_K3_no_two_places_are_bound_alike():
    assert collisions(associated) == []


@pytest.mark.parametrize(
    "planted",
    [
        lambda *place: "".join(map(str, place)).encode(),
        lambda *place: "|".join(map(str, place)).encode(),
        lambda table, row_id, sku, source: associated("", row_id, sku, source),
    ],
    ids=["joined", "joined with bars", "without the table"],
)
def test_K3_control_a_binding_without_lengths_collides(planted):
    assert collisions(planted)


_PART = st.text(alphabet="1:|aé0", max_size=6)
_PLACE = st.tuples(_PART, st.integers(0, 2**63 - 1) | st.integers(0, 20), _PART, _PART)


@given(_PLACE, _PLACE)
def test_K3_places_differ_exactly_when_their_bindings_do(one, other):
    assert (one == other) == (associated(*one) == associated(*other))


def test_K3_binding_is_pinned():
    assert associated("vault_key", 42, "steam-50", "feed:ab") == b"1|9:vault_key|42|8:steam-50|7:feed:ab"


# --- records ----------------------------------------------------------------------------------------------------------


def test_S1_a_record_of_the_first_version_opens_for_ever():
    blob = bytes.fromhex(
        "010000000732f211c515cd9e901699e33d24da7decc5e6674c35d6f0d1f163a6aeb198f989fc77658c7af7083c31ef"
    )
    bound_to = associated("vault_key", 42, "steam-50", "feed:ab")
    assert SealingKey(7, FIXED).open(blob, bound_to) == b"AAAA-BBBB-CCCC"
    assert key_id(blob) == 7
    assert AESGCMSIV(FIXED).decrypt(blob[5:17], blob[17:], bound_to) == b"AAAA-BBBB-CCCC"


@pytest.mark.parametrize("blob", [b"", b"\x01", b"\x02" + bytes(40), b"\x01" + bytes(31)])
def test_S1_what_is_no_record_names_no_key(blob):
    with pytest.raises(UnreadableKeyError, match="not a sealed record"):
        key_id(blob)


# --- keyed hashes -----------------------------------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
def test_K8_mac_is_hmac_sha256(key, data):
    mac = Mac(key)
    assert mac(data) == hmac.digest(key, data, "sha256")
    assert mac(data) == mac(data)  # the keyed state is copied, not used up


def test_K5_fingerprints_never_drift():
    prints = Fingerprinter(FIXED)
    assert prints.fingerprint("steam", "AAAABBBBCCCC").hex() == "7aa4d744f42cd8f69854aa8433961da4"
    by_hand = hmac.digest(FIXED, b"1|5:steam|AAAABBBBCCCC", "sha256")[:16]
    assert prints.fingerprint("steam", "AAAABBBBCCCC") == by_hand


def test_K5_scope_and_text_do_not_run_into_each_other():
    fingerprint = Fingerprinter(FIXED).fingerprint
    places = [("", "ab"), ("a", "b"), ("ab", ""), ("a|b", ""), ("a", "|b"), ("", "2:ab|"), ("1:a", "b")]
    assert len({fingerprint(scope, text) for scope, text in places}) == len(places)
    assert Fingerprinter(bytes(32)).fingerprint("", "ab") != fingerprint("", "ab")


def test_K5_any_text_has_a_fingerprint():
    fingerprint = Fingerprinter(FIXED).fingerprint
    assert len({fingerprint("", text) for text in ("", "\ud800", "\udc80", "?", "卡密", "\0")}) == 6


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_mac_takes_only_keys_of_full_length(size):
    with pytest.raises(ValueError, match="32 bytes"):
        Mac(bytes(size))


# --- sealed files -----------------------------------------------------------------------------------------------------

SIZE = 64  # of a chunk, so that every place in a file can be tried
PLAIN = bytes(range(256)) + b"the end"  # four chunks and a rest


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(crypto, "CHUNK", SIZE)


def sealed(plain: bytes, key: SealingKey, bound_to: bytes = b"here") -> bytes:
    out = io.BytesIO()
    seal_stream(io.BytesIO(plain), out, key, bound_to)
    return out.getvalue()


def opened(blob: bytes, key: SealingKey, bound_to: bytes = b"here") -> bytes:
    def key_for(number: int) -> SealingKey:
        if number != key.id:
            raise UnreadableKeyError("unknown")
        return key

    return b"".join(open_stream(io.BytesIO(blob), key_for, bound_to))


def parts(blob: bytes) -> tuple[bytes, list[bytes]]:
    """(header, chunks with their frames) of a sealed file."""
    at = len(FILE_MAGIC) + 20
    head, chunks = blob[:at], []
    while at < len(blob):
        _, length = struct.unpack_from(">BI", blob, at)
        chunks.append(blob[at : at + 5 + length])
        at += 5 + length
    return head, chunks


def tampered(blob: bytes, other: bytes) -> Iterator[tuple[str, bytes]]:
    """Everything a storeman could do to a file, given a second one sealed for the same place under the same key."""
    head, chunks = parts(blob)
    other_head, other_chunks = parts(other)
    for kept in range(len(chunks)):
        cut = chunks[:kept]
        yield f"cut to {kept} chunks", head + b"".join(cut)
        if cut:
            yield f"cut to {kept} chunks, in mid-frame", head + b"".join(cut) + chunks[kept][:3]
            yield f"cut to {kept} chunks, in mid-chunk", head + b"".join(cut) + chunks[kept][:-1]
            closed = [*cut[:-1], b"\x01" + cut[-1][1:]]
            yield f"cut to {kept} chunks and closed", head + b"".join(closed)
    for at in range(len(chunks) - 2):
        swapped = [*chunks[:at], chunks[at + 1], chunks[at], *chunks[at + 2 :]]
        yield f"swapped {at} and {at + 1}", head + b"".join(swapped)
    for at in range(len(chunks)):
        yield f"dropped {at}", head + b"".join(chunks[:at] + chunks[at + 1 :])
        yield f"doubled {at}", head + b"".join(chunks[: at + 1] + chunks[at:])
        yield f"spliced {at}", head + b"".join([*chunks[:at], other_chunks[at], *chunks[at + 1 :]])
    yield "other header", other_head + b"".join(chunks)
    yield "appended a byte", blob + b"\0"
    yield "appended a chunk", blob + other_chunks[-1]
    opened_up = [*chunks[:-1], b"\x00" + chunks[-1][1:]]
    yield "appended a file", head + b"".join(opened_up) + b"".join(other_chunks)
    for at in range(len(blob)):
        for bit in (0x01, 0x80):
            flipped = bytearray(blob)
            flipped[at] ^= bit
            yield f"flipped {bit:02x} at {at}", bytes(flipped)


def unnoticed() -> list[str]:
    key = SealingKey(7, FIXED)
    one, other = sealed(PLAIN, key), sealed(PLAIN[::-1], key)
    assert opened(one, key) == PLAIN
    slipped = []
    for what, blob in tampered(one, other):
        try:
            opened(blob, key)
        except UnreadableKeyError:
            continue
        slipped.append(what)
    return slipped


def test_S1_a_sealed_file_shows_all_tampering(small_chunks):
    assert unnoticed() == []


@pytest.mark.parametrize(
    ("planted", "unseen"),
    [
        (lambda head, index, last, bound_to: head + bytes([last]) + bound_to, "swapped 0 and 1"),
        (lambda head, index, last, bound_to: head + struct.pack(">Q", index) + bound_to, "cut to 3 chunks and closed"),
        (lambda head, index, last, bound_to: struct.pack(">QB", index, last) + bound_to, "spliced 2"),
    ],
    ids=["index not bound", "end not bound", "file not bound"],
)
def test_S1_control_a_looser_stream_is_caught(small_chunks, monkeypatch, planted, unseen):
    monkeypatch.setattr(crypto, "_chunk_bound_to", planted)
    assert unseen in unnoticed()


def test_S1_a_sealed_file_belongs_to_its_place(small_chunks):
    key = SealingKey(7, FIXED)
    blob = sealed(PLAIN, key, b"here")
    with pytest.raises(UnreadableKeyError):
        opened(blob, key, b"there")
    with pytest.raises(UnreadableKeyError):
        opened(blob, SealingKey(7, bytes(32)))


def test_S1_no_file_opens_as_a_record_and_no_record_in_its_place(small_chunks):
    key = SealingKey(7, FIXED)
    _, (chunk,) = parts(sealed(b"AAAA-BBBB", key, b""))
    with pytest.raises(UnreadableKeyError):
        key.open(chunk[5:], b"")


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE, SIZE + 1, 5 * SIZE])
def test_a_file_of_any_size_comes_back_and_is_never_sealed_alike(small_chunks, size):
    key = SealingKey(7, FIXED)
    plain = b"k" * size
    blob = sealed(plain, key)
    assert opened(blob, key) == plain
    assert blob != sealed(plain, key)
    assert len(parts(blob)[1]) == max(1, -(-size // SIZE))
    assert size < 8 or b"k" * 8 not in blob


class Trickle(io.BytesIO):
    """A pipe: never more than 1,000 bytes at a time."""

    def read(self, size=-1):
        return super().read(min(size, 1000) if size >= 0 else 1000)


def test_a_pipe_is_read_to_its_end_and_memory_stays_at_chunks():
    key = SealingKey(7, FIXED)
    plain = b"AAAA-BBBB-CCCC\n" * 20_000
    out = io.BytesIO()
    seal_stream(Trickle(plain), out, key, b"here")
    chunks = list(open_stream(Trickle(out.getvalue()), lambda _: key, b"here"))
    assert b"".join(chunks) == plain
    assert {len(chunk) for chunk in chunks[:-1]} == {64 * 1024}


def test_a_false_length_reserves_no_memory():
    asked = []

    class Watched(io.BytesIO):
        def read(self, size=-1):
            asked.append(size)
            return super().read(size)

    blob = FILE_MAGIC + bytes(20) + struct.pack(">BI", 0, 2**32 - 1) + b"x"
    with pytest.raises(UnreadableKeyError, match="damaged at chunk 1"):
        list(open_stream(Watched(blob), lambda _: SealingKey(0, FIXED), b""))
    assert max(asked) < 100


@pytest.mark.parametrize("blob", [b"", b"PK\x03\x04 a spreadsheet", FILE_MAGIC[:-1]])
def test_what_is_no_sealed_file_is_called_that(blob):
    with pytest.raises(UnreadableKeyError, match="not a sealed file"):
        opened(blob, SealingKey(7, FIXED))


def test_a_sealed_file_of_the_first_version_opens_for_ever():
    blob = bytes.fromhex(
        "53594e43445345414c310a0000000725943066230803b19be6191915a02aba01000000300100000007f30d3b6fd6e0b6f623aa58a3"
        "01631f7223d96b43d726acb5aafdde53cce1d357627fd78cad18f06092c79e"
    )
    assert opened(blob, SealingKey(7, FIXED), b"x") == b"AAAA-BBBB-CCCC\n"


# --- the KEK ----------------------------------------------------------------------------------------------------------


def test_K11_a_kek_comes_back_from_its_text():
    kek = new_kek()
    text = kek.text().reveal()
    assert parse_kek(text.encode(), "x").id == kek.id
    assert parse_kek(f"  {text}\r\n".encode(), "x").text() == kek.text()
    assert "\n" not in text
    assert new_kek().id != kek.id


def test_K11_the_id_of_a_kek_is_pinned_and_no_part_of_it():
    assert Kek(FIXED).id == "399c1b3aee88f862"
    assert bytes.fromhex(Kek(FIXED).id) not in FIXED


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (base64.b64encode(FIXED[:-1]), "has 31 bytes, not 32"),
        (base64.b64encode(FIXED * 2), "has 64 bytes, not 32"),
        (base64.b64encode(FIXED)[:-1], "not base64"),
        (FIXED.hex().encode(), "has 48 bytes, not 32"),
        (b"\xff\xfe" + base64.b64encode(FIXED), "not base64"),
        (b"-----BEGIN PRIVATE KEY-----", "not base64"),
        (base64.b64encode(FIXED)[:20] + b"\n" + base64.b64encode(FIXED)[20:], "not base64"),
    ],
)
def test_S5_a_kek_that_is_none_is_refused_by_name(data, wrong):
    with pytest.raises(KekError) as refused:
        parse_kek(data, "credential kek")
    assert wrong in refused.value.message
    assert "credential kek" in refused.value.message
    assert refused.value.exit_code == 78
    assert len(data) < 8 or data.decode("latin-1").strip() not in str(refused.value)


@pytest.mark.parametrize("thing", [Kek(FIXED), SealingKey(7, FIXED), Mac(FIXED), Fingerprinter(FIXED)], ids=repr)
def test_S4_key_material_is_not_shown_pickled_or_copied(thing):
    shown = f"{thing!r} {thing} {thing!a}"
    for secret in (FIXED.hex(), base64.b64encode(FIXED).decode(), repr(FIXED)[2:-1]):
        assert secret not in shown
    for spread in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled or copied"):
            spread(thing)
    assert not hasattr(thing, "__dict__")


# --- its recovery copy ------------------------------------------------------------------------------------------------

PASSPHRASE = SecretText("eine alte Übung")
COPY = """\
-----BEGIN SYNCD KEK RECOVERY COPY 1-----
The key that opens a syncd vault, sealed under a passphrase.
Keep it apart from backups of the database, and the passphrase apart from both.
KEK:   399c1b3aee88f862
Check: 67056b53

ECPW UNUD QFYN E5EM HEJ6 52OM 7A2R WFPB
PB42 6HUB MA4U V6NU HZHU TPL7 4RLB ODWH
L65V RMYR DRS6 7VRM DIBR LSDL AC5N 35LK
PZVA 4S2N EQGG P5ZM YEKQ 4OH5 EWT5 D43U
-----END SYNCD KEK RECOVERY COPY 1-----
"""


def test_K11_a_recovery_copy_of_the_first_version_opens_for_ever():
    assert import_kek(COPY, PASSPHRASE).text() == Kek(FIXED).text()


def test_K11_a_recovery_copy_may_be_typed_from_paper(monkeypatch):
    opened_with = []
    monkeypatch.setattr(crypto, "_passphrase_aead", lambda passphrase, salt: opened_with.append(salt) or Cheap())
    head, letters = COPY.split("\n\n")
    letters, end = letters.split("-----", 1)
    typed = head + "\r\n\r\n" + letters.lower().replace(" ", "").replace("o", "0").replace("i", "1") + "-----" + end
    import_kek(f"found in the safe:\n\n{typed}\nend of page", PASSPHRASE)
    import_kek(COPY, PASSPHRASE)
    assert opened_with[0] == opened_with[1]


class Cheap:
    """Stands in for what scrypt makes, where scrypt is not the point."""

    def encrypt(self, nonce, data, bound_to):
        return AESGCMSIV(bytes(32)).encrypt(nonce, data, bound_to)

    def decrypt(self, nonce, data, bound_to):
        return FIXED


def test_K11_a_recovery_copy_opens_under_its_passphrase_only():
    kek = new_kek()
    text = export_kek(kek, SecretText("correct horse battery"))
    assert import_kek(text, SecretText("correct horse battery")).text() == kek.text()
    assert f"KEK:   {kek.id}\n" in text
    with pytest.raises(KekError, match=f"wrong passphrase for the recovery copy of KEK {kek.id}") as refused:
        import_kek(text, SecretText("correct horse batterz"))
    assert "batter" not in str(refused.value)


def test_K11_a_passphrase_reads_the_same_from_any_keyboard(monkeypatch):
    derived = []

    class Scrypt:
        def __init__(self, **cost):
            self.cost = cost

        def derive(self, words):
            derived.append((words, self.cost["n"], self.cost["r"], self.cost["p"]))
            return bytes(32)

    monkeypatch.setattr(crypto, "Scrypt", Scrypt)
    for words in ("\u00dcbung macht den", "U\u0308bung macht den", "\udc80 not UTF-8 at all"):
        export_kek(Kek(FIXED), SecretText(words))
    assert derived[0] == derived[1] != derived[2]
    assert derived[0][1:] == (2**17, 8, 1)


def test_K11_a_typing_error_is_told_from_a_wrong_passphrase(monkeypatch):
    monkeypatch.setattr(crypto, "_passphrase_aead", lambda passphrase, salt: pytest.fail("the check comes first"))
    for right, typed in [("ECPW", "ECPV"), ("D43U", "D43"), ("D43U", "D43UU"), ("67056b53", "67056b54")]:
        with pytest.raises(KekError, match="typing error"):
            import_kek(COPY.replace(right, typed), PASSPHRASE)
    for typed in ("399c1b3aee88f863", "ffff"):
        with pytest.raises(KekError, match="typing error"):
            import_kek(COPY.replace("399c1b3aee88f862", typed), PASSPHRASE)
    with pytest.raises(KekError, match="typing error"):
        import_kek(COPY.replace("ECPW", "ＥCPW"), PASSPHRASE)  # full-width
    shorter = COPY.split("\n\n", maxsplit=1)[0].replace("67056b53", crypto._copy_check("399c1b3aee88f862", b"short"))
    with pytest.raises(KekError, match="typing error"):
        import_kek(f"{shorter}\n\n{base64.b32encode(b'short').decode()}\n{crypto._END}", PASSPHRASE)
    for text in ("", COPY[:200], COPY[60:], Kek(FIXED).text().reveal()):
        with pytest.raises(KekError, match="no recovery copy in this text"):
            import_kek(text, PASSPHRASE)


def test_K11_every_recovery_copy_is_its_own_and_shows_no_key(monkeypatch):
    monkeypatch.setattr(crypto, "_passphrase_aead", lambda passphrase, salt: Cheap())
    one, other = export_kek(Kek(FIXED), PASSPHRASE), export_kek(Kek(FIXED), PASSPHRASE)
    assert one.split("Check:")[1] != other.split("Check:")[1]
    flat = "".join(one.split())
    for secret in (base64.b32encode(FIXED).decode()[:20], FIXED.hex()[:20], Kek(FIXED).text().reveal()[:20]):
        assert secret not in flat
    assert max(len(line) for line in one.splitlines()) < 80


@pytest.mark.parametrize("words", ["", "0000", "elevenchars"])
def test_K11_a_passphrase_that_can_be_guessed_is_refused(words):
    with pytest.raises(InvalidRequestError, match="shorter than 12") as refused:
        export_kek(Kek(FIXED), SecretText(words))
    assert not words or words not in refused.value.message
