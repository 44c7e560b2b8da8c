# SPDX-License-Identifier: Apache-2.0
"""Frames of files, and files that are not what they should be."""

import sys

import av
import numpy as np
import pytest
import torch

from headrace.integrations.pyav import Video, VideoError
from tests.videos import made


def times(source, **options):
    with Video(source, **options) as video:
        return [seconds for seconds, _ in video]


def test_every_frame_as_ffmpeg_decodes_it(tmp_path):
    path = made(tmp_path / "a.mp4")
    with Video(path) as video:
        assert (video.height, video.width, video.native) == (48, 64, (48, 64))
        assert (video.expected, video.codec, video.frames_per_second) == (40, "mpeg4", 25.0)
        got = list(video)
    with av.open(str(path)) as file:
        want = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(got) == len(want) == 40
    assert [t for t, _ in got] == pytest.approx([i / 25 for i in range(40)])
    for (_, ours), theirs in zip(got, want, strict=True):
        assert (ours.dtype, ours.shape) == (torch.uint8, (48, 64, 3))
        assert np.array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize(("rate", "count"), [(5, 8), (10, 16), (7, 11), (100, 40), (0.5, 1)])
def test_frames_are_taken_at_a_rate_of_the_video(tmp_path, rate, count):
    taken = times(made(tmp_path / "a.mp4"), rate=rate)
    assert len(taken) == count
    for i, seconds in enumerate(taken[: 40 if rate <= 25 else 0]):
        assert 0 <= seconds - i / rate < 1 / 25 + 1e-6


def test_sides_become_multiples_within_the_longest(tmp_path):
    path = made(tmp_path / "a.mp4", height=96, width=160)
    with Video(path, longest=80, multiple=16) as video:
        (_, frame), *_ = video
        assert (video.height, video.width) == tuple(frame.shape[:2]) == (48, 80)
    with Video(path, longest=80, multiple=32) as video:
        assert (video.height, video.width) == (64, 64)


def test_bad_files_are_told_in_one_line(tmp_path):
    whole = made(tmp_path / "whole.mp4").read_bytes()
    empty, text, start = (tmp_path / f"{n}.mp4" for n in ("empty", "text", "start"))
    empty.write_bytes(b"")
    text.write_text("no video, " * 100)
    start.write_bytes(whole[: len(whole) // 2])  # the index, at the end, is missing
    for path, told in (
        (tmp_path / "none.mp4", "No such file"),
        (tmp_path, "got a folder"),
        (empty, "the file is empty"),
        (text, "not a video that FFmpeg can read, or truncated"),
        (start, "not a video that FFmpeg can read, or truncated"),
    ):
        with pytest.raises(VideoError, match=told) as caught:
            Video(path)
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)


@pytest.mark.parametrize("container", ["mkv", "mp4"])
def test_a_video_that_ends_too_early_says_so(tmp_path, container):
    path = made(tmp_path / f"a.{container}", frames=80)
    data = path.read_bytes()
    if container == "mkv":
        path.write_bytes(data[: len(data) // 3])
    else:  # the index is there, frames are not
        with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w", options={
            "movflags": "faststart"
        }) as out:  # fmt: skip
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
        path = tmp_path / "b.mp4"
        path.write_bytes(path.read_bytes()[: len(data) // 2])
    seen = []
    with Video(path) as video, pytest.raises(VideoError, match="truncated") as caught:
        seen += [t for t, _ in video]
    assert 0 < video.read < 80
    assert "\n" not in str(caught.value)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 44100
        for packet in [*stream.encode(frame), *stream.encode()]:
            file.mux(packet)
    with pytest.raises(VideoError, match="has no video stream"):
        Video(path)


def test_options_out_of_range():
    with pytest.raises(ValueError, match=r"Video\(rate\)"):
        Video("a.mp4", rate=0)
    with pytest.raises(ValueError, match=r"Video\(longest\)"):
        Video("a.mp4", longest=8)


def test_without_pyav_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'headrace\[video\]'") as caught:
        Video("a.mp4")
    assert "\n" not in str(caught.value)
