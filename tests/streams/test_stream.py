# SPDX-License-Identifier: Apache-2.0
"""Feeding, saying, and what a user may hand in."""

import numpy as np
import pytest
import torch

from headrace import Absolute, InCache, Sink, Window, wrap

from .tiny import TinyDecoder, tokens

MEMORY = Sink(4) + Window(24)


@pytest.fixture
def engine():
    return wrap(TinyDecoder(), memory=MEMORY)


def test_nll_is_that_of_the_logits_before(engine):
    fed, stream = tokens(60), engine.open()
    reports = [stream.feed(part, logits=True) for part in fed.split(7)]
    nll, logits = torch.cat([r.nll for r in reports]), torch.cat([r.logits for r in reports])
    assert nll[0].isnan()
    want = torch.nn.functional.cross_entropy(logits[:-1], fed[1:], reduction="none")
    assert torch.allclose(nll[1:], want, atol=1e-5)
    assert nll.dtype == torch.float32


def test_report(engine):
    stream = engine.open()
    alive = [stream.feed([1]).alive for _ in range(40)]
    assert alive == [min(n, 27) for n in range(1, 41)]
    report = stream.feed(b"")
    assert (report.tokens, report.alive, report.evicted) == (0, 27, 13)
    assert report.nll.shape == (0,)
    assert report.logits is None
    assert stream.feed([], logits=True).logits.shape == (0, 256)
    assert report.ms >= 0
    assert (stream.tokens, stream.alive, stream.position) == (40, 27, 40)


@pytest.mark.parametrize(
    "text",
    [
        b"to be", bytearray(b"to be"), memoryview(b"to be"), "to be", list(b"to be"),
        tuple(b"to be"), np.frombuffer(b"to be", np.uint8), np.array(list(b"to be"), np.int32),
        torch.tensor(list(b"to be")), torch.tensor(list(b"to be"), dtype=torch.uint8),
        torch.tensor(list(b"t.o. .b.e"))[::2],
    ],
    ids=lambda text: type(text).__name__,
)  # fmt: skip
def test_tokens_come_in_many_forms(engine, text):
    want = engine.open().feed(torch.tensor(list(b"to be")), logits=True).logits
    assert torch.equal(engine.open().feed(text, logits=True).logits, want)


@pytest.mark.parametrize(
    ("bad", "error", "told"),
    [
        ([1, 256], ValueError, "expected ids in [0, 256), got 256"),
        ([-1], ValueError, "expected ids in [0, 256), got -1"),
        ([[1, 2]], ValueError, "expected one axis, [T], got [1, 2]"),
        (torch.tensor(3), ValueError, "expected one axis, [T], got []"),
        ([[1], [2, 3]], ValueError, "expected one axis, [T], got list"),
        ([1.0], TypeError, "expected whole numbers, int64, got list of float64"),
        ([True], TypeError, "expected whole numbers, int64, got list of bool"),
        (torch.ones(2), TypeError, "expected whole numbers, int64, got float32"),
        (torch.ones(2) > 0, TypeError, "expected whole numbers, int64, got bool"),
        (None, TypeError, "expected whole numbers, int64, got NoneType of object"),
        (["a"], TypeError, "expected whole numbers, int64, got list of <U1"),
        (torch.ones(2, dtype=int, device="meta"), ValueError, "expected a tensor on cpu, got meta"),
    ],
    ids=str,
)
def test_bad_tokens_get_one_line(engine, bad, error, told):
    stream = engine.open()
    with pytest.raises(error) as caught:
        stream.feed(bad)
    assert str(caught.value) == f"feed(tokens): {told}"
    assert stream.tokens == 0


def test_only_byte_models_read_bytes():
    stream = wrap(TinyDecoder(vocab=300), memory=MEMORY).open()
    expected = (
        "feed(tokens): expected token ids below 300, got bytes; "
        "only a model of 256 tokens reads bytes"
    )
    with pytest.raises(TypeError) as caught:
        stream.feed(b"a")
    assert str(caught.value) == expected
    assert stream.say([299], max_new=3) == list(stream.engine.open().generate([299], max_new=3))


def greedy(engine, prompt, count):
    """Decodes by hand."""
    stream, said = engine.open(), []
    logits = stream.feed(prompt, logits=True).logits
    for _ in range(count):
        said.append(int(logits[-1].argmax()))
        logits = stream.feed(said[-1:], logits=True).logits
    return bytes(said), logits[-1]


def test_say_is_greedy_and_reads_what_it_says(engine):
    want, after = greedy(engine, b"once", 40)
    stream = engine.open()
    assert stream.say(b"once", max_new=15) + stream.say(max_new=25) == want
    assert stream.tokens == 44
    assert torch.equal(stream._last, after)


def test_generate_yields_as_it_goes(engine):
    want, _ = greedy(engine, b"once", 10)
    stream = engine.open()
    generation = stream.generate(b"once", max_new=10)
    assert [next(generation) for _ in range(3)] == list(want[:3])
    assert stream.tokens == 7
    generation.close()
    assert stream.say(max_new=7) == want[3:]


def test_sampling_has_a_generator_of_its_own(engine):
    def say(**how):
        return engine.open().say(b"once", max_new=30, **how)

    torch.manual_seed(0)
    state = torch.get_rng_state()
    sampled = say(temperature=1.0, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert sampled == say(temperature=1.0, seed=1)
    assert sampled != say(temperature=1.0, seed=2)
    assert say(temperature=1.0) != say(temperature=1.0)
    assert say(temperature=1e-6, seed=1) == say()


def test_stop(engine):
    want, _ = greedy(engine, b"once", 20)
    assert engine.open().say(b"once", max_new=20, stop=want[4]) == want[: want.index(want[4]) + 1]
    end = want.index(want[6:9]) + 3
    assert engine.open().say(b"once", max_new=20, stop=want[6:9]) == want[:end]


def test_say_refuses(engine):
    stream = engine.open()
    bad = [
        ({"max_new": 3}, r"^say\(prompt\): expected at least one token in an empty stream"),
        ({"prompt": b"a", "max_new": -1}, r"^say\(max_new\): expected 0 tokens or more, got -1$"),
        ({"prompt": b"a", "max_new": 1, "temperature": -1.0}, r"^say\(temperature\): expected 0"),
        ({"prompt": [999], "max_new": 1}, r"^say\(tokens\): expected ids in \[0, 256\), got 999$"),
        ({"prompt": b"a", "max_new": 1, "stop": 300}, r"^say\(tokens\): expected ids in"),
    ]
    for arguments, told in bad:
        with pytest.raises(ValueError, match=told):
            stream.say(**arguments)
    assert stream.tokens == 0
    assert stream.say(b"a", max_new=0) == b""


def test_a_closed_stream_is_told(engine):
    with engine.open() as stream:
        stream.feed(b"a")
        mark = stream.mark()
    stream.close()
    uses = {
        "feed": lambda: stream.feed(b"a"), "say": lambda: stream.say(b"a", max_new=1),
        "fork": stream.fork, "mark": stream.mark, "rollback": lambda: stream.rollback(mark),
    }  # fmt: skip
    for name, use in uses.items():
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            use()
        assert str(caught.value) == f"{name}(stream): expected an open stream, got a closed one"


def test_rollback_wants_a_mark_of_its_own(engine):
    stream, other = engine.open(), engine.open()
    with pytest.raises(ValueError, match=r"^rollback\(mark\): .* got one of another$"):
        stream.rollback(other.mark())
    with pytest.raises(TypeError, match=r"^rollback\(mark\): .* got int$"):
        stream.rollback(3)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"memory": Sink(4)}, ValueError, "wrap(memory): expected a Window among the regions"),
        ({"memory": 256}, TypeError, "wrap(memory): expected regions such as Sink(4) + Window("),
        (
            {"positions": "in-cache"},
            TypeError,
            "wrap(positions): expected InCache(), Absolute(), Relative(...), Keep3D(...) or",
        ),
        ({"pool_pages": 0}, ValueError, "wrap(pool_pages): expected 1 or more, got 0"),
        ({"chunk": 0}, ValueError, "wrap(chunk): expected 1 or more, got 0"),
        ({"chunk": 2.5}, TypeError, "wrap(chunk): expected a whole number, got 2.5"),
        ({"page_size": 24}, NotImplementedError, "PagePool(page_size): expected one of page sizes"),
        (
            {"dtype": torch.float64},
            TypeError,
            "PagePool(dtype): expected float32, bfloat16, float16, int8 or",
        ),
        ({"pool_pages": 2**50}, ValueError, "PagePool(pages): expected a pool that fits in memory"),
        ({"model": "gpt2"}, TypeError, "wrap(model): expected a decoder, such as"),
        ({"model": TinyDecoder(head_dim=24)}, NotImplementedError, "PagePool(head_dim): expected"),
    ],
    ids=str,
)
def test_wrap_refuses(options, error, told):
    options = {"model": TinyDecoder(), "memory": MEMORY} | options
    with pytest.raises(error) as caught:
        wrap(options.pop("model"), **options)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_open_refuses(engine):
    for bad, error in ((-1, ValueError), (2**62, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=r"^open\(position\): "):
            engine.open(position=bad)


def test_schemes_show_in_the_plan():
    plans = [wrap(TinyDecoder(), memory=MEMORY, positions=p).plan for p in (InCache(), Absolute())]
    assert [p.cap for p in plans] == [27, 2**62]
    assert [(p.pinned, p.reach) for p in plans] == [(4, 24)] * 2
