# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_assign.py: see conftest.py."""


def test_assign(benchmark, side):
    side.take(benchmark)
