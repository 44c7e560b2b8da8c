# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels against the reference, in Triton's interpreter: no GPU, small shapes.

A process of its own: TRITON_INTERPRET is read when kernels are decorated. bf16 is left out, because
the interpreter computes it wrongly; so are the bits of `linear`, whose products numpy adds up here.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 and a process of its own", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed; pip install triton")

import headrace

cases = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "gpu" / "cases.py")))
DTYPES = [torch.float32, torch.float16]


def run(op, bound):
    with headrace.use_backend("triton"):
        out = getattr(torch.ops.headrace, op)(**bound)
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.DENSE)
def test_attention(name, dtype):
    shape, options = cases.DENSE[name]
    bound = cases.dense(dtype, shape, **options)
    cases.compare("attention", bound, run("attention", bound))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.PAGED)
def test_paged_attention(name, dtype):
    bound = cases.paged(dtype, **cases.PAGED[name])
    cases.compare("paged_attention", bound, run("paged_attention", bound))


def test_paged_attention_of_mixed_dtypes():
    bound = cases.paged(torch.float32, kv=torch.float16)
    cases.compare("paged_attention", bound, run("paged_attention", bound))


def test_a_stream_has_the_same_bits_alone_and_among_others():
    many = cases.paged(torch.float32, streams=((1, 3), (2, 4), (1, 2)), split=16, reach=40)
    o, lse = run("paged_attention", many)
    rows, entries = slice(1, 3), slice(3, 7)
    alone = many | dict(
        q=many["q"][rows],
        q_pos=many["q_pos"][rows],
        entries=many["entries"][entries],
        q_indptr=torch.tensor([0, 2], dtype=torch.int32),
        entry_indptr=torch.tensor([0, 4], dtype=torch.int32),
    )
    o1, lse1 = run("paged_attention", alone)
    assert torch.equal(o[rows], o1)
    assert torch.equal(lse[rows], lse1)


def test_an_entry_outside_the_pool_counts_as_empty():
    bound = cases.paged(torch.float32, streams=((2, 4),))
    spoiled = bound | dict(entries=bound["entries"].clone())
    spoiled["entries"][1, 0] = 10**6
    spoiled["entries"][2, 2] = 17
    kept = bound | dict(
        entries=bound["entries"][[0, 3]], entry_indptr=torch.tensor([0, 2], dtype=torch.int32)
    )
    cases.compare("paged_attention", kept, run("paged_attention", spoiled))


@pytest.mark.parametrize("kv", DTYPES, ids=str)
@pytest.mark.parametrize("rotary", [True, False])
def test_append(kv, rotary):
    bound = cases.append(torch.float32, kv=kv, rotary=rotary)
    want = cases.truth("append", bound)
    run("append", bound)
    for pages, exact in zip((bound["k_pages"], bound["v_pages"]), want, strict=True):
        assert torch.allclose(
            pages.double(), exact, atol=1e-6, rtol=2 * 2.0**-11 if kv != torch.float32 else 1e-6
        )


def test_append_leaves_other_slots_alone():
    bound = cases.append(torch.float32)
    before = bound["k_pages"].clone(), bound["v_pages"].clone()
    run("append", bound)
    page, slot, _ = bound["where"].T
    before[0][page, :, :, slot] = bound["k_pages"][page, :, :, slot]
    before[1][page, :, slot] = bound["v_pages"][page, :, slot]
    assert torch.equal(bound["k_pages"], before[0])
    assert torch.equal(bound["v_pages"], before[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merge_states(dtype):
    bound = cases.merge_states(dtype)
    cases.compare("merge_states", bound, run("merge_states", bound))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight", DTYPES, ids=str)
def test_linear(dtype, weight):
    bound = cases.linear(dtype, weight=weight, bias=dtype == weight)
    cases.compare("linear", bound, run("linear", bound))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.HSTU)
def test_hstu_attention(name, dtype):
    bound = cases.hstu_attention(dtype, **cases.HSTU[name])
    cases.compare("hstu_attention", bound, run("hstu_attention", bound))


def test_hstu_attention_reads_no_key_that_nobody_sees():
    bound = cases.hstu_attention(torch.float32, lengths=(90,), new=(5,), max_attn_len=20)
    clean = run("hstu_attention", bound)[0]
    bound["k"][:65] = bound["v"][:65] = torch.nan
    assert torch.equal(run("hstu_attention", bound)[0], clean)
