# SPDX-License-Identifier: Apache-2.0
"""Against the peft package's own answers, on models of the transformers library."""

import warnings

import pytest
import torch

from headrace.integrations.peft import serve

transformers = pytest.importorskip(
    "transformers", reason="the transformers package is not installed"
)
peft = pytest.importorskip("peft", reason="the peft package is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 61, "max_position_embeddings": 64,
}  # fmt: skip
TARGETS = ["q_proj", "v_proj", "down_proj"]


def stock(kind="Llama", **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **(SIZES | {"pad_token_id": 0, "eos_token_id": None, "bos_token_id": 1} | options)
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def with_adapters(model, count, **options):
    """A PeftModel of random adapters, ranks 1 to 5 in turns."""
    torch.manual_seed(1)
    for i in range(count):
        config = peft.LoraConfig(
            **({"target_modules": TARGETS, "r": 1 + i % 5, "lora_alpha": 4 + i % 3} | options),
            init_lora_weights=False,
        )
        if i == 0:
            model = peft.get_peft_model(model, config, adapter_name="u0")
        else:
            model.add_adapter(f"u{i}", config)
    return model.eval()


def prompts(count, length=7):
    return torch.randint(2, 61, (count, length), generator=torch.Generator().manual_seed(2))


def alone(model, name, **inputs):
    """Logits of one request under one adapter, by peft."""
    model.set_adapter(name)
    with torch.no_grad():
        return model(**inputs).logits


def test_64_requests_on_64_adapters_are_64_runs_of_peft():
    model = with_adapters(stock(num_hidden_layers=1), 64, target_modules=["q_proj", "down_proj"])
    ids = prompts(64)
    before = list(model.named_modules())
    grads = [p.requires_grad for p in model.parameters()]
    with serve(model) as served:
        names = [f"u{i * 37 % 64}" for i in range(64)]
        got = served(input_ids=ids, adapters=names).logits
        told = served.generate(ids, adapters=names, max_new_tokens=6, do_sample=False)
    assert list(model.named_modules()) == before
    assert [p.requires_grad for p in model.parameters()] == grads
    for i, name in enumerate(names):
        want = alone(model, name, input_ids=ids[i : i + 1])[0]
        torch.testing.assert_close(got[i], want, atol=1e-4, rtol=1e-4)
    for i in range(0, 64, 9):
        model.set_adapter(names[i])
        one = model.generate(input_ids=ids[i : i + 1], max_new_tokens=6, do_sample=False)
        assert told[i].tolist() == one[0].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"v_proj": 7}, "alpha_pattern": {"q_proj": 3}},
        {"use_dora": True},
        {"lora_bias": True},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1]},
    ],
)
@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_options_and_the_mixed_batch_of_peft(kind, options):
    model, ids = with_adapters(stock(kind), 4, **options), prompts(6)
    names = ["u3", None, "u0", "u1", "u2", "u0"]
    with serve(model) as served:
        got = served(input_ids=ids, adapters=names).logits
    if not options.get("lora_bias") and not options.get("use_dora"):
        with torch.no_grad():
            mixed = model(input_ids=ids, adapter_names=[n or "__base__" for n in names]).logits
        torch.testing.assert_close(got, mixed, atol=1e-4, rtol=1e-4)
    for i, name in enumerate(names):
        if name is None:
            with torch.no_grad(), model.disable_adapter():
                want = model(input_ids=ids[i : i + 1]).logits[0]
        else:
            want = alone(model, name, input_ids=ids[i : i + 1])[0]
        torch.testing.assert_close(got[i], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "how", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2, "top_k": 1}]
)
def test_generate_from_folders_on_a_stock_model(tmp_path, how):
    """Left padding, beams, samples: each row as peft generates it alone with its adapter."""
    trained = with_adapters(stock(), 3)
    trained.save_pretrained(tmp_path)
    ids, mask = prompts(3, 9), torch.ones(3, 9, dtype=torch.int64)
    ids[1, :4], mask[1, :4] = 0, 0
    model = stock()
    with serve(model, adapters={f"u{i}": tmp_path / f"u{i}" for i in range(3)}) as served:
        got = served.generate(
            ids, attention_mask=mask, adapters=["u2", "u0", "u1"], max_new_tokens=5, **how
        )
    per = how.get("num_return_sequences", 1)
    for i, name in enumerate(["u2", "u0", "u1"]):
        trained.set_adapter(name)
        want = trained.generate(
            input_ids=ids[i : i + 1], attention_mask=mask[i : i + 1], max_new_tokens=5, **how
        )
        assert got[i * per : (i + 1) * per].tolist() == want.tolist()


def test_a_model_of_16_bits():
    model = with_adapters(stock().bfloat16(), 3)
    ids = prompts(3)
    with serve(model) as served:
        got = served(input_ids=ids, adapters=["u0", "u2", None]).logits
    for i, name in enumerate(["u0", "u2"]):
        want = alone(model, name, input_ids=ids[i : i + 1])[0]
        torch.testing.assert_close(got[i].float(), want.float(), atol=0.05, rtol=0.05)


def test_what_peft_has_and_this_has_not():
    model = with_adapters(stock(), 2)
    model.set_adapter("u0")
    model.merge_adapter()
    served = serve(model)
    modules = list(model.named_modules())
    with pytest.raises(ValueError, match="not merged"):
        served(input_ids=prompts(1), adapters=["u0"])
    assert list(model.named_modules()) == modules
    model.unmerge_adapter()
    served(input_ids=prompts(1), adapters=["u0"])
    with pytest.raises(NotImplementedError, match="modules_to_save"):
        serve(with_adapters(stock(), 1, modules_to_save=["lm_head"]))
    with pytest.raises(NotImplementedError, match="peft_type"):
        serve(peft.get_peft_model(stock(), peft.IA3Config(target_modules=["v_proj"],
                                                          feedforward_modules=[])))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(stock(), peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=2))  # fmt: skip
    with pytest.raises(NotImplementedError, match="model"):
        serve(wrapped)
