# SPDX-License-Identifier: Apache-2.0
"""Contracts of the delta family."""

from __future__ import annotations

from headrace.contract import F32, I32, Arg, OpSpec, Out
from headrace.errors import bad_value, unsupported

from . import reference

FRAME, GATED = "frame_delta_rule", "gated_delta_rule"


def _values(bound, axes):
    if axes["H"] == 0 or axes["HV"] % axes["H"]:
        raise bad_value(FRAME, "v", f"a multiple of {axes['H']} heads", axes["HV"])
    for name, axis in (("q", "K"), ("v", "V")):
        if axes[axis] == 0 or axes[axis] % 16 or axes[axis] > 512:
            raise unsupported(FRAME, name, f"{axis} a multiple of 16 up to 512", axes[axis])
    if (bound["q_hat"] is None) != (bound["k_hat"] is None):
        raise bad_value(FRAME, "k_hat", "both of q_hat and k_hat, or neither", "one")


def _flops(axes, bound):
    return 2 * axes["T"] * axes["HV"] * axes["K"] * (3 * axes["V"] + 3)


def _traffic(axes, bound):
    names = ("q", "k", "v", "q_hat", "k_hat", "beta", "log_decay")
    read = sum(bound[x].numel() * bound[x].element_size() for x in names if bound[x] is not None)
    passes = 2 if bound["update"] else 1
    states = axes["B"] * axes["HV"] * axes["K"] * (axes["V"] + 1)
    return read + bound["v"].numel() * bound["v"].element_size() + 4 * passes * states


FRAME_DELTA_RULE = OpSpec(
    name="frame_delta_rule",
    family="delta",
    schema=(
        "(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor(a!) state, Tensor(b!) norm,"
        " Tensor frames, Tensor indptr, Tensor rows, *, Tensor? log_decay=None,"
        " Tensor? q_hat=None, Tensor? k_hat=None, bool update=True, float eps=1e-06) -> Tensor"
    ),
    args=(
        Arg("q", "T H K", contiguous="last"),
        Arg("k", "T H K", like="q", contiguous="last"),
        Arg("v", "T HV V", like="q", contiguous="last"),
        Arg("beta", "T HV", F32, contiguous="all"),
        Arg("state", "S HV K V", F32, contiguous="all"),
        Arg("norm", "S HV K", F32, contiguous="all"),
        Arg("frames", "F+1", I32, contiguous="all"),
        Arg("indptr", "B+1", I32, contiguous="all"),
        Arg("rows", "B", I32, contiguous="all"),
        Arg("log_decay", "F HV", F32, optional=True, contiguous="all"),
        Arg("q_hat", "T H K", like="q", optional=True, contiguous="last"),
        Arg("k_hat", "T H K", like="q", optional=True, contiguous="last"),
    ),
    outs=(Out("T HV V", "v"),),
    reference=reference.frame_delta_rule,
    flops=_flops,
    bytes=_traffic,
    depth=lambda axes, bound: axes["K"] + axes["T"],
    values=_values,
    mutates=("state", "norm"),
    source="SANA-Streaming (NVlabs/Sana, frame-wise gated delta net); Yang et al. (2024)",
    doc="gated delta rule over frames, parallel inside a frame, with a normaliser of its own",
)


def _gated_values(bound, axes):
    if axes["H"] == 0 or axes["HV"] % axes["H"]:
        raise bad_value(GATED, "v", f"a multiple of {axes['H']} heads", axes["HV"])
    for name, axis in (("q", "D"), ("v", "V")):
        if axes[axis] == 0 or axes[axis] % 16 or axes[axis] > 256:
            raise unsupported(
                GATED, name, "last axes that are multiples of 16 up to 256", axes[axis]
            )


def _gated_bytes(axes, bound):
    tokens = sum(bound[x].numel() for x in "qkvv") * bound["q"].element_size()
    gates = 8 * axes["T"] * axes["HV"]
    return tokens + gates + 8 * axes["B"] * axes["HV"] * axes["D"] * axes["V"]


GATED_DELTA_RULE = OpSpec(
    name="gated_delta_rule",
    family="delta",
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
    bytes=_gated_bytes,
    depth=lambda axes, bound: 4 * (axes["D"] + axes["T"]),
    values=_gated_values,
    mutates=("state",),
    source="Gated Delta Networks (Yang et al., 2024)",
    doc="linear attention that forgets by a gate and corrects what a key already holds",
)

SPECS = (FRAME_DELTA_RULE, GATED_DELTA_RULE)
