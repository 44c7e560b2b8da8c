# SPDX-License-Identifier: Apache-2.0
"""pytest bench/ops/bench_append_absorb.py: ours and the peer over its shapes."""

import pytest
import torch

from headrace.bench import cases


@pytest.mark.parametrize("side", ["ours", "peer"])
@pytest.mark.parametrize("case", cases("append_absorb", quick=True), ids=lambda c: c.shape)
def test_append_absorb(benchmark, case, side):
    error, tolerance = case.check()
    assert error <= tolerance  # no figure for a wrong result
    benchmark.group = f"append_absorb {case.shape}"
    with torch.no_grad():
        benchmark(case.ours if side == "ours" else case.peer)
