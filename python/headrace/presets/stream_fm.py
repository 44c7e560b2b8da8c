# SPDX-License-Identifier: Apache-2.0
"""Stream.FM: speech restored as it comes, by a flow of few steps through causal convolutions.

Welker et al., Stream.FM (2025), arXiv 2512.19442; abstract and overview were read. Frames of a
short-time Fourier transform; the flow starts from the corrupted frame with noise and ends at the
clean one, in a few steps of an ODE solver; a frame-causal network keeps, for every step, the last
inputs of each of its convolutions, so that a new frame costs that frame alone. The latency of the
algorithm is one window of 32 ms, with a hop of 16 ms 48 ms in all.

Chosen here: 16 kHz, sqrt-Hann windows of 512 samples, 5 Euler steps, noise of 0.1 that is a
function of the frame's number; the network of `headrace.presets.causal_net`.

Oracle: the whole file at once, step by step, in fp64. No cache but of inputs: encoding anew what is
alive is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import bad_value
from .causal_net import CausalNet
from .given import counts, numbers
from .proof import Check, Preset

__all__ = ["StreamFM", "stream_fm"]

STEPS, NOISE = 5, 0.1


class StreamFM:
    """`feed(samples)` gives those that are done. window: samples of latency, a multiple of 2.

    frames: how many were restored.
    """

    def __init__(self, net: Any, window: int, steps: int, noise: float, seed: int) -> None:
        self.net, self.window, self.steps, self.noise = net, window, steps, noise
        self.hop, self.seed, self.frames = window // 2, seed, 0
        self._states = [net.states() for _ in range(steps)]
        self._taper = torch.hann_window(window).sqrt()
        self._waiting = torch.zeros(self.hop)  # as if silence had come before
        self._tail = torch.zeros(self.hop)

    def feed(self, samples: Tensor) -> Tensor:
        """Restored samples fp32 [m] that samples fp32 [n], any number, make complete; the first
        one that comes out is the first that went in."""
        waiting = torch.cat([self._waiting, samples.float()])
        count = max(0, (len(waiting) - self.window) // self.hop + 1)
        if not count:
            self._waiting = waiting
            return waiting[:0]
        framed = waiting.unfold(0, self.window, self.hop) * self._taper
        states = [state.clone() for state in self._states]
        given = packed(framed)
        x = given + self.noise * drawn(self.seed, self.frames, count, given.shape[1])
        for i, state in enumerate(states):
            x = x + self.net.step(torch.cat([x, given], 1), state, i / self.steps) / self.steps
        out, tail = [], self._tail
        for frame in unpacked(x, self.window) * self._taper:
            out.append(frame[: self.hop] + tail)
            tail = frame[self.hop :]
        if not self.frames:
            out[0] = out[0][:0]  # the silence
        self._states, self._tail, self._waiting = states, tail, waiting[count * self.hop :]
        self.frames += count
        return torch.cat(out)


def packed(frames: Tensor) -> Tensor:
    """Real and imaginary parts [T, window + 2] of frames [T, window]."""
    made = torch.fft.rfft(frames, norm="ortho")
    return torch.cat([made.real, made.imag], 1)


def unpacked(parts: Tensor, window: int) -> Tensor:
    """Frames of these parts."""
    real, imag = parts.chunk(2, 1)
    made: Tensor = torch.fft.irfft(torch.complex(real, imag), window, norm="ortho")
    return made


def drawn(seed: int, first: int, count: int, parts: int) -> Tensor:
    """Noise [count, parts] of frames numbered from `first`."""
    rows = []
    for number in range(first, first + count):
        made = torch.Generator().manual_seed(seed * 1_000_003 + number)
        rows.append(torch.randn(parts, generator=made))
    return torch.stack(rows)


def stream_fm(
    net: Any, *, window: int = 512, steps: int = STEPS, noise: float = NOISE, seed: int = 0
) -> StreamFM:
    """The system over a network of frames [T, 2 (window + 2)] to [T, window + 2].

    window: samples of latency. steps: of the solver. noise: that the flow begins with, a share.
    seed: of it. ValueError where window is no multiple of 4, the network has other sizes, or steps
    is below 1.
    """
    counts("stream_fm", window=window)
    numbers("stream_fm", noise=noise)
    counts("stream_fm", steps=steps)
    if window < 4 or window % 4:
        raise bad_value("stream_fm", "window", "a multiple of 4", window)
    if net.outputs != window + 2:
        raise bad_value("stream_fm", "net", f"{window + 2} outputs", net.outputs)
    return StreamFM(net, window, steps, noise, seed)


@torch.inference_mode()
def oracle(
    net: Any,
    samples: Tensor,
    *,
    window: int = 512,
    steps: int = 5,
    noise: float = 0.1,
    seed: int = 0,
) -> Tensor:
    """Restored samples fp64 of a whole file [n], those that a stream of it would give."""
    hop, net = window // 2, CausalNetIn64(net)
    signal = torch.cat([torch.zeros(hop), samples]).double()
    taper = torch.hann_window(window, dtype=torch.float64).sqrt()
    count = (len(signal) - window) // hop + 1
    frames = torch.stack([signal[i * hop : i * hop + window] * taper for i in range(count)])
    given = packed(frames)
    x = given + noise * drawn(seed, 0, count, given.shape[1]).double()
    for i in range(steps):
        x = x + net(torch.cat([x, given], 1), i / steps) / steps
    out = torch.zeros((count + 1) * hop, dtype=torch.float64)
    for i, frame in enumerate(unpacked(x, window)):
        out[i * hop : i * hop + window] += frame * taper
    return out[hop : count * hop]


class CausalNetIn64:
    """A copy of a network, in fp64, for whole files."""

    def __init__(self, net: Any) -> None:
        self._net = CausalNet(
            net.input.shape[1], net.outputs, width=net.width, layers=len(net.taken), taps=net.taps
        ).double()
        self._net.load_state_dict(net.state_dict())

    def __call__(self, x: Tensor, level: float) -> Tensor:
        made: Tensor = self._net(x, level)
        return made


def check(net: Any) -> list[Check]:
    """Streams of any chunks give the samples of the whole file, none later than its latency."""
    window = net.outputs - 2
    made = torch.Generator().manual_seed(11)
    speech = torch.randn(window * 9 + 13, generator=made).cumsum(0).sin()
    want, checks, first = oracle(net, speech, window=window), [], None
    for size in (1, 7, window // 2, 3 * window + 1):
        system, out, late, done, came = stream_fm(net, window=window), [], 0, 0, 0
        for chunk in speech.split(size):
            with torch.inference_mode():
                out.append(system.feed(chunk))
            done, came = done + len(out[-1]), came + len(chunk)
            late = max(late, came - done)
        got = torch.cat(out)
        short = abs(len(got) - len(want))
        checks.append(Check(f"chunks of {size}: samples more or fewer", short, 0))
        worst = float((got - want).abs().max() / want.abs().max())
        name = f"chunks of {size}: max |value - oracle| over max |oracle|"
        checks += [
            Check(name, worst, 1e-4),
            Check(f"chunks of {size}: samples in and not yet out", late, window),
        ]
        first = got if first is None else first
        loud = float((got - first).abs().max())  # a transform of one frame rounds unlike of many
        checks.append(Check(f"chunks of {size} beside chunks of 1: max |difference|", loud, 1e-5))
    return checks


def small_net() -> CausalNet:
    """A random network over windows of 64 samples."""
    return CausalNet(2 * 66, 66, seed=1)


PRESET = Preset(
    "stream_fm",
    "Welker et al., 2025; arXiv 2512.19442",
    stream_fm,
    check,
    small_net,
    oracle,
    oracle,  # nothing is cached that could be encoded anew
    kind="ring",
)
