"""Tables as text: a header line, UTF-8, columns parted by tabs, no quoting; wrong lines are named by their number."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from compress.errors import InputError
from jaxssl.runtime.files import whole


def read_rows(path: Path, *needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row) of a table that has at least one column of each group in `needed`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            for names in needed:
                if not set(names) & set(table.fieldnames or ()):
                    raise InputError(f"{path}: its first line must name a column {' or '.join(names)}, parted by tabs")
            for row in table:
                if None in row or None in row.values():
                    wanted, there = len(table.fieldnames or ()), sum(v is not None for k, v in row.items() if k)
                    there += len(row.get(None) or ())
                    raise InputError(f"{path}, line {table.line_num}: {there} columns, the first line names {wanted}")
                yield table.line_num, row
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path}: not a table: {error}; it must be UTF-8 text, columns parted by tabs") from error


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table so that it appears whole or not at all.

    Raises:
        InputError: a cell holds a tab or a line break.
    """
    with whole(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        for row in (header, *rows):
            if any(c in cell for cell in row for c in "\t\r\n"):
                raise InputError(f"{path}: {row[0]!r}: a cell holds a tab or a line break; rename what it names")
            file.write("\t".join(row) + "\n")
