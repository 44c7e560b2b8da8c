# SPDX-License-Identifier: Apache-2.0
"""Identity, views, names, gates, search, collection."""

import dataclasses
import hashlib
import json
import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.adapters import AdapterConfig, AdapterStore, Gate, Module, NewAdapter
from headrace.adapters.catalog import floating, ordered
from headrace.adapters.segments import places

from .conftest import SHAPES, clean, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_an_adapter_comes_back_bit_for_bit(store, dtype, dora, bias):
    config, tensors = weights(1, dtype, dora, bias, ranks=(1, 5, 16, 13))
    adapter = store.open(store.add(config, tensors), verify=True)
    assert adapter.config == config
    got = adapter.tensors()
    assert got.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert got[key].dtype == tensor.dtype
        assert torch.equal(got[key], tensor)
    for name in SHAPES:
        assert torch.equal(adapter.b_rows(name), tensors[f"{name}.b"].t())
        assert adapter.b_rows(name).is_contiguous()
        assert (adapter.bias(name) is not None) == bias
        assert (adapter.magnitude(name) is not None) == dora
        assert adapter.a(name).data_ptr() % 64 == 0
        assert adapter.b_rows(name).data_ptr() % 64 == 0


def test_blobs_begin_on_pages_and_layers_follow_one_another(store):
    made = store.add_many([NewAdapter(*weights(i)) for i in range(3)])
    for digest in made:
        adapter = store.open(digest)
        assert adapter.buffer.data_ptr() % 4096 == 0
        assert adapter.size == adapter.buffer.numel()
    assert [layer.index for layer in adapter.layers] == [0, 1, 2, 10]
    assert [m for layer in adapter.layers for m in layer.modules] == list(SHAPES)
    for one, next_one in zip(adapter.layers, adapter.layers[1:], strict=False):
        assert one.stop == next_one.start
    for layer in adapter.layers:
        for module in layer.modules:
            for part in "ab":
                span = adapter.span(module, part)
                assert layer.start <= span.start < span.stop <= layer.stop
    assert adapter.layers[-1].stop == adapter.size


@given(st.lists(st.integers(1, 200).map(lambda n: 64 * n), max_size=50))
def test_small_blobs_share_pages(sizes):
    offsets, total = places(sizes)
    at = 0
    for offset, size in zip(offsets, sizes, strict=True):
        assert at <= offset < at + 4096
        assert offset % 64 == 0
        first, last = offset // 4096, (offset + size - 1) // 4096
        assert first == last or offset % 4096 == 0
        at = offset + size
    assert total == at
    assert total <= sum(-(-size // 4096) * 4096 for size in sizes)


def test_adapters_of_one_page(store):
    """Their buffers lie on multiples of 64 and hold nothing of their neighbours."""
    store.add_base("tiny", {"m": (3, 5)})
    config = AdapterConfig("tiny", (Module("m", 1, 5, 3, 1.0),))
    given = [{"m.a": torch.randn(1, 5), "m.b": torch.randn(3, 1)} for _ in range(30)]
    made = store.add_many([NewAdapter(config, t) for t in given])
    for digest, tensors in zip(made, given, strict=True):
        adapter = store.open(digest, verify=True)
        assert adapter.buffer.data_ptr() % 64 == 0
        assert adapter.buffer.numel() == adapter.size < 1024
        assert all(torch.equal(adapter.tensors()[k], t) for k, t in tensors.items())
    (path,) = store.path.glob("segments/*/*.blobs")
    assert path.stat().st_size < 30 * 1024
    for digest in made[::2]:
        store.remove(digest)
    assert store.gc(waste=0.0).rewritten == 1
    for digest in made[1::2]:
        store.open(digest, verify=True)
    clean(store)


def test_views_share_the_file_and_never_change_it(store):
    config, tensors = weights()
    digest = store.add(config, tensors)
    adapter = store.open(digest)
    a = adapter.a("layers.0.q")
    assert a.untyped_storage().data_ptr() == adapter.buffer.untyped_storage().data_ptr()
    a.zero_()
    assert torch.equal(store.open(digest, verify=True).a("layers.0.q"), tensors["layers.0.q.a"])


def test_identity_is_the_digest_of_configuration_and_tensors(store):
    config, tensors = weights()
    digest = store.add(config, tensors)
    text = config.canonical()
    want = hashlib.sha256(struct.pack("<Q", len(text)) + text)
    for name in SHAPES:
        want.update(tensors[f"{name}.a"].numpy().tobytes())
        want.update(tensors[f"{name}.b"].t().contiguous().numpy().tobytes())
    assert digest == want.hexdigest()
    shuffled = dataclasses.replace(config, modules=config.modules[::-1])
    assert store.add(shuffled, dict(reversed(tensors.items())), owner="other") == digest
    assert len(store) == 1
    others = {store.add(dataclasses.replace(config, rslora=True), tensors)}
    others.add(store.add(dataclasses.replace(config, invocation=(1, 2)), tensors))
    changed = {**tensors, "layers.10.v.b": tensors["layers.10.v.b"].clone()}
    changed["layers.10.v.b"][-1, -1] += 1
    others.add(store.add(config, changed))
    assert len(others | {digest}) == 4
    clean(store)


def test_numpy_strides_and_gradients_are_taken(store):
    config, tensors = weights()
    digest = store.add(config, tensors)
    strange = {k: t.t().contiguous().t().requires_grad_() for k, t in tensors.items()}
    assert store.add(config, strange) == digest
    assert store.add(config, {k: t.numpy() for k, t in tensors.items()}) == digest


def test_scale(store):
    config, tensors = weights(ranks=(4,))
    assert store.open(store.add(config, tensors)).scale("layers.0.v") == 9 / 4
    plain = dataclasses.replace(config, rslora=True)
    assert store.open(store.add(plain, tensors)).scale("layers.0.v") == 9 / 2


def test_names_promotion_and_rollback(store):
    a, b, c = store.add_many([NewAdapter(*weights(i)) for i in range(3)])
    assert store.add(*weights(0), name="alice") == a
    store.promote("alice", b, why="better")
    store.promote("alice", c)
    assert store.resolve("alice") == c
    assert store.rollback("alice") == b
    assert store.rollback("alice") == a
    with pytest.raises(ValueError, match="expected an earlier revision of alice, got none"):
        store.rollback("alice")
    store.promote("alice", c)
    assert store.rollback("alice") == a  # what it had before, not what it had long ago
    actions = ["add", "promote", "promote", "rollback", "rollback", "promote", "rollback"]
    assert [m["action"] for m in store.history("alice")] == actions
    assert [m["revision"] for m in store.history("alice")] == [a, b, c, b, a, c, a]
    assert store.history("alice")[1]["why"] == "better"
    assert store.show(a).names == ("alice",)
    assert store.show(c).names == ()
    assert store.resolve(a) == store.resolve(a[:9]) == a
    clean(store)


def test_two_revisions_of_a_name_are_open_at_once(store):
    (ca, ta), (cb, tb) = weights(0), weights(1)
    store.add(ca, ta, name="n")
    old = store.open("n")
    store.promote("n", store.add(cb, tb))
    new = store.open("n")
    assert torch.equal(old.a("layers.0.q"), ta["layers.0.q.a"])
    assert torch.equal(new.a("layers.0.q"), tb["layers.0.q.a"])


@pytest.mark.parametrize(
    ("gate", "old", "new", "line"),
    [
        (Gate("m", at_least=0.5), None, 0.5, None),
        (Gate("m", at_least=0.5), None, 0.4, "expected m >= 0.5, got 0.4"),
        (Gate("m", at_most=0.5), None, 0.5, None),
        (Gate("m", at_most=0.5), None, 0.6, "expected m <= 0.5, got 0.6"),
        (Gate("m", better=True), 0.5, 0.6, None),
        (Gate("m", better=True), 0.5, 0.5, "expected m > 0.5 of the one in place, got 0.5"),
        (Gate("m", better=True), None, 0.5, "on record for the revision in place, got none"),
        (Gate("m", better=True, lower_is_better=True), 0.5, 0.4, None),
        (Gate("m", better=True, lower_is_better=True), 0.5, 0.6, "expected m < 0.5"),
        (Gate("m", at_least=0.1), 0.5, None, "expected m on record, got none"),
    ],
)
def test_gates(store, gate, old, new, line):
    a, b = store.add(*weights(0), name="n"), store.add(*weights(1))
    for digest, value in ((a, old), (b, new)):
        if value is not None:
            store.evaluate(digest, "m", -value)
            store.evaluate(digest, "m", value)  # the latest counts
    if line is None:
        assert store.promote("n", b, gate=gate) == b
    else:
        with pytest.raises(ValueError, match=line):
            store.promote("n", b, gate=gate)
        assert store.resolve("n") == a
        assert len(store.history("n")) == 1


def test_rollback_by_a_rule_passes_over_the_bad(store):
    good, bad, now = store.add_many([NewAdapter(*weights(i)) for i in range(3)])
    for digest, value in ((good, 0.9), (bad, 0.1), (now, 0.5)):
        store.evaluate(digest, "m", value)
        store.promote("n", digest)
    with pytest.raises(ValueError, match="nothing was moved"):
        store.rollback("n", gate=Gate("m", at_least=0.95))
    assert store.resolve("n") == now
    assert store.rollback("n", gate=Gate("m", better=True)) == good


def test_a_new_name_has_nothing_to_be_better_than(store):
    digest = store.add(*weights())
    store.evaluate(digest, "m", -3)
    assert store.promote("n", digest, gate=Gate("m", better=True)) == digest


def test_search(store):
    made = [store.add(*weights(i), owner=f"o{i % 2}") for i in range(4)]
    child = store.add(*weights(9), owner="o", parents=(made[0], made[1]))
    for value, digest in zip((0.5, -2.0, 7.0), made, strict=False):
        store.evaluate(digest, "m", value)
    store.evaluate(made[2], "mm", 1)

    def found(**options):
        return [r.digest for r in store.search(**options)]

    assert found() == [*made, child]
    assert found(limit=2) == made[:2]
    assert found(owner="o0") == [made[0], made[2]]
    assert found(owner="o") == [child]  # and not those that begin with it
    assert found(base="base") == [*made, child]
    assert found(base="bas") == []
    assert found(parent=made[1]) == found(parent=made[0], owner="o") == [child]
    assert found(metric="m") == [made[2], made[0], made[1]]
    assert found(metric="m", at_least=0.5) == [made[2], made[0]]
    assert found(metric="m", at_most=0.5) == [made[0], made[1]]
    assert found(metric="m", owner="o0") == [made[2], made[0]]
    assert found(metric="m", owner="o1", at_least=0.0) == []
    assert store.show(child).parents == (made[0], made[1])


def test_records(store):
    config, tensors = weights()
    digest = store.add(config, tensors, owner="o", data={"rows": 3}, trainer="sgd")
    store.evaluate(digest, "m", 1, by="me")
    shown = store.show(digest)
    assert (shown.owner, shown.data, shown.trainer) == ("o", {"rows": 3}, "sgd")
    assert (shown.rank, shown.modules, shown.scores) == (3, 8, {"m": 1.0})
    assert store.evaluations(digest)[0]["by"] == "me"


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False))
def test_ordered_keys_sort_as_floats(a, b):
    assert (ordered(a) < ordered(b)) == (a < b)
    assert floating(ordered(a)) == a
    assert ordered(0.0) == ordered(-0.0)
    assert ordered(-math.inf) <= ordered(a)


def test_removal_and_collection(store):
    many = [store.add(*weights(i)) for i in range(2)]
    pack = store.add_many([NewAdapter(*weights(i)) for i in range(10, 20)])
    store.promote("n", pack[0])
    store.promote("n", pack[1])
    store.evaluate(pack[5], "m", 1.0)
    for digest in pack[:2]:
        with pytest.raises(ValueError, match="no name may return to, got n; forget it"):
            store.remove(digest)
    assert store.gc() == store.gc(dry_run=True)
    kept = store.open(pack[9])
    for digest in (many[0], *pack[4:]):
        store.remove(digest)
    assert store.search(metric="m") == []
    would = store.gc(dry_run=True)
    did = store.gc()
    assert would == did
    assert (did.removed, did.rewritten) == (1, 1)
    assert did.bytes == kept.size + 4096 * math.ceil(kept.size / 4096) * 6
    assert torch.equal(kept.a("layers.0.q"), weights(19)[1]["layers.0.q.a"])
    for digest in (many[1], *pack[:4]):
        store.open(digest, verify=True)
    assert clean(store).revisions == 5
    assert clean(store).unused == ()
    store.forget("n")
    store.remove(pack[0])
    assert store.add(*weights(10)) == pack[0]
    clean(store)


def test_collection_leaves_a_file_that_is_mostly_used(store):
    pack = store.add_many([NewAdapter(*weights(i)) for i in range(4)])
    store.remove(pack[0])
    assert store.gc().rewritten == 0
    assert store.gc(waste=0.2).rewritten == 1
    clean(store)


def test_leftovers_of_the_killed_are_reported_and_collected(store):
    digest = store.add(*weights())
    (store.path / "parts" / "ab").write_bytes(b"half")
    (store.path / "segments" / "00" / ("00" * 16 + ".blobs")).write_bytes(b"whole")
    assert len(clean(store).unused) == 2
    assert store.gc().removed == 2
    assert clean(store).unused == ()
    store.open(digest, verify=True)


def test_a_store_is_the_same_for_all_who_open_it(store):
    digest = store.add(*weights(), name="n")
    with AdapterStore(store.path) as second:
        assert second.resolve("n") == digest
        other = second.add(*weights(1))
    assert store.show(other).digest == other
    with AdapterStore(store.path, create=False) as third:
        assert len(third) == 2


def test_canonical_is_stable():
    config, _ = weights(ranks=(2,))
    fields = json.loads(config.canonical())
    assert fields["modules"][0] == ["layers.0.q", 2, 32, 48, 8.0, "F32", None, None]
    assert type(config).parse(config.canonical()) == config
