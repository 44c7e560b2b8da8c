# SPDX-License-Identifier: Apache-2.0
"""LS-EEND: who speaks when, frame by frame, in recordings of any length at constant memory.

Liang and Li, LS-EEND (2024), arXiv 2410.06670, github.com/Audio-WestlakeU/FS-EEND; abstract and
released model were read. A causal Conformer, with retention in place of attention and a convolution
of 16 taps, encodes every frame; a convolution of 19 taps, 9 of them ahead, smooths the encodings,
which are brought to length 1. The attractors are a second lane on the same clock: one for every
speaker and frame, made from the encoding and the speaker's number, which looks back along time by
retention and across to the other speakers of its frame by attention. Frame and attractor have a
product for every speaker. Retention does not decay (its logarithm is 0 in the release), and its
sum is normalised per head, which the root of the frame's number that divides it there would not
change. All that stays is a matrix per head and layer, for the frames and for every speaker.

Chosen here: the order within a layer of attractors (retention, speakers, feed-forward, each behind
a norm), the sizes, 4 speakers, and random weights.

Oracle: retention in its parallel form over the whole file, dense, and both convolutions at once.
Nothing is kept that could be encoded anew but sums.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..models import Conformer, ConformerConfig
from ..models.conformer import normed
from .encoding import BOUND, Mix, gap, whole
from .proof import Check, Preset

__all__ = ["Diarizer", "LsEend", "ls_eend"]

AHEAD = 9
_PARTS = ("query", "key", "value", "gate", "output", "query_2", "key_2", "value_2", "output_2")


class Diarizer(nn.Module):
    """The encoder, and the attractors' layers; random weights from `seed`."""

    def __init__(self, speakers: int = 4, layers: int = 2, *, seed: int = 0) -> None:
        super().__init__()
        config = ConformerConfig(stages=0, taps=16, gated=True)
        self.encoder = Conformer(config, seed=seed)
        self.speakers, width = speakers, config.width
        made = torch.Generator().manual_seed(seed + 1)

        def weight(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=made) * columns**-0.5

        self.smooth = nn.Parameter(weight(width, (2 * AHEAD + 1) * width))
        self.numbers = nn.Parameter(weight(speakers, width) * width**0.5)
        self.convert = nn.Parameter(weight(width, 2 * width))
        inner = config.heads * config.head_dim
        self.layers = nn.ModuleList()
        for _ in range(layers):
            shapes = {
                name: (width, inner) if "output" in name else (inner, width) for name in _PARTS
            }
            shapes |= {"up": (config.hidden, width), "down": (width, config.hidden)}
            self.layers.append(
                nn.ParameterDict({name: nn.Parameter(weight(*s)) for name, s in shapes.items()})
            )

    def lane(self, frames: Tensor, mix: Mix, across: Callable[..., Tensor]) -> Tensor:
        """Attractors [T, speakers, width] of encodings [T, width]. mix(layer, q, k, v), all
        [speakers T, H, D], speaker after speaker, looks back; across(q, k, v), [T, speakers, H, D],
        to the others."""
        c, mean, head = self.encoder.config, self.encoder.mean, self.encoder.head_mean
        linear, count = ops.linear if frames.dtype == torch.float32 else F.linear, len(frames)
        numbers = self.numbers[:, None].expand(-1, count, -1)
        wide = torch.cat([frames.expand(self.speakers, -1, -1), numbers], -1).flatten(0, 1)
        x = linear(wide, self.convert)

        def heads(name: str, y: Tensor) -> Tensor:
            made: Tensor = linear(y, at[name])
            return made.view(len(y), c.heads, c.head_dim)

        def by_frame(y: Tensor) -> Tensor:
            return y.unflatten(0, (self.speakers, count)).transpose(0, 1).contiguous()

        for layer, at in enumerate(cast(Iterable[nn.ParameterDict], self.layers)):
            seen = mix(layer, *(heads(name, x) for name in ("query", "key", "value")))
            seen = normed(seen.reshape(-1, c.head_dim), head, linear).view(len(x), -1)
            x = normed(x + linear(seen * F.silu(linear(x, at["gate"])), at["output"]), mean, linear)
            three = (by_frame(heads(name, x)) for name in ("query_2", "key_2", "value_2"))
            seen = across(*three).transpose(0, 1).reshape(len(x), -1)
            x = normed(x + linear(seen, at["output_2"]), mean, linear)
            step = linear(F.relu(linear(x, at["up"])), at["down"])
            x = normed(x + step, mean, linear)
        return by_frame(x)


def _unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


class LsEend:
    """`feed(frames)` gives products with every speaker's attractor; see `ls_eend`.

    attractors: [speakers, width] of the last frame that came out.
    """

    def __init__(self, model: Diarizer) -> None:
        self.model, c = model, model.encoder.config
        self.attractors: Tensor | None = None
        shape = (1, c.heads, c.head_dim, c.head_dim)
        of_speakers = (model.speakers, *shape[1:])
        self._kept = {
            "taps": torch.zeros(c.layers, 1, c.width, c.taps - 1),
            "frames": torch.zeros(c.layers, *shape),
            "speakers": torch.zeros(len(model.layers), *of_speakers),
        }
        self._smooth = torch.zeros(AHEAD, c.width)  # as before the first frame

    @torch.inference_mode()
    def feed(self, frames: Tensor) -> Tensor:
        """[m, speakers] for the frames that are done, with frames fp32 [n, inputs], any number."""
        kept = {name: state.clone() for name, state in self._kept.items()}

        def convolve(layer: int, h: Tensor, kernel: Tensor) -> Tensor:
            made: Tensor = ops.causal_conv(
                h.contiguous(), kernel, None, kept["taps"][layer], *_lists(1, len(h)),
                activation=None,
            )  # fmt: skip
            return made

        mix = _retention(kept["frames"])
        encoded = self.model.encoder(frames, mix, convolve, _none, ops.linear)
        return self._emit(encoded, kept)

    @torch.inference_mode()
    def finish(self) -> Tensor:
        """The last 9 frames, once nothing more comes."""
        kept = {name: state.clone() for name, state in self._kept.items()}
        ahead = torch.zeros(AHEAD, self.model.encoder.config.width)
        return self._emit(ahead, kept)

    def _emit(self, encoded: Tensor, kept: dict[str, Tensor]) -> Tensor:
        smooth, model = torch.cat([self._smooth, encoded]), self.model
        count, attractors = max(0, len(smooth) - 2 * AHEAD), self.attractors
        out = smooth.new_zeros(0, model.speakers)
        if count:
            wide = smooth.unfold(0, 2 * AHEAD + 1, 1).transpose(1, 2).flatten(1)
            frames = _unit(ops.linear(wide, model.smooth))
            lane = _unit(model.lane(frames, _retention(kept["speakers"]), _across))
            out, attractors = torch.einsum("tw,tcw->tc", frames, lane), lane[-1]
        self._kept, self._smooth = kept, smooth[count:].clone()
        self.attractors = attractors
        return out


def _lists(streams: int, rows: int) -> tuple[Tensor, Tensor]:
    """indptr and rows of so many streams of equal length."""
    size = rows // streams
    ends = torch.arange(0, rows + 1, size) if size else torch.zeros(streams + 1)
    return ends.to(torch.int32), torch.arange(streams, dtype=torch.int32)


def _retention(states: Tensor) -> Mix:
    """Over states [layers, streams, H, D, D], which go on in place."""

    def mix(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        state = states[layer]
        made: Tensor = ops.linear_attention(
            q, k, v, state, None, *_lists(len(state), len(q)),
            feature="none", scale=q.shape[2] ** -0.5,
        )  # fmt: skip
        return made

    return mix


def _across(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every speaker of a frame sees all of them."""
    seen = ops.attention(*(x.transpose(1, 2) for x in (q, k, v)), causal=False)
    assert isinstance(seen, Tensor)
    return seen.transpose(1, 2)


def _none(stage: int, h: Tensor) -> Tensor:
    raise AssertionError("a model without stages")


def ls_eend(model: Diarizer) -> LsEend:
    """The system: a stream of frames, 9 of which are on their way. It has no options, and raises
    nothing of its own."""
    return LsEend(model)


@torch.inference_mode()
def oracle(model: Diarizer, frames: Tensor) -> Tensor:
    """[T, speakers] fp64 of a whole file [T, inputs]."""

    def parallel(streams: int) -> Mix:
        def mix(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.unflatten(0, (streams, -1)) for x in (q, k, v))
            scores = torch.einsum("sihd,sjhd->shij", q, k).tril() * q.shape[-1] ** -0.5
            return torch.einsum("shij,sjhd->sihd", scores, v).flatten(0, 1)

        return mix

    def across(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("tihd,tjhd->thij", q, k) * q.shape[-1] ** -0.5
        return torch.einsum("thij,tjhd->tihd", weights.softmax(-1), v)

    encoded = whole(model.encoder, frames, lambda m, count: parallel(1))
    model = copy.deepcopy(model).double()
    width = encoded.shape[1]
    kernel = model.smooth.view(width, 2 * AHEAD + 1, width).transpose(1, 2)
    smooth = F.conv1d(encoded.T[None], kernel, padding=AHEAD)[0].T
    smooth = _unit(smooth)
    lane = _unit(model.lane(smooth, parallel(model.speakers), across))
    return torch.einsum("tw,tcw->tc", smooth, lane)


def check(model: Diarizer) -> list[Check]:
    """Equality with the parallel form however the frames come, at a delay and a size that stay."""
    made, checks = torch.Generator().manual_seed(17), []
    frames = torch.randn(90, model.encoder.config.inputs, generator=made)
    want, first = oracle(model, frames), torch.zeros(0)
    for size in (1, 40):
        system, out, late = ls_eend(model), [], 0
        for i, part in enumerate(frames.split(size)):
            out.append(system.feed(part))
            late = max(late, size * i + len(part) - sum(map(len, out)))
        sizes = sum(state.numel() for state in system._kept.values())
        got = torch.cat([*out, system.finish()])
        name = f"{size} frames at a time"
        claim = f"{name}: max |product - oracle| over max |oracle|"
        checks.append(Check(claim, gap(got, want), BOUND))
        checks.append(Check(f"{name}: frames on their way", late, AHEAD))
        first = got if size == 1 else first
        differ = int((got != first).sum())
        checks.append(Check(f"{name}, beside 1: values that differ", differ, 0))
    c = model.encoder.config
    most = c.layers * c.width * (c.taps - 1)
    most += (c.layers + len(model.layers) * model.speakers) * c.heads * c.head_dim**2
    checks.append(Check("numbers kept after all frames, of those for one", sizes, most))
    return checks


PRESET = Preset(
    "ls_eend",
    "Liang and Li, 2024; github.com/Audio-WestlakeU/FS-EEND",
    ls_eend,
    check,
    Diarizer,
    oracle,
    oracle,  # nothing is cached that could be encoded anew
    kind="net",
)
