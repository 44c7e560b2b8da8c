# SPDX-License-Identifier: Apache-2.0
"""Adapters per row on any module, without the libraries that they come from."""

import pytest
import torch
from torch import nn

from headrace import AdapterBank, ops
from headrace.adapters import AdapterConfig, AdapterStore, Base
from headrace.adapters.blob import Adapter
from headrace.adapters.packing import pack
from headrace.adapters.peft_files import write
from headrace.integrations.peft import serve
from tests import warm

IDS = torch.arange(30).view(5, 6) % 11


def tensors_of(model, seed, rank=3, parts=("up", "down"), **extras):
    g = torch.Generator().manual_seed(seed)
    made = {}
    for name in parts:
        weight = getattr(model, name).weight
        made[f"{name}.a"] = torch.randn(rank, weight.shape[1], generator=g)
        made[f"{name}.b"] = torch.randn(weight.shape[0], rank, generator=g)
        for what in extras:
            made[f"{name}.{what}"] = torch.rand(weight.shape[0], generator=g) + 0.5
    return made


def folder(path, model, seed, rank=3, **extras):
    tensors = tensors_of(model, seed, rank, **extras)
    config = AdapterConfig.of("Tiny", tensors, 2.0 * rank)
    digest, blob = pack("folder", config, tensors)
    write("folder", path, Adapter("folder", blob, digest.hex()), None)
    return path, tensors


def merged(model, tensors):
    """The model with an adapter in its weights, fp64; gain and bias where there are any."""
    other = type(model)().double().eval()
    other.load_state_dict(model.state_dict())
    for name in {key.partition(".")[0] for key in tensors}:
        layer = getattr(other, name)
        update = 2 * tensors[f"{name}.b"].double() @ tensors[f"{name}.a"].double()
        weight = layer.weight.data + update
        if f"{name}.magnitude" in tensors:
            gain = tensors[f"{name}.magnitude"].double() / weight.norm(dim=1)
            weight = weight * gain[:, None]
        layer.weight.data = weight
        if f"{name}.bias" in tensors:
            bias = layer.bias.data if layer.bias is not None else 0
            layer.bias = nn.Parameter(bias + 2 * tensors[f"{name}.bias"].double())
    return other


def state(model):
    """Everything that serving might leave behind."""
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_backward_hooks",
    )
    return [
        (name, id(m), m.training, sorted(vars(m)), [len(getattr(m, kind)) for kind in kinds])
        for name, m in model.named_modules()
    ]


@pytest.mark.parametrize("extras", [{}, {"magnitude": True}, {"bias": True}])
def test_each_row_has_its_own(tiny, tmp_path, extras):
    made = {f"u{i}": folder(tmp_path / f"u{i}", tiny, i, 1 + i, **extras) for i in range(3)}
    before, plain = state(tiny), tiny(IDS)
    with serve(tiny, adapters={name: path for name, (path, _) in made.items()}) as served:
        rows = ["u2", None, "u0", "u2", "u1"]
        got = served(IDS, adapters=rows)
        assert state(tiny) == before
    for i, name in enumerate(rows):
        if name is None:
            assert torch.equal(got[i], plain[i])
        else:
            want = merged(tiny, made[name][1])(IDS[i : i + 1])[0]
            torch.testing.assert_close(got[i].double(), want, atol=2e-5, rtol=2e-5)
    assert torch.equal(tiny(IDS), plain)


def test_rows_do_not_depend_on_one_another(tiny, tmp_path):
    made = {f"u{i}": folder(tmp_path / f"u{i}", tiny, i)[0] for i in range(2)}
    with serve(tiny, adapters=made) as served:
        mixed = served(IDS, adapters=["u0", "u1", None, "u1", "u0"])
        alike = served(IDS, adapters=["u0", "u0", "u0", "u0", "u0"])
    assert torch.equal(mixed[0], alike[0])
    assert torch.equal(mixed[4], alike[4])
    assert not torch.equal(mixed[1], alike[1])


def test_rows_made_of_one_row_share_its_adapter(tiny, tmp_path):
    made = {"u": folder(tmp_path / "u", tiny, 1)[0]}
    with serve(tiny, adapters=made) as served:
        wide = served(IDS[:4].repeat_interleave(3, 0), adapters=["u", None, None, "u"])
        got = served(IDS[:4], adapters=["u", None, None, "u"])
    assert torch.equal(wide[::3], got)
    assert torch.equal(wide[2::3], got)


def test_calls_of_other_lengths_in_one_batch(tiny, tmp_path):
    made = {"u": folder(tmp_path / "u", tiny, 1)[0]}
    with serve(tiny, adapters=made) as served:
        want = served(IDS, adapters=["u", None, "u", None, "u"])
        with served.rows(["u", None, "u", None, "u"]) as model, torch.inference_mode():
            for first, last in ((0, 4), (4, 5), (5, 6), (0, 0)):
                got = model(IDS[:, first:last])
                torch.testing.assert_close(got, want[:, first:last], atol=1e-6, rtol=1e-5)


def test_a_bank_of_ones_own_takes_more_than_it_holds(tiny, tmp_path):
    """Names of a store; two slots for four adapters, batch after batch."""
    base = Base("Tiny", {n: tuple(getattr(tiny, n).weight.shape) for n in ("up", "down", "head")})
    with AdapterStore(tmp_path / "store") as store:
        store.add_base(base.name, base.modules)
        wanted = {}
        for i in range(4):
            path, wanted[f"u{i}"] = folder(tmp_path / f"u{i}", tiny, i)
            store.add_peft(path, base="Tiny", name=f"u{i}")
        with AdapterBank(base, slots=2, rank_rows=6, max_rank=3, store=store) as bank:
            served = serve(tiny, bank)
            for pair in (["u0", "u1"], ["u2", "u3"], ["u3", "u0"]):
                got = served(IDS[:2], adapters=pair)
                for row, name in enumerate(pair):
                    want = merged(tiny, wanted[name])(IDS[row : row + 1])[0]
                    torch.testing.assert_close(got[row].double(), want, atol=2e-5, rtol=2e-5)
            with pytest.raises(ValueError, match=r"adapters\): expected .* free slots"):
                served(IDS[:3], adapters=["u0", "u1", "u2"])
            assert bank.stats.evictions == 3
            served.close()
            assert not bank.closed


def test_exact_rows_have_the_same_bits_in_every_batch(tmp_path):
    """Also those of the layers that no adapter touches, and those without an adapter."""
    model = nn.Sequential()
    model.up, model.head = nn.Linear(515, 300), nn.Linear(300, 257, bias=False)
    tensors = tensors_of(model, 1, parts=("up",))
    config = AdapterConfig.of("Sequential", tensors, 6.0)
    digest, blob = pack("folder", config, tensors)
    write("folder", tmp_path / "u", Adapter("folder", blob, digest.hex()), None)
    x = torch.randn(37, 2, 515, generator=torch.Generator().manual_seed(3))
    before = state(model)
    with serve(model, adapters={"u": tmp_path / "u"}, exact=True) as served, torch.no_grad():
        got = served(x, adapters=["u", None] * 18 + ["u"])
        assert state(model) == before
        for i, name in ((0, "u"), (1, None), (36, "u")):
            assert torch.equal(served(x[i : i + 1], adapters=[name])[0], got[i])
        down = ops.linear(x[1], model.up.weight, model.up.bias)
        assert torch.equal(got[1], ops.linear(down, model.head.weight))
        torch.testing.assert_close(got[1::2], model(x)[1::2], atol=1e-4, rtol=1e-4)
        model.up.forward = lambda x: torch.zeros(*x.shape[:-1], 300)  # another's: left alone
        assert not served(x[:1], adapters=[None]).any()
        del model.up.forward
    with (
        serve(model, adapters={"u": tmp_path / "u"}, exact=True) as served,
        served.rows([None] * 37),
        pytest.raises(ValueError, match=r"torch\.no_grad"),
    ):
        model(x)
    assert state(model) == before


def test_what_went_wrong_is_told_and_leaves_nothing(tiny, tmp_path):
    before = state(tiny)
    made = {"u": folder(tmp_path / "u", tiny, 1)[0]}
    served = serve(tiny, adapters=made)
    with torch.no_grad():
        for rows, kind, line in (
            (["v"], ValueError, "adapter"),
            ([], ValueError, r"adapters\): expected one per row"),
            ("u", TypeError, r"adapters\): expected a sequence"),
            (["u", "u"], ValueError, r"adapters\): expected 5, one per row, got 2"),
        ):
            with pytest.raises(kind, match=line):
                served(IDS, adapters=rows)
            assert state(tiny) == before
        with served.rows(["u"]), pytest.raises(ValueError, match="one at a time"):
            served(IDS[:1], adapters=["u"])
        with served.rows(["u"] * 5), pytest.raises(NotImplementedError, match=r"up\): expected"):
            tiny.up(torch.ones(30, 8))
        assert state(tiny) == before
        served(IDS, adapters=["u"] * 5)
    with served.rows(["u"] * 5), pytest.raises(ValueError, match=r"torch\.no_grad"):
        tiny(IDS)
    assert state(tiny) == before
    assert not any(one.holds for one in served.bank.residents())


def test_what_cannot_be_served(tiny, tmp_path):
    path, _ = folder(tmp_path / "u", tiny, 1)
    with pytest.raises(TypeError, match=r"serve\(model\): expected a torch module"):
        serve("tiny")
    with pytest.raises(TypeError, match=r"serve\(bank\)"):
        serve(tiny, tiny)
    with pytest.raises(ValueError, match=r"serve\(adapters\): expected folders"):
        serve(tiny)
    with pytest.raises(ValueError, match=r"serve\(model\): expected linear modules"):
        serve(nn.ReLU(), adapters={"u": path})
    with pytest.raises(ValueError, match="rank"):
        serve(tiny, adapters={"u": path}, max_rank=2)
    shapes = {"up": (12, 8), "down": (8, 13)}
    with AdapterBank(Base("Tiny", shapes), slots=1) as bank:
        with pytest.raises(ValueError, match=r"serve\(bank\): expected one whose down"):
            serve(tiny, bank)
        with pytest.raises(ValueError, match=r"serve\(slots\)"):
            serve(tiny, bank, slots=3)
    with (
        AdapterBank(Base("Tiny", {"other": (12, 8)}), slots=1) as bank,
        pytest.raises(ValueError, match=r"serve\(bank\): expected modules such as up"),
    ):
        serve(tiny, bank)
    shapes = {n: tuple(getattr(tiny, n).weight.shape) for n in ("up", "down")}
    wrong, _ = folder(tmp_path / "w", tiny, 1, rank=9)
    with AdapterBank(Base("Tiny", shapes), slots=2, max_rank=4) as bank:
        with pytest.raises(ValueError, match="rank"):
            serve(tiny, bank, {"u": path, "w": wrong})
        with pytest.raises(ValueError, match="adapter"):
            bank.find("u")


def test_nothing_is_wanted_of_other_libraries():
    import subprocess

    code = (
        "import sys, headrace.integrations.peft as m; "
        "assert not {'peft', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([*warm.python(*warm.TORCH), "-c", code], check=True)
