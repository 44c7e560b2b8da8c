# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: ISA levels, poisoned and guarded results, fixed hypothesis runs."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:  # so that `from tests.ops import ...` works however pytest is started
    sys.path.insert(0, ROOT)

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

import headrace  # noqa: E402
from tests import levels  # noqa: E402

settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fixed")

# A shell ignores interrupts for what it starts in the background, and Python keeps it so.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONG = {"test_examples", "test_gpu_bench", "test_gpu_check", "test_gpu_suite", "test_results",
        "test_stopping", "test_types"}  # fmt: skip
GUARD = 64  # elements before and behind every result
SENTINEL = 1234.0  # exact in every dtype


def pytest_collection_modifyitems(items):
    """Files that take long for few tests come first, then those of many tests, so that workers who
    share them end together."""
    tests = Counter(item.path for item in items)

    def place(item):
        first = item.path.parent.name == "packaging" or item.path.stem in LONG
        return (not first, -tests[item.path])

    items.sort(key=place)


def pytest_generate_tests(metafunc):
    """A test of an op runs at the ISA levels that have code for it."""
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", levels.of_module(metafunc.module), indirect=True)


@pytest.fixture
def isa(request):
    """Runs the test at one ISA level."""
    with headrace.use_isa(request.param):
        yield request.param


@pytest.fixture
def two_threads():
    """Two threads for the kernels, and what was set before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Guarded:
    """Results made inside NaN-filled memory between two guard bands."""

    def __init__(self):
        self.made = []
        self.count = 0
        self.plain = torch.Tensor.new_empty

    def new_empty(self, base, *size, **kwargs):
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        dtype = kwargs.get("dtype") or base.dtype
        if (
            base.device.type != "cpu"
            or not dtype.is_floating_point
            or dtype.itemsize == 1  # codes have no room for the sentinel
            or type(base) is not torch.Tensor
        ):
            return self.plain(base, *size, **kwargs)
        n = torch.Size(shape).numel()
        flat = torch.full((n + 2 * GUARD,), SENTINEL, dtype=dtype)
        flat[GUARD : GUARD + n] = torch.nan
        self.made.append(flat)
        self.count += 1
        if len(self.made) > 16:
            self.verify()
        return flat[GUARD : GUARD + n].view(tuple(shape))

    def verify(self):
        for flat in self.made:
            assert (flat[:GUARD] == SENTINEL).all(), "wrote before the start of a result"
            assert (flat[-GUARD:] == SENTINEL).all(), "wrote behind the end of a result"
        self.made.clear()


@pytest.fixture
def guarded(monkeypatch):
    """Results are full of NaN when the kernel gets them, and stand between guard bands."""
    guard = Guarded()
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: guard.new_empty(*a, **k))
    yield guard
    guard.verify()
