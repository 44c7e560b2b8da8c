# SPDX-License-Identifier: Apache-2.0
"""Reads a log without end and shows the lines that the model did not expect.

    tail -f /var/log/syslog | python examples/endless_log.py
    python examples/endless_log.py --lines 400          # a made-up service, with one odd line

One stream of the packaged byte model under sinks and a window: memory and time per byte stay the
same after a year of log. What counts as unexpected is learnt from the log itself: nats per byte so
many deviations above the usual.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator

from headrace import Sink, Window, models, wrap


def made_up(lines: int) -> Iterator[bytes]:
    """A service that does the same all day, but for one line."""
    chance = random.Random(0)
    for i in range(lines):
        clock = f"2026-11-21 {i // 3600:02}:{i // 60 % 60:02}:{i % 60:02}"
        if i == lines - lines // 4:
            yield f"{clock} FATAL checksum of block 0x5f3a differs, volume now read-only\n".encode()
        else:
            path = chance.choice(("/index", "/login", "/items"))
            yield f"{clock} INFO GET {path} 200 {chance.randint(8, 12)} ms\n".encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, help="lines of a made-up log in place of stdin")
    parser.add_argument("--deviations", type=float, default=6.0)
    args = parser.parse_args()

    engine = wrap(models.load("bytes-stream"), memory=Sink(4) + Window(252))
    stream = engine.open()
    usual, spread, seen = 0.0, 0.0, 0
    for line in made_up(args.lines) if args.lines else sys.stdin.buffer:
        report = stream.feed(line)
        if seen == 0:
            seen += 1  # nothing predicts the very first byte
            continue
        nats = float(report.nll.mean())
        odd = (nats - usual) / max(spread, 1e-6) ** 0.5
        if seen > 50 and odd > args.deviations:
            print(f"{odd:5.1f} deviations  {line.decode(errors='replace').rstrip()}", flush=True)
        else:  # an odd line does not make the next one usual
            weight = max(1 / seen, 0.02)
            usual += weight * (nats - usual)
            spread += weight * ((nats - usual) ** 2 - spread)
        seen += 1
    if not seen:
        sys.exit("endless_log: expected lines on stdin, or --lines N")
    print(
        f"{seen} lines, {stream.tokens} bytes read, {report.alive} of them alive,"
        f" {engine.resident_bytes >> 10} KiB of keys and values"
    )


if __name__ == "__main__":
    main()
