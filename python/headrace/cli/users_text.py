# SPDX-License-Identifier: Apache-2.0
"""Which adapter a user has, and what the user reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..adapters import AdapterConfig, AdapterStore, Module
from ..adapters.peft_files import CONFIG
from ..models.training import kinds
from . import text as sources
from .fail import Fail

PACKAGED = Path(__file__).parents[1] / "models" / "adapters"
SAMPLE = 1 << 20  # bytes of a text that are held
STRIDE = 7919  # bytes between the beginnings of two users


class Library:
    """Adapters from a store, or from folders as the peft package writes them.

    With folders, the first users have these, one each; all others have a blend of two of them, in
    shares of their own, as one adapter of both ranks. Raises Fail where there are none.
    """

    def __init__(self, folder: str, files: list[str], base: str, model: Any) -> None:
        self.path = Path(folder) if folder else PACKAGED
        self.store: AdapterStore | None = None
        self.folders: list[Path] = []
        if (self.path / "catalog" / "data.mdb").is_file():
            self.store = AdapterStore(self.path, create=False)
        elif (self.path / CONFIG).is_file():
            self.folders = [self.path]
        elif self.path.is_dir():
            self.folders = sorted(p.parent for p in self.path.glob(f"*/{CONFIG}"))
        if self.store is None and not self.folders:
            raise Fail(
                "stream(--adapters): expected a store, or a folder of adapters' folders, "
                f"got {self.path}"
            )
        self.base, self._model = base, model
        self.rank, self.modules = 1, set[str]()
        self._names: list[str] = []
        self._blends = 0
        self._shared = self._read(sources.from_files(files, False)) if files else None
        self._texts: dict[str, bytes] = {}

    def fill(self, store: AdapterStore, users: int) -> None:
        """Puts the adapters of that many users into the store, and learns what they need."""
        if self.store is None:
            self._fill(store, users)
        else:
            self._names = [name for name, _ in store.names()][:users]
            if not self._names:
                raise Fail(f"stream(--adapters): expected names in the store {self.path}, got none")
        for name in self._names[: 4096 if self.store is not None else len(self.folders)]:
            config = store.open(name).config
            self.rank = max(self.rank, *(m.rank for m in config.modules))
            self.modules |= {m.name for m in config.modules}
        if self._blends:
            self.rank *= 2

    def _fill(self, store: AdapterStore, users: int) -> None:
        shapes = {
            n.removesuffix(".weight"): (p.shape[0], p.shape[1])
            for n, p in self._model.named_parameters()
            if p.dim() == 2
        }
        store.add_base(self.base, shapes, [f"headrace/{self.base}"])
        for folder in self.folders[:users]:
            store.add_peft(folder, base=self.base, name=folder.name)
        own = [folder.name for folder in self.folders]
        self._names = own[:users]
        chance = np.random.default_rng(0)
        opened = [store.open(name) for name in self._names]
        for user in range(len(own), users):
            i, turn = user % len(own), user // len(own)
            j = (i + 1 + turn % max(1, len(own) - 1)) % len(own)
            share = float(chance.uniform(0.6, 0.95))
            config, tensors = blend(opened[i], opened[j], share)
            name = f"{own[i]} {user}"
            store.add(config, tensors, name=name, data={"blend": [own[i], own[j], share]})
            self._names.append(name)
            self._blends += 1

    def adapter(self, user: int) -> str:
        """Name of a user's adapter."""
        return self._names[user % len(self._names)]

    def kind(self, user: int) -> str:
        """What its adapter is (mostly) made of."""
        if self.store is None:
            return self.folders[user % len(self.folders)].name
        return "of the store"

    def text(self, user: int, at: int, count: int) -> bytes:
        """Bytes that a user reads, round and round."""
        if self._shared is not None:
            whole = self._shared
        else:
            kind = self.kind(user)
            if kind not in self._texts:
                self._texts[kind] = self._of(kind)
            whole = self._texts[kind]
        start = (user * STRIDE + at) % len(whole)
        part = whole[start : start + count]
        while len(part) < count:
            part += whole[: count - len(part)]
        return part

    def _of(self, kind: str) -> bytes:
        """Held-out text of that kind where this machine has it, else of the standard library."""
        if kind in kinds.KINDS:
            held_out = kinds.split(kind)[1]
            if len(held_out):
                return bytes(held_out[:SAMPLE].tolist())
        return self._read(sources.from_library(True))

    def _read(self, source: sources.Text) -> bytes:
        found = source.read(min(SAMPLE, source.size or SAMPLE)).tobytes()
        if not found:
            raise Fail(f"stream(FILE): expected text, got nothing from {source.name}")
        return found

    def document(self) -> dict[str, Any]:
        """For the report."""
        return {
            "from": self.path.name,
            "names": len(self._names),
            "folders": len(self.folders),
            "blends": self._blends,
            "largest_rank": self.rank,
            "modules": len(self.modules),
        }


def blend(one: Any, other: Any, share: float) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """(config, tensors) of share * one + (1 - share) * other, both plain LoRAs: their rank rows
    side by side, scale 1.
    """
    modules, tensors = [], {}
    names = dict.fromkeys(m.name for a in (one, other) for m in a.config.modules)
    for name in names:
        parts = [
            (a.a(name).float(), a.b(name).float() * (a.scale(name) * part))
            for a, part in ((one, share), (other, 1 - share))
            if name in a.config.by_name
        ]
        down, up = torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], 1)
        if one.config.dora or one.config.bias or other.config.dora or other.config.bias:
            raise Fail("stream(--users): expected plain LoRAs to blend, got a bias or a magnitude")
        rank = len(down)
        modules.append(Module(name, rank, down.shape[1], len(up), float(rank), "BF16"))
        tensors[f"{name}.a"], tensors[f"{name}.b"] = down.bfloat16(), up.bfloat16()
    return AdapterConfig(one.config.base, tuple(modules)), tensors
