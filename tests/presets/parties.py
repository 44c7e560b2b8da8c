# SPDX-License-Identifier: Apache-2.0
"""Perception and compression as processes of their own, over one folder."""

from __future__ import annotations

import importlib
import multiprocessing
import time

import torch

from ..streams.tiny import TinyDecoder, tokens

FRAMES, SIZE, EACH, SUMMARY = 40, 9, 2, 3
omnilive = importlib.import_module("headrace.presets.ixc25_omnilive")
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["headrace.presets"])


def video() -> list[torch.Tensor]:
    return list(tokens(FRAMES * SIZE).split(SIZE))


def engine():
    torch.set_num_threads(1)
    return omnilive.ixc25_omnilive(TinyDecoder(), window=80, page_size=16)


def perceive(folder: str) -> None:
    """Films what is not in the folder yet."""
    with engine() as e:
        party = omnilive.Perceiver(e, omnilive.Folder(folder), frames=EACH, backlog=3)
        while party.frames < FRAMES:
            if not party.watch(video()[party.frames]):
                time.sleep(0.002)


def compress(folder: str) -> None:
    """Until all of it is in the memory."""
    with engine() as e:
        party = omnilive.Compressor(e, omnilive.Folder(folder), summary=SUMMARY, stay=4)
        while party.done < FRAMES // EACH:
            if not party.step():
                time.sleep(0.002)


def started(what, folder: str):
    child = context.Process(target=what, args=(folder,), daemon=True)
    child.start()
    return child
