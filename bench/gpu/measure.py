# SPDX-License-Identifier: Apache-2.0
"""How an op is timed on a GPU: as a replayed graph, over inputs that rotate among buffers which
together exceed the L2 cache, beside its peers and its floor; a result that differs from the
reference has no ratio."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from headrace.kernels.common import cuda as library

import headrace
from headrace import ops

HEADS, KV_HEADS, DIM, PAGE = 32, 8, 128, 64
ROTATE = 192 << 20  # bytes of inputs among which a timing rotates

Make = Callable[[], dict[str, Any]]


def near(got: torch.Tensor, want: torch.Tensor, allowed: float = 1e-2) -> bool:
    """RMS error relative to the RMS of `want`; NaN is never near."""
    got, want = got.double(), want.double()
    return bool((got - want).square().mean().sqrt() <= allowed * want.square().mean().sqrt())


class Bench:
    """One run: the device, its floors, and the rows of the table. warm: one that calls everything
    once, so that it is compiled, and times nothing."""

    def __init__(self, dry: bool, warm: bool = False) -> None:
        self.dry, self.warm = dry, warm
        self.device = "cpu" if dry else "cuda"
        self.dtype = torch.float32 if dry else torch.bfloat16
        self.rows: list[dict[str, Any]] = []
        self.floors: dict[str, float] = {}
        self.alone = False  # the first backend only, without peers
        have = ["cuda"] if not dry and library.available() else []
        self.backends = ["reference"] if dry else ["triton", *have]

    def recorded(self, calls: list[Callable[[], Any]]) -> Callable[[], float]:
        """A function that does all calls and gives their time in seconds; on a GPU as one graph."""
        for call in calls[:2]:
            call()
        if self.warm:
            return lambda: 0.0
        if self.dry:

            def run() -> float:
                start = time.perf_counter()
                calls[0]()
                return time.perf_counter() - start

            return run
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            calls[-1]()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()

        def replay() -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3

        replay()
        return replay

    def seconds(self, calls: list[Callable[[], Any]]) -> float:
        """Median time of one call."""
        return self.in_turns({"": self.recorded(calls)})[""] / len(calls)

    def in_turns(self, runs: dict[str, Callable[[], float]]) -> dict[str, float]:
        """Median time of each, taken in turns, so that a slow spell falls on all."""
        times: dict[str, list[float]] = {name: [] for name in runs}
        spent, rounds = 0.0, 0
        least, most = (1, 1) if self.dry or self.warm else (7, 100)
        while rounds < least or (spent < 0.2 * len(runs) and rounds < most):
            for name, run in runs.items():
                times[name].append(run())
                spent += times[name][-1]
            rounds += 1
        return {name: statistics.median(found) for name, found in times.items()}

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def measure_floors(self) -> None:
        """Copy, read and matrix rates, and what a launch and a node of a graph cost."""
        n = 1 << (12 if self.dry else 30)
        a, b = (torch.empty(n, dtype=torch.uint8, device=self.device) for _ in "ab")
        a.random_()
        self.floors["copy_bytes_per_s"] = 2 * n / self.seconds([lambda: b.copy_(a)])
        words = a.view(torch.int64)
        self.floors["read_bytes_per_s"] = n / self.seconds([lambda: words.max()])
        m = 64 if self.dry else 8192
        x, y = self.randn(m, m), self.randn(m, m)
        self.floors["matrix_flops_per_s"] = 2 * m**3 / self.seconds([lambda: x @ y])
        one = torch.zeros(1, device=self.device)
        self.floors["graph_node_s"] = self.seconds([lambda: one.add_(1)] * 200)
        start = time.perf_counter()
        for _ in range(200):
            one.add_(1)
        if not self.dry:
            torch.cuda.synchronize()
        self.floors["launch_s"] = (time.perf_counter() - start) / 200

    def add(
        self,
        op: str,
        what: str,
        make: Make,
        peers: dict[str, Callable[[dict], Any]],
        bound_by: float,
        input_bytes: float,
        check: Callable[[dict, Any], bool],
    ) -> None:
        """Times op on `make()`d arguments, and its peers; bound_by is the floor in seconds."""
        copies = (
            1 if self.dry or self.warm else max(1, min(64, int(ROTATE // max(input_bytes, 1)) + 1))
        )
        sets = [make() for _ in range(copies)]
        us: dict[str, float | str] = {}
        correct: dict[str, bool] = {}
        runs: dict[str, Callable[[], float]] = {}
        call = getattr(torch.ops.headrace, op)
        arguments = [{k: v for k, v in s.items() if not k.startswith("_")} for s in sets]
        for backend in self.backends[:1] if self.alone else self.backends:
            if backend not in (*ops.specs()[op].gpu, "reference"):
                continue
            with headrace.use_backend(backend):
                self.attempt(runs, us, backend, [lambda a=a: call(**a) for a in arguments])
                correct[backend] = self.warm or self.agrees(check, sets[0], call, arguments)
        for name, peer in () if self.alone else peers.items():
            self.attempt(runs, us, name, [lambda s=s, p=peer: p(s) for s in sets])
        us |= {name: t / copies * 1e6 for name, t in self.in_turns(runs).items()}
        floor = {"floor_us": bound_by * 1e6}
        self.rows.append({"op": op, "what": what, **floor, "us": us, "correct": correct})
        torch._dynamo.reset()  # a peer that has met too many shapes would run uncompiled
        if not self.dry:
            del sets, arguments, runs
            torch.cuda.empty_cache()

    def attempt(
        self,
        runs: dict[str, Callable[[], float]],
        us: dict[str, float | str],
        name: str,
        calls: list[Callable[[], Any]],
    ) -> None:
        """Records the calls under the name, or, in `us`, the line that says why they cannot run."""
        try:
            runs[name] = self.recorded(calls)
        except Exception as error:  # a peer that cannot run here is a line of the report
            us[name] = f"{type(error).__name__}: {error}".splitlines()[0][:120]

    def agrees(self, check: Callable, inputs: dict, call: Callable, arguments: list[dict]) -> bool:
        try:
            return bool(check(inputs, call(**arguments[0])))
        except Exception as error:
            print(f"check failed: {error}", file=sys.stderr, flush=True)
            return False
