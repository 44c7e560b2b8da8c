# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_lora.py: see conftest.py."""


def test_lora(benchmark, side):
    side.take(benchmark)
