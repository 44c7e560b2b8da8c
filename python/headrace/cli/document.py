# SPDX-License-Identifier: Apache-2.0
"""The JSON report of a run of `headrace stream`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import models
from . import policies, report
from .track import HUNDRED_K

if TYPE_CHECKING:
    from .session import Session


def make(s: Session, stopped: str) -> dict[str, Any]:
    """All that there is to report of a run so far. stopped: why it ended."""
    args, config = s.args, s.model.config
    return {
        "format": report.FORMAT,
        "command": report.command(),
        "started": s.started,
        "wall_seconds": round(time.perf_counter() - s.began, 3),
        "stopped": stopped,
        "commit": report.commit(),
        "versions": report.versions(),
        "machine": report.machine(),
        "model": {
            "name": Path(args.model).name,
            "parameters": sum(p.numel() for p in s.model.parameters()),
            "layers": config.layers,
            "trained_window": config.window,
            "trained_sinks": config.sinks,
            "training": s.training,
        },
        "text": {
            "name": s.text.name,
            "files": s.text.files,
            "bytes": s.text.size,
            "passes": s.text.passes,
            "seen_in_training": s.text.seen,
        },
        "settings": {
            "window": s.settings.window,
            "sinks": s.settings.sinks,
            "chunk": s.settings.chunk,
            "exact": all(r.engine.exact for r in s.runners),
            "dense_limit": s.settings.dense_limit,
            "samples": s.settings.samples,
            "seed": s.settings.seed,
            "tokens": s.total,
        },
        "tokens": s.position,
        "resident_set_bytes": {"at_100k": s.rss_100k, "at_end": report.resident_set()},
        "policies": [r.track.summary() for r in s.runners],
        "versus_recompute": pairs(s),
        "recompute_estimate": _estimate(s),
    }


def _recomputed(s: Session) -> policies.Recomputed | None:
    return next((r for r in s.runners if isinstance(r, policies.Recomputed)), None)


def _estimate(s: Session) -> dict[str, list[float]] | None:
    base, ours = _recomputed(s), s.runners[0]
    if base is None or base is ours:
        return None
    return report.estimate(ours.track.bins, ours.sampled, base.sampled)


def pairs(s: Session) -> dict[str, dict[str, Any]]:
    """Each policy against recomputation, at the sampled positions of all and of the last 100k."""
    base = _recomputed(s)
    found: dict[str, dict[str, Any]] = {"all": {}, "last_100k": {}}
    if base is None:
        return found
    for r in s.runners:
        for name, since in (("all", 0), ("last_100k", s.position - HUNDRED_K)):
            pair = report.compare(r.sampled, base.sampled, since) if r is not base else None
            if pair:
                found[name][r.track.policy] = pair
    return found


def training(name: str) -> dict[str, Any]:
    """What the model's file says of its training."""
    from safetensors import SafetensorError, safe_open

    path = Path(models.__file__).parent / f"{name}.safetensors" if name in models.names() else name
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get("training", "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
