# SPDX-License-Identifier: Apache-2.0
"""A chat that never ends, on a stock model of the transformers library, at constant memory.

    python examples/endless_chat.py [MODEL] [--turns N] [--window N]

MODEL is a directory with a model and its tokenizer; without one a small Llama with random weights
talks bytes, so its words mean nothing but every mechanism is the real one. The whole log is one
stream: nothing is ever read twice, and what has left the window leaves no gap in the positions.
"""

import argparse
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from headrace import Sink, Window
from headrace.integrations.transformers import StreamingCache, attached

ASKED = ("What did we talk about?", "Go on.", "Why is that?", "And what came before?")


class Bytes:
    """A tokenizer of the 256 bytes; 0 is no text."""

    eos_token_id = None

    def __call__(self, text, **options):
        ids = torch.tensor([[b or 1 for b in text.encode()]])
        return {"input_ids": ids}

    def decode(self, ids, **options):
        return bytes(int(i) for i in ids).decode(errors="replace")


def load(folder):
    if folder:
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, **sizes, **heads, **ends)), Bytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--window", type=int, default=252)
    args = parser.parse_args()
    model, tokenizer = load(args.model)
    model.eval()
    cache = StreamingCache(model.config, memory=Sink(4) + Window(args.window))
    last = torch.empty(1, 0, dtype=torch.long)  # what was said last has not been read yet
    with attached(model):
        for turn in range(args.turns):
            asked = ASKED[turn % len(ASKED)]
            ids = tokenizer(f"\nUser: {asked}\nBot:", return_tensors="pt")["input_ids"]
            new = torch.cat([last, ids], 1)
            seen, began = cache.get_seq_length(), time.perf_counter()
            mask = torch.ones(1, seen + new.shape[1], dtype=torch.long)
            said = model.generate(new, attention_mask=mask, past_key_values=cache, do_sample=True,
                                  max_new_tokens=48)[0, new.shape[1] :]  # fmt: skip
            last = said[None, -1:]
            ms = (time.perf_counter() - began) * 1e3 / (len(said) or 1)
            print(f"{turn:3} {cache.get_seq_length():6} tokens read {cache.alive[0]:5} alive "
                  f"{cache.resident_bytes / 1024:7.0f} KiB {ms:6.1f} ms/token  "
                  f"{tokenizer.decode(said)!r:.40}")  # fmt: skip


if __name__ == "__main__":
    main()
