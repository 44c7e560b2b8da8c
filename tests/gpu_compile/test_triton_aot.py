# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel compiles for sm_80 and sm_90 on a machine without a GPU."""

from __future__ import annotations

import os
import re

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed; pip install triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 turns the compiler off", allow_module_level=True)

from .launches import CASES, DTYPES, PATHS
from .recording import SHARED_LIMIT, assembled, compile_launch, kernels, recorder


@pytest.fixture
def record():
    with recorder() as record:
        yield record


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_compiles(case, dtype, capability, record):
    launches = record(lambda: CASES[case](dtype))
    assert launches
    for fn, args, kwargs in launches:
        binary = compile_launch(fn, args, kwargs, capability)
        assert f"sm_{capability}" in binary.asm["ptx"]
        assert binary.asm["cubin"]
        assert binary.metadata.shared <= SHARED_LIMIT[capability], (fn.__name__, binary.metadata)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_compiles(path, record):
    for fn, args, kwargs in record(lambda: PATHS[path](torch.bfloat16)):
        for capability in (80, 90):
            binary = compile_launch(fn, args, kwargs, capability)
            assert binary.asm["cubin"]
            assert binary.metadata.shared <= SHARED_LIMIT[capability], (
                fn.__name__,
                binary.metadata,
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(
    "path", ["gated-delta-128", "gated-delta-wide", "linear-attention-turned",
             "linear-attention-wide"],
)  # fmt: skip
def test_long_states_leave_registers(path, dtype, record):
    """Three passes of tf32 over a wide state: all at once spilled up to 14,000 bytes a thread."""
    launches = [*record(lambda: PATHS[path](dtype))]
    chunked = [of for of in launches if "chunk" in of[0].__name__ or "solve" in of[0].__name__]
    assert chunked
    for fn, args, kwargs in chunked:
        report = assembled(compile_launch(fn, args, kwargs, 90).asm["ptx"])
        spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
        assert spilled, report
        assert set(spilled) == {"0"}, (fn.__name__, report)


def test_every_kernel_has_a_case(record):
    launches = record(lambda: [case(torch.float16) for case in CASES.values()])
    assert set(kernels()) == {fn.__name__ for fn, _, _ in launches}


def test_products_run_on_tensor_cores(record):
    launches = record(lambda: [CASES[name](torch.bfloat16) for name in ("window", "paged")])
    made = {fn.__name__: compile_launch(fn, a, k, 90).asm["ptx"] for fn, a, k in launches}
    for name in ("attention_kernel", "paged_kernel"):
        assert "mma" in made[name], name
        assert ".bf16" in made[name], name
