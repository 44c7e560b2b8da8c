# SPDX-License-Identifier: Apache-2.0
"""Small byte-level decoders that come with the package, for demos, tests and quality figures."""

from .decoder import Attend, Decoder, DecoderConfig
from .files import load, names, save

__all__ = ["Attend", "Decoder", "DecoderConfig", "load", "names", "save"]
