"""What suppliers write beside keys, and what is no key any more: never sold, and never a part of one."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path

import pytest

from syncd.inventory.formats import Survey, load_formats, read, read_one, read_rows, survey_rows
from syncd.inventory.formats import evidence as evidence_module
from syncd.inventory.formats import words as words_module

FORMATS = load_formats([Path(__file__).parents[2] / "config" / "formats.toml"])
PAIRS = [("A0001111", "B0001111"), ("A0001112", "B0001112")]
A, B = "ABCDE-12345-FGHIJ", "ABCDE-12345-FGHIK"


def found(text, fmt="auto", media="text"):
    survey = Survey(media)
    survey.feed(text.encode())
    cards = read([text.encode()], survey.decide(FORMATS[fmt].splitter(None)), FORMATS[fmt], timezone=UTC)
    return [tuple(card.key.fields.values()) if card.key else card.reason for card in cards]


SPENT = [
    ("used", "yes"), ("used", "TRUE"), ("redeemed", "1"), ("active", "no"), ("available", "N"),
    ("used_at", "2026-01-01"),
    ("redeemed_by", "john"), ("是否使用", "是"), ("状态", "已售"), ("status", "Blocked"), ("使用时间", "昨天"),
    ("state", "REDEEMED"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), SPENT)
def test_a_column_or_member_that_says_it_is_spent_holds_the_card(name, value):
    table = f"code,{name}\n{A},\n{B},{value}\n"
    assert found(table, media="csv") == [(A,), "spent"]
    assert found(f'[{{"code":"{A}","{name}":""}},{{"code":"{B}","{name}":"{value}"}}]') == [(A,), "spent"]


@pytest.mark.parametrize(
    "member", ['"valid":false', '"isValid":false', '"enabled":false', '"isExpired":true', '"void":true']
)
def test_a_flag_of_json_says_it_too(member):
    other = member.replace("false", "X").replace("true", "false").replace("X", "true")
    assert found(f'[{{"code":"{A}",{other}}},{{"code":"{B}",{member}}}]') == [(A,), "spent"]


@pytest.mark.parametrize(
    "line",
    ["以上已售", "以下卡密已使用", "已使用：", "【已失效】", "== used ==", "Used keys:", "Expired codes", "USED:"],
)
@pytest.mark.parametrize("fmt", ["auto", "steam", "opaque"])
def test_a_heading_over_or_under_spent_keys_holds_them_all(line, fmt):
    for text in (f"{A}\n{line}\n{B}\n", f"{line}\n{A}\n未使用：\n{B}\n"):
        assert not [key for key in found(text, fmt) if isinstance(key, tuple)]


@pytest.mark.parametrize(
    "line", ["卡密已售出不退不换", "如已使用概不负责", "已使用", "请在有效期内使用", "Used by 1000 customers"]
)
def test_a_word_to_the_customer_is_no_such_heading(line):
    assert found(f"{A}\n{line}\n{B}\n")[::2] == [(A,), (B,)]


@pytest.mark.parametrize(
    "line",
    ["❌ {}", "OLD: {}", "~~{}~~", "{} (used)", "{} (OLD)", "{} (BAD)", "{} // sold", "Example: {}", "Refund code {}"],
)
def test_a_key_with_such_a_word_beside_it_is_held(line):
    assert found(f"{line.format(A)}\n{B}\nABCDE-12345-FGHIL\n", "steam")[0] != (A,)


@pytest.mark.parametrize(
    "line",
    ["INV-2026-0001", "ORD-1001", "www.example.com", "help@example.com", "example.com", "https://x.example/redeem"],
)
def test_what_is_no_key_in_a_list_of_keys_is_held(line):
    codes = [f"ABCD{number}EFGH" for number in range(1000, 1009)]
    got = found("\n".join([line, *codes, ""]))
    assert got == [got[0], *((code,) for code in codes)]
    assert isinstance(got[0], str)


def test_links_and_codes_by_turns_are_no_keys_of_their_own():
    text = "".join(f"https://x.example/r/A{n}\nCODE{n}\n" for n in range(1000, 1004))
    assert set(found(text)) == {"ambiguous"}
    links = "".join(f"https://x.example/r/A{n}\n" for n in range(1000, 1009))
    assert found(links + "CODE1234\n")[-1] == "ambiguous"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{卡号=A0001111, 密码=B0001111}\n{卡号=A0001112, 密码=B0001112}\n", PAIRS),
        ("card_no=A0001111&card_pwd=B0001111\ncard_no=A0001112&card_pwd=B0001112\n", PAIRS),
        ("卡号:A0001111;密码:B0001111;面值:100元;\n卡号:A0001112;密码:B0001112;面值:100元;\n", PAIRS),
        ("x=A0001111&y=B0001111\nx=A0001112&y=B0001112\n", ["unreadable_shape"] * 2),
        ("A0001111----a@example.com\nA0001112----b@example.com\n", ["unreadable_shape"] * 2),
        ("https://x.example/r/ABC123,2031-12-31\nhttps://x.example/r/ABC124,1234\n", ["ambiguous"] * 2),
    ],
)  # fmt: skip
def test_parts_with_marks_around_them(text, wanted):
    assert found(text) == wanted


def test_goods_that_are_text_may_say_what_they_like():
    assert found(f"{A}\n可重复使用\n以上已售\n", "prose") == [(A,), ("可重复使用",), ("以上已售",)]
    assert set(found(f"本商品为循环卡密\n{A}\n")) == {"unreadable_shape"}
    assert found(f"不可重复使用\n{A}\n")[1] == (A,)


@pytest.mark.parametrize(
    "line", ["👉 @keys_support_bot", "@shop24h", "TEST-TEST-TEST-TEST", "0000000000000000", "0000-0000-0000-0000"]
)
def test_a_handle_or_a_sample_among_keys_is_held(line):
    codes = [f"ABCD{number}EFGH{number}" for number in range(1000, 1009)]
    assert found("\n".join([*codes, line, ""]))[-1] in {"prose", "unreadable_shape"}
    assert not isinstance(found(f"{A}\n00000-00000-00000\n{B}\n", "steam")[1], tuple)


def test_zeros_that_a_pin_may_have_are_read():
    assert found("A0001111----0000\nA0001112----0001\n") == [("A0001111", "0000"), ("A0001112", "0001")]
    assert found("卡号：0000000000000000 密码：00000000\n") == ["prose"]
    assert found("0000000000----A0001111\nA0001112----B0001112\n")[1] == PAIRS[1]
    assert found("0000000000----A0001111\nA0001112----B0001112\n")[0] == "prose"


def test_the_number_of_a_product_is_not_its_key():
    key = "6HM8M-39J64-VH3DY-JXD9W-PD9QT"
    got = found(f"Microsoft Office 2021\nProduct ID: 00414-50505-13103-AA857\nProduct key: {key}\n")
    assert [card for card in got if isinstance(card, tuple)] == [(key,)]


def test_a_cell_is_read_without_the_apostrophe_that_guards_its_zeros():
    assert found("serial,pin\n'09322104083878,'023880\n", media="csv") == [("09322104083878", "023880")]
    assert found("serial,pin\n'A9322104,'B23880\n", media="csv") == ["unreadable_shape"]
    rows = [["serial", "pin"], ["'09322104083878", "'023880"]]
    cards = list(read_rows(rows, survey_rows(rows), FORMATS["auto"], timezone=UTC))
    assert [card.key and tuple(card.key.fields.values()) for card in cards] == [("09322104083878", "023880")]
    again = read_one(cards[0].raw, survey_rows(rows), FORMATS["auto"], UTC)
    assert again.key == cards[0].key


@pytest.mark.parametrize(
    "line", ["两卷解压密码均为：Ab3dG2", "所有卡密码：123456", "密码统一为：888888", "PIN for all cards: 1234"]
)
def test_cards_whose_one_password_stands_apart_are_not_sold_without_it(line):
    links = [f"https://pan.example.com/s/1Ux{number} 提取码 5nn{number}" for number in (2, 3)]
    for cards in (links, ["6220001111", "6220001112"]):
        assert not [card for card in found("\n".join([*cards, line, ""])) if isinstance(card, tuple)]


def test_a_date_or_a_price_of_all_cards_is_no_such_password():
    for line in ("以上卡密有效期至：2031-12-31", "所有卡面值：100"):
        assert found(f"{A}\n{B}\n{line}\n")[:2] == [(A,), (B,)]


def test_negative_control_a_reader_that_does_not_look_for_a_common_password_is_seen(monkeypatch):
    monkeypatch.setattr(evidence_module, "gives_all_a_part", lambda _: False)
    with pytest.raises(AssertionError):
        test_cards_whose_one_password_stands_apart_are_not_sold_without_it("两卷解压密码均为：Ab3dG2")


def test_negative_control_a_reader_that_knows_no_word_for_spent_is_seen(monkeypatch):
    monkeypatch.setattr(evidence_module, "heads_spent", lambda _: False)
    with pytest.raises(AssertionError):
        test_a_heading_over_or_under_spent_keys_holds_them_all("以上已售", "steam")
    monkeypatch.setattr(words_module, "_FLAGS", frozenset())
    with pytest.raises(AssertionError):
        test_a_column_or_member_that_says_it_is_spent_holds_the_card("used", "yes")
