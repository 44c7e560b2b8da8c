# SPDX-License-Identifier: Apache-2.0
"""The attention ops in CUDA C++ (decode.cu, append.cu, merge.cu). Not yet seen running on a GPU."""

from __future__ import annotations

import contextlib
import ctypes

import torch
from headrace.kernels.attention.limits import page_strides, scale_strides
from headrace.kernels.common import cuda as device
from torch import Tensor

from headrace.errors import BackendError, bad_value

WORKSPACE = 256 << 20  # bytes of split states that one launch may take; more rows, more launches
FEW = 8  # rows of a stream up to which "auto" leaves it to this backend

_POINTERS = (
    "q k v o lse entries entry_indptr q_indptr q_pos q_order inv_freq freq_axis sink_logits"
    " k_scale v_scale splits starts served partial packs"
)
_I64 = (
    "q_row q_head k_page k_head v_page v_head pages capacity split"
    " k_scale_page k_scale_head v_scale_page v_scale_head"
)
_I32 = (
    "row0 rows streams q_heads kv_heads dim page_size half q_dtype kv_dtype lists axes fields"
    " k_scale_slot v_scale_slot few listed tokens fit"
)
_APPEND_POINTERS = "k v k_pages v_pages where inv_freq freq_axis k_scale v_scale"
_APPEND_I64 = (
    "k_row k_head v_row v_head k_page k_page_head v_page v_page_head"
    " k_scale_page k_scale_head v_scale_page v_scale_head tokens pages"
)
_APPEND_I32 = "kv_heads dim page_size half axes dtype page_dtype k_scale_slot v_scale_slot"


def auto(op):
    """What "auto" runs for an op; None where this backend does not run."""
    if not device.available():
        return None
    return shared if op == "paged_attention" else globals()[op]


class Decode(ctypes.Structure):
    """Mirrors struct Decode of decode.cu."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in _POINTERS.split()]
        + [(name, ctypes.c_int64) for name in _I64.split()]
        + [(name, ctypes.c_int32) for name in _I32.split()]
        + [(name, ctypes.c_float) for name in ("scale", "softcap", "rope_gain")]
    )


class Append(ctypes.Structure):
    """Mirrors struct Append of append.cu."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in _APPEND_POINTERS.split()]
        + [(name, ctypes.c_int64) for name in _APPEND_I64.split()]
        + [(name, ctypes.c_int32) for name in _APPEND_I32.split()]
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


def shared(bound, axes, outs, library=None):
    """What "auto" runs: streams of up to FEW rows here, longer ones in Triton.

    A stream goes by its own rows, so that its bits do not depend on its neighbours. The device
    alone knows how many it has: both kernels run, each past the other's streams, unless sizes or
    `max_rows` tell that all are of one kind.
    """
    most = axes["T"] if bound["max_rows"] is None else min(axes["T"], bound["max_rows"])
    if most <= FEW:
        paged_attention(bound, axes, outs, library)
        return
    try:
        from . import triton
    except ImportError as error:
        raise BackendError(
            f"paged_attention(backend): expected backend triton to load, got: {error}"
        ) from error
    if axes["B"] == 1:
        triton.paged_attention(bound, axes, outs)
        return
    paged_attention(bound, axes, outs, library, FEW)
    triton.paged_attention(bound, axes, outs, FEW)


def paged_attention(bound, axes, outs, library=None, few=0):
    """`headrace.ops.paged_attention` on CUDA tensors: any rows, made for one to a few per stream.

    Views are cut every 256 tokens (less if `split` says so, a page at least), or every 512, 1,024
    and so on, so that no view has more than 64 parts. Parts of several rows that are the same slots
    of the same pages, as those of a shared prefix, are read once for up to 16 query heads, where
    queries have 16 bits and pages 16 or 8. `library` is for tests that bring their own. few: only
    streams of up to so many rows are written, where it is not 0.
    """
    loaded = library or device.library()
    q, k, v, (o, lse) = bound["q"], bound["k_pages"], bound["v_pages"], outs
    tokens, q_heads, dim, page, lists = (axes[x] for x in ("T", "Hq", "D", "P", "G"))
    k_page, k_head = _pages("k_pages", k)
    v_page, v_head = _pages("v_pages", v)
    *k_scale, k_slot = scale_strides(bound["k_scale"])
    *v_scale, v_slot = scale_strides(bound["v_scale"])
    if axes["Hp"] < axes["Hkv"]:  # a page holds one head, whichever it is
        k_head = v_head = k_scale[1] = v_scale[1] = 0
    if o.numel() == 0:
        return
    order = bound["q_pos"] if bound["q_order"] is None else bound["q_order"]
    inv_freq = bound["inv_freq"]

    each = lists * loaded.headrace_cuda_decode_capacity(1, axes["E"] * page, bound["split"], page)
    held = q_heads // lists
    served = min(tokens, few * axes["B"]) if few else tokens
    rows = max(1, min(served, WORKSPACE // (each * held * (dim + 2) * 4)))
    capacity = each * rows
    splits = q.new_empty(capacity * loaded.headrace_cuda_split_bytes(), dtype=torch.uint8)
    starts = q.new_empty(rows * lists + 1, dtype=torch.int32)
    listed = q.new_empty(served if few else 0, dtype=torch.int32)
    partial = q.new_empty(capacity * held * (dim + 2), dtype=torch.float32)
    dtypes = device.DTYPE_CODE[q.dtype], device.DTYPE_CODE[k.dtype]
    fit = loaded.headrace_cuda_decode_fit(q_heads // axes["Hkv"], *dtypes) if rows > 1 else 1
    packs = q.new_empty(1 + capacity * fit if fit > 1 else 0, dtype=torch.int32)
    call = Decode(
        *map(device.address, (q, k, v, o, lse, bound["entries"], bound["entry_indptr"])),
        *map(device.address, (bound["q_indptr"], bound["q_pos"], order, inv_freq)),
        *map(device.address, (bound["freq_axis"], bound["sink_logits"])),
        *map(device.address, (bound["k_scale"], bound["v_scale"])),
        *map(device.address, (splits, starts, listed, partial)),
        device.address(packs) if fit > 1 else None,
        *q.stride()[:2],
        k_page,
        k_head,
        v_page,
        v_head,
        axes["N"],
        capacity,
        bound["split"],
        *k_scale,
        *v_scale,
        0,
        rows,
        axes["B"],
        q_heads,
        axes["Hkv"],
        dim,
        page,
        0 if inv_freq is None else inv_freq.numel(),
        *dtypes,
        lists,
        1 if bound["q_pos"].dim() == 1 else 3,
        bound["entries"].shape[1],
        k_slot,
        v_slot,
        few,
        listed.numel(),
        tokens,
        fit,
        bound["scale"],
        bound["softcap"],
        bound["rope_gain"],
    )
    with _on(q):
        for row in range(0, served, rows):
            call.row0, call.rows = row, min(rows, served - row)
            code = loaded.headrace_cuda_paged_attention(ctypes.byref(call), device.stream_of(q))
            device.check("paged_attention", code, loaded)


def append(bound, axes, outs, library=None):
    """`headrace.ops.append` on CUDA tensors. A token with no page or slot inside is not written."""
    loaded = library or device.library()
    k, v, k_pages, v_pages = bound["k"], bound["v"], bound["k_pages"], bound["v_pages"]
    strides = (
        *page_strides("append", "k_pages", k_pages),
        *page_strides("append", "v_pages", v_pages),
    )
    if k.numel() == 0:
        return
    inv_freq, where = bound["inv_freq"], bound["where"]
    *k_scale, k_slot = scale_strides(bound["k_scale"])
    *v_scale, v_slot = scale_strides(bound["v_scale"])
    call = Append(
        *map(device.address, (k, v, k_pages, v_pages, where, inv_freq, bound["freq_axis"])),
        *map(device.address, (bound["k_scale"], bound["v_scale"])),
        *k.stride()[:2],
        *v.stride()[:2],
        *strides,
        *k_scale,
        *v_scale,
        axes["T"],
        axes["N"],
        axes["Hkv"],
        axes["D"],
        axes["P"],
        0 if inv_freq is None else inv_freq.numel(),
        where.shape[1] - 2,
        device.DTYPE_CODE[k.dtype],
        device.DTYPE_CODE[k_pages.dtype],
        k_slot,
        v_slot,
    )
    with _on(k):
        code = loaded.headrace_cuda_append(ctypes.byref(call), device.stream_of(k))
        device.check("append", code, loaded)


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
