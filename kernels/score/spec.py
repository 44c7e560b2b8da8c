# SPDX-License-Identifier: Apache-2.0
"""Contracts of the scoring ops."""

from __future__ import annotations

import math

import torch

from headrace.contract import F32, FLOATS, I32, Arg, OpSpec, Out
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


def _block_score_flops(axes, bound):
    """Of the products: sums over queries and heads fold into a query where nothing else follows."""
    group, low = axes["Hq"] // axes["Hkv"], 2 if bound["upper"] is not None else 1
    asked = group * axes["W"]
    if min(bound["block_size"], axes["R"]) <= 1 and bound["queries"] != "max":
        asked = 1 if bound["heads"] in ("group", "sum") else group
    return 2 * low * asked * axes["B"] * axes["Hkv"] * axes["R"] * axes["D"]


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
    flops=_block_score_flops,
    bytes=_block_score_bytes,
    depth=_block_score_depth,
    values=_block_score_values,
    source="ReKV, InfLLM (mean), Quest (bounds), V-Rex (sign bits), ColBERT (MaxSim)",
    doc="scores of blocks of cached tokens by their summaries",
)

METRICS = ("cos", "dot", "l2", "hamming")
REDUCE = ("mean", "sum", "max")
STATES = ("total", "low", "high", "unit")


def _steps(x):
    return () if x is None else zip(x.shape, x.stride(), strict=True)


def _segment_values(bound, axes):
    op = "segment_reduce"
    given = [bound[n] for n in (*STATES, "count") if bound[n] is not None]
    if not given:
        raise bad_value(op, "total", "one result or more", "none")
    for name in (*STATES, "count"):
        if bound[name] is not None and bound[name].shape[0] != given[0].shape[0]:
            got = f"shape {tuple(bound[name].shape)}"
            raise bad_value(op, name, f"S = {given[0].shape[0]} segments, as the others", got)
        if any(n > 1 and step == 0 for n, step in _steps(bound[name])):
            got = f"strides {bound[name].stride()}"
            raise bad_value(op, name, "memory of its own for every segment and head", got)
    for name in ("low", "high"):
        if bound[name] is not None and bound[name].dtype not in (torch.float32, bound["x"].dtype):
            got = str(bound[name].dtype).removeprefix("torch.")
            raise bad_type(op, name, "float32, or the dtype of x", got)
    axes["S"] = given[0].shape[0]


def _segment_bytes(axes, bound):
    states = sum(
        2 * bound[n].numel() * bound[n].element_size()
        for n in (*STATES, "count")
        if bound[n] is not None
    )
    return bound["x"].numel() * bound["x"].element_size() + 4 * axes["T"] + states


SEGMENT_REDUCE = OpSpec(
    name="segment_reduce",
    family="score",
    schema=(
        "(Tensor x, Tensor ids, Tensor(a!)? total=None, Tensor(b!)? low=None,"
        " Tensor(c!)? high=None, Tensor(d!)? unit=None, Tensor(e!)? count=None) -> ()"
    ),
    args=(
        Arg("x", "T H D", contiguous="last"),
        Arg("ids", "T", I32),
        Arg("total", "S H D", F32, optional=True, contiguous="last"),
        Arg("low", "S H D", FLOATS, optional=True, contiguous="last"),
        Arg("high", "S H D", FLOATS, optional=True, contiguous="last"),
        Arg("unit", "S H D", F32, optional=True, contiguous="last"),
        Arg("count", "S", I32, optional=True),
    ),
    outs=(),
    reference=reference.segment_reduce,
    flops=lambda axes, bound: bound["x"].numel() * sum(bound[n] is not None for n in STATES),
    bytes=_segment_bytes,
    depth=lambda axes, bound: axes["T"] + axes["D"],
    values=_segment_values,
    mutates=(*STATES, "count"),
    source="ReKV, InfLLM (means), Quest (bounds), KeyDiff and InfiniPot-V (sums of unit vectors)",
    doc="sums, bounds, unit sums and counts of segments of rows, added to what is there",
)


def _mass_values(bound, axes):
    op = "attention_mass"
    if axes["D"] % 16 or axes["D"] == 0:
        raise unsupported(op, "q", "the head dimensions that are multiples of 16", axes["D"])
    if axes["Hkv"] == 0 or axes["Hq"] == 0 or axes["Hq"] % axes["Hkv"]:
        raise bad_value(op, "q", f"query heads that are a multiple of {axes['Hkv']} kv heads",
                        axes["Hq"])  # fmt: skip
    if axes["W"] == 0:
        raise bad_value(op, "q", "1 query or more", 0)
    for name, known in (("reduce", REDUCE), ("pooling", ("mean", "max"))):
        if bound[name] not in known:
            raise bad_value(op, name, "one of " + ", ".join(known), bound[name])
    if bound["exclude"] < 0:
        raise bad_value(op, "exclude", "0 or more", bound["exclude"])
    if bound["pool"] < 1 or bound["pool"] % 2 == 0:
        raise bad_value(op, "pool", "an odd number", bound["pool"])
    for name in ("decay", "scale"):
        if bound[name] is not None and not math.isfinite(bound[name]):
            raise bad_value(op, name, "a finite number", bound[name])
    axes["M"] = max(axes["N"] - bound["exclude"], 0)
    past = bound["past"]
    if past is not None and past.shape[2] > axes["M"]:
        got = f"shape {tuple(past.shape)}"
        raise bad_value(op, "past", f"{axes['M']} keys at most", got)


def _mass_bytes(axes, bound):
    out = 4 * axes["B"] * axes["Hkv"] * axes["M"]
    return (bound["q"].numel() + bound["k"].numel()) * bound["q"].element_size() + out


def _mass_flops(axes, bound):
    return 2 * axes["B"] * axes["Hq"] * axes["W"] * axes["N"] * axes["D"]


ATTENTION_MASS = OpSpec(
    name="attention_mass",
    family="score",
    schema=(
        "(Tensor q, Tensor k, *, Tensor? lse=None, Tensor? past=None, Tensor? lengths=None,"
        " bool causal=True, str reduce='mean', int exclude=0, int pool=1, str pooling='mean',"
        " float decay=1.0, float? scale=None) -> Tensor"
    ),
    args=(
        Arg("q", "B Hq W D", contiguous="last"),
        Arg("k", "B Hkv N D", like="q", contiguous="last"),
        Arg("lse", "B Hq W", F32, optional=True),
        Arg("past", "B Hkv P", F32, optional=True),
        Arg("lengths", "B", I32, optional=True),
    ),
    outs=(Out("B Hkv M", torch.float32),),
    reference=reference.attention_mass,
    flops=_mass_flops,
    bytes=_mass_bytes,
    depth=lambda axes, bound: 8 * axes["D"] + axes["W"] * axes["Hq"] + axes["N"],
    values=_mass_values,
    source="SnapKV, TOVA, H2O, FastV, VisionZip",
    doc="the attention that every cached key receives",
)


def _assign_values(bound, axes):
    op, c = "assign", bound["c"]
    if bound["metric"] not in METRICS:
        raise bad_value(op, "metric", "one of " + ", ".join(METRICS), bound["metric"])
    bits = bound["metric"] == "hamming"
    for name in ("x", "c"):
        if bound[name] is not None and bits != (bound[name].dtype == torch.int32):
            wanted = "int32 for metric hamming" if bits else f"floats for metric {bound['metric']}"
            raise bad_type(op, name, wanted, str(bound[name].dtype).removeprefix("torch."))
    if bits and not 1 <= axes["D"] <= WORDS:
        raise unsupported(op, "x", f"1 to {WORDS} words of bits", axes["D"])
    if not bits and (axes["D"] % 16 or axes["D"] == 0):
        raise unsupported(op, "x", "the widths that are multiples of 16", axes["D"])
    if c is None and not (bound["causal"] or bound["bipartite"]):
        raise bad_value(op, "c", "candidates, or causal or bipartite", "None")
    if bound["bipartite"] and (c is not None or bound["causal"]):
        raise bad_value(op, "bipartite", "no candidates and no causal beside it", "both")
    if c is not None and c.shape[0] not in (1, axes["B"]):
        raise bad_value(op, "c", f"B = {axes['B']}, or 1", f"shape {tuple(c.shape)}")
    if bound["threshold"] is not None and math.isnan(bound["threshold"]):
        raise bad_value(op, "threshold", "a number", bound["threshold"])
    axes["O"] = (axes["N"] + 1) // 2 if bound["bipartite"] else axes["N"]
    axes["C"] = axes["N"] // 2 if bound["bipartite"] else axes["N"] if c is None else c.shape[1]


ASSIGN = OpSpec(
    name="assign",
    family="score",
    schema=(
        "(Tensor x, Tensor? c=None, *, Tensor? lengths=None, str metric='cos',"
        " float? threshold=None, bool causal=False, bool bipartite=False) -> (Tensor, Tensor)"
    ),
    args=(
        Arg("x", "B N D", FLOATS + I32, contiguous="last"),
        Arg("c", "Bc M D", FLOATS + I32, like="x", optional=True, contiguous="last"),
        Arg("lengths", "B", I32, optional=True),
    ),
    outs=(Out("B O", torch.int32), Out("B O", torch.float32)),
    reference=reference.assign,
    flops=lambda axes, bound: 2 * axes["B"] * axes["O"] * axes["C"] * axes["D"],
    bytes=lambda axes, bound: (
        axes["B"] * (axes["O"] + axes["C"]) * axes["D"] * bound["x"].element_size()
        + 8 * axes["B"] * axes["O"]
    ),
    depth=lambda axes, bound: axes["D"],
    values=_assign_values,
    source="ToMe (bipartite cosine), k-means and centroid lookup (L2), V-Rex (Hamming), FluxMem",
    doc="the most similar candidate of every row",
)

SPECS = (BLOCK_SCORE, SEGMENT_REDUCE, ATTENTION_MASS, ASSIGN)
