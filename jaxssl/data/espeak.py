"""Speech and its exact phone times from eSpeak NG's C library, which a child process holds.

The library keeps one state for the whole process: it is not safe between threads, another user of it (a phonemizer,
say) would change our voices and we theirs, what it says depends on what it said before, and an error in C would take a
training run along. A child has its own state, fresh every time, and speaks while the parent writes files. It is
started as a program, not forked (JAX forbids it) nor through `multiprocessing` (which would run the caller's script
again), needs nothing but the standard library, and so imports nothing of this project.
"""

import array
import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import IO, Any

RATE = 22050  # Hz; of every English voice
SYNCHRONOUS, PHONEME_EVENTS, DONT_EXIT = 2, 1, 0x8000  # speak_lib.h: where output goes; what Initialize takes
UTF8, CHARACTERS, PHONEME = 1, 1, 7  # text encoding; position type; event type
PARAMETERS = {"rate": 1, "volume": 2, "pitch": 3, "range": 4}  # espeak_PARAMETER
AHEAD = 4  # requests on their way to the child: it never waits, and none fills the pipe


class Failure(RuntimeError):
    """The library cannot be loaded or stopped working; one line says why."""


@dataclass(frozen=True)
class Request:
    """What to say and how.

    Attributes:
        text: what.
        voice: a voice and its variant, `en-us+f2`.
        rate: words per minute, 80 to 450.
        pitch: 0 to 100, 50 is the voice's own.
        range: of the melody, 0 (monotone) to 100, 50 is the voice's own.
        volume: 0 to 200, 100 is the loudest without distortion.
        seed: of the voice's noise and flutter.
    """

    text: str
    voice: str
    rate: int
    pitch: int
    range: int
    volume: int
    seed: int


@dataclass(frozen=True)
class Spoken:
    """What was said: `samples`, 16 bit at 22.05 kHz, and where each phone begins: (sample, eSpeak's name)."""

    samples: array.array
    phones: tuple[tuple[int, str], ...]


def speak(requests: Iterable[Request], *, library: str, data: str) -> Generator[Spoken, None, None]:
    """Say everything in turn, in a child process; the same requests give the same samples.

    Args:
        requests: what to say.
        library: eSpeak NG's shared library.
        data: its folder `espeak-ng-data`.

    Raises:
        Failure: the library does not work; its last words.
    """
    command = [sys.executable, "-P", __file__, library, data]  # -P: names beside this file hide no standard module
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        assert child.stdin is not None  # it is a pipe
        assert child.stdout is not None
        try:
            yield from _converse(requests, child.stdin, child.stdout)
        except (EOFError, BrokenPipeError) as error:
            code = child.wait()
            errors.seek(0)
            words = errors.read().decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(words) if line.strip()), "no message")
            raise Failure(f"{last} (exit code {code})") from error
        finally:
            child.kill()
            child.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            child.wait()


def _converse(requests: Iterable[Request], to: IO[bytes], answers: IO[bytes]) -> Iterator[Spoken]:
    """Keep a few requests ahead of the answers."""
    waiting: deque[Request] = deque()
    for request in requests:
        to.write(json.dumps(asdict(request)).encode() + b"\n")
        to.flush()
        waiting.append(request)
        if len(waiting) == AHEAD:
            waiting.popleft()
            yield _receive(answers)
    for _ in waiting:
        yield _receive(answers)


def _receive(answers: IO[bytes]) -> Spoken:
    line = answers.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    head = json.loads(line)
    content = answers.read(head["bytes"])
    if len(content) < head["bytes"]:
        raise EOFError
    return Spoken(array.array("h", content), tuple((start, label) for start, label in head["phones"]))


class _Id(ctypes.Union):
    # eSpeak's own names are short; in IPA, which can be asked for, some fill all 8 bytes and leave no 0 at the end.
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):  # espeak_EVENT
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Library:
    """The C library of this process; one at a time."""

    def __init__(self, library: str, data: str):
        os.chdir(data)  # the library cuts paths of more than 160 bytes; "." is short
        self.lib = ctypes.CDLL(library)
        rate = self.lib.espeak_Initialize(SYNCHRONOUS, 0, b".", PHONEME_EVENTS | DONT_EXIT)
        if rate != RATE:
            raise OSError(f"{data}: espeak_Initialize returned {rate} Hz instead of {RATE} Hz")
        self.samples: list[bytes] = []
        self.phones: list[tuple[int, str]] = []
        self.callback = _Callback(self._collect)  # kept: C does not count references
        self.lib.espeak_SetSynthCallback(self.callback)

    def say(self, request: Request) -> tuple[bytes, list[tuple[int, str]]]:
        self.samples, self.phones = [], []
        _check(self.lib.espeak_SetVoiceByName(request.voice.encode()), f"espeak_SetVoiceByName({request.voice!r})")
        for name, parameter in PARAMETERS.items():
            _check(self.lib.espeak_SetParameter(parameter, getattr(request, name), 0), f"espeak_SetParameter({name})")
        self.lib.espeak_ng_SetRandSeed(ctypes.c_long(request.seed))
        text = request.text.encode()
        size = ctypes.c_size_t(len(text) + 1)
        _check(self.lib.espeak_Synth(text, size, 0, CHARACTERS, 0, UTF8, None, None), "espeak_Synth")
        return b"".join(self.samples), self.phones

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self.samples.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].type:  # 0 ends the list
            event = events[index]
            if event.type == PHONEME:
                self.phones.append((event.sample, event.id.string.decode("ascii")))
            index += 1
        return 0


def _check(status: int, call: str) -> None:
    if status:
        raise OSError(f"{call} returned {status}")


def _main(library: str, data: str) -> None:
    """Answer requests, one a line, by a line of JSON and the samples."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever C prints must not come among the samples
    espeak = _Library(library, data)
    for line in sys.stdin.buffer:
        samples, phones = espeak.say(Request(**json.loads(line)))
        answers.write(json.dumps({"bytes": len(samples), "phones": phones}).encode() + b"\n" + samples)
        answers.flush()


if __name__ == "__main__":
    _main(*sys.argv[1:])
