# SPDX-License-Identifier: Apache-2.0
"""A backend that cannot run here says why, in one line."""

from __future__ import annotations

import pytest
import torch
from headrace.kernels.common import cuda as device

import headrace
from headrace.errors import BackendError


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_device_is_an_error_that_says_so():
    device.library.cache_clear()
    with pytest.raises(BackendError, match="expected a CUDA device"):
        device.library()


def test_a_missing_library_is_an_error_that_says_how_to_build(monkeypatch, tmp_path):
    monkeypatch.setattr(headrace, "__path__", [str(tmp_path)])
    with pytest.raises(BackendError, match="HEADRACE_CUDA=ON"):
        device.find()


def test_cuda_refuses_cpu_tensors():
    x = torch.zeros(1, 1, 32)
    with headrace.use_backend("cuda"), pytest.raises(BackendError, match="CUDA tensors"):
        headrace.ops.merge_states(x, x[..., 0], x, x[..., 0])


def test_triton_refuses_cpu_tensors():
    common = pytest.importorskip(
        "headrace.kernels.common.triton", reason="triton is not installed", exc_type=ImportError
    )
    if common.INTERPRETED:
        pytest.skip("TRITON_INTERPRET=1 runs CPU tensors")
    with headrace.use_backend("triton"), pytest.raises(BackendError, match="CUDA tensors"):
        headrace.ops.linear(torch.zeros(2, 16), torch.zeros(3, 16))
