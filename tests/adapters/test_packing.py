# SPDX-License-Identifier: Apache-2.0
"""Packing many at once is packing one by one, bit for bit and error for error."""

import json
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.adapters import NewAdapter, packing, records

from .conftest import weights

KINDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
        "dora": st.booleans(),
        "bias": st.booleans(),
        "ranks": st.sampled_from([(1,), (2, 5)]),
    }
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(KINDS, st.integers(1, 5)), min_size=1, max_size=4), st.integers(1, 4))
def test_many_are_the_same_as_one_by_one(kinds, together):
    new = [
        NewAdapter(*weights(seed=10 * k + i, **kind))
        for k, (kind, count) in enumerate(kinds)
        for i in range(count)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "TOGETHER", together)
        got = list(packing.pack_many("op", iter(new)))
    assert [g[0] for g in got] == new
    for adapter, digest, blob in got:
        want = packing.pack("op", adapter.config, adapter.tensors)
        assert digest == want[0]
        np.testing.assert_array_equal(blob, want[1])


def test_what_is_not_plain_is_taken_too():
    config, tensors = weights()
    wide = {k: torch.stack([t, t], -1)[..., 0] for k, t in tensors.items()}
    needed = {k: t.clone().requires_grad_() for k, t in tensors.items()}
    arrays = {k: t.numpy() for k, t in tensors.items()}
    new = [NewAdapter(config, t) for t in (tensors, wide, needed, arrays)]
    assert len({digest for _, digest, _ in packing.pack_many("op", new)}) == 1


@pytest.mark.parametrize("at", [0, 1, 4])
@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda t: t.pop("layers.1.q.a"), "no tensor layers.1.q.a"),
        (lambda t: t.update(more=torch.ones(1)), "an extra tensor more"),
        (lambda t: t.update({"layers.1.q.a": t["layers.1.q.a"].half()}), "expected float32"),
        (lambda t: t.update({"layers.1.q.a": t["layers.1.q.a"][:, 1:]}), r"expected \[3, 32\]"),
        (lambda t: t["layers.10.v.b"].fill_(torch.inf), "layers.10.v.b.*finite"),
        (lambda t: t.update({"layers.1.q.a": 3.0}), "expected a tensor, got float"),
    ],
)
def test_one_that_is_wrong_among_many_is_told(store, at, spoil, line):
    new = [NewAdapter(*weights(seed=i), name=f"n{i}") for i in range(5)]
    spoil(new[at].tensors)
    with pytest.raises((ValueError, TypeError), match=line):
        store.add_many(new)
    assert list(store.names()) == []


def test_blobs_of_a_batch_have_nothing_of_one_another():
    new = [NewAdapter(*weights(seed=i)) for i in range(3)]
    blobs = [blob for _, _, blob in packing.pack_many("op", new)]
    before = blobs[1].copy()
    blobs[0][:], blobs[2][:] = 255, 255
    np.testing.assert_array_equal(blobs[1], before)


@pytest.mark.parametrize("peft", [None, {}, MappingProxyType({"r": 3})])
@pytest.mark.parametrize("owner", [None, 'a "quoted" \\ ü'])
def test_a_record_is_json(owner, peft):
    config, tensors = weights()
    new = NewAdapter(config, tensors, owner=owner, parents=("ab" * 32,), data=["x"], peft=peft)
    entry = records.describe("op", new, b"\1" * 32, np.zeros(64, np.uint8))
    got = json.loads(entry.placed(b"\2" * 16, 4096))
    assert abs(got.pop("created") - records.time.time()) < 60
    wanted = {"digest": "01" * 32, "base": "base", "owner": owner, "parents": ["ab" * 32]}
    wanted |= {"data": ["x"], "trainer": None, "size": 64, "rank": 3, "modules": 8}
    wanted |= {"segment": "02" * 16, "offset": 4096}
    assert got == wanted | ({} if peft is None else {"peft": dict(peft)})
