# SPDX-License-Identifier: Apache-2.0
"""Regions that choose: a stream equals its oracle, and survivors stay where they lie."""

import functools

import numpy as np
import pytest
import torch

from headrace import (
    Absolute,
    Archive,
    InCache,
    Keep,
    Lane,
    PerLane,
    Piece,
    Rest,
    Sink,
    Tagged,
    Window,
    oracle,
    recompute,
    wrap,
)  # fmt: skip
from headrace.memory import kept, most_pages
from headrace.recipes import infinite_vggt
from headrace.streams import Event, Linear, Virtual, resume, serve, snapshot
from headrace.streams import piece as pieces_of
from headrace.streams.seat import Seat

from .test_failure import Faulty, Interrupted, state
from .tiny import TinyDecoder, gap, tokens

BOUND, PAGE = 1e-4, 16
MEMORIES = [
    Sink(4) + Keep("given", 12) + Window(24),
    Sink(4) + Window(20) >> Keep("given", 9),
    Sink(4) + Keep("given", 16, room=True) >> Rest(40),
    Keep("surprisal", 10) + Window(9),
    Window(seconds=5) + Sink(3),
    Window(frames=3),
    Tagged("see", Window(seconds=4)) + Tagged(None, Sink(6) + Keep("given", 5) + Window(7)),
    Window(7) >> (Sink(5) + Window(11)) + Keep("given", 2),
    Tagged("see", Window(frames=2) >> Keep("given", 11)) + Tagged(None, Window(12)) >> Rest(31),
]


def episode(count=40, longest=16, seed=0):
    """Pieces of odd sizes, some longer than a window; scores with ties; a clock that may stand."""
    made, now = torch.Generator().manual_seed(seed), 0.0
    for i in range(count):
        n = int(torch.randint(1, longest + 1, (1,), generator=made))
        now += int(torch.randint(0, 3, (1,), generator=made))
        yield Piece(
            torch.randint(256, (n,), generator=made),
            scores=torch.randint(0, 50, (n,), generator=made).double(),
            at=now,
            frame=float(i // 2),
            tag=("see", None)[int(torch.randint(0, 2, (1,), generator=made))],
        )


def played(stream, episode):
    """Logits, and the pieces with the scores that the oracle goes by."""
    got, heard = [], []
    given = "surprisal" not in repr(stream.engine.memory)
    for one in episode:
        report = stream.engine.step({stream: one}, logits=True)[stream]
        got.append(report.logits)
        heard.append(one if given else Piece(one.tokens, report.nll, one.at, one.frame, one.tag))
    return torch.cat(got), heard


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


def test_forks_marks_snapshots_and_parking(tmp_path):
    model, memory = TinyDecoder(), MEMORIES[0]
    first, second = list(episode(20)), list(episode(12, seed=1))
    late = [Piece(p.tokens, p.scores, p.at + 100, p.frame + 100, p.tag) for p in second]
    options = {"memory": memory, "page_size": PAGE, "pool_pages": 80}
    with wrap(model, **options) as engine:
        alone = engine.open()
        played(alone, first)
        want, _ = played(alone, late)
        stream = engine.open()
        played(stream, first)
        mark, fork = stream.mark(), stream.fork()
        fork_mark = fork.mark()
        held = stream.held.number.tolist()
        snapshot(stream, tmp_path / "a")
        played(stream, late[::-1][:1])
        stream.rollback(mark)
        assert stream.held.number.tolist() == held
        played(fork, late[-1:])
        fork.rollback(fork_mark)
        seat = Seat("a", fork)
        seat.park(swap=False)
        assert seat.parked is not None  # not to be read again: others might survive
        got, _ = played(stream, late)
        assert gap(got, want) < BOUND  # in a page of its own, for others hold the last one
        seat.resume()
        assert gap(played(fork, late)[0], want) < BOUND
        for one in (alone, stream, fork):
            one.close()
        for one in (mark, fork_mark):
            one.release()
        assert engine.pool.live_pages == 0
    with wrap(model, **options) as engine:
        engine.open().feed(tokens(5), scores=torch.zeros(5))
        again = resume(engine, tmp_path / "a").stream
        assert again.held.number.tolist() == held
        assert torch.equal(played(again, late)[0], want)


def test_bits_do_not_depend_on_neighbours():
    with wrap(TinyDecoder(), memory=MEMORIES[0], page_size=PAGE, pool_pages=400) as engine:
        alone, _ = played(engine.open(), episode(10))
        streams = [engine.open() for _ in range(5)]
        rows = [list(episode(10, seed=i)) for i in range(5)]
        got = [
            engine.step(dict(zip(streams, step, strict=True)), logits=True)[streams[0]].logits
            for step in zip(*rows, strict=True)
        ]
        assert torch.equal(torch.cat(got), alone)


@pytest.mark.parametrize("cls", [Faulty, Interrupted])
def test_after_an_error_all_is_as_it_was(cls):
    model = cls()
    with wrap(model, memory=MEMORIES[0], page_size=PAGE, chunk=16, pool_pages=64) as engine:
        stream = engine.open()
        played(stream, episode(12))
        fork, mark = stream.fork(), stream.mark()
        before = state(engine, [stream, fork])
        for call in (1, 2, 3):  # some evict and pack before they fail
            model.calls = call
            with pytest.raises((RuntimeError, KeyboardInterrupt)):
                stream.feed(tokens(48), scores=torch.zeros(48), at=1e3, frame=1e3)
            assert state(engine, [stream, fork]) == before
        with pytest.raises(ValueError, match=r"keep\(numbers\): expected tokens that are alive"):
            stream.keep([10**6])
        assert state(engine, [stream, fork]) == before
        stream.feed(tokens(48), scores=torch.zeros(48), at=1e3, frame=1e3)
        mark.release()


def test_random_sessions_leak_nothing():
    rng = np.random.default_rng(0)
    with wrap(TinyDecoder(layers=1), memory=MEMORIES[2], page_size=PAGE, pool_pages=200) as engine:
        streams, marks = [engine.open()], []
        for i in range(250):
            s, what = streams[rng.integers(len(streams))], rng.integers(8)
            if what == 0 and len(streams) < 5:
                streams.append(s.fork())
            elif what == 1 and len(streams) > 1:
                streams.remove(s)
                marks = [m for m in marks if m.stream is not s]
                s.close()
            elif what == 2 and len(marks) < 5:
                marks.append(s.mark())
            elif what == 3 and marks:
                mark = marks.pop(rng.integers(len(marks)))
                mark.stream.rollback(mark)
                mark.release()
            elif what == 4 and s.tokens:
                s.keep(s.held.number[rng.random(len(s.held)) < 0.7])
            else:
                n = int(rng.integers(1, 20))
                s.feed(tokens(n, i), scores=rng.random(n))
            held = [x._lease.table.page_ids for x in (*streams, *marks)]
            assert engine.pool.live_pages == len({page for ids in held for page in ids})
            for x in streams:
                assert len(x.pages) <= most_pages(x.alive, PAGE) + 2
        for x in (*streams, *marks):
            (x.release if x in marks else x.close)()
        assert engine.pool.live_pages == 0


def test_recompute_of_one_layer_is_the_oracle():
    model, memory = TinyDecoder(layers=1), MEMORIES[0]
    with wrap(model, memory=memory, page_size=PAGE) as engine:
        got, heard = played(engine.open(), episode(20))
    again = recompute(model, heard, memory, at=[3, 90, len(got) - 1])
    assert gap(again, got[[3, 90, -1]]) < BOUND
    deep = TinyDecoder()
    want = oracle(deep, heard, memory, InCache())
    assert gap(recompute(deep, heard, memory, at=[len(got) - 1]), want[-1:]) > 100 * BOUND


def test_served_streams_keep_what_their_pieces_say():
    """Parked, forked while parked, gone on: the same outputs as with pages for all."""
    memory = Sink(2) + Keep("surprisal", 12) + Window(10)
    fed = [tuple(tokens(40, i).tolist()) for i in range(4)]
    events = [Event(0.0, f"s{i}", "open") for i in range(4)]
    events += [Event(1.0 + i, f"s{i}", "feed", fed[i]) for i in range(4)]
    events += [Event(9.0, "t", "fork", parent="s0")]
    events += [Event(10.0 + i, n, "say", max_new=6) for i, n in enumerate(["s1", "t", "s0", "s3"])]
    outputs = []
    for pages in (400, 14):
        with wrap(TinyDecoder(), memory=memory, page_size=PAGE, pool_pages=pages, chunk=8) as e:
            run = serve(e, events, clock=Virtual(Linear()))
            outputs.append(run.outputs)
            parked = any("parked" in line for line in run.log)
            assert parked == (pages == 14)
    assert outputs[0] == outputs[1]


def refused(what, error, text):
    with pytest.raises(error) as caught:
        what()
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_errors_are_one_line():
    model = TinyDecoder()
    refused(lambda: Keep("likely", 3), TypeError, "Keep(score): expected 'given', 'surprisal'")
    refused(lambda: Keep("given", -1), ValueError, "Keep(budget): expected 0 or more, got -1")
    refused(lambda: Window(3, seconds=2), ValueError, "Window(tokens): expected one of tokens")
    refused(lambda: Window(seconds=0), ValueError, "Window(seconds): expected more than 0")
    refused(lambda: Rest(0), ValueError, "Rest(total): expected 1 or more, got 0")
    refused(lambda: Tagged("a", 3), TypeError, "Tagged(region): expected a region")
    lanes = {"lanes": [Lane("a", memory=Keep())], "positions": PerLane()}
    for what, text in (
        ({"memory": Window(3), **lanes}, "Sink and Window in tokens here, got"),
        ({"memory": Keep() >> Archive()}, "Sink and Window in tokens, got"),
        ({"memory": Window(seconds=2) >> Archive()}, "Sink and Window in tokens, got"),
        ({"memory": Window(3) >> Archive() >> Keep()}, "Sink, Window, Keep, Rest and Tagged"),
        ({"memory": Window(3) >> (Keep() + Archive())}, "Sink, Window, Keep, Rest and Tagged"),
    ):
        text = f"wrap(memory): expected one of {text}"
        refused(functools.partial(wrap, model, **what), NotImplementedError, text)
    with wrap(model, memory=Sink(4) + Window(20)) as plain:
        for use in (
            lambda: plain.open().feed([1], at=3),
            lambda: plain.open().keep([0]),
            lambda: plain.open().held,
            lambda: plain.open().rescore([]),
        ):
            refused(use, NotImplementedError, "")
    with wrap(model, memory=Keep("given", 4) + Window(seconds=3) + Window(4)) as engine:
        s = engine.open(history=True)
        refused(lambda: s.feed([1]), ValueError, "feed(at): expected the time in seconds")
        refused(lambda: s.feed([1], at=1), ValueError, "feed(scores): expected a number for each")
        refused(lambda: s.feed([1], at="x"), TypeError, "feed(at): expected a number")
        refused(lambda: s.feed([1, 2], at=1, scores=[1]), ValueError, "feed(scores): expected")
        s.feed([1, 2], at=2, scores=[1, 1])
        refused(
            lambda: s.feed([1], at=1, scores=[1]), ValueError, "feed(at): expected 2.0 or later"
        )
        refused(lambda: s.keep([0.5]), TypeError, "keep(numbers): expected whole numbers")
        refused(lambda: s.rescore([1]), ValueError, "rescore(scores): expected a number for each")
        refused(lambda: s.update([1]), NotImplementedError, "update(memory): expected one of")
    with wrap(model, memory=Keep(lambda held: [1], 2)) as engine:
        s = engine.open()
        s.feed([1, 2, 3])
        refused(lambda: s.feed([1]), ValueError, "Keep(score): expected a number for each of 3")
        assert s.tokens == 3
