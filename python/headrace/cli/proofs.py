# SPDX-License-Identifier: Apache-2.0
"""The claims of `headrace check`, each a figure and its bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _C, models, ops, presets
from ..backends import use_isa
from ..contract import HINTS
from ..memory import Sink, Window
from ..presets import Check
from ..streams import InCache, oracle, wrap
from .proof_cases import CASES, FAR, paged

NEAR = 4_000  # a position; FAR is another
FAR_BOUND = 1.5  # error at FAR over error at NEAR
BOUND = 1e-4  # of a logit in fp32


def parts() -> dict[str, Callable[[], Iterator[Check]]]:
    """What can be checked, by name."""
    made: dict[str, Callable[[], Iterator[Check]]] = {"ops": of_ops, "positions": of_positions}
    for name in presets.names():
        made[name] = lambda name=name: of_preset(name)  # type: ignore[misc]
    made["models"] = of_models
    return made


def of_ops() -> Iterator[Check]:
    """Every op against its reference in fp64, at every level that this processor has."""
    for name, make in CASES.items():
        spec, cases = ops.specs()[name], make()
        for isa in _C.available_isas():
            worst = 0.0
            with use_isa(isa):
                for case in cases:
                    worst = max(worst, _error(spec, case))
            yield Check(f"{name}, {isa}: error over its tolerance, {len(cases)} cases", worst, 1.0)


def of_positions() -> Iterator[Check]:
    """A stream far from its beginning is as exact as one near it."""
    model, text = random_model(), random_bytes(320)
    memory = Sink(4) + Window(60)
    want = oracle(model, text, memory, InCache())
    error = {}
    for position in (NEAR, FAR):
        with wrap(model, memory=memory, page_size=16) as engine:
            got = engine.open(position=position).feed(text, logits=True).logits
            assert got is not None
            error[position] = float((got - want).square().mean().sqrt())
    claim = f"at position {FAR:,}: error over that at {NEAR:,}"
    yield Check(f"stream {claim}", error[FAR] / error[NEAR], FAR_BOUND)
    spec = ops.specs()["paged_attention"]
    near, far = (_error(spec, paged(seed=5, base=at)) for at in (NEAR, FAR))
    yield Check(f"paged_attention {claim}", far / near, FAR_BOUND)


def of_preset(name: str) -> Iterator[Check]:
    """A preset against its oracle, on a random model."""
    preset = presets.get(name)
    if preset.sample is not None:
        yield from preset.check(preset.sample())
        return
    yield from preset.check(random_model())
    yield from _pages(random_model(), Sink(4) + Window(60), random_bytes(320))


def of_models() -> Iterator[Check]:
    """The packaged models on held-out text, with the memory they were trained with."""
    from ..models.training import data

    for name in models.names():
        model = models.load(name)
        config = model.config
        window, sinks = config.window or 252, config.sinks if config.window else 4
        memory = Sink(sinks) + Window(window)
        text = data.split()[1][: 4 * (window + sinks)].long()
        want = oracle(model, text, memory, InCache())
        for chunk in (1, 7, 64, 257) if name == models.names()[0] else (257,):
            with wrap(model, memory=memory, chunk=chunk) as engine:
                got = engine.open().feed(text, logits=True).logits
                assert got is not None
            gap = float((got - want).abs().max())
            yield Check(f"{name}, chunks of {chunk}: max |logit - oracle|", gap, BOUND)
        if name == models.names()[0]:
            yield _alone(model, memory, text)


def _alone(model: Any, memory: Any, text: Tensor) -> Check:
    """The bits of a stream beside fifteen others."""
    with wrap(model, memory=memory, exact=True) as engine:
        alone = engine.open().feed(text, logits=True).logits
    with wrap(model, memory=memory, exact=True) as engine:
        batch = {engine.open(): text.roll(i)[: len(text) - 31 * i] for i in range(16)}
        beside = engine.step(batch, logits=True)[next(iter(batch))].logits
    assert alone is not None
    assert beside is not None
    differ = int((alone != beside).sum())
    return Check("exact mode, alone or in a batch of 16: logits that differ", differ, 0)


def _pages(model: Any, memory: Any, text: Tensor) -> Iterator[Check]:
    """The bits of a stream whose pages lie elsewhere in the pool."""
    with wrap(model, memory=memory, exact=True, page_size=16, chunk=16) as engine:
        stream = engine.open()
        alone = torch.cat([_logits(stream, part) for part in text.split(16)])
        ids = stream.pages
    with wrap(model, memory=memory, exact=True, page_size=16, chunk=16) as engine:
        other, stream = engine.open(), engine.open()
        moved = []
        for part in text.split(16):
            other.feed(part)
            moved.append(_logits(stream, part))
        if stream.pages == ids:
            raise RuntimeError("check(pages): expected other pages, got the same")
    differ = int((alone != torch.cat(moved)).sum())
    yield Check("exact mode, other pages of the pool: logits that differ", differ, 0)


def _logits(stream: Any, tokens: Tensor) -> Tensor:
    made: Tensor = stream.feed(tokens, logits=True).logits
    return made


def random_model(seed: int = 0) -> models.Decoder:
    """A small decoder whose every weight matters, as a fresh one's do not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = models.DecoderConfig(
            layers=2, width=64, heads=4, kv_heads=2, head_dim=32, hidden=96
        )
        model = models.Decoder(config)
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim == 2:
                    p.normal_(std=1.5 * p.shape[1] ** -0.5)
    return model.eval()


def random_bytes(count: int, seed: int = 0) -> Tensor:
    """int64 [count]."""
    return torch.randint(256, (count,), generator=torch.Generator().manual_seed(seed))


def _error(spec: Any, case: dict[str, Any]) -> float:
    """RMS error over the RMS of the reference in fp64, in units of the tolerance."""
    bound = dict(case)
    schema = getattr(torch.ops.headrace, spec.name).default._schema
    for argument in schema.arguments:
        bound.setdefault(argument.name, argument.default_value)
    axes = spec.check(bound)
    if "scale" in bound and bound["scale"] is None:
        bound["scale"] = axes["D"] ** -0.5
    wide = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in bound.items()
        if k not in HINTS
    }
    changed = [name for name in spec.mutates if bound[name] is not None]
    for name in changed:
        bound[name] = bound[name].clone()
        wide[name] = wide[name].clone()
    got = getattr(torch.ops.headrace, spec.name)(**bound)
    want = spec.reference(**wide)
    got, want = (x if isinstance(x, tuple) else (x,) for x in (got, want))
    if not spec.outs:
        got, want = (), ()
    got += tuple(bound[n] for n in changed)
    want += tuple(wide[n] for n in changed)
    dtype = got[0].dtype
    tolerance = spec.tolerance(dtype, axes, bound)
    return max(_relative(g, w) for g, w in zip(got, want, strict=True)) / tolerance


def _relative(got: Tensor, want: Tensor) -> float:
    got, want = got.double(), want.double()
    finite = want.isfinite()
    if not torch.equal(got.isfinite(), finite) or not torch.equal(got[~finite], want[~finite]):
        return float("inf")
    scale = float(want[finite].square().mean().sqrt())
    return float((got[finite] - want[finite]).square().mean().sqrt()) / (scale or 1.0)
