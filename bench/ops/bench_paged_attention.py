# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_paged_attention.py: see conftest.py."""


def test_paged_attention(benchmark, side):
    side.take(benchmark)
