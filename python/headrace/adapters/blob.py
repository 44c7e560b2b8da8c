# SPDX-License-Identifier: Apache-2.0
"""An adapter as one packed run of bytes, and the view of it that a bank reads.

A blob is 64 bytes of header (magic, version, CRC-32 of what follows up to the tensors, lengths,
digest), the canonical configuration, then the tensors, each on a multiple of 64 bytes, in load
order: A [r, K], B transposed [r, N] (rank rows, as a pool keeps them), bias [N], magnitude [N].
Its digest is the SHA-256 of the configuration's length, the configuration and the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import bad_value
from .config import DTYPES, AdapterConfig, natural

ALIGN = 64
MAGIC = b"HRADAPT\n"
VERSION = 1
_HEADER = struct.Struct("<8sIIQQ32s")
_WORDS = {torch.float32: np.uint32, torch.float16: np.uint16, torch.bfloat16: np.uint16}


@dataclass(frozen=True)
class Span:
    """Where a tensor lies: bytes start to stop of the blob; `shape` as stored."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @cached_property
    def rows(self) -> bool:
        """Whether it is kept transposed, as rank rows."""
        return self.key.endswith(".b")

    @cached_property
    def given(self) -> tuple[int, ...]:
        """The shape as peft has it."""
        return self.shape[::-1] if self.rows else self.shape

    @cached_property
    def numpy(self) -> np.dtype:
        """What numpy takes it for."""
        return np.dtype(str(self.dtype).removeprefix("torch.").replace("bfloat16", "int16"))


@dataclass(frozen=True)
class Layer:
    """Modules that load together: bytes start to stop of the blob. index None: outside layers."""

    index: int | None
    modules: tuple[str, ...]
    start: int
    stop: int


class Layout:
    """Where everything of a configuration lies in a blob of `size` bytes."""

    def __init__(self, config: AdapterConfig) -> None:
        self.config = config
        self.canonical = config.canonical()
        self.first = at = _up(_HEADER.size + len(self.canonical))
        self.spans: dict[str, Span] = {}
        layers: dict[float, list[Any]] = {}
        for m in config.modules:
            start = at
            for part, code, shape in (
                ("a", m.dtype, (m.rank, m.inputs)),
                ("b", m.dtype, (m.rank, m.outputs)),
                ("bias", m.bias, (m.outputs,)),
                ("magnitude", m.magnitude, (m.outputs,)),
            ):
                if code is not None:
                    dtype = DTYPES[code]
                    stop = at + math.prod(shape) * dtype.itemsize
                    key = f"{m.name}.{part}"
                    self.spans[key] = Span(key, dtype, shape, at, stop)
                    at = _up(stop)
            layer = layers.setdefault(natural(m.name)[0], [[], start, at])
            layer[0].append(m.name)
            layer[2] = at
        self.size = at
        self.layers = tuple(
            Layer(None if i == math.inf else int(i), tuple(names), start, stop)
            for i, (names, start, stop) in layers.items()
        )
        dtypes = {span.dtype for span in self.spans.values()}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else None
        self._runs: list[list[int]] = []  # bytes of tensors, without what lies between them
        for span in self.spans.values():
            if self._runs and self._runs[-1][1] == span.start:
                self._runs[-1][1] = span.stop
            else:
                self._runs.append([span.start, span.stop])
        self._hash = hashlib.sha256(struct.pack("<Q", len(self.canonical)) + self.canonical)

    def digest(self, blob: Any) -> bytes:
        """Identity of the adapter in `blob`, 32 bytes."""
        view, state = memoryview(blob), self._hash.copy()
        for start, stop in self._runs:
            state.update(view[start:stop])
        return state.digest()

    def seal(self, blob: np.ndarray) -> bytes:
        """Writes header and configuration in front of the tensors; gives the digest."""
        digest = self.digest(blob)
        rest = struct.pack("<QQ32s", len(self.canonical), self.size, digest) + self.canonical
        head = struct.pack("<8sII", MAGIC, VERSION, zlib.crc32(rest)) + rest
        blob[: len(head)] = np.frombuffer(head, np.uint8)
        return digest


@lru_cache(maxsize=256)
def layout_of(config: AdapterConfig) -> Layout:
    """The layout of `config`."""
    return Layout(config)


@lru_cache(maxsize=256)
def _layout_from(canonical: bytes) -> Layout:
    return Layout(AdapterConfig.parse(canonical))


def _up(n: int) -> int:
    return -(-n // ALIGN) * ALIGN


class Adapter:
    """A revision, memory-mapped: tensors are views of the file, loaded when touched.

    Writing to a tensor changes this process's copy, never the file. The views stay good after the
    store is closed and after the revision is removed.
    """

    def __init__(self, op: str, buffer: Any, revision: str, verify: bool = False) -> None:
        view = memoryview(buffer)
        self.revision = revision  # the digest, 64 hex digits
        self.mapped = False  # whether it is a file's, and a first touch may read the disk
        layout = read_layout(op, view, revision)
        self.config: AdapterConfig = layout.config
        self.size: int = layout.size  # bytes of the blob
        self.layers: tuple[Layer, ...] = layout.layers  # in load order
        self._layout = layout
        if verify:
            got = layout.digest(view).hex()
            if got != revision:
                raise bad_value(
                    op, "revision", f"the digest {revision}", got, "the blob is damaged"
                )
        self.buffer: Tensor = torch.frombuffer(buffer, dtype=torch.uint8, count=layout.size)
        self._bytes = np.frombuffer(buffer, np.uint8, count=layout.size)
        self._file = view.obj if isinstance(view.obj, mmap.mmap) else None

    def fetch(self) -> None:
        """Asks the system to read the file ahead, where there is one; returns at once."""
        if self._file is not None and hasattr(mmap, "MADV_WILLNEED"):
            self._file.madvise(mmap.MADV_WILLNEED)

    def words(self, module: str, part: str) -> np.ndarray:
        """A part as stored (`b` as rank rows), its bits in unsigned words: uint16 or uint32."""
        s = self._layout.spans[f"{module}.{part}"]
        found: np.ndarray = self._bytes[s.start : s.stop].view(_WORDS[s.dtype]).reshape(s.shape)
        return found

    def span(self, module: str, part: str) -> Span:
        """Where a part (`a`, `b`, `bias`, `magnitude`) lies in `buffer`; KeyError for none."""
        return self._layout.spans[f"{module}.{part}"]

    def _view(self, module: str, part: str) -> Tensor:
        s = self.span(module, part)
        return self.buffer[s.start : s.stop].view(s.dtype).view(s.shape)

    def a(self, module: str) -> Tensor:
        """A [rank, inputs], contiguous."""
        return self._view(module, "a")

    def b(self, module: str) -> Tensor:
        """B [outputs, rank]: the transposed view of `b_rows`."""
        return self._view(module, "b").t()

    def b_rows(self, module: str) -> Tensor:
        """B as rank rows [rank, outputs], contiguous."""
        return self._view(module, "b")

    def bias(self, module: str) -> Tensor | None:
        """LoRA's bias [outputs], or None."""
        return self._view(module, "bias") if self.config.bias else None

    def magnitude(self, module: str) -> Tensor | None:
        """DoRA's magnitude [outputs], or None."""
        return self._view(module, "magnitude") if self.config.dora else None

    def scale(self, module: str) -> float:
        """What B A x is multiplied by."""
        return self.config.scale(module)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, named as `AdapterStore.add` takes them."""
        found = {}
        for key in self._layout.spans:
            module, _, part = key.rpartition(".")
            found[key] = self.b(module) if part == "b" else self._view(module, part)
        return found


def read_layout(op: str, view: memoryview, revision: str) -> Layout:
    """The layout of a blob whose header is whole and of this revision; ValueError for others."""

    def damaged(why: str) -> ValueError:
        return bad_value(op, "revision", f"the whole blob of {revision}", why)

    if len(view) < _HEADER.size:
        raise damaged("too few bytes")
    magic, version, crc, length, size, digest = _HEADER.unpack_from(view)
    if magic != MAGIC or version != VERSION:
        raise damaged("another format")
    if size != len(view) or length > size - _HEADER.size:
        raise damaged("other lengths")
    if zlib.crc32(view[16 : _HEADER.size + length]) != crc:
        raise damaged("a damaged header")
    if digest.hex() != revision:
        raise damaged(f"that of {digest.hex()}")
    layout = _layout_from(bytes(view[_HEADER.size : _HEADER.size + length]))
    if layout.size != size:
        raise damaged("other lengths")
    return layout
