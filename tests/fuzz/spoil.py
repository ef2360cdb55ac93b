"""What is damaged, how, and what reads it."""

import json
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
    bombs = (b"a: &a [x, x]\n", b"&a [*a]", b"!!python/object/apply:os.system ['touch pwned']", b"? [a]\n: b")
    return text if draw.randrange(5) else content + draw.choice(bombs) + b"\n"


def as_text(content: bytes, draw: Draw) -> bytes:
    if draw.randrange(3) == 0:
        return mutate.damaged(content, draw)
    return mutate.words(content.decode(), draw).encode("utf-8", "surrogatepass")
