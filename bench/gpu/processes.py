# SPDX-License-Identifier: Apache-2.0
"""Processes that end in time, with all that they have started."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOLD = "HEADRACE_TOLD"  # names the descriptor on which `told.py` writes


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared(processes: int) -> dict[str, str]:
    """Variables under which so many processes share the processors."""
    return {"OMP_NUM_THREADS": str(max(1, cores() // max(processes, 1)))}


def stop(process: subprocess.Popen[Any]) -> None:
    """Ends a process that leads a group of its own, and the group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Lines:
    """A process, the lines that it tells, and an end that comes in time.

    told: lines come on a pipe of their own, whose descriptor the process finds in `TOLD`; otherwise
    from what it prints.
    """

    def __init__(
        self, command: list[str], env: Mapping[str, str] | None = None, told: bool = False
    ) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        more, pipe = dict(env or {}), ()
        if told:
            ours, theirs = os.pipe()
            more, pipe = more | {TOLD: str(theirs)}, (theirs,)
        self.process = subprocess.Popen(
            command, cwd=ROOT, text=True, bufsize=1, env={**os.environ, **more}, pass_fds=pipe,
            start_new_session=True, stdin=subprocess.PIPE,
            stdout=self.errors if told else subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        if told:
            os.close(theirs)
        self.source = os.fdopen(ours) if told else self.process.stdout
        self.seen: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.source is not None
        for line in self.source:
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
        """Ends the process; its status and the last line that it printed."""
        stop(self.process)
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read()[-4000:].splitlines() if line.strip()]
        self.errors.close()
        return f"exit {self.process.returncode}: {lines[-1] if lines else 'nothing printed'}"


class Task:
    """A command in the background, what it prints, and an end that comes in time."""

    def __init__(self, command: list[str], env: Mapping[str, str] | None = None) -> None:
        self.out = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, cwd=ROOT, text=True, env={**os.environ, **(env or {})},
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.out,
        )  # fmt: skip

    def end(self, seconds: float) -> tuple[int | None, str]:
        """The exit status, None when it had to be stopped; and what it printed."""
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.process.wait(max(seconds, 0.0))
        stop(self.process)
        self.out.seek(0)
        text = self.out.read()
        self.out.close()
        return status, text


def worker(size: str, *more: str) -> list[str]:
    """The command of `worker.py`."""
    return [sys.executable, "-m", "bench.gpu.worker", size, *more]
