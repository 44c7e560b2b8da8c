# SPDX-License-Identifier: Apache-2.0
"""What the engine costs beside the model: pages, views, scores and reports of a step.

    python bench/engine_overhead.py OUT.json [--streams 1 8 32 128] [--steps N] [--tokens N]

Every stream of the packaged model reads so many tokens a step, long enough for its window to be
full and to evict. The time inside the model's call (its kernels among it) is taken apart from the
rest of the step; the parts of the rest are those of a profile of the same steps, which slows
them. What the tokens scored is worked out when a report is asked for it: in every other step it is,
and the share of these is told beside.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from headrace import Sink, Window, models, wrap
from headrace.cli import report

PARTS = 8


class Timed:
    """The model, and the seconds spent in it."""

    def __init__(self, model: Any) -> None:
        self.model, self.seconds = model, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        began = time.perf_counter()
        out = self.model(*args, **kwargs)
        self.seconds += time.perf_counter() - began
        return out


def measure(streams: int, tokens: int, steps: int) -> dict[str, Any]:
    """Medians over the steps, and where the rest of the step goes."""
    model = Timed(models.load("bytes-stream"))
    pages = 16 * streams + 64
    with wrap(model, memory=Sink(4) + Window(252), pool_pages=pages) as engine:
        opened = [engine.open() for _ in range(streams)]
        draw = torch.Generator().manual_seed(0)
        engine.step({s: torch.randint(256, (300,), generator=draw) for s in opened})

        def step(ask: bool = False) -> tuple[float, float]:
            batch = {s: torch.randint(256, (tokens,), generator=draw) for s in opened}
            model.seconds, began = 0.0, time.perf_counter()
            told = engine.step(batch)
            if ask:
                assert told[opened[0]].nll.numel() == tokens
            del told
            return time.perf_counter() - began, model.seconds

        taken, asked = zip(*[(step(), step(ask=True)) for _ in range(steps)], strict=True)
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(max(steps // 4, 5)):
            step()
        profile.disable()
    whole, inside = median(t for t, _ in taken), median(m for _, m in taken)
    share, more = (median((t - m) / t for t, m in some) for some in (taken, asked))
    return {
        "streams": streams, "tokens_a_step": tokens, "step_ms": 1e3 * whole,
        "model_ms": 1e3 * inside, "overhead_share": share,
        "overhead_share_asked": more, "parts": parts(profile),
    }  # fmt: skip


def parts(profile: cProfile.Profile) -> list[dict[str, Any]]:
    """The dearest functions of the runtime, their own time a call of them aside."""
    stats = pstats.Stats(profile)
    found = []
    for (file, _, name), (_, calls, own, _, _) in stats.stats.items():  # type: ignore[attr-defined]
        folder = Path(file).parent.name
        if folder in ("streams", "memory"):
            found.append({"function": f"{folder}.{name}", "calls": calls, "own_ms": 1e3 * own})
    return sorted(found, key=lambda part: -part["own_ms"])[:PARTS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=1)
    args = parser.parse_args()
    told = {**report.taken(), "rows": []}
    for streams in args.streams:
        row = measure(streams, args.tokens, args.steps)
        told["rows"].append(row)
        print(
            f"{streams:4} streams: step {row['step_ms']:.2f} ms, model {row['model_ms']:.2f} ms,"
            f" overhead {row['overhead_share']:.1%}, {row['overhead_share_asked']:.1%} when asked",
            flush=True,
        )  # fmt: skip
    report.write(told, args.out)


if __name__ == "__main__":
    main()
