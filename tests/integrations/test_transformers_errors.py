# SPDX-License-Identifier: Apache-2.0
"""What a StreamingCache refuses, in one line, and that nothing is left behind."""

import subprocess

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from headrace import Archive, PerLane, Sink, Window  # noqa: E402
from headrace.integrations.transformers import StreamingCache, attached, oracle  # noqa: E402
from tests import warm  # noqa: E402

from .stock import BASE, model  # noqa: E402

MEMORY = Sink(4) + Window(40)


def llama(**options):
    return transformers.LlamaConfig(**{**BASE, **options})


def refused(error, match, **options):
    given = {"config": llama(), "memory": MEMORY, **options}
    with pytest.raises(error, match=match) as caught:
        StreamingCache(given.pop("config"), **given)
    assert "\n" not in str(caught.value)


def test_configs():
    refused(TypeError, r"StreamingCache\(config\): expected a config of transformers", config=3)
    for config in (transformers.GPT2Config(), transformers.T5Config(), transformers.MambaConfig()):
        match = rf"one of the architectures .*llama.*, got {config.model_type}"
        refused(NotImplementedError, match, config=config)
    other = {"rope_type": "proportional", "rope_theta": 10000.0}
    match = "one of the RoPE types default, .*, dynamic, longrope, got proportional"
    refused(NotImplementedError, match, config=llama(rope_parameters=other))


def test_arguments():
    refused(TypeError, r"expected InCache\(\) or Absolute\(\)", positions=PerLane())
    refused(TypeError, "expected regions such as", memory=64)
    refused(ValueError, "a Window among the regions", memory=Sink(4))
    archive = MEMORY >> Archive()
    refused(NotImplementedError, "an Archive last of all", memory=archive + Sink(8))
    refused(TypeError, r"StreamingCache\(dtype\): expected float32", dtype=torch.uint8)
    refused(ValueError, r"StreamingCache\(chunk\)", chunk=0)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_other_attention_implementations(name, layers, tokens):
    stock, x = model("llama", num_hidden_layers=layers), tokens(1, 9)
    stock.set_attn_implementation(name)
    cache = StreamingCache(stock.config, memory=MEMORY)
    match = r'one of the attention implementations "headrace".*set_attn_implementation'
    with pytest.raises(NotImplementedError, match=match), torch.no_grad():
        stock(x, past_key_values=cache)
    assert cache.get_seq_length() == 0
    with attached(stock), torch.no_grad():
        stock(x, past_key_values=cache)
    assert cache.get_seq_length() == 9
    assert stock.config._attn_implementation == name


def test_quantised_caches_of_transformers(tokens):
    stock = model("llama")
    cache = StreamingCache(stock.config, memory=MEMORY)
    with attached(stock), pytest.raises(ValueError, match="cache_implementation"):
        stock.generate(tokens(1, 9), past_key_values=cache, cache_implementation="quantized")


def test_the_implementation_without_the_cache_is_sdpa(tokens):
    stock, x = model("llama"), tokens(2, 20)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, :7] = 0
    options = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    want = stock.generate(x, **options)
    with attached(stock):
        assert torch.equal(stock.generate(x, **options), want)
    without = pytest.raises(NotImplementedError, match="expected one of a StreamingCache")
    with attached(model("gpt_oss")) as sinks, torch.no_grad(), without:
        sinks(x)


def test_attached_puts_back_after_an_error():
    stock = model("llama")
    stock.set_attn_implementation("eager")
    with pytest.raises(KeyboardInterrupt), attached(stock):
        raise KeyboardInterrupt
    assert stock.config._attn_implementation == "eager"
    assert not stock.model.rotary_emb._forward_hooks
    stock.set_attn_implementation("sdpa")
    with pytest.raises(TypeError, match=r"attached\(model\)"), attached("model"):
        pass


def test_forwards(tokens):
    stock, x = model("llama"), tokens(2, 12)
    cache = StreamingCache(stock.config, memory=MEMORY)
    with attached(stock):
        with torch.no_grad():
            stock(x[:, :9], past_key_values=cache)
            with pytest.raises(ValueError, match=r"batch\): expected 2 rows, got 1"):
                stock(x[:1, 9:], past_key_values=cache)
            for ids in ([[9, 10, 12]], [[8, 9, 10]], [[9, 10, 11], [10, 11, 12]]):
                with pytest.raises(ValueError, match=r"position_ids\): expected ids that go up by"):
                    stock(x[:, 9:], past_key_values=cache, position_ids=torch.tensor(ids))
            four = torch.ones(2, 1, 3, 12, dtype=torch.bool)
            with pytest.raises(NotImplementedError, match="or a mask made by hand"):
                stock(x[:, 9:], past_key_values=cache, attention_mask=four)
            with pytest.raises(NotImplementedError, match="output_attentions"):
                stock(x[:, 9:], past_key_values=cache, output_attentions=True)
            stock.train()
            stock.model.layers[0].self_attn.attention_dropout = 0.1
            with pytest.raises(NotImplementedError, match=r"dropout\).*call model.eval\(\)"):
                stock(x[:, 9:], past_key_values=cache)
            stock.model.layers[0].self_attn.attention_dropout = 0.0
            stock.eval()
        logits = stock(x[:, 9:], past_key_values=cache).logits
        assert (logits - oracle(stock, x, MEMORY)[:, 9:]).abs().max() < 1e-4
        with pytest.raises(NotImplementedError, match="backward"):
            logits.sum().backward()
    stock.zero_grad()


def test_models_that_no_page_holds(tokens):
    x = tokens(1, 9)
    for stock, match in (
        (model("llama", head_dim=24), "multiples of 16"),
        (model("llama", head_dim=16).double(), "one of float32, bfloat16, float16, got"),
    ):
        cache = StreamingCache(stock.config, memory=MEMORY)
        error = NotImplementedError if "multiples" in match else TypeError
        with attached(stock), pytest.raises(error, match=match), torch.no_grad():
            stock(x, past_key_values=cache)
        assert cache.get_seq_length() == 0


def python(code):
    return subprocess.run(
        [*warm.python(*warm.TORCH), "-c", code], capture_output=True, text=True, timeout=120
    )


def test_headrace_alone_does_not_import_transformers():
    done = python("import sys, headrace.integrations; assert 'transformers' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_without_transformers():
    done = python(
        "import sys; sys.modules['transformers'] = None\n"
        "import headrace\n"
        "try: import headrace.integrations.transformers\n"
        "except ImportError as error: print(error)\n"
    )
    assert done.stdout.startswith("headrace.integrations.transformers: expected transformers 5."), (
        done.stderr
    )
    assert "pip install" in done.stdout
