# SPDX-License-Identifier: Apache-2.0
"""A stream's result never depends on its neighbours."""

import pytest
import torch

from headrace import Absolute, InCache, Sink, Window, wrap
from headrace.streams.reading import known, score
from headrace.streams.report import Scored

from .tiny import TinyDecoder, gap, tokens

MEMORY = Sink(4) + Window(24)


def alone(model, fed, parts, **options):
    stream = wrap(model, memory=MEMORY, **options).open()
    return [stream.feed(part, logits=True) for part in fed.split(parts)]


@pytest.mark.parametrize("positions", [InCache(), Absolute()], ids=repr)
@pytest.mark.parametrize("sink_logits", [False, True])
def test_exact_mode_has_the_same_bits_alone_and_in_a_batch_of_16(positions, sink_logits):
    model = TinyDecoder(sink_logits=sink_logits, head_dim=48)
    fed = [tokens(120 + 9 * i, seed=i) for i in range(16)]
    engine = wrap(model, memory=MEMORY, positions=positions, exact=True)
    streams = [engine.open() for _ in fed]
    mine = 5
    want = alone(model, fed[mine], 11, positions=positions, exact=True)
    for step, expected in enumerate(want):
        # The others come and go, in pieces of their own lengths.
        batch = {}
        for i, stream in enumerate(streams):
            if i != mine and (i + step) % 3:
                at = stream.tokens
                batch[stream] = fed[i][at : at + 1 + (5 * i + step) % 17]
            elif i == mine:
                batch[stream] = fed[i][11 * step : 11 * step + 11]
        got = engine.step(batch, logits=True)[streams[mine]]
        assert torch.equal(got.logits, expected.logits)
        assert torch.equal(got.nll[1:], expected.nll[1:])


def test_long_inputs_of_different_lengths_in_one_step():
    model = TinyDecoder()
    fed = [tokens(n, seed=n) for n in (1, 40, 0, 130)]
    engine = wrap(model, memory=MEMORY, exact=True, chunk=32)
    streams = [engine.open() for _ in fed]
    reports = engine.step(dict(zip(streams, fed, strict=True)), logits=True)
    for stream, x in zip(streams, fed, strict=True):
        got = reports[stream]
        assert got.tokens == len(x) == len(got.nll) == len(got.logits) == stream.tokens
        if len(x):
            want = alone(model, x, 32, exact=True)
            assert torch.equal(got.logits, torch.cat([r.logits for r in want]))


def test_without_exact_mode_a_batch_is_equal_to_rounding():
    model, fed = TinyDecoder(), [tokens(100, seed=i) for i in range(16)]
    engine = wrap(model, memory=MEMORY)
    reports = engine.step({engine.open(): x for x in fed}, logits=True)
    for report, x in zip(reports.values(), fed, strict=True):
        assert gap(report.logits, alone(model, x, 100)[0].logits) < 1e-4


def poison(engine, keep):
    """NaN in every slot of the pool but those that hold tokens of the stream `keep`."""
    k, v = engine.pool.k.clone(), engine.pool.v.clone()
    engine.pool.k.fill_(torch.nan)
    engine.pool.v.fill_(torch.nan)
    table = keep._lease.table
    for spans in (table.pinned_spans(), table.window_spans()):
        for page, stop in spans:
            slots = slice(0, stop - page.start)
            engine.pool.k[:, page.id, ..., slots] = k[:, page.id, ..., slots]
            engine.pool.v[:, page.id, :, slots] = v[:, page.id, :, slots]


def test_nan_of_others_and_of_free_pages_leaves_no_trace():
    model, fed = TinyDecoder(), tokens(150)
    want = alone(model, fed, 10, exact=True)
    engine = wrap(model, memory=MEMORY, exact=True, page_size=16)
    mine, other = engine.open(), engine.open()
    want = alone(model, fed, 10, exact=True, page_size=16)
    for step, (part, expected) in enumerate(zip(fed.split(10), want, strict=True)):
        poison(engine, mine)
        got = engine.step({other: tokens(step + 3), mine: part}, logits=True)
        assert torch.equal(got[mine].logits, expected.logits)
    assert got[other].logits.isnan().any()  # the poison was there to be read


def test_a_fork_and_its_origin_do_not_disturb_each_other():
    model, fed, left, right = TinyDecoder(), tokens(70), tokens(60, 1), tokens(60, 2)
    want = [alone(model, torch.cat([fed, x]), 10, exact=True)[7:] for x in (left, right)]
    engine = wrap(model, memory=MEMORY, exact=True)
    a = engine.open()
    for part in fed.split(10):
        a.feed(part)
    b = a.fork()
    assert a.pages == b.pages
    for i, (x, y) in enumerate(zip(left.split(10), right.split(10), strict=True)):
        got = engine.step({a: x, b: y}, logits=True)
        # a goes on in the shared page, bit for bit; b had to begin a page, which moves its tiles.
        assert torch.equal(got[a].logits, want[0][i].logits)
        assert gap(got[b].logits, want[1][i].logits) < 1e-4


@pytest.mark.parametrize("vocab", [1, 63, 256, 4099, 151936])
def test_a_score_has_the_same_bits_beside_any_other(vocab):
    torch.set_num_threads(2)  # with which torch splits the sum of a single long row
    rows = 3 * torch.randn(4, vocab, generator=torch.Generator().manual_seed(1))
    said = torch.arange(4) % vocab

    def scores(which):
        ahead, logits = [([rows], i) for i in which], torch.zeros(len(which), vocab)
        told = Scored()
        score(told, ahead, known(ahead), [1] * len(which), said[which], logits)
        return told.nll

    together = scores([0, 1, 2, 3])
    for i, nll in enumerate(together):
        assert torch.equal(scores([i])[0], nll)
        want = torch.nn.functional.cross_entropy(rows[i].double(), said[i])
        assert nll.item() == pytest.approx(want.item(), rel=1e-5, abs=1e-5)
