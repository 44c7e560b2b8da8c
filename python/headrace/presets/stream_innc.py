# SPDX-License-Identifier: Apache-2.0
"""StreamiNNC: a convolutional network over overlapping windows, computed once per sample.

Kechris et al., Don't Think It Twice: Exploit Shift Invariance for Efficient Online Streaming
Inference of CNNs (2024), arXiv 2408.03223; its abstract and overview were read. Windows of a signal
overlap, and away from padding a convolution gives the same for the same samples: each layer keeps
the last (taps - 1) dilation inputs, and only what is new is computed. Two things break it. Zeros
that pad a window are not the signal before it: pad with the signal. And pooling counts from the
start of its window: on windows whose starts are multiples of all strides together it is exact, on
others within a bound.

Chosen here: causal convolutions, ReLU and pooling by maximum; pools are counted from the start of
the stream; for a window that ends between two features the latest whole ones are taken. The bound
(ours: maximum and ReLU never enlarge a difference, a convolution not by more than the largest sum
of magnitudes in a row): what one pool is off by is the most that its inputs change over the shift
that its stride leaves, and it grows with the rows of the layers after.

Oracle: the network over the window alone, with zeros or with the signal before it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..errors import bad_value
from .encoding import gap
from .proof import Check, Preset

__all__ = ["ConvStack", "StreamINNC", "bound", "stream_innc"]


class ConvStack(nn.Module):
    """Samples [T, channels[0]] to features [T / stride, channels[-1]], and a head over a window.

    layers: (taps, dilation, pool) each. forward: a window of which `before` samples are only there
    to be seen. Random weights from `seed`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        layers: Sequence[tuple[int, int, int]],
        window: int,
        outputs: int,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.layers, self.window, self.stride = tuple(layers), window, 1
        made = torch.Generator().manual_seed(seed)
        self.kernels = nn.ParameterList()
        self.past = 0
        """Samples before a feature's own that reach it."""
        for (taps, dilation, pool), (inner, outer) in zip(layers, pairwise(channels), strict=True):
            drawn = torch.randn(outer, inner * taps, generator=made)
            self.kernels.append(drawn * (inner * taps) ** -0.5)
            self.past += (taps - 1) * dilation * self.stride
            self.stride *= pool
        if window < 1 or window % self.stride:
            raise bad_value("ConvStack", "window", f"a multiple of {self.stride}", window)
        wide = window // self.stride * channels[-1]
        self.head = nn.Parameter(torch.randn(outputs, wide, generator=made) * wide**-0.5)

    def forward(self, x: Tensor, before: int = 0) -> Tensor:
        """Features [(T - before) / stride, C] of x [T, inputs], zeros before it."""
        h = x
        for (taps, dilation, pool), kernel in zip(self.layers, self.kernels, strict=True):
            weight = kernel.view(len(kernel), taps, -1).transpose(1, 2)
            padded = F.pad(h.T[None], ((taps - 1) * dilation, 0))
            h = torch.relu(F.conv1d(padded, weight, dilation=dilation))
            h = F.max_pool1d(h, pool)[0].T
        return h[before // self.stride :]


class StreamINNC:
    """`feed(samples)` gives the features that are new, `output()` the head over the last window.

    computed: how often a kernel was applied.
    """

    def __init__(self, net: ConvStack) -> None:
        self.net, self.computed = net, 0
        self._past = [
            torch.zeros((taps - 1) * dilation, kernel.shape[1] // taps)
            for (taps, dilation, _), kernel in zip(net.layers, net.kernels, strict=True)
        ]
        self._unpooled = [torch.zeros(0, len(kernel)) for kernel in net.kernels]
        self._features = torch.zeros(0, len(net.kernels[-1]))

    @torch.inference_mode()
    def feed(self, samples: Tensor) -> Tensor:
        """New features [m, C] that samples fp32 [n, inputs], any number, make whole."""
        h, past, unpooled = samples.float(), list(self._past), list(self._unpooled)
        for i, (taps, dilation, pool) in enumerate(self.net.layers):
            seen, count = torch.cat([past[i], h]), len(h)
            past[i] = seen[count:].clone()
            wide = torch.cat([seen[j * dilation :][:count] for j in range(taps)], 1)
            self.computed += count
            h = torch.cat([unpooled[i], torch.relu(ops.linear(wide, self.net.kernels[i]))])
            whole = len(h) // pool * pool
            unpooled[i] = h[whole:].clone()
            h = h[:whole].unflatten(0, (-1, pool)).amax(1)
        kept = torch.cat([self._features, h])
        kept = kept[max(0, len(kept) - self.net.window // self.net.stride) :]
        self._past, self._unpooled, self._features = past, unpooled, kept
        return h

    @torch.inference_mode()
    def output(self) -> Tensor:
        """[outputs]: the head over the latest window. ValueError before there is a whole one."""
        wanted = self.net.window // self.net.stride
        if len(self._features) < wanted:
            got = f"{len(self._features)} features of {wanted}"
            raise bad_value("stream_innc", "output", "a whole window", got, "feed more first")
        made: Tensor = ops.linear(self._features.reshape(1, -1), self.net.head)[0]
        return made


def stream_innc(net: ConvStack) -> StreamINNC:
    """The system: a stream of windows of `net.window` samples. It has no options, and raises
    nothing of its own."""
    return StreamINNC(net)


@torch.inference_mode()
def oracle(net: ConvStack, signal: Tensor, start: int, *, padded: str = "signal") -> Tensor:
    """Features fp64 of the window that begins at `start` in a signal [T, inputs]. padded: zeros
    before it, or the signal as far as it reaches."""
    net = copy.deepcopy(net).double()
    before = 0 if padded == "zeros" else -(-min(start, net.past) // net.stride) * net.stride
    before = min(before, start - start % net.stride)
    made: Tensor = net(signal[start - before : start + net.window].double(), before)
    return made


def recompute(net: ConvStack, signal: Tensor, start: int) -> Tensor:
    """The same with the window taken by itself: zeros before it."""
    return oracle(net, signal, start, padded="zeros")


@torch.inference_mode()
def bound(net: ConvStack, signal: Tensor, shift: int) -> float:
    """Most that features of a window may be off that begins `shift` samples after a whole one."""
    h, error = signal.double(), 0.0
    for (taps, dilation, pool), kernel in zip(net.layers, net.kernels, strict=True):
        weight = kernel.double().view(len(kernel), taps, -1).transpose(1, 2)
        padded = F.pad(h.T[None], ((taps - 1) * dilation, 0))
        h = torch.relu(F.conv1d(padded, weight, dilation=dilation))[0].T
        error *= float(weight.abs().sum((1, 2)).max())
        shift, rest = divmod(shift, pool)
        if rest:
            error += float((h[rest:] - h[:-rest]).abs().max())
        h = F.max_pool1d(h.T[None], pool)[0].T
    return error


def check(net: ConvStack) -> list[Check]:
    """Equality away from padding and with the signal as padding; the bound on other windows."""
    inputs = net.kernels[0].shape[1] // net.layers[0][0]
    made = torch.Generator().manual_seed(16)
    signal = torch.randn(4 * net.window, inputs, generator=made).cumsum(0).mul(0.3).sin()
    hop, checks = 2 * net.stride, []
    outputs: dict[int, Tensor] = {}
    for size in (1, hop):
        system = stream_innc(net)
        features = torch.cat([system.feed(part) for part in signal.split(size)])
        outputs[size] = features
        edge, zeros, whole = -(-net.past // net.stride), 0.0, 0.0
        for start in range(0, len(signal) - net.window + 1, hop):
            own = features[start // net.stride :][: net.window // net.stride]
            zeros = max(zeros, gap(own[edge:], oracle(net, signal, start, padded="zeros")[edge:]))
            whole = max(whole, gap(own, oracle(net, signal, start)))
        claim = "max |feature - oracle| over max |oracle|"
        checks.append(Check(f"{size} samples at a time, away from zeros: {claim}", zeros, 1e-5))
        checks.append(Check(f"{size} samples at a time, signal before: {claim}", whole, 1e-5))
    differ = int((outputs[1] != outputs[hop]).sum())
    checks.append(Check(f"1 or {hop} samples at a time: features that differ", differ, 0))
    once, count = 0, len(signal)
    for _, _, pool in net.layers:
        once, count = once + count, count // pool
    checks.append(Check("kernels applied, of one pass over the signal", system.computed, once))
    worst = 0.0
    for shift in range(1, net.stride):
        limit = bound(net, signal, shift)
        for start in range(net.stride * 4, len(signal) - net.window, hop):
            own = features[start // net.stride :][: net.window // net.stride]
            off = float((own - oracle(net, signal, start + shift)).abs()[edge:].max())
            worst = max(worst, off / limit)
    checks.append(Check("windows between two pools: error over its bound", worst, 1))
    system, start = stream_innc(net), len(signal) - net.window
    system.feed(signal)
    want = net.head.detach().double() @ oracle(net, signal, start).flatten()
    claim = "the head over the last window: max |value - oracle| over max |oracle|"
    checks.append(Check(claim, gap(system.output(), want), 1e-5))
    return checks


def small_stack() -> ConvStack:
    """Random: two pools of 4 and 2, a dilation of 2."""
    return ConvStack((3, 16, 16, 8), ((5, 1, 4), (3, 2, 2), (3, 1, 1)), 256, 4)


PRESET = Preset(
    "stream_innc",
    "Kechris et al., 2024; arXiv 2408.03223",
    stream_innc,
    check,
    small_stack,
    oracle,
    recompute,
    kind="net",
)
