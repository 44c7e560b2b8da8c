# SPDX-License-Identifier: Apache-2.0
"""Streams: unbounded token sequences through a model, many of them in one step, and rings of
frames.
"""

from .clock import Clock, Linear, Polynomial, Real, Recorded, Virtual, Work
from .encoder import Encoder
from .encoder_stream import EncoderStream
from .engine import Engine, wrap
from .events import Event
from .gate import Every, Gate, HeadSum, Marker, OnQuery, PplRise, SceneCut, Signal, TokenProb, WaitK
from .lane import Lane, Lanes
from .oracle import lanes_oracle, oracle, recompute
from .piece import Piece
from .positions import Absolute, InCache, Keep3D, PerLane, Relative
from .record import load, replay, save
from .report import Report, Updated
from .ring import Finished, Ring
from .ring_solver import Diffusion, Flow
from .run import Run
from .serve import Server, serve
from .snapshot import Resumed, resume, snapshot
from .stream import Mark, Stream
from .timing import Outcome, Timing

__all__ = [
    "Absolute",
    "Clock",
    "Diffusion",
    "Encoder",
    "EncoderStream",
    "Engine",
    "Event",
    "Every",
    "Finished",
    "Flow",
    "Gate",
    "HeadSum",
    "InCache",
    "Keep3D",
    "Lane",
    "Lanes",
    "Linear",
    "Mark",
    "Marker",
    "OnQuery",
    "Outcome",
    "PerLane",
    "Piece",
    "Polynomial",
    "PplRise",
    "Real",
    "Recorded",
    "Relative",
    "Report",
    "Resumed",
    "Ring",
    "Run",
    "SceneCut",
    "Server",
    "Signal",
    "Stream",
    "Timing",
    "TokenProb",
    "Updated",
    "Virtual",
    "WaitK",
    "Work",
    "lanes_oracle",
    "load",
    "oracle",
    "recompute",
    "replay",
    "resume",
    "save",
    "serve",
    "snapshot",
    "wrap",
]
