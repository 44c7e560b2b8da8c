# SPDX-License-Identifier: Apache-2.0
"""Linear layers of a model that is another's, for the time of a call: what they see, row by row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import bad_value, unsupported

INPUTS = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")


class Batch:
    """The rows of a call on their way through the model."""

    def __init__(self, route: Any, requests: int) -> None:
        self._route, self._requests, self._rows = route, requests, requests
        self._tokens = 1  # per request, as they were placed last

    def begin(self, _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before the model: how many rows its batch has."""
        given = [named[key] for key in INPUTS if named.get(key) is not None]
        for x in (*given, *args, *named.values()):
            if isinstance(x, Tensor) and x.dim():
                if len(x) % self._requests or not len(x):
                    raise bad_value(
                        "serve.rows", "adapters", f"{len(x)}, one per row", self._requests
                    )
                self._rows = len(x)
                return

    def hook(self, name: str) -> Any:
        """For a linear layer: adds to what it gives."""

        def add(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            (x,) = args
            if x.dim() < 2 or len(x) != self._rows or (x.dim() == 2 and ".experts." in name):
                raise unsupported(
                    "serve.rows",
                    name,
                    f"[{self._rows} rows, ..., {x.shape[-1]}]",
                    list(x.shape),
                    "whose tokens are whose is not known here",
                )
            if out.requires_grad:
                raise _gradients()
            if not x.numel():
                return out
            tokens = x.numel() // (x.shape[-1] * self._requests)
            if tokens != self._tokens:
                self._route.place([tokens] * self._requests)
                self._tokens = tokens
            y = out if out.is_contiguous() else out.contiguous()
            flat = x.reshape(-1, x.shape[-1]).to(y.dtype)
            self._route.add_to(name, flat, y.view(-1, y.shape[-1]), module.bias)
            return y

        return add


@contextlib.contextmanager
def aside(op: str, inner: nn.Module, name: str, layer: nn.Module) -> Iterator[None]:
    """Puts what a layer of peft wraps into its place."""
    if getattr(layer, "merged", False):
        raise bad_value(op, "model", "adapters that are not merged", f"a merged {name}")
    parent, _, leaf = name.rpartition(".")
    modules = inner.get_submodule(parent)._modules
    modules[leaf] = layer.get_base_layer()  # type: ignore[operator]
    try:
        yield
    finally:
        modules[leaf] = layer


@contextlib.contextmanager
def by_row(layer: nn.Linear) -> Iterator[None]:
    """The layer by `ops.linear`. One whose forward is not torch's own is left alone."""
    if type(layer).forward is not nn.Linear.forward or "forward" in vars(layer):
        yield
        return

    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad):
            raise _gradients()
        y = ops.linear(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias)
        return y.view(*x.shape[:-1], y.shape[-1])

    layer.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del layer.forward


def _gradients() -> ValueError:
    return bad_value("serve.rows", "model", "a call under torch.no_grad()", "one with gradients")
