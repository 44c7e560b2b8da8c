# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_append.py: see conftest.py."""


def test_append(benchmark, side):
    side.take(benchmark)
