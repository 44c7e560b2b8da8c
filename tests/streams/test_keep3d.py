# SPDX-License-Identifier: Apache-2.0
"""Tokens that keep their time, row and column, whoever else stays."""

import random
from dataclasses import replace

import pytest
import torch

from headrace import (
    Absolute,
    Archive,
    Fold,
    InCache,
    Keep,
    Keep3D,
    Piece,
    Sink,
    Window,
    oracle,
    recompute,
    wrap,
)
from headrace.memory import UNLIMITED, Parked
from headrace.ops.rope import sections
from headrace.streams import spatial
from headrace.streams.history import History
from headrace.streams.seat import Seat
from headrace.streams.snapshot import resume, snapshot

from .tiny import TinyDecoder, gap, tokens

PLACES, PLACED = spatial.places, spatial.placed
BOUND = 2e-4
NEAR = Sink(6) + Window(40)
CAPS = pytest.mark.parametrize("positions", [Keep3D(), Keep3D(9), Keep3D(0)], ids=repr)


class Spatial(TinyDecoder):
    """Frequencies are of time, of rows and of columns."""

    @property
    def freq_axis(self):
        return sections(8, (2, 3, 3))


def video(frames=14, seed=0, base=0, rows=3, columns=4):
    """A question of 5 bytes, then of every frame some of its tokens, then 6 bytes of text."""
    g = torch.Generator().manual_seed(seed)
    made = [Piece(tokens(5, seed))]
    for t in range(frames):
        kept = torch.rand(rows * columns, generator=g) < 0.6
        at = kept.nonzero()[:, 0]
        where = torch.stack([torch.full_like(at, base + 5 + 2 * t), at // columns, at % columns], 1)
        where[:, 1:] += 5 + base
        made.append(Piece(torch.randint(256, (len(at),), generator=g), places=where))
    return [*made, Piece(tokens(6, seed + 1))]


def joined(pieces):
    return torch.cat([p.tokens for p in pieces])


def streamed(e, pieces, **opened):
    with e.open(**opened) as stream:
        return torch.cat([e.step({stream: p}, logits=True)[stream].logits for p in pieces])


def split(pieces, size):
    """The same, fewer tokens at a time."""
    for p in pieces:
        for at in range(0, len(p.tokens), size):
            where = None if p.places is None else p.places[at : at + size]
            yield Piece(p.tokens[at : at + size], places=where)


@CAPS
def test_it_equals_a_forward_by_loops(positions):
    model, pieces = Spatial(layers=1), video(6)
    got = oracle(model, pieces, NEAR, positions)
    c, spots, axes = model.config, [], model.freq_axis.tolist()
    for p in pieces:
        for i in range(len(p.tokens)):
            new = max((max(s) for s in spots), default=-1) + 1
            spots.append([new] * 3 if p.places is None else p.places[i].tolist())

    def attend(layer, q, k, v):
        k, v = (x.repeat_interleave(c.heads // c.kv_heads, 1) for x in (k, v))
        out = torch.zeros_like(q)
        for t in range(len(q)):
            here = [j for j in range(t + 1) if j < 6 or t - j < 40]
            for h in range(c.heads):
                logits = []
                for j in here:
                    far = [a - b for a, b in zip(spots[t], spots[j], strict=True)]
                    if positions.cap is not None and j < 6:
                        back = min(spots[t][0] - spots[0][0], positions.cap)
                        far[0] = back - (spots[j][0] - spots[0][0])
                    angle = torch.tensor([far[x] for x in axes]) * model.inv_freq
                    a, b = k[j, h, :8], k[j, h, 8:]
                    near = a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()
                    logits.append(torch.cat(near) @ q[t, h] / 4)
                out[t, h] = torch.stack(logits).softmax(0) @ v[here, h]
        return out

    with torch.no_grad():
        want = model.double()(joined(pieces), attend)
    assert gap(got, want) < 1e-9


@CAPS
@pytest.mark.parametrize("memory", [NEAR, Window(33), Sink(20) + Window(50)], ids=repr)
def test_chunks_equal_one_another_and_the_oracle(memory, positions):
    model, pieces = Spatial(), video(14)
    want = oracle(model, pieces, memory, positions)
    with wrap(model, memory=memory, positions=positions, page_size=16, chunk=30) as e:
        assert gap(streamed(e, pieces), want) < BOUND
        for size in (1, 5):
            assert gap(streamed(e, split(pieces, size)), want) < BOUND
        assert e.pool.live_pages == 0
    lone = [Piece(p.tokens) for p in pieces]  # where they are counts
    assert gap(oracle(model, lone, memory, positions), want) > 100 * BOUND


def test_text_alone_is_one_dimensional():
    model, fed = Spatial(), tokens(120)
    with wrap(model, memory=NEAR, positions=Keep3D(), page_size=16) as e, e.open() as stream:
        got = stream.feed(fed, logits=True).logits
    assert gap(got, oracle(model, fed, NEAR, Keep3D())) < BOUND
    assert gap(got, oracle(TinyDecoder(), fed, NEAR, Absolute())) < BOUND


def test_late_times_are_as_exact_as_early_ones():
    model, far = Spatial(), 10**9
    near, late = video(10), video(10, base=far)
    moved = late[0].tokens.new_tensor([far] * 3)
    late[0] = Piece(late[0].tokens, places=torch.arange(5)[:, None].repeat(1, 3) + moved)
    with wrap(model, memory=NEAR, positions=Keep3D(20), page_size=16) as e:
        assert gap(streamed(e, near), streamed(e, late)) < BOUND


def test_any_tree_of_branches_equals_the_oracle():
    model, pick = Spatial(layers=1), random.Random(0)
    with wrap(model, memory=NEAR, positions=Keep3D(7), page_size=16, pool_pages=200) as e:
        branches, marks = [(e.open(), [])], []
        for step in range(60):
            stream, history = pick.choice(branches)
            move = pick.random()
            mine = [m for m in marks if m[0].stream is stream]
            if move < 0.15 and len(branches) < 4:
                branches.append((stream.fork(), list(history)))
            elif move < 0.3:
                marks.append((stream.mark(), list(history)))
            elif move < 0.45 and mine:
                mark, history[:] = pick.choice(mine)
                stream.rollback(mark)
            else:
                n = pick.randint(1, 25)
                time = stream.table.placed.top if stream.table.placed else 0
                where = torch.randint(9, (n, 3), generator=torch.Generator().manual_seed(step))
                where[:, 0] += time
                history.append(Piece(tokens(n, step), places=where if move < 0.8 else None))
                got = e.step({stream: history[-1]}, logits=True)[stream].logits
                assert gap(got, oracle(model, history, NEAR, Keep3D(7))[-n:]) < BOUND, step


@CAPS
def test_it_is_kept_shared_and_had_again(positions, tmp_path):
    model, pieces = Spatial(), video(14)
    with wrap(model, memory=NEAR, positions=positions, page_size=16) as e:
        alone, stream = e.open(), e.open()
        for p in pieces[:8]:
            e.step({alone: p, stream: p})
        snapshot(alone, tmp_path / "s")
        parked = Parked(e.pool, alone._lease)
        alone._lease = parked.restore()
        rest = pieces[8:]
        want = torch.cat([e.step({alone: p}, logits=True)[alone].logits for p in rest])
        mark, twin = stream.mark(), stream.fork()
        for p in video(5, seed=3):
            e.step({stream: p})
        stream.rollback(mark)
        for other in (stream, twin):
            got = torch.cat([e.step({other: p}, logits=True)[other].logits for p in rest])
            assert gap(got, want) < 1e-5
        said = alone.say(max_new=4)
        assert alone.table.placed.top == stream.table.placed.top + 4
    with wrap(model, memory=NEAR, positions=positions, page_size=16) as e:
        again = resume(e, tmp_path / "s").stream
        got = torch.cat([e.step({again: p}, logits=True)[again].logits for p in rest])
        assert torch.equal(got, want)
        assert again.say(max_new=4) == said


def test_neighbours_change_no_bits_and_own_caps_count():
    model, a, b = Spatial(), video(12), video(12, seed=5)
    with wrap(model, memory=NEAR, positions=Keep3D(), page_size=16) as e:
        alone = streamed(e, a), streamed(e, b, positions=Keep3D(3), memory=Window(20) + Sink(3))
        want = oracle(model, b, Window(20) + Sink(3), Keep3D(3))
        assert gap(alone[1], want) < BOUND
        one, two = e.open(), e.open(positions=Keep3D(3), memory=Window(20) + Sink(3))
        got = [[], []]
        for p, q in zip(a, b, strict=True):
            told = e.step({one: p, two: q}, logits=True)
            got[0].append(told[one].logits), got[1].append(told[two].logits)
        for x, y in zip(alone, got, strict=True):
            assert torch.equal(x, torch.cat(y))


def test_recompute_reads_the_survivors_where_they_are():
    model, pieces = Spatial(layers=1), video(14)
    at = [3, 60, len(joined(pieces)) - 1]
    got = recompute(model, pieces, NEAR, Keep3D(), at=at)
    want = oracle(model, pieces, NEAR, Keep3D())[at]
    assert gap(got, want) < BOUND  # of one layer, where nothing remembers the evicted
    deep = Spatial()
    assert gap(recompute(deep, pieces, NEAR, Keep3D(), at=at)[1:],
               oracle(deep, pieces, NEAR, Keep3D())[at][1:]) > 1e-2  # fmt: skip


@pytest.mark.parametrize("swap", [False, True])
def test_a_seat_that_parks_reads_again_only_what_its_text_says(swap):
    model, pieces, more = Spatial(), video(6), tokens(9, 4)
    with wrap(model, memory=NEAR, positions=Keep3D(), page_size=16) as e:
        for given in (pieces, [Piece(joined(pieces))]):
            stream, alone = e.open(), e.open()
            for p in given:
                e.step({stream: p, alone: p})
            seat = Seat("a", stream, History(joined(given).tolist()))
            told = given is pieces
            assert (seat.park(swap) > 0) == (swap or told)
            assert stream.table.placed is None
            if not (swap or told):
                assert stream.tokens == 0
                stream.feed(joined(given))
            seat.resume()
            want = alone.feed(more, logits=True).logits
            assert gap(stream.feed(more, logits=True).logits, want) < 1e-5
            seat.close()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda m: m.setattr(spatial, "places", lambda t, given, *a: PLACES(t, None, *a)),
        lambda m: m.setattr(Keep3D, "place", lambda self, plan: replace(plan, cap=UNLIMITED)),
        lambda m: m.setattr(Keep3D, "place", lambda self, plan: replace(plan, cap=self.cap + 1)),
        lambda m: m.setattr(
            spatial, "placed",
            lambda *a: ([t and replace(t, placed=replace(t.placed, top=0)) for t in PLACED(*a)[0]],
                        PLACED(*a)[1]),
        ),
        lambda m: m.setattr(spatial, "ORIGIN", 4),
    ],
    ids=["places", "no cap", "cap", "top", "origin"],
)  # fmt: skip
def test_each_part_counts(wrong, monkeypatch):
    model, pieces = Spatial(), video(14, base=200)
    want = oracle(model, pieces, NEAR, Keep3D(9))
    wrong(monkeypatch)
    with wrap(model, memory=NEAR, positions=Keep3D(9), page_size=16) as e:
        assert gap(streamed(e, pieces), want) > 10 * BOUND


def test_what_cannot_be_placed_gets_one_line():
    model = Spatial()
    with (
        wrap(model, memory=NEAR, positions=Keep3D()) as e,
        wrap(TinyDecoder(), memory=NEAR) as flat,
    ):
        stream = e.open(history=True)
        stream.feed([1, 2], places=[[0, 0, 0], [0, 0, 1]])
        state = stream.tokens, stream.table
        for match, error, call in (
            (r"^Keep3D\(cap\): expected 0 or more, got -1", ValueError, lambda: Keep3D(-1)),
            (r"^Keep3D\(cap\): expected a whole number, got 'x'", TypeError, lambda: Keep3D("x")),
            (r"^wrap\(model\): expected a model whose freq_axis", ValueError,
             lambda: wrap(TinyDecoder(), memory=NEAR, positions=Keep3D())),
            (r"^wrap\(positions\): .*Keep3D\(\) where frequencies have axes", NotImplementedError,
             lambda: wrap(model, memory=NEAR)),
            (r"^open\(positions\): .*Keep3D\(\) where", NotImplementedError,
             lambda: e.open(positions=InCache())),
            (r"^wrap\(memory\): .*in tokens with Keep3D", NotImplementedError,
             lambda: wrap(model, memory=NEAR >> Archive(), positions=Keep3D())),
            (r"^wrap\(memory\): .*in tokens with Keep3D", NotImplementedError,
             lambda: wrap(model, memory=NEAR >> Fold(), positions=Keep3D())),
            (r"^wrap\(memory\): .*in tokens with Keep3D", NotImplementedError,
             lambda: wrap(model, memory=Keep("given", 9), positions=Keep3D())),
            (r"^feed\(places\): expected None, got some; wrap the model", ValueError,
             lambda: flat.open().feed([1], places=[[0, 0, 0]])),
            (r"^feed\(places\): expected \[2, 3\], got \[1, 3\]", ValueError,
             lambda: stream.feed([1, 2], places=[[0, 0, 0]])),
            (r"^feed\(places\): expected 0 or more, .* got -1", ValueError,
             lambda: stream.feed([1], places=[[0, 0, -1]])),
            (r"^feed\(places\): expected whole numbers \[T, 3\], got torch.float", TypeError,
             lambda: stream.feed([1], places=torch.zeros(1, 3))),
            (r"^feed\(memory\): ", NotImplementedError,
             lambda: stream.feed([1], places=[[0, 0, 1]], tag="a")),
            (r"^update\(positions\): .* those of one axis", NotImplementedError,
             lambda: stream.update([1, 2, 3])),
        ):  # fmt: skip
            with pytest.raises(error, match=match) as told:
                call()
            assert "\n" not in str(told.value)
        assert (stream.tokens, stream.table) == state
