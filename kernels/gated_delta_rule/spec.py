# SPDX-License-Identifier: Apache-2.0
"""Contract of gated_delta_rule."""

from __future__ import annotations

from headrace.contract import F32, I32, Arg, OpSpec, Out
from headrace.errors import bad_value, unsupported

from . import reference

OP = "gated_delta_rule"


def _values(bound, axes):
    if axes["H"] == 0 or axes["HV"] % axes["H"]:
        raise bad_value(OP, "v", f"a multiple of {axes['H']} heads", axes["HV"])
    for name, axis in (("q", "D"), ("v", "V")):
        if axes[axis] == 0 or axes[axis] % 16 or axes[axis] > 256:
            raise unsupported(OP, name, "last axes that are multiples of 16 up to 256", axes[axis])


def _bytes(axes, bound):
    tokens = sum(bound[x].numel() for x in "qkvv") * bound["q"].element_size()
    gates = 8 * axes["T"] * axes["HV"]
    return tokens + gates + 8 * axes["B"] * axes["HV"] * axes["D"] * axes["V"]


GATED_DELTA_RULE = OpSpec(
    name="gated_delta_rule",
    family="gated_delta_rule",
    schema=(
        "(Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor beta, Tensor(a!) state,"
        " Tensor indptr, Tensor rows, *, float? scale=None, bool normalize=True) -> Tensor"
    ),
    args=(
        Arg("q", "T H D", contiguous="last"),
        Arg("k", "T H D", like="q", contiguous="last"),
        Arg("v", "T HV V", like="q", contiguous="last"),
        Arg("log_decay", "T HV", F32, contiguous="all"),
        Arg("beta", "T HV", F32, contiguous="all"),
        Arg("state", "S HV D V", F32, contiguous="all"),
        Arg("indptr", "B+1", I32, contiguous="all"),
        Arg("rows", "B", I32, contiguous="all"),
    ),
    outs=(Out("T HV V", "v"),),
    reference=reference.gated_delta_rule,
    flops=lambda axes, bound: 6 * axes["T"] * axes["HV"] * axes["D"] * axes["V"],
    bytes=_bytes,
    depth=lambda axes, bound: 4 * (axes["D"] + axes["T"]),
    values=_values,
    mutates=("state",),
    source="Gated Delta Networks (Yang et al., 2024)",
    doc="linear attention that forgets by a gate and corrects what a key already holds",
)

SPECS = (GATED_DELTA_RULE,)
