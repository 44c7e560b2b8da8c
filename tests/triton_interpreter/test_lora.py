# SPDX-License-Identifier: Apache-2.0
"""lora and lora_rows in Triton's interpreter, on small shapes; run with TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1 only", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from headrace.kernels.lora.route import TILE, route

import headrace
from headrace.adapters import LoraRoute
from tests.ops import adapters, compare


def check(name, args, kwargs, label=""):
    want = compare.reference(name, args, kwargs)
    with headrace.use_backend("triton"):
        got = adapters.result(name, args, kwargs)
    compare.check(name, args, kwargs, label, got=(got,), want=want)
    slots = args[3] if name == "lora" else args[5]
    idle = slots.flatten(1).lt(0).all(1) if slots.dim() > 1 else slots < 0
    assert compare.same_bits(got[idle], args[-1][idle]), label


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        dict(tokens=0),
        dict(tokens=1, mix="identical"),
        dict(tokens=20, depth=130, outputs=130, rank=17, mix="identical"),
        dict(tokens=9, adapters=4, ranks=False, trained=False),
        dict(tokens=5, mix="none"),
    ],
    ids=str,
)
def test_stack(case, dtype):
    check("lora", *adapters.stack(1, dtype=dtype, **case))


@pytest.mark.parametrize(
    "case",
    [
        dict(tokens=7, widths=(45, 20), several=2, epilogue="bias"),
        dict(tokens=5, epilogue="bias gain base"),
        dict(tokens=5, bits=8, widths=(64,)),
        dict(tokens=18, bits=4, widths=(64, 32), several=3, rank=18, adapters=2),
        dict(tokens=3, weight_dtype=torch.float16),
    ],
    ids=str,
)
def test_pool(case):
    check("lora_rows", *adapters.pool(2, **case))


def test_rows_do_not_depend_on_the_batch():
    args, kwargs = adapters.stack(3, tokens=21, adapters=2)
    x, a, b, slots, scale, y = args
    with headrace.use_backend("triton"):
        whole = adapters.result("lora", args, kwargs)
        for t in (0, 20):
            one = (x[t : t + 1], a, b, slots[t : t + 1], scale, y[t : t + 1])
            assert compare.same_bits(adapters.result("lora", one, kwargs)[0], whole[t])


def test_a_route_made_before_gives_the_same():
    args, kwargs = adapters.pool(4, tokens=19, adapters=2)
    step = LoraRoute(22, tiled=True).set(args[5])
    with headrace.use_backend("triton"):
        want = adapters.result("lora_rows", args, kwargs)
        given = kwargs | {"order": step.order[:19], "tiles": step.tiles[:19]}
        assert compare.same_bits(adapters.result("lora_rows", args, given), want)
        none = LoraRoute(19, tiled=True)  # what is not in its tiles is not touched
        given = kwargs | {"order": none.order, "tiles": none.tiles}
        assert compare.same_bits(adapters.result("lora_rows", args, given), args[-1])


@pytest.mark.parametrize("width", [1, 3])
def test_route(width):
    """Every row that uses something is in one tile, with rows that use the same."""
    for tokens in (1, 5, 70):
        slots = torch.randint(-1, 2, (tokens, width), dtype=torch.int32)
        order, tiles = route(slots)
        assert sorted(order.tolist()) == list(range(tokens))
        seen = []
        for start, count in tiles.tolist():
            rows = order[start : start + count].tolist()
            assert count <= TILE
            assert len({tuple(slots[r].tolist()) for r in rows}) <= 1
            seen += rows
        assert sorted(seen) == (slots >= 0).any(1).nonzero()[:, 0].tolist()
