# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_pooled_block_mask.py: see conftest.py."""


def test_pooled_block_mask(benchmark, side):
    side.take(benchmark)
