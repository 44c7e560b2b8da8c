# SPDX-License-Identifier: Apache-2.0
"""Block-wise Mimi TTS: speech leaves while the text still comes, a fixed block of phones at a time.

Su et al., An Ultra-Low Latency, End-to-End Streaming Speech Synthesis Architecture via Block-Wise
Generation and Depth-Wise Codec Decoding (2026), arXiv 2604.12438; its abstract was read. A backbone
after FastSpeech 2 makes frames of a block of phones, all at once; the 32 codebooks of the Mimi
codec are decided in the order of their depth, each conditioned on those before, never on earlier
frames, so a block costs 32 small steps however long it is; the codec turns codes into samples. The
source reports a first byte after 48.99 ms.

Chosen here: blocks of 8 phones, which see the 16 before; a phone lasts 1 to 4 frames of 80 ms, by
the largest of four products; a level's codes are those of the largest product with what the frame
and the codes before it add up to; a codec of two causal convolutions, which keep their last inputs,
and a matrix to samples; 16-bit samples, 24 a frame in the sample, for 1920 of the source; random
weights.

The first byte is timed by a clock: the real one says what it takes here, a virtual one that it is
the work of one block however much text follows. Oracle: all of the text at once, in fp64, under the
mask of blocks. Nothing is recomputed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..models import Conformer, ConformerConfig
from ..models.conformer import normed
from ..streams import Clock, Encoder, Linear, Real, Virtual, Work
from .encoding import chunked, dense, whole
from .given import counts
from .proof import Check, Preset

__all__ = ["MimiTts", "Speaker", "Spoken", "mimi_tts"]

BLOCK, PAST, LEVELS, LASTS, TAPS = 8, 16, 32, 4, 4


class Speaker(nn.Module):
    """Backbone, codebooks and codec; random weights from `seed`. samples: of a frame."""

    def __init__(
        self, phones: int = 70, codes: int = 32, samples: int = 24, *, seed: int = 0
    ) -> None:
        super().__init__()
        config = ConformerConfig(stages=0, taps=0, halves=False)
        self.backbone, width = Conformer(config, seed=seed), config.width
        self.samples, made = samples, torch.Generator().manual_seed(seed + 1)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=made) * shape[-1] ** -0.5)

        self.phones = nn.Parameter(torch.randn(phones, config.inputs, generator=made))
        self.lasts, self.places = weight(LASTS, width), weight(LASTS, width)
        self.heads, self.books = weight(LEVELS, codes, width), weight(LEVELS, codes, width)
        self.kernels, self.mixed = weight(2, width, TAPS), weight(2, width, width)
        self.wave = weight(samples, width)

    def frames(self, encoded: Tensor, linear: Callable[..., Tensor]) -> Tensor:
        """[m, width] of encoded phones [n, width], each as long as it lasts."""
        last = 1 + linear(encoded, self.lasts).argmax(1)
        at = torch.arange(int(last.sum())) - (last.cumsum(0) - last).repeat_interleave(last)
        return encoded.repeat_interleave(last, 0) + self.places[at]

    def codes(self, frames: Tensor, linear: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """int64 [m, levels], one level after the other, and what their books add up to."""
        made, total = [], torch.zeros_like(frames)
        for head, book in zip(self.heads, self.books, strict=True):
            code = linear(normed(frames + total, self.backbone.mean, linear), head).argmax(1)
            made.append(code)
            total = total + book[code]
        return torch.stack(made, 1), total

    def sound(
        self, total: Tensor, convolve: Callable[..., Tensor], linear: Callable[..., Tensor]
    ) -> Tensor:
        """int16 [m samples] of what the books of m frames add up to."""
        h = total
        for i, mixed in enumerate(self.mixed):
            h = h + linear(torch.relu(convolve(i, h, self.kernels[i])), mixed)
        wave = linear(normed(h, self.backbone.mean, linear), self.wave)
        return (wave * 2**13).round().clamp(-(2**15), 2**15 - 1).to(torch.int16).flatten()


class Spoken(NamedTuple):
    """Seconds at which samples int16 [m] were ready, and they."""

    at: float
    samples: Tensor


class MimiTts:
    """`feed(phones)` gives samples of the blocks that are whole; `speak` does it by a clock.

    work: of the last block. codes: int64 [frames, levels] of the last block.
    """

    def __init__(self, model: Speaker, block: int, past: int) -> None:
        self.model, self.block = model, block
        self._encoder = Encoder(model.backbone, chunk=block, window=past, streams=1)
        self._stream = self._encoder.open()
        self._state = torch.zeros(2, 1, model.kernels.shape[1], TAPS - 1)
        self.codes = torch.zeros(0, LEVELS, dtype=torch.int64)
        self.work = Work()

    @torch.inference_mode()
    def feed(self, phones: Tensor) -> Tensor:
        """int16 samples for phones int64 [n], any number."""
        return self._sound(self._stream.feed(self.model.phones[phones]))

    @torch.inference_mode()
    def finish(self) -> Tensor:
        """Those of the last block, once no more text comes."""
        return self._sound(self._stream.finish())

    def speak(self, phones: Iterable[int], clock: Clock | None = None) -> Iterator[Spoken]:
        """Samples block by block, while phones come, each with the time when it was ready."""
        clock = Real() if clock is None else clock
        clock.read()
        block: list[int] = []
        for phone in phones:
            block.append(phone)
            if len(block) == self.block:
                samples = self.feed(torch.tensor(block))
                yield Spoken(clock.spend(self.work), samples)
                block = []
        self.feed(torch.tensor(block, dtype=torch.int64))
        if block:
            samples = self.finish()
            yield Spoken(clock.spend(self.work), samples)

    def close(self) -> None:
        """Gives the memory back."""
        self._stream.close()
        self._encoder.close()

    def _sound(self, encoded: Tensor) -> Tensor:
        state, model = self._state.clone(), self.model
        frames = model.frames(encoded, ops.linear)
        ends = torch.tensor([0, len(frames)], dtype=torch.int32)

        def convolve(layer: int, h: Tensor, kernel: Tensor) -> Tensor:
            made: Tensor = ops.causal_conv(
                h, kernel, None, state[layer], ends, ends[:1], activation=None
            )
            return made

        codes, total = model.codes(frames, ops.linear)
        samples = model.sound(total, convolve, ops.linear)
        self._state, self.codes = state, codes
        self.work = Work(len(encoded) + codes.numel(), 1)
        return samples


def mimi_tts(model: Speaker, *, block: int = BLOCK, past: int = PAST) -> MimiTts:
    """The system: `feed(phones)` or, by a clock, `speak(phones)`.

    block: phones that are spoken together. past: phones before them that they see. ValueError where
    block is below 1 or past negative.
    """
    counts("mimi_tts", block=block)
    counts("mimi_tts", least=0, past=past)
    return MimiTts(model, block, past)


@torch.inference_mode()
def oracle(
    model: Speaker, phones: Tensor, *, block: int = 8, past: int = 16
) -> tuple[Tensor, Tensor]:
    """Codes int64 [frames, levels] and samples int16 of a whole text int64 [n]."""
    encoded = whole(
        model.backbone, model.phones[phones], lambda m, n: dense(m, chunked(n, block, past))
    )
    model = copy.deepcopy(model).double()

    def convolve(layer: int, h: Tensor, kernel: Tensor) -> Tensor:
        return F.conv1d(F.pad(h.T[None], (TAPS - 1, 0)), kernel[:, None], groups=len(kernel))[0].T

    codes, total = _decided(model, _lasting(model, encoded))
    return codes, model.sound(total, convolve, F.linear)


def _lasting(model: Speaker, encoded: Tensor) -> Tensor:
    """Frames [m, width]: phone by phone, and of each the first to the last."""
    made = []
    for phone in encoded:
        many = 1 + int((model.lasts @ phone).argmax())
        made += [phone + model.places[i] for i in range(many)]
    return torch.stack(made)


def _decided(model: Speaker, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int64 [m, levels], and what they stand for [m, width]: frame by frame, book by book,
    each by the frame and all books before it."""
    codes = torch.zeros(len(frames), len(model.books), dtype=torch.int64)
    totals = torch.zeros_like(frames)
    for i, frame in enumerate(frames):
        for level, (head, book) in enumerate(zip(model.heads, model.books, strict=True)):
            known = frame + totals[i]
            scaled = (known - known.mean()) / (known.var(correction=0) + 1e-5).sqrt()
            codes[i, level] = (head @ scaled).argmax()
            totals[i] += book[codes[i, level]]
    return codes, totals


def check(model: Speaker) -> list[Check]:
    """Equality with the whole text; the first byte after the work of one block."""
    text = torch.randint(len(model.phones), (83,), generator=torch.Generator().manual_seed(21))
    codes, want = oracle(model, text)
    checks, seconds = [], {}
    for size in (1, BLOCK, len(text)):
        system, out, said = mimi_tts(model), [], []
        for part in text.split(size):
            out.append(system.feed(part))
            said.append(system.codes)
        out.append(system.finish())
        got, made = torch.cat(out), torch.cat([*said, system.codes])
        name = f"{size} phones at a time"
        differ = int((made != codes).sum()) if made.shape == codes.shape else codes.numel()
        checks.append(Check(f"{name}: codes that differ from the oracle's", differ, 0))
        off = float((got.long() - want).abs().max()) if got.shape == want.shape else 2.0**16
        checks.append(Check(f"{name}: max |sample - oracle|, of 65,536 steps", off, 1))
        system.close()
    for count in (BLOCK, len(text)):
        system = mimi_tts(model)
        clock = Virtual(Linear(step=1e-3, token=1e-5))
        seconds[count] = next(system.speak(text[:count].tolist(), clock)).at
        system.close()
    ratio = seconds[len(text)] / seconds[BLOCK]
    checks.append(Check("virtual clock: first byte of 83 phones over that of 8", ratio, 1))
    system = mimi_tts(model)
    spoken = list(system.speak(text.tolist(), Real()))
    system.close()
    differ = int((torch.cat([part.samples for part in spoken]) != got).sum())
    checks.append(Check("spoken by a clock: samples that differ", differ, 0))
    name = f"real clock: first byte, at {1e3 * spoken[0].at:.1f} ms, over the last"
    checks.append(Check(name, spoken[0].at / spoken[-1].at, 0.5))
    return checks


PRESET = Preset(
    "mimi_tts",
    "Su et al., 2026; arXiv 2604.12438, abstract",
    mimi_tts,
    check,
    Speaker,
    oracle,
    oracle,  # nothing is cached that could be encoded anew
    kind="net",
)
