# SPDX-License-Identifier: Apache-2.0
"""The delta family in Triton. Not yet seen running on a GPU."""

from .triton_frames import frame_delta_rule
from .triton_gated import gated_delta_rule

__all__ = ["frame_delta_rule", "gated_delta_rule"]
