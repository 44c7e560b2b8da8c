# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest
import torch

from headrace.bench import timing
from headrace.models import Decoder, DecoderConfig, save
from tests import warm

WINDOW, SINKS = 28, 4
MAIN = "import sys; from headrace.cli import main; sys.exit(main())"
ROWS_SOON = "from headrace.cli import live; live.Lines.EVERY = 0.2\n"


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A file with a small random model in which every weight matters."""
    torch.manual_seed(0)
    config = DecoderConfig(
        layers=2, width=48, heads=4, kv_heads=2, head_dim=16, hidden=64, window=WINDOW, sinks=SINKS
    )
    made = Decoder(config)
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim == 2:
                p.normal_(std=1.2 * p.shape[1] ** -0.5)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save(made, path, {"training": '{"sequence": 64}'})
    return str(path)


@pytest.fixture
def text(tmp_path):
    """A text file of 4,000 bytes."""
    path = tmp_path / "text.txt"
    path.write_bytes(
        (b"All that runs, runs down to the sea, and the sea is not full. " * 70)[:4000]
    )
    return str(path)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Reports land in the test's own folder; one thread, as the machine may be busy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("HEADRACE_TRACEBACK", raising=False)


@pytest.fixture
def clock(monkeypatch):
    """A time of its own: what is called says how long it took, and each look takes 1 ms."""
    now = [0.0]

    def look():
        now[0] += 1e-3
        return now[0]

    def wait(seconds):
        now[0] += seconds

    monkeypatch.setattr(timing.time, "perf_counter", look)
    monkeypatch.setattr(timing, "last_cache", lambda: 8)
    return wait


def start(*args, fresh=False, **options):
    """The command in a process of its own; unless it is a fresh interpreter, its imports are done
    and rows of progress come sooner."""
    begun = [sys.executable, "-c", MAIN]
    if not fresh:
        begun = [*warm.python(*warm.COMMANDS), "-c", ROWS_SOON + MAIN]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([*begun, *map(str, args)], **options)
