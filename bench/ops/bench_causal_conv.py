# SPDX-License-Identifier: Apache-2.0
"""pytest bench/ops/bench_causal_conv.py: ours and the peer over the shapes of headrace.bench."""

import pytest
import torch

from headrace.bench import cases


@pytest.mark.parametrize("side", ["ours", "peer"])
@pytest.mark.parametrize("case", cases("causal_conv", quick=True), ids=lambda c: c.shape)
def test_causal_conv(benchmark, case, side):
    error, tolerance = case.check()
    assert error <= tolerance  # no figure for a wrong result
    benchmark.group = f"causal_conv {case.shape}"
    with torch.no_grad():
        benchmark(case.ours if side == "ours" else case.peer)
