# SPDX-License-Identifier: Apache-2.0
"""Checks and times the GPU kernels on one GPU, in one run, and writes what it saw.

    python -m pip install --no-build-isolation --no-deps .     # once, headrace itself
    python bench/gpu.py OUT [--quick]      OUT/gpu.json and OUT/gpu.md
    python bench/gpu.py OUT --dry-run      no GPU: tiny sizes on the CPU, to check this script

Builds the CUDA library beside the installed package when it is absent and nvcc is there, runs
tests/gpu, measures the floors (copy bandwidth, bf16 matrix rate), then times every op beside its
peers. Inputs rotate among buffers that together exceed the L2 cache. A ratio is printed only where
the result agrees with the reference. Not yet seen running on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import gpu_cases as cases  # beside this script
import gpu_states as states
import torch
from headrace.kernels.common import cuda as library

import headrace
from headrace import ops
from headrace.errors import BackendError

ROOT = Path(__file__).resolve().parents[1]
ROTATE = 192 << 20  # bytes of inputs among which a timing rotates

Make = Callable[[], dict[str, Any]]


class Bench:
    """One run: the device, its floors, and the rows of the table."""

    def __init__(self, dry: bool, quick: bool) -> None:
        self.dry, self.quick = dry, quick
        self.device = "cpu" if dry else "cuda"
        self.dtype = torch.float32 if dry else torch.bfloat16
        self.rows: list[dict[str, Any]] = []
        self.floors: dict[str, float] = {}
        have = ["cuda"] if not dry and library.available() else []
        self.backends = ["reference"] if dry else ["triton", *have]

    def seconds(self, calls: list[Callable[[], Any]]) -> float:
        """Median time of one call, all of them taken in turn; on a GPU as a replayed graph."""
        for call in calls[:2]:
            call()
        if self.dry:
            start = time.perf_counter()
            calls[0]()
            return time.perf_counter() - start
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
        graph.replay()
        torch.cuda.synchronize()
        times: list[float] = []
        spent = 0.0
        while len(times) < 7 or (spent < 0.2 and len(times) < 100):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3 / len(calls))
            spent += times[-1] * len(calls)
        return statistics.median(times)

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def measure_floors(self) -> None:
        n = 1 << (12 if self.dry else 30)
        a, b = (torch.empty(n, dtype=torch.uint8, device=self.device) for _ in "ab")
        a.random_()
        self.floors["copy_bytes_per_s"] = 2 * n / self.seconds([lambda: b.copy_(a)])
        m = 64 if self.dry else 8192
        x, y = self.randn(m, m), self.randn(m, m)
        self.floors["matrix_flops_per_s"] = 2 * m**3 / self.seconds([lambda: x @ y])

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
        copies = 1 if self.dry else max(1, min(64, int(ROTATE // max(input_bytes, 1)) + 1))
        sets = [make() for _ in range(copies)]
        row: dict[str, Any] = {"op": op, "what": what, "floor_us": bound_by * 1e6, "us": {}}
        call = getattr(torch.ops.headrace, op)
        arguments = [{k: v for k, v in s.items() if not k.startswith("_")} for s in sets]
        for backend in self.backends:
            if backend not in (*ops.specs()[op].gpu, "reference"):
                continue
            with headrace.use_backend(backend):
                row["us"][backend] = self.attempt([lambda a=a: call(**a) for a in arguments])
                row.setdefault("correct", {})[backend] = self.agrees(
                    check, sets[0], call, arguments
                )
        for name, peer in peers.items():
            row["us"][name] = self.attempt([lambda s=s, p=peer: p(s) for s in sets])
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        torch._dynamo.reset()  # a peer that has met too many shapes would run uncompiled
        if not self.dry:
            del sets, arguments
            torch.cuda.empty_cache()

    def attempt(self, calls: list[Callable[[], Any]]) -> float | str:
        try:
            return self.seconds(calls) * 1e6
        except Exception as error:  # a peer that cannot run here is a line of the report
            return f"{type(error).__name__}: {error}".splitlines()[0][:120]

    def agrees(self, check: Callable, inputs: dict, call: Callable, arguments: list[dict]) -> bool:
        try:
            return bool(check(inputs, call(**arguments[0])))
        except Exception as error:
            print(f"check failed: {error}", flush=True)
            return False


def build_library() -> str:
    """Builds the CUDA library into the package unless it is there; says what happened."""
    with contextlib.suppress(BackendError):
        return f"found {library.find().name}"
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return "absent: nvcc is not on PATH, so backend cuda is left out"
    sources = sorted(str(p) for p in (ROOT / "kernels").glob("*/*.cu"))
    command = [
        nvcc,
        "-std=c++17",
        "-O3",
        "-shared",
        "-Xcompiler",
        "-fPIC,-fvisibility=hidden",
        "-cudart",
        "static",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_80,code=[sm_80,compute_80]",
        f"-I{ROOT}",
        *sources,
        "-o",
        str(Path(headrace.__path__[0]) / library.NAME),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    return "built" if done.returncode == 0 else f"failed to build: {done.stderr[-500:]}"


def run_tests() -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-rs", str(ROOT / "tests" / "gpu")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    print(done.stdout[-4000:], done.stderr[-2000:], flush=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return f"exit {done.returncode}: {lines[-1] if lines else 'no output'}"


def environment(library_state: str) -> dict[str, Any]:
    git = shutil.which("git")
    commit = "unknown"
    if git:
        done = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT)
        commit = done.stdout.strip() or commit
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    with contextlib.suppress(ImportError):
        import triton

        versions["triton"] = triton.__version__
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "command": " ".join(["python", "bench/gpu.py", *sys.argv[1:]]),
        "versions": versions,
        "cuda_library": library_state,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def table(report: dict[str, Any]) -> str:
    """Markdown: microseconds, the share of the floor that ours reaches, ratios to the peers."""
    lines = [
        "# Dry run on the CPU: plumbing only, its speeds mean nothing"
        if report["dry"]
        else "# GPU run",
        "",
        *(f"- {k}: {v}" for k, v in report["environment"].items()),
        f"- tests: {report['tests']}",
        *(f"- {k}: {v:.4g}" for k, v in report["floors"].items()),
        "",
        "| op | what | floor us | ours us | of the floor | peers us (peer / ours) |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in report["rows"]:
        ours = {b: row["us"][b] for b in row.get("correct", {})}
        peers = {n: t for n, t in row["us"].items() if n not in ours}
        good = {b: t for b, t in ours.items() if row["correct"][b] and isinstance(t, float)}
        best = min(good.values()) if good else None
        told = ", ".join(
            f"{b} {_us(t)}{'' if row['correct'][b] else ' WRONG'}" for b, t in ours.items()
        )
        share = f"{row['floor_us'] / best:.0%}" if best else "-"
        against = ", ".join(
            f"{n} {_us(t)}" + (f" ({t / best:.2f}x)" if best and isinstance(t, float) else "")
            for n, t in peers.items()
        )
        lines.append(
            f"| {row['op']} | {row['what']} | {row['floor_us']:.1f} | {told} | {share} "
            f"| {against} |"
        )
    return "\n".join(lines) + "\n"


def _us(t: float | str) -> str:
    return f"{t:.1f}" if isinstance(t, float) else f"({t})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--only", default="", help="ops to time, separated by commas")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        print("bench/gpu.py: expected a GPU that torch can use, found none; --dry-run needs none")
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    state = "not looked for" if options.dry_run else build_library()
    print(f"CUDA library: {state}", flush=True)
    tests = "skipped" if options.skip_tests or options.dry_run else run_tests()
    torch.manual_seed(0)
    bench = Bench(options.dry_run, options.quick)
    report: dict[str, Any] = {"dry": bench.dry, "environment": environment(state), "tests": tests}
    bench.measure_floors()
    report |= {"floors": bench.floors, "rows": bench.rows}

    if bench.dry:
        batches, contexts, prompts, window, rows = [1, 2], [128], [96], 32, [3]
        shape = (64, 48)
    else:
        batches = [1, 8, 64] if bench.quick else [1, 2, 4, 8, 16, 32, 64]
        contexts = [2048, 32768] if bench.quick else [2048, 4096, 8192, 16384, 32768]
        prompts = [4096, 32768] if bench.quick else [4096, 8192, 16384, 32768, 65536, 131072]
        window, rows, shape = 2048, [1, 16, 256, 4096], (4096, 4096)
    only = options.only.split(",") if options.only else list(ops.specs())
    jobs: list[tuple[str, Callable[[], None]]] = []
    for b in batches:
        for c in contexts:
            jobs.append(("paged_attention", partial(cases.decode, bench, b, c, True)))
            for codes in (torch.int8, torch.float8_e4m3fn):
                job = partial(cases.decode, bench, b, c, True, codes)
                jobs.append(("paged_attention", job))
    jobs.append(("paged_attention", partial(cases.decode, bench, batches[-1], contexts[0], False)))
    jobs += [("attention", partial(cases.prefill, bench, n, window)) for n in prompts]
    jobs += [("attention", partial(cases.sparse, bench, n)) for n in prompts if n <= 32768]
    jobs += [("pooled_block_mask", partial(cases.pooled_block_mask, bench, n)) for n in prompts]
    recalls = [4096] if bench.dry else [10**6]
    jobs += [("block_score", partial(cases.block_score, bench, n)) for n in recalls]
    jobs += [("select", partial(cases.select, bench, n // 64, 16)) for n in recalls]
    jobs += [("segment_reduce", partial(cases.segment_reduce, bench, n // 8)) for n in recalls]
    jobs += [("attention_mass", partial(cases.attention_mass, bench, n, 32)) for n in prompts]
    nearest = [(70, 30)] if bench.dry else [(65536, 256), (10549, 5000)]
    jobs += [("assign", partial(cases.assign, bench, *sizes)) for sizes in nearest]
    features = (300, 64) if bench.dry else (10_000, 3584)
    jobs += [
        (op, partial(getattr(cases, op), bench, *features)) for op in ("similarity", "compact")
    ]
    moves = ("compact_inplace", "scatter_back")
    jobs += [(op, partial(cases.move, bench, op, *features)) for op in moves]
    jobs += [("append", partial(cases.append, bench, n)) for n in rows]
    jobs += [("merge_states", partial(cases.merge, bench, n)) for n in rows]
    jobs += [("linear", partial(cases.linear, bench, n, *shape)) for n in rows]
    mixes = [(2, 2, 4)] if bench.dry else [(1, 1, 16), (64, 1, 16), (64, 64, 16), (2048, 8, 16)]
    jobs += [("lora", partial(cases.lora, bench, *mix, shape[0])) for mix in mixes]
    jobs += [("lora_rows", partial(cases.lora_rows, bench, *mix, shape[0])) for mix in mixes]
    history = (64, 16) if bench.dry else (8192, 1024)
    jobs.append(("hstu_attention", partial(cases.hstu, bench, *history)))
    clips = [(2, 2, 20)] if bench.dry else [(1, 4, 880), (8, 4, 880)]
    jobs += [("frame_delta_rule", partial(cases.frame_delta, bench, *clip)) for clip in clips]
    for op, (case, sizes, few) in states.JOBS.items():
        jobs += [(op, partial(case, bench, *size)) for size in ([few] if bench.dry else sizes)]
    try:
        for op, job in jobs:
            if op in only:
                job()
    finally:  # what was measured is kept, whatever came after
        (options.out / "gpu.json").write_text(json.dumps(report, indent=1))
        (options.out / "gpu.md").write_text(table(report))
    print(table(report))
    wrong = [r for r in bench.rows if not all(r.get("correct", {}).values())]
    return 1 if wrong or not tests.startswith(("exit 0", "skipped")) else 0


if __name__ == "__main__":
    sys.exit(main())
