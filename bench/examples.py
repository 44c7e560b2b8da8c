# SPDX-License-Identifier: Apache-2.0
"""How long the programs of examples/ take, each in a process of its own, as the tests run them.

python bench/examples.py OUT.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from headrace.cli import report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.test_examples import SHOWN  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    seconds = {}
    for name, (options, _) in SHOWN.items():
        path = ROOT / "examples" / f"{name.split()[0]}.py"
        began = time.perf_counter()
        subprocess.run([sys.executable, str(path), *options], check=True, stdout=subprocess.DEVNULL)
        seconds[name] = time.perf_counter() - began
        print(f"{name:20} {seconds[name]:6.1f} s", flush=True)
    told = report.taken() | {"wall_seconds": sum(seconds.values()), "examples": seconds}
    report.write(told, args.out)


if __name__ == "__main__":
    main()
