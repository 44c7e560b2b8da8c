# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_select.py: see conftest.py."""


def test_select(benchmark, side):
    side.take(benchmark)
