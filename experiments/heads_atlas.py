"""Show where every head of a model looks, which heads prunings kept, and whether these are the diagonal ones.

    python -m experiments.heads_atlas
    python -m experiments.heads_atlas --pruned runs/heads --sort diagonality
    python -m experiments.heads_atlas MODEL --pruned runs/heads runs/heads-gradient --audio SPEECH --gradient

On a few utterances, the embedded corpus by default, attention maps of every head are computed without padding, measured
(`analysis.attention_maps`: distance, entropy, verticality, diagonality) and averaged over utterances, maps after they
were brought to one size. Beside them stand the scores that `experiments.heads` prunes by. Heads whose map is reused by
later layers (ARMHuBERT) are listed with the layer that makes it.

With --pruned, the runs must have pruned this very model. For each of their points the kept heads are named, and a
permutation test within layers asks whether they are more diagonal than as many heads drawn by chance: p one-sided, and
two-sided for the case that they are less. The points of one run hold each other's heads, so that their tests are not
independent, and a handful of heads in a layer can show strong effects only.

The second command took 26 s on two busy CPU cores; with --gradient, which labels all speech that is named, four minutes
for 13 minutes of LibriSpeech. Expected of the default model: no head is diagonal. All look about as far as attention
that is everywhere alike (diagonality −1/3), −0.30 to −0.34; two of layer 3 have a faint diagonal. So pruning by L1 has
hardly any to save: of the seven points' p, one-sided and two-sided, on 52 minutes of LibriSpeech, 3 of 14 were below
0.05, all for more diagonal heads, and of points that hold each other's heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from compress import plan
from compress.errors import InputError
from compress.plan import Heads
from experiments.curves.evidence import Labelled, evidence, sites_of
from experiments.curves.measures import Row
from experiments.curves.recovery import speech_with_targets, with_head
from experiments.curves.schedule import Schedule
from experiments.curves.survivors import Point, by_chance, head_axes, read_points
from experiments.curves.units import UnitPruning
from experiments.reports import pictures, tables
from jaxssl.analysis.attention_maps import attention_maps, measure, resample
from jaxssl.data.padding import Padded
from jaxssl.inference.encode import front_inputs, timing
from jaxssl.inference.source import Model, Speech, load_model, load_speech, with_stats
from jaxssl.inference.specialise import dequantized, unpacked
from jaxssl.models.arch import Arch
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, follow, main
from jaxssl.runtime.ranges import Count, Length, Seed, There
from jaxssl.training.study_schedules import PAPER_HEADS, PAPER_HEADS_KEPT

Measure = Literal["distance", "entropy", "globalness", "verticality", "diagonality", "cumulative_diagonality"]
Score = Literal["l1", "activation", "gradient"]
SIZE = 64  # pixels of a map's side in the picture
TESTED = "diagonality"
HEARD = "attention is of all these utterances, scores by activation of those that are not held out"


@dataclass(frozen=True)
class Config:
    """Show what a model's heads look at."""

    model: tyro.conf.Positional[str | None] = None
    """model folder, run folder, preset or checkpoint; default: the trained model that comes with the package"""
    pruned: There[tuple[Path, ...]] = ()
    """runs of experiments.heads on this model"""
    audio: There[tuple[str, ...]] = ()
    """speech to look at; default: the embedded corpus"""
    limit: Count[int] = 8
    """utterances of it, the first 10 s of each"""
    gradient: bool = False
    """score by the loss's gradient, too, on --audio labelled by the model itself, or on --corpus"""
    corpus: There[Path | None] = None
    """of --gradient: folder of experiments.prepare with the model's labels"""
    shortest: Length[float | None] = None
    """of --gradient: utterances below that are left out, in seconds; default: 1"""
    sort: Literal["layer"] | Measure | Score = "layer"
    """column that orders the table, the highest first"""
    permutations: Count[int] = 9999
    """draws of each permutation test"""
    out: Path = Path("runs/heads-atlas")
    """folder for atlas.png, heads.csv, report.json and, with --pruned, points.csv"""
    seed: Seed[int] = 0
    """of the permutations, batches and random weights"""


@dataclass(frozen=True)
class Atlas:
    """What is known of a model's heads.

    Attributes:
        model: whose heads.
        rows: one for each head.
        maps: by axis, mean attention, (heads, SIZE, SIZE).
        runs: points of each run, by its folder.
        tests: one row for each point.
        notes: lines a reader of the report should see.
    """

    model: Model
    rows: Sequence[Row]
    maps: Mapping[str, np.ndarray]
    runs: Mapping[str, Sequence[Point]]
    tests: Sequence[Row]
    notes: Sequence[str]


def run(config: Config) -> None:
    """Carry out the experiment."""
    model = _open(config)
    read = {str(folder): read_points(folder, model.arch, model.params) for folder in config.pruned}
    files.claim(config.out)
    speech = load_speech(config.audio, limit=config.limit, batch=1)
    model = with_stats(model, speech)
    notes = [*model.notes, *speech.notes, HEARD]
    notes += [f"{name}: {line}" for name, (_, lines) in read.items() for line in lines]
    for note in notes:
        console.print(f"note: {note}", markup=False)

    measured, maps = listen(model, (*speech.calibration, *speech.held_out))
    runs = {name: points for name, (points, _) in read.items()}
    rows = head_rows(model.arch, {**scores(config, model, speech), **measured}, runs)
    tests = [row for name, points in runs.items() for row in point_rows(name, points, rows, config)]
    atlas = Atlas(model, rows, maps, runs, tests, notes)
    files.own(config.out, config)
    _show(config, atlas)
    _write(config.out, atlas)


def _open(config: Config) -> Model:
    """Load the model, packed maps unpacked, int8 ones in float; refuse settings that cannot be."""
    ranges.check(config)
    if config.sort == "gradient" and not config.gradient:
        raise InputError("--sort gradient: nothing is scored by it; add --gradient")
    model = load_model(config.model, seed=config.seed)
    arch, params = dequantized(*unpacked(model.arch, model.params))
    if not head_axes(arch):
        raise InputError(f"{model.name}: none of its {len(arch.layers)} layers has a head; name another model")
    return replace(model, arch=arch, params=params)


def listen(model: Model, batches: Sequence[Padded]) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Measure all maps, and average them at one size; utterance by utterance, padding cut off.

    Returns:
        By measure and axis, (heads,), the mean over utterances; and by axis the mean map, (heads, SIZE, SIZE).
    """
    arch, stats = model.arch, model.stats
    layers = {axis.name: int(axis.name.split("/")[1]) for axis in head_axes(arch)}

    @jax.jit
    def run(params: Any, samples: jax.Array, lengths: jax.Array) -> tuple[dict[int, jax.Array], dict[int, jax.Array]]:
        return attention_maps(arch, params, *front_inputs(arch, samples, lengths, stats))

    told: list[dict[str, dict[str, np.ndarray]]] = []
    total = {name: np.zeros((1, SIZE, SIZE)) for name in layers}
    for samples, lengths in follow(batches, "listening", total=len(batches)):
        found, frames = jax.tree.map(np.asarray, run(model.params, samples, lengths))
        for row in range(len(samples)):
            maps = {name: found[i][row, :, : frames[i][row], : frames[i][row]] for name, i in layers.items()}
            told.append({name: measure(values) for name, values in maps.items()})
            total = {name: total[name] + resample(values, SIZE) for name, values in maps.items()}
    names = next(iter(told[0].values()))
    means = {key: {name: np.mean([each[name][key] for each in told], axis=0) for name in layers} for key in names}
    return means, {name: values / len(told) for name, values in total.items()}


def scores(config: Config, model: Model, speech: Speech) -> dict[str, dict[str, np.ndarray]]:
    """Score heads as `experiments.heads` does, each way: by the way's name and axis, (heads,)."""
    ways: list[Score] = ["l1", "activation"]
    labelled = None
    if config.gradient:
        asked = UnitPruning(corpus=config.corpus, audio=config.audio, shortest=config.shortest, seed=config.seed)
        training, place = asked.training(Schedule(PAPER_HEADS, PAPER_HEADS_KEPT)), config.out.parent
        found = speech_with_targets(model, asked.asked, out=place)
        console.print(f"note: {found.told}", markup=False)
        model = with_head(model, found.data, training, out=place)
        labelled = Labelled(found.data, training)
        ways.append("gradient")
    told, at = evidence(model.arch, speech, model.stats, labelled=labelled), sites_of(model.arch)
    return {way: plan.scores(Heads(0, score=way), model.params, at, told) for way in ways}


def head_rows(
    arch: Arch, values: Mapping[str, Mapping[str, np.ndarray]], runs: Mapping[str, Sequence[Point]]
) -> list[dict[str, Any]]:
    """Return a row for each head: what is known of it, by name, and how long each run kept it.

    Args:
        arch: of the model.
        values: by name and axis, (heads,), the distance among them.
        runs: points of each run.

    Returns:
        Rows with `axis`, `layer`, `head`, the values, `distance_ms`, `kept RUN`, the last point of a run that has the
        head, and `survived`, at how many of all runs' `points` it was kept.
    """
    rows = []
    for axis in head_axes(arch):
        for head in range(axis.size):
            row: dict[str, Any] = {"axis": axis.name, "layer": int(axis.name.split("/")[1]), "head": head}
            row |= {key: float(found[axis.name][head]) for key, found in values.items()}
            row["distance_ms"] = row["distance"] * frame_ms(arch)
            stays = {name: [p.name for p in points if head in p.kept[axis.name]] for name, points in runs.items()}
            row |= {f"kept {name}": names[-1] if names else "dense" for name, names in stays.items()}
            row["survived"], row["points"] = sum(map(len, stays.values())), sum(map(len, runs.values()))
            rows.append(row)
    return rows


def frame_ms(arch: Arch) -> float:
    """Return the time from one frame that attends to the next."""
    how = timing(arch, features=False)
    return 1000 * how.hop / how.rate


def point_rows(name: str, points: Sequence[Point], rows: Sequence[Row], config: Config) -> list[dict[str, Any]]:
    """Return a row for each point of a run: what it kept by layer, and whether that is more diagonal than chance."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["axis"], []).append(row[TESTED])
    layers = {axis: np.array(found) for axis, found in values.items()}
    told = []
    for point in points:
        count = sum(map(len, point.kept.values()))
        row = {"run": name, "point": point.name, "heads": count, "doubt": point.doubt}
        if count:
            kept = [point.kept[axis] for axis in layers]
            found = by_chance([*layers.values()], kept, permutations=config.permutations, seed=config.seed)
            row |= {TESTED: found.kept, "by_chance": found.expected, "p_higher": found.higher}
            row |= {"p_two_sided": found.differs, "permutations": found.permutations}
        row |= {f"layer_{axis.split('/')[1]}": " ".join(map(str, point.kept[axis])) or "none" for axis in layers}
        told.append(row)
    return told


HEADS = {
    "layer": "layer",
    "head": "head",
    "l1:.4g": "L1",
    "activation:.3g": "activation",
    "gradient:.3g": "gradient",
    "distance:.1f": "distance",
    "distance_ms:.0f": "ms",
    "entropy:.2f": "entropy",
    "verticality:.2f": "verticality",
    "diagonality:.3f": "diagonality",
    "cumulative_diagonality:.3f": "cumulative",
}
TESTS = {
    "point": "point",
    "heads": "heads",
    "diagonality:.4f": "diagonality",
    "by_chance:.4f": "by chance",
    "p_higher:.4f": "p, higher",
    "p_two_sided:.4f": "p, two-sided",
    "doubt:.2f": "doubt",
}


def _show(config: Config, atlas: Atlas) -> None:
    """Print a table of the heads, and two for each run, of its points."""
    rows = sorted(atlas.rows, key=lambda row: -row[config.sort]) if config.sort != "layer" else atlas.rows
    columns = {k: v for k, v in HEADS.items() if k.partition(":")[0] in rows[0]}
    columns |= {f"kept {name}": f"kept to ({Path(name).name})" for name in atlas.runs}
    frame = f"distance in frames of {frame_ms(atlas.model.arch):g} ms"
    tables.show(f"heads of {atlas.model.name}: {frame}; entropy (globalness) in nats", rows, columns)
    for name in atlas.runs:
        mine = [row for row in atlas.tests if row["run"] == name]
        layers = {key: key.replace("_", " ") for row in mine for key in row if key.startswith("layer_")}
        tables.show(f"{name}: heads kept of each layer", mine, {"point": "point", **layers})
        title = f"{name}: are they more diagonal than chance? {config.permutations} permutations within layers"
        known = {key for row in mine for key, value in row.items() if value is not None}
        tables.show(title, mine, {k: v for k, v in TESTS.items() if k.partition(":")[0] in known})


def _write(out: Path, atlas: Atlas) -> None:
    """Write the picture, the tables and the report."""
    name, arch = atlas.model.name, atlas.model.arch
    pictures.draw_atlas(
        out / "atlas.png",
        [(row, atlas.maps[row["axis"]][row["head"]]) for row in atlas.rows],
        title=f"{name}: mean attention of every head; who looks downwards, what is looked at to the right",
        caption=_caption(list(atlas.runs)),
    )
    files.write_csv(out / "heads.csv", atlas.rows)
    if atlas.runs:
        files.write_csv(out / "points.csv", atlas.tests)
    values = {"model": name, "notes": atlas.notes, "frame_ms": frame_ms(arch), "tested": TESTED, "heads": atlas.rows}
    kept = {run: [asdict(point) for point in points] for run, points in atlas.runs.items()}
    files.write_json(out / "report.json", {**values, "points": atlas.tests, "kept": kept})
    console.print(f"wrote {out}: atlas.png, heads.csv, {'points.csv, ' * bool(atlas.runs)}report.json", markup=False)


def _caption(runs: Sequence[str]) -> str:
    shown = "above each: head, diagonality (0: looks at itself only, −1/3: everywhere alike)"
    return f"{shown}; below, and as its frame: at how many points of {', '.join(runs)} it was kept" if runs else shown


if __name__ == "__main__":
    main(run, Config, __doc__)
