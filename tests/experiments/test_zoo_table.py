"""The table of the compared systems: every figure beside ours, timed in turns, differences told."""

import csv
from dataclasses import replace

import jax
import pytest

from compress.errors import InputError
from experiments import tradeoff
from experiments.reports import compared
from jaxssl.inference.latency import Load
from jaxssl.models import checkpoint, cost
from jaxssl.models.model import init
from jaxssl.runtime import files
from tests.archs import MEL, REUSING


def test_every_published_figure_is_reached_or_told():
    """Where the structure is known: 0.1 % of the parameters, 1 % of the MACs, after what the figure counts besides."""
    archs = compared.zoo()
    assert set(compared.FIGURES) < set(archs)
    for name, told in compared.FIGURES.items():
        row = compared.counts(name, archs[name])
        inferred = name == "lighthubert-small"
        if told.parameters is not None:
            assert abs(row["parameters_left"]) < (0.5 if inferred else 0.1), name
        if told.macs is not None:
            assert abs(row["macs_left"]) < 1, name
        if max(abs(row["parameters_off"] or 0), abs(row["macs_off"] or 0) / 10) > 0.1:
            assert row["note"], name


def test_what_figures_count_besides_is_what_the_heads_cost():
    archs, figures = compared.zoo(), compared.FIGURES
    seconds = sum(cost.UTTERANCES) / 16_000
    frames = sum(archs["armhubert"].frames(samples) for samples in cost.UTTERANCES) / seconds
    for name in ("armhubert", "armhubert-small"):
        width = archs[name].width
        assert figures[name].more_parameters == 12 * (width * 768 + 768)
    assert figures["armhubert"].more_macs == pytest.approx(12 * frames * 480 * 768, rel=5e-3)
    assert figures["lighthubert-small"].more_macs == pytest.approx(frames * 384 * 768, rel=5e-3)
    assert figures["fithubert"].more_parameters == 2 * (480 * 480 * 2 + 480) + 480 * 768 + 768


def test_archs_are_timed_in_turns_and_shown(capsys):
    rows = compared.rows({"mel": MEL, "armhubert": REUSING}, load=Load(0.2), rounds=2)
    assert [row["name"] for row in rows] == ["mel", "armhubert"]
    assert rows[0]["speedup"] == rows[0]["speedup_low"] == rows[0]["speedup_high"] == 1
    assert all(row["real_time_factor"] > 0 for row in rows)
    assert rows[0]["published_m"] is rows[0]["parameters_off"] is rows[0]["per"] is None
    compared.show(rows)
    text = capsys.readouterr().out
    assert "armhubert: published with the 12 projections" in text
    assert all(heading in text for heading in ("M params", "quartiles", "RTF"))


@pytest.mark.parametrize(("archs", "rounds"), [({}, 3), ({"mel": MEL}, 0)])
def test_nothing_to_time_is_refused(archs, rounds):
    with pytest.raises(InputError, match="name one arch or more, and 1 round or more"):
        compared.rows(archs, rounds=rounds)


def test_the_command_puts_the_runs_own_models_into_the_table(tmp_path, monkeypatch, capsys):
    """Twice into one folder: what is there is a folder of ours."""
    run, arch = tmp_path / "run", replace(MEL, layers=MEL.layers[:1])
    checkpoint.save(run / "models/heads-2", arch, init(arch, jax.random.key(0, impl="rbg")))
    rows = [{"name": name, "speedup": 1.0, "valid_loss": 3.0, "parameters": 9} for name in ("dense", "heads-2")]
    files.write_json(run / "report.json", {"technique": "heads", "label": "heads", "model": "m", "points": rows})
    monkeypatch.setattr(compared, "zoo", lambda: {"mel": MEL})
    for runs in ((), (run,)):
        tradeoff.run(tradeoff.Config(runs=runs, zoo=True, seconds=0.5, rounds=1, out=tmp_path / "out"))
    with (tmp_path / "out/zoo.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == ["mel", "heads: heads-2"]
    assert float(table[1]["parameters_m"]) == pytest.approx(cost.parameters(arch) / 1e6)
    assert "compared systems" in capsys.readouterr().out
