# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_causal_conv.py: see conftest.py."""


def test_causal_conv(benchmark, side):
    side.take(benchmark)
