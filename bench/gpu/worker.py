# SPDX-License-Identifier: Apache-2.0
"""Times the jobs whose names come on its input, a line of JSON for each, in a process of its own:
one that a kernel takes down with it takes nothing else. `tune KERNEL NUMBER` times a candidate.

    python -m bench.gpu.worker SIZE [FLOORS]      FLOORS: JSON of an earlier run's
"""

from __future__ import annotations

import json
import sys

import torch

from . import tune
from .jobs import jobs
from .measure import Bench


def main() -> None:
    size, floors = sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    known = {job.name: job for job in jobs(size)}
    torch.manual_seed(0)
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
