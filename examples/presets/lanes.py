# SPDX-License-Identifier: Apache-2.0
"""Frames come in, and thoughts about them are written in the same steps."""

import torch

from headrace import Window, models, presets

with presets.tays(models.load("bytes-stream"), frames=Window(256)) as engine:
    talk = engine.open_lanes()
    thought = torch.tensor([35])
    for frame in torch.randint(256, (20, 16)):
        batch = {talk["frames"]: frame, talk["thoughts"]: thought}
        report = engine.step(batch, logits=True)
        thought = report[talk["thoughts"]].logits[-1:].argmax(-1)
    print(f"{talk['frames'].alive} tokens of frames alive, {talk['thoughts'].alive} of thoughts")
    print(talk["answer"].say(b"so: ", max_new=8))
