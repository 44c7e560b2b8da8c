# SPDX-License-Identifier: Apache-2.0
"""Distances that stop growing: blocks stand still, wherever their pages begin."""

from dataclasses import replace

import pytest
import torch

from headrace import Absolute, Archive, Fold, Keep, Piece, Relative, Sink, Window, oracle, wrap
from headrace.memory import UNLIMITED, Page, Table, view
from headrace.memory.regions import compile_plan
from headrace.streams.ring_oracle import unrolled
from headrace.streams.snapshot import resume, snapshot

from .rings import DENOISER, NOISE, clip, constant, played, ring, stacked
from .tiny import TinyDecoder, gap, streamed, tokens

BOUND = 2e-4
CLAMPED = view._clamped
SCHEMES = [Relative(31, 16), Relative(40, 7), Relative(20, 1), Relative(15, 16), Relative(500, 64)]


def test_the_distance_by_its_definition():
    q, k = torch.arange(60)[:, None], torch.arange(60)[None, :]
    got = Relative(20, 1).distance(q, k, k <= q)
    assert torch.equal(got[k <= q], (q - k).clamp_max(20)[k <= q])
    got = Relative(31, 16).distance(q, k, k <= q)
    for t, j, want in ((59, 59, 0), (59, 35, 24), (59, 31, 16), (40, 9, 22), (40, 20, 20)):
        assert int(got[t, j]) == want
    assert int(got[59, 0]) == 31  # no key seems further away
    assert int(got[k <= q].max()) == 31


@pytest.mark.parametrize("positions", SCHEMES, ids=repr)
@pytest.mark.parametrize("memory", [Window(None), Sink(20) + Window(50)], ids=repr)
def test_chunks_equal_one_another_and_the_oracle(memory, positions):
    model, fed = TinyDecoder(), tokens(150)
    want = oracle(model, fed, memory, positions)
    with wrap(model, memory=memory, positions=positions, page_size=16) as e:
        for chunk in (1, 13, 150):
            assert gap(streamed(e, fed, chunk), want) < BOUND
        assert gap(streamed(e, fed, 13, position=1000), want) < BOUND
    if positions.clamp < 100:
        assert gap(oracle(model, fed, memory, Absolute()), want) > 100 * BOUND


def test_blocks_do_not_depend_on_where_pages_begin(tmp_path):
    model, fed = TinyDecoder(), tokens(140)
    memory, positions = Sink(4) + Window(60), Relative(24, 8)
    want = oracle(model, fed, memory, positions)
    with wrap(model, memory=memory, positions=positions, page_size=16) as e:
        stream = e.open()
        stream.feed(fed[:37])
        mark, twin = stream.mark(), stream.fork()  # whose next page begins at 37
        stream.feed(fed[37:90])
        assert gap(twin.feed(fed[37:], logits=True).logits, want[37:]) < BOUND
        stream.rollback(mark)
        stream.feed(fed[37:100])
        snapshot(stream, tmp_path / "s")
        again = resume(e, tmp_path / "s").stream
        assert gap(again.feed(fed[100:], logits=True).logits, want[100:]) < BOUND
        own = e.open(positions=Relative(30, 4), memory=Window(None))
        got = own.feed(fed, logits=True).logits
        assert gap(got, oracle(model, fed, Window(None), Relative(30, 4))) < BOUND


def test_survivors_and_folds_stand_so_too():
    model, fed = TinyDecoder(), tokens(120)
    positions = Relative(24, 8)
    memory = Sink(4) + Window(40) >> Fold()
    want = oracle(model, fed, memory, positions)
    with wrap(model, memory=memory, positions=positions, page_size=16) as e:
        assert gap(streamed(e, fed, 7), want) < BOUND
    memory = Keep("given", 20) + Window(30)
    scores = torch.rand(120, generator=torch.Generator().manual_seed(1)).tolist()
    pieces = [Piece(fed[at : at + 10], scores=scores[at : at + 10]) for at in range(0, 120, 10)]
    want = oracle(model, pieces, memory, positions)
    with wrap(model, memory=memory, positions=positions, page_size=16) as e:
        stream = e.open()
        got = torch.cat([e.step({stream: p}, logits=True)[stream].logits for p in pieces])
    assert gap(got, want) < BOUND


def test_rings_clamp_frame_by_frame():
    frames, want = clip(7), []
    for positions in (Relative(2, 1), Absolute()):
        with ring(memory=Window(5), positions=positions) as one:
            got = stacked(played(one, frames))
        want.append(
            unrolled(DENOISER, frames, NOISE, constant(), memory=Window(5), positions=positions)
        )
        assert gap(got, want[-1]) < BOUND
    assert gap(*want) > 10 * BOUND


def test_entries_of_a_page_that_two_blocks_share():
    plan = replace(compile_plan(Window(None)), cap=20, block=8)
    table = Table(100, 117, plan, window=(Page(3, 100, 100), Page(5, 113, 100)))
    rows = view.entries(table, oldest=116)
    far = UNLIMITED
    assert [(*r[:5], r[5]) for r in rows] == [
        (3, 0, 8, 100, 20, 100),
        (3, 8, 5, 100, 28, 108),
        (5, 0, 3, 100, 28, 113),
        (5, 3, 1, 100, 36, 116),
    ]
    assert {r[6] for r in rows} == {far}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda row, table: [row],  # nothing stands still
        lambda row, table: [(*r[:4], r[4] + 1, *r[5:]) for r in CLAMPED(row, table)],
        lambda row, table: CLAMPED(row, replace(table, start=table.start + 1)),  # other blocks
    ],
    ids=["unclamped", "one further", "other blocks"],
)
def test_a_block_that_stands_elsewhere_shows(monkeypatch, wrong):
    model, fed, positions = TinyDecoder(), tokens(150), Relative(31, 16)
    want = oracle(model, fed, Window(None), positions)
    monkeypatch.setattr(view, "_clamped", wrong)
    with wrap(model, memory=Window(None), positions=positions, page_size=16) as e:
        assert gap(streamed(e, fed, 13), want) > 10 * BOUND


def test_what_cannot_be_clamped_gets_one_line():
    model = TinyDecoder()
    for match, error, call in (
        (r"^Relative\(block\): expected 1 or more, got 0", ValueError, lambda: Relative(3, 0)),
        (r"^Relative\(clamp\): expected 63 or more, got 20; a block", ValueError,
         lambda: Relative(20)),
        (r"^Relative\(clamp\): expected a whole number, got 2.5", TypeError,
         lambda: Relative(2.5, 1)),
        (r"^wrap\(memory\): .*without an Archive for Relative\(clamp=63", NotImplementedError,
         lambda: wrap(model, memory=Window(8) >> Archive(), positions=Relative(63))),
    ):  # fmt: skip
        with pytest.raises(error, match=match) as told:
            call()
        assert "\n" not in str(told.value)
