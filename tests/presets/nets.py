# SPDX-License-Identifier: Apache-2.0
"""Presets of networks, and what of their proofs fails."""

from __future__ import annotations

import sys

import pytest

from headrace import presets

NAMES = (
    "ancat", "careless_whisper", "hstu", "kv_bottleneck", "ls_eend", "mimi_tts", "sst_v2",
    "stateful_conformer", "stream_innc",
)  # fmt: skip
# The package has the functions under these names.
(
    ancat, careless_whisper, hstu, kv_bottleneck, ls_eend, mimi_tts, sst_v2, stateful_conformer,
    stream_innc,
) = (sys.modules[f"headrace.presets.{name}"] for name in NAMES)  # fmt: skip


def checked(name):
    preset = presets.get(name)
    return preset.check(preset.sample())


def failed(name):
    with pytest.MonkeyPatch.context() as patch:  # one look-ahead will do
        patch.setattr(stateful_conformer, "LOOK_AHEAD", (1040,))
        return [check.name for check in checked(name) if not check.passed]
