# SPDX-License-Identifier: Apache-2.0
"""Stock models with a StreamingCache against the dense oracle and against themselves."""

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from headrace import Absolute, InCache, Sink, Window, debug  # noqa: E402
from headrace.integrations.transformers import StreamingCache, attached, oracle  # noqa: E402

from .stock import MODELS, model  # noqa: E402

MEMORY = Sink(4) + Window(40)
BOUND = 1e-4


def fed(stock, x, cache, sizes, **options):
    """Logits of forwards of so many tokens each; then three, one by one, and the rest."""
    outs, at = [], 0
    sizes = [*sizes, *[1] * min(3, x.shape[1] - sum(sizes))]
    sizes.append(x.shape[1] - sum(sizes))
    with attached(stock), torch.no_grad():
        for size in filter(None, sizes):
            outs.append(stock(x[:, at : at + size], past_key_values=cache, **options).logits)
            at += size
    return torch.cat(outs, 1)


def gap(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_oracle_without_eviction_is_the_model(name, tokens):
    stock, x = model(name), tokens(2, 90)
    with torch.no_grad():
        want = stock(x).logits
    assert gap(oracle(stock, x, Window(None), Absolute()), want) < BOUND


@pytest.mark.parametrize("positions", [InCache(), Absolute()], ids=["incache", "absolute"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_oracle_over_several_windows(name, positions, tokens):
    stock, x = model(name), tokens(2, 230)
    want = oracle(stock, x, MEMORY, positions)
    cache = StreamingCache(stock.config, memory=MEMORY, positions=positions, page_size=16)
    assert gap(fed(stock, x, cache, [130, 1, 1, 7, 64]), want) < BOUND
    cache = StreamingCache(stock.config, memory=MEMORY, positions=positions, page_size=32, chunk=29)
    assert gap(fed(stock, x, cache, [200, 30]), want) < BOUND


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "mistral-sliding"])
def test_other_policies_are_other_functions(name, tokens):
    """What the test above would not see, were the weights too tame."""
    stock, x = model(name), tokens(1, 230)
    want = oracle(stock, x, MEMORY, InCache())
    others = [(Sink(3) + Window(40), InCache()), (Sink(4) + Window(39), InCache())]
    if name != "mistral-sliding":  # where sinks are out of sight before their distance is capped
        others.append((MEMORY, Absolute()))
    else:
        others = []
        want = oracle(model(name, sliding_window=23), x, MEMORY, InCache())
        others.append((MEMORY, InCache()))
    for memory, positions in others:
        assert gap(oracle(stock, x, memory, positions), want) > 100 * BOUND


@pytest.mark.parametrize("name", MODELS)
def test_a_window_larger_than_the_text_is_stock_generate(name, tokens):
    stock, x = model(name), tokens(2, 20)
    before = {k: v.clone() for k, v in stock.state_dict().items()}
    options = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": 0}
    want = stock.generate(x, **options)
    cache = StreamingCache(stock.config, memory=Sink(4) + Window(400))
    with attached(stock):
        got = stock.generate(x, past_key_values=cache, **options)
    assert torch.equal(got, want)
    assert cache.get_seq_length() == 79
    assert stock.config._attn_implementation != "headrace"
    assert torch.equal(stock.generate(x, **options), want)
    assert all(torch.equal(before[k], v) for k, v in stock.state_dict().items())


def test_generate_over_several_windows_is_the_oracle_greedy(tokens):
    stock, x = model("llama"), tokens(2, 30)
    cache = StreamingCache(stock.config, memory=MEMORY, page_size=16)
    with attached(stock):
        got = stock.generate(x, past_key_values=cache, max_new_tokens=110, do_sample=False,
                             output_logits=True, return_dict_in_generate=True)  # fmt: skip
    want = oracle(stock, got.sequences, MEMORY)[:, 29:-1]
    assert gap(torch.stack(got.logits, 1), want) < BOUND
    assert torch.equal(want.argmax(-1), got.sequences[:, 30:])


def test_under_debug_and_in_inference_mode(tokens):
    """Every page that a kernel names is one that a row holds; the pool outlives the mode."""
    stock, x = model("mistral"), tokens(3, 260)
    want = oracle(stock, x, MEMORY)
    cache = StreamingCache(stock.config, memory=MEMORY, page_size=16, chunk=33)
    with debug(), torch.inference_mode():
        got = [fed(stock, x[:, :100], cache, [70])]
    with debug():
        got.append(fed(stock, x[:, 100:], cache, [150]))
    assert gap(torch.cat(got, 1), want) < BOUND
    cache.reset()
    assert cache.get_seq_length() == 0
    assert gap(fed(stock, x, cache, [260]), want) < BOUND


def padded(x, lengths):
    mask = torch.arange(x.shape[1]) >= x.shape[1] - torch.tensor(lengths)[:, None]
    return x * mask, mask.long()


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "qwen2-mixed"])
def test_left_padding(name, tokens):
    """Each row is what it is alone, over several windows, in one go and in chunks."""
    stock, lengths = model(name), [60, 3, 41]
    x, mask = padded(tokens(3, 60), lengths)
    options = {"max_new_tokens": 50, "do_sample": False, "pad_token_id": 0, "output_logits": True,
               "return_dict_in_generate": True}  # fmt: skip
    for chunk in (None, 25):
        cache = StreamingCache(stock.config, memory=MEMORY, page_size=16)
        with attached(stock):
            got = stock.generate(x, attention_mask=mask, past_key_values=cache,
                                 prefill_chunk_size=chunk, **options)  # fmt: skip
        for row, length in enumerate(lengths):
            text = got.sequences[row : row + 1, 60 - length :]
            want = oracle(stock, text, MEMORY)[0, length - 1 : -1]
            assert gap(torch.stack(got.logits, 1)[row], want) < BOUND


def test_padding_larger_window_is_stock(tokens):
    stock = model("mistral")
    x, mask = padded(tokens(3, 30), [30, 1, 17])
    options = {"attention_mask": mask, "max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    want = stock.generate(x, **options)
    cache = StreamingCache(stock.config, memory=Window(None))
    with attached(stock):
        assert torch.equal(stock.generate(x, past_key_values=cache, **options), want)


@pytest.mark.parametrize("beams", [2, 5])
def test_beams(beams, tokens):
    stock, x = model("qwen2"), tokens(2, 20)
    options = {"max_new_tokens": 50, "num_beams": beams, "num_return_sequences": 2,
               "do_sample": False, "pad_token_id": 0}  # fmt: skip
    want = stock.generate(x, **options)
    cache = StreamingCache(stock.config, memory=Sink(4) + Window(100), page_size=16)
    with attached(stock):
        assert torch.equal(stock.generate(x, past_key_values=cache, **options), want)
    pages = 2 * beams * (1 + 1 + -(-66 // 16))
    assert cache.rows.pool.live_pages <= pages  # beams share what they have in common


def test_beams_past_the_window_keep_constant_memory(tokens):
    stock, x = model("llama"), tokens(1, 40)
    held = []
    for length in (100, 200):
        cache = StreamingCache(stock.config, memory=Sink(4) + Window(32), page_size=16)
        with attached(stock):
            stock.generate(x, past_key_values=cache, max_new_tokens=length, num_beams=4,
                           do_sample=False, pad_token_id=0)  # fmt: skip
        held.append((cache.rows.pool.live_pages, cache.rows.pool.pages))
        assert cache.alive == [35] * 4
    limit = 4 * (1 + 1 + -(-(32 - 1 + 64) // 16))
    assert all(live <= limit for live, _ in held)
    assert held[0][1] == held[1][1]


def test_sampling(tokens):
    stock, x = model("qwen3"), tokens(3, 12)
    options = {"max_new_tokens": 40, "do_sample": True, "temperature": 0.8, "top_k": 20,
               "pad_token_id": 0}  # fmt: skip
    torch.manual_seed(1)
    want = stock.generate(x, **options)
    torch.manual_seed(1)
    with attached(stock):
        cache = StreamingCache(stock.config, memory=Window(100))
        assert torch.equal(stock.generate(x, past_key_values=cache, **options), want)


def test_assisted_decoding(tokens):
    stock, x = model("llama"), tokens(1, 20)
    x = torch.cat([x, x, x], 1)
    options = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": 0}
    for memory in (Window(300), MEMORY):
        outs = []
        for assisted in ({}, {"prompt_lookup_num_tokens": 5}, {"assistant_model": model("qwen2")}):
            cache = StreamingCache(stock.config, memory=memory, page_size=16)
            with attached(stock):
                outs.append(stock.generate(x, past_key_values=cache, **options, **assisted))
        assert torch.equal(outs[0], outs[1])
        assert torch.equal(outs[0], outs[2])


def test_crop_is_exact(tokens):
    stock, x = model("mistral"), tokens(2, 200)
    want = oracle(stock, x, MEMORY)
    other = tokens(2, 60, seed=1)
    cache = StreamingCache(stock.config, memory=MEMORY, page_size=16)
    fed(stock, x[:, :150], cache, [150])
    fed(stock, other, cache, [60])
    cache.crop(-60)
    assert gap(fed(stock, x[:, 150:], cache, [13]), want[:, 150:]) < BOUND
    for _ in range(3):
        cache.crop(-50)
        assert gap(fed(stock, x[:, 150:], cache, [1, 9]), want[:, 150:]) < BOUND


def test_crop_too_far_changes_nothing(tokens):
    stock, x = model("llama"), tokens(2, 400)
    cache = StreamingCache(stock.config, memory=MEMORY, page_size=16)
    fed(stock, x[:, :360], cache, [360])
    with pytest.raises(ValueError, match=r"crop\(tokens_to_remove\): expected at least the last"):
        cache.crop(-200)
    with pytest.raises(ValueError, match="expected 0 or less, got 3"):
        cache.crop(3)
    with pytest.raises(ValueError, match="expected -360 or more"):
        cache.crop(-361)
    want = oracle(stock, x, MEMORY)[:, 360:]
    assert gap(fed(stock, x[:, 360:], cache, [40]), want) < BOUND


def test_crop_of_padded_rows(tokens):
    stock, x = model("llama"), tokens(2, 50)
    x, mask = padded(x, [50, 30])
    cache = StreamingCache(stock.config, memory=MEMORY)
    ids = (mask.cumsum(1) - 1).clamp(min=0)
    with attached(stock), torch.no_grad():
        stock(x, attention_mask=mask, position_ids=ids, past_key_values=cache)
        cache.crop(-25)
        assert [lease.table.tokens for lease in cache.rows.leases] == [25, 5]
        got = stock(x[:, 25:], attention_mask=mask, position_ids=ids[:, 25:],
                    past_key_values=cache).logits  # fmt: skip
    assert gap(got[1], oracle(stock, x[1:, 20:], MEMORY)[0, 5:]) < BOUND


def test_a_copy_goes_on_by_itself(tokens):
    """A prompt read once for several answers, which share its pages."""
    import copy

    stock, x = model("llama"), tokens(1, 105)
    first = StreamingCache(stock.config, memory=Sink(4) + Window(200), page_size=16)
    fed(stock, x, first, [105])
    pages = first.rows.pool.live_pages
    others = [copy.deepcopy(first) for _ in range(3)]
    assert first.rows.pool.live_pages == pages + 3  # the last page of each
    texts = [torch.cat([x, tokens(1, 30, seed)], 1) for seed in (1, 2, 3)]
    for cache, text in zip(others, texts, strict=True):
        got = fed(stock, text[:, 105:], cache, [9])
        assert gap(got, oracle(stock, text, Sink(4) + Window(200))[:, 105:]) < BOUND
    got = fed(stock, texts[0][:, 105:], first, [30])
    assert gap(got, oracle(stock, texts[0], Sink(4) + Window(200))[:, 105:]) < BOUND
    del others, cache
    import gc

    gc.collect()
    assert first.rows.pool.live_pages == -(-131 // 16) + 1


def test_rows_selected_and_repeated(tokens):
    stock, x = model("llama"), tokens(3, 90)
    cache = StreamingCache(stock.config, memory=MEMORY, page_size=16)
    fed(stock, x[:, :60], cache, [60])
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    y = x[[2, 2, 0, 0]]
    y[1, 60:], y[3, 60:] = y[1, 60:].flip(0), y[3, 60:].flip(0)
    assert gap(fed(stock, y[:, 60:], cache, [3]), oracle(stock, y, MEMORY)[:, 60:]) < BOUND


def test_a_forward_that_fails_leaves_no_trace(tokens):
    stock, x = model("llama"), tokens(2, 120)
    cache = StreamingCache(stock.config, memory=MEMORY, page_size=16)
    fed(stock, x[:, :70], cache, [70])

    def fail(*args):
        raise KeyboardInterrupt

    hook = stock.model.layers[0].mlp.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        fed(stock, x.flip(1)[:, :33], cache, [33])
    hook.remove()
    assert cache.get_seq_length() == 70
    got = fed(stock, x[:, 70:], cache, [33])
    assert gap(got, oracle(stock, x, MEMORY)[:, 70:]) < BOUND
    assert cache.rows.pool.live_pages <= 2 * (2 + -(-(39 + 64) // 16))
