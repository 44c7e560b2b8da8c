# SPDX-License-Identifier: Apache-2.0
"""Many users at once, each with an adapter of their own, in one model call a step.

    python examples/many_users.py --users 12

The adapters come along: small ones, each trained on one kind of text. A user's bytes are of one
kind; the same bytes are read without an adapter too, to see what it is worth. For more adapters
than fit, give the bank a store: it then loads them and lets go of them as users come.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import headrace
from headrace import AdapterBank, Sink, Window, models, wrap

TEXT = {
    "cmake": b"set(SOURCES main.cpp)\nadd_executable(app ${SOURCES})\nif(NOT WIN32)\n  target_",
    "cpp": b"#include <vector>\n\nnamespace {\n\ntemplate <class T>\nint size(const std::vector<T>",
    "licences": b"Permission is hereby granted, free of charge, to any person obtaining a copy of",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=12)
    args = parser.parse_args()

    model = models.load("bytes-stream")
    folder = Path(headrace.__file__).parent / "models/adapters"
    with AdapterBank.of(model, "bytes-stream", slots=len(TEXT)) as bank:
        names = list(TEXT)
        for kind in names:
            bank.load_peft(folder / kind, name=kind)
        engine = wrap(model, memory=Sink(4) + Window(252), adapters=bank)
        kinds = [names[i % len(names)] for i in range(args.users)]
        users = [engine.open(adapter=kind) for kind in kinds]
        plain = [engine.open() for _ in kinds]

        began = time.perf_counter()
        reports = engine.step({u: TEXT[kind] for u, kind in zip(users, kinds, strict=True)})
        took = time.perf_counter() - began
        without = engine.step({u: TEXT[kind] for u, kind in zip(plain, kinds, strict=True)})

        for kind in names:
            of_kind = [i for i, k in enumerate(kinds) if k == kind]
            mine = torch.cat([reports[users[i]].nll[1:] for i in of_kind]).mean()
            base = torch.cat([without[plain[i]].nll[1:] for i in of_kind]).mean()
            print(f"{kind:9} {len(of_kind):3} users: {mine:.3f} nats a byte, {base:.3f} without")
        total = sum(report.tokens for report in reports.values())
        print(f"{total} bytes of {args.users} users in {took * 1e3:.0f} ms, one model call")
        print(users[0].say(max_new=40).decode(errors="replace").splitlines()[0])


if __name__ == "__main__":
    main()
