# SPDX-License-Identifier: Apache-2.0
"""One forward of a stock model, as its attention layers see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ... import interrupts, ops
from ...errors import bad_type, bad_value, unsupported
from ...memory.view import CAP, ORIGIN, View
from .rows import Rows, gather, narrowed

if TYPE_CHECKING:
    from .cache import StreamingCache

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Piece(NamedTuple):
    """A part of the tokens of a forward: their numbers b * L + i (None: all of them), and views.

    views: by the sliding window of a layer. order: int64 [T] where positions have three axes.
    """

    rows: Tensor | None
    views: dict[int | None, View]
    order: Tensor | None


class Step:
    """A forward over [B, L] tokens; real bool [B, L], or None when none is padding."""

    def __init__(self, rows: int, columns: int, real: Tensor | None) -> None:
        self.count, self.columns = rows, columns
        self.real = None if real is None else real.cpu()
        self.pieces: list[Piece] | None = None
        self.shift: list[int] = []
        self.layer = 0  # that comes next

    def begin(
        self,
        cache: StreamingCache,
        q: Tensor,
        k: Tensor,
        ids: Tensor | None,
        turned: tuple[Tensor, Tensor] | None,
    ) -> None:
        """Makes room and views; nothing counts before the cache commits it."""
        if k.dtype not in DTYPES:
            names = ", ".join(str(x).removeprefix("torch.") for x in DTYPES)
            raise bad_type("StreamingCache", "model", f"one of {names}", k.dtype)
        if (k.shape[0], k.shape[2]) != (self.count, self.columns):
            expected = f"keys of {self.count} rows and {self.columns} tokens"
            raise bad_value("StreamingCache", "model", expected, tuple(k.shape))
        rows = cache.open(self.count, k)
        if ids is None:  # what a model takes that is told none
            ids = torch.arange(cache.seen, cache.seen + self.columns, device=q.device)[None]
        self._axis = cache.axis
        flat = self._axis is None and cache.attention.freq_axis is not None
        if flat and bool((ids != ids[:1]).any()):  # text has the same position along all axes
            expected = "the positions Absolute() for images and video"
            raise unsupported("StreamingCache", "positions", expected, "InCache()")
        if self._axis is None:
            self.shift = self._shift(cache, ids[0] if ids.dim() == 3 else ids)
        else:
            self._axis = self._axis.to(q.device)
        # Of these a token's angles come: the model's own, so turning back by them is exact.
        cos, sin = cache.attention.rotary.to(q.device)(q, ids) if turned is None else turned
        half = len(cache.attention.inv_freq)
        cos, sin = (x[..., :half].float().reshape(-1, self.columns, half) for x in (cos, sin))
        square = cos * cos + sin * sin
        turn = torch.stack([cos / square, sin / square])
        turn = turn.expand(2, self.count, self.columns, half).reshape(2, -1, 1, half)
        self._cos, self._sin = turn[0], turn[1]
        self._inv_freq = cache.attention.inv_freq.to(q.device)
        self.pieces = self._cut(cache, rows, ids, q.device)

    def _shift(self, cache: StreamingCache, ids: Tensor) -> list[int]:
        """What a row's position_ids are ahead of its tokens, for ever the same."""
        ids = ids.cpu().expand(self.count, self.columns)
        ends = [0] * self.count
        if cache.rows is not None:
            ends = [lease.table.end for lease in cache.rows.leases]
        end = torch.tensor(ends)[:, None]
        if self.real is None:
            ahead = ids - end - torch.arange(self.columns)
            first = ahead[:, 0]
            wrong = ahead != first[:, None]
        else:
            ahead = ids - end - self.real.cumsum(1) + 1
            first = ahead.gather(1, self.real.int().argmax(1)[:, None])[:, 0]
            wrong = (ahead != first[:, None]) & self.real
        shift = first.tolist()
        if self.real is not None or cache.shift:  # rows without a token so far have no shift yet
            some = [True] * self.count if self.real is None else self.real.any(1).tolist()
            before = cache.shift or shift
            known = [b if e else a for a, b, e in zip(shift, before, ends, strict=True)]
            wrong = (
                wrong
                | torch.tensor([s and a != b for s, a, b in zip(some, shift, known, strict=True)])[
                    :, None
                ]
            )
            shift = [a if s else b for s, a, b in zip(some, shift, before, strict=True)]
        if bool(wrong.any()):
            row = int(wrong.any(1).int().argmax())
            expected = "ids that go up by one from token to token of a row"
            raise bad_value("StreamingCache", "position_ids", expected, ids[row].tolist()[:8])
        return shift

    def _cut(
        self, cache: StreamingCache, rows: Rows, ids: Tensor, device: torch.device
    ) -> list[Piece]:
        """The tokens in runs that a kernel takes at once."""
        if self.real is None:
            counts, real = [self.columns] * self.count, None
        else:
            counts = self.real.sum(1).tolist()
            real = [torch.nonzero(r)[:, 0] + b * self.columns for b, r in enumerate(self.real)]
        pieces, place, places = [], None, None
        if self._axis is not None:
            place = ids.expand(3, self.count, self.columns).reshape(3, -1).T.contiguous()
            each = real or torch.arange(self.count * self.columns).split(self.columns)
            places = [place.cpu()[numbers].numpy() for numbers in each]
        with torch.inference_mode(False), interrupts.deferred():
            planned = rows.read(counts, places)
        for parts in planned:
            numbers = None
            if real is not None or len(planned) > 1:
                numbers = torch.cat(
                    [
                        real[b][at : at + len(where)]
                        if real is not None
                        else torch.arange(at, at + len(where)) + b * self.columns
                        for b, (at, where, *_) in enumerate(parts)
                    ]
                ).to(device)
            wheres, starts = [p.where for p in parts], [p.start for p in parts]
            if any(p.far for p in parts):  # layers that recalled, each its own
                view = View.of(
                    wheres,
                    [p.entries for p in parts],
                    starts,
                    device,
                    [
                        [
                            p.far[n]
                            if p.far and sliding is None
                            else narrowed(p.entries, p.start, sliding)
                            for p in parts
                        ]
                        for n, sliding in enumerate(cache.attention.sliding)
                    ],
                )
                views = dict.fromkeys(cache.attention.sliding, view)
            else:
                views = {
                    sliding: View.of(
                        wheres,
                        [narrowed(p.entries, p.start, sliding) for p in parts],
                        starts,
                        device,
                    )
                    for sliding in dict.fromkeys(cache.attention.sliding)
                }
            order = None
            if place is not None:
                here = place if numbers is None else place[numbers]
                order = next(iter(views.values())).q_pos
                views = {sliding: _three_axes(step, here) for sliding, step in views.items()}
            pieces.append(Piece(numbers, views, order))
        return pieces

    def attend(
        self,
        cache: StreamingCache,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None,
        softcap: float,
        sink_logits: Tensor | None,
    ) -> Tensor:
        """Writes the keys and values of a layer, and reads: [B, L, Hq, D]."""
        assert self.pieces is not None
        assert cache.rows is not None
        pool, spec = cache.rows.pool, cache.attention
        pages, scales = pool.layer(layer)
        heads, dim = q.shape[1], q.shape[3]
        both = self._turned_back(gather(torch.cat([q, k], 1), None))
        v = gather(v, None).float()
        out = None
        inv_freq, axis = self._inv_freq, self._axis
        for number, (rows, views, order) in enumerate(self.pieces):
            step = views[spec.sliding[layer]]
            x, w = (both, v) if rows is None else (both[rows], v[rows])
            ops.append(
                x[:, heads:], w, *pages, step.where, inv_freq=inv_freq, freq_axis=axis, **scales
            )
            o, lse = ops.paged_attention(
                x[:, :heads],
                *pages,
                *step.lists(layer),
                step.q_indptr,
                step.q_pos,
                q_order=order,
                inv_freq=inv_freq,
                freq_axis=axis,
                rope_gain=spec.gain,
                scale=scale,
                softcap=softcap,
                sink_logits=sink_logits,
                max_rows=step.max_rows,
                **scales,
            )
            pool.written_bytes += len(step.where) * pool.row_bytes
            cache.rows.leave(number, layer)
            if cache.heard is not None:
                of = torch.arange(len(both), device=x.device) if rows is None else rows
                cache.heard.capped |= softcap > 0
                asked = x[:, :heads].clone()
                asked[..., : 2 * len(inv_freq)] *= spec.gain
                angle = None if axis is None else step.q_pos[:, axis.long()] * inv_freq
                cache.heard.add(layer, of // self.columns, asked, lse, scale or dim**-0.5, angle)
            if rows is None:
                out = o
            else:
                if out is None:
                    out = o.new_zeros(len(both), heads, dim)
                out[rows] = o
        if out is None:  # padding alone
            out = both.new_zeros(len(both), heads, dim)
        return out.view(self.count, self.columns, heads, dim).to(q.dtype)

    def _turned_back(self, x: Tensor) -> Tensor:
        """Queries or keys fp32 [T, H, D] as they were before the model turned them."""
        x = x.float()
        half = self._cos.shape[-1]
        a, b = x[..., :half], x[..., half : 2 * half]
        parts = [a * self._cos + b * self._sin, b * self._cos - a * self._sin]
        if 2 * half < x.shape[-1]:
            parts.append(x[..., 2 * half :])
        return torch.cat(parts, -1)


def _three_axes(view: View, place: Tensor) -> View:
    """The view with positions int64 [T, 3] from the model: all origins are 0, nothing is capped."""

    def widened(entries: Tensor) -> Tensor:
        entries = torch.cat([entries, entries[:, [ORIGIN, CAP, ORIGIN, CAP]]], 1)
        entries[:, [ORIGIN, 7, 9]] = 0
        return entries

    return View(
        torch.cat([view.where[:, :2], place], 1),
        widened(view.entries),
        view.entry_indptr,
        view.q_indptr,
        place,
        tuple((widened(entries), indptr) for entries, indptr in view.by_layer),
        max_rows=view.max_rows,
    )
