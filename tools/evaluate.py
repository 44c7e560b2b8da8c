# SPDX-License-Identifier: Apache-2.0
"""Print a decoder's loss on held-out text, in nats per byte, under the memories that its card
lists.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from headrace.models import load
from headrace.models.training import data
from headrace.models.training.evaluate import CONTEXT, evaluate, first_mass, table


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", help="a packaged name or the path of a .safetensors file")
    p.add_argument("--streams", type=int, default=8)
    p.add_argument(
        "--length",
        type=int,
        default=8192,
        help="bytes in a stream, a multiple of 1024, at least 2048",
    )
    p.add_argument(
        "--samples", type=int, default=1024, help="places where the window is encoded anew"
    )
    p.add_argument("--threads", type=int, default=1)
    p.add_argument(
        "--text",
        type=Path,
        action="append",
        help="a folder of text instead of the standard library",
    )
    options = p.parse_args()
    if options.length < 2048 or options.length % 1024:
        p.error(f"--length: expected a multiple of 1024, at least 2048, got {options.length}")
    torch.set_num_threads(options.threads)
    held_out = data.split(options.text)[1]
    model = load(options.model)
    print(table(evaluate(model, held_out, options.streams, options.length, options.samples)))
    mass = first_mass(model, data.spread(held_out, 64, CONTEXT))
    print(
        f"\nattention on the first 4 of {CONTEXT} keys: mean over heads {mass.mean():.3f}, "
        f"strongest head {mass.max():.3f}, an even spread gives {4 / (0.72 * CONTEXT):.3f}"
    )


if __name__ == "__main__":
    main()
