# SPDX-License-Identifier: Apache-2.0
"""What one stream has in an archive."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .segment import Record
from .summary import Index, Summary, unrotated, unturned
from .table import Page, Table

if TYPE_CHECKING:
    from .archive import ArchiveStore


class Shelf:
    """What one stream has in the archive. `stage` notes pages on their way out; `commit` or `undo`
    decides about all of them.
    """

    def __init__(
        self, store: ArchiveStore, key: bytes, index: Index, end: int | None = None
    ) -> None:
        self.store, self.key, self.index = store, key, index
        self.end = int((index.starts + index.counts).max(initial=0)) if end is None else end
        """Position after the last token that was archived, dropped since or not; 0 for none."""
        self._staged: list[tuple[Page, int, Tensor, Tensor | None, int]] = []

    @property
    def named(self) -> bool:
        return self.key[0] != 0

    def stage(self, page: Page, stop: int) -> None:
        """Copies a page of the pool, with the tokens page.start..stop-1, before it is let go.

        OSError when the disk has no room for it.
        """
        self.store.tiers.layout.pack(self.store.pool, page.id, self.promise(page, stop))

    def promise(self, page: Page, stop: int, turned: Tensor | None = None) -> Tensor:
        """`stage` for a page that is written later: uint8 [layers, part_bytes] to pack it into
        before `commit`. turned: angles fp64 [stop - page.start, R] that its keys were turned by,
        where it is not their distance to the origin that turned them.
        """
        (room,) = self.store.tiers.reserve(1)
        block = self.store.tiers.layout.empty()
        self._staged.append((page, stop, block, turned, room))
        return block

    def commit(self) -> None:
        """What was staged is archived."""
        staged, self._staged = self._staged, []
        if not staged:
            return
        records, made = [], []
        for page, stop, block, turned, _ in staged:
            count = stop - page.start
            fields = summarised(self.store, block, page.start - page.origin, count, turned)
            summary = fields.numpy().tobytes()
            records.append(Record(self.key, page.start, page.origin, count, 0, (), summary))
            made.append(fields)
        blocks, room = [block for _, _, block, *_ in staged], [room for *_, room in staged]
        numbers = self.store.tiers.put(blocks, records, room)
        for number, r, fields in zip(numbers, records, made, strict=True):
            self._note(number, r.start, r.origin, r.count, fields)
        self.store.hold(numbers)

    def undo(self) -> None:
        """What was staged never was."""
        staged, self._staged = self._staged, []
        self.store.tiers.release([room for *_, room in staged])

    def cut(self, table: Table) -> None:
        """The stream is at this table again: forgets what its window holds, and what follows."""
        first = table.window[0].start if table.window else table.end
        length = int((self.index.starts < first).sum())
        gone = self.index.blocks[length:].tolist()
        self.index.cut(length)
        self.end = min(self.end, first)
        self.store.let_go(gone)

    def fork(self) -> Shelf:
        """Of a stream that goes on from here; it shares what there is and has no name."""
        self.store.hold(self.index.blocks.tolist())
        return Shelf(self.store, b"\0" + secrets.token_bytes(15), self.index.copy(), self.end)

    def lose(self, blocks: Sequence[int]) -> None:
        """Blocks that turned out damaged are not found again."""
        if blocks:
            self.index.keep(
                ~torch.isin(
                    torch.from_numpy(self.index.blocks.copy()), torch.tensor(list(blocks))
                ).numpy()
            )

    def add(self, block: Tensor, start: int, origin: int, count: int, fields: Tensor) -> int:
        """A block uint8 [layers, part_bytes] of the caller's making, at once; its number.

        Its keys are turned by their positions less `origin`, whatever their order; all come after
        `start`. fields as `Index.add` takes them. OSError when the disk has no room for it.
        """
        record = Record(self.key, start, origin, count, 0, (), fields.numpy().tobytes())
        (number,) = self.store.tiers.put([block], [record])
        self._note(number, start, origin, count, fields)
        self.store.hold([number])
        return number

    def _note(self, number: int, start: int, origin: int, count: int, fields: Tensor) -> None:
        self.index.add(number, start, origin, count, fields)
        self.end = max(self.end, start + count)

    def drop(self, blocks: Sequence[int]) -> None:
        """Blocks that are not wanted any more. What was recalled of them must be forgotten."""
        self.lose(blocks)
        self.store.let_go(blocks)

    def close(self) -> None:
        """Lets go of its blocks; those of a named stream stay on the disk."""
        self.undo()
        self.store._open.discard(self.key)
        if self.named and self.store.tiers.disk is not None:
            rows = enumerate(zip(self.index.blocks, self.index.starts, strict=True))
            self.store._found[self.key] = {
                int(start): (int(block), self._record(i)) for i, (block, start) in rows
            }
        else:
            self.store.let_go(self.index.blocks.tolist())
        self.index.cut(0)

    def _record(self, i: int) -> Record:
        index = self.index
        start, origin, count = (int(x[i]) for x in (index.starts, index.origins, index.counts))
        summary = index.row(i).numpy().tobytes()
        return Record(self.key, start, origin, count, 0, (), summary)


def summarised(
    store: ArchiveStore, block: Tensor, first: int, count: int, turned: Tensor | None = None
) -> Tensor:
    """Fields fp32 [F, L, Hkv, D] of a block as it will come back; slot 0 was turned by `first`, or
    each by its angles in `turned`."""
    layout = store.tiers.layout
    pieces = layout.split(block)
    decoded = layout.decoded(pieces)
    k, v = decoded["k"].float(), decoded["v"].float()
    if "k_scale" in pieces and layout.codec == "same":  # a scale for every slot
        k = k * pieces["k_scale"][..., None, :]
        v = v * pieces["v_scale"][..., None]
    k, v = k.mT[..., :count, :], v[..., :count, :]
    inv_freq = None if store.inv_freq is None else store.inv_freq.cpu()
    plain = unrotated(k, first, inv_freq) if turned is None else unturned(k, turned)
    return Summary.of(k, v, plain).fields(store.spec.index, k)
