# SPDX-License-Identifier: Apache-2.0
"""tests/gpu as a stage of scripts/gpu_check.py: all cores first, since compiling takes most of the
time; then what did not end well, each file in a process of its own. And the same under
compute-sanitizer."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import queue
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .processes import ROOT, Lines, Task, cores, shared

TESTS = ROOT / "tests/gpu"
LEAST = 5.0  # seconds under which nothing is begun
A_TEST = 120.0  # seconds after which one counts as hanging
A_TOOL = 30.0  # seconds under which no sanitizer is begun
AT_ONCE = 12  # processes that share the device
PYTEST = ("-m", "pytest", "-p", "bench.gpu.told", "-p", "no:cacheprovider", "-q", "--tb=short")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Every tensor of its own allocation, so that a step beyond one is seen; no graphs then.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
WRAPS = "through_wraps"
REPLAYS = 100_000
ROUNDS = ([(tool, "cuda") for tool in TOOLS], [("memcheck", "triton or not cuda")])
SMALL = "not many and not replay and not graph and not real"


class Suite:
    """What is known of each test: outcome and, of those that did not pass, why."""

    def __init__(self, report: Any, files: list[Path]) -> None:
        self.report, self.files, self.written = report, files, time.monotonic()
        self.seen: dict[str, dict[str, str]] = {}
        self.why: dict[str, dict[str, str]] = {}
        self.complete: set[str] = set()
        for path in files:
            unit = report.data["units"].get(self.unit(path), {})
            self.seen[path.stem], self.why[path.stem] = unit.get("tests", {}), unit.get("wrong", {})

    @staticmethod
    def unit(path: Path) -> str:
        return f"tests {path.stem}"

    def note(self, test: str, outcome: str, why: str = "") -> None:
        stem = Path(test.split("::")[0]).stem
        if stem not in self.seen:
            return
        if self.seen[stem].get(test) not in (None, "PASSED"):  # a crash after it had failed
            why = self.why[stem].get(test, "") or why
        self.seen[stem][test] = outcome
        if why:
            self.why[stem][test] = why
        if time.monotonic() > self.written + 5:
            for path in self.files:
                if self.seen[path.stem] and not self.report.done(self.unit(path)):
                    self.keep(path, quietly=True)
            self.written = time.monotonic()

    def keep(self, path: Path, quietly: bool = False) -> None:
        seen, why = self.seen[path.stem], self.why[path.stem]
        if path.stem in self.complete:
            bad = set(seen.values()) - {"PASSED", "SKIPPED"}
            state = "failed" if bad else "ok" if "PASSED" in seen.values() else "absent"
        else:
            state = "unfinished"
        counts = {o: list(seen.values()).count(o) for o in sorted(set(seen.values()))}
        told = ", ".join(f"{n} {outcome.lower()}" for outcome, n in counts.items())
        reason = "" if told and state != "absent" else next(iter(why.values()), "")
        self.report.keep(
            self.unit(path), quietly, state=state, why=reason, told=told, tests=seen, wrong=why
        )

    def run(self, paths: list[Path], processes: int) -> bool:
        """Runs what is not known of these files; whether pytest came to its end. What was running
        when it did not is marked, if it was alone."""
        with _arguments(paths, self.seen) as listed:
            command = [sys.executable, *PYTEST, f"@{listed}"]
            command += ["-n", str(processes), "--maxprocesses", str(processes)] * (processes > 1)
            lines = Lines(command, shared(processes), told=True)
            running: list[str] = []
            begun, ended, last = 0, None, "CRASHED"
            try:
                while self.report.left > LEAST and ended is None:
                    line = lines.next(min(A_TEST, self.report.left - LEAST))
                    if line is None:
                        break
                    told = json.loads(line)
                    ended = told.get("ended")
                    if "began" in told:
                        running.append(told["began"])
                        begun += 1
                    elif "test" in told:
                        self.note(told["test"], told["outcome"], told["why"])
                        running = [x for x in running if x != told["test"]]
            except queue.Empty:
                last = "HUNG"
            why = lines.close()
        if ended is not None:
            return ended in (0, 1, 5)
        if self.report.left > LEAST and processes == 1 and running:
            self.note(running[-1], last, why)
        elif self.report.left > LEAST and processes == 1 and not begun:
            self.note(f"{paths[0]}::", last, why)  # nothing of the file can run
        return False


@contextlib.contextmanager
def _arguments(paths: list[Path], seen: dict[str, dict[str, str]]) -> Iterator[Path]:
    """A file of arguments: there are more than a command line takes."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "arguments"
        known = [f"--deselect={test}" for path in paths for test in seen[path.stem]]
        listed.write_text("\n".join([*map(str, paths), *known]))
        yield listed


def tests(report: Any, size: str, only: set[str] | None) -> None:
    """Every file of tests/gpu. After a crash or a hang the rest of the file runs in a new process,
    since the device's context may be gone."""
    files = sorted(TESTS.glob("test_*.py"))
    left = [path for path in files if not report.done(Suite.unit(path))]
    suite = Suite(report, left)
    processes = min(AT_ONCE, cores() - 2)
    shared_out = processes > 1 and importlib.util.find_spec("xdist") is not None
    if left and shared_out and report.left > LEAST and suite.run(left, processes):
        suite.complete = {path.stem for path in left}
    for path in left:
        if path.stem in suite.complete:
            continue
        while report.left > LEAST:
            known = len(suite.seen[path.stem])
            if suite.run([path], 1) or len(suite.seen[path.stem]) == known:
                suite.complete.add(path.stem)
                break
    for path in left:
        suite.keep(path)


def sanitize(report: Any, size: str, only: set[str] | None) -> None:
    """compute-sanitizer over the tests of small shapes: each tool over the CUDA C++ kernels, all at
    once; then memcheck over the Triton kernels."""
    found = shutil.which("compute-sanitizer")
    if found is None:
        return report.keep("sanitize", state="absent", why="compute-sanitizer is not on PATH")
    for together in ROUNDS:
        units = {what: _unit(what) for what in together}
        left = {what: unit for what, unit in units.items() if not report.done(unit)}
        if not left or report.left < LEAST + A_TOOL:
            continue
        env = UNCACHED | shared(len(left))
        tasks = {what: Task(_sanitized(found, *what), env) for what in left}
        for what, unit in left.items():
            status, text = tasks[what].end(report.left - LEAST)
            lines = [line for line in text.splitlines() if line.startswith("=========")]
            last = (lines or text.strip().splitlines() or ["no output"])[-1].strip("= ")
            if status is None:
                report.keep(unit, state="unfinished", why="the budget was spent", lines=lines[:40])
            else:
                passed = [line for line in text.splitlines() if " passed" in line][-1:]
                told = "; ".join([last, *passed])
                state = "ok" if status == 0 and passed else "failed"
                report.keep(unit, state=state, told=told, lines=lines[:40])
    return None


def _unit(what: tuple[str, str]) -> str:
    return f"sanitize {what[0]} {what[1].split()[0]}"


def sanitize_units() -> list[str]:
    """What there is to sanitize; one that says why there is no tool stands for all."""
    found = shutil.which("compute-sanitizer")
    return ["sanitize"] if found is None else [_unit(x) for each in ROUNDS for x in each]


def replays(report: Any, size: str, only: set[str] | None) -> None:
    """Graphs that run through wraps of their ring, as often as is claimed: each test in a process
    of its own, since the host is what takes the time."""
    if report.done("replays") or report.left < LEAST + A_TOOL / 2:
        return
    count = 20 if size == "dry" else REPLAYS
    base = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--tb=short"]
    status, text = Task([*base, "--co", str(TESTS), "-k", WRAPS]).end(report.left - LEAST)
    split = (line.split("::", 1) for line in text.splitlines() if "::" in line)
    names = [f"{TESTS / Path(file).name}::{test}" for file, test in split]
    if status not in (0, 5) or not names:
        lines = text.strip().splitlines() or ["nothing printed"]
        why = next((line for line in lines if line.startswith("SKIPPED")), lines[-1])
        return report.keep("replays", state="failed" if status == 1 else "absent", why=why)
    env = shared(len(names))
    tasks = {name: Task([*base, name, "--replays", str(count)], env) for name in names}
    seen, told = {}, {}
    for name, task in tasks.items():
        status, text = task.end(report.left - LEAST)
        name = name.rsplit("/", 1)[-1]
        seen[name] = {None: "UNFINISHED", 0: "PASSED"}.get(status, "FAILED")
        if "skipped" in text and "passed" not in text:
            seen[name] = "SKIPPED"
        told[name] = (text.strip().splitlines() or ["nothing printed"])[-1]
    bad = {name: told[name] for name, outcome in seen.items() if outcome == "FAILED"}
    ends = set(seen.values())
    state = ("failed" if bad else "unfinished" if "UNFINISHED" in ends
             else "ok" if "PASSED" in ends else "absent")  # fmt: skip
    passed = list(seen.values()).count("PASSED")
    return report.keep("replays", state=state, told=f"{passed} of {len(seen)} graphs, {count} each",
                       tests=seen, wrong=bad, count=count)  # fmt: skip


def _sanitized(tool: str, which: str, backend: str) -> list[str]:
    command = [tool, "--tool", which, "--error-exitcode", "9"]
    command += [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=short"]
    return [*command, str(TESTS), "-k", f"({backend}) and {SMALL}", "--replays", "3"]
