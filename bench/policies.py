# SPDX-License-Identifier: Apache-2.0
"""Policies compared on traces of the shapes that streaming workloads have.

    python bench/policies.py OUT.json [--seeds N] [--shapes NAME ...]

Each trace runs on the virtual clock, by the cost model of `headrace.presets.scheduling`, under
arrival order and earliest deadline first and under the policies made for its shape. The model costs
nothing, for what is compared is order and time; Prints a line
per trace and policy, means over the seeds: requests in time, share of events that missed their
deadline, p50 and p99 lag in seconds, the most pages held, tokens read, times that a stream gave its
pages up, and where it applies the share of turns that found their pages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from headrace import Sink, Window, wrap
from headrace.cli import report
from headrace.presets.saga import Recency
from headrace.presets.scheduling import COST, Costless, in_time, parkings
from headrace.streams import Server, Virtual, policies, traces
from headrace.streams.run import Run

# Shape: options of the trace, pages of the pool, tokens of a step, policies beside the baselines.
SHAPES: dict[str, tuple[dict[str, Any], int, int, list[policies.Policy]]] = {
    "multi_question": ({"videos": 36, "seconds": 5.0}, 2000, 8, [policies.JustInTime()]),
    "proactive": ({"videos": 40, "seconds": 5.0, "every": 1.0}, 2000, 8, [policies.JustInTime()]),
    "lanes": ({"lanes": 36, "seconds": 5.0}, 2000, 8, [policies.JustInTime()]),
    "proactive_probe": (
        {"videos": 38, "seconds": 5.0, "every": 2.0, "probe": 1.0}, 2000, 8,
        [policies.JustInTime()],
    ),
    "probes": ({"videos": 36, "seconds": 5.0, "every": 1.0}, 2000, 8, [policies.JustInTime()]),
    "embodied": ({"agents": 32, "seconds": 5.0}, 2000, 8, [policies.JustInTime()]),
    "x_stream": ({"shows": 12, "seconds": 5.0}, 2000, 8, [policies.JustInTime()]),
    "gaze": ({"people": 32, "seconds": 5.0}, 2000, 8, [policies.JustInTime()]),
    "hours": ({"people": 8, "hours": 1.0}, 2000, 8, [policies.JustInTime()]),
    "services": (
        {"requests": 80, "rate": 40}, 2000, 16, [policies.JustInTime(), policies.Urgency()],
    ),
    "prefix_heavy": ({"requests": 40}, 60, 64, [policies.PrefixGroups()]),
    "retrieval": (
        {"requests": 12}, 30, 32,
        [policies.AppendUpdate(queue) for queue in policies.append.ORDERS],
    ),
    "agents": (
        {"programs": 12, "turns": 6, "spread": 4.0}, 30, 64,
        [
            Recency(), policies.Retention(), policies.Foresight(),
            policies.ProgramPause(capacity=400, period=0.5, reserve=24),
        ],
    ),
}  # fmt: skip

# What a stream keeps, where that is not everything.
MEMORY = {"hours": Sink(4) + Window(252)}


def ran(shape: str, policy: policies.Policy, seed: int) -> tuple[Run, int]:
    """One run, and the most pages that it held after a turn."""
    options, pages, budget, _ = SHAPES[shape]
    name = shape.removesuffix("_probe")
    make, lanes = traces.OF_LANES[name] if name in traces.OF_LANES else (traces.SHAPES[name], ())
    with wrap(
        Costless(),
        memory=MEMORY.get(shape, Window(None)),
        exact=True,
        page_size=16,
        pool_pages=pages,
        lanes=lanes,
    ) as engine:
        server, most = Server(engine, policy, Virtual(COST), budget=budget), 0
        server.push(*make(seed, **options))
        while server.turn():
            most = max(most, engine.pool.live_pages)
        server.close()
    return server.run, most


def figures(shape: str, policy: policies.Policy, seed: int) -> dict[str, float]:
    """Of one run."""
    run, most = ran(shape, policy, seed)
    timing = run.timing()
    made: dict[str, float] = {
        "lag_p50": timing.lag_p50,
        "lag_p99": timing.lag_p99,
        "pages": most,
        "tokens": run.tokens,
        "parked": len(parkings(run)),
        "seconds": run.seconds,
    }
    if timing.deadlines:
        made |= {"requests_in_time": in_time(run), "miss_rate": timing.miss_rate}
        made["goodput"] = timing.goodput
    if isinstance(run.policy, policies.Retention):
        made["hit_rate"] = run.policy.hits / (run.policy.hits + run.policy.misses)
    return made


def compare(shape: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row per policy, means over the seeds."""
    rows = []
    for policy in [policies.Arrival(), policies.Deadline(), *SHAPES[shape][3]]:
        each = [figures(shape, policy, seed) for seed in seeds]
        mean = {key: sum(one[key] for one in each) / len(each) for key in each[0]}
        row = {"shape": shape, "policy": type(policy).__name__, "of": policy.plain()}
        rows.append(row | {key: round(value, 4) for key, value in mean.items()})
    return rows


def line(row: dict[str, Any]) -> str:
    cells = [f"{row['shape']:<16}{row['policy']:<13}"]
    for key, width in (("requests_in_time", 7), ("miss_rate", 6), ("lag_p50", 8), ("lag_p99", 8),
                       ("pages", 5), ("tokens", 7),
                       ("parked", 7), ("hit_rate", 6)):  # fmt: skip
        value = row.get(key)
        text = "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3f}"
        cells.append(f"{text:>{width + 2}}")
    return "".join(cells)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--seeds", type=int, default=3, help="traces of each shape (default 3)")
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=list(SHAPES))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    told = report.taken()
    print(f"{'trace':<16}{'policy':<13}  in time  missed   lag p50   lag p99  pages   tokens"
          "   parked    hits")  # fmt: skip
    rows = []
    for shape in args.shapes:
        for row in compare(shape, range(args.seeds)):
            rows.append(row)
            print(line(row), flush=True)
    told |= {"seeds": args.seeds, "cost": asdict(COST), "rows": rows}
    report.write(told, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
