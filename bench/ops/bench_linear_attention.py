# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_linear_attention.py: see conftest.py."""


def test_linear_attention(benchmark, side):
    side.take(benchmark)
