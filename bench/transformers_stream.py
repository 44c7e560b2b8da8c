# SPDX-License-Identifier: Apache-2.0
"""A stock random Llama that generates 100,000 tokens: StreamingCache beside DynamicCache.

    python bench/transformers_stream.py OUT.json [--tokens N] [--window N] [--hidden N] [--layers N]
                                        [--dynamic-seconds S] [--threads N]

Each cache has a process of its own and one call of `generate`, whose every 1000 tokens are noted:
seconds by the wall and by the processor, bytes of keys and values, and of the whole process. The
DynamicCache stops after S seconds, since its time goes with the square of the text. Writes OUT.json
and, where matplotlib is, OUT.png. Seconds by the processor are those to compare on a machine that
does other work too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import drawn
import torch

from headrace.cli import report

BLOCK = 1000
SINKS = 4


class Notes:
    """A streamer of `generate`: it is told of every token and notes the time of each block."""

    def __init__(self, held) -> None:
        self.blocks: list[dict[str, Any]] = []
        self._held, self._count, self._prompt = held, 0, True
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def put(self, tokens) -> None:
        if self._prompt:  # comes first
            self._prompt = False
            return
        self._count += 1
        if self._count % BLOCK == 0:
            wall, cpu = time.perf_counter(), time.process_time()
            self.blocks.append(
                {
                    "tokens": self._count,
                    "ms": (wall - self._wall) / BLOCK * 1e3,
                    "cpu_ms": (cpu - self._cpu) / BLOCK * 1e3,
                    "cache_bytes": self._held(),
                    "process_bytes": report.resident_set(),
                }
            )
            self._wall, self._cpu = time.perf_counter(), time.process_time()

    def end(self) -> None:
        pass


def part(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """One cache, in this process."""
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    from headrace import Sink, Window
    from headrace.integrations.transformers import StreamingCache, attached

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 8 // 3,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=max(1, args.hidden // 128),
        max_position_embeddings=1 << 20,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    prompt = torch.randint(1, 2048, (1, 64))
    options = {"do_sample": False, "max_new_tokens": args.tokens}
    started = time.perf_counter()
    if kind == "streaming":
        memory = Sink(SINKS) + Window(args.window)
        cache = StreamingCache(config, memory=memory)
        notes = Notes(lambda: cache.resident_bytes)
        with attached(model):
            model.generate(prompt, past_key_values=cache, streamer=notes, **options)
    else:
        grown = DynamicCache(config=config)
        notes = Notes(lambda: sum(x.keys.nbytes + x.values.nbytes for x in grown.layers))
        model.generate(
            prompt, past_key_values=grown, streamer=notes, max_time=args.dynamic_seconds, **options
        )
    return {
        "cache": kind,
        "seconds": time.perf_counter() - started,
        "parameters": sum(x.numel() for x in model.parameters()),
        "blocks": notes.blocks,
    }


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """First full blocks after the window has filled against the last ones."""
    blocks = run["blocks"]
    if len(blocks) < 6:
        return {}
    tenth = max(1, len(blocks) // 10)
    early, late = blocks[2 : 2 + tenth], blocks[-tenth:]

    def mean(of: list[dict[str, Any]], name: str) -> float:
        return sum(b[name] for b in of) / len(of)

    return {
        "tokens": blocks[-1]["tokens"],
        "early_cpu_ms": mean(early, "cpu_ms"),
        "late_cpu_ms": mean(late, "cpu_ms"),
        "late_over_early_cpu": mean(late, "cpu_ms") / mean(early, "cpu_ms"),
        "cache_bytes_early": early[0]["cache_bytes"],
        "cache_bytes_late": blocks[-1]["cache_bytes"],
        "cache_bytes_most": max(b["cache_bytes"] for b in blocks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--window", type=int, default=1020)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dynamic-seconds", type=float, default=240)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=("streaming", "dynamic"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        args.out.write_text(json.dumps(part(args.part, args)))
        return
    told = report.taken()
    told["versions"]["transformers"] = metadata.version("transformers")
    runs = []
    for kind in ("streaming", "dynamic"):
        piece = args.out.with_suffix(f".{kind}")
        subprocess.run(_command(args, kind, piece), check=True)
        runs.append(json.loads(piece.read_text()))
        piece.unlink()
    document = {
        **told,
        "memory": f"Sink({SINKS}) + Window({args.window})",
        "threads": args.threads,
        "hidden": args.hidden,
        "layers": args.layers,
        "summary": {run["cache"]: summary(run) for run in runs},
        "runs": runs,
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    try:
        drawn.transformers_stream(document, args.out.with_suffix(".png"))
    except ImportError:
        print("no plot: matplotlib is not installed")
    print(json.dumps(document["summary"], indent=1))


def _command(args: argparse.Namespace, kind: str, out: Path) -> list[str]:
    """This script, for one of its parts."""
    names = ("tokens", "window", "hidden", "layers", "dynamic_seconds", "threads")
    options = [f"--{n.replace('_', '-')}={getattr(args, n)}" for n in names]
    return [sys.executable, __file__, str(out), *options, "--part", kind]


if __name__ == "__main__":
    main()
