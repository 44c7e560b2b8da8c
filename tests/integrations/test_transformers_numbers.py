# SPDX-License-Identifier: Apache-2.0
"""Positions far out, positions along three axes, and pages of other formats."""

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from headrace import Absolute, InCache, Sink, Window  # noqa: E402
from headrace.integrations.transformers import StreamingCache, attached, oracle  # noqa: E402

from .stock import BASE, model  # noqa: E402

MEMORY = Sink(4) + Window(40)
FAR = 4_000_000  # where one step of an angle in fp32 is a quarter of a radian


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt_oss"])
def test_far_positions_cost_no_accuracy(name, tokens):
    """The stock model turns keys by angles that are wrong out there; they are turned back."""
    stock, x = model(name), tokens(2, 150)
    for positions in (InCache(), Absolute()):
        want = oracle(stock, x, MEMORY, positions)
        cache = StreamingCache(stock.config, memory=MEMORY, positions=positions, page_size=16)
        outs = []
        with attached(stock), torch.no_grad():
            for at in range(0, 150, 50):
                ids = torch.arange(FAR + at, FAR + at + 50)[None]
                part = x[:, at : at + 50]
                outs.append(stock(part, past_key_values=cache, position_ids=ids).logits)
        assert (torch.cat(outs, 1) - want).abs().max() < 1e-4
    with torch.no_grad():
        ids = torch.arange(FAR, FAR + 30)[None]
        stray = stock(x[:, :30], position_ids=ids).logits - stock(x[:, :30]).logits
    assert stray.abs().max() > 1e-3


def fed(stock, x, cache):
    with attached(stock), torch.no_grad():
        return torch.cat([stock(p, past_key_values=cache).logits for p in x.split(60, 1)], 1)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        (torch.bfloat16, 0.02),
        (torch.float16, 0.003),
        (torch.int8, 0.03),
        (torch.float8_e4m3fn, 0.2),
    ],
)
def test_pages_of_other_formats(dtype, bound, tokens):
    stock, x = model("llama", initializer_range=0.1), tokens(2, 150)
    want = oracle(stock, x, MEMORY)
    cache = StreamingCache(stock.config, memory=MEMORY, dtype=dtype)
    off = (fed(stock, x, cache) - want).pow(2).mean().sqrt() / want.pow(2).mean().sqrt()
    assert 0 < off < bound
    assert cache.rows.pool.k.dtype == dtype


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_models_in_bfloat16(name, tokens):
    """No further from the fp64 oracle than the model itself is on a text without eviction."""
    import copy

    stock, x = model(name, initializer_range=0.1), tokens(2, 39)
    half = copy.deepcopy(stock).to(torch.bfloat16)
    want = oracle(stock, x, MEMORY)
    with torch.no_grad():
        own = (half(x).logits - want).pow(2).mean()
    cache = StreamingCache(half.config, memory=MEMORY)
    got = fed(half, x, cache)
    assert got.dtype == torch.bfloat16
    assert cache.rows.pool.k.dtype == torch.bfloat16
    assert (got - want).pow(2).mean() < 2 * own


def vision(name):
    """A small Qwen2-VL or Qwen2.5-VL, and a prompt with a picture of 4 x 4 tokens for each row."""
    text = {**BASE, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                        "mrope_section": [2, 3, 3]}}  # fmt: skip
    tower = {"depth": 1, "num_heads": 2, "patch_size": 4, "hidden_size": 64}
    if name == "Qwen2VL":
        tower |= {"embed_dim": 32, "mlp_ratio": 2}
    else:
        tower |= {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48,
                  "window_size": 16, "fullatt_block_indexes": [0]}  # fmt: skip
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    kind = name.replace("VL", "_VL") if "5" in name else name
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=tower, **dict(zip(names, range(80, 84), strict=True))
    )
    torch.manual_seed(0)
    stock = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    x = torch.randint(1, 80, (2, 60))
    x[:, 10], x[:, 11:27], x[:, 27] = 82, 80, 83
    picture = {
        "pixel_values": torch.randn(2 * 64, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 8, 8]] * 2),
        "mm_token_type_ids": (x == 80).long(),
    }
    return stock, x, picture


@pytest.mark.parametrize("name", ["Qwen2VL", "Qwen2_5VL"])
def test_mrope(name, tokens):
    stock, x, picture = vision(name)
    options = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    text, memory = tokens(2, 60).clamp(max=79), Window(300)
    want = stock.generate(text, **options), stock.generate(x, **picture, **options)

    def cache(positions):
        return StreamingCache(stock.config, memory=memory, positions=positions)

    with attached(stock):
        for positions in (InCache(), Absolute()):
            got = stock.generate(text, past_key_values=cache(positions), **options)
            assert torch.equal(got, want[0])
        got = stock.generate(x, past_key_values=cache(Absolute()), **picture, **options)
        assert torch.equal(got, want[1])
        with pytest.raises(
            NotImplementedError, match=r"expected one of the positions Absolute\(\)"
        ):
            stock.generate(x, past_key_values=cache(InCache()), **picture, **options)
    stock.set_attn_implementation("headrace")
    with pytest.raises(NotImplementedError, match="run it inside `with attached"):
        stock.generate(text, past_key_values=cache(InCache()), **options)


def test_mrope_over_several_windows(tokens):
    """Against the model's own attention under a mask: absolute positions are what it has anyway."""
    stock, _, _ = vision("Qwen2VL")
    inner, x = stock.model.language_model, tokens(2, 200)
    step = torch.randint(0, 2, (3, 2, 200), generator=torch.Generator().manual_seed(1))
    ids, number = step.cumsum(-1), torch.arange(200)
    seen = MEMORY.keeps(number[:, None], number[None, :]).expand(2, 1, 200, 200)
    with torch.no_grad():
        want = inner(input_ids=x, position_ids=ids, attention_mask=seen).last_hidden_state
        cache = StreamingCache(
            stock.config, memory=MEMORY, positions=Absolute(), page_size=16, chunk=30
        )
        with attached(stock):
            got = [
                inner(input_ids=x[:, a:b], position_ids=ids[..., a:b], past_key_values=cache)
                for a, b in ((0, 120), (120, 121), (121, 200))
            ]
    assert (torch.cat([g.last_hidden_state for g in got], 1) - want).abs().max() < 1e-4


def test_mrope_text_is_the_oracle(tokens):
    stock, x = vision("Qwen2VL")[0], tokens(2, 150).clamp(max=79)
    inner = stock.model.language_model
    want = oracle(inner, x, MEMORY)
    cache = StreamingCache(stock.config, memory=MEMORY, page_size=16)
    with attached(stock), torch.no_grad():
        got = [inner(input_ids=p, past_key_values=cache).last_hidden_state for p in x.split(50, 1)]
    assert (torch.cat(got, 1) - want).abs().max() < 1e-4
