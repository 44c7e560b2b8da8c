# SPDX-License-Identifier: Apache-2.0
"""A model that costs nothing, where only the order of the work matters."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from headrace import Window, wrap
from headrace.streams import Event, Linear, Virtual, serve

SECOND = Linear(step=1.0, token=0.0)


class Stub:
    """Says 7 t + 3 after token t, whatever came before."""

    config = SimpleNamespace(vocab=256, layers=1, kv_heads=1, head_dim=16)
    inv_freq = torch.ones(8, dtype=torch.float64)

    def __call__(self, tokens, attend, linear=None):
        return F.one_hot((tokens * 7 + 3) % 256, 256).float()

    def sink_logits(self, layer):
        return None


def run(events, policy=None, *, pages=600, cost=SECOND, model=None, **options):
    model = Stub() if model is None else model
    with wrap(model, memory=Window(None), page_size=16, pool_pages=pages, exact=False) as engine:
        made = serve(engine, events, policy, Virtual(cost), **options)
        assert engine.pool.live_pages == 0
    assert all(o.state == "done" for o in made.outcomes)
    return made


def opened(*names):
    return [Event(0.0, name, "open") for name in names]


def first_read(made):
    """Streams in the order in which steps first read of them."""
    order = []
    for turn in made.log:
        for index, _ in turn.get("step", ()):
            name = made.outcomes[index].stream if index >= 0 else f"stem {-index}"
            if name not in order:
                order.append(name)
    return order


def in_time(made):
    """Share of the requests all of whose events kept their deadlines."""
    kept = {}
    for out in made.outcomes:
        if out.due < math.inf:
            kept.setdefault(out.stream, []).append(not out.missed)
    return sum(all(each) for each in kept.values()) / len(kept)
