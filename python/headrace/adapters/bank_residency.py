# SPDX-License-Identifier: Apache-2.0
"""Slots and rank rows: who has them, who gets them, who gives them up."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .. import interrupts
from ..errors import bad_value
from .bank_loader import Layer, Loader, Resident
from .bank_rows import FreeRows, GreedyDual
from .bank_site import Site
from .bank_tables import FREE, Tables
from .blob import Adapter
from .route import LoraRoute

_RATE = 1e-9  # seconds that a byte takes to load, before anything was measured


@dataclass
class Stats:
    """Counts since the bank was made. Hits and misses: per stream and model call; what was loaded
    ahead for that call is a miss too.
    """

    hits: int = 0
    misses: int = 0
    loads: int = 0
    evictions: int = 0
    bytes_loaded: int = 0


class Residency:
    """The adapters that have a slot, and how they come and go."""

    def __init__(self, sites: Iterable[Site], tables: Tables, rows: int, thread: bool) -> None:
        self.sites = {site.name: site for site in sites}
        self.tables, self.rows, self.stats = tables, FreeRows(rows), Stats()
        self.policy = GreedyDual()
        self.loader = Loader(self._write, thread)
        self.residents: dict[str, Resident] = {}
        self.free_slots = list(range(tables.slots))
        self._urgency = 0
        self._rates: dict[bool, float] = {}  # seconds of a byte: from memory, from a mapped file
        self._layers: dict[Layer, list[Site]] = {}
        for site in self.sites.values():
            self._layers.setdefault(site.layer, []).append(site)

    # Room -------------------------------------------------------------------------------------

    def admit(self, op: str, adapters: Sequence[Adapter], ahead: bool = False) -> list[Resident]:
        """Gives each a slot and queues its layers, evicting what is not in use; all or none.

        ahead: for the step after this one. ValueError, and nothing happened, where there is no
        room.
        """
        wanted = {a.revision: a for a in adapters}
        fresh = [a for d, a in wanted.items() if d not in self.residents]
        if fresh:
            need = sum(rank_of(a) for a in fresh)
            kept = wanted.keys()
            spare = [
                one
                for digest, one in self.residents.items()
                if not (one.holds or one.pinned or digest in kept)
            ]

            def enough(out: Sequence[Resident]) -> bool:
                return (
                    len(self.free_slots) + len(out) >= len(fresh)
                    and self.rows.free + sum(one.rank for one in out) >= need
                )

            victims = self.policy.choose(spare, enough)
            if victims is None:
                busy = len(self.residents) - len(spare)
                raise bad_value(
                    op,
                    "adapters",
                    f"{len(fresh)} free slots and {need} rank rows",
                    f"{self.tables.slots - busy} and "
                    f"{self.rows.free + sum(one.rank for one in spare)} beside {busy} in use",
                    "raise slots or rank_rows, or unpin some",
                )
            for one in victims:
                self.policy.evicted(one)
                self.drop(one)
                self.stats.evictions += 1
            for adapter in fresh:
                self._seat(adapter, self._urgency + ahead)
        return [self.residents[a.revision] for a in adapters]

    def _seat(self, adapter: Adapter, urgency: int) -> None:
        slot, rank = heapq.heappop(self.free_slots), rank_of(adapter)
        ranks = {name: site.ranks_of(adapter) for name, site in self.sites.items()}
        mine = frozenset(name for name, some in ranks.items() if any(some))
        one = Resident(adapter, slot, self.rows.take(rank), rank, mine, self._cost(adapter))
        self.tables.set_rows(slot, one.extents)
        self.tables.set_ranks(
            slot, [FREE if name in mine else 0 for name, some in ranks.items() for _ in some]
        )
        self.residents[adapter.revision] = one
        self.policy.use(one)
        self.stats.loads += 1
        self.stats.bytes_loaded += adapter.size
        self.loader.add(one, {self.sites[name].layer for name in mine}, urgency)

    def drop(self, one: Resident) -> None:
        """Its slot and rows are free."""
        self.loader.cancel(one)
        del self.residents[one.revision]
        self.tables.set_ranks(one.slot, [FREE] * self.tables.width)
        self.tables.set_rows(one.slot, [])
        for name in one.sites:
            self.sites[name].free(one.slot, one.extents)
        self.rows.give(one.extents)
        heapq.heappush(self.free_slots, one.slot)

    # Loading ----------------------------------------------------------------------------------

    def _write(self, one: Resident, layer: Layer) -> None:
        """Brings a layer in; runs in any thread."""
        for site in self._layers[layer]:
            if site.name in one.sites:
                site.write(one.adapter, one.slot, one.extents)
                site.ranks[one.slot] = site.ranks.new_tensor(site.ranks_of(one.adapter))

    def finish(self, one: Resident) -> None:
        """Waits until all of it is in; without it in the bank, and raising, if it cannot be."""
        try:
            self.loader.hurry([one], self._urgency)
            for layer in self._layers:
                self.loader.wait([one], layer)
        except Exception:
            self.drop(one)
            raise

    def _cost(self, adapter: Adapter) -> float:
        return adapter.size * self._rates.get(adapter.mapped, _RATE)

    def _used(self, one: Resident) -> None:
        if one.seconds and not one.missing:  # measured, once
            rate = one.seconds / one.adapter.size
            before = self._rates.get(one.adapter.mapped, rate)
            self._rates[one.adapter.mapped] = before + (rate - before) / 8
            one.seconds = 0.0
        one.cost = self._cost(one.adapter)
        self.policy.use(one)

    # Steps ------------------------------------------------------------------------------------

    def begin(self, op: str, adapters: Sequence[Adapter | None], then: Sequence[Adapter]) -> Route:
        """Makes the adapters of a model call resident and holds them; `then`: of the next."""
        self._urgency += 2  # the odd ones are for what is loaded ahead
        there = [a for a in adapters if a is not None]
        for adapter in there:
            one = self.residents.get(adapter.revision)
            if one is not None and one.error is not None and not one.holds:
                self.drop(one)  # what went wrong ahead of time is tried again
        found = [self.residents.get(a.revision) for a in there]
        hits = [one is not None and not one.ahead for one in found]
        seats = dict(zip((a.revision for a in there), self.admit(op, there), strict=True))
        self.stats.hits += sum(hits)
        self.stats.misses += len(hits) - sum(hits)
        for one in seats.values():
            self._used(one)
            one.holds, one.ahead = one.holds + 1, False
        self.loader.hurry(list(seats.values()), self._urgency)
        self.ahead(then)
        slots = [-1 if a is None else seats[a.revision].slot for a in adapters]
        return Route(self, list(seats.values()), slots)

    def end(self, route: Route) -> None:
        """Lets go of what a step held."""
        for one in route.residents:
            one.holds -= 1
            if one.error is not None and not one.holds:
                self.drop(one)

    def ahead(self, adapters: Sequence[Adapter]) -> None:
        """Loads what is wanted soon, as far as there is room beside what is in use."""
        for adapter in adapters:
            if self.loader.inline(adapter):
                adapter.fetch()  # nothing would be gained by more
                continue
            there = adapter.revision in self.residents
            try:
                (one,) = self.admit("", [adapter], ahead=True)
            except ValueError:
                return
            one.ahead = one.ahead or not there

    def waves(self, adapters: Sequence[Adapter | None]) -> list[list[int]]:
        """Which of the adapters go into one model call together: all of them, where the bank has
        room. Else those that are resident first; in calls of half of the room where a thread loads
        one while the other runs.
        """
        everyone = list(range(len(adapters)))
        distinct = {a.revision: a for a in adapters if a is not None}
        pinned = {d: one for d, one in self.residents.items() if one.pinned}
        slots = self.tables.slots - len(pinned)
        rows = self.rows.count - sum(one.rank for one in pinned.values())
        ranks = {d: rank_of(a) for d, a in distinct.items() if d not in pinned}
        if len(ranks) <= slots and sum(ranks.values()) <= rows:
            return [everyone]
        if not all(self.loader.inline(a) for a in distinct.values()):
            slots, rows = max(1, slots // 2), max(rows // 2, *ranks.values())

        def key(i: int) -> tuple[int, str]:
            a = adapters[i]
            return (0, "") if a is None else (a.revision not in self.residents, a.revision)

        made: list[list[int]] = [[]]
        seen: dict[str, int] = {}
        for i in sorted(everyone, key=key):
            digest = getattr(adapters[i], "revision", None)
            if digest in ranks and digest not in seen:
                if seen and (len(seen) >= slots or sum(seen.values()) + ranks[digest] > rows):
                    made.append([])
                    seen = {}
                seen[digest] = ranks[digest]
            made[-1].append(i)
        return made

    def close(self) -> None:
        """Ends the thread and gives the memory back."""
        self.loader.close()
        self.sites, self.residents, self._layers = {}, {}, {}


class Route:
    """The adapters of one model call, held until it ends, and the slot of each of its tokens."""

    def __init__(self, owner: Residency, residents: list[Resident], slots: Sequence[int]) -> None:
        self._owner, self.residents, self._of = owner, residents, slots
        self.sites = frozenset().union(*(one.sites for one in residents))
        self._tokens: LoraRoute | None = None
        self._arrived = False

    def place(self, counts: Sequence[int]) -> None:
        """Tokens come in runs of `counts`, a run per adapter given. Until the next route."""
        self._tokens = self._owner.tables.tokens(self._of, counts)

    def add_to(self, site: str, x: Tensor, y: Tensor, bias: Tensor | None = None) -> None:
        """y [T, N] += each token's update of x [T, K], as soon as that layer of all is in.

        Raises what kept one of them from loading.
        """
        assert self._tokens is not None
        owner = self._owner
        of = owner.sites[site]
        if not self._arrived:
            if any(one.missing or one.error for one in self.residents):
                with interrupts.deferred():
                    owner.loader.wait(self.residents, of.layer)
            else:
                self._arrived = True  # and they stay, as the step holds them
        of.add_to(x, y, owner.tables, self._tokens, bias)

    def __enter__(self) -> Route:
        return self

    def __exit__(self, *_: object) -> None:
        with interrupts.deferred():
            self._owner.end(self)


def rank_of(adapter: Adapter) -> int:
    """Rank rows that it takes."""
    return max(m.rank for m in adapter.config.modules)
