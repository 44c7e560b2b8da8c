# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_scatter_back.py: see conftest.py."""


def test_scatter_back(benchmark, side):
    side.take(benchmark)
