# SPDX-License-Identifier: Apache-2.0
"""Every example runs, shows what it says, and is short."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.presets.registry import KINDS
from tests import warm

NEEDS = dict.fromkeys(("endless_chat", "recall"), "transformers")
FRESH = "live_knob"  # this one in an interpreter that nothing was imported in before
FOLDER = Path(__file__).resolve().parents[1] / "examples"
SHOWN = {
    "endless_chat": (["--turns", "9", "--window", "100"], r" 8 +\d+ tokens read +103 alive"),
    "endless_log": (["--lines", "120"], r"deviations  2026-11-21 00:01:30 FATAL checksum"),
    "listen_and_speak": (["--steps", "40"], r"the same bytes: True"),
    "denoise_clip": ([], r"noisy +9\.\d dB, denoised 1[5-9]\.\d dB"),
    "live_knob": ([], r"condition: turned before tick 10, to show at 13, first differs at 13"),
    "recall": ([], r"layer 0: tokens 3012 to 3075 are back: .4817>2290>6635"),
    "recall --mass": (["--mass", "0.3"], r"layer 1: of its softmax no query misses over \d+\.\d%"),
    "many_users": (["--users", "6"], r"of 6 users in \d+ ms, one model call"),
}


OF_PRESETS = {
    "tokens": r"1000 bytes read, 255 alive",
    "archive": r"asked at position 1280; the answer begins b",
    "pruning": r"frame 0: 0% dropped, 20 tokens read\n.*\nframe 2: 95% dropped, 1 tokens read",
    "lanes": r"255 tokens of frames alive, 20 of thoughts\nb",
    "gate": r"after frame 3: b",
    "scheduler": r"chat: \d+ requests, .*\nbatch: .*\ncompound: \d+ requests",
    "ring": r"12 calls, 0 frames skipped, the newest \(16, 4\)",
    "net": r"500 frames in, 62 encodings of 32 out",
}


def test_every_example_is_run():
    assert {path.stem for path in FOLDER.glob("*.py")} == {name.split()[0] for name in SHOWN}


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_shows_what_it_says(name, tmp_path):
    arguments, shown = SHOWN[name]
    name = name.split()[0]
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    path = FOLDER / f"{name}.py"
    assert len(path.read_text("utf-8").splitlines()) <= 80
    runs(path, arguments, shown, tmp_path)


def test_a_log_without_lines_says_what_was_expected(tmp_path):
    done = subprocess.run(
        [*warm.python(*warm.COMMANDS), str(FOLDER / "endless_log.py")],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr == "endless_log: expected lines on stdin, or --lines N\n"


def test_there_is_one_of_every_kind_of_preset():
    assert {path.stem for path in FOLDER.glob("presets/*.py")} == set(OF_PRESETS) == set(KINDS)


@pytest.mark.parametrize("kind", OF_PRESETS)
def test_a_preset_of_a_kind_runs(kind, tmp_path):
    path = FOLDER / f"presets/{kind}.py"
    assert len(path.read_text("utf-8").splitlines()) <= 30
    runs(path, [], OF_PRESETS[kind], tmp_path)


def runs(path, arguments, shown, tmp_path):
    more = ("headrace.integrations.transformers",) if path.stem in NEEDS else ()
    python = [sys.executable] if path.stem == FRESH else warm.python(*warm.COMMANDS, *more)
    done = subprocess.run(
        [*python, str(path), *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(shown, done.stdout), done.stdout
