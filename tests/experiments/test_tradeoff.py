"""Runs side by side, from made-up folders: what is interpolated, who wins, what is noted and what is refused."""

import csv
import json
import sys

import pytest

from compress.errors import InputError
from experiments import tradeoff
from experiments.curves import planning as plan
from experiments.curves.measures import pareto, relative_time
from experiments.reports import pictures
from jaxssl.runtime import files
from jaxssl.runtime.cli import main
from tests.experiments.curves import HEADS, MACHINE, ROWS, alone, compare, row, write


def test_quality_at_equal_time_is_on_the_line_between_points(three, tmp_path, capsys):
    found = compare(tmp_path, three, share=(0.9, 0.75, 0.65, 0.55, 0.4))
    table = {row["share"]: row for row in found["equal_time"] if row["measure"] == "valid_loss"}
    heads = {0.9: 2.1, 0.75: 2.4, 0.65: 2.8, 0.55: None, 0.4: None}
    rows = {0.9: 2 + 0.5 / 3, 0.75: 2 + 2.5 / 6, 0.65: 2.55, 0.55: 2.65, 0.4: None}
    best = {0.9: "heads", 0.75: "heads", 0.65: "rows", 0.55: "rows", 0.4: None}
    for share in table:
        assert table[share]["heads"] == pytest.approx(heads[share])
        assert table[share]["rows"] == pytest.approx(rows[share])
        assert table[share]["weights"] is None  # time near 1 is no gain
        assert (table[share]["wins"], table[share]["technique"]) == (best[share], best[share])
    accuracy = {row["share"]: row for row in found["equal_time"] if row["measure"] == "masked_accuracy"}
    assert accuracy[0.9]["wins"] == "heads"  # the highest wins where it is no loss
    assert accuracy[0.9]["heads"] == pytest.approx(0.79)
    with (tmp_path / "out/tradeoff.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["measure"], line["share"], line["wins"]) for line in lines[:2]] == [
        ("loss_difference", "0.9", "heads"),
        ("loss_difference", "0.75", "heads"),
    ]
    shown = capsys.readouterr().out
    assert "–" in shown
    assert "+0.100*" in shown  # heads at 0.9, the best there
    assert "note:" not in shown  # nothing keeps these runs from being compared


def test_quality_is_the_difference_to_the_dense_model_trained_as_long(three, tmp_path, capsys):
    """The longer a point was trained, the less loss it has: here the smallest has the least, and is not the best."""
    rows = (row("dense", 1.0, 2.0), row("rows-0", 0.8, 1.9), row("rows-1", 0.55, 1.8))
    rows = [{**each, "loss_difference": 0.1 * i, "loss_difference_low": 0.08 * i} for i, each in enumerate(rows)]
    rows = [{**each, "loss_difference_high": 0.13 * i} for i, each in enumerate(rows)]
    folders = (three[1], write(tmp_path / "rows", rows))
    found = compare(tmp_path, folders, share=(0.8, 0.7))
    first, second, *_ = found["equal_time"]
    assert (first["measure"], first["wins"]) == ("loss_difference", "rows")
    assert [first[f"rows{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.1, 0.08, 0.13])
    assert [second[f"rows{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.14, 0.112, 0.182])
    front = {(p["run"], p["name"]) for p in found["points"] if p["on_front"]}
    assert front == {("heads", "dense"), ("rows", "dense"), ("rows", "rows-0"), ("rows", "rows-1")}
    shown = capsys.readouterr().out
    assert "held-out loss above dense, trained as long (nats) at equal measured time" in shown
    assert "(+0.080 to +0.130)" in shown
    assert "held-out loss (nats) at" not in shown
    found = compare(tmp_path, folders, share=(0.8, 0.7), quality="absolute")
    assert found["equal_time"][0]["measure"] == "valid_loss"
    assert "held-out loss (nats) at equal measured time" in capsys.readouterr().out
    assert {row["measure"] for row in found["equal_time"]} >= {"loss_difference", "valid_loss"}
    assert found["points"][-1]["on_front"]


def test_where_no_control_is_known_values_are_absolute_and_this_is_said(three, tmp_path, capsys):
    write(three[2], alone(ROWS))
    found = compare(tmp_path, three[1:])
    assert found["equal_time"][0]["measure"] == "valid_loss"
    (note,) = found["notes"]
    assert note.startswith(f"{pictures.UNKNOWN} of rows")
    assert "above dense" not in capsys.readouterr().out
    assert compare(tmp_path, three[1:], quality="absolute")["notes"] == []


def test_runs_of_an_older_version_have_differences_without_intervals(three, tmp_path):
    rows = [row if row["name"] == "dense" else {**row, "control_loss": 1.9} for row in alone(ROWS)]
    found = compare(tmp_path, (three[1], write(three[2], rows)), share=(0.7,))
    first = found["equal_time"][0]
    assert first["measure"] == "loss_difference"
    assert first["rows"] == first["rows_low"] == pytest.approx(0.6)
    assert "have no interval in rows" in " ".join(found["notes"])


def test_points_need_not_be_in_the_order_of_time():
    rows = [row("dense", 1.0, 2.0), row("weights-0.5", 0.6, 3.0), row("weights-0.9", 0.8, 2.2)]
    assert tradeoff.interpolate(rows, 0.7, "valid_loss") == pytest.approx(2.6)
    assert tradeoff.interpolate(rows, 0.6, "valid_loss") == pytest.approx(3.0)
    assert tradeoff.interpolate(rows, 0.599, "valid_loss") is None
    assert tradeoff.interpolate(rows[1:], 0.95, "valid_loss") == pytest.approx(2.2)  # all are faster than asked
    broken = [*rows, row("weights-0.95", 0.7, float("nan"))]
    assert tradeoff.interpolate(broken, 0.7, "valid_loss") == pytest.approx(2.6)


def test_the_control_is_no_point_of_the_run(tmp_path):
    write(tmp_path / "heads", (HEADS[0], row("control", 1.0, 1.5), *HEADS[1:]))
    found = compare(tmp_path, (tmp_path / "heads",), share=(0.9,))
    assert found["equal_time"][0]["heads"] == pytest.approx(0.1)
    assert [point["name"] for point in found["points"]] == ["dense", "heads-3", "heads-1"]


def test_the_line_begins_at_the_dense_model_trained_as_long(tmp_path):
    """Where the run had a control; what training alone changes is no merit of pruning."""
    rows = [HEADS[0], {**HEADS[1], "control_loss": 1.6}, {**HEADS[2], "control_loss": 1.2}]
    found = compare(tmp_path, (write(tmp_path / "heads", rows),), share=(0.9, 0.7))
    losses = [row["heads"] for row in found["equal_time"] if row["measure"] == "valid_loss"]
    assert losses == pytest.approx([1.9, 2.6])
    accuracy = [row["heads"] for row in found["equal_time"] if row["measure"] == "masked_accuracy"]
    assert accuracy[0] == pytest.approx(0.79)
    assert found["points"][0]["valid_loss"] == 2.0


def test_the_front_holds_what_nothing_beats(three, tmp_path):
    found = compare(tmp_path, three)
    front = {(p["run"], p["name"]) for p in found["points"] if p["on_front"]}
    assert front == {
        ("heads", "dense"),
        ("rows", "dense"),
        ("heads", "heads-3"),
        ("rows", "rows-9"),
        ("rows", "rows-3"),
        ("weights", "weights-0.5"),
    }
    assert pareto([(1, 3), (2, 2), (2, 3), (3, 1)], lower=True) == [True, True, False, True]
    assert pareto([(1, 3), (2, 2), (2, 3), (3, 1)], lower=False) == [True, False, False, False]


def test_relative_time_turns_the_quartiles_round():
    assert relative_time({"speedup": 2.0, "speedup_low": 1.6, "speedup_high": 2.5}) == pytest.approx((0.5, 0.4, 0.625))
    assert relative_time({"speedup": 2.0}) == (0.5, 0.5, 0.5)
    assert relative_time({"valid_loss": 1.0}) is None


def test_an_unfinished_run_is_read_from_its_table_and_said(three, tmp_path, capsys):
    folder = write(tmp_path / "going", (*HEADS[:2],), finished=False)
    found = compare(tmp_path, (three[2], folder), share=(0.9, 0.7))
    assert "going: not finished, 2 points so far" in capsys.readouterr().out
    assert found["runs"][1] | {"folder": ""} == {
        "folder": "",
        "technique": "heads",
        "label": "going",
        "model": "melhubert-mini",
        "machine": {},
        "notes": [],
        "finished": False,
        "points": 2,
    }
    losses = [row["going"] for row in found["equal_time"] if row["measure"] == "valid_loss"]
    assert losses == [pytest.approx(2.1), None]
    assert found["equal_time"][0]["measure"] == "loss_difference"
    assert len(found["notes"]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "different models (melhubert-mini, other)"),
        ({"machine": {**MACHINE, "device": "gpu"}}, "different device: cpu, gpu"),
        ({"rows": (row("dense", 1.0, 2.5), *ROWS[1:])}, "2.000 to 2.500: measured on different speech"),
        ({"rows": (*ROWS[:2], row("rows-3", 0.5, 2.7, step=60))}, "different numbers of updates: 30, 60"),
    ],
)
def test_what_keeps_runs_apart_is_noted(three, tmp_path, change, message):
    write(three[2], change.pop("rows", ROWS), **change)
    found = compare(tmp_path, three[1:])
    assert message in " ".join(found["notes"])


def test_runs_of_one_label_are_told_apart(tmp_path):
    folders = tuple(write(tmp_path / name, HEADS) for name in ("one", "two"))
    found = compare(tmp_path, (*folders, folders[0]))
    assert [run["label"] for run in found["runs"]] == [f"heads ({folder})" for folder in folders]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: [path.unlink() for path in folder.iterdir()], "neither report.json nor curve.csv"),
        (lambda folder: write(folder, HEADS) and files.write_json(folder / "report.json", {"points": []}), "0 rows"),
        (
            lambda folder: files.write_json(folder / "report.json", {"points": [{"name": "a", "speedup": 1}]}),
            "valid_l",
        ),
        (lambda folder: files.write_json(folder / "report.json", [1]), "cannot be read"),
        (lambda folder: (folder / "report.json").write_text("{"), "cannot be read"),
    ],
)
def test_folders_that_hold_no_curve_are_named(three, tmp_path, spoil, message):
    spoil(three[1])
    with pytest.raises(InputError, match=message) as caught:
        compare(tmp_path, three)
    assert str(caught.value).startswith(str(three[1]))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_command_line_names_what_is_wrong(three, tmp_path, monkeypatch, capsys):
    for words, message in (
        ((), "0 runs"),
        ((three[0], "--share", "0.5", "0"), "--share 0.0: give above 0"),
        ((three[0], "--out", three[0]), "one of the runs"),
        ((tmp_path / "nowhere",), "nowhere: no such"),
        ((three[0], "--retime", "--seconds", "0.01"), "--seconds 0.01: give 0.025 to 3600"),
        ((three[0], "--retime", "--rounds", "0"), "--rounds 0"),
        ((three[0], "--plan", "auto"), "--plan auto with 0 budgets"),
        ((three[0], "--budget", "rtf=50%"), "--plan none with 1 budgets"),
        ((three[0], "--budget", "rtf=50%", "--plan", "auto"), "config.json: does not say model and speech"),
    ):
        monkeypatch.setattr(sys, "argv", ["tradeoff", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main(tradeoff.run, tradeoff.Config, "")
        assert left.value.code == 2
        assert message in capsys.readouterr().err
    assert (three[0] / "report.json").is_file()


def test_a_plan_is_made_first_and_stands_beside_the_runs(three, tmp_path, monkeypatch):
    """`--plan auto`: the plan of the first run's model and its uniform rivals are two more curves."""
    for folder in three:
        (folder / "config.json").write_text(
            json.dumps({**vars(plan.Config()), "out": "", "speakers": None}, default=str)
        )

    def run(config):
        write(config.out, (row("dense", 1.0, 2.0), row("auto-rtf=50%", 0.5, 2.2)), label="automatic plan")
        write(config.out / "uniform", (row("rows-rtf=50%", 0.5, 2.7),), label="uniform plans")

    monkeypatch.setattr(plan, "run", run)
    found = compare(tmp_path, three, share=(0.5,), budget=("rtf=50%",), plan="auto")
    assert {"automatic plan", "uniform plans"} <= {told["label"] for told in found["runs"]}
    assert found["equal_time"][0]["wins"] == "automatic plan"
