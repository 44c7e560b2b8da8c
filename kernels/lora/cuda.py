# SPDX-License-Identifier: Apache-2.0
"""lora and lora_rows in CUDA C++ (decode.cu). Not yet seen running on a GPU."""

from __future__ import annotations

import contextlib
import ctypes

import torch
from headrace.kernels.common import cuda as device
from torch import Tensor

MOST = 512  # rank rows of one slot; those beyond are not looked at

_POINTERS = (
    "x y a b a_scale b_scale bias gain base_bias slots weights scale rows row_indptr ranks"
    " slice_ends epilogue bridge"
)
_I64 = "x_row y_row a_row a_slice b_slot b_rank b_col pool_rows rows_count outputs"
_I32 = (
    "tokens depth slots_count slices width stack most biases gains x_dtype pool_dtype a_group"
    " b_group splits"
)
_POOL_CODE = {**device.DTYPE_CODE, torch.uint8: 4}


class Lora(ctypes.Structure):
    """Mirrors struct Lora of decode.cuh."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in _POINTERS.split()]
        + [(name, ctypes.c_int64) for name in _I64.split()]
        + [(name, ctypes.c_int32) for name in _I32.split()]
    )


def auto(op):
    """What "auto" runs for an op; None where this backend does not run.

    This kernel for any number of rows: Triton's adds up in another order, and a row must have the
    same bits alone and among many.
    """
    return globals()[op] if device.available() else None


def _group(scales: Tensor | None, width: int) -> int:
    return 1 if scales is None else width // scales.shape[-1]


def _launch(op, bound, axes, stack, most, a_strides, b_strides, library):
    loaded = library or device.library()
    x, y, a = bound["x"], bound["y"], bound["a"]
    if 0 in (axes["T"], axes["N"], axes["S"]):
        return
    slices, width = axes.get("J", 1), axes.get("W", 1)
    bridge = x.new_empty((axes["T"], slices, width, most), dtype=torch.float32)
    tensors = (bound.get(name) for name in _POINTERS.split()[:-1])
    call = Lora(
        *map(device.address, tensors),
        device.address(bridge),
        x.stride(0),
        y.stride(0),
        *a_strides,
        *b_strides,
        axes["C"] if stack == 0 else axes["S"] * stack,
        axes.get("M", 0),
        axes["N"],
        axes["T"],
        axes["K"],
        axes["S"],
        slices,
        width,
        stack,
        most,
        *(0 if bound.get(name) is None else len(bound[name]) for name in ("bias", "gain")),
        device.DTYPE_CODE[x.dtype],
        _POOL_CODE[a.dtype],
        _group(bound.get("a_scale"), axes["K"]),
        _group(bound.get("b_scale"), axes["N"]),
        0,
    )
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        code = loaded.headrace_cuda_lora(ctypes.byref(call), device.stream_of(x))
        device.check(op, code, loaded)


def lora(bound, axes, outs, library=None):
    """`headrace.ops.lora` on CUDA tensors, any number of rows. `library` is for tests."""
    b_slot, b_col, b_rank = bound["b"].stride()
    strides = ((axes["K"], 0), (b_slot, b_rank, b_col))
    _launch("lora", bound, axes, axes["R"], min(axes["R"], MOST), *strides, library)


def lora_rows(bound, axes, outs, library=None):
    """`headrace.ops.lora_rows` on CUDA tensors, any number of rows. `library` is for tests.

    A slot has up to 512 rank rows. What names a slot or a rank row that is not there counts as
    none: only the device knows.
    """
    strides = (bound["a"].stride()[:2], (bound["b"].stride(0), 0, 1))
    _launch("lora_rows", bound, axes, 0, min(axes["M"], MOST), *strides, library)
