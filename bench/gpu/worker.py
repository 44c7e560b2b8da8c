# SPDX-License-Identifier: Apache-2.0
"""Times the jobs whose names come on its input, a line of JSON for each, in a process of its own:
one that a kernel takes down with it takes nothing else. `tune KERNEL NUMBER` times a candidate.

    python -m bench.gpu.worker SIZE [FLOORS]      FLOORS: JSON of an earlier run's
    python -m bench.gpu.worker SIZE warm WHAT     calls each once and times nothing, so that all is
                                                  compiled: jobs of WHAT, ops separated by commas
                                                  (all where empty), or `tune KERNEL I N`, every
                                                  N-th candidate from the I-th
"""

from __future__ import annotations

import contextlib
import json
import sys

import torch

from . import tune
from .jobs import jobs
from .measure import Bench


def warm(size: str, what: str) -> None:
    """Compiles what these jobs, or these candidates, would."""
    bench = Bench(dry=size == "dry", warm=True)
    bench.floors = {"copy_bytes_per_s": 1.0, "matrix_flops_per_s": 1.0, "read_bytes_per_s": 1.0}
    if what.startswith("tune "):
        _, kernel, first, step = what.split()
        for choice in tune.choices(kernel, size)[int(first) :: int(step)]:
            with contextlib.suppress(Exception):  # one that cannot run is found out when timed
                tune.timed(bench, kernel, choice)
        return
    for job in jobs(size):
        if not what or job.op in what.split(","):
            with contextlib.suppress(Exception):
                job.run(bench)


def main() -> None:
    torch.manual_seed(0)
    size, more = sys.argv[1], sys.argv[2:]
    if more[:1] == ["warm"]:
        return warm(size, more[1] if more[1:] else "")
    floors = json.loads(more[0]) if more else {}
    known = {job.name: job for job in jobs(size)}
    bench = Bench(dry=size == "dry")
    bench.floors = floors
    if not floors:
        bench.measure_floors()
    print(json.dumps({"floors": bench.floors}), flush=True)
    for line in sys.stdin:
        name, before = line.strip(), len(bench.rows)
        if name.startswith("tune "):
            _, kernel, number = name.split()
            told = tune.timed(bench, kernel, tune.choices(kernel, size)[int(number)])
            print(json.dumps(told), flush=True)
            continue
        known[name].run(bench)
        print(json.dumps({"job": name, "rows": bench.rows[before:]}), flush=True)


if __name__ == "__main__":
    main()
