# SPDX-License-Identifier: Apache-2.0
"""Sinks, a window and re-indexing as an attention backend of vLLM.

    vllm serve MODEL --attention-backend CUSTOM \
        --additional-config '{"headrace": {"sinks": 4, "window": 2044}}'

vLLM finds `plugin` by the entry point of this package and calls it in every process; nothing
changes before the backend is asked for. A query then sees the first `sinks` tokens of its request
and the last `window`, itself included, at the distances that tokens have in the cache: no more than
sinks + window however long the request is. Without the two numbers it sees everything.
docs/serving.md has what an engine around it would have to do to give memory back.

Written against vLLM 0.33; not seen running on a GPU yet.
"""

from __future__ import annotations

import warnings

from ...errors import unsupported

BACKEND = "headrace.integrations.vllm.backend.Backend"


def register(cpu: bool = False) -> None:
    """Makes the backend known to vLLM, as CUSTOM. Twice is fine.

    cpu: instead of its own on the CPU too, where vLLM asks for none by name. NotImplementedError
    where no vLLM with such a registry is installed.
    """
    try:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    except ImportError as error:
        hint = "pip install vllm"
        raise unsupported("vllm.register", "vllm", "vLLM 0.33", error, hint) from error
    register_backend(AttentionBackendEnum.CUSTOM, BACKEND)
    if cpu:
        register_backend(AttentionBackendEnum.CPU_ATTN, BACKEND)


def plugin() -> None:
    """What vLLM calls as it starts: `register`, or a warning where that cannot be."""
    try:
        register()
    except NotImplementedError as error:
        warnings.warn(str(error), stacklevel=2)
