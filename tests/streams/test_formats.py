# SPDX-License-Identifier: Apache-2.0
"""Streams over int8 and fp8 pages: how far from the oracle, and the same bits whatever happens."""

import pytest
import torch
from headrace.kernels.attention.reference import quantise

from headrace import Absolute, InCache, Sink, Window, ops, oracle, wrap

from .tiny import TinyDecoder, gap, streamed, tokens

FORMATS = (torch.int8, torch.float8_e4m3fn)
MEMORY = Sink(4) + Window(24)
# RMS error of the logits over their RMS. A code is off by up to 1/254 of the largest of its row, or
# by 1/16 of itself; over two layers that comes to this, bfloat16 (1/256 of itself) to 0.004.
BOUND = {torch.int8: 0.03, torch.float8_e4m3fn: 0.12}


def relative(got, want):
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt())


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("positions", [InCache(), Absolute()], ids=repr)
def test_near_the_oracle_at_half_of_the_bytes(dtype, positions):
    model, fed = TinyDecoder(head_dim=64, sink_logits=True), tokens(270)
    want = oracle(model, fed, MEMORY, positions)
    engine = wrap(model, memory=MEMORY, positions=positions, dtype=dtype, page_size=16)
    error = relative(streamed(engine, fed, 7), want)
    narrow = wrap(model, memory=MEMORY, positions=positions, dtype=torch.bfloat16, page_size=16)
    print(f"{dtype}: {error:.4f}, bf16 {relative(streamed(narrow, fed, 7), want):.4f}")
    assert 0 < error < BOUND[dtype]
    assert engine.pool.k.dtype == engine.pool.v.dtype == dtype
    assert engine.pool.page_bytes / narrow.pool.page_bytes == (64 + 4) / 128


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_equals_a_stream_of_floats_that_were_rounded_to_codes(dtype, monkeypatch):
    """The only loss is the rounding of rows as they are written."""
    model, fed = TinyDecoder(), tokens(200)
    got = streamed(wrap(model, memory=MEMORY, dtype=dtype, page_size=16), fed, 9)
    plain = ops.append

    def rounded(k, v, k_pages, v_pages, where, *, inv_freq, **scales):
        plain(k, v, k_pages, v_pages, where, inv_freq=inv_freq)
        page, slot = where[:, 0], where[:, 1]
        for rows in (k_pages.transpose(2, 3), v_pages):
            x, scale = rows[page, :, slot], rows.new_empty(*rows.shape[:3])
            codes = quantise(x, dtype, scale, page, slot).float()
            rows[page, :, slot] = codes * scale[page, :, slot][..., None]

    monkeypatch.setattr(ops, "append", rounded)
    want = streamed(wrap(model, memory=MEMORY, page_size=16), fed, 9)
    # Other kernels than the reference's may round a tie to the other code.
    far = (got - want).abs().amax(-1)
    assert far.median() < 1e-4
    assert relative(got, want) < BOUND[dtype] / 4


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_chunks_do_not_change_the_codes(dtype):
    model, fed = TinyDecoder(), tokens(150)
    engine = wrap(model, memory=MEMORY, dtype=dtype, page_size=16)
    whole, pieces = engine.open(), engine.open()
    want = whole.feed(fed, logits=True).logits
    got = torch.cat([pieces.feed(part, logits=True).logits for part in fed.split(7)])
    assert gap(got[:1], want[:1]) == 0
    assert relative(got, want) < BOUND[dtype] / 4


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_forks_and_rollbacks_have_equal_bits(dtype):
    model, fed = TinyDecoder(), tokens(160)
    engine = wrap(model, memory=MEMORY, dtype=dtype, page_size=16)
    stream = engine.open()
    stream.feed(fed[:84])  # the end of a page: both branches go on in pages of their own
    fork = stream.fork()
    want = stream.feed(fed[84:], logits=True).logits
    other = stream.fork()
    other.feed(tokens(60, seed=1))  # another writes and evicts meanwhile
    assert torch.equal(fork.feed(fed[84:], logits=True).logits, want)
    other.close()

    again = engine.open()
    again.feed(fed[:75])
    mark = again.mark()
    first = again.feed(fed[75:], logits=True).logits
    again.rollback(mark)
    again.feed(tokens(40, seed=2))  # into the slots that the first branch had
    again.rollback(mark)
    assert torch.equal(again.feed(fed[75:], logits=True).logits, first)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_neighbours_change_no_bits(dtype):
    model, fed = TinyDecoder(), tokens(90)
    engine = wrap(model, memory=MEMORY, dtype=dtype, page_size=16)
    want = streamed(engine, fed, 30)
    stream, crowd = engine.open(), [engine.open() for _ in range(3)]
    rows = []
    for i, part in enumerate(fed.split(30)):
        batch = {other: tokens(11 * (n + i) + 1, seed=n) for n, other in enumerate(crowd)}
        rows.append(engine.step({**batch, stream: part}, logits=True)[stream].logits)
    assert torch.equal(torch.cat(rows), want)
