# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_similarity.py: see conftest.py."""


def test_similarity(benchmark, side):
    side.take(benchmark)
