# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import shadow_kv
from tests.recipes import plain


def definition(q, k, chunk):
    """Means of chunks, least cosines with them, and shares of a softmax over them."""
    parts = k.double().split(chunk, 2)
    mean = torch.stack([p.mean(2) for p in parts], 2)
    least = torch.stack(
        [
            (plain.unit(p) * plain.unit(mean[:, :, m : m + 1])).sum(-1).amin(-1)
            for m, p in enumerate(parts)
        ],
        -1,
    )
    logits = torch.einsum("bhd,bhmd->bhm", q.double()[:, :, 0], mean.repeat_interleave(2, 1))
    share = (logits / 32**0.5).softmax(-1)
    return mean, least, torch.maximum(share[:, 0::2], share[:, 1::2])


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", plain.SIZES)
@pytest.mark.parametrize("chunk", [8, 1, 13])
def test_definition(kind, n, chunk):
    q, k, _ = plain.tensors(n, n, kind, asked=1)
    mean, least, share = definition(q, k, chunk)
    got = shadow_kv.landmarks(k, chunk=chunk)
    plain.near(got, mean)
    s = shadow_kv.score(q, got)
    plain.near(s, share)
    if kind == "normal" and chunk > 1:  # otherwise rounding decides between equals
        for count in (0, 1, 5, 99):
            kept = plain.listed(shadow_kv.outliers(k, chunk=chunk, count=count))
            assert kept == plain.best(-least, count)


def test_zero_keys_stand_out_of_others():
    _, k, _ = plain.tensors(1, 64)
    k = k.abs()
    k[0, 1, 20] = 0.0  # cosine 0
    assert plain.listed(shadow_kv.outliers(k, count=1))[0][1] == [2]


@pytest.mark.parametrize("n", [1, 4, 5, 31])
@pytest.mark.parametrize("budget", [0, 7, 8, 40, 500])
def test_what_stays(n, budget):
    s = torch.rand(2, 2, n, generator=torch.Generator().manual_seed(n)).round(decimals=1)
    always = shadow_kv.best("test", torch.rand(2, 2, n), min(3, n))
    got = plain.listed(shadow_kv.keep(s, budget, always=always))
    for b, heads in enumerate(plain.listed(always)):
        for h, safe in enumerate(heads):
            near = set(range(max(0, n - 4), n)) | set(safe)
            rest = sorted(set(range(n)) - near, key=lambda j: (-float(s[b, h, j]), j))
            assert got[b][h] == sorted(near | set(rest[: budget // 8]))


def test_nothing():
    none = torch.zeros(2, 2, 0, 32)
    assert plain.listed(shadow_kv.outliers(none)) == [[[], []]] * 2
    s = shadow_kv.score(torch.zeros(2, 4, 1, 32), shadow_kv.landmarks(none))
    assert plain.listed(shadow_kv.keep(s)) == [[[], []]] * 2
