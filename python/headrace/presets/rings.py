# SPDX-License-Identifier: Apache-2.0
"""Presets over `headrace.Ring`, those of the table's core first."""

from __future__ import annotations

from .demon import PRESET as DEMON
from .proof import Preset
from .rolling_forcing import PRESET as ROLLING_FORCING
from .stream_diffusion import PRESET as STREAM_DIFFUSION
from .stream_diffusion_v2 import PRESET as STREAM_DIFFUSION_V2

RINGS: tuple[Preset, ...] = (DEMON, ROLLING_FORCING, STREAM_DIFFUSION, STREAM_DIFFUSION_V2)
