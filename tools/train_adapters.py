# SPDX-License-Identifier: Apache-2.0
"""Train the packaged adapters: small LoRAs of a packaged decoder, one for each kind of text that
lies beside the installed packages. Writes folders as the peft package does, with a card each.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch

from headrace.adapters import AdapterConfig
from headrace.adapters.blob import Adapter
from headrace.adapters.packing import pack
from headrace.adapters.peft_files import write
from headrace.models import load
from headrace.models.training import kinds, lora

CARD = """# {name}

A LoRA of rank {rank} on {modules} of all layers of `{base}`: {parameters:,} parameters, bf16,
{size:,} bytes.

**Data**: {text}, as found beside the packages of a Python environment: {files} files of different
content, {train:,} bytes of them to train on. One file in {held} by the hash of its path is held out
({held_out:,} bytes were used); files of one package resemble one another, so held-out text is not
foreign text. Each package's own licence applies to it.

**Command**: `{command}`

**Cost**: {steps} steps of {tokens:,} bytes in {seconds:.0f} s of wall clock on {threads} thread(s)
of a CPU that was busy with other work too. AdamW, rate {rate:g} with a cosine to zero, alpha
{alpha:g}. Another set of installed packages brings other text, and slightly other figures.

**Loss on held-out text**, nats per byte, 64 pieces of 1024 bytes under the model's own streaming
memory: {before:.4f} without the adapter, **{after:.4f}** with it (bits per byte: {bits_before:.3f}
and {bits_after:.3f}). It knows this kind of text and is not fit for any use but showing and
measuring many adapters in one batch.
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("kinds", nargs="+", choices=sorted(kinds.KINDS), metavar="KIND",
                   help=", ".join(kinds.KINDS))  # fmt: skip
    p.add_argument("--rank", type=int, default=4)
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--modules", nargs="+", default=["query", "value", "down"])
    p.add_argument("--rate", type=float, default=lora.Run.rate)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--base", default="bytes-stream", help="a packaged model")
    p.add_argument("--out", type=Path, required=True, help="folder for the adapters' folders")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for kind in args.kinds:
        if (args.out / kind).exists():
            p.error(f"{args.out / kind} is there already")
        make(args, kind)


def make(args: argparse.Namespace, kind: str) -> None:
    model = load(args.base)
    text, held_out = kinds.split(kind)
    if min(len(text), len(held_out)) < 1 << 16:
        sys.exit(f"train_adapters({kind}): expected 64 KiB of text on both sides, got less")
    run = lora.Run(args.rank, args.steps, tuple(args.modules), rate=args.rate, seed=args.seed)
    before = lora.evaluate(model, held_out, count=64)
    made, seconds = lora.train(model, text, run, lambda line: print(kind, line, flush=True))
    tensors = made.tensors()
    with torch.no_grad():  # measured as it is kept
        for part in ("a", "b"):
            for key, weight in getattr(made, part).items():
                weight.copy_(tensors[f"{key.replace('/', '.')}.{part}"])
    after = lora.evaluate(model, held_out, made.linear, count=64)
    config = AdapterConfig.of(args.base, tensors, run.alpha)
    digest, blob = pack("train_adapters", config, tensors)
    folder = args.out / kind
    write("train_adapters", folder, Adapter("train_adapters", blob, digest.hex()), None)
    nat = 0.6931471805599453
    command = ["python", "tools/train_adapters.py", kind, "--rank", str(args.rank)]
    command += ["--steps", str(args.steps), "--rate", f"{args.rate:g}"]
    command += ["--seed", str(args.seed), "--out", "DIR"]
    (folder / "README.md").write_text(
        CARD.format(
            name=kind, rank=args.rank, modules=", ".join(f"`{m}`" for m in args.modules),
            base=args.base, parameters=sum(t.numel() for t in tensors.values()),
            size=(folder / "adapter_model.safetensors").stat().st_size,
            text=kinds.KINDS[kind].text, files=len(kinds.files(kind)), train=len(text),
            held=kinds.HELD_OUT, held_out=len(held_out), command=shlex.join(command),
            steps=run.steps, tokens=run.tokens, seconds=seconds, threads=args.threads,
            rate=run.rate, alpha=run.alpha, before=before, after=after,
            bits_before=before / nat, bits_after=after / nat,
        ),
        "utf-8",
    )  # fmt: skip
    print(f"{kind}: {before:.4f} -> {after:.4f} nats per byte in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
