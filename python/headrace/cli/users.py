# SPDX-License-Identifier: Apache-2.0
"""`headrace stream --adapters`: many users at once, each with an adapter of its own."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import models
from ..adapters import AdapterBank, AdapterStore
from ..memory import Sink, Window
from ..streams import Stream, wrap
from . import report, users_text, users_view
from .fail import Fail
from .interrupt import STOPS, Guard, ending
from .track import Histogram, Span

FORMAT = "headrace.adapters-report.1"
DEFAULT_TOKENS = 200_000
SESSIONS = 4  # open streams, in units of a step's
EXCLUDED = ("policy", "compare", "demo", "window", "sinks", "plot", "held_out", "pool_pages")


@dataclass
class Group:
    """Users of one kind of adapter. base: the same bytes without adapter."""

    name: str
    users: set[int] = field(default_factory=set)
    mine: Span = field(default_factory=Span)
    base: Span = field(default_factory=Span)


@dataclass
class Figures:
    """What is measured."""

    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    step: Histogram = field(default_factory=Histogram)
    first: dict[str, Histogram] = field(
        default_factory=lambda: {"resident": Histogram(), "cold": Histogram()}
    )


class Users:
    """One run: `--users` of them, whose share of the steps falls with their number as Zipf says."""

    def __init__(self, args: argparse.Namespace, guard: Guard) -> None:
        self.args, self.guard = args, guard
        for name in EXCLUDED:
            if getattr(args, name):
                option = "--" + name.replace("_", "-")
                raise Fail(f"stream({option}): expected none with --adapters, got one")
        report.check_target("stream(--report)", args.report)
        if args.threads:
            torch.set_num_threads(args.threads)
        self._stack = contextlib.ExitStack()
        with guard.waiting():
            self.model = models.load(args.model)
            self.base = Path(args.model).stem
            self.library = users_text.Library(args.adapters, args.files, self.base, self.model)
        config = self.model.config
        self.memory = Sink(config.sinks) + Window(config.window or 252)
        self.number: int = args.users
        self.batch = min(args.batch, self.number)
        self.total: int = args.tokens or DEFAULT_TOKENS
        weights = np.arange(1, self.number + 1, dtype=np.float64) ** -args.zipf
        self._chances = weights / weights.sum()
        self._random = np.random.default_rng(args.seed)
        self.groups: dict[str, Group] = {}
        self.figures = Figures()
        self._sessions: OrderedDict[int, tuple[Stream, Stream]] = OrderedDict()
        self._read: dict[int, int] = {}
        self.started, self.began = report.now(), time.perf_counter()

    def run(self) -> int:
        """Steps to the end, or to what stops it; writes the report; gives the exit status."""
        status, stopped, why = 0, "at the end", ""
        view: users_view.View | None = None
        with self._stack:
            try:
                self._open()
                view = users_view.view(self)
                self._steps(view)
            except STOPS as error:
                status, stopped, why = ending(error)
            self.guard.finish()
            if view is not None:
                with contextlib.suppress(BrokenPipeError):
                    view.close()
            if self.figures.steps:
                report.write(self.document(stopped), self.args.report)
                why = why and f"{why}, after {self.figures.tokens:,} tokens"
                if status == 0:
                    print(f"report: {self.args.report}", flush=True)
        if why:
            print(why, file=sys.stderr)
        return status

    def _open(self) -> None:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-"))
        store = self.library.store or AdapterStore(Path(folder) / "store")
        self._stack.callback(store.close)
        self.library.fill(store, self.number)
        base = store.base(self.base)
        self.bank = AdapterBank(
            base,
            store=store,
            slots=self.args.slots,
            max_rank=self.library.rank,
            rank_rows=self.args.slots * self.library.rank,
            modules=self.library.modules,
            bias=True,
            dora=True,
            weights={n.removesuffix(".weight"): p for n, p in self.model.named_parameters()},
        )
        self._stack.callback(self.bank.close)
        # Pages for every open stream and its twin without adapter, and for what a step adds.
        kept = 4 + (self.model.config.window or 252) + 2 * self.args.chunk
        pages = 2 * self.batch * (SESSIONS + 1) * (kept // 64 + 3)
        engine = wrap(
            self.model,
            memory=self.memory,
            adapters=self.bank,
            chunk=self.args.chunk,
            pool_pages=pages,
        )
        self.engine = self._stack.enter_context(engine)

    def _steps(self, view: users_view.View) -> None:
        while self.figures.tokens < self.total:
            self.guard.check()
            chosen = self._random.choice(
                self.number, self.batch, replace=False, p=self._chances
            ).tolist()
            self._step(chosen)
            view.update()
        view.update(force=True)

    def _step(self, chosen: list[int]) -> None:
        texts = {user: self._text(user) for user in chosen}
        began, fresh = time.perf_counter(), {}
        for user in chosen:
            if user not in self._sessions:
                mine = self.engine.open(adapter=self.library.adapter(user))
                resident = any(r.revision == mine.adapter for r in self.bank.residents())
                fresh[user] = "resident" if resident else "cold"
                self._sessions[user] = mine, self.engine.open()
            self._sessions.move_to_end(user)
        got = self.engine.step({self._sessions[u][0]: text for u, text in texts.items()})
        took = time.perf_counter() - began
        for kind in fresh.values():
            self.figures.first[kind].add(took)
        plain = self.engine.step({self._sessions[u][1]: text for u, text in texts.items()})
        f = self.figures
        f.steps, f.seconds = f.steps + 1, f.seconds + took
        f.step.add(took)
        for user, text in texts.items():
            name = self.library.kind(user)
            group = self.groups.setdefault(name, Group(name))
            group.users.add(user)
            f.tokens += len(text)
            for span, reports, i in ((group.mine, got, 0), (group.base, plain, 1)):
                nll = reports[self._sessions[user][i]].nll
                scored = nll[~nll.isnan()]
                span.add(len(text), len(scored), float(scored.double().sum()), took)
        while len(self._sessions) > SESSIONS * self.batch:
            _, pair = self._sessions.popitem(last=False)
            for stream in pair:
                stream.close()

    def _text(self, user: int) -> bytes:
        at = self._read.get(user, 0)
        self._read[user] = at + self.args.chunk
        return self.library.text(user, at, self.args.chunk)

    def document(self, stopped: str) -> dict[str, Any]:
        """The report."""
        f, stats, config = self.figures, self.bank.stats, self.model.config
        asked = stats.hits + stats.misses
        return {
            "format": FORMAT,
            "command": report.command(),
            "started": self.started,
            "wall_seconds": round(time.perf_counter() - self.began, 3),
            "stopped": stopped,
            "commit": report.commit(),
            "versions": report.versions(),
            "machine": report.machine(),
            "model": {"name": self.base, "layers": config.layers, "window": config.window},
            "adapters": self.library.document(),
            "settings": {
                "users": self.number,
                "zipf": self.args.zipf,
                "streams_per_step": self.batch,
                "chunk": self.args.chunk,
                "slots": self.args.slots,
                "seed": self.args.seed,
                "tokens": self.total,
                "exact": self.engine.exact,
            },
            "tokens": f.tokens,
            "steps": f.steps,
            "tokens_per_second": round(f.tokens / f.seconds, 1),
            "step_ms": users_view.quantiles(f.step),
            "first_token_ms": {k: users_view.quantiles(h) for k, h in f.first.items()},
            "bank": {
                **vars(stats),
                "hit_rate": round(stats.hits / asked, 6) if asked else None,
                "resident": len(self.bank.residents()),
                "loaded_megabytes": round(stats.bytes_loaded / 1e6, 3),
            },
            "kinds": [
                {
                    "adapter": g.name,
                    "users": len(g.users),
                    "tokens": g.mine.tokens,
                    "perplexity": users_view.rounded(g.mine.perplexity),
                    "perplexity_without_adapter": users_view.rounded(g.base.perplexity),
                }
                for g in sorted(self.groups.values(), key=lambda g: g.name)
            ],
        }
