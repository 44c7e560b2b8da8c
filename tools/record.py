# SPDX-License-Identifier: Apache-2.0
"""Takes the figures of every op on this machine, and writes the pages that show them.

    python tools/record.py [OP | quick ...] [--budget SECONDS]

OP      headrace bench OP --peers --json bench-OP.json
quick   headrace bench --quick --json quick.json, the small shapes of all ops

Without names it takes them all, each in a process of its own. Files are kept under
build/records/<commit> until all that were named are there, so that a run that was stopped goes on
where it was; then they go to bench/results/<machine>, the folder of this machine or a new one,
and tools/results.py writes the pages. A command that fails, or finds a wrong result, leaves no
file, and then nothing goes anywhere. Nothing is taken from files that differ from the commit:
nobody could take it again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import machines
import results

from headrace import ops
from headrace.cli import report

QUICK = "quick"
HEADRACE = "import sys; sys.argv[0] = 'headrace'; from headrace.cli import main; sys.exit(main())"


def file_of(name: str) -> str:
    """Where the figures of an op, or those of the quick shapes, are kept."""
    return "quick.json" if name == QUICK else f"bench-{name}.json"


def command(name: str, budget: float | None) -> list[str]:
    """What takes them, without the program."""
    words = ["bench", "--quick"] if name == QUICK else ["bench", name, "--peers"]
    words += [] if budget is None else ["--budget", f"{budget:g}"]
    return [*words, "--json", file_of(name)]


def run(words: Sequence[str], folder: Path) -> bool:
    """Runs the command line there; whether all went well."""
    told = subprocess.run([sys.executable, "-c", HEADRACE, *words], cwd=folder, check=False)
    return told.returncode == 0


def machine_folder() -> Path:
    """Where the figures of this machine are: the folder whose files say so, else a new one."""
    here = report.machine()
    known = results.ROOT / "bench/results"
    for folder in sorted(path for path in known.iterdir() if path.is_dir()):
        if machines.same(machines.host_of(machines.load(folder)), here):
            return folder
    return machines.new_folder(known, here)


def take(names: Sequence[str], folder: Path, budget: float | None) -> list[str]:
    """Fills the folder with the files that it lacks; those whose command failed."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for i, name in enumerate(names, 1):
        path = folder / file_of(name)
        if path.exists():
            print(f"[{i}/{len(names)}] {name}: there already", flush=True)
            continue
        began = time.perf_counter()
        if not run(command(name, budget), folder):
            path.unlink(missing_ok=True)
            failed.append(name)
        print(f"[{i}/{len(names)}] {name}: {time.perf_counter() - began:.0f} s", flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Takes the figures of every op on this machine.")
    parser.add_argument("names", nargs="*", metavar="OP", help="ops, or quick (default: all)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="as for headrace bench")
    args = parser.parse_args(arguments)
    known = [*ops.specs(), QUICK]
    names = args.names or known
    if wrong := [name for name in names if name not in known]:
        sys.exit(f"record(OP): expected some of {', '.join(known)}, got {wrong[0]!r}")
    commit = report.commit()
    if commit is None or commit.endswith("+"):
        sys.exit(
            "record: expected a checkout without files that differ from its commit; commit first"
        )
    folder = results.ROOT / "build/records" / commit
    if failed := take(names, folder, args.budget):
        sys.exit(f"record: {', '.join(failed)} failed; nothing was written")
    target = machine_folder()
    for name in names:
        shutil.copy(folder / file_of(name), target)
    results.main([])


if __name__ == "__main__":
    main()
