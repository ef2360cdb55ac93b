"""Plans for a time: which window, and which ranks, change the encoder's output least and are fast enough.

Ranks are shared out over the maps (`compress.ranks.allocate`), for several shares of their weights; windows are the
whole one and shorter ones. Every pair is compiled and timed in turns with the dense encoder in its whole window, over
the lengths in which the run's utterances would be heard, and its output is compared with the dense one's on other
speech. No decoder and no text takes part, so that word error rates of a plan are not those that it was chosen by.

out/candidates.json   what was timed and compared, once for all budgets of a run
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.transcripts.hearing import Listener, Window, listener, window
from experiments.transcripts.spoken import Spoken
from experiments.transcripts.ways import Fitting, Step, Way, compressed
from jaxssl.inference.latency import race, speedup
from jaxssl.models.arch import Arch
from jaxssl.models.model import Params
from jaxssl.runtime import files
from jaxssl.runtime.cli import progress

SHARES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3)  # of the maps' weights; 1 leaves them as they are
PARTS = (1.0, 2 / 3, 1 / 2, 1 / 3)  # of the whole window


@dataclass(frozen=True)
class Planner:
    """Chooses plans.

    Attributes:
        out: the run's folder.
        fitting: the dense model, and what it heard.
        spoken: the run's utterances, of which only the lengths matter.
        rows: (utterances, samples) float32, other speech, no longer than the shortest window.
        rounds: timed runs of each program.
    """

    out: Path
    fitting: Fitting
    spoken: Sequence[Spoken]
    rows: np.ndarray
    rounds: int

    def choose(self, time: float) -> Way | None:
        """Return the way whose output is nearest to the dense one's, of those that take no more than a time.

        Args:
            time: share of the dense model's in its whole window.

        Returns:
            None where nothing is that fast.
        """
        fast = [each for each in self.candidates() if each["time"] <= time]
        best = min(fast, key=lambda each: (each["error"], each["time"]), default=None)
        if best is None:
            return None
        shared = Step("shared", best["share"]) if best["share"] < 1 else None
        short = None if best["seconds"] is None else Step("input", best["seconds"])
        return Way(tuple(step for step in (shared, short) if step))

    def candidates(self) -> list[dict[str, Any]]:
        """Time and compare all pairs, or read what this run found before."""
        path = self.out / "candidates.json"
        if path.is_file():
            return files.read_json(path)
        arch, whole = self.fitting.arch, window(self.fitting.arch, None)
        dense = listener(arch, self.fitting.params, whole.whole)
        said = [dense.hear(row) for row in self.rows]
        found = []
        with progress("timing plans", len(SHARES) * len(PARTS)) as tick:
            for share in SHARES:
                model = compressed(self.fitting, Way((Step("shared", share),))) if share < 1 else self._dense
                full = self._measured(model, whole.whole, dense, said)
                for part in PARTS:
                    seconds = None if part == 1 else part * whole.whole / arch.front.rate
                    mine = window(arch, seconds)
                    short = full if mine == whole else self._measured(model, mine.samples, dense, said)
                    found.append({"share": share, "seconds": seconds, **self._told(mine, full, short)})
                    tick()
        files.write_json(path, found)
        return found

    @property
    def _dense(self) -> tuple[Arch, Params]:
        return self.fitting.arch, self.fitting.params

    def _measured(
        self, model: tuple[Arch, Params], samples: int, dense: Listener, said: Sequence[np.ndarray]
    ) -> tuple[float, float]:
        """Return time relative to dense and the squared relative error of the output, in windows of so many samples."""
        mine = listener(*model, samples)
        timings = race({"dense": dense.program, "mine": mine.program}, rounds=self.rounds)
        frames = self.rows.shape[1] // self.fitting.arch.front.hop
        both = [(mine.hear(row)[:frames], their[:frames]) for row, their in zip(self.rows, said, strict=True)]
        lost = sum(float(np.square(one - other).sum()) for one, other in both)
        power = sum(float(np.square(other).sum()) for _, other in both)
        return 1 / speedup(timings["dense"], timings["mine"]).median, lost / power

    def _told(self, mine: Window, full: tuple[float, float], short: tuple[float, float]) -> dict[str, float]:
        """Weigh both lengths as the run's utterances are heard in them."""
        parts = mine.sizes(self.spoken)
        pairs = [(part, full if size == mine.whole else short) for size, part in parts.items()]
        time, square = (float(sum(part * pair[i] for part, pair in pairs)) for i in (0, 1))
        return {"time": time, "error": square**0.5}
