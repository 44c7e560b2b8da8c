# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ..errors import bad_value
from .batch_llm import PRESET as BATCH_LLM
from .gpe import PRESET as GPE
from .hexgen_text2sql import PRESET as HEXGEN_TEXT2SQL
from .jitserve import PRESET as JITSERVE
from .mmduet import PRESET as MMDUET
from .multi_stream import PRESET as MULTI_STREAM
from .proof import Preset
from .rings import RINGS
from .saga import PRESET as SAGA
from .speak_while_watching import PRESET as SPEAK_WHILE_WATCHING
from .stream2llm import PRESET as STREAM2LLM
from .streaming_llm import PRESET as STREAMING_LLM
from .streaming_thinker import PRESET as STREAMING_THINKER
from .tays import PRESET as TAYS
from .thunder_agent import PRESET as THUNDER_AGENT
from .video_llm_online import PRESET as VIDEO_LLM_ONLINE

_PRESETS = {
    preset.name: preset
    for preset in (
        STREAMING_LLM,
        GPE,
        MMDUET,
        MULTI_STREAM,
        SPEAK_WHILE_WATCHING,
        STREAMING_THINKER,
        TAYS,
        VIDEO_LLM_ONLINE,
        BATCH_LLM,
        STREAM2LLM,
        JITSERVE,
        THUNDER_AGENT,
        SAGA,
        HEXGEN_TEXT2SQL,
        *RINGS,
    )
}


def names() -> list[str]:
    """Every preset, in the order of the registry."""
    return list(_PRESETS)


def get(name: str) -> Preset:
    """A preset by name. ValueError, listing those there are, when it is unknown."""
    if name not in _PRESETS:
        raise bad_value("presets.get", "name", "one of " + ", ".join(_PRESETS), repr(name))
    return _PRESETS[name]
