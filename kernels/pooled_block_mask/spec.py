# SPDX-License-Identifier: Apache-2.0
"""Contract of the block mask from pooled scores."""

from __future__ import annotations

import torch

from headrace.contract import Arg, OpSpec, Out
from headrace.errors import bad_value, unsupported

from . import reference

NAME = "pooled_block_mask"


def _values(bound, axes):
    if axes["D"] % 16 or not 16 <= axes["D"] <= 256:
        raise unsupported(
            NAME, "q", "the head dimensions multiples of 16 from 16 to 256", axes["D"]
        )
    if axes["Hkv"] == 0 or axes["Hq"] % axes["Hkv"]:
        raise bad_value(
            NAME, "q", f"query heads that are a multiple of {axes['Hkv']} kv heads", axes["Hq"]
        )
    if not 0.0 <= bound["share"] <= 1.0:
        raise bad_value(NAME, "share", "a number from 0 to 1", bound["share"])
    least = {"blocks": 0, "block_size": 1, "window": 1, "sinks": 0, "local": 0}
    for name, low in least.items():
        if bound[name] is not None and bound[name] < low:
            raise bad_value(NAME, name, f"{low} or more", bound[name])
    axes["Mq"] = -(-axes["Lq"] // bound["block_size"])
    axes["Mk"] = -(-axes["Lk"] // bound["block_size"])


def _bytes(axes, bound):
    read = (bound["q"].numel() + bound["k"].numel()) * bound["q"].element_size()
    return read + axes["B"] * axes["Hq"] * axes["Mq"] * axes["Mk"]


def _flops(axes, bound):
    scored = 2 * axes["B"] * axes["Hq"] * axes["Mq"] * axes["Mk"] * axes["D"]
    return bound["q"].numel() + bound["k"].numel() + scored


POOLED_BLOCK_MASK = OpSpec(
    name="pooled_block_mask",
    family="pooled_block_mask",
    schema=(
        "(Tensor q, Tensor k, *, float share=0.2, int? blocks=None, int block_size=64,"
        " int? window=None, int sinks=0, int local=0, bool causal=True) -> Tensor"
    ),
    args=(
        Arg("q", "B Hq Lq D", contiguous="last"),
        Arg("k", "B Hkv Lk D", like="q", contiguous="last"),
    ),
    outs=(Out("B Hq Mq Mk", torch.bool),),
    reference=reference.pooled_block_mask,
    flops=_flops,
    bytes=_bytes,
    depth=lambda axes, bound: axes["D"] + bound["block_size"],
    values=_values,
    source="SLA (Zhang et al., 2025), as Hybrid Forcing builds its block masks",
    doc="the key blocks of the best pooled scores, for block-sparse attention",
)

SPECS = (POOLED_BLOCK_MASK,)
