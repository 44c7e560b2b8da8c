# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels on a CPU: compiled by the host's compiler against an emulated runtime, they
must give what the reference gives. What this cannot show: races, memory ordering, speed.
"""

from __future__ import annotations

import ctypes
import math
import runpy
from types import SimpleNamespace

import pytest
import torch
from headrace.kernels.attention import cuda

import headrace  # noqa: F401  (registers the ops)
from headrace import ops
from tests.gpu_compile import emulation

cases = SimpleNamespace(**runpy.run_path(str(emulation.ROOT / "tests" / "gpu" / "cases.py")))
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

pytestmark = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler on PATH")

INTEGERS = """
#include "kernels/attention/plan.h"
#include "kernels/attention/rotary.h"
extern "C" {
void angle(double freq, std::int64_t distance, float* out) {
  headrace::cos_sin(headrace::phase(distance, headrace::phase_step(freq)), out, out + 1);
}
std::int64_t split_tokens(std::int64_t seen, std::int64_t wanted, std::int64_t page) {
  return headrace::split_tokens(seen, wanted, page);
}
int split_count(std::int64_t seen, std::int64_t tokens) {
  return headrace::split_count(seen, tokens);
}
int owner(const std::int32_t* p, int streams, int row) { return headrace::owner(p, streams, row); }
}
"""


@pytest.fixture
def library():
    return emulation.library()


@pytest.fixture(scope="module")
def integers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("integers")
    (folder / "integers.cpp").write_text(INTEGERS)
    loaded = ctypes.CDLL(str(emulation.build(folder / "integers.so", [folder / "integers.cpp"])))
    loaded.angle.argtypes = (ctypes.c_double, ctypes.c_int64, ctypes.c_void_p)
    loaded.split_tokens.restype = ctypes.c_int64
    loaded.split_tokens.argtypes = (ctypes.c_int64,) * 3
    loaded.split_count.argtypes = (ctypes.c_int64,) * 2
    loaded.owner.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    return loaded


def run(op, bound, library):
    spec = ops.specs()[op]
    filled = cases._defaults(op) | bound
    axes = spec.check(filled)
    if filled.get("scale", 0) is None:
        filled["scale"] = axes["D"] ** -0.5
    outs = [o.fill_(torch.nan) for o in spec.empty_outs(filled, axes)]
    getattr(cuda, op)(filled, axes, outs, library)
    return outs


def test_structures_match(library):
    assert library.headrace_cuda_decode_bytes() == ctypes.sizeof(cuda.Decode)
    assert library.headrace_cuda_merge_bytes() == ctypes.sizeof(cuda.Merge)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.PAGED)
def test_paged_attention(name, dtype, library):
    bound = cases.paged(dtype, **cases.PAGED[name])
    cases.compare("paged_attention", bound, run("paged_attention", bound, library))


@pytest.mark.parametrize("dim", [16, 64, 96, 128, 192, 256])
@pytest.mark.parametrize("kv", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [1, 2, 3, 9])
def test_every_shape_of_a_warp(dim, kv, heads, library):
    bound = cases.paged(
        torch.float32, kv=kv, dim=dim, heads=heads, kv_heads=1, page=80, streams=((1, 2),)
    )
    cases.compare("paged_attention", bound, run("paged_attention", bound, library))


def test_a_view_longer_than_every_split(library):
    bound = cases.paged(torch.float32, heads=2, streams=((1, 90), (2, 5)), split=1)
    cases.compare("paged_attention", bound, run("paged_attention", bound, library))


def test_rows_beyond_the_workspace_take_several_launches(library, monkeypatch):
    bound = cases.paged(torch.float32, streams=((5, 4), (3, 3)), split=16)
    whole = run("paged_attention", bound, library)
    monkeypatch.setattr(cuda, "WORKSPACE", 20_000)
    parts = run("paged_attention", bound, library)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_stream_has_the_same_bits_alone_and_among_others(library):
    many = cases.paged(torch.float32, streams=((1, 3), (1, 20), (1, 2)), split=16, reach=400)
    o, lse = run("paged_attention", many, library)
    alone = many | dict(
        q=many["q"][1:2],
        q_pos=many["q_pos"][1:2],
        entries=many["entries"][3:23],
        q_indptr=torch.tensor([0, 1], dtype=torch.int32),
        entry_indptr=torch.tensor([0, 20], dtype=torch.int32),
    )
    o1, lse1 = run("paged_attention", alone, library)
    assert torch.equal(o[1:2], o1)
    assert torch.equal(lse[1:2], lse1)


def test_an_entry_outside_the_pool_counts_as_empty(library):
    bound = cases.paged(torch.float32, streams=((2, 4),))
    spoiled = bound | dict(entries=bound["entries"].clone())
    spoiled["entries"][1, 0] = 10**6
    spoiled["entries"][2, 2] = 17
    kept = bound | dict(
        entries=bound["entries"][[0, 3]], entry_indptr=torch.tensor([0, 2], dtype=torch.int32)
    )
    cases.compare("paged_attention", kept, run("paged_attention", spoiled, library))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0, 1])
def test_merge_states(dtype, shift, library):
    bound = cases.merge_states(dtype)
    for name in ("o_a", "o_b"):
        x = bound[name]
        room = torch.empty(x.numel() + 8, dtype=dtype)  # shift 1: rows that are not 16-byte aligned
        bound[name] = room[shift : shift + x.numel()].view(x.shape).copy_(x)
    cases.compare("merge_states", bound, run("merge_states", bound, library))


@pytest.mark.parametrize("freq", [1.0, 0.1, 1e-4, 3.14159, 2.0**-20, 7.5, 0.0])
def test_angles_are_exact_at_every_distance(freq, integers):
    out = (ctypes.c_float * 2)()
    for distance in (0, 1, -1, 37, 4096, 3_999_999, 4_000_000, -4_000_001, 2**40):
        integers.angle(freq, distance, out)
        turn = math.fmod(freq * distance, 2 * math.pi)  # fp64: good to 2**-53 of the angle
        slack = abs(freq * distance) * 2.0**-51 + 2e-7
        assert abs(out[0] - math.cos(turn)) <= slack
        assert abs(out[1] - math.sin(turn)) <= slack


def test_splits_are_bounded_and_cover(integers):
    for seen in (0, 1, 255, 256, 257, 16_384, 16_385, 10**6, 2**31):
        for wanted in (1, 16, 256, 4096):
            for page in (16, 64, 1024):
                tokens = integers.split_tokens(seen, wanted, page)
                count = integers.split_count(seen, tokens)
                assert tokens >= page
                assert 1 <= count <= 64
                assert count * tokens >= seen
                assert (count - 1) * tokens < max(seen, 1)


def test_owner_skips_streams_without_rows(integers):
    indptr = torch.tensor([0, 0, 3, 3, 3, 5, 5], dtype=torch.int32)
    got = [integers.owner(indptr.data_ptr(), 6, row) for row in range(5)]
    assert got == [1, 1, 1, 4, 4]
