# SPDX-License-Identifier: Apache-2.0
"""The options of `headrace stream --video`."""

from __future__ import annotations

import argparse
from typing import Any

OPTIONS = ("fps", "longest", "frames", "threshold", "dropper", "no_prune", "gate")


def add(parser: argparse.ArgumentParser, positive: Any, above: Any) -> None:
    """The options of video, which need --video."""
    group = parser.add_argument_group("video")
    group.add_argument(
        "--video", metavar="FILE|DEVICE", help="watch a file, or a camera such as /dev/video0;"
        " --model is then a vision model: a name, a file, or a folder with its files",
    )  # fmt: skip
    group.add_argument(
        "--fps", type=above, metavar="RATE", help="frames taken per second of video (default: all)"
    )
    group.add_argument(
        "--longest", type=positive, metavar="PX", help="long side of what is watched (default: 320)"
    )
    group.add_argument("--frames", type=positive, metavar="N", help="stop after so many")
    group.add_argument(
        "--threshold", type=above, metavar="D",
        help="mean difference of a patch's thumb, 0 to 255, from which it is computed anew"
        " (default: the model's)",
    )  # fmt: skip
    group.add_argument(
        "--dropper", type=above, metavar="COS",
        help="drop tokens whose cosine to those last kept is above this (default: 0.98)",
    )  # fmt: skip
    group.add_argument(
        "--no-prune", action="store_true", default=None, help="compute every patch of every frame"
    )
    group.add_argument(
        "--gate", metavar="cut[:P]|valley|every:N",
        help="when to report: a new scene with probability P (default: cut:0.5), a valley of the"
        " drop ratio, or every N frames",
    )  # fmt: skip
