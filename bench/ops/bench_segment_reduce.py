# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_segment_reduce.py: see conftest.py."""


def test_segment_reduce(benchmark, side):
    side.take(benchmark)
