"""What a run tells is right, survives being broken off, and can be read by others' tools."""

import errno
import io
import json
import os
import struct

import numpy as np
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from jaxssl.training import telemetry
from jaxssl.training.telemetry import Journal, Meter, read_journal


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(telemetry.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_rates_are_over_the_time_since_the_last_reading(clock):
    meter = Meter(peak=1e6)
    for _ in range(5):
        meter.count(audio=6.0, macs=2e5)
    clock.now += 4
    # 5 updates, 30 s of speech and 3 · 10⁶ MACs in 4 s, where 4 · 10⁶ would be possible
    assert meter.read() == {"updates_per_s": 1.25, "audio_s_per_s": 7.5, "mfu": 0.75}
    clock.now += 2
    assert meter.read() == {"updates_per_s": 0, "audio_s_per_s": 0, "mfu": 0}
    meter.count(audio=1.0, macs=0)
    clock.now += 0.5
    assert meter.read() == {"updates_per_s": 2, "audio_s_per_s": 2, "mfu": 0}
    assert meter.read()["updates_per_s"] == 0  # at once: no division by nothing


def write(folder, numbers, *, after=0):
    with Journal(folder, after=after) as journal:
        for number in numbers:
            journal.write(number, "train", {"loss": 10 / number, "run": after})
            if number % 2 == 0:
                journal.write(number, "valid", {"loss": 1 / number})


def test_each_line_is_json(tmp_path):
    write(tmp_path, (1, 2))
    expected = [
        {"step": 1, "part": "train", "loss": 10.0, "run": 0},
        {"step": 2, "part": "train", "loss": 5.0, "run": 0},
        {"step": 2, "part": "valid", "loss": 0.5},
    ]
    assert read_journal(tmp_path) == expected
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == expected


@pytest.mark.parametrize(
    "broken", ["", '{"step": 6, "part": "tra', '{"step": 6, "part": "train", "loss": 1.0}', "\0" * 9]
)
def test_a_resumed_run_drops_what_it_writes_again(tmp_path, broken):
    """All beyond the checkpoint goes, and a last line that was broken off, or only its end."""
    write(tmp_path, (1, 2, 3, 4, 5))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(broken)
    write(tmp_path, (3, 4), after=2)
    rows = read_journal(tmp_path)
    assert [(row["step"], row["part"]) for row in rows] == [
        (1, "train"),
        (2, "train"),
        (2, "valid"),
        (3, "train"),
        (4, "train"),
        (4, "valid"),
    ]
    assert [row["run"] for row in rows if row["part"] == "train"] == [0, 0, 2, 2]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_lines_are_on_disk_at_once(tmp_path):
    with Journal(tmp_path) as journal:
        journal.write(1, "train", {"loss": 1.0})
        assert len(read_journal(tmp_path)) == 1


def test_a_broken_last_line_is_left_out(tmp_path):
    assert read_journal(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_journal(tmp_path) == [{"step": 1}, {"step": 2}]


def events(folder):
    """Read TensorBoard's files as it does: length, checksum, event, checksum."""
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        file = io.BytesIO(path.read_bytes())
        while head := file.read(12):
            (length, check), data = struct.unpack("<QI", head), None
            assert check == masked(head[:8])
            data = file.read(length)
            assert struct.unpack("<I", file.read(4))[0] == masked(data)
            yield Event.FromString(data)


def masked(data):
    """TFRecord's checksum: CRC-32C, turned by 15 bits, plus a constant."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_the_checksum_is_crc32c():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4's polynomial on the usual check string


def test_tensorboard_reads_scalars_and_pictures(tmp_path):
    pixels = np.linspace(-0.5, 1.5, 12, dtype=np.float32).reshape(3, 4)
    with Journal(tmp_path) as journal:
        journal.write(1, "train", {"loss": 2.5, "rate": 0.25})
        journal.picture(1, "masked", pixels)
    found = list(events(tmp_path))
    assert found[0].file_version == "brain.Event:2"
    values = [(event.step, value) for event in found for value in event.summary.value]
    scalars = {value.tag: (step, value.simple_value) for step, value in values if value.HasField("simple_value")}
    assert scalars == {"train/loss": (1, 2.5), "train/rate": (1, 0.25)}
    ((step, picture),) = [(step, value.image) for step, value in values if value.HasField("image")]
    assert (step, picture.height, picture.width) == (1, 3, 4)
    from PIL import Image

    shown = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)).convert("L"))
    np.testing.assert_array_equal(shown, (255 * np.clip(pixels, 0, 1)).astype(np.uint8))


def test_a_resumed_run_tells_tensorboard_what_to_drop(tmp_path):
    write(tmp_path, (1, 2, 3, 4, 5))
    write(tmp_path, (3,), after=2)
    starts = [event.step for event in events(tmp_path) if event.session_log.status == event.session_log.START]
    assert starts[-1] == 3


@pytest.mark.parametrize("when", ["open", "write", "picture", "close"])
def test_training_goes_on_where_tensorboards_disk_is_full(tmp_path, monkeypatch, capsys, when):
    """It is told once; `metrics.jsonl` has all of it."""

    name = {"open": "__init__", "write": "scalar", "picture": "image", "close": "close"}[when]
    close = telemetry.Board.close

    def full(board, *_, **__):
        if when == "close":
            close(board)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(telemetry.Board, name, full)
    with Journal(tmp_path) as journal:
        for number in (1, 2):
            journal.write(number, "train", {"loss": 1.0})
            journal.picture(number, "masked", np.zeros((3, 4)))
    assert len(read_journal(tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "note: TensorBoard's file cannot be written (No space left on device); the run goes on without"


def test_metrics_that_cannot_be_written_end_a_run(tmp_path):
    """By an error that names the file: what a run tells is what it is for."""
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="metrics.jsonl"), Journal(tmp_path) as journal:
        journal.write(1, "train", {"loss": 1.0})
