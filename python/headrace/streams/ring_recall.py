# SPDX-License-Identifier: Apache-2.0
"""Finished frames that a rule recalls: an archive of their keys and values, in and out of pages.

A region says by age alone what is alive. A rule may also read the frames, what they were labelled
with, or their keys: it names the frames that the next one sees, and where in time each stands. A
frame's keys are rotated about its own place, so to stand elsewhere is to be seen with another
integer: nothing is copied for that. What the pool has no room for waits outside it, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import bad_value
from ..memory import PagePool


class Done(NamedTuple):
    """A finished frame fp32 [P, C], its label, and, once its keys are written, the rule's note."""

    frame: Tensor
    label: Any = None
    note: Any = None


class Recall:
    """A rule without a state of its own: what a frame sees of finished ones, and which stay.

    most: finished frames that stay. resident: how many of them lie in the pool at once; others wait
    outside it.
    """

    most: int
    resident: int

    def context(
        self, number: int, done: Mapping[int, Done], label: Any
    ) -> Sequence[tuple[int, int]]:
        """(number, how many frames before this one it stands) of each finished frame that frame
        `number` sees, in all of its steps and once it is clean. Fewer than `resident`."""
        raise NotImplementedError

    def note(self, number: int, keys: Tensor, done: Mapping[int, Done]) -> Any:
        """What to remember of a frame whose mean keys are fp32 [layers, heads * D], as written."""
        return None

    def drops(self, done: Mapping[int, Done]) -> Iterable[int]:
        """Frames to let go, now that another is written; the oldest beyond `most` unless said."""
        return sorted(done)[: max(0, len(done) - self.most)]


class Shelf:
    """The frames that a rule keeps, by number: pages by layer, or copies of these.

    done: all of them. moved_bytes: copied out of the pool and back into it.
    """

    def __init__(self, pool: PagePool, rule: Recall) -> None:
        self.rule, self.pool, self.moved_bytes = rule, pool, 0
        self.done: dict[int, Done] = {}
        self._pages: dict[int, list[tuple[int, ...]]] = {}
        self._copies: dict[int, list[Tensor]] = {}
        self._fetched: dict[int, list[tuple[int, ...]]] = {}

    @property
    def parked(self) -> int:
        """Frames outside the pool."""
        return len(self._copies)

    def context(self, number: int, label: Any) -> tuple[tuple[int, int], ...]:
        """What the rule says a frame sees. ValueError when it names what is not there."""
        sees = tuple(self.rule.context(number, self.done, label))
        strange = [j for j, _ in sees if j not in self.done]
        if strange or len(sees) >= self.rule.resident:
            most = f"fewer than {self.rule.resident} of the frames kept"
            raise bad_value("Ring.tick", "recall", most, strange or len(sees))
        return sees

    def pages(self, number: int, layer: int) -> tuple[int, ...]:
        """Where a frame lies in a layer."""
        found = self._pages.get(number) or self._fetched[number]
        return found[layer]

    def fetch(self, numbers: Iterable[int], layers: int) -> None:
        """Brings frames back into pages; `commit` makes it last, `undo` gives the pages back."""
        for number in sorted(set(numbers) & set(self._copies)):
            count = self._copies[number][0].shape[0]
            pages = self.pool.take(count)
            n = count // layers
            self._fetched[number] = [tuple(pages[n * i : n * (i + 1)]) for i in range(layers)]
            for tensor, copy in zip(self._tensors(), self._copies[number], strict=True):
                tensor[pages] = copy

    def clear(self) -> None:
        """Forgets every frame; their pages go with the pool."""
        self.done, self._pages, self._copies, self._fetched = {}, {}, {}, {}

    def undo(self) -> None:
        """What `fetch` brought waits outside again."""
        for by_layer in self._fetched.values():
            self.pool.drop([page for pages in by_layer for page in pages])
        self._fetched = {}

    def commit(
        self, written: Mapping[int, tuple[list[tuple[int, ...]], Tensor]], seen: Iterable[int]
    ) -> None:
        """Adds frames that were written: pages by layer and mean keys; lets go and makes room.

        seen: frames that must stay in the pool.
        """
        for number, by_layer in self._fetched.items():
            copies = self._copies.pop(number)
            self.moved_bytes += sum(copy.nbytes for copy in copies)
            self._pages[number] = by_layer
        self._fetched = {}
        for number, (by_layer, keys) in written.items():
            note = self.rule.note(number, keys, self.done)
            self.done[number] = self.done[number]._replace(note=note)
            self._pages[number] = by_layer
            for out in [j for j in self.rule.drops(self.done) if j != number]:
                del self.done[out]
                self._copies.pop(out, None)
                self._drop(out)
        stay = set(seen) | set(written)
        for number in sorted(self._pages):
            if len(self._pages) > self.rule.resident and number not in stay:
                self._park(number)

    def _park(self, number: int) -> None:
        pages = [page for by_layer in self._pages[number] for page in by_layer]
        self._copies[number] = [x[pages].clone() for x in self._tensors()]
        self.moved_bytes += sum(copy.nbytes for copy in self._copies[number])
        self._drop(number)

    def _drop(self, number: int) -> None:
        self.pool.drop([p for by_layer in self._pages.pop(number, []) for p in by_layer])

    def _tensors(self) -> list[Tensor]:
        tensors, scales = self.pool.layer(0)
        return [*tensors, *(x for x in scales.values() if x is not None)]
