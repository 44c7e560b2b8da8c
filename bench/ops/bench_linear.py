# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_linear.py: see conftest.py."""


def test_linear(benchmark, side):
    side.take(benchmark)
