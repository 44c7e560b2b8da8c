# SPDX-License-Identifier: Apache-2.0
"""What makes every file of bench/results/<machine>, by the name of the file: data for record.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from headrace import ops
from headrace.bench import loops, scaling

CALLS = 3
"""Of every side of a shape, however long they take: a median of fewer has no spread."""


@dataclass(frozen=True)
class Job:
    """words: the command as it is typed in the folder of the file, `headrace` or a script first.
    minutes: about how long that takes on two cores. printed: for a command that prints JSON and
    writes nothing, the key of the record under which that is kept.
    """

    words: tuple[str, ...]
    minutes: float
    printed: str = ""


# Minutes of the ops whose shapes take long to time beside every peer, at a budget of 0.1 s; the
# others take about one.
SLOW = {
    "attention": 14, "hstu_attention": 7, "paged_attention": 5, "lora": 5, "lora_rows": 3,
    "assign": 2, "attention_mass": 2, "block_score": 2, "gated_delta_rule": 2,
    "linear_attention": 2,
}  # fmt: skip
LOOPS = {"streaming": 4, "recall": 1, "stock": 1}
SCALING = {"length": 3, "adapters": 2, "recall": 1}
STREAM = ("headrace", "stream")


def _of_ops(budget: float | None) -> dict[str, Job]:
    spent = () if budget is None else ("--budget", f"{budget:g}")
    made = {}
    for op in ops.specs():
        words = ("headrace", "bench", op, "--peers", "--calls", str(CALLS), *spent)
        made[op] = Job((*words, "--json", f"bench-{op}.json"), SLOW.get(op, 1))
    words = ("headrace", "bench", "--quick", *spent, "--json", "quick.json")
    return made | {"quick": Job(words, 0.5)}


def _of_loops() -> dict[str, Job]:
    words = ("headrace", "bench", "--loops")
    return {
        f"loop-{name}": Job((*words, name, "--json", f"loop-{name}.json"), LOOPS.get(name, 0.5))
        for name in loops.LOOPS
    }


def _of_scaling() -> dict[str, Job]:
    words = ("headrace", "bench", "--scaling")
    return {
        f"scale-{name}": Job((*words, name, "--json", f"scale-{name}.json"), SCALING.get(name, 0.5))
        for name in scaling.WORKS
    }


def _script(path: str, name: str, *options: str, minutes: float = 1.0) -> Job:
    return Job((path, f"{name}.json", *options), minutes)


def _of_streams() -> dict[str, Job]:
    compared = ("--compare", "--chunk", "512", "--no-plot")
    far = ("--tokens", "4M", "--samples", "2000", "--report", "stream-4m.json")
    held = ("--model", "bytes-dense", "--held-out", "--tokens", "1M", "--samples", "1000")
    return {
        "stream-4m": Job((*STREAM, *compared, *far), 5),
        "stream-bytes-dense": Job(
            (*STREAM, *compared, *held, "--report", "stream-bytes-dense.json"), 2
        ),
    }


def _of_scripts() -> dict[str, Job]:
    soak = ("tools/soak.py", "--operations")
    return {
        "check": Job(("headrace", "check", "--json"), 3, "claims"),
        "examples": _script("bench/examples.py", "examples"),
        "engine-overhead": _script("bench/engine_overhead.py", "engine-overhead"),
        "lanes": _script("bench/lanes.py", "lanes", minutes=2),
        "clips": _script("bench/clips.py", "clips", minutes=3),
        "gated-video": _script("bench/gated_video.py", "gated-video", "--frames", "100", minutes=5),
        "video": _script("bench/video.py", "video", minutes=5),
        "video-hours": _script(
            "bench/video.py", "video-hours", "--hours", "2", "--longest", "96", minutes=4
        ),
        "policies": _script("bench/policies.py", "policies", minutes=5),
        "adapter-peft": _script("bench/adapter_peft.py", "adapter-peft", minutes=5),
        "adapter-bank": _script("bench/adapter_bank.py", "adapter-bank", minutes=12),
        "adapter-store-200k": _script(
            "bench/adapter_store.py", "adapter-store-200k", "--records", "200000", "--batch",
            "5000", "--kills", "0", minutes=2,
        ),
        "adapter-store": _script(
            "bench/adapter_store.py", "adapter-store", "--batch", "5000", minutes=8
        ),
        "archive": _script("bench/archive.py", "archive", "--folder", ".", minutes=10),
        "archive-kills": Job(("python", "-m", "tests.memory.archives", "200"), 2, "killed"),
        "transformers-stream": _script(
            "bench/transformers_stream.py", "transformers-stream", "--dynamic-seconds", "120",
            minutes=14,
        ),
        "soak-memory": Job(
            (*soak, "60000", "--hours", "1.44", "--minutes", "5", "--out", "soak-memory.json"), 3
        ),
        "soak": Job((*soak, "1000000", "--minutes", "60", "--out", "soak.json"), 12),
    }  # fmt: skip


def groups(budget: float | None = None) -> dict[str, dict[str, Job]]:
    """Every job by its name, in groups that can be named too."""
    return {
        "ops": _of_ops(budget), "loops": _of_loops(), "scaling": _of_scaling(),
        "streams": _of_streams(), "scripts": _of_scripts(),
    }  # fmt: skip


def chosen(names: Iterable[str], budget: float | None = None) -> dict[str, Job]:
    """The jobs of these names, of groups or of "all", each once. Raises KeyError for another."""
    every = groups(budget)
    known = {name: job for group in every.values() for name, job in group.items()}
    found: dict[str, Job] = {}
    for name in names:
        found |= known if name == "all" else every.get(name) or {name: known[name]}
    return found


def file_of(name: str) -> str:
    """Where what a job makes is kept."""
    return f"bench-{name}.json" if name in ops.specs() else f"{name}.json"
