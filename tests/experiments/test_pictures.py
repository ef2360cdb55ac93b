"""Pictures of curves: what stands where, whole and legible, and nothing twice."""

import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from experiments import tradeoff
from experiments.curves import points
from experiments.curves.measures import COSTS, by_default, measured
from experiments.curves.points import Bench
from experiments.reports import canvas, pictures, published
from jaxssl.inference.latency import Load
from jaxssl.models import cost
from jaxssl.models.arch import melhubert
from jaxssl.runtime import files
from tests.archs import transformer_layer
from tests.experiments.curves import HEADS, ROWS, WEIGHTS, alone, compare, row, write

PROBED = {
    f"{what}_{end}": x for what in ("phone", "speaker") for end, x in (("accuracy", 0.6), ("low", 0.5), ("high", 0.7))
}


def panels(monkeypatch, draw):
    """Return the panels of the picture that `draw` makes."""
    kept = []
    monkeypatch.setattr(canvas, "save", lambda figure, path: kept.extend(figure.axes))
    draw()
    return kept


@pytest.mark.parametrize(("more", "count"), [({}, 2), (PROBED, 4)])
def test_pictures_have_a_panel_for_each_measure_and_cost(three, tmp_path, monkeypatch, more, count):
    runs = {n: [{**r, **more} for r in rows] for n, rows in (("weights", WEIGHTS), ("2:4", HEADS), ("rows", ROWS))}
    measures = by_default([*runs["rows"]])[:count]

    def draw():
        pictures.draw_curves(tmp_path / "a.png", runs, quality=measures, title="a", caption="b")

    found = panels(monkeypatch, draw)
    assert len(found) == 4 * count
    assert {panel.get_subplotspec().get_gridspec().ncols for panel in found} == {2}
    assert found[0].get_xlim()[0] < 0.5 < 1.02 < found[0].get_xlim()[1]  # the cloud at 1 is inside
    lines = {c.get_label(): c[0].get_xdata() for c in found[0].containers}
    assert list(lines) == list(runs)
    assert list(lines["weights"]) == pytest.approx([1.01, 0.99, 1.02])
    bars = [len(panel.containers[0][2]) for panel in found[::4]]
    assert bars == [2] * count
    assert found[0].get_ylabel().startswith("held-out loss above dense")
    assert [text.get_text() for text in found[0].texts] == [*runs, pictures.AS_LONG]


def shapes_of(panel):
    """Return the boxes of a panel's labels, in pixels, by text."""
    return {text.get_text(): text.get_window_extent() for text in panel.texts}


@pytest.mark.parametrize("count", [1, 4, 12])
def test_labels_are_whole_and_clear_of_each_other(tmp_path, monkeypatch, count):
    """Curves that all end near one place, with long names: the hardest there is."""
    names = [f"run {i} with a name of some length, distilled" if i % 3 else f"r{i}" for i in range(count)]
    runs = {n: [row("dense", 1.0, 2.0), row(f"a-{i}", 0.5, 2.3 + 0.01 * i)] for i, n in enumerate(names)}
    kept = panels(
        monkeypatch,
        lambda: pictures.draw_curves(tmp_path / "a.png", runs, quality=["loss_difference"], title="", caption=""),
    )
    for panel in kept:
        frame, boxes = panel.get_window_extent(), list(shapes_of(panel).items())
        assert len(panel.texts) == len(boxes) == count + 1
        for i, (text, box) in enumerate(boxes):
            assert frame.x0 < box.x0 < box.x1 < frame.x1, text
            assert frame.y0 < box.y0 < box.y1 < frame.y1, text
            assert not any(box.overlaps(other) for _, other in boxes[:i]), text


def test_letters_are_8_pt_and_more_on_a_page(three, tmp_path, monkeypatch):
    """A page shows a picture 900 px wide; 8 pt are 8 / 72 of 96 px there."""
    runs = {"rows": [{**r, "loss_before": 3.0} for r in ROWS]}
    drawn = (
        lambda: pictures.draw_curve(tmp_path / "a.png", runs["rows"], level="rows", title="a", caption="b"),
        lambda: pictures.draw_curves(tmp_path / "a.png", runs, quality=["valid_loss"], title="a", caption="b"),
        lambda: pictures.draw_published(tmp_path / "a.png", published.CURVES, title="a", caption="b"),
        lambda: pictures.draw_training(tmp_path / "a.png", LOSSES, entropy=3.0, title="a"),
    )
    for draw in drawn:
        found = panels(monkeypatch, draw)
        figure = found[0].figure
        assert figure.get_figwidth() * 96 == 900
        texts = [text for text in figure.findobj(lambda each: hasattr(each, "get_fontsize")) if text.get_text()]
        assert min(text.get_fontsize() for text in texts) >= 8
        axes = [axis.label for panel in found for axis in (panel.xaxis, panel.yaxis)]
        below = [text for legend in figure.legends for text in legend.get_texts()]
        for text in (*figure.texts, *below, *(axis for axis in axes if axis.get_text())):
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text


LOSSES = [
    {"part": part, "step": step, "masked_loss": 4 - step / 10, "masked_accuracy": step / 20}
    for part in ("train", "valid")
    for step in (0, 5, 10)
]


def test_a_growing_curve_is_drawn_from_its_first_point_on(tmp_path):
    rows = [row("dense", 1.0, 2.0, level=4), row("heads-3", 0.9, 2.1, level=3, loss_before=2.5, control_loss=1.9)]
    for count in (1, 2):
        path = tmp_path / f"{count}.png"
        pictures.draw_curve(path, rows[:count], level="heads", title="heads", caption="")
        assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "2.png"]


@pytest.mark.parametrize(("age", "every", "drawn"), [(30, 20, 1), (10, 20, 0), (10, 0, 1)])
@pytest.mark.parametrize("jump", [-86_400, 0, 86_400])
def test_a_picture_follows_a_run_without_holding_it_up(tmp_path, monkeypatch, age, every, drawn, jump):
    """The first point is drawn, then now and then, then all at the end, whatever happens to the clock on the wall."""
    model, found, ticks = SimpleNamespace(name="mel", trained=True), [], iter((100.0, 100.0 + age, 200.0))
    monkeypatch.setattr(points, "time", SimpleNamespace(monotonic=lambda: next(ticks)))

    def draw(path, rows, **_):
        found.append(len(rows))
        path.touch()

    bench = Bench(tmp_path, model, None, None, Load(1.0), "float32", 1, None, "heads", draw=draw)
    files.write_json(tmp_path / "points.json", HEADS[:1])
    for _ in range(2):  # what has all points is not drawn again
        bench.picture(HEADS[:1], every=every)
    assert found == [1]
    files.write_json(tmp_path / "points.json", HEADS)
    now = time.time() + jump
    os.utime(tmp_path / "points.json", (now, now))
    bench.picture(HEADS, every=every)
    assert found == [1, len(HEADS)][: 1 + drawn]


def test_a_busy_machine_does_not_move_a_point(tmp_path, monkeypatch):
    """Real-time factors are those at the dense model's load: a later point that everything slowed is no slower."""
    rows = [row("dense", 1.0, 2.0), row("heads-3", 0.8, 2.1, real_time_factor=0.1)]
    found = panels(
        monkeypatch, lambda: pictures.draw_curve(tmp_path / "a.png", rows, level="heads", title="", caption="")
    )
    (line,) = (c[0] for c in found[0].containers)
    assert list(line.get_xdata()) == pytest.approx([0.01, 0.008])
    assert found[0].get_xlim()[1] > 0.0105


def test_a_curve_shows_control_and_loss_before_training(tmp_path, monkeypatch):
    rows = [row("dense", 1.0, 2.0), row("weights-0.5", 0.9, 2.1, loss_before=2.5, control_loss=1.9, nonzero=400)]

    def drawn(rows):
        draw = lambda: pictures.draw_curve(tmp_path / "a.png", rows, level="weights", title="", caption="")  # noqa: E731
        found = panels(monkeypatch, draw)
        assert len(found) == 4 * 2
        lines = {c.get_label(): c[0] for c in found[2].containers}
        assert list(lines["counting only what is not zero"].get_xdata()) == pytest.approx([995e-6, 400e-6])
        assert list(lines["model"].get_xdata()) == pytest.approx([1000e-6] * 2)
        return found[0].figure.get_suptitle(), {name: list(line.get_ydata()) for name, line in lines.items()}

    title, lines = drawn(rows)
    assert lines["model"] == pytest.approx([0, 0.1])
    assert lines["before training"] == pytest.approx([0.5])  # above the same control as the point itself
    assert pictures.UNKNOWN not in title
    title, lines = drawn(alone(rows))
    assert lines["model"] == [2.0, 2.1]
    assert lines["dense, trained as long"] == [1.9]
    assert lines["before training"] == [2.5]
    assert pictures.UNKNOWN in title


def test_the_picture_is_written_with_the_tables(three, tmp_path):
    compare(tmp_path, three, draw=True)
    assert (tmp_path / "out/tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "paper.png",
        "points.csv",
        "report.json",
        "tradeoff-accuracy_difference.png",
        "tradeoff-loss_difference.png",
        "tradeoff-masked_accuracy.png",
        "tradeoff-valid_loss.png",
        "tradeoff.csv",
        "tradeoff.html",
        "tradeoff.png",
    ]


def test_an_interval_goes_by_the_whole_name_or_by_what_an_accuracy_is_of():
    assert measured("valid_loss")({"valid_loss": 2.0, "valid_loss_low": 1.9, "valid_loss_high": 2.2}) == (2, 1.9, 2.2)
    assert measured("valid_loss")({"valid_loss": 2.0, "valid_low": 1.9, "valid_high": 2.2}) == (2, 2, 2)
    assert measured("phone_accuracy")(PROBED) == (0.6, 0.5, 0.7)
    own = {"masked_accuracy": 0.2, "masked_accuracy_low": 0.1, "masked_accuracy_high": 0.3}
    assert measured("masked_accuracy")(own) == (0.2, 0.1, 0.3)


def test_one_measure_is_drawn_against_every_cost_that_is_known(three, tmp_path, monkeypatch):
    runs = {"weights": [{**r, "nonzero": 1000 - 300 * i} for i, r in enumerate(WEIGHTS)], "rows": ROWS}
    costs = [cost for cost in COSTS if cost.key in ("time", "macs", "parameters")]
    drawn = panels(
        monkeypatch,
        lambda: pictures.draw_curves(
            tmp_path / "a.png", runs, quality=["valid_loss"], costs=costs, title="a", caption=""
        ),
    )
    assert [panel.get_xlabel() for panel in drawn] == [cost.label for cost in costs]
    lines = {c.get_label(): c[0] for c in drawn[2].containers}
    assert list(lines["weights"].get_xdata()) == pytest.approx([1e-3] * 3)
    assert list(lines[pictures.LIGHTER].get_xdata()) == pytest.approx([1e-3, 7e-4, 4e-4])
    assert lines[pictures.LIGHTER].get_alpha() < 0.5
    rings = next(line for line in drawn[0].lines if line.get_label() == "Pareto front")
    assert sorted(rings.get_xdata()) == pytest.approx([0.5, 0.7, 0.99, 1.0])


def test_memory_is_a_cost_where_a_run_tells_it(three, tmp_path, monkeypatch):
    write(three[1], tuple({**r, "memory_bytes": 2e6} for r in HEADS))
    asked = []
    monkeypatch.setattr(pictures, "draw_published", lambda *_, **__: None)
    monkeypatch.setattr(pictures, "draw_curves", lambda path, *_, **more: asked.append((path.name, more)))
    tradeoff.run(tradeoff.Config(three, out=tmp_path / "out"))
    measures = ("loss_difference", "accuracy_difference", "valid_loss", "masked_accuracy")
    assert [name for name, _ in asked] == ["tradeoff.png", *(f"tradeoff-{key}.png" for key in measures)]
    assert asked[0][1]["quality"] == list(measures[:2])
    assert [c.key for c in asked[1][1]["costs"]] == ["time", "macs", "parameters", "bytes", "memory"]


def test_the_papers_points_are_grey_and_on_axes_of_their_own(tmp_path, monkeypatch):
    drawn = panels(
        monkeypatch,
        lambda: pictures.draw_published(tmp_path / "a.png", published.CURVES, title=published.LABEL, caption=""),
    )
    assert "LibriSpeech 960 h" in drawn[0].figure.get_suptitle()
    for panel, key in zip(drawn, ("parameters_m", "macs_g_per_s"), strict=True):
        curves = [line for line in panel.lines if not line.get_label().startswith("_")]  # others lead to labels
        assert {line.get_label(): list(line.get_xdata()) for line in curves} == {
            curve.label: [getattr(point, key) for point in curve.points] for curve in published.CURVES
        }
        assert all(0 < float(line.get_color()) < 0.8 for line in panel.lines)


@pytest.mark.parametrize("curve", [published.HEADS, published.ROWS], ids=["heads", "rows"])
def test_published_sizes_are_those_of_the_structures(curve):
    for point in curve.points:
        number = int(point.name.split()[0])
        layer = (
            transformer_layer(number, 3072, head_dim=64)
            if curve is published.HEADS
            else transformer_layer(12, number, head_dim=64)
        )
        arch = replace(melhubert(20), layers=(layer,) * 12)
        assert point.parameters_m == pytest.approx(cost.parameters(arch) / 1e6, rel=5e-3)
        assert point.macs_g_per_s == pytest.approx(cost.macs_per_second(arch).total / 1e9, rel=5e-3)
