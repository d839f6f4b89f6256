"""syncd.service: what systemd itself says of it, and the lines that promises of ours hang on."""

from __future__ import annotations

import configparser
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[1] / "syncd.service"
THRESHOLD = 15  # of 100; a unit without hardening scores above 90


@pytest.fixture(scope="module")
def analyze():
    program = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not installed (Debian: systemd)")

    def run(*arguments):
        return subprocess.run([program, "--no-pager", *arguments], capture_output=True, text=True, check=False)

    return run


def installed(folder, text):
    """The unit as on a machine where the wheel is installed: `verify` looks whether the program exists."""
    unit = folder / "syncd.service"
    unit.write_text(text.replace("/opt/syncd/bin/syncd", sys.executable), encoding="utf-8")
    return str(unit)


@pytest.mark.may_skip
def test_systemd_takes_it_without_a_word(analyze, tmp_path):
    done = analyze("verify", installed(tmp_path, UNIT.read_text(encoding="utf-8")))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.may_skip
def test_negative_control_systemd_names_a_misspelt_line(analyze, tmp_path):
    done = analyze("verify", installed(tmp_path, UNIT.read_text(encoding="utf-8").replace("UMask=", "Umask=")))
    assert "Umask" in done.stderr


@pytest.mark.may_skip
def test_it_is_hardened(analyze):
    done = analyze("security", "--offline=true", f"--threshold={THRESHOLD}", str(UNIT))
    assert done.returncode == 0, done.stdout


@pytest.mark.may_skip
def test_negative_control_a_plain_unit_is_not(analyze, tmp_path):
    (tmp_path / "syncd.service").write_text("[Service]\nExecStart=/bin/true\n", encoding="utf-8")
    done = analyze("security", "--offline=true", f"--threshold={THRESHOLD}", str(tmp_path / "syncd.service"))
    assert done.returncode != 0


def test_every_line_is_explained():
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    bare = [
        line
        for before, line in itertools.pairwise(lines)
        if line and line[0] not in "#[" and not before.startswith("#")
    ]
    assert bare == []


def test_s6_no_core_file_carries_a_key():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(UNIT, encoding="utf-8")
    service = unit["Service"]
    assert service["WatchdogSignal"] == "SIGKILL"
    assert service["LimitCORE"] == "0"
    assert service["CoredumpFilter"] == "0x0"
    assert service["RestartPreventExitStatus"] == "78"
    assert service["StateDirectoryMode"] == "0700"
    assert service["PrivateUsers"] == "no"  # or SO_PEERCRED names nobody
