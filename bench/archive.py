# SPDX-License-Identifier: Apache-2.0
"""The archive: fetching beside the rates of disk and memory, and a stream of 10^6 tokens.

    python bench/archive.py OUT.json [--plot OUT.png] [--tokens N] [--questions N] [--folder DIR]

Rates: pages of 4 layers of 8 heads of 128 in bfloat16 (1 MiB), 32 of 96 at random, against the
sequential read of the same files (neither cached) and against one copy of as many bytes; best of
the rounds, which take turns. Stream: keys are synthetic (no model): a drifting scene, noise, and
facts of 8 tokens whose keys share a direction and whose values carry a code. A question asks along
the direction of one fact; it is found if a page with part of it is recalled, answered if the
attention's output is nearest to its code. All policies see the newest 512 tokens; window
only gets the budget on top. "ReKV-like" ranks blocks of three pages by their mean and
moves them as they are (bfloat16).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace import Archive, OnDisk, PagePool, Sink, Window, ops
from headrace.cli import report
from headrace.memory import ArchiveStore, Asked, Edit, Page, Recalled, Shelf, Table, by_score, view
from headrace.memory.dial import dial, estimate, missed
from headrace.memory.recall import bounds
from headrace.memory.regions import compile_plan

HQ, HKV, D, PAGE = 4, 2, 64, 64
WINDOW = 512
SPAN, GAIN = 8, 16.0
PAGES = 256
BUDGETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHARES = (0.05, 0.1, 0.5, 0.9)


def best(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each, the least of rounds that take turns."""
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            least[name] = min(least[name], time.perf_counter() - begun)
    return least


def rates(folder: Path, rounds: int, stored: int = 96, wanted: int = 32) -> dict[str, Any]:
    """Fetch from disk and from host memory against what the machine does with as many bytes."""
    pool = PagePool(4, wanted + 1, 8, 128, 64, torch.bfloat16)
    pool.k.normal_(), pool.v.normal_()
    made: dict[str, Any] = {"page_mib": pool.page_bytes / 2**20, "fetched": wanted}
    for kind in ("disk", "host"):
        codec = "int8" if "int8" in kind else "same"
        host = stored if kind == "host" else 0
        place = OnDisk(folder / kind, host_blocks=host, codec=codec)
        store = ArchiveStore(Archive("mean", place, wanted), pool, None)
        shelf = store.shelf()
        begun = time.perf_counter()
        for i in range(stored):
            shelf.stage(Page(0, 64 * i, 64 * i), 64 * (i + 1))
            shelf.commit()
        put = time.perf_counter() - begun
        store.flush()
        flushed = time.perf_counter() - begun
        tiers, disk = store.near(), store.tiers.disk
        assert disk is not None
        rng = np.random.default_rng(0)
        size = tiers.layout.part_bytes * 4 * wanted

        def uncached() -> None:
            for segment in disk._segments.values():  # noqa: B023
                os.posix_fadvise(segment.blocks, 0, 0, os.POSIX_FADV_DONTNEED)

        def fetch() -> None:
            chosen = rng.permutation(stored)[:wanted].tolist()  # noqa: B023
            tiers.forget_near()  # noqa: B023
            for layer in range(4):
                got = tiers.fetch(chosen, layer)  # noqa: B023
                assert not got.faults
                tiers.unpin(chosen, layer)  # noqa: B023

        room = np.empty(8 << 20, np.uint8)

        def sequential() -> None:
            left = size  # noqa: B023
            for segment in disk._segments.values():  # noqa: B023
                length = segment.slots * segment.layers * segment.part_bytes
                for at in range(0, length, len(room)):  # noqa: B023
                    take = min(len(room), length - at, left)  # noqa: B023
                    if take <= 0:
                        return
                    os.preadv(segment.blocks, [room.data[:take]], at)  # noqa: B023
                    left -= take

        source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
        calls: dict[str, Callable[[], Any]]
        if kind == "host":
            calls = {"peer": lambda: target.copy_(source), "ours": fetch}  # noqa: B023
            seconds = best(calls, 4 * rounds)
        else:
            least = {"peer": float("inf"), "ours": float("inf")}
            for _ in range(rounds):
                for name, call in (("peer", sequential), ("ours", fetch)):
                    uncached()
                    begun = time.perf_counter()
                    call()
                    least[name] = min(least[name], time.perf_counter() - begun)
            seconds = least
        made[kind] = {
            "gb_s": round(size / seconds["ours"] / 1e9, 3),
            "floor_gb_s": round(size / seconds["peer"] / 1e9, 3),
            "of_floor": round(seconds["peer"] / seconds["ours"], 3),
            "put_ms_a_page": round(1e3 * put / stored, 3),
            "to_disk_gb_s": round(stored * tiers.layout.block_bytes / flushed / 1e9, 3),
        }
        shelf.close()
        store.close()
        shutil.rmtree(folder / kind)
    return made


class Facts:
    """`count` facts among `tokens`: where, the direction of their keys, and their codes."""

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

    def tokens(self, lo: int, hi: int) -> tuple[Tensor, Tensor]:
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


def stream(
    facts: Facts, store: ArchiveStore, shelf: Shelf, table: Table, tokens: int
) -> tuple[Table, int, float]:
    """Reads all tokens; gives the table, the most pages held at any time, and seconds."""
    pool, most, spent = store.pool, 0, 0.0
    for lo in range(0, tokens, 1024):
        k, v = facts.tokens(lo, min(lo + 1024, tokens))
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


def planted(folder: Path, tokens: int, questions: int) -> dict[str, Any]:
    """Recall against budget for every policy, bytes moved, and memory."""
    facts = Facts(tokens, questions)
    plan = compile_plan(Sink(4) + Window(WINDOW))
    pool = PagePool(1, PAGES + 64, HKV, D, PAGE, torch.bfloat16)
    place = OnDisk(folder / "stream", codec="int8", segment_bytes=16 << 20)
    store = ArchiveStore(Archive("bounds", place, PAGES), pool, None)
    shelf = store.shelf("planted")
    table, most, spent = stream(facts, store, shelf, Table(0, 0, plan), tokens)
    store.flush()
    disk = store.tiers.disk
    assert disk is not None
    idle = disk.reads
    shelf.close()
    store.close()
    begun = time.perf_counter()  # everything below is answered after a restart
    store = ArchiveStore(Archive("bounds", place, PAGES), pool, None)
    shelf = store.shelf("planted")
    reopened = time.perf_counter() - begun
    index, tiers = shelf.index, store.near()
    full = 2 * HKV * D * PAGE * 2  # of a page as it was
    means = index.rows("mean", 0)
    whole = len(index) // 3 * 3
    triples = means[:, :whole].unflatten(1, (-1, 3)).mean(2).contiguous()
    counts = torch.from_numpy(index.counts.copy())
    tally: dict[str, dict[float, list[tuple[int, int, int, float]]]] = {}

    def note(policy: str, at: float, found: bool, right: bool, moved: int, lost: float) -> None:
        tally.setdefault(policy, {}).setdefault(at, []).append((found, right, moved, lost))

    def ask(policy: str, at: float, f: int, q: Tensor, chosen: np.ndarray, rest: bool) -> None:
        tiers.forget_near()  # every question pays for all that it moves
        before = tiers.moved_bytes
        got = Recalled(shelf, table, [chosen], False)
        assert not got.faults
        o, lse = attend(pool, table, got.rows[0], q)
        got.release()
        where = int(facts.at[f])
        found = bool(
            ((index.starts[chosen] <= where) & (where < index.starts[chosen] + PAGE)).any()
        )
        left = np.ones(len(index), bool)
        left[chosen] = False
        left_rows = torch.from_numpy(np.flatnonzero(left))
        high = m.high[:, left_rows]
        if rest:
            c, v = (index.rows(x, 0)[:, left_rows].contiguous() for x in ("centre", "value"))
            o, _ = ops.merge_states(o, lse, *estimate(q, c, v, counts[left_rows], D**-0.5))
        note(policy, at, found, facts.answer(o) == f, tiers.moved_bytes - before, missed(lse, high))

    over: dict[str, int] = {}
    times: list[float] = []
    for f in range(questions):
        q = facts.question(f)
        begun = time.perf_counter()
        _, lse = attend(pool, table, [], q)
        asked = Asked(q, lse, table.end)
        m = bounds(shelf, 0, asked, None, None)
        times.append(time.perf_counter() - begun)
        folded = q[:, :, None].contiguous()
        low, high = (index.rows(x, 0)[None] for x in ("low", "high"))
        box = ops.block_score(folded, low, upper=high, heads="max").flatten()
        rekv = ops.block_score(folded, triples[None], heads="sum").flatten()
        for budget in BUDGETS:
            ask("mean", budget, f, q, by_score(shelf, 0, asked, budget), False)
            top, n = ops.select(box, "top_k", k=budget)
            ask("box bound", budget, f, q, top[: int(n)].numpy().astype(np.int64), False)
            rank = m.high.amax(0).float()
            top, n = ops.select(rank, "top_k", k=budget)
            chosen = top[: int(n)].numpy().astype(np.int64)
            ask("mass bound", budget, f, q, chosen, False)
            ask("mass bound + estimate", budget, f, q, chosen, True)
            if budget >= 3:
                top, n = ops.select(rekv, "top_k", k=budget // 3)
                blocks = top[: int(n)].numpy().astype(np.int64)
                chosen = (blocks[:, None] * 3 + np.arange(3)).ravel()
                ask("ReKV-like", budget, f, q, chosen, False)
            inside = facts.at[f] >= tokens - WINDOW - budget * PAGE
            note("window only", budget, bool(inside), bool(inside), 0, 1.0)
        for p in SHARES:
            for proven in (False, True):
                name = "dial, proven" if proven else "dial, estimate"
                got = dial(m, p, near=lse.flatten(), proven=proven)
                if len(got.chosen) > PAGES:
                    over[f"{name} {p}"] = over.get(f"{name} {p}", 0) + 1
                    continue
                ask(name, p, f, q, got.chosen.numpy().astype(np.int64), True)
    curves = {
        policy: {
            str(at): {
                "found": round(float(np.mean([r[0] for r in rows])), 4),
                "answered": round(float(np.mean([r[1] for r in rows])), 4),
                "moved_kb": round(
                    float(np.mean([r[2] for r in rows]))
                    / 1e3
                    * (full / tiers.layout.block_bytes if policy == "ReKV-like" else 1),
                    1,
                ),
                "missed_at_most": round(float(np.mean([r[3] for r in rows])), 4),
                "questions": len(rows),
            }
            for at, rows in by.items()
        }
        for policy, by in tally.items()
    }
    made = {
        "tokens": tokens,
        "facts": questions,
        "most_pages_while_reading": most,
        "device_mib": round(pool.pages * pool.page_bytes / 2**20, 2),
        "index_mib": round(index.nbytes / 2**20, 2),
        "disk_mib": round(disk_size(folder / "stream") / 2**20, 1),
        "unbounded_mib": round(tokens * full / PAGE / 2**20, 1),
        "reads_while_nothing_is_fetched": idle,
        "seconds_of_memory_work": round(spent, 2),
        "us_a_token": round(1e6 * spent / tokens, 2),
        "reopened_s": round(reopened, 3),
        "score_ms": round(1e3 * float(np.median(times)), 2),
        "over_budget": over,
        "curves": curves,
    }
    shelf.close()
    store.close()
    return made


def disk_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def quarter(curves: dict[str, Any]) -> dict[str, Any]:
    """The fewest bytes with which each policy answers as much as ReKV does at its best."""
    goal = max(x["answered"] for x in curves["ReKV-like"].values())
    least = {
        policy: min((x["moved_kb"] for x in by.values() if x["answered"] >= goal), default=None)
        for policy, by in curves.items()
        if policy != "window only"
    }
    return {"answered": goal, "moved_kb": least}


def plot(stream: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for policy, by in stream["curves"].items():
        if "dial" not in policy:
            left.plot(
                [int(b) for b in by], [x["answered"] for x in by.values()], "o-", label=policy
            )
        if policy != "window only":
            moved = [x["moved_kb"] for x in by.values()]
            right.plot(moved, [x["answered"] for x in by.values()], "o-", label=policy)
    left.set(xscale="log", xlabel="pages of 64 tokens", ylabel="share of facts answered")
    right.set(xscale="log", xlabel="KB moved for a question")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.suptitle(f"{stream['facts']} facts in a stream of {stream['tokens']:,} tokens")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # a thread each for the copies, the writer and the readers
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        made = {"machine": report.machine(), "rates": rates(Path(name), args.rounds)}
        made["stream"] = planted(Path(name), args.tokens, args.questions)
    made["at_what_rekv_answers"] = quarter(made["stream"]["curves"])
    args.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    if args.plot is not None:
        plot(made["stream"], args.plot)


if __name__ == "__main__":
    main()
