# SPDX-License-Identifier: Apache-2.0
"""Contracts of the ops that compare rows with references and move the rows that are kept."""

from __future__ import annotations

import math

import torch

from headrace.contract import F32, FLOATS, I32, PAGES, Arg, OpSpec, Out
from headrace.errors import bad_type, bad_value, unsupported

from . import reference

METRICS = ("cos", "dot", "l1", "l2", "gauss")
PIXELS = (torch.uint8,)
MOVED = (*PAGES, torch.uint8, torch.int32, torch.int64)


def _fits(op, bound, axes, name, names):
    """The leading axes of an optional argument are those of the rows, or 1."""
    if bound[name] is None:
        return
    shape = bound[name].shape
    for axis, size in zip(names, shape, strict=False):
        if size not in (axes[axis], 1):
            raise bad_value(op, name, f"{axis} = {axes[axis]}, or 1", f"shape {tuple(shape)}")


def _patch(bound, axes):
    """Rows and columns of a patch; 0 stands for the whole of an axis."""
    size = (bound["patch_height"] or axes["H"], bound["patch_width"] or axes["W"])
    return max(1, size[0]), max(1, size[1])


def _similarity_values(bound, axes):
    op, x, ref, index = "similarity", bound["x"], bound["ref"], bound["index"]
    if ref.dtype not in (x.dtype, torch.float32):
        kinds = " or ".join(dict.fromkeys(f"{t}"[6:] for t in (x.dtype, torch.float32)))
        raise bad_type(op, "ref", kinds, f"{ref.dtype}"[6:])
    if bound["metric"] not in METRICS:
        raise bad_value(op, "metric", "one of " + ", ".join(METRICS), bound["metric"])
    for name in ("patch_height", "patch_width", "radius"):
        if bound[name] < 0:
            raise bad_value(op, name, "0 or more", bound[name])
    if not (math.isfinite(bound["alpha"]) and bound["alpha"] > 0):
        raise bad_value(op, "alpha", "a finite number above 0", bound["alpha"])
    high, wide = _patch(bound, axes)
    single = bound["patch_height"] == 1 and bound["patch_width"] == 1
    if index is not None:
        if tuple(ref.shape[:2]) != (1, 1):
            raise bad_value(op, "ref", "rows [1, 1, R, D] with index", f"shape {tuple(ref.shape)}")
        _fits(op, bound, axes, "index", "FHW")
        if bound["radius"] or not single:
            raise unsupported(op, "index", "an index, a radius and patches", "several at a time")
    else:
        _fits(op, bound, axes, "ref", "FHW")
    if bound["radius"]:
        if not single:
            raise unsupported(op, "radius", "a radius and patches", "both")
        if tuple(ref.shape[1:3]) != (axes["H"], axes["W"]):
            want = f"H, W = {axes['H']}, {axes['W']} with a radius"
            raise bad_value(op, "ref", want, f"shape {tuple(ref.shape)}")
    axes["Ho"], axes["Wo"] = -(-axes["H"] // high), -(-axes["W"] // wide)


def _similarity_bytes(axes, bound):
    x, ref = bound["x"], bound["ref"]
    return (
        axes["F"] * axes["H"] * axes["W"] * axes["D"] * x.element_size()
        + ref.numel() * ref.element_size()
        + (0 if bound["index"] is None else 4 * bound["index"].numel())
        + 4 * axes["F"] * axes["Ho"] * axes["Wo"]
    )


def _similarity_depth(axes, bound):
    high, wide = _patch(bound, axes)
    return axes["D"] * min(high, axes["H"] or 1) * min(wide, axes["W"] or 1)


SIMILARITY = OpSpec(
    name="similarity",
    family="prune",
    schema=(
        "(Tensor x, Tensor ref, str metric='cos', *, Tensor? index=None, int patch_height=1,"
        " int patch_width=1, int radius=0, float alpha=1.0) -> Tensor"
    ),
    args=(
        Arg("x", "F H W D", FLOATS + PIXELS, contiguous="last"),
        Arg("ref", "Fr Hr Wr D", FLOATS + PIXELS, contiguous="last"),
        Arg("index", "Fi Hi Wi", I32, optional=True),
    ),
    outs=(Out("F Ho Wo", torch.float32),),
    reference=reference.similarity,
    flops=lambda axes, bound: (
        2 * axes["F"] * axes["H"] * axes["W"] * axes["D"] * (2 * bound["radius"] + 1) ** 2
    ),
    bytes=_similarity_bytes,
    depth=_similarity_depth,
    values=_similarity_values,
    source="references of DTD, EVS, FluxMem, STC and StreamDiffusion's filter as one kernel",
    doc="similarity of rows, patches or frames to a reference",
)


def _compact_values(bound, axes):
    op, index, mask = "compact", bound["index"], bound["mask"]
    if (index is None) == (mask is None):
        got = "neither" if mask is None else "both"
        raise bad_value(op, "index", "an index or a mask", got)
    if mask is not None and bound["count"] is not None:
        raise bad_value(op, "count", "None with a mask", "a tensor")
    capacity = bound["capacity"]
    if capacity is not None and capacity < 0:
        raise bad_value(op, "capacity", "0 or more", capacity)
    if index is not None and capacity is not None:
        raise bad_value(op, "capacity", "None with an index, whose last axis it is", capacity)
    if "B" in axes:  # not of a call of one head alone
        for name in ("index", "count", "mask", "target", "weights"):
            _fits(op, bound, axes, name, "BH")
    if bound["target"] is not None and bound["x"].dtype not in FLOATS:
        raise unsupported(op, "x", "float32, bfloat16, float16 to merge", f"{bound['x'].dtype}"[6:])
    if index is not None:
        axes["K"] = index.shape[-1]
    else:
        axes["K"] = axes["N"] if capacity is None else capacity


def _moved(axes, bound):
    """Every row of the capacity is read and written."""
    row = axes["D"] * bound["x"].element_size()
    return axes["B"] * axes["H"] * axes["K"] * (2 * row + 8)


def _compact_bytes(axes, bound):
    if bound["target"] is None:
        return _moved(axes, bound)
    row, rows = axes["D"] * bound["x"].element_size(), axes["B"] * axes["H"]
    return rows * ((axes["N"] + axes["K"]) * row + 4 * axes["N"] + 8 * axes["K"])


COMPACT = OpSpec(
    name="compact",
    family="prune",
    schema=(
        "(Tensor x, Tensor? index=None, Tensor? count=None, *, Tensor? mask=None,"
        " Tensor? target=None, Tensor? weights=None, int? capacity=None)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    args=(
        Arg("x", "B H N D", MOVED, contiguous="last"),
        Arg("index", "Bi Hi C", I32, optional=True, contiguous="last"),
        Arg("count", "Bc Hc", I32, optional=True),
        Arg("mask", "Bm Hm N", (torch.bool,), optional=True, contiguous="last"),
        Arg("target", "Bt Ht N", I32, optional=True, contiguous="last"),
        Arg("weights", "Bw Hw N", F32, optional=True, contiguous="last"),
    ),
    outs=(
        Out("B H K D", "x"),
        Out("B H K", torch.float32),
        Out("B H K", torch.int32),
        Out("B H", torch.int32),
    ),
    reference=reference.compact,
    flops=lambda axes, bound: (
        0 if bound["target"] is None else 2 * axes["B"] * axes["H"] * axes["N"] * axes["D"]
    ),
    bytes=_compact_bytes,
    depth=lambda axes, bound: 1 if bound["target"] is None else axes["N"],
    values=_compact_values,
    source="gathers of DTD, EVS and kvpress; merges of ToMe and VisionZip",
    doc="rows that are kept, side by side, with what others merge into them",
)


def _inplace_values(bound, axes):
    axes["K"] = axes["C"]
    for name in ("index", "count") if "B" in axes else ():
        _fits("compact_inplace", bound, axes, name, "BH")


COMPACT_INPLACE = OpSpec(
    name="compact_inplace",
    family="prune",
    schema="(Tensor(a!) x, Tensor index, Tensor? count=None) -> ()",
    args=(
        Arg("x", "B H N D", MOVED, contiguous="last"),
        Arg("index", "Bi Hi C", I32, contiguous="last"),
        Arg("count", "Bc Hc", I32, optional=True),
    ),
    outs=(),
    reference=reference.compact_inplace,
    flops=lambda axes, bound: 0,
    bytes=_moved,
    depth=lambda axes, bound: 1,
    values=_inplace_values,
    mutates=("x",),
    source="eviction that keeps a cache's own memory",
    doc="the rows that are kept move to the front of their own tensor",
)


def _scatter_values(bound, axes):
    op = "scatter_back"
    axes["K"] = axes["C"]
    for name in ("index", "count") if "B" in axes else ():
        _fits(op, bound, axes, name, "BH")
    name = "N" if bound["aligned"] else "C"
    if bound["x"].shape[-2] != axes[name]:
        got = f"shape {tuple(bound['x'].shape)}"
        as_what = "y" if bound["aligned"] else "index"
        raise bad_value(op, "x", f"{axes[name]} rows, as {as_what}", got)


SCATTER_BACK = OpSpec(
    name="scatter_back",
    family="prune",
    schema=(
        "(Tensor(a!) y, Tensor x, Tensor index, Tensor? count=None, *, bool aligned=False) -> ()"
    ),
    args=(
        Arg("y", "B H N D", MOVED, contiguous="last"),
        Arg("x", "B H K D", MOVED, like="y", contiguous="last"),
        Arg("index", "Bi Hi C", I32, contiguous="last"),
        Arg("count", "Bc Hc", I32, optional=True),
    ),
    outs=(),
    reference=reference.scatter_back,
    flops=lambda axes, bound: 0,
    bytes=_moved,
    depth=lambda axes, bound: 1,
    values=_scatter_values,
    mutates=("y",),
    source="STC's cacher, VideoLLM-MoD: what was computed for some rows goes back to its places",
    doc="rows go back to the places that an index names; all others stay",
)

SPECS = (SIMILARITY, COMPACT, COMPACT_INPLACE, SCATTER_BACK)
