# SPDX-License-Identifier: Apache-2.0
"""Speech comes in as it likes, and is encoded in chunks, each frame once."""

import torch

from headrace import presets

model = presets.get("stateful_conformer").sample()  # or a `headrace.models.Conformer` of your own
encoder = presets.stateful_conformer(model, look_ahead=480)
stream = encoder.open()
heard = torch.randn(500, model.config.inputs)  # 5 s, in frames of 10 ms
made = [stream.feed(part) for part in heard.split(37)] + [stream.finish()]
print(f"{len(heard)} frames in, {sum(map(len, made))} encodings of {made[0].shape[-1]} out")
