# SPDX-License-Identifier: Apache-2.0
"""One run of `headrace stream`, from the model to the report."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from .. import models
from . import document, live, policies, report, text
from .fail import PIPE, Fail, reason
from .interrupt import STOPS, Guard, ending
from .policies import Bytes, Runner, Samples, Settings, Streamed
from .track import HUNDRED_K

DEFAULT_TOKENS = 1_000_000  # of the built-in text
ROUND = 8  # chunks that a policy reads before the next one's turn
SINGLE_STEPS = 64


class Session:
    """Checks everything that can be checked, then reads."""

    def __init__(self, args: argparse.Namespace, guard: Guard) -> None:
        self.args, self.guard = args, guard
        if args.compare and args.policy:
            raise Fail("stream(--policy): expected one of --policy and --compare, got both")
        self.report_path: Path = args.report
        report.check_target("stream(--report)", self.report_path)
        self.plot_path: Path | None = None
        if not args.no_plot:
            self.plot_path = args.plot or self.report_path.with_suffix(".png")
            if self.plot_path == self.report_path:
                raise Fail(
                    f"stream(--plot): expected another file than --report, got {args.report}"
                )
            if self.plot_path.suffix not in (".png", ".pdf", ".svg"):
                raise Fail(f"stream(--plot): expected .png, .pdf or .svg, got {self.plot_path}")
            report.check_target("stream(--plot)", self.plot_path)
        if args.threads:
            torch.set_num_threads(args.threads)
        with guard.waiting():
            if args.files:
                self.text = text.from_files(args.files, args.binary)
            else:
                self.text = text.from_library(args.held_out)
            self.model = models.load(args.model)
        policies.check_tokens(self.model)
        self.training = document.training(args.model)
        self.settings = self._settings()
        self.total = self._total()
        self.history: Bytes = np.zeros(0, np.uint8)
        self.position = 0
        self.started, self.began = report.now(), time.perf_counter()
        self.notes: list[str] = []
        self.rss_100k: int | None = None
        self.samples = Samples(args.samples, self.total, args.seed)
        self.runners: list[Runner] = []

    def _settings(self) -> Settings:
        args, config = self.args, self.model.config
        trained = config.window is not None
        sinks = args.sinks if args.sinks is not None else config.sinks if trained else 4
        window = args.window
        if window is None:
            length = config.window or int(self.training.get("sequence", 256)) - sinks
            window = max(1, length)
        return Settings(
            window=window,
            sinks=sinks,
            chunk=args.chunk,
            dense_limit=args.dense_limit,
            samples=args.samples,
            seed=args.seed,
            pool_pages=args.pool_pages,
        )

    def _total(self) -> int | None:
        if self.args.tokens:
            return int(self.args.tokens)
        return self.text.size if self.args.files else DEFAULT_TOKENS

    def run(self) -> int:
        """Reads to the end, or to what stops it; writes the report; gives the exit status."""
        names = policies.NAMES if self.args.compare else [self.args.policy or "sinks-window"]
        if self.args.compare and self.settings.sinks == 0:
            names = [name for name in names if name != "window"]
            self.notes.append("without sinks, window is the same as sinks-window: left out")
        self.runners = [policies.runner(name, self.model, self.settings) for name in names]
        status, stopped, why = 0, "at the end", ""
        view: live.View | None = None
        try:
            view = live.view(self.total, self._title())
            for note in self.notes:
                view.say(note)
            self._read(view)
            self._single_steps()
        except STOPS as error:
            status, stopped, why = ending(error)
        self.guard.finish()
        status = self._show(view, status)
        try:
            written = self._write(stopped, status)
        except Fail as fail:
            status, written = status or fail.status, str(fail)
            why = why or "headrace stream: finished"
        if why:
            read = max((r.track.position for r in self.runners), default=0)
            print(f"{why}, after {read:,} tokens; {written}", file=sys.stderr)
        for r in self.runners:
            r.close()
        return status

    def _title(self) -> str:
        s = self.settings
        return (
            f"{Path(self.args.model).name} reads {self.text.name}: "
            f"window {s.window} + {s.sinks} sinks, {s.chunk} tokens a step"
        )

    def _read(self, view: live.View) -> None:
        size = self.settings.chunk * (1 if self.text.live else ROUND)
        while self.total is None or self.position < self.total:
            left = size if self.total is None else min(size, self.total - self.position)
            with self.guard.waiting():
                block = self.text.read(left)
            if not len(block):
                if self.position == 0:
                    raise Fail(f"stream(FILE): expected text, got nothing from {self.text.name}")
                if self.total:
                    view.say(f"{self.text.name} ended after {self.position:,} tokens")
                break
            self._feed(block)
            self.position += len(block)
            if self.rss_100k is None and self.position >= HUNDRED_K:
                self.rss_100k = report.resident_set()
            view.update([r.track for r in self.runners])

    def _feed(self, block: Bytes) -> None:
        picks = self.samples.take(self.position, len(block))
        for r in self.runners:
            history = self.history
            for at in range(0, len(block), self.settings.chunk):
                self.guard.check()
                if r.track.ended:
                    break
                chunk = block[at : at + self.settings.chunk]
                start = self.position + at
                mine = [p for p in picks if start <= p < start + len(chunk)]
                r.feed(start, chunk, history, mine)
                history = np.concatenate([history, chunk])[-self.settings.capacity :]
        self.history = np.concatenate([self.history, block])[-self.settings.capacity :]

    def _single_steps(self) -> None:
        for r in self.runners:
            if isinstance(r, Streamed) and not r.track.ended:
                self.guard.check()
                r.track.single_step = median(r.single_steps(SINGLE_STEPS))

    def _show(self, view: live.View | None, status: int) -> int:
        if view is None or status == PIPE:
            if status == PIPE:
                _silence()
            return status
        try:
            if self.position:
                view.update([r.track for r in self.runners], force=True)
            view.close()
            if status == 0:
                for line in self._lines():
                    print(line)
            sys.stdout.flush()
        except BrokenPipeError:
            _silence()
            return status or PIPE
        return status

    def _lines(self) -> list[str]:
        lines = []
        if self.text.passes > 1:
            lines.append(
                f"the text has {self.text.size:,} bytes and was read {self.text.passes} times"
            )
        for r in self.runners:
            if r.track.ended:
                lines.append(f"{r.track.policy} stopped {r.track.ended}")
        for r in self.runners:
            if r.track.single_step:
                ms = live.number(live.milli(r.track.single_step))
                lines.append(f"{r.track.policy}, fed one token at a time: {ms} ms a token")
        for name, pair in document.pairs(self)["last_100k"].items():
            gap = f"{pair['difference']:+.3f} \N{PLUS-MINUS SIGN} {pair['standard_error']:.3f}"
            lines.append(
                f"last 100k, {pair['positions']} positions, nats per byte: "
                f"{name} {pair['nll']:.3f}, recompute {pair['nll_recompute']:.3f}, difference {gap}"
            )
        return lines

    def _write(self, stopped: str, status: int) -> str:
        made = document.make(self, stopped)
        report.write(made, self.report_path)
        written = f"report: {self.report_path}"
        if self.plot_path and self.position:
            try:
                from .plot import plot

                plot(made, self.plot_path)
                written += f", plot: {self.plot_path}"
            except ImportError:
                written += "; no plot, matplotlib is not installed: pip install 'headrace[cli]'"
            except OSError as error:
                raise Fail(
                    f"stream(--plot): cannot write {self.plot_path}: {reason(error)}; {written}", 1
                ) from None
        if status == 0:
            try:
                print(written, flush=True)
            except BrokenPipeError:
                _silence()
        return written


def _silence() -> None:
    """Points standard output elsewhere, so that the flush at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
