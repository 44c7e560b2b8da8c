# SPDX-License-Identifier: Apache-2.0
"""64 requests on 64 adapters in one batch of a random Llama: ours beside peft's mixed batch.

    python bench/adapter_peft.py OUT.json [--widths N...] [--rounds N] [--threads N]

Needs the peft and transformers packages. Ours, ours with `exact` (linear layers by ops.linear),
peft's, peft's one by one (a sixteenth of the requests, times sixteen) and the model without
adapters take turns; medians. The model's own part is the same for ours and for peft's, so
`adapters_alone` holds what each adds to it and `peft_mixed_over_model` is what no way to add
adapters to that model could exceed. Equality is checked first.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from headrace.cli import report
from headrace.integrations.peft import serve

REQUESTS, RANK, LAYERS, PROMPT, NEW = 64, 16, 2, 8, 16


def model_of(width: int) -> Any:
    """A PeftModel with REQUESTS random adapters on every linear layer of its blocks."""
    import peft
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=LAYERS,
        num_attention_heads=width // 32, num_key_value_heads=width // 64, vocab_size=512,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    lora = peft.LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules="all-linear", init_lora_weights=False
    )
    model = peft.get_peft_model(model, lora, adapter_name="user-0")
    for i in range(1, REQUESTS):
        model.add_adapter(f"user-{i}", lora)
    return model.eval()


def measure(width: int, rounds: int) -> dict[str, Any]:
    """One model."""
    model = model_of(width)
    ids = torch.randint(1, 512, (REQUESTS, PROMPT), generator=torch.Generator().manual_seed(1))
    names = [f"user-{i * 37 % REQUESTS}" for i in range(REQUESTS)]
    served, exact = serve(model), serve(model, exact=True)
    how = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    few = range(0, REQUESTS, 16)

    def one_by_one() -> None:
        for i in few:
            model.set_adapter(names[i])
            model.generate(input_ids=ids[i : i + 1], **how)

    kinds: dict[str, Callable[[], Any]] = {
        "ours": lambda: served.generate(ids, adapters=names, **how),
        "ours, exact": lambda: exact.generate(ids, adapters=names, **how),
        "peft, mixed batch": lambda: model.generate(input_ids=ids, adapter_names=names, **how),
        "peft, one by one": one_by_one,
        "no adapters": lambda: served.generate(ids, adapters=[None] * REQUESTS, **how),
        "no adapters, exact": lambda: exact.generate(ids, adapters=[None] * REQUESTS, **how),
    }
    with torch.no_grad():
        mine = [way(input_ids=ids, adapters=names).logits for way in (served, exact)]
        theirs = model(input_ids=ids, adapter_names=names).logits
    wrong = max(float((m - theirs).abs().max() / theirs.abs().max()) for m in mine)
    if wrong > 1e-4:
        raise SystemExit(f"adapter_peft: ours differs from peft's by {wrong:.1e}")
    seen: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(rounds + 1):
        for kind, call in kinds.items():
            began = time.perf_counter()
            call()
            if turn:
                scale = REQUESTS / len(few) if kind == "peft, one by one" else 1
                seen[kind].append((time.perf_counter() - began) * scale)
    served.close()
    exact.close()
    ms = {kind: 1e3 * float(torch.tensor(some).median()) for kind, some in seen.items()}
    base = ms["no adapters"]
    alone = {kind: max(0.0, ms[kind] - base) for kind in ("ours", "peft, mixed batch")}
    alone["ours, exact"] = max(0.0, ms["ours, exact"] - ms["no adapters, exact"])
    return {
        "width": width, "layers": LAYERS, "rank": RANK, "requests": REQUESTS,
        "prompt_tokens": PROMPT, "new_tokens": NEW, "difference": wrong, "rounds": rounds,
        "ms": {kind: round(some, 2) for kind, some in ms.items()},
        "adapters_alone_ms": {kind: round(some, 2) for kind, some in alone.items()},
        "peft_mixed_over_ours": round(ms["peft, mixed batch"] / ms["ours"], 2),
        "peft_mixed_over_ours_exact": round(ms["peft, mixed batch"] / ms["ours, exact"], 2),
        "peft_mixed_over_model": round(ms["peft, mixed batch"] / base, 2),
        "peft_one_by_one_over_ours": round(ms["peft, one by one"] / ms["ours"], 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    import peft
    import transformers

    told: dict[str, Any] = {**report.taken(), "threads": args.threads, "models": []}
    told["versions"] |= {"peft": peft.__version__, "transformers": transformers.__version__}
    for width in args.widths:
        found = {"load": round(os.getloadavg()[0], 1), **measure(width, args.rounds)}
        told["models"].append(found)
        print(json.dumps(found), flush=True)
    args.out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
