"""The points of a pruning curve: each model saved, evaluated, costed, timed and probed; the curve redrawn as it grows.

out/points.json         the finished points, which a broken-off run need not measure again
out/curve.csv           all of them so far
out/curve.png           the same, but for points of the last seconds while a run goes on
out/held-out/NAME.npz   what a point's model made of each held-out utterance, for paired comparisons
out/models/NAME/        the model of a point

A point that is there is whole; what a broken-off run had begun of the next one is measured again.
"""

import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from compress.address import flatten
from compress.encoding import decode, encode, encoded_bytes
from compress.sparse import Masks, apply_masks, zero_masks
from experiments.curves.bare import bare, bare_arch
from experiments.curves.columns import Row, show
from experiments.curves.transcripts import Transcripts
from experiments.probes.probing import Probes
from experiments.reports import pictures
from jaxssl.data.logmel import stats_bytes
from jaxssl.inference.latency import Load, Program, compile_forward, race, speedup
from jaxssl.inference.source import Model
from jaxssl.models import checkpoint, cost
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.models.model import Params
from jaxssl.models.sites import matrices
from jaxssl.runtime import files
from jaxssl.runtime.cli import console, progress
from jaxssl.training.corpus import Data, HeldOut, hear, read_heard
from jaxssl.training.settings import Training
from jaxssl.training.two_fronts import heard_by

PRUNED = 1e-3  # share of an array's entries that must be zero for its zeros to be meant
# The same where int8 made zeros, too: of normal weights the share 0.8 · m / 254, m their largest in deviations.
ROUNDED = 0.2
SPARSER = 0.99  # of a model's bytes: what its encoding takes at most that is kept beside it
ALONE = 5  # timed runs of the dense model by itself, which no point's ratio is made of
REDRAWN = 20  # seconds between two pictures of a run: one takes half a second, a small model's point not much more


@dataclass(frozen=True)
class Subject:
    """What pruning acts on.

    Attributes:
        arch: what `params` is.
        params: the model; entries that the masks drop need not be zero.
        masks: entries that stay, by path; none where nothing is masked.
    """

    arch: Arch
    params: Params
    masks: Masks

    @property
    def seen(self) -> Params:
        """The parameters as the model runs with them."""
        return apply_masks(self.params, self.masks) if self.masks else self.params


def with_zeros(arch: Arch, params: Params, *, meant: float = PRUNED) -> Subject:
    """Take a model up: weights that were pruned stay zero, in arrays of which more than `meant` is."""
    masks = {path: mask for path, mask in zero_masks(params, matrices(arch)).items() if np.mean(mask) < 1 - meant}
    return Subject(arch, params, masks)


@dataclass(frozen=True)
class Fast:
    """A model in the form that its timing is of, and what shows that it is the same model.

    Attributes:
        arch: what `params` is.
        params: the arrays.
        rows: measurements that chose the form, for the report.
        error: relative error of its output against the plain form's on speech; None where it is the plain form.
    """

    arch: Arch
    params: Params
    rows: Sequence[Mapping[str, Any]] = ()
    error: float | None = None


@dataclass(frozen=True)
class Bench:
    """What every point of a run is measured with.

    Attributes:
        out: the run's folder.
        model: before pruning.
        data: labelled speech; None: no point is asked what it predicts.
        training: settings of the batches that evaluate.
        load: what is timed.
        dtype: of the computation.
        rounds: timed runs of each program.
        probes: of phones and speakers, where they exist.
        technique: weights, heads or rows.
        label: of the curve, in pictures of several runs.
        fast: puts a point into the form that is timed.
        controls: what the dense model trained as long made of each held-out utterance, by update.
        wrote: columns that say what its CTC layer wrote of them, by update.
        programs: compiled forward passes by shape.
        raced: how long they take, by the shape of those that were timed beside the dense model.
        draw: makes curve.png, called as `pictures.draw_curve`, which None stands for.
        transcripts: held-out speech that the model's CTC layer writes down, where it has one.
        drawn: when this process last drew curve.png, by `time.monotonic`; empty: never.
        clock: times a point of some name, in place of a race of all on noise.
    """

    out: Path
    model: Model
    data: Data | None
    training: Training
    load: Load
    dtype: Any
    rounds: int
    probes: Probes | None
    technique: str
    label: str = ""
    fast: Callable[[Subject], Fast] = lambda subject: Fast(subject.arch, subject.seen)
    controls: dict[int, HeldOut] = field(default_factory=dict)
    wrote: dict[int, Row] = field(default_factory=dict)
    programs: dict[Arch, Program] = field(default_factory=dict)
    raced: dict[Arch, Row] = field(default_factory=dict)
    draw: Callable[..., None] | None = None
    transcripts: Transcripts | None = None
    drawn: list[float] = field(default_factory=list)
    clock: Callable[[str], Row] | None = None

    def quality(self, subject: Subject) -> dict[str, float]:
        """Return `valid_loss` (nats, masked frames) and `masked_accuracy` on held-out speech, with intervals."""
        return self.hear(subject).summary()

    def hear(self, subject: Subject) -> HeldOut:
        """Return what a model makes of each held-out utterance."""
        assert self.data is not None  # whoever asks has labels
        return hear(subject.arch, subject.seen, self.data, self.training)

    def rows(self) -> list[Row]:
        """Read the points that are finished."""
        path = self.out / "points.json"
        return files.read_rows(path, "name") if path.is_file() else []

    def has(self, name: str) -> bool:
        """Tell whether a point is finished."""
        return any(row["name"] == name for row in self.rows())

    def name(self, level: float) -> str:
        """Name a point: `heads-4`, `weights-0.9`, `rows-4e+06` for a budget."""
        return f"{self.technique}-{int(level) if level == math.floor(level) and level < 1e5 else f'{level:g}'}"

    def point(self, name: str, subject: Subject, *, level: float, step: int, told: Mapping[str, Any]) -> None:
        """Measure, save and show one point, unless it is there already.

        Args:
            name: of the point and of its model's folder.
            subject: the model.
            level: how far it is pruned.
            step: updates that it was trained with.
            told: further columns: what the event before it found.
        """
        if self.has(name):
            return
        console.print(f"measuring {name}", markup=False)
        row = {"name": name, "level": level, "step": step, **sizes(subject)}
        row |= {**self._predicted(name, subject, step), **self.written(subject), **self.wrote.get(step, {}), **told}
        fast = self.fast(subject)
        row |= self._time(name, fast) if self.clock is None else self.clock(name)
        row |= {"packed_maps": sum(bool(found["packed"]) for found in fast.rows), "packed_error": fast.error}
        if self.probes is not None:
            row |= self.probes.measure(name, subject.arch, subject.seen, heard_by(subject.arch, self.model, self.data))
        row["bytes"] = self._save(name, subject, fast)
        self.record(row)

    def read(self, name: str) -> Subject:
        """Load the model of a finished point."""
        return with_zeros(*checkpoint.load(self.out / "models" / name))

    def heard(self, name: str) -> HeldOut:
        """Read what a finished point's model made of each held-out utterance."""
        return read_heard(self._heard(name))

    def _heard(self, name: str) -> Path:
        return self.out / "held-out" / f"{name}.npz"

    def _predicted(self, name: str, subject: Subject, step: int) -> Row:
        """Keep what a model makes of each held-out utterance, and return its quality, where there are labels."""
        if self.data is None:
            return {}
        return self.compared(name, self.hear(subject), step)

    def compared(self, name: str, heard: HeldOut, step: int) -> Row:
        """Keep what a point made of each held-out utterance; return its quality, beside the dense model's."""
        files.write_arrays(self._heard(name), vars(heard))
        return {**heard.summary(), **self._beside_dense(heard, step)}

    def written(self, subject: Subject) -> Row:
        """Return what the CTC layer that the model came with makes of a point, where it fits and texts are known."""
        if self.transcripts is None or subject.arch.width != self.model.arch.width:
            return {}
        return self.transcripts.measure(subject.arch, subject.seen, dtype=self.dtype)

    def _beside_dense(self, heard: HeldOut, step: int) -> Row:
        """Compare with the dense model trained as long, where that is known; before any update that is the dense one.

        Without a control nothing is known: a difference to the model as it was would have the training in it.
        """
        if control := self.controls.get(step):
            found = control.summary()
            told = {"control_loss": found["valid_loss"], "control_accuracy": found["masked_accuracy"]}
            return {**told, **heard.above(control)}
        return heard.above(self.heard("dense")) if step == 0 and self._heard("dense").is_file() else {}

    def _time(self, name: str, fast: Fast) -> Row:
        """Time the dense model, what stays of it without heads and units, and this one, in turns.

        A shape is timed once, however its weights were found; the dense shape with other weights (zeros, or fewer bits)
        each time.
        """
        if name == "dense":
            return self._race(fast.arch)
        if fast.arch in (self.model.arch, bare_arch(self.model.arch)):
            return self._race(fast.arch, lambda: compile_forward(fast.arch, fast.params, self.load, dtype=self.dtype))
        if fast.arch not in self.raced:
            self.raced[fast.arch] = self._race(fast.arch, lambda: self._own_program(fast))
        return self.raced[fast.arch]

    def _own_program(self, fast: Fast) -> Program:
        """Compile a point's shape, and let those go that are neither its own nor the dense model's."""
        beside = (self.model.arch, bare_arch(self.model.arch), fast.arch)
        for arch in [arch for arch in self.programs if arch not in beside]:
            del self.programs[arch]
        return self.program(fast.arch, fast.params)

    def _race(self, arch: Arch, point: Callable[[], Program] | None = None) -> Row:
        """Compile and time in turns, and return what it says of a point of that arch; None: of the dense model."""
        dense = self.model.arch, self.model.params
        making = {"dense": lambda: self.program(*dense), "bare": lambda: self.program(*bare(*dense))}
        making |= {} if point is None else {"point": point}
        rounds = min(self.rounds, ALONE) if point is None else self.rounds
        with progress("timing side by side", len(making) + rounds + 1) as tick:
            programs = {}
            for each, compiled in making.items():
                programs[each] = compiled()
                tick()
            timings = race(programs, rounds=rounds, warmup=1, tick=tick)  # each has run once already
        timings.setdefault("point", timings["dense"])
        ratio = speedup(timings["dense"], timings["point"])
        samples = round(self.load.seconds * SAMPLE_RATE)
        promised = cost.macs(self.model.arch, samples).total / cost.macs(arch, samples).total
        return {
            "real_time_factor": timings["point"].real_time_factor,
            "speedup": ratio.median,
            "speedup_low": ratio.low,
            "speedup_high": ratio.high,
            "promised_speedup": promised,
            **{f"{each}_ms": timing.median * 1e3 for each, timing in timings.items()},
        }

    def program(self, arch: Arch, params: Params) -> Program:
        """Compile a shape once, as what every point is timed beside."""
        if arch not in self.programs:
            self.programs[arch] = compile_forward(arch, params, self.load, dtype=self.dtype)
        return self.programs[arch]

    def _save(self, name: str, subject: Subject, fast: Fast) -> int:
        """Save the model, and the faster form where it differs; return the bytes of its smallest encoding."""
        folder = self.out / "models" / name
        origin = {"made_from": self.model.name, "by": f"{self.technique}: {name}", "command": shlex.join(sys.argv)}
        origin |= {"targets": self.model.targets} if self.model.targets else {}
        origin |= {"codewords": self.model.codewords} if self.model.codewords else {}
        stats = heard_by(subject.arch, self.model, self.data)
        extra = {} if stats is None else {"stats.npy": stats_bytes(stats)}
        extra |= self.model.ctc if subject.arch.width == self.model.arch.width else {}
        seen = subject.seen
        size = encoded_bytes(seen)
        if subject.masks and size < SPARSER * sum(leaf.nbytes for leaf in flatten(seen).values()):
            extra["weights.sparse"] = encode(seen)
            _compare(decode(extra["weights.sparse"]), seen)
        checkpoint.save(folder, subject.arch, seen, provenance=origin, extra=extra, overwrite=True)
        if fast.arch != subject.arch:
            extra.pop("weights.sparse", None)
            packed = self.out / "packed" / name
            checkpoint.save(packed, fast.arch, fast.params, provenance=origin, extra=extra, overwrite=True)
        return size

    def record(self, row: Row) -> None:
        """Add a point to those that are finished, and show it."""
        rows = [*self.rows(), row]
        files.write_json(self.out / "points.json", rows)
        files.write_csv(self.out / "curve.csv", rows)
        self.picture(rows, every=REDRAWN)
        show(rows[-1:] if len(rows) > 1 else rows, self.title)

    def picture(self, rows: Sequence[Row], *, every: float = 0) -> None:
        """Draw the points, unless the picture has them all, or this process drew one less than `every` seconds ago."""
        path, points = self.out / "curve.png", (self.out / "points.json").stat().st_mtime_ns
        if path.is_file() and path.stat().st_mtime_ns == points:  # it is set so, for clocks may be set back
            return
        if self.drawn and time.monotonic() - self.drawn[-1] < every:
            return
        draw = self.draw or pictures.draw_curve
        draw(path, rows, level=self.technique, title=self.title, caption=self.caption)
        self.drawn[:] = [time.monotonic()]
        if path.is_file():
            os.utime(path, ns=(points, points))

    @property
    def title(self) -> str:
        """What the tables and pictures are of."""
        return f"{self.label or self.technique}: {self.model.name}, {jnp.dtype(self.dtype).name}, {self.load}"

    @property
    def caption(self) -> str:
        """What a reader of the picture must know."""
        return "" if self.model.trained else self.model.notes[0]


def sizes(subject: Subject) -> Row:
    """Return the columns of a point that its shapes and zeros tell."""
    parts, seen = cost.macs_per_second(subject.arch), subject.seen
    return {
        "parameters": cost.parameters(subject.arch),
        "nonzero": cost.nonzero(seen),
        "macs_g_per_s": parts.total / 1e9,
        "nominal_macs_g_per_s": cost.nominal_macs_per_second(subject.arch, seen) / 1e9,
        "heads": [layer.heads for layer in subject.arch.layers],
        "units": [layer.ffn.size for layer in subject.arch.layers],
    }


def _compare(one: Params, two: Params) -> None:
    found = flatten(one)
    for path, leaf in flatten(two).items():
        if not np.array_equal(found[path], np.asarray(leaf), equal_nan=True):
            raise OSError(f"{path}: decoded, it is not what was encoded")
