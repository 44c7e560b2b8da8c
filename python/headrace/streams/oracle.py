# SPDX-License-Identifier: Apache-2.0
"""What a stream must equal, and what it is measured against; two things, kept apart.

`oracle` is correctness: a dense forward over the whole history in which query t sees exactly the
tokens alive at t, at the distances of t. A stream equals it to rounding. `recompute` is a quality
baseline, and another function: it encodes the survivors from scratch, so nothing of the evicted
tokens is left in them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..memory import Fold, Region
from .alive import seen_by
from .lane import Lane
from .piece import Piece
from .positions import InCache, Keep3D, PerLane, Positions

BLOCK = 64
"""Queries whose distances to all keys are in memory at a time."""


@torch.inference_mode()
def oracle(
    model: Any,
    tokens: Tensor | Sequence[Piece],
    memory: Region,
    positions: Positions,
    dtype: torch.dtype = torch.float64,
    chunk: int = 256,
) -> Tensor:
    """Logits [T, vocab] after each of tokens int64 [T], by the definitions of memory and positions
    alone.

    tokens: where regions choose who stays, pieces as they were fed, with their scores; `chunk` is
    the engine's. Computed in `dtype` by a copy of the model; takes time and memory quadratic in T.
    What a memory folds joins as the definition of `Fold` has it, summed over all that left.
    """
    pieces = None if isinstance(tokens, Tensor) else tokens
    tokens, seen = _seen(model, tokens, memory, chunk)
    number = torch.arange(len(tokens), device=tokens.device)
    query, key = number[:, None], number[None, :]
    if isinstance(positions, Keep3D):
        given = tokens if pieces is None else pieces
        return _dense(model, tokens, seen, _apart(positions, memory, given), dtype)
    distance, folded = positions.distance(query, key, seen), None
    if memory.fold is not None:
        back = positions.behind(query, key, memory.plan().reach)
        folded = Beside(memory.fold, (key <= query) & ~seen, back)
    return _dense(model, tokens, seen, distance, dtype, folded)


def _seen(
    model: Any, tokens: Tensor | Sequence[Piece], memory: Region, chunk: int
) -> tuple[Tensor, Tensor]:
    """All tokens int64 [T], and which keys each query sees, bool [T, T]."""
    device = model.inv_freq.device
    if isinstance(tokens, Tensor):
        joined = tokens
    else:
        parts = [torch.as_tensor(piece.tokens, dtype=torch.int64).to(device) for piece in tokens]
        joined = torch.cat(parts)
        if memory.chooses:
            return joined, seen_by(memory, tokens, chunk).to(device)
    number = torch.arange(len(joined), device=joined.device)
    return joined, memory.keeps(number[:, None], number[None, :])


def _apart(positions: Keep3D, memory: Region, tokens: Tensor | Sequence[Piece]) -> Tensor:
    """int64 [T, T, 3]: how far queries see keys that came with places, or as text."""
    places: list[list[int]] = []
    for piece in [Piece(tokens)] if isinstance(tokens, Tensor) else tokens:
        count = len(torch.as_tensor(piece.tokens))
        if piece.places is not None:
            places += torch.as_tensor(piece.places).tolist()
            continue
        top = max((max(place) for place in places), default=-1)
        places += [[top + 1 + i] * 3 for i in range(count)]
    where = torch.tensor(places, dtype=torch.int64).view(-1, 3)
    return positions.apart(where, memory.plan().pinned)


@torch.inference_mode()
def lanes_oracle(
    model: Any,
    tokens: Mapping[str, Tensor],
    ticks: Mapping[str, Tensor],
    lanes: Sequence[Lane],
    memory: Region,
    positions: PerLane,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Logits [T, vocab] after each token of every lane, in one masked forward over all of them.

    tokens int64 [T] of each lane in its own order, ticks int64 [T] the step in which each came.
    A query of lane a sees of a what its memory keeps; of a lane b that it reads, what the next
    token of b would see, had it come just before the query's step. Memory [N, N] for N tokens.
    """
    names = [lane.name for lane in lanes]
    number = {name: torch.arange(len(tokens[name])) for name in names}
    first = {name: int(ticks[name][0]) if len(ticks[name]) else 0 for name in names}
    spots = {n: number[n] + _stands(n, first[n], ticks, positions) for n in names}
    rows = []
    for a in lanes:
        row = []
        for b in lanes:
            key, memory_b = number[b.name][None, :], b.memory or memory
            if a.name == b.name:
                row.append(memory_b.keeps(number[a.name][:, None], key))
            elif b.name in a.reads:
                come = ticks[b.name][None, :] < ticks[a.name][:, None]
                row.append(come & memory_b.keeps(come.sum(-1, keepdim=True), key))
            else:
                row.append(torch.zeros(len(number[a.name]), key.shape[1], dtype=torch.bool))
        rows.append(torch.cat(row, 1))
    spot = torch.cat([spots[name] for name in names])
    joined = torch.cat([tokens[name] for name in names])
    logits = _dense(model, joined, torch.cat(rows), spot[:, None] - spot[None, :], dtype)
    return dict(zip(names, logits.split([len(tokens[name]) for name in names]), strict=True))


def _stands(name: str, tick: int, ticks: Mapping[str, Tensor], positions: PerLane) -> int:
    """Position of the next token of a lane, just before a step."""
    came = int((ticks[name] < tick).sum())
    start = positions.starts.get(name, 0)
    if isinstance(start, str):
        start = _stands(start, int(ticks[name][0]) if came else tick, ticks, positions)
    return start + came


def _dense(
    model: Any,
    tokens: Tensor,
    seen: Tensor,
    distance: Tensor,
    dtype: torch.dtype,
    folded: Beside | None = None,
) -> Tensor:
    """Logits of a forward in which query t sees the keys seen[t], at distance[t]; beside what is
    folded, if anything.
    """
    number = torch.arange(len(tokens), device=tokens.device)
    inv_freq = model.inv_freq.double()
    axes = model.freq_axis if distance.dim() == 3 else None

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _heads(q, k, v)
        outs = []
        for rows in number.split(BLOCK):
            turn = _turn(distance[rows], inv_freq, q.dtype, axes)  # [rows, T, D/2]
            scores = torch.einsum(
                "hti,hji,tji->htj", _pairs(q[:, rows]), _pairs(k).conj(), turn
            ).real
            sinks = model.sink_logits(layer)
            outs.append(_softmax(scores, seen[rows], sinks) @ v)
            if folded is not None:
                whole = _mass(scores, seen[rows], sinks)
                outs[-1] = folded.joined(model, layer, rows, q, k, v, outs[-1], whole)
        return torch.cat(outs, 1).transpose(0, 1)

    return copy.deepcopy(model).to(dtype)(tokens, attend)


@torch.inference_mode()
def recompute(
    model: Any,
    tokens: Tensor | Sequence[Piece],
    memory: Region,
    positions: Positions | None = None,
    *,
    at: Sequence[int],
    chunk: int = 256,
) -> Tensor:
    """Logits [len(at), vocab] after the tokens numbered `at`, from re-encoding what is alive there.

    At each number t the tokens that query t sees are run through the model afresh, causally, as if
    nothing else had ever been read, at the distances from t that `positions` (InCache() if None)
    gives them. tokens and chunk as `oracle` takes them.
    """
    positions = InCache() if positions is None else positions
    apart = _apart(positions, memory, tokens) if isinstance(positions, Keep3D) else None
    tokens, seen = _seen(model, tokens, memory, chunk)
    number = torch.arange(len(tokens), device=tokens.device)
    rows = []
    for t in at:
        mine = seen[t : t + 1]
        if apart is not None:
            distance = apart[t][mine[0]]
        else:
            distance = positions.distance(number[t].view(1, 1), number[None, :], mine)[mine]
        rows.append(model(tokens[mine[0]], _causal(model, distance[0] - distance))[-1])
    return torch.stack(rows)


def _causal(model: Any, where: Tensor) -> Callable[..., Tensor]:
    """Dense causal attention at rotary positions `where` [T] or [T, 3]."""
    seen = torch.ones(len(where), len(where), dtype=torch.bool, device=where.device).tril()

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _heads(q, k, v)
        axes = model.freq_axis if where.dim() == 2 else None
        turn = _turn(where, model.inv_freq.double(), q.dtype, axes)
        q, k = (torch.view_as_real(_pairs(x) * turn).flatten(-2) for x in (q, k))
        return (_softmax(q @ k.mT, seen, model.sink_logits(layer)) @ v).transpose(0, 1)

    return attend


class Beside(NamedTuple):
    """What a fold has of each query: gone bool [T, T], which keys, and int64 [T, T], how far."""

    fold: Fold
    gone: Tensor
    back: Tensor

    def joined(
        self,
        model: Any,
        layer: int,
        rows: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        whole: Tensor,
    ) -> Tensor:
        """o [H, rows, D] of what is seen, whose sum of exp(logit) is `whole` [H, rows], with it."""
        fold, gone = self.fold, self.gone[rows].to(q.dtype)
        q = q[:, rows] * q.shape[-1] ** 0.5  # as it was before it was scaled
        phi_q, phi_k = fold.phi(q), fold.phi(k)
        hat_q, hat_k = (q, k) if fold.raw else (phi_q, phi_k)
        turn = _turn(self.back[rows], model.inv_freq.double(), q.dtype)
        top = torch.einsum("hti,hji,tji->htj", _pairs(hat_q), _pairs(hat_k).conj(), turn).real
        mass = (phi_q @ phi_k.mT * gone).sum(-1, keepdim=True)
        read = (top * gone) @ v / (mass + fold.eps * gone.sum(-1)[:, None]).clamp_min(1e-300)
        if fold.merge == "add":
            return o + read @ model.fold(layer).to(o.dtype).T
        mass = fold.scale * mass
        return (o * whole[..., None] + read * mass) / (whole[..., None] + mass)


def _mass(scores: Tensor, seen: Tensor, sink_logits: Tensor | None) -> Tensor:
    """Sum [H, Tq] of exp(score) of what is seen, and of a learned sink."""
    made = scores.masked_fill(~seen, -torch.inf).exp().sum(-1)
    return made if sink_logits is None else made + sink_logits.to(made.dtype).exp()[:, None]


def _heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[Hq, T, D] each, the query scaled, keys and values once per query head."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
    return q.transpose(0, 1) * q.shape[-1] ** -0.5, k, v


def _pairs(x: Tensor) -> Tensor:
    """[..., D] as [..., D/2] complex numbers: dimension i pairs with i + D/2."""
    return torch.complex(*x.chunk(2, -1))


def _turn(
    steps: Tensor, inv_freq: Tensor, dtype: torch.dtype, axes: Tensor | None = None
) -> Tensor:
    """exp(i * steps * inv_freq), complex numbers over `dtype`; the angles are fp64. axes: of steps
    [..., 3], which turns each frequency.
    """
    angle = (steps[..., None] if axes is None else steps[..., axes.long()]) * inv_freq
    return torch.complex(angle.cos().to(dtype), angle.sin().to(dtype))


def _softmax(scores: Tensor, seen: Tensor, sink_logits: Tensor | None) -> Tensor:
    """Weights [H, Tq, Tk] of what is seen; a learned sink [H] takes its share and gives nothing."""
    scores = scores.masked_fill(~seen, -torch.inf)
    if sink_logits is None:
        return scores.softmax(-1)
    extra = sink_logits.to(scores.dtype)[:, None, None].expand(*scores.shape[:2], 1)
    return torch.cat([scores, extra], -1).softmax(-1)[..., :-1]
