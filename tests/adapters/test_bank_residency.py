# SPDX-License-Identifier: Apache-2.0
"""The bank: who is evicted, and what a step finds room for."""

import pytest
import torch

import headrace
from headrace.adapters import bank_loader

from .bank_weights import X, adapter, bank_of, dense, packed, state, update


def test_what_is_in_use_is_never_evicted_and_the_rest_oldest_first():
    with bank_of(slots=3) as bank:
        first = [bank.load_tensors(*adapter(i, 2), name=f"a{i}") for i in range(3)]
        bank.pin("a0")
        with bank.route([bank.find("a1")], [1]):
            bank.load_tensors(*adapter(3, 2), name="a3")
            assert {r.revision for r in bank.residents()} == {*first[:2], bank.find("a3").revision}
            before = state(bank)
            config = adapter(4, 2)
            with pytest.raises(ValueError, match=r"\(adapters\): expected 2 free slots.* got 1"):
                bank._seats.admit("load", [bank.find("a2"), packed(*config)])
            assert state(bank) == before
            with pytest.raises(ValueError, match="got one in a step"):
                bank.unload("a1")
        with pytest.raises(ValueError, match="got a pinned one"):
            bank.unload("a0")
        bank.unpin("a0")
        bank.unload("a0")
        bank.unload("a0")
        assert bank.free_slots == 1


def test_large_adapters_push_as_many_out_as_it_takes():
    with bank_of(slots=8, rank_rows=24) as bank:
        for i in range(6):
            bank.load_tensors(*adapter(i, 4), name=f"a{i}")
        assert bank.free_rows == 0
        bank.load_tensors(*adapter(9, 12), name="big")
        assert bank.stats.evictions == 3
        assert bank.free_rows == 0
        got = update(bank, "q.0", "big", X, 64)
        torch.testing.assert_close(
            got.double(), dense(*adapter(9, 12), "q.0", X), atol=1e-5, rtol=1e-5
        )


def test_freed_rows_are_poisoned_and_loads_touch_only_their_own():
    with headrace.debug(), bank_of() as bank:
        bank.load_tensors(*adapter(1, 5), name="a")
        site = bank._seats.sites["q.0"]
        (one,) = bank.residents()
        mine = [row for f, n in one.extents for row in range(f, f + n)]
        others = [row for row in range(24) if row not in mine]
        assert site.a[others].isnan().all()
        assert not site.a[mine].isnan().any()
        kept = site.a[mine].clone(), site.b[mine].clone()
        bank.load_tensors(*adapter(2, 7), name="b")
        bank.unload("b")
        assert site.a[others].isnan().all()
        assert site.b[others].isnan().all()
        assert torch.equal(site.a[mine], kept[0])
        assert torch.equal(site.b[mine], kept[1])
        route = bank.route([bank.find("a")], [1])
        with route:
            one = bank.residents()[0]
        bank.unload("a")
        assert site.a.isnan().all()
        with pytest.raises(ValueError, match=r"ranks\): expected 0 to .* got -1"):
            route.add_to("q.0", X[:1], torch.zeros(1, 64))  # a slot that is nobody's


@pytest.mark.usefixtures("threaded")
def test_waves_take_residents_first_and_leave_room_to_load_beside():
    with bank_of(slots=4, rank_rows=24) as bank:
        made = [bank.find(packed(*adapter(i, 2))) for i in range(9)]
        assert bank.waves([*made[:4], None, made[0]]) == [[0, 1, 2, 3, 4, 5]]
        bank.load(made[7])
        bank.load(made[2])
        waves = bank.waves([*made, None])
        assert sorted(i for w in waves for i in w) == list(range(10))
        assert waves[0][0] == 9
        assert {2, 7} <= set(waves[0])
        room = 2 if bank_loader.SMALL == 0 else 4
        assert all(len({*w} - {9}) <= room for w in waves)
        wide = [bank.find(packed(*adapter(20 + i, 12))) for i in range(3)]
        assert [len(w) for w in bank.waves(wide)] == ([1, 1, 1] if room == 2 else [2, 1])
        for wave, after in zip(waves, [*waves[1:], []], strict=True):
            mine = [[*made, None][i] for i in wave]
            with bank.route(mine, [1] * len(mine), [[*made, None][i] for i in after]) as route:
                for site in ("q.0", "q.1"):
                    route.add_to(site, X[: len(mine)], torch.zeros(len(mine), 64))
