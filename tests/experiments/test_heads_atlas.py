"""The atlas of a small model and of a pruning of it, heads found by record and by weights, and what chance would do."""

import csv
import json
from dataclasses import replace
from functools import reduce
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.edit import cut
from compress.errors import InputError
from compress.plan import Heads
from experiments import heads, heads_atlas
from experiments.curves.events import unit_event
from experiments.curves.job import Job
from experiments.curves.points import Subject
from experiments.curves.survivors import by_chance, head_axes, nearest, read_points
from experiments.reports import canvas, pictures, tables
from jaxssl.analysis.attention_maps import attention_maps, measure
from jaxssl.inference.encode import mel_inputs
from jaxssl.inference.source import load_model, load_speech, with_stats
from jaxssl.models import checkpoint
from jaxssl.models.arch import hubert_base, melhubert
from jaxssl.models.describe import describe
from jaxssl.runtime import files
from tests.archs import ARCHS, transformer_layer
from tests.experiments import small

pytestmark = pytest.mark.usefixtures("one_device")

KEPT = {"layers/0/attention/heads": (0, 2, 3), "layers/1/attention/heads": (1, 3)}
LESS = {"layers/0/attention/heads": (2,), "layers/1/attention/heads": ()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("atlas"), layers=2, dropout=0.0)


@pytest.fixture(scope="module")
def dense(place):
    return checkpoint.load(place.model)


def write(folder, dense, kept, *, noise=0.0, recorded=None, schedule="quick", models=True):
    """Write a run with a point for each `kept`, its model trained on by adding noise."""
    arch, params = dense
    rng, rows = np.random.default_rng(0), [{"name": "dense", "heads": [layer.mixer.heads for layer in arch.layers]}]
    for i, keep in enumerate(kept):
        slim = reduce(lambda tree, axis: cut(tree, axis, keep[axis.name]), head_axes(arch), params)
        slim = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, noise, x.shape), x.dtype), slim)
        if models:
            checkpoint.save(folder / f"models/point-{i}", describe(arch, slim), slim)
        rows.append({"name": f"point-{i}", "heads": [len(k) for k in keep.values()]})
        rows[-1] |= {} if recorded is None else {"kept": recorded[i]}
    folder.mkdir(exist_ok=True)
    files.write_json(folder / "points.json", rows)
    files.write_json(folder / "config.json", {"schedule": schedule})
    return folder


@pytest.fixture(scope="module")
def finished(place, dense, tmp_path_factory):
    """An atlas with everything: two runs, all scores."""
    folder = tmp_path_factory.mktemp("runs")
    one, two = (write(folder / name, dense, points, noise=0.01) for name, points in RUNS.items())
    settings = {"audio": (str(place.audio),), "limit": 2, "gradient": True, "corpus": place.corpus, "shortest": 0.5}
    config = heads_atlas.Config(
        model=str(place.model), pruned=(one, two), permutations=99, sort="distance", out=folder / "atlas", **settings
    )
    heads_atlas.run(config)
    return config, json.loads((folder / "atlas/report.json").read_text())


RUNS = {"both": (KEPT, LESS), "first": (KEPT,)}


def test_every_head_is_in_the_atlas(finished, place):
    """Its numbers are means over the utterances, each alone and without padding."""
    config, told = finished
    assert [(row["layer"], row["head"]) for row in told["heads"]] == [(i, h) for i in range(2) for h in range(4)]
    assert told["frame_ms"] == 20
    speech = load_speech(config.audio, limit=2, batch=1)
    model = with_stats(load_model(str(place.model), seed=0), speech)
    run = jax.jit(lambda inputs, frames: attention_maps(model.arch, model.params, inputs, frames))
    found = []
    for samples, lengths in (*speech.calibration, *speech.held_out):
        inputs, frames = mel_inputs(model.arch.front, samples, lengths, model.stats)
        maps, counts = run(inputs, frames)
        (count,) = counts[0]
        assert count == model.arch.frames(int(lengths[0]))
        found.append([measure(np.asarray(maps[i])[0, :, :count, :count]) for i in range(2)])
    for row in told["heads"]:
        for name in ("distance", "entropy", "globalness", "verticality", "diagonality", "cumulative_diagonality"):
            mean = np.mean([each[row["layer"]][name][row["head"]] for each in found])
            assert row[name] == pytest.approx(mean, rel=1e-4), name
        assert row["distance_ms"] == pytest.approx(20 * row["distance"])


def test_scores_are_those_that_heads_are_pruned_by(finished, dense):
    for row in finished[1]["heads"]:
        block = dense[1]["layers"][str(row["layer"])]["attention"]
        mine = [part[..., row["head"], :] for name in "qkv" for part in block[name].values()]
        assert row["l1"] == pytest.approx(sum(float(jnp.abs(part).sum()) for part in mine), rel=1e-5)
        assert row["activation"] > 0
        assert row["gradient"] > 0


def test_the_report_names_what_each_point_kept(finished):
    config, told = finished
    runs = dict(zip(RUNS, map(str, config.pruned), strict=True))
    for name, points in RUNS.items():
        found = told["kept"][runs[name]]
        assert [{axis: tuple(keep) for axis, keep in point["kept"].items()} for point in found] == list(points)
        assert all(0 < point["doubt"] < 0.2 for point in found)
    row = next(row for row in told["heads"] if (row["layer"], row["head"]) == (0, 2))
    assert [row[f"kept {runs[name]}"] for name in RUNS] == ["point-1", "point-0"]
    assert (row["survived"], row["points"]) == (3, 3)
    row = next(row for row in told["heads"] if (row["layer"], row["head"]) == (1, 0))
    assert [row[f"kept {runs[name]}"] for name in RUNS] == ["dense", "dense"]
    assert (row["survived"], row["points"]) == (0, 3)


def test_each_point_is_tested(finished):
    told = finished[1]
    values = {(row["layer"], row["head"]): row["diagonality"] for row in told["heads"]}
    assert [(row["heads"], row["layer_0"], row["layer_1"]) for row in told["points"]] == [
        (5, "0 2 3", "1 3"),
        (1, "2", "none"),
        (5, "0 2 3", "1 3"),
    ]
    row = told["points"][1]
    assert row["diagonality"] == pytest.approx(values[0, 2])
    assert row["by_chance"] == pytest.approx(np.mean([values[0, head] for head in range(4)]))
    rank = sum(values[0, head] >= values[0, 2] for head in range(4)) / 4
    assert row["p_higher"] == pytest.approx(rank, abs=0.2)
    assert told["points"][0]["permutations"] == 99


def test_the_picture_has_a_panel_for_each_head(monkeypatch, tmp_path):
    """Brightest where it looks most; layers without heads leave no line."""
    figures = []
    monkeypatch.setattr(canvas, "save", lambda figure, path: figures.append(figure))
    rows = [
        {"layer": layer, "head": head, "diagonality": -0.25, "survived": head, "points": 4}
        for layer, count in ((0, 2), (3, 3))
        for head in range(count)
    ]
    pictures.draw_atlas(tmp_path / "atlas.png", [(row, np.eye(3) / 4) for row in rows], title="title", caption="below")
    panels = [panel for panel in figures[0].axes if panel.axison]
    assert len(figures[0].axes) == 6
    assert [p.get_title() for p in panels] == [f"head {row['head']}: −0.250" for row in rows]
    assert [p.get_xlabel() for p in panels] == [f"kept at {row['head']} of 4" for row in rows]
    assert [p.get_ylabel() for p in panels] == ["layer 0", "", "layer 3", "", ""]
    assert np.array_equal(panels[0].images[0].get_array(), np.eye(3))
    widths = [p.spines["top"].get_linewidth() for p in panels[2:]]
    assert widths == sorted(set(widths))  # the longer it was kept, the thicker


def test_picture_and_tables_are_written(finished):
    config, told = finished
    assert (config.out / "atlas.png").read_bytes().startswith(b"\x89PNG")
    with (config.out / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["entropy"]) for row in rows] == [row["entropy"] for row in told["heads"]]
    with (config.out / "points.csv").open() as file:
        assert [row["point"] for row in csv.DictReader(file)] == ["point-0", "point-1", "point-0"]


def test_the_table_is_sorted(finished, monkeypatch):
    """By the column that is named, the highest first; by layers as they come."""
    config, told = finished
    shown = []
    monkeypatch.setattr(tables, "show", lambda title, rows, columns: shown.append(rows))
    atlas = heads_atlas.Atlas(load_model(config.model, seed=0), told["heads"], {}, {}, [], ())
    for sort in ("diagonality", "gradient", "layer"):
        heads_atlas._show(replace(config, sort=sort), atlas)
    for rows, name in zip(shown, ("diagonality", "gradient"), strict=False):
        assert [row[name] for row in rows] == sorted((row[name] for row in told["heads"]), reverse=True)
    assert shown[2] == told["heads"]


@pytest.mark.slow
def test_a_pruning_records_what_it_keeps(place, dense, tmp_path):
    """What events tell, put together, is what they cut, and what the weights say."""
    speech, asked = load_speech((str(place.audio),), limit=2), heads.Config(score="l1")
    model = with_stats(load_model(str(place.model), seed=0), speech)
    subject = Subject(*dense, {})
    job = Job(asked, model, subject, heads.PAPER, asked.training(heads.PAPER), None, speech)
    events, models = [], []
    for level in (3, 1):
        event = unit_event(job, subject, Heads(level))
        events.append(json.loads(json.dumps(dict(event.told))))
        models.append(subject := event.after(subject))
    points = [
        {"name": name, "heads": [n, n], "kept": e["kept"]} for name, n, e in zip("ab", (3, 1), events, strict=True)
    ]
    files.write_json(tmp_path / "points.json", points)
    recorded, notes = read_points(tmp_path, *dense)
    assert not notes
    for point, slim in zip(recorded, models, strict=True):
        again = reduce(lambda tree, axis: cut(tree, axis, point.kept[axis.name]), head_axes(dense[0]), dense[1])
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again, slim.params))
        checkpoint.save(tmp_path / "models" / point.name, slim.arch, slim.params)
    files.write_json(tmp_path / "points.json", [{k: v for k, v in p.items() if k != "kept"} for p in points])
    matched, notes = read_points(tmp_path, *dense)
    assert [point.kept for point in matched] == [point.kept for point in recorded]


def test_levels_straight_from_the_model_are_not_put_together(dense, tmp_path):
    first, second = "layers/0/attention/heads", "layers/1/attention/heads"
    kept = [{first: [1, 2, 3], second: [0, 1, 2, 3]}, {first: [1, 2], second: [0]}]
    for schedule, expected in (("once", (1, 2)), ("quick", (2, 3))):
        run = write(tmp_path / schedule, dense, kept, recorded=kept, schedule=schedule, models=False)
        points, _ = read_points(run, *dense)
        assert [point.kept[first] for point in points] == [(1, 2, 3), expected]
        assert [point.doubt for point in points] == [None, None]


def test_heads_that_moved_far_are_left_out(dense, tmp_path):
    points, notes = read_points(write(tmp_path / "run", dense, [KEPT, LESS], noise=1.0), *dense)
    assert not points
    assert len(notes) == 2
    assert "point-0: layers/0/attention/heads: its 3 heads are nearest to" in notes[0]


def test_the_nearest_is_told_only_if_it_is_far_nearer():
    among = np.eye(4, 9)
    assert nearest(among[[1, 3]] + 0.01, among)[0] == (1, 3)
    assert nearest(among[:0], among) == ((), 0.0)
    doubt = nearest(0.9 * among[:1] + 0.1 * among[1:2], among)[1]
    assert doubt == pytest.approx(0.1 / 0.9)
    half = 0.6 * among[:1] + 0.4 * among[1:2]
    for found in (half, among[[1, 1]], among[[3, 1]], np.full((1, 9), np.nan)):
        with pytest.raises(InputError, match="prune again"):
            nearest(found, among)
    with pytest.raises(InputError, match="3 weights, the model's 9"):
        nearest(np.ones((1, 3)), among)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": "none"}, "no points of a pruning run"),
        ({"rows": [{"name": "dense", "heads": [4, 4]}, {"name": "rows-3", "heads": [4, 4]}]}, "none of its 2 points"),
        ({"rows": [{"name": "dense", "heads": [3, 4]}]}, r"dense has heads \[3, 4\], the model \[4, 4\]"),
        ({"rows": [{"name": "1", "heads": [3]}]}, r"1 has heads \[3\]"),
        ({"rows": [{"level": 3}]}, "no points of a pruning run"),
        ({"kept": {"layers/0/attention/heads": [0, 1]}}, "not of this model"),
        ({"kept": {name: [0, 5] for name in KEPT}}, "not of this model"),
        ({"kept": {name: [0, 1] for name in KEPT}}, "kept 2 and has 3"),
    ],
)
def test_runs_that_do_not_fit_are_refused(dense, tmp_path, change, words):
    rows = change.get("rows", [{"name": "heads-3", "heads": [3, 2], "kept": change.get("kept")}])
    if rows != "none":
        files.write_json(tmp_path / "points.json", rows)
    with pytest.raises(InputError, match=words):
        read_points(tmp_path, *dense)


def test_a_run_of_another_model_is_refused(dense, tmp_path):
    arch, params = dense
    run = write(tmp_path / "run", dense, [KEPT], recorded=[KEPT], models=False)
    checkpoint.save(run / "models/dense", arch, jax.tree.map(lambda x: x * 2, params))
    with pytest.raises(InputError, match="has other weights"):
        read_points(run, *dense)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"limit": 0}, "--limit 0"),
        ({"permutations": 0}, "--permutations 0"),
        ({"sort": "gradient"}, "add --gradient"),
    ],
)
def test_settings_that_mean_nothing_are_refused(place, tmp_path, settings, words):
    with pytest.raises(InputError, match=words):
        heads_atlas.run(heads_atlas.Config(model=str(place.model), out=tmp_path / "atlas", **settings))
    assert not (tmp_path / "atlas").exists()


def test_a_model_without_heads_is_refused(dense, tmp_path):
    arch, params = dense
    bare = reduce(lambda tree, axis: cut(tree, axis, ()), head_axes(arch), params)
    checkpoint.save(tmp_path / "bare", describe(arch, bare), bare)
    with pytest.raises(InputError, match="none of its 2 layers has a head"):
        heads_atlas.run(heads_atlas.Config(model=str(tmp_path / "bare"), out=tmp_path / "atlas"))


def test_axes_are_of_heads_that_are_there():
    names = {name: [axis.name.split("/")[1] for axis in head_axes(ARCHS[name])] for name in ("uneven", "reusing")}
    assert names == {"uneven": ["0", "2"], "reusing": ["0"]}
    assert head_axes(replace(ARCHS["mel"], layers=(transformer_layer(0, 3),))) == []


def test_frames_have_their_length():
    assert [heads_atlas.frame_ms(arch) for arch in (melhubert(10), melhubert(20), hubert_base())] == [10, 20, 20]
    assert heads_atlas.frame_ms(ARCHS["student"]) == 5  # 40 samples, two of which become one


def test_few_draws_come_near_all_there_are():
    """Of 6 ways to keep 2 of 4, p is the share that is as extreme."""
    values = np.array([0.0, 1.0, 2.0, 7.0])
    sums = {keep: sum(values[list(keep)]) for keep in combinations(range(4), 2)}
    for keep, found in sums.items():
        told = by_chance([values], [keep], permutations=5000, seed=1)
        assert (told.kept, told.expected) == pytest.approx((found / 2, 2.5))
        assert told.higher == pytest.approx(np.mean([s >= found for s in sums.values()]), abs=0.03)
        far = [abs(s - 5) >= abs(found - 5) for s in sums.values()]
        assert told.differs == pytest.approx(np.mean(far), abs=0.03)


def test_a_planted_effect_is_found_and_layers_do_not_matter():
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=8) for _ in range(6)]
    best = [tuple(np.sort(np.argsort(layer)[-3:])) for layer in layers]
    worst = [tuple(np.sort(np.argsort(layer)[:3])) for layer in layers]
    high, low = (by_chance(layers, keep, permutations=999, seed=0) for keep in (best, worst))
    assert (high.higher, high.differs, low.higher, low.differs) == (0.001, 0.001, 1, 0.001)
    shifted = [layer + 10 * i for i, layer in enumerate(layers)]
    some = [(0, 1, 5)] * 6
    one, two = (by_chance(each, some, permutations=999, seed=0) for each in (layers, shifted))
    assert (one.higher, one.differs) == (two.higher, two.differs)
    assert 0.001 < one.differs < 1


def test_p_of_no_effect_is_uniform():
    rng, higher, differs = np.random.default_rng(0), [], []
    for seed in range(400):
        layers = [rng.normal(i, 1 + i, size=6) for i in range(3)]
        kept = [tuple(np.sort(rng.permutation(6)[: rng.integers(1, 6)])) for _ in layers]
        told = by_chance(layers, kept, permutations=99, seed=seed)
        higher.append(told.higher)
        differs.append(told.differs)
    for found in (higher, differs):
        for level in (0.1, 0.25, 0.5, 0.75):
            assert np.mean(np.array(found) <= level) == pytest.approx(level, abs=0.08)


def test_where_nothing_was_chosen_p_is_one():
    layers = [np.arange(4.0), np.arange(3.0)]
    told = by_chance(layers, [(0, 1, 2, 3), ()], permutations=9, seed=0)
    assert (told.kept, told.expected, told.higher, told.differs) == (1.5, 1.5, 1, 1)
    with pytest.raises(InputError, match="0 heads and 9 permutations"):
        by_chance(layers, [(), ()], permutations=9, seed=0)
