# SPDX-License-Identifier: Apache-2.0
"""Large pools ask for huge pages, small ones do not."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from headrace import buffers
from headrace.memory import PagePool

SMAPS = Path("/proc/self/smaps")


def advised(x: Tensor) -> bool:
    """Whether the mapping of the middle of x carries the flag of huge pages."""
    middle, inside = x.data_ptr() + x.nbytes // 2, False
    for line in SMAPS.read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            low, high = (int(part, 16) for part in head.split("-"))
            inside = low <= middle < high
        elif inside and head == "VmFlags:":
            return "hg" in line.split()
    raise AssertionError("no mapping holds the tensor")


@pytest.mark.skipif(
    not SMAPS.exists() or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="needs Linux with transparent huge pages",
)
def test_a_layer_of_8_mib_is_advised():
    large = PagePool(1, 64, 8, 128, 64, torch.bfloat16)
    assert large.k.nbytes == 8 << 20
    assert advised(large.k)
    assert advised(large.v)


def test_only_large_layers_are_asked_for(monkeypatch):
    """Many small layers fill up one by one, so that a huge page of each would be mostly waste."""
    asked = []
    monkeypatch.setattr(buffers._C, "prefer_huge_pages", lambda *given: asked.append(given))
    PagePool(16, 8, 8, 128, 64, torch.bfloat16)
    assert not asked
    large = PagePool(2, 64, 8, 128, 64, torch.bfloat16)
    assert asked == [(x.data_ptr(), x.nbytes) for x in (large.k, large.v)]


def test_a_hint_leaves_the_tensor_as_it_is():
    x = torch.arange(4 << 20, dtype=torch.float32)
    assert buffers.huge(x) is x
    assert torch.equal(x, torch.arange(4 << 20, dtype=torch.float32))
    strided = x.view(2, -1).T
    assert buffers.huge(strided) is strided
