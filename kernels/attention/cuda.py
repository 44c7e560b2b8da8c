# SPDX-License-Identifier: Apache-2.0
"""The attention ops in CUDA C++ (decode.cu, merge.cu). Not yet seen running on a GPU."""

from __future__ import annotations

import contextlib
import ctypes

import torch
from headrace.kernels.attention.limits import only_plain
from headrace.kernels.common import cuda as device
from torch import Tensor

from headrace.errors import bad_value

WORKSPACE = 256 << 20  # bytes of split states that one launch may take; more rows, more launches

_I64 = "q_row q_head k_page k_head v_page v_head pages capacity split"
_I32 = "row0 rows streams q_heads kv_heads dim page_size half q_dtype kv_dtype"
_POINTERS = (
    "q k v o lse entries entry_indptr q_indptr q_pos q_order inv_freq sink_logits splits starts"
    " partial"
)


def suits(op: str, axes: dict[str, int]) -> bool:
    """Whether "auto" takes this backend: it runs here, and streams bring few rows each."""
    return device.available() and (op == "merge_states" or axes["T"] <= 8 * axes["B"])


class Decode(ctypes.Structure):
    """Mirrors struct Decode of decode.cu."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in _POINTERS.split()]
        + [(name, ctypes.c_int64) for name in _I64.split()]
        + [(name, ctypes.c_int32) for name in _I32.split()]
        + [("scale", ctypes.c_float), ("softcap", ctypes.c_float)]
    )


class Merge(ctypes.Structure):
    """Mirrors struct Merge of merge.cu."""

    _fields_ = [
        (name, ctypes.c_void_p) for name in ("o_a", "o_b", "lse_a", "lse_b", "o", "lse")
    ] + [("rows", ctypes.c_int64), ("dim", ctypes.c_int32), ("dtype", ctypes.c_int32)]


def _pages(name: str, pages: Tensor) -> tuple[int, int]:
    """Strides of page and head. Rows of pages are read 16 bytes at a time."""
    inner, wide = pages.shape[-1], 16 // pages.element_size()
    dense = pages.stride()[2:] == (inner, 1)
    aligned = pages.data_ptr() % 16 == 0 and all(s % wide == 0 for s in pages.stride()[:2])
    if pages.numel() and not (dense and aligned):
        raise bad_value(
            "paged_attention",
            name,
            "the last two axes contiguous and 16-byte aligned",
            f"strides {pages.stride()}",
        )
    return pages.stride(0), pages.stride(1)


def _on(x: Tensor) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def paged_attention(bound, axes, outs, library=None):
    """`headrace.ops.paged_attention` on CUDA tensors: any rows, made for one to a few per stream.

    Views are cut every 256 tokens (less if `split` says so, a page at least; a 64th of the view
    when it is longer than 16,384). `library` is for tests that bring their own.
    """
    only_plain("paged_attention", bound, axes)
    loaded = library or device.library()
    q, k, v, (o, lse) = bound["q"], bound["k_pages"], bound["v_pages"], outs
    tokens, q_heads, dim, page = axes["T"], axes["Hq"], axes["D"], axes["P"]
    k_strides, v_strides = _pages("k_pages", k), _pages("v_pages", v)
    if o.numel() == 0:
        return
    order = bound["q_pos"] if bound["q_order"] is None else bound["q_order"]
    inv_freq = bound["inv_freq"]

    each = loaded.headrace_cuda_decode_capacity(1, axes["E"] * page, bound["split"], page)
    rows = max(1, min(tokens, WORKSPACE // (each * q_heads * (dim + 2) * 4)))
    capacity = each * rows
    splits = q.new_empty(capacity * loaded.headrace_cuda_split_bytes(), dtype=torch.uint8)
    starts = q.new_empty(rows + 1, dtype=torch.int32)
    partial = q.new_empty(capacity * q_heads * (dim + 2), dtype=torch.float32)
    call = Decode(
        *map(device.address, (q, k, v, o, lse, bound["entries"], bound["entry_indptr"])),
        *map(device.address, (bound["q_indptr"], bound["q_pos"], order, inv_freq)),
        *map(device.address, (bound["sink_logits"], splits, starts, partial)),
        *q.stride()[:2],
        *k_strides,
        *v_strides,
        axes["N"],
        capacity,
        bound["split"],
        0,
        rows,
        axes["B"],
        q_heads,
        axes["Hkv"],
        dim,
        page,
        0 if inv_freq is None else inv_freq.numel(),
        device.DTYPE_CODE[q.dtype],
        device.DTYPE_CODE[k.dtype],
        bound["scale"],
        bound["softcap"],
    )
    with _on(q):
        for row in range(0, tokens, rows):
            call.row0, call.rows = row, min(rows, tokens - row)
            code = loaded.headrace_cuda_paged_attention(ctypes.byref(call), device.stream_of(q))
            device.check("paged_attention", code, loaded)


def merge_states(bound, axes, outs, library=None):
    """`headrace.ops.merge_states` on CUDA tensors."""
    loaded = library or device.library()
    o, lse = outs
    if lse.numel() == 0:
        return
    call = Merge(
        *map(device.address, (bound["o_a"], bound["o_b"], bound["lse_a"], bound["lse_b"], o, lse)),
        lse.numel(),
        axes["D"],
        device.DTYPE_CODE[o.dtype],
    )
    with _on(o):
        code = loaded.headrace_cuda_merge_states(ctypes.byref(call), device.stream_of(o))
        device.check("merge_states", code, loaded)
