# SPDX-License-Identifier: Apache-2.0
"""The examples run as they stand, and are short."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_endless_chat():
    script = EXAMPLES / "endless_chat.py"
    assert len(script.read_text().splitlines()) < 80
    done = subprocess.run(
        [sys.executable, str(script), "--turns", "9", "--window", "100"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"(\d+) tokens read +(\d+) alive +(\d+) KiB", done.stdout)
    assert len(rows) == 9
    read, alive, kib = zip(*[map(int, row) for row in rows], strict=True)
    assert read[-1] > 5 * 104
    assert set(alive[2:]) == {103}
    assert max(kib) <= 2 * 2 * 4 * 2 * 32 * 64 * 5 / 1024  # five pages of every layer
