"""What is damaged, how, and what reads it."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz import mutate

Draw = Any
Spoil = Callable[[Path, Draw], int]


@dataclass(frozen=True)
class Target:
    """What is damaged, and what reads it.

    Attributes:
        name: of the target.
        make: makes the files below a folder; InputError where this machine has none.
        spoil: damages them; returns their bytes.
        read: reads them.
        share: of the inputs, beside the others.
    """

    name: str
    make: Callable[[Path], object]
    spoil: Spoil
    read: Callable[[Path], object]
    share: int = 1


def one_of(edits: dict[str, Callable[[bytes, Draw], bytes]]) -> Spoil:
    """Damage one of the files, chosen by name; all others stay as they were."""

    def spoil(folder: Path, draw: Draw) -> int:
        names = sorted(edits)
        name = draw.choice(names)
        path = folder / name
        match draw.randrange(40):
            case 0:
                path.unlink()
            case 1:
                path.write_bytes(b"")
            case 2:
                path.write_bytes((folder / draw.choice(names)).read_bytes())
            case _:
                path.write_bytes(edits[name](path.read_bytes(), draw))
        return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())

    return spoil


def as_json(content: bytes, draw: Draw) -> bytes:
    return mutate.json_text(json.loads(content), draw)


def as_yaml(content: bytes, draw: Draw) -> bytes:
    if draw.randrange(3) == 0:
        return mutate.damaged(content, draw)
    text = mutate.json_text(yaml.safe_load(content), draw)  # which is YAML, too
    if draw.randrange(2):
        return text
    # In the place of one of its values: nests of aliases, dates and numbers that are none, programs.
    lines = content.decode().split("\n")
    spots = [i for i, line in enumerate(lines) if re.fullmatch(r" +\w+: .+", line)]
    i = draw.choice(spots)
    lines[i] = f"{lines[i].partition(':')[0]}: {draw.choice(YAML)}"
    return "\n".join([NEST, *lines]).encode()


NEST = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
YAML = ("*a8", "*a1", "2001-99-99", "9" * 5000, ":".join(["59"] * 3000), ":".join(["59"] * 3000) + ".5", "!!binary x")
YAML += ("!!python/object/apply:os.system ['touch pwned']", "{<<: 3}", "{[a]: b}", "&s [*s]", "1e400", ".nan", ".inf")
YAML += (
    "!!set {a, b}",
    "2001-01-01",
    "~",
    "yes",
    "0x10",
    "1_000",
    "'\\ud800'",
    '"\\ud800"',
    "-1",
    "0",
    "[]",
    "{}",
    "12",
)


def as_text(content: bytes, draw: Draw) -> bytes:
    if draw.randrange(3) == 0:
        return mutate.damaged(content, draw)
    return mutate.words(content.decode(), draw).encode("utf-8", "surrogatepass")
