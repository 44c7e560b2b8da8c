# SPDX-License-Identifier: Apache-2.0
"""Facts planted in a long stream, and the policies that look for them (see archive.py).

Keys are synthetic (no model): a drifting scene, noise, and facts of 8 tokens whose keys share a
direction and whose values carry a code. A question asks along the direction of one fact; it is
found if a page with part of it is recalled, answered if the attention's output is nearest to its
code.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace import Archive, OnDisk, PagePool, Sink, Window, ops
from headrace.memory import (
    ArchiveStore,
    Asked,
    Edit,
    Recalled,
    Shelf,
    Table,
    by_sample,
    by_score,
    view,
)  # fmt: skip
from headrace.memory.dial import Masses, dial, estimate
from headrace.memory.recall import bounds
from headrace.memory.regions import compile_plan

HQ, HKV, D, PAGE = 4, 2, 64, 64
SINKS, WINDOW, PAGES, MOST = 4, 512, 256, 192
SPAN, GAIN = 8, 16.0
BUDGETS = (1, 2, 4, 8, 16, 64, 256)
SHARES = (0.1, 0.5, 0.9)
TOKEN_BYTES = 2 * HKV * D * 2  # of keys and values in bfloat16
BLOCK, TOP = 196, 64  # of ReKV, as published: a frame of tokens, and how many of them


class Facts:
    """`count` facts among `tokens`: where, the direction of their keys, and their codes; keys and
    values [tokens, HKV, D] of everything once it was read, in bfloat16.
    """

    def __init__(self, tokens: int, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        slots = rng.permutation(tokens // PAGE - 20)[:count] + 4
        self.at = np.sort(slots) * PAGE + rng.integers(0, PAGE - SPAN, count)
        g = torch.Generator().manual_seed(seed)
        way = torch.randn(count, HKV, D, generator=g)
        self.way = way / way.norm(dim=-1, keepdim=True)
        self.strength = torch.linspace(4, 9, count)[torch.randperm(count, generator=g)]
        self.code = torch.randn(count, HKV, D, generator=g) * 4
        self._g, self._scene = g, torch.zeros(HKV, D)
        self.k, self.v = (torch.empty(tokens, HKV, D, dtype=torch.bfloat16) for _ in "kv")

    def read(self, lo: int, hi: int) -> tuple[Tensor, Tensor]:
        """Keys and values [hi-lo, HKV, D] of tokens lo..hi-1, to be asked for in order."""
        n, g = hi - lo, self._g
        k = torch.randn(n, HKV, D, generator=g) * 0.5
        for i in range(0, n, PAGE):
            self._scene = 0.95 * self._scene + 0.08 * torch.randn(HKV, D, generator=g)
            k[i : i + PAGE] += self._scene
        v = torch.randn(n, HKV, D, generator=g)
        for f in np.flatnonzero((self.at >= lo) & (self.at < hi)):
            span = slice(self.at[f] - lo, self.at[f] - lo + SPAN)
            k[span] += self.way[f] * self.strength[f]
            v[span] += self.code[f]
        self.k[lo:hi], self.v[lo:hi] = k, v
        return k, v

    def question(self, f: int) -> Tensor:
        """q [1, HQ, D]."""
        noise = torch.randn(1, HQ, D, generator=torch.Generator().manual_seed(f)) / D**0.5
        way = self.way[f].repeat_interleave(HQ // HKV, 0)[None]
        return GAIN * (way + 0.3 * noise)

    def answer(self, o: Tensor) -> int:
        """Which fact's code [HKV, D] the output [1, HQ, D] is nearest to."""
        mean = o.float().view(HKV, HQ // HKV, D).mean(1)
        return int(torch.einsum("hd,fhd->f", mean, self.code).argmax())

    def logits(self, q: Tensor) -> Tensor:
        """Of all tokens, fp32 [HQ, tokens]."""
        grouped = (q[0] * D**-0.5).view(HKV, HQ // HKV, D)
        parts = [torch.einsum("hgd,thd->hgt", grouped, k.float()) for k in self.k.split(1 << 16)]
        return torch.cat(parts, -1).flatten(0, 1)

    def attend(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Plain attention [1, HQ, D] to some of the tokens."""
        weight = logits[:, rows].softmax(-1).view(HKV, HQ // HKV, -1)
        return torch.einsum("hgt,thd->hgd", weight, self.v[rows].float()).view(1, HQ, D)


class Rekv:
    """ReKV's retrieval as published, in plain torch: everything is kept; a block is BLOCK tokens
    and stands by its mean key, repeated for the query heads that share it; the question's mean
    query is compared with it over all heads at once; the TOP best blocks are moved whole.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts, count = facts, len(facts.k) // BLOCK
        means = facts.k[: count * BLOCK].float().view(count, BLOCK, HKV, D).mean(1)
        self.index = means.repeat_interleave(HQ // HKV, 1).flatten(1)

    def ask(self, q: Tensor, logits: Tensor, top: int, inside: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the tokens of the blocks."""
        score = self.index @ q.mean(0).flatten()
        blocks = score.topk(min(top, len(score))).indices.sort().values
        rows = (blocks[:, None] * BLOCK + torch.arange(BLOCK)).flatten()
        return self.facts.attend(logits, torch.cat([rows, inside]).unique()), rows


def stream(
    facts: Facts, store: ArchiveStore, shelf: Shelf, table: Table, tokens: int
) -> tuple[Table, int, float]:
    """Reads all tokens; gives the table, the most pages held at any time, and seconds."""
    pool, most, spent = store.pool, 0, 0.0
    for lo in range(0, tokens, 1024):
        k, v = facts.read(lo, min(lo + 1024, tokens))
        begun = time.perf_counter()
        edit = Edit(pool)
        ((grown, where),) = edit.extend([table], [len(k)])
        (pages, scales) = pool.layer(0)
        ops.append(k, v, *pages, torch.tensor(where), **scales)
        table = edit.trim(grown, shelf.stage)
        shelf.commit()
        edit.commit()
        spent += time.perf_counter() - begun
        most = max(most, pool.live_pages)
    return table, most, spent


def attend(pool: PagePool, table: Table, rows: Sequence[list[int]], q: Tensor) -> Any:
    listed = view.entries(table, table.end, rows)
    one = torch.tensor([0, 1], dtype=torch.int32)
    entries = torch.tensor(listed, dtype=torch.int64).view(-1, 7)
    ends = torch.tensor([0, len(entries)], dtype=torch.int32)
    return ops.paged_attention(q, *pool.layer(0)[0], entries, ends, one, torch.tensor([table.end]))


class Asking:
    """Questions to a reopened archive, and the tally of what each policy made of them."""

    def __init__(self, facts: Facts, shelf: Shelf, table: Table) -> None:
        self.facts, self.shelf, self.table = facts, shelf, table
        self.tiers, self.index, self.pool = shelf.store.near(), shelf.index, shelf.store.pool
        self.counts = torch.from_numpy(self.index.counts.copy())
        self.rekv = Rekv(facts)
        self.tally: dict[str, dict[float, list[tuple[float, ...]]]] = {}
        self.dials: dict[str, list[dict[str, float]]] = {str(p): [] for p in SHARES}
        self.score_s: list[float] = []

    def note(self, policy: str, at: float, found: bool, o: Tensor, f: int, moved: float) -> None:
        right = self.facts.answer(o) == f
        self.tally.setdefault(policy, {}).setdefault(at, []).append((found, right, moved))

    def has(self, f: int, rows: np.ndarray) -> bool:
        starts, at = self.index.starts[rows], int(self.facts.at[f])
        return bool(((starts <= at) & (at < starts + PAGE)).any())

    def ours(
        self, policy: str, at: float, f: int, q: Tensor, rows: np.ndarray, before: int
    ) -> Tensor:
        """The output with these blocks of the index recalled; the estimate of the rest beside."""
        got = Recalled(self.shelf, self.table, [rows], False)
        assert not got.faults
        o, lse = attend(self.pool, self.table, got.rows[0], q)
        got.release()
        moved = self.tiers.moved_bytes - before
        self.note(policy, at, self.has(f, rows), o, f, moved)
        return lse

    def fresh(self) -> int:
        """Every question pays for all that it moves."""
        self.tiers.forget_near()
        return self.tiers.moved_bytes

    def put(self, f: int) -> None:
        """Question f, to all policies."""
        facts, index, table = self.facts, self.index, self.table
        q, newest = facts.question(f), torch.arange(table.end)
        logits = facts.logits(q)
        inside = torch.cat([newest[:SINKS], newest[-WINDOW + 1 :]])
        begun = time.perf_counter()
        _, lse = attend(self.pool, table, [], q)
        asked = Asked(q, lse, table.end)
        m = bounds(self.shelf, 0, asked, None, None)
        self.score_s.append(time.perf_counter() - begun)
        rank = (m.peak - lse.reshape(-1, 1)).amax(0)
        for budget in BUDGETS:
            before = self.fresh()
            self.ours("mean", budget, f, q, by_score(self.shelf, 0, asked, budget), before)
            top, n = ops.select(rank, "top_k", k=budget)
            rows = top[: int(n)].numpy().astype(np.int64)
            before = self.fresh()
            self.ours("largest logit", budget, f, q, rows, before)
            more = (budget * PAGE * TOKEN_BYTES + index.nbytes) // TOKEN_BYTES
            seen = torch.cat([newest[:SINKS], newest[-WINDOW - more :]])
            o = facts.attend(logits, seen)
            self.note("window only", budget, bool((seen == int(facts.at[f])).any()), o, f, 0)
        for count in (1, 4, 16, TOP):
            o, rows = self.rekv.ask(q, logits, count, inside)
            found = bool((rows == int(facts.at[f])).any())
            self.note("ReKV", count, found, o, f, len(rows) * TOKEN_BYTES)
        self.dial(f, q, logits, asked, m)

    def dial(self, f: int, q: Tensor, logits: Tensor, asked: Asked, m: Masses) -> None:
        n = len(self.index)
        assert int(self.index.starts[0]) == SINKS
        assert bool((self.counts == PAGE).all())
        true = logits[:, SINKS : SINKS + n * PAGE].view(HQ, n, PAGE).logsumexp(-1).double()
        near = asked.lse.double().reshape(-1)
        for p in SHARES:
            before = self.fresh()
            rows, told = by_sample(self.shelf, 0, asked, p, MOST)
            self.ours("dial, sampled", p, f, q, rows, before)
            left = np.setdiff1d(np.arange(n), rows)
            seen = torch.cat([near[:, None], true[:, rows]], 1).logsumexp(1)
            pages = {
                "exact": len(dial(Masses(true, true), p, near=near).chosen),
                "estimate": len(dial(m, p, near=near, proven=False).chosen),
                "proven": len(dial(m, p, near=near).chosen),
                "sampled": len(rows),
            }
            self.dials[str(p)].append({
                **pages,
                "missed": float(torch.sigmoid(true[:, left].logsumexp(1) - seen).max()),
                "at_most": told.at_most,
            })  # fmt: skip
        left = torch.arange(n)
        c, v = (self.index.rows(x, 0) for x in ("centre", "value"))
        o, lse = attend(self.pool, self.table, [], q)
        o, _ = ops.merge_states(o, lse, *estimate(q, c, v, self.counts[left], D**-0.5))
        self.note("estimate alone", 0, False, o, f, 0)

    def curves(self) -> dict[str, Any]:
        return {
            policy: {
                str(at): {
                    "found": round(float(np.mean([r[0] for r in rows])), 4),
                    "answered": round(float(np.mean([r[1] for r in rows])), 4),
                    "moved_kb": round(float(np.mean([r[2] for r in rows])) / 1e3, 1),
                }
                for at, rows in by.items()
            }
            for policy, by in self.tally.items()
        }


def reached(rows: list[dict[str, float]], p: float) -> dict[str, Any]:
    """How the dial did at p: median pages, and how often what it said was so."""
    done = [r for r in rows if r["at_most"] <= 1 - p]
    held = float(np.mean([r["missed"] <= r["at_most"] for r in rows]))
    kinds = ("exact", "estimate", "proven", "sampled")
    return {
        "median_pages": {k: float(np.median([r[k] for r in rows])) for k in kinds},
        "reached": round(len(done) / len(rows), 4),
        "could_be_reached": round(float(np.mean([r["exact"] <= MOST for r in rows])), 4),
        "missed_within_limit": round(held, 4),
        "limit_less_missed": round(float(np.median([r["at_most"] - r["missed"] for r in rows])), 4),
        "median_pages_where_reached": float(np.median([r["sampled"] for r in done] or [0])),
        "exact_where_reached": float(np.median([r["exact"] for r in done] or [0])),
    }


def planted(folder: Path, tokens: int, questions: int) -> dict[str, Any]:
    """Recall against budget for every policy, bytes moved, and memory."""
    facts = Facts(tokens, questions)
    pool = PagePool(1, PAGES + 64, HKV, D, PAGE, torch.bfloat16)
    place = OnDisk(folder / "stream", codec="int8", queue=256, segment_bytes=64 << 20)
    store = ArchiveStore(Archive("bounds", place, PAGES), pool, None)
    shelf = store.shelf("planted")
    plan = compile_plan(Sink(SINKS) + Window(WINDOW))
    table, most, spent = stream(facts, store, shelf, Table(0, 0, plan), tokens)
    store.flush()
    disk = store.tiers.disk
    assert disk is not None
    idle = {"reads": disk.reads, "moved_bytes": store.tiers.moved_bytes}
    shelf.close()
    store.close()
    begun = time.perf_counter()  # everything below is answered after a restart
    store = ArchiveStore(Archive("bounds", place, PAGES), pool, None)
    shelf = store.shelf("planted")
    reopened = time.perf_counter() - begun
    asking = Asking(facts, shelf, table)
    for f in range(questions):
        asking.put(f)
    curves = asking.curves()
    best = curves["ReKV"][str(TOP)]
    ours = [x for k in ("mean", "largest logit") for x in curves[k].values()]
    enough = [x["moved_kb"] for x in ours if x["answered"] >= best["answered"]]
    score = 1e3 * float(np.median(asking.score_s))
    made = {
        "tokens": tokens,
        "facts": questions,
        "most_pages_while_reading": most,
        "device_mib": round(pool.pages * pool.page_bytes / 2**20, 2),
        "index_mib": round(shelf.index.nbytes / 2**20, 2),
        "disk_mib": round(sum(x.stat().st_size for x in place.folder.iterdir()) / 2**20, 1),
        "unbounded_mib": round(tokens * TOKEN_BYTES / 2**20, 1),
        "while_nothing_is_fetched": idle,
        "us_a_token": round(1e6 * spent / tokens, 2),
        "reopened_s": round(reopened, 3),
        "score_ms": round(score, 2),
        "curves": curves,
        "dial": {p: reached(rows, float(p)) for p, rows in asking.dials.items()},
        "rekv": {
            "answered": best["answered"],
            "moved_kb": best["moved_kb"],
            "ours_moved_kb": min(enough, default=None),
            "bytes_over_ours": round(best["moved_kb"] / min(enough), 1) if enough else 0.0,
        },
    }
    shelf.close()
    store.close()
    return made
