"""A video that is cut or damaged is told from one that is whole, by what its own file says."""

import json
import struct
from fractions import Fraction

import numpy as np
import pytest
from registry_case import tiny_checkpoint

from zoo.cli.main import run_command
from zoo.video.frames import Video

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'detr-zoo[video]'")
RATE, NUMBER = 10, 30
FASTSTART = {"movflags": "faststart"}


def noise(number):
    return np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)


def write_video(path, codec="mpeg4", times=range(NUMBER), muxer=None, encoder=None, sound=0, rate=RATE):
    """Frames of noise at times / rate seconds, and seconds of sound."""
    with av.open(str(path), "w", options=muxer or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=encoder or {})
        stream.width, stream.height = 64, 48
        audio = file.add_stream("aac", rate=48000) if sound else None
        for time in times:
            frame = av.VideoFrame.from_ndarray(noise(time), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            file.mux(stream.encode(frame))
        for number in range(sound * 48000 // 1024):
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            silence.rate, silence.pts, silence.time_base = 48000, 1024 * number, Fraction(1, 48000)
            file.mux(audio.encode(silence))
        for one in (stream, audio):
            if one is not None:
                file.mux(one.encode(None))
    return path


def read(path):
    with Video(str(path)) as video:
        return sum(1 for _ in video), video.faults()


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


@pytest.mark.parametrize("share", [0.5, 0.6, 0.9])
@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("a.mp4", {"muxer": FASTSTART}, f"{NUMBER} frames"),
        ("b.mov", {"muxer": FASTSTART, "encoder": {"bf": "2"}}, f"{NUMBER} frames"),
        ("a.mkv", {}, "3 s"),
        ("b.mkv", {"encoder": {"bf": "2"}}, "3 s"),
        ("vfr.mkv", {"times": [0, 1, 2, 5, 6, *range(9, 30)]}, "3 s"),
        ("a.avi", {}, "3 s"),
        ("a.flv", {"codec": "flv"}, "3 s"),
    ],
)
def test_what_a_cut_file_says_and_what_could_be_read(tmp_path, name, options, says, share):
    number, faults = read(cut(write_video(tmp_path / name, **options), share))
    assert 0 < number < NUMBER
    assert faults[0].startswith(f"the file says {says}, ")
    assert faults[0].endswith("could be read: it is cut or damaged")


def test_an_avi_of_one_frame_of_many_is_cut(tmp_path):
    path = write_video(tmp_path / "a.avi")
    content = path.read_bytes()
    first = content.index(b"00dc", content.index(b"movi"))
    path.write_bytes(content[: content.index(b"00dc", first + 4)])
    number, faults = read(path)
    assert (number, faults[0][:18]) == (1, "the file says 3 s,")


def test_fragments_that_are_told_in_an_index_before_them(tmp_path):
    muxer = {"movflags": "frag_keyframe+empty_moov+default_base_moof+global_sidx"}
    path = write_video(tmp_path / "a.mp4", muxer=muxer, encoder={"g": "10"})
    assert read(path) == (NUMBER, [])
    number, faults = read(cut(path, 0.5))
    assert 0 < number < NUMBER
    assert faults[0].startswith("the file says 3 s, ")


def test_a_cut_video_keeps_what_was_found_and_ends_with_1(tmp_path, capsys):
    tiny_checkpoint(tmp_path / "tiny.ckpt")
    source = cut(write_video(tmp_path / "a.mp4", muxer=FASTSTART), 0.5)
    number, _ = read(source)
    options = ["--every", "2", "--output", str(tmp_path / "out")]
    assert run_command(["predict", str(tmp_path / "tiny.ckpt"), str(source), *options]) == 1
    said = f"{source}: the file says {NUMBER} frames, {number} could be read: it is cut or damaged"
    assert f"damaged     {said}" in capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert (document["frames"], document["unreadable"][0]) == (number, said)
    assert len((tmp_path / "out" / "a.jsonl").read_text().splitlines()) == -(-number // 2)


@pytest.mark.parametrize(
    ("name", "codec", "told"),
    [
        ("a.mp4", "mpeg4", "packets could not be decoded"),
        ("a.mkv", "mpeg4", "decoded with parts missing"),
        ("a.avi", "mpeg4", f"the file says {NUMBER} frames"),
        ("a.ts", "mpeg2video", "decoded with parts missing"),
    ],
)
def test_a_hole_is_told(tmp_path, name, codec, told):
    path = write_video(tmp_path / name, codec, rate=25)
    content = bytearray(path.read_bytes())
    middle, hole = len(content) // 2, len(content) // 8
    content[middle : middle + hole] = bytes(hole)
    path.write_bytes(content)
    number, faults = read(path)
    assert number > NUMBER // 2
    assert told in " ".join(faults)


UNEVEN = [0, 1, 2, 30, 31, 60]
SLOW = {"b": "20k", "maxrate": "20k", "bufsize": "4000k"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("uneven.mp4", {"times": UNEVEN}),
        ("uneven.mkv", {"times": UNEVEN}),
        ("uneven.avi", {"times": UNEVEN}),  # its header counts the frames between
        ("uneven.flv", {"times": UNEVEN, "codec": "flv"}),
        ("b.avi", {"encoder": {"bf": "2"}}),
        ("b.ts", {"codec": "mpeg2video", "encoder": {"bf": "2"}, "rate": 25}),
        ("b.mp4", {"encoder": {"bf": "2"}}),
        ("late.mkv", {"times": range(100, 120)}),
        ("late.mp4", {"times": range(100, 120)}),
        ("one.mp4", {"times": [0]}),
        ("one.mkv", {"times": [0]}),
        ("ntsc.mkv", {"rate": Fraction(30000, 1001)}),
        ("fragments.mp4", {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
        ("live.mkv", {"muxer": {"live": "1"}}),  # no length at all
        ("raw.m1v", {"codec": "mpeg1video", "rate": 25, "encoder": SLOW}),  # its length is guessed from that
        ("sound.mp4", {"sound": 5}),
        ("sound.mkv", {"sound": 5}),
        ("short.flv", {"sound": 1, "codec": "flv"}),
    ],
)
def test_a_whole_file_is_not_called_damaged(tmp_path, name, options):
    path = write_video(tmp_path / name, **options)
    assert read(path) == (len(options.get("times", range(NUMBER))), [])


def test_a_file_whose_edit_list_shows_a_part_is_whole(tmp_path):
    path = write_video(tmp_path / "a.mp4", "h264")
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12  # behind version, flags and number of entries
    _, first = struct.unpack(">Ii", content[entry : entry + 8])
    content[entry : entry + 8] = struct.pack(">Ii", 1000, first + 10240)  # one second, from the second on
    path.write_bytes(content)
    number, faults = read(path)
    assert (number, faults) == (RATE, [])


def test_frames_that_an_avi_leaves_out_at_its_end_are_not_missing(tmp_path):
    path = write_video(tmp_path / "a.avi")
    content = bytearray(path.read_bytes())
    number = content.index(b"strh") + 40
    assert struct.unpack("<I", content[number : number + 4]) == (NUMBER,)
    content[number : number + 4] = struct.pack("<I", NUMBER + 20)
    path.write_bytes(content)
    assert read(path) == (NUMBER, [])


def test_the_last_frame_may_be_shown_as_long_as_another(tmp_path):
    """FLV keeps when a frame begins, and the length of the whole."""
    source = write_video(tmp_path / "a.flv", "flv", times=[0, 1, 2, 3, 40, 41, 42])
    with av.open(str(source)) as given, av.open(str(tmp_path / "b.flv"), "w") as file:
        stream = file.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(video=0) if packet.dts is not None]
        packets[-1].duration = 3500  # ms
        for packet in packets:
            packet.stream = stream
            file.mux(packet)
    assert read(tmp_path / "b.flv") == (7, [])


def test_a_recording_that_begins_between_key_frames_is_whole(tmp_path):
    path = write_video(tmp_path / "a.ts", "mpeg2video", encoder={"g": "10", "bf": "2"}, rate=25)
    content = path.read_bytes()
    packets = len(content) // 188
    path.write_bytes(content[packets // 2 * 188 :])
    number, faults = read(path)
    assert 0 < number < NUMBER
    assert faults == []
