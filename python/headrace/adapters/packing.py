# SPDX-License-Identifier: Apache-2.0
"""Tensors into blobs, one by one or many small ones of a configuration at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import bad_type, bad_value
from .blob import Layout, layout_of
from .config import AdapterConfig

SMALL = 1 << 16
"""Bytes of a blob above which packing alone is as fast."""
TOGETHER = 256  # blobs
_EXPONENT = {
    torch.float32: np.uint32(0x7F800000),
    torch.float16: np.uint16(0x7C00),
    torch.bfloat16: np.uint16(0x7F80),
}
Given = TypeVar("Given")


def pack(op: str, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> tuple[bytes, np.ndarray]:
    """(digest, blob) of tensors named `MODULE.a` [r, K], `.b` [N, r], `.bias`, `.magnitude` [N].

    ValueError: missing or extra tensors, other shapes, weights not finite. TypeError: other dtypes.
    """
    layout = layout_of(config)
    if tensors.keys() != layout.spans.keys():
        missing, extra = layout.spans.keys() - tensors.keys(), tensors.keys() - layout.spans.keys()
        what, names = ("no tensor", missing) if missing else ("an extra tensor", extra)
        raise bad_value(
            op, "tensors", f"the {len(layout.spans)} of the configuration", f"{what} {min(names)}"
        )
    blob = np.zeros(layout.size, np.uint8)
    for key, span in layout.spans.items():
        tensor = tensors[key]
        if isinstance(tensor, np.ndarray):
            tensor = torch.from_numpy(tensor)
        if not isinstance(tensor, Tensor):
            raise bad_type(op, key, "a tensor", type(tensor).__name__)
        if tensor.dtype != span.dtype:
            raise bad_type(op, key, _name(span.dtype), _name(tensor.dtype))
        if tensor.shape != span.given:
            raise bad_value(op, key, list(span.given), list(tensor.shape))
        source = _numpy(tensor)
        into = np.ndarray(span.shape, span.numpy, blob, span.start)
        into[...] = source.T if span.rows else source
    _check_finite(op, layout, blob)
    return layout.seal(blob), blob


def pack_many(op: str, adapters: Iterable[Given]) -> Iterator[tuple[Given, bytes, np.ndarray]]:
    """(adapter, digest, blob) of adapters that have `config` and `tensors`, in their order; errors
    as of `pack`. Small ones of one configuration that follow one another are packed together.
    """
    for config, run in groupby(adapters, lambda new: new.config):  # type: ignore[attr-defined]
        layout = layout_of(config)
        while some := list(islice(run, TOGETHER if layout.size <= SMALL else 1)):
            given = [new.tensors for new in some]  # type: ignore[attr-defined]
            blobs = _together(layout, given) if len(some) > 1 else None
            if blobs is None:  # one, or something is wrong; this says what
                made = [pack(op, config, tensors) for tensors in given]
            else:
                made = [(layout.seal(blob), blob) for blob in blobs]
            for new, (digest, blob) in zip(some, made, strict=True):
                yield new, digest, blob


def _together(layout: Layout, given: list[Mapping[str, Tensor]]) -> np.ndarray | None:
    """Blobs uint8 [adapters, size] without their headers; None where one of them is not plain."""
    blobs = np.zeros((len(given), layout.size), np.uint8)
    keys = layout.spans.keys()
    if any(tensors.keys() != keys for tensors in given):
        return None
    for key, span in layout.spans.items():
        tensors = [some[key] for some in given]
        dtype, shape = span.dtype, torch.Size(span.given)
        for t in tensors:
            if type(t) is not Tensor or t.dtype != dtype or t.shape != shape or not t.is_cpu:
                return None
        with torch.no_grad():
            source = _numpy(torch.stack(tensors))
        into = blobs[:, span.start : span.stop].view(span.numpy).reshape(-1, *span.shape)
        into[...] = source.transpose(0, 2, 1) if span.rows else source
        if not _finite(into, dtype):
            return None
    return blobs


def _numpy(tensor: Tensor) -> np.ndarray:
    if tensor.requires_grad or not tensor.is_cpu:
        tensor = tensor.detach().cpu()
    found: np.ndarray = (
        tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    ).numpy()
    return found


def _check_finite(op: str, layout: Layout, blob: np.ndarray) -> None:
    if layout.dtype is not None and _finite(blob[layout.first :], layout.dtype):
        return
    for span in layout.spans.values():
        if not _finite(blob[span.start : span.stop], span.dtype):
            raise bad_value(op, span.key, "finite weights", "NaN or infinity")


def _finite(run: np.ndarray, dtype: torch.dtype) -> bool:
    exponent = _EXPONENT[dtype]
    words: Any = run.view(exponent.dtype)
    return not ((words & exponent) == exponent).any()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
