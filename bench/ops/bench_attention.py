# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_attention.py: see conftest.py."""


def test_attention(benchmark, side):
    side.take(benchmark)
