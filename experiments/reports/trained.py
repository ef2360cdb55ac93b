"""What a pre-training run shows when it ends: a table of its losses, and a picture of the way there."""

from pathlib import Path
from typing import Any

from experiments.reports import pictures, tables
from jaxssl.training.pretraining import Trained

SUMMARY = {
    "part": "part",
    "loss:.3f": "loss",
    "entropy:.3f": "entropy of labels",
    "masked_accuracy:.1%": "masked accuracy",
    "unmasked_accuracy:.1%": "unmasked accuracy",
}


def show(trained: Trained, out: Path) -> None:
    """Print the last update's losses beside the held-out ones, and draw `training.png` into the run's folder."""
    fitted, entropy = trained.fitted, trained.data.entropy
    last: dict[str, Any] = next((row for row in reversed(fitted.rows) if row["part"] == "train"), {})
    rows = [{**last, "part": "train"}, {**fitted.valid, "part": "held out"}]
    tables.show("after the last update", [{**row, "entropy": entropy} for row in rows], SUMMARY)
    pictures.draw_training(out / "training.png", fitted.rows, entropy=entropy, title=str(out))
