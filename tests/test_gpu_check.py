# SPDX-License-Identifier: Apache-2.0
"""The script for a GPU, as far as it runs without one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from headrace.kernels.common import tuned

from bench.gpu.jobs import jobs
from bench.gpu.stages import RUN
from bench.gpu.table import table
from headrace import ops

ROOT = Path(__file__).parents[1]


def check(out, *arguments):
    command = [sys.executable, str(ROOT / "scripts/gpu_check.py"), str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_dry_run_resumes_and_leaves_nothing_out(tmp_path):
    given = ("--dry-run", "--commit", "abc", "--stages", "bench", "--only")
    first = check(tmp_path / "a", *given, "linear", "--budget", "60s")
    assert first.returncode == 0, first.stdout + first.stderr
    again = check(tmp_path / "b", *given, "linear,append", "--resume", str(tmp_path / "a"))
    assert again.returncode == 0, again.stdout + again.stderr
    old, new = (json.loads((tmp_path / n / "report.json").read_text()) for n in "ab")
    assert {name.split(":")[0] for name in new["units"]} == {"bench linear", "bench append"}
    for name, unit in old["units"].items():
        assert new["units"][name] == unit  # taken over, not timed again
    assert new["earlier"] == [old["date"]]
    other = check(tmp_path / "c", *given[:2], "x", *given[3:], "append", "--resume", tmp_path / "a")
    assert "begun anew" in other.stdout
    assert "| linear |" in (tmp_path / "b/report.md").read_text()


def test_the_budget_is_kept(tmp_path):
    begun = time.monotonic()
    done = check(tmp_path, "--dry-run", "--budget", "12s", "--stages", "bench,tune")
    assert done.returncode in (0, 1)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["units"]) < len(jobs("dry"))
    assert time.monotonic() - begun < 40  # the interpreter's start, on a busy machine, comes on top


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = check(tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout.count("\n") == 1
    assert "found none" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_stage_that_does_not_exist_is_named(tmp_path):
    done = check(tmp_path, "--stages", "tests,fly")
    assert done.returncode == 2
    assert "got fly" in done.stderr


def test_every_op_with_a_gpu_backend_is_timed():
    on_gpu = {name for name, spec in ops.specs().items() if spec.gpu}
    for size in ("dry", "quick", "full"):
        made = jobs(size)
        assert {job.op for job in made} == on_gpu
        assert len({job.name for job in made}) == len(made)
        assert len({job.op for job in made[: len(on_gpu)]}) == len(on_gpu)  # each op's first shape
    assert set(RUN) == {"build", "tests", "bench", "sanitize", "tune", "resources"}


def test_a_wrong_result_has_no_ratio():
    row = {"op": "linear", "what": "1", "floor_us": 1.0, "us": {"triton": 2.0, "torch": 8.0}}
    head = {n: "" for n in ("device", "date", "commit", "command", "versions")} | {"floors": {}}
    for good, told in ((True, "(4.00x)"), (False, "WRONG")):
        unit = {"state": "ok", "rows": [row | {"correct": {"triton": good}}]}
        text = table({**head, "units": {"bench linear": unit}})
        assert told in text
        assert ("(4.00x)" in text) == good


def test_choices_come_from_the_table_of_the_device(monkeypatch, tmp_path):
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    tuned.table.cache_clear()
    told = {"linear": {"64 48 fp32": {"rows": 16}}}
    (tmp_path / "some-card-80gb.json").write_text(json.dumps(told))
    assert tuned.file_name("Some Card (80GB)") == "some-card-80gb.json"
    assert tuned.table("Some Card (80GB)") == told
    assert tuned.table("Another") == {}
    x, default = torch.zeros(1), {"rows": 1}
    assert tuned.choice("linear", "64 48 fp32", x, default) == default  # not on a GPU
    with tuned.trial("linear", {"rows": 4}) as asked:
        assert tuned.choice("linear", "k", x, default) == {"rows": 4}
    assert asked == ["k"]
    with tuned.trial("linear", None):
        assert tuned.choice("linear", "k", x, default) == default
    tuned.table.cache_clear()


def test_shipped_tables_hold_candidates():
    for path in sorted((Path(tuned.__file__).parent / "tuned").glob("*.json")):
        assert path.name == tuned.file_name(path.stem)
        for kernel, keys in json.loads(path.read_text()).items():
            for choice in keys.values():
                assert choice in tuned.combinations(kernel), (path.name, kernel)
