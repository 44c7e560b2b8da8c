# SPDX-License-Identifier: Apache-2.0
"""Takes figures on this machine, and writes the pages that show them.

    python tools/record.py [NAME ...] [--budget SECONDS] [--list]
    python tools/record.py --stale

NAME    an op, `quick` (the small shapes of all ops), or the file of bench/results without .json:
        loop-rings, scale-length, archive, soak, ... `--list` tells them all, with their commands
        and about how long each takes; ops, loops, scaling, streams, scripts and all are many

Without names it takes every op and `quick`, with --stale those whose sources have changed since
they were taken here. Each runs in a process of its own. Files are kept under build/records/<commit>
until all that were named are there, so that a run that was stopped goes on where it was; then they
go to bench/results/<machine>, the folder of this machine or a new one, and tools/results.py writes
the pages. A command that fails, finds a wrong result or times a side of a shape by fewer calls than
a median needs leaves no file, and then nothing goes anywhere. Nothing is taken from files that
differ from the commit: nobody could take it again. To what a command writes come the seconds that
it took, all in all, and digests of the sources that it rests on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machines
import results
import sources
from jobs import CALLS, Job, chosen, file_of, groups

from headrace.cli import report

HEADRACE = "import sys; sys.argv[0] = 'headrace'; from headrace.cli import main; sys.exit(main())"


def program(words: Sequence[str]) -> list[str]:
    """What runs the words of a job, wherever that is."""
    if words[0] == "headrace":
        return [sys.executable, "-c", HEADRACE, *words[1:]]
    if words[0] == "python":
        return [sys.executable, *words[1:]]
    return [sys.executable, str(results.ROOT / words[0]), *words[1:]]


def run(job: Job, path: Path) -> bool:
    """Makes the file; whether all went well."""
    told = subprocess.run(
        program(job.words), cwd=path.parent, check=False, text=True,
        stdout=subprocess.PIPE if job.printed else None,
        env={**os.environ, "PYTHONPATH": str(results.ROOT)} if job.printed else None,
    )  # fmt: skip
    if told.returncode == 0 and job.printed:
        _keep(job, told.stdout, path)
    return told.returncode == 0


def _keep(job: Job, printed: str, path: Path) -> None:
    """What a command printed, as a record: a line of JSON, or several as a list."""
    lines = [json.loads(line) for line in printed.splitlines()]
    made: dict[str, Any] = report.taken() | {"command": list(job.words)}
    report.write(made | {job.printed: lines[0] if len(lines) == 1 else lines}, path)


def thin(record: dict[str, Any]) -> list[str]:
    """The shapes of a bench that have a side with too few calls; of one without peers beside it,
    those of a single call, whose quartiles are the same."""
    return [
        f"{row['op']} {row['shape']}"
        for row in record.get("rows", ())
        if isinstance(row, dict) and "op" in row and _is_thin(row)
    ]


def _is_thin(row: dict[str, Any]) -> bool:
    if row.get("beside"):
        return any(one["calls"] and min(one["calls"]) < CALLS for one in row["beside"])
    low, high = row.get("half") or (0, 1)
    return bool(low == high)


def machine_folder() -> Path:
    """Where the figures of this machine are: the folder whose files say so, else a new one."""
    here = report.machine()
    known = results.ROOT / "bench/results"
    return _known_folder(here) or machines.new_folder(known, here)


def _known_folder(here: dict[str, Any]) -> Path | None:
    known = results.ROOT / "bench/results"
    for folder in sorted(path for path in known.iterdir() if path.is_dir()):
        if machines.same(machines.host_of(machines.load(folder)), here):
            return folder
    return None


def stale() -> list[str]:
    """The jobs of those records of this machine whose sources have changed since."""
    folder = _known_folder(report.machine())
    one = machines.Machine("", machines.load(folder), "") if folder else None
    found = results.stale(one) if one else {}
    return [name.removesuffix(".json").removeprefix("bench-") for name in found]


def take(wanted: dict[str, Job], folder: Path) -> list[str]:
    """Fills the folder with the files that it lacks; those whose command failed."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for i, (name, job) in enumerate(wanted.items(), 1):
        path = folder / file_of(name)
        if path.exists():
            print(f"[{i}/{len(wanted)}] {name}: there already", flush=True)
            continue
        print(f"[{i}/{len(wanted)}] {name}: about {job.minutes:g} min", flush=True)
        began = time.perf_counter()
        if not _taken(name, job, path):
            path.unlink(missing_ok=True)
            failed.append(name)
        print(f"[{i}/{len(wanted)}] {name}: {time.perf_counter() - began:.0f} s", flush=True)
    return failed


def _taken(name: str, job: Job, path: Path) -> bool:
    """Whether the file is there, is enough, and says what it rests on."""
    began = time.perf_counter()
    if not run(job, path):
        return False
    seconds = time.perf_counter() - began
    made = json.loads(path.read_text("utf-8"))
    if few := thin(made):
        print(f"{name}: fewer than {CALLS} calls of a side of {', '.join(few)}", flush=True)
        return False
    made = {"wall_seconds": seconds} | made | {"sources": sources.digests(path.name)}
    report.write(made, path)
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Takes figures on this machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="see --list (default: every op)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="as for headrace bench")
    parser.add_argument("--list", action="store_true", help="every name, its minutes and command")
    parser.add_argument("--stale", action="store_true", help="ops whose sources have changed")
    args = parser.parse_args(arguments)
    if args.list:
        _list()
        return
    names = args.names or (stale() if args.stale else ["ops"])
    try:
        wanted = chosen(names, args.budget)
    except KeyError as unknown:
        sys.exit(f"record(NAME): expected one of --list, got {unknown.args[0]!r}")
    commit = report.commit()
    if commit is None or commit.endswith("+"):
        sys.exit(
            "record: expected a checkout without files that differ from its commit; commit first"
        )
    folder = results.ROOT / "build/records" / commit
    if failed := take(wanted, folder):
        sys.exit(f"record: {', '.join(failed)} failed; nothing was written")
    target = machine_folder()
    for name in wanted:
        shutil.copy(folder / file_of(name), target)
    results.main([])


def _list() -> None:
    for group, named in groups().items():
        print(f"{group}: about {sum(job.minutes for job in named.values()):g} min")
        for name, job in named.items():
            print(f"  {name:20} {job.minutes:4g} min  {' '.join(job.words)}")


if __name__ == "__main__":
    main()
