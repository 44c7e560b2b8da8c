# SPDX-License-Identifier: Apache-2.0
"""The stages of scripts/gpu_check.py. Each goes through its units, leaves out those that are done,
begins none that the budget has no time for, and keeps what it saw of each."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from headrace.kernels.common import cuda as library
from headrace.kernels.common import tuned

import headrace
from headrace.errors import BackendError

from .jobs import jobs
from .processes import ROOT, Lines, Task, cores, shared, worker
from .suite import AT_ONCE, LEAST, replays, sanitize, sanitize_units, tests
from .tune import GAIN, cases, choices, kernel_of

A_JOB = 90.0  # seconds after which one counts as hanging
TARGETS = ("arch=compute_80,code=[sm_80,sm_90a,compute_80]",)  # one PTX serves all


def target() -> tuple[str, ...]:
    """What nvcc builds for: the card that is here, which takes a fraction of the time of all."""
    if not torch.cuda.is_available():
        return TARGETS
    major, minor = torch.cuda.get_device_capability()
    arch = f"{major}{minor}{'a' if major == 9 else ''}"
    return (f"arch=compute_{arch},code=sm_{arch}",)


def build(report: Any, size: str, only: set[str] | None) -> None:
    """The CUDA library, into the installed package, where its own build did not make one."""
    with contextlib.suppress(BackendError):
        return report.keep("build", state="ok", told=f"found {library.find().name}")
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        why = "nvcc is not on PATH, so backend cuda is left out"
        return report.keep("build", state="absent", why=why)
    sources = sorted(str(p) for p in (ROOT / "kernels").glob("*/*.cu"))
    made = Path(headrace.__path__[0]) / library.NAME
    part = made.with_suffix(".part")  # nothing half written under the name that is loaded
    options = ["-std=c++17", "-O3", "-lineinfo", "-shared", "-cudart", "static", "-t", "0"]
    options += ["-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{ROOT}"]
    options += [f"-gencode={each}" for each in target()]
    start = time.monotonic()
    status, text = Task([nvcc, *options, *sources, "-o", str(part)]).end(report.left - LEAST)
    if status is None:
        return report.keep("build", state="unfinished", why="the budget was spent")
    if status:
        return report.keep("build", state="failed", why=text[-500:])
    part.replace(made)
    return report.keep("build", state="ok", told=f"built in {time.monotonic() - start:.0f} s")


class Workers:
    """The process that times, started anew when a kernel has taken it down."""

    def __init__(self, report: Any, size: str) -> None:
        self.report, self.size = report, size
        self.lines: Lines | None = None
        self.why = ""

    def ask(self, line: str) -> dict[str, Any] | None:
        """What it answers; None, with `why`, where there is no answer."""
        if self.lines is None:
            floors = self.report.data["floors"]
            self.lines = Lines(worker(self.size, *([json.dumps(floors)] if floors else [])))
            told = self._answer()
            if told is None:
                return None
            self.report.data["floors"] = told["floors"]
        self.lines.tell(line)
        return self._answer()

    def _answer(self) -> dict[str, Any] | None:
        assert self.lines is not None
        end = min(A_JOB, self.report.left - LEAST) + time.monotonic()
        self.why = ""
        try:
            while (line := self.lines.next(end - time.monotonic())) is not None:
                if line.startswith("{"):
                    return json.loads(line)
        except queue.Empty:
            spent = self.report.left < LEAST + 1
            self.why = "the budget was spent" if spent else f"no answer in {A_JOB:.0f} s"
        self.why = self.why or self.lines.close()
        self.close()
        return None

    def close(self) -> None:
        if self.lines is not None:
            with contextlib.suppress(ValueError):  # closed before
                self.lines.close()
            self.lines = None


def bench(report: Any, size: str, only: set[str] | None) -> None:
    """Every job, in order of value."""
    left = [
        job for job in jobs(size)
        if not report.done(f"bench {job.name}") and (only is None or job.op in only)
    ]  # fmt: skip
    workers, lost = Workers(report, size), 0
    for job in left:
        unit = f"bench {job.name}"
        if report.left < LEAST + 10:
            break
        told = workers.ask(job.name)
        if told is None:
            spent = report.left < LEAST + 1
            state = "unfinished" if spent else "failed"
            report.keep(unit, state=state, why=workers.why, rows=[])
            lost += 1
            if lost == 3 and not report.data["floors"]:  # nothing can be timed here
                break
            continue
        report.data["floors"] = told["floors"]
        wrong = [row for row in told["rows"] if not all(row["correct"].values())]
        best = [_told(row) for row in told["rows"]]
        state = "failed" if wrong else "ok"
        report.keep(unit, state=state, told="; ".join(best), rows=told["rows"])
    workers.close()


def _told(row: dict[str, Any]) -> str:
    times = (f"{name} {t:.1f} us" for name, t in row["us"].items() if isinstance(t, float))
    return f"{', '.join(times)}, floor {row['floor_us']:.1f} us"


def tune(report: Any, size: str, only: set[str] | None) -> None:
    """Every candidate of the Triton kernels that have some, for one key after the other; the best
    go to OUT/<device>.json, which is the table to ship, as kernels/common/tuned/<device>.json."""
    workers = Workers(report, size)
    for name in cases(size == "dry"):
        if report.done(f"tune {name}"):
            continue
        if report.left < LEAST + 10:
            break
        _compiled_ahead(report, size, name)
        _tuned(report, workers, size, name)
    workers.close()
    _table(report)


def _compiled_ahead(report: Any, size: str, name: str) -> None:
    """All candidates of a case are compiled by all cores, then timed one by one."""
    processes = min(AT_ONCE, cores() - 2)
    if size == "dry" or processes < 2:
        return
    more = shared(processes)
    shares = [Task(worker(size, "warm", f"tune {name} {i} {processes}"), more)
              for i in range(processes)]  # fmt: skip
    end = time.monotonic() + (report.left - LEAST) / 2
    for task in shares:
        task.end(end - time.monotonic())


def _tuned(report: Any, workers: Workers, size: str, name: str) -> None:
    """Times the candidates of one case, and keeps the best, where it beats the default."""
    times: dict[str, float] = {}
    keys: set[str] = set()
    lost: dict[str, str] = {}
    for number, choice in enumerate(choices(kernel_of(name), size)):
        if report.left < LEAST + 2:
            why = "the budget was spent"
            return report.keep(f"tune {name}", state="unfinished", why=why, times=times)
        told = workers.ask(f"tune {name} {number}")
        if told is None:  # a candidate that hangs or crashes is not the best
            lost[json.dumps(choice)] = workers.why
            continue
        keys |= {told["key"]} - {""}
        if told["correct"] and isinstance(told["us"], float):
            times[json.dumps(choice)] = told["us"]
    fastest = min(times, key=times.__getitem__, default="null")
    default, best = times.get("null"), {}
    # Where the default cannot run there is no time of it; where it was lost, nothing is known.
    better = default is None or times[fastest] < GAIN * default
    if better and fastest != "null" and len(keys) == 1 and "null" not in lost:
        best = {keys.pop(): json.loads(fastest)}
    told = f"default {default}, best {times.get(fastest)} us with {fastest}"
    state = "ok" if times else "failed"
    return report.keep(f"tune {name}", state=state, told=told, times=times, best=best, lost=lost)


def _table(report: Any) -> None:
    """The device's table: what is shipped for it, and over that what this run and those that it
    resumes have found."""
    device = report.data["device"]
    found = {k: dict(v) for k, v in tuned.table(device).items()}
    for name, unit in report.data["units"].items():
        if name.startswith("tune ") and unit.get("best"):
            kernel = kernel_of(name.removeprefix("tune "))
            found[kernel] = found.get(kernel, {}) | unit["best"]
    if found:
        text = json.dumps(found, indent=1, sort_keys=True) + "\n"
        (report.out / tuned.file_name(device)).write_text(text)


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


def warm(size: str, only: set[str] | None) -> Task:
    """What the benchmarks compile, compiled in the background."""
    return Task(worker(size, "warm", ",".join(sorted(only)) if only else ""), shared(4))


RUN: dict[str, Callable[[Any, str, set[str] | None], None]] = {
    "build": build,
    "tests": tests,
    "bench": bench,
    "replays": replays,
    "sanitize": sanitize,
    "tune": tune,
    "resources": resources,
}


def left(stage: str, report: Any, size: str) -> bool:
    """Whether a stage has anything left to do, for which time is to be kept."""
    units: dict[str, Callable[[], list[str]]] = {
        "bench": lambda: [f"bench {job.name}" for job in jobs(size)],
        "replays": lambda: ["replays"],
        "sanitize": sanitize_units,
        "tune": lambda: [f"tune {name}" for name in cases(size == "dry")],
    }
    return stage not in units or not all(map(report.done, units[stage]()))
