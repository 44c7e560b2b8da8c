# SPDX-License-Identifier: Apache-2.0
"""Archive: what the window lets go of is kept far away, and can be brought back.

`Sink(4) + Window(512) >> Archive("bounds", OnDisk("folder"))` streams at the memory of the left
side; every page that leaves the window goes to the tier, its summary stays near, and
`Stream.recall` brings the pages that a question needs into the view, each layer its own.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from ..errors import bad_type, bad_value
from .disk import Disk
from .layout import CODECS, Layout
from .pool import PagePool
from .regions import Behind, Plan, Region
from .segment import Fault, Record
from .shelf import Shelf
from .summary import FIELDS, Index
from .tiers import Tiers


@dataclass(frozen=True)
class InMemory:
    """Host memory for `blocks` pages, pinned where there is a GPU; when full, the oldest go."""

    blocks: int = 4096
    codec: str = "same"


@dataclass(frozen=True)
class OnDisk:
    """Segment files in a folder, which outlive the process; host memory keeps copies of the newest
    `host_blocks`. queue: pages that may wait to be written. readers: threads. direct: read past the
    page cache where the file system can; False where the same pages are recalled again and again
    and `host_blocks` is small.
    """

    folder: str | os.PathLike[str]
    host_blocks: int = 0
    codec: str = "same"
    queue: int = 32
    readers: int = 4
    segment_bytes: int = 64 << 20
    direct: bool = True


@dataclass(frozen=True)
class Archive(Region):
    """Takes what the regions to its left evict: `near >> Archive(...)`.

    index: what stays near of a page, "mean" (enough for the best k) or "bounds" (six times that;
    for recall by mass, too). tier: InMemory or OnDisk; with codec "int8" at a byte a number. pages:
    pool pages for what is recalled, of all streams together.
    """

    index: str = "bounds"
    tier: InMemory | OnDisk = InMemory()
    pages: int = 64

    def __post_init__(self) -> None:
        if self.index not in FIELDS:
            raise bad_value("Archive", "index", " or ".join(FIELDS), repr(self.index))
        if not isinstance(self.tier, InMemory | OnDisk):
            raise bad_type("Archive", "tier", "InMemory(...) or OnDisk(...)", repr(self.tier))
        if self.tier.codec not in CODECS:
            raise bad_value("Archive", "codec", " or ".join(CODECS), repr(self.tier.codec))
        if isinstance(self.pages, bool) or not isinstance(self.pages, int) or self.pages < 1:
            raise bad_value("Archive", "pages", "1 or more", repr(self.pages))

    def behind(self, near: Region) -> Region:
        return Spill(near, self)

    def plan(self) -> Plan:
        raise bad_value(
            "wrap", "memory", "regions >> Archive(...)", self, "it keeps what others evict"
        )


@dataclass(frozen=True, repr=False)
class Spill(Behind):
    """`near >> archive`. Sees what near keeps; what else a query sees is up to `Stream.recall`."""

    far: Archive

    @property
    def archive(self) -> Archive:
        return self.far


class ArchiveStore:
    """The archive of an engine: its tiers, and the shelves of its streams.

    inv_freq fp64 [R] as the pool's keys were rotated with, or None. What a disk holds of named
    streams is there again (`names` are digests); what it holds of streams without a name is
    dropped: it belonged to a process that is gone.
    """

    def __init__(self, spec: Archive, pool: PagePool, inv_freq: Tensor | None) -> None:
        self.spec, self.pool, self.inv_freq = spec, pool, inv_freq
        layers, _, heads, dim, _ = pool.k.shape
        self._sizes = layers, heads, dim
        layout, tier = Layout.of(pool, spec.tier.codec), spec.tier
        if isinstance(tier, InMemory):
            self.tiers = Tiers(layout, host_blocks=tier.blocks)
        else:
            disk = Disk(
                tier.folder,
                layout,
                self.index().summary_bytes,
                tag=spec.index,
                queue=tier.queue,
                readers=tier.readers,
                segment_bytes=tier.segment_bytes,
                direct=tier.direct,
            )
            self.tiers = Tiers(layout, host_blocks=tier.host_blocks, disk=disk)
        self._holders: Counter[int] = Counter()
        self._found: dict[bytes, dict[int, tuple[int, Record]]] = {}
        self._open: set[bytes] = set()
        if self.tiers.disk is not None:
            self._adopt()

    def _adopt(self) -> None:
        stale = []
        for block, record in self.tiers.adopt():
            if record.stream[0] == 0:
                stale.append(block)
                continue
            shelf = self._found.setdefault(record.stream, {})
            if record.start in shelf:  # the newer one came after a rollback
                stale.append(shelf[record.start][0])
            shelf[record.start] = block, record
        self.tiers.drop(stale)

    @property
    def faults(self) -> list[Fault]:
        """What the disk was found to have damaged, by file and block."""
        return [] if self.tiers.disk is None else self.tiers.disk.faults

    def index(self) -> Index:
        return Index(self.spec.index, *self._sizes)

    def shelf(self, name: str | None = None) -> Shelf:
        """Of a new stream; of a name that the disk knows, with all that is there.

        ValueError for a name that is in use.
        """
        key = b"\0" + secrets.token_bytes(15)
        if name is not None:
            key = b"\1" + blake2b(name.encode(), digest_size=15).digest()
            if key in self._open:
                raise bad_value("open", "archive", "a name that no open stream has", repr(name))
        index = self.index()
        found = sorted(self._found.pop(key, {}).items())
        for start, (block, r) in found:
            fields = torch.frombuffer(bytearray(r.summary), dtype=torch.float32)
            index.add(block, start, r.origin, r.count, fields.view(-1, *self._sizes))
        self.hold(index.blocks.tolist())
        self._open.add(key)
        return Shelf(self, key, index)

    def hold(self, blocks: Iterable[int]) -> None:
        self._holders.update(blocks)

    def let_go(self, blocks: Iterable[int]) -> None:
        """One holder less for each; the last one takes it along."""
        gone = []
        for b in blocks:
            self._holders[b] -= 1
            if not self._holders[b]:
                del self._holders[b]
                gone.append(b)
        self.tiers.drop(gone)

    def near(self) -> Tiers:
        """The tiers, with their pages in the pool."""
        if not self.tiers.near_pages:
            self.tiers.attach(self.pool, self.spec.pages)
        return self.tiers

    def flush(self) -> None:
        """Returns when all that was archived is on the disk. OSError if it cannot be."""
        self.tiers.flush()

    def close(self) -> None:
        self.tiers.close()
