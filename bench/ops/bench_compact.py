# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_compact.py: see conftest.py."""


def test_compact(benchmark, side):
    side.take(benchmark)
