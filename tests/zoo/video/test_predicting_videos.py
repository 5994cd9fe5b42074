"""Videos: each frame's detections are those of the frame as an image, drawn at its own time."""

import json
import struct
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from registry_case import tiny_checkpoint

from zoo.cli.main import run_command
from zoo.runs.subject import load
from zoo.video import predict as predicting
from zoo.video.frames import Video, is_video
from zoo.video.predict import stem_of

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'detr-zoo[video]'")
FRAMES, RATE = 12, 10


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.ckpt"
    tiny_checkpoint(path)
    return str(path)


def write_video(path, size=(64, 48), times=range(FRAMES), sound=False):
    """A square that moves; frames at times / RATE seconds."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height = size
        if sound:
            audio = file.add_stream("aac", rate=44100)
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            silence.rate = 44100
            file.mux(audio.encode(silence))
            file.mux(audio.encode(None))
        for time in times:
            pixels = np.full((size[1], size[0], 3), 40, np.uint8)
            pixels[8:28, 3 * time : 3 * time + 20] = (240, 200, 30)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "a b.mp4", sound=True)


def predict(model, source, *options, output, code=0):
    words = ["predict", model, str(source), *options, "--output", str(output)]
    assert run_command(words) == code


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def frames_of(path):
    with av.open(str(path)) as file:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]


def test_each_frame_has_the_detections_of_the_image_that_it_is(model, video, tmp_path, capsys):
    predict(model, video, "--threshold", "0", output=tmp_path)
    lines, given = lines_of(tmp_path / "a b.jsonl"), frames_of(video)
    assert [(line["frame"], line["time"]) for line in lines] == [(n, n / RATE) for n in range(FRAMES)]
    detector = load(model)
    for line, (_, pixels) in zip(lines, given, strict=True):
        assert line["detections"] == detector.predict(pixels, 0.0).to_dict()["detections"]
    assert "sound       is not kept" in capsys.readouterr().out


def test_the_video_has_the_boxes_at_the_times_and_size_of_the_source(model, tmp_path):
    times = [0, 1, 2, 5, 6, 9]  # not evenly
    source = write_video(tmp_path / "v.mp4", (66, 50), times)
    predict(model, source, "--threshold", "0", output=tmp_path)
    given, drawn = frames_of(source), frames_of(tmp_path / "v_detections.mp4")
    assert [time for time, _ in drawn] == pytest.approx([time for time, _ in given], abs=1e-4)
    detector = load(model)
    for (_, before), (_, after) in zip(given, drawn, strict=True):
        expected = np.asarray(detector.predict(before, 0.0).paint(before, longest=66)).astype(int)
        assert np.abs(after.astype(int) - expected).mean() < np.abs(before.astype(int) - expected).mean() / 2
    with av.open(str(tmp_path / "v_detections.mp4")) as file:
        assert not file.streams.audio


def test_a_video_of_a_phone_held_upright_is_turned(video, tmp_path):
    """The matrix of its track turns right to down: by 90 degrees with the clock."""
    content = bytearray(video.read_bytes())
    matrix = content.index(b"tkhd") + 44  # behind version, dates, number, length, layer and volume
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    with Video(str(tmp_path / "turned.mp4")) as opened:
        turned = next(iter(opened)).pixels
    assert np.array_equal(turned, np.rot90(frames_of(video)[0][1], -1))


def test_odd_sides_stay(model, tmp_path):
    source = tmp_path / "odd.mkv"
    with av.open(str(source), "w") as file:
        stream = file.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 63, 49, "bgr0"
        frame = av.VideoFrame.from_ndarray(np.zeros((49, 63, 3), np.uint8), format="rgb24")
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    predict(model, source, output=tmp_path)
    [(_, pixels)] = frames_of(tmp_path / "odd_detections.mp4")
    assert pixels.shape == (49, 63, 3)


def test_every_third_frame(model, video, tmp_path):
    predict(model, video, "--every", "3", "--threshold", "0", "--max-detections", "1", output=tmp_path)
    lines = lines_of(tmp_path / "a b.jsonl")
    assert [line["frame"] for line in lines] == [0, 3, 6, 9]
    assert {len(line["detections"]) for line in lines} == {1}
    assert len(frames_of(tmp_path / "a b_detections.mp4")) == FRAMES
    document = json.loads((tmp_path / "predictions.json").read_text())
    assert (document["frames"], document["looked_at"], document["rate"]) == (FRAMES, 4, RATE)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device", "x")])
def test_what_is_written_when_it_is_ended_can_be_played(model, video, tmp_path, monkeypatch, capsys, error):
    look, seen = predicting._Seen.painted, []

    def ending(self, frame):
        if len(seen) == 7:
            raise error
        seen.append(1)
        return look(self, frame)

    monkeypatch.setattr(predicting._Seen, "painted", ending)
    code = 130 if error is KeyboardInterrupt else 2
    predict(model, video, output=tmp_path, code=code)
    assert len(frames_of(tmp_path / "a b_detections.mp4")) == 7
    assert len(lines_of(tmp_path / "a b.jsonl")) == 7
    said = capsys.readouterr().err
    assert ("interrupted after 7 frames; " in said) == (code == 130)


def test_a_killed_video_plays_up_to_its_last_second(model, tmp_path):
    """What is on the disk before the end, without the writer's last word."""
    path = tmp_path / "w.mp4"
    with predicting.VideoWriter(path, Fraction(RATE)) as writer:
        for number in range(100):
            writer.add(np.full((48, 64, 3), number, np.uint8), Fraction(number, RATE))
        so_far = path.read_bytes()
    (tmp_path / "killed.mp4").write_bytes(so_far)
    assert 20 <= len(frames_of(tmp_path / "killed.mp4")) < len(frames_of(path)) == 100


def test_a_video_that_breaks_off_is_told(model, video, tmp_path, capsys):
    whole = write_video(tmp_path / "whole.ts", times=range(100))
    content = bytearray(whole.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    (tmp_path / "hole.ts").write_bytes(content)
    with Video(str(tmp_path / "hole.ts")) as opened:
        number = sum(1 for _ in opened)
        told = opened.faults()
    predict(model, tmp_path / "hole.ts", output=tmp_path / "out", code=1 if told else 0)
    assert number > 40
    assert len(lines_of(tmp_path / "out" / "hole.jsonl")) == number


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.mp4", b"", "cannot be opened as a video"),
        ("text.mp4", b"no video at all\n" * 99, "cannot be opened as a video"),
        ("cut.mp4", None, "cannot be opened as a video|has no frame|has no video stream"),
    ],
)
def test_a_broken_video_is_an_error_of_one_line(model, video, tmp_path, capsys, name, content, message):
    content = video.read_bytes()[:900] if content is None else content
    (tmp_path / name).write_bytes(content)
    predict(model, tmp_path / name, output=tmp_path / "out", code=2)
    error = capsys.readouterr().err
    assert any(words in error for words in message.split("|")), error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out/*.mp4"))


def test_other_errors(model, video, tmp_path, capsys):
    predict(model, tmp_path / "gone.mp4", output=tmp_path, code=2)
    assert "does not exist" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert run_command(["predict", model, str(video), str(tmp_path / "a.png")]) == 2
    assert "give one at a time" in capsys.readouterr().err
    assert run_command(["predict", model, str(tmp_path / "a.png"), "--every", "2"]) == 2
    assert "--every belongs to a video" in capsys.readouterr().err
    predict(model, "99", output=tmp_path, code=2)
    assert "camera 99 cannot be opened" in capsys.readouterr().err
    predict(model, "rtsp://127.0.0.1:9/live", output=tmp_path, code=2)
    assert "rtsp://127.0.0.1:9/live cannot be opened as a video" in capsys.readouterr().err


def test_without_pyav_the_extra_is_named(model, video, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    predict(model, video, output=tmp_path, code=2)
    assert "pip install 'detr-zoo[video]'" in capsys.readouterr().err


def test_what_is_a_video(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [
        s for s in ("a.MP4", "0", "rtsp://u:p@cam/1", "a.jpg", "http://x/a.mp4", "folder") if is_video(s)
    ] == [
        "a.MP4",
        "0",
        "rtsp://u:p@cam/1",
    ]
    (tmp_path / "0").mkdir()
    assert not is_video("0")  # a folder of images of that name
    assert stem_of("rtsp://user:secret@cam:554/live/1") == "cam_554_live_1"
