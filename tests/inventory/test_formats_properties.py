"""What holds for every payload whatever: by Hypothesis here, by coverage in ``make fuzz``; each shown to turn red."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from datetime import UTC
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from syncd.inventory.formats import AUTO, Reading, Survey, dedupe_form, read, read_one
from syncd.inventory.formats.rules import Format

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "tests" / "fuzz" / "reading_target.py"
_spec = importlib.util.spec_from_file_location("reading_target", TARGET)
target = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(target)
MANY = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])

PIECES = st.sampled_from([
    "ABCDE-12345-FGHIJ", "A1234----B5678", "A1234║x║1║2", "卡号：A1234", "密码：B5678", "有效期：2030-01-01",
    "状态：已使用", "code,pin", '"A1,\nB2"', '"', "\n", "\r\n", "\r", "\n\n", " ", "\t", "，", ",", "----", "---",
    "——", "|", ";", ":", "https://e.example/?a=b----c", "https://e.example/a 提取码：x7k2", "很抱歉，请联系客服。",
    "\ufeff", "\u200f", "\u202e", "\x00", "\x1c", "%0A", "&amp;", "卡密", "secret", "００１２", "-------",
    "x" * 5000, "1.", "1. ", "2. ", "①", "第1张", "- ", "（50元）", "[", "]", "{", "}",
    '{"card_no":"A1","card_pwd":"B2"}', '["A1----B2","C3"]', '{"data":[', "null",
    '{"codes":[{"codeType":"PRE_ORDER","code":null}]}', "[" * 2000, "iVBORw0KGgo", "data:image/png;base64,", "АBC",
    "01234567890123456----012345678901234567", "{number}----{pin}", "4111 1111 1111 1111", "31 Dec 2030",
    "1767225599", "ABCDE-12345-FGHIK, ABCDE-12345-FGHIL", "exp 2031-12-31", "31.12.2031", "以上已售", "→", "一、",
    "is_valid", "NO:12345678 PWD:87654321", "有效期到明年", "循环卡", "卡号\n",
])  # fmt: skip
TEXTS = st.lists(PIECES, max_size=14).map("".join)
PAYLOADS = st.one_of(
    TEXTS.map(str.encode),
    TEXTS.map(lambda text: text.encode("gb18030")),
    TEXTS.map(lambda text: text.encode("utf-16")),
    st.binary(max_size=120),
)
HEADS = st.binary(min_size=4, max_size=4)


@MANY
@given(HEADS, PAYLOADS)
@example(bytes([0, 0, 0, 7]), b'[{"card_no":"1"}')
@example(bytes([0, 7, 0, 7]), b"[" * 50_000)
def test_every_promise_holds_for_every_payload(head: bytes, payload: bytes) -> None:
    target.check(head + payload)


def seeds() -> None:
    for seed in target.SEEDS:
        for head in ([0, 0, 0, 7], [2, 0, 0, 7]):
            target.check(bytes(head) + seed.encode())
    target.check(bytes([0, 0, 0, 7]) + b"AB1")


@pytest.mark.parametrize("planted", ["lost", "raised", "wrong", "dropped"])
def test_negative_control_a_planted_bug_breaks_a_promise(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("line", "card"):
        monkeypatch.setattr(target.Slices, name, getattr(target.Slices, name))  # put back at the end
    seeds()
    target.plant(planted)
    with pytest.raises((AssertionError, ArithmeticError, IndexError)):
        seeds()


@pytest.mark.parametrize(
    ("method", "bug"),
    [
        ("key", lambda key: lambda self, roles, *more: key(self, {n: t + "0" for n, t in roles.items()}, *more)),
        ("template", property(lambda self: "12345-" + (self.display or "{code}"))),
    ],
)
def test_negative_control_of_canonical_and_display(method: str, bug: object, monkeypatch: pytest.MonkeyPatch) -> None:
    was = Format.__dict__[method]
    monkeypatch.setattr(Format, method, bug if isinstance(bug, property) else bug(was))
    with pytest.raises(AssertionError, match=r"canonical|display|not read"):
        target.check(bytes([2, 0, 0, 7]) + b"abcde12345fghij\nKLMNO-12345-FGHIJ\n")


SPELLINGS = ("{}-{}-{}", "{} {} {}", "{}{}{}", " {}-{} {}\u200b", "{}—{}—{}")
FIVE = st.text("ABCDEFGHJK123456789", min_size=5, max_size=5)


@MANY
@given(st.tuples(FIVE, FIVE, FIVE), st.sampled_from(SPELLINGS), st.booleans(), st.booleans())
def test_K5_two_spellings_of_one_key_collide(parts: tuple[str, ...], spelling: str, lower: bool, wide: bool) -> None:
    plain = "-".join(parts)
    spelled = spelling.format(*parts).lower() if lower else spelling.format(*parts)
    if wide:
        spelled = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in spelled)
    first, second = (read_one(text.encode(), None, target.FORMATS["steam"], UTC).key for text in (plain, spelled))
    if first is None:
        return
    assert second is not None
    assert first.canonical == second.canonical
    assert dedupe_form(first.fields) == dedupe_form(second.fields)


def test_K5_editing_a_format_never_changes_a_fingerprint() -> None:
    fmt = target.FORMATS["china-mobile"]
    text = b"01234567890123456----012345678901234567"
    one = read_one(text, None, fmt, UTC).key
    other = read_one(text, None, target.FORMATS["pair"], UTC).key
    assert (
        dedupe_form(one.fields) == dedupe_form(other.fields) == dedupe_form(read_one(text, None, AUTO, UTC).key.fields)
    )


NASTY = [
    "-", "A-", "\u3000", " ", "卡号", "卡号：", "=", "{", '{"a":', "[[",
    '["a",', "1.", "①", "║", "https://", "：", '"', "&", "(", "（",
    "A1----", "有效期", "data:image/png;base64,", "/9j/", "\u200b", "，", "A B ", "。。", "x,", "\t",
]  # fmt: skip


def seconds(piece: str, size: int, lines: bool) -> float:
    unit = piece * (60 if lines else 1) + ("\n" if lines else "")
    payload = (unit * (size // len(unit.encode()) + 1)).encode()
    started = time.process_time()
    for split in ("auto", "labelled", "{number}----{pin} 有效期{expires}"):
        survey = Survey()
        survey.feed(payload)
        for name in ("auto", "steam", "pair"):
            for _ in read([payload], survey.decide(split), target.FORMATS[name], timezone=UTC):
                pass
    return time.process_time() - started


@pytest.mark.parametrize("piece", NASTY)
def test_reading_takes_linear_time(piece: str) -> None:
    for lines in (False, True):
        small = min(seconds(piece, 8_000, lines) for _ in range(2))
        large = seconds(piece, 64_000, lines)
        assert large < 8 * small * 3 + 0.2, "eight times the bytes took far more than eight times as long"


def test_negative_control_quadratic_time_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    line = target.Slices.line

    def quadratic(self: object, text: str) -> object:
        for at in range(0, len(text), 2):
            text[:at].upper()
        return line(self, text)

    monkeypatch.setattr(target.Slices, "line", quadratic)
    with pytest.raises(AssertionError, match="eight times"):
        test_reading_takes_linear_time("A-")


def fuzz(*words: str, planted: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TARGET), *words],
        env={**os.environ, "SYNCD_FUZZ_PLANT": planted, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_fuzz_target_runs_and_a_planted_bug_stops_it(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    done = fuzz("-runs=400", f"-artifact_prefix={tmp_path}/")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done 400 runs" in done.stderr
    assert fuzz("-runs=400", f"-artifact_prefix={tmp_path}/", planted="lost").returncode != 0


def test_an_unreadable_reading_is_still_total() -> None:
    for reading in (Reading("unreadable"), Reading(media="json"), Reading(splitter="template", separator="{code}")):
        for payload in (b"", b"\xff\xfe", b"{", b"[1,", b"A1234"):
            assert all(card.detail or card.key for card in read([payload], reading, AUTO, timezone=UTC))
