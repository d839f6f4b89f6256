"""Lines that are not as the others are: what is certain is read, the rest is held, nothing is taken for another."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path

import pytest

from syncd.inventory.formats import Survey, load_formats, read

FORMATS = load_formats([Path(__file__).parents[2] / "config" / "formats.toml"])


def found(text, fmt="auto", media="text"):
    survey = Survey(media)
    survey.feed(text.encode())
    cards = read([text.encode()], survey.decide(), FORMATS[fmt], timezone=UTC)
    return [tuple(card.key.fields.values()) if card.key else card.reason for card in cards]


MAILS = "a.li@example.com:Pw77x\nb.wu@example.com:Kk91z\nc.he@example.com:Zt20q\nd.hu@example.com:Ty65m\n"


def test_a_colon_of_a_password_stays_in_it_where_most_lines_have_one():
    assert found(MAILS + "e.ma@example.com:P4:x7\n", "account")[-1] == ("e.ma@example.com", "P4:x7")


@pytest.mark.parametrize("rest", ["Pw1:x@example.com", "Pw1:13800138000", "Pw1:premium", "Pw1::x7", "Pw1:2031-12-31x"])
def test_what_may_be_a_part_of_its_own_is_not_put_into_a_password(rest):
    last = found(MAILS + f"e.ma@example.com:{rest}\n", "account")[-1]
    assert last == "not_this_format" or rest.startswith("Pw1:2031")
    assert "not_this_format" in found(MAILS.replace(":", ":A1:"), "account")


def test_a_row_without_a_password_is_held_alone():
    text = "a.li@example.com----Pw77x\nb.wu@example.com\nc.he@example.com----Zt20q\n"
    wanted = [("a.li@example.com", "Pw77x"), "not_this_format", ("c.he@example.com", "Zt20q")]
    assert found(text, "account") == wanted
    assert found(text)[1] == "unreadable_shape"


def test_fewer_parts_than_most_lines_have_are_no_card():
    text = "user_one----Pw77x----a@example.com\nuser_two----Kk91z\nuser_six----Zt20q----c@example.com\n"
    assert found(text, "account-mail")[1] == "not_this_format"
    assert found(text)[1] == "unreadable_shape"
    assert found("A0011-B----Pw77x----2031-12-31x\nA0012-B----Kk91z\nA0013-B----Zt20q----7\n")[1] == "unreadable_shape"


def test_every_separator_that_people_use_on_lines_of_one_size():
    pairs = [(f"A09876543{n}1", f"V4HAER8K5J{n}E") for n in range(9)]
    cuts = ["----", "---", "--", " ", ",", " ---- ", "|", "----", "——"]
    text = "".join(f"{number}{cut}{pin}\n" for (number, pin), cut in zip(pairs, cuts, strict=True))
    assert found(text) == pairs
    assert found(text + "A0987654381 V4HAER8K5J\n")[-1] in {"unreadable_shape", "not_this_format"}
    digits = "6000464689856159\xa010269616\n8107842248051443\u2007\xa067687925\n2461318503037116----54105401\n"
    digits += "9442298339983027\u202f28602726\n"
    assert all(len(pair) == 2 for pair in found(digits, "pair"))


@pytest.mark.parametrize(
    ("link", "whole"),
    [
        ("https://gift.example.com/a----b/CLn0sCRj?x=1", True),
        ("https://gift.example.com/a----CLn0sCRj", False),
        ("https://gift.example.com/a----CLn0/sCRj", False),
    ],
)
def test_hyphens_in_a_path_that_goes_on_are_the_links_own(link, whole):
    assert found(f"{link}\n") == ([(link,)] if whole else ["ambiguous"])


def test_an_edition_beside_a_key_is_no_part_of_it():
    text = "P7T7C-XW3R7-3JKPX-YBQRY-J2WKK\tWin11专业版\nWY48Q-RBNGV-8W42M-WKFHC-Q3FNF\tOffice 2021 增强版\n"
    assert found(text, "microsoft") == [("P7T7C-XW3R7-3JKPX-YBQRY-J2WKK",), ("WY48Q-RBNGV-8W42M-WKFHC-Q3FNF",)]
    assert found(text.replace("Win11专业版", "密码AB12CD"), "microsoft")[0] != ("P7T7C-XW3R7-3JKPX-YBQRY-J2WKK",)


def test_a_word_about_validity_below_the_cards_spoils_none():
    text = "卡号：A0011223344 密码：B0011223344\n卡号：A0011223355 密码：B0011223355\n麻烦确认收货，有效期3年\n"
    assert found(text) == [("A0011223344", "B0011223344"), ("A0011223355", "B0011223355"), "prose"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("卡号：无\n密码：K7QWX3NP9VBD", [("K7QWX3NP9VBD",)]),
        ("卡号：无\n密码：1234", ["prose"]),
        ("卡号：A1234567\n密码：无", ["prose"]),
        (
            "卡号：A1001 密码：K7QWX3NP9VBD\n卡号：无 密码：K7QWX3NP9VBE\n卡号：A1003 密码：K7QWX3NP9VBF",
            [("A1001", "K7QWX3NP9VBD"), "missing_field", ("A1003", "K7QWX3NP9VBF")],
        ),
        ("链接：https://pan.example.com/s/1k5u7t\n提取码：无", [("https://pan.example.com/s/1k5u7t",)]),
    ],
    ids=["none has one", "too short alone", "the pin", "the others have it", "of a link"],
)
def test_a_part_that_a_card_says_it_lacks_is_left_out_only_where_it_is_whole_without(text, wanted):
    assert found(text) == wanted


def test_several_labelled_cards_on_a_line_have_the_same_labels_or_are_held():
    assert found("卡号：A1234567 密码：K7QWX3NP；卡号：A1234568 密码：K7QWX3NQ") == [
        ("A1234567", "K7QWX3NP"),
        ("A1234568", "K7QWX3NQ"),
    ]
    assert found("卡号：A1234567 密码：K7QWX3NP 密码：K7QWX3NQ") == ["ambiguous"]
    assert found("卡号：A1234567 密码：K7QWX3NP 卡号：A1234568") == ["ambiguous"]


def test_a_first_line_says_which_part_is_which():
    assert found("格式：密码----卡号\n98765431----1234567890\n98765441----1234567891") == [
        ("1234567890", "98765431"),
        ("1234567891", "98765441"),
    ]


def test_a_secret_of_an_account_and_the_password_of_an_archive_are_parts():
    assert found("账号：bob_77\n密码：pass1234\n2FA：ABCD EFGH IJKL MNOP") == [
        ("bob_77", "pass1234", "ABCD EFGH IJKL MNOP")
    ]
    assert found("账号：bob_77\n密码：pass1234\n2FA：123456") == ["unreadable_shape"]
    link = "https://pan.example.com/s/1k5u7t"
    assert found(f"链接：{link}\n提取码：k384\n解压密码：xh3sWRrL3") == [(link, "k384", "xh3sWRrL3")]


def test_the_address_of_a_page_is_no_part_of_a_code_and_that_of_one_card_is():
    assert found("兑换码：K7QWX3NP9VBD\n兑换网址：https://redeem.example.com/redeem") == [("K7QWX3NP9VBD",)]
    own = "https://redeem.example.com/v/e75kHVqR"
    assert found(f"兑换码：K7QWX3NP9VBD\n链接：{own}") == [(own, "K7QWX3NP9VBD")]


def test_a_cell_may_hold_a_labelled_card_but_not_two():
    cell = '"卡号：A1234567\n密码：K7QWX3NP"'
    assert found(f"secret\n{cell}\n", media="csv") == [("A1234567", "K7QWX3NP")]
    assert found(f"状态,secret\n已售,{cell}\n", media="csv") == ["spent"]
    two = '"卡号：A1234567\n密码：K7QWX3NP\n卡号：A1234568\n密码：K7QWX3NQ"'
    assert found(f"secret\n{two}\n", media="csv") == ["ambiguous"]


def test_a_link_without_its_code_below_whole_cards_spoils_none_of_them():
    text = "".join(f"https://pan.example.com/s/1k5u7{n} 提取码: m7m{n}\n" for n in range(5))
    assert [card == "unreadable_shape" for card in found(text + "https://pan.example.com/s/1k5u79\n")] == [
        *[False] * 5,
        True,
    ]
