# SPDX-License-Identifier: Apache-2.0
"""How an op is timed on a GPU: as a replayed graph, over inputs that rotate among buffers which
together exceed the L2 cache, and over one buffer alone, beside its peers and its floor; a result
that differs from the reference has no ratio."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from headrace.kernels.common import cuda as library

import headrace
from headrace import ops
from headrace.contract import ROUNDOFF

from .rates import Rates
from .work import PEER, Check, Make, Run, Step, Work, near

HEADS, KV_HEADS, DIM, PAGE = 32, 8, 128, 64
ROTATE = 192 << 20  # bytes of inputs among which a timing rotates
EAGER = 20  # calls outside a graph


class Bench:
    """One run: the device, its floors, and the rows of the table. warm: one that calls everything
    once, so that it is compiled, and times nothing."""

    def __init__(self, dry: bool, warm: bool = False) -> None:
        self.dry, self.warm = dry, warm
        self.device = "cpu" if dry else "cuda"
        self.dtype = torch.float32 if dry else torch.bfloat16
        self.rows: list[dict[str, Any]] = []
        self.floors: dict[str, float] = {}
        self.rates = Rates(self)
        self.alone = False  # the first backend only, cold only, without peers
        have = ["cuda"] if not dry and library.available() else []
        self.backends = ["reference"] if dry else ["triton", *have]

    def recorded(self, calls: list[Callable[[], Any]]) -> Run:
        """A function that does all calls and gives their time in seconds; on a GPU as one graph."""
        for call in calls[:2]:
            call()
        if self.warm:
            return lambda: 0.0
        if self.dry:
            return self.clocked(calls[:1])
        graph = self.captured(calls)

        def replay() -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3

        replay()
        return replay

    def captured(self, calls: list[Callable[[], Any]], keep: bool = False) -> Any:
        """A graph of these calls, which have been made before; keep: with what it is made of."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            calls[-1]()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=keep)
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph

    def clocked(self, calls: list[Callable[[], Any]]) -> Run:
        """A function that does all calls and gives the time until the device is done."""

        def run() -> float:
            start = time.perf_counter()
            for call in calls:
                call()
            if not self.dry:
                torch.cuda.synchronize()
            return time.perf_counter() - start

        return run

    def seconds(self, calls: list[Callable[[], Any]]) -> float:
        """Median time of one call."""
        (times,) = self.in_turns({"": self.recorded(calls)}).values()
        return statistics.median(times) / len(calls)

    def in_turns(self, runs: Mapping[str, Run]) -> dict[str, list[float]]:
        """Times of each, taken in turns, so that a slow spell falls on all."""
        times: dict[str, list[float]] = {name: [] for name in runs}
        spent, rounds = 0.0, 0
        least, most = (1, 1) if self.dry or self.warm else (7, 100)
        while rounds < least or (spent < 0.2 * len(runs) and rounds < most):
            for name, run in runs.items():
                times[name].append(run())
                spent += times[name][-1]
            rounds += 1
        return times

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def under(self, step: Step) -> dict[str, Step]:
        """A step of ours by each backend."""

        def on(backend: str) -> Step:
            def run(s: dict[str, Any]) -> Any:
                with headrace.use_backend(backend):
                    return step(s)

            return run

        return {backend: on(backend) for backend in self.backends}

    def add(
        self,
        op: str,
        what: str,
        make: Make,
        peers: Mapping[str, Step],
        check: Check,
        proofs: Mapping[str, Check] | None = None,
    ) -> None:
        """Times an op on `make()`d arguments (those with _ are the peers'), and its peers. Bytes,
        FLOPs and tolerance are its contract's."""
        spec, call, first = ops.specs()[op], getattr(torch.ops.headrace, op), [make()]
        bound = spec.bind(**_public(first[0]))
        axes = spec.check(bound)
        bound = {n: _on_host(x) for n, x in bound.items()}
        ours = {
            b: step
            for b, step in self.under(lambda s: call(**_public(s))).items()
            if b in (*spec.gpu, "reference")
        }
        self.measure(
            Work(op, what, lambda: first.pop() if first else make(), ours, peers, check,
                 spec.bytes(axes, bound), spec.flops(axes, bound),
                 lambda dtype: spec.tolerance(dtype, axes, bound), proofs or {})
        )  # fmt: skip

    def measure(self, work: Work, **more: Any) -> None:
        """A row of the table; more: what else is told of it."""
        copies = 1
        if not self.dry and not self.warm and work.graph:
            copies = max(1, min(64, int(ROTATE // max(work.bytes, 1)) + 1))
        sets = [work.make() for _ in range(copies)]
        row = _Row(self, work, sets)
        for name, step in list(work.ours.items())[: 1 if self.alone else None]:
            row.ours(name, step)
        for name, step in () if self.alone else work.peers.items():
            row.peer(name, step)
        floor = self.floor(work) if work.floor_s is None else work.floor_s
        self.rows.append(
            {"op": work.op, "what": work.what, "floor_us": floor * 1e6, "bytes": work.bytes,
             "flops": work.flops, **row.timed(), **more}
        )  # fmt: skip
        torch._dynamo.reset()  # a peer that has met too many shapes would run uncompiled
        if not self.dry:
            del sets, row
            torch.cuda.empty_cache()

    def floor(self, work: Work) -> float:
        """Seconds that this machine needs: to move the bytes, at the rate of moves of that size, to
        do the multiply-adds, or to begin a node of a graph at all."""
        if self.warm:
            return 0.0
        moved = work.bytes / self.rates.moving(work.bytes)
        return max(moved, work.flops / self.rates.matrix(), self.rates.node())

    def agrees(
        self, check: Check, s: dict, out: Callable[[], Any], allowed: Callable[[torch.dtype], float]
    ) -> bool:
        """Whether a result is right; a check that cannot be made counts as wrong, and is told."""
        try:
            told = check(s, out())
            if isinstance(told, bool):
                return told
            return all(near(got, want, allowed(got.dtype), *least) for got, want, *least in told)
        except Exception as error:
            print(f"check failed: {error}", file=sys.stderr, flush=True)
            return False


class _Row:
    """What is known of the row that is being measured."""

    def __init__(self, bench: Bench, work: Work, sets: list[dict[str, Any]]) -> None:
        self.bench, self.work, self.sets = bench, work, sets
        self.us: dict[str, float | str] = {}
        self.correct: dict[str, bool] = {}
        self.eager: dict[str, float] = {}
        self.runs: dict[str, Run] = {}
        self.warm: dict[str, Run] = {}

    def ours(self, name: str, step: Step) -> None:
        calls, bench = self._calls(step), self.bench
        if not self._record(self.runs, name, calls):
            self.correct[name] = False
            return
        self.correct[name] = bench.warm or bench.agrees(
            self.work.check, self.sets[0], calls[0], self.work.tolerance
        )
        if bench.alone or bench.warm or not self.work.graph:
            return
        if len(calls) > 1:  # the same call over and over: what fits in the L2 cache stays there
            self._record(self.warm, name, calls[:1] * min(len(calls), EAGER))
        count = 1 if bench.dry else EAGER
        self.eager[name] = min(bench.clocked(calls[:1] * count)() for _ in range(3)) / count * 1e6

    def peer(self, name: str, step: Step) -> None:
        """One that computes the same is only timed where it does."""
        proof, calls = self.work.proofs.get(name), self._calls(step)
        if proof is not None:
            try:
                out = calls[0]()
            except Exception as error:
                self.us[name] = _line(error)
                return
            bench = self.bench
            if not bench.warm and not bench.agrees(
                proof, self.sets[0], lambda: out, lambda dtype: PEER
            ):
                self.us[name] = "its result is another"
                return
        self._record(self.runs, name, calls)

    def _calls(self, step: Step) -> list[Callable[[], Any]]:
        return [lambda s=s: step(s) for s in self.sets]

    def _record(self, runs: dict[str, Run], name: str, calls: list[Callable[[], Any]]) -> bool:
        """Records the calls under the name, or the line that says why they cannot run."""
        bench = self.bench
        try:
            if not self.work.graph:
                calls[0]()
            runs[name] = bench.recorded(calls) if self.work.graph else bench.clocked(calls)
        except Exception as error:  # a peer that cannot run here is a line of the report
            self.us[name] = _line(error)
            return False
        return True

    def timed(self) -> dict[str, Any]:
        """Medians, and how far the middle half of the times reaches around them."""
        cold, warm = (self.bench.in_turns(runs) for runs in (self.runs, self.warm))
        share = {name: 1e6 / len(self.sets) for name in cold}
        again = {name: 1e6 / min(len(self.sets), EAGER) for name in warm}
        self.us |= {n: statistics.median(t) * share[n] for n, t in cold.items()}
        told: dict[str, Any] = {"us": self.us, "correct": self.correct}
        told["spread"] = {n: _spread(t) for n, t in cold.items()}
        told["warm_us"] = {n: statistics.median(t) * again[n] for n, t in warm.items()}
        return told | {"eager_us": self.eager}


def _spread(times: list[float]) -> float:
    """Half of what lies between the quartiles, over the median."""
    if len(times) < 4:
        return 0.0
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / max(middle, 1e-12)


def _public(s: dict[str, Any]) -> dict[str, Any]:
    return {n: x for n, x in s.items() if not n.startswith("_")}


def _on_host(x: Any) -> Any:
    """Integers of a view, which a contract counts one by one; other tensors as they are."""
    few = isinstance(x, torch.Tensor) and x.numel() <= 1 << 22 and x.dtype not in ROUNDOFF
    return x.cpu() if few else x


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]
