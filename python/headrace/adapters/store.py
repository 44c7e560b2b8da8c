# SPDX-License-Identifier: Apache-2.0
"""AdapterStore: every adapter there is, by what it is, by name, and by what it was found worth."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import bad_value
from . import merge as merging
from . import naming, peft_files, records, register, upkeep
from .blob import Adapter
from .catalog import Catalog, dumps, number
from .config import AdapterConfig, Base
from .gate import Gate
from .packing import pack_many
from .records import NewAdapter, Revision
from .segments import Segments

_AGAIN = 8


class AdapterStore:
    """A catalog of adapters in a folder, for a million of them and for many processes at once.

    A revision is a configuration and its tensors; its digest (64 hex digits) is its identity and it
    never changes. Names point at revisions and move as a whole. What is committed is on the disk;
    a process that dies leaves what was committed and nothing else. Everything that changes the
    store does all of it or, after an error, nothing.

    path: the folder, made where there is none unless `create` is False. map_size: the most bytes
    that the catalog may grow to (address space, not memory). Do not use a store across a fork.
    Raises ValueError for a folder of something else, OSError for what the disk refuses.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, create: bool = True, map_size: int = 64 << 30
    ) -> None:
        op, self.path = "AdapterStore", Path(path)
        if not (self.path / "catalog" / "data.mdb").is_file():
            if not create:
                raise bad_value(op, "path", "a store", f"{self.path} without one")
            if self.path.exists() and not self.path.is_dir():
                raise bad_value(op, "path", "a folder", f"the file {self.path}")
            ours = {"catalog", "segments", "parts", "lock"}
            if self.path.is_dir() and {p.name for p in self.path.iterdir()} - ours:
                raise bad_value(op, "path", "a store or an empty folder", self.path)
        if create:
            (self.path / "catalog").mkdir(parents=True, exist_ok=True)
        self._segments = Segments(self.path)
        if create and not self._segments.ready():
            self._segments.create()
        self._catalog = Catalog(self.path / "catalog", map_size, create)
        self._bases: dict[str, Base] = {}
        self._begin, self._alias = self._catalog.env.begin, self._catalog.alias

    def close(self) -> None:
        """Closes the catalog. Adapters that were opened stay good."""
        self._catalog.close()

    def __enter__(self) -> AdapterStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self._catalog.read() as tx:
            return tx.count("row")

    # Bases ------------------------------------------------------------------------------------

    def add_base(
        self, name: str, modules: Mapping[str, tuple[int, int]], known_as: Iterable[str] = ()
    ) -> None:
        """Makes a base model known: the weight's shape [outputs, inputs] per linear module.

        known_as: what adapters' files may call it. A base never changes; the same again is well,
        and adds to known_as. ValueError for another base of this name.
        """
        base = Base(name, modules, tuple(known_as))
        with self._catalog.write() as tx:
            held = tx.get("bases", name.encode())
            known = set(base.known_as)
            if held is not None:
                old = json.loads(held)
                if {k: tuple(v) for k, v in old["modules"].items()} != base.modules:
                    raise bad_value("AdapterStore.add_base", "name", "a new name", name)
                known |= set(old["known_as"])
            entry = {"modules": base.modules, "known_as": sorted(known)}
            tx.put("bases", name.encode(), dumps(entry))
        self._bases.pop(name, None)

    def base(self, name: str) -> Base:
        """A known base, by its name or one of those in known_as; ValueError for others."""
        if name not in self._bases:
            with self._catalog.read() as tx:
                found = {key.decode(): json.loads(value) for key, value in tx.scan("bases")}
            for key, b in found.items():
                if name == key or (name not in found and name in b["known_as"]):
                    self._bases[name] = Base(key, b["modules"], tuple(b["known_as"]))
                    break
            else:
                known = ", ".join(sorted(found)[:5]) or "no base yet"
                raise bad_value(
                    "AdapterStore.base", "name", f"a known base ({known})", name, "add_base first"
                )
        return self._bases[name]

    # Registration -----------------------------------------------------------------------------

    def add(self, config: AdapterConfig, tensors: Mapping[str, Tensor], **about: Any) -> str:
        """Registers one adapter; gives its digest. Arguments and errors as of `NewAdapter` and
        `add_many`.
        """
        return self.add_many([NewAdapter(config, tensors, **about)])[0]

    def add_many(self, adapters: Iterable[NewAdapter]) -> list[str]:
        """Registers adapters in one transaction, all or none; gives their digests.

        What is there already stays as it is. A name is new, or points at this revision already;
        `promote` moves names. ValueError and TypeError: unknown or other base, no module of the
        base, shapes, missing or extra tensors, weights not finite, unknown parents.
        """
        op = "AdapterStore.add"
        given, wanted = [], []
        blobs: dict[bytes, tuple[records.Entry, Any]] = {}
        for new, digest, blob in pack_many(op, self._checked(op, adapters)):
            given.append(digest)
            entry = records.describe(op, new, digest, blob)
            blobs.setdefault(digest, (entry, blob))
            if new.name is not None:
                wanted.append((new.name, digest))
        with self._segments.locked():
            for _ in range(_AGAIN):
                if register.commit(op, self._catalog, self._segments, blobs, wanted):
                    return [digest.hex() for digest in given]
        raise RuntimeError(f"{op}(adapters): expected to commit, got others' changes each time")

    def _checked(self, op: str, adapters: Iterable[NewAdapter]) -> Iterator[NewAdapter]:
        """The adapters, each once its configuration is known to fit its base."""
        checked = set()
        for new in adapters:
            if new.config not in checked:
                self.base(new.config.base).check(op, new.config)
                checked.add(new.config)
            yield new

    def add_peft(
        self, path: str | os.PathLike[str], *, base: str | None = None, **about: Any
    ) -> str:
        """Registers a folder of the peft package; gives the digest. base: a known base; without it
        the one that the folder names. NotImplementedError for options that cannot be honoured.
        """
        op = "AdapterStore.add_peft"
        known = self.base(peft_files.base_named(op, path) if base is None else base)
        config, tensors, raw = peft_files.read(op, path, known)
        return self.add(config, tensors, peft=raw, **about)

    def export_peft(self, name: str, path: str | os.PathLike[str]) -> None:
        """Writes a revision as a new folder of the peft package: the same tensors, bit for bit, and
        the configuration it came with, or one of the same meaning.
        """
        adapter = self.open(name, verify=True)
        raw = self.peft_config(adapter.revision)
        peft_files.write("AdapterStore.export_peft", path, adapter, raw)

    # Merging ----------------------------------------------------------------------------------

    def merge(
        self,
        names: Sequence[str],
        weights: Sequence[float],
        *,
        io_budget: int | None = None,
        rank: int | None = None,
        **about: Any,
    ) -> merging.Merged:
        """Registers the sum of adapters, each times its weight, as one of its own in fp32.

        io_budget: most bytes of weights to read; the modules of adapters that move the result most
        by the byte are read, by norms in the catalog (`measure`; those that nobody has read count
        as usual ones), and the others left out. None reads all: then the sum is exact, with the
        ranks side by side. rank: the largest of a module, nearest in the Frobenius norm. about:
        name and owner, as of `NewAdapter`; parents and data say what was merged. ValueError,
        TypeError, and NotImplementedError for adapters with more than A and B; nothing is
        registered then. Source: MergePipe (2026; arXiv 2602.13273).
        """
        return merging.merge(self, names, weights, io_budget, rank, about)

    def measure(self, names: Iterable[str]) -> int:
        """Reads what nobody has yet of these, and notes how much each module does (the norm of
        scale B A), for `merge`; gives the bytes of weights that were read."""
        return merging.measure(self, names)

    # Finding ----------------------------------------------------------------------------------

    def resolve(self, name: str) -> str:
        """The digest that a name points at, or the digest given; ValueError for neither."""
        try:
            with self._begin(db=self._alias) as txn:
                value = txn.get(name.encode())
        except Exception:  # a closed store, a name too long, no string
            value = None
        if value is not None:
            digest: str = value[:32].hex()
            return digest
        with self._catalog.read() as tx:
            return naming.digest_of("AdapterStore.resolve", tx, name)

    def open(self, name: str, *, verify: bool = False) -> Adapter:
        """The adapter that a name or digest means, memory-mapped. verify: also read all of it and
        compare its digest. ValueError: unknown, or a damaged blob.
        """
        op, digest = "AdapterStore.open", self.resolve(name)
        for last in (False, True):
            with self._catalog.read() as tx:
                row = tx.row_of(bytes.fromhex(digest))
                record = None if row is None else tx.record(row)
            if record is None:
                raise bad_value(op, "name", "a revision of this store", digest)
            place = bytes.fromhex(record["segment"]), record["offset"], record["size"]
            try:
                return Adapter(op, self._segments.map(*place), digest, verify)
            except FileNotFoundError:
                if last:  # the first time, collection may just have moved it
                    raise bad_value(op, "revision", f"the blob of {digest}", "no file") from None
            except ValueError as error:
                if str(error) != "cut short":
                    raise
                raise bad_value(
                    op, "revision", f"the whole blob of {digest}", "a file cut short"
                ) from None
        raise AssertionError

    def show(self, name: str) -> Revision:
        """What is known of the revision that a name or digest means."""
        with self._catalog.read() as tx:
            return records.revision(tx, naming.row_of("AdapterStore.show", tx, name))

    def peft_config(self, name: str) -> dict[str, Any] | None:
        """The adapter_config.json it came with, or None."""
        with self._catalog.read() as tx:
            found = tx.record(naming.row_of("AdapterStore.peft_config", tx, name)).get("peft")
            return None if found is None else dict(found)

    def names(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """(name, digest) of every name that begins with `prefix`, in order."""
        with self._catalog.read() as tx:
            for key, value in tx.scan("alias", prefix.encode()):
                yield key.decode(), value[:32].hex()

    def search(
        self,
        *,
        owner: str | None = None,
        base: str | None = None,
        parent: str | None = None,
        metric: str | None = None,
        at_least: float | None = None,
        at_most: float | None = None,
        limit: int = 100,
    ) -> list[Revision]:
        """Revisions that meet everything given. With `metric` only those that have it, the greatest
        first; else in the order of registration.
        """
        if metric is None and (at_least is not None or at_most is not None):
            raise bad_value("AdapterStore.search", "metric", "a metric to bound", "None")
        if parent is not None:
            parent = self.resolve(parent)
        with self._catalog.read() as tx:
            return naming.search(tx, owner, base, parent, metric, at_least, at_most, limit)

    # Names and worth --------------------------------------------------------------------------

    def evaluate(self, name: str, metric: str, value: float, **about: Any) -> None:
        """Records a measurement of a revision. about: data, by, ... as JSON."""
        self.evaluate_many([(name, metric, value)], **about)

    def evaluate_many(self, measured: Iterable[tuple[str, str, float]], **about: Any) -> None:
        """Records measurements (name or digest, metric, value) in one transaction, all or none."""
        op = "AdapterStore.evaluate"
        with self._catalog.write() as tx:
            for name, metric, value in measured:
                records.check_score(op, metric, value)
                records.evaluate(tx, naming.row_of(op, tx, name), metric, float(value), about)

    def evaluations(self, name: str) -> list[dict[str, Any]]:
        """Every measurement of a revision, first to last."""
        with self._catalog.read() as tx:
            row = number(naming.row_of("AdapterStore.evaluations", tx, name))
            return [json.loads(value) for _, value in tx.scan("evaluation", row)]

    def history(self, name: str) -> list[dict[str, Any]]:
        """Every move of a name, first to last: revision, action, time."""
        with self._catalog.read() as tx:
            path = records.moves(tx, name.encode()).values()
        return [{k: m[k] for k in ("revision", "action", "time", "why") if k in m} for m in path]

    def promote(self, name: str, revision: str, *, gate: Gate | None = None, why: str = "") -> str:
        """Points a name (also a new one) at a revision, if that passes the gate; gives its digest.

        ValueError where it does not pass, or is for another base than the one in place.
        """
        digest = self.resolve(revision)
        with self._catalog.write() as tx:
            naming.promote(tx, name, digest, gate, why)
        return digest

    def rollback(self, name: str, *, gate: Gate | None = None, why: str = "") -> str:
        """Points a name at the revision that it had before; again, one further back. With a gate:
        at the latest earlier one that passes. Gives the digest; ValueError where there is none.
        """
        with self._catalog.write() as tx:
            return naming.rollback(tx, name, gate, why)

    # Upkeep -----------------------------------------------------------------------------------

    def forget(self, name: str) -> None:
        """Takes a name and its history away; revisions stay."""
        with self._catalog.write() as tx:
            naming.forget(tx, name)

    def remove(self, revision: str) -> None:
        """Takes a revision out of the catalog; gc gives its bytes back. ValueError while a name
        points at it or may roll back to it.
        """
        digest = self.resolve(revision)
        with self._catalog.write() as tx:
            naming.remove(tx, digest)

    def verify(self, *, quick: bool = False) -> upkeep.Verified:
        """Reads everything and compares it with the catalog; quick: without the tensors."""
        with self._segments.locked():
            return upkeep.verify(self._catalog, self._segments, quick)

    def gc(self, *, waste: float = 0.5, dry_run: bool = False) -> upkeep.Collected:
        """Gives back the bytes of blobs that no revision has. A file of which a part is in use is
        written anew when at least the share `waste` of it is not.
        """
        with self._segments.locked(exclusive=True):
            return upkeep.collect(self._catalog, self._segments, waste, dry_run)
