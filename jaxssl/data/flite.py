"""Speech and phone times from flite (CMU; Debian's package flite), one program call for each passage.

Its voices: slt, a woman, rms and awb, men of the United States and of Scotland, by statistical models of recorded
speech; kal16, diphones. Black & Lenzo 2001.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from compress.errors import InputError
from jaxssl.data.alignments import SILENCE
from jaxssl.data.manifest import Segment

VOICES = ("slt", "rms", "awb", "kal16")
PAUSE = "pau"
OTHER = {"AX": "AH", "AXR": "ER"}  # its names that are not CMUdict's


def program() -> str:
    """Find flite.

    Raises:
        InputError: it is not installed.
    """
    if (found := shutil.which("flite")) is None:
        raise InputError("flite is not installed; apt-get install flite, or ask for 0 hours of it")
    return found


def speak(text: str, voice: str) -> tuple[np.ndarray, int, tuple[Segment, ...]]:
    """Say a text: (samples,) float32, their rate in Hz, and the phones in seconds.

    Raises:
        InputError: flite is not installed or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        command = [program(), "-voice", voice, "-psdur", "-t", text, "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not path.is_file():
            raise InputError(f"flite: it says {text[:40]!r} with voice {voice} not ({done.stderr.strip()[:200]})")
        samples, rate = soundfile.read(path, dtype="float32")
    return samples, rate, _segments(done.stdout)


def _segments(told: str) -> tuple[Segment, ...]:
    """Read what `-psdur` prints: names and ends of phones, `pau:0.230 aw:0.522 …`."""
    segments, start = [], 0.0
    for word in told.split():
        name, _, end = word.partition(":")
        label = SILENCE if name == PAUSE else OTHER.get(name.upper(), name.upper())
        segments.append(Segment(start, start := float(end), label))
    return tuple(segments)
