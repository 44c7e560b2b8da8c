# SPDX-License-Identifier: Apache-2.0
"""Folders of the peft package, in and out; against the package itself where it is installed."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.adapters import AdapterStore, modules_of

from .conftest import SHAPES, clean, everything

CONFIG = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/base",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "target_modules": ["q", "v"],
    "rank_pattern": {},
    "alpha_pattern": {},
    "bias": "none",
    "init_lora_weights": True,
    "modules_to_save": None,
}
PREFIX = "base_model.model."


def folder(path, change=None, tensors=None, **options):
    """A folder as peft writes it. change: tensors to set, or with None to leave out."""
    path.mkdir(exist_ok=True)
    config = {**CONFIG, **options}
    if tensors is None:
        g = torch.Generator().manual_seed(0)
        tensors = {}
        for name, (n, k) in SHAPES.items():
            r = next((v for p, v in config["rank_pattern"].items() if name.endswith(p)), 4)
            tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.randn(r, k, generator=g)
            tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.randn(n, r, generator=g)
            if config.get("use_dora"):
                tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = torch.rand(n, generator=g)
            if config.get("lora_bias"):
                tensors[f"{PREFIX}{name}.lora_B.bias"] = torch.randn(n, generator=g)
    for key, tensor in (change or {}).items():
        tensors.pop(PREFIX + key, None)
        if tensor is not None:
            tensors[PREFIX + key] = tensor
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True, "lora_bias": True},
        {"use_rslora": True, "rank_pattern": {"layers.1.q": 7}, "alpha_pattern": {"v": 3.5}},
        {"alora_invocation_tokens": [5, 6]},
        {"exclude_modules": [], "target_modules": r"layers\.\d+\.(q|v)"},
    ],
)
def test_in_and_out(store, tmp_path, options):
    source = folder(tmp_path / "in", **options)
    digest = store.add_peft(source, name="n")
    store.export_peft("n", tmp_path / "out")
    for name in ("in", "out"):
        assert (tmp_path / name / "adapter_config.json").is_file()
    one = load_file(source / "adapter_model.safetensors")
    two = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key])
    read = [json.loads((tmp_path / n / "adapter_config.json").read_text()) for n in ("in", "out")]
    assert read[0] == read[1]
    assert store.add_peft(tmp_path / "out") == digest
    clean(store)


def test_patterns_and_scales(store, tmp_path):
    options = {"rank_pattern": {"layers.1.q": 16}, "alpha_pattern": {"v": 3.5, "layers.1.q": 4}}
    adapter = store.open(store.add_peft(folder(tmp_path / "a", **options)))
    modules = adapter.config.by_name
    assert [modules[n].rank for n in ("layers.1.q", "layers.10.q", "layers.0.q")] == [16, 4, 4]
    assert adapter.scale("layers.10.v") == 3.5 / 4
    assert adapter.scale("layers.1.q") == 4 / 16
    assert adapter.scale("layers.0.q") == 2.0
    root = store.open(store.add_peft(folder(tmp_path / "b", use_rslora=True, **options)))
    assert root.scale("layers.1.q") == 4 / 4
    assert root.scale("layers.10.v") == 3.5 / 2


def test_a_configuration_made_anew_means_the_same(store, tmp_path):
    """Without the folder's own configuration one is written that gives each module the same."""
    options = {"rank_pattern": {"layers.1.q": 16}, "alpha_pattern": {"v": 3.5}, "use_dora": True}
    first = store.open(store.add_peft(folder(tmp_path / "a", **options)))
    with AdapterStore(tmp_path / "second") as second:
        second.add_base("base", SHAPES)
        digest = second.add(first.config, first.tensors())
        assert digest == first.revision
        second.export_peft(digest, tmp_path / "out")
    assert store.add_peft(tmp_path / "out") == first.revision


REFUSED = {
    "other kind": ({"peft_type": "IA3"}, {}, "peft_type): expected one of LORA, got IA3"),
    "pissa": ({"init_lora_weights": "pissa"}, {}, "init_lora_weights"),
    "modules": ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
    "bias": ({"bias": "all"}, {}, "bias"),
    "layers": ({"layer_replication": [[0, 2]]}, {}, "layer_replication"),
    "parameters": ({"target_parameters": ["w"]}, {}, "target_parameters"),
    "tokens": ({"trainable_token_indices": [1]}, {}, "trainable_token_indices"),
    "qalora": ({"use_qalora": True}, {}, "use_qalora"),
    "unknown": ({"use_next_years_idea": True}, {}, "use_next_years_idea"),
    "base": ({"base_model_name_or_path": "org/other"}, {}, "got org/other"),
    "rank 0": ({"r": 0}, {}, "expected a rank of 1 or more, got 0"),
    "rank": ({"r": 5}, {}, "expected rank 5"),
    "rank type": ({"r": "4"}, {}, "r): expected what peft writes"),
    "alpha": ({"lora_alpha": float("nan")}, {}, "finite number"),
    "pattern": ({"rank_pattern": {"(": 4}}, {}, "regular expressions"),
    "missing": ({}, {"layers.0.q.lora_A.weight": None}, "layers.0.q, got no a"),
    "missing both": (
        {},
        {"layers.0.q.lora_A.weight": None, "layers.0.q.lora_B.weight": None},
        "none for layers.0.q",
    ),
    "magnitude": ({"use_dora": True}, {"layers.0.q.lora_magnitude_vector": None}, "no magnitude"),
    "extra magnitude": ({}, {"layers.0.q.lora_magnitude_vector": torch.ones(48)}, "an extra mag"),
    "extra": ({}, {"layers.0.q.weight": torch.ones(1)}, "an extra tensor"),
    "untargeted": ({"target_modules": ["q"]}, {}, "extra: layers.0.v"),
    "embedding": ({}, {"e.lora_embedding_A": torch.ones(4, 9)}, "an embedding's"),
    "float8": (
        {},
        {"layers.0.q.lora_A.weight": torch.ones(4, 32).to(torch.float8_e4m3fn)},
        "float8_e4m3fn",
    ),
    "convolution": ({}, {"layers.0.q.lora_A.weight": torch.ones(4, 32, 1)}, "3 dimensions"),
    "shape": ({}, {"layers.0.q.lora_A.weight": torch.ones(4, 31)}, "as in the base base"),
    "not finite": ({}, {"layers.0.q.lora_A.weight": torch.full((4, 32), torch.inf)}, "finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(store, tmp_path, name):
    options, change, line = REFUSED[name]
    path = folder(tmp_path / "a", change, **options)
    before = everything(store)
    with pytest.raises((ValueError, TypeError, NotImplementedError)) as caught:
        store.add_peft(path, base="base")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert everything(store) == before


def test_layers_to_transform(store, tmp_path):
    left_out = {f"layers.{i}.{m}.lora_{x}.weight": None for i in (0, 2) for m in "qv" for x in "AB"}
    store.add_base("deep", {f"model.{k}": v for k, v in SHAPES.items()})
    whole = load_file(folder(tmp_path / "a", left_out) / "adapter_model.safetensors")
    deep = {k.replace(PREFIX, PREFIX + "model."): t for k, t in whole.items()}
    said = {"base_model_name_or_path": "deep", "layers_to_transform": [1, 10]}
    assert store.add_peft(folder(tmp_path / "b", tensors=deep, **said))
    said["layers_to_transform"] = [1, 2]
    with pytest.raises(ValueError, match=r"none for model.layers.2.q"):
        store.add_peft(folder(tmp_path / "c", tensors=deep, **said))


def test_no_module_of_the_base(store, tmp_path):
    store.add_base("strange", {"h.0.q": (48, 32)})
    path = folder(tmp_path / "a", base_model_name_or_path="strange")
    with pytest.raises(ValueError, match="it would apply to no module"):
        store.add_peft(path)


def test_files_that_are_not_whole(store, tmp_path):
    before = everything(store)
    path = folder(tmp_path / "a")
    weights = path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for spoiled in (
        b"",
        whole[:4],
        whole[:200],
        whole[:-1],
        whole + b"x",
        struct.pack("<Q", 1 << 60) + whole[8:],
        b"{" * 500,
    ):
        weights.write_bytes(spoiled)
        with pytest.raises(ValueError, match="a whole safetensors file") as caught:
            store.add_peft(path)
        assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(ValueError, match="pickled weights are not read"):
        store.add_peft(path)
    for text, line in (("{", "JSON"), ("[]", "a JSON object"), (b"\xff", "JSON")):
        (path / "adapter_config.json").write_bytes(text.encode() if text.__class__ is str else text)
        with pytest.raises(ValueError, match=line):
            store.add_peft(path)
    with pytest.raises(ValueError, match="No such file"):
        store.add_peft(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected a known base"):
        store.add_peft(folder(tmp_path / "b", base_model_name_or_path="nobody"))
    assert everything(store) == before


def test_export_is_whole_or_nothing(store, tmp_path):
    digest = store.add_peft(folder(tmp_path / "a"))
    with pytest.raises(ValueError, match="expected a new folder"):
        store.export_peft(digest, tmp_path / "a")
    with pytest.raises(ValueError, match="a folder to put it in"):
        store.export_peft(digest, tmp_path / "no" / "where")
    (path,) = store.path.glob("segments/*/*.blobs")
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        store.export_peft(digest, tmp_path / "new")
    assert not (tmp_path / "new").exists()


class _Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q = torch.nn.Linear(32, 48)
        self.v = torch.nn.Linear(48, 32)


class _Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Module()  # peft finds the numbers of layers below another module only
        self.body.layers = torch.nn.ModuleList(_Layer() for _ in range(12))

    def forward(self, x):
        for layer in self.body.layers:
            x = layer.v(torch.relu(layer.q(x)))
        return x


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"layers.1.q": 7, "v": 2}},
        {"alpha_pattern": {"1.v": 3.5, r"layers\.[2-5]\.q": 1}},
        {"use_dora": True},
        {"lora_bias": True, "layers_to_transform": [0, 11]},
        {"target_modules": "all-linear"},
        {"exclude_modules": ["layers.3.q", "body.layers.4.v"]},
        {"target_modules": r".*\.[0-5]\.(q|v)", "use_rslora": True, "use_dora": True},
    ],
    ids=str,
)
def test_the_package_agrees(tmp_path, options):
    """What peft saves, we read with its scales; what we write, peft loads to the same outputs."""
    peft = pytest.importorskip("peft", reason="the package peft is not installed")
    torch.manual_seed(0)
    base = _Model()
    state = {k: v.clone() for k, v in base.state_dict().items()}
    save_file(state, tmp_path / "base.safetensors")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q", "v"], **options})
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lora_" in key:
                p.copy_(torch.randn_like(p) * 0.3 + ("magnitude" in key))
    model.save_pretrained(tmp_path / "saved")
    x = torch.randn(5, 32)
    want = model.eval()(x)
    with AdapterStore(tmp_path / "store") as store:
        store.add_base("base", modules_of(tmp_path / "base.safetensors"))
        adapter = store.open(store.add_peft(tmp_path / "saved", base="base"))
        for name, module in model.named_modules():
            if hasattr(module, "lora_A") and "default" in getattr(module, "scaling", {}):
                inner = name.removeprefix(PREFIX)
                assert adapter.scale(inner) == pytest.approx(module.scaling["default"], rel=1e-12)
        with AdapterStore(tmp_path / "second") as second:  # which has no configuration of peft's
            second.add_base("base", modules_of(tmp_path / "base.safetensors"))
            second.add(adapter.config, adapter.tensors(), name="n")
            second.export_peft("n", tmp_path / "out")
        store.export_peft(adapter.revision, tmp_path / "same")
    for out in ("out", "same"):
        fresh = _Model()
        fresh.load_state_dict(state)
        loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / out).eval()
        assert torch.equal(loaded(x), want)
