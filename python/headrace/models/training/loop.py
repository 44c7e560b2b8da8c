# SPDX-License-Identifier: Apache-2.0
"""The training loop: bf16 arithmetic on fp32 master weights, Muon for hidden matrices, AdamW for
the rest.

Muon: K. Jordan et al., https://kellerjordan.github.io/posts/muon/. The learning rate warms up,
stays, and falls to zero over the last part of the steps or of the minutes given, whichever bounds
the run, so a slow machine still ends well.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.func import functional_call

from ..decoder import Attend, Decoder, DecoderConfig
from ..files import save
from . import data
from .attention import banded, dense


@dataclass(frozen=True)
class Run:
    """What one training does. Exactly one of minutes and steps bounds it."""

    attention: str = "window"
    window: int = 252
    sinks: int = 4
    sequence: int = 1024
    sink_logits: bool = False
    tokens: int = 4096
    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    weight_decay: float = 0.05
    warmup: int = 60
    decay: float = 0.35
    width: int = 256
    layers: int = 4
    hidden: int = 1024
    block: int = 128

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("Run(minutes, steps): expected one of the two, got both or neither")
        if not (self.minutes or self.steps or 0) > 0:
            raise ValueError(f"Run: expected a length above 0, got {self.minutes or self.steps}")
        if self.attention not in ("window", "dense"):
            raise ValueError(
                f"Run(attention): expected 'window' or 'dense', got {self.attention!r}"
            )
        if self.sequence < 1 or self.tokens < 1 or self.tokens % self.sequence:
            raise ValueError(
                f"Run(tokens): expected a multiple of sequence={self.sequence}, got {self.tokens}"
            )

    def config(self) -> DecoderConfig:
        windowed = self.attention == "window"
        heads = max(2, self.width // 32)
        return DecoderConfig(
            width=self.width,
            layers=self.layers,
            hidden=self.hidden,
            heads=heads,
            kv_heads=heads // 4 if heads % 4 == 0 else 1,
            sink_logits=self.sink_logits,
            window=self.window if windowed else None,
            sinks=self.sinks if windowed else 0,
        )

    def attend(self, model: Decoder) -> Attend:
        if self.attention == "dense":
            return dense(model, self.sequence)
        return banded(model, self.sequence, self.window, self.sinks, block=self.block)


def rate(run: Run, step: int, seconds: float) -> float:
    """Factor of the learning rate, 0..1; 0 means that the run is over."""
    done = step / run.steps if run.steps else seconds / (60.0 * (run.minutes or 0.0))
    return max(0.0, min(1.0, (step + 1) / run.warmup, (1.0 - done) / run.decay))


class _Weights(torch.nn.Module):
    """Loss of a decoder in bf16, with gradients to its fp32 weights."""

    def __init__(self, model: Decoder, attend: Attend) -> None:
        super().__init__()
        self.model, self.attend = model, attend

    def forward(self, text: Tensor) -> Tensor:
        weights = {name: p.to(torch.bfloat16) for name, p in self.model.named_parameters()}
        logits = functional_call(self.model, weights, (text[:, :-1].flatten(), self.attend))
        return F.cross_entropy(logits, text[:, 1:].flatten())


def train(
    run: Run,
    out: Path,
    resume: bool = False,
    extra: list[Path] | None = None,
    stop: int | None = None,
    initial: Decoder | None = None,
) -> Decoder:
    """Train, print a line every 50 steps, leave the model at `out` and a state to resume from
    beside it.

    stop: step to leave off at, with the schedule of the whole run. initial: weights to begin with;
    learned sinks that it lacks begin at 0.
    """
    torch.manual_seed(run.seed)
    text, held_out = data.split(extra)
    model = Decoder(run.config())
    if initial is not None:
        _begin(model, initial)
    loss_of = _Weights(model, run.attend(model))
    hidden = [
        p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2
    ]
    rest = [
        p
        for name, p in model.named_parameters()
        if not (name.startswith("blocks.") and p.ndim == 2)
    ]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(hidden, lr=run.muon_rate, weight_decay=run.weight_decay),
        torch.optim.AdamW(rest, lr=run.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rates = [run.muon_rate, run.adam_rate]
    state = out.with_suffix(".state")
    step, before = _restore(state, model, optimisers) if resume else (0, 0.0)
    rows = run.tokens // run.sequence
    checks = data.spread(held_out, max(1, 16384 // run.sequence), run.sequence)
    count = sum(p.numel() for p in model.parameters())
    print(
        f"{count} parameters, {len(text)} bytes to train on, {len(held_out)} held out", flush=True
    )
    begun, saved, printed, losses = time.monotonic(), time.monotonic(), time.monotonic(), []
    while True:
        seconds = before + time.monotonic() - begun
        factor = rate(run, step, seconds)
        if factor <= 0.0 or step == stop:
            break
        loss = loss_of(data.batch(text, rows, run.sequence, run.seed, step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        for optimiser, full in zip(optimisers, rates, strict=True):
            optimiser.param_groups[0]["lr"] = full * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        if step % 50 == 0:
            mean, losses = sum(losses) / len(losses), []
            speed, printed = 50 * run.tokens / (time.monotonic() - printed), time.monotonic()
            line = (
                f"step {step} minutes {seconds / 60:.1f} rate {factor:.3f} loss {mean:.4f} "
                f"tokens/s {speed:.0f}"
            )
            if step % 250 == 0:
                with torch.no_grad():
                    line += f" held-out {loss_of(checks).item():.4f}"
            print(line, flush=True)
        if time.monotonic() - saved > 120:
            _store(state, model, optimisers, step, before + time.monotonic() - begun)
            save(model, out, _provenance(run, step, before + time.monotonic() - begun))
            saved = time.monotonic()
    with torch.no_grad():
        print(
            f"step {step} minutes {seconds / 60:.1f} held-out {loss_of(checks).item():.4f} done",
            flush=True,
        )
    _store(state, model, optimisers, step, seconds)
    save(model, out, _provenance(run, step, seconds))
    return model


def _begin(model: Decoder, initial: Decoder) -> None:
    given, wanted = initial.state_dict(), model.state_dict()
    if {k: v.shape for k, v in given.items() if k != "learned_sinks"} != {
        k: v.shape for k, v in wanted.items() if k != "learned_sinks"
    }:
        raise ValueError(
            f"train(initial): expected the shapes of {model.config}, got {initial.config}"
        )
    model.load_state_dict({k: given.get(k, v) for k, v in wanted.items()})


def _provenance(run: Run, step: int, seconds: float) -> dict[str, str]:
    return {
        "training": json.dumps(
            {**asdict(run), "step": step, "trained_minutes": round(seconds / 60, 1)}
        )
    }


def _store(
    path: Path, model: Decoder, optimisers: list[torch.optim.Optimizer], step: int, seconds: float
) -> None:
    tensors = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    for i, optimiser in enumerate(optimisers):
        for index, slots in optimiser.state_dict()["state"].items():
            for name, value in slots.items():
                tensors[f"{i}/{index}/{name}"] = torch.as_tensor(value)
    temporary = path.with_suffix(".state.part")
    save_file(tensors, temporary, metadata={"step": str(step), "seconds": str(seconds)})
    os.replace(temporary, path)


def _restore(
    path: Path, model: Decoder, optimisers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    if not path.is_file():
        raise ValueError(f"train(resume): expected the state of an earlier run at {path}, got none")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimisers]
        weights = {}
        for key in file.keys():  # noqa: SIM118
            head, _, name = key.partition("/")
            if head == "model":
                weights[name] = file.get_tensor(key)
            else:
                index, _, slot = name.partition("/")
                states[int(head)].setdefault(int(index), {})[slot] = file.get_tensor(key)
    model.load_state_dict(weights)
    for optimiser, slots in zip(optimisers, states, strict=True):
        optimiser.load_state_dict({**optimiser.state_dict(), "state": slots})
    return int(metadata["step"]), float(metadata["seconds"])
