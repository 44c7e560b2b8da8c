# SPDX-License-Identifier: Apache-2.0
"""SAVEMem's rules, token by token in plain Python, and a video to hold the preset against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..memory import Window
from ..streams import Absolute, oracle
from .proof import BOUND, Check, random_tokens

ROWS, COLUMNS, DIM = 5, 7, 32
Places = dict[int, set[int]]
"""By frame, which of its tokens are kept."""


def tiers(
    features: Sequence[Tensor], probes: Tensor, short: int, mid: int, budget: int
) -> Iterator[tuple[Places, Places, Places]]:
    """Long, mid and short tier after every frame [H, W, D]."""
    units = [_unit(f).flatten(0, 1) for f in features]
    rows, columns, _ = features[0].shape
    near = _neighbours(rows, columns)
    worth = [(u @ _unit(probes).T).amax(-1).tolist() for u in units]
    apart = [_apart(units[i], units[max(0, i - 1)], near) for i in range(len(units))]
    means = [sum(a) / len(a) for a in apart]
    everything = set(range(rows * columns))
    newest: Places = {}
    middle: Places = {}
    oldest: Places = {}
    for i in range(len(units)):
        newest[i] = set(everything)
        if len(newest) > short:
            j = min(newest)
            del newest[j]
            after = _apart(units[j], units[j + 1], near)
            kept = _above(after) | (_above(apart[j]) if j else set())
            past = means[1:j]
            cut = j > 1 and sum(past) / len(past) > 1e-6 and means[j] > 1.5 * sum(past) / len(past)
            if not cut:
                kept = {p for p in kept if 1 - after[p] <= 0.8 + 0.15 * worth[j][p]}
            middle[j] = kept
        if len(middle) > mid:
            j = min(middle)
            oldest[j] = _settled(middle.pop(j), worth[j], columns)
        over = sum(len(x) for t in (newest, middle, oldest) for x in t.values()) - budget
        least = sorted((worth[j][p], j, p) for j, kept in oldest.items() for p in kept)
        for _, j, p in least[: max(0, over)]:
            oldest[j].discard(p)
            over -= 1
        first = sorted((j, p) for j, kept in middle.items() for p in kept)
        for j, p in first[: max(0, over)]:
            middle[j].discard(p)
        yield copy.deepcopy((oldest, middle, newest))


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.double(), dim=-1)


def _neighbours(rows: int, columns: int) -> list[list[int]]:
    return [
        [
            a * columns + b
            for a in range(max(0, r - 1), min(rows, r + 2))
            for b in range(max(0, c - 1), min(columns, c + 2))
        ]
        for r in range(rows)
        for c in range(columns)
    ]


def _apart(x: Tensor, y: Tensor, near: list[list[int]]) -> list[float]:
    alike = (x @ y.T).tolist()
    return [1 - max(alike[p][j] for j in near[p]) for p in range(len(alike))]


def _above(distances: list[float]) -> set[int]:
    """Indices above the cut of 256 equal bins by which the sides differ most (Otsu)."""
    low, high = min(distances), max(distances)
    if high == low:
        return set(range(len(distances)))
    bins = [min(255, int((d - low) * 256 / (high - low))) for d in distances]
    best, cut = 0.0, -1
    for c in range(255):
        below, above = [b for b in bins if b <= c], [b for b in bins if b > c]
        if below and above:
            step = sum(above) / len(above) - sum(below) / len(below)
            if len(below) * len(above) * step * step > best * (1 + 1e-12):
                best, cut = len(below) * len(above) * step * step, c
    return {i for i, b in enumerate(bins) if b > cut}


def _settled(kept: set[int], worth: list[float], columns: int) -> set[int]:
    n = len(kept)
    share = 0.15 + 0.25 * min(1.0, max(0.0, sum(worth[p] for p in kept) / n)) if n else 1.0
    total = max(4, int(n * share))
    if n <= 4 or total >= n:
        return kept
    r, c = [p // columns for p in kept], [p % columns for p in kept]
    down, right = (min(r) + max(r)) / 2, (min(c) + max(c)) / 2
    best = sorted(kept, key=lambda p: (-worth[p], p))
    chosen: set[int] = set()
    for corner in range(4):
        mine = [p for p in best if 2 * (p // columns > down) + (p % columns > right) == corner]
        chosen |= set(mine[: max(1, total // 4)])
    rest = [p for p in best if p not in chosen]
    return chosen | set(rest[: max(0, total - len(chosen))])


def opened_for(
    question: Tensor, before: Tensor, features: Sequence[Tensor], tiers: Sequence[Places], top: int
) -> list[int]:
    """The frames that a question [n, D] sees, in order, when `before` was asked first."""
    oldest, middle, newest = tiers

    def like(frame: int, kept: set[int], asked: Tensor) -> float:
        x, y = _unit(features[frame].flatten(0, 1)), _unit(asked)
        return sum(float((y @ x[p]).max()) for p in kept) / len(kept)

    def now(asked: Tensor) -> float:
        return sum(like(i, kept, asked) for i, kept in newest.items()) / len(newest)

    score = now(question)
    if score >= 0.9 * (0.2 * score + 0.8 * now(before)):
        return sorted(newest)
    older = {i: kept for tier in (oldest, middle) for i, kept in tier.items() if kept}
    likes = {i: like(i, kept, question) for i, kept in older.items()}
    chosen = sorted(older, key=lambda i: (-likes[i], i))[: _many(list(likes.values()), top)]
    return sorted(chosen) + sorted(newest)


def _many(likes: list[float], top: int) -> int:
    """How many frames: fewer the more they differ, `top` at least and 0.9 of them."""
    n = len(likes)
    if n <= top:
        return n
    mean = sum(likes) / n
    spread = (sum((x - mean) ** 2 for x in likes) / (n - 1)) ** 0.5 / abs(mean)
    share = min(1.0, max(0.0, (spread - 0.05) / (0.3 - 0.05)))
    return max(int(n - share * (n - top)), top, int(0.9 * n))


def video(frames: int, scene: int) -> list[Tensor]:
    """Features [H, W, D]: scenes of so many frames, still but for noise and what moves through."""
    made = torch.Generator().manual_seed(4)
    out = []
    for i in range(frames):
        if i % scene == 0:
            base = torch.randn(ROWS, COLUMNS, DIM, generator=made)
        frame = base + 0.3 * torch.rand(ROWS, COLUMNS, 1, generator=made) * torch.randn(
            ROWS, COLUMNS, DIM, generator=made
        )
        frame[:, i % COLUMNS] = torch.randn(ROWS, DIM, generator=made)
        out.append(frame)
    return out


def checks(model: Any, opened: Callable[..., Any]) -> list[Check]:
    """Of `save_mem`, handed in."""
    frames, scene, short, mid, budget = 40, 8, 3, 6, 200
    features, place = video(frames, scene), ROWS * COLUMNS
    tokens = list(random_tokens(model, frames * place).view(frames, ROWS, COLUMNS))
    probes = torch.randn(11, DIM, generator=torch.Generator().manual_seed(5))
    options: dict[str, Any] = {"short": short, "mid": mid, "budget": budget, "top": 2, "answer": 40}
    made = opened(model, probes, page_size=16, **options)
    memory, wrong, most, full = made.memory, 0, 0, [0, 0, 0]
    rule = tiers(features, probes, short, mid, budget)
    for frame, x, want in zip(tokens, features, rule, strict=True):
        memory.watch(frame, x)
        most = max(most, memory.size)
        for i, (tier, kept) in enumerate(
            zip((memory.long, memory.mid, memory.short), want, strict=True)
        ):
            full[i] += memory.size == budget and len(tier) > 0
            got = {f.number: set((f.place @ torch.tensor([COLUMNS, 1])).tolist()) for f in tier}
            wrong += {k: v for k, v in got.items() if v} != {k: v for k, v in kept.items() if v}
            wrong += any(
                f.tokens.tolist() != tokens[f.number][tuple(f.place.T)].tolist() for f in tier
            )
    widths, gap, others, question = [], 0.0, 0, random_tokens(model, 6, seed=7)
    asked = [features[i].flatten(0, 1) for i in (frames - 1, frames - 2, frames - 20, 4)]
    for x in asked:
        memory.gate = type(memory.gate)()
        memory.open(asked[0])  # a question about now came before
        stream, logits, shown = made.ask(question, x)
        stream.close()
        widths.append(len(shown))
        others += [f.number for f in shown] != opened_for(x, asked[0], features, want, 2)
        read = torch.cat([*(f.tokens for f in shown), question])
        want_logits = oracle(model, read, Window(None), Absolute())[-len(question) :]
        gap = max(gap, float((logits - want_logits).abs().max()))
    made.engine.close()
    narrow = sum(w != short for w in widths[:2]) + sum(w <= short for w in widths[2:])
    return [
        Check("tiers, frame by frame, that differ from the rule's", wrong, 0),
        Check("tokens in all tiers", most, budget),
        Check("1 if a tier was never full with the others", float(not all(full)), 0),
        Check("questions of now and long ago with the wrong scope", narrow, 0),
        Check("questions that see other frames than by brute force", others, 0),
        Check("answers: max |logit - oracle|", gap, BOUND),
    ]
