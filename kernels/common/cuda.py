# SPDX-License-Identifier: Apache-2.0
"""Loads the CUDA library that is built where nvcc is found, and calls into it."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

import headrace
from headrace.errors import BackendError

DTYPE_CODE = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.int8: 3,
    torch.float8_e4m3fn: 4,
}
NAME = "_cuda.so"

ENTRIES = {
    "headrace_cuda_paged_attention": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_void_p)),
    "headrace_cuda_append": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_void_p)),
    "headrace_cuda_merge_states": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_void_p)),
    "headrace_cuda_lora": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_void_p)),
    "headrace_cuda_decode_capacity": (ctypes.c_int64, (ctypes.c_int64,) * 4),
    "headrace_cuda_decode_fit": (ctypes.c_int32, (ctypes.c_int32,) * 3),
    "headrace_cuda_decode_bytes": (ctypes.c_int64, ()),
    "headrace_cuda_split_bytes": (ctypes.c_int64, ()),
    "headrace_cuda_append_bytes": (ctypes.c_int64, ()),
    "headrace_cuda_merge_bytes": (ctypes.c_int64, ()),
    "headrace_cuda_lora_bytes": (ctypes.c_int64, ()),
    "headrace_cuda_error": (ctypes.c_char_p, (ctypes.c_int,)),
}


def open_library(path: Path) -> ctypes.CDLL:
    """The library at a path, with the types of its entry points set. Raises OSError."""
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in ENTRIES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def find() -> Path:
    """Where the library lies. Raises BackendError when it was not built."""
    for folder in headrace.__path__:
        path = Path(folder) / NAME
        if path.exists():
            return path
    raise BackendError(
        f"backend cuda: expected {NAME} beside the package, found none; build with "
        "-C cmake.define.HEADRACE_CUDA=ON and nvcc on PATH"
    )


@functools.cache
def library() -> ctypes.CDLL:
    """The CUDA library. Raises BackendError with the reason when it cannot run here."""
    if not torch.cuda.is_available():
        raise BackendError("backend cuda: expected a CUDA device that torch can use, found none")
    path = find()
    try:
        return open_library(path)
    except (OSError, AttributeError) as error:
        raise BackendError(f"backend cuda: expected {path.name} to load, got: {error}") from error


@functools.cache
def available() -> bool:
    """Whether `library()` loads here."""
    try:
        library()
    except BackendError:
        return False
    return True


def check(op: str, code: int, loaded: ctypes.CDLL) -> None:
    """Raises RuntimeError for a cudaError_t other than success."""
    if code:
        raise RuntimeError(
            f"{op}(launch): expected success, got {loaded.headrace_cuda_error(code).decode()}"
        )


def stream_of(x: Tensor) -> int:
    """The current stream of the tensor's device, as an address; 0 for CPU tensors."""
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0


def address(x: Tensor | None) -> int | None:
    """Where the data of a tensor starts; None for None."""
    return None if x is None else x.data_ptr()
