# SPDX-License-Identifier: Apache-2.0
"""Frames leave a window for an archive, and a question brings those back that it needs."""

import torch

from headrace import models, presets

frames = torch.randint(256, (40, 32))  # int64, a row of tokens for every frame
with presets.rekv(models.load("bytes-stream"), window=256, frame=32, top=4) as engine:
    video = engine.open()
    presets.rekv.watch(video, frames)
    side, logits = presets.rekv.ask(video, frames[3, :8], top=4)
    print(f"asked at position {video.position}; the answer begins {side.say(max_new=8)!r}")
    side.close()  # nothing of it stays in the video
