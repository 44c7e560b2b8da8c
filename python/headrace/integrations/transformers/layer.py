# SPDX-License-Identifier: Apache-2.0
"""What transformers asks of the layers of a cache."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

if TYPE_CHECKING:
    from .cache import StreamingCache


class StreamingLayer(CacheLayerMixin):
    """What transformers asks of a layer of a cache; the cache itself knows the answers."""

    is_croppable = True
    supports_early_init = False
    is_initialized = True

    def __init__(self, cache: StreamingCache, index: int) -> None:
        super().__init__()
        self._cache = weakref.ref(cache)
        self.index = index
        self.is_sliding = cache.attention.sliding[index] is not None

    @property
    def cache(self) -> StreamingCache:
        cache = self._cache()
        assert cache is not None
        return cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The keys and values as they are, marked for the attention function."""
        self.cache.arrive(self.index)
        key_states = key_states.view_as(key_states)
        key_states.headrace = self  # type: ignore[attr-defined]
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, Offset(self.cache)

    def get_seq_length(self) -> int:
        return self.cache.seen

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.cache.reset()


class Offset(int):
    """How many tokens came before, and the cache that they went to: so the mask function knows."""

    cache: StreamingCache

    def __new__(cls, cache: StreamingCache) -> Offset:
        self = super().__new__(cls, cache.seen)
        self.cache = cache
        return self
