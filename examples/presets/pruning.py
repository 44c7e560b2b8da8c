# SPDX-License-Identifier: Apache-2.0
"""Tokens of a frame that look like those in their place one frame before are dropped."""

import torch

from headrace import presets

model = presets.get("timechat_online").sample()  # or your own, with `vision` and `reader`
high, wide = (4 * n for n in model.vision.grid)
stream = presets.timechat_online(model, method="pixel")
frame = torch.randint(256, (high, wide, 3), dtype=torch.uint8)
for t in range(4):
    frame[:8, 8 * t : 8 * t + 8] = 250  # something moves
    seen = stream.feed(frame)
    print(f"frame {t}: {seen.dropped:.0%} dropped, {len(seen.read)} tokens read")
