# SPDX-License-Identifier: Apache-2.0
"""Presets over `headrace.Ring`, those of the table's core first."""

from __future__ import annotations

from .context_forcing import PRESET as CONTEXT_FORCING
from .demon import PRESET as DEMON
from .echo_avatar import PRESET as ECHO_AVATAR
from .ego_edit import PRESET as EGO_EDIT
from .hybrid_forcing import PRESET as HYBRID_FORCING
from .iamflow import PRESET as IAMFLOW
from .longlive_rag import PRESET as LONGLIVE_RAG
from .motion_stream import PRESET as MOTION_STREAM
from .prism import PRESET as PRISM
from .proof import Preset
from .rain import PRESET as RAIN
from .rolling_forcing import PRESET as ROLLING_FORCING
from .sana_streaming import PRESET as SANA_STREAMING
from .shot_stream import PRESET as SHOT_STREAM
from .stream_char import PRESET as STREAM_CHAR
from .stream_diffusion import PRESET as STREAM_DIFFUSION
from .stream_diffusion_v2 import PRESET as STREAM_DIFFUSION_V2
from .stream_dit import PRESET as STREAM_DIT
from .stream_fm import PRESET as STREAM_FM
from .streaming_diffusion_policy import PRESET as STREAMING_DIFFUSION_POLICY
from .streaming_t2v import PRESET as STREAMING_T2V

RINGS: tuple[Preset, ...] = (
    DEMON,
    HYBRID_FORCING,
    LONGLIVE_RAG,
    MOTION_STREAM,
    ROLLING_FORCING,
    SHOT_STREAM,
    STREAM_DIFFUSION,
    STREAM_DIFFUSION_V2,
    CONTEXT_FORCING,
    ECHO_AVATAR,
    EGO_EDIT,
    IAMFLOW,
    PRISM,
    RAIN,
    SANA_STREAMING,
    STREAM_CHAR,
    STREAM_DIT,
    STREAM_FM,
    STREAMING_DIFFUSION_POLICY,
    STREAMING_T2V,
)
