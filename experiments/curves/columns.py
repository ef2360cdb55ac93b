"""The columns of a curve's tables: what its points know, and what they cost."""

from collections.abc import Sequence
from typing import Any

from experiments.reports import tables

Row = dict[str, Any]
FAIR = 0.8  # share of the promised speed-up below which the report says where the rest went

QUALITY = {
    "name": "point",
    "step": "updates",
    "loss_difference:+.3f": "loss above dense, as long",
    "loss_difference_low:+.3f": "from",
    "loss_difference_high:+.3f": "to",
    "loss_exchanged:.3f": "loss with new mixers",
    "loss_before:.3f": "loss before training",
    "valid_loss:.3f": "held-out loss",
    "valid_loss_low:.3f": "from",
    "valid_loss_high:.3f": "to",
    "control_loss:.3f": "dense, as long",
    "accuracy_before:.1%": "masked accuracy before training",
    "masked_accuracy:.1%": "masked accuracy",
    "control_accuracy:.1%": "dense, as long",
    "phone_accuracy:.3f": "phones",
    "phone_low:.3f": "from",
    "phone_high:.3f": "to",
    "speaker_accuracy:.3f": "speakers",
    "ctc_loss:.3f": "CTC loss",
    "character_error_rate:.1%": "characters wrong",
    "control_ctc_loss:.3f": "CTC loss of dense, as long",
    "control_character_error_rate:.1%": "characters wrong of dense, as long",
    "output_error:.4f": "output error",
    "output_cosine:.4f": "cosine",
}
COSTS = {
    "name": "point",
    "parameters:,": "parameters",
    "nonzero:,": "not zero",
    "bytes:,": "bytes",
    "frames_per_s:.1f": "frames/s",
    "fewest_frames_per_s:.1f": "fewest",
    "most_frames_per_s:.1f": "most",
    "room_frames_per_s:.1f": "room for",
    "lookahead_ms:.0f": "look-ahead ms",
    "macs_g_per_s:.3f": "MACs G/s",
    "nominal_macs_g_per_s:.3f": "nominal",
    "real_time_factor:.4f": "real-time factor",
    "speedup:.2f": "speed-up",
    "speedup_low:.2f": "quartile 1",
    "speedup_high:.2f": "quartile 3",
    "promised_speedup:.2f": "promised by MACs",
    "speech_speedup:.2f": "speed-up over speech",
    "speech_speedup_low:.2f": "quartile 1",
    "speech_speedup_high:.2f": "quartile 3",
}


def show(rows: Sequence[Row], title: str) -> None:
    """Print points as two tables: what they know, and what they cost."""
    known = {key for row in rows for key, value in row.items() if value is not None}
    for what, columns in (("quality", QUALITY), ("cost", COSTS)):
        shown = {column: name for column, name in columns.items() if column.partition(":")[0] in known}
        tables.show(f"{title}: {what}", rows, shown)


def where_the_rest_went(rows: Sequence[Row]) -> list[str]:
    """Say for each point that gains less than 0.8 of what its MACs promise what took the time.

    What no pruning touches (log-Mel or the extractor, projection, positions, norms) is timed as the same model without
    any head or unit, in turns with the others.
    """
    lines = []
    for row in rows:
        if row["speedup"] >= FAIR * row["promised_speedup"]:
            continue
        saved, could = row["dense_ms"] - row["point_ms"], row["dense_ms"] - row["bare_ms"]
        lines.append(
            f"{row['name']}: {row['speedup']:.2f} × of the {row['promised_speedup']:.2f} × that its MACs promise: of "
            f"{row['dense_ms']:.1f} ms, {row['bare_ms']:.1f} ms are what stays without any head or unit; of the "
            f"{could:.1f} ms of layers, {saved:.1f} ms were saved"
        )
    return lines
