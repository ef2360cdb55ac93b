"""Tables on the terminal."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.curves.measures import Row
from jaxssl.runtime.cli import console


def show(title: str, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """Print rows as a table.

    Args:
        title: above it.
        rows: values by key.
        columns: key → heading; a key may carry a format, as `macs:.3f`.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, (column, heading) in enumerate(columns.items()):
        whole = [*heading.split(), *(_cell(row, column) for row in rows)]  # a heading may break at blanks, a cell not
        table.add_column(heading, justify="right" if i else "left", min_width=max(map(len, whole)))
    for row in rows:
        table.add_row(*(_cell(row, column) for column in columns))
    console.print(table)


def _cell(row: Row, column: str) -> str:
    key, _, form = column.partition(":")
    value = row.get(key)
    return "–" if value is None else format(value, form)
