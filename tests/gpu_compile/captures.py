# SPDX-License-Identifier: Apache-2.0
"""Every job of the script for a GPU as a captured graph, on a GPU that is pretended: a line of JSON
for each, {name, why}, where why is what a capture would not allow.

    python -m tests.gpu_compile.captures
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from bench.gpu.jobs import jobs
from bench.gpu.measure import Bench

from .pretend import Graph, capture, pytest_configure


class Captured(Bench):
    """Ours, once as they are and once in a capture; nothing is timed."""

    def recorded(self, calls: list[Callable[[], Any]]) -> Callable[[], float]:
        calls[0]()
        with capture(Graph()):
            calls[0]()
        return lambda: 0.0


def main() -> None:
    pytest_configure(None)
    for job in jobs("dry"):
        bench = Captured(dry=True, warm=True)
        bench.alone, bench.backends = True, ["triton"]
        torch.manual_seed(0)
        job.run(bench)
        (row,) = bench.rows
        why = [told for told in row["us"].values() if isinstance(told, str)]
        print(json.dumps({"name": job.name, "why": why}), flush=True)


if __name__ == "__main__":
    main()
