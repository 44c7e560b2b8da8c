# SPDX-License-Identifier: Apache-2.0
"""What paged_attention says to wrong arguments."""

from __future__ import annotations

import re

import pytest
import torch
from headrace.kernels.attention.reference import CAP, COUNT, FIRST, PAGE, REACH

from headrace import ops
from tests.ops import samples
from tests.ops.paged import NAMES
from tests.ops.samples import UNLIMITED, StreamShape

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")
OP = "paged_attention"


def put(name, where, value):
    def change(named):
        named[name] = named[name].clone()
        named[name][where] = value

    return change


def use(name, f):
    return lambda named: named.update({name: f(named[name])})


def bad_dim(named):
    for name in ("q", "k_pages", "v_pages"):
        x = named[name]
        named[name] = torch.zeros(*(40 if n == 32 else n for n in x.shape))
    named["inv_freq"] = None


def bad_page(named):
    named["k_pages"] = named["k_pages"][..., :24].contiguous()
    named["v_pages"] = named["v_pages"][:, :, :24].contiguous()


def no_lists_of_one_head(named):
    named["k_pages"], named["v_pages"] = named["k_pages"][:, :1], named["v_pages"][:, :1]
    named["entry_indptr"] = named["entry_indptr"][:1]


def error_sample():
    args, kwargs = samples.paged(
        29, [StreamShape(40, 5), StreamShape(9, 1)], dim=32, page_size=64, kv_heads=2, group=2
    )
    named = dict(zip(NAMES, args, strict=True)) | kwargs
    named["k_pages"], named["v_pages"] = named["k_pages"][:6].clone(), named["v_pages"][:6].clone()
    named["entries"][:, PAGE] %= 6
    named["entries"][:, FIRST] = 0
    return named


FLOATS = "expected one of float32, bfloat16, float16, got "
ENTRY = "paged_attention(entries): expected "
WITHIN = ENTRY + "first and count within a page of 64 slots, got first "
NOT_NEGATIVE = ENTRY + "reach and cap of 0 or more, got reach "
ERRORS = [
    (use("q", torch.Tensor.double), TypeError, f"paged_attention(q): {FLOATS}float64"),
    (use("k_pages", torch.Tensor.int), TypeError,
     "paged_attention(k_pages): expected one of float32, bfloat16, float16, int8, float8_e4m3fn,"
     " got int32"),
    (use("v_pages", torch.Tensor.half), TypeError,
     "paged_attention(v_pages): expected float32, as k_pages, got float16"),
    (use("entries", torch.Tensor.int), TypeError,
     "paged_attention(entries): expected int64, got int32"),
    (use("entry_indptr", torch.Tensor.long), TypeError,
     "paged_attention(entry_indptr): expected int32, got int64"),
    (use("q_indptr", torch.Tensor.long), TypeError,
     "paged_attention(q_indptr): expected int32, got int64"),
    (use("q_pos", torch.Tensor.int), TypeError,
     "paged_attention(q_pos): expected int64, got int32"),
    (use("inv_freq", torch.Tensor.float), TypeError,
     "paged_attention(inv_freq): expected float64, got float32"),
    (use("q_pos", torch.Tensor.tolist), TypeError,
     "paged_attention(q_pos): expected a tensor, got list"),
    (lambda n: n.update(scale="1"), TypeError,
     "paged_attention(scale): expected a number, got str"),
    (lambda n: n.update(split=1.5), TypeError,
     "paged_attention(split): expected an integer, got float"),
    (use("q", lambda x: x[0]), ValueError,
     "paged_attention(q): expected 3 axes [T Hq D], got shape (4, 32)"),
    (use("k_pages", lambda x: x[:, :, :16]), ValueError,
     "paged_attention(k_pages): expected D = 32 in [N Hp D P], got shape (6, 2, 16, 64)"),
    (use("v_pages", lambda x: x[:5]), ValueError,
     "paged_attention(v_pages): expected N = 6 in [N Hp P D], got shape (5, 2, 64, 32)"),
    (use("entries", lambda x: x[:, :6].contiguous()), ValueError,
     "paged_attention(entries): expected 7 or 11 in [E 7|11], got shape (2, 6)"),
    (use("entry_indptr", lambda x: torch.cat([x, x[-1:]])), ValueError,
     "paged_attention(entry_indptr): expected B+1 = 3 or B*Hkv+1 = 5 elements, got 4"),
    (use("entry_indptr", lambda x: x[:1]), ValueError,
     "paged_attention(entry_indptr): expected B+1 = 3 or B*Hkv+1 = 5 elements, got 1"),
    (no_lists_of_one_head, ValueError,
     "paged_attention(entry_indptr): expected B+1 = 3 elements, got 1"),
    (use("entry_indptr", lambda x: x[:0]), ValueError,
     "paged_attention(entry_indptr): expected 1 element or more in [L+1], got shape (0,)"),
    (use("q_pos", lambda x: x[:5]), ValueError,
     "paged_attention(q_pos): expected T = 6 in [T 3?], got shape (5,)"),
    (lambda n: n.update(q_order=n["q_pos"][:5]), ValueError,
     "paged_attention(q_order): expected T = 6 in [T], got shape (5,)"),
    (lambda n: n.update(sink_logits=torch.zeros(2)), ValueError,
     "paged_attention(sink_logits): expected Hq = 4 in [Hq], got shape (2,)"),
    (lambda n: n.update(q_pos=n["q_pos"].to("meta")), ValueError,
     "paged_attention(q_pos): expected a tensor on cpu, got meta"),
    (lambda n: n.update(q=n["q"].mT.contiguous().mT), ValueError,
     "paged_attention(q): expected stride 1 along the last axis, got strides (128, 1, 4);"
     " call .contiguous() first"),
    (lambda n: n.update(entries=n["entries"].T.contiguous().T), ValueError,
     "paged_attention(entries): expected a contiguous tensor, got strides (1, 2)"),
    (use("k_pages", lambda x: x.mT.contiguous().mT), ValueError,
     "paged_attention(k_pages): expected the last two axes contiguous,"
     " got strides (4096, 2048, 1, 32)"),
    (use("q", lambda x: x[:, :3]), ValueError,
     "paged_attention(q): expected query heads that are a multiple of 2 kv heads, got 3"),
    (use("inv_freq", lambda x: torch.cat([x, x])), ValueError,
     "paged_attention(inv_freq): expected at most 16 frequencies, got 32"),
    (lambda n: n.update(softcap=-1.0), ValueError,
     "paged_attention(softcap): expected 0 (off) or a finite number above, got -1.0"),
    (lambda n: n.update(scale=float("nan")), ValueError,
     "paged_attention(scale): expected a finite number or None, got nan"),
    (lambda n: n.update(max_rows=-1), ValueError,
     "paged_attention(max_rows): expected 0 rows or more, or None, got -1"),
    (lambda n: n.update(split=0), ValueError,
     "paged_attention(split): expected 1 token or more, got 0"),
    (bad_dim, NotImplementedError,
     "paged_attention(q): expected one of the head dimensions multiples of 16 from 16 to 256,"
     " got 40"),
    (bad_page, NotImplementedError,
     "paged_attention(k_pages): expected one of page sizes that 16 divides, got 24"),
    (put("entries", (1, PAGE), 6), ValueError, ENTRY + "pages in [0, 6), got 6 in entry 1"),
    (put("entries", (0, PAGE), -1), ValueError, ENTRY + "pages in [0, 6), got -1 in entry 0"),
    (put("entries", (0, FIRST), 25), ValueError, WITHIN + "25 and count 40 in entry 0"),
    (put("entries", (0, FIRST), -1), ValueError, WITHIN + "-1 and count 40 in entry 0"),
    (put("entries", (0, COUNT), -1), ValueError, WITHIN + "0 and count -1 in entry 0"),
    (put("entries", (0, COUNT), 65), ValueError, WITHIN + "0 and count 65 in entry 0"),
    (put("entries", (0, FIRST), 2**63 - 1), ValueError,
     WITHIN + f"{2**63 - 1} and count 40 in entry 0"),
    (put("entries", (0, COUNT), 2**63 - 1), ValueError,
     WITHIN + f"0 and count {2**63 - 1} in entry 0"),
    (put("entries", (1, REACH), -1), ValueError,
     NOT_NEGATIVE + f"-1 and cap {UNLIMITED} in entry 1"),
    (put("entries", (1, CAP), -1), ValueError, NOT_NEGATIVE + f"{UNLIMITED} and cap -1 in entry 1"),
    (put("entry_indptr", 1, 5), ValueError,
     "paged_attention(entry_indptr): expected offsets that rise from 0 to 2, got others"),
    (put("entry_indptr", 0, 1), ValueError,
     "paged_attention(entry_indptr): expected offsets that rise from 0 to 2, got others"),
    (put("entry_indptr", 2, 3), ValueError,
     "paged_attention(entry_indptr): expected offsets that rise from 0 to 2, got others"),
    (put("q_indptr", 1, 7), ValueError,
     "paged_attention(q_indptr): expected offsets that rise from 0 to 6, got others"),
    (put("q_indptr", 1, -1), ValueError,
     "paged_attention(q_indptr): expected offsets that rise from 0 to 6, got others"),
    (lambda n: n["q"].requires_grad_(), ValueError,
     "paged_attention(inputs): expected tensors without requires_grad, got one that requires grad;"
     " the op has no backward; call it under torch.no_grad()"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "text"), ERRORS, ids=[e[2][16:80] for e in ERRORS])
def test_errors(change, kind, text):
    named = error_sample()
    ops.paged_attention(**named)
    change(named)
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        ops.paged_attention(**named)
