# SPDX-License-Identifier: Apache-2.0
"""Streaming inference: unbounded streams through a model at constant memory and time per step."""

import torch  # noqa: F401  (first: the extension shares torch's OpenMP runtime)

from . import ops
from .backends import use_backend, use_isa

__all__ = ["ops", "use_backend", "use_isa"]
