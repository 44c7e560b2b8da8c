# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_compact_inplace.py: see conftest.py."""


def test_compact_inplace(benchmark, side):
    side.take(benchmark)
