# SPDX-License-Identifier: Apache-2.0
"""The bank against a dictionary: any order of loads, steps, pins, evictions and errors."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import headrace
from headrace import AdapterBank
from headrace.adapters import AdapterConfig, Base
from headrace.adapters.blob import Adapter
from headrace.adapters.packing import pack

BASE = Base("toy", {"layers.0.q": (6, 4), "layers.0.v": (5, 4), "layers.1.q": (6, 4)})
SLOTS, ROWS = 4, 12
RANKS = (1, 2, 3, 5, 7, 4, 2, 8)


def made(i):
    g = torch.Generator().manual_seed(i)
    tensors = {}
    for name, (n, k) in list(BASE.modules.items())[i % 2 :]:
        tensors[f"{name}.a"] = torch.randn(RANKS[i], k, generator=g)
        tensors[f"{name}.b"] = torch.randn(n, RANKS[i], generator=g)
    config = AdapterConfig.of("toy", tensors, alpha=2.0 * RANKS[i])
    digest, blob = pack("made", config, tensors)
    return Adapter("made", blob, digest.hex()), config, tensors


MADE = [made(i) for i in range(len(RANKS))]
some = st.integers(0, len(MADE) - 1)


class Machine(RuleBasedStateMachine):
    """model: what is resident, least recently used first (all costs are made equal), and pins."""

    def __init__(self):
        super().__init__()
        self.debug = headrace.debug()
        self.debug.__enter__()
        self.bank = AdapterBank(BASE, slots=SLOTS, rank_rows=ROWS, max_rank=8, background=False)
        self.bank._seats._cost = lambda adapter: 1.0
        self.order: list[int] = []
        self.pins: set[int] = set()
        self.names: dict[str, int] = {}
        self.open: list[int] = []  # revisions that streams keep

    def teardown(self):
        self.bank.close()
        self.debug.__exit__(None, None, None)

    def wants(self, wanted, touch):
        """What the dictionary says of making `wanted` resident; False where there is no room."""
        fresh = [i for i in dict.fromkeys(wanted) if i not in self.order]
        out = [i for i in self.order if i not in self.pins and i not in wanted]
        order = list(self.order)
        while fresh and (
            len(order) + len(fresh) > SLOTS or sum(RANKS[i] for i in [*order, *fresh]) > ROWS
        ):
            if not out:
                return False
            order.remove(out.pop(0))
        self.order = order + fresh
        if touch:
            for i in dict.fromkeys(wanted):
                self.order.remove(i)
                self.order.append(i)
        return True

    @rule(i=some, name=st.sampled_from("abc"), wait=st.booleans())
    def load(self, i, name, wait):
        before = list(self.order)
        if self.wants([i], touch=False):
            assert self.bank.load(MADE[i][0], name=name, wait=wait) == MADE[i][0].revision
            self.names[name] = i
        else:
            with pytest.raises(ValueError, match=r"AdapterBank\.load"):
                self.bank.load(MADE[i][0], name=name)
            assert self.order == before

    @rule(i=some)
    def refuse(self, i):
        _, config, tensors = MADE[i]
        with pytest.raises(ValueError, match="finite"):
            self.bank.load_tensors(config, tensors | {"layers.1.q.a": tensors["layers.1.q.a"] / 0})

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def stream_opens(self, data):
        name = data.draw(st.sampled_from(sorted(self.names)))
        found = self.bank.find(name)
        assert found is MADE[self.names[name]][0]
        self.open.append(self.names[name])

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def stream_closes(self, data):
        self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def step(self, data):
        """Some streams and rows without adapter in one route; each gets what its own means."""
        mine = data.draw(st.lists(st.sampled_from([*self.open, None]), min_size=1, max_size=4))
        counts = data.draw(st.lists(st.integers(0, 3), min_size=len(mine), max_size=len(mine)))
        adapters = [None if i is None else MADE[i][0] for i in mine]
        if not self.wants([i for i in mine if i is not None], touch=True):
            with pytest.raises(ValueError, match=r"step\(adapters\)"):
                self.bank.route(adapters, counts)
            return
        with self.bank.route(adapters, counts) as route:
            for name, (n, k) in BASE.modules.items():
                x = torch.randn(sum(counts), k)
                y = torch.randn(sum(counts), n)
                got, want = y.clone(), y.double()
                at = 0
                for i, count in zip(mine, counts, strict=True):
                    tensors = {} if i is None else MADE[i][2]
                    if f"{name}.a" in tensors:
                        part = x[at : at + count].double() @ tensors[f"{name}.a"].T.double()
                        want[at : at + count] += 2 * part @ tensors[f"{name}.b"].T.double()
                    at += count
                if name in route.sites:
                    route.add_to(name, x, got)
                torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-4)

    @rule(i=some)
    def pin(self, i):
        if self.wants([i], touch=False):
            self.bank.pin(MADE[i][0])
            self.pins.add(i)
        else:
            with pytest.raises(ValueError, match=r"AdapterBank\.load"):
                self.bank.pin(MADE[i][0])

    @rule(i=some)
    def unpin(self, i):
        self.bank.unpin(MADE[i][0])
        self.pins.discard(i)

    @rule(i=some)
    def unload(self, i):
        if i in self.pins:
            with pytest.raises(ValueError, match="pinned"):
                self.bank.unload(MADE[i][0])
            return
        self.bank.unload(MADE[i][0])
        if i in self.order:
            self.order.remove(i)

    @invariant()
    def agrees(self):
        bank, seats = self.bank, self.bank._seats
        there = bank.residents()
        index = {m[0].revision: i for i, m in enumerate(MADE)}
        assert {index[one.revision] for one in there} == set(self.order)
        assert {index[one.revision] for one in there if one.pinned} == self.pins
        assert not any(one.holds for one in there)
        by_worth = sorted(there, key=lambda one: (one.worth, one.used))
        assert [index[one.revision] for one in by_worth] == self.order
        slots = [one.slot for one in there] + list(seats.free_slots)
        assert sorted(slots) == list(range(SLOTS))
        rows = [r for one in there for f, n in one.extents for r in range(f, f + n)]
        rows += [r for f, n in seats.rows.runs() for r in range(f, f + n)]
        assert sorted(rows) == list(range(ROWS))
        for site in seats.sites.values():
            for first, count in seats.rows.runs():
                assert site.a[first : first + count].isnan().all()
                assert site.b[first : first + count].isnan().all()
            assert (site.ranks[list(seats.free_slots)] == -1).all()


Machine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestBank = Machine.TestCase
