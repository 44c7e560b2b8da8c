# SPDX-License-Identifier: Apache-2.0
"""The dial on keys of a real model over text (see archive.py)."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace import Absolute, Archive, InMemory, Sink, Window, models, wrap
from headrace.memory import by_sample
from headrace.memory.dial import Masses, dial
from headrace.memory.recall import bounds
from headrace.memory.sampled import block_masses
from headrace.streams.recalling import ask

TEXT, MOST = 40_000, 448
QUESTION = b"def __init__(self, parser"


def structured(shares: tuple[float, ...] = (0.5, 0.9)) -> list[dict[str, Any]]:
    """For each layer of the packaged model, over text of Python sources: pages of 64 bytes that it
    takes for every query and head of a question to see the share p of its softmax.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("a*.py")))[:TEXT]
    memory = Sink(4) + Window(256) >> Archive("bounds", InMemory(4096), pages=2 * TEXT // 64)
    made = []
    model = models.load("bytes-stream")
    with wrap(model, memory=memory, positions=Absolute(), page_size=64) as engine:
        stream = engine.open()
        stream.feed(torch.tensor(list(text)))
        asked, shelf = ask(stream, torch.tensor(list(QUESTION))), stream._shelf
        tiers, rows = engine.archive.near(), np.arange(len(shelf.index))
        for layer, one in enumerate(asked):
            m = bounds(shelf, layer, one, None, engine._inv_freq)
            blocks = shelf.index.blocks.tolist()
            pages, _ = tiers.fetch(blocks, layer)
            true = block_masses(shelf, layer, one, rows, pages, None, engine._inv_freq)
            tiers.unpin(blocks, layer)
            near = one.lse.double().reshape(-1)
            for p in shares:
                made.append({"layer": layer, "p": p, "of_pages": len(rows)})
                exact = dial(Masses(true, true), p, near=near)
                rough = dial(m, p, near=near, proven=False)
                sure = dial(m, p, near=near)
                few, told = by_sample(shelf, layer, one, p, MOST, None, engine._inv_freq)
                counts = len(exact.chosen), len(rough.chosen), len(sure.chosen), len(few)
                kinds = ("exact", "estimate", "proven", "sampled")
                made[-1] |= dict(zip(kinds, counts, strict=True))
                for name, chosen in (("estimate", rough.chosen.numpy()), ("sampled", few)):
                    left = np.setdiff1d(rows, chosen)
                    seen = torch.cat([near[:, None], true[:, chosen]], 1).logsumexp(1)
                    whole = torch.cat([near[:, None], true], 1).logsumexp(1)
                    made[-1][f"{name}_missed"] = float((1 - torch.exp(seen - whole)).max())
                    assert len(left) + len(chosen) == len(rows)
                made[-1]["sampled_at_most"], made[-1]["sampled_unlike"] = told.at_most, told.unlike
                made[-1]["proven_missed_at_most"] = rough.missed
            made[-1]["looseness_nats"] = float((m.high - true).mean())
    return made
