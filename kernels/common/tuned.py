# SPDX-License-Identifier: Apache-2.0
"""Block shapes, warps and stages of the Triton kernels, by device.

A table `tuned/<device>.json` beside this file holds what was fastest on that device, as
{kernel: {key: choice}}; `scripts/gpu_check.py --stages tune` writes one. Where there is none, or
the key is not in it, the kernel's own default holds. A key is made of head sizes, widths and dtypes
alone, never of rows or streams: a row's bits must not depend on its neighbours.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

Choice = dict[str, int]

CANDIDATES: dict[str, dict[str, tuple[int, ...]]] = {
    "attention": {"rows": (32, 64, 128), "keys": (32, 64, 128), "warps": (4, 8), "stages": (2, 3)},
    "paged_attention": {"rows": (16, 32, 64), "keys": (32, 64), "warps": (4, 8),
                        "stages": (1, 2, 3)},
    "linear": {"rows": (32, 64, 128), "columns": (32, 64, 128), "depth": (32, 64, 128),
               "warps": (4, 8), "stages": (3, 4)},
    "lora": {"depth": (64, 128, 256), "columns": (64, 128), "warps": (4, 8)},
}  # fmt: skip
"""What the tuner tries of each kernel: every combination."""

KEYS = {kernel: re.compile(rf"{sizes} (16-bit|fp32)$") for kernel, sizes in (
    ("attention", r"\d+"), ("paged_attention", r"\d+"), ("linear", r"\d+ \d+"),
    ("lora", r"\d+ [048]"),
)}  # fmt: skip
"""What a key looks like: the head's size, outputs and inputs, inputs and bits; then the dtype."""

FOLDER = Path(__file__).parent / "tuned"
_TRIAL: dict[str, tuple[Choice | None, list[str]]] = {}


def combinations(kernel: str) -> list[Choice]:
    """All candidates of a kernel."""
    axes = CANDIDATES[kernel]
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def file_name(device: str) -> str:
    """Of a device's table: `NVIDIA H200` has nvidia-h200.json."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


@functools.cache
def table(device: str) -> dict[str, dict[str, Choice]]:
    """A device's table, {} where there is none."""
    path = FOLDER / file_name(device)
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def problems(found: object) -> list[str]:
    """A line for all that is wrong with a table: kernels, keys or choices that there are not."""
    if not isinstance(found, dict):
        return ["expected {kernel: {key: choice}}"]
    wrong = [f"{kernel}: no such kernel" for kernel in found if kernel not in CANDIDATES]
    for kernel in (k for k in found if k in CANDIDATES):
        if not isinstance(found[kernel], dict) or not found[kernel]:
            wrong.append(f"{kernel}: expected {{key: choice}}")
            continue
        allowed = combinations(kernel)
        wrong += [
            f"{kernel}, {key}: no key" for key in found[kernel] if not KEYS[kernel].match(key)
        ]
        wrong += [f"{kernel}, {key}: {made} is no candidate"
                  for key, made in found[kernel].items() if made not in allowed]  # fmt: skip
    return wrong


def choice(kernel: str, key: str, x: Tensor, default: Choice) -> Choice:
    """What to launch `kernel` with for a key on the device of x."""
    if kernel in _TRIAL:
        tried, asked = _TRIAL[kernel]
        asked.append(key)
        return default if tried is None else tried
    if not x.is_cuda:
        return default
    return table(torch.cuda.get_device_name(x.device)).get(kernel, {}).get(key, default)


@contextlib.contextmanager
def trial(kernel: str, choice: Choice | None) -> Iterator[list[str]]:
    """Inside, the kernel takes this choice (None: its default) whatever the key; gives the keys
    that it asks for."""
    asked: list[str] = []
    _TRIAL[kernel] = choice, asked
    try:
        yield asked
    finally:
        del _TRIAL[kernel]
