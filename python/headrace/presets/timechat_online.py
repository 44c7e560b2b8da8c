# SPDX-License-Identifier: Apache-2.0
"""TimeChat-Online: of every frame the tokens that differ from the frame before; a cut is a cue.

Yao et al., arXiv 2504.17343, and its code (github.com/yaolinli/TimeChat-Online), which were read:
tokens behind the encoder and the merger are dropped before the first layer of the language model
(see `recipes.timechat_online`), the survivors keep the time, row and column that they would have
had, the newest 6,000 of them are kept, and a valley in the share that is dropped, where the scene
changes, is the cue to answer. Defaults are the threshold of its examples, features, 6,000.

Chosen here: a valley is a frame of which less is dropped than of both its neighbours, so that the
cue comes one frame late, where the demo looks for the lowest tenth of a whole video; one frame is a
token's time, where Qwen2.5-VL takes two. `method="pixel"` compares the pixels of a token, from 0 to
1, by their mean difference; a token is dropped below 0.04, for no published default of that was
found. `reference="kept"` compares with what was last kept instead, so that a slow change surfaces,
which no published form does.

Oracle: all tokens of all frames in one masked forward in fp64, at their positions, in which those
that were dropped are seen by nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import bad_value
from ..filters import Decision, Filter, LastKept, PreviousFrame, encode, patchify, places
from ..streams import Gate, SceneCut, Signal
from . import pruning_oracle as plain
from .given import counts
from .proof import BOUND, Check, Preset
from .small_reader import Reading, SmallModel, SmallReader
from .small_vision import MERGE, PATCH, SmallVision, film

__all__ = ["TimeChatOnline", "Watched", "timechat_online"]

THRESHOLD, PIXELS, KEPT = 0.5, 0.04, 6000


@dataclass(frozen=True)
class Watched:
    """Of a frame: which tokens are kept, where they stand int32 [K, 3], what the reader makes of
    them fp32 [K, W], the share that is dropped, and whether the one before was a scene change."""

    kept: Decision
    positions: Tensor
    read: Tensor
    dropped: float
    fires: bool


class TimeChatOnline:
    """`feed(frame)` watches the next frame, uint8 [H, W, C]. reading: the stream of the reader."""

    def __init__(self, model: Any, drop: Filter, gate: Gate, kept: int) -> None:
        self.model, self.drop, self.gate = model, drop, gate
        self.reading = Reading(model.reader, reach=kept)
        self.frames = 0

    @torch.no_grad()
    def feed(self, frame: Tensor) -> Watched:
        """Encodes the next frame and reads those of its tokens that are not dropped."""
        vision, grid = self.model.vision, self.model.vision.grid
        patches = patchify(frame, PATCH)
        at = torch.arange(len(patches), dtype=torch.int32)
        features = encode(vision.layers, vision.embed(patches, at)[None])[0]
        cells = features.view(grid[0] // MERGE[0], MERGE[0], grid[1] // MERGE[1], MERGE[1], -1)
        tokens = vision.project(cells.transpose(1, 2).flatten(0, 1).flatten(1))
        kept = self.drop(tokens if self.drop.patch is None else frame).fitted()
        kept = replace(kept, grid=(cells.shape[0], cells.shape[2]))
        positions = places(kept, self.frames)
        read = self.reading.feed(kept.rows(tokens), positions)
        dropped = float(kept.dropped())
        self.frames += 1
        return Watched(kept, positions, read, dropped, self.gate(Signal(dropped=dropped)))


def timechat_online(
    model: Any,
    *,
    threshold: float | None = None,
    method: str = "feature",
    reference: str = "previous",
    kept: int = KEPT,
    gate: Gate | None = None,
) -> TimeChatOnline:
    """A stream over a model with `vision` and `reader`, such as
    `headrace.presets.small_reader.SmallModel`.

    method: "feature" or "pixel", what is compared. threshold: the cosine of features above which a
    token is dropped, 0.5 unless said; of pixels, from 0 to 1, the mean difference below which it
    is, 0.04 unless said. reference: "previous" or "kept", what with. kept: of how many tokens the
    reader's memory is. gate: of the share dropped; `SceneCut()` without it. ValueError for another
    method or reference, or a kept below 1.
    """
    counts("timechat_online", kept=kept)
    kinds = {"previous": PreviousFrame, "kept": LastKept}
    if reference not in kinds:
        raise bad_value("timechat_online", "reference", "previous or kept", repr(reference))
    if method not in ("feature", "pixel"):
        raise bad_value("timechat_online", "method", "feature or pixel", repr(method))
    if method == "pixel":
        most = 255 * (PIXELS if threshold is None else threshold)
        drop = kinds[reference](most, "l1", MERGE[0] * PATCH)
    else:
        drop = kinds[reference](THRESHOLD if threshold is None else threshold)
    return TimeChatOnline(model, drop, gate or SceneCut(), kept)


def dropped_by_rule(tokens: Tensor, threshold: float) -> Tensor:
    """bool [T, P] of tokens fp64 [T, P, D], one pair of neighbours after the other."""
    mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    for t in range(1, len(tokens)):
        for p in range(tokens.shape[1]):
            a, b = tokens[t, p], tokens[t - 1, p]
            scale = a.norm() * b.norm()
            mask[t, p] = scale > 0 and float((a @ b / scale).float()) > threshold
    return mask


def same_pixels(clip: Tensor, grid: tuple[int, int], threshold: float) -> Tensor:
    """bool [T, P] of frames uint8 [T, H, W, C]: which tokens' pixels differ by less."""
    side, mask = MERGE[0] * PATCH, torch.zeros(len(clip), grid[0], grid[1], dtype=torch.bool)
    for t, y, x in torch.cartesian_prod(*map(torch.arange, mask.shape)).tolist():
        a, b = (clip[i, y * side : y * side + side, x * side : x * side + side].double() / 255
                for i in (t, t - 1))  # fmt: skip
        mask[t, y, x] = t > 0 and float((a - b).abs().mean()) < threshold
    return mask.flatten(1)


def check(model: Any, *, frames: int = 18, threshold: float = 0.9, kept: int = 100) -> list[Check]:
    """Drops, positions, what is read and when the gate fires, on a film with one cut.

    The reader's memory is short enough that old tokens leave it.
    """
    clip, vision = film(frames, model.vision.grid), model.vision
    grid = (vision.grid[0] // 2, vision.grid[1] // 2)
    features = [plain.encoded(vision.layers, plain.embedded(vision, f, PATCH)) for f in clip]
    tokens = torch.stack([plain.merged(vision, x, vision.grid) for x in features])
    away = dropped_by_rule(tokens, threshold)
    stream = timechat_online(model, threshold=threshold, kept=kept)
    seen = [stream.feed(frame) for frame in clip]
    wrong = sum(int((s.kept.mask == a).sum()) for s, a in zip(seen, away, strict=True))
    at = plain.positions(frames, grid)
    stay = ~away.flatten()
    got = torch.cat([s.positions for s in seen]).long()
    same = got.shape == at[stay].shape
    moved = int((got != at[stay]).sum()) if same else len(at)
    on = stay.expand(len(model.reader.layers), -1)
    want = plain.read(model.reader, tokens.flatten(0, 1), at, on, reach=kept)[stay]
    read = torch.cat([s.read for s in seen])
    pixels, same_at = timechat_online(model, method="pixel"), 0
    for frame, gone in zip(clip, same_pixels(clip, grid, PIXELS), strict=True):
        same_at += int((pixels.feed(frame).kept.mask == gone).sum())
    share = away.double().mean(1).tolist()
    valleys = [t > 1 and share[t - 2] > share[t - 1] < share[t] for t in range(frames)]
    fired = sum(s.fires != v for s, v in zip(seen, valleys, strict=True))
    cut = -(-frames // 3)
    left = int(stay.sum()) - kept
    return [
        Check("tokens kept or dropped against the rule", wrong, 0),
        Check("the same by pixels", same_at, 0),
        Check("survivors that are not at their original position", moved, 0),
        Check("max |read - masked forward over all|", _gap(read, want), BOUND),
        Check("frames at which the gate and the valleys differ", fired, 0),
        Check("cuts that pass without a cue", 1 - seen[cut + 1].fires, 0),
        Check("share kept of all tokens", float(stay.double().mean()), 0.6),
        Check("films too short to fill the memory", int(left <= 0), 0),
    ]


def _gap(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max()) if got.shape == want.shape else torch.inf


def sample() -> SmallModel:
    return SmallModel(SmallVision((8, 10)), SmallReader())


PRESET = Preset(
    "timechat_online",
    "Yao et al., 2025; arXiv 2504.17343, github.com/yaolinli/TimeChat-Online",
    timechat_online,
    check,
    sample=sample,
    kind="pruning",
)
