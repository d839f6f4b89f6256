"""Reading keys: every format, every shape, nothing lost, nothing unreadable accepted."""

from __future__ import annotations

import random
import tracemalloc
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from syncd.errors import ConfigError
from syncd.inventory.formats import (
    AUTO,
    OPAQUE,
    Reading,
    Survey,
    dedupe_form,
    is_split,
    load_formats,
    parse_expiry,
    read,
    read_one,
    read_rows,
    survey_rows,
)
from syncd.inventory.formats import reader as reader_module
from syncd.inventory.formats.evidence import Evidence, is_decoration
from syncd.inventory.formats.text import strip
from syncd.model import NEVER

ROOT = Path(__file__).resolve().parents[2]
FORMATS = load_formats([ROOT / "config" / "formats.toml"])
SHANGHAI = ZoneInfo("Asia/Shanghai")
DEFINED = [name for name, fmt in FORMATS.items() if fmt.kind == "fields"]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def surveyed(payload: bytes, media="text", split="auto", chunk=0) -> Reading:
    survey = Survey(media)
    for start in range(0, len(payload), chunk or len(payload) or 1):
        survey.feed(payload[start : start + (chunk or len(payload))])
    return survey.decide(split)


def cards(payload: bytes | str, fmt="auto", media="text", split="auto"):
    payload = payload.encode() if isinstance(payload, str) else payload
    reading = surveyed(payload, media, split)
    return list(read([payload], reading, FORMATS[fmt], timezone=SHANGHAI))


def keys(payload, fmt="auto", media="text", split="auto"):
    return [tuple(card.key.fields.values()) if card.key else card.reason for card in cards(payload, fmt, media, split)]


def seen(card):
    key = card.key
    return (
        card.position, card.end, card.line_end, card.raw, card.reason, card.detail,
        key and (dict(key.fields), dict(key.canonical), key.display, key.expires_at),
    )  # fmt: skip


# ---- formats as data ----


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in DEFINED for text in FORMATS[name].accept])
def test_accepted_example_is_read_and_its_display_reads_back_to_the_same_canonical_form(name, text):
    fmt = FORMATS[name]
    key = read_one(text.encode(), None, fmt, UTC).key
    assert key is not None
    again = read_one(key.display.encode(), None, fmt, UTC).key
    assert again is not None
    assert again.canonical == key.canonical
    assert again.display == key.display
    assert dedupe_form(again.fields) == dedupe_form(key.fields)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in DEFINED for text in FORMATS[name].reject])
def test_rejected_example_is_not_read_and_says_why_without_its_text(name, text):
    card = read_one(text.encode(), None, FORMATS[name], UTC)
    assert card.key is None
    assert card.reason
    assert card.detail
    assert text not in card.detail
    assert card.raw == text.encode()


@pytest.mark.parametrize("name", DEFINED)
def test_canonical_form_is_idempotent(name):
    fmt = FORMATS[name]
    for text in fmt.accept:
        key = read_one(text.encode(), None, fmt, UTC).key
        again = fmt.key(key.canonical)
        assert again.canonical == key.canonical


@pytest.mark.parametrize("name", ["auto", "opaque", "steam", "china-mobile", "account"])
def test_masked_form_shows_at_most_a_third(name):
    secret = "ABCDE12345FGHIJ"
    masked = FORMATS[name].masked({"code": secret, "pin": "1234"})
    assert secret not in masked
    assert sum(char.isalnum() for char in masked) <= (len(secret) + 4) // 3


def write(tmp_path, text, name="mine.toml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_an_operator_adds_a_format_without_code(tmp_path):
    path = write(
        tmp_path, '[mine]\naccept = ["AB-12"]\n[mine.code]\nalphabet = "alnum"\ngroups = [2, 2]\nupper = true\n'
    )
    fmt = load_formats([ROOT / "config" / "formats.toml", path])["mine"]
    assert read_one(b"ab12", None, fmt, UTC).key.canonical == {"code": "AB-12"}


def test_all_problems_of_all_files_are_named_at_once(tmp_path):
    first = write(
        tmp_path,
        '[one]\ntitel = "x"\naccept = ["A1B2"]\n[one.code]\nalfabet = "alnum"\n[auto]\n'
        '[two]\nfields=["a"]\ndisplay="{b}"\n'
        '[three]\naccept=["ABC"]\n[three.code]\nlength=4\nalphabet="alnum"\n[four]\naccept=["ABCD"]\nreject=["EFGH"]\n',
    )
    broken = write(tmp_path, "[one\n", "broken.toml")
    with pytest.raises(ConfigError) as caught:
        load_formats([first, broken, tmp_path / "absent.toml"])
    text = str(caught.value)
    for part in (
        "one.titel", "did you mean 'title'", "one.code.alfabet", "did you mean 'alphabet'", "auto: is the name",
        "two.display", "two.accept", "three.accept[0]", "four.reject[0]", "broken.toml", "absent.toml",
    ):  # fmt: skip
        assert part in text
    assert all(problem.fix and problem.file for problem in caught.value.problems)


def test_a_format_defined_twice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="defined in"):
        load_formats([ROOT / "config" / "formats.toml", write(tmp_path, '[steam]\naccept=["ABCD"]\n')])


# ---- detection by evidence ----


def test_every_sample_is_read_whole_and_every_key_is_unique():
    wanted = {
        "steam-wallet-50": ("steam", 24), "mobile-recharge-100": ("china-mobile", 20),
        "game-account": ("account", 12), "office-licence": ("microsoft", 15),
    }  # fmt: skip
    forms = []
    for folder, (name, count) in wanted.items():
        (path,) = (ROOT / "config" / "samples" / folder).iterdir()
        found = cards(path.read_bytes(), name, "csv" if path.suffix == ".csv" else "text")
        assert [card.reason for card in found] == [""] * count
        forms += [dedupe_form(card.key.fields) for card in found]
    assert len(set(forms)) == len(forms) == 71


PAIRS = [f"A00{n}{n}1----PIN{n}77{n}" for n in range(10, 60)]


@pytest.mark.parametrize("separator", ["----", "---", "--", "——", "—", "\t", ",", "，", "|", ":", "：", "    "])
def test_a_separator_is_found_by_all_lines(separator):
    payload = "\n".join(PAIRS).replace("----", separator)
    assert keys(payload) == [tuple(pair.split("----")) for pair in PAIRS]
    assert keys(payload.encode("gb18030")) == [tuple(pair.split("----")) for pair in PAIRS]


def test_the_first_line_decides_nothing():
    codes = [f"ABC{n}-DEF{n}" for n in range(10, 40)]
    assert keys("\n".join(["X1234----Y5678", *codes])) == ["unreadable_shape", *[(code,) for code in codes]]
    assert keys("\n".join(["AB12-CD34", *PAIRS])) == [
        "unreadable_shape",
        *[tuple(pair.split("----")) for pair in PAIRS],
    ]


def test_control_a_survey_of_the_first_line_only_is_caught(monkeypatch):
    whole = Evidence.line

    def only_first(self, text):
        if self.header is None:
            whole(self, text)

    monkeypatch.setattr(Evidence, "line", only_first)
    monkeypatch.setattr(Evidence, "plain", lambda *_: None)
    with pytest.raises(AssertionError):
        test_the_first_line_decides_nothing()


def test_lines_that_disagree_are_ambiguous_as_a_whole_and_the_candidates_are_named():
    payload = "\n".join([*PAIRS[:5], *[f"ABC{n}-DEF{n}" for n in range(10, 15)]])
    found = cards(payload)
    assert {card.reason for card in found} == {"ambiguous"}
    assert len(found) == 10
    assert "line" in found[0].detail
    assert "pair:----" in found[0].detail
    assert keys(payload, split="pair:----")[:5] == [tuple(pair.split("----")) for pair in PAIRS[:5]]
    assert keys(payload, split="line")[5:] == [(f"ABC{n}-DEF{n}",) for n in range(10, 15)]


def test_mixed_separators_are_ambiguous():
    assert set(keys("A1234----B5678\nA1235,B5679\nA1236|B5670")) == {"ambiguous"}


@pytest.mark.parametrize("split", ["auto", "line", "pair", "pair:tab", "pair:spaces", "pair:----", "labelled", "csv"])
def test_known_splits(split):
    assert is_split(split)
    surveyed(b"A1234----B5678", split=split)


@pytest.mark.parametrize("split", ["", "pairs", "pair:x", "pair:"])
def test_unknown_splits(split):
    assert not is_split(split)
    with pytest.raises(ValueError, match="splitter"):
        surveyed(b"A", split=split)


def test_a_reading_survives_the_database():
    for payload, media in (
        (b"A1234----B5678", "text"),
        ("卡号：1\n密码：2".encode(), "text"),
        (b"code,pin\nA,B", "csv"),
    ):
        reading = surveyed(payload, media)
        assert Reading.load(reading.dump()) == reading
    for wrong in ("{}", "[]", '{"version":1,"x":2}', "nonsense"):
        with pytest.raises(ValueError):
            Reading.load(wrong)


# ---- labelled text ----


@pytest.mark.parametrize(
    "text",
    [
        "卡号：A0011 密码：B0011\n卡号：A0022 密码：B0022\n",
        "卡号：A0011\n密码：B0011\n卡号：A0022\n密码：B0022\n",
        "卡号：A0011\n密码：B0011\n\n卡号：A0022\n密码：B0022\n\n",
        "卡号: A0011\r\n卡密: B0011\r\n\r\n\r\n卡号: A0022\r\n卡密: B0022",
        "密码：B0011\n卡号：A0011\n密码：B0022\n卡号：A0022",
        "Card No.: A0011 PIN: B0011\nCard No.: A0022 PIN: B0022",
        "1. 卡号：A0011，密码：B0011；\n2. 卡号：A0022，密码：B0022；",
        "【卡号】A0011【密码】B0011\n【卡号】A0022【密码】B0022",
        "卡号：\nA0011\n密码：\nB0011\n卡号：\nA0022\n密码：\nB0022",
        "面值：100元\n卡号　A００１１\n密码　B0011\n-------\n面值：100元\n卡号　A0022\n密码　B0022\n-------",
        "卡号：A0011\n\n密码：B0011\n\n卡号：A0022\n\n密码：B0022\n",
    ],
)
def test_labelled_cards(text):
    for payload in (text.encode(), text.encode("gb18030"), b"\xef\xbb\xbf" + text.encode()):
        found = cards(payload)
        assert [card.reason for card in found] == ["", ""]
        wanted = [{"number": "A0011", "pin": "B0011"}, {"number": "A0022", "pin": "B0022"}]
        assert [dict(card.key.fields) for card in found] == wanted


def test_a_labelled_card_without_its_number_never_takes_the_pin_of_another():
    good = [f"卡号：A00{n}\n密码：B00{n}\n" for n in range(10, 20)]
    found = keys("\n".join([*good[:4], "密码：B0022\n", *good[4:]]))
    assert found[4] == "missing_field"
    assert [*found[:4], *found[5:]] == [(f"A00{n}", f"B00{n}") for n in range(10, 20)]
    assert set(keys("密码：B0000\n卡号：A0011\n密码：B0011\n卡号：A0022\n密码：B0022")) <= {
        "ambiguous",
        "missing_field",
    }
    assert set(keys("卡号：A0011\n密码：B0022\n卡号：A0022\n密码：B0033\n卡号：A0033")) == {"ambiguous"}


def test_a_line_without_a_label_spoils_the_card_that_it_may_belong_to():
    cards_ = [f"卡号：A00{n}\n密码：B00{n}\n" for n in range(10, 30)]
    cards_[3] += "-CONTINUED\n"
    found = keys("\n".join(cards_))
    assert found[3] == "unreadable_shape"
    assert found.count("unreadable_shape") == 1
    assert len(found) == 20


def test_labels_take_the_fields_of_the_format():
    assert keys("账号：demo@example.com 密码：Pa55word!", "account") == [("demo@example.com", "Pa55word!")]
    assert keys("序列号：ABCDE-12345-FGHIJ", "steam") == [("ABCDE-12345-FGHIJ",)]
    assert keys("卡号：12345 卡密：ABCDE-12345-FGHIJ", "steam") == ["not_this_format"]
    assert keys("卡号：12345") == ["missing_field"]
    assert keys("链接：https://pan.example.com/s/1?pwd=a:b 提取码：x7k2", "netdisk") == [
        ("https://pan.example.com/s/1?pwd=a:b", "x7k2")
    ]


# ---- CSV and rows ----


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("secret\nABCDE-12345\nABCDE-12346\n", [("ABCDE-12345",), ("ABCDE-12346",)]),
        ("\ufeffcard_no,card_pwd,title\r\n0012345,P0012345,50元\r\n", [("0012345", "P0012345")]),
        ("卡密,卡号\nP0012345,0012345\n", [("0012345", "P0012345")]),
        ('note,code\n"two\nlines, and ""more""",ABC-123\n', [("ABC-123",)]),
        ('code\n="0012345"\n', [("0012345",)]),
        ("code;expires\nABC-123;2031-01-01\n", [("ABC-123",)]),
        ("card_number,pin\nA12345,\nA12346,P12346\n", ["missing_field", ("A12346", "P12346")]),
        ("code,expires\nABC-123,soon\n", ["bad_expiry"]),
        ("code,title\nABC-123\nABC-124,x,y\nABC-125,x,,\n", ["not_this_format", "not_this_format", ("ABC-125",)]),
        ('code,title\n"ABC-123,x\nABC-124,y\n', ["unreadable_shape"]),
        ('code,title\nABC-123,"x"y\nABC-124,y\n', ["unreadable_shape", ("ABC-124",)]),
        ('code,title\nABC-123,"x\nABC-124,y\nABC-125,"\n', ["unreadable_shape"]),
        ("ABC-123,50\nABC-124,50\n", ["ambiguous", "ambiguous"]),
        ("ABC-123\nABC-124\n", [("ABC-123",), ("ABC-124",)]),
        ("code,key\nABC-123,ABC-124\n", ["ambiguous"]),
        ("code\n1.23457E+17\n", ["unreadable_shape"]),
    ],
)  # fmt: skip
def test_csv(text, wanted):
    found = keys(text, media="csv")
    assert found == wanted


def test_an_unclosed_quote_accepts_nothing_behind_it_and_stays_in_bounds():
    payload = b'code,title\nABC-123,"x\n' + b"ABC-124,y\n" * 30_000
    found = cards(payload, media="csv")
    assert {card.reason for card in found} == {"too_long"}
    assert max(len(card.raw) for card in found) < 70_000
    assert b"".join(card.raw for card in found).count(b"ABC-124") == 30_000


def test_rows_of_a_spreadsheet():
    rows = [
        ("卡号", "密码", "有效期"),
        ("0012345", "P0012345", "2031-01-31"),
        ("", "", ""),
        ("0012346", "P0012346", "x"),
    ]
    reading = survey_rows(rows)
    found = list(read_rows(rows, reading, AUTO, timezone=SHANGHAI))
    assert [card.position for card in found] == [2, 4]
    assert found[0].key.fields == {"number": "0012345", "pin": "P0012345"}
    assert found[0].raw == b"0012345\tP0012345\t2031-01-31"
    assert found[1].reason == "bad_expiry"
    assert [seen(card) for card in read_rows(rows[2:], reading, AUTO, position=2, timezone=SHANGHAI)] == [
        seen(found[1])
    ]
    assert read_one(found[0].raw, reading, AUTO, SHANGHAI).key.fields == found[0].key.fields
    single = [("ABC-123",), ("ABC-124",)]
    assert [card.key.fields["code"] for card in read_rows(single, survey_rows(single), AUTO, timezone=UTC)] == [
        "ABC-123",
        "ABC-124",
    ]
    wide = [("ABC-123", "x"), ("ABC-124", "y")]
    assert {card.reason for card in read_rows(wide, survey_rows(wide), AUTO, timezone=UTC)} == {"no_key_column"}


# ---- expiry ----


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2027-01-31", (2027, 1, 31, 23, 59, 59)), ("2027/1/31", (2027, 1, 31, 23, 59, 59)),
        ("2027年1月31日", (2027, 1, 31, 23, 59, 59)), ("20270131", (2027, 1, 31, 23, 59, 59)),
        ("２０２７．０１．３１", (2027, 1, 31, 23, 59, 59)), ("2027-01-31 08:30", (2027, 1, 31, 8, 30, 0)),
        ("2027-01-31T08:30:15", (2027, 1, 31, 8, 30, 15)), ("20270131083015", (2027, 1, 31, 8, 30, 15)),
        ("2027年1月31日8时30分", (2027, 1, 31, 8, 30, 0)), ("至2027-01-31", (2027, 1, 31, 23, 59, 59)),
    ],
)  # fmt: skip
def test_expiry_without_a_time_is_the_end_of_that_day_at_the_supplier(text, wanted):
    assert parse_expiry(text, SHANGHAI) == int(datetime(*wanted, tzinfo=SHANGHAI).timestamp())
    assert parse_expiry(text, UTC) == int(datetime(*wanted, tzinfo=UTC).timestamp())


def test_expiry_with_an_offset_none_and_unreadable():
    assert parse_expiry("2027-01-31T00:00:00Z", SHANGHAI) == int(datetime(2027, 1, 31, tzinfo=UTC).timestamp())
    assert parse_expiry("2027-01-31T08:00:00+08:00", UTC) == int(datetime(2027, 1, 31, tzinfo=UTC).timestamp())
    assert {parse_expiry(text, SHANGHAI) for text in ("", "永久", "never", "9999-12-31")} <= {NEVER, NEVER - 8 * 3600}
    for text in (
        "01/02/2027",
        "01-02-27",
        "2027-13-01",
        "2027-02-30",
        "soon",
        "2027",
        "2027-01-31 25:00",
        "0001-01-01",
        "1" * 40,
    ):
        assert parse_expiry(text, SHANGHAI) is None


# ---- what is no key ----


@pytest.mark.parametrize(
    "text",
    [
        "很抱歉，有人在你付款之前抢走了商品，请联系客服。",
        "正在发货中，请耐心等待，如有疑问，请联系客服。",
        "此商品没有发货信息或正在发货中",
        "sold out",
        "Out of stock",
        "SOLD_OUT",
        "null",
        "N/A",
        "[object Object]",
        "XXXXX-XXXXX-XXXXX",
        "库存不足",
    ],
)
@pytest.mark.parametrize("fmt", ["auto", "opaque", "steam", "pair", "account"])
def test_prose_is_never_a_key(text, fmt):
    for payload in (text, f"{text}\n{text}", f"ABCDE-12345-FGHIJ\n{text}"):
        for card in cards(payload, fmt):
            assert card.key is None or text not in card.key.display


@pytest.mark.parametrize(
    "text",
    [
        "abc",
        "Voucherbook",
        "Available",
        "----",
        "!!!!!!",
        "2027-01-31",
        "9.90",
        "1E+17",
        "АBCDE-12345",
        "<html>",
        '{"code":"A1234"',
        "ABCD EFGH 1234",
        "please wait a while",
        "'ABC123'",
        "-ABC123",
        "ABC123-",
        "ABC--1234",
        "A1234,B1234,C1234",
        "iVBORw0KGgo" + "A1" * 60,
    ],
)
def test_auto_is_not_sure(text):
    (found,) = cards(text)
    assert found.key is None
    assert text not in found.detail


def test_a_part_that_never_changes_or_a_date_is_not_a_part_of_a_key_under_auto():
    assert set(keys("\n".join(f"Steam50----ABC{n}" for n in range(100, 110)))) == {"ambiguous"}
    assert set(keys("\n".join(f"ABC{n},2027-01-31" for n in range(100, 110)))) <= {"ambiguous", "unreadable_shape"}
    assert set(keys("\n".join(f"ABC{n},2027-01-{n - 90}" for n in range(100, 110)))) == {"unreadable_shape"}


def test_nasty_ones_are_kept_as_they_are():
    assert keys("ABCD%0AEFGH1") == [("ABCD%0AEFGH1",)]
    assert keys("https://e.example/r?a=b----c:d|e,f") == [("https://e.example/r?a=b----c:d|e,f",)]
    assert keys("00012----https://e.example/r?a=b----c", "opaque") == [("00012----https://e.example/r?a=b----c",)]
    assert keys("user@mail.example----00123456") == [("user@mail.example", "00123456")]
    assert keys("0000123") == [("0000123",)]
    assert keys("\ufeffABC-123\r\nABC-124\r\n") == [("ABC-123",), ("ABC-124",)]
    assert keys("ABC-123\n\ufeffABC-124\n") == [("ABC-123",), ("ABC-124",)]
    assert keys("\u200fABCDE-12345\u200e-FGHIJ", "steam") == [("ABCDE-12345-FGHIJ",)]
    assert keys("ＡＢＣＤＥ－１２３４５－ＦＧＨＩＪ", "steam") == [("ABCDE-12345-FGHIJ",)]
    assert keys("A1" * 380) == [("A1" * 380,)]
    assert keys("A1" * 50_000) == ["too_long", "too_long"]
    assert keys("ABC-123\rABC-124\r") == [("ABC-123",), ("ABC-124",)]
    assert keys("卡密\nABC-123") == [("ABC-123",)]
    assert keys("卡号----卡密\nA12345----B12345") == [("A12345", "B12345")]
    assert keys("卡密----卡号\nB12345----A12345") == [("A12345", "B12345")]


def test_undecodable_bytes_hold_that_card_only():
    payload = b"ABC-123\nABC\xff124\nABC-125\n"
    assert keys(payload) == [("ABC-123",), "undecodable", ("ABC-125",)]
    assert cards(payload)[1].raw == b"ABC\xff124"
    assert keys(b"ABC-123\nABC\x00124\n" + b"ABC-125\n" * 20)[1] == "undecodable"
    assert set(keys("ABC-123\nABC-124\n".encode("utf-16-le"))) == {"undecodable"}  # no byte order mark


def test_a_placeholder_in_the_shape_of_a_key_is_never_a_key(tmp_path):
    path = write(
        tmp_path,
        'placeholders = ["ABCDE-12345-DUMMY"]\n[mine]\naccept=["AB1"]\n[mine.code]\nlength="1-20"\nalphabet="alnum"\n',
    )
    formats = load_formats([ROOT / "config" / "formats.toml", path])
    for name in ("auto", "steam", "mine", "opaque"):
        payload = b"AAAAA-12345-BBBBB\nABCDE-12345-DUMMY\n" * 2
        found = [card.reason for card in read([payload], Reading(), formats[name], timezone=UTC)]
        assert found[1::2] == ["prose", "prose"]


# ---- the fixed function ----


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"code": "abcde 12345-fghij"}, "ABCDE12345FGHIJ"),
        ({"code": "ＡＢＣＤＥ—12345\u200b"}, "ABCDE12345"),
        ({"number": "00-12", "pin": "ab cd"}, "0012\x1fABCD"),
        ({"pin": "0012", "number": "abcd"}, "0012\x1fABCD"),
        ({"link": " https://E.example/a-B "}, "https://E.example/a-B"),
        ({"code": "- -"}, "- -"),
        ({"code": "straße"}, "STRASSE"),
        ({"account": "Me@x.example", "password": "Pa-55"}, "ME@X.EXAMPLE\x1fPA55"),
        ({"code": ""}, ""),
        ({"code": "密码－1"}, "密码1"),
    ],
)
def test_K5_dedupe_form_version_1_is_pinned(fields, wanted):
    assert dedupe_form(fields) == wanted


@QUICK
@given(st.text(min_size=1, max_size=30))
def test_K5_dedupe_form_is_idempotent_and_total(text):
    once = dedupe_form({"code": text})
    assert once
    assert dedupe_form({"code": once}) == once


# ---- properties ----

PIECES = st.sampled_from(
    [
        "ABC-123",
        "A1234----B5678",
        "卡号：A1234",
        "密码：B5678",
        "有效期：2030-01-01",
        "code,pin",
        '"A1,\nB2"',
        '"',
        "\n",
        "\r\n",
        "\r",
        "\n\n",
        " ",
        "\t",
        "，",
        ",",
        "----",
        "https://e.example/?a=b----c",
        "很抱歉，请联系客服。",
        "\ufeff",
        "\u200f",
        "\x00",
        "\x1c",
        "%0A",
        "卡密",
        "secret",
        "００１２",
        "-------",
        "x" * 5000,
    ]
)
TEXTS = st.lists(PIECES, max_size=25).map("".join)
PAYLOADS = st.one_of(
    TEXTS.map(str.encode),
    TEXTS.map(lambda text: text.encode("gb18030")),
    st.binary(max_size=200),
    st.tuples(TEXTS, st.binary(max_size=3), TEXTS).map(lambda parts: parts[0].encode() + parts[1] + parts[2].encode()),
)
MEDIA = st.sampled_from(["text", "csv"])
NAMES = st.sampled_from(["auto", "opaque", "steam", "china-mobile", "account", "link"])
SPLIT = st.sampled_from(["auto", "auto", "line", "pair", "labelled", "csv"])


def chopped(payload, cuts_at):
    edges = [0, *sorted(at % (len(payload) + 1) for at in cuts_at), len(payload)]
    return [payload[start:end] for start, end in pairwise(edges)]


@QUICK
@given(PAYLOADS, MEDIA, NAMES, SPLIT, st.lists(st.integers(0, 10_000), max_size=12))
def test_streaming_equals_one_shot_wherever_the_chunks_are_cut(payload, media, name, split, cuts_at):
    survey = Survey(media)
    for chunk in chopped(payload, cuts_at):
        survey.feed(chunk)
    reading = survey.decide(split)
    assert reading == surveyed(payload, media, split)
    whole = [seen(card) for card in read([payload], reading, FORMATS[name], timezone=SHANGHAI)]
    assert [seen(card) for card in read(chopped(payload, cuts_at), reading, FORMATS[name], timezone=SHANGHAI)] == whole
    assert [
        seen(card)
        for card in read([payload[i : i + 1] for i in range(len(payload))], reading, FORMATS[name], timezone=SHANGHAI)
    ] == whole


@QUICK
@given(PAYLOADS, MEDIA, NAMES, SPLIT)
def test_resuming_at_the_end_of_any_card_gives_the_same_remaining_cards(payload, media, name, split):
    reading = Reading.load(surveyed(payload, media, split).dump())
    found = list(read([payload], reading, FORMATS[name], timezone=SHANGHAI))
    for at, card in enumerate(found):
        rest = read(
            [payload[card.end :]], reading, FORMATS[name], offset=card.end, position=card.line_end, timezone=SHANGHAI
        )
        assert [seen(one) for one in rest] == [seen(one) for one in found[at + 1 :]]


@QUICK
@given(PAYLOADS, MEDIA, NAMES, SPLIT)
@example("卡号：A1\n\n密码：B2\n随便\n".encode(), "text", "auto", "labelled")
def test_nothing_is_lost_and_reading_is_total(payload, media, name, split):
    reading = surveyed(payload, media, split)
    at = 0
    for card in read([payload], reading, FORMATS[name], timezone=SHANGHAI):
        assert (card.key is None) == bool(card.reason)
        assert bool(card.detail) == bool(card.reason)
        start = len(payload[: card.end].rstrip(b"\r\n")) - len(card.raw)
        assert_nothing(payload[at:start], reading)
        assert payload[start : start + len(card.raw)] == card.raw
        at = card.end
        again = read_one(card.raw, reading, FORMATS[name], SHANGHAI)
        assert again.raw == card.raw
    assert_nothing(payload[at:], reading)


def assert_nothing(gap, reading):
    """Bytes between cards are blank, a header, or (between labelled cards) punctuation."""
    text = gap.decode({"gb18030": "gb18030"}.get(reading.encoding, "utf-8"), "replace")
    bare = strip(text)
    if reading.header:
        bare = strip(bare.partition("\n")[2] if "\n" in bare else "")
    if reading.splitter == "labelled":
        assert is_decoration(bare.replace("\n", "").replace("\r", "").replace("\ufeff", ""))
        return
    assert not strip(bare.replace(",", "").replace('"', "")) or reading.header, "bytes between cards"


def test_a_million_lines_in_bounded_memory_scaled_down():
    line = b"ABCDE-12345-FGHIJ\n"

    def chunks():
        for _ in range(20):
            yield line * 5000

    tracemalloc.start()
    survey = Survey()
    for chunk in chunks():
        survey.feed(chunk)
    count = sum(card.key is not None for card in read(chunks(), survey.decide(), FORMATS["steam"], timezone=UTC))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100_000
    assert peak < 8_000_000


def test_an_endless_line_and_endless_blanks_stay_in_bounds():
    tracemalloc.start()
    for payload in (b"A" * 65_536, b"\n" * 65_536):
        survey = Survey()
        found = 0
        head = "卡号：A1\n".encode()
        for _ in range(10):
            survey.feed(payload)
        for card in read(iter([head, *[payload] * 10]), surveyed(head, split="labelled"), AUTO, timezone=UTC):
            found += 1
            assert len(card.raw) < 140_000
        assert found
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000_000


def test_pieces_of_one_long_line_differ_and_resume_before_it():
    payload = b"ABC-123\n" + b"A" * 300_000 + b"\nABC-124\n"
    found = list(read([payload], Reading(), AUTO, timezone=UTC))
    pieces = found[1:-1]
    assert len({card.raw for card in pieces}) == len(pieces) > 3
    assert b"".join(card.raw for card in pieces) == b"A" * 300_000
    assert {card.position for card in pieces} == {2}
    assert {(card.end, card.line_end) for card in pieces[:-1]} == {(8, 1)}
    assert found[-1].key


def test_no_card_shows_its_text():
    secret = "SECRET-12345-CANARY"
    for text in (secret, f"{secret} {secret}", f"卡号：{secret}", f'"{secret}', f"{secret}----{secret}----{secret}"):
        for name in FORMATS:
            for card in cards(text, name):
                assert secret not in repr(card)
                assert secret not in card.detail


def test_random_spellings_of_one_key_are_one():
    rng = random.Random(7)
    for _ in range(50):
        code = "".join(rng.choices("ABCDEFGHJK23456789", k=15))
        spelled = rng.choice(["-", " ", ""]).join((code[:5], code[5:10], code[10:]))
        key = read_one(rng.choice([spelled, spelled.lower()]).encode(), None, FORMATS["steam"], UTC).key
        assert key.canonical == {"code": f"{code[:5]}-{code[5:10]}-{code[10:]}"}
        assert dedupe_form(key.fields) == code


LINES = st.lists(
    st.one_of(
        st.from_regex(r"[A-Z0-9xX]{1,5}(?:-{1,4}[A-Z0-9]{1,5}){0,4}", fullmatch=True),
        st.from_regex(r"[A-Z0-9]{3,5} ?(?:----|,|:) ?[0-9A-Z-]{0,9}", fullmatch=True),
        st.sampled_from(
            [
                "2027-01-31",
                "2027-1-3----A1234",
                "12E45",
                "1E17----12345",
                "ABCDE-12345-FGHIJ",
                "iVBORw0KGgo1",
                "",
                " ",
                "A1 ",
            ]
        ),
        st.sampled_from(
            ["0" * 17 + "----" + "1" * 18, "XXXXX-XXXXX-XXXXX", "SOLD-OUT", "A1--B2", "ABCD----1", "A1-----B2345"]
        ),
    ),
    min_size=1,
    max_size=30,
)


@QUICK
@given(LINES, NAMES, st.sampled_from(["line", "pair:----", "pair:,", "pair::"]), st.sampled_from(["\n", "\r\n"]))
def test_the_short_way_reads_exactly_what_the_long_way_reads(lines, name, split, end):
    payload = ("".join(line + end for line in lines)).encode()
    reading = surveyed(payload, split=split)
    short = [seen(card) for card in read([payload], reading, FORMATS[name], timezone=UTC)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_module, "_line_end", lambda cut: b"")
        assert [seen(card) for card in read([payload], reading, FORMATS[name], timezone=UTC)] == short


def test_opaque_takes_lines_whatever_the_payload_looks_like():
    assert keys("A1234----B5678\n卡号：1 密码：2\nx y z", "opaque") == [
        ("A1234----B5678",),
        ("卡号：1 密码：2",),
        ("x y z",),
    ]
    assert OPAQUE.kind == "opaque"
