# SPDX-License-Identifier: Apache-2.0
"""Contract of causal_conv."""

from __future__ import annotations

from headrace.contract import F32, I32, Arg, OpSpec, Out
from headrace.errors import bad_value, unsupported

from . import reference

MAX_TAPS = 16


def _values(bound, axes):
    op, taps = "causal_conv", axes["L"] + 1
    if not 1 <= taps <= MAX_TAPS:
        raise unsupported(op, "weight", f"1 to {MAX_TAPS} taps", taps)
    if axes["B"] < 0:
        raise bad_value(op, "indptr", "at least one offset", "none")


SPEC = OpSpec(
    name="causal_conv",
    family="causal_conv",
    schema=(
        "(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) state, Tensor indptr, Tensor rows, *,"
        " bool silu=True) -> Tensor"
    ),
    args=(
        Arg("x", "T C", contiguous="last"),
        Arg("weight", "C L+1", F32, contiguous="all"),
        Arg("bias", "C", F32, optional=True, contiguous="all"),
        Arg("state", "S C L", like="x", contiguous="all"),
        Arg("indptr", "B+1", I32, contiguous="all"),
        Arg("rows", "B", I32, contiguous="all"),
    ),
    outs=(Out("T C", "x"),),
    reference=reference.causal_conv,
    flops=lambda axes, bound: 2 * axes["T"] * axes["C"] * (axes["L"] + 1),
    bytes=lambda axes, bound: (
        2 * axes["C"] * (axes["T"] + axes["B"] * axes["L"]) * bound["x"].element_size()
        + 4 * axes["C"] * (axes["L"] + 1)
    ),
    depth=lambda axes, bound: axes["L"] + 2,
    values=_values,
    mutates=("state",),
    source="the short convolutions of Mamba (Gu and Dao, 2023) and gated delta nets",
    doc="depthwise causal convolution over streams, with the last inputs of each kept as state",
)

SPECS = (SPEC,)
