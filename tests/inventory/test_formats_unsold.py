"""What suppliers write beside keys, and what is no key any more: never sold, and never a part of one."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path

import pytest

from syncd.inventory.formats import Survey, load_formats, read
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


def test_negative_control_a_reader_that_knows_no_word_for_spent_is_seen(monkeypatch):
    monkeypatch.setattr(evidence_module, "heads_spent", lambda _: False)
    with pytest.raises(AssertionError):
        test_a_heading_over_or_under_spent_keys_holds_them_all("以上已售", "steam")
    monkeypatch.setattr(words_module, "_FLAGS", frozenset())
    with pytest.raises(AssertionError):
        test_a_column_or_member_that_says_it_is_spent_holds_the_card("used", "yes")
