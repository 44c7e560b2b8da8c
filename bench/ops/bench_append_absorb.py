# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_append_absorb.py: see conftest.py."""


def test_append_absorb(benchmark, side):
    side.take(benchmark)
