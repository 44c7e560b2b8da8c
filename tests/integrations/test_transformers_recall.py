# SPDX-License-Identifier: Apache-2.0
"""Recall on stock models: what comes back is seen exactly, each layer sees what it chose."""

import copy
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from headrace import Absolute, Archive, InCache, InMemory, OnDisk, Sink, Window  # noqa: E402
from headrace.integrations.transformers import StreamingCache, attached, oracle  # noqa: E402
from headrace.memory.regions import Region  # noqa: E402

from .stock import model  # noqa: E402
from .test_transformers import fed, gap  # noqa: E402

NEAR = Sink(4) + Window(40)
BOUND = 2e-4
POSITIONS = pytest.mark.parametrize("positions", [InCache(), Absolute()], ids=["incache", "abs"])


@dataclass(frozen=True)
class Seen(Region):
    """NEAR, and from token `since` on also `spans` (by layer, or the same for all) of tokens."""

    since: int
    spans: list
    blocks: int = 1
    calls: list = field(default_factory=list)

    def keeps(self, query, key):
        spans = self.spans
        if spans and isinstance(spans[0], list):  # the oracle asks layer by layer, in blocks
            self.calls.append(0)
            spans = spans[(len(self.calls) - 1) // self.blocks]
        again = torch.zeros_like(query + key, dtype=torch.bool)
        for first, stop in spans:
            again |= (key >= first) & (key < stop)
        return NEAR.keeps(query, key) | (again & (query >= self.since))


def cache_of(stock, archive=None, positions=None, **options):
    options = {"page_size": 16, "chunk": 29, "positions": positions} | options
    return StreamingCache(stock.config, memory=NEAR >> (archive or Archive("mean")), **options)


@POSITIONS
@pytest.mark.parametrize("name", ["llama", "llama-yarn", "qwen3", "phi", "gpt_oss"])
def test_recall_of_everything_is_full_attention(name, positions, tokens, tmp_path):
    """Read in one forward of several chunks, in which pages come, go and are used again."""
    stock, x, more = model(name), tokens(2, 211), tokens(2, 40, 1)
    archive = Archive("mean", OnDisk(tmp_path) if name == "qwen3" else InMemory())
    cache = cache_of(stock, archive, positions)
    fed(stock, x, cache, [150, 7, 20])
    assert all(len(shelf.index) > 3 for shelf in cache.rows.shelves)
    full = [n for n, s in enumerate(cache.attention.sliding) if s is None]
    got = cache.recall(stock, more)
    assert [r.tokens[n] for r in got for n in full] == [211 - 4 - 39] * 2 * len(full)
    logits = fed(stock, more, cache, [30])
    want = oracle(stock, torch.cat([x, more], 1), Seen(211, [(4, 211 - 39)]), positions)
    assert gap(logits, want[:, 211:]) < BOUND
    if name != "gpt_oss":  # one layer of two has a window of its own
        plain = oracle(stock, torch.cat([x, more], 1), NEAR, positions)
        assert gap(plain[:, 211:], want[:, 211:]) > 100 * BOUND
    cache.reset()


@POSITIONS
@pytest.mark.parametrize(
    "how",
    [{"top": 2}, {"mass": 0.6}, {"mass": 0.5, "bound": "sampled"}],
    ids=["top", "mass", "sampled"],
)
def test_each_layer_sees_the_pages_that_it_chose(positions, how, tokens):
    stock, x, more = model("llama"), tokens(1, 300), tokens(1, 30, 1)
    cache = cache_of(stock, Archive("bounds"), positions)
    fed(stock, x, cache, [300])
    before = cache.get_seq_length(), cache.alive
    (got,) = cache.recall(stock, more[:, :4], **how)
    assert (cache.get_seq_length(), cache.alive) == before
    index = cache.rows.shelves[0].index
    spans = []
    for blocks in got.blocks:
        rows = np.flatnonzero(np.isin(index.blocks, blocks))
        if how == {"top": 2}:
            assert len(rows) == 2
        held = [(int(index.starts[i]), int(index.starts[i] + index.counts[i])) for i in rows]
        spans.append([*held, (int(index.starts[-1] + index.counts[-1]), 300 - 39)])
    logits = fed(stock, more, cache, [20])
    both = torch.cat([x, more], 1)
    want = oracle(stock, both, Seen(300, spans, -(-330 // 64)), positions)
    assert gap(logits, want[:, 300:]) < BOUND
    if "mass" in how:
        assert all(missed <= 1 - how["mass"] for missed in got.missed)
        assert got.sure == [0.95 if "bound" in how and u else 1.0 for u in got.unlike]
    if spans[0] != spans[1]:
        other = oracle(stock, both, Seen(300, spans[::-1], -(-330 // 64)), positions)
        assert gap(other[:, 300:], want[:, 300:]) > 10 * BOUND


def test_what_a_question_finds_is_what_it_likes_best(tokens):
    """The choice, by its definition: mean query times mean key, before rotation, over all heads."""
    stock, x, more = model("llama"), tokens(2, 300), tokens(2, 5, 1)
    cache = cache_of(stock)
    keys, queries = [], []
    attention = stock.model.layers[0].self_attn
    hooks = [
        attention.k_proj.register_forward_hook(lambda m, a, out: keys.append(out)),
        attention.q_proj.register_forward_hook(lambda m, a, out: queries.append(out)),
    ]
    fed(stock, x, cache, [300])
    seen = torch.cat(keys, 1).view(2, 300, 2, 16)
    queries.clear()
    got = cache.recall(stock, more, top=3)
    for hook in hooks:
        hook.remove()
    q = queries[0].view(2, 5, 2, 2, 16).mean(1)
    for row in range(2):
        index = cache.rows.shelves[row].index
        ends = zip(index.starts, index.starts + index.counts, strict=True)
        mean = torch.stack([seen[row, a:b].mean(0) for a, b in ends])
        score = torch.einsum("hgd,nhd->n", q[row], mean)
        best = sorted(index.blocks[score.topk(3).indices.numpy()].tolist())
        assert sorted(got[row].blocks[0]) == best


def test_nothing_moves_while_nothing_is_recalled_and_forget_ends_it(tokens):
    stock, x, more = model("llama"), tokens(1, 300), tokens(1, 20, 1)
    plain = StreamingCache(stock.config, memory=NEAR, page_size=16, chunk=29)
    cache = cache_of(stock)
    want = fed(stock, x, plain, [300])
    assert torch.equal(fed(stock, x, cache, [300]), want)
    store = cache.rows.far.store.tiers
    assert (store.moved_bytes, store.near_pages) == (0, 0)
    cache.recall(stock, more, top=2)
    pages = cache.rows.pool.live_pages
    cache.forget()
    assert torch.equal(fed(stock, more, cache, [20]), fed(stock, more, plain, [20]))
    cache.recall(stock, more, top=2)
    assert cache.rows.pool.live_pages <= pages + 2


def test_padding_beams_copies_and_crops(tokens):
    stock, x, more = model("llama"), tokens(2, 260), tokens(2, 12, 1)
    mask = torch.ones(2, 260, dtype=torch.long)
    mask[1, :70] = 0
    cache = cache_of(stock)
    fed(stock, x, cache, [260], attention_mask=mask)
    alone = cache_of(stock)
    fed(stock, x[1:, 70:], alone, [190])
    cache.recall(stock, more, top=2), alone.recall(stock, more[1:], top=2)
    twin = copy.deepcopy(cache)
    one = fed(stock, more[1:], alone, [12])
    two = fed(stock, more, cache, [12])
    assert gap(two[1:], one) < BOUND
    assert gap(fed(stock, more, twin, [12]), two) < BOUND  # it has what the first had recalled
    cache.reorder_cache(torch.tensor([1, 1]))
    again = fed(stock, more[:1].repeat(2, 1), cache, [12])
    assert torch.equal(again[0], again[1])
    fed(stock, tokens(2, 40, 2), twin, [40])
    twin.crop(-40)
    assert twin.rows.recalled == [None, None]
    for shelf, lease in zip(twin.rows.shelves, twin.rows.leases, strict=True):
        assert shelf.end == lease.table.window[0].start  # nothing is in both, or in neither


def test_generate_sees_what_was_recalled(tokens):
    stock, x, more = model("llama"), tokens(1, 200), tokens(1, 6, 1)
    cache = cache_of(stock)
    fed(stock, x, cache, [200])
    cache.recall(stock, more)
    with attached(stock):
        mask = torch.ones(1, 206, dtype=torch.long)
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        got = stock.generate(more, attention_mask=mask, past_key_values=cache, **options)
    both = torch.cat([x, got], 1)
    want = oracle(stock, both, Seen(200, [(4, 200 - 39)]))
    assert torch.equal(got[0, 6:], want[0, 205:-1].argmax(-1))


def test_a_failing_forward_archives_nothing(tokens, monkeypatch):
    stock, x = model("llama"), tokens(1, 300)
    cache = cache_of(stock)
    fed(stock, x[:, :150], cache, [150])
    (shelf,) = cache.rows.shelves
    length, pages = len(shelf.index), cache.rows.pool.live_pages
    assert length
    with monkeypatch.context() as m:
        m.setattr(stock.model.layers[0].self_attn.o_proj, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError), attached(stock), torch.no_grad():
            stock(x[:, 150:], past_key_values=cache)
    cache.forget()
    assert (len(shelf.index), cache.rows.pool.live_pages) == (length, pages)
    want = oracle(stock, x, NEAR)
    assert gap(fed(stock, x[:, 150:], cache, [150]), want[:, 150:]) < BOUND


def test_what_cannot_be_asked_gets_one_line(tokens):
    stock, x = model("llama"), tokens(1, 100)
    plain = StreamingCache(stock.config, memory=NEAR)
    with pytest.raises(ValueError, match=r"^recall\(memory\): expected regions >> Archive\(\)"):
        plain.recall(stock, x)
    cache = cache_of(stock, Archive("mean", pages=2))
    with pytest.raises(ValueError, match=r"^recall\(cache\): expected one that has read"):
        cache.recall(stock, x)
    fed(stock, tokens(1, 300), cache, [300])
    for match, error, call in (
        (r"\(model\): expected a model of transformers", TypeError, lambda: cache.recall(1, x)),
        (r"\(input_ids\): .* not empty", ValueError, lambda: cache.recall(stock, x[:, :0])),
        (r"\(input_ids\): expected 1 rows, got 2", ValueError,
         lambda: cache.recall(stock, tokens(2, 3))),
        (r"\(top\): expected None", ValueError, lambda: cache.recall(stock, x, top=1, mass=0.1)),
        (r"\(top\): expected 0 pages", ValueError, lambda: cache.recall(stock, x, top=-1)),
        (r"\(mass\): expected a share", ValueError, lambda: cache.recall(stock, x, mass=2)),
        (r"\(bound\): expected proven", ValueError,
         lambda: cache.recall(stock, x, mass=0.2, bound="?")),
        (r"\(mass\): .*index .bounds.", ValueError, lambda: cache.recall(stock, x, mass=0.2)),
    ):  # fmt: skip
        with pytest.raises(error, match=rf"^recall{match}"):
            call()
    (got,) = cache.recall(stock, x, top=2)
    with pytest.raises(ValueError, match=r"^recall\(pages\): expected \d+ pages .* 2 of 2"):
        cache.recall(stock, x)
    assert cache.rows.recalled == [got]
