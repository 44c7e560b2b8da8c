# SPDX-License-Identifier: Apache-2.0
"""Builds, tests, times, sanitizes and tunes on one GPU, inside a time budget.

    python scripts/gpu_check.py OUT --budget 9m                  # OUT/report.json and OUT/report.md
    python scripts/gpu_check.py OUT --budget 9m --resume OLD     # goes on where OLD stopped
    python scripts/gpu_check.py OUT --stages resources           # no GPU: the compilers' reports
    python scripts/gpu_check.py OUT --dry-run                    # no GPU: checks this script

Where headrace is not installed, or not as it is in the tree that the script lies in, it is built
first from that tree, into build/gpu, for this card alone and as quickly as can be; that needs
torch, scikit-build-core and pybind11, and no network. Stages, in this order:

build     the CUDA library, where nvcc is found
tests     tests/gpu, on all cores where pytest-xdist is found; a crash or a hang costs one test
bench     bench/gpu, in order of value, in a process that is begun anew when a kernel takes it down
replays   a captured step 100,000 times, through wraps of its ring, against the eager one
sanitize  compute-sanitizer over the kernels at small shapes
tune      choices of the Triton kernels, written to OUT/<device>.json: kernels/common/tuned ships it

Each stage leaves those after it a share of the budget. What is done is written at once; what a run
did not reach, the next one does that resumes it, over the same sources. Not yet seen running on a
GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from bench.gpu.built import install, kernels, sources  # noqa: E402

STAGES = ("build", "tests", "bench", "replays", "sanitize", "tune")
EVERY = (*STAGES, "resources")
SHARES = {"bench": 0.3, "replays": 0.08, "sanitize": 0.15, "tune": 0.1}
"""Of the budget, what is kept for a stage that is yet to come."""
PEERS = ("triton", "flash_attn", "flashinfer", "fla")


class Report:
    """What was done, unit by unit, on disk after each."""

    def __init__(self, out: Path, earlier: Path | None, head: dict[str, Any], end: float) -> None:
        self.out, self.end, self.kept = out, end, 0.0
        self.data: dict[str, Any] = {**head, "floors": {}, "units": {}}
        if earlier is not None and (earlier / "report.json").exists():
            old = json.loads((earlier / "report.json").read_text())
            if old["sources"] == head["sources"]:
                self.data |= {name: old[name] for name in ("floors", "units")}
                self.data["earlier"] = [*old.get("earlier", []), old["date"]]
            else:
                print(f"gpu_check: {earlier} is of other sources: begun anew")
        self.out.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds of the budget, without those that are kept for later stages."""
        return self.end - self.kept - time.monotonic()

    def done(self, unit: str) -> bool:
        return self.data["units"].get(unit, {}).get("state") not in (None, "unfinished")

    def keep(self, unit: str, quietly: bool = False, **seen: Any) -> None:
        """state: ok, failed, absent or unfinished; and what else was seen."""
        self.data["units"][unit] = seen
        self.write()
        told = seen.get("why") or seen.get("told") or ""
        if not quietly:
            print(f"{seen['state']:10} {unit} {told}"[:160], flush=True)

    def write(self) -> None:
        from bench.gpu.table import table

        for name, text in (
            ("report.json", json.dumps(self.data, indent=1)),
            ("report.md", table(self.data)),
        ):
            (self.out / f".{name}").write_text(text, "utf-8")
            (self.out / f".{name}").replace(self.out / name)


def seconds(text: str) -> float:
    """Of `540`, `540s`, `9m` or `1.5h`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(
            f"expected seconds, or a number with s, m or h, got {text}"
        )
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def environment(commit: str, digest: str) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in PEERS:
        with contextlib.suppress(Exception):  # whatever an import goes wrong with
            versions[name] = __import__(name).__version__
    git = shutil.which("git")
    if git and not commit:
        asked = [git, "describe", "--always", "--dirty=+", "--abbrev=40"]
        commit = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or "unknown",
        "sources": digest,
        "kernels": kernels(),
        "command": " ".join(["python", "scripts/gpu_check.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "versions": versions,
    }


def main() -> int:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--budget", type=seconds, default="9m", help="time to stop within: 540s, 9m"
    )
    parser.add_argument(
        "--resume", type=Path, metavar="OLD", help="a folder that a run has written"
    )
    parser.add_argument("--stages", default=",".join(STAGES), help=f"of {', '.join(EVERY)}")
    parser.add_argument("--size", choices=("quick", "full"), default="quick", help="of the bench")
    parser.add_argument("--only", default="", help="ops to time, separated by commas")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--commit", default="", help="of this tree, where git cannot tell")
    options = parser.parse_args()
    asked = options.stages.split(",")
    if unknown := set(asked) - set(EVERY):
        parser.error(f"--stages: expected some of {', '.join(EVERY)}, got {', '.join(unknown)}")
    if not options.dry_run and not torch.cuda.is_available() and asked != ["resources"]:
        print(
            "gpu_check: expected a GPU that torch can use, found none; --dry-run and "
            "--stages resources need none"
        )
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # processes that were begun are ended
    digest, end = sources(), begun + options.budget
    if wrong := install(options.out, end, digest):
        print(f"gpu_check: {wrong}")
        return 2
    from bench.gpu import stages  # now that headrace is there
    from bench.gpu.table import table

    report = Report(options.out, options.resume, environment(options.commit, digest), end)
    size = "dry" if options.dry_run else options.size
    only = set(options.only.split(",")) if options.only else None
    ahead = None
    asked = [stage for stage in EVERY if stage in asked]
    for i, stage in enumerate(asked):
        later = [x for x in asked[i + 1 :] if stages.left(x, report, size)]
        report.kept = options.budget * sum(SHARES.get(x, 0.0) for x in later)
        if stage == "tests" and "bench" in asked and size != "dry":
            ahead = stages.warm(size, only)
        stages.RUN[stage](report, size, only)
        if stage == "tests" and ahead is not None:
            ahead.end(0)
    report.write()
    print(table(report.data))
    states = [unit["state"] for unit in report.data["units"].values()]
    return 1 if "failed" in states else 0


if __name__ == "__main__":
    sys.exit(main())
