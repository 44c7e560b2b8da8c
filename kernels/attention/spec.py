# SPDX-License-Identifier: Apache-2.0
"""Contracts of the attention ops."""

from __future__ import annotations

import math

import torch

from headrace.contract import F32, F64, I32, I64, PAGES, QUANTISED, Arg, OpSpec, Out
from headrace.errors import bad_value, unsupported

from . import reference
from .least import dense_pairs, slots_read, view_pairs

BOOL = (torch.bool,)
HEAD_DIMS = "multiples of 16 from 16 to 256"


def _heads(op, axes, dim_arg="q"):
    if axes["D"] % 16 or not 16 <= axes["D"] <= 256:
        raise unsupported(op, dim_arg, f"the head dimensions {HEAD_DIMS}", axes["D"])
    if "Hq" in axes and (axes["Hkv"] == 0 or axes["Hq"] % axes["Hkv"]):
        raise bad_value(
            op, dim_arg, f"query heads that are a multiple of {axes['Hkv']} kv heads", axes["Hq"]
        )


def _rotary(op, bound, axes, dimensions):
    inv_freq, freq_axis = bound.get("inv_freq"), bound.get("freq_axis")
    if inv_freq is not None and 2 * inv_freq.numel() > axes["D"]:
        raise bad_value(op, "inv_freq", f"at most {axes['D'] // 2} frequencies", inv_freq.numel())
    needed = inv_freq is not None and dimensions == 3
    if needed and freq_axis is None:
        raise bad_value(op, "freq_axis", "the axis of every frequency, with 3 axes", "None")
    if not needed and freq_axis is not None:
        have = "1 axis" if dimensions == 1 else "no inv_freq"
        raise bad_value(op, "freq_axis", f"None, with {have}", "a tensor")


def _scales(op, bound, axes):
    pages, scales = bound["k_pages"], (bound["k_scale"], bound["v_scale"])
    for name, scale in zip(("k_scale", "v_scale"), scales, strict=True):
        if scale is None and pages.dtype in QUANTISED:
            kind = str(pages.dtype).removeprefix("torch.")
            raise bad_value(op, name, f"a scale, for pages of {kind}", "None")
        if scale is not None and pages.dtype not in QUANTISED:
            kind = str(pages.dtype).removeprefix("torch.")
            raise bad_value(op, name, f"None, for pages of {kind}", "a tensor")
        if scale is not None and scale.shape[2] not in (1, axes["P"]):
            want = f"one scale for a page or {axes['P']}, one for a slot"
            raise bad_value(op, name, want, f"shape {tuple(scale.shape)}")


def _lists(op, bound, axes):
    """Sets Hkv and G, the lists of entries per stream: 1, or one for every kv head."""
    streams, lists, own = axes["B"], axes["L"], axes["Hp"]
    if own == 0:
        raise bad_value(op, "k_pages", "1 kv head or more", 0)
    each = max(lists // streams, 1) if streams else 1
    if own > 1 and each != 1:
        axes["G"] = axes["Hkv"] = own
    else:
        axes["G"], axes["Hkv"] = each, max(own, each)
    if lists != streams * axes["G"]:
        heads = f" or B*Hkv+1 = {streams * own + 1}" if own > 1 else ""
        want = f"B+1 = {streams + 1}{heads} elements"
        raise bad_value(op, "entry_indptr", want, lists + 1)


def _common(op, bound):
    if not 0 <= bound["softcap"] < math.inf:
        raise bad_value(op, "softcap", "0 (off) or a finite number above", bound["softcap"])
    if bound["scale"] is not None and not math.isfinite(bound["scale"]):
        raise bad_value(op, "scale", "a finite number or None", bound["scale"])
    if bound.get("split", 1) < 1:
        raise bad_value(op, "split", "1 token or more", bound["split"])
    if (bound.get("max_rows") or 0) < 0:
        raise bad_value(op, "max_rows", "0 rows or more, or None", bound["max_rows"])


def _attention_values(bound, axes):
    _heads("attention", axes)
    _common("attention", bound)
    window, sinks = bound["window"], bound["sinks"]
    if window is not None and window < 1:
        raise bad_value(
            "attention",
            "window",
            "1 or more, or None",
            window,
            "the window counts the query itself",
        )
    if sinks < 0:
        raise bad_value("attention", "sinks", "0 or more", sinks)
    mask, size = bound["block_mask"], bound["block_size"]
    if size < 1:
        raise bad_value("attention", "block_size", "1 or more", size)
    if mask is not None:
        want = (axes["B"], axes["Hq"], -(-axes["Lq"] // size), -(-axes["Lk"] // size))
        fits = all(n in (w, 1) for n, w in zip(mask.shape[:2], want, strict=False))
        if not fits or tuple(mask.shape[2:]) != want[2:]:
            shape = f"[{want[0]}|1, {want[1]}|1, {want[2]}, {want[3]}]"
            raise bad_value("attention", "block_mask", shape, f"shape {tuple(mask.shape)}")


def _paged_values(bound, axes):
    _lists("paged_attention", bound, axes)
    _heads("paged_attention", axes)
    _common("paged_attention", bound)
    dimensions = 1 if bound["q_pos"].dim() == 1 else 3
    columns = bound["entries"].shape[1]
    if columns != (7 if dimensions == 1 else 11):
        want = f"[T, 3] with entries [E, {columns}]" if columns == 11 else "[T] with entries [E, 7]"
        got = f"shape {tuple(bound['q_pos'].shape)}"
        raise bad_value("paged_attention", "q_pos", want, got)
    if dimensions == 3 and bound["q_order"] is None:
        raise bad_value(
            "paged_attention", "q_order", "the orders of the queries, with 3 axes", "None"
        )
    _rotary("paged_attention", bound, axes, dimensions)
    _scales("paged_attention", bound, axes)
    if not math.isfinite(bound["rope_gain"]):
        raise bad_value("paged_attention", "rope_gain", "a finite number", bound["rope_gain"])
    if axes["P"] % 16 or axes["P"] == 0:
        raise unsupported("paged_attention", "k_pages", "page sizes that 16 divides", axes["P"])


def check_append(op, bound, axes):
    """Refuses what append takes but no kernel serves, for every op that appends."""
    _heads(op, axes, "k")
    _rotary(op, bound, axes, 1 if bound["where"].shape[1] == 3 else 3)
    _scales(op, bound, axes)
    if axes["P"] % 16 or axes["P"] == 0:
        raise unsupported(op, "k_pages", "page sizes that 16 divides", axes["P"])


def _append_values(bound, axes):
    check_append("append", bound, axes)


def _merge_values(bound, axes):
    if axes["D"] % 16:
        raise unsupported("merge_states", "o_a", "last axes that 16 divides", axes["D"])


def _paged_bytes(axes, bound):
    row = axes["D"] * bound["k_pages"].element_size()
    if bound["k_scale"] is not None and bound["k_scale"].shape[2] > 1:
        row += 4
    kv = 2 * slots_read(axes, bound) * (axes["Hkv"] // max(axes["G"], 1)) * row
    return kv + 2 * bound["q"].numel() * bound["q"].element_size()


ATTENTION = OpSpec(
    name="attention",
    family="attention",
    schema=(
        "(Tensor q, Tensor k, Tensor v, *, int? window=None, int sinks=0, Tensor? sink_logits=None,"
        " bool causal=True, float? scale=None, float softcap=0.0, Tensor? block_mask=None,"
        " int block_size=64, int split=4096)"
        " -> (Tensor, Tensor)"
    ),
    args=(
        Arg("q", "B Hq Lq D", contiguous="last"),
        Arg("k", "B Hkv Lk D", like="q", contiguous="last"),
        Arg("v", "B Hkv Lk D", like="q", contiguous="last"),
        Arg("sink_logits", "Hq", F32, optional=True, contiguous="all"),
        Arg("block_mask", "mB mH mQ mK", BOOL, optional=True),
    ),
    outs=(Out("B Hq Lq D", "q"), Out("B Hq Lq", F32[0])),
    reference=reference.attention,
    flops=lambda axes, bound: 4 * axes["B"] * axes["Hq"] * axes["D"] * dense_pairs(axes, bound),
    bytes=lambda axes, bound: (
        2 * (bound["q"].numel() + bound["k"].numel()) * bound["q"].element_size()
    ),
    depth=lambda axes, bound: axes["Lk"] + axes["D"],
    values=_attention_values,
    source="sinks: Xiao et al., Efficient Streaming Language Models with Attention Sinks (2023)",
    doc="windowed, block-sparse attention with sinks, in scaled_dot_product_attention's layout",
)

PAGED_ATTENTION = OpSpec(
    name="paged_attention",
    family="attention",
    schema=(
        "(Tensor q, Tensor k_pages, Tensor v_pages, Tensor entries, Tensor entry_indptr,"
        " Tensor q_indptr, Tensor q_pos, *, Tensor? q_order=None, Tensor? inv_freq=None,"
        " float? scale=None, float softcap=0.0, Tensor? sink_logits=None, Tensor? freq_axis=None,"
        " float rope_gain=1.0, Tensor? k_scale=None, Tensor? v_scale=None, int split=1024,"
        " int? max_rows=None)"
        " -> (Tensor, Tensor)"
    ),
    args=(
        Arg("q", "T Hq D", contiguous="last"),
        Arg("k_pages", "N Hp D P", PAGES),
        Arg("v_pages", "N Hp P D", PAGES, like="k_pages"),
        Arg("entries", "E 7|11", I64, contiguous="all"),
        Arg("entry_indptr", "L+1", I32, contiguous="all"),
        Arg("q_indptr", "B+1", I32, contiguous="all"),
        Arg("q_pos", "T 3?", I64, contiguous="all"),
        Arg("q_order", "T", I64, optional=True, contiguous="all"),
        Arg("inv_freq", "R", F64, optional=True, contiguous="all"),
        Arg("freq_axis", "R", I32, optional=True, contiguous="all"),
        Arg("sink_logits", "Hq", F32, optional=True, contiguous="all"),
        Arg("k_scale", "N Hp S", F32, optional=True, contiguous="last"),
        Arg("v_scale", "N Hp S", F32, optional=True, contiguous="last"),
    ),
    outs=(Out("T Hq D", "q"), Out("T Hq", F32[0])),
    reference=reference.paged_attention,
    flops=lambda axes, bound: 4 * axes["Hq"] * axes["D"] * view_pairs(bound),
    bytes=_paged_bytes,
    depth=lambda axes, bound: axes["E"] * axes["P"] + axes["D"],
    values=_paged_values,
    gpu=("triton", "cuda"),
    source="query-side rotation: ReKV (2025), InfLLM (2024), one angle per block; here per entry",
    doc="attention over a view: sinks, windows and shared or retrieved pages in one softmax",
)

APPEND = OpSpec(
    name="append",
    family="attention",
    schema=(
        "(Tensor k, Tensor v, Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor where, *,"
        " Tensor? inv_freq=None, Tensor? freq_axis=None, Tensor(c!)? k_scale=None,"
        " Tensor(d!)? v_scale=None) -> ()"
    ),
    args=(
        Arg("k", "T Hkv D", contiguous="last"),
        Arg("v", "T Hkv D", like="k", contiguous="last"),
        Arg("k_pages", "N Hkv D P", PAGES),
        Arg("v_pages", "N Hkv P D", PAGES, like="k_pages"),
        Arg("where", "T 3|5", I64, contiguous="all"),
        Arg("inv_freq", "R", F64, optional=True, contiguous="all"),
        Arg("freq_axis", "R", I32, optional=True, contiguous="all"),
        Arg("k_scale", "N Hkv S", F32, optional=True, contiguous="last"),
        Arg("v_scale", "N Hkv S", F32, optional=True, contiguous="last"),
    ),
    outs=(),
    reference=reference.append,
    flops=lambda axes, bound: 3 * axes["T"] * axes["Hkv"] * axes["D"],
    bytes=lambda axes, bound: (
        2 * bound["k"].numel() * (bound["k"].element_size() + bound["k_pages"].element_size())
    ),
    depth=lambda axes, bound: 2,
    values=_append_values,
    mutates=("k_pages", "v_pages", "k_scale", "v_scale"),
    gpu=("triton", "cuda"),
    doc="rotates keys about the origin of their page and writes keys and values into their slots",
)

MERGE_STATES = OpSpec(
    name="merge_states",
    family="attention",
    schema="(Tensor o_a, Tensor lse_a, Tensor o_b, Tensor lse_b) -> (Tensor, Tensor)",
    args=(
        Arg("o_a", "T H D", contiguous="all"),
        Arg("lse_a", "T H", F32, contiguous="all"),
        Arg("o_b", "T H D", like="o_a", contiguous="all"),
        Arg("lse_b", "T H", F32, contiguous="all"),
    ),
    outs=(Out("T H D", "o_a"), Out("T H", F32[0])),
    reference=reference.merge_states,
    flops=lambda axes, bound: 3 * bound["o_a"].numel(),
    bytes=lambda axes, bound: 3 * bound["o_a"].numel() * bound["o_a"].element_size(),
    depth=lambda axes, bound: 2,
    values=_merge_values,
    gpu=("triton", "cuda"),
    source="FlashInfer (Ye et al., 2025), recursive attention states; natural logarithm here",
    doc="one attention state out of the states of two disjoint sets of keys",
)

SPECS = (ATTENTION, PAGED_ATTENTION, APPEND, MERGE_STATES)
