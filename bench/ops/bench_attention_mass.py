# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_attention_mass.py: see conftest.py."""


def test_attention_mass(benchmark, side):
    side.take(benchmark)
