# SPDX-License-Identifier: Apache-2.0
"""After every frame the chance of one token says whether the stream stays silent."""

import torch

from headrace import models, presets
from headrace.streams import TokenProb

frames = torch.randint(97, 123, (12, 10))  # 10 tokens each
silence = ord(" ")
with presets.video_llm_online(models.load("bytes-stream")) as engine:
    seen = presets.video_llm_online.watch(
        engine.open(), frames, TokenProb(silence, 0.1), silence=silence, longest=8,
        queries={3: torch.tensor(list(b"what?"))},
    )  # fmt: skip
for frame, reply in seen.replies.items():
    print(f"after frame {frame}: {bytes(reply)!r}")
