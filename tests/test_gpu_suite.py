# SPDX-License-Identifier: Apache-2.0
"""The test stage of the script for a GPU, on files whose tests end in every way, and on some of
tests/gpu itself with a GPU that is only pretended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import processes, stages, suite
from tests import warm

ROOT = Path(__file__).parents[1]

ENDS = """
import os, time, pytest
def test_passes(): pass
@pytest.mark.parametrize("way", ["a", "b"])
def test_fails(way): assert way == "neither", "told"
@pytest.mark.skip(reason="no such thing")
def test_skipped(): pass
def test_dies(): os._exit(11)
def test_hangs(): time.sleep(600)
def test_last(): pass
"""


# Plugins that its files have no use for, which take half of the time of starting pytest.
WITHOUT = "-p no:anyio -p no:benchmark -p no:hypothesispytest"


class Report:
    """As the script's, in memory."""

    def __init__(self, seconds=120.0):
        self.end = time.monotonic() + seconds
        self.data = {"units": {}, "floors": {}, "device": "none"}

    @property
    def left(self):
        return self.end - time.monotonic()

    def done(self, unit):
        return self.data["units"].get(unit, {}).get("state") not in (None, "unfinished")

    def keep(self, unit, quietly=False, **seen):
        self.data["units"][unit] = json.loads(json.dumps(seen))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "TESTS", tmp_path)
    monkeypatch.setattr(suite, "A_TEST", 4.0)
    monkeypatch.setenv("PYTEST_ADDOPTS", f"--rootdir={tmp_path} {WITHOUT}")
    return tmp_path


@pytest.mark.parametrize("cores", [1, 4])
def test_every_way_a_test_ends(folder, monkeypatch, cores):
    monkeypatch.setattr(suite, "cores", lambda: cores)
    (folder / "test_ends.py").write_text(ENDS)
    (folder / "test_fine.py").write_text("def test_one(): pass")
    (folder / "test_broken.py").write_text("import nothing_of_this_name")
    report = Report()
    suite.tests(report, "quick", None)
    units = report.data["units"]
    seen = {name.split("::")[1]: o for name, o in units["tests test_ends"]["tests"].items()}
    want = {
        "test_passes": "PASSED", "test_fails[a]": "FAILED", "test_fails[b]": "FAILED",
        "test_skipped": "SKIPPED", "test_dies": "CRASHED", "test_hangs": "HUNG",
        "test_last": "PASSED",
    }  # fmt: skip
    assert seen | {"test_dies": "CRASHED"} == want
    assert seen["test_dies"] in ("CRASHED", "FAILED")  # the latter is pytest-xdist's word for it
    assert units["tests test_ends"]["state"] == "failed"
    assert any("told" in why for why in units["tests test_ends"]["wrong"].values())
    assert units["tests test_fine"]["state"] == "ok"
    assert units["tests test_broken"]["state"] == "failed"
    assert "nothing_of_this_name" in str(units["tests test_broken"])


def test_a_file_that_is_not_through_is_gone_on_with(folder, monkeypatch):
    monkeypatch.setattr(suite, "cores", lambda: 1)
    (folder / "test_ends.py").write_text("def test_one(): pass\ndef test_two(): pass")
    report = Report()
    first = str(folder / "test_ends.py") + "::test_one"
    name = os.path.relpath(first, folder)
    report.keep("tests test_ends", state="unfinished", tests={name: "PASSED"}, wrong={})
    begun = []
    real = suite.Suite.note
    monkeypatch.setattr(
        suite.Suite, "note", lambda self, test, *a: (begun.append(test), real(self, test, *a))
    )
    suite.tests(report, "quick", None)
    assert begun == ["test_ends.py::test_two"]
    unit = report.data["units"]["tests test_ends"]
    assert unit["state"] == "ok"
    assert len(unit["tests"]) == 2


def test_no_time_is_told(folder):
    (folder / "test_fine.py").write_text("def test_one(): pass")
    report = Report(seconds=1)
    suite.tests(report, "quick", None)
    assert report.data["units"]["tests test_fine"]["state"] == "unfinished"


SANITIZER = """#!{python}
import sys, time
tool = sys.argv[sys.argv.index("--tool") + 1]
if tool == "racecheck": print("========= RACECHECK SUMMARY: 1 hazard"); sys.exit(9)
if tool == "initcheck": time.sleep(600)
print("3 passed in 1s"); print("========= ERROR SUMMARY: 0 errors")
"""


def test_sanitizers_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    report = Report()
    suite.sanitize(report, "quick", None)
    assert report.data["units"].pop("sanitize")["state"] == "absent"
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(SANITIZER.format(python=sys.executable))
    fake.chmod(0o755)
    monkeypatch.setattr(suite, "A_TOOL", 0.0)
    report.end = time.monotonic() + suite.LEAST + 3  # how long what hangs is waited for
    suite.sanitize(report, "quick", None)
    states = {name: unit["state"] for name, unit in report.data["units"].items()}
    assert states["sanitize memcheck cuda"] == states["sanitize synccheck cuda"] == "ok"
    assert states["sanitize racecheck cuda"] == "failed"
    assert states["sanitize initcheck cuda"] == "unfinished"
    assert "1 hazard" in report.data["units"]["sanitize racecheck cuda"]["told"]


def test_what_a_process_started_ends_with_it(tmp_path):
    script = "import subprocess, sys; subprocess.run(['sleep', '600'])"
    task = processes.Task([sys.executable, "-c", script])
    time.sleep(1)
    begun = time.monotonic()
    status, _ = task.end(0.5)
    assert status is None
    assert time.monotonic() - begun < 10
    time.sleep(0.2)
    alive = subprocess.run(["ps", "-o", "pgid=,stat="], capture_output=True, text=True).stdout
    lines = [x.split() for x in alive.splitlines()]
    assert not [x for x in lines if x[0] == str(task.process.pid) and not x[1].startswith("Z")]


@pytest.mark.parametrize("nvcc", ["absent", "fails", "builds", "hangs"])
def test_the_library_is_built_whole_or_not_at_all(nvcc, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(stages.headrace, "__path__", [str(tmp_path)])
    script = {
        "fails": "echo no such thing >&2; exit 1",
        "builds": 'for out; do :; done; echo made > "$out"',
        "hangs": "/bin/sleep 600",
    }
    if nvcc != "absent":
        (tmp_path / "nvcc").write_text("#!/bin/sh\n" + script[nvcc])
        (tmp_path / "nvcc").chmod(0o755)
    report = Report(seconds=stages.LEAST + 3)
    stages.build(report, "quick", None)
    unit = report.data["units"]["build"]
    want = {"absent": "absent", "fails": "failed", "builds": "ok", "hangs": "unfinished"}
    assert unit["state"] == want[nvcc]
    assert (tmp_path / "_cuda.so").exists() == (nvcc == "builds")
    if nvcc == "fails":
        assert "no such thing" in unit["why"]


def test_the_gpu_tests_run_on_a_gpu_that_is_pretended():
    """What a lent GPU would be asked for has run once: launchers, captures, comparisons."""
    pytest.importorskip("triton", reason="triton is not installed; pip install triton")
    command = [*warm.python(*warm.TORCH), "-m", "pytest", "-q", "-p", "tests.gpu_compile.pretend"]
    command += ["-p", "no:cacheprovider", "tests/gpu", "--replays", "40"]
    some = (
        "graph_of_scoring",
        "graph_of_the_whole",
        "graph_absorbs",
        "alone_and_beside",
        "test_gpu_streams",
    )
    command += ["-k", " or ".join(some), "-rp"]
    env = os.environ | {"HEADRACE_PRETEND_CUDA": "0", "OMP_NUM_THREADS": "1"}
    env.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = [line for line in done.stdout.splitlines() if line.startswith("PASSED")]
    assert all(any(name in line for line in passed) for name in some), done.stdout


def test_a_launcher_that_waits_in_a_capture_is_seen():
    pytest.importorskip("triton", reason="triton is not installed; pip install triton")
    from tests.gpu_compile.pretend import Graph, NoWaiting, capture

    x, graph = torch.ones(2), Graph()
    with capture(graph):
        y = x + 1
    x += 1
    graph.replay()
    assert y.tolist() == [3.0, 3.0]
    for mode in (NoWaiting(), capture(Graph())):
        with mode, pytest.raises(RuntimeError, match="capturing"):
            x.sum().item()
    for mode in (NoWaiting(), capture(Graph())):
        with mode, pytest.raises(RuntimeError, match="during CUDA graph capturing"):
            torch.tensor([0.5, 1.0]).to(x.device)
