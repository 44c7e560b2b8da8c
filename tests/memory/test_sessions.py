# SPDX-License-Identifier: Apache-2.0
"""Any sequence of session operations, against a model that knows only lists of tokens."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace import InCache, Sink, Window, wrap
from headrace.memory import view


class Recorder:
    """A model of one layer whose values are the tokens themselves, so that a page can be read."""

    config = SimpleNamespace(vocab=256, layers=1, kv_heads=1, head_dim=16)
    inv_freq = torch.ones(8, dtype=torch.float64)
    broken = False

    def sink_logits(self, layer):
        return None

    def __call__(self, tokens, attend, linear):
        value = tokens.float()[:, None, None].repeat(1, 1, 16)
        attend(0, value, value, value)
        if self.broken:
            raise KeyboardInterrupt
        return torch.zeros(len(tokens), 256)


class Sessions(RuleBasedStateMachine):
    @initialize(sinks=st.integers(0, 20), window=st.integers(1, 50) | st.none())
    def begin(self, sinks, window):
        self.sinks, self.window = sinks, window
        self.model, self.serial = Recorder(), random.Random(0)
        self.engine = wrap(
            self.model, memory=Sink(sinks) + Window(window), positions=InCache(), page_size=16,
            chunk=24, pool_pages=48,
        )  # fmt: skip
        self.streams = []  # [stream, tokens]
        self.marks = []  # [mark, stream, tokens]

    def some(self, data, things):
        # By index: hypothesis keeps what it draws, and a mark that is kept holds its pages.
        return things[data.draw(st.integers(0, len(things) - 1))]

    def alive(self, history):
        """What the next query sees."""
        at = len(history)
        first = 0 if self.window is None else at - self.window + 1
        return [(j, x) for j, x in enumerate(history) if j < self.sinks or j >= first]

    @precondition(lambda self: len(self.streams) < 4)
    @rule()
    def open(self):
        self.streams.append([self.engine.open(), []])

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), broken=st.sampled_from([False, False, False, True]))
    def step(self, data, broken):
        chosen = data.draw(st.lists(st.integers(0, len(self.streams) - 1), unique=True, min_size=1))
        counts = [data.draw(st.integers(1, 5) | st.integers(0, 40)) for _ in chosen]
        fed = [[self.serial.randrange(256) for _ in range(n)] for n in counts]
        batch = {self.streams[i][0]: x for i, x in zip(chosen, fed, strict=True)}
        self.model.broken = broken
        if broken and any(counts):
            with pytest.raises((KeyboardInterrupt, ValueError)):
                self.engine.step(batch)
            return
        try:
            self.engine.step(batch)
        except ValueError as error:
            assert "pool_pages" in str(error)  # noqa: PT017
            return
        for i, x in zip(chosen, fed, strict=True):
            self.streams[i][1] += x

    @precondition(lambda self: self.streams and len(self.streams) < 4)
    @rule(data=st.data())
    def fork(self, data):
        stream, history = self.some(data, self.streams)
        self.streams.append([stream.fork(), list(history)])

    @precondition(lambda self: self.streams and len(self.marks) < 4)
    @rule(data=st.data())
    def mark(self, data):
        stream, history = self.some(data, self.streams)
        self.marks.append([stream.mark(), stream, list(history)])

    @precondition(lambda self: any(not m[1].closed for m in self.marks))
    @rule(data=st.data())
    def rollback(self, data):
        mark, stream, then = self.some(data, [m for m in self.marks if not m[1].closed])
        stream.rollback(mark)
        next(pair for pair in self.streams if pair[0] is stream)[1][:] = then

    @precondition(lambda self: self.marks)
    @rule(data=st.data(), by_hand=st.booleans())
    def forget(self, data, by_hand):
        index = data.draw(st.sampled_from(range(len(self.marks))))
        mark = self.marks.pop(index)[0]
        if by_hand:
            mark.release()

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def close(self, data):
        index = data.draw(st.sampled_from(range(len(self.streams))))
        self.streams.pop(index)[0].close()

    @invariant()
    def contents_are_those_of_the_model(self):
        written = self.engine.pool.v[0, :, 0, :, 0].tolist()
        for stream, history in [*self.streams, *((m[0], m[2]) for m in self.marks)]:
            table = stream._lease.table
            assert table.tokens == len(history)
            read = []
            for row in view.entries(table, oldest=table.end):
                slots = written[row[view.PAGE]][row[view.FIRST] :][: row[view.COUNT]]
                read += [(row[view.ORDER] + i, x) for i, x in enumerate(slots)]
            assert read == self.alive(history)

    @invariant()
    def pages_in_use_are_those_of_live_holders(self):
        leases = [s._lease for s, _ in self.streams] + [m[0]._lease for m in self.marks]
        held = Counter(page for lease in leases for page in lease.table.page_ids)
        pool = self.engine.pool
        assert {p: pool.holders(p) for p in range(pool.pages) if pool.holders(p)} == dict(held)
        assert pool.live_pages == len(held)
        assert sorted([*pool._free, *held]) == list(range(pool.pages))

    @invariant()
    def tables_stay_short(self):
        plan = self.engine.plan
        for stream, _ in self.streams:
            table = stream._lease.table
            kept = [stop for _, stop in table.window_spans()]
            if self.window is not None:
                spare = len(kept) - plan.window_pages(16)
                assert all(stop > table.end - self.window + 1 for stop in kept[: max(0, spare)])


Sessions.TestCase.settings = settings(
    max_examples=60, stateful_step_count=80, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
TestSessions = Sessions.TestCase
