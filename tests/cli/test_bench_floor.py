# SPDX-License-Identifier: Apache-2.0
"""The floor: of all bytes, of every dtype's products, where a kernel would read."""

from types import SimpleNamespace

import pytest
import torch

from headrace import bench
from headrace.bench import beside, rates, timing
from tests.cli.toy import of, toy


def test_the_floor_goes_by_the_dtype_of_the_products(monkeypatch):
    """Twice the rate, half the floor, of as many products."""
    rates = {torch.float32: 1e4, torch.bfloat16: 2e4, torch.int8: 4e4}
    monkeypatch.setattr(timing.MultiplyAdds, "rate", lambda self, dtype: rates[dtype])
    made = [toy(product=dtype) for dtype in rates]
    monkeypatch.setattr(bench, "cases", lambda *_: made)
    rows = bench.run("linear", True, peers=True, budget=1e-3)
    assert [row.floor_s for row in rows] == [1e3 / rate for rate in rates.values()]
    assert [row.product for row in rows] == ["fp32", "bf16", "int8"]
    assert [row.beside[1].warm_s for row in rows] == [row.floor_s for row in rows]
    assert [row.beside[1].cold_s for row in rows] == [row.floor_s for row in rows]


STATES_IN_FP32 = ("append_absorb", "causal_conv", "frame_delta_rule", "gated_delta_rule",
                  "linear_attention")  # fmt: skip
PRODUCTS = ("attention", "attention_mass", "assign", "block_score", "hstu_attention", "linear",
            "lora", "lora_rows", "paged_attention")  # fmt: skip


@pytest.mark.parametrize("op", [*STATES_IN_FP32, *PRODUCTS])
def test_products_are_of_the_wider_of_two_inputs(op):
    """bf16 with a state or taps of fp32 is fp32; codes with bf16 are bf16, or whole numbers."""
    for case in bench.cases(op, quick=True):
        name = case.shape
        want = torch.bfloat16 if "fp32" not in name else torch.float32
        if op in STATES_IN_FP32 or name.startswith(("cos 576", "l2")):
            want = torch.float32
        if name.startswith(("hamming", "decode int8")):
            want = torch.int8
        if not name.startswith("bits"):
            assert case.product == want, (op, name)


def test_multiply_adds_are_counted_at_every_level_and_dtype():
    from headrace import _C

    best = timing.MultiplyAdds()
    try:
        for level in _C.available_isas():
            _C.force_isa(level)
            for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8):
                before = best.rate(dtype)
                assert before > 1e8
                assert best.rate(dtype) >= before  # the most that was seen
    finally:
        _C.force_isa("")


def test_the_floor_reads_what_a_kernel_would(monkeypatch):
    """All bytes, in the same memory again or in other memory for as many calls as the case has."""
    read = []
    monkeypatch.setattr(timing, "_C", SimpleNamespace(read_seconds=lambda *a: read.append(a)))
    size = 5 << 20
    for turns in (3, 1):
        run = timing.reader(size, turns)
        read.clear()
        for _ in range(2 * turns):
            run()
        starts = [at for at, *_ in read]
        assert starts == [starts[0] + i * size for i in range(turns)] * 2
        assert {told[1:] for told in read} == {(size // 4, 0, torch.get_num_threads())}


def test_what_is_written_in_place_takes_no_other_memory(monkeypatch):
    read = []
    monkeypatch.setattr(timing, "_C", SimpleNamespace(read_seconds=lambda *a: read.append(a)))
    size, again = 5 << 20, 2 << 20
    run = timing.reader(size, 2, again)
    read.clear()
    run(), run()
    (first, *told), (then, *same) = read
    assert then - first == size - again
    assert told == same == [(size - again) // 4, again // 4, torch.get_num_threads()]


def test_what_a_kernel_reads_is_read_where_it_lies(monkeypatch):
    """The rest, such as its result, beside it. What holds few of the bytes is not read."""
    read = []
    monkeypatch.setattr(timing, "_C", SimpleNamespace(read_seconds=lambda *a: read.append(a)))
    own, rest = torch.zeros(5 << 18), 1 << 20
    for size in (own.nbytes + rest, own.nbytes - 64, 2 * own.nbytes + 64):
        timing.reader(size, own=own)()
    (first, *told), (again, *less), (other, *_) = read
    assert first == again == own.data_ptr() != other
    threads = torch.get_num_threads()
    assert told == [own.nbytes // 4, rest // 4, threads]
    assert less == [own.nbytes // 4, 0, threads]


def test_the_floor_of_a_layer_reads_its_weights(monkeypatch):
    case = of("linear")
    taken = []
    monkeypatch.setattr(rates, "reader", lambda *a: taken.append(a) or (lambda: (1e-6, None)))
    bench.measure(case, 1e-3, 1e9, 1e9, beside.compared(case))
    assert [a[-1] is not None and a[-1].shape for a in taken] == [(2048, 2048)]


def test_few_bytes_are_read_by_one_thread_where_that_is_quicker(clock, monkeypatch):
    monkeypatch.setattr(timing.torch, "get_num_threads", lambda: 4)
    for slower in (1, 4):
        used = []

        def read(at, words, again, threads, slower=slower, used=used):
            used.append(threads)
            clock(0.002 if threads == slower else 0.001)

        monkeypatch.setattr(timing, "_C", SimpleNamespace(read_seconds=read))
        timing.reader(1 << 16)()
        assert used[-1] == 5 - slower
        assert {1, 4} == set(used)
