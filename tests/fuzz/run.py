"""Read many damaged inputs in one process: `python -m tests.fuzz.run SEED PART PARTS COUNT [TARGETS]`.

Of inputs 0 to COUNT it reads every PARTS-th, from PART on, of the targets whose names have TARGETS in them. It prints
a line of JSON for each that is no result and no refusal in one line: target, number, what went wrong. The last line
counts.
"""

import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import librosa
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10  # of the processor that an input may take; other processes' load counts not
SPARE = 512 << 20  # bytes that reading may take beside four times the input
LONGEST = 2100  # characters of a refusal
RUNS = frozenset(
    {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn", "socket.connect"}
)


class TooLong(BaseException):
    """An input that takes over SECONDS of the processor."""


def main(seed: str, part: int, parts: int, count: int, only: str = "") -> None:
    from jaxssl.runtime import hooks
    from tests.fuzz.targets import targets

    hooks.install()  # as commands do
    started = list[str]()
    sys.addaudithook(lambda event, _: started.append(event) if event in RUNS else None)
    signal.signal(signal.SIGPROF, _late)
    # A damaged header may be the first to ask for another rate; what that imports and compiles is no input's fault.
    librosa.resample(np.zeros(8, np.float32), orig_sr=8000, target_sr=16_000)
    data = ROOT.parent / "shared" / "data"
    kinds = [each for each in targets(data if data.is_dir() else None) if only in each.name]
    shares = [each for each in kinds for _ in range(each.share)]
    told = Counter[str]()
    slowest = (0.0, "")
    with tempfile.TemporaryDirectory() as place:
        root, made = Path(place), dict[str, Path]()
        os.chdir(root)
        for number in range(part, count, parts):
            kind = shares[number % len(shares)]
            if kind.name not in made:
                whole = root / f"whole-{len(made)}"
                whole.mkdir()
                kind.make(whole)
                try:  # undamaged, it is read; and what is imported then counts not
                    with redirect_stdout(StringIO()):
                        kind.read(_copy(whole, root / "input"))
                except BaseException as error:
                    print(json.dumps([kind.name, -1, _refusal(error)[1] or str(error)]), flush=True)
                made[kind.name] = whole
            copy = _copy(made[kind.name], root / "input")
            size = kind.spoil(copy, random.Random(f"{seed}/{kind.name}/{number}"))
            started.clear()
            began = time.process_time()
            verdict, wrong = _verdict(kind, copy, size)
            took = time.process_time() - began
            slowest = max(slowest, (took, f"{kind.name} {number}"))
            if started or (root / "pwned").exists():
                wrong = f"it ran something: {started}"
            told[verdict] += 1
            if wrong:
                print(json.dumps([kind.name, number, wrong]), flush=True)
    print(json.dumps({"counts": told, "slowest": slowest}))


def _copy(whole: Path, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    return place


def _late(*_: object) -> None:
    raise TooLong


def _verdict(kind, folder, size):
    """Read one input; return what came of it, and what is wrong with that, if anything."""
    before = _peak(reset=True)
    faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # one that waits for ever
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    said = StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("error")
            kind.read(folder)
        verdict, wrong = "read", None
    except BaseException as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        verdict, wrong = _refusal(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
    if not wrong and any(not each.isprintable() and each not in "\n\t" for each in said.getvalue()):
        wrong = f"it prints control characters: {said.getvalue()[:300]!r}"
    took = _peak() - before
    if took > 4 * size + SPARE:
        wrong = f"{took >> 20} MB for {size} bytes"
    return verdict, wrong


def _refusal(error):
    from compress.errors import InputError

    if isinstance(error, FileNotFoundError):  # which a command tells in one line, with the file's name
        return "missing", None
    if not isinstance(error, InputError):
        frames = traceback.extract_tb(error.__traceback__)[:-10:-1]
        where = " < ".join(f"{frame.filename.removeprefix(str(ROOT))}:{frame.lineno}" for frame in frames)
        return "traceback", f"{type(error).__name__}: {str(error)[:300]!r} at {where}"
    text = str(error)
    if len(text) > LONGEST or any(not each.isprintable() for each in text):
        return "refused", f"a refusal of {len(text)} characters: {text[:100]!r} … {text[-100:]!r}"
    return "refused", None


def _peak(*, reset=False):
    """Return the most memory that this process had since the last reset, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
    main(sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:])
