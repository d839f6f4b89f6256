"""How the customer sees a key: templates are checked when they are loaded, fill without surprise, and change no key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from syncd import config, daemon
from syncd.inventory.formats import load_formats
from syncd.model import NEVER
from syncd.orders.deliveries import QuantityNotAllowedError
from syncd.orders.presentation import Presentation, Template, presentations
from syncd.vault.vault import OpenedKey

FORMATS = load_formats([Path(__file__).parents[2] / "config" / "formats.toml"])
CANARY = "CANARY-7F3A"


@pytest.fixture
def product(tmp_path: Path) -> Callable[[str], config.Settings]:
    """The settings of one product ``x``."""

    def load(text: str) -> config.Settings:
        (tmp_path / "syncd.toml").write_text(f"[products.x]\n{text}\n", encoding="utf-8")
        return config.load(tmp_path / "syncd.toml")

    return load


@pytest.fixture
def shown(product: Any) -> Callable[..., OpenedKey]:
    """A key as a product with these settings shows it."""

    def show(text: str, fields: dict[str, str], expires_at: int = NEVER) -> OpenedKey:
        found, problems = presentations(product(text), FORMATS)
        assert problems == []
        key = OpenedKey(7, dict(fields), "as sealed", expires_at)
        if "x" in found:
            found["x"].show(key)
        assert key.fields == fields  # whatever is shown, the key's parts are as they are
        return key

    return show


CARD = {"number": "01234567890123456", "pin": "012345678901234567"}


@pytest.mark.parametrize(
    ("settings", "fields", "text"),
    [
        ("", {"code": "A-1"}, "as sealed"),
        (
            'format = "steam"\ndisplay = "Your code: {code}"',
            {"code": "abcde 12345 fghij"},
            "Your code: ABCDE-12345-FGHIJ",
        ),
        ('format = "steam"\ndisplay = "{{{code}}}"', {"code": "ABCDE-12345-FGHIJ"}, "{ABCDE-12345-FGHIJ}"),
        ('format = "china-mobile"\ndisplay = "{pin}/{number}"', CARD, f"{CARD['pin']}/{CARD['number']}"),
        ('format = "china-mobile"\nfields = "split"', CARD, f"卡号：{CARD['number']}\n密码：{CARD['pin']}"),
        (
            'format = "china-mobile"\nfields = "split"\ndisplay = "No. {number}, PIN {pin} (good until {expires})"',
            CARD,
            f"No. {CARD['number']}\nPIN {CARD['pin']}\n(good until -)",
        ),
        ('format = "steam"\nfields = "split"', {"code": "ABCDE-12345-FGHIJ"}, "as sealed"),
        ('fields = "split"', {"account": "me", "password": "p w"}, "Account: me\nPassword: p w"),
        (
            'format = "account-mail"\nfields = "split"',
            {"account": "me", "password": "pw", "email": "me@example.com"},
            "账号：me\n密码：pw\n邮箱：me@example.com",
        ),
        (
            'format = "netdisk"\nfields = "split"',
            {"link": "https://pan.example.com/s/1", "access": "x7k2"},
            "链接：https://pan.example.com/s/1\n提取码：x7k2",
        ),
        # A key of other parts than the display names is never shown by halves.
        ('display = "{code}"', CARD, "as sealed"),
        ('display = "{number}"', CARD, "as sealed"),
        ('format = "steam"\ndisplay = "{code}"', CARD, "as sealed"),
        # A code that today's format would not read is shown as it came.
        ('format = "steam"\ndisplay = "<{code}>"', {"code": "old shape"}, "<old shape>"),
        ('allow_prose = true\ndisplay = "Note: {code}"', {"code": "先联系客服 {code}"}, "Note: 先联系客服 {code}"),
    ],
)
def test_a_key_is_shown_as_its_product_says(shown: Any, settings: str, fields: dict[str, str], text: str) -> None:
    assert shown(settings, fields).text == text


def test_instructions_and_the_redeem_link_come_with_each_key(shown: Any) -> None:
    key = shown(
        'format = "pair"\ninstructions = "Card {number}: good until {expires}."\n'
        'redeem_url = "https://redeem.example.com/?n={number}&p={pin}"',
        {"number": "A/1 ä", "pin": "x&y=1"},
        1_893_456_000,
    )
    assert key.text == "as sealed"
    assert key.instructions == "Card A/1 ä: good until 2030-01-01 00:00 UTC."
    assert (
        key.redeem_url == "https://redeem.example.com/?n=A%2F1%20%C3%A4&p=x%26y%3D1"
    )  # nothing of it can add a parameter
    link = "https://redeem.example.com/r?code=AB----12&x=%0A"
    assert shown('format = "link"\nredeem_url = "{link}"', {"link": link}).redeem_url == link
    # What speaks of a part that this key does not have is left out.
    key = shown('instructions = "PIN {pin}"\nredeem_url = "https://x.example.com/{pin}"', {"code": "A"})
    assert (key.instructions, key.redeem_url) == (None, None)


@pytest.mark.parametrize(
    ("settings", "path", "said"),
    [
        ('format = "steam"\ndisplay = "{cod}"', "display", "did you mean {code}?"),
        ('format = "steam"\ninstructions = "{expire}"', "instructions", "did you mean {expires}?"),
        (
            'format = "pair"\nredeem_url = "https://x.example.com/{qqq}"',
            "redeem_url",
            "known here: {number}, {pin}, {expires}",
        ),
        ('format = "pair"\ndisplay = "{number}"', "display", "add {pin}"),
        ('display = "thank you"', "display", "shows none"),
        ('display = "{expires}"', "display", "shows none"),
        ('display = "{code!r}"', "display", "no template"),
        ('display = "{code.x}"', "display", "no template"),
        ('display = "{code:>9}"', "display", "no template"),
        ('display = "{}"', "display", "no template"),
        ('display = "{code"', "display", "no template"),
        ('instructions = "50 % } off"', "instructions", "no template"),
        ('redeem_url = "redeem.example.com"', "redeem_url", "not a link"),
        ('redeem_url = "javascript:alert({code})"', "redeem_url", "not a link"),
        ('redeem_url = "{code}"', "redeem_url", "not a link"),
    ],
)
def test_a_wrong_template_is_a_problem_of_the_configuration(product: Any, settings: str, path: str, said: str) -> None:
    found, problems = presentations(product(settings), FORMATS)
    (problem,) = problems
    assert problem.path == f"products.x.{path}"
    assert said in f"{problem.message} {problem.fix}"
    assert found == {}


def test_check_names_templates_with_everything_else(tmp_path: Path) -> None:
    file = tmp_path / "syncd.toml"
    file.write_text('[products.x]\nformat = "steam"\ndisplay = "{cod}"\n[products.y]\nformat = "prose"\n')
    assert [problem.path for problem in daemon.check(file)] == ["products.y.format", "products.x.display"]
    file.write_text('[products.x]\nformat = "steam"\ndisplay = "{code}"\n')
    assert daemon.check(file) == []
    assert daemon.complete(config.load(file)).shown.keys() == {"x"}


def test_templates_are_taken_apart_once(shown: Any, product: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = product('fields = "split"\ninstructions = "{code}"').products["x"]
    presentation = Presentation.of(settings, FORMATS["auto"])
    assert presentation
    key = OpenedKey(1, dict(CARD), "as sealed", NEVER)
    presentation.show(key)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a template was parsed for a delivery")

    monkeypatch.setattr(Template, "__init__", refuse)
    presentation.show(key)


# --- deliveries -------------------------------------------------------------------------------------------------------


def sells(stack: Any, sku: str, **changed: Any) -> None:
    stack.products[sku] = SimpleNamespace(**{"min_life": 0, "takes": range(1, 1001), "on_shortage": "refuse"} | changed)


async def test_M2_a_change_of_display_changes_the_text_and_no_key(stack: Any, product: Any) -> None:
    stack.add("steam", "key-1", "key-2")
    first = await stack.deliveries.deliver("shop", "o-1", "steam", 2)
    assert [key.text for key in first.keys] == ["key-1", "key-2"]
    found, _ = presentations(product('format = "opaque"\ndisplay = "<{code}>"\ninstructions = "hello"'), FORMATS)
    stack.deliveries._shown = lambda: {"steam": found["x"]}
    again = await stack.deliveries.deliver("shop", "o-1", "steam", 2)
    assert again.repeat
    assert [(key.id, key.fields) for key in again.keys] == [(key.id, key.fields) for key in first.keys]
    assert [(key.text, key.instructions) for key in again.keys] == [("<key-1>", "hello"), ("<key-2>", "hello")]


async def test_a_quantity_that_is_not_sold_is_refused_and_recorded_nowhere(stack: Any) -> None:
    stack.add("steam", *(f"key-{number}" for number in range(9)))
    sells(stack, "steam", takes=range(2, 5))
    for quantity in (1, 5, 1000):
        with pytest.raises(QuantityNotAllowedError, match="2 to 4 at a time") as refused:
            await stack.deliveries.deliver("shop", "o-1", "steam", quantity)
        assert refused.value.members == {"allowed": {"min": 2, "max": 4}}
    assert stack.rows("SELECT count(*) FROM delivery") == [(0,)]
    delivered = await stack.deliveries.deliver("shop", "o-1", "steam", 4)
    assert len(delivered.keys) == 4
    # What was delivered once is answered for ever, whatever is sold today.
    sells(stack, "steam", takes=range(1, 2))
    again = await stack.deliveries.deliver("shop", "o-1", "steam", 4)
    assert (again.repeat, [key.id for key in again.keys]) == (True, [key.id for key in delivered.keys])


async def test_K7_the_remaining_life_counts_on_every_way_to_a_key(stack: Any) -> None:
    """Anew, in place of a key that does not open, and for a delivery that waited."""
    now = int(stack.clock.seconds)
    sells(stack, "steam", min_life=600)
    stack.add("steam", "good", expires_at=now + 601)
    stack.add("steam", "soon", expires_at=now + 600)
    delivered = await stack.deliveries.deliver("shop", "o-1", "steam", 1)
    assert delivered.keys[0].text == "good"
    stack.tamper(
        f"UPDATE vault_key SET sealed = sealed_sku WHERE id = {delivered.keys[0].id}".replace("sealed_sku", "'x'")
    )
    waiting = await stack.deliveries.deliver("shop", "o-1", "steam", 1)
    assert (waiting.state, waiting.reason) == ("pending", "key_unreadable")
    assert await stack.deliveries.fill("steam") == 0
    stack.add("steam", "fresh", expires_at=now + 10_000)
    assert await stack.deliveries.fill("steam") == 1
    assert (await stack.deliveries.deliver("shop", "o-1", "steam", 1)).keys[0].text == "fresh"
