# SPDX-License-Identifier: Apache-2.0
"""Published systems, each a few lines over the nouns, each with the proof that it equals its
oracle.

`get(name).open(model)` gives an engine, `get(name).check(model)` the proof as a list of `Check`.
"""

from .batch_llm import batch_llm
from .context_forcing import context_forcing
from .demon import demon
from .echo_avatar import echo_avatar
from .ego_edit import ego_edit
from .gpe import gpe
from .hexgen_text2sql import hexgen_text2sql
from .hybrid_forcing import hybrid_forcing
from .iamflow import iamflow
from .jitserve import jitserve
from .longlive_rag import longlive_rag
from .mmduet import mmduet
from .motion_stream import motion_stream
from .multi_stream import multi_stream
from .prism import prism
from .proof import Check, Preset
from .rain import rain
from .registry import get, names
from .rolling_forcing import rolling_forcing
from .saga import saga
from .sana_streaming import sana_streaming
from .shot_stream import shot_stream
from .speak_while_watching import speak_while_watching
from .stream2llm import stream2llm
from .stream_char import stream_char
from .stream_diffusion import stream_diffusion
from .stream_diffusion_v2 import stream_diffusion_v2
from .stream_dit import stream_dit
from .stream_fm import stream_fm
from .streaming_diffusion_policy import streaming_diffusion_policy
from .streaming_llm import streaming_llm
from .streaming_t2v import streaming_t2v
from .streaming_thinker import streaming_thinker
from .tays import tays
from .thunder_agent import thunder_agent
from .video_llm_online import video_llm_online

__all__ = [
    "Check",
    "Preset",
    "batch_llm",
    "context_forcing",
    "demon",
    "echo_avatar",
    "ego_edit",
    "get",
    "gpe",
    "hexgen_text2sql",
    "hybrid_forcing",
    "iamflow",
    "jitserve",
    "longlive_rag",
    "mmduet",
    "motion_stream",
    "multi_stream",
    "names",
    "prism",
    "rain",
    "rolling_forcing",
    "saga",
    "sana_streaming",
    "shot_stream",
    "speak_while_watching",
    "stream2llm",
    "stream_char",
    "stream_diffusion",
    "stream_diffusion_v2",
    "stream_dit",
    "stream_fm",
    "streaming_diffusion_policy",
    "streaming_llm",
    "streaming_t2v",
    "streaming_thinker",
    "tays",
    "thunder_agent",
    "video_llm_online",
]
