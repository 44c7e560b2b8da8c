# SPDX-License-Identifier: Apache-2.0
"""The stages of scripts/gpu_check.py. Each goes through its units, leaves out those that are done,
begins none that the budget has no time for, and keeps what it saw of each."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from headrace.kernels.common import cuda as library

import headrace
from headrace.errors import BackendError

from .jobs import jobs
from .tune import CASES, GAIN, choices

ROOT = Path(__file__).resolve().parents[2]
LEAST = 5.0  # seconds under which nothing is begun
A_TEST, A_JOB = 120.0, 90.0  # seconds after which one counts as hanging
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TARGETS = ("arch=compute_90a,code=sm_90a", "arch=compute_80,code=[sm_80,compute_80]")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Whatever goes wrong inside is left out."""
    with contextlib.suppress(Exception):
        yield


class Lines:
    """A process, the lines that it prints, and an end that comes in time."""

    def __init__(self, command: list[str]) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, cwd=ROOT, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        self.seen: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.put(line)
        self.seen.put(None)

    def next(self, timeout: float) -> str | None:
        """The next line, or None at the end. Raises queue.Empty when none comes in time."""
        return self.seen.get(timeout=max(timeout, 0.0))

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def close(self) -> str:
        """Ends the process; the last line of its errors."""
        self.process.kill()
        self.process.wait()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read()[-4000:].splitlines() if line.strip()]
        self.errors.close()
        return lines[-1] if lines else f"exit {self.process.returncode}"


def build(report: Any, size: str, only: set[str] | None) -> None:
    """The CUDA library, into the installed package."""
    with contextlib.suppress(BackendError):
        return report.keep("build", state="ok", told=f"found {library.find().name}")
    nvcc = shutil.which("nvcc")
    if size == "dry" or nvcc is None:
        why = "a dry run" if nvcc else "nvcc is not on PATH, so backend cuda is left out"
        return report.keep("build", state="absent", why=why)
    sources = sorted(str(p) for p in (ROOT / "kernels").glob("*/*.cu"))
    out = str(Path(headrace.__path__[0]) / library.NAME)
    options = ["-std=c++17", "-O3", "-lineinfo", "-shared", "-cudart", "static", "-t", "0"]
    options += ["-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{ROOT}"]
    options += [f"-gencode={target}" for target in TARGETS]
    start = time.monotonic()
    done = subprocess.run([nvcc, *options, *sources, "-o", out], capture_output=True, text=True)
    if done.returncode:
        return report.keep("build", state="failed", why=done.stderr[-500:])
    return report.keep("build", state="ok", told=f"built in {time.monotonic() - start:.0f} s")


def tests(report: Any, size: str, only: set[str] | None) -> None:
    """tests/gpu, a file at a time. After a failure, a crash or a hang the rest of the file runs in
    a process of its own, since the device's context may be gone."""
    for path in sorted((ROOT / "tests/gpu").glob("test_*.py")):
        unit = f"tests {path.stem}"
        if report.done(unit):
            continue
        seen: dict[str, str] = report.data["units"].get(unit, {}).get("tests", {})
        state, why = "unfinished", "the budget was spent"
        while report.left > LEAST:
            ended, why = _some_tests(report, path, seen)
            if ended:
                bad = [name for name, outcome in seen.items() if outcome != "PASSED"]
                skipped = [name for name in bad if seen[name] == "SKIPPED"]
                state = "failed" if len(bad) > len(skipped) else "ok" if seen else "absent"
                why = why if not seen else ""
                break
        counts = {o: list(seen.values()).count(o) for o in sorted(set(seen.values()))}
        told = ", ".join(f"{n} {outcome.lower()}" for outcome, n in counts.items())
        report.keep(unit, state=state, why=why, told=told, tests=seen)


def _some_tests(report: Any, path: Path, seen: dict[str, str]) -> tuple[bool, str]:
    """Runs what is not in `seen` until the first that does not pass; whether all have run."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "arguments"  # pytest reads them from a file: there are many
        skip = [f"--deselect={name}" for name in seen]
        listed.write_text("\n".join([str(path), *skip]))
        command = [sys.executable, "-m", "pytest", "-v", "-x", "-rs", "--tb=line", f"@{listed}"]
        run = Lines([*command, "-p", "no:cacheprovider", "--no-header", "--color=no"])
        last, ended, reason = "", False, ""
        try:
            while report.left > LEAST:
                line = run.next(min(A_TEST, report.left - LEAST))
                if line is None:
                    ended = run.process.wait() in (0, 5)
                    break
                if found := re.match(r"(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", line):
                    seen[found[1]] = found[2]
                    last = ""
                elif found := re.match(r"(\S+::\S+)", line):
                    last = found[1]
                elif line.startswith("SKIPPED"):
                    reason = line.strip()
            if last:  # it was running when the process died
                seen[last] = "CRASHED"
        except queue.Empty:
            if report.left > LEAST:
                seen[last or "?"] = "HUNG"
        finally:
            error = run.close()
    return ended, reason or error


def bench(report: Any, size: str, only: set[str] | None) -> None:
    """Every job, in order of value."""
    left = [
        job for job in jobs(size)
        if not report.done(f"bench {job.name}") and (only is None or job.op in only)
    ]  # fmt: skip
    worker: Lines | None = None
    for job in left:
        unit = f"bench {job.name}"
        if report.left < LEAST + 10:
            break
        if worker is None:
            given = [json.dumps(report.data["floors"])] if report.data["floors"] else []
            worker = Lines([sys.executable, "-m", "bench.gpu.worker", size, *given])
            told = _answer(worker, report)
            if told is None:
                report.keep("bench", state="failed", why=worker.close())
                return
            report.data["floors"] = told["floors"]
        worker.tell(job.name)
        told = _answer(worker, report)
        if told is None:
            spent = report.left < LEAST
            why = worker.close()
            report.keep(unit, state="unfinished" if spent else "failed", why=why, rows=[])
            worker = None
            continue
        wrong = [row for row in told["rows"] if not all(row["correct"].values())]
        best = [_told(row) for row in told["rows"]]
        state = "failed" if wrong else "ok"
        report.keep(unit, state=state, told="; ".join(best), rows=told["rows"])
    if worker is not None:
        worker.close()


def _answer(worker: Lines, report: Any) -> dict[str, Any] | None:
    """The next line of JSON, or None when the worker is gone, hangs or has no time left."""
    end = min(A_JOB, report.left - LEAST) + time.monotonic()
    with contextlib.suppress(queue.Empty):
        while (line := worker.next(end - time.monotonic())) is not None:
            if line.startswith("{"):
                return json.loads(line)
    return None


def _told(row: dict[str, Any]) -> str:
    times = (f"{name} {t:.1f} us" for name, t in row["us"].items() if isinstance(t, float))
    return f"{', '.join(times)}, floor {row['floor_us']:.1f} us"


def sanitize(report: Any, size: str, only: set[str] | None) -> None:
    """compute-sanitizer over the CUDA C++ kernels at the small shapes of tests/gpu."""
    found = shutil.which("compute-sanitizer")
    if size == "dry" or found is None:
        why = "a dry run" if size == "dry" else "compute-sanitizer is not on PATH"
        return report.keep("sanitize", state="absent", why=why)
    for tool in TOOLS:
        unit = f"sanitize {tool}"
        if report.done(unit):
            continue
        if report.left < LEAST + 30:
            break
        command = [found, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "pytest"]
        command += ["-q", "-x", "tests/gpu", "-k", "cuda and not many and not replay"]
        try:
            done = subprocess.run(
                [*command, "--replays", "3"],
                capture_output=True, text=True, cwd=ROOT, timeout=report.left - LEAST,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            report.keep(unit, state="unfinished", why="the budget was spent")
            continue
        lines = [line for line in done.stdout.splitlines() if line.startswith("=========")]
        told = (lines or done.stdout.splitlines() or ["no output"])[-1].strip("= ")
        state = "ok" if done.returncode == 0 else "failed"
        report.keep(unit, state=state, told=told, lines=lines[:40])
    return None


def tune(report: Any, size: str, only: set[str] | None) -> None:
    """Every candidate of the Triton kernels that have some; the best go to OUT/tuned.json."""
    best: dict[str, dict[str, Any]] = {}
    worker: Lines | None = None
    for kernel in CASES:
        unit, times, keys = f"tune {kernel}", {}, []
        if report.done(unit):
            continue
        for number, choice in enumerate(choices(kernel, size)):
            if report.left < LEAST + 10:
                break
            if worker is None:
                given = json.dumps(report.data["floors"] or {"copy_bytes_per_s": 1.0})
                worker = Lines([sys.executable, "-m", "bench.gpu.worker", size, given])
                if _answer(worker, report) is None:
                    return report.keep("tune", state="failed", why=worker.close())
            worker.tell(f"tune {kernel} {number}")
            told = _answer(worker, report)
            if told is None:  # a candidate that hangs or crashes is not the best
                worker.close()
                worker = None
                continue
            keys += [told["key"]] if told["key"] else []
            if told["correct"] and isinstance(told["us"], float):
                times[json.dumps(choice)] = told["us"]
        else:
            fastest = min(times, key=times.__getitem__, default="null")
            default = times.get("null")
            if fastest != "null" and keys and (default is None or times[fastest] < GAIN * default):
                best[kernel] = {keys[0]: json.loads(fastest)}
            told = f"default {default}, best {times.get(fastest)} us with {fastest}"
            report.keep(unit, state="ok" if times else "failed", told=told, times=times, best=best)
            continue
        report.keep(unit, state="unfinished", why="the budget was spent", times=times)
    if worker is not None:
        worker.close()
    if best:
        (report.out / "tuned.json").write_text(json.dumps(best, indent=1) + "\n")
    return None


def resources(report: Any, size: str, only: set[str] | None) -> None:
    """Registers, shared memory and spills of every kernel, as the compilers report them."""
    from .resources import cuda_kernels, triton_kernels

    for unit, look in (("resources cuda", cuda_kernels), ("resources triton", triton_kernels)):
        if report.done(unit):
            continue
        try:
            found = look(lambda: report.left - LEAST)
        except TimeoutError:
            report.keep(unit, state="unfinished", why="the budget was spent")
            continue
        except RuntimeError as error:
            report.keep(unit, state="absent", why=str(error))
            continue
        spilling = sorted({k["kernel"] for k in found if k["spills"]})
        told = f"{len(found)} compiled, spilling: {', '.join(spilling) or 'none'}"
        report.keep(unit, state="ok", told=told, kernels=found)


RUN: dict[str, Callable[[Any, str, set[str] | None], None]] = {
    "build": build,
    "tests": tests,
    "bench": bench,
    "sanitize": sanitize,
    "tune": tune,
    "resources": resources,
}
