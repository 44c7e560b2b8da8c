# SPDX-License-Identifier: Apache-2.0
"""Merges: exact when all is read, bounded when not, and never more than the budget."""

from __future__ import annotations

import json

import pytest
import torch

from headrace.adapters import AdapterConfig, AdapterStore, Module
from headrace.adapters.blob import Adapter

from .conftest import SHAPES, clean, everything, weights

WEIGHTS = (0.7, -0.2, 1.5)


@pytest.fixture
def three(store):
    """Names of adapters of other ranks; the second has half of the modules, the third is loud."""
    for i, name in enumerate("abc"):
        config, tensors = weights(seed=i, ranks=(3, 5 - i))
        if name == "b":
            kept = config.modules[::2]
            config = AdapterConfig("base", kept)
            tensors = {key: t for key, t in tensors.items() if key[:-2] in config.by_name}
        if name == "c":
            tensors = {key: 3 * t if key.endswith("b") else t for key, t in tensors.items()}
        store.add(config, tensors, name=name)
    return list("abc")


def update(adapter, name):
    """fp64 [outputs, inputs]: what an adapter adds to a module."""
    if name not in adapter.config.by_name:
        return torch.zeros(SHAPES[name], dtype=torch.float64)
    return adapter.scale(name) * adapter.b(name).double() @ adapter.a(name).double()


def wanted(store, names=("a", "b", "c"), chosen=lambda i, module: True):
    """The weighted sum by module, of the blocks that are chosen."""
    adapters = [store.open(name) for name in names]
    return {
        module: sum(
            w * update(adapter, module) * chosen(i, module)
            for i, (w, adapter) in enumerate(zip(WEIGHTS, adapters, strict=True))
        )
        for module in SHAPES
    }


def off(store, digest, want):
    """Frobenius norm of the difference, over all modules."""
    made = store.open(digest, verify=True)
    squared = sum((update(made, module) - w).square().sum() for module, w in want.items())
    return float(squared.sqrt())


def test_all_of_it_is_the_sum(store, three):
    made = store.merge(three, WEIGHTS, name="all", owner="me")
    assert off(store, made.digest, wanted(store)) < 1e-3
    assert (made.read, made.blocks) == (made.total, made.of) == (made.total, 20)
    assert made.omitted == made.truncated == 0
    revision = store.show("all")
    assert revision.parents == tuple(store.resolve(name) for name in three)
    assert revision.owner == "me"
    assert [w for _, w in revision.data["merge"]] == list(WEIGHTS)
    assert store.open("all").config.by_name["layers.0.q"].rank == 3 + 3 + 3
    assert store.merge(three, WEIGHTS).digest == made.digest
    clean(store)


def test_every_term_counts(store, three):
    want, made = wanted(store), store.merge(three, WEIGHTS)
    size = float(sum(w.square().sum() for w in want.values()).sqrt())
    for i in range(3):
        other = [w if j != i else 1.1 * w for j, w in enumerate(WEIGHTS)]
        assert off(store, store.merge(three, other).digest, want) > 1e-3 * size
    assert off(store, made.digest, want) < 1e-6 * size


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_no_more_is_read_than_the_budget(store, three, share, monkeypatch):
    store.measure(three)
    total = store.merge(three, WEIGHTS).total
    read = []
    plain = Adapter._view
    monkeypatch.setattr(
        Adapter, "_view", lambda self, m, p: read.append((self.revision, m, p)) or plain(self, m, p)
    )
    made = store.merge(three, WEIGHTS, io_budget=int(share * total))
    monkeypatch.undo()
    left = {tuple(block) for block in store.show(made.digest).data["left_out"]}
    bytes_of = {}
    for revision, module, part in set(read):
        span = store.open(revision).span(module, part)
        bytes_of[revision, module, part] = span.stop - span.start
    assert sum(bytes_of.values()) == made.read <= share * total
    assert made.read > share * total - 2000  # a block more would not fit
    part = wanted(store, chosen=lambda i, module: (i, module) not in left)
    assert off(store, made.digest, part) < 1e-3
    error = off(store, made.digest, wanted(store))
    assert 0 < error <= made.omitted * (1 + 1e-6)
    assert error > 0.3 * made.omitted


def test_the_loud_are_read_first(store, three):
    store.measure(three)
    sizes = {m.name: 4 * m.rank * (m.inputs + m.outputs) for m in store.open("c").config.modules}
    made = store.merge(three, (1, 1, 1), io_budget=sum(sizes.values()))
    left = store.show(made.digest).data["left_out"]
    assert sum(i == 2 for i, _ in left) < sum(i == 0 for i, _ in left)
    flat = store.merge(three, (1, 1, 1e-6), io_budget=sum(sizes.values()))
    left = store.show(flat.digest).data["left_out"]
    assert sum(i == 2 for i, _ in left) == 8


def test_what_was_read_is_known(store, three):
    total = store.merge(three[:2], WEIGHTS[:2]).total
    assert store.merge(three, WEIGHTS, io_budget=4000).omitted is None
    assert store.measure(three[:2]) == 0  # the first merge has read them
    assert 0 < store.measure(three) < total
    assert store.measure(three) == 0
    made = store.merge(three, WEIGHTS, io_budget=9000)
    assert made.omitted > 0
    again = store.merge(three, WEIGHTS, io_budget=9000)
    assert again.digest == made.digest
    norms = json.loads(store._catalog.env.begin(db=store._catalog.tables["meta"]).get(
        b"norms\0" + bytes.fromhex(store.resolve("c"))
    ))  # fmt: skip
    for module, norm in norms.items():
        assert norm == pytest.approx(float(update(store.open("c"), module).norm()))


def test_norms_go_with_their_revision(store, three):
    store.measure(three)
    digest = store.resolve("c")
    config, tensors = store.open("c").config, store.open("c").tensors()
    store.forget("c")
    store.remove(digest)
    tables = store._catalog.tables
    with store._catalog.env.begin() as txn:
        assert txn.get(b"norms\0" + bytes.fromhex(digest), db=tables["meta"]) is None
    store.add(config, tensors, name="c")
    assert store.measure(["c"]) > 0
    clean(store)


def test_a_lower_rank_is_the_nearest(store, three):
    want = wanted(store)
    made = store.merge(three, WEIGHTS, rank=4)
    assert store.open(made.digest).config.rank == 4
    error = off(store, made.digest, want)
    best = sum(torch.linalg.svdvals(w)[4:].square().sum() for w in want.values()).sqrt()
    assert made.truncated == pytest.approx(float(best), rel=1e-4)
    assert error == pytest.approx(float(best), rel=1e-3)
    assert store.merge(three, WEIGHTS, rank=64).truncated == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"names": []}, r"names\): expected one name or more, got \[\]"),
        ({"names": "a"}, r"names\): expected one name or more, got 'a'"),
        ({"weights": (1.0,)}, r"weights\): expected 3, one for each name, got 1"),
        ({"weights": (1.0, 1.0, float("nan"))}, r"weights\): expected finite numbers, got nan"),
        ({"weights": (0, 0, 0.0)}, r"weights\): expected one that is not 0, got none"),
        ({"io_budget": -1}, r"io_budget\): expected 0 or more, got -1"),
        ({"io_budget": 10}, r"io_budget\): expected 480 bytes or more, for one block, got 10"),
        ({"rank": 0}, r"rank\): expected 1 or more, got 0"),
    ],
)
def test_bad_input_registers_nothing(store, three, options, told):
    before = everything(store)
    given = {"names": three, "weights": WEIGHTS, **options}
    with pytest.raises(ValueError, match=r"^AdapterStore.merge\(" + told):
        store.merge(given.pop("names"), given.pop("weights"), **given)
    assert everything(store) == before


def test_what_cannot_be_merged(store, three):
    for name, kind in (("d", {"dora": True}), ("e", {"bias": True})):
        store.add(*weights(9, **kind), name=name)
        with pytest.raises(NotImplementedError, match=rf"with A and B alone, .*{name} has"):
            store.merge(["a", name], (1, 1))
    store.add_base("other", SHAPES)
    config, tensors = weights(3)
    store.add(AdapterConfig("other", config.modules), tensors, name="o")
    with pytest.raises(ValueError, match=r"names\): expected adapters of base, got o of other"):
        store.merge(["a", "o"], (1, 1))
    with pytest.raises(TypeError, match=r"weights\): expected numbers, got '1'"):
        store.merge(["a", "b"], (1, "1"))
    with pytest.raises(TypeError, match=r"io_budget\): expected a whole number or None, got 1.5"):
        store.merge(["a", "b"], (1, 1), io_budget=1.5)
    with pytest.raises(ValueError, match=r"name"):
        store.merge(["a", "b"], (1, 1), name="c")  # which is another's


def test_ranks_that_do_not_fit_side_by_side(tmp_path):
    with AdapterStore(tmp_path) as store:
        store.add_base("wide", {"x": (300, 300)})
        made = torch.Generator().manual_seed(0)
        for name in "ab":
            tensors = {f"x.{p}": torch.randn(300, 300, generator=made) for p in "ab"}
            config = AdapterConfig("wide", (Module("x", 300, 300, 300, 1.0),))
            store.add(config, tensors, name=name)
        told = r"rank\): expected 512 at most in x, got 600; give rank= to merge into a lower one"
        with pytest.raises(ValueError, match=told):
            store.merge(["a", "b"], (1, 1))
        assert store.merge(["a", "b"], (1, 1), rank=20).truncated > 0
