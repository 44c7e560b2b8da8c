# SPDX-License-Identifier: Apache-2.0
"""A small model of video: a tower over the patches of a frame, and a decoder over frames.

The tower is a vision transformer whose attention is handed in by the caller, as the decoder's is:
so the same weights run over whole frames, or over the patches that changed beside the keys of those
that did not. The decoder reads what the tower says of patches, in the order of time, each at its
(time, row, column), and after every frame one token that stands for the frame. It says which patch
comes next at a place, as its thumb and as one of a book of codes, and whether a frame begins a new
scene. With a reach it matches patches with the frame before (`models.motion`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from . import motion
from .decoder import Attend

_EPS = 1e-6
FAR = 0.02  # of a scale from -1 to 1: how far the thumb of a patch goes in a frame
MUCH = 0.15  # of a scale from -1 to 1: a change of a patch that is seen at a glance
_LEAST = {
    "patch": 2, "thumb": 1, "width": 2, "heads": 1, "kv_heads": 1, "head_dim": 6, "tower_layers": 1,
    "tower_hidden": 1, "layers": 1, "hidden": 1, "codes": 2, "reach": 0,
}  # fmt: skip
_LIMIT = 1 << 16


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Shape of a vision model.

    patch: pixels along a side; thumb: of those, numbers along a side of what a code stands for.
    codes: in the book. rope_theta: of time; tower_theta: of rows and columns in the tower.
    threshold: mean absolute difference of a patch's thumb, per byte, below which it counts as
    unchanged. reach: the farthest shift of a patch from frame to frame that is looked for, in
    halves of a thumb's cell; 0 for none. ValueError or TypeError when a field is out of range or of
    a wrong type.
    """

    patch: int = 16
    thumb: int = 4
    width: int = 192
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    tower_layers: int = 6
    tower_hidden: int = 768
    layers: int = 2
    hidden: int = 512
    codes: int = 64
    rope_theta: float = 10000.0
    tower_theta: float = 100.0
    threshold: float = 1.5
    reach: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"VisionConfig({name}): expected an int, got {value!r}")
            if not least <= value <= _LIMIT:
                raise ValueError(f"VisionConfig({name}): expected {least}..{_LIMIT}, got {value}")
        for name, above in (("rope_theta", 1.0), ("tower_theta", 1.0), ("threshold", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"VisionConfig({name}): expected a number, got {value!r}")
            if not above < value < float("inf"):
                raise ValueError(f"VisionConfig({name}): expected more than {above}, got {value}")
        for name, of in (("patch", "thumb"), ("heads", "kv_heads")):
            if getattr(self, name) % getattr(self, of):
                raise ValueError(
                    f"VisionConfig({name}): expected a multiple of {of}={getattr(self, of)}, "
                    f"got {getattr(self, name)}"
                )
        if self.reach and self.patch % (motion.FINE * self.thumb):
            raise ValueError(
                f"VisionConfig(patch): expected a multiple of {motion.FINE * self.thumb}, twice "
                f"the thumb, where there is a reach, got {self.patch}"
            )
        if self.head_dim % 4:
            raise ValueError(
                f"VisionConfig(head_dim): expected a multiple of 4, got {self.head_dim}; rows and "
                "columns turn a half each, in pairs"
            )


class _Block(nn.Module):
    """Weights of one layer: attention and squared-ReLU MLP, each behind an RMSNorm; no biases."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.shape = heads, kv_heads, head_dim
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.query = nn.Parameter(torch.randn(heads * head_dim, width) * width**-0.5)
        self.key = nn.Parameter(torch.randn(kv_heads * head_dim, width) * width**-0.5)
        self.value = nn.Parameter(torch.randn(kv_heads * head_dim, width) * width**-0.5)
        # Every residual branch starts silent, so depth costs nothing at the first steps.
        self.output = nn.Parameter(torch.zeros(width, heads * head_dim))
        self.mlp_norm = nn.Parameter(torch.ones(width))
        self.up = nn.Parameter(torch.randn(hidden, width) * width**-0.5)
        self.down = nn.Parameter(torch.zeros(width, hidden))

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        (heads, kv_heads, dim), rows = self.shape, len(x)
        h = F.rms_norm(x, x.shape[-1:], self.attention_norm, _EPS)
        q = F.linear(h, self.query).view(rows, heads, dim)
        k = F.linear(h, self.key).view(rows, kv_heads, dim)
        v = F.linear(h, self.value).view(rows, kv_heads, dim)
        x = x + F.linear(attend(layer, q, k, v).reshape(rows, heads * dim), self.output)
        h = F.rms_norm(x, x.shape[-1:], self.mlp_norm, _EPS)
        return x + F.linear(torch.relu(F.linear(h, self.up)).square(), self.down)


class Vision(nn.Module):
    """Tower, decoder and heads. Weights are initialised from torch's global generator.

    inv_freq fp64 [head_dim / 2] and freq_axis int32 [head_dim / 2]: of the decoder's positions
    (time, row, column), as `ops.rope.video` makes them and `ops.paged_attention` takes them. book:
    [codes, thumb * thumb * 3], the patches that codes stand for.
    """

    inv_freq: Tensor
    freq_axis: Tensor
    tower_freq: Tensor

    def __init__(self, config: VisionConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or VisionConfig()
        pixels, small = 3 * c.patch**2, 3 * c.thumb**2
        self.embed = nn.Parameter(torch.randn(c.width, pixels) * pixels**-0.5)
        self.tower = nn.ModuleList(
            _Block(c.width, c.heads, c.heads, c.head_dim, c.tower_hidden)
            for _ in range(c.tower_layers)
        )
        self.tower_norm = nn.Parameter(torch.ones(c.width))
        self.change = nn.Parameter(torch.zeros(c.width, small))
        self.frame = nn.Parameter(torch.randn(c.width) * 0.02)
        self.blocks = nn.ModuleList(
            _Block(c.width, c.heads, c.kv_heads, c.head_dim, c.hidden) for _ in range(c.layers)
        )
        self.norm = nn.Parameter(torch.ones(c.width))
        self.move = nn.Parameter(torch.zeros(small, c.width))
        self.sure = nn.Parameter(torch.zeros(2, c.width))
        self.cut = nn.Parameter(torch.zeros(1, c.width))
        self.signs = nn.Parameter(torch.zeros(4))
        self.bias = nn.Parameter(torch.tensor([10.0, 3.0, -2.0]))  # of `sure` and of `cut`
        self.book = nn.Parameter(torch.zeros(c.codes, small), requires_grad=False)
        if c.reach:
            shifts = (2 * c.reach + 1) ** 2
            self.matched = nn.Parameter(torch.zeros(c.width, 4 * shifts))
            self.shift = nn.Parameter(torch.zeros(shifts, c.width))
            self.trust = nn.Parameter(torch.zeros(4, c.width))
            self.prior = nn.Parameter(torch.zeros(shifts + 4))
            with torch.no_grad():
                self.prior[shifts:] = torch.tensor([2.0, 2.5, -1.0, -0.5])
        self._angles()

    def _angles(self) -> None:
        c, device = self.config, self.embed.device
        with torch.device("cpu"):
            inv_freq, axis = ops.rope.video(c.head_dim, c.rope_theta)
            halves = (0, c.head_dim // 2, c.head_dim // 2)
            tower, _ = ops.rope.video(c.head_dim, c.tower_theta, sizes=halves)
        for name, buffer in (("inv_freq", inv_freq), ("freq_axis", axis), ("tower_freq", tower)):
            self.register_buffer(name, buffer.to(device), persistent=False)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._angles()  # a cast of the weights must not touch the angles
        return self

    def patches(self, frame: Tensor, index: Tensor | None = None) -> Tensor:
        """Patches [..., N, patch * patch * 3] in the numbers of the weights, row by row, of frames
        uint8 [..., H, W, 3] whose sides are multiples of `patch`; of a single frame only those
        that index int64 [n] names, where it is given."""
        size = self.config.patch
        x = frame.unflatten(-2, (-1, size)).unflatten(-4, (-1, size)).transpose(-4, -3)
        if index is not None:
            x = x[index // x.shape[1], index % x.shape[1]][:, None]
        return x.flatten(-5, -4).flatten(-3).to(self.embed.dtype).mul_(2 / 255).sub_(1)

    def thumbs(self, patches: Tensor) -> Tensor:
        """What codes are about [..., thumb * thumb * 3]: the means of squares of a patch."""
        c = self.config
        step = c.patch // c.thumb
        x = patches.unflatten(-1, (c.thumb, step, c.thumb, step, 3))
        return x.mean((-4, -2)).flatten(-3)

    def coded(self, thumbs: Tensor) -> Tensor:
        """The nearest codes, int64 [...]."""
        return (thumbs @ self.book.T - self.book.square().sum(-1) / 2).argmax(-1)

    def turns(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [rows * columns, 1, head_dim / 2] of the tower's places."""
        half = len(self.tower_freq) // 2
        row = torch.arange(rows, device=self.tower_freq.device).repeat_interleave(columns)
        column = torch.arange(columns, device=self.tower_freq.device).repeat(rows)
        place = torch.stack([row, column], 1).double().repeat_interleave(half, 1)
        angle = (place * self.tower_freq)[:, None]
        return angle.cos().to(self.embed.dtype), angle.sin().to(self.embed.dtype)

    def encode(self, patches: Tensor, turns: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """Tokens [T, width] of patches [T, patch * patch * 3], with the rows of `turns` of their
        places. attend(layer, q, k, v [T, heads, head_dim]), q and k turned."""

        def turned(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(layer, _turn(q, *turns), _turn(k, *turns), v)

        x = F.linear(patches, self.embed)
        for layer, block in enumerate(cast(Iterable[_Block], self.tower)):
            x = block(x, layer, turned)
        return F.rms_norm(x, x.shape[-1:], self.tower_norm, _EPS)

    def decode(self, x: Tensor, attend: Attend) -> Tensor:
        """What the decoder makes of tokens [T, width]; q and k un-turned."""
        for layer, block in enumerate(cast(Iterable[_Block], self.blocks)):
            x = block(x, layer, attend)
        return F.rms_norm(x, x.shape[-1:], self.norm, _EPS)

    @property
    def step(self) -> int:
        """Pixels of a step of a shift: half a thumb's cell where that is whole."""
        c = self.config
        cell = c.patch // c.thumb
        return cell if cell % motion.FINE else cell // motion.FINE

    def costs(self, before: Tensor | None, now: Tensor) -> Tensor | None:
        """Of all places of a frame [3, h, w], with that before it, both from `motion.reduce`, as
        `motion.costs`. None without a reach, or at the first frame."""
        c = self.config
        if before is None or not c.reach:
            return None
        return motion.costs(before, now, c.patch // self.step, c.reach)

    def moving(
        self, costs: Tensor | None, earlier: Tensor | None, now: Tensor, index: Tensor
    ) -> motion.Motion | None:
        """What moves in the patches index int64 [n] of a frame [3, h, w], of its costs and those of
        the frame before. Nothing moves at the first frame, and any shift may have been before it.
        None without a reach."""
        c = self.config
        if not c.reach:
            return None
        here = motion.still(len(index), c.reach, now) if costs is None else costs[index]
        past = torch.zeros_like(here) if earlier is None else earlier[index]
        windows = motion.windows(now, c.patch // self.step, c.reach, index)
        return motion.Motion(torch.cat([here, past], -1), windows)

    def next_thumb(
        self, said: Tensor, thumbs: Tensor, moving: motion.Motion | None = None
    ) -> Tensor:
        """The thumb [T, thumb * thumb * 3] that comes next in the place of a token, of what
        `decode` says of it, its patch's thumb and what moved there."""
        far = F.linear(said, self.move)
        if moving is None:
            return thumbs + far
        shifts = len(self.shift)
        trust = F.softplus(F.linear(said, self.trust) + self.prior[shifts:])
        near = (trust[:, :, None] * moving.costs.unflatten(-1, (4, shifts))).sum(1)
        weights = (F.linear(said, self.shift) + self.prior[:shifts] - near).softmax(-1)
        return thumbs + FAR * far + motion.moved(moving.windows, weights, self.config.reach)

    def next_code(self, said: Tensor, thumbs: Tensor, at: Tensor | None = None) -> Tensor:
        """Logits [T, codes] of the patch that comes next in the place of a token: a Gaussian about
        `at` (default: `next_thumb` without motion), and a share for the code of the thumb, which
        stays."""
        at = self.next_thumb(said, thumbs) if at is None else at
        near = at @ self.book.T - (self.book.square().sum(-1) + at.square().sum(-1)[:, None]) / 2
        narrow, stay = (F.linear(said, self.sure) + self.bias[:2]).split(1, -1)
        return (near * F.softplus(narrow)).scatter_add(-1, self.coded(thumbs)[:, None], stay)

    def tokens(self, seen: Tensor, change: Tensor, moving: motion.Motion | None = None) -> Tensor:
        """What the decoder reads of patches [T, width]: what the tower says, how far the thumb is
        from that computed before in the place, [T, thumb * thumb * 3], and what moved there."""
        x = seen + F.linear(change, self.change)
        return x if moving is None else x + F.linear(moving.costs, self.matched)

    def stir(self, change: Tensor, places: int) -> Tensor:
        """How much of a frame of so many places changed, [2], of the changes [n, small] of those
        computed: the mean, and the share of places with much of it."""
        far = change.abs().mean(-1)
        return torch.stack([far.sum(), (far > MUCH).sum().to(far.dtype)]) / places

    def new_scene(self, said: Tensor, stir: Tensor, usual: Tensor) -> Tensor:
        """Logits [T] that a frame begins a scene, of what `decode` says of its token, its stir and
        that of the frames before it, both [T, 2]."""
        near = 0.01
        signs = torch.cat([((stir + near) / (usual + near)).log(), stir], -1)
        return F.linear(said, self.cut)[:, 0] + signs @ self.signs + self.bias[2]


def reduced(frames: Tensor, by: int) -> Tensor:
    """Frames uint8 [..., H, W, 3] as means of `by` x `by` pixels, uint8 [..., H/by, W/by, 3]."""
    if by == 1:
        return frames
    x = frames.unflatten(-2, (-1, by)).unflatten(-4, (-1, by))
    return x.float().mean((-4, -2)).round_().byte()


def usual(before: Tensor | None, stir: Tensor) -> Tensor:
    """What counts as usual after a frame: a running mean of how much frames changed."""
    return stir if before is None else 0.8 * before + 0.2 * stir


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
