# SPDX-License-Identifier: Apache-2.0
"""Published rules of what a cache keeps or recalls, each a module of a few lines over the ops.

`score` gives scores, `keep` what `select` gives: int32 indices, ascending, and counts. Defaults are
those of the paper or of its code; the module says which.
"""

from . import (
    ada_kv,
    chunk_kv,
    evs,
    expected_attention,
    fastv,
    h2o,
    infinipot_v,
    infinite_vggt,
    infllm,
    key_diff,
    knorm,
    lag_kv,
    quest,
    rekv,
    showui,
    sir_llm,
    snap_kv,
    stc,
    stream_diffusion,
    timechat_online,
    tome,
    tova,
    video_llm_mod,
    visionzip,
)

__all__ = [
    "ada_kv",
    "chunk_kv",
    "evs",
    "expected_attention",
    "fastv",
    "h2o",
    "infinipot_v",
    "infinite_vggt",
    "infllm",
    "key_diff",
    "knorm",
    "lag_kv",
    "quest",
    "rekv",
    "showui",
    "sir_llm",
    "snap_kv",
    "stc",
    "stream_diffusion",
    "timechat_online",
    "tome",
    "tova",
    "video_llm_mod",
    "visionzip",
]
