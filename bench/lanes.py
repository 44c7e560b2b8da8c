# SPDX-License-Identifier: Apache-2.0
"""Reading and writing in one step, beside one after the other; and what exact mode costs.

    python bench/lanes.py OUT.json [--streams 1 8 32] [--tokens 1 4] [--steps N] [--rounds N]

Fused: streams of two lanes of the packaged model, source and target, read so many new tokens and
write one in the same step; alternating does the same in two steps, a step that reads and a step
that writes. What is compared is tokens a second, turn about in one run, each round a new order.
Balanced is where both steps of alternating do the same work: one token read for one written.
Bytes of keys and values beyond the tokens' own are counted. Exact mode: the same, and one step of
32 streams that differ in adapter, preset, lanes and phase, beside the engine that leaves matrix
products to torch.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

from headrace import models
from headrace.bench.loops.lanes import Pairs
from headrace.cli import report
from headrace.presets import mixed

TICKS, MEMBERS = 12, 32


def overlap(
    model: Any, streams: int, tokens: int, exact: bool, steps: int, rounds: int
) -> dict[str, Any]:
    """Fused beside alternating: seconds of a turn, medians over the rounds of their medians."""
    sides = {fused: Pairs(model, streams, tokens, exact) for fused in (True, False)}
    taken: dict[bool, list[float]] = {True: [], False: []}
    for i in range(rounds):
        for fused in (True, False) if i % 2 else (False, True):
            taken[fused].append(median(sides[fused].step(fused) for _ in range(steps)))
    ratios = [b / a for a, b in zip(taken[True], taken[False], strict=True)]
    copied = sum(side.copied for side in sides.values())
    for side in sides.values():
        side.engine.close()
    return {
        "streams": streams, "tokens_read": tokens, "tokens_written": 1, "exact": exact,
        "fused_ms": 1e3 * median(taken[True]), "alternating_ms": 1e3 * median(taken[False]),
        "gain": median(ratios), "least": min(ratios), "most": max(ratios),
        "bytes_copied": copied,
    }  # fmt: skip


def mixture(model: Any, rounds: int) -> dict[str, Any]:
    """Steps of 32 streams that differ in everything, exact and not: seconds of all ticks."""
    taken: dict[bool, list[float]] = {True: [], False: []}
    tokens = 0
    for i in range(rounds):
        for exact in (True, False) if i % 2 else (False, True):
            with mixed.engine(model, exact=exact) as engine:
                members = [mixed.Member(engine, number) for number in range(MEMBERS)]
                mixed.step(engine, members, 0)
                began = time.perf_counter()
                made = [mixed.step(engine, members, tick) for tick in range(1, TICKS)]
                taken[exact].append(time.perf_counter() - began)
                tokens = sum(len(x) for one in made for x in one.values())
    ratios = [a / b for a, b in zip(taken[True], taken[False], strict=True)]
    return {
        "members": MEMBERS, "ticks": TICKS - 1, "tokens": tokens,
        "exact_ms": 1e3 * median(taken[True]), "plain_ms": 1e3 * median(taken[False]),
        "cost": median(ratios), "least": min(ratios), "most": max(ratios),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model = models.load("bytes-stream")
    told: dict[str, Any] = {**report.taken(), "rows": []}
    for streams in args.streams:
        for tokens in args.tokens:
            for exact in (True, False):
                row = overlap(model, streams, tokens, exact, args.steps, args.rounds)
                told["rows"].append(row)
                spread = f"{row['least']:.2f} to {row['most']:.2f}"
                print(
                    f"{streams:3} streams, {tokens} read for 1 written,"
                    f" {'exact' if exact else 'plain'}: fused {row['fused_ms']:.2f} ms, alternating"
                    f" {row['alternating_ms']:.2f} ms, gain {row['gain']:.2f}"
                    f" ({spread}), {row['bytes_copied']} bytes copied",
                    flush=True,
                )  # fmt: skip
                if row["bytes_copied"]:
                    raise SystemExit(f"{row['bytes_copied']} bytes of keys and values were copied")
    told["mixed"] = mixture(model, args.rounds)
    print("32 streams that differ in everything: exact mode costs {cost:.2f} times the rest"
          " ({exact_ms:.1f} ms over {plain_ms:.1f} ms)".format(**told["mixed"]))  # fmt: skip
    report.write(told, args.out)


if __name__ == "__main__":
    main()
