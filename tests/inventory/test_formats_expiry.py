"""An expiry is read or the key is held: no date that may be one is dropped, and none is another key's."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from syncd.inventory.formats import Survey, load_formats, read
from syncd.inventory.formats import document as document_module
from syncd.inventory.formats import parts as parts_module
from syncd.model import NEVER

FORMATS = load_formats([Path(__file__).parents[2] / "config" / "formats.toml"])
LAST = "2031-12-31"


def dates(text, fmt="auto", media="text"):
    """What became of each card: the day of its expiry, "" for none, or why it is held."""
    survey = Survey(media)
    survey.feed(text.encode())
    found = []
    for card in read([text.encode()], survey.decide(), FORMATS[fmt], timezone=UTC):
        at = card.key.expires_at if card.key else None
        found.append(
            card.reason if at is None else "" if at == NEVER else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"
        )
    return found


def twice(line):
    return f"{line}\n{line.replace('A0011', 'A0012').replace('FGHIJ', 'FGHIK').replace('B77001', 'B77002')}\n"


STRANGE = ("good", "x", "validity_end", "expiration_of_it", "有效的日子", "last_day")


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("day", [LAST, "31.12.2031", "12/31", "20311231", "31 Dec 2031", "2031年12月"])
def test_a_date_under_a_name_that_nobody_knows_holds_the_card(name, day):
    assert dates(f"code,{name},title\nA0011-X1,{day},a\nA0012-X1,{day},b\n", media="csv") == ["bad_expiry"] * 2
    assert dates(f'[{{"code":"A0011-X1","{name}":"{day}"}}]') == ["bad_expiry"]


@pytest.mark.parametrize("name", ["purchased_on", "创建于", "delivered_when", "issue day"])
def test_a_date_of_what_has_happened_is_a_note(name):
    assert dates(f"code,{name},title\nA0011-X1,2020-01-02,a\nA0012-X1,2020-01-03,b\n", media="csv") == ["", ""]


@pytest.mark.parametrize("text", ["purchase_expiry", "expiry_created", "on_sale_until", "last_order_day"])
def test_a_name_that_says_both_holds_the_card(text):
    assert dates(f"code,{text},title\nA0011-X1,{LAST},a\nA0012-X1,{LAST},b\n", media="csv") == ["bad_expiry"] * 2


@pytest.mark.parametrize(
    "line",
    [
        f"A0011XYZ exp {LAST}", f"A0011XYZ (exp {LAST})", "A0011XYZ Exp. 31 Dec 2031", f"A0011XYZ valid until {LAST}",
        "A0011XYZ expires on 31/12/2031", "A0011XYZ, use by 12/31/2031", f"A0011XYZ {LAST}到期",
        "A0011XYZ 2031年12月31日前使用", f"A0011XYZ 有效期至{LAST}", f"A0011XYZ----B77001 exp {LAST}",
        "A0011XYZ----B77001----31 Dec 2031", f"Code: A0011XYZ, exp {LAST}",
        "Card: A0011XYZ PIN: B77001 exp 31 Dec 2031",
    ],
)  # fmt: skip
def test_an_expiry_behind_a_key_is_its_own(line):
    assert dates(twice(line)) == [LAST] * 2


@pytest.mark.parametrize("line", ["{} exp 12/31", "{} exp 01/02/2031", "{},2031.12", "{} 12/31", "T{} {},2031-12-31,x"])
def test_an_expiry_that_is_not_certain_or_not_in_its_place_holds_the_key(line):
    for code, fmt in (("ABCDE-12345-FGHIJ", "steam"), ("A0011XYZ", "auto")):
        assert all(found not in {"", LAST} for found in dates(twice(line.format(code, code)), fmt))


def test_a_date_beside_one_key_is_not_that_of_the_others():
    assert dates(f"A0011XYZ\nA0012XYZ\nA0013XYZ\nA0014XYZ\nA0015XYZ {LAST}到期\n") == ["", "", "", "", LAST]


def test_a_sentence_gives_the_expiry_of_all_keys_or_holds_them():
    assert dates(f"All codes of order 4711 valid until {LAST}\nA0011XYZ\nA0012XYZ\n")[1:] == [LAST] * 2
    assert dates("All codes valid until 01/02/2031\nA0011XYZ\nA0012XYZ\n")[1:] == ["bad_expiry"] * 2


def test_negative_control_a_reader_that_drops_what_it_does_not_know_is_seen(monkeypatch):
    for module in (parts_module, document_module):
        monkeypatch.setattr(module, "may_be_date", lambda _: False)
    with pytest.raises(AssertionError):
        test_a_date_under_a_name_that_nobody_knows_holds_the_card("good", LAST)


NOTES = [
    ('[{"code":"A0011XYZ","remark":"有效期至2031-12-31"}]', "text"),
    ('{"note":"valid until 2031-12-31","cards":[{"code":"A0011XYZ"}]}', "text"),
    ('{"meta":{"end_date":"2031-12-31"},"cards":["A0011XYZ"]}', "text"),
    ('{"cards":[{"code":"A0011XYZ","dates":{"purchase":"2026-01-01","expiry":"2031-12-31"}}]}', "text"),
    ("code,remark\nA0011XYZ,有效期至2031-12-31\n", "csv"),
    ("code,product\nA0011XYZ,Gift card exp 2031-12-31\n", "csv"),
    ("卡密：A0011XYZ 备注：2031-12-31到期\n", "text"),
    ("A0011XYZ 备注：2031-12-31到期\n", "text"),
    ("商品：礼品卡（2031-12-31到期）\n\nA0011XYZ\n", "text"),
    ("礼品卡 有效期至2031-12-31\ncode,remark\nA0011XYZ,x\n", "csv"),
]


@pytest.mark.parametrize(("text", "media"), NOTES)
def test_an_expiry_that_a_note_says_is_the_keys(text, media):
    assert dates(text, media=media)[-1] == LAST
    vague = text.replace("2031-12-31", "2031年底").replace("purchase", "bought_on")
    assert dates(vague, media=media)[-1] == "bad_expiry"


@pytest.mark.parametrize("text", ["2031年到期", "有效期到明年年底", "Expires end of 2031", "Valid until next year"])
def test_a_vague_time_in_words_holds_the_keys(text):
    assert dates(f"{text}\nA0011XYZ\nA0012XYZ\n")[1:] == ["bad_expiry"] * 2


@pytest.mark.parametrize("text", ["激活后90天有效", "自激活之日起1年", "90 days after activation"])
def test_a_time_that_begins_with_the_customers_use_is_no_expiry(text):
    assert dates(f"卡密：A0011XYZ 有效期：{text}\n") == [""]
