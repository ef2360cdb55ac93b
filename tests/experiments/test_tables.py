"""Tables of a run can be read whole at the width that a file or a pipe gets."""

import io

from rich.console import Console

from experiments.curves.columns import QUALITY
from experiments.reports import tables

ABSENT = ("phone_", "speaker_")  # known only where probes were asked for


def test_no_heading_and_no_cell_is_cut(monkeypatch):
    columns = {key: heading for key, heading in QUALITY.items() if not key.startswith(ABSENT)}
    row = {key.partition(":")[0]: -1.25 for key in columns} | {"name": "rank-64-activation", "step": 25_000}
    written = io.StringIO()
    monkeypatch.setattr(tables, "console", Console(file=written, width=150, soft_wrap=True))
    tables.show("quality", [row], columns)
    told = written.getvalue()
    assert "…" not in told
    assert {word for heading in columns.values() for word in heading.split()} <= set(told.split())
    assert {"rank-64-activation", "25000", "-1.250", "-125.0%"} <= set(told.split())
