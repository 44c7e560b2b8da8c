# SPDX-License-Identifier: Apache-2.0
"""One mask from pixels to summaries, against definitions that compute everything."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from headrace.filters import (
    BlockSummaries,
    GatedVideo,
    LastKept,
    PreviousFrame,
    encode,
    patchify,
    places,
)
from headrace.presets.small_vision import SmallVision, film
from tests.filters.test_encoder import gated
from tests.recipes import plain


class Watched(SmallVision):
    """Counts the patches and the groups that it is given."""

    embedded = projected = 0

    def embed(self, patches, places):
        self.embedded += patches.shape[-2]
        return super().embed(patches, places)

    def project(self, groups):
        self.projected += groups.shape[-2]
        return super().project(groups)


def cells(frame, size):
    """Rows of pixels of each patch, by slices."""
    return torch.stack([
        frame[y : y + size, x : x + size].reshape(-1)
        for y in range(0, frame.shape[0], size) for x in range(0, frame.shape[1], size)
    ])  # fmt: skip


def grouped(features, grid, merge):
    """Features of every group side by side, by slices; 0 beyond the edges."""
    padded = F.pad(features.view(*grid, -1), (0, 0, 0, -grid[1] % merge[1], 0, -grid[0] % merge[0]))
    return torch.stack([
        padded[y : y + merge[0], x : x + merge[1]].reshape(-1)
        for y in range(0, grid[0], merge[0]) for x in range(0, grid[1], merge[1])
    ])  # fmt: skip


@pytest.mark.parametrize("grid", [(6, 8), (5, 7), (2, 1)])
@pytest.mark.parametrize("kind", [LastKept, PreviousFrame])
def test_one_mask_serves_all(grid, kind):
    """Masks by the pixels alone; tokens of a dense model that keeps what every place last was."""
    model, frames = Watched(grid), film(9, grid)
    video = GatedVideo(kind(8.0, "l1", patch=4), model)
    reference, masks, inputs = None, [], []
    for frame in frames:
        now = cells(frame, 4)
        far = now.double() if reference is None else now.double() - reference.double()
        mask = far.abs().mean(-1) >= 8 if masks else torch.ones(len(now), dtype=torch.bool)
        reference = now if reference is None or kind is PreviousFrame else torch.where(
            mask[:, None], now, reference)  # fmt: skip
        masks.append(mask)
        inputs.append(model.embed(now, torch.arange(len(now))))
    dense = gated(model.layers, torch.stack(inputs), torch.stack(masks))
    model.embedded = model.projected = 0
    for t, frame in enumerate(frames):
        got = video(frame)
        assert torch.equal(got.patches.mask, masks[t])
        high, wide = -(-grid[0] // 2), -(-grid[1] // 2)
        pooled = F.max_pool2d(masks[t].view(1, 1, *grid).float(), 2, ceil_mode=True)
        kept = pooled.flatten().nonzero()[:, 0]
        assert got.tokens.index.tolist() == kept.tolist()
        assert got.positions.tolist() == [[t, int(i) // wide, int(i) % wide] for i in kept]
        groups = grouped(dense[t], grid, (2, 2))
        assert len(groups) == high * wide
        plain.near(got.rows, groups[kept] @ model.output.double().T, 1e-4)
    assert video.frames == 9
    assert model.embedded == int(torch.stack(masks).sum()) < 9 * len(masks[0])


def test_a_frame_that_is_all_new_is_all_computed():
    model, frames = SmallVision((4, 6)), film(3, (4, 6))
    video = GatedVideo(LastKept(-1.0, "l1", patch=4), model)
    for t, frame in enumerate(frames):
        got = video(frame)
        x = encode(model.layers, model.embed(patchify(frame, 4), torch.arange(24))[None])
        assert torch.equal(got.rows, model.project(grouped(x[0], (4, 6), (2, 2))))
        assert got.positions[:, 0].tolist() == [t] * 6
    video.reset()
    assert video(frames[0]).positions[:, 0].tolist() == [0] * 6


def test_streams_of_a_batch():
    """Two films together, each as alone; what is behind a count is 0 and stands nowhere."""
    model, one, two = SmallVision((4, 6)), film(6, (4, 6), 1), film(6, (4, 6), 2).flip(0)
    together = GatedVideo(LastKept(6.0, "l1", patch=4), model)
    alone = [GatedVideo(LastKept(6.0, "l1", patch=4), model) for _ in range(2)]
    ragged = False
    for frames in zip(one, two, strict=True):
        whole = together(torch.stack(frames))
        for b, frame in enumerate(frames):
            mine, n = alone[b](frame), int(whole.tokens.count[b])
            assert n == mine.tokens.count
            assert torch.equal(whole.rows[b, :n], mine.rows)
            assert torch.equal(whole.positions[b, :n], mine.positions)
            assert not whole.rows[b, n:].any()
            assert (whole.positions[b, n:] == -1).all()
            ragged |= n < whole.rows.shape[1]
    assert ragged


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.data())
def test_summaries_in_parts_are_those_of_all(block, batch, heads, data):
    gen = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    sums = BlockSummaries(block)
    came = [[] for _ in range(batch)]
    for _ in range(data.draw(st.integers(1, 6))):
        rows = data.draw(st.integers(0, 7))
        count = torch.randint(0, rows + 1, (batch,), generator=gen).int()
        x = torch.randn(batch, rows, heads, 16, generator=gen)
        x[torch.arange(rows) >= count[:, None]] = torch.nan
        sums.append(x, count)
        for b in range(batch):
            came[b].append(x[b, : count[b]])
    assert sums.tokens.tolist() == [sum(map(len, c)) for c in came]
    for b in range(batch):
        every = torch.cat(came[b])
        once = BlockSummaries(block)
        once.append(every, torch.tensor(len(every)).int())
        for i in range(sums.count.shape[1]):
            part = every[i * block : (i + 1) * block]
            assert sums.count[b, i] == len(part)
            if len(part):
                assert torch.equal(sums.low[b, i], part.amin(0))
                assert torch.equal(sums.high[b, i], part.amax(0))
                plain.near(sums.total[b, i], part.double().sum(0))
                assert torch.equal(sums.total[b, i], once.total[0, i])
            else:
                assert not sums.total[b, i].any()
                assert (sums.low[b, i] == torch.inf).all()


def test_only_blocks_that_get_a_token_change():
    """The fourth saving: a still scene touches no summary."""
    model, frames = SmallVision((6, 8)), film(4, (6, 8))
    video, sums = GatedVideo(LastKept(8.0, "l1", patch=4), model), BlockSummaries(4)
    written = 0
    for frame in [*frames, frames[-1]]:
        got = video(frame)
        before = None if sums.total is None else sums.total.clone()
        sums.append(got.rows.unflatten(-1, (2, 16)), got.tokens.count)
        first, written = written // 4, written + int(got.tokens.count)
        if before is not None:
            assert torch.equal(sums.total[:, :first], before[:, :first])
    assert got.tokens.count == 0
    assert torch.equal(sums.total, before)
    assert int(sums.count.sum()) == written


GATE = LastKept(8.0, "l1", patch=4)
ERRORS = [
    (lambda: GatedVideo(LastKept(0.5), SmallVision()), "GatedVideo(gate): expected a filter with"),
    (lambda: GatedVideo(GATE, SmallVision())(torch.zeros(7, 8, 3)), "whole patches of 4, got"),
    (lambda: BlockSummaries(0), "BlockSummaries(block): expected 1 or more, got 0"),
    (lambda: BlockSummaries(4).append(torch.zeros(2, 3), torch.zeros(2)), "and counts [B], got"),
    (lambda: places(LastKept(0.5)(torch.zeros(3, 4)), 0), "places(tokens): expected a decision"),
]


@pytest.mark.parametrize(("call", "told"), ERRORS)
def test_errors(call, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        call()
