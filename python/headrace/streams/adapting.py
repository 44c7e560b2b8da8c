# SPDX-License-Identifier: Apache-2.0
"""Where a bank's adapters meet a model: the products with its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapters import Adapter, AdapterBank
from ..errors import bad_type, bad_value


class Sites:
    """The linear layers of a model that a bank serves, found by running one token through it.

    probe: runs it, for a model that takes something else, with the linear function that it is
    given.
    """

    def __init__(
        self,
        model: Any,
        bank: AdapterBank,
        probe: Callable[[Callable[..., Tensor]], object] | None = None,
    ) -> None:
        if not isinstance(bank, AdapterBank):
            raise bad_type("wrap", "adapters", "an AdapterBank", type(bank).__name__)
        if bank.closed:
            raise bad_value("wrap", "adapters", "an open bank", "a closed one")
        named = {id(p): n.removesuffix(".weight") for n, p in model.named_parameters()}
        weights: dict[str, Tensor] = {}

        def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            if id(weight) in named:
                weights[named[id(weight)]] = weight
            return F.linear(x, weight, bias)

        with torch.inference_mode():
            if probe is None:
                token = torch.zeros(1, dtype=torch.int64, device=model.inv_freq.device)
                model(token, lambda layer, q, k, v: torch.zeros_like(q), linear=linear)
            else:
                probe(linear)
        self.bank = bank
        self._weights = weights
        self.by_id: dict[int, str] = {}
        # A module of the base is a weight of the model; several of a fused site are one weight.
        self.modules: set[str] = set()
        for site, modules in bank.sites.items():
            weight = weights.get(site)
            if weight is None:
                continue
            shapes = [bank.base.modules[m] for m in modules]
            wanted = (sum(n for n, _ in shapes), shapes[0][1])
            if tuple(weight.shape) != wanted:
                got = f"{list(weight.shape)} in the model"
                raise bad_value("wrap", "adapters", f"{site} {list(wanted)}", got, _other(bank))
            self.by_id[id(weight)] = site
            self.modules.update(modules)
        if not self.modules:
            first = next(iter(weights), "none")
            got = f"{next(iter(bank.sites))} and others"
            raise bad_value("wrap", "adapters", f"modules such as {first}", got, _other(bank))

    def check(self, op: str, adapter: Adapter) -> Adapter:
        """The adapter, if the model multiplies with all that it changes."""
        for module in adapter.config.modules:
            if module.name not in self.modules:
                raise bad_value(
                    op, "adapter", "modules that the model multiplies with", module.name
                )
        return adapter

    def call(
        self,
        adapters: Sequence[Adapter | None],
        counts: Sequence[int],
        linear: Callable[..., Tensor],
        model: Callable[[list[int], Callable[..., Tensor]], None],
    ) -> None:
        """Calls model(chosen, linear) for all of the runs, adapters[i] and counts[i] tokens each:
        once, or in waves where they have more adapters than fit into the bank.
        """
        waves = self.bank.waves(adapters)
        for chosen, after in zip(waves, [*waves[1:], []], strict=True):
            mine, then = ([adapters[i] for i in part] for part in (chosen, after))
            with self.bank.route(mine, [counts[i] for i in chosen], then) as route:
                model(chosen, Adapted(linear, self.by_id, route))


def _other(bank: AdapterBank) -> str:
    return f"the bank is for {bank.base.name}"


class Adapted:
    """A model's linear function, with a route's adapters on top. fused: whether the model may take
    torch's fused paths elsewhere, as it does with torch's own linear.
    """

    def __init__(self, linear: Callable[..., Tensor], sites: Mapping[int, str], route: Any) -> None:
        self._linear, self._sites, self._route = linear, sites, route
        self.fused = linear is F.linear

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = self._linear(x, weight, bias)
        site = self._sites.get(id(weight))
        if site is not None and site in self._route.sites:
            self._route.add_to(site, x, y, bias)
        return y
