"""One system's forward passes, one for each line on standard input; what `benchmarks.forward` starts.

    python -m benchmarks.passes ours float32 FOLDER

FOLDER has the model's arch as arch.json and what others read (`benchmarks.rivals.write`). A line is a question as JSON:
`prepare` a load, `run` it, `write` files, or time `forms` or `parts` of the model, all in this process.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import rivals, timed_forms
from benchmarks.turns import serve
from jaxssl.inference.latency import Load, Program
from jaxssl.inference.latency import race as in_turns
from jaxssl.models.arch import Arch, LogMel
from jaxssl.models.arch_json import from_json
from jaxssl.models.model import Params, init
from jaxssl.runtime import compiled

SETTLE = 0.25  # seconds until others' threads spin no more, and one's own are awake
WORTH = 0.15  # seconds of runs that one turn takes the median of


@dataclass
class Passes:
    """Answers questions on one system."""

    system: str
    dtype: str
    folder: Path
    _start: rivals.Start | None = None
    _program: Program | None = None
    _long: bool = False

    @property
    def arch(self) -> Arch:
        """The model's."""
        return from_json(json.loads((self.folder / "arch.json").read_text()))

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Answer one."""
        load = Load(question["seconds"], question["batch"]) if "seconds" in question else None
        match question["do"]:
            case "write":
                rivals.write(self.arch, _weights(self.arch), question["forms"], self.folder)
                return {}
            case "prepare":
                assert load is not None
                self._program = None  # before the next one, so that memory is held once
                self._program = self._started()(load)
                self._program.run()
                begin = time.perf_counter()
                self._program.run()
                self._long = time.perf_counter() - begin > SETTLE
                return {}
            case "run":
                assert self._program is not None
                return {"seconds": timed(self._program.run, long=self._long)}
        assert load is not None
        shapes = timed_forms.compressed if question["do"] == "forms" else timed_forms.without
        programs = {name: self._fresh(arch)(load) for name, arch in shapes(self.arch).items()}
        return {name: timing.seconds for name, timing in in_turns(programs, rounds=question["rounds"]).items()}

    def _started(self) -> rivals.Start:
        if self._start is None:
            logmel = isinstance(self.arch.front, LogMel)
            self._start = (
                self._fresh(self.arch)
                if self.system in ("ours", "convolutions")
                else rivals.start(self.system, self.dtype, self.folder, logmel=logmel)
            )
        return self._start

    def _fresh(self, arch: Arch) -> rivals.Start:
        """Start a model whose weights are made here."""
        params = _weights(arch)
        if self.system in ("ours", "convolutions"):
            return rivals.ours(arch, params, self.dtype, convolutions=self.system == "convolutions")
        logmel = isinstance(arch.front, LogMel)
        return rivals.pytorch(rivals.module(arch, params), self.system, self.dtype, logmel=logmel)


def timed(run: Callable[[], None], *, long: bool) -> float:
    """Return the median seconds of a run, after others' threads have come to rest.

    Args:
        run: once, to the end.
        long: whether a run takes longer than others' threads spin: it waits meanwhile, instead of warming up once more.
    """
    if long:
        time.sleep(SETTLE)
    begin = time.perf_counter()
    while not long and time.perf_counter() - begin < SETTLE:
        run()
    seconds: list[float] = []
    while sum(seconds) < WORTH:
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def _weights(arch: Arch) -> Params:
    return init(arch, jax.random.key(0, impl="rbg"))


if __name__ == "__main__":
    compiled.remember()
    name, dtype, folder = sys.argv[1:]
    serve(Passes(name, dtype, Path(folder)).answer)
