# SPDX-License-Identifier: Apache-2.0
"""IXC2.5-OmniLive: one party perceives, one compresses, one reasons, and files lie between them.

Zhang et al., InternLM-XComposer2.5-OmniLive, arXiv 2412.09596; a note on it and its example of an
answer with a memory were read. Perception encodes clips as they come; a memory compresses each clip
and joins it to what it has of the video; reasoning reads the memory of the whole video, then that
of the clip that the question is about, then the question. They run at speeds of their own, so that
perceiving never waits for an answer.

Chosen here: the parties share nothing but a folder of snapshots, numbered by clip, so each may be a
process, be killed and begin again. A clip is a stream of its own. Its compressed form is what the
model says after it, greedily, 16 tokens. Of the clips that lie there the one under which the
question is likeliest is read again after the memory. Perception refuses a frame while 8 clips wait
to be compressed; 8 compressed ones stay for retrieval. A question is handed in, where the source
listens for it.

Oracle: dense forwards over each clip, and over all that was said of them, a clip and the question,
in a window.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ..memory import Window
from ..streams import Absolute, Engine, Stream, resume, snapshot, wrap
from ..streams import oracle as dense_oracle
from ..streams.engine import Model
from .assembled import reported
from .proof import BOUND, Check, Preset, random_tokens

__all__ = ["Compressor", "Folder", "Perceiver", "Reasoner", "ixc25_omnilive"]

FRAMES, SUMMARY, WINDOW, BACKLOG, STAY = 8, 16, 4096, 8, 8


class Folder:
    """Snapshots by kind and clip number, counted from 1."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def file(self, kind: str, number: int) -> Path:
        """Where the snapshot of a clip lies, or will."""
        return self.path / f"{kind}-{number:08d}.safetensors"

    def numbers(self, kind: str) -> list[int]:
        """Ascending."""
        return sorted(
            int(f.stem.rpartition("-")[2]) for f in self.path.glob(f"{kind}-*.safetensors")
        )

    def tidy(self, kind: str) -> None:
        """Removes what a writer of this kind, killed, left half written."""
        for file in self.path.glob(f"{kind}-*.part"):
            file.unlink(missing_ok=True)

    @property
    def compressed(self) -> int:
        """Clips that the memory has."""
        return max(self.numbers("memory"), default=0)

    @property
    def perceived(self) -> int:
        """Clips that were perceived."""
        return max(self.numbers("clip"), default=self.compressed)


class Perceiver:
    """Frames to clips; one for a folder. `frames`: after a start, how many lie in whole clips, so
    which one is to come; then how many it took.
    """

    def __init__(
        self, engine: Engine, folder: Folder, *, frames: int = FRAMES, backlog: int = BACKLOG
    ) -> None:
        self.engine, self.folder, self.each, self.backlog = engine, folder, frames, backlog
        folder.tidy("clip")
        self.frames = folder.perceived * frames
        self._held: list[Tensor] = []

    def watch(self, frame: Tensor) -> bool:
        """Takes a frame, int64 [n]; False, and nothing is taken, while too many clips wait."""
        if len(self._held) == self.each - 1:
            number = self.folder.perceived + 1
            if number - self.folder.compressed > self.backlog:
                return False
            with self.engine.open(history=True) as stream:
                stream.feed(torch.cat([*self._held, frame]))
                snapshot(stream, self.folder.file("clip", number), now=number)
            self._held = []
        else:
            self._held.append(frame)
        self.frames += 1
        return True


class Compressor:
    """Clips to a memory, one after the other; one for a folder."""

    def __init__(
        self, engine: Engine, folder: Folder, *, summary: int = SUMMARY, stay: int = STAY
    ) -> None:
        self.engine, self.folder, self.summary, self.stay = engine, folder, summary, stay
        folder.tidy("memory")
        self.done = folder.compressed
        self._memory = _memory(engine, folder, self.done)

    def step(self) -> bool:
        """Joins the next clip to the memory; False if there is none."""
        number = self.done + 1
        file = self.folder.file("clip", number)
        if not file.exists():
            return False
        with _opened(self.engine, file) as clip:
            said = clip.say(max_new=self.summary)
        self._memory.feed(list(said))
        snapshot(self._memory, self.folder.file("memory", number), now=number)
        self.done = number
        for kind, keep in (("memory", 1), ("clip", self.stay)):
            for old in self.folder.numbers(kind):
                if old <= number - keep:
                    self.folder.file(kind, old).unlink(missing_ok=True)
        return True


class Reasoner:
    """Answers from what lies in the folder."""

    def __init__(self, engine: Engine, folder: Folder) -> None:
        self.engine, self.folder = engine, folder

    def ask(self, question: Tensor) -> tuple[Stream, Tensor, int, int]:
        """A stream that has read memory, clip and question, int64 [n]; its logits [n, V]; how many
        clips the memory had; and which clip was retrieved, 0 if there was none.
        """
        for attempt in range(9):
            try:
                return self._ask(question)
            except FileNotFoundError:  # compressed in the meantime: look again
                if attempt == 8:
                    raise
        raise AssertionError

    def _ask(self, question: Tensor) -> tuple[Stream, Tensor, int, int]:
        known, best = self.folder.compressed, (float("inf"), 0)
        tokens = question.new_zeros(0)
        for number in self.folder.numbers("clip"):
            with _opened(self.engine, self.folder.file("clip", number)) as clip:
                unlikely = float(clip.feed(question).nll.double().mean())
                if (unlikely, number) < best:
                    best = unlikely, number
                    assert clip._history is not None
                    tokens = question.new_tensor(clip._history.tokens(0, -len(question)))
        stream = _memory(self.engine, self.folder, known)
        try:
            stream.feed(tokens)
            return stream, reported(stream.feed(question, logits=True)), known, best[1]
        except BaseException:
            stream.close()
            raise


def _opened(engine: Engine, file: Path) -> Stream:
    try:
        stream = resume(engine, file).stream
    except ValueError:
        if file.exists():
            raise
        raise FileNotFoundError(f"ixc25_omnilive: {file.name} is gone") from None
    assert isinstance(stream, Stream)
    return stream


def _memory(engine: Engine, folder: Folder, number: int) -> Stream:
    return _opened(engine, folder.file("memory", number)) if number else engine.open()


def ixc25_omnilive(model: Model, *, window: int = WINDOW, **options: Any) -> Engine:
    """An engine as each of the parties needs one.

    window: tokens of memory, of the clip that is read again, and of an answer. Options as in
    `headrace.wrap`, whose errors it raises.
    """
    return wrap(model, memory=Window(window), positions=Absolute(), **options)


def oracle(
    model: Any, clips: Sequence[Tensor], *, summary: int = 16, window: int = 4096
) -> list[Tensor]:
    """What is said of each clip, int64 [summary], by dense forwards."""
    made = []
    for clip in clips:
        tokens = clip
        for _ in range(summary):
            best = dense_oracle(model, tokens, Window(window), Absolute())[-1].argmax()
            tokens = torch.cat([tokens, best[None]])
        made.append(tokens[len(clip) :])
    return made


def check(model: Model, *, clips: int = 12) -> list[Check]:
    """The parties take turns at random and are killed; every answer on the way, and the memory in
    the end, against dense forwards over the clips that it should know.
    """
    each, size, window, question = 2, 9, 90, random_tokens(model, 6, seed=9)
    parts = random_tokens(model, clips * each * size).view(-1, size)
    whole = list(parts.view(clips, -1))
    said = oracle(model, whole, summary=4, window=window)
    chance, gap, wrong, files, kills, refused = random.Random(3), 0.0, 0, 0, 0, 0
    with TemporaryDirectory() as path, ixc25_omnilive(model, window=window, page_size=16) as engine:
        folder = Folder(path)
        make: dict[str, Callable[[], Any]] = {
            "perceive": lambda: Perceiver(engine, folder, frames=each, backlog=3),
            "compress": lambda: Compressor(engine, folder, summary=4, stay=3),
            "reason": lambda: Reasoner(engine, folder),
        }
        parties = {name: begin() for name, begin in make.items()}
        while folder.compressed < clips:
            name = chance.choice(["perceive", "perceive", "perceive", "compress", "reason"])
            if chance.random() < 0.1:
                parties[name], kills = make[name](), kills + 1
            if name == "compress":
                parties[name].step()
            elif name == "perceive":
                next_ = parties[name].frames
                refused += next_ < len(parts) and not parties[name].watch(parts[next_])
            elif folder.numbers("clip"):
                there = folder.numbers("clip")
                stream, logits, known, best = parties[name].ask(question)
                stream.close()
                want, likeliest = _answer(model, whole, said[:known], there, question, window)
                gap = max(gap, float((logits - want).abs().max()))
                wrong += best != likeliest
            files = max(files, len(os.listdir(path)))
        last = parties["reason"].ask(question)
        want, _ = _answer(model, whole, said, folder.numbers("clip"), question, window)
        gap = max(gap, float((last[1] - want).abs().max()))
        lost = sum(len(w) for w in whole) - parties["perceive"].frames * size
        tiled = _spans(engine, folder, whole)
    return [
        Check("answers on the way and at the end: max |logit - oracle|", gap, BOUND),
        Check("clips retrieved that are not the likeliest", wrong, 0),
        Check("tokens of the video that no clip has, or two", abs(lost), 0),
        Check("clips that are not what was filmed", tiled, 0),
        Check("clips that the memory has, from all", abs(last[2] - clips), 0),
        Check("files in the folder", files, 3 + 3 + 2),
        Check("1 over parties killed", 1 / max(kills, 1), 0.5),
        Check("1 over frames that had to wait", 1 / max(refused, 1), 1),
    ]


def _answer(
    model: Any,
    clips: Sequence[Tensor],
    said: Sequence[Tensor],
    there: Sequence[int],
    question: Tensor,
    window: int,
) -> tuple[Tensor, int]:
    """Logits of the question by a dense forward, and the clip under which it is likeliest."""
    losses = {}
    for number in there:
        read = torch.cat([clips[number - 1], question])
        rows = dense_oracle(model, read, Window(window), Absolute())[-len(question) - 1 : -1]
        losses[number] = float(torch.nn.functional.cross_entropy(rows, question))
    best = min(losses, key=lambda n: (losses[n], n))
    read = torch.cat([*said, clips[best - 1], question])
    return dense_oracle(model, read, Window(window), Absolute())[-len(question) :], best


def _spans(engine: Engine, folder: Folder, clips: Sequence[Tensor]) -> int:
    """Clips in the folder whose tokens are not those of the video."""
    wrong = 0
    for number in folder.numbers("clip"):
        with _opened(engine, folder.file("clip", number)) as clip:
            assert clip._history is not None
            wrong += clip._history.tokens() != clips[number - 1].tolist()
    return wrong


PRESET = Preset(
    "ixc25_omnilive",
    "Zhang et al., arXiv 2412.09596; github.com/InternLM/InternLM-XComposer",
    ixc25_omnilive,
    check,
    oracle=oracle,
    kind="archive",
)
