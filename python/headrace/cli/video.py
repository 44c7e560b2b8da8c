# SPDX-License-Identifier: Apache-2.0
"""`headrace stream --video`: frames in, what changed computed, scenes reported."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import torch

from .. import models
from ..integrations.pyav import Video
from ..memory import Sink, Window
from ..streams import Every, Gate, HeadSum, SceneCut, Signal
from ..streams.watch import Watcher, pixel_gate, token_dropper
from . import report, video_view
from .fail import PIPE, Fail, reason
from .interrupt import STOPS, Guard, ending
from .users_view import quantiles
from .video_track import VideoTrack

FORMAT = "headrace.video-report.1"
EXCLUDED = (
    "adapters", "files", "policy", "compare", "demo", "tokens", "held_out", "binary", "dense_limit",
    "samples", "pool_pages",
)  # fmt: skip
SINKS, WINDOW, SIMILAR = 64, 1024, 0.98


def gate(text: str) -> Gate:
    """The gate that an option names. Raises Fail."""
    kind, _, value = text.partition(":")
    try:
        if kind == "cut":
            return HeadSum(float(value or 0.5))
        if kind == "valley" and not value:
            return SceneCut(0.1)
        if kind == "every":
            return Every(int(value))
    except ValueError:
        pass
    raise Fail(f"stream(--gate): expected cut, cut:P, valley or every:N, got {text!r}")


class Videos:
    """One run, from the first frame to the report."""

    def __init__(self, args: argparse.Namespace, guard: Guard) -> None:
        self.args, self.guard = args, guard
        for name in EXCLUDED:
            if getattr(args, name) not in (None, False, []):
                option = "FILE" if name == "files" else "--" + name.replace("_", "-")
                raise Fail(f"stream({option}): expected none with --video, got one")
        if args.no_prune and (args.threshold or args.dropper):
            raise Fail("stream(--no-prune): expected no --threshold or --dropper with it, got one")
        self.gate = gate(args.gate or "cut")
        self.report_path: Path = args.report
        report.check_target("stream(--report)", self.report_path)
        self.plot_path: Path | None = None
        if not args.no_plot:
            self.plot_path = args.plot or self.report_path.with_suffix(".png")
            if self.plot_path.suffix not in (".png", ".pdf", ".svg"):
                raise Fail(f"stream(--plot): expected .png, .pdf or .svg, got {self.plot_path}")
            if self.plot_path == self.report_path:
                raise Fail(
                    f"stream(--plot): expected another file than --report, got {args.report}"
                )
            report.check_target("stream(--plot)", self.plot_path)
        if args.threads:
            torch.set_num_threads(args.threads)
        self.memory = Sink(SINKS if args.sinks is None else args.sinks) + Window(
            args.window or WINDOW
        )
        self.track = VideoTrack()
        self.model: models.Vision | None = None
        self.video: Video | None = None
        self.watcher: Watcher | None = None
        self.started, self.began = report.now(), time.perf_counter()
        self.watching = 0.0

    def run(self) -> int:
        """Watches to the end, or to what stops it; writes the report; gives the exit status."""
        status, stopped, why = 0, "at the end", ""
        view: video_view.View | None = None
        try:
            self._open()
            view = video_view.view(self)
            self._watch(view)
        except STOPS as error:
            status, stopped, why = ending(error)
        self.guard.finish()
        if view is not None:
            with contextlib.suppress(BrokenPipeError):
                if status != PIPE:
                    view.update(force=True)
                view.close()
        try:
            written = self._write(stopped)
            if status == 0:
                with contextlib.suppress(BrokenPipeError):
                    print(written, flush=True)
        except Fail as fail:
            status, written, why = status or fail.status, str(fail), why or "headrace stream"
        if why:
            print(f"{why}, after {self.frames_read():,} frames; {written}", file=sys.stderr)
        for part in (self.watcher, self.video):
            if part is not None:
                part.close()
        return status

    def _open(self) -> None:
        args = self.args
        with self.guard.waiting():
            self.model = models.load_vision(args.model or models.VISION)
            patch = self.model.config.patch
            self.video = Video(
                args.video, rate=args.fps, longest=args.longest or 320, multiple=patch
            )
        self.watcher = Watcher(
            self.model,
            self.video.height,
            self.video.width,
            gate=None if args.no_prune else pixel_gate(self.model, args.threshold),
            dropper=None if args.no_prune else token_dropper(args.dropper or SIMILAR),
            memory=self.memory,
        )

    def _watch(self, view: video_view.View) -> None:
        assert self.video is not None
        assert self.watcher is not None
        frames, before = iter(self.video), time.perf_counter()
        while self.args.frames is None or self.track.total.frames < self.args.frames:
            with self.guard.waiting():
                got = next(frames, None)
            if got is None:
                break
            seconds, frame = got
            begun = time.perf_counter()
            glance = self.watcher.feed(frame)
            ended = time.perf_counter()
            held = self.watcher.resident_bytes
            self.track.add(seconds, frame, glance, ended - begun, begun - before, held)
            signal = Signal(
                read=self.watcher.tokens, scores=[glance.cut if glance.number else 0.0],
                dropped=glance.dropped,
            )  # fmt: skip
            if self.gate(signal):
                self.track.tell(seconds, glance)
                view.say(f"{seconds:.2f} s, frame {glance.number}: {self._told(glance.cut)}")
            self.watching += time.perf_counter() - before
            before = time.perf_counter()
            view.update()
        if self.track.total.frames == 0:
            raise Fail(f"stream(--video): expected frames, got none from {self.args.video}", 1)

    def _told(self, cut: float) -> str:
        kind = "report" if isinstance(self.gate, Every) else "new scene"
        return f"{kind}, p(cut) {cut:.2f}"

    def rate(self) -> float | None:
        """Frames per second, reading among it; what is shown is not."""
        return self.track.total.frames / self.watching if self.watching else None

    def frames_read(self) -> int:
        """Frames of the file that were decoded."""
        return 0 if self.video is None else self.video.read

    def expected(self) -> int | None:
        """Frames of the file that there are to decode, as far as is known."""
        if self.video is None or self.args.frames:
            return None
        return self.video.expected

    def title(self) -> str:
        """One line about the run."""
        assert self.video is not None
        v, rate = self.video, self.args.fps
        return (
            f"{Path(self.args.model or models.VISION).name} watches {Path(v.name).name}, "
            f"{v.width} x {v.height}, {'all frames' if rate is None else f'{rate:g} frames/s'}: "
            f"{self.memory}, {'everything' if self.args.no_prune else 'what changed'} computed"
        )

    def _write(self, stopped: str) -> str:
        made = self.document(stopped)
        report.write(made, self.report_path)
        written = f"report: {self.report_path}"
        if self.plot_path is None or not self.track.total.frames or self.model is None:
            return written
        try:
            from .video_plot import plot

            plot(made, self.track, self.model.config.patch, self.plot_path)
        except ImportError:
            return written + "; no plot, matplotlib is not installed: pip install 'headrace[cli]'"
        except OSError as error:
            raise Fail(
                f"stream(--plot): cannot write {self.plot_path}: {reason(error)}; {written}", 1
            ) from None
        return f"{written}, plot: {self.plot_path}"

    def document(self, stopped: str) -> dict[str, Any]:
        """The report."""
        t, v, w = self.track, self.video, self.watcher
        rate = self.rate()
        return {
            "format": FORMAT,
            "command": report.command(),
            "started": self.started,
            "wall_seconds": round(time.perf_counter() - self.began, 3),
            "stopped": stopped,
            "commit": report.commit(),
            "versions": report.versions(),
            "machine": report.machine(),
            "model": {
                "name": Path(self.args.model or models.VISION).name,
                "parameters": self.model and sum(p.numel() for p in self.model.parameters()),
            },
            "video": {
                "name": Path(self.args.video).name,
                "codec": v and v.codec,
                "native": v and list(v.native),
                "height": v and v.height,
                "width": v and v.width,
                "frames_per_second": v and v.frames_per_second,
                "frames_expected": v and v.expected,
                "frames_decoded": self.frames_read(),
            },
            "settings": {
                "fps": self.args.fps,
                "memory": repr(self.memory),
                "threshold": getattr(w and w.gate, "threshold", None),
                "dropper": getattr(w and w.dropper, "threshold", None),
                "gate": repr(type(self.gate).__name__),
            },
            "frames": t.total.frames,
            "frames_per_second": rate and round(rate, 3),
            "reading_share": round(t.reads / self.watching, 4) if self.watching else None,
            "computed": round(t.share("changed"), 5),
            "kept": round(t.share("kept"), 5),
            "drop_ratio": round(1 - t.share("kept"), 5) if t.total.frames else None,
            "surprise": round(t.surprise / t.surprised, 5) if t.surprised else None,
            "kv_bytes": t.total.kv_bytes,
            "tower_cache_bytes": w and w.tower.nbytes,
            "step_ms": quantiles(t.steps),
            "reports": {"count": t.scenes, "events": t.events},
            "series": t.series(),
        }
