# SPDX-License-Identifier: Apache-2.0
"""Terms that a kernel could forget, one at a time, of the ops that fold and of those without a
softmax: what comes of another value of the term is not what the reference gives.
"""

from __future__ import annotations

import copy

import pytest
import torch

from headrace import ops
from tests.ops import compare, evictions, sequences

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")
OP, ABSORB = "hstu_attention", "append_absorb"
NORM = 7


OTHER = {
    "alpha": 0.2,
    "causal": False,
    "max_attn_len": 8,
    "contextual_seq_len": 4,
    "min_full_attn_seq_len": 6,
    "sinks": 1,
    "num_targets": torch.tensor([5, 6], dtype=torch.int32),
    "k_order": None,
    "attn_scale": None,
}


@pytest.mark.parametrize("part", ["q", "k", "v", "max_seq_len", *OTHER])
def test_every_term_counts_in_hstu(part):
    """A kernel that forgets a term gives what it would for another value of that term."""
    more = {} if part == "k_order" else {"targets": 3}
    if part == "max_seq_len":  # a scale of the rows' own takes its place
        more["scaled"] = False
    args, kwargs = sequences.hstu_attention(
        7, (40, 33), (40, 33), **{"scaled": True} | more, kept=30 if part == "k_order" else None,
        max_attn_len=7, contextual_seq_len=3, min_full_attn_seq_len=3, sinks=2, alpha=0.3,
    )  # fmt: skip
    want = compare.reference(OP, args, kwargs)
    compare.check(OP, args, kwargs, got=compare.run(OP, args, kwargs), want=want)
    call = ops.specs()[OP].bind(*args, **kwargs)
    if part in "qkv":
        call[part] = call[part].roll(1, 0)
    elif part == "k_order":  # of both sequences, in the order of memory
        call[part] = torch.cat([torch.arange(40 - n, 40) for n in call["k_indptr"].diff().tolist()])
    else:
        call[part] = OTHER.get(part, 99)
    got = (torch.ops.headrace.hstu_attention(**call),)
    with pytest.raises(AssertionError):
        compare.check(OP, args, kwargs, got=got, want=want)


@pytest.mark.parametrize("part", ["norm", "decay", "held", "feature", "old keys", "from"])
def test_every_term_counts_in_the_norm(part):
    call = evictions.append_absorb(7, (9,), decay=True)
    args, kwargs = copy.deepcopy(call)
    want, row, evicted = compare.reference(ABSORB, *call)[3], int(args[9][0]), args[5].clone()
    if part == "norm":
        args[NORM].zero_()
    elif part == "decay":
        del kwargs["log_decay"]
    elif part == "held":
        evicted[int(evicted[:, 0].nonzero()[0]), 0] = 0
    elif part == "from":
        evicted[:, 1] += 1
    elif part == "old keys":
        args[2].neg_()
    else:
        kwargs[part] = 2
    compare.run(ABSORB, (*args[:5], evicted, *args[6:]), kwargs)
    assert compare.distance(args[NORM][row], want[row]).rms > 1e-3


@pytest.mark.parametrize("part", ["k", "v", "slot", "turn"])
def test_every_term_counts_in_the_pages(part):
    call = evictions.append_absorb(7, (9,))
    args, kwargs = copy.deepcopy(call)
    want = compare.reference(ABSORB, *call)[:2]
    changed = list(args)
    if part in "kv":
        changed["kv".index(part)] = changed["kv".index(part)].roll(1, -1)
    else:
        changed[4] = changed[4].clone()
        if part == "slot":
            changed[4][:2, :2] = changed[4][:2, :2].flip(0)
        else:
            changed[4][:, 2] += 1
    compare.run(ABSORB, tuple(changed), kwargs)
    far = [compare.distance(x, y).rms > 1e-3 for x, y in zip(args[2:4], want, strict=True)]
    assert far == [part != "v", part in ("v", "slot")]
