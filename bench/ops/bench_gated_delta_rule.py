# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_gated_delta_rule.py: see conftest.py."""


def test_gated_delta_rule(benchmark, side):
    side.take(benchmark)
