# SPDX-License-Identifier: Apache-2.0
"""A ring of frames in flight, and a knob that is turned while they fly.

    python examples/live_knob.py

Four solver steps, so four frames in flight, each at another step, and one model call per tick.
The `guidance` knob acts on the next tick, the `condition` knob on frames that come after it: the
ring says which tick first shows a change, and a second ring in which nothing is turned shows that
it is so. The denoiser is a small random one: what it draws means nothing, when it changes does.
"""

from __future__ import annotations

import torch

from headrace import Ring, Sink, Window
from headrace.models import Denoiser, DenoiserConfig

LEVELS = (1.0, 0.75, 0.5, 0.25)
TICKS, TURN = 24, 10


def frames(turned: str | None) -> tuple[dict[int, torch.Tensor], int | None, Ring]:
    """Finished frames by the tick at which they came out, and the tick that shows the change."""
    torch.manual_seed(0)
    denoiser = Denoiser(DenoiserConfig(tokens=16, channels=4, condition=8))
    ring = Ring(
        denoiser, LEVELS, memory=Sink(1) + Window(3), guidance="full",
        knobs={"guidance": 1.5, "condition": torch.ones(8), "negative": torch.zeros(8)},
    )  # fmt: skip
    made, shows = {}, None
    clip = torch.Generator().manual_seed(1)
    for now in range(TICKS):
        if now == TURN and turned == "guidance":
            shows = ring.set(guidance=3.0)["guidance"]
        if now == TURN and turned == "condition":
            shows = ring.set(condition=-torch.ones(8))["condition"]
        for done in ring.tick(torch.randn(16, 4, generator=clip)):
            made[now] = done.frame
    return made, shows, ring


def main() -> None:
    still, _, ring = frames(None)
    print(f"{ring.calls} calls gave {len(still)} frames of {len(LEVELS)} steps each")
    for knob in ("guidance", "condition"):
        made, shows, _ = frames(knob)
        first = min(tick for tick in made if not torch.equal(made[tick], still[tick]))
        print(f"{knob}: turned before tick {TURN}, to show at {shows}, first differs at {first}")
        assert first == shows


if __name__ == "__main__":
    main()
