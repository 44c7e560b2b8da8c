# SPDX-License-Identifier: Apache-2.0
"""What mypy says of the installed package, as `make lint` asks it."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFIGURED = Path(__file__).resolve().parents[1] / "pyproject.toml"


def test_types():
    pytest.importorskip("mypy", reason="mypy is not installed")
    command = [sys.executable, "-m", "mypy", "--config-file", CONFIGURED, "-p", "headrace"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Success: no issues found in" in done.stdout
