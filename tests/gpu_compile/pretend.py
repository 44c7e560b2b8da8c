# SPDX-License-Identifier: Apache-2.0
"""A GPU that is only pretended, so that tests/gpu runs on a machine without one.

    HEADRACE_PRETEND=LOG python -m pytest -p tests.gpu_compile.pretend tests/gpu

Tensors stay on the CPU. An op of backend triton runs its launcher, whose launches are taken down
(LOG gets a line for each new one), and its result is that of the CPU kernel; backend cuda runs the
CUDA C++ kernels in the emulation. A graph is what torch's dispatcher saw, done again at a replay; a
launcher that waits for the device during a capture, or brings it what the host has, fails there.
What this shows: that the tests, the launchers and the comparisons of the suite run through. What it
does not: a device.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from headrace.errors import BackendError

WAITS = (
    "_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "repeat_interleave",
    "bincount", "_unique2", "unique_dim", "unique_consecutive",
)  # fmt: skip


def _here(x: Any) -> Any:
    if isinstance(x, torch.device) and x.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(x, str) and x.split(":")[0] == "cuda" else x


class OnCpu(TorchFunctionMode):
    """Whatever is asked for on a GPU is made on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cuda:
            return args[0].clone()
        there = {n: _here(x) for n, x in (kwargs or {}).items() if n != "pin_memory"}
        if func is not torch.Tensor.to:
            return func(*args, **there)
        out = func(*map(_here, args), **there)
        # A copy, as between devices: what an op changes is not what the reference is given.
        return out.clone() if out is args[0] else out


def _captured(func: Any, args: tuple) -> None:
    """Raises what a device would of what no graph can hold."""
    name = func.__name__.split(".")[0]
    masks = name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
    if name in WAITS or masks:  # how many a mask has, only the device knows
        raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
    if name == "lift_fresh":  # torch.tensor: numbers of the host, on their way to the device
        raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capturing")


class NoWaiting(TorchDispatchMode):
    """What a captured launcher does; reading a value on the host is an error, as on a device, and
    so is a tensor of values that the host has."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        _captured(func, args)
        return func(*args, **(kwargs or {}))


class Graph(TorchDispatchMode):
    """The calls between begin and end, done again by `replay`."""

    active: Graph | None = None

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        _captured(func, args)
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            new = func(*args, **kwargs)
            for old, x in zip(_tensors(out), _tensors(new), strict=True):
                if old.data_ptr() != x.data_ptr():
                    old.copy_(x)


def _tensors(x: Any) -> list[torch.Tensor]:
    several = x if isinstance(x, (tuple, list)) else (x,)
    return [y for y in several if isinstance(y, torch.Tensor)]


@contextlib.contextmanager
def capture(graph: Graph, *_: Any, **__: Any):
    Graph.active = graph
    try:
        with graph:
            yield
    finally:
        Graph.active = None


class Stream:
    """A stream or an event: nothing happens later than it is asked for."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


def without() -> Any:
    raise BackendError("backend cuda: expected a pretended GPU with it, HEADRACE_PRETEND_CUDA is 0")


def pytest_configure(config: Any) -> None:
    from headrace.kernels.common import cuda

    from headrace import backends
    from headrace.ops import registry

    from . import emulation
    from .recording import recorder

    real, log, known = registry._load, os.environ.get("HEADRACE_PRETEND"), set()

    def load(spec, backend):
        launcher = real(spec, backend)
        if backend == "cuda":
            return launcher

        def kernel(bound, axes, outs):
            waits = NoWaiting() if Graph.active is not None else contextlib.nullcontext()
            with recorder() as record, waits:
                made = record(lambda: launcher(bound, axes, [x.clone() for x in outs]))
            if log:
                _take_down(made, known, log)
            with backends.use_backend("cpu"):
                found = getattr(torch.ops.headrace, spec.name)(**bound)
            for out, x in zip(outs, _tensors(found), strict=True):
                out.copy_(x)

        return kernel

    registry._load = load
    backends.resolve = lambda device, gpu: (
        {"auto": "cpu"}.get(backends.current()) or (backends.current())
    )
    if os.environ.get("HEADRACE_PRETEND_CUDA") == "0":
        cuda.library = without
    else:
        library = emulation.library()
        cuda.library = lambda: library
    cuda.stream_of = lambda x: 0
    fakes = {
        "is_available": lambda: True,
        "synchronize": lambda *_: None,
        "current_stream": lambda *_: Stream(),
        "stream": lambda _: contextlib.nullcontext(),
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": capture,
    }
    for name, fake in fakes.items():
        setattr(torch.cuda, name, fake)
    OnCpu().__enter__()


def _take_down(made: list, known: set, log: str) -> None:
    """A line for each launch that would compile to something new."""
    from .recording import described

    for fn, args, kwargs in made:
        if (told := described(fn, args, kwargs)) not in known:
            known.add(told)
            with open(log, "a", encoding="utf-8") as file:
                file.write(told + "\n")
