# SPDX-License-Identifier: Apache-2.0
"""Contracts of the scoring ops."""

from __future__ import annotations

import math

import torch

from headrace.contract import FLOATS, I32, Arg, OpSpec, Out
from headrace.errors import bad_type, bad_value, unsupported

from . import reference

HEADS = ("each", "group", "group_max", "sum", "max")
QUERIES = ("mean", "sum", "max")
WORDS = 16  # of sign bits in a row, at most


def _out_heads(axes, heads):
    return axes["Hq"] if heads == "each" else axes["Hkv"] if heads.startswith("group") else 1


def _block_score_values(bound, axes):
    op, q, keys, upper = "block_score", bound["q"], bound["keys"], bound["upper"]
    bits = not q.is_floating_point()
    if bits != (keys.dtype == torch.int32):
        wanted = "int32, as q" if bits else "floats, as q"
        raise bad_type(op, "keys", wanted, str(keys.dtype).removeprefix("torch."))
    if bits and upper is not None:
        raise bad_value(op, "upper", "None with sign bits", "a tensor")
    if upper is not None and upper.shape != keys.shape:
        raise bad_value(op, "upper", f"shape {tuple(keys.shape)}", f"shape {tuple(upper.shape)}")
    if bits and not 1 <= axes["D"] <= WORDS:
        raise unsupported(op, "q", f"1 to {WORDS} words of sign bits", axes["D"])
    if not bits and (axes["D"] % 16 or axes["D"] == 0):
        raise unsupported(op, "q", "the head dimensions that are multiples of 16", axes["D"])
    if axes["Hkv"] == 0 or axes["Hq"] % axes["Hkv"] or axes["Hq"] == 0:
        raise bad_value(op, "q", f"query heads that are a multiple of {axes['Hkv']} kv heads",
                        axes["Hq"])  # fmt: skip
    if axes["W"] == 0:
        raise bad_value(op, "q", "1 query or more", 0)
    if keys.shape[0] not in (1, axes["B"]):
        raise bad_value(op, "keys", f"B = {axes['B']}, or 1", f"shape {tuple(keys.shape)}")
    for name, known in (("heads", HEADS), ("queries", QUERIES)):
        if bound[name] not in known:
            raise bad_value(op, name, "one of " + ", ".join(known), bound[name])
    if bound["block_size"] < 1:
        raise bad_value(op, "block_size", "1 or more", bound["block_size"])
    if not (math.isfinite(bound["scale"]) and bound["scale"] > 0):
        raise bad_value(op, "scale", "a finite number above 0", bound["scale"])
    index = bound["index"]
    if index is not None and index.shape[0] not in (1, axes["B"]):
        raise bad_value(op, "index", f"B = {axes['B']}, or 1", f"shape {tuple(index.shape)}")
    axes["R"] = axes["N"] if index is None else index.shape[1]
    axes["Ho"] = _out_heads(axes, bound["heads"])
    axes["M"] = -(-axes["R"] // bound["block_size"])


def _block_score_bytes(axes, bound):
    rows = axes["R"] * (bound["keys"].shape[0] if bound["index"] is None else axes["B"])
    stored = rows * axes["Hkv"] * axes["D"] * bound["keys"].element_size()
    out = 4 * axes["B"] * axes["Ho"] * axes["M"]
    return stored * (1 if bound["upper"] is None else 2) + out + bound["q"].numel() * 4


def _block_score_depth(axes, bound):
    width = axes["D"] * (2 if bound["upper"] is not None else 1)
    return width + axes["W"] + axes["Hq"]


BLOCK_SCORE = OpSpec(
    name="block_score",
    family="score",
    schema=(
        "(Tensor q, Tensor keys, *, Tensor? upper=None, Tensor? index=None, Tensor? lengths=None,"
        " str heads='sum', str queries='mean', int block_size=1, float scale=1.0) -> Tensor"
    ),
    args=(
        Arg("q", "B Hq W D", FLOATS + I32, contiguous="last"),
        Arg("keys", "Bk Hkv N D", FLOATS + I32, contiguous="last"),
        Arg("upper", "Bu Hkv N D", FLOATS, like="keys", optional=True, contiguous="last"),
        Arg("index", "Bi R", I32, optional=True, contiguous="last"),
        Arg("lengths", "B", I32, optional=True),
    ),
    outs=(Out("B Ho M", torch.float32),),
    reference=reference.block_score,
    flops=lambda axes, bound: 2 * axes["B"] * axes["Hkv"] * axes["R"] * axes["D"],
    bytes=_block_score_bytes,
    depth=_block_score_depth,
    values=_block_score_values,
    source="ReKV, InfLLM (mean), Quest (bounds), V-Rex (sign bits), ColBERT (MaxSim)",
    doc="scores of blocks of cached tokens by their summaries",
)

SPECS = (BLOCK_SCORE,)
