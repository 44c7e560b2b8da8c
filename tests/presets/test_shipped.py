# SPDX-License-Identifier: Apache-2.0
"""The proof of a preset on the models that ship, reading English."""

import pytest
import torch

from headrace import models, presets

from ..streams.conftest import one_thread  # noqa: F401

TEXT = (
    b"A headrace brings the stream to the wheel. Water that has passed is gone, the wheel keeps "
    b"turning, and what the miller knows of the river is the little that stands in the channel. "
    b"def turn(wheel, water):\n    for drop in water:\n        wheel.angle += drop.weight\n"
)


@pytest.mark.parametrize("name", models.names())
def test_streaming_llm_is_proved_on_shipped_models(name):
    checks = presets.get("streaming_llm").check(
        models.load(name), sinks=4, window=60, tokens=torch.tensor(list(TEXT))
    )
    assert all(check.passed for check in checks), checks
    assert all(check.figure > 0 for check in checks if "oracle" in check.name)
