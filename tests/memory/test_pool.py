# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from headrace.kernels.attention import reference

from headrace import PagePool
from headrace.memory import view


def test_shapes_and_bytes():
    pool = PagePool(3, 5, 2, 16, page_size=32, dtype=torch.bfloat16)
    assert pool.k.shape == (3, 5, 2, 16, 32)
    assert pool.v.shape == (3, 5, 2, 32, 16)
    assert pool.k.dtype == pool.v.dtype == torch.bfloat16
    assert pool.page_bytes == 2 * 3 * 2 * 16 * 32 * 2
    assert pool.resident_bytes == 0
    pool.take(2)
    assert pool.resident_bytes == 2 * pool.page_bytes


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_scales_of_quantised_pages_count_as_resident(dtype):
    pool = PagePool(3, 5, 2, 16, page_size=32, dtype=dtype)
    (k, v), scales = pool.layer(1)
    assert k.dtype == v.dtype == dtype
    assert {name: x.shape for name, x in scales.items()} == dict.fromkeys(
        ("k_scale", "v_scale"), (5, 2, 32)
    )
    assert scales["v_scale"].data_ptr() == pool.v_scale[1].data_ptr()
    assert pool.page_bytes == 2 * 3 * 2 * 32 * (16 + 4)
    pool.close()
    assert pool.k_scale is pool.v_scale is None


def test_pages_of_floats_have_no_scales():
    assert PagePool(1, 2, 1, 16).layer(0)[1] == {"k_scale": None, "v_scale": None}


def test_lowest_pages_first_and_back_at_the_last_holder():
    pool = PagePool(1, 4, 1, 16)
    assert pool.take(3) == [0, 1, 2]
    pool.hold([1])
    pool.filled[1] = 7
    pool.drop([0, 1, 2])
    assert (pool.live_pages, pool.holders(1), pool.filled[1]) == (1, 1, 7)
    assert pool.take(2) == [0, 2]
    pool.drop([1])
    assert pool.filled[1] == 0
    assert pool.take(2) == [1, 3]


def test_too_few_pages_take_none():
    pool = PagePool(1, 4, 1, 16)
    pool.take(2)
    with pytest.raises(ValueError, match=r"expected 3 free pages, got 2 of 4; raise pool_pages"):
        pool.take(3)
    assert pool.free_pages == 2


@pytest.mark.parametrize(
    ("sizes", "error", "told"),
    [
        ((0, 1, 1, 16), ValueError, r"^PagePool\(layers\): expected 1 or more, got 0$"),
        ((1, 1, 1, 20), NotImplementedError, r"^PagePool\(head_dim\): .* got 20$"),
        ((1, 1, 1, 16, 8), NotImplementedError, r"^PagePool\(page_size\): .* got 8$"),
        ((1, 1, 1, 16, 64, torch.int16), TypeError, r"^PagePool\(dtype\): .* got torch.int16$"),
    ],
)
def test_bad_sizes_get_one_line(sizes, error, told):
    with pytest.raises(error, match=told):
        PagePool(*sizes)


def test_columns_are_those_that_the_kernels_read():
    for name in ("PAGE", "FIRST", "COUNT", "ORIGIN", "CAP", "ORDER", "REACH"):
        assert getattr(view, name) == getattr(reference, name)
