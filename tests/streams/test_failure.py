# SPDX-License-Identifier: Apache-2.0
"""After any error every stream and the pool are as they were."""

import signal

import pytest
import torch

from headrace import Sink, Window, wrap
from headrace.memory import Edit

from .tiny import TinyDecoder, tokens

MEMORY = Sink(4) + Window(24)


class Faulty(TinyDecoder):
    """Does `fault` in layer 1 of one call of the model, counted down from `calls`."""

    calls = -1

    def fault(self):
        raise RuntimeError("layer 1 broke")

    def forward(self, tokens, attend, linear):
        self.calls -= 1

        def faulty(layer, q, k, v):
            if layer == 1 and self.calls == 0:
                self.fault()
            return attend(layer, q, k, v)

        return super().forward(tokens, faulty, linear)


class Interrupted(Faulty):
    def fault(self):
        signal.raise_signal(signal.SIGINT)


def state(engine, streams):
    pool = engine.pool
    return (
        [(s._lease.table, None if s._last is None else s._last.tolist()) for s in streams],
        sorted(pool._free), list(pool.filled), list(pool._holders),
    )  # fmt: skip


def scene(model):
    """An engine with streams in every situation: young, evicting, sharing a tail page, marked."""
    engine = wrap(model, memory=MEMORY, page_size=16, chunk=16, exact=True, pool_pages=64)
    young, old = engine.open(), engine.open()
    young.feed(tokens(3))
    old.feed(tokens(75))
    twin, marked = old.fork(), old.fork()
    mark = marked.mark()
    marked.feed(tokens(5, 1))
    return engine, [young, old, twin, marked, engine.open()], mark


@pytest.mark.parametrize(
    ("kind", "error"), [(Faulty, RuntimeError), (Interrupted, KeyboardInterrupt)]
)
@pytest.mark.parametrize("call", [1, 2, 4])
def test_an_error_in_the_model_changes_nothing(kind, error, call):
    model = kind()
    engine, streams, mark = scene(model)
    control_engine, control, _ = scene(TinyDecoder())
    before = state(engine, streams)
    model.calls = call
    batch = [tokens(20 + 10 * i, seed=i) for i in range(len(streams))]  # up to four model calls
    with pytest.raises(error):
        engine.step(dict(zip(streams, batch, strict=True)))
    assert state(engine, streams) == before
    model.calls = -1
    got = engine.step(dict(zip(streams, batch, strict=True)), logits=True)
    want = control_engine.step(dict(zip(control, batch, strict=True)), logits=True)
    for a, b in zip(got.values(), want.values(), strict=True):
        assert torch.equal(a.logits, b.logits)
    streams[3].rollback(mark)
    assert streams[3].tokens == 75


@pytest.mark.parametrize("method", ["extend", "trim", "commit"])
def test_an_interrupt_amid_the_bookkeeping_waits_for_its_end(monkeypatch, method):
    engine, streams, _ = scene(TinyDecoder())
    before = state(engine, streams)
    plain = getattr(Edit, method)

    def interrupted(self, *args):
        signal.raise_signal(signal.SIGINT)
        return plain(self, *args)

    monkeypatch.setattr(Edit, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
        streams[1].feed(tokens(40))
    if method == "commit":  # the step was over
        assert streams[1].tokens == 115
    else:
        assert state(engine, streams) == before
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    streams[1].feed(tokens(40))


def test_a_pool_too_small_says_what_it_lacks():
    engine = wrap(TinyDecoder(), memory=MEMORY, page_size=16, pool_pages=5)
    stream, other = engine.open(), engine.open()
    stream.feed(tokens(30))
    before = state(engine, [stream, other])
    expected = (
        r"^step\(pool_pages\): expected 3 free pages, got 2 of 5; "
        r"raise pool_pages, or close streams and release marks$"
    )
    with pytest.raises(ValueError, match=expected):
        engine.step({other: tokens(20), stream: tokens(10)})
    assert state(engine, [stream, other]) == before
    stream.close()
    assert other.feed(tokens(20)).tokens == 20


def test_an_unlimited_window_runs_until_the_pool_is_full():
    engine = wrap(TinyDecoder(), memory=Window(None), page_size=16, pool_pages=4)
    stream = engine.open()
    stream.feed(tokens(60))
    with pytest.raises(ValueError, match="expected 1 free pages, got 0 of 4"):
        stream.feed(tokens(9))
    assert stream.tokens == 60
    assert stream.feed(tokens(4)).alive == 64


def test_a_bad_stream_in_a_batch_stops_it_all():
    engine, streams, _ = scene(TinyDecoder())
    before = state(engine, streams)
    for bad in ([256], [1.5], [[1]]):
        with pytest.raises((ValueError, TypeError), match=r"^feed\(tokens\): "):
            engine.step({streams[0]: [1, 2], streams[1]: bad})
    foreign = wrap(TinyDecoder(), memory=MEMORY).open()
    with pytest.raises(ValueError, match=r"^step\(batch\): expected streams of this engine"):
        engine.step({streams[0]: [1, 2], foreign: [1]})
    assert state(engine, streams) == before
    streams[2].close()
    with pytest.raises(ValueError, match=r"^feed\(stream\): expected an open stream, got a closed"):
        engine.step({streams[0]: [1, 2], streams[2]: [1]})
