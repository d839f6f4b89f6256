"""syncd.adapter: what several adapters share of values: a price guard, a picture, a time, a cipher."""

from __future__ import annotations

import base64
import re
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from syncd import adapter
from syncd.adapter import (
    BadResponse,
    Config,
    Money,
    NotForSale,
    Offer,
    OrderRequest,
    OutOfStock,
    PriceChanged,
    RawKey,
    Refused,
    SecretText,
    Stock,
    aes_256_ecb,
    instant,
    reading,
)
from syncd.suppliers import registry

NOW = Offer(
    "1",
    "Card",
    Money(Decimal(10), "EUR"),
    Stock.exact(60),
    min_quantity=2,
    max_quantity=50,
    step=2,
    tiers=((10, Money(Decimal(9), "EUR")), (50, Money(Decimal(8), "EUR"))),
)


@pytest.mark.parametrize(
    ("quantity", "limit", "now", "costs"),
    [
        (2, "10 EUR", {}, "10"),
        (8, "10.01 EUR", {}, "10"),
        (10, "9 EUR", {}, "9"),
        (50, "8 EUR", {}, "8"),
        (2, None, {}, "10"),
        (2, "9.99 EUR", {}, PriceChanged),
        (8, "9 EUR", {}, PriceChanged),
        (2, "10 USD", {}, Config),
        (1, "10 EUR", {}, Refused),
        (3, "10 EUR", {}, Refused),
        (52, "10 EUR", {}, Refused),
        (4, "10 EUR", {"stock": Stock.exact(3)}, OutOfStock),
        (4, "10 EUR", {"stock": Stock.unknown()}, "10"),
        (4, "10 EUR", {"stock": Stock.coarse("out")}, OutOfStock),
        (4, "10 EUR", {"stock": Stock.coarse("low")}, "10"),
        (4, "10 EUR", {"for_sale": False}, NotForSale),
        (4, "10 EUR", {"price": None}, NotForSale),
    ],
)
def test_M4_a_unit_costs_what_the_offer_says_now_or_is_refused(quantity, limit, now, costs):
    wanted = OrderRequest("KT0000000001", NOW, quantity, Money.parse(limit) if limit else None)
    with (
        nullcontext() if isinstance(costs, str) else pytest.raises(Refused if costs is not Config else Config) as caught
    ):
        assert wanted.price_of(replace(NOW, **now)) == Money(Decimal(costs), "EUR")
    if not isinstance(costs, str):
        assert type(caught.value) is costs
        assert caught.value.hint


PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n and the rest").decode()


@pytest.mark.parametrize("text", [PNG, f"{PNG[:10]}\r\n{PNG[10:]}\n", base64.b64encode(b"GIF89a").decode()])
def test_a_picture_is_its_bytes(text):
    key = RawKey.picture(text, kind="image/png", id="k1", expires="2027")
    assert key.image == base64.b64decode(text)
    assert (key.id, key.expires, "iVBOR" in repr(key)) == ("k1", "2027", False)


@pytest.mark.parametrize("text", ["", "no base64!", "ABCD1234", PNG[:-1], "AAAA-BBBB-CCCC"])
def test_K14_what_is_no_picture_is_handed_over_as_its_parts(text):
    """ABCD1234 is base64, and is much rather a key."""
    key = RawKey.picture(text, kind="image/png", id="k1")
    assert {name: part.reveal() for name, part in key.fields.items()} == {"type": "image/png", "image": text}
    assert key.id == "k1"


@reading("a product")
def read(product):
    if product == "deep":
        raise RecursionError
    return int(product["price"]) + product["fee"].real


@pytest.mark.parametrize("product", [{}, [], None, 7, {"price": "CANARY"}, {"price": "1", "fee": "CANARY"}, "deep"])
def test_what_an_answer_does_not_have_is_a_bad_response_without_a_word_of_it(product):
    with pytest.raises(BadResponse, match=r"^a product that is not what the protocol says$") as caught:
        read(product)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert read({"price": "1", "fee": 2}) == 3
    with pytest.raises(NotForSale), reading("a product"):  # what an adapter says itself stays as it is
        raise NotForSale("x")


def test_a_time_has_its_zone_or_is_none():
    assert (
        instant("2020-10-24T09:34:13+00:00")
        == instant("2020-10-24T09:34:13Z")
        == datetime(2020, 10, 24, 9, 34, 13, tzinfo=UTC)
    )
    assert [instant(value) for value in ("2020-10-24T09:34:13", "soon", "", None, 7, [])] == [None] * 6


KEY = bytes(range(32)).decode()
BLOCK = bytes.fromhex("8ea2b7ca516745bfeafc49904b496089")


def test_aes_256_is_that_of_fips_197():
    plain = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert aes_256_ecb(SecretText(KEY), BLOCK) == plain
    assert aes_256_ecb(SecretText(KEY), BLOCK * 2) == plain * 2  # block by block, and no padding is taken off
    assert aes_256_ecb(SecretText(KEY), b"") == b""


@pytest.mark.parametrize(("key", "data", "error"), [(KEY[1:], BLOCK, Config), (KEY, BLOCK[1:], BadResponse)])
def test_what_cannot_be_opened_is_said_without_the_secret(key, data, error):
    with pytest.raises(error) as caught:
        aes_256_ecb(SecretText(key), data)
    assert key not in str(caught.value)


def test_the_interface_is_what_the_guide_documents():
    guide = (registry.bundled() / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", " ".join(re.findall(r"```python\n.*?```|`[^`\n]+`", guide, re.DOTALL))))
    assert sorted(set(adapter.__all__) - named) == []
    imported = {
        name
        for block in re.findall(r"from syncd\.adapter import (\([^)]*\)|.*)", guide)
        for name in re.findall(r"\w+", block)
    }
    assert imported <= set(adapter.__all__)
    assert all(hasattr(adapter, name) for name in adapter.__all__)
