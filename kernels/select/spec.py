# SPDX-License-Identifier: Apache-2.0
"""Contract of selection by score."""

from __future__ import annotations

import math

import torch

from headrace.contract import F32, I32, Arg, OpSpec, Out
from headrace.errors import bad_value

from . import reference

NAME = "select"
POLICIES = ("top_k", "threshold", "share", "mass", "otsu", "quota", "flat")


def _spread(bound, axes, *names):
    """The leading axes of an optional argument are those of the scores, or 1."""
    for name in names:
        if bound[name] is None:
            continue
        shape = bound[name].shape
        for i, axis in enumerate("BH"):
            if shape[i] not in (axes[axis], 1):
                expected = f"{axis} = {axes[axis]}, or 1"
                raise bad_value(NAME, name, expected, f"shape {tuple(shape)}")


def _values(bound, axes):
    policy = bound["policy"]
    if policy not in POLICIES:
        raise bad_value(NAME, "policy", "one of " + ", ".join(POLICIES), policy)
    if policy in ("top_k", "flat") and bound["k"] is None and bound["budget"] is None:
        raise bad_value(NAME, "k", f"a number, or budget, for policy {policy}", "None")
    if bound["k"] is not None and bound["budget"] is not None:
        raise bad_value(NAME, "budget", "k or budget, not both", "both")
    if policy == "quota" and bound["buckets"] is None:
        raise bad_value(NAME, "buckets", "int32 ids for policy quota", "None")
    for name in ("share", "mass"):
        if not 0.0 <= bound[name] <= 1.0:
            raise bad_value(NAME, name, "a number from 0 to 1", bound[name])
    if math.isnan(bound["threshold"]):
        raise bad_value(NAME, "threshold", "a number", bound["threshold"])
    for name in ("k", "quota", "floor", "first", "last", "capacity"):
        if bound[name] is not None and bound[name] < 0:
            raise bad_value(NAME, name, "0 or more", bound[name])
    _spread(bound, axes, "budget", "counts", "buckets", "forced", "lengths")
    if policy == "flat" and bound["budget"] is not None and bound["budget"].shape[1] != 1:
        got = f"shape {tuple(bound['budget'].shape)}"
        raise bad_value(NAME, "budget", "one number for all heads in policy flat", got)
    axes["K"] = bound["capacity"]
    if axes["K"] is None:
        whole = bound["k"] is None or policy == "flat"
        axes["K"] = axes["N"] if whole else min(axes["N"], bound["k"])


def _bytes(axes, bound):
    rows = axes["B"] * axes["H"]
    read = rows * axes["N"] * bound["score"].element_size()
    extra = (bound[n] for n in ("counts", "buckets"))
    return read + sum(4 * x.numel() for x in extra if x is not None) + 4 * rows * (axes["K"] + 1)


SELECT = OpSpec(
    name="select",
    family="select",
    schema=(
        "(Tensor score, str policy='top_k', *, int? k=None, Tensor? budget=None,"
        " float threshold=0.0, float share=1.0, float mass=1.0, Tensor? counts=None,"
        " Tensor? buckets=None, int quota=1, int floor=0, int first=0, int last=0,"
        " Tensor? forced=None, Tensor? lengths=None, bool lowest=False, int? capacity=None)"
        " -> (Tensor, Tensor)"
    ),
    args=(
        Arg("score", "B H N", contiguous="last"),
        Arg("budget", "Bk Hk", I32, optional=True),
        Arg("counts", "Bc Hc N", F32, optional=True, contiguous="last"),
        Arg("buckets", "Bb Hb N", I32, optional=True, contiguous="last"),
        Arg("forced", "Bf Hf M 2", I32, optional=True),
        Arg("lengths", "Bl Hl", I32, optional=True),
    ),
    outs=(Out("B H K", torch.int32), Out("B H", torch.int32)),
    reference=reference.select,
    flops=lambda axes, bound: axes["B"] * axes["H"] * axes["N"],
    bytes=_bytes,
    depth=lambda axes, bound: 1,
    values=_values,
    source="policies of EVS, LiveVLM, AdaKV, FluxMem and V-Rex as one selector",
    doc="ascending indices of what a policy keeps by score, and how many",
)

SPECS = (SELECT,)
