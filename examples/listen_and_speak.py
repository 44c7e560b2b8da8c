# SPDX-License-Identifier: Apache-2.0
"""Reads and writes in the same step: what comes in and what goes out are two lanes of a stream.

    python examples/listen_and_speak.py --steps 200

Bytes of a text arrive eight at a time while the model goes on writing, one byte a step, and each
step is one model call for both. Beside it the usual way, which takes turns: a call to read, a call
to write. Both say the same, and no key or value is ever copied.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from pathlib import Path

import torch

from headrace import Lane, PerLane, Window, models, wrap

EACH = 8
LANES = (
    Lane("heard", memory=Window(256)),
    Lane("said", reads=("heard",), kind="out", memory=Window(128)),
)


def run(text: bytes, steps: int, together: bool) -> tuple[list[int], float]:
    """What was said, and how long it took."""
    engine = wrap(models.load("bytes-stream"), memory=Window(256), positions=PerLane(), lanes=LANES)
    talk = engine.open_lanes()
    engine.step({talk["heard"]: text[:64], talk["said"]: b"#"})
    said = list(b"#")
    began = time.perf_counter()
    for i in range(steps):
        heard = text[64 + EACH * i : 64 + EACH * (i + 1)]
        new = torch.tensor(said[-1:])
        if together:
            report = engine.step({talk["heard"]: heard, talk["said"]: new}, logits=True)
        else:
            report = engine.step({talk["said"]: new}, logits=True)
            engine.step({talk["heard"]: heard})
        said.append(int(report[talk["said"]].logits[-1].argmax()))
    return said, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    text = Path(sysconfig.get_paths()["stdlib"], "argparse.py").read_bytes()
    assert len(text) > 64 + EACH * args.steps, "a longer text is needed for so many steps"

    run(text, 5, together=True)  # warms up
    in_turn, slow = run(text, args.steps, together=False)
    at_once, fast = run(text, args.steps, together=True)
    same = in_turn == at_once
    print(f"said {bytes(at_once[1:61])!r}...")
    print(f"in turn {slow:.2f} s, at once {fast:.2f} s: {slow / fast:.2f}x; the same bytes: {same}")


if __name__ == "__main__":
    main()
