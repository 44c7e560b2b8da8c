# SPDX-License-Identifier: Apache-2.0
"""The numbers that systems publish, beside those that their presets begin with."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

from headrace import presets
from headrace.presets.ring_loops import small_denoiser
from headrace.streams import PplRise, Ring, TokenProb

# By preset: an argument of the function that opens it, `what.argument` of another one of its
# module, or a constant there in capitals.
PUBLISHED = {
    "streaming_llm": {"sinks": 4, "window": 2000},
    "sir_llm": {"first": 4, "scored": 1000, "turn.decay": 1.0},
    "streaming_vlm": {"seconds": 16, "first": 512, "newest": 512, "comment.longest": 20},
    "infinite_vggt": {"total": 1_200_000, "TEMPERATURE": 0.5},
    "live_star": {"narrate.ratio": 1.03, "narrate.most": 24},
    "video_llm_online": {"THRESHOLD": 0.725, "FRAME": 10, "LONGEST": 100, "watch.longest": 100},
    "gpe": {"phi": 0},
    "speak_while_watching": {"SCHEMES": {"group": 0, "gap": 10_000, "overlapped": "frames"}},
    "stream_uni": {"LONGEST": 30.0, "MOST": 8},
    "careless_whisper": {"chunk": 15, "ADAPTED": ("query", "key", "value", "output")},
    "sf_hand": {"capacity": 1386},
    "videochat_online": {"sides": (16, 8, 4), "every": (8, 4, 1), "room": (64, 64, 64)},
    "show_ui": {"skip": 0.5},
    "stream_dit": {"micro": 1},
    "stream_fm": {"window": 512},
    "context_forcing": {"sinks": 3, "slow": 12, "fast": 6, "below": 0.95},
    "rekv": {"window": 15_000, "frame": 196, "top": 64, "ask.top": 64},
    "v_rex": {"Selector.share": 0.3, "Selector.near": 7, "Selector.bits": 32},
    "live_vlm": {"budget": 12_000, "Video.budget": 12_000, "Video.ask.share": 0.4, "PAGE": 16},
    "flex_mem": {"clip": 8 * 196},
    "flash_vstream": {
        "ROUNDS": 10, "STILL": 1e-4, "GIVE": 0.2, "Sizes.spatial": 1, "Sizes.temporal": 25,
        "Sizes.abstract": 25, "Sizes.retrieved": 3, "Sizes.spatial_side": 8,
        "Sizes.temporal_side": 4, "Sizes.abstract_side": 1, "Sizes.buffer": 300,
    },
    "save_mem": {
        "short": 8, "mid": 256, "budget": 2048, "top": 16, "SAME": 0.8, "WORTH": 0.15, "CUT": 1.5,
    },
    "stc": {"ratio": 0.25, "interval": 2, "tokens": 60},
    "timechat_online": {"THRESHOLD": 0.5, "kept": 6000},
    "video_llm_mod": {"ratio": 0.2},
    "longlive_rag": {"sinks": 1, "top": 6, "local": 5, "guard": 5},
    "stream_diffusion": {
        "timesteps": (359, 99), "guidance": "self", "scale": 1.2, "SimilarFilter.threshold": 0.98,
        "SimilarFilter.most": 10,
    },
    "stream_diffusion_v2": {"sinks": 3, "window": 3, "swap": 0.2, "patience": 0.5},
    "hybrid_forcing": {"sinks": 1, "window": 3, "span": 3, "share": 0.2, "block": 64},
    "rolling_forcing": {"sinks": 1, "block": 3},
    "motion_stream": {"sinks": 1, "chunk": 3},
    "shot_stream": {"JUMP": 8},
    "demon": {"DEPTH": 4, "depth": 4, "STEPS": 8},
    "stateful_conformer": {"window": 70, "FRAME_MS": 10, "LOOK_AHEAD": (0, 80, 480, 1040)},
    "mimi_tts": {"LEVELS": 32},
    "thunder_agent": {"period": 5.0},
    "mint": {"slots": 64, "STREAMS": 64},
}  # fmt: skip

FOUR = (1.0, 0.9375, 0.8333333, 0.625)
"""1000, 750, 500 and 250 of 1000, shifted by 5: 5 l / (1 + 4 l)."""
LEVELS = {
    "context_forcing": FOUR,
    "ego_edit": FOUR,
    "hybrid_forcing": FOUR,
    "iamflow": FOUR,
    "longlive_rag": FOUR,
    "sana_streaming": FOUR,
    "shot_stream": FOUR,
    "stream_char": FOUR,
    "streaming_t2v": FOUR,
    "motion_stream": (1.0, 0.9090909, 0.7142857),
    "rolling_forcing": (1.0, 0.9523810, 0.8823529, 0.7692308, 0.5555556),
    "stream_diffusion": (0.7130916, 0.3233222),
    "rain": (0.9976672, 0.9735436, 0.8499002, 0.5839730),
}


def told(name, path):
    """The number at a path of PUBLISHED."""
    module, at = importlib.import_module(f"headrace.presets.{name}"), presets.get(name).open
    *inside, argument = path.split(".")
    if argument.isupper():
        return getattr(module, argument)
    if inside:
        at = module
        for part in inside:
            at = getattr(at, part)
    return inspect.signature(at).parameters[argument].default


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_begin_with_what_is_published(name):
    numbers = PUBLISHED[name]
    assert {path: told(name, path) for path in numbers} == numbers


def test_gates_begin_with_what_is_published():
    default = {
        (gate, name): inspect.signature(gate).parameters[name].default
        for gate, name in ((TokenProb, "threshold"), (PplRise, "ratio"))
    }
    assert default == {(TokenProb, "threshold"): 0.725, (PplRise, "ratio"): 1.03}


def opened(name):
    """The ring that a preset opens, with its own defaults."""
    denoiser = presets.get(name).sample()
    if name == "hybrid_forcing":
        denoiser = small_denoiser(tokens=64, fold=True)
    more = {"ego_edit": (torch.ones(8),), "stream_char": (torch.zeros(3, 8), [4] * 3)}
    made = presets.get(name).open(denoiser, *more.get(name, ()))
    while not isinstance(made, Ring):
        made = made.ring
    return made


@pytest.mark.parametrize("name", LEVELS)
def test_rings_begin_with_the_levels_that_are_published(name):
    with opened(name) as ring:
        assert ring.knobs["levels"] == pytest.approx(LEVELS[name], abs=1e-6)
