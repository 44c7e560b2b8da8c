# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_merge_states.py: see conftest.py."""


def test_merge_states(benchmark, side):
    side.take(benchmark)
