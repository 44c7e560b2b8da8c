# SPDX-License-Identifier: Apache-2.0
"""pytest --benchmark-enable bench/ops/bench_lora_rows.py: see conftest.py."""


def test_lora_rows(benchmark, side):
    side.take(benchmark)
