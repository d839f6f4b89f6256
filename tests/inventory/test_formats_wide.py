"""UTF-16, as spreadsheets and editors of Windows save it: every key of it, and taken up again behind any line."""

from __future__ import annotations

import codecs
import random
from datetime import UTC
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncd.inventory.formats import Survey, load_formats, read, read_one
from syncd.inventory.formats import reader as reader_module

FORMATS = load_formats([Path(__file__).parents[2] / "config" / "formats.toml"])
ENCODINGS = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
TEXTS = {
    "pairs": "\ufeff卡号----卡密\r\nA0011----B0011\r\n\r\nA0012----B0012\r\n很抱歉，请联系客服。\r\nA0013----B0013",
    "labels": "\ufeff卡号：A0011\r卡密：B0011\r\r卡号：A0012\r卡密：B0012\r\r卡号：A0013\r卡密：B0013\r",
    "table": '\ufeffcode,有效期\r\n"A-001",2031-01-01\r\n"A-002",\U00020000\r\nA-003,2031-01-01\r\n',
    "json": '\ufeff[{"card_no":"A0011","card_pwd":"B0011","备注":"\U0001f511"},\n{"card_no":"A0012","card_pwd":"B02"}]',
    "plain": "\ufeff" + "".join(f"KEY-{number:05d}\n" for number in range(4000)),
    "several": "\ufeffABCDE-12345-FGHIJ, KLMNO-12345-FGHIJ\nABCDE-12345-FGHIK\n",
}


def surveyed(payload, charset=None, size=0):
    survey = Survey("text", charset)
    for start in range(0, len(payload), size or len(payload)):
        survey.feed(payload[start : start + (size or len(payload))])
    return survey.decide()


def cards(payload, reading=None, size=0, fmt="auto", offset=0, position=0):
    reading = reading or surveyed(payload)
    size = size or len(payload) or 1
    chunks = [payload[start : start + size] for start in range(0, len(payload), size)]
    return list(read(chunks, reading, FORMATS[fmt], offset=offset, position=position, timezone=UTC))


def seen(card):
    key = card.key and (dict(card.key.fields), card.key.expires_at)
    return card.position, card.end, card.line_end, card.raw, card.reason, card.detail, key


def check(text, encoding, size=0, fmt="auto"):
    """UTF-16 says what the same text in UTF-8 says, with the payload's own places, however it is cut."""
    narrow = cards(text.encode(), fmt=fmt)
    payload = text.encode(encoding)
    reading = surveyed(payload, size=size)
    assert reading.encoding == encoding
    wide = cards(payload, reading, size, fmt)
    assert [seen(card)[2:] for card in wide] == [seen(card)[2:] for card in narrow]
    for one, other in zip(wide, narrow, strict=True):
        assert payload[: one.end].decode(encoding) == text.encode()[: other.end].decode(), "the place of a card"
    for at, card in enumerate(wide):
        if card.end and (at + 1 == len(wide) or wide[at + 1].end > card.end):
            rest = cards(payload[card.end :], reading, size, fmt, offset=card.end, position=card.line_end)
            assert [seen(one) for one in rest] == [seen(one) for one in wide[at + 1 :]], "taken up again"


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", TEXTS)
def test_utf16_reads_as_the_same_text_in_utf8_and_is_taken_up_again_behind_any_card(name, encoding):
    text = TEXTS[name] if name != "plain" else TEXTS[name][: 9 * 40]
    for size in (0, 1, 7, 64):
        check(text, encoding, size, "steam" if name == "several" else "auto")


def test_a_long_list_is_taken_up_again_in_the_midst():
    payload = TEXTS["plain"].encode("utf-16-le")
    every = cards(payload, size=4096)
    assert (len(every), every[-1].end) == (4000, len(payload))
    assert all(card.key for card in every)
    card = every[random.Random(7).randrange(4000)]
    rest = cards(payload[card.end :], surveyed(payload), 4096, offset=card.end, position=card.line_end)
    assert seen(rest[0]) == seen(every[card.position])


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("AB12-卡\U0001f511\r\n\t :：\u200b"), max_size=60), st.integers(1, 9))
def test_any_text_in_utf16_has_its_places(text, size):
    check("\ufeffA0001----B0001\n" + text, "utf-16-be", size)


def test_a_mark_is_stronger_than_a_declared_charset_and_a_declared_one_needs_no_mark():
    text = "A0011----密码B0011\nA0012----B0012\n"
    assert surveyed(("\ufeff" + text).encode("utf-16-be"), "gbk").encoding == "utf-16-be"
    for charset, encoding in (("utf-16", "utf-16-le"), ("UTF-16LE", "utf-16-le"), ("utf-16be", "utf-16-be")):
        reading = surveyed(text.encode(encoding), charset)
        assert [card.key is not None for card in cards(text.encode(encoding), reading)] == [False, True]


def test_what_is_no_text_stays_no_text():
    noise = random.Random(3).randbytes(4000)
    for mark in (*ENCODINGS.values(), codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        for payload in (mark + noise, mark + bytes(4000), mark + noise.replace(b"\n", b"\n\0") + b"\n\0A\n"):
            assert not [card for card in cards(payload) if card.key]
    assert cards("ABC-123\nABC-124\n".encode("utf-32"))[0].reason == "undecodable"


def test_half_a_character_holds_its_line_alone_and_nothing_is_lost():
    payload = codecs.BOM_UTF16_LE + "ABC-123\nABC".encode("utf-16-le") + b"\x00\xd8"
    payload += "\n".encode("utf-16-le") + "".join(f"ABC-{n}\n" for n in range(200, 230)).encode("utf-16-le")
    found = cards(payload)
    assert [card.reason for card in found[:3]] == ["", "undecodable", ""]
    assert found[1].raw.startswith(b"ABC")
    cut = cards(codecs.BOM_UTF16_LE + "ABC-123\nABC-124\nABC-125\nABC-126\nABC-127".encode("utf-16-le")[:-1])
    assert [card.reason for card in cut] == ["", "", "", "", "undecodable"]
    assert cut[-1].end == len(codecs.BOM_UTF16_LE) + 5 * 14 + 4 * 2 - 1


def test_a_slice_of_it_is_read_again_as_what_it_is_kept_as():
    payload = "\ufeff卡号：A0011 卡密：B0011\n".encode("utf-16-le")
    (card,) = cards(payload)
    assert card.raw.decode() == "卡号：A0011 卡密：B0011"
    for reading in (None, surveyed(payload)):
        assert read_one(card.raw, reading, FORMATS["auto"], UTC).key.fields == card.key.fields


def test_negative_control_places_that_are_not_the_payloads_own_are_seen(monkeypatch):
    monkeypatch.setattr(reader_module.Wide, "place", lambda self, narrow: narrow)
    with pytest.raises((AssertionError, UnicodeDecodeError)):
        check(TEXTS["pairs"], "utf-16-le")
