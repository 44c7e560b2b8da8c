# SPDX-License-Identifier: Apache-2.0
"""Small models for demos, tests and figures: byte-level decoders, a denoiser, an encoder, and a
model of video."""

from .conformer import Conformer, ConformerConfig
from .decoder import Attend, Decoder, DecoderConfig
from .denoiser import Denoiser, DenoiserConfig
from .files import load, names, save
from .tower_cache import TowerCache
from .vision import Vision, VisionConfig
from .vision_files import NAME as VISION
from .vision_files import load_vision, save_vision

__all__ = [
    "VISION",
    "Attend",
    "Conformer",
    "ConformerConfig",
    "Decoder",
    "DecoderConfig",
    "Denoiser",
    "DenoiserConfig",
    "TowerCache",
    "Vision",
    "VisionConfig",
    "load",
    "load_vision",
    "names",
    "save",
    "save_vision",
]
