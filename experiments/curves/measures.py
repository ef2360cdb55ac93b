"""What a point of a pruning curve says: its quality and its costs, with their intervals, read off a row of a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST = 1e30  # of anything that is measured; what a file has beyond is damage
Row = Mapping[str, Any]
Span = tuple[float, float, float]  # a value and the ends of its interval; all three the same where there is none
Reading = Callable[[Row], Span | None]  # None where the row does not say

QUALITY = {
    "loss_difference": "held-out loss above dense, trained as long (nats)",
    "valid_loss": "held-out loss (nats)",
    "accuracy_difference": "masked accuracy above dense, trained as long",
    "masked_accuracy": "masked accuracy",
    "phone_accuracy": "phones by frame, accuracy",
    "speaker_accuracy": "speakers by frame, accuracy",
    "ctc_loss": "CTC loss of held-out speech (nats a character)",
    "character_error_rate": "character error rate of held-out speech",
    "output_error": "relative error of the output, before training",
}
# Points trained longer have less loss however small they are; what compression costs is the difference to the dense
# model trained as long, paired by utterance.
DIFFERENCES = {"loss_difference": "valid_loss", "accuracy_difference": "masked_accuracy"}
CONTROL = {"valid_loss": "control_loss", "masked_accuracy": "control_accuracy"}  # of the dense model trained as long
UNKNOWN = "absolute values, for the difference to the dense model trained as long is not known"


def number(row: Row, *keys: str) -> float | None:
    """Return the first of a row's values that is a finite number."""
    values = (row.get(key) for key in keys)
    return next((float(v) for v in values if isinstance(v, (int, float)) and abs(v) <= MOST), None)  # nor NaN


@dataclass(frozen=True)
class Cost:
    """What a point costs, as an axis of a picture.

    Attributes:
        key: names it in files and links.
        label: of the axis, with the unit.
        read: finds it in a row.
        nominal: finds what it would be if zeros cost nothing; None where that means nothing.
    """

    key: str
    label: str
    read: Reading
    nominal: Reading | None = None


def lower_is_better(key: str) -> bool:
    """Tell whether a measure of quality is a loss or an error."""
    return "loss" in key or "error" in key


def measured(key: str) -> Reading:
    """Read a measure and its interval, where it has one.

    The interval goes by the measure's whole name, `valid_loss_low` and `valid_loss_high`; an accuracy's may go by what
    it is of, `phone_low` and `phone_high` of `phone_accuracy`.
    """
    names = (key, key.removesuffix("_accuracy"))

    def read(row: Row) -> Span | None:
        value = number(row, key)
        low, high = (number(row, *(f"{name}_{end}" for name in names), key) for end in ("low", "high"))
        return None if value is None or low is None or high is None else (value, low, high)

    return read


def before_training(key: str) -> Reading:
    """Read a loss right after compression, before any update: absolute, or above the same control as the point's."""

    def read(row: Row) -> Span | None:
        if key == "valid_loss":
            return measured("loss_before")(row)
        if key != "loss_difference":
            return None
        if paired := measured("difference_before")(row):
            return paired
        before, after, above = (number(row, name) for name in ("loss_before", "valid_loss", "loss_difference"))
        if before is None or after is None or above is None:
            return None
        found = before - (after - above)
        return found, found, found

    return read


def lacks_difference(rows: Sequence[Row]) -> bool:
    """Tell whether a point has a held-out loss that no dense model trained as long is known to compare with."""
    return any(number(r, "valid_loss") is not None and number(r, "loss_difference") is None for r in rows)


def by_default(rows: Sequence[Row], *, absolute: bool = False) -> list[str]:
    """Return the measures of quality to show of what rows tell: differences to the dense model, or absolute values."""
    hidden = DIFFERENCES.keys() if absolute else DIFFERENCES.values()
    return [key for key in QUALITY if key not in hidden and any(number(row, key) is not None for row in rows)]


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


def controls(rows: Sequence[Row], key: str, cost: Reading) -> list[tuple[float, float]]:
    """Return (cost, quality) of the dense model after as much training as the run's last point had, where known."""
    own = [row for row in rows if row["name"] == "control"]
    dense = own or [row for row in rows if row["name"] == "dense"]
    if not dense:  # a run of students only
        return []
    found = number(own[-1], key) if own else number(rows[-1], CONTROL.get(key, ""))
    at = cost(dense[0])
    return [] if found is None or at is None else [(at[0], found)]


def saves(rows: Sequence[Row], cost: Cost) -> bool:
    """Tell whether a run would cost less by more than 1 % anywhere if zeros cost nothing."""
    nominal = cost.nominal
    return nominal is not None and any((x := cost.read(r)) and (y := nominal(r)) and y[0] < 0.99 * x[0] for r in rows)


def _in_turns(row: Row) -> Span | None:
    """Read the real-time factor where its quartiles tell that it was timed in turns with all others."""
    return measured("real_time_factor")(row) if number(row, "real_time_factor_low") is not None else None


NONZERO = value("nonzero", "parameters", scale=1e-6)
NOMINAL = value("nominal_macs_g_per_s", "macs_g_per_s")
PARAMETERS = Cost("parameters", "parameters (million)", value("parameters", scale=1e-6), NONZERO)
MACS = Cost("macs", "MACs (G / s of speech)", value("macs_g_per_s"), NOMINAL)
TIME = Cost("time", "measured time relative to dense", relative_time)
BYTES = Cost("bytes", "smallest encoding (MB)", value("encoded_bytes", "bytes", scale=1e-6))
OVERVIEW = (
    TIME,
    Cost("nominal_macs", "MACs by weights not zero (G / s of speech)", NOMINAL),
    Cost("nonzero", "parameters not zero (million)", NONZERO),
    BYTES,
)
COSTS = (
    TIME,
    Cost("real_time_factor", "real-time factor, all timed in turns", _in_turns),
    MACS,
    PARAMETERS,
    BYTES,
    Cost("memory", "memory of a forward pass (MB)", value("memory_bytes", scale=1e-6)),
)


def known_costs(rows: Sequence[Row]) -> tuple[Cost, ...]:
    """Return the costs that some row tells."""
    return tuple(cost for cost in COSTS if any(cost.read(row) for row in rows))


def plain(dense: Row) -> tuple[Cost, ...]:
    """Return the real-time factor, and costs as computed and as they would be if zeros cost nothing."""
    return Cost("real_time_factor", "real-time factor, measured in turns", real_time(dense)), MACS, PARAMETERS, BYTES
