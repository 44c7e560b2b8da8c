# SPDX-License-Identifier: Apache-2.0
"""Contract of append_absorb."""

from __future__ import annotations

from headrace.kernels.attention.spec import check_append

from headrace.contract import F32, F64, I32, I64, PAGES, Arg, OpSpec
from headrace.errors import bad_value

from . import reference

OP, FEATURES = "append_absorb", 3


def _values(bound, axes):
    check_append(OP, bound, axes)
    offsets = bound["where"].shape[1] - 2
    if bound["evicted"].shape[1] != 1 + 2 * offsets:
        want = f"[T, {1 + 2 * offsets}] with where [T, {2 + offsets}]"
        raise bad_value(OP, "evicted", want, f"shape {tuple(bound['evicted'].shape)}")
    if not 0 <= bound["feature"] < FEATURES:
        raise bad_value(OP, "feature", "0 (none), 1 (relu) or 2 (elu1)", bound["feature"])


def _traffic(axes, bound):
    """Of tokens whose slots all hold one: rows in, slots read and written, states twice."""
    rows = 2 * bound["k"].numel()
    sums = axes["B"] * axes["Hkv"] * axes["D"] * (axes["D"] + (bound["norm"] is not None))
    slots = 2 * rows * bound["k_pages"].element_size()
    return rows * bound["k"].element_size() + slots + 8 * sums


APPEND_ABSORB = OpSpec(
    name="append_absorb",
    family="append_absorb",
    schema=(
        "(Tensor k, Tensor v, Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor where,"
        " Tensor evicted, Tensor(c!) state, Tensor(d!)? norm, Tensor indptr, Tensor rows, *,"
        " Tensor? inv_freq=None, Tensor? freq_axis=None, Tensor(e!)? k_scale=None,"
        " Tensor(f!)? v_scale=None, Tensor? log_decay=None, Tensor(g!)? count=None,"
        " int feature=1, bool raw=False) -> ()"
    ),
    args=(
        Arg("k", "T Hkv D", contiguous="last"),
        Arg("v", "T Hkv D", like="k", contiguous="last"),
        Arg("k_pages", "N Hkv D P", PAGES),
        Arg("v_pages", "N Hkv P D", PAGES, like="k_pages"),
        Arg("where", "T 3|5", I64, contiguous="all"),
        Arg("evicted", "T 3|7", I64, contiguous="all"),
        Arg("state", "S Hkv D D", F32, contiguous="all"),
        Arg("norm", "S Hkv D", F32, optional=True, contiguous="all"),
        Arg("indptr", "B+1", I32, contiguous="all"),
        Arg("rows", "B", I32, contiguous="all"),
        Arg("inv_freq", "R", F64, optional=True, contiguous="all"),
        Arg("freq_axis", "R", I32, optional=True, contiguous="all"),
        Arg("k_scale", "N Hkv S1", F32, optional=True, contiguous="last"),
        Arg("v_scale", "N Hkv S1", F32, optional=True, contiguous="last"),
        Arg("log_decay", "Hkv", F32, optional=True, contiguous="all"),
        Arg("count", "S", I64, optional=True, contiguous="all"),
    ),
    outs=(),
    reference=reference.append_absorb,
    flops=lambda axes, bound: 2 * axes["T"] * axes["Hkv"] * axes["D"] * (axes["D"] + 3),
    bytes=_traffic,
    depth=lambda axes, bound: axes["T"],
    values=_values,
    mutates=("k_pages", "v_pages", "state", "norm", "k_scale", "v_scale", "count"),
    source="Hybrid Forcing (leeruibin/hybrid-forcing); here one visit to a slot, and fp32 sums",
    doc="append, and what the slots held is folded into the state of a linear attention",
)

SPECS = (APPEND_ABSORB,)
