# SPDX-License-Identifier: Apache-2.0
"""Benchmarks by the sizes of a model: every op that it has, right, in its dtype."""

from dataclasses import replace

import pytest

from headrace import bench, ops
from headrace.cli import main

SMALLEST = "smollm2-135m"
OTHERS = {"causal_conv", "frame_delta_rule", "gated_delta_rule", "hstu_attention",
          "linear_attention"}  # fmt: skip


def test_bench_by_the_sizes_of_a_model():
    made = {case.shape for case in bench.of_model(bench.MODELS[SMALLEST], "linear", True)}
    assert made == {f"bf16 [1, {k}] x [{n}, {k}]" for k, n in
                    ((576, 960), (576, 576), (576, 1536), (1536, 576))}  # fmt: skip
    for row in bench.run(None, True, shapes=SMALLEST, budget=1e-4):
        assert row.ok, (row.op, row.shape)
        assert row.peer_ok, (row.op, row.shape)
        assert row.speedup


@pytest.mark.parametrize("name", bench.MODELS)
def test_every_op_of_a_model_is_right_at_its_sizes(name):
    """Heads as they are, what is between them an eighth as wide, which takes less time."""
    dims = bench.MODELS[name]
    dims, found = replace(dims, hidden=dims.hidden // 8, wide=dims.wide // 8), set()
    for case in bench.of_model(dims, None, True):
        error, bound = case.check()
        assert error <= bound, (case.op, case.shape)
        assert "bf16" in case.shape or case.op == "select" or case.shape.startswith("bits")
        found.add(case.op)
    assert found == set(ops.specs()) - OTHERS


def test_bench_of_an_unknown_model(capsys):
    for command, text in (
        (["bench", "--shapes", "gpt"], "bench(shapes): expected one of llama-3-8b, "),
        (
            ["bench", "causal_conv", "--shapes", "llama-3-8b"],
            "bench(op): expected one whose shapes",
        ),
    ):
        assert main(command) == 1
        err = capsys.readouterr().err
        assert text in err
        assert err.count("\n") == 1
