# SPDX-License-Identifier: Apache-2.0
"""A stream of frames equals a dense forward in which every query sees what is alive at its time."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from headrace import Sink, Window
from headrace.filters import LastKept
from headrace.models import Vision, VisionConfig
from headrace.models.training.video import gated, watch
from headrace.streams.watch import Watcher, pixel_gate, token_dropper

ROWS, COLUMNS, PATCH = 3, 4, 4
SMALL = VisionConfig(
    patch=PATCH, thumb=2, width=24, heads=2, kv_heads=1, head_dim=16, tower_layers=2,
    tower_hidden=32, layers=2, hidden=32, codes=8, threshold=20.0, reach=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    """Random, every weight loud enough to matter."""
    torch.manual_seed(0)
    made = Vision(SMALL)
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim == 2:
                p.normal_(std=1.5 * p.shape[1] ** -0.5)
        made.frame.normal_()
        made.prior.normal_()
        made.signs.normal_(std=0.3)
    return made.eval()


@pytest.fixture(scope="module")
def frames():
    """24 frames: something moves over noise that is below the threshold; a cut at 15."""
    made = torch.Generator().manual_seed(1)
    ground = torch.randint(40, 200, (2, ROWS * PATCH, COLUMNS * PATCH, 3), generator=made)
    clip = []
    for t in range(24):
        x = ground[int(t > 14)] + torch.randint(-5, 6, ground[0].shape, generator=made)
        x[t % 9 : t % 9 + 3, (2 * t) % 13 : (2 * t) % 13 + 4] = 250
        clip.append(x.clamp(0, 255).byte())
    return torch.stack(clip)


def shifted(frame, y, x, side):
    """Squares [K, side, side, 3] of a frame about a corner, one for each shift; what is outside is
    as the edge."""
    reach = SMALL.reach
    moves = [(a, b) for a in range(-reach, reach + 1) for b in range(-reach, reach + 1)]
    edge = torch.tensor(frame.shape[:2]) - 1
    rows, columns = ((torch.arange(side) + at) for at in (y, x))
    squares = [
        frame[(rows + a).clamp(0, edge[0])][:, (columns + b).clamp(0, edge[1])] for a, b in moves
    ]
    return torch.stack(squares)


def matched(before, now):
    """Costs [N, 2 K] of frames [H, W, 3], by the shifts one at a time."""
    own = []
    for y in range(0, ROWS * PATCH, PATCH):
        for x in range(0, COLUMNS * PATCH, PATCH):
            here = now[y : y + PATCH, x : x + PATCH].float().mean(-1)
            there = shifted(before, y, x, PATCH).float().mean(-1)
            own.append((there - here).abs().mean((1, 2)))
    own = torch.stack(own).view(ROWS, COLUMNS, -1)
    rows = [[max(0, min(ROWS - 1, r + d)) for d in (-1, 0, 1)] for r in range(ROWS)]
    columns = [[max(0, min(COLUMNS - 1, c + d)) for d in (-1, 0, 1)] for c in range(COLUMNS)]
    around = torch.stack([own[r][:, c].mean((0, 1)) for r in rows for c in columns])
    both = torch.stack([own.flatten(0, 1), around], 1).add(1).log()
    return (both - both.mean(-1, keepdim=True)).flatten(1)


def moved(model, frame, place, said, costs, thumb):
    """The thumb [small] that comes next in a place."""
    trust = F.softplus(model.trust @ said + model.prior[-4:])
    weight = (model.shift @ said + model.prior[:-4] - trust @ costs.view(4, -1)).softmax(0)
    y, x = place // COLUMNS * PATCH, place % COLUMNS * PATCH
    squares = shifted(frame / 127.5 - 1, y, x, PATCH).movedim(-1, 1)
    small = F.avg_pool2d(squares, PATCH // SMALL.thumb).movedim(1, -1).flatten(1)
    return thumb + 0.02 * model.move @ said + weight @ small - small[len(small) // 2]


def expected(model, frames, changed, kept, memory, cap, wrong=None):
    """p(cut) [F] and the thumb that is foretold for every place, by plain torch. `wrong` names a
    term that is got wrong, to show that the tests would see it."""
    c, places = model.config, ROWS * COLUMNS
    patches = model.patches(frames)
    cos, sin = model.turns(ROWS, COLUMNS)
    stale = {}
    tower = []
    for t in range(len(frames)):
        at = changed[t].nonzero()[:, 0] if wrong != "all computed" else torch.arange(places)

        def attend(layer, q, k, v, at=at):
            keys, values = stale.setdefault(
                layer, (torch.zeros(places, *k.shape[1:]), torch.zeros(places, *v.shape[1:]))
            )
            keys[at], values[at] = k, v
            weight = torch.einsum("qhd,khd->hqk", q, keys) * c.head_dim**-0.5
            return torch.einsum("hqk,khd->qhd", weight.softmax(-1), values)

        whole = tower[-1].clone() if tower else torch.zeros(places, c.width)
        whole[at] = model.encode(patches[t, at], (cos[at], sin[at]), attend)
        tower.append(whole)
    none = torch.zeros(places, 2 * (2 * c.reach + 1) ** 2)
    costs = [none] + [matched(*two) for two in pairwise(frames)]
    fixed = torch.full_like(none, 5.0).unflatten(1, (2, -1))
    fixed[..., fixed.shape[-1] // 2] = 0
    pasts = [none, none, *costs[1:]]
    costs[0] = fixed.flatten(1)
    costs = [torch.cat(two, 1) for two in zip(costs, pasts, strict=False)]
    if wrong == "no motion":
        costs = [torch.cat([none, none], 1)] * len(frames)
    x, where, ends, rows = [], [], [], []
    small = model.thumbs(patches)
    shown, stirs, known = small[0], [], None
    for t in range(len(frames)):
        change = torch.where(changed[t, :, None], small[t] - shown, 0.0)
        shown = torch.where(changed[t, :, None], small[t], shown)
        far = change.abs().mean(-1)
        stir = torch.stack([far.mean(), (far > 0.15).float().mean()])
        stirs.append((stir, stir if known is None else known))
        if t:
            known = stir if known is None else 0.8 * known + 0.2 * stir
        for p in kept[t].nonzero()[:, 0].tolist():
            told = 0 if wrong == "no change" else model.change @ change[p]
            rows.append((t, p, len(x)))
            x.append(tower[t][p] + told + model.matched @ costs[t][p])
            where.append((t, p // COLUMNS, p % COLUMNS))
        ends.append(len(x))
        x.append(model.frame)
        where.append((t, 0, 0))
    place = torch.tensor(where)
    number = torch.arange(len(x))
    alive = memory.keeps(number[:, None], number[None])
    pinned = number[None] < memory.plan().pinned
    steps = place[:, None] - place[None]
    if wrong != "cap":
        steps[..., 0] = torch.where(pinned, place[:, None, 0].clamp(max=cap), place[:, None, 0])
        steps[..., 0] -= place[None, :, 0]
    if wrong == "one axis":
        steps[..., 1:] = 0

    def across(layer, q, k, v):
        angle = steps.double()[..., model.freq_axis.long()] * model.inv_freq
        cos, sin = angle.cos().float(), angle.sin().float()
        a, b = q.chunk(2, -1)
        a, b = a[:, None], b[:, None]
        turned = torch.cat(
            [a * cos[:, :, None] - b * sin[:, :, None], b * cos[:, :, None] + a * sin[:, :, None]],
            -1,
        )
        k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], 1) for y in (k, v))
        weight = (turned * k[None]).sum(-1) * c.head_dim**-0.5
        weight = weight.masked_fill(~alive[..., None], -torch.inf).softmax(1)
        return torch.einsum("qkh,khd->qhd", weight, v)

    said = model.decode(torch.stack(x), across)
    last, next_ = {}, small.clone()
    by_frame = {(t, p): i for t, p, i in rows}
    for t in range(len(frames)):
        for p in changed[t].nonzero()[:, 0].tolist():
            last[p] = said[by_frame[t, p]] if (t, p) in by_frame else last[p]
            heard = torch.zeros(c.width) if wrong == "not held" and not kept[t, p] else last[p]
            next_[t, p] = moved(model, frames[t], p, heard, costs[t][p], small[t, p])
    of, before = (torch.stack(column) for column in zip(*stirs, strict=True))
    return model.new_scene(said[ends], of, before).sigmoid(), next_


def streamed(model, frames, **options):
    with Watcher(model, ROWS * PATCH, COLUMNS * PATCH, page_size=16, **options) as watcher:
        seen = [watcher.feed(frame) for frame in frames]
    kept = torch.stack([g.kept for g in seen])
    cuts = torch.tensor([g.cut for g in seen])
    return seen, kept, cuts, torch.stack([g.next_thumbs for g in seen])


MEMORY = Sink(5) + Window(40)


@torch.no_grad()
@pytest.mark.parametrize("dropper", [None, 0.7])
@pytest.mark.parametrize("pruned", [True, False])
def test_equals_a_dense_forward(model, frames, pruned, dropper):
    drop = None if dropper is None else token_dropper(dropper)
    gate = pixel_gate(model) if pruned else None
    seen, kept, cuts, next_ = streamed(model, frames, gate=gate, dropper=drop, memory=MEMORY, cap=4)
    changed = torch.stack([g.changed for g in seen])
    assert torch.equal(changed, gated(model, frames, 20.0 if pruned else 0.0))
    assert pruned == (float(changed[1:].float().mean()) < 0.8)
    assert (dropper is None) == torch.equal(kept, changed)
    assert int(kept.sum()) + len(frames) > 2 * 45, "the window must have passed over the stream"
    want, thumbs = expected(model, frames, changed, kept, MEMORY, 4)
    torch.testing.assert_close(cuts, want, atol=2e-5, rtol=0)
    torch.testing.assert_close(next_, thumbs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "wrong", ["cap", "one axis", "all computed", "window", "no change", "no motion"]
)
def test_the_dense_forward_tells_what_is_wrong(model, frames, wrong):
    seen, kept, cuts, next_ = streamed(model, frames, gate=pixel_gate(model), memory=MEMORY, cap=4)
    changed = torch.stack([g.changed for g in seen])
    memory = Sink(5) + Window(41) if wrong == "window" else MEMORY
    want, thumbs = expected(model, frames, changed, kept, memory, 4, wrong)
    assert float((cuts - want).abs().max()) > 1e-3
    assert float((next_ - thumbs).abs().max()) > 1e-2


@torch.no_grad()
def test_what_the_dropper_takes_is_foretold_by_what_was_last_said(model, frames):
    seen, kept, _, next_ = streamed(model, frames, dropper=token_dropper(0.7), memory=MEMORY, cap=4)
    changed = torch.stack([g.changed for g in seen])
    assert bool((changed & ~kept).any())
    _, thumbs = expected(model, frames, changed, kept, MEMORY, 4, "not held")
    off = (next_ - thumbs).abs().amax(-1)
    assert float(off[changed & ~kept].max()) > 1e-2
    assert float(off[kept].max()) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("dropper", [None, 0.7])
def test_equals_the_forward_that_it_was_trained_with(model, frames, dropper):
    drops = [None if dropper is None else token_dropper(dropper) for _ in range(2)]
    kept = gated(model, frames, 20.0)
    whole = watch(model, frames, kept, torch.arange(len(frames)), drops[0])
    seen, _, cuts, next_ = streamed(
        model, frames, gate=pixel_gate(model), dropper=drops[1], memory=Sink(0) + Window(1000)
    )
    assert (dropper is None) == bool(whole.read.all())
    torch.testing.assert_close(cuts, whole.scenes(model).sigmoid(), atol=2e-5, rtol=0)
    at = model.next_thumb(whole.said, whole.thumbs, whole.moving)
    torch.testing.assert_close(next_[kept], at, atol=1e-4, rtol=1e-4)
    codes = torch.stack([g.next_codes for g in seen])[kept]
    want = model.next_code(whole.said, whole.thumbs, at).argmax(-1)
    assert float((codes == want).float().mean()) > 0.99


def test_what_the_gate_drops_is_foretold_to_stay(model, frames):
    with Watcher(model, 12, 16, gate=pixel_gate(model)) as watcher:
        for frame in frames:
            seen = watcher.feed(frame)
            shown = model.thumbs(model.patches(frame))
            still = ~seen.changed
            torch.testing.assert_close(seen.next_thumbs[still], shown[still])
            assert torch.equal(seen.next_codes[still], model.coded(shown[still]))


def test_memory_is_constant_and_a_frame_without_change_costs_one_token(model, frames):
    with Watcher(model, 12, 16, gate=pixel_gate(model), memory=Sink(5) + Window(40)) as watcher:
        held = []
        for _ in range(8):
            for frame in frames:
                watcher.feed(frame)
            held.append(watcher.resident_bytes)
        assert len(set(held[1:])) == 1
        assert held[-1] <= watcher.pool.pages * watcher.pool.page_bytes
        before = watcher.tokens
        again = watcher.feed(frames[-1])
        assert watcher.tokens == before + 1
        assert again.dropped == 1.0
        assert again.surprise is None


def test_surprise_counts_what_was_not_foretold(model, frames):
    with Watcher(model, 12, 16) as watcher:
        first = watcher.feed(frames[0])
        second = watcher.feed(frames[1])
    codes = model.coded(model.thumbs(model.patches(frames[1])))
    assert first.surprise is None
    assert second.surprise == pytest.approx(float((first.next_codes != codes).float().mean()))


def test_after_an_error_the_next_frame_is_whole(model, frames, monkeypatch):
    with Watcher(model, 12, 16, gate=pixel_gate(model), memory=MEMORY) as watcher:
        for frame in frames[:4]:
            watcher.feed(frame)
        table, live = watcher._lease.table, watcher.pool.live_pages
        with monkeypatch.context() as broken:
            broken.setattr(watcher.model, "decode", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                watcher.feed(frames[4])
        assert watcher._lease.table is table
        assert (watcher.pool.live_pages, watcher.frames) == (live, 4)
        assert bool(watcher.feed(frames[4]).changed.all())


def test_a_gate_with_little_room_still_begins_whole(model, frames):
    gate = LastKept(20.0, "l1", patch=PATCH, capacity=2)
    with Watcher(model, 12, 16, gate=gate) as watcher:
        assert bool(watcher.feed(frames[0]).changed.all())
        assert int(watcher.feed(frames[1]).changed.sum()) == 2


def test_mistakes_are_named(model, frames):
    for options, told in (
        ({"height": 13}, "Watcher(height): expected a multiple of the patch, 4, got 13"),
        (
            {"gate": LastKept(1.0, "l1", patch=8)},
            "Watcher(gate): expected a filter whose patch divi",
        ),
        ({"dropper": LastKept(1.0, patch=4)}, "Watcher(dropper): expected a filter without patch"),
        ({"memory": Window(None)}, "Watcher(memory): expected a bounded window"),
        ({"cap": 0}, "Watcher(cap): expected 1 or more"),
    ):
        with pytest.raises(ValueError, match="^" + told.replace("(", r"\(").replace(")", r"\)")):
            Watcher(model, **{"height": 12, "width": 16, **options})
    with Watcher(model, 12, 16) as watcher:
        with pytest.raises(TypeError, match=r"Watcher.feed\(frame\): expected a uint8 tensor"):
            watcher.feed(frames[0].float())
        with pytest.raises(ValueError, match=r"Watcher.feed\(frame\): expected \[12, 16, 3\]"):
            watcher.feed(frames[0][:8])
        assert watcher.frames == 0
