# SPDX-License-Identifier: Apache-2.0
"""Frames of a video file or a camera, through PyAV, which is imported when one is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..errors import bad_value

CAMERA = "/dev/video"
SLACK = 0.75  # seconds that a file may be shorter than it says
GET = "pip install 'headrace[video]'"


class VideoError(ValueError):
    """A video that cannot be read, or not to its end; one line says why."""


def library() -> ModuleType:
    """PyAV. ImportError with one line that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise ImportError(f"PyAV, which reads video, is not installed: {GET} ({error})") from None
    return av


class Video:
    """The frames of a file, or of a camera (/dev/video0), resized for a model of patches.

    rate: frames per second of video that are taken; None for all. longest: pixels of the long side
    that frames are scaled down to; both sides become multiples of `multiple`. Iterating gives
    (seconds from the first frame, frame uint8 [height, width, 3] RGB).

    height, width: of what comes out; native: (height, width) of the source. expected: frames that
    the file says it has, and seconds, None where it does not. read: those decoded so far, taken or
    not.
    ImportError without PyAV; VideoError when there is nothing to read, and from the iterator when
    the file is damaged or ends too early; ValueError for options out of range.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        rate: float | None = None,
        longest: int = 320,
        multiple: int = 16,
    ) -> None:
        if rate is not None and not 0 < rate < float("inf"):
            raise bad_value("Video", "rate", "frames per second above 0", rate)
        if multiple < 1 or longest < multiple:
            raise bad_value("Video", "longest", f"{multiple} or more", longest)
        self._av = library()
        self.name, self.rate, self.read = os.fspath(source), rate, 0
        self.camera = self.name.startswith(CAMERA)
        self._file: Any = self._open()
        try:
            self._stream: Any = self._found()
            code = self._stream.codec_context
            self.native = int(code.height), int(code.width)
            if min(self.native) < 1:
                raise VideoError(f"{self.name}: the video stream has no size; is it truncated?")
            self.codec = str(code.name)
        except BaseException:
            self.close()
            raise
        self.frames_per_second = float(self._stream.average_rate or 0) or None
        self.expected: int | None = int(self._stream.frames) or None
        scale = min(1.0, longest / max(self.native))
        self.seconds = None if self.camera else self._length()
        self.height, self.width = (
            max(1, round(side * scale / multiple)) * multiple for side in self.native
        )

    def __iter__(self) -> Iterator[tuple[float, Tensor]]:
        first, due, seconds = None, 0.0, 0.0
        for frame in self._decoded():
            at = frame.time
            if at is None:
                at = self.read / (self.frames_per_second or 25.0)
            self.read += 1
            first = at if first is None else first
            seconds = at - first
            # Half a thousandth: time stamps are rounded to the container's units.
            if self.rate is not None and seconds + 5e-4 < due:
                continue
            if self.rate is not None:
                due = (int((seconds + 5e-4) * self.rate) + 1) / self.rate
            yield seconds, self._tensor(frame)
        self._check_end(seconds)

    def _check_end(self, seconds: float) -> None:
        """A container that was cut off often just ends: what it says of its length tells."""
        if self.expected is not None and self.read < self.expected:
            got = f"{self.read:,} of {self.expected:,} frames"
        elif self.seconds is not None and seconds + SLACK < self.seconds:
            got = f"{seconds:.1f} of {self.seconds:.1f} seconds"
        else:
            return
        raise VideoError(f"{self.name}: truncated: {got} could be read")

    def _length(self) -> float | None:
        stream, file = self._stream, self._file
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        if file.duration is not None and len(file.streams) == 1:  # else it may be the sound's
            return float(file.duration) / self._av.time_base
        return None

    def _decoded(self) -> Iterator[Any]:
        frames = self._file.decode(self._stream)
        while True:
            try:
                frame = next(frames)
            except StopIteration:
                return
            except (self._av.error.FFmpegError, OSError) as error:
                why = f"damaged or truncated after {self.read:,} frames: {_why(error)}"
                raise VideoError(f"{self.name}: {why}") from None
            yield frame

    def _tensor(self, frame: Any) -> Tensor:
        small = frame.reformat(
            width=self.width, height=self.height, format="rgb24", interpolation="AREA"
        )
        return torch.from_numpy(small.to_ndarray())

    def _open(self) -> Any:
        path = Path(self.name)
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise VideoError(f"{self.name}: {error.strerror}") from None
        if stat.S_ISDIR(mode):
            raise VideoError(f"{self.name}: expected a video file or a camera, got a folder")
        if stat.S_ISREG(mode) and path.stat().st_size == 0:
            raise VideoError(f"{self.name}: the file is empty")
        try:
            return self._av.open(self.name, format="v4l2" if self.camera else None)
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(
                f"{self.name}: not a video that FFmpeg can read, or truncated: {_why(error)}"
            ) from None

    def _found(self) -> Any:
        if not self._file.streams.video:
            raise VideoError(f"{self.name}: has no video stream")
        stream = self._file.streams.video[0]
        if stream.codec_context is None:
            raise VideoError(f"{self.name}: this FFmpeg has no decoder for the video's codec")
        return stream

    def close(self) -> None:
        """Closes the file. Closing twice is fine."""
        self._file.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _why(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()) or type(error).__name__
