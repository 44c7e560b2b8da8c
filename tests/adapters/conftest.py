# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from headrace.adapters import AdapterConfig, AdapterStore, Module, bank_loader

SHAPES = {
    f"layers.{i}.{name}": shape
    for i in (0, 1, 2, 10)
    for name, shape in (("q", (48, 32)), ("v", (7, 33)))
}


def weights(seed=0, dtype=torch.float32, dora=False, bias=False, ranks=(3,)):
    """(config, tensors) of an adapter for SHAPES, ranks in turns."""
    g = torch.Generator().manual_seed(seed)
    code = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    modules, tensors = [], {}
    for i, (name, (n, k)) in enumerate(SHAPES.items()):
        r = ranks[i % len(ranks)]
        modules.append(
            Module(name, r, k, n, 8.0 + i, code, "F32" if bias else None, code if dora else None)
        )
        tensors[f"{name}.a"] = torch.randn(r, k, generator=g).to(dtype)
        tensors[f"{name}.b"] = torch.randn(n, r, generator=g).to(dtype)
        if bias:
            tensors[f"{name}.bias"] = torch.randn(n, generator=g)
        if dora:
            tensors[f"{name}.magnitude"] = torch.rand(n, generator=g).to(dtype)
    return AdapterConfig("base", tuple(modules)), tensors


@pytest.fixture
def store(tmp_path):
    """An empty store that knows one base."""
    with AdapterStore(tmp_path / "store") as made:
        made.add_base("base", SHAPES, ["org/base"])
        yield made


def clean(store):
    """Asserts that everything in the store agrees."""
    found = store.verify()
    assert found.problems == ()
    return found


def everything(store):
    """All that a store tells, to compare before and after."""
    names = list(store.names())
    return (
        [vars(r) for r in store.search(limit=10**6)],
        names,
        [store.history(n) for n, _ in names],
        store.verify().unused,
    )


@pytest.fixture(params=["in a thread", "where it is waited for"])
def threaded(request, monkeypatch):
    """Both ways in which a bank loads, whatever the size."""
    if request.param == "in a thread":
        monkeypatch.setattr(bank_loader, "SMALL", 0)
