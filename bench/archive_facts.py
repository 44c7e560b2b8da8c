# SPDX-License-Identifier: Apache-2.0
"""Policies that look for the facts of `headrace.bench.loops.facts` in a stream (see archive.py).

A fact is found if a page with part of it is recalled, answered if the attention's output is nearest
to its code.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace import Archive, OnDisk, PagePool, Sink, Window, ops
from headrace.bench.loops.facts import (
    HKV,
    HQ,
    PAGE,
    PAGES,
    SINKS,
    TOKEN_BYTES,
    TOP,
    WINDOW,
    D,
    Facts,
    Rekv,
    attend,
    stream,
)
from headrace.memory import ArchiveStore, Asked, Recalled, Shelf, Table, by_sample, by_score
from headrace.memory.dial import Masses, dial, estimate
from headrace.memory.recall import bounds
from headrace.memory.regions import compile_plan

BUDGETS = (1, 2, 4, 8, 16, 64, 256)
SHARES = (0.1, 0.5, 0.9)
MOST = 192  # pages that the dial may take


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
