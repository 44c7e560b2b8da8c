# SPDX-License-Identifier: Apache-2.0
"""Memories that choose, and what a stream of them is fed."""

import torch

from headrace import Keep, Piece, Rest, Sink, Tagged, Window  # fmt: skip

BOUND, PAGE = 1e-4, 16
MEMORIES = [
    Sink(4) + Keep("given", 12) + Window(24),
    Sink(4) + Window(20) >> Keep("given", 9),
    Sink(4) + Keep("given", 16, room=True) >> Rest(40),
    Keep("surprisal", 10) + Window(9),
    Window(seconds=5) + Sink(3),
    Window(frames=3),
    Tagged("see", Window(seconds=4)) + Tagged(None, Sink(6) + Keep("given", 5) + Window(7)),
    Window(7) >> (Sink(5) + Window(11)) + Keep("given", 2),
    Tagged("see", Window(frames=2) >> Keep("given", 11)) + Tagged(None, Window(12)) >> Rest(31),
]


def episode(count=40, longest=16, seed=0):
    """Pieces of odd sizes, some longer than a window; scores with ties; a clock that may stand."""
    made, now = torch.Generator().manual_seed(seed), 0.0
    for i in range(count):
        n = int(torch.randint(1, longest + 1, (1,), generator=made))
        now += int(torch.randint(0, 3, (1,), generator=made))
        yield Piece(
            torch.randint(256, (n,), generator=made),
            scores=torch.randint(0, 50, (n,), generator=made).double(),
            at=now,
            frame=float(i // 2),
            tag=("see", None)[int(torch.randint(0, 2, (1,), generator=made))],
        )


def played(stream, episode):
    """Logits, and the pieces with the scores that the oracle goes by."""
    got, heard = [], []
    given = "surprisal" not in repr(stream.engine.memory)
    for one in episode:
        report = stream.engine.step({stream: one}, logits=True)[stream]
        got.append(report.logits)
        heard.append(one if given else Piece(one.tokens, report.nll, one.at, one.frame, one.tag))
    return torch.cat(got), heard
