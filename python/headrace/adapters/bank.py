# SPDX-License-Identifier: Apache-2.0
"""AdapterBank: which adapters are resident, and what the kernels read of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .. import interrupts
from ..errors import bad_type, bad_value, unsupported
from . import peft_files
from .bank_loader import Resident
from .bank_residency import Residency, Route, Stats
from .bank_site import POOLS, Site
from .bank_tables import Tables
from .blob import Adapter
from .config import AdapterConfig, Base, few
from .packing import pack
from .store import AdapterStore

Source = str | Adapter
"""A name, a digest, or an adapter that was opened."""


class AdapterBank:
    """Up to `slots` adapters of one base in memory, of any ranks, for one ragged step of many.

    An adapter takes as many rank rows of the bank's `rank_rows` as its largest rank has, the same
    rows in every site, so there is nothing to fragment. What is not in use is evicted when room is
    wanted, least recently used first, weighted by bytes times the time that a byte took to load;
    see `GreedyDual`. Layers load one by one, in a thread beside the steps: a cold adapter's first
    layer runs while later ones arrive. A load writes free rows only, so nobody else's bits change.

    base: the model's linear modules; `AdapterBank.of` takes them from a model. rank_rows: of the
    pool, None for 16 per slot. max_rank: the largest that fits in a slot, up to 512. dtype: of the
    pool (float32, bfloat16, float16, int8, or uint8 for 4-bit codes, both with a scale for every
    `group` weights); adapters of another are converted as they load. store: where names that are
    not the bank's own are looked up. modules: those served, None for all of the base. fused: site
    name -> modules side by side, for models that multiply with them in one go. bias, dora: room for
    LoRA's bias and DoRA's gain; the latter needs `weights`, the base's own by module. background:
    whether a thread loads; without, loading happens where it is waited for. To be used from one
    thread. In debug mode freed rows are made NaN. Raises TypeError, ValueError or
    NotImplementedError, one line; after an error the bank is as it was.

    Source: S-LoRA (Sheng et al., 2023) for ranks as pages of one pool.
    """

    def __init__(
        self,
        base: Base,
        *,
        slots: int = 256,
        rank_rows: int | None = None,
        max_rank: int = 64,
        dtype: torch.dtype = torch.float32,
        group: int = 64,
        store: AdapterStore | None = None,
        modules: Iterable[str] | None = None,
        fused: Mapping[str, Sequence[str]] | None = None,
        weights: Mapping[str, Tensor] | None = None,
        bias: bool = False,
        dora: bool = False,
        device: torch.device | str = "cpu",
        background: bool = True,
    ) -> None:
        op = "AdapterBank"
        if not isinstance(base, Base):
            raise bad_type(op, "base", "a Base; see AdapterBank.of", type(base).__name__)
        rank_rows = 16 * slots if rank_rows is None else rank_rows
        for arg, value, top in (
            ("slots", slots, 1 << 16),
            ("rank_rows", rank_rows, 1 << 30),
            ("max_rank", max_rank, 512),
            ("group", group, 1 << 16),
        ):
            if isinstance(value, bool) or not isinstance(value, int):
                raise bad_type(op, arg, "a whole number", repr(value))
            if not 1 <= value <= top:
                raise bad_value(op, arg, f"1 to {top}", value)
        if dtype not in POOLS:
            raise bad_type(op, "dtype", ", ".join(str(d)[6:] for d in POOLS), dtype)
        served = list(base.modules if modules is None else modules)
        parts = {name: tuple(inner) for name, inner in (fused or {}).items()}
        strange = {*served, *(m for p in parts.values() for m in p)} - base.modules.keys()
        if strange:
            raise bad_value(op, "modules", f"modules of {base.name}", few(sorted(strange)))
        if dora and set(served) - set(weights or ()):
            raise bad_value(op, "weights", "the base's weights, for dora", "none of some")
        inside = {m for p in parts.values() for m in p}
        parts = {m: (m,) for m in served if m not in inside} | parts
        self.base, self.store, self.slots = base, store, slots
        self.bias, self.dora = bias, dora
        tables = Tables(slots, max_rank, [len(p) for p in parts.values()], torch.device(device))
        sites = []
        for (name, inner), ranks in zip(parts.items(), tables.ranks, strict=True):
            shapes = {m: base.modules[m] for m in inner}
            sites.append(
                Site(name, shapes, slots, rank_rows, dtype, group, (bias, dora), weights, ranks)
            )
        self._served = {m for p in parts.values() for m in p}
        self._seats = Residency(sites, tables, rank_rows, background)
        self._names: dict[str, Adapter] = {}
        self._known: WeakValueDictionary[str, Adapter] = WeakValueDictionary()
        self.closed = False

    @classmethod
    def of(cls, model: Any, name: str, *, known_as: Iterable[str] = (), **options: Any) -> Any:
        """A bank for a torch module: its parameters of two dimensions are the base's modules."""
        weights = {
            key.removesuffix(".weight"): p for key, p in model.named_parameters() if p.dim() == 2
        }
        shapes = {key: (p.shape[0], p.shape[1]) for key, p in weights.items()}
        return cls(Base(name, shapes, tuple(known_as)), weights=weights, **options)

    # What there is ----------------------------------------------------------------------------

    def find(self, source: Source, op: str = "AdapterBank.find") -> Adapter:
        """The revision that a name means now: one of the bank's own names, a digest it knows, or a
        name or digest of the store. Nothing is loaded. It stays what it is, whatever becomes of the
        name. ValueError for an unknown one, or one that this bank cannot serve.
        """
        self._check_open(op)
        if isinstance(source, Adapter):
            self._check(op, source.config)
            return self._known.setdefault(source.revision, source)
        if not isinstance(source, str):
            raise bad_type(op, "adapter", "a name, a digest or an Adapter", type(source).__name__)
        found = self._names.get(source) or self._known.get(source)
        if found is None and self.store is None:
            names = few(sorted(self._names)) or "none yet"
            raise bad_value(op, "adapter", f"a name or digest of this bank ({names})", repr(source))
        if found is None:
            assert self.store is not None
            revision = self.store.resolve(source)
            found = self._known.get(revision)
            if found is None:
                found = self.store.open(revision)
                self._check(op, found.config)
                found.mapped = True
                self._known[revision] = found
        return found

    def residents(self) -> list[Resident]:
        """All that have a slot, in the order of slots. Look, do not touch."""
        return sorted(self._seats.residents.values(), key=lambda one: one.slot)

    @property
    def free_slots(self) -> int:
        """Adapters that there is a slot for without an eviction."""
        return len(self._seats.free_slots)

    @property
    def free_rows(self) -> int:
        """Rows of rank that no adapter takes."""
        return self._seats.rows.free

    @property
    def stats(self) -> Stats:
        """Hits, misses, loads, evictions and bytes since the bank was made."""
        return self._seats.stats

    @property
    def sites(self) -> dict[str, tuple[str, ...]]:
        """What the model multiplies with, and the modules in it."""
        return {name: site.modules for name, site in self._seats.sites.items()}

    # Coming and going -------------------------------------------------------------------------

    def load(self, source: Source, *, name: str | None = None, wait: bool = True) -> str:
        """Makes an adapter resident; gives its digest. wait: until all of it is in.

        name: what it is called from now on in this bank. A name that is in use moves; streams that
        are open keep the revision that they have. ValueError where everything else is in use.
        """
        op = "AdapterBank.load"
        adapter = self.find(source, op)
        if name is not None and (not isinstance(name, str) or not name):
            raise bad_value(op, "name", "a name", repr(name))
        with interrupts.deferred():
            (one,) = self._seats.admit(op, [adapter])
            if wait:
                self._seats.finish(one)
            if name is not None:
                self._names[name] = adapter
        return adapter.revision

    def load_tensors(
        self, config: AdapterConfig, tensors: Mapping[str, Tensor], **options: Any
    ) -> str:
        """`load` of tensors `MODULE.a` [r, K], `.b` [N, r], `.bias`, `.magnitude` [N], which are
        copied. The bank knows them for as long as a name, a slot or a stream has them.
        """
        op = "AdapterBank.load"
        self._check_open(op)
        self._check(op, config)
        digest, blob = pack(op, config, tensors)
        known = self._known.get(digest.hex())
        return self.load(known or Adapter(op, blob, digest.hex()), **options)

    def load_peft(self, path: str | os.PathLike[str], **options: Any) -> str:
        """`load` of a folder of the peft package, see `AdapterStore.add_peft`."""
        config, tensors, _ = peft_files.read("AdapterBank.load", path, self.base)
        return self.load_tensors(config, tensors, **options)

    def unload(self, source: Source) -> None:
        """Takes an adapter out of the pool; its name, and the streams that have it, stay and load
        it again. ValueError for one that is pinned, or in a step; fine for one that is out.
        """
        op = "AdapterBank.unload"
        one = self._seats.residents.get(self.find(source, op).revision)
        if one is None:
            return
        if one.pinned or one.holds:
            what = "a pinned one" if one.pinned else "one in a step"
            raise bad_value(op, "adapter", "one that is not in use", what)
        with interrupts.deferred():
            self._seats.drop(one)

    def forget(self, name: str) -> None:
        """Takes one of the bank's own names away."""
        if self._names.pop(name, None) is None:
            raise bad_value("AdapterBank.forget", "name", "a name of this bank", repr(name))

    def pin(self, source: Source) -> None:
        """Loads it, and never evicts it until `unpin`."""
        revision = self.load(source)
        self._seats.residents[revision].pinned = True

    def unpin(self, source: Source) -> None:
        """Makes it one of many again."""
        one = self._seats.residents.get(self.find(source, "AdapterBank.unpin").revision)
        if one is not None:
            one.pinned = False

    # Steps ------------------------------------------------------------------------------------

    def waves(self, adapters: Sequence[Adapter | None]) -> list[list[int]]:
        """Which of the streams' adapters (None: none) fit into one model call together."""
        return self._seats.waves(adapters)

    def route(
        self,
        adapters: Sequence[Adapter | None],
        counts: Sequence[int],
        then: Sequence[Adapter | None] = (),
    ) -> Route:
        """Makes the adapters of a model call resident, and says which token has which: counts[i]
        tokens have adapters[i]. Built once, in buffers that stay where they are, for all layers;
        held until the route is left. then: those of the next call, to load meanwhile.
        """
        self._check_open("AdapterBank.route")
        with interrupts.deferred():
            route = self._seats.begin("step", adapters, [a for a in then if a is not None])
            try:
                route.place(counts)
            except BaseException:
                route.__exit__()
                raise
        return route

    def close(self) -> None:
        """Ends the thread and gives the memory back. Closing twice is fine."""
        if not self.closed:
            self.closed = True
            self._seats.close()

    def __enter__(self) -> AdapterBank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self, op: str) -> None:
        if self.closed:
            raise bad_value(op, "adapters", "an open bank", "a closed one")

    def _check(self, op: str, config: AdapterConfig) -> None:
        """Raises for what this bank cannot serve."""
        if not isinstance(config, AdapterConfig):
            raise bad_type(op, "config", "an AdapterConfig", type(config).__name__)
        self.base.check(op, config)
        strange = [m.name for m in config.modules if m.name not in self._served]
        if strange:
            raise bad_value(op, "modules", "modules that the bank serves", few(strange))
        rank, top = max(m.rank for m in config.modules), self._seats.tables.max_rank
        if rank > min(top, self._seats.rows.count):
            hint = "raise max_rank and rank_rows"
            raise bad_value(op, "rank", f"at most {min(top, self._seats.rows.count)}", rank, hint)
        for what in ("bias", "dora"):
            if getattr(config, what) and not getattr(self, what):
                raise bad_value(op, what, "none in this bank", what, f"AdapterBank({what}=True)")
        if config.fan_in_fan_out:
            raise unsupported(op, "fan_in_fan_out", "False", "True")
        if config.invocation is not None:
            raise unsupported(
                op,
                "invocation",
                "None",
                list(config.invocation),
                "leave it out and call Stream.use before the first of these tokens",
            )
