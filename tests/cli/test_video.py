# SPDX-License-Identifier: Apache-2.0
"""`headrace stream --video`: figures that can be checked, pictures, and what goes wrong."""

import json
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from headrace.cli import main
from headrace.cli.video_track import BINS, PICTURES, Picture, Stretch, VideoTrack, shaded
from headrace.integrations.pyav import Video
from headrace.memory import Sink, Window
from headrace.models import save_vision
from headrace.models.training.video import gated
from headrace.streams.watch import Glance, Watcher, pixel_gate, token_dropper
from tests.videos import made, model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as a directory."""
    path = tmp_path_factory.mktemp("models") / "small"
    save_vision(model(), path)
    return path


@pytest.fixture
def clip(tmp_path):
    return made(tmp_path / "clip.mp4")


def stream(*args):
    return main(["stream", *map(str, args)])


def found():
    with open("headrace-report.json", encoding="utf-8") as file:
        return json.load(file)


def test_the_report_is_what_a_watcher_measures(clip, folder, capsys):
    assert stream("--video", clip, "--model", folder, "--window", 64, "--sinks", 8) == 0
    told, report = capsys.readouterr().out, found()
    small = model()
    small.load_state_dict({k: v.bfloat16().float() for k, v in small.state_dict().items()})
    with Video(clip) as video:
        frames = torch.stack([frame for _, frame in video])
    kept = gated(small, frames, 6.0)
    filters = {"gate": pixel_gate(small), "dropper": token_dropper(0.98)}
    with Watcher(small, 48, 64, memory=Sink(8) + Window(64), **filters) as watcher:
        glances = [watcher.feed(frame) for frame in frames]
        assert report["kv_bytes"] == watcher.resident_bytes
    assert report["frames"] == report["video"]["frames_decoded"] == 40
    assert report["computed"] == pytest.approx(float(kept.float().mean()), abs=1e-5)
    left = sum(float(g.kept.sum()) for g in glances) / kept.numel()
    assert report["kept"] == pytest.approx(left, abs=1e-5)
    assert 0 < report["kept"] <= report["computed"] < 0.6
    assert report["drop_ratio"] == pytest.approx(1 - report["kept"], abs=2e-5)
    at = [g.number for g in glances if g.number and g.cut > 0.5]
    assert [event["frame"] for event in report["reports"]["events"]] == at
    assert report["reports"]["count"] == len(at)
    assert report["step_ms"]["count"] == 40
    assert 0 < report["step_ms"]["p50"] <= report["step_ms"]["p99"]
    assert report["series"]["end"][-1] == 40
    assert report["stopped"] == "at the end"
    assert "frames/s" in told
    assert "\x1b" not in told, "plain lines where there is no terminal"
    assert imread("headrace-report.png").shape[0] > 500


def test_nothing_pruned_computes_everything(clip, folder):
    assert stream("--video", clip, "--model", folder, "--no-prune", "--no-plot") == 0
    report = found()
    assert (report["computed"], report["kept"], report["drop_ratio"]) == (1.0, 1.0, 0.0)


def test_options_reach_the_stream(clip, folder):
    common = ("--video", clip, "--model", folder, "--no-plot")
    assert stream(*common, "--fps", 5, "--gate", "every:3") == 0
    report = found()
    assert report["frames"] == 8
    assert [event["frame"] for event in report["reports"]["events"]] == [2, 5]
    assert stream(*common, "--frames", 7, "--longest", 32, "--gate", "valley") == 0
    report = found()
    assert (report["frames"], report["video"]["width"]) == (7, 32)
    assert stream(*common, "--dropper", 0.1) == 0
    assert found()["kept"] < found()["computed"]
    assert stream(*common, "--threshold", 300, "--dropper", 0.5) == 0
    assert found()["computed"] == pytest.approx(1 / 40)


def test_a_damaged_video_leaves_a_report_of_what_was_seen(tmp_path, folder, capsys):
    path = made(tmp_path / "clip.mkv", frames=80)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert stream("--video", path, "--model", folder) == 1
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    assert "truncated" in told
    report = found()
    assert 0 < report["frames"] < 80
    assert "truncated" in report["stopped"]
    assert imread("headrace-report.png").ndim == 3


@pytest.mark.parametrize("what", ["none", "empty", "folder", "weights", "config", "other", "av"])
def test_what_cannot_begin_is_one_line_and_a_report(
    what, clip, folder, tmp_path, capsys, monkeypatch
):
    used, lacking = folder, tmp_path / "lacking"
    told = {
        "none": "No such file", "empty": "the file is empty", "folder": "load_vision",
        "weights": "model.safetensors missing", "config": "config.json missing",
        "other": "expected format 'headrace.vision.1', got that of 'qwen2_vl'",
        "av": "pip install 'headrace[video]'",
    }[what]  # fmt: skip
    if what == "none":
        clip = tmp_path / "no.mp4"
    elif what == "empty":
        clip.write_bytes(b"")
    elif what == "folder":
        used = tmp_path / "nowhere"
    elif what == "av":
        monkeypatch.setitem(sys.modules, "av", None)
    else:
        lacking.mkdir()
        used = lacking
        for name in ("config.json", "model.safetensors"):
            if not name.startswith("model" if what == "weights" else what):
                (lacking / name).write_bytes((folder / name).read_bytes())
        if what == "other":
            (lacking / "config.json").write_text('{"model_type": "qwen2_vl"}')
    assert stream("--video", clip, "--model", used) == 1
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert told in line
    report = found()
    assert report["frames"] == 0
    assert told in report["stopped"]


def test_options_that_do_not_go_together(clip, folder, capsys):
    for args, told in (
        (("--fps", 2), "stream(--fps): expected --video with it, got none"),
        (("--video", clip, "--compare"), "stream(--compare): expected none with --video"),
        (("--video", clip, "a.txt"), "stream(FILE): expected none with --video"),
        (("--video", clip, "--no-prune", "--threshold", 3), "stream(--no-prune)"),
        (("--video", clip, "--gate", "cut:x"), "stream(--gate): expected cut, cut:P, valley or"),
    ):
        assert stream(*args) == 2
        line = capsys.readouterr().err
        assert told in line
        assert line.count("\n") == 1


def test_what_is_kept_of_a_long_run_does_not_grow():
    track, frame = VideoTrack(), torch.zeros(2, 2, 3, dtype=torch.uint8)
    none, one = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    for i in range(3 * BINS):
        glance = Glance(i, one, one if i % 2 else none, one.long(), 0.0, None)
        track.add(i / 25, frame, glance, 1e-3 * (1 + i % 3), 0.0, i)
    assert len(track.bins) <= BINS
    assert len(track.pictures) <= PICTURES
    series = track.series()
    assert series["end"][-1] == track.total.frames == 3 * BINS
    assert track.share("kept") == pytest.approx(0.5)
    assert np.mean(series["kept"]) == pytest.approx(0.5, abs=0.01)
    assert max(series["step_ms_longest"]) == pytest.approx(3)
    steps = {p.number for p in track.pictures}
    assert 0 in steps
    assert len({b - a for a, b in zip(sorted(steps), sorted(steps)[1:], strict=False)}) == 1


def test_stretches_add_up():
    both = Stretch(1, 0.5, 0.25, 2.0, 2.0, 10)
    both.add(Stretch(1, 1.0, 0.75, 4.0, 4.0, 20))
    assert both == Stretch(2, 1.5, 1.0, 6.0, 4.0, 20)


def test_shading_keeps_the_colour_of_what_was_kept():
    frame = torch.full((2, 6, 3), 100, dtype=torch.uint8)
    frame[..., 0] = 220
    changed, kept = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    shown = shaded(Picture(0, 0.0, frame, changed, kept), 2)
    assert torch.equal(shown[:, :2], frame[:, :2])
    assert (shown[0, 2] == shown[0, 2, 0]).all()
    assert int(shown[0, 2, 0]) > int(shown[0, 4, 0]) > 0
