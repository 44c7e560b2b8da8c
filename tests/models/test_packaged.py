# SPDX-License-Identifier: Apache-2.0
"""The packaged weights are there, small, and have learned something."""

from pathlib import Path

import pytest
import torch

import headrace.models
from headrace.models import load, names
from headrace.models.training.attention import banded, dense
from headrace.models.training.evaluate import losses

MEMORIES = {
    "bytes-stream": (252, 4, False),
    "bytes-dense": (None, 0, False),
    "bytes-sink-logits": (256, 0, True),
}

# Not from anybody's library.
SOURCE = '''
class Basin:
    """Holds water up to a limit and lets the rest run over."""

    def __init__(self, limit, level=0):
        if limit <= 0:
            raise ValueError("limit must be positive, not %r" % limit)
        self.limit = limit
        self.level = level
        self.lost = 0

    def __repr__(self):
        return "%s(%r, %r)" % (self.__class__.__name__, self.limit, self.level)

    def fill(self, amount):
        """Add the amount given and return the amount that did not fit."""
        self.level += amount
        rest = max(0, self.level - self.limit)
        self.level -= rest
        self.lost += rest
        return rest


class BasinTest(unittest.TestCase):
    def test_fill(self):
        basin = Basin(10)
        self.assertEqual(basin.fill(4), 0)
        self.assertEqual(basin.level, 4)
'''


def as_text(content: bytes, length: int = 768) -> torch.Tensor:
    return torch.tensor(list(content[: length + 1]))[None]


def test_names_are_the_packaged_files():
    assert names() == list(MEMORIES)
    folder = Path(headrace.models.__file__).parent
    assert {path.stem for path in folder.glob("*.safetensors")} == {
        *names(),
        headrace.models.VISION,
    }
    assert {path.stem for path in (folder / "cards").glob("*.md")} == {
        *names(),
        headrace.models.VISION,
    }
    for name in names():
        assert (folder / f"{name}.safetensors").stat().st_size < 10e6


@pytest.mark.parametrize("name", MEMORIES)
def test_packaged_model(name):
    model = load(name)
    window, sinks, learned = MEMORIES[name]
    config = model.config
    assert (config.window, config.sinks, config.sink_logits) == (window, sinks, learned)
    text = as_text(SOURCE.encode())
    piece = 256 if window is None else text.shape[1] - 1
    attend = dense(model, piece) if window is None else banded(model, piece, window, sinks, 128)
    order = torch.randperm(text.shape[1], generator=torch.Generator().manual_seed(0))
    told, shuffled = (
        torch.cat([losses(model, part[None], attend) for part in t[0].unfold(0, piece + 1, piece)])
        for t in (text, text[:, order])
    )
    assert told.mean() < 1.7  # nats per byte; uniform over 256 bytes is 5.5
    assert shuffled.mean() > told.mean() + 2


def test_learned_sinks_are_learned_and_used():
    model = load("bytes-sink-logits")
    assert model.learned_sinks.abs().min() > 0  # training began from 0
    text = as_text(SOURCE.encode())
    attend = banded(model, 768, 256, 0, 128)
    with_sinks = losses(model, text, attend)
    with torch.no_grad():
        model.learned_sinks.fill_(-1e4)
    # They take part; that they make the text likelier is not claimed at this size.
    assert (losses(model, text, attend) - with_sinks).abs().max() > 1e-3
