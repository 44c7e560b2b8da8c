# SPDX-License-Identifier: Apache-2.0
"""A page outside the pool: its bytes, layer by layer, as it was or in int8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import bad_type, bad_value
from .pool import DTYPES, QUANTISED, PagePool

CODECS = ("same", "int8")
ALIGN = 64
_LEAST = 2.0**-100  # below it a head is stored as zeros, as `append` does with rows


@dataclass(frozen=True)
class Layout:
    """What a block is made of: for each layer a part of `part_bytes`, one after the other.

    A part holds k [Hkv, D, P] and v [Hkv, P, D], then scales fp32. dtype: of the pool's pages.
    codec "same" keeps them bit for bit, with their scales for every slot if they have any. "int8"
    rounds floats to 127 steps either side of 0, with one scale for each head of a page: the error
    of a number is at most its head's largest magnitude / 254.
    """

    layers: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: torch.dtype
    codec: str = "same"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise bad_type("Layout", "dtype", "a dtype of pages", self.dtype)
        if self.codec not in CODECS:
            raise bad_value("archive", "codec", " or ".join(CODECS), repr(self.codec))
        if self.codec == "int8" and self.dtype in QUANTISED:
            hint = "they are quantised already"
            raise bad_value("archive", "codec", f"'same' for pages of {self.dtype}", "int8", hint)

    @staticmethod
    def of(pool: PagePool, codec: str = "same") -> Layout:
        """Of the pages of a pool."""
        layers, _, heads, dim, size = pool.k.shape
        return Layout(layers, heads, dim, size, pool.k.dtype, codec)

    def meta(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"dtype": str(self.dtype).removeprefix("torch.")}

    @staticmethod
    def from_meta(meta: dict[str, Any]) -> Layout:
        """From what `meta` gave."""
        return Layout(**(meta | {"dtype": getattr(torch, meta["dtype"])}))

    @cached_property
    def pieces(self) -> tuple[tuple[str, torch.dtype, tuple[int, ...], int, int], ...]:
        """Name, dtype, shape, first byte and bytes of each piece of a part."""
        heads, dim, size = self.kv_heads, self.head_dim, self.page_size
        held = torch.int8 if self.codec == "int8" else self.dtype
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]]
        shapes = {"k": (held, (heads, dim, size)), "v": (held, (heads, size, dim))}
        if held in QUANTISED:
            scales = 1 if self.codec == "int8" else size
            shapes |= {x: (torch.float32, (heads, scales)) for x in ("k_scale", "v_scale")}
        made, at = [], 0
        for name, (dtype, shape) in shapes.items():
            nbytes = prod(shape) * dtype.itemsize
            made.append((name, dtype, shape, at, nbytes))
            at += nbytes
        return tuple(made)

    @cached_property
    def part_bytes(self) -> int:
        """Of one layer of a block."""
        *_, first, nbytes = self.pieces[-1]
        return -(-(first + nbytes) // ALIGN) * ALIGN

    @cached_property
    def piece_bytes(self) -> np.ndarray:
        """int64 [pieces] of a part; they follow one another without a gap."""
        return np.array([nbytes for *_, nbytes in self.pieces], np.int64)

    @property
    def block_bytes(self) -> int:
        return self.layers * self.part_bytes

    def split(self, parts: Tensor) -> dict[str, Tensor]:
        """Views of the pieces [..., *shape] of uint8 [..., part_bytes]."""
        return {
            name: parts[..., first : first + nbytes].view(dtype).unflatten(-1, shape)
            for name, dtype, shape, first, nbytes in self.pieces
        }

    def empty(self, *sizes: int, pinned: bool = False) -> Tensor:
        """Room for blocks: uint8 [*sizes, layers, part_bytes]."""
        shape = (*sizes, self.layers, self.part_bytes)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)

    def pack(self, pool: PagePool, page: int, out: Tensor, layers: slice = slice(None)) -> None:
        """Copies a page into uint8 [layers, part_bytes]; all layers, or those of a slice."""
        out = out[layers]
        pieces = self.split(out)
        if self.codec == "int8":
            for name, source in (("k", pool.k), ("v", pool.v)):
                codes, scale = quantise(source[layers, page].flatten(2))
                pieces[name].copy_(codes.view(pieces[name].shape))
                pieces[f"{name}_scale"].copy_(scale)
        else:
            for name, piece in pieces.items():
                piece.copy_(getattr(pool, name)[layers, page])
        *_, first, nbytes = self.pieces[-1]
        out[..., first + nbytes :] = 0

    def unpack(self, parts: Tensor, pool: PagePool, layer: int, pages: Sequence[int]) -> None:
        """Copies parts uint8 [n, part_bytes] of one layer into these pages of a pool."""
        pieces = self.decoded(self.split(parts.to(pool.k.device, non_blocking=True)))
        at = torch.tensor(pages, device=pool.k.device)
        for name, piece in pieces.items():
            held = getattr(pool, name)[layer]
            kind = torch.uint8 if held.dtype == piece.dtype else held.dtype  # not all dtypes can
            piece = piece.view(kind) if held.dtype == piece.dtype else piece.to(kind)
            held.view(kind).index_copy_(0, at, piece)

    def decoded(self, pieces: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the pool holds of these pieces: without scales of ours."""
        if self.codec == "same":
            return pieces
        return {
            name: pieces[name].float() * pieces[f"{name}_scale"][..., None] for name in ("k", "v")
        }

    def direct(self, pool: PagePool, layers: np.ndarray, pages: np.ndarray) -> np.ndarray | None:
        """Addresses uint64 [n, pieces] of the memory of pages that parts are copies of; None when
        they are not.
        """
        if self.codec != "same" or pool.k.device.type != "cpu":
            return None
        at = layers * pool.pages + pages
        starts = [getattr(pool, name).data_ptr() for name, *_ in self.pieces]
        return (np.array(starts) + at[:, None] * self.piece_bytes).astype(np.uint64)

    def within(self, parts: np.ndarray) -> np.ndarray:
        """Addresses uint64 [n, pieces] of the pieces of parts that begin at addresses [n]."""
        first = np.cumsum(self.piece_bytes) - self.piece_bytes
        return (np.asarray(parts, np.int64)[:, None] + first).astype(np.uint64)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes [..., N] and scales fp32 [..., 1] of floats [..., N]; NaN if a number is not
    finite.
    """
    x = x.float()
    most = x.abs().amax(-1, keepdim=True)
    scale = torch.where(most < _LEAST, 0.0, most / 127)
    over = torch.isinf(scale * 127)  # rounding of the largest floats
    scale = torch.where(over, torch.nextafter(scale, torch.zeros_like(scale)), scale)
    codes = (x / torch.where(scale == 0, 1.0, scale)).round_().clamp_(-127, 127)
    bad = ~torch.isfinite(most)
    return codes.nan_to_num_(0).to(torch.int8), scale.masked_fill_(bad, torch.nan)
