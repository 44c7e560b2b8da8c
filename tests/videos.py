# SPDX-License-Identifier: Apache-2.0
"""Videos and a vision model for tests: small, made here, the same every time."""

import av
import numpy as np
import torch

from headrace.models import Vision, VisionConfig


def made(path, frames=40, height=48, width=64, rate=25, cut=20, codec="mpeg4"):
    """Writes a video in which a square moves over a still ground, with another ground from `cut`
    on."""
    random = np.random.default_rng(0)
    coarse = random.integers(30, 220, (2, height // 8, width // 8, 3), dtype=np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 2_000_000
        for t in range(frames):
            x = coarse[int(t >= cut)].repeat(8, 0).repeat(8, 1)
            at = t % (width - 10)
            x[4:14, at : at + 10] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(x, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def model():
    """A small random vision model."""
    torch.manual_seed(0)
    small = Vision(
        VisionConfig(
            patch=16, thumb=2, width=24, heads=2, kv_heads=1, head_dim=16, tower_layers=1,
            tower_hidden=32, layers=1, hidden=32, codes=8, threshold=6.0, reach=2,
        )
    )  # fmt: skip
    with torch.no_grad():
        for p in small.parameters():
            if p.ndim == 2:
                p.normal_(std=p.shape[1] ** -0.5)
    return small.eval()
