# SPDX-License-Identifier: Apache-2.0
"""The arguments inv_freq, rope_gain and freq_axis of `append` and `paged_attention`.

Both ops pair dimension i of a head with i + R, as Llama does in transformers. A model that pairs
2i with 2i + 1 (GPT-J, Wan's complex numbers) is the same model once the dimensions of its queries
and keys are permuted: `half_split` does so, to the rows of the two projections for good, or to
activations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import bad_value, unsupported

KINDS = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")


def frequencies(
    head_dim: int,
    theta: float = 10000.0,
    *,
    rotary_dim: int | None = None,
    scaling: Mapping[str, Any] | None = None,
    length: int | None = None,
) -> tuple[Tensor, float]:
    """Radians per position, fp64 [R], and the gain of the turned dimensions.

    R is rotary_dim / 2 (head_dim / 2 if None). scaling is `rope_scaling` or `rope_parameters` of a
    transformers config: rope_type (or type) default, linear, llama3, yarn, dynamic or longrope, and
    its numbers; a rope_theta or partial_rotary_factor among them counts. Pass the gain as
    rope_gain: it is the square of the attention factor of YaRN and LongRoPE, which there multiplies
    queries and keys, and 1 elsewhere.

    dynamic and longrope give other frequencies at other lengths: `length` is the one, in tokens, of
    all that is ever seen at once (None: none beyond that of training). Keys turned by some and
    queries by others do not belong together. dynamic stretches the base once the length passes
    max_position_embeddings, longrope takes long_factor in place of short_factor once it passes
    original_max_position_embeddings; the first of these numbers is the config's own and is to be
    put among the fields, where longrope has no factor too.

    Raises ValueError or NotImplementedError naming the field. Sources: Su et al. (2021), Llama 3.1
    (2024), YaRN (Peng et al., 2023), LongRoPE (Ding et al., 2024), dynamic NTK (bloc97, emozilla;
    2023), the fields as in transformers.
    """
    fields = dict(scaling or {})
    theta = float(fields.get("rope_theta", theta))
    if rotary_dim is None:
        rotary_dim = int(head_dim * fields.get("partial_rotary_factor", 1.0))
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise bad_value("frequencies", "rotary_dim", f"even, up to {head_dim}", rotary_dim)
    if not theta > 0:
        raise bad_value("frequencies", "theta", "a number above 0", theta)
    plain = theta ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind in ("default", "mrope", None):  # M-RoPE says which axis turns them, see sections
        return plain, 1.0
    if kind not in KINDS:
        raise unsupported("frequencies", "scaling", f"the types {', '.join(KINDS)}", kind)
    if length is not None and (isinstance(length, bool) or not length >= 1):
        raise bad_value("frequencies", "length", "1 token or more, or None", length)
    if kind == "longrope":
        return _longrope(fields, plain, length)
    factor = _number(fields, "factor", kind)
    if kind == "linear":
        return plain / factor, 1.0
    if kind == "dynamic":
        trained = _number(fields, "max_position_embeddings", kind)
        beyond = factor * max(length or 0, trained) / trained - (factor - 1)
        # A base of theta * beyond ** (D / (D - 2)): the slowest frequency slows down by `beyond`.
        order = torch.arange(rotary_dim // 2, dtype=torch.float64)
        return plain * beyond ** (-order / max(rotary_dim // 2 - 1, 1)), 1.0
    original = _number(fields, "original_max_position_embeddings", kind)
    if kind == "llama3":
        low = _number(fields, "low_freq_factor", kind)
        high = _number(fields, "high_freq_factor", kind)
        turns = original * plain / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return plain * (kept + (1 - kept) / factor), 1.0
    kept = _yarn_kept(fields, theta, rotary_dim, original)
    return plain * (kept + (1 - kept) / factor), _yarn_factor(fields, factor) ** 2


def _longrope(fields: Mapping[str, Any], plain: Tensor, length: int | None) -> tuple[Tensor, float]:
    """Every frequency divided by a factor of its own, one set of them for each range of lengths."""
    trained = _number(fields, "original_max_position_embeddings", "longrope")
    sets = {}
    for name in ("short_factor", "long_factor"):
        given = fields.get(name)
        if (
            not isinstance(given, (list, tuple))
            or len(given) != len(plain)
            or not all(isinstance(x, (int, float)) and x > 0 for x in given)
        ):
            expected = f"{name}, {len(plain)} numbers above 0"
            raise bad_value("frequencies", "scaling", expected, given)
        sets[name] = torch.tensor(given, dtype=torch.float64)
    gain = fields.get("attention_factor")
    if gain is None:
        factor = fields.get("factor")
        if factor is None:
            factor = _number(fields, "max_position_embeddings", "longrope") / trained
        gain = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    chosen = sets["long_factor" if (length or 0) > trained else "short_factor"]
    return plain / chosen, float(gain) ** 2


def _yarn_kept(fields: Mapping[str, Any], theta: float, rotary_dim: int, original: float) -> Tensor:
    """How much of each frequency stays: 1 where it turns often in the original length."""

    def index(turns: float) -> float:
        """Of the frequency that makes so many turns."""
        return rotary_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = index(fields.get("beta_fast") or 32), index(fields.get("beta_slow") or 1)
    if fields.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001
    i = torch.arange(rotary_dim // 2, dtype=torch.float64)
    return 1 - ((i - low) / (high - low)).clamp(0, 1)


def _yarn_factor(fields: Mapping[str, Any], factor: float) -> float:
    """What YaRN multiplies cosines and sines by."""

    def of(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    given = fields.get("attention_factor")
    if given is not None:
        return float(given)
    some, all_dim = fields.get("mscale"), fields.get("mscale_all_dim")
    return of(some) / of(all_dim) if some and all_dim else of(1.0)


def _number(fields: Mapping[str, Any], name: str, kind: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise bad_value("frequencies", "scaling", f"{name} above 0 for {kind}", value)
    return float(value)


def sections(count: int, sizes: Sequence[int], interleaved: bool = False) -> Tensor:
    """freq_axis int32 [count] of M-RoPE: axis 0 (time), 1 (height) or 2 (width) of each frequency.

    sizes is `mrope_section`, three sizes that add up to count. In blocks as Qwen2-VL has them, or
    interleaved as Qwen3-VL does: t h w t h w ..., and t where h and w have run out. ValueError
    otherwise.
    """
    if len(sizes) != 3 or min(sizes) < 0 or sum(sizes) != count:
        raise bad_value("sections", "sizes", f"three sizes that add up to {count}", list(sizes))
    if not interleaved:
        return torch.repeat_interleave(torch.arange(3), torch.tensor(sizes)).int()
    axis = torch.zeros(count, dtype=torch.int32)
    for a in (1, 2):
        axis[a : 3 * sizes[a] : 3] = a
    if axis.bincount(minlength=3).tolist() != list(sizes):
        raise bad_value("sections", "sizes", "sizes that interleave, time the largest", list(sizes))
    return axis


def video(
    head_dim: int, theta: float = 10000.0, *, sizes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """(inv_freq fp64 [D/2], freq_axis int32 [D/2]) of 3-D video RoPE, as Wan has it.

    Time, height and width turn `sizes` dimensions each (None: a third for height and for width,
    both even, the rest for time), every one with frequencies of its own from 1 down to 1 / theta.
    Such models pair 2i with 2i + 1: see `half_split`. Raises ValueError naming the argument.
    """
    third = 2 * (head_dim // 6)
    dims = [head_dim - 2 * third, third, third] if sizes is None else list(sizes)
    if len(dims) != 3 or sum(dims) != head_dim or any(d % 2 or d < 0 for d in dims):
        raise bad_value("video", "sizes", f"three even sizes that add up to {head_dim}", dims)
    inv_freq = torch.cat([frequencies(d, theta)[0] for d in dims if d])
    return inv_freq, sections(head_dim // 2, [d // 2 for d in dims])


def half_split(x: Tensor, head_dim: int, *, axis: int = 0, rotary_dim: int | None = None) -> Tensor:
    """x with the dimensions of every head along `axis` permuted: pairs (2i, 2i+1) to (i, i+R).

    axis 0 suits projections [H*D, K] and their biases, -1 activations [..., D]. What is beyond
    rotary_dim = 2R (head_dim if None) of a head stays in place. Queries and keys permuted alike
    have the same products as before. ValueError when head_dim does not divide the axis.
    """
    rotary_dim = head_dim if rotary_dim is None else rotary_dim
    size = x.shape[axis]
    if head_dim < 1 or size % head_dim:
        raise bad_value("half_split", "x", f"an axis that {head_dim} divides", size)
    if rotary_dim % 2 or not 0 <= rotary_dim <= head_dim:
        raise bad_value("half_split", "rotary_dim", f"even, up to {head_dim}", rotary_dim)
    one = torch.arange(head_dim, device=x.device)
    turned = one[:rotary_dim]
    order = torch.cat([turned[::2], turned[1::2], one[rotary_dim:]])
    heads = torch.arange(0, size, head_dim, device=x.device)
    return x.index_select(axis, (heads[:, None] + order).flatten())
