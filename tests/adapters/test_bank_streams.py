# SPDX-License-Identifier: Apache-2.0
"""Streams with adapters of their own in one ragged step."""

import signal
import threading

import pytest
import torch

import headrace
from headrace import AdapterBank, AdapterStore, Sink, Window, wrap
from headrace.adapters import Base, bank_loader

from ..streams.tiny import TinyDecoder, gap, tokens
from .bank_weights import adapter, merged, shapes

MEMORY = Sink(4) + Window(24)
ALL = ("q", "k", "v", "o", "up", "down")


def engine_of(adapters=(), model=None, exact=True, **options):
    """An engine whose bank has names a0, a1, ... for `adapters`."""
    model = model or TinyDecoder()
    options = {"slots": 8, "max_rank": 16, **options}
    bank = AdapterBank.of(model, "tiny", **options)
    for i, one in enumerate(adapters):
        bank.load_tensors(*one, name=f"a{i}")
    return wrap(model, memory=MEMORY, adapters=bank, exact=exact)


def alone(one, fed, parts, model=None, **options):
    engine = engine_of([one], model, slots=1, rank_rows=16, **options)
    stream = engine.open(adapter="a0")
    return [stream.feed(part, logits=True).logits for part in fed.split(parts)]


@pytest.mark.parametrize("dora", [False, True])
def test_a_stream_is_the_model_with_its_adapter_merged(dora):
    model, fed = TinyDecoder(), tokens(60)
    one = adapter(1, (4, 1, 16), parts=ALL, dora=dora)
    got = torch.cat(alone(one, fed, 7, dora=dora))
    stream = wrap(merged(model, *one), memory=MEMORY).open()
    assert gap(got, stream.feed(fed, logits=True).logits) < 1e-3
    plain = wrap(model, memory=MEMORY).open().feed(fed, logits=True).logits
    assert gap(got, plain) > 1  # it does something


@pytest.mark.parametrize("pool", [torch.float32, torch.bfloat16, torch.int8])
def test_same_bits_alone_and_in_any_mix_and_base_rows_are_the_bases(pool):
    made = [adapter(i, 1 + 2 * i, parts=ALL[i % 3 :]) for i in range(6)]
    fed = [tokens(60 + 9 * i, seed=i) for i in range(9)]
    engine = engine_of(made, dtype=pool)
    plain = wrap(TinyDecoder(), memory=MEMORY).open()
    streams = [engine.open(adapter=f"a{i}") for i in range(6)]
    streams += [engine.open(), engine.open(adapter="a0"), engine.open()]
    want = alone(made[3], fed[3], 6, dtype=pool)
    for step, expected in enumerate(want[:8]):
        batch = {}
        for i, stream in enumerate(streams):
            if i == 3 or i == 6:
                batch[stream] = fed[i][6 * step : 6 * step + 6]
            elif (i + step) % 3:
                at = stream.tokens
                batch[stream] = fed[i][at : at + 1 + (5 * i + step) % 17]
        got = engine.step(batch, logits=True)
        assert torch.equal(got[streams[3]].logits, expected)
        base_row = plain.feed(batch[streams[6]], logits=True).logits
        assert torch.equal(got[streams[6]].logits, base_row)
        assert gap(expected, base_row[:1]) > 0


def test_without_exact_mode_base_rows_are_the_bases_too():
    engine = engine_of([adapter(1)], exact=False)
    plain = wrap(TinyDecoder(), memory=MEMORY, exact=False)
    fed = {"a0": tokens(20), None: tokens(20, 1)}
    got = engine.step({engine.open(adapter=k): v for k, v in fed.items()}, logits=True)
    want = plain.step({plain.open(): v for v in fed.values()}, logits=True)
    got, want = list(got.values()), list(want.values())
    assert torch.equal(got[1].logits, want[1].logits)
    assert not torch.equal(got[0].logits, want[0].logits)


def test_nan_in_another_adapter_and_in_free_rows_leaves_no_trace():
    made = [adapter(i, 5, parts=ALL) for i in range(3)]
    fed = tokens(40)
    want = alone(made[1], fed, 8)
    with headrace.debug():
        engine = engine_of(made)
        engine.adapters.unload("a2")
        other = engine.adapters.residents()[0]
        for site in engine.adapters._seats.sites.values():
            site.poison(other.extents)
        bad, mine, none = engine.open(adapter="a0"), engine.open(adapter="a1"), engine.open()
        for part, expected in zip(fed.split(8), want, strict=True):
            got = engine.step({bad: part, mine: part, none: part}, logits=True)
            assert torch.equal(got[mine].logits, expected)
            assert not got[none].logits.isnan().any()
        assert got[bad].logits.isnan().any()  # the poison was there to be read


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_many_more_adapters_than_slots_give_the_same_bits(small, monkeypatch):
    monkeypatch.setattr(bank_loader, "SMALL", small)
    made = [adapter(i, 1 + i % 5, parts=ALL) for i in range(12)]
    fed = [tokens(30, seed=i) for i in range(12)]
    engine = engine_of(made, slots=4, rank_rows=16)
    streams = [engine.open(adapter=f"a{i}") for i in range(12)]
    for at in range(0, 30, 10):
        got = engine.step(
            {s: x[at : at + 10] for s, x in zip(streams, fed, strict=True)}, logits=True
        )
    stats = engine.adapters.stats
    assert stats.evictions > 20
    assert stats.hits > 0  # those that are resident go first
    for i in (0, 5, 11):
        assert torch.equal(got[streams[i]].logits, alone(made[i], fed[i], 10)[-1])


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_loads_and_unloads_between_steps_disturb_nobody(small, monkeypatch):
    monkeypatch.setattr(bank_loader, "SMALL", small)
    made = [adapter(i, 2 + i, parts=ALL) for i in range(6)]
    fed = tokens(50)
    want = alone(made[0], fed, 5)
    with headrace.debug():
        engine = engine_of(made[:1], slots=3, rank_rows=14)
        mine = engine.open(adapter="a0")
        for i, (part, expected) in enumerate(zip(fed.split(5), want, strict=True)):
            engine.adapters.load_tensors(*made[1 + i % 5], wait=bool(i % 2))
            if i % 3 == 2:
                engine.adapters.unload("a0")  # comes back by itself
            assert torch.equal(mine.feed(part, logits=True).logits, expected)
        assert engine.adapters.stats.evictions


def test_two_revisions_of_a_name_live_at_once(tmp_path):
    old, new = adapter(1, parts=ALL), adapter(2, parts=ALL)
    fed = tokens(30)
    with AdapterStore(tmp_path) as store:
        store.add_base("tiny", shapes(TinyDecoder()))
        one, two = store.add(*old, name="ann"), store.add(*new)
        engine = engine_of(slots=1, rank_rows=16, store=store)
        first = engine.open(adapter="ann")
        first.feed(fed[:10])
        mark = first.mark()
        store.promote("ann", two)
        second, third = engine.open(adapter="ann"), engine.open(adapter=one)
        assert (first.adapter, second.adapter, third.adapter) == (one, two, one)
        store.rollback("ann")
        store.promote("ann", two)
        fork = first.fork()
        got = engine.step({first: fed[10:], second: fed[:10], fork: fed[10:]}, logits=True)
        second.feed(fed[10:])
    whole = alone(old, fed, 10)
    # One model call of 20 or two of 10 are the same stream to rounding; the revision is not.
    assert gap(got[first].logits, torch.cat(whole[1:])) < 1e-4
    assert gap(got[fork].logits, got[first].logits) < 1e-4  # it had to begin a page
    assert torch.equal(got[second].logits, alone(new, fed, 10)[0])
    first.use(None)
    assert first.adapter is None
    first.rollback(mark)
    assert first.adapter == one
    first.use(two)
    assert first.adapter == two
    first.close()
    assert first.adapter is None
    mark.release()


def test_use_changes_what_comes_and_leaves_what_was():
    made = [adapter(i, parts=ALL) for i in range(2)]
    fed = tokens(24)
    engine = engine_of(made)
    a, b = engine.open(adapter="a0"), engine.open(adapter="a0")
    for stream in (a, b):
        stream.feed(fed[:12])
    b.use("a1")
    got = engine.step({a: fed[12:], b: fed[12:]}, logits=True)
    assert torch.equal(got[a].logits, alone(made[0], fed, 12)[1])
    assert gap(got[b].logits, got[a].logits) > 0.1
    assert gap(got[b].logits, alone(made[1], fed, 12)[1]) > 0.01  # it read the first half as a0


def test_a_cold_adapter_starts_before_it_is_all_there(monkeypatch):
    monkeypatch.setattr(bank_loader, "SMALL", 0)
    engine = engine_of()
    bank, seen = engine.adapters, []
    digest = bank.load_tensors(*adapter(1, parts=ALL), name="a0")
    bank.unload(digest)
    gate, write = threading.Event(), bank._seats._write

    def gated(one, layer):
        if layer == 1:
            assert gate.wait(20)
        write(one, layer)
        seen.append(f"loaded {layer:.0f}")

    monkeypatch.setattr(bank._seats.loader, "_work", gated)
    forward = TinyDecoder.forward

    def watched(self, ids, attend, linear):
        def told(layer, *qkv):
            seen.append(f"ran {layer}")
            if layer == 0:
                threading.Timer(0.05, gate.set).start()
            return attend(layer, *qkv)

        return forward(self, ids, told, linear)

    monkeypatch.setattr(TinyDecoder, "forward", watched)
    engine.open(adapter="a0").feed(tokens(5))
    assert seen == ["loaded 0", "ran 0", "loaded 1", "ran 1"]


class Interrupted(TinyDecoder):
    calls = -1

    def forward(self, ids, attend, linear):
        self.calls -= 1
        if self.calls == 0:
            signal.raise_signal(signal.SIGINT)
        return super().forward(ids, attend, linear)


def test_after_an_error_nothing_is_held_and_the_streams_are_as_they_were():
    model = Interrupted()
    made = [adapter(i, 4, parts=ALL) for i in range(6)]
    engine = engine_of(made, model, slots=2, rank_rows=8, max_rank=4)
    streams = [engine.open(adapter=f"a{i}") for i in range(6)]
    engine.step({s: tokens(9) for s in streams})
    model.calls = 3  # in the third of the waves
    before = [s.tokens for s in streams]
    with pytest.raises(KeyboardInterrupt):
        engine.step({s: tokens(5, 1) for s in streams})
    assert [s.tokens for s in streams] == before
    assert not any(one.holds for one in engine.adapters.residents())
    got = engine.step({s: tokens(5, 1) for s in streams}, logits=True)
    want = alone(made[5], torch.cat([tokens(9), tokens(5, 1)]), 9)[1]
    assert torch.equal(got[streams[5]].logits, want)


def test_pins_leave_too_little_room_in_one_line():
    engine = engine_of([adapter(i, 4) for i in range(3)], slots=2, rank_rows=8, max_rank=4)
    engine.adapters.pin("a0")
    engine.adapters.pin("a1")
    stream = engine.open(adapter="a2")
    text = r"step\(adapters\): expected 1 free slots and 4 rank rows, got 0 and 0 beside 2 in use"
    with pytest.raises(ValueError, match=text):
        stream.feed(tokens(3))
    assert stream.tokens == 0
    engine.adapters.unpin("a1")
    stream.feed(tokens(3))


def test_bad_input_of_wrap_and_open():
    model = TinyDecoder()
    with pytest.raises(TypeError, match=r"wrap\(adapters\): expected an AdapterBank, got dict"):
        wrap(model, memory=MEMORY, adapters={})
    other = AdapterBank(Base("other", {"x.0": (4, 4)}))
    with pytest.raises(ValueError, match=r"wrap\(adapters\): expected modules such as .*other"):
        wrap(model, memory=MEMORY, adapters=other)
    wide = AdapterBank(Base("wide", {"q.0": (64, 33)}))
    with pytest.raises(ValueError, match=r"wrap\(adapters\): expected q.0 \[64, 33\], got \[64"):
        wrap(model, memory=MEMORY, adapters=wide)
    with pytest.raises(ValueError, match=r"open\(adapter\): expected None, got 'ann'; wrap"):
        wrap(model, memory=MEMORY).open(adapter="ann")
    engine = engine_of([adapter(1)])
    with pytest.raises(ValueError, match=r"open\(adapter\): expected a name .* got 'ann'"):
        engine.open(adapter="ann")
    # The embedding of this model is no linear layer of it.
    config, tensors = adapter(1, 2, parts=("q",), layers=[0])
    config, tensors = _renamed(config, tensors, model)
    engine.adapters.load_tensors(config, tensors, name="e")
    with pytest.raises(ValueError, match=r"expected modules that the model multiplies with, got e"):
        engine.open(adapter="e")
    engine.adapters.close()
    with pytest.raises(ValueError, match=r"wrap\(adapters\): expected an open bank"):
        wrap(model, memory=MEMORY, adapters=engine.adapters)


def _renamed(config, tensors, model):
    from headrace.adapters import AdapterConfig

    n, k = shapes(model)["embedding"]
    tensors = {"embedding.a": torch.ones(1, k), "embedding.b": torch.ones(n, 1)}
    return AdapterConfig.of("tiny", tensors, 1.0), tensors


def test_a_bank_without_use_costs_a_step_nothing(monkeypatch):
    engine = engine_of([adapter(1)])
    monkeypatch.setattr(AdapterBank, "route", None)  # would be called
    engine.open().feed(tokens(5))
