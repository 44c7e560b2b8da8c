# SPDX-License-Identifier: Apache-2.0
"""Contract of the batch-invariant matrix product."""

from __future__ import annotations

from headrace.contract import Arg, OpSpec, Out

from . import reference


def _bytes(axes, bound):
    x, w = bound["x"], bound["weight"]
    return (axes["T"] * (axes["K"] + axes["N"])) * x.element_size() + w.numel() * w.element_size()


LINEAR = OpSpec(
    name="linear",
    family="linear",
    schema="(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor",
    args=(
        Arg("x", "T K", contiguous="last"),
        Arg("weight", "N K", contiguous="last"),
        Arg("bias", "N", like="weight", optional=True, contiguous="all"),
    ),
    outs=(Out("T N", "x"),),
    reference=reference.linear,
    flops=lambda axes, bound: 2 * axes["T"] * axes["K"] * axes["N"],
    bytes=_bytes,
    depth=lambda axes, bound: axes["K"],
    source="batch invariance: Thinking Machines, Defeating Nondeterminism in LLM Inference (2025)",
    doc="matrix product whose row bits do not depend on the other rows",
)

SPECS = (LINEAR,)
