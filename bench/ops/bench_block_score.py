# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_block_score.py: see conftest.py."""


def test_block_score(benchmark, side):
    side.take(benchmark)
