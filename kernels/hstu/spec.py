# SPDX-License-Identifier: Apache-2.0
"""Contract of HSTU's pointwise attention."""

from __future__ import annotations

import math

from headrace.contract import F32, I32, I64, Arg, OpSpec, Out
from headrace.errors import bad_value, unsupported

from . import reference

RULES = ("causal", "max_attn_len", "contextual_seq_len", "min_full_attn_seq_len", "sinks")
OP = "hstu_attention"


def _values(bound, axes):
    for arg, axis in (("q", "D"), ("v", "Dv")):
        if axes[axis] % 16 or not 16 <= axes[axis] <= 256:
            raise unsupported(
                OP, arg, "the head dimensions multiples of 16 from 16 to 256", axes[axis]
            )
    if bound["q_indptr"] is None and axes["Lq"] != axes["Lk"]:
        raise bad_value(
            OP,
            "q",
            f"Lq = {axes['Lk']} in [Lq H D], as there are keys",
            axes["Lq"],
            "give q_indptr when q holds new rows only",
        )
    if not math.isfinite(bound["alpha"]):
        raise bad_value(OP, "alpha", "a finite number", bound["alpha"])
    for arg in ("max_seq_len", "split"):
        if bound[arg] < 1:
            raise bad_value(OP, arg, "1 or more", bound[arg])
    for arg in RULES[1:]:
        if bound[arg] < 0:
            raise bad_value(OP, arg, "0 or more", bound[arg])


def pairs(bound):
    """Visible (row, key) pairs of one head, and the most keys that one row sees."""
    total = most = 0
    for _, _, t, o, history in reference.sequences(
        *(bound[x] for x in ("k_indptr", "q_indptr", "num_targets", "k_order"))
    ):
        for some in t.split(1024):
            seen = reference.visible(some, o, history, **{x: bound[x] for x in RULES}).sum(1)
            total, most = total + int(seen.sum()), max(most, *seen.tolist(), 0)
    return total, most


def _bytes(axes, bound):
    tokens = (axes["Lq"] + axes["Lk"]) * (axes["D"] + axes["Dv"])
    return tokens * axes["H"] * bound["q"].element_size()


HSTU_ATTENTION = OpSpec(
    name="hstu_attention",
    family="hstu",
    schema="(Tensor q, Tensor k, Tensor v, Tensor k_indptr, Tensor? q_indptr=None, "
    "Tensor? num_targets=None, Tensor? k_order=None, Tensor? attn_scale=None, *, "
    "int max_seq_len, float alpha, bool causal=True, int max_attn_len=0, "
    "int contextual_seq_len=0, int min_full_attn_seq_len=0, int sinks=0, int split=2048)"
    " -> Tensor",
    args=(
        Arg("q", "Lq H D", contiguous="last"),
        Arg("k", "Lk H D", like="q", contiguous="last"),
        Arg("v", "Lk H Dv", like="q", contiguous="last"),
        Arg("k_indptr", "B+1", I32, contiguous="all"),
        Arg("q_indptr", "B+1", I32, optional=True, contiguous="all"),
        Arg("num_targets", "B", I32, optional=True, contiguous="all"),
        Arg("k_order", "Lk", I64, optional=True, contiguous="all"),
        Arg("attn_scale", "Lq", F32, optional=True, contiguous="all"),
    ),
    outs=(Out("Lq H Dv", "q"),),
    reference=reference.hstu_attention,
    flops=lambda axes, bound: 2 * pairs(bound)[0] * axes["H"] * (axes["D"] + axes["Dv"]),
    bytes=_bytes,
    depth=lambda axes, bound: axes["D"] + pairs(bound)[1],
    values=_values,
    source="Zhai et al., Actions Speak Louder than Words (2024); generative-recommenders",
    doc="pointwise silu attention of jagged sequences, whole or new rows against a cache",
)

SPECS = (HSTU_ATTENTION,)
