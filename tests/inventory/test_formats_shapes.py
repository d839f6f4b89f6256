"""Shapes in which suppliers hand keys over, as people and machines write them: read exactly, or held."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from syncd.errors import ConfigError
from syncd.inventory.formats import (
    Survey,
    check_count,
    dedupe_form,
    is_split,
    load_formats,
    parse_expiry,
    read,
    read_fields,
    read_image,
    read_one,
)
from syncd.model import NEVER

ROOT = Path(__file__).parents[2]
FORMATS = load_formats([ROOT / "config" / "formats.toml"])
AUTO = FORMATS["auto"]
ZONE = ZoneInfo("Asia/Shanghai")
END_2027 = int(datetime(2027, 12, 31, 23, 59, 59, tzinfo=ZONE).timestamp())


def png(shade: int = 1, side: int = 10) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes([0, *[shade] * side]) * side))
    return b"\x89PNG\r\n\x1a\n" + head + rows + chunk(b"IEND", b"")


PICTURE = base64.b64encode(png()).decode()


def cards(text: str | bytes, fmt: str = "auto", split: str = "auto", charset: str | None = None):
    payload = text.encode() if isinstance(text, str) else text
    survey = Survey("text", charset)
    survey.feed(payload)
    return list(read([payload], survey.decide(split), FORMATS[fmt], timezone=ZONE))


def found(*args, **more):
    return [tuple(card.key.fields.values()) if card.key else card.reason for card in cards(*args, **more)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        # what people write around keys
        ("您的卡密如下：\nABCDE-12345\nABCDE-12346\n感谢您的购买！",
         ["prose", ("ABCDE-12345",), ("ABCDE-12346",), "prose"]),
        ("卡密：\nABCDE-12345\nABCDE-12346\nABCDE-12347", [("ABCDE-12345",), ("ABCDE-12346",), ("ABCDE-12347",)]),
        ("1. ABCDE-12345\n2. ABCDE-12346", [("ABCDE-12345",), ("ABCDE-12346",)]),
        ("①ABCDE-12345\n②ABCDE-12346", [("ABCDE-12345",), ("ABCDE-12346",)]),
        ("1、A001----P0011\n2、A002----P0022", [("A001", "P0011"), ("A002", "P0022")]),
        ("1001. AB\n7. ABCDE-12346", ["unreadable_shape", "unreadable_shape"]),
        ("第1张\n卡号：A001\n密码：P0011\n第2张\n卡号：A002\n密码：P0022", [("A001", "P0011"), ("A002", "P0022")]),
        ("user----Pa55\nuser2----Pa55X1", ["unreadable_shape", ("user2", "Pa55X1")]),
        ("卡号1：A0011 密码1：B0011\n卡号2：A0012 密码2：B0012", [("A0011", "B0011"), ("A0012", "B0012")]),
        ("• ABCDE-12345\n• ABCDE-12346", [("ABCDE-12345",), ("ABCDE-12346",)]),
        ("Hello,\nThanks for your order!\n\nCard Number: 0012345\nPIN: 9911\n\nHave a nice day.",
         ["prose", "prose", ("0012345", "9911"), "prose"]),
        ("Order No: 20231101\nABCDE-12345\nABCDE-12346", ["prose", ("ABCDE-12345",), ("ABCDE-12346",)]),
        ("ABCDE-12345,\nABCDE-12346", [("ABCDE-12345",), ("ABCDE-12346",)]),
        ("卡号：A0011　密码：P0011\n卡号：A0012　密码：P0012\n---完---",
         [("A0011", "P0011"), ("A0012", "P0012"), "prose"]),
        ("【中国移动】卡号：A0011 密码：B0011", [("A0011", "B0011")]),
        ("充值卡100元 卡号:A0011 密码:B0011", [("A0011", "B0011")]),
        ("张三 密码:B0011", ["prose"]),
        ("A0011,B0011\nA0012,B0012\n共2张", [("A0011", "B0011"), ("A0012", "B0012"), "prose"]),
        ("卡号：\nA0011\nA0012", ["ambiguous"] * 3),
        ("卡密：https://a.example/r/xyz", [("https://a.example/r/xyz",)]),
        ("卡号:0012345;密码:P00123;", [("0012345", "P00123")]),
        ("卡号 密码\n0012345678 987654321X\n0012345679 987654322X",
         [("0012345678", "987654321X"), ("0012345679", "987654322X")]),
        # what stands behind a key
        ("ABCDE-12345（Steam 50元）", [("ABCDE-12345",)]),
        ("ABCDE-12345（已使用）", ["spent"]),
        ("ABCDE-12345 备注：已作废", ["spent"]),
        ("ABCDE-12345（密码见邮件）", ["prose"]),
        ("A0011----P0011║预告║1║2.5\nA0012----P0012║║0║0", [("A0011", "P0011"), ("A0012", "P0012")]),
        ("║ABCDE-12345║", ["unreadable_shape"]),
        # documents
        ('[{"card_no":"0012345","card_password":"P00123","end_time":"2027-12-31"}]', [("0012345", "P00123")]),
        ('{"code":200,"msg":"success","data":{"cards":[{"card_no":"0012345","card_pwd":"P00123"}]}}',
         [("0012345", "P00123")]),
        ('{"card_no":"","card_pwd":"P00123"}', [("P00123",)]),
        ('{"card_no":"me@mail.example","card_pwd":"P00123"}', [("me@mail.example", "P00123")]),
        ('{"card_number":"0012345","card_pwd":"P00123","card_type":1,"card_deadline":"2027-12-31"}',
         [("0012345", "P00123")]),
        ('[{"cardNumber":"6102345","pinCode":"12345678"}]', [("6102345", "12345678")]),
        ('[{"serial":"ABCDE-12345","type":"text/plain"}]', [("ABCDE-12345",)]),
        ('{"codes":[{"codeType":"CODE_TEXT","code":"ABCDE-12345"},{"codeType":"PRE_ORDER","code":null}]}',
         [("ABCDE-12345",), "no_key_yet"]),
        ('[{"no":"A1234","pwd":"P1234"}]', [("A1234", "P1234")]),
        ('[{"value":"P1234X","serial":"S12345"}]', [("S12345", "P1234X")]),
        ('["https://a.example/r?code=1"]', [("https://a.example/r?code=1",)]),
        ('["A1234----P1234","A1235----P1235"]', [("A1234", "P1234"), ("A1235", "P1235")]),
        ('{"secret":"卡号：A1234 密码：P1234"}', [("A1234", "P1234")]),
        ('{"cards":["卡号：A1234\\n密码：P1234"]}', [("A1234", "P1234")]),
        ('{"card_no":"A12345","card_pwd":"P12345"}\n{"card_no":"A12346","card_pwd":"P12346"}',
         [("A12345", "P12345"), ("A12346", "P12346")]),
        ('{"card_no":"A12345","card_no":"B12345","card_pwd":"P12345"}', ["ambiguous"]),
        ('{"card_no":"A12345","card_pwd":"P12345","cvv":"123"}', ["ambiguous"]),
        ('{"a_list":[{"code":"A12345"}],"b_list":[{"code":"B12345"}]}', ["ambiguous"]),
        ('{"card_no":"A12345","card_pwd":"P12345"', ["unreadable_shape"]),
        ('{"card_no":12345,"card_pwd":67890}', ["unreadable_shape"]),
        ('{"card_no":"A12345","card_pwd":"P12345","status":"used"}', ["spent"]),
        ('{"code":1,"msg":"库存不足"}', ["prose"]),
        ('{"data":"[{\\"code\\":\\"A12345\\"}]","code":"{\\"a\\":1}"}', ["ambiguous"]),
        # nasty
        ("ABCD%0AEFGH1", [("ABCD%0AEFGH1",)]),
        ("ABC&amp;12345", [("ABC&amp;12345",)]),
        ("\u202eABCDE-12345\u202c", ["unreadable_shape"]),
        ("АBCDE-12345", ["unreadable_shape"]),
        ("②ABCDE-12345", ["unreadable_shape"]),
        ("https://a.example/x----PIN1234", ["ambiguous"]),
        ("A0011/B0011", ["unreadable_shape"]),
        ('"A0011","P0011"\n"A0012","P0012"', [("A0011", "P0011"), ("A0012", "P0012")]),
        (PICTURE[:-8], ["unreadable_shape"]),
    ],
)  # fmt: skip
def test_auto_reads_what_is_sure(text, wanted):
    assert found(text) == wanted


@pytest.mark.parametrize(
    ("fmt", "text", "wanted"),
    [
        ("steam", "Steam----ABCDE-12345-FGHIJ----50元", [("ABCDE-12345-FGHIJ",)]),
        ("steam", "ABCDE-12345-FGHIJ----已使用", ["prose"]),
        ("steam", "ABCDE-12345-FGHIJ----A1B2", ["ambiguous"]),
        ("steam", "АBCDE-12345-FGHIJ", ["not_this_format"]),
        ("pair", '"A0011,P0011\n"A0012,P0012', ["unreadable_shape", "unreadable_shape"]),
        ("pair", "卡号1234:密码5678", ["ambiguous"]),
        ("pair", "<b>A0011</b>----<b>B0011</b>", ["not_this_format"]),
        ("account", "账号：a@b.example----密码：Pa55,w", [("a@b.example", "Pa55,w")]),
        ("account", "user----Pa:55\nuser2----Pa:56", [("user", "Pa:55"), ("user2", "Pa:56")]),
        ("netdisk", "https://pan.example/s/1a，提取码：x7k2", [("https://pan.example/s/1a", "x7k2")]),
        ("netdisk", "https://pan.example/s/1a----x7k2", [("https://pan.example/s/1a", "x7k2")]),
        ("link", "https://a.example/x----PIN1234", [("https://a.example/x----PIN1234",)]),
        ("china-mobile", '{"card_no":12345678901234567,"card_pwd":123456789012345678}',
         [("12345678901234567", "123456789012345678")]),
        ("china-mobile", "01234567890123456----000000000000000000", ["not_this_format"]),
        ("opaque", '{\n "code":"A1234"\n}', [("A1234",)]),
        ("opaque", '{"code":"A1234"', ["unreadable_shape"]),
    ],
)  # fmt: skip
def test_a_format_reads_what_it_describes(fmt, text, wanted):
    assert found(text, fmt) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "A0011----P0011----2027-12-31", "A0011----P0011 有效期：2027-12-31", "A0011----P0011 (有效期2027年12月31日)",
        "卡号：A0011 密码：P0011 有效期：2026-01-01 至 2027-12-31", "卡号：A0011 密码：P0011 expires: 31 Dec 2027",
        '{"card_no":"A0011","card_pwd":"P0011","end_time":"2027-12-31 23:59:59"}',
        f'{{"card_no":"A0011","card_pwd":"P0011","end_time":{END_2027}}}',
        "卡号\t密码\t有效期\nA0011\tP0011\t2027/12/31",
    ],
)  # fmt: skip
def test_an_expiry_is_found_where_it_stands(text):
    (card,) = cards(text)
    assert (dict(card.key.fields), card.key.expires_at) == ({"number": "A0011", "pin": "P0011"}, END_2027)


def test_more_dates_and_what_stays_uncertain():
    assert parse_expiry("December 31st, 2027", ZONE) == parse_expiry(f"{END_2027}000", ZONE) == END_2027
    assert parse_expiry("12/31/2027", ZONE) == END_2027  # no month has this number
    for text in ("12/11/2027", "2027013108", "31 Foo 2027", "0", "1 year"):
        assert parse_expiry(text, ZONE) is None


def test_a_template_is_matched_or_not_sure():
    split = "{number}----{pin} 有效期{expires}"
    assert is_split(split)
    assert found("A0011----P0011 有效期：2027-12-31", split=split) == [("A0011", "P0011")]
    for text in ("A0011----P0011----X 有效期2027-12-31", "A0011 有效期2027-12-31", "A0011-----P0011 有效期2027-12-31"):
        assert found(text, split=split) == ["unreadable_shape"]
    for wrong in ("{a}{b}", "{expires}", "{code", "{code}{code}", "{Code}", "x" * 300 + "{code}"):
        assert not is_split(wrong)


def test_a_format_of_its_own_may_have_a_template_and_checks(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[mine]\ntemplate = "#{_} {code};"\naccept = ["#1 4111111111111111;"]\nreject = ["#1 4111111111111112;"]\n'
        '[mine.code]\nalphabet = "digits"\nlength = 16\ncheck = "luhn"\n'
    )
    assert load_formats([path])["mine"].splitter(None) == "#{_} {code};"
    path.write_text('[mine]\ntemplate = "{pin}"\naccept = ["A"]\n[mine.code]\ncheck = "lune"\n')
    with pytest.raises(ConfigError) as caught:
        load_formats([path])
    assert "mine.template" in str(caught.value)
    assert "mine.code.check" in str(caught.value)


def test_a_declared_charset_wins_over_what_the_bytes_could_be():
    payload = "卡號：A0011 密碼：P0011".encode("big5")
    assert found("卡号：A0011 密码：P0011".encode("gbk"), charset="GBK") == [("A0011", "P0011")]
    assert cards(payload, charset="big5")[0].reason != "undecodable"
    assert found("卡号：A0011".encode() + b"\xff", charset="utf-8") == ["undecodable"]
    with pytest.raises(ValueError, match="charset"):
        Survey("text", "utf-7")


# ---- images, and keys that an adapter has already ----


def test_an_image_is_one_key_however_its_bytes_are_spelled():
    texts = (PICTURE, f"data:image/png;base64,{PICTURE}", json.dumps([{"serial": PICTURE, "type": "image/png"}]))
    forms = {dedupe_form(card.key.fields) for text in texts for card in cards(text)}
    given = read_image(png(), "image/png", AUTO, supplier_key="77", expiry="2027-12-31", timezone=ZONE)
    assert forms == {dedupe_form(given.key.fields)}
    assert dict(given.key.fields) == {"image": f"data:image/png;base64,{PICTURE}"}
    assert (given.supplier_key, given.key.expires_at) == ("77", END_2027)
    assert forms != {dedupe_form(read_image(png(2), "image/png", AUTO, timezone=ZONE).key.fields)}
    assert FORMATS["image"].masked(given.key.canonical) == "[image/png]"
    assert read_one(given.raw, None, AUTO, ZONE).key.fields == given.key.fields


def test_an_image_that_is_not_what_it_says_or_not_wanted_is_held():
    assert read_image(png()[:-3], "image/png", AUTO, timezone=ZONE).reason == "unreadable_shape"
    assert read_image(png(), "image/jpeg", AUTO, timezone=ZONE).reason == "unreadable_shape"
    assert read_image(png(side=9), "image/png", AUTO, timezone=ZONE).reason == "unreadable_shape"  # a dot
    held = read_image(png(), "image/png", FORMATS["steam"], timezone=ZONE)
    assert held.reason == "missing_field"
    assert read_one(held.raw, None, FORMATS["image"], ZONE).key


def test_named_parts_mean_what_they_mean_in_a_document():
    card = read_fields(
        {"card_no": "0012", "card_pwd": "P123"}, AUTO, expiry="2027-12-31", supplier_key="9", timezone=ZONE
    )
    assert (dict(card.key.fields), card.key.expires_at) == ({"number": "0012", "pin": "P123"}, END_2027)
    assert card.supplier_key == "9"
    assert read_one(card.raw, None, AUTO, ZONE).key.fields == card.key.fields
    one = read_fields({"secret": "A0011----P0011"}, AUTO, timezone=ZONE)
    assert dict(one.key.fields) == {"number": "A0011", "pin": "P0011"}
    assert read_fields({"code": "库存不足"}, AUTO, timezone=ZONE).reason == "prose"
    assert read_fields({"code": "A0011", "secure_token": "1"}, AUTO, timezone=ZONE).reason == "ambiguous"
    assert read_fields({}, AUTO, timezone=ZONE).reason == "missing_field"


# ---- as many as were ordered ----


@pytest.mark.parametrize(
    ("text", "ordered", "wanted"),
    [
        ("ABCDE-12345\nABCDE-12346\n谢谢惠顾", 2, ("accept", 2, 0, 0)),
        ("ABCDE-12345\nABCDE-12345", 2, ("hold", 1, 1, 0)),
        ("ABCDE-12345\nABCDE-12345", 1, ("accept", 1, 1, 0)),
        ("ABCDE-12345\nabcde12345\nABCDE-12346", 2, ("accept", 2, 1, 0)),
        ("ABCDE-12345", 2, ("hold", 1, 0, 0)),
        ("ABCDE-12345\nABCDE-12346", 1, ("hold", 2, 0, 0)),
        ("ABCDE-12345\nABC\xff", 2, ("accept", 1, 0, 1)),
        ("很抱歉，请联系客服。", 1, ("hold", 0, 0, 0)),
        ('[{"codeType":"PRE_ORDER","code":""}]', 1, ("wait", 0, 0, 1)),
        ('[{"code":"ABCDE-12345"},{"codeType":"PRE_ORDER","code":""}]', 2, ("wait", 1, 0, 1)),
        ("", 1, ("hold", 0, 0, 0)),
    ],
)  # fmt: skip
def test_P3_what_came_is_compared_with_what_was_ordered(text, ordered, wanted):
    count = check_count(cards(text), ordered)
    assert (count.action, len(count.keys), len(count.repeats), len(count.held)) == wanted
    assert count.note


def test_a_document_is_taken_up_again_from_its_start():
    payload = json.dumps([f"ABCDE-{number}" for number in range(10_000, 10_020)], indent=1).encode()
    survey = Survey()
    survey.feed(payload)
    reading = survey.decide()
    whole = list(read([payload], reading, AUTO, timezone=UTC))
    assert {card.end for card in whole[:-1]} == {0}
    assert whole[-1].end == len(payload)
    assert [card.position for card in whole] == list(range(2, 22))
    assert not list(read([b""], reading, AUTO, offset=len(payload), position=22, timezone=UTC))


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("steam", "Steam Key - ABCDE-12345-FGHIJ", ["ABCDE-12345-FGHIJ"]),
        ("steam", "请使用 ABCDE-12345-FGHIJ 激活，谢谢", ["ABCDE-12345-FGHIJ"]),
        ("steam", "ABCDE-12345-FGHIJ ABCDE-12345-FGHIK", ["ABCDE-12345-FGHIJ", "ABCDE-12345-FGHIK"]),
        ("steam", "Your code ABCDE-12345-FGHIJ will be refunded", []),
        ("steam", "格式如 ABCDE-12345-FGHIJ", []),
        ("steam", "ABCDE-12345-FGHIJ 或 ABCDE-12345-FGHIK", []),
        ("steam", "PIN: 1234 ABCDE-12345-FGHIJ", []),
        ("steam", "ABCDE-XXXXX-FGHIJ", []),
        ("auto", "ABCDE-12345-FGHIJ; ABCDE-12345-FGHIK", []),
        ("auto", '{"data": [["A1234567", "B1234567"]]}', ["A1234567", "B1234567"]),
        ("auto", '{"keys": ["ABCDE-12345-FGHIJ"], "valid_until": "05/06/2027"}', []),
        ("auto", "ABCD-1234-EFGH(2027-12-31)", []),
        ("auto", "All codes valid until 12/11/2027\nABCD-1234-EFGH", []),
        ("china-mobile", "12345678901234567 123456789012345678 13800138000", []),
        ("china-mobile", "123456789012345678/12345678901234567", ["12345678901234567", "123456789012345678"]),
    ],
)
def test_what_stands_beside_a_key_and_what_spoils_it(name, text, wanted):
    found = [value for card in cards(text, name) if card.key for value in card.key.fields.values()]
    assert sorted(found) == sorted(wanted)


def test_what_a_spreadsheet_has_spoilt_is_no_key():
    for spoilt in ("6.22841E+15", "1.23457E+11", "#####", "1-Dec", "Dec-27"):
        assert found(f"卡号：{spoilt} 密码：71660633\n卡号：1441523097025406 密码：82349938") == [
            "unreadable_shape" if "#" not in spoilt else "prose",
            ("1441523097025406", "82349938"),
        ]


def test_a_fifth_hyphen_on_one_line_is_not_sure():
    lines = ["222735404965----36562774", "811758286693----14245881", "829768032820----11759998"]
    assert found("\n".join([*lines, "750440972713-----61546346"]))[3] == "ambiguous"


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("key,purchased_on\nK7QWX3NP9VBD,2026-03-02\nT4HJM8ZC2RFG,2026-03-02", ["K7QWX3NP9VBD", "T4HJM8ZC2RFG"]),
        ("code,date\nK7QWX3NP9VBD,2031-03-02\nT4HJM8ZC2RFG,2031-03-02", ["bad_expiry", "bad_expiry"]),
        ('{"cards":[{"code":"K7QWX3NP9VBD","date":"2031-03-02"}]}', ["bad_expiry"]),
        (
            "".join(f"{number:012}----K7QWX3NP9VB{number % 10}\n" for number in range(4040, 4048)) + "4049----K7QW",
            [f"{number:012}" for number in range(4040, 4048)] + ["unreadable_shape"],
        ),
    ],
    ids=["of the past", "of what", "of what in JSON", "cut off"],
)  # fmt: skip
def test_a_date_of_unknown_meaning_and_a_part_that_is_cut_off_are_held(text, reads):
    got = [next(iter(card.key.fields.values())) if card.key else card.reason for card in cards(text)]
    assert got[-len(reads) :] == reads
    assert all(card.key is None or card.key.expires_at == NEVER for card in cards(text))


def test_an_expiry_below_cards_that_are_a_line_each_is_that_of_all():
    lines = ["卡号：A0011223 密码：P0011", "卡号：B0011224 密码：P0012", "卡号：C0011225 密码：P0013"]
    for text in ("\n".join([*lines, "有效期至2027-12-31，请尽快使用。"]), "\n".join(["有效期：2027-12-31", *lines])):
        read = [card.key.expires_at for card in cards(text) if card.key]
        assert len(read) >= 2
        assert set(read) == {END_2027}


def test_a_heading_that_says_sold_and_goes_on_holds_the_list():
    text = "以下为已售卡密，仅供对账\n96592403616535----25685876\n23510252267660----46931949"
    assert not [card for card in cards(text) if card.key]


def test_a_number_that_is_masked_is_held_in_a_pair_too():
    assert found("RMEK****BA3C----Y3BriNUl\nVUST****CD8U----pdLlJi2w", fmt="pair") == ["prose", "prose"]
    assert found("RMEK77Q1BA3C----Y3B**NUl\nVUST55W2CD8U----pdLlJi2w", fmt="pair")[0] == ("RMEK77Q1BA3C", "Y3B**NUl")


def test_before_a_day_is_an_expiry_whatever_the_verb():
    text = "Please claim before 2027-12-31:\nhttps://go.example.org/c/5BrcI9noP4CiyF\nhttps://go.example.org/c/4SiJ9vIfV7DxVO"
    assert [card.key.expires_at for card in cards(text) if card.key] == [END_2027, END_2027]
