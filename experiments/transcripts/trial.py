"""A point of the curve: what a compressed encoder lets the decoder write, what it costs, and the model, kept.

out/points.json             the finished points, which a broken-off run need not measure again
out/curve.csv, curve.png    the same
out/transcripts/NAME.json   what was written of each utterance
out/models/NAME/            the model of a point

Time is that of the encoder alone, from the waveform, over the run's utterances: each in the window that it is heard in.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from compress.errors import InputError
from experiments.curves.measures import Row
from experiments.reports import tables
from experiments.transcripts import hearing, word_curve
from experiments.transcripts.decoder import Decoder, together
from experiments.transcripts.hearing import Listener, Silence, Window, hear_all, listener
from experiments.transcripts.spoken import Spoken
from experiments.transcripts.words import Words, rates
from jaxssl.inference.latency import Timing, race, speedup
from jaxssl.models import checkpoint, cost
from jaxssl.models.arch import Arch
from jaxssl.models.model import Params
from jaxssl.runtime import files
from jaxssl.runtime.cli import console, progress

QUALITY = {
    "name": "point",
    "updates": "updates",
    "agreement:.1%": "agreement WER",
    "agreement_low:.1%": "from",
    "agreement_high:.1%": "to",
    "wer:.1%": "true WER",
    "wer_low:.1%": "from",
    "wer_high:.1%": "to",
    "wer_difference:+.1%": "above dense",
    "wer_difference_low:+.1%": "from",
    "wer_difference_high:+.1%": "to",
    "loops": "loops",
    "empty": "empty",
}
COSTS = {
    "name": "point",
    "parameters:,": "parameters",
    "macs_g:.2f": "MACs G, an utterance",
    "point_ms:.0f": "ms, an utterance",
    "dense_ms:.0f": "dense, in turns",
    "speedup:.2f": "speed-up",
    "speedup_low:.2f": "quartile 1",
    "speedup_high:.2f": "quartile 3",
    "promised_speedup:.2f": "promised by MACs",
}


@dataclass(frozen=True)
class Trial:
    """What every point of a run is measured with.

    Attributes:
        out: the run's folder.
        name: of the model.
        arch: of the dense model.
        params: its parameters.
        decoder: writes down what an encoder heard.
        words: parts a text into normalised words.
        spoken: the utterances.
        whole: the dense model's window.
        rounds: timed runs of each program.
        silence: what stands behind an utterance in its window.
        listeners: the dense model compiled, by samples.
    """

    out: Path
    name: str
    arch: Arch
    params: Params
    decoder: Decoder
    words: Callable[[str], list[str]]
    spoken: Sequence[Spoken]
    whole: Window
    rounds: int
    silence: Silence = "waveform"
    listeners: dict[int, Listener] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """Read the points that are finished."""
        path = self.out / "points.json"
        return files.read_rows(path, "name") if path.is_file() else []

    def has(self, name: str) -> bool:
        """Tell whether a point is finished."""
        return any(row["name"] == name for row in self.rows())

    def point(self, name: str, arch: Arch, params: Params, window: Window, told: Mapping[str, Any]) -> None:
        """Measure, keep and show one point; `told` are further columns, `label` and `level` among them."""
        console.print(f"measuring {name}", markup=False)
        parts = window.sizes(self.spoken)
        listeners = {size: self._listener(arch, params, size) for size in parts}
        told = {**told, "window_s": window.samples / arch.front.rate}
        texts = self._written(name, listeners, window)
        mine = together(texts, self.words)
        dense = mine if name == "dense" else together(self._read("dense"), self.words)
        said: list[Words | None] = [tuple(self.words(each.text)) if each.text else None for each in self.spoken]
        row = {"name": name, **told, **rates(said, dense, mine), **self._costs(arch, listeners, parts)}
        self._save(name, arch, params)
        self._keep([*self.rows(), row])
        show([row], self.title)

    def retime(self) -> None:
        """Time all finished points again, as on a machine that has nothing else to do now.

        Raises:
            InputError: there are none, or they are of a version that did not say how long a window is.
        """
        if not (found := self.rows()) or any("window_s" not in row for row in found):
            raise InputError(f"{self.out}: {len(found)} points, not all with window_s; measure them, then --retime")
        rows = []
        for row in found:
            console.print(f"timing {row['name']}", markup=False)
            arch, params = (self.arch, self.params) if row["name"] == "dense" else self.load(row["name"])
            parts = hearing.window(arch, row["window_s"]).sizes(self.spoken)
            rows.append(
                {**row, **self._costs(arch, {size: self._listener(arch, params, size) for size in parts}, parts)}
            )
        self._keep(rows)

    def _keep(self, rows: Sequence[Row]) -> None:
        files.write_json(self.out / "points.json", rows)
        files.write_csv(self.out / "curve.csv", rows)
        word_curve.draw(self.out / "curve.png", rows, title=self.title)

    def load(self, name: str) -> tuple[Arch, Params]:
        """Load the model of a finished point."""
        return checkpoint.load(self.out / "models" / name)

    @property
    def title(self) -> str:
        """What tables and pictures are of."""
        seconds = sum(each.seconds for each in self.spoken)
        known = sum(bool(each.text) for each in self.spoken)
        return f"{self.name}: {len(self.spoken)} utterances, {seconds:.0f} s, {known} with a true text"

    def _written(self, name: str, listeners: Mapping[int, Listener], window: Window) -> list[str]:
        texts = [""] * len(self.spoken)
        with progress("writing down speech", len(self.spoken)) as tick:
            for numbers, frames in hear_all(listeners, self.spoken, window):
                for number, text in zip(numbers, self.decoder.write(frames), strict=True):
                    texts[number] = text
                    tick()
        folder = self.out / "transcripts"
        folder.mkdir(exist_ok=True)
        lines = [
            {"id": each.id, "text": text, "said": each.text} for each, text in zip(self.spoken, texts, strict=True)
        ]
        files.write_json(folder / f"{name}.json", lines)
        return texts

    def _read(self, name: str) -> list[str]:
        path = self.out / "transcripts" / f"{name}.json"
        lines = [line["text"] for line in files.read_rows(path, "text")]
        if len(lines) != len(self.spoken):
            raise InputError(f"{path}: {len(lines)} texts of {len(self.spoken)} utterances; choose another --out")
        return lines

    def _costs(self, arch: Arch, listeners: Mapping[int, Listener], parts: Mapping[int, float]) -> Row:
        """Count, and time in turns with the dense model in whole windows, what an utterance of the run takes."""
        macs = sum(part * cost.macs(arch, size).total for size, part in parts.items())
        found = {"parameters": cost.parameters(arch), "macs_g": macs / 1e9}
        found |= {"promised_speedup": cost.macs(self.arch, self.whole.whole).total / macs}
        dense = self._listener(self.arch, self.params, self.whole.whole)
        programs = {"dense": dense.program}
        programs |= {str(size): each.program for size, each in listeners.items() if each is not dense}
        with progress("timing side by side", self.rounds + 2) as tick:
            timings = race(programs, rounds=self.rounds, tick=tick)
        each = [(timings.get(str(size), timings["dense"]), part) for size, part in parts.items()]
        seconds = sum(part * np.array(timing.seconds) for timing, part in each)
        mine = Timing(dense.program.load, tuple(np.asarray(seconds).tolist()))
        ratio = speedup(timings["dense"], mine)
        found |= {"speedup": ratio.median, "speedup_low": ratio.low, "speedup_high": ratio.high}
        return {**found, "point_ms": mine.median * 1e3, "dense_ms": timings["dense"].median * 1e3}

    def _listener(self, arch: Arch, params: Params, size: int) -> Listener:
        """Compile a model for a window; the dense one, whose very arrays these are then, once."""
        mine, dense = jax.tree.leaves(params), jax.tree.leaves(self.params)
        if len(mine) != len(dense) or any(one is not other for one, other in zip(mine, dense, strict=True)):
            return listener(arch, params, size, self.silence)
        if size not in self.listeners:
            self.listeners[size] = listener(self.arch, self.params, size, self.silence)
        return self.listeners[size]

    def _save(self, name: str, arch: Arch, params: Params) -> None:
        origin = {"made_from": self.name, "by": f"whisper: {name}", "command": shlex.join(sys.argv)}
        checkpoint.save(self.out / "models" / name, arch, params, provenance=origin, overwrite=True)


def show(rows: Sequence[Row], title: str) -> None:
    """Print points as two tables: what is written, and what it costs."""
    known = {key for row in rows for key, value in row.items() if value is not None}
    tables.show(f"{title}: words", rows, {k: v for k, v in QUALITY.items() if k.partition(":")[0] in known})
    tables.show(f"{title}: cost", rows, COSTS)
