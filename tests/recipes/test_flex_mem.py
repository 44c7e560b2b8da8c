# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import flex_mem
from tests.recipes import plain


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", [9, 31, 67, 130])
@pytest.mark.parametrize("share", [0.125, 0.001, 1.0])
def test_both_paths(kind, n, share):
    q, k, _ = plain.tensors(n, n, kind)
    for keys in (k, k[:, :, -9:]):  # with its context, and the clip alone
        s = flex_mem.received(q, keys)
        plain.near(s, plain.attention(q, keys).mean(2).unflatten(1, (2, 2)).mean(2))
        many = max(1, int(share * keys.shape[2]))
        assert plain.listed(flex_mem.keep(s, share=share)) == plain.best(s, many)


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", plain.SIZES)
def test_clips(kind, n):
    q, k, _ = plain.tensors(n, n, kind)
    clip = torch.arange(n) * 5 // n
    keys = k.double().repeat_interleave(2, 1)
    mass = (q.double() @ keys.mT / 32**0.5).softmax(-1).mean((1, 2))
    want = torch.stack([mass[:, clip == c].sum(-1) for c in range(5)], -1)[:, None]
    s = flex_mem.clips(q, k, clip, 5)
    plain.near(s, want)
    plain.near(s.sum(-1), torch.ones(2, 1, dtype=torch.float64))
    for top in (0, 2, 99):
        assert plain.listed(flex_mem.recall(s, top)) == plain.best(s, top)
