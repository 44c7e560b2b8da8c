# SPDX-License-Identifier: Apache-2.0
"""Contract of linear_attention."""

from __future__ import annotations

from headrace.contract import F32, F64, I32, I64, Arg, OpSpec, Out
from headrace.errors import bad_value, unsupported

from . import reference

OP, FEATURES = "linear_attention", 3


def _values(bound, axes):
    if axes["Hkv"] == 0 or axes["H"] % axes["Hkv"]:
        raise bad_value(OP, "q", f"a multiple of {axes['Hkv']} heads", axes["H"])
    for name, axis in (("q", "D"), ("state", "Dv")):
        if axes[axis] == 0 or axes[axis] % 16 or axes[axis] > 512:
            raise unsupported(OP, name, f"{axis} a multiple of 16 up to 512", axes[axis])
    if (bound["k"] is None) != (bound["v"] is None):
        raise bad_value(OP, "v", "both of k and v, or neither", "one")
    if (bound["inv_freq"] is None) != (bound["offset"] is None):
        raise bad_value(OP, "offset", "both of inv_freq and offset, or neither", "one")
    turns = 0 if bound["inv_freq"] is None else bound["inv_freq"].numel()
    if 2 * turns > axes["D"]:
        raise bad_value(OP, "inv_freq", f"at most {axes['D'] // 2} frequencies", turns)
    if not 0 <= bound["feature"] < FEATURES:
        raise bad_value(OP, "feature", "0 (none), 1 (relu) or 2 (elu1)", bound["feature"])
    if bound["k"] is None and bound["log_decay"] is not None:
        raise bad_value(OP, "log_decay", "None where no keys come in", "a decay")


def _flops(axes, bound):
    each = axes["D"] * axes["Dv"]
    keys = 0 if bound["k"] is None else axes["Hkv"]
    return 2 * axes["T"] * each * (axes["H"] + keys)


def _traffic(axes, bound):
    tokens = sum(bound[x].numel() * bound[x].element_size() for x in "qkv" if bound[x] is not None)
    tokens += axes["T"] * axes["H"] * axes["Dv"] * bound["q"].element_size()
    passes = 1 if bound["k"] is None else 2
    return tokens + 4 * passes * axes["B"] * axes["Hkv"] * axes["D"] * (axes["Dv"] + 1)


SPEC = OpSpec(
    name="linear_attention",
    family="linear_attention",
    schema=(
        "(Tensor q, Tensor? k, Tensor? v, Tensor(a!) state, Tensor(b!)? norm, Tensor indptr,"
        " Tensor rows, *, Tensor? log_decay=None, Tensor? inv_freq=None, Tensor? offset=None,"
        " Tensor? count=None, int feature=1, bool raw=False, float scale=1.0, float eps=1e-06)"
        " -> Tensor"
    ),
    args=(
        Arg("q", "T H D", contiguous="last"),
        Arg("state", "S Hkv D Dv", F32, contiguous="all"),
        Arg("k", "T Hkv D", like="q", optional=True, contiguous="last"),
        Arg("v", "T Hkv Dv", like="q", optional=True, contiguous="last"),
        Arg("norm", "S Hkv D", F32, optional=True, contiguous="all"),
        Arg("indptr", "B+1", I32, contiguous="all"),
        Arg("rows", "B", I32, contiguous="all"),
        Arg("log_decay", "Hkv", F32, optional=True, contiguous="all"),
        Arg("inv_freq", "R", F64, optional=True, contiguous="all"),
        Arg("offset", "T", I64, optional=True, contiguous="all"),
        Arg("count", "S", I64, optional=True, contiguous="all"),
    ),
    outs=(Out("T H Dv", "q"),),
    reference=reference.linear_attention,
    flops=_flops,
    bytes=_traffic,
    depth=lambda axes, bound: axes["D"] + axes["T"],
    values=_values,
    mutates=("state", "norm"),
    source=("Katharopoulos et al. (2020), RetNet (Sun et al., 2023), Hybrid Forcing"),
    doc="causal linear attention and retention with sums as state; read-out without keys",
)

SPECS = (SPEC,)
