# SPDX-License-Identifier: Apache-2.0
"""The retention mask of a serving engine's video pipeline."""

import pytest
import torch
import torch.nn.functional as F

from headrace.filters import LastKept
from headrace.integrations.evs import merged, retention_mask


def clip(frames=5, rows=4, columns=6, width=24):
    made = torch.Generator().manual_seed(0)
    x = torch.randn(1, rows * columns, width, generator=made).repeat(frames, 1, 1)
    x = x + 0.1 * torch.randn(x.shape, generator=made)  # no two differ alike
    for t in range(1, frames):
        at = torch.randperm(rows * columns, generator=made)[:9]
        x[t:, at] += torch.rand(9, 1, generator=made) * torch.randn(9, width, generator=made)
    return x


def by_definition(x, q):
    """As published: one less the cosine to the frame before, a stable descending sort."""
    frames, places, _ = x.shape
    off = torch.full((frames, places), 255.0)
    off[1:] = 1 - F.cosine_similarity(x[1:], x[:-1], dim=-1)
    order = off.flatten().sort(descending=True, stable=True).indices
    mask = torch.zeros(frames * places, dtype=torch.bool)
    mask[order[: max(places, int(frames * places * (1 - q)))]] = True
    return mask


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 0.75, 0.99])
def test_alone_it_is_the_published_mask(q):
    x = clip()
    got = retention_mask(x.flatten(0, 1), (5, 8, 12), 2, q)
    assert torch.equal(got, by_definition(x, q))
    assert torch.equal(retention_mask(x.flatten(0, 1), torch.tensor([5, 8, 12]), 2, q), got)


@pytest.mark.parametrize("q", [0.3, 0.5, 0.7])
def test_what_a_gate_kept_comes_first_and_the_count_is_exact(q):
    x = clip()
    pixels = torch.randint(0, 256, (1, 32, 48, 3), generator=torch.Generator().manual_seed(2))
    pixels = pixels.repeat(5, 1, 1, 1)
    for t in range(1, 5):
        pixels[t:, 4 * t : 4 * t + 4, 8:16] = 40 * t
    gate = LastKept(3.0, "l1", patch=4)
    wanted = merged([gate(frame) for frame in pixels.byte()], 2)
    assert wanted.shape == (5, 24)
    assert wanted[0].all()
    assert 0 < int(wanted[1:].sum()) < 15
    got = retention_mask(x.flatten(0, 1), (5, 8, 12), 2, q, wanted=wanted)
    assert int(got.sum()) == max(24, int(120 * (1 - q)))
    assert got[:24].all()
    room = int(got.sum()) - 24
    if room >= int(wanted[1:].sum()):
        assert got[wanted.flatten()].all()
    rest = by_definition(x, 0.0) & ~wanted.flatten()
    off = 1 - F.cosine_similarity(x[1:], x[:-1], dim=-1).flatten()
    kept, left = (off[(m & rest)[24:]] for m in (got, ~got))
    if len(kept) and len(left):
        assert kept.min() >= left.max()
    assert not torch.equal(got, by_definition(x, q))


def test_mistakes_are_named():
    x = clip().flatten(0, 1)
    for change, told in (
        ({"video_embeds": x[1:]}, "video_embeds"),
        ({"spatial_merge_size": 0}, "spatial_merge_size"),
        ({"q": 1.0}, "rate"),
        ({"wanted": torch.ones(5, 24)}, "wanted"),
    ):
        given = {
            "video_embeds": x, "video_size_thw": (5, 8, 12), "spatial_merge_size": 2, "q": 0.5,
        } | change  # fmt: skip
        with pytest.raises(ValueError, match=told):
            retention_mask(**given)
