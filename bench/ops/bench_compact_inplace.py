# SPDX-License-Identifier: Apache-2.0
"""pytest bench/ops/bench_compact_inplace.py: ours and the peer, shapes of headrace.bench."""

import pytest
import torch

from headrace.bench import cases


@pytest.mark.parametrize("side", ["ours", "peer"])
@pytest.mark.parametrize("case", cases("compact_inplace", quick=True), ids=lambda c: c.shape)
def test_compact_inplace(benchmark, case, side):
    error, tolerance = case.check()
    assert error <= tolerance  # no figure for a wrong result
    benchmark.group = f"compact_inplace {case.shape}"
    with torch.no_grad():
        benchmark(case.ours if side == "ours" else case.peer)
