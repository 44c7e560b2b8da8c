# SPDX-License-Identifier: Apache-2.0
"""Whether a block mask is the one that the reference would choose."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.ops import compare


def block_scores(q: Tensor, k: Tensor, size: int) -> Tensor:
    """Pooled scores of blocks in fp64 [B, Hq, q blocks, k blocks], keys not centred."""
    means = []
    for x in (q.double(), k.double()):
        blocks = -(-x.shape[2] // size)
        index = torch.arange(x.shape[2]) // size
        total = x.new_zeros(*x.shape[:2], blocks, x.shape[3]).index_add_(2, index, x)
        means.append(total / index.bincount(minlength=blocks)[:, None])
    return means[0] @ means[1].repeat_interleave(q.shape[1] // k.shape[1], 1).mT


def same_choice(args: tuple, kwargs: dict, got: Tensor) -> None:
    """Asserts that `got` keeps what the reference in fp64 keeps, where scores are not too close.

    fp32 rounds scores: a block may stand in for another whose score is the same to 1e-5 of the
    sizes in its row, no other.
    """
    want = compare.reference("pooled_block_mask", args, kwargs)[0]
    assert got.dtype == torch.bool
    assert got.shape == want.shape
    if torch.equal(got, want):
        return
    assert torch.equal(got.sum(-1), want.sum(-1)), "another number of blocks"
    always, ever = (
        compare.reference("pooled_block_mask", args, {**kwargs, "blocks": n})[0] for n in (0, 2**40)
    )
    assert not (got & ~ever).any(), "blocks that no query sees"
    assert not (always & ~got).any(), "blocks that are always kept"
    score = block_scores(args[0], args[1], kwargs.get("block_size", 64))
    gained = score.masked_fill(~(got & ~want), torch.inf).amin(-1)
    lost = score.masked_fill(~(want & ~got), -torch.inf).amax(-1)
    slack = 1e-5 * score.nan_to_num(0, 0, 0).abs().amax(-1).clamp(min=1e-3)
    close = ~(lost - gained > slack)
    assert close.all(), f"{int((~close).sum())} rows keep blocks of lower scores"
