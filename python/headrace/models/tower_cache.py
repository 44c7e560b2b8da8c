# SPDX-License-Identifier: Apache-2.0
"""A tower over the patches that changed: the others keep what they were in every layer."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value
from .vision import Vision


class TowerCache:
    """Keys and values of every layer, and what the tower says, of all places of a frame.

    A place that is not computed anew keeps all of these, and those computed see them. So the work
    is that of the computed tokens, and with all of them it is the plain tower. What is kept is
    stale by what the tokens around it changed: the model was trained so. Related: the token cacher
    of STC (arXiv 2512.00891), which chooses tokens anew in every layer, by their keys.

    k, v [layers, heads, N, head_dim]; tokens [N, width]. ready: all of it was computed once.
    """

    def __init__(self, model: Vision, rows: int, columns: int) -> None:
        if rows < 1 or columns < 1:
            raise bad_value("TowerCache", "grid", "1 or more rows and columns", (rows, columns))
        c, like = model.config, model.embed
        self.model, self.grid = model, (rows, columns)
        self.k = like.new_zeros(c.tower_layers, c.heads, rows * columns, c.head_dim)
        self.v = torch.zeros_like(self.k)
        self.tokens = like.new_zeros(rows * columns, c.width)
        self.ready = False
        self._turns = model.turns(rows, columns)

    def __call__(self, patches: Tensor, index: Tensor) -> Tensor:
        """Tokens [n, width] of patches [n, patch * patch * 3] at places index int64 [n], ascending.

        Writes the cache. The first call must name every place, ValueError otherwise.
        """
        places = len(self.tokens)
        if len(index) < places and not self.ready:
            raise bad_value("TowerCache", "index", f"all {places} places at first", len(index))
        whole = len(index) == places

        def within(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.k[layer], self.v[layer]
            if whole:
                keys.copy_(k.transpose(0, 1))
                values.copy_(v.transpose(0, 1))
            else:
                keys.index_copy_(1, index, k.transpose(0, 1))
                values.index_copy_(1, index, v.transpose(0, 1))
            seen = ops.attention(q.transpose(0, 1)[None], keys[None], values[None], causal=False)
            return seen[0].transpose(0, 1)

        cos, sin = self._turns
        x = self.model.encode(patches, (cos[index], sin[index]), within)
        self.tokens.index_copy_(0, index, x)
        self.ready = True
        return x

    def reset(self) -> None:
        """Forgets everything: the next call must name every place."""
        self.ready = False

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, the same for ever."""
        return self.k.nbytes + self.v.nbytes + self.tokens.nbytes
