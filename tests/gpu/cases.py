# SPDX-License-Identifier: Apache-2.0
"""Inputs for the GPU kernels, and how far from the reference they may be.

Memory that an op must not read is NaN; the reference gets zeros there.
"""

from __future__ import annotations

import torch

from headrace import ops
from headrace.contract import HINTS, ROUNDOFF

UNLIMITED = 2**62

# (B, Hq, Hkv, Lq, Lk, D) and options of ops.attention
DENSE = {
    "one": ((1, 1, 1, 1, 1, 32), {}),
    "causal": ((1, 2, 1, 5, 37, 32), {}),
    "window-sinks-learned": ((2, 4, 2, 33, 70, 32), dict(window=8, sinks=3, sink_logits=True)),
    "decode-split": ((1, 6, 2, 1, 200, 32), dict(window=150, sinks=4, softcap=5.0, split=64)),
    "window-of-one": ((1, 2, 1, 9, 40, 32), dict(window=1, sinks=1)),
    "many-sinks": ((1, 2, 2, 70, 150, 32), dict(window=9, sinks=20)),
    "both-sides": ((1, 2, 2, 20, 17, 48), dict(window=5, sinks=2, causal=False, sink_logits=True)),
    "rows-that-see-nothing": ((1, 2, 1, 7, 3, 32), dict(sink_logits=True)),
    "no-keys": ((1, 2, 1, 3, 0, 32), {}),
    "no-queries": ((1, 2, 1, 0, 5, 32), {}),
    "group-of-three": ((1, 3, 1, 40, 90, 32), dict(causal=False, softcap=3.0)),
    "whole-tiles": ((1, 1, 1, 70, 200, 32), dict(window=120, sinks=2)),
    "dim-80": ((1, 2, 1, 7, 40, 80), dict(window=9, sinks=2)),
    "dim-112": ((1, 2, 1, 3, 40, 112), dict(window=9, sinks=2)),
    # The number is the density of the block mask, its first two axes those of `blocks`.
    "blocks": ((2, 4, 2, 40, 90, 32), dict(blocks=(2, 4, 0.5), block_size=16)),
    "blocks-shared-by-heads": ((2, 6, 2, 37, 90, 32), dict(blocks=(2, 1, 0.5), block_size=20)),
    "blocks-window-sinks-learned": (
        (1, 4, 2, 70, 150, 32),
        dict(blocks=(1, 4, 0.6), block_size=32, window=60, sinks=3, sink_logits=True),
    ),
    "blocks-both-sides": (
        (2, 2, 1, 70, 150, 32),
        dict(blocks=(1, 2, 0.4), block_size=64, causal=False, window=90, softcap=3.0),
    ),
    "blocks-of-64": ((1, 1, 1, 70, 200, 32), dict(blocks=(1, 1, 0.5), sinks=2, causal=False)),
    "blocks-none-set": ((1, 2, 1, 20, 50, 32), dict(blocks=(1, 2, 0.0), sink_logits=True)),
    "blocks-only-sinks": ((1, 2, 1, 20, 50, 32), dict(blocks=(1, 2, 0.0), sinks=20)),
    "blocks-decode-split": (
        (2, 4, 2, 1, 200, 32),
        dict(blocks=(2, 4, 0.5), block_size=16, sinks=4, split=40),
    ),
    "blocks-larger-than-all": ((1, 2, 1, 20, 50, 32), dict(blocks=(1, 2, 1.0), block_size=999)),
}

# Options of `paged` below.
PAGED = {
    "two-streams": {},
    "no-rotation": dict(rotary=None),
    "part-rotation": dict(rotary=0.25, dim=80, page=48),
    "learned-sink-softcap": dict(sink_logits=True, softcap=4.0),
    "splits": dict(split=20, streams=((1, 9), (3, 4))),
    "window-cap-empty": dict(
        split=20, streams=((1, 9), (20, 4), (0, 3), (1, 0)), reach=11, cap=13, sink_logits=True
    ),
    "far": dict(base=4_000_000, reach=20, cap=30, one_origin=True),
    "group-of-three": dict(heads=6, page=128, streams=((2, 3),), split=33),
    "long-window": dict(streams=((1, 70),), reach=60, cap=70, split=16),
    "holes": dict(streams=((2, 6),), reach=4, gap=30),
    "no-rows": dict(streams=()),
    "dim-112": dict(dim=112, streams=((1, 2),)),
    "wide-group": dict(heads=20, streams=((1, 2),)),
}


def dense(dtype, shape, device="cpu", seed=0, **options):
    """Bound arguments of ops.attention; keys and values lie in a larger, poisoned tensor."""
    torch.manual_seed(seed)
    b, hq, hkv, lq, lk, d = shape
    q = torch.randn(b, lq, hq, d).to(dtype).transpose(1, 2)
    k, v = (torch.full((b, hkv, lk + 3, d), torch.nan, dtype=dtype) for _ in "kv")
    k, v = k[:, :, 1 : lk + 1], v[:, :, 2 : lk + 2]
    k.copy_(torch.randn(b, hkv, lk, d))
    v.copy_(torch.randn(b, hkv, lk, d))
    if options.get("sink_logits"):
        options["sink_logits"] = torch.randn(hq)
    if blocks := options.pop("blocks", None):
        size = options.get("block_size", 64)
        shape = (*blocks[:2], -(-lq // size), -(-lk // size))
        options["block_mask"] = torch.rand(shape) < blocks[2]
    bound = dict(q=q, k=k, v=v) | options
    return {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in bound.items()}


def exact_masks(device="cpu"):
    """Bound arguments of ops.pooled_block_mask: whole numbers, so that one mask is right."""
    gen = torch.Generator().manual_seed(0)
    for options in (
        dict(blocks=3, block_size=16),
        dict(share=0.3, block_size=8, causal=False),
        dict(blocks=5, block_size=16, sinks=3, local=20, window=150),
    ):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            q, k = (
                torch.randint(-1, 2, (2, h, n, 64), generator=gen) for h, n in ((4, 128), (2, 256))
            )
            yield dict(q=q.to(device, dtype), k=k.to(device, dtype)) | options


def moved(call, device):
    """Arguments and keywords of a call, tensors on a device."""
    put = lambda x: x.to(device) if isinstance(x, torch.Tensor) else x  # noqa: E731
    args, kwargs = call
    return tuple(map(put, args)), {name: put(x) for name, x in kwargs.items()}


def paged(
    dtype,
    device="cpu",
    seed=0,
    *,
    dim=32,
    page=16,
    heads=4,
    kv_heads=2,
    rotary=0.5,
    streams=((3, 2), (1, 5)),
    softcap=0.0,
    sink_logits=False,
    split=4096,
    reach=None,
    cap=None,
    kv=None,
    base=0,
    one_origin=False,
    gap=0,
):
    """Bound arguments of ops.paged_attention for streams of (rows, entries).

    The first entry of a stream is pinned and capped, the rest have `reach`. Slots that no entry
    names are NaN, and with `gap` (rows that far apart in order) so are keys that no row sees.
    """
    torch.manual_seed(seed)
    kv = kv or dtype
    pages = sum(n for _, n in streams) + 3
    k = torch.full((pages, kv_heads, dim, page), torch.nan, dtype=kv)
    v = torch.full((pages, kv_heads, page, dim), torch.nan, dtype=kv)
    free = torch.randperm(pages).tolist()
    entries, entry_indptr, q_indptr, pos = [], [0], [0], []
    for rows, count in streams:
        order = base
        begin = len(entries)
        for i in range(count):
            at = free.pop()
            first = int(torch.randint(0, page // 2, ()))
            n = int(torch.randint(1, page - first + 1, ()))
            k[at, :, :, first : first + n] = torch.randn(kv_heads, dim, n).to(kv)
            v[at, :, first : first + n] = torch.randn(kv_heads, n, dim).to(kv)
            entries.append(
                [
                    at,
                    first,
                    n,
                    base if one_origin else order,
                    cap if cap is not None and i == 0 else UNLIMITED,
                    order,
                    reach if reach is not None and i else UNLIMITED,
                ]
            )
            order += n
        mine = [
            order - 1 - gap * (rows - 1 - j) - (0 if gap else rows - 1 - j) for j in range(rows)
        ]
        pos += mine
        if gap:
            for at, first, n, _, _, start, far in entries[begin:]:
                for i in range(n):
                    if not any(0 <= t - start - i < far for t in mine):
                        k[at, :, :, first + i] = v[at, :, first + i] = torch.nan
        entry_indptr.append(len(entries))
        q_indptr.append(q_indptr[-1] + rows)
    frequencies = None
    if rotary:
        n = int(dim * rotary)
        frequencies = 10000.0 ** (-torch.arange(n, dtype=torch.float64) / n)
    bound = dict(
        q=torch.randn(q_indptr[-1], heads, dim).to(dtype),
        k_pages=k,
        v_pages=v,
        entries=torch.tensor(entries, dtype=torch.int64).reshape(-1, 7),
        entry_indptr=torch.tensor(entry_indptr, dtype=torch.int32),
        q_indptr=torch.tensor(q_indptr, dtype=torch.int32),
        q_pos=torch.tensor(pos, dtype=torch.int64),
        inv_freq=frequencies,
        softcap=softcap,
        sink_logits=torch.randn(heads) if sink_logits else None,
        split=split,
    )
    return {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in bound.items()}


def common(dtype, device="cpu", streams=9, prefix=12, own=3, **shape):
    """Bound arguments of ops.paged_attention for streams of one row on the same first pages."""
    one = paged(dtype, streams=((1, prefix + own),), **shape)
    k, v, entries, last = one["k_pages"], one["v_pages"], one["entries"], slice(prefix, None)
    pages, mine = len(k), entries[last, 0]
    tables = []
    for b in range(streams):
        table = entries.clone()
        table[last, 0] = pages + b * own + torch.arange(own)
        tables.append(table)
    ends = torch.arange(streams + 1, dtype=torch.int32)
    bound = one | dict(
        q=torch.randn(streams, *one["q"].shape[1:]).to(dtype),
        k_pages=torch.cat([k, *(k[mine] * (1 + b / 8) for b in range(streams))]),
        v_pages=torch.cat([v, *(v[mine] * (1 - b / 8) for b in range(streams))]),
        entries=torch.cat(tables),
        entry_indptr=ends * (prefix + own),
        q_indptr=ends,
        q_pos=one["q_pos"].repeat(streams),
    )
    return {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in bound.items()}


def append(dtype, device="cpu", kv=None, rotary=True, seed=0):
    """Bound arguments of ops.append: scattered slots, offsets of millions, pages that are views."""
    torch.manual_seed(seed)
    tokens, heads, dim, page, pages = 21, 2, 48, 16, 5
    k, v = (torch.randn(tokens, heads + 1, dim).to(dtype)[:, 1:] for _ in "kv")
    k_pages = torch.randn(pages, heads + 1, dim, page).to(kv or dtype)[:, :heads]
    v_pages = torch.randn(pages, heads + 1, page, dim).to(kv or dtype)[:, :heads]
    slots = torch.randperm(pages * page)[:tokens]
    offsets = torch.where(torch.rand(tokens) < 0.5, torch.randint(0, 300, (tokens,)), 4_000_001)
    where = torch.stack([slots // page, slots % page, offsets], 1)
    n = dim // 2
    frequencies = 10000.0 ** (-torch.arange(n, dtype=torch.float64) / n) if rotary else None
    bound = dict(k=k, v=v, k_pages=k_pages, v_pages=v_pages, where=where, inv_freq=frequencies)
    return {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in bound.items()}


def merge_states(dtype, device="cpu", seed=0, dim=48):
    """Bound arguments of ops.merge_states; states of weight 0 are NaN."""
    torch.manual_seed(seed)
    o_a, o_b = (torch.randn(7, 3, dim).to(dtype) for _ in "ab")
    lse_a, lse_b = (5 * torch.randn(7, 3) for _ in "ab")
    lse_a[0], lse_b[1], lse_a[2, 1], lse_b[2, 1] = -torch.inf, -torch.inf, -torch.inf, -torch.inf
    o_a[0], o_b[1], o_a[2, 1], o_b[2, 1] = torch.nan, torch.nan, torch.nan, torch.nan
    bound = dict(o_a=o_a, lse_a=lse_a, o_b=o_b, lse_b=lse_b)
    return {n: x.to(device) for n, x in bound.items()}


def linear(dtype, device="cpu", rows=37, n=45, k=70, weight=None, bias=True, seed=0):
    """Bound arguments of ops.linear; x and weight are columns of wider, poisoned tensors."""
    torch.manual_seed(seed)
    x = torch.full((rows, k + 2), torch.nan, dtype=dtype)[:, 2:]
    w = torch.full((n, k + 2), torch.nan, dtype=weight or dtype)[:, :k]
    x.copy_(torch.randn(rows, k))
    w.copy_(torch.randn(n, k))
    b = torch.randn(n).to(w.dtype).to(device) if bias else None
    return dict(x=x.to(device), weight=w.to(device), bias=b)


# Options of `hstu_attention` below.
HSTU = {
    "whole": {},
    "window-targets": dict(max_attn_len=9, targets=5),
    "prefix-pinned": dict(max_attn_len=9, contextual_seq_len=3, sinks=3, targets=2, scaled=True),
    "new-rows": dict(new=(3, 0, 7), max_attn_len=20, min_full_attn_seq_len=2),
    "both-sides": dict(causal=False, max_attn_len=11, contextual_seq_len=4, targets=6),
    "ring": dict(new=(2, 0, 5), ring=True, max_attn_len=20, sinks=3, targets=1),
    "narrow": dict(lengths=(1, 2), dim=16, v_dim=80),
    "empty": dict(lengths=()),
}


def hstu_attention(
    dtype,
    device="cpu",
    seed=0,
    *,
    lengths=(70, 0, 37),
    new=None,
    ring=False,
    targets=None,
    scaled=False,
    dim=32,
    v_dim=48,
    heads=2,
    **options,
):
    """Bound arguments of ops.hstu_attention; q, k and v are columns of wider, poisoned tensors."""
    torch.manual_seed(seed)

    def made(n, d):
        x = torch.full((n, heads, d + 8), torch.nan, dtype=dtype)[..., 8:]
        return x.copy_(torch.randn(n, heads, d))

    def offsets(counts):
        return torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)

    def ring_order(n):  # a prefix of three, and the rest far behind it and shuffled
        return torch.cat([torch.arange(n)[:3], 10**10 + torch.randperm(max(n - 3, 0))])

    rows = lengths if new is None else new
    bound = dict(
        q=made(sum(rows), dim),
        k=made(sum(lengths), dim),
        v=made(sum(lengths), v_dim),
        k_indptr=offsets(lengths),
        q_indptr=None if new is None else offsets(new),
        num_targets=targets,
        k_order=torch.cat([ring_order(n) for n in lengths]) if ring else None,
        attn_scale=torch.rand(sum(rows)) if scaled else None,
        max_seq_len=71,
        alpha=dim**-0.5,
        **options,
    )
    if targets is not None:
        bound["num_targets"] = torch.tensor([min(targets, n) for n in lengths], dtype=torch.int32)
    return {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in bound.items()}


# Options of `frame_delta_rule` below.
FRAMES = {
    "frames": {},
    "one-token": dict(frames=((1,),)),
    "long": dict(frames=((880, 3),), dim=112, v_dim=112),
    "plain": dict(decay=False, rope=False, update=False),
    "wide": dict(frames=((70,), (5, 33)), dim=256, v_dim=80),
    "empty": dict(frames=((0,), ())),
}


def frame_delta_rule(
    dtype,
    device="cpu",
    seed=0,
    *,
    frames=((70, 0, 37), (), (9,)),
    dim=32,
    v_dim=48,
    decay=True,
    rope=True,
    update=True,
):
    """Bound arguments of ops.frame_delta_rule; rows are columns of wider, poisoned tensors."""
    torch.manual_seed(seed)
    sizes = [n for stream in frames for n in stream]
    heads, v_heads, tokens, streams = 2, 4, sum(sizes), len(frames)
    short = (dim * max([1, *sizes])) ** -0.5  # the state stays in bounds

    def made(h, d, by=1.0, positive=True):
        x = torch.randn(tokens, h, d) * by
        big = torch.full((tokens, h, d + 8), torch.nan, dtype=dtype)[..., 8:]
        return big.copy_(x.relu() if positive else x)

    def offsets(counts):
        return torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)

    bound = dict(
        q=made(heads, dim),
        k=made(heads, dim, short),
        v=made(v_heads, v_dim, 1.0, False),
        beta=torch.rand(tokens, v_heads),
        state=torch.randn(streams, v_heads, dim, v_dim),
        norm=torch.rand(streams, v_heads, dim) + 0.5,
        frames=offsets(sizes),
        indptr=offsets(map(len, frames)),
        rows=torch.randperm(streams).int(),
        log_decay=-torch.rand(len(sizes), v_heads) if decay else None,
        q_hat=made(heads, dim, 1.0, False) if rope else None,
        k_hat=made(heads, dim, short, False) if rope else None,
        update=update,
    )
    return {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in bound.items()}


def truth(op, bound):
    """The reference in fp64 on the CPU, of inputs without poison."""
    spec = ops.specs()[op]
    arguments = spec.bind(**_defaults(op) | bound)
    exact = {}
    for name, x in arguments.items():
        if name in HINTS:
            continue
        if isinstance(x, torch.Tensor):
            x = x.cpu()
            x = (
                torch.nan_to_num(x.double(), nan=0.0, neginf=-torch.inf)
                if x.is_floating_point()
                else x
            )
        exact[name] = x
    if exact.get("scale", 0) is None:
        exact["scale"] = exact["q"].shape[-1] ** -0.5
    got = spec.reference(**exact)
    if got is None:
        return tuple(exact[name] for name in spec.mutates if exact[name] is not None)
    return got if isinstance(got, tuple) else (got,)


def _defaults(op):
    arguments = getattr(torch.ops.headrace, op).default._schema.arguments
    return {a.name: a.default_value for a in arguments if a.has_default_value()}


def compare(op, bound, outs):
    """Asserts that outs are as near to the truth as the op's contract demands, and no NaN."""
    spec = ops.specs()[op]
    filled = _defaults(op) | bound
    axes = spec.check(filled)
    cpu = {n: x.cpu() if isinstance(x, torch.Tensor) else x for n, x in filled.items()}
    for got, want in zip(outs, truth(op, bound), strict=True):
        assert got.shape == want.shape
        if want.numel() == 0:
            continue
        dtype, got = got.dtype, got.double().cpu()
        if want.dim() == bound[spec.args[0].name].dim() - 1:  # lse
            hidden = want == -torch.inf
            assert torch.equal(got == -torch.inf, hidden)
            low = max(
                ROUNDOFF[x.dtype]
                for x in bound.values()
                if isinstance(x, torch.Tensor) and x.dtype in ROUNDOFF
            )
            near = 1e-5 if low < 1e-6 else 4 * low
            assert float((got - want)[~hidden].abs().max() if (~hidden).any() else 0) <= near
            continue
        assert torch.isfinite(got).all()
        error = (got - want).square().mean().sqrt()
        allowed = spec.tolerance(dtype, axes, cpu) * want.square().mean().sqrt()
        assert error <= allowed, f"{op}: RMS error {error:.3g}, allowed {allowed:.3g}"
