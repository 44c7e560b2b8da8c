# SPDX-License-Identifier: Apache-2.0
"""Engines with an archive, and what a recall must equal."""

import importlib
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace import Absolute, Sink, Window, wrap
from headrace.memory.regions import Region

from .tiny import TinyDecoder

dense = importlib.import_module("headrace.streams.oracle")
NEAR = Sink(4) + Window(40)


def tokens(n, seed=0):
    return torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(seed))


def engine(archive=None, positions=None, model=None, **kinds):
    memory = NEAR if archive is None else NEAR >> archive
    model = TinyDecoder() if model is None else model
    kinds = {"page_size": 16, "chunk": 32} | kinds
    return wrap(model, memory=memory, positions=positions or Absolute(), **kinds)


@dataclass(frozen=True)
class Seen(Region):
    """NEAR, and from token `since` on also the tokens `spans` (all of them before it)."""

    since: int
    spans: tuple[tuple[int, int], ...]

    def keeps(self, query: Tensor, key: Tensor) -> Tensor:
        again = torch.zeros_like(query + key, dtype=torch.bool)
        for first, stop in self.spans:
            again |= (key >= first) & (key < stop)
        return NEAR.keeps(query, key) | (again & (query >= self.since))


def compare(got, want, since):
    error = (got.double() - want[since:]).abs().max()
    assert error < 2e-4, float(error)
