# SPDX-License-Identifier: Apache-2.0
"""The bank: what is refused, and that it then is as it was."""

import pytest
import torch
from safetensors.torch import save_file

from headrace.adapters import AdapterConfig, Module

from .bank_weights import adapter, bank_of, state


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"slots": 0}, ValueError, r"AdapterBank\(slots\): expected 1 to 65536, got 0"),
        ({"slots": 2.0}, TypeError, r"AdapterBank\(slots\): expected a whole number, got 2.0"),
        ({"max_rank": 513}, ValueError, r"AdapterBank\(max_rank\): expected 1 to 512, got 513"),
        ({"dtype": torch.float64}, TypeError, r"AdapterBank\(dtype\): expected float32, .* got"),
        ({"modules": ["q.9"]}, ValueError, r"\(modules\): expected modules of tiny, got q.9"),
        ({"dora": True}, ValueError, r"\(weights\): expected the base's weights, for dora"),
        ({"fused": {"x": ("q.0", "q.1")}}, ValueError, r"\(fused\): expected modules of one"),
    ],
)
def test_a_bank_that_cannot_be(options, error, text):
    with pytest.raises(error, match=text) as caught:
        bank_of(**options)
    assert "\n" not in str(caught.value)


def _edited(change):
    config, tensors = adapter(1, 4)
    return change(config, dict(tensors))


def _other_base(config, tensors):
    return AdapterConfig("another", config.modules), tensors


def _missing(config, tensors):
    return config, {k: v for k, v in tensors.items() if k != "q.0.a"}


def _extra(config, tensors):
    return config, tensors | {"k.0.a": tensors["q.0.a"]}


def _infinite(config, tensors):
    tensors["v.1.b"][3, 1] = torch.inf
    return config, tensors


def _wide(config, tensors):
    return adapter(1, 13)


def _foreign(config, tensors):
    m = Module("head", 1, 4, 4, 1.0)
    return AdapterConfig("tiny", (m,)), {"head.a": torch.ones(1, 4), "head.b": torch.ones(4, 1)}


def _shape(config, tensors):
    m = Module("q.0", 1, 31, 64, 1.0)
    return AdapterConfig("tiny", (m,)), {}


def _biased(config, tensors):
    return adapter(1, 2, bias=True)


def _invoked(config, tensors):
    return AdapterConfig("tiny", config.modules, invocation=(1, 2)), tensors


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (_other_base, ValueError, r"load\(base\): expected tiny, got another"),
        (_missing, ValueError, r"load\(tensors\): expected the 20 .* got no tensor q.0.a"),
        (_extra, ValueError, r"load\(tensors\): .* got an extra tensor k.0.a"),
        (_infinite, ValueError, r"load\(v.1.b\): expected finite weights, got NaN or infinity"),
        (_wide, ValueError, r"load\(rank\): expected at most 12, got 13; raise max_rank"),
        (_foreign, ValueError, r"load\(modules\): .*it would apply to no module"),
        (_shape, ValueError, r"load\(q.0\): expected \[64, 32\] as in the base tiny"),
        (_biased, ValueError, r"load\(bias\): expected none in this bank"),
        (_invoked, NotImplementedError, r"load\(invocation\): expected one of None"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused_and_the_bank_is_as_it_was(change, error, text):
    with bank_of() as bank:
        bank.load_tensors(*adapter(3, 3), name="old")
        before = state(bank)
        with pytest.raises(error, match=text) as caught:
            bank.load_tensors(*_edited(change), name="new")
        assert "\n" not in str(caught.value)
        assert state(bank) == before


def test_rank_zero_and_strange_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Module\(rank\): expected 1 to 512 in q.0, got 0"):
        Module("q.0", 0, 32, 64, 1.0)
    folder = tmp_path / "a"
    folder.mkdir()
    config = (
        '{"peft_type": "LORA", "r": %d, "lora_alpha": 1, "target_modules": ["q.0"],'
        ' "base_model_name_or_path": "%s"}'
    )
    keys = {"A": torch.ones(0, 32), "B": torch.ones(64, 0)}
    tensors = {f"base_model.model.q.0.lora_{k}.weight": v for k, v in keys.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    with bank_of() as bank:
        before = state(bank)
        for rank, name, text in (
            (1, "org/other", r"load\(base\): expected tiny, got org/other"),
            (0, "org/tiny", "expected a rank of 1 or more, got 0"),
        ):
            (folder / "adapter_config.json").write_text(config % (rank, name))
            with pytest.raises(ValueError, match=text):
                bank.load_peft(folder)
        (folder / "adapter_model.safetensors").write_bytes(b"\x08\0\0")
        with pytest.raises(ValueError, match=r"expected a whole safetensors file"):
            bank.load_peft(folder)
        assert state(bank) == before


def test_weights_that_do_not_fit_the_pool_are_told():
    config, tensors = adapter(1, 2)
    tensors["v.0.a"] = tensors["v.0.a"] * 1e6
    with bank_of(dtype=torch.float16) as bank:
        before = state(bank)
        with pytest.raises(ValueError, match="expected weights in the range of float16, got"):
            bank.load_tensors(config, tensors)
        assert state(bank)[:4] == before[:4]
