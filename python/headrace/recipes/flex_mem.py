# SPDX-License-Identifier: Apache-2.0
"""FlexMem: a clip leaves what its context looked at to the next clips, and its own to a bank.

Chen et al., arXiv 2603.29252 (a note on it was read, not its code): clips of 8 frames. Context
path: what each token receives from the context and its clip says which stay in sight of the clips
that follow. Local path: what it receives from its clip alone says which go to the memory bank. A
question takes the clips that its tokens attend to most.

Chosen here: both paths keep an eighth of their tokens; attention is averaged over queries and over
the heads that share a kv head; a clip is scored by the mass of the softmax over the whole bank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value
from .common import Kept, best, whole_number


def received(q: Tensor, k: Tensor) -> Tensor:
    """fp32 [B, Hkv, N]: attention that keys [B, Hkv, N, D] get from the clip's queries [B, Hq, W,
    D], the last of which stands at the last key. With keys of the clip alone it is the local path,
    with the context's before them the context path.
    """
    return ops.attention_mass(q, k)


def keep(scores: Tensor, *, share: float = 0.125) -> Kept:
    """The best max(1, int(share * N)) tokens of scores [B, H, N]; each head has its own."""
    if not 0 < share <= 1:
        raise bad_value("flex_mem", "share", "above 0, up to 1", share)
    n = scores.shape[-1]
    return best("flex_mem", scores, min(n, max(1, int(share * n))))


def clips(q: Tensor, k: Tensor, clip: Tensor, count: int) -> Tensor:
    """fp32 [B, 1, count]: share of attention of q [B, Hq, W, D] that goes to each clip.

    k [B, Hkv, N, D]: the bank, clip int64 [N]: whose each token is.
    """
    whole_number("flex_mem", "count", count, 0)
    mass = ops.attention_mass(q, k, causal=False).mean(1)
    made = torch.zeros(k.shape[0], count, device=k.device)
    return made.index_add(1, clip, mass)[:, None]


def recall(scores: Tensor, top: int = 8) -> Kept:
    """The `top` best clips of scores [B, 1, M], ascending."""
    return best("flex_mem", scores, top)
