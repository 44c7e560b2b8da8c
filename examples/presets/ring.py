# SPDX-License-Identifier: Apache-2.0
"""Four frames in flight, each at another step; one call of the denoiser for every frame in."""

import torch

from headrace import presets
from headrace.models import Denoiser, DenoiserConfig

denoiser = Denoiser(DenoiserConfig(tokens=16, channels=4))  # or your own, of this protocol
video = presets.stream_diffusion(denoiser, timesteps=(700, 519, 359, 99))
for frame in torch.randn(12, 16, 4):
    done = video.tick(frame)  # [16, 4], None before the first is through
print(f"{video.ring.calls} calls, {video.skipped} frames skipped, the newest {tuple(done.shape)}")
video.close()
