# SPDX-License-Identifier: Apache-2.0
"""The files of bench/ops time what they say, and nothing that is wrong."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from headrace.bench import shapes
from headrace.bench.case import Case
from tests import warm

ROOT = Path(__file__).resolve().parents[1]


def test_a_file_runs(tmp_path):
    """Ours, the peer and the floor of every shape, timed."""
    told = tmp_path / "told.json"
    command = [
        *warm.python(*warm.TORCH), "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT,
        "-p", "no:cacheprovider", "--benchmark-enable", "--benchmark-max-time=0.01",
        "--benchmark-min-rounds=2", "--benchmark-warmup=off", f"--benchmark-json={told}",
        ROOT / "bench/ops/bench_linear.py",
    ]  # fmt: skip
    # Nothing is timed by what takes itself for one of several workers.
    env = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    groups: dict = {}
    for one in json.loads(told.read_text())["benchmarks"]:
        groups.setdefault(one["group"], {})[one["param"].rpartition("-")[2]] = one["stats"]
    assert set(groups) == {f"linear {case.shape}" for case in shapes.cases("linear", True)}
    for sides in groups.values():
        assert set(sides) == {"ours", "torch linear", "floor"}
        assert all(side["rounds"] >= 2 for side in sides.values())
        assert all(0 < side["min"] < 1 for side in sides.values())


@pytest.fixture
def suite():
    spec = importlib.util.spec_from_file_location("suite", ROOT / "bench/ops/conftest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["suite"] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    yield module
    del sys.modules["suite"]


class Benchmark:
    """Calls what it is given, once."""

    def __init__(self):
        self.group, self.extra_info, self.called = "", {}, []

    def __call__(self, run):
        self.called.append(run())


def toy(**changes):
    x = torch.randn(64)

    def wide(compile):
        return {"compiled": lambda: x * 2} if compile else {}

    parts = {"ours": lambda: x * 2, "check": lambda: (0.0, 1e-6), "peer": lambda: x + x,
             "more": wide, "bytes": 4096.0, "flops": 1e6}  # fmt: skip
    return Case("linear", "a shape", peer_name="right", **(parts | changes))


def sides_of(suite, monkeypatch, case):
    monkeypatch.setattr(suite.shapes, "to_make", lambda op, quick: [lambda: case])
    return {side.name: side for side in suite.listed("linear", "quick")}


def test_every_peer_and_the_floor_are_sides(suite, monkeypatch):
    sides = sides_of(suite, monkeypatch, toy(rivals={"another": lambda: torch.zeros(64)}))
    assert list(sides) == ["ours", "right", "another", "compiled", "floor"]
    benchmark = Benchmark()
    for name in ("ours", "right", "compiled", "floor"):
        sides[name].take(benchmark)
    assert len(benchmark.called) == 4
    assert benchmark.group == "linear a shape"
    with pytest.raises(AssertionError, match="another computes something else"):
        sides["another"].take(benchmark)
    assert len(benchmark.called) == 4


def test_nothing_is_timed_where_ours_is_wrong(suite, monkeypatch):
    sides = sides_of(suite, monkeypatch, toy(check=lambda: (1.0, 1e-6)))
    benchmark = Benchmark()
    for side in sides.values():
        with pytest.raises(AssertionError, match="ours is off"):
            side.take(benchmark)
    assert not benchmark.called


def test_a_peer_that_fails_is_told(suite, monkeypatch):
    def none():
        raise RuntimeError("not on this machine")

    def unmade(compile):
        raise ImportError("no such package")

    sides = sides_of(suite, monkeypatch, toy(rivals={"lost": none}, more=unmade))
    benchmark = Benchmark()
    for name, why in (("lost", "not on this machine"), ("some peers", "no such package")):
        with pytest.raises(pytest.fail.Exception, match=why):
            sides[name].take(benchmark)
    sides["right"].take(benchmark)
    assert len(benchmark.called) == 1


def test_the_floor_takes_as_long_as_the_multiply_adds(suite, monkeypatch):
    monkeypatch.setattr(suite.MultiplyAdds, "rate", lambda self, dtype: 1e8)
    run = suite.floor(toy())
    began = time.perf_counter()
    run()
    assert time.perf_counter() - began >= 0.01


@pytest.mark.parametrize("chosen", ["all", "llama-3-8b"])
def test_other_shapes_can_be_chosen(suite, chosen):
    few = suite.makers("linear", "quick")
    more = suite.makers("linear", chosen)
    assert len(more) > len(few) > 0
