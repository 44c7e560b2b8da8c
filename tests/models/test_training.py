# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from headrace.models import Decoder, DecoderConfig, load
from headrace.models.training import data
from headrace.models.training.attention import banded, dense, rotate, rotation
from headrace.models.training.evaluate import (
    cached,
    evaluate,
    first_mass,
    losses,
    recomputed,
    table,
)
from headrace.models.training.loop import Run, rate, train


def tiny(**changes):
    fields = dict(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, hidden=48)
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(**{**fields, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model.double()


def oracle(model, window, sinks):
    """One sequence by the definition: every query with its keys, one distance at a time."""

    def attend(layer, q, k, v):
        length, heads, dim = q.shape
        k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
        bias = model.sink_logits(layer)
        keys = rotate(k, *rotation(torch.arange(length), model.inv_freq, q.dtype))
        out = torch.zeros_like(q)
        for t in range(length):
            seen = [j for j in range(t + 1) if j < sinks or t - j < window]
            at = torch.tensor([min(t, sinks + window - 1) if j < sinks else t for j in seen])
            query = q[t].expand(len(seen), heads, dim)
            query = rotate(query, *rotation(at, model.inv_freq, q.dtype))
            logits = (query * keys[seen]).sum(-1) * dim**-0.5  # [seen, H]
            if bias is not None:
                logits = torch.cat((logits, bias[None]))
            weights = logits.softmax(0)[: len(seen)]
            out[t] = torch.einsum("jh,jhd->hd", weights, v[seen])
        return out

    return attend


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("window", "sinks"), [(12, 3), (16, 0), (9, 8), (8, 1), (48, 4)])
def test_banded_attention_is_the_policy(window, sinks, learned):
    model = tiny(sink_logits=learned)
    tokens = torch.randint(0, 256, (2, 48))
    got = model(tokens.flatten(), banded(model, 48, window, sinks, block=8)).view(2, 48, -1)
    for row, text in zip(got, tokens, strict=True):
        # The model hands logits over in fp32.
        torch.testing.assert_close(row, model(text, oracle(model, window, sinks)))


@pytest.mark.parametrize("learned", [False, True])
def test_dense_attention_is_causal_attention(learned):
    model = tiny(sink_logits=learned)
    tokens = torch.randint(0, 256, (2, 24))
    got = model(tokens.flatten(), dense(model, 24)).view(2, 24, -1)
    for row, text in zip(got, tokens, strict=True):
        torch.testing.assert_close(row, model(text, oracle(model, 24, 0)))


def test_rotation_depends_on_the_difference_of_positions_alone():
    inv_freq = tiny().inv_freq
    q, k = torch.randn(2, 1, 1, 8, dtype=torch.float64)

    def logit(a, b):
        at = [rotation(torch.tensor([p]), inv_freq, torch.float64) for p in (a, b)]
        return (rotate(q, *at[0]) * rotate(k, *at[1])).sum()

    torch.testing.assert_close(logit(17, 5), logit(1_000_012, 1_000_000))
    assert not torch.isclose(logit(17, 5), logit(17, 6))


def test_banded_refuses_what_it_cannot_do():
    for sequence, window, sinks in ((49, 12, 3), (48, 7, 0), (48, 12, 9)):
        with pytest.raises(ValueError, match="got"):
            banded(tiny(), sequence, window, sinks, block=8)


@pytest.fixture(name="texts")
def some_texts(tmp_path):
    root = tmp_path / "text"
    root.mkdir()
    for i in range(120):
        (root / f"{i}.txt").write_text(f"file {i} counts " + " ".join(map(str, range(i, i + 60))))
    (root / "image.png").write_bytes(b"\x00\xff")
    return root


def test_split_is_by_file_and_stable(texts):
    sides = [bytes(side.tolist()).split(b"\0")[:-1] for side in data.split([texts])]
    assert len(sides[0]) + len(sides[1]) == 120
    assert not set(sides[0]) & set(sides[1])
    assert 0 < len(sides[1]) < 12
    assert [bytes(s.tolist()).split(b"\0")[:-1] for s in data.split([texts])] == sides
    moved = texts.rename(texts.parent / "moved")
    assert [bytes(s.tolist()).split(b"\0")[:-1] for s in data.split([moved])] == sides


def test_standard_library_is_found_without_installed_packages():
    found = data.files()
    assert "json/decoder.py" in found
    assert not any("site-packages" in name or "__pycache__" in name for name in found)


def test_pieces_of_text():
    text = torch.arange(256, dtype=torch.uint8)
    rows = data.batch(text, 5, 7, seed=3, step=9)
    assert rows.shape == (5, 8)
    assert (rows.diff() == 1).all()
    assert torch.equal(rows, data.batch(text, 5, 7, seed=3, step=9))
    assert not torch.equal(rows, data.batch(text, 5, 7, seed=3, step=10))
    even = data.spread(text, 3, 7)
    assert even[0, 0] == 0
    assert even[-1, -1] == 255


def test_learning_rate_rises_stays_and_ends():
    steps = Run(steps=1000, warmup=100, decay=0.25)
    factors = [rate(steps, step, 0.0) for step in range(1001)]
    assert factors[0] == 0.01
    assert factors[100] == factors[749] == 1.0
    assert math.isclose(factors[875], 0.5)
    assert factors[999] > factors[1000] == 0.0
    minutes = Run(minutes=10, warmup=100, decay=0.25)
    assert rate(minutes, 500, 60.0) == 1.0
    assert rate(minutes, 500, 600.0) == 0.0


SMALL = dict(width=64, layers=1, hidden=64, tokens=256, warmup=4)


@pytest.mark.parametrize(
    "fields",
    [
        dict(window=28, sinks=4, sequence=128),
        dict(window=32, sinks=0, sequence=128, sink_logits=True),
        dict(attention="dense", sequence=32),
    ],
    ids=["stream", "sink-logits", "dense"],
)
def test_training_learns_and_resumes(texts, tmp_path, fields, capsys):
    run = Run(**{**SMALL, **fields, "block": 16}, steps=30)
    whole = train(run, tmp_path / "whole.safetensors", extra=[texts])
    text = data.spread(data.split([texts])[1], 4, run.sequence)
    loss = losses(whole, text, run.attend(whole)).mean()
    assert loss < 4.5  # from 5.5: uniform over 256 bytes
    if run.sink_logits:
        assert whole.learned_sinks.abs().min() > 0
    again = load(tmp_path / "whole.safetensors")
    assert again.config == run.config()
    for got, want in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(got, want.bfloat16().float())
    # Half the way, then the rest from the state on disk.
    half = tmp_path / "half.safetensors"
    train(run, half, extra=[texts], stop=15)
    resumed = train(run, half, resume=True, extra=[texts])
    for got, want in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(got, want)


def test_evaluation(texts):
    model = tiny().float()
    text = torch.cat(data.split([texts]))
    rows = evaluate(model, text, count=2, length=2048, samples=8)
    assert len(table(rows).splitlines()) == 2 + len(rows)
    assert all(row.steady > 1 for row in rows if row.memory.startswith("cache"))
    stream = data.spread(text, 1, 2048)
    # A window that holds everything is dense attention, and a recomputed window is a dense piece.
    attend = banded(model, 256, 256, 0, block=128)
    short = losses(model, stream[:, :257], dense(model, 256))
    torch.testing.assert_close(losses(model, stream[:, :257], attend), short)
    torch.testing.assert_close(
        recomputed(model, stream, torch.tensor([[0, 255]])), short[0, -1:], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        cached(model, stream, 252, 4)[:, :252], short[:, :252], rtol=1e-4, atol=1e-4
    )


def test_mass_of_the_first_keys():
    model = tiny().float()
    text = torch.randint(0, 256, (2, 65))
    with torch.no_grad():
        for block in model.blocks:
            block.query.zero_()  # no preferences: every key gets the same
    want = sum(4 / (t + 1) for t in range(32, 64)) / 32
    torch.testing.assert_close(first_mass(model, text), torch.full((2, 4), want))
    model = tiny(sink_logits=True).float()
    with torch.no_grad():
        model.learned_sinks[1] = 40.0  # takes all
    assert first_mass(model, text)[1].max() < 1e-3 < first_mass(model, text)[0].max()


@pytest.mark.parametrize(
    "fields",
    [
        dict(),
        dict(minutes=1, steps=1),
        dict(steps=0),
        dict(minutes=-1.0),
        dict(steps=1, attention="linear"),
        dict(steps=1, tokens=4095),
    ],
)
def test_bad_runs(fields):
    with pytest.raises(ValueError, match=r"^Run.*got"):
        Run(**fields)


def test_resuming_needs_a_state(texts, tmp_path):
    with pytest.raises(ValueError, match="expected the state of an earlier run"):
        train(Run(**SMALL, steps=1, sequence=128, block=16), tmp_path / "x", True, [texts])


def test_training_goes_on_from_given_weights(texts, tmp_path):
    fields = {**SMALL, "window": 32, "sinks": 0, "sequence": 128, "block": 16}
    first = train(Run(**fields, steps=4), tmp_path / "first.safetensors", extra=[texts])
    before = [p.detach().clone() for p in first.parameters()]
    learned = Run(**fields, steps=4, sink_logits=True)
    out = tmp_path / "second.safetensors"
    second = train(learned, out, extra=[texts], stop=0, initial=first)
    assert second.learned_sinks.abs().max() == 0
    for got, want in zip(
        [p for name, p in second.named_parameters() if name != "learned_sinks"], before, strict=True
    ):
        assert torch.equal(got, want)
    with pytest.raises(ValueError, match=r"^train\(initial\): expected the shapes of"):
        train(Run(**{**fields, "width": 96}, steps=4), out, extra=[texts], initial=first)
