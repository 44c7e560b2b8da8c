# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_hstu_attention.py: see conftest.py."""


def test_hstu_attention(benchmark, side):
    side.take(benchmark)
