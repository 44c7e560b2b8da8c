# SPDX-License-Identifier: Apache-2.0
"""RoPE whose frequencies depend on the length (dynamic NTK, LongRoPE): one length per stream."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from headrace import Absolute, Archive, InCache, Sink, Window  # noqa: E402
from headrace.integrations.transformers import StreamingCache, attached, oracle  # noqa: E402
from headrace.ops import rope  # noqa: E402

from .stock import BY_LENGTH, model  # noqa: E402
from .test_transformers import BOUND, fed, gap, padded  # noqa: E402

TRAINED = 64
MEMORY = Sink(4) + Window(40)  # within what the models were trained on
WIDE = Sink(4) + Window(90)  # beyond it

pytestmark = pytest.mark.parametrize("name", BY_LENGTH)


@pytest.mark.parametrize("memory", [MEMORY, WIDE], ids=["within", "beyond"])
def test_equals_the_oracle_over_several_windows(name, memory, tokens):
    """A forward at a time, the model's own angles change under the stream: they are turned back."""
    stock, x = model(name), tokens(2, 230)
    want = oracle(stock, x, memory)
    cache = StreamingCache(stock.config, memory=memory, page_size=16)
    assert gap(fed(stock, x, cache, [30, 30, 1, 1, 7, 64]), want) < BOUND
    assert max(cache.alive) <= cache.plan.cap + 1


def test_another_length_is_another_function(name, tokens):
    stock, x = model(name), tokens(1, 230)
    want = oracle(stock, x, WIDE)
    assert gap(oracle(stock, x, WIDE, rope_length=94), want) == 0
    for length in (TRAINED, *((120,) if "dynamic" in name else ())):
        assert gap(oracle(stock, x, WIDE, rope_length=length), want) > 100 * BOUND


@pytest.mark.parametrize("length", [50, 64, 65, 150])
def test_a_stream_of_the_length_of_the_text_is_the_model(name, length, tokens):
    """In chunks, with the frequencies that the model itself takes of the whole text at once."""
    stock, x = copy.deepcopy(model(name)), tokens(2, length)
    with torch.no_grad():
        stock(x[:, :5], use_cache=False)  # dynamic angles of what it read before are gone then
        want = stock(x, use_cache=False).logits
    cache = StreamingCache(stock.config, memory=Window(None), rope_length=length)
    assert gap(fed(stock, x, cache, [20, 25]), want) < BOUND


def test_what_the_model_read_before_does_not_matter(name, tokens):
    """Dynamic angles stay those of the longest text until a short one comes."""
    stock, x = copy.deepcopy(model(name)), tokens(2, 100)
    want = oracle(stock, x, MEMORY)
    with torch.no_grad():
        stock(tokens(1, 300), use_cache=False)
    assert gap(oracle(stock, x, MEMORY), want) < 1e-9
    cache = StreamingCache(stock.config, memory=MEMORY, page_size=16)
    assert gap(fed(stock, x, cache, [70, 5]), want) < BOUND


def test_generate_goes_on_past_the_length_of_training(name, tokens):
    """Phi-3 drops its cache there, for other factors; a stream keeps both."""
    stock, x = model(name), tokens(2, 30)
    before = type(stock).prepare_inputs_for_generation
    cache = StreamingCache(stock.config, memory=MEMORY, page_size=16)
    with attached(stock):
        got = stock.generate(x, past_key_values=cache, max_new_tokens=90, do_sample=False,
                             output_logits=True, return_dict_in_generate=True)  # fmt: skip
    assert cache.get_seq_length() == 119
    want = oracle(stock, got.sequences, MEMORY)[:, 29:-1]
    assert gap(torch.stack(got.logits, 1), want) < BOUND
    assert "prepare_inputs_for_generation" not in vars(stock)
    assert stock.prepare_inputs_for_generation.__func__ is before


def test_within_the_length_of_training_it_is_stock_generate(name, tokens):
    stock, x = model(name), tokens(2, 20)
    options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    want = stock.generate(x, **options)
    cache = StreamingCache(stock.config, memory=Sink(4) + Window(60))
    with attached(stock):
        got = stock.generate(x, past_key_values=cache, **options)
        again = stock.generate(x, **options)  # with a cache of its own
    assert torch.equal(got, want)
    assert torch.equal(again, want)


def test_left_padding(name, tokens):
    stock, lengths = model(name), [60, 3, 41]
    x, mask = padded(tokens(3, 60), lengths)
    cache = StreamingCache(stock.config, memory=WIDE, page_size=16)
    with attached(stock):
        got = stock.generate(x, attention_mask=mask, past_key_values=cache, max_new_tokens=50,
                             do_sample=False, pad_token_id=0, output_logits=True,
                             return_dict_in_generate=True)  # fmt: skip
    for row, length in enumerate(lengths):
        want = oracle(stock, got.sequences[row : row + 1, 60 - length :], WIDE)[0, length - 1 : -1]
        assert gap(torch.stack(got.logits, 1)[row], want) < BOUND


@pytest.mark.parametrize("length", [None, 64, 65, 150])
def test_frequencies_are_those_of_the_op(name, length):
    config = model(name).config
    fields = {**config.rope_parameters, "max_position_embeddings": config.max_position_embeddings}
    want, gain = rope.frequencies(16, scaling=fields, length=length or 94)
    spec = StreamingCache(config, memory=WIDE, rope_length=length).attention
    torch.testing.assert_close(spec.inv_freq, want, rtol=1e-5, atol=0)
    assert spec.gain == pytest.approx(gain)


def test_a_length_without_a_bound_is_asked_for(name):
    config = model(name).config
    for memory, positions in (
        (MEMORY, Absolute()), (Window(None), InCache()), (MEMORY >> Archive("mean"), InCache()),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"rope_length\): expected a number of tokens"):
            StreamingCache(config, memory=memory, positions=positions)
        StreamingCache(config, memory=memory, positions=positions, rope_length=100)
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=r"rope_length\): expected 1 token or more"):
            StreamingCache(config, memory=MEMORY, rope_length=wrong)
    with pytest.raises(ValueError, match=r"rope_length\): expected None, but for the RoPE types"):
        StreamingCache(model("llama").config, memory=MEMORY, rope_length=100)


def test_outside_of_attached_it_is_refused(name, tokens):
    stock = copy.deepcopy(model(name))
    stock.set_attn_implementation("headrace")
    cache = StreamingCache(stock.config, memory=MEMORY)
    with pytest.raises(NotImplementedError, match=r"attached\(model\)"):
        stock(tokens(1, 5), past_key_values=cache)
    assert cache.get_seq_length() == 0
