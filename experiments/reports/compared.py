"""The compared systems beside our models in one table: parameters, MACs and measured time, each by the same program.

Weights are random, for none of these numbers depends on them: a forward pass multiplies whatever it is given. So the
table says what a structure costs, and the phone error rates beside it are the published ones, not measured here. What a
published figure counts beyond the encoder, such as heads that only distillation needs, is told apart (`Figures`).

All twelve systems on 3 s of speech, in two rounds, took 160 s on two CPU cores with other work beside it, most of it
compiling; the compared systems ran 2.5 (DistilHuBERT) to 6 times (FitHuBERT, STaRHuBERT) as fast as HuBERT Base.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from experiments.reports import tables
from jaxssl.inference.latency import Load, Program, Speedup, Timing, compile_forward, race, speedup
from jaxssl.models import cost
from jaxssl.models.arch import SAMPLE_RATE, Arch, CosineHead
from jaxssl.models.model import Params, shapes
from jaxssl.models.zoo import PRESETS
from jaxssl.runtime.cli import console, progress

BASELINE = "hubert-base"
LOAD = Load(5.0)
WARMUP = 2
SECONDS = sum(cost.UTTERANCES) / SAMPLE_RATE  # of the utterances that published totals of MACs are over


@dataclass(frozen=True)
class Figures:
    """What was published of a system.

    Attributes:
        parameters: count.
        macs: for a second of speech.
        per: phone error rate of SUPERB, in %.
        more_parameters: what the count has beyond the encoder.
        more_macs: what `macs` has beyond the encoder.
        note: what these are, or why the figures differ from ours.
    """

    parameters: float | None = None
    macs: float | None = None
    per: float | None = None
    more_parameters: int = 0
    more_macs: float = 0
    note: str = ""


# Totals in G are of SUPERB's 32 utterances (its leaderboard); 1.41 and 2.23 G/s and most error rates are read off the
# study's figure (arXiv 2211.09949), right to 0.5 %.
FIGURES = {
    "hubert-base": Figures(macs=1669e9 / SECONDS),
    "hubert-large": Figures(macs=4324e9 / SECONDS),
    "melhubert-20ms": Figures(90.23e6, 4.936e9, 8.14),
    "melhubert-10ms": Figures(macs=10.78e9),
    "distilhubert": Figures(23_491_200, 785.2e9 / SECONDS, 16.27),
    "fithubert": Figures(
        22.49e6,
        1.41e9,
        13.32,
        more_parameters=1_291_968,
        note="published with a distillation head (830,688 parameters) and an unused upsampling (461,280)",
    ),
    "lighthubert-small": Figures(
        27.0e6,
        860.7e9 / SECONDS,
        6.60,
        more_macs=3.3e9 / SECONDS,
        note="structure inferred (the released default subnet); published MACs include a prediction head, 3.3 G",
    ),
    "armhubert": Figures(
        26.45e6,
        2.23e9,
        7.72,
        more_parameters=4_432_896,
        more_macs=49.6e9 / SECONDS,
        note="published with the 12 projections of distillation (4,432,896 parameters, 49.6 G MACs)",
    ),
    "armhubert-small": Figures(
        22.39e6,
        more_parameters=3_990_528,
        note="published with the 12 projections of distillation (3,990,528 parameters)",
    ),
    "starhubert": Figures(22.31e6, 463.5e9 / SECONDS, 8.16),
    "dphubert": Figures(
        23.59e6,
        654.1e9 / SECONDS,
        9.67,
        note="equal layers that give both published figures; the published layers differ, and are not known here",
    ),
}

COLUMNS = {
    "name": "system",
    "parameters_m:.2f": "M params",
    "published_m:.2f": "published",
    "parameters_off:+.2f": "off %",
    "parameters_left:+.2f": "left %",
    "macs_g_per_s:.3f": "GMAC/s",
    "published_macs_g_per_s:.3f": "published",
    "macs_off:+.2f": "off %",
    "macs_left:+.2f": "left %",
    "per:.2f": "PER % *",
    "real_time_factor:.4f": "RTF",
    "speedup:.2f": "× base",
    "quartiles": "quartiles",
}
LEGEND = (
    "off: difference to the published figure; left: what remains of it once that which the figure counts beyond the "
    "encoder is added (below); RTF: real-time factor, median; × base: speed over HuBERT Base, turn by turn; "
    "* published, not measured here"
)


def zoo() -> dict[str, Arch]:
    """Return the systems of the comparison by name, as they are used: HuBERTs without their pre-training output."""
    return {name: _encoder(PRESETS[name]()) for name in (*FIGURES, "melhubert-mini")}


def rows(
    archs: Mapping[str, Arch], *, load: Load = LOAD, dtype: Any = jnp.float32, rounds: int = 5
) -> list[dict[str, Any]]:
    """Count and time each arch on random weights, all of them in turns.

    Args:
        archs: by name; those of `FIGURES` get the published figures beside ours.
        load: what is run at once.
        dtype: of the computation.
        rounds: timed runs of each.

    Returns:
        A row for each, keys as in `COLUMNS`, with `speedup_low`, `speedup_high`, `load`, `compile_s` and `note`.
        Differences are in % of the published figure; `…_left` is what remains of one once that which the figure counts
        beyond the encoder is added. `speedup` is the time of HuBERT Base, of the first arch where that is not among
        them, over this one's.

    Raises:
        InputError: there is nothing to time.
    """
    if not archs or rounds < 1:
        raise InputError(f"{len(archs)} archs and {rounds} rounds: name one arch or more, and 1 round or more")
    with progress("timing the zoo", len(archs) + WARMUP + rounds) as tick:
        programs = {name: _compiled(arch, load, dtype, tick) for name, arch in archs.items()}
        timings = race(programs, rounds=rounds, warmup=WARMUP, tick=tick)
    baseline = timings.get(BASELINE) or next(iter(timings.values()))
    return [
        {**counts(name, arch), **_times(programs[name], timings[name], speedup(baseline, timings[name]))}
        for name, arch in archs.items()
    ]


def counts(name: str, arch: Arch) -> dict[str, Any]:
    """Return an arch's parameters and MACs, and how they differ from the published ones; errors are in %."""
    told = FIGURES.get(name, Figures())
    parameters, macs = cost.parameters(arch), cost.macs_per_second(arch).total
    return {
        "name": name,
        "parameters_m": parameters / 1e6,
        "published_m": told.parameters and told.parameters / 1e6,
        "parameters_off": _differs(parameters, told.parameters),
        "parameters_left": _differs(parameters + told.more_parameters, told.parameters),
        "macs_g_per_s": macs / 1e9,
        "published_macs_g_per_s": told.macs and told.macs / 1e9,
        "macs_off": _differs(macs, told.macs),
        "macs_left": _differs(macs + told.more_macs, told.macs),
        "per": told.per,
        "note": told.note,
    }


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table, and under it what its columns mean and why published figures differ."""
    spans = [{**row, "quartiles": f"{row['speedup_low']:.2f} – {row['speedup_high']:.2f}"} for row in rows]
    tables.show("compared systems, random weights, timed in turns", spans, COLUMNS)
    console.print(LEGEND, markup=False)
    for row in rows:
        if row["note"]:
            console.print(f"{row['name']}: {row['note']}", markup=False)


def _encoder(arch: Arch) -> Arch:
    """Leave HuBERT's codewords out; MelHuBERT's published counts have its output layer."""
    return replace(arch, head=None) if isinstance(arch.head, CosineHead) else arch


def _compiled(arch: Arch, load: Load, dtype: Any, tick: Callable[[], Any]) -> Program:
    program = compile_forward(arch, _weights(arch), load, dtype=dtype)
    tick()
    return program


def _weights(arch: Arch) -> Params:
    """Draw weights without the many small programs that fresh parameters would compile."""
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.02 * draw.standard_normal(leaf.shape, np.float32), shapes(arch))


def _times(program: Program, timing: Timing, ratio: Speedup) -> dict[str, Any]:
    return {
        "load": str(timing.load),
        "real_time_factor": timing.real_time_factor,
        "speedup": ratio.median,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
        "compile_s": program.compile_s,
    }


def _differs(ours: float, published: float | None) -> float | None:
    return None if published is None else 100 * (ours / published - 1)
