# SPDX-License-Identifier: Apache-2.0
"""Small models for demos, tests and quality figures: byte-level decoders, and a denoiser."""

from .decoder import Attend, Decoder, DecoderConfig
from .denoiser import Denoiser, DenoiserConfig
from .files import load, names, save

__all__ = [
    "Attend",
    "Decoder",
    "DecoderConfig",
    "Denoiser",
    "DenoiserConfig",
    "load",
    "names",
    "save",
]
