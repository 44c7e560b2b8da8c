# SPDX-License-Identifier: Apache-2.0
"""Several launches as one, as a stream makes them: rows whose floor is that of the whole."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from headrace import PagePool, ops
from headrace.adapters import LoraRoute, LoraSite
from headrace.contract import ROUNDOFF
from headrace.memory.layout import Layout
from headrace.memory.segment import Record
from headrace.memory.tiers import Tiers

from .measure import DIM, HEADS, KV_HEADS, PAGE, Bench
from .work import Step, Work

KEPT = 0.15  # of the tokens of a frame


def exactly(dtype: torch.dtype) -> float:
    """A tolerance: one rounding."""
    return ROUNDOFF.get(dtype, 0.0)


def prune(bench: Bench, tokens: int, depth: int) -> None:
    """Features of a frame beside those of the frame before: score, select, compact."""

    def make() -> dict[str, Any]:
        x, other = bench.randn(tokens, depth), bench.randn(tokens, depth)
        changed = torch.arange(tokens, device=bench.device)[:, None] % 100 < 100 * KEPT
        return dict(x=x, ref=torch.where(changed, other, x), _changed=changed[:, 0])

    def step(s: dict) -> Any:
        score = ops.similarity(s["x"], s["ref"])
        kept = ops.select(score, "threshold", threshold=0.5, lowest=True, capacity=tokens // 5)
        return ops.compact(s["x"], *kept)

    def eager(s: dict) -> torch.Tensor:  # in a graph no size depends on what is on the device
        stays = F.cosine_similarity(s["x"], s["ref"], -1) >= 0.5
        return s["x"][stays.sort(stable=True).indices]

    def check(s: dict, out: Any) -> list:
        want = s["x"][s["_changed"]]
        return [(out[0].view(-1, depth)[: len(want)], want),
                (out[3].view(-1), torch.tensor([len(want)], device=bench.device))]  # fmt: skip

    item = bench.dtype.itemsize
    moved = (2 + 2 * KEPT) * tokens * depth * item
    what = f"similarity, select and compact, {tokens} x {depth}"
    peers: dict[str, Step] = {"eager, rows in order": eager}
    work = Work("prune", what, make, bench.under(step), peers, check, moved,
                6 * tokens * depth, exactly)  # fmt: skip
    bench.measure(work, nodes=nodes(bench, make, work.ours))


def recall(bench: Bench, tokens: int, k: int) -> None:
    """Blocks of 64 tokens by their means: score and select, of one layer."""
    blocks = tokens // 64

    def make() -> dict[str, Any]:
        return dict(q=bench.randn(1, HEADS, 1, DIM), keys=bench.randn(1, KV_HEADS, blocks, DIM))

    def step(s: dict) -> Any:
        return ops.select(ops.block_score(s["q"], s["keys"]), k=k)

    def scored(s: dict) -> torch.Tensor:
        return (s["q"].view(1, KV_HEADS, -1, 1, DIM).sum(2) @ s["keys"].mT).sum((1, 2))

    def check(s: dict, out: Any) -> list:
        """The scores of what was selected are the best there are."""
        score = scored({n: x.double() for n, x in s.items()})[0]
        got = score[out[0].view(-1).long()].sort(descending=True).values
        return [(got, score.topk(k).values, 0.1)]

    item = bench.dtype.itemsize
    moved = blocks * KV_HEADS * DIM * item + 8 * blocks + 4 * k
    peers: dict[str, Step] = {"eager": lambda s: scored(s).topk(k).indices.sort()}
    work = Work("recall", f"score and select {k} blocks of {tokens} tokens", make,
                bench.under(step), peers, check, moved, 2 * blocks * KV_HEADS * DIM,
                lambda dtype: 1e-3)  # fmt: skip
    bench.measure(work, nodes=nodes(bench, make, work.ours))


def site(bench: Bench, rows: int, rank: int, width: int) -> None:
    """A projection with one adapter for all rows, beside the projection alone. Nodes are those that
    a graph has more than that of the projection."""
    from .adapters import pool

    def make() -> dict[str, Any]:
        s = pool(bench, rows, 1, rank, width, None)
        lists = (s[n] for n in ("a", "b", "rows", "row_indptr", "scale"))
        route = LoraRoute(rows, device=bench.device, tiled=True).set(s["slots"][:, 0] * 0)
        return s | dict(site=LoraSite(*lists), route=route, base=bench.randn(width, width))

    def alone(s: dict) -> torch.Tensor:
        return F.linear(s["x"], s["base"])

    def step(s: dict) -> torch.Tensor:
        return s["site"](s["x"], alone(s), s["route"])

    def two(s: dict) -> torch.Tensor:
        return alone(s).addmm_(s["x"] @ s["a"][:, 0].T, s["b"])

    def check(s: dict, out: torch.Tensor) -> list:
        x, base, a, b = (s[n].double() for n in ("x", "base", "a", "b"))
        return [(out, x @ base.T + x @ a[:, 0].T @ b)]

    moved = (width * width + 2 * rank * width + 2 * rows * width) * bench.dtype.itemsize
    flops = 2 * rows * width * (width + 2 * rank)
    peers: dict[str, Step] = {"the projection alone": alone, "two products more": two}
    spec = ops.specs()["linear"]
    work = Work("site", f"{rows} rows, one adapter of rank {rank}, {width} wide", make,
                bench.under(step), peers, check, moved, flops,
                lambda dtype: 2 * spec.tolerance(dtype, {"K": width}, {}),
                {"two products more": check})  # fmt: skip
    base = nodes(bench, make, {"": alone}).get("", 0)
    more = {name: n - base for name, n in nodes(bench, make, work.ours).items()}
    bench.measure(work, nodes=more)


def fetch(bench: Bench, blocks: int) -> None:
    """Blocks of one layer from host memory into pages on the device, 256 KiB each in bf16."""
    pool = PagePool(1, blocks, KV_HEADS, DIM, PAGE, bench.dtype, bench.device)
    layout = Layout.of(pool)
    tiers = Tiers(layout, host_blocks=blocks)
    pages = torch.randint(-9, 9, (blocks, 2, KV_HEADS * DIM * PAGE)).to(bench.dtype)
    for page in pages:
        block = layout.empty()
        pieces = layout.split(block)
        for name, piece in zip("kv", page, strict=True):
            pieces[name].copy_(piece.view(pieces[name].shape))
        tiers.put([block], [Record(b"", 0, 0, PAGE, 0, (), b"")])
    tiers.attach(pool, blocks)
    wanted = list(range(blocks))

    def step(s: dict) -> list[int]:
        found = tiers.fetch(wanted, 0)
        tiers.unpin(wanted, 0)
        tiers.forget_near()
        return found.pages

    def check(s: dict, out: list[int]) -> bool:
        held = torch.stack([pool.k[0][out].flatten(1), pool.v[0][out].flatten(1)], 1)
        return torch.equal(held.cpu(), pages)

    moved = blocks * layout.part_bytes
    pinned = torch.empty(moved, dtype=torch.uint8, pin_memory=not bench.dry)
    there = torch.empty(moved, dtype=torch.uint8, device=bench.device)
    peers: dict[str, Step] = {"one pinned copy": lambda s: there.copy_(pinned, non_blocking=True)}
    floor = 0.0 if bench.warm else moved / bench.rates.link()
    bench.measure(
        Work("fetch", f"{blocks} blocks of {layout.part_bytes} bytes from host memory", dict,
             {"tiers": step}, peers, check, moved, 0.0, exactly, floor_s=floor, graph=False)
    )  # fmt: skip


def nodes(
    bench: Bench, make: Callable[[], dict[str, Any]], steps: dict[str, Step]
) -> dict[str, int]:
    """Nodes of the graph of each step, as the driver counts them; none without a device."""
    if bench.dry or bench.warm:
        return {}
    driver, found = ctypes.CDLL("libcuda.so.1"), {}
    for name, step in steps.items():
        s = make()
        step(s)
        graph = bench.captured([lambda s=s, step=step: step(s)], keep=True)
        count = ctypes.c_size_t()
        handle = ctypes.c_void_p(graph.raw_cuda_graph())
        if driver.cuGraphGetNodes(handle, None, ctypes.byref(count)) == 0:
            found[name] = count.value
    return found
