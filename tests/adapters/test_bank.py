# SPDX-License-Identifier: Apache-2.0
"""The bank: what a slot computes, and by which names an adapter is known."""

import pytest
import torch

import headrace
from headrace import AdapterBank, AdapterStore
from headrace.adapters import AdapterConfig, Base, Module

from ..streams.tiny import TinyDecoder
from .bank_weights import X, adapter, bank_of, dense, shapes, update


@pytest.mark.parametrize(
    ("pool", "kept", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-6),
        (torch.float32, torch.bfloat16, 1e-6),
        (torch.bfloat16, torch.bfloat16, 1e-6),
        (torch.bfloat16, torch.float32, 1e-2),
        (torch.float16, torch.float32, 2e-3),
        (torch.int8, torch.float32, 2e-2),
        (torch.uint8, torch.float32, 0.25),
    ],
)
@pytest.mark.usefixtures("threaded")
def test_a_slot_adds_what_its_adapter_means(pool, kept, tolerance):
    with bank_of(dtype=pool, group=32) as bank:
        for seed, rank in ((1, 1), (2, (3, 7, 12)), (3, 5)):
            config, tensors = adapter(seed, rank, dtype=kept)
            bank.load_tensors(config, tensors, name=f"a{seed}", wait=False)
            for module in ("q.0", "v.1"):
                n = shapes(TinyDecoder())[module][0]
                want = dense(config, tensors, module, X)
                got = update(bank, module, f"a{seed}", X, n)
                assert (got - want).abs().max() <= tolerance * want.abs().max()


def test_all_slices_of_a_fused_site_with_ranks_and_scales_of_their_own():
    model = TinyDecoder()
    config, tensors = adapter(4, (2, 9), model, parts=("q", "v"))
    modules = tuple(
        Module(m.name, m.rank, m.inputs, m.outputs, 8.0 + i) for i, m in enumerate(config.modules)
    )
    config = AdapterConfig("tiny", modules)
    fused = {f"qkv.{i}": (f"q.{i}", f"k.{i}", f"v.{i}") for i in range(2)}
    with headrace.debug(), bank_of(fused=fused) as bank:
        assert bank.sites["qkv.1"] == ("q.1", "k.1", "v.1")
        bank.load_tensors(config, tensors, name="a")
        got = update(bank, "qkv.1", "a", X, 64 + 32 + 32).split([64, 32, 32], 1)
        assert not got[1].any()
        for module, part in (("q.1", got[0]), ("v.1", got[2])):
            torch.testing.assert_close(
                part.double(), dense(config, tensors, module, X), atol=1e-5, rtol=1e-5
            )


def test_a_bias_and_a_magnitude():
    model = TinyDecoder()
    weights = dict(model.named_parameters())
    with bank_of(bias=True, dora=True, weights=weights, slots=2) as bank:
        config, tensors = adapter(5, 3, dora=True, bias=True)
        bank.load_tensors(config, tensors, name="a")
        y = (X @ weights["q.0"].T).detach()
        want = y.double() + dense(config, tensors, "q.0", X)
        want += config.scale("q.0") * tensors["q.0.bias"].double()
        whole = weights["q.0"].double() + config.scale("q.0") * (
            tensors["q.0.b"].double() @ tensors["q.0.a"].double()
        )
        want *= tensors["q.0.magnitude"].double() / whole.detach().norm(dim=1)
        with bank.route([bank.find("a"), None], [3, 2]) as route:
            got = y.clone()
            route.add_to("q.0", X, got)
        torch.testing.assert_close(got[:3].double(), want[:3], atol=1e-5, rtol=1e-5)
        assert torch.equal(got[3:], y[3:])
        # The slot goes to a plain adapter: nothing of the old one is left.
        bank.unload("a")
        plain = adapter(6, 3)
        bank.load_tensors(*plain, name="b")
        want = dense(*plain, "q.0", X)
        torch.testing.assert_close(
            update(bank, "q.0", "b", X, 64).double(), want, atol=1e-5, rtol=1e-5
        )


def test_from_a_store_a_folder_and_tensors_it_is_the_same_revision(tmp_path):
    config, tensors = adapter(7, 4)
    with AdapterStore(tmp_path / "store") as store:
        store.add_base("tiny", shapes(TinyDecoder()))
        digest = store.add(config, tensors, name="ann")
        store.export_peft("ann", tmp_path / "folder")
        with bank_of(store=store) as bank:
            assert bank.load("ann") == digest
            assert bank.load_peft(tmp_path / "folder", name="bob") == digest
            assert bank.load_tensors(config, tensors) == digest
            assert [r.revision for r in bank.residents()] == [digest]
            assert bank.stats.loads == 1
            want = dense(config, tensors, "o.1", torch.ones(1, 64))
            got = update(bank, "o.1", "ann", torch.ones(1, 64), 32)
            torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)


def test_names_move_and_are_told_when_unknown(tmp_path):
    with bank_of() as bank:
        one = bank.load_tensors(*adapter(1, 2), name="ann")
        two = bank.load_tensors(*adapter(2, 2), name="ann")
        assert bank.find("ann").revision == two
        assert bank.find(one).revision == one  # resident still
        with pytest.raises(ValueError, match=r"find\(adapter\): expected a name .*\(ann\), got 'b"):
            bank.find("bob")
        with pytest.raises(TypeError, match=r"expected a name, a digest or an Adapter, got int"):
            bank.load(3)
        with pytest.raises(ValueError, match=r"forget\(name\): expected a name of this bank"):
            bank.forget("bob")
        bank.unload(one)
        with pytest.raises(ValueError, match="expected a name or digest"):
            bank.find(one)  # nobody has it
        bank.forget("ann")
        assert bank.find(two).revision == two
    bank.close()
    with pytest.raises(ValueError, match=r"load\(adapters\): expected an open bank"):
        bank.load("ann")


def test_a_bank_of_a_model_takes_its_matrices():
    bank = AdapterBank.of(TinyDecoder(), "tiny", slots=2, known_as=["x/tiny"], dora=True)
    assert bank.base == Base("tiny", shapes(TinyDecoder()), ("x/tiny",))
    with pytest.raises(TypeError, match=r"AdapterBank\(base\): expected a Base; see"):
        AdapterBank(TinyDecoder())
