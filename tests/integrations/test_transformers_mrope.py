# SPDX-License-Identifier: Apache-2.0
"""Recall where positions have three axes: against the model's own attention under a mask."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from headrace import Absolute, Archive, InCache, OnDisk, Sink, Window  # noqa: E402
from headrace.integrations.transformers import StreamingCache, attached, far, oracle  # noqa: E402
from headrace.memory.recall import bounds  # noqa: E402

from .test_transformers_numbers import vision  # noqa: E402
from .test_transformers_recall import Seen, gap  # noqa: E402

NEAR = Sink(4) + Window(40)
FED, MORE, WHOLE = 200, 30, 230
BOUND = 2e-4


def places(seed=1):
    """int64 [3, 2, 230], as of frames: time goes on, height and width go to and fro."""
    g = torch.Generator().manual_seed(seed)
    steps = torch.randint(0, 2, (3, 2, WHOLE), generator=g)
    steps[1:, :, ::7] -= 3
    return steps.cumsum(-1) + 40


def inner_of(name):
    return vision(name)[0].model.language_model


def cache_of(inner, archive=None, **options):
    memory = NEAR >> (archive or Archive("mean"))
    options = {"positions": Absolute(), "page_size": 16, "chunk": 29} | options
    return StreamingCache(inner.config, memory=memory, **options)


def fed(inner, x, cache, ids, cuts, **options):
    """Hidden states of tokens in forwards that begin at `cuts`."""
    with attached(inner), torch.no_grad():
        return torch.cat([
            inner(input_ids=x[:, a:b], position_ids=ids[..., a:b], past_key_values=cache,
                  **options).last_hidden_state
            for a, b in itertools.pairwise(cuts)
        ], 1)  # fmt: skip


def dense(inner, x, ids, seen, **inputs):
    """The model's own attention; seen bool [Tq, Tk], or one for each layer."""
    masks = iter(seen if isinstance(seen, list) else [seen] * len(inner.layers))
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: (
                args,
                kwargs | {"attention_mask": next(masks)[None, None]},
            ),
            with_kwargs=True,
        )
        for layer in inner.layers
    ]
    try:
        with torch.no_grad():
            made = inner(input_ids=x, position_ids=ids, use_cache=False, **inputs)
        return made.last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()


def seen_from(spans):
    number = torch.arange(WHOLE)
    return Seen(FED, spans).keeps(number[:, None], number[None, :])


@pytest.mark.parametrize("name", ["Qwen2VL", "Qwen2_5VL"])
def test_recall_of_everything_is_full_attention(name, tokens, tmp_path):
    inner, x, ids = inner_of(name), tokens(2, WHOLE), places()
    archive = Archive("mean", OnDisk(tmp_path)) if name == "Qwen2VL" else None
    cache = cache_of(inner, archive)
    first = fed(inner, x, cache, ids, [0, 120, 121, FED])
    got = cache.recall(inner, x[:, FED:], position_ids=ids[..., FED:])
    assert [r.tokens for r in got] == [[FED - 4 - 39] * 2] * 2
    last = fed(inner, x, cache, ids, [FED, FED + 1, WHOLE])
    want = dense(inner, x, ids, seen_from([(4, FED - 39)]))
    assert gap(torch.cat([first, last], 1), want) < BOUND
    assert gap(dense(inner, x, ids, seen_from([]))[:, FED:], want[:, FED:]) > 100 * BOUND
    wrong = ids[:1].expand(3, -1, -1)  # were two of the axes forgotten
    assert gap(dense(inner, x, wrong, seen_from([(4, FED - 39)])), want) > 100 * BOUND
    cache.reset()


@pytest.mark.parametrize("how", [{"top": 2}, {"mass": 0.6}], ids=["top", "mass"])
def test_each_layer_sees_the_pages_that_it_chose(how, tokens):
    inner, x, ids = inner_of("Qwen2VL"), tokens(2, WHOLE)[:1], places()[:, :1]
    cache = cache_of(inner, Archive("bounds"))
    fed(inner, x, cache, ids, [0, FED])
    question = slice(FED, FED + 4)
    (got,) = cache.recall(inner, x[:, question], position_ids=ids[..., question], **how)
    index = cache.rows.shelves[0].index
    spans = []
    for blocks in got.blocks:
        rows = np.flatnonzero(np.isin(index.blocks, blocks))
        held = [(int(index.starts[i]), int(index.starts[i] + index.counts[i])) for i in rows]
        spans.append([*held, (int(index.starts[-1] + index.counts[-1]), FED - 39)])
    last = fed(inner, x, cache, ids, [FED, WHOLE])
    want = dense(inner, x, ids, [seen_from(s) for s in spans])
    assert gap(last, want[:, FED:]) < BOUND
    if spans[0] != spans[1]:
        other = dense(inner, x, ids, [seen_from(s) for s in spans[::-1]])
        assert gap(other[:, FED:], want[:, FED:]) > 10 * BOUND


def asked_and_kept(inner, x, ids):
    """By layer, queries and keys of all tokens before they are turned: [L][B, T, H, D]."""
    found = []
    hooks = [
        getattr(layer.self_attn, part).register_forward_hook(
            lambda module, args, out: found.append(out.unflatten(-1, (-1, 16)))
        )
        for layer in inner.layers for part in ("q_proj", "k_proj")
    ]  # fmt: skip
    dense(inner, x, ids, seen_from([]))
    for hook in hooks:
        hook.remove()
    return found[::2], found[1::2]


def test_what_a_question_finds_is_what_it_likes_best(tokens):
    """Mean query times mean key, before the three axes turn them; padding asks nothing."""
    inner, x, ids = inner_of("Qwen2_5VL"), tokens(2, WHOLE), places()
    cache = cache_of(inner)
    fed(inner, x, cache, ids, [0, 70, FED])
    got = cache.recall(inner, x[:, FED:], position_ids=ids[..., FED:], top=3)
    queries, keys = asked_and_kept(inner, x, ids)
    for layer, row in np.ndindex(2, 2):
        index = cache.rows.shelves[row].index
        ends = zip(index.starts, index.starts + index.counts, strict=True)
        mean = torch.stack([keys[layer][row, a:b].mean(0) for a, b in ends])
        kept = index.rows("mean", layer)[:, : len(mean)].transpose(0, 1)
        torch.testing.assert_close(kept, mean, atol=1e-4, rtol=1e-3)
        q = queries[layer][row, FED:].unflatten(1, (2, 2)).mean(0)
        score = torch.einsum("hgd,nhd->n", q, mean)
        best = sorted(index.blocks[score.topk(3).indices.numpy()].tolist())
        assert sorted(got[row].blocks[layer]) == best


def test_the_mass_of_a_block_is_as_the_three_axes_turn_it(tokens, monkeypatch):
    """The bounds that a recall by mass goes by, around what queries and keys really give."""
    inner, x, ids = inner_of("Qwen2VL"), tokens(2, WHOLE)[:1], places()[:, :1]
    cache, found = cache_of(inner, Archive("bounds")), []
    fed(inner, x, cache, ids, [0, FED])
    by_mass = far.by_mass

    def spied(shelf, layer, asked, *rest):
        found.append(bounds(shelf, layer, asked, None, shelf.store.inv_freq))
        return by_mass(shelf, layer, asked, *rest)

    monkeypatch.setattr(far, "by_mass", spied)
    question = slice(FED, FED + 3)
    cache.recall(inner, x[:, question], position_ids=ids[..., question], mass=0.5)
    queries, keys = asked_and_kept(inner, x, ids)
    cos, sin = inner.rotary_emb(x.float(), ids)

    def turned(y):
        (a, b), (c, s) = y.chunk(2, -1), (z[..., None, :8] for z in (cos, sin))
        return torch.cat([a * c - b * s, b * c + a * s], -1)

    q = turned(queries[0])[0, question]  # those of later layers depend on what is seen
    k = turned(keys[0])[0].repeat_interleave(2, 1)
    logits = torch.einsum("qhd,khd->qhk", q, k).flatten(0, 1) / 4
    index = cache.rows.shelves[0].index
    ends = zip(index.starts, index.starts + index.counts, strict=True)
    blocks = [logits[:, a:b] for a, b in ends]
    low, high = found[0].low.reshape(12, -1), found[0].high.reshape(12, -1)
    want = torch.stack([x.mean(-1) + math.log(x.shape[1]) for x in blocks], -1)
    assert gap(low, want) < BOUND  # Jensen's, of the mean key
    assert bool((torch.stack([x.logsumexp(-1) for x in blocks], -1) <= high + 1e-4).all())


def test_padding_copies_and_what_fails(tokens):
    """Places are of rows without their padding, go along with copies, and survive a failure."""
    inner, x, ids = inner_of("Qwen2VL"), tokens(2, WHOLE), places()
    mask = torch.ones(2, FED, dtype=torch.long)
    mask[1, :70] = 0
    cache, alone = cache_of(inner), cache_of(inner)
    fed(inner, x, cache, ids, [0, FED], attention_mask=mask)
    fed(inner, x[1:], alone, ids[:, 1:], [70, FED])
    twin = copy.deepcopy(cache)

    def fail(*args):
        raise KeyboardInterrupt

    hook = inner.layers[0].mlp.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        fed(inner, x, cache, ids.flip(-1), [0, WHOLE])
    hook.remove()
    outs = []
    for mine, rows in ((cache, slice(None)), (twin, slice(None)), (alone, slice(1, 2))):
        outs.append(fed(inner, x[rows], mine, ids[:, rows], [40, 180]))  # what was copied goes out
        mine.recall(inner, x[rows, FED:], position_ids=ids[:, rows, FED:], top=2)
        outs.append(fed(inner, x[rows], mine, ids[:, rows], [FED, WHOLE]))
    assert torch.equal(outs[0], outs[2])
    assert torch.equal(outs[1], outs[3])
    assert gap(outs[1][1:], outs[5]) < BOUND
    for row, layer in np.ndindex(2, 2):
        known, copied = (c.rows.shelves[row].index.rows("mean", layer) for c in (cache, twin))
        assert torch.equal(known, copied)


def test_text_in_cache_is_the_oracle(tokens):
    stock = vision("Qwen2VL")[0]
    inner, x = stock.model.language_model, tokens(2, WHOLE).clamp(max=79)
    cache = cache_of(inner, positions=InCache())
    with attached(inner), torch.no_grad():
        inner(input_ids=x[:, :FED], past_key_values=cache)
        cache.recall(inner, x[:, FED:])
        got = inner(input_ids=x[:, FED:], past_key_values=cache).last_hidden_state
    want = oracle(inner, x, Seen(FED, [(4, FED - 39)]), InCache())
    assert gap(got, want[:, FED:]) < BOUND


def test_a_picture_that_left_the_window_comes_back(tokens):
    """The whole model, at the positions that it gives a picture and what follows it."""
    stock, x, picture = vision("Qwen2VL")
    inner, text = stock.model.language_model, tokens(2, 60, 3).clamp(max=79)
    read = []
    hook = inner.register_forward_pre_hook(
        lambda module, args, kwargs: read.append((kwargs["inputs_embeds"], kwargs["position_ids"])),
        with_kwargs=True,
    )
    cache = cache_of(inner)
    with attached(stock), torch.no_grad():
        options = {"pad_token_id": 0, "max_new_tokens": 1, "do_sample": False}
        stock.generate(x, past_key_values=cache, **picture, **options)
        stock(text[:, :40], past_key_values=cache)
        lost = copy.deepcopy(cache)
        cache.recall(stock, text[:, 40:])
        got = stock(text[:, 40:], past_key_values=cache).logits
        without = stock(text[:, 40:], past_key_values=lost).logits
    hook.remove()
    embeds = torch.cat([x for x, _ in read], 1)[:, :120]
    ids = torch.cat([at[-3:] for _, at in read], -1)[..., :120]
    assert not torch.equal(ids[0], ids[1])  # a picture has positions of three axes
    number = torch.arange(120)
    seen = Seen(100, [(4, 100 - 39)]).keeps(number[:, None], number[None, :])
    with torch.no_grad():
        want = stock.lm_head(dense(inner, None, ids, seen, inputs_embeds=embeds))[:, 100:]
    assert gap(got, want) < BOUND
    assert gap(without, want) > 100 * BOUND
