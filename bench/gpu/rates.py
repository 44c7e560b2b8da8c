# SPDX-License-Identifier: Apache-2.0
"""What a GPU can do at best, measured when first asked for: the floors of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .measure import Bench

LARGE = 30  # of two: bytes of the largest move that is measured
SMALL = 14
NODES = 200


class Rates:
    """Rates by name in `bench.floors`, which an earlier run may have filled."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def known(self, name: str, measured: Callable[[], float]) -> float:
        floors = self.bench.floors
        if name not in floors:
            floors[name] = measured()
        return floors[name]

    def moving(self, size: float) -> float:
        """Bytes a second of reads or of copies, whichever is quicker, that move `size` bytes at a
        time, none of them cached: by powers of two."""
        power = min(max(round(size).bit_length() - 1, SMALL), 16 if self.bench.dry else LARGE)
        kinds = (("read", self._read), ("copy", self._copy))
        return max(
            self.known(f"{kind}_bytes_per_s_of_2^{power}", lambda f=f: f(1 << power))
            for kind, f in kinds
        )

    def _read(self, size: int) -> float:
        words = [x.view(torch.int64) for x in self._buffers(size)]
        return size / self.bench.seconds([lambda x=x: x.max() for x in words])

    def _copy(self, size: int) -> float:
        pairs = [x.view(2, -1) for x in self._buffers(size)]
        return size / self.bench.seconds([lambda x=x: x[1].copy_(x[0]) for x in pairs])

    def _buffers(self, size: int) -> list[torch.Tensor]:
        from .measure import ROTATE

        count = 1 if self.bench.dry else max(1, min(64, ROTATE // size + 1))
        kind: dict[str, Any] = dict(dtype=torch.uint8, device=self.bench.device)
        return [torch.empty(size, **kind).random_() for _ in range(count)]

    def matrix(self) -> float:
        """Multiply-adds, counted twice, of a large product in the dtype of the run."""

        def measured() -> float:
            m = 64 if self.bench.dry else 8192
            x, y = self.bench.randn(m, m), self.bench.randn(m, m)
            return 2 * m**3 / self.bench.seconds([lambda: x @ y])

        return self.known("matrix_flops_per_s", measured)

    def node(self) -> float:
        """Seconds of a node of a graph that does next to nothing."""
        one = torch.zeros(1, device=self.bench.device)
        return self.known("graph_node_s", lambda: self.bench.seconds([lambda: one.add_(1)] * NODES))

    def launch(self) -> float:
        """Seconds of such a kernel outside a graph: what a call from Python costs at least."""
        one = torch.zeros(1, device=self.bench.device)

        def measured() -> float:
            start = time.perf_counter()
            for _ in range(NODES):
                one.add_(1)
            if not self.bench.dry:
                torch.cuda.synchronize()
            return (time.perf_counter() - start) / NODES

        return self.known("launch_s", measured)

    def link(self) -> float:
        """Bytes a second from pinned memory of the host to the device."""
        size = 1 << (16 if self.bench.dry else 26)

        def measured() -> float:
            pinned = torch.empty(size, dtype=torch.uint8, pin_memory=not self.bench.dry)
            there = torch.empty(size, dtype=torch.uint8, device=self.bench.device)
            run = self.bench.clocked([lambda: there.copy_(pinned, non_blocking=True)])
            run()
            return size / min(run() for _ in range(10))

        return self.known("link_bytes_per_s", measured)

    def all(self) -> dict[str, Any]:
        """The rates of large moves, products, nodes, launches and the link."""
        if not self.bench.warm:
            self.moving(2.0**LARGE), self.matrix(), self.node(), self.launch(), self.link()
        return self.bench.floors
