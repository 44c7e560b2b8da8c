# SPDX-License-Identifier: Apache-2.0
"""What a ring of solver steps gains over one frame after another. Ratios are taken in one run, turn
by turn; whether a chunk costs more after hours is what bench/steady.py tells.

    python bench/rings.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from headrace.bench.loops.rings import LARGE, frames_of
from headrace.models import Denoiser, DenoiserConfig
from headrace.presets import demon, hybrid_forcing, stream_diffusion
from headrace.presets.stream_diffusion import NAMES


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    denoiser = Denoiser(DenoiserConfig(**LARGE), seed=1).eval()
    print(f"{torch.get_num_threads()} threads; ms per frame, medians of 5 turns")
    for exact in (False, True):
        told: dict[str, Any] = {"timesteps": (700, 519, 359, 99), "exact": exact}
        made = {
            f"{kind}, {n} in flight": stream_diffusion(
                denoiser, guidance=kind, depth=n, **told
            ).ring
            for kind in NAMES
            for n in (1, 4)
        }
        took = turns({name: frames_of(ring) for name, ring in made.items()})
        for kind in NAMES:
            one, four = took[f"{kind}, 1 in flight"], took[f"{kind}, 4 in flight"]
            row = f"{'exact' if exact else 'torch'}  guidance {kind:<10}"
            print(f"{row}  one by one {one:7.2f}  ring {four:7.2f}  {one / four:5.2f}x")
        full = took["full, 4 in flight"]
        for kind in ("self", "initialize"):
            print(f"       {kind} beside full guidance: {full / took[f'{kind}, 4 in flight']:.2f}x")
    eight = {n: demon(denoiser, depth=n, exact=False) for n in (1, 2, 4, 8)}
    took = turns({str(n): frames_of(ring) for n, ring in eight.items()})
    print("depth of 8 steps:", ", ".join(f"{n}: {took[n]:.2f}" for n in took))
    folder = Denoiser(DenoiserConfig(**{**LARGE, "tokens": 192, "fold": True}), seed=1).eval()
    shares = {s: hybrid_forcing(folder, share=s, block=16, exact=False) for s in (0.2, 0.5, 1.0)}
    took = turns({str(s): frames_of(ring, 3) for s, ring in shares.items()})
    print("blocks read:", ", ".join(f"{s}: {took[s]:.2f}" for s in took))


def turns(runs: Mapping[str, Callable[[], int]], count: int = 5) -> dict[str, float]:
    """Milliseconds per frame, the median over turns in which every one has its go."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(count + 2):  # two to warm up
        for name, run in runs.items():
            began = time.perf_counter()
            done = run()
            if turn > 1:
                took[name].append(1e3 * (time.perf_counter() - began) / done)
    return {name: sorted(each)[count // 2] for name, each in took.items()}


if __name__ == "__main__":
    main()
