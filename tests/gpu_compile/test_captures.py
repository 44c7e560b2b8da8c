# SPDX-License-Identifier: Apache-2.0
"""What is timed on a GPU is timed as a graph: no launcher may wait, or bring what the host has."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from bench.gpu.jobs import jobs
from tests import warm

ROOT = Path(__file__).parents[2]


def test_every_job_can_be_captured():
    pytest.importorskip("triton", reason="triton is not installed; pip install triton")
    env = os.environ | {"HEADRACE_PRETEND_CUDA": "0", "OMP_NUM_THREADS": "1"}
    env.pop("TRITON_INTERPRET", None)
    command = [*warm.python(*warm.TORCH), "-m", "tests.gpu_compile.captures"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["name"] for each in told] == [job.name for job in jobs("dry")]
    assert [each for each in told if each["why"]] == []
