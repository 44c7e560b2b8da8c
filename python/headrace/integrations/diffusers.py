# SPDX-License-Identifier: Apache-2.0
"""A denoiser with the call signature of diffusers in a ring; diffusers itself is not imported.

Such a module is called as module(sample, timestep, encoder_hidden_states=..., return_dict=False)
and gives a tuple whose first item is like sample, or an object with `.sample`: a transformer or
UNet of a pipeline, or any module of the kind. In a ring it takes all frames in flight one step on
in one call, each at its own timestep. With a memory, its self-attention layers write the keys and
values of every frame to the ring's pages and read those of the frames alive: a rolling cache for
chunk-autoregressive video, for modules whose layers take attention processors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import bad_type, bad_value, unsupported
from ..streams import Ring

Turn = Callable[[Tensor, Any], Tensor]
PARTS = ("to_q", "to_k", "to_v", "to_out", "heads", "set_processor", "processor")
EXTRA = ("group_norm", "spatial_norm", "norm_cross", "residual_connection")


def flow_timesteps(level: Tensor) -> Tensor:
    """Timesteps of flow matching: a thousand times the level of noise."""
    return 1000 * level


def diffusion_timesteps(alphas_cumprod: Tensor) -> Callable[[Tensor], Tensor]:
    """For a scheduler's alphas_cumprod [S]: the timestep whose share of noise, sqrt(1 - a), is
    nearest to a level. `levels` gives the levels of timesteps."""
    shares = (1 - alphas_cumprod.double()).sqrt()

    def timesteps(level: Tensor) -> Tensor:
        table = shares.to(level.device)
        return (level.double()[:, None] - table).abs().argmin(-1)

    return timesteps


def levels(alphas_cumprod: Tensor, timesteps: Sequence[int]) -> list[float]:
    """Levels for a ring with solver Diffusion() from a scheduler's alphas_cumprod and timesteps."""
    return [float((1 - alphas_cumprod[t].double()).sqrt()) for t in timesteps]


class Denoise:
    """A module of diffusers' signature as a ring's denoiser; to be used with Ring(exact=False).

    shape: of a sample, (channels, height, width). patch: the side of what one token of its
    self-attention is of; frames of the ring are [tokens, channels * patch**2], see `pack`.
    timesteps: from levels fp32 [B] to what the module takes. contexts [K, S, D]:
    encoder_hidden_states that a frame may be conditioned on; the ring's `condition` and `negative`
    knobs hold the number of one, tensor([k]). rolling: attention goes through the ring, so that it
    may have a memory; theta: base of the rotation of keys by time, for modules trained with one,
    over the first `time_dims` dimensions of a head (all if None), None for no rotation; turn(x
    [B, N, heads, D], rotary_emb): how the module turns queries and keys by their place inside the
    frame, where it hands its layers a rotary_emb.

    Results are the module's own, whatever else is in the tick, to rounding. The module is as it was
    after every call. Raises TypeError, ValueError or NotImplementedError naming the argument.
    """

    def __init__(
        self,
        module: nn.Module,
        shape: tuple[int, int, int],
        *,
        patch: int = 1,
        timesteps: Callable[[Tensor], Tensor] = flow_timesteps,
        contexts: Tensor | None = None,
        rolling: bool = False,
        theta: float | None = None,
        time_dims: int | None = None,
        turn: Turn | None = None,
    ) -> None:
        if not callable(module) or not isinstance(module, nn.Module):
            raise bad_type("Denoise", "module", "a torch module", type(module).__name__)
        channels, height, width = shape
        if patch < 1 or height % patch or width % patch:
            raise bad_value("Denoise", "patch", f"a divisor of {height} and {width}", patch)
        if contexts is not None and contexts.ndim != 3:
            raise bad_value("Denoise", "contexts", "[K, S, D]", list(contexts.shape))
        self.module, self.shape, self.patch, self.turn = module, shape, patch, turn
        self.timesteps, self.contexts = timesteps, contexts
        self._layers = _attentions(module) if rolling else []
        if rolling and not self._layers:
            wanted = "self-attention layers with " + ", ".join(PARTS)
            raise unsupported("Denoise", "rolling", f"modules with {wanted}", type(module).__name__)
        heads, kv_heads, dim = _sizes(self._layers) if rolling else (1, 1, 16)
        first = next(module.parameters(), torch.empty(0))
        self.config = SimpleNamespace(
            tokens=height * width // patch**2,
            channels=channels * patch**2,
            condition=0 if contexts is None else 1,
            layers=len(self._layers) or 1,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim,
            gates=0,
        )
        self.inv_freq = torch.zeros(dim // 2, dtype=torch.float64, device=first.device)
        if theta is not None:
            turned = dim if time_dims is None else time_dims
            if turned % 2 or not 0 < turned <= dim:
                raise bad_value("Denoise", "time_dims", f"an even number up to {dim}", time_dims)
            steps = torch.arange(0, turned, 2, dtype=torch.float64, device=first.device)
            self.inv_freq[: turned // 2] = theta ** (-steps / turned)
        self._dtype = first.dtype

    def pack(self, sample: Tensor) -> Tensor:
        """Samples [..., C, H, W] as frames of the ring, fp32 [..., tokens, C * patch**2]."""
        p = self.patch
        x = sample.unflatten(-1, (-1, p)).unflatten(-3, (-1, p))  # C, h, p, w, p
        return x.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2).float()

    def unpack(self, frame: Tensor) -> Tensor:
        """The samples [..., C, H, W] of frames of the ring."""
        (channels, height, width), p = self.shape, self.patch
        x = frame.unflatten(-1, (channels, p, p)).unflatten(-4, (height // p, width // p))
        return x.movedim(-3, -5).transpose(-3, -2).flatten(-2).flatten(-3, -2)

    def __call__(
        self,
        x: Tensor,
        level: Tensor,
        place: Tensor,
        condition: Tensor | None,
        attend: Callable[..., Tensor],
        linear: Callable[..., Tensor] = F.linear,
    ) -> Tensor:
        """As `headrace.models.Denoiser`: tokens of many frames, each frame at one level."""
        if linear is not F.linear:
            hint = "the sums are the module's own"
            raise unsupported("Denoise", "exact", "Ring(exact=False)", "exact=True", hint)
        frames = x.view(-1, self.config.tokens, self.config.channels)
        each = level.view(len(frames), -1)
        if bool((each != each[:, :1]).any()):
            raise unsupported("Denoise", "given", "frames of one level", "tokens of several")
        told = None
        if condition is not None and self.contexts is not None:
            number = condition.view(len(frames), -1)[:, 0].round().long()
            told = self.contexts.to(x.device, self._dtype)[number]
        sample = self.unpack(frames).to(self._dtype)
        with _through(self._layers, attend, self.turn):
            got = self.module(
                sample, self.timesteps(each[:, 0]), encoder_hidden_states=told, return_dict=False
            )
        said = got.sample if hasattr(got, "sample") else got[0]
        if said.shape != sample.shape:
            raise bad_value("Denoise", "module", list(sample.shape), list(said.shape))
        return self.pack(said).flatten(0, 1)


def ring(denoise: Denoise, levels: Sequence[float], **options: Any) -> Ring:
    """A ring for it: `headrace.Ring` with exact=False. ValueError for a memory without rolling."""
    if options.get("memory") is not None and not denoise._layers:
        raise bad_value("ring", "memory", "None", options["memory"], "Denoise(rolling=True)")
    return Ring(denoise, levels, exact=False, **options)


def _attentions(module: nn.Module) -> list[nn.Module]:
    """Its self-attention layers in order."""
    found = []
    layer: Any
    for layer in module.modules():
        if not all(hasattr(layer, part) for part in PARTS):
            continue
        across = getattr(layer, "is_cross_attention", None)
        if across is None:
            across = layer.to_k.in_features != layer.to_q.in_features
        if not across:
            found.append(layer)
    return found


def _sizes(layers: Sequence[Any]) -> tuple[int, int, int]:
    sizes = set()
    for layer in layers:
        dim = layer.to_q.out_features // layer.heads
        sizes.add((layer.heads, layer.to_k.out_features // dim, dim))
    if len(sizes) > 1:
        got = ", ".join(map(str, sorted(sizes)))
        raise unsupported("Denoise", "rolling", "layers of one (heads, kv heads, dim)", got)
    return sizes.pop()


@contextmanager
def _through(
    layers: Sequence[Any], attend: Callable[..., Tensor], turn: Turn | None
) -> Iterator[None]:
    """Attention of these layers goes through `attend`; theirs is back afterwards."""
    before = [layer.processor for layer in layers]
    try:
        for number, layer in enumerate(layers):
            layer.set_processor(_Processor(number, attend, turn))
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)


class _Processor:
    """What diffusers calls in place of a layer's attention."""

    def __init__(self, layer: int, attend: Callable[..., Tensor], turn: Turn | None) -> None:
        self._layer, self._attend, self._turn = layer, attend, turn

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        rotary_emb: Any = None,
        **_: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None:
            raise unsupported("Denoise", "rolling", "self-attention", "a layer called with context")
        odd = [name for name in EXTRA if getattr(attn, name, None)]
        if odd or attention_mask is not None or hidden_states.ndim != 3:
            got = ", ".join(odd) or ("a mask" if attention_mask is not None else "no sequence")
            raise unsupported("Denoise", "rolling", "plain layers of a transformer", got)
        if rotary_emb is not None and self._turn is None:
            raise bad_value("Denoise", "turn", "how to apply the module's rotary_emb", None)
        batch, tokens = hidden_states.shape[:2]
        q, k, v = (
            to(hidden_states).view(batch, tokens, -1, attn.to_q.out_features // attn.heads)
            for to in (attn.to_q, attn.to_k, attn.to_v)
        )
        q, k = (
            x if getattr(attn, name, None) is None else getattr(attn, name)(x)
            for name, x in (("norm_q", q), ("norm_k", k))
        )
        if rotary_emb is not None and self._turn is not None:
            q, k = self._turn(q, rotary_emb), self._turn(k, rotary_emb)
        seen = self._attend(self._layer, *(x.flatten(0, 1).float().contiguous() for x in (q, k, v)))
        x = seen.reshape(batch, tokens, -1).to(hidden_states.dtype)
        for part in attn.to_out:
            x = part(x)
        return x / getattr(attn, "rescale_output_factor", 1.0)
