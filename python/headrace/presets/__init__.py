# SPDX-License-Identifier: Apache-2.0
"""Published systems, each a few lines over the nouns, each with the proof that it equals its
oracle.

`get(name).open(model)` gives an engine, `get(name).check(model)` the proof as a list of `Check`.
"""

from .demon import demon
from .gpe import gpe
from .mmduet import mmduet
from .multi_stream import multi_stream
from .proof import Check, Preset
from .registry import get, names
from .rolling_forcing import rolling_forcing
from .speak_while_watching import speak_while_watching
from .stream_diffusion import stream_diffusion
from .stream_diffusion_v2 import stream_diffusion_v2
from .streaming_llm import streaming_llm
from .streaming_thinker import streaming_thinker
from .tays import tays
from .video_llm_online import video_llm_online

__all__ = [
    "Check",
    "Preset",
    "demon",
    "get",
    "gpe",
    "mmduet",
    "multi_stream",
    "names",
    "rolling_forcing",
    "speak_while_watching",
    "stream_diffusion",
    "stream_diffusion_v2",
    "streaming_llm",
    "streaming_thinker",
    "tays",
    "video_llm_online",
]
