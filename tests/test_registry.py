# SPDX-License-Identifier: Apache-2.0
"""Every registered op is whole, keeps torch's rules for an op, and compiles into one graph."""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from headrace import _C, ops
from tests.completeness import LEVELS, missing
from tests.ops import adapters, evictions, masses, samples, scores, sequences, survivors
from tests.ops.samples import SAMPLES

ROOT = Path(__file__).resolve().parents[1]
OPS = sorted(ops.specs())
CASES = [pytest.param(name, i, id=f"{name}-{i}") for name in OPS for i in range(len(SAMPLES[name]))]


@pytest.mark.parametrize("name", OPS)
def test_op_is_whole(name):
    assert missing(ROOT, ops.specs()[name]) == []


def test_every_file_belongs_to_an_op():
    """No kernel function, public function, test or bench is left without a registered op."""
    for pattern in ("tests/ops/test_*.py", "bench/ops/bench_*.py"):
        for path in ROOT.glob(pattern):
            assert path.stem.split("_", 1)[1] in OPS, path
    public = {p.stem for p in (ROOT / "python/headrace/ops").glob("*.py")} - {
        "__init__",
        "registry",
        "rope",
    }
    assert public == set(OPS)
    assert set(ops.__all__) - {"rope", "specs"} == set(OPS)
    assert set(SAMPLES) == set(OPS)


@pytest.mark.parametrize("name", OPS)
def test_runtime_parts(name):
    assert callable(getattr(_C, name))
    assert inspect.getdoc(getattr(ops, name))
    assert getattr(torch.ops.headrace, name).default is not None
    for key in ("CPU", "CUDA", "Meta"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"headrace::{name}", key), key


HIDDEN = {
    "contract": ("kernels/linear/spec.py", 'name="linear"', "", "its contract"),
    "reference": ("kernels/linear/reference.py", "def linear", "def other", "its reference"),
    **{
        level: (f"kernels/linear/cpu_{level}.cpp", None, None, f"cpu_{level}.cpp")
        for level in LEVELS
    },
    "family": ("CMakeLists.txt", r"set\(HEADRACE_FAMILIES[^)]*\)", "", "its family"),
    "binding": ("csrc/bind/linear.cpp", r'bind_op<[^>]*>\("linear"', "", "its binding"),
    "stub": ("python/headrace/_C.pyi", r"def linear\b", "def other", "its stub"),
    "triton": ("kernels/linear/triton.py", r"def linear\(", "def other(", "its launcher"),
    "public": (
        "python/headrace/ops/linear.py",
        r"def linear\b",
        "def other",
        "its public function",
    ),
    "docstring": (
        "python/headrace/ops/linear.py",
        r'""".*?"""',
        "pass",
        "a docstring of its public",
    ),
    "export": ("python/headrace/ops/__init__.py", "from .linear", "from .other", "its name"),
    "tests": ("tests/ops/test_linear.py", None, None, "tests in"),
    "empty tests": ("tests/ops/test_linear.py", r"def test_", "def not_a_", "tests in"),
    "bench": ("bench/ops/bench_linear.py", None, None, "a bench of every side"),
    "sides": ("bench/ops/bench_linear.py", ", side", "", "a bench of every side"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("kernels", "csrc", "python", "tests", "bench"):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "models")
            )
    shutil.copy(ROOT / "CMakeLists.txt", folder)
    return folder


@pytest.mark.parametrize("part", HIDDEN)
def test_a_missing_part_is_reported(tree, part):
    file, pattern, replacement, told = HIDDEN[part]
    path, spec = tree / file, ops.specs()["linear"]
    before, whole = path.read_bytes(), missing(tree, spec)
    assert not any(told in line for line in whole), whole
    try:
        if pattern is None:
            path.unlink()
        else:
            changed = re.sub(pattern, replacement, before.decode(), flags=re.DOTALL)
            assert changed != before.decode()
            path.write_text(changed)
        lacks = missing(tree, spec)
        assert any(told in line for line in lacks), (told, lacks)
    finally:
        path.write_bytes(before)
    assert missing(tree, spec) == whole


@pytest.mark.parametrize(("name", "index"), CASES)
def test_opcheck(name, index):
    args, kwargs = SAMPLES[name][index]()
    torch.library.opcheck(getattr(torch.ops.headrace, name).default, args, kwargs)


def public_call(name, kwargs):
    """The public function, with the keywords of the op that it has."""
    function = getattr(ops, name)
    known = inspect.signature(function).parameters
    kept = {key: value for key, value in kwargs.items() if key in known}
    return lambda *args: function(*args, **kept)


def results(name, function, args):
    """What a call gives, and what it leaves in the arguments that it changes."""
    copied = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    out = function(*copied)
    spec = ops.specs()[name]
    at = [i for i in map(spec.parameters.index, spec.mutates) if i < len(copied)]
    changed = [copied[i] for i in at]
    return [*(out if isinstance(out, tuple) else [] if out is None else [out]), *changed]


@pytest.mark.parametrize(("name", "index"), CASES)
def test_compiles_into_one_graph(name, index):
    torch._dynamo.reset()
    args, kwargs = SAMPLES[name][index]()
    eager = public_call(name, kwargs)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(eager, fullgraph=True, backend=counter)
    want = results(name, eager, args)
    for _ in range(3):
        got = results(name, compiled, args)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=0, atol=0, equal_nan=True)
    assert counter.frame_count == 1


LENGTHS = {
    "similarity": lambda n: survivors.similarity(1, width=n, patch_height=2, patch_width=0),
    "compact": lambda n: survivors.compact(1, size=n, masked=False),
    "compact_inplace": lambda n: survivors.compact_inplace(1, size=n),
    "scatter_back": lambda n: survivors.scatter_back(1, size=n),
    "select": lambda n: scores.select(1, size=n, policy="share", share=0.4),
    "block_score": lambda n: scores.block_score(1, rows=n, asked=n + 3),
    "segment_reduce": lambda n: masses.in_place(1, n, segments=n + 3),
    "attention_mass": lambda n: masses.attention_mass(1, keys=n + 3, asked=n),
    "assign": lambda n: masses.assign(1, rows=n, candidates=n + 3),
    "frame_delta_rule": lambda n: sequences.frame_delta_rule(1, ((3, n - 3),)),
    "gated_delta_rule": lambda n: sequences.gated_delta_rule(1, (n,)),
    "linear_attention": lambda n: sequences.linear_attention(1, (3, n - 3)),
    "causal_conv": lambda n: sequences.causal_conv(1, (3, n - 3)),
    "lora": lambda n: adapters.stack(1, tokens=n),
    "lora_rows": lambda n: adapters.pool(1, tokens=n),
    "hstu_attention": lambda n: sequences.hstu_attention(1, (n,)),
    "append_absorb": lambda n: evictions.append_absorb(1, (3, n - 3), page_size=256),
    "append": lambda n: samples.append(1, tokens=n, page_size=256),
    "attention": lambda n: samples.dense(1, q_len=n, k_len=2 * n, window=17, sinks=4),
    "linear": lambda n: samples.linear(1, rows=n),
    "merge_states": lambda n: samples.states(1, tokens=n),
    "pooled_block_mask": lambda n: samples.pooled_block_mask(1, q_len=n, k_len=2 * n, block_size=8),
    "paged_attention": lambda n: samples.paged(1, [samples.StreamShape(n + 700, n, 640, 4)]),
}


def test_lengths_are_all_there():
    assert set(LENGTHS) == set(OPS)


@pytest.mark.parametrize("name", OPS)
def test_other_lengths_do_not_compile_again(name):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    _, kwargs = LENGTHS[name](11)
    eager = public_call(name, {k: v for k, v in kwargs.items() if not torch.is_tensor(v)})
    compiled = torch.compile(eager, fullgraph=True, backend=counter, dynamic=True)
    compiles = []
    for n in (11, 13, 29, 40, 70):  # sizes that are equal in the first call would count as one
        args, _ = LENGTHS[name](n)
        got, want = results(name, compiled, args), results(name, eager, args)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=0, atol=0, equal_nan=True)
        compiles.append(counter.frame_count)
    assert set(compiles) == {compiles[0]}, compiles
