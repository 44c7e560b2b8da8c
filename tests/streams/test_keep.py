# SPDX-License-Identifier: Apache-2.0
"""Regions that choose: a stream equals its oracle, and survivors stay where they lie."""

import numpy as np
import pytest
import torch

from headrace import (
    Absolute,
    InCache,
    Keep,
    Piece,
    Rest,
    Sink,
    Tagged,
    Window,
    oracle,
    wrap,
)  # fmt: skip
from headrace.memory import kept, most_pages
from headrace.recipes import infinite_vggt
from headrace.streams import piece as pieces_of

from .keeping import BOUND, MEMORIES, PAGE, episode, played
from .tiny import TinyDecoder, gap, tokens


def against_oracle(memory, positions=None, chunk=13, model=None, **how):
    positions, model = positions or InCache(), model or TinyDecoder()
    with wrap(model, memory=memory, positions=positions, page_size=PAGE, chunk=chunk) as engine:
        got, heard = played(engine.open(), episode(**how))
        assert engine.pool.live_pages < 40
    return gap(got, oracle(model, heard, memory, positions, chunk=chunk))


@pytest.mark.parametrize("positions", [InCache(), Absolute()], ids=repr)
@pytest.mark.parametrize("memory", MEMORIES, ids=repr)
def test_streams_equal_the_oracle(memory, positions):
    assert against_oracle(memory, positions) < BOUND


def grown(rng, depth):
    """A memory of any regions."""
    kind = rng.integers(4) if depth else 0
    if kind == 1:
        return grown(rng, depth - 1) + grown(rng, depth - 1)
    if kind == 2:
        return Tagged(("see", None)[rng.integers(2)], grown(rng, depth - 1))
    n = int(rng.integers(1, 20))
    far = (Window(n), Window(frames=n % 5 + 1), Keep("given", n, room=bool(n % 2)), Rest(2 * n))
    if kind == 3:
        return grown(rng, depth - 1) >> far[rng.integers(4)]
    return (*far, Sink(n), Keep(), Window(seconds=n))[rng.integers(7)]


@pytest.mark.parametrize("seed", range(10))
def test_any_regions_together_equal_the_oracle(seed):
    rng = np.random.default_rng(seed)
    memory = grown(rng, 3)
    while not memory.chooses:
        memory = grown(rng, 3)
    positions, chunk = (InCache(), Absolute())[seed % 2], (5, 13, 64)[seed % 3]
    how = {"model": TinyDecoder(layers=1), "count": 14, "seed": seed}
    assert against_oracle(memory, positions, chunk, **how) < BOUND, memory


def test_token_by_token_is_a_window_of_tokens():
    memory, fed = Sink(4) + Keep("given", 0) + Window(24), tokens(120)
    with wrap(TinyDecoder(), memory=memory, page_size=PAGE) as engine:
        stream = engine.open()
        got = torch.cat([stream.feed(t[None], scores=[0], logits=True).logits for t in fed])
        assert stream.alive == 4 + 24
    assert gap(got, oracle(TinyDecoder(), fed, Sink(4) + Window(24), InCache())) < BOUND


@pytest.mark.parametrize(
    ("where", "what", "memory"),
    [
        ("place", 1, MEMORIES[0]),  # survivors one step off
        ("slot", -1, MEMORIES[0]),  # another slot's key
        ("turn", 1, MEMORIES[0]),  # as if written elsewhere
    ],
)
def test_a_survivor_misplaced_shows(where, what, memory, monkeypatch):
    good = kept._rows

    def bad(tokens):
        tokens = tokens.copy()
        tokens[where][1 : len(tokens) // 2] += what
        tokens[where] = tokens[where].clip(0)
        return good(tokens)

    monkeypatch.setattr(kept, "_rows", bad)
    assert not against_oracle(memory) < BOUND


@pytest.mark.parametrize(
    ("cls", "memory"),
    [
        (Sink, MEMORIES[0]), (Keep, MEMORIES[0]), (Window, MEMORIES[0]), (Rest, MEMORIES[2]),
        (Keep, MEMORIES[3]), (Window, MEMORIES[4]), (Window, MEMORIES[5]), (Tagged, MEMORIES[6]),
        (Sink, MEMORIES[6]), (Rest, MEMORIES[8]), (Window, MEMORIES[7]),
    ],
)  # fmt: skip
def test_one_token_forgotten_by_a_region_shows(cls, memory, monkeypatch):
    good = cls.stays

    def bad(self, held, coming, taken=0):
        stay = good(self, held, coming, taken)
        stay[np.flatnonzero(stay)[-1:]] = False
        return stay

    monkeypatch.setattr(cls, "stays", bad)
    assert not against_oracle(memory) < BOUND


def test_gaps_left_open_show(monkeypatch):
    good = pieces_of.evict
    monkeypatch.setattr(pieces_of, "evict", lambda *a: good(*a[:-1], False))
    assert not against_oracle(MEMORIES[0]) < BOUND
    assert against_oracle(MEMORIES[0], Absolute()) < BOUND


def test_explicit_survivors():
    model, memory, made = TinyDecoder(), Keep(), torch.Generator().manual_seed(3)
    with wrap(model, memory=memory, page_size=PAGE) as engine:
        stream, heard, got = engine.open(), [], []
        for i in range(12):
            fed, keep = tokens(11, i), None
            if stream.tokens:
                alive = stream.held.number
                keep = alive[torch.rand(len(alive), generator=made).numpy() < 0.8]
                assert stream.keep(keep) == len(alive) - len(keep)
                assert stream.held.number.tolist() == keep.tolist()
            got.append(stream.feed(fed, logits=True).logits)
            heard.append(Piece(fed, keep=keep))
        assert gap(torch.cat(got), oracle(model, heard, memory, InCache())) < BOUND
        assert stream.keep([]) > 0
        assert stream.alive == 0
        assert engine.pool.live_pages == 0


def test_nothing_is_copied_while_pages_are_well_filled():
    """Survivors are re-placed, and their keys and values keep their bytes where they are."""
    memory = Sink(4) + Keep("given", 30) + Window(20)
    with wrap(TinyDecoder(), memory=memory, page_size=PAGE) as engine:
        stream, pool = engine.open(), engine.pool
        stream.feed(tokens(50), scores=torch.arange(50.0) % 7)
        before = {t["number"]: t for t in kept._placed(stream._lease.table)}
        k, v = pool.k.clone(), pool.v.clone()
        stream.feed(tokens(10, 1), scores=torch.zeros(10))
        assert stream.alive < 60
        for t in kept._placed(stream._lease.table):
            if (was := before.get(t["number"])) is not None:
                assert (t["page"], t["slot"], t["turn"]) == (was["page"], was["slot"], was["turn"])
                page, slot = t["page"], t["slot"]
                assert torch.equal(pool.k[:, page, :, :, slot], k[:, page, :, :, slot])
                assert torch.equal(pool.v[:, page, :, slot], v[:, page, :, slot])
        assert pool.moved == 0
        assert pool.written_bytes == 60 * 2 * pool.row_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_pages_stay_within_their_bound_and_packing_changes_nothing(dtype, monkeypatch):
    def run(bound):
        monkeypatch.setattr(kept, "most_pages", bound)
        memory = Keep("given", 20) + Window(8)
        options = {"page_size": PAGE, "dtype": dtype, "pool_pages": 64}
        with wrap(TinyDecoder(), memory=memory, **options) as engine:
            stream, got, most = engine.open(), [], 0
            for i in range(120):
                score = torch.tensor([10.0 + i, 0, 0, 0, 0, 0, 0, 0])[torch.randperm(8)]
                got.append(stream.feed(tokens(8, i), scores=score, logits=True).logits)
                most = max(most, len(stream.pages))
                assert engine.pool.live_pages == len(stream.pages)
            return torch.cat(got), most, engine.pool.moved

    torch.manual_seed(0)
    packed, most, moved = run(most_pages)
    torch.manual_seed(0)
    free, many, still = run(lambda *_: 1 << 30)
    assert most <= most_pages(28, PAGE) + 1 < many  # and the page of what is read
    assert moved > still == 0
    assert moved < 120 * 8 / 2
    assert gap(packed, free) < BOUND  # entries end elsewhere, so sums are grouped otherwise


def test_keys_are_those_before_rotation():
    model, heard = TinyDecoder(), []

    def score(held):
        heard.append((held.number.copy(), held.keys()))
        return -held.keys().mean((0, 1, 3))

    with wrap(model, memory=Sink(2) + Keep(score, 18) + Window(6), page_size=PAGE) as engine:
        stream = engine.open()
        for i in range(9):
            stream.feed(tokens(6, i))
    assert len(heard) >= 5
    want = {}

    def attend(layer, q, k, v):
        want.setdefault(layer, []).append(k)
        return torch.zeros_like(q)

    with torch.inference_mode():
        model(torch.cat([tokens(6, i) for i in range(9)]), attend)
    for number, keys in heard:  # those of layer 0 depend on the tokens alone
        assert gap(keys[0], want[0][0][number].transpose(0, 1)) < 1e-5


def test_scores_by_a_recipe_over_the_keys():
    """The keys least like the rest; in one layer they follow from the tokens alone."""
    model, budget, anchor = TinyDecoder(layers=1), 18, 4

    def score(held):
        return -infinite_vggt.score(held.keys(), anchor).mean((0, 1))

    k = []
    with torch.inference_mode():
        fed = [tokens(9, i) for i in range(10)]
        model(
            torch.cat(fed), lambda layer, q, key, v: k.append(key.double()) or torch.zeros_like(q)
        )
    alive, pieces, got = [], [], []
    with wrap(model, memory=Sink(anchor) + Keep(score, budget), page_size=PAGE) as engine:
        stream = engine.open()
        for i, one in enumerate(fed):
            if len(alive) > budget:
                unit = torch.nn.functional.normalize(k[0][alive], dim=-1)  # [N, Hkv, D]
                mean = unit[anchor:].mean(0)
                order = (unit * mean).sum(-1).mean(-1).argsort()[:budget].tolist()
                alive = sorted({alive[j] for j in order} | set(range(anchor)))
            pieces.append(Piece(one, keep=list(alive)))
            got.append(stream.feed(one, logits=True).logits)
            alive += range(9 * i, 9 * i + 9)
            assert stream.held.number.tolist() == alive
    assert alive[anchor] < 81 - budget  # not simply the newest
    assert gap(torch.cat(got), oracle(model, pieces, Keep(), InCache())) < BOUND
