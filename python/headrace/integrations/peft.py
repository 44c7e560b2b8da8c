# SPDX-License-Identifier: Apache-2.0
"""Many adapters of the peft package in one batch of an unmodified model, a different one per row.

Written against peft 0.21 and transformers 5.23; adapters in folders need neither.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter, AdapterBank, AdapterConfig, Base, peft_files
from ..adapters.bank import Source
from ..adapters.config import few
from ..errors import bad_type, bad_value, unsupported
from .rows import Batch, aside, by_row

Folder = str | os.PathLike[str]


def serve(
    model: nn.Module,
    bank: AdapterBank | None = None,
    adapters: Mapping[str, Folder] | None = None,
    *,
    exact: bool = False,
    **options: Any,
) -> Served:
    """Serves adapters on the linear modules of `model`, each row of a batch with its own.

        served = serve(model, adapters={"ann": "adapters/ann", "bob": "adapters/bob"})
        out = served.generate(ids, adapters=["ann", "bob", None], max_new_tokens=64)

    model: any module whose linear layers see [rows, ..., K], such as a model of the transformers
    library; or a PeftModel, whose LoRA adapters are then served under their names. bank: of the
    same base, holding what it is to serve; its store's names are good too. None makes one with room
    for all of `adapters` and those of the model, `options` as of AdapterBank. adapters: name ->
    folder as the peft package writes it. exact: linear layers run by `ops.linear`, whose bits, row
    by row, do not depend on the other rows; on a CPU it often is the faster one too.

    The model itself is not changed: its linear layers are hooked while a call runs and afterwards
    are what they were. Rows without an adapter keep the bits of the model, or, where exact, those
    of the model so run. Results equal peft's to rounding. Raises TypeError, ValueError, or
    NotImplementedError naming the option of an adapter that cannot be honoured.
    """
    op = "serve"
    if not isinstance(model, nn.Module):
        raise bad_type(op, "model", "a torch module", type(model).__name__)
    if bank is not None and not isinstance(bank, AdapterBank):
        raise bad_type(op, "bank", "an AdapterBank", type(bank).__name__)
    if bank is not None and options:
        raise bad_value(op, min(options), "options of a bank that is to be made", "a bank")
    inner, layers = _unwrapped(op, model)
    linear = {
        name.removesuffix(".base_layer"): module
        for name, module in inner.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }
    base = _base(inner, linear) if bank is None else bank.base
    found = _adapters_of(op, model, base) if layers else {}
    for name, folder in (adapters or {}).items():
        if name in found:
            raise bad_value(op, "adapters", "names beside those of the model", name)
        config, tensors, _ = peft_files.read(op, folder, base)
        found[name] = config, tensors
    own = bank is None
    if bank is None:
        if not found:
            raise bad_value(op, "adapters", "folders, or a bank, or a PeftModel", "none")
        bank = _bank(op, base, [config for config, _ in found.values()], linear, options)
    before = dict(bank._names)
    try:
        _check_sites(op, bank, linear)
        for name, (config, tensors) in found.items():
            bank.load_tensors(config, tensors, name=name)
    except BaseException:
        bank._names = before
        if own:
            bank.close()
        raise
    return Served(model, inner, bank, linear, layers, own, exact)


class Served:
    """A model and a bank, from `serve`. `bank` may load more adapters at any time between calls:
    `bank.load_peft(FOLDER, name=...)`.
    """

    def __init__(
        self,
        model: nn.Module,
        inner: nn.Module,
        bank: AdapterBank,
        linear: dict[str, nn.Linear],
        layers: dict[str, nn.Module],
        own: bool,
        exact: bool = False,
    ) -> None:
        self.model, self.bank, self.exact = model, bank, exact
        self._inner, self._linear, self._layers, self._own = inner, linear, layers, own
        self._busy = False

    @contextlib.contextmanager
    def rows(self, adapters: Sequence[Source | None]) -> Iterator[nn.Module]:
        """While this is open, calls of the model take batches of so many rows, row i with
        adapters[i] (a name, a digest, an Adapter, or None for the model alone). Rows that the model
        makes of one row, side by side, such as beams, share its adapter.

        ValueError: unknown adapters, more of them than the bank has slots for, no rows, or one open
        already. In a call: ValueError for a batch of another size and where gradients are wanted;
        NotImplementedError for a layer that does not see the batch row by row.
        """
        op = "serve.rows"
        if self._busy:
            raise bad_value(op, "adapters", "one at a time", "another that is still open")
        if isinstance(adapters, str) or not isinstance(adapters, Sequence):
            raise bad_type(op, "adapters", "a sequence, one per row", type(adapters).__name__)
        if not adapters:
            raise bad_value(op, "adapters", "one per row of the batch", "none")
        mine = [None if a is None else self._checked(op, a) for a in adapters]
        self._busy = True
        try:
            with contextlib.ExitStack() as stack:
                for name, layer in self._layers.items():
                    stack.enter_context(aside(op, self._inner, name, layer))
                if self.exact:
                    for layer in self._linear.values():
                        stack.enter_context(by_row(layer))
                route = stack.enter_context(self.bank.route(mine, [1] * len(mine)))
                batch = Batch(route, len(mine))
                hook = self._inner.register_forward_pre_hook(batch.begin, with_kwargs=True)
                stack.callback(hook.remove)
                for name in route.sites:
                    hook = self._linear[name].register_forward_hook(batch.hook(name))
                    stack.callback(hook.remove)
                yield self.model
        finally:
            self._busy = False

    def generate(self, *args: Any, adapters: Sequence[Source | None], **options: Any) -> Any:
        """The model's own generate(), row i of the batch with adapters[i]; see `rows`."""
        with self.rows(adapters) as model, torch.no_grad():
            return model.generate(*args, **options)  # type: ignore[operator]

    def __call__(self, *args: Any, adapters: Sequence[Source | None], **options: Any) -> Any:
        """The model's own forward, row i of the batch with adapters[i]; see `rows`."""
        with self.rows(adapters) as model, torch.no_grad():
            return model(*args, **options)

    def _checked(self, op: str, source: Source) -> Adapter:
        adapter = self.bank.find(source, op)
        absent = [m.name for m in adapter.config.modules if m.name not in self._linear]
        if absent:
            raise bad_value(op, "adapters", "linear modules of the model", few(absent))
        return adapter

    def close(self) -> None:
        """Closes the bank, if `serve` made it. The model is as it always was."""
        if self._own:
            self.bank.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _unwrapped(op: str, model: Any) -> tuple[nn.Module, dict[str, nn.Module]]:
    """(the model below a PeftModel, or the model; peft's layers in it by name)."""
    if not hasattr(model, "peft_config"):
        return model, {}
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = {n: m for n, m in inner.named_modules() if hasattr(m, "get_base_layer")}
    if not layers:
        kinds = sorted(str(getattr(c, "peft_type", c)) for c in model.peft_config.values())
        raise unsupported(op, "model", "LORA", few(kinds))
    return inner, layers


def _adapters_of(
    op: str, model: Any, base: Base
) -> dict[str, tuple[AdapterConfig, dict[str, Tensor]]]:
    """The adapters of a PeftModel: name -> configuration, tensors."""
    from peft import get_peft_model_state_dict

    found = {}
    for name, options in model.peft_config.items():
        raw = {k: list(v) if isinstance(v, set) else v for k, v in options.to_dict().items()}
        raw["peft_type"] = getattr(options.peft_type, "value", options.peft_type)
        peft_files.check(op, raw, base)
        state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        tensors = dict(peft_files.named(op, key, t.detach()) for key, t in state.items())
        found[name] = peft_files.parse(op, raw, tensors, base), tensors
    return found


def _base(model: nn.Module, linear: Mapping[str, nn.Linear]) -> Base:
    """What a bank has to know of a model."""
    if not linear:
        raise bad_value("serve", "model", "linear modules", f"none in {type(model).__name__}")
    said = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    name = Path(said).name or type(model).__name__
    shapes = {key: (m.out_features, m.in_features) for key, m in linear.items()}
    return Base(name, shapes, (said,) if said else ())


def _bank(
    op: str,
    base: Base,
    configs: Sequence[AdapterConfig],
    linear: Mapping[str, nn.Linear],
    options: Mapping[str, Any],
) -> AdapterBank:
    """A bank with room for all of them."""
    for config in configs:
        base.check(op, config)
    made: dict[str, Any] = {
        "slots": len(configs),
        "rank_rows": sum(c.rank for c in configs),
        "max_rank": max(c.rank for c in configs),
        "modules": sorted({m.name for c in configs for m in c.modules}),
        "bias": any(c.bias for c in configs),
        "dora": any(c.dora for c in configs),
        "device": next(iter(linear.values())).weight.device,
    }
    if made["dora"]:
        made["weights"] = {n: linear[n].weight.detach() for n in made["modules"]}
    return AdapterBank(base, **(made | dict(options)))


def _check_sites(op: str, bank: AdapterBank, linear: Mapping[str, nn.Linear]) -> None:
    """Raises where the bank is for another model."""
    there = 0
    for site, modules in bank.sites.items():
        layer = linear.get(site)
        if layer is None:
            continue
        there += 1
        outputs = sum(bank.base.modules[m][0] for m in modules)
        wanted = (outputs, bank.base.modules[modules[0]][1])
        got = (layer.out_features, layer.in_features)
        if got != wanted:
            raise bad_value(op, "bank", f"one whose {site} is {list(got)}", list(wanted))
    if not there:
        first = next(iter(linear), "no linear module")
        others = f"{next(iter(bank.sites))} and others, of {bank.base.name}"
        raise bad_value(op, "bank", f"modules such as {first}", others)
