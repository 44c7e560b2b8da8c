# SPDX-License-Identifier: Apache-2.0
"""What the compiled step does to page tables, against the edits in Python that define it."""

import signal
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from headrace import InCache, PagePool, Sink, Window
from headrace.memory import Edit, Lease, Table, View, cut, view
from headrace.memory.regions import compile_plan

CPU = torch.device("cpu")
MEMORIES = [
    Sink(4) + Window(24), Sink(0) + Window(1), Sink(20) + Window(60), Sink(3) + Window(None),
    Window(17),
]  # fmt: skip


class World:
    """A pool, and leases of streams on it."""

    def __init__(self, memory, pages):
        self.pool = PagePool(1, pages, 1, 16, page_size=16)
        self.plan = InCache().place(compile_plan(memory))
        self.leases, self.marks = [], {}

    def state(self):
        pool = self.pool
        return [x.table for x in self.leases], pool.filled, pool._holders, sorted(pool._free)

    def step(self, chosen, counts, keep):
        edit = Edit(self.pool)
        try:
            told, tables = self.advance(edit, [self.leases[i].table for i in chosen], counts)
        except ValueError as error:
            edit.undo()
            return str(error)
        if keep:
            for i, table in zip(chosen, tables, strict=True):
                self.leases[i].table = table
            edit.commit()
        else:
            edit.undo()
        return told


class Compiled(World):
    """As an engine does it: every view is written over the last one where they are as large."""

    def __init__(self, memory, pages):
        super().__init__(memory, pages)
        self.sheet = view.Sheet(CPU)

    def advance(self, edit, tables, counts):
        grown = edit.grow(tables, counts, self.sheet.slots(sum(counts)))
        step = View.after(grown, counts, self.sheet)
        return step, edit.let_go(grown)


class Defined(World):
    def advance(self, edit, tables, counts):
        grown = edit.extend(tables, counts)
        starts = [table.end for table in tables]
        listed = [view.entries(t, at) for (t, _), at in zip(grown, starts, strict=True)]
        step = View.of([where for _, where in grown], listed, starts, CPU)
        return step, [edit.trim(table) for table, _ in grown]


def same(a, b):
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return all(
        getattr(a, x).dtype == getattr(b, x).dtype and torch.equal(getattr(a, x), getattr(b, x))
        for x in ("where", "entries", "entry_indptr", "q_indptr", "q_pos")
    )


STEP = st.tuples(
    st.just("step"), st.lists(st.tuples(st.integers(0, 7), st.sampled_from([1, 1, 1, 2, 7, 33]))),
    st.sampled_from([True, True, True, False]),
)  # fmt: skip
OTHER = st.tuples(
    st.sampled_from(["open", "fork", "close", "back", "mark", "return"]), st.integers(0, 7),
    st.integers(0, 40),
)  # fmt: skip


def play(world, event):
    kind, which, number = event
    leases = world.leases
    if kind == "open" and len(leases) < 8:
        leases.append(Lease(world.pool, Table(number, number, world.plan)))
    if kind == "step":
        counts = {i: n for i, n in which if i < len(leases)}
        return world.step(list(counts), list(counts.values()), number)
    if kind != "open" and which < len(leases):
        lease = leases[which]
        if kind == "fork" and len(leases) < 8:
            leases.append(lease.share())
        if kind == "close":
            leases.pop(which).release()
            world.marks.clear()
        if kind == "mark":
            world.marks[which] = lease.share()
        if kind == "return" and which in world.marks:
            lease.rewind(world.marks[which])
        earlier = kind == "back" and cut(lease.table, max(0, lease.table.tokens - number))
        if earlier:
            to = Lease(world.pool, earlier)
            lease.rewind(to)
            to.release()
    return ""


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(MEMORIES), st.integers(3, 40),
    st.lists(st.one_of(STEP, STEP, STEP, OTHER), min_size=10, max_size=40),
)  # fmt: skip
def test_tables_and_views_are_those_of_the_definition(memory, pages, events):
    compiled, defined = Compiled(memory, pages), Defined(memory, pages)
    for event in [("open", 0, 5), ("open", 0, 0), *events]:
        assert same(play(compiled, event), play(defined, event))
        assert compiled.state() == defined.state()
        assert [list(map(type, t.window)) for t in compiled.state()[0]] == [
            list(map(type, t.window)) for t in defined.state()[0]
        ]


def test_every_step_of_a_long_stream_reads_what_the_definition_says():
    for memory in MEMORIES:
        compiled, defined = Compiled(memory, 40), Defined(memory, 40)
        for event in [("open", 0, 1000), *(("step", [(0, n)], True) for n in [1] * 150 + [3] * 90)]:
            assert same(play(compiled, event), play(defined, event))
            assert compiled.state() == defined.state()


def test_back_at_a_mark_a_stream_sees_again_what_had_gone_out_of_sight():
    worlds = Compiled(Sink(4) + Window(24), 40), Defined(Sink(4) + Window(24), 40)
    for world in worlds:
        play(world, ("open", 0, 0))
        play(world, ("step", [(0, 37)], True))  # the oldest page ends at 20
        play(world, ("mark", 0, 0))
        play(world, ("step", [(0, 8)], True))
        world.later = play(world, ("step", [(0, 3)], True))
        play(world, ("return", 0, 0))
        world.again = play(world, ("step", [(0, 1)], True))
    assert (len(worlds[0].later.entries), len(worlds[0].again.entries)) == (3, 4)
    assert same(worlds[0].later, worlds[1].later)
    assert same(worlds[0].again, worlds[1].again)


def test_what_was_made_of_other_pages_is_not_used():
    for name in ("pinned", "window"):
        worlds = Compiled(MEMORIES[0], 40), Defined(MEMORIES[0], 40)
        for world in worlds:
            play(world, ("open", 0, 0))
            play(world, ("step", [(0, 26)], True))
            play(world, ("step", [(0, 1)], True))
            (lease,) = world.leases
            first, *rest = getattr(lease.table, name)
            lease.table = replace(lease.table, **{name: (first._replace(id=39), *rest)})
            world.told = play(world, ("step", [(0, 1)], True))
        assert same(worlds[0].told, worlds[1].told)


def test_a_fork_leaves_the_last_page_to_one_that_comes_before_it():
    for counts in ([16, 1], [1, 16], [1, 1], [9, 9]):
        worlds = Compiled(MEMORIES[0], 40), Defined(MEMORIES[0], 40)
        told = []
        for world in worlds:
            play(world, ("open", 0, 0))
            play(world, ("step", [(0, 27)], True))
            play(world, ("fork", 0, 0))
            told.append(play(world, ("step", list(enumerate(counts)), True)))
        assert same(*told)
        assert worlds[0].state() == worlds[1].state()


def test_a_pool_too_small_leaves_everything_as_it_was():
    world = Compiled(MEMORIES[0], 4)
    for _ in range(2):
        play(world, ("open", 0, 0))
    play(world, ("step", [(0, 10), (1, 10)], True))
    assert world.pool.free_pages == 0
    before = [list(x) for x in world.state()]
    # The first fits into its last page and is done before the other is found not to.
    assert "expected 1 free pages, got 0 of 4" in play(world, ("step", [(0, 1), (1, 20)], True))
    assert [list(x) for x in world.state()] == before


def test_a_table_made_by_the_step_is_a_table():
    world = Compiled(MEMORIES[0], 8)
    play(world, ("open", 0, 0))
    play(world, ("step", [(0, 6)], True))
    before = world.leases[0].table
    play(world, ("step", [(0, 2)], True))
    after = world.leases[0].table
    assert type(after) is Table
    was, now = ({x: getattr(one, x) for x in Table.__slots__} for one in (before, after))
    assert now == was | {"end": 8}
    assert after.cell is before.cell
    assert before.end == 6  # a table never changes
    with pytest.raises(AttributeError):
        after.end = 9


def test_what_is_no_table_is_refused_before_anything_changes():
    pool = PagePool(1, 4, 1, 16, page_size=16)
    edit = Edit(pool)
    with pytest.raises(AttributeError):
        edit.advance([object()], [1])
    plan = compile_plan(MEMORIES[0])
    with pytest.raises(SystemError):
        edit.advance([Table(0, 8, plan, (), [1])], [1])
    assert (pool.filled, pool.free_pages) == ([0] * 4, 4)


def test_an_interrupt_at_any_moment_leaves_a_pool_that_undo_restores():
    """A timer strikes wherever the step happens to be; what it has done so far is undone."""
    world = Compiled(MEMORIES[0], 200)
    for _ in range(8):
        play(world, ("open", 0, 0))
    play(world, ("step", [(i, 25 + i) for i in range(8)], True))
    chosen, struck = list(range(8)), 0

    def strike(number, frame):
        signal.raise_signal(signal.SIGINT)

    old = signal.signal(signal.SIGALRM, strike)
    try:
        for turn in range(150):
            before = [list(x) for x in world.state()]
            tables = [x.table for x in world.leases]
            edit = Edit(world.pool)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + 4e-6 * turn)
                for _ in range(3):
                    tables, _ = edit.advance(tables, [1 + i % 5 for i in chosen])
                    tables = edit.let_go(tables)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                struck += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            edit.undo()
            assert [list(x) for x in world.state()] == before
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert struck > 10


def test_a_sheet_shows_the_slots_of_the_step_after_one_that_went_no_further():
    sheet = view.Sheet(CPU)
    for step, (tokens, goes_on) in enumerate([(2, True), (5, False), (2, True)]):
        slots = np.frombuffer(sheet.slots(tokens), np.int64)
        slots[:] = range(step, step + len(slots))
        if goes_on:
            sheet.room(tokens, 3, 2)
            assert sheet.view.where.flatten().tolist() == slots.tolist()


def test_a_step_of_as_many_rows_is_written_over_the_last():
    sheet = view.Sheet(CPU)
    sheet.slots(2)
    sheet.room(2, 3, 2)
    first = sheet.view
    sheet.slots(2)
    sheet.room(2, 3, 2)
    assert sheet.view is first
    sheet.room(2, 4, 2)
    assert sheet.view is not first
    assert len(sheet.view.entries) == 4
