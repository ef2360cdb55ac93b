"""Folders of made-up runs, and their comparison."""

import json

import pytest

from experiments import tradeoff
from experiments.reports import pictures
from jaxssl.runtime import files

MACHINE = {"device": "cpu", "processor": "one", "cores": 2, "dtype": "float32", "jax": "1", "XLA_FLAGS": ""}


DENSE = 2.0  # nats, of the dense model however long it was trained


def row(name, time, loss, **more):
    """Return a point that takes `time` of the dense model's."""
    above, half = (loss - DENSE, 0.05) if name not in ("dense", "control") else (0.0, 0.0)
    return {
        "name": name,
        "level": 1.0,
        "step": 30,
        "parameters": 1000,
        "nonzero": 1000 - len(name),
        "macs_g_per_s": 1.0,
        "nominal_macs_g_per_s": 0.9,
        "bytes": 4000,
        "heads": [4, 4],
        "real_time_factor": 0.01 * time,
        "speedup": 1 / time,
        "speedup_low": 0.95 / time,
        "speedup_high": 1.05 / time,
        "valid_loss": loss,
        "masked_accuracy": 1 - loss / 10,
        "loss_difference": above,
        "loss_difference_low": above - half,
        "loss_difference_high": above + half,
        "accuracy_difference": -above / 10,
        **more,
    }


def alone(rows):
    """Leave out what a run without a control, or of an older version, does not know."""
    return tuple({key: value for key, value in row.items() if "difference" not in key} for row in rows)


HEADS = (row("dense", 1.0, 2.0), row("heads-3", 0.8, 2.2), row("heads-1", 0.6, 3.0))
ROWS = (row("dense", 1.0, 2.0), row("rows-9", 0.7, 2.5), row("rows-3", 0.5, 2.7))
WEIGHTS = (row("dense", 1.01, 2.0), row("weights-0.5", 0.99, 2.05), row("weights-0.9", 1.02, 2.4))


def write(folder, rows, *, finished=True, **told):
    folder.mkdir(exist_ok=True)
    files.write_csv(folder / "curve.csv", rows)
    files.write_json(folder / "config.json", {"model": None})
    technique = rows[-1]["name"].split("-")[0]
    told = {"technique": technique, "label": technique, "model": "melhubert-mini", "machine": MACHINE, **told}
    if finished:
        files.write_json(folder / "report.json", {**told, "notes": [], "points": rows})
    return folder


def compare(tmp_path, folders, *, draw=False, **more):
    """Run the comparison; the picture, which takes longest, only where it is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        if not draw:
            patch.setattr(pictures, "draw_curves", lambda *_, **__: None)
            patch.setattr(pictures, "draw_published", lambda *_, **__: None)
        tradeoff.run(tradeoff.Config(folders, out=tmp_path / "out", **more))
    return json.loads((tmp_path / "out/report.json").read_text())
