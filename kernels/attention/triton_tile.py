# SPDX-License-Identifier: Apache-2.0
"""Pieces that the Triton attention kernels share: angles, one tile of online softmax, its end.

Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from headrace.kernels.common.triton import product

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def phase_step(freq):
    """fp64 frequency (radians a step) -> int64 fraction of a turn a step, in units of 2**-64.

    A distance times this, wrapping at 2**64, is the angle modulo a whole turn with nothing lost: a
    distance of millions costs no more accuracy than one of 1. Whole turns a step drop out.
    """
    turns = freq * 0.15915494309189535
    turns -= tl.floor(turns + 0.5)
    return (turns * 18446744073709551616.0).to(tl.int64)


@triton.jit
def cos_sin(phase):
    """cos and sin, fp32, of an int64 phase. Only what is left of an eighth of a turn is rounded."""
    t = (phase >> 32).to(tl.int32)
    # 64-bit here: the sum may pass 2**31.
    quarter = ((t.to(tl.int64) + (1 << 29)) >> 30).to(tl.int32)
    r = (t.to(tl.int64) - (quarter.to(tl.int64) << 30)).to(tl.float32) * 1.4629180792671596e-9
    z = r * r
    s = r + r * z * (-1.6666654611e-1 + z * (8.3321608736e-3 + z * -1.9515295891e-4))
    c = (
        1.0
        - 0.5 * z
        + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
    )
    swap = (quarter & 1) != 0
    cosine = tl.where(swap, s, c)
    sine = tl.where(swap, c, s)
    cosine = tl.where(((quarter + 1) & 2) != 0, -cosine, cosine)
    sine = tl.where((quarter & 2) != 0, -sine, sine)
    return cosine, sine


@triton.jit
def decode(codes, FORMAT: tl.constexpr):
    """Codes as numbers: int8 as they are (FORMAT 3), bits of e4m3 (4) as fp32; floats stay.

    e4m3 moved into fp16 reads as 2**-8 of its value, subnormals included; 0x7f is NaN.
    """
    if FORMAT == 4:
        bits = codes.to(tl.int16)
        magnitude = bits & 0x7F
        half = ((magnitude << 7) | ((bits & 0x80) << 8)).to(tl.float16, bitcast=True)
        value = half.to(tl.float32) * 256.0
        value = tl.where(magnitude == 0x7F, float("nan"), value)
    else:
        value = codes
    return value


@triton.jit
def encode(x, FORMAT: tl.constexpr):
    """The nearest code, ties to even, saturated; a NaN is 0 in int8 (FORMAT 3), NaN in e4m3 (4)."""
    if FORMAT == 3:
        x = tl.where(x == x, tl.minimum(tl.maximum(x, -127.0), 127.0), 0.0)
        code = ((x + 12582912.0) - 12582912.0).to(tl.int8)  # 1.5 * 2**23: the sum is whole
    else:
        u = x.to(tl.int32, bitcast=True)
        a = u & 0x7FFFFFFF
        # The last bit of the sum counts 2**-9, the smallest code.
        low = (tl.abs(x) + 24576.0).to(tl.int32, bitcast=True) & 0xF
        normal = ((a + 0x7FFFF + ((a >> 20) & 1)) >> 20) - 960
        magnitude = tl.where(a < 0x3C800000, low, normal)
        magnitude = tl.where(a > 0x43E00000, 0x7E, magnitude)
        magnitude = tl.where(a >= 0x7F800000, 0x7F, magnitude)
        code = (magnitude | ((u >> 24) & 0x80)).to(tl.uint8)
    return code


@triton.jit
def own_scale(x, FORMAT: tl.constexpr):
    """Scale [T] of rows x [T, D]: largest magnitude over largest code, NaN if not finite."""
    a = tl.abs(x)
    fine = tl.min((a < float("inf")).to(tl.int32), 1) > 0
    top = tl.max(tl.where(a < float("inf"), a, 0.0), 1)
    step = top / (127.0 if FORMAT == 3 else 448.0)
    step = tl.where(top < 7.888609052210118e-31, 0.0, step)  # 2**-100
    return tl.where(fine, step, float("nan"))


@triton.jit
def soft_cap(x, cap):
    """cap * tanh(x / cap). A series where 1 - exp would cancel."""
    y = x / cap
    a = tl.abs(y)
    e = tl.exp2(a * (-2.0 * LOG2E))
    far = (1.0 - e) / (1.0 + e)
    z = y * y
    near = a * (1.0 + z * (-1.0 / 3 + z * (2.0 / 15 + z * (-17.0 / 315 + z * (62.0 / 2835)))))
    t = tl.where(a < 0.25, near, far)
    return cap * tl.where(y < 0, -t, t)


@triton.jit
def fold(
    q,
    k,
    v,
    seen,
    acc,
    m,
    l,
    scale,
    softcap,
    CAPPED: tl.constexpr,
    MASKED: tl.constexpr,
    LOW: tl.constexpr,
    k_by=1.0,
    v_by=1.0,
    CODES: tl.constexpr = False,
    rest=None,
):
    """Takes one tile of keys [D, N] and values [N, D] into the running state of rows q [M, D].

    With CODES they are codes, k_by and v_by [N] their scales; it must be MASKED then.

    m and l are the maximum (of logits times log2 e) and the sum. rest: what q lost when it was
    rounded, in its dtype. Values of keys that no row sees must come in as 0: their weight is 0, but
    0 times NaN is not.
    """
    s = product(q, k, LOW)
    if rest is not None:
        s += product(rest, k, LOW)
    s *= scale
    if CODES:
        s *= k_by[None, :]
    if CAPPED:
        s = soft_cap(s, softcap)
    s *= LOG2E
    if MASKED:
        s = tl.where(seen, s, float("-inf"))
    top = tl.maximum(m, tl.max(s, 1))
    base = tl.where(top == float("-inf"), 0.0, top)
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(m - base)
    l = l * shrink + tl.sum(p, 1)
    if CODES:  # a scale that is NaN is for those who see it
        p = tl.where(seen, p * v_by[None, :], 0.0)
    acc = acc * shrink[:, None] + product(p.to(v.dtype) if LOW else p, v, LOW)
    return acc, top, l


@triton.jit
def finish(acc, m, l, sink, HAS_SINK: tl.constexpr):
    """Output rows and natural lse. The learned sink joins the denominator here and nowhere else."""
    empty = l == 0.0
    weight = 1.0 / tl.where(empty, 1.0, l)
    if HAS_SINK:
        b = sink * LOG2E
        top = tl.maximum(m, b)
        mine = tl.exp2(m - top)
        weight = tl.where(empty, 0.0, mine / tl.where(empty, 1.0, l * mine + tl.exp2(b - top)))
    o = acc * weight[:, None]
    lse = tl.where(empty, float("-inf"), m * LN2 + tl.log(tl.where(empty, 1.0, l)))
    return tl.where(empty[:, None], 0.0, o), lse


@triton.jit
def join(acc, m, l, acc_b, m_b, l_b):
    """The running state over the keys of two."""
    top = tl.maximum(m, m_b)
    base = tl.where(top == float("-inf"), 0.0, top)
    a, b = tl.exp2(m - base), tl.exp2(m_b - base)
    return acc * a[:, None] + acc_b * b[:, None], top, l * a + l_b * b
