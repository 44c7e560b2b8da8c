# SPDX-License-Identifier: Apache-2.0
"""Brings adapters in layer by layer, beside the steps that wait for them."""

from __future__ import annotations

import heapq
import math
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from .bank_rows import Extent
from .blob import Adapter

SMALL = 1 << 20
"""Bytes of an adapter below which a thread costs more than it takes off others."""
Layer = float
"""Number of a layer; infinity for what is outside of layers, which loads last."""


@dataclass(eq=False)
class Resident:
    """An adapter that has a slot and rank rows, though perhaps not yet all of its layers."""

    adapter: Adapter
    slot: int
    extents: list[Extent]
    rank: int  # rank rows
    sites: frozenset[str]  # that it changes
    cost: float  # seconds of a reload, as far as is known
    worth: float = 0.0
    used: int = 0
    holds: int = 0  # steps that are running on it
    pinned: bool = False
    ahead: bool = False  # loaded for a step to come, and not in one since
    missing: set[Layer] = field(default_factory=set)
    error: Exception | None = None
    seconds: float = 0.0  # that its load took so far

    @property
    def revision(self) -> str:
        return self.adapter.revision

    @property
    def loaded(self) -> bool:
        return not self.missing


class Loader:
    """A queue of (adapter, layer), the most urgent first: by step, then by layer, so that several
    cold adapters of one step arrive layer by layer together.

    Who waits for a layer helps: it takes jobs of that layer itself until its own is done. One
    thread works through what is large, from the first such load to `close`; small adapters, and all
    of them without `thread`, come in as they are waited for, their files read ahead by the system.
    """

    def __init__(self, work: Callable[[Resident, Layer], None], thread: bool) -> None:
        self._work, self._use_thread = work, thread
        self._changed = threading.Condition()
        self._queue: list[tuple[int, Layer, int, Resident]] = []
        self._busy: dict[int, Resident] = {}  # thread -> what it works on
        self._thread: threading.Thread | None = None
        self._seq = 0
        self._closed = False

    def inline(self, adapter: Adapter) -> bool:
        """Whether it comes in where it is waited for, not in the thread."""
        return not self._use_thread or adapter.size < SMALL

    def add(self, one: Resident, layers: Iterable[Layer], urgency: int) -> None:
        """Queues layers of an adapter. The less urgency is, the sooner."""
        one.adapter.fetch()
        one.missing.update(layers)
        if self.inline(one.adapter):
            return
        with self._changed:
            for layer in one.missing:
                self._seq += 1
                heapq.heappush(self._queue, (urgency, layer, self._seq, one))
            if self._thread is None:
                # The thread must not keep a bank alive that nobody uses.
                self._thread = threading.Thread(
                    target=_serve,
                    args=(weakref.ref(self), self._changed),
                    daemon=True,
                    name="headrace-adapters",
                )
                self._thread.start()
            self._changed.notify_all()

    def hurry(self, residents: Collection[Resident], urgency: int) -> None:
        """Moves what is queued of them to another urgency, if that is sooner."""
        with self._changed:
            if any(one.missing for one in residents):
                mine = set(map(id, residents))
                self._queue = [
                    (min(at, urgency) if id(one) in mine else at, layer, seq, one)
                    for at, layer, seq, one in self._queue
                ]
                heapq.heapify(self._queue)

    def wait(self, residents: Sequence[Resident], layer: Layer) -> None:
        """Returns once a layer of all of them is in; raises what stopped one of them."""
        late = [one for one in residents if layer in one.missing or one.error is not None]
        queued = []
        for one in late:
            if not self.inline(one.adapter):
                queued.append(one)
            elif one.error is None:
                self._run(one, layer)
        for one in queued:
            while one.error is None and layer in one.missing:
                with self._changed:
                    job = self._pop(queued, layer)
                    if job is None and one.error is None and layer in one.missing:
                        self._changed.wait()
                if job is not None:
                    self._run(*job)
        for one in late:
            if one.error is not None:
                raise one.error.with_traceback(None)

    def cancel(self, one: Resident) -> None:
        """Forgets what is queued of it, and waits for what is being done."""
        with self._changed:
            if one.missing:
                self._queue = [job for job in self._queue if job[3] is not one]
                heapq.heapify(self._queue)
                while any(busy is one for busy in self._busy.values()):
                    self._changed.wait()

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._closed, self._queue = True, []
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _pop(
        self, among: Sequence[Resident] | None = None, last: Layer = math.inf
    ) -> tuple[Resident, Layer] | None:
        """The most urgent job (of these, up to a layer), now that of this thread; None for none."""
        queued = self._queue
        if among is not None:  # a later layer would keep the one that is wanted waiting
            queued = [job for job in queued if job[3] in among and job[1] <= last]
        if not queued:
            return None
        if among is None:
            job = heapq.heappop(queued)
        else:
            job = min(queued)
            self._queue.remove(job)
            heapq.heapify(self._queue)
        self._busy[threading.get_ident()] = job[3]
        return job[3], job[1]

    def _run(self, one: Resident, layer: Layer) -> None:
        began, error = time.perf_counter(), None
        try:
            self._work(one, layer)
        except Exception as raised:
            error = raised
        with self._changed:
            self._busy.pop(threading.get_ident(), None)
            if error is None:
                one.missing.discard(layer)
                one.seconds += time.perf_counter() - began
            else:
                one.error = error
                self._queue = [job for job in self._queue if job[3] is not one]
                heapq.heapify(self._queue)
            self._changed.notify_all()

    def _once(self) -> bool:
        """One job of the thread, waiting for it a while; False when it is over."""
        with self._changed:
            if self._closed:
                return False
            job = self._pop()
        if job is not None:
            self._run(*job)
        return True


def _serve(owner: weakref.ref[Loader], changed: threading.Condition) -> None:
    while True:
        loader = owner()
        if loader is None or not loader._once():
            return
        with changed:
            idle = not loader._queue and not loader._closed
            del loader
            if idle:
                changed.wait(timeout=1.0)
