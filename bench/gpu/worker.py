# SPDX-License-Identifier: Apache-2.0
"""Times the jobs whose names come on its input, a line of JSON for each, in a process of its own:
one that a kernel takes down with it takes nothing else. `tune NAME NUMBER` times a candidate
of a case.

    python -m bench.gpu.worker SIZE [FLOORS]      FLOORS: JSON of an earlier run's
    python -m bench.gpu.worker SIZE warm WHAT     calls each once and times nothing, so that all is
                                                  compiled: jobs of WHAT, ops separated by commas
                                                  (all where empty), or `tune NAME I N`, every
                                                  N-th candidate of a case from the I-th
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
    if what.startswith("tune "):
        name, first, step = what.removeprefix("tune ").rsplit(" ", 2)
        for choice in tune.choices(tune.kernel_of(name), size)[int(first) :: int(step)]:
            with contextlib.suppress(Exception):  # one that cannot run is found out when timed
                tune.timed(bench, name, choice)
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
    bench.rates.all()
    print(json.dumps({"floors": bench.floors}), flush=True)
    for line in sys.stdin:
        name, before = line.strip(), len(bench.rows)
        if name.startswith("tune "):
            case, number = name.removeprefix("tune ").rsplit(" ", 1)
            choice = tune.choices(tune.kernel_of(case), size)[int(number)]
            told = tune.timed(bench, case, choice)
            print(json.dumps(told), flush=True)
            continue
        known[name].run(bench)
        told = {"job": name, "rows": bench.rows[before:], "floors": bench.floors}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
