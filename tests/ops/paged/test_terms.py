# SPDX-License-Identifier: Apache-2.0
"""What paged_attention must not read, and what its samples would miss it for forgetting."""

from __future__ import annotations

import pytest
import torch
from headrace.kernels.attention.reference import CAP, COUNT, FIRST, ORDER, ORIGIN, PAGE, REACH

from tests.ops import compare, samples
from tests.ops.paged import both, edited, plus, replaced
from tests.ops.samples import UNLIMITED, StreamShape

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")
OP = "paged_attention"


# Poison. The pages of every sample are NaN outside the named slots, so all tests above hold it off.


def test_poison_of_another_stream_stays_there(isa):
    streams = [StreamShape(67, 9), StreamShape(67, 9), StreamShape(40, 1)]
    args, kwargs = samples.paged(19, streams, page_size=16)
    clean = both(args, **kwargs)
    for page in args[3][slice(*args[4][1:3].tolist()), PAGE].unique().tolist():
        args[1][page], args[2][page] = torch.nan, torch.inf
    o, lse = both(args, **kwargs)
    assert o[9:18].isnan().all()
    rest = [*range(9), 18]
    assert compare.same_bits(o[rest], clean[0][rest])
    assert compare.same_bits(lse[rest], clean[1][rest])


def test_poison_before_first_and_behind_count(isa):
    """Evicted within a page, or not written yet, whatever the alignment of the first slot."""
    args, kwargs = samples.paged(20, [StreamShape(1, 1)], page_size=64, dim=32)
    for first in (0, 1, 3, 4, 7, 8, 15, 17, 31):
        for count in (1, 2, 15, 16, 17, 33):
            entries = torch.tensor([[1, first, count, 0, UNLIMITED, 0, UNLIMITED]])
            k, v = (torch.full_like(x, torch.nan) for x in args[1:3])
            samples.fill(samples.rng(20), k, v, entries.tolist())
            named = replaced(
                args, k_pages=k, v_pages=v, entries=entries, q_pos=torch.tensor([count - 1])
            )
            compare.check(OP, named, kwargs, (first, count))


@pytest.mark.parametrize("what", ["q", "k", "v"])
def test_a_row_that_sees_a_nan_gives_nan(isa, what):
    args, kwargs = samples.paged(21, [StreamShape(150, 5)], page_size=32)
    for entry in (0, 2, 4):
        for split in (17, 4096):
            q, k, v = (x.clone() for x in args[:3])
            page, first = args[3][entry, :2].tolist()
            if what == "q":
                q[entry, 1, 3] = torch.nan
            elif what == "k":
                k[page, 1, 3, first] = torch.nan
            else:
                v[page, 1, first, 3] = torch.nan
            got = both(replaced(args, q=q, k_pages=k, v_pages=v), **kwargs, split=split)
            if what == "q":
                assert got[0][entry, 1].isnan().all()
                assert int(got[1].isnan().sum()) == 1
            elif what == "k":
                assert got[0][:, 2:].isnan().all()
                assert got[1][:, 2:].isnan().all()
            else:
                assert got[0][:, 2:, 3].isnan().all()
            assert got[0][:, :2].isnan().sum() == (64 if what == "q" else 0)


@pytest.mark.parametrize("what", ["k", "v"])
@pytest.mark.parametrize("split", [17, 4096])
def test_the_future_of_a_chunk_does_not_reach_its_past(isa, what, split):
    """NaN in the last token of a chunk: the rows of the tokens before keep their bits."""
    args, kwargs = samples.paged(22, [StreamShape(40, 20)], page_size=64, split=split)
    clean = both(args, **kwargs)
    e = args[3][-1].tolist()
    args[1 if what == "k" else 2][e[PAGE]].select(
        -1 if what == "k" else -2, e[FIRST] + e[COUNT] - 1
    )[:] = torch.nan
    o, lse = both(args, **kwargs)
    assert o[-1].isnan().all()
    assert compare.same_bits(o[:-1], clean[0][:-1])
    assert compare.same_bits(lse[:-1], clean[1][:-1])


@pytest.mark.parametrize("what", ["k", "v"])
def test_what_left_the_reach_of_a_row_does_not_reach_it(isa, what):
    """NaN in a key that only the first row of a chunk still sees."""
    args, kwargs = samples.paged(23, [StreamShape(40, 20, 12)], page_size=64)
    clean = both(args, **kwargs)
    page, first = args[3][0, :2].tolist()
    args[1 if what == "k" else 2][page].select(-1 if what == "k" else -2, first)[:] = torch.nan
    o, lse = both(args, **kwargs)
    assert o[0].isnan().all()
    assert compare.same_bits(o[1:], clean[0][1:])
    assert compare.same_bits(lse[1:], clean[1][1:])


# Sensitivity: the samples can tell when a term is left out.


def column(which, value):
    return lambda args: edited(args, which, lambda x: torch.full_like(x, value))


def without(entry):
    def change(args):
        rest = args[3][[i for i in range(len(args[3])) if i != entry % len(args[3])]]
        return replaced(args, entries=rest, entry_indptr=samples.indptr([len(rest)]))

    return change


def every_entry_as(which):
    return lambda args: edited(args, which, lambda x: x[:1].expand_as(x))


def shorter(args):
    return edited(args, COUNT, lambda x: (x - 1).clamp(min=0))


TERMS = {
    "the sink entry": (without(0), {}),
    "the last entry": (without(-1), {}),
    "the first slot of a page": (plus(FIRST, -1), {}),
    "the last slot of every entry": (shorter, {}),
    "the cap": (column(CAP, UNLIMITED), {}),
    "the cap by one": (
        lambda a: edited(a, CAP, lambda x: torch.where(x < UNLIMITED, x + 1, x)), {}),
    "the reach": (column(REACH, UNLIMITED), {}),
    "the reach by one": (
        lambda a: edited(a, REACH, lambda x: torch.where(x < UNLIMITED, x + 1, x)), {}),
    "the order": (plus(ORDER, 1), {}),
    "causality": (plus(ORDER, -1), {}),
    "the origin": (plus(ORIGIN, 1), {}),
    "a new rotation for every origin": (every_entry_as(ORIGIN), {}),
    "the position": (lambda a: a, {"q_pos": True}),
    "the rotation": (lambda a: a, {"inv_freq": None}),
    "softcap": (lambda a: a, {"softcap": 0.0}),
    "scale": (lambda a: a, {"scale": None}),
    "the learned sink": (lambda a: a, {"sink_logits": None}),
    "the right kv head": (lambda a: replaced(a, k_pages=a[1].flip(1)), {}),
    "the right page": (lambda a: edited(a, PAGE, lambda x: x.roll(1)), {}),
}  # fmt: skip


def sensitive_sample():
    """One stream, sinks capped below the distance, several pages, every switch on, no NaN."""
    args, kwargs = samples.paged(
        24,
        [StreamShape(150, 9, 40, 4)],
        page_size=16,
        learned=True,
        softcap=3.0,
        scale=0.4,
        split=17,
    )
    gen = samples.rng(24)
    for pages in args[1:3]:
        pages.copy_(torch.where(pages.isnan(), samples.normal(gen, *pages.shape), pages))
    entries = args[3].clone()
    entries[0, FIRST] = 2  # so that every entry may start one slot earlier
    kwargs["sink_logits"] = torch.tensor([0.5, 2.0, 1.0, -0.5])
    return replaced(args, entries=entries), kwargs


@pytest.mark.parametrize("term", TERMS)
def test_sensitive_to_every_term(term):
    args, kwargs = sensitive_sample()
    compare.check(OP, args, kwargs)
    change, other = TERMS[term]
    if term == "the first slot of a page":
        args = edited(args, FIRST, lambda x: x.clamp(min=1, max=8))
        args = edited(args, COUNT, lambda x: x.clamp(max=8))
    changed = change(args)
    if other.pop("q_pos", None):
        changed, other = replaced(args, q_pos=args[6] - 1), {"q_order": args[6]}
    o = compare.reference(OP, changed, {**kwargs, **other})[0]
    limit = compare.tolerances(OP, args, kwargs, (args[0],))[0]
    assert compare.distance(o, compare.run(OP, args, kwargs)[0]).rms > 20 * limit


def test_sensitive_to_a_lost_split_and_a_lost_rescale():
    """What a kernel gives that drops a split, or adds up tiles of different maxima."""
    args, kwargs = sensitive_sample()
    kwargs["sink_logits"] = None
    want = both(args, **kwargs)[0]
    limit = compare.tolerances(OP, args, kwargs, (want,))[0]
    parts = []
    for i in range(len(args[3])):
        lost = compare.reference(OP, without(i)(args), kwargs)[0]
        assert compare.distance(lost, want).rms > 20 * limit, i
        one = replaced(args, entries=args[3][i : i + 1], entry_indptr=samples.indptr([1]))
        parts.append(compare.reference(OP, one, kwargs)[0])
    assert compare.distance(sum(parts) / len(parts), want).rms > 20 * limit


def test_lse_leaves_the_learned_sink_out(isa):
    args, kwargs = samples.paged(
        25, [StreamShape(70, 5), StreamShape(9, 1)], learned=True, split=17
    )
    with_sink, free = both(args, **kwargs), both(args, **{**kwargs, "sink_logits": None})
    assert compare.same_bits(with_sink[1], free[1])
    gate = torch.sigmoid(free[1] - kwargs["sink_logits"])[..., None]
    assert compare.distance(with_sink[0], free[0] * gate).rms < 1e-6
