# SPDX-License-Identifier: Apache-2.0
"""Encoders that compute only what changed, against plain definitions in double precision."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F

from headrace.filters import Decision, GatedEncoder, TokenCacher, encode
from headrace.presets.small_vision import SmallVision
from tests.recipes import plain


class Counting:
    """A layer that counts the rows of each of its parts."""

    def __init__(self, layer):
        self.layer, self.rows = layer, {}

    def __getattr__(self, name):
        part = getattr(self.layer, name)

        def counted(*args):
            self.rows[name] = self.rows.get(name, 0) + args[0].shape[0] * args[0].shape[1]
            return part(*args)

        return counted


def norm(x):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def parts(layer, x):
    """q, k, v of rows in fp64, by the weights alone."""
    return (norm(x) @ w.double().T for w in (layer.q, layer.k, layer.v))


def attend(layer, q, k, v):
    q, k, v = (t.unflatten(-1, (layer.heads, -1)).transpose(-3, -2) for t in (q, k, v))
    seen = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    return seen.transpose(-3, -2).flatten(-2) @ layer.o.double().T


def mlp(layer, x):
    return torch.relu(norm(x) @ layer.up.double().T).square() @ layer.down.double().T


def cacher(layers, chunks, choose, interval=2):
    """The paper's rule, token by token and frame by frame; `choose` picks by cosines [N]."""
    refs, out = [None] * len(layers), []
    for c, chunk in enumerate(chunks):
        done = []
        for x in chunk.double():
            for i, layer in enumerate(layers):
                q, k, v = parts(layer, x)
                if c % interval == 0:
                    a = attend(layer, q, k, v)
                    m = mlp(layer, x + a)
                    now = (k, v, a, m)
                else:
                    old = refs[i]
                    cos = (plain.unit(k) * plain.unit(old[0])).sum(-1)
                    a, m, values = old[2].clone(), old[3].clone(), old[1].clone()
                    chosen = choose(cos)
                    values[chosen] = v[chosen]
                    a[chosen] = attend(layer, q[chosen], k, values)
                    m[chosen] = mlp(layer, (x + a)[chosen])
                    now = old
                x = x + a + m
                refs[i] = now if c % interval == 0 else refs[i]
            done.append(x)
        out.append(torch.stack(done))
    return out


def tokens(chunks, frames, n, width=32, drift=0.3, seed=0):
    gen = torch.Generator().manual_seed(seed)
    steps = torch.randn(chunks, frames, n, width, generator=gen)
    quiet = torch.rand(chunks, frames, n, 1, generator=gen) < 0.6
    steps = torch.where(quiet, 0.02 * steps, drift * steps)
    steps[0, 0] = torch.randn(n, width, generator=gen)
    return steps.flatten(0, 1).cumsum(0).view(chunks, frames, n, width)


@pytest.mark.parametrize("interval", [1, 2, 3])
@pytest.mark.parametrize(("frames", "n"), [(1, 31), (3, 16), (2, 1)])
def test_the_cacher_is_the_papers_rule(frames, n, interval):
    net, chunks = SmallVision(layers=3), tokens(5, frames, n)
    count = max(1, int(0.25 * n))
    want = cacher(net.layers, chunks, lambda cos: cos.argsort(stable=True)[:count], interval)
    cached = TokenCacher(net.layers, interval=interval)
    for c, x in enumerate(chunks):
        plain.near(cached(x), want[c], 1e-4)
        rows = n if c % interval == 0 else count
        assert cached.recomputed.tolist() == [[rows] * frames] * 3
    assert not torch.allclose(cached(chunks[1]), encode(net.layers, chunks[1]), atol=1e-3) or (
        interval == 1 or n == 1
    )


@pytest.mark.parametrize("threshold", [0.9, 0.999, -1.5])
def test_by_threshold(threshold):
    net, chunks = SmallVision(), tokens(4, 2, 29)
    want = cacher(net.layers, chunks, lambda cos: cos <= threshold)
    cached = TokenCacher(net.layers, threshold=threshold)
    counts = []
    for x, y in zip(chunks, want, strict=True):
        plain.near(cached(x), y, 1e-4)
        counts.append(int(cached.recomputed.sum()))
    assert counts[1] == 0 if threshold < -1 else 0 < counts[1] < counts[0]


@pytest.mark.parametrize("options", [{"threshold": 1.0}, {"ratio": 1.0}, {"interval": 1}])
def test_all_of_the_tokens_have_the_bits_of_no_cache(options):
    net, chunks = SmallVision(), tokens(4, 2, 196)
    cached = TokenCacher(net.layers, **options)
    assert all(torch.equal(cached(x), encode(net.layers, x)) for x in chunks)


def test_only_the_ratio_is_computed():
    net, chunks = SmallVision(), tokens(2, 4, 40)
    layers = [Counting(layer) for layer in net.layers]
    cached = TokenCacher(layers, ratio=0.25)
    cached(chunks[0])
    for layer in layers:
        layer.rows.clear()
    cached(chunks[1])
    for layer in layers:
        assert layer.rows == {"norm": 160, "key": 160, "query": 40, "value": 40, "attend": 40,
                              "mlp": 40}  # fmt: skip


def test_a_copy_goes_on_and_reset_forgets():
    net, chunks = SmallVision(), tokens(4, 1, 20)
    cached = TokenCacher(net.layers, ratio=0.3)
    cached(chunks[0])
    other = copy.deepcopy(cached)
    assert torch.equal(other(chunks[1]), cached(chunks[1]))
    cached.reset()
    assert torch.equal(cached(chunks[3]), encode(net.layers, chunks[3]))


def decision(mask):
    """As a filter makes one."""
    n = mask.shape[-1]
    index = torch.where(mask, torch.arange(n), n).sort(-1)[0]
    index = torch.where(index < n, index, -1).int()
    count = mask.sum(-1).int()
    return Decision(index, count, mask, torch.zeros_like(count)).fitted()


def gated(layers, frames, masks):
    """Dense: what every place last was, before every layer; all attend, those kept are taken."""
    now = [torch.zeros_like(frames[0]).double() for _ in range(len(layers) + 1)]
    out = []
    for x, mask in zip(frames.double(), masks, strict=True):
        now[0] = torch.where(mask[..., None], x, now[0])
        for i, layer in enumerate(layers):
            q, k, v = parts(layer, now[i])
            y = now[i] + attend(layer, q, k, v)
            y = y + mlp(layer, y)
            now[i + 1] = torch.where(mask[..., None], y, now[i + 1])
        out.append(now[-1])
    return out


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("n", [1, 13, 64])
def test_a_gated_encoder_is_what_every_place_last_was(n, share):
    net = SmallVision(layers=3)
    frames = tokens(6, 2, n, seed=n)
    masks = torch.rand(6, 2, n) < share
    masks[0] = True
    encoder = GatedEncoder(net.layers)
    for x, mask, want in zip(frames, masks, gated(net.layers, frames, masks), strict=True):
        made = decision(mask)
        plain.near(encoder(made.rows(x), made), want, 1e-4)
    if share == 1:
        assert torch.equal(encoder.features, encode(net.layers, frames[-1]))


def test_only_what_is_kept_is_computed_and_nothing_else_is_read():
    net = SmallVision()
    layers = [Counting(layer) for layer in net.layers]
    encoder = GatedEncoder(layers)
    x = torch.randn(50, 32)
    encoder(x, decision(torch.ones(50, dtype=torch.bool)))
    for layer in layers:
        layer.rows.clear()
    mask = torch.zeros(50, dtype=torch.bool)
    mask[[3, 17, 49]] = True
    made = decision(mask)
    y = torch.where(mask[:, None], x + 1, torch.nan)
    before = encoder.features.clone()
    features = encoder(made.rows(y), made)
    assert all(set(layer.rows.values()) == {3} for layer in layers)
    assert features.isfinite().all()
    assert torch.equal(features[~mask], before[0][~mask])
    assert (features[mask] != before[0][mask]).any(-1).all()


def test_streams_know_nothing_of_one_another():
    net, frames = SmallVision(), tokens(4, 3, 24)
    masks = torch.rand(4, 3, 24) < 0.3
    masks[0] = True
    together = GatedEncoder(net.layers)
    alone = [GatedEncoder(net.layers) for _ in range(3)]
    for x, mask in zip(frames, masks, strict=True):
        whole = decision(mask)
        features = together(whole.rows(x), whole)
        for b, one in enumerate(alone):
            mine = decision(mask[b])
            assert torch.equal(one(mine.rows(x[b]), mine), features[b])


def test_errors():
    net, x = SmallVision(), torch.randn(2, 5, 32)
    cached = TokenCacher(net.layers)
    cached(x)
    cases = [
        (lambda: TokenCacher(net.layers, ratio=-1), "TokenCacher(ratio): expected 0 to 1, got -1"),
        (lambda: TokenCacher(net.layers, interval=0), "TokenCacher(interval): expected 1 or more"),
        (lambda: cached(x[0]), "TokenCacher(x): expected [F, N, W], a frame at least, got (5, 32)"),
        (lambda: cached(x[:, :4]), "TokenCacher(x): expected frames (5, 32), as before, got (4"),
    ]
    encoder = GatedEncoder(net.layers)
    some, every = decision(torch.tensor([True, False])), decision(torch.ones(2, 5).bool())
    cases.append((lambda: encoder(x[0, :1], some), "GatedEncoder(decision): expected every place"))
    for call, told in cases:
        with pytest.raises(ValueError, match=re.escape(told)):
            call()
    encoder(x, every)
    with pytest.raises(ValueError, match=re.escape("GatedEncoder(rows): expected (2, 5, 32), as")):
        encoder(x[:1], decision(torch.ones(1, 5).bool()))
    assert F.mse_loss(encoder(x, every), encode(net.layers, x)) == 0
