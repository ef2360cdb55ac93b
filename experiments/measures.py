"""What a point of a pruning curve says: its quality and its costs, with their intervals, read off a row of a report."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Span = tuple[float, float, float]  # a value and the ends of its interval; all three the same where there is none
Reading = Callable[[Row], Span | None]  # None where the row does not say

QUALITY = {
    "valid_loss": "held-out loss (nats)",
    "masked_accuracy": "masked accuracy",
    "phone_accuracy": "phones by frame, accuracy",
    "speaker_accuracy": "speakers by frame, accuracy",
}
CONTROL = {"valid_loss": "control_loss", "masked_accuracy": "control_accuracy"}  # of the dense model trained as long
BEFORE = {"valid_loss": "loss_before"}  # right after pruning


def number(row: Row, *keys: str) -> float | None:
    """Return the first of a row's values that is a finite number."""
    values = (row.get(key) for key in keys)
    return next((float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)), None)


def measured(key: str) -> Reading:
    """Read a measure and its interval, where it has one: `phone_low` and `phone_high` of `phone_accuracy`."""
    stem = key.rsplit("_", 1)[0]

    def read(row: Row) -> Span | None:
        value, low, high = number(row, key), number(row, f"{stem}_low", key), number(row, f"{stem}_high", key)
        return None if value is None or low is None or high is None else (value, low, high)

    return read


def value(*keys: str, scale: float = 1.0) -> Reading:
    """Read the first of the keys that a row has."""

    def read(row: Row) -> Span | None:
        found = number(row, *keys)
        return None if found is None else (found * scale, found * scale, found * scale)

    return read


def relative_time(row: Row) -> Span | None:
    """Return a point's time over the dense model's, and its quartiles, from its speed-up and that one's."""
    ratio = number(row, "speedup")
    if ratio is None or ratio <= 0:
        return None
    return 1 / ratio, 1 / (number(row, "speedup_high") or ratio), 1 / (number(row, "speedup_low") or ratio)


def real_time(dense: Row) -> Reading:
    """Read the real-time factor as it is under the load of the machine at the time when the dense model was timed.

    Other work on the machine slows later points more or less; each point's ratio to the dense model, timed in turns
    with it, does not mind.
    """
    factor = number(dense, "real_time_factor")

    def read(row: Row) -> Span | None:
        time = relative_time(row)
        return None if factor is None or time is None else (factor * time[0], factor * time[1], factor * time[2])

    return read


def pareto(points: Sequence[tuple[float, float]], *, lower: bool) -> list[bool]:
    """Tell which points (cost, quality) no other beats: in neither worse, in one better.

    Args:
        points: costs are better lower.
        lower: whether the quality is, too, as a loss.
    """
    signed = [(cost, quality if lower else -quality) for cost, quality in points]
    return [not any(o != p and o[0] <= p[0] and o[1] <= p[1] for o in signed) for p in signed]


NONZERO = value("nonzero", "parameters", scale=1e-6)
NOMINAL = value("nominal_macs_g_per_s", "macs_g_per_s")
COSTS: dict[str, Reading] = {
    "measured time relative to dense": relative_time,
    "MACs by weights not zero (G / s of speech)": NOMINAL,
    "parameters not zero (million)": NONZERO,
    "smallest encoding (MB)": value("encoded_bytes", "bytes", scale=1e-6),
}


def plain(dense: Row) -> dict[str, tuple[Reading, Reading | None]]:
    """Return costs as computed, and as they would be if zeros cost nothing."""
    return {
        "parameters (million)": (value("parameters", scale=1e-6), NONZERO),
        "MACs (G / s of speech)": (value("macs_g_per_s"), NOMINAL),
        "real-time factor, measured in turns": (real_time(dense), None),
    }
