"""Reading speech: right for good files, one clear line for every bad one."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from compress.errors import InputError
from jaxssl.data import decode
from jaxssl.data.audio import find, read, resampling_notes
from jaxssl.data.decode import check_size
from jaxssl.data.manifest import header_length


def tone(seconds=0.5, rate=16000, hertz=440.0):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_formats(tmp_path, suffix):
    soundfile.write(tmp_path / f"a.{suffix}", tone(), 16000)
    speech = read(tmp_path / f"a.{suffix}")
    assert speech.samples.dtype == np.float32
    assert (len(speech.samples), speech.rate, speech.seconds) == (8000, 16000, 0.5)
    tolerance = 0.2 if suffix == "ogg" else 1e-4
    np.testing.assert_allclose(speech.samples, tone(), atol=tolerance)


def test_channels_are_mixed(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(), -tone()], 1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(read(tmp_path / "a.wav").samples, 0, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_other_rates_are_resampled_and_said(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate=rate), rate, subtype="FLOAT")
    speech = read(tmp_path / "a.wav")
    assert len(speech.samples) == 8000
    np.testing.assert_allclose(speech.samples[500:-500], tone()[500:-500], atol=2e-3)
    assert resampling_notes([speech, speech]) == [f"resampled 2 file(s) from {rate} Hz to 16000 Hz"]
    soundfile.write(tmp_path / "b.wav", tone(), 16000)
    assert resampling_notes([read(tmp_path / "b.wav")]) == []


def test_not_finite_samples_are_counted(tmp_path):
    samples = tone()
    samples[[3, 5]] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"a\.wav: 2 of 8000 samples"):
        read(tmp_path / "a.wav")


@pytest.mark.parametrize("rate", [1, 3, 999, 800_000])
def test_rates_that_no_speech_has_are_refused_before_resampling(tmp_path, rate):
    """A million samples of 1 Hz are 16 thousand million at 16 kHz."""
    soundfile.write(tmp_path / "a.wav", tone(), rate, subtype="FLOAT")
    for ask in (read, header_length):
        with pytest.raises(InputError, match=rf"a\.wav: {rate} samples a second.*1000 to 768000"):
            ask(tmp_path / "a.wav")


@pytest.mark.parametrize("frames", [10**10, 2**62])
@pytest.mark.parametrize("channels", [1, 2, 65])
def test_lengths_that_no_speech_has_are_refused_before_memory_is_taken(tmp_path, frames, channels):
    with pytest.raises(InputError, match=r"a: .*(at most; split it|more than 64)"):
        check_size(tmp_path / "a", frames=frames, rate=16000, channels=channels)


def test_what_a_header_promises_takes_no_memory(tmp_path):
    """A FLAC file says how many samples it has; here 400 million of them, of which there are 8000."""
    soundfile.write(tmp_path / "a.flac", tone(), 44100)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[22:26] = (400_000_000).to_bytes(4, "big")
    (tmp_path / "a.flac").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"truncated.*400000000 samples"):
        read(tmp_path / "a.flac")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; all of it is 1.6 GB


@pytest.mark.parametrize("rate", [16000, 8000])
@pytest.mark.parametrize("number", [3e38, -1e10])
def test_finite_samples_that_are_none_are_refused(tmp_path, rate, number):
    """They are infinite once channels are mixed, rates converted or energies taken."""
    samples = np.stack([tone(rate=rate)] * 2, 1)
    samples[7:9] = number
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    with pytest.raises(InputError, match=r"a\.wav: a sample is .*full scale is 1"):
        read(tmp_path / "a.wav")


def test_a_file_of_several_blocks_is_read_whole(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(), 16000, subtype="FLOAT")
    whole = read(tmp_path / "a.wav").samples
    for block in (1000, 3000, 8000):
        monkeypatch.setattr(decode, "BLOCK", block)
        np.testing.assert_array_equal(read(tmp_path / "a.wav").samples, whole)


def test_too_short_for_one_frame(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone()[:399], 16000)
    with pytest.raises(InputError, match=r"399 samples.*400"):
        read(tmp_path / "a.wav")


def test_find_walks_folders_and_manifests_once(tmp_path):
    for name in ("b/2.wav", "b/1.FLAC", "a.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "list.tsv").write_text("path\tsamples\nb/2.wav\t3\na.wav\t4\n")
    everything = find([tmp_path])
    assert [str(p.relative_to(tmp_path)) for p in everything] == ["a.wav", "b/1.FLAC", "b/2.wav"]
    assert find([tmp_path / "list.tsv"]) == (tmp_path / "b/2.wav", tmp_path / "a.wav")
    assert find([tmp_path / "a.wav", tmp_path]) == everything


def test_one_file_written_in_two_ways_is_found_once(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.wav").touch()
    assert find([tmp_path / "a.wav", tmp_path / "b/../a.wav", str(tmp_path)]) == (tmp_path / "a.wav",)


def test_hidden_files_are_passed_over(tmp_path):
    (tmp_path / "._a.wav").touch()
    with pytest.raises(InputError, match="no audio in this folder"):
        find([tmp_path])


def test_manifests_from_other_editors(tmp_path):
    """A byte order mark and Windows' line ends are fine; another encoding is not."""
    (tmp_path / "a.wav").touch()
    (tmp_path / "list.tsv").write_bytes(b"\xef\xbb\xbfpath\ttext\r\na.wav\tONE\r\n")
    assert find([tmp_path / "list.tsv"]) == (tmp_path / "a.wav",)
    (tmp_path / "list.tsv").write_bytes("path\ttext\na.wav\tGRÜN\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"not a manifest.*UTF-8"):
        find([tmp_path / "list.tsv"])


def test_nothing_to_find(tmp_path):
    with pytest.raises(InputError, match="no audio: name files"):
        find([])
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="no audio in this folder"):
        find([tmp_path])
    with pytest.raises(InputError, match="no such file or folder"):
        find([tmp_path / "gone"])
    (tmp_path / "list.tsv").write_text("path\tsamples\ngone.wav\t3\n")
    with pytest.raises(InputError, match="1 of 1 files are missing"):
        find([tmp_path / "list.tsv"])
    (tmp_path / "list.tsv").write_text("word\n")
    with pytest.raises(InputError, match="not a manifest"):
        find([tmp_path / "list.tsv"])


SETS = {
    "fsdd_600": 600,
    "librispeech_examples_3": 3,
    "librispeech_test_other_10x10": 100,
    "librispeech_train_clean_251": 251,
    "librivox_austen_5": 5,
    "mfa_tests_4": 4,
}


@pytest.mark.parametrize(("name", "count"), SETS.items())
def test_real_speech_is_found_and_read(shared, name, count):
    """Folder and manifest name the same files; the first and the last are as long as the manifest says."""
    folder = shared / "speech" / name
    files = find([folder / "manifest.tsv"])
    assert len(files) == count
    assert set(files) == set(find([folder]))
    rows = [line.split("\t") for line in (folder / "manifest.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    for file, row in ((files[0], rows[0]), (files[-1], rows[-1])):
        assert len(read(file).samples) == int(row[1])


def test_importing_is_light():
    """Without resampling neither librosa nor JAX is loaded; the names live in a fresh interpreter."""
    code = "import sys, jaxssl.data.audio; sys.exit(bool({'librosa', 'jax', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
