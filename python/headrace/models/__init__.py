# SPDX-License-Identifier: Apache-2.0
"""Small models for demos, tests and figures: byte-level decoders, a denoiser, an encoder."""

from .conformer import Conformer, ConformerConfig
from .decoder import Attend, Decoder, DecoderConfig
from .denoiser import Denoiser, DenoiserConfig
from .files import load, names, save

__all__ = [
    "Attend",
    "Conformer",
    "ConformerConfig",
    "Decoder",
    "DecoderConfig",
    "Denoiser",
    "DenoiserConfig",
    "load",
    "names",
    "save",
]
