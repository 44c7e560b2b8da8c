# SPDX-License-Identifier: Apache-2.0
"""A table that names what does not exist makes no Triton kernel write or read out of bounds.

In Triton's interpreter; run with TRITON_INTERPRET=1.
"""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1 only", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from headrace.kernels.linear_attention import triton as linear_attention
from headrace.kernels.lora.route import route

import headrace
from headrace import tables
from tests.ops import compare, evictions, sequences, wrong

WALL = 1 << 15
"""Elements before and behind every tensor: more than one wrong row or token is away from it."""

SMALL = {"heads": 1, "dim": 16, "v_dim": 16}
CALLS = {
    **wrong.CALLS,
    "linear_attention": lambda: sequences.linear_attention(1, kv_heads=1, decay=True, **SMALL),
    "gated_delta_rule": lambda: sequences.gated_delta_rule(1, group=1, **SMALL),
    "frame_delta_rule": lambda: sequences.frame_delta_rule(1, v_heads=1, **SMALL),
    "append_absorb": lambda: evictions.append_absorb(1, kv_heads=1, dim=16, axes="turns"),
    "hstu_attention": lambda: sequences.hstu_attention(
        1, (9, 0, 20), (3, 0, 5), targets=2, **SMALL
    ),
}
LONG = {  # of which one stream comes token by token, one in a chunk, one in several
    "linear_attention": lambda: sequences.linear_attention(1, (25, 2, 70), kv_heads=1, **SMALL),
    "gated_delta_rule": lambda: sequences.gated_delta_rule(1, (25, 2, 34), group=1, **SMALL),
}


class Walls:
    """Tensors in the middle of memory that is NaN, or 77 where it is whole numbers."""

    def __init__(self):
        self.made = []

    def around(self, x):
        whole = not x.is_floating_point()
        flat = x.new_full((x.numel() + 2 * WALL,), 77 if whole else torch.nan)
        inside = flat[WALL : WALL + x.numel()].view(x.shape)
        inside.copy_(x)
        self.made.append((flat, flat.clone()))
        return inside

    def check(self):
        for flat, before in self.made:
            for part in (slice(0, WALL), slice(-WALL, None)):
                assert compare.same_bits(flat[part], before[part]), "written out of bounds"


def run(monkeypatch, op, given):
    """A call on walled memory; looks at all that it wrote."""
    walls, plain = Walls(), torch.Tensor.new_empty
    given = {n: walls.around(x) if isinstance(x, torch.Tensor) else x for n, x in given.items()}
    before = given["state"].clone() if "state" in given else None
    clean = [x for x in given.values() if isinstance(x, torch.Tensor) and x.isfinite().all()]

    def zeros(base, *size, **options):
        made = plain(base, *size, **options)
        return walls.around(made.zero_()) if made.numel() else made

    with monkeypatch.context() as patched, headrace.use_backend("triton"):
        patched.setattr(torch.Tensor, "new_empty", zeros)
        patched.setattr(tables, "check", None)  # off, nobody looks
        out = getattr(torch.ops.headrace, op)(**given)
    walls.check()
    # NaN is in the walls and in states of nobody: none of it came to where streams are.
    made = () if out is None else out if isinstance(out, tuple) else (out,)
    assert all(x.isfinite().all() for x in (*made, *clean))
    if before is not None:
        streams = torch.zeros(len(before), dtype=torch.bool)
        streams[[row for row in given["rows"].tolist() if 0 <= row < len(before)]] = True
        assert given["state"][streams].isfinite().all()
        assert compare.same_bits(given["state"][~streams], before[~streams])


TABLES = (
    *("rows", "indptr", "frames", "q_indptr", "k_indptr", "num_targets", "where", "k_order"),
    *("slots", "row_indptr", "ranks", "slice_ends", "epilogue", "index"),
)
OPS = [
    case
    for case in wrong.WRONG
    if case[1] in TABLES and not case[0].startswith("paged") and case[1:3] != ("where", (1,))
]


@pytest.mark.parametrize(("name", "arg", "at", "value"), OPS)
def test_nothing_is_read_or_written_beyond(monkeypatch, name, arg, at, value):
    monkeypatch.setattr(wrong, "CALLS", CALLS)
    op, given = wrong.called(name)
    wrong.spoil(given, arg, at, value)
    run(monkeypatch, op, given)


AWAY = [
    *[("order", 2, value) for value in (-1, 9)],
    *[("tiles", (1, 0), value) for value in (-1, 9, 77)],
    *[("tiles", (1, 1), value) for value in (-1, 77)],
]


@pytest.mark.parametrize(("arg", "at", "value"), AWAY)
def test_nor_by_a_route_that_leads_away(monkeypatch, arg, at, value):
    op, given = wrong.called("lora_rows")
    given["order"], given["tiles"] = route(given["slots"])
    given[arg][at] = value
    run(monkeypatch, op, given)


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("arg", ["rows", "indptr"])
def test_nor_in_chunks(monkeypatch, name, arg):
    monkeypatch.setattr(wrong, "CALLS", LONG)
    monkeypatch.setattr(linear_attention, "SEGMENT", 32)
    cases = wrong.rows(name)[:2] if arg == "rows" else wrong.offsets(name, arg)
    for _, _, at, value in cases:
        op, given = wrong.called(name)
        wrong.spoil(given, arg, at, value)
        run(monkeypatch, op, given)
