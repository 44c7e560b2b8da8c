# SPDX-License-Identifier: Apache-2.0
"""Train one of the packaged byte-level decoders on the standard library's sources. See
models/cards for the commands.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from headrace.models import load
from headrace.models.training.loop import Run, train


def main() -> None:
    d = Run(steps=1)
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--attention", choices=("window", "dense"), default=d.attention)
    p.add_argument(
        "--window", type=int, default=d.window, help="keys a query sees, counting itself"
    )
    p.add_argument(
        "--sinks", type=int, default=d.sinks, help="first positions that are never evicted"
    )
    p.add_argument("--sequence", type=int, default=d.sequence, help="bytes in a training sequence")
    p.add_argument(
        "--sink-logits",
        action="store_true",
        help="learn a term in every head's softmax denominator",
    )
    p.add_argument("--tokens", type=int, default=d.tokens, help="bytes in a step")
    bound = p.add_mutually_exclusive_group(required=True)
    bound.add_argument("--minutes", type=float, help="wall-clock length of the run")
    bound.add_argument("--steps", type=int, help="length of the run in steps; reproducible")
    p.add_argument("--seed", type=int, default=d.seed)
    p.add_argument("--muon-rate", type=float, default=d.muon_rate)
    p.add_argument("--adam-rate", type=float, default=d.adam_rate)
    p.add_argument("--decay", type=float, default=d.decay, help="last part, with a falling rate")
    p.add_argument("--initial", help="a packaged name or a file: the weights to begin with")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--width", type=int, default=d.width)
    p.add_argument("--layers", type=int, default=d.layers)
    p.add_argument("--hidden", type=int, default=d.hidden)
    p.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    p.add_argument("--resume", action="store_true", help="go on from the state beside --out")
    p.add_argument(
        "--text",
        type=Path,
        action="append",
        help="a folder of text instead of the standard library",
    )
    options = vars(p.parse_args())
    torch.set_num_threads(options.pop("threads"))
    initial = options.pop("initial")
    out, resume, text = options.pop("out"), options.pop("resume"), options.pop("text")
    try:
        begin = None if initial is None else load(initial)
        train(Run(**options), out, resume, text, initial=begin)
    except ValueError as error:
        p.error(str(error))


if __name__ == "__main__":
    main()
