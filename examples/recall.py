# SPDX-License-Identifier: Apache-2.0
"""What fell out of the window is brought back for a question, on a stock model of transformers.

    python examples/recall.py [MODEL] [--text FILE] [--window N] [--top N] [--mass P] [--folder DIR]

MODEL is a directory with a model and its tokenizer; without one a small Llama reads bytes, with
random weights but for queries made as keys are: it looks for what it reads. A note is followed by
so much text that no query sees it; its pages are in the archive (on disk with --folder), and the
question finds them: the best few, or by --mass as many as show queries that share of a softmax.
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from headrace import Archive, InMemory, OnDisk, Sink, Window
from headrace.integrations.transformers import StreamingCache, attached

NOTE = "\nVAULT>CODE>4817>2290>6635>VAULT>CODE\n"
ASKED = "\nVAULT>CODE>"


class Bytes:
    def __call__(self, text, **options):
        return {"input_ids": torch.tensor([list(text.encode())])}

    def decode(self, ids, **options):
        return bytes(int(i) for i in ids).decode(errors="replace")


def load(folder):
    if folder:
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **sizes, **heads, eos_token_id=None))
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data = layer.self_attn.k_proj.weight.data
    return model, Bytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--text", default=Path(sysconfig.get_paths()["stdlib"], "argparse.py"))
    parser.add_argument("--window", type=int, default=252)
    parser.add_argument("--top", type=int, default=2)
    parser.add_argument("--mass", type=float)
    parser.add_argument("--folder")
    args = parser.parse_args()
    model, tokenizer = load(args.model)
    text = " ".join(Path(args.text).read_text("utf-8").split())[:12000]
    ids = tokenizer(text[:3000] + NOTE + text[3000:], return_tensors="pt")["input_ids"]
    question = tokenizer(ASKED, return_tensors="pt")["input_ids"]
    how = {"mass": args.mass, "bound": "sampled"} if args.mass else {"top": args.top}
    archive = Archive("bounds", OnDisk(args.folder) if args.folder else InMemory(), pages=256)
    cache = StreamingCache(model.config, memory=Sink(4) + Window(args.window) >> archive)
    with attached(model), torch.no_grad():
        model(ids, past_key_values=cache)
        print(f"{ids.shape[1]} tokens read, {cache.alive[0]} alive; asked: {ASKED.strip()}")
        (recalled,) = cache.recall(model, question, **how)
        for layer, told in enumerate(recalled.told):
            print(f"layer {layer}: of its softmax no query misses over {told.missed:.1%}: {told}")
        for layer, spans in enumerate(recalled.spans):
            for first, stop in spans[: args.top]:
                found = f"{first} to {stop - 1} are back: {tokenizer.decode(ids[0, first:stop])!r}"
                print(f"layer {layer}: tokens {found}")
        mask = torch.ones(1, ids.shape[1] + question.shape[1])
        how = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False}
        said = model.generate(question, past_key_values=cache, **how)
        print(f"it goes on: {tokenizer.decode(said[0, question.shape[1] :])!a}")


if __name__ == "__main__":
    main()
