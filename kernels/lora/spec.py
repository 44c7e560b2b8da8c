# SPDX-License-Identifier: Apache-2.0
"""Contracts of the multi-adapter products."""

from __future__ import annotations

import torch

from headrace.contract import F32, FLOATS, I32, Arg, OpSpec
from headrace.errors import bad_type, bad_value, unsupported

from . import reference

MAX_ADAPTERS = 4  # of one row
POOL = (*FLOATS, torch.int8, torch.uint8)


def _rank_sums(bound, lists):
    """Rank rows over all rows of x, and over the adapters that are in use."""
    slots = bound["slots"].flatten()
    used = slots[slots >= 0].long()
    return int(lists[used].sum()), int(lists[used.unique()].sum())


def _stack_ranks(bound, axes):
    if bound["ranks"] is not None:
        return bound["ranks"].long()
    return torch.full((axes["S"],), axes["R"])


def _row_ranks(bound):
    return bound["row_indptr"].diff().long()


def _flops(axes, per_row, inputs):
    return 2 * per_row * (inputs + axes["N"])


def _traffic(axes, bound, distinct, inputs, item):
    io = bound["x"].numel() + 2 * bound["y"].numel()
    return distinct * (inputs + axes["N"]) * item + io * bound["x"].element_size()


def _rows_values(bound, axes):
    op, pool = "lora_rows", bound["a"].dtype
    if bound["b"].dtype != pool:
        raise bad_type(op, "b", str(pool).removeprefix("torch."), bound["b"].dtype)
    if not 1 <= axes["W"] <= MAX_ADAPTERS:
        raise unsupported(op, "slots", f"1 to {MAX_ADAPTERS} adapters a row", axes["W"])
    codes, per_byte = pool in (torch.int8, torch.uint8), 2 if pool == torch.uint8 else 1
    for name, width, wanted in (("a", axes["KA"], axes["K"]), ("b", axes["NB"], axes["N"])):
        scales, whole = bound[f"{name}_scale"], width * per_byte
        if whole != wanted:
            raise bad_value(op, name, f"{wanted} weights in a row", whole)
        if codes != (scales is not None):
            what = "scales with codes" if codes else "None with floating weights"
            raise bad_value(op, f"{name}_scale", what, "None" if scales is None else "scales")
        if codes:
            groups = scales.shape[-1]
            step = 32 if per_byte == 2 else 1
            if groups == 0 or whole % groups or whole // groups % step:
                raise bad_value(
                    op,
                    f"{name}_scale",
                    f"groups that divide {whole} weights into multiples of {step}",
                    groups,
                )
    if axes["J"] != 1 and bound["slice_ends"] is None:
        raise bad_value(op, "slice_ends", f"the ends of {axes['J']} slices", "None")
    if bound["epilogue"] is None and (bound["bias"] is not None or bound["gain"] is not None):
        raise bad_value(op, "epilogue", "the rows of bias and gain of each slot", "None")
    for name, other in (("order", "tiles"), ("tiles", "order")):
        if bound[name] is None and bound[other] is not None:
            raise bad_value(
                op, name, f"the route that {other} is of", "None", "see headrace.adapters.LoraRoute"
            )


LORA = OpSpec(
    name="lora",
    family="lora",
    schema=(
        "(Tensor x, Tensor a, Tensor b, Tensor slots, Tensor scale, Tensor(a!) y, *,"
        " Tensor? ranks=None) -> ()"
    ),
    args=(
        Arg("x", "T K", contiguous="last"),
        Arg("a", "S R K", contiguous="all"),
        Arg("b", "S N R", like="a"),
        Arg("slots", "T", I32, contiguous="all"),
        Arg("scale", "S", F32, contiguous="all"),
        Arg("y", "T N", like="x", contiguous="last"),
        Arg("ranks", "S", I32, optional=True, contiguous="all"),
    ),
    outs=(),
    reference=reference.lora,
    flops=lambda axes, bound: _flops(
        axes, _rank_sums(bound, _stack_ranks(bound, axes))[0], axes["K"]
    ),
    bytes=lambda axes, bound: _traffic(
        axes,
        bound,
        _rank_sums(bound, _stack_ranks(bound, axes))[1],
        axes["K"],
        bound["a"].element_size(),
    ),
    depth=lambda axes, bound: axes["K"] + axes["R"],
    mutates=("y",),
    gpu=("triton", "cuda"),
    source="Punica (Chen et al., 2023), S-LoRA (Sheng et al., 2023); orientation as PEFT's",
    doc="low-rank updates of many adapters in one batch, adapters stacked densely",
)

LORA_ROWS = OpSpec(
    name="lora_rows",
    family="lora",
    schema=(
        "(Tensor x, Tensor a, Tensor b, Tensor rows, Tensor row_indptr, Tensor slots,"
        " Tensor scale, Tensor(a!) y, *, Tensor? weights=None, Tensor? ranks=None,"
        " Tensor? slice_ends=None, Tensor? a_scale=None, Tensor? b_scale=None,"
        " Tensor? bias=None, Tensor? gain=None, Tensor? base_bias=None,"
        " Tensor? epilogue=None, Tensor? order=None, Tensor? tiles=None) -> ()"
    ),
    args=(
        Arg("x", "T K", contiguous="last"),
        Arg("a", "C J KA", POOL, contiguous="last"),
        Arg("b", "C NB", POOL, contiguous="last"),
        Arg("rows", "M", I32, contiguous="all"),
        Arg("row_indptr", "S+1", I32, contiguous="all"),
        Arg("slots", "T W", I32, contiguous="all"),
        Arg("scale", "S", F32, contiguous="all"),
        Arg("y", "T N", like="x", contiguous="last"),
        Arg("weights", "T W", F32, optional=True, contiguous="all"),
        Arg("ranks", "S J", I32, optional=True, contiguous="all"),
        Arg("slice_ends", "J", I32, optional=True, contiguous="all"),
        Arg("a_scale", "C J GA", F32, optional=True, contiguous="all"),
        Arg("b_scale", "C GB", F32, optional=True, contiguous="all"),
        Arg("bias", "EB N", F32, optional=True, contiguous="all"),
        Arg("gain", "EG N", F32, optional=True, contiguous="all"),
        Arg("base_bias", "N", F32, optional=True, contiguous="all"),
        Arg("epilogue", "S 2", I32, optional=True, contiguous="all"),
        Arg("order", "T", I32, optional=True, contiguous="all"),
        Arg("tiles", "T 2", I32, optional=True, contiguous="all"),
    ),
    outs=(),
    reference=reference.lora_rows,
    flops=lambda axes, bound: _flops(
        axes, _rank_sums(bound, _row_ranks(bound))[0], axes["J"] * axes["K"]
    ),
    bytes=lambda axes, bound: _traffic(
        axes,
        bound,
        _rank_sums(bound, _row_ranks(bound))[1],
        axes["J"] * axes["K"],
        bound["a"].element_size() / (2 if bound["a"].dtype == torch.uint8 else 1),
    ),
    depth=lambda axes, bound: axes["K"] + axes["W"] * axes["M"],
    values=_rows_values,
    mutates=("y",),
    gpu=("triton", "cuda"),
    source=(
        "paged rank rows: S-LoRA (2023); DoRA: Liu et al. (2024); activated LoRA: Greenewald et"
        " al. (2025)"
    ),
    doc="the same over a pool of rank rows: mixed ranks, slices, codes, bias, DoRA, compositions",
)

SPECS = (LORA, LORA_ROWS)
