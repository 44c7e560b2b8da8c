# SPDX-License-Identifier: Apache-2.0
"""A question to a long stream: 16 pages recalled from disk beside attention to all of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...memory import (
    Archive,
    ArchiveStore,
    Asked,
    OnDisk,
    PagePool,
    Recalled,
    Sink,
    Table,
    Window,
    by_score,
)
from ...memory.regions import compile_plan
from ..case import rms_error
from .facts import HKV, HQ, PAGE, SINKS, WINDOW, D, Facts, attend, stream
from .turns import Loop, Round, Side, Size

RECALLED, QUESTIONS = 16, 24


class Archived:
    """A stream that was read into an archive on disk, and what is asked of it."""

    def __init__(self, tokens: int, folder: Path, questions: int = QUESTIONS) -> None:
        self.facts = Facts(tokens, questions)
        self.pool = PagePool(1, 2 * RECALLED + 64, HKV, D, PAGE, torch.bfloat16)
        place = OnDisk(folder, queue=256, segment_bytes=64 << 20)
        self.store = ArchiveStore(Archive("mean", place, 2 * RECALLED), self.pool, None)
        self.shelf = self.store.shelf("questions")
        table = Table(0, 0, compile_plan(Sink(SINKS) + Window(WINDOW)))
        self.table, _, _ = stream(self.facts, self.store, self.shelf, table, tokens)
        self.store.flush()
        self.tiers = self.store.near()
        self.chosen = np.zeros(0, np.int64)

    @property
    def bytes(self) -> int:
        """In memory: the pages held, those fetched, and the index."""
        return self.pool.resident_bytes + self.shelf.index.nbytes

    def ask(self, q: Tensor) -> Tensor:
        """The output [1, HQ, D] for q [1, HQ, D]; nothing that was fetched before is used."""
        self.tiers.forget_near()
        _, lse = attend(self.pool, self.table, [], q)
        self.chosen = by_score(self.shelf, 0, Asked(q, lse, self.table.end), RECALLED)
        got = Recalled(self.shelf, self.table, [self.chosen], False)
        o, _ = attend(self.pool, self.table, got.rows[0], q)
        got.release()
        return torch.as_tensor(o)

    def seen(self) -> Tensor:
        """Positions that the last question saw: sinks, its pages, and what is not on disk yet."""
        starts = torch.from_numpy(self.shelf.index.starts.astype(np.int64))
        pages = (starts[self.chosen][:, None] + torch.arange(PAGE)).flatten()
        newest = torch.arange(int(starts[-1]) + PAGE, self.table.end)
        return torch.cat([torch.arange(SINKS), pages, newest])

    def close(self) -> None:
        self.shelf.close()
        self.store.close()
        self.pool.close()


def sizes(quick: bool) -> Iterator[Size]:
    """Tokens read."""
    for tokens in (8192,) if quick else (10_000, 30_000, 100_000, 300_000, 1_000_000):
        yield _size(tokens)


def _size(tokens: int) -> Size:
    folder = tempfile.TemporaryDirectory(prefix="bench-recall-")
    archived = Archived(tokens, Path(folder.name))
    facts = archived.facts
    k, v = (x.transpose(0, 1)[None].contiguous() for x in (facts.k, facts.v))
    answered = {"recalled": 0, "all": 0}

    def dense(q: Tensor) -> Tensor:
        folded = q.to(k.dtype).view(1, HKV, HQ // HKV, D)
        return F.scaled_dot_product_attention(folded, k, v).view(1, HQ, D)

    def error() -> float:
        """From plain attention to the same tokens; and counts the answers."""
        worst = 0.0
        for f in range(QUESTIONS):
            q = facts.question(f)
            got, logits = archived.ask(q), facts.logits(q)
            worst = max(worst, rms_error(got, facts.attend(logits, archived.seen())))
            answered["recalled"] += facts.answer(got) == f
            answered["all"] += facts.answer(dense(q)) == f
        return worst

    def asking(ask: object) -> Round:
        lags = []
        for f in range(QUESTIONS):
            q = facts.question(f)
            began = time.perf_counter()
            ask(q)  # type: ignore[operator]
            lags.append(time.perf_counter() - began)
        return Round(sum(lags), QUESTIONS, lags)

    def notes() -> dict[str, float]:
        return {f"answered, {name}": n / QUESTIONS for name, n in answered.items()}

    def close() -> None:
        archived.close()
        folder.cleanup()

    sides = [
        Side("16 pages recalled", lambda: asking(archived.ask), lambda: archived.bytes),
        Side("torch SDPA over all", lambda: asking(dense), lambda: k.nbytes + v.nbytes),
    ]
    return Size(tokens, sides, error, 5e-3, notes, close)


LOOP = Loop(
    "recall",
    "a question to a stream whose pages are on disk, 4 query heads of 64",
    "tokens read",
    "questions/s",
    "plain attention to the same tokens",
    sizes,
)
