# SPDX-License-Identifier: Apache-2.0
"""What leaves the window lives on in a state, and a stream equals the sum over all that left."""

import importlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from headrace import (
    Absolute,
    Archive,
    Fold,
    InCache,
    Keep,
    Lane,
    Sink,
    Tagged,
    Window,
    oracle,
    recompute,
    wrap,
)
from headrace.memory import Parked
from headrace.streams.snapshot import resume, snapshot

from .tiny import TinyDecoder, gap, streamed, tokens

folding = importlib.import_module("headrace.streams.folding")
ONE = folding._one
BOUND = 2e-4
NEAR = Sink(4) + Window(24)
FORMS = [Fold(), Fold("elu1"), Fold(raw=True, scale=0.3), Fold(raw=True, merge="add"),
         Fold("elu1", merge="add", eps=0.1)]  # fmt: skip
POSITIONS = pytest.mark.parametrize("positions", [InCache(), Absolute()], ids=repr)


class WithFold(TinyDecoder):
    """One with a matrix for what is folded, in each layer."""

    def fold(self, layer):
        g = torch.Generator().manual_seed(layer)
        d = self.config.head_dim
        return torch.randn(d, d, generator=g) * d**-0.5


def brute(model, fed, fold, positions, sinks=4, window=24):
    """Logits by loops over tokens: what a query sees, and the sums over what has left."""
    c = model.config

    def turned(x, steps):
        angle = steps * model.inv_freq
        a, b = x[..., : len(angle)], x[..., len(angle) :]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    def attend(layer, q, k, v):
        k, v = (x.repeat_interleave(c.heads // c.kv_heads, 1) for x in (k, v))
        out = torch.zeros_like(q)
        phi = {"relu": torch.relu, "elu1": lambda x: F.elu(x) + 1}[fold.feature]
        for t in range(len(q)):
            here = [j for j in range(t + 1) if j < sinks or t - j < window]
            for h in range(c.heads):
                place = {j: t - j for j in here}
                if isinstance(positions, InCache):
                    place = {j: len(here) - 1 - i for i, j in enumerate(here)}
                logits = [turned(k[j, h], -place[j]) @ q[t, h] * c.head_dim**-0.5 for j in here]
                weight = torch.stack(logits).exp()
                under, top = weight.sum(), weight @ v[here, h]
                sink = model.sink_logits(layer)
                under = under if sink is None else under + sink[h].to(under.dtype).exp()
                gone = [j for j in range(t + 1) if j not in here]
                if not gone:
                    out[t, h] = top / under
                    continue
                mass = sum(phi(q[t, h]) @ phi(k[j, h]) for j in gone)
                read = torch.zeros_like(top)
                for j in gone:
                    back = window if isinstance(positions, InCache) else t - j
                    a, b = (q[t, h], k[j, h]) if fold.raw else (phi(q[t, h]), phi(k[j, h]))
                    read += (a @ turned(b, -back)) * v[j, h]
                read /= mass + fold.eps * len(gone)
                if fold.merge == "add":
                    out[t, h] = top / under + model.fold(layer).to(read.dtype) @ read
                else:
                    mass *= fold.scale
                    out[t, h] = (top + mass * read) / (under + mass)
        return out

    with torch.no_grad():
        return model.double()(fed, attend)


@POSITIONS
@pytest.mark.parametrize("fold", FORMS, ids=repr)
def test_the_oracle_is_the_definition(fold, positions):
    model, fed = WithFold(layers=1, sink_logits=fold.scale != 1), tokens(40)
    want = oracle(model, fed, NEAR >> fold, positions)
    assert gap(brute(model, fed, fold, positions), want) < 1e-9
    assert gap(oracle(model, fed, NEAR, positions), want) > 1e-3


@POSITIONS
@pytest.mark.parametrize("fold", FORMS, ids=repr)
def test_chunks_equal_one_another_and_the_oracle(fold, positions):
    model, fed = WithFold(sink_logits=fold.raw), tokens(110)
    memory = NEAR >> fold
    want = oracle(model, fed, memory, positions)
    with wrap(model, memory=memory, positions=positions, page_size=16, chunk=50) as e:
        for chunk in (1, 7, 110):
            assert gap(streamed(e, fed, chunk), want) < BOUND, chunk


@pytest.mark.parametrize(
    "memory", [Window(1), Window(16), Sink(1) + Window(17), Sink(40) + Window(5)], ids=repr
)
def test_other_windows(memory):
    model, fed = TinyDecoder(), tokens(90)
    for positions in (InCache(), Absolute()):
        with wrap(model, memory=memory >> Fold(), positions=positions, page_size=16) as e:
            want = oracle(model, fed, memory >> Fold(), positions)
            for chunk in (3, 33):
                assert gap(streamed(e, fed, chunk), want) < BOUND
            assert gap(streamed(e, fed, 33, position=10**9), want) < 5 * BOUND


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 0.15), (torch.float16, 0.02), (torch.int8, 0.3)]
)
def test_narrow_pages(dtype, bound):
    model, fed, memory = TinyDecoder(), tokens(150), NEAR >> Fold()
    with wrap(model, memory=memory, dtype=dtype, page_size=16) as e:
        assert 0 < gap(streamed(e, fed, 7), oracle(model, fed, memory, InCache())) < bound


def test_neighbours_and_other_folds_change_no_bits():
    model, fed = WithFold(), [tokens(120, seed) for seed in range(4)]
    memory = [NEAR >> Fold(), NEAR >> Fold(raw=True, merge="add"), Window(9) >> Fold("elu1"), NEAR]
    with wrap(model, memory=NEAR, page_size=16) as e:
        alone = [streamed(e, x, 13, memory=m) for x, m in zip(fed, memory, strict=True)]
        streams = [e.open(memory=m) for m in memory]
        got = [[] for _ in streams]
        for at in range(0, 120, 13):
            batch = {s: x[at : at + 13] for s, x in zip(streams, fed, strict=True)}
            for i, report in enumerate(e.step(batch, logits=True).values()):
                got[i].append(report.logits)
        for a, b in zip(alone, got, strict=True):
            assert torch.equal(a, torch.cat(b))
        for stream in streams:
            stream.close()
        assert e.pool.live_pages == 0


@POSITIONS
def test_a_state_is_shared_and_had_again(positions, tmp_path):
    model, fed = WithFold(), tokens(200)
    memory = NEAR >> Fold()
    with wrap(model, memory=memory, positions=positions, page_size=16) as e:
        alone = e.open()
        alone.feed(fed[:90])
        assert snapshot(alone, tmp_path / "alone") > 0
        want = alone.feed(fed[90:], logits=True).logits
        stream = e.open()
        stream.feed(fed[:90])
        mark, twin = stream.mark(), stream.fork()
        state = stream.table.folded
        assert twin.table.folded is state  # not a copy
        before = state.state.clone()
        assert torch.equal(stream.feed(fed[90:], logits=True).logits, want)
        after = stream.table.folded
        assert torch.equal(state.state, before)
        assert not torch.equal(after.state, before)
        parked = Parked(e.pool, twin._lease)
        twin._lease = parked.restore()
        assert gap(twin.feed(fed[90:], logits=True).logits, want) < 1e-5  # in pages of its own
        torch.testing.assert_close(twin.table.folded.state, after.state, rtol=1e-5, atol=1e-3)
        stream.rollback(mark)
        assert stream.table.folded is state
        assert gap(stream.feed(fed[90:], logits=True).logits, want) < 1e-5
    with wrap(model, memory=memory, positions=positions, page_size=16) as e:
        again = resume(e, tmp_path / "alone").stream
        assert torch.equal(again.feed(fed[90:], logits=True).logits, want)
    other = wrap(model, memory=NEAR >> Fold("elu1"), positions=positions, page_size=16)
    with other as e, pytest.raises(ValueError, match=r"^resume\(engine\): expected memory .*Fold"):
        resume(e, tmp_path / "alone")


def test_sums_do_not_wear_out():
    """Of a model of one layer, whose keys are of one token each: all that left, in fp64."""
    model, fed = TinyDecoder(layers=1), tokens(20_000)
    with wrap(model, memory=NEAR >> Fold(), page_size=16, chunk=50) as e:
        stream = e.open()
        stream.feed(fed)
        got, pages = stream.table.folded, e.pool.live_pages
        assert pages <= 5
    keys = []
    with torch.no_grad():
        model(fed, lambda layer, q, k, v: keys.append((k, v)) or q)
    k, v = (x[4:-24].double() for x in keys[0])
    norm, phi = k.relu().sum(0), k.relu()
    assert float((got.norm[0] / norm - 1).abs().max()) < 1e-7
    back = folding.turned(phi, torch.full((len(phi),), -24), model.inv_freq)
    state = torch.einsum("thd,thv->hdv", back, v)
    assert gap(got.state[0], state) < 1e-6 * float(state.abs().max())


def test_a_failing_step_folds_nothing(monkeypatch):
    model, fed = TinyDecoder(), tokens(160)
    with wrap(model, memory=NEAR >> Fold(), page_size=16, chunk=20) as e:
        stream = e.open()
        stream.feed(fed[:90])
        state, copy = stream.table.folded, stream.table.folded.state.clone()
        calls, real = iter(range(3)), folding.Folds.kept
        with monkeypatch.context() as m:
            m.setattr(folding.Folds, "kept",
                      lambda *a: 1 / 0 if next(calls) == 2 else real(*a))  # fmt: skip
            with pytest.raises(ZeroDivisionError):
                stream.feed(fed[90:])
        assert stream.table.folded is state
        assert torch.equal(state.state, copy)
        got = stream.feed(fed[90:], logits=True).logits
    assert gap(got, oracle(model, fed, NEAR >> Fold(), InCache())[90:]) < BOUND


def test_an_update_reads_again_what_a_state_cannot_give_back():
    model, fed = TinyDecoder(), tokens(150)
    other = torch.cat([fed[:120], tokens(30, 9)])
    with wrap(model, memory=Sink(4) + Window(64) >> Fold(), page_size=16) as e:
        for marked in (False, True):
            stream = e.open(history=True)
            stream.feed(fed[:100])
            mark = stream.mark() if marked else None
            stream.feed(fed[100:])
            told = stream.update(other, logits=True)
            assert (told.kept, told.reread) == (120, 20 if marked else 116)  # or from its sinks
            fresh = e.open()
            fresh.feed(other[:-1])
            want = fresh.feed(other[-1:], logits=True).logits
            assert gap(told.logits[-1:], want) < BOUND
            short = e.open(history=True)
            short.feed(fed[:60])  # nothing is folded yet
            assert short.update(other[:50]).reread == 1
            del mark


def test_recompute_is_another_function():
    model, fed = TinyDecoder(), tokens(100)
    at = [10, 60, 99]
    plain, folded = (recompute(model, fed, m, at=at) for m in (NEAR, NEAR >> Fold()))
    assert torch.equal(plain, folded)  # what is folded is not encoded anew
    want = oracle(model, fed, NEAR >> Fold(), InCache())[at]
    assert gap(folded[:1], want[:1]) < BOUND
    assert gap(folded[1:], want[1:]) > 1e-2


def test_what_cannot_be_folded_gets_one_line():
    model = TinyDecoder()
    for match, error, call in (
        (r"^Fold\(feature\): expected relu or elu1, got 'none'", ValueError, lambda: Fold("none")),
        (r"^Fold\(merge\): expected mass or add, got 'lse'", ValueError, lambda: Fold(merge="lse")),
        (r"^Fold\(scale\): expected more than 0, got 0", ValueError, lambda: Fold(scale=0)),
        (r"^Fold\(eps\): expected a number, got 'x'", TypeError, lambda: Fold(eps="x")),
        (r"^wrap\(memory\): .*a Window in tokens", NotImplementedError,
         lambda: Window(None) >> Fold()),
        (r"^wrap\(memory\): .*a Window in tokens", NotImplementedError, lambda: Sink(2) >> Fold()),
        (r"^wrap\(memory\): .*a Window in tokens", NotImplementedError,
         lambda: Keep("given", 4) >> Fold()),
        (r"^wrap\(memory\): .*and nothing more", NotImplementedError,
         lambda: NEAR >> Fold() >> Archive()),
        (r"^wrap\(memory\): .*and nothing more", NotImplementedError,
         lambda: wrap(model, memory=(NEAR >> Fold()) + Sink(9))),
        (r"^wrap\(memory\): .* together", NotImplementedError,
         lambda: wrap(model, memory=Tagged("a", NEAR >> Fold()))),
        (r"^wrap\(memory\): expected regions >> Fold", ValueError,
         lambda: wrap(model, memory=Fold())),
        (r"^wrap\(memory\): .*without a Fold here", NotImplementedError,
         lambda: wrap(model, memory=NEAR >> Fold(), lanes=[Lane("a")])),
        (r"^wrap\(memory\): .*without a Fold here", NotImplementedError,
         lambda: wrap(model, memory=NEAR, lanes=[Lane("a", memory=NEAR >> Fold())])),
        (r"^wrap\(model\): expected a model whose fold\(layer\)", ValueError,
         lambda: wrap(model, memory=NEAR >> Fold(merge="add"))),
        (r"^wrap\(model\): expected a model whose fold\(layer\)", ValueError,
         lambda: wrap(model, memory=NEAR).open(memory=NEAR >> Fold(merge="add"))),
    ):  # fmt: skip
        with pytest.raises(error, match=match) as told:
            call()
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda m: m.setattr(folding, "turned", lambda x, *_: x),
        lambda m: m.setattr(folding.ops, "merge_states", lambda o, lse, *_: (o, lse)),
        lambda m: m.setattr(torch, "logaddexp", lambda lse, sinks: lse),
        lambda m: m.setattr(Fold, "phi", lambda self, x: torch.sigmoid(x)),
        lambda m: m.setattr(
            folding, "_one", lambda *a: replace(ONE(*a), slots=[*ONE(*a).slots[:-1], (0, 0, 0)])
        ),
    ],
    ids=["turn", "merge", "sink", "feature", "token"],
)
def test_each_part_counts(wrong, monkeypatch):
    model, fed = TinyDecoder(sink_logits=True), tokens(80)
    want = oracle(model, fed, NEAR >> Fold(), InCache())
    with wrap(model, memory=NEAR >> Fold(), page_size=16) as e:
        assert gap(streamed(e, fed, 7), want) < BOUND
        wrong(monkeypatch)
        assert gap(streamed(e, fed, 7), want) > 10 * BOUND
